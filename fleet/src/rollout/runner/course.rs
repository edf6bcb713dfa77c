//! One device's way through a rollout: look, first slot, soak, second slot; and what is done when something goes wrong on it.

use std::time::Duration;

use twinkey_contract::{Fingerprint, KeySlot};

use super::super::engine::{BUSY, Depth, Engine, Look, SlotRequest, SlotResult};
use super::super::ledger::{DeviceRow, Prints, State};
use super::super::spec::{Keys, Spec};
use super::{Came, Runner};

/// How much longer than the wait for its proof a slot's renewal may take as a whole: a hub that throttles needs time.
const GRACE: Duration = Duration::from_secs(10 * 60);
/// Longest pause before the second attempt; it doubles with each further one.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(10);
/// Longest pause that grows by itself.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5 * 60);
/// Attempts while somebody else has a lease: it lasts no longer than these take.
const BUSY_ATTEMPTS_MAX: u32 = 12;
/// For how long what a proof showed of the registry may serve the other slot, in milliseconds.
const JUST_MS: u64 = 2_000;
/// The code of a refusal after which the other slot may be the right one.
const SLOT_IN_USE: &str = "slot-in-use";

impl<E: Engine> Runner<'_, E> {
    /// Goes on with a device whose turn it is.
    pub(super) fn begin(&mut self, number: u32) {
        let Some(row) = self.rows.get(number as usize) else { return };
        match (row.state, row.first_slot) {
            (State::First | State::Second, Some(_)) => self.renew(number, |_| {}),
            // What is known of it is from just now, and not from before a kill.
            (State::Soaking, Some(slot))
                if self.is_just_proved(row) && row.after.of(slot.other()).is_some() =>
            {
                self.begin_second(number);
            }
            (State::Soaking, Some(_)) => self.look(number, Depth::Registry),
            (State::Waiting | State::First | State::Second | State::Soaking, _) => {
                // The second look at it goes deeper: by the report, the right slot could not be told.
                let depth = if row.attempts == 0 { Depth::Report } else { Depth::Registry };
                self.look(number, depth);
            }
            (State::Done | State::Failed | State::Refused | State::Skipped | State::Gone, _) => {}
        }
    }

    fn is_just_proved(&self, row: &DeviceRow) -> bool {
        let now = (self.clock)();
        let is_recent = |at: u64| at <= now && now - at <= JUST_MS;
        self.rollout.spec.soak.is_zero() && row.first_done_at.is_some_and(is_recent)
    }

    fn look(&mut self, number: u32, depth: Depth) {
        let Some(row) = self.rows.get(number as usize) else { return };
        let (engine, identity) = (self.engine.clone(), row.identity.clone());
        let limit = self.rollout.spec.deadline + GRACE;
        self.spawn(number, async move {
            let look = tokio::time::timeout(limit, engine.look(&identity, depth)).await;
            let look = look.unwrap_or_else(|_| Err(out_of_time(true)));
            Came::Looked { look, is_deep: depth == Depth::Registry }
        });
    }

    pub(super) fn came(&mut self, number: u32, came: Came) {
        match came {
            Came::Looked { look: Ok(look), is_deep } => self.looked(number, look, is_deep),
            Came::Looked { look: Err(result), .. } => {
                if self.keep(number, |row| row.attempts += 1) {
                    self.ended_otherwise(number, result);
                }
            }
            Came::Renewed(SlotResult::Done { before, after, rotation }) => {
                self.proved(number, before, after, rotation);
            }
            Came::Renewed(result) => self.ended_otherwise(number, result),
        }
    }

    /// Decides which slot comes first, and writes that down before anything is done about it.
    fn looked(&mut self, number: u32, look: Look, is_deep: bool) {
        let Some(row) = self.rows.get(number as usize) else { return };
        if let (State::Soaking, Some(first)) = (row.state, row.first_slot) {
            // By the key and not by its place: somebody may have swapped them meanwhile.
            let is_old = |slot: &KeySlot| {
                let print = look.prints.of(*slot);
                print.is_some() && [row.before.primary, row.before.secondary].contains(&print)
            };
            match KeySlot::ALL.into_iter().find(is_old) {
                Some(slot) => self.intend_second(number, slot, look.prints.of(slot)),
                // Both are new: it is only made sure that the device lives on that key.
                None => self.intend_second(number, first.other(), row.before.of(first.other())),
            }
            return;
        }
        // Where nobody knows the slot in use, the engine refuses, unless it was told to go on.
        let slot = look.lives_in.map_or(KeySlot::Secondary, KeySlot::other);
        if !is_deep && (look.lives_in.is_none() || look.prints.of(slot).is_none()) {
            self.look(number, Depth::Registry);
            return;
        }
        if self.stop.is_some() {
            // Nothing has been done to it.
            return;
        }
        let now = (self.clock)();
        self.renew(number, |row| {
            row.state = State::First;
            row.first_slot = Some(slot);
            row.first_replaces = look.prints.of(slot);
            row.before = row.before.or(look.prints);
            row.started_at.get_or_insert(now);
        });
    }

    fn begin_second(&mut self, number: u32) {
        let Some(row) = self.rows.get(number as usize) else { return };
        let Some(slot) = row.first_slot.map(KeySlot::other) else { return };
        self.intend_second(number, slot, row.after.of(slot));
    }

    fn intend_second(&mut self, number: u32, slot: KeySlot, replaces: Option<Fingerprint>) {
        if self.stop.is_some() {
            return;
        }
        self.renew(number, |row| {
            row.state = State::Second;
            row.first_slot = Some(slot.other());
            row.attempts = 0;
            row.second_replaces = replaces;
        });
    }

    /// Writes down what is meant, and renews the slot.
    fn renew(&mut self, number: u32, intend: impl FnOnce(&mut DeviceRow)) {
        let is_kept = self.keep(number, |row| {
            intend(row);
            row.attempts += 1;
        });
        if !is_kept {
            return;
        }
        let Some(row) = self.rows.get(number as usize) else { return };
        let Some(request) = request(row, &self.rollout.spec, self.rollout.id) else { return };
        let (engine, limit) = (self.engine.clone(), request.deadline + GRACE);
        self.spawn(number, async move {
            let result = tokio::time::timeout(limit, engine.renew(&request)).await;
            Came::Renewed(result.unwrap_or_else(|_| out_of_time(false)))
        });
    }

    /// The device has proved its new key.
    fn proved(&mut self, number: u32, before: Prints, after: Prints, rotation: Option<String>) {
        let (now, spec) = ((self.clock)(), &self.rollout.spec);
        let (has_second, soak) = (spec.keys == Keys::Both, spec.soak);
        let is_kept = self.keep(number, |row| {
            if let (State::First, Some(slot)) = (row.state, row.first_slot) {
                // In a renewal that was taken up again, what the registry had before is what was written down then.
                row.before = with(before.or(row.before), slot, row.first_replaces);
                row.first_done_at = Some(now);
                row.state = if has_second { State::Soaking } else { State::Done };
            } else {
                row.state = State::Done;
            }
            row.after = after.or(row.after);
            row.rotation = rotation.or(row.rotation.take());
            (row.reason, row.message) = (None, None);
            row.ended_at = row.state.is_end().then_some(now);
        });
        let Some(row) = self.rows.get(number as usize).filter(|row| is_kept && row.state == State::Soaking)
        else {
            return;
        };
        if soak.is_zero() && self.stop.is_none() {
            // It was begun; it keeps its place.
            self.begin(number);
        } else {
            self.queue.add_soaking(row, soak);
        }
    }

    /// Anything but a proof.
    fn ended_otherwise(&mut self, number: u32, result: SlotResult) {
        let Some(row) = self.rows.get(number as usize) else { return };
        let is_busy = matches!(result, SlotResult::Failed { code: BUSY, .. });
        let may_again = row.attempts <= if is_busy { BUSY_ATTEMPTS_MAX } else { self.rollout.spec.retries };
        let mut seen = Prints::default();
        let (code, message, again, end) = match result {
            SlotResult::Done { .. } => return,
            SlotResult::Refused { code, message, may_retry } => {
                // A device that was well before its first new key, and is not after it, is what waves are there to find.
                let end = if row.first_done_at.is_some() { State::Failed } else { State::Refused };
                (code, message, may_retry.then_some(Duration::ZERO), end)
            }
            SlotResult::Failed { code, message, after, may_retry, pause } => {
                seen = after;
                (code, message, may_retry.then_some(pause), State::Failed)
            }
            SlotResult::Gone { message } => ("gone", message, None, State::Gone),
        };
        let now = (self.clock)();
        let pause =
            again.filter(|_| may_again).map(|least| if is_busy { least } else { pause(row.attempts, least) });
        let is_kept = self.keep(number, |row| {
            if pause.is_none() {
                row.state = end;
                row.ended_at = Some(now);
            } else if row.state == State::First && code == SLOT_IN_USE {
                // Nothing was changed. The next look decides anew.
                (row.state, row.first_slot, row.first_replaces) = (State::Waiting, None, None);
            }
            row.after = seen.or(row.after);
            row.reason = Some(code.to_owned());
            row.message = Some(crate::output::printable(&message));
        });
        if let Some(pause) = pause.filter(|_| is_kept) {
            self.queue
                .add_begun(number, now.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)));
        }
    }
}

