//! A local hub, and real agents as processes of the program under test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use twinkey_emulator::{Emulator, Options, start};

/// Bound of a wait: long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct World {
    pub(crate) hub: Emulator,
    dir: tempfile::TempDir,
    agents: Vec<Killed>,
}

/// Ends with the test, however that ends.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// A hub with these devices, each of which has an agent that has connected and reported.
    pub(crate) async fn with_agents(ids: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(Options { data_dir: dir.path().join("hub"), ..Options::default() }).await.unwrap();
        let mut world = Self { hub, dir, agents: Vec::new() };
        for id in ids {
            world.create(id).await;
            world.start_agent(id).await;
        }
        if ids.is_empty() {
            return world;
        }
        let all = format!("{} agents report", ids.len());
        world
            .until(&all, async |world| {
                let plan = world.run(&["rollout", "plan", "--target", "*", "--output", "json"]).await;
                plan.status.success().then_some(())
            })
            .await;
        world
    }

    pub(crate) async fn create(&self, id: &str) {
        self.run_ok(&["device-identity", "create", "-d", id]).await;
    }

    async fn start_agent(&mut self, id: &str) {
        let connection_string = self.path(&format!("{id}.txt"));
        let out = connection_string.to_str().unwrap();
        self.run_ok(&["device-identity", "connection-string", "-d", id, "--out", out]).await;
        let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
        let ready = self.hub.ready();
        let text = format!(
            "[hub]\nconnection_string_file = {connection_string:?}\nca_file = {:?}\nsystem_roots = false\nport = {}\n\
             https_port = {}\n\n[state]\ndir = {:?}\n\n[local]\nsocket = {:?}\n\n[rotation]\npropagation_window_secs = 2\n",
            ready.ca_file,
            port(&ready.mqtts),
            port(&ready.https),
            self.path(&format!("{id}.state")),
            self.path(&format!("{id}.sock")),
        );
        let config = self.path(&format!("{id}.toml"));
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(self.path(&format!("{id}.log"))).unwrap();
        // From this very thread: with its end, the agent's comes.
        let child = Command::new(env!("CARGO_BIN_EXE_twinkey"))
            .args(["agent-process", "run", "--config"])
            .arg(config)
            .env_remove("IOTHUB_CONNECTION_STRING")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agents.push(Killed(child));
    }

    /// Sends a signal to the agent that was started as the `place`-th.
    pub(crate) fn signal(&self, place: usize, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.agents[place].0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with this login, where it needs one.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinkey"));
        command.args(args).env_remove("IOTHUB_CONNECTION_STRING").env_remove("RUST_LOG").stdin(Stdio::null());
        let needs_login = !matches!(args, ["rollout", "status" | "report" | "pause" | "abort", ..]);
        if needs_login {
            let login = self.path("hub/hub.json");
            std::fs::set_permissions(&login, std::fs::Permissions::from_mode(0o600)).unwrap();
            command.arg("--login").arg(login);
        }
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    pub(crate) async fn run_ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(exit(&output), 0, "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// In the background, without output.
    pub(crate) fn spawn(&self, args: &[&str]) -> Killed {
        let mut command = self.command(args);
        Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        serde_json::from_str(&self.run_ok(&args).await).unwrap()
    }

    /// Both keys of a device in plain text, got through the one door.
    pub(crate) async fn keys(&self, id: &str) -> [String; 2] {
        let mut keys = [String::new(), String::new()];
        for (slot, key) in ["primary", "secondary"].into_iter().zip(&mut keys) {
            let args = ["device-identity", "connection-string", "-d", id, "--key-type", slot, "--show"];
            let said = self.run_ok(&args).await;
            *key = said.trim().split("SharedAccessKey=").nth(1).unwrap().to_owned();
            assert!(key.len() >= 44, "a key");
        }
        keys
    }

    /// Looks again and again until there is something.
    pub(crate) async fn until<T>(&self, what: &str, look: impl AsyncFn(&Self) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self).await {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "this did not happen: {what}");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}

pub(crate) fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
