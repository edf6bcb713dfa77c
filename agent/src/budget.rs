//! One byte budget over everything that programs can make the agent hold. What a program has sent is kept until the hub has
//! acknowledged it, and the hub may be away for days. So every message has a [`Room`] for as long as it exists, and a program
//! that has no room left is not read from until it has some again.
//!
//! Shares are fair: an [`Account`] (one connection of a program) may always hold [`FLOOR_LEN`], and beyond that no more than it
//! leaves free for all others ("dynamic thresholds": Choudhury and Hahne, IEEE/ACM Transactions on Networking 6/2, 1998). Alone
//! it gets half, two get a third each, and there is always something left for the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::local::{LINE_LEN_MAX, LONG_LINES_MAX, PARSE_LEN_MAX, PLACE_LEN_MAX, PLACES_MAX};

/// Most bytes that all programs together can make the agent hold: enough for an hour of a busy gateway's messages, and
/// little on the smallest boards that are supported (512 MiB).
pub const PROGRAMS_LEN_MAX: usize = 16 * 1024 * 1024;
/// What an account may hold whatever others hold: some dozens of small messages.
pub const FLOOR_LEN: usize = 16 * 1024;
/// What is left for messages beyond the floors: the budget without what each place takes and the lines that are read.
pub const SHARED_LEN: usize = PROGRAMS_LEN_MAX
    - PLACES_MAX * (PLACE_LEN_MAX + FLOOR_LEN)
    - LONG_LINES_MAX * LINE_LEN_MAX
    - PARSE_LEN_MAX;

/// The budget. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    accounts: BTreeMap<u64, Standing>,
    last_id: u64,
    /// What accounts hold beyond their floors, and what those have left behind that are closed.
    shared_len: usize,
}

#[derive(Debug)]
struct Standing {
    held_len: usize,
    /// What of it does not count as shared.
    floor_len: usize,
    /// The program has gone.
    is_leaving: bool,
    /// Told when something is given back.
    changed: Arc<Notify>,
}

/// What one program may hold. Dropping it closes it.
#[derive(Debug)]
pub struct Account {
    id: u64,
    budget: Budget,
    changed: Arc<Notify>,
}

/// A part of the budget, which is given back when it is dropped.
#[derive(Debug)]
pub struct Room {
    /// `None` where nothing is counted.
    account: Option<(u64, Budget)>,
    len: usize,
}

impl Budget {
    /// An account for a program that has come.
    pub fn open(&self) -> Account {
        let changed = Arc::new(Notify::new());
        let mut books = self.books();
        books.last_id += 1;
        let id = books.last_id;
        // What programs have left behind may use floors still. Who comes then can ask, and sends once there is room.
        let floors = books.accounts.values().filter(|standing| standing.floor_len > 0).count();
        let floor_len = if floors < PLACES_MAX { FLOOR_LEN } else { 0 };
        let standing = Standing { held_len: 0, floor_len, is_leaving: false, changed: Arc::clone(&changed) };
        books.accounts.insert(id, standing);
        Account { id, budget: self.clone(), changed }
    }

    /// What all accounts hold, in bytes.
    pub fn held_len(&self) -> usize {
        let books = self.books();
        books.shared_len + books.accounts.values().map(Standing::floor_used).sum::<usize>()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // What a panic has left is still right: each change is one assignment.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Whether there was room for `len` more.
    fn take(&mut self, id: u64, len: usize) -> bool {
        let Some(standing) = self.accounts.get_mut(&id) else { return false };
        let before = standing.beyond_floor();
        let after = (standing.held_len + len).saturating_sub(standing.floor_len);
        let shared_len = self.shared_len - before + after;
        if after > 0 && after > SHARED_LEN.saturating_sub(shared_len) {
            return false;
        }
        standing.held_len += len;
        self.shared_len = shared_len;
        true
    }

    fn give_back(&mut self, id: u64, len: usize) {
        match self.accounts.get_mut(&id) {
            Some(standing) => {
                let before = standing.beyond_floor();
                standing.held_len = standing.held_len.saturating_sub(len);
                let freed = before - standing.beyond_floor();
                self.shared_len = self.shared_len.saturating_sub(freed);
                standing.changed.notify_one();
            }
            // It was closed.
            None => self.shared_len = self.shared_len.saturating_sub(len),
        }
        self.close_those_that_leave();
    }

    /// What a program has left behind counts as shared once there is room for that. Until then its floor stays in use, so
    /// that programs that come and go can't hold more than those that stay.
    fn close_those_that_leave(&mut self) {
        let mut shared_len = self.shared_len;
        self.accounts.retain(|_, standing| {
            let closes = standing.is_leaving && shared_len + standing.floor_used() <= SHARED_LEN;
            if closes {
                shared_len += standing.floor_used();
            }
            !closes
        });
        self.shared_len = shared_len;
    }
}

impl Standing {
    fn floor_used(&self) -> usize {
        self.held_len.min(self.floor_len)
    }

    fn beyond_floor(&self) -> usize {
        self.held_len.saturating_sub(self.floor_len)
    }
}

impl Account {
    /// Room for `len` bytes, if there is some now.
    pub fn take(&self, len: usize) -> Option<Room> {
        self.budget
            .books()
            .take(self.id, len)
            .then(|| Room { account: Some((self.id, self.budget.clone())), len })
    }

