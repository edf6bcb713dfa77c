//! HMAC-SHA256 (RFC 2104 over FIPS 180-4) from two kept midstates: the layer below the typed [`Key`](crate::Key).
//!
//! A key is turned into two compression states once; after that a short message costs three compressions instead
//! of five, and the key itself need not stay in memory. Any key length goes here, as RFC 2104 allows; the rule
//! of 16 to 64 bytes is IoT Hub's and lives in [`Key`](crate::Key).

use core::fmt;

use sha2::block_api::compress256;

use crate::{message::Message, secret, simd};

/// Length of a tag in bytes (FIPS 180-4: SHA-256's digest).
pub const TAG_LEN: usize = 32;

/// SHA-256's block size `B` in bytes (RFC 2104 §2); a longer key is hashed first.
pub(crate) const BLOCK_LEN: usize = 64;

/// SHA-256's initial hash value (FIPS 180-4 §5.3.3).
pub(crate) const INITIAL_STATE: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

pub(crate) type State = [u32; 8];

/// A key ready for use: SHA-256's state after the inner and after the outer pad.
///
/// Whoever holds it can sign, so it is as secret as the key: wiped on drop, and `Debug` shows nothing of it.
#[derive(Clone)]
#[repr(C)]
pub struct HmacSha256 {
    pub(crate) inner: State,
    pub(crate) outer: State,
}

impl HmacSha256 {
    /// Prepares a key of any length (RFC 2104 §2).
    pub fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK_LEN];
        if key.len() > BLOCK_LEN {
            let mut hash = Sha256::resume(INITIAL_STATE, 0);
            hash.absorb(key);
            copy_to_start(&mut block, &hash.finish());
        } else {
            copy_to_start(&mut block, key);
        }
        let ready = Self::from_padded(&block);
        secret::wipe(&mut block);
        ready
    }

    /// Prepares a key of up to a block, followed by zeros.
    #[inline]
    pub(crate) fn from_padded(key: &[u8; BLOCK_LEN]) -> Self {
        if let Some(ready) = simd::prepare(key) {
            return ready;
        }
        let mut block = *key;
        let ready = Self { inner: pad(&mut block, 0x36), outer: pad(&mut block, 0x36 ^ 0x5c) };
        secret::wipe(&mut block);
        ready
    }

    /// The inner state after some whole blocks of a message, in place of the state after none.
    pub(crate) fn absorb_whole(&mut self, blocks: &[u8]) {
        compress_whole(&mut self.inner, blocks);
    }

    /// The tag over a message that is cut into blocks already, as the words of SHA-256's last state.
    #[inline]
    pub(crate) fn tag_words(&self, message: &Message<'_>) -> State {
        let mut inner = self.inner;
        if !message.whole.is_empty() {
            compress_whole(&mut inner, message.whole);
        }
        compress256(&mut inner, message.tail());
        let mut outer = self.outer;
        compress256(&mut outer, &[closing_block(&inner)]);
        outer
    }

    /// The tag over the concatenation of `parts`.
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; TAG_LEN] {
        let mut hash = Sha256::resume(self.inner, BLOCK_LEN);
        for part in parts {
            hash.absorb(part);
        }
        hash.close();
        let mut outer = self.outer;
        compress256(&mut outer, &[closing_block(&hash.state)]);
        to_bytes(&outer)
    }
}

impl Drop for HmacSha256 {
    fn drop(&mut self) {
        secret::wipe_words(&mut self.inner);
        secret::wipe_words(&mut self.outer);
    }
}

impl fmt::Debug for HmacSha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacSha256([elided])")
    }
}

/// The state after one block of the key, each byte XORed with `mask`. The block keeps the mask, so the caller
/// turns the inner pad into the outer one by passing the XOR of both.
fn pad(block: &mut [u8; BLOCK_LEN], mask: u8) -> State {
    for byte in block.iter_mut() {
        *byte ^= mask;
    }
    let mut state = INITIAL_STATE;
    compress256(&mut state, core::slice::from_ref(block));
    state
}

