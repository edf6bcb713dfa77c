//! One runner at a time for a ledger.
//!
//! A lock on a file beside the ledger. The kernel gives it back when its holder ends, however that happens.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::files;

/// Attempts to take it: whoever only looks whether there is a runner has it for a moment.
const ATTEMPTS_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_millis(30);
/// Longest text of the file: a process id.
const TEXT_LEN_MAX: u64 = 20;

/// Held as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// # Errors
    /// Another process has it; the error names it.
    pub(crate) fn take(ledger: &Path) -> Result<Self, Failure> {
        let path = beside(ledger)?;
        let mut file = open(&path)?;
        if !try_lock(&file, &path, ATTEMPTS_MAX)? {
            let who = pid(&file).map_or("another process".to_owned(), |pid| format!("process {pid}"));
            return Err(Failure::failed(format!("{who} is at work on the ledger {}", ledger.display())).next(
                "follow it with `twinkey rollout status`, or stop it with `twinkey rollout pause`, then repeat",
            ));
        }
        if !is_lock(&file) {
            let what = format!("{} is not the lock of a ledger, and was not touched", path.display());
            return Err(
                Failure::failed(what).next("look at what it is, and move it away; or name another --ledger")
            );
        }
        let fail = |e| Failure::failed(format!("write {}: {e}", path.display()));
        file.set_len(0).and_then(|()| file.rewind()).map_err(fail)?;
        write!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file })
    }

    /// The process that has it, if one has; 0 if it did not say which.
    pub(crate) fn holder(ledger: &Path) -> Result<Option<u32>, Failure> {
        let path = beside(ledger)?;
        if !path.exists() {
            return Ok(None);
        }
        let file = open(&path)?;
        Ok(if try_lock(&file, &path, 1)? { None } else { Some(pid(&file).unwrap_or(0)) })
    }
}

/// The file's name does not depend on how the ledger was called.
fn beside(ledger: &Path) -> Result<PathBuf, Failure> {
    let fail = |why: String| Failure::usage(format!("--ledger {}: {why}", ledger.display()));
    let real = match ledger.canonicalize() {
        Ok(real) => real,
        Err(_) => {
            let name = ledger.file_name().ok_or_else(|| fail("it names no file".to_owned()))?;
            let dir = ledger.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            dir.canonicalize().map_err(|e| fail(format!("its directory can't be entered: {e}")))?.join(name)
        }
    };
    let mut name = real.into_os_string();
    name.push(".lock");
    Ok(name.into())
}

fn open(path: &Path) -> Result<File, Failure> {
    files::open_lock(path).map_err(|e| {
        Failure::failed(format!("open {}: {e}", path.display()))
            .next("look at what is there; choose a ledger in a directory where you, and only you, may write")
    })
}

fn try_lock(file: &File, path: &Path, attempts: u32) -> Result<bool, Failure> {
    for attempt in 1..=attempts {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) if attempt == attempts => break,
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(PAUSE),
            Err(error) => {
                return Err(Failure::failed(format!("lock {}: {error}", path.display()))
                    .next("choose a ledger on a local disk"));
            }
        }
    }
    Ok(false)
}

/// Whether it is empty or holds a process id. Any other file, which somebody has given this name,
/// is not to be cut off.
fn is_lock(mut file: &File) -> bool {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(TEXT_LEN_MAX + 1).read_to_end(&mut text));
    read.is_ok() && text.len() as u64 <= TEXT_LEN_MAX && text.iter().all(u8::is_ascii_digit)
}

fn pid(mut file: &File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(TEXT_LEN_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_hears_who_has_it_and_the_end_of_the_first_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("a.ledger");
        assert_eq!(Lock::holder(&ledger).unwrap(), None);
        let first = Lock::take(&ledger).unwrap();
        let refused = Lock::take(&ledger).unwrap_err();
        assert!(refused.what.contains(&format!("process {} ", std::process::id())), "{}", refused.what);
        assert_eq!(Lock::holder(&ledger).unwrap(), Some(std::process::id()));
        drop(first);
        assert_eq!(Lock::holder(&ledger).unwrap(), None);
        Lock::take(&ledger).unwrap();
    }

    #[test]
    fn what_stands_in_the_place_of_the_lock_is_never_cut_off() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (ledger, precious) = (dir.path().join("a.ledger"), dir.path().join("precious"));
        let place = dir.path().join("a.ledger.lock");
        for put in [
            |from: &Path, to: &Path| symlink(from, to),
            |from: &Path, to: &Path| std::fs::hard_link(from, to),
        ] {
            std::fs::write(&precious, "all that I have").unwrap();
            put(&precious, &place).unwrap();
            let refused = Lock::take(&ledger).map(drop).unwrap_err();
            assert!(refused.what.contains("a.ledger.lock"), "{}", refused.what);
            assert!(refused.next.is_some());
            let _ = Lock::holder(&ledger);
            assert_eq!(std::fs::read_to_string(&precious).unwrap(), "all that I have");
            std::fs::remove_file(&place).unwrap();
        }
        // What an earlier runner left behind is its own.
        std::fs::write(&place, "4194304").unwrap();
        drop(Lock::take(&ledger).unwrap());
        assert_eq!(std::fs::read_to_string(&place).unwrap(), std::process::id().to_string());
    }

    #[test]
    fn another_name_of_the_same_ledger_is_the_same_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, link) = (dir.path().join("a.ledger"), dir.path().join("b.ledger"));
        std::fs::write(&ledger, "").unwrap();
        std::os::unix::fs::symlink(&ledger, &link).unwrap();
        let _first = Lock::take(&ledger).unwrap();
        assert!(Lock::take(&link).is_err());
    }
}
