//! What is going on, on stderr: a bar on a terminal, plain lines otherwise.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::device::Event;
use super::outcome::Outcome;
use crate::output;

/// A bar on a terminal, plain lines otherwise, nothing if so ordered.
#[derive(Clone)]
pub(super) enum Progress {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    pub(super) fn new(devices: usize, is_silent: bool) -> Self {
        if is_silent {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(Some(devices as u64), ProgressDrawTarget::stderr());
        // Painted here: the library counts an empty NO_COLOR as set.
        let template = if output::is_coloured(&io::stderr()) {
            "\x1b[36m{bar:30}\x1b[0m {pos}/{len} {msg}"
        } else {
            "{bar:30} {pos}/{len} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    pub(super) fn tell(&self, id: &str, event: Event) {
        match (self, event) {
            (Self::Bar(bar), Event::Step(step)) => {
                bar.set_message(output::printable(&format!("{id}: {step}")))
            }
            (Self::Bar(bar), Event::Note(text)) => {
                bar.suspend(|| output::note(&format!("{id}: {}", output::printable(&text))))
            }
            (Self::Lines, Event::Step(step)) => output::note(&format!("{id}: {step}")),
            (Self::Lines | Self::Silent, Event::Note(text)) => {
                output::note(&format!("{id}: {}", output::printable(&text)))
            }
            (Self::Silent, Event::Step(_)) => {}
        }
    }

    /// One identity is done with.
    pub(super) fn done(&self, outcomes: &[Outcome]) {
        match self {
            Self::Bar(bar) => bar.inc(1),
            Self::Lines => {
                for outcome in outcomes {
                    let (name, key) = (&outcome.name, outcome.key_type);
                    output::note(&format!("{name}: {key}: {}", outcome.outcome.text()));
                }
            }
            Self::Silent => {}
        }
    }

    pub(super) fn finish(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines | Self::Silent => {}
        }
    }
}
