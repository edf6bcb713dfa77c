//! The Unix socket through which programs on the gateway use the agent's connection: they publish telemetry and ask
//! for status and tokens. One JSON object a line, in and out; answers carry the `id` of their request (null, a number, or a
//! text of at most 64 bytes), and those to messages may come in another order.
//!
//! ```text
//! → {"request":"publish","id":7,"body":"{\"n\":1}","properties":{"kind":"reading"}}
//! ← {"id":7,"ok":true}                      once the hub has acknowledged it
//! → {"request":"status","id":8}
//! ← {"id":8,"ok":true,"status":{…}}
//! → {"request":"token","id":9,"ttlSecs":600}
//! ← {"id":9,"ok":true,"token":"…"}          where the configuration allows it
//! → {"request":"replace","id":10,"connectionString":"…","slot":"primary"}
//! ← {"id":10,"ok":true,"key":"5f1d0c3b9a7e2466"}   the key's fingerprint: it is stored, and tried next
//! ```
//!
//! Whoever may open the socket may speak for the device: its mode is 0660. A key is taken from root and the agent's own
//! user only.
//!
//! What programs can make the agent hold has a [budget](crate::budget). Each connection (`connection`) has its place
//! (`places`), with a buffer for short lines, and may hold its share of messages.

mod ask;
mod connection;
mod lines;
mod places;
mod protocol;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use twinkey_rotation::KeySlot;
use twinkey_sas::Key;
use zeroize::Zeroizing;

pub use self::ask::{ask, ask_text, is_served, replace_request};
use self::connection::{Connection, Shared};
use self::places::{Activity, Peer, Places};
use self::protocol::{Id, failed};
pub use self::socket::{ListenError, listen};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::hub::outbox::Message;
use crate::keyring::Registration;

/// Places for root and the agent's own user alone, so that a person finds one: for a command that waits, and one beside it.
const PRIVILEGED_PLACES: usize = 2;
/// Connections that may stand at once.
pub const PLACES_MAX: usize = 64 + PRIVILEGED_PLACES;
/// The buffer for requests that every connection has, in bytes. Most lines are shorter.
const READ_LEN: usize = 8 * 1024;
/// The buffer for answers to messages that every connection has, in bytes.
const ANSWERS_LEN: usize = 8 * 1024;
/// What a place takes at most besides messages, in bytes: its buffers, one status document with its text, what its task and
/// its account are made of.
pub const PLACE_LEN_MAX: usize = READ_LEN + ANSWERS_LEN + 32 * 1024 + 8 * 1024;
/// Longest line, in bytes: the largest message in base64, and its properties.
pub const LINE_LEN_MAX: usize = 512 * 1024;
/// Lines longer than a connection's own buffer that may be coming in at once.
pub const LONG_LINES_MAX: usize = 4;
/// What one line takes at most while it is taken apart, in bytes: texts without their escapes, in the parser's buffer and by
/// themselves, and the body that base64 stands for. One line is taken apart at a time.
pub const PARSE_LEN_MAX: usize = 4 * LINE_LEN_MAX;
/// Requests that may wait for the driver.
pub const REQUESTS_MAX: usize = 256;

/// What a program asks of the driver.
#[derive(Debug)]
pub enum Request {
    /// To send a message; its sender is told when the hub has acknowledged it.
    Publish(Message),
    /// The status document.
    Status(oneshot::Sender<Value>),
    /// To try a key that a person has brought.
    Replace(Replacement),
    /// A token of the device's.
    Token {
        /// How long it is to be good for, in seconds.
        ttl_secs: u64,
        /// The token, or why there is none.
        answer: oneshot::Sender<Result<Zeroizing<String>, String>>,
    },
}

/// A key that a person has brought.
#[derive(Debug)]
pub struct Replacement {
    /// Whose key it is.
    pub registration: Registration,
    /// The slot in the registry that it comes from.
    pub slot: KeySlot,
    /// The key, in one place: the channel's slots would keep copies of it.
    pub key: Box<Key>,
    /// The key's fingerprint once it is stored, or why it is not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// Serves programs until the driver goes away.
pub async fn serve(
    listener: UnixListener,
    registration: Registration,
    clock: Clock,
    driver: mpsc::Sender<Request>,
) {
    let budget = Budget::default();
    let lanes = Semaphore::new(LONG_LINES_MAX);
    let shared = Arc::new(Shared { registration, driver: driver.clone(), clock: clock.clone(), lanes });
    let mut places = Places::new(rustix::process::geteuid().as_raw());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let peer = Peer::of(&stream);
                    if let Err(reason) = places.admit(peer, clock.now()) {
                        turn_away(&stream, &reason.to_string());
                        continue;
                    }
                    let activity = Arc::new(Activity::new(clock.now()));
                    let connection = Connection {
                        account: budget.open(),
                        activity: Arc::clone(&activity),
                        is_privileged: places.is_privileged(peer),
                        shared: Arc::clone(&shared),
                    };
                    places.take(peer, activity, connections.spawn(connection.serve(stream)));
                }
                // No descriptor is free: let one of the present programs go first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                places.free(ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            () = driver.closed() => return,
        }
    }
}

/// Says so at once, so that whoever looks for the agent does not take it for dead.
fn turn_away(stream: &UnixStream, reason: &str) {
    let mut text = failed(Id::None, reason).text();
    text.push(b'\n');
    // A new socket has room for one line; one that has not is not waited for.
    let _ = stream.try_write(&text);
}
