//! Which instructions are used beyond those that every processor of the target has.
//!
//! The modules below are the only ones with `unsafe`: to call code made for a processor that was found to have what
//! it needs, and to load and store registers. All of it gives the same results as the portable code.

#![allow(clippy::incompatible_msrv, reason = "the build script looks whether the compiler is new enough")]

#[cfg(all(accelerated, target_arch = "aarch64"))]
mod armv8;
#[cfg(all(accelerated, target_arch = "x86_64"))]
mod avx2;
#[cfg(avx512)]
mod batch;
#[cfg(accelerated)]
mod group;
#[cfg(avx512)]
mod lanes;
#[cfg(all(accelerated, target_arch = "x86_64"))]
mod sha_ni;
#[cfg(avx512)]
mod single;
#[cfg(avx512)]
mod text;

#[cfg(all(accelerated, target_arch = "aarch64"))]
pub(crate) use self::aarch64::*;
#[cfg(feature = "simd")]
pub use self::level::{Level, level, limit_to};
#[cfg(not(accelerated))]
pub(crate) use self::portable::*;
#[cfg(all(accelerated, target_arch = "x86_64"))]
pub(crate) use self::x86_64::*;

/// What the portable code asks, where there is nothing else: the answer is always no.
#[cfg(not(accelerated))]
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

    /// Ways of hashing, the better ones last. A processor may lack one that is not its best.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    #[non_exhaustive]
    pub enum Level {
        /// Safe code. SHA-256 itself still uses the processor's SHA instructions, through the `sha2` crate.
        Portable = 1,
        /// AVX2 of x86-64: eight messages at a time in bulk.
        Avx2 = 2,
        /// SHA instructions of x86-64 or 64-bit ARM: both states of a key at once, and in bulk two messages.
        Sha = 3,
        /// SHA instructions, and AVX-512 with VBMI and VBMI2 (Ice Lake, Zen 4 and newer): sixteen messages at a time.
        Avx512 = 4,
    }

    /// A [`Level`], or 0 before the first look.
    static LEVEL: AtomicU8 = AtomicU8::new(0);

    /// The level in use: the best that this processor and this build have, unless [`limit_to`] was called.
    #[inline]
    pub fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            1 => Level::Portable,
            2 => Level::Avx2,
            3 => Level::Sha,
            4 => Level::Avx512,
            _ => limit_to(Level::Avx512),
        }
    }

    /// Uses no more than `highest` from now on, in the whole process, and says what that comes to: for tests and
    /// measurements.
    #[cold]
    pub fn limit_to(highest: Level) -> Level {
        let is_allowed = |level: &Level| *level <= highest && is_there(*level);
        let level = [Level::Avx512, Level::Sha, Level::Avx2].into_iter().find(is_allowed);
        let level = level.unwrap_or(Level::Portable);
        LEVEL.store(level as u8, Ordering::Relaxed);
        level
    }

    #[cfg(not(accelerated))]
    fn is_there(level: Level) -> bool {
        level == Level::Portable
    }

    #[cfg(all(accelerated, target_arch = "aarch64"))]
    fn is_there(level: Level) -> bool {
        cpufeatures::new!(sha, "sha2");
        match level {
            Level::Portable => true,
            Level::Sha => sha::get(),
            Level::Avx2 | Level::Avx512 => false,
        }
    }

    #[cfg(all(accelerated, target_arch = "x86_64"))]
    fn is_there(level: Level) -> bool {
        cpufeatures::new!(avx2, "avx2");
        cpufeatures::new!(sha, "sse2", "ssse3", "sse4.1", "sha");
        match level {
            Level::Portable => true,
            Level::Avx2 => avx2::get(),
            Level::Sha => sha::get(),
            Level::Avx512 => is_avx512_there(),
        }
    }

    #[cfg(all(accelerated, target_arch = "x86_64", not(avx512)))]
    fn is_avx512_there() -> bool {
        false
    }

    #[cfg(avx512)]
    fn is_avx512_there() -> bool {
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
        avx512::get()
    }
}

