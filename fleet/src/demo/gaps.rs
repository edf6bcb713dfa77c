//! How long the hub had no live connection of the device, and what became of numbered messages. Pure arithmetic.

use std::collections::BTreeMap;

use serde::Serialize;

/// From when to when a connection lived, in the hub's milliseconds; no end while it lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) from_ms: f64,
    pub(crate) to_ms: Option<f64>,
}

/// The longest time within `from_ms..to_ms` in which no connection lived, in milliseconds.
pub(crate) fn longest_dark_ms(spans: &[Span], from_ms: f64, to_ms: f64) -> f64 {
    let mut spans = spans.to_vec();
    spans.sort_by(|a, b| a.from_ms.total_cmp(&b.from_ms));
    let mut lit_until_ms = from_ms;
    let mut longest_ms: f64 = 0.0;
    for span in spans.iter().filter(|span| span.from_ms < to_ms) {
        longest_ms = longest_ms.max(span.from_ms - lit_until_ms);
        lit_until_ms = lit_until_ms.max(span.to_ms.unwrap_or(to_ms));
    }
    longest_ms.max(to_ms - lit_until_ms).max(0.0)
}

/// What became of the numbered messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Messages {
    /// Handed to the agent, and not refused by it.
    pub(crate) sent: u64,
    /// Different ones that the hub has.
    pub(crate) received: u64,
    /// Sent, but the hub does not have them.
    pub(crate) lost: u64,
    /// Copies beyond the first of each.
    pub(crate) duplicated: u64,
}

/// Compares by number.
pub(crate) fn compare(
    sent: impl IntoIterator<Item = u64>,
    received: impl IntoIterator<Item = u64>,
) -> Messages {
    let mut copies: BTreeMap<u64, u64> = BTreeMap::new();
    for number in received {
        *copies.entry(number).or_default() += 1;
    }
    let mut messages = Messages { received: copies.len() as u64, ..Messages::default() };
    messages.duplicated = copies.values().map(|count| count - 1).sum();
    for number in sent {
        messages.sent += 1;
        messages.lost += u64::from(!copies.contains_key(&number));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from_ms: f64, to_ms: f64) -> Span {
        Span { from_ms, to_ms: to_ms.is_finite().then_some(to_ms) }
    }

    #[test]
    fn connections_that_touch_leave_no_gap() {
        let spans = [span(5.0, 10.0), span(0.0, 5.0), span(10.0, f64::INFINITY)];
        assert_eq!(longest_dark_ms(&spans, 1.0, 20.0), 0.0);
    }

    #[test]
    fn the_longest_gap_counts_wherever_it_lies() {
        assert_eq!(longest_dark_ms(&[span(3.0, 4.0), span(6.0, 9.0)], 0.0, 10.0), 3.0, "before the first");
        assert_eq!(longest_dark_ms(&[span(0.0, 4.0), span(8.5, 9.0)], 0.0, 10.0), 4.5, "in between");
        assert_eq!(longest_dark_ms(&[span(0.0, 4.0)], 0.0, 10.0), 6.0, "after the last");
        assert_eq!(longest_dark_ms(&[], 2.0, 10.0), 8.0, "never lit");
    }

    #[test]
    fn what_lies_outside_the_window_does_not_count() {
        let spans = [span(0.0, 1.0), span(4.0, 9.0), span(30.0, 40.0)];
        assert_eq!(longest_dark_ms(&spans, 5.0, 8.0), 0.0);
        assert_eq!(longest_dark_ms(&spans, 2.0, 5.0), 2.0);
        assert_eq!(longest_dark_ms(&spans, 8.0, 20.0), 11.0);
    }

    #[test]
    fn a_short_connection_inside_a_long_one_hides_nothing() {
        assert_eq!(longest_dark_ms(&[span(0.0, 10.0), span(2.0, 3.0)], 0.0, 10.0), 0.0);
    }

    #[test]
    fn messages_are_compared_by_number() {
        let expected = Messages { sent: 4, received: 3, lost: 1, duplicated: 2 };
        assert_eq!(compare([1, 2, 3, 4], [4, 2, 2, 1, 2]), expected);
        assert_eq!(compare([], []), Messages::default());
    }
}
