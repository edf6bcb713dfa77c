//! A job as a caller asks for it.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::hub::MethodCall;
use crate::query::Query;
use crate::refusal::{ErrorCode, Refusal};
use crate::twin::ServicePatch;

/// How long a job may run if its request doesn't say: the samples' hour. The longest is ours.
const TIME_SECS: u64 = 3600;
const TIME_SECS_MAX: u64 = 7 * 24 * 3600;

/// What a job does to each device.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    UpdateTwin { patch: ServicePatch, request: Value },
    CallMethod { call: MethodCall, request: Value },
}

impl Task {
    /// The job's `type`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::UpdateTwin { .. } => "scheduleUpdateTwin",
            Self::CallMethod { .. } => "scheduleDeviceMethod",
        }
    }

    /// The field of the request that says what to do, and its value.
    pub(super) fn request(&self) -> (&'static str, &Value) {
        match self {
            Self::UpdateTwin { request, .. } => ("updateTwin", request),
            Self::CallMethod { request, .. } => ("cloudToDeviceMethod", request),
        }
    }
}

/// A request that makes sense.
#[derive(Debug)]
pub(crate) struct JobBody {
    pub(super) task: Task,
    pub(super) condition: Query,
    pub(super) condition_text: String,
    /// As it was given.
    pub(super) start: Option<String>,
    /// Time from the Unix epoch until the start.
    pub(crate) start_unix: Option<Duration>,
    pub(super) time_max: Duration,
}

/// SDK model `JobRequest`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    job_id: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    cloud_to_device_method: Option<Value>,
    update_twin: Option<Value>,
    query_condition: Option<String>,
    start_time: Option<String>,
    max_execution_time_in_seconds: Option<u64>,
}

impl JobBody {
    pub(crate) fn read(id: &str, body: &[u8]) -> Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
        let unread =
            |error: serde_json::Error| Refusal::new(ErrorCode::DeserializationError, error.to_string());
        let request: Request = serde_json::from_slice(body).map_err(unread)?;
        check_id(id)?;
        if request.job_id.as_deref().is_some_and(|named| named != id) {
            return Err(invalid("jobId in the body differs from the path".to_owned()));
        }
        let task = match (request.kind.as_str(), request.update_twin, request.cloud_to_device_method) {
            ("scheduleUpdateTwin", Some(twin), None) => {
                Task::UpdateTwin { patch: read_patch(&twin)?, request: twin }
            }
            ("scheduleDeviceMethod", None, Some(method)) => {
                Task::CallMethod { call: MethodCall::read(method.clone())?, request: method }
            }
            ("scheduleUpdateTwin" | "scheduleDeviceMethod", _, _) => {
                let message = "scheduleUpdateTwin needs updateTwin, scheduleDeviceMethod cloudToDeviceMethod, and not the other";
                return Err(invalid(message.to_owned()));
            }
            _ => return Err(invalid("type is scheduleUpdateTwin or scheduleDeviceMethod".to_owned())),
        };
        let condition_text = request.query_condition.unwrap_or_default();
        let condition = Query::parse_condition(&condition_text)
            .map_err(|error| invalid(format!("queryCondition: {error}")))?;
        let seconds = request.max_execution_time_in_seconds.unwrap_or(TIME_SECS);
        if !(1..=TIME_SECS_MAX).contains(&seconds) {
            return Err(invalid(format!("maxExecutionTimeInSeconds is 1 to {TIME_SECS_MAX}")));
        }
        let start = request.start_time.filter(|text| !text.is_empty());
        let start_unix = match &start {
            None => None,
            Some(text) => Some(
                read_time(text)
                    .ok_or_else(|| invalid("startTime is no time like 2026-11-21T10:00:00Z".to_owned()))?,
            ),
        };
        Ok(Self {
            task,
            condition,
            condition_text,
            start,
            start_unix,
            time_max: Duration::from_secs(seconds),
        })
    }
}

