//! What the hub saw of an identity's connections.

use serde::Deserialize;

/// Connections in the order in which the hub accepted them, and refused attempts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// The hub's clock now, in milliseconds.
    pub now_ms: f64,
    /// Accepted ones.
    pub connections: Vec<Span>,
    /// Refused ones.
    pub refused: Vec<Refusal>,
}

/// One connection's life.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// The hub's number for it.
    pub id: u64,
    /// The slot whose key opened it.
    pub key: String,
    /// When it was accepted.
    pub connected_ms: f64,
    /// When it ended.
    pub closed_ms: Option<f64>,
    /// Why it ended.
    pub closed_by: Option<String>,
    /// Whether it replaced a live one.
    pub took_over: bool,
    /// The token's expiry in Unix seconds.
    pub token_expiry: u64,
}

/// One refused CONNECT.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// When.
    pub at_ms: f64,
    /// Why; the client is not told.
    pub reason: String,
}

impl History {
    /// The connection that lives now.
    pub fn live(&self) -> Option<&Span> {
        self.connections.iter().rfind(|span| span.closed_ms.is_none())
    }

    /// The longest time without a connection since `from_ms`.
    pub fn longest_dark_ms(&self, from_ms: f64) -> f64 {
        let mut lit_until = from_ms;
        let mut longest: f64 = 0.0;
        for span in &self.connections {
            longest = longest.max(span.connected_ms - lit_until);
            lit_until = lit_until.max(span.closed_ms.unwrap_or(self.now_ms));
        }
        longest.max(self.now_ms - lit_until)
    }

    /// CONNECTs since `from_ms`, accepted or not.
    pub fn attempts_since(&self, from_ms: f64) -> usize {
        let accepted = self.connections.iter().filter(|span| span.connected_ms >= from_ms).count();
        accepted + self.refused.iter().filter(|refusal| refusal.at_ms >= from_ms).count()
    }
}
