//! Reads the memory of secrets after they were dropped.
#![allow(unsafe_code, reason = "memory behind a dropped value can't be read otherwise")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::mem::MaybeUninit;

use twinkey_sas::{
    Expiry, Key, Renewal, ResourceRef, ResourceUri, Signer, Token, Verifier,
    bulk::{self, MintRequest},
    hmac::HmacSha256,
};

/// The bytes of the value's memory before and after it is dropped there.
fn before_and_after_drop<T>(value: T) -> [Vec<u8>; 2] {
    let mut place = Box::new(MaybeUninit::new(value));
    let read = |place: &MaybeUninit<T>| {
        let start = place.as_ptr().cast::<u8>();
        // SAFETY: inside the box; padding may be read as it happens to be.
        (0..size_of::<T>()).map(|i| unsafe { start.add(i).read_volatile() }).collect()
    };
    let before = read(&place);
    // SAFETY: the value is there, and nobody uses it afterwards.
    unsafe { place.assume_init_drop() };
    [before, read(&place)]
}

/// Whether any eight bytes in a row of the secret are there.
fn shows(memory: &[u8], secret: &[u8]) -> bool {
    secret.windows(8).any(|part| memory.windows(8).any(|window| window == part))
}

fn assert_wiped<T>(what: &str, value: T, secrets: &[&[u8]]) {
    let [before, after] = before_and_after_drop(value);
    for secret in secrets {
        assert!(shows(&before, secret), "{what} doesn't hold what it should");
        assert!(!shows(&after, secret), "{what} leaves its secret behind");
    }
}

fn key(start: u8) -> Key {
    let bytes: Vec<u8> = (start..start + 64).collect();
    Key::from_bytes(&bytes).unwrap()
}

/// Inner and outer state: all that a prepared key is.
fn states(key: &Key) -> Vec<u8> {
    let [before, _] = before_and_after_drop(HmacSha256::new(key.expose()));
    assert_eq!(before.len(), 64);
    before
}

#[test]
fn dropped_keys_leave_nothing_in_their_memory() {
    let (a, b) = (key(1), key(100));
    assert_wiped("key", a.clone(), &[a.expose()]);
    assert_wiped(
        "key read from base64",
        Key::from_base64(a.expose_base64(&mut [0; 88])).unwrap(),
        &[a.expose()],
    );
    assert_wiped("derived key", a.derive("id"), &[a.derive("id").expose()]);
    assert_wiped("prepared key", HmacSha256::new(a.expose()), &[&states(&a)]);
    assert_wiped("signer", Signer::new(&a), &[&states(&a)]);
    assert_wiped("verifier", Verifier::new(&a, Some(&b)), &[&states(&a), &states(&b)]);
    let (short, long) = (ResourceUri::hub("h").unwrap(), ResourceUri::hub(&"h".repeat(100)).unwrap());
    assert_wiped("renewal", Renewal::new(&Signer::new(&a), &short), &[&states(&a)]);
    // Its inner state has absorbed a block of the resource.
    let outer = states(&a).split_off(32);
    assert_wiped("renewal with a midstate", Renewal::new(&Signer::new(&a), &long), &[&outer]);
}

#[test]
fn dropped_tokens_leave_nothing_in_the_buffer() {
    let signer = Signer::new(&key(1));
    let resource = ResourceUri::device("h.net", "d").unwrap();
    for policy in ["", "p"] {
        let mut buffer = [0; Token::MAX_LEN];
        drop(signer.sign_as(&resource, policy, Expiry::at(9), &mut buffer).unwrap());
        assert_eq!(buffer, [0; Token::MAX_LEN]);
    }
    let mut buffer = [0; Token::MAX_LEN];
    drop(Renewal::new(&signer, &resource).sign(Expiry::at(9), &mut buffer).unwrap());
    assert_eq!(buffer, [0; Token::MAX_LEN]);
}

#[test]
fn dropped_bulk_tokens_and_failed_ones_leave_nothing_in_the_buffer() {
    let signer = Signer::new(&key(1));
    let resource = ResourceUri::device("h.net", "d").unwrap();
    for count in [1, 3, 4, 16, 17, 32, 33, 100] {
        let request =
            MintRequest { signer: &signer, resource: ResourceRef::from(&resource), expiry: Expiry::at(9) };
        let requests = vec![request; count];
        let mut text = vec![0; request.token_len_max() * count];
        let mut ends = vec![0; count];
        let tokens = bulk::mint(&requests, &mut text, &mut ends).unwrap();
        assert!(tokens.expose(count - 1).unwrap().ends_with("&se=9"));
        drop(tokens);
        assert!(text.iter().all(|&byte| byte == 0), "{count}");
        let room = text.len() - 1;
        assert!(bulk::mint(&requests, &mut text[..room], &mut ends).is_err());
        assert!(text.iter().all(|&byte| byte == 0), "{count}");
    }
}

#[test]
fn bulk_overwrites_the_whole_of_the_keys_that_were_there() {
    let mut keys = vec![key(1); 40];
    let ids: Vec<String> = (0..40).map(|i| format!("device {i}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    bulk::derive(&key(2), &ids, &mut keys).unwrap();
    for derived in keys {
        let [before, _] = before_and_after_drop(derived);
        assert!(!shows(&before, key(1).expose()));
    }
}
