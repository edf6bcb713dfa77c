"""A device on Microsoft's azure-iot-device for Python that connects, says so, and idles."""

import json
import sys
import threading

from azure.iot.device import IoTHubDeviceClient

import hub_ports

hub = json.load(open(sys.argv[1]))
connection_string = open(sys.argv[2]).read().strip()
hub_ports.redirect(int(hub["mqtts"].split(":")[-1]), int(hub["https"].split(":")[-1]))
ca = open(hub["caFile"]).read()
client = IoTHubDeviceClient.create_from_connection_string(connection_string, server_verification_cert=ca)
client.connect()
print("connected", flush=True)
threading.Event().wait()
