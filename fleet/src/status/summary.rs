//! How many of what, among all identities that were looked at.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Row;
use super::marks::Mark;
use super::observed::Registry;

/// Counts.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) identities: usize,
    pub(crate) connected: usize,
    pub(crate) disabled: usize,
    pub(crate) with_agent: usize,
    /// They authenticate by certificate, so there is nothing to renew.
    pub(crate) without_keys: usize,
    pub(crate) lagging: usize,
    pub(crate) marked: usize,
    /// Marks by code; one identity may have several.
    pub(crate) marks: BTreeMap<&'static str, usize>,
    /// Agents by version.
    pub(crate) versions: BTreeMap<String, usize>,
    /// Rotations by status; `none` without a report that can be read.
    pub(crate) rotation_statuses: BTreeMap<&'static str, usize>,
    /// Ages of keys in use, in seconds.
    pub(crate) key_ages: Ages,
    /// Identities whose keys were not compared with the registry's.
    pub(crate) not_compared: usize,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ages {
    pub(crate) known: usize,
    /// With an agent, but of unknown age.
    pub(crate) unknown: usize,
    pub(crate) youngest_secs: Option<u64>,
    pub(crate) median_secs: Option<u64>,
    pub(crate) oldest_secs: Option<u64>,
}

impl Summary {
    pub(crate) fn of(rows: &[Row], now: u64) -> Self {
        let mut summary = Self { identities: rows.len(), ..Self::default() };
        let mut ages = Vec::new();
        for Row { observed, marks } in rows {
            summary.connected += usize::from(observed.is_connected);
            summary.disabled += usize::from(observed.is_disabled());
            summary.with_agent += usize::from(observed.has_agent());
            summary.without_keys += usize::from(!observed.uses_keys());
            summary.lagging += usize::from(observed.is_lagging());
            summary.marked += usize::from(!marks.is_empty());
            summary.not_compared += usize::from(matches!(observed.registry, Registry::NotRead));
            for mark in marks {
                *summary.marks.entry(mark.code()).or_default() += 1;
            }
            let report = observed.report();
            if let Some(report) = report {
                *summary.versions.entry(report.agent.clone()).or_default() += 1;
            }
            let status = report.map_or("none", |report| report.status.as_str());
            *summary.rotation_statuses.entry(status).or_default() += 1;
            match observed.active_key_age(now) {
                Some(age) => ages.push(age),
                None => summary.key_ages.unknown += usize::from(observed.has_agent()),
            }
        }
        ages.sort_unstable();
        summary.key_ages.known = ages.len();
        summary.key_ages.youngest_secs = ages.first().copied();
        summary.key_ages.median_secs = ages.get(ages.len() / 2).copied();
        summary.key_ages.oldest_secs = ages.last().copied();
        summary
    }

    /// For people, in a few lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let without = self.identities - self.with_agent;
        let also = |count: usize, what: &str| {
            if count > 0 { format!(", {count} {what}") } else { String::new() }
        };
        let certificates = also(self.without_keys, "by certificate");
        let disabled = also(self.disabled, "disabled");
        let mut lines = vec![format!(
            "{} looked at: {} with an agent, {without} without{certificates}; {} connected{disabled}; {} lagging; {} marked",
            self.identities, self.with_agent, self.connected, self.lagging, self.marked
        )];
        if let Ages {
            youngest_secs: Some(youngest),
            median_secs: Some(median),
            oldest_secs: Some(oldest),
            unknown,
            ..
        } = self.key_ages
        {
            let [youngest, median, oldest] = [youngest, median, oldest].map(rough);
            let unknown = if unknown > 0 { format!("; {unknown} of unknown age") } else { String::new() };
            lines
                .push(format!("keys in use: youngest {youngest}, median {median}, oldest {oldest}{unknown}"));
        }
        let present = Mark::ALL.into_iter().filter_map(|mark| Some((mark, self.marks.get(mark.code())?)));
        lines.extend(present.map(|(mark, count)| format!("{count} {}: {}", mark.code(), mark.meaning())));
        lines
    }
}

/// A time span in one unit, rounded down: `12s`, `5m`, `3h`, `42d`.
pub(crate) fn rough(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m", secs / 60),
        3600..172_800 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}
