//! One MQTT 3.1.1 connection, from the socket to its end.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{ConnAck, ConnectReturnCode, Packet};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::dps;
use crate::history::ClosedBy;
use crate::hub::{Answers, Connection, Ending, Hub, Refused, Stillness, TELEMETRY_LEN_MAX};
use crate::strangers::Stranger;
use crate::wire::{Progress, Transport, Wire, WireError};

/// Longest packet in bytes after its fixed header: the largest message, and a topic as long as MQTT can say.
pub(crate) const PACKET_LEN_MAX: usize = TELEMETRY_LEN_MAX + 2 + u16::MAX as usize + 2;
/// Longest time that a CONNECT is left without an answer if the fault `muteConnack` is set.
const MUTE_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest single sleep until a token's expiry; the clock is asked again after it.
const EXPIRY_SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// Shakes hands on a socket of the MQTT port, and serves it.
pub(crate) async fn serve_tls(hub: Arc<Hub>, tcp: TcpStream, tls: TlsAcceptor, stranger: Arc<Stranger>) {
    // Only a matter of latency; a socket that can't do it still works.
    drop(tcp.set_nodelay(true));
    let accepted = tokio::select! {
        accepted = timeout(hub.options.tls_timeout, tls.accept(tcp)) => accepted,
        () = stranger.asked_to_go() => return debug!("dropped during the TLS handshake to make room"),
    };
    match accepted {
        Ok(Ok(stream)) => serve(hub, stream, stranger).await,
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

/// Serves one connection until it ends. Everything a client can do wrong ends only its own connection.
pub(crate) async fn serve<S: Transport>(hub: Arc<Hub>, stream: S, stranger: Arc<Stranger>) {
    let mut wire = Wire::new(stream);
    let connect = tokio::select! {
        read = timeout(hub.options.connect_timeout, wire.read_connect()) => match read {
            Ok(Ok(connect)) => connect,
            Ok(Err(error)) => {
                debug!(%error, cause = std::error::Error::source(&error), "no CONNECT");
                // A WebSocket is owed a close frame (RFC 6455 §5.5.1).
                wire.farewell().await;
                return match error {
                    WireError::Closed | WireError::Lost(_) => {}
                    WireError::Malformed(_) | WireError::NotConnect => hub.refuse_malformed(""),
                };
            }
            Err(_) => return debug!("no CONNECT in time"),
        },
        () = stranger.asked_to_go() => return debug!("dropped before CONNECT to make room"),
    };
    let is_for_dps = dps::is_for_dps(&connect, &hub.options.host_name);
    let (delay, mute) = hub.connack_faults(is_for_dps);
    let is_closed = tokio::select! {
        is_closed = wire.is_closed_within(if mute { MUTE_TIMEOUT } else { delay }) => is_closed,
        () = stranger.asked_to_go() => true,
    };
    if is_closed || mute {
        return debug!("ended before CONNACK");
    }
    if is_for_dps {
        return dps::serve(&hub, wire, connect, &stranger).await;
    }
    match hub.admit(&connect) {
        Ok(mut connection) => {
            stranger.is_known_now();
            wire.is_known_now(PACKET_LEN_MAX);
            wire.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, connection.session_present)));
            let keep_alive = silence_max(connect.keep_alive, hub.options.keep_alive_max);
            drop(connect);
            let (by, with_will) = converse(&hub, &mut wire, &mut connection, keep_alive).await;
            hub.leave(&mut connection, by, with_will);
            debug!(identity = %connection.identity, ?by, "closed");
            end(wire, by).await;
        }
        Err(Refused(code)) => {
            wire.put(Packet::ConnAck(ConnAck::new(code, false)));
            wire.farewell().await;
        }
    }
}

