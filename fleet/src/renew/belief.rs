//! Which reports the operator acts on. No I/O in here.
//!
//! Everybody who is connected as a device writes its reported properties, and a stolen token is enough to connect. So a report
//! counts only if its proof was made with the key that the device lives on, as the registry has it. And even a holder of that
//! key must not get the next one: keys are sealed to the public key that was believed first, which stands in the twin's
//! tags, where devices can't write.

use twinkey_contract::report::{ProofError, Reason, Report, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::tags::{self, Seen};
use twinkey_contract::{CONTRACT_VERSION, Identity, KeySlot, RotationId};

use super::refusal::Refusal;
use crate::hub::KeyPair;

/// What a person has said of this device by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// The agent was set up anew, or restored from an old image: its report is believed if only its proof is right.
    pub(crate) trusts_report: bool,
    /// A key has leaked. The device is renewed although somebody else connects as it, as soon as a report stands in the twin
    /// that names the public key that was believed before. Keys are sealed to that one. Together with `trusts_report`, the
    /// sequence may be lower: a thief with the key can have had a higher one believed.
    pub(crate) is_incident: bool,
}

impl Trust {
    /// Whether a person has said that the agent has another public key now. Not in an incident: a thief would have one, too.
    const fn takes_another_seal(self) -> bool {
        self.trusts_report && !self.is_incident
    }
}

/// A report that may be acted on. There is no other way to make one than [`believe`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Believed<'a> {
    report: &'a Report,
    lives_in: KeySlot,
}

impl<'a> Believed<'a> {
    pub(crate) fn report(&self) -> &'a Report {
        self.report
    }

    /// The slot of the registry whose key made the proof.
    pub(crate) fn lives_in(&self) -> KeySlot {
        self.lives_in
    }
}

/// Believes a report as far as its proof goes, and as far as it agrees with what was believed before.
///
/// # Errors
/// Why it is not acted on.
pub(crate) fn believe<'a>(
    report: Option<&'a Report>,
    keys: &KeyPair,
    identity: &Identity,
    seen: Seen,
    trust: Trust,
) -> Result<Believed<'a>, Refusal> {
    let report = report.filter(|report| report.contract == CONTRACT_VERSION).ok_or(Refusal::NoAgent)?;
    let lives_in = proved_slot(report, keys, identity)?;
    let (is_same_seal, is_newer) = match seen {
        Seen::Nothing => (true, true),
        Seen::Unreadable => (false, false),
        Seen::Believed(before) => {
            (report.seal_to == Some(before.seal_to), report.sequence >= before.sequence)
        }
    };
    if !is_same_seal && !trust.takes_another_seal() {
        return Err(Refusal::SealChanged);
    }
    if !is_newer && !trust.trusts_report {
        return Err(Refusal::ReportOld);
    }
    if report.reason == Some(Reason::Duel) && !trust.is_incident {
        return Err(Refusal::Duel);
    }
    Ok(Believed { report, lives_in })
}

/// The slot of the registry whose key the device has proved to live on.
///
/// # Errors
/// Why none is proved.
pub(crate) fn proved_slot(report: &Report, keys: &KeyPair, identity: &Identity) -> Result<KeySlot, Refusal> {
    let active = report.active.and_then(|active| report.slot(active)).ok_or(Refusal::ActiveUnknown)?;
    let Some(lives_in) = KeySlot::ALL.into_iter().find(|slot| keys.fingerprint(*slot) == active.fingerprint)
    else {
        return Err(way_back(report, keys).map_or(Refusal::KeyUnknown, |slot| Refusal::LastKey { slot }));
    };
    report.verify(keys.of(lives_in), identity).map(|()| lives_in).map_err(|error| match error {
        ProofError::Missing => Refusal::ProofMissing,
        ProofError::Wrong => Refusal::ProofFails,
    })
}

/// Whether the device has committed `rotation` and proves that it lives on the registry's key of its active slot.
pub(crate) fn is_committed(
    report: &Report,
    rotation: RotationId,
    keys: &KeyPair,
    identity: &Identity,
) -> bool {
    report.status == Status::Committed
        && report.rotation == Some(rotation)
        && proved_slot(report, keys, identity).is_ok_and(|slot| report.active == Some(slot))
}

/// Where the registry holds the device's spare key, if it does not hold the one that the device says it lives on. Once its
/// connection breaks, the device can come back with that key alone. Nothing proves this.
fn way_back(report: &Report, keys: &KeyPair) -> Option<KeySlot> {
    let active = report.active?;
    let find = |held: KeySlot| {
        let print = report.slot(held)?.fingerprint;
        KeySlot::ALL.into_iter().find(|slot| keys.fingerprint(*slot) == print)
    };
    report.slot(active)?;
    if find(active).is_some() { None } else { find(active.other()) }
}

/// The public key that keys for this device are sealed to. The report names it, and the tags do too, where anything was
/// believed before: everybody who may write reports can't write tags, and the right to write twins makes no proof. In an incident the
/// first report to be believed could be the thief's, so there is none.
pub(crate) fn seal_target(believed: Believed<'_>, seen: Seen, trust: Trust) -> Option<SealingPublicKey> {
    let reported = believed.report.seal_to;
    match seen {
        Seen::Believed(before) => {
            reported.filter(|seal_to| trust.takes_another_seal() || *seal_to == before.seal_to)
        }
        Seen::Nothing => reported.filter(|_| !trust.is_incident),
        Seen::Unreadable => reported.filter(|_| trust.takes_another_seal()),
    }
}

/// What is written into the tags of a device whose report is believed. Only a person lets the sequence run back here.
pub(crate) fn to_remember(believed: Believed<'_>, seen: Seen, trust: Trust) -> Option<tags::Believed> {
    let seal_to = seal_target(believed, seen, trust)?;
    let sequence = believed.report.sequence;
    let sequence = match seen {
        Seen::Believed(before) if !trust.trusts_report => sequence.max(before.sequence),
        Seen::Believed(_) | Seen::Nothing | Seen::Unreadable => sequence,
    };
    Some(tags::Believed { seal_to, sequence })
}
