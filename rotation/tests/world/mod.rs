//! A small world around the machine: disk, hub, operator and timers, tracked by their own book-keeping, so that
//! the machine can't lie to its judges. [`World::apply`] lets one event happen and checks the step;
//! [`World::check`] (in `invariants`) judges the state that it led to; `healing` demands progress.
#![allow(dead_code, reason = "every test binary uses its own part of the world")]

pub(crate) mod healing;
mod invariants;
pub(crate) mod timetable;

use std::fmt;
use std::hash::{Hash, Hasher};

use twinkey_rotation::{
    Desired, Disk, Effects, Input, Invalid, KeyName, KeySlot, Offer, Outcome, PerSlot, Policy, Reason,
    Report, Ring, RotationId, Standing, State, Timer, UnixSecs, Window, step,
};

pub(crate) const A: KeyName = KeyName([0xaa; 16]);
pub(crate) const B: KeyName = KeyName([0xbb; 16]);
pub(crate) const C: KeyName = KeyName([0xcc; 16]);
pub(crate) const D: KeyName = KeyName([0xdd; 16]);
pub(crate) const E: KeyName = KeyName([0xee; 16]);

pub(crate) const fn slots<T: Copy>(primary: T, secondary: T) -> PerSlot<T> {
    PerSlot { primary, secondary }
}

/// An offer under rotation `id`.
pub(crate) const fn offer(id: u128, primary: Option<KeyName>, secondary: Option<KeyName>) -> Desired {
    Desired::Offer(Offer { rotation: RotationId(id), keys: slots(primary, secondary) })
}

/// A document that is no offer.
pub(crate) const fn invalid(id: u128, reason: Reason) -> Desired {
    Desired::Invalid(Invalid { rotation: Some(RotationId(id)), reason })
}

/// A gateway with `A` as its active primary and `B` as its secondary key.
pub(crate) const fn two_keys() -> Ring {
    Ring::provisioned(KeySlot::Primary, A, Some(B))
}

/// Every wait has one length, so that the counters of failures have two values and the states stay few.
pub(crate) const FLAT: Policy = Policy {
    reconnect_delay_ms_max: 100,
    fallback_delay_ms: 10,
    retry_delay_ms_min: 1_000,
    retry_delay_ms_max: 1_000,
    trial_delay_ms_min: 1_000,
    trial_delay_ms_max: 1_000,
    propagation_window_ms: 10_000,
    store_delay_ms_min: 1_000,
    store_delay_ms_max: 1_000,
    settled_after_ms: 5_000,
    renew_after_ms: 60_000,
    unanswered_max: 2,
    offers_max: 8,
    offer_interval_ms: 600_000,
    is_single_connection: false,
};

/// What the operator made true: the registry's keys, and the document in the twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) registry: PerSlot<Option<KeyName>>,
    pub(crate) document: Desired,
}

impl Act {
    pub(crate) fn accepts(&self, key: KeyName) -> bool {
        KeySlot::ALL.into_iter().any(|slot| *self.registry.of(slot) == Some(key))
    }
}

/// Something that happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The machine is told something.
    Told(Input),
    /// The operator's next act; nobody tells the machine.
    OperatorActs,
    /// Power cut and restart; the disk holds this one of [`World::images`].
    PowerCut(usize),
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(input) => write!(f, "{input:?}"),
            Self::OperatorActs => f.write_str("(operator acts)"),
            Self::PowerCut(image) => write!(f, "(power cut; the disk holds image {image})"),
        }
    }
}

