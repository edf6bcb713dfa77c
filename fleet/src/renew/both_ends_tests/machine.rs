//! The agent: its machine, with the disk, and its way of reading offers. Every state has a number, and every step is
//! computed once.

use std::collections::HashMap;

use twinkey_contract::KeySlot;
use twinkey_contract::report::Status;
use twinkey_rotation as rotation;
use twinkey_rotation::{
    Desired, Disk, Input, Invalid, KeyName, Outcome, PerSlot, Policy, Ring, State, Timer, UnixSecs, Window,
    step,
};

use super::words::{KeyNo, Offer, Proof, RotationNo, Said, Seal};

/// Every wait has one length, so that the counters of failures have two values and the states stay few.
const FLAT: Policy = Policy {
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
    // Enough for every offer of the operators; each false one takes from it.
    offers_max: 3,
    ..Policy::DEFAULT
};

/// An agent's state by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Agent(u32);

/// What the agent reads in the desired properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Document {
    Nothing,
    Offer(RotationNo, Offer),
    /// What no key of the device authenticates.
    Unauthentic(RotationNo),
}

/// What the agent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    Stored,
    Accepted,
    Refused,
    Lost,
    Fired(Timer),
    Read(Document),
    /// The process starts, with the last durable ring or the one that was being written.
    PowerCut {
        is_newer: bool,
    },
}

pub(super) struct Machine {
    /// Whether offers have to be authenticated.
    needs_auth: bool,
    states: Vec<State>,
    said: Vec<Said>,
    numbers: HashMap<State, Agent>,
    steps: HashMap<(Agent, Told), Agent>,
}

impl Machine {
    pub(super) fn new(needs_auth: bool) -> Self {
        Self {
            needs_auth,
            states: Vec::new(),
            said: Vec::new(),
            numbers: HashMap::new(),
            steps: HashMap::new(),
        }
    }

    /// An agent that was provisioned with both keys, the primary one first.
    pub(super) fn provisioned(&mut self, primary: KeyNo, secondary: KeyNo) -> Agent {
        let ring = Ring::provisioned(rotation::KeySlot::Primary, name(primary), Some(name(secondary)));
        self.boot(ring)
    }

    pub(super) fn state(&self, agent: Agent) -> &State {
        &self.states[agent.0 as usize]
    }

    /// What it reports.
    pub(super) fn said(&self, agent: Agent) -> Said {
        self.said[agent.0 as usize]
    }

    pub(super) fn is_connected(&self, agent: Agent) -> bool {
        self.state(agent).live.is_some()
    }

    /// The keys that it uses: the one that its connection was made with, and the one that it would connect with after a
    /// restart.
    pub(super) fn in_use(&self, agent: Agent) -> impl Iterator<Item = KeyNo> {
        let state = self.state(agent);
        [state.live, state.durable.active_key()].into_iter().flatten().map(number)
    }

    /// What the disk may hold.
    pub(super) fn images(&self, agent: Agent) -> impl Iterator<Item = Ring> {
        let state = self.state(agent);
        let writing = match state.disk {
            Disk::Writing { ring, .. } => Some(ring),
            Disk::Idle | Disk::Failed { .. } => None,
        };
        [Some(state.durable), writing].into_iter().flatten()
    }

    /// Whether every image that the disk may hold has a key for which `is_good`.
    pub(super) fn has_in_every_image(&self, agent: Agent, is_good: impl Fn(KeyNo) -> bool) -> bool {
        self.images(agent)
            .all(|ring| ring.keys_in_order().into_iter().flatten().any(|key| is_good(number(key))))
    }

    /// The key of the attempt under way.
    pub(super) fn trying(&self, agent: Agent) -> Option<KeyNo> {
        self.state(agent).attempt.map(|attempt| number(attempt.key))
    }

    /// What it may be told next, but for documents and results of attempts.
    pub(super) fn timers(&self, agent: Agent) -> impl Iterator<Item = Timer> {
        let state = self.state(agent);
        let armed = [
            (Timer::Retry, state.pacing.is_waiting),
            (Timer::Trial, state.trial.is_waiting),
            (Timer::Window, state.trial.window == Window::Open),
        ];
        armed.into_iter().filter(|(_, is_armed)| *is_armed).map(|(timer, _)| timer)
    }

