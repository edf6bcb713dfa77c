//! What others do, in the way that their documentation shows.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A MAC of some library with its key kept.
pub(crate) trait Peer {
    const NAME: &'static str;
    fn new(key: &[u8]) -> Self;
    fn tag(&self, message: &[u8]) -> [u8; 32];
    fn verify(&self, message: &[u8], tag: &[u8]) -> bool;
}

pub(crate) struct RustCrypto(Hmac<Sha256>);

impl Peer for RustCrypto {
    const NAME: &'static str = "hmac + sha2";

    fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).unwrap())
    }

    fn tag(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        let mut mac = self.0.clone();
        mac.update(message);
        mac.verify_slice(tag).is_ok()
    }
}

pub(crate) struct Ring(ring::hmac::Key);

impl Peer for Ring {
    const NAME: &'static str = "ring";

    fn new(key: &[u8]) -> Self {
        Self(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key))
    }

    fn tag(&self, message: &[u8]) -> [u8; 32] {
        ring::hmac::sign(&self.0, message).as_ref().try_into().unwrap()
    }

    fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        ring::hmac::verify(&self.0, message, tag).is_ok()
    }
}

pub(crate) fn sign<P: Peer>(key: &P, plain_resource: &str, expiry: u64) -> String {
    let sr = utf8_percent_encode(plain_resource, ESCAPED).to_string();
    let tag = key.tag(format!("{sr}\n{expiry}").as_bytes());
    let sig = STANDARD.encode(tag);
    format!("SharedAccessSignature sr={sr}&sig={}&se={expiry}", utf8_percent_encode(&sig, ESCAPED))
}

pub(crate) fn sign_from_base64<P: Peer>(key_base64: &str, plain_resource: &str, expiry: u64) -> String {
    sign(&P::new(&STANDARD.decode(key_base64).unwrap()), plain_resource, expiry)
}

pub(crate) fn verify<P: Peer>(key: &P, token: &str, plain_resource: &str, now: u64) -> bool {
    let Some(fields) = token.strip_prefix("SharedAccessSignature ") else { return false };
    let [mut sr, mut sig, mut se] = [""; 3];
    for field in fields.split('&') {
        match field.split_once('=') {
            Some(("sr", value)) => sr = value,
            Some(("sig", value)) => sig = value,
            Some(("se", value)) => se = value,
            _ => return false,
        }
    }
    let Ok(tag) = STANDARD.decode(percent_decode_str(sig).decode_utf8_lossy().as_bytes()) else {
        return false;
    };
    se.parse::<u64>().is_ok_and(|expiry| expiry + 300 >= now)
        && percent_decode_str(sr).decode_utf8_lossy() == plain_resource
        && key.verify(format!("{sr}\n{se}").as_bytes(), &tag)
}
