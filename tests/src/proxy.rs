//! The network between a gateway and its hub, with faults on demand: a TCP proxy in this process. It knows nothing of
//! TLS or MQTT; it carries bytes, or fails to, as modems, routers and firewalls do.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::chance::Chance;

/// How much is read from a connection at once.
const READ_LEN: usize = 8 * 1024;
/// A slow link hands over this share of a second's bytes at once.
const PIECES_PER_SEC: u64 = 8;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 64;
/// How long a closed connection may take to be closed by the other side too.
const LINGER: Duration = Duration::from_secs(5);

/// What the network suffers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Bytes stay where they are, in one direction or both. Nobody is told: connections look alive, and new ones can
    /// be opened. What was held back goes on once the fault is over.
    Stall {
        /// From the gateway to the hub.
        up: bool,
        /// From the hub to the gateway.
        down: bool,
    },
    /// All connections together have so many bytes a second in each direction. Headers of TCP and IP don't count.
    Throttle {
        /// The rate.
        bytes_per_sec: u64,
    },
    /// About one byte in so many arrives as another one, in either direction.
    Corrupt {
        /// How rare that is.
        one_in: u64,
    },
    /// A new connection is reset as soon as it has carried so many bytes, both directions together.
    ResetAfter {
        /// How many.
        bytes: u64,
    },
    /// Nobody listens. Connections that stand are not touched.
    Refuse,
}

/// One way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the gateway to the hub.
    Up,
    /// From the hub to the gateway.
    Down,
}

/// The network. Dropping it ends every connection.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    hub: SocketAddr,
    orders: watch::Sender<Orders>,
    chance: Mutex<Chance>,
    /// Until when the link is busy with earlier bytes, up and down.
    busy_until: [Mutex<Option<Instant>>; 2],
    accepted: AtomicU64,
    open: AtomicU64,
    struck: AtomicU64,
    corrupted: AtomicU64,
    carried: AtomicU64,
    /// The limits at which connections were reset.
    reset_after: Mutex<BTreeSet<u64>>,
}

/// What connections obey. The counts grow with every order; a connection obeys those that come after its beginning.
#[derive(Clone, Copy, Debug)]
struct Orders {
    fault: Fault,
    cuts: u64,
    resets: u64,
    half_closes: [u64; 2],
}

/// How a connection ends.
enum End {
    Closed,
    Reset,
}

