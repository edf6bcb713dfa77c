//! The scenarios of the design, one test each, on virtual time and with the default policy: what the gateway's
//! owner and the fleet's operator would see. Every step is also checked against the invariants.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

mod world;

use twinkey_rotation::{
    Attempt, Brought, Desired, Input, KeyName, KeySlot, Offer, Outcome, PerSlot, Policy, Purpose, Reason,
    Ring, RotationId, State, Status, Timer, Trouble, UnixSecs, step,
};
use world::healing::OnRefusal;
use world::timetable::{HOUR, MINUTE, SECOND, Timetable};
use world::{A, B, C, D, E, invalid, offer, two_keys};

const WINDOW: u64 = Policy::DEFAULT.propagation_window_ms;

/// Long enough for everything that the default policy puts off.
const LONG: u64 = 3 * HOUR;

/// A gateway that is connected with its primary key `A` and holds `B`.
fn gateway() -> Timetable {
    let table = Timetable::new(Policy::DEFAULT, two_keys(), A, B);
    assert_eq!(table.world.live, Some(A));
    table
}

fn held(table: &Timetable, slot: KeySlot) -> Option<KeyName> {
    table.world.confirmed.slots.of(slot).held.map(|held| held.key)
}

fn commits(table: &mut Timetable) -> bool {
    table.run_until(LONG, |table| table.is(Status::Committed))
}

#[test]
fn offered_key_is_accepted_and_the_connection_moves_over_without_a_gap() {
    let mut table = gateway();
    table.operate(A, C, offer(1, None, Some(C)));
    assert_eq!(table.status(), (Status::Committed, None));
    assert_eq!((table.world.live, table.now_ms), (Some(C), 0));
    assert_eq!(table.world.confirmed.active, KeySlot::Secondary);
    assert_eq!(held(&table, KeySlot::Primary), Some(A));
    assert!(!table.was_dark);
}

#[test]
fn offered_key_is_refused_at_first_and_accepted_inside_the_window() {
    let mut table = gateway();
    table.refuses_once = vec![C; 3];
    table.operate(A, C, offer(1, None, Some(C)));
    assert_eq!(table.status(), (Status::Trying, Some(Reason::Refused)));
    assert_eq!(table.world.live, Some(A));
    assert!(table.run_until(WINDOW, |table| table.is(Status::Committed)));
    assert_eq!(table.tried_since(1), [C, C, C]);
    assert!(!table.was_dark);
}

#[test]
fn offered_key_that_is_refused_over_the_whole_window_is_rejected_after_a_control() {
    let mut table = gateway();
    table.operate(A, B, offer(1, None, Some(C)));
    table.run(WINDOW - 1);
    assert!(table.is(Status::Trying), "no verdict inside the window");
    table.run(1);
    assert_eq!(table.status(), (Status::Rejected, Some(Reason::Refused)));
    assert_eq!(table.tried_since(WINDOW), [A, C], "a control, and then a last attempt");
    assert!(!table.was_dark);
    let rejected_at = table.now_ms;
    table.run(LONG);
    assert!(!table.tried_since(rejected_at + 1).contains(&C), "a rejected key is left alone");
}

#[test]
fn rejection_waits_for_a_control_that_the_hub_answers() {
    let mut table = gateway();
    table.operate(A, B, offer(1, None, Some(C)));
    table.run(WINDOW - 1);
    table.trouble = Some(Trouble::Unreachable);
    table.run(2 * HOUR);
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::Network)));
    table.trouble = None;
    assert!(table.run_until(LONG, |table| table.is(Status::Rejected)));
}

#[test]
fn refused_control_finds_another_key_at_once_while_the_connection_carries_on() {
    let mut table = gateway();
    table.operate(D, B, offer(1, None, Some(C)));
    table.run(WINDOW + SECOND);
    assert_eq!(table.world.live, Some(B));
    assert!(table.is(Status::Rejected), "that other key is control enough: {:?}", table.status());
    assert!(!table.was_dark);
}

#[test]
fn both_offered_keys_are_taken_over_one_after_the_other() {
    let mut table = gateway();
    // Both old keys are dead already; only the connection that stands is left.
    table.operate(C, D, offer(1, Some(C), Some(D)));
    assert_eq!(table.status(), (Status::Committed, None));
    assert_eq!((held(&table, KeySlot::Primary), held(&table, KeySlot::Secondary)), (Some(C), Some(D)));
    assert_eq!(table.tried_since(0), [A, D, C], "the key in use is replaced last");
    assert!(!table.was_dark);
}

