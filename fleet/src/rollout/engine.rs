//! What a rollout needs done to a device: look, then renew one slot. How that is done is `renew`'s affair.

use std::sync::Arc;
use std::time::Duration;

use twinkey_contract::report::Reason;
use twinkey_contract::{Fingerprint, Identity, KeySlot};
use uuid::Uuid;

use super::ledger::Prints;
use super::spec::Source;
use crate::cli::{KeySource, KeyType};
use crate::failure::Failure;
use crate::hub::{HubError, KeyPair};
use crate::renew::belief::Trust;
use crate::renew::device::{self, Ending, Event, Job, Mark, Stop, Trace};
use crate::renew::plan::Refusal;
use crate::renew::renewer::Renewer;

/// Pause before another try where somebody else's lease has no time left any more.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The code of a renewal that somebody else's lease stopped.
pub(crate) const BUSY: &str = "busy";
/// Longest pause before another look at somebody else's lease.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(20);

/// Renews slots. Every call may be broken off at any point and made again.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Where the device lives and which keys there are. `Depth::Report` is cheaper, and may not tell all.
    fn look(
        &self,
        identity: &Identity,
        depth: Depth,
    ) -> impl Future<Output = Result<Look, SlotResult>> + Send;

    /// Renews one slot: makes the key, hands it over, and waits for the proof.
    fn renew(&self, request: &SlotRequest) -> impl Future<Output = SlotResult> + Send;

    /// Takes back what was left in the hub for renewals that did not come.
    fn close(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The twin: what the agent reports.
    Report,
    /// The identity in the registry, too.
    Registry,
}

/// What is known of a device before a slot is begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// The slot that the device lives on.
    pub(crate) lives_in: Option<KeySlot>,
    pub(crate) prints: Prints,
}

