//! The question after the time, and how often it may be put.

use std::future::pending;
use std::time::Duration;

use crate::clock::{Comparison, Instant};
use crate::hub::dial::Asking;
use crate::hub::time::AskError;

/// Shortest time between two questions; doubled up to the longest, so that a device that is refused for days asks nine
/// times in the first hour and six in every other.
const PAUSE_MIN: Duration = Duration::from_secs(60);
/// Longest such time.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// The question that is under way, and what came of the last one.
#[derive(Default)]
pub(super) struct Question {
    asking: Option<Asking>,
    next_at: Option<Instant>,
    count: u32,
    is_clock_right: bool,
    trouble: Option<String>,
}

impl Question {
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.asking.is_none() && self.next_at.is_none_or(|next_at| next_at <= now)
    }

    pub(super) fn put(&mut self, asking: Asking, now: Instant) {
        self.asking = Some(asking);
        self.next_at = Some(now + PAUSE_MAX.min(PAUSE_MIN * (1 << self.count.min(8))));
        self.count = self.count.saturating_add(1);
    }

    /// The answer; cancel-safe.
    pub(super) async fn answer(&mut self) -> Result<u64, AskError> {
        match &mut self.asking {
            Some(asking) => asking.await,
            None => pending().await,
        }
    }

    /// Takes note of what came of it; true when it is other trouble than last time.
    pub(super) fn answered(&mut self, comparison: &Result<Comparison, String>) -> bool {
        self.asking = None;
        self.is_clock_right = matches!(comparison, Ok(Comparison::Right));
        let trouble = match comparison {
            Ok(Comparison::Right | Comparison::Corrected(_)) => None,
            Ok(Comparison::Impossible) => Some("the hub's time is impossible".to_owned()),
            Err(error) => Some(error.clone()),
        };
        let is_news = trouble.is_some() && trouble != self.trouble;
        self.trouble = trouble;
        is_news
    }

    /// A key was accepted: the next refusal is a new story.
    pub(super) fn rest(&mut self) {
        self.next_at = None;
        self.count = 0;
        self.is_clock_right = false;
    }

    /// Whether the hub has said that our clock is right since a key was accepted last.
    pub(super) fn is_clock_right(&self) -> bool {
        self.is_clock_right
    }

    /// Why the hub's time is not known.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}
