//! Registrations: what a device asks for, what comes of it, and how it is told.

use serde::Deserialize;
use serde_json::{Value, json};

use super::enrollment::{Enrollment, Failure};
use super::{KeysOnReregistration, Registrant, topics};
use crate::clock::Clock;
use crate::hub::{Hub, State};
use crate::identity::IdentityId;
use crate::keys::{Key, KeySlot, SymmetricKeys};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::{Precondition, Status};
use crate::sas::Token;
use crate::twin::ServicePatch;

/// Most registrations that are remembered: as many as there may be devices.
const REGISTRATIONS_MAX: usize = 50_000;

/// What is known of one registration id.
#[derive(Debug)]
pub(super) struct Registration {
    registration_id: String,
    operation_id: String,
    outcome: Outcome,
    /// Status requests that are still to be answered with "assigning".
    assigning_polls: u32,
    created: String,
    updated: String,
    etag: String,
    /// What the device sent along.
    request_payload: Option<Value>,
}

#[derive(Debug)]
enum Outcome {
    Assigned { device: IdentityId, hub: String, is_new_again: bool, payload: Option<Value> },
    Disabled,
    Failed(Failure),
}

/// An answer: topic and body.
pub(super) type Answer = (String, Value);

/// The body of a registration request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: Option<String>,
    payload: Option<Value>,
}

/// An enrolment's part that is needed after the provisioning state is no longer borrowed.
struct Plan {
    device: Option<IdentityId>,
    primary: Key,
    secondary: Key,
    status: Status,
    iot_edge: bool,
    initial_twin: ServicePatch,
    payload: Option<Value>,
    failure: Option<Failure>,
}

impl Plan {
    fn new(enrollment: &Enrollment, registration_id: &str) -> Self {
        Self {
            device: enrollment.device(registration_id),
            primary: enrollment.device_key(KeySlot::Primary, registration_id),
            secondary: enrollment.device_key(KeySlot::Secondary, registration_id),
            status: enrollment.status,
            iot_edge: enrollment.iot_edge,
            initial_twin: enrollment.initial_twin(),
            payload: enrollment.payload.clone(),
            failure: enrollment.failure.clone(),
        }
    }
}

impl Hub {
    /// Registers a device, or says that it can't.
    pub(super) fn register(&self, registrant: &Registrant, password: &str, rid: &str, body: &[u8]) -> Answer {
        let mut state = self.lock();
        let done = self.authenticate(&mut state, registrant, password).and_then(|plan| {
            let body: RegisterBody = serde_json::from_slice(body).map_err(|error| {
                Refusal::new(ErrorCode::ArgumentInvalid, format!("no JSON with registrationId: {error}"))
            })?;
            if body.registration_id.is_some_and(|id| id != registrant.registration_id) {
                let message = "registrationId in the body differs from the user name";
                return Err(Refusal::new(ErrorCode::ArgumentInvalid, message));
            }
            self.assign(&mut state, registrant, plan, body.payload)
        });
        self.answer(&state, rid, done)
    }

    /// Says how far a registration is.
    pub(super) fn registration_status(
        &self,
        registrant: &Registrant,
        password: &str,
        rid: &str,
        operation_id: &str,
    ) -> Answer {
        let mut state = self.lock();
        let done = self.authenticate(&mut state, registrant, password).and_then(|_| {
            let registrations = &mut state.provisioning.registrations;
            let name = registrant.registration_id.to_ascii_lowercase();
            let found = registrations.get_mut(&name).filter(|it| it.operation_id == operation_id);
            let registration =
                found.ok_or_else(|| Refusal::new(ErrorCode::OperationNotFound, "Operation not found"))?;
            if registration.assigning_polls > 0 {
                registration.assigning_polls -= 1;
                return Ok((202, registration.assigning()));
            }
            Ok((200, registration.finished()))
        });
        self.answer(&state, rid, done)
    }

    fn answer(&self, state: &State, rid: &str, done: Result<(u16, Value), Refusal>) -> Answer {
        let (status, body) = done
            .unwrap_or_else(|refusal| (refusal.code.status(), refusal.compact_body(&self.clock.timestamp())));
        let retry_after = matches!(status, 202 | 429).then_some(state.provisioning.settings.retry_after_secs);
        (topics::answer(status, rid, retry_after), body)
    }

    /// Finds the enrolment that the token belongs to; whoever fails here learns nothing else.
    fn authenticate(
        &self,
        state: &mut State,
        registrant: &Registrant,
        password: &str,
    ) -> Result<Plan, Refusal> {
        let settings = &mut state.provisioning.settings;
        if settings.throttle_next > 0 {
            settings.throttle_next -= 1;
            return Err(Refusal::new(ErrorCode::Throttling, "Too many requests"));
        }
        let token = Token::parse(password)
            .filter(|token| !token.is_expired(self.clock.unix_time(), self.options.clock_skew));
        let enrollment = token.and_then(|token| state.provisioning.authenticate(registrant, &token));
        enrollment
            .map(|enrollment| Plan::new(enrollment, &registrant.registration_id))
            .ok_or_else(|| Refusal::new(ErrorCode::UnauthorizedAccess, "Unauthorized"))
    }

