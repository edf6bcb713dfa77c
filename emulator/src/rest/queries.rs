//! `POST /devices/query`: twins, rows made of twins, and the jobs of devices, page by page.

use hyper::header::HeaderName;
use serde::Deserialize;
use serde_json::Value;

use super::{Call, Reply};
use crate::hub::Hub;
use crate::query::{Columns, Query, Source};
use crate::refusal::{ErrorCode, Refusal};

/// Most rows on one page (IoT Hub documentation, "IoT Hub query language": page size), and how many without
/// `x-ms-max-item-count`.
const PAGE_LEN_MAX: usize = 1000;
const PAGE_LEN: usize = 100;

const MAX_ITEM_COUNT: HeaderName = HeaderName::from_static("x-ms-max-item-count");
const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation");
const ITEM_TYPE: HeaderName = HeaderName::from_static("x-ms-item-type");

pub(super) async fn query(hub: &Hub, call: &Call<'_>) -> Result<Reply, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        query: String,
    }
    let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
    let Body { query } = call.json()?;
    let query = Query::parse(&query).map_err(|error| invalid(error.to_string()))?;
    let count = match call.header(&MAX_ITEM_COUNT) {
        None => PAGE_LEN,
        Some(text) => text
            .parse()
            .ok()
            .filter(|count| (1..=PAGE_LEN_MAX).contains(count))
            .ok_or_else(|| invalid(format!("x-ms-max-item-count is 1 to {PAGE_LEN_MAX}")))?,
    };
    let continuation = call.header(&CONTINUATION).filter(|text| !text.is_empty());
    // The item types are those of the SDK's model QueryResult.
    let (page, item_type) = match (query.source, &query.columns) {
        (Source::Jobs, _) => (hub.search_jobs(&query, count, continuation).await?, "deviceJob"),
        (Source::Devices | Source::Modules, Columns::All) => {
            (hub.search(&query, count, continuation).await?, "twin")
        }
        (Source::Devices | Source::Modules, Columns::Some(_)) => {
            (hub.search(&query, count, continuation).await?, "raw")
        }
    };
    let reply = Reply::ok(Value::Array(page.rows)).header(ITEM_TYPE, item_type);
    Ok(match page.continuation {
        Some(continuation) => reply.header(CONTINUATION, continuation),
        None => reply,
    })
}
