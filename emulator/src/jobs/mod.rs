//! Scheduled jobs: one change of twins, or one direct method, for all devices that a condition holds for.
//!
//! Sources: IoT Hub documentation, "Schedule jobs on multiple devices" and "Queries for IoT Hub jobs"; SDK models
//! `JobRequest` and `JobResponse`. This module keeps the books; `hub/jobs.rs` does the work.

mod body;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Notify;

pub(crate) use body::{JobBody, Task};

use crate::identity::IdentityId;
use crate::methods::Answer;
use crate::query::{Document, Operand, Path, Query, walk};
use crate::refusal::{ErrorCode, Refusal};

/// Most jobs that are remembered, the oldest finished ones go first; and most that are not finished.
const JOBS_MAX: usize = 1000;
const UNFINISHED_MAX: usize = 100;
/// Most devices of all remembered jobs together, so that their outcomes can't fill the memory.
const DEVICES_MAX: usize = 1_000_000;
/// Bytes of all remembered methods' answers together; later ones are left out.
const ANSWERS_LEN_MAX: usize = 64 * 1024 * 1024;

/// Where a job stands (azure-iot-hub, `JobResponse.status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobStatus {
    Queued,
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled => true,
            Self::Queued | Self::Scheduled | Self::Running => false,
        }
    }
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    id: String,
    pub(crate) task: Task,
    pub(crate) condition: Query,
    condition_text: String,
    created: String,
    start: String,
    end: Option<String>,
    pub(crate) time_max: Duration,
    status: JobStatus,
    failure: Option<String>,
    devices: BTreeMap<IdentityId, DeviceJob>,
    /// Rings when the job is cancelled.
    pub(crate) cancelled: Arc<Notify>,
}

/// A job on one device.
#[derive(Debug, Clone)]
struct DeviceJob {
    status: DeviceStatus,
    updated: String,
    ended: bool,
    answer: Option<Value>,
    error: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeviceStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl DeviceStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// All jobs, in the order of their creation.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    all: BTreeMap<u64, Job>,
    ordinals: BTreeMap<String, u64>,
    last_ordinal: u64,
    devices: usize,
    answers_len: usize,
}

impl Jobs {
    /// Adds a job that is to begin after `delay`.
    pub(crate) fn add(
        &mut self,
        id: &str,
        body: JobBody,
        delay: Duration,
        timestamp: &str,
    ) -> Result<(), Refusal> {
        if self.ordinals.contains_key(id) {
            return Err(Refusal::new(ErrorCode::JobAlreadyExists, id));
        }
        if self.all.values().filter(|job| !job.status.is_final()).count() >= UNFINISHED_MAX {
            let message = format!("{UNFINISHED_MAX} jobs are not finished yet");
            return Err(Refusal::new(ErrorCode::JobQuotaExceeded, message));
        }
        while self.all.len() >= JOBS_MAX && self.forget_oldest() {}
        let status = if delay.is_zero() { JobStatus::Queued } else { JobStatus::Scheduled };
        let job = Job {
            id: id.to_owned(),
            task: body.task,
            condition: body.condition,
            condition_text: body.condition_text,
            created: timestamp.to_owned(),
            start: body.start.unwrap_or_else(|| timestamp.to_owned()),
            end: None,
            time_max: body.time_max,
            status,
            failure: None,
            devices: BTreeMap::new(),
            cancelled: Arc::new(Notify::new()),
        };
        self.last_ordinal += 1;
        self.ordinals.insert(id.to_owned(), self.last_ordinal);
        self.all.insert(self.last_ordinal, job);
        Ok(())
    }

    pub(crate) fn find(&self, id: &str) -> Result<&Job, Refusal> {
        let job = self.ordinals.get(id).and_then(|ordinal| self.all.get(ordinal));
        job.ok_or_else(|| Refusal::new(ErrorCode::JobNotFound, id))
    }

