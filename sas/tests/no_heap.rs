//! Proof that nothing here touches the heap: an allocator that counts.
#![allow(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait; this one counts and passes on")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use twinkey_sas::{
    Expiry, Key, ParsedToken, Renewal, ResourceRef, ResourceUri, Signer, Token, Verifier,
    bulk::{self, MintRequest, VerifyRequest},
    identifiable,
};

/// Counts per thread, so that the test harness' own threads don't disturb.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(1))), 1);
}

#[test]
fn keys_tokens_and_their_verification_use_no_heap() {
    let used = allocations(|| {
        let group = Key::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        let key = group.derive("a device");
        let marked = identifiable::stamp(&[7; 32], identifiable::Purpose::Device);
        assert!(matches!(identifiable::inspect(&marked), identifiable::Mark::Valid(_)));
        assert!(Key::from_base64(key.expose_base64(&mut [0; 88])).as_ref() == Ok(&key));

        let resource = ResourceUri::module("h.azure-devices.net", "d:1", "m").unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        let token = Signer::new(&key).sign_as(&resource, "policy", Expiry::at(9), &mut buffer).unwrap();
        assert!(ParsedToken::parse(token.expose()).is_ok());
        let verifier = Verifier::new(&marked, Some(&key));
        assert!(verifier.verify(token.expose(), "h.azure-devices.net/devices/d:1/modules/m", 9).is_ok());
        assert!(
            verifier
                .verify_as(token.expose(), "policy", "h.azure-devices.net/devices/d:1/modules/m/x", 9)
                .is_ok()
        );

        assert!(Key::from_base64("?").is_err());
        assert!(Signer::new(&key).sign(&resource, Expiry::at(9), &mut [0; 10]).is_err());
        assert!(verifier.verify("", "h", 9).is_err());
    });
    assert_eq!(used, 0);
}

#[test]
fn renewal_and_bulk_use_no_heap() {
    let key = Key::from_bytes(&[1; 32]).unwrap();
    let used = allocations(|| {
        let (signer, verifier) = (Signer::new(&key), Verifier::new(&key, None));
        let resource = ResourceUri::device("h", "d").unwrap();
        let mut buffer = [0; Token::MAX_LEN];
        assert!(Renewal::new(&signer, &resource).sign(Expiry::at(9), &mut buffer).is_ok());

        let request =
            MintRequest { signer: &signer, resource: ResourceRef::from(&resource), expiry: Expiry::at(9) };
        let (mut text, mut ends) = ([0; 40 * 256], [0; 40]);
        let tokens = bulk::mint(&[request; 40], &mut text, &mut ends).unwrap();
        let token = tokens.expose(39).unwrap();
        let request = VerifyRequest { verifier: &verifier, token, plain_resource: "h/devices/d" };
        let mut verdicts = [Err(twinkey_sas::VerifyError::Signature); 40];
        assert!(bulk::verify(&[request; 40], 9, &mut verdicts).is_ok() && verdicts.iter().all(Result::is_ok));
    });
    assert_eq!(used, 0);
}
