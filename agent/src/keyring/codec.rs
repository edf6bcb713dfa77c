//! The key ring as a file: one line that names the format and carries a SHA-256, then JSON. The SHA-256 is that of the
//! format's number, a line feed and the JSON, so that a damaged number can't pass for a newer format; later formats
//! have to keep to that.
//!
//! ```text
//! twinkey-key-ring 1 <64 hex digits>
//! {"hostName":"…","deviceId":"…","sealingKey":"…","ring":{…},"keys":["…","…"]}
//! ```
//!
//! The checksum tells a damaged file from a whole one; it is no protection against somebody who can write the file.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use twinkey_contract::sealing::SealingKey;
use twinkey_contract::{Fingerprint, Identity};
use twinkey_rotation::{
    Brought, Candidate, Held, KeyName, KeySlot, PerSlot, Place, Retired, Ring, Rotation, RotationId,
    Standing, UnixSecs, Verdict,
};
use twinkey_sas::Key;
use zeroize::{Zeroize, Zeroizing};

use super::{KeyRing, Keys, Registration};

/// First words of every key-ring file.
const MAGIC: &str = "twinkey-key-ring";
/// The format that this agent writes; a higher number was written by a newer agent.
const FORMAT: u32 = 1;
/// Longest file that is read, in bytes: six keys, two names and a ring take under 4 KiB.
pub(crate) const FILE_LEN_MAX: u64 = 64 * 1024;

/// Why a key-ring file can't be used. Never quotes the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DamagedKeyRing {
    /// Zero bytes, as a power cut leaves behind where a file was never synced.
    #[error("it is empty")]
    Empty,
    /// The disk does not give it.
    #[error("it can't be read: {problem}")]
    Unreadable {
        /// What the operating system says.
        problem: String,
    },
    /// The first line is not ours.
    #[error("it does not begin with `{MAGIC}`")]
    NotAKeyRing,
    /// The format's number is higher than ours.
    #[error(
        "it has format {found}, and this agent knows formats up to {FORMAT}: install the newer agent again"
    )]
    NewerFormat {
        /// The number found.
        found: u32,
    },
    /// The bytes are not those that were written.
    #[error("its checksum does not match: it was cut short or changed")]
    Checksum,
    /// The bytes are those that were written, and still make no key ring.
    #[error("its content makes no sense: {0}")]
    Content(&'static str),
}

/// Counts what is written, and keeps nothing of it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl KeyRing {
    /// The file's bytes with `ring` in place of the current one. Wiped when dropped.
    pub fn encode(&self, ring: &Ring) -> Result<Zeroizing<Vec<u8>>, DamagedKeyRing> {
        let sealing_key = Zeroizing::new(self.sealing_key.expose());
        let mut keys = Vec::new();
        for name in named_keys(ring) {
            let key = self.key(name).ok_or(DamagedKeyRing::Content("a key of the ring is not known"))?;
            keys.push(Zeroizing::new(STANDARD.encode(key.expose())));
        }
        let body = Body {
            host_name: self.registration.host_name.clone(),
            device_id: self.registration.identity.device_id.clone(),
            module_id: self.registration.identity.module_id.clone(),
            gateway_host_name: self.registration.gateway_host_name.clone(),
            sealing_key: Zeroizing::new(STANDARD.encode(sealing_key.as_slice())),
            ring: RingText::from(ring),
            keys,
        };
        // Measured, then reserved in one piece: a growing buffer would leave copies of keys behind, and the largest that a
        // file may be would be wiped, and so be in memory for good, for the sake of a thousand bytes.
        let unwritable = |_| DamagedKeyRing::Content("it can't be written as JSON");
        let mut len = Length(0);
        serde_json::to_writer(&mut len, &body).map_err(unwritable)?;
        let mut json = Zeroizing::new(Vec::with_capacity(len.0));
        serde_json::to_writer(&mut *json, &body).map_err(unwritable)?;
        let mut file = Zeroizing::new(Vec::with_capacity(json.len() + 128));
        file.extend_from_slice(format!("{MAGIC} {FORMAT} {}\n", checksum(FORMAT, &json)).as_bytes());
        file.extend_from_slice(&json);
        Ok(file)
    }

    /// Reads a file's bytes.
    pub fn decode(file: &[u8]) -> Result<Self, DamagedKeyRing> {
        if file.is_empty() {
            return Err(DamagedKeyRing::Empty);
        }
        let header_end =
            file.iter().take(256).position(|byte| *byte == b'\n').ok_or(DamagedKeyRing::NotAKeyRing)?;
        let (header, json) = file.split_at_checked(header_end).ok_or(DamagedKeyRing::NotAKeyRing)?;
        let json = json.get(1..).unwrap_or_default();
        let header = std::str::from_utf8(header).map_err(|_| DamagedKeyRing::NotAKeyRing)?;
        let mut words = header.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(DamagedKeyRing::NotAKeyRing);
        }
        let format: u32 =
            words.next().and_then(|word| word.parse().ok()).ok_or(DamagedKeyRing::NotAKeyRing)?;
        if words.next() != Some(&checksum(format, json)) {
            return Err(DamagedKeyRing::Checksum);
        }
        if format > FORMAT {
            return Err(DamagedKeyRing::NewerFormat { found: format });
        }
        let body: Body = serde_json::from_slice(json)
            .map_err(|_| DamagedKeyRing::Content("the JSON is not a key ring's"))?;
        body.into_key_ring()
    }
}

