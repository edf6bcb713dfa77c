//! What all renewals of a run share: the hub, the orders of new keys, the looks at twins, and what one slot's renewal hands on
//! to the next one's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use twinkey_contract::{Identity, RotationId, tags};

use super::device::Mark;
use super::holder::Holder;
use super::lease::Held;
use super::looks::Looks;
use super::maker::KeyMaker;
use super::standing::clear;
use crate::failure::Failure;
use crate::hub::{Device, Hub, HubError, KeyPair, Twin};

/// How long what was read for one slot may serve for the other.
const CARRY_MAX: Duration = Duration::from_secs(3);

/// One run's means.
pub(crate) struct Renewer {
    pub(super) hub: Arc<Hub>,
    pub(super) maker: KeyMaker,
    pub(super) looks: Looks,
    /// Who this run is in leases.
    pub(super) own: Arc<Holder>,
    /// Whether twins are read many at a time.
    pub(super) is_many: bool,
    carried: Arc<Mutex<HashMap<Identity, Carried>>>,
}

/// What is known of a device.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) device: Device,
    pub(super) keys: KeyPair,
    pub(super) twin: Twin,
    /// Whether the twin shows everything that was written before.
    pub(super) is_fresh: bool,
    /// Whether the report can't be an old one: this run has just seen the proof of a rotation of its own in it, or the device has
    /// answered a challenge with it.
    pub(super) is_witnessed: bool,
}

/// What a renewal has in the twin that must not stay there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hold {
    pub(super) lease: Option<Held>,
    /// The offer that this run has put there and that is done with.
    pub(super) offer: Option<RotationId>,
    /// What was believed of the device last, to be written with the next change.
    pub(super) believed: Option<tags::Believed>,
}

struct Carried {
    known: Known,
    hold: Hold,
    mark: Option<Mark>,
    since: Instant,
}

impl Renewer {
    /// For `devices` devices in all.
    pub(crate) fn new(hub: Arc<Hub>, devices: usize) -> Result<Self, Failure> {
        let is_many = devices > super::looks::READS_MAX;
        Ok(Self {
            maker: KeyMaker::start(hub.clone()),
            looks: Looks::start(hub.clone(), is_many),
            hub,
            own: Arc::new(Holder::draw()?),
            is_many,
            carried: Arc::default(),
        })
    }

    /// A twin, read together with others if there are many; then it may be a little old.
    pub(crate) async fn glance(&self, identity: &Identity) -> Result<Twin, HubError> {
        if self.is_many {
            self.looks.watch(identity).next().await.map(|look| look.twin)
        } else {
            self.hub.twin(identity).await
        }
    }

    /// The hub that is renewed on.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Keeps what is known for the renewal of the other slot, whose offer replaces the one that stands. If none comes at
    /// once, the offer is erased.
    pub(super) fn carry(&self, known: Known, hold: Hold, mark: Option<Mark>) {
        let identity = known.device.identity();
        let since = Instant::now();
        let carried = Carried { known, hold, mark, since };
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).insert(identity.clone(), carried);
        let (all, hub, own) = (Arc::downgrade(&self.carried), self.hub.clone(), self.own.clone());
        tokio::spawn(async move {
            sleep(CARRY_MAX).await;
            let Some(all) = all.upgrade() else { return };
            let stale = {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                let is_same = all.get(&identity).is_some_and(|carried| carried.since == since);
                if is_same { all.remove(&identity) } else { None }
            };
            if let Some(Carried { known, hold, mark, .. }) = stale {
                // What stays after a failure is erased by the next run.
                let _ = clear(&hub, &identity, known.twin, hold, &own, mark.as_ref()).await;
            }
        });
    }

    pub(super) fn take_carried(&self, identity: &Identity) -> Option<(Known, Hold)> {
        let carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner).remove(identity)?;
        Some((carried.known, carried.hold))
    }

    /// Erases what was kept for renewals that did not come.
    ///
    /// # Errors
    /// The first one; the others are tried all the same.
    pub(crate) async fn close(&self) -> Result<(), Failure> {
        let left: Vec<_> = self.carried.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        let mut result = Ok(());
        for (identity, Carried { known, hold, mark, .. }) in left {
            let cleared = clear(&self.hub, &identity, known.twin, hold, &self.own, mark.as_ref()).await;
            result = result.and(cleared);
        }
        result
    }
}
