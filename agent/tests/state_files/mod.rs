//! What stands in the state directory besides whole key rings of the agent's own user: other kinds
//! of files, files that others can open, files of another user.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use twinkey_agent::store::{self, Files, Store, StoreError};
use zeroize::Zeroizing;

use super::{SECRET, key_ring, loaded_sequence, newest_file, saved, state_directory};

/// Longest that opening may take: what is held up by a FIFO is held up for ever.
const BOUND: Duration = Duration::from_secs(20);
/// A user who owns nothing here.
const NOBODY: u32 = 65_534;

/// What `work` gives, if it ends at all.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(BOUND).unwrap_or_else(|_| panic!("{what} is held up"))
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_is_no_regular_file_is_damage_of_that_file_and_its_predecessor_stays_in_use() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 4] = [
        ("FIFO", |place| make_fifo(place)),
        ("socket", |place| drop(UnixListener::bind(place).unwrap())),
        ("directory", |place| fs::create_dir(place).unwrap()),
        ("symbolic link", |place| {
            // To a whole key ring, the newest that there is: it is not followed all the same.
            let elsewhere = place.parent().unwrap().parent().unwrap().join("elsewhere");
            fs::copy(place.with_extension("kept"), &elsewhere).unwrap();
            set_mode(&elsewhere, 0o600);
            symlink(elsewhere, place).unwrap();
        }),
    ];
    for (kind, make) in kinds {
        let (_root, path) = state_directory();
        saved(&path, 1..=3);
        let newest = newest_file(&path);
        fs::rename(&newest, newest.with_extension("kept")).unwrap();
        make(&newest);
        for is_alone in [false, true] {
            let path = path.clone();
            let loaded =
                in_time(kind, move || if is_alone { store::open(&path)?.load() } else { store::peek(&path) });
            let loaded = loaded.unwrap().unwrap();
            assert_eq!(loaded.key_ring.ring.sequence, 2, "{kind}");
            let (name, damage) = loaded.damaged.unwrap();
            assert_eq!(name, "key-ring.a", "{kind}");
            let said = damage.to_string();
            assert!(said.contains(kind) && said.contains("no regular file"), "{said}");
        }
        let path_in_time = path.clone();
        in_time(kind, move || store::open(&path_in_time).unwrap().settle()).unwrap();
        if kind == "directory" {
            continue;
        }
        // The next write puts a file in its place, and leaves alone what a link pointed to.
        let mut store = store::open(&path).unwrap();
        let key_ring = store.load().unwrap().unwrap().key_ring;
        let mut ring = key_ring.ring;
        ring.sequence = 4;
        store.save(&key_ring, &ring).unwrap();
        assert_eq!(loaded_sequence(&path), 4, "{kind}");
        assert!(fs::symlink_metadata(&newest).unwrap().is_file(), "{kind}");
        if kind == "symbolic link" {
            let kept = fs::read(newest.with_extension("kept")).unwrap();
            assert_eq!(fs::read(path.parent().unwrap().join("elsewhere")).unwrap(), kept);
        }
    }
}

#[test]
fn a_state_directory_with_nothing_but_fifos_holds_nobody_up_and_each_is_named() {
    let (_root, path) = state_directory();
    saved(&path, 1..=1);
    for name in ["key-ring.a", "key-ring.b", "last-seen", "key-ring.new", "last-seen.new"] {
        let _ = fs::remove_file(path.join(name));
        make_fifo(&path.join(name));
    }
    let place = path.clone();
    let error = in_time("peek", move || store::peek(&place).map(|_| ())).unwrap_err().to_string();
    assert!(error.contains("key-ring.a: ") && error.contains("key-ring.b: "), "{error}");
    assert_eq!(error.matches("FIFO").count(), 2, "{error}");
    let place = path.clone();
    in_time("the time", move || {
        let mut store = store::open(&place).unwrap();
        assert_eq!(store.last_seen(), None);
        store.note_time(1_795_000_000).unwrap();
        assert_eq!(store.last_seen(), Some(1_795_000_000));
        let key_ring = key_ring();
        store.save(&key_ring, &key_ring.ring).unwrap();
    });
    let sequence = key_ring().ring.sequence;
    assert_eq!(loaded_sequence(&path), sequence);
}

