//! User names and topics of the Device Provisioning Service (DPS documentation, "Communicate with DPS using the MQTT
//! protocol").

use rumqttc::Connect;

use super::enrollment::is_registration_id;
use crate::sas::is_same_host;
use crate::topics::parameter;

/// The only filter that a device may subscribe to.
pub(super) const ANSWERS: &str = "$dps/registrations/res/#";

/// Who CONNECT says that it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Registrant {
    pub(crate) id_scope: String,
    pub(crate) registration_id: String,
}

/// Whether a CONNECT means DPS: its user name is `{idScope}/registrations/{registrationId}/…`. A device of the hub's that is
/// called `registrations` names the host first.
pub(crate) fn is_for_dps(connect: &Connect, host_name: &str) -> bool {
    let user_name = connect.login.as_ref().map_or("", |login| login.username.as_str());
    let mut segments = user_name.split('/');
    let (scope, word) = (segments.next(), segments.next());
    word == Some("registrations") && scope.is_some_and(|scope| !is_same_host(scope, host_name))
}

impl Registrant {
    /// Reads `{idScope}/registrations/{registrationId}/api-version=…[&ClientVersion=…]`, and compares the client id.
    pub(crate) fn read(connect: &Connect) -> Option<Self> {
        let user_name = &connect.login.as_ref()?.username;
        let (id_scope, rest) = user_name.split_once('/')?;
        let (registration_id, query) = rest.strip_prefix("registrations/")?.split_once('/')?;
        let query = query.strip_prefix('?').unwrap_or(query);
        let has_version = parameter(query, "api-version").is_some_and(|version| !version.is_empty());
        let is_named = is_registration_id(registration_id) && connect.client_id == registration_id;
        (has_version && is_named)
            .then(|| Self { id_scope: id_scope.to_owned(), registration_id: registration_id.to_owned() })
    }
}

/// What a device may publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    Register { rid: &'a str },
    Poll { rid: &'a str, operation_id: &'a str },
}

impl<'a> Request<'a> {
    pub(super) fn parse(topic: &'a str) -> Option<Self> {
        let rest = topic.strip_prefix("$dps/registrations/")?;
        let (action, query) = rest.split_once("/?")?;
        let rid = parameter(query, "$rid").filter(|rid| !rid.is_empty())?;
        match action {
            "PUT/iotdps-register" => Some(Self::Register { rid }),
            "GET/iotdps-get-operationstatus" => {
                let operation_id = parameter(query, "operationId").filter(|id| !id.is_empty())?;
                Some(Self::Poll { rid, operation_id })
            }
            _ => None,
        }
    }
}

/// The topic of an answer.
pub(super) fn answer(status: u16, rid: &str, retry_after_secs: Option<u32>) -> String {
    let retry_after = retry_after_secs.map_or(String::new(), |secs| format!("&retry-after={secs}"));
    format!("$dps/registrations/res/{status}/?$rid={rid}{retry_after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_of_the_service_are_told_from_the_hubs() {
        let connect = |id: &str, user: &str| {
            let mut connect = Connect::new(id);
            connect.set_login(user, "token");
            connect
        };
        let good = "0ne1/registrations/r-1/api-version=2019-03-31&ClientVersion=a%2Fb";
        let r1 = connect("r-1", good);
        assert!(is_for_dps(&r1, "hub"));
        let expected = Registrant { id_scope: "0ne1".to_owned(), registration_id: "r-1".to_owned() };
        assert_eq!(Registrant::read(&r1), Some(expected));
        assert!(!is_for_dps(&connect("registrations/m", "HUB:8883/registrations/m/?api-version=1"), "hub"));
        for (id, user) in [
            ("r-2", good),
            ("r-1", "0ne1/registrations/r-1/"),
            ("r-1", "0ne1/registrations/r-1"),
            ("r-1", "0ne1/registrations/r-1/api-version="),
            ("r/1", "0ne1/registrations/r/1/api-version=2019-03-31"),
        ] {
            assert!(is_for_dps(&connect(id, user), "hub"), "{user}");
            assert_eq!(Registrant::read(&connect(id, user)), None, "{user}");
        }
    }

    #[test]
    fn requests_are_told_apart_by_topic() {
        let register = "$dps/registrations/PUT/iotdps-register/?$rid=a-1";
        assert_eq!(Request::parse(register), Some(Request::Register { rid: "a-1" }));
        let poll = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=4.x";
        assert_eq!(Request::parse(poll), Some(Request::Poll { rid: "2", operation_id: "4.x" }));
        for topic in [
            "$dps/registrations/PUT/iotdps-register/",
            "$dps/registrations/PUT/iotdps-register/?$rid=",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2",
            "$dps/registrations/PUT/other/?$rid=1",
            "$iothub/twin/GET/?$rid=1",
        ] {
            assert_eq!(Request::parse(topic), None, "{topic}");
        }
    }
}
