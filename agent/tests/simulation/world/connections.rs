//! Connections as network and hub make them: how an attempt goes, who is accepted, and how each one ends.

use super::*;

impl Inner {
    pub(crate) fn dial_begins(&mut self) -> DialPlan {
        let now = self.now_ms();
        self.note_settled();
        self.stretch.dials += 1;
        let took_ms = now - self.stretch.since_ms;
        // Rounds of at most five keys, at half the longest wait after a few shorter ones; the same for the trials of
        // two candidates with their controls; and the attempts after the clock was corrected.
        let rounds = took_ms / 150_000;
        let bound = 5 * (11 + rounds) + 4 * (12 + rounds) + 6 + took_ms / 300_000;
        let dials = self.stretch.dials;
        self.demand(dials <= bound, |_| {
            format!("I4: {dials} attempts in {took_ms} ms without a settled connection, {bound} allowed")
        });
        let latency_ms = self.weather.latency_ms;
        if now < self.down_until_ms {
            self.cause(Cause::NoConnection);
            return DialPlan::Fails { after_ms: self.rng.range(0, latency_ms), stage: 1 };
        }
        if self.rng.per_mille(self.weather.dial_fails) {
            let stage = self.rng.below(6);
            let after_ms = match stage {
                0..=2 => self.rng.range(0, latency_ms),
                3 | 4 => 20_000,
                _ => 30_000,
            };
            self.cause(Cause::NoConnection);
            self.tally.count(Seen::DialRefused);
            self.log(|| format!("network: no stream, stage {stage}"));
            return DialPlan::Fails { after_ms, stage };
        }
        DialPlan::Opens { after_ms: self.rng.range(0, latency_ms * 3) }
    }

    /// `None` when nobody wants it any more.
    pub(crate) fn connection_opens(
        &mut self,
        process: u64,
    ) -> Option<(u64, Plan, mpsc::UnboundedReceiver<Order>, mpsc::UnboundedSender<Order>)> {
        if !self.is_alive(process) || self.now_ms() < self.down_until_ms {
            return None;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let (keeper, orders) = mpsc::unbounded_channel();
        let mut cut_after = [None, None];
        if self.rng.per_mille(self.weather.cut) {
            let lane = self.rng.below(2) as usize;
            cut_after[lane] = Some(self.rng.magnitude(1, 4_096) as usize);
            self.tally.count(Seen::Cut);
        }
        let is_torn = self.rng.per_mille(self.weather.tear);
        if is_torn {
            self.tally.count(Seen::Torn);
        }
        let plan = Plan {
            rng: self.rng.branch(),
            latency_ms: self.weather.latency_ms,
            read_len_max: if is_torn { self.rng.pick(&[1, 3, 50, 500]) } else { usize::MAX },
            cut_after,
        };
        Some((id, plan, orders, keeper))
    }

    pub(crate) fn keep(
        &mut self,
        id: u64,
        process: u64,
        orders: mpsc::UnboundedSender<Order>,
        link: Arc<Mutex<Link>>,
    ) {
        let connection = Connection {
            process,
            key: None,
            expiry_unix_secs: 0,
            orders,
            link,
            accepted_ms: None,
            heard_ms: None,
            is_subscribed: false,
            is_open: true,
            is_troubled: self.weather.cut > 0,
            has_said_goodbye: false,
        };
        self.connections.insert(id, connection);
    }

    pub(crate) fn question_begins(&mut self) -> (u64, bool) {
        self.questions += 1;
        let bound = 12 + self.now_ms() / 60_000 + 2 * self.heard_log.len() as u64 + 2 * self.process;
        let questions = self.questions;
        self.demand(questions <= bound, |_| {
            format!("I4: {questions} questions after the time, {bound} allowed")
        });
        let is_answered = self.traits.answers_time && !self.rng.per_mille(self.weather.dial_fails);
        (self.rng.range(1, 2_000), is_answered)
    }

    pub(crate) fn connect_comes(&mut self, id: u64, connect: &Connect) -> Answer {
        self.demand(connect.client_id == DEVICE, |_| "CONNECT names another device".to_owned());
        if self.rng.per_mille(self.weather.restart_at_connect) {
            self.tally.count(Seen::HubRestartAtConnect);
            self.restart();
            return Answer::HangUp;
        }
        if self.rng.per_mille(self.weather.connack_never) {
            self.tally.count(Seen::ConnackNever);
            self.cause(Cause::NoConnection);
            self.log(|| format!("hub: no answer to {id}"));
            return Answer::Nothing;
        }
        if self.rng.per_mille(self.weather.connack_hang_up) {
            self.tally.count(Seen::HubHungUp);
            self.cause(Cause::NoConnection);
            self.log(|| format!("hub: hangs up on {id}"));
            return Answer::HangUp;
        }
        let delay_ms = if self.rng.per_mille(self.weather.connack_late) {
            self.tally.count(Seen::ConnackLate);
            self.rng.magnitude(1_000, 90_000)
        } else {
            0
        };
        Answer::After { delay_ms }
    }

    pub(crate) fn judge(&mut self, id: u64) -> Judgement {
        let now = self.now_ms();
        let now_unix_secs = self.true_unix_secs();
        let gap_ms = self.rng.pick(&[0, 1, 50]);
        let mut judgement = Judgement {
            code: ConnectReturnCode::NotAuthorized,
            is_session_present: false,
            closes: None,
            closes_first: self.traits.kicks_first,
            gap_ms,
        };
        if self.rng.per_mille(self.weather.connack_unavailable) {
            self.cause(Cause::NoConnection);
            self.tally.count(Seen::HubUnavailable);
            judgement.code = ConnectReturnCode::ServiceUnavailable;
            return judgement;
        }
        let Some(connection) = self.connections.get(&id) else { return judgement };
        let key = connection.key;
        let is_over = connection.expiry_unix_secs.saturating_add(Verifier::SKEW_SECS) < now_unix_secs;
        let is_good = key.is_some_and(|key| self.accepts(key)) && !is_over;
        let is_spurious = is_good && self.rng.per_mille(self.weather.connack_spurious);
        let Some(key) = key else { return judgement };
        let name = self.name(key);
        if !is_good || is_spurious {
            self.tally.count(if is_spurious { Seen::SpuriousRefusal } else { Seen::Refused });
            if self.keys[key].from_ms != u64::MAX && now < self.keys[key].from_ms {
                self.tally.count(Seen::RefusedNotYetPropagated);
            }
            self.keys[key].refused_ms.push(now);
            if self.is_any_held(key) {
                self.cause(Cause::NoConnection);
            }
            if self.traits.on_refusal != OnRefusal::KeepsLive && self.live.is_some() {
                self.tally.count(Seen::RefusalKickedLive);
                judgement.closes = self.lose_live();
                judgement.closes_first = self.traits.on_refusal == OnRefusal::DropsThenRefuses;
            }
            self.log(|| format!("hub: refuses {name} on {id} (spurious: {is_spurious}, over: {is_over})"));
            return judgement;
        }
        if !self.is_registered(key) {
            self.tally.count(Seen::AcceptedOldKey);
        }
        self.keys[key].accepted_ms.push(now);
        judgement.code = ConnectReturnCode::Success;
        judgement.is_session_present = std::mem::replace(&mut self.has_session, true);
        judgement.closes = self.live.replace(id);
        if judgement.closes.is_some() {
            self.tally.count(Seen::Takeover);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.accepted_ms = Some(now);
        }
        self.log(|| format!("hub: accepts {name} on {id}"));
        judgement
    }

    pub(crate) fn close(&mut self, id: Option<u64>) {
        if let Some(connection) = id.and_then(|id| self.connections.get(&id)) {
            let _ = connection.orders.send(Order::Close);
        }
    }

    pub(crate) fn token_ends(&self, id: u64) -> Instant {
        let expiry = self.connections.get(&id).map_or(0, |connection| connection.expiry_unix_secs);
        let left_ms = expiry.saturating_sub(self.true_unix_secs()).min(86_400 * 365) * 1_000;
        Instant::now() + Duration::from_millis(left_ms + TOKEN_GRACE_MS)
    }

    pub(crate) fn token_ran_out(&mut self, id: u64) {
        self.tally.count(Seen::TokenRunOut);
        self.log(|| format!("hub: the token of {id} has run out"));
    }

    pub(crate) fn fell_silent(&mut self, id: u64) {
        let is_excused = self.connections.get(&id).is_none_or(|connection| {
            connection.is_troubled || connection.heard_ms.is_none() || !self.is_alive(connection.process)
        });
        self.demand(is_excused, |_| format!("the agent lets connection {id} fall silent"));
    }

    pub(crate) fn said_goodbye(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.has_said_goodbye = true;
        }
    }

