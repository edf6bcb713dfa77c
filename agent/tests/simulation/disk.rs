//! The disk: a directory and its files, of which a power cut leaves what was synced. Its operations run on the
//! runtime's blocking thread, as in the real agent. There they wait until the loop has nothing left to do at this
//! instant ([`Gate`]), so that their order among everything else is always the same.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use twinkey_agent::store::{Files, Store};
use twinkey_rotation::{KeyName, Verdict};
use zeroize::Zeroizing;

use crate::rng::Rng;
use crate::tally::Seen;
use crate::world::{Cause, Inner, World};

/// What is wrong with the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DiskFault {
    None,
    Full,
    ReadOnly,
    SyncFails,
    DirectorySyncFails,
    Flaky,
}

#[derive(Clone)]
struct Inode {
    data: Arc<Vec<u8>>,
    is_synced: bool,
}

/// Names and contents as a process, or the next boot, finds them.
pub(crate) type Image = BTreeMap<String, Arc<Vec<u8>>>;

/// Files, and what of them would survive.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    inodes: Vec<Inode>,
    directory: BTreeMap<String, usize>,
    durable_directory: BTreeMap<String, usize>,
}

impl Disk {
    pub(crate) fn of(image: &Image) -> Self {
        let mut disk = Self::default();
        for (name, data) in image {
            disk.inodes.push(Inode { data: Arc::clone(data), is_synced: true });
            disk.directory.insert(name.clone(), disk.inodes.len() - 1);
        }
        disk.durable_directory = disk.directory.clone();
        disk
    }

    /// What a power cut leaves: renames may or may not have reached the disk, and of what was not synced nothing is
    /// certain.
    pub(crate) fn after_power_cut(&self, rng: &mut Rng) -> Image {
        let directory = if rng.per_mille(500) { &self.directory } else { &self.durable_directory };
        let mut content = |index: &usize| {
            let inode = &self.inodes[*index];
            if inode.is_synced {
                return Arc::clone(&inode.data);
            }
            match rng.below(3) {
                0 => Arc::clone(&inode.data),
                1 => Arc::new(Vec::new()),
                _ => {
                    let kept = rng.below(inode.data.len() as u64 + 1) as usize;
                    Arc::new(inode.data[..kept].to_vec())
                }
            }
        };
        directory.iter().map(|(name, index)| (name.clone(), content(index))).collect()
    }

    /// What a process that is killed leaves.
    pub(crate) fn after_kill(&self) -> Image {
        let content = |index: &usize| Arc::clone(&self.inodes[*index].data);
        self.directory.iter().map(|(name, index)| (name.clone(), content(index))).collect()
    }

    /// What the operating system writes back in its own time.
    pub(crate) fn settle_by_itself(&mut self) {
        for inode in &mut self.inodes {
            inode.is_synced = true;
        }
        self.durable_directory = self.directory.clone();
    }

    /// The two extremes of what the next boot could find: with and without the renames since the last sync of the
    /// directory, and always without what was not synced.
    fn least_images(&self) -> Vec<Image> {
        let least = |directory: &BTreeMap<String, usize>| {
            let content = |index: &usize| {
                let inode = &self.inodes[*index];
                if inode.is_synced { Arc::clone(&inode.data) } else { Arc::default() }
            };
            directory.iter().map(|(name, index)| (name.clone(), content(index))).collect()
        };
        let mut images = vec![least(&self.durable_directory)];
        let files = self.key_ring_files();
        if files[..2] != files[2..] {
            images.push(least(&self.directory));
        }
        images
    }

    /// Which files the facts hang on, and whether they are synced.
    pub(crate) fn key_ring_files(&self) -> Vec<(usize, bool)> {
        [&self.durable_directory, &self.directory]
            .into_iter()
            .flat_map(|directory| ["key-ring.a", "key-ring.b"].map(|name| directory.get(name)))
            .map(|index| index.map_or((usize::MAX, false), |index| (*index, self.inodes[*index].is_synced)))
            .collect()
    }

