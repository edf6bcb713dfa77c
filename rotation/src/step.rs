//! The step. [`absorb`] takes the input in; [`ask`] then asks for whatever the new state lacks. Since everything
//! that is asked for follows from the state, no input can leave the machine without a next move (I4, I7).

use crate::backoff::{self, Policy, delay_ms, share};
use crate::offer::Desired;
use crate::ring::{KeyName, KeySlot, Ring, Standing, UnixSecs};
use crate::state::{
    Attempt, Disk, Effects, Input, KeySet, Outcome, Phase, Purpose, State, Timer, Trial, Trouble, Window,
};

/// Takes `input` in and says what to do next. Total: every input is defined in every state; one that makes no
/// sense there (a result of nothing, a timer of something that is over) changes nothing.
///
/// `chance` is fresh randomness for the jitter of the waits that this step may ask for.
pub fn step(policy: &Policy, mut state: State, input: Input, chance: u16) -> (State, Effects) {
    let mut effects = Effects::default();
    let pace = Pace { policy, chance };
    absorb(&mut state, input, &pace, &mut effects);
    ask(&mut state, &pace, &mut effects);
    (state, effects)
}

struct Pace<'a> {
    policy: &'a Policy,
    chance: u16,
}

impl Pace<'_> {
    fn retry_ms(&self, failures: u8) -> u64 {
        delay_ms(self.policy.retry_delay_ms_min, self.policy.retry_delay_ms_max, failures, self.chance)
    }

    fn after_retry(&self, failures: u8) -> u8 {
        backoff::next_failures(self.policy.retry_delay_ms_min, self.policy.retry_delay_ms_max, failures)
    }

    fn trial_ms(&self, failures: u8) -> u64 {
        delay_ms(self.policy.trial_delay_ms_min, self.policy.trial_delay_ms_max, failures, self.chance)
    }

    fn after_trial(&self, failures: u8) -> u8 {
        backoff::next_failures(self.policy.trial_delay_ms_min, self.policy.trial_delay_ms_max, failures)
    }

    fn store_ms(&self, failures: u8) -> u64 {
        delay_ms(self.policy.store_delay_ms_min, self.policy.store_delay_ms_max, failures, self.chance)
    }

    fn after_store(&self, failures: u8) -> u8 {
        backoff::next_failures(self.policy.store_delay_ms_min, self.policy.store_delay_ms_max, failures)
    }

    fn reconnect_ms(&self) -> u64 {
        share(self.policy.reconnect_delay_ms_max, self.chance)
    }

    /// Early by up to a sixteenth, so that a fleet that connected at once does not renew at once.
    fn renewal_ms(&self) -> u64 {
        let after = self.policy.renew_after_ms;
        after - share(after / 16, self.chance)
    }
}

fn absorb(state: &mut State, input: Input, pace: &Pace<'_>, effects: &mut Effects) {
    match input {
        Input::Boot => {}
        Input::Desired(desired) => {
            if state.attempt.is_some() {
                state.deferred = Some(desired);
            } else {
                take_up(state, desired, pace);
            }
        }
        Input::Brought(brought) => {
            // The key that an attempt may prove must not leave the ring meanwhile (I1).
            let tried = state.attempt.map(|attempt| attempt.key);
            if state.ring.brought.is_some_and(|earlier| Some(earlier.key) == tried) {
                state.deferred_key = Some(brought);
            } else {
                state.ring.bring(brought);
            }
        }
        Input::Retry => retry_set_aside(state, pace),
        Input::Stored(is_certain) => stored(state, is_certain, pace, effects),
        Input::Attempted(outcome) => {
            if let Some(attempt) = state.attempt.take() {
                match outcome {
                    Outcome::Accepted { at } => accepted(state, attempt.key, at, pace, effects),
                    Outcome::Refused => refused(state, attempt, pace, effects),
                    Outcome::Unknown(trouble) => unknown(state, attempt.purpose, trouble, pace, effects),
                }
                if let Some(desired) = state.deferred.take() {
                    take_up(state, desired, pace);
                }
                take_up_waiting(state, pace);
                if let Some(brought) = state.deferred_key.take() {
                    state.ring.bring(brought);
                }
            }
        }
        Input::Lost => lost(state, pace, effects),
        Input::Fired(timer) => fired(state, timer, pace, effects),
    }
}

