//! HMAC-SHA256 with the SHA instructions of x86-64 (Intel, "Intel SHA Extensions", 2013).
//!
//! These instructions have no encoding of the AVX kind, and mixing both kinds costs a hundred nanoseconds at each
//! change while the upper halves of vector registers are in use. So nothing here is inlined into AVX code: the
//! compiler clears the upper halves before it calls a function that has no AVX.

#![allow(unsafe_code, reason = "the caller knows that the processor has the instructions")]
#![allow(unsafe_op_in_unsafe_fn, reason = "before Rust 1.87 every intrinsic is unsafe to call")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of streams")]

use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
    _mm_set1_epi8, _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
    _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128, _mm_xor_si128,
};

use super::K;
use crate::{
    hmac::{BLOCK_LEN, HmacSha256, INITIAL_STATE, State, TAG_LEN},
    message::Message,
};

/// SHA-256's state as the instructions want it.
#[derive(Clone, Copy)]
struct Halves {
    abef: __m128i,
    cdgh: __m128i,
}

/// Sixteen words of a message, in order.
type Words = [__m128i; 4];

/// The tags over some messages, as the words of SHA-256's last state.
#[inline(never)]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) unsafe fn tags<const COUNT: usize>(
    keys: [&HmacSha256; COUNT],
    messages: [&Message<'_>; COUNT],
) -> [State; COUNT] {
    let mut inner = [unpack(&INITIAL_STATE); COUNT];
    let mut outer = inner;
    let mut together = usize::MAX;
    for (i, message) in messages.iter().enumerate() {
        inner[i] = unpack(&keys[i].inner);
        outer[i] = unpack(&keys[i].outer);
        together = together.min(message.block_count());
    }
    let mut words = [[_mm_setzero_si128(); 4]; COUNT];
    for index in 0..together {
        for (words, message) in words.iter_mut().zip(messages) {
            *words = load(message.block(index));
        }
        inner = compress(inner, words);
    }
    for (inner, message) in inner.iter_mut().zip(messages) {
        for index in together..message.block_count() {
            [*inner] = compress([*inner], [load(message.block(index))]);
        }
    }
    for (words, inner) in words.iter_mut().zip(inner) {
        *words = closing_words(inner);
    }
    outer = compress(outer, words);
    let mut tags = [INITIAL_STATE; COUNT];
    for (tag, outer) in tags.iter_mut().zip(outer) {
        *tag = pack(outer);
    }
    tags
}

/// [`HmacSha256::from_padded`], both pads at once.
#[inline(never)]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub(super) unsafe fn prepare(key: &[u8; BLOCK_LEN]) -> HmacSha256 {
    let (mut inner, mut outer) = (load(key), load(key));
    for (inner, outer) in inner.iter_mut().zip(&mut outer) {
        *inner = _mm_xor_si128(*inner, _mm_set1_epi8(0x36));
        *outer = _mm_xor_si128(*outer, _mm_set1_epi8(0x5c));
    }
    let start = unpack(&INITIAL_STATE);
    let [inner, outer] = compress([start; 2], [inner, outer]);
    HmacSha256 { inner: pack(inner), outer: pack(outer) }
}

/// One block of each stream, the streams' instructions interleaved: one alone waits for its own results.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn compress<const STREAMS: usize>(
    start: [Halves; STREAMS],
    words: [Words; STREAMS],
) -> [Halves; STREAMS] {
    let (mut state, mut words) = (start, words);
    // Written out, so that the words stay in registers.
    macro_rules! four_rounds {
        ($($i:literal)+) => {$(
            let [k0, k1, k2, k3] = [K[4 * $i], K[4 * $i + 1], K[4 * $i + 2], K[4 * $i + 3]];
            let k = _mm_set_epi32(k3 as i32, k2 as i32, k1 as i32, k0 as i32);
            for (state, words) in state.iter_mut().zip(&mut words) {
                if $i >= 4 {
                    // The words that are four steps old make room for the next ones.
                    let [w0, w1, w2, w3] = [words[$i % 4], words[($i + 1) % 4], words[($i + 2) % 4], words[($i + 3) % 4]];
                    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
                    words[$i % 4] = _mm_sha256msg2_epu32(sum, w3);
                }
                let sum = _mm_add_epi32(words[$i % 4], k);
                state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, sum);
                state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32(sum, 0x0e));
            }
        )+};
    }
    four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for (state, start) in state.iter_mut().zip(start) {
        state.abef = _mm_add_epi32(state.abef, start.abef);
        state.cdgh = _mm_add_epi32(state.cdgh, start.cdgh);
    }
    state
}

/// The outer hash's block: digest, end mark, length of 64 + 32 bytes in bits.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn closing_words(inner: Halves) -> Words {
    let [dcba, hgfe] = in_order(inner);
    let bits = 8 * (BLOCK_LEN + TAG_LEN) as i32;
    [dcba, hgfe, _mm_set_epi32(0, 0, 0, i32::MIN), _mm_set_epi32(bits, 0, 0, 0)]
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn unpack(state: &State) -> Halves {
    // Taken word by word from wherever they are: a state that was just stored is not read back by halves.
    let [a, b, c, d, e, f, g, h] = *state;
    let low = _mm_set_epi32(d as i32, c as i32, b as i32, a as i32);
    let high = _mm_set_epi32(h as i32, g as i32, f as i32, e as i32);
    let cdab = _mm_shuffle_epi32(low, 0xb1);
    let efgh = _mm_shuffle_epi32(high, 0x1b);
    Halves { abef: _mm_alignr_epi8(cdab, efgh, 8), cdgh: _mm_blend_epi16(efgh, cdab, 0xf0) }
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn in_order(state: Halves) -> [__m128i; 2] {
    let feba = _mm_shuffle_epi32(state.abef, 0x1b);
    let dchg = _mm_shuffle_epi32(state.cdgh, 0xb1);
    [_mm_blend_epi16(feba, dchg, 0xf0), _mm_alignr_epi8(dchg, feba, 8)]
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn pack(state: Halves) -> State {
    let mut words = [0; 8];
    let [low, high] = in_order(state);
    let target: *mut u32 = words.as_mut_ptr();
    // Eight words of four bytes are there, and the instruction asks for no alignment.
    _mm_storeu_si128(target.cast(), low);
    _mm_storeu_si128(target.add(4).cast(), high);
    words
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn load(block: &[u8; BLOCK_LEN]) -> Words {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut words = [swap; 4];
    for (words, bytes) in words.iter_mut().zip(block.chunks_exact(size_of::<__m128i>())) {
        // Sixteen bytes are there, and the instruction asks for no alignment.
        *words = _mm_shuffle_epi8(_mm_loadu_si128(bytes.as_ptr().cast()), swap);
    }
    words
}
