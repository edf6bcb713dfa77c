//! What the machine says of itself. Verdicts, keys and the sequence are those on disk, never those in memory.

use crate::ring::{Held, KeySlot, PerSlot, RotationId, Verdict};
use crate::state::{Disk, State, Trouble};

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// No rotation was ever asked for.
    Idle,
    /// The candidate is being stored or tried.
    Trying,
    /// The offered keys are in use and that is on disk.
    Committed,
    /// An offered key was refused over the whole propagation window.
    Rejected,
    /// What stands in the document is no offer.
    Invalid,
    /// Something that is not the candidate's fault holds the trial up.
    Waiting,
}

/// Why, as a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The hub refused the key.
    Refused,
    /// The clock is wrong, so that every key is refused.
    Clock,
    /// The hub could not be reached.
    Network,
    /// The hub did not answer or said that it is busy.
    Throttled,
    /// The disk could not be written.
    Storage,
    /// The document can't be read.
    Malformed,
    /// The document is too large to be read.
    TwinTooLarge,
    /// The offered key is damaged.
    Checksum,
    /// The key came in plain form, which the configuration forbids.
    UnsealedForbidden,
    /// The key was not sealed for this device, slot and rotation.
    CannotUnseal,
    /// The offer was not made by somebody who knows a key of this device.
    Unauthenticated,
    /// More offers came than are taken up in this time.
    TooManyOffers,
}

/// The reported document, by names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// Sequence of the ring on disk.
    pub sequence: u64,
    /// The slot of the key that was accepted last; `None` while none was.
    pub active: Option<KeySlot>,
    /// The held keys.
    pub held: PerSlot<Option<Held>>,
    /// The rotation that status and reason speak of.
    pub rotation: Option<RotationId>,
    /// Where it stands.
    pub status: Status,
    /// Why, where there is something to say.
    pub reason: Option<Reason>,
}

impl State {
    /// What there is to report now.
    pub fn report(&self) -> Report {
        let (rotation, status, reason) = self.progress();
        let slots = &self.durable.slots;
        Report {
            sequence: self.durable.sequence,
            active: slots
                .of(self.durable.active)
                .held
                .filter(|held| held.proven_at.is_some())
                .map(|_| self.durable.active),
            held: PerSlot { primary: slots.primary.held, secondary: slots.secondary.held },
            rotation,
            status,
            reason,
        }
    }

    fn progress(&self) -> (Option<RotationId>, Status, Option<Reason>) {
        if let Some(invalid) = self.invalid {
            return (invalid.rotation, Status::Invalid, Some(invalid.reason));
        }
        if let Some(waiting) = self.waiting {
            return (Some(waiting.rotation), Status::Waiting, Some(Reason::TooManyOffers));
        }
        let has_disk_failed = match self.disk {
            Disk::Idle => false,
            Disk::Writing { failures, .. } => failures > 0,
            Disk::Failed { .. } => true,
        };
        // Said even where the status doesn't hang on the disk: the next rotation will.
        let storage = has_disk_failed.then_some(Reason::Storage);
        let Some(rotation) = self.ring.rotation else {
            return (None, Status::Idle, storage);
        };
        let is_durable = self.durable.rotation == self.ring.rotation;
        let (status, reason) = match rotation.verdict {
            _ if has_disk_failed && !is_durable => (Status::Waiting, storage),
            Some(Verdict::Committed) if is_durable => (Status::Committed, storage),
            Some(Verdict::Rejected) if is_durable => (Status::Rejected, Some(Reason::Refused)),
            Some(_) | None => match self.trouble {
                None => (Status::Trying, storage),
                Some(Trouble::Refused) => (Status::Trying, Some(Reason::Refused)),
                Some(Trouble::ActiveRefused) => (Status::Waiting, Some(Reason::Refused)),
                Some(Trouble::Unreachable) => (Status::Waiting, Some(Reason::Network)),
                Some(Trouble::Unanswered) => (Status::Waiting, Some(Reason::Throttled)),
                Some(Trouble::Clock) => (Status::Waiting, Some(Reason::Clock)),
            },
        };
        (Some(rotation.id), status, reason)
    }
}
