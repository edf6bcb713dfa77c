//! `--dry-run`: what would be done to whom, and what it would cost. Nothing is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use twinkey_contract::{Identity, KeySlot};

use super::device::{self, Job, Stop};
use super::plan::{Change, Plan, Refusal, Slots};
use super::renewer::Renewer;
use crate::cli::{KeySource, KeyType, LimitArgs, RenewArgs};
use crate::failure::{Exit, Failure};
use crate::hub::{Category, Tier};
use crate::output::{self, Format, Table};

/// What would be done to one identity.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Preview {
    #[serde(skip)]
    name: String,
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    /// `renew`, `deliver`, `swap`, `settle`, `refuse` or `fail`.
    action: &'static str,
    explanation: String,
    /// Why it would be refused: a stable code.
    reason: Option<&'static str>,
    /// What can be done about that.
    advice: Option<String>,
    calls: Calls,
}

/// Operations of the hub that count against its limits, for reading and writing both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Calls {
    registry: u32,
    twin_reads: u32,
    twin_updates: u32,
    methods: u32,
}

pub(super) async fn run(
    renewer: &Renewer,
    args: &RenewArgs,
    targets: &[Identity],
    format: Format,
) -> Result<Exit, Failure> {
    let mut previews = Vec::with_capacity(targets.len());
    for identity in targets {
        match super::key_type(args.key_type) {
            Some(key_type) => previews.push(look(renewer, &super::job(args, identity, key_type)).await),
            None => {
                let any = super::job(args, identity, KeyType::Secondary);
                let slot = device::idle_slot(renewer, &any, &|_| {}).await.unwrap_or(KeySlot::Secondary);
                let first = look(renewer, &super::job(args, identity, slot.into())).await;
                let then = (first.action == "renew" || first.action == "deliver").then(|| Preview {
                    explanation: format!("then the {} key, once the other is proved", slot.other()),
                    // What was read and taken for the first slot serves the second, whose offer takes the first one's place.
                    calls: Calls { registry: 1, twin_reads: 1, twin_updates: 1, methods: 0 },
                    name: first.name.clone(),
                    device_id: first.device_id.clone(),
                    module_id: first.module_id.clone(),
                    action: "renew",
                    reason: None,
                    advice: None,
                });
                previews.push(first);
                previews.extend(then);
            }
        }
    }
    let exit = exit_of(&previews);
    let advice: BTreeMap<_, _> =
        previews.iter().filter_map(|preview| Some((preview.reason?, preview.advice.as_ref()?))).collect();
    for (reason, advice) in advice {
        output::note(&format!("{reason}: {advice}"));
    }
    match format {
        Format::Json => output::json(&previews)?,
        Format::Table => {
            let mut table =
                Table::new(&["DEVICE", "WOULD", "BECAUSE", "REGISTRY", "READS", "UPDATES", "METHODS"]);
            for Preview { name, action, explanation, calls, .. } in &previews {
                let Calls { registry, twin_reads, twin_updates, methods } = calls;
                table.push([
                    name.clone(),
                    (*action).to_owned(),
                    explanation.clone(),
                    registry.to_string(),
                    twin_reads.to_string(),
                    twin_updates.to_string(),
                    methods.to_string(),
                ]);
            }
            output::table(&table)?;
        }
    }
    output::note(&estimate(&previews, args.limits));
    output::note("nothing was changed: this was a dry run");
    Ok(exit)
}

/// What all of it costs, and how long a hub of this tier takes at least; without a tier, of the smallest one.
fn estimate(previews: &[Preview], limits: LimitArgs) -> String {
    let total =
        |count: fn(&Calls) -> u32| previews.iter().map(|preview| u64::from(count(&preview.calls))).sum();
    let totals: [(Category, u64); 4] = [
        (Category::Registry, total(|calls| calls.registry)),
        (Category::TwinReads, total(|calls| calls.twin_reads)),
        (Category::TwinUpdates, total(|calls| calls.twin_updates)),
        (Category::Methods, total(|calls| calls.methods)),
    ];
    let tier = limits.tier.unwrap_or(Tier::S1);
    let limits = LimitArgs { tier: Some(tier), ..limits };
    let secs = |(category, operations): &(Category, u64)| {
        // Far from where floating point is coarse.
        limits.limits().per_sec(*category).map_or(0.0, |per_sec| *operations as f64 / per_sec)
    };
    let least = Duration::from_secs(totals.iter().map(secs).fold(0.0, f64::max).ceil() as u64);
    let [(_, registry), (_, reads), (_, updates), (_, methods)] = totals;
    format!(
        "in all {registry} operations of the registry, {reads} reads and {updates} updates of twins, {methods} direct methods: at least {} on a hub with {} \
         of {}",
        humantime::format_duration(least),
        if limits.units == 1 { "one unit".to_owned() } else { format!("{} units", limits.units) },
        tier.as_str(),
    )
}