fn take_up(state: &mut State, desired: Desired, pace: &Pace<'_>) {
    state.invalid = None;
    state.waiting = None;
    match desired {
        // Withdrawing an offer does not withdraw a key: the hub may know it already. Its trial goes on.
        Desired::Nothing => {}
        Desired::Invalid(invalid) => state.invalid = Some(invalid),
        Desired::Offer(offer) => {
            let is_known = state
                .ring
                .rotation
                .is_some_and(|known| known.id == offer.rotation && known.offered == offer.keys);
            if !is_known {
                state.waiting = Some(offer);
                take_up_waiting(state, pace);
            }
        }
    }
}

/// Takes up the offer that waits, if the budget allows it (I4). Not while an attempt is under way (I1).
fn take_up_waiting(state: &mut State, pace: &Pace<'_>) {
    if state.attempt.is_some() || state.ring.offers_spent >= pace.policy.offers_max {
        return;
    }
    if let Some(offer) = state.waiting.take() {
        state.ring.offers_spent += 1;
        state.ring.take_up(offer);
        state.trial = Trial::NEW;
        state.trouble = None;
    }
}

/// Costs a place in the budget like an offer: everybody with the right to call direct methods can ask for it (I4).
fn retry_set_aside(state: &mut State, pace: &Pace<'_>) {
    let Some(rotation) = &mut state.ring.rotation else {
        return;
    };
    if state.ring.offers_spent >= pace.policy.offers_max {
        return;
    }
    let mut is_any_retried = false;
    for slot in KeySlot::ALL {
        let offered = *rotation.offered.of(slot);
        if let Some(candidate) = &mut state.ring.slots.of_mut(slot).candidate {
            if offered == Some(candidate.key) && candidate.standing == Standing::Spare {
                candidate.standing = Standing::Trying;
                rotation.verdict = None;
                state.trial = Trial::NEW;
                state.trouble = None;
                is_any_retried = true;
            }
        }
    }
    if is_any_retried {
        state.ring.offers_spent += 1;
    }
}

fn stored(state: &mut State, is_certain: bool, pace: &Pace<'_>, effects: &mut Effects) {
    let Disk::Writing { ring, failures } = state.disk else {
        return;
    };
    if is_certain {
        state.durable = ring;
        state.is_unsettled = false;
        state.stored = KeySet::of(&ring);
        state.disk = Disk::Idle;
    } else {
        effects.arm(Timer::Store, pace.store_ms(failures));
        state.disk = Disk::Failed { failures: pace.after_store(failures) };
    }
}

fn accepted(state: &mut State, key: KeyName, at: UnixSecs, pace: &Pace<'_>, effects: &mut Effects) {
    let trial = |ring: &Ring| (ring.slot_on_trial(), candidate_on_trial(ring));
    let on_trial = trial(&state.ring);
    state.ring.promote(key, at);
    // A connection that takes over goes on being what the earlier one was: settled, or on its way there.
    let takes_over = state.live.is_some();
    state.is_settled &= takes_over;
    state.live = Some(key);
    state.is_renewal_due = false;
    state.pacing.is_waiting = false;
    state.pacing.cursor = 0;
    state.pacing.unanswered = 0;
    state.trouble = None;
    if trial(&state.ring) != on_trial {
        state.trial = Trial::NEW;
    } else if state.trial.window == Window::Closed {
        // Whatever this connection was made for, it shows that the hub accepts a key of ours now.
        state.trial.phase = Phase::Last;
        state.trial.is_waiting = false;
    }
    if state.is_settled {
        state.pacing.failures = 0;
    } else if !takes_over {
        effects.arm(Timer::Settled, pace.policy.settled_after_ms);
    }
    effects.arm(Timer::Renewal, pace.renewal_ms());
}

