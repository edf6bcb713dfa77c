//! Devices that the operator plays without connections: which they are, and whose desired properties have changed. So a
//! fleet of a hundred thousand can be played on one machine.

use std::collections::BTreeMap;
use std::ops::Bound;

use tokio::sync::watch;

use crate::identity::IdentityId;

/// Numbers the changes of puppets' desired properties. Of each puppet the newest is known.
#[derive(Debug, Default)]
pub(crate) struct Puppets {
    newest: watch::Sender<u64>,
    by_number: BTreeMap<u64, IdentityId>,
    numbers: BTreeMap<IdentityId, u64>,
}

impl Puppets {
    /// Notes that the desired properties of `id` are news.
    pub(crate) fn note(&mut self, id: &IdentityId) {
        let number = *self.newest.borrow() + 1;
        if let Some(before) = self.numbers.insert(id.clone(), number) {
            self.by_number.remove(&before);
        }
        self.by_number.insert(number, id.clone());
        self.newest.send_replace(number);
    }

    /// Forgets one that is no puppet any more.
    pub(crate) fn forget(&mut self, id: &IdentityId) {
        if let Some(number) = self.numbers.remove(id) {
            self.by_number.remove(&number);
        }
    }

    /// What was noted after `number`, oldest first.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = (u64, &IdentityId)> {
        self.by_number.range((Bound::Excluded(number), Bound::Unbounded)).map(|(number, id)| (*number, id))
    }

    /// The number of the newest change, and a bell for the next.
    pub(crate) fn bell(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_puppet_stands_there_once_in_the_order_of_its_newest_change() {
        let [a, b] = ["a", "b"].map(|id| IdentityId::device(id).unwrap());
        let mut puppets = Puppets::default();
        for id in [&a, &b, &a] {
            puppets.note(id);
        }
        assert_eq!(puppets.after(0).collect::<Vec<_>>(), [(2, &b), (3, &a)]);
        assert_eq!(puppets.after(2).collect::<Vec<_>>(), [(3, &a)]);
        puppets.forget(&a);
        puppets.note(&a);
        assert_eq!(puppets.after(0).collect::<Vec<_>>(), [(2, &b), (4, &a)]);
    }
}