/// What speaks against the candidate on trial, by our own count (I3). Each one implies those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Evidence {
    Nothing,
    Refused,
    WindowPassed,
    ControlAccepted,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) state: State,
    /// The image of the last write that succeeded.
    pub(crate) confirmed: Ring,
    /// Images of failed writes since, which may be on disk as well.
    pub(crate) possible: Vec<Ring>,
    /// The write under way: on disk or not.
    pub(crate) writing: Option<Ring>,
    /// The key of the attempt under way.
    pub(crate) trying: Option<KeyName>,
    /// The key of the connection that stands.
    pub(crate) live: Option<KeyName>,
    /// Armed timers, in the order of [`Timer::ALL`]. One that has lost its meaning counts as disarmed, so that
    /// the machine may not count on it later.
    pub(crate) armed: [bool; Timer::COUNT],
    /// The key that the hub was last known to accept. No power cut makes the hub forget.
    pub(crate) accepted_last: Option<KeyName>,
    /// Whether the hub accepted a key since the machine started: documents come over such a connection.
    pub(crate) has_connected: bool,
    /// The document that the machine was given last since it started.
    pub(crate) document: Option<Desired>,
    pub(crate) evidence: Evidence,
    /// Index of the operator's newest act.
    pub(crate) act: usize,
    /// What stands in the twin.
    pub(crate) reported: Option<Report>,
    /// Sequence numbers are forgotten after each step, so that the states are finite in number.
    is_finite: bool,
}

impl World {
    /// A gateway that starts with `ring`.
    pub(crate) fn new(ring: Ring, policy: &Policy, is_finite: bool) -> Result<Self, String> {
        let mut world = Self {
            state: State::new(ring),
            confirmed: ring,
            possible: Vec::new(),
            writing: None,
            trying: None,
            live: None,
            armed: [false; Timer::COUNT],
            accepted_last: None,
            has_connected: false,
            document: None,
            evidence: Evidence::Nothing,
            act: 0,
            reported: None,
            is_finite,
        };
        world.tell(policy, Input::Boot, 0)?;
        Ok(world)
    }

    /// Lets `event` happen and checks what the machine made of it.
    pub(crate) fn apply(&mut self, policy: &Policy, event: Event, chance: u16) -> Result<Effects, String> {
        match event {
            Event::Told(input) => self.tell(policy, input, chance),
            Event::OperatorActs => {
                self.act += 1;
                Ok(Effects::default())
            }
            Event::PowerCut(image) => {
                let image = self.images().nth(image).ok_or("no such image")?;
                self.restart_from(policy, image)
            }
        }
    }

    /// The disk holds `image` and the process starts.
    pub(crate) fn restart_from(&mut self, policy: &Policy, image: Ring) -> Result<Effects, String> {
        let fresh = Self::new(image, policy, self.is_finite)?;
        let first = Effects {
            store: fresh.writing,
            connect: fresh.trying,
            report: fresh.reported,
            timers: Default::default(),
        };
        *self = Self { accepted_last: self.accepted_last, act: self.act, ..fresh };
        Ok(first)
    }

