//! Which instructions are used beyond those that every processor of the target has.
//!
//! The modules below are the only ones with `unsafe`: to call code made for a processor that was found to have what
//! it needs, and to load and store registers. All of it gives the same results as the portable code.

#![allow(clippy::incompatible_msrv, reason = "the build script looks whether the compiler is new enough")]

#[cfg(all(avx512, feature = "simd"))]
mod batch;
#[cfg(all(avx512, feature = "simd"))]
mod lanes;
#[cfg(all(avx512, feature = "simd"))]
mod sha_ni;
#[cfg(all(avx512, feature = "simd"))]
mod single;
#[cfg(all(avx512, feature = "simd"))]
mod text;

#[cfg(feature = "simd")]
pub use self::level::{Level, level, limit_to};
#[cfg(not(all(avx512, feature = "simd")))]
pub(crate) use self::portable::*;
#[cfg(all(avx512, feature = "simd"))]
pub(crate) use self::x86_64::*;

/// What the portable code asks, where there is nothing else: the answer is always no.
#[cfg(not(all(avx512, feature = "simd")))]
mod portable {
    use crate::{
        bulk::{MintRequest, Progress, VerifyRequest},
        hmac::{BLOCK_LEN, HmacSha256},
        key::Key,
        message::Message,
        signature::SIGNATURE_LEN_MAX,
        token::Signer,
        verify::{Verified, VerifyError},
    };

    #[inline]
    pub(crate) fn prepare(_: &[u8; BLOCK_LEN]) -> Option<HmacSha256> {
        None
    }

    #[inline]
    pub(crate) fn decode_base64(_: &[u8], _: &mut [u8; Key::MAX_LEN]) -> Option<usize> {
        None
    }

    #[inline]
    pub(crate) fn write_signature(
        _: &HmacSha256,
        _: &Message<'_>,
        _: &mut [u8; SIGNATURE_LEN_MAX],
    ) -> Option<usize> {
        None
    }

    #[inline]
    pub(crate) fn is_signature_of(_: &HmacSha256, _: &Message<'_>, _: &[u8]) -> Option<bool> {
        None
    }

    #[inline]
    pub(crate) fn mint(_: &[MintRequest<'_>], _: &mut [u8], _: &mut [usize]) -> Progress {
        Progress::default()
    }

    #[inline]
    pub(crate) fn verify(_: &[VerifyRequest<'_>], _: u64, _: &mut [Result<Verified, VerifyError>]) -> usize {
        0
    }

    #[inline]
    pub(crate) fn derive(_: &HmacSha256, _: &[&str], _: &mut [Key]) -> usize {
        0
    }

    #[inline]
    pub(crate) fn prepare_many(_: &[Key], _: &mut [Signer]) -> usize {
        0
    }
}

#[cfg(feature = "simd")]
mod level {
    use core::sync::atomic::{AtomicU8, Ordering};

    /// Sets of instructions, each including those before.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Level {
        /// Safe code. SHA-256 itself still uses the processor's SHA instructions, through the `sha2` crate.
        Portable = 1,
        /// SHA instructions, also to prepare both states of a key at once.
        Sha = 2,
        /// Also AVX-512 with VBMI and VBMI2 (Ice Lake, Zen 4 and newer): sixteen messages at a time.
        Avx512 = 3,
    }

    /// A [`Level`], or 0 before the first look.
    static LEVEL: AtomicU8 = AtomicU8::new(0);

    /// The level in use: the best that this processor and this build have, unless [`limit_to`] was called.
    #[inline]
    pub fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            1 => Level::Portable,
            2 => Level::Sha,
            3 => Level::Avx512,
            _ => limit_to(Level::Avx512),
        }
    }

    /// Uses no more than `highest` from now on, in the whole process, and says what that comes to: for tests and
    /// measurements.
    #[cold]
    pub fn limit_to(highest: Level) -> Level {
        let level = highest.min(best());
        LEVEL.store(level as u8, Ordering::Relaxed);
        level
    }

    #[cfg(not(avx512))]
    fn best() -> Level {
        Level::Portable
    }

    #[cfg(avx512)]
    fn best() -> Level {
        cpufeatures::new!(sha, "sse2", "ssse3", "sse4.1", "sha");
        cpufeatures::new!(
            avx512,
            "sse2",
            "ssse3",
            "sse4.1",
            "sha",
            "avx2",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512vbmi",
            "avx512vbmi2",
            "bmi1",
            "bmi2",
            "popcnt"
        );
        match (sha::get(), avx512::get()) {
            (_, true) => Level::Avx512,
            (true, false) => Level::Sha,
            (false, false) => Level::Portable,
        }
    }
}

