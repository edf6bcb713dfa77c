//! Files of the data directory: private to their owner, and never seen half written.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::EmulatorError;

/// Makes the directory if it is missing, and returns its absolute path: what `hub.json` names has to be found from
/// everywhere.
pub(crate) fn create_dir(dir: &Path) -> Result<PathBuf, EmulatorError> {
    fs::create_dir_all(dir).and_then(|()| fs::canonicalize(dir)).map_err(|source| at(dir, source))
}

/// The data directory's lock: a second hub there would take hub.json away.
#[derive(Debug)]
pub(crate) struct DirLock(fs::File);

impl Drop for DirLock {
    /// Unlocks, for closing alone does not: a process that was forked a moment ago has a copy of the descriptor, until it
    /// runs its own program, and the lock lives as long as the last copy (flock(2)).
    fn drop(&mut self) {
        // Where that fails, closing it is what remains.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the directory for as long as the returned lock lives.
pub(crate) fn lock(dir: &Path) -> Result<DirLock, EmulatorError> {
    let file = fs::File::open(dir).map_err(|source| at(dir, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EmulatorError::InUse { path: dir.to_owned() }),
        Err(errno) => Err(at(dir, errno.into())),
    }
}

/// Reads a file kept from an earlier start; `None` if there is none.
pub(crate) fn read_kept(path: &Path) -> Result<Option<String>, EmulatorError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(at(path, source)),
    }
}

/// Writes `text` beside `path` with mode 0600 and renames it into place.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), EmulatorError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    remove(beside)?;
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(beside, path)
    };
    write().map_err(|source| at(path, source))
}

/// Removes a file; it is no error if there is none.
pub(crate) fn remove(path: &Path) -> Result<(), EmulatorError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(at(path, source)),
    }
}

fn at(path: &Path, source: io::Error) -> EmulatorError {
    EmulatorError::DataDir { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_gone_is_no_longer_held_by_a_copy_of_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let _as_a_forked_process_has_it = first.0.try_clone().unwrap();
        assert!(matches!(lock(dir.path()), Err(EmulatorError::InUse { .. })));
        drop(first);
        lock(dir.path()).unwrap();
    }
}
