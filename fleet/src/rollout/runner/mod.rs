//! Carries a rollout out: wave by wave, so many slots at a time, until all have ended or something says stop.
//!
//! One loop owns the ledger. Looks and renewals run beside it; it writes down what is meant before it begins a slot, and
//! what came of it before anything follows from that. So nothing here needs to be remembered: a runner that starts on a ledger
//! goes on, whatever ended the one before.

mod course;
mod queue;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};
use tokio::time::sleep;

use super::engine::{Engine, Look, SlotResult};
use super::gate::{self, Ended};
use super::ledger::{DeviceRow, Ledger, Prints, Rollout, RolloutState, State, Wish};
use super::progress::Progress;
use super::window::{self, Opening};
use crate::failure::Failure;
use queue::Queue;

/// Pause between two looks at what another terminal wishes.
const WISH_PAUSE: Duration = Duration::from_millis(500);

/// Tells the time, in Unix milliseconds.
pub(crate) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a runner needs besides ledger and engine.
pub(crate) struct Means {
    /// Slots under way at the same time that the hub's limits allow, where they are known.
    pub(crate) places_max: Option<usize>,
    pub(crate) clock: Clock,
    pub(crate) progress: Progress,
    /// Each message is a signal: the first one pauses, the second one leaves at once.
    pub(crate) signals: mpsc::Receiver<()>,
}

/// What a task beside the loop brings.
enum Came {
    Looked { look: Result<Look, SlotResult>, is_deep: bool },
    Renewed(SlotResult),
}

struct Runner<'a, E> {
    ledger: &'a mut Ledger,
    engine: Arc<E>,
    rollout: Rollout,
    rows: Vec<DeviceRow>,
    queue: Queue,
    /// Devices of each wave that have not ended.
    open_by_wave: Vec<u32>,
    ended: Ended,
    tasks: JoinSet<(u32, Came)>,
    /// Whose a task is, in case it breaks.
    owners: HashMap<task::Id, u32>,
    clock: Clock,
    progress: Progress,
    /// Nothing more is begun, and this is why.
    stop: Option<(RolloutState, Option<String>)>,
    /// The ledger could not be written.
    trouble: Option<Failure>,
    told_opening: Option<Opening>,
    places: usize,
    /// The wave whose outcome opens or closes the way to the next.
    wave_checked: usize,
}

/// Runs until the rollout has ended, is stopped, or too many have failed.
///
/// # Errors
/// The ledger can't be read or written. What has been begun is finished as far as that is possible, and is reconciled by the next
/// run.
pub(crate) async fn run<E: Engine>(
    ledger: &mut Ledger,
    engine: Arc<E>,
    mut means: Means,
) -> Result<RolloutState, Failure> {
    let rollout = ledger.rollout()?;
    let mut rows = ledger.devices()?;
    // What ended the runner before was not these devices' fault.
    rows.iter_mut()
        .filter(|row| matches!(row.state, State::First | State::Second))
        .for_each(|row| row.attempts = 0);
    ledger.set_state(RolloutState::Running, None, (means.clock)())?;
    let mut runner = Runner::new(ledger, engine.clone(), rollout, rows, &means);
    let state = runner.carry_out(&mut means.signals).await;
    means.progress.finish();
    // What stays in twins after a failure is erased by the next renewal there.
    let closed = engine.close().await;
    let state = state?;
    closed?;
    Ok(state)
}

impl<'a, E: Engine> Runner<'a, E> {
    fn new(
        ledger: &'a mut Ledger,
        engine: Arc<E>,
        rollout: Rollout,
        rows: Vec<DeviceRow>,
        means: &Means,
    ) -> Self {
        let waves = rows.iter().map(|row| row.wave as usize + 1).max().unwrap_or(0);
        let mut open_by_wave = vec![0; waves];
        for row in rows.iter().filter(|row| !row.state.is_end()) {
            if let Some(open) = open_by_wave.get_mut(row.wave as usize) {
                *open += 1;
            }
        }
        let count = |state| rows.iter().filter(|row| row.state == state).count() as u64;
        let ended = Ended {
            done: count(State::Done).saturating_sub(rollout.forgiven_done),
            failed: count(State::Failed).saturating_sub(rollout.forgiven_failed),
        };
        means.progress.start(&rows);
        let places = (rollout.spec.parallelism as usize).min(means.places_max.unwrap_or(usize::MAX));
        Self {
            queue: Queue::of(&rows, rollout.spec.soak, (means.clock)()),
            wave_checked: open_by_wave.iter().position(|open| *open > 0).unwrap_or(usize::MAX),
            ledger,
            engine,
            rollout,
            rows,
            open_by_wave,
            ended,
            tasks: JoinSet::new(),
            owners: HashMap::new(),
            clock: means.clock.clone(),
            progress: means.progress.clone(),
            stop: None,
            trouble: None,
            told_opening: None,
            places,
        }
    }