/// Exchanges packets until something ends the connection; says what, and whether the will is to be published.
async fn converse<S: Transport>(
    hub: &Hub,
    wire: &mut Wire<S>,
    connection: &mut Connection,
    silence_max: Duration,
) -> (ClosedBy, bool) {
    let mut silence = std::pin::pin!(sleep(silence_max));
    let mut weather = hub.weather();
    loop {
        if weather.borrow().is_any_stalled() {
            // In a box: it would make the task of every connection larger.
            match Box::pin(hub.hold_stalled(connection, &mut weather)).await {
                Stillness::None => {}
                Stillness::Over => silence.set(sleep(silence_max)),
                Stillness::Ended(by) => return (by, true),
            }
        }
        wire.release_due();
        let mut heard = false;
        while wire.has_room() {
            let packet = match wire.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) => return (reason(&error), true),
            };
            heard = true;
            match hub.handle(connection, packet) {
                Ok(answers) => put_answers(hub, wire, answers).await,
                Err(Ending::Disconnected) => return (ClosedBy::Client, false),
                Err(Ending::Throttled) => return (ClosedBy::Throttled, true),
                Err(Ending::Violation(what)) => {
                    debug!(identity = %connection.identity, what, "closing");
                    return (ClosedBy::Protocol, true);
                }
                Err(Ending::Superseded) => break,
            }
        }
        if heard {
            silence.set(sleep(silence_max));
            hub.deliver_queued(connection);
        }
        let Some(remaining) = hub.remaining(connection) else {
            return (ClosedBy::Expired, true);
        };
        let (has_room, redelivery) = (wire.has_room(), hub.until_redelivery(connection));
        let due = wire.due();
        tokio::select! {
            biased;
            by = &mut connection.kicked => return (by.unwrap_or(ClosedBy::Restart), true),
            () = sleep(remaining.min(EXPIRY_SLEEP_MAX)) => {}
            () = &mut silence => return (ClosedBy::KeepAlive, true),
            changed = weather.changed() => if changed.is_err() {
                return (ClosedBy::Restart, true);
            },
            () = sleep(redelivery.unwrap_or_default()), if redelivery.is_some() => hub.deliver_queued(connection),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            Some(publish) = connection.outgoing.recv(), if has_room => {
                wire.put_after(hub.latency(), Packet::Publish(publish));
            }
            progress = wire.progress() => match progress {
                Ok(Progress::Heard | Progress::Written) => {}
                Err(error) => return (reason(&error), true),
            },
        }
    }
}

/// Puts answers out; those that tell of a change only once it is on disk, and not at all if it can't be.
async fn put_answers<S: Transport>(hub: &Hub, wire: &mut Wire<S>, answers: Answers) {
    let Answers { packets, delay, tell_of_change } = answers;
    if tell_of_change && let Err(error) = hub.settled().await {
        return debug!(%error, "a change is not acknowledged");
    }
    packets.into_iter().for_each(|packet| wire.put_after(delay, packet));
}

/// One and a half times the client's keep-alive (MQTT 3.1.1 §3.1.2.10), which the hub caps; 0 asks for the cap.
pub(crate) fn silence_max(keep_alive_secs: u16, cap: Duration) -> Duration {
    match keep_alive_secs {
        0 => cap,
        secs => Duration::from_millis(u64::from(secs) * 1500).min(cap),
    }
}

/// Whose doing it is that a wire can't be read any more.
fn reason(error: &WireError) -> ClosedBy {
    match error {
        WireError::Closed => ClosedBy::Client,
        WireError::Lost(cause) if cause.kind() == std::io::ErrorKind::InvalidData => ClosedBy::Protocol,
        WireError::Lost(_) => ClosedBy::Client,
        WireError::Malformed(_) | WireError::NotConnect => ClosedBy::Protocol,
    }
}

/// Ends the connection: abruptly like a lost network, or orderly with what is still to be written.
async fn end<S: Transport>(mut wire: Wire<S>, by: ClosedBy) {
    if !by.is_abrupt() {
        wire.farewell().await;
    }
}
