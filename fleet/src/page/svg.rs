//! What all drawings share: their width, text that fits, numbers in few characters.

use super::escape;

/// Width of every drawing, in its own units; a browser scales it.
pub(super) const WIDTH: u32 = 600;
/// Width that a character of 12 units takes in the wider ones of the fonts that browsers choose for an interface. Wide scripts
/// take twice that.
const CHAR_WIDTH: f64 = 7.6;

/// The part of `text` that fits into `width` units, and the text's own width then.
pub(super) fn fit(text: &str, width: f64) -> (String, f64) {
    let char_width = |c: char| if (c as u32) < 0x1100 { CHAR_WIDTH } else { 2.0 * CHAR_WIDTH };
    let full: f64 = text.chars().map(char_width).sum();
    if full <= width {
        return (text.to_owned(), full);
    }
    let (mut kept, mut used) = (String::new(), CHAR_WIDTH * 1.5);
    for c in text.chars() {
        if used + char_width(c) > width {
            break;
        }
        used += char_width(c);
        kept.push(c);
    }
    (kept.trim_end().to_owned() + "…", used)
}

/// A coordinate.
pub(super) fn at(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// An amount for people: whole where it is whole, otherwise with one decimal.
pub(super) fn amount(value: f64) -> String {
    if (value - value.round()).abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Text at a point. `anchor` is `start`, `middle` or `end`.
pub(super) fn text(x: f64, y: f64, anchor: &str, class: &str, content: &str) -> String {
    let (x, y, content) = (at(x), at(y), escape(content));
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" class=\"{class}\">{content}</text>\n")
}

/// A straight line.
pub(super) fn line(from: (f64, f64), to: (f64, f64), class: &str) -> String {
    let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(at);
    format!("<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" class=\"{class}\"/>\n")
}
