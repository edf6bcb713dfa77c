//! How a command ends, and what a person is told when it doesn't end well: what happened, then what to do.

use std::error::Error;
use std::process::ExitCode;

/// The exit codes that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// Refused because a device could go dark; nothing was changed.
    Refused = 3,
    /// Some of several devices were done.
    Partly = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command's end that needs an explanation.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) next: Option<String>,
    /// A stable word for it, where one of several identities failed.
    pub(crate) code: &'static str,
}

impl Failure {
    /// Any reason that has no name of its own.
    pub(crate) const CODE: &'static str = "error";

    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, what: what.into(), next: None, code: Self::CODE }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, what: what.into(), next: None, code: Self::CODE }
    }

    /// What happened and what to do, in one line.
    pub(crate) fn told(self) -> String {
        match self.next {
            Some(next) => format!("{}; {next}", self.what),
            None => self.what,
        }
    }

    /// Adds what the reader can do now.
    pub(crate) fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }
}

/// An error and all that caused it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries paste their cause into their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
