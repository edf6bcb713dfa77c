//! Lines from a program. A short one is read into a buffer that every connection has; for a long one there are a few lanes,
//! which all programs share, and which nobody holds for long.

use std::io::{self, BufRead as _};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout_at;
use zeroize::{Zeroize as _, Zeroizing};

use super::connection::ENTRY_LEN;
use super::{LINE_LEN_MAX, READ_LEN};
use crate::budget::{Account, Room};
use crate::clock::{Clock, Instant};
use crate::hub::outbox::{MESSAGE_LEN_MAX, Message};

/// How long the rest of a short line may take to come: a program writes it in milliseconds, unless the board is very busy.
const LINE_MAX: Duration = Duration::from_secs(10);
/// The same for a long line: whoever does not finish it keeps others waiting for the lane.
const LONG_LINE_MAX: Duration = Duration::from_secs(3);

/// What a program sends.
pub(super) struct Lines<R> {
    reader: R,
    clock: Clock,
    buffer: Zeroizing<Vec<u8>>,
    /// What was read and not handed out.
    start: usize,
    end: usize,
    /// Until when the line that has begun must be whole.
    until: Option<Instant>,
}

/// A whole line, without its end.
pub(super) enum Line<'l> {
    /// Where it stands in the buffer.
    Short(std::ops::Range<usize>),
    Long {
        text: Zeroizing<Vec<u8>>,
        /// Room for the largest message, if there was some.
        room: Option<Room>,
        _lane: SemaphorePermit<'l>,
    },
}

/// Why there are no more lines.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the line is longer than {LINE_LEN_MAX} bytes")]
    TooLong,
    #[error("the line was not finished in time: write it at once")]
    TooSlow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R, clock: Clock) -> Self {
        let buffer = Zeroizing::new(vec![0; READ_LEN]);
        Self { reader, clock, buffer, start: 0, end: 0, until: None }
    }

    pub(super) fn reader(&self) -> &R {
        &self.reader
    }

    /// Whether there is something to read, which is waited for; false at the end.
    pub(super) async fn begin(&mut self) -> Result<bool, LineError> {
        while self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.fill().await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next whole line; `None` at the end. What stands there without an end was not meant to be read.
    pub(super) async fn next<'l>(
        &mut self,
        account: &Account,
        lanes: &'l Semaphore,
    ) -> Result<Option<Line<'l>>, LineError> {
        let mut searched = self.start;
        loop {
            let new = self.buffer.get(searched..self.end).unwrap_or_default();
            if let Some(len) = line_len(new) {
                let line = self.start..searched + len - 1;
                self.start = searched + len;
                self.until = None;
                return Ok(Some(Line::Short(line)));
            }
            if self.end == self.buffer.len() {
                if self.start == 0 {
                    return self.long(account, lanes).await;
                }
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            searched = self.end;
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The rest of a line that the buffer is too small for.
    async fn long<'l>(
        &mut self,
        account: &Account,
        lanes: &'l Semaphore,
    ) -> Result<Option<Line<'l>>, LineError> {
        // Before a lane is taken: whoever has no room waits for it without one.
        let room = account.wait(Message::cost_of(MESSAGE_LEN_MAX) + ENTRY_LEN).await;
        let Ok(lane) = lanes.acquire().await else { return Ok(None) };
        // So far it was not the program that kept us waiting.
        self.until = Some(self.clock.now() + LONG_LINE_MAX);
        let mut text = Zeroizing::new(Vec::with_capacity(LINE_LEN_MAX + READ_LEN));
        loop {
            let new = self.buffer.get(self.start..self.end).unwrap_or_default();
            let len = line_len(new);
            let part = len.map_or(new.len(), |len| len - 1);
            text.extend_from_slice(new.get(..part).unwrap_or_default());
            if text.len() > LINE_LEN_MAX {
                return Err(LineError::TooLong);
            }
            if let Some(len) = len {
                self.start += len;
                self.until = None;
                return Ok(Some(Line::Long { text, room, _lane: lane }));
            }
            (self.start, self.end) = (0, 0);
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads on; 0 at the end.
    async fn fill(&mut self) -> Result<usize, LineError> {
        if self.end > 0 {
            self.until.get_or_insert_with(|| self.clock.now() + LINE_MAX);
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = match self.until {
            Some(until) => {
                timeout_at(until, self.reader.read(free)).await.map_err(|_| LineError::TooSlow)??
            }
            None => self.reader.read(free).await?,
        };
        self.end += count;
        Ok(count)
    }

    pub(super) fn text<'t>(&'t self, line: &'t Line<'_>) -> &'t [u8] {
        match line {
            Line::Short(range) => self.buffer.get(range.clone()).unwrap_or_default(),
            Line::Long { text, .. } => text,
        }
    }

    /// Wipes a line that may have held a key.
    pub(super) fn wipe(&mut self, line: &Line<'_>) {
        if let Line::Short(range) = line {
            if let Some(text) = self.buffer.get_mut(range.clone()) {
                text.zeroize();
            }
        }
    }
}

