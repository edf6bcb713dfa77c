//! SHA-256 over sixteen messages at once, each in its own 32-bit lane of AVX-512 registers.

#![allow(clippy::indexing_slicing, reason = "indices are constants")]

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_ror_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::K;
use crate::hmac::{BLOCK_LEN, TAG_LEN};

/// How many messages go through at once.
pub(super) const LANES: usize = 16;

/// Word `i` of all lanes in register `i`.
pub(super) type States = [__m512i; 8];

/// The same for the sixteen words of a block.
pub(super) type Blocks = [__m512i; 16];

/// One block of each lane, in some waves of lanes at once: a wave alone would mostly wait for its own results.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn compress<const WAVES: usize>(
    start: &[States; WAVES],
    words: &[Blocks; WAVES],
) -> [States; WAVES] {
    /// What `vpternlogd` computes: its operands are the columns of this table.
    const XOR: i32 = 0x96;
    const CHOOSE: i32 = 0xca;
    const MAJORITY: i32 = 0xe8;

    let mut state = *start;
    let mut words = *words;
    macro_rules! xor {
        ($x:expr, $y:expr, $z:expr) => {
            _mm512_ternarylogic_epi32::<XOR>($x, $y, $z)
        };
    }
    macro_rules! round {
        ($a:literal $b:literal $c:literal $d:literal $e:literal $f:literal $g:literal $h:literal, $i:expr, $k:expr) => {
            let k = _mm512_set1_epi32($k[$i].cast_signed());
            for (s, w) in state.iter_mut().zip(&words) {
                let sigma = xor!(
                    _mm512_ror_epi32::<6>(s[$e]),
                    _mm512_ror_epi32::<11>(s[$e]),
                    _mm512_ror_epi32::<25>(s[$e])
                );
                let choice = _mm512_ternarylogic_epi32::<CHOOSE>(s[$e], s[$f], s[$g]);
                let word = _mm512_add_epi32(_mm512_add_epi32(w[$i], k), s[$h]);
                let first = _mm512_add_epi32(_mm512_add_epi32(word, choice), sigma);
                s[$d] = _mm512_add_epi32(s[$d], first);
                let sigma = xor!(
                    _mm512_ror_epi32::<2>(s[$a]),
                    _mm512_ror_epi32::<13>(s[$a]),
                    _mm512_ror_epi32::<22>(s[$a])
                );
                let majority = _mm512_ternarylogic_epi32::<MAJORITY>(s[$a], s[$b], s[$c]);
                s[$h] = _mm512_add_epi32(first, _mm512_add_epi32(sigma, majority));
            }
        };
    }
    macro_rules! schedule {
        ($($i:literal)+) => {$(
            for w in &mut words {
                let (w1, w14) = (w[($i + 1) % 16], w[($i + 14) % 16]);
                let s0 =
                    xor!(_mm512_ror_epi32::<7>(w1), _mm512_ror_epi32::<18>(w1), _mm512_srli_epi32::<3>(w1));
                let s1 =
                    xor!(_mm512_ror_epi32::<17>(w14), _mm512_ror_epi32::<19>(w14), _mm512_srli_epi32::<10>(w14));
                w[$i] = _mm512_add_epi32(_mm512_add_epi32(w[$i], w[($i + 9) % 16]), _mm512_add_epi32(s0, s1));
            }
        )+};
    }
    for (i, k) in K.as_chunks::<16>().0.iter().enumerate() {
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
    for (state, start) in state.iter_mut().zip(start) {
        for (state, start) in state.iter_mut().zip(start) {
            *state = _mm512_add_epi32(*state, *start);
        }
    }
    state
}

/// The same block again and again.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn chain<const WAVES: usize>(blocks: usize) {
    let words = core::hint::black_box([[_mm512_set1_epi32(1); 16]; WAVES]);
    let mut state = [[_mm512_set1_epi32(2); 8]; WAVES];
    for _ in 0..blocks {
        state = compress(&state, &words);
    }
    core::hint::black_box(state);
}

/// The outer hash of HMAC over the inner one's digests.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn close<const WAVES: usize>(outer: &[States; WAVES], inner: &[States; WAVES]) -> [States; WAVES] {
    let mut words = [[_mm512_setzero_si512(); 16]; WAVES];
    for (words, inner) in words.iter_mut().zip(inner) {
        for (word, digest) in words.iter_mut().zip(inner) {
            *word = *digest;
        }
        words[8] = _mm512_set1_epi32(i32::MIN);
        words[15] = _mm512_set1_epi32(8 * (BLOCK_LEN + TAG_LEN) as i32);
    }
    compress(outer, &words)
}

/// Turns rows into columns: word `j` of register `i` becomes word `i` of register `j`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Within each 128-bit quarter: pairs of words, then of pairs.
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut quads = pairs;
    for i in (0..16).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // Register 4g + c now holds, in quarter q, word 4q + c of rows 4g to 4g + 3: the quarters are a 4 by 4 matrix.
    let mut columns = quads;
    for c in 0..4 {
        let [r0, r1, r2, r3] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let even_low = _mm512_shuffle_i32x4::<0x88>(r0, r1);
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(r0, r1);
        let even_high = _mm512_shuffle_i32x4::<0x88>(r2, r3);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(r2, r3);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    columns
}

/// The digests of the lanes, two in each register: those of lanes `i` and `i + 8` in register `i`, each word with its
/// lowest byte first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn untangle(states: &States) -> [__m512i; 8] {
    let zero = _mm512_setzero_si512();
    let mut rows = [zero; 16];
    for (row, state) in rows.iter_mut().zip(states) {
        *row = *state;
    }
    // Words 0 to 7 of the sixteen columns are the digests.
    let columns = transpose(rows);
    let mut pairs = [zero; 8];
    for (i, pair) in pairs.iter_mut().enumerate() {
        *pair = _mm512_shuffle_i32x4::<0x44>(columns[i], columns[i + 8]);
    }
    pairs
}
