//! One operator at a time may have the hub make keys for an identity.
//!
//! `/devices/keys/regenerate` knows no etag, so two runs that both saw a free slot would both replace its key, the second one
//! perhaps after the device has moved to the first one's. The lease closes that gap: it stands in the twin's tags, is
//! written under the twin's etag, and ends by itself. The answer to writing it is the newest twin, by which the plan is
//! made once more.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use twinkey_contract::Identity;

use super::device::Stop;
use crate::clock::unix_now_secs;
use crate::failure::Failure;
use crate::hub::{Hub, Twin};

/// How long a lease holds, in seconds: as long as the slowest answer to a change may take, twice, and some patience.
const LEASE_SECS: u64 = 180;
/// How far two operators' clocks may be apart, in seconds: what lasts longer than a lease and this is nobody's.
const CLOCKS_APART_MAX_SECS: u64 = 10 * 60;
/// What must be left of a lease when a key is ordered: longer than the answer is waited for.
const LEFT_MIN: Duration = Duration::from_secs(75);
/// Most attempts to write it while the twin changes under our hands.
const ATTEMPTS_MAX: u32 = 5;

/// A lease that this run holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    taken: Instant,
}

impl Held {
    /// Until when a key may be ordered.
    pub(super) fn order_until(self) -> Instant {
        self.taken + Duration::from_secs(LEASE_SECS) - LEFT_MIN
    }

    pub(super) fn is_good(self) -> bool {
        Instant::now() < self.order_until()
    }
}

/// Somebody's lease, as the twin shows it.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    by: String,
    until_unix_secs: u64,
}

impl Lease {
    /// What cannot be read is nobody's.
    fn read(tags: &Value) -> Option<Self> {
        let lease = tags.get("keyRenewal")?.get("lease")?;
        Some(Self {
            by: lease.get("by")?.as_str()?.to_owned(),
            until_unix_secs: lease.get("until")?.as_u64()?,
        })
    }

    fn is_in_the_way(&self, own: &str, now_unix_secs: u64) -> bool {
        let is_over = now_unix_secs >= self.until_unix_secs;
        // Of a clock that is far ahead: it would stand for years.
        let is_absurd = self.until_unix_secs > now_unix_secs + LEASE_SECS + CLOCKS_APART_MAX_SECS;
        self.by != own && !is_over && !is_absurd && !is_left_behind(&self.by, own)
    }
}

/// Refuses where another operator has a lease on the identity.
pub(super) fn check(identity: &Identity, twin: &Twin, own: &str) -> Result<(), Stop> {
    match Lease::read(&twin.tags).filter(|lease| lease.is_in_the_way(own, unix_now_secs())) {
        Some(lease) => Err(Stop::Busy {
            by: lease.by,
            left: Duration::from_secs(lease.until_unix_secs.saturating_sub(unix_now_secs())),
        }),
        None if identity.device_id == twin.device_id => Ok(()),
        None => {
            Err(Failure::failed(format!("the hub answered with another twin than that of {identity}")).into())
        }
    }
}

/// Whether the twin shows a lease that is this run's, or of a run that is gone.
pub(super) fn is_nobody_elses(twin: &Twin, own: &str) -> bool {
    Lease::read(&twin.tags).is_some_and(|lease| !lease.is_in_the_way(own, unix_now_secs()))
}

