//! MQTT over WebSocket (RFC 6455) on the HTTPS port: the upgrade, and the frames as a byte stream.
//!
//! IoT Hub documentation, "Communicate using MQTT": `GET /$iothub/websocket`, subprotocol `mqtt`, binary frames. Java and
//! the C SDK append a query, so the path alone decides. MQTT packets may lie across frames in any way (MQTT 3.1.1 §6).

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

use crate::mqtt::PACKET_LEN_MAX;
use crate::wire::{CONNECT_LEN_MAX, Transport};

/// Where a WebSocket is asked for.
const PATH: &str = "/$iothub/websocket";
/// The only subprotocol.
const SUBPROTOCOL: &str = "mqtt";
/// The only version of the protocol (RFC 6455 §4.1).
const VERSION: &str = "13";
/// Largest message of a client that has authenticated: the largest packet, and small ones that come with it.
const MESSAGE_LEN_MAX: usize = PACKET_LEN_MAX + 64 * 1024;
/// Largest frame that the hub sends.
const SENT_FRAME_LEN_MAX: usize = 8 * 1024;
/// Most bytes that wait to be written before the hub stops reading, and with it answering pings.
const OUTGOING_LEN_MAX: usize = 64 * 1024;
/// Bytes read at one time, on the stack.
const CHUNK_LEN_BYTES: usize = 4 * 1024;
/// Bytes that the frame decoder allocates at once and keeps.
const DECODER_LEN_BYTES: usize = 512;

/// Whether a request's path asks for a WebSocket.
pub(crate) fn is_asked_for(path: &str) -> bool {
    percent_decode_str(path).eq(PATH.bytes())
}

/// Answers a client's opening handshake: accepted with status 101, or declined in plain words.
pub(crate) fn accept(method: &Method, headers: &HeaderMap) -> Response<Full<Bytes>> {
    check(method, headers).unwrap_or_else(|(status, message)| {
        debug!(%status, message, "no WebSocket");
        let mut response = Response::new(Full::new(Bytes::from_static(message.as_bytes())));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if status == StatusCode::UPGRADE_REQUIRED {
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        }
        response
    })
}

/// Checks the opening handshake (RFC 6455 §4.2.1), and makes its answer (§4.2.2).
fn check(method: &Method, headers: &HeaderMap) -> Result<Response<Full<Bytes>>, (StatusCode, &'static str)> {
    let bad_request = |message| (StatusCode::BAD_REQUEST, message);
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is asked for with GET"));
    }
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err(bad_request("send Upgrade: websocket and Connection: Upgrade"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != VERSION.as_bytes()) {
        return Err((StatusCode::UPGRADE_REQUIRED, "send Sec-WebSocket-Version: 13"));
    }
    // 16 bytes in base64.
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| bad_request("Sec-WebSocket-Key is missing or no 16 bytes in base64"))?;
    if !has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(bad_request("send Sec-WebSocket-Protocol: mqtt"));
    }
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| bad_request("Sec-WebSocket-Key can't be answered"))?;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in [
        (UPGRADE, HeaderValue::from_static("websocket")),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL)),
    ] {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Whether one of the comma-separated values of a header is `token`, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The content of binary frames as a byte stream.
pub(crate) struct WebSocket<S> {
    stream: S,
    frames: WebSocketContext,
    raw: Raw,
    /// What is left of the last message.
    message: Bytes,
    has_ended: bool,
    /// What to say in the closing handshake.
    close_code: CloseCode,
}

/// Bytes between the frame codec, which knows no async, and the stream.
#[derive(Debug, Default)]
struct Raw {
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = self.incoming.len().min(buffer.len());
        self.incoming.copy_to_slice(buffer.get_mut(..len).unwrap_or_default());
        if self.incoming.is_empty() {
            self.incoming = BytesMut::new();
        }
        Ok(len)
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A WebSocket whose opening handshake is done; `read` has come in behind it.
    pub(crate) fn new(stream: S, read: &[u8]) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(DECODER_LEN_BYTES)
            .write_buffer_size(0)
            .max_frame_size(Some(CONNECT_LEN_MAX))
            .max_message_size(Some(CONNECT_LEN_MAX));
        let frames = WebSocketContext::new(Role::Server, Some(config));
        let raw = Raw { incoming: read.into(), outgoing: BytesMut::new() };
        let (message, close_code) = (Bytes::new(), CloseCode::Normal);
        Self { stream, frames, raw, message, has_ended: false, close_code }
    }

    /// Reads the next message that has content; `None` at the end. Pings are answered.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            // Answers to a client that doesn't read must not pile up.
            if self.raw.outgoing.len() > OUTGOING_LEN_MAX {
                ready!(self.poll_write_raw(cx))?;
            }
            match self.frames.read(&mut self.raw) {
                Ok(Message::Binary(message)) if !message.is_empty() => {
                    return Poll::Ready(Ok(Some(message)));
                }
                Ok(Message::Text(_)) => {
                    self.close_code = CloseCode::Unsupported;
                    return Poll::Ready(Err(invalid("a text frame")));
                }
                Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => {}
                // Not in any answer of the codec.
                Ok(Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Poll::Ready(written) = self.poll_write_raw(cx) {
                        written?;
                    }
                    if ready!(self.poll_read_raw(cx))? == 0 {
                        return Poll::Ready(Ok(None));
                    }
                }
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Poll::Ready(Ok(None)),
                Err(error) => {
                    let is_too_large = matches!(error, Error::Capacity(_));
                    self.close_code = if is_too_large { CloseCode::Size } else { CloseCode::Protocol };
                    return Poll::Ready(Err(invalid(error)));
                }
            }
        }
    }

    fn poll_read_raw(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [0; CHUNK_LEN_BYTES];
        let mut chunk = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        self.raw.incoming.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    }

    /// Writes all frames that are ready to go, and flushes below.
    fn poll_write_raw(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.raw.outgoing.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.raw.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.raw.outgoing.advance(written);
        }
        self.raw.outgoing = BytesMut::new();
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport for WebSocket<S> {
    fn is_known_now(&mut self) {
        self.frames.set_config(|config| {
            config.max_frame_size = Some(MESSAGE_LEN_MAX);
            config.max_message_size = Some(MESSAGE_LEN_MAX);
        });
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.message.is_empty() && !this.has_ended {
            let message = ready!(this.poll_message(cx))?;
            this.has_ended = message.is_none();
            this.message = message.unwrap_or_default();
        }
        let len = this.message.len().min(buffer.remaining());
        buffer.put_slice(&this.message.split_to(len));
        if this.message.is_empty() {
            // The rest of a message shares its memory with the whole.
            this.message = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.raw.outgoing.len() > OUTGOING_LEN_MAX {
            ready!(this.poll_write_raw(cx))?;
        }
        let frame = bytes.get(..SENT_FRAME_LEN_MAX).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(frame));
        match this.frames.write(&mut this.raw, message) {
            Ok(()) => Poll::Ready(Ok(frame.len())),
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_raw(cx)
    }

    /// Sends the closing handshake's first half, unless the client did, and closes the stream. The client's half is
    /// not waited for.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let frame = CloseFrame { code: this.close_code, reason: "".into() };
        // What it could say is that the connection is closed already.
        drop(this.frames.close(&mut this.raw, Some(frame)));
        ready!(this.poll_write_raw(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
