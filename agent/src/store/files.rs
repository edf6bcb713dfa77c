//! The seam between the store and the file system: the five operations that it needs, in an order that it chooses.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, Uid, flock};
use zeroize::Zeroizing;

use super::StoreError;
use crate::keyring::FILE_LEN_MAX;

/// Permission bits of the state directory.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of its files.
const FILE_MODE: u32 = 0o600;

/// File operations in one directory. Nothing is durable before the matching sync has succeeded.
pub trait Files {
    /// The whole file; `None` when there is none.
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>>;
    /// Makes or replaces the file.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's content durable; `NotFound` when there is none.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Moves a file over another one.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Makes renames durable.
    fn sync_directory(&mut self) -> io::Result<()>;
    /// The file's path, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// The real file system.
#[derive(Debug)]
pub struct DiskFiles {
    directory: PathBuf,
    /// The directory itself, whose lock says that an agent is running.
    lock: Option<File>,
}

impl Drop for DiskFiles {
    /// Unlocks, for closing alone does not: a process that was forked a moment ago has a copy of the descriptor, until it
    /// runs its own program, and the lock lives as long as the last copy (flock(2)).
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            // Where that fails, closing it is what remains.
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}

impl DiskFiles {
    /// Makes the directory if it does not exist, checks who can get at it, and locks it for this process.
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |act, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { act, path, source }
        };
        if !directory.exists() {
            let mut builder = DirBuilder::new();
            builder
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(failed("create", directory))?;
        }
        check_directory(directory)?;
        // The directory and no file in it: a card that has gone read-only must not keep the agent from its keys.
        let lock = File::open(directory).map_err(failed("open", directory))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { directory: directory.to_owned(), lock: Some(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: directory.to_owned() }),
            Err(errno) => Err(failed("lock", directory)(errno.into())),
        }
    }

    /// The directory as it is, to read only.
    pub(super) fn look(directory: &Path) -> Result<Self, StoreError> {
        check_directory(directory)?;
        Ok(Self { directory: directory.to_owned(), lock: None })
    }
}

impl Files for DiskFiles {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(with_owner(error, &path)),
        };
        let metadata = file.metadata()?;
        let mode = metadata.mode() & 0o7777;
        if mode & !FILE_MODE != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "mode {mode:04o} lets others than its owner get at the keys: run `chmod {FILE_MODE:04o} {}`",
                    path.display()
                ),
            ));
        }
        // In one piece, so that no copy of a key is left behind by a growing buffer; files are replaced, and never grow.
        let len = metadata.len().min(FILE_LEN_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or_default()));
        file.take(len).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        // One that is left over may have been given other permissions.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        if rustix::process::geteuid().is_root() {
            // root may work for an agent that runs as another user, and it must be able to read the file.
            let owner = fs::metadata(&self.directory)?;
            let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
            rustix::fs::fchown(&file, Some(user), Some(group))?;
        }
        file.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// A file that was restored by another user, root for example, and can't be opened: says whose it has to be. The number of the user
/// that it belongs to is left out: in a user namespace, as systemd makes one for the agent, it is not the real one.
fn with_owner(error: io::Error, path: &Path) -> io::Error {
    let user = rustix::process::geteuid().as_raw();
    let is_anothers = fs::metadata(path).is_ok_and(|metadata| metadata.uid() != user);
    if error.kind() != io::ErrorKind::PermissionDenied || !is_anothers {
        return error;
    }
    let problem = format!(
        "it belongs to another user, and the agent runs as user {user}: run `chown {user} {}`",
        path.display()
    );
    io::Error::new(error.kind(), problem)
}

fn check_directory(directory: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(directory).map_err(|source| StoreError::File {
        act: "open the state directory",
        path: directory.to_owned(),
        source,
    })?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && user != 0 {
        return Err(StoreError::Owner { path: directory.to_owned(), owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Permissions { path: directory.to_owned(), mode, wanted: DIRECTORY_MODE });
    }
    Ok(())
}
