use serde_json::{Map, Value, json};

use super::*;

/// A document that is plain JSON.
struct Json(Map<String, Value>);

impl Json {
    fn new(value: Value) -> Self {
        Self(value.as_object().unwrap().clone())
    }
}

impl Document for Json {
    fn resolve<'a>(&'a self, path: &Path) -> Operand<'a> {
        walk(&self.0, path.names())
    }
}

fn twin() -> Json {
    Json::new(json!({
        "deviceId": "d1", "status": "enabled", "version": 5, "lastActivityTime": "2026-05-07T00:50:38.0543092Z",
        "tags": {"floor": 3, "name": "O'Neil", "empty": null, "on": true, "a.b c": "odd", "list": [1], "in": 7},
        "properties": {"desired": {"$version": 4, "x": 1.5}, "reported": {"y": {"z": "wired"}}},
    }))
}

fn holds(condition: &str) -> bool {
    Query::parse(&format!("SELECT * FROM devices WHERE {condition}")).unwrap().matches(&twin())
}

#[test]
fn conditions_of_operators_are_decided() {
    for yes in [
        "tags.floor = 3",
        "tags.floor != 4 AND tags.floor <> 4",
        "tags.floor >= 3 and tags.floor <= 3 and not tags.floor > 3",
        "(tags.floor = 4 OR tags.on = true) AND deviceId = \"d1\"",
        "tags.floor = 4 OR tags.floor = 3 AND tags.on = true",
        "tags.floor IN [1, 3, 'x']",
        "tags.floor NIN [1, 2]",
        "tags.floor NOT IN [1, 2]",
        "deviceId in ['d1']",
        "tags.name = 'O\\'Neil' AND tags.name = \"O'Neil\"",
        "tags.name = 'O\\u0027Neil'",
        "tags.empty = null",
        "tags.[[a.b c]] = 'odd'",
        "tags.in = 7",
        "properties.desired.$version = 4",
        "Properties.Desired.x = 1.5 and DEVICEID = 'd1'",
        "properties.reported.y.z = 'wired'",
        "lastActivityTime > '2026-05-01'",
        "devices.deviceId = 'd1'",
        "is_defined(tags.empty) AND IS_DEFINED(tags.list) AND NOT is_defined(tags.no)",
        "is_null(tags.empty) AND is_number(tags.floor) AND is_string(deviceId) AND is_bool(tags.on)",
        "is_object(tags) AND is_array(tags.list) AND is_primitive(tags.floor) AND NOT is_primitive(tags)",
        "STARTSWITH(deviceId, 'd') AND endswith(deviceId, '1') AND contains(tags.name, 'Nei')",
        "tags.floor * 2 + 1 = 7 AND tags.floor - 5 = -2 AND 7 % 4 = 3 AND 0x10 = 16 AND 1e2 = 100",
        "length(deviceId) = 2 AND upper(deviceId) = 'D1' AND concat(deviceId, '!') = 'd1!'",
        "substring(tags.name, 2, 3) = 'Nei' AND index_of(tags.name, 'N') = 2 AND as_number('4') = 4",
        "tags.floor = 3 /* a comment */",
    ] {
        assert!(holds(yes), "{yes}");
    }
}

#[test]
fn what_is_undefined_or_of_another_type_selects_nothing() {
    for no in [
        "tags.no = 1",
        "tags.no != 1",
        "NOT tags.no = 1",
        "tags.no NIN [1]",
        "tags.no = null",
        "tags.floor = '3'",
        "tags.floor != '3'",
        "tags.list = tags.list",
        "tags.Floor = 3",
        "deviceId = 'D1'",
        "tags.name",
        "tags.floor AND tags.on = true",
        "deviceId + 1 = 2",
        "sqrt(-1) = sqrt(-1)",
        "undefined = undefined",
        "1 / 0 > 0",
    ] {
        assert!(!holds(no), "{no}");
    }
    assert!(holds("tags.no = 1 OR tags.on = true"), "one true part is enough");
}

