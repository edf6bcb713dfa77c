//! The operator's order for one device: read, decide, change the registry, offer, wait for the proof, erase.
//!
//! Nothing is kept here. Whatever interrupts a run, registry and twin say how far it got, and the next run goes on
//! from there.

use std::time::Duration;

use tokio::time::sleep;
use twinkey_contract::offer::{Offer, OfferedKey, check_mark};
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::sealing::{Binding, SealingPublicKey};
use twinkey_contract::{Identity, KeySlot, RotationId};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Purpose, stamp};
use zeroize::Zeroizing;

use super::plan::{self, Change, Facts, Plan, Refusal, Request, Slots, Standing};
use super::proof::{self, Expected};
use crate::cli::KeyType;
use crate::clock::unix_now_millis;
use crate::failure::Failure;
use crate::hub::{Device, Hub, HubError, KeyPair, RegistryKey, Twin};

/// Most plans for one device while its identity changes under our hands or the hub throttles: after that a person should look.
const PLAN_ATTEMPTS_MAX: u32 = 3;
/// Most attempts to erase an offer while the twin changes under our hands.
const ERASE_ATTEMPTS_MAX: u32 = 5;

/// What to do with one device.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) identity: Identity,
    pub(crate) key_type: KeyType,
    pub(crate) is_forced: bool,
    pub(crate) delivers: bool,
    /// Offer keys unsealed.
    pub(crate) is_plain: bool,
    /// Only if the identity still has this etag.
    pub(crate) etag: Option<String>,
    /// Longest wait for the device's proof.
    pub(crate) timeout: Duration,
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
    /// There is no agent.
    NobodyTakesIt,
}

/// Any other end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nothing was changed.
    Refused(Refusal),
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
        Self::Failed(error.into())
    }
}

/// Renews as `job` says.
pub(crate) async fn renew(hub: &Hub, job: &Job, watch: Watch<'_>, trace: &mut Trace) -> Result<Ending, Stop> {
    let identity = &job.identity;
    let mut attempt = 1;
    let Offering { keys, slots, report } = *loop {
        match prepare(hub, job, identity, watch, trace).await? {
            Prepared::Ended(ending) => return Ok(ending),
            Prepared::Offering(offering) => break offering,
            Prepared::Stale(why) if attempt >= PLAN_ATTEMPTS_MAX => return Err(why.into()),
            Prepared::Stale(why) => watch(Event::Note(format!("looking again: {}", why.what))),
        }
        attempt += 1;
    };
    let expected = Expected { identity, keys: &keys, slots, active: requested_slot(job.key_type) };
    let rotation = make_offer(hub, job, &expected, report.as_ref(), watch).await?;
    trace.rotation = Some(rotation);
    let proved = proof::wait(hub, job, &expected, rotation, watch).await?;
    trace.rotation = Some(proved.rotation);
    trace.after = Some(proved.keys);
    trace.lives_in = Some(proved.active);
    watch(Event::Step("erasing the offer"));
    erase(hub, identity, rotation, proved.twin).await?;
    Ok(if job.key_type == KeyType::Swap { Ending::Swapped } else { Ending::Renewed })
}

enum Prepared {
    Ended(Ending),
    /// The registry is as wished.
    Offering(Box<Offering>),
    /// Nothing was changed, and what was read may not be so any more.
    Stale(Failure),
}

/// What came of a change in the registry.
enum Changed {
    /// The registry's keys now.
    To(KeyPair),
    /// As in [`Prepared`].
    Stale(Failure),
}

/// What is to be offered.
struct Offering {
    /// The registry's keys.
    keys: KeyPair,
    slots: Slots,
    report: Option<Report>,
}

