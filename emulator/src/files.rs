//! Files of the data directory: private to their owner, and never seen half written.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::EmulatorError;

/// Makes the directory if it is missing, and returns its absolute path: what `hub.json` names has to be found from
/// everywhere.
pub(crate) fn create_dir(dir: &Path) -> Result<PathBuf, EmulatorError> {
    fs::create_dir_all(dir).and_then(|()| fs::canonicalize(dir)).map_err(|source| at(dir, source))
}

/// Locks the directory for as long as the returned file is open.
pub(crate) fn lock(dir: &Path) -> Result<fs::File, EmulatorError> {
    let file = fs::File::open(dir).map_err(|source| at(dir, source))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
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
