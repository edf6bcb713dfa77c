//! What became of a rollout and of each of its devices, from the ledger alone.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::html::change;
use super::ledger::{DeviceRow, Event, Ledger, Prints, Rollout, RolloutState, State};
use super::span::told;
use super::window;
use crate::clock::unix_now_millis;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, Table};

/// Names that a few lines tell.
const NAMES_MAX: usize = 10;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    #[serde(flatten)]
    summary: Summary,
    devices: Vec<Line<'a>>,
    events: Vec<Event>,
}

/// The rollout as a whole.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    id: String,
    state: RolloutState,
    message: Option<String>,
    hub: String,
    target: String,
    seed: u32,
    created_at: String,
    ended_at: Option<String>,
    /// The process that is at work on it.
    runner: Option<u32>,
    /// How many devices are in each state.
    devices_by_state: BTreeMap<&'static str, u64>,
    waves: Vec<Wave>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wave {
    /// From 1.
    wave: u32,
    devices: u64,
    ended: u64,
    done: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    wave: u32,
    state: State,
    attempts: u32,
    first_slot: Option<&'static str>,
    before: Prints,
    after: Prints,
    rotation: Option<&'a str>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    started_at: Option<String>,
    first_done_at: Option<String>,
    ended_at: Option<String>,
}

impl Summary {
    pub(crate) fn of(rollout: &Rollout, rows: &[DeviceRow], runner: Option<u32>) -> Self {
        let mut devices_by_state = BTreeMap::new();
        let mut waves: BTreeMap<u32, Wave> = BTreeMap::new();
        for row in rows {
            *devices_by_state.entry(row.state.as_str()).or_insert(0) += 1;
            // Those that were left out never had a turn.
            if row.state != State::Skipped {
                let number = row.wave + 1;
                let wave =
                    waves.entry(number).or_insert(Wave { wave: number, devices: 0, ended: 0, done: 0 });
                wave.devices += 1;
                wave.ended += u64::from(row.state.is_end());
                wave.done += u64::from(row.state == State::Done);
            }
        }
        Self {
            id: rollout.id.to_string(),
            state: rollout.state,
            message: rollout.message.clone(),
            hub: rollout.hub.clone(),
            target: rollout.spec.target.clone(),
            seed: rollout.seed,
            created_at: time(rollout.created_at),
            ended_at: rollout.ended_at.map(time),
            runner,
            devices_by_state,
            waves: waves.into_values().collect(),
        }
    }

    /// A few lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let runner = match (self.runner, self.state) {
            (Some(0), _) => ", a process is at work on it".to_owned(),
            (Some(pid), _) => format!(", process {pid} is at work on it"),
            (None, RolloutState::Running) => {
                ", but nobody is at work on it: it was killed; `twinkey rollout resume` goes on".to_owned()
            }
            (None, _) => String::new(),
        };
        let message = self.message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
        // All have ended: that says nothing about how.
        let failed: u64 =
            ["failed", "refused"].iter().filter_map(|state| self.devices_by_state.get(state)).sum();
        let state = match self.state {
            RolloutState::Done if failed > 0 => format!("ended, {failed} devices not done"),
            other @ (RolloutState::Running
            | RolloutState::Paused
            | RolloutState::Halted
            | RolloutState::Aborted
            | RolloutState::Done) => other.as_str().to_owned(),
        };
        let counts: Vec<String> =
            self.devices_by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let mut lines = vec![
            format!("rollout {} on {}, {state}{message}{runner}", self.id, self.hub),
            format!("target {}, seed {}, since {}", self.target, self.seed, self.created_at),
            format!("devices: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }),
        ];
        for Wave { wave, devices, ended, done } in &self.waves {
            lines.push(format!("wave {wave}: {ended} of {devices} ended, {done} done"));
        }
        lines.iter().map(|line| output::printable(line)).collect()
    }
}

/// `status`.
pub(crate) fn status(ledger: &Ledger, runner: Option<u32>, format: Format) -> Result<(), Failure> {
    let (rollout, rows) = (ledger.rollout()?, ledger.devices()?);
    let summary = Summary::of(&rollout, &rows, runner);
    match format {
        Format::Json => output::json(&summary),
        Format::Table => {
            let now = unix_now_millis();
            let is_open = !matches!(rollout.state, RolloutState::Done | RolloutState::Aborted);
            let opening = window::told_opening(&rollout.spec.windows, now).filter(|_| is_open);
            let more = opening.into_iter().chain(under_way(&rows, &rollout, now)).chain(troubles(&rows));
            let lines = summary.lines().into_iter().chain(more.map(|line| output::printable(&line)));
            lines.into_iter().try_for_each(|line| output::line(&line))
        }
    }
}

/// Whose keys are being renewed, the longest first.
fn under_way(rows: &[DeviceRow], rollout: &Rollout, now: u64) -> Vec<String> {
    let since = |row: &DeviceRow| match row.state {
        State::First => row.started_at,
        State::Second => row.first_done_at,
        State::Waiting
        | State::Soaking
        | State::Done
        | State::Failed
        | State::Refused
        | State::Skipped
        | State::Gone => None,
    };
    let mut busy: Vec<_> = rows.iter().filter_map(|row| Some((since(row)?, row))).collect();
    busy.sort_by_key(|(since, row)| (*since, row.number));
    let deadline = told(rollout.spec.deadline);
    let mut lines: Vec<String> = busy
        .iter()
        .take(NAMES_MAX)
        .map(|(since, row)| {
            let key = if row.state == State::First { "first key" } else { "other key" };
            let lasts = Duration::from_secs(now.saturating_sub(*since) / 1000);
            format!(
                "{}: its {key} is under way, for {}, attempt {}; the deadline is {deadline}",
                row.identity,
                told(lasts),
                row.attempts
            )
        })
        .collect();
    if busy.len() > NAMES_MAX {
        lines.push(format!("and {} more are under way", busy.len() - NAMES_MAX));
    }
    lines
}

