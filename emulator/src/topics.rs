//! The topics that IoT Hub knows (IoT Hub documentation, "Communicate using MQTT"). Everything else ends the connection.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::identity::IdentityId;

/// What stays as it is in a property bag: RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a client may publish, by topic.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Publication<'a> {
    /// A device-to-cloud message with its property bag.
    Telemetry { bag: &'a str },
    /// A request for the whole twin.
    ReadTwin { rid: &'a str },
    /// A patch of reported properties.
    Report { rid: &'a str },
    /// The answer to a direct method.
    MethodAnswer { status: i64, rid: &'a str },
}

impl<'a> Publication<'a> {
    pub(crate) fn parse(topic: &'a str, identity: &IdentityId) -> Option<Self> {
        // MQTT 3.1.1 §3.3.2.1.
        if topic.contains(['+', '#']) {
            return None;
        }
        if let Some(query) = topic.strip_prefix("$iothub/twin/GET/") {
            return Some(Self::ReadTwin { rid: rid(query)? });
        }
        if let Some(query) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/") {
            return Some(Self::Report { rid: rid(query)? });
        }
        if let Some(answer) = topic.strip_prefix("$iothub/methods/res/") {
            let (status, query) = answer.split_once('/')?;
            return Some(Self::MethodAnswer { status: status.parse().ok()?, rid: rid(query)? });
        }
        let own = format!("{}/messages/events", resource_topic(identity));
        match topic.strip_prefix(own.as_str())? {
            "" => Some(Self::Telemetry { bag: "" }),
            bag => Some(Self::Telemetry { bag: bag.strip_prefix('/')? }),
        }
    }
}

/// What a client may subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filter {
    TwinAnswers,
    Desired,
    Methods,
    CloudToDevice,
    /// A module's inputs, which only an edge hub has: the SDKs' module clients ask for them, and nothing comes.
    Inputs,
}

impl Filter {
    /// Twins and direct methods are for clients with an API version in their user name only. Answers are not: one
    /// that asks without is told 400.
    pub(crate) fn needs_api_version(self) -> bool {
        match self {
            Self::Desired | Self::Methods => true,
            Self::TwinAnswers | Self::CloudToDevice | Self::Inputs => false,
        }
    }

    pub(crate) fn parse(filter: &str, identity: &IdentityId) -> Option<Self> {
        match filter {
            "$iothub/twin/res/#" => Some(Self::TwinAnswers),
            "$iothub/twin/PATCH/properties/desired/#" => Some(Self::Desired),
            "$iothub/methods/POST/#" => Some(Self::Methods),
            other => {
                let own = resource_topic(identity);
                match (identity.module_id(), other.strip_prefix(own.as_str())) {
                    (None, Some("/messages/devicebound/#")) => Some(Self::CloudToDevice),
                    (Some(_), Some("/inputs/#")) => Some(Self::Inputs),
                    // The Embedded C SDK's constant for every device (`az_iot_hub_client.h`).
                    (None, None) if other == "devices/+/messages/devicebound/#" => Some(Self::CloudToDevice),
                    (None | Some(_), None | Some(_)) => None,
                }
            }
        }
    }
}

pub(crate) fn twin_read(rid: &str) -> String {
    format!("$iothub/twin/res/200/?$rid={rid}")
}

pub(crate) fn twin_reported(rid: &str, version: u64) -> String {
    format!("$iothub/twin/res/204/?$rid={rid}&$version={version}")
}

pub(crate) fn twin_refused(rid: &str, status: u16) -> String {
    format!("$iothub/twin/res/{status}/?$rid={rid}")
}

pub(crate) fn desired(version: u64) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

pub(crate) fn method(name: &str, rid: &str) -> String {
    format!("$iothub/methods/POST/{name}/?$rid={rid}")
}

/// The topic of a cloud-to-device message; `bag` holds system properties under their short names (`$.mid`) too.
pub(crate) fn cloud_to_device<'a>(
    identity: &IdentityId,
    bag: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let pairs: Vec<String> = bag
        .map(|(name, value)| {
            format!("{}={}", utf8_percent_encode(name, ENCODED), utf8_percent_encode(value, ENCODED))
        })
        .collect();
    format!("{}/messages/devicebound/{}", resource_topic(identity), pairs.join("&"))
}

