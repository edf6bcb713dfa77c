//! What the agent and the operator must agree on: the `keyRenewal` section of a device twin, the sealing of keys, and the
//! proof that a device lives on one. `docs/twin-contract.md` is the same contract for those who implement it elsewhere.
//!
//! The operator puts an [`Offer`](offer::Offer) into the desired properties; the agent answers with a
//! [`Report`](report::Report) in the reported ones. Everybody who is connected as the device can write reported properties, and
//! everybody who has the hub's ServiceConnect right can write desired ones. So the report carries a proof that only a holder of the
//! key in use can make, and the offer an authentication that only a reader of the registry can make. Nothing here does I/O or
//! reads a clock.
//!
//! # Invariants
//!
//! * A report says nothing that the operator acts on unless [`Report::verify`](report::Report::verify) holds for the
//!   registry's key of the slot that it lives on.
//! * An offer is not even stored unless [`Offer::is_authentic`](offer::Offer::is_authentic) holds for a key that the hub has
//!   accepted from the device, or the agent's configuration says otherwise.
//! * A key is sealed to the public key that was believed first ([`tags`]), whatever a later report names.
#![forbid(unsafe_code)]

pub mod connection_string;
mod encoding;
mod fingerprint;
mod identity;
mod mac;
pub mod offer;
pub mod report;
mod rotation_id;
pub mod sealing;
mod slot;
pub mod tags;
pub mod twin;
pub mod wiped;

pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::{Identity, IdentityError};
pub use mac::Mac;
pub use rotation_id::{RandomError, RotationId};
pub use slot::KeySlot;

/// The contract's version, which the agent reports as `contract`.
pub const CONTRACT_VERSION: u32 = 1;

/// The section of desired properties, of reported ones and of the tags that is ours. Sealing, authentication and proof are
/// bound to it, so that what was made for one credential is worth nothing for another.
const SECTION: &str = "keyRenewal";
