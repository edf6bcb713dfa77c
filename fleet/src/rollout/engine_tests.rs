//! What the end of a renewal means for a rollout.

use std::time::Duration;

use twinkey_contract::report::{Reason, Status};
use twinkey_contract::{Fingerprint, Identity, KeySlot};
use twinkey_sas::Key;
use uuid::Uuid;

use super::{SlotRequest, SlotResult, translate};
use crate::hub::KeyPair;
use crate::renew::device::{Ending, Stop, Trace, Undelivered};
use crate::renew::refusal::Refusal;
use crate::rollout::ledger::Prints;
use crate::rollout::spec::Source;

fn key(seed: u8) -> Key {
    Key::from_bytes(&[seed; 32]).unwrap()
}

fn print(seed: u8) -> Fingerprint {
    Fingerprint::of(&key(seed))
}

/// The secondary key was 2 when the slot was begun.
fn request(replaces: Option<u8>) -> SlotRequest {
    SlotRequest {
        identity: Identity::new("d1", None).unwrap(),
        slot: KeySlot::Secondary,
        replaces: replaces.map(print),
        deadline: Duration::from_secs(1),
        key_source: Source::Service,
        rollout: Uuid::nil(),
        is_forced: false,
        is_challenged: true,
        is_last: false,
        is_continued: false,
    }
}

/// A renewal after which the registry's secondary key is this one.
fn trace(secondary: u8) -> Trace {
    let keys = |secondary| Some(KeyPair { primary: key(1), secondary: key(secondary) });
    Trace { before: keys(2), after: keys(secondary), ..Trace::default() }
}

fn ended(ending: Ending, replaces: Option<u8>, secondary: u8) -> SlotResult {
    translate(&request(replaces), Ok(ending), &trace(secondary))
}

#[test]
fn a_slot_that_still_has_the_key_that_was_to_be_replaced_is_not_done() {
    for ending in [Ending::Renewed, Ending::Settled, Ending::Swapped] {
        let result = ended(ending, Some(2), 2);
        let SlotResult::Refused { code, may_retry, .. } = result else { panic!("{ending:?}: {result:?}") };
        assert_eq!((code, may_retry), ("slot-in-use", true));
    }
}

#[test]
fn a_slot_with_a_new_key_on_which_the_device_lives_is_done() {
    let prints = |secondary| Prints { primary: Some(print(1)), secondary: Some(print(secondary)) };
    for ending in [Ending::Renewed, Ending::Settled, Ending::Swapped] {
        for replaces in [None, Some(2)] {
            let done = SlotResult::Done { before: prints(2), after: prints(3), rotation: None };
            assert_eq!(ended(ending, replaces, 3), done);
        }
    }
}

#[test]
fn where_neither_the_former_key_nor_the_present_one_is_known_nothing_is_taken_for_unchanged() {
    let result = translate(&request(None), Ok(Ending::Settled), &Trace::default());
    assert!(matches!(result, SlotResult::Done { .. }), "{result:?}");
}

#[test]
fn a_key_that_was_only_handed_over_is_no_new_one() {
    for replaces in [None, Some(2)] {
        let result = ended(Ending::Delivered, replaces, 3);
        assert!(matches!(result, SlotResult::Refused { may_retry: true, .. }), "{result:?}");
    }
}

#[test]
fn an_end_without_a_proof_is_never_counted_as_done() {
    let stops = [
        Stop::Refused(Refusal::ProofMissing),
        Stop::Busy { by: "x".to_owned(), left: Duration::ZERO },
        Stop::Rejected { status: Status::Rejected, reason: Some(Reason::Refused) },
        Stop::Superseded { by: None },
        Stop::Unanswered { last: String::new() },
    ];
    for stop in stops {
        let text = format!("{stop:?}");
        let result = translate(&request(Some(2)), Err(stop), &trace(3));
        assert!(
            matches!(result, SlotResult::Refused { .. } | SlotResult::Failed { .. }),
            "{text}: {result:?}"
        );
    }
    let result = ended(Ending::Undelivered(Undelivered::NobodyTakesIt), Some(2), 3);
    assert!(matches!(result, SlotResult::Failed { may_retry: false, .. }), "{result:?}");
}

#[test]
fn what_time_alone_can_mend_is_tried_again_and_what_a_person_must_judge_is_not() {
    let may_retry = |refusal: Refusal| {
        let result = translate(&request(None), Err(Stop::Refused(refusal)), &trace(2));
        let SlotResult::Refused { may_retry, code, .. } = result else { panic!("{refusal:?}: {result:?}") };
        assert_eq!(code, refusal.code());
        may_retry
    };
    for refusal in [Refusal::NotConnected, Refusal::ActiveUnknown, Refusal::Duel, Refusal::ProofFails] {
        assert!(may_retry(refusal), "{refusal:?}");
    }
    for refusal in [Refusal::SealChanged, Refusal::ReportOld, Refusal::SealUnknown, Refusal::BothSlots] {
        assert!(!may_retry(refusal), "{refusal:?}");
    }
}

#[test]
fn another_operators_lease_is_waited_for_within_bounds() {
    for (left, expected) in [(0, 1), (5, 5), (3600, 20)] {
        let stop = Stop::Busy { by: "x".to_owned(), left: Duration::from_secs(left) };
        let result = translate(&request(None), Err(stop), &trace(2));
        let SlotResult::Failed { code, pause, may_retry: true, .. } = result else { panic!("{result:?}") };
        assert_eq!((code, pause), (super::BUSY, Duration::from_secs(expected)));
    }
}
