//! What stands in the lines: one JSON object each. A line may be as bad as a program can make it, so nothing in it is copied
//! before it is known to be small, and nothing of it is quoted in an error: it may hold a key.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use serde_json::{Number, Value};
use twinkey_contract::Identity;
use twinkey_rotation::KeySlot;
use twinkey_sas::Key;
use zeroize::Zeroizing;

use crate::chain::Chain;
use crate::hub::outbox::MESSAGE_LEN_MAX;
use crate::hub::topics;
use crate::keyring::Registration;
use crate::provision;

/// Longest `id` that is a text, in bytes: a UUID takes 36. It is kept until its request is answered.
pub(super) const ID_LEN_MAX: usize = 64;
/// Longest topic (MQTT 3.1.1 §1.5.3). Properties travel in it.
const TOPIC_LEN_MAX: usize = u16::MAX as usize;
/// Lifetime of a token when the request names none, in seconds.
const TOKEN_TTL_SECS: u64 = 3_600;

/// A line that could be read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) id: Id,
    /// What is asked for, or what is wrong with it.
    pub(super) asked: Result<Asked, String>,
}

/// What a program asks for.
#[derive(Debug)]
pub(super) enum Asked {
    Publish { topic: String, payload: Bytes },
    Question(Question),
}

/// What the driver answers by itself.
#[derive(Debug)]
pub(super) enum Question {
    Status,
    Replace { registration: Registration, key: Key, slot: KeySlot },
    Token { ttl_secs: u64 },
}

/// The name that a program gives its request, which the answer repeats.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Id {
    #[default]
    None,
    Number(Number),
    Text(Box<str>),
    /// It is too long, or of another type.
    Unfit,
}

/// An answer.
#[derive(Serialize, Default)]
pub(super) struct Answer {
    pub(super) id: Id,
    pub(super) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

/// Every field that a request may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fields {
    request: Kind,
    #[serde(default)]
    id: Id,
    body: Option<String>,
    body_base64: Option<String>,
    properties: Option<Properties>,
    connection_string: Option<Zeroizing<String>>,
    slot: Option<SlotName>,
    ttl_secs: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Publish,
    Status,
    Replace,
    Token,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SlotName {
    Primary,
    Secondary,
}

/// Properties of a message; `None` if there are more than a topic has room for.
#[derive(Default)]
struct Properties(Option<BTreeMap<String, String>>);

/// Reads a line.
pub(super) fn parse(line: &[u8], identity: &Identity) -> Parsed {
    match serde_json::from_slice::<Fields>(line) {
        Ok(Fields { id: Id::Unfit, .. }) => Parsed {
            id: Id::None,
            asked: Err(format!("the id must be null, a number, or a text of at most {ID_LEN_MAX} bytes")),
        },
        Ok(mut fields) => Parsed { id: std::mem::take(&mut fields.id), asked: asked(fields, identity) },
        // Where, but not what: serde's own words quote values.
        Err(error) => {
            let what = match error.classify() {
                Category::Syntax | Category::Eof | Category::Io => "it is not one JSON object",
                Category::Data => "a field is unknown, missing or of the wrong type",
            };
            Parsed { id: Id::None, asked: Err(format!("not a request: {what} (column {})", error.column())) }
        }
    }
}

fn asked(fields: Fields, identity: &Identity) -> Result<Asked, String> {
    let Fields { request, id: _, body, body_base64, properties, connection_string, slot, ttl_secs } = fields;
    let is_message = body.is_some() || body_base64.is_some() || properties.is_some();
    let is_replacement = connection_string.is_some() || slot.is_some();
    let foreign = || "not a request: a field belongs to another request".to_owned();
    match request {
        Kind::Publish if is_replacement || ttl_secs.is_some() => Err(foreign()),
        Kind::Publish => publish(body, body_base64, properties, identity),
        Kind::Status if is_message || is_replacement || ttl_secs.is_some() => Err(foreign()),
        Kind::Status => Ok(Asked::Question(Question::Status)),
        Kind::Token if is_message || is_replacement => Err(foreign()),
        Kind::Token => Ok(Asked::Question(Question::Token { ttl_secs: ttl_secs.unwrap_or(TOKEN_TTL_SECS) })),
        Kind::Replace if is_message || ttl_secs.is_some() => Err(foreign()),
        Kind::Replace => {
            let text = connection_string.ok_or("not a request: it has no connectionString")?;
            let (registration, key) = provision::parse(&text).map_err(|error| Chain(&error).to_string())?;
            let slot = match slot {
                None | Some(SlotName::Primary) => KeySlot::Primary,
                Some(SlotName::Secondary) => KeySlot::Secondary,
            };
            Ok(Asked::Question(Question::Replace { registration, key, slot }))
        }
    }
}

fn publish(
    body: Option<String>,
    body_base64: Option<String>,
    properties: Option<Properties>,
    identity: &Identity,
) -> Result<Asked, String> {
    let payload = match (body, body_base64) {
        (Some(body), None) => Bytes::from(body),
        (None, Some(body)) => {
            Bytes::from(STANDARD.decode(body).map_err(|_| "bodyBase64 is not base64".to_owned())?)
        }
        (Some(_), Some(_)) | (None, None) => return Err("give either body or bodyBase64".to_owned()),
    };
    let too_large = || format!("the message is larger than the {MESSAGE_LEN_MAX} bytes that the hub takes");
    let properties = match properties {
        None => BTreeMap::new(),
        Some(Properties(properties)) => properties.ok_or_else(too_large)?,
    };
    let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut topic = topics::telemetry(identity, pairs);
    if topic.len() > TOPIC_LEN_MAX || topic.len() + payload.len() > MESSAGE_LEN_MAX {
        return Err(too_large());
    }
    // It is kept: what is counted is its length.
    topic.shrink_to_fit();
    Ok(Asked::Publish { topic, payload })
}

impl Answer {
    /// The line, without its end.
    pub(super) fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

pub(super) fn failed(id: Id, error: impl Into<String>) -> Answer {
    Answer { id, error: Some(error.into()), ..Answer::default() }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None | Self::Unfit => serializer.serialize_unit(),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id")
            }

