//! Who may be connected. Places are few, so that what each takes can be counted; programs that leave theirs unused give them
//! up to others, and some are kept for a person who comes to help.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::task::{AbortHandle, Id};

use super::{PLACES_MAX, PRIVILEGED_PLACES};
use crate::clock::Instant;

/// Connections of one process: a program that forgets to close its connections keeps none from the others.
const PROCESS_PLACES_MAX: usize = 16;
/// A connection that has sent nothing and waits for nothing for so long may be closed when its place is needed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// The user whom the kernel names in place of one that the agent's user namespace does not have (user_namespaces(7)): it
/// could be anybody.
const OVERFLOW_UID: u32 = 65_534;

/// Who is at the other end, as the kernel knows it (unix(7), SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    uid: u32,
    /// Absent where the agent can't see the process.
    pid: Option<i32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(credentials) => Self { uid: credentials.uid(), pid: credentials.pid().filter(|pid| *pid > 0) },
            Err(_) => Self { uid: OVERFLOW_UID, pid: None },
        }
    }

    /// root, and the agent's own user: both can read the key ring anyway.
    pub(super) fn is_privileged(self, own_uid: u32) -> bool {
        self.uid == 0 || (self.uid == own_uid && own_uid != OVERFLOW_UID)
    }
}

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Doing>);

#[derive(Clone, Copy, Debug)]
struct Doing {
    /// A request has begun to come, or is being answered.
    is_reading: bool,
    /// Messages have not been answered yet.
    waits: bool,
    /// When it did something last.
    since: Instant,
}

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Doing { is_reading: false, waits: false, since: now }))
    }

    /// A request begins to come.
    pub(super) fn begin(&self) {
        self.doing().is_reading = true;
    }

    /// The next request is waited for.
    pub(super) fn rest(&self, now: Instant, waits: bool) {
        *self.doing() = Doing { is_reading: false, waits, since: now };
    }

    /// A message was answered.
    pub(super) fn answered(&self, now: Instant, waits: bool) {
        let mut doing = self.doing();
        (doing.waits, doing.since) = (waits, now);
    }

    /// `None` while it is not idle.
    fn idle_since(&self) -> Option<Instant> {
        let doing = *self.doing();
        (!doing.is_reading && !doing.waits).then_some(doing.since)
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections that stand.
#[derive(Debug)]
pub(super) struct Places {
    own_uid: u32,
    taken: Vec<Taken>,
}

#[derive(Debug)]
struct Taken {
    peer: Peer,
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// Why a program is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TurnedAway {
    #[error("{} programs are connected already: close some first", PLACES_MAX - PRIVILEGED_PLACES)]
    Full,
    #[error(
        "this program has {PROCESS_PLACES_MAX} connections already: use one of them, or close some first"
    )]
    TooMany,
}

impl Places {
    pub(super) fn new(own_uid: u32) -> Self {
        Self { own_uid, taken: Vec::new() }
    }

    pub(super) fn is_privileged(&self, peer: Peer) -> bool {
        peer.is_privileged(self.own_uid)
    }

    /// Makes sure that there is a place for `peer`, for which somebody else may have to go.
    pub(super) fn admit(&mut self, peer: Peer, now: Instant) -> Result<(), TurnedAway> {
        if self.is_privileged(peer) {
            if self.taken.len() >= PLACES_MAX && !self.close_idle(now, Duration::ZERO, |_| true) {
                return Err(TurnedAway::Full);
            }
            return Ok(());
        }
        let is_same = |other: Peer| peer.pid.is_some() && other.pid == peer.pid;
        let of_process = self.taken.iter().filter(|taken| is_same(taken.peer)).count();
        if of_process >= PROCESS_PLACES_MAX && !self.close_idle(now, IDLE_MAX, is_same) {
            return Err(TurnedAway::TooMany);
        }
        let own_uid = self.own_uid;
        let is_ordinary = |other: Peer| !other.is_privileged(own_uid);
        let ordinary = self.taken.iter().filter(|taken| is_ordinary(taken.peer)).count();
        let is_full = ordinary >= PLACES_MAX - PRIVILEGED_PLACES || self.taken.len() >= PLACES_MAX;
        if is_full && !self.close_idle(now, IDLE_MAX, |_| true) {
            return Err(TurnedAway::Full);
        }
        Ok(())
    }

    /// Closes the connection that has been idle for longest, if that is `at_least`.
    fn close_idle(&mut self, now: Instant, at_least: Duration, is_meant: impl Fn(Peer) -> bool) -> bool {
        let idle = self.taken.iter().enumerate().filter(|(_, taken)| is_meant(taken.peer));
        let idle = idle.filter_map(|(index, taken)| Some((taken.activity.idle_since()?, index)));
        let Some((since, index)) = idle.min() else { return false };
        if now.saturating_duration_since(since) < at_least {
            return false;
        }
        self.taken.swap_remove(index).task.abort();
        true
    }

