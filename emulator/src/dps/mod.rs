//! The Device Provisioning Service, as far as devices with symmetric keys see it: registration over MQTT and over
//! WebSocket, on the hub's own listeners. Everybody is assigned to this hub.
//!
//! IoT Hub Device Provisioning Service documentation, "Communicate with DPS using the MQTT protocol" and "Symmetric key
//! attestation". A token is judged with each request and not with CONNECT: a wrong one is told by a 401 (seen in
//! MicrosoftDocs/azure-docs issue 43157). So a connection never counts as authenticated, and keeps its small limits.

mod connection;
mod enrollment;
mod exchange;
mod registration;
mod topics;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

pub(crate) use connection::serve;
pub(crate) use enrollment::{Enrollment, EnrollmentBody, Kind};
pub(crate) use topics::{Registrant, is_for_dps};

use crate::kept::Touched;
use crate::keys::KeySlot;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::sas::Token;
use registration::Registration;

/// Most individual enrolments; the emulator keeps all of them in memory.
const ENROLLMENTS_MAX: usize = 50_000;
/// Most groups (DPS documentation, "Quotas and limits": enrolment groups with symmetric keys). Each is tried for a token.
const GROUPS_MAX: usize = 100;
/// The policy that a device's token may name (DPS documentation, "Communicate with DPS using the MQTT protocol").
const POLICY: &str = "registration";
/// Most requests that can be asked to be throttled, and longest wait that clients can be told.
const SETTING_MAX: u32 = 3600;

/// What becomes of a device's keys in the hub when it registers again. Not documented; the default is how the
/// documentation describes re-provisioning for certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeysOnReregistration {
    /// The enrolment's keys are put in the registry again.
    #[default]
    Update,
    /// The registry's keys stay.
    Keep,
}

/// How the service behaves where the documentation leaves it open, and faults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// What clients are told to wait: `retry-after`, in seconds.
    pub(crate) retry_after_secs: u32,
    /// How many status requests of each registration are answered with "assigning".
    pub(crate) assigning_polls: u32,
    /// The next requests to answer with 429.
    pub(crate) throttle_next: u32,
    pub(crate) keys_on_reregistration: KeysOnReregistration,
}

impl Default for Settings {
    /// `retry-after=3` is the documentation's example.
    fn default() -> Self {
        Self {
            retry_after_secs: 3,
            assigning_polls: 1,
            throttle_next: 0,
            keys_on_reregistration: KeysOnReregistration::default(),
        }
    }
}

/// Enrolments and registrations.
#[derive(Debug, Default)]
pub(crate) struct Provisioning {
    pub(crate) settings: Settings,
    /// By registration id in lower case: the service doesn't tell cases apart.
    individuals: BTreeMap<String, Enrollment>,
    groups: BTreeMap<String, Enrollment>,
    /// By registration id in lower case.
    registrations: BTreeMap<String, Registration>,
    pub(crate) touched: Touched<(Kind, String)>,
}

impl Provisioning {
    pub(crate) fn change_settings(&mut self, settings: Settings) -> Result<(), Refusal> {
        let numbers = [settings.retry_after_secs, settings.assigning_polls, settings.throttle_next];
        if numbers.iter().any(|number| *number > SETTING_MAX) {
            let message = format!("no setting may be over {SETTING_MAX}");
            return Err(Refusal::new(ErrorCode::ArgumentInvalid, message));
        }
        self.settings = settings;
        Ok(())
    }

    pub(crate) fn enrollment(&self, kind: Kind, id: &str) -> Option<&Enrollment> {
        self.of_kind(kind).get(&id.to_ascii_lowercase())
    }

    pub(crate) fn enrollments(&self, kind: Kind) -> impl Iterator<Item = &Enrollment> {
        self.of_kind(kind).values()
    }