    /// A job that can still go on; `None` once it is finished, or forgotten.
    pub(crate) fn unfinished(&mut self, id: &str) -> Option<&mut Job> {
        let job = self.all.get_mut(self.ordinals.get(id)?)?;
        (!job.status.is_final()).then_some(job)
    }

    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.all.values()
    }

    /// Forgets the oldest finished job, and says whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let oldest = self.all.iter().find(|(_, job)| job.status.is_final()).map(|(ordinal, _)| *ordinal);
        let Some(job) = oldest.and_then(|ordinal| self.all.remove(&ordinal)) else {
            return false;
        };
        self.ordinals.remove(&job.id);
        self.devices -= job.devices.len();
        self.answers_len -= job.devices.values().map(DeviceJob::answer_len).sum::<usize>();
        true
    }

    /// Begins a job on the devices found for it.
    pub(crate) fn begin(&mut self, id: &str, found: Vec<IdentityId>, timestamp: &str) {
        while self.devices + found.len() > DEVICES_MAX && self.forget_oldest() {}
        if self.devices + found.len() > DEVICES_MAX {
            let message = format!("the jobs together would concern more than {DEVICES_MAX} devices");
            self.finish(id, JobStatus::Failed, Some(&message), timestamp);
            return;
        }
        let count = found.len();
        let Some(job) = self.unfinished(id) else {
            return;
        };
        let pending = DeviceJob {
            status: DeviceStatus::Pending,
            updated: timestamp.to_owned(),
            ended: false,
            answer: None,
            error: None,
        };
        job.devices = found.into_iter().map(|device| (device, pending.clone())).collect();
        job.status = JobStatus::Running;
        self.devices += count;
    }

    /// The next devices to work on, which count as running from now on; empty if none is left.
    pub(crate) fn take(&mut self, id: &str, after: Option<&IdentityId>, count: usize) -> Vec<IdentityId> {
        let Some(job) = self.unfinished(id) else {
            return Vec::new();
        };
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let next = job.devices.range_mut((from, std::ops::Bound::Unbounded)).take(count);
        next.map(|(device, record)| {
            record.status = DeviceStatus::Running;
            device.clone()
        })
        .collect()
    }

    /// Records what came of one device.
    pub(crate) fn record(
        &mut self,
        id: &str,
        device: &IdentityId,
        outcome: Result<Option<Answer>, Refusal>,
        timestamp: &str,
    ) {
        let answers_len = self.answers_len;
        let Some(record) = self.unfinished(id).and_then(|job| job.devices.get_mut(device)) else {
            return;
        };
        record.updated = timestamp.to_owned();
        record.ended = true;
        match outcome {
            Ok(answer) => {
                record.status = DeviceStatus::Completed;
                record.answer =
                    answer.map(|answer| json!({"status": answer.status, "payload": answer.payload}));
                if answers_len + record.answer_len() > ANSWERS_LEN_MAX {
                    record.answer = None;
                }
            }
            Err(refusal) => {
                record.status = DeviceStatus::Failed;
                record.error = Some(json!({"code": refusal.code.name(), "description": refusal.message}));
            }
        }
        let len = record.answer_len();
        self.answers_len += len;
    }

    /// Ends a job. What no device has answered by then is given up.
    pub(crate) fn finish(&mut self, id: &str, status: JobStatus, failure: Option<&str>, timestamp: &str) {
        let Some(job) = self.unfinished(id) else {
            return;
        };
        let given_up =
            if status == JobStatus::Cancelled { DeviceStatus::Cancelled } else { DeviceStatus::Failed };
        for record in job.devices.values_mut().filter(|record| !record.ended) {
            record.status = given_up;
            record.updated = timestamp.to_owned();
            record.ended = true;
        }
        let failed = job.count(DeviceStatus::Failed);
        // A job of which nothing succeeded has failed: what the real hub calls it is not documented.
        let all_failed = status == JobStatus::Completed && failed > 0 && failed == job.devices.len();
        job.status = if all_failed { JobStatus::Failed } else { status };
        job.failure = failure.map(str::to_owned);
        job.end = Some(timestamp.to_owned());
        job.cancelled.notify_one();
    }

    /// Up to `count` rows of `devices.jobs` that match, and where to go on, which is after the given place. `cost` is
    /// how many rows may be looked at.
    pub(crate) fn rows(
        &self,
        query: &Query,
        after: Option<&(u64, IdentityId)>,
        count: usize,
        mut cost: usize,
    ) -> (Vec<Value>, Option<(u64, IdentityId)>) {
        let first = after.map_or(0, |(ordinal, _)| *ordinal);
        let mut rows = Vec::new();
        for (ordinal, job) in self.all.range(first..) {
            let from = match after {
                Some((at, device)) if at == ordinal => std::ops::Bound::Excluded(device),
                Some(_) | None => std::ops::Bound::Unbounded,
            };
            for (device, record) in job.devices.range((from, std::ops::Bound::Unbounded)) {
                let row = JobRow(job.row(device, record));
                if query.matches(&row) {
                    rows.push(Value::Object(row.0));
                }
                cost = cost.saturating_sub(1);
                if rows.len() == count || cost == 0 {
                    return (rows, Some((*ordinal, device.clone())));
                }
            }
        }
        (rows, None)
    }
}

