//! Why the emulator could not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the emulator could not start. Nothing that a client does later ends it.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// An option that cannot work.
    #[error("option {name}: {problem}")]
    Option {
        /// The field of [`Options`](crate::Options).
        name: &'static str,
        /// What is wrong with it, and what to give instead.
        problem: String,
    },
    /// The data directory, or a file in it, can't be read or written.
    #[error("read or write {path}; check that the data directory exists on a writable disk and is yours")]
    DataDir {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another hub uses the data directory.
    #[error("another hub is running on {path}: stop it first, or give this one a data directory of its own")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file kept from an earlier start makes no sense.
    #[error("{path} is damaged: {problem}; delete it to have a new one made")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, without quoting its content.
        problem: String,
    },
    /// The state kept from an earlier run can't be used.
    #[error(
        "the hub's state in {path} can't be used: {problem}; nothing was deleted. Move it and the files whose names begin like it away to start with an empty hub, or put a copy back"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong, without quoting a secret.
        problem: String,
    },
    /// An address can't be listened on.
    #[error("listen for {service} on {address}; choose another address, or port 0 for a free port")]
    Listen {
        /// `MQTT over TLS` or `HTTPS`.
        service: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A certificate can't be made.
    #[error("make the hub's certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS can't be set up with the certificate.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// The operating system gives no random numbers.
    #[error("get random numbers from the operating system")]
    Random(#[from] getrandom::Error),
}
