use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use twinkey_contract::{Identity, KeySlot};

use super::super::fuse::Fuse;
use super::super::ledger::{DeviceRow, Ledger, Rollout, RolloutState, State, Wish};
use super::super::progress::Progress;
use super::super::spec::Spec;
use super::super::waves;
use super::fake::{FakeEngine, Fleet, Manner, print};
use super::{Means, run};
use crate::failure::Failure;

/// A Saturday, 2026-11-21T10:00:00Z.
const START: u64 = 1_795_255_200_000;

struct World {
    fleet: Arc<Fleet>,
    dir: tempfile::TempDir,
    begun: tokio::time::Instant,
}

impl World {
    /// A fleet of so many devices, in the order of their names, and a rollout over them.
    fn of(devices: u32, spec: &str) -> Self {
        let world = Self::without_ledger(devices);
        world.write_ledger(devices, spec);
        world
    }

    fn without_ledger(devices: u32) -> Self {
        // In memory where there is such a place: thousands of writes wait for the disk otherwise.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { fleet: Fleet::of(devices), dir, begun: tokio::time::Instant::now() }
    }

    fn write_ledger(&self, devices: u32, spec: &str) {
        let spec = Spec::parse(&format!("target = '*'\n{spec}"), "test").unwrap();
        spec.check().unwrap();
        let ends = waves::ends(&spec.waves, devices as usize).unwrap();
        let row = |n: u32| {
            let wave = ends.iter().position(|end| (n as usize) < *end).unwrap() as u32;
            DeviceRow::waiting(n, Identity { device_id: format!("d{n:02}"), module_id: None }, wave)
        };
        let rows: Vec<_> = (0..devices).map(row).collect();
        let rollout = Rollout {
            id: uuid::Uuid::from_u128(7),
            spec,
            seed: 1,
            hub: "hub".to_owned(),
            state: RolloutState::Running,
            message: None,
            created_at: START,
            ended_at: None,
            forgiven_done: 0,
            forgiven_failed: 0,
        };
        Ledger::create(&self.path(), &rollout, &rows).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.path()).unwrap()
    }

    fn now(&self) -> u64 {
        START + u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    fn means(&self) -> (Means, mpsc::Sender<()>) {
        let (send, signals) = mpsc::channel(2);
        let begun = self.begun;
        let clock = Arc::new(move || START + u64::try_from(begun.elapsed().as_millis()).unwrap());
        (Means { places_max: None, clock, progress: Progress::Silent, signals }, send)
    }

    fn engine(&self) -> Arc<FakeEngine> {
        Arc::new(FakeEngine { fleet: self.fleet.clone(), fuse: None })
    }

    async fn run(&self) -> Result<RolloutState, Failure> {
        let (means, _signals) = self.means();
        run(&mut self.ledger(), self.engine(), means).await
    }

    /// Runs until the fuse has burnt; `None` then.
    async fn run_with(&self, fuse: Fuse) -> Option<RolloutState> {
        let fuse = Arc::new(fuse);
        let (means, _signals) = self.means();
        let mut ledger = self.ledger();
        ledger.fuse = Some(fuse.clone());
        let engine = Arc::new(FakeEngine { fleet: self.fleet.clone(), fuse: Some(fuse.clone()) });
        tokio::select! {
            biased;
            () = fuse.burnt() => None,
            state = run(&mut ledger, engine, means) => match state {
                Ok(state) => Some(state),
                Err(failure) => {
                    assert_eq!(failure.what, "killed");
                    None
                }
            },
        }
    }

    fn states(&self) -> Vec<State> {
        self.ledger().devices().unwrap().iter().map(|row| row.state).collect()
    }

    fn row(&self, n: usize) -> DeviceRow {
        self.ledger().devices().unwrap().remove(n)
    }
}

