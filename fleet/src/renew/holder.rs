//! Who a run is in leases, and whether another run of this machine was killed.
//!
//! A run's name is drawn at random. Machines that were restored from one snapshot share their ids, their kernel's start and
//! their process numbers, so none of these can tell one run from another.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use twinkey_contract::Identity;

use super::lock_files::{LockFile, LockFiles, places};
use crate::failure::Failure;

/// One run. While it lives, others see by its lock file that it does.
pub(crate) struct Holder {
    name: String,
    state: Mutex<State>,
}

struct State {
    /// Where lock files of this user may be.
    directories: Vec<LockFiles>,
    own: Own,
    /// Whose lease this run has taken and not given up.
    leases: HashSet<Identity>,
}

enum Own {
    /// There was no lease yet.
    NotMade,
    Made(LockFile),
    /// Others wait for the end of this run's leases.
    Impossible,
}

impl Holder {
    /// A run with a name that no other run has.
    pub(crate) fn draw() -> Result<Self, Failure> {
        Self::with_lock_files(places().into_iter().map(LockFiles::new).collect())
    }

    fn with_lock_files(directories: Vec<LockFiles>) -> Result<Self, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|e| Failure::failed(format!("no random numbers: {e}")))?;
        let name = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let state = State { directories, own: Own::NotMade, leases: HashSet::new() };
        Ok(Self { name, state: Mutex::new(state) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Before a lease is written.
    pub(super) fn takes(&self, identity: &Identity) {
        let mut state = self.state();
        state.leases.insert(identity.clone());
        if matches!(state.own, Own::NotMade) {
            let made = state.directories.iter().find_map(|directory| directory.make(&self.name).ok());
            state.own = made.map_or(Own::Impossible, Own::Made);
        }
        if let Own::Made(file) = &state.own {
            file.touch();
        }
    }

    /// Once the twin shows no lease of this run any more.
    pub(super) fn has_given_up(&self, identity: &Identity) {
        self.state().leases.remove(identity);
    }

    /// Whether `by` was a process of this machine that is gone: killed, it could not give up its lease.
    pub(super) fn is_left_behind(&self, by: &str) -> bool {
        by != self.name && self.state().directories.iter().any(|directory| directory.is_left_behind(by))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Holder {
    /// A lease that could not be given up stays in its twin; then the file stays as well, and tells other runs that this one is gone.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Own::Made(file), true) = (&state.own, state.leases.is_empty()) {
            file.remove();
        }
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::super::lock_files::Place;
    use super::*;

    /// A run whose lock files are here.
    pub(in super::super) fn holder_in(directory: &Path) -> Holder {
        let place = Place { base: directory.to_owned(), names: ["twinkey".to_owned(), "leases".to_owned()] };
        Holder::with_lock_files(vec![LockFiles::new(place)]).unwrap()
    }

    fn device(name: &str) -> Identity {
        Identity::new(name, None).unwrap()
    }

    fn files_in(directory: &Path) -> usize {
        std::fs::read_dir(directory.join("twinkey/leases")).map_or(0, Iterator::count)
    }

    #[test]
    fn every_run_draws_a_name_of_128_bits() {
        let dir = tempfile::tempdir().unwrap();
        let names: HashSet<String> = (0..100).map(|_| holder_in(dir.path()).name().to_owned()).collect();
        assert_eq!(names.len(), 100);
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        assert!(names.iter().all(|name| name.len() == 32 && name.chars().all(is_hex)), "{names:?}");
        assert_eq!(files_in(dir.path()), 0, "without a lease there is no file");
    }

    #[test]
    fn a_run_that_gave_up_its_leases_leaves_no_file_and_one_that_could_not_leaves_it_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad, other) = (holder_in(dir.path()), holder_in(dir.path()), holder_in(dir.path()));
        for run in [&good, &bad] {
            run.takes(&device("d1"));
            run.takes(&device("d2"));
            run.has_given_up(&device("d1"));
            assert!(!other.is_left_behind(run.name()), "it lives");
        }
        good.has_given_up(&device("d2"));
        assert_eq!(files_in(dir.path()), 2);
        let (good_name, bad_name) = (good.name().to_owned(), bad.name().to_owned());
        drop((good, bad));
        assert_eq!(files_in(dir.path()), 1);
        assert!(!other.is_left_behind(&good_name));
        // It may have had leases on several devices.
        assert!(other.is_left_behind(&bad_name) && other.is_left_behind(&bad_name));
    }

    #[test]
    fn where_no_lock_file_can_be_made_the_run_goes_on_and_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("twinkey"), "in the way").unwrap();
        let (run, other) = (holder_in(dir.path()), holder_in(dir.path()));
        run.takes(&device("d1"));
        let name = run.name().to_owned();
        drop(run);
        assert!(!other.is_left_behind(&name));
    }
}
