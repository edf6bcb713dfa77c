//! The hub's side of one connection. What it decides, it decides in the world's books ([`crate::world`]).

use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use twinkey_agent::hub::wire::{Received, Wire};

use crate::net::End;
use crate::world::{Answer, World};

/// What the hub tells one of its connections.
#[derive(Debug)]
pub(crate) enum Order {
    /// To end.
    Close,
    /// To say something, after so many milliseconds.
    Say(Packet, u64),
}

/// The client has this long to say CONNECT.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

pub(crate) async fn serve(
    world: Arc<World>,
    connection: u64,
    end: End,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut wire = Wire::new(end);
    let is_over_by_agent = converse(&world, connection, &mut wire, &mut orders).await;
    world.with(|w| w.connection_ends(connection, is_over_by_agent));
}

/// Ends with whether it was the agent that hung up.
async fn converse(
    world: &Arc<World>,
    connection: u64,
    wire: &mut Wire<End>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> bool {
    let hello = tokio::select! {
        biased;
        _ = closed(orders) => return false,
        packet = tokio::time::timeout(CONNECT_WITHIN, wire.next()) => packet,
    };
    let Ok(Ok(Received::Packet(Packet::Connect(connect)))) = hello else { return false };
    let delay_ms = match world.with(|w| w.connect_comes(connection, &connect)) {
        Answer::Nothing => {
            tokio::select! {
                biased;
                _ = closed(orders) => {}
                _ = wire.next() => {}
            }
            return false;
        }
        Answer::HangUp => return false,
        Answer::After { delay_ms } => delay_ms,
    };
    if delay_ms > 0 && pause(delay_ms, orders).await {
        return false;
    }
    let verdict = world.with(|w| w.judge(connection));
    if verdict.closes_first {
        world.with(|w| w.close(verdict.closes));
        if verdict.gap_ms > 0 && pause(verdict.gap_ms, orders).await {
            return false;
        }
    }
    say(wire, Packet::ConnAck(ConnAck::new(verdict.code, verdict.is_session_present))).await;
    if !verdict.closes_first {
        world.with(|w| w.close(verdict.closes));
    }
    if verdict.code != ConnectReturnCode::Success {
        return false;
    }
    let until = world.with(|w| w.token_ends(connection));
    attend(world, connection, wire, orders, until).await
}

async fn attend(
    world: &Arc<World>,
    connection: u64,
    wire: &mut Wire<End>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    token_until: Instant,
) -> bool {
    // The hub waits half as long again as the client promised (MQTT-3.1.2-24).
    const SILENCE_MAX: Duration = Duration::from_secs(360);
    let mut later: Vec<(Instant, Packet)> = Vec::new();
    let mut last_in = Instant::now();
    loop {
        let due = later.iter().map(|(at, _)| *at).min();
        let deadline = due.unwrap_or(token_until).min(token_until).min(last_in + SILENCE_MAX);
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                None | Some(Order::Close) => return false,
                Some(Order::Say(packet, 0)) => say(wire, packet).await,
                Some(Order::Say(packet, delay_ms)) => {
                    later.push((Instant::now() + Duration::from_millis(delay_ms), packet));
                }
            },
            received = wire.next() => {
                last_in = Instant::now();
                let Ok(Received::Packet(packet)) = received else { return true };
                let answers = match packet {
                    Packet::Subscribe(subscribe) => {
                        world.with(|w| w.subscribed(connection));
                        let codes = vec![SubscribeReasonCode::Success(QoS::AtMostOnce); subscribe.filters.len()];
                        vec![(Packet::SubAck(SubAck::new(subscribe.pkid, codes)), 0)]
                    }
                    Packet::Publish(publish) => publish_comes(world, connection, publish),
                    Packet::PingReq => vec![(Packet::PingResp, 0)],
                    Packet::Disconnect => {
                        world.with(|w| w.said_goodbye(connection));
                        return false;
                    }
                    _ => Vec::new(),
                };
                for (packet, delay_ms) in answers {
                    if delay_ms == 0 {
                        say(wire, packet).await;
                    } else {
                        later.push((Instant::now() + Duration::from_millis(delay_ms), packet));
                    }
                }
            }
            () = tokio::time::sleep_until(deadline) => {
                let now = Instant::now();
                if token_until <= now {
                    world.with(|w| w.token_ran_out(connection));
                    return false;
                }
                if last_in + SILENCE_MAX <= now {
                    world.with(|w| w.fell_silent(connection));
                    return false;
                }
                while let Some(index) = later.iter().position(|(at, _)| *at <= now) {
                    let (_, packet) = later.remove(index);
                    say(wire, packet).await;
                }
            }
        }
    }
}

fn publish_comes(world: &Arc<World>, connection: u64, publish: Publish) -> Vec<(Packet, u64)> {
    let request = publish.topic.split_once("$rid=").map_or("", |(_, request)| request);
    let answered = if publish.topic.starts_with("$iothub/twin/GET/") {
        world.with(|w| w.twin_wanted(connection))
    } else if publish.topic.starts_with("$iothub/twin/PATCH/") {
        world.with(|w| w.report_comes(connection, &publish.payload))
    } else if publish.qos == QoS::AtLeastOnce {
        let acknowledged = world.with(|w| w.message_comes(connection, &publish));
        return acknowledged
            .map(|delay_ms| (Packet::PubAck(PubAck::new(publish.pkid)), delay_ms))
            .into_iter()
            .collect();
    } else {
        None
    };
    let Some((status, body)) = answered else { return Vec::new() };
    let topic = format!("$iothub/twin/res/{status}/?$rid={request}");
    vec![(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)), 0)]
}

async fn say(wire: &mut Wire<End>, packet: Packet) {
    // The agent may have hung up: the next read will tell.
    if wire.queue(&packet).is_ok() {
        let _ = wire.flush().await;
    }
}

async fn closed(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Close) {
            return;
        }
    }
}

/// True when the hub closes the connection meanwhile.
async fn pause(delay_ms: u64, orders: &mut mpsc::UnboundedReceiver<Order>) -> bool {
    tokio::time::timeout(Duration::from_millis(delay_ms), closed(orders)).await.is_ok()
}
