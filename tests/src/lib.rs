//! The world of the end-to-end tests: a local hub with its REST interface, gateways on which the real agent runs as
//! a process, the operator's real program, and bounded waits. What is tested stands in `tests/`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

pub mod chance;
pub mod emulated;
pub mod gateway;
pub mod history;
pub mod hub;
pub mod leaks;
pub mod light;
pub mod mounted;
pub mod offers;
pub mod plot;
pub mod programs;
pub mod proxy;
pub mod scripted;
pub mod traffic;
pub mod vitals;
pub mod waiting;
