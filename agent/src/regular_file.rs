//! Opens a file to read it, without waiting: what stands in its place may be a FIFO, which waits
//! for a writer, or a device. The kind is judged by the descriptor, for what a name points to can
//! change between two looks.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// What to do with a symbolic link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// For files that a person names in the configuration or on the command line. Links are usual
    /// there: Kubernetes mounts secrets as links, and /etc is full of them. Who may put a link
    /// there may put a file there as well.
    Follow,
    /// For files that the agent makes itself. It makes no links.
    Refuse,
}

/// Opens `path`. What is no regular file is an error of the kind `InvalidData` that says what it
/// is. So pipes are refused as well (`/dev/fd/63` of a shell): what comes through a pipe goes to
/// standard input.
pub(crate) fn open(path: &Path, links: Links) -> io::Result<(File, Metadata)> {
    let links_flag = match links {
        Links::Follow => OFlags::empty(),
        Links::Refuse => OFlags::NOFOLLOW,
    };
    // Regular files don't care about O_NONBLOCK.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | links_flag;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|error| explained(error, path, links))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(not_regular(metadata.file_type()));
    }
    Ok((file, metadata))
}

/// A link that is not followed gives ELOOP, a socket ENXIO: words that lead nowhere.
fn explained(error: io::Error, path: &Path, links: Links) -> io::Error {
    let found = match links {
        Links::Follow => fs::metadata(path),
        Links::Refuse => fs::symlink_metadata(path),
    };
    match found {
        Ok(metadata) if !metadata.is_file() => not_regular(metadata.file_type()),
        Ok(_) | Err(_) => error,
    }
}

fn not_regular(kind: FileType) -> io::Error {
    let kind = match kind {
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO (named pipe)",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("it is {kind} and no regular file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_file_behind_links_is_opened_where_links_are_followed_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "x").unwrap();
        symlink("link2", &link).unwrap();
        symlink("file", dir.path().join("link2")).unwrap();
        assert_eq!(open(&link, Links::Follow).unwrap().1.len(), 1);
        let refused = open(&link, Links::Refuse).unwrap_err();
        assert!(refused.to_string().contains("symbolic link"), "{refused}");
    }

    #[test]
    fn fifos_devices_and_directories_are_named_and_hold_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let places = [(fifo, "FIFO"), ("/dev/zero".into(), "device"), ("/".into(), "directory")];
        for (place, kind) in places {
            let (sender, receiver) = mpsc::channel();
            std::thread::spawn(move || sender.send(open(&place, Links::Follow).map(|_| ())));
            let answer = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(kind), "{error}");
        }
    }
}
