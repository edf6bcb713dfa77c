//! One operator at a time may have the hub make keys for an identity.
//!
//! `/devices/keys/regenerate` knows no etag, so two runs that both saw a free slot would both replace its key, the second one
//! perhaps after the device has moved to the first one's. The lease closes that gap: it stands in the twin's tags, is
//! written under the twin's etag, and ends by itself. The answer to writing it is the newest twin, by which the plan is
//! made once more.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use twinkey_contract::Identity;

use super::device::Stop;
use super::holder::Holder;
use crate::failure::Failure;
use crate::hub::{Hub, Twin};

/// How long a lease holds, in seconds: as long as the slowest answer to a change may take, twice, and some patience.
pub(super) const LEASE_SECS: u64 = 180;
/// How much later than expected a lease may seem to end, in seconds, to whoever reads it: `Date` has whole seconds (one for the writer,
/// one for the reader), an answer is on its way for a while, and nodes of one hub may differ by some seconds. What ends later than
/// that is no lease, and would stand for years.
const LATE_MAX_SECS: u64 = 30;
/// What must be left of a lease when a key is ordered: the answer is waited for for 60 s, and in the other 15 s is room for what
/// makes others see the lease end too early (as above, but for the reader's second and way).
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
    /// By the hub's clock.
    until_unix_secs: u64,
}

impl Lease {
    /// What cannot be read is no lease.
    fn read(tags: &Value) -> Option<Self> {
        let lease = tags.get("keyRenewal")?.get("lease")?;
        Some(Self {
            by: lease.get("by")?.as_str()?.to_owned(),
            until_unix_secs: lease.get("until")?.as_u64()?,
        })
    }

    fn is_in_the_way(&self, own: &Holder, now_unix_secs: u64) -> bool {
        let is_over = now_unix_secs >= self.until_unix_secs;
        let lasts_secs = self.until_unix_secs.saturating_sub(now_unix_secs);
        let is_absurd = lasts_secs > LEASE_SECS + LATE_MAX_SECS;
        self.by != own.name() && !is_over && !is_absurd && !own.is_left_behind(&self.by)
    }
}

/// Refuses where another operator has a lease on the identity.
pub(super) fn check(hub: &Hub, identity: &Identity, twin: &Twin, own: &Holder) -> Result<(), Stop> {
    check_at(hub.unix_now_secs(), identity, twin, own)
}

fn check_at(now_unix_secs: u64, identity: &Identity, twin: &Twin, own: &Holder) -> Result<(), Stop> {
    match Lease::read(&twin.tags).filter(|lease| lease.is_in_the_way(own, now_unix_secs)) {
        Some(lease) => Err(Stop::Busy {
            by: lease.by,
            left: Duration::from_secs(lease.until_unix_secs.saturating_sub(now_unix_secs)),
        }),
        None if identity.device_id == twin.device_id => Ok(()),
        None => {
            Err(Failure::failed(format!("the hub answered with another twin than that of {identity}")).into())
        }
    }
}

/// Whether the twin shows a lease that this run may take out: its own, or one that holds no more.
pub(super) fn may_be_cleared(hub: &Hub, twin: &Twin, own: &Holder) -> bool {
    may_be_cleared_at(hub.unix_now_secs(), twin, own)
}

fn may_be_cleared_at(now_unix_secs: u64, twin: &Twin, own: &Holder) -> bool {
    Lease::read(&twin.tags).is_some_and(|lease| !lease.is_in_the_way(own, now_unix_secs))
}

