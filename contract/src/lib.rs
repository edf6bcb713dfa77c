//! What the agent and the operator must agree on: the `keyRenewal` section of a device twin, the sealing of keys, and the
//! proof that a device lives on one. `docs/twin-contract.md` is the same contract for those who implement it elsewhere.
//!
//! The operator puts an [`Offer`](offer::Offer) into the desired properties; the agent answers with a
//! [`Report`](report::Report) in the reported ones, whose [`Proof`] only a holder of the new key can make. Nothing here
//! does I/O or reads a clock.
#![forbid(unsafe_code)]

pub mod connection_string;
mod encoding;
mod identity;
pub mod offer;
mod proof;
pub mod report;
mod rotation_id;
pub mod sealing;
mod slot;

pub use identity::{Identity, IdentityError};
pub use proof::{Fingerprint, Proof};
pub use rotation_id::{RandomError, RotationId};
pub use slot::KeySlot;

/// The contract's version, which the agent reports as `contract`.
pub const CONTRACT_VERSION: u32 = 1;

/// The section of desired and of reported properties that is ours.
const SECTION: &str = "keyRenewal";
