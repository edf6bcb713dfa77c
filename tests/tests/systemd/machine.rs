//! A machine with a systemd of its own, on this machine's network: `systemd-nspawn` boots a copy of a small Debian.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use rustix::process::Signal;
use twinkey_tests::gateway::{signal_process, text};
use twinkey_tests::waiting::until;

/// What a machine's copy of the root file system may hold, as tmpfs(5) writes it. It takes memory for what differs only.
const ROOM: &str = "192m";
/// Lines of the journal that a failed test shows.
const LAST_WORDS: &str = "60";
/// The environment of commands in the machine.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("SYSTEMD_PAGER", ""),
];

/// A machine. Dropping it ends it, and leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    /// Holds the copy in a mount namespace of its own, until its standard input is closed.
    holder: Child,
    /// Where the copy is, in that namespace.
    directory: PathBuf,
    nspawn: Option<Child>,
    /// The machine's first process, as this machine counts.
    init: Option<u32>,
}

impl Machine {
    /// A copy of `root`, which is not running yet.
    pub(crate) fn new(root: &Path) -> Self {
        static MACHINES: AtomicU32 = AtomicU32::new(0);
        let name = format!("twinkey-{}-{}", std::process::id(), MACHINES.fetch_add(1, Ordering::Relaxed));
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(script("machine"))
            .args([OsStr::new("hold"), root.as_os_str(), OsStr::new(ROOM), OsStr::new(&name)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the machine's file system can't be made; its words are above");
        Self { name, holder, directory: line.trim_end().into(), nspawn: None, init: None }
    }

    /// Where things lie that outlive the machine's boots besides its root, in words that [`boot`](Self::boot) takes.
    pub(crate) fn beside(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Boots it, with more arguments for `systemd-nspawn`, and waits until systemd has started what it has to start.
    pub(crate) async fn boot(&mut self, arguments: &[&str]) {
        self.begin_boot(arguments).await;
        until("systemd has started what it has to start", async || self.is_in(&["running", "degraded"]))
            .await;
    }

    /// The same, and waits until systemd answers.
    pub(crate) async fn begin_boot(&mut self, arguments: &[&str]) {
        assert!(self.nspawn.is_none(), "the machine is running");
        let log = fs::File::create(self.log()).unwrap();
        // On the test's own thread, whose end is the machine's.
        let nspawn = Command::new("nsenter")
            .arg("--target")
            .arg(self.holder.id().to_string())
            .arg("--mount")
            .arg(script("machine"))
            .arg("boot")
            .arg(&self.directory)
            .arg(&self.name)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let log = self.log();
        let nspawn = self.nspawn.insert(nspawn);
        let init = until("the machine boots", async || {
            let ended = nspawn.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(&log).unwrap_or_default());
            systemd_among_children(nspawn.id())
        })
        .await;
        self.init = Some(init);
        until("systemd answers", async || self.is_in(&["starting", "running", "degraded"])).await;
    }

    fn is_in(&self, states: &[&str]) -> Option<()> {
        let said = self.try_run(&["systemctl", "is-system-running"]);
        states.contains(&text(&said.stdout).trim()).then_some(())
    }

    /// Ends it as a power cut would.
    pub(crate) fn cut(&mut self) {
        let Some(mut nspawn) = self.nspawn.take() else { return };
        // It passes SIGTERM on as SIGKILL, to the first process of the machine.
        self.init = None;
        signal_process(nspawn.id(), Signal::TERM);
        nspawn.wait().unwrap();
    }

    /// A command in the machine, as root.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let init = self.init.expect("the machine is running");
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(init.to_string()).args(["--all", "--"]).args(words);
        command.env_clear().envs(ENVIRONMENT).stdin(Stdio::null());
        command
    }

    /// Runs a command that may fail.
    pub(crate) fn try_run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must not fail; its standard output without the last line's end.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{words:?}: {said}{}", text(&output.stderr));
        said.trim_end().to_owned()
    }

    /// Runs a script of the shell's that must not fail.
    pub(crate) fn shell(&self, script: &str) -> String {
        self.run(&["sh", "-euc", script])
    }

    /// Writes a file of root's, and the directories that it needs.
    pub(crate) fn write(&self, path: &str, mode: &str, bytes: &[u8]) {
        self.feed(&["install", "-D", "-m", mode, "/dev/stdin", path], bytes);
    }

    /// Writes into a file that is there, and leaves owner and mode as they are.
    pub(crate) fn overwrite(&self, path: &str, bytes: &[u8]) {
        self.feed(&["sh", "-c", "cat > \"$0\"", path], bytes);
    }

    fn feed(&self, words: &[&str], bytes: &[u8]) {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(child.wait().unwrap().success(), "{words:?} fails");
    }

    /// The content of a file.
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        let output = self.try_run(&["cat", path]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    }

    fn log(&self) -> PathBuf {
        env::temp_dir().join(format!("{}.log", self.name))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init.is_some() {
            let journal = self.try_run(&["journalctl", "--no-pager", "--boot", "-n", LAST_WORDS]);
            eprintln!("the machine's last words:\n{}", text(&journal.stdout));
        }
        self.cut();
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        let _ = fs::remove_file(self.log());
    }
}

/// A script beside the tests.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// The one that has become a systemd: the first process of the machine.
fn systemd_among_children(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "systemd\n")
    })
}