#[test]
fn swapped_slots_are_relabelled_without_an_attempt() {
    let mut table = gateway();
    let tried_before = table.attempts.len();
    table.operate(B, A, offer(1, Some(B), Some(A)));
    assert_eq!(table.status(), (Status::Committed, None));
    assert_eq!(table.world.confirmed.active, KeySlot::Secondary);
    assert_eq!((held(&table, KeySlot::Primary), held(&table, KeySlot::Secondary)), (Some(B), Some(A)));
    assert_eq!((table.attempts.len(), table.world.live), (tried_before, Some(A)));
}

#[test]
fn active_slot_regenerated_behind_the_agent_makes_it_fall_back_to_the_other_key() {
    let mut table = gateway();
    table.operate(D, B, Desired::Nothing);
    table.run(SECOND);
    table.tell(Input::Lost);
    let lost_at = table.now_ms;
    assert!(table.run_until(2 * SECOND, |table| table.world.live == Some(B)));
    assert_eq!(table.tried_since(lost_at), [A, B]);
    table.operate(D, B, offer(1, Some(D), None));
    assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(D)));
}

#[test]
fn active_slot_regenerated_is_noticed_at_the_token_renewal_while_the_connection_carries_on() {
    let mut table = gateway();
    table.operate(D, B, Desired::Nothing);
    table.run(Policy::DEFAULT.renew_after_ms + SECOND);
    assert_eq!(table.world.live, Some(B));
    assert!(!table.was_dark);
}

#[test]
fn dead_keys_are_tried_for_ever_at_the_documented_pace_and_the_disk_rests() {
    let mut table = Timetable::new(Policy::DEFAULT, two_keys(), D, E);
    table.run(48 * HOUR);
    let bound = Policy::DEFAULT.attempts_per_hour_max(2);
    let busiest = table.attempts_in_busiest_hour();
    println!("dead keys: {busiest} attempts in the busiest hour, bound {bound}");
    assert!(busiest <= bound, "{busiest} attempts, bound {bound}");
    for hour in 0..48 {
        for key in [A, B] {
            let is_now = |(at, tried): &&(u64, KeyName)| at / HOUR == hour && *tried == key;
            assert!(table.attempts.iter().filter(is_now).count() >= 10, "{key} is given up in hour {hour}");
        }
    }
    assert_eq!(table.writes.len(), 0);
    // One of them comes back to life.
    table.hub.registry.secondary = Some(B);
    assert!(table.run_until(10 * MINUTE, |table| table.world.live == Some(B)));
}

#[test]
fn offered_key_that_is_held_is_proved_and_then_used() {
    let mut table = gateway();
    table.operate(A, B, offer(1, None, Some(B)));
    assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(B)));
}

#[test]
fn offered_key_that_is_in_use_is_committed_without_an_attempt() {
    let mut table = gateway();
    table.operate(A, B, offer(1, Some(A), None));
    assert_eq!(table.status(), (Status::Committed, None));
    assert_eq!(table.attempts.len(), 1);
}

#[test]
fn offered_key_that_is_held_and_refused_is_rejected() {
    let mut table = gateway();
    table.operate(A, D, offer(1, None, Some(B)));
    assert!(table.run_until(LONG, |table| table.is(Status::Rejected)), "{:?}", table.status());
    assert_eq!(table.world.live, Some(A));
}

#[test]
fn broken_document_is_reported_and_changes_nothing_else() {
    for reason in [
        Reason::Malformed,
        Reason::TwinTooLarge,
        Reason::Checksum,
        Reason::UnsealedForbidden,
        Reason::CannotUnseal,
    ] {
        let mut table = gateway();
        let ring = table.state().ring;
        let (attempts, writes) = (table.attempts.len(), table.writes.len());
        table.operate(A, B, invalid(1, reason));
        table.run(10 * MINUTE);
        assert_eq!(table.status(), (Status::Invalid, Some(reason)));
        assert_eq!(table.state().ring, ring);
        assert_eq!((table.attempts.len(), table.writes.len()), (attempts, writes));
        table.operate(A, C, offer(2, None, Some(C)));
        assert_eq!(table.status(), (Status::Committed, None));
    }
}

#[test]
fn power_cut_at_any_step_delays_a_rotation_and_nothing_more() {
    let (mut step, mut cuts) = (0, 0);
    let mut is_cut = true;
    while is_cut {
        is_cut = false;
        for image in 0..2 {
            let mut table = gateway();
            table.power_cut = Some((step, image));
            table.refuses_once = vec![C, C];
            table.operate(A, C, offer(1, None, Some(C)));
            table.run(LONG);
            is_cut |= table.power_cut.is_none();
            cuts += u32::from(table.power_cut.is_none());
            assert_eq!(table.status(), (Status::Committed, None), "cut before step {step}");
            assert_eq!(table.world.live, Some(C), "cut before step {step}");
        }
        step += 1;
    }
    println!("{cuts} power cuts");
    assert!(cuts > 20);
}

