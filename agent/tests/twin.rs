//! What the agent takes from the twin and from direct methods, and from whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod support;

#[path = "twin/challenges.rs"]
mod challenges;
#[path = "twin/offers.rs"]
mod offers;
