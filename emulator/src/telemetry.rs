//! Device-to-cloud messages: reading property bags, and a bounded store for the operator to look into.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::clock::Moment;
use crate::identity::IdentityId;

/// Most messages kept; the oldest go first.
const MESSAGES_MAX: usize = 200_000;
/// Most bytes of bodies and properties kept, so that large messages can't fill the memory.
const KEPT_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most bytes of bodies in one answer.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most properties in one message; the real hub's limit is its size alone.
const PROPERTIES_MAX: usize = 1024;

/// What the topic's property bag says.
#[derive(Debug, Default)]
pub(crate) struct PropertyBag {
    pub(crate) application: Map<String, Value>,
    pub(crate) system: Map<String, Value>,
}

impl PropertyBag {
    /// Reads `k=v&k2=v2`, percent-encoded; a key alone has the value `null`. `None` if it has too many properties.
    /// IoT Hub documentation, "Communicate using MQTT", sending device-to-cloud messages.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bag = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (decode(name), Value::from(decode(value))),
                None => (decode(pair), Value::Null),
            };
            match system_name(&name) {
                // The hub says itself who sent a message.
                _ if STAMPED.contains(&name.as_str()) => continue,
                Some(known) => bag.system.insert(known.to_owned(), value),
                None if name.starts_with("$.") => bag.system.insert(name, value),
                None => bag.application.insert(name, value),
            };
            if bag.application.len() + bag.system.len() > PROPERTIES_MAX {
                return None;
            }
        }
        Some(bag)
    }

    /// Bytes that count against the message's size.
    pub(crate) fn len(&self) -> usize {
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        self.application.iter().map(|(name, value)| name.len() + text(value)).sum::<usize>()
            + self.system.values().map(text).sum::<usize>()
    }
}

/// Names of the sender's device and module, which a client can't choose.
const STAMPED: [&str; 2] = ["$.cdid", "$.cmid"];

/// System properties and the names that a bag carries them under.
fn system_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "$.mid" => "message-id",
        "$.cid" => "correlation-id",
        "$.uid" => "user-id",
        "$.ct" => "content-type",
        "$.ce" => "content-encoding",
        "$.exp" => "expiry-time-utc",
        "$.to" => "to",
        "$.ctime" | "iothub-creation-time-utc" => "creation-time-utc",
        "$.on" => "output-name",
        "$.ifid" => "interface-id",
        "$.sub" => "component-name",
        _ => return None,
    })
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The messages kept.
#[derive(Debug, Default)]
pub(crate) struct TelemetryStore {
    messages: VecDeque<Message>,
    kept_bytes: usize,
    last_seq: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Message {
    seq: u64,
    at: Moment,
    identity: String,
    bag: PropertyBag,
    body: Bytes,
}

impl Message {
    fn len(&self) -> usize {
        self.bag.len() + self.body.len()
    }
}

impl TelemetryStore {
    pub(crate) fn store(&mut self, at: Moment, identity: &IdentityId, mut bag: PropertyBag, body: Bytes) {
        bag.system.insert("connection-device-id".to_owned(), identity.device_id().into());
        if let Some(module) = identity.module_id() {
            bag.system.insert("connection-module-id".to_owned(), module.into());
        }
        self.last_seq += 1;
        // A copy: the body would otherwise keep the whole read buffer that it came in alive.
        let body = Bytes::copy_from_slice(&body);
        let message = Message { seq: self.last_seq, at, identity: identity.to_string(), bag, body };
        self.kept_bytes += message.len();
        self.messages.push_back(message);
        while self.messages.len() > MESSAGES_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.messages.pop_front() else {
                break;
            };
            self.kept_bytes -= oldest.len();
            self.dropped += 1;
        }
    }

    /// Up to `count_max` messages after sequence number `after`, of one identity or all, as the operator's JSON. `next`
    /// is the `after` of the following page.
    pub(crate) fn page(&self, identity: Option<&str>, after: u64, count_max: usize) -> Value {
        let first = self.messages.front().map_or(0, |message| message.seq);
        let skip = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let mut page = Vec::new();
        let (mut bytes, mut next) = (0, after.min(self.last_seq));
        for message in self.messages.range(skip.min(self.messages.len())..) {
            if page.len() == count_max || bytes > PAGE_BYTES_MAX {
                break;
            }
            next = message.seq;
            if identity.is_none_or(|identity| identity == message.identity) {
                bytes += message.len();
                page.push(message_view(message));
            }
        }
        json!({"messages": page, "next": next, "dropped": self.dropped})
    }
}

fn message_view(message: &Message) -> Value {
    json!({
        "seq": message.seq,
        "atMs": message.at,
        "identity": message.identity,
        "properties": message.bag.application,
        "system": message.bag.system,
        "body": std::str::from_utf8(&message.body).ok(),
        "bodyBase64": STANDARD.encode(&message.body),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn bag_as_sent_by_the_python_sdk_is_read() {
        let bag = PropertyBag::parse(
            "%24.mid=probe-1&%24.cid=c%2F1&$.ct=application%2Fjson&alert%20level=a%26b%3Dc%2Fd%25&alone&empty=&p=a+b&%24.cdid=other&$.cmid=other",
        )
        .unwrap();
        assert_eq!(
            Value::Object(bag.system),
            json!({"message-id": "probe-1", "correlation-id": "c/1", "content-type": "application/json"})
        );
        assert_eq!(
            Value::Object(bag.application),
            json!({"alert level": "a&b=c/d%", "alone": null, "empty": "", "p": "a+b"})
        );
    }

    #[test]
    fn oldest_messages_make_room_and_are_counted() {
        let (clock, mut store) = (Clock::start(), TelemetryStore::default());
        let identity = IdentityId::device("d1").unwrap();
        let body = Bytes::from(vec![b'x'; 256 * 1024]);
        let stored = KEPT_BYTES_MAX / body.len() + 10;
        for _ in 0..stored {
            store.store(clock.now(), &identity, PropertyBag::default(), body.clone());
        }
        assert!(store.kept_bytes <= KEPT_BYTES_MAX && store.dropped >= 10, "{}", store.dropped);
        let page = store.page(None, 0, 1);
        assert_eq!(page["messages"][0]["seq"], store.dropped + 1);
        assert_eq!(store.page(Some("other"), 0, 10)["next"], stored);
        assert_eq!(store.page(None, u64::MAX - 1, 10)["messages"], json!([]));
    }
}
