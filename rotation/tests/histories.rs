//! Long random histories over a larger world than can be searched: seven keys, a dozen offers, nonsense, restores
//! of old images, impossible rings. The invariants are checked after every step; in the end the world heals.
//! A failure prints its seed and a shrunk history.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

mod world;

use std::collections::VecDeque;

use proptest::prelude::*;
use twinkey_rotation::{
    Brought, Candidate, Desired, Held, Input, KeyName, KeySlot, Outcome, PerSlot, Place, Policy, Reason,
    Retired, Ring, Rotation, RotationId, Standing, State, Timer, Trouble, UnixSecs, Verdict, step,
};
use world::healing::{Known, OnRefusal, heal};
use world::{Act, Event, FLAT, World, invalid, offer, slots, two_keys};

/// Names of keys: `0xaa` and `0xbb` are those of the ring at the start.
const KEYS: [u8; 7] = [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x11];

/// Old images that are kept for a restore. A history longer than a restore reaches back makes no other failures.
const IMAGES_KEPT_MAX: usize = 8;

/// What happens in a history. Most of it picks from what is possible at that moment.
#[derive(Clone, Debug)]
enum Move {
    /// The attempt under way ends: the way the hub sees the key, or otherwise.
    Answer(Answer),
    Stored(bool),
    /// The `n`th armed timer fires.
    Timer(usize),
    Lost,
    /// The operator regenerates one slot or both, and offers or doesn't.
    Operate {
        registry: PerSlot<Option<KeyName>>,
        document: Desired,
    },
    /// The document as it stands is read.
    Read,
    Retry,
    PowerCut(usize),
    /// An old image is put back.
    Restore(usize),
    /// Anything at all, whether it makes sense or not.
    Bring(Brought),
    Nonsense(Input),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Truthful,
    Refused,
    Unknown(Trouble),
}

fn keys() -> impl Strategy<Value = KeyName> {
    prop::sample::select(KEYS.to_vec()).prop_map(|byte| KeyName([byte; 16]))
}

fn troubles() -> impl Strategy<Value = Trouble> {
    prop::sample::select(vec![
        Trouble::Refused,
        Trouble::ActiveRefused,
        Trouble::Unreachable,
        Trouble::Unanswered,
        Trouble::Clock,
    ])
}

fn documents() -> impl Strategy<Value = Desired> {
    prop_oneof![
        1 => Just(Desired::Nothing),
        1 => (0..12_u128).prop_map(|id| invalid(id, Reason::Malformed)),
        6 => (0..12_u128, prop::option::of(keys()), prop::option::of(keys()))
            .prop_map(|(id, primary, secondary)| offer(id, primary, secondary)),
    ]
}

/// The operator offers what is in the registry, a part of it, or something else.
fn operations() -> impl Strategy<Value = Move> {
    let whole = (0..12_u128, keys(), keys(), 0..4_u8).prop_map(|(id, primary, secondary, named)| {
        let registry = slots(Some(primary), Some(secondary));
        let document = match named {
            0 => offer(id, Some(primary), None),
            1 => offer(id, None, Some(secondary)),
            2 => offer(id, Some(primary), Some(secondary)),
            _ => Desired::Nothing,
        };
        Move::Operate { registry, document }
    });
    let careless = (keys(), keys(), documents()).prop_map(|(primary, secondary, document)| Move::Operate {
        registry: slots(Some(primary), Some(secondary)),
        document,
    });
    prop_oneof![3 => whole, 1 => careless]
}

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Input::Boot),
        Just(Input::Retry),
        Just(Input::Lost),
        any::<bool>().prop_map(Input::Stored),
        documents().prop_map(Input::Desired),
        any::<u64>().prop_map(|at| Input::Attempted(Outcome::Accepted { at: UnixSecs(at) })),
        Just(Input::Attempted(Outcome::Refused)),
        troubles().prop_map(|trouble| Input::Attempted(Outcome::Unknown(trouble))),
        prop::sample::select(Timer::ALL.to_vec()).prop_map(Input::Fired),
    ]
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        30 => Just(Move::Answer(Answer::Truthful)),
        12 => Just(Move::Answer(Answer::Refused)),
        4 => troubles().prop_map(|trouble| Move::Answer(Answer::Unknown(trouble))),
        30 => prop::bool::weighted(0.85).prop_map(Move::Stored),
        30 => (0..Timer::COUNT).prop_map(Move::Timer),
        4 => Just(Move::Lost),
        6 => operations(),
        10 => Just(Move::Read),
        2 => Just(Move::Retry),
        2 => (0..4_usize).prop_map(Move::PowerCut),
        1 => (0..IMAGES_KEPT_MAX).prop_map(Move::Restore),
        2 => (prop::sample::select(KeySlot::ALL.to_vec()), keys()).prop_map(|(slot, key)| Move::Bring(Brought { slot, key })),
        4 => inputs().prop_map(Move::Nonsense),
    ]
}