#[tokio::test(start_paused = true)]
async fn both_keys_of_every_device_are_renewed_first_the_one_that_it_does_not_use() {
    let world = World::of(4, "");
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Done; 4]);
    for (n, first) in [(0, KeySlot::Secondary), (1, KeySlot::Primary)] {
        let device = world.fleet.device(&format!("d0{n}"), |device| device.clone());
        assert_eq!(device.made, [first, first.other()]);
        assert!(device.is_done && device.lives_on == device.registry[&first.other()]);
        let row = world.row(n);
        assert_eq!(row.before.primary, Some(print(n as u64 * 2 + 1)));
        assert_eq!(row.before.secondary, Some(print(n as u64 * 2 + 2)));
        assert_eq!(row.after.primary, Some(print(device.registry[&KeySlot::Primary])));
        assert_eq!(row.after.secondary, Some(print(device.registry[&KeySlot::Secondary])));
        assert!(row.started_at.is_some() && row.ended_at > row.started_at);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_renews_only_the_key_that_is_not_in_use() {
    let world = World::of(3, "keys = 'idle'");
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    for id in ["d00", "d01", "d02"] {
        assert_eq!(world.fleet.device(id, |device| device.made.len()), 1, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wave_begins_when_the_one_before_is_over_and_no_more_run_at_once_than_allowed() {
    let world = World::of(10, "waves = ['1', '50%', '100%']\nparallelism = 3");
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    let waves: Vec<_> = world
        .fleet
        .log()
        .iter()
        .map(|entry| {
            let n: usize = entry[1..3].parse().unwrap();
            [1, 5, 10].iter().position(|end| n < *end).unwrap()
        })
        .collect();
    assert!(waves.is_sorted(), "{waves:?}");
    assert_eq!(world.fleet.under_way.lock().unwrap().1, 3);
}

#[tokio::test(start_paused = true)]
async fn the_other_key_waits_for_the_soak_and_the_next_wave_for_both() {
    let world = World::of(2, "waves = ['1', '100%']\nsoak = '2h'");
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.fleet.log(), ["d00 secondary", "d00 primary", "d01 primary", "d01 secondary"]);
    let hours = (world.now() - START) / 3_600_000;
    assert_eq!(hours, 4);
    let row = world.row(0);
    assert!(row.ended_at.unwrap() - row.first_done_at.unwrap() >= 2 * 3_600_000);
}

#[tokio::test(start_paused = true)]
async fn those_that_soak_take_nobodys_place() {
    let world = World::of(6, "waves = ['100%']\nsoak = '10h'\nparallelism = 1");
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!((world.now() - START) / 3_600_000, 10);
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_after_growing_pauses_and_fails_in_the_end() {
    let world = World::of(3, "waves = ['100%']\nretries = 2");
    world.fleet.manner("d00", Manner::FailsFirst(2));
    world.fleet.manner("d01", Manner::FailsFirst(3));
    world.fleet.manner("d02", Manner::Panics);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Done, State::Failed, State::Failed]);
    assert_eq!((world.row(1).attempts, world.row(1).reason.as_deref()), (3, Some("error")));
    assert!(world.row(2).message.unwrap().contains("broke off"));
    assert!(world.row(1).ended_at.unwrap() - START >= 15_000, "5 s and 10 s at least");
}

#[tokio::test(start_paused = true)]
async fn a_silent_device_and_one_that_hangs_fail_at_their_deadline_and_hold_nobody_up() {
    let world = World::of(4, "waves = ['100%']\ndeadline = '15m'\nparallelism = 4");
    world.fleet.manner("d00", Manner::KeepsSilent);
    world.fleet.manner("d01", Manner::Hangs);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Failed, State::Failed, State::Done, State::Done]);
    assert_eq!((world.row(0).attempts, world.row(0).reason.as_deref()), (1, Some("timeout")));
    let made = world.fleet.device("d00", |device| device.registry[&KeySlot::Secondary]);
    assert_eq!(world.row(0).after.secondary, Some(print(made)), "the ledger knows the key that waits for it");
    assert_eq!(world.row(1).reason.as_deref(), Some("timeout"));
    assert!(world.row(3).ended_at.unwrap() < START + 60_000);
}

