//! The only module that prints. Results go to stdout; progress, notes and errors go to stderr.
//!
//! A closed pipe is no error: whoever reads has seen enough.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::failure::Failure;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON document for programs.
    Json,
}

/// Rows under a header.
pub(crate) struct Table {
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &'static [&'static str]) -> Self {
        Self { header, rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Columns that its widest line takes.
    pub(crate) fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
    }

    fn widths(&self) -> Vec<usize> {
        let width_of = |column: usize, title: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.width()).chain([title.width()]).max().unwrap_or(0)
        };
        self.header.iter().enumerate().map(|(i, title)| width_of(i, title)).collect()
    }

    fn render(&self, bold_header: bool) -> String {
        let widths = self.widths();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells
                .zip(&widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width()))));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let header = line(&mut self.header.iter().copied());
        let mut text = if bold_header { format!("\x1b[1m{header}\x1b[0m\n") } else { format!("{header}\n") };
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        text
    }
}

/// One line on stdout.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// A whole text on stdout, with its own line ends.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    print(text)
}

/// One line on stderr: progress or guidance.
pub(crate) fn note(text: &str) {
    mention(&format!("{text}\n"));
}

/// One warning on stderr.
pub(crate) fn warn(text: &str) {
    note(&format!("warning: {}", printable(text)));
}

/// A question on stderr, without a line end.
pub(crate) fn ask(question: &str) {
    mention(&format!("{question} "));
}

/// A table on stdout.
pub(crate) fn table(table: &Table) -> Result<(), Failure> {
    print(&table.render(is_coloured(&io::stdout())))
}

/// One JSON value on stdout, in several lines.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Failure::failed(format!("write JSON: {e}")))?;
    line(&text)
}

/// One JSON value on stdout, in one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::failed(format!("write JSON: {e}")))?;
    line(&text)
}

/// What happened, then what to do.
pub(crate) fn failure(failure: &Failure) {
    note(&format!("error: {}", printable(&failure.what)));
    if let Some(next) = &failure.next {
        note(&format!("  next: {}", printable(next)));
    }
}

/// Whether this stream shows colour: a terminal that can, and nobody set `NO_COLOR` (<https://no-color.org>).
pub(crate) fn is_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("TERM").is_none_or(|kind| kind != "dumb")
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of the terminal that stdout goes to; `None` where it goes elsewhere, or the terminal does not tell.
pub(crate) fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Text from the hub or a file, made safe for a terminal: control characters could rewrite the screen, and others make
/// text look like another.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_acted_upon(c) { ' ' } else { c }).collect()
}

/// Whether terminals and browsers act on this character instead of showing it: controls, and what is invisible or turns
/// the direction of the text that follows (Unicode Standard Annex 9).
pub(crate) fn is_acted_upon(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("write to stdout: {error}"))
                .next("the result is incomplete there: make room, or send it elsewhere"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn mention(text: &str) {
    let mut stderr = io::stderr().lock();
    // Nothing can be said when the stream that says things is gone.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["DEVICE", "STATUS"]);
        table.push(["pump-7".to_owned(), "enabled".to_owned()]);
        table.push(["long-device-name".to_owned(), "dis\x1b[2Jabled".to_owned()]);
        let expected =
            "DEVICE            STATUS\npump-7            enabled\nlong-device-name  dis [2Jabled\n";
        assert_eq!(table.render(false), expected);
        assert!(table.render(true).starts_with("\x1b[1mDEVICE"));
        assert_eq!(table.width(), expected.lines().map(str::len).max().unwrap());
    }

    #[test]
    fn wide_characters_take_two_columns_and_invisible_ones_do_not_get_through() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.push(["泵泵泵".to_owned(), "a".to_owned()]);
        table.push(["e\u{301}t\u{202e}x".to_owned(), "b".to_owned()]);
        assert_eq!(table.render(false), "NAME    STATUS\n泵泵泵  a\ne\u{301}t x    b\n");
    }
}
