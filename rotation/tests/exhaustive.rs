//! Complete searches of small worlds: every reachable state, with a power cut in each, and with every result that
//! disk and hub may give. After every step the invariants I1 to I6; from every state the way to rest (I7).
//!
//! The hub may refuse any key at any time (propagation, spurious refusals, a wrong clock), accept a key that it
//! no longer should (propagation again), or say nothing; it never accepts a key that it was never given.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

mod world;

use std::collections::{HashSet, VecDeque};

use twinkey_rotation::{
    Candidate, Desired, Held, Input, KeyName, KeySlot, Outcome, PerSlot, Place, Reason, Retired, Ring,
    Standing, Timer, Trouble,
};
use world::healing::{Known, OnRefusal, heal};
use world::{A, ACCEPTED, Act, B, C, D, Event, FLAT, REFUSED, World, invalid, offer, slots, two_keys};

/// The most failed writes that may be on disk beside the last good one. More of them only add work: what is on
/// disk for sure shrinks with the first.
const POSSIBLE_MAX: usize = 1;

/// A world that grows past this is not small: split it.
const STATES_MAX: usize = 400_000;

/// A small world: what it starts from, what its operator does, and what else may happen in it.
struct Story {
    name: &'static str,
    ring: Ring,
    /// The operator's acts, in order; the first one stands at the start.
    acts: Vec<Act>,
    /// Keys from before the first act, which parts of the hub may still accept.
    lingering: Vec<KeyName>,
    /// What an attempt may end in besides acceptance and refusal.
    troubles: Vec<Trouble>,
    /// Timers that may fire. The others are left out of the search, though not out of the healing.
    timers: Vec<Timer>,
    may_disk_fail: bool,
    may_be_lost: bool,
    may_retry: bool,
}

/// Room for one offer and two retries: each retry is counted, and would make the world as large again.
fn nearly_spent() -> Ring {
    Ring { offers_spent: FLAT.offers_max - 3, ..two_keys() }
}

impl Story {
    fn new(name: &'static str, acts: Vec<Act>) -> Self {
        Self {
            name,
            ring: two_keys(),
            acts,
            lingering: vec![A, B],
            troubles: vec![Trouble::Unreachable],
            timers: vec![Timer::Retry, Timer::Trial, Timer::Window, Timer::Store],
            may_disk_fail: false,
            may_be_lost: true,
            may_retry: false,
        }
    }

    fn events(&self, world: &World) -> Vec<Event> {
        let mut inputs = Vec::new();
        if let Some(key) = world.trying {
            let was_given = self.acts[..=world.act].iter().any(|act| act.accepts(key));
            if was_given || self.lingering.contains(&key) {
                inputs.push(ACCEPTED);
            }
            inputs.push(REFUSED);
            let unknown = |trouble: &Trouble| Input::Attempted(Outcome::Unknown(*trouble));
            inputs.extend(self.troubles.iter().map(unknown));
        }
        if world.writing.is_some() {
            inputs.push(Input::Stored(true));
            if self.may_disk_fail && world.possible.len() < POSSIBLE_MAX {
                inputs.push(Input::Stored(false));
            }
        }
        if world.live.is_some() && self.may_be_lost {
            inputs.push(Input::Lost);
        }
        let armed = |timer: &&Timer| world.armed[**timer as usize];
        inputs.extend(self.timers.iter().filter(armed).map(|timer| Input::Fired(*timer)));
        if world.has_connected && world.document != Some(self.acts[world.act].document) {
            inputs.push(Input::Desired(self.acts[world.act].document));
        }
        if self.may_retry {
            inputs.push(Input::Retry);
        }
        let mut events: Vec<Event> = inputs.into_iter().map(Event::Told).collect();
        if world.act + 1 < self.acts.len() {
            events.push(Event::OperatorActs);
        }
        events.extend((0..world.images().count()).map(Event::PowerCut));
        events
    }

