//! HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305:
//! a key pair, sealing and opening.

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{
    Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _, single_shot_open_inout_detached,
    single_shot_seal_inout_detached_with_rng,
};

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// Bytes of an encapsulated key, and of a tag (RFC 9180 §7).
const ENCAPPED_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// A key pair that nobody has asked for.
pub(crate) struct KeyPair {
    private: PrivateKey,
}

impl KeyPair {
    pub(crate) fn generate() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).unwrap();
        Self::of(&STANDARD.encode(bytes))
    }

    /// Of a private key in base64.
    pub(crate) fn of(private: &str) -> Self {
        Self { private: PrivateKey::from_bytes(&STANDARD.decode(private).unwrap()).unwrap() }
    }

    /// The public key as `sealTo` has it.
    pub(crate) fn public(&self) -> String {
        STANDARD.encode(X25519HkdfSha256::sk_to_pk(&self.private).to_bytes())
    }

    /// Opens what an offer has in `sealed`; the key in base64.
    pub(crate) fn open(&self, info: &str, sealed: &str) -> Option<String> {
        let sealed = STANDARD.decode(sealed).ok()?;
        let (encapped, rest) = sealed.split_at_checked(ENCAPPED_LEN)?;
        let (text, tag) = rest.split_at_checked(rest.len().checked_sub(TAG_LEN)?)?;
        let encapped = EncappedKey::from_bytes(encapped).ok()?;
        let tag = AeadTag::<ChaCha20Poly1305>::from_bytes(tag).ok()?;
        let mut text = text.to_vec();
        single_shot_open_inout_detached::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapped,
            info.as_bytes(),
            InOutBuf::from(text.as_mut_slice()),
            &[],
            &tag,
        )
        .ok()?;
        Some(STANDARD.encode(text))
    }
}

/// Seals a key in base64 to a public key in base64, as anybody can.
pub(crate) fn seal(public: &str, info: &str, key: &str) -> String {
    let public = PublicKey::from_bytes(&STANDARD.decode(public).unwrap()).unwrap();
    let mut text = STANDARD.decode(key).unwrap();
    let (encapped, tag) =
        single_shot_seal_inout_detached_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            info.as_bytes(),
            InOutBuf::from(text.as_mut_slice()),
            &[],
            &mut Chance,
        )
        .unwrap();
    STANDARD.encode([&encapped.to_bytes()[..], &text[..], &tag.to_bytes()[..]].concat())
}

/// The kernel's random numbers.
struct Chance;

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        getrandom::fill(target).unwrap();
        Ok(())
    }
}

impl TryCryptoRng for Chance {}
