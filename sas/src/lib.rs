#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(not(feature = "simd"), forbid(unsafe_code))]

mod audience;
mod base64;
pub mod bulk;
mod canonical;
mod decimal;
pub mod hmac;
pub mod identifiable;
mod key;
mod message;
mod parse;
mod percent;
mod renewal;
mod resource;
mod secret;
mod signature;
#[cfg(not(feature = "simd"))]
mod simd;
#[cfg(feature = "simd")]
pub mod simd;
mod token;
mod verify;

pub use key::{Key, KeyError, KeySlot};
pub use parse::{ParseError, ParsedToken};
pub use renewal::Renewal;
pub use resource::{ResourceError, ResourceRef, ResourceUri};
pub use token::{Expiry, SignError, Signer, Token};
pub use verify::{Verified, Verifier, VerifyError};
