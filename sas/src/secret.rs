//! Wiping and comparing secrets, with instructions as wide as the processor has them: `zeroize` and `subtle` go byte by
//! byte, which would cost a quarter of a token.

/// Overwrites `bytes` with zeros. The barrier makes the compiler believe that somebody reads them.
#[inline]
pub(crate) fn wipe(bytes: &mut [u8]) {
    const WIDTH: usize = 32;
    for chunk in bytes.chunks_exact_mut(WIDTH) {
        chunk.fill(0);
    }
    match bytes.last_chunk_mut::<WIDTH>() {
        Some(end) => *end = [0; WIDTH],
        None => bytes.fill(0),
    }
    zeroize::optimization_barrier(bytes);
}

/// The same for words.
#[inline]
pub(crate) fn wipe_words(words: &mut [u32]) {
    words.fill(0);
    zeroize::optimization_barrier(words);
}

/// Whether the slices are equal, in a time that depends on their lengths alone.
#[inline]
pub(crate) fn is_equal<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    // One byte tells; the barrier keeps the compiler from leaving the loop at the first difference.
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    subtle::ConstantTimeEq::ct_eq(&difference, &0).into()
}
