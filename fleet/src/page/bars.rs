//! Bars: amounts by name, and how often which amounts occur.

use super::scale::{round_step, ticks};
use super::svg::{WIDTH, amount, at, fit, line, text};
use super::{Tone, escape};

/// Most bars that are drawn; the rest share one.
const BARS_MAX: usize = 16;
/// Most columns of a histogram, without the one for what lies far beyond.
const COLUMNS_MAX: f64 = 14.0;
/// Width of the widest label beside a bar.
const LABEL_WIDTH_MAX: f64 = 220.0;

/// Amounts by name, as horizontal bars in the given order.
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// One of them.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) tone: Tone,
}

/// How many values lie where.
pub(crate) struct Histogram {
    pub(crate) title: String,
    /// Of the values, such as `days`.
    unit: String,
    columns: Vec<Column>,
    count: usize,
}

struct Column {
    from: f64,
    /// `None`: and more.
    to: Option<f64>,
    count: usize,
}

impl Bars {
    /// Counts, in plain bars.
    pub(crate) fn of_counts<'a>(
        title: &str,
        counts: impl IntoIterator<Item = (&'a str, usize, Tone)>,
    ) -> Self {
        let bar = |(label, count, tone): (&str, usize, Tone)| Bar {
            label: label.to_owned(),
            value: count as f64,
            tone,
        };
        Self { title: title.to_owned(), bars: counts.into_iter().map(bar).collect() }
    }

    pub(super) fn summary(&self) -> String {
        if self.bars.is_empty() {
            return "Nothing to show.".to_owned();
        }
        let told = self.bars.iter().take(BARS_MAX).map(|bar| format!("{}: {}", bar.label, amount(bar.value)));
        told.collect::<Vec<_>>().join("; ")
    }

    /// The drawing and its height.
    pub(super) fn draw(&self) -> (String, u32) {
        const ROW: f64 = 26.0;
        if self.bars.is_empty() {
            return nothing();
        }
        let (shown, rest) = self.bars.split_at(self.bars.len().min(BARS_MAX));
        let others = (!rest.is_empty()).then(|| Bar {
            label: format!("{} others", rest.len()),
            value: rest.iter().map(|bar| usable(bar.value)).sum(),
            tone: Tone::Muted,
        });
        let bars: Vec<&Bar> = shown.iter().chain(&others).collect();
        let label_width =
            bars.iter().map(|bar| fit(&bar.label, LABEL_WIDTH_MAX).1).fold(40.0_f64, f64::max) + 10.0;
        let max = bars.iter().map(|bar| usable(bar.value)).fold(0.0, f64::max);
        // Room for the amount behind the longest bar.
        let room = f64::from(WIDTH) - label_width - fit(&amount(max), 200.0).1 - 16.0;
        let mut drawing = String::new();
        for (i, bar) in (0_u32..).zip(&bars) {
            let (y, value) = (4.0 + f64::from(i) * ROW, usable(bar.value));
            let width = if max > 0.0 { value / max * room } else { 0.0 };
            // What is there is seen, however little it is.
            let width = if value > 0.0 { width.max(2.0) } else { 0.0 };
            drawing.push_str(&text(
                label_width - 8.0,
                y + 15.0,
                "end",
                "",
                &fit(&bar.label, LABEL_WIDTH_MAX).0,
            ));
            let (label, told) = (escape(&bar.label), amount(value));
            drawing.push_str(&format!(
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"18\" rx=\"2\" class=\"{}\"><title>{label}: {told}</title></rect>\n",
                at(label_width), at(y + 2.0), at(width), bar.tone.class()
            ));
            drawing.push_str(&text(label_width + width + 6.0, y + 15.0, "start", "soft", &told));
        }
        let height = 8.0 + bars.len() as f64 * ROW;
        drawing.push_str(&line((label_width, 2.0), (label_width, height - 2.0), "axis"));
        (drawing, height as u32)
    }
}

