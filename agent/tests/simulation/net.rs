//! The network: byte streams with latency that are torn, cut and stalled, and the agent's way to open them.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use twinkey_agent::hub::dial::{Asking, Dial, DialError, Dialling, Stage, Stream};
use twinkey_agent::hub::time::AskError;

use crate::hub::serve;
use crate::rng::Rng;
use crate::world::{DialPlan, World};

/// How a connection is to fare.
pub(crate) struct Plan {
    pub(crate) rng: Rng,
    /// Longest time on the way, in milliseconds.
    pub(crate) latency_ms: u64,
    /// Most bytes that one read gives.
    pub(crate) read_len_max: usize,
    /// After so many bytes in one direction the connection breaks.
    pub(crate) cut_after: [Option<usize>; 2],
}

/// Both directions of a connection.
pub(crate) struct Link {
    lanes: [Lane; 2],
    rng: Rng,
    latency_ms: u64,
    read_len_max: usize,
    /// Nothing comes through any more, and nobody is told.
    is_stalled: bool,
}

#[derive(Default)]
struct Lane {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes of the first chunk that were read.
    offset: usize,
    written_len: usize,
    read_len: usize,
    cut_after: Option<usize>,
    closed_at: Option<Instant>,
    last_arrival: Option<Instant>,
    reader: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Link {
    fn arrival(&mut self, lane: usize) -> Instant {
        let latency = Duration::from_millis(self.rng.range(0, self.latency_ms));
        let lane = &mut self.lanes[lane];
        // Order is kept on a stream.
        let at = (Instant::now() + latency).max(lane.last_arrival.unwrap_or_else(Instant::now));
        lane.last_arrival = Some(at);
        at
    }

    /// Breaks it for both sides; what is under way is lost.
    pub(crate) fn cut(&mut self) {
        let now = Instant::now();
        for lane in &mut self.lanes {
            lane.chunks.clear();
            lane.offset = 0;
            lane.closed_at = Some(now);
            lane.wake();
        }
    }

    /// From now on nothing comes through.
    pub(crate) fn stall(&mut self) {
        self.is_stalled = true;
    }

    fn write(&mut self, lane: usize, bytes: &[u8]) {
        if self.is_stalled || self.lanes[lane].closed_at.is_some() {
            // The sender's network stack took it; it never arrives.
            return;
        }
        let written_len = self.lanes[lane].written_len;
        let room = self.lanes[lane].cut_after.map_or(usize::MAX, |cut_after| cut_after - written_len);
        let kept = bytes.len().min(room);
        let at = self.arrival(lane);
        let way = &mut self.lanes[lane];
        way.written_len += kept;
        way.chunks.push_back((at, bytes[..kept].to_vec()));
        way.wake();
        if kept < bytes.len() {
            for lane in &mut self.lanes {
                lane.closed_at = Some(at);
                lane.wake();
            }
        }
    }
}

/// Which end a stream is.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Agent,
    Hub,
}

/// One end of a connection.
pub(crate) struct End {
    world: Arc<World>,
    connection: u64,
    side: Side,
    link: Arc<Mutex<Link>>,
    sleep: Option<Pin<Box<Sleep>>>,
    has_sent: bool,
}

/// A connection's two ends, the agent's first.
pub(crate) fn pipe(world: &Arc<World>, connection: u64, plan: Plan) -> (End, End, Arc<Mutex<Link>>) {
    let [to_hub, to_agent] = plan.cut_after.map(|cut_after| Lane { cut_after, ..Lane::default() });
    let link = Arc::new(Mutex::new(Link {
        lanes: [to_hub, to_agent],
        rng: plan.rng,
        latency_ms: plan.latency_ms,
        read_len_max: plan.read_len_max,
        is_stalled: false,
    }));
    let end = |side| End {
        world: Arc::clone(world),
        connection,
        side,
        link: Arc::clone(&link),
        sleep: None,
        has_sent: false,
    };
    (end(Side::Agent), end(Side::Hub), link.clone())
}

impl End {
    fn lane_out(&self) -> usize {
        match self.side {
            Side::Agent => 0,
            Side::Hub => 1,
        }
    }

    fn poll_sleep(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(context)
    }
}

