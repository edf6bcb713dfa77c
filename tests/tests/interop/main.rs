//! Microsoft's own SDKs for Python against the real `twinkey emulate`: azure-iot-device plays devices and modules,
//! azure-iot-hub the back end. What an SDK sees and what the hub saw must agree.
//!
//! The programs are in `tests/interop`; `tests/interop/venv` makes the environment that they need. Without it each
//! test says `SKIPPED` and passes, unless `TWINKEY_INTEROP` is `required`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod connections;
mod device;
mod examples;
mod fleet;
mod provisioning;
mod python;
mod service;
mod weather;
mod world;