    /// What those images say.
    pub(crate) fn facts(&self) -> Result<Vec<Facts>, String> {
        self.least_images().into_iter().map(|image| Facts::of(&image)).collect()
    }
}

/// What an image of the disk says, read by the real store.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) keys: Vec<KeyName>,
    /// Those of them that no offer displaces.
    held: Vec<KeyName>,
    pub(crate) active: Option<KeyName>,
    pub(crate) rotation: Option<(u128, Option<Verdict>)>,
    pub(crate) sequence: u64,
}

impl Facts {
    pub(crate) fn of(image: &Image) -> Result<Self, String> {
        let loaded = Store::new(Still(image.clone())).load();
        let Ok(Some(loaded)) = loaded else {
            return Err(format!("I1: nothing on disk that the agent could start from: {:?}", loaded.err()));
        };
        let ring = loaded.key_ring.ring;
        let named = ring.keys_in_order().into_iter().flatten();
        Ok(Self {
            // A name alone opens no door: the key's bytes must be there.
            keys: named.filter(|name| loaded.key_ring.key(*name).is_some()).collect(),
            held: [ring.slots.primary.held, ring.slots.secondary.held]
                .iter()
                .flatten()
                .map(|held| held.key)
                .collect(),
            active: ring.active_key(),
            rotation: ring.rotation.map(|rotation| (rotation.id.0, rotation.verdict)),
            sequence: ring.sequence,
        })
    }

    pub(crate) fn holds(&self, key: KeyName) -> bool {
        self.has(key) && self.held.contains(&key)
    }

    pub(crate) fn has(&self, key: KeyName) -> bool {
        self.keys.contains(&key)
    }
}

/// An image that nobody writes to.
struct Still(Image);