/// Time from the Unix epoch until a moment in ISO 8601, zero if it is earlier. It may end with an offset from UTC, as
/// .NET and Python write times that are not in UTC; without one, and without `Z`, it is UTC.
fn read_time(text: &str) -> Option<Duration> {
    /// Where the seconds end: no sign before is that of an offset.
    const SECONDS_END: usize = "2026-11-21T10:00:00".len();
    let sign_at = text.get(SECONDS_END..)?.find(['+', '-']).map(|at| SECONDS_END + at);
    let (local, offset) = match sign_at.and_then(|at| text.split_at_checked(at)) {
        Some((local, offset)) => (local, Some(offset)),
        None => (text.strip_suffix('Z').unwrap_or(text), None),
    };
    // humantime would take what follows a `Z`.
    let local = humantime::parse_rfc3339_weak(local).ok().filter(|_| !local.contains('Z'))?;
    let since_epoch = local.duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(offset) = offset else {
        return Some(since_epoch);
    };
    let (sign, offset) = offset.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let number = |text: &str, max: u64| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| is_number && *number <= max)
    };
    let ahead = Duration::from_secs(number(hours, 23)? * 3600 + number(minutes, 59)? * 60);
    Some(if sign == "+" { since_epoch.saturating_sub(ahead) } else { since_epoch.saturating_add(ahead) })
}

/// Tags and desired properties of a twin (SDK model `Twin`); its other fields mean nothing here.
fn read_patch(twin: &Value) -> Result<ServicePatch, Refusal> {
    #[derive(Deserialize)]
    struct Twin {
        tags: Option<Map<String, Value>>,
        properties: Option<Properties>,
    }
    #[derive(Deserialize)]
    struct Properties {
        desired: Option<Map<String, Value>>,
    }
    let twin: Twin = Twin::deserialize(twin)
        .map_err(|error| Refusal::new(ErrorCode::DeserializationError, format!("updateTwin: {error}")))?;
    let patch = ServicePatch::new(twin.tags, twin.properties.and_then(|properties| properties.desired));
    crate::twin::Twin::new("")
        .patch(&patch, "")
        .map_err(|message| Refusal::new(ErrorCode::ArgumentInvalid, format!("updateTwin: {message}")))?;
    Ok(patch)
}

/// Up to 64 ASCII letters, digits and a few signs (Node SDK, `JobClient`: jobs have ids like UUIDs).
fn check_id(id: &str) -> Result<(), Refusal> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:+%#*?!=$'".contains(c);
    if (1..=64).contains(&id.len()) && id.chars().all(is_allowed) {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::ArgumentInvalid, "a job's id has 1 to 64 letters, digits and -._:+%#*?!=$'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_read_in_utc_and_with_an_offset() {
        let noon = Some(Duration::from_secs(1_795_262_400));
        for text in [
            "2026-11-21T12:00:00Z",
            "2026-11-21T12:00:00",
            "2026-11-21T12:00:00.0000000Z",
            "2026-11-21T14:00:00+02:00",
            "2026-11-21T06:30:00.0000000-05:30",
            "2026-11-22T02:00:00+14:00",
            "2026-11-21T12:00:00-00:00",
        ] {
            assert_eq!(read_time(text), noon, "{text}");
        }
        assert_eq!(read_time("1970-01-01T01:00:00+02:00"), Some(Duration::ZERO));
        for wrong in [
            "",
            "soon",
            "2026-11-21",
            "2026-11-21T12:00:00ZZ",
            "2026-11-21T12:00:00Zulu",
            "2026-11-21T12:00:00Z+02:00",
            "2026-11-21T12:00:00+",
            "2026-11-21T12:00:00+02",
            "2026-11-21T12:00:00+24:00",
            "2026-11-21T12:00:00+02:60",
            "2026-11-21T12:00:00++2:00",
            "2026-11-21T12:00:00+02:00Z",
            "2026-11-21T12:00:0\u{e9}+02:00",
        ] {
            assert_eq!(read_time(wrong), None, "{wrong}");
        }
    }
}
