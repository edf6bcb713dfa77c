//! Sealing of a key to the one device that may read it.
//!
//! A twin is readable by every holder of the hub's read permission, so a key in it is encrypted to the public key that
//! the agent reports: HPKE (RFC 9180) base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! ChaCha20-Poly1305, no associated data. The info string binds device, slot and rotation, so that a sealed key is
//! good for nothing anywhere else. Sealed = encapsulated key (32 bytes) ‖ ciphertext ‖ tag (16 bytes).

use std::{convert::Infallible, fmt};

use hpke::{
    Deserializable, Kem as _, OpModeR, OpModeS, Serializable,
    aead::{AeadTag, ChaCha20Poly1305},
    inout::InOutBuf,
    kdf::HkdfSha256,
    kem::X25519HkdfSha256,
    rand_core::{TryCryptoRng, TryRng},
    single_shot_open_inout_detached, single_shot_seal_inout_detached_with_rng,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use twinkey_sas::Key;
use zeroize::Zeroizing;

use crate::{Identity, KeySlot, RandomError, RotationId, SECTION, encoding};

/// Length of the encapsulated key in bytes (RFC 9180 §7.1, `Nenc`).
const ENCAPSULATED_LEN: usize = 32;

/// Length of the tag in bytes (RFC 9180 §7.3, `Nt`).
const TAG_LEN: usize = 16;

type Aead = ChaCha20Poly1305;
type Kdf = HkdfSha256;
type Kem = X25519HkdfSha256;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type PublicKey = <Kem as hpke::Kem>::PublicKey;
type EncapsulatedKey = <Kem as hpke::Kem>::EncappedKey;

/// Shortest sealed key in bytes.
pub const SEALED_LEN_MIN: usize = ENCAPSULATED_LEN + Key::MIN_LEN + TAG_LEN;

/// Longest sealed key in bytes.
pub const SEALED_LEN_MAX: usize = ENCAPSULATED_LEN + Key::MAX_LEN + TAG_LEN;

/// What a sealed key is good for. Its info string is
/// `"twinkey/seal/v1\n" identity "\nkeyRenewal\n" slot "\n" rotation`.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The device or module.
    pub identity: &'a Identity,
    /// The slot that the key has in the registry.
    pub slot: KeySlot,
    /// The change of keys that it belongs to.
    pub rotation: RotationId,
}

impl Binding<'_> {
    fn info(&self) -> String {
        format!("twinkey/seal/v1\n{}\n{SECTION}\n{}\n{}", self.identity, self.slot, self.rotation)
    }
}

/// The agent's private X25519 key: wiped on drop, `Debug` shows nothing of it.
#[derive(Clone)]
pub struct SealingKey {
    bytes: Zeroizing<[u8; 32]>,
}

impl SealingKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|_| RandomError)?;
        Ok(Self { bytes })
    }

    /// From the bytes that [`SealingKey::expose`] gave; the caller wipes its own copy.
    ///
    /// # Errors
    /// [`SealError::PrivateKey`] for 32 zeros, which no generator gives but a wiped file does.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SealError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(SealError::PrivateKey);
        }
        Ok(Self { bytes: Zeroizing::new(*bytes) })
    }

    /// The one door through which the private key leaves, for storing it; the caller wipes its copy.
    pub fn expose(&self) -> [u8; 32] {
        *self.bytes
    }

    /// What the agent reports as `sealTo`.
    pub fn public(&self) -> SealingPublicKey {
        // 32 bytes are always a private key: X25519 clamps them (RFC 7748 §5).
        let public =
            PrivateKey::from_bytes(self.bytes.as_slice()).map(|private| Kem::sk_to_pk(&private).to_bytes());
        SealingPublicKey(public.map(Into::into).unwrap_or_default())
    }

    /// Opens a sealed key.
    ///
    /// # Errors
    /// [`UnsealError`] if it was sealed to another public key, for another device, slot or rotation, altered, or if
    /// it holds something that can't be a device key.
    pub fn unseal(&self, binding: &Binding<'_>, sealed: &[u8]) -> Result<Key, UnsealError> {
        if !(SEALED_LEN_MIN..=SEALED_LEN_MAX).contains(&sealed.len()) {
            return Err(UnsealError);
        }
        let (encapsulated, rest) = sealed.split_first_chunk::<ENCAPSULATED_LEN>().ok_or(UnsealError)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(UnsealError)?;
        let private = PrivateKey::from_bytes(self.bytes.as_slice()).map_err(|_| UnsealError)?;
        let encapsulated = EncapsulatedKey::from_bytes(encapsulated).map_err(|_| UnsealError)?;
        let tag = AeadTag::<Aead>::from_bytes(tag).map_err(|_| UnsealError)?;
        let mut text = Zeroizing::new(ciphertext.to_vec());
        single_shot_open_inout_detached::<Aead, Kdf, Kem>(
            &OpModeR::Base,
            &private,
            &encapsulated,
            binding.info().as_bytes(),
            InOutBuf::from(text.as_mut_slice()),
            &[],
            &tag,
        )
        .map_err(|_| UnsealError)?;
        Key::from_bytes(&text).map_err(|_| UnsealError)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey([elided])")
    }
}

