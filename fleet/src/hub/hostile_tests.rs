//! Answers that no good hub gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_contract::{Identity, KeySlot};

use super::{CaFile, Category, Collection, Columns, Hub, HubError, Query};

/// A hub that answers with bytes as they are, and hangs up.
pub(super) struct HostileHub {
    pub(super) hub: Hub,
    asked: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

/// The head's lines in lower case, and the body.
pub(super) type Answering = dyn Fn(&[String], &[u8]) -> Vec<u8> + Send + Sync;

impl HostileHub {
    /// The same answer to every request.
    fn start(answer: &'static [u8]) -> Self {
        Self::answering(Arc::new(|_: &[String], _: &[u8]| answer.to_vec()))
    }

    pub(super) fn answering(answering: Arc<Answering>) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key)
                .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, certified.cert.pem()).unwrap();
        let host = format!("localhost:{}", listener.local_addr().unwrap().port());
        let text = format!(
            "HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey=bm90aGluZ25vdGhpbmdub3RoaW5nbm90aGluZyEhISE="
        );
        let login = ServiceConnectionString::parse(&text).unwrap();
        let hub = Hub::new(&login, Some(CaFile { path: &ca_file, named_by: "the test" }));
        let asked = Arc::new(AtomicUsize::new(0));
        let (tls, counted) = (Arc::new(tls), asked.clone());
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let (tls, counted, answering) = (tls.clone(), counted.clone(), answering.clone());
                std::thread::spawn(move || serve(tcp.unwrap(), tls, &*answering, &counted));
            }
        });
        Self { hub: hub.unwrap_or_else(|e| panic!("{}", e.what)), asked, _dir: dir }
    }

    pub(super) fn whose_answers_are_read_up_to(self, bytes: usize) -> Self {
        Self { hub: self.hub.with_answers_up_to(bytes), ..self }
    }

    async fn read(&self) -> HubError {
        self.hub.device(&Identity::new("d1", None).unwrap()).await.unwrap_err()
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(
    mut tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    answering: &Answering,
    asked: &AtomicUsize,
) -> Option<()> {
    let mut session = rustls::ServerConnection::new(tls).unwrap();
    let mut reader = BufReader::new(rustls::Stream::new(&mut session, &mut tcp));
    let (mut len, mut head) = (0, Vec::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => len = value.parse().unwrap(),
            None if line.trim().is_empty() => break,
            Some(_) | None => {}
        }
        head.push(line.trim().to_ascii_lowercase());
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    asked.fetch_add(1, Ordering::Relaxed);
    let answer = answering(&head, &body);
    // Who is asked for too much gets as much as is taken.
    let _ = reader.get_mut().write_all(&answer);
    session.send_close_notify();
    session.write_tls(&mut tcp).ok().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_pages_go_round_in_a_circle_ends() {
    let page =
        b"HTTP/1.1 200 OK\r\nx-ms-continuation: again\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]";
    let hostile = HostileHub::start(page);
    let error =
        hostile.hub.query_all(Query::new(Collection::Devices, Columns::Renewal, None)).await.unwrap_err();
    assert!(matches!(error, HubError::Endless { pages: 2 }), "{error}");
    assert_eq!(hostile.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foolish_retry_after_fails_everybody_at_once() {
    let throttled = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 18446744073709551616\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let hostile = HostileHub::start(throttled);
    let first = hostile.read().await;
    assert!(matches!(first, HubError::Answer { status: 429, .. }), "{first}");
    let start = Instant::now();
    for _ in 0..100 {
        let error = hostile.read().await;
        assert!(matches!(error, HubError::Closed { .. }) && error.status() == Some(429), "{error}");
        assert_eq!(error.pause_before_next_look(), None);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(hostile.asked(), 1);
    // Other categories have limits of their own.
    let twin = hostile.hub.twin(&Identity::new("d1", None).unwrap()).await.unwrap_err();
    assert!(matches!(twin, HubError::Answer { status: 429, .. }), "{twin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_with_429_counts_like_any_other() {
    let page = b"HTTP/1.1 429 Slow\r\nretry-after: 0\r\ncontent-length: 13\r\nconnection: close\r\n\r\n<html></html>";
    let hostile = HostileHub::start(page);
    // Of all calls, it makes this one only once.
    let d1 = [Identity::new("d1", None).unwrap()];
    let error = hostile
        .hub
        .regenerate_keys(
            KeySlot::Primary,
            &d1,
            tokio::time::Instant::now() + std::time::Duration::from_secs(10),
        )
        .await
        .unwrap_err();
    assert!(matches!(error, HubError::Foreign { status: 429, .. }), "{error}");
    let usage = hostile.hub.usage().into_iter().find(|(category, _)| *category == Category::Registry);
    assert_eq!(usage.map(|(_, usage)| (usage.calls, usage.throttled)), Some((1, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_break_off_or_never_end_or_are_no_json_are_errors() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{\"deviceId\"";
    let hostile = HostileHub::start(cut);
    let error = hostile.read().await;
    assert!(matches!(error, HubError::Cut { read_bytes: 11, .. }), "{error}");
    assert!(error.is_ambiguous());
    for (answer, what) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n<html/>"[..], "a page"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "nothing"),
        (b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n", "no content"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnull", "null"),
    ] {
        let error = HostileHub::start(answer).read().await;
        assert!(matches!(error, HubError::Malformed { .. }), "{what}: {error}");
    }
    let moved = b"HTTP/1.1 307 Away\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let error = HostileHub::start(moved).read().await;
    assert!(
        matches!(error, HubError::Answer { status: 307, .. }),
        "a token is not carried elsewhere: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_dots_reaches_nobody_elses_path() {
    let hostile = HostileHub::start(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    for (device_id, module_id) in [("..", None), (".", None), ("d1", Some("..")), ("d1", Some("."))] {
        let identity = Identity::new(device_id, module_id).unwrap();
        let deletion = hostile.hub.delete_device(&identity, None);
        let error = timeout(Duration::from_secs(40), deletion).await.unwrap().unwrap_err();
        assert!(matches!(error, HubError::Unsendable { .. }), "{identity}: {error}");
    }
    assert_eq!(hostile.asked(), 0);
    let good = Identity::new("...", Some(".d")).unwrap();
    hostile.hub.delete_device(&good, None).await.unwrap();
    assert_eq!(hostile.asked(), 1);
}
