//! `device-identity renew-key` and `module-identity renew-key`: several identities side by side, and what became of each.

pub(crate) mod belief;
mod challenge;
mod change;
pub(crate) mod device;
mod holder;
mod lease;
mod lock_files;
mod looks;
mod maker;
pub(crate) mod offering;
mod outcome;
pub(crate) mod plan;
mod preview;
mod progress;
mod proof;
pub(crate) mod refusal;
pub(crate) mod renewer;
pub(crate) mod standing;
mod targets;

#[cfg(test)]
mod belief_tests;
#[cfg(test)]
mod both_ends_tests;
#[cfg(test)]
mod forgery_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod proof_tests;

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use twinkey_contract::Identity;

use crate::cli::{KeyChoice, KeySource, KeyType, RenewArgs, RenewDeviceKeyArgs, RenewModuleKeyArgs};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::secrets;
use belief::Trust;
pub(crate) use change::new_key;
use device::{Event, Job, Trace};
use outcome::Outcome;
use progress::Progress;
use renewer::Renewer;

/// Identities that are renewed at the same time: enough for a look by query to be worth it, and few enough for the smallest
/// hub.
const AT_ONCE: usize = 32;
/// Names that are shown before something is done to them.
const NAMES_MAX: usize = 10;

/// `device-identity renew-key`.
pub(crate) async fn devices(args: RenewDeviceKeyArgs, format: Format) -> Result<Exit, Failure> {
    let hub = Arc::new(secrets::log_in(&args.hub)?.with_limits(args.renew.limits.limits()));
    let targets = targets::devices(&hub, &args.device_id, args.include_modules).await?;
    run(&Renewer::new(hub, targets.len())?, &args.renew, &targets, format).await
}

/// `module-identity renew-key`.
pub(crate) async fn modules(args: RenewModuleKeyArgs, format: Format) -> Result<Exit, Failure> {
    let hub = Arc::new(secrets::log_in(&args.hub)?.with_limits(args.renew.limits.limits()));
    let targets = targets::modules(&hub, &args.device_id, &args.module_id).await?;
    run(&Renewer::new(hub, targets.len())?, &args.renew, &targets, format).await
}

async fn run(
    renewer: &Renewer,
    args: &RenewArgs,
    targets: &[Identity],
    format: Format,
) -> Result<Exit, Failure> {
    check(args, targets)?;
    if args.dry_run {
        return preview::run(renewer, args, targets, format).await;
    }
    if !args.yes {
        confirm(&question(args.key_type, targets))?;
    }
    let progress = Progress::new(targets.len(), args.no_progress);
    let turns = Semaphore::new(renewer.hub().at_once_max().map_or(AT_ONCE, |max| max.min(AT_ONCE)));
    let renewals = targets.iter().map(|identity| renew_one(renewer, args, identity, &turns, &progress));
    let outcomes: Vec<Outcome> = join_all(renewals).await.into_iter().flatten().collect();
    progress.finish();
    renewer.close().await?;
    for outcome in &outcomes {
        if let Some(message) = &outcome.message {
            output::note(&format!("{}: {message}", outcome.name));
        }
    }
    for line in renewer.hub().felt_limits() {
        output::note(&line);
    }
    match format {
        Format::Table => outcome::show(&outcomes)?,
        Format::Json => output::json(&outcomes)?,
    }
    Ok(outcome::exit_of(&outcomes))
}

fn check(args: &RenewArgs, targets: &[Identity]) -> Result<(), Failure> {
    if args.etag.is_some() && targets.len() > 1 {
        return Err(Failure::usage("--etag belongs to one identity, but several are named"));
    }
    let flags = [
        ("--force-dark", &args.force_dark),
        ("--trust-report", &args.trust_report),
        ("--incident", &args.incident),
    ];
    for (flag, named) in flags {
        if let Some(stranger) =
            named.iter().find(|named| !targets.iter().any(|identity| identity.to_string() == **named))
        {
            return Err(Failure::usage(format!(
                "{flag} names {stranger}, which is not among those to renew"
            )));
        }
    }
    Ok(())
}

