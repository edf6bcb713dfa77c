//! A small file system of its own, which can be filled.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A mounted tmpfs. Dropping it unmounts it.
#[derive(Debug)]
pub struct Mounted {
    directory: TempDir,
}

impl Mounted {
    /// A new one of this `size` (tmpfs(5): `16k`, `4m`); `None`, and words on standard error, where mounting is not allowed.
    pub fn new(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let is_mounted =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "twinkey-test"]), &directory);
        if !is_mounted {
            eprintln!("SKIPPED: no file system can be mounted here; that takes root");
        }
        is_mounted.then_some(Self { directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).unwrap();
        while filler.write_all(&[0; 512]).is_ok() {}
        assert!(fs::write(self.path().join("more"), [0; 4_096]).is_err(), "the disk is not full");
        let _ = fs::remove_file(self.path().join("more"));
    }

    /// Takes the filler away.
    pub fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }

    /// `ro` or `rw`.
    pub fn remount(&self, mode: &str) {
        assert!(run(Command::new("mount").args(["-o", &format!("remount,{mode}")]), &self.directory));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy"), &self.directory);
    }
}

fn run(command: &mut Command, directory: &TempDir) -> bool {
    command.arg(directory.path()).output().is_ok_and(|output| output.status.success())
}
