//! The agent's side of the twin: the `keyRenewal` section of the reported properties.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    CONTRACT_VERSION, Fingerprint, KeySlot, Proof, RotationId, SECTION, encoding, sealing::SealingPublicKey,
};

/// Longest name of an agent, in bytes. It is shown to people, so it is kept short and printable.
pub const AGENT_LEN_MAX: usize = 64;

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has been offered.
    Idle,
    /// The offered key is on disk and is being tried.
    Trying,
    /// The offered keys are held; the hub accepted the new one, where one was new.
    Committed,
    /// The hub refused the offered key over the whole propagation window while it accepted another.
    Rejected,
    /// The offer can't be used.
    Invalid,
    /// Something else than the key stands in the way; see the reason.
    Waiting,
}

/// Why: a stable code, not prose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The hub refused the key.
    Refused,
    /// The gateway's clock is wrong.
    Clock,
    /// The hub can't be reached.
    Network,
    /// The hub throttles.
    Throttled,
    /// The key can't be stored.
    Storage,
    /// The offer can't be read.
    Malformed,
    /// The key is damaged, or is no device's.
    Checksum,
    /// The key is not sealed, and the agent's configuration demands that.
    UnsealedForbidden,
    /// The key can't be unsealed.
    CannotUnseal,
    /// Another agent or program connects with the same identity.
    Duel,
    /// The key ring was restored from an old image: keys that it has missed must be offered again.
    Restored,
}

impl Status {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Trying => "trying",
            Self::Committed => "committed",
            Self::Rejected => "rejected",
            Self::Invalid => "invalid",
            Self::Waiting => "waiting",
        }
    }
}

impl Reason {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Clock => "clock",
            Self::Network => "network",
            Self::Throttled => "throttled",
            Self::Storage => "storage",
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::UnsealedForbidden => "unsealed-forbidden",
            Self::CannotUnseal => "cannot-unseal",
            Self::Duel => "duel",
            Self::Restored => "restored",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the agent holds in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotReport {
    /// Which key.
    pub fingerprint: Fingerprint,
    /// When the hub last accepted it for the first time, in Unix seconds; `None` if never. RFC 3339 text in JSON.
    #[serde(default, with = "encoding::rfc3339")]
    pub proven_at: Option<u64>,
}

/// The section under `keyRenewal`. Reading passes over unknown fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`CONTRACT_VERSION`].
    pub contract: u32,
    /// The agent's version, for people.
    pub agent: String,
    /// Where to seal keys to.
    pub seal_to: Option<SealingPublicKey>,
    /// Grows with every durable change of the key ring, so that an agent restored from an old image is seen.
    pub sequence: u64,
    /// The slot of the key in use.
    pub active: Option<KeySlot>,
    /// The rotation that `status`, `reason` and `proof` are about.
    pub rotation: Option<RotationId>,
    /// Where it stands.
    pub status: Status,
    /// Why, unless all is well.
    pub reason: Option<Reason>,
    /// What the agent adds to the gateway's wrong clock, in seconds, on the hub's word; `None` while the clock is right.
    pub clock_offset_secs: Option<i64>,
    /// The highest `sequence` that the twin has shown, where the agent's key ring is older: it was restored from an old
    /// image. Stands until a rotation that the image did not know has been committed.
    pub behind: Option<u64>,
    /// The key held for the primary slot.
    pub primary: Option<SlotReport>,
    /// The key held for the secondary slot.
    pub secondary: Option<SlotReport>,
    /// Made with the key of the active slot over `rotation`.
    pub proof: Option<Proof>,
}

impl Report {
    /// The patch of reported properties, `{"keyRenewal": {…}}`. What is absent is written as null, so that the hub's merge
    /// clears it.
    pub fn to_patch(&self) -> Value {
        // Serializing can't fail: all keys are strings, and no field's serializer gives errors.
        json!({ SECTION: self })
    }

    /// Reads a twin's `reported` object. `Ok(None)`: no agent has reported.
    ///
    /// # Errors
    /// A sentence for the operator. A device could write anything there, so nothing of it is quoted.
    pub fn read(reported: &Value) -> Result<Option<Self>, String> {
        let section = match reported.get(SECTION) {
            None | Some(Value::Null) => return Ok(None),
            Some(section) => section,
        };
        match section.get("contract").and_then(Value::as_u64) {
            Some(version) if version == u64::from(CONTRACT_VERSION) => {}
            Some(version) => {
                return Err(format!(
                    "the agent speaks version {version} of the contract, this program version {CONTRACT_VERSION}: update the older of the two"
                ));
            }
            None => {
                return Err(String::from(
                    "reported `keyRenewal.contract` is no number: another program writes there",
                ));
            }
        }
        let report = Self::deserialize(section)
            .map_err(|_| String::from("reported `keyRenewal` is not as the contract says: update the agent, or look who else writes there"))?;
        if report.agent.len() > AGENT_LEN_MAX || !report.agent.bytes().all(|c| (b' '..=b'~').contains(&c)) {
            return Err(format!(
                "reported `keyRenewal.agent` is not up to {AGENT_LEN_MAX} printable ASCII characters"
            ));
        }
        Ok(Some(report))
    }

