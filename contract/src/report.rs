//! The agent's side of the twin: the `keyRenewal` section of the reported properties.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    CONTRACT_VERSION, Fingerprint, Identity, KeySlot, Mac, RandomError, RotationId, SECTION, encoding,
    sealing::SealingPublicKey,
};
use twinkey_sas::Key;

/// Longest name of an agent, in bytes. It is shown to people, so it is kept short and printable.
pub const AGENT_LEN_MAX: usize = 64;

/// Largest sequence: the hub's largest integer (Microsoft, "Understand and use device twins in IoT Hub").
pub const SEQUENCE_MAX: u64 = (1 << 52) - 1;

/// Shortest nonce of a challenge, in characters: 16 hex digits are 64 bits.
const NONCE_LEN_MIN: usize = 16;
/// Longest nonce of a challenge, in characters.
const NONCE_LEN_MAX: usize = 64;

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
    /// The twin is too large to be read.
    TwinTooLarge,
    /// The key is damaged, or is no device's.
    Checksum,
    /// The key is not sealed, and the agent's configuration demands that.
    UnsealedForbidden,
    /// The key can't be unsealed.
    CannotUnseal,
    /// The offer's authentication is missing, and the agent's configuration demands it; or it was made with no key that the hub
    /// has accepted from the device.
    Unauthenticated,
    /// More offers came than the agent takes up in this time.
    TooManyOffers,
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
            Self::TwinTooLarge => "twin-too-large",
            Self::Checksum => "checksum",
            Self::UnsealedForbidden => "unsealed-forbidden",
            Self::CannotUnseal => "cannot-unseal",
            Self::Unauthenticated => "unauthenticated",
            Self::TooManyOffers => "too-many-offers",
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
    /// Made with the key of the active slot over everything else ([`Report::prove`]).
    pub proof: Option<Mac>,
}

/// What a report's proof is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The report has no proof.
    #[error("the report has no proof")]
    Missing,
    /// The proof was made with another key, for another device, or over another report.
    #[error("the report's proof does not fit the report and the key")]
    Wrong,
}

