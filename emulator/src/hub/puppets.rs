//! Devices that are played by the operator. To everybody else they look connected, and report.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Hub, State};
use crate::history::{ClosedBy, RefusedFor};
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};
use crate::sas::Token;

/// What the operator lets a device do.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Act {
    pub(crate) identity: IdentityId,
    /// Whether it is there from now on. What ends a connection, a real one of the same identity too, ends this as well.
    #[serde(default = "there")]
    connected: bool,
    /// Judged as CONNECT's is. Without one, nobody asks which key the device lives on.
    token: Option<String>,
    /// Merged into its reported properties.
    reported: Option<Map<String, Value>>,
}

fn there() -> bool {
    true
}

impl Act {
    /// Is there, and reports.
    pub(crate) fn report(identity: IdentityId, reported: Map<String, Value>) -> Self {
        Self { identity, connected: true, token: None, reported: Some(reported) }
    }
}

impl Hub {
    /// Lets a device do what the operator says, unless its token is refused: then the answer is `false`. No limit counts
    /// it.
    pub(crate) fn act(&self, act: &Act) -> Result<bool, Refusal> {
        let mut state = self.lock();
        if let Some(token) = &act.token {
            let verdict = Token::parse(token).ok_or(RefusedFor::Malformed);
            if let Err(reason) = verdict.and_then(|token| self.verify(&state, &token, &act.identity)) {
                state.history.refuse(self.clock.now(), &act.identity.to_string(), reason);
                return Ok(false);
            }
        }
        state.act(act)?;
        Ok(true)
    }

    /// Up to `max` desired sections that changed after `number`; waits for the first while `number` is the newest.
    pub(crate) async fn puppets_news(&self, number: u64, max: usize) -> Value {
        let mut bell = self.lock().puppets.bell();
        loop {
            bell.borrow_and_update();
            let (next, changed) = self.lock().puppets_page(number, max);
            // The sender lives in the hub.
            if !changed.is_empty() || bell.changed().await.is_err() {
                return json!({"next": next, "changed": changed});
            }
        }
    }
}

impl State {
    fn act(&mut self, act: &Act) -> Result<(), Refusal> {
        let id = &act.identity;
        let timestamp = self.clock.timestamp();
        let identity = self.registry.expect_known(id)?;
        if identity.live.is_some() {
            let text = format!("{id} has a connection of its own");
            return Err(Refusal::new(ErrorCode::ArgumentInvalid, text));
        }
        if let Some(patch) = &act.reported {
            let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
            identity.twin.report(patch, &timestamp).map_err(invalid)?;
        }
        identity.last_activity = Some(timestamp.clone());
        if identity.is_puppet != act.connected {
            identity.connection_updated = Some(timestamp);
            if act.connected {
                identity.is_puppet = true;
                // As a device reads its twin after each connect.
                self.puppets.note(id);
            } else {
                self.close(id, ClosedBy::Client);
            }
        }
        if act.reported.is_some() {
            self.configure(id);
        }
        Ok(())
    }

    /// The next number to ask after, and what changed.
    fn puppets_page(&self, number: u64, max: usize) -> (u64, Vec<Value>) {
        let news: Vec<_> = self.puppets.after(number).take(max).collect();
        let next = news.last().map_or(number, |(number, _)| *number);
        let section = |(_, id): &(u64, &IdentityId)| {
            let twin = &self.registry.find(id)?.twin;
            Some(json!({"identity": id.to_string(), "desired": twin.desired.versioned()}))
        };
        (next, news.iter().filter_map(section).collect())
    }
}
