//! What holds for every key, id and text.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use twinkey_sas::{Expiry, Key, KeySlot, ParsedToken, ResourceUri, Signer, Token, Verified, Verifier};

fn key() -> impl Strategy<Value = Key> {
    proptest::collection::vec(any::<u8>(), 16..=64).prop_map(|bytes| Key::from_bytes(&bytes).unwrap())
}

/// Every character that the registry takes in an id.
const ID: &str = "[a-zA-Z0-9._%#*?!(),:=@$'+-]{1,128}";

fn token(key: &Key, resource: &ResourceUri, policy: &str, expiry: u64) -> String {
    let mut buffer = [0; Token::MAX_LEN];
    let token = Signer::new(key).sign_as(resource, policy, Expiry::at(expiry), &mut buffer).unwrap();
    String::from(token.expose())
}

proptest! {
    #[test]
    fn token_for_any_id_parses_and_verifies(
        (primary, secondary) in (key(), key()), sign_with_secondary in any::<bool>(),
        host in "[a-z0-9.-]{1,40}(:[0-9]{1,5})?", device in ID, module in proptest::option::of(ID), expiry in any::<u64>(),
    ) {
        prop_assume!(primary != secondary);
        let (resource, plain) = match &module {
            Some(module) => (ResourceUri::module(&host, &device, module), format!("{host}/devices/{device}/modules/{module}")),
            None => (ResourceUri::device(&host, &device), format!("{host}/devices/{device}")),
        };
        let resource = resource.unwrap();
        prop_assert_eq!(&ResourceUri::from_plain(&plain), &Ok(resource.clone()));
        let signing = if sign_with_secondary { &secondary } else { &primary };
        let token = token(signing, &resource, "", expiry);

        let parsed = ParsedToken::parse(&token).unwrap();
        prop_assert_eq!(parsed.raw_resource, resource.as_str());
        prop_assert_eq!((parsed.policy, parsed.expiry), (None, Expiry::at(expiry)));

        let slot = if sign_with_secondary { KeySlot::Secondary } else { KeySlot::Primary };
        let verifier = Verifier::new(&primary, Some(&secondary));
        prop_assert_eq!(verifier.verify(&token, &plain, expiry), Ok(Verified { slot, expiry: Expiry::at(expiry) }));
        let longer = format!("{plain}x");
        prop_assert!(verifier.verify(&token, &longer, expiry).is_err());
    }

    #[test]
    fn policy_of_any_name_verifies_as_itself_alone(key in key(), policy in "\\PC{1,16}", other in "\\PC{1,16}") {
        prop_assume!(policy != other);
        let token = token(&key, &ResourceUri::hub("h").unwrap(), &policy, 9);
        let verifier = Verifier::new(&key, None);
        prop_assert!(verifier.verify_as(&token, &policy, "h/devices/d", 9).is_ok());
        // As it stands in the token is the one other way to say it.
        if ParsedToken::parse(&token).unwrap().policy != Some(other.as_str()) {
            prop_assert!(verifier.verify_as(&token, &other, "h/devices/d", 9).is_err());
        }
    }

    #[test]
    fn changed_character_never_verifies(key in key(), device in ID, at in any::<prop::sample::Index>(), to in b'!'..=b'~') {
        let plain = format!("h.net/devices/{device}");
        let token = token(&key, &ResourceUri::from_plain(&plain).unwrap(), "", 1_700_000_000);
        let at = at.index(token.len());
        let mut changed = token.clone().into_bytes();
        // Names of fields and escapes of the signature may be written in either case.
        prop_assume!(!changed[at].eq_ignore_ascii_case(&to));
        changed[at] = to;
        let changed = String::from_utf8(changed).unwrap();
        prop_assert!(Verifier::new(&key, None).verify(&changed, &plain, 0).is_err(), "{changed}");
    }

    #[test]
    fn case_of_the_signed_resource_matters(key in key(), device in "[A-Z]{1,20}") {
        let plain = format!("h.net/devices/{device}");
        let token = token(&key, &ResourceUri::from_plain(&plain).unwrap(), "", 9);
        let changed = token.replace(&device, &device.to_lowercase());
        prop_assert!(Verifier::new(&key, None).verify(&changed, &plain, 0).is_err());
    }

    #[test]
    fn any_text_is_parsed_and_verified_without_a_panic(
        text in "\\PC{0,80}|SharedAccessSignature ((sr|sig|se|skn|SE|x)?=?[%a-zA-Z0-9+/=]{0,50}&?){0,6}",
        resource in "\\PC{0,20}", now in any::<u64>(),
    ) {
        let _ = ParsedToken::parse(&text);
        let verifier = Verifier::new(&Key::from_bytes(&[1; 32]).unwrap(), None);
        prop_assert!(verifier.verify(&text, &resource, now).is_err());
        prop_assert!(verifier.verify_as(&text, "p", &resource, now).is_err());
    }

    #[test]
    fn any_text_as_a_key_is_read_or_refused_without_a_panic(text in "\\PC{0,100}|[A-Za-z0-9+/]{20,90}={0,3}") {
        if let Ok(key) = Key::from_base64(&text) {
            let mut base64 = [0; 88];
            prop_assert_eq!(key.expose_base64(&mut base64), text);
        }
    }

    #[test]
    fn keys_are_equal_when_their_bytes_are(a in key(), b in key()) {
        prop_assert_eq!(a == b, a.expose() == b.expose());
        prop_assert_eq!(Key::from_bytes(a.expose()), Ok(a));
    }
}
