//! From an event to a line.

use std::fmt::{self, Write as _};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use super::filter::Filter;
use super::{Format, Queue};
use crate::clock;

/// Turns events into lines for the queue. There are no spans in the agent, and none are shown.
pub(super) struct Lines {
    format: Format,
    is_coloured: bool,
    filter: Filter,
    queue: Queue,
}

impl Lines {
    pub(super) fn new(format: Format, is_coloured: bool, filter: Filter, queue: Queue) -> Self {
        Self { format, is_coloured, filter, queue }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.allows(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter.level_max())
    }

    fn event(&self, event: &Event<'_>) {
        let time = humantime::format_rfc3339_micros(clock::machine_time());
        let line = match self.format {
            Format::Text => text_line(&time, event, self.is_coloured),
            Format::Json => json_line(&time, event),
        };
        self.queue.put(line.into_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// `TIME LEVEL message field=value…`
fn text_line(time: &dyn fmt::Display, event: &Event<'_>, is_coloured: bool) -> String {
    let level = event.metadata().level();
    let mut line = String::with_capacity(160);
    // Writing to a string does not fail, but what is written may (Display of a stranger): then there is less of it.
    let _ = if is_coloured {
        write!(line, "\x1b[2m{time}\x1b[0m \x1b[{}m{level:>5}\x1b[0m", colour(*level))
    } else {
        write!(line, "{time} {level:>5}")
    };
    event.record(&mut Text { line: &mut line });
    line.push('\n');
    line
}

fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

struct Text<'a> {
    line: &'a mut String,
}

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.line.push(' ');
        if field.name() != "message" {
            self.line.push_str(field.name());
            self.line.push('=');
        }
        let _ = write!(OneLine(self.line), "{value:?}");
    }
}

/// What comes from outside must neither begin a line of its own nor speak to the terminal.
struct OneLine<'a>(&'a mut String);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() { self.0.extend(c.escape_default()) } else { self.0.push(c) }
        }
        Ok(())
    }
}

/// `{"timestamp":…,"level":…,"fields":{"message":…,…},"target":…}`
fn json_line(time: &dyn fmt::Display, event: &Event<'_>) -> String {
    let mut line = String::with_capacity(240);
    let _ =
        write!(line, "{{\"timestamp\":\"{time}\",\"level\":\"{}\",\"fields\":{{", event.metadata().level());
    event.record(&mut Json { line: &mut line, is_first: true });
    let _ = writeln!(line, "}},\"target\":{}}}", Value::from(event.metadata().target()));
    line
}

struct Json<'a> {
    line: &'a mut String,
    is_first: bool,
}

impl Json<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        let _ = write!(self.line, "{comma}{}:{}", Value::from(field.name()), value.into());
    }
}

impl Visit for Json<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::logging::Guard;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged while `speak` runs.
    fn logged(format: Format, filter: &str, speak: impl FnOnce()) -> String {
        let seen = Seen::default();
        let queue = Queue::new(seen.clone());
        let lines = Lines::new(format, false, Filter::parse(filter).0, queue.clone());
        tracing::subscriber::with_default(lines, speak);
        drop(Guard { queue });
        String::from_utf8(seen.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_text_line_has_time_level_message_and_fields() {
        let said = logged(Format::Text, "info", || {
            tracing::info!(key = %"5f1d", count = 7, hub = "h", "connected");
            tracing::debug!("nothing that anybody asked for");
        });
        let (time, rest) = said.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{said}");
        assert_eq!(rest, " INFO connected key=5f1d count=7 hub=\"h\"\n");
    }

    #[test]
    fn a_json_line_is_one_object_with_typed_fields() {
        let said = logged(Format::Json, "debug", || {
            tracing::warn!(key = %"5f1d", count = 7, is_well = true, nothing = None::<u64>, "quoth \"he\"");
        });
        let line: Value = serde_json::from_str(&said).unwrap();
        let wanted =
            serde_json::json!({"message": "quoth \"he\"", "key": "5f1d", "count": 7, "is_well": true});
        assert_eq!((&line["level"], &line["fields"]), (&Value::from("WARN"), &wanted));
        assert_eq!(line["target"], module_path!());
        assert!(said.ends_with("}\n") && said.lines().count() == 1);
    }

    #[test]
    fn nothing_that_is_logged_begins_a_line_or_speaks_to_the_terminal() {
        for format in [Format::Text, Format::Json] {
            let said = logged(format, "info", || {
                tracing::info!(reason = %"a\nERROR all is lost\u{1b}[2J\r", text = "\u{1b}[2J\n", "told\n");
            });
            let line = said.strip_suffix('\n').unwrap();
            assert!(line.contains("all is lost") && !line.contains(char::is_control), "{said}");
        }
    }
}
