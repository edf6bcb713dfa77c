//! Packets that go out later than they could, in their order.

use std::collections::VecDeque;

use bytes::BytesMut;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Delayed {
    packets: VecDeque<(Instant, BytesMut)>,
    len: usize,
}

impl Delayed {
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts a packet behind the others; it is due at `due`, and never before them.
    pub(crate) fn push(&mut self, due: Instant, packet: BytesMut) {
        let due = self.packets.back().map_or(due, |(last, _)| due.max(*last));
        self.len += packet.len();
        self.packets.push_back((due, packet));
    }

    /// When the first packet is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.packets.front().map(|(due, _)| *due)
    }

    /// Moves what is due by `now` to `output`, and says whether that was anything.
    pub(crate) fn release(&mut self, now: Instant, output: &mut BytesMut) -> bool {
        let before = output.len();
        while self.due().is_some_and(|due| due <= now) {
            if let Some((_, packet)) = self.packets.pop_front() {
                self.len -= packet.len();
                output.extend_from_slice(&packet);
            }
        }
        output.len() > before
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_keep_their_order_and_their_delay() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut delayed = Delayed::default();
        delayed.push(at(20), b"first".as_slice().into());
        delayed.push(at(10), b"second".as_slice().into());
        delayed.push(at(30), b"third".as_slice().into());
        let mut output = BytesMut::new();
        assert!(!delayed.release(at(19), &mut output));
        assert!(delayed.release(at(20), &mut output));
        assert_eq!(
            (output.as_ref(), delayed.len(), delayed.due()),
            (b"firstsecond".as_slice(), 5, Some(at(30)))
        );
        assert!(delayed.release(at(31), &mut output) && delayed.is_empty());
    }
}
