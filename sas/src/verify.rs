//! Judging tokens as a hub does.
//!
//! The signature covers `sr` exactly as it stands in the token, so whatever encoding an SDK chose verifies; only the
//! comparison with the expected resource decodes. The order is EdgeHub's (Azure/iotedge, `SharedAccessSignature.cs`
//! and `SasTokenAuthenticator`): parse, expired, primary key, secondary key, resource.

use core::fmt;

use crate::{
    audience::{Scope, names},
    canonical::Canonical,
    hmac::HmacSha256,
    key::{Key, KeySlot},
    message::Message,
    parse::{ParseError, ParsedToken},
    percent, signature,
    token::Expiry,
};

/// Verifies tokens against one or two keys. Holds HMAC states, not the keys; wiped on drop.
#[derive(Clone)]
pub struct Verifier {
    primary: HmacSha256,
    secondary: Option<HmacSha256>,
}

impl Verifier {
    /// Clock skew that a hub tolerates after `se`, in seconds (EdgeHub's `MaxClockSkew`; the same was observed of
    /// IoT Hub).
    pub const SKEW_SECS: u64 = 300;

    /// For the keys of one identity or policy.
    pub fn new(primary: &Key, secondary: Option<&Key>) -> Self {
        let prepare = |key: &Key| HmacSha256::from_padded(key.padded());
        Self::from_hmac(prepare(primary), secondary.map(prepare))
    }

    /// From the layer below, whose keys may have any length.
    pub fn from_hmac(primary: HmacSha256, secondary: Option<HmacSha256>) -> Self {
        Self { primary, secondary }
    }

    /// Verifies a token that must name exactly `plain_resource` (such as `host/devices/id`), which is the rule for
    /// the key of a device or module. An `skn` is not looked at.
    ///
    /// The host's case and a `:port` after it don't matter, on either side; the case of ids does.
    ///
    /// # Errors
    /// The first check that fails, in the order parse, expiry, signature (primary, then secondary key), resource.
    pub fn verify(
        &self,
        token: &str,
        plain_resource: &str,
        now_unix_secs: u64,
    ) -> Result<Verified, VerifyError> {
        if let Some(verified) = self.verify_canonical(token, plain_resource, now_unix_secs) {
            return Ok(verified);
        }
        let (token, verified) = self.authenticate(token, now_unix_secs)?;
        if !names(token.raw_resource, plain_resource, Scope::Exact) {
            return Err(VerifyError::Resource);
        }
        Ok(verified)
    }

    /// Verifies a token of the named hub policy, whose keys these are: its `skn` must be `policy` (as it stands or
    /// percent-decoded), and its resource may be a prefix of `plain_resource` by whole segments: `host/a` covers
    /// `host/a/b` and not `host/ab` (Microsoft, "Control access to IoT Hub with SAS": `{URL-encoded-resourceURI}`).
    ///
    /// # Errors
    /// As [`Verifier::verify`]; [`VerifyError::Resource`] also if the token names another policy or none.
    pub fn verify_as(
        &self,
        token: &str,
        policy: &str,
        plain_resource: &str,
        now_unix_secs: u64,
    ) -> Result<Verified, VerifyError> {
        let (token, verified) = self.authenticate(token, now_unix_secs)?;
        let is_policy = |raw: &str| raw == policy || percent::decode(raw.bytes()).eq(policy.bytes());
        if !token.policy.is_some_and(is_policy) || !names(token.raw_resource, plain_resource, Scope::Prefix) {
            return Err(VerifyError::Resource);
        }
        Ok(verified)
    }

    #[cfg(avx512)]
    #[inline]
    pub(crate) fn primary(&self) -> &HmacSha256 {
        &self.primary
    }

    #[cfg(accelerated)]
    #[inline]
    pub(crate) fn key(&self, slot: KeySlot) -> Option<&HmacSha256> {
        match slot {
            KeySlot::Primary => Some(&self.primary),
            KeySlot::Secondary => self.secondary.as_ref(),
        }
    }