#[test]
fn disk_that_is_full_keeps_the_candidate_from_being_tried_and_says_so() {
    let mut table = gateway();
    table.does_disk_work = false;
    let writes = table.writes.len();
    table.operate(A, C, offer(1, None, Some(C)));
    table.run(48 * HOUR);
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::Storage)));
    assert_eq!(table.world.live, Some(A));
    assert!(!table.tried_since(0).contains(&C));
    let writes = table.writes.len() - writes;
    assert!(writes <= 48 * 13 + 8, "{writes} writes: no more than one in five minutes");
    table.does_disk_work = true;
    assert!(commits(&mut table));
}

#[test]
fn disk_that_turns_read_only_after_the_candidate_was_stored_delays_the_verdict_alone() {
    let mut table = gateway();
    table.refuses_once = vec![C];
    table.operate(A, C, offer(1, None, Some(C)));
    table.does_disk_work = false;
    table.run(HOUR);
    assert_eq!(table.world.live, Some(C), "the key is in use");
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::Storage)), "and nobody says committed");
    table.does_disk_work = true;
    assert!(commits(&mut table));
}

#[test]
fn wrong_clock_makes_the_hub_refuse_every_key_and_rejects_none() {
    for (refuses_all, trouble) in [(true, None), (false, Some(Trouble::Clock))] {
        let mut table = gateway();
        table.refuses_all = refuses_all;
        table.trouble = trouble;
        table.operate(A, C, offer(1, None, Some(C)));
        table.run(HOUR);
        table.tell(Input::Lost);
        let is_early = table.run_until(10 * 24 * HOUR, |table| table.is(Status::Rejected));
        assert!(!is_early, "rejected while every key was refused");
        assert!(table.is(Status::Waiting), "{:?}", table.status());
        table.refuses_all = false;
        table.trouble = None;
        assert!(commits(&mut table), "{:?}", table.status());
        assert_eq!(table.world.live, Some(C));
    }
}

#[test]
fn hub_that_restarts_in_the_middle_of_a_takeover_gets_another_one() {
    let mut table = gateway();
    table.refuses_once = vec![C];
    table.operate(A, C, offer(1, None, Some(C)));
    table.is_held_up = true;
    assert!(table.run_until(MINUTE, |table| table.world.trying == Some(C)));
    table.tell(Input::Lost);
    table.tell(Input::Attempted(Outcome::Unknown(Trouble::Unreachable)));
    table.is_held_up = false;
    table.trouble = Some(Trouble::Unreachable);
    table.run(5 * MINUTE);
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::Network)));
    table.trouble = None;
    assert!(commits(&mut table));
    assert_eq!(table.world.live, Some(C));
}

#[test]
fn patch_missed_while_offline_is_found_in_the_document_after_the_reconnect() {
    let mut table = gateway();
    table.trouble = Some(Trouble::Unreachable);
    table.tell(Input::Lost);
    table.operate(A, C, offer(1, None, Some(C)));
    table.run(HOUR);
    assert!(table.is(Status::Idle));
    table.trouble = None;
    assert!(commits(&mut table));
    assert_eq!(table.world.live, Some(C));
}

#[test]
fn restored_old_image_is_seen_by_its_sequence_and_catches_up() {
    let mut table = gateway();
    let old = table.world.confirmed;
    table.operate(A, C, offer(1, None, Some(C)));
    let newest = table.world.reported.map(|report| report.sequence);
    table.restore(old);
    assert_eq!(table.world.live, Some(C), "it takes the offer up again");
    assert!(table.is(Status::Committed));
    table.hub.document = Desired::Nothing;
    table.restore(old);
    table.run(MINUTE);
    assert_eq!(table.world.live, Some(A), "with the offer erased it lives on what it has");
    assert!(table.world.reported.map(|report| report.sequence) < newest);
}

#[test]
fn connections_that_are_lost_soon_after_each_accept_are_not_chased() {
    let mut table = gateway();
    table.stands_ms = Some(2 * SECOND);
    table.tell(Input::Lost);
    table.run(48 * HOUR);
    let bound = Policy::DEFAULT.attempts_per_hour_max(1);
    let busiest = table.attempts_in_busiest_hour();
    println!("lost soon: {busiest} attempts in the busiest hour, bound {bound}");
    assert!(busiest <= bound, "{busiest} attempts, bound {bound}");
    assert!(table.attempts.len() > 48 * 10, "it gives up");
    assert!(table.attempts.iter().all(|(_, key)| *key == A), "a lost connection speaks against no key");
}

