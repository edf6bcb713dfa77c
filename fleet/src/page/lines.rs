//! Amounts over time.

use super::scale::{moment, ticks, time_ticks};
use super::svg::{WIDTH, amount, at, fit, line, text};
use super::{Tone, escape};

/// Most points of a series that get a mark and a text of their own.
const MARKS_MAX: usize = 60;

/// Amounts over time, from 0 up.
pub(crate) struct Lines {
    pub(crate) title: String,
    /// Of the amounts, such as `devices`.
    pub(crate) unit: String,
    pub(crate) series: Vec<Series>,
}

/// One of them.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) tone: Tone,
    /// Unix seconds and amount, in the order of time.
    pub(crate) points: Vec<(u64, f64)>,
    /// The amount stays until the next point: steps instead of slopes.
    pub(crate) is_step: bool,
}

/// Where things are in the drawing.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    floor: f64,
    from_secs: u64,
    to_secs: u64,
    max: f64,
}

impl Frame {
    fn x(&self, at_secs: u64) -> f64 {
        let span = self.to_secs.saturating_sub(self.from_secs).max(1) as f64;
        self.left + at_secs.saturating_sub(self.from_secs) as f64 / span * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.floor - value / self.max * (self.floor - self.top)
    }
}

impl Lines {
    /// When the first and the last point are.
    fn span(&self) -> Option<(u64, u64)> {
        let times = || self.series.iter().flat_map(|series| &series.points).map(|(at, _)| *at);
        Some((times().min()?, times().max()?))
    }

    pub(super) fn summary(&self) -> String {
        let Some((from, to)) = self.span() else { return "Nothing to show.".to_owned() };
        let ends = self.series.iter().filter_map(|series| {
            let (_, last) = series.points.last()?;
            Some(format!("{} at the end: {} {}", series.name, amount(*last), self.unit))
        });
        let ends: Vec<_> = ends.collect();
        format!("From {} to {}. {}", moment(from), moment(to), ends.join("; "))
    }

    /// Which line is which; nothing for a single one, which the caption names.
    pub(super) fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let entry = |(i, series): (usize, &Series)| {
            let (class, dash, name) = (series.tone.class(), dash_of(i), escape(&series.name));
            format!(
                "<li><svg viewBox=\"0 0 28 10\" aria-hidden=\"true\"><path d=\"M0 5H28\" class=\"{class}\"{dash}/></svg>{name}</li>\n"
            )
        };
        let entries: String = self.series.iter().enumerate().map(entry).collect();
        format!("<ul class=\"legend\">\n{entries}</ul>\n")
    }

    /// The drawing and its height.
    pub(super) fn draw(&self) -> (String, u32) {
        let Some((from_secs, to_secs)) = self.span() else {
            return (text(0.0, 16.0, "start", "soft", "Nothing to show."), 24);
        };
        // A single moment is drawn in the middle of a minute.
        let (from_secs, to_secs) = if from_secs == to_secs {
            (from_secs.saturating_sub(30), to_secs + 30)
        } else {
            (from_secs, to_secs)
        };
        let values = self.series.iter().flat_map(|series| &series.points).map(|(_, value)| *value);
        let max = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let y_ticks = ticks(max, 4.0, true);
        let max = y_ticks.last().copied().unwrap_or(1.0);
        let frame = Frame {
            left: fit(&amount(max), 200.0).1 + 12.0,
            right: f64::from(WIDTH) - 40.0,
            top: 30.0,
            floor: 220.0,
            from_secs,
            to_secs,
            max,
        };
        let mut drawing = text(0.0, 11.0, "start", "soft", &self.unit);
        for tick in y_ticks {
            let class = if tick > 0.0 { "grid" } else { "axis" };
            drawing.push_str(&line((frame.left, frame.y(tick)), (frame.right, frame.y(tick)), class));
            drawing.push_str(&text(frame.left - 8.0, frame.y(tick) + 4.0, "end", "soft", &amount(tick)));
        }
        for (tick, label) in time_ticks(from_secs, to_secs, 5) {
            let x = frame.x(tick);
            drawing.push_str(&line((x, frame.floor), (x, frame.floor + 4.0), "axis"));
            drawing.push_str(&text(x, frame.floor + 18.0, "middle", "soft", &label));
        }
        for (i, series) in self.series.iter().enumerate() {
            drawing.push_str(&series.draw(&frame, dash_of(i), &self.unit));
        }
        let span = format!("{} to {} (UTC)", moment(from_secs), moment(to_secs));
        drawing.push_str(&text(
            (frame.left + frame.right) / 2.0,
            frame.floor + 38.0,
            "middle",
            "soft",
            &span,
        ));
        (drawing, 266)
    }
}

impl Series {
    fn draw(&self, frame: &Frame, dash: &str, unit: &str) -> String {
        let points: Vec<_> =
            self.points.iter().copied().filter(|(_, value)| value.is_finite() && *value >= 0.0).collect();
        let (mut path, class) = (String::new(), self.tone.class());
        for (x, y) in thinned(points.iter().map(|(at, value)| (frame.x(*at), frame.y(*value)))) {
            let (x, y) = (at(x), at(y));
            path.push_str(&match (path.is_empty(), self.is_step) {
                (true, _) => format!("M{x} {y}"),
                (false, true) => format!("H{x}V{y}"),
                (false, false) => format!("L{x} {y}"),
            });
        }
        if self.is_step && !path.is_empty() {
            path.push_str(&format!("H{}", at(frame.right)));
        }
        let name = escape(&self.name);
        let mut drawing =
            format!("<path d=\"{path}\" class=\"{class}\"{dash}><title>{name}</title></path>\n");
        if points.len() <= MARKS_MAX {
            for (secs, value) in points {
                let told = format!("{}: {} {unit}, {}", self.name, amount(value), moment(secs));
                drawing.push_str(&format!(
                    "<circle cx=\"{}\" cy=\"{}\" r=\"3.5\" class=\"{class}\"><title>{}</title></circle>\n",
                    at(frame.x(secs)),
                    at(frame.y(value)),
                    escape(&told)
                ));
            }
        }
        drawing
    }
}

/// Of all points that share a column of the screen, the first, the lowest, the highest and the last.
fn thinned(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut column: Vec<(f64, f64)> = Vec::new();
    let mut flush = |column: &mut Vec<(f64, f64)>| {
        if column.len() <= 4 {
            kept.append(column);
            return;
        }
        let by = |a: &usize, b: &usize| match (column.get(*a), column.get(*b)) {
            (Some(a), Some(b)) => a.1.total_cmp(&b.1),
            _ => std::cmp::Ordering::Equal,
        };
        let mut chosen = vec![0, column.len() - 1];
        chosen.extend((0..column.len()).min_by(by));
        chosen.extend((0..column.len()).max_by(by));
        chosen.sort_unstable();
        chosen.dedup();
        kept.extend(chosen.into_iter().filter_map(|i| column.get(i)));
        column.clear();
    };
    for point in points {
        if column.first().is_some_and(|first| first.0.floor() < point.0.floor()) {
            flush(&mut column);
        }
        column.push(point);
    }
    flush(&mut column);
    kept
}

/// Lines differ by more than colour.
fn dash_of(i: usize) -> &'static str {
    match i % 4 {
        0 => "",
        1 => " stroke-dasharray=\"6 3\"",
        2 => " stroke-dasharray=\"2 3\"",
        _ => " stroke-dasharray=\"9 3 2 3\"",
    }
}