/// How long the first line is, with its end.
fn line_len(mut bytes: &[u8]) -> Option<usize> {
    let all = bytes;
    // The standard library's way to look at many bytes at once. Nothing fails in memory.
    let len = bytes.skip_until(b'\n').unwrap_or_default();
    all.get(..len).is_some_and(|line| line.ends_with(b"\n")).then_some(len)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::budget::Budget;
    use crate::local::LONG_LINES_MAX;

    fn pair() -> (DuplexStream, Lines<DuplexStream>) {
        let (program, ours) = tokio::io::duplex(2 * LINE_LEN_MAX);
        (program, Lines::new(ours, Clock::system()))
    }

    async fn read(lines: &mut Lines<DuplexStream>, lanes: &Semaphore) -> Result<Option<Vec<u8>>, LineError> {
        if !lines.begin().await? {
            return Ok(None);
        }
        let account = Budget::default().open();
        let line = lines.next(&account, lanes).await?;
        Ok(line.map(|line| lines.text(&line).to_vec()))
    }

    #[tokio::test]
    async fn lines_of_every_length_come_out_as_they_went_in() {
        let lanes = Semaphore::new(LONG_LINES_MAX);
        let (mut program, mut lines) = pair();
        let edges = [0, 1, READ_LEN - 1, READ_LEN, READ_LEN + 1, 2 * READ_LEN, 100_000, LINE_LEN_MAX, 3];
        let sent: Vec<Vec<u8>> =
            edges.iter().map(|len| (0..*len).map(|at| b'a' + (at % 23) as u8).collect()).collect();
        let write = async {
            for line in &sent {
                program.write_all(line).await.unwrap();
                program.write_all(b"\n").await.unwrap();
            }
            program.write_all(b"without an end").await.unwrap();
            drop(program);
        };
        let check = async {
            for line in &sent {
                assert!(read(&mut lines, &lanes).await.unwrap().as_ref() == Some(line), "{}", line.len());
            }
            assert_eq!(read(&mut lines, &lanes).await.unwrap(), None);
        };
        tokio::join!(write, check);
        assert_eq!(lanes.available_permits(), LONG_LINES_MAX);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_refused() {
        let lanes = Semaphore::new(LONG_LINES_MAX);
        let (mut program, mut lines) = pair();
        program.write_all(&vec![b'x'; LINE_LEN_MAX + 1]).await.unwrap();
        assert!(matches!(read(&mut lines, &lanes).await, Err(LineError::TooLong)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_never_finished_gives_its_lane_back_and_a_pause_between_lines_may_last() {
        let lanes = Semaphore::new(1);
        let (mut slow, mut slow_lines) = pair();
        let (mut other, mut other_lines) = pair();
        let line = vec![b'x'; 100_000];
        slow.write_all(&line).await.unwrap();
        other.write_all(&line).await.unwrap();
        other.write_all(b"\n").await.unwrap();
        let (first, second) = tokio::join!(read(&mut slow_lines, &lanes), read(&mut other_lines, &lanes));
        assert!(matches!(first, Err(LineError::TooSlow)));
        assert_eq!(second.unwrap().unwrap().len(), line.len());

        let later = async {
            tokio::time::sleep(Duration::from_secs(24 * 3_600)).await;
            other.write_all(b"short\n").await.unwrap();
        };
        let (read, ()) = tokio::join!(read(&mut other_lines, &lanes), later);
        assert_eq!(read.unwrap().unwrap(), b"short");
        let (mut program, mut lines) = pair();
        program.write_all(b"half").await.unwrap();
        assert!(matches!(self::read(&mut lines, &lanes).await, Err(LineError::TooSlow)));
    }
}
