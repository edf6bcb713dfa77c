//! The chapters. Each does what an operator, a careless colleague or fate would do, through the same interfaces as
//! against a real hub, and notes what was expected and whether it held.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use twinkey_contract::KeySlot;
use twinkey_contract::report::{Report, Status};

use super::gaps::{Messages, compare};
use super::narrator::Narrator;
use super::observer::Connections;
use super::world::World;
use crate::cli::{KeySource, KeyType};
use crate::failure::Failure;
use crate::hub::KeyPair;
use crate::renew::belief::Trust;
use crate::renew::device::{Ending, Event, Job, Stop, Trace, renew};
use crate::renew::new_key;
use crate::renew::offering::put_offer;
use crate::renew::plan::Form;
use crate::renew::standing::erase;

/// Longest wait for a device's proof.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the last acknowledgements.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the hub stays away when it restarts, in milliseconds.
const RESTART_DOWN_MS: u64 = 500;

/// What was measured, and which expectations failed.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) rotations: u32,
    pub(crate) fallbacks: u32,
    pub(crate) takeovers: usize,
    pub(crate) messages: Messages,
    /// Longest time without a connection while keys or tokens were renewed, in milliseconds.
    pub(crate) renewal_gap_ms: f64,
    /// Longest time without a connection after a cut, a refusal or a restart, in milliseconds.
    pub(crate) outage_ms: f64,
    pub(crate) failed: Vec<String>,
}

/// Tells everything, in order. A chapter that fails does not keep the next ones from being told.
pub(crate) async fn tell(world: &World, narrator: &Narrator, findings: &mut Findings) {
    let mut teller = Teller { world, narrator, findings };
    let beginning = teller.beginning().await;
    teller.judge("the gateway connects with its primary key", beginning);
    let chapter = teller.renewal("1  The operator renews the secondary key", KeyType::Secondary).await;
    teller.judge("the secondary key is renewed and the gateway has moved to it", chapter);
    let chapter =
        teller.renewal("2  Then the primary key, which nobody uses any more", KeyType::Primary).await;
    teller.judge("the primary key is renewed and the gateway has moved to it", chapter);
    let chapter = teller.bad_offer().await;
    teller.judge("a key that the hub refuses is rejected, and the gateway stays up", chapter);
    let chapter = teller.behind_the_back().await;
    teller.judge("the gateway falls back to its other key and is healed", chapter);
    let chapter = teller.renewal("5  Primary and secondary change places", KeyType::Swap).await;
    teller.judge("gateway and registry agree on the swapped keys", chapter);
    let chapter = teller.token_renewal().await;
    teller.judge("the token is renewed by a takeover with the same key", chapter);
    let chapter = teller.restart().await;
    teller.judge("the gateway is back after the hub's restart", chapter);
    let chapter = teller.ending().await;
    teller.judge("every message has arrived", chapter);
    let gap_ms = teller.findings.renewal_gap_ms;
    let verdict = if gap_ms > 0.0 { Err(Failure::failed(format!("{gap_ms:.3} ms"))) } else { Ok(()) };
    teller.judge("the hub saw the gateway connected at every instant of every renewal", verdict);
}

struct Teller<'a> {
    world: &'a World,
    narrator: &'a Narrator,
    findings: &'a mut Findings,
}

