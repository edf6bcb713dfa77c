//! The key ring on a real disk: what is refused, what is survived, and who may read it. `crash_images` is about power
//! cuts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod state_files;

use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use twinkey_agent::keyring::{DamagedKeyRing, KeyRing, Registration};
use twinkey_agent::store::{self, StoreError};
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{
    Brought, Candidate, Held, KeySlot, PerSlot, Place, Retired, Ring, Rotation, RotationId, Standing,
    UnixSecs, Verdict,
};
use twinkey_sas::Key;

const SECRET: &str = "Y2FuYXJ5LWtleS10aGF0LW11c3Qtbm90LWxlYWshISE=";

/// A file with this body and the checksum that belongs to it.
fn file_of(json: &str) -> Vec<u8> {
    file_of_format(1, json)
}

fn file_of_format(format: u32, json: &str) -> Vec<u8> {
    let digest = Sha256::digest(format!("{format}\n{json}"));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("twinkey-key-ring {format} {digest}\n{json}").into_bytes()
}

fn key_ring() -> KeyRing {
    let registration = Registration {
        host_name: "hub.example".into(),
        identity: Identity { device_id: "gateway".into(), module_id: None },
        gateway_host_name: None,
    };
    KeyRing::provision(
        registration,
        SealingKey::generate().unwrap(),
        KeySlot::Primary,
        Key::from_base64(SECRET).unwrap(),
    )
}

fn state_directory() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    (root, path)
}

fn saved(path: &Path, sequences: std::ops::RangeInclusive<u64>) {
    let mut store = store::open(path).unwrap();
    assert!(store.load().unwrap().is_none());
    let key_ring = key_ring();
    let mut ring = key_ring.ring;
    for sequence in sequences {
        ring.sequence = sequence;
        store.save(&key_ring, &ring).unwrap();
    }
}

fn loaded_sequence(path: &Path) -> u64 {
    store::peek(path).unwrap().unwrap().key_ring.ring.sequence
}

fn newest_file(path: &Path) -> PathBuf {
    // Three writes: a, b, a.
    path.join("key-ring.a")
}

#[test]
fn what_was_saved_is_loaded_again_with_every_role_and_key() {
    let (_root, path) = state_directory();
    let mut store = store::open(&path).unwrap();
    let mut key_ring = key_ring();
    let candidate = key_ring.learn(Key::from_bytes(&[7; 32]).unwrap()).unwrap();
    let mut ring = key_ring.ring;
    ring.sequence = 9;
    ring.slots.secondary.candidate = Some(Candidate { key: candidate, standing: Standing::Trying });
    store.save(&key_ring, &ring).unwrap();
    let loaded = store.load().unwrap().unwrap().key_ring;
    assert_eq!(loaded.ring, ring);
    assert_eq!(loaded.registration, key_ring.registration);
    assert_eq!(loaded.sealing_key.public(), key_ring.sealing_key.public());
    assert_eq!(loaded.key(candidate).unwrap().expose(), [7; 32]);
    assert_eq!(
        loaded.key(ring.active_key().unwrap()).unwrap().expose(),
        Key::from_base64(SECRET).unwrap().expose()
    );
}

#[test]
fn files_and_directory_are_for_the_owner_alone() {
    let (_root, path) = state_directory();
    saved(&path, 1..=2);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("key-ring.a")), 0o600);
    assert_eq!(mode(&path.join("key-ring.b")), 0o600);
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let (_root, path) = state_directory();
    let _first = store::open(&path).unwrap();
    let error = store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[test]
