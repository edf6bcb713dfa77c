//! What the agent says of itself to programs on this machine.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use twinkey_rotation::KeyName;

use super::Driver;
use crate::store::Files;

/// Counted since the process began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) attempts: u64,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) takeovers: u64,
    pub(super) failed_writes: u64,
    pub(super) is_disk_failing: bool,
    /// What keeps each key from being connected, as it was logged last.
    pub(super) troubles: BTreeMap<KeyName, String>,
    /// What is wrong with the offer that stands, as it was logged last.
    pub(super) complaint: Option<String>,
}

impl<F: Files + Send + 'static> Driver<F> {
    /// The status document: names, times and counts, no secret.
    pub(super) fn status(&self) -> Value {
        let registration = &self.key_ring.registration;
        let now = self.clock.unix_secs();
        json!({
            "agent": env!("CARGO_PKG_VERSION"),
            "hostName": registration.host_name,
            "identity": registration.identity.to_string(),
            "clock": text_of(now),
            "startedAt": text_of(self.started_unix_secs),
            "connection": {
                "connected": self.live.is_some(),
                "since": self.live.as_ref().map(|live| text_of(live.since_unix_secs)),
                "key": self.state.live.map(|key| key.to_string()),
                "tokenExpiry": self.live.as_ref().map(|live| text_of(live.expiry.unix_secs())),
                "trying": self.attempt.as_ref().map(|attempt| attempt.key.to_string()),
                "troubles": self.counters.troubles.iter().map(|(key, what)| json!({"key": key.to_string(), "what": what})).collect::<Vec<_>>(),
            },
            "keyRenewal": self.report_document(),
            "messages": {"waiting": self.outbox.waiting_count(), "unacknowledged": self.outbox.in_flight_count()},
            "counters": {
                "attempts": self.counters.attempts,
                "accepted": self.counters.accepted,
                "refused": self.counters.refused,
                "lost": self.counters.lost,
                "takeovers": self.counters.takeovers,
                "failedWrites": self.counters.failed_writes,
            },
        })
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
