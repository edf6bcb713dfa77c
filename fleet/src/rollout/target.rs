//! The target as it is before anything is done: who would be renewed, who not, and why.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use twinkey_contract::report::Status;
use twinkey_contract::{Identity, KeySlot, RotationId};

use super::spec::{ALL, Spec};
use crate::cli::KeyType;
use crate::failure::Failure;
use crate::hub::{Collection, Columns, Found, Hub, KeyPair, Query, TWIN_TOO_LONG, Twin};
use crate::renew::belief::{Trust, proved_slot};
use crate::renew::plan::{self, Change, Facts, Plan, Refusal, Request};
use crate::renew::standing::standing;

/// Most identities that one registry operation tells of.
const LIST_MAX: u16 = 1000;
/// Registry operations at the same time.
const READS_AT_ONCE: usize = 8;

/// One of the target.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) identity: Identity,
    pub(crate) verdict: Verdict,
    pub(crate) is_forced: bool,
    /// What a rollout has left in the twin's tags: its id, and whether it is done with the device.
    pub(crate) mark: Option<(String, bool)>,
    /// The last rotation that the agent has proved to have committed.
    pub(crate) rotation: Option<RotationId>,
    /// The slot that it has proved to use.
    pub(crate) active: Option<KeySlot>,
}

/// What would be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// `first` is the slot that comes first, where that is known.
    Renew {
        first: Option<KeySlot>,
        because: String,
    },
    Refuse {
        code: &'static str,
        because: String,
        advice: String,
    },
}

/// What is known of the registry.
enum Registry {
    /// Nothing.
    Unread,
    /// The keys of all that have keys.
    Read(HashMap<Identity, KeyPair>),
}

/// Everything that is in the target, in no order.
pub(crate) struct Target {
    pub(crate) candidates: Vec<Candidate>,
    /// Whether the registry's keys were compared with the reports.
    pub(crate) is_compared: bool,
}

/// Looks. `forced` are those that may go dark.
pub(crate) async fn find(
    hub: &Hub,
    spec: &Spec,
    forced: &[Identity],
    reads_registry: bool,
) -> Result<Target, Failure> {
    let condition = spec.target.trim();
    let condition_of_query = Some(condition).filter(|condition| *condition != ALL);
    let mut found =
        hub.query_all(Query::new(Collection::Devices, Columns::Renewal, condition_of_query)).await?;
    if spec.include_modules {
        let modules = modules(hub, &found).await?;
        found.twins.extend(modules.twins);
        found.too_long.extend(modules.too_long);
    }
    let mut twins = read(found.twins)?;
    let too_long: HashSet<Identity> = {
        let too_long = read(found.too_long)?;
        let identities = too_long.iter().map(|(twin, _)| twin.identity()).collect();
        twins.extend(too_long);
        identities
    };
    if twins.is_empty() {
        return Err(Failure::usage(format!("the target is empty: no device fits {condition}")).next(
            "check the condition (tags are tags.NAME, texts stand in single quotes), and that the hub is the right one",
        ));
    }
    if let Some(stranger) =
        forced.iter().find(|forced| twins.iter().all(|(twin, _)| twin.identity() != **forced))
    {
        return Err(Failure::usage(format!("--force-dark names {stranger}, which is not in the target")));
    }
    let registry = registry(hub, &twins, reads_registry, spec.include_modules).await?;
    let candidates = twins.iter().map(|(twin, is_by_keys)| {
        let identity = twin.identity();
        let is_forced = forced.contains(&identity);
        let verdict = match is_by_keys {
            false => without_keys(),
            true if too_long.contains(&identity) => twin_too_long(),
            true => judge(twin, &registry, is_forced),
        };
        let proved = proved(twin, &registry);
        let (rotation, active) = (proved.and_then(|(_, rotation)| rotation), proved.map(|(slot, _)| slot));
        Candidate { verdict, is_forced, mark: mark(twin), rotation, active, identity }
    });
    Ok(Target { candidates: candidates.collect(), is_compared: matches!(registry, Registry::Read(_)) })
}

/// With each twin, whether its identity authenticates by keys.
fn read(items: Vec<Value>) -> Result<Vec<(Twin, bool)>, Failure> {
    let read = |item: Value| {
        let is_by_keys =
            item.get("authenticationType").and_then(Value::as_str).is_none_or(|kind| kind == "sas");
        let twin: Twin = serde_json::from_value(item).map_err(|_| {
            // The cause stays unsaid: it could quote an offer.
            Failure::failed("the hub's answer to the query of the target holds what is no twin")
                .next("check the condition: it goes after WHERE, and selects nothing")
        })?;
        Ok((twin, is_by_keys))
    };
    items.into_iter().map(read).collect()
}

async fn modules(hub: &Hub, devices: &Found) -> Result<Found, Failure> {
    let devices = devices.twins.iter().chain(&devices.too_long);
    let ids = devices.filter_map(|twin| twin.get("deviceId")?.as_str());
    let mut found = Found::default();
    for query in Query::of_devices(Collection::Modules, Columns::Renewal, ids) {
        let part = hub.query_all(query).await?;
        found.twins.extend(part.twins);
        found.too_long.extend(part.too_long);
    }
    Ok(found)
}