#[tokio::test(start_paused = true)]
async fn failed_devices_are_taken_up_where_they_stopped_and_no_key_is_made_twice() {
    let world = World::of(2, "waves = ['100%']");
    world.fleet.manner("d00", Manner::KeepsSilent);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    let made = world.fleet.device("d00", |device| device.registry[&KeySlot::Secondary]);
    world.fleet.manner("d00", Manner::Obeys);
    let mut ledger = world.ledger();
    let mut rows = ledger.devices().unwrap();
    rows[0].again();
    ledger.keep([&rows[0]], world.now()).unwrap();
    drop(ledger);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Done; 2]);
    let device = world.fleet.device("d00", |device| device.clone());
    assert_eq!(device.registry[&KeySlot::Secondary], made);
    assert_eq!(device.made, [KeySlot::Secondary, KeySlot::Primary]);
}

#[tokio::test(start_paused = true)]
async fn refusals_that_may_pass_are_tried_again_and_others_end_the_device() {
    let world = World::of(4, "waves = ['100%']\nretries = 1");
    world.fleet.manner("d00", Manner::RefusedFirst(1, "not-connected"));
    world.fleet.manner("d01", Manner::RefusedFirst(2, "not-connected"));
    world.fleet.manner("d02", Manner::RefusedFirst(1, "disabled"));
    world.fleet.manner("d03", Manner::Gone);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Done, State::Refused, State::Refused, State::Gone]);
    assert_eq!(world.row(1).reason.as_deref(), Some("not-connected"));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_moved_since_it_was_looked_at_is_looked_at_again() {
    let world = World::of(1, "");
    world.fleet.manner("d00", Manner::RefusedFirst(1, "slot-in-use"));
    let moves = async {
        while world.fleet.log().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.fleet.device("d00", |device| device.lives_on = device.registry[&KeySlot::Secondary]);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        state = world.run() => assert_eq!(state.unwrap(), RolloutState::Done),
        () = moves => {}
    }
    assert_eq!(world.fleet.log(), ["d00 secondary", "d00 primary", "d00 secondary"]);
    assert_eq!(
        world.fleet.device("d00", |device| device.made.clone()),
        [KeySlot::Primary, KeySlot::Secondary]
    );
}

#[tokio::test(start_paused = true)]
async fn where_the_report_does_not_tell_the_registry_is_asked() {
    let world = World::of(1, "");
    world.fleet.device("d00", |device| device.knows_both = false);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.row(0).first_replaces, Some(print(2)));
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_stop_what_has_not_begun_and_going_on_counts_anew() {
    let world = World::of(20, "waves = ['100%']\nparallelism = 2\nretries = 0\n[failures]\nmax = 1");
    for n in 0..6 {
        world.fleet.manner(&format!("d{n:02}"), Manner::FailsFirst(1));
    }
    assert_eq!(world.run().await.unwrap(), RolloutState::Halted);
    let failed = |world: &World| world.states().iter().filter(|state| **state == State::Failed).count();
    assert_eq!(failed(&world), 2);
    assert!(world.states()[4..].iter().all(|state| *state == State::Waiting));
    let halted = world.ledger().rollout().unwrap();
    assert!(halted.message.unwrap().contains("2 devices have failed"));
    world.ledger().forgive(0, 2).unwrap();
    assert_eq!(world.run().await.unwrap(), RolloutState::Halted);
    assert_eq!(failed(&world), 4);
    world.ledger().forgive(0, 4).unwrap();
    assert_eq!(world.run().await.unwrap(), RolloutState::Halted);
    world.ledger().forgive(0, 6).unwrap();
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(failed(&world), 6);
}

#[tokio::test(start_paused = true)]
async fn outside_the_windows_nothing_is_begun_and_what_runs_is_finished() {
    // Open from 10:00 to 10:01 and from 12:00 to 14:00; a renewal takes 50 seconds.
    let mut world = World::without_ledger(3);
    Arc::get_mut(&mut world.fleet).unwrap().takes = Duration::from_secs(50);
    world.write_ledger(
        3,
        "waves = ['100%']\nkeys = 'both'\nparallelism = 1\n\
         [[window]]\ndays = ['sat']\nfrom = '10:00'\nuntil = '10:01'\ntime_zone = 'UTC'\n\
         [[window]]\ndays = ['sat']\nfrom = '12:00'\nuntil = '14:00'\ntime_zone = 'UTC'",
    );
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    let rows = world.ledger().devices().unwrap();
    let minute = |n: usize| (rows[n].started_at.unwrap() - START) / 60_000;
    assert_eq!((minute(0), minute(1)), (0, 120));
    assert_eq!((rows[0].ended_at.unwrap() - START) / 1000, 100, "its other key follows at once");
}

