//! The service side over HTTPS: the registry, twins and methods as Azure's SDKs call them, and the operator endpoints.

mod devices;
mod operator;
mod routes;
mod twins;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MATCH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::hub::Hub;
use crate::keys::KeySlot;
use crate::listeners::Restart;
use crate::policies::Right;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Precondition;
use crate::sas::Token;
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
}

/// Serves one connection until it ends, or, once `closing` changes, until its current request is answered.
pub(crate) async fn serve(
    service: Service,
    tcp: TcpStream,
    tls: TlsAcceptor,
    mut closing: watch::Receiver<bool>,
) {
    drop(tcp.set_nodelay(true));
    let stream = match timeout(service.hub.options.tls_timeout, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(&service, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LEN_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "HTTPS connection ended");
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

async fn answer(service: &Service, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let reply = handle(service, request).await.unwrap_or_else(|refusal| {
        debug!(%method, path = %path.escape_debug(), code = refusal.code.name(), "refused");
        let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let errorcode = HeaderName::from_static("iothub-errorcode");
        Reply::with_status(status, refusal.body(&service.hub.clock.timestamp()))
            .header(errorcode, refusal.code.name())
    });
    let body = reply.body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    if reply.status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
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
    let too_large =
        || Refusal::new(ErrorCode::MessageTooLarge, format!("body over {BODY_LEN_MAX} bytes, or cut off"));
    let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_LEN_MAX).collect())
        .await
        .map_err(|_| Refusal::new(ErrorCode::ArgumentInvalid, "the body did not arrive in time"))?
        .map_err(|_| too_large())?
        .to_bytes();
    route.call(service, Call { query, headers: &parts.headers, body }).await
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
