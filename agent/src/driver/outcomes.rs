//! How attempts end, typed and counted, and what a person can do about each.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use twinkey_rotation::{KeyName, Outcome, Trouble};

use super::status::text_of;
use crate::hub::dial::{DialError, Stage};
use crate::hub::session::ConnectError;
use crate::hub::tls::{self, Fault};

/// How an attempt ended when it did not end in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The hub refused the key.
    Refused,
    /// The clock can't be right.
    Clock,
    /// Every key is refused, and it is not the clock.
    DisabledOrDeleted,
    /// Name resolution.
    Dns,
    /// TCP.
    Tcp,
    /// The certificate's name.
    TlsName,
    /// The certificate's issuers.
    TlsChain,
    /// The certificate's dates.
    TlsDate,
    /// The TLS handshake, in another way.
    Tls,
    /// CONNECT had no answer in time: so a hub shows that it throttles.
    Throttled,
    /// The hub said that it can't serve now, or hung up without an answer.
    Unavailable,
    /// What answers is no IoT Hub.
    Protocol,
    /// The disk.
    Storage,
}

impl Kind {
    pub(super) fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::Refused { .. } => Self::Refused,
            ConnectError::Unavailable | ConnectError::Wire(_) => Self::Unavailable,
            ConnectError::Protocol { .. } | ConnectError::Unexpected => Self::Protocol,
            ConnectError::Dial(error) => match error {
                DialError::Name { .. } | DialError::Resolve { .. } => Self::Dns,
                DialError::Tcp { .. } => Self::Tcp,
                DialError::Tls { source, .. } => match tls::fault_of(source) {
                    Fault::Date => Self::TlsDate,
                    Fault::Name => Self::TlsName,
                    Fault::Chain => Self::TlsChain,
                    Fault::Other => Self::Tls,
                },
                DialError::Timeout { stage, .. } => match stage {
                    Stage::Resolve => Self::Dns,
                    Stage::Tcp => Self::Tcp,
                    Stage::Tls => Self::Tls,
                    Stage::Connect => Self::Throttled,
                },
            },
        }
    }

    /// What it is to the machine.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Refused | Self::DisabledOrDeleted => Outcome::Refused,
            Self::Clock | Self::TlsDate => Outcome::Unknown(Trouble::Clock),
            Self::Dns | Self::Tcp | Self::TlsName | Self::TlsChain | Self::Tls | Self::Storage => {
                Outcome::Unknown(Trouble::Unreachable)
            }
            Self::Throttled | Self::Unavailable | Self::Protocol => Outcome::Unknown(Trouble::Unanswered),
        }
    }

    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Clock => "clock",
            Self::DisabledOrDeleted => "disabled-or-deleted",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::TlsName => "tls-name",
            Self::TlsChain => "tls-chain",
            Self::TlsDate => "tls-date",
            Self::Tls => "tls",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Protocol => "protocol",
            Self::Storage => "storage",
        }
    }

    /// What to do next.
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::Refused => {
                "nothing yet: the other keys are tried, and the clock is compared with the hub's"
            }
            Self::Clock => {
                "set this machine's clock, and see that it is kept (NTP); the agent goes on by the hub's time where it can be had"
            }
            Self::DisabledOrDeleted => {
                "look the device up in the registry (`twinkey device-identity show`): enable it, or create it again; if all keys were replaced, give the agent the present one with `twinkey-agent provision --replace`; and check this machine's clock"
            }
            Self::Dns => "check the network, DNS, and HostName in the connection string",
            Self::Tcp => {
                "check the network and firewalls: the gateway must reach the hub's port (`port` in section [hub])"
            }
            Self::TlsName => "the certificate is another host's: check HostName, DNS and proxies",
            Self::TlsChain => {
                "check `ca_file` and `system_roots` in section [hub], and proxies that open TLS"
            }
            Self::TlsDate => "check this machine's clock; the hub is asked for the time meanwhile",
            Self::Tls => "check that `port` in section [hub] is the hub's, and firewalls and proxies",
            Self::Throttled => {
                "nothing: the agent waits longer each time; check the hub's quotas if it lasts"
            }
            Self::Unavailable => "nothing: the agent tries again; check the hub's health if it lasts",
            Self::Protocol => "what answers is no IoT Hub: check `port` and HostName",
            Self::Storage => {
                "make room on the disk of the state directory, or mend it; the proven key stays in use"
            }
        }
    }
}

/// What keeps one key from being connected.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) kind: Kind,
    what: String,
    since_unix_secs: u64,
    /// How often in a row.
    count: u32,
}

/// A refusal may be the hub's mistake of a moment; so many in a row of each key are not.
const REFUSALS_MIN: u32 = 3;

/// All outcomes since the process began.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    counts: BTreeMap<Kind, u64>,
    obstacles: BTreeMap<KeyName, Obstacle>,
    last: Option<String>,
}

impl Outcomes {
    /// Counts it; true when it is another one than this key met last, and so worth a line in the log.
    pub(super) fn note(&mut self, key: KeyName, kind: Kind, what: String, now_unix_secs: u64) -> bool {
        self.count(kind);
        self.last = Some(what.clone());
        let (since_unix_secs, count) = match self.obstacles.get(&key) {
            Some(known) if known.kind == kind => (known.since_unix_secs, known.count.saturating_add(1)),
            Some(_) | None => (now_unix_secs, 1),
        };
        let before = self.obstacles.insert(key, Obstacle { kind, what, since_unix_secs, count });
        before.is_none_or(|before| before.kind != kind)
    }

    pub(super) fn count(&mut self, kind: Kind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    pub(super) fn count_of(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// A connection stands.
    pub(super) fn clear(&mut self) {
        self.obstacles.clear();
        self.last = None;
    }

    /// The connection that stood is gone.
    pub(super) fn lost(&mut self, what: String) {
        self.last = Some(what);
    }

    /// What happened last, while there is no connection.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    pub(super) fn retain(&mut self, is_known: impl Fn(KeyName) -> bool) {
        self.obstacles.retain(|key, _| is_known(*key));
    }

    /// Whether each of `keys` was refused when it was tried last, and the times before.
    pub(super) fn are_all_refused(&self, keys: impl IntoIterator<Item = KeyName>) -> bool {
        keys.into_iter().all(|key| {
            self.obstacles
                .get(&key)
                .is_some_and(|obstacle| obstacle.kind == Kind::Refused && obstacle.count >= REFUSALS_MIN)
        })
    }

    pub(super) fn counts_document(&self) -> Value {
        self.counts.iter().map(|(kind, count)| (kind.code().to_owned(), json!(count))).collect()
    }

    pub(super) fn obstacles_document(&self) -> Value {
        let obstacles = self.obstacles.iter().map(|(key, obstacle)| {
            json!({
                "key": key.to_string(),
                "kind": obstacle.kind.code(),
                "what": obstacle.what,
                "since": text_of(obstacle.since_unix_secs),
                "next": obstacle.kind.advice(),
            })
        });
        obstacles.collect()
    }
}
