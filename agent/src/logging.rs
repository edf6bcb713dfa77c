//! The log, on standard error. Whoever reads it must not be able to stop the agent: lines go through a queue to a thread
//! of their own, and what the queue has no room for is lost and counted. A log that can't be written is no reason to end.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait; at some hundred bytes each, a few hundred KiB.
const LINES_MAX: usize = 1_024;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Gives each log line a way into the queue.
#[derive(Clone)]
pub(crate) struct Queue {
    lines: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// Waits for the last lines when it is dropped.
pub(crate) struct Guard {
    lines: Option<SyncSender<Vec<u8>>>,
    ended: Receiver<()>,
}

/// Starts the thread that writes to `out`.
pub(crate) fn start(out: impl Write + Send + 'static) -> (Queue, Guard) {
    let (lines, waiting) = sync_channel(LINES_MAX);
    let (end, ended) = sync_channel(1);
    let lost = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&lost);
    let spawned = thread::Builder::new().name("log".to_owned()).spawn(move || {
        write_all(&waiting, &counted, out);
        // Whoever waited may have given up.
        let _ = end.try_send(());
    });
    // Without the thread the queue has no reader, and nothing is logged; the agent's work goes on.
    drop(spawned);
    (Queue { lines: lines.clone(), lost }, Guard { lines: Some(lines), ended })
}

fn write_all(waiting: &Receiver<Vec<u8>>, lost: &AtomicU64, mut out: impl Write) {
    // An empty line is the end: the subscriber keeps its own sender for ever.
    while let Ok(line) = waiting.recv() {
        if line.is_empty() {
            break;
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log were lost: nobody read them in time");
        }
        let _ = out.write_all(&line);
    }
    let _ = out.flush();
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(lines) = self.lines.take() {
            if lines.try_send(Vec::new()).is_ok() {
                let _ = self.ended.recv_timeout(LAST_LINES);
            }
        }
    }
}

/// One line.
pub(crate) struct Line {
    text: Vec<u8>,
    queue: Queue,
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
        if !text.is_empty() && self.queue.lines.try_send(text).is_err() {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { text: Vec::new(), queue: self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
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

    #[test]
    fn a_log_that_nobody_reads_holds_nothing_up_and_says_later_what_was_lost() {
        let (release, go) = mpsc::channel();
        let seen = Arc::default();
        let (queue, guard) = start(Slow { go, seen: Arc::clone(&seen) });
        for number in 0..LINES_MAX + 100 {
            queue.make_writer().write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert!(queue.lost.load(Ordering::Relaxed) >= 99);
        drop(release);
        while !String::from_utf8_lossy(&seen.lock().unwrap()).contains("lines of the log were lost") {
            thread::yield_now();
        }
        drop(guard);
        assert!(String::from_utf8_lossy(&seen.lock().unwrap()).contains("line 1000\n"));
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
        let (queue, guard) = start(Broken);
        queue.make_writer().write_all(b"x\n").unwrap();
        drop(guard);
    }
}
