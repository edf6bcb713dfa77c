//! Device twins: tags, desired and reported properties, their versions, merge rules and limits.
//!
//! Rules and limits: IoT Hub documentation, "Understand and use device twins".

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Largest desired or reported section, counted as the documentation does (keys and values, no punctuation).
const SECTION_LEN_MAX: usize = 32 * 1024;
/// Largest tags section.
const TAGS_LEN_MAX: usize = 8 * 1024;
/// Most levels of nested objects.
const DEPTH_MAX: usize = 10;
/// Longest key in bytes.
const KEY_LEN_MAX: usize = 1024;
/// Longest string value in bytes.
const STRING_LEN_MAX: usize = 4096;
/// Largest absolute value of an integer: 2^52, less one on the positive side.
const INTEGER_MAX: i64 = 4_503_599_627_370_495;

/// A twin document. Its form in JSON is that of the state on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Twin {
    pub(crate) tags: Map<String, Value>,
    pub(crate) desired: Section,
    pub(crate) reported: Section,
    /// Counts every change of any section.
    pub(crate) version: u64,
    /// Counts changes of tags and desired properties: what the service's etag guards.
    service_changes: u64,
}

/// Desired or reported properties.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Section {
    pub(crate) values: Map<String, Value>,
    metadata: Map<String, Value>,
    pub(crate) version: u64,
    /// Desired metadata names the version that last touched a node; reported metadata only the time.
    keeps_versions: bool,
}

/// What the service asks to change; `None` leaves a section as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServicePatch {
    pub(crate) tags: Option<Map<String, Value>>,
    pub(crate) desired: Option<Map<String, Value>>,
}

impl ServicePatch {
    /// `desired` may hold the `$version` and `$metadata` that a caller has read and sends back; they are left out.
    pub(crate) fn new(tags: Option<Map<String, Value>>, mut desired: Option<Map<String, Value>>) -> Self {
        if let Some(desired) = &mut desired {
            desired.retain(|name, _| name != "$version" && name != "$metadata");
        }
        Self { tags, desired }
    }
}

impl Twin {
    /// An empty twin: version 2, both sections at version 1, etag `AAAAAAAAAAE=`, as the real hub shows new ones.
    pub(crate) fn new(timestamp: &str) -> Self {
        Self {
            tags: Map::new(),
            desired: Section::new(timestamp, true),
            reported: Section::new(timestamp, false),
            version: 2,
            service_changes: 1,
        }
    }

    pub(crate) fn etag(&self) -> String {
        STANDARD.encode(self.service_changes.to_be_bytes())
    }

    /// Merges a patch of the device's into the reported properties. On error nothing is changed.
    pub(crate) fn report(&mut self, patch: &Map<String, Value>, timestamp: &str) -> Result<(), String> {
        self.reported = self.reported.merged(patch, timestamp)?;
        self.version += 1;
        Ok(())
    }

    /// Merges the service's patch. On error nothing is changed, nor by a patch that names no section: not even the etag.
    pub(crate) fn patch(&mut self, patch: &ServicePatch, timestamp: &str) -> Result<(), String> {
        if patch.tags.is_none() && patch.desired.is_none() {
            return Ok(());
        }
        let tags = match &patch.tags {
            Some(tags) => merged_tags(&self.tags, tags)?,
            None => self.tags.clone(),
        };
        if let Some(desired) = &patch.desired {
            self.desired = self.desired.merged(desired, timestamp)?;
        }
        self.tags = tags;
        self.count_service_change();
        Ok(())
    }

    /// Replaces tags and desired properties as a whole. On error nothing is changed.
    pub(crate) fn replace(&mut self, with: &ServicePatch, timestamp: &str) -> Result<(), String> {
        let empty = Map::new();
        let tags = merged_tags(&empty, with.tags.as_ref().unwrap_or(&empty))?;
        let cleared = Section { version: self.desired.version, ..Section::new(timestamp, true) };
        self.desired = cleared.merged(with.desired.as_ref().unwrap_or(&empty), timestamp)?;
        self.tags = tags;
        self.count_service_change();
        Ok(())
    }

    /// The document as a device reads it: no tags, no metadata.
    pub(crate) fn device_view(&self) -> Value {
        json!({"desired": self.desired.versioned(), "reported": self.reported.versioned()})
    }

    fn count_service_change(&mut self) {
        self.version += 1;
        self.service_changes += 1;
    }
}

impl Section {
    fn new(timestamp: &str, keeps_versions: bool) -> Self {
        let mut section = Self { values: Map::new(), metadata: Map::new(), version: 1, keeps_versions };
        section.metadata = section.stamp(timestamp);
        section
    }