#[test]
fn two_agents_with_one_identity_do_not_duel() {
    // Each connection of the one ends that of the other.
    let mut agents = [gateway(), gateway()];
    agents[0].tell(Input::Lost);
    for (agent, chance) in agents.iter_mut().zip([0, u16::MAX / 3]) {
        agent.chance = chance;
    }
    let when = |agent: &Timetable| agent.next().map_or(u64::MAX, |(at, _)| at);
    while agents.iter().all(|agent| agent.now_ms < 48 * HOUR) {
        let [first, second] = &mut agents;
        let (next, other) = if when(first) <= when(second) { (first, second) } else { (second, first) };
        let (at, acceptances) = (when(next), next.acceptances);
        next.run(at - next.now_ms);
        if next.acceptances > acceptances {
            other.run(at - other.now_ms);
            other.tell(Input::Lost);
        }
    }
    let bound = Policy::DEFAULT.attempts_per_hour_max(1);
    for agent in agents {
        let busiest = agent.attempts_in_busiest_hour();
        println!("two agents: {busiest} attempts in the busiest hour, bound {bound}");
        assert!(busiest <= bound, "{busiest} attempts, bound {bound}");
        assert!(agent.tried_since(24 * HOUR).len() > 24 * 5, "it gives up");
    }
}

#[test]
fn token_renewal_is_a_takeover_with_the_same_key() {
    let mut table = gateway();
    let writes = table.writes.len();
    table.run(24 * HOUR);
    let renewals = table.tried_since(1);
    assert!((30..=32).contains(&renewals.len()), "{} renewals a day", renewals.len());
    assert!(renewals.iter().all(|key| *key == A));
    assert!(!table.was_dark);
    assert_eq!(table.writes.len(), writes, "a renewal is no news for the disk");
}

#[test]
fn renewal_that_finds_no_hub_is_tried_again_while_the_connection_stands() {
    let mut table = gateway();
    table.trouble = Some(Trouble::Unanswered);
    table.run(Policy::DEFAULT.renew_after_ms + MINUTE);
    assert!(table.attempts.len() > 3);
    table.trouble = None;
    table.run(10 * MINUTE);
    assert!(!table.state().is_renewal_due);
    assert!(!table.was_dark);
}

#[test]
fn hub_that_gives_no_answer_to_one_key_is_asked_with_the_next() {
    let mut table = gateway();
    table.run(SECOND);
    table.trouble = Some(Trouble::Unanswered);
    table.tell(Input::Lost);
    let lost_at = table.now_ms;
    table.run(10 * MINUTE);
    let tried = table.tried_since(lost_at);
    let patience = usize::from(Policy::DEFAULT.unanswered_max);
    assert_eq!(tried[..patience], vec![A; patience][..]);
    assert_eq!(tried[patience], B);
}

#[test]
fn network_that_is_down_never_moves_on_to_another_key() {
    let mut table = gateway();
    table.trouble = Some(Trouble::Unreachable);
    table.tell(Input::Lost);
    table.run(24 * HOUR);
    assert!(table.tried_since(0).iter().all(|key| *key == A));
    assert!(table.attempts_in_busiest_hour() <= Policy::DEFAULT.attempts_per_hour_max(1));
}

#[test]
fn one_spurious_refusal_of_the_active_key_costs_a_fallback_and_no_more() {
    let mut table = gateway();
    table.refuses_once = vec![A];
    table.tell(Input::Lost);
    assert!(table.run_until(2 * SECOND, |table| table.world.live == Some(B)));
    assert_eq!(held(&table, KeySlot::Primary), Some(A), "the refused key is kept");
    table.hub.registry.secondary = Some(E);
    table.tell(Input::Lost);
    assert!(table.run_until(2 * SECOND, |table| table.world.live == Some(A)));
}

#[test]
fn rejected_candidate_has_another_trial_when_the_operator_says_so() {
    let mut table = gateway();
    table.operate(A, B, offer(1, None, Some(C)));
    table.run(WINDOW);
    assert!(table.is(Status::Rejected));
    table.hub.registry.secondary = Some(C);
    table.run(HOUR);
    assert!(table.is(Status::Rejected), "not by itself");
    table.tell(Input::Retry);
    assert!(table.run_until(SECOND, |table| table.is(Status::Committed)));
    assert_eq!(table.world.live, Some(C));
}

