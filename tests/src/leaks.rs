//! Canary keys, and the search for them in whatever disguise: whole or in part, as base64, percent-encoded, in hex, as
//! raw bytes, and as Rust's `Debug` prints bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// Shortest piece of a key's text that counts as a leak, in characters. Twelve of base64 are 72 bits: no accident.
const TEXT_LEN: usize = 12;
/// Shortest piece of a key's bytes that counts as a leak.
const RAW_LEN: usize = 8;
/// Shortest piece of a key's hexadecimal text that counts as a leak, in digits.
const HEX_LEN: usize = 16;
/// Shortest piece of a key's escaped or decimal bytes that counts as a leak, in characters.
const PRINTED_LEN: usize = 24;
/// A token's signature in any text is a leak: whoever has the rest of the line has the device.
const SIGNATURE: &[u8] = b"sig=";

/// Keys that must not be seen anywhere.
#[derive(Debug, Default)]
pub struct Canaries {
    /// By length, so that a text is read once for each length.
    needles: BTreeMap<usize, HashMap<Vec<u8>, String>>,
}

impl Canaries {
    /// Adds a key in base64, under a name for messages.
    pub fn add(&mut self, name: &str, key: &str) {
        let bytes = STANDARD.decode(key).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let percent = |code: fn(u8) -> String| -> String {
            let encoded = |c: u8| if c.is_ascii_alphanumeric() { char::from(c).to_string() } else { code(c) };
            key.bytes().map(encoded).collect()
        };
        self.add_pieces(name, "base64", TEXT_LEN, key.as_bytes());
        self.add_pieces(name, "URL-safe base64", TEXT_LEN, URL_SAFE.encode(&bytes).as_bytes());
        self.add_pieces(
            name,
            "percent-encoded base64",
            TEXT_LEN,
            percent(|c| format!("%{c:02X}")).as_bytes(),
        );
        self.add_pieces(
            name,
            "percent-encoded base64",
            TEXT_LEN,
            percent(|c| format!("%{c:02x}")).as_bytes(),
        );
        self.add_pieces(name, "raw bytes", RAW_LEN, &bytes);
        self.add_pieces(name, "hex", HEX_LEN, hex.as_bytes());
        self.add_pieces(name, "hex", HEX_LEN, hex.to_uppercase().as_bytes());
        self.add_pieces(
            name,
            "decimal bytes",
            PRINTED_LEN,
            format!("{bytes:?}").trim_matches(['[', ']']).as_bytes(),
        );
        self.add_pieces(name, "escaped bytes", PRINTED_LEN, bytes.escape_ascii().to_string().as_bytes());
    }

    fn add_pieces(&mut self, name: &str, form: &str, len: usize, text: &[u8]) {
        let pieces = self.needles.entry(len).or_default();
        for piece in text.windows(len) {
            pieces.entry(piece.to_vec()).or_insert_with(|| format!("{name} as {form}"));
        }
    }

    /// What can be seen in `text`.
    pub fn seen_in(&self, text: &[u8]) -> BTreeSet<String> {
        let mut seen: BTreeSet<String> = self
            .needles
            .iter()
            .flat_map(|(len, pieces)| text.windows(*len).filter_map(|window| pieces.get(window).cloned()))
            .collect();
        if text.windows(SIGNATURE.len()).any(|window| window == SIGNATURE) {
            seen.insert("a token's signature".to_owned());
        }
        seen
    }

    /// Panics if anything can be seen in `text`, which is named `place`. The text itself is not shown.
    pub fn assert_unseen(&self, place: &str, text: &[u8]) {
        let seen = self.seen_in(text);
        assert!(seen.is_empty(), "{place} ({} bytes) shows {seen:?}", text.len());
    }
}
