#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

mod audience;
mod base64;
pub mod hmac;
pub mod identifiable;
mod key;
mod parse;
mod percent;
mod resource;
mod token;
mod verify;

pub use key::{Key, KeyError, KeySlot};
pub use parse::{ParseError, ParsedToken};
pub use resource::{ResourceError, ResourceUri};
pub use token::{Expiry, SignError, Signer, Token};
pub use verify::{Verified, Verifier, VerifyError};