#[test]
fn rejected_candidate_is_a_last_resort_and_commits_when_it_is_accepted_late() {
    let mut table = gateway();
    table.operate(A, B, offer(1, None, Some(C)));
    table.run(WINDOW);
    assert!(table.is(Status::Rejected));
    // The operator's work arrives at last, and takes the active key along.
    table.hub.registry = world::slots(Some(D), Some(C));
    table.tell(Input::Lost);
    assert!(table.run_until(MINUTE, |table| table.world.live == Some(C)));
    assert!(table.run_until(SECOND, |table| table.is(Status::Committed)));
}

#[test]
fn candidate_that_a_newer_offer_passed_over_is_kept_as_a_last_resort() {
    let mut table = gateway();
    table.refuses_once = vec![C; 2];
    table.operate(A, C, offer(1, None, Some(C)));
    // The operator is in a hurry, and what it offers next is not what it put into the registry.
    table.operate(D, C, offer(2, Some(E), None));
    table.tell(Input::Lost);
    assert!(table.run_until(MINUTE, |table| table.world.live == Some(C)));
}

#[test]
fn connection_that_stands_for_an_hour_forgets_the_failures_before_it() {
    let mut table = gateway();
    table.trouble = Some(Trouble::Unreachable);
    table.tell(Input::Lost);
    table.run(24 * HOUR);
    table.trouble = None;
    assert!(table.run_until(10 * MINUTE, |table| table.world.live.is_some()));
    table.run(HOUR);
    table.tell(Input::Lost);
    assert!(table.run_until(SECOND, |table| table.world.live.is_some()), "it still waits for long");
}

#[test]
fn one_quiet_minute_does_not_make_up_for_a_day_of_failures() {
    let mut table = gateway();
    table.trouble = Some(Trouble::Unreachable);
    table.tell(Input::Lost);
    table.run(24 * HOUR);
    table.trouble = None;
    assert!(table.run_until(10 * MINUTE, |table| table.world.live.is_some()));
    table.run(Policy::DEFAULT.settled_after_ms);
    table.tell(Input::Lost);
    assert!(!table.run_until(MINUTE, |table| table.world.live.is_some()));
}

#[test]
fn same_rotation_with_another_key_is_another_offer() {
    let mut table = gateway();
    table.operate(A, C, offer(1, None, Some(C)));
    table.operate(A, D, offer(1, None, Some(D)));
    assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(D)));
}

#[test]
fn offer_for_the_slot_in_use_keeps_the_displaced_key_until_the_next_commit() {
    let mut table = gateway();
    table.operate(C, B, offer(1, Some(C), None));
    assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(C)));
    assert_eq!(held(&table, KeySlot::Primary), Some(C));
    assert_eq!(table.state().ring.retired.map(|retired| retired.key), Some(A));
}

#[test]
fn both_slots_of_which_the_hub_accepts_one_use_that_one_and_are_rejected() {
    let mut table = gateway();
    table.operate(A, D, offer(1, Some(C), Some(D)));
    assert_eq!(table.world.live, Some(D));
    assert!(table.run_until(LONG, |table| table.is(Status::Rejected)));
    assert_eq!((table.world.live, held(&table, KeySlot::Primary)), (Some(D), Some(A)));
}

#[test]
fn hub_that_drops_the_live_connection_at_every_refusal_is_survived_and_the_verdict_comes() {
    for on_refusal in [OnRefusal::RefusesThenDrops, OnRefusal::DropsThenRefuses] {
        let mut table = gateway();
        table.on_refusal = on_refusal;
        table.operate(A, B, offer(1, None, Some(C)));
        assert!(table.run_until(LONG, |table| table.is(Status::Rejected)), "{on_refusal:?}");
        table.run(MINUTE);
        assert_eq!(table.world.live, Some(A));
        let bound = 2 * Policy::DEFAULT.attempts_per_hour_max(1);
        let busiest = table.attempts_in_busiest_hour();
        println!("{on_refusal:?}: {busiest} attempts in the busiest hour, bound {bound}");
        assert!(busiest <= bound, "{busiest} attempts, bound {bound}");

        table.refuses_once = vec![E, E];
        table.operate(A, E, offer(2, None, Some(E)));
        assert!(commits(&mut table), "{on_refusal:?}");
        assert_eq!(table.world.live, Some(E));
    }
}

#[test]
fn same_document_again_costs_nothing() {
    let mut table = gateway();
    table.operate(A, C, offer(1, None, Some(C)));
    let (attempts, writes, state) = (table.attempts.len(), table.writes.len(), *table.state());
    for _ in 0..100 {
        table.operate(A, C, offer(1, None, Some(C)));
    }
    assert_eq!((table.attempts.len(), table.writes.len(), *table.state()), (attempts, writes, state));
}