    /// Visits every state, nearest first, so that the path to a failure is a shortest one.
    fn search(&self) {
        let start =
            World::new(self.ring, &FLAT, true).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut paths: Vec<(usize, Option<Event>)> = vec![(0, None)];
        let mut seen = HashSet::from([start.fingerprint(())]);
        let mut ahead = VecDeque::from([(0, start)]);
        let mut known = Known::new();
        let (mut steps, mut dark, mut steps_to_rest_max) = (0_usize, 0_usize, 0);
        while let Some((at, world)) = ahead.pop_front() {
            assert!(seen.len() < STATES_MAX, "{}: too many states", self.name);
            let now = &self.acts[world.act];
            // The three kinds of hub in turn: enough, since neighbouring states heal through the same ones.
            let on_refusal = OnRefusal::ALL[at % OnRefusal::ALL.len()];
            let verdict = world.check(&FLAT).and_then(|()| {
                match heal(&world, &FLAT, now, on_refusal, &mut known)? {
                    Some(rest) => steps_to_rest_max = rest.steps.max(steps_to_rest_max),
                    None => dark += 1,
                }
                Ok(())
            });
            verdict.unwrap_or_else(|error| self.fail(&paths, at, None, &world, &error));
            for event in self.events(&world) {
                steps += 1;
                let mut next = world.clone();
                let judged = next.apply(&FLAT, event, 0).and_then(|_| match event {
                    Event::Told(_) => next.check_way_out(&world.state, now),
                    Event::OperatorActs | Event::PowerCut(_) => Ok(()),
                });
                judged.unwrap_or_else(|error| self.fail(&paths, at, Some(event), &next, &error));
                if seen.insert(next.fingerprint(())) {
                    ahead.push_back((paths.len(), next));
                    paths.push((at, Some(event)));
                }
            }
        }
        println!(
            "{}: {} states, {steps} steps, {} healed states, at most {steps_to_rest_max} steps to rest, \
             {dark} states without a key that the hub accepts",
            self.name,
            seen.len(),
            known.len(),
        );
        assert!(seen.len() > 500, "{}: the search did not get going", self.name);
    }

    fn fail(
        &self,
        paths: &[(usize, Option<Event>)],
        at: usize,
        last: Option<Event>,
        world: &World,
        error: &str,
    ) -> ! {
        let mut path: Vec<Event> = last.into_iter().collect();
        let mut at = at;
        while let (from, Some(event)) = paths[at] {
            path.push(event);
            at = from;
        }
        path.reverse();
        let path: Vec<String> = path.iter().map(|event| format!("  {event:?}")).collect();
        panic!(
            "{}: {error}\nafter, from {:?}:\n{}\nin {:?}",
            self.name,
            self.ring,
            path.join("\n"),
            world.state
        );
    }
}

fn act(primary: KeyName, secondary: KeyName, document: Desired) -> Act {
    Act { registry: slots(Some(primary), Some(secondary)), document }
}

#[test]
fn one_slot_and_then_the_other() {
    let acts = vec![act(A, C, offer(1, None, Some(C))), act(D, C, offer(2, Some(D), None))];
    Story { may_be_lost: false, ..Story::new("one slot and then the other", acts) }.search();
}

#[test]
fn one_key_on_a_disk_that_fails() {
    let acts = vec![act(A, C, offer(1, None, Some(C)))];
    Story { may_disk_fail: true, ..Story::new("one key on a disk that fails", acts) }.search();
}

#[test]
fn both_slots_at_once() {
    let acts = vec![act(C, D, offer(1, Some(C), Some(D)))];
    Story { may_be_lost: false, ..Story::new("both slots at once", acts) }.search();
}

#[test]
fn both_slots_on_a_disk_that_fails() {
    let acts = vec![act(C, D, offer(1, Some(C), Some(D)))];
    Story {
        may_disk_fail: true,
        may_be_lost: false,
        troubles: Vec::new(),
        ..Story::new("both slots on a disk that fails", acts)
    }
    .search();
}

#[test]
fn swapped_slots() {
    let acts = vec![act(B, A, offer(1, Some(B), Some(A))), act(B, C, offer(2, None, Some(C)))];
    Story { may_be_lost: false, ..Story::new("swapped slots", acts) }.search();
}

#[test]
fn swapped_slots_of_which_one_is_named() {
    let acts = vec![act(B, A, offer(1, Some(B), None))];
    Story { may_disk_fail: true, ..Story::new("swapped slots of which one is named", acts) }.search();
}

#[test]
fn active_slot_regenerated_behind_the_agent() {
    let acts =
        vec![act(A, B, Desired::Nothing), act(D, B, Desired::Nothing), act(D, C, offer(1, None, Some(C)))];
    Story { troubles: Vec::new(), ..Story::new("active slot regenerated behind the agent", acts) }.search();
}

#[test]
fn offer_for_the_slot_in_use() {
    let acts = vec![act(C, B, offer(1, Some(C), None))];
    Story::new("offer for the slot in use", acts).search();
}