/// Rings as a damaged or foreign image might hold them.
fn rings() -> impl Strategy<Value = Ring> {
    let held = || {
        let at = prop::option::of(any::<u64>().prop_map(UnixSecs));
        prop::option::of((keys(), at).prop_map(|(key, proven_at)| Held { key, proven_at }))
    };
    let candidate = || {
        let standing = prop::sample::select(vec![Standing::Trying, Standing::Spare]);
        prop::option::of((keys(), standing).prop_map(|(key, standing)| Candidate { key, standing }))
    };
    let place = move || (held(), candidate()).prop_map(|(held, candidate)| Place { held, candidate });
    let slot = || prop::sample::select(KeySlot::ALL.to_vec());
    let retired = prop::option::of((slot(), keys()).prop_map(|(slot, key)| Retired { slot, key }));
    let verdict = prop::option::of(prop::sample::select(vec![Verdict::Committed, Verdict::Rejected]));
    let rotation = (0..3_u128, prop::option::of(keys()), prop::option::of(keys()), verdict).prop_map(
        |(id, primary, secondary, verdict)| Rotation {
            id: RotationId(id),
            offered: slots(primary, secondary),
            verdict,
        },
    );
    let sequence = prop_oneof![0..100_u64, Just(u64::MAX)];
    let brought = prop::option::of((slot(), keys()).prop_map(|(slot, key)| Brought { slot, key }));
    (sequence, slot(), place(), place(), retired, brought, prop::option::of(rotation), any::<u8>()).prop_map(
        |(sequence, active, primary, secondary, retired, brought, rotation, offers_spent)| Ring {
            sequence,
            active,
            slots: PerSlot { primary, secondary },
            retired,
            brought,
            rotation,
            offers_spent,
        },
    )
}

/// A world with its operator and its drawer of old images.
struct History {
    world: World,
    act: Act,
    images: VecDeque<Ring>,
    policy: Policy,
}

impl History {
    fn new(policy: Policy) -> Result<Self, String> {
        let world = World::new(two_keys(), &policy, false)?;
        let registry = slots(Some(KeyName([KEYS[0]; 16])), Some(KeyName([KEYS[1]; 16])));
        let act = Act { registry, document: Desired::Nothing };
        Ok(Self { world, act, images: VecDeque::from([two_keys()]), policy })
    }

    fn make(&mut self, next: &Move, chance: u16) -> Result<(), String> {
        let input = match next {
            Move::Answer(answer) => self.world.trying.map(|key| {
                Input::Attempted(match answer {
                    Answer::Truthful if self.act.accepts(key) => {
                        Outcome::Accepted { at: UnixSecs(chance.into()) }
                    }
                    Answer::Truthful | Answer::Refused => Outcome::Refused,
                    Answer::Unknown(trouble) => Outcome::Unknown(*trouble),
                })
            }),
            Move::Stored(is_certain) => self.world.writing.map(|_| Input::Stored(*is_certain)),
            Move::Timer(nth) => {
                let armed = Timer::ALL.into_iter().filter(|timer| self.world.armed[*timer as usize]);
                armed.cycle().nth(*nth).map(Input::Fired)
            }
            Move::Lost => self.world.live.map(|_| Input::Lost),
            Move::Operate { registry, document } => {
                self.act = Act { registry: *registry, document: *document };
                None
            }
            Move::Read => self.world.has_connected.then_some(Input::Desired(self.act.document)),
            Move::Retry => Some(Input::Retry),
            Move::Bring(brought) => {
                let displaces_nothing = self.world.state.ring.brought.is_none();
                (self.world.has_connected || displaces_nothing).then_some(Input::Brought(*brought))
            }
            Move::PowerCut(nth) => {
                let image = nth % self.world.images().count();
                self.world.apply(&self.policy, Event::PowerCut(image), chance)?;
                None
            }
            Move::Restore(nth) => {
                let image = self.images[nth % self.images.len()];
                self.world.accepted_last = None;
                self.world.restart_from(&self.policy, image)?;
                None
            }
            Move::Nonsense(input) => Some(*input).filter(|input| self.is_harmless(input)),
        };
        if let Some(input) = input {
            self.world.apply(&self.policy, Event::Told(input), chance)?;
        }
        if self.images.back() != Some(&self.world.confirmed) {
            self.images.push_back(self.world.confirmed);
        }
        if self.images.len() > IMAGES_KEPT_MAX {
            self.images.pop_front();
        }
        self.world.check(&self.policy)
    }

