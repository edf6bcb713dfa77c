//! The only module that prints. Results go to stdout; progress, notes and errors go to stderr.
//!
//! A closed pipe is no error: whoever reads has seen enough.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use zeroize::Zeroizing;

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
    painted_line(&printable(text))
}

/// One line on stdout that is already [`printable`], and has colours.
pub(crate) fn painted_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// A whole text on stdout, with its own line ends.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    print(text)
}

/// One line on stderr: progress or guidance.
pub(crate) fn note(text: &str) {
    painted_note(&printable(text));
}

/// One line on stderr that is already [`printable`], and has colours.
pub(crate) fn painted_note(text: &str) {
    mention(&format!("{text}\n"));
}

/// One warning on stderr.
pub(crate) fn warn(text: &str) {
    note(&format!("warning: {text}"));
}

/// A question on stderr, without a line end.
pub(crate) fn ask(question: &str) {
    mention(&format!("{} ", printable(question)));
}

/// A table on stdout.
pub(crate) fn table(table: &Table) -> Result<(), Failure> {
    print(&table.render(is_coloured(&io::stdout())))
}

/// One JSON value on stdout, in several lines.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    print_json(text)
}

/// One JSON value on stdout, in one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    print_json(serde_json::to_string(value))
}

/// It may hold a secret that was asked for.
fn print_json(text: serde_json::Result<String>) -> Result<(), Failure> {
    let text = Zeroizing::new(text.map_err(|e| Failure::failed(format!("write JSON: {e}")))?);
    print(&escaped_json(&text))?;
    print("\n")
}

/// What happened, then what to do.
pub(crate) fn failure(failure: &Failure) {
    note(&format!("error: {}", failure.what));
    if let Some(next) = &failure.next {
        note(&format!("  next: {next}"));
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

/// Whether terminals and browsers act on this character instead of showing it: controls (C0,
/// DELETE, C1), line and paragraph separators, and the format characters of Unicode 16 (general
/// category Cf), which are invisible or turn the direction of the text that follows (Unicode
/// Standard Annex 9). Those of them that are drawn, such as U+06DD, stay.
pub(crate) fn is_acted_upon(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// The same JSON with `\uXXXX` in place of these characters (RFC 8259 §7). Outside of strings JSON
/// has none of them but line feeds, which stay.
fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_acted_upon(c) && c != '\n';
    if !json.contains(is_escaped) {
        return json.into();
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_escaped(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a `String` can't fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text.into()
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

    /// One of each kind.
    const ACTED_UPON: [char; 26] = [
        '\0',
        '\u{7}',
        '\t',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{80}',
        '\u{85}',
        '\u{9b}',
        '\u{9f}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2066}',
        '\u{2069}',
        '\u{feff}',
        '\u{fffb}',
        '\u{1d173}',
        '\u{e0041}',
    ];
    const SHOWN: [char; 9] = [' ', '~', '\u{a0}', 'é', '\u{301}', '泵', '\u{6dd}', '�', '🛠'];

    #[test]
    fn what_a_terminal_acts_upon_becomes_a_space_and_all_else_stays() {
        for c in ACTED_UPON {
            assert_eq!(printable(&format!("a{c}b")), "a b", "U+{:04X}", u32::from(c));
        }
        for c in SHOWN {
            assert_eq!(printable(&format!("a{c}b")), format!("a{c}b"), "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn json_keeps_its_value_and_shows_no_character_that_a_terminal_acts_upon() {
        let all: String = ACTED_UPON.into_iter().chain(SHOWN).collect();
        let value = serde_json::json!({"text": all, all.clone(): [1]});
        for json in [value.to_string(), format!("{value:#}")] {
            let escaped = escaped_json(&json);
            assert!(!escaped.contains(|c| is_acted_upon(c) && c != '\n'), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }
}
