//! Keys that the hub makes, ordered for many identities at once.
//!
//! What is ordered within a moment goes into one `/devices/keys/regenerate`, whose answer is taken apart again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use twinkey_contract::{Identity, KeySlot};

use crate::failure::Failure;
use crate::hub::{Hub, HubError, KeyPair};

/// How long an order waits for others.
const GATHER: Duration = Duration::from_millis(30);

/// Takes orders as long as it lives.
pub(crate) struct KeyMaker {
    orders: mpsc::UnboundedSender<Order>,
}

/// Why there is no key.
#[derive(Debug)]
pub(super) enum Unmade {
    /// Nothing was changed, and it may go better after a pause.
    NotNow { why: Failure, pause: Duration },
    /// Nothing was changed, and it will not go better.
    Refused(Failure),
    /// The hub has no such identity.
    Gone,
    /// Whether anything was changed shows in the registry.
    Unknown(Failure),
}

struct Order {
    slot: KeySlot,
    identity: Identity,
    /// The lease under which it was ordered ends then.
    until: Instant,
    answer: oneshot::Sender<Result<KeyPair, Unmade>>,
}

impl KeyMaker {
    pub(crate) fn start(hub: Arc<Hub>) -> Self {
        let (orders, mut incoming) = mpsc::unbounded_channel::<Order>();
        tokio::spawn(async move {
            while let Some(first) = incoming.recv().await {
                let send_at = Instant::now() + GATHER;
                let mut batch = vec![first];
                while batch.len() < hub.order_len_max() {
                    tokio::select! {
                        more = incoming.recv() => match more {
                            Some(order) => batch.push(order),
                            None => break,
                        },
                        () = sleep_until(send_at) => break,
                    }
                }
                for slot in KeySlot::ALL {
                    let of_slot: Vec<Order> = batch.extract_if(.., |order| order.slot == slot).collect();
                    if !of_slot.is_empty() {
                        // The next ones need not wait for this answer.
                        tokio::spawn(fill(hub.clone(), slot, of_slot));
                    }
                }
            }
        });
        Self { orders }
    }

    /// Has the hub make a new key in this slot, if the order gets out by `until`: both keys as they are then.
    pub(super) async fn make(
        &self,
        slot: KeySlot,
        identity: &Identity,
        until: Instant,
    ) -> Result<KeyPair, Unmade> {
        let (answer, answered) = oneshot::channel();
        let order = Order { slot, identity: identity.clone(), until, answer };
        let lost = || Unmade::Unknown(Failure::failed("the order of a new key was lost in this program"));
        self.orders.send(order).map_err(|_| lost())?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }
}

async fn fill(hub: Arc<Hub>, slot: KeySlot, orders: Vec<Order>) {
    let (orders, late): (Vec<_>, Vec<_>) = orders.into_iter().partition(|order| Instant::now() < order.until);
    for order in late {
        let why = Failure::failed("the order of a new key had to wait for longer than its lease");
        let _ = order.answer.send(Err(Unmade::NotNow { why, pause: Duration::ZERO }));
    }
    if orders.is_empty() {
        return;
    }
    let identities: Vec<Identity> = orders.iter().map(|order| order.identity.clone()).collect();
    // Until the first of the leases ends.
    let until = orders.iter().map(|order| order.until).min().unwrap_or_else(Instant::now);
    match hub.regenerate_keys(slot, &identities, until).await {
        Ok(made) => {
            for order in orders {
                let keys = made.rotated_keys.iter().find(|keys| keys.is_of(&order.identity));
                let error = made.errors.iter().find(|error| error.is_of(&order.identity));
                // A key that was made counts, whatever else the answer says.
                let result = match (keys.map(|keys| keys.keys()), error) {
                    (Some(Some(keys)), _) => Ok(keys),
                    (Some(None), _) => Err(Unmade::Unknown(Failure::failed(
                        "the hub's answer holds something that is no key",
                    ))),
                    (None, Some(error)) if error.is_about_absence() => Err(Unmade::Gone),
                    (None, Some(error)) => Err(Unmade::Refused(Failure::failed(error.to_string()))),
                    (None, None) => Err(Unmade::Unknown(Failure::failed(
                        "the hub's answer to the order of new keys leaves this identity out",
                    ))),
                };
                // Nobody waits any more: the next run finds the key in the registry.
                let _ = order.answer.send(result);
            }
        }
        Err(error) => {
            for order in orders {
                let _ = order.answer.send(Err(unmade(&error)));
            }
        }
    }
}

/// What one answer for all means for each.
fn unmade(error: &HubError) -> Unmade {
    let why = Failure::from(error);
    if error.is_ambiguous() {
        Unmade::Unknown(why)
    } else {
        match error.pause_before_next_look() {
            Some(pause) => Unmade::NotNow { why, pause },
            None => Unmade::Refused(why),
        }
    }
}
