//! What a twin, and the registry where it was read, say of one identity.

use serde_json::Value;
use twinkey_contract::report::{Report, Status};
use twinkey_contract::tags::Seen;
use twinkey_contract::{CONTRACT_VERSION, Fingerprint, Identity, KeySlot, RotationId};

use crate::hub::{Device, KeyPair, Twin};

/// A gateway's clock may be this far ahead of ours before its times are not believed, in seconds: what a hub tolerates.
const CLOCK_TOLERANCE_SECS: u64 = 300;
/// The section of both halves of the twin that is ours.
const SECTION: &str = "keyRenewal";

/// One identity.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) identity: Identity,
    /// `enabled` or `disabled`; modules have none of their own.
    pub(crate) status: Option<String>,
    pub(crate) is_connected: bool,
    /// As the hub writes it: `sas`, `selfSigned`, `certificateAuthority`.
    pub(crate) authentication: Option<String>,
    /// Unix seconds.
    pub(crate) last_contact: Option<u64>,
    pub(crate) reported: Reported,
    pub(crate) offer: Option<StandingOffer>,
    /// What operators have believed of it.
    pub(crate) seen: Seen,
    pub(crate) registry: Registry,
}

/// What the agent has reported.
#[derive(Debug)]
pub(crate) enum Reported {
    /// Nothing: there is no agent, or it has never been connected.
    Nothing,
    Report(Box<Report>),
    /// Another version of the contract.
    OtherContract(u64),
    /// Something else.
    Unreadable,
    /// Nobody knows: the twin is longer than what is read.
    TooLong,
}

/// An offer in the desired properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StandingOffer {
    pub(crate) rotation: Option<RotationId>,
    /// When it was made, in Unix seconds: the time in the rotation's name, else when the hub says that it was written.
    pub(crate) made_at: Option<u64>,
    pub(crate) is_readable: bool,
    /// Whether a key stands there for everybody to read.
    pub(crate) has_plain_key: bool,
    pub(crate) slots: Vec<KeySlot>,
}

/// The registry's keys.
#[derive(Debug, Default)]
pub(crate) enum Registry {
    #[default]
    NotRead,
    /// The identity has no pair of keys that can be read, or is gone.
    NoKeys,
    Keys(KeyPair),
}

impl Observed {
    /// Reads a row of a query over twins; `None` if it is none.
    pub(crate) fn of_row(row: Value) -> Option<Self> {
        let authentication = row.get("authenticationType").and_then(Value::as_str).map(str::to_owned);
        let twin: Twin = serde_json::from_value(row).ok()?;
        Some(Self::of_twin(&twin, authentication))
    }

    /// Reads what the registry says of an identity whose twin is longer than what is read.
    pub(crate) fn of_row_too_long(row: Value) -> Option<Self> {
        Some(Self { reported: Reported::TooLong, ..Self::of_row(row)? })
    }

    /// The same of a twin.
    pub(crate) fn of_twin(twin: &Twin, authentication: Option<String>) -> Self {
        Self {
            identity: twin.identity(),
            status: twin.status.clone(),
            is_connected: twin.is_connected(),
            authentication,
            last_contact: twin.last_activity_time.as_deref().and_then(unix_secs),
            reported: Reported::read(twin),
            offer: StandingOffer::read(twin),
            seen: twin.seen(),
            registry: Registry::NotRead,
        }
    }

    pub(crate) fn report(&self) -> Option<&Report> {
        match &self.reported {
            Reported::Report(report) => Some(report),
            Reported::Nothing | Reported::OtherContract(_) | Reported::Unreadable | Reported::TooLong => None,
        }
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.status.as_deref().is_some_and(|status| status.eq_ignore_ascii_case("disabled"))
    }

