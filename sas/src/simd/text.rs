//! Signatures and escapes in AVX-512 registers (VBMI and VBMI2: Ice Lake, Zen 4 and newer), without a branch on what
//! they hold.

#![allow(unsafe_code, reason = "loads and stores of registers")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of lanes")]

use core::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch, _mm256_storeu_si256, _mm512_and_si512,
    _mm512_cmpeq_epi8_mask, _mm512_cmpge_epu8_mask, _mm512_cmpneq_epi8_mask, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_mask_mov_epi8, _mm512_maskz_compress_epi8,
    _mm512_maskz_loadu_epi8, _mm512_maskz_mov_epi8, _mm512_maskz_permutexvar_epi8, _mm512_movepi8_mask,
    _mm512_multishift_epi64_epi8, _mm512_or_si512, _mm512_permutex2var_epi8, _mm512_permutexvar_epi8,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_storeu_si512,
    _mm512_ternarylogic_epi32, _mm512_test_epi8_mask, _mm512_test_epi32_mask, _mm512_xor_si512, _pdep_u64,
    _pext_u64,
};

use crate::base64;

/// Bytes of a register.
pub(super) const WIDTH: usize = 64;

/// Digits of a signature before its `=`.
pub(super) const DIGITS: usize = 43;

/// Digits that fill a register if each takes three bytes.
const GROUP: usize = WIDTH / 3;

/// A register's worth of constant bytes.
#[repr(align(64))]
pub(super) struct Bytes(pub(super) [u8; WIDTH]);

/// The percent-encoded digits of a signature in two parts, zeros behind each; `%3D` comes after them.
pub(super) struct Escaped {
    pub(super) parts: [__m512i; 2],
    pub(super) lens: [usize; 2],
}

/// The values, 0 to 63, of the 43 digits of a digest, which lies in the lower (0) or upper (1) half of `digests`, each
/// word with its lowest byte first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn digits(digests: __m512i, half: usize) -> __m512i {
    let order = if half == 0 { &LOWER_ORDER } else { &UPPER_ORDER };
    let groups = _mm512_maskz_permutexvar_epi8(ORDER_MASK, constant(order), digests);
    let shifted = _mm512_multishift_epi64_epi8(constant(&SHIFTS), groups);
    _mm512_and_si512(shifted, _mm512_set1_epi8(63))
}

/// A signature as it stands in a token, each escape squeezed into its last character, in lower case.
#[derive(Clone, Copy)]
pub(super) struct Squeezed {
    text: __m512i,
    /// Which places are escapes.
    escaped: u64,
}

impl Squeezed {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn nothing() -> Self {
        Self { text: _mm512_setzero_si512(), escaped: 0 }
    }

    /// Takes the first `len` bytes of `text`. Says whether they have the form of a signature with `+`, `/` and `=` percent-encoded,
    /// and are no longer than a register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    pub(super) fn read(&mut self, text: &[u8], len: usize) -> bool {
        let end = text.get(..len).and_then(<[u8]>::last_chunk);
        let is_padded = matches!(end, Some([b'%', b'3', b'D' | b'd'])) & (len <= WIDTH);
        let inside = mask(len);
        let text = load(text);
        let escapes = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'%' as i8)) & inside;
        let next = _mm512_permutexvar_epi8(constant(&NEXT), text);
        let next_but_one = _mm512_permutexvar_epi8(constant(&NEXT_BUT_ONE), text);
        // All but the last one, which is there if the end is right.
        let with_two = _mm512_cmpeq_epi8_mask(next, _mm512_set1_epi8(b'2' as i8)) & escapes;
        let lower = _mm512_or_si512(next_but_one, _mm512_set1_epi8(0x20));
        let keep = inside & !(escapes << 1 | escapes << 2);
        self.text = _mm512_maskz_compress_epi8(keep, _mm512_mask_mov_epi8(text, escapes, lower));
        self.escaped = _pext_u64(escapes, keep);
        is_padded & (with_two == escapes & (inside >> 3))
    }

    /// Whether it is the signature with these digits. Looks at all of them at once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    pub(super) fn is_of(&self, digits: __m512i) -> bool {
        let escaped = _mm512_cmpge_epu8_mask(digits, _mm512_set1_epi8(62));
        let expected = _mm512_maskz_permutexvar_epi8(DIGIT_PLACES, digits, constant(&SQUEEZED));
        let differ = _mm512_ternarylogic_epi32::<0x96>(self.text, expected, constant(&PADDING));
        (u64::from(_mm512_test_epi32_mask(differ, differ)) | (escaped | 1 << DIGITS) ^ self.escaped) == 0
    }
}

