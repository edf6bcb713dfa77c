//! The log, on standard error. Whoever reads it must not be able to stop the agent: lines go through a queue to a thread
//! of their own, and what the queue has no room for is lost and counted. A log that can't be written is no reason to end.
//!
//! An agent at rest logs nothing for hours, so the thread ends when it has had nothing to do for a while, and the next
//! line starts another.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::printable::{escaped_json, printable};

/// Lines that may wait; at some hundred bytes each, a few hundred KiB.
const LINES_MAX: usize = 1_024;
/// How long the thread waits for another line before it ends.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Starts the log on standard error. `RUST_LOG` chooses what is logged; without it, everything from `info` up.
pub(crate) fn start(format: Format) -> Guard {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, not_understood) = filter(&wanted);
    let queue = Queue::new(io::stderr(), takes_a_line);
    // A second log in one process (tests) is no reason to stop.
    let _ = tracing::subscriber::set_global_default(subscriber(format, filter, queue.clone()));
    if let Some(reason) = not_understood {
        tracing::warn!(
            reason,
            "RUST_LOG is not understood, and everything from info up is logged: write LEVEL or TARGET=LEVEL, separated by commas; levels are error, warn, info, debug, trace and off"
        );
    }
    end_with_a_panic(queue.clone());
    Guard { queue }
}

/// Whether standard error takes a line without anybody waiting for its reader.
fn takes_a_line() -> bool {
    let stderr = io::stderr();
    let mut wanted = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut wanted, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// What `text` asks for, or the usual and why. Not `EnvFilter`: it brings regular expressions, for which a gateway has no use.
fn filter(text: &str) -> (Targets, Option<String>) {
    let usual = Targets::new().with_default(LevelFilter::INFO);
    if text.trim().is_empty() {
        return (usual, None);
    }
    match text.split(',').map(str::trim).collect::<Vec<_>>().join(",").parse() {
        Ok(filter) => (filter, None),
        Err(error) => (usual, Some(error.to_string())),
    }
}

fn subscriber(format: Format, filter: Targets, queue: Queue) -> Box<dyn Subscriber + Send + Sync> {
    // An error of the log's own would be printed with a panic if that fails.
    let writer = Writer { queue, format };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => Box::new(registry.with(lines.with_ansi(false).with_target(false))),
        Format::Json => Box::new(registry.with(lines.json())),
    }
}

/// A panic anywhere ends the process, whatever the profile's policy: an agent without its writer, or without a part of
/// its loop, would look alive for years. Whoever supervises it starts a whole one. What the panic says goes through the
/// queue as everything does, for a reader that has stopped must not keep the process from its end.
fn end_with_a_panic(queue: Queue) {
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload();
        let said = said
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| said.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string);
        tracing::error!(
            place,
            "a mistake in this program ends it; please report it: {}",
            said.unwrap_or("it says nothing of itself")
        );
        queue.wait_for_last_lines();
        std::process::abort();
    }));
}

/// A way to the thread that writes.
#[derive(Clone)]
struct Queue {
    shared: Arc<Shared>,
}

/// What makes lines for the queue.
struct Writer {
    queue: Queue,
    format: Format,
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { text: Vec::new(), queue: self.queue.clone(), format: self.format }
    }
}

/// One line, on its way into the queue.
struct Line {
    text: Vec<u8>,
    queue: Queue,
    format: Format,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() {
            return;
        }
        let shown = shown(&text, self.format);
        self.queue.put(shown.unwrap_or(text));
    }
}

/// What comes from outside must neither begin a line of its own nor speak to the terminal; so there
/// are no colours. `None` where the line can stay as it is.
fn shown(line: &[u8], format: Format) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(line);
    let said = text.strip_suffix('\n').unwrap_or(&text);
    let shown = match format {
        Format::Text => printable(said),
        Format::Json => escaped_json(said),
    };
    let is_same = matches!((&text, &shown), (Cow::Borrowed(_), Cow::Borrowed(_)));
    (!is_same).then(|| format!("{shown}\n").into_bytes())
}

struct Shared {
    /// Whether a line can be written without waiting.
    is_ready: fn() -> bool,
    state: Mutex<State>,
    /// A line has come, or the last one is written.
    changed: Condvar,
}