/// The agent's public X25519 key, reported as `sealTo`; base64 in text and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealingPublicKey(#[serde(with = "encoding::base64_32")] pub [u8; 32]);

impl SealingPublicKey {
    /// Seals a key to the holder of the private key.
    ///
    /// # Errors
    /// [`SealError::Random`], or [`SealError::PublicKey`].
    pub fn seal(&self, binding: &Binding<'_>, key: &Key) -> Result<Vec<u8>, SealError> {
        self.seal_bytes(binding, key.expose())
    }

    fn seal_bytes(&self, binding: &Binding<'_>, bytes: &[u8]) -> Result<Vec<u8>, SealError> {
        let public = PublicKey::from_bytes(&self.0).map_err(|_| SealError::PublicKey)?;
        let mut random = SystemRandom { failed: false };
        let mut text = Zeroizing::new(bytes.to_vec());
        let outcome = single_shot_seal_inout_detached_with_rng::<Aead, Kdf, Kem>(
            &OpModeS::Base,
            &public,
            binding.info().as_bytes(),
            InOutBuf::from(text.as_mut_slice()),
            &[],
            &mut random,
        );
        if random.failed {
            return Err(SealError::Random(RandomError));
        }
        let (encapsulated, tag) = outcome.map_err(|_| SealError::PublicKey)?;
        Ok([encapsulated.to_bytes().as_slice(), &text, tag.to_bytes().as_slice()].concat())
    }
}

impl fmt::Display for SealingPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::to_base64(&self.0))
    }
}

/// Why nothing could be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// Not a private key.
    #[error("the stored sealing key is all zeros: the file was wiped, provision the device again")]
    PrivateKey,
    /// A public key under which nothing can be kept secret (RFC 9180 §7.1.4).
    #[error("the device reports a `sealTo` that no honest agent would: don't send it a key")]
    PublicKey,
}

/// The sealed key can't be opened. That it says no more is deliberate: there is nothing to learn from trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the sealed key can't be opened: it was sealed to another device, slot, rotation or public key, or was altered; \
     seal it again to the `sealTo` that the device reports now"
)]
pub struct UnsealError;

/// The operating system's random numbers behind a trait that can't fail: a failure is kept, and what was made of the
/// zeros is thrown away.
struct SystemRandom {
    failed: bool,
}

impl TryRng for SystemRandom {
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
        self.failed |= getrandom::fill(target).is_err();
        Ok(())
    }
}

impl TryCryptoRng for SystemRandom {}

#[cfg(test)]
mod tests {
    use super::{Binding, SEALED_LEN_MAX, SealError, SealingKey, SealingPublicKey, UnsealError};
    use crate::{Identity, KeySlot, RotationId};
    use proptest::prelude::*;
    use twinkey_sas::Key;

    fn identity(device: &str) -> Identity {
        Identity::new(device, None).unwrap()
    }

