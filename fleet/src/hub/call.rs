//! One call: what it asks for, what it counts to the hub's limits, and whether it may be made again.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, IF_MATCH};
use serde::Serialize;
use tokio::time::Instant;
use twinkey_contract::Identity;
use zeroize::Zeroizing;

use super::API_VERSION;
use super::body;
use super::error::HubError;
use super::limits::Category;
use super::line::{Outcome, Place};
use super::pace::RETRY_AFTER_MAX;
use super::transport::{Answer, describe};

/// What RFC 3986 §2.3 leaves unreserved stays as it is; everything else in an id is encoded.
pub(super) const ID_ENCODING: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Most attempts at one call.
const ATTEMPTS_MAX: u32 = 5;
/// Longest pause before the second attempt, in milliseconds; it doubles with each further one.
const PAUSE_MS_FIRST: u64 = 500;
/// Longest pause that grows by itself, in milliseconds.
const PAUSE_MS_MAX: u64 = 8_000;
/// Most attempts at one call while the hub answers 429: between them the whole category slows down, at most to one
/// operation in four seconds.
const ATTEMPTS_THROTTLED_MAX: u32 = 8;

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The second time changes nothing.
    Freely,
    /// Only if the first time certainly had no effect.
    WithCare,
    /// Not without looking again: it was decided on what may be different after a pause.
    Never,
}

pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) category: Category,
    /// Operations, as the hub's limits count them.
    pub(super) cost: u32,
    if_match: Option<String>,
    headers: Vec<(&'static str, String)>,
    pub(super) body: Option<Zeroizing<Vec<u8>>>,
    pub(super) repeat: Repeat,
    /// Until when what it was decided on holds.
    pub(super) until: Option<Instant>,
}

impl Call {
    pub(super) fn new(category: Category, method: Method, path: String, repeat: Repeat) -> Self {
        Self {
            method,
            path,
            category,
            cost: 1,
            if_match: None,
            headers: Vec::new(),
            body: None,
            repeat,
            until: None,
        }
    }

    pub(super) fn get(category: Category, path: String) -> Self {
        Self::new(category, Method::GET, path, Repeat::Freely)
    }

    /// Counts as so many operations, at least one.
    pub(super) fn costs(self, operations: usize) -> Self {
        Self { cost: u32::try_from(operations).unwrap_or(u32::MAX).max(1), ..self }
    }

    /// Not sent after this time.
    pub(super) fn until(self, until: Instant) -> Self {
        Self { until: Some(until), ..self }
    }

    pub(super) fn header(mut self, name: &'static str, text: String) -> Self {
        self.headers.push((name, text));
        self
    }

    /// Etags are quoted on the wire (RFC 9110 §8.8.3); `*` stands for any.
    pub(super) fn if_match(self, etag: &str) -> Self {
        Self { if_match: Some(format!("\"{}\"", etag.trim_matches('"'))), ..self }
    }

    pub(super) fn body(self, body: &impl Serialize) -> Result<Self, HubError> {
        let text = body::json(body).map_err(|e| HubError::malformed(&self.described(), &e))?;
        Ok(Self { body: Some(text), ..self })
    }

    /// Method and path, for messages.
    pub(super) fn described(&self) -> String {
        describe(&self.method, &self.path)
    }

    /// What was decided on things just read does not wait behind what reads more.
    pub(super) fn place(&self) -> Place {
        match self.repeat {
            Repeat::Freely | Repeat::WithCare => Place::Back,
            Repeat::Never => Place::Front,
        }
    }

    /// The call's own headers.
    pub(super) fn headers(&self) -> Result<HeaderMap, HubError> {
        let value = |name: &str, text: &str| {
            HeaderValue::from_str(text).map_err(|_| HubError::Unsendable {
                call: self.described(),
                reason: format!("{name} is no header text"),
            })
        };
        let mut headers = HeaderMap::new();
        if let Some(etag) = &self.if_match {
            headers.insert(IF_MATCH, value("the etag", etag)?);
        }
        for (name, text) in &self.headers {
            headers.insert(*name, value(name, text)?);
        }
        Ok(headers)
    }
}

pub(super) fn identity_path(identity: &Identity) -> String {
    path_of("devices", identity)
}

pub(super) fn twin_path(identity: &Identity) -> String {
    path_of("twins", identity)
}

pub(super) fn method_path(identity: &Identity) -> String {
    twin_path(identity).replacen('?', "/methods?", 1)
}

fn path_of(kind: &str, identity: &Identity) -> String {
    let device = utf8_percent_encode(&identity.device_id, ID_ENCODING);
    match &identity.module_id {
        Some(module_id) => {
            let module = utf8_percent_encode(module_id, ID_ENCODING);
            format!("/{kind}/{device}/modules/{module}?api-version={API_VERSION}")
        }
        None => format!("/{kind}/{device}?api-version={API_VERSION}"),
    }
}

/// What this result means for the calls that follow; `None` if it says nothing about the hub.
pub(super) fn outcome(result: &Result<Answer, HubError>) -> Option<Outcome> {
    match result {
        Ok(answer) if answer.status == 429 => Some(Outcome::Throttled(answer.retry_after)),
        Ok(answer) if answer.status >= 500 => Some(Outcome::Failed),
        Ok(_) | Err(HubError::TooLong { .. }) => Some(Outcome::Served),
        Err(HubError::Unreached { .. } | HubError::Unanswered { .. } | HubError::Cut { .. }) => {
            Some(Outcome::Failed)
        }
        Err(
            HubError::Untrusted { .. }
            | HubError::Answer { .. }
            | HubError::Foreign { .. }
            | HubError::Malformed { .. }
            | HubError::NotInTime { .. }
            | HubError::Closed { .. }
            | HubError::Endless { .. }
            | HubError::Unsendable { .. }
            | HubError::Token { .. },
        ) => None,
    }
}

