//! Marks: what needs a look, by stable codes. Pure; `docs/fleet-status.md` explains each to the operator.

use serde::Serialize;
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::tags::Seen;

use super::earlier::EarlierIdentity;
use super::observed::{Observed, Registry, Reported};
use crate::hub::{KeyPair, TWIN_TOO_LONG};
use crate::page::Tone;
use crate::renew::belief::proved_slot;
use crate::renew::refusal::Refusal;

/// How long an offer may stand, in seconds: a key should not stay in a twin, sealed or not.
const OFFER_AGE_MAX_SECS: u64 = 24 * 60 * 60;

/// Something about an identity that needs a look. The most urgent ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mark {
    KeyUnknown,
    ProofMissing,
    ProofFails,
    SealChanged,
    ReportOld,
    OfferPlain,
    OfferUnauthenticated,
    TooManyOffers,
    Duel,
    SequenceFork,
    SequenceBack,
    Restored,
    SlotMismatch,
    TwinTooLong,
    ReportUnreadable,
    ContractUnknown,
    OfferUnreadable,
    TwinTooLarge,
    OfferOld,
    RotationFailed,
    Storage,
    Clock,
}

impl Mark {
    pub(crate) const ALL: [Self; 22] = [
        Self::KeyUnknown,
        Self::ProofMissing,
        Self::ProofFails,
        Self::SealChanged,
        Self::ReportOld,
        Self::OfferPlain,
        Self::OfferUnauthenticated,
        Self::TooManyOffers,
        Self::Duel,
        Self::SequenceFork,
        Self::SequenceBack,
        Self::Restored,
        Self::SlotMismatch,
        Self::TwinTooLong,
        Self::ReportUnreadable,
        Self::ContractUnknown,
        Self::OfferUnreadable,
        Self::TwinTooLarge,
        Self::OfferOld,
        Self::RotationFailed,
        Self::Storage,
        Self::Clock,
    ];

    /// The word in every output.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::KeyUnknown => "key-unknown",
            Self::ProofMissing => "proof-missing",
            Self::ProofFails => "proof-fails",
            Self::SealChanged => "seal-changed",
            Self::ReportOld => "report-old",
            Self::OfferPlain => "offer-plain",
            Self::OfferUnauthenticated => "offer-unauthenticated",
            Self::TooManyOffers => "too-many-offers",
            Self::Duel => "duel",
            Self::SequenceFork => "sequence-fork",
            Self::SequenceBack => "sequence-back",
            Self::Restored => "restored",
            Self::SlotMismatch => "slot-mismatch",
            Self::TwinTooLong => TWIN_TOO_LONG,
            Self::ReportUnreadable => "report-unreadable",
            Self::ContractUnknown => "contract-unknown",
            Self::OfferUnreadable => "offer-unreadable",
            Self::TwinTooLarge => "twin-too-large",
            Self::OfferOld => "offer-old",
            Self::RotationFailed => "rotation-failed",
            Self::Storage => "storage",
            Self::Clock => "clock",
        }
    }

    /// What it means, in one line.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::KeyUnknown => {
                "the key in use is not in the registry: once cut off, the device can't come back with it"
            }
            Self::ProofMissing => {
                "the report has no proof: anybody who is connected as the device can have written it"
            }
            Self::ProofFails => {
                "the report's proof does not fit the report and the registry's key: it was forged or altered"
            }
            Self::SealChanged => {
                "the report names another public key than the one that was believed: set up anew, or a thief with a key"
            }
            Self::ReportOld => {
                "the report is older than one that was believed: restored from an old image, or repeated by a thief"
            }
            Self::OfferUnauthenticated => {
                "the agent refuses an offer that was made by nobody who knows a key of the device"
            }
            Self::TooManyOffers => {
                "more offers came than the agent takes up: somebody writes offers whose keys the hub refuses"
            }
            Self::OfferPlain => "a key stands unsealed in the twin, for everybody who may read it",
            Self::Duel => "another agent or program connects with the same identity",
            Self::SequenceFork => {
                "same sequence as before with other keys: two agents report for one identity"
            }
            Self::SequenceBack => "the sequence went back since the earlier run: an old image was restored",
            Self::Restored => {
                "the key ring was restored from an old image and asks for the keys that it has missed"
            }
            Self::SlotMismatch => {
                "registry and report name different keys for a slot that is not being renewed"
            }
            Self::TwinTooLong => "the twin is longer than what is read: the device has filled it up",
            Self::ReportUnreadable => "what stands in the reported properties is no report",
            Self::ContractUnknown => "the agent speaks another version of the contract than this program",
            Self::OfferUnreadable => "what stands in the desired properties is no offer",
            Self::TwinTooLarge => "the twin is too large for the agent, which finds no offer in it",
            Self::OfferOld => "an offer has been standing for more than a day",
            Self::RotationFailed => {
                "the last rotation was rejected or invalid; the device lives on its old key"
            }
            Self::Storage => "the gateway's disk can't be written",
            Self::Clock => "the gateway's clock is wrong",
        }
    }

    pub(crate) const fn tone(self) -> Tone {
        match self {
            Self::KeyUnknown
            | Self::ProofMissing
            | Self::ProofFails
            | Self::SealChanged
            | Self::ReportOld
            | Self::OfferPlain
            | Self::OfferUnauthenticated
            | Self::TooManyOffers
            | Self::Duel
            | Self::SequenceFork
            | Self::SequenceBack
            | Self::Restored => Tone::Bad,
            Self::SlotMismatch
            | Self::TwinTooLong
            | Self::ReportUnreadable
            | Self::ContractUnknown
            | Self::OfferUnreadable
            | Self::TwinTooLarge
            | Self::OfferOld
            | Self::RotationFailed
            | Self::Storage
            | Self::Clock => Tone::Warn,
        }
    }
}

