//! Maintenance windows: the hours in which something new may be begun.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

use super::span::told;

/// Days that are looked ahead for the next window: each weekday comes once, and one more for windows that are over.
const DAYS_AHEAD: i32 = 8;

/// Hours that return every week. It begins on each of `days` at `from` and lasts until `until`, which is on the next day where it
/// is not later than `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Window {
    days: Vec<Day>,
    from: String,
    /// `24:00` is the end of the day.
    until: String,
    /// A name of the tz database.
    time_zone: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    fn of(weekday: Weekday) -> Self {
        match weekday {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// The tz database of the program: a gateway's or a container's may be missing or old.
fn zone(name: &str) -> Result<TimeZone, String> {
    static BUNDLED: OnceLock<jiff::tz::TimeZoneDatabase> = OnceLock::new();
    let bundled = BUNDLED.get_or_init(jiff::tz::TimeZoneDatabase::bundled);
    bundled.get(name).map_err(|_| {
        format!("time_zone {name:?} is none that the tz database knows, such as \"Europe/Berlin\"")
    })
}

/// A time of day; `None` is the end of the day.
fn time(field: &str, text: &str) -> Result<Option<Time>, String> {
    let odd = || format!("{field} {text:?} is no time of day: write it like 22:00");
    if field == "until" && text == "24:00" {
        return Ok(None);
    }
    let (hour, minute) =
        text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2).ok_or_else(odd)?;
    let number = |text: &str| text.parse::<i8>().ok().filter(|number| *number >= 0 && !text.starts_with('+'));
    let (hour, minute) = number(hour).zip(number(minute)).ok_or_else(odd)?;
    Time::new(hour, minute, 0, 0).map(Some).map_err(|_| odd())
}

impl Window {
    pub(crate) fn check(&self) -> Result<(), String> {
        let fail = |text: String| Err(format!("a window's {text}"));
        if self.days.is_empty() {
            return fail("days is empty".to_owned());
        }
        let (from, until) = match (time("from", &self.from), time("until", &self.until)) {
            (Ok(from), Ok(until)) => (from, until),
            (Err(text), _) | (_, Err(text)) => return fail(text),
        };
        if from == until {
            return fail(
                "from and until are the same: for a whole day, write from = \"00:00\" and until = \"24:00\""
                    .to_owned(),
            );
        }
        zone(&self.time_zone).map(drop).or_else(fail)
    }

    /// Its stretch that begins on this day, if it does on this weekday. A time that clocks leave out is taken for one that comes
    /// as much later; of a time that comes twice, the first is meant.
    fn on(&self, date: Date, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
        if !self.days.contains(&Day::of(date.weekday())) {
            return None;
        }
        let from = time("from", &self.from).ok()??;
        let (last, until) = match time("until", &self.until).ok()? {
            Some(until) if until > from => (date, until),
            Some(until) => (date.tomorrow().ok()?, until),
            None => (date.tomorrow().ok()?, Time::midnight()),
        };
        let at =
            |date: Date, time: Time| zone.to_ambiguous_timestamp(date.to_datetime(time)).compatible().ok();
        Some((at(date, from)?, at(last, until)?))
    }

    /// When it is open next: the stretch that holds `now`, or the first one after it.
    fn next(&self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let zone = zone(&self.time_zone).ok()?;
        let today = now.to_zoned(zone.clone()).date();
        let days = (-1..=DAYS_AHEAD).filter_map(|days| today.checked_add(days.days()).ok());
        days.filter_map(|date| self.on(date, &zone)).find(|(from, until)| until > &now && until > from)
    }
}

/// Whether something new may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Open,
    /// Not before this time, in Unix milliseconds.
    From(u64),
    /// No window ever opens.
    Never,
}

