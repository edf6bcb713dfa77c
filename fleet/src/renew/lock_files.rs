//! Lock files by which runs of one user on one machine see whether another run still lives.
//!
//! A run makes a file of its name in a private directory and holds a lock on it for its life. The kernel gives the lock back however
//! the run ends, so a file whose lock is free was left behind. A file counts only in the kernel's start in which it was made:
//! the copy of a machine's disk, started elsewhere, holds files of runs that go on on the other machine.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    flock, fstat, futimens, mkdirat, openat, unlinkat,
};
use rustix::io::{Errno, Result};

use super::lease::LEASE_SECS;
use crate::clock::unix_now_secs;

/// Length of a run's name, in hexadecimal digits.
const NAME_LEN: usize = 32;
/// Longest text of a file that is read, in bytes. The kernel's name for its start has 36.
const TEXT_LEN_MAX: u64 = 64;
/// How long a file is kept after its run last took a lease, in seconds: its leases have ended long before.
const KEPT_SECS: u64 = 4 * LEASE_SECS;
/// Most files that one run looks at to remove old ones. A run makes one file at most, so they don't pile up.
const LOOKED_AT_MAX: usize = 1000;
/// What names the kernel's start (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where a directory of lock files is.
#[derive(Debug)]
pub(super) struct Place {
    /// Not ours to judge: others may write here.
    pub(super) base: PathBuf,
    /// The directory under it, and the one under that. Both belong to this user, and nobody else may enter them.
    pub(super) names: [String; 2],
}

/// Such a directory.
#[derive(Debug)]
pub(super) struct LockFiles {
    place: Place,
    boot_id: Option<String>,
}

/// A run's own file, locked as long as this lives.
#[derive(Debug)]
pub(super) struct LockFile {
    directory: OwnedFd,
    name: String,
    file: File,
}

/// Where files are made, the best place first; runs that were started otherwise may have theirs in the others.
pub(super) fn places() -> Vec<Place> {
    let leases = || "leases".to_owned();
    // Paths in it are absolute (XDG Base Directory Specification); others are ignored.
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let of_runtime = runtime.map(|base| Place { base, names: ["twinkey".to_owned(), leases()] });
    let user = rustix::process::geteuid().as_raw();
    let of_tmp = Place { base: PathBuf::from("/tmp"), names: [format!("twinkey-{user}"), leases()] };
    of_runtime.into_iter().chain([of_tmp]).collect()
}

impl LockFiles {
    pub(super) fn new(place: Place) -> Self {
        let boot_id = std::fs::read_to_string(BOOT_ID).ok().map(|text| text.trim().to_owned());
        Self { place, boot_id: boot_id.filter(|id| !id.is_empty()) }
    }

    /// Makes the file of a run, locks it, and removes old files of runs that are gone.
    pub(super) fn make(&self, name: &str) -> Result<LockFile> {
        let boot_id = self.boot_id.as_ref().ok_or(Errno::NOENT)?;
        let directory = self.open(true)?;
        remove_old(&directory);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let mut file = File::from(file);
        file.write_all(boot_id.as_bytes()).map_err(|_| Errno::IO)?;
        Ok(LockFile { directory, name: name.to_owned(), file })
    }

    /// Whether a run of this name was here and is gone. `name` comes from outside.
    pub(super) fn is_left_behind(&self, name: &str) -> bool {
        // Whoever may write a twin chooses it: it must not become another path than that of a file in this directory.
        if !is_name(name) {
            return false;
        }
        let Ok(directory) = self.open(false) else { return false };
        let Ok(file) = open_file(&directory, name) else { return false };
        let mut text = String::new();
        let is_read = (&file).take(TEXT_LEN_MAX).read_to_string(&mut text).is_ok();
        // Shared: two runs that look at the same time must not take each other for the holder.
        is_read
            && self.boot_id.as_ref() == Some(&text)
            && flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
    }

    fn open(&self, makes: bool) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = openat(CWD, &self.place.base, flags, Mode::empty())?;
        for name in &self.place.names {
            if makes {
                match mkdirat(&directory, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            directory = openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
            let stat = fstat(&directory)?;
            // Somebody else may have been here first.
            let is_private = Mode::from_raw_mode(stat.st_mode) & (Mode::RWXG | Mode::RWXO) == Mode::empty();
            if stat.st_uid != rustix::process::geteuid().as_raw() || !is_private {
                return Err(Errno::PERM);
            }
        }
        Ok(directory)
    }
}

impl LockFile {
    /// Notes that its run has just taken a lease.
    pub(super) fn touch(&self) {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // Without this, the file may be removed early, and others wait.
        let _ = futimens(&self.file, &Timestamps { last_access: omit, last_modification: now });
    }