async fn registry(
    hub: &Hub,
    twins: &[(Twin, bool)],
    reads_all: bool,
    has_modules: bool,
) -> Result<Registry, Failure> {
    if reads_all {
        let reads = stream::iter(twins.iter().map(|(twin, _)| twin.identity()))
            .map(|identity| async move { Ok::<_, Failure>((hub.device(&identity).await?.keys(), identity)) })
            .buffer_unordered(READS_AT_ONCE);
        let read: Vec<_> = reads.try_collect().await?;
        return Ok(Registry::Read(
            read.into_iter().filter_map(|(keys, identity)| Some((identity, keys?))).collect(),
        ));
    }
    if has_modules || twins.len() >= usize::from(LIST_MAX) {
        return Ok(Registry::Unread);
    }
    let listed = hub.devices(LIST_MAX).await?;
    // A full list may have left some out.
    if listed.len() >= usize::from(LIST_MAX) {
        return Ok(Registry::Unread);
    }
    Ok(Registry::Read(listed.iter().filter_map(|device| Some((device.identity(), device.keys()?))).collect()))
}

fn judge(twin: &Twin, registry: &Registry, is_forced: bool) -> Verdict {
    let identity = twin.identity();
    match registry {
        Registry::Read(keys) => match keys.get(&identity) {
            Some(keys) => by_registry(twin, &identity, keys, is_forced),
            None => without_keys(),
        },
        Registry::Unread => by_report(twin, is_forced),
    }
}

fn without_keys() -> Verdict {
    Verdict::Refuse {
        code: "no-keys",
        because: "it does not authenticate by two symmetric keys".to_owned(),
        advice: "leave it out of the target".to_owned(),
    }
}

/// Even forced it can't be renewed: nobody could see its proof.
fn twin_too_long() -> Verdict {
    Verdict::Refuse {
        code: TWIN_TOO_LONG,
        because: "its twin is longer than what is read".to_owned(),
        advice: "look at what it reports, and have it take that out; or leave it out of the target"
            .to_owned(),
    }
}

fn refuse(refusal: Refusal) -> Verdict {
    Verdict::Refuse { code: refusal.code(), because: refusal.to_string(), advice: refusal.advice() }
}

fn by_registry(twin: &Twin, identity: &Identity, keys: &KeyPair, is_forced: bool) -> Verdict {
    let report = twin.report().ok().flatten();
    let facts = Facts {
        identity,
        is_enabled: twin.is_enabled(),
        is_connected: twin.is_connected(),
        keys,
        report: report.as_ref(),
        seen: twin.seen(),
        standing: standing(twin, keys, false),
    };
    let first = plan::idle_slot(&facts, Trust::default());
    let key_type = match first {
        KeySlot::Primary => KeyType::Primary,
        KeySlot::Secondary => KeyType::Secondary,
    };
    let request = Request {
        key_type,
        replaces: None,
        is_forced,
        delivers: true,
        is_plain: false,
        trust: Trust::default(),
    };
    let because = match plan::plan(&facts, request) {
        Plan::Refuse(refusal) => return refuse(refusal),
        Plan::Settle { .. } => "an earlier renewal got through; its offer is erased first".to_owned(),
        Plan::Renew { in_spite_of: Some(danger), .. } => format!("forced, although {danger}"),
        Plan::Renew { change: Change::Nothing, .. } => {
            format!("an earlier renewal is unfinished: the registry's {first} key is delivered")
        }
        Plan::Renew { .. } => format!("it lives on its {} key", first.other()),
    };
    Verdict::Renew { first: Some(first), because }
}

/// What the twin alone tells. The engine looks at the registry before it does anything.
fn by_report(twin: &Twin, is_forced: bool) -> Verdict {
    let report =
        twin.report().ok().flatten().filter(|report| report.contract == twinkey_contract::CONTRACT_VERSION);
    let active = report.as_ref().and_then(|report| report.active);
    let danger = if !twin.is_enabled() {
        Some(Refusal::Disabled)
    } else if report.is_none() {
        Some(Refusal::NoAgent)
    } else if !twin.is_connected() {
        Some(Refusal::NotConnected)
    } else if active.is_none() {
        Some(Refusal::ActiveUnknown)
    } else {
        None
    };
    match (danger, active) {
        (Some(danger), _) if !is_forced => refuse(danger),
        (Some(danger), active) => Verdict::Renew {
            first: active.map(KeySlot::other),
            because: format!("forced, although {danger}"),
        },
        (None, active) => Verdict::Renew {
            first: active.map(KeySlot::other),
            because: active
                .map_or_else(String::new, |slot| format!("it says that it lives on its {slot} key")),
        },
    }
}

/// The slot that the device has proved to live on, and the rotation that it has committed. Nothing is proved where the
/// registry was not read.
fn proved(twin: &Twin, registry: &Registry) -> Option<(KeySlot, Option<RotationId>)> {
    let Registry::Read(keys) = registry else { return None };
    let identity = twin.identity();
    let report = twin.report().ok().flatten()?;
    let slot = proved_slot(&report, keys.get(&identity)?, &identity).ok()?;
    Some((slot, report.rotation.filter(|_| report.status == Status::Committed)))
}

fn mark(twin: &Twin) -> Option<(String, bool)> {
    let section = twin.tags.get("keyRenewal")?;
    let is_done = section.get("done").and_then(Value::as_bool).unwrap_or(false);
    Some((section.get("rollout")?.as_str()?.to_owned(), is_done))
}