    /// Whether it authenticates by keys at all, and not by certificate.
    pub(crate) fn uses_keys(&self) -> bool {
        self.authentication.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case("sas"))
    }

    /// Whether some agent is known to have been there, of whatever kind.
    pub(crate) fn has_agent(&self) -> bool {
        match self.reported {
            Reported::Nothing | Reported::TooLong => false,
            Reported::Report(_) | Reported::OtherContract(_) | Reported::Unreadable => true,
        }
    }

    /// The fingerprint of the key in use, by the report.
    pub(crate) fn active_fingerprint(&self) -> Option<Fingerprint> {
        let report = self.report()?;
        Some(report.slot(report.active?)?.fingerprint)
    }

    /// How long the hub has been accepting the key of this slot, in seconds; `None` if it never has, or if that was on a
    /// clock that was wrong.
    pub(crate) fn key_age(&self, slot: KeySlot, now: u64) -> Option<u64> {
        let proven_at = self.report()?.slot(slot)?.proven_at?;
        (proven_at <= now + CLOCK_TOLERANCE_SECS).then(|| now.saturating_sub(proven_at))
    }

    /// The same for the key in use.
    pub(crate) fn active_key_age(&self, now: u64) -> Option<u64> {
        self.key_age(self.report()?.active?, now)
    }

    /// How long ago it was last heard of, in seconds: not at all while it is connected.
    pub(crate) fn contact_age(&self, now: u64) -> Option<u64> {
        if self.is_connected {
            return Some(0);
        }
        self.last_contact.map(|at| now.saturating_sub(at))
    }

    /// How long the standing offer has been waiting, in seconds.
    pub(crate) fn offer_age(&self, now: u64) -> Option<u64> {
        Some(now.saturating_sub(self.offer.as_ref()?.made_at?))
    }

    /// Whether a key was offered that the agent has not taken into use.
    pub(crate) fn is_lagging(&self) -> bool {
        self.offer.as_ref().is_some_and(|offer| {
            let is_done = |report: &Report| {
                report.status == Status::Committed
                    && report.rotation.is_some()
                    && report.rotation == offer.rotation
            };
            !self.report().is_some_and(is_done)
        })
    }
}

impl Reported {
    fn read(twin: &Twin) -> Self {
        match twin.report() {
            Ok(None) => Self::Nothing,
            Ok(Some(report)) => Self::Report(Box::new(report)),
            Err(_) => {
                let section = twin.properties.reported.get(SECTION);
                match section.and_then(|section| section.get("contract")).and_then(Value::as_u64) {
                    Some(version) if version != u64::from(CONTRACT_VERSION) => Self::OtherContract(version),
                    Some(_) | None => Self::Unreadable,
                }
            }
        }
    }
}

impl StandingOffer {
    fn read(twin: &Twin) -> Option<Self> {
        let desired = &twin.properties.desired;
        let section = desired.get(SECTION).filter(|section| !section.is_null())?;
        let offer = twin.offer();
        let rotation = match &offer {
            Ok(offer) => offer.as_ref().map(|offer| offer.rotation),
            Err(error) => error.rotation,
        };
        let written = || unix_secs(desired.get("$metadata")?.get(SECTION)?.get("$lastUpdated")?.as_str()?);
        let is_there = |slot: &KeySlot| section.get(slot.as_str()).is_some_and(|offered| !offered.is_null());
        // Also where the offer can't be read: a key is a key.
        let is_plain = |slot: &KeySlot| {
            section
                .get(slot.as_str())
                .and_then(|offered| offered.get("key"))
                .is_some_and(|key| !key.is_null())
        };
        let slots = [KeySlot::Primary, KeySlot::Secondary];
        Some(Self {
            rotation,
            made_at: made_at(rotation, written()),
            is_readable: offer.is_ok(),
            has_plain_key: slots.iter().any(is_plain),
            slots: slots.into_iter().filter(is_there).collect(),
        })
    }
}

impl Registry {
    pub(crate) fn of(device: &Device) -> Self {
        device.keys().map_or(Self::NoKeys, Self::Keys)
    }

    pub(crate) fn keys(&self) -> Option<&KeyPair> {
        match self {
            Self::Keys(keys) => Some(keys),
            Self::NotRead | Self::NoKeys => None,
        }
    }
}

/// The time in the rotation's name, as far as that is of version 7 and not after the hub says that it was written:
/// somebody's clock was wrong, and an offer from the future would never grow old.
fn made_at(rotation: Option<RotationId>, written: Option<u64>) -> Option<u64> {
    let named = rotation.filter(|rotation| rotation.0.get_version_num() == 7);
    let named = named.and_then(|rotation| rotation.0.get_timestamp()).map(|timestamp| timestamp.to_unix().0);
    match (named, written) {
        (Some(named), Some(written)) if named > written + CLOCK_TOLERANCE_SECS => Some(written),
        (named, written) => named.or(written),
    }
}

/// RFC 3339; `None` also for the year 1, by which a hub says "never".
fn unix_secs(text: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339_weak(text).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs()).filter(|secs| *secs > 0)
}
