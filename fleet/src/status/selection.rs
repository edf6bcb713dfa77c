//! Which identities are listed, and in which order.

use std::cmp::Ordering;

use super::Row;
use crate::cli::{SelectionArgs, SortBy};

/// What passes all filters, in order. Equal ones are in the order of their names.
pub(crate) fn select<'a>(rows: &'a [Row], args: &SelectionArgs, now: u64) -> Vec<&'a Row> {
    let mut listed: Vec<&Row> = rows.iter().filter(|row| is_selected(row, args, now)).collect();
    listed.sort_by(|a, b| {
        let by_name = || name(a).cmp(&name(b));
        let order = match args.sort {
            SortBy::Id => directed(by_name(), args.reverse),
            SortBy::Age => known_first(a, b, args.reverse, |row| row.observed.active_key_age(now)),
            SortBy::Lag => known_first(a, b, args.reverse, |row| row.observed.offer_age(now)),
            SortBy::Contact => known_first(a, b, args.reverse, |row| row.observed.contact_age(now)),
            SortBy::Version => known_first(a, b, args.reverse, |row| {
                row.observed.report().map(|report| version_parts(&report.agent))
            }),
        };
        order.then_with(by_name)
    });
    listed
}

fn is_selected(row: &Row, args: &SelectionArgs, now: u64) -> bool {
    let observed = &row.observed;
    let is_older = args.older_than.is_none_or(|limit| {
        observed.uses_keys() && observed.active_key_age(now).is_none_or(|age| age > limit.as_secs())
    });
    is_older
        && (!args.lagging || observed.is_lagging())
        && (!args.marked || !row.marks.is_empty())
        && (!args.no_agent || !observed.has_agent())
        && (!args.disconnected || !observed.is_connected)
}

fn name(row: &Row) -> (&str, Option<&str>) {
    (&row.observed.identity.device_id, row.observed.identity.module_id.as_deref())
}

/// What is unknown comes last in both directions.
fn known_first<K: Ord>(a: &Row, b: &Row, reverse: bool, key: impl Fn(&Row) -> Option<K>) -> Ordering {
    match (key(a), key(b)) {
        (Some(a), Some(b)) => directed(a.cmp(&b), reverse),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

fn directed(order: Ordering, reverse: bool) -> Ordering {
    if reverse { order.reverse() } else { order }
}

/// `0.9.1` before `0.10.0` before `0.10.0-x`: numbers by their worth, the rest as text.
fn version_parts(text: &str) -> Vec<(u64, String)> {
    text.split(['.', '-', '+', ' ']).map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::observed::Observed;

    const NOW: u64 = 1_795_000_000;

    /// A device whose key was proved so many days ago.
    fn row(id: &str, age_days: Option<u64>, agent: Option<&str>) -> Row {
        let slot = age_days.map(|days| {
            json!({"fingerprint": "01010101010101010101010101010101", "provenAt": crate::page::moment(NOW - days * 86_400)})
        });
        let report = agent.map(|agent| {
            json!({"contract": 1, "agent": agent, "sequence": 1, "status": "idle", "active": slot.as_ref().map(|_| "primary"), "primary": slot})
        });
        let twin = json!({"deviceId": id, "etag": "e", "connectionState": if id.ends_with('c') { "Connected" } else { "Disconnected" },
            "properties": {"desired": {}, "reported": {"keyRenewal": report}}});
        Row { observed: Observed::of_row(twin).unwrap(), marks: Vec::new() }
    }

    fn ids(rows: &[Row], args: &SelectionArgs) -> Vec<String> {
        select(rows, args, NOW).iter().map(|row| row.observed.identity.device_id.clone()).collect()
    }

    fn rows() -> Vec<Row> {
        vec![
            row("b", Some(3), Some("0.10.0")),
            row("a", Some(100), Some("0.9.1")),
            row("nobody", None, None),
            row("c", None, Some("0.10.0-x")),
        ]
    }

    #[test]
    fn unknown_ages_count_as_older_and_are_listed_last_in_both_directions() {
        let older = SelectionArgs {
            older_than: Some(std::time::Duration::from_secs(90 * 86_400)),
            sort: SortBy::Age,
            ..SelectionArgs::default()
        };
        assert_eq!(ids(&rows(), &older), ["a", "c", "nobody"]);
        let by_age = SelectionArgs { sort: SortBy::Age, ..SelectionArgs::default() };
        assert_eq!(ids(&rows(), &by_age), ["b", "a", "c", "nobody"]);
        let reversed = SelectionArgs { reverse: true, ..by_age };
        assert_eq!(ids(&rows(), &reversed), ["a", "b", "c", "nobody"]);
    }

    #[test]
    fn a_device_with_a_certificate_has_no_key_that_could_be_old() {
        let mut rows = rows();
        rows[2].observed.authentication = Some("selfSigned".to_owned());
        let older_than = Some(std::time::Duration::from_secs(0));
        let older = SelectionArgs { older_than, ..SelectionArgs::default() };
        assert_eq!(ids(&rows, &older), ["a", "b", "c"]);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let by_version = SelectionArgs { sort: SortBy::Version, ..SelectionArgs::default() };
        assert_eq!(ids(&rows(), &by_version), ["a", "b", "c", "nobody"]);
    }

    #[test]
    fn a_narrow_terminal_gets_no_fingerprints_and_all_the_rest() {
        let rows = rows();
        let listed = select(&rows, &SelectionArgs::default(), NOW);
        let width = |columns_max| {
            let (table, is_cut) = crate::status::shown::table(&listed, NOW, columns_max);
            (table.width(), is_cut)
        };
        let (whole, is_cut) = width(None);
        assert!(!is_cut && width(Some(whole)) == (whole, false));
        let (narrow, is_cut) = width(Some(whole - 1));
        assert!(is_cut && narrow + 16 < whole, "{narrow} of {whole}");
    }

    #[test]
    fn filters_hold_together() {
        let idle = SelectionArgs { disconnected: true, ..SelectionArgs::default() };
        assert_eq!(ids(&rows(), &idle), ["a", "b", "nobody"]);
        let nobody = SelectionArgs { no_agent: true, ..idle };
        assert_eq!(ids(&rows(), &nobody), ["nobody"]);
        assert!(ids(&rows(), &SelectionArgs { marked: true, ..SelectionArgs::default() }).is_empty());
    }
}
