//! Signatures as they stand in a token: base64, percent-encoded. Made and compared without a branch on their value.
//!
//! Which digits are `+` or `/` is chance, so a branch on them would be mispredicted in most tokens. Here each digit is
//! written as four bytes, of which the next digit overwrites what it doesn't need. The digits come from a table of four
//! cache lines, nearly all of which every signature touches.

use crate::{
    base64,
    hmac::{HmacSha256, State},
    message::Message,
    percent, secret, simd,
};

/// Longest text in bytes: 43 digits that could each be `+` or `/`, and one `=`.
pub(crate) const SIGNATURE_LEN_MAX: usize = 44 * 3;

/// Writes the signature of `message` to the start of `out` and returns its length; what follows it there is junk.
#[inline]
pub(crate) fn write(key: &HmacSha256, message: &Message<'_>, out: &mut [u8; SIGNATURE_LEN_MAX]) -> usize {
    match simd::write_signature(key, message, out) {
        Some(len) => len,
        None => write_text(&key.tag_words(message), out),
    }
}

/// Whether `text` is the signature of `message`, written as we would. The time depends on the length of `text` and on
/// its escapes, not on the signature. What is written otherwise may be taken for another signature.
#[inline]
pub(crate) fn is_of(key: &HmacSha256, message: &Message<'_>, text: &[u8]) -> bool {
    if let Some(answer) = simd::is_signature_of(key, message, text) {
        return answer;
    }
    match padded(text) {
        Some(given) => is_text_of(&key.tag_words(message), &given),
        None => false,
    }
}

/// A text followed by zeros, for [`is_text_of`]; `None` if it is too long for a signature. To be made before the tag:
/// what was just copied can't be loaded in full registers yet.
#[inline]
pub(crate) fn padded(text: &[u8]) -> Option<[u8; SIGNATURE_LEN_MAX]> {
    let mut given = [0; SIGNATURE_LEN_MAX];
    given.get_mut(..text.len())?.copy_from_slice(text);
    Some(given)
}

/// Whether `given` is the text of the tag.
#[inline]
pub(crate) fn is_text_of(tag: &State, given: &[u8; SIGNATURE_LEN_MAX]) -> bool {
    let mut expected = [0; SIGNATURE_LEN_MAX];
    write_text(tag, &mut expected);
    let is_equal = secret::is_equal(given, &expected);
    secret::wipe(&mut expected);
    is_equal
}

/// Writes a tag's text and returns its length. Nothing but zeros is added to what `out` holds behind the text.
#[inline]
pub(crate) fn write_text(tag: &State, out: &mut [u8; SIGNATURE_LEN_MAX]) -> usize {
    let mut at = 0;
    let mut put = |text: [u8; 4]| {
        // At most 42 digits of three bytes each lie before. The mask says so to the compiler, which then leaves the
        // test out.
        if let Some(target) = out.get_mut(at & 127..).and_then(<[u8]>::first_chunk_mut) {
            *target = text;
        }
        at += usize::from(text[3]);
    };
    let [a, b, c, d, e, f, g, h] = tag.map(u64::from);
    let groups = [a << 16 | b >> 16, b << 32 | c, d << 16 | e >> 16, e << 32 | f, g << 16 | h >> 16];
    for group in groups {
        for i in 0..8 {
            put(escaped_digit(group >> (42 - 6 * i)));
        }
    }
    for digit in [h >> 10, h >> 4, h << 2] {
        put(escaped_digit(digit));
    }
    put(PADDING);
    if let Some(junk) = out.get_mut(at & 255) {
        *junk = 0;
    }
    at
}

/// `=`, laid out as in [`ESCAPED_DIGITS`].
const PADDING: [u8; 4] = *b"%3D\x03";

/// The digit of the lowest six bits.
#[inline]
fn escaped_digit(bits: u64) -> [u8; 4] {
    ESCAPED_DIGITS.0.get((bits & 63) as usize).copied().unwrap_or_default()
}

/// Starts on a cache line.
#[repr(align(64))]
struct Table([[u8; 4]; 64]);

/// Each base64 digit as it stands in a token, followed by its length.
static ESCAPED_DIGITS: Table = Table({
    let mut table = [[0; 4]; 64];
    let mut value = 0;
    while value < 64 {
        let digit = base64::digit(value);
        #[allow(
            clippy::indexing_slicing,
            reason = "evaluated at compile time, where a panic is a build error"
        )]
        {
            table[value as usize] = if percent::is_unreserved(digit) {
                [digit, 0, 0, 1]
            } else {
                let [a, b, c] = percent::escape(digit);
                [a, b, c, 3]
            };
        }
        value += 1;
    }
    table
});

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{SIGNATURE_LEN_MAX, write_text};
    use crate::percent;
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn expected(tag: [u32; 8]) -> ([u8; SIGNATURE_LEN_MAX], usize) {
        let bytes: Vec<u8> = tag.into_iter().flat_map(u32::to_be_bytes).collect();
        let mut out = [0; SIGNATURE_LEN_MAX];
        let len = percent::encode(STANDARD.encode(bytes).as_bytes(), &mut out).unwrap();
        (out, len)
    }

    proptest! {
        #[test]
        fn signature_is_its_base64_percent_encoded_and_zeros_follow(tag in any::<[u32; 8]>(), escapes in any::<u32>()) {
            // Half of the cases have many `+` and `/`.
            let tag = if escapes & 1 == 0 { tag } else { tag.map(|word| word | escapes) };
            let mut out = [0; SIGNATURE_LEN_MAX];
            let len = write_text(&tag, &mut out);
            prop_assert_eq!((out, len), expected(tag));
        }
    }

    #[test]
    fn longest_signature_fits() {
        // 0xff gives `/` everywhere but in the last digit, which is `8`.
        let mut out = [0; SIGNATURE_LEN_MAX];
        assert_eq!(write_text(&[u32::MAX; 8], &mut out), 42 * 3 + 1 + 3);
        assert_eq!(out, expected([u32::MAX; 8]).0);
    }
}
