//! The page for browsers.

use std::fs;
use std::path::Path;

use super::marks::Mark;
use super::summary::{Summary, rough};
use super::{Row, shown};
use crate::failure::Failure;
use crate::files::{self, Readers, dir_of};
use crate::page::{Bars, Cell, Histogram, Page, Table, Tone, moment};

const DAY_SECS: f64 = 86_400.0;

/// About `rows`, with the `listed` ones in its table.
pub(crate) fn page(
    hub: &str,
    target: Option<&str>,
    rows: &[Row],
    listed: &[&Row],
    summary: &Summary,
    now: u64,
) -> Page {
    let what =
        target.map_or_else(|| "all devices".to_owned(), |condition| format!("devices where {condition}"));
    let mut page = Page::new("Fleet status", &format!("{hub}, {what}, {}", moment(now)));
    facts(&mut page, summary);
    charts(&mut page, rows, summary, now);
    marked(&mut page, rows, summary);
    let heading = if listed.len() < rows.len() {
        format!("{} of {} devices", listed.len(), rows.len())
    } else {
        "Devices".to_owned()
    };
    page.section(&heading).table(&identities(listed, now));
    page
}

/// Fails early where no page could be written: before a large hub is read.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let dir = dir_of(path);
    let problem = match (fs::metadata(path), fs::metadata(dir)) {
        (Ok(metadata), _) if metadata.is_dir() => "it is a directory".to_owned(),
        (_, Ok(metadata)) if metadata.is_dir() => return Ok(()),
        (_, Ok(_)) => format!("{} is no directory", dir.display()),
        (_, Err(e)) => format!("{}: {e}", dir.display()),
    };
    Err(Failure::usage(format!("--html {}: {problem}", path.display())).next("name a file to write"))
}

/// Replaces the file as a whole, or leaves it as it was. What is no file, such as a pipe, is written to.
pub(crate) fn write(path: &Path, page: &Page) -> Result<(), Failure> {
    files::replace_or_feed(path, page.to_html().as_bytes(), Readers::Umask).map_err(|e| {
        Failure::failed(format!("write {}: {e}", path.display())).next("make room, or choose another place")
    })
}

fn facts(page: &mut Page, summary: &Summary) {
    let without = summary.identities - summary.with_agent;
    let tone = |count: usize, tone| if count > 0 { tone } else { Tone::Good };
    let age = |secs: Option<u64>| secs.map_or_else(|| "-".to_owned(), rough);
    let mut facts = vec![
        ("looked at", summary.identities.to_string(), Tone::Plain),
        ("connected", summary.connected.to_string(), Tone::Plain),
        ("without an agent", without.to_string(), tone(without, Tone::Muted)),
        ("lagging", summary.lagging.to_string(), tone(summary.lagging, Tone::Warn)),
        ("marked", summary.marked.to_string(), tone(summary.marked, Tone::Bad)),
        ("median age of keys", age(summary.key_ages.median_secs), Tone::Plain),
        ("oldest key in use", age(summary.key_ages.oldest_secs), Tone::Plain),
    ];
    if summary.key_ages.unknown > 0 {
        facts.push(("of unknown age", summary.key_ages.unknown.to_string(), Tone::Warn));
    }
    if summary.not_compared > 0 {
        facts.push(("not compared with the registry", summary.not_compared.to_string(), Tone::Warn));
    }
    page.section("Summary").facts(&facts);
}

fn charts(page: &mut Page, rows: &[Row], summary: &Summary, now: u64) {
    let ages = rows.iter().filter_map(|row| row.observed.active_key_age(now));
    let ages: Vec<f64> = ages.map(|secs| secs as f64 / DAY_SECS).collect();
    let mut versions: Vec<_> =
        summary.versions.iter().map(|(version, count)| (version.as_str(), *count, Tone::Plain)).collect();
    versions.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    let statuses = summary.rotation_statuses.iter().map(|(status, count)| {
        let tone = match *status {
            "committed" | "idle" => Tone::Good,
            "rejected" | "invalid" => Tone::Bad,
            "trying" | "waiting" => Tone::Warn,
            _ => Tone::Muted,
        };
        (if *status == "none" { "no report" } else { *status }, *count, tone)
    });
    let contacts = contacts(rows, now);
    page.section("Keys, agents, contact")
        .histogram(&Histogram::of("Age of the key in use, in days", "days", &ages))
        .bars(&Bars::of_counts("Last rotation", statuses))
        .bars(&Bars::of_counts("Agents by version", versions))
        .bars(&Bars::of_counts("Last contact", contacts));
}

