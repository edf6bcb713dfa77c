//! HTTPS with limits: trusted roots, bounded waits, bounded bodies, no redirects.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, Request, Url};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::body::{self, Growing};
use super::error::HubError;
use super::time::HubTime;
use crate::clock::unix_now_secs;
use crate::failure::Failure;

/// Longest wait for a TCP and TLS connection, in seconds.
const CONNECT_TIMEOUT_SECS: u64 = 10;
/// Longest wait for a whole answer, in seconds. Hubs shape traffic by answering late before they answer 429.
pub(super) const ANSWER_TIMEOUT_SECS: u64 = 60;
/// Longest answer that is read, in bytes. A list of 1000 identities, the most a hub gives at once, takes about 1.2 MB.
const ANSWER_LEN_MAX: usize = 8 * 1024 * 1024;
/// Longest file of certificates that is read, in bytes; the whole of a public trust store takes 250 KB.
const CA_FILE_LEN_MAX: u64 = 1024 * 1024;

/// A client for one origin.
pub(crate) struct Transport {
    http: reqwest::Client,
    origin: String,
    answer_len_max: usize,
    time: HubTime,
}

/// A whole answer; its body may hold keys and is wiped.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) error_code: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// Where the next page of a query begins.
    pub(crate) continuation: Option<String>,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A file with a CA to trust besides the system's.
#[derive(Clone, Copy)]
pub(crate) struct CaFile<'a> {
    pub(crate) path: &'a Path,
    /// Who named it, for messages: a flag, or a file.
    pub(crate) named_by: &'a str,
}

impl Transport {
    /// For `https://{authority}`, trusting the system's roots and those in `ca_file`.
    pub(crate) fn new(authority: &str, ca_file: Option<CaFile<'_>>) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| Failure::failed(format!("set up HTTPS: {e}"));
        let tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|e| fail(&e))?
                .with_root_certificates(trusted_roots(ca_file)?)
                .with_no_client_auth();
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            // A redirect would carry the token to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(CONNECT_TIMEOUT_SECS))
            .timeout(Duration::from_secs(ANSWER_TIMEOUT_SECS))
            .user_agent(concat!("twinkey/", env!("CARGO_PKG_VERSION")));
        // A proxy is for the world outside, not for a hub on this machine.
        let builder = if is_loopback(authority) { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(|e| fail(&e))?;
        Ok(Self {
            http,
            origin: format!("https://{authority}"),
            answer_len_max: ANSWER_LEN_MAX,
            time: HubTime::default(),
        })
    }

    /// The same, but it reads no more than this of an answer.
    #[cfg(test)]
    pub(super) fn with_answers_up_to(self, answer_len_max: usize) -> Self {
        Self { answer_len_max, ..self }
    }

    /// Unix seconds by the clock of whoever answers; by this machine's before the first answer.
    pub(crate) fn unix_now_secs(&self) -> u64 {
        self.time.unix_secs(Instant::now(), unix_now_secs())
    }

    /// One exchange, without repetition. `path` starts with a slash and is percent-encoded.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, HubError> {
        let call = describe(&method, path);
        let url = Url::parse(&format!("{}{path}", self.origin));
        let url = url.map_err(|e| HubError::Token { reason: format!("HostName makes no URL: {e}") })?;
        // An id that is nothing but dots would name something else: `/devices/d1/modules/..` is the device.
        if path.split('?').next() != Some(url.path()) {
            return Err(HubError::Unsendable { call, reason: "an id can't consist of dots".to_owned() });
        }
        // A query is sent by POST, and changes nothing; it is never asked whether it did.
        let is_change = !method.is_safe();
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        if let Some(body) = body {
            let json = reqwest::header::HeaderValue::from_static("application/json; charset=utf-8");
            request.headers_mut().insert(CONTENT_TYPE, json);
            *request.body_mut() = Some(body::sendable(body));
        }
        let response = self.http.execute(request).await.map_err(|source| {
            let (call, source) = (call.clone(), source.without_url());
            match (source.is_connect(), is_about_trust(&source)) {
                (true, true) => HubError::Untrusted { call, source },
                (true, false) => HubError::Unreached { call, source: source.into() },
                (false, _) => HubError::Unanswered { call, source },
            }
        })?;
        let status = response.status().as_u16();
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let error_code = header("iothub-errorcode");
        let date = header(DATE.as_str());
        if let Some(date) = &date {
            self.time.note(date, Instant::now());
        }
        let retry_after = header(RETRY_AFTER.as_str())
            .and_then(|text| read_retry_after(&text, date.as_deref(), unix_now_secs()));
        let continuation = header("x-ms-continuation").filter(|text| !text.is_empty());
        let body = read_bounded(response, &call, self.answer_len_max, is_change).await?;
        Ok(Answer { status, error_code, retry_after, continuation, body })
    }
}

