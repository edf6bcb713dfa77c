//! Burns after so many steps: the program is as good as killed then.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::failure::Failure;

#[derive(Debug)]
pub(crate) struct Fuse {
    left: AtomicU64,
    burnt: Notify,
}

impl Fuse {
    pub(crate) fn of(steps: u64) -> Self {
        Self { left: AtomicU64::new(steps), burnt: Notify::new() }
    }

    /// Whether the program goes on after this step.
    fn burn(&self) -> bool {
        let is_alive =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !is_alive {
            self.burnt.notify_one();
        }
        is_alive
    }

    pub(crate) async fn burnt(&self) {
        self.burnt.notified().await;
    }

    /// A step of something that waits: it never returns once the fuse has burnt.
    pub(crate) async fn pass(&self) {
        if !self.burn() {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
    }
}

/// A step of something that does not wait.
pub(crate) fn step(fuse: Option<&Fuse>) -> Result<(), Failure> {
    match fuse {
        Some(fuse) if !fuse.burn() => Err(Failure::failed("killed")),
        Some(_) | None => Ok(()),
    }
}
