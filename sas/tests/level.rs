//! The official SDKs' tokens on every level of instructions. One test on purpose: the level is the whole process'.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use twinkey_sas::{
    Expiry, ResourceUri, Signer, Token, Verified, Verifier, VerifyError,
    bulk::{self, VerifyRequest},
    hmac::HmacSha256,
    simd::{Level, level, limit_to},
};

#[test]
fn tokens_of_every_sdk_verify_on_every_level_alone_and_in_bulk() {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let base64 = GeneralPurpose::new(&alphabet::STANDARD, lenient);
    let vectors: serde_json::Value = serde_json::from_str(include_str!("vectors/sas.json")).unwrap();
    let text = |vector: &serde_json::Value, name: &str| vector[name].as_str().unwrap_or_default().to_owned();
    // Whoever runs this on several processors says which level the best one is.
    if let Ok(best) = std::env::var("TWINKEY_SAS_LEVEL") {
        assert_eq!(format!("{:?}", limit_to(Level::Avx512)), best);
    }
    for highest in [Level::Portable, Level::Avx2, Level::Sha, Level::Avx512] {
        assert_eq!(limit_to(highest), level());
        assert!(level() <= highest);
        let cases: Vec<(HmacSha256, String, String, u64)> = vectors
            .as_array()
            .unwrap()
            .iter()
            .map(|vector| {
                let key = HmacSha256::new(&base64.decode(text(vector, "key_base64")).unwrap());
                (key, text(vector, "token"), text(vector, "resource"), vector["expiry"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(cases.len(), 77);
        let verifiers: Vec<Verifier> =
            cases.iter().map(|case| Verifier::from_hmac(case.0.clone(), None)).collect();
        let requests: Vec<VerifyRequest<'_>> = cases
            .iter()
            .zip(&verifiers)
            .map(|((_, token, plain_resource, _), verifier)| VerifyRequest {
                verifier,
                token,
                plain_resource,
            })
            .collect();
        let mut verdicts: Vec<Result<Verified, VerifyError>> = vec![Err(VerifyError::Signature); cases.len()];
        bulk::verify(&requests, 0, &mut verdicts).unwrap();
        for ((key, token, resource, expiry), verdict) in cases.iter().zip(verdicts) {
            assert_eq!(verdict.unwrap().expiry, Expiry::at(*expiry), "{token}");
            let verifier = Verifier::from_hmac(key.clone(), None);
            assert_eq!(verifier.verify(token, resource, 0), verdict);
            // Signed again, a token is the SDK's own or one that differs in the encoding of the resource alone.
            let mut buffer = [0; Token::MAX_LEN];
            let ours = ResourceUri::from_plain(resource).unwrap();
            let ours = Signer::from(key.clone()).sign(&ours, Expiry::at(*expiry), &mut buffer).unwrap();
            assert_eq!(verifier.verify(ours.expose(), resource, 0), verdict);
        }
    }
}
