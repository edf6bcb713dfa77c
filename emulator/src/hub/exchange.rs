//! What a live connection may say, and what the hub answers.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{Packet, PubAck, Publish, QoS, SubAck, Subscribe, SubscribeReasonCode, UnsubAck, Unsubscribe};
use serde_json::{Map, Value};

use super::{Connection, Hub, State, is_subscribed};
use crate::faults::{TwinAnswers, TwinRequest};
use crate::history::ClosedBy;
use crate::identity::IdentityId;
use crate::methods::Answer;
use crate::refusal::{ErrorCode, Refusal};
use crate::registry::Identity;
use crate::telemetry::PropertyBag;
use crate::topics::{self, Filter, Publication};

/// Largest device-to-cloud message in bytes, properties included (IoT Hub documentation, "Quotas and throttling").
pub(crate) const TELEMETRY_LEN_MAX: usize = 256 * 1024;
/// Largest payload of a direct method's answer in bytes.
const METHOD_LEN_MAX: usize = 128 * 1024;

/// Why a connection can't go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The client said DISCONNECT.
    Disconnected,
    /// The client did what MQTT or IoT Hub forbids.
    Violation(&'static str),
    /// The client sent more than the limits allow.
    Throttled,
    /// The hub has ended the connection already; its task is about to hear of it.
    Superseded,
}

/// What one packet is answered with.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) packets: Vec<Packet>,
    /// How much later they go out, which is zero without faults.
    pub(crate) delay: Duration,
    /// Whether they tell of a change that has to be on disk first, if the state is kept.
    pub(crate) tell_of_change: bool,
}

impl Hub {
    /// Takes one packet of a live connection. The answers are complete: what is acknowledged has been stored.
    pub(crate) fn handle(&self, connection: &Connection, packet: Packet) -> Result<Answers, Ending> {
        let mut state = self.lock();
        state.expect_live(connection)?;
        let answers = match packet {
            Packet::Publish(publish) => state.publish(connection, publish),
            Packet::PubAck(PubAck { pkid }) => {
                state.expect_live(connection)?.queue.complete(pkid);
                Ok(Vec::new())
            }
            Packet::Subscribe(subscribe) => {
                let answers = state.subscribe(connection, &subscribe);
                self.methods_reachable.notify_waiters();
                answers
            }
            Packet::Unsubscribe(unsubscribe) => state.unsubscribe(connection, &unsubscribe),
            Packet::PingReq => Ok(vec![Packet::PingResp]),
            Packet::Disconnect => Err(Ending::Disconnected),
            Packet::Connect(_) => Err(Ending::Violation("a second CONNECT")),
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {
                Err(Ending::Violation("a packet of QoS 2"))
            }
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(Ending::Violation("a packet that only a hub may send"))
            }
        };
        let tell_of_change = std::mem::take(&mut state.has_reported);
        let delay = state.take_answer_delay();
        Ok(Answers { packets: answers?, delay, tell_of_change })
    }

    /// Cloud-to-device messages that became deliverable by what was just answered, and so have to come after it.
    pub(crate) fn deliver_queued(&self, connection: &Connection) {
        let mut state = self.lock();
        if state.expect_live(connection).is_ok() {
            state.send_queued(&connection.identity);
        }
    }

    /// How long until a cloud-to-device message has to be sent again because the device does not acknowledge it.
    pub(crate) fn until_redelivery(&self, connection: &Connection) -> Option<Duration> {
        // Read only: what is looked for to be changed counts as perhaps changed, and is compared for the disk.
        let state = self.lock();
        let identity = state.registry.find(&connection.identity)?;
        let is_live = identity.live.as_ref().is_some_and(|live| live.id == connection.id);
        let end = identity.queue.first_lock_end().filter(|_| is_live)?;
        Some(end.since(self.clock.now()))
    }

    /// Ends a connection from its own side, unless the hub has ended it already, and publishes its will.
    pub(crate) fn leave(&self, connection: &mut Connection, by: ClosedBy, with_will: bool) {
        let mut state = self.lock();
        if state.expect_live(connection).is_ok() {
            state.close(&connection.identity, by);
        }
        let will = connection.will.take().filter(|_| with_will);
        if let Some(will) = will {
            let now = self.clock.now();
            state.telemetry.store(now, &connection.identity, will.bag, will.body);
        }
    }
}

impl State {
    /// The identity, as long as `connection` is its live one.
    fn expect_live(&mut self, connection: &Connection) -> Result<&mut Identity, Ending> {
        self.registry
            .find_mut(&connection.identity)
            .filter(|identity| identity.live.as_ref().is_some_and(|live| live.id == connection.id))
            .ok_or(Ending::Superseded)
    }

