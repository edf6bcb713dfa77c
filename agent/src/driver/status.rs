//! What the agent says of itself to programs on this machine.

use serde_json::{Value, json};
use twinkey_rotation::{KeySlot, Reason};

use super::Driver;
use super::outcomes::Kind;
use crate::clock::{Correction, Source};
use crate::store::Files;

/// Counted since the process began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) attempts: u64,
    pub(super) accepted: u64,
    pub(super) lost: u64,
    pub(super) takeovers: u64,
    pub(super) is_disk_failing: bool,
    /// It was said that every key is refused.
    pub(super) is_all_refused: bool,
    /// What is wrong with the offer that stands, as it was logged last.
    pub(super) complaint: Option<String>,
}

impl<F: Files + Send + 'static> Driver<F> {
    /// The status document: names, times and counts, no secret.
    pub(super) fn status(&self) -> Value {
        let registration = &self.key_ring.registration;
        json!({
            "agent": env!("CARGO_PKG_VERSION"),
            "hostName": registration.host_name,
            "identity": registration.identity.to_string(),
            "clock": self.clock_document(),
            "startedAt": text_of(self.clock.unix_secs().saturating_sub(self.started.elapsed().as_secs())),
            "connection": {
                "connected": self.live.is_some(),
                "since": self.live.as_ref().map(|live| text_of(live.since_unix_secs)),
                "key": self.state.live.map(|key| key.to_string()),
                "tokenExpiry": self.live.as_ref().map(|live| text_of(live.expiry.unix_secs())),
                "alsoTried": self.also_tried(),
                "brought": self.state.durable.brought.map(|brought| brought.key.to_string()),
                "trying": self.attempt.as_ref().map(|attempt| attempt.key.to_string()),
                "last": self.outcomes.last(),
                "troubles": self.outcomes.obstacles_document(),
            },
            "suspicions": self.suspicions(),
            "keyRenewal": self.report_document(),
            "messages": {"waiting": self.outbox.waiting_count(), "unacknowledged": self.outbox.in_flight_count()},
            "counters": {
                "attempts": self.counters.attempts,
                "accepted": self.counters.accepted,
                "refused": self.outcomes.count_of(Kind::Refused),
                "lost": self.counters.lost,
                "takeovers": self.counters.takeovers,
                "failedWrites": self.outcomes.count_of(Kind::Storage),
            },
            "outcomes": self.outcomes.counts_document(),
        })
    }

    /// The keys besides the two held ones that are tried when no connection stands, each with what it is.
    fn also_tried(&self) -> Vec<String> {
        let ring = &self.state.ring;
        let brought = ring.brought.map(|brought| format!("{} (brought)", brought.key));
        let offered = KeySlot::ALL
            .into_iter()
            .filter_map(|slot| ring.slots.of(slot).candidate)
            .map(|candidate| format!("{} (offered)", candidate.key));
        let retired = ring.retired.map(|retired| format!("{} (retired)", retired.key));
        brought.into_iter().chain(offered).chain(retired).collect()
    }

    fn clock_document(&self) -> Value {
        let (status, offset_secs) = match self.clock.correction() {
            None => ("machine", None),
            Some(Correction { source: Source::Floor, offset_secs }) => ("floor", Some(offset_secs)),
            Some(Correction { source: Source::Hub, offset_secs }) => ("hub", Some(offset_secs)),
        };
        json!({
            "now": text_of(self.clock.unix_secs()),
            "source": status,
            "offsetSecs": offset_secs,
            "trouble": self.question.trouble(),
        })
    }

    /// What the agent believes without being able to prove it, each with what to do.
    fn suspicions(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut add = |kind: &str, next: &str| all.push(json!({"kind": kind, "next": next}));
        if self.counters.is_all_refused {
            add(Kind::DisabledOrDeleted.code(), Kind::DisabledOrDeleted.advice());
        }
        if self.duel.is_suspected() {
            add("duel", "find the other agent or program with this identity and stop it");
        }
        if self.restored.is_some() {
            add(
                "restored",
                "this key ring is older than what it reported: renew the device's keys again, so that it gets those it has missed",
            );
        }
        if self.is_twin_too_large() {
            add(
                "twin-too-large",
                "take large properties out of the twin, control characters and lists of empty values above all, which the hub does not count; until then no offer is read, and the rest goes on",
            );
        }
        if self.counters.is_disk_failing {
            add(Kind::Storage.code(), Kind::Storage.advice());
        }
        if self.clock.correction().is_some() {
            add(Kind::Clock.code(), Kind::Clock.advice());
        }
        all
    }

    fn is_twin_too_large(&self) -> bool {
        self.state.invalid.is_some_and(|invalid| invalid.reason == Reason::TwinTooLarge)
    }

    /// One line for the supervisor.
    pub(super) fn status_line(&self) -> String {
        match (&self.live, self.state.live) {
            (Some(live), Some(key)) => {
                format!("connected with key {key} since {}", text_of(live.since_unix_secs))
            }
            _ if self.counters.is_all_refused => {
                "not connected: the hub refuses every key; see `twinkey-agent status`".to_owned()
            }
            _ => match self.outcomes.last() {
                Some(what) => format!("not connected: {what}"),
                None => "connecting".to_owned(),
            },
        }
    }
}

/// RFC 3339, whole seconds, UTC.
pub(crate) fn text_of(unix_secs: u64) -> String {
    match std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(unix_secs)) {
        // humantime's formatter ends with the year 9999.
        Some(time) if unix_secs < 253_402_300_800 => humantime::format_rfc3339_seconds(time).to_string(),
        Some(_) | None => format!("{unix_secs} s after 1970"),
    }
}
