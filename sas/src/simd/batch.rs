//! Many tokens or keys: sixteen or twice sixteen at a time through SHA-256, one after the other through their text.

#![allow(unsafe_code, reason = "loads and stores of whole keys")]
#![allow(clippy::indexing_slicing, reason = "indices are constants or bounded by the number of lanes")]

use core::arch::x86_64::{
    __m512i, _mm512_castsi512_si256, _mm512_cmpeq_epi8_mask, _mm512_cmpeq_epi32_mask,
    _mm512_cmpgt_epu32_mask, _mm512_cmplt_epu8_mask, _mm512_cmpneq_epi8_mask, _mm512_loadu_si512,
    _mm512_mask_mov_epi32, _mm512_mask_permutexvar_epi8, _mm512_maskz_mov_epi32,
    _mm512_maskz_permutexvar_epi8, _mm512_reduce_max_epu32, _mm512_set_epi64, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::{
    lanes::{Blocks, LANES, States, close, compress, transpose, untangle},
    single::{SIGNATURE_LEN, is_equal},
    text::{
        Bytes, WIDTH, base64_text, constant, decode, digits, escape, load, mask, prefetch, store, store_half,
    },
};
use crate::{
    bulk::{self, MintRequest, Progress, VerifyRequest},
    decimal::Decimal,
    hmac::{BLOCK_LEN, HmacSha256, INITIAL_STATE, TAG_LEN},
    key::{Key, KeySlot},
    parse::ParsedToken,
    token::{EXPIRY_FIELD, Expiry, HEAD, SIGNATURE_FIELD, Signer},
    verify::{Verified, VerifyError, is_over},
};

/// Two waves of lanes.
const GROUP: usize = 2 * LANES;

/// Fewer requests than these are quicker one by one.
const WORTHWHILE: usize = 4;

/// What the lanes hash: texts, and what follows them.
#[derive(Clone, Copy)]
struct Messages<'m> {
    texts: [&'m [u8]; LANES],
    /// The end mark of SHA-256's padding included.
    endings: [__m512i; LANES],
    blocks: [u32; LANES],
    bit_lens: [u32; LANES],
}

impl<'m> Messages<'m> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        let endings = [_mm512_setzero_si512(); LANES];
        Self { texts: [&[]; LANES], endings, blocks: [1; LANES], bit_lens: [0; LANES] }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set(&mut self, lane: usize, text: &'m [u8], ending: __m512i, ending_len: usize) {
        let len = text.len() + ending_len;
        self.texts[lane] = text;
        self.endings[lane] = ending;
        self.blocks[lane] = ((len + size_of::<u64>()).div_ceil(BLOCK_LEN)) as u32;
        // The end mark is part of the ending, not of the message.
        self.bit_lens[lane] = 8 * (BLOCK_LEN + len - 1) as u32;
    }

    /// A lane's block without the length; junk behind the last one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn block(&self, lane: usize, index: usize) -> __m512i {
        let (text, ending, start) = (self.texts[lane], self.endings[lane], index * BLOCK_LEN);
        match text.get(start..) {
            Some(rest) if rest.len() >= WIDTH => load(rest),
            Some(rest) => {
                _mm512_mask_permutexvar_epi8(load(rest), !mask(rest.len()), moved(rest.len()), ending)
            }
            // A part of the ending that the block before couldn't take.
            None => {
                let taken = start - text.len();
                let left = WIDTH.saturating_sub(taken);
                _mm512_maskz_permutexvar_epi8(mask(left), moved(left), ending)
            }
        }
    }
}

/// Places that move bytes `count` places up, round the register.
#[inline]
#[target_feature(enable = "avx512f")]
fn moved(count: usize) -> __m512i {
    static PLACES: [u8; 2 * WIDTH] = {
        let mut bytes = [0; 2 * WIDTH];
        let mut i = 0;
        while i < 2 * WIDTH {
            bytes[i] = (i % WIDTH) as u8;
            i += 1;
        }
        bytes
    };
    let start = (WIDTH - count.min(WIDTH)) as isize;
    // SAFETY: 64 bytes are there behind the start, which is 64 at most.
    unsafe { _mm512_loadu_si512(PLACES.as_ptr().offset(start).cast()) }
}

