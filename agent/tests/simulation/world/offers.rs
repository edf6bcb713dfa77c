//! Who vouches for an offer, which keys came in by one, and how much the agent does in an hour for
//! all of them together.

use super::*;

/// The documented limits count in hours.
const HOUR_MS: u64 = 3_600_000;
/// Longest time between the hub's answer to a GET and the moment when the agent reads it, in
/// milliseconds.
const READ_WITHIN_MS: u64 = 120_000;

/// What an offer's authentication was made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Voucher {
    /// It has none.
    Nobody,
    Key(KeyId),
    /// It was made over something else, or with no key at all.
    Nonsense,
}

/// Something for which the agent may do more than offers alone allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cause {
    /// The process began, a call asked for another trial, or a person brought a key.
    Start,
    /// The hub accepted another key than before: the offer that brought it does not count.
    KeyAccepted,
    /// An older state of the disk came back, and what it knows of offers with it.
    DiskReplaced,
    /// A write was certain only after it was repeated.
    WriteUncertain,
    /// A connection ended, or could not be had with a key that works: every key is tried in turn.
    NoConnection,
}

/// What happened in the last hour.
#[derive(Default)]
pub(crate) struct LastHour {
    causes: Vec<(u64, Cause)>,
    stored: Vec<u64>,
    trials: Vec<u64>,
    writes: Vec<u64>,
}

impl LastHour {
    fn forget(&mut self, now_ms: u64) {
        let is_recent = |at_ms: u64| at_ms + HOUR_MS > now_ms;
        self.causes.retain(|(at_ms, _)| is_recent(*at_ms));
        for times in [&mut self.stored, &mut self.trials, &mut self.writes] {
            times.retain(|at_ms| is_recent(*at_ms));
        }
    }

    fn count(&self, cause: Cause) -> u64 {
        self.causes.iter().filter(|(_, known)| *known == cause).count() as u64
    }
}

