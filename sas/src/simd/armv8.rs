//! HMAC-SHA256 with the SHA2 instructions of 64-bit ARM (Arm Architecture Reference Manual, FEAT_SHA256).

#![allow(unsafe_code, reason = "the caller knows that the processor has the instructions")]
#![allow(unsafe_op_in_unsafe_fn, reason = "before Rust 1.87 every intrinsic is unsafe to call")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of streams")]

use core::arch::aarch64::{
    uint32x4_t, vaddq_u32, vdupq_n_u8, vdupq_n_u32, veorq_u8, vld1q_u8, vld1q_u32, vreinterpretq_u8_u32,
    vreinterpretq_u32_u8, vrev32q_u8, vsha256h2q_u32, vsha256hq_u32, vsha256su0q_u32, vsha256su1q_u32,
    vst1q_u32,
};

use super::K;
use crate::{
    hmac::{BLOCK_LEN, HmacSha256, INITIAL_STATE, State, TAG_LEN},
    message::Message,
};

/// SHA-256's state as the instructions want it: words a to d, and e to h.
type Halves = [uint32x4_t; 2];

/// Sixteen words of a message, in order.
type Words = [uint32x4_t; 4];

/// The tags over some messages, as the words of SHA-256's last state.
#[target_feature(enable = "neon,sha2")]
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
    let mut words = [[vdupq_n_u32(0); 4]; COUNT];
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
    for (words, [abcd, efgh]) in words.iter_mut().zip(inner) {
        // The outer hash's block: digest, end mark, length of 64 + 32 bytes in bits.
        let ending = [1 << 31, 0, 0, 0, 0, 0, 0, 8 * (BLOCK_LEN + TAG_LEN) as u32];
        let [mark, len] = unpack(&ending);
        *words = [abcd, efgh, mark, len];
    }
    outer = compress(outer, words);
    let mut tags = [INITIAL_STATE; COUNT];
    for (tag, outer) in tags.iter_mut().zip(outer) {
        *tag = pack(outer);
    }
    tags
}

/// [`HmacSha256::from_padded`], both pads at once.
#[target_feature(enable = "neon,sha2")]
pub(super) unsafe fn prepare(key: &[u8; BLOCK_LEN]) -> HmacSha256 {
    let (mut inner, mut outer) = (load(key), load(key));
    for (inner, outer) in inner.iter_mut().zip(&mut outer) {
        *inner = pad(*inner, 0x36);
        *outer = pad(*outer, 0x5c);
    }
    let start = unpack(&INITIAL_STATE);
    let [inner, outer] = compress([start; 2], [inner, outer]);
    HmacSha256 { inner: pack(inner), outer: pack(outer) }
}

#[inline]
#[target_feature(enable = "neon,sha2")]
unsafe fn pad(words: uint32x4_t, pad: u8) -> uint32x4_t {
    vreinterpretq_u32_u8(veorq_u8(vreinterpretq_u8_u32(words), vdupq_n_u8(pad)))
}

/// One block of each stream, the streams' instructions interleaved: one alone waits for its own results.
#[inline]
#[target_feature(enable = "neon,sha2")]
unsafe fn compress<const COUNT: usize>(start: [Halves; COUNT], words: [Words; COUNT]) -> [Halves; COUNT] {
    let (mut state, mut words) = (start, words);
    // Written out, so that the words stay in registers.
    macro_rules! four_rounds {
        ($($i:literal)+) => {$(
            // Four words of four bytes are there.
            let k = vld1q_u32(K.as_ptr().add(4 * $i));
            for ([abcd, efgh], words) in state.iter_mut().zip(&mut words) {
                if $i >= 4 {
                    // The words that are four steps old make room for the next ones.
                    let [w0, w1, w2, w3] = [words[$i % 4], words[($i + 1) % 4], words[($i + 2) % 4], words[($i + 3) % 4]];
                    words[$i % 4] = vsha256su1q_u32(vsha256su0q_u32(w0, w1), w2, w3);
                }
                let sum = vaddq_u32(words[$i % 4], k);
                let before = *abcd;
                *abcd = vsha256hq_u32(before, *efgh, sum);
                *efgh = vsha256h2q_u32(*efgh, before, sum);
            }
        )+};
    }
    four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for (state, start) in state.iter_mut().zip(start) {
        for (half, start) in state.iter_mut().zip(start) {
            *half = vaddq_u32(*half, start);
        }
    }
    state
}

#[inline]
#[target_feature(enable = "neon,sha2")]
unsafe fn unpack(state: &State) -> Halves {
    // Twice four words of four bytes are there.
    [vld1q_u32(state.as_ptr()), vld1q_u32(state.as_ptr().add(4))]
}

#[inline]
#[target_feature(enable = "neon,sha2")]
unsafe fn pack([abcd, efgh]: Halves) -> State {
    let mut words = [0; 8];
    let target: *mut u32 = words.as_mut_ptr();
    // Twice four words of four bytes are there.
    vst1q_u32(target, abcd);
    vst1q_u32(target.add(4), efgh);
    words
}

#[inline]
#[target_feature(enable = "neon,sha2")]
unsafe fn load(block: &[u8; BLOCK_LEN]) -> Words {
    let mut words = [vdupq_n_u32(0); 4];
    for (words, bytes) in words.iter_mut().zip(block.chunks_exact(size_of::<uint32x4_t>())) {
        // Sixteen bytes are there. The first byte of each word is its highest.
        *words = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(bytes.as_ptr())));
    }
    words
}