/// How long to wait before the next attempt; `None` when this result stands. `random` spreads callers over the pause.
/// After 429 there is no pause but the one that holds the whole category back.
pub(super) fn pause_before_retry(
    result: &Result<Answer, HubError>,
    repeat: Repeat,
    attempt: u32,
    random: u32,
) -> Option<Duration> {
    let (had_no_effect, is_transient, retry_after) = match result {
        Ok(answer) => {
            (answer.status == 429, answer.status == 429 || answer.status >= 500, answer.retry_after)
        }
        Err(HubError::Unreached { .. }) => (true, true, None),
        Err(HubError::Unanswered { .. } | HubError::Cut { .. }) => (false, true, None),
        Err(
            HubError::Untrusted { .. }
            | HubError::Answer { .. }
            | HubError::Foreign { .. }
            | HubError::TooLong { .. }
            | HubError::Malformed { .. }
            | HubError::NotInTime { .. }
            | HubError::Closed { .. }
            | HubError::Endless { .. }
            | HubError::Unsendable { .. }
            | HubError::Token { .. },
        ) => (false, false, None),
    };
    let is_allowed = match repeat {
        Repeat::Freely => is_transient,
        Repeat::WithCare => is_transient && had_no_effect,
        Repeat::Never => false,
    };
    let is_throttled = result.as_ref().is_ok_and(|answer| answer.status == 429);
    let attempts_max = if is_throttled { ATTEMPTS_THROTTLED_MAX } else { ATTEMPTS_MAX };
    if !is_allowed || attempt >= attempts_max || retry_after.is_some_and(|wait| wait > RETRY_AFTER_MAX) {
        return None;
    }
    if is_throttled {
        return Some(Duration::ZERO);
    }
    let ceiling_ms = PAUSE_MS_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(PAUSE_MS_MAX);
    let jittered_ms = ceiling_ms / 2 + (ceiling_ms / 2) * u64::from(random) / u64::from(u32::MAX);
    Some(Duration::from_millis(jittered_ms).max(retry_after.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after_secs: Option<u64>) -> Result<Answer, HubError> {
        let retry_after = retry_after_secs.map(Duration::from_secs);
        Ok(Answer {
            status,
            error_code: None,
            retry_after,
            continuation: None,
            body: Zeroizing::new(Vec::new()),
        })
    }

    #[test]
    fn throttled_calls_are_repeated_even_if_they_may_not_be_made_twice() {
        for repeat in [Repeat::Freely, Repeat::WithCare] {
            assert_eq!(pause_before_retry(&answer(429, Some(7)), repeat, 1, 0), Some(Duration::ZERO));
            assert_eq!(pause_before_retry(&answer(429, Some(61)), repeat, 1, 0), None);
            assert_eq!(pause_before_retry(&answer(429, None), repeat, ATTEMPTS_THROTTLED_MAX, 0), None);
        }
    }

    #[test]
    fn a_failing_hub_is_asked_again_only_where_that_is_harmless() {
        assert!(pause_before_retry(&answer(503, None), Repeat::Freely, 1, 0).is_some());
        assert!(pause_before_retry(&answer(503, None), Repeat::WithCare, 1, 0).is_none());
        assert!(pause_before_retry(&answer(429, None), Repeat::Never, 1, 0).is_none());
        for status in [200, 204, 400, 401, 403, 404, 409, 412] {
            assert!(pause_before_retry(&answer(status, None), Repeat::Freely, 1, 0).is_none(), "{status}");
        }
    }

    #[test]
    fn pauses_grow_and_stay_between_half_and_the_whole_of_their_ceiling() {
        for (attempt, ceiling_ms) in [(1, 500), (2, 1000), (3, 2000), (4, 4000)] {
            let pause = |random| {
                pause_before_retry(&answer(500, None), Repeat::Freely, attempt, random).unwrap().as_millis()
            };
            assert_eq!((pause(0), pause(u32::MAX)), (ceiling_ms / 2, ceiling_ms));
        }
    }

    #[test]
    fn ids_are_encoded_strictly() {
        let identity = Identity { device_id: "odd-.%_*?!(),:=@$'+#~".to_owned(), module_id: None };
        let odd = "odd-.%25_%2A%3F%21%28%29%2C%3A%3D%40%24%27%2B%23~";
        assert_eq!(identity_path(&identity), format!("/devices/{odd}?api-version=2021-04-12"));
        let module = Identity { module_id: Some("$edge".to_owned()), ..identity };
        assert_eq!(twin_path(&module), format!("/twins/{odd}/modules/%24edge?api-version=2021-04-12"));
    }

    #[test]
    fn etags_are_quoted_once() {
        let quoted = |etag| Call::get(Category::Registry, String::new()).if_match(etag).if_match;
        assert_eq!(quoted("abc").as_deref(), Some("\"abc\""));
        assert_eq!(quoted("\"abc\"").as_deref(), Some("\"abc\""));
        assert_eq!(quoted("*").as_deref(), Some("\"*\""));
    }
}
