//! What became of each device, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use twinkey_contract::KeySlot;
use twinkey_contract::report::Reason;

use super::device::{Ending, Job, Stop, Trace, Undelivered};
use super::refusal::Refusal;
use crate::cli::KeyType;
use crate::failure::{Exit, Failure};
use crate::hub::KeyPair;
use crate::output::{self, Table};

/// What became of one device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    /// `device`, or `device/module`.
    #[serde(skip)]
    pub(super) name: String,
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    pub(super) key_type: &'static str,
    pub(super) outcome: Word,
    /// A stable code.
    reason: Option<String>,
    /// The same for people, and what to do.
    pub(super) message: Option<String>,
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
pub(super) enum Word {
    Renewed,
    Delivered,
    Swapped,
    Settled,
    Undelivered,
    Refused,
    Rejected,
    Superseded,
    Unanswered,
    Busy,
    Gone,
    Failed,
}

#[derive(Debug, Serialize)]
pub(super) struct Change {
    before: BTreeMap<&'static str, String>,
    after: BTreeMap<&'static str, String>,
}

pub(super) fn of(job: &Job, result: Result<Ending, Stop>, trace: &Trace, elapsed: Duration) -> Outcome {
    let (outcome, reason, message) = match result {
        Ok(Ending::Renewed) => (Word::Renewed, None, None),
        Ok(Ending::Delivered) => (
            Word::Delivered,
            None,
            Some(
                "no key was made: the registry had one that the device did not have, which was handed over"
                    .to_owned(),
            ),
        ),
        Ok(Ending::Swapped) => (Word::Swapped, None, None),
        Ok(Ending::Settled) => {
            (Word::Settled, None, Some("an earlier run got through; its offer is erased".to_owned()))
        }
        Ok(Ending::Undelivered(left)) => (Word::Undelivered, None, Some(explain(left).to_owned())),
        Err(Stop::Refused(refusal)) => {
            let message = match refusal {
                // Force would not make the report true.
                Refusal::SealChanged | Refusal::ReportOld | Refusal::Duel | Refusal::NotFresh => {
                    format!("{refusal}; {}", refusal.advice())
                }
                Refusal::Disabled
                | Refusal::NoAgent
                | Refusal::NotConnected
                | Refusal::ActiveUnknown
                | Refusal::KeyUnknown
                | Refusal::LastKey { .. }
                | Refusal::ProofMissing
                | Refusal::ProofFails
                | Refusal::SealUnknown
                | Refusal::TwinTooLarge
                | Refusal::SlotInUse { .. }
                | Refusal::BothSlots
                | Refusal::OfferStands => {
                    format!("{refusal}; {}, or force it with --force-dark {}", refusal.advice(), job.identity)
                }
            };
            (Word::Refused, Some(refusal.code().to_owned()), Some(message))
        }
        Err(Stop::Busy { by, left }) => {
            let message = format!(
                "another operator renews its keys (lease of {by}, {} s left); nothing was changed: let that run finish, or wait \
                 until its lease has ended",
                left.as_secs()
            );
            (Word::Busy, Some("busy".to_owned()), Some(message))
        }
        Err(Stop::Gone(failure)) => (Word::Gone, Some("gone".to_owned()), Some(failure.told())),
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
            let message = format!("no proof in time ({last}); the offer stands, and a second run finishes");
            (Word::Unanswered, Some("timeout".to_owned()), Some(message))
        }
        Err(Stop::Failed(failure)) => (Word::Failed, Some(failure.code.to_owned()), Some(failure.told())),
    };
    Outcome {
        name: job.identity.to_string(),
        device_id: job.identity.device_id.clone(),
        module_id: job.identity.module_id.clone(),
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
        Undelivered::NextRunIsRefused => {
            "the device was not told; a run without --no-deliver is refused until the device proves a key that the registry has"
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
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Delivered => "delivered",
            Self::Swapped => "swapped",
            Self::Settled => "settled",
            Self::Undelivered => "undelivered",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Superseded => "superseded",
            Self::Unanswered => "unanswered",
            Self::Busy => "busy",
            Self::Gone => "gone",
            Self::Failed => "failed",
        }
    }

    /// Whether the device has proved that it lives on the key that was renewed.
    pub(super) fn is_proved(self) -> bool {
        matches!(self, Self::Renewed | Self::Delivered | Self::Settled)
    }

    fn exit(self) -> Exit {
        match self {
            Self::Renewed | Self::Delivered | Self::Swapped | Self::Settled | Self::Undelivered => Exit::Done,
            Self::Refused => Exit::Refused,
            Self::Rejected | Self::Superseded | Self::Unanswered | Self::Busy | Self::Gone | Self::Failed => {
                Exit::Failed
            }
        }
    }
}

/// The one exit code that all share; otherwise "partly done" if anything was done, and "failed" if nothing was.
pub(super) fn exit_of(outcomes: &[Outcome]) -> Exit {
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

pub(super) fn show(outcomes: &[Outcome]) -> Result<(), Failure> {
    let mut table = Table::new(&["DEVICE", "KEY", "OUTCOME", "FINGERPRINT", "SECONDS", "REASON"]);
    for outcome in outcomes {
        let Change { before, after } = &outcome.fingerprints;
        let moved = after.iter().filter(|(slot, print)| before.get(*slot) != Some(*print));
        let moves: Vec<String> = moved
            .map(|(slot, print)| {
                format!("{} → {}", before.get(slot).map_or("-", |print| short(print)), short(print))
            })
            .collect();
        // Where the registry stayed as it was, the device has moved.
        let lives_on = || {
            outcome.lives_on.as_ref().map_or_else(|| "-".to_owned(), |print| format!("→ {}", short(print)))
        };
        table.push([
            outcome.name.clone(),
            outcome.key_type.to_owned(),
            outcome.outcome.text().to_owned(),
            if moves.is_empty() { lives_on() } else { moves.join(", ") },
            format!("{:.1}", outcome.seconds),
            outcome.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    output::table(&table)
}

/// As [`Fingerprint::short`](twinkey_contract::Fingerprint::short).
fn short(print: &str) -> &str {
    print.get(..16).unwrap_or(print)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(words: &[Word]) -> Vec<Outcome> {
        let change = || Change { before: BTreeMap::new(), after: BTreeMap::new() };
        let of = |word: &Word| Outcome {
            name: "d".to_owned(),
            device_id: "d".to_owned(),
            module_id: None,
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