fn a_damaged_newest_file_leaves_its_predecessor_in_use() {
    type Damage = (&'static str, fn(&[u8]) -> Vec<u8>);
    let damages: [Damage; 5] = [
        ("empty", |_| Vec::new()),
        ("cut short", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("one bit flipped", |bytes| {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("zeros", |bytes| vec![0; bytes.len()]),
        ("something else", |_| b"-----BEGIN CERTIFICATE-----\n".to_vec()),
    ];
    for (what, damage) in damages {
        let (_root, path) = state_directory();
        saved(&path, 1..=3);
        assert_eq!(loaded_sequence(&path), 3);
        let newest = newest_file(&path);
        let bytes = std::fs::read(&newest).unwrap();
        std::fs::write(&newest, damage(&bytes)).unwrap();
        let loaded = store::peek(&path).unwrap().unwrap();
        assert_eq!(loaded.key_ring.ring.sequence, 2, "{what}");
        assert_eq!(loaded.damaged.unwrap().0, "key-ring.a", "{what}");
    }
}

#[test]
fn two_damaged_files_are_an_error_that_says_what_to_do_and_quotes_no_key() {
    let (_root, path) = state_directory();
    saved(&path, 1..=3);
    for name in ["key-ring.a", "key-ring.b"] {
        let mut bytes = std::fs::read(path.join(name)).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(path.join(name), bytes).unwrap();
    }
    let error = store::peek(&path).map(|_| ()).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("provision"), "{text}");
    assert!(!text.contains(&SECRET[..12]), "{text}");
}

#[test]
fn a_file_of_a_newer_format_stops_the_agent_and_is_left_alone() {
    let (_root, path) = state_directory();
    saved(&path, 1..=3);
    let file = newest_file(&path);
    let text = String::from_utf8(file_of_format(2, "what only a newer agent can read")).unwrap();
    std::fs::write(&file, &text).unwrap();
    let error = store::open(&path).unwrap().load().map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("newer agent"), "{source}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn a_newest_file_that_the_disk_does_not_give_leaves_its_predecessor_in_use() {
    let (_root, path) = state_directory();
    saved(&path, 1..=3);
    let file = newest_file(&path);
    std::fs::remove_file(&file).unwrap();
    // Reading a directory fails with EISDIR, as reading a bad block fails with EIO.
    std::fs::create_dir(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(loaded_sequence(&path), 2);
}

#[test]
fn a_temporary_file_left_over_with_other_permissions_does_not_pass_them_on() {
    let (_root, path) = state_directory();
    saved(&path, 1..=1);
    let left_over = path.join("key-ring.new");
    std::fs::write(&left_over, "x").unwrap();
    std::fs::set_permissions(&left_over, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut store = store::open(&path).unwrap();
    let key_ring = store.load().unwrap().unwrap().key_ring;
    let mut ring = key_ring.ring;
    ring.sequence = 2;
    store.save(&key_ring, &ring).unwrap();
    assert_eq!(loaded_sequence(&path), 2);
    assert_eq!(path.join("key-ring.b").metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_longest_key_ring_that_there_can_be_is_loaded_again() {
    let (_root, path) = state_directory();
    let mut store = store::open(&path).unwrap();
    let mut key_ring = key_ring();
    key_ring.registration = Registration {
        host_name: format!("{}.azure-devices.net", "h".repeat(200)),
        identity: Identity { device_id: "d".repeat(128), module_id: Some("m".repeat(128)) },
        gateway_host_name: Some("g".repeat(250)),
    };
    let mut learn = |byte| key_ring.learn(Key::from_bytes(&[byte; 64]).unwrap()).unwrap();
    let keys = [learn(1), learn(2), learn(3), learn(4), learn(5), learn(6)];
    let place = |held, candidate, standing| Place {
        held: Some(Held { key: held, proven_at: Some(UnixSecs(u64::MAX)) }),
        candidate: Some(Candidate { key: candidate, standing }),
    };
    let slots = PerSlot {
        primary: place(keys[0], keys[1], Standing::Trying),
        secondary: place(keys[2], keys[3], Standing::Spare),
    };
    let ring = Ring {
        sequence: u64::MAX,
        active: KeySlot::Secondary,
        slots,
        retired: Some(Retired { slot: KeySlot::Primary, key: keys[4] }),
        brought: Some(Brought { slot: KeySlot::Secondary, key: keys[5] }),
        rotation: Some(Rotation {
            id: RotationId(u128::MAX),
            offered: PerSlot { primary: Some(keys[1]), secondary: Some(keys[3]) },
            verdict: Some(Verdict::Rejected),
        }),
        offers_spent: u8::MAX,
    };
    store.save(&key_ring, &ring).unwrap();
    let loaded = store.load().unwrap().unwrap().key_ring;
    assert_eq!(loaded.ring, ring);
    assert_eq!(loaded.registration, key_ring.registration);
    assert!(keys.iter().all(|key| loaded.key(*key).is_some()));
}

#[test]
fn one_flipped_bit_anywhere_is_damage() {
    let bytes = key_ring().encode(&key_ring().ring).unwrap();
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.to_vec();
            damaged[place] ^= 1 << bit;
            let error = KeyRing::decode(&damaged).err();
            // Nor does it pass for a newer agent's, which would stop this one.
            let is_damage = error.is_some_and(|error| !matches!(error, DamagedKeyRing::NewerFormat { .. }));
            assert!(is_damage, "bit {bit} of byte {place}");
        }
    }
}

#[test]
fn a_key_name_that_is_not_32_hexadecimal_digits_is_refused() {
    let key_ring = key_ring();
    let name = key_ring.ring.active_key().unwrap().to_string();
    let with_name = |name_in_file: &str| {
        let file = key_ring.encode(&key_ring.ring).unwrap();
        let text = std::str::from_utf8(&file).unwrap();
        let json = text.split_once('\n').unwrap().1.replace(&name, name_in_file);
        KeyRing::decode(&file_of(&json)).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(with_name(&name), Ok(()));
    for wrong in
        ["", &name[1..], &format!("0{name}"), &format!("+{}", &name[1..]), "pp000000000000000000000000000000"]
    {
        let error = with_name(wrong).unwrap_err();
        assert!(error.contains("32 hexadecimal digits"), "{wrong}: {error}");
    }
}

#[test]
fn a_file_that_exists_and_can_not_be_opened_is_not_taken_for_a_missing_one() {
    let (_root, path) = state_directory();
    drop(store::open(&path).unwrap());
    // Each points to the other, so that opening them fails with ELOOP.
    std::os::unix::fs::symlink(path.join("key-ring.b"), path.join("key-ring.a")).unwrap();
    std::os::unix::fs::symlink(path.join("key-ring.a"), path.join("key-ring.b")).unwrap();
    let error = store::open(&path).unwrap().load().map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::NoneUsable { .. }), "{error}");
}

#[test]
fn a_directory_of_another_users_is_refused_unless_the_agent_is_root() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65_534;
    let (root, path) = state_directory();
    saved(&path, 1..=1);
    if root.path().metadata().unwrap().uid() != 0 {
        // For this user its own directory is the one that is accepted: the other tests show it.
        eprintln!("SKIPPED: only root can make a directory of another user's");
        return;
    }
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = root.path().join("twinkey-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_twinkey-agent"), &program).unwrap();
    let config = root.path().join("agent.toml");
    let socket = root.path().join("agent.sock");
    std::fs::write(&config, format!("[hub]\n[state]\ndir = {path:?}\n[local]\nsocket = {socket:?}\n"))
        .unwrap();
    let provision_as_nobody = || {
        // What runs programs for another processor says packaging/cross.
        let runner = std::env::var("TWINKEY_AGENT_RUNNER").unwrap_or_default();
        let program = program.to_str().unwrap();
        let mut words = runner.split_whitespace().chain([program]);
        let mut command = std::process::Command::new(words.next().unwrap());
        command.args(words).args(["provision", "--config"]).arg(&config).uid(NOBODY).gid(NOBODY);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let complaint = provision_as_nobody();
    assert!(
        complaint.contains("belongs to user 0")
            && complaint.contains("as root (sudo)")
            && complaint.contains("chown -h -R 65534"),
        "{complaint}"
    );
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(path.join("key-ring.a"), Some(NOBODY), Some(NOBODY)).unwrap();
    // Its own now: the complaint is about something else.
    let complaint = provision_as_nobody();
    assert!(!complaint.contains("belongs to"), "{complaint}");
    // And root may look at everybody's.
    assert_eq!(loaded_sequence(&path), 1);
}

#[test]
fn a_key_that_nothing_needs_any_more_is_forgotten_and_none_is_ever_printed() {
    let mut key_ring = key_ring();
    let active = key_ring.ring.active_key().unwrap();
    let spare = key_ring.learn(Key::from_bytes(&[7; 32]).unwrap()).unwrap();
    key_ring.forget_unless(|name| name == active);
    assert!(key_ring.key(active).is_some());
    assert!(key_ring.key(spare).is_none());
    let (_root, path) = state_directory();
    let printed = format!("{key_ring:?} {:?}", store::open(&path).unwrap());
    assert!(printed.contains(&active.to_string()) && printed.contains("key-ring.a"), "{printed}");
    assert!(!printed.contains(&SECRET[..12]), "{printed}");
}

#[test]
#[allow(unsafe_code, reason = "nothing safe names a descriptor that somebody else owns")]
fn a_store_that_is_gone_leaves_no_lock_though_a_copy_of_its_descriptor_lives_on() {
    let (_root, path) = state_directory();
    let store = store::open(&path).unwrap();
    // As a fork has one, until it runs its own program.
    let copies: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|descriptor| std::fs::read_link(descriptor).is_ok_and(|target| target == path))
        .map(|descriptor| descriptor.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .map(|descriptor| {
            // SAFETY: the store, which lives until the copies are made, owns the descriptor.
            unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().unwrap()
        })
        .collect();
    assert_eq!(copies.len(), 1, "the directory's lock");
    assert!(matches!(store::open(&path), Err(StoreError::InUse { .. })));
    drop(store);
    store::open(&path).unwrap();
}

#[test]
fn the_time_that_was_noted_last_is_there_again_and_nonsense_in_its_place_is_none() {
    let (_root, path) = state_directory();
    let mut store = store::open(&path).unwrap();
    assert_eq!(store.last_seen(), None);
    for now in [1_795_000_000, 1_795_003_600] {
        store.note_time(now).unwrap();
        assert_eq!(store.last_seen(), Some(now));
    }
    std::fs::write(path.join("last-seen"), "tomorrow").unwrap();
    assert_eq!(store.last_seen(), None);
}

#[test]
fn any_bytes_as_a_key_ring_are_an_error_and_no_panic() {
    use proptest::prelude::*;
    proptest!(|(mut bytes: Vec<u8>, with_header: bool)| {
        if with_header {
            let mut file = b"twinkey-key-ring 1 ".to_vec();
            file.append(&mut bytes);
            bytes = file;
        }
        prop_assert!(KeyRing::decode(&bytes).is_err());
    });
}
