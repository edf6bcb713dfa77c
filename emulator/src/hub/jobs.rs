//! Scheduled jobs at work: each is a task that waits for its time and then goes through its devices, never under the
//! lock for long.

use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::search::Page;
use super::{Hub, MethodCall};
use crate::identity::IdentityId;
use crate::jobs::{JobBody, JobStatus, Task};
use crate::query::Query;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::twin::ServicePatch;

/// Twins that a job changes within one hold of the lock.
const CHANGED_MAX: usize = 50;
/// Direct methods of one job that wait for an answer at one time.
const CALLS_MAX: usize = 50;
/// Rows of `devices.jobs` that are looked at within one hold of the lock.
const ROWS_LOOKED_AT_MAX: usize = 2000;

impl Hub {
    /// Accepts a job and starts its task.
    pub(crate) fn schedule(self: &Arc<Self>, id: &str, body: JobBody) -> Result<serde_json::Value, Refusal> {
        let now = self.clock.unix_time();
        let delay = body.start_unix.and_then(|start| start.checked_sub(now)).unwrap_or_default();
        let mut state = self.lock();
        state.jobs.add(id, body, delay, &self.clock.timestamp())?;
        let job = state.jobs.find(id)?;
        let cancelled = job.cancelled.clone();
        let view = job.view();
        let (hub, id) = (Arc::downgrade(self), id.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = run(&hub, &id, delay) => {}
                () = cancelled.notified() => {}
            }
        });
        Ok(view)
    }

    pub(crate) fn cancel_job(&self, id: &str) -> Result<serde_json::Value, Refusal> {
        let mut state = self.lock();
        state.jobs.find(id)?;
        state.jobs.finish(id, JobStatus::Cancelled, None, &self.clock.timestamp());
        Ok(state.jobs.find(id)?.view())
    }

    /// Up to `count` rows of `devices.jobs`.
    pub(crate) async fn search_jobs(
        &self,
        query: &Query,
        count: usize,
        continuation: Option<&str>,
    ) -> Result<Page, Refusal> {
        let invalid = || Refusal::new(ErrorCode::ArgumentInvalid, "x-ms-continuation is not one of ours");
        let (served, mut after) = match continuation {
            None => (0, None),
            Some(text) => {
                let (served, place) = decode(text).ok_or_else(invalid)?;
                (served, Some(place))
            }
        };
        let left = query
            .top
            .map_or(usize::MAX, |top| usize::try_from(top).unwrap_or(usize::MAX))
            .saturating_sub(served);
        let wanted = count.min(left);
        let mut page = Page::default();
        while page.rows.len() < wanted {
            let (rows, next) =
                self.lock().jobs.rows(query, after.as_ref(), wanted - page.rows.len(), ROWS_LOOKED_AT_MAX);
            page.rows.extend(rows);
            after = next;
            if after.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if let Some((ordinal, device)) = after.filter(|_| page.rows.len() < left) {
            let text = format!("{} {ordinal} {device}", served + page.rows.len());
            page.continuation = Some(URL_SAFE_NO_PAD.encode(text));
        }
        Ok(page)
    }
}

/// How many rows were served, and the job and device of the last.
fn decode(text: &str) -> Option<(usize, (u64, IdentityId))> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (served, place) = text.split_once(' ')?;
    let (ordinal, device) = place.split_once(' ')?;
    Some((served.parse().ok()?, (ordinal.parse().ok()?, IdentityId::parse(device)?)))
}

/// Runs a job from its start to its end. It is dropped when the job is cancelled.
async fn run(hub: &Weak<Hub>, id: &str, delay: Duration) {
    sleep(delay).await;
    let Some((condition, task, time_max)) = hub.upgrade().and_then(|hub| {
        let state = hub.lock();
        let job = state.jobs.find(id).ok()?;
        Some((job.condition.clone(), job.task.clone(), job.time_max))
    }) else {
        return;
    };
    let work = async {
        if let Some(hub) = hub.upgrade() {
            let found = hub.matching_ids(&condition).await;
            let timestamp = hub.clock.timestamp();
            hub.lock().jobs.begin(id, found, &timestamp);
        }
        match &task {
            Task::UpdateTwin { patch, .. } => update_twins(hub, id, patch).await,
            Task::CallMethod { call, .. } => call_methods(hub, id, call).await,
        }
    };
    let failure = timeout(time_max, work).await.err().map(|_| "maxExecutionTimeInSeconds is over");
    if let Some(hub) = hub.upgrade() {
        let timestamp = hub.clock.timestamp();
        hub.lock().jobs.finish(id, JobStatus::Completed, failure, &timestamp);
    }
}

async fn update_twins(hub: &Weak<Hub>, id: &str, patch: &ServicePatch) {
    let mut after = None;
    while let Some(hub) = hub.upgrade() {
        {
            let mut state = hub.lock();
            let devices = state.jobs.take(id, after.as_ref(), CHANGED_MAX);
            if devices.is_empty() {
                return;
            }
            let timestamp = hub.clock.timestamp();
            for device in &devices {
                let outcome = state.change_twin(device, patch, false, &Precondition::Any);
                state.jobs.record(id, device, outcome.map(|()| None), &timestamp);
            }
            after = devices.into_iter().next_back();
        }
        tokio::task::yield_now().await;
    }
}

async fn call_methods(hub: &Weak<Hub>, id: &str, call: &MethodCall) {
    // Dropping the set, when the job is cancelled or its time is over, ends the calls.
    let mut calls = JoinSet::new();
    let mut after: Option<IdentityId> = None;
    loop {
        if calls.len() < CALLS_MAX {
            let Some(hub) = hub.upgrade() else {
                return;
            };
            let next = hub.lock().jobs.take(id, after.as_ref(), 1).into_iter().next();
            if let Some(device) = next {
                after = Some(device.clone());
                let (call, id) = (call.clone(), id.to_owned());
                calls.spawn(async move {
                    let outcome = hub.call_method(&device, call).await.map(Some);
                    let timestamp = hub.clock.timestamp();
                    hub.lock().jobs.record(&id, &device, outcome, &timestamp);
                });
                continue;
            }
        }
        if calls.join_next().await.is_none() {
            return;
        }
    }
}
