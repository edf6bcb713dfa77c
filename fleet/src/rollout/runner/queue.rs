//! Whose turn is next.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::super::ledger::{DeviceRow, State};

/// Devices that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Not begun, by wave, in their order.
    fresh: Vec<VecDeque<u32>>,
    /// Begun, and to be gone on with from a time on, in Unix milliseconds. No window holds them back.
    begun: BTreeSet<(u64, u32)>,
    /// The same of those that have soaked until then: something new is begun with them.
    soaked: BTreeSet<(u64, u32)>,
}

impl Queue {
    pub(super) fn of(rows: &[DeviceRow], soak: Duration, now_unix_ms: u64) -> Self {
        let mut queue = Self::default();
        for row in rows {
            match row.state {
                State::Waiting => queue.add_fresh(row.number, row.wave as usize),
                State::First | State::Second => queue.add_begun(row.number, 0),
                State::Soaking => {
                    // A clock that was ahead when it began must not make it soak for ever.
                    let since = row.first_done_at.map(|at| at.min(now_unix_ms));
                    queue.add_soaking(&DeviceRow { first_done_at: since, ..row.clone() }, soak);
                }
                State::Done | State::Failed | State::Refused | State::Skipped | State::Gone => {}
            }
        }
        queue
    }

    fn add_fresh(&mut self, number: u32, wave: usize) {
        if self.fresh.len() <= wave {
            self.fresh.resize_with(wave + 1, VecDeque::new);
        }
        if let Some(of_wave) = self.fresh.get_mut(wave) {
            of_wave.push_back(number);
        }
    }

    pub(super) fn add_begun(&mut self, number: u32, from_unix_ms: u64) {
        self.begun.insert((from_unix_ms, number));
    }

    pub(super) fn add_soaking(&mut self, row: &DeviceRow, soak: Duration) {
        let soak_ms = u64::try_from(soak.as_millis()).unwrap_or(u64::MAX);
        self.soaked.insert((row.first_done_at.unwrap_or(0).saturating_add(soak_ms), row.number));
    }

    /// The next one, out of `wave` if it is a fresh one. What was begun is finished before more is begun.
    pub(super) fn next(&mut self, now_unix_ms: u64, is_open: bool, wave: Option<usize>) -> Option<u32> {
        let due = |set: &mut BTreeSet<(u64, u32)>| {
            let first = set.first().copied().filter(|(from, _)| *from <= now_unix_ms)?;
            set.remove(&first);
            Some(first.1)
        };
        if let Some(number) = due(&mut self.begun) {
            return Some(number);
        }
        if !is_open {
            return None;
        }
        due(&mut self.soaked).or_else(|| self.fresh.get_mut(wave?)?.pop_front())
    }
}