    /// The fast way to a yes: signs again what the token says, and compares. `None` is no verdict.
    #[inline]
    fn verify_canonical(&self, token: &str, plain_resource: &str, now: u64) -> Option<Verified> {
        if token.len() > ParsedToken::TOKEN_LEN_MAX {
            return None;
        }
        let token = Canonical::recognise(token, plain_resource)?;
        let expiry = Expiry::at(token.expiry_unix_secs);
        if is_over(expiry, now) {
            return None;
        }
        let message = Message::of_raw(token.sr, &token.se);
        if signature::is_of(&self.primary, &message, token.sig) {
            return Some(Verified { slot: KeySlot::Primary, expiry });
        }
        let secondary = self.secondary.as_ref()?;
        signature::is_of(secondary, &message, token.sig)
            .then_some(Verified { slot: KeySlot::Secondary, expiry })
    }

    /// Everything but what the token is for.
    fn authenticate<'t>(&self, token: &'t str, now: u64) -> Result<(ParsedToken<'t>, Verified), VerifyError> {
        let token = ParsedToken::parse(token).map_err(VerifyError::Malformed)?;
        let expiry = token.expiry;
        if is_over(expiry, now) {
            return Err(VerifyError::Expired { expiry, now });
        }
        let slot = if token.is_signed_by(&self.primary) {
            KeySlot::Primary
        } else if self.secondary.as_ref().is_some_and(|key| token.is_signed_by(key)) {
            KeySlot::Secondary
        } else {
            return Err(VerifyError::Signature);
        };
        Ok((token, Verified { slot, expiry }))
    }
}

/// With the skew that a hub tolerates.
pub(crate) fn is_over(expiry: Expiry, now: u64) -> bool {
    expiry.unix_secs().saturating_add(Verifier::SKEW_SECS) < now
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier([elided])")
    }
}

/// A token's facts, once it has been found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Which key signed it.
    pub slot: KeySlot,
    /// When it ends.
    pub expiry: Expiry,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// No token at all.
    Malformed(ParseError),
    /// Ended more than [`Verifier::SKEW_SECS`] before now.
    Expired {
        /// When it ended.
        expiry: Expiry,
        /// The time given as now, in Unix seconds.
        now: u64,
    },
    /// Signed by neither key, or altered.
    Signature,
    /// Signed, but for another resource or in another policy's name.
    Resource,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Expired { expiry, now } => write!(
                f,
                "token ended {} seconds ago, more than the {} that a hub tolerates: make a new one, and check the clock",
                now.saturating_sub(expiry.unix_secs()),
                Verifier::SKEW_SECS
            ),
            Self::Signature => f.write_str("token was signed with another key, or was altered"),
            Self::Resource => {
                f.write_str("token is signed, but for another resource or in another policy's name")
            }
        }
    }
}