#[test]
fn what_is_no_directory_is_refused_as_the_state_directory() {
    let (_root, path) = state_directory();
    make_fifo(&path);
    for open in [|path: &Path| store::open(path).map(|_| ()), |path: &Path| store::peek(path).map(|_| ())] {
        let place = path.clone();
        let error = in_time("the state directory", move || open(&place)).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(matches!(error, StoreError::File { .. }) && source.contains("irectory"), "{error}: {source}");
    }
}

#[test]
fn a_key_ring_file_that_is_longer_than_any_is_damage_and_is_not_read() {
    let (_root, path) = state_directory();
    saved(&path, 1..=3);
    let file = fs::OpenOptions::new().write(true).open(newest_file(&path)).unwrap();
    file.set_len(1 << 40).unwrap();
    let loaded = store::peek(&path).unwrap().unwrap();
    assert_eq!(loaded.key_ring.ring.sequence, 2);
    let said = loaded.damaged.unwrap().1.to_string();
    assert!(said.contains("1099511627776 bytes"), "{said}");
}

/// The agent's program with the state directory `path`; what it says on standard error.
fn provision_again(path: &Path) -> String {
    let root = path.parent().unwrap();
    let (config, socket) = (root.join("agent.toml"), root.join("agent.sock"));
    fs::write(&config, format!("[state]\ndir = {path:?}\n[local]\nsocket = {socket:?}\n")).unwrap();
    let mut command = program();
    command.args(["provision", "--config"]).arg(config).stdin(Stdio::null());
    String::from_utf8(command.output().unwrap().stderr).unwrap()
}

fn program() -> Command {
    // What runs programs for another processor says packaging/cross.
    let runner = std::env::var("TWINKEY_AGENT_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_twinkey-agent")]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env_remove("RUST_LOG");
    command
}

#[test]
fn a_file_that_others_could_read_is_closed_to_them_and_the_keys_are_called_known() {
    for mode in [0o640, 0o604, 0o666, 0o755, 0o4600] {
        let (_root, path) = state_directory();
        saved(&path, 1..=3);
        let file = newest_file(&path);
        set_mode(&file, mode);
        // Whoever only looks changes nothing.
        assert_eq!(loaded_sequence(&path), 3);
        assert_eq!(mode_of(&file), mode);
        let said = provision_again(&path);
        assert_eq!(mode_of(&file), 0o600, "{said}");
        let warning = said.lines().find(|line| line.contains("WARN")).unwrap_or_default();
        assert!(warning.contains("key-ring.a") && warning.contains(&format!("{mode:04o}")), "{said}");
        assert!(warning.contains("could have read the keys") && warning.contains("renew them"), "{said}");
        // It went on: what is refused is that there is a key ring already.
        assert!(said.contains("there is a key ring for gateway already"), "{said}");
        assert!(!said.contains(&SECRET[..12]) && !said.contains("chmod"), "{said}");
        assert!(!provision_again(&path).contains("WARN"), "{mode:o}");
    }
}

#[test]
fn a_directory_that_others_could_enter_is_closed_to_them_and_the_agent_goes_on() {
    for mode in [0o755, 0o710, 0o777, 0o2770] {
        let (_root, path) = state_directory();
        saved(&path, 1..=3);
        set_mode(&path, mode);
        assert_eq!(loaded_sequence(&path), 3);
        assert_eq!(mode_of(&path), mode);
        let said = provision_again(&path);
        assert_eq!(mode_of(&path), 0o700, "{said}");
        let warning = said.lines().find(|line| line.contains("WARN")).unwrap_or_default();
        assert!(warning.contains(&format!("{mode:04o}")) && warning.contains("renew"), "{said}");
        assert!(said.contains("there is a key ring for gateway already"), "{said}");
    }
}

