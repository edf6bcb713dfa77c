//! Whether somebody else connects with our name. The hub keeps one connection for each identity and closes the older
//! one, so two programs with one identity kick each other out for ever. The machine's backoff already damps that (a
//! connection earns trust by standing); this is about noticing it and saying so.

use std::time::Duration;

/// A connection that the hub closed before this age was kicked, or the network is very poor.
const SHORT: Duration = Duration::from_secs(10 * 60);
/// So many in a row are a pattern.
const KICKS_MIN: u32 = 6;

/// What speaks for a rival.
#[derive(Debug, Default)]
pub(super) struct Duel {
    kicks: u32,
    has_seen_rival: bool,
    is_suspected: bool,
}

impl Duel {
    /// The hub, or somebody on the way, closed a connection of this age.
    pub(super) fn hung_up(&mut self, age: Duration) {
        self.kicks = if age < SHORT { self.kicks.saturating_add(1) } else { 0 };
        self.judge();
    }

    /// The twin holds a report that only another agent can have written.
    pub(super) fn saw_rival(&mut self) {
        self.has_seen_rival = true;
        self.judge();
    }

    /// The device has been connected for so long.
    pub(super) fn stood(&mut self, age: Duration) {
        if age >= SHORT && (self.kicks > 0 || self.is_suspected) {
            if self.is_suspected {
                tracing::info!("nobody else has connected with this identity for a while");
            }
            *self = Self::default();
        }
    }

    pub(super) fn is_suspected(&self) -> bool {
        self.is_suspected
    }

    fn judge(&mut self) {
        if self.is_suspected || (self.kicks < KICKS_MIN && !self.has_seen_rival) {
            return;
        }
        self.is_suspected = true;
        tracing::error!(
            kicks = self.kicks,
            other_report = self.has_seen_rival,
            "somebody else seems to connect with this identity, unless the network closes every connection: look for a second agent or program (a cloned card, an old gateway) and stop it; this agent waits longer each time"
        );
    }
}
