//! Attacks on the real programs: somebody with a token of the device's, with a key of it, with a policy's key, or on the
//! gateway itself does what he can, with tools of his own. What each test asserts is what the victim keeps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod another_device;
mod attacker;
mod clocks;
mod false_offers;
mod fingerprints;
mod forged_reports;
mod large_reports;
mod large_twins;
mod local_programs;
mod sealing;
mod stolen_key;
mod stolen_token;
mod victim;
