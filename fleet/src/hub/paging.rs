//! Reads what a query finds, whatever is in it.
//!
//! One device can make its twin longer than the longest answer that is read. A page that is too long is asked for again with half as many
//! twins. If one twin alone is too long, the way past it is not another query's continuation, which hubs don't promise to accept:
//! the ids of all that fit are read, which are short, and the twins that are left are asked for by name. So the one is known
//! by name, and everything else goes on.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;
use twinkey_contract::Identity;

use super::query::{Columns, Query, twin_of_row};
use super::registry::Page;
use super::{Hub, HubError};

/// Most twins on one page (IoT Hub query language, paging).
const PAGE_LEN: u16 = 100;
/// Most devices that a hub has (IoT Hub quotas).
const DEVICES_MAX: usize = 1_000_000;
/// Most pages of one query: twice as many as all devices take, because pages may have to be short.
const PAGES_MAX: usize = 2 * DEVICES_MAX / PAGE_LEN as usize;

/// What a query found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Twins, as far as they were selected.
    pub(crate) twins: Vec<Value>,
    /// Twins that are too long to be read: only what the registry knows of them.
    pub(crate) too_long: Vec<Value>,
}

/// The result of a query, part by part.
pub(crate) struct Reading<'a> {
    hub: &'a Hub,
    query: Query,
    stage: Stage,
    /// Who was found on pages.
    found: HashSet<(String, Option<String>)>,
}

enum Stage {
    Pages(Pages),
    /// The rest, by name; the last are asked for first.
    Named(Vec<Vec<Value>>),
}

/// Where a query's pages have got to.
struct Pages {
    page_len: u16,
    /// Whether a page that is too long is asked for in halves.
    is_halved: bool,
    continuation: Option<String>,
    is_over: bool,
    pages: usize,
    items: usize,
    /// Hashes of the continuations that came.
    seen: HashSet<u64>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(hub: &'a Hub, query: Query) -> Self {
        Self { hub, query, stage: Stage::Pages(Pages::default()), found: HashSet::new() }
    }