/// What to do with one slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotRequest {
    pub(crate) identity: Identity,
    pub(crate) slot: KeySlot,
    /// The key that the slot had when the intent was written. If the registry shows another one, it has been made already, and
    /// is only to be delivered and proved.
    pub(crate) replaces: Option<Fingerprint>,
    /// Longest wait for the device's proof.
    pub(crate) deadline: Duration,
    pub(crate) key_source: Source,
    pub(crate) rollout: Uuid,
    pub(crate) is_forced: bool,
    /// Whether the device has to answer a challenge first.
    pub(crate) is_challenged: bool,
    /// Whether the device is done with after this slot.
    pub(crate) is_last: bool,
    /// Whether the other slot follows at once.
    pub(crate) is_continued: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SlotResult {
    /// The device has proved that it lives on the new key.
    Done { before: Prints, after: Prints, rotation: Option<String> },
    /// Going on could cut the device off; nothing was changed.
    Refused { code: &'static str, message: String, may_retry: bool },
    /// It did not work. `after` is what the registry has now, as far as that was seen; `pause` is how long another try has to
    /// wait at least.
    Failed { code: &'static str, message: String, after: Prints, may_retry: bool, pause: Duration },
    /// The hub has no such device any more.
    Gone { message: String },
}

/// Hears what is said for good about a device.
type Say = dyn Fn(&Identity, &str) + Send + Sync;

/// The engine over a hub.
pub(crate) struct HubEngine {
    renewer: Renewer,
    key_source: KeySource,
    say: Box<Say>,
}

impl HubEngine {
    pub(crate) fn new(
        renewer: Renewer,
        key_source: KeySource,
        say: impl Fn(&Identity, &str) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { renewer, key_source, say: Box::new(say) })
    }
}

impl Engine for HubEngine {
    async fn look(&self, identity: &Identity, depth: Depth) -> Result<Look, SlotResult> {
        if depth == Depth::Registry {
            let surveyed = device::survey(&self.renewer, identity, self.key_source).await;
            let (lives_in, keys) = surveyed.map_err(trouble_of)?;
            return Ok(Look { lives_in, prints: prints(Some(&keys)) });
        }
        let twin = self.renewer.glance(identity).await.map_err(trouble)?;
        let report = twin.report().ok().flatten();
        let held = |slot: KeySlot| report.as_ref()?.slot(slot).map(|held| held.fingerprint);
        let lives_in = report.as_ref().and_then(|report| report.active);
        let prints = Prints { primary: held(KeySlot::Primary), secondary: held(KeySlot::Secondary) };
        Ok(Look { lives_in, prints })
    }

    async fn renew(&self, request: &SlotRequest) -> SlotResult {
        let job = Job {
            identity: request.identity.clone(),
            key_type: match request.slot {
                KeySlot::Primary => KeyType::Primary,
                KeySlot::Secondary => KeyType::Secondary,
            },
            key_source: request.key_source.into(),
            replaces: request.replaces,
            is_forced: request.is_forced,
            delivers: true,
            is_plain: false,
            etag: None,
            timeout: request.deadline,
            is_continued: request.is_continued,
            // A rollout has no exceptions: a device that needs one is renewed by itself.
            trust: Trust::default(),
            is_challenged: request.is_challenged,
            mark: Some(Mark { rollout: request.rollout.to_string(), is_done: request.is_last }),
        };
        let watch = |event: Event| match event {
            Event::Note(text) => (self.say)(&request.identity, &text),
            Event::Step(_) => {}
        };
        let mut trace = Trace::default();
        let result = device::renew(&self.renewer, &job, &watch, &mut trace).await;
        translate(request, result, &trace)
    }

    async fn close(&self) -> Result<(), Failure> {
        self.renewer.close().await
    }
}

fn translate(request: &SlotRequest, result: Result<Ending, Stop>, trace: &Trace) -> SlotResult {
    let after = prints(trace.after.as_ref());
    let fail = |code, message, may_retry| SlotResult::Failed {
        code,
        message,
        after,
        may_retry,
        pause: Duration::ZERO,
    };
    match result {
        Ok(Ending::Renewed | Ending::Settled | Ending::Swapped) => {
            if request.replaces.is_some() && after.of(request.slot) == request.replaces {
                // An earlier run's offer of this very key stood there, and now it does not.
                return SlotResult::Refused {
                    code: Refusal::SlotInUse { slot: request.slot }.code(),
                    message: "the device lives on the key that was to be replaced".to_owned(),
                    may_retry: true,
                };
            }
            let rotation = trace.rotation.map(|rotation| rotation.to_string());
            SlotResult::Done { before: prints(trace.before.as_ref()), after, rotation }
        }
        // The device lives on that slot now. The next look decides anew.
        Ok(Ending::Delivered) => SlotResult::Refused {
            code: Refusal::SlotInUse { slot: request.slot }.code(),
            message: "the registry's key was handed over, which the device did not have; no key was made".to_owned(),
            may_retry: true,
        },
        Ok(Ending::Undelivered(_)) => fail(
            "undelivered",
            "the key was renewed in the registry, but there is no agent to take it: bring the device a connection string \
             by hand (twinkey device-identity connection-string)"
                .to_owned(),
            false,
        ),
        Err(Stop::Refused(refusal)) => SlotResult::Refused {
            code: refusal.code(),
            message: format!("{refusal}; {}", refusal.advice()),
            may_retry: match refusal {
                Refusal::NotConnected
                | Refusal::ActiveUnknown
                | Refusal::OfferStands
                | Refusal::ProofMissing
                | Refusal::ProofFails
                | Refusal::Duel
                | Refusal::NotFresh
                | Refusal::SlotInUse { .. } => true,
                Refusal::Disabled
                | Refusal::NoAgent
                | Refusal::KeyUnknown
                | Refusal::LastKey { .. }
                | Refusal::SealChanged
                | Refusal::ReportOld
                | Refusal::SealUnknown
                | Refusal::TwinTooLarge
                | Refusal::BothSlots => false,
            },
        },
        Err(Stop::Busy { by, left }) => SlotResult::Failed {
            code: BUSY,
            message: format!("another operator renews its keys (lease of {by}); nothing was changed"),
            after,
            may_retry: true,
            // It may be given back before it ends.
            pause: left.clamp(PAUSE_MIN, BUSY_PAUSE_MAX),
        },
        Err(Stop::Gone(failure)) => SlotResult::Gone { message: failure.what },
        Err(Stop::Rejected { status, reason }) => fail(
            reason.map_or(status.as_str(), Reason::as_str),
            "the device did not take the key and lives on the one it had; the offer is erased".to_owned(),
            true,
        ),
        Err(Stop::Superseded { by: Some(rotation) }) => fail(
            "superseded",
            format!("another run's offer ({rotation}) took the place of this one: let that run finish"),
            true,
        ),
        Err(Stop::Superseded { by: None }) => {
            fail("superseded", "somebody erased the offer before the device had taken it".to_owned(), true)
        }
        Err(Stop::Unanswered { last }) => fail(
            "timeout",
            format!(
                "no proof in time ({last}); the offer stands, and the new key is good: `twinkey rollout \
                 resume --retry-failed` finishes once the device is back"
            ),
            false,
        ),
        Err(Stop::Failed(failure)) => fail(failure.code, failure.told(), true),
    }
}

fn trouble(error: HubError) -> SlotResult {
    if error.status() == Some(404) {
        return SlotResult::Gone { message: error.to_string() };
    }
    let failure = Failure::from(error);
    let after = Prints::default();
    SlotResult::Failed {
        code: failure.code,
        message: failure.told(),
        after,
        may_retry: true,
        pause: Duration::ZERO,
    }
}

fn trouble_of(stop: Stop) -> SlotResult {
    match stop {
        Stop::Gone(failure) => SlotResult::Gone { message: failure.what },
        Stop::Failed(failure) => SlotResult::Failed {
            code: failure.code,
            message: failure.told(),
            may_retry: true,
            pause: Duration::ZERO,
            after: Prints::default(),
        },
        Stop::Refused(_)
        | Stop::Busy { .. }
        | Stop::Rejected { .. }
        | Stop::Superseded { .. }
        | Stop::Unanswered { .. } => SlotResult::Failed {
            code: "error",
            message: "the device could not be looked at".to_owned(),
            may_retry: true,
            pause: Duration::ZERO,
            after: Prints::default(),
        },
    }
}

fn prints(keys: Option<&KeyPair>) -> Prints {
    let print = |slot| keys.map(|keys| keys.fingerprint(slot));
    Prints { primary: print(KeySlot::Primary), secondary: print(KeySlot::Secondary) }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
