//! A hub's REST interface as the operator needs it: identities, keys, twins. What to do in which order is
//! decided elsewhere (`renew`).
//!
//! Every call is bounded in time and size. A call is repeated, with growing and jittered pauses, when the hub
//! says 429 (then it has done nothing) or was never reached; a call that may be made twice is also repeated
//! after a 5xx or a broken connection.

mod error;
mod registry;
mod transport;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, IF_MATCH};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_contract::{Identity, KeySlot};
use twinkey_sas::{Expiry, ResourceUri, Signer, Token};
use zeroize::Zeroizing;

use crate::clock::unix_now_secs;
use crate::failure::Failure;

pub(crate) use error::HubError;
pub(crate) use registry::{Device, KeyPair, Page, Regenerated, RegistryKey, Twin};
pub(crate) use transport::{Answer, CaFile, Transport, describe};

/// The version of the registry's and the twins' interface that the official SDKs speak.
const API_VERSION: &str = "2021-04-12";
/// The version that first knows `/devices/keys/regenerate`.
const API_VERSION_REGENERATE: &str = "2024-03-31";
/// Lifetime of a service token, in seconds, as the official SDKs have it. It is used for half of that time.
const TOKEN_LIFETIME_SECS: u64 = 3600;
/// What RFC 3986 §2.3 leaves unreserved stays as it is; everything else in an id is encoded.
const ID_ENCODING: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Most identities in one `/devices/keys/regenerate`: the limit that azure-iot-cli-extension keeps to.
pub(crate) const REGENERATE_MAX: usize = 100;
/// Most twins on one page of a query (IoT Hub query language, paging).
const QUERY_PAGE_LEN: u16 = 100;
/// Most attempts at one call.
const ATTEMPTS_MAX: u32 = 5;
/// Longest pause before the second attempt, in milliseconds; it doubles with each further one.
const PAUSE_MS_FIRST: u64 = 500;
/// Longest pause that grows by itself, in milliseconds.
const PAUSE_MS_MAX: u64 = 8_000;
/// Longest `Retry-After` that is waited for: beyond it a person should decide.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// One hub, with the right to speak to it.
pub(crate) struct Hub {
    transport: Transport,
    host_name: String,
    resource: ResourceUri,
    policy_name: String,
    signer: Signer,
    /// The newest token and when to stop using it, in Unix seconds.
    token: Mutex<Option<(HeaderValue, u64)>>,
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// The second time changes nothing.
    Freely,
    /// Only if the first time certainly had no effect.
    WithCare,
    /// Not without looking again: it was decided on what may be different after a pause.
    Never,
}

struct Call {
    method: Method,
    path: String,
    if_match: Option<String>,
    headers: Vec<(&'static str, String)>,
    body: Option<Zeroizing<Vec<u8>>>,
    repeat: Repeat,
}

impl Hub {
    /// The hub that `login` names.
    pub(crate) fn new(login: &ServiceConnectionString, ca_file: Option<CaFile<'_>>) -> Result<Self, Failure> {
        let resource = ResourceUri::hub(&login.host_name)
            .map_err(|e| Failure::usage(format!("HostName of the login: {e}")))?;
        Ok(Self {
            transport: Transport::new(&login.host_name, ca_file)?,
            host_name: login.host_name.clone(),
            resource,
            policy_name: login.policy_name.clone(),
            signer: Signer::new(&login.key),
            token: Mutex::new(None),
        })
    }

    /// The name that devices connect to: without the port of the REST interface.
    pub(crate) fn host_name(&self) -> &str {
        self.host_name.rsplit_once(':').map_or(&self.host_name, |(host, _)| host)
    }

    /// A device's or module's identity, with its keys.
    pub(crate) async fn device(&self, identity: &Identity) -> Result<Device, HubError> {
        self.json(Call::get(identity_path(identity))).await
    }

    /// The first `top` identities; a hub gives at most 1000.
    pub(crate) async fn devices(&self, top: u16) -> Result<Vec<Device>, HubError> {
        self.json(Call::get(format!("/devices?top={top}&api-version={API_VERSION}"))).await
    }

    /// The modules of a device, of which there are at most 50 (IoT Hub quotas).
    pub(crate) async fn modules(&self, device_id: &str) -> Result<Vec<Device>, HubError> {
        let device = utf8_percent_encode(device_id, ID_ENCODING);
        self.json(Call::get(format!("/devices/{device}/modules?api-version={API_VERSION}"))).await
    }

    /// A new identity, whose keys the hub makes. Only devices can be disabled.
    pub(crate) async fn create_device(
        &self,
        identity: &Identity,
        is_enabled: bool,
    ) -> Result<Device, HubError> {
        let status = if is_enabled { "enabled" } else { "disabled" };
        let (device_id, authentication) = (&identity.device_id, json!({"type": "sas"}));
        let body = match &identity.module_id {
            Some(module_id) => {
                json!({"deviceId": device_id, "moduleId": module_id, "authentication": authentication})
            }
            None => json!({"deviceId": device_id, "status": status, "authentication": authentication}),
        };
        self.json(Call::new(Method::PUT, identity_path(identity), Repeat::WithCare).body(&body)?).await
    }

