//! Percent-encoding (RFC 3986 §2.1): the strict upper-case form that we write, and the tolerant reading of what
//! others wrote.

use crate::{base64, hmac::TAG_LEN};

/// Longest percent-encoded text of a signature, in bytes: 43 digits that could each be `+` or `/`, and one `=`.
pub(crate) const SIGNATURE_LEN_MAX: usize = 44 * 3;

/// Length in bytes of `text` once encoded.
pub(crate) fn encoded_len(text: &[u8]) -> usize {
    text.iter().fold(0, |len, &byte| len.saturating_add(if is_unreserved(byte) { 1 } else { 3 }))
}

/// Writes `text` to the start of `out`, everything but `A-Z a-z 0-9 - _ . ~` as `%XX`; `None` if it doesn't fit.
/// Returns the length written.
pub(crate) fn encode(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    for &byte in text {
        if is_unreserved(byte) {
            *out.get_mut(at)? = byte;
            at += 1;
        } else {
            *out.get_mut(at..)?.first_chunk_mut::<3>()? = escape(byte);
            at += 3;
        }
    }
    Some(at)
}

/// The percent-encoded base64 text of a signature and its length.
///
/// Which digits are `+` or `/` is chance, so a branch on them would be mispredicted in most tokens: each digit is
/// written as three bytes, of which the next one overwrites what isn't needed.
pub(crate) fn encode_signature(tag: &[u8; TAG_LEN]) -> ([u8; SIGNATURE_LEN_MAX], usize) {
    let mut out = [0; SIGNATURE_LEN_MAX];
    let mut at = 0;
    let mut put = |value: u32| {
        let [a, b, c, len] = ESCAPED_DIGITS.get((value & 63) as usize).copied().unwrap_or_default();
        if let Some(target) = out.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<3>) {
            *target = [a, b, c];
        }
        at += usize::from(len);
    };
    for group in tag.chunks(3) {
        let word = group.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for i in 0..=group.len() {
            put(word >> (18 - 6 * i));
        }
    }
    // 32 bytes leave one place of the last group empty.
    if let Some(target) = out.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<3>) {
        *target = *b"%3D";
    }
    (out, at + 3)
}

/// Reads bytes with each `%XX` decoded, upper or lower case. What is no complete escape stands for itself, and `+`
/// is a plus sign: ids may contain it, and no SDK writes a space.
pub(crate) fn decode<I: Iterator<Item = u8> + Clone>(encoded: I) -> Decode<I> {
    Decode { encoded }
}

/// See [`decode`].
#[derive(Clone)]
pub(crate) struct Decode<I> {
    encoded: I,
}

impl<I: Iterator<Item = u8> + Clone> Iterator for Decode<I> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let byte = self.encoded.next()?;
        if byte != b'%' {
            return Some(byte);
        }
        let mut ahead = self.encoded.clone();
        let mut nibble = || char::from(ahead.next()?).to_digit(16);
        let (Some(high), Some(low)) = (nibble(), nibble()) else {
            return Some(byte);
        };
        self.encoded = ahead;
        Some((high << 4 | low) as u8)
    }
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

const fn escape(byte: u8) -> [u8; 3] {
    const fn hex(nibble: u8) -> u8 {
        if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }
    }
    [b'%', hex(byte >> 4), hex(byte & 15)]
}

/// Each base64 digit as it stands in a token, followed by its length.
const ESCAPED_DIGITS: [[u8; 4]; 64] = {
    let mut table = [[0; 4]; 64];
    let mut value = 0;
    while value < 64 {
        let digit = base64::digit(value);
        #[allow(
            clippy::indexing_slicing,
            reason = "evaluated at compile time, where a panic is a build error"
        )]
        {
            table[value as usize] = if is_unreserved(digit) {
                [digit, 0, 0, 1]
            } else {
                let [a, b, c] = escape(digit);
                [a, b, c, 3]
            };
        }
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{decode, encode, encode_signature, encoded_len};
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = vec![0; encoded_len(text)];
        assert_eq!(encode(text, &mut out), Some(out.len()));
        out
    }

    #[test]
    fn only_unreserved_characters_stand_for_themselves() {
        assert_eq!(encoded(b"Az09-_.~"), b"Az09-_.~");
        assert_eq!(encoded("/:%+ $\u{e4}".as_bytes()), b"%2F%3A%25%2B%20%24%C3%A4");
    }

    #[test]
    fn incomplete_escapes_and_plus_stand_for_themselves() {
        let decoded = |text: &str| decode(text.bytes()).collect::<Vec<u8>>();
        assert_eq!(decoded("a%2fb%2Fc"), b"a/b/c");
        assert_eq!(decoded("%"), b"%");
        assert_eq!(decoded("%4"), b"%4");
        assert_eq!(decoded("%zz%+1+"), b"%zz%+1+");
        assert_eq!(decode(decode("%252F".bytes())).collect::<Vec<u8>>(), b"/");
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(encoded(&text).into_iter()).collect::<Vec<u8>>(), text);
        }

        #[test]
        fn what_does_not_fit_is_refused(text in proptest::collection::vec(any::<u8>(), 1..100)) {
            prop_assert_eq!(encode(&text, &mut vec![0; encoded_len(&text) - 1]), None);
        }

        #[test]
        fn signature_is_its_base64_percent_encoded(tag in any::<[u8; 32]>()) {
            let (out, len) = encode_signature(&tag);
            prop_assert_eq!(&out[..len], encoded(STANDARD.encode(tag).as_bytes()));
        }
    }

    #[test]
    fn longest_signature_fits() {
        // 0xff gives `/` everywhere but in the last digit, which is `8`.
        assert_eq!(encode_signature(&[0xff; 32]).1, 42 * 3 + 1 + 3);
    }
}