/// Calls the code that suits the level in use, if there is such code.
#[cfg(all(avx512, feature = "simd"))]
mod x86_64 {
    #![allow(unsafe_code, reason = "only here is it known that the processor has the instructions")]

    use super::{Level, batch, lanes, level, sha_ni, single, text};
    use crate::{
        bulk::{MintRequest, Progress, VerifyRequest},
        hmac::{BLOCK_LEN, HmacSha256},
        key::Key,
        message::Message,
        signature::SIGNATURE_LEN_MAX,
        token::Signer,
        verify::{Verified, VerifyError},
    };

    pub(super) fn chain_in_lanes(blocks: usize, two_waves: bool) {
        match (level(), two_waves) {
            (Level::Portable | Level::Sha, _) => {}
            // SAFETY: the level has all that the functions need.
            (Level::Avx512, false) => unsafe { lanes::chain::<1>(blocks) },
            // SAFETY: as above.
            (Level::Avx512, true) => unsafe { lanes::chain::<2>(blocks) },
        }
    }

    #[inline]
    pub(crate) fn prepare(key: &[u8; BLOCK_LEN]) -> Option<HmacSha256> {
        match level() {
            Level::Portable => None,
            // SAFETY: both levels have the SHA instructions.
            Level::Sha | Level::Avx512 => Some(unsafe { sha_ni::prepare(key) }),
        }
    }

    /// `None` is no verdict.
    #[inline]
    pub(crate) fn decode_base64(text: &[u8], out: &mut [u8; Key::MAX_LEN]) -> Option<usize> {
        match level() {
            Level::Portable | Level::Sha => None,
            // SAFETY: the level has all that the function needs.
            Level::Avx512 => unsafe { text::decode_base64(text, out) },
        }
    }

    #[inline]
    pub(crate) fn write_signature(
        key: &HmacSha256,
        message: &Message<'_>,
        out: &mut [u8; SIGNATURE_LEN_MAX],
    ) -> Option<usize> {
        match level() {
            Level::Portable | Level::Sha => None,
            // SAFETY: the level has all that the function needs.
            Level::Avx512 => unsafe { single::write_signature(key, message, out) },
        }
    }

    #[inline]
    pub(crate) fn is_signature_of(key: &HmacSha256, message: &Message<'_>, text: &[u8]) -> Option<bool> {
        match level() {
            Level::Portable | Level::Sha => None,
            // SAFETY: as above.
            Level::Avx512 => unsafe { single::is_signature_of(key, message, text) },
        }
    }

    #[inline]
    pub(crate) fn mint(requests: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Progress {
        match level() {
            Level::Portable | Level::Sha => Progress::default(),
            // SAFETY: as above.
            Level::Avx512 => unsafe { batch::mint(requests, text, ends) },
        }
    }

    #[inline]
    pub(crate) fn verify(
        requests: &[VerifyRequest<'_>],
        now: u64,
        verdicts: &mut [Result<Verified, VerifyError>],
    ) -> usize {
        match level() {
            Level::Portable | Level::Sha => 0,
            // SAFETY: as above.
            Level::Avx512 => unsafe { batch::verify(requests, now, verdicts) },
        }
    }

    #[inline]
    pub(crate) fn prepare_many(keys: &[Key], signers: &mut [Signer]) -> usize {
        match level() {
            Level::Portable | Level::Sha => 0,
            // SAFETY: as above.
            Level::Avx512 => unsafe { batch::prepare_many(keys, signers) },
        }
    }

    #[inline]
    pub(crate) fn derive(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) -> usize {
        match level() {
            Level::Portable | Level::Sha => 0,
            // SAFETY: as above.
            Level::Avx512 => unsafe { batch::derive(group, ids, keys) },
        }
    }
}

/// Hashes `blocks` blocks one after the other in each of sixteen lanes, in one wave of them or two at once: the least
/// that bulk work can cost, for the benchmark. Nothing if this processor or build has no such lanes.
#[cfg(feature = "simd")]
#[doc(hidden)]
pub fn chain_in_lanes(blocks: usize, two_waves: bool) {
    #[cfg(avx512)]
    x86_64::chain_in_lanes(blocks, two_waves);
    #[cfg(not(avx512))]
    let _ = (blocks, two_waves);
}

/// SHA-256's constants (FIPS 180-4 §4.2.2).
#[cfg(all(avx512, feature = "simd"))]
static K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];
