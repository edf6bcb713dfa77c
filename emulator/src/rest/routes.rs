//! Which request means what, and which right it takes. The path is taken apart before it is decoded, since ids may
//! contain any encoded character.

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::{
    Call, Reply, Service, bulk, configurations, devices, jobs, operator, provisioning, puppets, queries,
    twins,
};
use crate::identity::{ID_SIGNS, IdentityId};
use crate::policies::Right;
use crate::refusal::{ErrorCode, Refusal};

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    ListDevices,
    ChangeDevices,
    RegenerateKeys,
    Query,
    ReadIdentity(IdentityId),
    WriteIdentity(IdentityId),
    DeleteIdentity(IdentityId),
    PurgeCommands(IdentityId),
    ListModules(IdentityId),
    ReadTwin(IdentityId),
    PatchTwin(IdentityId),
    ReplaceTwin(IdentityId),
    CallMethod(IdentityId),
    DeviceStatistics,
    ServiceStatistics,
    ListConfigurations,
    ReadConfiguration(String),
    WriteConfiguration(String),
    DeleteConfiguration(String),
    TestConfigurationQueries,
    ApplyConfigurationContent(IdentityId),
    QueryJobs,
    ReadJob(String),
    CreateJob(String),
    CancelJob(String),
    ReadFeedback,
    /// A resource of the real hub that this one leaves out.
    LeftOut(&'static str),
    Operator(operator::Endpoint),
    Provisioning(provisioning::Endpoint),
    Puppets(puppets::Endpoint),
}

impl Route {
    pub(super) fn find(method: &Method, path: &str) -> Result<Self, Refusal> {
        let unknown =
            || Refusal::new(ErrorCode::RouteNotFound, "this emulator has no such resource or method");
        let decoded: Option<Vec<String>> = path
            .strip_prefix('/')
            .into_iter()
            .flat_map(|path| path.split('/'))
            .map(|segment| percent_decode_str(segment).decode_utf8().ok().map(|text| text.into_owned()))
            .collect();
        let decoded = decoded.ok_or_else(unknown)?;
        let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
        Ok(match (method.as_str(), segments.as_slice()) {
            (method, ["$emulator", path @ ..]) => Self::operator(method, path).ok_or_else(unknown)?,
            // azure-iothub for Node 1.16 asks with the slash (`endpoint.js`, a device's path without the device).
            ("GET", ["devices"] | ["devices", ""]) => Self::ListDevices,
            ("POST", ["devices"]) => Self::ChangeDevices,
            ("POST", ["devices", "keys", "regenerate"]) => Self::RegenerateKeys,
            ("POST", ["devices", "query"]) => Self::Query,
            ("DELETE", ["devices", id, "commands"]) => Self::PurgeCommands(device(id)?),
            ("GET", ["devices", id, "modules"]) => Self::ListModules(device(id)?),
            (method, ["devices", id]) => Self::identity(method, device(id)?).ok_or_else(unknown)?,
            (method, ["devices", id, "modules", module_id]) => {
                Self::identity(method, module(id, module_id)?).ok_or_else(unknown)?
            }
            ("POST", ["twins", id, "methods"]) => Self::CallMethod(device(id)?),
            ("POST", ["twins", id, "modules", module_id, "methods"]) => {
                Self::CallMethod(module(id, module_id)?)
            }
            (method, ["twins", id]) => Self::twin(method, device(id)?).ok_or_else(unknown)?,
            (method, ["twins", id, "modules", module_id]) => {
                Self::twin(method, module(id, module_id)?).ok_or_else(unknown)?
            }
            ("GET", ["statistics", "devices"]) => Self::DeviceStatistics,
            ("GET", ["statistics", "service"]) => Self::ServiceStatistics,
            ("GET", ["configurations"]) => Self::ListConfigurations,
            ("POST", ["configurations", "testQueries"]) => Self::TestConfigurationQueries,
            ("GET", ["configurations", id]) => Self::ReadConfiguration((*id).to_owned()),
            ("PUT", ["configurations", id]) => Self::WriteConfiguration((*id).to_owned()),
            ("DELETE", ["configurations", id]) => Self::DeleteConfiguration((*id).to_owned()),
            ("POST", ["devices", id, "applyConfigurationContent"]) => {
                Self::ApplyConfigurationContent(device(id)?)
            }
            ("GET", ["jobs", "v2", "query"]) => Self::QueryJobs,
            ("GET", ["jobs", "v2", id]) => Self::ReadJob((*id).to_owned()),
            ("PUT", ["jobs", "v2", id]) => Self::CreateJob((*id).to_owned()),
            ("POST", ["jobs", "v2", id, "cancel"]) => Self::CancelJob((*id).to_owned()),
            (_, ["jobs", ..]) => Self::LeftOut("jobs of import and export by blob storage"),
            (_, ["digitaltwins", ..]) => Self::LeftOut("digital twins"),
            ("GET", ["messages", "serviceBound", "feedback"]) => Self::ReadFeedback,
            _ => return Err(unknown()),
        })
    }

