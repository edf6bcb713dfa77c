//! A configuration's content: which desired properties it sets, in which twins.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::overlay;
use crate::twin::{ServicePatch, Twin};

/// Most modules that one configuration names (IoT Hub documentation, "Quotas and throttling", deployments).
const MODULES_MAX: usize = 50;

/// What a configuration sets (SDK model `ConfigurationContent`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    raw: Map<String, Value>,
    /// In device twins.
    pub(crate) device: Vec<Setting>,
    /// In the module twins that a condition on `devices.modules` finds.
    pub(crate) module: Vec<Setting>,
    /// In the named modules of the devices that a condition on `devices` finds.
    pub(crate) modules: BTreeMap<String, Vec<Setting>>,
}

/// One value at one path below `properties.desired`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    pub(crate) path: Vec<String>,
    pub(crate) value: Value,
}

impl Content {
    pub(crate) fn read(content: &Value) -> Result<Self, String> {
        let raw = match content {
            Value::Null => Map::new(),
            Value::Object(raw) => raw.clone(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err("content is no JSON object".to_owned());
            }
        };
        let mut read = Self::default();
        for (name, part) in &raw {
            match (name.as_str(), part) {
                ("deviceContent" | "moduleContent" | "modulesContent", Value::Null) => {}
                ("deviceContent", part) => read.device = settings(part)?,
                ("moduleContent", part) => read.module = settings(part)?,
                ("modulesContent", Value::Object(modules)) => {
                    if modules.len() > MODULES_MAX {
                        return Err(format!("content names more than {MODULES_MAX} modules"));
                    }
                    for (module, part) in modules {
                        read.modules.insert(module.clone(), settings(part)?);
                    }
                }
                _ => return Err(format!("content has no part {name:?} of that kind")),
            }
        }
        Ok(Self { raw, ..read })
    }

    /// As it was written.
    pub(crate) fn view(&self) -> &Map<String, Value> {
        &self.raw
    }
}

/// Desired properties made of settings.
pub(crate) fn desired(settings: &[Setting]) -> Map<String, Value> {
    let mut desired = Map::new();
    for setting in settings {
        overlay::set(&mut desired, &setting.path, &setting.value);
    }
    desired
}

/// Reads `{"properties.desired.a.b": value, …}`. What a twin would refuse is refused here.
fn settings(part: &Value) -> Result<Vec<Setting>, String> {
    let Value::Object(part) = part else {
        return Err("a part of the content is no JSON object".to_owned());
    };
    let mut settings = Vec::new();
    for (path, value) in part {
        let mut names = path.split('.').map(str::to_owned);
        if names.next().as_deref() != Some("properties") || names.next().as_deref() != Some("desired") {
            return Err(format!("content sets {path:?}; it may set properties.desired and what is below"));
        }
        let names: Vec<String> = names.collect();
        match (names.is_empty(), value) {
            (true, Value::Object(values)) => {
                let each = |(name, value): (&String, &Value)| Setting {
                    path: vec![name.clone()],
                    value: value.clone(),
                };
                settings.extend(values.iter().map(each));
            }
            (true, _) => return Err("properties.desired can only be a JSON object".to_owned()),
            (false, value) => settings.push(Setting { path: names, value: value.clone() }),
        }
    }
    // Shorter paths first, so that a longer one refines what they set.
    settings.sort_by_key(|setting| setting.path.len());
    Twin::new("").patch(&ServicePatch { tags: None, desired: Some(desired(&settings)) }, "")?;
    Ok(settings)
}