    /// Waits for room as long as the account holds anything that will be given back; `None` if there is none even so.
    pub async fn wait(&self, len: usize) -> Option<Room> {
        loop {
            if let Some(room) = self.take(len) {
                return Some(room);
            }
            if self.held_len() == 0 {
                return None;
            }
            self.given_back().await;
        }
    }

    /// Waits until something of it was given back, now or since the last wait.
    pub async fn given_back(&self) {
        self.changed.notified().await;
    }

    /// What it holds.
    pub fn held_len(&self) -> usize {
        self.budget.books().accounts.get(&self.id).map_or(0, |standing| standing.held_len)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        if let Some(standing) = books.accounts.get_mut(&self.id) {
            standing.is_leaving = true;
        }
        books.close_those_that_leave();
    }
}

impl Room {
    /// For what no program has sent.
    pub fn uncounted() -> Self {
        Self { account: None, len: 0 }
    }

    /// Gives back what is more than `len`.
    pub fn shrink_to(&mut self, len: usize) {
        if let Some(rest) = self.len.checked_sub(len) {
            drop(self.split_off(rest));
        }
    }

    /// `len` bytes of it (all, if it has fewer) as a room of their own.
    #[must_use]
    pub fn split_off(&mut self, len: usize) -> Self {
        let len = len.min(self.len);
        self.len -= len;
        Self { account: self.account.clone(), len }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some((id, budget)) = self.account.as_ref().filter(|_| self.len > 0) {
            budget.books().give_back(*id, self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// The most that an account gets in pieces of `len`.
    fn fill(account: &Account, len: usize) -> Vec<Room> {
        std::iter::from_fn(|| account.take(len)).collect()
    }

    fn len_of(rooms: &[Room]) -> usize {
        rooms.iter().map(|room| room.len).sum()
    }

    #[test]
    fn a_program_alone_gets_half_and_leaves_half_of_the_rest_to_each_that_follows() {
        let budget = Budget::default();
        let accounts: Vec<_> = (0..4).map(|_| budget.open()).collect();
        let mut free = SHARED_LEN;
        let mut rooms = Vec::new();
        for account in &accounts {
            let taken = fill(account, 64);
            let beyond = len_of(&taken) - FLOOR_LEN;
            assert!(beyond <= free / 2 && beyond + 64 > free / 2, "{beyond} of {free}");
            free -= beyond;
            rooms.push(taken);
        }
        drop(rooms);
        assert_eq!(budget.held_len(), 0);
    }

    #[test]
    fn at_the_edge_every_place_still_has_its_floor_and_the_budget_is_not_exceeded() {
        let budget = Budget::default();
        let accounts: Vec<_> = (0..PLACES_MAX).map(|_| budget.open()).collect();
        let rooms: Vec<_> = accounts.iter().map(|account| fill(account, 1_000)).collect();
        for (number, taken) in rooms.iter().enumerate() {
            assert!(len_of(taken) + 1_000 > FLOOR_LEN, "place {number}: {}", len_of(taken));
        }
        let held: usize = rooms.iter().map(|taken| len_of(taken)).sum();
        assert_eq!(budget.held_len(), held);
        assert!(held <= SHARED_LEN + PLACES_MAX * FLOOR_LEN);
        let fixed = PLACES_MAX * PLACE_LEN_MAX + LONG_LINES_MAX * LINE_LEN_MAX + PARSE_LEN_MAX;
        assert!(held + fixed <= PROGRAMS_LEN_MAX, "{held} beside {fixed}");
    }

    #[test]
    fn programs_that_come_and_go_leave_no_more_behind_than_those_that_stay_may_hold() {
        let budget = Budget::default();
        let mut left = Vec::new();
        loop {
            let account = budget.open();
            let taken = fill(&account, 4_096);
            if taken.is_empty() {
                break;
            }
            left.extend(taken);
        }
        let floors = PLACES_MAX * FLOOR_LEN;
        let held = budget.held_len();
        assert!(held <= SHARED_LEN + floors && held > SHARED_LEN + floors / 2, "{held}");
        // What is acknowledged is room for those that come.
        drop(left);
        assert_eq!(budget.held_len(), 0);
        assert!(budget.open().take(SHARED_LEN / 2).is_some());
    }

    #[test]
    fn rooms_are_split_and_shrunk_without_losing_a_byte() {
        let budget = Budget::default();
        let account = budget.open();
        let mut room = account.take(FLOOR_LEN + 1_000).unwrap();
        let part = room.split_off(300);
        room.shrink_to(100);
        assert_eq!(budget.held_len(), 400);
        drop(room);
        assert_eq!(budget.held_len(), 300);
        let mut part = part;
        assert_eq!(part.split_off(1_000).len, 300);
        assert_eq!(budget.held_len(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_for_room_gets_it_when_his_own_is_given_back_and_nobody_waits_who_holds_nothing() {
        let budget = Budget::default();
        let (one, other) = (budget.open(), budget.open());
        let mut rooms = fill(&one, 1_000);
        let waits = one.wait(5_000);
        tokio::pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        rooms.truncate(rooms.len() - 20);
        assert!(waits.await.is_some());
        assert!(other.wait(SHARED_LEN).await.is_none());
    }
}
