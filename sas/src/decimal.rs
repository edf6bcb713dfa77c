//! Numbers of seconds in decimal, eight digits at a time.

/// Digits of the largest `u64`.
pub(crate) const DECIMAL_LEN_MAX: usize = 20;

/// Length in bytes of the longest [`Decimal::ending`] and some zeros.
pub(crate) const ENDING_LEN: usize = 24;

/// A number's decimal digits, without leading zeros, in registers: the first digit in the lowest byte, zeros behind.
///
/// What is stored digit by digit and read back at once waits until the stores are through: so does a number that comes
/// back from a call, and that is why the functions on the way are always inlined.
#[derive(Clone, Copy)]
pub(crate) struct Decimal {
    /// Up to 16 digits.
    first: u128,
    /// The rest.
    last: u32,
    len: usize,
}

impl Decimal {
    #[inline]
    pub(crate) fn of(value: u64) -> Self {
        let len = value.checked_ilog10().map_or(1, |log| log as usize + 1);
        // Dates take the short way until the year 316889344.
        let (first, rest, rest_len) = match len.checked_sub(16) {
            None | Some(0) => (value, 0, 0),
            Some(excess) => {
                let unit = 10u64.pow(excess as u32);
                (value / unit, value % unit, excess)
            }
        };
        let first_len = len - rest_len;
        let sixteen = u128::from(eight_digits(first / EIGHT_DIGITS))
            | u128::from(eight_digits(first % EIGHT_DIGITS)) << 64;
        let last = match rest_len {
            0 => 0,
            _ => (eight_digits(rest) >> (8 * (8 - rest_len))) as u32,
        };
        Self { first: sixteen >> (8 * (16 - first_len)), last, len }
    }

    /// The number at the end of `text` and its value; `None` if there is none, or none that [`Decimal::of`] writes.
    #[inline(always)]
    pub(crate) fn read_back_from_end(text: &[u8]) -> Option<(Self, u64)> {
        if let Some(([before, first_digit, ..], digits)) =
            text.last_chunk::<11>().zip(text.last_chunk::<10>())
        {
            // What a date has: ten digits.
            if !before.is_ascii_digit() && *first_digit != b'0' {
                if let Some(read) = Self::read_ten(digits) {
                    return Some(read);
                }
            }
        }
        Self::read_back_any(text)
    }

    #[cold]
    fn read_back_any(text: &[u8]) -> Option<(Self, u64)> {
        let len = text.iter().rev().take(DECIMAL_LEN_MAX).take_while(|c| c.is_ascii_digit()).count();
        let digits = text.get(text.len().checked_sub(len)?..)?;
        if digits.first().is_none_or(|&first| first == b'0' && len > 1) {
            return None;
        }
        let value = digits
            .iter()
            .try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
        Some((Self::of(value), value))
    }

    #[inline(always)]
    fn read_ten(digits: &[u8; 10]) -> Option<(Self, u64)> {
        const ZEROS: u64 = 0x3030_3030_3030_3030;
        let (eight, two) = digits.split_first_chunk()?;
        let two: &[u8; 2] = two.first_chunk()?;
        let text = u64::from_le_bytes(*eight);
        let values = text ^ ZEROS;
        // A digit leaves the upper half of its byte empty, and still does with 6 more.
        let is_digits = ((values | ((values & 0x7f7f_7f7f_7f7f_7f7f) + 0x0606_0606_0606_0606))
            & 0xf0f0_f0f0_f0f0_f0f0)
            == 0;
        if !is_digits || !two.iter().all(u8::is_ascii_digit) {
            return None;
        }
        // Pairs, quads, all eight: each step adds ten, a hundred, ten thousand times the left neighbour.
        let pairs = (values * 10 + (values >> 8)) & 0x00ff_00ff_00ff_00ff;
        let quads = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
        let first = (quads * 10_000 + (quads >> 32)) & 0xffff_ffff;
        let last = u64::from(two[0] - b'0') * 10 + u64::from(two[1] - b'0');
        let first_and_last = u128::from(text) | u128::from(u16::from_le_bytes(*two)) << 64;
        Some((Self { first: first_and_last, last: 0, len: 10 }, first * 100 + last))
    }

