//! The operator's order for one device: read, decide, change the registry, offer, wait for the proof, erase.
//!
//! Nothing is kept here. Whatever interrupts a run, registry and twin say how far it got, and the next run goes on
//! from there.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::{Fingerprint, Identity, KeySlot, RotationId, tags};

use super::belief::{Trust, believe, proved_slot};
use super::challenge;
use super::change::{Changed, change_registry, lint, readable_keys};
use super::lease;
use super::offering::ToOffer;
use super::plan::{self, Change, Facts, Plan, Refusal, Request};
use super::proof::{self, Answered, Expected};
use super::renewer::{Hold, Known, Renewer};
use super::standing::{clear, standing};
use crate::cli::{KeySource, KeyType};
use crate::failure::Failure;
use crate::hub::{HubError, KeyPair};

/// Most plans for one device while its identity changes under our hands: after that a person should look.
const PLAN_ATTEMPTS_MAX: u32 = 3;
/// Most plans for one device while the hub asks for patience.
const PATIENCE_MAX: u32 = 10;
/// Longest time for taking out of the twin what a run that failed has in it: the hub may have trouble.
const CLEARING_MAX: Duration = Duration::from_secs(5);

/// Pause before another look at a device whose report a thief may have written: agent and thief take turns.
const INCIDENT_PAUSE: Duration = Duration::from_secs(1);

/// What to do with one device.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) identity: Identity,
    pub(crate) key_type: KeyType,
    pub(crate) key_source: KeySource,
    /// The key that the slot had when the renewal was begun. If the registry shows another one, that is the new key, and it
    /// is only handed over.
    pub(crate) replaces: Option<Fingerprint>,
    pub(crate) is_forced: bool,
    pub(crate) delivers: bool,
    /// Offer keys unsealed.
    pub(crate) is_plain: bool,
    /// Only if the identity still has this etag.
    pub(crate) etag: Option<String>,
    /// Longest wait for the device's proof.
    pub(crate) timeout: Duration,
    /// Whether the other slot is renewed at once: its offer takes the place of this one.
    pub(crate) is_continued: bool,
    /// The rollout that it belongs to, for the twin's tags.
    pub(crate) mark: Option<Mark>,
    /// What a person has said of the device.
    pub(crate) trust: Trust,
    /// Whether the device has to answer a challenge before its keys change, unless this run has just seen it prove another
    /// one. Otherwise somebody who holds the device's connection could repeat an old report, and have the key in use
    /// regenerated.
    pub(crate) is_challenged: bool,
}

impl Job {
    /// In an incident there is no point: who holds a key of the device could answer, and who holds its connection could
    /// keep the question from it.
    pub(super) fn needs_challenge(&self) -> bool {
        (self.is_challenged || self.trust.trusts_report) && !self.trust.is_incident
    }
}

/// What a rollout leaves in a twin's tags, so that it can be followed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) rollout: String,
    /// Whether the device is done with.
    pub(crate) is_done: bool,
}

/// What is going on, for whoever watches.
pub(crate) enum Event {
    /// Said while it lasts.
    Step(&'static str),
    /// Said for good.
    Note(String),
}

pub(crate) type Watch<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// How far a renewal got, whatever its end.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) rotation: Option<RotationId>,
    pub(crate) before: Option<KeyPair>,
    pub(crate) after: Option<KeyPair>,
    /// The slot that the device has proved to live on.
    pub(crate) lives_in: Option<KeySlot>,
}

/// A good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The device has proved that it lives on the new key.
    Renewed,
    /// The device has proved that it lives on the registry's key, which it did not have. No key was made now.
    Delivered,
    /// Device and registry agree on the swapped slots.
    Swapped,
    /// An earlier run's renewal was complete; its offer has been erased now.
    Settled,
    /// The registry has changed and the device was not told.
    Undelivered(Undelivered),
}

/// How the device gets what it was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// The same command with delivery hands over what the registry has.
    NextRunDelivers,
    /// The same command with delivery changes the registry once more first: by the report, what the registry has can't
    /// be told from what the device knew before.
    NextRunChangesAgain,
    /// A run with delivery is refused for now: what the device reports is not believed, or not so any more.
    NextRunIsRefused,
    /// There is no agent.
    NobodyTakesIt,
}

