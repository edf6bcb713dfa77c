//! The operator's side of the twin: the `keyRenewal` section of the desired properties.

use std::fmt;

use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use thiserror::Error;
use twinkey_sas::{
    Key, KeyError,
    identifiable::{self, Mark, Purpose},
};
use zeroize::Zeroizing;

use crate::{
    Identity, KeySlot, Mac, RotationId, SECTION, encoding,
    report::Reason,
    sealing::{SEALED_LEN_MAX, SEALED_LEN_MIN},
    twin::{SectionError, Twin, TwinError},
    wiped::Wiped,
};

/// New keys for one or both slots, and who vouches for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which change of keys this is.
    pub rotation: RotationId,
    /// The key now in the primary slot.
    pub primary: Option<OfferedKey>,
    /// The key now in the secondary slot.
    pub secondary: Option<OfferedKey>,
    /// Made by [`Offer::authenticate`]; `None` in what a person sends by hand.
    pub auth: Option<Mac>,
}

/// A key as it stands in the twin.
#[derive(Clone, PartialEq, Eq)]
pub enum OfferedKey {
    /// Readable by everyone who may read the twin.
    Plain(Key),
    /// Readable by the device alone: see [`sealing`](crate::sealing).
    Sealed(Vec<u8>),
}

impl Offer {
    /// Reads the body of the device's twin GET answer, `{"desired":{…},"reported":{…}}`. `Ok(None)`: no offer stands there.
    ///
    /// Keys are checked for their mark ([`check_mark`]) where they are plain; after unsealing, that is up to the caller.
    ///
    /// # Errors
    /// [`OfferError`], with the rotation if it could be read.
    pub fn read(twin: &[u8]) -> Result<Option<Self>, OfferError> {
        Self::read_section(parse_desired(twin)?)
    }

    /// Reads the same from a `desired` object, as the service's REST API gives it under `properties`.
    ///
    /// # Errors
    /// As [`Offer::read`].
    pub fn read_desired(desired: &Value) -> Result<Option<Self>, OfferError> {
        let desired = desired.as_object().ok_or(OfferErrorKind::Desired)?;
        Self::read_section(desired.get(SECTION).cloned())
    }

    /// The patch of desired properties that makes this offer. What is not offered is written as null, so that nothing
    /// stale survives the hub's merge.
    ///
    /// It holds keys where they are plain: send it, and don't log it.
    pub fn to_patch(&self) -> Value {
        let slot = |offered: &Option<OfferedKey>| match offered {
            None => Value::Null,
            Some(OfferedKey::Plain(key)) => {
                let mut base64 = Zeroizing::new([0; 88]);
                json!({"key": key.expose_base64(&mut base64), "sealed": null})
            }
            Some(OfferedKey::Sealed(sealed)) => json!({"key": null, "sealed": encoding::to_base64(sealed)}),
        };
        // Moved into place: `json!` would copy what it is given, and leave a copy of a key behind.
        let mut section = Map::new();
        section.insert(String::from("rotation"), self.rotation.to_string().into());
        section.insert(String::from("primary"), slot(&self.primary));
        section.insert(String::from("secondary"), slot(&self.secondary));
        section.insert(String::from("auth"), json!(self.auth));
        Value::Object(Map::from_iter([(SECTION.to_owned(), Value::Object(section))]))
    }

    /// Puts the authentication into the offer: HMAC-SHA256 over all of it, with `key`, which the registry has and the hub has
    /// accepted from the device. So the right to write twins alone makes no agent try anything.
    ///
    /// The text is `"twinkey/offer/v1\n" identity "\nkeyRenewal\n" rotation "\n" primary "\n" secondary`, where a slot is
    /// `-`, `sealed BASE64` or `key BASE64`.
    pub fn authenticate(&mut self, key: &Key, identity: &Identity) {
        self.auth = Some(self.mac(key, identity));
    }

