//! The only module that touches the disk: the key ring, durable across power cuts.
//!
//! Two files take turns, `key-ring.a` and `key-ring.b`. A write goes to a temporary file, which is synced, renamed
//! over the *older* of the two, and the directory is synced. The newer file is never touched, so at every instant
//! at least one whole key ring is on disk, and a damaged newest one leaves its predecessor to fall back to.

mod directory;
mod files;

use std::path::{Path, PathBuf};
use std::{fmt, io};

use twinkey_rotation::Ring;

pub use files::{DiskFiles, Files};

use crate::keyring::{DamagedKeyRing, KeyRing};

/// The two files that take turns.
const NAMES: [&str; 2] = ["key-ring.a", "key-ring.b"];
/// Where a write begins.
const TEMPORARY: &str = "key-ring.new";
/// The last time that was seen, in decimal Unix seconds, twice, so that damage shows: a floor for the clock of a board
/// without a battery.
const LAST_SEEN: &str = "last-seen";
/// Where a write of it begins.
const LAST_SEEN_TEMPORARY: &str = "last-seen.new";

/// The state directory, locked for this process.
pub struct Store<F = DiskFiles> {
    files: F,
    /// The file that the next write replaces.
    next: &'static str,
}

/// What the state directory held.
pub struct Loaded {
    /// The newest whole key ring.
    pub key_ring: KeyRing,
    /// The ring in the other file, where that is whole: what is left if a power cut undoes the newest write.
    pub predecessor: Option<Ring>,
    /// A file that could not be used, and why; its predecessor is in use.
    pub damaged: Option<(&'static str, DamagedKeyRing)>,
}

impl<F: Files> Store<F> {
    /// A store over `files`.
    pub fn new(files: F) -> Self {
        Self { files, next: NAMES[0] }
    }

    /// Reads the newest whole key ring; `None` when there is no key-ring file at all.
    pub fn load(&mut self) -> Result<Option<Loaded>, StoreError> {
        let mut newest: Option<(KeyRing, &'static str)> = None;
        let mut predecessor = None;
        let mut damaged = Vec::new();
        for name in NAMES {
            match self.read(name)? {
                Some(Ok(key_ring)) => {
                    let is_newer =
                        newest.as_ref().is_none_or(|(known, _)| key_ring.ring.sequence > known.ring.sequence);
                    if is_newer {
                        predecessor = newest.map(|(known, _)| known.ring);
                        newest = Some((key_ring, name));
                    } else {
                        predecessor = Some(key_ring.ring);
                    }
                }
                // It may hold the only keys that still work, and the next write would replace it.
                Some(Err(source @ DamagedKeyRing::NewerFormat { .. })) => {
                    return Err(StoreError::Newer { path: self.files.path(name), source });
                }
                Some(Err(error)) => damaged.push((name, error)),
                None => {}
            }
        }
        match newest {
            Some((key_ring, name)) => {
                self.next = if name == NAMES[0] { NAMES[1] } else { NAMES[0] };
                Ok(Some(Loaded { key_ring, predecessor, damaged: damaged.pop() }))
            }
            None if damaged.is_empty() => Ok(None),
            None => {
                let files = damaged
                    .iter()
                    .map(|(name, error)| format!("{}: {error}", self.files.path(name).display()));
                Err(StoreError::NoneUsable { files: files.collect::<Vec<_>>().join("; ") })
            }
        }
    }

    /// A bad block is damage like any other, and so is what is no regular file: the other file may
    /// be whole. Whose a file is, a person has to say.
    fn read(&self, name: &str) -> Result<Option<Result<KeyRing, DamagedKeyRing>>, StoreError> {
        match self.files.read(name) {
            Ok(bytes) => Ok(bytes.map(|bytes| KeyRing::decode(&bytes))),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(self.failed("read", name, source))
            }
            Err(error) => Ok(Some(Err(DamagedKeyRing::Unreadable { problem: error.to_string() }))),
        }
    }

    /// Makes what [`load`](Self::load) found durable: a process that was killed between a rename and the sync of the
    /// directory leaves a file that can be read now and can still be gone after a power cut.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        let mut settled = Ok(());
        for name in NAMES {
            match self.files.sync(name) {
                Ok(()) => {}
                // What is no file holds no key ring that could be lost.
                Err(source)
                    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {}
                Err(source) => settled = Err(self.failed("sync", name, source)),
            }
        }
        self.files
            .sync_directory()
            .map_err(|source| self.failed("sync the directory of", NAMES[0], source))
            .and(settled)
    }

