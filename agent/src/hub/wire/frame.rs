//! What the first bytes of a packet say of it, before the whole is there (MQTT 3.1.1 §2.2, §3.3). The codec reads whole
//! packets only.

use rumqttc::mqttbytes::Error;
use rumqttc::mqttbytes::QoS;

/// The packet type of PUBLISH.
const PUBLISH: u8 = 3;
/// Most bytes of the remaining length (§2.2.3).
const LENGTH_BYTES_MAX: usize = 4;

/// The fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    first: u8,
    header_len: usize,
    remaining_len: usize,
}

/// What stands before the payload of a PUBLISH that is not read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The topic.
    pub topic: String,
    /// The packet identifier by which it is to be acknowledged; `None` at QoS 0.
    pub packet_id: Option<u16>,
    /// The payload's length in bytes.
    pub payload_len: usize,
}

/// The beginning of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// It has not come in whole yet.
    Partial,
    /// A PUBLISH.
    Publish(Announced),
    /// Another packet.
    Other,
}

impl Header {
    /// Reads the fixed header; `None` while it is not whole.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
        let mut remaining_len = 0;
        for (index, byte) in rest.iter().take(LENGTH_BYTES_MAX).enumerate() {
            remaining_len |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(Some(Self { first: *first, header_len: 2 + index, remaining_len }));
            }
        }
        if rest.len() >= LENGTH_BYTES_MAX { Err(Error::MalformedRemainingLength) } else { Ok(None) }
    }

    /// Bytes after the fixed header.
    pub(super) fn remaining_len(&self) -> usize {
        self.remaining_len
    }

    /// Bytes of the whole packet.
    pub(super) fn packet_len(&self) -> usize {
        self.header_len + self.remaining_len
    }

    /// Reads what stands before the payload of this packet, of which these bytes are there.
    pub(super) fn beginning(&self, packet: &[u8]) -> Result<Beginning, Error> {
        match self.first >> 4 {
            PUBLISH => {}
            kind @ (0 | 15) => return Err(Error::InvalidPacketType(kind)),
            _ => return Ok(Beginning::Other),
        }
        let qos = rumqttc::mqttbytes::qos((self.first >> 1) & 0b11)?;
        let id_len = if qos == QoS::AtMostOnce { 0 } else { 2 };
        let body = packet.get(self.header_len..).unwrap_or_default();
        let Some((topic_len, body)) = split_u16(body) else { return Ok(Beginning::Partial) };
        let topic_len = usize::from(topic_len);
        let Some(payload_len) = self.remaining_len.checked_sub(2 + topic_len + id_len) else {
            return Err(Error::BoundaryCrossed(topic_len));
        };
        let Some((topic, body)) = body.split_at_checked(topic_len) else { return Ok(Beginning::Partial) };
        let packet_id = match (id_len, split_u16(body)) {
            (0, _) => None,
            (_, None) => return Ok(Beginning::Partial),
            (_, Some((0, _))) => return Err(Error::PacketIdZero),
            (_, Some((packet_id, _))) => Some(packet_id),
        };
        let topic = std::str::from_utf8(topic).map_err(|_| Error::TopicNotUtf8)?.to_owned();
        Ok(Beginning::Publish(Announced { topic, packet_id, payload_len }))
    }
}

fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}