    pub(crate) fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// The values with `$version`.
    pub(crate) fn versioned(&self) -> Value {
        versioned(&self.values, self.version)
    }

    /// The values with `$metadata` and `$version`, as the service reads them.
    pub(crate) fn service_view(&self) -> Value {
        let mut values = self.values.clone();
        values.insert("$metadata".to_owned(), Value::Object(self.metadata.clone()));
        versioned(&values, self.version)
    }

    fn merged(&self, patch: &Map<String, Value>, timestamp: &str) -> Result<Self, String> {
        check_object(patch, 1)?;
        let mut next = Self {
            values: self.values.clone(),
            metadata: self.metadata.clone(),
            version: self.version + 1,
            keeps_versions: self.keeps_versions,
        };
        let stamp = next.stamp(timestamp);
        merge(&mut next.values, &mut next.metadata, patch, &stamp);
        check_len(&next.values, SECTION_LEN_MAX)?;
        Ok(next)
    }

    /// What a touched node's metadata says.
    fn stamp(&self, timestamp: &str) -> Map<String, Value> {
        let mut stamp = Map::new();
        stamp.insert("$lastUpdated".to_owned(), timestamp.into());
        if self.keeps_versions {
            stamp.insert("$lastUpdatedVersion".to_owned(), self.version.into());
        }
        stamp
    }
}

/// `values` with `"$version": version`: also the body of a desired-properties notification.
pub(crate) fn versioned(values: &Map<String, Value>, version: u64) -> Value {
    let mut values = values.clone();
    values.insert("$version".to_owned(), version.into());
    Value::Object(values)
}

/// Merges like RFC 7396: `null` removes, objects merge, everything else replaces. `metadata` mirrors the tree.
fn merge(
    values: &mut Map<String, Value>,
    metadata: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    stamp: &Map<String, Value>,
) {
    metadata.extend(stamp.clone());
    for (key, new) in patch {
        match new {
            Value::Null => {
                values.remove(key);
                metadata.remove(key);
            }
            Value::Object(patch) => {
                let (mut below, mut about) = (take_object(values, key), take_object(metadata, key));
                merge(&mut below, &mut about, patch, stamp);
                values.insert(key.clone(), below.into());
                metadata.insert(key.clone(), about.into());
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                values.insert(key.clone(), new.clone());
                metadata.insert(key.clone(), stamp.clone().into());
            }
        }
    }
}

/// Takes the object at `key` out of `parent`; an empty one if there is none, or something else.
fn take_object(parent: &mut Map<String, Value>, key: &str) -> Map<String, Value> {
    if let Some(Value::Object(object)) = parent.remove(key) { object } else { Map::new() }
}

fn merged_tags(tags: &Map<String, Value>, patch: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    check_object(patch, 1)?;
    let mut merged = tags.clone();
    merge(&mut merged, &mut Map::new(), patch, &Map::new());
    check_len(&merged, TAGS_LEN_MAX)?;
    Ok(merged)
}

fn check_object(object: &Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} levels of nested objects"));
    }
    for (key, value) in object {
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return Err(format!("a property name must have 1 to {KEY_LEN_MAX} bytes"));
        }
        if key.contains(|c: char| c.is_control() || matches!(c, '.' | '$' | '#' | ' ')) {
            return Err(format!(
                "property name {key:?} contains a control character, '.', '$', '#' or a space"
            ));
        }
        check_value(value, depth)?;
    }
    Ok(())
}

fn check_value(value: &Value, depth: usize) -> Result<(), String> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) => match (number.as_i64(), number.is_f64()) {
            (_, true) | (Some(-4_503_599_627_370_496..=INTEGER_MAX), false) => Ok(()),
            (Some(_) | None, false) => Err(format!("integer {number} is beyond ±2^52")),
        },
        Value::String(text) if text.len() > STRING_LEN_MAX => {
            Err(format!("a string is longer than {STRING_LEN_MAX} bytes"))
        }
        Value::String(_) => Ok(()),
        Value::Array(_) if depth > DEPTH_MAX => Err(format!("more than {DEPTH_MAX} levels of nested arrays")),
        Value::Array(items) if items.iter().any(Value::is_null) => Err("an array contains null".to_owned()),
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, depth + 1)),
        Value::Object(object) => check_object(object, depth + 1),
    }
}

fn check_len(values: &Map<String, Value>, len_max: usize) -> Result<(), String> {
    let len = object_len(values);
    if len > len_max { Err(format!("{len} bytes of keys and values, more than {len_max}")) } else { Ok(()) }
}

fn object_len(object: &Map<String, Value>) -> usize {
    object.iter().map(|(key, value)| key.len() + value_len(value)).sum()
}