    /// The next part; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<Found>, HubError> {
        loop {
            match &mut self.stage {
                Stage::Pages(pages) if pages.is_over => return Ok(None),
                Stage::Pages(pages) => match pages.next(self.hub, &self.query).await {
                    Ok(rows) => {
                        self.found.extend(rows.iter().filter_map(identity_of));
                        return Ok(Some(Found { twins: self.read(rows), too_long: Vec::new() }));
                    }
                    // Of a whole twin, nobody says whose it is before it is read.
                    Err(error @ HubError::TooLong { .. }) if self.query.columns == Columns::Whole => {
                        return Err(error);
                    }
                    Err(HubError::TooLong { .. }) => self.stage = Stage::Named(self.rest().await?),
                    // The condition may be wrong, too. Then the second refusal says so.
                    Err(error)
                        if error.status() == Some(400)
                            && self.query.columns == Columns::Renewal
                            && pages.pages == 0 =>
                    {
                        self.query = self.query.with(Columns::Whole);
                    }
                    Err(error) => return Err(error),
                },
                Stage::Named(chunks) => {
                    let Some(chunk) = chunks.pop() else { return Ok(None) };
                    if let Some(found) = self.ask_by_name(chunk).await? {
                        return Ok(Some(found));
                    }
                }
            }
        }
    }

    /// All at once.
    pub(crate) async fn all(mut self) -> Result<Found, HubError> {
        let mut all = Found::default();
        while let Some(part) = self.next().await? {
            all.twins.extend(part.twins);
            all.too_long.extend(part.too_long);
        }
        Ok(all)
    }

    /// Those who were not on a page yet, in lists that can be asked for by name.
    async fn rest(&self) -> Result<Vec<Vec<Value>>, HubError> {
        let query = self.query.with(Columns::Identity);
        let mut rows = read_all(self.hub, &query).await?;
        rows.retain(|row| identity_of(row).is_some_and(|id| !self.found.contains(&id)));
        // Modules of one device stay together.
        rows.sort_by_cached_key(identity_of);
        Ok(rows.chunks(PAGE_LEN.into()).map(<[Value]>::to_vec).collect())
    }

    /// Asks for these twins; `None` if that has to be done in smaller lists.
    async fn ask_by_name(&mut self, chunk: Vec<Value>) -> Result<Option<Found>, HubError> {
        let wanted: HashSet<_> = chunk.iter().filter_map(identity_of).collect();
        let (collection, columns) = (self.query.collection, self.query.columns);
        let identities = chunk
            .iter()
            .filter_map(identity_of)
            .map(|(device_id, module_id)| Identity { device_id, module_id });
        let query = Query::of_identities(collection, columns, &identities.collect::<Vec<_>>());
        let asked = match query {
            Some(query) => read_all(self.hub, &query).await,
            // Of one identity alone, no query is that long.
            None if chunk.len() < 2 => return Ok(Some(Found { twins: Vec::new(), too_long: chunk })),
            None => return self.halve(chunk),
        };
        match asked {
            Ok(rows) => {
                let rows =
                    rows.into_iter().filter(|row| identity_of(row).is_some_and(|id| wanted.contains(&id)));
                Ok(Some(Found { twins: self.read(rows.collect()), too_long: Vec::new() }))
            }
            Err(HubError::TooLong { .. }) if chunk.len() < 2 => {
                let too_long = chunk.into_iter().map(twin_of_row).collect();
                Ok(Some(Found { twins: Vec::new(), too_long }))
            }
            Err(HubError::TooLong { .. }) => self.halve(chunk),
            Err(error) => Err(error),
        }
    }

    fn halve(&mut self, mut chunk: Vec<Value>) -> Result<Option<Found>, HubError> {
        let second = chunk.split_off(chunk.len() / 2);
        if let Stage::Named(chunks) = &mut self.stage {
            chunks.extend([second, chunk]);
        }
        Ok(None)
    }

    fn read(&self, rows: Vec<Value>) -> Vec<Value> {
        match self.query.columns {
            Columns::Identity => rows,
            Columns::Renewal | Columns::Whole => rows.into_iter().map(twin_of_row).collect(),
        }
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            page_len: PAGE_LEN,
            is_halved: true,
            continuation: None,
            is_over: false,
            pages: 0,
            items: 0,
            seen: HashSet::new(),
        }
    }
}

impl Pages {
    /// The next page, as short as it has to be.
    async fn next(&mut self, hub: &Hub, query: &Query) -> Result<Vec<Value>, HubError> {
        let text = query.text();
        loop {
            match hub.query(&text, self.page_len, self.continuation.as_deref()).await {
                Ok(page) => return self.turn(page),
                Err(HubError::TooLong { .. }) if self.is_halved && self.page_len > 1 => self.page_len /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// A hub that is out of order, or something in its place, must not keep us for ever.
    fn turn(&mut self, page: Page) -> Result<Vec<Value>, HubError> {
        self.pages += 1;
        self.items = self.items.saturating_add(page.items.len());
        self.page_len = self.page_len.saturating_mul(2).min(PAGE_LEN);
        let is_new = page.continuation.as_ref().is_none_or(|continuation| {
            let mut hasher = DefaultHasher::new();
            continuation.hash(&mut hasher);
            self.seen.insert(hasher.finish())
        });
        self.is_over = page.continuation.is_none();
        let is_too_much = self.items > DEVICES_MAX || (self.pages >= PAGES_MAX && !self.is_over);
        if is_too_much || !is_new {
            return Err(HubError::Endless { pages: self.pages });
        }
        self.continuation = page.continuation;
        Ok(page.items)
    }
}

/// All rows of a query whose rows are short, or few.
async fn read_all(hub: &Hub, query: &Query) -> Result<Vec<Value>, HubError> {
    let (mut pages, mut rows) = (Pages { is_halved: false, ..Pages::default() }, Vec::new());
    while !pages.is_over {
        rows.extend(pages.next(hub, query).await?);
    }
    Ok(rows)
}

fn identity_of(row: &Value) -> Option<(String, Option<String>)> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    Some((text("deviceId")?, text("moduleId")))
}
