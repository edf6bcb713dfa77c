//! Configurations at work: one twin after its own change, all twins after a change of a configuration.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use super::{Hub, State};
use crate::configurations::{Configuration, Configured, Status};
use crate::identity::IdentityId;
use crate::query::{Query, Source};
use crate::refusal::Refusal;
use crate::registry::Identity;
use crate::twin::{ServicePatch, versioned};
use crate::twin_document::TwinDocument;

/// Twins that a sweep looks at within one hold of the lock.
const SWEPT_MAX: usize = 200;

/// What a configuration's metrics come to.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) targeted: u64,
    pub(crate) applied: u64,
    pub(crate) results: BTreeMap<String, u64>,
}

impl State {
    /// Brings the desired properties of a twin, and where needed those of its modules, to what the configurations say.
    /// To be called after every change of a twin or identity.
    pub(crate) fn configure(&mut self, id: &IdentityId) {
        self.configure_one(id);
        if id.module_id().is_none() && self.configurations.reach_modules() {
            for module in self.registry.family(id).iter().skip(1) {
                self.configure_one(module);
            }
        }
    }

    fn configure_one(&mut self, id: &IdentityId) {
        let Some(identity) = self.registry.find(id) else {
            return;
        };
        let before = identity.configured.as_deref();
        if self.configurations.is_empty() && before.is_none() {
            return;
        }
        let (owner, now) = (id.owner(), self.clock.now());
        let device: Option<&Identity> = id.module_id().and_then(|_| self.registry.find(&owner));
        let device = device.map(|identity| TwinDocument { id: &owner, identity, now });
        let planned = self.configurations.plan(&TwinDocument { id, identity, now }, device.as_ref());
        let patch = planned.patch(before, &identity.twin.desired.values);
        if Some(&planned) == before && patch.is_empty() {
            return;
        }
        let before = before.cloned();
        let timestamp = self.clock.timestamp();
        let Some(identity) = self.registry.find_mut(id) else {
            return;
        };
        let keep =
            |configured: Configured| Some(Box::new(configured)).filter(|configured| !configured.is_empty());
        if patch.is_empty() {
            identity.configured = keep(planned);
            return;
        }
        let change = ServicePatch { tags: None, desired: Some(patch) };
        match identity.twin.patch(&change, &timestamp) {
            Ok(()) => {
                identity.configured = keep(planned);
                let version = identity.twin.desired.version;
                let body = versioned(&change.desired.unwrap_or_default(), version);
                self.notify_desired(id, &body, version);
            }
            Err(problem) => {
                tracing::debug!(identity = %id, problem, "a configuration does not fit");
                identity.configured = keep(planned.not_applied(before.as_ref()));
            }
        }
    }
}

impl Hub {
    /// Starts to bring all twins to what the configurations say now. It ends by itself, early if they change again or
    /// the hub goes.
    pub(crate) fn sweep(self: &Arc<Self>) {
        let (hub, changes) = (Arc::downgrade(self), self.lock().configurations.changes);
        tokio::spawn(async move {
            let mut after = None;
            while let Some(last) = sweep_some(&hub, changes, after.as_ref()) {
                after = Some(last);
                tokio::task::yield_now().await;
            }
        });
    }

    /// What the metrics of configurations come to now, by id.
    pub(crate) async fn measure(
        &self,
        configurations: &[Configuration],
    ) -> Result<BTreeMap<String, Measured>, Refusal> {
        let mut measured: BTreeMap<String, Measured> =
            configurations.iter().map(|it| (it.id().to_owned(), Measured::default())).collect();
        for source in [Source::Devices, Source::Modules] {
            let counting = |twin: &TwinDocument<'_>| {
                let configured = twin.identity.configured.as_ref();
                for (id, status) in configured.into_iter().flat_map(|configured| configured.statuses()) {
                    if let Some(measured) = measured.get_mut(id) {
                        measured.targeted += 1;
                        measured.applied += u64::from(status == Status::Applied);
                    }
                }
                ControlFlow::<()>::Continue(())
            };
            self.visit(&Query::all(source), None, counting).await;
        }
        for configuration in configurations {
            for (name, query) in configuration.metrics() {
                let rows = self.count_rows(query).await? as u64;
                if let Some(measured) = measured.get_mut(configuration.id()) {
                    measured.results.insert(name.to_owned(), rows);
                }
            }
        }
        Ok(measured)
    }
}

/// The last twin looked at; `None` once there is nothing more to do.
fn sweep_some(hub: &Weak<Hub>, changes: u64, after: Option<&IdentityId>) -> Option<IdentityId> {
    let hub = hub.upgrade()?;
    let mut state = hub.lock();
    if state.configurations.changes != changes {
        return None;
    }
    let ids: Vec<IdentityId> =
        state.registry.after(after).take(SWEPT_MAX).map(|(id, _)| id.clone()).collect();
    for id in &ids {
        state.configure_one(id);
    }
    ids.into_iter().next_back()
}
