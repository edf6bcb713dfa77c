//! What happened to connections: spans of live ones and refused CONNECTs, for the operator to measure gaps with.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Moment;

/// Most closed spans, and most refusals, that are remembered; the oldest go first.
const REMEMBERED_MAX: usize = 20_000;
/// Longest client id that a refusal quotes, in characters: a little over the longest valid one.
const QUOTED_LEN_MAX: usize = 260;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClosedBy {
    /// A newer connection of the same identity.
    Takeover,
    /// DISCONNECT, or the connection's end as the client made it.
    Client,
    /// The operator's `cut`.
    Cut,
    /// The token's expiry and grace are over.
    Expired,
    /// The key is no longer in the registry, and the fault `onKeyChange` is `drop`.
    KeyChange,
    /// The hub's restart or end.
    Restart,
    /// Silence for one and a half keep-alive intervals.
    KeepAlive,
    /// Something that MQTT or IoT Hub forbids.
    Protocol,
    /// The identity was disabled.
    Disabled,
    /// The identity was deleted.
    Deleted,
    /// A refused CONNECT of the same identity, and the fault `onRefusedConnect` is `drop`.
    RefusedConnect,
    /// The client doesn't read what the hub sends it.
    Overflow,
    /// More telemetry than the limits allow.
    Throttled,
}

impl ClosedBy {
    /// Whether the client sees a lost network: no last packet, no end of TLS.
    pub(crate) fn is_abrupt(self) -> bool {
        match self {
            Self::Cut | Self::Restart => true,
            Self::Takeover
            | Self::Client
            | Self::Expired
            | Self::KeyChange
            | Self::KeepAlive
            | Self::Protocol
            | Self::Disabled
            | Self::Deleted
            | Self::RefusedConnect
            | Self::Throttled
            | Self::Overflow => false,
        }
    }
}

/// Why a CONNECT was refused. The client is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RefusedFor {
    /// No key of the identity or policy made the signature.
    Signature,
    /// `se` has passed.
    Expired,
    /// No such identity or policy.
    Unknown,
    /// The device is disabled.
    Disabled,
    /// A fault that the operator asked for.
    Fault,
    /// The token is for another resource, or its policy may not connect devices.
    Resource,
    /// The CONNECT itself, the user name or the token makes no sense.
    Malformed,
}

/// One connection's life.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span {
    pub(crate) id: u64,
    pub(crate) identity: String,
    /// `primary`, `secondary`, or `policy:` and its name.
    pub(crate) key: String,
    pub(crate) connected_ms: Moment,
    pub(crate) closed_ms: Option<Moment>,
    pub(crate) closed_by: Option<ClosedBy>,
    /// Whether it replaced a live connection of the same identity.
    pub(crate) took_over: bool,
    /// The token's `se`.
    pub(crate) token_expiry: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    at_ms: Moment,
    identity: String,
    reason: RefusedFor,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    last_id: u64,
    live: BTreeMap<u64, Span>,
    closed: VecDeque<Span>,
    refused: VecDeque<Refusal>,
}

impl History {
    /// Opens a span and names it.
    pub(crate) fn open(
        &mut self,
        identity: String,
        key: String,
        at: Moment,
        took_over: bool,
        token_expiry: u64,
    ) -> u64 {
        self.last_id += 1;
        let span = Span {
            id: self.last_id,
            identity,
            key,
            connected_ms: at,
            closed_ms: None,
            closed_by: None,
            took_over,
            token_expiry,
        };
        self.live.insert(self.last_id, span);
        self.last_id
    }

    /// The number of the newest span; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.last_id
    }

    pub(crate) fn close(&mut self, id: u64, at: Moment, by: ClosedBy) {
        if let Some(span) = self.live.remove(&id) {
            let span = Span { closed_ms: Some(at), closed_by: Some(by), ..span };
            push_bounded(&mut self.closed, span);
        }
    }

    pub(crate) fn refuse(&mut self, at: Moment, identity: &str, reason: RefusedFor) {
        let identity = identity.chars().take(QUOTED_LEN_MAX).collect();
        push_bounded(&mut self.refused, Refusal { at_ms: at, identity, reason });
    }

    /// The operator's JSON, spans in the order of their opening.
    pub(crate) fn view(&self, now: Moment, identity: Option<&str>) -> Value {
        let asked = |name: &str| identity.is_none_or(|identity| identity == name);
        let mut connections: Vec<&Span> =
            self.closed.iter().chain(self.live.values()).filter(|span| asked(&span.identity)).collect();
        connections.sort_by_key(|span| span.id);
        let refused: Vec<&Refusal> = self.refused.iter().filter(|refusal| asked(&refusal.identity)).collect();
        json!({"nowMs": now, "connections": connections, "refused": refused})
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == REMEMBERED_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}