            fn visit_unit<E>(self) -> Result<Id, E> {
                Ok(Id::None)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Id, E> {
                Ok(Id::Unfit)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id::Number(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Id, E> {
                Ok(Number::from_f64(number).map_or(Id::Unfit, Id::Number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Id, E> {
                Ok(if text.len() > ID_LEN_MAX { Id::Unfit } else { Id::Text(text.into()) })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Id, A::Error> {
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Id::Unfit)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Id, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Id::Unfit)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Properties, A::Error> {
                let mut properties = BTreeMap::new();
                // Each takes this much of the topic, with `=` and `&`.
                let mut len = 0;
                while let Some((name, value)) = entries.next_entry::<String, String>()? {
                    len += name.len() + value.len() + 2;
                    if len > TOPIC_LEN_MAX {
                        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Ok(Properties(None));
                    }
                    if properties.insert(name, value).is_some() {
                        return Err(de::Error::custom("a property stands there twice"));
                    }
                }
                Ok(Properties(Some(properties)))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse(line.as_bytes(), &Identity { device_id: "d".into(), module_id: None })
    }

    fn complaint(line: &str) -> String {
        parsed(line).asked.expect_err(line)
    }

    fn repeated(line: &str) -> Id {
        parsed(line).id
    }

    #[test]
    fn an_id_is_repeated_as_it_is_and_one_that_is_long_or_of_another_type_is_refused() {
        let longest = "i".repeat(ID_LEN_MAX);
        for id in [
            "null",
            "7",
            "-7",
            "18446744073709551615",
            "1.5",
            "\"\"",
            "\"a\\u0001\"",
            &format!("\"{longest}\""),
        ] {
            let Parsed { id: read, asked } = parsed(&format!("{{\"request\":\"status\",\"id\":{id}}}"));
            assert!(matches!(asked, Ok(Asked::Question(Question::Status))), "{id}");
            let answer: Value =
                serde_json::from_slice(&Answer { id: read, ok: true, ..Answer::default() }.text()).unwrap();
            assert_eq!(answer["id"], serde_json::from_str::<Value>(id).unwrap(), "{id}");
        }
        let deep = format!("{}{}", "[".repeat(50), "]".repeat(50));
        for id in [&format!("\"i{longest}\"") as &str, "true", "[]", "{}", "[1,[2]]", "{\"a\":{}}", &deep] {
            let line = format!("{{\"id\":{id},\"request\":\"status\"}}");
            assert!(complaint(&line).contains("at most 64 bytes"), "{id}: {}", complaint(&line));
            assert_eq!(repeated(&line), Id::None);
        }
    }

    #[test]
    fn a_field_of_another_request_is_refused_and_a_missing_one_named() {
        for (line, reason) in [
            (r#"{"request":"status","body":"x"}"#, "another request"),
            (r#"{"request":"status","ttlSecs":1}"#, "another request"),
            (r#"{"request":"publish","body":"x","slot":"primary"}"#, "another request"),
            (r#"{"request":"publish","body":"x","ttlSecs":1}"#, "another request"),
            (r#"{"request":"token","properties":{}}"#, "another request"),
            (r#"{"request":"token","connectionString":"x"}"#, "another request"),
            (r#"{"request":"token","resource":"hub/devices/d"}"#, "unknown"),
            (r#"{"request":"replace","connectionString":"x","body":"x"}"#, "another request"),
            (r#"{"request":"replace"}"#, "connectionString"),
            (r#"{"request":"publish"}"#, "either body or bodyBase64"),
            (r#"{"request":"publish","body":"x","bodyBase64":""}"#, "either body or bodyBase64"),
            (r#"{"request":"publish","bodyBase64":"*"}"#, "not base64"),
            (r#"{"request":"publish","body":1}"#, "wrong type"),
            (r#"{"request":"publish","body":"x","properties":{"a":1}}"#, "wrong type"),
            (r#"{"request":"publish","body":"x","properties":{"a":"1","a":"2"}}"#, "wrong type"),
            (r#"{"request":"publish","body":"x","body":"y"}"#, "wrong type"),
            (r#"{"request":"dance"}"#, "wrong type"),
            (r#"{"id":1}"#, "missing"),
            ("", "one JSON object"),
            ("[]", "wrong type"),
            ("{\"request\":\"status\"} {}", "one JSON object"),
            ("\u{0}", "one JSON object"),
        ] {
            assert!(complaint(line).contains(reason), "{line}: {}", complaint(line));
        }
    }

    #[test]
    fn a_message_with_more_properties_than_a_topic_has_room_for_is_too_large() {
        let with = |count: usize| {
            let properties: serde_json::Map<_, _> =
                (0..count).map(|n| (format!("{n:05}"), "".into())).collect();
            serde_json::json!({"request": "publish", "id": 3, "body": "", "properties": properties})
                .to_string()
        };
        assert!(matches!(parsed(&with(9_000)).asked, Ok(Asked::Publish { .. })));
        for count in [9_400, 40_000] {
            assert!(complaint(&with(count)).contains("larger than"), "{count}");
            assert_eq!(repeated(&with(count)), Id::Number(3.into()));
        }
    }

    #[test]
    fn the_largest_message_is_taken_and_one_byte_more_is_refused() {
        let topic_len = "devices/d/messages/events/".len();
        let with = |len: usize| format!(r#"{{"request":"publish","body":"{}"}}"#, "x".repeat(len));
        assert!(parsed(&with(MESSAGE_LEN_MAX - topic_len)).asked.is_ok());
        assert!(complaint(&with(MESSAGE_LEN_MAX - topic_len + 1)).contains("larger than"));
    }
}
