//! `rollout`: keys of a whole fleet, in waves.
//!
//! `spec` is what is ordered, `target` and `plan` what that comes to, `ledger` what is known, and `runner` carries it out through
//! an `engine`.

pub(crate) mod cli;
mod engine;
mod estimate;
#[cfg(test)]
mod fuse;
mod gate;
mod html;
mod ledger;
mod plan;
mod progress;
mod report;
mod runner;
mod span;
mod spec;
mod target;
mod waves;
mod window;

use std::sync::Arc;

use tokio::sync::mpsc;
use twinkey_contract::RotationId;
use uuid::Uuid;

use crate::clock::unix_now_millis;
use crate::confirm::confirm;
use crate::emulate::StopSignal;
use crate::failure::{Exit, Failure};
use crate::hub::Hub;
use crate::output::{self, Format};
use crate::renew::renewer::Renewer;
use crate::secrets;
use crate::status::html as page_file;
use cli::{
    AbortArgs, LedgerArgs, PlanArgs, RebuildArgs, ReportArgs, ResumeArgs, RolloutCommand, SpecArgs,
    StartArgs, TargetArgs,
};
use engine::HubEngine;
use ledger::lock::Lock;
use ledger::{DeviceRow, Ledger, Rollout, RolloutState, State, Wish};
use plan::Plan;
use progress::Progress;
use runner::Means;

/// Signals that are waiting to be seen: the second one counts, more don't.
const SIGNALS_MAX: usize = 2;

pub(crate) async fn run(command: RolloutCommand, format: Format) -> Result<Exit, Failure> {
    match command {
        RolloutCommand::Plan(args) => plan(&args, format).await,
        RolloutCommand::Start(args) => start(args, format).await,
        RolloutCommand::Resume(args) => resume(args, format).await,
        RolloutCommand::Rebuild(args) => rebuild(&args, format).await,
        RolloutCommand::Status(args) => status(&args, format),
        RolloutCommand::Report(args) => report(&args, format),
        RolloutCommand::Pause(args) => pause(&args),
        RolloutCommand::Abort(args) => abort(&args),
    }
}

async fn plan(args: &PlanArgs, format: Format) -> Result<Exit, Failure> {
    let hub = secrets::log_in(&args.hub)?;
    let plan = look(&hub, &args.spec, &args.target).await?;
    plan.show(format)?;
    output::note("nothing was changed: this was a plan");
    Ok(plan.exit(args.target.skip_unsafe))
}

async fn look(hub: &Hub, spec: &SpecArgs, target: &TargetArgs) -> Result<Plan, Failure> {
    let spec = spec.spec()?;
    let seed = match target.seed {
        Some(seed) => seed,
        None => getrandom::u32().map_err(|e| Failure::failed(format!("no random numbers: {e}")))?,
    };
    let found = target::find(hub, &spec, &target.force_dark, target.registry).await?;
    Plan::of(found, spec, seed, hub.host_name())
}

async fn start(args: StartArgs, format: Format) -> Result<Exit, Failure> {
    // What is wrong with the spec is said before anybody logs in.
    args.spec.spec()?;
    let hub = secrets::log_in(&args.hub)?;
    if args.dry_run {
        let plan = look(&hub, &args.spec, &args.target).await?;
        plan.show(format)?;
        output::note("nothing was changed: this was a dry run");
        return Ok(plan.exit(args.target.skip_unsafe));
    }
    let path = &args.ledger.ledger;
    let lock = Lock::take(path)?;
    Ledger::check_new(path)?;
    let plan = look(&hub, &args.spec, &args.target).await?;
    plan.tell_refused();
    if plan.exit(args.target.skip_unsafe) == Exit::Refused {
        return Err(refused(&plan));
    }
    if !args.yes {
        for line in plan.summary() {
            output::note(&line);
        }
        confirm(&format!("Renew the keys of {} in {} waves?", plan.renewed.len(), plan.waves()))?;
    }
    let id = RotationId::generate(unix_now_millis()).map_err(|e| Failure::failed(e.to_string()))?.0;
    let (rollout, rows) = plan.to_ledger(id, unix_now_millis());
    let ledger = Ledger::create(path, &rollout, &rows)?;
    output::note(&format!("rollout {id}, kept in {}", path.display()));
    carry_out(hub, ledger, lock, args.no_progress, format).await
}

fn refused(plan: &Plan) -> Failure {
    let (refused, all) = (plan.refused.len(), plan.refused.len() + plan.renewed.len());
    Failure {
        exit: Exit::Refused,
        what: format!("{refused} of {all} could go dark or can't be renewed; nothing was begun"),
        next: Some(
            "mend what the list above says, leave them out with --skip-unsafe, or force single ones with --force-dark ID"
                .to_owned(),
        ),
        code: Failure::CODE,
    }
}