    async fn carry_out(&mut self, signals: &mut mpsc::Receiver<()>) -> Result<RolloutState, Failure> {
        let mut is_signalled = false;
        loop {
            self.look_for_reasons_to_stop();
            self.begin_what_may_be_begun();
            if self.tasks.is_empty() {
                if let Some(failure) = self.trouble.take() {
                    return Err(failure);
                }
                if let Some((state, message)) = self.stop.take() {
                    self.ledger.set_state(state, message.as_deref(), (self.clock)())?;
                    return Ok(state);
                }
                if self.open_by_wave.iter().all(|open| *open == 0) {
                    self.ledger.set_state(RolloutState::Done, None, (self.clock)())?;
                    return Ok(RolloutState::Done);
                }
            }
            tokio::select! {
                biased;
                Some(()) = signals.recv() => {
                    if is_signalled {
                        return Err(Failure::failed("left at once, as told twice; renewals under way were broken off")
                            .next("`twinkey rollout resume` finishes them first and goes on"));
                    }
                    is_signalled = true;
                    let under_way = self.tasks.len();
                    self.progress.note(&format!(
                        "pausing: {under_way} renewals under way finish first; once more leaves at once"
                    ));
                    self.stop.get_or_insert((RolloutState::Paused, Some("a signal paused it".to_owned())));
                }
                Some(came) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.take(came),
                () = sleep(WISH_PAUSE) => {}
            }
        }
    }

    fn look_for_reasons_to_stop(&mut self) {
        match self.ledger.wish() {
            Err(failure) => self.give_up(failure),
            Ok(Wish::Abort) => {
                let told = (RolloutState::Aborted, Some("aborted from another terminal".to_owned()));
                // More than a pause, whatever came first.
                if self.stop.as_ref().is_none_or(|(state, _)| *state != RolloutState::Aborted) {
                    self.progress.note("aborting: renewals under way finish first");
                    self.stop = Some(told);
                }
            }
            Ok(Wish::Pause) if self.stop.is_none() => {
                self.progress.note("pausing: renewals under way finish first");
                self.stop = Some((RolloutState::Paused, Some("paused from another terminal".to_owned())));
            }
            Ok(Wish::Pause | Wish::Run) => {}
        }
        self.check_waves();
        if self.stop.is_none()
            && let Some(why) = gate::shut(&self.rollout.spec.failures, self.ended)
            && self.open_by_wave.iter().any(|open| *open > 0)
        {
            self.progress.note(&format!("no more devices are begun: {why}"));
            self.stop = Some((RolloutState::Halted, Some(why)));
        }
    }

    /// A wave of which not one device was renewed closes the way to the next one, whatever the limits say. Whoever goes on
    /// after that has seen it.
    fn check_waves(&mut self) {
        let Some(now) = self.open_by_wave.iter().position(|open| *open > 0) else { return };
        while self.wave_checked < now && self.stop.is_none() {
            let wave = self.wave_checked as u32;
            let of_wave =
                |state| self.rows.iter().filter(|row| row.wave == wave && row.state == state).count();
            let unwell = of_wave(State::Failed) + of_wave(State::Refused);
            if unwell > 0 && of_wave(State::Done) == 0 {
                let why =
                    format!("none of wave {} was renewed: {unwell} have failed or were refused", wave + 1);
                self.progress.note(&format!("no more devices are begun: {why}"));
                self.stop = Some((RolloutState::Halted, Some(why)));
            }
            self.wave_checked += 1;
        }
    }

    fn begin_what_may_be_begun(&mut self) {
        let spec = &self.rollout.spec;
        let (places, opening) = (self.places, window::opening(&spec.windows, (self.clock)()));
        self.tell(opening);
        while self.tasks.len() < places && self.stop.is_none() && self.trouble.is_none() {
            let wave = self.open_by_wave.iter().position(|open| *open > 0);
            let Some(number) = self.queue.next((self.clock)(), opening == Opening::Open, wave) else {
                return;
            };
            self.begin(number);
        }
    }

    /// Tells when there is something to wait for.
    fn tell(&mut self, opening: Opening) {
        if self.told_opening == Some(opening) {
            return;
        }
        if let Some(text) = window::told_opening(&self.rollout.spec.windows, (self.clock)()) {
            self.progress.note(&text);
        }
        self.told_opening = Some(opening);
    }

    fn take(&mut self, came: Result<(task::Id, (u32, Came)), task::JoinError>) {
        match came {
            Ok((id, (number, came))) => {
                self.owners.remove(&id);
                self.came(number, came);
            }
            Err(broken) => {
                let Some(number) = self.owners.remove(&broken.id()) else { return };
                let result = SlotResult::Failed {
                    code: "error",
                    message: format!("the renewal broke off: {broken}"),
                    after: Prints::default(),
                    may_retry: true,
                    pause: Duration::ZERO,
                };
                self.came(number, Came::Renewed(result));
            }
        }
    }

    fn spawn(&mut self, number: u32, work: impl Future<Output = Came> + Send + 'static) {
        let task = self.tasks.spawn(async move { (number, work.await) });
        self.owners.insert(task.id(), number);
    }

    /// Changes a device's row and keeps it. Whether it could be kept.
    fn keep(&mut self, number: u32, change: impl FnOnce(&mut DeviceRow)) -> bool {
        let Some(row) = self.rows.get_mut(number as usize) else { return false };
        let earlier = row.state;
        change(row);
        let (now, wave) = (row.state, row.wave as usize);
        if let Err(failure) = self.ledger.keep([&*row], (self.clock)()) {
            self.give_up(failure);
            return false;
        }
        if now.is_end() && !earlier.is_end() {
            if let Some(open) = self.open_by_wave.get_mut(wave) {
                *open = open.saturating_sub(1);
            }
            match now {
                State::Done => self.ended.done += 1,
                State::Failed => self.ended.failed += 1,
                State::Waiting
                | State::First
                | State::Soaking
                | State::Second
                | State::Refused
                | State::Skipped
                | State::Gone => {}
            }
        }
        self.progress.moved(row, earlier);
        true
    }

    fn give_up(&mut self, failure: Failure) {
        self.trouble.get_or_insert(failure);
    }
}