/// Reads, decides and changes the registry.
async fn prepare(
    hub: &Hub,
    job: &Job,
    identity: &Identity,
    watch: Watch<'_>,
    trace: &mut Trace,
) -> Result<Prepared, Stop> {
    let id = identity;
    watch(Event::Step("reading identity and twin"));
    let device = hub.device(id).await?;
    if job.etag.as_ref().is_some_and(|etag| device.etag.as_deref() != Some(etag.trim_matches('"'))) {
        let changed = Failure::failed(format!(
            "{id} has another etag than the given one: somebody changed it meanwhile"
        ));
        return Err(changed.next("look at it with device-identity show, then repeat with its etag").into());
    }
    let keys = readable_keys(&device)?;
    trace.before = Some(keys.clone());
    let twin = hub.twin(id).await?;
    let report = twin.report().unwrap_or_else(|why| {
        watch(Event::Note(format!("the agent's report can't be read: {why}")));
        None
    });
    let facts = Facts {
        identity,
        is_enabled: device.is_enabled(),
        is_connected: device.is_connected(),
        keys: &keys,
        report: report.as_ref(),
        standing: standing(&twin),
    };
    // Without an agent nobody would ever open what is offered, and a key would lie in the twin for good.
    let is_taken = report.is_some() || job.is_plain;
    let request =
        Request { key_type: job.key_type, is_forced: job.is_forced, delivers: job.delivers && is_taken };
    let (change, slots) = match plan::plan(&facts, request) {
        Plan::Refuse(refusal) => return Err(Stop::Refused(refusal)),
        Plan::Settle { rotation } => {
            trace.rotation = Some(rotation);
            trace.lives_in = report.as_ref().and_then(|report| report.active);
            trace.after = Some(keys);
            erase(hub, id, rotation, twin).await?;
            return Ok(Prepared::Ended(Ending::Settled));
        }
        Plan::Renew { change, offer, in_spite_of } => {
            if let Some(danger) = in_spite_of {
                watch(Event::Note(format!("forced, although {danger}")));
            }
            (change, offer)
        }
    };
    let now = match change_registry(hub, device, &keys, change, watch).await? {
        Changed::To(now) => now,
        Changed::Stale(why) => return Ok(Prepared::Stale(why)),
    };
    trace.after = Some(now.clone());
    if slots != Slots::None {
        return Ok(Prepared::Offering(Box::new(Offering { keys: now, slots, report })));
    }
    let left = if is_taken {
        let later = plan::plan(&Facts { keys: &now, ..facts }, Request { delivers: true, ..request });
        match later {
            Plan::Renew { change: Change::Nothing, .. } => Undelivered::NextRunDelivers,
            Plan::Renew { .. } | Plan::Refuse(_) | Plan::Settle { .. } => Undelivered::NextRunChangesAgain,
        }
    } else {
        Undelivered::NobodyTakesIt
    };
    Ok(Prepared::Ended(Ending::Undelivered(left)))
}

/// Puts an offer into the twin: sealed for the agent, or plain if there is no other way or it is so ordered.
pub(crate) async fn put_offer(
    hub: &Hub,
    identity: &Identity,
    keys: &[(KeySlot, &Key)],
    seal_to: Option<SealingPublicKey>,
) -> Result<RotationId, Failure> {
    let rotation = RotationId::generate(unix_now_millis()).map_err(|e| Failure::failed(e.to_string()))?;
    let mut offer = Offer { rotation, primary: None, secondary: None };
    for &(slot, key) in keys {
        let offered = match seal_to {
            Some(public) => OfferedKey::Sealed(
                public
                    .seal(&Binding { identity, slot, rotation }, key)
                    .map_err(|e| Failure::failed(format!("seal the key for the agent: {e}")))?,
            ),
            None => OfferedKey::Plain(key.clone()),
        };
        match slot {
            KeySlot::Primary => offer.primary = Some(offered),
            KeySlot::Secondary => offer.secondary = Some(offered),
        }
    }
    hub.patch_desired(identity, &offer.to_patch(), None).await?;
    Ok(rotation)
}

/// Erases the offer of `rotation`, and no newer one: `twin` is where it was seen last.
pub(crate) async fn erase(
    hub: &Hub,
    id: &Identity,
    rotation: RotationId,
    mut twin: Twin,
) -> Result<(), Failure> {
    for _ in 0..ERASE_ATTEMPTS_MAX {
        if !stands(&twin, rotation) {
            return Ok(());
        }
        match hub.patch_desired(id, &Offer::erase_patch(), Some(&twin.etag)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.status() == Some(412) => twin = hub.twin(id).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::failed(format!("the offer still stands in the twin of {id}, which changes all the time"))
        .next("run the same command again: it erases the offer and nothing else"))
}

/// Whether the offer of `rotation` stands in the twin.
pub(super) fn stands(twin: &Twin, rotation: RotationId) -> bool {
    match twin.offer() {
        Ok(offer) => offer.is_some_and(|offer| offer.rotation == rotation),
        Err(unreadable) => unreadable.rotation == Some(rotation),
    }
}

/// A key as hubs make them: random, with the mark and checksum of a device key.
pub(crate) fn new_key() -> Result<Key, Failure> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(|e| Failure::failed(format!("no random numbers: {e}")))?;
    Ok(stamp(&random, Purpose::Device))
}

pub(super) fn readable_keys(device: &Device) -> Result<KeyPair, Failure> {
    let id = &device.identity();
    let keys = device.keys().ok_or_else(|| {
        let kind = device.authentication.kind.as_deref().unwrap_or("none");
        let slots = device
            .authentication
            .symmetric_key
            .iter()
            .flat_map(|keys| [&keys.primary_key, &keys.secondary_key]);
        let is_odd = slots.into_iter().any(|key| matches!(key, RegistryKey::Unreadable));
        let why = if is_odd {
            "a key in the registry is no key of 16 to 64 bytes"
        } else {
            "it has no pair of symmetric keys"
        };
        Failure::failed(format!("{id} can't be renewed: {why} (authentication: {kind})"))
    })?;
    Ok(keys)
}

