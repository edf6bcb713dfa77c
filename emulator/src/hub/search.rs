//! Queries over the registry. The lock is let go every few thousand twins, so that devices never wait for a query; a
//! page is therefore no snapshot, as in the real hub, whose query results are "eventually consistent".

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::Hub;
use crate::identity::IdentityId;
use crate::query::{GROUPS_MAX, Groups, Query, Source};
use crate::refusal::{ErrorCode, Refusal};
use crate::twin_document::TwinDocument;

/// What one hold of the lock may cost: a twin that is looked at costs 1, one that is taken [`TAKEN_COST`].
const HOLD_COST_MAX: usize = 4000;
const TAKEN_COST: usize = 40;
/// Bytes of rows after which a page is full, however many rows were asked for.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One page of a query's answer.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Value>,
    /// Where the next page begins; `None` after the last.
    pub(crate) continuation: Option<String>,
}

/// Where a page begins. It names what came last, so that it stays right when others come and go.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    Beginning,
    /// After this identity; so many rows were served before.
    Identity(u64, IdentityId),
    /// After the group with this key.
    Group(String),
}

impl Start {
    fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        match text.split_at_checked(1)? {
            ("i", rest) => {
                let (served, id) = rest.split_once(' ')?;
                Some(Self::Identity(served.parse().ok()?, IdentityId::parse(id)?))
            }
            ("g", key) => Some(Self::Group(key.to_owned())),
            _ => None,
        }
    }

    fn encode(&self) -> Option<String> {
        let text = match self {
            Self::Beginning => return None,
            Self::Identity(served, id) => format!("i{served} {id}"),
            Self::Group(key) => format!("g{key}"),
        };
        Some(URL_SAFE_NO_PAD.encode(text))
    }
}

impl Hub {
    /// Up to `count` rows of a query about twins.
    pub(crate) async fn search(
        &self,
        query: &Query,
        count: usize,
        continuation: Option<&str>,
    ) -> Result<Page, Refusal> {
        let invalid = || Refusal::new(ErrorCode::ArgumentInvalid, "x-ms-continuation is not one of ours");
        let start = continuation.map_or(Some(Start::Beginning), Start::decode).ok_or_else(invalid)?;
        match start {
            start @ (Start::Beginning | Start::Group(_)) if query.is_aggregate() => {
                let after = match start {
                    Start::Group(key) => Some(key),
                    Start::Beginning | Start::Identity(..) => None,
                };
                self.search_groups(query, count, after.as_deref()).await
            }
            Start::Beginning => Ok(self.search_twins(query, count, 0, None).await),
            Start::Identity(served, id) if !query.is_aggregate() => {
                Ok(self.search_twins(query, count, served, Some(id)).await)
            }
            Start::Identity(..) | Start::Group(_) => Err(invalid()),
        }
    }

    async fn search_twins(
        &self,
        query: &Query,
        count: usize,
        served: u64,
        after: Option<IdentityId>,
    ) -> Page {
        let left = query
            .top
            .map_or(usize::MAX, |top| usize::try_from(top.saturating_sub(served)).unwrap_or(usize::MAX));
        let (count, is_last) = if left <= count { (left, true) } else { (count, false) };
        let mut page = Page::default();
        if count == 0 {
            return page;
        }
        let (mut bytes, mut last) = (0, None);
        let has_more = self
            .visit(query, after, |twin| {
                if page.rows.len() == count || bytes > PAGE_BYTES_MAX {
                    return ControlFlow::Break(());
                }
                let row = query.project(twin).unwrap_or_else(|| twin.view());
                bytes += len(&row);
                page.rows.push(row);
                last = Some(twin.id.clone());
                ControlFlow::Continue(())
            })
            .await
            .is_some();
        if has_more && !(is_last && page.rows.len() == count) {
            let served = served + page.rows.len() as u64;
            page.continuation = last.and_then(|last| Start::Identity(served, last).encode());
        }
        page
    }

    async fn search_groups(&self, query: &Query, count: usize, after: Option<&str>) -> Result<Page, Refusal> {
        let groups = self.group(query).await?;
        let top = query.top.map_or(usize::MAX, |top| usize::try_from(top).unwrap_or(usize::MAX));
        let mut rows = groups
            .rows()
            .take(top)
            .skip_while(|(key, _)| after.is_some_and(|after| *key <= after))
            .peekable();
        let mut page = Page::default();
        let mut last = None;
        for (key, row) in rows.by_ref().take(count) {
            page.rows.push(row);
            last = Some(key.to_owned());
        }
        if rows.peek().is_some() {
            page.continuation = last.and_then(|key| Start::Group(key).encode());
        }
        Ok(page)
    }

    async fn group<'q>(&self, query: &'q Query) -> Result<Groups<'q>, Refusal> {
        let mut groups = Groups::new(query);
        let too_many = self
            .visit(query, None, |twin| match groups.add(twin) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
            .await;
        match too_many {
            None => Ok(groups),
            Some(()) => {
                let message = format!("the query makes more than {GROUPS_MAX} groups");
                Err(Refusal::new(ErrorCode::ArgumentInvalid, message))
            }
        }
    }

    /// How many rows a query has.
    pub(crate) async fn count_rows(&self, query: &Query) -> Result<usize, Refusal> {
        if query.is_aggregate() {
            return Ok(self.group(query).await?.len());
        }
        let mut count = 0;
        let counting = |_: &TwinDocument<'_>| {
            count += 1;
            ControlFlow::<()>::Continue(())
        };
        self.visit(query, None, counting).await;
        Ok(count)
    }

    /// The identities that match, in the order of ids.
    pub(crate) async fn matching_ids(&self, query: &Query) -> Vec<IdentityId> {
        let mut ids = Vec::new();
        let collecting = |twin: &TwinDocument<'_>| {
            ids.push(twin.id.clone());
            ControlFlow::<()>::Continue(())
        };
        self.visit(query, None, collecting).await;
        ids
    }

    /// Shows `look` every twin after `after` that matches, in the order of ids, until it breaks off.
    pub(super) async fn visit<T>(
        &self,
        query: &Query,
        mut after: Option<IdentityId>,
        mut look: impl FnMut(&TwinDocument<'_>) -> ControlFlow<T>,
    ) -> Option<T> {
        let named: Option<Vec<IdentityId>> =
            query.named_devices().map(|names| names.into_iter().filter_map(IdentityId::device).collect());
        loop {
            let last = {
                let (state, now) = (self.lock(), self.clock.now());
                let mut cost = 0;
                let mut last = None;
                for (id, identity) in state.registry.some_after(named.as_deref(), after.as_ref()) {
                    cost += 1;
                    let is_of_source = match query.source {
                        Source::Devices => id.module_id().is_none(),
                        Source::Modules => id.module_id().is_some(),
                        Source::Jobs => false,
                    };
                    let twin = TwinDocument { id, identity, now };
                    if is_of_source && query.matches(&twin) {
                        cost += TAKEN_COST;
                        if let ControlFlow::Break(outcome) = look(&twin) {
                            return Some(outcome);
                        }
                    }
                    if cost >= HOLD_COST_MAX {
                        last = Some(id.clone());
                        break;
                    }
                }
                last
            };
            after = Some(last?);
            tokio::task::yield_now().await;
        }
    }
}

/// Roughly the bytes of a row as JSON.
fn len(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 6,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| len(item) + 1).sum::<usize>() + 2,
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + 4 + len(value)).sum::<usize>() + 2
        }
    }
}
