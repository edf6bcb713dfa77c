// A device on Microsoft's azure-iot-device for Node that connects, says so, and idles.

const fs = require('fs');
const { Client } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const hub = JSON.parse(fs.readFileSync(process.argv[2]));
const gateway = `;GatewayHostName=localhost:${hub.mqtts.split(':').pop()}`;
const client = Client.fromConnectionString(fs.readFileSync(process.argv[3], 'utf8').trim() + gateway, Mqtt);

async function main() {
  await client.setOptions({ ca: fs.readFileSync(hub.caFile, 'utf8') });
  await client.open();
  console.log('connected');
}

main().catch((error) => { console.error(error); process.exit(1); });
