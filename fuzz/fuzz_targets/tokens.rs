//! Any text as a token: parsed and verified without a panic, and never taken for valid. The key is random for each
//! process, so that no input can be signed with it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use twinkey_sas::bulk::{self, VerifyRequest};
use twinkey_sas::{Key, ParsedToken, Verifier, VerifyError};

static VERIFIER: OnceLock<Verifier> = OnceLock::new();

fuzz_target!(|input: (&str, &str, u64)| {
    let (token, resource, now_unix_secs) = input;
    let verifier = VERIFIER.get_or_init(|| {
        let mut bytes = [0; 32];
        let random = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut &random, &mut bytes).unwrap();
        Verifier::new(&Key::from_bytes(&bytes).unwrap(), None)
    });
    let _ = ParsedToken::parse(token);
    let verdict = verifier.verify(token, resource, now_unix_secs);
    assert!(verdict.is_err());
    let request = VerifyRequest { verifier, token, plain_resource: resource };
    let mut verdicts = [const { Err(VerifyError::Signature) }; 3];
    bulk::verify(&[request; 3], now_unix_secs, &mut verdicts).unwrap();
    assert!(verdicts.iter().all(|other| *other == verdict));
});