/// A question whose answer can't be older than itself: 16 to 64 letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// From text; `None` if it is no nonce.
    pub fn parse(text: &str) -> Option<Self> {
        let is_nonce = (NONCE_LEN_MIN..=NONCE_LEN_MAX).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
        is_nonce.then(|| Self(text.to_owned()))
    }

    /// A new one, of 128 random bits.
    ///
    /// # Errors
    /// [`RandomError`].
    pub fn generate() -> Result<Self, RandomError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| RandomError)?;
        Ok(Self(format!("{:032x}", u128::from_be_bytes(random))))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Report {
    /// The patch of reported properties, `{"keyRenewal": {…}}`. What is absent is written as null, so that the hub's merge
    /// clears it.
    pub fn to_patch(&self) -> Value {
        // Serializing can't fail: all keys are strings, and no field's serializer gives errors.
        json!({ SECTION: self })
    }

    /// Puts the proof into the report: HMAC-SHA256 with `key`, that of the active slot, over every other field and the identity.
    ///
    /// The text has one line for each of: `twinkey/proof/v1`, identity, `keyRenewal`, `contract`, `agent`, `sealTo`, `sequence`,
    /// `active`, `rotation`, `status`, `reason`, `clockOffsetSecs`, `behind`, `primary.fingerprint`, `primary.provenAt`,
    /// `secondary.fingerprint`, `secondary.provenAt`. Values are written as in JSON without quotes, and `-` is written for null.
    pub fn prove(&mut self, key: &Key, identity: &Identity) {
        self.proof = Some(self.mac(key, identity, None));
    }

    /// Whether the proof was made with `key` by `identity` over exactly this report. Constant time.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(&self, key: &Key, identity: &Identity) -> Result<(), ProofError> {
        let proof = self.proof.as_ref().ok_or(ProofError::Missing)?;
        if proof.is(&self.mac(key, identity, None)) { Ok(()) } else { Err(ProofError::Wrong) }
    }

    /// The answer to a challenge: as the proof, with `twinkey/fresh-proof/v1` for the first line and the nonce for the second.
    pub fn answer(&self, nonce: &Nonce, key: &Key, identity: &Identity) -> Mac {
        self.mac(key, identity, Some(nonce))
    }

    /// Whether `answer` was made with `key` by `identity` over exactly this report and `nonce`. Constant time.
    pub fn is_answer(&self, answer: &Mac, nonce: &Nonce, key: &Key, identity: &Identity) -> bool {
        answer.is(&self.mac(key, identity, Some(nonce)))
    }

    fn mac(&self, key: &Key, identity: &Identity, nonce: Option<&Nonce>) -> Mac {
        fn text(value: Option<impl fmt::Display>) -> String {
            value.map_or_else(|| String::from("-"), |value| value.to_string())
        }
        let proven_at = |slot: &Option<SlotReport>| {
            text(slot.as_ref().and_then(|slot| slot.proven_at).map(encoding::rfc3339_text))
        };
        let fingerprint = |slot: &Option<SlotReport>| text(slot.as_ref().map(|slot| slot.fingerprint));
        let fields = [
            identity.to_string(),
            SECTION.to_owned(),
            self.contract.to_string(),
            self.agent.clone(),
            text(self.seal_to),
            self.sequence.to_string(),
            text(self.active),
            text(self.rotation),
            self.status.to_string(),
            text(self.reason),
            text(self.clock_offset_secs),
            text(self.behind),
            fingerprint(&self.primary),
            proven_at(&self.primary),
            fingerprint(&self.secondary),
            proven_at(&self.secondary),
        ];
        let mut lines = match nonce {
            None => vec!["twinkey/proof/v1"],
            Some(nonce) => vec!["twinkey/fresh-proof/v1", nonce.as_str()],
        };
        lines.extend(fields.iter().map(String::as_str));
        Mac::of(key, &lines)
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
        if report.sequence > SEQUENCE_MAX || report.behind.is_some_and(|behind| behind > SEQUENCE_MAX) {
            return Err(String::from(
                "reported `keyRenewal.sequence` or `behind` is larger than a hub's integers",
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
    use super::{Nonce, ProofError, Reason, Report, SEQUENCE_MAX, SlotReport, Status};
    use crate::{Fingerprint, Identity, KeySlot, RotationId, sealing::SealingPublicKey};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use twinkey_sas::Key;

    const STATUSES: [Status; 6] =
        [Status::Idle, Status::Trying, Status::Committed, Status::Rejected, Status::Invalid, Status::Waiting];
    const REASONS: [Reason; 14] = [
        Reason::Refused,
        Reason::Clock,
        Reason::Network,
        Reason::Throttled,
        Reason::Storage,
        Reason::Malformed,
        Reason::TwinTooLarge,
        Reason::Checksum,
        Reason::UnsealedForbidden,
        Reason::CannotUnseal,
        Reason::Unauthenticated,
        Reason::TooManyOffers,
        Reason::Duel,
        Reason::Restored,
    ];

    fn key(seed: u8) -> Key {
        Key::from_bytes(&[seed; 32]).unwrap()
    }

    fn identity() -> Identity {
        Identity::new("d", None).unwrap()
    }

    fn full() -> Report {
        let rotation: RotationId = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f".parse().unwrap();
        let mut report = Report {
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
            primary: Some(SlotReport { fingerprint: Fingerprint([1; 16]), proven_at: None }),
            secondary: Some(SlotReport {
                fingerprint: Fingerprint::of(&key(1)),
                proven_at: Some(1_795_169_052),
            }),
            proof: None,
        };
        report.prove(&key(1), &identity());
        report
    }

    /// One report for each field that can differ from `report`, with what differs.
    fn variants(report: &Report) -> Vec<(&'static str, Report)> {
        let other_rotation = "0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e60".parse().unwrap();
        let slot = |seed, proven_at| Some(SlotReport { fingerprint: Fingerprint([seed; 16]), proven_at });
        let report = || report.clone();
        vec![
            ("contract", Report { contract: 2, ..report() }),
            ("agent", Report { agent: String::from("0.1.1"), ..report() }),
            ("agent", Report { agent: String::new(), ..report() }),
            ("sealTo", Report { seal_to: Some(SealingPublicKey([8; 32])), ..report() }),
            ("sealTo", Report { seal_to: None, ..report() }),
            ("sequence", Report { sequence: 43, ..report() }),
            ("active", Report { active: Some(KeySlot::Primary), ..report() }),
            ("active", Report { active: None, ..report() }),
            ("rotation", Report { rotation: Some(other_rotation), ..report() }),
            ("rotation", Report { rotation: None, ..report() }),
            ("status", Report { status: Status::Rejected, ..report() }),
            ("reason", Report { reason: Some(Reason::Duel), ..report() }),
            ("clockOffsetSecs", Report { clock_offset_secs: Some(86_400), ..report() }),
            ("clockOffsetSecs", Report { clock_offset_secs: None, ..report() }),
            ("behind", Report { behind: Some(40), ..report() }),
            ("behind", Report { behind: None, ..report() }),
            ("primary", Report { primary: None, ..report() }),
            ("primary", Report { primary: slot(2, None), ..report() }),
            ("primary", Report { primary: slot(1, Some(0)), ..report() }),
            ("secondary", Report { secondary: None, ..report() }),
            ("secondary", Report { secondary: slot(1, Some(1_795_169_052)), ..report() }),
            (
                "secondary",
                Report {
                    secondary: report().secondary.map(|slot| SlotReport { proven_at: Some(1), ..slot }),
                    ..report()
                },
            ),
            (
                "slots in each other's places",
                Report { primary: report().secondary, secondary: report().primary, ..report() },
            ),
        ]
    }

    #[test]
    fn proof_fits_one_report_of_one_device_with_one_key() {
        let report = full();
        assert_eq!(report.verify(&key(1), &identity()), Ok(()));
        assert_eq!(report.verify(&key(2), &identity()), Err(ProofError::Wrong));
        for (device, module) in [("e", None), ("d", Some("m"))] {
            let other = Identity::new(device, module).unwrap();
            assert_eq!(report.verify(&key(1), &other), Err(ProofError::Wrong));
        }
        for (field, variant) in variants(&report) {
            assert_eq!(variant.verify(&key(1), &identity()), Err(ProofError::Wrong), "{field}: {variant:?}");
        }
        let bare = Report { proof: None, ..report };
        assert_eq!(bare.verify(&key(1), &identity()), Err(ProofError::Missing));
    }

    #[test]
    fn answer_to_a_challenge_fits_that_challenge_and_is_no_proof() {
        let report = full();
        let [asked, other] = [(); 2].map(|()| Nonce::generate().unwrap());
        let answer = report.answer(&asked, &key(1), &identity());
        assert!(report.is_answer(&answer, &asked, &key(1), &identity()));
        assert!(!report.is_answer(&answer, &other, &key(1), &identity()));
        assert!(!report.is_answer(&answer, &asked, &key(2), &identity()));
        let proof = report.proof.clone().unwrap();
        assert!(!report.is_answer(&proof, &asked, &key(1), &identity()));
        let claimed = Report { proof: Some(answer.clone()), ..report.clone() };
        assert_eq!(claimed.verify(&key(1), &identity()), Err(ProofError::Wrong));
        for (field, variant) in variants(&report) {
            assert!(!variant.is_answer(&answer, &asked, &key(1), &identity()), "{field}");
        }
    }

    #[test]
    fn nonces_are_short_and_have_no_line_feed() {
        assert!(Nonce::parse("0123456789abcdef").is_some() && Nonce::parse(&"a".repeat(64)).is_some());
        for bad in ["", "0123456789abcde", &"a".repeat(65), "0123456789abcde\n", "0123456789abcd\u{e4}"] {
            assert_eq!(Nonce::parse(bad), None, "{bad:?}");
        }
        let nonce = Nonce::generate().unwrap();
        assert_eq!(Nonce::parse(nonce.as_str()), Some(nonce));
    }

    #[test]
    fn sequences_beyond_a_hubs_integers_are_refused() {
        for field in ["sequence", "behind"] {
            let mut patch = full().to_patch();
            patch["keyRenewal"][field] = json!(SEQUENCE_MAX);
            assert!(Report::read(&patch).is_ok());
            patch["keyRenewal"][field] = json!(SEQUENCE_MAX + 1);
            assert!(Report::read(&patch).is_err());
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
        assert_eq!(
            section["primary"],
            json!({"fingerprint": "01010101010101010101010101010101", "provenAt": null})
        );
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
                json!({"fingerprint": "01010101010101010101010101010101", "provenAt": "hostile\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}"}),
            ),
            (
                "secondary",
                json!({"fingerprint": "01010101010101010101010101010101", "provenAt": "1969-12-31T23:59:59Z"}),
            ),
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
            let slot = SlotReport { fingerprint: Fingerprint([0; 16]), proven_at: Some(unix_secs) };
            let json = serde_json::to_value(&slot).unwrap();
            assert_eq!(json["provenAt"], text);
            assert!(serde_json::from_value::<SlotReport>(json).is_ok());
        }
    }

    proptest! {
        #[test]
        fn any_time_text_is_read_without_a_panic(text in "\\PC{0,40}|[0-9TZ:.+-]{15,30}") {
            let json = json!({"fingerprint": "01010101010101010101010101010101", "provenAt": text});
            let _ = serde_json::from_value::<SlotReport>(json);
        }
    }
}
