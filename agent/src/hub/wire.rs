//! MQTT packets over a byte stream. Writing never waits: packets go into a buffer, and whoever waits for the next
//! packet also moves the buffer out. So a stalled network can't stall the loop that owns the wire.
//!
//! A packet that is too large is passed over as it comes in, and the connection goes on: a twin is as large as others
//! make it, and comes again on every connection.

mod frame;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::v4::Packet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use twinkey_contract::twin::TWIN_LEN_MAX;

pub use self::frame::Announced;
use self::frame::{Beginning, Header};

/// Largest packet that is read, in bytes after its fixed header: the largest twin that is read, and the topic before it.
/// A direct method's payload (128 KiB) is smaller.
pub const PACKET_LEN_MAX: usize = TWIN_LEN_MAX + 1024;
/// Longest text in a packet (MQTT 3.1.1 §1.5.3); the codec does not check.
const TEXT_LEN_MAX: usize = u16::MAX as usize;
/// How much is read from the stream at once.
const READ_LEN: usize = 8 * 1024;
/// How often the stream is read before others have their turn: a packet that is passed over may be 256 MiB long.
const READS_MAX: usize = 32;
/// Buffers that a packet has made longer than this are given back after it: a connection stands for years.
const BUFFER_LEN_KEPT: usize = 16 * 1024;

/// One MQTT connection's packets.
pub struct Wire<S> {
    stream: S,
    incoming: BytesMut,
    /// Bytes still to come of a packet that is passed over.
    skipping: usize,
    received: u64,
    outgoing: BytesMut,
    is_outgoing_long: bool,
}

/// What comes in.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// A packet.
    Packet(Packet),
    /// One that is longer than [`PACKET_LEN_MAX`] and is passed over: how it begins, if it is a PUBLISH.
    TooLarge(Option<Announced>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A wire over `stream`.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            incoming: BytesMut::new(),
            skipping: 0,
            received: 0,
            outgoing: BytesMut::new(),
            is_outgoing_long: false,
        }
    }

    /// Puts a packet into the outgoing buffer. A packet that can't be written leaves the buffer as it was.
    pub fn queue(&mut self, packet: &Packet) -> Result<(), WireError> {
        if longest_text(packet) > TEXT_LEN_MAX {
            return Err(WireError::TooLong);
        }
        let before = self.outgoing.len();
        // Whoever makes a packet has bounded it; the codec bounds it to what MQTT has room for.
        packet.write(&mut self.outgoing, usize::MAX).map_err(|error| {
            self.outgoing.truncate(before);
            WireError::from(error)
        })?;
        self.is_outgoing_long |= self.outgoing.len() > BUFFER_LEN_KEPT;
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub fn backlog_len(&self) -> usize {
        self.outgoing.len()
    }

    /// Bytes that have come in.
    pub fn received_len(&self) -> u64 {
        self.received
    }

    /// Whether a packet has come in part.
    pub fn is_amid_packet(&self) -> bool {
        self.is_skipping() || !self.incoming.is_empty()
    }

    /// Whether a packet that is too large is being passed over.
    pub fn is_skipping(&self) -> bool {
        self.skipping > 0
    }

    /// Sends what is queued and gives what comes in next; cancel-safe.
    pub async fn next(&mut self) -> Result<Received, WireError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Sends all that is queued.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|context| self.poll_send(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Received, WireError>> {
        // Whether sending has to wait does not matter here: its waker is registered.
        let sent = self.poll_send(context);
        match (self.poll_read(context), sent) {
            // What the other side said before it closed is still worth reading.
            (Poll::Ready(Ok(received)), _) => Poll::Ready(Ok(received)),
            (Poll::Ready(Err(_)) | Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (read, _) => read,
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Received, WireError>> {
        for _ in 0..READS_MAX {
            if let Some(received) = self.take()? {
                return Poll::Ready(Ok(received));
            }
            let mut chunk = [0; READ_LEN];
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(Err(WireError::Closed));
                }
                Poll::Ready(Ok(())) => {
                    let read = buffer.filled();
                    self.received += read.len() as u64;
                    let skipped = self.skipping.min(read.len());
                    self.skipping -= skipped;
                    self.incoming.extend_from_slice(read.get(skipped..).unwrap_or_default());
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes the next packet out of the buffer, or the beginning of one that is too large.
    fn take(&mut self) -> Result<Option<Received>, WireError> {
        let Some(header) = Header::read(&self.incoming)? else { return Ok(None) };
        let len = header.packet_len();
        let received = if header.remaining_len() > PACKET_LEN_MAX {
            let announced = match header.beginning(&self.incoming)? {
                Beginning::Partial => return Ok(None),
                Beginning::Publish(announced) => Some(announced),
                Beginning::Other => None,
            };
            let here = len.min(self.incoming.len());
            self.incoming.advance(here);
            self.skipping = len - here;
            Received::TooLarge(announced)
        } else if let Some(missing @ 1..) = len.checked_sub(self.incoming.len()) {
            self.incoming.reserve(missing);
            return Ok(None);
        } else {
            Received::Packet(Packet::read(&mut self.incoming, PACKET_LEN_MAX)?)
        };
        if len > BUFFER_LEN_KEPT {
            self.incoming = BytesMut::from(self.incoming.as_ref());
        }
        Ok(Some(received))
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while !self.outgoing.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.outgoing) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(WireError::Closed)),
                Poll::Ready(Ok(count)) => self.outgoing.advance(count),
            }
        }
        if std::mem::take(&mut self.is_outgoing_long) {
            self.outgoing = BytesMut::new();
        }
        Pin::new(&mut self.stream).poll_flush(context).map_err(WireError::from)
    }
}

fn longest_text(packet: &Packet) -> usize {
    match packet {
        Packet::Connect(connect) => {
            let login =
                connect.login.as_ref().map_or(0, |login| login.username.len().max(login.password.len()));
            connect.client_id.len().max(login)
        }
        Packet::Publish(publish) => publish.topic.len(),
        Packet::Subscribe(subscribe) => {
            subscribe.filters.iter().map(|filter| filter.path.len()).max().unwrap_or(0)
        }
        Packet::ConnAck(_)
        | Packet::PubAck(_)
        | Packet::PubRec(_)
        | Packet::PubRel(_)
        | Packet::PubComp(_)
        | Packet::SubAck(_)
        | Packet::Unsubscribe(_)
        | Packet::UnsubAck(_)
        | Packet::PingReq
        | Packet::PingResp
        | Packet::Disconnect => 0,
    }
}

/// Why a wire is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side closed it.
    #[error("the hub closed the connection")]
    Closed,
    /// The stream failed.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// What came in is not MQTT 3.1.1.
    #[error("the hub sent something that is not MQTT 3.1.1")]
    Protocol(#[source] rumqttc::mqttbytes::Error),
    /// A text does not fit into a packet.
    #[error("a text is longer than the {TEXT_LEN_MAX} bytes that MQTT has room for")]
    TooLong,
}

impl WireError {
    /// Whether the connection ended at the hub or on the way, rather than here.
    pub fn is_hang_up(&self) -> bool {
        match self {
            Self::Closed | Self::Io(_) => true,
            Self::Protocol(_) | Self::TooLong => false,
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        // A closed TCP connection without TLS's goodbye: how hubs hang up.
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

impl From<rumqttc::mqttbytes::Error> for WireError {
    fn from(error: rumqttc::mqttbytes::Error) -> Self {
        Self::Protocol(error)
    }
}

#[cfg(test)]
mod tests;
