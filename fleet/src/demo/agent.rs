//! The real agent as a child process.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::secrets::LOGIN_VARIABLE;

/// How much of the log's end explains a death, in bytes.
const LAST_WORDS_LEN_MAX: u64 = 2_000;
/// Longest wait for the agent's clean end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct AgentProcess {
    log: PathBuf,
    exited: watch::Receiver<Option<String>>,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

impl AgentProcess {
    /// Starts this very program as an agent, which logs to a new file `log`.
    pub(crate) fn start(config: &Path, log: &Path) -> Result<Self, Failure> {
        let log_file =
            File::create_new(log).map_err(|e| Failure::failed(format!("write {}: {e}", log.display())))?;
        let program =
            std::env::current_exe().map_err(|e| Failure::failed(format!("find this program's file: {e}")))?;
        let child = Command::new(program)
            .args(["agent-process", "run", "--config"])
            .arg(config)
            .env_remove(LOGIN_VARIABLE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            // Ctrl-C is for us; the agent is told to stop.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::failed(format!("start the agent: {e}")))?;
        let (exit, exited) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let keeper = tokio::spawn(keep(child, stopped, exit));
        Ok(Self { log: log.to_owned(), exited, stop, keeper })
    }

    /// Waits until the agent has ended by itself, and says how.
    pub(crate) async fn died(&self) -> Failure {
        let mut exited = self.exited.clone();
        let status = match exited.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_default(),
            Err(_) => "unknown".to_owned(),
        };
        let words = last_words(&self.log).unwrap_or_else(|e| format!("(no log: {e})"));
        Failure::failed(format!("the agent ended ({status}); its last words: {words}"))
    }

    /// Tells the agent to end, and waits until it has.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.keeper.await;
    }
}

async fn keep(mut child: Child, stopped: oneshot::Receiver<()>, exit: watch::Sender<Option<String>>) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = stopped => {
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It may have ended in this moment.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
            child.wait().await
        }
    };
    let _ = exit.send(Some(status.map_or_else(|e| e.to_string(), |status| status.to_string())));
}

fn last_words(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LAST_WORDS_LEN_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().collect::<Vec<_>>().join(" | "))
}
