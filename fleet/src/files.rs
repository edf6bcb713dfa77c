//! The files that this program writes. Somebody else may have put something in their place, above
//! all in a directory that several people can write: a link to a file of ours, a FIFO, a file of
//! his own. So a file is made under another name and renamed, which follows no link and shows no
//! half of it; what has to keep its name is opened without following links and judged by its
//! descriptor.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Its owner alone, from the first moment on.
    Owner,
    /// As with any new file: what others may do with it is up to the umask.
    Umask,
}

/// Makes a file that only its owner can read. It is there as a whole or not at all, and nothing is
/// overwritten: that is an error of the kind `AlreadyExists`.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = written_beside(path, bytes, Readers::Owner)?;
    file.persist_noclobber(path).map(drop).map_err(|e| e.error)
}

/// Makes a file, or replaces it as a whole; a failure leaves it as it was. A link is replaced, not
/// followed.
pub(crate) fn replace(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let file = written_beside(path, bytes, readers)?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// The same; but what is no file, such as a pipe or `/dev/stdout`, is written to.
pub(crate) fn replace_or_feed(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    if fs::metadata(path).map_or(true, |metadata| metadata.is_file()) {
        return replace(path, bytes, readers);
    }
    // It may be a file by now: then nothing of it is cut off.
    let mut feed = OpenOptions::new().write(true).custom_flags(OFlags::NOCTTY.bits() as i32).open(path)?;
    if feed.metadata()?.is_file() {
        return replace(path, bytes, readers);
    }
    feed.write_all(bytes)
}

/// Opens a file that a person has named, to read it. Links are followed; what is no regular file is
/// an error, and keeps nobody waiting.
pub(crate) fn open_named(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    check_kind(&file)?;
    Ok(file)
}

/// Opens the file of a lock, or makes it, for its owner alone. Its content stays as it is.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits() as i32);
    let file = options.open(path).map_err(|error| match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => not_regular(),
        Ok(_) | Err(_) => error,
    })?;
    check_kind(&file)?;
    let (owner, user) = (file.metadata()?.uid(), rustix::process::geteuid().as_raw());
    // root may look after a rollout of the user whose directory this is.
    let is_ours = owner == user || (user == 0 && owner == fs::metadata(dir_of(path))?.uid());
    if is_ours {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to another user ({owner})")))
}

/// Where a file is or will be.
pub(crate) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new file in the same directory, with a name that cannot be guessed, whose content is on the
/// disk.
fn written_beside(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<NamedTempFile> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Umask => 0o666,
    };
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(dir_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn check_kind(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { Ok(()) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_a_link_points_to_is_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, link) = (dir.path().join("ours"), dir.path().join("link"));
        for write in [
            |link: &Path| create_private(link, b"new"),
            |link: &Path| replace(link, b"new", Readers::Owner),
            |link: &Path| replace_or_feed(link, b"new", Readers::Umask),
            |link: &Path| open_lock(link).map(drop),
        ] {
            fs::write(&ours, "precious").unwrap();
            let _ = fs::remove_file(&link);
            symlink(&ours, &link).unwrap();
            let done = write(&link);
            assert_eq!(fs::read_to_string(&ours).unwrap(), "precious");
            let is_replaced = fs::symlink_metadata(&link).unwrap().is_file();
            assert_eq!(done.is_ok(), is_replaced, "{done:?}");
            // One to a file that is not there yet makes none there.
            let _ = fs::remove_file(&link);
            symlink(dir.path().join("nowhere"), &link).unwrap();
            let _ = write(&link);
            assert!(!dir.path().join("nowhere").exists());
        }
    }

    #[test]
    fn a_secret_is_for_its_owner_alone_and_overwrites_nothing_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        create_private(&path, b"one").unwrap();
        assert_eq!(create_private(&path, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        replace(&path, b"three", Readers::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fifo_is_neither_waited_for_nor_taken_for_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for open in [open_named, open_lock] {
            assert!(open(&fifo).unwrap_err().to_string().contains("no regular file"));
        }
    }

    #[test]
    fn a_pipe_gets_the_whole_page() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        replace_or_feed(&fifo, b"page", Readers::Umask).unwrap();
        assert_eq!(reader.join().unwrap(), "page");
    }

    #[test]
    fn a_lock_of_another_users_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can give a file to another user");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "7").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert_eq!(open_lock(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // In a directory of the same user's it is his rollout.
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
        open_lock(&path).unwrap();
    }
}
