//! A world with a clock: every story runs on virtual time, from one armed timer to the next.

use twinkey_rotation::{
    Desired, Effects, Input, KeyName, Outcome, Policy, Reason, Ring, State, Status, Timer, Trouble, UnixSecs,
};

use super::healing::OnRefusal;
use super::{Act, Event, REFUSED, World, slots};

pub(crate) const SECOND: u64 = 1_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const HOUR: u64 = 60 * MINUTE;

/// More events than this without a moment passing are a storm.
const EVENTS_AT_ONCE_MAX: usize = 50;

/// More attempts than any story here needs.
const ATTEMPTS_MAX: usize = 20_000;

/// A gateway, its disk, its hub and its operator. Fields are the levers of a story; every step is checked.
pub(crate) struct Timetable {
    pub(crate) world: World,
    pub(crate) policy: Policy,
    pub(crate) now_ms: u64,
    /// The registry and the document in the twin.
    pub(crate) hub: Act,
    /// Keys that the hub refuses although they are in the registry, once for each mention.
    pub(crate) refuses_once: Vec<KeyName>,
    /// The hub refuses every key: wrong clock, disabled device.
    pub(crate) refuses_all: bool,
    pub(crate) on_refusal: OnRefusal,
    /// What every attempt runs into.
    pub(crate) trouble: Option<Trouble>,
    /// Connections stand only this long.
    pub(crate) stands_ms: Option<u64>,
    pub(crate) does_disk_work: bool,
    /// Attempts and writes stay under way until the story ends them.
    pub(crate) is_held_up: bool,
    /// The jitter: 0 makes every wait as short as it can be.
    pub(crate) chance: u16,
    /// When which key was tried.
    pub(crate) attempts: Vec<(u64, KeyName)>,
    /// How many of them were accepted.
    pub(crate) acceptances: usize,
    /// When the machine had the connection closed for an attempt, where there can be only one.
    pub(crate) breaks: Vec<u64>,
    /// When which ring was written.
    pub(crate) writes: Vec<(u64, Ring)>,
    /// Whether the device was ever without a connection since it had the first one.
    pub(crate) was_dark: bool,
    /// The power is cut before the step of this number, counted down; the disk then holds the image of that number.
    pub(crate) power_cut: Option<(usize, usize)>,
    deadlines_ms: [Option<u64>; Timer::COUNT],
    lost_at_ms: Option<u64>,
    is_document_due: bool,
}

impl Timetable {
    pub(crate) fn new(policy: Policy, ring: Ring, primary: KeyName, secondary: KeyName) -> Self {
        let world = World::new(ring, &policy, false).expect("a sound start");
        let attempts = world.trying.map(|key| (0, key)).into_iter().collect();
        let mut table = Self {
            world,
            policy,
            now_ms: 0,
            hub: Act { registry: slots(Some(primary), Some(secondary)), document: Desired::Nothing },
            refuses_once: Vec::new(),
            refuses_all: false,
            on_refusal: OnRefusal::KeepsLive,
            trouble: None,
            stands_ms: None,
            does_disk_work: true,
            is_held_up: false,
            chance: 0,
            attempts,
            acceptances: 0,
            writes: Vec::new(),
            breaks: Vec::new(),
            was_dark: false,
            power_cut: None,
            deadlines_ms: [None; Timer::COUNT],
            lost_at_ms: None,
            is_document_due: false,
        };
        table.settle();
        table
    }

    /// The operator regenerates keys and writes a document. A live connection brings it as a patch.
    pub(crate) fn operate(&mut self, primary: KeyName, secondary: KeyName, document: Desired) {
        self.hub = Act { registry: slots(Some(primary), Some(secondary)), document };
        self.is_document_due = self.world.live.is_some();
        self.settle();
    }

