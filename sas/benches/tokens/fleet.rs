//! The rows of bulk work.

use std::{cell::RefCell, hint::black_box};

use twinkey_sas::{
    Expiry, Key, ResourceRef, Signer, Verified, Verifier, VerifyError,
    bulk::{self, MintRequest, VerifyRequest},
    simd::{Level, limit_to},
};

use crate::{HOST, Limit, NOW, Table};

/// So many at a time; more devices than that are gone through in windows, so that each finds its memory cold.
const WINDOW: usize = 4096;

/// Devices with a key each.
pub(crate) struct Fleet {
    devices: usize,
    ids: Texts,
    plain: Texts,
    encoded: Texts,
    signers: Vec<Signer>,
    verifiers: Vec<Verifier>,
    tokens: Texts,
}

/// Texts one behind the other, as who has a million of them keeps them.
#[derive(Default)]
struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.all[std::mem::replace(&mut start, end)..end])
    }
}

fn texts(devices: usize, text: impl Fn(usize) -> String) -> Texts {
    let mut texts = Texts::default();
    (0..devices).for_each(|i| texts.push(&text(i)));
    texts
}

impl Fleet {
    pub(crate) fn new(devices: usize) -> Self {
        let ids = texts(devices, |i| format!("edge-gw-{i:06x}"));
        let plain = texts(devices, |i| format!("{HOST}/devices/edge-gw-{i:06x}"));
        let encoded = texts(devices, |i| format!("{HOST}%2Fdevices%2Fedge-gw-{i:06x}"));
        let group = Key::from_bytes(&[1; 32]).unwrap();
        let mut keys = vec![group.clone(); devices];
        let names: Vec<&str> = ids.iter().collect();
        bulk::derive(&group, &names, &mut keys).unwrap();
        let mut signers = vec![Signer::new(&group); devices];
        bulk::prepare(&keys, &mut signers).unwrap();
        let verifiers = keys.iter().map(|key| Verifier::new(key, None)).collect();
        let mut fleet = Self { devices, ids, plain, encoded, signers, verifiers, tokens: Texts::default() };
        let mut tokens = Texts::default();
        let requests = fleet.mint_requests();
        let mut ends = vec![0; WINDOW];
        let mut text = vec![0; WINDOW * requests[0].token_len_max()];
        for requests in requests.chunks(WINDOW) {
            let minted = bulk::mint(requests, &mut text, &mut ends).unwrap();
            (0..minted.len()).for_each(|i| tokens.push(minted.expose(i).unwrap()));
        }
        fleet.tokens = tokens;
        fleet
    }

    fn mint_requests(&self) -> Vec<MintRequest<'_>> {
        let expiry = Expiry::at(NOW);
        let resources = self.encoded.iter().map(|text| ResourceRef::from_encoded(text).unwrap());
        resources
            .zip(&self.signers)
            .map(|(resource, signer)| MintRequest { signer, resource, expiry })
            .collect()
    }

    fn verify_requests(&self) -> Vec<VerifyRequest<'_>> {
        let names = self.plain.iter().zip(&self.verifiers);
        self.tokens
            .iter()
            .zip(names)
            .map(|(token, (plain_resource, verifier))| VerifyRequest { verifier, token, plain_resource })
            .collect()
    }

    /// `claims` are those of sixteen lanes; other ways of hashing are held against chained compressions.
    pub(crate) fn add_rows<'f>(
        &'f self,
        table: &mut Table<'f>,
        level: Level,
        claims: [Option<(f64, f64)>; 3],
    ) {
        let devices = self.devices;
        let [derive, mint, verify] = claims;
        let (suffix, limit): (_, fn(f64) -> Limit) = if level == Level::Avx512 {
            (String::new(), Limit::Lanes)
        } else {
            (format!(", {level:?}").to_lowercase(), Limit::Chained)
        };
        let (two, three) = (limit(2.0), limit(3.0));
        let name = |what: &str| format!("bulk: {what}, {devices} devices{suffix}");

        let group = Key::from_bytes(&[1; 32]).unwrap();
        let ids: Vec<&str> = self.ids.iter().collect();
        let mut keys = vec![group.clone(); devices];
        let mut window = windows(devices);
        table.add(&name("derive"), two, derive, WINDOW, move || {
            limit_to(level);
            let window = window();
            bulk::derive(black_box(&group), &ids[window.clone()], &mut keys[window]).unwrap();
        });

        let requests = self.mint_requests();
        let token_len_max = requests[0].token_len_max();
        // Not zero, so that the memory is really there before it is measured.
        let mut text = vec![1; token_len_max * devices];
        let mut ends = vec![0; WINDOW];
        let mut window = windows(devices);
        table.add(&name("mint"), three, mint, WINDOW, move || {
            limit_to(level);
            let window = window();
            let text = &mut text[window.start * token_len_max..window.end * token_len_max];
            black_box(bulk::mint(black_box(&requests[window]), text, &mut ends).unwrap());
        });

        let requests = self.verify_requests();
        let verdicts: Vec<Result<Verified, VerifyError>> = vec![Err(VerifyError::Signature); WINDOW];
        let verdicts = RefCell::new(verdicts);
        let mut window = windows(devices);
        table.add(&name("verify"), three, verify, WINDOW, move || {
            limit_to(level);
            let mut verdicts = verdicts.borrow_mut();
            bulk::verify(black_box(&requests[window()]), NOW, &mut verdicts).unwrap();
            assert!(verdicts.iter().all(Result::is_ok));
        });
    }
}

/// One window after the other, round and round.
fn windows(devices: usize) -> impl FnMut() -> std::ops::Range<usize> {
    let mut start = 0;
    move || {
        let window = start..start + WINDOW;
        start = window.end % devices;
        window
    }
}