    fn operator(method: &str, path: &[&str]) -> Option<Self> {
        let provisioning = provisioning::Endpoint::find(method, path).map(Self::Provisioning);
        let puppets = || puppets::Endpoint::find(method, path).map(Self::Puppets);
        let others = || match path {
            [name] => operator::Endpoint::find(method, name).map(Self::Operator),
            _ => None,
        };
        provisioning.or_else(puppets).or_else(others)
    }

    fn identity(method: &str, id: IdentityId) -> Option<Self> {
        match method {
            "GET" => Some(Self::ReadIdentity(id)),
            "PUT" => Some(Self::WriteIdentity(id)),
            "DELETE" => Some(Self::DeleteIdentity(id)),
            _ => None,
        }
    }

    fn twin(method: &str, id: IdentityId) -> Option<Self> {
        match method {
            "GET" => Some(Self::ReadTwin(id)),
            "PATCH" => Some(Self::PatchTwin(id)),
            "PUT" => Some(Self::ReplaceTwin(id)),
            _ => None,
        }
    }

    /// The right that the caller's policy needs; `None` for the operator endpoints, which are open.
    pub(super) fn right(&self) -> Option<Right> {
        match self {
            Self::ListDevices
            | Self::ReadIdentity(_)
            | Self::ListModules(_)
            | Self::DeviceStatistics
            | Self::ServiceStatistics
            // "registry read permission to query the identity registry", "registry read and registry write" for jobs
            // (IoT Hub documentation, how-to articles on twins and jobs, shared access policies).
            | Self::Query
            | Self::QueryJobs
            | Self::ReadJob(_)
            | Self::ListConfigurations
            | Self::ReadConfiguration(_)
            | Self::TestConfigurationQueries => Some(Right::RegistryRead),
            Self::ChangeDevices
            | Self::RegenerateKeys
            | Self::WriteIdentity(_)
            | Self::DeleteIdentity(_)
            | Self::CreateJob(_)
            | Self::CancelJob(_)
            | Self::WriteConfiguration(_)
            | Self::DeleteConfiguration(_)
            | Self::ApplyConfigurationContent(_)
            | Self::LeftOut(_) => Some(Right::RegistryWrite),
            Self::PurgeCommands(_)
            | Self::ReadFeedback
            | Self::ReadTwin(_)
            | Self::PatchTwin(_)
            | Self::ReplaceTwin(_)
            | Self::CallMethod(_) => Some(Right::ServiceConnect),
            Self::Operator(_) | Self::Provisioning(_) | Self::Puppets(_) => None,
        }
    }

