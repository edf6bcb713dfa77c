//! The work that is counted.

use std::hint::black_box;

use twinkey_sas::{
    Expiry, Key, Renewal, ResourceRef, ResourceUri, Signer, Token, Verifier,
    bulk::{self, MintRequest},
    simd::{Level, limit_to},
};

const HOST: &str = "contoso-hub.azure-devices.net";
const KEY_BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NOW: u64 = 1_790_000_000;

/// Tokens or keys of one case.
const COUNT: usize = 64;

pub(crate) struct Case {
    pub(crate) index: usize,
    pub(crate) label: String,
    /// Cases of one family must take equally many instructions.
    pub(crate) family: Option<&'static str>,
    /// Tokens or keys that one call of `work` makes.
    pub(crate) count: usize,
    pub(crate) work: Box<dyn FnMut()>,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, label: &str, level: Level, mut work: impl FnMut() + 'static) {
        let work = Box::new(move || {
            limit_to(level);
            work();
        });
        self.0.push(Case { index: self.0.len(), label: label.into(), family: None, count: COUNT, work });
    }

    fn add_member(&mut self, family: &'static str, label: &str, work: impl FnMut() + 'static) {
        self.add(label, Level::Portable, work);
        if let Some(case) = self.0.last_mut() {
            (case.family, case.count) = (Some(family), 1);
        }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Cases::default();
    tokens(&mut cases);
    bulk(&mut cases, "portable", Level::Portable);
    bulk(&mut cases, "simd", Level::Avx512);
    refusals(&mut cases);
    keys(&mut cases);
    cases.0
}

fn resources() -> Vec<ResourceUri> {
    (0..COUNT).map(|i| ResourceUri::device(HOST, &format!("edge-gw-{i:06}")).unwrap()).collect()
}

fn token_of(signer: &Signer, resource: &ResourceUri, expiry: u64) -> String {
    signer.sign(resource, Expiry::at(expiry), &mut [0; Token::MAX_LEN]).unwrap().expose().into()
}

fn tokens(cases: &mut Cases) {
    let key = Key::from_base64(KEY_BASE64).unwrap();
    let signer = Signer::new(&key);
    let portable = Level::Portable;

    let (kept, names) = (signer.clone(), resources());
    cases.add("sign", portable, move || {
        let mut buffer = [0; 512];
        for (name, i) in names.iter().zip(0..) {
            black_box(kept.sign(name, Expiry::at(NOW + i), &mut buffer).unwrap());
        }
    });
    let renewals: Vec<Renewal> = resources().iter().map(|name| Renewal::new(&signer, name)).collect();
    cases.add("renewal", portable, move || {
        let mut buffer = [0; 512];
        for (renewal, i) in renewals.iter().zip(0..) {
            black_box(renewal.sign(Expiry::at(NOW + i), &mut buffer).unwrap());
        }
    });
    let names = resources();
    cases.add("from-key", portable, move || {
        let mut buffer = [0; 512];
        for (name, i) in names.iter().zip(0..) {
            let signer = Signer::new(&Key::from_base64(black_box(KEY_BASE64)).unwrap());
            black_box(signer.sign(name, Expiry::at(NOW + i), &mut buffer).unwrap());
        }
    });
    let verifier = Verifier::new(&key, None);
    let tokens: Vec<String> =
        resources().iter().zip(0..).map(|(name, i)| token_of(&signer, name, NOW + i)).collect();
    let plain: Vec<String> = (0..COUNT).map(|i| format!("{HOST}/devices/edge-gw-{i:06}")).collect();
    cases.add("verify", portable, move || {
        for (token, plain) in tokens.iter().zip(&plain) {
            assert!(verifier.verify(black_box(token), plain, NOW).is_ok());
        }
    });
    let mut state = [1; 8];
    cases.add("compression", portable, move || {
        sha2::block_api::compress256(black_box(&mut state), &[[7; 64]; COUNT]);
    });
}

