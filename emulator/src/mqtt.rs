//! One MQTT 3.1.1 connection over TLS, from the TCP socket to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{ConnAck, Connect, ConnectReturnCode, Packet};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::history::ClosedBy;
use crate::hub::{Connection, Ending, Hub, Refused, TELEMETRY_LEN_MAX};

/// Longest packet in bytes after its fixed header: the largest message, and a topic as long as MQTT can say.
const PACKET_LEN_MAX: usize = TELEMETRY_LEN_MAX + 2 + u16::MAX as usize + 2;
/// Most bytes that wait to be written before the hub stops listening to a client that doesn't read.
const OUTPUT_LEN_MAX: usize = 512 * 1024;
/// Longest wait for a client to take the last bytes of an orderly end.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time that a CONNECT is left without an answer if the fault `muteConnack` is set.
const MUTE_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest single sleep until a token's expiry; the clock is asked again after it.
const EXPIRY_SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// Serves one connection until it ends. Everything a client can do wrong ends only its own connection.
pub(crate) async fn serve(hub: Arc<Hub>, tcp: TcpStream, tls: TlsAcceptor) {
    // Only a matter of latency; a socket that can't do it still works.
    drop(tcp.set_nodelay(true));
    let stream = match timeout(hub.options.tls_timeout, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let mut wire = Wire::new(stream);
    let connect = match timeout(hub.options.connect_timeout, wire.read_connect()).await {
        Ok(Some(connect)) => connect,
        Ok(None) => return hub.refuse_malformed(),
        Err(_) => return debug!("no CONNECT in time"),
    };
    let (delay, mute) = hub.connack_faults();
    let is_closed = wire.is_closed_within(if mute { MUTE_TIMEOUT } else { delay }).await;
    if is_closed || mute {
        return debug!("ended before CONNACK");
    }
    match hub.admit(&connect) {
        Ok(mut connection) => {
            wire.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, connection.session_present)));
            let keep_alive = silence_max(connect.keep_alive, hub.options.keep_alive_max);
            drop(connect);
            let (by, with_will) = converse(&hub, &mut wire, &mut connection, keep_alive).await;
            hub.leave(&mut connection, by, with_will);
            debug!(identity = %connection.identity, ?by, "closed");
            wire.end(by).await;
        }
        Err(Refused(code)) => {
            wire.put(Packet::ConnAck(ConnAck::new(code, false)));
            wire.end(ClosedBy::Protocol).await;
        }
    }
}

/// Exchanges packets until something ends the connection; says what, and whether the will is to be published.
async fn converse<S: AsyncRead + AsyncWrite>(
    hub: &Hub,
    wire: &mut Wire<S>,
    connection: &mut Connection,
    silence_max: Duration,
) -> (ClosedBy, bool) {
    let mut silence = std::pin::pin!(sleep(silence_max));
    loop {
        let mut heard = false;
        while wire.has_room() {
            let packet = match wire.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(_) => return (ClosedBy::Protocol, true),
            };
            heard = true;
            match hub.handle(connection, packet) {
                Ok(answers) => answers.into_iter().for_each(|answer| wire.put(answer)),
                Err(Ending::Disconnected) => return (ClosedBy::Client, false),
                Err(Ending::Violation(what)) => {
                    debug!(identity = %connection.identity, what, "closing");
                    return (ClosedBy::Protocol, true);
                }
                Err(Ending::Superseded) => break,
            }
        }
        if heard {
            silence.set(sleep(silence_max));
            hub.deliver_queued(connection);
        }
        let Some(remaining) = hub.remaining(connection) else {
            return (ClosedBy::Expired, true);
        };
        let has_room = wire.has_room();
        let Wire { read, write, input, output, unflushed } = wire;
        tokio::select! {
            biased;
            by = &mut connection.kicked => return (by.unwrap_or(ClosedBy::Restart), true),
            () = sleep(remaining.min(EXPIRY_SLEEP_MAX)) => {}
            () = &mut silence => return (ClosedBy::KeepAlive, true),
            written = flush(write, output), if *unflushed => match written {
                Ok(()) => *unflushed = false,
                Err(_) => return (ClosedBy::Client, true),
            },
            Some(publish) = connection.outgoing.recv(), if has_room => wire.put(Packet::Publish(publish)),
            read = read.read_buf(input), if has_room => match read {
                Ok(0) | Err(_) => return (ClosedBy::Client, true),
                Ok(_) => {}
            },
        }
    }
}