    pub(super) async fn call(self, service: &Service, call: Call<'_>) -> Result<Reply, Refusal> {
        let hub = &service.hub;
        match self {
            Self::ListDevices => devices::list(hub, &call),
            Self::ChangeDevices => bulk::change_many(hub, &call),
            Self::RegenerateKeys => bulk::regenerate_keys(hub, &call),
            Self::ReadIdentity(id) => devices::read(hub, &id),
            Self::WriteIdentity(id) => devices::write(hub, &id, &call),
            Self::DeleteIdentity(id) => devices::delete(hub, &id, &call),
            Self::ListModules(id) => devices::list_modules(hub, &id),
            Self::DeviceStatistics => Ok(devices::device_statistics(hub)),
            Self::ServiceStatistics => Ok(devices::service_statistics(hub)),
            Self::PurgeCommands(id) => devices::purge_commands(hub, &id),
            Self::ReadTwin(id) => twins::read(hub, &id),
            Self::PatchTwin(id) => twins::change(hub, &id, &call, false),
            Self::ReplaceTwin(id) => twins::change(hub, &id, &call, true),
            Self::CallMethod(id) => twins::call_method(hub, &id, &call).await,
            Self::Query => queries::query(hub, &call).await,
            Self::ListConfigurations => configurations::list(hub, &call).await,
            Self::ReadConfiguration(id) => configurations::read(hub, &id).await,
            Self::WriteConfiguration(id) => configurations::write(hub, &id, &call),
            Self::DeleteConfiguration(id) => configurations::delete(hub, &id, &call),
            Self::TestConfigurationQueries => configurations::test_queries(&call),
            Self::ApplyConfigurationContent(id) => configurations::apply_content(hub, &id, &call),
            Self::QueryJobs => jobs::list(hub, &call),
            Self::ReadJob(id) => jobs::read(hub, &id),
            Self::CreateJob(id) => jobs::create(hub, &id, &call),
            Self::CancelJob(id) => jobs::cancel(hub, &id),
            // Nobody can send what feedback would be about: cloud-to-device messages come by AMQP, or from the operator.
            Self::ReadFeedback => Ok(Reply::empty()),
            Self::LeftOut(what) => {
                Err(Refusal::new(ErrorCode::RouteNotFound, format!("this emulator has no {what}")))
            }
            Self::Operator(endpoint) => endpoint.call(service, &call),
            Self::Provisioning(endpoint) => endpoint.call(hub, &call),
            Self::Puppets(endpoint) => endpoint.call(hub, &call).await,
        }
    }
}

fn device(id: &str) -> Result<IdentityId, Refusal> {
    IdentityId::device(id).ok_or_else(bad_id)
}

fn module(id: &str, module: &str) -> Result<IdentityId, Refusal> {
    IdentityId::module(id, module).ok_or_else(bad_id)
}

fn bad_id() -> Refusal {
    let text = format!("an id has 1 to 128 ASCII letters, digits and {ID_SIGNS}");
    Refusal::new(ErrorCode::ArgumentInvalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_decoded_after_the_path_is_taken_apart() {
        let route = |method: Method, path| Route::find(&method, path).map_err(|refusal| refusal.code);
        let odd = "-.%_*?!(),:=@$'+#;";
        let path = "/devices/-.%25_%2A%3F%21%28%29%2C%3A%3D%40%24%27%2B%23%3B";
        assert_eq!(route(Method::GET, path), Ok(Route::ReadIdentity(IdentityId::device(odd).unwrap())));
        let keys = IdentityId::device("keys").unwrap();
        assert_eq!(route(Method::GET, "/devices/keys"), Ok(Route::ReadIdentity(keys)));
        assert_eq!(route(Method::POST, "/devices/keys/regenerate"), Ok(Route::RegenerateKeys));
        assert_eq!(route(Method::GET, "/devices/"), Ok(Route::ListDevices));
        for (path, code) in [
            ("/", ErrorCode::RouteNotFound),
            ("", ErrorCode::RouteNotFound),
            ("/devices/d1/", ErrorCode::RouteNotFound),
            ("/devices/%ff", ErrorCode::RouteNotFound),
            ("/devices/a%2Fb", ErrorCode::ArgumentInvalid),
            ("/twins/", ErrorCode::ArgumentInvalid),
        ] {
            assert_eq!(route(Method::GET, path), Err(code), "{path}");
        }
    }
}
