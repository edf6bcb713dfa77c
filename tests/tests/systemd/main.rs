//! The package on a board: a real systemd boots a small Debian, dpkg installs the real package, and the service lives beside a
//! hub: started, renewed, killed, hung, upgraded, downgraded, removed, and given everything that is wrong.
//!
//! `TWINKEY_PACKAGES` names the directory with the package, as `packaging/deb` makes it. Without it, or without root,
//! `systemd-nspawn` or `mmdebstrap`, each test says `SKIPPED` and passes; with `TWINKEY_SYSTEMD=required` it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bad_input;
mod disk;
mod life;
mod machine;
mod package;
mod packages;
mod service;