/// Each key that `ring` names, once.
pub(crate) fn named_keys(ring: &Ring) -> Vec<KeyName> {
    let mut names: Vec<KeyName> = ring.keys_in_order().into_iter().flatten().collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    host_name: String,
    device_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway_host_name: Option<String>,
    sealing_key: Zeroizing<String>,
    ring: RingText,
    keys: Vec<Zeroizing<String>>,
}

impl Body {
    fn into_key_ring(self) -> Result<KeyRing, DamagedKeyRing> {
        let sealing_key = Zeroizing::new(
            STANDARD
                .decode(self.sealing_key.as_bytes())
                .map_err(|_| DamagedKeyRing::Content("the sealing key is not base64"))?,
        );
        let mut sealing_bytes: [u8; 32] = sealing_key
            .as_slice()
            .try_into()
            .map_err(|_| DamagedKeyRing::Content("the sealing key is not 32 bytes long"))?;
        let sealing_key = SealingKey::from_bytes(&sealing_bytes);
        sealing_bytes.zeroize();
        let sealing_key =
            sealing_key.map_err(|_| DamagedKeyRing::Content("the sealing key is not an X25519 key"))?;
        let mut keys = Keys::default();
        for text in &self.keys {
            let key = Key::from_base64(text)
                .map_err(|_| DamagedKeyRing::Content("a key is not base64 of 16 to 64 bytes"))?;
            keys.learn(key).map_err(|_| DamagedKeyRing::Content("two of its keys have one name"))?;
        }
        let ring = Ring::try_from(&self.ring)?;
        if !named_keys(&ring).iter().all(|name| keys.get(*name).is_some()) {
            return Err(DamagedKeyRing::Content("a key that the ring names is missing"));
        }
        if ring.active_key().is_none() {
            return Err(DamagedKeyRing::Content("the active slot holds no key"));
        }
        let identity = Identity { device_id: self.device_id, module_id: self.module_id };
        let registration =
            Registration { host_name: self.host_name, identity, gateway_host_name: self.gateway_host_name };
        Ok(KeyRing { registration, sealing_key, ring, keys })
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SlotText {
    Primary,
    Secondary,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RingText {
    sequence: u64,
    active: SlotText,
    primary: PlaceText,
    secondary: PlaceText,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<PlacedText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    brought: Option<PlacedText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<RotationText>,
    /// Offers that count against the budget of the next hours.
    #[serde(default, skip_serializing_if = "is_zero")]
    offers_spent: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u8) -> bool {
    *count == 0
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlaceText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<HeldText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    candidate: Option<CandidateText>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeldText {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proven_at: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct CandidateText {
    key: String,
    standing: StandingText,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StandingText {
    Trying,
    Spare,
}

#[derive(Serialize, Deserialize)]
struct PlacedText {
    slot: SlotText,
    key: String,
}

#[derive(Serialize, Deserialize)]
struct RotationText {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    primary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secondary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verdict: Option<VerdictText>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VerdictText {
    Committed,
    Rejected,
}

impl From<&Ring> for RingText {
    fn from(ring: &Ring) -> Self {
        Self {
            sequence: ring.sequence,
            active: ring.active.into(),
            primary: (&ring.slots.primary).into(),
            secondary: (&ring.slots.secondary).into(),
            retired: ring
                .retired
                .map(|retired| PlacedText { slot: retired.slot.into(), key: retired.key.to_string() }),
            brought: ring
                .brought
                .map(|brought| PlacedText { slot: brought.slot.into(), key: brought.key.to_string() }),
            rotation: ring.rotation.map(|rotation| RotationText {
                id: format!("{:032x}", rotation.id.0),
                primary: rotation.offered.primary.map(|key| key.to_string()),
                secondary: rotation.offered.secondary.map(|key| key.to_string()),
                verdict: rotation.verdict.map(|verdict| match verdict {
                    Verdict::Committed => VerdictText::Committed,
                    Verdict::Rejected => VerdictText::Rejected,
                }),
            }),
            offers_spent: ring.offers_spent,
        }
    }
}

impl TryFrom<&RingText> for Ring {
    type Error = DamagedKeyRing;

    fn try_from(text: &RingText) -> Result<Self, DamagedKeyRing> {
        let retired = match &text.retired {
            Some(retired) => Some(Retired { slot: retired.slot.into(), key: key_name(&retired.key)? }),
            None => None,
        };
        let brought = match &text.brought {
            Some(brought) => Some(Brought { slot: brought.slot.into(), key: key_name(&brought.key)? }),
            None => None,
        };
        let rotation = match &text.rotation {
            Some(rotation) => Some(Rotation {
                id: RotationId(
                    u128::from_str_radix(&rotation.id, 16)
                        .map_err(|_| DamagedKeyRing::Content("a rotation id is not hexadecimal"))?,
                ),
                offered: PerSlot {
                    primary: rotation.primary.as_deref().map(key_name).transpose()?,
                    secondary: rotation.secondary.as_deref().map(key_name).transpose()?,
                },
                verdict: rotation.verdict.as_ref().map(|verdict| match verdict {
                    VerdictText::Committed => Verdict::Committed,
                    VerdictText::Rejected => Verdict::Rejected,
                }),
            }),
            None => None,
        };
        Ok(Self {
            sequence: text.sequence,
            active: text.active.into(),
            slots: PerSlot { primary: (&text.primary).try_into()?, secondary: (&text.secondary).try_into()? },
            retired,
            brought,
            rotation,
            offers_spent: text.offers_spent,
        })
    }
}

impl From<&Place> for PlaceText {
    fn from(place: &Place) -> Self {
        Self {
            held: place
                .held
                .map(|held| HeldText { key: held.key.to_string(), proven_at: held.proven_at.map(|at| at.0) }),
            candidate: place.candidate.map(|candidate| CandidateText {
                key: candidate.key.to_string(),
                standing: match candidate.standing {
                    Standing::Trying => StandingText::Trying,
                    Standing::Spare => StandingText::Spare,
                },
            }),
        }
    }
}

impl TryFrom<&PlaceText> for Place {
    type Error = DamagedKeyRing;

    fn try_from(text: &PlaceText) -> Result<Self, DamagedKeyRing> {
        let held = match &text.held {
            Some(held) => Some(Held { key: key_name(&held.key)?, proven_at: held.proven_at.map(UnixSecs) }),
            None => None,
        };
        let candidate = match &text.candidate {
            Some(candidate) => Some(Candidate {
                key: key_name(&candidate.key)?,
                standing: match candidate.standing {
                    StandingText::Trying => Standing::Trying,
                    StandingText::Spare => Standing::Spare,
                },
            }),
            None => None,
        };
        Ok(Self { held, candidate })
    }
}

impl From<KeySlot> for SlotText {
    fn from(slot: KeySlot) -> Self {
        match slot {
            KeySlot::Primary => Self::Primary,
            KeySlot::Secondary => Self::Secondary,
        }
    }
}

impl From<SlotText> for KeySlot {
    fn from(slot: SlotText) -> Self {
        match slot {
            SlotText::Primary => Self::Primary,
            SlotText::Secondary => Self::Secondary,
        }
    }
}

fn key_name(text: &str) -> Result<KeyName, DamagedKeyRing> {
    let fingerprint: Fingerprint =
        text.parse().map_err(|_| DamagedKeyRing::Content("a key's name is not 32 hexadecimal digits"))?;
    Ok(KeyName(fingerprint.0))
}

fn checksum(format: u32, json: &[u8]) -> String {
    hex(&Sha256::new().chain_update(format!("{format}\n")).chain_update(json).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
