// A device on Microsoft's azure-iot-device for Node against `twinkey emulate`.
//
//     npm install azure-iot-device azure-iot-device-mqtt
//     node device.js hub/hub.json < pump-7.txt          # the device's connection string
//
// MQTT over WebSocket (MqttWs) always goes to port 443 of the host name: start the hub with --https 127.0.0.1:443.

const fs = require('fs');
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

const hub = JSON.parse(fs.readFileSync(process.argv[2]));
const webSocket = process.argv.includes('--websockets');
// GatewayHostName is where the SDK connects to, and may have a port.
const gateway = webSocket ? '' : `;GatewayHostName=localhost:${hub.mqtts.split(':').pop()}`;
const connectionString = fs.readFileSync(0, 'utf8').trim() + gateway;

async function main() {
  const client = Client.fromConnectionString(connectionString, webSocket ? MqttWs : Mqtt);
  await client.setOptions({ ca: fs.readFileSync(hub.caFile, 'utf8') });
  await client.open();
  client.onDeviceMethod('reboot', (request, response) => response.send(200, { done: true }));
  const twin = await client.getTwin();
  console.log('twin', JSON.stringify(twin.properties));
  twin.on('properties.desired', (patch) => console.log('desired', JSON.stringify(patch)));
  await new Promise((done, failed) =>
    twin.properties.reported.update({ example: 'device.js' }, (error) => (error ? failed(error) : done())));
  await client.sendEvent(new Message('{"level": 3.2}'));
  console.log('sent');
  await client.close();
}

main().catch((error) => { console.error(error); process.exit(1); });