    pub(super) fn take(&mut self, peer: Peer, activity: Arc<Activity>, task: AbortHandle) {
        self.taken.push(Taken { peer, activity, task });
    }

    /// A connection has ended.
    pub(super) fn free(&mut self, task: Id) {
        self.taken.retain(|taken| taken.task.id() != task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 990;
    const OTHER: u32 = 1_000;

    struct World {
        places: Places,
        now: Instant,
        next_pid: i32,
    }

    impl World {
        fn new() -> Self {
            Self { places: Places::new(OWN), now: Instant::now(), next_pid: 100 }
        }

        /// A process of its own that comes, and is busy or has just come to rest.
        fn comes(&mut self, uid: u32, is_busy: bool) -> Result<AbortHandle, TurnedAway> {
            self.next_pid += 1;
            self.comes_as(Peer { uid, pid: Some(self.next_pid) }, is_busy)
        }

        fn comes_as(&mut self, peer: Peer, is_busy: bool) -> Result<AbortHandle, TurnedAway> {
            self.places.admit(peer, self.now)?;
            let activity = Arc::new(Activity::new(self.now));
            if is_busy {
                activity.begin();
            }
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            self.places.take(peer, activity, task.clone());
            Ok(task)
        }

        fn fill(&mut self, is_busy: bool) -> Vec<AbortHandle> {
            std::iter::from_fn(|| self.comes(OTHER, is_busy).ok()).collect()
        }
    }

    async fn has_gone(task: &AbortHandle) -> bool {
        tokio::task::yield_now().await;
        task.is_finished()
    }

    #[tokio::test]
    async fn root_and_the_agents_own_user_find_a_place_when_programs_have_taken_all_of_theirs() {
        let mut world = World::new();
        assert_eq!(world.fill(true).len(), PLACES_MAX - PRIVILEGED_PLACES);
        assert_eq!(world.comes(OTHER, true).unwrap_err(), TurnedAway::Full);
        for uid in [0, OWN] {
            world.comes(uid, true).unwrap();
        }
        // Nobody is idle.
        assert_eq!(world.comes(0, true).unwrap_err(), TurnedAway::Full);
    }

    #[tokio::test]
    async fn a_person_displaces_whoever_has_been_idle_for_longest_and_a_program_only_whoever_was_so_for_minutes()
     {
        let mut world = World::new();
        let idle = world.fill(false);
        assert_eq!(idle.len(), PLACES_MAX - PRIVILEGED_PLACES);
        world.now += Duration::from_secs(1);
        for _ in 0..PRIVILEGED_PLACES {
            world.comes(0, false).unwrap();
        }
        assert_eq!(world.comes(OTHER, false).unwrap_err(), TurnedAway::Full);
        world.comes(0, false).unwrap();
        let gone = world.places.taken.iter().filter(|taken| taken.peer.uid == OTHER).count();
        assert_eq!(gone, idle.len() - 1);
        tokio::task::yield_now().await;
        assert_eq!(idle.iter().filter(|task| task.is_finished()).count(), 1);

        world.now += IDLE_MAX;
        let late = world.comes(OTHER, false).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(idle.iter().filter(|task| task.is_finished()).count(), 2);
        assert!(!has_gone(&late).await);
    }

    #[tokio::test]
    async fn a_process_that_leaks_its_connections_is_stopped_before_others_have_none() {
        let mut world = World::new();
        let leaking = Peer { uid: OTHER, pid: Some(7) };
        for _ in 0..PROCESS_PLACES_MAX {
            world.comes_as(leaking, false).unwrap();
        }
        assert_eq!(world.comes_as(leaking, false).unwrap_err(), TurnedAway::TooMany);
        world.comes(OTHER, false).unwrap();
        // Later it loses one of its own.
        world.now += IDLE_MAX;
        world.comes_as(leaking, false).unwrap();
        assert_eq!(world.places.taken.len(), PROCESS_PLACES_MAX + 1);
        // Processes that can't be told apart are not taken for one.
        let unseen = Peer { uid: OTHER, pid: None };
        for _ in 0..=PROCESS_PLACES_MAX {
            world.comes_as(unseen, true).unwrap();
        }
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_its_program_has_gone() {
        let mut world = World::new();
        let tasks = world.fill(true);
        world.places.free(tasks[3].id());
        world.comes(OTHER, true).unwrap();
        assert_eq!(world.comes(OTHER, true).unwrap_err(), TurnedAway::Full);
    }

    #[test]
    fn nobody_is_taken_for_the_agents_user_where_the_kernel_shows_every_user_as_the_same() {
        let anybody = Peer { uid: OVERFLOW_UID, pid: Some(7) };
        assert!(!anybody.is_privileged(OVERFLOW_UID) && !anybody.is_privileged(OWN));
        let own = Peer { uid: OWN, pid: None };
        assert!(own.is_privileged(OWN) && !own.is_privileged(0));
        assert!(Peer { uid: 0, pid: None }.is_privileged(OWN));
    }
}