    /// Every ring that the disk may hold now, without repetition.
    pub(crate) fn images(&self) -> impl Iterator<Item = Ring> + '_ {
        let mut seen: Vec<Ring> = Vec::new();
        [self.confirmed].into_iter().chain(self.possible.iter().copied()).chain(self.writing).filter(
            move |ring| {
                let is_new = !seen.contains(ring);
                seen.push(*ring);
                is_new
            },
        )
    }

    /// Whether `key` stands in every ring that the disk may hold.
    pub(crate) fn is_on_disk(&self, key: KeyName) -> bool {
        self.images().all(|ring| ring.contains(key))
    }

    /// Whether a firing of `timer` can mean anything.
    pub(crate) fn awaits(state: &State, timer: Timer) -> bool {
        match timer {
            Timer::Retry => state.pacing.is_waiting,
            Timer::Trial => state.trial.is_waiting,
            Timer::Window => state.trial.window == Window::Open,
            Timer::Store => matches!(state.disk, Disk::Failed { .. }),
            Timer::Settled => state.live.is_some() && !state.is_settled,
            Timer::Renewal => state.live.is_some() && !state.is_renewal_due,
            Timer::Offers => state.ring.offers_spent > 0,
        }
    }

    fn tell(&mut self, policy: &Policy, input: Input, chance: u16) -> Result<Effects, String> {
        let before = self.state;
        self.happen(&input);
        let was_condemned = self.weigh(&before, &input);
        let (state, mut effects) = step(policy, before, input, chance);
        self.state = state;
        self.perform(&before, &mut effects)?;
        self.check_step(&before, &input, &effects, was_condemned)?;
        if on_trial(&state.ring) != on_trial(&before.ring) || restarted(&before, &state, &input) {
            self.evidence = Evidence::Nothing;
        }
        Ok(effects)
    }

    /// What `input` means outside of the machine.
    fn happen(&mut self, input: &Input) {
        match *input {
            Input::Boot | Input::Retry | Input::Brought(_) => {}
            Input::Desired(desired) => self.document = Some(desired),
            Input::Stored(is_certain) => {
                if let Some(ring) = self.writing.take() {
                    if is_certain {
                        self.confirmed = ring;
                        self.possible.clear();
                    } else if !self.possible.contains(&ring) && ring != self.confirmed {
                        self.possible.push(ring);
                        self.possible.sort_by_cached_key(Lanes::of);
                    }
                }
            }
            Input::Attempted(outcome) => {
                let tried = self.trying.take();
                match outcome {
                    Outcome::Accepted { .. } if tried.is_some() => {
                        self.live = tried;
                        self.accepted_last = tried;
                        self.has_connected = true;
                    }
                    Outcome::Accepted { .. } | Outcome::Refused | Outcome::Unknown(_) => {}
                }
            }
            Input::Lost => self.live = None,
            Input::Fired(timer) => *self.timer(timer) = false,
        }
    }

    /// Counts the evidence against the candidate; true when `input` completes it.
    fn weigh(&mut self, before: &State, input: &Input) -> bool {
        use Evidence::{ControlAccepted, Nothing, Refused, WindowPassed};
        let Some((_, candidate)) = on_trial(&before.ring) else {
            return false;
        };
        let tried = before.attempt.map(|attempt| attempt.key);
        let weight = self.evidence;
        let (weight, is_condemned) = match *input {
            Input::Attempted(outcome) if tried.is_some() => {
                let is_candidate = tried == Some(candidate);
                match outcome {
                    Outcome::Accepted { .. } if is_candidate => (Nothing, false),
                    Outcome::Accepted { .. } if weight >= WindowPassed => (ControlAccepted, false),
                    Outcome::Accepted { .. } => (weight, false),
                    Outcome::Refused if is_candidate => {
                        (weight.clamp(Refused, WindowPassed), weight == ControlAccepted)
                    }
                    Outcome::Refused | Outcome::Unknown(_) => (weight.min(WindowPassed), false),
                }
            }
            // A hub that closes the live connection while it refuses a second one: the loss is part of the answer.
            Input::Lost if tried == Some(candidate) => (weight, false),
            Input::Lost if before.live.is_some() => (weight.min(WindowPassed), false),
            Input::Fired(Timer::Window) if weight == Refused => (WindowPassed, false),
            Input::Boot
            | Input::Retry
            | Input::Brought(_)
            | Input::Desired(_)
            | Input::Stored(_)
            | Input::Attempted(_)
            | Input::Lost
            | Input::Fired(_) => (weight, false),
        };
        self.evidence = weight;
        is_condemned
    }

    /// Does what the machine asks for.
    fn perform(&mut self, before: &State, effects: &mut Effects) -> Result<(), String> {
        for (timer, _) in effects.timers.into_iter().flatten() {
            *self.timer(timer) = true;
        }
        for timer in Timer::ALL {
            *self.timer(timer) &= Self::awaits(&self.state, timer);
        }
        if let Some(ring) = &effects.store {
            ensure(self.writing.is_none(), "two writes at once")?;
            ensure(*ring == self.state.ring, "it writes another ring than its own")?;
            ensure(ring.sequence > before.ring.sequence, "the sequence does not grow with the write")?;
        }
        if let Some(report) = effects.report {
            ensure(Some(report) != self.reported, "the same report again")?;
            self.reported = Some(report);
        }
        if self.is_finite {
            forget_sequences(&mut self.state);
            effects.store = effects.store.map(unnumbered);
            self.confirmed = unnumbered(self.confirmed);
            self.reported = self.reported.map(|report| Report { sequence: 0, ..report });
        }
        if effects.store.is_some() {
            self.writing = effects.store;
        }
        if let Some(key) = effects.connect {
            ensure(self.trying.is_none(), "two attempts at once")?;
            self.trying = Some(key);
        }
        Ok(())
    }

    fn timer(&mut self, timer: Timer) -> &mut bool {
        &mut self.armed[timer as usize]
    }

    /// A name for everything that can make a difference later. What `check` has found equal is taken once.
    pub(crate) fn fingerprint(&self, more: impl Hash) -> u128 {
        let mut lanes = Lanes::NEW;
        let s = &self.state;
        s.ring.hash(&mut lanes);
        (s.durable != s.ring).then_some(s.durable).hash(&mut lanes);
        match s.disk {
            Disk::Idle => 0_u8.hash(&mut lanes),
            Disk::Writing { ring, failures } => {
                ((ring != s.ring).then_some(ring), failures).hash(&mut lanes);
                s.stored.hash(&mut lanes);
            }
            Disk::Failed { failures } => (2_u8, failures, s.stored).hash(&mut lanes),
        }
        (s.live, s.is_settled, s.is_renewal_due, s.attempt, s.pacing, s.trial).hash(&mut lanes);
        (s.deferred, s.waiting, s.is_earning, s.deferred_key, s.invalid, s.trouble).hash(&mut lanes);
        (&self.possible, self.armed, self.accepted_last, self.has_connected, self.document).hash(&mut lanes);
        (self.evidence, self.act).hash(&mut lanes);
        more.hash(&mut lanes);
        lanes.name()
    }
}

