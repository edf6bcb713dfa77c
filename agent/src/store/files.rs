//! The seam between the store and the file system: the five operations that it needs, in an order that it chooses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, Mode, Uid, fchmod, flock};
use zeroize::Zeroizing;

use super::directory;
use super::{LAST_SEEN, StoreError};
use crate::keyring::FILE_LEN_MAX;
use crate::regular_file::{self, Links};

/// Permission bits of the directory's files.
const FILE_MODE: u32 = 0o600;

/// File operations in one directory. Nothing is durable before the matching sync has succeeded.
pub trait Files {
    /// The whole file; `None` when there is none. `InvalidData` where something else than a regular
    /// file stands.
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>>;
    /// Makes or replaces the file.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's content durable; `NotFound` when there is none, `InvalidData` as in `read`.
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
    /// The directory itself. Its lock says that an agent is running.
    handle: File,
    /// Whether this process has the lock, and so may change things.
    is_locked: bool,
}

impl Drop for DiskFiles {
    /// Unlocks, for closing alone does not: a process that was forked a moment ago has a copy of the descriptor, until it
    /// runs its own program, and the lock lives as long as the last copy (flock(2)).
    fn drop(&mut self) {
        if self.is_locked {
            // Where that fails, closing it is what remains.
            let _ = flock(&self.handle, FlockOperation::Unlock);
        }
    }
}

impl DiskFiles {
    /// Makes the directory if it does not exist, checks whose it is, locks it for this process, and
    /// closes it to others.
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        if directory.exists() {
            directory::settle(directory);
        } else {
            directory::create(directory)?;
        }
        let handle = directory::open(directory)?;
        // The directory and no file in it: a card that has gone read-only must not keep the agent from its keys.
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::InUse { path: directory.to_owned() });
            }
            Err(errno) => {
                let path = directory.to_owned();
                return Err(StoreError::File { act: "lock", path, source: errno.into() });
            }
        }
        let files = Self { directory: directory.to_owned(), handle, is_locked: true };
        directory::close_to_others(directory, &files.handle)?;
        Ok(files)
    }

    /// The directory as it is, to read only.
    pub(super) fn look(directory: &Path) -> Result<Self, StoreError> {
        let handle = directory::open(directory)?;
        Ok(Self { directory: directory.to_owned(), handle, is_locked: false })
    }

    /// Whose files are the agent's own: those of this user. To root, who may look after an agent
    /// that runs as another user, also those of the directory's owner.
    fn check_owner(&self, path: &Path, owner: u32) -> io::Result<()> {
        let user = rustix::process::geteuid().as_raw();
        let of_directory = self.handle.metadata()?.uid();
        if owner == user || (user == 0 && owner == of_directory) {
            return Ok(());
        }
        Err(anothers(path, if user == 0 { of_directory } else { user }))
    }

    /// A file that others could read was made so by a person, a backup or a volume's driver. The
    /// keys in it may be known. To stop would make the device go dark and keep no secret, so the
    /// file is closed to others, and the log says what to do.
    fn close_to_others(&self, name: &str, file: &File, mode: u32) {
        if mode & !FILE_MODE == 0 || !self.is_locked {
            return;
        }
        let path = self.path(name);
        let (file_name, mode) = (path.display(), format!("{mode:04o}"));
        match fchmod(file, Mode::from_raw_mode(FILE_MODE)) {
            // There is no key in it.
            _ if name == LAST_SEEN => {}
            Ok(()) => tracing::warn!(
                file = %file_name, mode,
                "this file was open to others than its owner until now, and they could have read the keys in it: renew them, and find out what changes its mode"
            ),
            Err(errno) => tracing::error!(
                file = %file_name, mode, error = %io::Error::from(errno),
                "this file is open to others than its owner, who could have read the keys in it, and its mode can't be changed: see to it, and renew them"
            ),
        }
    }
}

impl Files for DiskFiles {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.path(name);
        let (file, metadata) = match regular_file::open(&path, Links::Refuse) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(with_owner(error, &path)),
        };
        self.check_owner(&path, metadata.uid())?;
        self.close_to_others(name, &file, metadata.mode() & 0o7777);
        let len = metadata.len();
        if len > FILE_LEN_MAX {
            let problem = format!("it has {len} bytes, and at most {FILE_LEN_MAX} are read");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        // In one piece, so that no copy of a key is left behind by a growing buffer; files are replaced, and never grow.
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
        // A new file, never one that a link points to (open(2), O_EXCL).
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        if rustix::process::geteuid().is_root() {
            // root may work for an agent that runs as another user, and it must be able to read the file.
            let owner = self.handle.metadata()?;
            let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
            rustix::fs::fchown(&file, Some(user), Some(group))?;
        }
        file.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        regular_file::open(&self.path(name), Links::Refuse)?.0.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        directory::sync(&self.directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// A file that was restored by another user, root for example, and can't be opened: says whose it
/// has to be.
fn with_owner(error: io::Error, path: &Path) -> io::Error {
    let user = rustix::process::geteuid().as_raw();
    let is_anothers = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() != user);
    if error.kind() == io::ErrorKind::PermissionDenied && is_anothers { anothers(path, user) } else { error }
}

/// The number of the user that it belongs to is left out: in a user namespace, as systemd makes one
/// for the agent, it is not the real one. `-h`, for somebody could put a link there meanwhile.
fn anothers(path: &Path, user: u32) -> io::Error {
    let problem = format!(
        "it belongs to another user, and has to belong to user {user}: look at what it is and where it came from, then run `chown -h {user} {}`",
        path.display()
    );
    io::Error::new(io::ErrorKind::PermissionDenied, problem)
}