/// Any other end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nothing was changed.
    Refused(Refusal),
    /// Another operator is at it. Nothing was changed.
    Busy {
        by: String,
        /// How long its lease lasts if it is not made longer.
        left: Duration,
    },
    /// The hub has no such device any more.
    Gone(Failure),
    /// The device did not take the key; it lives on the one it had.
    Rejected {
        status: Status,
        reason: Option<Reason>,
    },
    /// Somebody else's offer stands where this run's did, or none.
    Superseded {
        by: Option<RotationId>,
    },
    /// No proof came in time; the offer still stands.
    Unanswered {
        last: String,
    },
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<HubError> for Stop {
    fn from(error: HubError) -> Self {
        if error.status() == Some(404) { Self::Gone(error.into()) } else { Self::Failed(error.into()) }
    }
}

/// Renews as `job` says.
pub(crate) async fn renew(
    renewer: &Renewer,
    job: &Job,
    watch: Watch<'_>,
    trace: &mut Trace,
) -> Result<Ending, Stop> {
    let (known, mut hold) = match renewer.take_carried(&job.identity) {
        Some((known, hold)) => (Some(known), hold),
        None => (None, Hold::default()),
    };
    let result = attempt(renewer, job, known, &mut hold, watch, trace).await;
    if hold.lease.is_some() || hold.offer.is_some() {
        // It was not given up on the way: something went wrong. What can't be given up now ends by itself (the lease), or
        // is erased by the next run (the offer).
        let _ = timeout(CLEARING_MAX, async {
            let twin = renewer.hub.twin(&job.identity).await?;
            clear(&renewer.hub, &job.identity, twin, hold, &renewer.own, None).await
        })
        .await;
    }
    result
}

async fn attempt(
    renewer: &Renewer,
    job: &Job,
    mut known: Option<Known>,
    hold: &mut Hold,
    watch: Watch<'_>,
    trace: &mut Trace,
) -> Result<Ending, Stop> {
    let (hub, identity) = (&*renewer.hub, &job.identity);
    let (mut conflicts, mut pauses) = (1, 1);
    let give_up_at = Instant::now() + job.timeout;
    let Offering { mut known, offer, is_new } = *loop {
        let read = match known.take() {
            Some(known) => known,
            None => read(renewer, job, hold.lease.is_none(), watch).await?,
        };
        let prepared = match prepare(renewer, job, read, hold, watch, trace).await {
            // The thief's report may stand there now, and the agent's in a moment.
            Err(Stop::Refused(refusal))
                if job.trust.is_incident && refusal.may_be_a_thiefs() && Instant::now() < give_up_at =>
            {
                sleep(INCIDENT_PAUSE).await;
                continue;
            }
            prepared => prepared?,
        };
        match prepared {
            Prepared::Ended(ending) => return Ok(ending),
            Prepared::Offering(offering) => break offering,
            Prepared::Stale { why, pause } => {
                let attempts = if pause.is_zero() { &mut conflicts } else { &mut pauses };
                let max = if pause.is_zero() { PLAN_ATTEMPTS_MAX } else { PATIENCE_MAX };
                if *attempts >= max {
                    return Err(why.into());
                }
                *attempts += 1;
                watch(Event::Note(format!("looking again: {}", why.what)));
                sleep(pause).await;
            }
        }
    };
    let rotation = offer.put(hub, identity, &known.keys, watch).await?;
    trace.rotation = Some(rotation);
    // The earlier slot's offer is gone with this one's coming.
    hold.offer = None;
    let expected = Expected {
        identity,
        keys: &known.keys,
        slots: offer.slots,
        active: requested_slot(job.key_type),
        seal_to: offer.seal_to(),
        is_incident: job.trust.is_incident,
    };
    match proof::wait(renewer, job, &expected, rotation, watch).await? {
        Answered::Proved(proved) => {
            trace.rotation = Some(proved.rotation);
            trace.lives_in = Some(proved.active);
            trace.after = Some(proved.keys.clone());
            hold.offer = Some(rotation);
            // What was proved about this offer can't be an old report. The new key made this proof, and only the holder of the
            // public key could open it: so its sequence counts, whatever was reported before.
            known.is_witnessed = proved.rotation == rotation;
            hold.believed = offer
                .seal_to()
                .or(offer.remembers.map(|believed| believed.seal_to))
                .filter(|_| known.is_witnessed)
                .map(|seal_to| tags::Believed { seal_to, sequence: proved.sequence });
            (known.keys, known.twin, known.is_fresh) = (proved.keys, proved.twin, proved.is_fresh);
        }
        Answered::Rejected { twin, status, reason } => {
            hold.offer = Some(rotation);
            clear(hub, identity, *twin, *hold, &renewer.own, None).await?;
            *hold = Hold::default();
            return Err(Stop::Rejected { status, reason });
        }
    }
    if job.is_continued {
        renewer.carry(known, std::mem::take(hold), job.mark.clone());
    } else {
        watch(Event::Step("erasing the offer"));
        clear(hub, identity, known.twin, *hold, &renewer.own, job.mark.as_ref()).await?;
        *hold = Hold::default();
    }
    Ok(match job.key_type {
        KeyType::Swap => Ending::Swapped,
        KeyType::Primary | KeyType::Secondary if !is_new => Ending::Delivered,
        KeyType::Primary | KeyType::Secondary | KeyType::Both => Ending::Renewed,
    })
}