fn request(row: &DeviceRow, spec: &Spec, rollout: uuid::Uuid) -> Option<SlotRequest> {
    let first = row.first_slot?;
    let is_first = row.state == State::First;
    let has_second = spec.keys == Keys::Both;
    Some(SlotRequest {
        identity: row.identity.clone(),
        slot: if is_first { first } else { first.other() },
        replaces: if is_first { row.first_replaces } else { row.second_replaces },
        deadline: spec.deadline,
        key_source: spec.key_source,
        rollout,
        is_forced: row.is_forced,
        is_challenged: spec.challenge,
        is_last: !is_first || !has_second,
        is_continued: is_first && has_second && spec.soak.is_zero(),
    })
}

/// Much longer than its deadline. A look may be made again at once: it is the hub that does not answer.
fn out_of_time(may_retry: bool) -> SlotResult {
    SlotResult::Failed {
        code: "timeout",
        message:
            "it took much longer than the deadline and was broken off; `twinkey rollout resume --retry-failed` finishes it"
                .to_owned(),
        after: Prints::default(),
        may_retry,
        pause: Duration::ZERO,
    }
}

/// How long the attempt after the `attempts`-th waits: longer each time, half of it left to chance.
fn pause(attempts: u32, least: Duration) -> Duration {
    let ceiling =
        RETRY_PAUSE_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(RETRY_PAUSE_MAX);
    let chance = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    least + ceiling / 2 + (ceiling / 2).mul_f64(chance)
}

fn with(prints: Prints, slot: KeySlot, print: Option<Fingerprint>) -> Prints {
    match slot {
        KeySlot::Primary => Prints { primary: print.or(prints.primary), ..prints },
        KeySlot::Secondary => Prints { secondary: print.or(prints.secondary), ..prints },
    }
}
