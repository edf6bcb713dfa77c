//! Any bytes from the hub after CONNECT was accepted: frames, then a session's view of them. A wire gives packets or an
//! error, never a panic, and ends. Zeros between two parts make packets that are too large, which are passed over.
#![no_main]

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use twinkey_agent::hub::Timing;
use twinkey_agent::hub::dial::Stream;
use twinkey_agent::hub::outbox::Outbox;
use twinkey_agent::hub::session::{Event, Session};
use twinkey_agent::hub::wire::Wire;

/// Gives its bytes in pieces, those of the filling at once, and takes whatever is written.
struct Script {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
    filling: Range<usize>,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let piece = if self.filling.contains(&self.at) { self.filling.end - self.at } else { self.piece };
        let end = (self.at + piece.min(buffer.remaining())).min(self.bytes.len());
        buffer.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|input: (u8, &[u8], u8, &[u8])| {
    let (piece, head, filling, tail) = input;
    let zeros = vec![0; usize::from(filling) << 12];
    let filling = head.len()..head.len() + zeros.len();
    let bytes = [head, &zeros, tail].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let script = Script { bytes, at: 0, piece: usize::from(piece) + 1, filling };
        let stream: Box<dyn Stream> = Box::new(script);
        let now = Instant::now();
        let Ok(mut session) = Session::begin(Wire::new(stream), Timing::DEFAULT, now) else { return };
        let mut outbox = Outbox::default();
        while let Ok(received) = session.next().await {
            match session.absorb(received, now) {
                Ok(Event::Acknowledged(packet_id)) => outbox.acknowledge(packet_id),
                Ok(Event::Method { request, .. }) => {
                    if session.answer_method(200, &request, &serde_json::Value::Null, now).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
            if session.pursue(Some(&mut outbox), None, now).is_err() {
                return;
            }
        }
    });
});