async fn resume(args: ResumeArgs, format: Format) -> Result<Exit, Failure> {
    let path = &args.ledger.ledger;
    let mut ledger = Ledger::open(path)?;
    let hub = secrets::log_in(&args.hub)?;
    let lock = Lock::take(path)?;
    // Wishes from now on are for this run; an abort stands whenever it was said.
    ledger.forget_pause()?;
    let rollout = ledger.rollout()?;
    if rollout.hub != hub.host_name() {
        return Err(Failure::usage(format!(
            "the ledger is of a rollout on {}, and the login is for {}",
            rollout.hub,
            hub.host_name()
        )));
    }
    let mut rows = ledger.devices()?;
    match rollout.state {
        RolloutState::Aborted => {
            return Err(Failure::usage("this rollout was aborted and does not go on").next(
                "start a new one: devices that are done are renewed again, unfinished ones are finished",
            ));
        }
        RolloutState::Done if !args.retry_failed => {
            output::note("every device has ended; --retry-failed begins failed ones again");
            report::show(&ledger, None, format)?;
            return Ok(report::exit_of(rollout.state, &rows));
        }
        RolloutState::Done | RolloutState::Running | RolloutState::Paused | RolloutState::Halted => {}
    }
    if args.retry_failed {
        let again: Vec<&DeviceRow> = rows
            .iter_mut()
            .filter(|row| matches!(row.state, State::Failed | State::Refused))
            .map(|row| {
                row.again();
                &*row
            })
            .collect();
        output::note(&format!("{} are begun again", again.len()));
        ledger.keep(again, unix_now_millis())?;
    }
    forgive(&mut ledger, &rollout, &rows)?;
    carry_out(hub, ledger, lock, args.no_progress, format).await
}

/// Whoever goes on after a halt has seen the failures; they don't stop the rollout again.
fn forgive(ledger: &mut Ledger, rollout: &Rollout, rows: &[DeviceRow]) -> Result<(), Failure> {
    let count = |state| rows.iter().filter(|row| row.state == state).count() as u64;
    let (done, failed) = (count(State::Done), count(State::Failed));
    if rollout.state == RolloutState::Halted {
        ledger.forgive(done, failed)
    } else {
        ledger.forgive(rollout.forgiven_done.min(done), rollout.forgiven_failed.min(failed))
    }
}

async fn carry_out(
    hub: Hub,
    mut ledger: Ledger,
    _lock: Lock,
    is_silent: bool,
    format: Format,
) -> Result<Exit, Failure> {
    let (spec, devices) = (ledger.rollout()?.spec, ledger.devices()?.len());
    let limits = spec.hub.limits();
    let hub = Arc::new(hub.with_limits(limits));
    let progress = Progress::new(is_silent);
    let notes = progress.clone();
    let felt = hub.clone();
    let renewer = Renewer::new(hub, devices.min(spec.parallelism as usize))?;
    let engine = HubEngine::new(renewer, spec.key_source.into(), move |identity, text| {
        notes.note(&format!("{identity}: {text}"))
    });
    let mut stop = StopSignal::new()?;
    let (send, signals) = mpsc::channel(SIGNALS_MAX);
    let listening = tokio::spawn(async move {
        loop {
            stop.received().await;
            // Nobody listens any more: the end is near.
            let _ = send.send(()).await;
        }
    });
    let means = Means { places_max: felt.at_once_max(), clock: Arc::new(unix_now_millis), progress, signals };
    let ended = runner::run(&mut ledger, engine, means).await;
    listening.abort();
    let state = ended?;
    for line in felt.felt_limits() {
        output::note(&line);
    }
    report::show(&ledger, None, format)?;
    if state == RolloutState::Paused || state == RolloutState::Halted {
        output::note(&format!("go on with: twinkey rollout resume --ledger {}", ledger.path().display()));
    }
    Ok(report::exit_of(state, &ledger.devices()?))
}

fn status(args: &LedgerArgs, format: Format) -> Result<Exit, Failure> {
    let ledger = Ledger::open(&args.ledger)?;
    report::status(&ledger, Lock::holder(&args.ledger)?, format)?;
    Ok(Exit::Done)
}

fn report(args: &ReportArgs, format: Format) -> Result<Exit, Failure> {
    let path = &args.ledger.ledger;
    let (ledger, runner) = (Ledger::open(path)?, Lock::holder(path)?);
    if let Some(file) = &args.html {
        page_file::check(file)?;
        page_file::write(file, &html::page(&ledger, runner, unix_now_millis())?)?;
    }
    report::show(&ledger, runner, format)?;
    Ok(Exit::Done)
}