impl core::error::Error for VerifyError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Verified, Verifier, VerifyError};
    use crate::{Expiry, Key, KeySlot, ParseError, ResourceUri, Signer, Token};
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use std::{format, string::String};

    const NOW: u64 = 1_700_000_000;

    fn key(byte: u8) -> Key {
        Key::from_bytes(&[byte; 32]).unwrap()
    }

    fn token(byte: u8, plain_resource: &str, policy: &str, expiry: u64) -> String {
        let mut buffer = [0; Token::MAX_LEN];
        let resource = ResourceUri::from_plain(plain_resource).unwrap();
        let token =
            Signer::new(&key(byte)).sign_as(&resource, policy, Expiry::at(expiry), &mut buffer).unwrap();
        String::from(token.expose())
    }

    #[test]
    fn token_says_which_key_signed_it() {
        let verifier = Verifier::new(&key(1), Some(&key(2)));
        for (byte, slot) in [(1, KeySlot::Primary), (2, KeySlot::Secondary)] {
            let verified = verifier.verify(&token(byte, "h/devices/d", "", NOW), "h/devices/d", NOW);
            assert_eq!(verified, Ok(Verified { slot, expiry: Expiry::at(NOW) }));
        }
        let foreign = token(3, "h/devices/d", "", NOW);
        assert_eq!(verifier.verify(&foreign, "h/devices/d", NOW), Err(VerifyError::Signature));
    }

    #[test]
    fn equal_keys_verify_as_primary() {
        let verifier = Verifier::new(&key(1), Some(&key(1)));
        let verified = verifier.verify(&token(1, "h", "", NOW), "h", NOW).unwrap();
        assert_eq!(verified.slot, KeySlot::Primary);
    }

    #[test]
    fn token_is_expired_only_after_the_skew_and_never_by_overflow() {
        let verifier = Verifier::new(&key(1), None);
        let verify = |expiry, now| verifier.verify(&token(1, "h", "", expiry), "h", now);
        assert!(verify(NOW, NOW + 300).is_ok());
        assert_eq!(
            verify(NOW, NOW + 301),
            Err(VerifyError::Expired { expiry: Expiry::at(NOW), now: NOW + 301 })
        );
        assert!(verify(u64::MAX, u64::MAX).is_ok());
        assert!(verify(u64::MAX - 300, u64::MAX).is_ok());
        assert!(verify(u64::MAX - 301, u64::MAX).is_err());
        assert!(verify(0, 300).is_ok() && verify(0, 301).is_err());
    }

    #[test]
    fn checks_run_in_the_hubs_order() {
        let verifier = Verifier::new(&key(1), None);
        let late_foreign_elsewhere = token(9, "other", "", NOW);
        let error = |now| verifier.verify(&late_foreign_elsewhere, "h", now).unwrap_err();
        assert!(matches!(error(NOW + 1000), VerifyError::Expired { .. }));
        assert_eq!(error(NOW), VerifyError::Signature);
        assert_eq!(verifier.verify(&token(1, "other", "", NOW), "h", NOW), Err(VerifyError::Resource));
        assert_eq!(verifier.verify("", "h", NOW), Err(VerifyError::Malformed(ParseError::Prefix)));
    }

    #[test]
    fn policy_token_must_name_the_policy_and_device_token_its_own_device() {
        let verifier = Verifier::new(&key(1), None);
        let wide = token(1, "h", "my policy", NOW);
        assert!(verifier.verify_as(&wide, "my policy", "h/devices/d", NOW).is_ok());
        assert!(verifier.verify_as(&wide, "my%20policy", "h/devices/d", NOW).is_ok());
        assert_eq!(verifier.verify_as(&wide, "other", "h/devices/d", NOW), Err(VerifyError::Resource));
        assert_eq!(verifier.verify(&wide, "h/devices/d", NOW), Err(VerifyError::Resource));
        let unnamed = token(1, "h", "", NOW);
        assert_eq!(verifier.verify_as(&unnamed, "", "h/devices/d", NOW), Err(VerifyError::Resource));
        let elsewhere = token(1, "h/devices/e", "p", NOW);
        assert_eq!(verifier.verify_as(&elsewhere, "p", "h/devices/d", NOW), Err(VerifyError::Resource));
    }

    #[test]
    fn plus_never_becomes_a_space() {
        let verifier = Verifier::new(&key(1), None);
        let with_plus = token(1, "h/devices/a+b", "", NOW);
        assert!(verifier.verify(&with_plus, "h/devices/a+b", NOW).is_ok());
        assert_eq!(verifier.verify(&with_plus, "h/devices/a b", NOW), Err(VerifyError::Resource));
    }

    #[test]
    fn signed_text_is_the_expiry_as_it_stands() {
        let key = key(1);
        let tag = key.hmac(&[b"h\n007"]);
        let sig = STANDARD.encode(tag).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let text = format!("SharedAccessSignature sr=h&se=007&sig={sig}");
        assert_eq!(Verifier::new(&key, None).verify(&text, "h", 0).unwrap().expiry, Expiry::at(7));
    }

    #[test]
    fn debug_shows_nothing_of_the_keys() {
        assert_eq!(format!("{:?}", Verifier::new(&key(1), Some(&key(2)))), "Verifier([elided])");
    }
}
