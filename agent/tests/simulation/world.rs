//! The world's state and the books of the test: what the hub accepts, what is on disk, what the agent has heard, and
//! what it says. Nothing in here is asked of the agent; what it claims is held against these books.

mod claims;
mod connections;
mod keys;
mod offers;
mod process;
mod twin;
mod weather;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use twinkey_agent::config::{Config, Takeover};
use twinkey_agent::keyring::name_of;
use twinkey_contract::report::{Reason, Report, Status};
use twinkey_contract::{Identity, KeySlot};
use twinkey_rotation::{KeyName, Verdict};
use twinkey_sas::{Key, Verifier};

pub(crate) use self::offers::{Cause, LastHour, Voucher};
pub(crate) use self::weather::{OnRefusal, Traits, Weather};
use crate::disk::{Disk, DiskFault, Facts, Gate, SlowSync};
use crate::hub::Order;
use crate::net::{Link, Plan};
use crate::rng::Rng;
use crate::tally::{Seen, Tally};

pub(crate) const HOST: &str = "hub.example";
pub(crate) const DEVICE: &str = "pump-7";
/// The hub's time when a history begins: early in 2027.
const TRUE_UNIX_SECS: u64 = 1_800_000_000;
/// The hub drops a connection this long after its token has run out, in milliseconds.
const TOKEN_GRACE_MS: u64 = 600_000;
/// As long as this a connection must stand before its end is answered at once, in milliseconds.
const SETTLED_MS: u64 = 15_000;
/// Largest packet that the agent says.
const PACKET_LEN_MAX: usize = 256 * 1024;

/// A key of this world, by its place in the list of all keys.
pub(crate) type KeyId = usize;

pub(crate) struct KnownKey {
    pub(crate) key: Key,
    pub(crate) name: KeyName,
    verifier: Verifier,
    base64: String,
    hex: String,
    /// The hub accepts it from then on, in milliseconds; `u64::MAX` while it is not registered.
    from_ms: u64,
    /// And until then.
    until_ms: u64,
    /// The agent may have it: see [`Inner::came_in`].
    has_come_in: bool,
    refused_ms: Vec<u64>,
    accepted_ms: Vec<u64>,
}

struct Connection {
    process: u64,
    key: Option<KeyId>,
    expiry_unix_secs: u64,
    orders: mpsc::UnboundedSender<Order>,
    link: Arc<Mutex<Link>>,
    accepted_ms: Option<u64>,
    heard_ms: Option<u64>,
    is_subscribed: bool,
    /// The hub's end is there.
    is_open: bool,
    /// Something was withheld from the agent on it, so it may give it up.
    is_troubled: bool,
    has_said_goodbye: bool,
}

/// What stands in the desired properties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Nothing,
    Offer(usize),
    Rubbish,
}

pub(crate) struct Offered {
    pub(crate) rotation: u128,
    pub(crate) keys: [Option<KeyId>; 2],
    pub(crate) voucher: Voucher,
    /// As it stood in the twin.
    pub(crate) section: Value,
    at_ms: u64,
    /// When the hub gave it to the agent last.
    shown_ms: Option<u64>,
    /// The agent was shown it when it held the key that vouches for it, or needed none.
    is_believable: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sending {
    Waiting,
    Acknowledged,
}

/// How an attempt to open a stream goes.
pub(crate) enum DialPlan {
    Opens { after_ms: u64 },
    Fails { after_ms: u64, stage: u64 },
}

/// What the hub does with a CONNECT, before it looks at it.
pub(crate) enum Answer {
    Nothing,
    HangUp,
    After { delay_ms: u64 },
}

/// What the hub says to a CONNECT.
pub(crate) struct Judgement {
    pub(crate) code: ConnectReturnCode,
    pub(crate) is_session_present: bool,
    pub(crate) closes: Option<u64>,
    pub(crate) closes_first: bool,
    pub(crate) gap_ms: u64,
}

/// Attempts since the last good reason for one.
struct Stretch {
    since_ms: u64,
    dials: u64,
}

pub(crate) struct Inner {
    pub(crate) rng: Rng,
    pub(crate) tally: Tally,
    pub(crate) traits: Traits,
    pub(crate) weather: Weather,
    pub(crate) disk: Disk,
    start: Instant,
    log: Option<Vec<String>>,
    violation: Option<String>,

    // The process.
    pub(crate) process: u64,
    is_process_alive: bool,