    /// Adds an enrolment, or replaces one; keys that `body` doesn't name stay, or are made.
    pub(crate) fn enroll(
        &mut self,
        kind: Kind,
        id: &str,
        body: EnrollmentBody,
        precondition: &Precondition,
        timestamp: &str,
        etag: String,
    ) -> Result<&Enrollment, Refusal> {
        let name = id.to_ascii_lowercase();
        let existing = self.of_kind(kind).get(&name);
        match (precondition, existing) {
            (Precondition::Any | Precondition::Etag(_), None) => return Err(unknown(id)),
            (_, Some(existing)) => precondition.check(&existing.etag)?,
            (Precondition::None, None) => {
                let len_max = match kind {
                    Kind::Individual => ENROLLMENTS_MAX,
                    Kind::Group => GROUPS_MAX,
                };
                if self.of_kind(kind).len() >= len_max {
                    let message = format!("there are {len_max} enrolments of this kind already");
                    return Err(Refusal::new(ErrorCode::TooManyDevices, message));
                }
            }
        }
        let enrollment = Enrollment::new(kind, id, body, existing, timestamp, etag)?;
        self.touched.add(&(kind, name.clone()));
        let place = match kind {
            Kind::Individual => &mut self.individuals,
            Kind::Group => &mut self.groups,
        };
        Ok(match place.entry(name) {
            Entry::Vacant(vacant) => vacant.insert(enrollment),
            Entry::Occupied(mut occupied) => {
                occupied.insert(enrollment);
                occupied.into_mut()
            }
        })
    }

    /// Puts an enrolment back that was kept under this name.
    pub(crate) fn restore(&mut self, kind: Kind, name: String, enrollment: Enrollment) {
        match kind {
            Kind::Individual => self.individuals.insert(name, enrollment),
            Kind::Group => self.groups.insert(name, enrollment),
        };
    }

    /// Deletes an enrolment, and what is known of an individual one's registration. The device stays in the hub.
    pub(crate) fn disenroll(
        &mut self,
        kind: Kind,
        id: &str,
        precondition: &Precondition,
    ) -> Result<(), Refusal> {
        let name = id.to_ascii_lowercase();
        precondition.check(&self.of_kind(kind).get(&name).ok_or_else(|| unknown(id))?.etag)?;
        self.touched.add(&(kind, name.clone()));
        match kind {
            Kind::Individual => {
                self.individuals.remove(&name);
                self.registrations.remove(&name);
            }
            Kind::Group => {
                self.groups.remove(&name);
            }
        }
        Ok(())
    }

    pub(crate) fn registration(&self, id: &str) -> Option<serde_json::Value> {
        self.registrations.get(&id.to_ascii_lowercase()).map(Registration::operator_view)
    }

    /// The enrolment that a token proves to have the key of. An individual one hides the groups, above all if it is
    /// disabled: so single devices of a group are locked out (DPS documentation, "Manage disenrollment").
    fn authenticate(&self, registrant: &Registrant, token: &Token<'_>) -> Option<&Enrollment> {
        let path = format!("/registrations/{}", registrant.registration_id);
        let is_policy_fitting = token.policy.as_deref().is_none_or(|policy| policy == POLICY);
        if !is_policy_fitting || !token.names(&registrant.id_scope, &path) {
            return None;
        }
        let has_signed = |enrollment: &&Enrollment| {
            [KeySlot::Primary, KeySlot::Secondary].into_iter().any(|slot| {
                let key = enrollment.device_key(slot, &registrant.registration_id);
                token.is_signed_by(&key)
            })
        };
        match self.enrollment(Kind::Individual, &registrant.registration_id) {
            Some(individual) => Some(individual).filter(has_signed),
            None => self.groups.values().find(has_signed),
        }
    }

    fn of_kind(&self, kind: Kind) -> &BTreeMap<String, Enrollment> {
        match kind {
            Kind::Individual => &self.individuals,
            Kind::Group => &self.groups,
        }
    }
}

pub(crate) fn unknown(id: &str) -> Refusal {
    Refusal::new(ErrorCode::EnrollmentNotFound, format!("there is no {}", id.escape_debug()))
}
