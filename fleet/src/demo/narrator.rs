//! How the story sounds: colour and a moving line on a terminal, plain lines otherwise.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;
use crate::output;

/// Tells the story.
pub(crate) struct Narrator {
    /// The story goes to stderr, because stdout belongs to a program.
    to_stderr: bool,
    is_coloured: bool,
    bar: ProgressBar,
    /// Why the story can't be read to its end.
    unheard: Mutex<Option<Failure>>,
}

impl Narrator {
    pub(crate) fn new(to_stderr: bool) -> Self {
        let is_coloured =
            if to_stderr { output::is_coloured(&io::stderr()) } else { output::is_coloured(&io::stdout()) };
        // Hides itself where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { to_stderr, is_coloured, bar, unheard: Mutex::new(None) }
    }

    /// A chapter's title.
    pub(crate) fn chapter(&self, title: &str) {
        self.line("");
        self.line(&self.paint("1", title));
    }

    /// What happens.
    pub(crate) fn say(&self, text: &str) {
        self.line(&format!("    {}", output::printable(text)));
    }

    /// What was expected, and held or not.
    pub(crate) fn verdict(&self, held: bool, text: &str) {
        let mark = if held { self.paint("32", "✓") } else { self.paint("31", "✗") };
        self.line(&format!("  {mark} {}", output::printable(text)));
    }

    /// The moving line.
    pub(crate) fn pulse(&self, text: String) {
        self.bar.set_message(text);
    }

    /// No moving line from here on.
    pub(crate) fn hush(&self) {
        self.bar.finish_and_clear();
    }

    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| {
            if self.to_stderr {
                output::painted_note(text);
            } else if let Err(failure) = output::painted_line(text) {
                *self.unheard.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            }
        });
    }

    /// Why a part of the story did not reach its reader, if so.
    pub(crate) fn into_failure(self) -> Option<Failure> {
        self.unheard.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.is_coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
