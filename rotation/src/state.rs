//! What the machine knows, what it is told, and what it asks for.

use crate::offer::{Desired, Invalid, Offer};
use crate::report::Report;
use crate::ring::{Brought, KEYS_MAX, KeyName, Ring, UnixSecs};

/// All that the machine knows. Only [`State::ring`] is ever written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The ring as it should be.
    pub ring: Ring,
    /// The ring that is known to be on disk: the last one whose write succeeded.
    pub durable: Ring,
    /// The keys that stand in every image the disk can hold now.
    pub stored: KeySet,
    /// What the disk is doing.
    pub disk: Disk,
    /// What was read at the start could not be made durable, and was not written again yet.
    pub is_unsettled: bool,
    /// The key of the connection that stands.
    pub live: Option<KeyName>,
    /// Whether that connection has stood long enough to count as settled.
    pub is_settled: bool,
    /// Whether its token is due for renewal.
    pub is_renewal_due: bool,
    /// The attempt to connect that is under way; there is never a second one.
    pub attempt: Option<Attempt>,
    /// The pace of attempts that are needed to be connected at all.
    pub pacing: Pacing,
    /// The trial of the candidate ([`Ring::slot_on_trial`]).
    pub trial: Trial,
    /// A document that arrived while an attempt was under way; it waits, so that the key which that attempt may
    /// prove can't leave the ring in the meantime (I1).
    pub deferred: Option<Desired>,
    /// An offer that is more than the budget allows now. The newest one waits, until [`Timer::Offers`] makes room.
    pub waiting: Option<Offer>,
    /// A key that a person brought while the one brought before was being tried; it waits like a document.
    pub deferred_key: Option<Brought>,
    /// Whether [`Timer::Offers`] is armed: while any offer counts against the budget.
    pub is_earning: bool,
    /// The document that stands now is no offer.
    pub invalid: Option<Invalid>,
    /// What held the last attempt up.
    pub trouble: Option<Trouble>,
    /// What was reported last.
    pub reported: Option<Report>,
}

/// A set of at most as many keys as a ring can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeySet([Option<KeyName>; KEYS_MAX]);

/// What the disk is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::large_enum_variant,
    reason = "without a heap, the ring under way has its place in the state"
)]
pub enum Disk {
    /// Nothing is under way.
    Idle,
    /// This ring is being written.
    Writing {
        /// The ring under way.
        ring: Ring,
        /// Writes that failed in a row before this one.
        failures: u8,
    },
    /// The last write failed; it may have reached the disk or not. The store timer is armed.
    Failed {
        /// Writes that failed in a row.
        failures: u8,
    },
}

/// An attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// With which key.
    pub key: KeyName,
    /// What for.
    pub purpose: Purpose,
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To be connected, or to renew the token of the connection that stands.
    Connect,
    /// To try the candidate.
    Trial,
    /// To see that the hub accepts the active key now, while it refuses the candidate.
    Control,
}

/// The pace of [`Purpose::Connect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pacing {
    /// The retry timer is armed.
    pub is_waiting: bool,
    /// Rounds that failed in a row.
    pub failures: u8,
    /// Which key of [`Ring::keys_in_order`] comes next.
    pub cursor: u8,
    /// Attempts in a row, with the same key, to which the hub gave no answer.
    pub unanswered: u8,
}

/// The trial of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trial {
    /// The trial timer is armed.
    pub is_waiting: bool,
    /// Attempts that failed in a row.
    pub failures: u8,
    /// The propagation window.
    pub window: Window,
    /// What comes next.
    pub phase: Phase,
}

/// The time in which a refusal may come from a key that has not reached the whole hub yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// The candidate was not refused yet.
    Unopened,
    /// It was; the window timer is armed.
    Open,
    /// The window has passed.
    Closed,
}

/// What a trial needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// To try the candidate.
    Candidate,
    /// The window has closed: to connect anew with a key that works.
    Control,
    /// The control was accepted just now: the candidate is being tried a last time.
    Last,
}

/// What held an attempt up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The hub refused the candidate.
    Refused,
    /// The hub refused a key that it had accepted before: wrong clock, regenerated, disabled or deleted.
    ActiveRefused,
    /// The hub was not reached: name resolution, TCP, TLS, proxy.
    Unreachable,
    /// The hub was reached and did not answer, or said that it is busy.
    Unanswered,
    /// The clock can't be right.
    Clock,
}

