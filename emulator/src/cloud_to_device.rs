//! The queue of cloud-to-device messages of one device: at-least-once, bounded, with a time to live.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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
    in_flight: Option<Delivery>,
}

/// A message on its way to the device.
#[derive(Debug)]
struct Delivery {
    pkid: u16,
    /// When the device has had its time to acknowledge it.
    locked_until: Moment,
}

impl Message {
    pub(crate) fn new(body: Bytes, bag: BTreeMap<String, String>, expires: Moment) -> Self {
        Self { body, bag, expires, deliveries: 0, in_flight: None }
    }

    /// The same message after so many deliveries.
    pub(crate) fn delivered(self, deliveries: u32) -> Self {
        Self { deliveries, ..self }
    }

    pub(crate) fn deliveries(&self) -> u32 {
        self.deliveries
    }

    pub(crate) fn is_repeated(&self) -> bool {
        self.deliveries > 1
    }

    fn is_in_flight_as(&self, pkid: u16) -> bool {
        self.in_flight.as_ref().is_some_and(|delivery| delivery.pkid == pkid)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    messages: VecDeque<Message>,
    last_pkid: u16,
}

impl Queue {
    /// A queue of messages none of which is on its way.
    pub(crate) fn of(messages: Vec<Message>) -> Self {
        Self { messages: messages.into(), last_pkid: 0 }
    }

    /// What waits or is on its way, oldest first.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter()
    }

    /// Gives the message back if the queue is full.
    pub(crate) fn push(&mut self, message: Message, now: Moment) -> Result<(), Message> {
        self.forget_expired(now);
        if self.messages.len() >= QUEUE_LEN_MAX {
            return Err(message);
        }
        self.messages.push_back(message);
        Ok(())
    }

    /// Messages that are waiting or on their way. Those that expired since the queue was last used are still in it,
    /// and do not count.
    pub(crate) fn len(&self, now: Moment) -> usize {
        self.messages.iter().filter(|message| now < message.expires).count()
    }

    /// Empties the queue, and says how many messages were waiting or on their way.
    pub(crate) fn purge(&mut self, now: Moment) -> usize {
        let len = self.len(now);
        self.messages.clear();
        len
    }

    /// After a connection ended: what was on its way will be sent again, or given up.
    pub(crate) fn take_back(&mut self) {
        self.take_back_if(|_| true);
    }

    fn take_back_if(&mut self, is_over: impl Fn(&Delivery) -> bool) {
        self.messages.retain_mut(|message| {
            let was_in_flight = message.in_flight.take_if(|delivery| is_over(delivery)).is_some();
            !was_in_flight || message.deliveries < DELIVERIES_MAX
        });
    }

    /// When the first message on its way has to be acknowledged, or is sent again.
    pub(crate) fn first_lock_end(&self) -> Option<Moment> {
        self.messages.iter().filter_map(|it| it.in_flight.as_ref()).map(|it| it.locked_until).min()
    }

    /// Marks the next message as on its way, and returns it with its packet id. What was not acknowledged within
    /// `lock` counts as not delivered.
    pub(crate) fn send_next(&mut self, now: Moment, lock: Duration) -> Option<(u16, &Message)> {
        self.forget_expired(now);
        self.take_back_if(|delivery| delivery.locked_until <= now);
        // At most QUEUE_LEN_MAX ids are taken, so that a free one is always near.
        let pkid = (1..=QUEUE_LEN_MAX + 1)
            .filter_map(|step| u16::try_from(step).ok())
            .map(|step| self.last_pkid.wrapping_add(step).max(1))
            .find(|pkid| self.messages.iter().all(|message| !message.is_in_flight_as(*pkid)))?;
        let message = self.messages.iter_mut().find(|message| message.in_flight.is_none())?;
        self.last_pkid = pkid;
        message.in_flight = Some(Delivery { pkid, locked_until: now.plus(lock) });
        message.deliveries += 1;
        Some((pkid, message))
    }

    /// Completes the message that went out as `pkid`.
    pub(crate) fn complete(&mut self, pkid: u16) {
        self.messages.retain(|message| !message.is_in_flight_as(pkid));
    }

    fn forget_expired(&mut self, now: Moment) {
        self.messages.retain(|message| now < message.expires);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const LOCK: Duration = Duration::from_secs(60);

    fn message(now: Moment, ttl_secs: u64) -> Message {
        Message::new(Bytes::new(), BTreeMap::new(), now.plus(Duration::from_secs(ttl_secs)))
    }

    #[test]
    fn an_unacknowledged_message_comes_again_and_is_given_up_in_the_end() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        queue.push(message(now, 60), now).unwrap();
        for delivery in 1..=DELIVERIES_MAX {
            let (_, message) = queue.send_next(now, LOCK).unwrap();
            assert_eq!(message.is_repeated(), delivery > 1);
            assert!(queue.send_next(now, LOCK).is_none(), "sent twice on one connection");
            queue.take_back();
        }
        assert_eq!(queue.len(now), 0);
    }

    #[test]
    fn a_message_is_sent_again_when_its_lock_ends() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        queue.push(message(now, 3600), now).unwrap();
        assert_eq!(queue.first_lock_end(), None);
        let mut at = now;
        for delivery in 1..=DELIVERIES_MAX {
            let (pkid, message) = queue.send_next(at, LOCK).unwrap();
            assert_eq!(message.is_repeated(), delivery > 1);
            assert!(queue.send_next(at.plus(LOCK / 2), LOCK).is_none(), "sent while it is locked");
            at = at.plus(LOCK);
            assert_eq!(queue.first_lock_end(), Some(at));
            if delivery == 1 {
                queue.complete(pkid + 1);
            }
        }
        assert!(queue.send_next(at, LOCK).is_none());
        assert_eq!((queue.len(at), queue.first_lock_end()), (0, None));
    }

    #[test]
    fn completed_and_expired_messages_leave_the_queue() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        queue.push(message(now, 60), now).unwrap();
        queue.push(message(now, 1), now).unwrap();
        let (pkid, _) = queue.send_next(now, LOCK).unwrap();
        queue.complete(pkid);
        assert_eq!(queue.len(now), 1);
        let later = now.plus(Duration::from_secs(1));
        assert_eq!(queue.len(later), 0, "expired and not yet forgotten");
        assert!(queue.send_next(later, LOCK).is_none());
        assert_eq!(queue.len(now), 0);
    }

    #[test]
    fn purging_counts_what_would_still_have_been_sent() {
        let now = Clock::start().now();
        let mut queue = Queue::default();
        for ttl_secs in [1, 60, 1] {
            queue.push(message(now, ttl_secs), now).unwrap();
        }
        assert_eq!(queue.purge(now.plus(Duration::from_secs(1))), 1);
        assert_eq!(queue.len(now), 0);
    }

    #[test]
    fn the_fifty_first_message_is_given_back() {
        let now = Clock::start().now();
        let mut queue = Queue { last_pkid: u16::MAX - 20, ..Queue::default() };
        for _ in 0..QUEUE_LEN_MAX {
            queue.push(message(now, 60), now).unwrap();
        }
        assert!(queue.push(message(now, 60), now).is_err());
        let mut sent: Vec<u16> =
            std::iter::from_fn(|| queue.send_next(now, LOCK).map(|(pkid, _)| pkid)).collect();
        sent.sort_unstable();
        sent.dedup();
        assert_eq!(sent.len(), QUEUE_LEN_MAX);
        assert!(!sent.contains(&0));
    }
}
