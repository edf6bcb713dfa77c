//! `rollout`: keys of a whole fleet, in waves.
//!
//! `spec` is what is ordered, `ledger` what is known, `runner` carries it out through an `engine`.

mod engine;
#[cfg(test)]
mod fuse;
mod gate;
mod ledger;
mod progress;
mod runner;
mod span;
mod spec;
mod waves;
mod window;