/// `devices/{id}` or `devices/{id}/modules/{id}`: ids stand raw in topics.
fn resource_topic(identity: &IdentityId) -> String {
    identity.resource_path().split_off(1)
}

/// The request id of `?$rid={rid}[&…]`, which is echoed as it came.
fn rid(query: &str) -> Option<&str> {
    parameter(query.strip_prefix('?')?, "$rid").filter(|rid| !rid.is_empty())
}

/// The first value of `name` in `k=v&…`, as it stands there.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
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
    fn publications_are_told_apart_by_topic() {
        let d1 = IdentityId::device("d1").unwrap();
        let m1 = IdentityId::module("d1", "m1").unwrap();
        for (identity, topic, expected) in [
            (&d1, "devices/d1/messages/events/", Some(Publication::Telemetry { bag: "" })),
            (&d1, "devices/d1/messages/events", Some(Publication::Telemetry { bag: "" })),
            (&d1, "devices/d1/messages/events/a=b", Some(Publication::Telemetry { bag: "a=b" })),
            (&m1, "devices/d1/modules/m1/messages/events/", Some(Publication::Telemetry { bag: "" })),
            (&m1, "devices/d1/messages/events/", None),
            (&d1, "devices/d2/messages/events/", None),
            (&d1, "devices/d1/messages/eventsx", None),
            (&d1, "$iothub/twin/GET/?$rid=7", Some(Publication::ReadTwin { rid: "7" })),
            (&d1, "$iothub/twin/GET/?$rid=", None),
            (&d1, "$iothub/twin/GET/", None),
            (
                &d1,
                "$iothub/twin/PATCH/properties/reported/?$rid=a-1&$version=4",
                Some(Publication::Report { rid: "a-1" }),
            ),
            (&d1, "$iothub/methods/res/-3/?$rid=1", Some(Publication::MethodAnswer { status: -3, rid: "1" })),
            (&d1, "$iothub/methods/res/ok/?$rid=1", None),
            (&d1, "", None),
        ] {
            assert_eq!(Publication::parse(topic, identity), expected, "{identity} {topic}");
        }
    }

    #[test]
    fn filters_of_every_official_sdk_are_known() {
        let d1 = IdentityId::device("d1").unwrap();
        let m1 = IdentityId::module("d1", "m1").unwrap();
        for (identity, filter, expected) in [
            (&d1, "$iothub/twin/res/#", Some(Filter::TwinAnswers)),
            (&m1, "$iothub/twin/PATCH/properties/desired/#", Some(Filter::Desired)),
            (&m1, "$iothub/methods/POST/#", Some(Filter::Methods)),
            (&d1, "devices/d1/messages/devicebound/#", Some(Filter::CloudToDevice)),
            (&d1, "devices/+/messages/devicebound/#", Some(Filter::CloudToDevice)),
            (&m1, "devices/d1/modules/m1/inputs/#", Some(Filter::Inputs)),
            (&m1, "devices/d1/modules/m1/messages/devicebound/#", None),
            (&m1, "devices/+/messages/devicebound/#", None),
            (&d1, "devices/d1/inputs/#", None),
            (&d1, "devices/d2/messages/devicebound/#", None),
            (&d1, "devices/d1/#", None),
            (&d1, "#", None),
        ] {
            assert_eq!(Filter::parse(filter, identity), expected, "{identity} {filter}");
        }
    }

    #[test]
    fn cloud_to_device_topic_is_encoded_like_the_real_one() {
        let bag = [("$.to", "/devices/d1/messages/deviceBound"), ("my prop", "a&b")];
        assert_eq!(
            cloud_to_device(&IdentityId::device("d1").unwrap(), bag.into_iter()),
            "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&my%20prop=a%26b"
        );
    }
}
