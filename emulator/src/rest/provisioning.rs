//! The provisioning service's enrolments, for the operator: under `/$emulator/` and without authentication, in the shape
//! of the DPS service API.
//!
//! | Request | Answer |
//! |---|---|
//! | `PUT enrollments/{registrationId}`, `PUT enrollmentGroups/{id}` | the enrolment with its keys, which are made if the body has none |
//! | `GET`, `DELETE` of the same | the enrolment; 204 |
//! | `GET enrollments`, `GET enrollmentGroups` | all of them |
//! | `GET registrations/{registrationId}` | what came of a registration, and the payload that the device sent |
//! | `GET dps`, `POST dps` | settings; a POST merges the fields that it names |

use serde_json::{Value, json};

use super::{Call, Reply};
use crate::dps::{self, Enrollment, EnrollmentBody, Kind, Settings};
use crate::hub::Hub;
use crate::refusal::{ErrorCode, Refusal};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    List(Kind),
    Write(Kind, String),
    Read(Kind, String),
    Delete(Kind, String),
    Registration(String),
    ReadSettings,
    ChangeSettings,
}

impl Endpoint {
    pub(super) fn find(method: &str, path: &[&str]) -> Option<Self> {
        let kind = |name| match name {
            "enrollments" => Some(Kind::Individual),
            "enrollmentGroups" => Some(Kind::Group),
            _ => None,
        };
        match (method, path) {
            ("GET", ["dps"]) => Some(Self::ReadSettings),
            ("POST", ["dps"]) => Some(Self::ChangeSettings),
            ("GET", ["registrations", id]) => Some(Self::Registration((*id).to_owned())),
            ("GET", [name]) => kind(name).map(Self::List),
            ("PUT", [name, id]) => kind(name).map(|kind| Self::Write(kind, (*id).to_owned())),
            ("GET", [name, id]) => kind(name).map(|kind| Self::Read(kind, (*id).to_owned())),
            ("DELETE", [name, id]) => kind(name).map(|kind| Self::Delete(kind, (*id).to_owned())),
            _ => None,
        }
    }

    pub(super) fn call(self, hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
        match self {
            Self::List(kind) => {
                Ok(Reply::ok(hub.lock().provisioning.enrollments(kind).map(Enrollment::view).collect()))
            }
            Self::Write(kind, id) => {
                let body: EnrollmentBody =
                    if call.body.is_empty() { Default::default() } else { call.json()? };
                let (precondition, timestamp) = (call.precondition(), hub.clock.timestamp());
                let mut state = hub.lock();
                let etag = state.registry.next_etag();
                let written = state.provisioning.enroll(kind, &id, body, &precondition, &timestamp, etag)?;
                Ok(reply(written))
            }
            Self::Read(kind, id) => {
                let state = hub.lock();
                Ok(reply(state.provisioning.enrollment(kind, &id).ok_or_else(|| dps::unknown(&id))?))
            }
            Self::Delete(kind, id) => {
                hub.lock().provisioning.disenroll(kind, &id, &call.precondition())?;
                Ok(Reply::empty())
            }
            Self::Registration(id) => {
                let view = hub.lock().provisioning.registration(&id);
                view.map(Reply::ok).ok_or_else(|| dps::unknown(&id))
            }
            Self::ReadSettings => settings(hub),
            Self::ChangeSettings => {
                let Value::Object(fields) = call.json()? else {
                    return Err(Refusal::new(ErrorCode::ArgumentInvalid, "the body is no JSON object"));
                };
                let mut state = hub.lock();
                let mut merged = json!(state.provisioning.settings);
                if let Value::Object(merged) = &mut merged {
                    merged.extend(fields);
                }
                let merged: Settings = serde_json::from_value(merged)
                    .map_err(|error| Refusal::new(ErrorCode::ArgumentInvalid, error.to_string()))?;
                state.provisioning.change_settings(merged)?;
                drop(state);
                settings(hub)
            }
        }
    }
}

fn reply(enrollment: &Enrollment) -> Reply {
    Reply::ok(enrollment.view()).etag(&enrollment.etag)
}

fn settings(hub: &Hub) -> Result<Reply, Refusal> {
    Ok(Reply::ok(json!(hub.lock().provisioning.settings)))
}
