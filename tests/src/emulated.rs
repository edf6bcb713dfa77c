//! The local hub as a process: the real `twinkey emulate`, which can be killed.

use std::path::Path;
use std::process::Stdio;

use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use twinkey_emulator::Ready;

use crate::hub::{Answer, service_token, trusting};
use crate::programs;
use crate::waiting::PATIENCE;

/// A running `twinkey emulate`. Dropping it kills it.
#[derive(Debug)]
pub struct EmulatedHub {
    child: Child,
    caller: Caller,
}

/// A caller of its REST interface.
#[derive(Debug, Clone)]
pub struct Caller {
    http: reqwest::Client,
    base: String,
    authorization: String,
}

/// The command that runs a hub.
pub fn emulate() -> Command {
    let mut command = programs::twinkey();
    command.arg("emulate").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a hub, and returns once it listens. Dropping the process kills it.
pub async fn launch(command: &mut Command) -> (Child, Ready) {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("the hub starts").unwrap();
    let mut stderr = child.stderr.take().unwrap();
    if line.is_empty() {
        let mut words = String::new();
        stderr.read_to_string(&mut words).await.unwrap();
        panic!("the hub does not start: {words}");
    }
    // Nobody reads what it says, and the hub must not wait for that.
    tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
    (child, serde_json::from_str(&line).unwrap())
}

impl EmulatedHub {
    /// Starts a hub, and returns once it listens.
    pub async fn start(dir: &Path) -> Self {
        let (child, ready) = launch(emulate().arg("--data-dir").arg(dir)).await;
        let caller = Caller {
            http: trusting(&ready.ca_file),
            base: format!("https://{}", ready.https),
            authorization: service_token(&ready.service_connection_string, &ready.host_name),
        };
        Self { child, caller }
    }

    /// A caller of its own for another task.
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Caller {
    /// What calls the hub at `base`, `https://HOST:PORT`.
    pub(crate) fn new(http: reqwest::Client, base: String, authorization: String) -> Self {
        Self { http, base, authorization }
    }

    /// A request to an operator's endpoint, with its query; `None` if no answer came.
    ///
    /// # Panics
    /// If the hub refuses it.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Value) -> Option<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let text = response.text().await.ok()?;
        assert!(status.is_success(), "{path}: {status} {text}");
        Some(serde_json::from_str(&text).unwrap())
    }

    /// A REST call; `None` if no answer came.
    pub async fn call(&self, method: Method, path: &str, etag: Option<&str>, body: Value) -> Option<Answer> {
        let url = format!("{}{path}?api-version=2021-04-12", self.base);
        let mut request = self.http.request(method, url).header("authorization", &self.authorization);
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let text = response.text().await.ok()?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Some(Answer { status, body })
    }
}
