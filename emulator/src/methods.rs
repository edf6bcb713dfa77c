//! Direct methods that wait for a device's answer.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::identity::IdentityId;

/// Most calls that may wait at one time, so that callers can't fill the memory.
const WAITING_MAX: usize = 1000;

/// What a device answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: i64,
    pub(crate) payload: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Methods {
    last_rid: u64,
    waiting: BTreeMap<String, (IdentityId, oneshot::Sender<Answer>)>,
}

impl Methods {
    /// Makes place for an answer of `identity`, under a request id. `None` if too many calls wait.
    pub(crate) fn await_answer(
        &mut self,
        identity: &IdentityId,
    ) -> Option<(String, oneshot::Receiver<Answer>)> {
        self.waiting.retain(|_, (_, caller)| !caller.is_closed());
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        self.last_rid += 1;
        let rid = format!("{:x}", self.last_rid);
        let (caller, answer) = oneshot::channel();
        self.waiting.insert(rid.clone(), (identity.clone(), caller));
        Some((rid, answer))
    }

    /// Hands an answer to its caller; nothing happens if nobody waits for it any more.
    pub(crate) fn answer(&mut self, identity: &IdentityId, rid: &str, answer: Answer) {
        if self.waiting.get(rid).is_some_and(|(asked, _)| asked == identity)
            && let Some((_, caller)) = self.waiting.remove(rid)
        {
            // The caller may have given up.
            drop(caller.send(answer));
        }
    }
}
