//! Making tokens.

use core::fmt;

use zeroize::Zeroize;

use crate::{
    hmac::HmacSha256,
    key::Key,
    percent::{self, SIGNATURE_LEN_MAX},
    resource::ResourceUri,
};

/// What every token begins with (Microsoft, "Control access to IoT Hub with SAS": token structure).
pub(crate) const PREFIX: &str = "SharedAccessSignature";

/// Digits of the largest `u64`.
const DECIMAL_LEN_MAX: usize = 20;

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
pub struct Signer {
    hmac: HmacSha256,
}

impl Signer {
    /// Prepares the key once, for any number of tokens.
    pub fn new(key: &Key) -> Self {
        HmacSha256::new(key.expose()).into()
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
        let mut decimal = [0; DECIMAL_LEN_MAX];
        let se = write_decimal(expiry.0, &mut decimal);

        // A signature takes 44 to 132 bytes by chance. Asking for the most makes a short buffer fail in the first
        // test, not in one token out of thousands.
        let needed = PREFIX.len() + " sr=&sig=&se=".len() + sr.len() + SIGNATURE_LEN_MAX + DECIMAL_LEN_MAX;
        let needed = match skn {
            [] => needed,
            _ => (needed + "&skn=".len()).saturating_add(percent::encoded_len(skn)),
        };
        let too_small = SignError::BufferTooSmall { needed, len: buffer.len() };
        if buffer.len() < needed {
            return Err(too_small);
        }

        let (sig, sig_len) = percent::encode_signature(&self.hmac.tag(&[sr, b"\n", se]));
        let sig = sig.get(..sig_len).unwrap_or_default();
        let len = write_fields(buffer, sr, sig, se, skn).ok_or(too_small)?;
        let text =
            buffer.get_mut(..len).and_then(|text| core::str::from_utf8_mut(text).ok()).ok_or(too_small)?;
        Ok(Token { text })
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
/// purpose: [`Token::expose`] is the one door.
pub struct Token<'b> {
    text: &'b mut str,
}

impl Token<'_> {
    /// A buffer of this many bytes is enough for every token without `skn`, and with an `skn` of up to 64 bytes
    /// (192 encoded).
    pub const MAX_LEN: usize = 1536;

    /// The token's text: the MQTT password, or the value of an `Authorization` header.
    pub fn expose(&self) -> &str {
        self.text
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        self.text.zeroize();
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

/// `None` if the buffer is too small. Returns the length written.
fn write_fields(buffer: &mut [u8], sr: &[u8], sig: &[u8], se: &[u8], skn: &[u8]) -> Option<usize> {
    let mut at = 0;
    for part in [PREFIX.as_bytes(), b" sr=", sr, b"&sig=", sig, b"&se=", se] {
        buffer.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    if !skn.is_empty() {
        *buffer.get_mut(at..)?.first_chunk_mut()? = *b"&skn=";
        at += "&skn=".len();
        at += percent::encode(skn, buffer.get_mut(at..)?)?;
    }
    Some(at)
}

/// The decimal digits of `value`, at the end of `out`.
fn write_decimal(mut value: u64, out: &mut [u8; DECIMAL_LEN_MAX]) -> &[u8] {
    let mut start = DECIMAL_LEN_MAX;
    for (i, slot) in out.iter_mut().enumerate().rev() {
        *slot = b'0' + (value % 10) as u8;
        value /= 10;
        start = i;
        if value == 0 {
            break;
        }
    }
    out.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{DECIMAL_LEN_MAX, Expiry, SignError, Signer, Token, write_decimal};
    use crate::{Key, ResourceUri};
    use proptest::prelude::*;
    use std::{format, string::ToString, vec};

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

    proptest! {
        #[test]
        fn decimal_is_the_standard_librarys(value in any::<u64>(), shift in 0..64u32) {
            let value = value >> shift;
            let mut digits = [0; DECIMAL_LEN_MAX];
            let expected = value.to_string();
            prop_assert_eq!(write_decimal(value, &mut digits), expected.as_bytes());
        }
    }
}