struct State {
    lines: VecDeque<Vec<u8>>,
    /// Lines that found no room since that was last said.
    lost: u64,
    /// Where lines go; away while a thread writes them.
    out: Option<Box<dyn Write + Send>>,
    /// A thread was started and has not ended.
    has_thread: bool,
    /// It has a line that is not written yet.
    is_writing: bool,
}

impl Queue {
    fn new(out: impl Write + Send + 'static, is_ready: fn() -> bool) -> Self {
        let state = State {
            lines: VecDeque::new(),
            lost: 0,
            out: Some(Box::new(out)),
            has_thread: false,
            is_writing: false,
        };
        Self { shared: Arc::new(Shared { is_ready, state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// Takes a line, with its end, or loses it. Never waits for the reader.
    fn put(&self, line: Vec<u8>) {
        let mut state = self.shared.state();
        if state.lines.len() >= LINES_MAX {
            state.lost += 1;
            return;
        }
        state.lines.push_back(line);
        if state.has_thread {
            self.shared.changed.notify_all();
            return;
        }
        let shared = Arc::clone(&self.shared);
        // Where there is none to be had, the line waits until one can be started for the next.
        state.has_thread =
            thread::Builder::new().name("log".to_owned()).spawn(move || shared.write()).is_ok();
    }

    fn wait_for_last_lines(&self) {
        let mut state = self.shared.state();
        if !state.has_thread {
            // None could be had for them, and the last words may say why.
            while let (Some(line), true) = (state.lines.pop_front(), (self.shared.is_ready)()) {
                let _ = state.out.as_mut().map(|out| out.write_all(&line));
            }
            return;
        }
        let is_unfinished = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let _ = self.shared.changed.wait_timeout_while(state, LAST_LINES, is_unfinished);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the lines would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes until nothing has come for a while.
    fn write(&self) {
        let mut state = self.state();
        let Some(mut out) = state.out.take() else { return };
        loop {
            while let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                let lost = std::mem::take(&mut state.lost);
                drop(state);
                if lost > 0 {
                    let _ = writeln!(out, "{lost} lines of the log were lost: nobody read them in time");
                }
                let _ = out.write_all(&line);
                state = self.state();
            }
            state.is_writing = false;
            self.changed.notify_all();
            let idle = |state: &mut State| state.lines.is_empty();
            state = self
                .changed
                .wait_timeout_while(state, IDLE_MAX, idle)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.lines.is_empty() {
                state.out = Some(out);
                state.has_thread = false;
                return;
            }
        }
    }
}

/// Waits for the last lines when it is dropped.
pub(crate) struct Guard {
    queue: Queue,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.queue.wait_for_last_lines();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reader that waits until it is let go.
    struct Slow {
        go: mpsc::Receiver<()>,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.go.recv();
            self.seen.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text(seen: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(seen.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nothing_up_and_says_later_what_was_lost() {
        let (release, go) = mpsc::channel();
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) }, || true);
        for number in 0..LINES_MAX + 100 {
            queue.put(format!("line {number}\n").into_bytes());
        }
        assert!(queue.shared.state().lost >= 99);
        drop(release);
        while !text(&seen).contains("lines of the log were lost") {
            thread::yield_now();
        }
        drop(Guard { queue });
        assert!(text(&seen).contains("line 1000\n"));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_reason_to_end() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let queue = Queue::new(Broken, || true);
        queue.put(b"x\n".to_vec());
        drop(Guard { queue });
    }

    #[test]
    fn the_thread_ends_when_it_has_nothing_to_do_and_the_next_line_starts_another() {
        let (release, go) = mpsc::channel();
        drop(release);
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) }, || true);
        for line in ["one\n", "two\n", "three\n"] {
            queue.put(line.as_bytes().to_vec());
            assert!(queue.shared.state().has_thread);
            while queue.shared.state().has_thread {
                thread::yield_now();
            }
        }
        assert_eq!(text(&seen), "one\ntwo\nthree\n");
    }

    #[test]
    fn where_no_thread_could_be_had_the_end_says_the_last_lines_itself_but_waits_for_no_reader() {
        for (is_ready, wanted) in [((|| true) as fn() -> bool, "last\n"), (|| false, "")] {
            let (release, go) = mpsc::channel();
            drop(release);
            let seen = Arc::default();
            let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) }, is_ready);
            queue.shared.state().lines.push_back(b"last\n".to_vec());
            drop(Guard { queue });
            assert_eq!(text(&seen), wanted);
        }
    }

    #[test]
    fn the_end_waits_for_the_last_line_and_not_for_a_reader_that_has_stopped() {
        let (release, go) = mpsc::channel();
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) }, || true);
        queue.put(b"last\n".to_vec());
        drop(Guard { queue: queue.clone() });
        assert_eq!(text(&seen), "");
        release.send(()).unwrap();
        while queue.shared.state().is_writing {
            thread::yield_now();
        }
        assert_eq!(text(&seen), "last\n");
    }

    /// What is logged while `speak` runs.
    fn logged(format: Format, wanted: &str, speak: impl FnOnce()) -> String {
        let (release, go) = mpsc::channel();
        drop(release);
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) }, || true);
        tracing::subscriber::with_default(subscriber(format, filter(wanted).0, queue.clone()), speak);
        drop(Guard { queue });
        text(&seen)
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
        let line: serde_json::Value = serde_json::from_str(&said).unwrap();
        let wanted =
            serde_json::json!({"message": "quoth \"he\"", "key": "5f1d", "count": 7, "is_well": true});
        assert_eq!((&line["level"], &line["fields"]), (&"WARN".into(), &wanted));
        assert_eq!(line["target"], module_path!());
    }

    #[test]
    fn nothing_that_is_logged_begins_a_line_or_speaks_to_the_terminal() {
        for format in [Format::Text, Format::Json] {
            let said = logged(format, "info", || {
                tracing::info!(reason = %"a\nERROR all is lost\u{1b}[2J\r", text = "\u{1b}[2J\n", "told\n");
                tracing::info!(reason = %"a\u{9b}2J\u{7f}\u{202e}b\u{2028}c", "all is lost\u{85}");
            });
            assert_eq!(said.matches('\n').count(), 2, "{said}");
            for line in said.lines() {
                assert!(line.contains("all is lost") && printable(line) == line, "{said:?}");
            }
            if format == Format::Json {
                let line: serde_json::Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
                assert_eq!(line["fields"]["reason"], "a\u{9b}2J\u{7f}\u{202e}b\u{2028}c");
            }
        }
    }

    #[test]
    fn levels_and_targets_are_understood_and_nonsense_is_named_and_means_the_usual() {
        let allows = |text: &str, target: &str, level| filter(text).0.would_enable(target, &level);
        use tracing::Level;
        assert!(allows("", "any", Level::INFO) && !allows("", "any", Level::DEBUG));
        assert!(allows("debug", "any", Level::DEBUG));
        assert!(allows("info, twinkey_agent::hub=trace", "twinkey_agent::hub::dial", Level::TRACE));
        assert!(!allows("twinkey_agent=off,info", "twinkey_agent", Level::ERROR));
        for nonsense in ["twinkey_agent=loud", "a=b=c", "[run{id=1}]=debug"] {
            assert!(filter(nonsense).1.is_some(), "{nonsense}");
            assert!(allows(nonsense, "any", Level::INFO), "{nonsense}");
        }
    }

    #[test]
    #[ignore = "run by the next test, in a process of its own"]
    fn dying() {
        let _guard = start(Format::Text);
        let part = thread::spawn(|| panic!("a part has failed"));
        // Without the hook the others would live on, and this would end well.
        let _ = part.join();
    }

    #[test]
    fn a_panic_in_any_thread_ends_the_process_and_says_where() {
        use std::os::unix::process::ExitStatusExt as _;
        // What runs programs for another processor says packaging/cross.
        let runner = std::env::var("TWINKEY_AGENT_RUNNER").unwrap_or_default();
        let this = std::env::current_exe().unwrap();
        let mut words = runner.split_whitespace().chain([this.to_str().unwrap()]);
        let mut program = std::process::Command::new(words.next().unwrap());
        program.args(words).args(["--exact", "logging::tests::dying", "--ignored", "--nocapture"]);
        program.env_remove("RUST_LOG");
        let output = program.output().unwrap();
        assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("ERROR") && said.contains("a part has failed"), "{said}");
        assert!(said.contains(file!()), "{said}");
    }
}