    /// Replaces an identity that still has `etag`. It is not repeated, not even after a 429: the twin, which no etag here
    /// covers, may say something else by then.
    pub(crate) async fn replace_device(&self, device: &Device, etag: &str) -> Result<Device, HubError> {
        let call = Call::new(Method::PUT, identity_path(&device.identity()), Repeat::Never);
        self.json(call.if_match(etag).body(device)?).await
    }

    pub(crate) async fn delete_device(
        &self,
        identity: &Identity,
        etag: Option<&str>,
    ) -> Result<(), HubError> {
        let call = Call::new(Method::DELETE, identity_path(identity), Repeat::WithCare);
        self.answer(call.if_match(etag.unwrap_or("*"))).await.map(drop)
    }

    /// Has the hub make a new key in this slot of each identity, whatever key is in there by now: this call knows no etag.
    /// The other slots stay as they are. At most [`REGENERATE_MAX`] identities.
    ///
    /// A hub answers 200, 207 and 400 with the keys that it has made, so the keys are read before the status is judged
    /// (azure-iot-cli-extension, `service_operations.py`). It is not repeated: what it did shows in the registry.
    pub(crate) async fn regenerate_keys(
        &self,
        slot: KeySlot,
        identities: &[Identity],
    ) -> Result<Regenerated, HubError> {
        let path = format!("/devices/keys/regenerate?api-version={API_VERSION_REGENERATE}");
        let entry = |identity: &Identity| match &identity.module_id {
            Some(module_id) => json!({"id": identity.device_id, "moduleId": module_id}),
            None => json!({"id": identity.device_id}),
        };
        let devices: Vec<_> = identities.iter().map(entry).collect();
        let body = json!({"policyKey": format!("{slot}Key"), "devices": devices});
        let call = Call::new(Method::POST, path, Repeat::Never).body(&body)?;
        let described = describe(&call.method, &call.path);
        let answer = self.exchange(&call).await?;
        match serde_json::from_slice(&answer.body) {
            Ok(regenerated) if matches!(answer.status, 200 | 207 | 400) => Ok(regenerated),
            Err(error) if (200..300).contains(&answer.status) => Err(HubError::malformed(&described, &error)),
            Ok(_) | Err(_) => Err(refusal(&described, &answer)),
        }
    }

    /// The first page of a query, or the one after `continuation`, with at most `page_len` twins.
    pub(crate) async fn query(
        &self,
        query: &str,
        page_len: u16,
        continuation: Option<&str>,
    ) -> Result<Page, HubError> {
        let path = format!("/devices/query?api-version={API_VERSION}");
        let mut call = Call::new(Method::POST, path, Repeat::Freely).body(&json!({"query": query}))?;
        call.headers.push(("x-ms-max-item-count", page_len.to_string()));
        call.headers.extend(continuation.map(|text| ("x-ms-continuation", text.to_owned())));
        let described = describe(&call.method, &call.path);
        let answer = self.answer(call).await?;
        let items = serde_json::from_slice(&answer.body).map_err(|e| HubError::malformed(&described, &e))?;
        Ok(Page { items, continuation: answer.continuation })
    }

    /// All twins that a query finds, page by page.
    pub(crate) async fn query_all(&self, query: &str) -> Result<Vec<Value>, HubError> {
        let mut items = Vec::new();
        let mut continuation = None;
        loop {
            let page = self.query(query, QUERY_PAGE_LEN, continuation.as_deref()).await?;
            items.extend(page.items);
            continuation = page.continuation;
            if continuation.is_none() {
                return Ok(items);
            }
        }
    }

    pub(crate) async fn twin(&self, identity: &Identity) -> Result<Twin, HubError> {
        self.json(Call::get(twin_path(identity))).await
    }

    /// Merges `desired` into the desired properties, if the twin still has `etag` where one is given.
    pub(crate) async fn patch_desired(
        &self,
        identity: &Identity,
        desired: &Value,
        etag: Option<&str>,
    ) -> Result<Twin, HubError> {
        self.patch_twin(identity, &json!({"properties": {"desired": desired}}), etag).await
    }

