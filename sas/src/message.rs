//! What is signed: `sr`, a line feed and `se` (Microsoft, "Control access to IoT Hub with SAS": token structure), cut
//! into SHA-256's blocks.

use crate::{
    decimal::{Decimal, ENDING_LEN},
    hmac::BLOCK_LEN,
    resource::ResourceUri,
};

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
        let (whole, tail, rest_len) = cut(sr);
        Self::close(whole, tail, rest_len, sr.len(), expiry)
    }

    /// A text alone, with nothing behind it.
    #[cfg(accelerated)]
    #[inline]
    pub(crate) fn of_text(text: &'m [u8]) -> Self {
        let (whole, tail, rest_len) = cut(text);
        let mut ending = [0; ENDING_LEN];
        ending[0] = 0x80;
        Self::close_with(whole, tail, rest_len, text.len(), ending, 0)
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
        tail: [[u8; BLOCK_LEN]; 2],
        start_len: usize,
        sr_len: usize,
        expiry: &Decimal,
    ) -> Self {
        Self::close_with(whole, tail, start_len, sr_len, expiry.ending(), 1 + expiry.len())
    }

    /// `ending` is what follows the text, the end mark behind it included; `ending_len` counts without the mark.
    #[inline]
    fn close_with(
        whole: &'m [u8],
        mut tail: [[u8; BLOCK_LEN]; 2],
        start_len: usize,
        text_len: usize,
        ending: [u8; ENDING_LEN],
        ending_len: usize,
    ) -> Self {
        if let Some(target) = tail.as_flattened_mut().get_mut(start_len..).and_then(<[u8]>::first_chunk_mut) {
            *target = ending;
        }
        let needed = start_len + ending_len + 1 + size_of::<u64>();
        let tail_blocks = if needed <= BLOCK_LEN { 1 } else { 2 };
        let bit_len = 8 * (BLOCK_LEN + text_len + ending_len) as u64;
        if let Some(length) = tail.get_mut(tail_blocks - 1).and_then(|block| block.last_chunk_mut()) {
            *length = bit_len.to_be_bytes();
        }
        Self { whole, tail, tail_blocks }
    }

    #[inline]
    pub(crate) fn tail(&self) -> &[[u8; BLOCK_LEN]] {
        self.tail.get(..self.tail_blocks).unwrap_or_default()
    }

    /// How many blocks there are: at least one.
    #[cfg(accelerated)]
    #[inline]
    pub(crate) fn block_count(&self) -> usize {
        self.whole.len() / BLOCK_LEN + self.tail_blocks
    }

    /// The block with this index; the last one for an index behind it.
    #[cfg(accelerated)]
    #[inline]
    pub(crate) fn block(&self, index: usize) -> &[u8; BLOCK_LEN] {
        match self.whole.get(index * BLOCK_LEN..).and_then(<[u8]>::first_chunk) {
            Some(block) => block,
            None if index + 1 < self.block_count() => &self.tail[0],
            None if self.tail_blocks == 1 => &self.tail[0],
            None => &self.tail[1],
        }
    }
}

/// The whole blocks of a text, where they lie, and a copy of the rest and its length.
#[inline]
fn cut(text: &[u8]) -> (&[u8], [[u8; BLOCK_LEN]; 2], usize) {
    let (whole, rest) = split_whole(text);
    let mut tail = [[0; BLOCK_LEN]; 2];
    if let Some(target) = tail[0].get_mut(..rest.len()) {
        target.copy_from_slice(rest);
    }
    (whole, tail, rest.len())
}

#[inline]
pub(crate) fn split_whole(sr: &[u8]) -> (&[u8], &[u8]) {
    sr.split_at(sr.len() / BLOCK_LEN * BLOCK_LEN)
}