/// The length of CONNACK, the hub's first packet.
const CONNACK_LEN: usize = 4;

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let link = Arc::clone(&self.link);
            let mut guard = link.lock().unwrap();
            let Link { lanes, rng, read_len_max, is_stalled, .. } = &mut *guard;
            let lane = &mut lanes[1 - self.lane_out()];
            // The network keeps what it has; only the end of all times wakes this reader.
            let due = match (lane.chunks.front(), lane.closed_at) {
                _ if *is_stalled => None,
                (Some((at, _)), _) => Some(*at),
                (None, closed_at) => closed_at,
            };
            lane.reader = Some(context.waker().clone());
            let Some(due) = due else { return Poll::Pending };
            if due > Instant::now() {
                drop(guard);
                match self.poll_sleep(due, context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => continue,
                }
            }
            let Some((_, chunk)) = lane.chunks.front() else { return Poll::Ready(Ok(())) };
            let rest = &chunk[lane.offset..];
            let most = if *read_len_max < usize::MAX {
                rng.range(1, *read_len_max as u64) as usize
            } else {
                usize::MAX
            };
            let count = rest.len().min(buffer.remaining()).min(most);
            buffer.put_slice(&rest[..count]);
            lane.offset += count;
            if lane.offset == chunk.len() {
                lane.chunks.pop_front();
                lane.offset = 0;
            }
            let before = lane.read_len;
            lane.read_len += count;
            let is_connack = before < CONNACK_LEN && lane.read_len >= CONNACK_LEN;
            drop(guard);
            if is_connack && self.side == Side::Agent {
                self.world.with(|w| w.agent_heard(self.connection));
            }
            if count > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.side == Side::Agent {
            let is_first = !std::mem::replace(&mut self.has_sent, true);
            self.world.with(|w| w.agent_said(self.connection, bytes, is_first));
        }
        self.link.lock().unwrap().write(self.lane_out(), bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut link = self.link.lock().unwrap();
        if link.is_stalled {
            return;
        }
        // The goodbye travels behind what was sent.
        let lane = self.lane_out();
        if link.lanes[lane].closed_at.is_none() {
            let at = link.arrival(lane);
            link.lanes[lane].closed_at = Some(at);
        }
        link.lanes[lane].wake();
    }
}

/// The agent's network.
pub(crate) struct Network {
    pub(crate) world: Arc<World>,
    pub(crate) process: u64,
}

impl Dial for Network {
    fn dial(&self) -> Dialling {
        let world = Arc::clone(&self.world);
        let process = self.process;
        let plan = world.with(|w| w.dial_begins());
        Box::pin(async move {
            let (delay_ms, failure) = match plan {
                DialPlan::Opens { after_ms } => (after_ms, None),
                DialPlan::Fails { after_ms, stage } => (after_ms, Some(stage)),
            };
            if delay_ms > 0 {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            }
            if let Some(stage) = failure {
                return Err(dial_error(stage));
            }
            let Some((connection, plan, orders, keeper)) = world.with(|w| w.connection_opens(process)) else {
                return Err(dial_error(1));
            };
            let (ours, theirs, link) = pipe(&world, connection, plan);
            world.with(|w| w.keep(connection, process, keeper, link));
            tokio::spawn(serve(world, connection, theirs, orders));
            let stream: Box<dyn Stream> = Box::new(ours);
            Ok(stream)
        })
    }

    fn ask_time(&self) -> Asking {
        let world = Arc::clone(&self.world);
        Box::pin(async move {
            let (after_ms, is_answered) = world.with(|w| w.question_begins());
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            if !is_answered {
                return Err(AskError::Timeout { after: Duration::from_millis(after_ms) });
            }
            Ok(world.with(|w| w.true_unix_secs()))
        })
    }
}

/// One error for each stage.
fn dial_error(stage: u64) -> DialError {
    let host = || "hub.example".to_owned();
    match stage {
        0 => DialError::Resolve { host: host(), source: io::ErrorKind::NotFound.into() },
        1 => DialError::Tcp { host: host(), port: 8883, source: io::ErrorKind::ConnectionRefused.into() },
        2 => DialError::Tls { host: host(), source: io::ErrorKind::InvalidData.into() },
        3 => DialError::Timeout { stage: Stage::Resolve, after: Duration::from_secs(20) },
        4 => DialError::Timeout { stage: Stage::Tcp, after: Duration::from_secs(20) },
        _ => DialError::Timeout { stage: Stage::Tls, after: Duration::from_secs(30) },
    }
}
