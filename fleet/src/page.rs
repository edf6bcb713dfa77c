//! One self-contained HTML page: text, figures, tables and charts. It needs no network, runs no script, and says so to the
//! browser. Everything that is put into it is escaped here; no caller writes HTML.
//!
//! ```text
//! let mut page = Page::new("Fleet status", "hub.azure-devices.net, 2026-11-20T10:00:00Z");
//! page.section("Key ages").histogram(&Histogram::of("Age of the key in use", "days", &ages));
//! std::fs::write(path, page.to_html())
//! ```

mod bars;
mod lines;
mod scale;
mod svg;
mod table;

use std::fmt::Write;

use crate::output::is_acted_upon;

pub(crate) use bars::{Bars, Histogram};
pub(crate) use lines::{Lines, Series};
pub(crate) use scale::moment;
pub(crate) use table::{Cell, Table};

const STYLE: &str = include_str!("page/style.css");
/// No script, nothing from elsewhere: not even what somebody smuggled past the escaping could do anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// What something means to the reader. It is never said by colour alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    /// Wants a look.
    Warn,
    /// Wants somebody to act.
    Bad,
    /// Of less interest.
    Muted,
}

/// A page that is being written.
pub(crate) struct Page {
    title: String,
    about: String,
    body: String,
    sections: usize,
    figures: usize,
}

/// The end of a page, where more can be added.
pub(crate) struct Section<'a> {
    page: &'a mut Page,
}

impl Tone {
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Muted => "muted",
        }
    }
}

impl Page {
    /// `about` stands under the title: of what, and as of when.
    pub(crate) fn new(title: &str, about: &str) -> Self {
        Self {
            title: title.to_owned(),
            about: about.to_owned(),
            body: String::new(),
            sections: 0,
            figures: 0,
        }
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, heading: &str) -> Section<'_> {
        if self.sections > 0 {
            self.body.push_str("</section>\n");
        }
        self.sections += 1;
        self.push(format_args!("<section>\n<h2>{}</h2>\n", escape(heading)));
        Section { page: self }
    }

    /// The whole document.
    pub(crate) fn to_html(&self) -> String {
        let (title, about) = (escape(&self.title), escape(&self.about));
        let end = if self.sections > 0 { "</section>\n" } else { "" };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n\
             <p>{about}</p>\n</header>\n<main>\n{body}{end}</main>\n\
             <footer>Made by twinkey {version}. This page holds no key, runs no script and loads nothing.</footer>\n\
             </body>\n</html>\n",
            body = self.body,
            version = env!("CARGO_PKG_VERSION"),
        )
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a `String` can't fail.
        let _ = self.body.write_fmt(text);
    }

    /// Begins a chart with its caption; `summary` tells the same in words.
    fn figure(&mut self, title: &str, summary: &str, drawing: &str, height: u32) {
        self.figures += 1;
        let (n, title, summary) = (self.figures, escape(title), escape(summary));
        let width = svg::WIDTH;
        self.push(format_args!(
            "<figure>\n<figcaption>{title}</figcaption>\n\
             <svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"t{n} d{n}\">\n\
             <title id=\"t{n}\">{title}</title>\n<desc id=\"d{n}\">{summary}</desc>\n{drawing}</svg>\n"
        ));
    }
}

impl Section<'_> {
    /// A paragraph.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.page.push(format_args!("<p>{}</p>\n", escape(text)));
        self
    }

    /// Figures to be seen first, each with what it counts.
    pub(crate) fn facts(&mut self, facts: &[(&str, String, Tone)]) -> &mut Self {
        self.page.push(format_args!("<dl class=\"facts\">\n"));
        for (label, value, tone) in facts {
            let (label, value, class) = (escape(label), escape(value), tone.class());
            self.page.push(format_args!("<div class=\"{class}\"><dt>{label}</dt><dd>{value}</dd></div>\n"));
        }
        self.page.push(format_args!("</dl>\n"));
        self
    }

    /// A table in a frame of its own that scrolls.
    pub(crate) fn table(&mut self, table: &Table) -> &mut Self {
        let mut html = String::new();
        table.write(&mut html);
        self.page.body.push_str(&html);
        self
    }

    /// Horizontal bars.
    pub(crate) fn bars(&mut self, bars: &Bars) -> &mut Self {
        let (drawing, height) = bars.draw();
        self.page.figure(&bars.title, &bars.summary(), &drawing, height);
        self.end_figure("")
    }

    /// How often which amounts occur.
    pub(crate) fn histogram(&mut self, histogram: &Histogram) -> &mut Self {
        let (drawing, height) = histogram.draw();
        self.page.figure(&histogram.title, &histogram.summary(), &drawing, height);
        self.end_figure("")
    }

    /// Lines or steps over time.
    pub(crate) fn lines(&mut self, lines: &Lines) -> &mut Self {
        let (drawing, height) = lines.draw();
        self.page.figure(&lines.title, &lines.summary(), &drawing, height);
        self.end_figure(&lines.legend())
    }

    fn end_figure(&mut self, legend: &str) -> &mut Self {
        self.page.push(format_args!("{legend}</figure>\n"));
        self
    }
}

/// Text for HTML, in elements and in quoted attributes. What a browser would act on instead of showing is made visible:
/// control characters, and those that turn the direction of what follows.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if is_acted_upon(c) => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
