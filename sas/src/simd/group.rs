//! Many tokens or keys on processors that hash a few messages at once: two with SHA instructions, eight with AVX2.
//!
//! Safe code: how a group's tags are made is the caller's to say. What doesn't fill a group is left to be done one by
//! one. All messages of a group are laid out before the first is hashed, because one that was just written can't be
//! loaded in full registers yet.

#![allow(clippy::indexing_slicing, reason = "all arrays have a group's places, and indices stay below")]

use core::array::from_fn;

use crate::{
    bulk::{self, MintRequest, Progress, VerifyRequest},
    canonical::Canonical,
    decimal::Decimal,
    hmac::{HmacSha256, State, to_bytes},
    key::{Key, KeySlot},
    message::Message,
    parse::ParsedToken,
    secret,
    signature::{is_text_of, padded, write_text},
    token::Expiry,
    verify::{Verified, VerifyError, is_over},
};

#[cfg(target_arch = "x86_64")]
use crate::{hmac::BLOCK_LEN, token::Signer};

/// How many messages are laid out, hashed and written together.
pub(super) const GROUP: usize = 8;

/// The tags of a group, two at a time.
#[inline]
pub(super) fn in_pairs(
    keys: [&HmacSha256; GROUP],
    messages: [&Message<'_>; GROUP],
    tags: impl Fn([&HmacSha256; 2], [&Message<'_>; 2]) -> [State; 2],
) -> [State; GROUP] {
    let mut all = [State::default(); GROUP];
    for i in (0..GROUP).step_by(2) {
        [all[i], all[i + 1]] = tags([keys[i], keys[i + 1]], [messages[i], messages[i + 1]]);
    }
    all
}

/// As [`bulk::mint`], for whole groups, until the room ends.
pub(super) fn mint(
    mut requests: &[MintRequest<'_>],
    text: &mut [u8],
    ends: &mut [usize],
    tags: impl Fn([&HmacSha256; GROUP], [&Message<'_>; GROUP]) -> [State; GROUP],
) -> Progress {
    let mut progress = Progress::default();
    let mut ends = ends.chunks_exact_mut(GROUP);
    while let (Some((group, rest)), Some(ends)) = (requests.split_first_chunk::<GROUP>(), ends.next()) {
        let promised = progress.promised + group.iter().map(MintRequest::token_len_max).sum::<usize>();
        if promised > text.len() {
            break;
        }
        let dates = group.each_ref().map(|request| Decimal::of(request.expiry.unix_secs()));
        let messages: [_; GROUP] = from_fn(|i| Message::of_raw(group[i].resource.as_bytes(), &dates[i]));
        let tags = tags(from_fn(|i| group[i].signer.key()), messages.each_ref());
        let mut at = progress.at;
        for i in 0..GROUP {
            let write_signature = |out: &mut _| write_text(&tags[i], out);
            match bulk::write_one(group[i].resource, &dates[i], write_signature, text, at) {
                Some(end) => at = end,
                None => return progress,
            }
            ends[i] = at;
        }
        progress = Progress { done: progress.done + GROUP, at, promised };
        requests = rest;
    }
    progress
}

/// As [`bulk::verify`], for whole groups; returns how many were done.
///
/// Tokens in the usual form go through together, first with the primary keys, then with the secondary ones where it is
/// those; what is left after that gets its verdict from [`crate::Verifier::verify`].
pub(super) fn verify(
    requests: &[VerifyRequest<'_>],
    now: u64,
    verdicts: &mut [Result<Verified, VerifyError>],
    tags: impl Fn([&HmacSha256; GROUP], [&Message<'_>; GROUP]) -> [State; GROUP],
) -> usize {
    let (mut rest, mut done) = (requests, 0);
    let mut verdicts = verdicts.chunks_exact_mut(GROUP);
    while let (Some((group, after)), Some(verdicts)) = (rest.split_first_chunk::<GROUP>(), verdicts.next()) {
        let mut waiting = group.each_ref().map(|request| recognise(request, now));
        let messages = waiting.each_ref().map(|token| match token {
            Some(token) => Message::of_raw(token.sr, &token.se),
            None => Message::of_text(&[]),
        });
        let mut is_open = [true; GROUP];
        for slot in [KeySlot::Primary, KeySlot::Secondary] {
            let keys: [_; GROUP] = from_fn(|i| waiting[i].as_ref().and_then(|_| group[i].verifier.key(slot)));
            let Some(&any) = keys.iter().flatten().next() else { continue };
            let tags = tags(keys.map(|key| key.unwrap_or(any)), messages.each_ref());
            for i in 0..GROUP {
                let (Some(_), Some(token)) = (keys[i], &waiting[i]) else { continue };
                if padded(token.sig).is_some_and(|given| is_text_of(&tags[i], &given)) {
                    verdicts[i] = Ok(Verified { slot, expiry: Expiry::at(token.expiry_unix_secs) });
                    is_open[i] = false;
                    waiting[i] = None;
                }
            }
        }
        for i in 0..GROUP {
            if is_open[i] {
                verdicts[i] = group[i].verifier.verify(group[i].token, group[i].plain_resource, now);
            }
        }
        done += GROUP;
        rest = after;
    }
    done
}

fn recognise<'t>(request: &VerifyRequest<'t>, now: u64) -> Option<Canonical<'t>> {
    if request.token.len() > ParsedToken::TOKEN_LEN_MAX {
        return None;
    }
    Canonical::recognise(request.token, request.plain_resource)
        .filter(|token| !is_over(Expiry::at(token.expiry_unix_secs), now))
}

/// As [`bulk::derive`], for whole groups; returns how many were done.
pub(super) fn derive(
    group_key: &HmacSha256,
    ids: &[&str],
    keys: &mut [Key],
    tags: impl Fn([&HmacSha256; GROUP], [&Message<'_>; GROUP]) -> [State; GROUP],
) -> usize {
    let (mut rest, mut done) = (ids, 0);
    let mut keys = keys.chunks_exact_mut(GROUP);
    while let (Some((ids, after)), Some(keys)) = (rest.split_first_chunk::<GROUP>(), keys.next()) {
        let messages = ids.each_ref().map(|id| Message::of_text(id.as_bytes()));
        let mut tags = tags([group_key; GROUP], messages.each_ref());
        for (key, tag) in keys.iter_mut().zip(&mut tags) {
            let mut bytes = to_bytes(tag);
            *key = Key::from_checked(&bytes);
            secret::wipe(&mut bytes);
            secret::wipe_words(tag);
        }
        done += GROUP;
        rest = after;
    }
    done
}

/// As [`bulk::prepare`], for whole groups; returns how many were done.
#[cfg(target_arch = "x86_64")]
pub(super) fn prepare_many(
    keys: &[Key],
    signers: &mut [Signer],
    prepare: impl Fn([&[u8; BLOCK_LEN]; GROUP]) -> [HmacSha256; GROUP],
) -> usize {
    let (mut rest, mut done) = (keys, 0);
    let mut signers = signers.chunks_exact_mut(GROUP);
    while let (Some((keys, after)), Some(signers)) = (rest.split_first_chunk::<GROUP>(), signers.next()) {
        for (signer, key) in signers.iter_mut().zip(prepare(keys.each_ref().map(Key::padded))) {
            *signer = key.into();
        }
        done += GROUP;
        rest = after;
    }
    done
}
