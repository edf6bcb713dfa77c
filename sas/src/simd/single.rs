//! One token: SHA instructions for the hash, AVX-512 for the text.

#![allow(unsafe_code, reason = "loads of registers, and a call of code for the same processors")]

use core::arch::x86_64::{__m512i, _mm_loadu_si128, _mm256_set_m128i, _mm512_zextsi256_si512};

use super::{
    sha_ni,
    text::{Squeezed, digits, escape, store},
};
use crate::{
    hmac::{HmacSha256, State},
    message::Message,
    secret,
    signature::SIGNATURE_LEN_MAX,
};

/// As [`crate::signature::write`].
#[target_feature(
    enable = "sha,sse4.1,ssse3,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn write_signature(
    key: &HmacSha256,
    message: &Message<'_>,
    out: &mut [u8; SIGNATURE_LEN_MAX],
) -> Option<usize> {
    // SAFETY: SHA instructions and their company are enabled here too.
    let [tag] = unsafe { sha_ni::tags([key], [message]) };
    let escaped = escape(digits(load_state(&tag), 0));
    let [first, second] = escaped.lens;
    store(out, escaped.parts[0])?;
    store(out.get_mut(first..)?, escaped.parts[1])?;
    *out.get_mut(first + second..)?.first_chunk_mut()? = *b"%3D";
    Some(first + second + "%3D".len())
}

/// As [`crate::signature::is_of`], but for the form: escapes are decoded. `None` if `text` is too long for a register.
#[target_feature(
    enable = "sha,sse4.1,ssse3,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn is_signature_of(key: &HmacSha256, message: &Message<'_>, text: &[u8]) -> Option<bool> {
    let mut given = Squeezed::nothing();
    if !given.read(text, text.len()) {
        return None;
    }
    // SAFETY: as above.
    let [mut tag] = unsafe { sha_ni::tags([key], [message]) };
    let is_same = given.is_of(digits(load_state(&tag), 0));
    secret::wipe_words(&mut tag);
    Some(is_same)
}

#[inline]
#[target_feature(enable = "sse2,avx512f")]
fn load_state(state: &State) -> __m512i {
    let words = state.as_ptr();
    // SAFETY: the state has eight words, and the instruction asks for no alignment. Two loads, because it was stored
    // by two: a load across stores waits until they are through.
    let [low, high] = unsafe { [_mm_loadu_si128(words.cast()), _mm_loadu_si128(words.add(4).cast())] };
    _mm512_zextsi256_si512(_mm256_set_m128i(high, low))
}
