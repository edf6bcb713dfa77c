//! Automatic device management: configurations whose content the hub puts into the desired properties of every twin
//! that their target condition holds for.
//!
//! Source: IoT Hub documentation, "Automatic device management at scale": the highest priority wins, of two equal ones
//! the one created last; what a configuration set is withdrawn when it no longer targets a twin. The real hub looks
//! every five minutes; here a change is followed at once. A desired property that a configuration sets is put back when
//! somebody else changes it: what the real hub does then is not documented.

mod content;
mod overlay;
mod record;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use content::Setting;
pub(crate) use content::{Content, desired};

use crate::kept::Touched;
use crate::query::{Query, Source};
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::twin_document::TwinDocument;

/// Most configurations of a hub of the paid tiers (IoT Hub documentation, "Quotas and throttling", other limits).
pub(crate) const CONFIGURATIONS_MAX: usize = 100;
/// Most custom metrics of one configuration ("Automatic device management at scale").
const METRICS_MAX: usize = 5;
/// Longest id of a configuration in characters.
const ID_LEN_MAX: usize = 128;
/// Most labels, and the longest name or value of one; the documentation has no limit.
const LABELS_MAX: usize = 100;
const LABEL_LEN_MAX: usize = 1024;

/// A configuration as a caller writes it (SDK model `Configuration`). What the hub itself decides is ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigurationBody {
    pub(crate) id: Option<String>,
    schema_version: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    content: Option<Value>,
    target_condition: Option<String>,
    priority: Option<i64>,
    metrics: Option<Metrics>,
}

#[derive(Debug, Deserialize)]
struct Metrics {
    queries: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    id: String,
    schema_version: String,
    labels: BTreeMap<String, String>,
    content: Content,
    target_condition: String,
    /// `None` for an empty condition, which targets nothing.
    target: Option<Query>,
    priority: i64,
    /// The time of creation, and its place among all creations.
    created: String,
    ordinal: u64,
    updated: String,
    metrics: BTreeMap<String, (String, Query)>,
    pub(crate) etag: String,
}

/// What configurations have made of one twin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Configured {
    statuses: BTreeMap<String, Status>,
    /// All that they set in the desired properties; `null` for what they removed.
    overlay: Map<String, Value>,
}

/// A configuration's status in a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Its condition holds, but it set nothing: others with a higher priority did, or the twin would be too large.
    Targeted,
    /// It set something.
    Applied,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Targeted => "Targeted",
            Self::Applied => "Applied",
        }
    }
}

impl Configured {
    pub(crate) fn status(&self, configuration: &str) -> Option<Status> {
        self.statuses.get(configuration).copied()
    }

    pub(crate) fn statuses(&self) -> impl Iterator<Item = (&str, Status)> {
        self.statuses.iter().map(|(id, status)| (id.as_str(), *status))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.statuses.is_empty() && self.overlay.is_empty()
    }

    /// A number that changes with it.
    pub(crate) fn stamp(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.statuses, Value::Object(self.overlay.clone()).to_string()).hash(&mut hasher);
        hasher.finish()
    }

    /// A twin's `configurations`.
    pub(crate) fn view(&self) -> Value {
        let statuses =
            self.statuses.iter().map(|(id, status)| (id.clone(), json!({"status": status.name()})));
        Value::Object(statuses.collect())
    }

    /// What to patch in desired properties that were made by `before`, so that they become what `self` makes of them.
    pub(crate) fn patch(&self, before: Option<&Self>, desired: &Map<String, Value>) -> Map<String, Value> {
        let mut target = desired.clone();
        if let Some(before) = before {
            overlay::withdraw(&mut target, &before.overlay);
        }
        overlay::impose(&mut target, &self.overlay);
        overlay::difference(desired, &target)
    }

    /// What is left if the twin could not take the patch.
    pub(crate) fn not_applied(mut self, before: Option<&Self>) -> Self {
        self.statuses.values_mut().for_each(|status| *status = Status::Targeted);
        self.overlay = before.map_or_else(Map::new, |before| before.overlay.clone());
        self
    }
}

/// The hub's configurations.
#[derive(Debug, Default)]
pub(crate) struct Configurations {
    all: BTreeMap<String, Configuration>,
    /// The ids, the weakest first.
    ranked: Vec<String>,
    /// Counts every change: what a sweep compares to see whether a later one has begun.
    pub(crate) changes: u64,
    pub(crate) touched: Touched<String>,
}

impl Configurations {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn find(&self, id: &str) -> Result<&Configuration, Refusal> {
        self.all.get(id).ok_or_else(|| Refusal::new(ErrorCode::ConfigurationNotFound, id))
    }