/// The places of a signature's digits.
const DIGIT_PLACES: u64 = u64::MAX >> (WIDTH - DIGITS);

/// The digits as [`Squeezed`] has them: `%2B` and `%2F` by their last character.
static SQUEEZED: Bytes = {
    let mut bytes = ALPHABET.0;
    bytes[62] = b'b';
    bytes[63] = b'f';
    Bytes(bytes)
};

/// `%3D` behind the digits, likewise.
static PADDING: Bytes = {
    let mut bytes = [0; WIDTH];
    bytes[DIGITS] = b'd';
    Bytes(bytes)
};

/// The digits as they stand in a token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn escape(digits: __m512i) -> Escaped {
    // Three places for each digit: itself or `%`, `2`, and `B` or `F`. What isn't needed is squeezed out.
    let escaped = _mm512_cmpge_epu8_mask(digits, _mm512_set1_epi8(62));
    let keep = [
        FIRST_PLACES | (6 * _pdep_u64(escaped, FIRST_PLACES)),
        FIRST_PLACES | (6 * _pdep_u64(escaped >> GROUP, FIRST_PLACES)) | LAST_PLACE,
    ];
    let places = |order: &Bytes| {
        let values = _mm512_maskz_permutexvar_epi8(!SECOND_PLACES, constant(order), digits);
        let indices = _mm512_or_si512(values, constant(&PLACES));
        _mm512_permutex2var_epi8(constant(&FIRST_CHARACTERS), indices, constant(&NEXT_CHARACTERS))
    };
    Escaped {
        parts: [
            _mm512_maskz_compress_epi8(keep[0], places(&FIRST_DIGITS)),
            _mm512_maskz_compress_epi8(keep[1], places(&SECOND_DIGITS)),
        ],
        lens: keep.map(|keep| keep.count_ones() as usize),
    }
}

/// A text with each `%XX` decoded, zeros behind it.
pub(super) struct Decoded {
    text: __m512i,
    len: usize,
    /// Whether every escape was whole.
    is_good: bool,
}

impl Decoded {
    /// The first `len` bytes of `text`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    pub(super) fn of(text: __m512i, len: usize) -> Self {
        let inside = mask(len);
        let escapes = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'%' as i8)) & inside;
        let next = _mm512_permutexvar_epi8(constant(&NEXT), text);
        let next_but_one = _mm512_permutexvar_epi8(constant(&NEXT_BUT_ONE), text);
        // The table sees the lower six bits alone; what it says of the next one must be true, and the highest is zero.
        let high = _mm512_permutexvar_epi8(next, constant(&NIBBLES));
        let low = _mm512_permutexvar_epi8(next_but_one, constant(&NIBBLES));
        let differ = _mm512_or_si512(_mm512_xor_si512(high, next), _mm512_xor_si512(low, next_but_one));
        let characters = _mm512_or_si512(next, next_but_one);
        let unknown = _mm512_movepi8_mask(_mm512_or_si512(_mm512_or_si512(high, low), characters));
        let unlike = _mm512_test_epi8_mask(differ, _mm512_set1_epi8(LETTER as i8));
        let wrong = (unknown | unlike | !(inside >> 2)) & escapes;
        // The shift carries bits from one byte into the next, which the mask takes away.
        let high = _mm512_and_si512(_mm512_slli_epi16::<4>(high), _mm512_set1_epi8(0xf0_u8.cast_signed()));
        let bytes = _mm512_or_si512(high, _mm512_and_si512(low, _mm512_set1_epi8(0x0f)));
        let keep = inside & !(escapes << 1 | escapes << 2);
        Self {
            text: _mm512_maskz_compress_epi8(keep, _mm512_mask_mov_epi8(text, escapes, bytes)),
            len: keep.count_ones() as usize,
            is_good: wrong == 0,
        }
    }

    /// Whether it came to this text, of a register's width at most.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    pub(super) fn is(&self, plain: &[u8]) -> bool {
        self.is_good & (self.len == plain.len()) & (_mm512_cmpneq_epi8_mask(self.text, load(plain)) == 0)
    }
}

