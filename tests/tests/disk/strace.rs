//! The real agent under `strace`, which has chosen system calls fail, or kills the process at them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use twinkey_tests::gateway::{Gateway, signal_process};
use twinkey_tests::waiting::{PATIENCE, until};

/// What happens at a system call on one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    /// The call, or `/` and a regular expression: what renames and removes files has another name on ARM.
    pub(crate) call: &'static str,
    /// The file's name in the state directory; empty for the directory itself.
    pub(crate) file: &'static str,
    /// What strace calls it: `error=EIO`, `signal=KILL`.
    pub(crate) what: &'static str,
    /// At which of these calls, counted in each thread: `2`, or `1+` for every one.
    pub(crate) when: &'static str,
}

/// A running agent, watched. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Traced {
    agent: Child,
    trace: PathBuf,
}

/// Whether `strace` is here and may trace; says so where not.
pub(crate) async fn is_here() -> bool {
    let tried = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output().await;
    let is_here = tried.is_ok_and(|output| output.status.success());
    if !is_here {
        eprintln!("SKIPPED: strace is not installed, or may not trace here");
    }
    is_here
}

impl Traced {
    /// Starts the daemon with this happening to it.
    pub(crate) fn start(gateway: &Gateway, injection: Injection) -> Self {
        let Injection { call, file, what, when } = injection;
        let trace = gateway.path("trace");
        // An earlier agent's trace would be mistaken for this one's.
        let _ = fs::remove_file(&trace);
        let run = gateway.command(&["run"]);
        let run = run.as_std();
        let mut command = Command::new("strace");
        // As a grandchild, strace leaves the agent this process's child, and the agent survives its end.
        // It blocks SIGTERM by default when it writes to a file.
        command.args(["-D", "-I", "2", "-f", "-qq", "-o"]).arg(&trace);
        command.arg("-e").arg(format!("trace={call}"));
        command.arg("-P").arg(path_of(&gateway.state_dir(), file));
        command.arg("-e").arg(format!("inject={call}:{what}:when={when}"));
        command.arg(run.get_program()).args(run.get_args());
        for (name, value) in run.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let log =
            OpenOptions::new().append(true).create(true).mode(0o600).open(gateway.path("agent.log")).unwrap();
        command.env("RUST_LOG", "info").stdout(log.try_clone().unwrap()).stderr(log);
        let agent = command.stdin(std::process::Stdio::null()).kill_on_drop(true).spawn().unwrap();
        Self { agent, trace }
    }

    /// How often it has happened.
    pub(crate) fn injected(&self) -> usize {
        let trace = fs::read(&self.trace).unwrap_or_default();
        let trace = String::from_utf8_lossy(&trace);
        trace.lines().filter(|line| line.contains("(INJECTED)") || line.contains("killed by SIGKILL")).count()
    }

    /// Whether the agent is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.agent.try_wait().unwrap().is_none()
    }

    /// Ends what happens to the agent; the agent itself goes on.
    pub(crate) async fn heal(&self) {
        let pid = self.agent.id().expect("the agent has not ended");
        let tracer = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap();
            line.trim().parse::<u32>().unwrap()
        };
        signal_process(tracer(), Signal::TERM);
        until("strace lets go", async || (tracer() == 0).then_some(())).await;
    }

    /// Kills the agent.
    pub(crate) async fn kill(mut self) {
        let _ = self.agent.start_kill();
        timeout(PATIENCE, self.agent.wait()).await.expect("the agent ends").unwrap();
    }
}

fn path_of(directory: &Path, file: &str) -> PathBuf {
    if file.is_empty() { directory.to_owned() } else { directory.join(file) }
}
