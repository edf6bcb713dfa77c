"""A back end that lives on Microsoft's azure-iot-hub and does what the tests tell it.

`{"do": "call", "manager": "registry", "name": METHOD, "args": […]}` calls a method of one of the SDK's managers. An
argument `{"$model": CLASS, …}` becomes that class of the SDK, as `CLASS.deserialize` reads it; what comes back is the
SDK's object as JSON, so that every value has gone through the SDK's own models.
"""

import json

from azure.iot.hub import (
    IoTHubConfigurationManager,
    IoTHubHttpRuntimeManager,
    IoTHubJobManager,
    IoTHubRegistryManager,
)
from azure.iot.hub.protocol import models
from msrest.exceptions import HttpOperationError
from msrest.serialization import Model

from told import obey

MANAGERS = {
    "registry": IoTHubRegistryManager,
    "configurations": IoTHubConfigurationManager,
    "jobs": IoTHubJobManager,
    "runtime": IoTHubHttpRuntimeManager,
}
managers = {}


def log_in(connection_string, ca, patient):
    """Makes the SDK's managers, which trust `ca`, a file, and try again as they do by default, if they are `patient`."""
    for name, manager in MANAGERS.items():
        managers[name] = manager.from_connection_string(connection_string)
        managers[name].protocol.config.connection.verify = ca
        if not patient:
            managers[name].protocol.config.retry_policy.policy.total = 0


def to_model(value):
    if isinstance(value, dict) and "$model" in value:
        fields = dict(value)
        return getattr(models, fields.pop("$model")).deserialize(fields)
    if isinstance(value, list):
        return [to_model(item) for item in value]
    return value


def to_json(value):
    if isinstance(value, Model):
        return value.serialize(keep_readonly=True)
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if hasattr(value, "continuation_token"):
        return {"type": value.type, "items": to_json(value.items), "continuation": value.continuation_token}
    return value


def call(manager, name, args):
    return to_json(getattr(managers[manager], name)(*[to_model(arg) for arg in args]))


def describe(error):
    """What the hub said, where the SDK hands it on."""
    if not isinstance(error, HttpOperationError):
        return {}
    response = error.response
    try:
        body = json.loads(response.text)
    except ValueError:
        body = None
    return {"status": response.status_code, "code": response.headers.get("iothub-errorcode"), "body": body}


obey({"log_in": log_in, "call": call}, describe)