/// A running SHA-256: our own frame around the compression function, because only that lets a state be resumed.
struct Sha256 {
    state: State,
    block: [u8; BLOCK_LEN],
    /// Bytes of `block` in use, always less than [`BLOCK_LEN`].
    filled: usize,
    absorbed: u64,
}

impl Sha256 {
    /// From a state that has already absorbed `absorbed` bytes, a multiple of the block size.
    fn resume(state: State, absorbed: usize) -> Self {
        Self { state, block: [0; BLOCK_LEN], filled: 0, absorbed: absorbed as u64 }
    }

    fn absorb(&mut self, mut bytes: &[u8]) {
        self.absorbed = self.absorbed.wrapping_add(bytes.len() as u64);
        while !bytes.is_empty() {
            if self.filled == 0 {
                if let Some((block, rest)) = bytes.split_first_chunk::<BLOCK_LEN>() {
                    compress256(&mut self.state, core::slice::from_ref(block));
                    bytes = rest;
                    continue;
                }
            }
            let room = self.block.get_mut(self.filled..).unwrap_or_default();
            let taken = copy_to_start(room, bytes);
            self.filled += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.filled == BLOCK_LEN {
                compress256(&mut self.state, core::slice::from_ref(&self.block));
                self.filled = 0;
            }
        }
    }

    fn finish(mut self) -> [u8; TAG_LEN] {
        self.close();
        to_bytes(&self.state)
    }

    /// Padding and length (FIPS 180-4 §5.1.1).
    fn close(&mut self) {
        let bit_len = self.absorbed.wrapping_mul(8);
        let mut tail = self.block.get_mut(self.filled..).unwrap_or_default().iter_mut();
        if let Some(first) = tail.next() {
            *first = 0x80;
        }
        tail.for_each(|byte| *byte = 0);
        // The end mark needs one byte and the length eight.
        if self.filled + 1 + 8 > BLOCK_LEN {
            compress256(&mut self.state, core::slice::from_ref(&self.block));
            self.block = [0; BLOCK_LEN];
        }
        if let Some(length) = self.block.last_chunk_mut::<8>() {
            *length = bit_len.to_be_bytes();
        }
        compress256(&mut self.state, core::slice::from_ref(&self.block));
    }
}

/// The outer hash's one block behind the pad: the inner digest, the end mark, and the length of 64 + 32 bytes in bits.
#[inline]
fn closing_block(inner: &State) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    if let Some(digest) = block.first_chunk_mut() {
        *digest = to_bytes(inner);
    }
    block[TAG_LEN] = 0x80;
    if let Some(length) = block.last_chunk_mut::<8>() {
        *length = ((BLOCK_LEN + TAG_LEN) as u64 * 8).to_be_bytes();
    }
    block
}

fn compress_whole(state: &mut State, mut blocks: &[u8]) {
    while let Some((block, rest)) = blocks.split_first_chunk::<BLOCK_LEN>() {
        compress256(state, core::slice::from_ref(block));
        blocks = rest;
    }
}

#[inline]
pub(crate) fn to_bytes(state: &State) -> [u8; TAG_LEN] {
    let mut bytes = [0; TAG_LEN];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(state) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Copies what fits and says how much that was.
fn copy_to_start(target: &mut [u8], source: &[u8]) -> usize {
    let len = target.len().min(source.len());
    if let (Some(target), Some(source)) = (target.get_mut(..len), source.get(..len)) {
        target.copy_from_slice(source);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::HmacSha256;
    use ::hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tag_equals_the_hmac_crates_however_the_message_is_cut(
            key in proptest::collection::vec(any::<u8>(), 0..200),
            message in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 2),
        ) {
            let mut peer = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
            peer.update(&message);
            let [mut a, mut b] = [cuts[0].index(message.len() + 1), cuts[1].index(message.len() + 1)];
            if a > b { core::mem::swap(&mut a, &mut b); }
            let tag = HmacSha256::new(&key).tag(&[&message[..a], &message[a..b], &message[b..]]);
            let expected = peer.finalize().into_bytes();
            prop_assert_eq!(tag.as_slice(), expected.as_slice());
        }
    }
}