    fn publish(&mut self, connection: &Connection, publish: Publish) -> Result<Vec<Packet>, Ending> {
        let id = &connection.identity;
        if publish.qos == QoS::ExactlyOnce {
            return Err(Ending::Violation("PUBLISH with QoS 2"));
        }
        let publication =
            Publication::parse(&publish.topic, id).ok_or(Ending::Violation("PUBLISH to an unknown topic"))?;
        let answer = match publication {
            Publication::Telemetry { bag } => {
                self.store_telemetry(id, bag, &publish)?;
                None
            }
            Publication::ReadTwin { rid } => self.serve_twin(id, rid, TwinRequest::Read, |state| {
                api_version(connection)?;
                let twin = &state.registry.expect_known(id)?.twin;
                Ok((topics::twin_read(rid), twin.device_view().to_string()))
            }),
            Publication::Report { rid } => self.serve_twin(id, rid, TwinRequest::Report, |state| {
                api_version(connection)?;
                let version = state.report(id, &publish.payload)?;
                Ok((topics::twin_reported(rid, version), String::new()))
            }),
            Publication::MethodAnswer { status, rid } => {
                if publish.payload.len() > METHOD_LEN_MAX {
                    return Err(Ending::Violation("a direct method's answer over 128 KiB"));
                }
                let payload = parse_payload(&publish.payload);
                self.methods.answer(id, rid, Answer { status, payload });
                None
            }
        };
        let acknowledgement =
            (publish.qos == QoS::AtLeastOnce).then(|| Packet::PubAck(PubAck::new(publish.pkid)));
        Ok(acknowledgement.into_iter().chain(answer).collect())
    }

    fn store_telemetry(&mut self, id: &IdentityId, bag: &str, publish: &Publish) -> Result<(), Ending> {
        let mut bag = PropertyBag::parse(bag).ok_or(Ending::Violation("too many properties"))?;
        if publish.retain {
            bag.application.insert("mqtt-retain".to_owned(), "true".into());
        }
        if publish.dup {
            bag.application.insert("mqtt-dup".to_owned(), "true".into());
        }
        if bag.len() + publish.payload.len() > TELEMETRY_LEN_MAX {
            return Err(Ending::Violation("a message over 256 KiB"));
        }
        self.meter_telemetry()?;
        self.telemetry.store(self.clock.now(), id, bag, publish.payload.clone());
        Ok(())
    }

    /// Merges reported properties, and returns their new version.
    fn report(&mut self, id: &IdentityId, payload: &[u8]) -> Result<u64, Refusal> {
        let invalid = |message: String| Refusal::new(ErrorCode::ArgumentInvalid, message);
        let patch: Map<String, Value> = serde_json::from_slice(payload)
            .map_err(|error| invalid(format!("reported properties are no JSON object: {error}")))?;
        let timestamp = self.clock.timestamp();
        let twin = &mut self.registry.expect_known(id)?.twin;
        twin.report(&patch, &timestamp).map_err(invalid)?;
        let version = twin.reported.version;
        self.has_reported = true;
        self.configure(id);
        Ok(version)
    }

    /// The answer to a twin request, for whoever hears it.
    pub(super) fn twin_answer(
        &self,
        id: &IdentityId,
        rid: &str,
        outcome: Result<(String, String), Refusal>,
    ) -> Option<Packet> {
        let session = &self.registry.find(id)?.session;
        if self.faults.twin_answers == TwinAnswers::Subscribed && !is_subscribed(session, Filter::TwinAnswers)
        {
            return None;
        }
        let (topic, body) = outcome.unwrap_or_else(|refusal| {
            let body = refusal.compact_body(&self.clock.timestamp());
            (topics::twin_refused(rid, refusal.code.status()), body.to_string())
        });
        Some(Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, Bytes::from(body))))
    }

    fn subscribe(&mut self, connection: &Connection, subscribe: &Subscribe) -> Result<Vec<Packet>, Ending> {
        if subscribe.pkid == 0 {
            return Err(Ending::Violation("SUBSCRIBE with packet id 0"));
        }
        let asked = subscribe.filters.iter().map(|asked| {
            let granted = match asked.qos {
                QoS::AtMostOnce => QoS::AtMostOnce,
                QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
            };
            Some((Filter::parse(&asked.path, &connection.identity)?, granted))
        });
        // All or nothing: an unknown filter ends the connection, and leaves nothing in the session.
        let asked: Option<Vec<(Filter, QoS)>> = asked.collect();
        let asked = asked.ok_or(Ending::Violation("SUBSCRIBE to an unknown filter"))?;
        let codes = asked.iter().map(|(_, granted)| SubscribeReasonCode::Success(*granted)).collect();
        if let Some(session) = &mut self.expect_live(connection)?.session {
            let heard = asked
                .into_iter()
                .filter(|(filter, _)| connection.has_api_version || !filter.needs_api_version());
            session.filters.extend(heard);
        }
        Ok(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes))])
    }

    fn unsubscribe(
        &mut self,
        connection: &Connection,
        unsubscribe: &Unsubscribe,
    ) -> Result<Vec<Packet>, Ending> {
        if unsubscribe.pkid == 0 || unsubscribe.topics.is_empty() {
            return Err(Ending::Violation("UNSUBSCRIBE without packet id or filters"));
        }
        if let Some(session) = &mut self.expect_live(connection)?.session {
            for filter in &unsubscribe.topics {
                if let Some(filter) = Filter::parse(filter, &connection.identity) {
                    session.filters.remove(&filter);
                }
            }
        }
        Ok(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
    }
}

fn api_version(connection: &Connection) -> Result<(), Refusal> {
    if connection.has_api_version {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::ArgumentInvalid, "twins need an api-version in the MQTT user name"))
}

/// A method's answer as JSON: nothing is `null`, and what is no JSON is told as text.
fn parse_payload(payload: &[u8]) -> Value {
    if payload.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(payload).unwrap_or_else(|_| String::from_utf8_lossy(payload).into())
}