fn value_len(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.chars().filter(|c| !c.is_control()).map(char::len_utf8).sum(),
        Value::Array(items) => items.iter().map(value_len).sum(),
        Value::Object(object) => object_len(object),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn desire(twin: &mut Twin, desired: Value) -> Result<(), String> {
        twin.patch(&ServicePatch { tags: None, desired: Some(object(desired)) }, "t")
    }

    #[test]
    fn null_removes_objects_merge_and_the_rest_replaces() {
        let mut twin = Twin::new("t0");
        desire(&mut twin, json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"})).unwrap();
        desire(
            &mut twin,
            json!({"a": {"b": null, "c": [3], "e": {"f": null}}, "d": {"g": true}, "no": null}),
        )
        .unwrap();
        assert_eq!(
            Value::Object(twin.desired.values.clone()),
            json!({"a": {"c": [3], "e": {}}, "d": {"g": true}})
        );
        assert_eq!((twin.desired.version, twin.version), (3, 4));
        let metadata = &twin.desired.service_view()["$metadata"];
        assert_eq!(metadata["$lastUpdatedVersion"], 3);
        assert_eq!(metadata["d"]["g"]["$lastUpdatedVersion"], 3);
        assert!(metadata["a"].get("b").is_none() && metadata.get("no").is_none(), "{metadata}");
    }

    #[test]
    fn a_new_twin_has_the_versions_that_the_real_hub_shows() {
        let twin = Twin::new("t0");
        assert_eq!((twin.version, twin.etag().as_str()), (2, "AAAAAAAAAAE="));
        assert_eq!(twin.device_view(), json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));
    }

    #[test]
    fn every_limit_refuses_and_changes_nothing() {
        let nest = |levels| (1..levels).fold(json!({"k": 1}), |inner, _| json!({"k": inner}));
        let array = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        let strings = |count: usize, len| -> Value {
            (0..count)
                .map(|n| (format!("{n:04}"), Value::from("x".repeat(len))))
                .collect::<Map<_, _>>()
                .into()
        };
        let fits = [
            nest(DEPTH_MAX),
            json!({"k".repeat(KEY_LEN_MAX): 1}),
            strings(8, STRING_LEN_MAX - 4),
            json!({"n": INTEGER_MAX, "m": -INTEGER_MAX - 1, "f": 1.5e300}),
            json!({"k": array(DEPTH_MAX)}),
        ];
        for patch in fits {
            desire(&mut Twin::new("t"), patch).unwrap();
        }
        let breaks = [
            nest(DEPTH_MAX + 1),
            json!({"k": array(DEPTH_MAX + 1)}),
            json!({"k".repeat(KEY_LEN_MAX + 1): 1}),
            json!({"": 1}),
            json!({"a.b": 1}),
            json!({"$version": 1}),
            json!({"a": {"b c": 1}}),
            json!({"a\u{1}": 1}),
            json!({"a": "x".repeat(STRING_LEN_MAX + 1)}),
            json!({"a": [1, null]}),
            json!({"n": INTEGER_MAX + 1}),
            json!({"n": u64::MAX}),
            strings(9, STRING_LEN_MAX - 4),
        ];
        for patch in breaks {
            let mut twin = Twin::new("t");
            let text = patch.to_string();
            assert!(desire(&mut twin, patch).is_err(), "{}", &text[..text.len().min(80)]);
            assert_eq!((twin.version, twin.etag().as_str()), (2, "AAAAAAAAAAE="));
            assert!(twin.desired.values.is_empty());
        }
    }

    #[test]
    fn control_characters_and_empty_values_in_a_list_count_nothing() {
        let uncounted: Map<_, _> =
            (0..100).map(|n| (format!("{n:02}"), "\u{1}\u{85}\u{9f}".repeat(819).into())).collect();
        let mut twin = Twin::new("t");
        desire(&mut twin, uncounted.clone().into()).unwrap();
        assert_eq!(object_len(&twin.desired.values), 200, "the names");
        assert!(twin.device_view().to_string().len() > 500_000, "and all of it is there");
        desire(&mut twin, json!({"list": vec![""; 10_000], "one": "x".repeat(4096)})).unwrap();
        assert_eq!(object_len(&twin.desired.values), 200 + 4 + 3 + 4096);
    }

    #[test]
    fn replacing_forgets_what_is_not_named() {
        let mut twin = Twin::new("t0");
        desire(&mut twin, json!({"a": 1})).unwrap();
        twin.replace(&ServicePatch { tags: None, desired: Some(object(json!({"b": 2}))) }, "t").unwrap();
        assert_eq!(twin.desired.versioned(), json!({"b": 2, "$version": 3}));
    }
}