    /// Decides what comes of a registration, and puts the device in the hub's registry. Doing it again changes nothing
    /// but what the enrolment has changed.
    fn assign(
        &self,
        state: &mut State,
        registrant: &Registrant,
        plan: Plan,
        request_payload: Option<Value>,
    ) -> Result<(u16, Value), Refusal> {
        let name = registrant.registration_id.to_ascii_lowercase();
        let (settings, registrations) = (&state.provisioning.settings, &state.provisioning.registrations);
        let before = registrations.get(&name);
        if let Some(running) = before.filter(|before| before.assigning_polls > 0) {
            return Ok((202, running.assigning()));
        }
        if before.is_none() && registrations.len() >= REGISTRATIONS_MAX {
            let message = format!("this emulator remembers {REGISTRATIONS_MAX} registrations");
            return Err(Refusal::new(ErrorCode::TooManyDevices, message));
        }
        let assigning_polls = settings.assigning_polls;
        let created = before.map(|before| before.created.clone());
        let was_assigned = before.is_some_and(|before| matches!(before.outcome, Outcome::Assigned { .. }));
        let timestamp = self.clock.timestamp();
        let outcome = match plan {
            Plan { status: Status::Disabled, .. } => Outcome::Disabled,
            Plan { failure: Some(failure), .. } => Outcome::Failed(failure),
            plan @ Plan { status: Status::Enabled, failure: None, .. } => {
                let payload = plan.payload.clone();
                match provision(state, &self.clock, plan) {
                    Ok((device, is_new)) => Outcome::Assigned {
                        device,
                        hub: self.options.host_name.clone(),
                        is_new_again: is_new && was_assigned,
                        payload,
                    },
                    Err(Refusal { code, message, retry_after_secs: _ }) => {
                        Outcome::Failed(Failure { error_code: code.number(), error_message: message })
                    }
                }
            }
        };
        let registration = Registration {
            registration_id: registrant.registration_id.clone(),
            operation_id: operation_id()?,
            outcome,
            assigning_polls,
            created: created.unwrap_or_else(|| timestamp.clone()),
            updated: timestamp,
            etag: state.registry.next_etag(),
            request_payload,
        };
        let assigning = registration.assigning();
        state.provisioning.registrations.insert(name, registration);
        Ok((202, assigning))
    }
}

/// Puts the device in the registry with the enrolment's keys, or finds it there; says whether it is new.
fn provision(state: &mut State, clock: &Clock, plan: Plan) -> Result<(IdentityId, bool), Refusal> {
    let no_id = || Refusal::new(ErrorCode::ArgumentInvalid, "the registration id makes no device id");
    let device = plan.device.ok_or_else(no_id)?;
    if let Some(identity) = state.registry.find(&device) {
        let is_same = *identity.keys.key(KeySlot::Primary) == plan.primary
            && *identity.keys.key(KeySlot::Secondary) == plan.secondary;
        let update = state.provisioning.settings.keys_on_reregistration == KeysOnReregistration::Update;
        if update && !is_same {
            state.change_keys(&device, plan.primary, plan.secondary)?;
        }
        return Ok((device, false));
    }
    let keys = SymmetricKeys::new(plan.primary, plan.secondary);
    let (timestamp, unix_time) = (clock.timestamp(), clock.unix_time());
    state.registry.create(&device, Some(keys), &timestamp, unix_time)?.iot_edge = plan.iot_edge;
    if plan.initial_twin.tags.is_some() || plan.initial_twin.desired.is_some() {
        state.change_twin(&device, &plan.initial_twin, false, &Precondition::None)?;
    }
    state.configure(&device);
    Ok((device, true))
}

impl Registration {
    fn assigning(&self) -> Value {
        json!({"operationId": self.operation_id, "status": "assigning"})
    }

    fn finished(&self) -> Value {
        json!({
            "operationId": self.operation_id,
            "status": self.status(),
            "registrationState": self.registration_state(),
        })
    }

    fn status(&self) -> &'static str {
        match self.outcome {
            Outcome::Assigned { .. } => "assigned",
            Outcome::Disabled => "disabled",
            Outcome::Failed(_) => "failed",
        }
    }

    fn registration_state(&self) -> Value {
        let mut state = json!({
            "registrationId": self.registration_id,
            "createdDateTimeUtc": self.created,
            "status": self.status(),
            "lastUpdatedDateTimeUtc": self.updated,
            "etag": self.etag,
        });
        let more = match &self.outcome {
            Outcome::Assigned { device, hub, is_new_again, payload } => {
                let substatus =
                    if *is_new_again { "reprovisionedToInitialAssignment" } else { "initialAssignment" };
                let mut more = json!({
                    "assignedHub": hub,
                    "deviceId": device.device_id(),
                    "substatus": substatus,
                });
                if let (Value::Object(more), Some(payload)) = (&mut more, payload) {
                    more.insert("payload".to_owned(), payload.clone());
                }
                more
            }
            Outcome::Disabled => json!({}),
            Outcome::Failed(failure) => {
                json!({"errorCode": failure.error_code, "errorMessage": failure.error_message})
            }
        };
        if let (Value::Object(state), Value::Object(more)) = (&mut state, more) {
            state.extend(more);
        }
        state
    }

    /// What the operator reads: the state, and what the device sent along.
    pub(super) fn operator_view(&self) -> Value {
        json!({
            "operationId": self.operation_id,
            "registrationState": self.registration_state(),
            "requestPayload": self.request_payload,
        })
    }
}

/// In the real service's form: `4.`, 16 hexadecimal digits, a dot and a UUID.
fn operation_id() -> Result<String, Refusal> {
    let (mut number, mut random) = ([0; 8], [0; 16]);
    getrandom::fill(&mut number)?;
    getrandom::fill(&mut random)?;
    let id = uuid::Builder::from_random_bytes(random).into_uuid();
    Ok(format!("4.{:016x}.{id}", u64::from_be_bytes(number)))
}
