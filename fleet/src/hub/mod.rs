//! A hub's REST interface as the operator needs it: identities, keys, twins. What to do in which order is
//! decided elsewhere (`renew`).
//!
//! Every call is bounded in size, and in time from its turn on. Calls wait for their turn, in order, for each category
//! of the hub's limits by itself (`limits`, `line`, `pace`, `window`); one 429 slows down all calls of its category, and a hub that does not
//! answer is asked by one call at a time (`circuit`).
//!
//! A call is repeated when the hub says 429 (then it has done nothing), and with growing and jittered pauses when it was
//! never reached; a call that may be made twice is also repeated after a 5xx or a broken connection.

mod body;
mod call;
mod circuit;
mod error;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod hub_tests;
mod limits;
mod line;
#[cfg(test)]
mod line_tests;
mod pace;
#[cfg(test)]
mod pace_tests;
mod paging;
#[cfg(test)]
mod paging_tests;
mod query;
mod registry;
mod time;
mod transport;
mod window;
#[cfg(test)]
mod wiping_tests;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_contract::{Identity, KeySlot};
use twinkey_sas::{Expiry, ResourceUri, Signer, Token};

use crate::clock::unix_now_secs;
use crate::failure::Failure;

use call::{Call, ID_ENCODING, Repeat, identity_path, method_path, outcome, pause_before_retry, twin_path};
use circuit::Circuit;
pub(crate) use error::{HubError, TWIN_TOO_LONG};
pub(crate) use limits::{Category, Limits, Tier};
pub(crate) use line::Usage;
use line::{Closed, Flight, Lines, Outcome};
pub(crate) use paging::{Found, Reading};
pub(crate) use query::{Collection, Columns, Query};
pub(crate) use registry::{Device, KeyPair, Regenerated, RegistryKey, Twin};
use registry::{MethodAnswer, Page};
use transport::ANSWER_TIMEOUT_SECS;
pub(crate) use transport::{Answer, CaFile, Transport, describe};

/// The version of the registry's and the twins' interface that the official SDKs speak.
const API_VERSION: &str = "2021-04-12";
/// The version that first knows `/devices/keys/regenerate`.
const API_VERSION_REGENERATE: &str = "2024-03-31";
/// Lifetime of a service token, in seconds, as the official SDKs have it. It is used for half of that time.
const TOKEN_LIFETIME_SECS: u64 = 3600;
/// Most identities in one `/devices/keys/regenerate`: the limit that azure-iot-cli-extension keeps to.
const REGENERATE_MAX: usize = 100;
/// What each identity in it counts to the registry's limit. That is not documented; its author wrote that it "still counts as
/// crud", so the careful guess is that it is as dear as one identity replaced.
const REGENERATE_COST: usize = 1;
/// How long a device's answer to a direct method is waited for, in seconds, and that it connects first: a device on a slow link
/// needs some.
const METHOD_ANSWER_SECS: u64 = 20;
const METHOD_CONNECT_SECS: u64 = 5;
/// Time in which the registry has to get to every device that is under way: well within a lease.
const AT_ONCE_SECS: f64 = 25.0;
/// Devices that are under way however slow the registry is.
const AT_ONCE_MIN: usize = 4;
/// Shortest wait for a turn that is worth a word.
const FELT_WAIT_MIN: Duration = Duration::from_secs(5);
/// Longest wait of a call that was decided on what was just read. It goes to the front of its line, so this is only over where
/// the hub's limits are exhausted.
const TURN_MAX: Duration = Duration::from_secs(10);