#[test]
fn device_with_one_key_learns_a_second() {
    let ring = Ring::provisioned(KeySlot::Primary, A, None);
    let mut table = Timetable::new(Policy::DEFAULT, ring, A, C);
    table.operate(A, C, offer(1, None, Some(C)));
    assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(C)));
    assert_eq!(held(&table, KeySlot::Primary), Some(A));
}

#[test]
fn jitter_spreads_a_fleet_that_lost_its_hub_at_once() {
    let first_attempts: Vec<u64> = [0, u16::MAX / 2, u16::MAX]
        .into_iter()
        .map(|chance| {
            let mut table = gateway();
            table.chance = chance;
            table.tell(Input::Lost);
            let attempts = table.attempts.len();
            table.run(2 * SECOND);
            table.attempts[attempts].0
        })
        .collect();
    assert_eq!(first_attempts, [0, 499, 1_000]);
}

#[test]
fn ring_that_a_power_cut_may_still_undo_is_written_again_before_its_new_key_is_tried() {
    let predecessor = two_keys();
    // The candidate was written, and nobody knows whether it will stay.
    let (taken_up, effects) = step(
        &Policy::DEFAULT,
        State::new(predecessor),
        Input::Desired(Desired::Offer(Offer {
            rotation: RotationId(1),
            keys: PerSlot { primary: None, secondary: Some(C) },
        })),
        0,
    );
    let found = effects.store.expect("the offer is stored");
    assert!(taken_up.ring.contains(C));
    let state = State::unsettled(found, Some(predecessor));
    let (mut state, effects) = step(&Policy::DEFAULT, state, Input::Boot, 0);
    assert!(effects.store.is_some_and(|ring| ring.contains(C) && ring.sequence > found.sequence));
    assert_eq!(effects.connect, Some(A));
    assert!(!state.is_surely_stored(C));
    // Dark, with a disk that does not take it: every key is tried but that one.
    let mut tried = Vec::new();
    for input in [Input::Stored(false), Input::Attempted(Outcome::Refused), Input::Fired(Timer::Retry)] {
        let (next, effects) = step(&Policy::DEFAULT, state, input, 0);
        tried.extend(effects.connect);
        state = next;
    }
    assert_eq!(tried, [B]);
    let (state, _) = step(&Policy::DEFAULT, state, Input::Fired(Timer::Store), 0);
    let (state, _) = step(&Policy::DEFAULT, state, Input::Stored(true), 0);
    assert!(state.is_surely_stored(C));
    // With nothing before it, there is nothing else to hold on to.
    let (_, effects) = step(&Policy::DEFAULT, State::unsettled(predecessor, None), Input::Boot, 0);
    assert_eq!(effects.connect, Some(A));
}

#[test]
fn key_that_a_person_brought_survives_every_document_and_is_used_when_it_is_needed() {
    let mut table = gateway();
    table.tell(Input::Brought(Brought { slot: KeySlot::Primary, key: C }));
    assert_eq!(table.world.live, Some(A));
    // Documents with held keys, and with dead ones for both slots, come and stand.
    table.operate(A, B, offer(1, Some(A), None));
    table.operate(A, B, offer(2, Some(D), Some(E)));
    table.run(LONG);
    assert!(table.world.confirmed.brought.is_some_and(|brought| brought.key == C));
    // The old keys end: what was brought is what works.
    table.operate(C, B, offer(2, Some(D), Some(E)));
    table.refuses_once = vec![B; 100];
    table.tell(Input::Lost);
    assert!(table.run_until(LONG, |table| table.world.live == Some(C)));
    assert_eq!(held(&table, KeySlot::Primary), Some(C));
    assert_eq!(table.world.confirmed.brought, None);
}

#[test]
fn key_that_a_person_brings_in_the_middle_of_an_attempt_is_stored_at_once() {
    let mut table = gateway();
    table.refuses_all = true;
    table.is_held_up = true;
    table.tell(Input::Lost);
    table.run(MINUTE);
    assert!(table.state().attempt.is_some());
    table.tell(Input::Brought(Brought { slot: KeySlot::Secondary, key: C }));
    // A document that comes meanwhile does not take its place.
    table.tell(Input::Desired(offer(1, None, Some(B))));
    assert!(table.state().ring.contains(C));
    table.is_held_up = false;
    table.tell(Input::Attempted(Outcome::Refused));
    table.run(MINUTE);
    assert!(table.world.confirmed.contains(C));
    assert!(table.tried_since(0).contains(&C));
}

