//! Scheduled jobs (SDK file `jobs_operations.py`), and a clear no to jobs of import and export, which need blob storage.

use std::sync::Arc;

use hyper::header::{HeaderName, USER_AGENT};
use serde_json::{Value, json};

use super::{Call, Reply};
use crate::hub::Hub;
use crate::jobs::JobBody;
use crate::refusal::{ErrorCode, Refusal};

/// Most jobs on one page, and how many without `pageSize`.
const PAGE_LEN_MAX: usize = 1000;
const PAGE_LEN: u64 = 100;

pub(super) fn read(hub: &Hub, id: &str) -> Result<Reply, Refusal> {
    Ok(Reply::ok(hub.lock().jobs.find(id)?.view()))
}

pub(super) fn create(hub: &Arc<Hub>, id: &str, call: &Call<'_>) -> Result<Reply, Refusal> {
    Ok(Reply::ok(hub.schedule(id, JobBody::read(id, &call.body)?)?))
}

pub(super) fn cancel(hub: &Hub, id: &str) -> Result<Reply, Refusal> {
    Ok(Reply::ok(hub.cancel_job(id)?))
}

/// The jobs of a type and status, the newest first. The C#, Node and Java SDKs read an array and headers (C# SDK,
/// `QueryResult.cs`), the Python SDK's model an object (`query_result.py`, by msrest): each gets what it can read.
pub(super) fn list(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    let (kind, status) = (call.parameter("jobType"), call.parameter("jobStatus"));
    let continuation = HeaderName::from_static("x-ms-continuation");
    let given = call.header(&continuation).map(str::to_owned).or_else(|| call.parameter("continuationToken"));
    let skip = match given.filter(|text| !text.is_empty()) {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| Refusal::new(ErrorCode::ArgumentInvalid, "the continuation is not one of ours"))?,
    };
    let count = match call.header(&HeaderName::from_static("x-ms-max-item-count")) {
        None => call.number("pageSize")?.unwrap_or(PAGE_LEN),
        Some(text) => text.parse().map_err(|_| {
            Refusal::new(ErrorCode::ArgumentInvalid, "x-ms-max-item-count is no whole number")
        })?,
    };
    let count = usize::try_from(count).unwrap_or(PAGE_LEN_MAX).clamp(1, PAGE_LEN_MAX);
    let is_wanted = |asked: &Option<String>, name: &str| {
        asked.as_ref().is_none_or(|asked| asked.is_empty() || asked.eq_ignore_ascii_case(name))
    };
    let state = hub.lock();
    let mut jobs = state
        .jobs
        .all()
        .rev()
        .filter(|job| is_wanted(&kind, job.task.name()) && is_wanted(&status, job.status().name()))
        .skip(skip);
    let items: Vec<Value> = jobs.by_ref().take(count).map(|job| job.view()).collect();
    let next = jobs.next().is_some().then(|| (skip + items.len()).to_string());
    let wants_object = call.header(&USER_AGENT).is_some_and(|agent| agent.contains("msrest"));
    if wants_object {
        return Ok(Reply::ok(json!({"type": "jobResponse", "items": items, "continuationToken": next})));
    }
    let reply =
        Reply::ok(Value::Array(items)).header(HeaderName::from_static("x-ms-item-type"), "jobResponse");
    Ok(match next {
        Some(next) => reply.header(continuation, next),
        None => reply,
    })
}