    pub(super) fn remove(&self) {
        let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

fn is_name(text: &str) -> bool {
    text.len() == NAME_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn open_file(directory: &OwnedFd, name: &str) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    let is_file = FileType::from_raw_mode(fstat(&file)?.st_mode).is_file();
    if is_file { Ok(File::from(file)) } else { Err(Errno::INVAL) }
}

/// Removes files of runs that are gone and whose leases have ended.
fn remove_old(directory: &OwnedFd) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.filter_map(Result::ok).take(LOOKED_AT_MAX) {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !is_name(name) {
            continue;
        }
        let Ok(file) = open_file(directory, name) else { continue };
        let Ok(stat) = fstat(&file) else { continue };
        // A time that is ahead is of a clock that was wrong.
        let age_secs = i64::try_from(unix_now_secs()).unwrap_or(i64::MAX).abs_diff(stat.st_mtime);
        if age_secs > KEPT_SECS && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn lock_files(base: &Path) -> LockFiles {
        LockFiles::new(Place { base: base.to_owned(), names: ["twinkey-0".to_owned(), "leases".to_owned()] })
    }

    fn name(number: usize) -> String {
        format!("{number:032x}")
    }

    fn path(base: &Path, name: &str) -> PathBuf {
        base.join("twinkey-0/leases").join(name)
    }

    #[test]
    fn a_run_is_gone_once_its_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let files = lock_files(dir.path());
        assert!(!files.is_left_behind(&name(1)), "it never was");
        let run = files.make(&name(1)).unwrap();
        assert!(!files.is_left_behind(&name(1)), "it lives");
        drop(run);
        assert!(files.is_left_behind(&name(1)));
        assert!(!files.is_left_behind(&name(2)));
        for level in ["twinkey-0", "twinkey-0/leases"] {
            let mode = std::fs::metadata(dir.path().join(level)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{level}");
        }
    }

    #[test]
    fn a_file_of_another_start_of_the_kernel_or_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = lock_files(dir.path());
        drop(files.make(&name(1)).unwrap());
        let text = std::fs::read_to_string(path(dir.path(), &name(1))).unwrap();
        for other in ["", "6b0c8f5e-0000-4000-8000-000000000000", &format!("{text}{text}")] {
            std::fs::write(path(dir.path(), &name(1)), other).unwrap();
            assert!(!files.is_left_behind(&name(1)), "{other}");
        }
        std::fs::write(path(dir.path(), &name(1)), text).unwrap();
        assert!(files.is_left_behind(&name(1)));
    }

    #[test]
    fn what_a_twin_calls_a_run_never_becomes_another_path() {
        let dir = tempfile::tempdir().unwrap();
        let files = lock_files(dir.path());
        drop(files.make(&name(1)).unwrap());
        let text = std::fs::read(path(dir.path(), &name(1))).unwrap();
        std::fs::write(dir.path().join("outside"), &text).unwrap();
        std::fs::write(path(dir.path(), "short"), &text).unwrap();
        let upper = "A".repeat(NAME_LEN);
        std::fs::write(path(dir.path(), &upper), &text).unwrap();
        let long = format!("../../{}", name(1));
        let up = "../../outside";
        let absolute = dir.path().join("outside");
        let padded = format!("../../{}outside", "/".repeat(NAME_LEN - 13));
        for odd in ["", ".", "..", "short", &upper, up, &long, absolute.to_str().unwrap(), &padded, "\0", "é"]
        {
            assert!(!files.is_left_behind(odd), "{odd}");
        }
        // A link is not followed, and what is no file is not read.
        symlink(dir.path().join("outside"), path(dir.path(), &name(2))).unwrap();
        std::fs::create_dir(path(dir.path(), &name(3))).unwrap();
        rustix::fs::mknodat(CWD, path(dir.path(), &name(4)), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for number in [2, 3, 4] {
            assert!(!files.is_left_behind(&name(number)), "{number}");
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_or_that_is_a_link_is_not_used() {
        for level in ["twinkey-0", "twinkey-0/leases"] {
            let dir = tempfile::tempdir().unwrap();
            let files = lock_files(dir.path());
            drop(files.make(&name(1)).unwrap());
            let open = dir.path().join(level);
            std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o750)).unwrap();
            assert!(!files.is_left_behind(&name(1)), "{level}");
            assert_eq!(files.make(&name(2)).unwrap_err(), Errno::PERM, "{level}");
            std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o700)).unwrap();
            assert!(files.is_left_behind(&name(1)), "{level}");
            let moved = dir.path().join("moved");
            std::fs::rename(&open, &moved).unwrap();
            symlink(&moved, &open).unwrap();
            assert!(!files.is_left_behind(&name(1)), "{level}");
            assert!(files.make(&name(2)).is_err(), "{level}");
        }
    }

    #[test]
    fn old_files_of_runs_that_are_gone_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let files = lock_files(dir.path());
        let alive = files.make(&name(1)).unwrap();
        for number in 2..=5 {
            drop(files.make(&name(number)).unwrap());
        }
        let set = |number, unix_secs| {
            let file = File::options().append(true).open(path(dir.path(), &name(number))).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(unix_secs)).unwrap();
        };
        let now = unix_now_secs();
        set(1, 0);
        set(2, now - KEPT_SECS - 60);
        set(3, now + 86_400);
        set(4, now - LEASE_SECS);
        std::fs::write(path(dir.path(), "notes"), "").unwrap();
        let _own = files.make(&name(6)).unwrap();
        let left = |number: usize| path(dir.path(), &name(number)).exists();
        assert_eq!([1, 2, 3, 4, 5, 6].map(left), [true, false, false, true, true, true]);
        assert!(path(dir.path(), "notes").exists());
        // Whoever takes a lease now keeps the file for as long as that lasts.
        alive.touch();
        drop(alive);
        drop(files.make(&name(7)).unwrap());
        assert!(left(1) && files.is_left_behind(&name(1)));
    }
}
