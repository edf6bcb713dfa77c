//! A hub that answers twin requests with any bytes, for what a real one never says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use twinkey_agent::hub::wire::{Received, Wire, WireError};

/// A topic's prefix that asks for the twin.
const TWIN_GET: &str = "$iothub/twin/GET/?$rid=";
/// A topic's prefix that changes reported properties.
const REPORTED: &str = "$iothub/twin/PATCH/properties/reported/?$rid=";

/// The hub. Dropping it ends it.
#[derive(Debug)]
pub struct ScriptedHub {
    port: u16,
    twin: watch::Sender<Bytes>,
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
    dir: TempDir,
}

/// What devices have said.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// TCP connections.
    pub connections: usize,
    /// CONNECTs; each was accepted.
    pub connects: usize,
    /// The last change of reported properties.
    pub report: Option<Value>,
}

impl ScriptedHub {
    /// A hub whose certificate is for `certificate_name`, and whose twin is `twin`.
    pub async fn start(certificate_name: &str, twin: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed([certificate_name.to_owned()]).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certified.cert.pem()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (twin, twins) = watch::channel(Bytes::copy_from_slice(twin));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(listen(listener, acceptor, twins, seen.clone())).abort_handle();
        Self { port, twin, seen, task, dir }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> PathBuf {
        Path::join(self.dir.path(), "ca.pem")
    }

    /// Answers twin requests with these bytes from now on, and tells the device that there is news.
    pub fn show_twin(&self, twin: &[u8]) {
        self.twin.send_replace(Bytes::copy_from_slice(twin));
    }

    /// What devices have said so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for ScriptedHub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    listener: TcpListener,
    tls: TlsAcceptor,
    twins: watch::Receiver<Bytes>,
    seen: Arc<Mutex<Seen>>,
) {
    let mut devices = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        seen.lock().unwrap().connections += 1;
        devices.spawn(serve(tcp, tls.clone(), twins.clone(), seen.clone()));
    }
}

async fn serve(tcp: TcpStream, tls: TlsAcceptor, mut twins: watch::Receiver<Bytes>, seen: Arc<Mutex<Seen>>) {
    // A device that does not trust us ends here.
    let Ok(stream) = tls.accept(tcp).await else { return };
    let mut wire = Wire::new(stream);
    twins.mark_unchanged();
    loop {
        let answer = tokio::select! {
            packet = wire.next() => match packet {
                Ok(Received::Packet(packet)) => answer(packet, &twins.borrow(), &mut seen.lock().unwrap()),
                Ok(Received::TooLarge(_)) | Err(_) => return,
            },
            Ok(()) = twins.changed() => {
                Some(publish("$iothub/twin/PATCH/properties/desired/?$version=2".to_owned(), Bytes::from("{}")))
            }
        };
        let sent: Result<(), WireError> = match answer {
            Some(packet) => wire.queue(&packet),
            None => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn answer(packet: Packet, twin: &Bytes, seen: &mut Seen) -> Option<Packet> {
    match packet {
        Packet::Connect(_) => {
            seen.connects += 1;
            Some(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)))
        }
        Packet::Subscribe(subscribe) => {
            let granted = vec![SubscribeReasonCode::Success(QoS::AtMostOnce); subscribe.filters.len()];
            Some(Packet::SubAck(SubAck::new(subscribe.pkid, granted)))
        }
        Packet::Publish(said) => {
            if let Some(request) = said.topic.strip_prefix(TWIN_GET) {
                return Some(publish(format!("$iothub/twin/res/200/?$rid={request}"), twin.clone()));
            }
            if let Some(request) = said.topic.strip_prefix(REPORTED) {
                seen.report = serde_json::from_slice(&said.payload).ok();
                return Some(publish(
                    format!("$iothub/twin/res/204/?$rid={request}&$version=2"),
                    Bytes::new(),
                ));
            }
            (said.qos != QoS::AtMostOnce).then(|| Packet::PubAck(PubAck::new(said.pkid)))
        }
        Packet::PingReq => Some(Packet::PingResp),
        Packet::ConnAck(_)
        | Packet::PubAck(_)
        | Packet::PubRec(_)
        | Packet::PubRel(_)
        | Packet::PubComp(_)
        | Packet::SubAck(_)
        | Packet::Unsubscribe(_)
        | Packet::UnsubAck(_)
        | Packet::PingResp
        | Packet::Disconnect => None,
    }
}

fn publish(topic: String, payload: Bytes) -> Packet {
    Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, payload))
}
