//! The page for browsers.

use std::collections::BTreeMap;

use twinkey_contract::Fingerprint;

use super::ledger::{DeviceRow, Event, Ledger, RolloutState, State};
use super::report::Summary;
use crate::failure::Failure;
use crate::page::{Bars, Cell, Histogram, Lines, Page, Series, Table, Tone, moment};

const HOUR_MS: f64 = 3_600_000.0;
/// Most points of a line: a page for people, not for machines.
const POINTS_MAX: usize = 500;

pub(crate) fn page(ledger: &Ledger, runner: Option<u32>, now_unix_ms: u64) -> Result<Page, Failure> {
    let (rollout, rows, events) = (ledger.rollout()?, ledger.devices()?, ledger.events()?);
    let summary = Summary::of(&rollout, &rows, runner);
    let mut page = Page::new(
        &format!("Rollout of {}", rollout.spec.target),
        &format!("{}, {}, as of {}", rollout.hub, rollout.id, moment(now_unix_ms / 1000)),
    );
    let mut section = page.section("Summary");
    let mut facts = vec![("the rollout", rollout.state.as_str().to_owned(), tone_of(rollout.state))];
    for state in State::ALL {
        let count = rows.iter().filter(|row| row.state == *state).count();
        if count > 0 {
            facts.push((state.as_str(), count.to_string(), tone(*state)));
        }
    }
    section.facts(&facts);
    for line in summary.lines() {
        section.text(&line);
    }
    page.section("Progress").lines(&progress(&rows, &events));
    let counts = |word: &dyn Fn(&DeviceRow) -> Option<String>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        rows.iter().filter_map(word).for_each(|word| *counts.entry(word).or_insert(0) += 1);
        counts
    };
    let states = counts(&|row| Some(row.state.as_str().to_owned()));
    let toned =
        |word: &str| State::ALL.iter().find(|state| state.as_str() == word).map_or(Tone::Plain, |s| tone(*s));
    let reasons = counts(&|row| row.reason.clone());
    let hours = |row: &DeviceRow| {
        let newest = row.ended_at.filter(|_| row.state == State::Done).or(row.first_done_at)?;
        Some(now_unix_ms.saturating_sub(newest) as f64 / HOUR_MS)
    };
    let ages: Vec<f64> = rows.iter().filter_map(hours).collect();
    let took = |row: &DeviceRow| Some(row.ended_at?.saturating_sub(row.started_at?) as f64 / 1000.0);
    let seconds: Vec<f64> = rows.iter().filter(|row| row.state == State::Done).filter_map(took).collect();
    page.section("Outcomes")
        .bars(&Bars::of_counts(
            "Devices",
            states.iter().map(|(word, count)| (word.as_str(), *count, toned(word))),
        ))
        .bars(&Bars::of_counts(
            "Reasons",
            reasons.iter().map(|(word, count)| (word.as_str(), *count, Tone::Warn)),
        ))
        .histogram(&Histogram::of("Age of the newest key, in hours", "hours", &ages))
        .histogram(&Histogram::of("From begin to end, soak included, in seconds", "seconds", &seconds));
    page.section("Devices").table(&devices(&rows));
    Ok(page)
}

/// How many were done and how many had failed when.
fn progress(rows: &[DeviceRow], events: &[Event]) -> Lines {
    let mut states: BTreeMap<u32, &str> = BTreeMap::new();
    let (mut done, mut failed) = (0_u32, 0_u32);
    let mut points = Vec::new();
    if let Some(first) = events.first() {
        points.push((first.at / 1000, 0, 0));
    }
    for event in events {
        let Some(device) = event.device else { continue };
        let earlier = states.insert(device, event.what.as_str());
        for (word, count) in [(State::Done.as_str(), &mut done), (State::Failed.as_str(), &mut failed)] {
            // Failed ones that are begun again are failed no more.
            *count = count.saturating_sub(u32::from(earlier == Some(word))) + u32::from(event.what == word);
        }
        points.push((event.at / 1000, done, failed));
    }
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    let shown: Vec<_> =
        points.into_iter().enumerate().filter(|(at, _)| at % step == 0 || *at == last).collect();
    let series = |name: &str, tone, amount: &dyn Fn(u32, u32) -> u32| Series {
        name: name.to_owned(),
        tone,
        points: shown
            .iter()
            .map(|(_, (at, done, failed))| (*at, f64::from(amount(*done, *failed))))
            .collect(),
        is_step: true,
    };
    Lines {
        title: format!("Devices over time, of {}", rows.len()),
        unit: "devices".to_owned(),
        series: vec![
            series("done", Tone::Good, &|done, _| done),
            series("failed", Tone::Bad, &|_, failed| failed),
        ],
    }
}

fn devices(rows: &[DeviceRow]) -> Table {
    let titles = ["Device", "#Wave", "State", "Primary", "Secondary", "#Attempts", "Reason"];
    let mut table = Table::new("devices", &titles);
    for row in rows {
        let state = Cell::new(row.state.as_str()).tone(tone(row.state));
        let reason = Cell::new(row.reason.as_deref().unwrap_or("-"));
        table.push([
            Cell::code(row.identity.to_string()),
            Cell::new((row.wave + 1).to_string()),
            state,
            Cell::code(change(row.before.primary, row.after.primary)),
            Cell::code(change(row.before.secondary, row.after.secondary)),
            Cell::new(row.attempts.to_string()),
            match &row.message {
                Some(message) => reason.explained(message.as_str()),
                None => reason,
            },
        ]);
    }
    table
}

/// What a slot had and has.
pub(super) fn change(before: Option<Fingerprint>, after: Option<Fingerprint>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before != after => format!("{} → {}", before.short(), after.short()),
        (None, Some(after)) => format!("→ {}", after.short()),
        (Some(_) | None, _) => "-".to_owned(),
    }
}

fn tone(state: State) -> Tone {
    match state {
        State::Waiting | State::Skipped | State::Gone => Tone::Muted,
        State::First | State::Soaking | State::Second => Tone::Plain,
        State::Done => Tone::Good,
        State::Refused => Tone::Warn,
        State::Failed => Tone::Bad,
    }
}

fn tone_of(state: RolloutState) -> Tone {
    match state {
        RolloutState::Running => Tone::Plain,
        RolloutState::Paused => Tone::Muted,
        RolloutState::Halted => Tone::Bad,
        RolloutState::Aborted => Tone::Warn,
        RolloutState::Done => Tone::Good,
    }
}