/// All marks of an identity, at `now` in Unix seconds.
pub(crate) fn marks(observed: &Observed, earlier: Option<&EarlierIdentity>, now: u64) -> Vec<Mark> {
    let mut marks = Vec::new();
    let mut mark = |mark: Mark, applies: bool| {
        if applies {
            marks.push(mark);
        }
    };
    if let Some(offer) = &observed.offer {
        mark(Mark::OfferPlain, offer.has_plain_key);
        mark(Mark::OfferUnreadable, !offer.is_readable);
        mark(Mark::OfferOld, observed.offer_age(now).is_some_and(|age| age > OFFER_AGE_MAX_SECS));
    }
    match &observed.reported {
        Reported::Nothing => {}
        Reported::TooLong => mark(Mark::TwinTooLong, true),
        Reported::Unreadable => mark(Mark::ReportUnreadable, true),
        Reported::OtherContract(_) => mark(Mark::ContractUnknown, true),
        Reported::Report(report) => {
            mark(Mark::Duel, report.reason == Some(Reason::Duel));
            mark(Mark::Restored, report.reason == Some(Reason::Restored) || report.behind.is_some());
            mark(Mark::Storage, report.reason == Some(Reason::Storage));
            let is_clock_off = report.reason == Some(Reason::Clock) || report.clock_offset_secs.is_some();
            mark(Mark::Clock, is_clock_off);
            mark(Mark::OfferUnauthenticated, report.reason == Some(Reason::Unauthenticated));
            mark(Mark::TooManyOffers, report.reason == Some(Reason::TooManyOffers));
            let (is_other_seal, is_older) = match observed.seen {
                Seen::Nothing => (false, false),
                Seen::Unreadable => (true, false),
                Seen::Believed(before) => {
                    (report.seal_to != Some(before.seal_to), report.sequence < before.sequence)
                }
            };
            mark(Mark::SealChanged, is_other_seal);
            mark(Mark::ReportOld, is_older);
            if report.active.is_some() && report.proof.is_none() {
                mark(Mark::ProofMissing, true);
            }
            let is_twin_too_large = report.reason == Some(Reason::TwinTooLarge);
            mark(Mark::TwinTooLarge, is_twin_too_large);
            // Where the twin can't be read, no rotation can be judged.
            let has_failed = matches!(report.status, Status::Rejected | Status::Invalid);
            mark(Mark::RotationFailed, has_failed && !is_twin_too_large);
            if let Registry::Keys(keys) = &observed.registry {
                mark(Mark::KeyUnknown, !is_active_key_known(observed, keys));
                mark(Mark::SlotMismatch, has_slot_mismatch(observed, report, keys, now));
                let proved = proved_slot(report, keys, &observed.identity);
                mark(Mark::ProofFails, proved == Err(Refusal::ProofFails));
            }
            if let Some(earlier) = earlier {
                let before = earlier.sequence;
                mark(Mark::SequenceBack, before.is_some_and(|before| report.sequence < before));
                let is_fork = before == Some(report.sequence) && earlier.has_other_keys(report);
                mark(Mark::SequenceFork, is_fork);
            }
        }
    }
    marks.sort_unstable();
    marks
}

/// True also where no key is in use yet.
fn is_active_key_known(observed: &Observed, keys: &KeyPair) -> bool {
    let is_in = |slot| observed.active_fingerprint() == Some(keys.fingerprint(slot));
    observed.active_fingerprint().is_none() || is_in(KeySlot::Primary) || is_in(KeySlot::Secondary)
}

/// A slot under renewal is different for a while: the registry comes first. A slot of which the agent holds nothing says
/// nothing: it was given one key only.
fn has_slot_mismatch(observed: &Observed, report: &Report, keys: &KeyPair, now: u64) -> bool {
    let is_fresh = observed.offer_age(now).is_none_or(|age| age <= OFFER_AGE_MAX_SECS);
    [KeySlot::Primary, KeySlot::Secondary].into_iter().any(|slot| {
        let is_under_renewal =
            is_fresh && observed.offer.as_ref().is_some_and(|offer| offer.slots.contains(&slot));
        let is_other = report.slot(slot).is_some_and(|held| held.fingerprint != keys.fingerprint(slot));
        is_other && !is_under_renewal
    })
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
