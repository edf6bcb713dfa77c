//! Configurations as they are kept on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Configuration, Configurations, Content, parse_metric, parse_target};

/// A configuration without what can be made of the rest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    schema_version: String,
    labels: BTreeMap<String, String>,
    content: Value,
    target_condition: String,
    priority: i64,
    created: String,
    ordinal: u64,
    updated: String,
    metrics: BTreeMap<String, String>,
    etag: String,
}

impl Configuration {
    pub(crate) fn record(&self) -> Record {
        let metrics = self.metrics.iter().map(|(name, (text, _))| (name.clone(), text.clone()));
        Record {
            schema_version: self.schema_version.clone(),
            labels: self.labels.clone(),
            content: Value::Object(self.content.view().clone()),
            target_condition: self.target_condition.clone(),
            priority: self.priority,
            created: self.created.clone(),
            ordinal: self.ordinal,
            updated: self.updated.clone(),
            metrics: metrics.collect(),
            etag: self.etag.clone(),
        }
    }
}

impl Configurations {
    /// Puts a configuration back that was kept. `Err` says what is wrong with it.
    pub(crate) fn restore(&mut self, id: String, record: Record) -> Result<(), String> {
        let mut metrics = BTreeMap::new();
        for (name, text) in record.metrics {
            let query = parse_metric(&text)?;
            metrics.insert(name, (text, query));
        }
        self.insert(Configuration {
            id,
            schema_version: record.schema_version,
            labels: record.labels,
            content: Content::read(&record.content)?,
            target: parse_target(&record.target_condition)?,
            target_condition: record.target_condition,
            priority: record.priority,
            created: record.created,
            ordinal: record.ordinal,
            updated: record.updated,
            metrics,
            etag: record.etag,
        });
        Ok(())
    }
}
