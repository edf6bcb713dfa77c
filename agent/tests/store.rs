//! The key ring on disk: what survives what.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use twinkey_agent::keyring::{KeyRing, Registration};
use twinkey_agent::store::{self, Files, Store, StoreError};
use twinkey_contract::Identity;
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{Candidate, KeySlot, Standing};
use twinkey_sas::Key;
use zeroize::Zeroizing;

const SECRET: &str = "Y2FuYXJ5LWtleS10aGF0LW11c3Qtbm90LWxlYWshISE=";

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
    let candidate = key_ring.learn(Key::from_bytes(&[7; 32]).unwrap());
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
fn looser_permissions_are_refused_with_the_command_that_mends_them() {
    let (_root, path) = state_directory();
    saved(&path, 1..=1);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = store::open(&path).unwrap_err();
    assert!(error.to_string().contains("chmod 0700"), "{error}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(path.join("key-ring.a"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = store::open(&path).unwrap().load().map(|_| ()).unwrap_err();
    let StoreError::File { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("chmod 0600"), "{source}");
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
    let text =
        std::fs::read_to_string(&file).unwrap().replacen("twinkey-key-ring 1 ", "twinkey-key-ring 2 ", 1);
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

/// A disk that keeps what is synced apart from what is not, and that can be told to fail.
#[derive(Clone, Default)]
struct Disk(Rc<RefCell<Platters>>);

#[derive(Default)]
struct Platters {
    /// What programs see now.
    seen: BTreeMap<String, Vec<u8>>,
    /// What is there after a power cut.
    durable: BTreeMap<String, Vec<u8>>,
    /// Contents that were synced, by name at that time.
    synced: BTreeMap<String, Vec<u8>>,
    operations: u32,
    fails_at: Option<u32>,
}

impl Disk {
    fn operate(&self, act: impl FnOnce(&mut Platters)) -> io::Result<()> {
        let mut platters = self.0.borrow_mut();
        platters.operations += 1;
        if platters.fails_at == Some(platters.operations) {
            return Err(io::Error::from_raw_os_error(28));
        }
        act(&mut platters);
        Ok(())
    }

    fn after_power_cut(&self) -> Self {
        let durable = self.0.borrow().durable.clone();
        Self(Rc::new(RefCell::new(Platters {
            seen: durable.clone(),
            synced: durable.clone(),
            durable,
            ..Platters::default()
        })))
    }
}

impl Files for Disk {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        Ok(self.0.borrow().seen.get(name).cloned().map(Zeroizing::new))
    }
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Half of it is there when the write fails.
        self.0.borrow_mut().seen.insert(name.into(), bytes[..bytes.len() / 2].to_vec());
        self.operate(|platters| {
            platters.seen.insert(name.into(), bytes.to_vec());
        })
    }
    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.operate(|platters| {
            let bytes = platters.seen[name].clone();
            platters.synced.insert(name.into(), bytes);
        })
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|platters| {
            let bytes = platters.seen.remove(from).unwrap();
            platters.seen.insert(to.into(), bytes);
            // What was not synced is lost or torn after a power cut, even under its new name.
            let synced = platters.synced.remove(from).unwrap_or_default();
            platters.synced.insert(to.into(), synced);
        })
    }
    fn sync_directory(&mut self) -> io::Result<()> {
        self.operate(|platters| {
            let names: Vec<String> = platters.seen.keys().cloned().collect();
            platters.durable = names
                .into_iter()
                .map(|name| (name.clone(), platters.synced.get(&name).cloned().unwrap_or_default()))
                .collect();
        })
    }
    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

#[test]
fn a_power_cut_after_any_failure_leaves_the_last_acknowledged_ring_or_a_newer_one() {
    let key_ring = key_ring();
    let mut cases = 0;
    // Four operations a write; the tenth write is left alone, to show that the store has recovered.
    for fails_at in 1..=36 {
        let disk = Disk::default();
        disk.0.borrow_mut().fails_at = Some(fails_at);
        let mut store = Store::new(disk.clone());
        let mut acknowledged = 0;
        let mut ring = key_ring.ring;
        for sequence in 1..=10 {
            ring.sequence = sequence;
            if store.save(&key_ring, &ring).is_ok() {
                acknowledged = sequence;
            }
            let found = Store::new(disk.after_power_cut())
                .load()
                .unwrap()
                .map_or(0, |loaded| loaded.key_ring.ring.sequence);
            assert!(
                found >= acknowledged,
                "operation {fails_at} failed: {found} found, {acknowledged} acknowledged"
            );
            cases += 1;
        }
        assert_eq!(acknowledged, 10, "one failure must not stop later writes");
    }
    assert_eq!(cases, 360);
}