    /// Whether the offer's authentication was made with `key` for `identity`. Constant time.
    pub fn is_authentic(&self, key: &Key, identity: &Identity) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.is(&self.mac(key, identity)))
    }

    fn mac(&self, key: &Key, identity: &Identity) -> Mac {
        let slot = |offered: &Option<OfferedKey>| {
            // It may hold a key.
            Zeroizing::new(match offered {
                None => String::from("-"),
                Some(OfferedKey::Plain(key)) => {
                    let mut base64 = Zeroizing::new([0; 88]);
                    format!("key {}", key.expose_base64(&mut base64))
                }
                Some(OfferedKey::Sealed(sealed)) => format!("sealed {}", encoding::to_base64(sealed)),
            })
        };
        let (identity, rotation) = (identity.to_string(), self.rotation.to_string());
        let (primary, secondary) = (slot(&self.primary), slot(&self.secondary));
        Mac::of(key, &["twinkey/offer/v1", &identity, SECTION, &rotation, &primary, &secondary])
    }

    /// The patch that takes any offer away.
    pub fn erase_patch() -> Value {
        json!({SECTION: null})
    }

    /// What is offered for a slot.
    pub fn slot(&self, slot: KeySlot) -> Option<&OfferedKey> {
        match slot {
            KeySlot::Primary => self.primary.as_ref(),
            KeySlot::Secondary => self.secondary.as_ref(),
        }
    }

    fn read_section(section: Option<Value>) -> Result<Option<Self>, OfferError> {
        let section = Wiped::from(section.unwrap_or_default());
        let section = match &*section {
            Value::Null => return Ok(None),
            Value::Object(section) => section,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(OfferErrorKind::Section.into());
            }
        };
        let rotation = section.get("rotation").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let fail = |kind| OfferError { rotation, kind };
        let primary = read_slot(section, KeySlot::Primary).map_err(fail)?;
        let secondary = read_slot(section, KeySlot::Secondary).map_err(fail)?;
        let rotation = rotation.ok_or_else(|| fail(OfferErrorKind::Rotation))?;
        if primary.is_none() && secondary.is_none() {
            return Err(fail(OfferErrorKind::NoSlot));
        }
        let auth = match section.get("auth") {
            None | Some(Value::Null) => None,
            Some(auth) => Some(Mac::deserialize(auth).map_err(|_| fail(OfferErrorKind::Auth))?),
        };
        Ok(Some(Self { rotation, primary, secondary, auth }))
    }
}

impl fmt::Debug for OfferedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("Plain([elided])"),
            Self::Sealed(sealed) => write!(f, "Sealed({} bytes)", sealed.len()),
        }
    }
}

/// Checks the mark that Azure's own keys carry. A customer's key has none and passes.
///
/// # Errors
/// [`OfferErrorKind::Checksum`] for a damaged key, [`OfferErrorKind::HubPolicyKey`] for a hub's master key, which must
/// never reach a device.
pub fn check_mark(slot: KeySlot, key: &Key) -> Result<(), OfferErrorKind> {
    match identifiable::inspect(key) {
        // A device that was enrolled on its own carries its enrolment's key.
        Mark::Absent | Mark::Valid(Purpose::Device | Purpose::Provisioning) => Ok(()),
        Mark::Valid(Purpose::HubPolicy) => Err(OfferErrorKind::HubPolicyKey { slot }),
        Mark::Corrupt => Err(OfferErrorKind::Checksum { slot }),
    }
}

/// Why the `keyRenewal` section is no offer. Never contains key material.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind}")]
pub struct OfferError {
    /// The rotation, if it could be read, so that the agent can report `invalid` for it.
    pub rotation: Option<RotationId>,
    /// What is wrong.
    pub kind: OfferErrorKind,
}

impl OfferError {
    /// The stable reason that goes into the report.
    pub fn code(&self) -> Reason {
        self.kind.code()
    }
}

impl From<OfferErrorKind> for OfferError {
    fn from(kind: OfferErrorKind) -> Self {
        Self { rotation: None, kind }
    }
}