    /// Writes `key_ring` with `ring` in it. When this gives `Ok`, the ring survives a power cut.
    pub fn save(&mut self, key_ring: &KeyRing, ring: &Ring) -> Result<(), StoreError> {
        let bytes = key_ring.encode(ring).map_err(|source| StoreError::Encode { source })?;
        self.save_bytes(&bytes)
    }

    /// Writes the bytes of an encoded key ring.
    pub fn save_bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let target = self.next;
        self.files.write(TEMPORARY, bytes).map_err(|source| self.failed("write", TEMPORARY, source))?;
        self.files.sync(TEMPORARY).map_err(|source| self.failed("sync", TEMPORARY, source))?;
        self.files.rename(TEMPORARY, target).map_err(|source| self.failed("replace", target, source))?;
        // From here on the new file may be the newest one on disk, whatever the directory's sync says: the next
        // write must leave it alone and replace the other.
        self.next = if target == NAMES[0] { NAMES[1] } else { NAMES[0] };
        if let Err(source) = self.files.sync_directory() {
            // The new file may not survive, so the predecessor must: write to the same place again.
            self.next = target;
            return Err(self.failed("sync the directory of", target, source));
        }
        Ok(())
    }

    /// The last time that was noted; `None` as well when the file makes no sense: nothing hangs on it.
    pub fn last_seen(&self) -> Option<u64> {
        let bytes = self.files.read(LAST_SEEN).ok().flatten()?;
        let (first, second) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        if first == second { first.parse().ok() } else { None }
    }

    /// Notes the time. It may be lost in a power cut, then the one before counts.
    pub fn note_time(&mut self, unix_secs: u64) -> Result<(), StoreError> {
        let text = format!("{unix_secs} {unix_secs}\n");
        self.files
            .write(LAST_SEEN_TEMPORARY, text.as_bytes())
            .map_err(|source| self.failed("write", LAST_SEEN_TEMPORARY, source))?;
        self.files
            .sync(LAST_SEEN_TEMPORARY)
            .map_err(|source| self.failed("sync", LAST_SEEN_TEMPORARY, source))?;
        self.files
            .rename(LAST_SEEN_TEMPORARY, LAST_SEEN)
            .map_err(|source| self.failed("replace", LAST_SEEN, source))
    }

    fn failed(&self, act: &'static str, name: &str, source: io::Error) -> StoreError {
        StoreError::File { act, path: self.files.path(name), source }
    }
}

/// Opens `directory` for this process alone.
pub fn open(directory: &Path) -> Result<Store, StoreError> {
    Ok(Store::new(DiskFiles::open(directory)?))
}

/// Reads the key ring of `directory` without locking it, as `status` does beside a running agent.
pub fn peek(directory: &Path) -> Result<Option<Loaded>, StoreError> {
    Store::new(DiskFiles::look(directory)?).load()
}

/// What went wrong with the state directory, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("can't {act} {}", path.display())]
    File {
        /// What was attempted.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Key-ring files exist, and none is whole.
    #[error(
        "no key ring can be used, and nothing was changed ({files}). Restore the directory from a backup, or move the \
         files away and run `twinkey-agent provision` with the device's connection string"
    )]
    NoneUsable {
        /// Each file, and what is wrong with it.
        files: String,
    },
    /// A newer agent wrote the key ring.
    #[error("the key ring {} was left alone", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        source: DamagedKeyRing,
    },
    /// The ring that should be written makes no sense.
    #[error("the key ring can't be encoded")]
    Encode {
        /// What is wrong with it.
        source: DamagedKeyRing,
    },
    /// The directory belongs to another user.
    #[error(
        "{} belongs to user {owner}, and the agent runs as user {user}: run this command as root (sudo) or as that user; if the directory was copied from another machine, run `chown -h -R {user} {}`",
        path.display(), path.display()
    )]
    Owner {
        /// Which directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who the agent is.
        user: u32,
    },
    /// Another agent uses the directory.
    #[error("another twinkey-agent is running on {}: stop it first, or give this one a state directory of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl<F> fmt::Debug for Store<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("next", &self.next).finish_non_exhaustive()
    }
}
