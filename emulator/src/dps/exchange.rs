//! What a device may say on a connection to the Device Provisioning Service, and what it is answered.

use bytes::Bytes;
use rumqttc::{Packet, PubAck, Publish, QoS, SubAck, Subscribe, SubscribeReasonCode, UnsubAck};

use super::topics::{ANSWERS, Request};
use super::{Registrant, registration};
use crate::hub::{Ending, Hub};

/// A device's connection. There are no persistent sessions (DPS documentation, "Communicate with DPS using MQTT").
pub(super) struct Conversation {
    pub(super) registrant: Registrant,
    /// The token, judged anew with each request.
    pub(super) password: zeroize::Zeroizing<String>,
    /// How the device asked to be answered, once it has.
    subscribed: Option<QoS>,
    last_pkid: u16,
}

impl Conversation {
    pub(super) fn new(registrant: Registrant, password: String) -> Self {
        Self { registrant, password: password.into(), subscribed: None, last_pkid: 0 }
    }

    /// Takes one packet; the answers are complete.
    pub(super) fn handle(&mut self, hub: &Hub, packet: Packet) -> Result<Vec<Packet>, Ending> {
        match packet {
            Packet::Publish(publish) => self.publish(hub, &publish),
            Packet::PubAck(_) => Ok(Vec::new()),
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe),
            Packet::Unsubscribe(unsubscribe) => {
                if unsubscribe.pkid == 0 || unsubscribe.topics.is_empty() {
                    return Err(Ending::Violation("UNSUBSCRIBE without packet id or filters"));
                }
                if unsubscribe.topics.iter().any(|filter| filter == ANSWERS) {
                    self.subscribed = None;
                }
                Ok(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
            }
            Packet::PingReq => Ok(vec![Packet::PingResp]),
            Packet::Disconnect => Err(Ending::Disconnected),
            Packet::Connect(_) => Err(Ending::Violation("a second CONNECT")),
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {
                Err(Ending::Violation("a packet of QoS 2"))
            }
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(Ending::Violation("a packet that only a hub may send"))
            }
        }
    }

    fn publish(&mut self, hub: &Hub, publish: &Publish) -> Result<Vec<Packet>, Ending> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(Ending::Violation("PUBLISH with QoS 2"));
        }
        let request =
            Request::parse(&publish.topic).ok_or(Ending::Violation("PUBLISH to an unknown topic"))?;
        let answer = match request {
            Request::Register { rid } => {
                hub.register(&self.registrant, &self.password, rid, &publish.payload)
            }
            Request::Poll { rid, operation_id } => {
                hub.registration_status(&self.registrant, &self.password, rid, operation_id)
            }
        };
        let acknowledgement =
            (publish.qos == QoS::AtLeastOnce).then(|| Packet::PubAck(PubAck::new(publish.pkid)));
        Ok(acknowledgement.into_iter().chain(self.answer(answer)).collect())
    }

    /// With the quality of service that the subscription was granted.
    fn answer(&mut self, (topic, body): registration::Answer) -> Option<Packet> {
        let qos = self.subscribed?;
        let mut publish = Publish::from_bytes(topic, qos, Bytes::from(body.to_string()));
        if qos != QoS::AtMostOnce {
            self.last_pkid = self.last_pkid.wrapping_add(1).max(1);
            publish.pkid = self.last_pkid;
        }
        Some(Packet::Publish(publish))
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Result<Vec<Packet>, Ending> {
        if subscribe.pkid == 0 {
            return Err(Ending::Violation("SUBSCRIBE with packet id 0"));
        }
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for asked in &subscribe.filters {
            if asked.path != ANSWERS {
                return Err(Ending::Violation("SUBSCRIBE to an unknown filter"));
            }
            let granted = match asked.qos {
                QoS::AtMostOnce => QoS::AtMostOnce,
                QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
            };
            self.subscribed = Some(granted);
            codes.push(SubscribeReasonCode::Success(granted));
        }
        Ok(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes))])
    }
}
