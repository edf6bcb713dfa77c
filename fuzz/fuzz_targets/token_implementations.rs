//! Every way of making a token against a naive one: the `hmac` and `base64` crates and `format!`.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use twinkey_sas::bulk::{self, MintRequest};
use twinkey_sas::{Expiry, Key, Renewal, ResourceUri, Signer, Token, Verifier};

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn naive(key: &[u8], plain: &str, expiry: u64) -> String {
    let sr = utf8_percent_encode(plain, ESCAPED);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    mac.update(format!("{sr}\n{expiry}").as_bytes());
    let sig = STANDARD.encode(mac.finalize().into_bytes());
    format!("SharedAccessSignature sr={sr}&sig={}&se={expiry}", utf8_percent_encode(&sig, ESCAPED))
}

fuzz_target!(|input: (&[u8], &str, Vec<u64>)| {
    let (key_bytes, plain, expiries) = input;
    let Ok(key) = Key::from_bytes(key_bytes) else { return };
    let Ok(uri) = ResourceUri::from_plain(plain) else { return };
    let (signer, verifier) = (Signer::new(&key), Verifier::new(&key, None));
    let renewal = Renewal::new(&signer, &uri);
    let expiries: Vec<_> = expiries.into_iter().take(40).filter_map(|secs| Some((secs, Expiry::after(secs, 0)?))).collect();
    let mut buffer = [0; Token::MAX_LEN];
    let mut requests = Vec::new();
    for (secs, expiry) in &expiries {
        let expected = naive(key_bytes, plain, *secs);
        assert_eq!(signer.sign(&uri, *expiry, &mut buffer).unwrap().expose(), expected);
        assert_eq!(renewal.sign(*expiry, &mut buffer).unwrap().expose(), expected);
        assert!(verifier.verify(&expected, plain, *secs).is_ok());
        requests.push(MintRequest { signer: &signer, resource: (&uri).into(), expiry: *expiry });
    }
    let mut text = vec![0; requests.iter().map(MintRequest::token_len_max).sum()];
    let mut ends = vec![0; requests.len()];
    let tokens = bulk::mint(&requests, &mut text, &mut ends).unwrap();
    for (index, (secs, _)) in expiries.iter().enumerate() {
        assert_eq!(tokens.expose(index), Some(naive(key_bytes, plain, *secs).as_str()));
    }
});
