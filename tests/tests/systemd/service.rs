//! The agent as a service of a machine, beside a hub.

use serde_json::Value;
use twinkey_tests::gateway::{connection_string, text};
use twinkey_tests::history::Span;
use twinkey_tests::hub::{Keys, TestHub};
use twinkey_tests::waiting::until;

use crate::machine::Machine;
use crate::packages::{self, PACKAGE};

pub(crate) const DEVICE: &str = "gateway-1";
pub(crate) const UNIT: &str = "twinkey-agent.service";
/// What makes the first key ring.
pub(crate) const FIRST: &str = "twinkey-provision.service";
/// Where a plain credential lies.
pub(crate) const CREDENTIAL: &str = "/etc/credstore/twinkey.connection-string";
/// The key-ring files.
pub(crate) const KEY_RINGS: [&str; 2] = ["/var/lib/twinkey/key-ring.a", "/var/lib/twinkey/key-ring.b"];

/// A gateway on which the package is installed, and the hub that it talks to.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) machine: Machine,
    pub(crate) hub: TestHub,
    pub(crate) keys: Keys,
}

impl Board {
    /// Installs the package and writes the configuration, and gives no connection string.
    pub(crate) async fn installed(suite: &str) -> Option<Self> {
        Some(Self::install_on(packages::machine(suite).await?).await)
    }

    /// The same on a machine that has booted.
    pub(crate) async fn install_on(machine: Machine) -> Self {
        let hub = TestHub::start().await;
        let keys = hub.create(DEVICE).await;
        let board = Self { machine, hub, keys };
        board.dpkg(&["-i", PACKAGE]);
        board.configure();
        board
    }

    /// The same with a credential, started, and connected with its primary key.
    pub(crate) async fn connected(suite: &str) -> Option<Self> {
        let board = Self::installed(suite).await?;
        board.give_credential();
        board.systemctl(&["start", UNIT]);
        board.hub.until_connected(DEVICE, "primary").await;
        Some(board)
    }

    /// As somebody does who edits the file that the package has brought.
    fn configure(&self) {
        let (mqtts, https) = (self.hub.mqtts_port(), self.hub.https_port());
        let text = format!(
            "[hub]\nca_file = \"/etc/twinkey/ca.pem\"\nsystem_roots = false\nport = {mqtts}\nhttps_port = {https}\n\n\
             [rotation]\npropagation_window_secs = 2\n\
             # For offers that tests write by hand.\nallow_unsealed = true\nallow_unauthenticated = true\n"
        );
        self.machine.write("/etc/twinkey/agent.toml", "644", text.as_bytes());
        self.machine.write("/etc/twinkey/ca.pem", "644", &std::fs::read(self.hub.ca_file()).unwrap());
    }

    /// The device's connection string.
    pub(crate) fn connection_string(&self) -> String {
        connection_string("localhost", DEVICE, &self.keys.primary)
    }

    /// Puts the connection string where the service finds it.
    pub(crate) fn give_credential(&self) {
        self.machine.write(CREDENTIAL, "600", self.connection_string().as_bytes());
    }

    /// A setting of the service's that somebody adds.
    pub(crate) fn set(&self, settings: &str) {
        let text = format!("[Service]\n{settings}\n");
        self.machine.write(&format!("/etc/systemd/system/{UNIT}.d/test.conf"), "644", text.as_bytes());
        self.systemctl(&["daemon-reload"]);
    }

    pub(crate) fn systemctl(&self, words: &[&str]) -> String {
        self.machine.run(&[&["systemctl"], words].concat())
    }

    pub(crate) fn dpkg(&self, words: &[&str]) -> String {
        self.machine.run(&[&["dpkg"], words].concat())
    }

    /// A property of the service.
    pub(crate) fn property(&self, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, UNIT])
    }

    /// Waits until a property is as wished.
    pub(crate) async fn until_property(&self, name: &str, wish: impl Fn(&str) -> bool) -> String {
        until(&format!("the service's {name} is as wished"), async || {
            Some(self.property(name)).filter(|value| wish(value))
        })
        .await
    }

    /// The service's main process, as the machine counts.
    pub(crate) fn pid(&self) -> String {
        self.property("MainPID")
    }

    /// What the service, and systemd about it, have said.
    pub(crate) fn journal(&self) -> String {
        self.machine.run(&["journalctl", "--no-pager", "--output", "cat", "--unit", UNIT, "--unit", FIRST])
    }

    /// Waits until they have said `words`.
    pub(crate) async fn until_said(&self, words: &str) {
        until(&format!("the journal has `{words}`"), async || self.journal().contains(words).then_some(()))
            .await;
    }

    /// What `systemctl status` shows; it fails for a service that does.
    pub(crate) fn shown(&self) -> String {
        text(&self.machine.try_run(&["systemctl", "status", "--no-pager", UNIT]).stdout)
    }

    /// What `twinkey-agent status` says.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.machine.run(&["twinkey-agent", "status", "--json"])).unwrap()
    }

    /// Waits for a live connection that began after `earlier`.
    pub(crate) async fn until_connected_after(&self, earlier: &Span) -> Span {
        self.hub.until_live(DEVICE, "connected again", |span| span.id > earlier.id).await
    }

    /// The connection that was accepted last.
    pub(crate) async fn last(&self) -> Span {
        self.hub.history(DEVICE).await.connections.last().expect("it has been connected").clone()
    }

    /// The connection that is up.
    pub(crate) async fn live(&self) -> Span {
        self.hub.until_live(DEVICE, "connected", |_| true).await
    }

    /// Has the operator renew a key; the device must not be dark for a moment.
    pub(crate) async fn renew(&self, slot: &str) {
        let before = self.live().await;
        self.hub.until_report(DEVICE, "the first report", |report| report.active.is_some()).await;
        let output = self.hub.renewal(DEVICE, slot).output().await.unwrap();
        let outcomes: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{outcomes:#} {}", text(&output.stderr));
        assert_eq!(outcomes[0]["outcome"], "renewed", "{outcomes:#}");
        self.hub.until_connected(DEVICE, slot).await;
        let dark_ms = self.hub.history(DEVICE).await.longest_dark_ms(before.connected_ms);
        assert_eq!(dark_ms, 0.0, "{dark_ms} ms without a connection");
    }

    /// The fingerprint of the key that the device lives on, as the running agent says.
    pub(crate) fn key_in_use(&self) -> String {
        let status = self.status();
        assert_eq!(status["running"], true, "{status:#}");
        status["connection"]["key"].as_str().unwrap_or_default().to_owned()
    }

    /// The key-ring files that exist, byte for byte.
    pub(crate) fn key_rings(&self) -> Vec<(&'static str, Vec<u8>)> {
        let exists = |path: &&str| self.machine.try_run(&["test", "-e", path]).status.success();
        KEY_RINGS.into_iter().filter(exists).map(|path| (path, self.machine.read(path))).collect()
    }
}
