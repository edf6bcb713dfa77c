"""A device, or a module of one, that lives on Microsoft's azure-iot-device and does what the tests tell it."""

import logging

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, MethodResponse

from azure.iot.device.common.auth import sastoken, signing_mechanism

import hub_ports
from told import happened, obey

# What the SDK warns of is what the tests are about.
logging.disable()


class Device:
    def create(self, connection_string, ca, mqtts, https, **options):
        """Makes the SDK's client; `options` are its own. Nothing connects yet."""
        kind = IoTHubModuleClient if "ModuleId=" in connection_string else IoTHubDeviceClient
        client = kind.create_from_connection_string(connection_string, server_verification_cert=ca, **options)
        self.adopt(client, mqtts, https)

    def create_with_token(self, device, key, ttl, ca, mqtts, https, **options):
        """The same with one token that the SDK can't renew."""
        uri = "localhost/devices/" + device
        token = sastoken.RenewableSasToken(uri, signing_mechanism.SymmetricKeySigningMechanism(key), ttl=ttl)
        client = IoTHubDeviceClient.create_from_sastoken(str(token), server_verification_cert=ca, **options)
        self.adopt(client, mqtts, https)

    def adopt(self, client, mqtts, https):
        hub_ports.redirect(mqtts, https)
        self.client = client
        self.client.on_connection_state_change = self.connection_changed
        self.client.on_background_exception = lambda error: happened("background", type(error).__name__)

    def connection_changed(self):
        happened("connected" if self.client.connected else "disconnected")

    def connect(self):
        self.client.connect()

    def disconnect(self):
        self.client.disconnect()

    def shutdown(self):
        self.client.shutdown()

    def is_connected(self):
        return self.client.connected

    def twin(self):
        return self.client.get_twin()

    def report(self, patch):
        self.client.patch_twin_reported_properties(patch)

    def watch_desired(self):
        """Subscribes; each change is told as `desired`."""
        self.client.on_twin_desired_properties_patch_received = lambda patch: happened("desired", patch)

    def watch_messages(self):
        """Subscribes; each cloud-to-device message is told as `message`."""
        self.client.on_message_received = self.message_received

    def message_received(self, message):
        happened(
            "message",
            {
                "body": message.data.decode(),
                "id": message.message_id,
                "correlation": message.correlation_id,
                "contentType": message.content_type,
                "properties": message.custom_properties,
            },
        )

    def serve_methods(self, mute=False):
        """Subscribes. Method `echo` answers with its payload, any other with 404; `mute` answers nothing."""
        self.mute = mute
        self.client.on_method_request_received = self.method_called

    def method_called(self, request):
        happened("method", {"name": request.name, "payload": request.payload})
        if not self.mute:
            known = request.name == "echo"
            answer = MethodResponse.create_from_method_request(
                request, 200 if known else 404, {"echo": request.payload} if known else None
            )
            self.client.send_method_response(answer)

    def send(self, body, properties=None, **system):
        """Sends telemetry; `system` are attributes of the SDK's Message."""
        message = Message(body, **{name: system.pop(name) for name in ("message_id",) if name in system})
        for name, value in system.items():
            setattr(message, name, value)
        message.custom_properties.update(properties or {})
        self.client.send_message(message)


device = Device()
obey({name: getattr(device, name) for name in dir(Device) if not name.startswith("_")})
