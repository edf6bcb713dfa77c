// A back end on Microsoft's azure-iothub for Node against `twinkey emulate`.
//
//     npm install azure-iothub
//     NODE_EXTRA_CA_CERTS=hub/ca.pem node service.js hub/hub.json
//
// The SDK takes no port: start the hub with --https 127.0.0.1:443.

const fs = require('fs');
const { Registry } = require('azure-iothub');

const hub = JSON.parse(fs.readFileSync(process.argv[2]));
const registry = Registry.fromConnectionString(hub.serviceConnectionString.replace(/^(HostName=[^;:]*):443/, '$1'));

async function main() {
  await registry.create({ deviceId: 'example' });
  const { responseBody: twin } = await registry.updateTwin('example', { properties: { desired: { interval: 5 } } }, '*');
  console.log('desired version', twin.properties.desired.$version);
  console.log('devices', (await registry.list()).responseBody.map((device) => device.deviceId));
  await registry.delete('example');
}

main().catch((error) => { console.error(error); process.exit(1); });
