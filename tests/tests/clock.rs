//! The clock: what the hub says of the time, over real TLS, and the real agent and operators on machines whose clocks are
//! wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, as it should")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::RootCertStore;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use twinkey_agent::clock::{Clock, MADE_UNIX_SECS};
use twinkey_agent::hub::Timing;
use twinkey_agent::hub::dial::{Dial as _, DialError, TlsDialler};
use twinkey_agent::hub::time::AskError;
use twinkey_agent::hub::tls::{Fault, Trust, fault_of};
use twinkey_tests::gateway::{Gateway, Settings, connection_string, text};
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

/// 2020-07-01T12:00:00Z, in the middle of the certificate's life.
const MIDDLE: (u64, &str) = (1_593_604_800, "Wed, 01 Jul 2020 12:00:00 GMT");
/// 2031-01-01T00:00:00Z, long after it.
const AFTER: (u64, &str) = (1_924_992_000, "Wed, 01 Jan 2031 00:00:00 GMT");

/// A server whose certificate is for `name` and valid in 2020 only, and whose answers carry `date`.
async fn server(name: &str, date: &'static str) -> (u16, RootCertStore) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // An agent that does not trust us ends here.
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut request = [0; 1_024];
            if stream.read(&mut request).await.is_ok() {
                let head = format!("HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (port, roots)
}

fn dialler(port: u16, trust: Trust) -> TlsDialler {
    TlsDialler {
        host: "localhost".to_owned(),
        port,
        https_port: port,
        config: trust.client_config().unwrap(),
        trust,
        timing: Timing::DEFAULT,
    }
}

fn wrong_clocks() -> [Clock; 3] {
    [0, MIDDLE.0 - 86_400 * 365, AFTER.0].map(|unix_secs| Clock::with_wall(move || unix_secs))
}

fn tls_fault(error: &DialError) -> Fault {
    let DialError::Tls { source, .. } = error else { panic!("{error}") };
    fault_of(source)
}

#[tokio::test]
async fn whoever_does_not_know_the_time_believes_a_hub_whose_certificate_is_valid_at_the_time_it_names() {
    let (port, roots) = server("localhost", MIDDLE.1).await;
    for clock in wrong_clocks() {
        let trust = Trust::in_roots(roots.clone(), clock).unwrap();
        assert_eq!(dialler(port, trust).ask_time().await.unwrap(), MIDDLE.0);
    }
}

#[tokio::test]
async fn a_hub_that_names_a_time_at_which_its_certificate_is_not_valid_is_not_believed() {
    let (port, roots) = server("localhost", AFTER.1).await;
    for clock in wrong_clocks() {
        let trust = Trust::in_roots(roots.clone(), clock).unwrap();
        let error = dialler(port, trust).ask_time().await.unwrap_err();
        assert!(matches!(error, AskError::Contradiction { unix_secs } if unix_secs == AFTER.0), "{error}");
    }
}

#[tokio::test]
async fn whoever_does_not_know_the_time_still_checks_the_chain_and_the_name() {
    let (port, roots) = server("elsewhere.example", MIDDLE.1).await;
    let (_, strangers) = server("localhost", MIDDLE.1).await;
    for (roots, fault) in [(roots, Fault::Name), (strangers, Fault::Chain)] {
        let trust = Trust::in_roots(roots, Clock::with_wall(|| MIDDLE.0)).unwrap();
        let error = dialler(port, trust).ask_time().await.unwrap_err();
        let AskError::Dial(error) = error else { panic!("{error}") };
        assert_eq!(tls_fault(&error), fault);
    }
}

#[tokio::test]
async fn connections_that_carry_tokens_are_not_opened_when_a_date_is_wrong() {
    let (port, roots) = server("localhost", MIDDLE.1).await;
    for clock in wrong_clocks() {
        let trust = Trust::in_roots(roots.clone(), clock).unwrap();
        let Err(error) = dialler(port, trust).dial().await else { panic!("it was opened") };
        assert_eq!(tls_fault(&error), Fault::Date);
    }
    // Once the time is known, they are.
    let clock = Clock::with_wall(|| 0);
    let trust = Trust::in_roots(roots, clock.clone()).unwrap();
    let dialler = dialler(port, trust);
    clock.compare(dialler.ask_time().await.unwrap());
    assert!(dialler.dial().await.is_ok());
}

/// What makes a program see another time: `TWINKEY_CLOCK_LIBRARY` for an agent that is not this machine's
/// (tests/board/pretend.c), else libfaketime, where it is installed.
fn clock_library() -> Option<PathBuf> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    let given = std::env::var_os("TWINKEY_CLOCK_LIBRARY").map(PathBuf::from);
    given.or_else(|| places.into_iter().map(PathBuf::from).find(|path| path.exists()))
}

/// What makes a program see a time that is this far ahead of the machine's.
fn wrong_clock(library: &Path, ahead_secs: i64) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library.to_str().unwrap().to_owned()),
        ("FAKETIME", format!("{ahead_secs:+}")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("PRETEND_SECONDS", ahead_secs.to_string()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_agent_comes_up_whatever_its_machines_clock_says() {
    let Some(library) = clock_library() else {
        eprintln!("skipped: libfaketime (Debian's package faketime) is not installed");
        return;
    };
    let hub = TestHub::start().await;
    const DAY: i64 = 86_400;
    let since_1971 = i64::try_from(MADE_UNIX_SECS).unwrap() - 365 * DAY;
    // Before the floor, a month behind, thirty years ahead (later than 32 bits can count; the emulator's certificates last
    // until 2049).
    for (device, ahead_secs, is_wrong) in
        [("d1", -since_1971, true), ("d2", -30 * DAY, true), ("d3", 30 * 365 * DAY, true), ("d4", 0, false)]
    {
        let keys = hub.create(device).await;
        let mut settings = Settings::for_hub(&hub);
        settings.environment = wrong_clock(&library, ahead_secs);
        let gateway = Gateway::with(settings, &connection_string("localhost", device, &keys.primary));
        let agent = gateway.start();
        let status =
            gateway.until_status("a connection", |status| status["connection"]["connected"] == true).await;
        assert!(gateway.publishes().await, "{device}");
        let source = if is_wrong { "hub" } else { "machine" };
        assert_eq!(status["clock"]["source"], source, "{device}: {status:#}");
        let report = hub
            .until_report(device, "what it says of its clock", |report| {
                report.clock_offset_secs.is_some() == is_wrong
            })
            .await;
        if let Some(offset_secs) = report.clock_offset_secs {
            // What the agent makes of it is the true time: the hub accepted its token.
            assert!(offset_secs.unsigned_abs() > 86_400, "{offset_secs}");
        }
        // The floor after the next start is true. It is written beside the connection, which does not wait for it.
        let last_seen = gateway.state_dir().join("last-seen");
        let noted = until("the time is noted", async || std::fs::read_to_string(&last_seen).ok()).await;
        let (noted, again) = noted.trim().split_once(' ').unwrap();
        assert_eq!(noted, again);
        assert!(noted.parse::<u64>().unwrap() >= MADE_UNIX_SECS);
        agent.stop().await;
    }
}

/// The renewal of a key of `device`, which nobody answers: its lease stands until it gives up.
fn endless_renewal(hub: &TestHub, device: &str, library: &Path, ahead_secs: i64) -> Command {
    let mut command = hub.renewal(device, "secondary");
    command.args(["--force-dark", device, "--plain", "--timeout", "60s"]);
    command.envs(wrong_clock(library, ahead_secs));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_whose_clocks_are_minutes_apart_respect_each_others_leases() {
    let Some(library) = clock_library() else {
        eprintln!("skipped: libfaketime (Debian's package faketime) is not installed");
        return;
    };
    let hub = TestHub::start().await;
    for (device, first_secs, second_secs) in [("d1", -200, 200), ("d2", 200, -200), ("d3", 0, 200)] {
        hub.create(device).await;
        let mut first = endless_renewal(&hub, device, &library, first_secs).spawn().unwrap();
        let twin = until("the first operator's offer", async || {
            Some(hub.twin(device).await).filter(|twin| !twin["properties"]["desired"]["keyRenewal"].is_null())
        })
        .await;
        let (ordered, lease) = (hub.keys(device).await, &twin["tags"]["keyRenewal"]["lease"]);

        let second = endless_renewal(&hub, device, &library, second_secs).output().await.unwrap();
        let said = text(&second.stderr);
        let outcomes: Value = serde_json::from_slice(&second.stdout).unwrap_or_default();
        assert_eq!(outcomes[0]["outcome"], "busy", "{device}: {outcomes} {said}");
        assert_eq!(hub.keys(device).await, ordered, "{device}: a second key was made");
        let left = said.split_once(", ").and_then(|(_, rest)| rest.split_once(" s left")).unwrap().0;
        assert!((1..=180).contains(&left.parse::<u32>().unwrap()), "{said}");

        // Killed, it holds nothing any more: others of this machine don't wait, whatever the clocks say.
        first.kill().await.unwrap();
        let mut third = endless_renewal(&hub, device, &library, second_secs).spawn().unwrap();
        until("the next operator's lease", async || {
            assert!(third.try_wait().unwrap().is_none(), "{device}: it has given up");
            let taken = hub.twin(device).await["tags"]["keyRenewal"]["lease"]["by"].clone();
            Some(()).filter(|()| taken != lease["by"])
        })
        .await;
        third.kill().await.unwrap();
    }
}
