//! Signatures and escapes in AVX-512 registers (VBMI and VBMI2: Ice Lake, Zen 4 and newer), without a branch on what
//! they hold.

#![allow(unsafe_code, reason = "loads and stores of registers")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of lanes")]

use core::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_storeu_si256, _mm512_and_si512,
    _mm512_cmpeq_epi8_mask, _mm512_cmpge_epu8_mask, _mm512_cmpneq_epi8_mask, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_mask_mov_epi8, _mm512_maskz_compress_epi8,
    _mm512_maskz_loadu_epi8, _mm512_maskz_mov_epi8, _mm512_maskz_permutexvar_epi8, _mm512_movepi8_mask,
    _mm512_multishift_epi64_epi8, _mm512_or_si512, _mm512_permutex2var_epi8, _mm512_permutexvar_epi8,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_storeu_si512,
    _pdep_u64,
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

/// The digits in base64's alphabet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn base64_text(digits: __m512i) -> __m512i {
    _mm512_permutexvar_epi8(digits, constant(&ALPHABET))
}

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

/// The first `len` bytes of `text` with each `%XX` decoded go to `decoded`; returns how many bytes that gives. `None` if
/// some escape is incomplete.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn decode(text: __m512i, len: usize, decoded: &mut __m512i) -> Option<usize> {
    let inside = mask(len);
    let escapes = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'%' as i8)) & inside;
    let next = _mm512_permutexvar_epi8(constant(&NEXT), text);
    let next_but_one = _mm512_permutexvar_epi8(constant(&NEXT_BUT_ONE), text);
    let high = _mm512_permutex2var_epi8(constant(&LOWER_NIBBLES), next, constant(&UPPER_NIBBLES));
    let low = _mm512_permutex2var_epi8(constant(&LOWER_NIBBLES), next_but_one, constant(&UPPER_NIBBLES));
    // The tables see the lower seven bits alone, so what isn't ASCII is looked for besides.
    let characters = _mm512_or_si512(next, next_but_one);
    let wrong = _mm512_movepi8_mask(_mm512_or_si512(_mm512_or_si512(high, low), characters)) & escapes;
    let cut_off = escapes & !(inside >> 2);
    if (wrong | cut_off) != 0 {
        return None;
    }
    // The shift carries what isn't a digit from one byte into the next.
    let upper = _mm512_and_si512(_mm512_slli_epi16::<4>(high), _mm512_set1_epi8(0xf0_u8.cast_signed()));
    let bytes = _mm512_or_si512(upper, low);
    let keep = inside & !(escapes << 1 | escapes << 2);
    *decoded = _mm512_maskz_compress_epi8(keep, _mm512_mask_mov_epi8(text, escapes, bytes));
    Some(keep.count_ones() as usize)
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

/// Asks for the first cache lines of what is needed soon. Those behind its end do no harm.
#[inline]
pub(super) fn prefetch<const LINES: usize, T: ?Sized>(value: &T) {
    let start: *const i8 = core::ptr::from_ref(value).cast();
    for line in 0..LINES {
        // SAFETY: a prefetch has no effect but on time, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * WIDTH)) };
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

/// Values of hexadecimal digits; the highest bit is set for what is none.
static LOWER_NIBBLES: Bytes = nibbles(0);
static UPPER_NIBBLES: Bytes = nibbles(64);

const fn nibbles(first: usize) -> Bytes {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        let character = (first + i) as u8;
        bytes[i] = match character {
            b'0'..=b'9' => character - b'0',
            b'A'..=b'F' => character - b'A' + 10,
            b'a'..=b'f' => character - b'a' + 10,
            _ => 0x80,
        };
        i += 1;
    }
    Bytes(bytes)
}

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
