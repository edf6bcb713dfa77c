//! The queue of cloud-to-device messages of one device: at-least-once, bounded, with a time to live.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::clock::Moment;

/// Most messages in a device's queue (IoT Hub documentation, "Send cloud-to-device messages").
pub(crate) const QUEUE_LEN_MAX: usize = 50;
/// Most deliveries of one message before it is given up: the documented default of `maxDeliveryCount`.
const DELIVERIES_MAX: u32 = 10;

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) body: Bytes,
    /// Application properties, and system properties under their short names.
    pub(crate) bag: BTreeMap<String, String>,
    pub(crate) expires: Moment,
    deliveries: u32,
    /// The packet id under which it is on its way to the device.
    in_flight: Option<u16>,
}

impl Message {
    pub(crate) fn new(body: Bytes, bag: BTreeMap<String, String>, expires: Moment) -> Self {
        Self { body, bag, expires, deliveries: 0, in_flight: None }
    }

    pub(crate) fn is_repeated(&self) -> bool {
        self.deliveries > 1
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    messages: VecDeque<Message>,
    last_pkid: u16,
}

impl Queue {
    /// Gives the message back if the queue is full.
    pub(crate) fn push(&mut self, message: Message, now: Moment) -> Result<(), Message> {
        self.forget_expired(now);
        if self.messages.len() >= QUEUE_LEN_MAX {
            return Err(message);
        }
        self.messages.push_back(message);
        Ok(())
    }

    /// Messages that are waiting or on their way; those that expired since the queue was last used still count.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Empties the queue, and says how many messages it held.
    pub(crate) fn purge(&mut self) -> usize {
        std::mem::take(&mut self.messages).len()
    }

    /// After a connection ended: what was on its way will be sent again, or given up.
    pub(crate) fn take_back(&mut self) {
        self.messages.retain_mut(|message| {
            message.in_flight = None;
            message.deliveries < DELIVERIES_MAX
        });
    }

    /// Marks the next message as on its way, and returns it with its packet id.
    pub(crate) fn send_next(&mut self, now: Moment) -> Option<(u16, &Message)> {
        self.forget_expired(now);
        // At most QUEUE_LEN_MAX ids are taken, so that a free one is always near.
        let pkid = (1..=QUEUE_LEN_MAX + 1)
            .filter_map(|step| u16::try_from(step).ok())
            .map(|step| self.last_pkid.wrapping_add(step).max(1))
            .find(|pkid| self.messages.iter().all(|message| message.in_flight != Some(*pkid)))?;
        let message = self.messages.iter_mut().find(|message| message.in_flight.is_none())?;
        self.last_pkid = pkid;
        message.in_flight = Some(pkid);
        message.deliveries += 1;
        Some((pkid, message))
    }

    /// Completes the message that went out as `pkid`.
    pub(crate) fn complete(&mut self, pkid: u16) {
        self.messages.retain(|message| message.in_flight != Some(pkid));
    }

    fn forget_expired(&mut self, now: Moment) {
        self.messages.retain(|message| now < message.expires);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    fn message(now: Moment, ttl_secs: u64) -> Message {
        Message::new(Bytes::new(), BTreeMap::new(), now.plus(Duration::from_secs(ttl_secs)))
    }

    #[test]
    fn an_unacknowledged_message_comes_again_and_is_given_up_in_the_end() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        queue.push(message(now, 60), now).unwrap();
        for delivery in 1..=DELIVERIES_MAX {
            let (_, message) = queue.send_next(now).unwrap();
            assert_eq!(message.is_repeated(), delivery > 1);
            assert!(queue.send_next(now).is_none(), "sent twice on one connection");
            queue.take_back();
        }
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn completed_and_expired_messages_leave_the_queue() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        queue.push(message(now, 60), now).unwrap();
        queue.push(message(now, 1), now).unwrap();
        let (pkid, _) = queue.send_next(now).unwrap();
        queue.complete(pkid);
        assert_eq!(queue.len(), 1);
        assert!(queue.send_next(now.plus(Duration::from_secs(1))).is_none());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_fifty_first_message_is_given_back() {
        let now = Clock::start().now();
        let mut queue = Queue { last_pkid: u16::MAX - 20, ..Queue::default() };
        for _ in 0..QUEUE_LEN_MAX {
            queue.push(message(now, 60), now).unwrap();
        }
        assert!(queue.push(message(now, 60), now).is_err());
        let mut sent: Vec<u16> = std::iter::from_fn(|| queue.send_next(now).map(|(pkid, _)| pkid)).collect();
        sent.sort_unstable();
        sent.dedup();
        assert_eq!(sent.len(), QUEUE_LEN_MAX);
        assert!(!sent.contains(&0));
    }
}