impl Teller<'_> {
    fn judge(&mut self, expectation: &str, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.narrator.verdict(true, expectation),
            Err(failure) => {
                let text = format!("{expectation}: {}", failure.what);
                self.narrator.verdict(false, &text);
                self.findings.failed.push(text);
            }
        }
    }

    async fn beginning(&self) -> Result<(), Failure> {
        let report =
            self.world.until_report("the agent's first report", |report| report.active.is_some()).await?;
        self.world.until_connections("a live connection", |seen| seen.live().map(drop)).await?;
        let sealing = if report.seal_to.is_some() {
            "a public key to seal new keys to"
        } else {
            "no public key to seal to"
        };
        self.narrator
            .say(&format!("the agent {} reports the fingerprint of its key, and {sealing}", report.agent));
        self.narrator.say("programs on the gateway send numbered telemetry through it, 66 messages a second");
        Ok(())
    }

    async fn renewal(&mut self, title: &str, key_type: KeyType) -> Result<(), Failure> {
        self.narrator.chapter(title);
        let from_ms = self.now_ms().await?;
        self.renew(key_type).await?;
        let seen = self.world.observer.connections().await?;
        self.note_renewal_gap(&seen, from_ms);
        Ok(())
    }

    /// Renews as the operator's command does.
    async fn renew(&mut self, key_type: KeyType) -> Result<(), Failure> {
        let job = Job {
            identity: self.world.identity.clone(),
            key_type,
            key_source: KeySource::Service,
            replaces: None,
            is_forced: false,
            delivers: true,
            is_plain: false,
            etag: None,
            timeout: PROOF_TIMEOUT,
            is_continued: false,
            mark: None,
            trust: Trust::default(),
            is_challenged: true,
        };
        let mut trace = Trace::default();
        let narrator = self.narrator;
        let watch = |event: Event| match event {
            Event::Step(step) => narrator.pulse(step.to_owned()),
            Event::Note(text) => narrator.say(&text),
        };
        let ending = renew(&self.world.renewer, &job, &watch, &mut trace).await.map_err(explain)?;
        let moves = moves(&trace);
        match ending {
            Ending::Delivered => {
                narrator.say("the registry's key is sealed, offered, proved; the offer is erased");
            }
            Ending::Renewed => narrator
                .say(&format!("{moves}: made by the hub, sealed, offered, proved; the offer is erased")),
            Ending::Swapped => {
                narrator.say("no new key, nothing to connect for: the agent only changes the labels")
            }
            Ending::Settled | Ending::Undelivered(_) => {
                return Err(Failure::failed("an offer was left from before"));
            }
        }
        self.findings.rotations += 1;
        Ok(())
    }

    async fn bad_offer(&mut self) -> Result<(), Failure> {
        self.narrator.chapter("3  Somebody offers a key that the hub does not know");
        let world = self.world;
        let from_ms = self.now_ms().await?;
        let (report, slot) = self.unused_slot().await?;
        let key = new_key()?;
        // The agent would not even look at an offer that was made by somebody who knows no key of the device.
        let keys = world.hub.device(&world.identity).await?.keys();
        let keys = keys.ok_or_else(|| Failure::failed("the device has no keys"))?;
        let form = report.seal_to.map_or(Form::Plain, Form::Sealed);
        let rotation =
            put_offer(&world.hub, &world.identity, &[(slot, &key)], form, keys.of(slot.other()), None)
                .await
                .map_err(explain)?;
        let is_over =
            |report: &Report| report.rotation == Some(rotation) && report.status == Status::Rejected;
        let rejected = world.until_report("the agent's rejection of the key", is_over).await?;
        let seen = world.observer.connections().await?;
        let refusals = seen.refused.iter().filter(|refused| refused.at_ms >= from_ms).count();
        let reason = rejected.reason.map_or("no reason", |reason| reason.as_str());
        self.narrator.say(&format!(
            "the hub refused it {refusals} times; the agent gave up on it ({reason}) and kept its key"
        ));
        self.note_renewal_gap(&seen, from_ms);
        erase(&world.hub, &world.identity, rotation, world.hub.twin(&world.identity).await?).await?;
        if refusals == 0 || rejected.active != report.active {
            return Err(Failure::failed("the agent rejected the key without a trial, or moved"));
        }
        Ok(())
    }

    async fn behind_the_back(&mut self) -> Result<(), Failure> {
        self.narrator.chapter("4  Somebody regenerates the key in use, and the connection breaks");
        let world = self.world;
        let (_, other) = self.unused_slot().await?;
        let active = other.other();
        world
            .hub
            .regenerate_keys(active, std::slice::from_ref(&world.identity), Instant::now() + PROOF_TIMEOUT)
            .await?;
        let from_ms = self.now_ms().await?;
        world.observer.cut().await?;
        let fell_back = |seen: &Connections| {
            let live =
                seen.live().filter(|live| live.connected_ms >= from_ms && live.key == other.as_str())?;
            (!live.took_over).then_some(())
        };
        world.until_connections("the fallback to the other key", fell_back).await?;
        self.findings.fallbacks += 1;
        self.note_outage(from_ms).await?;
        let on_other = |report: &Report| report.active == Some(other);
        world.until_report("the agent's report of its fallback", on_other).await?;
        self.narrator
            .say(&format!("the {active} key is dead; the gateway lives on its {other} key and says so"));
        let from_ms = self.now_ms().await?;
        self.renew(if active == KeySlot::Primary { KeyType::Primary } else { KeyType::Secondary }).await?;
        self.note_renewal_gap(&world.observer.connections().await?, from_ms);
        Ok(())
    }

    async fn token_renewal(&mut self) -> Result<(), Failure> {
        self.narrator.chapter("6  The token runs out");
        let from_ms = self.now_ms().await?;
        // No key is renewed meanwhile, so a takeover can only bring a new token.
        let renewed = |seen: &Connections| {
            let live = seen.live()?;
            (live.took_over && live.connected_ms >= from_ms).then(|| live.key.clone())
        };
        let key = self.world.until_connections("the token's renewal", renewed).await?;
        let (report, _) = self.unused_slot().await?;
        if report.active.map(KeySlot::as_str) != Some(key.as_str()) {
            return Err(Failure::failed(format!(
                "the agent reports another key than {key}, which the hub saw"
            )));
        }
        self.narrator.say(
            "a second connection with a fresh token took over while the first one still carried traffic",
        );
        self.note_renewal_gap(&self.world.observer.connections().await?, from_ms);
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), Failure> {
        self.narrator.chapter("7  The hub restarts and forgets its MQTT sessions");
        let from_ms = self.now_ms().await?;
        self.world.observer.restart(RESTART_DOWN_MS).await?;
        let is_back = |seen: &Connections| {
            let live = seen.live()?;
            (live.connected_ms >= from_ms).then_some(())
        };
        self.world.until_connections("the gateway's return", is_back).await?;
        self.note_outage(from_ms).await
    }

    async fn ending(&mut self) -> Result<(), Failure> {
        self.narrator.chapter("The count");
        let (traffic, observer) = (&self.world.traffic, &self.world.observer);
        traffic.pause();
        let drained = timeout(DRAIN_TIMEOUT, async {
            while traffic.outstanding() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        });
        let is_drained = drained.await.is_ok();
        let received = observer.received().await?;
        self.findings.messages = compare(traffic.sent(), received.numbers);
        self.findings.takeovers =
            observer.connections().await?.connections.iter().filter(|c| c.took_over).count();
        let Messages { sent, lost, .. } = self.findings.messages;
        if let Some((count, reason)) = traffic.refused() {
            return Err(Failure::failed(format!("the agent did not take {count} messages: {reason}")));
        }
        match (is_drained, received.dropped, lost, sent) {
            (false, ..) => Err(Failure::failed(format!("{} were never acknowledged", traffic.outstanding()))),
            (true, 1.., ..) => Err(Failure::failed("the hub's store was too small for all of them")),
            (true, 0, 1.., _) => Err(Failure::failed(format!("{lost} of {sent} are lost"))),
            (true, 0, 0, 0) => Err(Failure::failed("none was sent")),
            (true, 0, 0, 1..) => Ok(()),
        }
    }

    async fn now_ms(&self) -> Result<f64, Failure> {
        Ok(self.world.observer.connections().await?.now_ms)
    }

    /// The slot that the device does not live on, by its report.
    async fn unused_slot(&self) -> Result<(Report, KeySlot), Failure> {
        let report =
            self.world.until_report("a report of the key in use", |report| report.active.is_some()).await?;
        let active = report.active.ok_or_else(|| Failure::failed("the agent reports no key in use"))?;
        Ok((report, active.other()))
    }

    fn note_renewal_gap(&mut self, seen: &Connections, from_ms: f64) {
        let gap_ms = seen.longest_dark_ms_since(from_ms);
        self.findings.renewal_gap_ms = self.findings.renewal_gap_ms.max(gap_ms);
        let seconds = (seen.now_ms - from_ms) / 1000.0;
        self.narrator.say(&format!("dark for {gap_ms:.1} ms in {seconds:.1} s"));
    }

    async fn note_outage(&mut self, from_ms: f64) -> Result<(), Failure> {
        let outage_ms = self.world.observer.connections().await?.longest_dark_ms_since(from_ms);
        self.findings.outage_ms = self.findings.outage_ms.max(outage_ms);
        self.narrator.say(&format!("back after {outage_ms:.0} ms"));
        Ok(())
    }
}

/// Which fingerprints changed, slot by slot.
fn moves(trace: &Trace) -> String {
    let (Some(before), Some(after)) = (&trace.before, &trace.after) else { return String::new() };
    let print = |keys: &KeyPair, slot| keys.fingerprint(slot).short();
    let changed = KeySlot::ALL.into_iter().filter(|slot| print(before, *slot) != print(after, *slot));
    let moves = changed.map(|slot| format!("{slot} {} → {}", print(before, slot), print(after, slot)));
    moves.collect::<Vec<_>>().join(", ")
}

fn explain(stop: Stop) -> Failure {
    match stop {
        Stop::Refused(refusal) => Failure::failed(format!("refused: {refusal}")),
        Stop::Rejected { status, reason } => Failure::failed(format!(
            "the device answered {} ({})",
            status.as_str(),
            reason.map_or("no reason", |reason| reason.as_str())
        )),
        Stop::Superseded { .. } => Failure::failed("somebody else's offer took the place of this one"),
        Stop::Unanswered { last } => Failure::failed(format!("no proof in time: {last}")),
        Stop::Busy { by, .. } => Failure::failed(format!("somebody else renews its keys: {by}")),
        Stop::Gone(failure) | Stop::Failed(failure) => failure,
    }
}
