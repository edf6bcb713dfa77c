//! How far a rollout is, on stderr: a bar on a terminal, plain lines otherwise.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ledger::{DeviceRow, State};
use crate::output;

/// A bar on a terminal, plain lines otherwise, nothing but notes if so ordered.
#[derive(Clone)]
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines(Arc<Lines>),
    Silent,
}

#[derive(Default)]
pub(crate) struct Lines {
    ended: AtomicU64,
    all: AtomicU64,
}

impl Progress {
    pub(crate) fn new(is_silent: bool) -> Self {
        if is_silent {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines(Arc::default());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // Painted here: the library counts an empty NO_COLOR as set.
        let template = if output::is_coloured(&io::stderr()) {
            "\x1b[36m{bar:30}\x1b[0m {pos}/{len} {per_sec}, {eta} left  {msg}"
        } else {
            "{bar:30} {pos}/{len} {per_sec}, {eta} left  {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    pub(crate) fn start(&self, rows: &[DeviceRow]) {
        let ended = rows.iter().filter(|row| row.state.is_end()).count() as u64;
        match self {
            Self::Bar(bar) => {
                bar.set_length(rows.len() as u64);
                bar.set_position(ended);
                // What earlier runs have done says nothing about the pace of this one.
                bar.reset_eta();
            }
            Self::Lines(lines) => {
                lines.all.store(rows.len() as u64, Ordering::Relaxed);
                lines.ended.store(ended, Ordering::Relaxed);
            }
            Self::Silent => {}
        }
    }

    /// A device has gone on.
    pub(crate) fn moved(&self, row: &DeviceRow, earlier: State) {
        let name = row.identity.to_string();
        let has_ended = row.state.is_end() && !earlier.is_end();
        match self {
            Self::Bar(bar) if has_ended => {
                bar.inc(1);
                bar.set_message(output::printable(&format!("{name}: {}", row.state.as_str())));
            }
            Self::Bar(bar) => bar.set_message(output::printable(&format!("{name}: {}", row.state.as_str()))),
            Self::Lines(lines) if has_ended => {
                let ended = lines.ended.fetch_add(1, Ordering::Relaxed) + 1;
                let all = lines.all.load(Ordering::Relaxed);
                output::note(&format!("{name}: {} ({ended} of {all})", row.state.as_str()));
            }
            Self::Lines(_) | Self::Silent => {}
        }
        let has_trouble = has_ended && row.state != State::Done;
        if let Some(message) = row.message.as_ref().filter(|_| has_trouble) {
            self.note(&format!("{name}: {message}"));
        }
    }

    /// Said for good.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| output::note(text)),
            Self::Lines(_) | Self::Silent => output::note(text),
        }
    }

    pub(crate) fn finish(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines(_) | Self::Silent => {}
        }
    }
}
