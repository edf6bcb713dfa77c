//! Measures rows of work against each other on a machine that does other things too.
//!
//! Every round times every row once, in an order that rotates from round to round, by the processor time of this
//! thread. A row's ratio to another is the median over the rounds of the ratio within each round: what slows a whole
//! round down, such as the clock frequency, cancels out.

use rustix::time::{ClockId, clock_gettime};

/// One thing to measure.
pub(crate) struct Row<'w> {
    pub(crate) name: String,
    /// Tokens, keys or compressions that one call of `work` makes.
    pub(crate) count: usize,
    pub(crate) work: Box<dyn FnMut() + 'w>,
}

/// Nanoseconds of each row (outer) in each round (inner), for one token, key or compression.
pub(crate) struct Times(Vec<Vec<f64>>);

/// How long one row is timed in one round, in nanoseconds.
const SLICE_NS: f64 = 1.5e6;

/// Times all rows `rounds` times.
pub(crate) fn measure(rows: &mut [Row<'_>], rounds: usize) -> Times {
    let repeats: Vec<usize> = rows
        .iter_mut()
        .map(|row| {
            // Once to warm up, once to see how long it takes.
            time(|| (row.work)());
            (SLICE_NS / time(|| (row.work)()).max(1.0)).ceil() as usize
        })
        .collect();
    let mut times = vec![Vec::with_capacity(rounds); rows.len()];
    for round in 0..rounds {
        for i in 0..rows.len() {
            let i = (i + round * 7) % rows.len();
            let row = &mut rows[i];
            // What the row before left in the caches is none of this row's business.
            (row.work)();
            let spent = time(|| (0..repeats[i]).for_each(|_| (row.work)()));
            times[i].push(spent / (repeats[i] * row.count) as f64);
        }
    }
    Times(times)
}

impl Times {
    /// Median time of a row.
    pub(crate) fn of(&self, row: usize) -> f64 {
        median(self.0[row].clone())
    }

    /// Median over the rounds of a row's time divided by `count` times that of another.
    pub(crate) fn ratio(&self, row: usize, other: usize, count: f64) -> f64 {
        median(self.0[row].iter().zip(&self.0[other]).map(|(a, b)| a / (b * count)).collect())
    }
}

/// Processor time of this thread while it does `work`, in nanoseconds.
pub(crate) fn time(work: impl FnOnce()) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
    };
    let start = now();
    work();
    now() - start
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