/// The slot and the key of the candidate on trial.
pub(crate) fn on_trial(ring: &Ring) -> Option<(KeySlot, KeyName)> {
    let slot = ring.slot_on_trial()?;
    ring.slots.of(slot).candidate.map(|candidate| (slot, candidate.key))
}

/// The moment of an acceptance where it makes no difference.
pub(crate) const ACCEPTED: Input = Input::Attempted(Outcome::Accepted { at: UnixSecs(0) });
pub(crate) const REFUSED: Input = Input::Attempted(Outcome::Refused);

/// Whether a trial that was under way began anew, by the operator's will.
fn restarted(before: &State, after: &State, input: &Input) -> bool {
    let terms = |state: &State| state.ring.rotation.map(|rotation| (rotation.id, rotation.offered));
    let spares = |state: &State| {
        KeySlot::ALL.map(|slot| {
            state.ring.slots.of(slot).candidate.is_some_and(|candidate| candidate.standing == Standing::Spare)
        })
    };
    terms(before) != terms(after) || (*input == Input::Retry && spares(before) != spares(after))
}

fn forget_sequences(state: &mut State) {
    state.ring = unnumbered(state.ring);
    state.durable = unnumbered(state.durable);
    if let Disk::Writing { ring, .. } = &mut state.disk {
        *ring = unnumbered(*ring);
    }
    state.reported = state.reported.map(|report| Report { sequence: 0, ..report });
}

fn unnumbered(ring: Ring) -> Ring {
    Ring { sequence: 0, ..ring }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// Two multiplicative hashes side by side: 128 bits, so that two of a million states won't share a name.
struct Lanes(u64, u64);

impl Lanes {
    /// The first digits of pi.
    const NEW: Self = Self(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344);

    fn of(value: &impl Hash) -> u128 {
        let mut lanes = Self::NEW;
        value.hash(&mut lanes);
        lanes.name()
    }

    fn name(&self) -> u128 {
        (u128::from(self.0) << 64) | u128::from(self.1)
    }
}

impl Hasher for Lanes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.1 = (self.1.rotate_left(29) ^ value.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}
