//! The hub's state on disk, if it is to outlive the process.
//!
//! The memory is the truth while the hub runs. Whoever lets go of the state's lock leaves the records that changed in
//! a list; one thread writes what the list holds, all of it in one transaction, and begins again. So a hold of the lock is
//! on disk as a whole or not at all, and many requests share one wait for the disk: [`Kept::settled`] returns when everything that was
//! changed before is there. After a failure the records stay in the list, and the thread tries again.
//!
//! To keep something more: a variant of [`Table`], [`Touched`] names where it changes, and a module beside `enrollments`
//! with its `collect` and `restore`.

pub(crate) mod configurations;
pub(crate) mod enrollments;
mod file;
mod identities;
mod touched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::error::EmulatorError;
use crate::files::DirLock;
use file::StateFile;
pub(crate) use identities::Stamps;
pub(crate) use touched::Touched;

/// Wait before the next attempt after a failed one that nobody asks about.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is kept. The numbers are those in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// The hub itself.
    Hub = 0,
    /// Devices and modules by `device` or `device/module`.
    Identities = 1,
    /// Individual enrolments by registration id.
    Enrollments = 2,
    /// Enrolment groups by name.
    EnrollmentGroups = 3,
    /// Configurations by id.
    Configurations = 4,
}

/// A record to write (`Some`) or to remove (`None`).
pub(crate) type Change = ((Table, String), Option<Vec<u8>>);

/// What the file held at the start.
#[derive(Debug, Default)]
pub(crate) struct Loaded(BTreeMap<(u8, String), Vec<u8>>);

impl Loaded {
    /// Everything of one table, in the order of its keys.
    pub(crate) fn take(&mut self, table: Table) -> impl Iterator<Item = (String, Vec<u8>)> + use<> {
        let rest = std::mem::take(&mut self.0);
        let (taken, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            rest.into_iter().partition(|((kept_in, _), _)| *kept_in == table as u8);
        self.0 = rest;
        taken.into_iter().map(|((_, key), value)| (key, value))
    }
}

type Changes = BTreeMap<(Table, String), Option<Vec<u8>>>;

/// A record's bytes.
fn encode(record: &impl Serialize) -> Option<Vec<u8>> {
    // Maps with text as keys, numbers and text: nothing that JSON can't say.
    serde_json::to_vec(record).inspect_err(|error| warn!(%error, "a record is not kept")).ok()
}

fn decode<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| {
        // The error's text could quote the record, and that a key.
        format!("the record {key:?} can't be read: line {}, column {}", error.line(), error.column())
    })
}

/// Writes the state.
#[derive(Debug)]
pub(crate) struct Kept {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    progress: watch::Receiver<Progress>,
    /// Held until the last change is written: another hub there would read what is not complete.
    _lock: Arc<DirLock>,
}

#[derive(Debug, Default)]
struct Shared {
    list: Mutex<List>,
    rings: Condvar,
}

/// Records to write. There is at most one for each thing that is kept.
#[derive(Debug, Default)]
struct List {
    changes: Changes,
    /// Counts the additions.
    last: u64,
    stop: bool,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// Additions up to this one are on disk.
    written: u64,
    /// Additions up to this one are on disk, or could not be written.
    tried: u64,
    failure: String,
}

/// What was changed is not on disk.
#[derive(Debug, thiserror::Error)]
#[error("the change was made, but it is not on the disk: {0}")]
pub(crate) struct NotWritten(String);

impl Kept {
    /// Opens or makes the state of a directory, and returns what it holds.
    pub(crate) fn open(dir: &Path, lock: Arc<DirLock>) -> Result<(Self, Loaded), EmulatorError> {
        let mut file = StateFile::open(dir)?;
        let loaded = Loaded(file.load()?);
        let shared = Arc::<Shared>::default();
        let (tell, progress) = watch::channel(Progress::default());
        let theirs = shared.clone();
        let writer = std::thread::Builder::new().name("state".to_owned()).spawn(move || {
            write_on(&theirs, &mut file, &tell);
        });
        let writer = writer.map_err(|source| EmulatorError::DataDir { path: dir.to_owned(), source })?;
        Ok((Self { shared, writer: Some(writer), progress, _lock: lock }, loaded))
    }

    /// Has records written or removed, all of them or none.
    pub(crate) fn note(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut list = self.shared.list();
        list.changes.extend(changes);
        list.last += 1;
        drop(list);
        self.shared.rings.notify_one();
    }

    /// Waits until everything that was noted before is on disk.
    pub(crate) async fn settled(&self) -> Result<(), NotWritten> {
        let last = self.shared.list().last;
        let mut progress = self.progress.clone();
        let ended = NotWritten("the hub is ending".to_owned());
        let tried = progress.wait_for(|progress| progress.tried >= last).await.map_err(|_| ended)?;
        if tried.written >= last { Ok(()) } else { Err(NotWritten(tried.failure.clone())) }
    }
}

impl Drop for Kept {
    /// Waits until the rest is written, which takes as long as the disk does.
    fn drop(&mut self) {
        self.shared.list().stop = true;
        self.shared.rings.notify_one();
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            warn!("the writer of the state ended badly");
        }
    }
}

impl Shared {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to write, and takes it. `None`: nothing is left, and the hub ends.
    fn next(&self, tried: u64) -> Option<(Changes, u64, bool)> {
        let mut list = self.list();
        while list.last == tried && !list.stop {
            list = if list.changes.is_empty() {
                self.rings.wait(list).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.rings.wait_timeout(list, RETRY_PAUSE);
                let (list, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                if timeout.timed_out() {
                    return Some(take(list));
                }
                list
            };
        }
        if list.changes.is_empty() && list.stop { None } else { Some(take(list)) }
    }

    /// Puts back what could not be written, behind what has changed since.
    fn put_back(&self, changes: Changes) {
        let mut list = self.list();
        for (key, value) in changes {
            list.changes.entry(key).or_insert(value);
        }
    }
}

fn take(mut list: MutexGuard<'_, List>) -> (Changes, u64, bool) {
    (std::mem::take(&mut list.changes), list.last, list.stop)
}

/// The writer's thread.
fn write_on(shared: &Shared, file: &mut StateFile, tell: &watch::Sender<Progress>) {
    let (mut tried, mut failing) = (0, false);
    while let Some((changes, last, stop)) = shared.next(tried) {
        tried = last;
        match file.write(&changes) {
            Ok(()) => {
                if failing {
                    info!("the state can be written again");
                }
                failing = false;
                tell.send_replace(Progress { written: last, tried: last, failure: String::new() });
            }
            Err(error) => {
                let failure = error.to_string();
                if !failing || stop {
                    warn!(error = failure, "the state can't be written; the hub goes on without");
                }
                failing = true;
                shared.put_back(changes);
                tell.send_modify(|progress| {
                    progress.tried = last;
                    progress.failure = failure;
                });
                if stop {
                    return;
                }
            }
        }
    }
}
