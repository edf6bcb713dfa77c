//! SHA-256 over eight messages at once, each in its own 32-bit lane of AVX2 registers: for processors that have no SHA
//! instructions (Intel's servers up to Cascade Lake, Haswell and newer desktops).

#![allow(unsafe_code, reason = "the caller knows that the processor has the instructions")]
#![allow(unsafe_op_in_unsafe_fn, reason = "before Rust 1.87 every intrinsic is unsafe to call")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of lanes")]

use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_epi8, _mm256_cmpgt_epi32,
    _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set_epi64x, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::K;
use crate::{
    hmac::{BLOCK_LEN, HmacSha256, INITIAL_STATE, State, TAG_LEN},
    message::Message,
};

/// How many messages go through at once: the words of a register.
const LANES: usize = 8;

/// Word `i` of all lanes in register `i`.
type States = [__m256i; 8];

/// The same for the sixteen words of a block.
type Blocks = [__m256i; 16];

/// The tags over some messages, as the words of SHA-256's last state.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn tags(keys: [&HmacSha256; LANES], messages: [&Message<'_>; LANES]) -> [State; LANES] {
    let (mut counts, mut longest) = ([0; LANES], 0);
    for (count, message) in counts.iter_mut().zip(messages) {
        longest = longest.max(message.block_count());
        *count = message.block_count() as u32;
    }
    let counts = load_words(&counts);
    let (mut inner, mut outer) = ([&INITIAL_STATE; LANES], [&INITIAL_STATE; LANES]);
    for (i, key) in keys.into_iter().enumerate() {
        (inner[i], outer[i]) = (&key.inner, &key.outer);
    }
    let mut state = load_states(inner);
    for index in 0..longest {
        let mut blocks = [&[0; BLOCK_LEN]; LANES];
        for (block, message) in blocks.iter_mut().zip(messages) {
            *block = message.block(index);
        }
        let next = compress(&state, load_blocks(blocks));
        let unfinished = _mm256_cmpgt_epi32(counts, _mm256_set1_epi32(index as i32));
        for (state, next) in state.iter_mut().zip(next) {
            *state = _mm256_blendv_epi8(*state, next, unfinished);
        }
    }
    // The outer hash's block: digest, end mark, length of 64 + 32 bytes in bits.
    let mut words = [_mm256_setzero_si256(); 16];
    for (word, digest) in words.iter_mut().zip(state) {
        *word = digest;
    }
    words[8] = _mm256_set1_epi32(i32::MIN);
    words[15] = _mm256_set1_epi32(8 * (BLOCK_LEN + TAG_LEN) as i32);
    store_states(compress(&load_states(outer), words))
}

/// [`HmacSha256::from_padded`] for some keys.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn prepare(keys: [&[u8; BLOCK_LEN]; LANES]) -> [HmacSha256; LANES] {
    let words = load_blocks(keys);
    let start = load_states([&INITIAL_STATE; LANES]);
    let [inner, outer] =
        [store_states(compress(&start, pad(words, 0x36))), store_states(compress(&start, pad(words, 0x5c)))];
    core::array::from_fn(|i| HmacSha256 { inner: inner[i], outer: outer[i] })
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pad(mut words: Blocks, pad: i8) -> Blocks {
    for word in &mut words {
        *word = _mm256_xor_si256(*word, _mm256_set1_epi8(pad));
    }
    words
}

