//! Waiting for the device's proof that it lives on the key that it was offered.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::{Identity, KeySlot, RotationId};

use super::belief::{is_committed, proved_slot};
use super::change::readable_keys;
use super::device::{Event, Job, Stop, Watch};
use super::looks::Look;
use super::plan::Slots;
use super::renewer::Renewer;
use super::standing::stands;
use crate::hub::{Hub, HubError, KeyPair, Twin};

/// How much longer than the whole wait the last look may take.
const LAST_LOOK_MAX: Duration = Duration::from_secs(5);

/// What the device has to report before its rotation counts.
pub(super) struct Expected<'a> {
    pub(super) identity: &'a Identity,
    pub(super) keys: &'a KeyPair,
    pub(super) slots: Slots,
    /// The slot that it has to live on; `None` where either will do.
    pub(super) active: Option<KeySlot>,
    /// The public key that the offer was sealed to, which the report has to name; `None` where it was not sealed.
    pub(super) seal_to: Option<SealingPublicKey>,
    /// A thief has the key that the device lived on: he can prove that it does not take the new one.
    pub(super) is_incident: bool,
}

/// A device that lives where it should.
pub(super) struct Proved {
    /// The twin in which the proof was seen.
    pub(super) twin: Twin,
    pub(super) is_fresh: bool,
    /// Whose offer the device took: somebody else's may have replaced ours.
    pub(super) rotation: RotationId,
    /// The registry's keys that the proof was verified against.
    pub(super) keys: KeyPair,
    pub(super) active: KeySlot,
    /// Of the report.
    pub(super) sequence: u64,
}

/// What a device has answered.
pub(super) enum Answered {
    Proved(Box<Proved>),
    Rejected { twin: Box<Twin>, status: Status, reason: Option<Reason> },
}

/// Looks at the twin until the device has answered, or somebody else has taken over.
pub(super) async fn wait(
    renewer: &Renewer,
    job: &Job,
    expected: &Expected<'_>,
    rotation: RotationId,
    watch: Watch<'_>,
) -> Result<Answered, Stop> {
    let deadline = Instant::now() + job.timeout;
    let mut last = "the device said nothing".to_owned();
    let mut looks = renewer.looks.watch(&job.identity);
    watch(Event::Step("waiting for the device's proof"));
    loop {
        let (seen, is_last) = match timeout_at(deadline, looks.next()).await {
            Ok(seen) => (seen, false),
            Err(_) => {
                let look = timeout_at(deadline + LAST_LOOK_MAX, renewer.hub.twin(&job.identity)).await;
                let Ok(look) = look else { return Err(Stop::Unanswered { last }) };
                (look.map(|twin| Look { twin, is_fresh: true }), true)
            }
        };
        let Look { twin, is_fresh } = match seen {
            Ok(look) => look,
            // A hub in trouble says nothing about the device.
            Err(error) if error.is_ambiguous() || error.status() == Some(429) => {
                if is_last {
                    return Err(Stop::Unanswered { last });
                }
                continue;
            }
            Err(error @ HubError::Unreached { .. }) => {
                last = error.to_string();
                if is_last {
                    return Err(Stop::Unanswered { last });
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let report = twin.report().ok().flatten();
        match report.as_ref().map(|report| judge(report, rotation, expected)) {
            None => {}
            Some(Judgement::Pending(said)) => last = format!("the device said: {said}"),
            Some(Judgement::Proved { active, sequence }) => {
                let keys = expected.keys.clone();
                let proved = Proved { twin, is_fresh, rotation, keys, active, sequence };
                return Ok(Answered::Proved(Box::new(proved)));
            }
            Some(Judgement::Rejected { status, reason }) => {
                return Ok(Answered::Rejected { twin: Box::new(twin), status, reason });
            }
        }
        // A query may show the time before the offer.
        if is_fresh && !stands(&twin, rotation) {
            return superseded(&renewer.hub, job, expected, report.as_ref(), twin).await;
        }
        if is_last {
            let is_disabled = !twin.is_enabled();
            return Err(Stop::Unanswered {
                last: if is_disabled { "the device is disabled".to_owned() } else { last },
            });
        }
    }
}

/// The device won't answer an offer that it can't see any more. It may live where it should all the same: two runs that
/// want the same deliver the same key.
async fn superseded(
    hub: &Hub,
    job: &Job,
    expected: &Expected<'_>,
    report: Option<&Report>,
    twin: Twin,
) -> Result<Answered, Stop> {
    let keys = readable_keys(&hub.device(&job.identity).await?)?;
    let proof = report.and_then(|report| {
        let rotation = report.rotation?;
        let active = find_slot(report, rotation, &Expected { keys: &keys, ..*expected }).ok()?;
        Some((rotation, active, report.sequence))
    });
    match proof {
        Some((rotation, active, sequence)) => {
            let proved = Proved { twin, is_fresh: true, rotation, keys, active, sequence };
            Ok(Answered::Proved(Box::new(proved)))
        }
        None => Err(Stop::Superseded { by: twin.offer().ok().flatten().map(|offer| offer.rotation) }),
    }
}

#[derive(Debug)]
pub(super) enum Judgement {
    Proved {
        active: KeySlot,
        sequence: u64,
    },
    Rejected {
        status: Status,
        reason: Option<Reason>,
    },
    /// Not yet, and what the device said last.
    Pending(String),
}

pub(super) fn judge(report: &Report, rotation: RotationId, expected: &Expected<'_>) -> Judgement {
    if report.rotation != Some(rotation) {
        return Judgement::Pending("nothing about this offer".to_owned());
    }
    let said = match (report.status, report.reason) {
        (status, Some(reason)) => format!("{} ({})", status.as_str(), reason.as_str()),
        (status, None) => status.as_str().to_owned(),
    };
    match report.status {
        // Everybody who is connected as the device can say so: without a proof it would cost the offer.
        Status::Rejected | Status::Invalid if expected.is_incident => Judgement::Pending(said),
        Status::Rejected | Status::Invalid => match proved_slot(report, expected.keys, expected.identity) {
            Ok(_) => Judgement::Rejected { status: report.status, reason: report.reason },
            Err(flaw) => Judgement::Pending(format!("{said}, but {flaw}")),
        },
        Status::Idle | Status::Trying | Status::Waiting => Judgement::Pending(said),
        Status::Committed => match find_slot(report, rotation, expected) {
            Ok(active) => Judgement::Proved { active, sequence: report.sequence },
            Err(flaw) => Judgement::Pending(format!("committed, but {flaw}")),
        },
    }
}

/// The slot that the device lives on, if it has committed `rotation`, proves it, and lives where it should.
fn find_slot(
    report: &Report,
    rotation: RotationId,
    expected: &Expected<'_>,
) -> Result<KeySlot, &'static str> {
    let active = report
        .active
        .filter(|_| is_committed(report, rotation, expected.keys, expected.identity))
        .ok_or("its proof does not fit the registry's key")?;
    if expected.seal_to.is_some() && report.seal_to != expected.seal_to {
        return Err("it names another public key than the one that the offer was sealed to");
    }
    let holds = |slot| report.slot(slot).is_some_and(|s| s.fingerprint == expected.keys.fingerprint(slot));
    let holds_offered = match expected.slots {
        Slots::None => true,
        Slots::One(slot) => holds(slot),
        Slots::Both => KeySlot::ALL.into_iter().all(holds),
    };
    if holds_offered && expected.active.is_none_or(|slot| slot == active) {
        Ok(active)
    } else {
        Err("it lives on another key")
    }
}
