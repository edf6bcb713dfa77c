//! A disk that knows what a power cut may leave of it. The rules are those of a careful reading of POSIX, as in
//! "All File Systems Are Not Created Equal" (Pillai and others, OSDI 2014), and weaker than any one file system:
//!
//! * Content that was not synced may be lost, empty, whole, or cut short; the rest may be zeros, garbage or what
//!   stood there before.
//! * Whether a name points to a file is durable after a sync of the directory only. Before that each name may have
//!   any value that it has had since, whatever the others have: creations, removals and renames may be lost,
//!   reordered, and done in halves. One name changes all at once: that is what POSIX says of `rename`.
//! * After a failed sync the content may be lost even if a later sync of the same file succeeds, since the kernel
//!   takes the pages for clean ("Can Applications Recover from fsync Failures?", Rebello and others, ATC 2020).
//!
//! Each operation is recorded as the state that it leaves, so that images can be made for every prefix.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use twinkey_agent::store::Files;
use zeroize::Zeroizing;

/// The content of a file.
pub(crate) type Bytes = Rc<[u8]>;
/// What is there when the power comes back.
pub(crate) type Image = BTreeMap<String, Bytes>;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// How an operation fails. The caller sees an error each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Nothing was done.
    Undone,
    /// A write got half through: the file that stood there is gone, the new one is cut short. Else as `Undone`.
    Half,
    /// All was done, and only the answer says otherwise.
    Done,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Undone, Self::Half, Self::Done];
}

#[derive(Clone, Debug)]
struct File {
    /// What is there after a power cut; `None` while nothing was ever synced.
    durable: Option<Bytes>,
    /// What was written since, the newest last.
    pending: Vec<Bytes>,
    /// A sync has failed: later ones prove nothing.
    is_doubtful: bool,
}

/// The state of the disk at one instant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Platters {
    files: Vec<File>,
    /// Names, as programs see them.
    seen: BTreeMap<String, usize>,
    /// Names, as they were when the directory was synced.
    durable: BTreeMap<String, usize>,
    /// The values that a name has had since.
    pending: BTreeMap<String, Vec<Option<usize>>>,
}

#[derive(Debug, Default)]
struct Recorder {
    platters: Platters,
    operations: u32,
    faults: BTreeMap<u32, Fault>,
    unreadable: BTreeSet<String>,
    record: Vec<Platters>,
}

/// A handle on the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Rc<RefCell<Recorder>>);

impl Disk {
    /// A disk that holds `image`, all of it durable.
    pub(crate) fn holding(image: &Image) -> Self {
        let mut platters = Platters::default();
        for (name, bytes) in image {
            platters.durable.insert(name.clone(), platters.files.len());
            platters.files.push(File {
                durable: Some(bytes.clone()),
                pending: Vec::new(),
                is_doubtful: false,
            });
        }
        platters.seen = platters.durable.clone();
        Self(Rc::new(RefCell::new(Recorder { platters, ..Recorder::default() })))
    }

    /// The operations so far that change something or make it durable.
    pub(crate) fn operations(&self) -> u32 {
        self.0.borrow().operations
    }

    /// Has the operation with this number fail.
    pub(crate) fn fail_at(&self, operation: u32, fault: Fault) {
        self.0.borrow_mut().faults.insert(operation, fault);
    }

    /// Has every read of this file fail.
    pub(crate) fn refuse_to_read(&self, name: &str) {
        self.0.borrow_mut().unreadable.insert(name.to_owned());
    }

    /// The states after each operation since the last call.
    pub(crate) fn take_record(&self) -> Vec<Platters> {
        std::mem::take(&mut self.0.borrow_mut().record)
    }

    /// The state now.
    pub(crate) fn platters(&self) -> Platters {
        self.0.borrow().platters.clone()
    }

    /// Performs `act` as far as a fault allows, and records what that leaves.
    fn operate(&self, act: impl FnOnce(&mut Platters, Option<Fault>)) -> io::Result<()> {
        let mut recorder = self.0.borrow_mut();
        recorder.operations += 1;
        let number = recorder.operations;
        let fault = recorder.faults.remove(&number);
        act(&mut recorder.platters, fault);
        let platters = recorder.platters.clone();
        recorder.record.push(platters);
        match fault {
            None => Ok(()),
            Some(_) => Err(io::Error::from_raw_os_error(if number % 2 == 0 { ENOSPC } else { EIO })),
        }
    }
}

