//! One attempt to connect, step by step, beside the connection that stands.

use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use twinkey_rotation::KeyName;
use twinkey_sas::Expiry;

use crate::clock::Instant;
use crate::hub::Timing;
use crate::hub::dial::{DialError, Dialling, Stage, Stream};
use crate::hub::session::{ConnectError, Credentials, connect};
use crate::hub::wire::Wire;

/// How long the takeover waits for unanswered messages before it says CONNECT all the same: a message more is a
/// duplicate, not a loss.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// How long messages are held back while CONNECT has no answer; a slow hub must not stop the telemetry.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// How long an answer to CONNECT is waited for once the connection that stood is gone.
const HURRY: Duration = Duration::from_secs(5);

/// An attempt that is under way.
pub(super) struct Attempt {
    /// The key that is tried.
    pub(super) key: KeyName,
    step: Step,
    held_until: Option<Instant>,
    /// An answer that comes later is not waited for.
    answer_until: Option<Instant>,
}

enum Step {
    Opening(Dialling),
    /// Waits until nothing is unanswered on the connection that stands.
    Holding {
        stream: Option<Box<dyn Stream>>,
        until: Instant,
    },
    Connecting(Pin<Box<dyn Future<Output = Result<Finished, ConnectError>> + Send>>),
}

/// What an attempt has reached.
pub(super) enum Progress {
    /// There is an encrypted stream.
    Opened(Box<dyn Stream>),
    /// It is time to say CONNECT.
    Quiet(Box<dyn Stream>),
    /// There is an answer.
    Finished(Result<Finished, ConnectError>),
}

/// An accepted connection.
pub(super) struct Finished {
    pub(super) wire: Wire<Box<dyn Stream>>,
    pub(super) is_session_present: bool,
    pub(super) expiry: Expiry,
}

impl Attempt {
    pub(super) fn begin(key: KeyName, dialling: Dialling) -> Self {
        Self { key, step: Step::Opening(dialling), held_until: None, answer_until: None }
    }

    /// The next thing that happens to it; cancel-safe.
    pub(super) async fn progress(&mut self, is_quiet: bool) -> Progress {
        match &mut self.step {
            Step::Opening(dialling) => match dialling.await {
                Ok(stream) => Progress::Opened(stream),
                Err(error) => Progress::Finished(Err(error.into())),
            },
            Step::Holding { stream, until } => {
                if !is_quiet {
                    tokio::time::sleep_until(*until).await;
                }
                match stream.take() {
                    Some(stream) => Progress::Quiet(stream),
                    None => std::future::pending().await,
                }
            }
            Step::Connecting(connecting) => {
                let Some(until) = self.answer_until else { return Progress::Finished(connecting.await) };
                let late = DialError::Timeout { stage: Stage::Connect, after: HURRY };
                Progress::Finished(
                    tokio::time::timeout_at(until, connecting).await.unwrap_or(Err(late.into())),
                )
            }
        }
    }

    pub(super) fn hold(&mut self, stream: Box<dyn Stream>, is_takeover: bool, now: Instant) {
        let until = if is_takeover { now + QUIET_MAX } else { now };
        self.held_until = is_takeover.then_some(until);
        self.step = Step::Holding { stream: Some(stream), until };
    }

    pub(super) fn connect(
        &mut self,
        stream: Box<dyn Stream>,
        credentials: Credentials,
        expiry: Expiry,
        timing: Timing,
        now: Instant,
    ) {
        self.held_until = self.held_until.map(|_| now + HOLD_MAX);
        self.step = Step::Connecting(
            async move {
                let (wire, is_session_present) = connect(stream, credentials, &timing).await?;
                Ok(Finished { wire, is_session_present, expiry })
            }
            .boxed(),
        );
    }

    /// Whether the hub has been asked and has not answered yet.
    pub(super) fn is_at_connect(&self) -> bool {
        matches!(self.step, Step::Connecting(_))
    }

    /// The connection that stood is gone: if this hub is silent to this key, another one must have its turn soon.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.answer_until = Some(now + HURRY);
    }

    /// Whether messages wait for the outcome.
    pub(super) fn holds_messages(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// When messages stop waiting.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.held_until.filter(|until| now < *until)
    }
}
