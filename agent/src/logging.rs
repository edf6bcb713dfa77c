//! The log, on standard error. Whoever reads it must not be able to stop the agent: lines go through a queue to a thread
//! of their own, and what the queue has no room for is lost and counted. A log that can't be written is no reason to end.
//!
//! An agent at rest logs nothing for hours, so the thread ends when it has had nothing to do for a while, and the next
//! line starts another.

mod filter;
mod lines;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use filter::Filter;
use lines::Lines;

/// Lines that may wait; at some hundred bytes each, a few hundred KiB.
const LINES_MAX: usize = 1_024;
/// How long the thread waits for another line before it ends.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people; in colour on a terminal.
    Text,
    /// One object a line.
    Json,
}

/// Starts the log on standard error. `RUST_LOG` chooses what is logged; without it, everything from `info` up.
pub(crate) fn start(format: Format) -> Guard {
    let wanted = std::env::var_os("RUST_LOG").unwrap_or_default();
    let (filter, not_understood) = Filter::parse(&wanted.to_string_lossy());
    let queue = Queue::new(io::stderr());
    let is_coloured =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A second log in one process (tests) is no reason to stop.
    let _ = tracing::subscriber::set_global_default(Lines::new(format, is_coloured, filter, queue.clone()));
    for part in not_understood {
        tracing::warn!(
            part,
            "RUST_LOG is not understood here and goes on without it: write LEVEL or TARGET=LEVEL, separated by commas; levels are error, warn, info, debug, trace and off"
        );
    }
    end_with_a_panic(queue.clone());
    Guard { queue }
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

struct Shared {
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
    fn new(out: impl Write + Send + 'static) -> Self {
        let state = State {
            lines: VecDeque::new(),
            lost: 0,
            out: Some(Box::new(out)),
            has_thread: false,
            is_writing: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
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
        let state = self.shared.state();
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
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) });
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
        let queue = Queue::new(Broken);
        queue.put(b"x\n".to_vec());
        drop(Guard { queue });
    }

    #[test]
    fn the_thread_ends_when_it_has_nothing_to_do_and_the_next_line_starts_another() {
        let (release, go) = mpsc::channel();
        drop(release);
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) });
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
    fn the_end_waits_for_the_last_line_and_not_for_a_reader_that_has_stopped() {
        let (release, go) = mpsc::channel();
        let seen = Arc::default();
        let queue = Queue::new(Slow { go, seen: Arc::clone(&seen) });
        queue.put(b"last\n".to_vec());
        drop(Guard { queue: queue.clone() });
        assert_eq!(text(&seen), "");
        release.send(()).unwrap();
        while queue.shared.state().is_writing {
            thread::yield_now();
        }
        assert_eq!(text(&seen), "last\n");
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
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "logging::tests::dying", "--ignored", "--nocapture"]).env_remove("RUST_LOG");
        let output = program.output().unwrap();
        assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("ERROR") && said.contains("a part has failed"), "{said}");
        assert!(said.contains(file!()), "{said}");
    }
}
