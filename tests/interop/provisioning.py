"""A device that registers with the provisioning service by Microsoft's azure-iot-device."""

import base64
import hashlib
import hmac
import json
import logging

from azure.iot.device import ProvisioningDeviceClient

import hub_ports
from told import obey

logging.disable()


def derived(group_key, registration_id):
    """A member's key (DPS documentation, "Symmetric key attestation", group enrollments)."""
    mac = hmac.new(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


def register(host, scope, id, ca, mqtts, https, key=None, group_key=None, payload=None, **options):
    hub_ports.redirect(mqtts, https)
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host=host,
        registration_id=id,
        id_scope=scope,
        symmetric_key=key or derived(group_key, id),
        server_verification_cert=ca,
        **options
    )
    if payload is not None:
        client.provisioning_payload = payload
    result = client.register()
    state = result.registration_state
    return {
        "status": result.status,
        "device": state and state.device_id,
        "hub": state and state.assigned_hub,
        "substatus": state and state.sub_status,
        "payload": state and json.loads(state.response_payload),
    }


obey({"register": register})
