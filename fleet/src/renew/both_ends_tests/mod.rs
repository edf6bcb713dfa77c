//! Both ends in one small world: the operator's plan and the agent's machine, with a registry, a twin, a second operator, crashes
//! and power cuts, and a party that wants the device's keys. Every order of steps is searched, nearest first, so that the path
//! to a harm is a shortest one.

mod machine;
mod mind;
mod words;
mod world;

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use mind::Rules;
use words::{Seal, Tags};
use world::{Event, Harm, Party, Physics, Story, World};

/// A world that grows past this is not small: split it.
const STATES_MAX: usize = 400_000;

const BELIEVED: Tags = Tags::Believed { seal: Seal::Agent, sequence: 0 };

/// One operator renews, the other one looks, and the agent is cut off once.
fn story(name: &'static str, party: Party) -> Story {
    Story {
        name,
        rules: Rules::Present,
        party,
        tags: BELIEVED,
        is_incident: false,
        keys_by_hub: true,
        operators: 1,
        keys_max: 2,
        offers_max: 2,
        power_cuts_max: 1,
        crashes_max: 1,
        losses_max: 1,
        may_be_done_by_hand: false,
        may_break_lease: false,
    }
}

/// Visits every world. The first of these harms ends the search, with the path to it.
fn search(story: Story, harms: &[Harm]) -> Option<(Harm, Vec<String>)> {
    let name = story.name;
    let mut physics = Physics::new(story);
    let start = physics.start();
    let mut seen: HashSet<World, BuildHasherDefault<Mixer>> = HashSet::from_iter([start]);
    let mut paths: Vec<(usize, Option<Event>)> = vec![(0, None)];
    let mut ahead = VecDeque::from([(0_usize, start)]);
    let (mut steps, mut reach) = (0_usize, (0, 0));
    while let Some((at, world)) = ahead.pop_front() {
        assert!(seen.len() < STATES_MAX, "{name}: too many states");
        let (keys, offers) = world.reach();
        reach = (reach.0.max(keys), reach.1.max(offers));
        for step in physics.steps(&world) {
            steps += 1;
            let harm = step.harms.iter().copied().chain(physics.harm(&step.world));
            if let Some(harm) = harm.into_iter().find(|harm| harms.contains(harm)) {
                let path = path_to(&paths, at, step.event);
                let text = path.join("\n  ");
                println!("{name}: {harm:?} after {} steps, {} states:\n  {text}", path.len(), seen.len());
                return Some((harm, path));
            }
            if seen.insert(step.world) {
                ahead.push_back((paths.len(), step.world));
                paths.push((at, Some(step.event)));
            }
        }
    }
    println!("{name}: {} states, {steps} steps, {} keys, {} offers", seen.len(), reach.0, reach.1);
    let aim = (physics.story.keys_max, physics.story.offers_max);
    assert_eq!(reach, aim, "{name}: the search did not get to all keys and offers");
    None
}

/// A quick hash for worlds: the standard one takes most of the time.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

fn path_to(paths: &[(usize, Option<Event>)], at: usize, last: Event) -> Vec<String> {
    let (mut path, mut at) = (vec![format!("{last:?}")], at);
    while let (from, Some(event)) = paths[at] {
        path.push(format!("{event:?}"));
        at = from;
    }
    path.reverse();
    path
}

/// What must not be found.
const ALL: &[Harm] = &[Harm::Dark, Harm::Learnt, Harm::KeyInUse];
/// What must not be found where the key in use may be regenerated, as long as another one stays.
const WORST: &[Harm] = &[Harm::Dark, Harm::Learnt];
/// What must not be found where the party has a key.
const WITHOUT_CAUSE: &[Harm] = &[Harm::Dark, Harm::Learnt, Harm::KeyInUseWithoutCause];

fn former(name: &'static str) -> Story {
    Story { rules: Rules::Former, tags: Tags::Nothing, ..story(name, Party::Token) }
}

fn two_operators(name: &'static str, party: Party) -> Story {
    Story { operators: 2, power_cuts_max: 0, crashes_max: 0, losses_max: 0, ..story(name, party) }
}