/// What the machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The process has started and the ring was read from disk.
    Boot,
    /// The operator's document, whole, as it stands now. I1 counts on a connection having been accepted since the
    /// start: before that, the machine can't know that the candidate which a new offer displaces had just been
    /// accepted when the power went.
    Desired(Desired),
    /// A person has brought a key. It is stored, and tried whenever the active key is refused. A second one takes the
    /// place of the first, so I1 counts on a connection having been accepted since the start, as with documents.
    Brought(Brought),
    /// The operator asks for another trial of candidates that were set aside.
    Retry,
    /// The write that was asked for has ended; `true` only when it is certain to survive a power cut.
    Stored(bool),
    /// The attempt that was asked for has ended.
    Attempted(Outcome),
    /// The connection that stood is gone.
    Lost,
    /// A timer that was armed has fired.
    Fired(Timer),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The hub accepted the key; the new connection stands in place of any earlier one.
    Accepted {
        /// When, by the wall clock.
        at: UnixSecs,
    },
    /// The hub itself, inside its own TLS, refused the key.
    Refused,
    /// Neither of the two.
    Unknown(Trouble),
}

/// A timer. Arming it again replaces its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The next attempt to be connected.
    Retry,
    /// The next attempt with the candidate.
    Trial,
    /// The end of the propagation window.
    Window,
    /// The next attempt to write.
    Store,
    /// The connection has settled.
    Settled,
    /// The token is due for renewal.
    Renewal,
    /// One offer more may be taken up.
    Offers,
}

impl Timer {
    /// How many timers there are.
    pub const COUNT: usize = 7;
    /// All timers.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Retry, Self::Trial, Self::Window, Self::Store, Self::Settled, Self::Renewal, Self::Offers];
}

/// What the machine asks for. The parts are independent: they may be performed in any order, or at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Write this ring, and answer with [`Input::Stored`].
    pub store: Option<Ring>,
    /// Connect with this key while leaving the connection that stands alone, and answer with [`Input::Attempted`].
    pub connect: Option<KeyName>,
    /// Make this the reported document.
    pub report: Option<Report>,
    /// Arm these timers, in milliseconds from now.
    pub timers: [Option<(Timer, u64)>; Timer::COUNT],
}

impl Effects {
    /// Asks for `timer` to fire in `delay_ms`; the last word in a step counts.
    pub(crate) fn arm(&mut self, timer: Timer, delay_ms: u64) {
        let same = |entry: &&mut Option<(Timer, u64)>| entry.is_none_or(|(armed, _)| armed == timer);
        if let Some(entry) = self.timers.iter_mut().find(same) {
            *entry = Some((timer, delay_ms));
        }
    }
}

impl KeySet {
    /// The keys that `ring` names.
    pub fn of(ring: &Ring) -> Self {
        Self(ring.keys_in_order())
    }

    /// Whether `key` is one of them.
    pub fn contains(&self, key: KeyName) -> bool {
        self.0.contains(&Some(key))
    }

    /// The keys that are in both.
    pub(crate) fn and(self, other: &Self) -> Self {
        Self(self.0.map(|key| key.filter(|key| other.contains(*key))))
    }
}

impl Trial {
    pub(crate) const NEW: Self =
        Self { is_waiting: false, failures: 0, window: Window::Unopened, phase: Phase::Candidate };
}

impl State {
    /// The state of a process that has just read `ring` from disk.
    pub fn new(ring: Ring) -> Self {
        Self {
            ring,
            durable: ring,
            stored: KeySet::of(&ring),
            disk: Disk::Idle,
            is_unsettled: false,
            live: None,
            is_settled: false,
            is_renewal_due: false,
            attempt: None,
            pacing: Pacing { is_waiting: false, failures: 0, cursor: 0, unanswered: 0 },
            trial: Trial::NEW,
            deferred: None,
            waiting: None,
            is_earning: false,
            deferred_key: None,
            invalid: None,
            trouble: None,
            reported: None,
        }
    }

    /// The state of a process that has read `ring` and could not make it durable: a power cut may still bring back
    /// `predecessor`. So that is what counts as durable: the ring is written again at once, and until that has succeeded
    /// only keys that stand in both are used. With no predecessor there is nothing else to hold on to.
    pub fn unsettled(ring: Ring, predecessor: Option<Ring>) -> Self {
        let durable = predecessor.unwrap_or(ring);
        Self {
            stored: KeySet::of(&ring).and(&KeySet::of(&durable)),
            // No verdict is claimed before it is certain to stay.
            durable: Ring { rotation: None, ..durable },
            is_unsettled: true,
            ..Self::new(ring)
        }
    }

    /// Whether `key` stands in every image that the disk can hold now: the last good one, and those of writes
    /// that are under way or failed since.
    pub fn is_surely_stored(&self, key: KeyName) -> bool {
        self.stored.contains(key)
    }
}