#[test]
fn a_time_that_others_could_read_is_no_reason_to_renew_keys() {
    let (_root, path) = state_directory();
    saved(&path, 1..=1);
    let mut store = store::open(&path).unwrap();
    store.note_time(1_795_000_000).unwrap();
    set_mode(&path.join("last-seen"), 0o644);
    assert_eq!(store.last_seen(), Some(1_795_000_000));
    assert_eq!(mode_of(&path.join("last-seen")), 0o600);
    drop(store);
    assert!(!provision_again(&path).contains("WARN"));
}

#[test]
fn a_file_of_another_users_stays_an_error_and_is_left_as_it_is() {
    let (_root, path) = state_directory();
    saved(&path, 1..=3);
    if !is_root() {
        eprintln!("SKIPPED: only root can give a file to another user");
        return;
    }
    let file = newest_file(&path);
    chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    for mode in [0o600, 0o644] {
        set_mode(&file, mode);
        let error = store::open(&path).unwrap().load().map(|_| ()).unwrap_err();
        let StoreError::File { source, .. } = &error else { panic!("{error}") };
        let said = source.to_string();
        // `-h`: a link that somebody puts there meanwhile is not followed.
        assert!(said.contains("belongs to another user") && said.contains("`chown -h 0 "), "{said}");
        assert_eq!((mode_of(&file), fs::metadata(&file).unwrap().uid()), (mode, NOBODY));
    }
    // All of it is another user's, the agent's for instance: root may read it for him.
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(path.join("key-ring.b"), Some(NOBODY), Some(NOBODY)).unwrap();
    assert_eq!(loaded_sequence(&path), 3);
}

/// A disk that gives its files, and does not sync them.
struct Unsynced(PathBuf);

impl Files for Unsynced {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        fs::read(self.path(name)).map(|bytes| Some(Zeroizing::new(bytes)))
    }

    fn write(&mut self, _: &str, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if name.ends_with('b') { Err(io::Error::other("a bad block")) } else { Ok(()) }
    }

    fn rename(&mut self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

#[test]
fn a_start_syncs_the_files_that_exist_and_says_when_it_can_not() {
    let (_root, path) = state_directory();
    saved(&path, 1..=1);
    store::open(&path).unwrap().settle().unwrap();
    let error = Store::new(Unsynced(path)).settle().unwrap_err();
    assert!(error.to_string().contains("key-ring.b"), "{error}");
}

#[test]
fn each_directory_that_is_made_is_durable_in_its_parent_before_a_key_ring_is_in_it() {
    let is_traceable = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    if std::env::var_os("TWINKEY_AGENT_RUNNER").is_some()
        || !is_traceable.is_ok_and(|output| output.status.success())
    {
        eprintln!("SKIPPED: strace is not installed, or may not trace here");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let state = root.join("var/lib/state");
    let config = root.join("agent.toml");
    fs::write(&config, format!("[state]\ndir = {state:?}\n[local]\nsocket = \"/nonexistent/socket\"\n"))
        .unwrap();
    let login = root.join("connection-string");
    fs::write(&login, format!("HostName=hub.example;DeviceId=d;SharedAccessKey={SECRET}")).unwrap();
    let trace = root.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", "trace=/^mkdir|^rename|fsync", "-o"]).arg(&trace);
    command.arg(env!("CARGO_BIN_EXE_twinkey-agent")).arg("provision");
    command.arg("--from-file").arg(login).arg("--config").arg(config);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let trace = fs::read_to_string(trace).unwrap();
    let place_of = |what: &str, path: &Path, after: usize| {
        let path = path.to_str().unwrap();
        let is_it = |line: &str| {
            line.contains(what)
                && (line.contains(&format!("\"{path}\"")) || line.contains(&format!("<{path}>")))
        };
        let found = trace.lines().skip(after).position(is_it);
        after + found.unwrap_or_else(|| panic!("no {what} of {path} after line {after}:\n{trace}"))
    };
    let key_ring = place_of("rename", &state.join("key-ring.a"), 0);
    for made in [root.join("var"), root.join("var/lib"), state] {
        let made_at = place_of("mkdir", &made, 0);
        let synced_at = place_of("fsync", made.parent().unwrap(), made_at);
        assert!(synced_at < key_ring, "{}:\n{trace}", made.display());
    }
}
