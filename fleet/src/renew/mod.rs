//! `device-identity renew-key` and `module-identity renew-key`: several identities side by side, and what became of each.

mod change;
pub(crate) mod device;
mod lease;
mod looks;
mod maker;
mod outcome;
pub(crate) mod plan;
mod preview;
mod progress;
mod proof;
pub(crate) mod renewer;
mod targets;

#[cfg(test)]
mod plan_tests;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use twinkey_contract::Identity;

use crate::cli::{KeySource, KeyType, RenewArgs, RenewDeviceKeyArgs, RenewModuleKeyArgs};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::secrets;
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
    let hub = Arc::new(secrets::log_in(&args.hub)?);
    let targets = targets::devices(&hub, &args.device_id, args.include_modules).await?;
    run(&Renewer::new(hub, targets.len()), &args.renew, &targets, format).await
}

/// `module-identity renew-key`.
pub(crate) async fn modules(args: RenewModuleKeyArgs, format: Format) -> Result<Exit, Failure> {
    let hub = Arc::new(secrets::log_in(&args.hub)?);
    let targets = targets::modules(&hub, &args.device_id, &args.module_id).await?;
    run(&Renewer::new(hub, targets.len()), &args.renew, &targets, format).await
}

async fn run(
    renewer: &Renewer,
    args: &RenewArgs,
    targets: &[Identity],
    format: Format,
) -> Result<Exit, Failure> {
    check(args, targets)?;
    let jobs: Vec<Job> = targets.iter().map(|identity| job(args, identity)).collect();
    if args.dry_run {
        return preview::run(renewer, &jobs, format).await;
    }
    if !args.yes {
        confirm(&question(args.key_type, targets))?;
    }
    let progress = Progress::new(jobs.len(), args.no_progress);
    let outcomes = renew_all(renewer, &jobs, &progress).await;
    progress.finish();
    renewer.close().await?;
    for outcome in &outcomes {
        if let Some(message) = &outcome.message {
            output::note(&format!("{}: {message}", outcome.name));
        }
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
    let stranger = args
        .force_dark
        .iter()
        .find(|forced| !targets.iter().any(|identity| identity.to_string() == **forced));
    match stranger {
        Some(stranger) => {
            Err(Failure::usage(format!("--force-dark names {stranger}, which is not among those to renew")))
        }
        None => Ok(()),
    }
}

fn question(key_type: KeyType, targets: &[Identity]) -> String {
    let what = match key_type {
        KeyType::Primary => "Renew the primary key",
        KeyType::Secondary => "Renew the secondary key",
        KeyType::Both => "Renew BOTH KEYS",
        KeyType::Swap => "Swap the keys",
    };
    let names: Vec<String> = targets.iter().take(NAMES_MAX).map(Identity::to_string).collect();
    let more = targets.len().saturating_sub(NAMES_MAX);
    let rest = if more > 0 { format!(" and {more} more ({} in all)", targets.len()) } else { String::new() };
    format!("{what} of {}{rest}?", names.join(", "))
}

fn job(args: &RenewArgs, identity: &Identity) -> Job {
    Job {
        identity: identity.clone(),
        key_type: args.key_type,
        // Only a whole identity can be written under an etag.
        key_source: if args.etag.is_some() { KeySource::Local } else { args.key_source },
        replaces: None,
        is_forced: args.force_dark.contains(&identity.to_string()),
        delivers: !args.no_deliver,
        is_plain: args.plain,
        etag: args.etag.clone(),
        timeout: args.timeout,
        is_continued: false,
        mark: None,
    }
}

async fn renew_all(renewer: &Renewer, jobs: &[Job], progress: &Progress) -> Vec<Outcome> {
    let turns = Semaphore::new(AT_ONCE);
    let renewals = jobs.iter().map(|job| renew_one(renewer, job, &turns, progress));
    futures_util::future::join_all(renewals).await
}

async fn renew_one(renewer: &Renewer, job: &Job, turns: &Semaphore, progress: &Progress) -> Outcome {
    // It is never closed.
    let _turn = turns.acquire().await;
    let started = Instant::now();
    let mut trace = Trace::default();
    let name = job.identity.to_string();
    let watch = |event: Event| progress.tell(&name, event);
    let result = device::renew(renewer, job, &watch, &mut trace).await;
    let outcome = outcome::of(job, result, &trace, started.elapsed());
    progress.done(&outcome);
    outcome
}
