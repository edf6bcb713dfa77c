//! `device-identity renew-key`: several devices side by side, and what became of each.

pub(crate) mod device;
pub(crate) mod plan;
mod proof;

#[cfg(test)]
mod plan_tests;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use twinkey_contract::report::Reason;
use twinkey_contract::{Identity, KeySlot};

use crate::cli::{KeyType, RenewKeyArgs};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::hub::{Hub, KeyPair};
use crate::output::{self, Format, Table};
use crate::secrets;
use device::{Ending, Event, Job, Stop, Trace, Undelivered};

/// Devices that are renewed at the same time: few enough for the smallest hub's 100 registry calls a minute.
const DEVICES_AT_ONCE: usize = 4;

/// What became of one device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    device_id: String,
    key_type: &'static str,
    outcome: Word,
    /// A stable code.
    reason: Option<String>,
    /// The same for people, and what to do.
    message: Option<String>,
    rotation: Option<String>,
    /// The registry's fingerprints by slot.
    fingerprints: Change,
    /// The fingerprint of the key that the device has proved to live on.
    #[serde(skip)]
    lives_on: Option<String>,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Renewed,
    Swapped,
    Settled,
    Undelivered,
    Refused,
    Rejected,
    Superseded,
    Unanswered,
    Failed,
}

#[derive(Debug, Serialize)]
struct Change {
    before: BTreeMap<&'static str, String>,
    after: BTreeMap<&'static str, String>,
}

/// Renews and reports.
pub(crate) async fn run(args: RenewKeyArgs, format: Format) -> Result<Exit, Failure> {
    let ids = distinct(&args.device_id);
    check(&args, &ids)?;
    let hub = Arc::new(secrets::log_in(&args.hub)?);
    if !args.yes {
        let what = match args.key_type {
            KeyType::Primary => "Renew the primary key",
            KeyType::Secondary => "Renew the secondary key",
            KeyType::Both => "Renew BOTH KEYS",
            KeyType::Swap => "Swap the keys",
        };
        confirm(&format!("{what} of {}?", ids.join(", ")))?;
    }
    let progress = Progress::new(ids.len(), args.no_progress);
    let outcomes = renew_all(&hub, &args, &ids, &progress).await;
    progress.finish();
    for outcome in &outcomes {
        if let Some(message) = &outcome.message {
            output::note(&format!("{}: {message}", outcome.device_id));
        }
    }
    match format {
        Format::Table => show(&outcomes)?,
        Format::Json => output::json(&outcomes)?,
    }
    Ok(exit_of(&outcomes))
}

fn check(args: &RenewKeyArgs, ids: &[String]) -> Result<(), Failure> {
    if args.etag.is_some() && ids.len() > 1 {
        return Err(Failure::usage("--etag belongs to one device, but several are named"));
    }
    match args.force_dark.iter().find(|forced| !ids.contains(forced)) {
        Some(stranger) => {
            Err(Failure::usage(format!("--force-dark names {stranger}, which --device-id does not")))
        }
        None => Ok(()),
    }
}

fn distinct(ids: &[String]) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::with_capacity(ids.len());
    for id in ids {
        if !distinct.contains(id) {
            distinct.push(id.clone());
        }
    }
    distinct
}

async fn renew_all(hub: &Arc<Hub>, args: &RenewKeyArgs, ids: &[String], progress: &Progress) -> Vec<Outcome> {
    let turns = Arc::new(Semaphore::new(DEVICES_AT_ONCE));
    let start = |id: &String| {
        let job = Job {
            identity: Identity { device_id: id.clone(), module_id: None },
            key_type: args.key_type,
            is_forced: args.force_dark.contains(id),
            delivers: !args.no_deliver,
            is_plain: args.plain,
            etag: args.etag.clone(),
            timeout: args.timeout,
        };
        let one = renew_one(hub.clone(), job.clone(), turns.clone(), progress.clone());
        (job, tokio::spawn(one))
    };
    let tasks: Vec<_> = ids.iter().map(start).collect();
    let mut outcomes = Vec::with_capacity(tasks.len());
    for (job, task) in tasks {
        outcomes.push(task.await.unwrap_or_else(|e| {
            let broken = Stop::Failed(Failure::failed(format!("the renewal broke off: {e}")));
            outcome(&job, Err(broken), &Trace::default(), Duration::ZERO)
        }));
    }
    outcomes
}