    // The hub.
    pub(crate) keys: Vec<KnownKey>,
    pub(crate) slots: [KeyId; 2],
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    live: Option<u64>,
    standing_since_ms: Option<u64>,
    has_session: bool,
    down_until_ms: u64,
    desired: Value,
    desired_version: u64,
    pub(crate) standing: Standing,
    pub(crate) offers: Vec<Offered>,
    reported: Map<String, Value>,
    reported_version: u64,
    /// When the agent heard of which acceptance.
    heard_log: Vec<(u64, KeyId)>,
    /// What the process that runs has heard of.
    heard_by_process: BTreeSet<KeyId>,

    // Messages.
    pub(crate) messages: Vec<Sending>,
    received: BTreeSet<usize>,
    newest_received: BTreeMap<u64, usize>,

    // The books.
    facts: Vec<Facts>,
    facts_of: Vec<(usize, bool)>,
    /// Both keys were destroyed at once. Until a key is accepted, the newest offer may take an earlier one's place.
    pub(crate) has_gone_dark: bool,
    durable_verdicts: BTreeSet<(u128, bool)>,
    /// Rotations that were ever on disk.
    stored_rotations: BTreeSet<u128>,
    last_hour: LastHour,
    accepted_last: Option<KeyId>,
    accepted_before: Option<KeyId>,
    stretch: Stretch,
    writes: u64,
    reasons_to_write: u64,
    questions: u64,
}

pub(crate) struct World {
    inner: Mutex<Inner>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) loop_thread: ThreadId,
    pub(crate) slow_syncs: mpsc::UnboundedSender<SlowSync>,
}

impl World {
    pub(crate) fn new(
        inner: Inner,
        gate: Arc<Gate>,
        slow_syncs: mpsc::UnboundedSender<SlowSync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            gate,
            loop_thread: std::thread::current().id(),
            slow_syncs,
        })
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        act(&mut self.inner.lock().unwrap())
    }
}

pub(crate) fn identity() -> Identity {
    Identity { device_id: DEVICE.into(), module_id: None }
}

