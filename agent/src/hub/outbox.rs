//! Device-to-cloud messages at QoS 1, from the moment somebody hands them over until the hub has acknowledged them.
//! They outlive connections: what one connection sent without an answer, the next one sends again (MQTT 3.1.1 §4.4).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use tokio::sync::oneshot;

use super::wire::{Wire, WireError};
use crate::budget::Room;
use crate::clock::Instant;

/// Messages that may be on their way at once. The SDKs use 10 to 100; more helps only where a round trip takes seconds.
const IN_FLIGHT_MAX: usize = 100;
/// Messages that may be on their way at once, in seconds that they take on the slowest link that is assumed; a larger
/// one travels alone. So long a dead link may go unnoticed.
const IN_FLIGHT_MAX_SECS: usize = 256;
/// The slowest link that is assumed at first, in bytes a second: GPRS with a poor signal. It is halved each time a link
/// looked dead under a message, since it may only have been slow, and doubled when a message got through.
const LINK_RATE: usize = 1_000;
/// The slowest link on which messages of any size still get through, in bytes a second.
const LINK_RATE_MIN: usize = 125;
/// Largest device-to-cloud message (Microsoft, "IoT Hub quotas and throttling"), in bytes.
pub const MESSAGE_LEN_MAX: usize = 256 * 1024 - 1024;
/// Bytes in the wire's buffer from which on no more messages are added to it.
const BACKLOG_LEN_MAX: usize = 64 * 1024;
/// Packet identifiers of messages run from 1 to here; the ones above belong to subscriptions.
const PACKET_ID_MAX: u16 = 0xfeff;

/// What a message takes besides topic and payload, in bytes: the message itself, here and on its way to here, and what the
/// allocator adds.
const OVERHEAD_LEN: usize = 256;
/// Waiting messages whose places in the queue are kept for the next ones.
const WAITING_KEPT: usize = 256;

/// What waits, and what is on its way. It has no limit of its own: each message brings its [`Room`].
#[derive(Debug)]
pub struct Outbox {
    waiting: VecDeque<Message>,
    in_flight: VecDeque<InFlight>,
    last_packet_id: u16,
    /// In bytes a second.
    link_rate: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), in_flight: VecDeque::new(), last_packet_id: 0, link_rate: LINK_RATE }
    }
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// The whole topic.
    pub topic: String,
    /// The body.
    pub payload: Bytes,
    /// Told when the hub has acknowledged it.
    pub acknowledged: oneshot::Sender<()>,
    /// Its part of what programs may make the agent hold.
    pub room: Room,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    message: Message,
    /// When it was sent on the connection that stands.
    sent_at: Option<Instant>,
    /// It was sent on an earlier connection, of a session that the hub still knows.
    is_duplicate: bool,
}

impl Outbox {
    /// Takes a message over.
    pub fn push(&mut self, message: Message) {
        self.waiting.push_back(message);
    }

    /// A new connection stands: all that has no answer yet is to be sent again, in the same order (MQTT-4.6.0-1).
    pub fn begin_session(&mut self, is_session_present: bool) {
        for entry in &mut self.in_flight {
            entry.is_duplicate = is_session_present && (entry.is_duplicate || entry.sent_at.is_some());
            entry.sent_at = None;
        }
    }

    /// Puts onto the wire what it has room for.
    pub fn send<S>(&mut self, wire: &mut Wire<S>, now: Instant) -> Result<(), WireError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        for entry in self.in_flight.iter_mut().filter(|entry| entry.sent_at.is_none()) {
            if wire.backlog_len() > BACKLOG_LEN_MAX {
                return Ok(());
            }
            wire.queue(&entry.packet())?;
            entry.sent_at = Some(now);
        }
        let mut in_flight_len = self.in_flight_len();
        let in_flight_len_max = self.link_rate * IN_FLIGHT_MAX_SECS;
        while self.in_flight.len() < IN_FLIGHT_MAX && wire.backlog_len() <= BACKLOG_LEN_MAX {
            let fits =
                |message: &Message| in_flight_len == 0 || in_flight_len + message.len() <= in_flight_len_max;
            if !self.waiting.front().is_some_and(fits) {
                break;
            }
            let Some(message) = self.waiting.pop_front() else { break };
            in_flight_len += message.len();
            let mut entry =
                InFlight { packet_id: self.next_packet_id(), message, sent_at: None, is_duplicate: false };
            let queued = wire.queue(&entry.packet());
            entry.sent_at = queued.is_ok().then_some(now);
            self.in_flight.push_back(entry);
            queued?;
        }
        if self.waiting.is_empty() && self.waiting.capacity() > WAITING_KEPT {
            // As large as it was during an outage.
            self.waiting = VecDeque::new();
        }
        Ok(())
    }

    /// The hub has acknowledged `packet_id`. An identifier that is not in flight is a late answer to a duplicate.
    pub fn acknowledge(&mut self, packet_id: u16) {
        let position = self.in_flight.iter().position(|entry| entry.packet_id == packet_id);
        if let Some(entry) = position.and_then(|position| self.in_flight.remove(position)) {
            self.link_rate = (self.link_rate * 2).min(LINK_RATE);
            let Message { acknowledged, room, .. } = entry.message;
            drop(room);
            // Whoever handed it over may have gone away meanwhile.
            let _ = acknowledged.send(());
        }
    }

    /// The link looked dead while messages were on their way: it may only be slower than was assumed.
    pub fn expect_slower_link(&mut self) {
        if !self.in_flight.is_empty() {
            self.link_rate = (self.link_rate / 2).max(LINK_RATE_MIN);
        }
    }

    /// How much longer than an empty link's an answer may take, while these messages are on their way before it.
    pub fn transfer_time(&self) -> Duration {
        Duration::from_secs(self.in_flight_len().div_ceil(self.link_rate) as u64)
    }

    fn in_flight_len(&self) -> usize {
        self.in_flight.iter().map(|entry| entry.message.len()).sum()
    }

    /// Messages without an answer.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Messages that were not sent yet.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// When the oldest message without an answer was sent on the connection that stands.
    pub fn oldest_sent_at(&self) -> Option<Instant> {
        self.in_flight.iter().filter_map(|entry| entry.sent_at).min()
    }

    fn next_packet_id(&mut self) -> u16 {
        // At most IN_FLIGHT_MAX identifiers are taken, so a free one is near.
        loop {
            self.last_packet_id =
                if self.last_packet_id >= PACKET_ID_MAX { 1 } else { self.last_packet_id + 1 };
            if !self.in_flight.iter().any(|entry| entry.packet_id == self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }
}

impl Message {
    /// How much room a message takes whose topic and payload have `len` bytes together.
    pub const fn cost_of(len: usize) -> usize {
        len + OVERHEAD_LEN
    }

    fn len(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

impl InFlight {
    fn packet(&self) -> Packet {
        Packet::Publish(Publish {
            dup: self.is_duplicate,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: self.message.topic.clone(),
            pkid: self.packet_id,
            payload: self.message.payload.clone(),
        })
    }
}
