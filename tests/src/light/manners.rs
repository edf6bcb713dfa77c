//! What light devices do wrong, by seeded chance: each device has one manner, until all are told to behave.

use std::time::Duration;

use crate::chance::Chance;

/// How many of a thousand devices have which manner; the others are good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    /// Stay connected and never answer an offer.
    pub silent: u64,
    /// Answer an offer some seconds late.
    pub late: u64,
    /// Disconnect when an offer comes, and stay away for some seconds.
    pub away: u64,
    /// Report the first offer as rejected.
    pub refusing: u64,
    /// Break off in the middle of taking a key, and come back.
    pub breaking_off: u64,
}

impl Manners {
    /// Some of everything: a quarter of the fleet misbehaves.
    pub const MIXED: Self = Self { silent: 20, late: 60, away: 60, refusing: 40, breaking_off: 80 };
}

/// How one device takes offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    Silent,
    Late,
    Away,
    Refusing,
    BreakingOff,
}

/// Longest delay of those that are late, and longest absence of those that go away.
const LATE_MAX: Duration = Duration::from_secs(3);
const AWAY_MAX: Duration = Duration::from_secs(4);

/// What a device breaks off before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakPoint {
    /// The key is kept, and was not tried.
    Trial,
    /// The hub has accepted the key, and the device forgets that it has.
    Keeping,
    /// The acceptance is kept, and was not reported.
    Report,
}

impl Manner {
    pub(super) fn draw(manners: &Manners, chance: &mut Chance) -> Self {
        let mut drawn = chance.below(1000);
        for (share, manner) in [
            (manners.silent, Self::Silent),
            (manners.late, Self::Late),
            (manners.away, Self::Away),
            (manners.refusing, Self::Refusing),
            (manners.breaking_off, Self::BreakingOff),
        ] {
            match drawn.checked_sub(share) {
                None => return manner,
                Some(rest) => drawn = rest,
            }
        }
        Self::Good
    }
}

/// How late an answer comes.
pub(super) fn lateness(chance: &mut Chance) -> Duration {
    chance.moment(LATE_MAX)
}

/// How long a device stays away.
pub(super) fn absence(chance: &mut Chance) -> Duration {
    chance.moment(AWAY_MAX)
}

impl BreakPoint {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        match chance.below(3) {
            0 => Self::Trial,
            1 => Self::Keeping,
            _ => Self::Report,
        }
    }
}
