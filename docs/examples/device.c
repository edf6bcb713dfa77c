// A device on Microsoft's azure-iot-sdk-c against `twinkey emulate`.
//
// The SDK knows ports 8883 and 443 only, and wants a host name with a dot:
//     echo '127.0.0.1 hub.localhost' >> /etc/hosts      # unless such names resolve by themselves
//     twinkey emulate --data-dir hub --host-name hub.localhost --mqtts 127.0.0.1:8883 --https 127.0.0.1:443
//     (cat pump-7.txt | tr -d '\n'; echo ';GatewayHostName=localhost') | ./device hub/ca.pem [websockets]

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "azure_c_shared_utility/shared_util_options.h"
#include "azure_c_shared_utility/threadapi.h"
#include "c_logging/logger.h"
#include "iothub.h"
#include "iothub_client_options.h"
#include "iothub_device_client_ll.h"
#include "iothub_message.h"
#include "iothubtransportmqtt.h"
#include "iothubtransportmqtt_websockets.h"

static bool sent, reported, read_twin;

static void on_sent(IOTHUB_CLIENT_CONFIRMATION_RESULT result, void* context)
{
    (void)context;
    sent = true;
    printf("sent %d\n", result);
}

static void on_reported(int status, void* context)
{
    (void)context;
    reported = true;
    printf("reported %d\n", status);
}

static void on_twin(DEVICE_TWIN_UPDATE_STATE state, const unsigned char* json, size_t size, void* context)
{
    (void)context;
    read_twin = true;
    printf("%s %.*s\n", state == DEVICE_TWIN_UPDATE_COMPLETE ? "twin" : "desired", (int)size, (const char*)json);
}

int main(int argc, char** argv)
{
    static char ca[8192], connection_string[1024];
    FILE* file = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (file == NULL || fread(ca, 1, sizeof ca - 1, file) == 0
        || fgets(connection_string, sizeof connection_string, stdin) == NULL)
    {
        return 2;
    }
    fclose(file);
    connection_string[strcspn(connection_string, "\n")] = '\0';

    // Since 1.15 the SDK's log ends a program that has not started it. Leave this out for older ones.
    logger_init();
    IoTHub_Init();
    IOTHUB_DEVICE_CLIENT_LL_HANDLE device = IoTHubDeviceClient_LL_CreateFromConnectionString(
        connection_string, argc > 2 ? MQTT_WebSocket_Protocol : MQTT_Protocol);
    if (device == NULL)
    {
        return 1;
    }
    IoTHubDeviceClient_LL_SetOption(device, OPTION_TRUSTED_CERT, ca);
    IoTHubDeviceClient_LL_SetDeviceTwinCallback(device, on_twin, NULL);
    const char* patch = "{\"example\": \"device.c\"}";
    IoTHubDeviceClient_LL_SendReportedState(device, (const unsigned char*)patch, strlen(patch), on_reported, NULL);
    IOTHUB_MESSAGE_HANDLE message = IoTHubMessage_CreateFromString("{\"level\": 3.2}");
    IoTHubDeviceClient_LL_SendEventAsync(device, message, on_sent, NULL);
    IoTHubMessage_Destroy(message);
    for (int i = 0; i < 3000 && !(sent && reported && read_twin); i++)
    {
        IoTHubDeviceClient_LL_DoWork(device);
        ThreadAPI_Sleep(10);
    }
    IoTHubDeviceClient_LL_Destroy(device);
    IoTHub_Deinit();
    logger_deinit();
    return sent && reported && read_twin ? 0 : 1;
}