/// Decodes the base64 text of up to 48 bytes, followed by zeros, as [`base64::decode`] does, and returns their number.
/// `None` if the text is longer or wrong.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn decode_base64(text: &[u8], out: &mut [u8; WIDTH]) -> Option<usize> {
    if text.len() > WIDTH || text.len() % 4 != 0 {
        return None;
    }
    let digits = text.len() - usize::from(text.ends_with(b"=")) - usize::from(text.ends_with(b"=="));
    let len = digits * 6 / 8;
    let characters = load(text);
    let values = _mm512_permutex2var_epi8(constant(&LOWER_VALUES), characters, constant(&UPPER_VALUES));
    let wrong = _mm512_movepi8_mask(_mm512_or_si512(values, characters)) & mask(digits);
    let values = _mm512_maskz_mov_epi8(mask(digits), values);
    // Pairs, then fours of digits: each step shifts the left one up and adds the right one.
    let pairs = _mm512_maddubs_epi16(values, _mm512_set1_epi32(0x0140_0140));
    let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x0001_1000));
    let bytes = _mm512_maskz_permutexvar_epi8(mask(WIDTH / 4 * 3), constant(&DECODED_ORDER), fours);
    // RFC 4648 §3.5: bits that no byte uses are zero.
    let unused = _mm512_cmpneq_epi8_mask(bytes, _mm512_setzero_si512()) & !mask(len);
    if (wrong | unused) != 0 {
        return None;
    }
    store(out, bytes)?;
    Some(len)
}

/// The first `len` bits, at most 64.
#[inline]
pub(super) fn mask(len: usize) -> u64 {
    match len {
        0 => 0,
        _ => u64::MAX >> (WIDTH - len.min(WIDTH)),
    }
}

/// The first 64 bytes of `bytes`, zeros where there are fewer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn load(bytes: &[u8]) -> __m512i {
    if bytes.is_empty() {
        // Its address may be any, and a masked load from no memory takes the processor as long as two tokens.
        return _mm512_setzero_si512();
    }
    // SAFETY: bytes beyond the mask are not touched, and those below it are inside the slice.
    unsafe { _mm512_maskz_loadu_epi8(mask(bytes.len()), bytes.as_ptr().cast()) }
}

/// Sixty-four bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn load_whole(bytes: &[u8; WIDTH]) -> __m512i {
    // SAFETY: 64 bytes are there, and the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Asks for the first cache lines of what is needed soon. Those behind its end do no harm.
#[inline]
pub(super) fn prefetch<const LINES: usize, T: ?Sized>(value: &T) {
    let start: *const i8 = core::ptr::from_ref(value).cast();
    for line in 0..LINES {
        // SAFETY: a prefetch has no effect but on time, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * WIDTH)) };
    }
}

/// The same for lines that will be written, from the value with this index on.
#[inline]
pub(super) fn prefetch_to_write<const LINES: usize, T>(values: &[T], index: usize) {
    let start: *const i8 = values.as_ptr().wrapping_add(index).cast();
    for line in 0..LINES {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(start.wrapping_add(line * WIDTH)) };
    }
}

/// Writes the register to the start of `out`; `None` if it doesn't fit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn store(out: &mut [u8], value: __m512i) -> Option<()> {
    let target = out.first_chunk_mut::<WIDTH>()?;
    // SAFETY: 64 bytes are there, and the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), value) };
    Some(())
}

/// The same for half a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn store_half(out: &mut [u8], value: __m256i) -> Option<()> {
    let target = out.first_chunk_mut::<{ WIDTH / 2 }>()?;
    // SAFETY: 32 bytes are there, and the instruction asks for no alignment.
    unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), value) };
    Some(())
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn constant(bytes: &Bytes) -> __m512i {
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(bytes.0.as_ptr().cast()) }
}

/// Places 0, 3, 6, … of a register: 21 of them.
const FIRST_PLACES: u64 = 0x1249_2492_4924_9249;

/// Places 1, 4, 7, …
const SECOND_PLACES: u64 = FIRST_PLACES << 1;

/// The place that is left over; in the second part it takes the last digit, which is never escaped: its lowest two
/// bits are zero.
const LAST_PLACE: u64 = 1 << 63;

/// Which bytes of [`ORDER`] stand for bytes of the digest.
const ORDER_MASK: u64 = u64::MAX >> (WIDTH - DIGITS - 1) & !(1 << 42);

static LOWER_ORDER: Bytes = order(0);
static UPPER_ORDER: Bytes = order(WIDTH / 2);