/// One and a half times the client's keep-alive (MQTT 3.1.1 §3.1.2.10), which the hub caps; 0 asks for the cap.
fn silence_max(keep_alive_secs: u16, cap: Duration) -> Duration {
    match keep_alive_secs {
        0 => cap,
        secs => Duration::from_millis(u64::from(secs) * 1500).min(cap),
    }
}

/// Writes all of `output`. Can be dropped at any await: what was not written stays in `output`.
async fn flush<S: AsyncWrite>(write: &mut WriteHalf<S>, output: &mut BytesMut) -> std::io::Result<()> {
    while output.has_remaining() {
        write.write_buf(output).await?;
    }
    write.flush().await
}

/// A byte stream with MQTT packets on it.
struct Wire<S> {
    read: ReadHalf<S>,
    write: WriteHalf<S>,
    input: BytesMut,
    output: BytesMut,
    /// Whether bytes may still be in `output` or below.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    fn new(stream: S) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read, write, input: BytesMut::new(), output: BytesMut::new(), unflushed: false }
    }

    fn has_room(&self) -> bool {
        self.output.len() < OUTPUT_LEN_MAX
    }

    fn next_packet(&mut self) -> Result<Option<Packet>, CodecError> {
        let before = self.input.len();
        match Packet::read(&mut self.input, PACKET_LEN_MAX) {
            Ok(packet) => Ok(Some(packet)),
            // The codec says the same of a whole frame whose content is cut short, which it takes out of the buffer.
            Err(CodecError::InsufficientBytes(missing)) if self.input.len() == before => {
                self.input.reserve(missing);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Appends a packet to the output. One that can't be encoded is left out as a whole: none of ours can fail.
    fn put(&mut self, packet: Packet) {
        let before = self.output.len();
        if let Err(error) = packet.write(&mut self.output, usize::MAX) {
            self.output.truncate(before);
            debug!(%error, "packet left out");
        }
        self.unflushed = true;
    }

    /// Waits for CONNECT. `None` if the client closes, or sends anything else.
    async fn read_connect(&mut self) -> Option<Connect> {
        loop {
            match self.next_packet() {
                Ok(Some(Packet::Connect(connect))) => return Some(connect),
                Ok(None) => {}
                Err(CodecError::InvalidProtocolLevel(_)) => {
                    self.put(Packet::ConnAck(ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false)));
                    self.farewell().await;
                    return None;
                }
                Ok(Some(_)) | Err(_) => return None,
            }
            if self.read.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Waits, and says whether the client closed meanwhile.
    async fn is_closed_within(&mut self, wait: Duration) -> bool {
        let closed = async {
            while self.input.len() < PACKET_LEN_MAX {
                match self.read.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        !wait.is_zero() && timeout(wait, closed).await.is_ok()
    }

    /// Ends the connection: abruptly like a lost network, or orderly with what is still to be written.
    async fn end(mut self, by: ClosedBy) {
        match by {
            ClosedBy::Cut | ClosedBy::Restart => {}
            ClosedBy::Takeover
            | ClosedBy::Client
            | ClosedBy::Expired
            | ClosedBy::KeyChange
            | ClosedBy::KeepAlive
            | ClosedBy::Protocol
            | ClosedBy::Disabled
            | ClosedBy::Deleted
            | ClosedBy::RefusedConnect
            | ClosedBy::Overflow => self.farewell().await,
        }
    }

    /// Writes what is left and closes TLS; a client that doesn't take it is left alone.
    async fn farewell(&mut self) {
        let end = async {
            flush(&mut self.write, &mut self.output).await?;
            self.write.shutdown().await
        };
        drop(timeout(FAREWELL_TIMEOUT, end).await);
    }
}
