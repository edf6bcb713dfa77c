//! Which request means what, and which right it takes. The path is taken apart before it is decoded, since ids may
//! contain any encoded character.

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::{Call, Reply, Service, devices, operator, twins};
use crate::identity::IdentityId;
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
    Operator(operator::Endpoint),
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
            (method, ["$emulator", name]) => {
                Self::Operator(operator::Endpoint::find(method, name).ok_or_else(unknown)?)
            }
            ("GET", ["devices"]) => Self::ListDevices,
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
            _ => return Err(unknown()),
        })
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
            | Self::ServiceStatistics => Some(Right::RegistryRead),
            Self::ChangeDevices | Self::RegenerateKeys | Self::WriteIdentity(_) | Self::DeleteIdentity(_) => {
                Some(Right::RegistryWrite)
            }
            Self::Query
            | Self::PurgeCommands(_)
            | Self::ReadTwin(_)
            | Self::PatchTwin(_)
            | Self::ReplaceTwin(_)
            | Self::CallMethod(_) => Some(Right::ServiceConnect),
            Self::Operator(_) => None,
        }
    }

    pub(super) async fn call(self, service: &Service, call: Call<'_>) -> Result<Reply, Refusal> {
        let hub = &service.hub;
        match self {
            Self::ListDevices => devices::list(hub, &call),
            Self::ChangeDevices => devices::change_many(hub, &call),
            Self::RegenerateKeys => devices::regenerate_keys(hub, &call),
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
            Self::Query => twins::query(hub, &call),
            Self::Operator(endpoint) => endpoint.call(service, &call),
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
    let text = "an id has 1 to 128 ASCII letters, digits and -.%_#*?!(),:=@$'+";
    Refusal::new(ErrorCode::ArgumentInvalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_decoded_after_the_path_is_taken_apart() {
        let route = |method: Method, path| Route::find(&method, path).map_err(|refusal| refusal.code);
        let odd = "-.%_*?!(),:=@$'+#";
        let path = "/devices/-.%25_%2A%3F%21%28%29%2C%3A%3D%40%24%27%2B%23";
        assert_eq!(route(Method::GET, path), Ok(Route::ReadIdentity(IdentityId::device(odd).unwrap())));
        let keys = IdentityId::device("keys").unwrap();
        assert_eq!(route(Method::GET, "/devices/keys"), Ok(Route::ReadIdentity(keys)));
        assert_eq!(route(Method::POST, "/devices/keys/regenerate"), Ok(Route::RegenerateKeys));
        for (path, code) in [
            ("/", ErrorCode::RouteNotFound),
            ("", ErrorCode::RouteNotFound),
            ("/devices/d1/", ErrorCode::RouteNotFound),
            ("/devices/%ff", ErrorCode::RouteNotFound),
            ("/devices/a%2Fb", ErrorCode::ArgumentInvalid),
            ("/devices/", ErrorCode::ArgumentInvalid),
        ] {
            assert_eq!(route(Method::GET, path), Err(code), "{path}");
        }
    }
}
