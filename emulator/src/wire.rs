//! A byte stream with MQTT packets on it: TLS, or WebSocket over TLS.
//!
//! Idle, it holds no buffer: what is read goes through the stack, and a buffer that has become empty is given back.

use std::future::{pending, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{ConnAck, Connect, ConnectReturnCode, Packet};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::delayed::Delayed;

/// Longest CONNECT in bytes after its fixed header. All that a client can make the hub keep before it has
/// authenticated: ids, user name and token need under 6 KiB, and the rest is for a will.
pub(crate) const CONNECT_LEN_MAX: usize = 16 * 1024;
/// The protocol level of MQTT 3.1.1.
const LEVEL: u8 = 4;
/// Most bytes that wait to be written before the hub stops listening to a client that doesn't read.
const OUTPUT_LEN_MAX: usize = 512 * 1024;
/// Most bytes that are read at one time, on the stack.
const CHUNK_LEN_BYTES: usize = 8 * 1024;
/// Longest wait for a client to take the last bytes of an orderly end.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// What MQTT can be spoken on.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// The client is known now and may send large packets.
    fn is_known_now(&mut self);
}

impl Transport for TlsStream<TcpStream> {
    /// TLS has no messages, and so no limit of their size.
    fn is_known_now(&mut self) {}
}

/// Why no packet can be read from a wire.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection is lost")]
    Lost(#[source] io::Error),
    #[error("no MQTT")]
    Malformed(#[source] CodecError),
    #[error("not the packet that has to come first")]
    NotConnect,
}

/// What happened on a wire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Bytes came in.
    Heard,
    /// There is room again for more output.
    Written,
}

/// A transport with MQTT packets on it.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    /// Whether bytes may still be in `output` or below.
    unflushed: bool,
    packet_len_max: usize,
    /// What goes out later.
    delayed: Delayed,
}

