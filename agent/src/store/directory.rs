//! The state directory: made durably, opened once, and judged by its descriptor. Links to it are
//! followed, for a person names it, and systemd makes it a link where a service has a user of its
//! own for each start.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod};

use super::StoreError;

/// Permission bits of the state directory.
const MODE: u32 = 0o700;

/// Makes the directory and those above it that are missing. Each is durable in its parent when this
/// returns: without that, a power cut could take the directory away with the key ring in it.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::File { act, path, source }
    };
    let is_missing = |level: &&Path| !level.as_os_str().is_empty() && !level.exists();
    let mut missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    while let Some(level) = missing.pop() {
        match DirBuilder::new().mode(MODE).create(level) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", level)(source));
            }
            // Another process may have been quicker.
            Ok(()) | Err(_) => {}
        }
        let parent = parent_of(level);
        sync(parent).map_err(failed("sync", parent))?;
    }
    Ok(())
}

/// Makes a directory durable that an earlier process may have made just before it was killed. Where
/// the parent can't be opened or synced, somebody else has made the directory, or the first write
/// will tell.
pub(super) fn settle(path: &Path) {
    if let Ok(real) = path.canonicalize() {
        let _ = sync(parent_of(&real));
    }
}

/// Opens it; an error where it is another user's. To root, who may look after an agent that runs as
/// another user, every user's is right.
pub(super) fn open(path: &Path) -> Result<File, StoreError> {
    let user = rustix::process::geteuid().as_raw();
    let check_owner = |metadata: &Metadata| {
        if metadata.uid() == user || user == 0 {
            return Ok(());
        }
        // For the advice: on a link, it would do nothing.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Err(StoreError::Owner { path, owner: metadata.uid(), user })
    };
    let failed = |source| StoreError::File { act: "open the state directory", path: path.to_owned(), source };
    let opened = open_directory(path).and_then(|handle| Ok((handle.metadata()?, handle)));
    let (metadata, handle) = match opened {
        Ok(opened) => opened,
        Err(source) => {
            // Another user's is mostly one that can't be opened, and whose it is helps more than
            // that.
            if source.kind() == io::ErrorKind::PermissionDenied {
                fs::metadata(path).map_or(Ok(()), |metadata| check_owner(&metadata))?;
            }
            return Err(failed(source));
        }
    };
    check_owner(&metadata)?;
    Ok(handle)
}

/// Takes away what group and others may do with it. The reasons are those of a file that is open to
/// others.
pub(super) fn close_to_others(path: &Path, handle: &File) -> Result<(), StoreError> {
    let metadata = handle.metadata().map_err(|source| StoreError::File {
        act: "look at",
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let (directory, mode) = (path.display(), format!("{mode:04o}"));
    match fchmod(handle, Mode::from_raw_mode(MODE)) {
        Ok(()) => tracing::warn!(
            %directory, mode,
            "the state directory was open to others than its owner until now: if anybody else uses this machine, renew the device's keys, and find out what changes its mode"
        ),
        Err(errno) => tracing::error!(
            %directory, mode, error = %io::Error::from(errno),
            "the state directory is open to others than its owner, and its mode can't be changed: see to it; if anybody else uses this machine, renew the device's keys"
        ),
    }
    Ok(())
}

/// Makes the names in it durable.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    open_directory(path)?.sync_all()
}

/// What is no directory is an error at once: a FIFO would wait for a writer.
fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
