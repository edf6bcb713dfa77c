//! What is to be thought when every key is refused: the clock may be wrong, and the hub is asked for the time; or the
//! device is disabled or deleted.

use super::Driver;
use super::outcomes::Kind;
use crate::chain::Chain;
use crate::clock::{Comparison, TOLERANCE_SECS};
use crate::hub::time::AskError;
use crate::store::Files;

impl<F: Files + Send + 'static> Driver<F> {
    /// Asks the hub what time it is, unless it was asked a short while ago.
    pub(super) fn ask_time(&mut self) {
        let now = self.clock.now();
        if self.question.is_due(now) {
            self.question.put(self.dialler.ask_time(), now);
        }
    }

    pub(super) fn told(&mut self, answer: &Result<u64, AskError>) {
        let before = self.clock.unix_secs();
        let comparison = match answer {
            Ok(hub_unix_secs) => Ok(self.clock.compare(*hub_unix_secs)),
            Err(error) => Err(Chain(error).to_string()),
        };
        let is_news = self.question.answered(&comparison);
        match comparison {
            Ok(Comparison::Corrected(correction)) => {
                self.outcomes.count(Kind::Clock);
                tracing::warn!(
                    offset_secs = correction.offset_secs,
                    next = Kind::Clock.advice(),
                    "this machine's clock is wrong; tokens are made by the hub's time from now on"
                );
                self.note_time();
            }
            Ok(Comparison::Right) => {}
            Ok(Comparison::Impossible) if is_news => {
                tracing::warn!("the hub names a time before this version was made; it is not believed");
            }
            Err(error) if is_news => tracing::warn!(error, "the hub's time is not known"),
            Ok(Comparison::Impossible) | Err(_) => {}
        }
        if before.abs_diff(self.clock.unix_secs()) > TOLERANCE_SECS {
            // What was refused by the wrong time deserves another try.
            self.wake();
        } else {
            self.suspect();
        }
    }

    /// Whether every key is refused though the clock is right.
    pub(super) fn suspect(&mut self) {
        let keys = self.state.ring.keys_in_order().into_iter().flatten();
        let is_all_refused = self.live.is_none()
            && (self.question.is_clock_right() || self.question.trouble().is_some())
            && self.outcomes.are_all_refused(keys);
        if is_all_refused && !std::mem::replace(&mut self.counters.is_all_refused, true) {
            self.outcomes.count(Kind::DisabledOrDeleted);
            tracing::error!(
                next = Kind::DisabledOrDeleted.advice(),
                "the hub refuses every key: the device is disabled or deleted, or all of its keys were replaced, unless the clock is wrong and the hub could not be asked for the time; the agent goes on trying"
            );
            self.tell_status();
        }
    }
}