/// The slot to renew first. What was read for this serves the renewal, if that follows at once.
pub(super) async fn idle_slot(renewer: &Renewer, job: &Job, watch: Watch<'_>) -> Result<KeySlot, Stop> {
    let known = read(renewer, job, true, watch).await?;
    let report = known.twin.report().ok().flatten();
    let slot = plan::idle_slot(&facts(job, &known, report.as_ref()), job.trust);
    renewer.carry(known, Hold::default(), None);
    Ok(slot)
}

/// What would be done now. Nothing is changed.
pub(super) async fn foresee(renewer: &Renewer, job: &Job) -> Result<Plan, Stop> {
    let quiet = |_: Event| {};
    let known = match renewer.take_carried(&job.identity) {
        Some((known, _)) => known,
        None => read(renewer, job, true, &quiet).await?,
    };
    lease::check(&renewer.hub, &job.identity, &known.twin, &renewer.own)?;
    Ok(decide(job, &known, &quiet).plan)
}

/// Where a device lives, and the registry's keys. What was read for this serves a renewal that follows at once.
pub(crate) async fn survey(
    renewer: &Renewer,
    identity: &Identity,
    key_source: KeySource,
) -> Result<(Option<KeySlot>, KeyPair), Stop> {
    let known = read_identity(renewer, identity, renewer.is_many && key_source == KeySource::Service).await?;
    let keys = known.keys.clone();
    let report = known.twin.report().ok().flatten();
    let lives_in = report.and_then(|report| proved_slot(&report, &keys, identity).ok());
    renewer.carry(known, Hold::default(), None);
    Ok((lives_in, keys))
}

async fn read(renewer: &Renewer, job: &Job, may_take_lease: bool, watch: Watch<'_>) -> Result<Known, Stop> {
    watch(Event::Step("reading identity and twin"));
    let give_up_at = Instant::now() + job.timeout;
    // Where the lease's answer brings the newest twin anyway, an older one will do for a start.
    let may_be_old = renewer.is_many && job.key_source == KeySource::Service && may_take_lease;
    loop {
        let known = read_identity(renewer, &job.identity, may_be_old).await?;
        let report = known.twin.report().ok().flatten();
        let believed =
            believe(report.as_ref(), &known.keys, &job.identity, known.twin.seen(), job.trust).is_ok();
        if believed || !job.trust.is_incident || Instant::now() >= give_up_at {
            return Ok(known);
        }
        watch(Event::Step("waiting for a report of the agent's"));
        sleep(INCIDENT_PAUSE).await;
    }
}

