//! Making tokens.

use core::fmt;

use crate::{
    decimal::{DECIMAL_LEN_MAX, Decimal},
    hmac::HmacSha256,
    key::Key,
    message::Message,
    percent,
    resource::ResourceUri,
    secret,
    signature::{self, SIGNATURE_LEN_MAX},
};

/// What every token begins with (Microsoft, "Control access to IoT Hub with SAS": token structure).
pub(crate) const PREFIX: &str = "SharedAccessSignature";

/// How a token's text begins.
pub(crate) const HEAD: &[u8; 25] = b"SharedAccessSignature sr=";

/// What stands before the signature.
pub(crate) const SIGNATURE_FIELD: &[u8; 5] = b"&sig=";

/// What stands before the expiry.
pub(crate) const EXPIRY_FIELD: &[u8; 4] = b"&se=";

/// `se`: when a token ends, in Unix seconds, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry(u64);

impl Expiry {
    /// At this Unix time.
    pub const fn at(unix_secs: u64) -> Self {
        Self(unix_secs)
    }

    /// A lifetime from now; `None` on overflow.
    pub fn after(now_unix_secs: u64, lifetime_secs: u64) -> Option<Self> {
        now_unix_secs.checked_add(lifetime_secs).map(Self)
    }

    /// Unix seconds, UTC.
    pub const fn unix_secs(self) -> u64 {
        self.0
    }
}

/// Signs tokens with one key. Holds the two HMAC states made of the key, not the key; wiped on drop.
#[derive(Clone)]
// Fills one cache line: there may be a million of them.
#[repr(align(64))]
pub struct Signer {
    hmac: HmacSha256,
}

impl Signer {
    /// Prepares the key once, for any number of tokens.
    pub fn new(key: &Key) -> Self {
        HmacSha256::from_padded(key.padded()).into()
    }

    /// Writes `SharedAccessSignature sr={sr}&sig={sig}&se={se}`: the token of a device's or module's own key.
    ///
    /// # Errors
    /// [`SignError::BufferTooSmall`]; the buffer is then untouched.
    pub fn sign<'b>(
        &self,
        resource: &ResourceUri,
        expiry: Expiry,
        buffer: &'b mut [u8],
    ) -> Result<Token<'b>, SignError> {
        self.sign_as(resource, "", expiry, buffer)
    }

    /// The same with `&skn={policy}`, percent-encoded: the name of a hub's policy, or `registration` for the Device
    /// Provisioning Service. An empty name is none.
    ///
    /// # Errors
    /// [`SignError::BufferTooSmall`]; the buffer is then untouched.
    pub fn sign_as<'b>(
        &self,
        resource: &ResourceUri,
        policy: &str,
        expiry: Expiry,
        buffer: &'b mut [u8],
    ) -> Result<Token<'b>, SignError> {
        let (sr, skn) = (resource.as_bytes(), policy.as_bytes());
        // A signature takes 44 to 132 bytes by chance. Asking for the most makes a short buffer fail in the first
        // test, not in one token out of thousands.
        let needed = HEAD.len() + sr.len() + "&sig=&se=".len() + SIGNATURE_LEN_MAX + DECIMAL_LEN_MAX;
        let needed = match skn {
            [] => needed,
            _ => (needed + "&skn=".len()).saturating_add(percent::encoded_len(skn)),
        };
        let too_small = SignError::BufferTooSmall { needed, len: buffer.len() };
        if buffer.len() < needed {
            return Err(too_small);
        }
        let se = Decimal::of(expiry.0);
        let message = Message::new(resource, &se);
        let at = write_head(resource, buffer).ok_or(too_small)?;
        let write_signature = |out: &mut _| signature::write(&self.hmac, &message, out);
        let len = finish(write_signature, &se, skn, buffer, at).ok_or(too_small)?;
        Token::from_start(buffer, len).ok_or(too_small)
    }

    #[inline]
    pub(crate) fn key(&self) -> &HmacSha256 {
        &self.hmac
    }

    #[cfg(avx512)]
    pub(crate) fn key_mut(&mut self) -> &mut HmacSha256 {
        &mut self.hmac
    }
}

/// From the layer below, whose keys may have any length.
impl From<HmacSha256> for Signer {
    fn from(hmac: HmacSha256) -> Self {
        Self { hmac }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer([elided])")
    }
}

/// A token in the caller's buffer. Wiped when dropped, `Debug` shows nothing of it, and there is no `Deref` on
/// purpose: [`Token::expose`] and its twin are the one door.
pub struct Token<'b> {
    /// ASCII.
    text: &'b mut [u8],
}

impl Token<'_> {
    /// A buffer of this many bytes is enough for every token without `skn`, and with an `skn` of up to 64 bytes
    /// (192 encoded).
    pub const MAX_LEN: usize = 1536;

    pub(crate) fn from_start(buffer: &mut [u8], len: usize) -> Option<Token<'_>> {
        Some(Token { text: buffer.get_mut(..len)? })
    }

    /// The token's text: the MQTT password, or the value of an `Authorization` header.
    #[inline]
    pub fn expose(&self) -> &str {
        core::str::from_utf8(self.text).unwrap_or_default()
    }

    /// The same text as bytes, which are ASCII: a little faster, and what a packet or a header needs.
    #[inline]
    pub fn expose_bytes(&self) -> &[u8] {
        self.text
    }
}