async fn renew_one(hub: Arc<Hub>, job: Job, turns: Arc<Semaphore>, progress: Progress) -> Outcome {
    // It is never closed.
    let _turn = turns.acquire().await;
    let started = Instant::now();
    let mut trace = Trace::default();
    let watch = |event: Event| progress.tell(&job.identity.to_string(), event);
    let result = device::renew(&hub, &job, &watch, &mut trace).await;
    let outcome = outcome(&job, result, &trace, started.elapsed());
    progress.done(&outcome);
    outcome
}

fn outcome(job: &Job, result: Result<Ending, Stop>, trace: &Trace, elapsed: Duration) -> Outcome {
    let (outcome, reason, message) = match result {
        Ok(Ending::Renewed) => (Word::Renewed, None, None),
        Ok(Ending::Swapped) => (Word::Swapped, None, None),
        Ok(Ending::Settled) => {
            (Word::Settled, None, Some("an earlier run got through; its offer is erased now".to_owned()))
        }
        Ok(Ending::Undelivered(left)) => (Word::Undelivered, None, Some(explain(left).to_owned())),
        Err(Stop::Refused(refusal)) => {
            let message =
                format!("{refusal}; {}, or force it with --force-dark {}", refusal.advice(), job.identity);
            (Word::Refused, Some(refusal.code().to_owned()), Some(message))
        }
        Err(Stop::Rejected { status, reason }) => {
            let code = reason.map_or(status.as_str(), Reason::as_str);
            let message = format!(
                "the device did not take the key ({code}) and lives on the one it had; the offer is erased"
            );
            (Word::Rejected, Some(code.to_owned()), Some(message))
        }
        Err(Stop::Superseded { by }) => {
            let message = match by {
                Some(rotation) => format!(
                    "another run's offer ({rotation}) took the place of this one, and the device has not proved its \
                     key yet: let that run finish, then look at the device"
                ),
                None => "somebody erased this run's offer before the device had taken it; run the same command again"
                    .to_owned(),
            };
            (Word::Superseded, Some("superseded".to_owned()), Some(message))
        }
        Err(Stop::Unanswered { last }) => {
            let message = format!(
                "no proof in time (the device said: {last}); the offer stands, and a second run finishes"
            );
            (Word::Unanswered, Some("timeout".to_owned()), Some(message))
        }
        Err(Stop::Failed(failure)) => {
            let message = match failure.next {
                Some(next) => format!("{}; {next}", failure.what),
                None => failure.what,
            };
            (Word::Failed, Some("error".to_owned()), Some(message))
        }
    };
    Outcome {
        device_id: job.identity.to_string(),
        key_type: key_type_name(job.key_type),
        outcome,
        reason,
        message: message.map(|message| output::printable(&message)),
        rotation: trace.rotation.map(|rotation| rotation.to_string()),
        fingerprints: Change {
            before: fingerprints(trace.before.as_ref()),
            after: fingerprints(trace.after.as_ref()),
        },
        lives_on: trace
            .after
            .as_ref()
            .zip(trace.lives_in)
            .map(|(keys, slot)| keys.fingerprint(slot).to_string()),
        seconds: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
    }
}

fn explain(left: Undelivered) -> &'static str {
    match left {
        Undelivered::NextRunDelivers => {
            "the device was not told; a run without --no-deliver delivers the key"
        }
        Undelivered::NextRunChangesAgain => {
            "the device was not told; a run without --no-deliver changes the registry once more and delivers that"
        }
        Undelivered::NobodyTakesIt => {
            "there is no agent to take the key: bring the device its connection string by hand \
             (device-identity connection-string)"
        }
    }
}

fn fingerprints(keys: Option<&KeyPair>) -> BTreeMap<&'static str, String> {
    let slots = keys.into_iter().flat_map(|keys| KeySlot::ALL.map(|slot| (slot, keys)));
    slots.map(|(slot, keys)| (slot.as_str(), keys.fingerprint(slot).to_string())).collect()
}

fn key_type_name(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Primary => "primary",
        KeyType::Secondary => "secondary",
        KeyType::Both => "both",
        KeyType::Swap => "swap",
    }
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Swapped => "swapped",
            Self::Settled => "settled",
            Self::Undelivered => "undelivered",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Superseded => "superseded",
            Self::Unanswered => "unanswered",
            Self::Failed => "failed",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Renewed | Self::Swapped | Self::Settled | Self::Undelivered => Exit::Done,
            Self::Refused => Exit::Refused,
            Self::Rejected | Self::Superseded | Self::Unanswered | Self::Failed => Exit::Failed,
        }
    }
}

