//! The twin: what the operator desires, what is reported, and what an earlier report tells of this key ring and of
//! others with its name. The direct method is the same document, asked for.

use serde_json::{Value, json};
use twinkey_contract::KeySlot;
use twinkey_contract::offer::{OfferError, OfferErrorKind};
use twinkey_contract::report::{Nonce, Reason, Report};
use twinkey_contract::twin::{Twin, TwinError};
use twinkey_rotation::{Desired, Input, Verdict};

use super::Driver;
use crate::store::Files;
use crate::twin;

/// The direct method that the agent answers.
const METHOD: &str = "keyRenewal";

/// The key ring comes from an old image.
pub(super) struct Restored {
    /// The highest sequence that the twin has shown of it.
    pub(super) seen: u64,
    /// The newest rotation that the image knew.
    pub(super) rotation: Option<twinkey_rotation::RotationId>,
}

impl<F: Files + Send + 'static> Driver<F> {
    pub(super) fn write_report(&mut self) {
        let Some(report) = &self.machine_report else { return };
        let report = twin::write_report(report, &self.remarks, &self.key_ring);
        tracing::info!(
            status = report.status.as_str(),
            reason = report.reason.map(Reason::as_str),
            rotation = report.rotation.map(tracing::field::display),
            active = report.active.map(KeySlot::as_str),
            sequence = report.sequence,
            "key renewal"
        );
        self.report_patch = Some(report.to_patch());
        self.report = Some(report);
    }

    pub(super) fn read_twin(&mut self, document: &[u8]) {
        let stands = Twin::find(document).ok().and_then(|twin| twin.report().ok().flatten());
        if let (Some(live), Some(report), Some(patch)) =
            (self.live.as_mut(), &self.report, &self.report_patch)
        {
            if stands.as_ref() == Some(report) {
                live.session.note_reported(patch.clone());
            }
        }
        if let Some(stands) = &stands {
            self.compare_with(stands);
        }
        let (desired, complaint) =
            twin::read_desired(document, &mut self.key_ring, &self.state.ring, &self.config.rotation);
        self.take_desired(desired, complaint);
    }

    /// The twin was too large to be read, and was passed over.
    pub(super) fn pass_over_twin(&mut self, len: usize) {
        let error = OfferError::from(OfferErrorKind::from(TwinError::TooLarge { len }));
        self.take_desired(twin::invalid(error.rotation, error.code()), Some(error.to_string()));
    }

    fn take_desired(&mut self, desired: Desired, complaint: Option<String>) {
        // Once per change: a bad offer stands until somebody takes it away.
        if let Some(what) = complaint.as_ref().filter(|_| self.counters.complaint != complaint) {
            tracing::warn!(error = what, "the offer in the twin can't be used; the keys stay as they are");
        }
        self.counters.complaint = complaint;
        self.feed(Input::Desired(desired));
        self.forget_keys();
    }

    /// What the twin says that we, or somebody with our name, reported before.
    pub(super) fn compare_with(&mut self, stands: &Report) {
        if stands.seal_to != Some(self.key_ring.sealing_key.public()) {
            // Another key ring's: an earlier one of this device or, once ours was seen there, a second agent's.
            if self.has_seen_own_report {
                self.duel.saw_rival();
            }
            return;
        }
        let sequence = self.state.durable.sequence;
        let is_first_look = !std::mem::replace(&mut self.has_seen_own_report, true);
        if is_first_look {
            let seen = stands.behind.unwrap_or(0).max(stands.sequence);
            self.first_seen_sequence = seen;
            if seen > sequence {
                tracing::warn!(
                    sequence,
                    seen,
                    "the key ring is older than what was reported from it: it was restored from an old image; the operator is asked for the keys that it has missed"
                );
                let rotation = self.state.ring.rotation.map(|rotation| rotation.id);
                self.restored = Some(Restored { seen, rotation });
            }
        } else if stands.sequence > sequence.max(self.first_seen_sequence) {
            // A copy of this key ring is at work elsewhere.
            self.duel.saw_rival();
        }
    }

    /// An old image has caught up when a rotation that it did not know has been committed.
    pub(super) fn has_caught_up(&self, restored: &Restored) -> bool {
        let durable = &self.state.durable;
        let is_new = |rotation: &twinkey_rotation::Rotation| {
            Some(rotation.id) != restored.rotation && rotation.verdict == Some(Verdict::Committed)
        };
        durable.sequence > restored.seen || durable.rotation.as_ref().is_some_and(is_new)
    }

    pub(super) fn answer_method(&mut self, name: &str, request: &str, payload: &[u8]) {
        let payload = serde_json::from_slice::<Value>(payload).unwrap_or_default();
        let field = |name| payload.get(name).filter(|value| !value.is_null());
        let action = field("action").and_then(Value::as_str);
        let nonce = field("nonce").map(|nonce| nonce.as_str().and_then(Nonce::parse));
        let (status, body) = match (name, action) {
            (METHOD, _) if nonce == Some(None) => {
                (400, json!({"error": "`nonce` must be 16 to 64 letters, digits, `-` or `_`"}))
            }
            (METHOD, Some("status")) => (200, self.answer_to(nonce.flatten())),
            (METHOD, Some("retry")) => {
                self.feed(Input::Retry);
                (200, self.answer_to(nonce.flatten()))
            }
            (METHOD, _) => (
                400,
                json!({"error": "the payload must be {\"action\": \"status\"} or {\"action\": \"retry\"}"}),
            ),
            (_, _) => (404, json!({"error": format!("this agent answers the method {METHOD} only")})),
        };
        let now = self.clock.now();
        let Some(live) = self.live.as_mut() else { return };
        if let Err(error) = live.session.answer_method(status, request, &body, now) {
            self.lost(&error.into());
        }
    }

    /// The report, and with a nonce the proof that it is the present one.
    fn answer_to(&self, nonce: Option<Nonce>) -> Value {
        let mut document = self.report_document();
        if let (Some(nonce), Some(report), Value::Object(fields)) = (nonce, &self.report, &mut document) {
            let answer = twin::active_key(report, &self.key_ring)
                .map(|key| report.answer(&nonce, key, &self.key_ring.registration.identity));
            fields.insert("nonce".to_owned(), nonce.as_str().into());
            fields.insert("freshProof".to_owned(), json!(answer));
        }
        document
    }

    pub(super) fn report_document(&self) -> Value {
        self.report_patch.as_ref().and_then(|patch| patch.get("keyRenewal")).cloned().unwrap_or(Value::Null)
    }
}
