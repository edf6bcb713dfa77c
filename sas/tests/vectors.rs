//! Tokens made by the official SDKs: `tests/vectors/README.md` says how.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use serde::Deserialize;
use twinkey_sas::{
    Expiry, Key, KeySlot, ParsedToken, ResourceUri, Signer, Token, Verifier, VerifyError, hmac::HmacSha256,
};

#[derive(Deserialize)]
struct Vector {
    source: String,
    resource: String,
    key_base64: String,
    expiry: u64,
    policy: Option<String>,
    token: String,
    string_to_sign: String,
    sr_raw: String,
}

impl Vector {
    /// Below the typed key: some unit tests use keys that are short, unpadded or not canonical.
    fn hmac(&self) -> HmacSha256 {
        let lenient = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let key = GeneralPurpose::new(&alphabet::STANDARD, lenient).decode(&self.key_base64);
        HmacSha256::new(&key.unwrap())
    }

    /// Whether the SDK writes tokens as we do.
    fn is_in_our_style(&self) -> bool {
        let ours = [
            "azure-iot-device 2.14.0",
            "azure-sdk-for-c 1.6.0-beta.1 az_iot_hub_client_sas",
            "unit test (sig/se/sr",
        ];
        ours.iter().any(|source| self.source.starts_with(source))
    }
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("vectors/sas.json")).unwrap()
}

#[test]
fn tokens_are_byte_for_byte_those_of_the_sdks_in_our_style() {
    let ours: Vec<Vector> = vectors().into_iter().filter(Vector::is_in_our_style).collect();
    assert_eq!(ours.len(), 22);
    for vector in ours {
        let mut buffer = [0; Token::MAX_LEN];
        let token = Signer::from(vector.hmac())
            .sign_as(
                &ResourceUri::from_plain(&vector.resource).unwrap(),
                vector.policy.as_deref().unwrap_or_default(),
                Expiry::at(vector.expiry),
                &mut buffer,
            )
            .unwrap();
        assert_eq!(token.expose(), vector.token, "{}", vector.source);
    }
}

#[test]
fn tokens_of_every_sdk_verify() {
    let all = vectors();
    assert_eq!(all.len(), 77);
    for vector in all {
        let parsed = ParsedToken::parse(&vector.token).unwrap();
        assert_eq!(parsed.raw_resource, vector.sr_raw);
        assert_eq!(parsed.expiry, Expiry::at(vector.expiry));
        assert_eq!(format!("{}\n{}", parsed.raw_resource, vector.expiry), vector.string_to_sign);

        let other = HmacSha256::new(b"another key of some length");
        let verify = |primary: &HmacSha256, secondary: &HmacSha256, resource: &str, now| {
            Verifier::from_hmac(primary.clone(), Some(secondary.clone())).verify(&vector.token, resource, now)
        };
        let key = vector.hmac();
        let verified = verify(&key, &other, &vector.resource, vector.expiry).unwrap();
        assert_eq!((verified.slot, verified.expiry), (KeySlot::Primary, parsed.expiry), "{}", vector.source);
        let verified = verify(&other, &key, &vector.resource, vector.expiry + 300).unwrap();
        assert_eq!(verified.slot, KeySlot::Secondary);

        assert_eq!(verify(&other, &other, &vector.resource, 0), Err(VerifyError::Signature));
        assert_eq!(verify(&key, &other, &format!("{}x", vector.resource), 0), Err(VerifyError::Resource));
        let expired = verify(&key, &other, &vector.resource, vector.expiry + 301);
        assert!(matches!(expired, Err(VerifyError::Expired { .. })));
    }
}

#[test]
fn policy_tokens_of_every_sdk_cover_what_lies_below_their_resource() {
    let named: Vec<Vector> = vectors().into_iter().filter(|vector| vector.policy.is_some()).collect();
    assert!(named.len() >= 10, "{}", named.len());
    for vector in named {
        let verifier = Verifier::from_hmac(vector.hmac(), None);
        let verify =
            |policy, resource: &str| verifier.verify_as(&vector.token, policy, resource, vector.expiry);
        let policy = vector.policy.as_deref().unwrap();
        assert!(verify(policy, &vector.resource).is_ok(), "{}", vector.token);
        assert!(verify(policy, &format!("{}/below/it", vector.resource)).is_ok());
        assert_eq!(verify(policy, &format!("{}beside", vector.resource)), Err(VerifyError::Resource));
        assert_eq!(verify("another", &vector.resource), Err(VerifyError::Resource));
    }
}

#[test]
fn keys_that_a_hub_takes_are_read_and_others_are_not() {
    for vector in vectors() {
        let strict = STANDARD.decode(&vector.key_base64).is_ok_and(|bytes| (16..=64).contains(&bytes.len()));
        assert_eq!(Key::from_base64(&vector.key_base64).is_ok(), strict, "{}", vector.key_base64);
    }
}