    pub(crate) fn run(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    /// Runs for `ms` at most; true as soon as `is_reached` holds.
    pub(crate) fn run_until(&mut self, ms: u64, is_reached: impl Fn(&Self) -> bool) -> bool {
        let end_ms = self.now_ms + ms;
        self.settle();
        while !is_reached(self) {
            let (at, input) = self.next().unwrap_or((u64::MAX, Input::Boot));
            if at > end_ms {
                self.now_ms = end_ms;
                return false;
            }
            self.now_ms = at;
            self.tell(input);
            self.settle();
        }
        true
    }

    /// What happens next, and when.
    pub(crate) fn next(&self) -> Option<(u64, Input)> {
        let deadline = |timer| self.deadlines_ms[timer as usize].map(|at| (at, Input::Fired(timer)));
        let lost = self.lost_at_ms.map(|at| (at, Input::Lost));
        lost.into_iter().chain(Timer::ALL.into_iter().filter_map(deadline)).min_by_key(|(at, _)| *at)
    }

    /// Tells the machine `input`, does what it asks for, and checks everything.
    pub(crate) fn tell(&mut self, input: Input) {
        match input {
            Input::Fired(timer) => self.deadlines_ms[timer as usize] = None,
            Input::Lost => self.lost_at_ms = None,
            Input::Attempted(Outcome::Accepted { .. }) => {
                self.acceptances += 1;
                self.lost_at_ms = self.stands_ms.map(|ms| self.now_ms + ms);
            }
            Input::Boot
            | Input::Desired(_)
            | Input::Brought(_)
            | Input::Retry
            | Input::Stored(_)
            | Input::Attempted(_) => {}
        }
        let event = match &mut self.power_cut {
            Some((0, image)) => {
                let image = *image % self.world.images().count();
                self.power_cut = None;
                self.deadlines_ms = [None; Timer::COUNT];
                self.lost_at_ms = None;
                self.is_document_due = false;
                Event::PowerCut(image)
            }
            Some((steps, _)) => {
                *steps -= 1;
                Event::Told(input)
            }
            None => Event::Told(input),
        };
        let effects = self.world.apply(&self.policy, event, self.chance);
        let judged = effects.and_then(|effects| self.world.check(&self.policy).map(|()| effects));
        let effects =
            judged.unwrap_or_else(|error| panic!("{error}\nby {event:?}\nin {:?}", self.world.state));
        self.note(&effects);
    }

    /// Starts again from `ring`, as after a restore of an old image.
    pub(crate) fn restore(&mut self, ring: Ring) {
        self.world.accepted_last = None;
        self.deadlines_ms = [None; Timer::COUNT];
        self.lost_at_ms = None;
        self.is_document_due = false;
        let effects = self.world.restart_from(&self.policy, ring).expect("a sound start");
        self.note(&effects);
        self.settle();
    }

    fn note(&mut self, effects: &Effects) {
        for (timer, delay_ms) in effects.timers.into_iter().flatten() {
            self.deadlines_ms[timer as usize] = Some(self.now_ms + delay_ms);
        }
        self.attempts.extend(effects.connect.map(|key| (self.now_ms, key)));
        self.writes.extend(effects.store.map(|ring| (self.now_ms, ring)));
        assert!(self.attempts.len() < ATTEMPTS_MAX, "a storm: {} ms, {:?}", self.now_ms, self.state());
        self.was_dark |= self.world.has_connected && self.world.live.is_none();
    }

    /// Lets everything end that is under way and takes no time.
    fn settle(&mut self) {
        for _ in 0..EVENTS_AT_ONCE_MAX {
            let Some(input) = self.next_result() else {
                return;
            };
            self.tell(input);
        }
        panic!("a storm at {} ms: {:?}", self.now_ms, self.world.state);
    }

    fn next_result(&mut self) -> Option<Input> {
        if self.is_held_up {
            return None;
        }
        if self.world.writing.is_some() {
            return Some(Input::Stored(self.does_disk_work));
        }
        if self.policy.is_single_connection && self.world.trying.is_some() && self.world.live.is_some() {
            self.breaks.push(self.now_ms);
            return Some(Input::Lost);
        }
        if std::mem::take(&mut self.is_document_due) && self.world.has_connected {
            return Some(Input::Desired(self.hub.document));
        }
        self.world.trying.map(|key| self.answer(key))
    }

    fn answer(&mut self, key: KeyName) -> Input {
        if let Some(trouble) = self.trouble {
            return Input::Attempted(Outcome::Unknown(trouble));
        }
        let excused = self.refuses_once.iter().position(|refused| *refused == key);
        if !self.refuses_all && excused.is_none() && self.hub.accepts(key) {
            self.is_document_due = true;
            return Input::Attempted(Outcome::Accepted { at: UnixSecs(self.now_ms / SECOND) });
        }
        let is_live = self.world.live.is_some();
        match self.on_refusal {
            OnRefusal::DropsThenRefuses if is_live => return Input::Lost,
            OnRefusal::RefusesThenDrops if is_live => self.lost_at_ms = Some(self.now_ms),
            OnRefusal::KeepsLive | OnRefusal::DropsThenRefuses | OnRefusal::RefusesThenDrops => {}
        }
        if let Some(excused) = excused {
            self.refuses_once.swap_remove(excused);
        }
        REFUSED
    }

    pub(crate) fn state(&self) -> &State {
        &self.world.state
    }

    pub(crate) fn status(&self) -> (Status, Option<Reason>) {
        self.world.reported.map_or((Status::Idle, None), |report| (report.status, report.reason))
    }

    pub(crate) fn is(&self, status: Status) -> bool {
        self.status().0 == status
    }

    /// The keys that were tried since `from_ms`.
    pub(crate) fn tried_since(&self, from_ms: u64) -> Vec<KeyName> {
        self.attempts.iter().filter(|(at, _)| *at >= from_ms).map(|(_, key)| *key).collect()
    }

    /// How many attempts the busiest hour saw.
    pub(crate) fn attempts_in_busiest_hour(&self) -> u64 {
        in_busiest_hour(self.attempts.iter().map(|(at, _)| *at))
    }

    /// How many writes the busiest hour saw.
    pub(crate) fn writes_in_busiest_hour(&self) -> u64 {
        in_busiest_hour(self.writes.iter().map(|(at, _)| *at))
    }
}

/// Of times in order.
fn in_busiest_hour(times: impl Iterator<Item = u64>) -> u64 {
    let times: Vec<u64> = times.collect();
    let mut first = 0;
    let mut busiest = 0;
    for (last, at) in times.iter().enumerate() {
        while times[first] + HOUR <= *at {
            first += 1;
        }
        busiest = busiest.max(last + 1 - first);
    }
    busiest as u64
}