fn requested_slot(key_type: KeyType) -> Option<KeySlot> {
    match key_type {
        KeyType::Primary => Some(KeySlot::Primary),
        KeyType::Secondary => Some(KeySlot::Secondary),
        KeyType::Both | KeyType::Swap => None,
    }
}

fn standing(twin: &Twin) -> Option<Standing> {
    // What is no offer stands in nobody's way: the next one takes its place.
    let offer = twin.offer().ok()??;
    Some(Standing {
        rotation: offer.rotation,
        primary: offer.primary.is_some(),
        secondary: offer.secondary.is_some(),
    })
}

/// Makes the change under the etag that was read before the change was planned, and reads the identity again: the
/// registry is the truth, not the answer to a change. A throttled change is not repeated but planned anew: while it
/// waits, the device may move to another key, and no etag of the identity shows that.
///
/// New keys are made here: the hub's own regeneration knows no etag, and would replace whatever key is in the slot by
/// then, such as one that the device has moved to since.
async fn change_registry(
    hub: &Hub,
    mut device: Device,
    before: &KeyPair,
    change: Change,
    watch: Watch<'_>,
) -> Result<Changed, Stop> {
    let wanted = match change {
        Change::Nothing => {
            let text = "no new key is made: the registry's key is delivered as it is";
            watch(Event::Note(text.to_owned()));
            return Ok(Changed::To(before.clone()));
        }
        Change::Regenerate(slot) => before.with(slot, new_key()?),
        Change::RegenerateBoth => KeyPair { primary: new_key()?, secondary: new_key()? },
        Change::Swap => before.swapped(),
    };
    watch(Event::Step("changing the keys in the registry"));
    let id = device.identity();
    let Some(etag) = device.etag.clone() else {
        return Err(Failure::failed(format!(
            "the hub shows no etag of {id}, without which its keys can't be replaced safely"
        ))
        .into());
    };
    device.replace_keys(&wanted);
    let put = match hub.replace_device(&device, &etag).await {
        Err(error) if error.status() == Some(412) => return Ok(Changed::Stale(changed_by_somebody(&id))),
        // Whether it was done shows in the registry.
        Err(error) if error.is_ambiguous() => Err(error),
        Err(error) => {
            let Some(pause) = error.pause_before_next_look() else { return Err(error.into()) };
            sleep(pause).await;
            return Ok(Changed::Stale(error.into()));
        }
        Ok(_) => Ok(()),
    };
    let now = readable_keys(&hub.device(&id).await?)?;
    let holds = |slot| now.fingerprint(slot) == wanted.fingerprint(slot);
    match put {
        _ if KeySlot::ALL.into_iter().all(holds) => Ok(Changed::To(now)),
        Err(error) => Err(error.into()),
        Ok(()) => Err(changed_by_somebody(&id).into()),
    }
}

fn changed_by_somebody(id: &Identity) -> Failure {
    Failure::failed(format!("the keys of {id} changed under our hands: somebody else renews them too"))
        .next("find out who it is; then run the same command again, which looks first")
}

async fn make_offer(
    hub: &Hub,
    job: &Job,
    expected: &Expected<'_>,
    report: Option<&Report>,
    watch: Watch<'_>,
) -> Result<RotationId, Failure> {
    let slots: &[KeySlot] = match expected.slots {
        Slots::None => &[],
        Slots::One(KeySlot::Primary) => &[KeySlot::Primary],
        Slots::One(KeySlot::Secondary) => &[KeySlot::Secondary],
        Slots::Both => &KeySlot::ALL,
    };
    for slot in slots {
        check_mark(*slot, expected.keys.of(*slot)).map_err(|wrong| {
            Failure::failed(format!(
                "the registry's {slot} key of {} is not delivered: {wrong}",
                job.identity
            ))
            .next("regenerate it with --no-deliver, then deliver it by a second run")
        })?;
    }
    let seal_to = report.and_then(|report| report.seal_to).filter(|_| !job.is_plain);
    if seal_to.is_none() {
        let why = if job.is_plain { "as --plain says" } else { "the agent reports no key to seal to" };
        watch(Event::Note(format!(
            "the offer is not sealed ({why}): who may read the twin can read the key until it is erased"
        )));
    }
    watch(Event::Step("offering the key"));
    let keys: Vec<_> = slots.iter().map(|slot| (*slot, expected.keys.of(*slot))).collect();
    put_offer(hub, expected.identity, &keys, seal_to).await
}
