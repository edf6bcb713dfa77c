//! Many tokens or keys: sixteen or twice sixteen at a time through SHA-256, one after the other through their text.

#![allow(unsafe_code, reason = "loads and stores of whole keys")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of lanes")]

use core::{
    arch::x86_64::{
        __cpuid, __m256i, __m512i, _mm_and_si128, _mm_cmpgt_epu8_mask, _mm_cvtsi128_si64, _mm_extract_epi64,
        _mm_loadu_si128, _mm_madd_epi16, _mm_maddubs_epi16, _mm_set_epi64x, _mm_set1_epi16, _mm_set1_epi32,
        _mm_srli_si128, _mm_sub_epi8, _mm_xor_si128, _mm256_set_epi64x, _mm256_zextsi128_si256,
        _mm512_cmpeq_epi8_mask, _mm512_cmpgt_epu32_mask, _mm512_cmplt_epu8_mask, _mm512_loadu_si512,
        _mm512_mask_mov_epi32, _mm512_maskz_permutexvar_epi8, _mm512_reduce_max_epu32, _mm512_set1_epi8,
        _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_storeu_si512, _mm512_xor_si512,
    },
    sync::atomic::{AtomicU8, Ordering},
};

use super::{
    lanes::{Blocks, LANES, States, close, compress, transpose, untangle},
    text::{
        Bytes, Decoded, Squeezed, WIDTH, constant, digits, escape, load, load_whole, mask, prefetch,
        prefetch_to_write, store, store_half,
    },
};
use crate::{
    bulk::{self, MintRequest, Progress, VerifyRequest},
    decimal::Decimal,
    hmac::{BLOCK_LEN, HmacSha256, INITIAL_STATE, TAG_LEN},
    key::{Key, KeySlot},
    message::split_whole,
    parse::ParsedToken,
    token::{EXPIRY_FIELD, Expiry, HEAD, SIGNATURE_FIELD, Signer},
    verify::{Verified, VerifyError, is_over},
};

/// The lanes of two waves.
const GROUP_MAX: usize = 2 * LANES;

/// Fewer requests than these are quicker one by one.
const WORTHWHILE: usize = 4;

/// What the lanes hash.
#[derive(Clone, Copy)]
struct Messages<'m> {
    /// Whole blocks of a text, where they lie.
    whole: [&'m [u8]; LANES],
    /// The rest of it and SHA-256's padding.
    tails: [Tail; LANES],
    blocks: [u32; LANES],
}

/// One block or two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Tail([[u8; BLOCK_LEN]; 2]);

impl<'m> Messages<'m> {
    fn new() -> Self {
        Self { whole: [&[]; LANES], tails: [Tail([[0; BLOCK_LEN]; 2]); LANES], blocks: [1; LANES] }
    }

    /// `ending` is what follows the text, the end mark of SHA-256's padding included, and zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn set(&mut self, lane: usize, text: &'m [u8], ending: __m256i, ending_len: usize) -> Option<()> {
        let (whole, rest) = split_whole(text);
        let tail = self.tails[lane].0.as_flattened_mut();
        store(tail.get_mut(BLOCK_LEN..)?, _mm512_setzero_si512())?;
        store(tail, load(rest))?;
        store_half(tail.get_mut(rest.len()..)?, ending)?;
        let tail_len =
            if rest.len() + ending_len + size_of::<u64>() <= BLOCK_LEN { BLOCK_LEN } else { 2 * BLOCK_LEN };
        // The end mark is part of the ending, not of the message.
        let bit_len = 8 * (BLOCK_LEN + text.len() + ending_len - 1) as u64;
        *tail.get_mut(tail_len - size_of::<u64>()..)?.first_chunk_mut()? = bit_len.to_be_bytes();
        self.whole[lane] = whole;
        self.blocks[lane] = ((whole.len() + tail_len) / BLOCK_LEN) as u32;
        Some(())
    }

    /// Each lane's block with this index; junk behind its last one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn blocks(&self, index: usize) -> Blocks {
        let mut blocks = [_mm512_setzero_si512(); LANES];
        let are_short = self.whole.iter().fold(0, |all, whole| all | whole.len()) == 0;
        if are_short & (index < 2) {
            // The usual case without the questions.
            for (block, Tail(tail)) in blocks.iter_mut().zip(&self.tails) {
                *block = load_whole(&tail[index & 1]);
            }
        } else {
            for ((block, Tail(tail)), whole) in blocks.iter_mut().zip(&self.tails).zip(self.whole) {
                let (whole, _) = whole.as_chunks();
                let found = whole.get(index).or_else(|| tail.get(index.checked_sub(whole.len())?));
                if let Some(found) = found {
                    *block = load_whole(found);
                }
            }
        }
        blocks
    }
}