    /// Merges `patch` (`tags`, `properties.desired`) into the twin, if it still has `etag` where one is given.
    pub(crate) async fn patch_twin(
        &self,
        identity: &Identity,
        patch: &Value,
        etag: Option<&str>,
    ) -> Result<Twin, HubError> {
        let repeat = if etag.is_some() { Repeat::WithCare } else { Repeat::Freely };
        let call = Call::new(Method::PATCH, twin_path(identity), repeat).if_match(etag.unwrap_or("*"));
        self.json(call.body(patch)?).await
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, HubError> {
        let described = describe(&call.method, &call.path);
        let answer = self.answer(call).await?;
        serde_json::from_slice(&answer.body).map_err(|e| HubError::malformed(&described, &e))
    }

    /// The answer, if it is a success.
    async fn answer(&self, call: Call) -> Result<Answer, HubError> {
        let answer = self.exchange(&call).await?;
        if (200..300).contains(&answer.status) {
            Ok(answer)
        } else {
            Err(refusal(&describe(&call.method, &call.path), &answer))
        }
    }

    /// The answer, whatever its status, after as many attempts as are allowed.
    async fn exchange(&self, call: &Call) -> Result<Answer, HubError> {
        let mut attempt = 1;
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, self.authorization(unix_now_secs())?);
            if let Some(etag) = &call.if_match {
                let value = HeaderValue::from_str(etag)
                    .map_err(|_| HubError::Token { reason: "the etag is no header text".to_owned() })?;
                headers.insert(IF_MATCH, value);
            }
            for (name, text) in &call.headers {
                let value = HeaderValue::from_str(text)
                    .map_err(|_| HubError::Token { reason: format!("{name} is no header text") })?;
                headers.insert(*name, value);
            }
            let result =
                self.transport.exchange(call.method.clone(), &call.path, headers, call.body.clone()).await;
            let Some(pause) =
                pause_before_retry(&result, call.repeat, attempt, getrandom::u32().unwrap_or(u32::MAX))
            else {
                return result;
            };
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    fn authorization(&self, now_unix_secs: u64) -> Result<HeaderValue, HubError> {
        let mut cached = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, _)) = cached.as_ref().filter(|(_, until)| now_unix_secs < *until) {
            return Ok(value.clone());
        }
        let fail = |reason: &str| HubError::Token { reason: reason.to_owned() };
        let expiry = Expiry::after(now_unix_secs, TOKEN_LIFETIME_SECS)
            .ok_or_else(|| fail("this computer's clock is far off"))?;
        let mut buffer = [0; Token::MAX_LEN];
        let token = self.signer.sign_as(&self.resource, &self.policy_name, expiry, &mut buffer);
        let token = token.map_err(|e| fail(&e.to_string()))?;
        let mut value = HeaderValue::from_str(token.expose()).map_err(|_| fail("it is no header text"))?;
        value.set_sensitive(true);
        *cached = Some((value.clone(), now_unix_secs + TOKEN_LIFETIME_SECS / 2));
        Ok(value)
    }
}

impl Call {
    fn new(method: Method, path: String, repeat: Repeat) -> Self {
        Self { method, path, if_match: None, headers: Vec::new(), body: None, repeat }
    }

    fn get(path: String) -> Self {
        Self::new(Method::GET, path, Repeat::Freely)
    }

    /// Etags are quoted on the wire (RFC 9110 §8.8.3); `*` stands for any.
    fn if_match(self, etag: &str) -> Self {
        Self { if_match: Some(format!("\"{}\"", etag.trim_matches('"'))), ..self }
    }

    fn body(self, body: &impl Serialize) -> Result<Self, HubError> {
        let text = serde_json::to_vec(body)
            .map_err(|e| HubError::malformed(&describe(&self.method, &self.path), &e))?;
        Ok(Self { body: Some(Zeroizing::new(text)), ..self })
    }
}

fn identity_path(identity: &Identity) -> String {
    path_of("devices", identity)
}

fn twin_path(identity: &Identity) -> String {
    path_of("twins", identity)
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

fn refusal(call: &str, answer: &Answer) -> HubError {
    HubError::from_answer(call, answer.status, answer.error_code.as_deref(), answer.retry_after, &answer.body)
}

/// How long to wait before the next attempt; `None` when this result stands. `random` spreads callers over the pause.
fn pause_before_retry(
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
            | HubError::Token { .. },
        ) => (false, false, None),
    };
    let is_allowed = match repeat {
        Repeat::Freely => is_transient,
        Repeat::WithCare => is_transient && had_no_effect,
        Repeat::Never => false,
    };
    if !is_allowed || attempt >= ATTEMPTS_MAX || retry_after.is_some_and(|wait| wait > RETRY_AFTER_MAX) {
        return None;
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
            assert_eq!(pause_before_retry(&answer(429, Some(7)), repeat, 1, 0), Some(Duration::from_secs(7)));
            assert_eq!(pause_before_retry(&answer(429, Some(61)), repeat, 1, 0), None);
            assert_eq!(pause_before_retry(&answer(429, None), repeat, ATTEMPTS_MAX, 0), None);
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
        let quoted = |etag| Call::get(String::new()).if_match(etag).if_match;
        assert_eq!(quoted("abc").as_deref(), Some("\"abc\""));
        assert_eq!(quoted("\"abc\"").as_deref(), Some("\"abc\""));
        assert_eq!(quoted("*").as_deref(), Some("\"*\""));
    }
}