#[test]
fn errors_say_where_and_what_was_expected() {
    for (text, position, problem) in [
        ("", 1, "expected SELECT, found the end"),
        ("SELECT", 7, "expected a property or an aggregate, found the end"),
        ("SELECT * FRM devices", 10, "expected FROM, found FRM"),
        ("SELECT * FROM c", 15, "expected devices, devices.modules or devices.jobs, found c"),
        ("SELECT * FROM devices.x", 23, "expected modules or jobs, found x"),
        ("SELECT * FROM devices WHERE", 28, "expected a property, a constant or a function, found the end"),
        ("SELECT * FROM devices WHERE a IN ('x')", 34, "expected [, found ("),
        (
            "SELECT * FROM devices WHERE a = 1 = 2",
            35,
            "expected an operator, the next clause or the end, found =",
        ),
        (
            "SELECT * FROM devices WHERE a LIKE 'x'",
            31,
            "expected an operator, the next clause or the end, found LIKE",
        ),
        ("SELECT * FROM devices WHERE STARTS_WITH(a, 'x')", 29, "there is no function STARTS_WITH"),
        ("SELECT * FROM devices WHERE is_defined()", 29, "is_defined does not take 0 arguments"),
        ("SELECT * FROM devices WHERE a = 'x", 33, "the string has no end"),
        (
            "SELECT * FROM devices WHERE a = 'O''Neil'",
            36,
            "expected an operator, the next clause or the end, found a string",
        ),
        ("SELECT * FROM devices WHERE a # 1", 31, "'#' means nothing here"),
        (
            "SELECT * FROM devices ORDER BY a",
            23,
            "expected an operator, the next clause or the end, found ORDER",
        ),
        ("SELECT deviceId, COUNT() FROM devices", 8, "deviceId is neither an aggregate nor in GROUP BY"),
        ("SELECT * FROM devices GROUP BY tags.a", 8, "GROUP BY needs columns, not *"),
        ("SELECT jobId FROM devices.jobs", 8, "of devices.jobs only SELECT * without GROUP BY is possible"),
        ("SELECT COUNT(*) FROM devices", 14, "expected ), found *"),
        ("SELECT MEDIAN(a) FROM devices", 8, "MEDIAN is no aggregate; expected COUNT, SUM, AVG, MIN or MAX"),
    ] {
        let error = Query::parse(text).unwrap_err();
        assert_eq!((error.position, error.problem.as_str()), (position, problem), "{text}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |levels: usize| {
        format!("SELECT * FROM devices WHERE {}1=1{}", "(".repeat(levels), ")".repeat(levels))
    };
    Query::parse(&nested(50)).unwrap();
    assert!(Query::parse(&nested(51)).unwrap_err().problem.contains("nested"));
    for endless in ["(", "NOT ", "-", "abs("] {
        let text = format!("SELECT * FROM devices WHERE {}", endless.repeat(8000 / endless.len()));
        assert!(Query::parse(&text).is_err(), "{endless}");
    }
    for chain in [" AND 1=1", " OR 1=1", "+1=1"] {
        let text = format!("SELECT * FROM devices WHERE 1=1{}", chain.repeat(900));
        let wide = if chain == "+1=1" { text.replace("1=1+", "1+") } else { text };
        Query::parse(&wide).unwrap().matches(&twin());
    }
    assert!(Query::parse(&"x".repeat(8193)).unwrap_err().problem.contains("longer"));
}

fn rows(query: &str, documents: &[Value]) -> Vec<Value> {
    let query = Query::parse(query).unwrap();
    let documents: Vec<Json> = documents.iter().cloned().map(Json::new).collect();
    let matching = documents.iter().filter(|document| query.matches(*document));
    if !query.is_aggregate() {
        return matching.filter_map(|document| query.project(document)).collect();
    }
    let mut groups = Groups::new(&query);
    matching.for_each(|document| groups.add(document).unwrap());
    groups.rows().map(|(_, row)| row).collect()
}

#[test]
fn projections_name_their_columns() {
    let documents = [json!({"deviceId": "a", "tags": {"x": {"y": 1}}}), json!({"deviceId": "b"})];
    assert_eq!(
        rows("SELECT DeviceId, tags.x.y, tags.x AS whole FROM devices", &documents),
        [json!({"deviceId": "a", "y": 1, "whole": {"y": 1}}), json!({"deviceId": "b"})]
    );
}

#[test]
fn groups_are_counted_and_summed() {
    let document = |group: Value, n: Value| json!({"tags": {"g": group, "n": n}});
    let documents = [
        document(json!("x"), json!(1)),
        document(json!("x"), json!(2.5)),
        document(json!("y"), json!("z")),
        json!({"tags": {}}),
    ];
    assert_eq!(
        rows(
            "SELECT tags.g AS g, COUNT() AS n, SUM(tags.n) AS s, AVG(tags.n) AS a, MIN(tags.n) AS l, MAX(tags.n) AS h \
             FROM devices GROUP BY tags.g",
            &documents
        ),
        [
            json!({"g": "x", "n": 2, "s": 3.5, "a": 1.75, "l": 1, "h": 2.5}),
            json!({"g": "y", "n": 1, "s": 0, "l": "z", "h": "z"}),
            json!({"n": 1, "s": 0}),
        ]
    );
    assert_eq!(rows("SELECT COUNT() FROM devices WHERE tags.g = 'no'", &documents), [json!({"$1": 0})]);
}

#[test]
fn conditions_that_name_devices_are_recognised() {
    for (condition, expected) in [
        ("deviceId = 'a'", Some(vec!["a"])),
        ("'a' = deviceId AND tags.x = 1", Some(vec!["a"])),
        ("tags.x = 1 AND deviceId IN ['b', 'a']", Some(vec!["a", "b"])),
        ("deviceId = 'a' OR tags.x = 1", None),
        ("deviceId NIN ['a']", None),
        ("NOT deviceId = 'a'", None),
        ("tags.deviceId = 'a'", None),
    ] {
        let query = Query::parse_condition(condition).unwrap();
        let named = query.named_devices().map(|ids| ids.into_iter().collect::<Vec<_>>());
        assert_eq!(named, expected, "{condition}");
    }
}

#[test]
fn a_condition_alone_may_name_its_collection() {
    for (text, source) in [
        ("", Source::Devices),
        ("*", Source::Devices),
        ("tags.a = 1", Source::Devices),
        ("FROM devices.modules WHERE moduleId = 'm'", Source::Modules),
        ("from devices.modules", Source::Modules),
    ] {
        assert_eq!(Query::parse_condition(text).unwrap().source, source, "{text}");
    }
    for wrong in ["* AND 1=1", "FROM devices.jobs WHERE 1=1", "SELECT * FROM devices", "tags.a ="] {
        assert!(Query::parse_condition(wrong).is_err(), "{wrong}");
    }
}

mod against_a_naive_evaluator {
    use proptest::prelude::*;

    use super::*;

    /// A condition as a tree, its text, and its value by the plainest reading of the rules.
    #[derive(Debug, Clone)]
    enum Naive {
        Compare(&'static str, &'static str, Value),
        In(&'static str, Vec<Value>, bool),
        Defined(&'static str),
        Not(Box<Naive>),
        And(Box<Naive>, Box<Naive>),
        Or(Box<Naive>, Box<Naive>),
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    impl Naive {
        fn text(&self) -> String {
            let shown = |value: &Value| match value {
                Value::String(text) => format!("'{text}'"),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    value.to_string()
                }
            };
            match self {
                Self::Compare(name, operator, value) => format!("tags.{name} {operator} {}", shown(value)),
                Self::In(name, items, negated) => format!(
                    "tags.{name} {} [{}]",
                    if *negated { "NIN" } else { "IN" },
                    items.iter().map(shown).collect::<Vec<_>>().join(", ")
                ),
                Self::Defined(name) => format!("is_defined(tags.{name})"),
                Self::Not(inner) => format!("NOT ({})", inner.text()),
                Self::And(left, right) => format!("({}) AND ({})", left.text(), right.text()),
                Self::Or(left, right) => format!("({}) OR ({})", left.text(), right.text()),
            }
        }

        fn value(&self, tags: &Map<String, Value>) -> Option<bool> {
            match self {
                Self::Compare(name, operator, value) => {
                    let order = compare(tags.get(*name)?, value)?;
                    Some(match *operator {
                        "=" => order.is_eq(),
                        "!=" | "<>" => order.is_ne(),
                        "<" => order.is_lt(),
                        "<=" => order.is_le(),
                        ">" => order.is_gt(),
                        _ => order.is_ge(),
                    })
                }
                Self::In(name, items, negated) => {
                    let value = tags.get(*name)?;
                    Some(
                        items.iter().any(|item| compare(value, item).is_some_and(|order| order.is_eq()))
                            != *negated,
                    )
                }
                Self::Defined(name) => Some(tags.contains_key(*name)),
                Self::Not(inner) => inner.value(tags).map(|value| !value),
                Self::And(left, right) => match (left.value(tags), right.value(tags)) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                },
                Self::Or(left, right) => match (left.value(tags), right.value(tags)) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), Some(false)) => Some(false),
                    _ => None,
                },
            }
        }
    }

    fn compare(left: &Value, right: &Value) -> Option<std::cmp::Ordering> {
        match (left, right) {
            (Value::Null, Value::Null) => Some(std::cmp::Ordering::Equal),
            (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
            (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            _ => None,
        }
    }

    fn constant() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2..3i64).prop_map(Value::from),
            (0..3u8).prop_map(|n| Value::from(f64::from(n) / 2.0)),
            "[a-c]{0,2}".prop_map(Value::from),
        ]
    }

    fn condition() -> impl Strategy<Value = Naive> {
        let name = || proptest::sample::select(&NAMES[..]);
        let operator = proptest::sample::select(&["=", "!=", "<>", "<", "<=", ">", ">="][..]);
        let leaf = prop_oneof![
            (name(), operator, constant())
                .prop_map(|(name, operator, value)| Naive::Compare(name, operator, value)),
            (name(), proptest::collection::vec(constant(), 0..4), any::<bool>())
                .prop_map(|(name, items, negated)| Naive::In(name, items, negated)),
            name().prop_map(Naive::Defined),
        ];
        leaf.prop_recursive(5, 40, 2, |inner| {
            let pair = (inner.clone(), inner.clone());
            prop_oneof![
                inner.prop_map(|inner| Naive::Not(Box::new(inner))),
                pair.clone().prop_map(|(left, right)| Naive::And(Box::new(left), Box::new(right))),
                pair.prop_map(|(left, right)| Naive::Or(Box::new(left), Box::new(right))),
            ]
        })
    }

    fn tags() -> impl Strategy<Value = Map<String, Value>> {
        let value = prop_oneof![constant(), Just(json!([1])), Just(json!({"x": 1}))];
        proptest::collection::btree_map(
            proptest::sample::select(&NAMES[..]).prop_map(str::to_owned),
            value,
            0..4,
        )
        .prop_map(|tags| tags.into_iter().collect())
    }

    proptest! {
        #[test]
        fn both_agree(condition in condition(), tags in tags()) {
            let text = condition.text();
            let query = Query::parse_condition(&text).unwrap();
            let expected = condition.value(&tags) == Some(true);
            let document = Json::new(json!({"tags": tags}));
            prop_assert_eq!(query.matches(&document), expected, "{}", text);
        }

        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,80}") {
            let _ = Query::parse(&text);
            let _ = Query::parse(&format!("SELECT * FROM devices WHERE {text}"));
            let _ = Query::parse_condition(&text);
        }
    }
}
