//! What the driver has written: the key ring when the machine asks for it, and once a day the time.
//!
//! One write at a time, on a thread of its own: a disk that hangs must not stop the loop.

use std::future::pending;

use tokio::task::JoinHandle;
use twinkey_rotation::{Input, Ring};
use zeroize::Zeroizing;

use super::Driver;
use super::outcomes::Kind;
use crate::chain::Chain;
use crate::store::{Files, Store, StoreError};

/// How often the time is noted on disk, in seconds: once a day, for the sake of the flash.
const NOTE_TIME_SECS: u64 = 24 * 3_600;

/// A write that has ended: the store comes back with it.
pub(super) type Saved<F> = (Store<F>, Written, Result<(), StoreError>);

/// What was being written.
#[derive(Clone, Copy)]
pub(super) enum Written {
    KeyRing,
    Time,
}

impl<F: Files + Send + 'static> Driver<F> {
    pub(super) fn save(&mut self, ring: &Ring) {
        self.key_ring.ring = *ring;
        let bytes = match self.key_ring.encode(ring) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the key ring can't be encoded; the one on disk stays as it is");
                return self.feed(Input::Stored(false));
            }
        };
        if self.saving.is_some() {
            // The machine asks for one write at a time, so this can only be the time's.
            self.next_key_ring = Some(bytes);
            return;
        }
        self.save_bytes(bytes);
    }

    pub(super) fn save_bytes(&mut self, bytes: Zeroizing<Vec<u8>>) {
        // The store is only missing after its thread has died.
        let Some(mut store) = self.store.take() else {
            return self.feed(Input::Stored(false));
        };
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let result = store.save_bytes(&bytes);
            (store, Written::KeyRing, result)
        }));
    }

    /// Keeps the time on disk, as the floor of the clock after the next start.
    pub(super) fn note_time(&mut self) {
        let unix_secs = self.clock.unix_secs();
        let is_fresh = self.noted_unix_secs.is_some_and(|noted| noted.abs_diff(unix_secs) < NOTE_TIME_SECS);
        // A write that is under way calls again when it is done.
        if is_fresh || self.saving.is_some() {
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        self.noted_unix_secs = Some(unix_secs);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let result = store.note_time(unix_secs);
            (store, Written::Time, result)
        }));
    }

    pub(super) fn saved(&mut self, saved: Option<Saved<F>>) {
        self.saving = None;
        let Some((store, written, result)) = saved else {
            tracing::error!(
                "the thread that writes to disk has died: restart the agent; the proven key stays in use"
            );
            self.next_key_ring = None;
            return self.feed(Input::Stored(false));
        };
        self.store = Some(store);
        match &result {
            Ok(()) => {
                if std::mem::take(&mut self.counters.is_disk_failing) {
                    tracing::info!("the state directory can be written again");
                }
            }
            Err(error) if matches!(written, Written::Time) => {
                // Nothing hangs on it; it is tried again with the next connection.
                self.noted_unix_secs = None;
                tracing::debug!(error = %Chain(error), "the time can't be noted");
            }
            Err(error) => {
                self.outcomes.count(Kind::Storage);
                if !std::mem::replace(&mut self.counters.is_disk_failing, true) {
                    tracing::error!(error = %Chain(error), next = Kind::Storage.advice(), "the state directory can't be written; the proven key stays in use and a key ring's write is repeated");
                }
            }
        }
        match written {
            Written::KeyRing => {
                self.feed(Input::Stored(result.is_ok()));
                self.forget_keys();
                self.answer_replacement(result.as_ref().err());
                if result.is_ok() && std::mem::take(&mut self.is_wake_due) {
                    self.wake();
                }
                if self.live.is_some() {
                    self.note_time();
                }
            }
            Written::Time => {
                if let Some(bytes) = self.next_key_ring.take() {
                    self.save_bytes(bytes);
                }
            }
        }
    }
}

/// `None` when the writing thread has died.
pub(super) async fn end_of<T>(thread: &mut Option<JoinHandle<T>>) -> Option<T> {
    match thread {
        Some(thread) => thread.await.ok(),
        None => pending().await,
    }
}