    /// What is held for a slot.
    pub fn slot(&self, slot: KeySlot) -> Option<&SlotReport> {
        match slot {
            KeySlot::Primary => self.primary.as_ref(),
            KeySlot::Secondary => self.secondary.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Reason, Report, SlotReport, Status};
    use crate::{Fingerprint, Identity, KeySlot, Proof, RotationId, sealing::SealingPublicKey};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use twinkey_sas::Key;

    const STATUSES: [Status; 6] =
        [Status::Idle, Status::Trying, Status::Committed, Status::Rejected, Status::Invalid, Status::Waiting];
    const REASONS: [Reason; 11] = [
        Reason::Refused,
        Reason::Clock,
        Reason::Network,
        Reason::Throttled,
        Reason::Storage,
        Reason::Malformed,
        Reason::Checksum,
        Reason::UnsealedForbidden,
        Reason::CannotUnseal,
        Reason::Duel,
        Reason::Restored,
    ];

    fn full() -> Report {
        let rotation: RotationId = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap();
        let key = Key::from_bytes(&[1; 32]).unwrap();
        Report {
            contract: 1,
            agent: String::from("0.1.0"),
            seal_to: Some(SealingPublicKey([9; 32])),
            sequence: 42,
            active: Some(KeySlot::Secondary),
            rotation: Some(rotation),
            status: Status::Committed,
            reason: None,
            clock_offset_secs: Some(-86_400),
            behind: Some(41),
            primary: Some(SlotReport { fingerprint: Fingerprint([1; 8]), proven_at: None }),
            secondary: Some(SlotReport {
                fingerprint: Fingerprint::of(&key),
                proven_at: Some(1_795_169_052),
            }),
            proof: Some(Proof::new(&key, &Identity::new("d", None).unwrap(), rotation)),
        }
    }

    #[test]
    fn words_in_code_and_in_json_are_the_same() {
        for status in STATUSES {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for reason in REASONS {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn patch_has_the_contracts_names_and_reads_back() {
        let patch = full().to_patch();
        let section = patch["keyRenewal"].as_object().unwrap();
        let names: Vec<_> = section.keys().map(String::as_str).collect();
        let mut expected = [
            "contract",
            "agent",
            "sealTo",
            "sequence",
            "active",
            "rotation",
            "status",
            "reason",
            "clockOffsetSecs",
            "behind",
            "primary",
            "secondary",
            "proof",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(section["secondary"]["provenAt"], "2026-11-20T10:04:12Z");
        assert_eq!(section["primary"], json!({"fingerprint": "0101010101010101", "provenAt": null}));
        assert_eq!(Report::read(&patch), Ok(Some(full())));
    }

    #[test]
    fn absent_slots_are_written_as_null() {
        let report = Report {
            primary: None,
            secondary: None,
            proof: None,
            rotation: None,
            active: None,
            seal_to: None,
            clock_offset_secs: None,
            behind: None,
            ..full()
        };
        let patch = report.to_patch();
        for field in [
            "primary",
            "secondary",
            "proof",
            "rotation",
            "active",
            "sealTo",
            "reason",
            "clockOffsetSecs",
            "behind",
        ] {
            assert_eq!(patch["keyRenewal"].get(field), Some(&Value::Null), "{field}");
        }
        // The hub deletes what is null.
        let mut stored = patch;
        stored["keyRenewal"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
        assert_eq!(Report::read(&stored), Ok(Some(report)));
    }

    #[test]
    fn twin_without_the_section_has_no_report() {
        for reported in
            [json!({}), json!({"$version": 3}), json!({"keyRenewal": null}), json!(null), json!([])]
        {
            assert_eq!(Report::read(&reported), Ok(None), "{reported}");
        }
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let mut patch = full().to_patch();
        patch["keyRenewal"]["extra"] = json!({"deep": [1]});
        patch["keyRenewal"]["primary"]["extra"] = json!(1);
        assert_eq!(Report::read(&patch), Ok(Some(full())));
    }

    #[test]
    fn damaged_reports_are_refused_without_being_quoted() {
        for (field, value) in [
            ("contract", json!(2)),
            ("contract", json!("1")),
            ("contract", json!(null)),
            ("agent", json!("hostile\u{1b}[2J")),
            ("agent", json!("hostile".repeat(10))),
            ("sealTo", json!("hostile")),
            ("sequence", json!(-1)),
            ("status", json!("hostile")),
            ("reason", json!("hostile")),
            ("active", json!("hostile")),
            ("rotation", json!("hostile")),
            ("primary", json!({"fingerprint": "hostile"})),
            (
                "secondary",
                json!({"fingerprint": "0101010101010101", "provenAt": "hostile\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}"}),
            ),
            ("secondary", json!({"fingerprint": "0101010101010101", "provenAt": "1969-12-31T23:59:59Z"})),
            ("proof", json!("hostile")),
        ] {
            let mut patch = full().to_patch();
            patch["keyRenewal"][field] = value;
            let error = Report::read(&patch).unwrap_err();
            assert!(!error.contains("hostile"), "{error}");
        }
    }

    #[test]
    fn time_beyond_the_calendar_is_written_as_its_end() {
        for (unix_secs, text) in [(u64::MAX, "9999-12-31T23:59:59Z"), (0, "1970-01-01T00:00:00Z")] {
            let slot = SlotReport { fingerprint: Fingerprint([0; 8]), proven_at: Some(unix_secs) };
            let json = serde_json::to_value(&slot).unwrap();
            assert_eq!(json["provenAt"], text);
            assert!(serde_json::from_value::<SlotReport>(json).is_ok());
        }
    }

    proptest! {
        #[test]
        fn any_time_text_is_read_without_a_panic(text in "\\PC{0,40}|[0-9TZ:.+-]{15,30}") {
            let json = json!({"fingerprint": "0101010101010101", "provenAt": text});
            let _ = serde_json::from_value::<SlotReport>(json);
        }
    }
}