fn question(choice: KeyChoice, targets: &[Identity]) -> String {
    let what = match choice {
        KeyChoice::Primary => "Renew the primary key",
        KeyChoice::Secondary => "Renew the secondary key",
        KeyChoice::InTurn => "Renew both keys, one after the other,",
        KeyChoice::Both => "Renew BOTH KEYS AT ONCE",
        KeyChoice::Swap => "Swap the keys",
    };
    let names: Vec<String> = targets.iter().take(NAMES_MAX).map(Identity::to_string).collect();
    let more = targets.len().saturating_sub(NAMES_MAX);
    let rest = if more > 0 { format!(" and {more} more ({} in all)", targets.len()) } else { String::new() };
    format!("{what} of {}{rest}?", names.join(", "))
}

/// What there is to do with one identity. `None` where the slot has to be found first.
fn key_type(choice: KeyChoice) -> Option<KeyType> {
    match choice {
        KeyChoice::Primary => Some(KeyType::Primary),
        KeyChoice::Secondary => Some(KeyType::Secondary),
        KeyChoice::Both => Some(KeyType::Both),
        KeyChoice::Swap => Some(KeyType::Swap),
        KeyChoice::InTurn => None,
    }
}

fn job(args: &RenewArgs, identity: &Identity, key_type: KeyType) -> Job {
    Job {
        identity: identity.clone(),
        key_type,
        // Only a whole identity can be written under an etag.
        key_source: if args.etag.is_some() { KeySource::Local } else { args.key_source },
        replaces: None,
        is_forced: args.force_dark.contains(&identity.to_string()),
        delivers: !args.no_deliver,
        is_plain: args.plain,
        trust: Trust {
            trusts_report: args.trust_report.contains(&identity.to_string()),
            is_incident: args.incident.contains(&identity.to_string()),
        },
        is_challenged: !args.no_challenge,
        etag: args.etag.clone(),
        timeout: args.timeout,
        is_continued: false,
        mark: None,
    }
}

/// One identity's renewal, or its two: the second one only if the first was proved.
async fn renew_one(
    renewer: &Renewer,
    args: &RenewArgs,
    identity: &Identity,
    turns: &Semaphore,
    progress: &Progress,
) -> Vec<Outcome> {
    // It is never closed.
    let _turn = turns.acquire().await;
    let name = identity.to_string();
    let watch = |event: Event| progress.tell(&name, event);
    let outcomes = match key_type(args.key_type) {
        Some(key_type) => vec![renew_slot(renewer, &job(args, identity, key_type), &watch).await],
        None => renew_in_turn(renewer, args, identity, &watch).await,
    };
    progress.done(&outcomes);
    outcomes
}

async fn renew_in_turn(
    renewer: &Renewer,
    args: &RenewArgs,
    identity: &Identity,
    watch: device::Watch<'_>,
) -> Vec<Outcome> {
    let started = Instant::now();
    let any = job(args, identity, KeyType::Secondary);
    let slot = match device::idle_slot(renewer, &any, watch).await {
        Ok(slot) => slot,
        Err(stop) => return vec![outcome::of(&any, Err(stop), &Trace::default(), started.elapsed())],
    };
    let first = Job { is_continued: true, ..job(args, identity, slot.into()) };
    let first = renew_slot(renewer, &first, watch).await;
    if !first.outcome.is_proved() {
        return vec![first];
    }
    vec![first, renew_slot(renewer, &job(args, identity, slot.other().into()), watch).await]
}

async fn renew_slot(renewer: &Renewer, job: &Job, watch: device::Watch<'_>) -> Outcome {
    let started = Instant::now();
    let mut trace = Trace::default();
    let result = device::renew(renewer, job, watch, &mut trace).await;
    outcome::of(job, result, &trace, started.elapsed())
}