async fn read_identity(renewer: &Renewer, identity: &Identity, may_be_old: bool) -> Result<Known, Stop> {
    // The identity first: its etag shows what others do to the registry after this, and nothing shows what the device does.
    let device = renewer.hub.device(identity).await?;
    let keys = readable_keys(&device)?;
    let (twin, is_fresh) = if may_be_old {
        let look = renewer.looks.watch(identity).next().await?;
        (look.twin, look.is_fresh)
    } else {
        (renewer.hub.twin(identity).await?, true)
    };
    Ok(Known { device, keys, twin, is_fresh, is_witnessed: false })
}

enum Prepared {
    Ended(Ending),
    /// The registry is as wished.
    Offering(Box<Offering>),
    /// Nothing was changed, and what was read may not be so any more.
    Stale {
        why: Failure,
        pause: Duration,
    },
}

/// What is to be offered.
struct Offering {
    known: Known,
    offer: ToOffer,
    /// Whether the key was made for this renewal, now or by an earlier run of it.
    is_new: bool,
}

/// Decides and changes the registry.
async fn prepare(
    renewer: &Renewer,
    job: &Job,
    mut known: Known,
    hold: &mut Hold,
    watch: Watch<'_>,
    trace: &mut Trace,
) -> Result<Prepared, Stop> {
    let id = &job.identity;
    if job.etag.as_ref().is_some_and(|etag| known.device.etag.as_deref() != Some(etag.trim_matches('"'))) {
        let changed = Failure::failed(format!(
            "{id} has another etag than the given one: somebody changed it meanwhile"
        ));
        return Err(changed.next("look at it with device-identity show, then repeat with its etag").into());
    }
    trace.before = Some(known.keys.clone());
    let mut decision = decide(job, &known, watch);
    if !known.is_fresh && !matches!(decision.plan, Plan::Renew { .. }) {
        known.twin = renewer.hub.twin(id).await?;
        (known.is_fresh, known.is_witnessed) = (true, false);
        decision = decide(job, &known, watch);
    }
    let is_ordered = |plan: &Plan| match plan {
        Plan::Renew { change: Change::Regenerate(_) | Change::RegenerateBoth, .. } => {
            job.key_source == KeySource::Service && job.etag.is_none()
        }
        Plan::Renew { change: Change::Nothing | Change::Swap, .. }
        | Plan::Refuse(_)
        | Plan::Settle { .. } => false,
    };
    if is_ordered(&decision.plan) && !hold.lease.is_some_and(lease::Held::is_good) {
        let (twin, lease) = lease::take(&renewer.hub, id, known.twin, &renewer.own).await?;
        hold.lease = Some(lease);
        (known.twin, known.is_fresh, known.is_witnessed) = (twin, true, false);
        // Between the reading of the identity and the lease, another run can have had a key made that the device uses now.
        if known.device.etag.is_none() || known.device.etag != known.twin.device_etag {
            known.device = renewer.hub.device(id).await?;
            known.keys = readable_keys(&known.device)?;
            trace.before = Some(known.keys.clone());
        }
        decision = decide(job, &known, watch);
    } else if matches!(decision.plan, Plan::Renew { .. }) {
        lease::check(&renewer.hub, id, &known.twin, &renewer.own)?;
    }
    let is_changing = |plan: &Plan| match plan {
        // What is forced is done whatever the device answers. A report that only a person believes is not enough to be handed a
        // key either.
        Plan::Renew { change, in_spite_of, .. } => {
            in_spite_of.is_none() && (*change != Change::Nothing || job.trust.trusts_report)
        }
        Plan::Settle { .. } => job.trust.trusts_report,
        Plan::Refuse(_) => false,
    };
    if job.needs_challenge() && is_changing(&decision.plan) && !known.is_witnessed {
        watch(Event::Step("challenging the device"));
        challenge::ask(&renewer.hub, id, &known.keys, &mut known.twin.properties.reported).await?;
        known.is_witnessed = true;
        decision = decide(job, &known, watch);
    }
    let (change, slots, form, vouching, remembers) = match decision.plan {
        Plan::Refuse(refusal) => return Err(Stop::Refused(refusal)),
        Plan::Settle { rotation, remembers } => {
            trace.rotation = rotation.or(decision.report.as_ref().and_then(|report| report.rotation));
            trace.lives_in = decision.report.as_ref().and_then(|report| report.active);
            trace.after = Some(known.keys);
            hold.offer = rotation.or(hold.offer);
            hold.believed = remembers;
            clear(&renewer.hub, id, known.twin, *hold, &renewer.own, job.mark.as_ref()).await?;
            *hold = Hold::default();
            return Ok(Prepared::Ended(Ending::Settled));
        }
        Plan::Renew { change, offer, form, vouching, remembers, in_spite_of } => {
            if let Some(danger) = in_spite_of {
                watch(Event::Note(format!("forced, although {danger}")));
            }
            (change, offer, form, vouching, remembers)
        }
    };
    let lease = hold.lease.filter(|_| is_ordered(&decision.plan));
    let vouching = known.keys.of(vouching).clone();
    match change_registry(renewer, &mut known, change, lease, watch).await? {
        Changed::Done => {}
        Changed::Stale { why, pause } => return Ok(Prepared::Stale { why, pause }),
    }
    trace.after = Some(known.keys.clone());
    let report = decision.report;
    if let Some(form) = form {
        let is_new = change != Change::Nothing || job.replaces.is_some();
        let offer = ToOffer { slots, form, vouching, remembers };
        return Ok(Prepared::Offering(Box::new(Offering { known, offer, is_new })));
    }
    for slot in KeySlot::ALL {
        if let Err(flaw) = lint(id, slot, known.keys.of(slot)) {
            watch(Event::Note(flaw.what));
        }
    }
    let is_somebody_there = report.is_some() || job.is_plain;
    let left = if is_somebody_there {
        let request = Request { delivers: true, is_forced: false, ..decision.request };
        match plan::plan(&facts(job, &known, report.as_ref()), request) {
            Plan::Renew { change: Change::Nothing, .. } => Undelivered::NextRunDelivers,
            Plan::Renew { .. } | Plan::Refuse(Refusal::BothSlots) | Plan::Settle { .. } => {
                Undelivered::NextRunChangesAgain
            }
            Plan::Refuse(_) => Undelivered::NextRunIsRefused,
        }
    } else {
        Undelivered::NobodyTakesIt
    };
    Ok(Prepared::Ended(Ending::Undelivered(left)))
}