#[test]
fn second_key_that_a_person_brings_waits_while_the_first_is_tried() {
    let first = Brought { slot: KeySlot::Primary, key: C };
    let second = Brought { slot: KeySlot::Primary, key: D };
    let ring = Ring { brought: Some(first), ..two_keys() };
    for (outcome, kept) in [(Outcome::Refused, false), (Outcome::Accepted { at: UnixSecs(1) }, true)] {
        let trying =
            State { attempt: Some(Attempt { key: C, purpose: Purpose::Connect }), ..State::new(ring) };
        let (waiting, _) = step(&Policy::DEFAULT, trying, Input::Brought(second), 0);
        assert!(waiting.ring.contains(C) && !waiting.ring.contains(D));
        let (done, _) = step(&Policy::DEFAULT, waiting, Input::Attempted(outcome), 0);
        assert_eq!((done.ring.contains(C), done.ring.contains(D)), (kept, true));
    }
}

#[test]
fn candidate_stays_a_last_resort_when_a_newer_document_names_the_key_in_use() {
    let mut table = gateway();
    table.operate(A, B, offer(1, Some(C), None));
    table.run(LONG);
    assert!(table.is(Status::Rejected));
    table.operate(A, B, offer(2, Some(A), None));
    assert!(table.is(Status::Committed));
    table.operate(C, D, offer(2, Some(A), None));
    table.tell(Input::Lost);
    assert!(table.run_until(LONG, |table| table.world.live == Some(C)));
}

#[test]
fn dead_keys_in_every_place_are_tried_at_the_documented_pace() {
    let mut table = gateway();
    // Held, held, offered, offered, brought; the retired place is filled by the commit.
    table.operate(A, C, offer(1, None, Some(C)));
    table.operate(A, C, offer(2, Some(D), Some(E)));
    table.tell(Input::Brought(Brought { slot: KeySlot::Primary, key: KeyName([6; 16]) }));
    table.run(SECOND);
    let keys = table.state().ring.keys_in_order().into_iter().flatten().count() as u64;
    assert_eq!(keys, 6);
    table.refuses_all = true;
    table.tell(Input::Lost);
    table.run(48 * HOUR);
    let (busiest, bound) = (table.attempts_in_busiest_hour(), Policy::DEFAULT.attempts_per_hour_max(keys));
    println!("{busiest} attempts in the busiest hour, {bound} allowed");
    assert!(busiest <= bound, "{busiest} attempts in an hour, {bound} allowed");
    assert_eq!(bound, 204);
}

/// A key that no hub knows.
fn false_key(number: u64) -> KeyName {
    let mut name = [0x0f; 16];
    name[8..].copy_from_slice(&number.to_be_bytes());
    KeyName(name)
}

/// Somebody who may write the twin offers a new false key every few seconds, for hours, each under a rotation of its own.
fn flood(table: &mut Timetable, ms: u64) {
    let end_ms = table.now_ms + ms;
    let mut number = 0;
    while table.now_ms < end_ms {
        number += 1;
        let keys =
            if number % 2 == 0 { (Some(false_key(number)), None) } else { (None, Some(false_key(number))) };
        table.operate(A, B, offer(u128::from(number), keys.0, keys.1));
        table.run(3 * SECOND);
    }
}

#[test]
fn false_offers_cost_a_bounded_number_of_attempts_and_writes_however_many_there_are() {
    let mut table = gateway();
    flood(&mut table, 3 * HOUR);
    let policy = Policy::DEFAULT;
    for number in [1_000_001, 1_000_002] {
        table.operate(A, B, offer(number, Some(E), None));
    }
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::TooManyOffers)));
    assert_eq!(policy.offers_per_hour_max(), 14);
    assert!(table.writes_in_busiest_hour() <= 2 * policy.offers_per_hour_max());
    let trials = table.attempts.iter().filter(|(_, key)| ![A, B].contains(key)).count();
    assert!(trials >= 14, "the flood must get through: {trials}");
    assert!(table.attempts_in_busiest_hour() <= policy.trials_per_hour_max());
    println!(
        "busiest hour: {} attempts (at most {}), {} writes",
        table.attempts_in_busiest_hour(),
        policy.trials_per_hour_max(),
        table.writes_in_busiest_hour()
    );
    assert!(!table.was_dark);

    // When it ends, the operator's offer is taken up as soon as the budget allows one.
    table.operate(A, C, offer(u128::MAX, None, Some(C)));
    assert!(table.run_until(policy.offer_interval_ms, |table| table.is(Status::Committed)));
    assert_eq!(table.world.live, Some(C));
}

