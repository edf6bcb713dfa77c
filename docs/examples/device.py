"""A device on Microsoft's azure-iot-device against `twinkey emulate`.

    pip install azure-iot-device
    python device.py hub/hub.json < pump-7.txt        # the device's connection string
"""

import json
import socket
import sys
import threading

import paho.mqtt.client
from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse

hub = json.load(open(sys.argv[1]))

# The SDK knows ports 8883 and 443 only. For a hub that listens elsewhere, paho is told where to knock; leave this
# out for one started with --mqtts 127.0.0.1:8883 --https 127.0.0.1:443.
ports = {8883: hub["mqtts"], 443: hub["https"]}


def create_socket_connection(client):
    host, port = ports[client._port].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=client._connect_timeout)


paho.mqtt.client.Client._create_socket_connection = create_socket_connection

client = IoTHubDeviceClient.create_from_connection_string(
    sys.stdin.readline().strip(),
    server_verification_cert=open(hub["caFile"]).read(),
    websockets="--websockets" in sys.argv,
)


def method_called(request):
    print("method", request.name, request.payload)
    client.send_method_response(MethodResponse.create_from_method_request(request, 200, {"done": True}))


client.connect()
client.on_method_request_received = method_called
client.on_twin_desired_properties_patch_received = lambda patch: print("desired", patch)
client.on_message_received = lambda message: print("message", message.data.decode())
print("twin", client.get_twin())
client.patch_twin_reported_properties({"example": "device.py"})
client.send_message(Message('{"level": 3.2}', content_type="application/json", content_encoding="utf-8"))
print("sent")
if "--stay" in sys.argv:
    threading.Event().wait()  # for methods, messages and desired properties
client.shutdown()
