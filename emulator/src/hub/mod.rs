//! The hub's state: one lock, held for short moments and never across an await.
//!
//! `admission` decides who may connect, `exchange` is what a live connection may say, `service` what the service side
//! may do with a device. Everything that has to be atomic, above all a takeover, happens within one hold of the lock.

mod admission;
mod configure;
mod exchange;
mod jobs;
mod puppets;
mod search;
mod service;
mod weather;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rumqttc::{Publish, QoS};
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub(crate) use admission::{Connection, Refused};
pub(crate) use configure::Measured;
pub(crate) use exchange::{Answers, Ending, TELEMETRY_LEN_MAX};
pub(crate) use puppets::Act;
pub(crate) use service::{CloudMessage, MethodCall};
pub(crate) use weather::{Stillness, Weather};

use crate::clock::{Clock, Moment};
use crate::configurations::Configurations;
use crate::dps::Provisioning;
use crate::faults::Faults;
use crate::history::{ClosedBy, History};
use crate::identity::IdentityId;
use crate::jobs::Jobs;
use crate::kept::{self, Kept, Loaded, NotWritten, Stamps};
use crate::keys::{Key, KeySlot};
use crate::methods::Methods;
use crate::options::Options;
use crate::policies::Policies;
use crate::puppets::Puppets;
use crate::registry::{Registry, Status};
use crate::strangers::Strangers;
use crate::telemetry::TelemetryStore;
use crate::throttles::Throttles;
use crate::topics::{self, Filter};
use crate::warning::Warning;

/// Most messages that wait for one connection to be written: a full cloud-to-device queue and as many more.
const OUTGOING_MAX: usize = 128;

/// The hub: shared by every connection.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) strangers: Arc<Strangers>,
    pub(crate) accept_warning: Warning,
    pub(crate) crowded_warning: Warning,
    state: Mutex<State>,
    /// Rings when a device becomes reachable for direct methods.
    methods_reachable: Notify,
    weather: watch::Sender<Weather>,
    /// Where the state is kept, if it is.
    kept: Option<Kept>,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) clock: Clock,
    cloud_to_device_lock: Duration,
    pub(crate) registry: Registry,
    pub(crate) policies: Policies,
    pub(crate) history: History,
    pub(crate) telemetry: TelemetryStore,
    pub(crate) faults: Faults,
    pub(crate) throttles: Throttles,
    /// How late the answers to the packet in hand go out, latency apart.
    answer_delay: Duration,
    /// Whether the packet in hand changed reported properties.
    has_reported: bool,
    pub(crate) provisioning: Provisioning,
    pub(crate) configurations: Configurations,
    pub(crate) jobs: Jobs,
    methods: Methods,
    puppets: Puppets,
    stamps: Stamps,
}

/// The state, held. What was changed goes to disk when it is let go, if it is kept.
pub(crate) struct Held<'a> {
    state: MutexGuard<'a, State>,
    kept: Option<&'a Kept>,
}

impl Deref for Held<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(kept) = self.kept {
            let State { stamps, registry, provisioning, configurations, clock, .. } = &mut *self.state;
            let mut changes = Vec::new();
            stamps.collect(registry, clock, &mut changes);
            kept::enrollments::collect(provisioning, &mut changes);
            kept::configurations::collect(configurations, &mut changes);
            kept.note(changes);
        }
    }
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
    /// A hub with what is kept in it. `Err` says what is wrong with that.
    pub(crate) fn new(
        options: Options,
        policies: Policies,
        faults: Faults,
        kept: Option<(Kept, Loaded)>,
    ) -> Result<Self, String> {
        let clock = Clock::start();
        clock.set_offset_secs(faults.clock_offset_secs);
        let (mut registry, mut provisioning) = (Registry::default(), Provisioning::default());
        let mut configurations = Configurations::default();
        let (kept, stamps) = match kept {
            None => (None, Stamps::default()),
            Some((kept, mut loaded)) => {
                kept::enrollments::restore(&mut loaded, &mut provisioning)?;
                kept::configurations::restore(&mut loaded, &mut configurations)?;
                (Some(kept), Stamps::restore(&mut loaded, &mut registry, &clock)?)
            }
        };
        let state = State {
            clock: clock.clone(),
            cloud_to_device_lock: options.cloud_to_device_lock,
            registry,
            policies,
            history: History::default(),
            telemetry: TelemetryStore::default(),
            faults,
            throttles: Throttles::default(),
            answer_delay: Duration::ZERO,
            has_reported: false,
            provisioning,
            configurations,
            jobs: Jobs::default(),
            methods: Methods::default(),
            puppets: Puppets::default(),
            stamps,
        };
        let strangers = Strangers::new(options.strangers_max);
        let hub = Self {
            options,
            clock,
            strangers,
            accept_warning: Warning::default(),
            crowded_warning: Warning::default(),
            state: Mutex::new(state),
            methods_reachable: Notify::new(),
            weather: watch::Sender::default(),
            kept,
        };
        hub.tell_weather(&hub.lock(), false);
        Ok(hub)
    }

    /// The state. Nothing panics while it holds the lock; should it ever, the others go on with what is there.
    pub(crate) fn lock(&self) -> Held<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Held { state, kept: self.kept.as_ref() }
    }

    /// Waits until everything that was changed before is on disk, if the state is kept.
    pub(crate) async fn settled(&self) -> Result<(), NotWritten> {
        match &self.kept {
            None => Ok(()),
            Some(kept) => kept.settled().await,
        }
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
        if std::mem::take(&mut identity.is_puppet) {
            self.puppets.forget(id);
        }
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

    /// Tells a connected and subscribed device, or whoever plays it, that its desired properties changed.
    fn notify_desired(&mut self, id: &IdentityId, body: &serde_json::Value, version: u64) {
        if self.registry.find(id).is_some_and(|identity| identity.is_puppet) {
            return self.puppets.note(id);
        }
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
            let Some((pkid, message)) = identity.queue.send_next(now, self.cloud_to_device_lock) else {
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