/// Who has failed or was refused, why, and what can be done.
fn troubles(rows: &[DeviceRow]) -> Vec<String> {
    let troubled: Vec<&DeviceRow> =
        rows.iter().filter(|row| matches!(row.state, State::Failed | State::Refused)).collect();
    let mut lines: Vec<String> = troubled
        .iter()
        .take(NAMES_MAX)
        .map(|row| {
            let why = row.message.as_deref().or(row.reason.as_deref()).unwrap_or("no reason is known");
            format!("{}: {}: {why}", row.identity, row.state.as_str())
        })
        .collect();
    if troubled.len() > NAMES_MAX {
        lines.push(format!("and {} more: twinkey rollout report", troubled.len() - NAMES_MAX));
    }
    if !troubled.is_empty() {
        lines.push("begin them again with: twinkey rollout resume --retry-failed".to_owned());
    }
    lines
}

/// `report`.
pub(crate) fn show(ledger: &Ledger, runner: Option<u32>, format: Format) -> Result<(), Failure> {
    let rows = ledger.devices()?;
    let summary = Summary::of(&ledger.rollout()?, &rows, runner);
    match format {
        Format::Json => {
            let document =
                Document { summary, devices: rows.iter().map(line).collect(), events: ledger.events()? };
            output::json(&document)
        }
        Format::Table => {
            let mut table =
                Table::new(&["DEVICE", "WAVE", "STATE", "PRIMARY", "SECONDARY", "SECONDS", "REASON"]);
            for row in &rows {
                let seconds =
                    row.started_at.zip(row.ended_at).map(|(from, until)| until.saturating_sub(from));
                table.push([
                    row.identity.to_string(),
                    (row.wave + 1).to_string(),
                    row.state.as_str().to_owned(),
                    change(row.before.primary, row.after.primary),
                    change(row.before.secondary, row.after.secondary),
                    seconds.map_or("-".to_owned(), |ms| format!("{:.1}", ms as f64 / 1000.0)),
                    row.reason.clone().unwrap_or_else(|| "-".to_owned()),
                ]);
            }
            output::table(&table)?;
            output::line("")?;
            let more = troubles(&rows).into_iter().map(|line| output::printable(&line));
            summary.lines().into_iter().chain(more).try_for_each(|line| output::line(&line))
        }
    }
}

/// What the exit code says of a rollout.
pub(crate) fn exit_of(state: RolloutState, rows: &[DeviceRow]) -> Exit {
    let has = |wanted: State| rows.iter().any(|row| row.state == wanted);
    match state {
        RolloutState::Halted | RolloutState::Aborted => Exit::Failed,
        // It is not done, and nothing is wrong.
        RolloutState::Running | RolloutState::Paused => Exit::Partly,
        RolloutState::Done if !has(State::Failed) && !has(State::Refused) => Exit::Done,
        RolloutState::Done if has(State::Done) => Exit::Partly,
        RolloutState::Done if has(State::Failed) => Exit::Failed,
        RolloutState::Done => Exit::Refused,
    }
}

fn line(row: &DeviceRow) -> Line<'_> {
    Line {
        device_id: &row.identity.device_id,
        module_id: row.identity.module_id.as_deref(),
        wave: row.wave + 1,
        state: row.state,
        attempts: row.attempts,
        first_slot: row.first_slot.map(twinkey_contract::KeySlot::as_str),
        before: row.before,
        after: row.after,
        rotation: row.rotation.as_deref(),
        reason: row.reason.as_deref(),
        message: row.message.as_deref(),
        started_at: row.started_at.map(time),
        first_done_at: row.first_done_at.map(time),
        ended_at: row.ended_at.map(time),
    }
}

/// RFC 3339, to the second.
fn time(unix_ms: u64) -> String {
    let secs = i64::try_from(unix_ms / 1000).unwrap_or(0);
    Timestamp::from_second(secs).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinkey_contract::Identity;

    #[test]
    fn the_exit_code_says_whether_all_some_or_none_were_done() {
        let row = |state: &State| DeviceRow {
            state: *state,
            ..DeviceRow::waiting(0, Identity { device_id: "d".to_owned(), module_id: None }, 0)
        };
        let exit = |state, states: &[State]| exit_of(state, &states.iter().map(row).collect::<Vec<_>>());
        for (states, expected) in [
            (&[State::Done, State::Skipped, State::Gone][..], Exit::Done),
            (&[State::Done, State::Failed], Exit::Partly),
            (&[State::Done, State::Refused], Exit::Partly),
            (&[State::Failed, State::Refused], Exit::Failed),
            (&[State::Refused], Exit::Refused),
        ] {
            assert_eq!(exit(RolloutState::Done, states), expected, "{states:?}");
        }
        assert_eq!(exit(RolloutState::Paused, &[State::Done, State::Waiting]), Exit::Partly);
        assert_eq!(exit(RolloutState::Halted, &[State::Done]), Exit::Failed);
        assert_eq!(exit(RolloutState::Aborted, &[State::Done]), Exit::Failed);
    }
}
