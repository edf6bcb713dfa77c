//! The hub as the agent sees it: how to reach it, one MQTT session over any stream, and its topics.
//!
//! A connection goes through stages that each have their own error: resolve the name, open TCP, agree on TLS (that
//! much is [`dial`]), then CONNECT and its answer ([`session::connect`]). Everything above the byte stream is generic
//! over it.

pub mod dial;
pub mod outbox;
mod roots;
pub mod session;
pub mod time;
pub mod tls;
pub mod topics;
pub mod wire;

use std::time::Duration;

/// How long each stage of a connection may take, and how its liveness is judged.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For name resolution.
    pub resolve: Duration,
    /// For TCP, all addresses together.
    pub tcp: Duration,
    /// For the TLS handshake.
    pub tls: Duration,
    /// For the answer to CONNECT. A throttled hub delays it by tens of seconds (azure-iot-sdk-csharp#2043).
    pub connect: Duration,
    /// MQTT keep-alive. The hub's longest usable one is 1,177 s (Microsoft, "Use MQTT to communicate with IoT Hub").
    pub keep_alive: Duration,
    /// For the answer to a ping, a QoS 1 message or a twin request; a connection that owes one for longer is dead.
    pub answer: Duration,
}

impl Timing {
    /// For networks from fibre to GPRS.
    pub const DEFAULT: Self = Self {
        resolve: Duration::from_secs(20),
        tcp: Duration::from_secs(20),
        tls: Duration::from_secs(30),
        connect: Duration::from_secs(60),
        keep_alive: Duration::from_secs(240),
        answer: Duration::from_secs(40),
    };
}
