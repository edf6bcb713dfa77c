//! The Python programs: where they are, how they are started, told and listened to.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use twinkey_tests::waiting::PATIENCE;

/// Where the environment is, if not in the target directory.
const PLACE: &str = "TWINKEY_INTEROP_VENV";
/// With the value `required`, a missing environment fails the tests.
const DEMAND: &str = "TWINKEY_INTEROP";

/// The environment's Python, if `tests/interop/venv` has made it from the present list of packages.
pub(crate) fn interpreter() -> Option<PathBuf> {
    let target = || directory().join("../../target/interop-venv");
    let venv = std::env::var_os(PLACE).map_or_else(target, PathBuf::from);
    let list = |directory: &Path| std::fs::read(directory.join("requirements.txt")).ok();
    if list(&venv).is_some() && list(&venv) == list(&directory()) {
        return Some(venv.join("bin/python"));
    }
    let required = std::env::var(DEMAND).is_ok_and(|value| value == "required");
    assert!(
        !required,
        "{DEMAND}=required, but {} is not there or outdated: run tests/interop/venv",
        venv.display()
    );
    // Not by `eprintln`, whose lines are not shown for a test that passes.
    let line = "SKIPPED: the official SDKs are not installed here; tests/interop/venv does that\n";
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// One program at work. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    events: VecDeque<Value>,
}

/// What an SDK raised.
#[derive(Debug)]
pub(crate) struct Raised {
    /// The exception's class, and those of its causes.
    pub(crate) classes: Vec<String>,
    /// What these say.
    pub(crate) texts: Vec<String>,
    /// Where it came of an HTTPS answer: the status, the header `iothub-errorcode` and the body.
    pub(crate) status: Value,
    pub(crate) code: Value,
    pub(crate) body: Value,
}

impl Program {
    /// Starts the program `name` of `tests/interop`.
    pub(crate) fn start(python: &Path, name: &str) -> Self {
        let mut child = Command::new(python)
            .arg(directory().join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", python.display()));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, stdin, stdout, events: VecDeque::new() }
    }

    /// Has it do something; what the SDK returned.
    pub(crate) async fn ask(&mut self, what: &str, with: Value) -> Value {
        self.try_to(what, with).await.unwrap_or_else(|raised| panic!("{what} raised {raised:?}"))
    }

    /// The same for what has no arguments.
    pub(crate) async fn does(&mut self, what: &str) -> Value {
        self.ask(what, json!({})).await
    }

    /// Has it do something that the hub won't let it do; what the SDK raised.
    pub(crate) async fn fails_to(&mut self, what: &str, with: Value) -> Raised {
        match self.try_to(what, with).await {
            Ok(value) => panic!("{what} was to fail, but returned {value}"),
            Err(raised) => raised,
        }
    }

    async fn try_to(&mut self, what: &str, with: Value) -> Result<Value, Raised> {
        self.begin(what, with).await;
        self.finish().await
    }

    /// Tells it to do something; `finish` waits for the answer.
    pub(crate) async fn begin(&mut self, what: &str, with: Value) {
        let mut line = with;
        line["do"] = json!(what);
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The answer to what was begun.
    pub(crate) async fn finish(&mut self) -> Result<Value, Raised> {
        timeout(PATIENCE, self.answer()).await.expect("the program answers in time")
    }

    async fn answer(&mut self) -> Result<Value, Raised> {
        loop {
            let mut words = self.listen("an answer").await;
            if words.get("event").is_some() {
                self.events.push_back(words);
            } else if words.get("raised").is_some() {
                return Err(Raised {
                    classes: serde_json::from_value(words["raised"].take()).unwrap(),
                    texts: serde_json::from_value(words["texts"].take()).unwrap(),
                    status: words["status"].take(),
                    code: words["code"].take(),
                    body: words["body"].take(),
                });
            } else {
                return Ok(words["answer"].take());
            }
        }
    }

    /// Waits until the SDK tells of `name` by itself, and returns with what. Events of other names wait.
    pub(crate) async fn event(&mut self, name: &str) -> Value {
        // Of the whole, since other events may come without end.
        let told = timeout(PATIENCE, self.told(name)).await;
        told.unwrap_or_else(|_| panic!("the SDK did not tell of {name} within {} s", PATIENCE.as_secs()))
    }

    async fn told(&mut self, name: &str) -> Value {
        loop {
            let told = self.events.iter().position(|words| words["event"] == name);
            if let Some(mut words) = told.and_then(|at| self.events.remove(at)) {
                return words["value"].take();
            }
            let words = self.listen(name).await;
            assert!(words.get("event").is_some(), "an answer to nothing: {words}");
            self.events.push_back(words);
        }
    }

    async fn listen(&mut self, what: &str) -> Value {
        let line = timeout(PATIENCE, self.stdout.next_line())
            .await
            .unwrap_or_else(|_| panic!("the program did not tell of {what} within {} s", PATIENCE.as_secs()));
        let line =
            line.unwrap().unwrap_or_else(|| panic!("the program ended while it was to tell of {what}"));
        serde_json::from_str(&line).unwrap()
    }
}
