//! The JSON output: one row for each identity, and the summary.

use serde::Serialize;
use twinkey_contract::report::{Reason, Status};
use twinkey_contract::sealing::SealingPublicKey;
use twinkey_contract::{KeySlot, RotationId};

use super::Row;
use super::observed::{Registry, Reported};
use super::summary::Summary;
use crate::page::moment;

/// What the document calls itself, with the version of its form.
pub(crate) const DOCUMENT: &str = "twinkey-fleet-status/1";

/// The whole output.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    document: &'static str,
    hub: &'a str,
    at: String,
    summary: &'a Summary,
    identities: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    status: Option<&'a str>,
    authentication: Option<&'a str>,
    is_connected: bool,
    last_contact: Option<String>,
    /// `report`, `none`, `other-contract`, `unreadable` or `too-long`.
    report: &'static str,
    contract: Option<u64>,
    agent: Option<&'a str>,
    seal_to: Option<SealingPublicKey>,
    sequence: Option<u64>,
    behind: Option<u64>,
    active: Option<KeySlot>,
    key_age_secs: Option<u64>,
    primary: Slot,
    secondary: Slot,
    /// `compared`, `not-compared` or `no-keys`.
    registry: &'static str,
    rotation: Option<RotationId>,
    rotation_status: Option<Status>,
    reason: Option<Reason>,
    clock_offset_secs: Option<i64>,
    offer: Option<Offer<'a>>,
    is_lagging: bool,
    marks: Vec<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Slot {
    fingerprint: Option<String>,
    proven_at: Option<String>,
    age_secs: Option<u64>,
    registry_fingerprint: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Offer<'a> {
    rotation: Option<RotationId>,
    made_at: Option<String>,
    age_secs: Option<u64>,
    slots: &'a [KeySlot],
    /// Null where that can't be told.
    is_sealed: Option<bool>,
    is_readable: bool,
}

impl<'a> Document<'a> {
    /// Of these rows, at `now` in Unix seconds.
    pub(crate) fn new(hub: &'a str, now: u64, summary: &'a Summary, rows: &[&'a Row]) -> Self {
        let identities = rows.iter().map(|row| Entry::new(row, now)).collect();
        Self { document: DOCUMENT, hub, at: moment(now), summary, identities }
    }
}

impl<'a> Entry<'a> {
    fn new(row: &'a Row, now: u64) -> Self {
        let observed = &row.observed;
        let report = observed.report();
        let slot = |slot: KeySlot| {
            let held = report.and_then(|report| report.slot(slot));
            Slot {
                fingerprint: held.map(|held| held.fingerprint.to_string()),
                proven_at: held.and_then(|held| held.proven_at).map(moment),
                age_secs: observed.key_age(slot, now),
                registry_fingerprint: observed.registry.keys().map(|keys| keys.fingerprint(slot).to_string()),
            }
        };
        let (kind, contract) = match &observed.reported {
            Reported::Nothing => ("none", None),
            Reported::Report(report) => ("report", Some(u64::from(report.contract))),
            Reported::OtherContract(version) => ("other-contract", Some(*version)),
            Reported::Unreadable => ("unreadable", None),
            Reported::TooLong => ("too-long", None),
        };
        Self {
            device_id: &observed.identity.device_id,
            module_id: observed.identity.module_id.as_deref(),
            status: observed.status.as_deref(),
            authentication: observed.authentication.as_deref(),
            is_connected: observed.is_connected,
            last_contact: observed.last_contact.map(moment),
            report: kind,
            contract,
            agent: report.map(|report| report.agent.as_str()),
            seal_to: report.and_then(|report| report.seal_to),
            sequence: report.map(|report| report.sequence),
            behind: report.and_then(|report| report.behind),
            active: report.and_then(|report| report.active),
            key_age_secs: observed.active_key_age(now),
            primary: slot(KeySlot::Primary),
            secondary: slot(KeySlot::Secondary),
            registry: match observed.registry {
                Registry::Keys(_) => "compared",
                Registry::NotRead => "not-compared",
                Registry::NoKeys => "no-keys",
            },
            rotation: report.and_then(|report| report.rotation),
            rotation_status: report.map(|report| report.status),
            reason: report.and_then(|report| report.reason),
            clock_offset_secs: report.and_then(|report| report.clock_offset_secs),
            offer: observed.offer.as_ref().map(|offer| Offer {
                rotation: offer.rotation,
                made_at: offer.made_at.map(moment),
                age_secs: observed.offer_age(now),
                slots: &offer.slots,
                is_sealed: (offer.is_readable || offer.has_plain_key).then_some(!offer.has_plain_key),
                is_readable: offer.is_readable,
            }),
            is_lagging: observed.is_lagging(),
            marks: row.marks.iter().map(|mark| mark.code()).collect(),
        }
    }
}