    /// The operator comes to its senses: it offers what is in the registry, or nothing.
    fn operate_soundly(&mut self, primary: bool, secondary: bool) -> Result<(), String> {
        let Act { registry, .. } = self.act;
        if primary || secondary {
            let named = |is_named: bool, key: Option<KeyName>| key.filter(|_| is_named);
            self.act.document =
                offer(99, named(primary, registry.primary), named(secondary, registry.secondary));
        } else {
            self.act.document = Desired::Nothing;
        }
        self.make(&Move::Read, 0)
    }

    /// Documents keep to the order of the world; everything else may come at any time.
    fn is_harmless(&self, input: &Input) -> bool {
        !matches!(input, Input::Desired(_)) || self.world.has_connected
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_through_long_histories_and_the_world_heals(
        history in prop::collection::vec((moves(), any::<u16>()), 100..400),
        on_refusal in prop::sample::select(OnRefusal::ALL.to_vec()),
        is_flat in any::<bool>(),
        offers_primary in any::<bool>(),
        offers_secondary in any::<bool>(),
    ) {
        let policy = if is_flat { FLAT } else { Policy::DEFAULT };
        let mut run = History::new(policy).map_err(TestCaseError::fail)?;
        for (index, (next, chance)) in history.iter().enumerate() {
            run.make(next, *chance).map_err(|error| {
                TestCaseError::fail(format!("move {index}, {next:?}: {error}\nin {:?}", run.world.state))
            })?;
        }
        run.operate_soundly(offers_primary, offers_secondary).map_err(TestCaseError::fail)?;
        heal(&run.world, &policy, &run.act, on_refusal, &mut Known::new()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn no_input_in_no_state_panics_and_no_wait_is_longer_than_the_policy_says(
        ring in rings(),
        inputs in prop::collection::vec((inputs(), any::<u16>()), 1..300),
    ) {
        let policy = Policy::DEFAULT;
        let longest = policy.renew_after_ms.max(policy.propagation_window_ms);
        let mut state = State::new(ring);
        for (input, chance) in inputs {
            let (next, effects) = step(&policy, state, input, chance);
            prop_assert!(effects.timers.iter().flatten().all(|(_, delay_ms)| *delay_ms <= longest));
            prop_assert!(effects.connect.is_none_or(|key| next.is_surely_stored(key)));
            let has_key = next.ring.keys_in_order().iter().flatten().any(|key| next.is_surely_stored(*key));
            prop_assert!(
                next.live.is_some() || next.attempt.is_some() || next.pacing.is_waiting || !has_key,
                "a dead end: {:?}", next
            );
            state = next;
        }
    }

    #[test]
    fn policy_of_any_numbers_gives_no_panic(
        numbers in prop::array::uniform8(any::<u64>()),
        keys in any::<u64>(),
        inputs in prop::collection::vec((inputs(), any::<u16>()), 1..100),
    ) {
        let [reconnect, fallback, retry_min, retry_max, trial_min, trial_max, window, renew] = numbers;
        let policy = Policy {
            reconnect_delay_ms_max: reconnect,
            fallback_delay_ms: fallback,
            retry_delay_ms_min: retry_min,
            retry_delay_ms_max: retry_max,
            trial_delay_ms_min: trial_min,
            trial_delay_ms_max: trial_max,
            propagation_window_ms: window,
            store_delay_ms_min: retry_min,
            store_delay_ms_max: trial_max,
            settled_after_ms: fallback,
            renew_after_ms: renew,
            unanswered_max: keys.to_le_bytes()[0],
            offers_max: keys.to_le_bytes()[1],
            offer_interval_ms: trial_min,
            is_single_connection: keys.to_le_bytes()[2] % 2 == 0,
        };
        let mut state = State::new(two_keys());
        for (input, chance) in inputs {
            state = step(&policy, state, input, chance).0;
        }
        prop_assert!(policy.attempts_per_hour_max(keys) >= keys.min(1));
        prop_assert!(policy.trials_per_hour_max() >= policy.offers_per_hour_max());
    }
}
