//! The twin, methods and messages: what the hub answers and counts.

use super::*;

impl Inner {
    /// What the hub answers; `None`: nothing.
    pub(crate) fn twin_wanted(&mut self, id: u64) -> Option<(u16, String)> {
        if self.rng.per_mille(self.weather.twin_lost) {
            self.tally.count(Seen::TwinUnanswered);
            self.trouble(id);
            return None;
        }
        if self.rng.per_mille(self.weather.twin_refused) {
            self.tally.count(Seen::TwinRefused);
            return Some((self.rng.pick(&[429, 500, 503]), "{}".to_owned()));
        }
        self.offer_is_shown();
        let mut desired = Map::new();
        if !self.desired.is_null() {
            desired.insert("keyRenewal".to_owned(), self.desired.clone());
        }
        desired.insert("$version".to_owned(), json!(self.desired_version));
        let mut reported = self.reported.clone();
        reported.insert("$version".to_owned(), json!(self.reported_version));
        Some((200, json!({"desired": desired, "reported": reported}).to_string()))
    }

    pub(crate) fn report_comes(&mut self, id: u64, payload: &[u8]) -> Option<(u16, String)> {
        let is_lost = self.rng.per_mille(self.weather.report_lost);
        if !is_lost && self.rng.per_mille(self.weather.report_refused) {
            self.tally.count(Seen::ReportRefused);
            return Some((self.rng.pick(&[429, 500, 503]), "{}".to_owned()));
        }
        if !is_lost || self.rng.per_mille(500) {
            if let Ok(Value::Object(patch)) = serde_json::from_slice(payload) {
                merge(&mut self.reported, patch);
                self.reported_version += 1;
            }
        }
        if is_lost {
            self.tally.count(Seen::ReportUnanswered);
            self.trouble(id);
            return None;
        }
        Some((204, String::new()))
    }

    pub(crate) fn subscribed(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.is_subscribed = true;
        }
    }

    /// Writes the desired section, and gives the hint that may get lost.
    pub(crate) fn desire(&mut self, section: Value, standing: Standing) {
        self.reasons_to_write += 2;
        self.new_stretch();
        self.desire_as_stranger(section, standing);
    }

    /// The same by somebody for whom the agent has no reason to do anything.
    pub(crate) fn desire_as_stranger(&mut self, section: Value, standing: Standing) {
        self.desired = section;
        self.desired_version += 1;
        self.standing = standing;
        self.log(|| format!("twin: the desired section is {standing:?}"));
        self.hint();
    }

    pub(crate) fn hint(&mut self) {
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={}", self.desired_version);
        let times = if self.rng.per_mille(self.weather.hint_lost) {
            self.tally.count(Seen::HintLost);
            0
        } else if self.rng.per_mille(self.weather.hint_twice) {
            self.tally.count(Seen::HintTwice);
            2
        } else {
            1
        };
        for _ in 0..times {
            let is_late = self.rng.per_mille(self.weather.hint_twice);
            let delay_ms = if is_late { self.rng.magnitude(10, 60_000) } else { 0 };
            if is_late {
                self.tally.count(Seen::HintLate);
            }
            self.tell_live(Packet::Publish(Publish::new(topic.as_str(), QoS::AtMostOnce, "{}")), delay_ms);
        }
    }

    /// Says something to the live connection, if that wants to hear it.
    pub(crate) fn tell_live(&mut self, packet: Packet, delay_ms: u64) -> bool {
        let live = self.live.and_then(|live| self.connections.get(&live)).filter(|live| live.is_subscribed);
        live.is_some_and(|live| live.orders.send(Order::Say(packet, delay_ms)).is_ok())
    }

    pub(crate) fn call_method(&mut self, action: &str) {
        let number = self.rng.below(1_000);
        let topic = format!("$iothub/methods/POST/keyRenewal/?$rid={number}");
        let body = json!({"action": action}).to_string();
        if self.tell_live(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)), 0) {
            self.log(|| format!("operator: calls the method, action {action}"));
            self.reasons_to_write += 1;
            self.new_stretch();
            if action == "retry" {
                self.cause(Cause::Start);
                self.tally.count(Seen::Retried);
            }
        }
    }

    pub(crate) fn note_offer(
        &mut self,
        rotation: u128,
        keys: [Option<KeyId>; 2],
        voucher: Voucher,
        section: Value,
    ) -> Standing {
        let at_ms = self.now_ms();
        self.offers.push(Offered {
            rotation,
            keys,
            voucher,
            section,
            at_ms,
            shown_ms: None,
            is_believable: false,
        });
        Standing::Offer(self.offers.len() - 1)
    }

    pub(crate) fn note_reason(&mut self) {
        self.reasons_to_write += 2;
        self.cause(Cause::Start);
        self.new_stretch();
    }

    /// What the operator reads.
    pub(crate) fn report(&self) -> Option<Report> {
        Report::read(&Value::Object(self.reported.clone())).ok().flatten()
    }

    /// The key that the device lives on, where the report proves it.
    pub(crate) fn proved_key(&self, report: &Report) -> Option<KeyId> {
        self.active_of(report).filter(|key| report.verify(&self.keys[*key].key, &identity()).is_ok())
    }

    pub(crate) fn active_of(&self, report: &Report) -> Option<KeyId> {
        let slot = report.slot(report.active?)?;
        self.key_named(KeyName(slot.fingerprint.0))
    }

    /// After how long the hub acknowledges; `None`: never.
    pub(crate) fn message_comes(&mut self, id: u64, publish: &Publish) -> Option<u64> {
        let number = std::str::from_utf8(&publish.payload).ok().and_then(|text| text.parse::<usize>().ok());
        let process = self.connections.get(&id).map_or(0, |connection| connection.process);
        let Some(number) = number.filter(|number| *number < self.messages.len()) else {
            self.fail("a message arrives that nobody sent".to_owned());
            return None;
        };
        if self.received.insert(number) {
            // MQTT-4.6.0-1; each process begins with what its predecessor left.
            let newest = self.newest_received.insert(process, number);
            self.demand(newest.is_none_or(|newest| newest < number), |_| {
                format!("message {number} arrives after {newest:?}")
            });
        } else {
            self.tally.count(Seen::MessageDuplicated);
        }
        if self.rng.per_mille(self.weather.ack_lost) {
            self.tally.count(Seen::AckLost);
            self.trouble(id);
            return None;
        }
        if self.rng.per_mille(self.weather.ack_late) {
            self.tally.count(Seen::AckLate);
            self.trouble(id);
            return Some(self.rng.magnitude(100, 60_000));
        }
        Some(0)
    }

    pub(crate) fn acknowledged(&mut self, number: usize) {
        let has_arrived = self.received.contains(&number);
        self.demand(has_arrived, |_| {
            format!("message {number} is called acknowledged and never reached the hub")
        });
        self.messages[number] = Sending::Acknowledged;
        self.tally.count(Seen::MessageAcknowledged);
    }
}