/// Takes the lease, or makes it last longer, and brings the newest twin. `twin` is the one that was seen last.
pub(super) async fn take(
    hub: &Hub,
    identity: &Identity,
    mut twin: Twin,
    own: &Holder,
) -> Result<(Twin, Held), Stop> {
    for _ in 0..ATTEMPTS_MAX {
        check(hub, identity, &twin, own)?;
        own.takes(identity);
        let taken = Instant::now();
        let until_unix_secs = hub.unix_now_secs().saturating_add(LEASE_SECS);
        let wanted = Lease { by: own.name().to_owned(), until_unix_secs };
        let patch = json!({"tags": {"keyRenewal": {"lease": {"by": wanted.by, "until": until_unix_secs}}}});
        match hub.patch_twin(identity, &patch, Some(&twin.etag)).await {
            Ok(twin) => return Ok((twin, Held { taken })),
            // What a query shows may be a little old, too.
            Err(error) if error.status() == Some(412) => twin = hub.twin(identity).await?,
            // Whether it was written shows in the twin.
            Err(error) if error.is_ambiguous() => {
                let twin = hub.twin(identity).await?;
                // An earlier one of this run ends sooner.
                let is_ours = Lease::read(&twin.tags).is_some_and(|lease| lease == wanted);
                return if is_ours { Ok((twin, Held { taken })) } else { Err(error.into()) };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::failed(format!("the twin of {identity} changes all the time"))
        .next("find out who changes it; then run the same command again")
        .into())
}

#[cfg(test)]
mod tests {
    use super::super::holder::tests::holder_in;
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const ELSEWHERE: &str = "00112233445566778899aabbccddeeff";

    fn lease(by: &str, until_unix_secs: u64) -> Lease {
        Lease { by: by.to_owned(), until_unix_secs }
    }

    #[test]
    fn another_operators_lease_is_in_the_way_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let own = holder_in(dir.path());
        let tags = json!({"keyRenewal": {"lease": {"by": ELSEWHERE, "until": NOW}}});
        let read = Lease::read(&tags).unwrap();
        assert_eq!(read, lease(ELSEWHERE, NOW));
        assert!(read.is_in_the_way(&own, NOW - 1));
        assert!(!read.is_in_the_way(&own, NOW));
        assert!(!lease(own.name(), NOW).is_in_the_way(&own, NOW - 1));
    }

    #[test]
    fn no_lease_that_a_run_writes_is_too_long_for_another_and_what_is_longer_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let own = holder_in(dir.path());
        // The writer's node is ahead, and the reader's answer was long on its way.
        assert!(lease(ELSEWHERE, NOW + LEASE_SECS + LATE_MAX_SECS).is_in_the_way(&own, NOW));
        for until in [NOW + LEASE_SECS + LATE_MAX_SECS + 1, NOW + 400, 2_110_623_129, u64::MAX] {
            assert!(!lease(ELSEWHERE, until).is_in_the_way(&own, NOW), "{until}");
        }
        // The answer to an order is there before anybody else sees the lease end, 15 s early at most.
        let answered_after_secs = LEASE_SECS - LEFT_MIN.as_secs() + 60;
        assert!(lease(ELSEWHERE, NOW + LEASE_SECS - 14).is_in_the_way(&own, NOW + answered_after_secs));
    }

    #[test]
    fn what_is_no_lease_is_in_no_ones_way() {
        for tags in [
            json!(null),
            json!({}),
            json!({"keyRenewal": 7}),
            json!({"keyRenewal": {"lease": null}}),
            json!({"keyRenewal": {"lease": {"by": 7, "until": 1}}}),
            json!({"keyRenewal": {"lease": {"by": "x", "until": "soon"}}}),
            json!({"keyRenewal": {"lease": {"by": "x", "until": -1}}}),
        ] {
            assert_eq!(Lease::read(&tags), None, "{tags}");
        }
    }

    #[test]
    fn a_run_of_this_machine_that_is_gone_holds_nothing_and_any_other_does() {
        let (dir, other_machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, alive, gone) = (holder_in(dir.path()), holder_in(dir.path()), holder_in(dir.path()));
        // On a machine that was restored from the same snapshot.
        let elsewhere = holder_in(other_machine.path());
        let device = Identity::new("d1", None).unwrap();
        for run in [&alive, &gone, &elsewhere] {
            run.takes(&device);
            assert!(lease(run.name(), NOW + 100).is_in_the_way(&own, NOW));
        }
        let (gone_name, elsewhere_name) = (gone.name().to_owned(), elsewhere.name().to_owned());
        drop((gone, elsewhere));
        assert!(!lease(&gone_name, NOW + 100).is_in_the_way(&own, NOW));
        assert!(lease(&elsewhere_name, NOW + 100).is_in_the_way(&own, NOW));
        assert!(lease(alive.name(), NOW + 100).is_in_the_way(&own, NOW));
        for odd in ["", "somebody-1-2", "../../../../etc/passwd"] {
            assert!(lease(odd, NOW + 100).is_in_the_way(&own, NOW), "{odd}");
        }
    }

    fn twin(device_id: &str, tags: &Value) -> Twin {
        serde_json::from_value(json!({"deviceId": device_id, "etag": "1", "tags": tags, "properties": {}}))
            .unwrap()
    }

    fn leased(by: &str, until: u64) -> Value {
        json!({"keyRenewal": {"lease": {"by": by, "until": until}}})
    }

    #[test]
    fn a_lease_that_stands_keeps_others_away_and_not_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let own = holder_in(dir.path());
        let identity = Identity::new("d1", None).unwrap();
        let stands = twin("d1", &leased(ELSEWHERE, NOW + 60));
        let refused = check_at(NOW, &identity, &stands, &own);
        let Err(Stop::Busy { by, left }) = refused else { panic!("{refused:?}") };
        assert_eq!((by.as_str(), left), (ELSEWHERE, Duration::from_secs(60)));
        assert!(check_at(NOW, &identity, &twin("d1", &leased(own.name(), NOW + 60)), &own).is_ok());
        assert!(check_at(NOW, &identity, &twin("d1", &leased(ELSEWHERE, NOW)), &own).is_ok());
        assert!(check_at(NOW, &identity, &twin("d1", &json!({})), &own).is_ok());
    }

    #[test]
    fn another_devices_twin_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let own = holder_in(dir.path());
        let identity = Identity::new("d1", None).unwrap();
        let answer = check_at(NOW, &identity, &twin("d2", &json!({})), &own);
        assert!(matches!(answer, Err(Stop::Failed(_))));
    }

    #[test]
    fn a_run_clears_its_own_lease_and_those_that_hold_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let own = holder_in(dir.path());
        let may = |by: &str, until| may_be_cleared_at(NOW, &twin("d1", &leased(by, until)), &own);
        assert!(may(own.name(), NOW + 60) && may(ELSEWHERE, NOW));
        assert!(!may(ELSEWHERE, NOW + 60));
        assert!(!may_be_cleared_at(NOW, &twin("d1", &json!({})), &own));
    }

    #[tokio::test(start_paused = true)]
    async fn no_key_is_ordered_when_the_lease_could_end_before_the_answer() {
        let held = Held { taken: Instant::now() };
        assert!(held.is_good());
        tokio::time::advance(Duration::from_secs(LEASE_SECS) - LEFT_MIN).await;
        assert!(!held.is_good());
    }
}
