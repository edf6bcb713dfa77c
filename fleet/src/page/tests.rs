#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use super::*;

const HOSTILE: &str = "<script>alert('x')</script>\u{1b}[2J\u{0}\u{202e}\"' onload=\"x&y";

/// A page with everything on it, made of `rows` devices with this name.
fn sample(rows: usize, name: &str) -> Page {
    let mut page = Page::new(&format!("Fleet status {name}"), &format!("hub {name}, 2026-11-20T10:00:00Z"));
    page.section(&format!("Summary {name}")).text(name).facts(&[
        ("devices", rows.to_string(), Tone::Plain),
        ("healthy", rows.to_string(), Tone::Good),
        ("lagging", (rows / 9).to_string(), Tone::Warn),
        ("marked", (rows / 30).to_string(), Tone::Bad),
        (name, name.to_owned(), Tone::Muted),
    ]);
    let ages: Vec<f64> =
        (0..rows).map(|i| (i * 37 % 90) as f64 + if i % 97 == 0 { 800.0 } else { 0.0 }).collect();
    let named = |i: usize| format!("{name}-{i}");
    let labels: Vec<String> = (0..rows.min(50)).map(named).collect();
    let tones = [Tone::Plain, Tone::Good, Tone::Warn, Tone::Bad, Tone::Muted];
    let bars = labels.iter().enumerate().map(|(i, label)| (label.as_str(), i * i, tones[i % 5]));
    let series = |name: &str, factor: u64, is_step| Series {
        name: name.to_owned(),
        tone: tones[factor as usize % 5],
        points: (0..rows as u64).map(|i| (1_795_000_000 + i * 60, (i * factor % 977) as f64)).collect(),
        is_step,
    };
    page.section("Charts")
        .histogram(&Histogram::of(&format!("Ages {name}"), "days", &ages))
        .bars(&Bars::of_counts(&format!("Versions {name}"), bars))
        .lines(&Lines {
            title: format!("Waves {name}"),
            unit: "devices".to_owned(),
            series: vec![series(name, 1, true), series("another", 3, false)],
        });
    let mut table = Table::new(&format!("Devices {name}"), &["Device", "#Age in days", "State", "Marks"]);
    for i in 0..rows {
        let marks = Cell::new(if i % 7 == 0 { "restored" } else { "" }).tone(Tone::Bad).explained(name);
        table.push([
            Cell::code(named(i)),
            Cell::new((i * 37 % 90).to_string()),
            Cell::new("committed"),
            marks,
        ]);
    }
    page.section("Devices").table(&table);
    page
}

/// The page without its style, as tags and text.
fn body(page: &Page) -> String {
    let html = page.to_html();
    html[html.find("<header>").unwrap()..].to_owned()
}

#[test]
fn nothing_that_a_hub_says_becomes_markup() {
    let html = sample(3, HOSTILE).to_html();
    assert!(!html.to_lowercase().contains("<script"));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
    assert!(html.chars().all(|c| c == '\n' || !c.is_control()), "control characters reach the page");
    assert!(!html.contains('\u{202e}'), "text that turns the direction of what follows reaches the page");
    assert!(!html.contains(" onload=\""), "an attribute was broken out of");
}

#[test]
fn a_page_is_complete_by_itself_and_forbids_everything_else() {
    let html = sample(20, "pump").to_html();
    assert!(html.contains(
        "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'"
    ));
    for outside in ["http://", "https://", "url(", "@import", "src=", "href="] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("@media print"));
}

#[test]
fn every_element_that_begins_ends_and_every_drawing_has_a_name() {
    for rows in [0, 1, 2, 40, 3000] {
        let html = body(&sample(rows, HOSTILE));
        let mut open: Vec<&str> = Vec::new();
        for tag in html.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert!(open.pop() == Some(name) || ["body", "html"].contains(&name), "{rows} rows: {name}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{rows} rows: {open:?}");
        let drawings = html.matches("role=\"img\"").count();
        assert_eq!(drawings, 3);
        for i in 1..=drawings {
            assert!(html.contains(&format!("aria-labelledby=\"t{i} d{i}\"")));
            assert!(
                html.contains(&format!("<title id=\"t{i}\">"))
                    && html.contains(&format!("<desc id=\"d{i}\">"))
            );
        }
        assert!(!html.contains("NaN") && !html.contains("inf\""), "{rows} rows");
    }
}

#[test]
fn long_tables_and_charts_are_cut_and_say_so() {
    let html = sample(10_000, "pump").to_html();
    assert!(html.contains("The first 2000 of 10000 rows"));
    assert_eq!(html.matches("<tr>").count(), 2001);
    assert!(html.contains("34 others"));
    assert!(html.len() < 1_500_000, "{} bytes", html.len());
    assert!(body(&sample(0, "pump")).contains("none</td>"));
}

#[test]
fn a_histogram_counts_every_value_once_and_keeps_far_ones_apart() {
    let values: Vec<f64> = (0..200).map(f64::from).chain([f64::NAN, -1.0]).collect();
    let count = |histogram: &Histogram| -> usize {
        histogram
            .summary()
            .split("; ")
            .map(|part| part.rsplit_once(": ").unwrap().1.parse::<usize>().unwrap())
            .sum()
    };
    let histogram = Histogram::of("t", "days", &values);
    assert_eq!(count(&histogram), 200, "{}", histogram.summary());
    let mut values = vec![3.0; 100];
    values.push(5000.0);
    let histogram = Histogram::of("t", "days", &values);
    assert_eq!(histogram.summary(), "3 to 4 days: 100; 4 days and more: 1");
    assert_eq!(Histogram::of("t", "days", &[0.0; 4]).summary(), "0 to 1 days: 4");
}

#[test]
#[ignore = "writes pages to look at: TWINKEY_PAGES=DIR cargo test -p twinkey page -- --ignored"]
fn pages_to_look_at() {
    let dir = std::path::PathBuf::from(std::env::var_os("TWINKEY_PAGES").unwrap());
    for rows in [0, 1, 12, 300, 10_000] {
        std::fs::write(dir.join(format!("page-{rows}.html")), sample(rows, "pump").to_html()).unwrap();
    }
    std::fs::write(dir.join("page-hostile.html"), sample(12, HOSTILE).to_html()).unwrap();
}