/// How many were last heard of when.
fn contacts(rows: &[Row], now: u64) -> Vec<(&'static str, usize, Tone)> {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    const LIMITS: [(&str, u64, Tone); 4] = [
        ("within an hour", HOUR, Tone::Plain),
        ("within a day", DAY, Tone::Plain),
        ("within a week", 7 * DAY, Tone::Warn),
        ("within a month", 30 * DAY, Tone::Warn),
    ];
    let [mut connected, mut older, mut never] = [0; 3];
    let mut within = LIMITS.map(|(label, _, tone)| (label, 0, tone));
    for row in rows {
        let Some(age) = row.observed.contact_age(now) else {
            never += 1;
            continue;
        };
        let place = LIMITS.iter().position(|(_, limit, _)| age <= *limit);
        match place.and_then(|place| within.get_mut(place)) {
            _ if row.observed.is_connected => connected += 1,
            Some((_, count, _)) => *count += 1,
            None => older += 1,
        }
    }
    let first = [("connected", connected, Tone::Good)];
    first
        .into_iter()
        .chain(within)
        .chain([("longer ago", older, Tone::Bad), ("never", never, Tone::Muted)])
        .collect()
}

fn marked(page: &mut Page, rows: &[Row], summary: &Summary) {
    let count_of = |mark: &Mark| summary.marks.get(mark.code()).copied().unwrap_or_default();
    let present: Vec<Mark> = Mark::ALL.into_iter().filter(|mark| count_of(mark) > 0).collect();
    let mut section = page.section("Marks");
    if present.is_empty() {
        section.text("Nothing is marked.");
        return;
    }
    let counts = present.iter().map(|mark| (mark.code(), count_of(mark), mark.tone()));
    section.bars(&Bars::of_counts("Devices by mark", counts));
    let mut meanings = Table::new("Meaning of marks", &["Mark", "Meaning", "#Devices", "Among them"]);
    for mark in present {
        let examples: Vec<String> = rows
            .iter()
            .filter(|row| row.marks.contains(&mark))
            .take(EXAMPLES_MAX)
            .map(|row| row.observed.identity.to_string())
            .collect();
        meanings.push([
            Cell::code(mark.code()).tone(mark.tone()),
            Cell::new(mark.meaning()),
            Cell::new(count_of(&mark).to_string()),
            Cell::new(match count_of(&mark) - examples.len() {
                0 => examples.join(", "),
                more => format!("{} and {more} more", examples.join(", ")),
            }),
        ]);
    }
    section.table(&meanings);
}

/// Most devices that are named for a mark.
const EXAMPLES_MAX: usize = 5;

fn identities(listed: &[&Row], now: u64) -> Table {
    let titles =
        ["Device", "Agent", "Contact", "Lives on", "Key", "#Age", "Other key", "Rotation", "#Offer", "Marks"];
    let mut table = Table::new("Devices", &titles);
    for row in listed {
        let report = row.observed.report();
        let active = report.and_then(|report| report.active);
        let fingerprint = |slot: Option<_>| {
            Cell::code(slot.map_or_else(|| "-".to_owned(), |slot| shown::fingerprint(row, slot)))
        };
        let meanings: Vec<_> = row.marks.iter().map(|mark| mark.meaning()).collect();
        let tone = row.marks.first().map_or(Tone::Muted, |mark| mark.tone());
        let contact = Cell::new(shown::contact(row, now));
        table.push([
            Cell::code(row.observed.identity.to_string()),
            Cell::new(shown::agent(row)),
            match row.observed.last_contact {
                Some(at) => contact.explained(moment(at)),
                None => contact,
            },
            Cell::new(active.map_or_else(|| "-".to_owned(), |slot| slot.to_string())),
            fingerprint(active),
            Cell::new(row.observed.active_key_age(now).map_or_else(|| "-".to_owned(), rough)),
            fingerprint(active.map(|slot| slot.other())),
            Cell::new(shown::rotation(row)),
            Cell::new(shown::offer(row, now)).tone(if row.observed.is_lagging() {
                Tone::Warn
            } else {
                Tone::Plain
            }),
            Cell::new(shown::marks(row)).tone(tone).explained(meanings.join("; ")),
        ]);
    }
    table
}
