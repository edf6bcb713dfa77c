//! The operator's order for one device: read, decide, change the registry, offer, wait for the proof, erase.
//!
//! Nothing is kept here. Whatever interrupts a run, registry and twin say how far it got, and the next run goes on
//! from there.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use twinkey_contract::offer::{Offer, OfferedKey, check_mark};
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::sealing::{Binding, SealingPublicKey};
use twinkey_contract::{Identity, KeySlot, RotationId};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Purpose, stamp};
use zeroize::Zeroizing;

use super::plan::{self, Change, Facts, Plan, Refusal, Request, Slots, Standing};
use crate::cli::KeyType;
use crate::clock::unix_now_millis;
use crate::failure::Failure;
use crate::hub::{Device, Hub, HubError, KeyPair, RegistryKey, Twin};

/// First pause between two looks at the twin; it grows by half each time.
const POLL_PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two looks. Twin reads are metered (100/s on an S1 hub).
const POLL_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How much longer than the whole wait the last look may take.
const LAST_LOOK_MAX: Duration = Duration::from_secs(5);
/// Most attempts to erase an offer while the twin changes under our hands.
const ERASE_ATTEMPTS_MAX: u32 = 5;

/// What to do with one device.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) device_id: String,
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
    /// The registry has the new key and the device was not told, as ordered.
    Undelivered,
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
    let id = job.device_id.as_str();
    let identity = Identity::new(id, None).map_err(|e| Failure::usage(e.to_string()))?;
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
        identity: &identity,
        is_enabled: device.is_enabled(),
        is_connected: device.is_connected(),
        keys: &keys,
        report: report.as_ref(),
        standing: standing(&twin),
    };
    // Without an agent nobody would ever open what is offered, and a key would lie in the twin for good.
    let delivers = job.delivers && (report.is_some() || job.is_plain);
    let (change, offer) =
        match plan::plan(&facts, Request { key_type: job.key_type, is_forced: job.is_forced, delivers }) {
            Plan::Refuse(refusal) => return Err(Stop::Refused(refusal)),
            Plan::Settle { rotation } => {
                trace.rotation = Some(rotation);
                erase(hub, id, rotation, twin).await?;
                return Ok(Ending::Settled);
            }
            Plan::Renew { change, offer, in_spite_of } => {
                if let Some(danger) = in_spite_of {
                    watch(Event::Note(format!("forced, although {danger}")));
                }
                (change, offer)
            }
        };
    let keys = change_registry(hub, device, &keys, change, job.etag.as_deref(), watch).await?;
    trace.after = Some(keys.clone());
    let expected =
        Expected { identity: &identity, keys: &keys, slots: offer, active: requested_slot(job.key_type) };
    if offer == Slots::None {
        if job.delivers {
            watch(Event::Note("nothing was delivered: there is no agent that would take it".to_owned()));
        }
        return Ok(Ending::Undelivered);
    }
    let rotation = make_offer(hub, job, &expected, report.as_ref(), watch).await?;
    trace.rotation = Some(rotation);
    let twin = wait_for_proof(hub, job, &expected, rotation, watch).await?;
    watch(Event::Step("erasing the offer"));
    erase(hub, id, rotation, twin).await?;
    Ok(if job.key_type == KeyType::Swap { Ending::Swapped } else { Ending::Renewed })
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
    hub.patch_desired(&identity.device_id, &offer.to_patch(), None).await?;
    Ok(rotation)
}

