//! Many at once: the tokens of a fleet, their verification, and the keys of a group's devices.
//!
//! Same results as one by one, in the caller's memory. The feature `simd` looks for what the processor can do with
//! several messages at once; without it this is a loop.

use core::fmt;

use crate::{
    decimal::{DECIMAL_LEN_MAX, Decimal},
    key::Key,
    message::Message,
    resource::ResourceRef,
    secret,
    signature::{self, SIGNATURE_LEN_MAX},
    simd,
    token::{EXPIRY_FIELD, Expiry, HEAD, SIGNATURE_FIELD, Signer, finish},
    verify::{Verified, Verifier, VerifyError},
};

/// A token to be made: what [`Signer::sign`] is given.
#[derive(Clone, Copy, Debug)]
pub struct MintRequest<'a> {
    /// Its key.
    pub signer: &'a Signer,
    /// `sr`.
    pub resource: ResourceRef<'a>,
    /// `se`.
    pub expiry: Expiry,
}

impl MintRequest<'_> {
    /// Bytes that are enough for the token, whatever its signature.
    pub fn token_len_max(&self) -> usize {
        let fields = HEAD.len() + SIGNATURE_FIELD.len() + EXPIRY_FIELD.len();
        fields + self.resource.as_bytes().len() + SIGNATURE_LEN_MAX + DECIMAL_LEN_MAX
    }
}

/// A token to be judged: what [`Verifier::verify`] is given.
#[derive(Clone, Copy)]
pub struct VerifyRequest<'a> {
    /// The keys.
    pub verifier: &'a Verifier,
    /// The token.
    pub token: &'a str,
    /// What it must name, such as `host/devices/id`.
    pub plain_resource: &'a str,
}

impl fmt::Debug for VerifyRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyRequest").field("plain_resource", &self.plain_resource).finish_non_exhaustive()
    }
}

/// Makes one token for each request, one behind the other in `text`, and notes in `ends` where each of them ends.
///
/// # Errors
/// [`BulkError::Lengths`] unless there is one place in `ends` for each request; [`BulkError::BufferTooSmall`] if
/// `text` is shorter than the sum of [`MintRequest::token_len_max`]. `text` then holds no token.
pub fn mint<'b>(
    requests: &[MintRequest<'_>],
    text: &'b mut [u8],
    ends: &'b mut [usize],
) -> Result<Tokens<'b>, BulkError> {
    check_lengths(requests.len(), ends.len())?;
    match mint_all(requests, text, ends) {
        Ok(len) => Ok(Tokens { text: text.get_mut(..len).unwrap_or_default(), ends }),
        Err(len) => {
            secret::wipe(text.get_mut(..len).unwrap_or_default());
            let needed = requests
                .iter()
                .fold(0, |needed: usize, request| needed.saturating_add(request.token_len_max()));
            Err(BulkError::BufferTooSmall { needed, len: text.len() })
        }
    }
}

/// Verifies each token at the time `now_unix_secs`, as [`Verifier::verify`] would.
///
/// # Errors
/// [`BulkError::Lengths`] unless there is one place in `verdicts` for each request.
pub fn verify(
    requests: &[VerifyRequest<'_>],
    now_unix_secs: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
) -> Result<(), BulkError> {
    check_lengths(requests.len(), verdicts.len())?;
    let done = simd::verify(requests, now_unix_secs, verdicts);
    for (request, verdict) in requests.iter().zip(verdicts).skip(done) {
        *verdict = request.verifier.verify(request.token, request.plain_resource, now_unix_secs);
    }
    Ok(())
}

/// Derives the key of each device in a group enrolment, as [`Key::derive`] would, in place of what `keys` holds.
///
/// # Errors
/// [`BulkError::Lengths`] unless there is one place in `keys` for each id.
pub fn derive(group: &Key, registration_ids: &[&str], keys: &mut [Key]) -> Result<(), BulkError> {
    check_lengths(registration_ids.len(), keys.len())?;
    let states = group.hmac_states();
    let done = simd::derive(&states, registration_ids, keys);
    for (id, key) in registration_ids.iter().zip(keys).skip(done) {
        *key = Key::derived_by(&states, id);
    }
    Ok(())
}

/// Prepares many keys, as [`Signer::new`] would, in place of what `signers` holds.
///
/// # Errors
/// [`BulkError::Lengths`] unless there is one place in `signers` for each key.
pub fn prepare(keys: &[Key], signers: &mut [Signer]) -> Result<(), BulkError> {
    check_lengths(keys.len(), signers.len())?;
    let done = simd::prepare_many(keys, signers);
    for (key, signer) in keys.iter().zip(signers).skip(done) {
        *signer = Signer::new(key);
    }
    Ok(())
}

/// Tokens in the caller's memory. Wiped when dropped, and `Debug` shows nothing of them.
pub struct Tokens<'b> {
    /// ASCII.
    text: &'b mut [u8],
    ends: &'b [usize],
}

