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
///
/// Time and memory accesses depend on the length of the text and on where it is wrong, not on its digits.
pub(crate) fn decode(text: &[u8], out: &mut [u8]) -> Result<usize, usize> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let len = digits.len() * 6 / 8;
    let (mut invalid, mut last) = (0, 0);
    let mut written = 0;
    for chunk in digits.chunks(DIGITS_LEN) {
        // Missing digits count as zeros.
        let mut group = [b'A'; DIGITS_LEN];
        match <[u8; DIGITS_LEN]>::try_from(chunk) {
            Ok(whole) => group = whole,
            Err(_) => group.iter_mut().zip(chunk).for_each(|(slot, digit)| *slot = *digit),
        }
        let (bits, wrong) = decode_digits(group);
        invalid |= wrong;
        last = bits;
        let [bytes @ .., _, _] = (bits << 16).to_be_bytes();
        let room = out.get_mut(written..).unwrap_or_default();
        match (chunk.len(), room.first_chunk_mut()) {
            (DIGITS_LEN, Some(target)) => *target = bytes,
            (count, _) => {
                room.iter_mut().zip(bytes).take(count * 6 / 8).for_each(|(slot, byte)| *slot = byte)
            }
        }
        written += bytes.len();
    }
    if invalid != 0 {
        return Err(digits.iter().position(|&digit| !is_digit(digit)).unwrap_or(digits.len()));
    }
    if text.len() % 4 != 0 {
        return Err(text.len());
    }
    // RFC 4648 §3.5: the bits that no byte uses must be zero, or one value would have several texts. Here they follow
    // the decoded bytes of the last group.
    let used_bits = 8 * (len % 6);
    if digits.len() % DIGITS_LEN != 0 && last << (16 + used_bits) != 0 {
        return Err(digits.len() - 1);
    }
    Ok(len)
}

/// How many digits are decoded at once: those of six bytes.
const DIGITS_LEN: usize = 8;

/// The 48 bits that eight digits stand for, and whether one of them is none: then it isn't zero.
fn decode_digits(digits: [u8; DIGITS_LEN]) -> (u64, u64) {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST: u64 = ONES << 7;
    const VALUE: u64 = ONES * 63;
    // Each byte is a lane of its own; the highest bit, which no digit has, keeps them apart.
    let digits = u64::from_be_bytes(digits);
    let lanes = digits & !HIGHEST;
    let (mut value, mut known) = (0, 0);
    // From the first digit of each range to the last, and the first one's value.
    for (first, last, start) in
        [(b'A', b'Z', 0), (b'a', b'z', 26), (b'0', b'9', 52), (b'+', b'+', 62), (b'/', b'/', 63)]
    {
        let above = (lanes | HIGHEST) - ONES * u64::from(first);
        let below = ((ONES * u64::from(last)) | HIGHEST) - lanes;
        let inside = (above & below & HIGHEST) >> 7;
        value |= ((above & !HIGHEST) + ONES * start) & (inside * 0xff) & VALUE;
        known |= inside;
    }
    let pairs = (value & 0x3f00_3f00_3f00_3f00) >> 2 | value & 0x003f_003f_003f_003f;
    let quads = (pairs & 0x0fff_0000_0fff_0000) >> 4 | pairs & 0x0000_0fff_0000_0fff;
    (quads >> 32 << 24 | quads & 0xff_ffff, digits & HIGHEST | known ^ ONES)
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

fn is_digit(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/')
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