async fn look(renewer: &Renewer, job: &Job) -> Preview {
    let plan = device::foresee(renewer, job).await;
    let advice = match &plan {
        Ok(Plan::Refuse(refusal)) => Some(refusal.advice()),
        Ok(Plan::Renew { .. } | Plan::Settle { .. }) | Err(_) => None,
    };
    let (action, explanation, reason, calls) = match plan {
        Ok(plan) => describe(job, plan),
        Err(stop) => {
            let why = match stop {
                Stop::Failed(failure) | Stop::Gone(failure) => failure.what,
                Stop::Busy { by, .. } => format!("another operator renews its keys (lease of {by})"),
                Stop::Refused(refusal) => refusal.to_string(),
                Stop::Rejected { .. } | Stop::Superseded { .. } | Stop::Unanswered { .. } => {
                    "it was not to be tried".to_owned()
                }
            };
            ("fail", why, None, Calls::default())
        }
    };
    Preview {
        name: job.identity.to_string(),
        device_id: job.identity.device_id.clone(),
        module_id: job.identity.module_id.clone(),
        action,
        explanation: output::printable(&explanation),
        reason,
        advice,
        calls,
    }
}

fn describe(job: &Job, plan: Plan) -> (&'static str, String, Option<&'static str>, Calls) {
    let looking = Calls { registry: 1, twin_reads: 1, twin_updates: 0, methods: 0 };
    match plan {
        Plan::Refuse(refusal) => ("refuse", refusal.to_string(), Some(refusal.code()), looking),
        Plan::Settle { rotation, remembers: _ } => {
            let text = "an earlier run got through; its offer is erased".to_owned();
            let twin_updates = u32::from(rotation.is_some());
            ("settle", text, None, Calls { twin_updates, ..looking })
        }
        Plan::Renew { change, offer, in_spite_of, form: _, vouching: _, remembers: _ } => {
            let (action, mut text) = match change {
                Change::Nothing => ("deliver", "the registry's key is not with the device yet".to_owned()),
                Change::Regenerate(slot) => ("renew", format!("the device does not live on its {slot} key")),
                Change::RegenerateBoth => ("renew", "both keys at once".to_owned()),
                Change::Swap => ("swap", "the keys change places".to_owned()),
            };
            if let Some(danger) = in_spite_of {
                text = format!("forced, although {danger}");
            }
            if offer == Slots::None {
                text.push_str("; the device is not told");
            }
            (action, text, in_spite_of.map(Refusal::code), cost(job, change, offer))
        }
    }
}

/// What one renewal takes, without its looks for the proof: alone, a device's twin is read every second or so; among many, a
/// query tells of a hundred at once.
fn cost(job: &Job, change: Change, offer: Slots) -> Calls {
    let orders = job.key_source == KeySource::Service && job.etag.is_none();
    let keys = match change {
        Change::Nothing => 0,
        Change::Regenerate(KeySlot::Primary | KeySlot::Secondary) | Change::Swap => 1,
        Change::RegenerateBoth => {
            if orders {
                2
            } else {
                1
            }
        }
    };
    let has_lease = orders && !matches!(change, Change::Nothing | Change::Swap);
    let delivers = offer != Slots::None;
    Calls {
        registry: 1 + keys,
        twin_reads: 1 + u32::from(delivers),
        // The lease; the offer; both taken out at once.
        twin_updates: u32::from(has_lease) + u32::from(delivers) + u32::from(has_lease || delivers),
        methods: u32::from(job.needs_challenge() && change != Change::Nothing),
    }
}

fn exit_of(previews: &[Preview]) -> Exit {
    let has = |action: &str| previews.iter().any(|preview| preview.action == action);
    if has("refuse") {
        Exit::Refused
    } else if has("fail") {
        Exit::Failed
    } else {
        Exit::Done
    }
}