#[test]
fn candidate_replaced_by_a_newer_offer() {
    let acts = vec![act(A, C, offer(1, None, Some(C))), act(A, D, offer(2, None, Some(D)))];
    Story { may_be_lost: false, ..Story::new("candidate replaced by a newer offer", acts) }.search();
}

#[test]
fn offer_that_comes_back_on_a_disk_that_fails() {
    let acts = vec![
        act(A, C, offer(1, None, Some(C))),
        act(A, D, offer(2, None, Some(D))),
        act(A, C, offer(3, None, Some(C))),
    ];
    Story {
        may_disk_fail: true,
        may_be_lost: false,
        troubles: Vec::new(),
        timers: vec![Timer::Retry, Timer::Trial, Timer::Store],
        ..Story::new("offer that comes back on a disk that fails", acts)
    }
    .search();
}

#[test]
fn offer_withdrawn_and_broken() {
    let acts = vec![
        act(A, C, offer(1, None, Some(C))),
        act(A, C, invalid(2, Reason::Checksum)),
        act(A, C, Desired::Nothing),
    ];
    Story { may_be_lost: false, troubles: Vec::new(), ..Story::new("offer withdrawn and broken", acts) }
        .search();
}

#[test]
fn offered_key_that_the_hub_never_accepts() {
    let acts = vec![act(A, B, offer(1, None, Some(C)))];
    Story {
        may_retry: true,
        ring: nearly_spent(),
        ..Story::new("offered key that the hub never accepts", acts)
    }
    .search();
}

#[test]
fn two_offered_keys_of_which_the_hub_accepts_one() {
    let acts = vec![act(A, D, offer(1, Some(C), Some(D)))];
    Story {
        may_retry: true,
        ring: nearly_spent(),
        may_be_lost: false,
        lingering: vec![A],
        troubles: Vec::new(),
        ..Story::new("two offered keys of which the hub accepts one", acts)
    }
    .search();
}

#[test]
fn offered_key_that_is_held() {
    let acts = vec![act(A, B, offer(1, None, Some(B))), act(A, B, offer(2, Some(A), None))];
    Story::new("offered key that is held", acts).search();
}

#[test]
fn key_offered_for_one_slot_and_then_for_the_other() {
    let acts = vec![act(A, C, offer(1, None, Some(C))), act(C, A, offer(2, Some(C), None))];
    Story { may_be_lost: false, ..Story::new("key offered for one slot and then for the other", acts) }
        .search();
}

#[test]
fn one_key_for_both_slots() {
    let acts = vec![act(C, C, offer(1, Some(C), Some(C)))];
    Story { may_be_lost: false, ..Story::new("one key for both slots", acts) }.search();
}

#[test]
fn device_with_one_key() {
    let acts = vec![act(A, C, offer(1, None, Some(C)))];
    Story {
        ring: Ring::provisioned(KeySlot::Primary, A, None),
        may_disk_fail: true,
        ..Story::new("device with one key", acts)
    }
    .search();
}

#[test]
fn token_renewal_beside_a_trial() {
    let acts = vec![act(A, C, offer(1, None, Some(C)))];
    Story {
        timers: vec![Timer::Retry, Timer::Trial, Timer::Window, Timer::Renewal],
        troubles: vec![Trouble::Unanswered],
        ..Story::new("token renewal beside a trial", acts)
    }
    .search();
}

#[test]
fn connections_that_settle_or_do_not() {
    let acts = vec![act(A, B, Desired::Nothing), act(A, B, offer(1, Some(A), Some(B)))];
    Story {
        timers: vec![Timer::Retry, Timer::Store, Timer::Settled, Timer::Renewal],
        troubles: vec![Trouble::Unanswered, Trouble::Clock],
        ..Story::new("connections that settle or do not", acts)
    }
    .search();
}

#[test]
fn ring_that_no_machine_has_made() {
    let held = |key| Some(Held { key, proven_at: None });
    let candidate = |key, standing| Some(Candidate { key, standing });
    let ring = Ring {
        // The active slot is empty, a candidate is held already, and the retired key is a candidate.
        slots: PerSlot {
            primary: Place { held: None, candidate: candidate(B, Standing::Trying) },
            secondary: Place { held: held(B), candidate: candidate(A, Standing::Spare) },
        },
        retired: Some(Retired { slot: KeySlot::Secondary, key: A }),
        brought: None,
        ..two_keys()
    };
    let acts = vec![act(A, B, Desired::Nothing), act(A, B, offer(1, Some(A), Some(B)))];
    Story { ring, may_be_lost: false, ..Story::new("ring that no machine has made", acts) }.search();
}