fn bulk(cases: &mut Cases, suffix: &str, level: Level) {
    let signer = Signer::new(&Key::from_base64(KEY_BASE64).unwrap());
    let names = resources();
    cases.add(&format!("mint-{suffix}"), level, move || {
        let request = |name| MintRequest {
            signer: &signer,
            resource: ResourceRef::from(name),
            expiry: Expiry::at(NOW),
        };
        let requests: [MintRequest<'_>; COUNT] = std::array::from_fn(|i| request(&names[i]));
        let (mut text, mut ends) = ([0; COUNT * 256], [0; COUNT]);
        black_box(bulk::mint(&requests, &mut text, &mut ends).unwrap());
    });
    let group = Key::from_base64(KEY_BASE64).unwrap();
    let mut keys = vec![group.clone(); COUNT];
    cases.add(&format!("derive-{suffix}"), level, move || {
        bulk::derive(black_box(&group), &["edge-gw-000001"; COUNT], &mut keys).unwrap();
    });
}

/// A token whose signature has no escape but the one at its end, and where its digits begin.
fn even_token(signer: &Signer) -> (String, usize) {
    let resource = ResourceUri::device(HOST, "edge-gw-000001").unwrap();
    let tokens = (NOW..).map(|expiry| token_of(signer, &resource, expiry));
    let start = |token: &str| token.find("&sig=").unwrap() + "&sig=".len();
    let is_even = |token: &String| token.rfind("&se=").unwrap() - start(token) == 46;
    let token = tokens.into_iter().find(is_even).unwrap();
    let start = start(&token);
    (token, start)
}

/// One token, wrong in each of its digits in turn, and in all; and one text against many keys.
fn refusals(cases: &mut Cases) {
    let key = Key::from_base64(KEY_BASE64).unwrap();
    let (token, start) = even_token(&Signer::new(&key));
    let plain = format!("{HOST}/devices/edge-gw-000001");
    let mut wrong: Vec<(String, String)> = (0..43)
        .map(|digit| {
            let mut changed = token.clone();
            let at = start + digit;
            // The last digit has four bits: every fourth one is allowed.
            let other = if token.as_bytes()[at] == b'A' { "E" } else { "A" };
            changed.replace_range(at..=at, other);
            (format!("wrong-in-digit-{digit}"), changed)
        })
        .collect();
    let mut changed = token.clone();
    changed.replace_range(start..start + 43, &"A".repeat(43));
    wrong.push(("wrong-in-all-digits".into(), changed));
    for (label, token) in wrong {
        let (verifier, plain) = (Verifier::new(&key, None), plain.clone());
        cases.add_member("refusing a signature", &label, move || {
            assert!(verifier.verify(black_box(&token), &plain, NOW).is_err());
        });
    }
    // The right signatures differ, the text doesn't.
    for i in 0..32 {
        let verifier = Verifier::new(&Key::from_bytes(&[i; 32]).unwrap(), None);
        let (token, plain) = (token.clone(), plain.clone());
        cases.add_member("refusing a signature", &format!("with-key-{i}"), move || {
            assert!(verifier.verify(black_box(&token), &plain, NOW).is_err());
        });
    }
}

/// Texts of equal length, and keys that differ in one byte.
fn keys(cases: &mut Cases) {
    let contents: [(&str, [u8; 32]); 6] = [
        ("zeros", [0; 32]),
        ("ones", [0xff; 32]),
        ("pluses", [0xfb, 0xef, 0xbe].repeat(11)[..32].try_into().unwrap()),
        ("digits", [0xd3, 0x5d, 0x34].repeat(11)[..32].try_into().unwrap()),
        ("lower-case", [0x69, 0xb7, 0x1d].repeat(11)[..32].try_into().unwrap()),
        ("counting", std::array::from_fn(|i| i as u8)),
    ];
    for (label, bytes) in contents {
        let text = Key::from_bytes(&bytes).unwrap().expose_base64(&mut [0; 88]).to_owned();
        cases.add_member("reading a key", &format!("key-of-{label}"), move || {
            assert!(Key::from_base64(black_box(&text)).is_ok());
        });
    }
    for at in 0..32 {
        let (a, mut b) = ([7; 32], [7; 32]);
        b[at] = 8;
        let [a, b] = [a, b].map(|bytes| Key::from_bytes(&bytes).unwrap());
        cases.add_member("comparing keys", &format!("keys-differ-at-{at}"), move || {
            assert!(black_box(&a) != black_box(&b));
        });
    }
}
