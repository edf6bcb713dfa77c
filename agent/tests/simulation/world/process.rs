//! The agent's process and its disk: when it lives, what has gone wrong with its files, and what they must hold.

use super::*;

impl Inner {
    /// The disk and the registry before the first start.
    pub(crate) fn begin(&mut self, disk: Disk, slots: [KeyId; 2]) {
        self.disk = disk;
        self.slots = slots;
        for key in slots {
            self.keys[key].from_ms = 0;
        }
        self.forget_books();
    }

    /// The disk was replaced from outside: the books begin anew.
    pub(crate) fn forget_books(&mut self) {
        self.accepted_last = None;
        self.accepted_before = None;
        self.durable_verdicts.clear();
        self.facts_of.clear();
        // Another disk has lost nothing.
        self.facts.clear();
        self.cause(Cause::DiskReplaced);
        self.disk_changed();
    }

    pub(crate) fn is_alive(&self, process: u64) -> bool {
        self.is_process_alive && self.process == process
    }

    pub(crate) fn is_any_alive(&self) -> bool {
        self.is_process_alive
    }

    /// A process begins; this is its number.
    pub(crate) fn process_begins(&mut self) -> u64 {
        self.process += 1;
        self.is_process_alive = true;
        self.reasons_to_write += 1;
        self.heard_by_process.clear();
        self.cause(Cause::Start);
        self.new_stretch();
        self.process
    }

    /// The process is no more: whatever it still does has no effect.
    pub(crate) fn die(&mut self) {
        self.is_process_alive = false;
    }

    /// No goodbye from the network stack: the hub has to find out by itself.
    pub(crate) fn stall_all(&mut self) {
        for connection in self.connections.values_mut().filter(|connection| connection.is_open) {
            connection.is_troubled = true;
            connection.link.lock().unwrap().stall();
        }
    }

    pub(crate) fn cut_all(&mut self) {
        for connection in self.connections.values_mut().filter(|connection| connection.is_open) {
            connection.is_troubled = true;
            connection.link.lock().unwrap().cut();
        }
    }

    pub(crate) fn disk_fault(&mut self) -> DiskFault {
        match self.weather.disk {
            DiskFault::Flaky => self.rng.pick(&[
                DiskFault::None,
                DiskFault::None,
                DiskFault::None,
                DiskFault::Full,
                DiskFault::ReadOnly,
                DiskFault::SyncFails,
                DiskFault::DirectorySyncFails,
            ]),
            fault => fault,
        }
    }

    /// How long the next sync takes, where that is long.
    pub(crate) fn slowness(&mut self, process: u64) -> Option<Duration> {
        if !self.is_alive(process) || !self.rng.per_mille(self.weather.disk_slow) {
            return None;
        }
        let takes_ms = self.rng.magnitude(16, 30_000);
        self.tally.count(Seen::SlowSync);
        self.log(|| format!("disk: a sync takes {takes_ms} ms"));
        // Clocks jump in steps meanwhile, so answers may come late.
        self.trouble_all();
        Some(Duration::from_millis(takes_ms))
    }

    pub(super) fn trouble_all(&mut self) {
        for connection in self.connections.values_mut().filter(|connection| connection.is_open) {
            connection.is_troubled = true;
        }
    }

    pub(crate) fn write_begins(&mut self, name: &str) {
        self.writes += u64::from(name.starts_with("key-ring"));
        // The first failures follow each other quickly, later ones ten minutes apart, of which half is chance.
        let bound = 30 + 10 * self.reasons_to_write + self.now_ms() / 300_000;
        let writes = self.writes;
        self.demand(writes <= bound, |_| format!("I4: {writes} writes, {bound} allowed"));
    }

    /// Reads the disk anew, where it matters.
    pub(crate) fn disk_changed(&mut self) {
        let facts_of = self.disk.key_ring_files();
        if facts_of == self.facts_of {
            return;
        }
        self.facts_of = facts_of;
        let had_way_out = self.has_way_out();
        match self.disk.facts() {
            Ok(facts) => self.facts = facts,
            Err(what) => return self.fail(what),
        }
        self.check_provenance();
        let has_way_out = self.has_way_out();
        self.demand(has_way_out || !had_way_out || self.has_gone_dark, |w| {
            format!("I1: the last key that the hub would accept has left the disk: {:?}", w.facts)
        });
        if let [facts] = self.facts.as_slice() {
            if let Some((rotation, Some(verdict))) = facts.rotation {
                self.durable_verdicts.insert((rotation, verdict == Verdict::Committed));
            }
        }
        self.check_accepted_is_kept();
    }

    /// I1, in every image that the disk could leave.
    pub(super) fn check_accepted_is_kept(&mut self) {
        let Some(last) = self.accepted_last else { return };
        let name = self.name(last);
        for facts in self.facts.clone() {
            self.demand(facts.has(name), |w| {
                format!("I1: the key {name} that the hub accepted last is not on disk: {:?}", w.facts)
            });
            if let (true, Some(before)) = (facts.active != Some(name), self.accepted_before) {
                let before = self.name(before);
                self.demand(facts.has(before), |w| {
                    format!(
                        "I1: {before} has left the disk before the acceptance of {name} was on it: {:?}",
                        w.facts
                    )
                });
            }
        }
    }

    /// A connection that has stood for long enough begins a new stretch.
    pub(super) fn note_settled(&mut self) {
        if self.standing_since_ms.is_some_and(|since_ms| self.now_ms() >= since_ms + SETTLED_MS) {
            self.new_stretch();
        }
    }

    pub(super) fn lose_live(&mut self) -> Option<u64> {
        self.note_settled();
        self.standing_since_ms = None;
        self.cause(Cause::NoConnection);
        self.live.take()
    }

    pub(super) fn new_stretch(&mut self) {
        self.stretch = Stretch { since_ms: self.now_ms(), dials: 0 };
    }
}