/// One hub, with the right to speak to it.
pub(crate) struct Hub {
    transport: Transport,
    host_name: String,
    resource: ResourceUri,
    policy_name: String,
    signer: Signer,
    /// The newest token and when to stop using it, in Unix seconds.
    token: Mutex<Option<(HeaderValue, u64)>>,
    lines: Lines,
    limits: Limits,
    circuit: Circuit,
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
            lines: Lines::new(Limits::unlimited()),
            limits: Limits::unlimited(),
            circuit: Circuit::default(),
        })
    }

    /// The same hub, asked no faster than these limits allow; it counts anew.
    pub(crate) fn with_limits(self, limits: Limits) -> Self {
        Self { lines: Lines::new(limits), limits, ..self }
    }

    /// The same hub, of whose answers no more than this is read.
    #[cfg(test)]
    fn with_answers_up_to(self, bytes: usize) -> Self {
        Self { transport: self.transport.with_answers_up_to(bytes), ..self }
    }

    /// What it was asked until now.
    pub(crate) fn usage(&self) -> [(Category, Usage); 5] {
        Category::ALL.map(|category| (category, self.lines.of(category).usage()))
    }

    /// What its limits have cost until now, in words; nothing if they were not felt.
    pub(crate) fn felt_limits(&self) -> Vec<String> {
        let felt = |(_, usage): &(Category, Usage)| usage.throttled > 0 || usage.waited_max >= FELT_WAIT_MIN;
        let words = |(category, usage): (Category, Usage)| {
            format!(
                "{}: {} operations; the hub said 429 to {} calls, {} waited for their turn, the longest for {:.0} s",
                category.name(),
                usage.operations,
                usage.throttled,
                usage.waits,
                usage.waited_max.as_secs_f64()
            )
        };
        self.usage().into_iter().filter(felt).map(words).collect()
    }

    /// The name that devices connect to: without the port of the REST interface.
    pub(crate) fn host_name(&self) -> &str {
        self.host_name.rsplit_once(':').map_or(&self.host_name, |(host, _)| host)
    }

    /// Unix seconds by the hub's clock, as its newest answer told them; by this machine's before the first one.
    pub(crate) fn unix_now_secs(&self) -> u64 {
        self.transport.unix_now_secs()
    }

    /// A device's or module's identity, with its keys.
    pub(crate) async fn device(&self, identity: &Identity) -> Result<Device, HubError> {
        self.json(Call::get(Category::Registry, identity_path(identity))).await
    }

    /// The first `top` identities; a hub gives at most 1000.
    pub(crate) async fn devices(&self, top: u16) -> Result<Vec<Device>, HubError> {
        self.json(Call::get(Category::Registry, format!("/devices?top={top}&api-version={API_VERSION}")))
            .await
    }

    /// The modules of a device, of which there are at most 50 (IoT Hub quotas).
    pub(crate) async fn modules(&self, device_id: &str) -> Result<Vec<Device>, HubError> {
        let device = utf8_percent_encode(device_id, ID_ENCODING);
        self.json(Call::get(
            Category::Registry,
            format!("/devices/{device}/modules?api-version={API_VERSION}"),
        ))
        .await
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
        self.json(
            Call::new(Category::Registry, Method::PUT, identity_path(identity), Repeat::WithCare)
                .body(&body)?,
        )
        .await
    }

    /// Replaces an identity that still has `etag`. It is not repeated, not even after a 429: the twin, which no etag here
    /// covers, may say something else by then. For the same reason it is given up unsent, as [`HubError::NotInTime`], if
    /// the hub's limits don't leave room for it soon.
    pub(crate) async fn replace_device(&self, device: &Device, etag: &str) -> Result<Device, HubError> {
        let call =
            Call::new(Category::Registry, Method::PUT, identity_path(&device.identity()), Repeat::Never);
        self.json(call.if_match(etag).body(device)?).await
    }

    pub(crate) async fn delete_device(
        &self,
        identity: &Identity,
        etag: Option<&str>,
    ) -> Result<(), HubError> {
        let call = Call::new(Category::Registry, Method::DELETE, identity_path(identity), Repeat::WithCare);
        self.answer(call.if_match(etag.unwrap_or("*"))).await.map(drop)
    }

    /// Devices whose keys can be renewed at the same time without one waiting for its orders for so long that what was read before
    /// has to be read again.
    pub(crate) fn at_once_max(&self) -> Option<usize> {
        let per_sec = self.limits.per_sec(Category::Registry)?;
        Some(((per_sec * AT_ONCE_SECS) as usize).max(AT_ONCE_MIN))
    }

    /// Identities in one order of keys that the hub's limits take at once.
    pub(crate) fn order_len_max(&self) -> usize {
        let burst = self.limits.per_sec(Category::Registry).map(pace::depth);
        // Above 0, and small.
        burst.map_or(REGENERATE_MAX, |burst| (burst as usize / REGENERATE_COST).clamp(1, REGENERATE_MAX))
    }

    /// Has the hub make a new key in this slot of each identity, whatever key is in there by now: this call knows no etag.
    /// The other slots stay as they are. At most [`REGENERATE_MAX`] identities.
    ///
    /// A hub answers 200, 207 and 400 with the keys that it has made, so the keys are read before the status is judged
    /// (azure-iot-cli-extension, `service_operations.py`). It is not repeated: what it did shows in the registry. After `until` it
    /// is not sent.
    pub(crate) async fn regenerate_keys(
        &self,
        slot: KeySlot,
        identities: &[Identity],
        until: Instant,
    ) -> Result<Regenerated, HubError> {
        let path = format!("/devices/keys/regenerate?api-version={API_VERSION_REGENERATE}");
        let entry = |identity: &Identity| match &identity.module_id {
            Some(module_id) => json!({"id": identity.device_id, "moduleId": module_id}),
            None => json!({"id": identity.device_id}),
        };
        let devices: Vec<_> = identities.iter().map(entry).collect();
        let body = json!({"policyKey": format!("{slot}Key"), "devices": devices});
        let call = Call::new(Category::Registry, Method::POST, path, Repeat::Never).body(&body)?;
        let call = call.costs(identities.len().saturating_mul(REGENERATE_COST)).until(until);
        let described = call.described();
        let answer = self.exchange(&call).await?;
        match serde_json::from_slice(&answer.body) {
            Ok(regenerated) if matches!(answer.status, 200 | 207 | 400) => Ok(regenerated),
            Err(error) if (200..300).contains(&answer.status) => Err(HubError::malformed(&described, &error)),
            Ok(_) | Err(_) => Err(refusal(&described, &answer)),
        }
    }

    /// The first page of a query, or the one after `continuation`, with at most `page_len` twins.
    async fn query(&self, query: &str, page_len: u16, continuation: Option<&str>) -> Result<Page, HubError> {
        let path = format!("/devices/query?api-version={API_VERSION}");
        let mut call = Call::new(Category::Queries, Method::POST, path, Repeat::Freely)
            .body(&json!({"query": query}))?
            .header("x-ms-max-item-count", page_len.to_string());
        if let Some(continuation) = continuation {
            call = call.header("x-ms-continuation", continuation.to_owned());
        }
        let described = call.described();
        let answer = self.answer(call).await?;
        let items = serde_json::from_slice(&answer.body).map_err(|e| HubError::malformed(&described, &e))?;
        Ok(Page { items, continuation: answer.continuation })
    }

    /// What a query finds, part by part.
    pub(crate) fn reading(&self, query: Query) -> Reading<'_> {
        Reading::new(self, query)
    }

    /// All that a query finds.
    pub(crate) async fn query_all(&self, query: Query) -> Result<Found, HubError> {
        self.reading(query).all().await
    }

    /// Calls a direct method of the device or module: what it answers, or `None` if nobody answers with success.
    pub(crate) async fn call_method(
        &self,
        identity: &Identity,
        name: &str,
        payload: &Value,
    ) -> Result<Option<Value>, HubError> {
        let body = json!({
            "methodName": name,
            "payload": payload,
            "responseTimeoutInSeconds": METHOD_ANSWER_SECS,
            "connectTimeoutInSeconds": METHOD_CONNECT_SECS,
        });
        let call = Call::new(Category::Methods, Method::POST, method_path(identity), Repeat::WithCare);
        match self.json::<MethodAnswer>(call.body(&body)?).await {
            Ok(answer) => Ok((answer.status == 200).then_some(answer.payload)),
            // Not connected, or no answer in time (Microsoft, "Understand and invoke direct methods").
            Err(error) if matches!(error.status(), Some(404 | 504)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn twin(&self, identity: &Identity) -> Result<Twin, HubError> {
        self.json(Call::get(Category::TwinReads, twin_path(identity))).await
    }

    /// Merges `patch` (`tags`, `properties.desired`) into the twin, if it still has `etag` where one is given.
    pub(crate) async fn patch_twin(
        &self,
        identity: &Identity,
        patch: &Value,
        etag: Option<&str>,
    ) -> Result<Twin, HubError> {
        let repeat = if etag.is_some() { Repeat::WithCare } else { Repeat::Freely };
        let call = Call::new(Category::TwinUpdates, Method::PATCH, twin_path(identity), repeat)
            .if_match(etag.unwrap_or("*"));
        self.json(call.body(patch)?).await
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, HubError> {
        let described = call.described();
        let answer = self.answer(call).await?;
        serde_json::from_slice(&answer.body).map_err(|e| HubError::malformed(&described, &e))
    }

    /// The answer, if it is a success.
    async fn answer(&self, call: Call) -> Result<Answer, HubError> {
        let answer = self.exchange(&call).await?;
        if (200..300).contains(&answer.status) {
            Ok(answer)
        } else {
            Err(refusal(&call.described(), &answer))
        }
    }

    /// The answer, whatever its status, after as many attempts as are allowed.
    async fn exchange(&self, call: &Call) -> Result<Answer, HubError> {
        let mut attempt = 1;
        loop {
            let result = self.attempt(call).await;
            let Some(pause) = pause_before_retry(&result, call.repeat, attempt, random()) else {
                return result;
            };
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// One attempt, when its turn has come.
    async fn attempt(&self, call: &Call) -> Result<Answer, HubError> {
        let flight = self.turn(call).await?;
        // Not before: a token may expire in the line.
        let mut headers = call.headers()?;
        headers.insert(AUTHORIZATION, self.authorization(unix_now_secs())?);
        let result =
            self.transport.exchange(call.method.clone(), &call.path, headers, call.body.clone()).await;
        if let Some(outcome) = outcome(&result) {
            let random = random();
            self.circuit.heard(outcome != Outcome::Failed, Instant::now(), random);
            flight.land(outcome, random);
        }
        result
    }

    /// Waits for the call's turn: what was decided on things just read for [`TURN_MAX`] or until it holds no more, everything else
    /// as long as it takes.
    async fn turn(&self, call: &Call) -> Result<Flight<'_>, HubError> {
        let line = self.lines.of(call.category);
        let turn = line.turn(call.cost, call.place());
        let turn = match call.repeat {
            Repeat::Freely | Repeat::WithCare => turn.await,
            Repeat::Never => {
                let since = Instant::now();
                let until = call.until.unwrap_or(since + TURN_MAX);
                timeout_at(until, turn).await.map_err(|_| HubError::NotInTime {
                    call: call.described(),
                    max_secs: until.saturating_duration_since(since).as_secs(),
                    again_in: line.ready_in(call.cost),
                })?
            }
        };
        let turn =
            turn.map_err(|Closed(left)| HubError::Closed { call: call.described(), again_in: left })?;
        let probe_max = Duration::from_secs(ANSWER_TIMEOUT_SECS);
        match self.circuit.check(Instant::now(), probe_max) {
            Ok(()) => Ok(turn.send()),
            Err(down) => Err(HubError::Unreached { call: call.described(), source: down.into() }),
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

fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

fn refusal(call: &str, answer: &Answer) -> HubError {
    HubError::from_answer(call, answer.status, answer.error_code.as_deref(), answer.retry_after, &answer.body)
}
