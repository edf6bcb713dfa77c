//! The packages under test, and the systems that they are installed on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use twinkey_tests::gateway::text;

use crate::machine::{Machine, script};

/// The directory with the package that `packaging/deb` made.
const PACKAGES: &str = "TWINKEY_PACKAGES";
/// `required`: what can't be tried here fails.
const REQUIRED: &str = "TWINKEY_SYSTEMD";
/// How the script that makes root file systems says that it can't do so here.
const LACKS_SOMETHING: i32 = 77;

/// The systems, the newest first, and the version of their systemd.
pub(crate) const SUITES: [(&str, u32); 2] = [("trixie", 257), ("bookworm", 252)];

/// What machines find in `/packages`.
#[derive(Debug)]
pub(crate) struct Packages {
    directory: PathBuf,
}

/// The package as it was made.
pub(crate) const PACKAGE: &str = "/packages/agent.deb";
/// The same with a higher version.
pub(crate) const NEWER: &str = "/packages/newer.deb";
/// The same for a machine of another kind.
pub(crate) const FOREIGN: &str = "/packages/foreign.deb";

/// A machine that has booted, where the packages are; `None`, and words on standard error, where that is not possible.
pub(crate) async fn machine(suite: &str) -> Option<Machine> {
    let packages = packages()?;
    let mut machine = Machine::new(&packages.root(suite));
    machine.boot(&[&packages.bound()]).await;
    Some(machine)
}

/// The packages; `None`, and words on standard error, where they can't be tried.
pub(crate) fn packages() -> Option<&'static Packages> {
    static FOUND: OnceLock<Result<Packages, String>> = OnceLock::new();
    match FOUND.get_or_init(find) {
        Ok(packages) => Some(packages),
        Err(why) => {
            assert!(std::env::var_os(REQUIRED).is_none_or(|value| value != "required"), "{why}");
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

impl Packages {
    /// Where a suite's root file system is.
    pub(crate) fn root(&self, suite: &str) -> PathBuf {
        self.directory.join("..").join(suite)
    }

    /// What makes a machine see the packages.
    pub(crate) fn bound(&self) -> String {
        format!("--bind-ro={}:/packages", self.directory.display())
    }
}

fn find() -> Result<Packages, String> {
    let Some(from) = std::env::var_os(PACKAGES).map(PathBuf::from) else {
        return Err(format!(
            "no package to install: run `packaging/deb amd64`, and name its directory in {PACKAGES}"
        ));
    };
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(from);
    let made = Command::new(script("root")).args(SUITES.map(|(suite, _)| suite)).output().unwrap();
    match made.status.code() {
        Some(0) => {}
        Some(LACKS_SOMETHING) => return Err(text(&made.stderr).replace("SKIPPED: ", "").trim().to_owned()),
        Some(_) | None => panic!("tests/systemd/root fails: {}", text(&made.stderr)),
    }
    let ours = run(Command::new("dpkg").arg("--print-architecture"));
    let package = fs::read_dir(&from)
        .map_err(|error| format!("{} can't be read: {error}", from.display()))?
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(&format!("_{ours}.deb")))
        .max()
        .ok_or_else(|| format!("{} has no package for {ours}: run `packaging/deb {ours}`", from.display()))?;
    // The place of the root file systems, too.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/systemd/packages");
    fs::create_dir_all(&directory).unwrap();
    fs::copy(&package, directory.join("agent.deb")).unwrap();
    repack(&package, &directory.join("newer.deb"), "s/^Version: .*/&+newer/");
    let foreign = if ours == "arm64" { "amd64" } else { "arm64" };
    repack(
        &package,
        &directory.join("foreign.deb"),
        &format!("s/^Architecture: .*/Architecture: {foreign}/"),
    );
    Ok(Packages { directory })
}

/// The same package with another control file: what dpkg does with versions and architectures hangs on nothing else.
fn repack(from: &Path, to: &Path, edit: &str) {
    let unpacked = tempfile::tempdir().unwrap();
    let tree = unpacked.path().join("tree");
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(from).arg(&tree));
    run(Command::new("sed").args(["-i", edit]).arg(tree.join("DEBIAN/control")));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(&tree).arg(to));
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}
