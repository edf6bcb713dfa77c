//! What must hold in every state ([`World::check`]) and in every step (`check_step`).

use twinkey_rotation::{
    Desired, Disk, Effects, Input, KeySlot, Outcome, Phase, Policy, Reason, Ring, Standing, State, Status,
    Timer, Trouble, Verdict, Window, step,
};

use super::{ACCEPTED, Act, REFUSED, World, ensure, on_trial};

impl World {
    /// Judges one step: from `before`, by `input`, to `self.state`, with `effects`.
    pub(super) fn check_step(
        &self,
        before: &State,
        input: &Input,
        effects: &Effects,
        is_condemned: bool,
    ) -> Result<(), String> {
        if let Some(key) = effects.connect {
            ensure(
                self.state.attempt.is_some_and(|attempt| attempt.key == key),
                "it forgets the attempt that it asked for",
            )?;
            ensure(self.is_on_disk(key), "I2: a key is tried before it is on disk")?;
        }
        let mut timers: Vec<Timer> = effects.timers.iter().flatten().map(|(timer, _)| *timer).collect();
        timers.dedup();
        ensure(timers.len() == effects.timers.iter().flatten().count(), "a timer armed twice in one step")?;
        self.check_set_aside(before, is_condemned)?;
        if *input == Input::Stored(false) && matches!(before.disk, Disk::Writing { .. }) {
            ensure(
                (self.state.live, self.state.attempt) == (before.live, before.attempt)
                    || before.attempt.is_none(),
                "I5: a failed write disturbs the connection",
            )?;
            ensure(self.state.ring == unchanged(before, &self.state), "I5: a failed write changes the ring")?;
        }
        Ok(())
    }

    /// I3: who is set aside by refusal, and when a rotation is called rejected.
    fn check_set_aside(&self, before: &State, is_condemned: bool) -> Result<(), String> {
        let (was, is) = (&before.ring, &self.state.ring);
        let terms = |ring: &Ring| ring.rotation.map(|rotation| (rotation.id, rotation.offered));
        let verdict = |ring: &Ring| ring.rotation.and_then(|rotation| rotation.verdict);
        let is_new_offer = terms(was) != terms(is);
        for slot in KeySlot::ALL {
            let (Some(then), Some(now)) = (was.slots.of(slot).candidate, is.slots.of(slot).candidate) else {
                continue;
            };
            let is_set_aside =
                then.key == now.key && then.standing == Standing::Trying && now.standing == Standing::Spare;
            if is_set_aside && !is_new_offer {
                ensure(
                    is_condemned && on_trial(was) == Some((slot, then.key)),
                    "I3: a candidate is set aside without a fair trial",
                )?;
            }
        }
        if verdict(is) == Some(Verdict::Rejected) && verdict(was) != Some(Verdict::Rejected) {
            let is_any_spare = is.rotation.is_some_and(|rotation| {
                KeySlot::ALL.into_iter().any(|slot| {
                    is.slots.of(slot).candidate.is_some_and(|candidate| {
                        candidate.standing == Standing::Spare
                            && *rotation.offered.of(slot) == Some(candidate.key)
                    })
                })
            });
            ensure(is_any_spare, "I3: a rotation is rejected though no key of it was set aside")?;
        }
        Ok(())
    }

    /// Judges the state that the world is in.
    pub(crate) fn check(&self, policy: &Policy) -> Result<(), String> {
        self.check_books()?;
        if let Some(key) = self.accepted_last {
            ensure(self.is_on_disk(key), "I1: the key that the hub accepted last may be missing on disk")?;
            ensure(
                self.state.ring.contains(key),
                "I1: the key that the hub accepted last has left the ring",
            )?;
        }
        if let Some(key) = self.trying {
            ensure(self.is_on_disk(key), "I2: the key that is tried may be missing on disk")?;
        }
        self.check_report()?;
        self.check_no_dead_end(policy)?;
        self.check_verdict()?;
        self.check_level_triggered(policy)?;
        self.check_nonsense(policy)
    }