/// Method and path without the query, for messages.
pub(crate) fn describe(method: &Method, path: &str) -> String {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    format!("{method} {path}")
}

/// Seconds, or a moment (RFC 9110 §10.2.3), which is compared with the hub's own `Date` where there is one: this computer's
/// clock may be off. A moment that is over is no time; what is neither is nothing.
fn read_retry_after(text: &str, date: Option<&str>, now_unix_secs: u64) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // So many digits that it can't be read is too long as well.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let now = now.or_else(|| UNIX_EPOCH.checked_add(Duration::from_secs(now_unix_secs)))?;
    Some(until.duration_since(now).unwrap_or_default())
}

async fn read_bounded(
    mut response: reqwest::Response,
    call: &str,
    max_bytes: usize,
    is_change: bool,
) -> Result<Zeroizing<Vec<u8>>, HubError> {
    let mut body = Growing::default();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body.whole()),
            Ok(Some(chunk)) if body.len() + chunk.len() <= max_bytes => body.push(&chunk),
            Ok(Some(_)) => {
                return Err(HubError::TooLong {
                    call: call.to_owned(),
                    max_bytes: ANSWER_LEN_MAX,
                    is_change,
                });
            }
            Err(source) => {
                let (call, read_bytes) = (call.to_owned(), body.len());
                return Err(HubError::Cut { call, read_bytes, source: source.without_url() });
            }
        }
    }
}

/// Whether the hub's certificate is the cause. An I/O error hides its inside from `source`.
fn is_about_trust(error: &(dyn Error + 'static)) -> bool {
    let inside = |e: &io::Error| e.get_ref().is_some_and(|inner| is_about_trust(inner));
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || error.downcast_ref::<io::Error>().is_some_and(inside)
        || error.source().is_some_and(is_about_trust)
}

fn trusted_roots(ca_file: Option<CaFile<'_>>) -> Result<rustls::RootCertStore, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(CaFile { path, named_by }) = ca_file {
        let fail = |what: String| {
            Failure::usage(format!("{named_by} {}: {what}", path.display())).next(
                "name a PEM file with the CA's certificate; --ca-file goes before what a login file says",
            )
        };
        let len = fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
        if len > CA_FILE_LEN_MAX {
            return Err(fail(format!("{len} bytes; at most {CA_FILE_LEN_MAX} are read")));
        }
        let pem = fs::read(path).map_err(|e| fail(e.to_string()))?;
        let mut count = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| fail(format!("is no PEM file: {e}")))?;
            roots.add(certificate).map_err(|e| fail(format!("certificate {}: {e}", count + 1)))?;
            count += 1;
        }
        if count == 0 {
            return Err(fail("holds no certificate".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(Failure::failed("this system has no trusted root certificates")
            .next("install the package ca-certificates, or give --ca-file"));
    }
    Ok(roots)
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        Some(_) | None => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_moment_by_the_clock_of_the_hub() {
        const NOW: u64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
        let read = |text, date| read_retry_after(text, date, NOW).map(|wait| wait.as_secs());
        assert_eq!(read(" 7 ", None), Some(7));
        assert_eq!(read("99999999999999999999999", None), Some(u64::MAX));
        let moment = "Sun, 06 Nov 1994 08:50:07 GMT";
        assert_eq!(read(moment, None), Some(30));
        assert_eq!(read(moment, Some("Sun, 06 Nov 1994 08:50:00 GMT")), Some(7));
        assert_eq!(read(moment, Some("Mon, 07 Nov 1994 08:50:00 GMT")), Some(0), "over");
        assert_eq!(read(moment, Some("yesterday")), Some(30));
        for odd in ["", "-1", "1.5", "soon", "7 s", "Sun, 99 Nov 1994 08:50:07 GMT"] {
            assert_eq!(read(odd, None), None, "{odd:?}");
        }
    }

    #[test]
    fn only_names_of_this_machine_bypass_the_proxy() {
        for local in ["localhost", "localhost:8443", "127.0.0.1:443", "[::1]:443"] {
            assert!(is_loopback(local), "{local}");
        }
        for remote in ["hub.azure-devices.net", "localhost.example.com", "10.0.0.1:443"] {
            assert!(!is_loopback(remote), "{remote}");
        }
    }
}
