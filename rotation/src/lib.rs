//! The state machine that renews a credential with two slots and never goes dark by its own hand.
//!
//! One total function, [`step`], takes a [`State`] and an [`Input`] and gives the next state and the
//! [`Effects`] to perform. There is no I/O, no clock, no randomness and no key byte in here: keys appear by
//! name only, time as timers that fire, chance as a number that comes with the input, and the results of disk
//! and network as inputs. So every state can be printed, hashed, compared and searched exhaustively.
//!
//! Nothing in here says MQTT or IoT Hub. "Connect with this key" is an effect; whoever performs it may open a
//! second connection while the first one still carries traffic (a *takeover*), or make an authenticated call.
//!
//! ```text
//!  Desired  ──▶ candidate ──▶ Store ──▶ Connect ──▶ accepted ──▶ held, active ──▶ Store ──▶ Report committed
//!  (an offer)   in memory     on disk   takeover └─▶ refused ──▶ again … window closed ──▶ control accepted
//!                                                               ──▶ refused once more ──▶ Store ──▶ Report rejected
//! ```
//!
//! # Invariants
//!
//! The tests check these after every step, with their own book-keeping of disk and hub.
//!
//! * **I1 Never dark by our own hand.** The last key that the hub accepted is on disk until a later key has been
//!   accepted and that fact is on disk. Here: an accepted key is *held* in every ring that is written afterwards,
//!   and offers that arrive while an attempt is under way wait for its result.
//! * **I2 Durable first.** A candidate is on disk before it is used; a verdict is on disk before it is reported.
//!   Here: a key is only tried while it stands in every image that the disk can hold ([`State::is_surely_stored`]);
//!   verdicts are reported from [`State::durable`].
//! * **I3 A fair trial.** Only refusals over the whole propagation window, followed by an accepted control
//!   connection and one more refusal, reject a candidate. [`Outcome::Unknown`] never counts.
//! * **I4 Never give up, and never storm.** Whatever is refused, every key in the ring is tried again, for ever, at the
//!   pace of [`Policy`]. A connected or trying machine has an attempt under way or a timer armed. Attempts and writes in any
//!   hour are bounded, whatever is offered and by whom: [`Policy::attempts_per_hour_max`], [`Policy::trials_per_hour_max`],
//!   [`Policy::offers_per_hour_max`].
//! * **I5 A failed write is an input.** The proven key stays in use, the report says `storage`, the write is repeated.
//! * **I6 Level-triggered.** The same document again changes nothing.
//! * **I7 Rest.** Once the world is healthy, the machine comes to rest on the newest accepted key within a bounded
//!   number of steps, and the report says so.
//! * **I8 No secret.** There is none in here to leak.
#![no_std]
#![forbid(unsafe_code)]

pub mod backoff;
mod offer;
mod report;
mod ring;
mod state;
mod step;

pub use backoff::Policy;
pub use offer::{Desired, Invalid, Offer};
pub use report::{Reason, Report, Status};
pub use ring::{
    Brought, Candidate, Held, KeyName, KeySlot, PerSlot, Place, Retired, Ring, Rotation, RotationId,
    Standing, UnixSecs, Verdict,
};
pub use state::{
    Attempt, Disk, Effects, Input, KeySet, Outcome, Pacing, Phase, Purpose, State, Timer, Trial, Trouble,
    Window,
};
pub use step::step;
