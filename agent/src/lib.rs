//! `twinkey-agent` keeps a gateway connected to Azure IoT Hub for years, while the keys of the device are renewed
//! under it. It receives new keys through desired twin properties, tries the new key beside the connection that
//! stands, falls back to the other one, and never loses the last key that works.
//!
//! * [`driver`] is the one loop; it performs what [`twinkey_rotation::step`] decides.
//! * [`hub`] speaks MQTT over TLS; [`twin`] turns the twin's JSON into the machine's names and back.
//! * [`keyring`] is what must not be lost; [`store`] keeps it on disk.
//! * [`clock`] knows what time it is, also on a board that does not.
//! * [`budget`] bounds what programs can make the agent hold.
//! * [`supervisor`] is systemd; [`local`] serves programs on the same machine; [`cli`] is the command line.
#![forbid(unsafe_code)]

pub mod budget;
mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod driver;
pub mod hub;
pub mod keyring;
pub mod local;
mod logging;
mod printable;
pub mod provision;
mod regular_file;
pub mod run;
pub mod store;
pub mod supervisor;
pub mod token;
pub mod twin;

pub use cli::{command_line, main_from};