/// The one exit code that all share; otherwise "partly done" if anything was done, and "failed" if nothing was.
fn exit_of(outcomes: &[Outcome]) -> Exit {
    let mut exits = outcomes.iter().map(|outcome| outcome.outcome.exit());
    let Some(first) = exits.next() else { return Exit::Failed };
    if exits.clone().all(|exit| exit == first) {
        first
    } else if first == Exit::Done || exits.any(|exit| exit == Exit::Done) {
        Exit::Partly
    } else {
        Exit::Failed
    }
}

fn show(outcomes: &[Outcome]) -> Result<(), Failure> {
    let mut table = Table::new(&["DEVICE", "KEY", "OUTCOME", "FINGERPRINT", "SECONDS", "REASON"]);
    for outcome in outcomes {
        let Change { before, after } = &outcome.fingerprints;
        let moved = after.iter().filter(|(slot, print)| before.get(*slot) != Some(*print));
        let moves: Vec<String> = moved
            .map(|(slot, print)| format!("{} → {print}", before.get(slot).map_or("-", String::as_str)))
            .collect();
        // Where the registry stayed as it was, the device has moved.
        let lives_on =
            || outcome.lives_on.as_ref().map_or_else(|| "-".to_owned(), |print| format!("→ {print}"));
        table.push([
            outcome.device_id.clone(),
            outcome.key_type.to_owned(),
            outcome.outcome.text().to_owned(),
            if moves.is_empty() { lives_on() } else { moves.join(", ") },
            format!("{:.1}", outcome.seconds),
            outcome.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output::table(&table)
}

/// A bar on a terminal, plain lines otherwise, nothing if so ordered.
#[derive(Clone)]
enum Progress {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    fn new(devices: usize, is_silent: bool) -> Self {
        if is_silent {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(Some(devices as u64), ProgressDrawTarget::stderr());
        // Painted here: the library counts an empty NO_COLOR as set.
        let template = if output::is_coloured(&io::stderr()) {
            "\x1b[36m{bar:30}\x1b[0m {pos}/{len} {msg}"
        } else {
            "{bar:30} {pos}/{len} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    fn tell(&self, id: &str, event: Event) {
        match (self, event) {
            (Self::Bar(bar), Event::Step(step)) => bar.set_message(format!("{id}: {step}")),
            (Self::Bar(bar), Event::Note(text)) => {
                bar.suspend(|| output::note(&format!("{id}: {}", output::printable(&text))))
            }
            (Self::Lines, Event::Step(step)) => output::note(&format!("{id}: {step}")),
            (Self::Lines | Self::Silent, Event::Note(text)) => {
                output::note(&format!("{id}: {}", output::printable(&text)))
            }
            (Self::Silent, Event::Step(_)) => {}
        }
    }

    fn done(&self, outcome: &Outcome) {
        match self {
            Self::Bar(bar) => bar.inc(1),
            Self::Lines => output::note(&format!("{}: {}", outcome.device_id, outcome.outcome.text())),
            Self::Silent => {}
        }
    }

    fn finish(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines | Self::Silent => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(words: &[Word]) -> Vec<Outcome> {
        let change = || Change { before: BTreeMap::new(), after: BTreeMap::new() };
        let of = |word: &Word| Outcome {
            device_id: "d".to_owned(),
            key_type: "primary",
            outcome: *word,
            reason: None,
            message: None,
            rotation: None,
            fingerprints: change(),
            lives_on: None,
            seconds: 0.0,
        };
        words.iter().map(of).collect()
    }

    #[test]
    fn the_exit_code_says_whether_all_some_or_none_were_done() {
        let cases: [(&[Word], Exit); 8] = [
            (&[Word::Renewed, Word::Settled], Exit::Done),
            (&[Word::Refused, Word::Refused], Exit::Refused),
            (&[Word::Failed], Exit::Failed),
            (&[Word::Unanswered, Word::Rejected], Exit::Failed),
            (&[Word::Renewed, Word::Failed], Exit::Partly),
            (&[Word::Refused, Word::Renewed], Exit::Partly),
            (&[Word::Refused, Word::Failed], Exit::Failed),
            (&[], Exit::Failed),
        ];
        for (words, exit) in cases {
            assert_eq!(exit_of(&outcomes(words)), exit, "{words:?}");
        }
    }
}