impl Tokens<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The token of the request with this index.
    pub fn expose(&self, index: usize) -> Option<&str> {
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        core::str::from_utf8(self.text.get(start..*self.ends.get(index)?)?).ok()
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        secret::wipe(self.text);
    }
}

impl fmt::Debug for Tokens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens([elided])")
    }
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkError {
    /// There isn't exactly one place for each result.
    Lengths {
        /// How many results there would be.
        requests: usize,
        /// How many places were given.
        places: usize,
    },
    /// The memory can't hold all tokens.
    BufferTooSmall {
        /// Bytes that are always enough for these requests.
        needed: usize,
        /// Bytes given.
        len: usize,
    },
}

impl fmt::Display for BulkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lengths { requests, places } => {
                write!(f, "{requests} requests need as many places for their results, these are {places}")
            }
            Self::BufferTooSmall { needed, len } => {
                write!(f, "tokens need a buffer of {needed} bytes, this one has {len}")
            }
        }
    }
}

impl core::error::Error for BulkError {}

/// Where the next token goes, and how much of the text is promised to those so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) at: usize,
    pub(crate) promised: usize,
}

/// The length of all tokens together; or that of those that were made until the room ended.
fn mint_all(requests: &[MintRequest<'_>], text: &mut [u8], ends: &mut [usize]) -> Result<usize, usize> {
    let mut progress = simd::mint(requests, text, ends);
    for (request, end) in requests.iter().zip(ends).skip(progress.done) {
        progress.promised = progress.promised.saturating_add(request.token_len_max());
        if progress.promised > text.len() {
            return Err(progress.at);
        }
        progress.at = mint_one(request, text, progress.at).ok_or(progress.at)?;
        *end = progress.at;
    }
    Ok(progress.at)
}

/// Returns where the token ends; `None` if there is no room.
pub(crate) fn mint_one(request: &MintRequest<'_>, text: &mut [u8], at: usize) -> Option<usize> {
    let se = Decimal::of(request.expiry.unix_secs());
    let message = Message::of_raw(request.resource.as_bytes(), &se);
    let write_signature = |out: &mut _| signature::write(request.signer.key(), &message, out);
    write_one(request.resource, &se, write_signature, text, at)
}

/// The same with a signature that is there already.
#[inline]
pub(crate) fn write_one(
    resource: ResourceRef<'_>,
    se: &Decimal,
    write_signature: impl FnOnce(&mut [u8; SIGNATURE_LEN_MAX]) -> usize,
    text: &mut [u8],
    at: usize,
) -> Option<usize> {
    let sr = resource.as_bytes();
    let buffer = text.get_mut(at..)?;
    let (head, rest) = buffer.split_first_chunk_mut()?;
    *head = *HEAD;
    let (name, rest) = rest.split_at_mut_checked(sr.len())?;
    name.copy_from_slice(sr);
    *rest.first_chunk_mut()? = *SIGNATURE_FIELD;
    let head_len = HEAD.len() + sr.len() + SIGNATURE_FIELD.len();
    Some(at + finish(write_signature, se, b"", buffer, head_len)?)
}

fn check_lengths(requests: usize, places: usize) -> Result<(), BulkError> {
    if requests == places { Ok(()) } else { Err(BulkError::Lengths { requests, places }) }
}