/// Erases the offer of `rotation`, and no newer one: `twin` is where it was seen last.
pub(crate) async fn erase(hub: &Hub, id: &str, rotation: RotationId, mut twin: Twin) -> Result<(), Failure> {
    for _ in 0..ERASE_ATTEMPTS_MAX {
        let stands = match twin.offer() {
            Ok(offer) => offer.is_some_and(|offer| offer.rotation == rotation),
            Err(unreadable) => unreadable.rotation == Some(rotation),
        };
        if !stands {
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

/// A key as hubs make them: random, with the mark and checksum of a device key.
pub(crate) fn new_key() -> Result<Key, Failure> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(|e| Failure::failed(format!("no random numbers: {e}")))?;
    Ok(stamp(&random, Purpose::Device))
}

/// What the device has to report before its rotation counts.
struct Expected<'a> {
    identity: &'a Identity,
    keys: &'a KeyPair,
    slots: Slots,
    /// The slot that it has to live on; `None` where either will do.
    active: Option<KeySlot>,
}

enum Judgement {
    Proved,
    Rejected {
        status: Status,
        reason: Option<Reason>,
    },
    /// Not yet, and what the device said last.
    Pending(String),
}

fn readable_keys(device: &Device) -> Result<KeyPair, Failure> {
    let id = &device.device_id;
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

/// Makes the change and reads the identity again: the registry is the truth, not the answer to a change.
async fn change_registry(
    hub: &Hub,
    mut device: Device,
    before: &KeyPair,
    change: Change,
    etag: Option<&str>,
    watch: Watch<'_>,
) -> Result<KeyPair, Stop> {
    let slots: &[KeySlot] = match change {
        Change::Nothing => {
            watch(Event::Note(
                "finishing what an earlier run began: the registry's key is delivered as it is".to_owned(),
            ));
            return Ok(before.clone());
        }
        Change::Regenerate(KeySlot::Primary) => &[KeySlot::Primary],
        Change::Regenerate(KeySlot::Secondary) => &[KeySlot::Secondary],
        Change::RegenerateBoth => &KeySlot::ALL,
        Change::Swap => {
            watch(Event::Step("swapping the keys in the registry"));
            return put_keys(hub, &mut device, &before.swapped(), etag).await;
        }
    };
    watch(Event::Step("renewing the key in the registry"));
    if etag.is_some() {
        let mut keys = before.clone();
        for slot in slots {
            keys = keys.with(*slot, new_key()?);
        }
        return put_keys(hub, &mut device, &keys, etag).await;
    }
    regenerate(hub, &device.device_id, before, slots).await
}

async fn put_keys(
    hub: &Hub,
    device: &mut Device,
    keys: &KeyPair,
    etag: Option<&str>,
) -> Result<KeyPair, Stop> {
    let id = device.device_id.clone();
    let no_etag = || {
        Failure::failed(format!(
            "the hub shows no etag of {id}, without which its keys can't be replaced safely"
        ))
    };
    let etag = etag.or(device.etag.as_deref()).ok_or_else(no_etag)?.to_owned();
    device.replace_keys(keys);
    let put = match hub.replace_device(device, &etag).await {
        Err(error) if !error.is_ambiguous() => return Err(error.into()),
        put => put,
    };
    let now = readable_keys(&hub.device(&id).await?)?;
    let holds = |slot| now.fingerprint(slot) == keys.fingerprint(slot);
    match put {
        _ if KeySlot::ALL.into_iter().all(holds) => Ok(now),
        Err(error) => Err(error.into()),
        Ok(_) => Err(changed_by_somebody(&id).into()),
    }
}

async fn regenerate(hub: &Hub, id: &str, before: &KeyPair, slots: &[KeySlot]) -> Result<KeyPair, Stop> {
    let answer = match hub.regenerate_keys(id, slots).await {
        // Whether it was done shows in the registry.
        Err(error) if !error.is_ambiguous() => return Err(error.into()),
        answer => answer,
    };
    let now = readable_keys(&hub.device(id).await?)?;
    let is_new = |slot: KeySlot| now.fingerprint(slot) != before.fingerprint(slot);
    if !slots.iter().all(|slot| is_new(*slot)) {
        let error_of = |r: &crate::hub::Regenerated| {
            r.errors
                .iter()
                .find(|e| e.id.as_deref().is_none_or(|named| named == id))
                .map(|e| e.error_code.to_string())
        };
        let code = match answer {
            Err(error) => return Err(error.into()),
            Ok(regenerated) => error_of(&regenerated).unwrap_or_else(|| "without a reason".to_owned()),
        };
        return Err(Failure::failed(format!("the hub did not regenerate the key of {id}: {code}")).into());
    }
    let is_touched = |slot: KeySlot| !slots.contains(&slot) && is_new(slot);
    let rotated = answer.ok().into_iter().flat_map(|r| r.rotated_keys).find(|rotated| rotated.id == id);
    let is_ours = rotated.is_none_or(|rotated| {
        let made = |slot| match slot {
            KeySlot::Primary => rotated.primary_key.fingerprint(),
            KeySlot::Secondary => rotated.secondary_key.fingerprint(),
        };
        slots.iter().all(|slot| made(*slot).is_none_or(|made| made == now.fingerprint(*slot)))
    });
    if KeySlot::ALL.into_iter().any(is_touched) || !is_ours {
        return Err(changed_by_somebody(id).into());
    }
    Ok(now)
}

fn changed_by_somebody(id: &str) -> Failure {
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
                job.device_id
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

/// Looks at the twin until the device has answered. The twin that holds the proof is returned.
async fn wait_for_proof(
    hub: &Hub,
    job: &Job,
    expected: &Expected<'_>,
    rotation: RotationId,
    watch: Watch<'_>,
) -> Result<Twin, Stop> {
    let deadline = Instant::now() + job.timeout;
    let mut pause = POLL_PAUSE_MIN;
    let mut last = "nothing".to_owned();
    watch(Event::Step("waiting for the device's proof"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stop::Unanswered { last });
        }
        sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(POLL_PAUSE_MAX);
        let Ok(look) = timeout_at(deadline + LAST_LOOK_MAX, hub.twin(&job.device_id)).await else {
            return Err(Stop::Unanswered { last });
        };
        let twin = match look {
            Ok(twin) => twin,
            // A hub in trouble says nothing about the device.
            Err(error) if error.is_ambiguous() || error.status() == Some(429) => continue,
            Err(error @ HubError::Unreached { .. }) => {
                last = error.to_string();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match twin.report().ok().flatten().map(|report| judge(&report, rotation, expected)) {
            None => {}
            Some(Judgement::Pending(said)) => last = said,
            Some(Judgement::Proved) => return Ok(twin),
            Some(Judgement::Rejected { status, reason }) => {
                erase(hub, &job.device_id, rotation, twin).await?;
                return Err(Stop::Rejected { status, reason });
            }
        }
    }
}

fn judge(report: &Report, rotation: RotationId, expected: &Expected<'_>) -> Judgement {
    if report.rotation != Some(rotation) {
        return Judgement::Pending("nothing about this offer".to_owned());
    }
    let said = match (report.status, report.reason) {
        (status, Some(reason)) => format!("{} ({})", status.as_str(), reason.as_str()),
        (status, None) => status.as_str().to_owned(),
    };
    match report.status {
        Status::Rejected | Status::Invalid => {
            Judgement::Rejected { status: report.status, reason: report.reason }
        }
        Status::Idle | Status::Trying | Status::Waiting => Judgement::Pending(said),
        Status::Committed => {
            let holds =
                |slot| report.slot(slot).is_some_and(|s| s.fingerprint == expected.keys.fingerprint(slot));
            let holds_offered = match expected.slots {
                Slots::None => true,
                Slots::One(slot) => holds(slot),
                Slots::Both => KeySlot::ALL.into_iter().all(holds),
            };
            let is_active = expected.active.is_none_or(|slot| report.active == Some(slot));
            if !plan::is_proved(report, rotation, expected.keys, expected.identity) {
                Judgement::Pending("committed, but its proof does not fit the registry's key".to_owned())
            } else if !holds_offered || !is_active {
                Judgement::Pending("committed, but it lives on another key".to_owned())
            } else {
                Judgement::Proved
            }
        }
    }
}