impl Inner {
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        config.rotation.propagation_window_secs = self.traits.window_ms / 1_000;
        config.rotation.allow_unsealed = self.traits.allows_unsealed;
        config.rotation.allow_unauthenticated = self.traits.allows_unauthenticated;
        config.token.lifetime_secs = self.traits.lifetime_secs;
        if self.traits.breaks_before_make {
            config.hub.takeover = Takeover::BreakBeforeMake;
        }
        config
    }

    pub(crate) fn cause(&mut self, cause: Cause) {
        let now_ms = self.now_ms();
        self.last_hour.forget(now_ms);
        self.last_hour.causes.push((now_ms, cause));
    }

    /// The key is one that the agent may have: from its first key ring, a person, or an offer that
    /// it had to believe.
    pub(crate) fn came_in(&mut self, key: KeyId) {
        self.keys[key].has_come_in = true;
    }

    /// The agent is being told what stands there.
    pub(super) fn offer_is_shown(&mut self) {
        let Standing::Offer(index) = self.standing else { return };
        self.offers[index].shown_ms = Some(self.now_ms());
        let is_vouched_for = match self.offers[index].voucher {
            Voucher::Nobody => self.traits.allows_unauthenticated,
            Voucher::Key(key) => self.may_hold(key),
            Voucher::Nonsense => false,
        };
        if is_vouched_for {
            self.believe(index);
        }
    }

    /// The agent has heard that `key` is accepted, so it vouches also for what was shown just
    /// before.
    pub(super) fn key_vouches(&mut self, key: KeyId) {
        self.heard_by_process.insert(key);
        let earliest_ms = self.now_ms().saturating_sub(READ_WITHIN_MS);
        for index in 0..self.offers.len() {
            let offer = &self.offers[index];
            if offer.voucher == Voucher::Key(key) && offer.shown_ms.is_some_and(|at_ms| at_ms >= earliest_ms)
            {
                self.believe(index);
            }
        }
    }

    fn believe(&mut self, index: usize) {
        self.offers[index].is_believable = true;
        for key in self.offers[index].keys.into_iter().flatten() {
            self.came_in(key);
        }
    }

    /// Whether the key may stand in a slot of the agent's ring, on disk or in memory.
    fn may_hold(&self, key: KeyId) -> bool {
        let name = self.name(key);
        self.facts.iter().any(|facts| facts.holds(name)) || self.heard_by_process.contains(&key)
    }

    /// A key that works for the agent, as far as the disk says.
    pub(super) fn is_any_held(&self, key: KeyId) -> bool {
        let name = self.name(key);
        self.facts.iter().any(|facts| facts.holds(name))
    }

    /// Whether the agent must take the offer, now that nothing moves any more.
    pub(super) fn is_to_be_taken(&self, index: usize, facts: &Facts) -> bool {
        let offer = &self.offers[index];
        let is_known = facts.rotation.is_some_and(|(rotation, _)| rotation == offer.rotation);
        is_known
            || match offer.voucher {
                Voucher::Nobody => self.traits.allows_unauthenticated,
                Voucher::Key(key) => facts.holds(self.name(key)),
                Voucher::Nonsense => false,
            }
    }

    /// Bytes that go to the disk. I4: no key is stored that nobody vouched for.
    pub(crate) fn check_written(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let foreign = self.keys.iter().find(|known| !known.has_come_in && text.contains(&known.base64));
        let foreign = foreign.map(|known| known.name);
        self.demand(foreign.is_none(), |_| {
            format!("I4: the key {foreign:?} is written to the disk, and nobody vouched for it")
        });
    }

    /// The disk says something new: what stands there came from somebody who may offer, and not
    /// from too many offers.
    pub(super) fn check_provenance(&mut self) {
        for facts in self.facts.clone() {
            let foreign = facts
                .keys
                .iter()
                .find(|name| !self.key_named(**name).is_some_and(|key| self.keys[key].has_come_in));
            self.demand(foreign.is_none(), |_| {
                format!("I4: the key {foreign:?} is on disk, and nobody vouched for it")
            });
            let Some((rotation, _)) = facts.rotation else { continue };
            if !self.stored_rotations.insert(rotation) {
                continue;
            }
            let mut made = self.offers.iter().filter(|offer| offer.rotation == rotation);
            let is_believable = made.clone().any(|offer| offer.is_believable);
            let is_without = made.any(|offer| offer.voucher == Voucher::Nobody);
            self.demand(is_believable, |_| {
                format!("I4: the offer {rotation:x} was taken up, and nobody vouched for it")
            });
            if is_without {
                self.tally.count(Seen::TakenUpWithoutAuth);
            }
            self.reasons_to_write += 2;
            let now_ms = self.now_ms();
            self.last_hour.forget(now_ms);
            self.last_hour.stored.push(now_ms);
            let policy = self.config().policy();
            let bound = policy.offers_per_hour_max()
                + self.last_hour.count(Cause::KeyAccepted)
                + u64::from(policy.offers_max) * self.last_hour.count(Cause::DiskReplaced);
            let stored = self.last_hour.stored.len() as u64;
            self.demand(stored <= bound, |_| {
                format!("I4: {stored} offers were taken up in an hour, {bound} allowed")
            });
        }
    }

    /// The agent connects with a key that it does not hold. I4 counts that, whoever offers.
    pub(super) fn check_trial(&mut self, key: KeyId) {
        let (name, has_come_in) = (self.name(key), self.keys[key].has_come_in);
        self.demand(has_come_in, |_| format!("I4: {name} is tried, and nobody vouched for it"));
        if self.may_hold(key) {
            return;
        }
        let now_ms = self.now_ms();
        self.last_hour.forget(now_ms);
        self.last_hour.trials.push(now_ms);
        let policy = self.config().policy();
        let per_offer = policy.trials_per_hour_max() / policy.offers_per_hour_max();
        let hour = &self.last_hour;
        let more_offers = hour.count(Cause::Start)
            + hour.count(Cause::KeyAccepted)
            + u64::from(policy.offers_max) * hour.count(Cause::DiskReplaced);
        let rounds = match hour.count(Cause::NoConnection) {
            0 => 0,
            // At most four keys of a ring are not held.
            times => policy.attempts_per_hour_max(4) + 4 * times,
        };
        let bound = policy.trials_per_hour_max() + per_offer * more_offers + rounds;
        let trials = hour.trials.len() as u64;
        self.demand(trials <= bound, |_| {
            format!("I4: {trials} attempts in an hour with keys that are not held, {bound} allowed")
        });
    }

    /// A key ring takes its place on the disk. I4 counts that as well.
    pub(crate) fn ring_is_replaced(&mut self) {
        let now_ms = self.now_ms();
        self.last_hour.forget(now_ms);
        self.last_hour.writes.push(now_ms);
        let policy = self.config().policy();
        let hour = &self.last_hour;
        // The taking up, and the end of each slot's trial.
        let per_offer = 3;
        let offers = policy.offers_per_hour_max()
            + hour.count(Cause::Start)
            + hour.count(Cause::KeyAccepted)
            + u64::from(policy.offers_max) * hour.count(Cause::DiskReplaced);
        let bound = per_offer * offers + hour.count(Cause::WriteUncertain);
        let writes = hour.writes.len() as u64;
        self.demand(writes <= bound, |_| {
            format!("I4: {writes} key rings were written in an hour, {bound} allowed")
        });
    }
}
