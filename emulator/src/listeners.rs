//! The two listening sockets, and the tasks behind them: accepting, restarting, ending.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use crate::error::EmulatorError;
use crate::history::ClosedBy;
use crate::hub::Hub;
use crate::mqtt;
use crate::rest::{self, Service};
use crate::strangers::Stranger;
use crate::websocket::WebSocket;

/// Most callers at one time on the HTTPS port; more are closed at once. On the MQTT port the strangers are counted,
/// and the known are no more than there are identities.
const CALLERS_MAX: usize = 20_000;
/// Most connections that have become WebSockets and wait for their task; more wait to be handed over.
const UPGRADED_MAX: usize = 16;
/// Wait after a failed accept: it fails at once again while, say, no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for HTTPS requests under way when the hub goes down.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Wait between attempts to get the ports back after a restart.
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// The hub goes down, and comes back on the same ports.
#[derive(Debug)]
pub(crate) struct Restart {
    pub(crate) down: Duration,
    pub(crate) forget_sessions: bool,
}

/// A connection of the HTTPS port that has become a WebSocket, and what the client has said on it already.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) read: Bytes,
    pub(crate) stranger: Arc<Stranger>,
}

/// Both sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    mqtts: TcpListener,
    https: TcpListener,
}

impl Listeners {
    pub(crate) async fn bind(mqtts: SocketAddr, https: SocketAddr) -> Result<Self, EmulatorError> {
        Ok(Self { mqtts: bind("MQTT over TLS", mqtts).await?, https: bind("HTTPS", https).await? })
    }

    /// The addresses with their real ports: first MQTT over TLS, then HTTPS.
    pub(crate) fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.mqtts.local_addr()?, self.https.local_addr()?))
    }
}

async fn bind(service: &'static str, address: SocketAddr) -> Result<TcpListener, EmulatorError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| EmulatorError::Listen { service, address, source })
}

/// Accepts connections until `stop` is used or dropped. A restart closes everything in between.
pub(crate) async fn run(
    hub: Arc<Hub>,
    tls: TlsAcceptor,
    mut listeners: Listeners,
    (mqtts, https): (SocketAddr, SocketAddr),
    mut stop: oneshot::Receiver<()>,
) {
    // One restart at a time; a second request while one waits is refused.
    let (sender, mut restarts) = mpsc::channel(1);
    loop {
        // What became a WebSocket before a restart must not be served after it.
        let (upgraded_sender, upgraded) = mpsc::channel(UPGRADED_MAX);
        let service = Service { hub: hub.clone(), restarts: sender.clone(), upgraded: upgraded_sender };
        let restart = accept(&service, &tls, &listeners, upgraded, &mut restarts, &mut stop).await;
        drop(listeners);
        let Some(Restart { down, forget_sessions }) = restart else {
            return;
        };
        if forget_sessions {
            hub.lock().forget_sessions();
        }
        info!(down_ms = down.as_millis(), forget_sessions, "down");
        let rebound = async {
            sleep(down).await;
            loop {
                match Listeners::bind(mqtts, https).await {
                    Ok(listeners) => return listeners,
                    Err(error) => warn!(%error, "the ports are not free again yet"),
                }
                sleep(BIND_PAUSE).await;
            }
        };
        listeners = tokio::select! {
            listeners = rebound => listeners,
            _ = &mut stop => return,
        };
        info!("up again");
    }
}

/// Accepts connections until the hub is to go down, and ends them all then. `None`: for good.
async fn accept(
    service: &Service,
    tls: &TlsAcceptor,
    listeners: &Listeners,
    mut upgraded: mpsc::Receiver<Upgraded>,
    restarts: &mut mpsc::Receiver<Restart>,
    stop: &mut oneshot::Receiver<()>,
) -> Option<Restart> {
    let hub = &service.hub;
    let (mut devices, mut callers) = (JoinSet::new(), JoinSet::new());
    let (close, closing) = watch::channel(false);
    let restart = loop {
        // In no fixed order: a port that is flooded must not starve the other.
        tokio::select! {
            _ = &mut *stop => break None,
            restart = restarts.recv() => break restart,
            Some(_) = devices.join_next() => {}
            Some(_) = callers.join_next() => {}
            accepted = listeners.mqtts.accept() => match accepted {
                Ok((tcp, _)) => {
                    let stranger = enter(hub);
                    devices.spawn(mqtt::serve_tls(hub.clone(), tcp, tls.clone(), stranger));
                }
                Err(error) => pause(hub, &error).await,
            },
            Some(Upgraded { stream, read, stranger }) = upgraded.recv() => {
                devices.spawn(mqtt::serve(hub.clone(), WebSocket::new(stream, &read), stranger));
            }
            accepted = listeners.https.accept() => match accepted {
                Ok(_) if callers.len() >= CALLERS_MAX => debug!("too many HTTPS connections"),
                Ok((tcp, _)) => {
                    let stranger = enter(hub);
                    callers.spawn(rest::serve(service.clone(), tcp, tls.clone(), stranger, closing.clone()));
                }
                Err(error) => pause(hub, &error).await,
            },
        }
    };
    // First the tasks, then their spans: no connection can be admitted in between.
    devices.shutdown().await;
    hub.lock().close_all(ClosedBy::Restart);
    let _ = close.send(true);
    let drained = async { while callers.join_next().await.is_some() {} };
    if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        debug!("HTTPS requests under way are cut off");
    }
    callers.shutdown().await;
    restart
}

/// Takes a new connection in; the oldest stranger may have to go for it.
fn enter(hub: &Hub) -> Arc<Stranger> {
    let (stranger, is_crowded) = hub.strangers.enter();
    if is_crowded && let Some(count) = hub.crowded_warning.is_due(hub.clock.now()) {
        warn!(
            count,
            max = hub.options.strangers_max,
            "connections that never authenticated made room for newer ones"
        );
    }
    stranger
}

/// After a failed accept. The usual reason is that no file descriptor is free: then a stranger gives up its own.
async fn pause(hub: &Hub, error: &std::io::Error) {
    let has_made_room = hub.strangers.drop_oldest();
    if let Some(count) = hub.accept_warning.is_due(hub.clock.now()) {
        warn!(%error, count, has_made_room, "accept failed");
    }
    sleep(ACCEPT_PAUSE).await;
}