    /// The machine's knowledge agrees with the world's books.
    fn check_books(&self) -> Result<(), String> {
        let state = &self.state;
        ensure(
            state.durable == self.confirmed,
            "it takes another ring for durable than the last confirmed one",
        )?;
        ensure(state.live == self.live, "it is wrong about the connection that stands")?;
        ensure(
            state.attempt.map(|attempt| attempt.key) == self.trying,
            "it is wrong about the attempt under way",
        )?;
        let writing = match state.disk {
            Disk::Idle | Disk::Failed { .. } => None,
            Disk::Writing { ring, .. } => Some(ring),
        };
        ensure(writing == self.writing, "it is wrong about the write under way")?;
        if let Some(live) = self.live {
            ensure(
                state.ring.active_key() == Some(live),
                "the key of the connection that stands is not the active one",
            )?;
        }
        let surely = state.ring.keys_in_order().into_iter().flatten();
        ensure(
            surely.into_iter().all(|key| !state.is_surely_stored(key) || self.is_on_disk(key)),
            "I2: it takes a key for stored that may be missing on disk",
        )
    }

    /// I2 and I5: what the report says.
    fn check_report(&self) -> Result<(), String> {
        let Some(report) = self.reported else {
            return Err("nothing was ever reported".to_owned());
        };
        ensure(report == self.state.report(), "the report is out of date")?;
        let durable = self.confirmed.rotation;
        let verdict = match report.status {
            Status::Committed => Some(Verdict::Committed),
            Status::Rejected => Some(Verdict::Rejected),
            Status::Idle | Status::Trying | Status::Invalid | Status::Waiting => None,
        };
        if verdict.is_some() {
            ensure(
                durable.map(|rotation| rotation.id) == report.rotation
                    && durable.and_then(|rotation| rotation.verdict) == verdict,
                "I2: a verdict is reported that is not on disk",
            )?;
        }
        let has_failed = match self.state.disk {
            Disk::Idle => false,
            Disk::Writing { failures, .. } => failures > 0,
            Disk::Failed { .. } => true,
        };
        if has_failed && report.status != Status::Invalid {
            ensure(report.reason.is_some(), "I5: the disk fails and the report is silent")?;
            ensure(
                self.state.ring.rotation == durable || report.reason == Some(Reason::Storage),
                "I5: the disk holds a rotation up and the report gives another reason",
            )?;
        }
        Ok(())
    }

    /// I4: there is always a next move.
    fn check_no_dead_end(&self, policy: &Policy) -> Result<(), String> {
        let state = &self.state;
        let has_usable =
            state.ring.keys_in_order().into_iter().flatten().any(|key| state.is_surely_stored(key));
        let is_trying = self.trying.is_some();
        if (self.live.is_none() || state.is_renewal_due) && has_usable {
            ensure(
                is_trying || self.armed[Timer::Retry as usize],
                "I4: not connected, no attempt under way, and the retry timer is not armed",
            )?;
        }
        for timer in Timer::ALL {
            ensure(
                !World::awaits(state, timer) || self.armed[timer as usize],
                &format!("I4: it waits for the timer {timer:?}, which is not armed"),
            )?;
        }
        if let Some((_, candidate)) = on_trial(&state.ring) {
            if !state.is_surely_stored(candidate) {
                ensure(state.disk != Disk::Idle, "I4: a candidate is not stored and nobody writes it")?;
            } else if self.live.is_some() {
                ensure(
                    is_trying
                        || state.trial.is_waiting
                        || state.is_renewal_due
                        || policy.is_single_connection,
                    "I4: a candidate on trial is not tried",
                )?;
            }
        }
        ensure(
            state.trial.phase != Phase::Last
                || (is_trying && self.trying == on_trial(&state.ring).map(|c| c.1)),
            "I3: something else comes between the control and the last attempt",
        )?;
        ensure(
            state.disk != Disk::Idle || state.ring.says_the_same_as(&state.durable),
            "I4: the disk is idle and does not hold the ring",
        )?;
        ensure(
            state.attempt.is_some() || state.deferred.is_none(),
            "I4: a document waits for the end of no attempt",
        )
    }

