//! The file: an SQLite database.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};

use crate::failure::Failure;
use crate::files;

/// Marks the file as a ledger (SQLite, `PRAGMA application_id`): `tkro` in ASCII.
const APPLICATION_ID: u32 = 0x746b_726f;
/// Version of the format (`PRAGMA user_version`). It grows when an older program would misread the tables.
const FORMAT: u32 = 1;
/// How long somebody else's write may take: a line from `pause` beside a runner.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// SQLite's file format, §1.3: the header, and where its numbers are.
const HEADER_LEN: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";
const USER_VERSION_AT: usize = 60;
const APPLICATION_ID_AT: usize = 68;

const TABLES: &str = "
    CREATE TABLE rollout (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL, spec TEXT NOT NULL, seed INTEGER NOT NULL, hub TEXT NOT NULL,
        state TEXT NOT NULL, wish TEXT NOT NULL, message TEXT,
        created_at INTEGER NOT NULL, ended_at INTEGER,
        forgiven_done INTEGER NOT NULL, forgiven_failed INTEGER NOT NULL
    );
    CREATE TABLE device (
        number INTEGER PRIMARY KEY,
        device TEXT NOT NULL, module TEXT, wave INTEGER NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL,
        is_forced INTEGER NOT NULL,
        first_slot TEXT, first_replaces TEXT, second_replaces TEXT, first_done_at INTEGER,
        before_primary TEXT, before_secondary TEXT, after_primary TEXT, after_secondary TEXT,
        rotation TEXT, reason TEXT, message TEXT, started_at INTEGER, ended_at INTEGER
    );
    CREATE TABLE event (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, device INTEGER, what TEXT NOT NULL);";

/// # Errors
/// Something has that name already.
pub(super) fn check_new(path: &Path) -> Result<(), Failure> {
    for name in [path.to_owned(), suffixed(path, "-wal")] {
        if name.exists() {
            return Err(Failure::usage(format!("{} is there already", name.display())).next(
                "look at it with `twinkey rollout status`, go on with `twinkey rollout resume`, or choose another --ledger",
            ));
        }
    }
    Ok(())
}

/// Makes the file under another name first: whatever ends this program meanwhile, it is there as a whole or not at all. The caller
/// has the lock.
pub(super) fn create(
    path: &Path,
    fill: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
) -> Result<(), Failure> {
    check_new(path)?;
    let beside = suffixed(path, ".new");
    let broken = |e: io::Error| {
        Failure::failed(format!("make the ledger {}: {e}", path.display()))
            .next("choose a --ledger in a directory where you may write, on a disk with room")
    };
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(broken(error)),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(broken)?;
    let make = || {
        let mut connection = Connection::open(&beside)?;
        connection.execute_batch("PRAGMA synchronous=FULL;")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT};"
        ))?;
        fill(&transaction)?;
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)
    };
    make().map_err(|e| failed(&beside, "make", &e))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::rename(&beside, path).and_then(|()| File::open(dir)?.sync_all()).map_err(broken)
}

/// Opens a ledger. What is none, is damaged or newer is not touched.
pub(super) fn open(path: &Path) -> Result<Connection, Failure> {
    check_header(path)?;
    let unreadable = |e: rusqlite::Error| failed(path, "read", &e);
    let look = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(unreadable)?;
    look.busy_timeout(BUSY_MAX).map_err(unreadable)?;
    let found: String = look.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(unreadable)?;
    if found != "ok" {
        return Err(damaged(path, &found));
    }
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(unreadable)?;
    drop(look);
    connection.busy_timeout(BUSY_MAX).map_err(unreadable)?;
    // Written through before a commit returns: power may go.
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;").map_err(unreadable)?;
    Ok(connection)
}

/// SQLite itself would create, recover or lock what it is shown.
fn check_header(path: &Path) -> Result<(), Failure> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    let read = files::open_named(path).and_then(|file| file.take(HEADER_LEN as u64).read_to_end(&mut header));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::usage(format!("there is no ledger {}", path.display())).next(
                "name the rollout's with --ledger; if it is lost, `twinkey rollout rebuild` makes a new one from the hub",
            ));
        }
        Err(error) => return Err(Failure::usage(format!("read the ledger {}: {error}", path.display()))),
        Ok(_) => {}
    }
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?)) };
    if !header.starts_with(MAGIC) || word(APPLICATION_ID_AT) != Some(APPLICATION_ID) {
        return Err(Failure::usage(format!(
            "{} is no ledger of a rollout; it was not touched",
            path.display()
        ))
        .next("name another file with --ledger"));
    }
    match word(USER_VERSION_AT) {
        Some(FORMAT) => Ok(()),
        other => Err(Failure::failed(format!(
            "the ledger {} has format {}, and this program knows format {FORMAT}; it was not touched",
            path.display(),
            other.unwrap_or(0),
        ))
        .next("go on with the version of twinkey that began the rollout")),
    }
}

pub(super) fn damaged(path: &Path, why: &str) -> Failure {
    Failure::failed(format!("the ledger {} is damaged: {why}; it was not touched", path.display())).next(
        "keep it for a look, and make a new one from the hub: `twinkey rollout rebuild --ledger NEW --id ID`",
    )
}

pub(super) fn failed(path: &Path, verb: &str, error: &rusqlite::Error) -> Failure {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase, ReadOnly};
    // Statements are ours and hold no value; SQLite's own words are enough.
    let what = format!("{verb} the ledger {}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => damaged(path, &error.to_string()),
        Some(DiskFull) => Failure::failed(what).next("make room on its disk, then `twinkey rollout resume`"),
        Some(ReadOnly) => {
            Failure::failed(what).next("give yourself the right to write it, and its directory")
        }
        Some(_) | None => {
            Failure::failed(what).next("look at the disk; then `twinkey rollout resume` goes on")
        }
    }
}

/// Which file it is, whatever its name.
pub(super) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// Whether the name still is that file's.
pub(super) fn is_same(path: &Path, expected: Option<u64>) -> bool {
    expected.is_some() && inode(path) == expected
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
