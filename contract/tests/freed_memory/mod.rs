//! An allocator that looks for secrets in every block that is given back: what stands there stays
//! in the process' memory until something else overwrites it. A block that grows counts as given
//! back, since it may move.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Bytes in a row by which a secret is recognised.
const PART_LEN: usize = 8;

thread_local! {
    /// Per thread, so that the test harness' own threads don't disturb.
    static WATCHED: Cell<Option<&'static [Vec<u8>]>> = const { Cell::new(None) };
    static FOUND: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

// SAFETY: every call goes to the system's allocator; blocks are read before they are given back.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeros, or a block would show what stood there before it was this one's.
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(secrets) = WATCHED.get() {
            // SAFETY: the block is still the caller's, and was zeros before he wrote to it.
            let byte = |at: usize| unsafe { block.add(at).read_volatile() };
            let shows = |secret: &[u8]| {
                (0..(layout.size() + 1).saturating_sub(PART_LEN)).any(|from| {
                    secret.windows(PART_LEN).any(|part| {
                        part.iter().enumerate().all(|(offset, wanted)| byte(from + offset) == *wanted)
                    })
                })
            };
            if secrets.iter().any(|secret| shows(secret)) {
                FOUND.set(FOUND.get() + 1);
            }
        }
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The number of blocks that this thread gave back during `work` with one of the secrets in them.
pub(crate) fn blocks_that_show(secrets: Vec<Vec<u8>>, work: impl FnOnce()) -> usize {
    FOUND.set(0);
    WATCHED.set(Some(secrets.leak()));
    work();
    WATCHED.set(None);
    FOUND.get()
}
