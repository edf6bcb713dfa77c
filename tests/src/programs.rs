//! The real binaries. Cargo hands a test the binaries of its own package only, so they are built here, once for each
//! test process: that takes less than a second when they are fresh.
//!
//! Another agent than the one built here, an ARM board's say, is tried by `TWINKEY_AGENT` (its path) and
//! `TWINKEY_AGENT_RUNNER` (the command that starts it, words separated by spaces). `.ci/board` does so.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use tokio::process::Command;

const AGENT_VARIABLE: &str = "TWINKEY_AGENT";
const RUNNER_VARIABLE: &str = "TWINKEY_AGENT_RUNNER";

/// Variables of the caller's that would change what the programs do.
const FOREIGN_VARIABLES: [&str; 3] = ["IOTHUB_CONNECTION_STRING", "RUST_LOG", "RUST_BACKTRACE"];

/// Beginnings of the names of variables that describe the package under test.
const PACKAGE_VARIABLES: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// A command of the operator's program.
pub fn twinkey() -> Command {
    command("twinkey")
}

/// A command of the agent's program.
pub fn twinkey_agent() -> Command {
    let Some(agent) = std::env::var_os(AGENT_VARIABLE) else {
        return command("twinkey-agent");
    };
    assert!(Path::new(&agent).is_file(), "{AGENT_VARIABLE} names no file: {}", agent.display());
    let runner = std::env::var(RUNNER_VARIABLE).unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(program) = words.next() else {
        return prepared(Command::new(agent));
    };
    let mut command = Command::new(program);
    command.args(words).arg(agent);
    prepared(command)
}

fn command(name: &str) -> Command {
    prepared(Command::new(directory().join(name)))
}

fn prepared(mut command: Command) -> Command {
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Where the binaries are: beside the directory of the test's own executable, in the same profile.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let test = std::env::current_exe().expect("the test's own path");
        let directory = test.parent().and_then(Path::parent).expect("TARGET/PROFILE/deps").to_owned();
        build(&directory);
        directory
    })
}

fn build(directory: &Path) {
    let target = directory.parent().expect("the profile's directory lies in the target directory");
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells a test of its package: build scripts that look at it (ring's) would run again each time.
    for (name, _) in std::env::vars_os() {
        if PACKAGE_VARIABLES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .args([
            "build",
            "--quiet",
            "--package",
            "twinkey",
            "--package",
            "twinkey-agent",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the binaries can't be built");
}
