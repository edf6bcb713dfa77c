//! `demo`: the whole story on this machine, with a hub in this process and the real agent as a child.

mod agent;
mod gaps;
mod narrator;
mod observer;
mod story;
mod traffic;
mod world;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::cli::DemoArgs;
use crate::emulate::{StopSignal, start_logging};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use gaps::Messages;
use narrator::Narrator;
use story::Findings;
use world::{DEVICE_ID, World};

/// The line that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    ok: bool,
    rotations: u32,
    fallbacks: u32,
    takeovers: usize,
    messages: Messages,
    gap_ms: Gaps,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Gaps {
    renewals: f64,
    outages: f64,
}

/// Why the story was not told to its end.
enum Ended {
    ByAgent(Failure),
    ByReader,
}

/// Tells the story. Exit code 0 only if everything held.
pub(crate) async fn run(args: DemoArgs, format: Format) -> Result<Exit, Failure> {
    let is_for_program = args.json || format == Format::Json;
    start_logging();
    let mut stop = StopSignal::new()?;
    let started = Instant::now();
    let narrator = Narrator::new(is_for_program);
    narrator.chapter("A hub, a gateway and its two keys, all on this machine");
    let world = tokio::select! {
        world = World::build(&narrator) => world?,
        () = stop.received() => return Err(interrupted()),
    };
    let mut findings = Findings::default();
    let told = tokio::select! {
        () = story::tell(&world, &narrator, &mut findings) => Ok(()),
        () = pulse(&world, &narrator) => Ok(()),
        death = world.agent.died() => Err(Ended::ByAgent(death)),
        () = stop.received() => Err(Ended::ByReader),
    };
    narrator.hush();
    match told {
        Ok(()) => {}
        Err(Ended::ByAgent(failure)) => findings.failed.push(failure.what),
        Err(Ended::ByReader) => {
            world.close().await;
            return Err(interrupted());
        }
    }
    let summary = Summary::new(&findings, started.elapsed());
    conclude(&narrator, &summary, &findings);
    let mut end = if summary.ok { Ok(Exit::Done) } else { Ok(Exit::Failed) };
    if args.keep && summary.ok {
        invite(&narrator, &world);
        world.traffic.resume();
        tokio::select! {
            () = stop.received() => {}
            death = world.agent.died() => end = Err(death),
        }
    }
    world.close().await;
    if is_for_program {
        output::json_line(&summary)?;
    }
    match narrator.into_failure() {
        Some(unheard) => end.and(Err(unheard)),
        None => end,
    }
}

impl Summary {
    fn new(findings: &Findings, elapsed: Duration) -> Self {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        Self {
            ok: findings.failed.is_empty(),
            rotations: findings.rotations,
            fallbacks: findings.fallbacks,
            takeovers: findings.takeovers,
            messages: findings.messages,
            gap_ms: Gaps { renewals: round(findings.renewal_gap_ms), outages: round(findings.outage_ms) },
            seconds: round(elapsed.as_secs_f64()),
        }
    }
}

/// Keeps the moving line in motion. Never ends.
async fn pulse(world: &World, narrator: &Narrator) {
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let (arrived, outstanding) = (world.traffic.acknowledged(), world.traffic.outstanding());
        narrator.pulse(format!("{arrived} messages have arrived, {outstanding} are on their way"));
    }
}

fn conclude(narrator: &Narrator, summary: &Summary, findings: &Findings) {
    let Messages { sent, received, lost, duplicated } = summary.messages;
    let rows = [
        ("rotations committed and proved", summary.rotations.to_string()),
        ("fallbacks to the other key", summary.fallbacks.to_string()),
        ("takeovers seen by the hub", summary.takeovers.to_string()),
        ("messages sent / received", format!("{sent} / {received}")),
        ("messages lost / duplicated", format!("{lost} / {duplicated}")),
        ("longest dark time in any renewal", format!("{:.1} ms", summary.gap_ms.renewals)),
        ("longest outage (cut, refusal, restart)", format!("{:.0} ms", summary.gap_ms.outages)),
        ("time", format!("{:.1} s", summary.seconds)),
    ];
    narrator.line("");
    for (name, value) in rows {
        narrator.line(&format!("  {name:<40}{value:>16}"));
    }
    narrator.line("");
    if findings.failed.is_empty() {
        narrator.verdict(true, "everything held");
    }
    for failed in &findings.failed {
        narrator.verdict(false, failed);
    }
}

fn invite(narrator: &Narrator, world: &World) {
    let program =
        std::env::current_exe().map_or_else(|_| "twinkey".to_owned(), |path| path.display().to_string());
    let (login, ca_file) = (world.paths.login.display(), world.paths.ca_file.display());
    let hub = format!("--login {login} --ca-file {ca_file}");
    narrator.chapter("Everything keeps running. In another terminal:");
    for command in [
        format!("{program} device-identity list {hub}"),
        format!("{program} device-identity renew-key -d {DEVICE_ID} --key-type primary --yes {hub}"),
        format!("{program} device-identity renew-key -d {DEVICE_ID} --key-type swap --yes {hub}"),
        format!("{program} agent-process status --config {}", world.paths.agent_config.display()),
        format!("tail -f {}", world.paths.agent_log.display()),
    ] {
        narrator.line(&format!("  {command}"));
    }
    narrator.line("");
    narrator.line("Ctrl-C stops hub and agent, and removes their directory.");
}

fn interrupted() -> Failure {
    Failure::failed("interrupted")
}