/// One block of each lane.
#[target_feature(enable = "avx2")]
unsafe fn compress(start: &States, mut words: Blocks) -> States {
    let mut s = *start;
    macro_rules! sum {
        ($x:expr) => { $x };
        ($x:expr, $($rest:expr),+) => { _mm256_add_epi32($x, sum!($($rest),+)) };
    }
    macro_rules! xor {
        ($x:expr) => { $x };
        ($x:expr, $($rest:expr),+) => { _mm256_xor_si256($x, xor!($($rest),+)) };
    }
    macro_rules! rotate {
        ($x:expr, $by:literal) => {
            _mm256_or_si256(_mm256_srli_epi32::<$by>($x), _mm256_slli_epi32::<{ 32 - $by }>($x))
        };
    }
    macro_rules! round {
        ($a:literal $b:literal $c:literal $d:literal $e:literal $f:literal $g:literal $h:literal, $i:expr, $k:expr) => {
            let sigma = xor!(rotate!(s[$e], 6), rotate!(s[$e], 11), rotate!(s[$e], 25));
            let choice = xor!(_mm256_and_si256(s[$e], s[$f]), _mm256_andnot_si256(s[$e], s[$g]));
            // What is there last is added last.
            let first = sum!(sigma, choice, s[$h], words[$i], _mm256_set1_epi32($k[$i] as i32));
            s[$d] = sum!(s[$d], first);
            let sigma = xor!(rotate!(s[$a], 2), rotate!(s[$a], 13), rotate!(s[$a], 22));
            // The majority: b where b and c agree, a where they don't.
            let majority = xor!(s[$b], _mm256_and_si256(xor!(s[$a], s[$b]), xor!(s[$b], s[$c])));
            s[$h] = sum!(first, majority, sigma);
        };
    }
    macro_rules! schedule {
        ($($i:literal)+) => {$(
            let (w1, w14) = (words[($i + 1) % 16], words[($i + 14) % 16]);
            let s0 = xor!(rotate!(w1, 7), rotate!(w1, 18), _mm256_srli_epi32::<3>(w1));
            let s1 = xor!(rotate!(w14, 17), rotate!(w14, 19), _mm256_srli_epi32::<10>(w14));
            words[$i] = sum!(words[$i], words[($i + 9) % 16], s0, s1);
        )+};
    }
    for (i, k) in K.chunks_exact(16).enumerate() {
        macro_rules! eight {
            ($at:expr) => {
                round!(0 1 2 3 4 5 6 7, $at, k);
                round!(7 0 1 2 3 4 5 6, $at + 1, k);
                round!(6 7 0 1 2 3 4 5, $at + 2, k);
                round!(5 6 7 0 1 2 3 4, $at + 3, k);
                round!(4 5 6 7 0 1 2 3, $at + 4, k);
                round!(3 4 5 6 7 0 1 2, $at + 5, k);
                round!(2 3 4 5 6 7 0 1, $at + 6, k);
                round!(1 2 3 4 5 6 7 0, $at + 7, k);
            };
        }
        if i > 0 {
            schedule!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        eight!(0);
        eight!(8);
    }
    for (state, start) in s.iter_mut().zip(start) {
        *state = _mm256_add_epi32(*state, *start);
    }
    s
}

/// Turns rows into columns: word `j` of register `i` becomes word `i` of register `j`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    // Within each 128-bit half: pairs of words, then of pairs; then the halves.
    let mut pairs = rows;
    for i in [0, 2, 4, 6] {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut quads = pairs;
    for i in [0, 4] {
        quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = quads;
    for i in 0..4 {
        columns[i] = _mm256_permute2x128_si256::<0x20>(quads[i], quads[4 + i]);
        columns[4 + i] = _mm256_permute2x128_si256::<0x31>(quads[i], quads[4 + i]);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_words(words: &[u32; 8]) -> __m256i {
    // 32 bytes are there, and the instruction asks for no alignment.
    _mm256_loadu_si256(words.as_ptr().cast())
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_states(states: [&State; LANES]) -> States {
    let mut rows = [_mm256_setzero_si256(); LANES];
    for (row, state) in rows.iter_mut().zip(states) {
        *row = load_words(state);
    }
    transpose(rows)
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_states(states: States) -> [State; LANES] {
    let mut lanes = [[0; 8]; LANES];
    for (lane, row) in lanes.iter_mut().zip(transpose(states)) {
        // 32 bytes are there, and the instruction asks for no alignment.
        _mm256_storeu_si256(lane.as_mut_ptr().cast(), row);
    }
    lanes
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_blocks(blocks: [&[u8; BLOCK_LEN]; LANES]) -> Blocks {
    let (low, high) = (0x0405_0607_0001_0203, 0x0c0d_0e0f_0809_0a0b);
    let swap = _mm256_set_epi64x(high, low, high, low);
    let mut words = [_mm256_setzero_si256(); 16];
    for half in [0, 1] {
        let mut rows = [_mm256_setzero_si256(); LANES];
        for (row, block) in rows.iter_mut().zip(blocks) {
            // Two times 32 bytes are there, and the instruction asks for no alignment.
            let bytes: *const __m256i = block.as_ptr().cast();
            *row = _mm256_shuffle_epi8(_mm256_loadu_si256(bytes.add(half)), swap);
        }
        words[8 * half..8 * half + 8].copy_from_slice(&transpose(rows));
    }
    words
}
