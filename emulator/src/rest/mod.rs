//! The service side over HTTPS: the registry, twins and methods as Azure's SDKs call them, and the operator endpoints.

mod bulk;
mod configurations;
mod devices;
mod identity_body;
mod jobs;
mod operator;
mod provisioning;
mod puppets;
mod queries;
mod routes;
mod twins;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, HeaderName, HeaderValue, IF_MATCH, RETRY_AFTER,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::faults::Failure;
use crate::hub::Hub;
use crate::kept::NotWritten;
use crate::keys::KeySlot;
use crate::listeners::{Restart, Upgraded};
use crate::policies::Right;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::sas::Token;
use crate::strangers::Stranger;
use crate::websocket;
use routes::Route;

/// Largest request body in bytes: a bulk request of 100 devices with full twins fits.
const BODY_LEN_MAX: usize = 1024 * 1024;
/// Longest wait for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a request's header, and for the next request on an open connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest header in bytes; ids and tokens are far shorter.
const HEADER_LEN_MAX: usize = 32 * 1024;

/// What every HTTPS connection shares.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) hub: Arc<Hub>,
    /// Where `/$emulator/restart` is heard.
    pub(crate) restarts: mpsc::Sender<Restart>,
    /// Where connections go that have become WebSockets.
    pub(crate) upgraded: mpsc::Sender<Upgraded>,
}

/// Serves one connection until it ends, or, once `closing` changes, until its current request is answered.
pub(crate) async fn serve(
    service: Service,
    tcp: TcpStream,
    tls: TlsAcceptor,
    stranger: Arc<Stranger>,
    mut closing: watch::Receiver<bool>,
) {
    drop(tcp.set_nodelay(true));
    let accepted = tokio::select! {
        accepted = timeout(service.hub.options.tls_timeout, tls.accept(tcp)) => accepted,
        () = stranger.asked_to_go() => return debug!("dropped during the TLS handshake to make room"),
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let websocket = Arc::new(Mutex::new(None));
    let answer = service_fn(|request| {
        let (service, stranger, websocket) = (service.clone(), stranger.clone(), websocket.clone());
        async move { answer_or_upgrade(&service, request, stranger, &websocket).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LEN_MAX)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = stranger.asked_to_go() => return debug!("dropped before a good request to make room"),
    };
    if let Err(error) = ended {
        debug!(%error, "HTTPS connection ended");
    }
    let websocket = websocket.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(upgrade) = websocket {
        hand_over(&service, upgrade, stranger).await;
    }
}

/// Answers a request. One for a WebSocket is accepted or declined here, and the connection's task hands it over.
async fn answer_or_upgrade(
    service: &Service,
    mut request: Request<Incoming>,
    stranger: Arc<Stranger>,
    websocket: &Mutex<Option<OnUpgrade>>,
) -> Result<Response<Full<Bytes>>, Unanswered> {
    if websocket::is_asked_for(request.uri().path()) {
        let accepted = websocket::accept(request.method(), request.headers());
        if accepted.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = hyper::upgrade::on(&mut request);
            *websocket.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
        }
        return Ok(accepted);
    }
    request.extensions_mut().insert(stranger);
    answer(service, request).await
}

/// Gives a connection that has become a WebSocket to the task that counts devices' connections, and ends them.
async fn hand_over(service: &Service, upgrade: OnUpgrade, stranger: Arc<Stranger>) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return debug!(%error, "no WebSocket"),
    };
    match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
        Ok(Parts { io, read_buf, .. }) => {
            let upgraded = Upgraded { stream: io.into_inner(), read: read_buf, stranger };
            if service.upgraded.send(upgraded).await.is_err() {
                debug!("no WebSocket while the hub goes down");
            }
        }
        Err(_) => debug!("a WebSocket on an unknown transport"),
    }
}

/// A request whose route and caller are known.
struct Call<'a> {
    query: &'a str,
    headers: &'a HeaderMap,
    body: Bytes,
}

impl Call<'_> {
    fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Refusal::new(ErrorCode::DeserializationError, format!("request body: {error}")))
    }

    /// A parameter of the query, decoded; `+` means a space, as in HTML forms.
    fn parameter(&self, name: &str) -> Option<String> {
        parameter(self.query, name)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.parameter(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Refusal::new(ErrorCode::ArgumentInvalid, format!("query parameter {name} is no whole number"))
        })
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn precondition(&self) -> Precondition {
        Precondition::parse(self.header(&IF_MATCH))
    }
}