/// As [`bulk::mint`], until too little room is left to write past a token's end, or for all.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn mint(all: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Progress {
    let mut progress = Progress::default();
    let mut date = Date::new(Expiry::at(0));
    let mut messages = [Messages::new(); 2];
    for (requests, ends) in all.chunks(GROUP).zip(ends.chunks_mut(GROUP)) {
        for request in all.iter().skip(progress.done + GROUP).take(GROUP) {
            prefetch::<1, _>(request.signer);
            prefetch::<2, _>(request.resource.as_bytes());
        }
        let promised = requests.iter().map(MintRequest::token_len_max).sum::<usize>() + progress.promised;
        if requests.len() < WORTHWHILE || promised > text.len() {
            break;
        }
        progress.promised = promised;
        let end = match requests.len() {
            ..=LANES => mint_group::<1>(requests, &mut date, &mut messages, text, progress.at, ends),
            _ => mint_group::<2>(requests, &mut date, &mut messages, text, progress.at, ends),
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
    ending: __m512i,
    trailer: __m512i,
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

/// Returns where the last token ends.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn mint_group<'r, const WAVES: usize>(
    requests: &[MintRequest<'r>],
    date: &mut Date,
    messages: &mut [Messages<'r>; 2],
    text: &mut [u8],
    mut at: usize,
    ends: &mut [usize],
) -> Option<usize> {
    let mut trailers = [[(date.trailer, 0); LANES]; WAVES];
    let mut keys = [[requests.first()?.signer.key(); LANES]; WAVES];
    for (i, request) in requests.iter().enumerate() {
        if date.expiry != request.expiry {
            *date = Date::new(request.expiry);
        }
        let (wave, lane) = (i / LANES, i % LANES);
        messages[wave].set(lane, request.resource.as_bytes(), date.ending, date.digits_len + 2);
        trailers[wave][lane] = (date.trailer, TRAILER_START.len() + date.digits_len);
        keys[wave][lane] = request.signer.key();
    }
    let (inner, outer) = load_states(&keys);
    let digests = tags(inner, &outer, messages);
    for (i, (request, end)) in requests.iter().zip(ends).enumerate() {
        let (wave, lane) = (i / LANES, i % LANES);
        let digits = digits(digests[wave][lane % 8], lane / 8);
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

/// What follows the digits of a signature.
pub(crate) const TRAILER_START: &[u8; 7] = b"%3D&se=";

/// Writes a token and junk behind it; `None` if the room isn't enough for both.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn write_token(
    out: &mut [u8],
    sr: &[u8],
    digits: __m512i,
    trailer: __m512i,
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
    store_half(out.get_mut(at..)?, _mm512_castsi512_si256(trailer))?;
    Some(at + trailer_len)
}

/// As [`bulk::derive`]; returns how many were done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) fn derive(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) -> usize {
    let mut done = 0;
    for (ids, keys) in ids.chunks(GROUP).zip(keys.chunks_mut(GROUP)) {
        match ids.len() {
            ..WORTHWHILE => break,
            WORTHWHILE..=LANES => derive_group::<1>(group, ids, keys),
            _ => derive_group::<2>(group, ids, keys),
        }
        done += ids.len();
    }
    done
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn derive_group<const WAVES: usize>(group: &HmacSha256, ids: &[&str], keys: &mut [Key]) {
    let end_mark = widen([0x80]);
    let mut messages = [Messages::new(); WAVES];
    for (i, id) in ids.iter().enumerate() {
        messages[i / LANES].set(i % LANES, id.as_bytes(), end_mark, 1);
    }
    let (inner, outer) = load_states(&[[group; LANES]; WAVES]);
    let digests = tags(inner, &outer, &messages);
    let swap = constant(&SWAPPED);
    for (i, key) in keys.iter_mut().enumerate() {
        let digest = _mm512_shuffle_epi8(digests[i / LANES][i % 8], swap);
        let digest = if i % LANES < 8 { digest } else { _mm512_shuffle_i32x4::<0x4e>(digest, digest) };
        store(key.overwrite(TAG_LEN), _mm512_maskz_mov_epi32(0xff, digest));
    }
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
    all: &[VerifyRequest<'_>],
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
) -> usize {
    let (mut messages, mut signatures) = ([Messages::new(); 2], [_mm512_setzero_si512(); GROUP]);
    let mut done = 0;
    for (requests, verdicts) in all.chunks(GROUP).zip(verdicts.chunks_mut(GROUP)) {
        for request in all.iter().skip(done + GROUP).take(GROUP) {
            prefetch::<3, _>(request.token);
            prefetch::<2, _>(request.plain_resource);
            prefetch::<3, _>(request.verifier);
        }
        match requests.len() {
            ..WORTHWHILE => break,
            WORTHWHILE..=LANES => verify_group::<1>(requests, now, verdicts, &mut messages, &mut signatures),
            _ => verify_group::<2>(requests, now, verdicts, &mut messages, &mut signatures),
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
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
    messages: &mut [Messages<'t>; 2],
    signatures: &mut [__m512i; GROUP],
) {
    let mut expiries = [Expiry::at(0); GROUP];
    // One bit for each lane.
    let mut open = 0u32;
    let mut waiting = 0u32;
    for (i, request) in requests.iter().enumerate() {
        let (messages, lane) = (&mut messages[i / LANES], i % LANES);
        match recognise(request, messages, lane, &mut signatures[i]) {
            Some(expiry) if !is_over(expiry, now) => {
                expiries[i] = expiry;
                waiting |= 1 << i;
            }
            Some(_) | None => open |= 1 << i,
        }
    }
    for slot in [KeySlot::Primary, KeySlot::Secondary] {
        if waiting == 0 {
            break;
        }
        let key_of = |i: usize| {
            let is_waiting = waiting >> i & 1 == 1;
            requests.get(i).filter(|_| is_waiting).and_then(|request| request.verifier.key(slot))
        };
        let Some(any) = (0..requests.len()).find_map(key_of) else {
            continue;
        };
        let mut asked = 0u32;
        let mut keys = [[any; LANES]; WAVES];
        for i in 0..requests.len() {
            if let Some(key) = key_of(i) {
                asked |= 1 << i;
                keys[i / LANES][i % LANES] = key;
            }
        }
        let (inner, outer) = load_states(&keys);
        let digests = tags(inner, &outer, messages);
        for (i, verdict) in verdicts.iter_mut().enumerate() {
            let expected = base64_text(digits(digests[i / LANES][i % 8], i % LANES / 8));
            if asked >> i & 1 == 1 && is_equal(signatures[i], expected) {
                *verdict = Ok(Verified { slot, expiry: expiries[i] });
                waiting &= !(1 << i);
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

/// Takes a token in the form of [`crate::canonical::Canonical`], with `sr` and signature of at most a register's width:
/// what it signs goes to the lane, the decoded signature to `signature`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn recognise<'t>(
    request: &VerifyRequest<'t>,
    messages: &mut Messages<'t>,
    lane: usize,
    signature: &mut __m512i,
) -> Option<Expiry> {
    let (token, plain) = (request.token.as_bytes(), request.plain_resource.as_bytes());
    if token.len() > ParsedToken::TOKEN_LEN_MAX || plain.is_empty() || plain.len() > WIDTH {
        return None;
    }
    let (head, fields) = token.split_first_chunk()?;
    if head != HEAD {
        return None;
    }
    // `sr` ends where the first character stands that is below `'` and isn't `%`; that must be `&`.
    let text = load(fields);
    let low = _mm512_cmplt_epu8_mask(text, _mm512_set1_epi8(b'\'' as i8));
    let percent = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'%' as i8));
    let (sr, rest) = fields.split_at_checked((low & !percent).trailing_zeros() as usize)?;
    let rest = rest.strip_prefix(SIGNATURE_FIELD)?;
    let mut name = _mm512_setzero_si512();
    if decode(text, sr.len(), &mut name)? != plain.len() || _mm512_cmpneq_epi8_mask(name, load(plain)) != 0 {
        return None;
    }
    let text = load(rest);
    let end = _mm512_cmpeq_epi8_mask(text, _mm512_set1_epi8(b'&' as i8)).trailing_zeros() as usize;
    let (sig, rest) = rest.split_at_checked(end)?;
    let digits = rest.strip_prefix(EXPIRY_FIELD)?;
    if decode(text, sig.len(), signature)? != SIGNATURE_LEN {
        return None;
    }
    let (se, value) = Decimal::read_back_from_end(rest)?;
    if se.len() != digits.len() {
        return None;
    }
    messages.set(lane, sr, widen(se.ending_words()), se.len() + 2);
    Some(Expiry::at(value))
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
        let (number, next_number) = (index.cast_signed(), index.cast_signed() + 1);
        let mut words = [[zero; LANES]; WAVES];
        for (words, messages) in words.iter_mut().zip(messages) {
            let mut rows = [zero; LANES];
            for (lane, row) in rows.iter_mut().enumerate() {
                *row = _mm512_shuffle_epi8(messages.block(lane, index as usize), swap);
            }
            *words = transpose(rows);
            let is_last =
                _mm512_cmpeq_epi32_mask(load_words(&messages.blocks), _mm512_set1_epi32(next_number));
            words[15] = _mm512_mask_mov_epi32(words[15], is_last, load_words(&messages.bit_lens));
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

/// A short text as a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen<const WORDS: usize>(words: [u64; WORDS]) -> __m512i {
    let word = |i: usize| words.get(i).copied().unwrap_or_default().cast_signed();
    _mm512_set_epi64(0, 0, 0, 0, word(3), word(2), word(1), word(0))
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
