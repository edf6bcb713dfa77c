//! Bodies of calls and answers. They may hold keys, so that their bytes lie in buffers that are
//! wiped, and are never left behind in one that was too small. What the HTTP client and TLS keep of
//! them is out of reach.

use std::io;

use reqwest::Body;
use serde::Serialize;
use zeroize::Zeroizing;

/// The least that a growing body reserves, in bytes: most answers are shorter.
const ROOM_MIN: usize = 4 * 1024;

/// A body in JSON: measured, then written into one buffer.
pub(super) fn json(body: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    struct Length(usize);
    impl io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut len = Length(0);
    serde_json::to_writer(&mut len, body)?;
    let mut text = Zeroizing::new(Vec::with_capacity(len.0));
    serde_json::to_writer(&mut *text, body)?;
    Ok(text)
}

/// The body for the HTTP client, which takes no copy of its own and wipes it when it is done.
pub(super) fn sendable(body: Zeroizing<Vec<u8>>) -> Body {
    bytes::Bytes::from_owner(body).into()
}

/// A body that comes in pieces.
#[derive(Default)]
pub(super) struct Growing(Zeroizing<Vec<u8>>);

impl Growing {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        let len = self.0.len() + piece.len();
        if len > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(len.max(self.0.capacity() * 2).max(ROOM_MIN)));
            larger.extend_from_slice(&self.0);
            // The smaller one is wiped here.
            self.0 = larger;
        }
        self.0.extend_from_slice(piece);
    }

    pub(super) fn whole(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}