/// For each three bytes of a digest the second, first, third and second again, as [`SHIFTS`] wants them.
const fn order(base: usize) -> Bytes {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i <= DIGITS {
        let byte = i / 4 * 3 + [1, 0, 2, 1][i % 4];
        bytes[i] = if byte < 32 { base + (byte ^ 3) } else { 0 } as u8;
        i += 1;
    }
    Bytes(bytes)
}

/// Where in a group's 32 bits the digits begin, for both groups of 64 bits.
static SHIFTS: Bytes = {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = [10, 4, 22, 16, 42, 36, 54, 48][i % 8];
        i += 1;
    }
    Bytes(bytes)
};

static ALPHABET: Bytes = {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = base64::digit(i as u8);
        i += 1;
    }
    Bytes(bytes)
};

/// The first place of each digit.
static FIRST_CHARACTERS: Bytes = {
    let mut bytes = ALPHABET.0;
    bytes[62] = b'%';
    bytes[63] = b'%';
    Bytes(bytes)
};

/// The second place, which has no digit, and the third.
static NEXT_CHARACTERS: Bytes = {
    let mut bytes = [0; WIDTH];
    bytes[0] = b'2';
    bytes[62] = b'B';
    bytes[63] = b'F';
    Bytes(bytes)
};

/// Which digit a place belongs to.
static FIRST_DIGITS: Bytes = digits_of_places(0);
static SECOND_DIGITS: Bytes = digits_of_places(GROUP);

const fn digits_of_places(first: usize) -> Bytes {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = (first + i / 3) as u8;
        i += 1;
    }
    Bytes(bytes)
}

/// Which of the tables of characters a place uses.
static PLACES: Bytes = {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = if i % 3 == 0 { 0 } else { 64 };
        i += 1;
    }
    Bytes(bytes)
};

static NEXT: Bytes = ahead(1);
static NEXT_BUT_ONE: Bytes = ahead(2);

/// The place some bytes ahead.
pub(super) const fn ahead(count: usize) -> Bytes {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = ((i + count) % WIDTH) as u8;
        i += 1;
    }
    Bytes(bytes)
}

/// What a hexadecimal letter has and a digit hasn't.
const LETTER: u8 = 0x40;

/// Values of hexadecimal digits by the lower six bits of the character, with [`LETTER`] where that is a letter; the
/// highest bit is set for what is none.
static NIBBLES: Bytes = {
    let mut bytes = [0x80; WIDTH];
    let mut value = 0;
    while value < 16 {
        if value < 10 {
            bytes[b'0' as usize + value] = value as u8;
        } else {
            bytes[b'A' as usize % WIDTH + value - 10] = LETTER | value as u8;
            bytes[b'a' as usize % WIDTH + value - 10] = LETTER | value as u8;
        }
        value += 1;
    }
    Bytes(bytes)
};

/// Values of base64's digits; the highest bit is set for what is none.
static LOWER_VALUES: Bytes = values(0);
static UPPER_VALUES: Bytes = values(64);

const fn values(first: usize) -> Bytes {
    let mut bytes = [0x80; WIDTH];
    let mut value = 0;
    while value < 64 {
        let digit = base64::digit(value) as usize;
        if digit >= first && digit < first + WIDTH {
            bytes[digit - first] = value;
        }
        value += 1;
    }
    Bytes(bytes)
}

/// The three lower bytes of each 32 bits, the highest first.
static DECODED_ORDER: Bytes = {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH / 4 * 3 {
        bytes[i] = (i / 3 * 4 + 2 - i % 3) as u8;
        i += 1;
    }
    Bytes(bytes)
};

#[cfg(test)]
mod tests {
    use super::{Decoded, load};
    use crate::simd::{Level, level};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    fn is_decoded_to(text: &[u8], plain: &[u8]) -> bool {
        Decoded::of(load(text), text.len()).is(plain)
    }

    #[test]
    fn two_characters_behind_a_percent_sign_are_a_byte_if_both_are_hexadecimal_digits() {
        if level() != Level::Avx512 {
            return;
        }
        let value = |character: u8| char::from(character).to_digit(16);
        for high in 0..=255 {
            for low in 0..=255 {
                let byte = value(high).zip(value(low)).map(|(high, low)| (16 * high + low) as u8);
                for wanted in [byte.unwrap_or(b'/'), b'/'] {
                    // SAFETY: the level has all that the function needs.
                    let is_it =
                        unsafe { is_decoded_to(&[b'a', b'%', high, low, b'b'], &[b'a', wanted, b'b']) };
                    assert_eq!(is_it, byte == Some(wanted), "{high:#x} {low:#x}");
                }
            }
        }
    }
}
