//! The plan: who has a turn when, who has none, what it costs.

use std::collections::BTreeMap;

use serde::Serialize;
use twinkey_contract::{Identity, KeySlot};
use uuid::Uuid;

use super::estimate::{Estimate, Operations, estimate};
use super::ledger::{DeviceRow, Rollout, RolloutState, State};
use super::span::told;
use super::spec::Spec;
use super::target::{Candidate, Target, Verdict};
use super::waves;
use super::window;
use crate::clock::unix_now_millis;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, Table};

/// What a rollout would be.
pub(crate) struct Plan {
    pub(crate) spec: Spec,
    pub(crate) seed: u32,
    hub: String,
    /// In their order, with their waves.
    pub(crate) renewed: Vec<(Candidate, u32)>,
    pub(crate) refused: Vec<Candidate>,
    is_compared: bool,
    /// Where each wave ends.
    ends: Vec<usize>,
    estimate: Estimate,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    /// From 1.
    wave: Option<u32>,
    action: &'static str,
    first: Option<&'static str>,
    because: &'a str,
    reason: Option<&'static str>,
    advice: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    target: &'a str,
    hub: &'a str,
    seed: u32,
    compared_with_registry: bool,
    /// Devices of each wave.
    waves: Vec<usize>,
    devices: Vec<Line<'a>>,
    operations: Operations,
    /// Of the hub's limits alone.
    seconds_at_least: u64,
    narrowest_limit: &'static str,
    soaking_seconds: u64,
}

impl Plan {
    /// Puts the target into its order.
    pub(crate) fn of(target: Target, spec: Spec, seed: u32, hub: &str) -> Result<Self, Failure> {
        let is_compared = target.is_compared;
        let (mut renewed, mut refused): (Vec<_>, Vec<_>) =
            target.candidates.into_iter().partition(|one| matches!(one.verdict, Verdict::Renew { .. }));
        waves::shuffle(&mut renewed, seed, |one| &one.identity);
        refused.sort_by_key(|one| one.identity.to_string());
        let ends =
            waves::ends(&spec.waves, renewed.len()).map_err(|e| Failure::usage(format!("the spec: {e}")))?;
        let estimate = estimate(&spec, renewed.len(), ends.len());
        let wave = |place: usize| ends.iter().position(|end| place < *end).map_or(0, |wave| wave as u32);
        let renewed = renewed.into_iter().enumerate().map(|(place, one)| (one, wave(place))).collect();
        Ok(Self { spec, seed, hub: hub.to_owned(), renewed, refused, is_compared, ends, estimate })
    }

    pub(crate) fn exit(&self, skips_unsafe: bool) -> Exit {
        if self.refused.is_empty() || (skips_unsafe && !self.renewed.is_empty()) {
            Exit::Done
        } else {
            Exit::Refused
        }
    }

    pub(crate) fn waves(&self) -> usize {
        self.ends.len()
    }

    /// Who is left out, and what can be done about it.
    pub(crate) fn tell_refused(&self) {
        let mut advices: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for one in &self.refused {
            if let Verdict::Refuse { code, because, advice } = &one.verdict {
                output::note(&format!("{}: refused: {because}", one.identity));
                advices.entry(code).or_insert((0, advice)).0 += 1;
            }
        }
        for (code, (count, advice)) in advices {
            output::note(&format!("{code} ({count}): {advice}"));
        }
    }

