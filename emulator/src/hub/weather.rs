//! Where faults and throttles meet what is asked of the hub.

use std::time::Duration;

use rumqttc::Packet;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::sleep;

use super::exchange::Ending;
use super::{Connection, Hub, State};
use crate::faults::{Failure, TwinRequest};
use crate::history::ClosedBy;
use crate::identity::IdentityId;
use crate::refusal::{ErrorCode, Refusal};
use crate::throttles::{Bulk, Category, Verdict};

/// What live connections have to know of the faults at once. A change wakes them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Weather {
    stalls: bool,
    clock_offset_secs: i64,
}

impl Weather {
    pub(crate) fn is_any_stalled(self) -> bool {
        self.stalls
    }
}

impl Hub {
    /// Merges the faults that `change` names.
    pub(crate) fn change_faults(&self, change: &Map<String, Value>) -> Result<(), String> {
        let mut state = self.lock();
        let newest = state.history.newest();
        state.faults.merge(change, newest)?;
        if change.contains_key("throttles") {
            state.throttles.fill();
        }
        self.tell_weather(&state, change.contains_key("stalled"));
        Ok(())
    }

    /// Ends all faults.
    pub(crate) fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        self.tell_weather(&state, false);
    }

    /// Sets the clock as the faults say, and wakes live connections if they have to know.
    pub(super) fn tell_weather(&self, state: &State, wake: bool) {
        let clock_offset_secs = state.faults.clock_offset_secs;
        self.clock.set_offset_secs(clock_offset_secs);
        let next = Weather { stalls: state.faults.is_any_stalled(), clock_offset_secs };
        self.weather.send_if_modified(|weather| std::mem::replace(weather, next) != next || wake);
    }

    /// How late the next packet that nobody asked for goes out.
    pub(crate) fn latency(&self) -> Duration {
        self.lock().faults.latency()
    }

    /// Rings at every change that live connections have to know of.
    pub(crate) fn weather(&self) -> watch::Receiver<Weather> {
        self.weather.subscribe()
    }

    /// How long a CONNECT waits before the hub looks at it, and whether it gets no answer at all. One that is for the
    /// provisioning service takes no part in the hub's limits.
    pub(crate) fn connack_faults(&self, is_for_dps: bool) -> (Duration, bool) {
        let mut state = self.lock();
        let State { faults, throttles, clock, .. } = &mut *state;
        let queued = match is_for_dps {
            true => Some(Duration::ZERO),
            false => throttles.take_connection(faults.throttles.as_ref(), clock.now()),
        };
        let delay = faults.connack_delay() + faults.latency() + queued.unwrap_or_default();
        (delay, faults.mute_connack || queued.is_none())
    }

    /// Holds `connection` while it is stalled. What ended it in the meantime, if anything did; only a cut and a restart end
    /// it at once, everything else is heard when the stall is lifted.
    pub(crate) async fn hold_stalled(
        &self,
        connection: &mut Connection,
        weather: &mut watch::Receiver<Weather>,
    ) -> Stillness {
        let mut held = false;
        let mut ended = None;
        while weather.borrow_and_update().stalls
            && self.lock().faults.is_stalled(&connection.identity, connection.id)
        {
            held = true;
            tokio::select! {
                by = &mut connection.kicked, if ended.is_none() => {
                    let by = by.unwrap_or(ClosedBy::Restart);
                    if by.is_abrupt() {
                        return Stillness::Ended(by);
                    }
                    ended = Some(by);
                }
                changed = weather.changed() => if changed.is_err() {
                    return Stillness::Ended(ClosedBy::Restart);
                },
            }
        }
        match ended {
            Some(by) => Stillness::Ended(by),
            None if held => Stillness::Over,
            None => Stillness::None,
        }
    }

    /// How a request over HTTPS is to fail, if it is, and how late its answer goes out.
    pub(crate) fn request_faults(&self, method: &str, path: &str) -> (Option<Failure>, Duration) {
        let mut state = self.lock();
        (state.faults.take_request_failure(method, path), state.faults.latency())
    }

    /// Counts a request over HTTPS, and holds or refuses what is over the limit.
    pub(crate) async fn throttle(&self, method: &str, path: &str, body: &[u8]) -> Result<(), Refusal> {
        let Some(category) = Category::of_request(method, path) else {
            return Ok(());
        };
        let verdict = {
            let mut state = self.lock();
            let bulk = state.faults.throttles.as_ref().map_or(Bulk::Entries, |limits| limits.bulk);
            state.meter(category, category.cost(path, body, bulk))
        };
        match verdict {
            Verdict::Serve(wait) if wait.is_zero() => Ok(()),
            Verdict::Serve(wait) => {
                sleep(wait).await;
                Ok(())
            }
            Verdict::Refuse { retry_after } => Err(throttled(retry_after)),
        }
    }
}

/// What [`Hub::hold_stalled`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stillness {
    /// The connection is not stalled.
    None,
    /// It was, and goes on.
    Over,
    /// It has ended.
    Ended(ClosedBy),
}

impl State {
    /// Counts an operation, and judges it.
    fn meter(&mut self, category: Category, cost: u64) -> Verdict {
        self.throttles.take(self.faults.throttles.as_ref(), category, cost, self.clock.now())
    }

    /// Counts a device-to-cloud message. One over the limit is acknowledged late, and ends the connection when too many
    /// wait: the real hub's 429002.
    pub(super) fn meter_telemetry(&mut self) -> Result<(), Ending> {
        match self.meter(Category::DeviceToCloud, 1) {
            Verdict::Serve(wait) => {
                self.answer_delay += wait;
                Ok(())
            }
            Verdict::Refuse { .. } => Err(Ending::Throttled),
        }
    }

    /// Serves a twin request over MQTT, unless a fault or a limit forbids.
    pub(super) fn serve_twin(
        &mut self,
        id: &IdentityId,
        rid: &str,
        request: TwinRequest,
        serve: impl FnOnce(&mut Self) -> Result<(String, String), Refusal>,
    ) -> Option<Packet> {
        let category = match request {
            TwinRequest::Read => Category::TwinReads,
            TwinRequest::Report => Category::TwinUpdates,
        };
        if let Some(Failure { done, refusal }) = self.faults.take_twin_failure(id, request) {
            if done {
                self.meter(category, 1);
                drop(serve(self));
            }
            return refusal.and_then(|refusal| self.twin_answer(id, rid, Err(refusal)));
        }
        let outcome = match self.meter(category, 1) {
            Verdict::Serve(wait) => {
                self.answer_delay += wait;
                serve(self)
            }
            Verdict::Refuse { retry_after } => Err(throttled(retry_after)),
        };
        self.twin_answer(id, rid, outcome)
    }

    /// How late the answers to one packet go out.
    pub(super) fn take_answer_delay(&mut self) -> Duration {
        std::mem::take(&mut self.answer_delay) + self.faults.latency()
    }
}

fn throttled(retry_after: Option<Duration>) -> Refusal {
    // Whole seconds, rounded up: whoever waits so long is served.
    let retry_after_secs = retry_after.map(|wait| wait.as_secs() + 1);
    Refusal {
        retry_after_secs,
        ..Refusal::new(ErrorCode::Throttling, "the hub's limit for such operations is reached")
    }
}