impl Histogram {
    /// Of these values; what is negative or no number is left out. A few values far beyond all others share the last
    /// column, so that the others can be told apart.
    pub(crate) fn of(title: &str, unit: &str, values: &[f64]) -> Self {
        let mut values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite() && *v >= 0.0).collect();
        values.sort_by(f64::total_cmp);
        let max = values.last().copied().unwrap_or_default();
        let most = values.get(values.len() * 9 / 10).copied().unwrap_or_default();
        let (end, has_beyond) = if max > 4.0 * most && most > 0.0 { (most, true) } else { (max, false) };
        let step = round_step((end / COLUMNS_MAX).max(1.0), true);
        let columns_len = ((end / step).floor() as usize + 1).min(COLUMNS_MAX as usize + 1);
        let mut columns: Vec<Column> = (0..columns_len)
            .map(|i| Column { from: i as f64 * step, to: Some((i + 1) as f64 * step), count: 0 })
            .collect();
        if has_beyond {
            columns.push(Column { from: columns_len as f64 * step, to: None, count: 0 });
        }
        let last = columns.len() - 1;
        for value in &values {
            if let Some(column) = columns.get_mut(((value / step).floor() as usize).min(last)) {
                column.count += 1;
            }
        }
        Self { title: title.to_owned(), unit: unit.to_owned(), columns, count: values.len() }
    }

    pub(super) fn summary(&self) -> String {
        if self.count == 0 {
            return "Nothing to show.".to_owned();
        }
        let told = self.columns.iter().filter(|column| column.count > 0);
        let told: Vec<_> =
            told.map(|column| format!("{}: {}", column.range(&self.unit), column.count)).collect();
        told.join("; ")
    }

    /// The drawing and its height.
    pub(super) fn draw(&self) -> (String, u32) {
        const TOP: f64 = 18.0;
        const PLOT: f64 = 180.0;
        const FLOOR: f64 = TOP + PLOT;
        if self.count == 0 {
            return nothing();
        }
        let max = self.columns.iter().map(|column| column.count).max().unwrap_or_default() as f64;
        let ticks = ticks(max, 4.0, true);
        let top = ticks.last().copied().unwrap_or(1.0);
        let left = fit(&amount(top), 200.0).1 + 12.0;
        let column_width = ((f64::from(WIDTH) - left - 30.0) / self.columns.len() as f64).min(90.0);
        let right = left + column_width * self.columns.len() as f64;
        let y_of = |value: f64| FLOOR - value / top * PLOT;
        let mut drawing = String::new();
        for tick in ticks {
            let class = if tick > 0.0 { "grid" } else { "axis" };
            drawing.push_str(&line((left, y_of(tick)), (right, y_of(tick)), class));
            drawing.push_str(&text(left - 8.0, y_of(tick) + 4.0, "end", "soft", &amount(tick)));
        }
        // Labels stand under the borders between columns, as many as have room.
        let label_width = fit(&amount(self.columns.last().map_or(0.0, |column| column.from)), 200.0).1 + 14.0;
        let every = (label_width / column_width).ceil().max(1.0) as usize;
        for (i, column) in self.columns.iter().enumerate() {
            let (x, y) = (left + i as f64 * column_width, y_of(column.count as f64));
            let (height, range) = (FLOOR - y, escape(&column.range(&self.unit)));
            let tone = if column.to.is_some() { Tone::Plain } else { Tone::Warn };
            if column.count > 0 {
                let height = height.max(2.0);
                drawing.push_str(&format!(
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{}\"><title>{range}: {}</title></rect>\n",
                    at(x + 1.0), at(FLOOR - height), at(column_width - 2.0), at(height), tone.class(), column.count
                ));
                drawing.push_str(&text(
                    x + column_width / 2.0,
                    FLOOR - height - 5.0,
                    "middle",
                    "soft",
                    &column.count.to_string(),
                ));
            }
            match column.to {
                None => drawing.push_str(&text(
                    x + column_width / 2.0,
                    FLOOR + 16.0,
                    "middle",
                    "soft",
                    &format!("≥ {}", amount(column.from)),
                )),
                Some(_) if i.is_multiple_of(every) => {
                    drawing.push_str(&text(x, FLOOR + 16.0, "middle", "soft", &amount(column.from)));
                }
                Some(_) => {}
            }
        }
        if let Some(Column { to: Some(to), .. }) = self.columns.last()
            && self.columns.len().is_multiple_of(every)
        {
            drawing.push_str(&text(right, FLOOR + 16.0, "middle", "soft", &amount(*to)));
        }
        drawing.push_str(&text((left + right) / 2.0, FLOOR + 36.0, "middle", "soft", &self.unit));
        (drawing, (FLOOR + 44.0) as u32)
    }
}

impl Column {
    fn range(&self, unit: &str) -> String {
        match self.to {
            Some(to) => format!("{} to {} {unit}", amount(self.from), amount(to)),
            None => format!("{} {unit} and more", amount(self.from)),
        }
    }
}

/// Amounts are not negative, and finite.
fn usable(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

fn nothing() -> (String, u32) {
    (text(0.0, 16.0, "start", "soft", "Nothing to show."), 24)
}