impl Files for Disk {
    fn read(&self, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let recorder = self.0.borrow();
        if recorder.unreadable.contains(name) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let platters = &recorder.platters;
        Ok(platters.seen.get(name).map(|file| {
            Zeroizing::new(platters.files[*file].seen().map_or(Vec::new(), |bytes| bytes.to_vec()))
        }))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.operate(|platters, fault| {
            let bytes = match fault {
                None | Some(Fault::Done) => bytes,
                Some(Fault::Half) => &bytes[..bytes.len() / 2],
                Some(Fault::Undone) => return,
            };
            // As the real file system does it: what stood there is removed, and a new file is made.
            platters.point(name, None);
            platters.files.push(File {
                durable: None,
                pending: vec![Bytes::from(&bytes[..0]), Bytes::from(bytes)],
                is_doubtful: false,
            });
            platters.point(name, Some(platters.files.len() - 1));
        })
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if !self.0.borrow().platters.seen.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.operate(|platters, fault| {
            let file = &mut platters.files[platters.seen[name]];
            if matches!(fault, Some(Fault::Undone | Fault::Half)) {
                file.is_doubtful = true;
            }
            if !file.is_doubtful {
                file.durable = file.seen();
                file.pending.clear();
            }
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|platters, fault| {
            if matches!(fault, None | Some(Fault::Done)) {
                let file = platters.seen.get(from).copied();
                platters.point(to, file);
                platters.point(from, None);
            }
        })
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.operate(|platters, fault| {
            if matches!(fault, None | Some(Fault::Done)) {
                platters.durable = platters.seen.clone();
                platters.pending.clear();
            }
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

impl Disk {
    /// Writes into the file that has this name already, as a store without a temporary file would.
    pub(crate) fn overwrite(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = self.0.borrow().platters.seen.get(name).copied() else {
            return self.write(name, bytes);
        };
        self.operate(|platters, fault| {
            if matches!(fault, None | Some(Fault::Done)) {
                platters.files[file].pending.push(Bytes::from(bytes));
            }
        })
    }
}

impl File {
    fn seen(&self) -> Option<Bytes> {
        self.pending.last().or(self.durable.as_ref()).cloned()
    }

    /// Every content that a power cut may leave.
    fn contents(&self) -> Vec<Bytes> {
        let before = self.durable.clone().unwrap_or_else(|| Bytes::from(&[][..]));
        let mut contents = BTreeSet::from([before.clone()]);
        for whole in &self.pending {
            let len = whole.len();
            contents.insert(whole.clone());
            contents.insert(Bytes::from(&[][..]));
            // Within the first word, at the end of the header, within the body, one byte short.
            let header = whole.iter().position(|byte| *byte == b'\n').unwrap_or(0);
            for cut in [1, header + 1, len / 2, len.saturating_sub(1)] {
                let Some(start) = whole.get(..cut) else { continue };
                contents.insert(Bytes::from(start));
                let filled = |fill: &mut dyn FnMut(usize) -> u8| -> Bytes {
                    start.iter().copied().chain((cut..len).map(fill)).collect()
                };
                contents.insert(filled(&mut |_| 0));
                contents.insert(filled(&mut |place| (place as u8).wrapping_mul(167) ^ 0x5a));
                if before.len() > cut {
                    contents.insert(start.iter().chain(&before[cut..]).copied().collect());
                }
            }
        }
        contents.into_iter().collect()
    }
}

impl Platters {
    fn point(&mut self, name: &str, file: Option<usize>) {
        self.pending.entry(name.to_owned()).or_default().push(file);
        match file {
            Some(file) => self.seen.insert(name.to_owned(), file),
            None => self.seen.remove(name),
        };
    }

    /// Everything that a power cut now may leave, each image once.
    pub(crate) fn images(&self) -> BTreeSet<Image> {
        let names: BTreeSet<&String> = self.durable.keys().chain(self.pending.keys()).collect();
        let mut directories: Vec<BTreeMap<&String, usize>> = vec![BTreeMap::new()];
        for name in names {
            let mut values = BTreeSet::from([self.durable.get(name).copied()]);
            values.extend(self.pending.get(name).into_iter().flatten());
            directories = directories
                .iter()
                .flat_map(|directory| {
                    values.iter().map(|value| {
                        let mut directory = directory.clone();
                        if let Some(file) = value {
                            directory.insert(name, *file);
                        }
                        directory
                    })
                })
                .collect();
        }
        directories.iter().flat_map(|directory| self.images_of(directory)).collect()
    }

    /// Every choice of contents for the files of one directory. A file with two names has one content.
    fn images_of(&self, directory: &BTreeMap<&String, usize>) -> Vec<Image> {
        let files: BTreeSet<usize> = directory.values().copied().collect();
        let mut choices: Vec<BTreeMap<usize, Bytes>> = vec![BTreeMap::new()];
        for file in files {
            let contents = self.files[file].contents();
            choices = choices
                .iter()
                .flat_map(|choice| {
                    contents.iter().map(move |content| {
                        let mut choice = choice.clone();
                        choice.insert(file, content.clone());
                        choice
                    })
                })
                .collect();
        }
        let image = |choice: &BTreeMap<usize, Bytes>| {
            directory.iter().map(|(name, file)| ((*name).clone(), choice[file].clone())).collect()
        };
        choices.iter().map(image).collect()
    }
}
