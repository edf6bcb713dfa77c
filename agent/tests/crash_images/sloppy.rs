//! What a store would be that leaves one precaution out. Each must lose a key ring in the test, or the test
//! could not tell.

use std::io;
use std::path::PathBuf;

use twinkey_agent::store::Files;
use zeroize::Zeroizing;

use crate::disk::Disk;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Omission {
    /// Nothing: the store as it is.
    Nothing,
    /// The temporary file is renamed without having been synced.
    FileSync,
    /// The directory is not synced after the rename.
    DirectorySync,
    /// Every write replaces the same file, so the newest one.
    TakingTurns,
    /// The new content is written straight into the file that it replaces.
    TemporaryFile,
    /// A failed sync is repeated on the same file, as if the content were still waiting to be written.
    WritingAgainAfterFailedSync,
    /// What is found at the start counts as durable without having been synced.
    Settling,
}

/// The disk, handled with one omission.
#[derive(Debug)]
pub(crate) struct Sloppy {
    pub(crate) disk: Disk,
    omission: Omission,
    /// What [`Omission::TemporaryFile`] has not written yet.
    held_back: Vec<u8>,
}

impl Sloppy {
    pub(crate) fn new(disk: Disk, omission: Omission) -> Self {
        Self { disk, omission, held_back: Vec::new() }
    }
}

impl Files for Sloppy {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        self.disk.read(name)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.omission == Omission::TemporaryFile {
            self.held_back = bytes.to_vec();
            return Ok(());
        }
        self.disk.write(name, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        match self.omission {
            Omission::FileSync => Ok(()),
            Omission::TemporaryFile if !self.held_back.is_empty() => Ok(()),
            Omission::WritingAgainAfterFailedSync => match self.disk.sync(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => self.disk.sync(name),
                result => result,
            },
            Omission::Nothing
            | Omission::DirectorySync
            | Omission::TakingTurns
            | Omission::TemporaryFile
            | Omission::Settling => self.disk.sync(name),
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        match self.omission {
            Omission::TakingTurns => self.disk.rename(from, "key-ring.a"),
            Omission::TemporaryFile => {
                let bytes = std::mem::take(&mut self.held_back);
                self.disk.overwrite(to, &bytes)?;
                self.disk.sync(to)
            }
            Omission::Nothing
            | Omission::FileSync
            | Omission::DirectorySync
            | Omission::WritingAgainAfterFailedSync
            | Omission::Settling => self.disk.rename(from, to),
        }
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        match self.omission {
            Omission::DirectorySync => Ok(()),
            Omission::Nothing
            | Omission::FileSync
            | Omission::TakingTurns
            | Omission::TemporaryFile
            | Omission::WritingAgainAfterFailedSync
            | Omission::Settling => self.disk.sync_directory(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path(name)
    }
}