    pub(super) fn tell(&mut self, agent: Agent, told: Told) -> Agent {
        if let Some(next) = self.steps.get(&(agent, told)) {
            return *next;
        }
        let state = *self.state(agent);
        let next = match told {
            Told::PowerCut { is_newer } => {
                let images: Vec<Ring> = self.images(agent).collect();
                let image = if is_newer { images.last() } else { images.first() };
                self.boot(*image.unwrap())
            }
            Told::Stored => self.step(state, Input::Stored(true)),
            Told::Accepted => self.step(state, Input::Attempted(Outcome::Accepted { at: UnixSecs(0) })),
            Told::Refused => self.step(state, Input::Attempted(Outcome::Refused)),
            Told::Lost => self.step(state, Input::Lost),
            Told::Fired(timer) => self.step(state, Input::Fired(timer)),
            Told::Read(document) => {
                let desired = self.read(&state.ring, document);
                self.step(state, Input::Desired(desired))
            }
        };
        self.steps.insert((agent, told), next);
        next
    }

    fn boot(&mut self, ring: Ring) -> Agent {
        self.step(State::new(ring), Input::Boot)
    }

    fn step(&mut self, state: State, input: Input) -> Agent {
        let (state, _) = step(&FLAT, state, input, 0);
        if let Some(agent) = self.numbers.get(&state) {
            return *agent;
        }
        let agent = Agent(u32::try_from(self.states.len()).unwrap());
        self.states.push(state);
        self.said.push(report_of(&state));
        self.numbers.insert(state, agent);
        agent
    }

    /// As the agent reads offers: one that is not authenticated with a key in a slot counts only if it is known.
    fn read(&self, ring: &Ring, document: Document) -> Desired {
        let invalid = |rotation: RotationNo, reason| {
            let rotation = Some(rotation::RotationId(rotation.into()));
            Desired::Invalid(Invalid { rotation, reason })
        };
        let (number, offer) = match document {
            Document::Nothing => return Desired::Nothing,
            Document::Unauthentic(number) => return invalid(number, rotation::Reason::Unauthenticated),
            Document::Offer(number, offer) => (number, offer),
        };
        let mut held = rotation::KeySlot::ALL.into_iter().filter_map(|slot| ring.slots.of(slot).held);
        let is_authentic = !self.needs_auth || held.any(|held| held.key == name(offer.auth));
        let keys = PerSlot { primary: offer.primary.map(name), secondary: offer.secondary.map(name) };
        let by_names = rotation::Offer { rotation: rotation::RotationId(number.into()), keys };
        let is_known =
            ring.rotation.is_some_and(|known| known.id == by_names.rotation && known.offered == keys);
        match (offer.seal, is_authentic) {
            (Seal::Agent, _) if is_authentic || is_known => Desired::Offer(by_names),
            (Seal::Party, true) => invalid(number, rotation::Reason::CannotUnseal),
            (Seal::Agent | Seal::Party, _) => invalid(number, rotation::Reason::Unauthenticated),
        }
    }
}

fn report_of(state: &State) -> Said {
    let report = state.report();
    let held = |slot| report.held.of(slot).map(|held| number(held.key));
    let active = report.active.map(|active| match active {
        rotation::KeySlot::Primary => KeySlot::Primary,
        rotation::KeySlot::Secondary => KeySlot::Secondary,
    });
    let mut said = Said {
        seal: Seal::Agent,
        sequence: u8::try_from(report.sequence).unwrap(),
        active,
        primary: held(rotation::KeySlot::Primary),
        secondary: held(rotation::KeySlot::Secondary),
        rotation: report.rotation.map(|id| u8::try_from(id.0).unwrap()),
        status: match report.status {
            rotation::Status::Committed => Status::Committed,
            rotation::Status::Rejected => Status::Rejected,
            rotation::Status::Invalid => Status::Invalid,
            rotation::Status::Idle | rotation::Status::Trying | rotation::Status::Waiting => Status::Trying,
        },
        proof: Proof::Missing,
    };
    said.proof = said.active_key().map_or(Proof::Missing, Proof::By);
    said
}

fn name(key: KeyNo) -> KeyName {
    KeyName([key; 16])
}

fn number(name: KeyName) -> KeyNo {
    name.0[0]
}