/// Whether one wave of lanes at a time is quicker than two. It keeps the two vector units of Intel's processors busy, and
/// a second one gains nothing there; on AMD's (Zen 5) one alone mostly waits for its own results.
fn is_one_wave_enough() -> bool {
    const UNKNOWN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;
    // Asked once: on a virtual machine the instruction takes as long as some hundred tokens.
    static ANSWER: AtomicU8 = AtomicU8::new(UNKNOWN);
    if ANSWER.load(Ordering::Relaxed) == UNKNOWN {
        #[allow(unused_unsafe, reason = "safe to call from Rust 1.94 on")]
        // SAFETY: every processor of 64 bits has the instruction.
        let vendor = unsafe { __cpuid(0) };
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        let is_intel = name.as_flattened() == b"GenuineIntel";
        ANSWER.store(if is_intel { YES } else { NO }, Ordering::Relaxed);
    }
    ANSWER.load(Ordering::Relaxed) == YES
}

/// As [`bulk::mint`], until too little room is left to write past a token's end, or for all.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn mint(requests: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Progress {
    if is_one_wave_enough() {
        mint_in_waves::<1>(requests, text, ends)
    } else {
        mint_in_waves::<2>(requests, text, ends)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn mint_in_waves<const WAVES: usize>(
    all: &[MintRequest<'_>],
    text: &mut [u8],
    ends: &mut [usize],
) -> Progress {
    let mut progress = Progress::default();
    let mut date = Date::new(Expiry::at(0));
    let mut messages = [Messages::new(); WAVES];
    for (requests, ends) in all.chunks(WAVES * LANES).zip(ends.chunks_mut(WAVES * LANES)) {
        let ahead = all.get(progress.done + requests.len()..).unwrap_or_default();
        let promised = requests.iter().map(MintRequest::token_len_max).sum::<usize>() + progress.promised;
        if requests.len() < WORTHWHILE || promised > text.len() {
            break;
        }
        progress.promised = promised;
        let end = match requests.len() {
            ..=LANES => mint_group::<1>(requests, ahead, &mut date, &mut messages, text, progress.at, ends),
            _ => mint_group::<WAVES>(requests, ahead, &mut date, &mut messages, text, progress.at, ends),
        };
        match end {
            Some(at) => progress.at = at,
            None => break,
        }
        progress.done += requests.len();
    }
    progress
}

/// An expiry, ready to be signed and to be written. Tokens that are made together mostly end together.
struct Date {
    expiry: Expiry,
    ending: __m256i,
    trailer: __m256i,
    digits_len: usize,
}

impl Date {
    #[target_feature(enable = "avx512f")]
    fn new(expiry: Expiry) -> Self {
        let se = Decimal::of(expiry.unix_secs());
        Self {
            expiry,
            ending: widen(se.ending_words()),
            trailer: widen(se.trailer_words()),
            digits_len: se.len(),
        }
    }
}

/// Returns where the last token ends. Asks for the memory of the requests `ahead` meanwhile: one after the other, because
/// there is room for a few lines on their way from memory only.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn mint_group<'r, const WAVES: usize>(
    requests: &[MintRequest<'r>],
    ahead: &[MintRequest<'r>],
    date: &mut Date,
    messages: &mut [Messages<'r>],
    text: &mut [u8],
    mut at: usize,
    ends: &mut [usize],
) -> Option<usize> {
    let mut trailers = [[(date.trailer, 0); LANES]; WAVES];
    let mut keys = [[requests.first()?.signer.key(); LANES]; WAVES];
    for (i, request) in requests.iter().enumerate() {
        if let Some(next) = ahead.get(i) {
            prefetch::<1, _>(next.signer);
            prefetch::<2, _>(next.resource.as_bytes());
        }
        if date.expiry != request.expiry {
            *date = Date::new(request.expiry);
        }
        let (wave, lane) = (i / LANES, i % LANES);
        messages[wave].set(lane, request.resource.as_bytes(), date.ending, date.digits_len + 2)?;
        trailers[wave][lane] = (date.trailer, TRAILER_START.len() + date.digits_len);
        keys[wave][lane] = request.signer.key();
    }
    let (inner, outer) = load_states(&keys);
    let digests = tags(inner, &outer, messages);
    for (i, (request, end)) in requests.iter().zip(ends).enumerate() {
        let (wave, lane) = (i / LANES, i % LANES);
        let digits = digits(digests[wave][lane % 8], lane / 8);
        prefetch_to_write::<3, _>(text, at + WRITE_AHEAD);
        let (trailer, trailer_len) = trailers[wave][lane];
        at +=
            match write_token(text.get_mut(at..)?, request.resource.as_bytes(), digits, trailer, trailer_len)
            {
                Some(len) => len,
                // Near the end of the memory: without writing beyond the token.
                None => bulk::mint_one(request, text, at)? - at,
            };
        *end = at;
    }
    Some(at)
}

/// How far ahead of the token that is written memory is asked for: a group's tokens.
const WRITE_AHEAD: usize = 4096;

/// What follows the digits of a signature.
pub(crate) const TRAILER_START: &[u8; 7] = b"%3D&se=";

/// Writes a token and junk behind it; `None` if the room isn't enough for both.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn write_token(
    out: &mut [u8],
    sr: &[u8],
    digits: __m512i,
    trailer: __m256i,
    trailer_len: usize,
) -> Option<usize> {
    const _: () = assert!(HEAD.len() <= WIDTH && EXPIRY_FIELD.len() + 3 == TRAILER_START.len());
    *out.first_chunk_mut()? = *HEAD;
    let mut at = HEAD.len();
    let mut rest = sr;
    loop {
        store(out.get_mut(at..)?, load(rest))?;
        at += rest.len().min(WIDTH);
        match rest.get(WIDTH..) {
            Some(more) => rest = more,
            None => break,
        }
    }
    *out.get_mut(at..)?.first_chunk_mut()? = *SIGNATURE_FIELD;
    at += SIGNATURE_FIELD.len();
    let escaped = escape(digits);
    for (part, len) in escaped.parts.into_iter().zip(escaped.lens) {
        store(out.get_mut(at..)?, part)?;
        at += len;
    }
    store_half(out.get_mut(at..)?, trailer)?;
    Some(at + trailer_len)
}

/// As [`bulk::derive`]; returns how many were done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn derive(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) -> usize {
    if is_one_wave_enough() {
        derive_in_waves::<1>(group, ids, keys)
    } else {
        derive_in_waves::<2>(group, ids, keys)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn derive_in_waves<const WAVES: usize>(group: &HmacSha256, all: &[&str], keys: &mut [Key]) -> usize {
    let states = load_states(&[[group; LANES]; WAVES]);
    let mut messages = [Messages::new(); WAVES];
    let mut done = 0;
    while let Some(ids) = all.get(done..).filter(|rest| rest.len() >= WORTHWHILE) {
        let (count, ahead) = (ids.len().min(WAVES * LANES), ids.get(WAVES * LANES..).unwrap_or_default());
        let (Some(ids), Some(keys)) = (ids.get(..count), keys.get_mut(done..)) else { break };
        let (inner, outer) = &states;
        let is_done = match count {
            ..=LANES => derive_group::<1>(&[inner[0]], &[outer[0]], ids, ahead, &mut messages, keys),
            _ => derive_group::<WAVES>(inner, outer, ids, ahead, &mut messages, keys),
        };
        if is_done.is_none() {
            break;
        }
        done += count;
    }
    done
}

/// `keys` are those of `ids`, and the ones behind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn derive_group<'i, const WAVES: usize>(
    inner: &[States; WAVES],
    outer: &[States; WAVES],
    ids: &[&'i str],
    ahead: &[&str],
    messages: &mut [Messages<'i>],
    keys: &mut [Key],
) -> Option<()> {
    let end_mark = widen([0x80]);
    for (i, id) in ids.iter().enumerate() {
        if let Some(next) = ahead.get(i) {
            prefetch::<1, _>(*next);
        }
        messages[i / LANES].set(i % LANES, id.as_bytes(), end_mark, 1)?;
    }
    let digests = tags(*inner, outer, messages);
    for i in 0..ids.len() {
        prefetch_to_write::<1, _>(keys, i + ids.len());
        let order = if i % LANES < 8 { &LOWER_KEY_ORDER } else { &UPPER_KEY_ORDER };
        let digests = digests[i / LANES][i % 8];
        let bytes = _mm512_maskz_permutexvar_epi8(mask(TAG_LEN), constant(order), digests);
        store(keys.get_mut(i)?.overwrite(TAG_LEN), bytes)?;
    }
    Some(())
}

/// As [`bulk::prepare`]; returns how many were done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn prepare_many(keys: &[Key], signers: &mut [Signer]) -> usize {
    let start = INITIAL_STATE.map(|word| _mm512_set1_epi32(word.cast_signed()));
    let mut done = 0;
    for (keys, signers) in keys.chunks(LANES).zip(signers.chunks_mut(LANES)) {
        if keys.len() < WORTHWHILE {
            break;
        }
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, key) in rows.iter_mut().zip(keys) {
            *row = _mm512_shuffle_epi8(load(key.padded()), constant(&SWAPPED));
        }
        let words = transpose(rows);
        let [inner, outer] = compress(&[start; 2], &[pad(words, 0x36), pad(words, 0x5c)]);
        let mut columns = [_mm512_setzero_si512(); LANES];
        for (column, state) in columns.iter_mut().zip(inner.into_iter().chain(outer)) {
            *column = state;
        }
        for (signer, state) in signers.iter_mut().zip(transpose(columns)) {
            let target: *mut HmacSha256 = signer.key_mut();
            // SAFETY: both states fill 64 bytes, the inner one first.
            unsafe { _mm512_storeu_si512(target.cast(), state) };
        }
        done += keys.len();
    }
    done
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pad(mut words: Blocks, pad: i8) -> Blocks {
    for word in &mut words {
        *word = _mm512_xor_si512(*word, _mm512_set1_epi8(pad));
    }
    words
}

/// As [`bulk::verify`]; returns how many were done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn verify(
    requests: &[VerifyRequest<'_>],
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
) -> usize {
    if is_one_wave_enough() {
        verify_in_waves::<1>(requests, now, verdicts)
    } else {
        verify_in_waves::<2>(requests, now, verdicts)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn verify_in_waves<const WAVES: usize>(
    all: &[VerifyRequest<'_>],
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
) -> usize {
    let (mut messages, mut given) = ([Messages::new(); WAVES], [Squeezed::nothing(); GROUP_MAX]);
    let mut done = 0;
    for (requests, verdicts) in all.chunks(WAVES * LANES).zip(verdicts.chunks_mut(WAVES * LANES)) {
        let ahead = all.get(done + requests.len()..).unwrap_or_default();
        match requests.len() {
            ..WORTHWHILE => break,
            WORTHWHILE..=LANES => {
                verify_group::<1>(requests, ahead, now, verdicts, &mut messages, &mut given)
            }
            _ => verify_group::<WAVES>(requests, ahead, now, verdicts, &mut messages, &mut given),
        }
        done += requests.len();
    }
    done
}

/// The usual tokens go through together, first with the primary keys, then with the secondary ones where it is those;
/// what is left after that gets its verdict from [`Verifier::verify`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn verify_group<'t, const WAVES: usize>(
    requests: &[VerifyRequest<'t>],
    ahead: &[VerifyRequest<'t>],
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
    messages: &mut [Messages<'t>],
    given: &mut [Squeezed; GROUP_MAX],
) {
    let mut expiries = [Expiry::at(0); GROUP_MAX];
    // One bit for each lane.
    let mut open = 0u32;
    let mut waiting = 0u32;
    let Some(first) = requests.first() else { return };
    let mut keys = [[first.verifier.primary(); LANES]; WAVES];
    for (i, request) in requests.iter().enumerate() {
        let (messages, lane) = (&mut messages[i / LANES], i % LANES);
        if let Some(next) = ahead.get(i) {
            prefetch::<4, _>(next.token);
            prefetch::<2, _>(next.plain_resource);
            prefetch::<2, _>(next.verifier);
        }
        keys[i / LANES][lane] = request.verifier.primary();
        match recognise(request, messages, lane, &mut given[i]) {
            Some(expiry) if !is_over(expiry, now) => {
                expiries[i] = expiry;
                waiting |= 1 << i;
            }
            Some(_) | None => open |= 1 << i,
        }
    }
    let mut slot = KeySlot::Primary;
    let mut asked = waiting;
    while asked != 0 {
        let (inner, outer) = load_states(&keys);
        let digests = tags(inner, &outer, messages);
        for (i, verdict) in verdicts.iter_mut().enumerate() {
            let digits = digits(digests[i / LANES][i % 8], i % LANES / 8);
            if asked >> i & 1 == 1 && given[i].is_of(digits) {
                *verdict = Ok(Verified { slot, expiry: expiries[i] });
                waiting &= !(1 << i);
            }
        }
        asked = 0;
        if slot == KeySlot::Primary {
            slot = KeySlot::Secondary;
            for (i, request) in requests.iter().enumerate().filter(|(i, _)| waiting >> i & 1 == 1) {
                if let Some(key) = request.verifier.key(slot) {
                    asked |= 1 << i;
                    keys[i / LANES][i % LANES] = key;
                }
            }
        }
    }
    open |= waiting;
    if open != 0 {
        for (i, (request, verdict)) in requests.iter().zip(verdicts).enumerate() {
            if open >> i & 1 == 1 {
                *verdict = request.verifier.verify(request.token, request.plain_resource, now);
            }
        }
    }
}

/// Takes a token in the form of [`crate::canonical::Canonical`], with `sr` and signature of at most a register's width
/// and a date of ten digits: what it signs goes to the lane, its signature to `given`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn recognise<'t>(
    request: &VerifyRequest<'t>,
    messages: &mut Messages<'t>,
    lane: usize,
    given: &mut Squeezed,
) -> Option<Expiry> {
    let (token, plain) = (request.token.as_bytes(), request.plain_resource.as_bytes());
    if token.len() > ParsedToken::TOKEN_LEN_MAX || plain.is_empty() || plain.len() > WIDTH {
        return None;
    }
    let (head, fields) = token.split_first_chunk()?;
    let date = WrittenDate::read(fields.last_chunk()?);
    // `sr` ends where the first character stands that is below `'` and isn't `%`; that must be `&`.
    let text = load(fields);
    let low = _mm512_cmplt_epu8_mask(text, _mm512_set1_epi8(b'\'' as i8));
    let percent = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'%' as i8));
    let sr_len = (low & !percent).trailing_zeros() as usize;
    let (sr, rest) = fields.split_at_checked(sr_len).unwrap_or_default();
    let (sig_field, rest) = rest.split_at_checked(SIGNATURE_FIELD.len()).unwrap_or_default();
    // One branch for all of it: after many the compiler takes what follows for rare, and leaves it in functions apart.
    let is_usual = (head == HEAD)
        & date.is_good
        & (sig_field == SIGNATURE_FIELD)
        & Decoded::of(text, sr.len()).is(plain)
        & given.read(rest, rest.len().saturating_sub(WrittenDate::FIELD_LEN));
    if !is_usual {
        return None;
    }
    messages.set(lane, sr, date.ending, WrittenDate::DIGITS + 2)?;
    Some(Expiry::at(date.unix_secs))
}

/// An expiry of ten digits, as every date between the years 2001 and 2286 has, at the end of a token.
struct WrittenDate {
    unix_secs: u64,
    /// As [`Decimal::ending_words`].
    ending: __m256i,
    /// Whether that is what stands there.
    is_good: bool,
}

impl WrittenDate {
    const DIGITS: usize = 10;

    /// `&se=` and the digits.
    const FIELD_LEN: usize = EXPIRY_FIELD.len() + Self::DIGITS;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
    fn read(end: &[u8; 16]) -> Self {
        // SAFETY: sixteen bytes are there, and the instruction asks for no alignment.
        let text = unsafe { _mm_loadu_si128(end.as_ptr().cast()) };
        // The first digit is not `0`: we would not write it.
        let least = _mm_set_epi64x(0x3030_3030_3030_3030, i64::from_le_bytes(*b"\0\0&se=10"));
        let range = _mm_set_epi64x(0x0909_0909_0909_0909, i64::from_le_bytes([255, 255, 0, 0, 0, 0, 8, 9]));
        let is_good = _mm_cmpgt_epu8_mask(_mm_sub_epi8(text, least), range) == 0;
        let digits = _mm_and_si128(text, _mm_set_epi64x(0x0f0f_0f0f_0f0f_0f0f, 0x0f0f << 48));
        // Pairs, then fours of digits.
        let pairs = _mm_maddubs_epi16(digits, _mm_set1_epi16(0x010a));
        let fours = _mm_madd_epi16(pairs, _mm_set1_epi32(0x0001_0064));
        let words = [_mm_cvtsi128_si64(fours), _mm_extract_epi64::<1>(fours)].map(i64::cast_unsigned);
        let unix_secs = (words[0] >> 32) * 100_000_000 + (words[1] & 0xffff_ffff) * 10_000 + (words[1] >> 32);
        // From the `=` on, which makes room for a line feed, up to the end mark.
        let from_equals = _mm_srli_si128::<5>(text);
        let ending = _mm_xor_si128(from_equals, _mm_set_epi64x(0x80 << 24, i64::from(b'=' ^ b'\n')));
        Self { unix_secs, ending: _mm256_zextsi128_si256(ending), is_good }
    }
}

/// The tags over what the lanes hash, as [`untangle`] leaves them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn tags<const WAVES: usize>(
    inner: [States; WAVES],
    outer: &[States; WAVES],
    messages: &[Messages<'_>],
) -> [[__m512i; 8]; WAVES] {
    let zero = _mm512_setzero_si512();
    let swap = constant(&SWAPPED);
    let mut longest = 0;
    for messages in messages.iter().take(WAVES) {
        longest = longest.max(_mm512_reduce_max_epu32(load_words(&messages.blocks)));
    }
    let mut state = inner;
    for index in 0..longest {
        let number = index.cast_signed();
        let mut words = [[zero; LANES]; WAVES];
        for (words, messages) in words.iter_mut().zip(messages) {
            let mut rows = messages.blocks(index as usize);
            for row in &mut rows {
                *row = _mm512_shuffle_epi8(*row, swap);
            }
            *words = transpose(rows);
        }
        let next = compress(&state, &words);
        for ((state, next), messages) in state.iter_mut().zip(next).zip(messages) {
            let unfinished = _mm512_cmpgt_epu32_mask(load_words(&messages.blocks), _mm512_set1_epi32(number));
            for (state, next) in state.iter_mut().zip(next) {
                *state = _mm512_mask_mov_epi32(*state, unfinished, next);
            }
        }
    }
    let mut digests = [[zero; 8]; WAVES];
    for (digests, state) in digests.iter_mut().zip(&close(outer, &state)) {
        *digests = untangle(state);
    }
    digests
}

/// Inner and outer states of the keys, one in each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_states<const WAVES: usize>(
    keys: &[[&HmacSha256; LANES]; WAVES],
) -> ([States; WAVES], [States; WAVES]) {
    let zero = _mm512_setzero_si512();
    let (mut inner, mut outer) = ([[zero; 8]; WAVES], [[zero; 8]; WAVES]);
    for ((keys, inner), outer) in keys.iter().zip(&mut inner).zip(&mut outer) {
        let mut rows = [zero; LANES];
        for (row, key) in rows.iter_mut().zip(keys) {
            let key: *const HmacSha256 = *key;
            // SAFETY: both states fill 64 bytes, the inner one first.
            *row = unsafe { _mm512_loadu_si512(key.cast()) };
        }
        let [a, b, c, d, e, f, g, h, rest @ ..] = transpose(rows);
        (*inner, *outer) = ([a, b, c, d, e, f, g, h], rest);
    }
    (inner, outer)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[u32; LANES]) -> __m512i {
    // SAFETY: sixteen words of four bytes are there.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// A short text as half a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen<const WORDS: usize>(words: [u64; WORDS]) -> __m256i {
    let word = |i: usize| words.get(i).copied().unwrap_or_default().cast_signed();
    _mm256_set_epi64x(word(3), word(2), word(1), word(0))
}

static LOWER_KEY_ORDER: Bytes = key_order(0);
static UPPER_KEY_ORDER: Bytes = key_order(TAG_LEN);

/// The bytes of each word in reverse, from a digest that begins at `base`.
const fn key_order(base: usize) -> Bytes {
    let mut bytes = SWAPPED.0;
    let mut i = 0;
    while i < TAG_LEN {
        bytes[i] = (base + (i ^ 3)) as u8;
        i += 1;
    }
    Bytes(bytes)
}

/// The bytes of each word in reverse.
static SWAPPED: Bytes = {
    let mut bytes = [0; WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bytes[i] = ((i % 16) ^ 3) as u8;
        i += 1;
    }
    Bytes(bytes)
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{derive_in_waves, mint_in_waves, verify_in_waves};
    use crate::{
        Expiry, Key, ResourceRef, Signer, Verifier, VerifyError,
        bulk::{MintRequest, VerifyRequest},
        percent,
        simd::{Level, level},
    };
    use proptest::prelude::*;
    use std::{format, string::String, vec, vec::Vec};

    const NOW: u64 = 1_700_000_000;

    /// The processor at hand uses one number of waves only, and the tests of the public functions see just that.
    fn check<const WAVES: usize>(
        lens: &[usize],
        expiries: &[u64],
        wrong: &[bool],
    ) -> Result<(), TestCaseError> {
        let count = lens.len();
        let keys: Vec<Key> = (0..count).map(|i| Key::from_bytes(&[i as u8; 32]).unwrap()).collect();
        let signers: Vec<Signer> = keys.iter().map(Signer::new).collect();
        let plain: Vec<String> = lens.iter().map(|&len| format!("h/{}", "x".repeat(len))).collect();
        let encoded: Vec<String> = plain
            .iter()
            .map(|plain| {
                let mut text = vec![0; percent::encoded_len(plain.as_bytes())];
                percent::encode(plain.as_bytes(), &mut text);
                String::from_utf8(text).unwrap()
            })
            .collect();
        let requests: Vec<MintRequest<'_>> = (0..count)
            .map(|i| MintRequest {
                signer: &signers[i],
                resource: ResourceRef::from_encoded(&encoded[i]).unwrap(),
                expiry: Expiry::at(expiries[i]),
            })
            .collect();
        let mut text = vec![0; requests.iter().map(MintRequest::token_len_max).sum()];
        let mut ends = vec![0; count];
        // SAFETY: the caller has looked.
        let made = unsafe { mint_in_waves::<WAVES>(&requests, &mut text, &mut ends) };
        let mut tokens = Vec::new();
        let mut buffer = vec![0; 8192];
        for i in 0..count {
            let mut ends_one = [0];
            let one = crate::bulk::mint(&requests[i..=i], &mut buffer, &mut ends_one).unwrap();
            let token = String::from(one.expose(0).unwrap());
            if i < made.done {
                let start = if i == 0 { 0 } else { ends[i - 1] };
                prop_assert_eq!(core::str::from_utf8(&text[start..ends[i]]).unwrap(), &token);
            }
            tokens.push(token);
        }
        prop_assert!(made.done + 4 > count);

        // Signed with the next one's key; some verifiers know that as their secondary key.
        let verifiers: Vec<Verifier> = (0..count)
            .map(|i| {
                let other = &keys[(i + 1) % count];
                if wrong[i] {
                    Verifier::new(other, (i % 2 == 0).then_some(&keys[i]))
                } else {
                    Verifier::new(&keys[i], None)
                }
            })
            .collect();
        let requests: Vec<VerifyRequest<'_>> = (0..count)
            .map(|i| VerifyRequest { verifier: &verifiers[i], token: &tokens[i], plain_resource: &plain[i] })
            .collect();
        let mut verdicts = vec![Err(VerifyError::Resource); count];
        // SAFETY: as above.
        let done = unsafe { verify_in_waves::<WAVES>(&requests, NOW, &mut verdicts) };
        prop_assert!(done + 4 > count);
        for (request, verdict) in requests.iter().zip(&verdicts).take(done) {
            let alone = request.verifier.verify(request.token, request.plain_resource, NOW);
            prop_assert_eq!(*verdict, alone);
        }

        let ids: Vec<&str> = plain.iter().map(String::as_str).collect();
        let mut derived = keys.clone();
        // SAFETY: as above.
        let done = unsafe { derive_in_waves::<WAVES>(&keys[0].hmac_states(), &ids, &mut derived) };
        prop_assert!(done + 4 > count);
        for (id, key) in ids.iter().zip(&derived).take(done) {
            prop_assert!(*key == keys[0].derive(id));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn one_wave_and_two_do_the_same_as_one_by_one(
            lens in proptest::collection::vec(prop_oneof![1..70usize, 1..300usize], 1..80),
            far in proptest::collection::vec(any::<bool>(), 80),
            wrong in proptest::collection::vec(any::<bool>(), 80),
        ) {
            if level() == Level::Avx512 {
                let expiry = |far: &bool| if *far { 99_999_999_999 } else { NOW };
                let expiries: Vec<u64> = far.iter().map(expiry).collect();
                check::<1>(&lens, &expiries, &wrong)?;
                check::<2>(&lens, &expiries, &wrong)?;
            }
        }
    }
}