impl Proxy {
    /// A healthy network before the hub's `port`.
    pub async fn start(port: u16, chance: Chance) -> Self {
        let orders = Orders { fault: Fault::None, cuts: 0, resets: 0, half_closes: [0; 2] };
        let shared = Arc::new(Shared {
            hub: (Ipv4Addr::LOCALHOST, port).into(),
            orders: watch::Sender::new(orders),
            chance: Mutex::new(chance),
            busy_until: Default::default(),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            struck: AtomicU64::new(0),
            corrupted: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            reset_after: Mutex::default(),
        });
        // Bound and never listening: it keeps the port for us while nobody listens.
        let holder = socket_at(0);
        let port = holder.local_addr().unwrap().port();
        let listener = socket_at(port).listen(BACKLOG).unwrap();
        let task = tokio::spawn(accept(shared.clone(), holder, listener)).abort_handle();
        Self { port, shared, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Suffers from `fault` from now on, and from nothing else.
    pub fn suffer(&self, fault: Fault) {
        self.shared.orders.send_modify(|orders| orders.fault = fault);
    }

    /// Is healthy again.
    pub fn heal(&self) {
        self.suffer(Fault::None);
    }

    /// Closes every connection in an orderly way (FIN), without any word of TLS or MQTT.
    pub fn cut(&self) {
        self.shared.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Resets every connection (RST), as a router does that has forgotten it.
    pub fn reset(&self) {
        self.shared.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Closes one direction of every connection; the other one goes on.
    pub fn half_close(&self, direction: Direction) {
        self.shared.orders.send_modify(|orders| orders.half_closes[direction as usize] += 1);
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Connections that were cut, reset or half-closed by order so far; each direction of a half-close counts.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Relaxed)
    }

    /// Whether a connection was reset after exactly so many bytes ([`Fault::ResetAfter`]).
    pub fn has_reset_after(&self, bytes: u64) -> bool {
        self.shared.reset_after.lock().unwrap().contains(&bytes)
    }

    /// Bytes that arrived as other ones so far.
    pub fn corrupted(&self) -> u64 {
        self.shared.corrupted.load(Ordering::Relaxed)
    }

    /// Bytes that were carried so far, both directions together.
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn socket_at(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
    socket
}

async fn accept(shared: Arc<Shared>, holder: TcpSocket, listener: TcpListener) {
    let port = holder.local_addr().unwrap().port();
    let mut orders = shared.orders.subscribe();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let is_refusing = orders.borrow_and_update().fault == Fault::Refuse;
        match (&listener, is_refusing) {
            (Some(_), true) => listener = None,
            (None, false) => listener = Some(socket_at(port).listen(BACKLOG).unwrap()),
            (Some(_), false) | (None, true) => {}
        }
        let arrival = async {
            match &listener {
                Some(listener) => listener.accept().await.unwrap().0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            gateway = arrival => {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                shared.open.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                connections.spawn(async move {
                    serve(gateway, &shared).await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            changed = orders.changed() => changed.unwrap(),
            Some(ended) = connections.join_next() => ended.unwrap(),
        }
    }
}

async fn serve(mut gateway: TcpStream, shared: &Shared) {
    let mut orders = shared.orders.subscribe();
    let born = *orders.borrow_and_update();
    // A hub that is down: the gateway sees its connection reset.
    let Ok(mut hub) = TcpStream::connect(shared.hub).await else {
        let _ = gateway.set_zero_linger();
        return;
    };
    let _ = (gateway.set_nodelay(true), hub.set_nodelay(true));
    let end = {
        let (gateway_read, gateway_write) = gateway.split();
        let (hub_read, hub_write) = hub.split();
        let carried = AtomicU64::new(0);
        let pump = |direction| Pump { direction, born, shared, carried: &carried };
        let (up, down) = (pump(Direction::Up), pump(Direction::Down));
        let ordered = async {
            let is_ended = |now: &Orders| now.cuts != born.cuts || now.resets != born.resets;
            let now = *orders.wait_for(is_ended).await.unwrap();
            shared.struck.fetch_add(1, Ordering::Relaxed);
            if now.resets != born.resets { End::Reset } else { End::Closed }
        };
        tokio::select! {
            biased;
            end = ordered => end,
            ended = async {
                tokio::try_join!(up.run(gateway_read, hub_write), down.run(hub_read, gateway_write))
            } => match ended {
                Ok(((), ())) => End::Closed,
                Err(end) => end,
            },
        }
    };
    match end {
        End::Reset => {
            let _ = (gateway.set_zero_linger(), hub.set_zero_linger());
        }
        End::Closed => {
            let _ = timeout(LINGER, async { tokio::join!(close(&mut gateway), close(&mut hub)) }).await;
        }
    }
}

/// Closes in an orderly way: whatever is still unread when a socket is dropped would turn FIN into RST.
async fn close(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let mut unread = [0; READ_LEN];
    while matches!(stream.read(&mut unread).await, Ok(1..)) {}
}

struct Pump<'a> {
    direction: Direction,
    born: Orders,
    shared: &'a Shared,
    /// Bytes of this connection, both directions together.
    carried: &'a AtomicU64,
}

impl Pump<'_> {
    /// Carries bytes until there are no more.
    async fn run(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let way = self.direction as usize;
        let mut orders = self.shared.orders.subscribe();
        let mut buffer = [0; READ_LEN];
        loop {
            let is_half_closed = |now: &Orders| now.half_closes[way] != self.born.half_closes[way];
            let read = tokio::select! {
                biased;
                _ = orders.wait_for(is_half_closed) => break,
                read = from.read(&mut buffer) => read.map_err(|_| End::Reset)?,
            };
            self.carry(&mut buffer[..read], &mut to, &mut orders).await?;
            if read == 0 {
                return to.shutdown().await.map_err(|_| End::Reset);
            }
        }
        self.shared.struck.fetch_add(1, Ordering::Relaxed);
        to.shutdown().await.map_err(|_| End::Reset)?;
        while from.read(&mut buffer).await.map_err(|_| End::Reset)? > 0 {}
        Ok(())
    }

    /// Carries `bytes` piece by piece, each as the network is at that moment.
    async fn carry(
        &self,
        mut bytes: &mut [u8],
        to: &mut WriteHalf<'_>,
        orders: &mut watch::Receiver<Orders>,
    ) -> Result<(), End> {
        loop {
            // The end of the bytes waits like the bytes.
            let fault = orders.wait_for(|now| !self.is_stalled_by(now.fault)).await.unwrap().fault;
            if bytes.is_empty() {
                return Ok(());
            }
            let len = match fault {
                Fault::Throttle { bytes_per_sec } => {
                    bytes.len().min(usize::try_from(bytes_per_sec / PIECES_PER_SEC).unwrap().max(1))
                }
                Fault::ResetAfter { .. } => {
                    // Each connection has the limit that it began with, and earlier ones have none.
                    let Fault::ResetAfter { bytes: limit } = self.born.fault else {
                        break self.pass(bytes, to).await;
                    };
                    let rest = limit.saturating_sub(self.carried.load(Ordering::Relaxed));
                    if rest == 0 {
                        self.shared.reset_after.lock().unwrap().insert(limit);
                        return Err(End::Reset);
                    }
                    bytes.len().min(usize::try_from(rest).unwrap())
                }
                Fault::None | Fault::Stall { .. } | Fault::Corrupt { .. } | Fault::Refuse => bytes.len(),
            };
            let (piece, rest) = bytes.split_at_mut(len);
            bytes = rest;
            match fault {
                Fault::Throttle { bytes_per_sec } => self.take_turn(len, bytes_per_sec).await,
                Fault::Corrupt { one_in } => self.corrupt(piece, one_in),
                Fault::None | Fault::Stall { .. } | Fault::ResetAfter { .. } | Fault::Refuse => {}
            }
            self.pass(piece, to).await?;
        }
    }

    async fn pass(&self, piece: &[u8], to: &mut WriteHalf<'_>) -> Result<(), End> {
        to.write_all(piece).await.map_err(|_| End::Reset)?;
        self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.shared.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn is_stalled_by(&self, fault: Fault) -> bool {
        let Fault::Stall { up, down } = fault else { return false };
        match self.direction {
            Direction::Up => up,
            Direction::Down => down,
        }
    }

    /// Waits until the link has carried what came before, and these bytes.
    async fn take_turn(&self, len: usize, bytes_per_sec: u64) {
        let whole = Duration::from_secs(len as u64) / u32::try_from(bytes_per_sec).unwrap();
        let done = {
            let mut busy_until = self.shared.busy_until[self.direction as usize].lock().unwrap();
            let now = Instant::now();
            let done = busy_until.map_or(now, |until| until.max(now)) + whole;
            *busy_until = Some(done);
            done
        };
        sleep_until(done).await;
    }

    fn corrupt(&self, piece: &mut [u8], one_in: u64) {
        let mut chance = self.shared.chance.lock().unwrap();
        for byte in piece {
            if chance.below(one_in) == 0 {
                // Never the same value again.
                *byte ^= u8::try_from(1 + chance.below(255)).unwrap();
                self.shared.corrupted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
