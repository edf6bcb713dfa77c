//! The commonest act: the same resource, a new expiry.

use core::fmt;

use crate::{
    decimal::{DECIMAL_LEN_MAX, Decimal},
    hmac::{BLOCK_LEN, HmacSha256},
    message::{Message, split_whole},
    resource::ResourceUri,
    signature::{self, SIGNATURE_LEN_MAX},
    token::{EXPIRY_FIELD, Expiry, HEAD, SIGNATURE_FIELD, SignError, Signer, Token, finish},
};

/// The start of a token up to its signature, in whole blocks so that copies have a fixed size.
const HEAD_LEN_MAX: usize =
    (HEAD.len() + ResourceUri::MAX_LEN + SIGNATURE_FIELD.len()).next_multiple_of(BLOCK_LEN);

/// Signs tokens for one resource with one key: everything but expiry and signature is prepared once. From 64 bytes of
/// encoded resource on (modules, long ids) it saves a third of the hashing too.
///
/// As secret as the key: wiped on drop, and `Debug` shows nothing of it. Over a kilobyte in size.
#[derive(Clone)]
pub struct Renewal {
    /// Its inner state has absorbed the whole blocks of `sr`.
    key: HmacSha256,
    /// The rest of `sr`, followed by zeros.
    start: [u8; BLOCK_LEN],
    sr_len: usize,
    /// `SharedAccessSignature sr={sr}&sig=`, followed by zeros.
    head: [u8; HEAD_LEN_MAX],
}

impl Renewal {
    /// Prepares the tokens of a device's or module's own key. Tokens in a policy's name are made by
    /// [`Signer::sign_as`].
    pub fn new(signer: &Signer, resource: &ResourceUri) -> Self {
        let sr = resource.as_bytes();
        let (whole, rest) = split_whole(sr);
        let mut key = signer.key().clone();
        key.absorb_whole(whole);
        let mut start = [0; BLOCK_LEN];
        for (slot, byte) in start.iter_mut().zip(rest) {
            *slot = *byte;
        }
        let mut head = [0; HEAD_LEN_MAX];
        let text = HEAD.iter().chain(sr).chain(SIGNATURE_FIELD);
        for (slot, byte) in head.iter_mut().zip(text) {
            *slot = *byte;
        }
        Self { key, start, sr_len: sr.len(), head }
    }

    /// The token that [`Signer::sign`] would write.
    ///
    /// # Errors
    /// [`SignError::BufferTooSmall`]; the buffer is then untouched.
    #[inline]
    pub fn sign<'b>(&self, expiry: Expiry, buffer: &'b mut [u8]) -> Result<Token<'b>, SignError> {
        let head_len = HEAD.len() + self.sr_len + SIGNATURE_FIELD.len();
        let needed = head_len + SIGNATURE_LEN_MAX + EXPIRY_FIELD.len() + DECIMAL_LEN_MAX;
        let too_small = SignError::BufferTooSmall { needed, len: buffer.len() };
        if buffer.len() < needed {
            return Err(too_small);
        }
        let se = Decimal::of(expiry.unix_secs());
        let message = Message::resumed(&self.start, self.sr_len % BLOCK_LEN, self.sr_len, &se);
        // The signature and what follows take longer than a block, so the last one fits too.
        let blocks = buffer.chunks_exact_mut(BLOCK_LEN).zip(self.head.chunks_exact(BLOCK_LEN));
        for (target, block) in blocks.take(head_len.div_ceil(BLOCK_LEN)) {
            target.copy_from_slice(block);
        }
        let write_signature = |out: &mut _| signature::write(&self.key, &message, out);
        let len = finish(write_signature, &se, b"", buffer, head_len).ok_or(too_small)?;
        Token::from_start(buffer, len).ok_or(too_small)
    }
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renewal([elided])")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Renewal;
    use crate::{Expiry, Key, ResourceUri, Signer, Token};
    use std::{format, string::String, vec};

    #[test]
    fn renewed_token_is_the_one_that_signing_gives() {
        let signer = Signer::new(&Key::from_bytes(&[5; 32]).unwrap());
        for len in (1..200).chain([1087, ResourceUri::MAX_LEN]) {
            let resource = ResourceUri::from_plain(&"h".repeat(len)).unwrap();
            let renewal = Renewal::new(&signer, &resource);
            for expiry in [0, 1_700_000_000, u64::MAX].map(Expiry::at) {
                let [mut a, mut b] = [[0xaa; Token::MAX_LEN]; 2];
                let signed = String::from(signer.sign(&resource, expiry, &mut a).unwrap().expose());
                assert_eq!(renewal.sign(expiry, &mut b).unwrap().expose(), signed);
                // An exact fit, and one byte less.
                let needed = 25 + len + 5 + 132 + 4 + 20;
                assert_eq!(renewal.sign(expiry, &mut vec![0; needed]).unwrap().expose(), signed);
                let mut small = vec![0xaa; needed - 1];
                assert!(renewal.sign(expiry, &mut small).is_err());
                assert!(small.iter().all(|&byte| byte == 0xaa));
            }
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let signer = Signer::new(&Key::from_bytes(&[5; 32]).unwrap());
        let renewal = Renewal::new(&signer, &ResourceUri::hub("h").unwrap());
        assert_eq!(format!("{renewal:?}"), "Renewal([elided])");
    }
}
