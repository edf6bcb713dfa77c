"""A back end on Microsoft's azure-iot-hub against `twinkey emulate`.

    pip install azure-iot-hub six                     # azure-iot-hub needs six, and doesn't say so
    python service.py hub/hub.json
"""

import json
import sys

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties

hub = json.load(open(sys.argv[1]))
registry = IoTHubRegistryManager.from_connection_string(hub["serviceConnectionString"])
registry.protocol.config.connection.verify = hub["caFile"]

device = registry.create_device_with_sas("example", None, None, "enabled")
print("created", device.device_id, "with keys of the hub's making")
twin = Twin(tags={"site": "roof"}, properties=TwinProperties(desired={"interval": 5}))
print("twin version", registry.update_twin("example", twin).version)
print("devices", [device.device_id for device in registry.get_devices()])
registry.delete_device("example")