    pub(crate) fn connection_ends(&mut self, id: u64, is_by_agent: bool) {
        self.log(|| format!("hub: {id} ends (by the agent: {is_by_agent})"));
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.is_open = false;
        if self.live != Some(id) {
            return;
        }
        // Nothing was wrong with it, no other one was accepted, and yet the agent let it go.
        let is_given_up = is_by_agent
            && connection.heard_ms.is_some()
            && !connection.is_troubled
            && !connection.has_said_goodbye
            && connection.process == self.process
            && self.is_process_alive
            && !self.traits.breaks_before_make;
        self.lose_live();
        self.demand(!is_given_up, |_| format!("I5: the agent gives up connection {id}, which was good"));
    }

    pub(crate) fn restart(&mut self) {
        let down_ms = self.rng.pick(&[0, 500, 5_000, 60_000]);
        self.down_until_ms = self.now_ms() + down_ms;
        self.has_session = false;
        self.tally.count(Seen::HubRestart);
        self.log(|| format!("hub: restarts, down for {down_ms} ms"));
        self.kick_all();
    }

    pub(crate) fn kick_all(&mut self) {
        self.lose_live();
        for connection in self.connections.values().filter(|connection| connection.is_open) {
            let _ = connection.orders.send(Order::Close);
        }
    }

    /// Somebody else connects with our name.
    pub(crate) fn rival_connects(&mut self) {
        self.log(|| "rival: connects".to_owned());
        self.tally.count(Seen::SecondAgent);
        let live = self.lose_live();
        self.close(live);
        // A copy of our card reports as we do, of a ring that has gone its own way.
        if self.rng.per_mille(200) {
            if let Some(mut report) = self.report() {
                report.sequence += 3;
                if let Some(key) = self.active_of(&report) {
                    report.prove(&self.keys[key].key, &identity());
                }
                if let Value::Object(patch) = report.to_patch() {
                    merge(&mut self.reported, patch);
                    self.reported_version += 1;
                }
            }
        }
    }

    pub(super) fn trouble(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.is_troubled = true;
        }
    }
}