/// What is wrong with an offer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OfferErrorKind {
    /// The document is no twin, or is too large.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The section is too long, or stands there twice.
    #[error("{0}: write it anew, or null to take the offer away")]
    SectionUnreadable(#[from] SectionError),
    /// `desired` is no object.
    #[error("the twin has no `desired` object")]
    Desired,
    /// `keyRenewal` is neither null nor an object.
    #[error("`keyRenewal` is not an object: write one, or null to take the offer away")]
    Section,
    /// `rotation` is missing or is no UUID.
    #[error("`keyRenewal.rotation` is missing or no UUID: give each change of keys a new one")]
    Rotation,
    /// A rotation without keys.
    #[error(
        "`keyRenewal` offers a key for neither slot: add `primary` or `secondary`, or write null for the whole section"
    )]
    NoSlot,
    /// `auth` is no base64 of 32 bytes.
    #[error("`keyRenewal.auth` is not the base64 of 32 bytes: write the offer's authentication, or null")]
    Auth,
    /// The slot is neither null nor an object with exactly one of `key` and `sealed`.
    #[error("`keyRenewal.{slot}` must have exactly one of `key` and `sealed`: write null for the other")]
    Slot {
        /// Which.
        slot: KeySlot,
    },
    /// `key` is no text.
    #[error("`keyRenewal.{slot}.key` is not a string: write the key in base64")]
    KeyNotText {
        /// Which.
        slot: KeySlot,
    },
    /// `key` is no key.
    #[error("`keyRenewal.{slot}`: {error}")]
    Key {
        /// Which.
        slot: KeySlot,
        /// Why.
        error: KeyError,
    },
    /// `sealed` is no base64 of a fitting length.
    #[error(
        "`keyRenewal.{slot}.sealed` is not the base64 of a sealed key: seal the key to the `sealTo` of the device's report"
    )]
    Sealed {
        /// Which.
        slot: KeySlot,
    },
    /// The key carries Azure's mark and the checksum is wrong.
    #[error("the key for the {slot} slot is damaged, its checksum is wrong: copy it again from the registry")]
    Checksum {
        /// Which.
        slot: KeySlot,
    },
    /// The key carries the mark of a hub's shared access policy.
    #[error(
        "the key for the {slot} slot is a hub policy's, not a device's: take it out of the twin, and renew that policy's key"
    )]
    HubPolicyKey {
        /// Which.
        slot: KeySlot,
    },
}

impl OfferErrorKind {
    /// The stable reason that goes into the report.
    pub fn code(&self) -> Reason {
        match self {
            Self::Twin(TwinError::TooLarge { .. }) => Reason::TwinTooLarge,
            Self::Twin(TwinError::Malformed { .. })
            | Self::SectionUnreadable(_)
            | Self::Desired
            | Self::Section
            | Self::Rotation
            | Self::NoSlot
            | Self::Auth
            | Self::Slot { .. }
            | Self::KeyNotText { .. }
            | Self::Key { .. }
            | Self::Sealed { .. } => Reason::Malformed,
            Self::Checksum { .. } | Self::HubPolicyKey { .. } => Reason::Checksum,
        }
    }
}

/// The section in the desired properties of a twin.
fn parse_desired(twin: &[u8]) -> Result<Option<Value>, OfferErrorKind> {
    Ok(Twin::find(twin)?.desired()?)
}

fn read_slot(section: &Map<String, Value>, slot: KeySlot) -> Result<Option<OfferedKey>, OfferErrorKind> {
    let object = match section.get(slot.as_str()) {
        None | Some(Value::Null) => return Ok(None),
        Some(object) => object.as_object().ok_or(OfferErrorKind::Slot { slot })?,
    };
    let field = |name| object.get(name).filter(|value| !value.is_null());
    match (field("key"), field("sealed")) {
        (Some(key), None) => {
            let text = key.as_str().ok_or(OfferErrorKind::KeyNotText { slot })?;
            let key = Key::from_base64(text).map_err(|error| OfferErrorKind::Key { slot, error })?;
            check_mark(slot, &key)?;
            Ok(Some(OfferedKey::Plain(key)))
        }
        (None, Some(sealed)) => sealed
            .as_str()
            .and_then(encoding::from_base64)
            .filter(|sealed| (SEALED_LEN_MIN..=SEALED_LEN_MAX).contains(&sealed.len()))
            .map(|sealed| Some(OfferedKey::Sealed(sealed)))
            .ok_or(OfferErrorKind::Sealed { slot }),
        (None, None) | (Some(_), Some(_)) => Err(OfferErrorKind::Slot { slot }),
    }
}