    /// A line feed, the digits and the end mark of SHA-256's padding (FIPS 180-4 §5.1.1), followed by zero bytes.
    #[inline]
    pub(crate) fn ending(&self) -> [u8; ENDING_LEN] {
        let mut bytes = [0; ENDING_LEN];
        for (target, word) in bytes.chunks_exact_mut(8).zip(self.ending_words()) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The same in registers, the first byte lowest.
    #[inline(always)]
    pub(crate) fn ending_words(&self) -> [u64; ENDING_LEN / 8] {
        let mark = 0x80u128;
        let mut low = u128::from(b'\n') | self.first << 8;
        let mut high = (self.first >> 120) | u128::from(self.last) << 8;
        match (1 + self.len).checked_sub(16) {
            None => low |= mark << (8 * (1 + self.len)),
            Some(at) => high |= mark << (8 * at),
        }
        [low as u64, (low >> 64) as u64, high as u64]
    }

    /// `%3D&se=` and the digits, in registers: what follows the digits of a signature.
    #[inline(always)]
    #[cfg_attr(not(avx512), allow(dead_code, reason = "only for AVX-512"))]
    pub(crate) fn trailer_words(&self) -> [u64; 4] {
        let start = u64::from_le_bytes(*b"%3D&se=\0");
        let low = u128::from(start) | self.first << 56;
        let high = (self.first >> 72) | u128::from(self.last) << 56;
        [low as u64, (low >> 64) as u64, high as u64, (high >> 64) as u64]
    }

    /// Writes the digits, followed by zero bytes.
    #[inline]
    pub(crate) fn write(&self, out: &mut [u8; DECIMAL_LEN_MAX]) {
        if let Some((first, last)) = out.split_first_chunk_mut() {
            *first = self.first.to_le_bytes();
            last.copy_from_slice(&self.last.to_le_bytes());
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

const EIGHT_DIGITS: u64 = 100_000_000;

/// The eight last digits of a number below 10^8, leading zeros included; the first one in the lowest byte.
#[inline]
fn eight_digits(value: u64) -> u64 {
    // Halves, quarters and digits of the number, side by side; the products with the rounded-up inverses of 100 and 10
    // are exact in this range.
    let halves = (value / 10_000) | ((value % 10_000) << 32);
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | (halves - hundreds * 100) << 16;
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    (tens | (pairs - tens * 10) << 8) | 0x3030_3030_3030_3030
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Decimal;
    use proptest::prelude::*;
    use std::{format, string::ToString, vec, vec::Vec};

    fn text_of(decimal: &Decimal) -> Vec<u8> {
        let mut text = [0xaa; 20];
        decimal.write(&mut text);
        let (digits, rest) = text.split_at(decimal.len());
        assert!(rest.iter().all(|&byte| byte == 0));
        let mut ending = vec![b'\n'];
        ending.extend_from_slice(digits);
        ending.push(0x80);
        ending.resize(24, 0);
        assert_eq!(decimal.ending()[..], ending);
        digits.to_vec()
    }

    #[test]
    fn extremes_are_written_and_read_back() {
        for value in [0, 1, 9, 10, 99, 100, 999_999_999, 1_000_000_000, u64::MAX - 1, u64::MAX] {
            assert_eq!(text_of(&Decimal::of(value)), value.to_string().as_bytes());
            assert_eq!(
                Decimal::read_back_from_end(format!("x={value}").as_bytes()).map(|read| read.1),
                Some(value)
            );
        }
    }

    #[test]
    fn what_would_be_written_otherwise_is_not_read() {
        for text in
            ["", "x", "1x", "00", "x=01", "=0123456789", "18446744073709551616", "999999999999999999999"]
        {
            assert!(Decimal::read_back_from_end(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn every_other_byte_in_ten_digits_ends_the_number() {
        for at in 0..10 {
            for byte in 0..=255u8 {
                let mut text = *b"=1234567890";
                text[1 + at] = byte;
                let read = Decimal::read_back_from_end(&text).map(|read| text_of(&read.0));
                let digits =
                    &text[1 + text[1..].iter().rposition(|c| !c.is_ascii_digit()).map_or(0, |at| at + 1)..];
                let is_canonical = digits.first().is_some_and(|&c| c != b'0' || digits.len() == 1);
                assert_eq!(read, is_canonical.then(|| digits.to_vec()), "{text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn decimal_is_the_standard_librarys(value in any::<u64>(), shift in 0..64u32) {
            let value = value >> shift;
            let expected = value.to_string();
            let written = Decimal::of(value);
            prop_assert_eq!(text_of(&written), expected.as_bytes());
            let (read, back) = Decimal::read_back_from_end(expected.as_bytes()).unwrap();
            prop_assert_eq!(text_of(&read), expected.as_bytes());
            prop_assert_eq!(back, value);
        }
    }
}
