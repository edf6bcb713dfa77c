//! What a test or a demonstration may ask of the emulator itself, under `/$emulator/`, in JSON and without
//! authentication: the HTTPS port listens on the loopback interface unless told otherwise.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET telemetry?identity=ID&after=SEQ&max=N` | `{"messages": […], "next": SEQ, "dropped": N}` |
//! | `GET connections?identity=ID` | `{"nowMs", "connections": […], "refused": […]}` |
//! | `GET faults`, `POST faults`, `DELETE faults` | the faults in force; a POST merges the fields that it names, DELETE ends all |
//! | `GET throttles`, `DELETE throttles` | operations by category, counted with or without limits; DELETE counts anew and fills all buckets |
//! | `POST cut` `{"identity": ID}` or `{}` | `{"cut": N}`: TCP closed without DISCONNECT or TLS close |
//! | `POST restart` `{"downMs", "forgetSessions"}` | 202; the listeners are closed for that long |
//! | `POST c2d` `{"identity", "body", "properties", "ttlSecs"}` | `{"enqueued": bool}` |

use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Call, Reply, Service};
use crate::history::ClosedBy;
use crate::hub::{CloudMessage, Hub};
use crate::identity::IdentityId;
use crate::listeners::Restart;
use crate::refusal::{ErrorCode, Refusal};
use crate::throttles::Throttles;

/// Telemetry messages on one page without `max`, and at most.
const PAGE_LEN: u64 = 1000;
const PAGE_LEN_MAX: u64 = 10_000;
/// Longest time that the hub can be sent down for: ten minutes.
const DOWN_MS_MAX: u64 = 600_000;

/// An operator endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Telemetry,
    Connections,
    ReadFaults,
    ChangeFaults,
    ClearFaults,
    ReadThrottles,
    ResetThrottles,
    Cut,
    Restart,
    CloudToDevice,
}

impl Endpoint {
    pub(super) fn find(method: &str, name: &str) -> Option<Self> {
        match (method, name) {
            ("GET", "telemetry") => Some(Self::Telemetry),
            ("GET", "connections") => Some(Self::Connections),
            ("GET", "faults") => Some(Self::ReadFaults),
            ("POST", "faults") => Some(Self::ChangeFaults),
            ("DELETE", "faults") => Some(Self::ClearFaults),
            ("GET", "throttles") => Some(Self::ReadThrottles),
            ("DELETE", "throttles") => Some(Self::ResetThrottles),
            ("POST", "cut") => Some(Self::Cut),
            ("POST", "restart") => Some(Self::Restart),
            ("POST", "c2d") => Some(Self::CloudToDevice),
            _ => None,
        }
    }

    pub(super) fn call(self, service: &Service, call: &Call<'_>) -> Result<Reply, Refusal> {
        let hub = &service.hub;
        match self {
            Self::Telemetry => {
                let max = call.number("max")?.unwrap_or(PAGE_LEN).min(PAGE_LEN_MAX);
                let after = call.number("after")?.unwrap_or(0);
                let identity = call.parameter("identity");
                let max = usize::try_from(max).unwrap_or(usize::MAX);
                Ok(Reply::ok(hub.lock().telemetry.page(identity.as_deref(), after, max)))
            }
            Self::Connections => {
                let identity = call.parameter("identity");
                Ok(Reply::ok(hub.lock().history.view(hub.clock.now(), identity.as_deref())))
            }
            Self::ReadFaults => faults(hub),
            Self::ChangeFaults => {
                let change: Map<String, Value> = call.json()?;
                hub.change_faults(&change).map_err(invalid)?;
                faults(hub)
            }
            Self::ClearFaults => {
                hub.clear_faults();
                faults(hub)
            }
            Self::ReadThrottles => {
                let state = hub.lock();
                Ok(Reply::ok(state.throttles.view(state.faults.throttles.as_ref(), hub.clock.now())))
            }
            Self::ResetThrottles => {
                hub.lock().throttles = Throttles::default();
                Ok(Reply::empty())
            }
            Self::Cut => cut(hub, call),
            Self::Restart => restart(service, call),
            Self::CloudToDevice => {
                let message: CloudMessage = call.json()?;
                let id = known(&message.identity)?;
                Ok(Reply::ok(json!({"enqueued": hub.lock().queue_message(&id, message)?})))
            }
        }
    }
}

fn faults(hub: &Hub) -> Result<Reply, Refusal> {
    let faults = serde_json::to_value(&hub.lock().faults);
    faults.map(Reply::ok).map_err(|error| Refusal::new(ErrorCode::ServerError, error.to_string()))
}

fn cut(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        identity: Option<String>,
    }
    let Body { identity } = call.json()?;
    let cut = match identity {
        None => hub.lock().close_all(ClosedBy::Cut),
        Some(identity) => usize::from(hub.lock().close(&known(&identity)?, ClosedBy::Cut)),
    };
    Ok(Reply::ok(json!({"cut": cut})))
}

fn restart(service: &Service, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        down_ms: u64,
        #[serde(default)]
        forget_sessions: bool,
    }
    let Body { down_ms, forget_sessions } = call.json()?;
    if down_ms > DOWN_MS_MAX {
        return Err(invalid(format!("downMs is over {DOWN_MS_MAX}")));
    }
    let restart = Restart { down: Duration::from_millis(down_ms), forget_sessions };
    service
        .restarts
        .try_send(restart)
        .map_err(|_| Refusal::new(ErrorCode::Throttling, "a restart is under way already"))?;
    Ok(Reply::with_status(StatusCode::ACCEPTED, json!({})))
}

fn known(identity: &str) -> Result<IdentityId, Refusal> {
    IdentityId::parse(identity).ok_or_else(|| invalid("identity is a device id, or device id/module id"))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::ArgumentInvalid, message)
}
