//! Every way of making, verifying and deriving against a naive one: the `hmac` and `base64` crates and `format!`.
//!
//! One test on purpose: it sets the level of instructions for the whole process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use twinkey_sas::{
    Expiry, Key, KeySlot, Renewal, ResourceRef, ResourceUri, Signer, Token, Verified, Verifier, VerifyError,
    bulk::{self, MintRequest, VerifyRequest},
    simd::{Level, limit_to},
};

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn naive_tag(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn naive_token(key: &[u8], plain: &str, expiry: u64) -> String {
    let sr = utf8_percent_encode(plain, ESCAPED);
    let sig = STANDARD.encode(naive_tag(key, format!("{sr}\n{expiry}").as_bytes()));
    format!("SharedAccessSignature sr={sr}&sig={}&se={expiry}", utf8_percent_encode(&sig, ESCAPED))
}

/// As many without `PROPTEST_CASES`.
const CASES: u32 = 400;

/// What may be done to a token before it is verified.
#[derive(Clone, Copy, Debug)]
enum Change {
    None,
    LowerCaseEscapes,
    RawSignature,
    FieldsTurnedAround,
    PolicyAdded,
    LeadingZero,
    Byte(usize, u8),
    CutOff(usize),
}

impl Change {
    fn apply(self, token: &str) -> String {
        match self {
            Self::None => token.into(),
            Self::LowerCaseEscapes => token.replace("%2F", "%2f").replace("%3D", "%3d"),
            Self::RawSignature => {
                let (head, tail) = token.split_once("&sig=").unwrap();
                let tail = tail.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
                format!("{head}&sig={tail}")
            }
            Self::FieldsTurnedAround => {
                let fields: Vec<&str> = token["SharedAccessSignature ".len()..].rsplit('&').collect();
                format!("SharedAccessSignature {}", fields.join("&"))
            }
            Self::PolicyAdded => format!("{token}&skn=p"),
            Self::LeadingZero => token.replace("&se=", "&se=0"),
            Self::Byte(at, byte) => {
                let mut bytes = token.as_bytes().to_vec();
                let at = at % bytes.len();
                bytes[at] = byte;
                String::from_utf8(bytes).unwrap()
            }
            Self::CutOff(len) => token[..len % token.len()].into(),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => Just(Change::None),
        1 => Just(Change::LowerCaseEscapes),
        1 => Just(Change::RawSignature),
        1 => Just(Change::FieldsTurnedAround),
        1 => Just(Change::PolicyAdded),
        1 => Just(Change::LeadingZero),
        2 => (any::<usize>(), b' '..=b'~').prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => any::<usize>().prop_map(Change::CutOff),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    key: Vec<u8>,
    other: Vec<u8>,
    with_secondary: bool,
    signed_with_secondary: bool,
    plain: String,
    expiry: u64,
    change: Change,
}

fn case() -> impl Strategy<Value = Case> {
    let key = || proptest::collection::vec(any::<u8>(), 16..=64);
    let plain = prop_oneof![
        4 => "[a-z0-9.-]{1,40}/devices/[a-zA-Z0-9._-]{1,30}",
        1 => "[a-z0-9.-]{1,60}",
        1 => "[a-z]{1,20}:[0-9]{2}/devices/[a-zA-Z0-9._%#*?!(),:=@$'+ &-]{1,128}",
        1 => "[a-z]{1,20}/devices/[a-zA-Z0-9]{1,128}/modules/[a-zA-Z0-9%$]{1,128}",
        1 => "\\PC{1,20}",
    ];
    let expiry =
        prop_oneof![3 => 1_600_000_000..2_000_000_000u64, 1 => any::<u64>(), 1 => 0..20_000_000_000u64];
    (key(), key(), any::<bool>(), any::<bool>(), plain, expiry, change()).prop_map(
        |(key, other, with_secondary, signed_with_secondary, plain, expiry, change)| Case {
            key,
            other,
            with_secondary,
            signed_with_secondary,
            plain,
            expiry,
            change,
        },
    )
}

type Verdicts = Vec<Result<Verified, VerifyError>>;

/// Checks everything but verification against the naive way; returns the verdicts.
fn check(cases: &[Case], now: u64) -> Verdicts {
    let keys: Vec<Key> = cases.iter().map(|case| Key::from_bytes(&case.key).unwrap()).collect();
    let signers: Vec<Signer> = keys.iter().map(Signer::new).collect();
    let resources: Vec<ResourceUri> =
        cases.iter().map(|case| ResourceUri::from_plain(&case.plain).unwrap()).collect();
    let expected: Vec<String> =
        cases.iter().map(|case| naive_token(&case.key, &case.plain, case.expiry)).collect();

    for (i, case) in cases.iter().enumerate() {
        let expiry = Expiry::at(case.expiry);
        let mut buffer = [0xaa; Token::MAX_LEN];
        assert_eq!(signers[i].sign(&resources[i], expiry, &mut buffer).unwrap().expose(), expected[i]);
        let renewal = Renewal::new(&signers[i], &resources[i]);
        assert_eq!(renewal.sign(expiry, &mut buffer).unwrap().expose(), expected[i]);
        assert_eq!(keys[i].derive(&case.plain).expose(), naive_tag(&case.key, case.plain.as_bytes()));
        let key = Key::from_base64(&STANDARD.encode(&case.key)).unwrap();
        assert_eq!(Signer::new(&key).sign(&resources[i], expiry, &mut buffer).unwrap().expose(), expected[i]);
    }

    let mut prepared = vec![Signer::new(&keys[0]); cases.len()];
    bulk::prepare(&keys, &mut prepared).unwrap();
    let requests: Vec<MintRequest<'_>> = (0..cases.len())
        .map(|i| MintRequest {
            signer: &prepared[i],
            resource: ResourceRef::from(&resources[i]),
            expiry: Expiry::at(cases[i].expiry),
        })
        .collect();
    let needed: usize = requests.iter().map(MintRequest::token_len_max).sum();
    let mut ends = vec![0; cases.len()];
    for spare in [0, 1, 1000] {
        let mut text = vec![0xaa; needed + spare];
        let tokens = bulk::mint(&requests, &mut text, &mut ends).unwrap();
        for (i, expected) in expected.iter().enumerate() {
            assert_eq!(tokens.expose(i), Some(expected.as_str()));
        }
        assert_eq!((tokens.len(), tokens.expose(cases.len())), (cases.len(), None));
    }
    let mut small = vec![0xaa; needed - 1];
    let error = bulk::mint(&requests, &mut small, &mut ends).unwrap_err();
    assert_eq!(error, bulk::BulkError::BufferTooSmall { needed, len: needed - 1 });
    let left = String::from_utf8_lossy(&small).into_owned();
    assert!(!left.contains("&sig="), "{left}");

    let ids: Vec<&str> = cases.iter().map(|case| case.plain.as_str()).collect();
    let mut derived = keys.clone();
    bulk::derive(&keys[0], &ids, &mut derived).unwrap();
    for (id, key) in ids.iter().zip(&derived) {
        assert_eq!(key.expose(), naive_tag(&cases[0].key, id.as_bytes()));
    }

    let verifiers: Vec<Verifier> = cases
        .iter()
        .zip(&keys)
        .map(|(case, key)| {
            let other = Key::from_bytes(&case.other).unwrap();
            match (case.with_secondary, case.signed_with_secondary) {
                (false, _) => Verifier::new(key, None),
                (true, false) => Verifier::new(key, Some(&other)),
                (true, true) => Verifier::new(&other, Some(key)),
            }
        })
        .collect();
    let tokens: Vec<String> =
        cases.iter().zip(&expected).map(|(case, token)| case.change.apply(token)).collect();
    let requests: Vec<VerifyRequest<'_>> = (0..cases.len())
        .map(|i| VerifyRequest {
            verifier: &verifiers[i],
            token: &tokens[i],
            plain_resource: &cases[i].plain,
        })
        .collect();
    let mut verdicts = vec![Err(VerifyError::Signature); cases.len()];
    bulk::verify(&requests, now, &mut verdicts).unwrap();
    for (request, verdict) in requests.iter().zip(&verdicts) {
        assert_eq!(
            request.verifier.verify(request.token, request.plain_resource, now),
            *verdict,
            "{}",
            request.token
        );
    }
    for (case, verdict) in cases.iter().zip(&verdicts) {
        let in_time = case.expiry.saturating_add(300) >= now;
        let slot = if case.with_secondary && case.signed_with_secondary {
            KeySlot::Secondary
        } else {
            KeySlot::Primary
        };
        let good = Verified { slot, expiry: Expiry::at(case.expiry) };
        match case.change {
            Change::None | Change::FieldsTurnedAround | Change::PolicyAdded | Change::RawSignature => {
                assert_eq!(verdict.ok(), in_time.then_some(good), "{case:?}");
            }
            Change::LeadingZero | Change::CutOff(_) => assert!(verdict.is_err(), "{case:?}"),
            Change::LowerCaseEscapes | Change::Byte(..) => {}
        }
    }
    verdicts
}

/// A token that names nothing is malformed, whatever is asked for and however it is signed.
fn check_nameless() {
    let key = Key::from_bytes(&[1; 32]).unwrap();
    let sig = STANDARD.encode(naive_tag(&[1; 32], b"\n1700000000"));
    let token = format!("SharedAccessSignature sr=&sig={}&se=1700000000", utf8_percent_encode(&sig, ESCAPED));
    let verifier = Verifier::new(&key, None);
    let request = VerifyRequest { verifier: &verifier, token: &token, plain_resource: "" };
    let mut verdicts = [Err(VerifyError::Signature); 20];
    bulk::verify(&[request; 20], 0, &mut verdicts).unwrap();
    assert!(matches!(verdicts[0], Err(VerifyError::Malformed(_))), "{verdicts:?}");
    assert!(verdicts.iter().all(|verdict| *verdict == verifier.verify(&token, "", 0)));
}

/// Every other byte in every place of a signature is refused, but for the other case of an escape's digits.
fn check_every_byte() {
    let (key, plain) = ([3; 32], "h.net/devices/d");
    let verifier = Verifier::new(&Key::from_bytes(&key).unwrap(), None);
    // The first expiry whose signature has both escapes.
    let token = (1_700_000_000..)
        .map(|expiry| naive_token(&key, plain, expiry))
        .find(|token| token.contains("%2B") && token.matches("%2F").count() > 2)
        .unwrap();
    let start = token.find("&sig=").unwrap() + 5;
    let changed: Vec<String> = (start..token.find("&se=").unwrap())
        .flat_map(|at| (b' '..=b'~').map(move |byte| (at, byte)))
        .filter(|&(at, byte)| !token.as_bytes()[at].eq_ignore_ascii_case(&byte))
        .map(|(at, byte)| {
            let mut changed = token.clone();
            changed.replace_range(at..=at, char::from(byte).encode_utf8(&mut [0; 4]));
            changed
        })
        .collect();
    let requests: Vec<VerifyRequest<'_>> = changed
        .iter()
        .map(|token| VerifyRequest { verifier: &verifier, token, plain_resource: plain })
        .collect();
    let mut verdicts = vec![Err(VerifyError::Resource); requests.len()];
    bulk::verify(&requests, 0, &mut verdicts).unwrap();
    for (token, verdict) in changed.iter().zip(&verdicts) {
        assert!(verdict.is_err() && verifier.verify(token, plain, 0) == *verdict, "{token}");
    }
    assert!(verifier.verify(&token, plain, 0).is_ok());
}

#[test]
fn all_ways_agree_with_the_naive_one_on_every_level() {
    for level in [Level::Portable, Level::Avx2, Level::Sha, Level::Avx512] {
        limit_to(level);
        check_nameless();
        check_every_byte();
    }
    let default = Config::default();
    // The default has what `PROPTEST_CASES` says.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { CASES };
    let mut runner = TestRunner::new(Config { cases, ..default });
    let cases = proptest::collection::vec(case(), 1..40);
    runner
        .run(&(cases, 1_500_000_000..2_100_000_000u64), |(cases, now)| {
            limit_to(Level::Portable);
            let portable = check(&cases, now);
            for level in [Level::Avx2, Level::Sha, Level::Avx512] {
                if limit_to(level) == level {
                    assert_eq!(check(&cases, now), portable, "{level:?}");
                }
            }
            Ok(())
        })
        .unwrap();
    println!("highest level here: {:?}", limit_to(Level::Avx512));
}