impl<S: Transport> Wire<S> {
    /// A wire on which CONNECT is expected.
    pub(crate) fn new(stream: S) -> Self {
        let packet_len_max = CONNECT_LEN_MAX;
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            unflushed: false,
            packet_len_max,
            delayed: Delayed::default(),
        }
    }

    /// The client has authenticated: its packets may have up to `packet_len_max` bytes now.
    pub(crate) fn is_known_now(&mut self, packet_len_max: usize) {
        self.packet_len_max = packet_len_max;
        self.stream.is_known_now();
    }

    pub(crate) fn has_room(&self) -> bool {
        self.output.len() + self.delayed.len() < OUTPUT_LEN_MAX
    }

    /// Takes the next whole packet out of what has come in.
    pub(crate) fn next_packet(&mut self) -> Result<Option<Packet>, WireError> {
        let before = self.input.len();
        if self.input.first().is_some_and(|first| !has_valid_flags(*first)) {
            return Err(WireError::Malformed(CodecError::IncorrectPacketFormat));
        }
        let packet = match Packet::read(&mut self.input, self.packet_len_max) {
            Ok(packet) => Ok(Some(packet)),
            // The codec says the same of a whole frame whose content is cut short, which it takes out of the buffer.
            Err(CodecError::InsufficientBytes(_)) if self.input.len() == before => Ok(None),
            Err(error) => Err(WireError::Malformed(error)),
        };
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        packet
    }

    /// Appends a packet to the output. One that can't be encoded is left out as a whole: none of ours can fail.
    pub(crate) fn put(&mut self, packet: Packet) {
        let before = self.output.len();
        if let Err(error) = packet.write(&mut self.output, usize::MAX) {
            self.output.truncate(before);
            debug!(%error, "packet left out");
        }
        self.unflushed = true;
    }

    /// Appends a packet to the output once `delay` is over, and never before what waits already.
    pub(crate) fn put_after(&mut self, delay: Duration, packet: Packet) {
        if delay.is_zero() && self.delayed.is_empty() {
            return self.put(packet);
        }
        let mut bytes = BytesMut::new();
        match packet.write(&mut bytes, usize::MAX) {
            Ok(_) => self.delayed.push(Instant::now() + delay, bytes),
            Err(error) => debug!(%error, "packet left out"),
        }
    }

    /// When the first packet that goes out later is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.delayed.due()
    }

    /// Moves what is due to the output.
    pub(crate) fn release_due(&mut self) {
        if !self.delayed.is_empty() && self.delayed.release(Instant::now(), &mut self.output) {
            self.unflushed = true;
        }
    }

    /// Writes what is to be written, and waits for bytes of the client's. Can be dropped at any await: nothing is lost.
    pub(crate) async fn progress(&mut self) -> Result<Progress, WireError> {
        poll_fn(|cx| self.poll_progress(cx)).await
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<Progress, WireError>> {
        let had_room = self.has_room();
        if self.unflushed
            && let Poll::Ready(flushed) = self.poll_flush(cx)
        {
            flushed.map_err(WireError::Lost)?;
        }
        if !self.has_room() {
            return Poll::Pending;
        }
        if !had_room {
            return Poll::Ready(Ok(Progress::Written));
        }
        match ready!(self.poll_read(cx)) {
            Ok(0) => Poll::Ready(Err(WireError::Closed)),
            Ok(_) => Poll::Ready(Ok(Progress::Heard)),
            Err(error) => Poll::Ready(Err(WireError::Lost(error))),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK_LEN_BYTES];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        self.input.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        self.output = BytesMut::new();
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Waits for CONNECT. A protocol level that isn't 3.1.1's is answered with CONNACK 1 (MQTT 3.1.1 §3.1.2.2).
    pub(crate) async fn read_connect(&mut self) -> Result<Connect, WireError> {
        loop {
            let (level, flags) = connect_head(&self.input);
            if let Some(level) = level.filter(|level| *level != LEVEL) {
                self.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false)));
                self.farewell().await;
                return Err(WireError::Malformed(CodecError::InvalidProtocolLevel(level)));
            }
            // Reserved (MQTT 3.1.1 §3.1.2.3); the codec takes no notice of it.
            if flags.is_some_and(|flags| flags & 0x01 != 0) {
                return Err(WireError::Malformed(CodecError::IncorrectPacketFormat));
            }
            match self.next_packet()? {
                Some(Packet::Connect(connect)) => return Ok(connect),
                Some(_) => return Err(WireError::NotConnect),
                None => self.progress().await?,
            };
        }
    }

    /// Waits, and says whether the client closed meanwhile.
    pub(crate) async fn is_closed_within(&mut self, wait: Duration) -> bool {
        let closed = async {
            // What comes before CONNACK is kept, up to a limit: beyond it nothing is read until the wait is over.
            while self.input.len() < CONNECT_LEN_MAX {
                if self.progress().await.is_err() {
                    return;
                }
            }
            pending().await
        };
        !wait.is_zero() && timeout(wait, closed).await.is_ok()
    }

    /// Writes what is left and closes the transport; a client that doesn't take it is left alone.
    pub(crate) async fn farewell(&mut self) {
        let end = poll_fn(|cx| {
            ready!(self.poll_flush(cx))?;
            Pin::new(&mut self.stream).poll_shutdown(cx)
        });
        tokio::select! {
            ended = end => if let Err(error) = ended { debug!(%error, "no orderly end") },
            () = sleep(FAREWELL_TIMEOUT) => debug!("the client doesn't take the end"),
        }
    }
}

/// Protocol level and flags of a CONNECT, as far as it has come in. The codec would read a CONNECT of MQTT 5, which has
/// more fields, as a malformed one of 3.1.1.
fn connect_head(input: &[u8]) -> (Option<u8>, Option<u8>) {
    let body = || {
        let rest = input.strip_prefix(b"\x10")?;
        let length_len = rest.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
        rest.get(length_len..)?.strip_prefix(b"\x00\x04MQTT")
    };
    let mut head = body().unwrap_or_default().iter().copied();
    (head.next(), head.next())
}

/// Whether the lower half of a packet's first byte is what MQTT 3.1.1 §2.2.2 fixes for its type.
fn has_valid_flags(first: u8) -> bool {
    const PUBLISH: u8 = 3;
    const PUBREL: u8 = 6;
    const SUBSCRIBE: u8 = 8;
    const UNSUBSCRIBE: u8 = 10;
    match first >> 4 {
        PUBLISH => true,
        PUBREL | SUBSCRIBE | UNSUBSCRIBE => first & 0x0f == 0x02,
        _ => first & 0x0f == 0,
    }
}
