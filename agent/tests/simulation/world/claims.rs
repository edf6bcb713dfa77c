//! What the agent says and what it has heard, held against the books: no secret, no verdict that was not earned.

use super::*;

impl Inner {
    /// Every byte that the agent says, at the moment it says it.
    pub(crate) fn agent_said(&mut self, id: u64, bytes: &[u8], is_first: bool) {
        let mut buffer = BytesMut::from(bytes);
        while !buffer.is_empty() {
            let Ok(packet) = Packet::read(&mut buffer, PACKET_LEN_MAX) else {
                return self.fail("the agent says something that is no MQTT".to_owned());
            };
            match packet {
                Packet::Connect(connect) if is_first => self.connect_said(id, &connect),
                Packet::Publish(publish) => {
                    if publish.qos == QoS::AtMostOnce {
                        self.check_no_secret(&publish.payload);
                    }
                    if publish.topic.starts_with("$iothub/twin/PATCH/") {
                        self.report_said(&publish.payload);
                    }
                }
                _ => {}
            }
        }
    }

    /// I2: a key is on disk before it is used.
    pub(super) fn connect_said(&mut self, id: u64, connect: &Connect) {
        let token = connect.login.as_ref().map_or("", |login| login.password.as_str());
        let resource = format!("{HOST}/devices/{DEVICE}");
        let signed = self.keys.iter().enumerate().find_map(|(key, known)| {
            known.verifier.verify(token, &resource, 0).ok().map(|verified| (key, verified))
        });
        let Some((key, verified)) = signed else {
            return self.fail("the agent connects with a key that is none of this world".to_owned());
        };
        let name = self.name(key);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.key = Some(key);
            connection.expiry_unix_secs = verified.expiry.unix_secs();
        }
        self.log(|| format!("agent: CONNECT {id} with {name}"));
        self.check_trial(key);
        let is_on_disk = self.is_surely_on_disk(key);
        self.demand(is_on_disk, |w| format!("I2: {name} is used and may be missing on disk: {:?}", w.facts));
    }

    /// I8: no key in what the agent says of itself.
    pub(crate) fn check_no_secret(&mut self, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        let leaked = self.keys.iter().find(|known| text.contains(&known.base64) || text.contains(&known.hex));
        let leaked = leaked.map(|known| known.name);
        self.demand(leaked.is_none(), |_| format!("I8: the key {leaked:?} stands in what the agent says"));
    }

    /// I2 and I3: a verdict is durable before it is said, and rejection was earned.
    pub(super) fn report_said(&mut self, payload: &[u8]) {
        let report = serde_json::from_slice::<Value>(payload)
            .ok()
            .and_then(|patch| Report::read(&patch).ok().flatten());
        let Some(report) = report else { return self.fail("the agent reports what is no report".to_owned()) };
        let (status, reason, sequence) = (report.status, report.reason, report.sequence);
        self.log(|| {
            format!("agent: reports {status}, {reason:?}, sequence {sequence}, active {:?}", report.active)
        });
        self.reported_reasons(&report);
        let highest = self.facts.iter().map(|facts| facts.sequence).max().unwrap_or(0);
        self.demand(sequence <= highest, |_| {
            format!("I2: sequence {sequence} is reported, {highest} is on disk")
        });
        let rotation = report.rotation.map(|id| id.0.as_u128());
        if let Some(rotation) = rotation.filter(|_| matches!(status, Status::Committed | Status::Rejected)) {
            let is_durable = self.durable_verdicts.contains(&(rotation, status == Status::Committed));
            self.demand(is_durable, |w| {
                format!("I2: {status} is reported for {rotation:x} and not on disk: {:?}", w.facts)
            });
            if status == Status::Rejected {
                let is_earned = self.was_earned(rotation);
                self.demand(is_earned, |_| format!("I3: {rotation:x} is rejected without a fair trial"));
            }
        }
        // I9: whoever says which key it lives on proves that, over all that it says.
        if report.active.is_some() {
            let is_proved = self.proved_key(&report).is_some();
            self.demand(is_proved, |_| format!("I9: no key proves this report: {report:?}"));
            self.tally.count(Seen::Proved);
        } else {
            self.demand(report.proof.is_none(), |_| "I9: a proof without an active slot".to_owned());
            self.tally.count(Seen::ReportedWithoutActive);
        }
    }

    pub(super) fn reported_reasons(&mut self, report: &Report) {
        match report.status {
            Status::Committed => self.tally.count(Seen::Committed),
            Status::Rejected => self.tally.count(Seen::Rejected),
            Status::Invalid => self.tally.count(Seen::Invalid),
            Status::Idle | Status::Trying | Status::Waiting => {}
        }
        match report.reason {
            Some(Reason::Unauthenticated) => self.tally.count(Seen::UnauthenticatedReported),
            Some(Reason::TooManyOffers) => self.tally.count(Seen::TooManyOffersReported),
            Some(Reason::Storage) => self.tally.count(Seen::WaitingForDisk),
            Some(Reason::Duel) => self.tally.count(Seen::DuelReported),
            Some(Reason::Restored) => self.tally.count(Seen::RestoredReported),
            _ => {}
        }
        if report.clock_offset_secs.is_some() {
            self.tally.count(Seen::ClockCorrected);
        }
    }

    /// Whether an offered key was refused over the whole window, then another one accepted, then it refused again.
    pub(super) fn was_earned(&self, rotation: u128) -> bool {
        let offered = self.offers.iter().filter(|offer| offer.rotation == rotation);
        offered.into_iter().any(|offer| {
            offer.keys.iter().flatten().any(|key| {
                let known = &self.keys[*key];
                known.refused_ms.iter().any(|last| {
                    // An acceptance that was lost on its way is none that the agent can know of.
                    let heard = self.heard_log.iter().filter(|(at, other)| other == key && at <= last);
                    let since = heard.map(|(at, _)| *at).max().unwrap_or(0).max(offer.at_ms);
                    let Some(first) = known.refused_ms.iter().find(|at| **at >= since) else { return false };
                    self.heard_log.iter().any(|(control, other)| {
                        *other != *key && *control >= first + self.traits.window_ms && control <= last
                    })
                })
            })
        })
    }

    /// The agent has read the answer to its CONNECT.
    pub(crate) fn agent_heard(&mut self, id: u64) {
        let now = self.now_ms();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(key) = connection.key.filter(|_| connection.accepted_ms.is_some()) else { return };
        connection.heard_ms = Some(now);
        self.standing_since_ms.get_or_insert(now);
        self.heard_log.push((now, key));
        self.reasons_to_write += 1;
        self.tally.count(Seen::Connected);
        if self.accepted_last.is_some_and(|last| last != key) {
            let name = self.name(key);
            let was_active = self.facts.iter().any(|facts| facts.active == Some(name));
            let is_new = self.keys[key].accepted_ms.len() == 1;
            if !was_active && !is_new {
                self.tally.count(Seen::Fallback);
            }
            self.accepted_before = self.accepted_last;
            self.cause(Cause::KeyAccepted);
        }
        self.key_vouches(key);
        self.accepted_last = Some(key);
        let name = self.name(key);
        self.log(|| format!("agent: hears that {name} is accepted ({id})"));
        self.check_accepted_is_kept();
    }
}
