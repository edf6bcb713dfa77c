//! What operators leave in a twin's tags for each other. Devices can't read or write tags (Microsoft, "Understand and use
//! device twins in IoT Hub"), so nothing here was said by a device.

use serde_json::{Map, Value};

use crate::{SECTION, sealing::SealingPublicKey};

/// The report that an operator believed last: to which public key offers are sealed from then on, and the sequence that
/// later reports have at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed {
    /// The public key.
    pub seal_to: SealingPublicKey,
    /// The report's sequence.
    pub sequence: u64,
}

/// What the tags tell of the reports before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No operator has believed a report yet.
    Nothing,
    /// This one was believed.
    Believed(Believed),
    /// Something stands there that no operator writes.
    Unreadable,
}

impl Believed {
    /// The tags to be written beside others in the section `keyRenewal`.
    pub fn to_tags(&self) -> Map<String, Value> {
        let mut tags = Map::new();
        tags.insert(String::from("sealTo"), self.seal_to.to_string().into());
        tags.insert(String::from("sequence"), self.sequence.into());
        tags
    }
}

impl Seen {
    /// Reads a twin's tags.
    pub fn read(tags: &Value) -> Self {
        let section = tags.get(SECTION);
        let field = |name| section.and_then(|section| section.get(name)).filter(|value| !value.is_null());
        match (field("sealTo"), field("sequence")) {
            (None, None) => Self::Nothing,
            (Some(seal_to), Some(sequence)) => {
                let seal_to = serde_json::from_value(seal_to.clone()).ok();
                seal_to.zip(sequence.as_u64()).map_or(Self::Unreadable, |(seal_to, sequence)| {
                    Self::Believed(Believed { seal_to, sequence })
                })
            }
            (None, Some(_)) | (Some(_), None) => Self::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Believed, Seen};
    use crate::sealing::SealingPublicKey;
    use serde_json::{Value, json};

    #[test]
    fn what_was_believed_reads_back() {
        let believed = Believed { seal_to: SealingPublicKey([9; 32]), sequence: 42 };
        let mut tags = believed.to_tags();
        tags.insert("lease".to_owned(), Value::Null);
        assert_eq!(Seen::read(&json!({"keyRenewal": tags})), Seen::Believed(believed));
    }

    #[test]
    fn tags_without_a_belief_tell_nothing() {
        for tags in [
            json!(null),
            json!([]),
            json!({}),
            json!({"keyRenewal": null}),
            json!({"keyRenewal": {"done": true}}),
            json!({"keyRenewal": {"sealTo": null, "sequence": null}}),
        ] {
            assert_eq!(Seen::read(&tags), Seen::Nothing, "{tags}");
        }
    }

    #[test]
    fn half_a_belief_and_what_is_none_are_not_taken_for_nothing() {
        let seal_to = SealingPublicKey([9; 32]).to_string();
        for section in [
            json!({"sealTo": seal_to}),
            json!({"sequence": 1}),
            json!({"sealTo": 7, "sequence": 1}),
            json!({"sealTo": "AAAA", "sequence": 1}),
            json!({"sealTo": seal_to, "sequence": -1}),
            json!({"sealTo": seal_to, "sequence": "1"}),
            json!({"sealTo": seal_to, "sequence": 1.5}),
        ] {
            assert_eq!(Seen::read(&json!({"keyRenewal": section})), Seen::Unreadable, "{section}");
        }
    }
}