impl Drop for Token<'_> {
    #[inline]
    fn drop(&mut self) {
        secret::wipe(self.text);
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([elided])")
    }
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignError {
    /// The buffer can't hold every token for this resource and policy.
    BufferTooSmall {
        /// Bytes that are always enough for this resource and policy, whatever the signature.
        needed: usize,
        /// Bytes given.
        len: usize,
    },
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferTooSmall { needed, len } => {
                write!(f, "token needs a buffer of {needed} bytes, this one has {len}")
            }
        }
    }
}

impl core::error::Error for SignError {}

/// Writes all up to the signature and returns its length; `None` if the buffer is too small.
#[inline]
fn write_head(resource: &ResourceUri, buffer: &mut [u8]) -> Option<usize> {
    const BLOCK_LEN: usize = 64;
    let sr_len = resource.as_bytes().len();
    let (head, rest) = buffer.split_first_chunk_mut()?;
    *head = *HEAD;
    // Copies of fixed size: zeros follow the resource, and what is behind it in the token is longer than a block.
    let blocks = rest.chunks_exact_mut(BLOCK_LEN).zip(resource.padded().chunks_exact(BLOCK_LEN));
    for (target, block) in blocks.take(sr_len.div_ceil(BLOCK_LEN)) {
        target.copy_from_slice(block);
    }
    *rest.get_mut(sr_len..)?.first_chunk_mut()? = *SIGNATURE_FIELD;
    Some(HEAD.len() + sr_len + SIGNATURE_FIELD.len())
}

/// Writes the signature at `at` and all behind it, and returns the token's length; `None` if the buffer is too small.
#[inline]
pub(crate) fn finish(
    write_signature: impl FnOnce(&mut [u8; SIGNATURE_LEN_MAX]) -> usize,
    se: &Decimal,
    skn: &[u8],
    buffer: &mut [u8],
    mut at: usize,
) -> Option<usize> {
    at += write_signature(buffer.get_mut(at..)?.first_chunk_mut()?);
    let (field, rest) = buffer.get_mut(at..)?.split_first_chunk_mut()?;
    *field = *EXPIRY_FIELD;
    se.write(rest.first_chunk_mut()?);
    at += EXPIRY_FIELD.len() + se.len();
    if !skn.is_empty() {
        *buffer.get_mut(at..)?.first_chunk_mut()? = *b"&skn=";
        at += "&skn=".len();
        at += percent::encode(skn, buffer.get_mut(at..)?)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Expiry, SignError, Signer, Token};
    use crate::{Key, ResourceUri};
    use std::{format, vec};

    fn signer() -> Signer {
        Signer::new(&Key::from_bytes(&[5; 32]).unwrap())
    }

    #[test]
    fn debug_shows_neither_key_nor_token() {
        let mut buffer = [0; Token::MAX_LEN];
        let token = signer().sign(&ResourceUri::hub("h").unwrap(), Expiry::at(1), &mut buffer).unwrap();
        assert_eq!(format!("{token:?} {:?}", signer()), "Token([elided]) Signer([elided])");
    }

    #[test]
    fn dropped_token_leaves_nothing_in_the_buffer() {
        let mut buffer = [0; Token::MAX_LEN];
        let token = signer().sign(&ResourceUri::hub("h").unwrap(), Expiry::at(1), &mut buffer).unwrap();
        assert!(token.expose().starts_with("SharedAccessSignature sr=h&sig="));
        drop(token);
        assert_eq!(buffer, [0; Token::MAX_LEN]);
    }

    #[test]
    fn short_buffer_is_refused_untouched_and_the_size_asked_for_always_works() {
        let resource = ResourceUri::device("h.net", "d").unwrap();
        let mut buffer = vec![0xaa; 50];
        let error = signer().sign_as(&resource, "my policy", Expiry::at(9), &mut buffer).unwrap_err();
        assert_eq!(buffer, vec![0xaa; 50]);
        let SignError::BufferTooSmall { needed, len: 50 } = error else { panic!("{error}") };
        for expiry in 0..200 {
            let sign =
                |len| signer().sign_as(&resource, "my policy", Expiry::at(expiry), &mut vec![0; len]).is_ok();
            assert!(sign(needed) && !sign(needed - 1));
        }
    }

    #[test]
    fn largest_token_without_policy_fits_the_advised_buffer() {
        let resource = ResourceUri::from_plain(&"h".repeat(ResourceUri::MAX_LEN)).unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let policy = "#".repeat(64);
        assert!(signer().sign_as(&resource, &policy, Expiry::at(u64::MAX), &mut buffer).is_ok());
    }

    #[test]
    fn policy_is_percent_encoded_and_an_empty_one_left_out() {
        let resource = ResourceUri::hub("h").unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let token = signer().sign_as(&resource, "a&b=c", Expiry::at(7), &mut buffer).unwrap();
        assert!(token.expose().ends_with("&se=7&skn=a%26b%3Dc"));
        drop(token);
        assert!(
            signer().sign_as(&resource, "", Expiry::at(7), &mut buffer).unwrap().expose().ends_with("&se=7")
        );
    }

    #[test]
    fn expiry_does_not_overflow() {
        assert_eq!(Expiry::after(u64::MAX, 1), None);
        assert_eq!(Expiry::after(5, 3600), Some(Expiry::at(3605)));
    }
}