impl Files for Still {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        Ok(self.0.get(name).map(|data| Zeroizing::new(data.to_vec())))
    }
    fn write(&mut self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&mut self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn rename(&mut self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync_directory(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

/// Lets the disk's thread act only while the loop is parked: then nothing else is ready at this instant, and since
/// tokio's paused clock stands still while a blocking task runs, nothing becomes ready.
#[derive(Default)]
pub(crate) struct Gate {
    is_open: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set_parked(&self, is_parked: bool) {
        self.is_open.lock().unwrap().0 = is_parked;
        if is_parked {
            self.changed.notify_all();
        }
    }

    /// The history is over: whoever still waits may go.
    pub(crate) fn open_for_ever(&self) {
        self.is_open.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let state = self.is_open.lock().unwrap();
        drop(self.changed.wait_while(state, |(is_parked, is_over)| !*is_parked && !*is_over).unwrap());
    }
}

/// A sync that takes its time. The paused clock does not move by itself while the disk's thread is busy, so a task
/// on the runtime moves it.
pub(crate) struct SlowSync {
    pub(crate) takes: Duration,
    pub(crate) done: std::sync::mpsc::Sender<()>,
}

/// So far the clock moves at once.
const STRIDE: Duration = Duration::from_millis(100);

/// Moves the clock for slow syncs.
pub(crate) async fn move_clock(mut requests: mpsc::UnboundedReceiver<SlowSync>) {
    while let Some(request) = requests.recv().await {
        let mut left = request.takes;
        while !left.is_zero() {
            let stride = left.min(STRIDE);
            left -= stride;
            tokio::time::advance(stride).await;
            // Whatever became due has its turn, and what follows from it as well.
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
        }
        let _ = request.done.send(());
    }
}

/// The disk, as one process sees it.
pub(crate) struct SimFiles {
    pub(crate) world: Arc<World>,
    pub(crate) process: u64,
}

enum Act {
    Write,
    Sync,
    Rename,
    SyncDirectory,
}

impl SimFiles {
    fn perform<R>(
        &self,
        act: Act,
        what: &str,
        then: impl FnOnce(&mut Inner) -> io::Result<R>,
    ) -> io::Result<R> {
        let on_loop = std::thread::current().id() == self.world.loop_thread;
        if !on_loop {
            self.world.gate.wait();
            let is_sync = matches!(act, Act::Sync | Act::SyncDirectory);
            let slowness = self.world.with(|w| w.slowness(self.process).filter(|_| is_sync));
            if let Some(takes) = slowness {
                let (done, is_done) = std::sync::mpsc::channel();
                let _ = self.world.slow_syncs.send(SlowSync { takes, done });
                // The answer only fails to come when the history is over.
                let _ = is_done.recv();
                self.world.gate.wait();
            }
        }
        self.world.with(|w| {
            if !w.is_alive(self.process) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if !on_loop && w.weather.crash_in_write > 0 && w.rng.per_mille(w.weather.crash_in_write) {
                // Before or after the operation: the disk knows no more than that.
                let is_done = w.rng.per_mille(500);
                if is_done {
                    let _ = then(w);
                    w.disk_changed();
                }
                w.log(|| {
                    format!(
                        "disk: {what}, and the process dies ({})",
                        if is_done { "done" } else { "not done" }
                    )
                });
                w.tally.count(Seen::KilledInWrite);
                w.cause(Cause::WriteUncertain);
                w.die();
                return Err(io::ErrorKind::Interrupted.into());
            }
            let fault = w.disk_fault();
            let refusal = match (fault, &act) {
                (DiskFault::ReadOnly, _) => Some((io::ErrorKind::ReadOnlyFilesystem, Seen::WriteFailed)),
                (DiskFault::Full, Act::Write) => Some((io::ErrorKind::StorageFull, Seen::WriteFailed)),
                (DiskFault::SyncFails, Act::Sync) => Some((io::ErrorKind::Other, Seen::SyncFailed)),
                (DiskFault::DirectorySyncFails, Act::SyncDirectory) => {
                    Some((io::ErrorKind::Other, Seen::DirectorySyncFailed))
                }
                (
                    DiskFault::None
                    | DiskFault::Full
                    | DiskFault::SyncFails
                    | DiskFault::DirectorySyncFails
                    | DiskFault::Flaky,
                    _,
                ) => None,
            };
            if let Some((kind, seen)) = refusal {
                w.log(|| format!("disk: {what} fails ({kind})"));
                w.tally.count(seen);
                w.cause(Cause::WriteUncertain);
                return Err(kind.into());
            }
            let done = then(w);
            w.log(|| format!("disk: {what}"));
            w.disk_changed();
            done
        })
    }
}

impl Files for SimFiles {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        self.world.with(|w| {
            let index = w.disk.directory.get(name);
            Ok(index.map(|index| Zeroizing::new(w.disk.inodes[*index].data.to_vec())))
        })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.perform(Act::Write, &format!("write {name}"), |w| {
            w.write_begins(name);
            w.check_written(bytes);
            w.disk.inodes.push(Inode { data: Arc::new(bytes.to_vec()), is_synced: false });
            let index = w.disk.inodes.len() - 1;
            w.disk.directory.insert(name.to_owned(), index);
            Ok(())
        })
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.perform(Act::Sync, &format!("sync {name}"), |w| match w.disk.directory.get(name) {
            Some(index) => {
                w.disk.inodes[*index].is_synced = true;
                Ok(())
            }
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.perform(Act::Rename, &format!("rename {from} to {to}"), |w| {
            match w.disk.directory.remove(from) {
                Some(index) => {
                    w.disk.directory.insert(to.to_owned(), index);
                    if to.starts_with("key-ring") {
                        w.ring_is_replaced();
                    }
                    Ok(())
                }
                None => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.perform(Act::SyncDirectory, "sync the directory", |w| {
            w.disk.durable_directory = w.disk.directory.clone();
            Ok(())
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}