/// Calls the code that suits the level in use, if there is such code.
#[cfg(all(accelerated, target_arch = "x86_64"))]
mod x86_64 {
    #![allow(unsafe_code, reason = "only here is it known that the processor has the instructions")]
    #![cfg_attr(not(avx512), allow(unused_variables, reason = "some are for AVX-512 alone"))]

    use super::{
        Level, avx2,
        group::{self, GROUP},
        level, sha_ni,
    };
    #[cfg(avx512)]
    use super::{batch, lanes, single, text};
    use crate::{
        bulk::{MintRequest, Progress, VerifyRequest},
        hmac::{BLOCK_LEN, HmacSha256, State},
        key::Key,
        message::Message,
        signature::SIGNATURE_LEN_MAX,
        token::Signer,
        verify::{Verified, VerifyError},
    };

    /// Calls AVX-512 code from a level that has it; where the compiler has none, no level does.
    macro_rules! avx512 {
        ($call:expr) => {{
            #[cfg(avx512)]
            // SAFETY: `Level::Avx512` has all that the functions need, and only it leads here.
            let result = unsafe { $call };
            #[cfg(not(avx512))]
            let result = Default::default();
            result
        }};
    }

    #[inline]
    fn sha_tags(keys: [&HmacSha256; GROUP], messages: [&Message<'_>; GROUP]) -> [State; GROUP] {
        // SAFETY: only called at `Level::Sha`.
        group::in_pairs(keys, messages, |keys, messages| unsafe { sha_ni::tags(keys, messages) })
    }

    #[inline]
    fn avx2_tags(keys: [&HmacSha256; GROUP], messages: [&Message<'_>; GROUP]) -> [State; GROUP] {
        // SAFETY: only called at `Level::Avx2`.
        unsafe { avx2::tags(keys, messages) }
    }

    pub(super) fn chain_in_lanes(blocks: usize, two_waves: bool) {
        match (level(), two_waves) {
            (Level::Portable | Level::Avx2 | Level::Sha, _) => {}
            (Level::Avx512, false) => avx512!(lanes::chain::<1>(blocks)),
            (Level::Avx512, true) => avx512!(lanes::chain::<2>(blocks)),
        }
    }

    #[inline]
    pub(crate) fn prepare(key: &[u8; BLOCK_LEN]) -> Option<HmacSha256> {
        match level() {
            Level::Portable | Level::Avx2 => None,
            // SAFETY: both levels have the SHA instructions.
            Level::Sha | Level::Avx512 => Some(unsafe { sha_ni::prepare(key) }),
        }
    }

    /// `None` is no verdict.
    #[inline]
    pub(crate) fn decode_base64(text: &[u8], out: &mut [u8; Key::MAX_LEN]) -> Option<usize> {
        match level() {
            Level::Portable | Level::Avx2 | Level::Sha => None,
            Level::Avx512 => avx512!(text::decode_base64(text, out)),
        }
    }

    #[inline]
    pub(crate) fn write_signature(
        key: &HmacSha256,
        message: &Message<'_>,
        out: &mut [u8; SIGNATURE_LEN_MAX],
    ) -> Option<usize> {
        match level() {
            Level::Portable | Level::Avx2 | Level::Sha => None,
            Level::Avx512 => avx512!(single::write_signature(key, message, out)),
        }
    }

    #[inline]
    pub(crate) fn is_signature_of(key: &HmacSha256, message: &Message<'_>, text: &[u8]) -> Option<bool> {
        match level() {
            Level::Portable | Level::Avx2 | Level::Sha => None,
            Level::Avx512 => avx512!(single::is_signature_of(key, message, text)),
        }
    }

    #[inline]
    pub(crate) fn mint(requests: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Progress {
        match level() {
            Level::Portable => Progress::default(),
            Level::Avx2 => group::mint(requests, text, ends, avx2_tags),
            Level::Sha => group::mint(requests, text, ends, sha_tags),
            Level::Avx512 => avx512!(batch::mint(requests, text, ends)),
        }
    }

    #[inline]
    pub(crate) fn verify(
        requests: &[VerifyRequest<'_>],
        now: u64,
        verdicts: &mut [Result<Verified, VerifyError>],
    ) -> usize {
        match level() {
            // With SHA instructions two at once took as long as one by one.
            Level::Portable | Level::Sha => 0,
            Level::Avx2 => group::verify(requests, now, verdicts, avx2_tags),
            Level::Avx512 => avx512!(batch::verify(requests, now, verdicts)),
        }
    }

    #[inline]
    pub(crate) fn prepare_many(keys: &[Key], signers: &mut [Signer]) -> usize {
        match level() {
            // At `Level::Sha` each key's two states go together.
            Level::Portable | Level::Sha => 0,
            // SAFETY: the level has AVX2.
            Level::Avx2 => group::prepare_many(keys, signers, |keys| unsafe { avx2::prepare(keys) }),
            Level::Avx512 => avx512!(batch::prepare_many(keys, signers)),
        }
    }

    #[inline]
    pub(crate) fn derive(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) -> usize {
        match level() {
            Level::Portable => 0,
            Level::Avx2 => group::derive(group, ids, keys, avx2_tags),
            Level::Sha => group::derive(group, ids, keys, sha_tags),
            Level::Avx512 => avx512!(batch::derive(group, ids, keys)),
        }
    }
}

/// Calls the code that suits the level in use, if there is such code.
#[cfg(all(accelerated, target_arch = "aarch64"))]
mod aarch64 {
    #![allow(unsafe_code, reason = "only here is it known that the processor has the instructions")]

    use super::{
        Level, armv8,
        group::{self, GROUP},
        level,
    };
    use crate::{
        bulk::{MintRequest, Progress, VerifyRequest},
        hmac::{BLOCK_LEN, HmacSha256, State},
        key::Key,
        message::Message,
        signature::SIGNATURE_LEN_MAX,
        token::Signer,
        verify::{Verified, VerifyError},
    };

    #[inline]
    fn tags(keys: [&HmacSha256; GROUP], messages: [&Message<'_>; GROUP]) -> [State; GROUP] {
        // SAFETY: only called at `Level::Sha`.
        group::in_pairs(keys, messages, |keys, messages| unsafe { armv8::tags(keys, messages) })
    }

    fn has_sha() -> bool {
        level() == Level::Sha
    }

    #[inline]
    pub(crate) fn prepare(key: &[u8; BLOCK_LEN]) -> Option<HmacSha256> {
        // SAFETY: the level has the SHA instructions.
        has_sha().then(|| unsafe { armv8::prepare(key) })
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
    pub(crate) fn mint(requests: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Progress {
        if has_sha() { group::mint(requests, text, ends, tags) } else { Progress::default() }
    }

    #[inline]
    pub(crate) fn verify(
        requests: &[VerifyRequest<'_>],
        now: u64,
        verdicts: &mut [Result<Verified, VerifyError>],
    ) -> usize {
        if has_sha() { group::verify(requests, now, verdicts, tags) } else { 0 }
    }

    /// Each key's two states go together.
    #[inline]
    pub(crate) fn prepare_many(_: &[Key], _: &mut [Signer]) -> usize {
        0
    }

    #[inline]
    pub(crate) fn derive(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) -> usize {
        if has_sha() { group::derive(group, ids, keys, tags) } else { 0 }
    }
}

/// Hashes `blocks` blocks one after the other in each of sixteen lanes, in one wave of them or two at once: the least
/// that bulk work can cost, for the benchmark. Nothing if this processor or build has no such lanes.
#[cfg(feature = "simd")]
#[doc(hidden)]
pub fn chain_in_lanes(blocks: usize, two_waves: bool) {
    #[cfg(all(accelerated, target_arch = "x86_64"))]
    x86_64::chain_in_lanes(blocks, two_waves);
    #[cfg(not(all(accelerated, target_arch = "x86_64")))]
    let _ = (blocks, two_waves);
}

/// SHA-256's constants (FIPS 180-4 §4.2.2).
#[cfg(accelerated)]
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
