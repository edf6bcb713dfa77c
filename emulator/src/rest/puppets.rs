//! Devices that the operator plays without connections, under `/$emulator/` and without authentication.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST puppets` `[{"identity", "connected", "token", "reported"}, …]` | `{"refused": [ID, …]}`: whose token CONNECT would refuse, and who did nothing; the first that can't act for another reason ends it, and those before it have acted |
//! | `GET puppets?after=N&max=N&waitMs=N` | `{"next": N, "changed": [{"identity", "desired"}, …]}`: each puppet whose desired properties are news since `next` of an earlier answer |
//! | `PATCH twins/{identity}/reported` | 204: the device is there, and has reported this |

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::{Call, Reply};
use crate::hub::{Act, Hub};
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};

/// Changed puppets on one page without `max`, and at most.
const PAGE_LEN: u64 = 1000;
const PAGE_LEN_MAX: u64 = 10_000;
/// Longest wait for news in milliseconds: a hub that goes down waits for the answer.
const WAIT_MS_MAX: u64 = 10_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Act,
    News,
    Report(String),
}

impl Endpoint {
    pub(super) fn find(method: &str, path: &[&str]) -> Option<Self> {
        match (method, path) {
            ("POST", ["puppets"]) => Some(Self::Act),
            ("GET", ["puppets"]) => Some(Self::News),
            ("PATCH", ["twins", identity, "reported"]) => Some(Self::Report((*identity).to_owned())),
            _ => None,
        }
    }

    pub(super) async fn call(self, hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
        match self {
            Self::Act => {
                let acts: Vec<Act> = call.json()?;
                // Held anew for each: devices that are really there don't wait for a thousand that are not.
                let mut refused = Vec::new();
                for act in &acts {
                    if !hub.act(act)? {
                        refused.push(act.identity.to_string());
                    }
                }
                Ok(Reply::ok(json!({"refused": refused})))
            }
            Self::News => {
                let after = call.number("after")?.unwrap_or(0);
                let max = call.number("max")?.unwrap_or(PAGE_LEN).min(PAGE_LEN_MAX);
                let wait = Duration::from_millis(call.number("waitMs")?.unwrap_or(0).min(WAIT_MS_MAX));
                let news = hub.puppets_news(after, usize::try_from(max).unwrap_or(usize::MAX));
                let none = |_| json!({"next": after, "changed": []});
                Ok(Reply::ok(timeout(wait, news).await.unwrap_or_else(none)))
            }
            Self::Report(identity) => {
                let id = IdentityId::parse(&identity).ok_or_else(|| {
                    let text = "the path names a device id, or device id%2Fmodule id";
                    Refusal::new(ErrorCode::ArgumentInvalid, text)
                })?;
                hub.act(&Act::report(id, call.json()?))?;
                Ok(Reply::empty())
            }
        }
    }
}
