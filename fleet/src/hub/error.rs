//! What can go wrong between here and the hub, whose fault it is, and what to do about it.

use std::error::Error;
use std::time::Duration;

use serde::Deserialize;

use super::pace::RETRY_AFTER_MAX;
use crate::failure::{Failure, chain};
use crate::output::is_acted_upon;

/// Longest part of a hub's error text that is shown, in characters: more is a page, not a message.
const MESSAGE_CHARS_MAX: usize = 400;
/// Pause before another look at a hub that names none.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The word, in every output, for a twin that is longer than what is read.
pub(crate) const TWIN_TOO_LONG: &str = "twin-too-long";

/// A call that gave no result. `call` is method and path, which never hold a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error("the hub answered {call} with {status} {code}{}{message}", if message.is_empty() { "" } else { ": " })]
    Answer { call: String, status: u16, code: String, message: String, retry_after: Option<Duration> },
    #[error("{call} was answered with {status} and {content}, which no hub sends")]
    Foreign { call: String, status: u16, content: &'static str },
    #[error("the answer to {call} broke off after {read_bytes} bytes")]
    Cut { call: String, read_bytes: usize, source: reqwest::Error },
    #[error("the answer to {call} is longer than {max_bytes} bytes")]
    TooLong {
        call: String,
        max_bytes: usize,
        /// Whether the call asks for a change.
        is_change: bool,
    },
    // The cause is reduced to its position: it may quote the value, which may be a key.
    #[error("the answer to {call} is not what a hub answers (line {line}, column {column})")]
    Malformed { call: String, line: usize, column: usize },
    /// Also of a call that was not sent because the hub has not answered others.
    #[error("{call} did not reach the hub")]
    Unreached { call: String, source: Box<dyn Error + Send + Sync> },
    /// What it was decided on may be out of date by now. It had no effect.
    #[error("{call} was not sent: its turn did not come within {max_secs} s")]
    NotInTime {
        call: String,
        max_secs: u64,
        /// When the hub's limits are likely to leave room.
        again_in: Duration,
    },
    /// It had no effect.
    #[error("{call} was not sent: the hub throttles, and wants no such call for another {} s", again_in.as_secs())]
    Closed { call: String, again_in: Duration },
    #[error("the query has no end: after {pages} pages there is always another one")]
    Endless { pages: usize },
    #[error("{call} was not sent: the certificate that the hub shows is not to be trusted")]
    Untrusted { call: String, source: reqwest::Error },
    #[error("no answer to {call}")]
    Unanswered { call: String, source: reqwest::Error },
    #[error("{call} can't be sent: {reason}")]
    Unsendable { call: String, reason: String },
    #[error("can't make a token for the hub: {reason}")]
    Token { reason: String },
}

impl HubError {
    /// From an answer whose status is no success.
    pub(crate) fn from_answer(
        call: &str,
        status: u16,
        code: Option<&str>,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        if body.trim_ascii_start().starts_with(b"<") {
            return Self::Foreign { call: call.to_owned(), status, content: "a web page" };
        }
        let said = Said::read(body);
        let code = code.map(str::to_owned).or(said.code).unwrap_or_default();
        let message = shorten(&said.message);
        Self::Answer { call: call.to_owned(), status, code: shorten(&code), message, retry_after }
    }

    /// From an answer that does not parse.
    pub(crate) fn malformed(call: &str, error: &serde_json::Error) -> Self {
        Self::Malformed { call: call.to_owned(), line: error.line(), column: error.column() }
    }

