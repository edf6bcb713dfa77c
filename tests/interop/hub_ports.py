"""Points azure-iot-device at the local hub's ports.

The device SDK connects to ports 8883 (MQTT) and 443 (WebSocket) and has no setting for others
(azure-iot-device 2.14.0, azure/iot/device/common/mqtt_transport.py, MQTTTransport.connect). A hub that
listens there needs none of this. For one that listens elsewhere, the one place is replaced in which paho opens its
TCP connection; host names, SNI, the certificate check, tokens and user names stay the SDK's own.
"""

import socket

import paho.mqtt.client

MQTTS, HTTPS = 8883, 443


def redirect(mqtts, https):
    """From now on connections to ports 8883 and 443 go to `mqtts` and `https` on this machine."""
    ports = {MQTTS: mqtts, HTTPS: https}

    def create_socket_connection(client):
        address = ("127.0.0.1", ports[client._port])
        return socket.create_connection(address, timeout=client._connect_timeout)

    paho.mqtt.client.Client._create_socket_connection = create_socket_connection