    fn binding(identity: &Identity) -> Binding<'_> {
        Binding { identity, slot: KeySlot::Secondary, rotation: RotationId(uuid::Uuid::from_u128(5)) }
    }

    #[test]
    fn debug_shows_nothing_of_the_private_key() {
        assert_eq!(format!("{:?}", SealingKey::generate().unwrap()), "SealingKey([elided])");
    }

    /// RFC 7748 §6.1, Alice's key pair.
    #[test]
    fn public_key_is_x25519s() {
        let private = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
        let private = std::array::from_fn(|i| u8::from_str_radix(&private[i * 2..i * 2 + 2], 16).unwrap());
        let public = SealingKey::from_bytes(&private).unwrap().public().0;
        let public: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(public, "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    }

    #[test]
    fn wiped_private_key_is_refused() {
        assert_eq!(SealingKey::from_bytes(&[0; 32]).unwrap_err(), SealError::PrivateKey);
    }

    #[test]
    fn public_key_of_low_order_is_refused() {
        let identity = identity("d");
        let key = Key::from_bytes(&[1; 32]).unwrap();
        assert_eq!(SealingPublicKey([0; 32]).seal(&binding(&identity), &key), Err(SealError::PublicKey));
    }

    #[test]
    fn sealed_text_that_is_no_key_is_refused() {
        let (identity, private) = (identity("d"), SealingKey::generate().unwrap());
        for len in [0, 15, 65] {
            let sealed = private.public().seal_bytes(&binding(&identity), &vec![1; len]).unwrap();
            assert_eq!(private.unseal(&binding(&identity), &sealed), Err(UnsealError), "{len}");
        }
    }

    #[test]
    fn two_sealings_of_one_key_differ() {
        let (identity, public) = (identity("d"), SealingKey::generate().unwrap().public());
        let key = Key::from_bytes(&[1; 32]).unwrap();
        let [a, b] = [(); 2].map(|()| public.seal(&binding(&identity), &key).unwrap());
        assert_ne!(a[..32], b[..32]);
        assert_ne!(a[32..], b[32..]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn sealed_key_opens_for_its_binding_and_for_no_other(
            bytes in proptest::collection::vec(any::<u8>(), 16..=64),
            device in "[a-z]{1,8}", other in "[A-Z]{1,8}",
        ) {
            let key = Key::from_bytes(&bytes).unwrap();
            let private = SealingKey::generate().unwrap();
            let (right, wrong) = (identity(&device), identity(&other));
            let module = Identity::new(&device, Some("m")).unwrap();
            let sealed = private.public().seal(&binding(&right), &key).unwrap();
            prop_assert_eq!(sealed.len(), 48 + bytes.len());
            prop_assert_eq!(private.unseal(&binding(&right), &sealed), Ok(key));
            for foreign in [
                binding(&wrong),
                binding(&module),
                Binding { slot: KeySlot::Primary, ..binding(&right) },
                Binding { rotation: RotationId(uuid::Uuid::from_u128(6)), ..binding(&right) },
            ] {
                prop_assert_eq!(private.unseal(&foreign, &sealed), Err(UnsealError));
            }
            prop_assert_eq!(SealingKey::generate().unwrap().unseal(&binding(&right), &sealed), Err(UnsealError));
        }

        #[test]
        fn altered_or_cut_text_never_opens(bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let (identity, private) = (identity("d"), SealingKey::generate().unwrap());
            let key = Key::from_bytes(&[3; 44]).unwrap();
            let sealed = private.public().seal(&binding(&identity), &key).unwrap();
            let mut flipped = sealed.clone();
            let bit = bit.index(sealed.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(private.unseal(&binding(&identity), &flipped), Err(UnsealError));
            prop_assert_eq!(private.unseal(&binding(&identity), &sealed[..cut.index(sealed.len())]), Err(UnsealError));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..SEALED_LEN_MAX + 9)) {
            let (identity, private) = (identity("d"), SealingKey::generate().unwrap());
            prop_assert_eq!(private.unseal(&binding(&identity), &bytes), Err(UnsealError));
        }
    }
}
