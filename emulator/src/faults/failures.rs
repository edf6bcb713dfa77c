//! Requests that fail on demand: CONNECT, requests over HTTPS, and twin requests over MQTT.

use rumqttc::ConnectReturnCode;
use serde::{Deserialize, Serialize};

use crate::chance::Chance;
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};

/// The next CONNECTs to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RefuseNext {
    /// Whose; every identity's if absent.
    #[serde(default)]
    pub(super) identity: Option<String>,
    pub(super) count: u32,
    #[serde(default = "not_authorized")]
    pub(super) code: u8,
}

fn not_authorized() -> u8 {
    ConnectReturnCode::NotAuthorized as u8
}

/// CONNACK return codes other than "accepted" (MQTT 3.1.1 §3.2.2.3).
pub(super) fn connect_refusal(code: u8) -> Option<ConnectReturnCode> {
    Some(match code {
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        5 => ConnectReturnCode::NotAuthorized,
        _ => return None,
    })
}

/// What a failing request is answered with, by the hub's error numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(super) enum Answer {
    /// 0: nothing. Over HTTPS the connection is cut.
    None,
    Throttling,
    ServerError,
    ServiceUnavailable,
}

impl TryFrom<u32> for Answer {
    type Error = String;

    fn try_from(code: u32) -> Result<Self, String> {
        match code {
            0 => Ok(Self::None),
            429_001 => Ok(Self::Throttling),
            500_001 => Ok(Self::ServerError),
            503_001 => Ok(Self::ServiceUnavailable),
            _ => Err(format!("code {code} is none of 429001, 500001, 503001, and 0 for no answer")),
        }
    }
}

impl From<Answer> for u32 {
    fn from(answer: Answer) -> Self {
        answer.error_code().map_or(0, ErrorCode::number)
    }
}

impl Answer {
    fn error_code(self) -> Option<ErrorCode> {
        match self {
            Self::None => None,
            Self::Throttling => Some(ErrorCode::Throttling),
            Self::ServerError => Some(ErrorCode::ServerError),
            Self::ServiceUnavailable => Some(ErrorCode::ServiceUnavailable),
        }
    }

    fn failure(self, done: bool, retry_after_secs: Option<u64>) -> Failure {
        let refusal = self.error_code().map(|code| Refusal {
            retry_after_secs,
            ..Refusal::new(code, "a fault that the operator asked for")
        });
        Failure { done, refusal }
    }
}

/// How one request fails.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whether what was asked for is done before that.
    pub(crate) done: bool,
    /// What the caller is told; `None`: nothing.
    pub(crate) refusal: Option<Refusal>,
}

/// Requests over HTTPS that fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FailRequests {
    /// `GET`, `PUT` …; every method if absent.
    #[serde(default)]
    method: Option<String>,
    /// How the path begins, as it is sent: ids are percent-encoded.
    #[serde(default = "root")]
    path: String,
    code: Answer,
    #[serde(default)]
    done: bool,
    /// How many; without end if absent.
    #[serde(default)]
    count: Option<u32>,
    #[serde(default = "always")]
    probability: f64,
    /// The header `Retry-After`, which is left out if absent.
    #[serde(default)]
    retry_after_secs: Option<u64>,
}

/// Twin requests over MQTT that fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FailTwinRequests {
    /// Whose; every identity's if absent.
    #[serde(default)]
    identity: Option<String>,
    /// Which; both kinds if absent.
    #[serde(default)]
    request: Option<TwinRequest>,
    code: Answer,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default = "always")]
    probability: f64,
}

/// What a device can ask of its twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TwinRequest {
    /// The whole document.
    Read,
    /// A patch of reported properties.
    Report,
}

fn root() -> String {
    "/".to_owned()
}

fn always() -> f64 {
    1.0
}

impl FailRequests {
    pub(super) fn check(&self) -> Result<(), String> {
        check("failRequests", self.count, self.probability)
    }
}

impl FailTwinRequests {
    pub(super) fn check(&self) -> Result<(), String> {
        check("failTwinRequests", self.count, self.probability)
    }
}

fn check(field: &str, count: Option<u32>, probability: f64) -> Result<(), String> {
    if count == Some(0) {
        return Err(format!("{field}: a count of 0 fails nothing; leave the entry out"));
    }
    if !(0.0..=1.0).contains(&probability) {
        return Err(format!("{field}: probability is 0 to 1"));
    }
    Ok(())
}

/// The failure of a request over HTTPS, if there is to be one. An entry whose count is used up goes.
pub(super) fn of_request(
    entries: &mut Vec<FailRequests>,
    chance: &mut Chance,
    method: &str,
    path: &str,
) -> Option<Failure> {
    let fires = |entry: &FailRequests| {
        entry.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && path.starts_with(&entry.path)
            && chance.happens(entry.probability)
    };
    let at = entries.iter().position(fires)?;
    let entry = entries.get_mut(at)?;
    let failure = entry.code.failure(entry.done, entry.retry_after_secs);
    entry.count = entry.count.map(|count| count.saturating_sub(1));
    entries.retain(|entry| entry.count != Some(0));
    Some(failure)
}

/// The same for a twin request.
pub(super) fn of_twin_request(
    entries: &mut Vec<FailTwinRequests>,
    chance: &mut Chance,
    identity: &IdentityId,
    request: TwinRequest,
) -> Option<Failure> {
    let name = identity.to_string();
    let fires = |entry: &FailTwinRequests| {
        entry.identity.as_deref().is_none_or(|wanted| wanted == name)
            && entry.request.is_none_or(|wanted| wanted == request)
            && chance.happens(entry.probability)
    };
    let at = entries.iter().position(fires)?;
    let entry = entries.get_mut(at)?;
    let failure = entry.code.failure(entry.done, None);
    entry.count = entry.count.map(|count| count.saturating_sub(1));
    entries.retain(|entry| entry.count != Some(0));
    Some(failure)
}
