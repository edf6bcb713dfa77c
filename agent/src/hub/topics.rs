//! IoT Hub's MQTT topics (Microsoft, "Use MQTT to communicate with IoT Hub"). One way in, one way out: bytes become
//! an [`Incoming`] here and nowhere else.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use twinkey_contract::Identity;

/// The API version that the user name carries; twins and methods need one.
const API_VERSION: &str = "2021-04-12";

/// What the agent subscribes to after every connection: twin answers, desired properties, direct methods.
pub const SUBSCRIPTIONS: [&str; 3] =
    ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"];

/// Everything outside RFC 3986's unreserved set is encoded in property bags and user names.
const RESERVED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'!')
    .add(b'"')
    .add(b'#')
    .add(b'$')
    .add(b'%')
    .add(b'&')
    .add(b'\'')
    .add(b'(')
    .add(b')')
    .add(b'*')
    .add(b'+')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A topic on which the hub sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'t> {
    /// The answer to a twin request.
    TwinAnswer {
        /// HTTP-like status: 200, 204, 400, 429, 5xx.
        status: u16,
        /// The request's id, as it was sent.
        request: &'t str,
    },
    /// Desired properties have changed.
    Desired,
    /// A direct method is called.
    Method {
        /// Its name.
        name: &'t str,
        /// The id that the answer must carry.
        request: &'t str,
    },
}

impl<'t> Incoming<'t> {
    /// `None` for a topic that the agent does not know.
    pub fn parse(topic: &'t str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("$iothub/twin/res/") {
            let (status, query) = rest.split_once("/?")?;
            return Some(Self::TwinAnswer {
                status: status.parse().ok()?,
                request: parameter(query, "$rid")?,
            });
        }
        if topic.starts_with("$iothub/twin/PATCH/properties/desired/") {
            return Some(Self::Desired);
        }
        let (name, query) = topic.strip_prefix("$iothub/methods/POST/")?.split_once("/?")?;
        Some(Self::Method { name, request: parameter(query, "$rid")? })
    }
}

/// The topic that asks for the whole twin.
pub fn twin_get(request: &str) -> String {
    format!("$iothub/twin/GET/?$rid={request}")
}

/// The topic that changes reported properties.
pub fn reported_patch(request: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={request}")
}

/// The topic of a direct method's answer.
pub fn method_answer(status: u16, request: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={request}")
}

/// The topic of device-to-cloud messages with these application properties.
pub fn telemetry<'p>(
    identity: &Identity,
    properties: impl IntoIterator<Item = (&'p str, &'p str)>,
) -> String {
    let mut topic = match &identity.module_id {
        None => format!("devices/{}/messages/events/", identity.device_id),
        Some(module_id) => format!("devices/{}/modules/{module_id}/messages/events/", identity.device_id),
    };
    for (index, (name, value)) in properties.into_iter().enumerate() {
        if index > 0 {
            topic.push('&');
        }
        topic.extend(utf8_percent_encode(name, RESERVED));
        topic.push('=');
        topic.extend(utf8_percent_encode(value, RESERVED));
    }
    topic
}

/// The MQTT user name.
pub fn user_name(host_name: &str, identity: &Identity) -> String {
    let client_type = format!("twinkey-agent/{}", env!("CARGO_PKG_VERSION"));
    let client_type = utf8_percent_encode(&client_type, RESERVED);
    format!("{host_name}/{identity}/?api-version={API_VERSION}&DeviceClientType={client_type}")
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_the_hub_are_understood() {
        assert_eq!(
            Incoming::parse("$iothub/twin/res/204/?$rid=p7&$version=12"),
            Some(Incoming::TwinAnswer { status: 204, request: "p7" })
        );
        assert_eq!(
            Incoming::parse("$iothub/twin/PATCH/properties/desired/?$version=3"),
            Some(Incoming::Desired)
        );
        assert_eq!(
            Incoming::parse("$iothub/methods/POST/keyRenewal/?$rid=1"),
            Some(Incoming::Method { name: "keyRenewal", request: "1" })
        );
    }

    #[test]
    fn unknown_and_broken_topics_are_nothing() {
        for topic in [
            "",
            "$iothub/twin/res/",
            "$iothub/twin/res/200/?",
            "$iothub/twin/res/x/?$rid=1",
            "devices/d",
            "$iothub/methods/POST/m",
        ] {
            assert_eq!(Incoming::parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn properties_are_percent_encoded() {
        let identity = Identity { device_id: "d".into(), module_id: None };
        assert_eq!(
            telemetry(&identity, [("alert level", "a&b=c/d%"), ("n", "1")]),
            "devices/d/messages/events/alert%20level=a%26b%3Dc%2Fd%25&n=1"
        );
    }
}
