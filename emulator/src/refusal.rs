//! Errors as the hub tells them, over HTTPS and in twin answers.

use serde_json::{Value, json};

/// The hub's error codes, as far as the emulator uses them (C# SDK, `ErrorCode.cs`). The HTTP status is the code's
/// first three digits; one that ends in three zeros has no number known to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    ArgumentInvalid,
    InvalidPolicyKey,
    DeviceDefinedMultipleTimes,
    DeserializationError,
    UnauthorizedAccess,
    QuotaExceeded,
    JobQuotaExceeded,
    MaximumQueueDepthExceeded,
    DeviceNotFound,
    ModuleNotFound,
    JobNotFound,
    ConfigurationNotFound,
    RouteNotFound,
    EnrollmentNotFound,
    OperationNotFound,
    DeviceNotOnline,
    DeviceAlreadyExists,
    ModuleAlreadyExists,
    ConfigurationAlreadyExists,
    JobAlreadyExists,
    PreconditionFailed,
    MessageTooLarge,
    TooManyDevices,
    TooManyModules,
    Throttling,
    ServerError,
    ServiceUnavailable,
    GatewayTimeout,
}

impl ErrorCode {
    /// Number and name, the latter as in the header `iothub-errorcode`.
    fn wire(self) -> (u32, &'static str) {
        match self {
            Self::ArgumentInvalid => (400_004, "ArgumentInvalid"),
            Self::InvalidPolicyKey => (400_000, "InvalidPolicyKey"),
            Self::DeviceDefinedMultipleTimes => (400_011, "DeviceDefinedMultipleTimes"),
            Self::DeserializationError => (400_012, "DeserializationError"),
            Self::UnauthorizedAccess => (401_002, "IotHubUnauthorizedAccess"),
            Self::QuotaExceeded => (403_002, "IotHubQuotaExceeded"),
            Self::JobQuotaExceeded => (403_003, "JobQuotaExceeded"),
            Self::MaximumQueueDepthExceeded => (403_004, "DeviceMaximumQueueDepthExceeded"),
            Self::DeviceNotFound => (404_001, "DeviceNotFound"),
            Self::ModuleNotFound => (404_010, "ModuleNotFound"),
            Self::JobNotFound => (404_002, "JobNotFound"),
            Self::ConfigurationNotFound => (404_000, "ConfigurationNotFound"),
            Self::RouteNotFound => (404_000, "NotFound"),
            Self::EnrollmentNotFound => (404_201, "EnrollmentNotFound"),
            Self::OperationNotFound => (404_000, "OperationNotFound"),
            Self::DeviceNotOnline => (404_103, "DeviceNotOnline"),
            Self::DeviceAlreadyExists => (409_001, "DeviceAlreadyExists"),
            Self::ModuleAlreadyExists => (409_301, "ModuleAlreadyExistsOnDevice"),
            Self::ConfigurationAlreadyExists => (409_000, "ConfigurationAlreadyExists"),
            Self::JobAlreadyExists => (409_000, "JobAlreadyExists"),
            Self::PreconditionFailed => (412_001, "PreconditionFailed"),
            Self::MessageTooLarge => (413_001, "MessageTooLarge"),
            Self::TooManyDevices => (413_002, "TooManyDevices"),
            Self::TooManyModules => (413_003, "TooManyModulesOnDevice"),
            Self::Throttling => (429_001, "ThrottlingException"),
            Self::ServerError => (500_001, "ServerError"),
            Self::ServiceUnavailable => (503_001, "ServiceUnavailable"),
            Self::GatewayTimeout => (504_101, "GatewayTimeout"),
        }
    }

    pub(crate) fn number(self) -> u32 {
        self.wire().0
    }

    pub(crate) fn name(self) -> &'static str {
        self.wire().1
    }

    /// The HTTP status, which is also the status of a twin answer.
    pub(crate) fn status(self) -> u16 {
        u16::try_from(self.number() / 1000).unwrap_or(500)
    }

    /// Whether the hub tells this error in the newer of its two styles (C# SDK, issue 3442: those of direct methods).
    fn has_newer_body(self) -> bool {
        matches!(self, Self::DeviceNotOnline | Self::GatewayTimeout)
    }
}

/// A request that the hub refuses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// When to ask again, if the answer is to say so.
    pub(crate) retry_after_secs: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_secs: None }
    }

    /// The body of an HTTPS answer.
    pub(crate) fn body(&self, timestamp: &str) -> Value {
        if self.code.has_newer_body() {
            return json!({"Message": self.compact_body(timestamp).to_string(), "ExceptionMessage": ""});
        }
        json!({
            "Message": format!("ErrorCode:{};{}", self.code.name(), self.message),
            "ExceptionMessage": format!("Tracking ID:{}-TimeStamp:{timestamp}", tracking_id()),
        })
    }

    /// The body of a twin answer over MQTT.
    pub(crate) fn compact_body(&self, timestamp: &str) -> Value {
        json!({
            "errorCode": self.code.number(),
            "trackingId": tracking_id(),
            "message": self.message,
            "timestampUtc": timestamp,
        })
    }
}

impl From<getrandom::Error> for Refusal {
    fn from(error: getrandom::Error) -> Self {
        Self::new(ErrorCode::ServerError, format!("the operating system gives no random numbers: {error}"))
    }
}

/// A random id that a person could quote; all zeros should the system have no randomness.
fn tracking_id() -> String {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        random = [0; 16];
    }
    uuid::Builder::from_random_bytes(random).into_uuid().to_string()
}