fn refused(state: &mut State, attempt: Attempt, pace: &Pace<'_>, effects: &mut Effects) {
    let is_candidate = candidate_on_trial(&state.ring) == Some(attempt.key);
    if is_candidate {
        state.trouble = Some(Trouble::Refused);
        candidate_refused(state, pace, effects);
    } else {
        state.trouble = Some(Trouble::ActiveRefused);
    }
    match attempt.purpose {
        Purpose::Trial => {}
        Purpose::Connect => next_key(state, pace, effects),
        Purpose::Control => {
            // The hub no longer accepts the key of the connection that still stands. Find one that it accepts
            // while that connection carries on.
            wait_for_trial(state, pace, effects);
            state.is_renewal_due = state.live.is_some();
            state.pacing.cursor = 0;
            next_key(state, pace, effects);
        }
    }
}

fn candidate_refused(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    match (state.trial.window, state.trial.phase) {
        (Window::Closed, Phase::Last) => {
            if let Some(slot) = state.ring.slot_on_trial() {
                state.ring.set_aside(slot);
                state.trial = Trial::NEW;
            }
        }
        (Window::Closed, Phase::Candidate | Phase::Control) => {
            state.trial.phase = Phase::Control;
            state.trial.is_waiting = false;
        }
        (Window::Unopened, _) => {
            state.trial.window = Window::Open;
            effects.arm(Timer::Window, pace.policy.propagation_window_ms);
            wait_for_trial(state, pace, effects);
        }
        (Window::Open, _) => wait_for_trial(state, pace, effects),
    }
}

fn unknown(state: &mut State, purpose: Purpose, trouble: Trouble, pace: &Pace<'_>, effects: &mut Effects) {
    state.trouble = Some(trouble);
    if state.trial.phase == Phase::Last {
        // A control counts for the attempt that follows it, and for no other.
        state.trial.phase = Phase::Control;
    }
    match purpose {
        Purpose::Trial | Purpose::Control => wait_for_trial(state, pace, effects),
        Purpose::Connect => {
            // The network's trouble is no key's fault: the same key again. Only a hub that is reached and stays
            // silent might be telling us something about the key.
            if trouble == Trouble::Unanswered {
                state.pacing.unanswered = state.pacing.unanswered.saturating_add(1);
                if state.pacing.unanswered >= pace.policy.unanswered_max {
                    state.pacing.unanswered = 0;
                    advance_cursor(state);
                }
            }
            wait_for_retry(state, pace, effects);
        }
    }
}

fn lost(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    if state.live.take().is_none() {
        return;
    }
    state.is_renewal_due = false;
    // A last attempt under way keeps its control: a hub may close this connection while it refuses the candidate.
    state.pacing.is_waiting = true;
    let delay_ms = match state.pacing.failures {
        0 => pace.reconnect_ms(),
        failures => pace.retry_ms(failures),
    };
    effects.arm(Timer::Retry, delay_ms);
    if !state.is_settled {
        // Lost again so soon: another agent with our name, a throttled hub. No duel, no storm.
        state.pacing.failures = pace.after_retry(state.pacing.failures);
    }
    state.is_settled = false;
}

fn fired(state: &mut State, timer: Timer, pace: &Pace<'_>, effects: &mut Effects) {
    match timer {
        Timer::Retry => state.pacing.is_waiting = false,
        Timer::Trial => state.trial.is_waiting = false,
        Timer::Window => {
            if state.trial.window == Window::Open {
                state.trial.window = Window::Closed;
                state.trial.phase = Phase::Control;
                state.trial.is_waiting = false;
            }
        }
        Timer::Store => {
            if let Disk::Failed { failures } = state.disk {
                write(state, failures, effects);
            }
        }
        Timer::Settled => {
            if state.live.is_some() {
                // Trust comes back step by step: of two agents that kick each other out, each holds the connection
                // for as long as the other waits, which must not count as peace.
                state.pacing.failures = state.pacing.failures.saturating_sub(1);
                state.is_settled = state.pacing.failures == 0;
                if !state.is_settled {
                    effects.arm(Timer::Settled, pace.policy.settled_after_ms);
                }
            }
        }
        Timer::Renewal => state.is_renewal_due = state.live.is_some(),
        Timer::Offers => {
            if core::mem::take(&mut state.is_earning) {
                state.ring.offers_spent = state.ring.offers_spent.saturating_sub(1);
                take_up_waiting(state, pace);
            }
        }
    }
}