fn pause(args: &LedgerArgs) -> Result<Exit, Failure> {
    let mut ledger = Ledger::open(&args.ledger)?;
    wish(&mut ledger, Wish::Pause, RolloutState::Paused, "paused")
}

fn abort(args: &AbortArgs) -> Result<Exit, Failure> {
    let mut ledger = Ledger::open(&args.ledger.ledger)?;
    if !args.yes {
        confirm(&format!("Abort rollout {} for good?", ledger.rollout()?.id))?;
    }
    wish(&mut ledger, Wish::Abort, RolloutState::Aborted, "aborted")
}

/// Tells the runner; where there is none, it is so at once.
fn wish(ledger: &mut Ledger, wish: Wish, state: RolloutState, word: &str) -> Result<Exit, Failure> {
    let now = unix_now_millis();
    match ledger.rollout()?.state {
        ended @ (RolloutState::Done | RolloutState::Aborted) => {
            return Err(Failure::usage(format!("the rollout has ended already: it is {}", ended.as_str())));
        }
        RolloutState::Running | RolloutState::Paused | RolloutState::Halted => {}
    }
    ledger.set_wish(wish, now)?;
    match Lock::take(ledger.path()) {
        Ok(_lock) => {
            let now_is = ledger.rollout()?.state;
            if matches!(now_is, RolloutState::Done | RolloutState::Aborted) {
                output::note(&format!("the rollout is {} meanwhile", now_is.as_str()));
                return Ok(Exit::Done);
            }
            let wish = ledger.wish()?;
            let (state, word) =
                if wish == Wish::Abort { (RolloutState::Aborted, "aborted") } else { (state, word) };
            ledger.set_state(state, Some(&format!("{word} while nobody was at work on it")), now)?;
            let rows = ledger.devices()?;
            let under_way =
                rows.iter().filter(|row| matches!(row.state, State::First | State::Second)).count();
            output::note(&format!("{word}; nobody was at work on it"));
            if under_way > 0 {
                output::note(&format!(
                    "{under_way} renewals were under way when the last runner ended; whatever renews these devices next \
                     finishes them"
                ));
            }
        }
        Err(_) => {
            output::note(&format!("the runner was told; it is {word} once renewals under way have finished"))
        }
    }
    Ok(Exit::Done)
}

async fn rebuild(args: &RebuildArgs, format: Format) -> Result<Exit, Failure> {
    args.spec.spec()?;
    let hub = secrets::log_in(&args.hub)?;
    let path = &args.ledger.ledger;
    let _lock = Lock::take(path)?;
    Ledger::check_new(path)?;
    // What tags and twins say counts only if the registry's keys prove it.
    let target = TargetArgs { registry: true, ..args.target.clone() };
    let plan = look(&hub, &args.spec, &target).await?;
    let (mut rollout, mut rows) = plan.to_ledger(args.id, unix_now_millis());
    rollout.message = Some("rebuilt from the hub's twins".to_owned());
    let known = restore(&plan, args.id, &mut rows);
    if known == 0 {
        return Err(Failure::usage(format!(
            "no device of the target has a mark of rollout {} in its tags",
            args.id
        ))
        .next("check the id and the target; devices are marked once their first new key is proved"));
    }
    let ledger = Ledger::create(path, &rollout, &rows)?;
    report::status(&ledger, None, format)?;
    output::note(&format!(
        "{known} devices bear its mark; go on with: twinkey rollout resume --ledger {}",
        path.display()
    ));
    Ok(Exit::Done)
}

/// Puts what the twins' tags tell into the rows; how many told something.
fn restore(plan: &Plan, id: Uuid, rows: &mut [DeviceRow]) -> usize {
    let (rollout_id, id) = (id, id.to_string());
    let now = unix_now_millis();
    let candidates = plan.renewed.iter().map(|(one, _)| one).chain(&plan.refused);
    let mut known = 0;
    for (one, row) in candidates.zip(rows) {
        match one.mark.as_ref().filter(|(rollout, _)| *rollout == id) {
            // Tags may be copied from another device; a proved rotation that is younger than the rollout is not.
            Some(_) if one.rotation.is_none_or(|rotation| rotation.0 <= rollout_id) => continue,
            Some((_, true)) => {
                (row.state, row.reason, row.message) = (State::Done, None, None);
                row.ended_at = Some(now);
            }
            Some((_, false)) if row.state == State::Waiting => {
                // It lives on its first new key. When that was is lost, so it soaks anew.
                (row.state, row.first_slot) = (State::Soaking, one.active);
                (row.started_at, row.first_done_at) = (Some(now), Some(now));
            }
            Some((_, false)) => {}
            None => continue,
        }
        known += 1;
    }
    known
}
