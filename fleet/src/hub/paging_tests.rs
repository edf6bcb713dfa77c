//! Pages of every kind: too long, without end, in circles.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::hostile_tests::HostileHub;
use super::{Collection, Columns, Found, HubError, Query};

/// What is read of one answer, in bytes.
const ANSWER_LEN_MAX: usize = 200_000;
/// More than that.
const TOO_LONG: usize = ANSWER_LEN_MAX + 1;

/// A hub of `pump-00`, `pump-01`, …, some of which have filled their twins. What it was asked is kept.
struct World {
    hub: HostileHub,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Clone, Debug)]
struct Asked {
    query: String,
    page_len: usize,
    rows: usize,
}

/// Bytes in each twin, or how a page is answered in the hub's place.
#[derive(Clone, Copy)]
struct Manner {
    devices: usize,
    twin_len: fn(usize) -> usize,
    /// Whether it refuses to select parts of twins.
    is_old: bool,
}

const GOOD: Manner = Manner { devices: 25, twin_len: |_| 1000, is_old: false };

fn name(number: usize) -> String {
    format!("pump-{number:02}")
}

impl World {
    fn start(manner: Manner) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        let hub = HostileHub::answering(Arc::new(move |head: &[String], body: &[u8]| {
            answer(manner, &kept, head, body)
        }));
        let hub = hub.whose_answers_are_read_up_to(ANSWER_LEN_MAX);
        Self { hub, asked }
    }

    async fn all(&self) -> Result<Found, HubError> {
        self.hub.hub.query_all(Query::new(Collection::Devices, Columns::Renewal, Some("1 = 1"))).await
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Continuations hold the query that they belong to, and are good for no other.
fn answer(manner: Manner, asked: &Mutex<Vec<Asked>>, head: &[String], body: &[u8]) -> Vec<u8> {
    let header = |name: &str| head.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    let query = serde_json::from_slice::<Value>(body).unwrap()["query"].as_str().unwrap().to_owned();
    let page_len: usize = header("x-ms-max-item-count").unwrap().parse().unwrap();
    let is_whole = query.starts_with("SELECT *");
    if manner.is_old && !is_whole {
        return respond(400, "", &json!({"Message": "ErrorCode:ArgumentInvalid;SELECT * only"}));
    }
    let from = query.split_once(" FROM ").unwrap().1;
    let mark = from.len().to_string() + if query.contains("renewalReported") { "r" } else { "i" };
    let begin = header("x-ms-continuation").map_or(0, |text| {
        let (of, begin) = text.split_once('-').unwrap();
        assert_eq!(of, mark, "a continuation of another query");
        begin.parse().unwrap()
    });
    let is_asked =
        |number: &usize| !query.contains(" IN [") || query.contains(&format!("'{}'", name(*number)));
    let fitting: Vec<usize> = (0..manner.devices).filter(is_asked).collect();
    let rows: Vec<Value> = fitting
        .iter()
        .skip(begin)
        .take(page_len)
        .map(|number| {
            let mut row = json!({"deviceId": name(*number), "etag": "1"});
            if query.contains("renewalReported") {
                row["renewalReported"] = json!({"fill": "x".repeat((manner.twin_len)(*number))});
            } else if is_whole {
                row["properties"] =
                    json!({"reported": {"keyRenewal": {"fill": "x".repeat((manner.twin_len)(*number))}}});
            }
            row
        })
        .collect();
    asked.lock().unwrap().push(Asked { query, page_len, rows: rows.len() });
    let end = begin + rows.len();
    let more =
        if end < fitting.len() { format!("x-ms-continuation: {mark}-{end}\r\n") } else { String::new() };
    respond(200, &more, &Value::Array(rows))
}

fn respond(status: u16, headers: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn names(twins: &[Value]) -> Vec<String> {
    let mut names: Vec<_> = twins.iter().map(|twin| twin["deviceId"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_fit_are_read_once() {
    let world = World::start(GOOD);
    let found = world.all().await.unwrap();
    assert_eq!(names(&found.twins), (0..25).map(name).collect::<Vec<_>>());
    assert!(
        found.too_long.is_empty()
            && found.twins[0]["properties"]["reported"]["keyRenewal"]["fill"].is_string()
    );
    assert_eq!(world.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_too_long_is_asked_for_in_halves() {
    // None is too long by itself.
    let world = World::start(Manner { twin_len: |_| ANSWER_LEN_MAX / 8, ..GOOD });
    let found = world.all().await.unwrap();
    assert_eq!((found.twins.len(), found.too_long.len()), (25, 0));
    let lens: Vec<usize> = world.asked().iter().map(|asked| asked.page_len).collect();
    assert_eq!(&lens[..5], [100, 50, 25, 12, 6], "{lens:?}");
    assert!(world.asked().iter().all(|asked| asked.query.contains("renewalReported")), "no need for names");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_is_too_long_is_left_out_by_name_and_all_others_are_found() {
    for large in [vec![0], vec![24], vec![7], vec![6, 7, 19], (0..25).collect()] {
        let is_large: HashMap<usize, bool> =
            (0..25).map(|number| (number, large.contains(&number))).collect();
        let twin_len: fn(usize) -> usize = match large.as_slice() {
            [0] => |number| if number == 0 { TOO_LONG } else { 10 },
            [24] => |number| if number == 24 { TOO_LONG } else { 10 },
            [7] => |number| if number == 7 { TOO_LONG } else { 10 },
            [6, 7, 19] => |number| if [6, 7, 19].contains(&number) { TOO_LONG } else { 10 },
            _ => |_| TOO_LONG,
        };
        let world = World::start(Manner { twin_len, ..GOOD });
        let found = world.all().await.unwrap();
        let expected = |wanted: bool| (0..25).filter(|n| is_large[n] == wanted).map(name).collect::<Vec<_>>();
        assert_eq!(names(&found.too_long), expected(true));
        assert_eq!(names(&found.twins), expected(false));
        assert!(found.too_long[0]["properties"]["reported"].as_object().unwrap().is_empty());
        // Seven pages, the ids, and at most fourteen lists for each.
        let most = 8 + 14 * large.len();
        assert!(world.asked().len() <= most, "{large:?}: {} queries", world.asked().len());
        assert!(
            world.asked().iter().any(|asked| !asked.query.contains("renewalReported") && asked.rows == 25)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_selects_no_parts_is_asked_for_whole_twins() {
    let world = World::start(Manner { is_old: true, ..GOOD });
    let found = world.all().await.unwrap();
    assert_eq!(found.twins.len(), 25);
    // Whose twin is too long can't be told there.
    let world = World::start(Manner { is_old: true, twin_len: |_| TOO_LONG, ..GOOD });
    let error = world.all().await.unwrap_err();
    assert!(matches!(error, HubError::TooLong { .. }), "{error}");
}

/// Pages with continuations by a rule, all of them empty or with a device each.
async fn never_ending(continuation: fn(usize) -> String, has_rows: bool) -> (HubError, usize) {
    let count = Mutex::new(0);
    let hub = HostileHub::answering(Arc::new(move |_: &[String], _: &[u8]| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let rows: Vec<Value> =
            if has_rows { (0..50_000).map(|_| json!({"deviceId": "d"})).collect() } else { Vec::new() };
        respond(200, &format!("x-ms-continuation: {}\r\n", continuation(*count)), &Value::Array(rows))
    }));
    let query = Query::new(Collection::Devices, Columns::Renewal, None);
    let error = hub.hub.query_all(query).await.unwrap_err();
    (error, hub.asked())
}

#[tokio::test(flavor = "multi_thread")]
async fn continuations_that_go_in_a_circle_end() {
    for (circle, asked) in [(1, 2), (2, 3), (7, 8)] {
        let continuation: fn(usize) -> String = match circle {
            1 => |_| "again".to_owned(),
            2 => |count| (count % 2).to_string(),
            _ => |count| (count % 7).to_string(),
        };
        let (error, pages) = never_ending(continuation, false).await;
        assert!(matches!(error, HubError::Endless { .. }), "{error}");
        assert_eq!(pages, asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_devices_than_a_hub_can_have_end() {
    let (error, pages) = never_ending(|count| count.to_string(), true).await;
    assert!(matches!(error, HubError::Endless { pages: 21 }), "{error}");
    assert_eq!(pages, 21);
}
