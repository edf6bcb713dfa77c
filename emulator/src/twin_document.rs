//! A twin as the service side sees it: whole as JSON, and name by name for queries, without making JSON of the rest.

use serde_json::{Value, json};

use crate::clock::Moment;
use crate::identity::IdentityId;
use crate::query::{Document, Operand, Path, Shape, find, walk};
use crate::registry::{Identity, Status};
use crate::twin::Section;

/// A time that never was, as the real hub writes it.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

/// A twin with what the registry adds to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TwinDocument<'r> {
    pub(crate) id: &'r IdentityId,
    pub(crate) identity: &'r Identity,
    /// When it is looked at.
    pub(crate) now: Moment,
}

impl TwinDocument<'_> {
    /// The whole document (IoT Hub documentation, "Queries for device and module twins", sample; SDK model `Twin`).
    pub(crate) fn view(&self) -> Value {
        let Self { id, identity, now } = self;
        let twin = &identity.twin;
        let mut view = json!({
            "deviceId": id.device_id(),
            "etag": twin.etag(),
            "deviceEtag": identity.etag,
            "version": twin.version,
            "status": identity.status,
            "statusUpdateTime": identity.status_updated.as_deref().unwrap_or(NEVER),
            "connectionState": identity.connection_state(),
            "lastActivityTime": identity.last_activity.as_deref().unwrap_or(NEVER),
            "cloudToDeviceMessageCount": identity.queue.len(*now),
            "authenticationType": identity.authentication.name(),
            "x509Thumbprint": identity.authentication.thumbprints_view(),
            "modelId": identity.model_id,
            "tags": twin.tags,
            "properties": {"desired": twin.desired.service_view(), "reported": twin.reported.service_view()},
        });
        let Value::Object(fields) = &mut view else {
            return view;
        };
        let mut add = |name: &str, value: Option<Value>| {
            fields.extend(value.map(|value| (name.to_owned(), value)));
        };
        match id.module_id() {
            Some(module) => add("moduleId", Some(module.into())),
            None => add("capabilities", Some(json!({"iotEdge": identity.iot_edge}))),
        }
        add("statusReason", identity.status_reason.as_deref().map(Value::from));
        if let Some(scope) = &identity.scope {
            add("deviceScope", scope.device_scope.as_deref().map(Value::from));
            add("parentScopes", Some(scope.parent_scopes.as_slice().into()));
        }
        if let Some(configured) = &identity.configured {
            add("configurations", Some(configured.view()));
        }
        view
    }
}

impl Document for TwinDocument<'_> {
    fn resolve<'a>(&'a self, path: &Path) -> Operand<'a> {
        let Some((first, below)) = path.names().split_first() else {
            return Operand::Undefined;
        };
        let (id, identity) = (self.id, self.identity);
        let twin = &identity.twin;
        let optional = |text: Option<&'a str>| text.map_or(Operand::Undefined, Operand::from_text);
        let built = |shape, is_there| if is_there { Operand::Built(shape) } else { Operand::Undefined };
        match (first.as_str(), below) {
            ("deviceId", []) => Operand::from_text(id.device_id()),
            ("moduleId", []) => optional(id.module_id()),
            ("tags", below) => walk(&twin.tags, below),
            ("properties", []) => Operand::Built(Shape::Object),
            ("properties", [section, below @ ..]) => match section.as_str() {
                "desired" => look_into(&twin.desired, below),
                "reported" => look_into(&twin.reported, below),
                _ => Operand::Undefined,
            },
            ("etag", []) => Operand::Text(twin.etag().into()),
            ("deviceEtag", []) => Operand::from_text(&identity.etag),
            ("version", []) => Operand::Number(twin.version as f64),
            ("status", []) => Operand::from_text(match identity.status {
                Status::Enabled => "enabled",
                Status::Disabled => "disabled",
            }),
            ("statusReason", []) => optional(identity.status_reason.as_deref()),
            ("statusUpdateTime", []) => {
                Operand::from_text(identity.status_updated.as_deref().unwrap_or(NEVER))
            }
            ("connectionState", []) => Operand::from_text(identity.connection_state()),
            ("lastActivityTime", []) => {
                Operand::from_text(identity.last_activity.as_deref().unwrap_or(NEVER))
            }
            ("cloudToDeviceMessageCount", []) => Operand::Number(identity.queue.len(self.now) as f64),
            ("authenticationType", []) => Operand::from_text(identity.authentication.name()),
            ("x509Thumbprint", []) => Operand::Built(Shape::Object),
            ("x509Thumbprint", [name]) => {
                let (primary, secondary) = identity.authentication.thumbprints();
                let thumbprint = |text: Option<&'a str>| text.map_or(Operand::Null, Operand::from_text);
                match name.as_str() {
                    "primaryThumbprint" => thumbprint(primary),
                    "secondaryThumbprint" => thumbprint(secondary),
                    _ => Operand::Undefined,
                }
            }
            ("modelId", []) => Operand::from_text(&identity.model_id),
            ("capabilities", []) => built(Shape::Object, id.module_id().is_none()),
            ("capabilities", [name]) if name == "iotEdge" && id.module_id().is_none() => {
                Operand::Bool(identity.iot_edge)
            }
            ("deviceScope", []) => {
                optional(identity.scope.as_ref().and_then(|scope| scope.device_scope.as_deref()))
            }
            ("parentScopes", []) => built(Shape::Array, identity.scope.is_some()),
            ("configurations", []) => built(Shape::Object, identity.configured.is_some()),
            ("configurations", [name, below @ ..]) => {
                let status = identity.configured.as_ref().and_then(|configured| configured.status(name));
                match (status, below) {
                    (Some(_), []) => Operand::Built(Shape::Object),
                    (Some(status), [field]) if field == "status" => Operand::from_text(status.name()),
                    _ => Operand::Undefined,
                }
            }
            _ => Operand::Undefined,
        }
    }

    /// As in [`view`](Self::view).
    fn project(&self, path: &Path) -> Option<Value> {
        let twin = &self.identity.twin;
        let names: Vec<&str> = path.names().iter().map(String::as_str).collect();
        let below = |depth| path.names().get(depth..).unwrap_or_default();
        // A number keeps the form in which it was written.
        let written = match names.as_slice() {
            ["tags", ..] => find(&twin.tags, below(1)),
            ["properties", "desired"] => return Some(twin.desired.service_view()),
            ["properties", "desired", ..] => find(&twin.desired.values, below(2)),
            ["properties", "reported"] => return Some(twin.reported.service_view()),
            ["properties", "reported", ..] => find(&twin.reported.values, below(2)),
            _ => None,
        };
        if written.is_some() {
            return written.cloned();
        }
        let operand = self.resolve(path);
        if !matches!(operand, Operand::Built(_)) {
            return operand.into_value();
        }
        let mut view = self.view();
        names.iter().try_fold(&mut view, |value, name| value.get_mut(name)).map(Value::take)
    }
}

/// `$version` and `$metadata` lie beside the values that a device reports or is asked for.
fn look_into<'a>(section: &'a Section, names: &[String]) -> Operand<'a> {
    match names.split_first() {
        // With those two, unlike the values alone.
        None => Operand::Built(Shape::Object),
        Some((first, [])) if first == "$version" => Operand::Number(section.version as f64),
        Some((first, below)) if first == "$metadata" => walk(section.metadata(), below),
        _ => walk(&section.values, names),
    }
}