/// What a request comes to.
struct Reply {
    status: StatusCode,
    body: Option<Value>,
    headers: Vec<(HeaderName, String)>,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self::with_status(StatusCode::OK, body)
    }

    fn with_status(status: StatusCode, body: Value) -> Self {
        Self { status, body: Some(body), headers: Vec::new() }
    }

    fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: None, headers: Vec::new() }
    }

    fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn etag(self, etag: &str) -> Self {
        self.header(ETAG, format!("\"{etag}\""))
    }
}

/// A request that a fault leaves without an answer: the connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("a fault that the operator asked for: no answer")]
struct Unanswered;

/// Handles a request under the faults in force. The operator's own requests know none.
async fn fare(service: &Service, request: Request<Incoming>) -> Result<Result<Reply, Refusal>, Unanswered> {
    let (method, path) = (request.method().as_str(), request.uri().path());
    if path.starts_with("/$emulator/") {
        return Ok(handle(service, request).await);
    }
    let (failure, latency) = service.hub.request_faults(method, path);
    let outcome = match failure {
        None => Ok(handle(service, request).await),
        Some(Failure { done, refusal }) => {
            if done {
                drop(handle(service, request).await);
            }
            refusal.map(Err).ok_or(Unanswered)
        }
    };
    sleep(latency).await;
    outcome
}

async fn answer(service: &Service, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Unanswered> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let reply = fare(service, request).await?.unwrap_or_else(|refusal| {
        debug!(%method, path = %path.escape_debug(), code = refusal.code.name(), "refused");
        let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let errorcode = HeaderName::from_static("iothub-errorcode");
        let mut reply = Reply::with_status(status, refusal.body(&service.hub.clock.timestamp()))
            .header(errorcode, refusal.code.name());
        reply.headers.extend(refusal.retry_after_secs.map(|secs| (RETRY_AFTER, secs.to_string())));
        reply
    });
    let body = reply.body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    // hyper would tell the machine's time, which is not always the hub's.
    headers.extend(HeaderValue::from_str(&service.hub.clock.http_date()).map(|date| (DATE, date)));
    if reply.status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

async fn handle(service: &Service, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or(""));
    let route = Route::find(&parts.method, path)?;
    if let Some(right) = route.right() {
        authorize(&service.hub, &parts.headers, path, right)?;
        if parameter(query, "api-version").is_none_or(|version| version.is_empty()) {
            return Err(Refusal::new(ErrorCode::ArgumentInvalid, "query parameter api-version is missing"));
        }
    }
    if let Some(stranger) = parts.extensions.get::<Arc<Stranger>>() {
        stranger.is_known_now();
    }
    let too_large =
        || Refusal::new(ErrorCode::MessageTooLarge, format!("body over {BODY_LEN_MAX} bytes, or cut off"));
    // One that says so beforehand need not be waited for.
    if body.size_hint().lower() > BODY_LEN_MAX as u64 {
        return Err(too_large());
    }
    let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_LEN_MAX).collect())
        .await
        .map_err(|_| Refusal::new(ErrorCode::ArgumentInvalid, "the body did not arrive in time"))?
        .map_err(|_| too_large())?
        .to_bytes();
    service.hub.throttle(parts.method.as_str(), path, &body).await?;
    let reply = route.call(service, Call { query, headers: &parts.headers, body }).await?;
    if parts.method != Method::GET {
        let unkept = |error: NotWritten| Refusal::new(ErrorCode::ServerError, error.to_string());
        service.hub.settled().await.map_err(unkept)?;
    }
    Ok(reply)
}

/// Whether the request's token is one of a policy that has `right`. The client learns no more than that it isn't.
fn authorize(hub: &Hub, headers: &HeaderMap, path: &str, right: Right) -> Result<(), Refusal> {
    let unauthorized = |message: &str| Refusal::new(ErrorCode::UnauthorizedAccess, message);
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(Token::parse).ok_or_else(|| unauthorized("no SAS token in Authorization"))?;
    if token.is_expired(hub.clock.unix_time(), hub.options.clock_skew) {
        return Err(unauthorized("the SAS token has expired"));
    }
    let state = hub.lock();
    let policy = token.policy.as_deref().and_then(|name| state.policies.find(name));
    let path = percent_decode_str(path).decode_utf8_lossy();
    let believed = policy.is_some_and(|policy| {
        [KeySlot::Primary, KeySlot::Secondary].into_iter().any(|slot| token.is_signed_by(policy.key(slot)))
            && token.covers(&hub.options.host_name, &path)
            && policy.allows(right)
    });
    if believed {
        Ok(())
    } else {
        Err(unauthorized("the SAS token's policy, signature or resource is not accepted"))
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| decode(key) == name).map(|(_, value)| decode(value)).next()
}