    /// In the order of ids.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Configuration> {
        self.all.values()
    }

    /// Creates a configuration without a precondition, changes it with one. Content can't be changed
    /// (azure-iot-hub, `update_configuration`).
    pub(crate) fn write(
        &mut self,
        id: &str,
        body: ConfigurationBody,
        precondition: &Precondition,
        timestamp: &str,
        etag: String,
    ) -> Result<&Configuration, Refusal> {
        check_id(id)?;
        let before = match (self.all.get(id), precondition) {
            (Some(_), Precondition::None) => {
                return Err(Refusal::new(ErrorCode::ConfigurationAlreadyExists, id));
            }
            (None, Precondition::Any | Precondition::Etag(_)) => {
                return Err(Refusal::new(ErrorCode::ConfigurationNotFound, id));
            }
            (before, _) => before,
        };
        if let Some(before) = before {
            precondition.check(&before.etag)?;
        } else if self.all.len() >= CONFIGURATIONS_MAX {
            let message = format!("a hub has at most {CONFIGURATIONS_MAX} configurations");
            return Err(Refusal::new(ErrorCode::QuotaExceeded, message));
        }
        let mut configuration = Configuration::read(id, body, before, timestamp)?;
        if before.is_none() {
            configuration.ordinal = self.all.values().map(|other| other.ordinal).max().unwrap_or(0) + 1;
        }
        configuration.etag = etag;
        self.insert(configuration);
        self.find(id)
    }

    pub(crate) fn delete(&mut self, id: &str, precondition: &Precondition) -> Result<(), Refusal> {
        precondition.check(&self.find(id)?.etag)?;
        self.all.remove(id);
        self.touched.add(&id.to_owned());
        self.changes += 1;
        self.rank();
        Ok(())
    }

    fn insert(&mut self, configuration: Configuration) {
        self.touched.add(&configuration.id);
        self.all.insert(configuration.id.clone(), configuration);
        self.changes += 1;
        self.rank();
    }

    fn rank(&mut self) {
        let mut ranked: Vec<&Configuration> = self.all.values().collect();
        ranked.sort_by_key(|configuration| (configuration.priority, configuration.ordinal));
        self.ranked = ranked.into_iter().map(|configuration| configuration.id.clone()).collect();
    }

    /// Whether some configuration of devices has content for modules: then a device's change concerns its modules.
    pub(crate) fn reach_modules(&self) -> bool {
        self.all.values().any(|configuration| !configuration.content.modules.is_empty())
    }

    /// What the configurations make of a twin. `device` is the twin of the device that a module belongs to.
    pub(crate) fn plan(&self, twin: &TwinDocument<'_>, device: Option<&TwinDocument<'_>>) -> Configured {
        let mut planned = Configured::default();
        let mut higher: Vec<&[String]> = Vec::new();
        let mut chosen: Vec<&[Setting]> = Vec::new();
        for configuration in self.ranked.iter().rev().filter_map(|id| self.all.get(id)) {
            let Some((settings, is_listed)) = configuration.settings(twin, device) else {
                continue;
            };
            let is_shadowed = |setting: &Setting| higher.iter().any(|path| setting.path.starts_with(path));
            let is_applied = settings.is_empty() || !settings.iter().all(is_shadowed);
            if is_listed {
                let status = if is_applied { Status::Applied } else { Status::Targeted };
                planned.statuses.insert(configuration.id.clone(), status);
            }
            higher.extend(settings.iter().map(|setting| setting.path.as_slice()));
            chosen.push(settings);
        }
        for setting in chosen.into_iter().rev().flatten() {
            overlay::set(&mut planned.overlay, &setting.path, &setting.value);
        }
        planned
    }
}

