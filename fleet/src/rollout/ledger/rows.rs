//! What the ledger knows of a rollout and of each of its devices.

use serde::Serialize;
use twinkey_contract::{Fingerprint, Identity, KeySlot};
use uuid::Uuid;

use super::super::spec::Spec;

/// The rollout as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Rollout {
    pub(crate) id: Uuid,
    pub(crate) spec: Spec,
    /// What the order inside the target follows from.
    pub(crate) seed: u32,
    /// The name that devices connect to.
    pub(crate) hub: String,
    pub(crate) state: RolloutState,
    /// Why it is in this state.
    pub(crate) message: Option<String>,
    /// Unix milliseconds, like all times here.
    pub(crate) created_at: u64,
    pub(crate) ended_at: Option<u64>,
    /// Devices that had ended when the operator last went on after too many failures: they don't count again.
    pub(crate) forgiven_done: u64,
    pub(crate) forgiven_failed: u64,
}

/// Declares an enum of words that stand in the ledger and in JSON.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub(crate) enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            pub(super) fn read(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|state| state.as_str() == word)
            }
        }
    };
}

words! {
    /// Where the rollout stands.
    RolloutState {
        Running = "running",
        /// Somebody said so; `resume` goes on.
        Paused = "paused",
        /// Too many devices have failed; `resume` goes on.
        Halted = "halted",
        /// Somebody said so; it does not go on.
        Aborted = "aborted",
        /// Every device has ended.
        Done = "done",
    }
}

words! {
    /// What somebody at another terminal wants of the runner.
    Wish {
        Run = "run",
        Pause = "pause",
        Abort = "abort",
    }
}

words! {
    /// Where a device stands.
    State {
        /// Nothing has been done to it.
        Waiting = "waiting",
        /// The key that it does not use has been begun.
        First = "first",
        /// It lives on its first new key, and the other one's turn has not come.
        Soaking = "soaking",
        /// Its other key has been begun.
        Second = "second",
        Done = "done",
        Failed = "failed",
        /// Going on could have cut it off, so nothing was done.
        Refused = "refused",
        /// Left out from the start, as `--skip-unsafe` says.
        Skipped = "skipped",
        /// The hub has no such device any more.
        Gone = "gone",
    }
}

impl State {
    /// Whether there is nothing more to do.
    pub(crate) fn is_end(self) -> bool {
        match self {
            Self::Waiting | Self::First | Self::Soaking | Self::Second => false,
            Self::Done | Self::Failed | Self::Refused | Self::Skipped | Self::Gone => true,
        }
    }
}

/// Fingerprints by slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Prints {
    pub(crate) primary: Option<Fingerprint>,
    pub(crate) secondary: Option<Fingerprint>,
}

impl Prints {
    pub(crate) fn of(self, slot: KeySlot) -> Option<Fingerprint> {
        match slot {
            KeySlot::Primary => self.primary,
            KeySlot::Secondary => self.secondary,
        }
    }

    /// Where `self` knows nothing, what `other` knows.
    pub(crate) fn or(self, other: Self) -> Self {
        Self { primary: self.primary.or(other.primary), secondary: self.secondary.or(other.secondary) }
    }
}

/// One device, or one module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeviceRow {
    /// Its place in the order, from 0.
    pub(crate) number: u32,
    pub(crate) identity: Identity,
    /// From 0.
    pub(crate) wave: u32,
    pub(crate) state: State,
    /// At the slot that it is at.
    pub(crate) attempts: u32,
    /// The operator named it as one that may go dark.
    pub(crate) is_forced: bool,
    /// The slot that is renewed first, once that has been decided.
    pub(crate) first_slot: Option<KeySlot>,
    /// The key that the first slot had when it was begun.
    pub(crate) first_replaces: Option<Fingerprint>,
    /// The same of the other slot.
    pub(crate) second_replaces: Option<Fingerprint>,
    /// When the device had proved its first new key.
    pub(crate) first_done_at: Option<u64>,
    /// The registry's keys before the first change.
    pub(crate) before: Prints,
    /// The registry's keys as they were last seen.
    pub(crate) after: Prints,
    pub(crate) rotation: Option<String>,
    /// A stable code, unless all is well.
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<u64>,
    pub(crate) ended_at: Option<u64>,
}

impl DeviceRow {
    pub(crate) fn waiting(number: u32, identity: Identity, wave: u32) -> Self {
        Self {
            number,
            identity,
            wave,
            state: State::Waiting,
            attempts: 0,
            is_forced: false,
            first_slot: None,
            first_replaces: None,
            second_replaces: None,
            first_done_at: None,
            before: Prints::default(),
            after: Prints::default(),
            rotation: None,
            reason: None,
            message: None,
            started_at: None,
            ended_at: None,
        }
    }

    /// Where it goes on from after an end that was not a good one.
    pub(crate) fn again(&mut self) {
        self.state = match (self.first_done_at, self.second_replaces, self.first_replaces) {
            (Some(_), Some(_), _) => State::Second,
            (Some(_), None, _) => State::Soaking,
            (None, _, Some(_)) => State::First,
            (None, _, None) => State::Waiting,
        };
        self.attempts = 0;
        (self.reason, self.message, self.ended_at) = (None, None, None);
    }
}

/// Something that happened, for charts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    pub(crate) at: u64,
    /// The device's place in the order; `None` for the rollout itself.
    pub(crate) device: Option<u32>,
    pub(crate) what: String,
}