struct Decision {
    plan: Plan,
    report: Option<Report>,
    request: Request,
}

fn decide(job: &Job, known: &Known, watch: Watch<'_>) -> Decision {
    let report = known.twin.report().unwrap_or_else(|why| {
        watch(Event::Note(format!("the agent's report can't be read: {why}")));
        None
    });
    let request = Request {
        key_type: job.key_type,
        replaces: job.replaces,
        is_forced: job.is_forced,
        delivers: job.delivers,
        is_plain: job.is_plain,
        trust: job.trust,
    };
    let plan = plan::plan(&facts(job, known, report.as_ref()), request);
    Decision { plan, report, request }
}

fn facts<'a>(job: &'a Job, known: &'a Known, report: Option<&'a Report>) -> Facts<'a> {
    // Of the two, the twin was read last, and again with the lease.
    Facts {
        identity: &job.identity,
        is_enabled: known.device.is_enabled() && known.twin.is_enabled(),
        is_connected: match &known.twin.connection_state {
            Some(_) => known.twin.is_connected(),
            None => known.device.is_connected(),
        },
        keys: &known.keys,
        report,
        seen: known.twin.seen(),
        standing: standing(&known.twin, &known.keys, job.trust.is_incident),
    }
}

fn requested_slot(key_type: KeyType) -> Option<KeySlot> {
    match key_type {
        KeyType::Primary => Some(KeySlot::Primary),
        KeyType::Secondary => Some(KeySlot::Secondary),
        KeyType::Both | KeyType::Swap => None,
    }
}
