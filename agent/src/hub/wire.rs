//! MQTT packets over a byte stream. Writing never waits: packets go into a buffer, and whoever waits for the next
//! packet also moves the buffer out. So a stalled network can't stall the loop that owns the wire.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::v4::Packet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest packet that is read, in bytes: a twin (desired and reported of 32 KiB each with their keys, JSON-escaped)
/// and a direct method's payload (128 KiB) both fit.
const PACKET_LEN_MAX: usize = 256 * 1024;
/// Longest text in a packet (MQTT 3.1.1 §1.5.3); the codec does not check.
const TEXT_LEN_MAX: usize = u16::MAX as usize;
/// How much is read from the stream at once.
const READ_LEN: usize = 8 * 1024;

/// One MQTT connection's packets.
pub struct Wire<S> {
    stream: S,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A wire over `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// Puts a packet into the outgoing buffer. A packet that can't be written leaves the buffer as it was.
    pub fn queue(&mut self, packet: &Packet) -> Result<(), WireError> {
        if longest_text(packet) > TEXT_LEN_MAX {
            return Err(WireError::TooLong);
        }
        let before = self.outgoing.len();
        packet.write(&mut self.outgoing, PACKET_LEN_MAX).map(|_| ()).map_err(|error| {
            self.outgoing.truncate(before);
            WireError::from(error)
        })
    }

    /// Bytes that wait to be sent.
    pub fn backlog_len(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what is queued and gives the next packet; cancel-safe.
    pub async fn next(&mut self) -> Result<Packet, WireError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Sends all that is queued.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|context| self.poll_send(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Packet, WireError>> {
        // Whether sending has to wait does not matter here: its waker is registered.
        let sent = self.poll_send(context);
        match (self.poll_read(context), sent) {
            // What the other side said before it closed is still worth reading.
            (Poll::Ready(Ok(packet)), _) => Poll::Ready(Ok(packet)),
            (Poll::Ready(Err(_)) | Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (read, _) => read,
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Packet, WireError>> {
        loop {
            let before = self.incoming.len();
            match Packet::read(&mut self.incoming, PACKET_LEN_MAX) {
                Ok(packet) => return Poll::Ready(Ok(packet)),
                // The codec says the same of a frame that is not whole yet, which it leaves in the buffer, and of a
                // whole one whose content is cut short, which it takes out.
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) if self.incoming.len() == before => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            let mut chunk = [0; READ_LEN];
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(Err(WireError::Closed));
                }
                Poll::Ready(Ok(())) => self.incoming.extend_from_slice(buffer.filled()),
            }
        }
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