/// Whether one of `windows` is open; without any, always.
pub(crate) fn opening(windows: &[Window], now_unix_ms: u64) -> Opening {
    if windows.is_empty() {
        return Opening::Open;
    }
    let Some(now) = i64::try_from(now_unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
    else {
        return Opening::Never;
    };
    let Some(from) = windows.iter().filter_map(|window| window.next(now)).map(|(from, _)| from).min() else {
        return Opening::Never;
    };
    if from <= now {
        Opening::Open
    } else {
        Opening::From(u64::try_from(from.as_millisecond()).unwrap_or(u64::MAX))
    }
}

/// When something new may be begun, for people; nothing while that is now.
pub(crate) fn told_opening(windows: &[Window], now_unix_ms: u64) -> Option<String> {
    match opening(windows, now_unix_ms) {
        Opening::Open => None,
        Opening::From(at) => {
            let left = Duration::from_millis(at.saturating_sub(now_unix_ms));
            Some(format!("outside all windows: the next one opens in {}", told(left)))
        }
        Opening::Never => Some("no window ever opens".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &[Day], from: &str, until: &str, zone: &str) -> Window {
        let window = Window {
            days: days.to_vec(),
            from: from.to_owned(),
            until: until.to_owned(),
            time_zone: zone.to_owned(),
        };
        window.check().unwrap();
        window
    }

    fn ms(text: &str) -> u64 {
        text.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap()
    }

    #[track_caller]
    fn assert_openings(window: &Window, open: &[&str], closed: &[(&str, &str)]) {
        let windows = std::slice::from_ref(window);
        for at in open {
            assert_eq!(opening(windows, ms(at)), Opening::Open, "{at}");
        }
        for (at, next) in closed {
            assert_eq!(opening(windows, ms(at)), Opening::From(ms(next)), "{at}");
        }
    }

    #[test]
    fn without_a_window_it_is_always_open() {
        assert_eq!(opening(&[], 0), Opening::Open);
    }

    #[test]
    fn a_window_that_crosses_midnight_belongs_to_the_day_on_which_it_begins() {
        // 2026-11-20 is a Friday.
        let night = window(&[Day::Fri], "22:00", "04:00", "UTC");
        assert_openings(
            &night,
            &["2026-11-20T22:00:00Z", "2026-11-20T23:59:59Z", "2026-11-21T00:00:00Z", "2026-11-21T03:59:59Z"],
            &[
                ("2026-11-20T21:59:59Z", "2026-11-20T22:00:00Z"),
                ("2026-11-20T03:00:00Z", "2026-11-20T22:00:00Z"),
                ("2026-11-21T04:00:00Z", "2026-11-27T22:00:00Z"),
                ("2026-11-21T23:00:00Z", "2026-11-27T22:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_whole_day_ends_at_midnight_of_its_zone() {
        let day = window(&[Day::Sun], "00:00", "24:00", "Asia/Tokyo");
        assert_openings(
            &day,
            &["2026-11-21T15:00:00Z", "2026-11-22T14:59:59Z"],
            &[
                ("2026-11-21T14:59:59Z", "2026-11-21T15:00:00Z"),
                ("2026-11-22T15:00:00Z", "2026-11-28T15:00:00Z"),
            ],
        );
    }

    #[test]
    fn windows_keep_to_the_clock_on_the_wall_when_clocks_change() {
        let every = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
        let morning = window(&every, "06:00", "07:00", "Europe/Berlin");
        // Clocks go forward on 2026-03-29 and back on 2026-10-25.
        assert_openings(
            &morning,
            &["2026-03-28T05:30:00Z", "2026-03-29T04:30:00Z", "2026-10-24T04:30:00Z", "2026-10-25T05:30:00Z"],
            &[
                ("2026-03-28T06:30:00Z", "2026-03-29T04:00:00Z"),
                ("2026-10-25T04:30:00Z", "2026-10-25T05:00:00Z"),
            ],
        );
    }

    #[test]
    fn hours_that_clocks_leave_out_come_later_and_hours_that_come_twice_last_longer() {
        let gap = window(&[Day::Sun], "02:15", "02:45", "Europe/Berlin");
        assert_openings(
            &gap,
            &["2026-03-29T01:15:00Z", "2026-03-29T01:44:59Z"],
            &[
                ("2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z"),
                ("2026-03-29T01:45:00Z", "2026-04-05T00:15:00Z"),
            ],
        );
        let twice = window(&[Day::Sun], "02:00", "03:00", "Europe/Berlin");
        assert_openings(
            &twice,
            &["2026-10-25T00:00:00Z", "2026-10-25T01:59:59Z"],
            &[
                ("2026-10-24T23:59:59Z", "2026-10-25T00:00:00Z"),
                ("2026-10-25T02:00:00Z", "2026-11-01T01:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_stretch_that_clocks_leave_out_as_a_whole_opens_the_next_week() {
        let lost = window(&[Day::Sun], "02:30", "03:30", "Europe/Berlin");
        assert_openings(&lost, &[], &[("2026-03-29T00:59:00Z", "2026-04-05T00:30:00Z")]);
    }

    #[test]
    fn the_earliest_of_several_windows_counts() {
        let windows =
            [window(&[Day::Mon], "10:00", "11:00", "UTC"), window(&[Day::Sun], "10:00", "11:00", "UTC")];
        assert_eq!(opening(&windows, ms("2026-11-21T12:00:00Z")), Opening::From(ms("2026-11-22T10:00:00Z")));
    }

    #[test]
    fn mistakes_are_named() {
        let good = window(&[Day::Mon], "10:00", "11:00", "UTC");
        for (wrong, word) in [
            (Window { days: vec![], ..good.clone() }, "days"),
            (Window { from: "24:00".to_owned(), ..good.clone() }, "from"),
            (Window { from: "9:00".to_owned(), ..good.clone() }, "from"),
            (Window { until: "25:00".to_owned(), ..good.clone() }, "until"),
            (Window { until: "10:00".to_owned(), ..good.clone() }, "the same"),
            (Window { time_zone: "Berlin".to_owned(), ..good.clone() }, "time_zone"),
        ] {
            let said = wrong.check().unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