#[tokio::test(start_paused = true)]
async fn a_pause_from_another_terminal_lets_renewals_finish_and_begins_none() {
    for (wish, state) in [(Wish::Pause, RolloutState::Paused), (Wish::Abort, RolloutState::Aborted)] {
        let world = World::of(10, "waves = ['100%']\nparallelism = 2\nkeys = 'idle'");
        let (means, _signals) = world.means();
        let wished = async {
            while world.fleet.log().len() < 4 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            world.ledger().set_wish(wish, world.now()).unwrap();
        };
        let mut ledger = world.ledger();
        let (ended, ()) = tokio::join!(run(&mut ledger, world.engine(), means), wished);
        assert_eq!(ended.unwrap(), state);
        assert_eq!(world.ledger().rollout().unwrap().state, state);
        let states = world.states();
        assert!(states.iter().all(|state| matches!(state, State::Done | State::Waiting)), "{states:?}");
        assert!(states.contains(&State::Waiting) && states[3] == State::Done, "{states:?}");
        if state == RolloutState::Paused {
            world.ledger().forget_pause().unwrap();
            assert_eq!(world.run().await.unwrap(), RolloutState::Done);
            assert_eq!(world.states(), [State::Done; 10]);
        }
    }
}

/// Does something to the fleet while the first device soaks.
async fn run_and_disturb_the_soak(world: &World, disturb: impl FnOnce(&Fleet)) -> RolloutState {
    let (means, _signals) = world.means();
    let disturbed = async {
        while world.states()[0] != State::Soaking {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        disturb(&world.fleet);
    };
    let mut ledger = world.ledger();
    let (state, ()) = tokio::join!(run(&mut ledger, world.engine(), means), disturbed);
    state.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_is_lost_after_its_first_key_stops_the_rollout() {
    let world = World::of(4, "waves = ['1', '100%']\nsoak = '1h'\nretries = 1");
    let lose = |fleet: &Fleet| fleet.manner("d00", Manner::RefusedFirst(9, "not-connected"));
    assert_eq!(run_and_disturb_the_soak(&world, lose).await, RolloutState::Halted);
    assert_eq!(world.states(), [State::Failed, State::Waiting, State::Waiting, State::Waiting]);
    // Who goes on has seen it.
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states()[1..], [State::Done; 3]);
}

#[tokio::test(start_paused = true)]
async fn the_old_key_is_renewed_wherever_somebody_has_put_it_meanwhile() {
    let world = World::of(1, "waves = ['100%']\nsoak = '1h'");
    let before = world.fleet.device("d00", |device| device.registry.clone());
    let swap = |fleet: &Fleet| {
        fleet.device("d00", |device| {
            let (one, other) = (device.registry[&KeySlot::Primary], device.registry[&KeySlot::Secondary]);
            device.registry = [(KeySlot::Primary, other), (KeySlot::Secondary, one)].into();
        });
    };
    assert_eq!(run_and_disturb_the_soak(&world, swap).await, RolloutState::Done);
    let after = world.fleet.device("d00", |device| device.registry.clone());
    assert!(after.values().all(|key| before.values().all(|old| old != key)), "{before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_is_gone_on_with_looks_before_it_renews_the_other_key() {
    let world = World::of(1, "waves = ['100%']");
    let before = world.fleet.device("d00", |device| device.registry.clone());
    let mut row = world.row(0);
    (row.state, row.first_slot) = (State::Soaking, Some(KeySlot::Secondary));
    row.first_done_at = Some(world.now() - 3_600_000);
    (row.before.primary, row.before.secondary) =
        (Some(print(before[&KeySlot::Primary])), Some(print(before[&KeySlot::Secondary])));
    (row.after.primary, row.after.secondary) = (row.before.primary, Some(print(999)));
    world.ledger().keep([&row], world.now()).unwrap();
    // The first key is proved; before anybody goes on, somebody swaps them.
    world.fleet.device("d00", |device| {
        device.registry = [(KeySlot::Primary, 999), (KeySlot::Secondary, before[&KeySlot::Primary])].into();
        device.lives_on = 999;
    });
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    let after = world.fleet.device("d00", |device| device.registry.clone());
    assert!(after.values().all(|key| before.values().all(|old| old != key)), "{before:?} {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_soak_that_began_in_the_future_lasts_from_now() {
    let world = World::of(1, "waves = ['100%']\nsoak = '1h'");
    let stop = run_and_disturb_the_soak(&world, |_| {
        let mut ledger = world.ledger();
        let mut row = ledger.devices().unwrap().remove(0);
        row.first_done_at = Some(world.now() + 1_000 * 86_400_000);
        ledger.keep([&row], world.now()).unwrap();
        ledger.set_wish(Wish::Pause, world.now()).unwrap();
    });
    assert_eq!(stop.await, RolloutState::Paused);
    world.ledger().forget_pause().unwrap();
    let from = world.now();
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert!(world.now() - from < 2 * 3_600_000);
}

#[tokio::test(start_paused = true)]
async fn a_signal_pauses_and_a_second_one_leaves_at_once() {
    let world = World::of(6, "waves = ['100%']\nparallelism = 2");
    let (means, signals) = world.means();
    signals.send(()).await.unwrap();
    assert_eq!(run(&mut world.ledger(), world.engine(), means).await.unwrap(), RolloutState::Paused);

    world.fleet.manner("d00", Manner::Hangs);
    let (means, signals) = world.means();
    let signalled = async {
        while world.fleet.log().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        signals.send(()).await.unwrap();
        signals.send(()).await.unwrap();
    };
    let mut ledger = world.ledger();
    let (ended, ()) = tokio::join!(run(&mut ledger, world.engine(), means), signalled);
    assert!(ended.unwrap_err().what.contains("left at once"));
    world.fleet.manner("d00", Manner::Obeys);
    assert_eq!(world.run().await.unwrap(), RolloutState::Done);
    assert_eq!(world.states(), [State::Done; 6]);
}

/// Kills the runner after every write and every step, alone and again and again, and lets another one go on.
#[tokio::test(start_paused = true)]
async fn killed_anywhere_the_next_runner_goes_on_and_no_key_is_made_twice() {
    for spec in ["waves = ['1', '100%']\nparallelism = 2", "waves = ['100%']\nsoak = '1h'", "keys = 'idle'"] {
        let both = !spec.contains("idle");
        for steps in 0.. {
            let world = World::of(3, spec);
            world.fleet.manner("d01", Manner::FailsFirst(1));
            let is_whole = world.run_with(Fuse::of(steps)).await.is_some();
            // The next ones are killed, too, each a little later.
            for more in 0..4 {
                if world.run_with(Fuse::of(steps % 5 + more * 3)).await.is_some() {
                    break;
                }
            }
            assert_eq!(world.run().await.unwrap(), RolloutState::Done, "{spec}: killed after {steps} steps");
            assert_eq!(world.states(), [State::Done; 3], "{spec}: killed after {steps} steps");
            for n in 0..3 {
                let device = world.fleet.device(&format!("d0{n}"), |device| device.clone());
                let first = if n % 2 == 0 { KeySlot::Secondary } else { KeySlot::Primary };
                let expected = if both { vec![first, first.other()] } else { vec![first] };
                assert_eq!(device.made, expected, "{spec}: d0{n}, killed after {steps} steps");
                assert!(device.is_done && device.registry.values().any(|key| *key == device.lives_on));
                let row = world.row(n);
                assert_eq!(row.before.primary, Some(print(n as u64 * 2 + 1)), "{spec}: {steps}");
                assert_eq!(row.before.secondary, Some(print(n as u64 * 2 + 2)), "{spec}: {steps}");
            }
            if is_whole {
                assert!(steps > 20, "{spec}: the fuse is part of every step");
                break;
            }
        }
    }
}