#[test]
fn restart_does_not_make_room_for_more_offers() {
    let mut table = gateway();
    flood(&mut table, MINUTE);
    let taken_up = table.world.confirmed.rotation;
    for _ in 0..10 {
        table.restore(table.world.confirmed);
        table.hub.document = offer(1_000, Some(E), None);
        table.run(MINUTE / 2);
        assert_eq!(table.world.confirmed.rotation, taken_up);
        assert_eq!(table.status(), (Status::Waiting, Some(Reason::TooManyOffers)));
    }
}

#[test]
fn offers_whose_key_the_hub_accepts_do_not_count() {
    let mut table = gateway();
    let mut keys = (A, B);
    for number in 0..100 {
        let new = false_key(number);
        let document = if number % 2 == 0 {
            keys.1 = new;
            offer(u128::from(number), None, Some(new))
        } else {
            keys.0 = new;
            offer(u128::from(number), Some(new), None)
        };
        table.operate(keys.0, keys.1, document);
        assert_eq!((table.status(), table.world.live), ((Status::Committed, None), Some(new)));
        assert_eq!(table.state().ring.offers_spent, 0);
    }
    assert_eq!(table.now_ms, 0);
}

#[test]
fn offers_of_keys_that_are_held_count_although_they_are_committed() {
    let mut table = gateway();
    let before = table.writes.len();
    for number in 0..100 {
        let (primary, secondary) = if number % 2 == 0 { (B, A) } else { (A, B) };
        table.operate(A, B, offer(number, Some(primary), Some(secondary)));
    }
    assert_eq!(table.status(), (Status::Waiting, Some(Reason::TooManyOffers)));
    assert_eq!(table.writes.len() - before, 8);
}

#[test]
fn withdrawn_offer_does_not_wait_any_more() {
    let mut table = gateway();
    flood(&mut table, MINUTE);
    table.operate(A, B, Desired::Nothing);
    assert_ne!(table.status().1, Some(Reason::TooManyOffers));
    table.run(LONG);
    assert!(!table.state().ring.contains(false_key(20)));
}

/// A gateway whose every attempt ends the connection that stands.
fn gateway_with_one_connection() -> Timetable {
    Timetable::new(Policy { is_single_connection: true, ..Policy::DEFAULT }, two_keys(), A, B)
}

#[test]
fn on_a_single_connection_a_candidate_waits_until_the_token_is_renewed() {
    let mut table = gateway_with_one_connection();
    table.operate(A, C, offer(1, None, Some(C)));
    table.run(Policy::DEFAULT.renew_after_ms - MINUTE * 4);
    assert_eq!((table.world.live, table.attempts.len()), (Some(A), 1));
    assert!(table.is(Status::Trying) && !table.was_dark);
    assert!(table.run_until(MINUTE * 5, |table| table.is(Status::Committed)));
    assert_eq!((table.world.live, table.breaks.len()), (Some(C), 1));
}

#[test]
fn on_a_single_connection_false_offers_break_it_at_renewals_and_once_more_each() {
    let mut table = gateway_with_one_connection();
    table.operate(A, B, offer(1, None, Some(D)));
    assert!(table.run_until(24 * HOUR, |table| table.is(Status::Rejected)));
    let renewals = table.now_ms / (Policy::DEFAULT.renew_after_ms * 15 / 16) + 1;
    assert!(table.breaks.len() as u64 <= renewals + 1, "{:?}", table.breaks);
    assert!(table.run_until(MINUTE, |table| table.world.live == Some(A)));

    let mut table = gateway_with_one_connection();
    flood(&mut table, 3 * HOUR);
    let renewals = 3 * HOUR / (Policy::DEFAULT.renew_after_ms * 15 / 16) + 1;
    assert!(table.breaks.len() as u64 <= 2 * renewals, "{:?}", table.breaks);
}

#[test]
fn retries_that_anybody_asks_for_cost_no_more_attempts_than_offers_do() {
    let mut table =
        Timetable::new(Policy { propagation_window_ms: SECOND, ..Policy::DEFAULT }, two_keys(), A, B);
    table.operate(A, B, offer(1, None, Some(D)));
    for _ in 0..3 * HOUR / (10 * SECOND) {
        table.run(10 * SECOND);
        table.tell(Input::Retry);
    }
    assert!(table.attempts_in_busiest_hour() <= Policy::DEFAULT.trials_per_hour_max());
    assert!(table.writes_in_busiest_hour() <= 2 * Policy::DEFAULT.offers_per_hour_max());
    let trials = table.attempts.iter().filter(|(_, key)| *key == D).count();
    assert!(trials > 14, "it is tried again, too: {trials}");
}
