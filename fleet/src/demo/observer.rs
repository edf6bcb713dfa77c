//! What the local hub saw, and what it is asked to suffer: its operator endpoints under `/$emulator/`.

use std::path::Path;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::gaps::{Span, longest_dark_ms};
use crate::failure::Failure;
use crate::hub::{CaFile, HubError, Transport, describe};

/// Messages per page.
const PAGE_LEN: u32 = 1000;
/// Most pages that are read: many times what the demo sends.
const PAGES_MAX: u32 = 200;

pub(crate) struct Observer {
    transport: Transport,
    device_id: String,
}

/// Connections of the device, in the order in which the hub accepted them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connections {
    pub(crate) now_ms: f64,
    pub(crate) connections: Vec<Connection>,
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    /// The slot whose key opened it.
    pub(crate) key: String,
    pub(crate) connected_ms: f64,
    pub(crate) closed_ms: Option<f64>,
    pub(crate) took_over: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refused {
    pub(crate) at_ms: f64,
}

/// Numbers of the messages that the hub has.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) numbers: Vec<u64>,
    /// Messages that the hub's store had to let go.
    pub(crate) dropped: u64,
}

impl Connections {
    /// The connection that lives now.
    pub(crate) fn live(&self) -> Option<&Connection> {
        self.connections.iter().rfind(|connection| connection.closed_ms.is_none())
    }

    /// The longest time without a connection since `from_ms`.
    pub(crate) fn longest_dark_ms_since(&self, from_ms: f64) -> f64 {
        let span = |c: &Connection| Span { from_ms: c.connected_ms, to_ms: c.closed_ms };
        longest_dark_ms(&self.connections.iter().map(span).collect::<Vec<_>>(), from_ms, self.now_ms)
    }
}

impl Observer {
    pub(crate) fn new(authority: &str, ca_file: &Path, device_id: &str) -> Result<Self, Failure> {
        Ok(Self {
            transport: Transport::new(authority, Some(CaFile { path: ca_file, named_by: "the hub's CA" }))?,
            device_id: device_id.to_owned(),
        })
    }

    pub(crate) async fn connections(&self) -> Result<Connections, HubError> {
        self.call(Method::GET, &format!("connections?identity={}", self.device_id), None).await
    }

    pub(crate) async fn received(&self) -> Result<Received, HubError> {
        #[derive(Deserialize)]
        struct Page {
            messages: Vec<Message>,
            next: u64,
            #[serde(default)]
            dropped: u64,
        }
        #[derive(Deserialize)]
        struct Message {
            body: Option<String>,
        }
        #[derive(Deserialize)]
        struct Body {
            number: u64,
        }
        let mut received = Received { numbers: Vec::new(), dropped: 0 };
        let mut after = 0;
        for _ in 0..PAGES_MAX {
            let query = format!("telemetry?identity={}&after={after}&max={PAGE_LEN}", self.device_id);
            let page: Page = self.call(Method::GET, &query, None).await?;
            received.dropped = page.dropped;
            if page.messages.is_empty() {
                break;
            }
            let number =
                |message: Message| serde_json::from_str::<Body>(&message.body?).ok().map(|body| body.number);
            received.numbers.extend(page.messages.into_iter().filter_map(number));
            after = page.next;
        }
        Ok(received)
    }

    /// Cuts the device's connection as a pulled cable does.
    pub(crate) async fn cut(&self) -> Result<(), HubError> {
        self.call::<Value>(Method::POST, "cut", Some(json!({"identity": self.device_id}))).await.map(drop)
    }

    /// The hub goes away, forgets its MQTT sessions and comes back.
    pub(crate) async fn restart(&self, down_ms: u64) -> Result<(), HubError> {
        let body = json!({"downMs": down_ms, "forgetSessions": true});
        self.call::<Value>(Method::POST, "restart", Some(body)).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, HubError> {
        let path = format!("/$emulator/{path}");
        let call = describe(&method, &path);
        let body = body.map(|body| Zeroizing::new(body.to_string().into_bytes()));
        let answer = self.transport.exchange(method, &path, HeaderMap::new(), body).await?;
        if !(200..300).contains(&answer.status) {
            return Err(HubError::from_answer(
                &call,
                answer.status,
                answer.error_code.as_deref(),
                None,
                &answer.body,
            ));
        }
        let text: &[u8] = if answer.body.is_empty() { b"null" } else { &answer.body };
        serde_json::from_slice(text).map_err(|e| HubError::malformed(&call, &e))
    }
}
