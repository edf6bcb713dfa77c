//! Questions in the hub's query language (IoT Hub documentation, "IoT Hub query language").
//!
//! A device may fill its twin with megabytes that are not ours, so only what concerns the renewal of keys is selected. Rows come
//! back flat, under the names that are given here (the grammar wants a name for each), and are put into a twin's form again.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use twinkey_contract::Identity;

/// Longest query, in characters (IoT Hub documentation, "Queries for IoT Hub device and module twins", limitations).
const QUERY_LEN_MAX: usize = 8192;
/// Most devices that one query names: as many rows as a page has.
const NAMED_MAX: usize = 100;

/// The collection that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collection {
    Devices,
    Modules,
}

/// What is wanted of each twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    /// What the registry knows of it: short, whatever the device does.
    Identity,
    /// That, and all that concerns the renewal of keys.
    Renewal,
    /// Everything, for hubs that refuse to select parts: the documentation once says that they may.
    Whole,
}

/// A query over twins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(super) collection: Collection,
    pub(super) columns: Columns,
    condition: Option<String>,
}

/// Fields of a twin that the hub itself writes, in its spelling.
const OF_IDENTITY: [&str; 6] =
    ["deviceId", "etag", "status", "connectionState", "lastActivityTime", "authenticationType"];
/// Our sections: where they are in a twin, and under which name they come back.
const OF_RENEWAL: [(&str, &str); 4] = [
    ("tags.keyRenewal", "renewalTags"),
    ("properties.desired.keyRenewal", "renewalDesired"),
    ("properties.desired.$metadata.keyRenewal.$lastUpdated", "renewalDesiredAt"),
    ("properties.reported.keyRenewal", "renewalReported"),
];

impl Collection {
    const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Modules => "devices.modules",
        }
    }
}

impl Query {
    /// Over the twins that fit `condition`, which goes after `WHERE`; over all without one.
    pub(crate) fn new(collection: Collection, columns: Columns, condition: Option<&str>) -> Self {
        Self { collection, columns, condition: condition.map(str::to_owned) }
    }

    /// About these devices, or the modules of these devices, in as few queries as the hub's limits allow.
    pub(crate) fn of_devices<'a>(
        collection: Collection,
        columns: Columns,
        device_ids: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Self> {
        // The longest form that may be asked, with some room.
        let longest = Self::new(collection, Columns::Renewal, Some("")).text().len();
        let room = QUERY_LEN_MAX.saturating_sub(longest + "deviceId IN []".len());
        let (mut lists, mut list, mut count) = (Vec::new(), String::new(), 0);
        for id in device_ids {
            let quoted = quote(id);
            if count == NAMED_MAX || (count > 0 && list.len() + ", ".len() + quoted.len() > room) {
                lists.push(std::mem::take(&mut list));
                count = 0;
            }
            if count > 0 {
                list.push_str(", ");
            }
            list.push_str(&quoted);
            count += 1;
        }
        if count > 0 {
            lists.push(list);
        }
        let of_list = |list| Self::new(collection, columns, Some(&format!("deviceId IN [{list}]")));
        lists.into_iter().map(of_list).collect()
    }

    /// About these identities, and perhaps other modules of the same names; `None` if they are too many for one query.
    pub(super) fn of_identities(
        collection: Collection,
        columns: Columns,
        identities: &[Identity],
    ) -> Option<Self> {
        let list = |ids: BTreeSet<&str>| ids.into_iter().map(quote).collect::<Vec<_>>().join(", ");
        let devices = list(identities.iter().map(|identity| identity.device_id.as_str()).collect());
        let modules = list(identities.iter().filter_map(|identity| identity.module_id.as_deref()).collect());
        let condition = match collection {
            Collection::Devices => format!("deviceId IN [{devices}]"),
            Collection::Modules => format!("deviceId IN [{devices}] AND moduleId IN [{modules}]"),
        };
        let query = Self::new(collection, columns, Some(&condition));
        (query.text().chars().count() <= QUERY_LEN_MAX).then_some(query)
    }

    /// The same twins with other columns.
    pub(super) fn with(&self, columns: Columns) -> Self {
        Self { columns, ..self.clone() }
    }

    pub(crate) fn text(&self) -> String {
        let module = if self.collection == Collection::Modules { ", moduleId AS moduleId" } else { "" };
        let of_identity = || OF_IDENTITY.map(|name| format!("{name} AS {name}")).join(", ") + module;
        let columns = match self.columns {
            Columns::Identity => of_identity(),
            Columns::Renewal => {
                format!(
                    "{}, {}",
                    of_identity(),
                    OF_RENEWAL.map(|(path, name)| format!("{path} AS {name}")).join(", ")
                )
            }
            Columns::Whole => "*".to_owned(),
        };
        let from = self.collection.name();
        match &self.condition {
            Some(condition) => format!("SELECT {columns} FROM {from} WHERE {condition}"),
            None => format!("SELECT {columns} FROM {from}"),
        }
    }
}