impl Configuration {
    fn read(
        id: &str,
        body: ConfigurationBody,
        before: Option<&Self>,
        timestamp: &str,
    ) -> Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
        let content = match (&body.content, before) {
            (None, Some(before)) => before.content.clone(),
            (content, _) => Content::read(content.as_ref().unwrap_or(&Value::Null)).map_err(invalid)?,
        };
        if before.is_some_and(|before| before.content.view() != content.view()) {
            return Err(invalid(
                "the content of a configuration can't be changed; create another one".to_owned(),
            ));
        }
        let target_condition = body.target_condition.unwrap_or_default();
        let labels = body.labels.unwrap_or_default();
        let is_long = |(name, value): (&String, &String)| name.len().max(value.len()) > LABEL_LEN_MAX;
        if labels.len() > LABELS_MAX || labels.iter().any(is_long) {
            return Err(invalid(format!("more than {LABELS_MAX} labels, or one over {LABEL_LEN_MAX} bytes")));
        }
        let priority = body.priority.unwrap_or(0);
        if !(0..=i64::from(i32::MAX)).contains(&priority) {
            return Err(invalid(format!("priority {priority} is not between 0 and {}", i32::MAX)));
        }
        let queries = body.metrics.and_then(|metrics| metrics.queries).unwrap_or_default();
        if queries.len() > METRICS_MAX {
            return Err(invalid(format!("more than {METRICS_MAX} custom metrics")));
        }
        let mut metrics = BTreeMap::new();
        for (name, text) in queries {
            let query =
                parse_metric(&text).map_err(|problem| invalid(format!("metric {name}: {problem}")))?;
            metrics.insert(name, (text, query));
        }
        Ok(Self {
            id: id.to_owned(),
            schema_version: body.schema_version.unwrap_or_else(|| "1.0".to_owned()),
            labels,
            content,
            target: parse_target(&target_condition)
                .map_err(|problem| invalid(format!("targetCondition: {problem}")))?,
            target_condition,
            priority,
            created: before.map_or(timestamp, |before| before.created.as_str()).to_owned(),
            ordinal: before.map_or(0, |before| before.ordinal),
            updated: timestamp.to_owned(),
            metrics,
            etag: String::new(),
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The custom metrics' queries.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = (&str, &Query)> {
        self.metrics.iter().map(|(name, (_, query))| (name.as_str(), query))
    }

    /// What this configuration sets in a twin that it targets, and whether the twin lists it.
    fn settings(
        &self,
        twin: &TwinDocument<'_>,
        device: Option<&TwinDocument<'_>>,
    ) -> Option<(&[Setting], bool)> {
        let target = self.target.as_ref()?;
        match (target.source, device, twin.id.module_id()) {
            (Source::Devices, None, _) => {
                target.matches(twin).then_some((self.content.device.as_slice(), true))
            }
            (Source::Modules, Some(_), Some(_)) => {
                target.matches(twin).then_some((self.content.module.as_slice(), true))
            }
            (Source::Devices, Some(device), Some(module)) => {
                let settings = self.content.modules.get(module)?;
                target.matches(device).then_some((settings.as_slice(), false))
            }
            (Source::Modules | Source::Jobs, ..) | (Source::Devices, Some(_), None) => None,
        }
    }

    /// The configuration with the results of its metrics, as the service shows it.
    pub(crate) fn view(&self, targeted: u64, applied: u64, results: &BTreeMap<String, u64>) -> Value {
        let (id, collection) = match self.target.as_ref().map(|target| target.source) {
            Some(Source::Modules) => ("deviceId, moduleId", "devices.modules"),
            Some(Source::Devices | Source::Jobs) | None => ("deviceId", "devices"),
        };
        let condition = self.target_condition.trim();
        let targeted_query = match condition {
            "" => String::new(),
            "*" => format!("select {id} from {collection}"),
            _ if condition.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("from")) => {
                format!("select {id} {condition}")
            }
            _ => format!("select {id} from {collection} where {condition}"),
        };
        let applied_query =
            format!("select {id} from {collection} where configurations.[[{}]].status = 'Applied'", self.id);
        let queries: BTreeMap<&String, &String> =
            self.metrics.iter().map(|(name, (text, _))| (name, text)).collect();
        json!({
            "id": self.id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": self.content.view(),
            "targetCondition": self.target_condition,
            "createdTimeUtc": self.created,
            "lastUpdatedTimeUtc": self.updated,
            "priority": self.priority,
            "systemMetrics": {
                "results": {"targetedCount": targeted, "appliedCount": applied},
                "queries": {"targetedCount": targeted_query, "appliedCount": applied_query},
            },
            "metrics": {"results": results, "queries": queries},
            "etag": self.etag,
        })
    }
}

/// Reads a target condition; an empty one targets nothing.
pub(crate) fn parse_target(text: &str) -> Result<Option<Query>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    Query::parse_condition(text).map(Some).map_err(|error| error.to_string())
}

/// Reads the query of a custom metric, whose rows are counted.
pub(crate) fn parse_metric(text: &str) -> Result<Query, String> {
    let query = Query::parse(text).map_err(|error| error.to_string())?;
    match query.source {
        Source::Devices | Source::Modules => Ok(query),
        Source::Jobs => Err("a metric counts devices or devices.modules".to_owned()),
    }
}

/// azure-iot-hub, model `Configuration`: lower-case letters, digits and `-:+%_#*?!(),=@;$'`.
fn check_id(id: &str) -> Result<(), Refusal> {
    let is_allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-:+%_#*?!(),=@;$'".contains(c);
    if (1..=ID_LEN_MAX).contains(&id.len()) && id.chars().all(is_allowed) {
        return Ok(());
    }
    let text = "a configuration's id has 1 to 128 lower-case letters, digits and -:+%_#*?!(),=@;$'";
    Err(Refusal::new(ErrorCode::ArgumentInvalid, text))
}