/// Takes the lease, or makes it last longer, and brings the newest twin. `twin` is the one that was seen last.
pub(super) async fn take(
    hub: &Hub,
    identity: &Identity,
    mut twin: Twin,
    own: &str,
) -> Result<(Twin, Held), Stop> {
    for _ in 0..ATTEMPTS_MAX {
        check(identity, &twin, own)?;
        let taken = Instant::now();
        let lease = json!({"by": own, "until": unix_now_secs() + LEASE_SECS});
        let patch = json!({"tags": {"keyRenewal": {"lease": lease}}});
        match hub.patch_twin(identity, &patch, Some(&twin.etag)).await {
            Ok(twin) => return Ok((twin, Held { taken })),
            // What a query shows may be a little old, too.
            Err(error) if error.status() == Some(412) => twin = hub.twin(identity).await?,
            // Whether it was written shows in the twin.
            Err(error) if error.is_ambiguous() => {
                let twin = hub.twin(identity).await?;
                let is_ours = Lease::read(&twin.tags).is_some_and(|lease| lease.by == own);
                return if is_ours { Ok((twin, Held { taken })) } else { Err(error.into()) };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::failed(format!("the twin of {identity} changes all the time"))
        .next("find out who changes it; then run the same command again")
        .into())
}

/// Who this run is to others: machine, kernel's start and process namespace, hashed; then process and its start.
pub(crate) fn own_name() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let pid = std::process::id();
        format!("{}-{pid}-{}", machine(), start_of(pid).unwrap_or_default())
    })
    .clone()
}

/// Whether `by` was a process of this machine that is gone: killed, it could not give up its lease.
fn is_left_behind(by: &str, own: &str) -> bool {
    let parts = |name: &str| -> Option<(String, u32, u64)> {
        let mut parts = name.split('-');
        let machine = parts.next()?.to_owned();
        Some((machine, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    match (parts(by), parts(own)) {
        (Some((machine, pid, start)), Some((here, ..))) => machine == here && is_gone(pid, start),
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// Some systems hide others' processes: what can't be seen is gone only if the kernel knows no such process.
fn is_gone(pid: u32, start: u64) -> bool {
    match start_of(pid) {
        Some(found) => found != start,
        None => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH)),
    }
}

fn machine() -> String {
    let mut hash = Sha256::new();
    for file in ["/etc/machine-id", "/proc/sys/kernel/random/boot_id"] {
        hash.update(fs::read(file).unwrap_or_default());
    }
    hash.update(fs::metadata("/proc/self/ns/pid").map_or(0, |space| space.st_ino()).to_le_bytes());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// When a process started, in ticks since the kernel did (proc(5), `/proc/pid/stat`, field 22).
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold blanks and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(by: &str, until_unix_secs: u64) -> Lease {
        Lease { by: by.to_owned(), until_unix_secs }
    }

    #[test]
    fn another_operators_lease_is_in_the_way_until_it_ends() {
        let tags = json!({"keyRenewal": {"lease": {"by": "elsewhere-1-2", "until": 100}}});
        let read = Lease::read(&tags).unwrap();
        assert_eq!(read, lease("elsewhere-1-2", 100));
        assert!(read.is_in_the_way(&own_name(), 99));
        assert!(!read.is_in_the_way(&own_name(), 100));
        assert!(!read.is_in_the_way("elsewhere-1-2", 99));
        // A clock that was years ahead does not keep a device for years.
        assert!(!lease("elsewhere-1-2", 2_110_623_129).is_in_the_way(&own_name(), 1_800_000_000));
    }

    #[test]
    fn what_is_no_lease_is_in_nobodys_way() {
        for tags in [
            json!(null),
            json!({}),
            json!({"keyRenewal": 7}),
            json!({"keyRenewal": {"lease": null}}),
            json!({"keyRenewal": {"lease": {"by": 7, "until": 1}}}),
            json!({"keyRenewal": {"lease": {"by": "x", "until": "soon"}}}),
        ] {
            assert_eq!(Lease::read(&tags), None, "{tags}");
        }
    }

    #[test]
    fn a_process_of_this_machine_that_is_gone_holds_nothing() {
        let own = own_name();
        assert_eq!(own_name(), own);
        let (here, pid) = (machine(), std::process::id());
        let start = start_of(pid).unwrap();
        // Alive; another one had this number before; never was.
        assert!(lease(&format!("{here}-{pid}-{start}"), 100).is_in_the_way("other-1-1", 99));
        assert!(!lease(&format!("{here}-{pid}-{}", start + 1), 100).is_in_the_way(&own, 99));
        assert!(!lease(&format!("{here}-{}-1", u32::MAX), 100).is_in_the_way(&own, 99));
        assert!(lease(&format!("0123456789abcdef-{}-1", u32::MAX), 100).is_in_the_way(&own, 99));
    }
}