/// A row as the twin that it is a part of.
pub(super) fn twin_of_row(mut row: Value) -> Value {
    let Some(fields) = row.as_object_mut() else { return row };
    // A whole one.
    if fields.contains_key("properties") {
        return row;
    }
    let mut take = |index: usize| OF_RENEWAL.get(index).and_then(|(_, name)| fields.remove(*name));
    let section = |value: Option<Value>| {
        let mut section = Map::new();
        section.extend(value.map(|value| ("keyRenewal".to_owned(), value)));
        section
    };
    let (tags, mut desired) = (section(take(0)), section(take(1)));
    if let Some(at) = take(2) {
        desired.insert("$metadata".to_owned(), json!({"keyRenewal": {"$lastUpdated": at}}));
    }
    let reported = section(take(3));
    fields.insert("tags".to_owned(), Value::Object(tags));
    fields.insert("properties".to_owned(), json!({"desired": desired, "reported": reported}));
    row
}

/// A text as the language writes it: in single quotes, and what means something there after a backslash (IoT Hub query language,
/// `string_literal`: "Allowed escapes: `\'`, `\"`, `\\`, `\uXXXX`"). Of the characters of an id, that is the apostrophe.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_by_the_languages_own_escapes() {
        assert_eq!(quote("pump-7"), "'pump-7'");
        assert_eq!(quote("o'clock"), r"'o\'clock'");
        assert_eq!(quote(r"a\b"), r"'a\\b'");
        assert_eq!(quote("x'] OR 1=1 OR deviceId IN ['"), r"'x\'] OR 1=1 OR deviceId IN [\''");
    }

    #[test]
    fn only_what_is_needed_is_selected_and_every_column_has_a_name() {
        let text = |collection, columns| Query::new(collection, columns, None).text();
        assert_eq!(
            text(Collection::Modules, Columns::Identity),
            "SELECT deviceId AS deviceId, etag AS etag, status AS status, connectionState AS connectionState, \
             lastActivityTime AS lastActivityTime, authenticationType AS authenticationType, moduleId AS moduleId \
             FROM devices.modules"
        );
        let renewal = text(Collection::Devices, Columns::Renewal);
        for section in ["tags", "properties.desired", "properties.reported"] {
            assert!(renewal.contains(&format!(", {section}.keyRenewal AS ")), "{renewal}");
        }
        let condition = Query::new(Collection::Devices, Columns::Whole, Some("tags.site = 'A'"));
        assert_eq!(condition.text(), "SELECT * FROM devices WHERE tags.site = 'A'");
    }

    #[test]
    fn a_row_becomes_the_twin_that_it_is_a_part_of() {
        let row = json!({"deviceId": "d", "etag": "e", "renewalTags": {"done": true}, "renewalDesired": {"rotation": "r"},
            "renewalDesiredAt": "2026-11-29T17:00:00Z", "renewalReported": {"contract": 1}});
        assert_eq!(
            twin_of_row(row),
            json!({"deviceId": "d", "etag": "e", "tags": {"keyRenewal": {"done": true}}, "properties": {
                "desired": {"keyRenewal": {"rotation": "r"}, "$metadata": {"keyRenewal": {"$lastUpdated": "2026-11-29T17:00:00Z"}}},
                "reported": {"keyRenewal": {"contract": 1}}}})
        );
        let empty = json!({"deviceId": "d", "tags": {}, "properties": {"desired": {}, "reported": {}}});
        assert_eq!(twin_of_row(json!({"deviceId": "d"})), empty);
        let whole = json!({"deviceId": "d", "properties": {"reported": {"renewalTags": 1}}});
        assert_eq!(twin_of_row(whole.clone()), whole);
        assert_eq!(twin_of_row(json!(7)), json!(7));
    }

    #[test]
    fn lists_of_devices_keep_to_the_length_and_the_number_that_a_hub_takes() {
        for (len, count, most) in [(2, 250, 100), (128, 250, 58), (128, 1, 58), (1, 0, 100)] {
            let ids: Vec<String> = (0..count).map(|n| format!("{n:0>len$}")).collect();
            for collection in [Collection::Devices, Collection::Modules] {
                let queries = Query::of_devices(collection, Columns::Renewal, ids.iter().map(String::as_str));
                let texts: Vec<String> = queries.iter().map(Query::text).collect();
                let named = |text: &str| text.matches('\'').count() / 2;
                assert_eq!(texts.iter().map(|text| named(text)).sum::<usize>(), count);
                assert!(
                    texts.iter().all(|text| text.len() <= QUERY_LEN_MAX && named(text) <= most),
                    "{texts:?}"
                );
                assert_eq!(texts.len(), count.div_ceil(most), "{len}: {}", texts.len());
            }
        }
        // Every character of these is written as two.
        let ids: Vec<String> = (0..100).map(|_| "'".repeat(128)).collect();
        let queries =
            Query::of_devices(Collection::Devices, Columns::Renewal, ids.iter().map(String::as_str));
        assert!(queries.iter().all(|query| query.text().len() <= QUERY_LEN_MAX) && queries.len() > 3);
    }
}
