//! The table on a terminal.

use twinkey_contract::KeySlot;

use super::Row;
use super::summary::rough;
use crate::output::Table;

/// The whole table, or without fingerprints where it would not fit into so many columns. Then also whether it was cut.
pub(crate) fn table(rows: &[&Row], now: u64, columns_max: Option<usize>) -> (Table, bool) {
    let whole = whole_table(rows, now);
    if columns_max.is_none_or(|max| whole.width() <= max) {
        return (whole, false);
    }
    let mut table =
        Table::new(&["DEVICE", "AGENT", "CONTACT", "LIVES ON", "AGE", "ROTATION", "OFFER", "MARKS"]);
    for row in rows {
        let active = row.observed.report().and_then(|report| report.active);
        table.push([
            row.observed.identity.to_string(),
            agent(row),
            contact(row, now),
            active.map_or_else(dash, |slot| slot.to_string()),
            row.observed.active_key_age(now).map_or_else(dash, rough),
            rotation(row),
            offer(row, now),
            marks(row),
        ]);
    }
    (table, true)
}

fn whole_table(rows: &[&Row], now: u64) -> Table {
    let mut table = Table::new(&[
        "DEVICE",
        "AGENT",
        "CONTACT",
        "LIVES ON",
        "KEY",
        "AGE",
        "OTHER KEY",
        "ROTATION",
        "OFFER",
        "MARKS",
    ]);
    for row in rows {
        let active = row.observed.report().and_then(|report| report.active);
        table.push([
            row.observed.identity.to_string(),
            agent(row),
            contact(row, now),
            active.map_or_else(dash, |slot| slot.to_string()),
            active.map_or_else(dash, |slot| fingerprint(row, slot)),
            row.observed.active_key_age(now).map_or_else(dash, rough),
            active.map_or_else(dash, |slot| fingerprint(row, slot.other())),
            rotation(row),
            offer(row, now),
            marks(row),
        ]);
    }
    table
}

/// The agent's version, or what is there instead.
pub(super) fn agent(row: &Row) -> String {
    use super::observed::Reported;
    match &row.observed.reported {
        Reported::Nothing if row.observed.uses_keys() => dash(),
        Reported::Nothing => "certificate".to_owned(),
        Reported::Report(report) => report.agent.clone(),
        Reported::OtherContract(version) => format!("contract {version}"),
        Reported::Unreadable => "unreadable".to_owned(),
        Reported::TooLong => "unknown".to_owned(),
    }
}

pub(super) fn contact(row: &Row, now: u64) -> String {
    let state = match (row.observed.is_connected, row.observed.contact_age(now)) {
        (true, _) => "connected".to_owned(),
        (false, Some(age)) => format!("{} ago", rough(age)),
        (false, None) => "never".to_owned(),
    };
    if row.observed.is_disabled() { format!("{state}, disabled") } else { state }
}

pub(super) fn fingerprint(row: &Row, slot: KeySlot) -> String {
    let held = row.observed.report().and_then(|report| report.slot(slot));
    held.map_or_else(dash, |held| held.fingerprint.short())
}

/// Where the last rotation stands, and why.
pub(super) fn rotation(row: &Row) -> String {
    let Some(report) = row.observed.report() else { return dash() };
    match report.reason {
        Some(reason) => format!("{} ({reason})", report.status),
        None => report.status.to_string(),
    }
}

/// How long an offer has been standing.
pub(super) fn offer(row: &Row, now: u64) -> String {
    match (&row.observed.offer, row.observed.offer_age(now)) {
        (None, _) => dash(),
        (Some(_), Some(age)) => rough(age),
        (Some(_), None) => "stands".to_owned(),
    }
}

pub(super) fn marks(row: &Row) -> String {
    if row.marks.is_empty() {
        return dash();
    }
    row.marks.iter().map(|mark| mark.code()).collect::<Vec<_>>().join(", ")
}

fn dash() -> String {
    "-".to_owned()
}
