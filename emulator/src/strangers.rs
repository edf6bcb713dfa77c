//! Connections that have not proved who they are: how many there may be, and which of them has to go.
//!
//! Whoever never authenticates costs memory and a file descriptor. Were such connections only refused above a limit,
//! a thousand silent ones would lock every device out; so the newest gets in and the oldest has to go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All strangers, by age.
#[derive(Debug)]
pub(crate) struct Strangers {
    len_max: usize,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    last_id: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Strangers {
    pub(crate) fn new(len_max: usize) -> Arc<Self> {
        Arc::new(Self { len_max, room: Mutex::default() })
    }

    /// A new connection. If there are too many, the oldest is told to go: then the second value is true.
    pub(crate) fn enter(self: &Arc<Self>) -> (Arc<Stranger>, bool) {
        let mut room = self.lock();
        room.last_id += 1;
        let id = room.last_id;
        let asked_to_go = Arc::new(Notify::new());
        room.by_age.insert(id, asked_to_go.clone());
        let is_crowded = room.by_age.len() > self.len_max && room.drop_oldest();
        (Arc::new(Stranger { strangers: self.clone(), id, asked_to_go }), is_crowded)
    }

    /// Makes the oldest go, for example because no file descriptor is free; says whether there was one.
    pub(crate) fn drop_oldest(&self) -> bool {
        self.lock().drop_oldest()
    }

    fn lock(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.by_age.pop_first();
        oldest.is_some_and(|(_, asked_to_go)| {
            asked_to_go.notify_one();
            true
        })
    }
}

/// One connection's place among the strangers, given back when it is known or dropped.
#[derive(Debug)]
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    id: u64,
    asked_to_go: Arc<Notify>,
}

impl Stranger {
    /// Returns once this connection has to make room; never, once it is known.
    pub(crate) async fn asked_to_go(&self) {
        self.asked_to_go.notified().await;
    }

    /// It has authenticated: nobody drops it for others any more.
    pub(crate) fn is_known_now(&self) {
        self.strangers.lock().by_age.remove(&self.id);
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_known_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_the_known_stay() {
        let strangers = Strangers::new(2);
        let (known, _) = strangers.enter();
        known.is_known_now();
        let (oldest, crowded) = strangers.enter();
        assert!(!crowded);
        let (gone, _) = strangers.enter();
        drop(gone);
        let ((_second, second_crowds), (_third, third_crowds)) = (strangers.enter(), strangers.enter());
        assert_eq!((second_crowds, third_crowds), (false, true));
        oldest.asked_to_go().await;
        assert!(strangers.drop_oldest() && strangers.drop_oldest() && !strangers.drop_oldest());
        let stays = tokio::time::timeout(std::time::Duration::from_millis(50), known.asked_to_go()).await;
        assert!(stays.is_err());
    }
}
