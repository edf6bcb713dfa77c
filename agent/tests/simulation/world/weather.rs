//! What a world is like from its beginning to its end, and what befalls it meanwhile.

use crate::disk::DiskFault;
use crate::rng::Rng;

/// What is the same in a world from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Traits {
    pub(crate) window_ms: u64,
    pub(crate) lifetime_secs: u64,
    pub(crate) breaks_before_make: bool,
    pub(crate) allows_unsealed: bool,
    pub(crate) seals: bool,
    pub(crate) allows_unauthenticated: bool,
    /// Whether the operator authenticates its offers.
    pub(crate) authenticates: bool,
    /// Whether the hub closes the older connection before it says yes to the newer one.
    pub(crate) kicks_first: bool,
    pub(crate) on_refusal: OnRefusal,
    pub(crate) drops_on_key_change: bool,
    /// Longest time that a changed key takes to be accepted, in milliseconds; never more than the window.
    pub(crate) propagation_ms: u64,
    /// Longest time that a destroyed key goes on being accepted.
    pub(crate) linger_ms: u64,
    /// Whether the hub's HTTPS end can be reached, which knows the time.
    pub(crate) answers_time: bool,
}

/// What a hub does to the live connection when it refuses a second one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OnRefusal {
    KeepsLive,
    DropsThenRefuses,
    RefusesThenDrops,
}

/// What goes wrong at the moment, each in so many of a thousand cases.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) latency_ms: u64,
    pub(crate) dial_fails: u64,
    pub(crate) connack_never: u64,
    pub(crate) connack_late: u64,
    pub(crate) connack_spurious: u64,
    pub(crate) connack_unavailable: u64,
    pub(crate) connack_hang_up: u64,
    pub(crate) restart_at_connect: u64,
    pub(crate) twin_refused: u64,
    pub(crate) twin_lost: u64,
    pub(crate) report_refused: u64,
    pub(crate) report_lost: u64,
    pub(crate) hint_lost: u64,
    pub(crate) hint_twice: u64,
    pub(crate) ack_late: u64,
    pub(crate) ack_lost: u64,
    pub(crate) cut: u64,
    pub(crate) tear: u64,
    pub(crate) disk: DiskFault,
    pub(crate) disk_slow: u64,
    pub(crate) crash_in_write: u64,
}

impl Weather {
    pub(crate) fn calm(latency_ms: u64) -> Self {
        Self {
            latency_ms,
            dial_fails: 0,
            connack_never: 0,
            connack_late: 0,
            connack_spurious: 0,
            connack_unavailable: 0,
            connack_hang_up: 0,
            restart_at_connect: 0,
            twin_refused: 0,
            twin_lost: 0,
            report_refused: 0,
            report_lost: 0,
            hint_lost: 0,
            hint_twice: 0,
            ack_late: 0,
            ack_lost: 0,
            cut: 0,
            tear: 0,
            disk: DiskFault::None,
            disk_slow: 0,
            crash_in_write: 0,
        }
    }

    /// A few things go wrong, some often.
    pub(crate) fn wild(rng: &mut Rng) -> Self {
        let latency_ms = rng.pick(&[0, 1, 20, 200, 3_000]);
        let mut weather = Self::calm(latency_ms);
        for _ in 0..rng.range(1, 4) {
            let often = rng.pick(&[30, 200, 600, 1_000]);
            match rng.below(21) {
                0 | 1 => weather.dial_fails = often,
                2 => weather.connack_never = often,
                3 => weather.connack_late = often,
                4 | 5 => weather.connack_spurious = often,
                6 => weather.connack_unavailable = often,
                7 => weather.connack_hang_up = often,
                8 => weather.restart_at_connect = often.min(200),
                9 => weather.twin_refused = often,
                10 => weather.twin_lost = often.min(600),
                11 => weather.report_refused = often,
                12 => weather.report_lost = often.min(600),
                13 => (weather.hint_lost, weather.hint_twice) = (often / 2, often / 2),
                14 => weather.ack_late = often,
                15 => weather.ack_lost = often.min(600),
                16 => weather.cut = often,
                17 => weather.tear = often,
                18 => {
                    weather.disk = rng.pick(&[
                        DiskFault::Full,
                        DiskFault::ReadOnly,
                        DiskFault::SyncFails,
                        DiskFault::DirectorySyncFails,
                        DiskFault::Flaky,
                    ]);
                }
                19 => weather.disk_slow = often,
                _ => weather.crash_in_write = often.min(200),
            }
        }
        weather
    }
}
