//! A hub, and SDKs that know how to reach it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use crate::python::{Program, Raised, interpreter};

/// `twinkey emulate`, and a Python that has the SDKs.
pub(crate) struct World {
    pub(crate) hub: TestHub,
    python: PathBuf,
}

impl World {
    /// Waits until the hub has read a goodbye: the SDK does not.
    pub(crate) async fn until_gone(&self, id: &str) {
        let gone = async || self.hub.history(id).await.live().is_none().then_some(());
        until("the hub sees it go", gone).await;
    }

    /// `None` where the SDKs are not installed, which has been said then.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with arguments for `twinkey emulate`.
    pub(crate) async fn start_with(args: &[&str]) -> Option<Self> {
        let python = interpreter()?;
        Some(Self { hub: TestHub::start_program(args).await, python })
    }

    /// The Python that has the SDKs.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// Creates the identity and an SDK client for it, which is not connected.
    pub(crate) async fn device(&self, identity: &str) -> Program {
        let key = self.hub.create(identity).await.primary;
        self.client(identity, &key, json!({})).await
    }

    /// The same, connected.
    pub(crate) async fn connected(&self, identity: &str) -> Program {
        let mut device = self.device(identity).await;
        device.does("connect").await;
        device
    }

    /// An SDK client with this key and with `options`, which are the SDK's own.
    pub(crate) async fn client(&self, identity: &str, key: &str, options: Value) -> Program {
        let (device, module) = match identity.split_once('/') {
            None => (identity, String::new()),
            Some((device, module)) => (device, format!(";ModuleId={module}")),
        };
        let mut settings = options;
        settings["connection_string"] =
            json!(format!("HostName=localhost;DeviceId={device}{module};SharedAccessKey={key}"));
        self.made("create", settings).await
    }

    /// An SDK client with one token that it can't renew.
    pub(crate) async fn client_with_token(&self, device: &str, key: &str, ttl_secs: u64) -> Program {
        let settings = json!({"device": device, "key": key, "ttl": ttl_secs, "connection_retry": false});
        self.made("create_with_token", settings).await
    }

    async fn made(&self, how: &str, mut settings: Value) -> Program {
        self.complete(&mut settings);
        let mut program = Program::start(&self.python, "device.py");
        program.ask(how, settings).await;
        program
    }

    /// Adds where the hub is and what to trust.
    fn complete(&self, settings: &mut Value) {
        if settings.get("ca").is_none() {
            settings["ca"] = json!(std::fs::read_to_string(self.hub.ca_file()).unwrap());
        }
        settings["mqtts"] = json!(self.hub.mqtts_port());
        settings["https"] = json!(self.hub.https_port());
    }

    /// Registers with the provisioning service by the SDK; the outcome as it tells it.
    pub(crate) async fn register(&self, id: &str, key: Value, options: Value) -> Result<Value, Raised> {
        let mut settings = options;
        settings["host"] = json!("localhost");
        settings["scope"] = json!(self.hub.id_scope());
        settings["id"] = json!(id);
        settings.as_object_mut().unwrap().extend(key.as_object().unwrap().clone());
        self.complete(&mut settings);
        let mut program = Program::start(&self.python, "provisioning.py");
        program.begin("register", settings).await;
        program.finish().await
    }

    /// A back end that may do everything.
    pub(crate) async fn service(&self) -> Service {
        self.service_with(self.hub.service_connection_string()).await
    }

    /// A back end with this connection string, which tries nothing twice: tests want to see the first answer.
    pub(crate) async fn service_with(&self, connection_string: &str) -> Service {
        self.log_in(connection_string, false).await
    }

    /// A back end that may do everything, and tries again as the SDK does by default.
    pub(crate) async fn patient_service(&self) -> Service {
        self.log_in(self.hub.service_connection_string(), true).await
    }

    async fn log_in(&self, connection_string: &str, patient: bool) -> Service {
        let mut program = Program::start(&self.python, "service.py");
        let login =
            json!({"connection_string": connection_string, "ca": self.hub.ca_file(), "patient": patient});
        program.ask("log_in", login).await;
        Service { program }
    }
}

/// The service SDK's managers.
pub(crate) struct Service {
    program: Program,
}

impl Service {
    /// Calls `manager.name(*args)`.
    pub(crate) async fn call(&mut self, manager_and_name: &str, args: Value) -> Value {
        self.program.ask("call", words(manager_and_name, args)).await
    }

    /// Calls what the hub is to refuse.
    pub(crate) async fn refused(&mut self, manager_and_name: &str, args: Value) -> Raised {
        self.program.fails_to("call", words(manager_and_name, args)).await
    }
}

fn words(manager_and_name: &str, args: Value) -> Value {
    let (manager, name) = manager_and_name.split_once('.').unwrap();
    json!({"manager": manager, "name": name, "args": args})
}
