//! Plots of figures over time, as SVG that is readable on light and on dark paper.

use std::fmt::Write as _;

/// Width of the picture, and of one panel's drawing in it.
const WIDTH: f64 = 880.0;
const DRAWING: (f64, f64) = (70.0, 720.0);
/// Height of a panel, of its drawing, and of the room for the time axis.
const PANEL_HEIGHT: f64 = 210.0;
const DRAWING_HEIGHT: f64 = 150.0;
const DRAWING_TOP: f64 = 40.0;
const FOOT: f64 = 40.0;
/// Points of a line; of more figures than that, the largest of each stretch is drawn.
const POINTS_MAX: usize = 720;
/// Lines of a grid, about.
const GRID: f64 = 5.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}.title{font-weight:600;font-size:13px}\
.grid{stroke:#d0d7de;stroke-width:1}.line{fill:none;stroke-width:1.5}.s0{stroke:#0550ae}.s1{stroke:#bc4c00}\
.t0{fill:#0550ae}.t1{fill:#bc4c00}.mark{stroke:#8c959f;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.s0{stroke:#79c0ff}.s1{stroke:#ffa657}\
.t0{fill:#79c0ff}.t1{fill:#ffa657}.mark{stroke:#6e7681}}";

/// Some figures over the same time.
#[derive(Debug)]
pub struct Panel<'a> {
    /// What is drawn, with its unit.
    pub title: &'a str,
    /// At most two lines: a name and as many figures as the other one, from the beginning to the end.
    pub lines: Vec<(&'a str, Vec<f64>)>,
}

/// The panels below each other over one axis of `secs` seconds, and `marks` at these seconds, which `mark` names.
pub fn svg(panels: &[Panel<'_>], secs: f64, marks: &[f64], mark: &str) -> String {
    let height = PANEL_HEIGHT * panels.len() as f64 + FOOT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<style>{STYLE}</style>\n"
    );
    let (left, width) = DRAWING;
    let x_of = |second: f64| left + width * second / secs;
    let step = nice(secs / GRID, &[1.0, 2.0, 5.0, 10.0, 15.0, 30.0]);
    let (unit, divisor) = if secs >= 600.0 { ("min", 60.0) } else { ("s", 1.0) };
    for (number, panel) in panels.iter().enumerate() {
        let top = PANEL_HEIGHT * number as f64 + DRAWING_TOP;
        let bottom = top + DRAWING_HEIGHT;
        draw(&mut svg, panel, top, x_of, secs);
        let mut second = 0.0;
        while second <= secs {
            let x = x_of(second);
            line(&mut svg, "grid", [(x, top), (x, bottom)]);
            text(&mut svg, "middle", "", (x, bottom + 16.0), &format!("{} {unit}", second / divisor));
            second += step;
        }
        for second in marks {
            line(&mut svg, "mark", [(x_of(*second), bottom - 6.0), (x_of(*second), bottom)]);
        }
    }
    text(&mut svg, "start", "", (left, height - 12.0), &format!("Ticks above the time axis: {mark}"));
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, panel: &Panel<'_>, top: f64, x_of: impl Fn(f64) -> f64, secs: f64) {
    let (left, width) = DRAWING;
    let bottom = top + DRAWING_HEIGHT;
    let largest = panel.lines.iter().flat_map(|(_, figures)| figures).copied().fold(1.0, f64::max);
    let step = nice(largest / GRID, &[1.0, 2.0, 5.0]);
    let limit = (largest / step).ceil() * step;
    let y_of = |figure: f64| bottom - DRAWING_HEIGHT * figure / limit;
    text(svg, "start", "title", (left, top - 16.0), panel.title);
    let mut figure = 0.0;
    while figure <= limit {
        line(svg, "grid", [(left, y_of(figure)), (left + width, y_of(figure))]);
        text(svg, "end", "", (left - 8.0, y_of(figure) + 4.0), &figure.to_string());
        figure += step;
    }
    for (number, (name, figures)) in panel.lines.iter().enumerate() {
        let stretch = figures.len().div_ceil(POINTS_MAX).max(1);
        let mut points = String::new();
        for (place, stretched) in figures.chunks(stretch).enumerate() {
            let second = (place * stretch) as f64 * secs / figures.len() as f64;
            let figure = stretched.iter().copied().fold(0.0, f64::max);
            let _ = write!(points, "{:.1},{:.1} ", x_of(second), y_of(figure));
        }
        let _ = writeln!(svg, "<polyline class=\"line s{number}\" points=\"{}\"/>", points.trim_end());
        let last = figures.last().copied().unwrap_or_default();
        let at = (left + width + 6.0, y_of(last) + 4.0);
        text(svg, "start", &format!("t{number}"), at, name);
    }
}

/// The smallest of `steps`, times a power of ten (of sixty from a minute on), that is at least `wanted`.
fn nice(wanted: f64, steps: &[f64]) -> f64 {
    let base = if steps.contains(&30.0) { 60.0 } else { 10.0 };
    let mut scale = 1.0;
    loop {
        if let Some(step) = steps.iter().find(|step| **step * scale >= wanted) {
            return step * scale;
        }
        scale *= base;
    }
}

fn line(svg: &mut String, class: &str, [(x1, y1), (x2, y2)]: [(f64, f64); 2]) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(svg: &mut String, anchor: &str, class: &str, (x, y): (f64, f64), words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>"
    );
}
