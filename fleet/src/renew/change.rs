//! New keys into the registry: made by the hub under a lease, or here under the identity's etag.

use std::time::Duration;

use twinkey_contract::offer::check_mark;
use twinkey_contract::{Identity, KeySlot};
use twinkey_sas::Key;
use twinkey_sas::identifiable::{Purpose, stamp};
use zeroize::Zeroizing;

use super::device::{Event, Stop, Watch};
use super::lease::Held;
use super::maker::Unmade;
use super::plan::Change;
use super::renewer::{Known, Renewer};
use crate::failure::Failure;
use crate::hub::{Device, KeyPair, RegistryKey};

/// Pause before an order is looked at again whose fate is unknown.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(2);

/// What came of a change in the registry.
pub(super) enum Changed {
    /// The registry is as wished; what is known of the identity is up to date.
    Done,
    /// Nothing was changed, and what was read may not be so any more.
    Stale { why: Failure, pause: Duration },
}

/// Makes the change that was planned for what is `known`. A throttled change is not repeated but planned anew: while it
/// waits, the device may move to another key, and no etag of the identity shows that.
///
/// With a `lease`, the hub makes the keys. Its own regeneration knows no etag, and replaces whatever key is in the slot by
/// then: the lease keeps other runs from changing it. Without one, and where keys change places, the whole identity is
/// replaced under its etag.
pub(super) async fn change_registry(
    renewer: &Renewer,
    known: &mut Known,
    change: Change,
    lease: Option<Held>,
    watch: Watch<'_>,
) -> Result<Changed, Stop> {
    let slots: &[KeySlot] = match change {
        Change::Nothing => {
            let text = "no new key is made: the registry's key is delivered as it is";
            watch(Event::Note(text.to_owned()));
            return Ok(Changed::Done);
        }
        Change::Regenerate(KeySlot::Primary) => &[KeySlot::Primary],
        Change::Regenerate(KeySlot::Secondary) => &[KeySlot::Secondary],
        Change::RegenerateBoth => &KeySlot::ALL,
        Change::Swap => &[],
    };
    watch(Event::Step("changing the keys in the registry"));
    match lease.filter(|_| !slots.is_empty()) {
        Some(lease) => order(renewer, known, slots, lease).await,
        None => replace(renewer, known, change).await,
    }
}

/// Has the hub make the keys.
async fn order(
    renewer: &Renewer,
    known: &mut Known,
    slots: &[KeySlot],
    lease: Held,
) -> Result<Changed, Stop> {
    let identity = known.device.identity();
    for &slot in slots {
        let before = known.keys.clone();
        let now = match renewer.maker.make(slot, &identity, lease.order_until()).await {
            Ok(keys) => keys,
            Err(Unmade::NotNow { why, pause }) => return Ok(Changed::Stale { why, pause }),
            Err(Unmade::Refused(why)) => return Err(why.into()),
            Err(Unmade::Gone) => {
                return Err(Stop::Gone(Failure::failed(format!("the hub has no {identity} any more"))));
            }
            Err(Unmade::Unknown(why)) => {
                let device = renewer.hub.device(&identity).await?;
                let keys = readable_keys(&device)?;
                if keys.fingerprint(slot) == before.fingerprint(slot) {
                    return Ok(Changed::Stale { why, pause: UNKNOWN_PAUSE });
                }
                keys
            }
        };
        let is_new = now.fingerprint(slot) != before.fingerprint(slot);
        if !is_new || now.fingerprint(slot.other()) != before.fingerprint(slot.other()) {
            return Err(changed_by_somebody(&identity).into());
        }
        // The etag is another one now, and the answer does not tell it.
        known.device.etag = None;
        known.device.replace_keys(&now);
        known.keys = now;
    }
    Ok(Changed::Done)
}

/// Replaces the identity with keys that are made here, or have changed places.
async fn replace(renewer: &Renewer, known: &mut Known, change: Change) -> Result<Changed, Stop> {
    let id = known.device.identity();
    if known.device.etag.is_none() {
        let device = renewer.hub.device(&id).await?;
        let keys = readable_keys(&device)?;
        if KeySlot::ALL.into_iter().any(|slot| keys.fingerprint(slot) != known.keys.fingerprint(slot)) {
            return Ok(Changed::Stale { why: changed_by_somebody(&id), pause: Duration::ZERO });
        }
        known.device = device;
    }
    let Some(etag) = known.device.etag.clone() else {
        return Err(Failure::failed(format!(
            "the hub shows no etag of {id}, without which its keys can't be replaced safely"
        ))
        .into());
    };
    let wanted = match change {
        Change::Nothing => known.keys.clone(),
        Change::Regenerate(slot) => known.keys.with(slot, new_key()?),
        Change::RegenerateBoth => KeyPair { primary: new_key()?, secondary: new_key()? },
        Change::Swap => known.keys.swapped(),
    };
    known.device.replace_keys(&wanted);
    let holds = |keys: &KeyPair| {
        KeySlot::ALL.into_iter().all(|slot| keys.fingerprint(slot) == wanted.fingerprint(slot))
    };
    let put = match renewer.hub.replace_device(&known.device, &etag).await {
        Ok(device) if device.keys().is_some_and(|keys| holds(&keys)) => {
            (known.keys, known.device) = (wanted, device);
            return Ok(Changed::Done);
        }
        Ok(_) => Ok(()),
        Err(error) if error.status() == Some(412) => {
            return Ok(Changed::Stale { why: changed_by_somebody(&id), pause: Duration::ZERO });
        }
        // Whether it was done shows in the registry.
        Err(error) if error.is_ambiguous() => Err(error),
        Err(error) => {
            let Some(pause) = error.pause_before_next_look() else { return Err(error.into()) };
            return Ok(Changed::Stale { why: error.into(), pause });
        }
    };
    let device = renewer.hub.device(&id).await?;
    let now = readable_keys(&device)?;
    if holds(&now) {
        (known.keys, known.device) = (now, device);
        return Ok(Changed::Done);
    }
    match put {
        Err(error) => Err(error.into()),
        Ok(()) => Err(changed_by_somebody(&id).into()),
    }
}

fn changed_by_somebody(id: &Identity) -> Failure {
    Failure::failed(format!("the keys of {id} changed under our hands: somebody else renews them too"))
        .next("find out who it is; then run the same command again, which looks first")
}

/// A key as hubs make them: random, with the mark and checksum of a device key.
pub(crate) fn new_key() -> Result<Key, Failure> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut_slice()).map_err(|e| Failure::failed(format!("no random numbers: {e}")))?;
    Ok(stamp(&random, Purpose::Device))
}

/// Refuses to hand over a key that is damaged, or whose mark says that it is no device's.
pub(super) fn lint(identity: &Identity, slot: KeySlot, key: &Key) -> Result<(), Failure> {
    check_mark(slot, key).map_err(|wrong| {
        Failure::failed(format!("the registry's {slot} key of {identity} is not delivered: {wrong}"))
            .next("regenerate it with --no-deliver, then deliver it by a second run")
    })
}

pub(super) fn readable_keys(device: &Device) -> Result<KeyPair, Failure> {
    let id = device.identity();
    device.keys().ok_or_else(|| {
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
    })
}
