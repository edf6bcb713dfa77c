//! Waiting for one's turn, in the order of arrival, for each category by itself.
//!
//! A category's calls stand in one line. Calls that were decided on what was just read go to its front, where they and the first
//! of the others take turns: they wait for few, and nobody waits for ever. Whoever gives up waiting leaves the line
//! and has used nothing up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{self, Notify};
use tokio::time::{Instant, timeout_at};

use super::limits::{Category, Limits};
use super::pace::Pace;
use super::window::Window;

/// Where a call lines up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Front,
    Back,
}

/// What came of a call, as far as it concerns the calls after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Served,
    /// 429, with the hub's `Retry-After` where it gave one.
    Throttled(Option<Duration>),
    /// No answer, or one that says that the hub has trouble.
    Failed,
}

/// What was asked of a hub in one category, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Calls that were sent, each repetition included.
    pub(crate) calls: u64,
    /// What they count to the hub's limits.
    pub(crate) operations: u64,
    /// Calls that got 429.
    pub(crate) throttled: u64,
    /// Calls that got no answer, or 5xx.
    pub(crate) failed: u64,
    /// Calls that had to wait for their turn.
    pub(crate) waits: u64,
    /// How long they waited, all together.
    pub(crate) waited: Duration,
    /// The longest of these waits.
    pub(crate) waited_max: Duration,
}

pub(super) struct Line {
    /// Held by the first of the back.
    back: sync::Mutex<()>,
    /// Held by whoever is next.
    front: sync::Mutex<()>,
    state: Mutex<State>,
    /// Wakes whoever is next: there is only one.
    changed: Notify,
}

struct State {
    pace: Pace,
    window: Window,
    usage: Usage,
}

/// The right to send one call. Dropped before [`Turn::send`], it goes back as if it had never been.
pub(super) struct Turn<'a> {
    line: &'a Line,
    cost: u32,
    waited: Duration,
}

/// The hub has said that it wants no call of this category for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed(pub(super) Duration);

/// A call under way. Dropped before [`Flight::land`], it counts as sent, and nothing is learned from it.
pub(super) struct Flight<'a> {
    line: &'a Line,
    sent_at: Instant,
}

impl Line {
    pub(super) fn new(category: Category, limits: Limits) -> Self {
        let pace = Pace::new(limits.per_sec(category), Instant::now()).at_least(category.least_per_sec());
        let window = Window::new(category.in_flight_max());
        Self {
            back: sync::Mutex::default(),
            front: sync::Mutex::default(),
            state: Mutex::new(State { pace, window, usage: Usage::default() }),
            changed: Notify::new(),
        }
    }

    /// Waits for it; an error at once, also for those who wait, if the hub is not to be asked for a long time.
    pub(super) async fn turn(&self, cost: u32, place: Place) -> Result<Turn<'_>, Closed> {
        let since = Instant::now();
        let _back = match place {
            Place::Back => Some(self.back.lock().await),
            Place::Front => None,
        };
        let _front = self.front.lock().await;
        loop {
            let now = Instant::now();
            let admitted = self.state().admit(cost, now);
            match admitted {
                Ok(()) => return Ok(Turn { line: self, cost, waited: now.saturating_duration_since(since) }),
                Err(Later::At(at)) => drop(timeout_at(at, self.changed.notified()).await),
                Err(Later::Never(closed)) => return Err(closed),
                Err(Later::WhenOneEnds) => self.changed.notified().await,
            }
        }
    }

    /// How long the pace will keep the next call of this cost waiting, whatever stands in line.
    pub(super) fn ready_in(&self, cost: u32) -> Duration {
        let now = Instant::now();
        self.state().pace.ready_at(cost, now).saturating_duration_since(now)
    }

    pub(super) fn usage(&self) -> Usage {
        self.state().usage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the lock is gone: who waits takes it at once.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }
}

/// The lines of one hub.
pub(super) struct Lines {
    registry: Line,
    twin_reads: Line,
    twin_updates: Line,
    queries: Line,
    methods: Line,
}

impl Lines {
    pub(super) fn new(limits: Limits) -> Self {
        let line = |category| Line::new(category, limits);
        Self {
            registry: line(Category::Registry),
            twin_reads: line(Category::TwinReads),
            twin_updates: line(Category::TwinUpdates),
            queries: line(Category::Queries),
            methods: line(Category::Methods),
        }
    }

    pub(super) fn of(&self, category: Category) -> &Line {
        match category {
            Category::Registry => &self.registry,
            Category::TwinReads => &self.twin_reads,
            Category::TwinUpdates => &self.twin_updates,
            Category::Queries => &self.queries,
            Category::Methods => &self.methods,
        }
    }
}

enum Later {
    At(Instant),
    WhenOneEnds,
    Never(Closed),
}

impl State {
    fn admit(&mut self, cost: u32, now: Instant) -> Result<(), Later> {
        if let Some(left) = self.pace.closed_for(now) {
            return Err(Later::Never(Closed(left)));
        }
        if self.window.is_full() {
            return Err(Later::WhenOneEnds);
        }
        let at = self.pace.ready_at(cost, now);
        if at > now {
            return Err(Later::At(at));
        }
        self.pace.take(cost, now);
        self.window.enter();
        Ok(())
    }
}

impl<'a> Turn<'a> {
    /// The call goes out.
    pub(super) fn send(self) -> Flight<'a> {
        let turn = std::mem::ManuallyDrop::new(self);
        let mut state = turn.line.state();
        let usage = &mut state.usage;
        usage.calls += 1;
        usage.operations += u64::from(turn.cost);
        usage.waits += u64::from(!turn.waited.is_zero());
        usage.waited += turn.waited;
        usage.waited_max = usage.waited_max.max(turn.waited);
        Flight { line: turn.line, sent_at: Instant::now() }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.line.change(|state| {
            state.pace.give_back(self.cost);
            state.window.leave();
        });
    }
}

impl Flight<'_> {
    /// What came of it. `random` spreads the pauses of several programs.
    pub(super) fn land(self, outcome: Outcome, random: u32) {
        let (now, sent_at) = (Instant::now(), self.sent_at);
        let mut state = self.line.state();
        match outcome {
            Outcome::Served => {
                state.pace.served(sent_at);
                state.window.served(sent_at, now);
            }
            Outcome::Throttled(retry_after) => {
                state.usage.throttled += 1;
                state.pace.throttled(sent_at, retry_after, now, random);
                state.window.shrink(sent_at, now);
            }
            Outcome::Failed => {
                state.usage.failed += 1;
                state.window.shrink(sent_at, now);
            }
        }
        // The rest is `drop`'s.
        drop(state);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.line.change(|state| state.window.leave());
    }
}
