use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{Announced, Beginning, Header};
use super::{BUFFER_LEN_KEPT, PACKET_LEN_MAX, READ_LEN, Received, Wire, WireError};

/// Gives its bytes in the pieces that were asked for, then zeros, and then ends. Takes whatever is written.
struct Script {
    bytes: Vec<u8>,
    at: usize,
    /// Where a read stops even if there is more.
    stops: Vec<usize>,
    zeros: usize,
}

impl Script {
    fn of(bytes: Vec<u8>, stops: Vec<usize>) -> Self {
        Self { bytes, at: 0, stops, zeros: 0 }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let stop = self.stops.iter().copied().find(|stop| *stop > self.at).unwrap_or(usize::MAX);
        let end = (self.at + buffer.remaining()).min(stop).min(self.bytes.len());
        buffer.put_slice(&self.bytes[self.at..end]);
        if self.at == end {
            let zeros = self.zeros.min(buffer.remaining());
            buffer.put_slice(&vec![0; zeros]);
            self.zeros -= zeros;
        }
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The next thing, however often the wire lets others have their turn.
fn next(wire: &mut Wire<Script>) -> Result<Received, WireError> {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        let mut next = pin!(wire.next());
        if let Poll::Ready(received) = next.as_mut().poll(&mut context) {
            return received;
        }
    }
}

fn bytes_of(packets: &[Packet]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for packet in packets {
        packet.write(&mut bytes, usize::MAX).unwrap();
    }
    bytes.to_vec()
}

fn publish(topic: &str, packet_id: u16, payload_len: usize) -> Packet {
    let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let mut publish = Publish::new(topic, qos, vec![b'x'; payload_len]);
    publish.pkid = packet_id;
    Packet::Publish(publish)
}

fn too_large(topic: &str, packet_id: Option<u16>, payload_len: usize) -> Received {
    Received::TooLarge(Some(Announced { topic: topic.to_owned(), packet_id, payload_len }))
}

#[test]
fn packet_that_is_too_large_is_passed_over_wherever_reads_stop_and_the_next_one_is_read() {
    for (packet_id, announced) in [(0, None), (0x1234, Some(0x1234))] {
        let large = bytes_of(&[publish("$iothub/t", packet_id, PACKET_LEN_MAX)]);
        let last = Packet::PubAck(PubAck::new(7));
        let bytes =
            [bytes_of(&[Packet::PingResp]), large.clone(), bytes_of(std::slice::from_ref(&last))].concat();
        let end = 2 + large.len();
        let mut stops: Vec<Vec<usize>> = (0..24).chain(end - 6..bytes.len()).map(|stop| vec![stop]).collect();
        // And byte by byte.
        stops.push((0..40).chain(end - 40..bytes.len()).collect());
        for stops in stops {
            let mut wire = Wire::new(Script::of(bytes.clone(), stops.clone()));
            assert_eq!(next(&mut wire).unwrap(), Received::Packet(Packet::PingResp));
            assert_eq!(next(&mut wire).unwrap(), too_large("$iothub/t", announced, PACKET_LEN_MAX));
            assert!(wire.is_skipping() && wire.is_amid_packet());
            assert_eq!(next(&mut wire).unwrap(), Received::Packet(last.clone()), "{stops:?}");
            assert!(!wire.is_skipping() && !wire.is_amid_packet());
            assert_eq!(wire.received_len(), bytes.len() as u64);
            assert!(matches!(next(&mut wire), Err(WireError::Closed)));
        }
    }
}

#[test]
fn largest_packet_that_is_read_is_one_byte_shorter_than_the_smallest_that_is_not() {
    // Two bytes of length and one letter.
    for payload_len in [PACKET_LEN_MAX - 4, PACKET_LEN_MAX - 3, PACKET_LEN_MAX - 2] {
        let packet = publish("t", 0, payload_len);
        let mut wire = Wire::new(Script::of(bytes_of(std::slice::from_ref(&packet)), Vec::new()));
        let expected = if payload_len <= PACKET_LEN_MAX - 3 {
            Received::Packet(packet)
        } else {
            too_large("t", None, payload_len)
        };
        assert_eq!(next(&mut wire).unwrap(), expected);
    }
}

#[test]
fn largest_packet_of_mqtt_is_passed_over_in_a_small_buffer_and_lets_others_have_their_turn() {
    let topic = "t".repeat(usize::from(u16::MAX));
    let mut bytes = vec![0x30, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff];
    bytes.extend(topic.as_bytes());
    let payload_len = 268_435_455 - 2 - topic.len();
    let mut script = Script::of(bytes, Vec::new());
    script.zeros = payload_len;
    let mut wire = Wire::new(script);
    assert_eq!(next(&mut wire).unwrap(), too_large(&topic, None, payload_len));
    let mut turns = 0;
    let mut context = Context::from_waker(Waker::noop());
    let end = loop {
        assert!(wire.incoming.capacity() <= BUFFER_LEN_KEPT + READ_LEN, "{}", wire.incoming.capacity());
        let mut next = pin!(wire.next());
        match next.as_mut().poll(&mut context) {
            Poll::Ready(end) => break end,
            Poll::Pending => turns += 1,
        }
    };
    assert!(matches!(end, Err(WireError::Closed)), "{end:?}");
    assert!(!wire.is_skipping());
    assert!(turns > 500, "{turns}");
}

#[test]
fn end_of_the_connection_ends_what_is_passed_over() {
    let bytes = bytes_of(&[publish("t", 0, PACKET_LEN_MAX)]);
    for len in [1, 4, 5, 7, 8, 100, bytes.len() - 1] {
        let mut wire = Wire::new(Script::of(bytes[..len].to_vec(), Vec::new()));
        if len >= 7 {
            assert_eq!(next(&mut wire).unwrap(), too_large("t", None, PACKET_LEN_MAX), "{len}");
            assert!(wire.is_skipping());
        }
        assert!(wire.is_amid_packet() || len < 7);
        let end = next(&mut wire).unwrap_err();
        assert!(matches!(end, WireError::Closed) && end.is_hang_up(), "{len}: {end}");
    }
}

#[test]
fn packets_that_no_hub_sends_are_errors_of_the_protocol_or_passed_over_however_large_they_are() {
    // 1 MiB after the fixed header.
    let with = |first: u8, rest: &[u8]| [&[first, 0x80, 0x80, 0x40], rest, &[0; 64]].concat();
    for bad in [
        vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
        vec![0x30, 0x80, 0x80, 0x80, 0x80],
        with(0x00, &[]),
        with(0xf0, &[]),
        with(0x36, &[0, 1, b't', 0, 1]),
        with(0x32, &[0, 1, b't', 0, 0]),
        with(0x30, &[0, 1, 0xff]),
    ] {
        let mut wire = Wire::new(Script::of(bad.clone(), (0..9).collect()));
        let error = next(&mut wire).unwrap_err();
        assert!(matches!(error, WireError::Protocol(_)) && !error.is_hang_up(), "{bad:x?}: {error}");
    }
    for other in [0x10, 0x20, 0x40, 0x90, 0xd0, 0xe0] {
        let mut wire = Wire::new(Script::of(with(other, &[]), Vec::new()));
        assert_eq!(next(&mut wire).unwrap(), Received::TooLarge(None));
    }
}

#[test]
fn buffers_are_given_back_after_a_large_packet() {
    let large = publish("t", 0, 300_000);
    let mut wire = Wire::new(Script::of(bytes_of(&[large.clone(), Packet::PingResp]), Vec::new()));
    wire.queue(&large).unwrap();
    assert_eq!(next(&mut wire).unwrap(), Received::Packet(large));
    assert_eq!(next(&mut wire).unwrap(), Received::Packet(Packet::PingResp));
    for buffer in [&mut wire.incoming, &mut wire.outgoing] {
        // What is left of an allocation is got back for a buffer that nothing else holds.
        let is_large = buffer.try_reclaim(BUFFER_LEN_KEPT * 2);
        assert!(!is_large && buffer.capacity() <= BUFFER_LEN_KEPT, "{}", buffer.capacity());
    }
}

#[test]
fn packet_that_can_not_be_written_leaves_the_buffer_as_it_was() {
    let mut wire = Wire::new(Script::of(Vec::new(), Vec::new()));
    wire.queue(&Packet::PingReq).unwrap();
    let before = wire.backlog_len();
    assert!(matches!(wire.queue(&publish(&"t".repeat(70_000), 0, 0)), Err(WireError::TooLong)));
    let mut without_id = Publish::new("t", QoS::AtLeastOnce, "x");
    without_id.pkid = 0;
    assert!(wire.queue(&Packet::Publish(without_id)).is_err());
    assert_eq!(wire.backlog_len(), before);
}

proptest! {
    #[test]
    fn header_is_what_the_codec_reads(bytes in proptest::collection::vec(any::<u8>(), 0..7)) {
        let codec = Packet::read(&mut BytesMut::from(bytes.as_slice()), usize::MAX);
        let is_malformed = matches!(codec, Err(rumqttc::mqttbytes::Error::MalformedRemainingLength));
        prop_assert_eq!(Header::read(&bytes).is_err(), is_malformed);
        if let Ok(Some(header)) = Header::read(&bytes) {
            if let Err(rumqttc::mqttbytes::Error::InsufficientBytes(missing)) = codec {
                // Or the content of a whole packet is cut short.
                if header.packet_len() > bytes.len() {
                    prop_assert_eq!(header.packet_len(), bytes.len() + missing);
                }
            }
        }
    }

    #[test]
    fn beginning_is_what_the_codec_reads(
        topic in "\\PC{0,20}", packet_id: u16, payload_len in 0..300_usize, cut in any::<prop::sample::Index>(),
    ) {
        let bytes = bytes_of(&[publish(&topic, packet_id, payload_len)]);
        let announced = Announced { topic, packet_id: (packet_id != 0).then_some(packet_id), payload_len };
        let header = Header::read(&bytes).unwrap().unwrap();
        prop_assert_eq!(header.packet_len(), bytes.len());
        let part = &bytes[..cut.index(bytes.len() + 1)];
        match Header::read(part).unwrap() {
            Some(read) => {
                prop_assert_eq!(read, header);
                let begun = bytes.len() - payload_len;
                let expected = if part.len() >= begun { Beginning::Publish(announced) } else { Beginning::Partial };
                prop_assert_eq!(header.beginning(part).unwrap(), expected);
            }
            None => prop_assert!(part.len() < 3),
        }
    }

    #[test]
    fn any_bytes_are_packets_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..40), stop in 1..5_usize, zeros in 0..2_000_000_usize,
    ) {
        let stops = (0..40).step_by(stop).collect();
        let mut wire = Wire::new(Script { zeros, ..Script::of(bytes, stops) });
        while next(&mut wire).is_ok() {}
    }
}
