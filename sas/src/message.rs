//! What is signed: `sr`, a line feed and `se` (Microsoft, "Control access to IoT Hub with SAS": token structure), cut
//! into SHA-256's blocks.

use crate::{decimal::Decimal, hmac::BLOCK_LEN, resource::ResourceUri};

/// A message behind a key's inner pad, padded as FIPS 180-4 §5.1.1 says.
pub(crate) struct Message<'m> {
    /// Whole blocks of `sr`, where they lie.
    pub(crate) whole: &'m [u8],
    /// The rest of `sr`, the line feed, `se`, the end mark and the length.
    tail: [[u8; BLOCK_LEN]; 2],
    tail_blocks: usize,
}

impl<'m> Message<'m> {
    #[inline]
    pub(crate) fn new(resource: &'m ResourceUri, expiry: &Decimal) -> Self {
        let sr = resource.as_bytes();
        let (whole, rest) = split_whole(sr);
        let mut tail = [[0; BLOCK_LEN]; 2];
        // A copy of fixed size: a resource is followed by zeros up to a whole block.
        if let Some(block) = resource.padded().get(whole.len()..).and_then(<[u8]>::first_chunk) {
            tail[0] = *block;
        }
        Self::close(whole, tail, rest.len(), sr.len(), expiry)
    }

    /// The same for an `sr` as it stands in some token.
    #[inline]
    pub(crate) fn of_raw(sr: &'m [u8], expiry: &Decimal) -> Self {
        let (whole, rest) = split_whole(sr);
        let mut tail = [[0; BLOCK_LEN]; 2];
        if let Some(target) = tail[0].get_mut(..rest.len()) {
            target.copy_from_slice(rest);
        }
        Self::close(whole, tail, rest.len(), sr.len(), expiry)
    }

    /// For a state that has absorbed the whole blocks of an `sr` already: `start` is the rest of it.
    #[inline]
    pub(crate) fn resumed(
        start: &[u8; BLOCK_LEN],
        start_len: usize,
        sr_len: usize,
        expiry: &Decimal,
    ) -> Self {
        Self::close(&[], [*start, [0; BLOCK_LEN]], start_len, sr_len, expiry)
    }

    #[inline]
    fn close(
        whole: &'m [u8],
        mut tail: [[u8; BLOCK_LEN]; 2],
        start_len: usize,
        sr_len: usize,
        expiry: &Decimal,
    ) -> Self {
        if let Some(target) = tail.as_flattened_mut().get_mut(start_len..).and_then(<[u8]>::first_chunk_mut) {
            *target = expiry.ending();
        }
        let needed = start_len + 1 + expiry.len() + 1 + size_of::<u64>();
        let tail_blocks = if needed <= BLOCK_LEN { 1 } else { 2 };
        let bit_len = 8 * (BLOCK_LEN + sr_len + 1 + expiry.len()) as u64;
        if let Some(length) = tail.get_mut(tail_blocks - 1).and_then(|block| block.last_chunk_mut()) {
            *length = bit_len.to_be_bytes();
        }
        Self { whole, tail, tail_blocks }
    }

    #[inline]
    pub(crate) fn tail(&self) -> &[[u8; BLOCK_LEN]] {
        self.tail.get(..self.tail_blocks).unwrap_or_default()
    }
}

#[inline]
pub(crate) fn split_whole(sr: &[u8]) -> (&[u8], &[u8]) {
    sr.split_at(sr.len() / BLOCK_LEN * BLOCK_LEN)
}