/// A row of `devices.jobs`.
struct JobRow(Map<String, Value>);

impl Document for JobRow {
    fn resolve<'a>(&'a self, path: &Path) -> Operand<'a> {
        walk(&self.0, path.names())
    }
}

impl DeviceJob {
    fn answer_len(&self) -> usize {
        self.answer.as_ref().map_or(0, |answer| answer.to_string().len())
    }
}

impl Job {
    fn count(&self, status: DeviceStatus) -> usize {
        self.devices.values().filter(|record| record.status == status).count()
    }

    pub(crate) fn status(&self) -> JobStatus {
        self.status
    }

    /// As the service shows it (SDK model `JobResponse`).
    pub(crate) fn view(&self) -> Value {
        let mut view = json!({
            "jobId": self.id,
            "queryCondition": self.condition_text,
            "createdTime": self.created,
            "startTime": self.start,
            "maxExecutionTimeInSeconds": self.time_max.as_secs(),
            "type": self.task.name(),
            "status": self.status.name(),
            "deviceJobStatistics": {
                "deviceCount": self.devices.len(),
                "failedCount": self.count(DeviceStatus::Failed),
                "succeededCount": self.count(DeviceStatus::Completed),
                "runningCount": self.count(DeviceStatus::Running),
                "pendingCount": self.count(DeviceStatus::Pending),
            },
        });
        if let Value::Object(fields) = &mut view {
            let (name, request) = self.task.request();
            fields.insert(name.to_owned(), request.clone());
            fields.extend(self.end.as_ref().map(|end| ("endTime".to_owned(), end.as_str().into())));
            if let Some(failure) = &self.failure {
                fields.insert("failureReason".to_owned(), failure.as_str().into());
                fields.insert("statusMessage".to_owned(), failure.as_str().into());
            }
        }
        view
    }

    /// The job on one device, as `devices.jobs` has it ("Queries for IoT Hub jobs", sample).
    fn row(&self, device: &IdentityId, record: &DeviceJob) -> Map<String, Value> {
        let mut row = json!({
            "deviceId": device.device_id(),
            "jobId": self.id,
            "jobType": self.task.name(),
            "status": record.status.name(),
            "startTimeUtc": self.start,
            "endTimeUtc": record.ended.then_some(&record.updated),
            "createdDateTimeUtc": self.created,
            "lastUpdatedDateTimeUtc": record.updated,
            "outcome": {"deviceMethodResponse": record.answer},
        });
        let Some(row) = row.as_object_mut() else {
            return Map::new();
        };
        row.extend(device.module_id().map(|module| ("moduleId".to_owned(), module.into())));
        row.extend(record.error.clone().map(|error| ("error".to_owned(), error)));
        std::mem::take(row)
    }
}