    pub(crate) fn show(&self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => output::json(&self.document()),
            Format::Table => {
                let mut table = Table::new(&["DEVICE", "WAVE", "WOULD", "FIRST", "BECAUSE"]);
                for line in self.lines() {
                    let name = line.module_id.map_or_else(
                        || line.device_id.to_owned(),
                        |module| format!("{}/{module}", line.device_id),
                    );
                    let wave = line.wave.map_or("-".to_owned(), |wave| wave.to_string());
                    let first = line.first.unwrap_or("-").to_owned();
                    table.push([name, wave, line.action.to_owned(), first, line.because.to_owned()]);
                }
                output::table(&table)?;
                self.summary().into_iter().try_for_each(|text| output::line(&text))
            }
        }
    }

    /// What it comes to, in a few lines.
    pub(crate) fn summary(&self) -> Vec<String> {
        let Estimate { operations, by_limits, narrowest, soaking } = &self.estimate;
        let Operations { registry, twin_reads, twin_updates, queries } = operations;
        let sizes: Vec<String> = self.sizes().iter().map(ToString::to_string).collect();
        if self.renewed.is_empty() {
            return vec![String::new(), format!("nothing to renew: all {} are refused", self.refused.len())];
        }
        let mut lines = vec![
            String::new(),
            output::printable(&format!("target {} on {}", self.spec.target, self.hub)),
            format!(
                "{} to renew in {} waves ({}), {} refused; order by --seed {}",
                self.renewed.len(),
                sizes.len(),
                sizes.join(", "),
                self.refused.len(),
                self.seed
            ),
            format!(
                "about {registry} registry operations, {twin_reads} twin reads, {twin_updates} twin updates, {queries} queries"
            ),
            format!(
                "at least {} by the limits of {} unit(s) of {} ({narrowest}), besides waiting for devices",
                told(*by_limits),
                self.spec.hub.units,
                self.spec.hub.estimated_tier().as_str()
            ),
        ];
        lines.extend(window::told_opening(&self.spec.windows, unix_now_millis()));
        if !soaking.is_zero() {
            lines.push(format!("and {} of soaking, {} in each wave", told(*soaking), told(self.spec.soak)));
        }
        if !self.is_compared {
            lines.push(
                "the registry was not compared with what devices report (--registry does it, one operation each)".to_owned(),
            );
        }
        lines
    }

    fn sizes(&self) -> Vec<usize> {
        let begins = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(begins).map(|(end, begin)| end - begin).collect()
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let renewed = self.renewed.iter().map(|(one, wave)| line(one, Some(wave + 1)));
        renewed.chain(self.refused.iter().map(|one| line(one, None)))
    }

    fn document(&self) -> Document<'_> {
        Document {
            target: &self.spec.target,
            hub: &self.hub,
            seed: self.seed,
            compared_with_registry: self.is_compared,
            waves: self.sizes(),
            devices: self.lines().collect(),
            operations: self.estimate.operations,
            seconds_at_least: self.estimate.by_limits.as_secs(),
            narrowest_limit: self.estimate.narrowest,
            soaking_seconds: self.estimate.soaking.as_secs(),
        }
    }

    /// What the ledger begins with.
    pub(crate) fn to_ledger(&self, id: Uuid, now_unix_ms: u64) -> (Rollout, Vec<DeviceRow>) {
        let rollout = Rollout {
            id,
            spec: self.spec.clone(),
            seed: self.seed,
            hub: self.hub.clone(),
            state: RolloutState::Paused,
            message: Some("not begun yet".to_owned()),
            created_at: now_unix_ms,
            ended_at: None,
            forgiven_done: 0,
            forgiven_failed: 0,
        };
        let mut rows = Vec::with_capacity(self.renewed.len() + self.refused.len());
        for (one, wave) in &self.renewed {
            let row = DeviceRow::waiting(number_of(rows.len()), one.identity.clone(), *wave);
            rows.push(DeviceRow { is_forced: one.is_forced, ..row });
        }
        let last_wave = number_of(self.ends.len().saturating_sub(1));
        for one in &self.refused {
            let Verdict::Refuse { code, because, advice } = &one.verdict else { continue };
            rows.push(DeviceRow {
                state: State::Skipped,
                reason: Some((*code).to_owned()),
                message: Some(format!("{because}; {advice}")),
                ended_at: Some(now_unix_ms),
                ..DeviceRow::waiting(number_of(rows.len()), one.identity.clone(), last_wave)
            });
        }
        (rollout, rows)
    }
}

fn line(one: &Candidate, wave: Option<u32>) -> Line<'_> {
    let Identity { device_id, module_id } = &one.identity;
    let (action, first, because, reason, advice) = match &one.verdict {
        Verdict::Renew { first, because } => ("renew", first.map(KeySlot::as_str), because, None, None),
        Verdict::Refuse { code, because, advice } => {
            ("refuse", None, because, Some(*code), Some(advice.as_str()))
        }
    };
    Line { device_id, module_id: module_id.as_deref(), wave, action, first, because, reason, advice }
}

fn number_of(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
