//! Base64 (RFC 4648 §4), strict: canonical, padded, no white space.
//!
//! Our own, because the text is usually a key: digits are computed without tables and without branches on their
//! value, and a refusal says where the text is wrong.

/// Length in bytes of the base64 text of `len` bytes.
pub(crate) const fn encoded_len(len: usize) -> usize {
    len.div_ceil(3) * 4
}

/// Writes the text of `bytes` to the start of `out`; what doesn't fit is cut off. Returns the length written.
pub(crate) fn encode(bytes: &[u8], out: &mut [u8]) -> usize {
    let mut written = 0;
    for (group, target) in bytes.chunks(3).zip(out.chunks_exact_mut(4)) {
        let word = group.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for (i, slot) in target.iter_mut().enumerate() {
            *slot = if i <= group.len() { digit((word >> (18 - 6 * i) & 63) as u8) } else { b'=' };
        }
        written += target.len();
    }
    written
}

/// Decodes into the start of `out` and returns the length of the decoded text, which may exceed that of `out`:
/// the excess is checked but not kept. The error is the position, in bytes, of the first thing that is wrong;
/// at the end of the text when something is missing there.
pub(crate) fn decode(text: &[u8], out: &mut [u8]) -> Result<usize, usize> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if let Some(at) = digits.iter().position(|&c| value(c) > 63) {
        return Err(at);
    }
    if text.len() % 4 != 0 {
        return Err(text.len());
    }
    let mut slots = out.iter_mut();
    let mut len = 0;
    for group in digits.chunks(4) {
        let word =
            group.iter().fold(0, |word, &c| word << 6 | u32::from(value(c))) << (6 * (4 - group.len()));
        let [_, bytes @ ..] = word.to_be_bytes();
        let taken = group.len() * 6 / 8;
        // RFC 4648 §3.5: the bits that no byte uses must be zero, or one value would have several texts.
        if bytes.iter().skip(taken).any(|&byte| byte != 0) {
            return Err(digits.len() - 1);
        }
        for (byte, slot) in bytes.iter().take(taken).zip(slots.by_ref()) {
            *slot = *byte;
        }
        len += taken;
    }
    Ok(len)
}

/// The digit of a value of 0 to 63.
pub(crate) const fn digit(value: u8) -> u8 {
    let v = value as i16;
    let mut c = v + b'A' as i16;
    c += ((25 - v) >> 15) & (b'a' as i16 - 26 - b'A' as i16);
    c += ((51 - v) >> 15) & (b'0' as i16 - 52 - (b'a' as i16 - 26));
    c += ((61 - v) >> 15) & (b'+' as i16 - 62 - (b'0' as i16 - 52));
    c += ((62 - v) >> 15) & (b'/' as i16 - 63 - (b'+' as i16 - 62));
    c as u8
}

/// The value of a digit; 255 for what is no digit.
const fn value(c: u8) -> u8 {
    let c = c as i16;
    let mut value = -1;
    value += among(c, b'A', b'Z') & (c - b'A' as i16 + 1);
    value += among(c, b'a', b'z') & (c - b'a' as i16 + 27);
    value += among(c, b'0', b'9') & (c - b'0' as i16 + 53);
    value += among(c, b'+', b'+') & 63;
    value += among(c, b'/', b'/') & 64;
    value as u8
}

/// All ones if `first <= c <= last`, else zero.
const fn among(c: i16, first: u8, last: u8) -> i16 {
    ((first as i16 - 1 - c) & (c - last as i16 - 1)) >> 15
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{decode, encode, encoded_len};
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;
    use std::{string::String, vec, vec::Vec};

    fn decoded(text: &[u8]) -> Result<Vec<u8>, usize> {
        let mut out = vec![0; text.len()];
        let len = decode(text, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    #[test]
    fn refusal_says_where_the_text_is_wrong() {
        for (text, at) in [
            ("AAA", 3),
            ("AAA$", 3),
            (" AAAA", 0),
            ("AAAA\n", 4),
            ("AA=A", 2),
            ("====", 0),
            ("A===", 1),
            ("AAAA====", 4),
            ("AB==", 1),
            ("AAB=", 2),
            ("AAAAA", 5),
            ("AA-_", 2),
            ("\u{e4}AA", 0),
            ("=", 1),
        ] {
            assert_eq!(decoded(text.as_bytes()), Err(at), "{text:?}");
        }
        assert_eq!(decoded(b""), Ok(vec![]));
    }

    #[test]
    fn excess_is_counted_and_not_kept() {
        let mut out = [7; 2];
        assert_eq!(decode(b"AQIDBAUG", &mut out), Ok(6));
        assert_eq!(out, [1, 2]);
    }

    proptest! {
        #[test]
        fn encoding_equals_the_base64_crates_and_decodes_back(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut out = vec![0; encoded_len(bytes.len())];
            let len = encode(&bytes, &mut out);
            let expected = STANDARD.encode(&bytes);
            prop_assert_eq!(&out[..len], expected.as_bytes());
            prop_assert_eq!(decoded(&out), Ok(bytes));
        }

        #[test]
        fn any_text_is_judged_as_by_the_base64_crate(text in "[A-Za-z0-9+/= \u{e4}$]{0,12}") {
            let text: String = text;
            prop_assert_eq!(decoded(text.as_bytes()).ok(), STANDARD.decode(&text).ok());
        }
    }
}