/// The key in front was refused: the next one soon, or a new round after a longer wait.
fn next_key(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    state.pacing.unanswered = 0;
    advance_cursor(state);
    if state.pacing.cursor == 0 {
        wait_for_retry(state, pace, effects);
    } else {
        state.pacing.is_waiting = true;
        effects.arm(Timer::Retry, pace.policy.fallback_delay_ms);
    }
}

fn advance_cursor(state: &mut State) {
    let next = state.pacing.cursor.saturating_add(1);
    state.pacing.cursor = if usize::from(next) < usable_keys(state).count() { next } else { 0 };
}

fn wait_for_retry(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    state.pacing.is_waiting = true;
    effects.arm(Timer::Retry, pace.retry_ms(state.pacing.failures));
    state.pacing.failures = pace.after_retry(state.pacing.failures);
}

fn wait_for_trial(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    state.trial.is_waiting = true;
    effects.arm(Timer::Trial, pace.trial_ms(state.trial.failures));
    state.trial.failures = pace.after_trial(state.trial.failures);
}

fn candidate_on_trial(ring: &Ring) -> Option<KeyName> {
    ring.slot_on_trial().and_then(|slot| ring.slots.of(slot).candidate).map(|candidate| candidate.key)
}

/// The keys that may be tried (I2), in order.
fn usable_keys(state: &State) -> impl Iterator<Item = KeyName> {
    state.ring.keys_in_order().into_iter().flatten().filter(|key| state.is_surely_stored(*key))
}

/// Asks for what the state lacks: a write, an attempt, a report.
fn ask(state: &mut State, pace: &Pace<'_>, effects: &mut Effects) {
    let is_stale = state.is_unsettled || !state.ring.says_the_same_as(&state.durable);
    if state.disk == Disk::Idle && is_stale {
        write(state, 0, effects);
    }
    if state.attempt.is_none() {
        state.attempt = next_attempt(state, pace.policy);
        effects.connect = state.attempt.map(|attempt| attempt.key);
    }
    // A ring that was read at the start may owe something, too.
    if state.ring.offers_spent == 0 {
        state.is_earning = false;
    } else if !state.is_earning {
        state.is_earning = true;
        effects.arm(Timer::Offers, pace.policy.offer_interval_ms);
    }
    let report = state.report();
    if state.reported != Some(report) {
        state.reported = Some(report);
        effects.report = Some(report);
    }
}

fn write(state: &mut State, failures: u8, effects: &mut Effects) {
    state.ring.sequence = state.ring.sequence.saturating_add(1);
    // From now on the disk may hold either image.
    state.stored = state.stored.and(&KeySet::of(&state.ring));
    state.disk = Disk::Writing { ring: state.ring, failures };
    effects.store = Some(state.ring);
}

fn next_attempt(state: &State, policy: &Policy) -> Option<Attempt> {
    if state.live.is_none() || state.is_renewal_due {
        if state.pacing.is_waiting {
            return None;
        }
        if policy.is_single_connection && state.live.is_some() {
            // The connection ends in any case. If the candidate is refused, the key in use is next.
            if let Some(attempt) = next_trial(state).filter(|attempt| attempt.purpose == Purpose::Trial) {
                return Some(attempt);
            }
        }
        let key = usable_keys(state).nth(state.pacing.cursor.into()).or_else(|| usable_keys(state).next())?;
        return Some(Attempt { key, purpose: Purpose::Connect });
    }
    // The last attempt has to follow its control at once (I3).
    if policy.is_single_connection && state.trial.phase != Phase::Last { None } else { next_trial(state) }
}

/// What the trial of the candidate needs next, beside the connection that stands.
fn next_trial(state: &State) -> Option<Attempt> {
    let candidate = candidate_on_trial(&state.ring).filter(|key| state.is_surely_stored(*key))?;
    match state.trial.phase {
        _ if state.trial.is_waiting => None,
        Phase::Candidate | Phase::Last => Some(Attempt { key: candidate, purpose: Purpose::Trial }),
        Phase::Control => Some(Attempt { key: state.live?, purpose: Purpose::Control }),
    }
}
