//! The hub's state: one lock, held for short moments and never across an await.
//!
//! `admission` decides who may connect, `exchange` is what a live connection may say, `service` what the service side
//! may do with a device. Everything that has to be atomic, above all a takeover, happens within one hold of the lock.

mod admission;
mod exchange;
mod service;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rumqttc::{Publish, QoS};
use tokio::sync::{Notify, mpsc, oneshot};

pub(crate) use admission::{Connection, Refused};
pub(crate) use exchange::{Ending, TELEMETRY_LEN_MAX};
pub(crate) use service::{CloudMessage, MethodCall};

use crate::clock::{Clock, Moment};
use crate::faults::Faults;
use crate::history::{ClosedBy, History};
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot};
use crate::methods::Methods;
use crate::options::Options;
use crate::policies::Policies;
use crate::registry::{Registry, Status};
use crate::telemetry::TelemetryStore;
use crate::topics::{self, Filter};

/// Most messages that wait for one connection to be written: a full cloud-to-device queue and as many more.
const OUTGOING_MAX: usize = 128;

/// The hub: shared by every connection.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    state: Mutex<State>,
    /// Rings when a device becomes reachable for direct methods.
    methods_reachable: Notify,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) policies: Policies,
    pub(crate) history: History,
    pub(crate) telemetry: TelemetryStore,
    pub(crate) faults: Faults,
    methods: Methods,
}

/// What the hub remembers of an identity's MQTT session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Whether it outlives its connection: CONNECT had clean session 0.
    persistent: bool,
    filters: BTreeMap<Filter, QoS>,
}

/// An identity's one live connection.
#[derive(Debug)]
pub(crate) struct Live {
    id: u64,
    credential: Credential,
    /// Ends the connection's task. Apart from `outgoing`, so that a full queue can't keep a connection alive.
    kick: oneshot::Sender<ClosedBy>,
    outgoing: mpsc::Sender<Publish>,
}

/// What made the signature of a connection's token.
#[derive(Debug)]
enum Credential {
    Slot(KeySlot, Key),
    Policy(String),
}

impl Hub {
    pub(crate) fn new(options: Options, policies: Policies) -> Self {
        let clock = Clock::start();
        let state = State {
            clock,
            registry: Registry::default(),
            policies,
            history: History::default(),
            telemetry: TelemetryStore::default(),
            faults: Faults::default(),
            methods: Methods::default(),
        };
        Self { options, clock, state: Mutex::new(state), methods_reachable: Notify::new() }
    }

    /// The state. Nothing panics while it holds the lock; should it ever, the others go on with what is there.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends an identity's live connection, if it has one, and says whether it had.
    pub(crate) fn close(&mut self, id: &IdentityId, by: ClosedBy) -> bool {
        self.close_at(id, by, self.clock.now())
    }

    fn close_at(&mut self, id: &IdentityId, by: ClosedBy, at: Moment) -> bool {
        let Some(identity) = self.registry.find_mut(id) else {
            return false;
        };
        let Some(live) = identity.live.take() else {
            return false;
        };
        identity.connection_updated = Some(self.clock.timestamp());
        identity.queue.take_back();
        if identity.session.as_ref().is_some_and(|session| !session.persistent) {
            identity.session = None;
        }
        self.history.close(live.id, at, by);
        // The task may be ending by itself and no longer listen.
        let _ = live.kick.send(by);
        true
    }

    /// Ends every live connection, and says how many there were.
    pub(crate) fn close_all(&mut self, by: ClosedBy) -> usize {
        self.registry.ids().iter().filter(|id| self.close(id, by)).count()
    }

    /// Forgets every MQTT session: subscriptions, not queued cloud-to-device messages.
    pub(crate) fn forget_sessions(&mut self) {
        for id in self.registry.ids() {
            if let Some(identity) = self.registry.find_mut(&id) {
                identity.session = None;
            }
        }
    }

    /// Queues a message for an identity that is connected and subscribed, and says whether it was.
    fn send(&mut self, id: &IdentityId, filter: Filter, publish: Publish) -> bool {
        let Some(identity) = self.registry.find_mut(id) else {
            return false;
        };
        let Some(live) = identity.live.as_ref().filter(|_| is_subscribed(&identity.session, filter)) else {
            return false;
        };
        let sent = live.outgoing.try_send(publish).is_ok();
        if !sent {
            self.close(id, ClosedBy::Overflow);
        }
        sent
    }

    /// Tells a connected and subscribed device that its desired properties changed.
    fn notify_desired(&mut self, id: &IdentityId, body: &serde_json::Value, version: u64) {
        let publish = Publish::new(topics::desired(version), QoS::AtMostOnce, body.to_string());
        self.send(id, Filter::Desired, publish);
    }

    /// Sends what waits in the cloud-to-device queue, if the device is there and wants it.
    fn send_queued(&mut self, id: &IdentityId) {
        let now = self.clock.now();
        loop {
            let Some(identity) = self.registry.find_mut(id).filter(|identity| identity.live.is_some()) else {
                return;
            };
            let Some(qos) = granted(&identity.session, Filter::CloudToDevice) else {
                return;
            };
            let Some((pkid, message)) = identity.queue.send_next(now) else {
                return;
            };
            let bag = message.bag.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let topic = topics::cloud_to_device(id, bag);
            let mut publish = Publish::from_bytes(topic, qos, message.body.clone());
            publish.dup = message.is_repeated() && qos != QoS::AtMostOnce;
            match qos {
                QoS::AtMostOnce => identity.queue.complete(pkid),
                QoS::AtLeastOnce | QoS::ExactlyOnce => publish.pkid = pkid,
            }
            if !self.send(id, Filter::CloudToDevice, publish) {
                return;
            }
        }
    }
}

/// A module's status is its device's.
fn is_enabled(registry: &Registry, id: &IdentityId) -> bool {
    registry.find(&id.owner()).is_some_and(|device| device.status == Status::Enabled)
}

fn is_subscribed(session: &Option<Session>, filter: Filter) -> bool {
    granted(session, filter).is_some()
}

fn granted(session: &Option<Session>, filter: Filter) -> Option<QoS> {
    session.as_ref().and_then(|session| session.filters.get(&filter)).copied()
}
