//! Tables.

use std::fmt::Write;

use super::{Tone, escape};

/// Most rows that are shown. Browsers take many more, people don't, and a page of 100,000 devices would be 50 MB.
pub(crate) const ROWS_MAX: usize = 2000;

/// Rows under a header that stays in sight.
pub(crate) struct Table {
    name: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    row_count: usize,
}

struct Column {
    title: String,
    is_number: bool,
}

/// Text in a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    /// What stands for itself, such as an id or a fingerprint: in letters of one width.
    is_code: bool,
    explanation: Option<String>,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// An id, a code, a fingerprint.
    pub(crate) fn code(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_code: true, ..Self::default() }
    }

    pub(crate) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    /// What a browser shows under the pointer.
    pub(crate) fn explained(self, text: impl Into<String>) -> Self {
        Self { explanation: Some(text.into()), ..self }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl Table {
    /// An empty one. A title that begins with `#` heads a column of numbers, and is shown without it. `name` is what a
    /// screen reader says.
    pub(crate) fn new(name: &str, titles: &[&str]) -> Self {
        let column = |title: &&str| match title.strip_prefix('#') {
            Some(title) => Column { title: title.to_owned(), is_number: true },
            None => Column { title: (*title).to_owned(), is_number: false },
        };
        Self {
            name: name.to_owned(),
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
            row_count: 0,
        }
    }

    /// Adds a row at the end; beyond [`ROWS_MAX`] it is only counted.
    pub(crate) fn push<C: Into<Cell>>(&mut self, row: impl IntoIterator<Item = C>) {
        self.row_count += 1;
        if self.rows.len() < ROWS_MAX {
            self.rows.push(row.into_iter().map(Into::into).collect());
        }
    }

    pub(super) fn write(&self, html: &mut String) {
        // Writing to a `String` can't fail.
        let _ = self.try_write(html);
    }

    fn try_write(&self, html: &mut String) -> std::fmt::Result {
        let name = escape(&self.name);
        write!(
            html,
            "<div class=\"frame\" role=\"region\" tabindex=\"0\" aria-label=\"{name}\">\n<table>\n"
        )?;
        html.push_str("<thead><tr>");
        for Column { title, is_number } in &self.columns {
            let class = if *is_number { " class=\"number\"" } else { "" };
            write!(html, "<th scope=\"col\"{class}>{}</th>", escape(title))?;
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            html.push_str("<tr>");
            for (cell, column) in row.iter().zip(&self.columns) {
                let classes = [
                    (column.is_number, "number"),
                    (cell.is_code, "code"),
                    (cell.tone != Tone::Plain, cell.tone.class()),
                ];
                let classes: Vec<_> = classes.iter().filter(|(is, _)| *is).map(|(_, class)| *class).collect();
                html.push_str("<td");
                if !classes.is_empty() {
                    write!(html, " class=\"{}\"", classes.join(" "))?;
                }
                if let Some(explanation) = &cell.explanation {
                    write!(html, " title=\"{}\"", escape(explanation))?;
                }
                write!(html, ">{}</td>", escape(&cell.text))?;
            }
            html.push_str("</tr>\n");
        }
        if self.rows.is_empty() {
            let columns = self.columns.len();
            writeln!(html, "<tr><td colspan=\"{columns}\" class=\"muted\">none</td></tr>")?;
        }
        html.push_str("</tbody>\n</table>\n</div>\n");
        if self.row_count > self.rows.len() {
            let (shown, all) = (self.rows.len(), self.row_count);
            writeln!(
                html,
                "<p class=\"note\">The first {shown} of {all} rows; all of them are in the command's JSON output.</p>"
            )?;
        }
        Ok(())
    }
}