#[test]
fn by_the_former_rules_a_token_gets_a_key() {
    assert!(search(former("former rules: a key is learnt"), &[Harm::Learnt]).is_some());
}

#[test]
fn by_the_former_rules_a_token_has_the_key_in_use_regenerated() {
    assert!(search(former("former rules: a key in use is regenerated"), &[Harm::KeyInUse]).is_some());
}

#[test]
fn by_the_former_rules_a_token_leaves_the_device_dark() {
    assert!(search(former("former rules: the device is dark"), &[Harm::Dark]).is_some());
}

#[test]
fn without_a_party_no_crash_and_no_power_cut_costs_a_key() {
    let story = Story { keys_max: 3, offers_max: 3, ..story("nobody", Party::Nobody) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn two_operators_take_no_key_in_use() {
    assert_eq!(search(two_operators("two operators", Party::Nobody), ALL), None);
}

#[test]
fn two_operators_take_no_key_in_use_whichever_crashes() {
    let story = Story { crashes_max: 2, ..two_operators("two operators, crashes", Party::Nobody) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn a_token_moves_no_key() {
    let story = Story { keys_max: 3, offers_max: 3, crashes_max: 2, ..story("a token", Party::Token) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn a_token_moves_no_key_of_two_operators() {
    assert_eq!(search(two_operators("a token and two operators", Party::Token), ALL), None);
}

#[test]
fn a_token_moves_no_key_of_two_operators_who_make_keys_themselves() {
    let story =
        Story { keys_by_hub: false, crashes_max: 1, ..two_operators("a token, keys by etag", Party::Token) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn a_token_moves_no_key_in_an_incident() {
    let story = Story { is_incident: true, ..story("a token in an incident", Party::Token) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn a_token_moves_no_key_after_the_key_in_use_was_regenerated_by_hand() {
    let story = Story { may_be_done_by_hand: true, ..story("a token, by hand", Party::Token) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn the_right_to_write_twins_moves_no_key() {
    let story = Story { power_cuts_max: 0, losses_max: 0, crashes_max: 0, ..story("twins", Party::Twins) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn the_right_to_write_twins_moves_no_key_when_the_operator_crashes() {
    let story =
        Story { keys_max: 1, power_cuts_max: 0, losses_max: 0, ..story("twins, a crash", Party::Twins) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn the_right_to_write_twins_moves_no_key_when_the_power_fails() {
    let story =
        Story { keys_max: 1, offers_max: 1, crashes_max: 0, ..story("twins, a power cut", Party::Twins) };
    assert_eq!(search(story, ALL), None);
}

#[test]
fn the_right_to_write_twins_opens_no_key_after_the_key_in_use_was_regenerated_by_hand() {
    let story = Story {
        offers_max: 1,
        may_be_done_by_hand: true,
        power_cuts_max: 0,
        crashes_max: 0,
        ..story("twins, by hand", Party::Twins)
    };
    assert_eq!(search(story, ALL), None);
}

/// The lease stands in the tags, too.
#[test]
fn the_right_to_write_twins_breaks_the_lease_and_leaves_the_device_a_key() {
    let story = || Story {
        keys_max: 2,
        offers_max: 2,
        may_break_lease: true,
        ..two_operators("twins, leases", Party::Twins)
    };
    assert!(search(story(), &[Harm::KeyInUse]).is_some());
    let story = Story { offers_max: 1, ..story() };
    assert_eq!(search(story, WORST), None);
}

#[test]
fn a_thief_of_a_key_gets_no_other_one_and_the_device_keeps_the_one_that_it_shares_with_him() {
    for (name, key) in [("a thief of the key in use", 1), ("a thief of the idle key", 2)] {
        let story =
            || Story { power_cuts_max: 0, losses_max: 0, crashes_max: 0, ..story(name, Party::Key(key)) };
        assert!(search(story(), &[Harm::KeyInUse]).is_some(), "this he can do, and no more");
        assert_eq!(search(story(), WITHOUT_CAUSE), None);
    }
}