impl Inner {
    /// A world at its beginning; [`begin`](Self::begin) gives it a device.
    pub(crate) fn new(mut rng: Rng, has_log: bool) -> Self {
        let window_ms = rng.pick(&[0, 2_000, 20_000, 120_000, 600_000, 1_800_000]);
        let lifetime_secs = match rng.below(8) {
            0 => 30,
            1 => 120,
            2..=4 => 900,
            _ => 3_600,
        };
        let allows_unsealed = rng.per_mille(500);
        let allows_unauthenticated = rng.per_mille(250);
        let traits = Traits {
            window_ms,
            lifetime_secs: if window_ms > 120_000 { lifetime_secs.max(900) } else { lifetime_secs },
            breaks_before_make: rng.per_mille(80),
            allows_unsealed,
            seals: !allows_unsealed || rng.per_mille(250),
            allows_unauthenticated,
            authenticates: !allows_unauthenticated || rng.per_mille(500),
            kicks_first: rng.per_mille(600),
            on_refusal: rng.pick(&[
                OnRefusal::KeepsLive,
                OnRefusal::KeepsLive,
                OnRefusal::DropsThenRefuses,
                OnRefusal::RefusesThenDrops,
            ]),
            drops_on_key_change: rng.per_mille(300),
            propagation_ms: if rng.per_mille(500) { window_ms } else { 0 },
            linger_ms: rng.pick(&[0, 5_000, 600_000]),
            answers_time: rng.per_mille(700),
        };
        Self {
            rng,
            tally: Tally::new(),
            traits,
            weather: Weather::calm(20),
            disk: Disk::default(),
            start: Instant::now(),
            log: has_log.then(Vec::new),
            violation: None,
            process: 0,
            is_process_alive: false,
            keys: Vec::new(),
            slots: [0, 0],
            connections: BTreeMap::new(),
            next_connection: 1,
            live: None,
            standing_since_ms: None,
            has_session: false,
            down_until_ms: 0,
            desired: Value::Null,
            desired_version: 1,
            standing: Standing::Nothing,
            offers: Vec::new(),
            reported: Map::new(),
            reported_version: 1,
            heard_log: Vec::new(),
            heard_by_process: BTreeSet::new(),
            messages: Vec::new(),
            received: BTreeSet::new(),
            newest_received: BTreeMap::new(),
            facts: Vec::new(),
            facts_of: Vec::new(),
            has_gone_dark: false,
            durable_verdicts: BTreeSet::new(),
            stored_rotations: BTreeSet::new(),
            last_hour: LastHour::default(),
            accepted_last: None,
            accepted_before: None,
            stretch: Stretch { since_ms: 0, dials: 0 },
            writes: 0,
            reasons_to_write: 0,
            questions: 0,
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (Instant::now() - self.start).as_millis() as u64
    }

    pub(crate) fn true_unix_secs(&self) -> u64 {
        TRUE_UNIX_SECS + self.now_ms() / 1_000
    }

    pub(crate) fn log(&mut self, what: impl FnOnce() -> String) {
        let now = self.now_ms();
        if let Some(log) = &mut self.log {
            log.push(format!("{:>12.3} s  {}", now as f64 / 1_000.0, what()));
        }
    }

    pub(crate) fn take_log(&mut self) -> Vec<String> {
        self.log.take().unwrap_or_default()
    }

    /// The first violation counts; what follows may only follow from it.
    pub(crate) fn fail(&mut self, what: String) {
        self.log(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<&String> {
        self.violation.as_ref()
    }

    fn demand(&mut self, holds: bool, what: impl FnOnce(&Self) -> String) {
        if !holds {
            let what = what(self);
            self.fail(what);
        }
    }

    // ---- Keys ----

    // ---- The process and the disk ----

    // ---- The network ----

    // ---- What the agent says and hears ----

    // ---- The hub ----

    // ---- The twin ----

    // ---- Messages ----

    // ---- The end ----

    /// No more faults: the hub knows what it accepts, network, disk and clock are good, nobody else has our name.
    pub(crate) fn heal(&mut self) {
        self.log(|| "the world heals".to_owned());
        self.weather = Weather::calm(20);
        self.down_until_ms = 0;
        let now = self.now_ms();
        let slots = self.slots;
        for (id, known) in self.keys.iter_mut().enumerate() {
            if slots.contains(&id) {
                known.from_ms = known.from_ms.min(now);
                known.until_ms = u64::MAX;
            } else {
                known.until_ms = known.until_ms.min(now);
            }
        }
        self.kick_all();
    }

    /// How far the agent is from rest.
    pub(crate) fn unrest(&self) -> Option<String> {
        let connection = self.live.and_then(|live| self.connections.get(&live));
        let Some(connection) = connection
            .filter(|connection| connection.heard_ms.is_some() && self.is_alive(connection.process))
        else {
            return Some("the agent is not connected".to_owned());
        };
        let Some(key) = connection.key.filter(|key| self.is_registered(*key)) else {
            return Some("the agent is connected with a key that is not the registry's".to_owned());
        };
        if self.accepted_last != Some(key) {
            return Some("the live key is not the one that was accepted last".to_owned());
        }
        let [facts] = self.facts.as_slice() else { return Some("the disk has not settled".to_owned()) };
        if facts.active != Some(self.name(key)) {
            return Some(format!("the live key is not the active one on disk: {facts:?}"));
        }
        let Some(report) = self.report() else { return Some("no report".to_owned()) };
        if self.active_of(&report) != Some(key) {
            return Some(format!("the report names another active key: {report:?}"));
        }
        if report.sequence != facts.sequence {
            return Some(format!(
                "the report is of sequence {}, the disk of {}",
                report.sequence, facts.sequence
            ));
        }
        let is_said = match self.standing {
            Standing::Nothing => {
                matches!(report.status, Status::Idle | Status::Committed | Status::Rejected)
            }
            Standing::Rubbish => report.status == Status::Invalid,
            Standing::Offer(index) => {
                report.rotation.map(|id| id.0.as_u128()) == Some(self.offers[index].rotation)
                    && if self.is_to_be_taken(index, facts) {
                        matches!(report.status, Status::Committed | Status::Rejected)
                    } else {
                        (report.status, report.reason) == (Status::Invalid, Some(Reason::Unauthenticated))
                    }
            }
        };
        if !is_said {
            return Some(format!(
                "{:?} stands, and the report says {:?} {:?}",
                self.standing, report.status, report.reason
            ));
        }
        let waiting = self.messages.iter().filter(|message| **message == Sending::Waiting).count();
        (waiting > 0).then(|| format!("{waiting} messages have no acknowledgement"))
    }

    /// Whether the agent lives on the key that was offered last.
    pub(crate) fn is_newest_live(&self) -> bool {
        let key =
            self.live.and_then(|live| self.connections.get(&live)).and_then(|connection| connection.key);
        key.is_some() && self.offers.last().is_some_and(|offer| offer.keys.contains(&key))
    }

    /// Attempts, writes and reports so far: at rest, none is added.
    pub(crate) fn activity(&self) -> (u64, u64, u64) {
        (self.next_connection, self.writes, self.reported_version)
    }
}

/// The hub's merge: null deletes.
fn merge(into: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                into.remove(&name);
            }
            Value::Object(patch) => {
                let place = into.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Value::Object(place) = place {
                    merge(place, patch);
                }
            }
            value => {
                into.insert(name, value);
            }
        }
    }
}

/// The slot's place in the registry's list.
pub(crate) fn slot_at(index: usize) -> KeySlot {
    if index == 0 { KeySlot::Primary } else { KeySlot::Secondary }
}
