//! Percent-encoding (RFC 3986 §2.1): the strict upper-case form that we write, and the tolerant reading of what
//! others wrote.

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

/// Whether [`encode`] can write this.
pub(crate) fn is_strictly_encoded(mut text: &[u8]) -> bool {
    while let Some((&byte, rest)) = text.split_first() {
        text = match (byte, rest.split_first_chunk::<2>()) {
            (b'%', Some((&[high, low], after))) => {
                let value = |c| char::from(c).to_digit(16).unwrap_or_default() as u8;
                let escaped = value(high) << 4 | value(low);
                if is_unreserved(escaped) || escape(escaped) != [b'%', high, low] {
                    return false;
                }
                after
            }
            _ if is_unreserved(byte) => rest,
            _ => return false,
        };
    }
    true
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
pub(crate) const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

pub(crate) const fn escape(byte: u8) -> [u8; 3] {
    const fn hex(nibble: u8) -> u8 {
        if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }
    }
    [b'%', hex(byte >> 4), hex(byte & 15)]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{decode, encode, encoded_len};
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
    }
}
