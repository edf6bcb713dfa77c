use std::os::unix::fs::PermissionsExt as _;

use super::super::spec::Spec;
use super::*;

const NOW: u64 = 1_795_212_000_000;

fn identity(n: u32) -> Identity {
    Identity { device_id: format!("d{n}"), module_id: (n % 2 == 1).then(|| "m".to_owned()) }
}

fn rollout() -> Rollout {
    Rollout {
        id: uuid::Uuid::from_u128(7),
        spec: Spec::parse("target = '*'", "test").unwrap(),
        seed: u32::MAX,
        hub: "hub.example".to_owned(),
        state: RolloutState::Running,
        message: None,
        created_at: NOW,
        ended_at: None,
        forgiven_done: 0,
        forgiven_failed: 0,
    }
}

fn world() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ledger");
    (dir, path)
}

#[test]
fn what_was_kept_is_read_back_and_only_its_owner_can_read_it() {
    let (_dir, path) = world();
    let rows: Vec<_> = (0..3).map(|n| DeviceRow::waiting(n, identity(n), n / 2)).collect();
    let mut ledger = Ledger::create(&path, &rollout(), &rows).unwrap();
    assert_eq!(ledger.devices().unwrap(), rows);
    let print: Fingerprint = "5f1d0c3b9a7e24665f1d0c3b9a7e2466".parse().unwrap();
    let changed = DeviceRow {
        state: State::Second,
        attempts: 2,
        is_forced: true,
        first_slot: Some(KeySlot::Secondary),
        first_replaces: Some(print),
        second_replaces: Some(print),
        first_done_at: Some(NOW),
        before: Prints { primary: Some(print), secondary: None },
        after: Prints { primary: None, secondary: Some(print) },
        rotation: Some("r".to_owned()),
        reason: Some("timeout".to_owned()),
        message: Some("no proof".to_owned()),
        started_at: Some(NOW),
        ended_at: Some(NOW + 1),
        ..rows[1].clone()
    };
    ledger.keep([&changed], NOW + 5).unwrap();
    ledger.set_state(RolloutState::Halted, Some("too many"), NOW + 6).unwrap();
    let beside = Ledger::open(&path).unwrap();
    assert_eq!(beside.devices().unwrap(), [rows[0].clone(), changed, rows[2].clone()]);
    let read = beside.rollout().unwrap();
    assert_eq!((read.id, read.seed, read.spec), (rollout().id, u32::MAX, rollout().spec));
    assert_eq!((read.state, read.message.as_deref()), (RolloutState::Halted, Some("too many")));
    let events: Vec<_> =
        beside.events().unwrap().into_iter().map(|event| (event.at, event.device, event.what)).collect();
    let expected = [(NOW, None, "created"), (NOW + 5, Some(1), "second"), (NOW + 6, None, "halted")];
    assert_eq!(events, expected.map(|(at, device, what)| (at, device, what.to_owned())));
    for name in ["a.ledger", "a.ledger-wal", "a.ledger-shm"] {
        let mode = std::fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_wish_of_another_terminal_reaches_the_runner_and_is_fulfilled_by_going_on() {
    let (_dir, path) = world();
    let mut runner = Ledger::create(&path, &rollout(), &[]).unwrap();
    assert_eq!(runner.wish().unwrap(), Wish::Run);
    Ledger::open(&path).unwrap().set_wish(Wish::Pause, NOW).unwrap();
    assert_eq!(runner.wish().unwrap(), Wish::Pause);
    runner.forget_pause().unwrap();
    assert_eq!(runner.wish().unwrap(), Wish::Run);
}

#[test]
fn an_abort_is_for_good() {
    let (_dir, path) = world();
    let mut ledger = Ledger::create(&path, &rollout(), &[]).unwrap();
    ledger.set_wish(Wish::Abort, NOW).unwrap();
    ledger.set_wish(Wish::Pause, NOW).unwrap();
    ledger.forget_pause().unwrap();
    ledger.set_state(RolloutState::Running, None, NOW).unwrap();
    assert_eq!(ledger.wish().unwrap(), Wish::Abort);
}

#[test]
fn a_ledger_that_was_removed_or_replaced_is_noticed() {
    let (_dir, path) = world();
    let ledger = Ledger::create(&path, &rollout(), &[]).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(ledger.wish().unwrap_err().what.contains("removed or replaced"));
    let _other = std::fs::copy("/proc/self/exe", &path).unwrap();
    assert!(ledger.wish().is_err());
}

#[test]
fn rows_that_nobody_wrote_are_damage() {
    for (change, count) in [("number = number + 7", 2), ("wave = 4000000000", 2)] {
        let (_dir, path) = world();
        let rows: Vec<_> = (0..count).map(|n| DeviceRow::waiting(n, identity(n), 0)).collect();
        let ledger = Ledger::create(&path, &rollout(), &rows).unwrap();
        ledger.connection.execute(&format!("UPDATE device SET {change}"), []).unwrap();
        assert!(ledger.devices().unwrap_err().what.contains("damaged"), "{change}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let (_dir, path) = world();
    std::fs::write(&path, "mine").unwrap();
    assert!(Ledger::create(&path, &rollout(), &[]).unwrap_err().what.contains("is there already"));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn what_is_no_ledger_or_a_newer_or_a_damaged_one_is_not_touched() {
    let (_dir, path) = world();
    let rows: Vec<_> = (0..200).map(|n| DeviceRow::waiting(n, identity(n), 0)).collect();
    drop(Ledger::create(&path, &rollout(), &rows).unwrap());
    let good = std::fs::read(&path).unwrap();
    let mut newer = good.clone();
    newer[63] = 2;
    let mut foreign = good.clone();
    foreign[68] ^= 1;
    let mut torn = good.clone();
    torn.truncate(good.len() - 4096);
    let mut scribbled = good.clone();
    scribbled[4096..].fill(0x5a);
    let cases: [(&[u8], &str); 7] = [
        (b"", "no ledger"),
        (b"hello", "no ledger"),
        (&good[..50], "no ledger"),
        (&foreign, "no ledger"),
        (&newer, "format 2"),
        (&torn, "damaged"),
        (&scribbled, "damaged"),
    ];
    for (bytes, word) in cases {
        std::fs::write(&path, bytes).unwrap();
        let failure = Ledger::open(&path).unwrap_err();
        assert!(failure.what.contains(word), "{word}: {}", failure.what);
        assert!(failure.next.is_some());
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{word}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Ledger::open(&path).unwrap_err().what.contains("no ledger"));
    assert!(!path.exists());
}

#[test]
fn every_word_reads_back() {
    for state in State::ALL {
        assert_eq!(State::read(state.as_str()), Some(*state));
    }
    assert_eq!(RolloutState::read("stopped"), None);
}