    /// The HTTP status, when the hub answered this call, or others for it.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            Self::Closed { .. } => Some(429),
            Self::Foreign { .. }
            | Self::Cut { .. }
            | Self::TooLong { .. }
            | Self::Malformed { .. }
            | Self::NotInTime { .. }
            | Self::Endless { .. }
            | Self::Unsendable { .. }
            | Self::Unreached { .. }
            | Self::Untrusted { .. }
            | Self::Unanswered { .. }
            | Self::Token { .. } => None,
        }
    }

    /// How long to wait before looking again, where the call certainly had no effect and may get through later.
    pub(crate) fn pause_before_next_look(&self) -> Option<Duration> {
        match self {
            Self::Answer { status: 429, retry_after, .. } => {
                Some(retry_after.unwrap_or(LOOK_PAUSE)).filter(|pause| *pause <= RETRY_AFTER_MAX)
            }
            Self::Unreached { .. } => Some(LOOK_PAUSE),
            Self::NotInTime { again_in, .. } => Some(LOOK_PAUSE.max(*again_in)),
            Self::Closed { .. }
            | Self::Endless { .. }
            | Self::Unsendable { .. }
            | Self::Answer { .. }
            | Self::Foreign { .. }
            | Self::Cut { .. }
            | Self::TooLong { .. }
            | Self::Malformed { .. }
            | Self::Untrusted { .. }
            | Self::Unanswered { .. }
            | Self::Token { .. } => None,
        }
    }

    /// Whether the hub may have done what was asked in spite of this.
    pub(crate) fn is_ambiguous(&self) -> bool {
        match self {
            Self::Answer { status, .. } => *status >= 500,
            Self::Cut { .. } | Self::Malformed { .. } | Self::Unanswered { .. } => true,
            Self::TooLong { is_change, .. } => *is_change,
            // A proxy's page about the hub behind it, which did not answer the proxy in time.
            Self::Foreign { status, .. } => *status >= 500,
            Self::Unreached { .. }
            | Self::NotInTime { .. }
            | Self::Closed { .. }
            | Self::Endless { .. }
            | Self::Unsendable { .. }
            | Self::Untrusted { .. }
            | Self::Token { .. } => false,
        }
    }

    /// The word for it in outcomes.
    fn code(&self) -> &'static str {
        if matches!(self, Self::TooLong { .. }) { TWIN_TOO_LONG } else { Failure::CODE }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::Answer { status: 401, .. } => {
                "check the policy's name and key in the login file, that the policy may do this (iothubowner may), \
                 and this computer's clock: over 5 minutes off refuses every token"
            }
            Self::Answer { status: 403, .. } => {
                "use a policy with the rights RegistryWrite and ServiceConnect, and look at the hub's IP rules and quota"
            }
            Self::Answer { status: 404, .. } => {
                "check the id (upper and lower case differ) and the hub: twinkey device-identity list"
            }
            Self::Answer { status: 409, .. } => {
                "it exists already: choose another id, or look at it with device-identity show"
            }
            Self::Answer { status: 412, .. } => "somebody changed it meanwhile: look at it again and repeat",
            Self::Answer { status: 429, .. } | Self::Closed { .. } => {
                "the hub throttles: wait a minute, and take fewer devices in one run"
            }
            Self::Answer { status: 500.., .. } => {
                "the hub has trouble: run the same command again in a minute"
            }
            Self::Answer { .. } => {
                "look up the code in the hub's documentation; nothing is known to have changed"
            }
            Self::Foreign { .. } => {
                "something between here and the hub answered, such as a proxy: check HTTPS_PROXY, NO_PROXY and HostName"
            }
            Self::TooLong { .. } => {
                "a twin of that size is the device's doing: look at what it reports, and have it take that out (null)"
            }
            Self::Cut { .. } | Self::Unanswered { .. } => {
                "the hub may or may not have done it: run the same command again, which is safe"
            }
            Self::Malformed { .. } => "check that HostName in the login file names an IoT hub",
            Self::NotInTime { .. } => {
                "other calls use up the hub's limits: wait a minute, and take fewer devices in one run"
            }
            Self::Endless { .. } => {
                "narrow the query down; if it is narrow, ask Azure's support about this hub"
            }
            Self::Unreached { .. } => "check HostName and port in the login file, DNS, proxy and firewall",
            Self::Untrusted { .. } => {
                "for a hub with a private CA give --ca-file; otherwise somebody stands between here and the hub, or the \
                 clock is wrong"
            }
            Self::Unsendable { .. } => "check the id and the etag for what a hub does not take",
            Self::Token { .. } => "check HostName and SharedAccessKeyName in the login file",
        }
    }
}

impl From<&HubError> for Failure {
    fn from(error: &HubError) -> Self {
        Self { code: error.code(), ..Self::failed(chain(error)).next(error.advice()) }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::from(&error)
    }
}

/// What an error body says. Two styles are in use: `{"Message":"ErrorCode:DeviceNotFound;…"}`, and one in which
/// `Message` holds JSON text (`{"errorCode":404103,"message":"…"}`).
#[derive(Default)]
struct Said {
    code: Option<String>,
    message: String,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Outer {
            #[serde(rename = "Message", alias = "errorMessage", alias = "message")]
            message: String,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Inner {
            error_code: serde_json::Number,
            message: String,
        }
        let Ok(Outer { message }) = serde_json::from_slice(body) else { return Self::default() };
        if let Ok(inner) = serde_json::from_str::<Inner>(&message) {
            return Self { code: Some(inner.error_code.to_string()), message: inner.message };
        }
        match message.strip_prefix("ErrorCode:").and_then(|rest| rest.split_once(';')) {
            Some((code, text)) => Self { code: Some(code.to_owned()), message: text.to_owned() },
            None => Self { code: None, message },
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).map(|c| if is_acted_upon(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: Option<&str>, body: &str) -> HubError {
        HubError::from_answer("GET /devices/d", status, code, None, body.as_bytes())
    }

    #[test]
    fn both_styles_of_error_body_are_understood() {
        let classic = r#"{"Message":"ErrorCode:DeviceNotFound;d","ExceptionMessage":"Tracking ID:1"}"#;
        assert_eq!(
            answer(404, None, classic).to_string(),
            "the hub answered GET /devices/d with 404 DeviceNotFound: d"
        );
        let newer =
            r#"{"Message":"{\"errorCode\":404103,\"message\":\"not online\"}","ExceptionMessage":""}"#;
        assert_eq!(
            answer(404, None, newer).to_string(),
            "the hub answered GET /devices/d with 404 404103: not online"
        );
        let header = answer(429, Some("ThrottlingException"), "");
        assert_eq!(header.to_string(), "the hub answered GET /devices/d with 429 ThrottlingException");
    }

    #[test]
    fn a_web_page_is_blamed_on_what_stands_between() {
        let error = answer(502, None, " \n<html>gateway</html>");
        assert!(matches!(error, HubError::Foreign { .. }));
        let failure = Failure::from(error);
        assert!(failure.next.is_some_and(|next| next.contains("HTTPS_PROXY")), "{}", failure.what);
    }

    #[test]
    fn a_page_about_a_silent_hub_does_not_say_that_nothing_was_done() {
        assert!(answer(504, None, "<html>gateway timeout</html>").is_ambiguous());
        assert!(!answer(407, None, "<html>who are you?</html>").is_ambiguous());
    }

    #[test]
    fn long_and_hostile_messages_are_cut_and_cleaned() {
        let body = format!(r#"{{"Message":"\u001b[2J{}"}}"#, "x".repeat(10_000));
        let text = answer(400, None, &body).to_string();
        assert!(text.chars().count() < 500 && !text.contains('\u{1b}'), "{text}");
    }
}