    /// A verdict stands exactly while no offered key is on trial, and only over keys that earned it.
    fn check_verdict(&self) -> Result<(), String> {
        let ring = &self.state.ring;
        let Some(rotation) = ring.rotation else {
            return Ok(());
        };
        ensure(
            rotation.verdict.is_some() || ring.slot_on_trial().is_some(),
            "a rotation goes on with no key on trial",
        )?;
        let is_any_unproven = KeySlot::ALL.into_iter().any(|slot| {
            let candidate = ring.slots.of(slot).candidate.map(|candidate| candidate.key);
            candidate.is_some() && candidate == *rotation.offered.of(slot)
        });
        ensure(
            rotation.verdict != Some(Verdict::Committed) || !is_any_unproven,
            "a rotation is called committed while an offered key of it is still a candidate",
        )
    }

    /// I6: the same document again.
    fn check_level_triggered(&self, policy: &Policy) -> Result<(), String> {
        let Some(document) = self.document else {
            return Ok(());
        };
        let (after, effects) = step(policy, self.state, Input::Desired(document), 0);
        let expected = State { deferred: self.state.attempt.and(Some(document)), ..self.state };
        ensure(
            after == expected && effects == Effects::default(),
            "I6: the same document again makes a difference",
        )
    }

    /// Results of nothing, and timers that nobody waits for.
    fn check_nonsense(&self, policy: &Policy) -> Result<(), String> {
        let mut nonsense = Vec::new();
        if self.writing.is_none() {
            nonsense.extend([Input::Stored(true), Input::Stored(false)]);
        }
        if self.trying.is_none() {
            let unknown = Input::Attempted(Outcome::Unknown(Trouble::Clock));
            nonsense.extend([ACCEPTED, REFUSED, unknown]);
        }
        if self.live.is_none() {
            nonsense.push(Input::Lost);
        }
        // (A live connection may settle twice: that only calms the backoff.)
        let may_fire =
            |timer| World::awaits(&self.state, timer) || (timer == Timer::Settled && self.live.is_some());
        let idle = Timer::ALL.into_iter().filter(|timer| !may_fire(*timer));
        nonsense.extend(idle.map(Input::Fired));
        nonsense.push(Input::Boot);
        for input in nonsense {
            let (after, effects) = step(policy, self.state, input, 0);
            ensure(
                after == self.state && effects == Effects::default(),
                &format!("{input:?} makes a difference where it makes no sense"),
            )?;
        }
        Ok(())
    }

    /// While the operator's acts are sound: no step lets the last key go that the hub would accept.
    pub(crate) fn check_way_out(&self, before: &State, now: &Act) -> Result<(), String> {
        let is_way_out = |ring: &Ring| ring.keys_in_order().into_iter().flatten().any(|key| now.accepts(key));
        ensure(
            !is_way_out(&before.ring) || is_way_out(&self.state.ring),
            "the last key that the hub would accept has left the ring",
        )
    }

    /// What the report must say once the world is at rest.
    pub(crate) fn check_rest(&self, document: Desired) -> Result<(), String> {
        let status = self.reported.map(|report| report.status);
        let is_fitting = match document {
            Desired::Nothing => matches!(status, Some(Status::Idle | Status::Committed | Status::Rejected)),
            Desired::Invalid(_) => status == Some(Status::Invalid),
            Desired::Offer(_) => matches!(status, Some(Status::Committed | Status::Rejected)),
        };
        ensure(is_fitting, &format!("I7: at rest, and the report says {status:?}"))?;
        ensure(
            self.reported.and_then(|report| report.active) == Some(self.state.ring.active),
            "I7: at rest, and the report does not name the active slot",
        )?;
        ensure(self.state.trial.window != Window::Open, "I7: at rest with an open window")
    }
}

/// The ring after a failed write: as it was, but for the sequence of a write that was asked for since.
fn unchanged(before: &State, after: &State) -> Ring {
    Ring { sequence: after.ring.sequence, ..before.ring }
}
