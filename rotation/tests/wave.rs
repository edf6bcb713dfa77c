//! Ten thousand agents and a hub that comes back: they must not return as one wave.
//!
//! `TWINKEY_WAVE_SVG=$PWD/docs/wave.svg cargo test -p twinkey-rotation --test wave` draws what happens.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics has failed, as it should"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;

use twinkey_rotation::{
    Effects, Input, KeyName, KeySlot, Outcome, Policy, Ring, State, Timer, Trouble, UnixSecs, step,
};

const DEVICES: usize = 10_000;
/// CONNECTs that the hub answers in a second: what one unit of tier S1 is given (Microsoft, "IoT Hub quotas and
/// throttling": the higher of 100/s and 12/s for each unit).
const CONNECTS_PER_SEC: usize = 100;
/// How long the agent waits for an answer, in ms (`Timing::DEFAULT.connect`).
const CONNECT_TIMEOUT_MS: u64 = 60_000;
/// How long it takes to learn that nobody is there, in ms.
const UNREACHABLE_MS: u64 = 1_000;
/// How long an accepted connection takes to come about, in ms.
const ACCEPTED_MS: u64 = 200;
/// How long everything is watched, in s.
const WATCHED_SECS: u64 = 20 * 60;
/// When the hub goes away, in ms: everybody is connected and settled by then.
const CUT_MS: u64 = 10 * 60 * 1_000;

/// xorshift64*: any sequence will do, as long as it is the same every time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u16 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 48) as u16
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Timer { device: usize, index: usize },
    Answer { device: usize, outcome: Answer },
    Cut,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Accepted,
    Unanswered,
    Unreachable,
}

/// How a device decides when to try again.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// As the agent does.
    Machine,
    /// Every ten seconds, as many a script does.
    EveryTenSeconds,
}

struct Device {
    state: State,
    deadlines: [Option<u64>; Timer::COUNT],
}

/// What the hub saw.
struct Seen {
    /// CONNECTs in each second since the hub was back.
    connects: Vec<usize>,
    /// Devices that were connected at the end of each second since then.
    connected: Vec<usize>,
    /// Most attempts of one device until everybody was back.
    attempts_max: usize,
    /// When everybody was back, in s; `None` if that did not happen.
    all_back_secs: Option<u64>,
}

fn watch(manner: Manner, outage_secs: u64, seed: u64) -> Seen {
    let back_ms = CUT_MS + outage_secs * 1_000;
    let ring = Ring::provisioned(KeySlot::Primary, KeyName([1; 16]), None);
    let mut chance = Chance(seed | 1);
    let mut world = World {
        manner,
        back_ms,
        devices: (0..DEVICES)
            .map(|_| Device { state: State::new(ring), deadlines: [None; Timer::COUNT] })
            .collect(),
        events: BinaryHeap::new(),
        connects: vec![0; usize::try_from(WATCHED_SECS).unwrap()],
        answered: vec![0; usize::try_from((back_ms / 1_000) + WATCHED_SECS + 1).unwrap()],
        attempts: vec![0; DEVICES],
    };
    world.events.push(Reverse((CUT_MS, Event::Cut)));
    for device in 0..DEVICES {
        world.feed(0, device, Input::Boot, chance.next());
    }
    let (mut live, mut all_back_secs, mut attempts_max) = (0, None, 0);
    let mut connected = vec![0; world.connects.len()];
    let end_ms = back_ms + WATCHED_SECS * 1_000;
    while let Some(Reverse((now_ms, event))) = world.events.pop() {
        if now_ms >= end_ms {
            break;
        }
        match event {
            Event::Cut => {
                for device in 0..DEVICES {
                    assert!(world.devices[device].state.live.is_some(), "all are connected before the cut");
                    world.feed(now_ms, device, Input::Lost, chance.next());
                }
                live = 0;
            }
            Event::Timer { device, index } => {
                if world.devices[device].deadlines[index] == Some(now_ms) {
                    world.devices[device].deadlines[index] = None;
                    world.feed(now_ms, device, Input::Fired(Timer::ALL[index]), chance.next());
                }
            }
            Event::Answer { device, outcome } => {
                let outcome = match outcome {
                    Answer::Accepted => Outcome::Accepted { at: UnixSecs(now_ms / 1_000) },
                    Answer::Unanswered => Outcome::Unknown(Trouble::Unanswered),
                    Answer::Unreachable => Outcome::Unknown(Trouble::Unreachable),
                };
                let was_live = world.devices[device].state.live.is_some();
                world.feed(now_ms, device, Input::Attempted(outcome), chance.next());
                live += usize::from(!was_live && world.devices[device].state.live.is_some());
            }
        }
        if now_ms >= back_ms {
            let second = usize::try_from((now_ms - back_ms) / 1_000).unwrap();
            connected[second] = live;
            if live == DEVICES && all_back_secs.is_none() {
                all_back_secs = Some((now_ms - back_ms) / 1_000);
                attempts_max = *world.attempts.iter().max().unwrap();
            }
        }
    }
    // Seconds in which nothing happened are as the one before.
    for second in 1..connected.len() {
        connected[second] = connected[second].max(connected[second - 1]);
    }
    Seen { connects: world.connects, connected, attempts_max, all_back_secs }
}

struct World {
    manner: Manner,
    back_ms: u64,
    devices: Vec<Device>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    connects: Vec<usize>,
    /// CONNECTs answered in each second since the beginning.
    answered: Vec<usize>,
    /// Attempts of each device since the hub was back.
    attempts: Vec<usize>,
}

impl World {
    fn feed(&mut self, now_ms: u64, device: usize, input: Input, chance: u16) {
        let (state, effects) = step(&Policy::DEFAULT, self.devices[device].state, input, chance);
        self.devices[device].state = state;
        let Effects { store, connect, timers, .. } = effects;
        for (timer, delay_ms) in timers.into_iter().flatten() {
            let delay_ms = match (self.manner, timer) {
                (Manner::EveryTenSeconds, Timer::Retry) => 10_000,
                (Manner::EveryTenSeconds | Manner::Machine, _) => delay_ms,
            };
            let index = Timer::ALL.iter().position(|known| *known == timer).unwrap();
            self.devices[device].deadlines[index] = Some(now_ms + delay_ms);
            self.events.push(Reverse((now_ms + delay_ms, Event::Timer { device, index })));
        }
        if connect.is_some() {
            self.connect(now_ms, device);
        }
        if store.is_some() {
            self.feed(now_ms, device, Input::Stored(true), chance);
        }
    }

    fn connect(&mut self, now_ms: u64, device: usize) {
        let (after_ms, outcome) = if now_ms < CUT_MS {
            // The time before: everybody gets in, and token renewals are not what this is about.
            (ACCEPTED_MS, Answer::Accepted)
        } else if now_ms < self.back_ms {
            (UNREACHABLE_MS, Answer::Unreachable)
        } else {
            self.attempts[device] += 1;
            if let Some(count) =
                self.connects.get_mut(usize::try_from((now_ms - self.back_ms) / 1_000).unwrap())
            {
                *count += 1;
            }
            let answered = &mut self.answered[usize::try_from(now_ms / 1_000).unwrap()];
            *answered += 1;
            // The harshest throttling: what is too much is never answered.
            if *answered <= CONNECTS_PER_SEC {
                (ACCEPTED_MS, Answer::Accepted)
            } else {
                (CONNECT_TIMEOUT_MS, Answer::Unanswered)
            }
        };
        self.events.push(Reverse((now_ms + after_ms, Event::Answer { device, outcome })));
    }
}

#[test]
fn after_a_long_outage_ten_thousand_agents_come_back_spread_out() {
    let ours = watch(Manner::Machine, 30 * 60, 7);
    let naive = watch(Manner::EveryTenSeconds, 30 * 60, 7);
    let cut = watch(Manner::Machine, 0, 7);
    let peak = |seen: &Seen| *seen.connects.iter().max().unwrap();
    let all_back = |seen: &Seen| seen.all_back_secs;
    for (name, seen) in [("agents", &ours), ("every 10 s", &naive), ("agents, short cut", &cut)] {
        println!(
            "{name}: peak {} CONNECTs/s, all back after {:?} s, at most {} attempts each, {} CONNECTs in the first 10 min",
            peak(seen),
            all_back(seen),
            seen.attempts_max,
            seen.connects[..600].iter().sum::<usize>()
        );
    }
    if let Some(path) = std::env::var_os("TWINKEY_WAVE_SVG") {
        std::fs::write(path, draw(&ours, &naive)).unwrap();
    }
    // 2 % of them in the busiest second, where the naive ones come all at once.
    assert!(peak(&ours) <= DEVICES / 50, "{}", peak(&ours));
    assert!(peak(&naive) >= DEVICES / 2, "{}", peak(&naive));
    assert!(all_back(&ours).is_some_and(|secs| secs <= 15 * 60), "{:?}", all_back(&ours));
    assert!(ours.attempts_max <= 8, "{}", ours.attempts_max);
    // A cut of a moment is answered at once, as a single device's is; what the hub does not answer spreads out.
    assert!(all_back(&cut).is_some_and(|secs| secs < WATCHED_SECS), "{:?}", all_back(&cut));
}

fn draw(ours: &Seen, naive: &Seen) -> String {
    const SHOWN_SECS: usize = 20 * 60;
    let x = |second: usize| 90.0 + second as f64 * 610.0 / SHOWN_SECS as f64;
    let panel = |values: &[usize], top: f64, max: f64| {
        let points = values[..SHOWN_SECS].iter().enumerate().map(|(second, value)| {
            format!("{:.1},{:.1}", x(second), top + 160.0 - (*value as f64 / max).min(1.0) * 160.0)
        });
        points.collect::<Vec<_>>().join(" ")
    };
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 480\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>text{fill:#444}.axis{stroke:#888}.ours{stroke:#0a7;fill:none;stroke-width:1.5}.naive{stroke:#d62;fill:none}\
         @media(prefers-color-scheme:dark){text{fill:#ccc}}</style>\n",
    );
    for (top, title, max, unit) in [
        (44.0, "CONNECTs a second, 10,000 devices, hub back after 30 minutes", 400.0, "400 or more"),
        (270.0, "devices connected", DEVICES as f64, "10,000"),
    ] {
        writeln!(svg, "<text x=\"90\" y=\"{}\">{title}</text>", top - 12.0).unwrap();
        writeln!(
            svg,
            "<text x=\"4\" y=\"{}\">{unit}</text><text x=\"78\" y=\"{}\">0</text>",
            top + 4.0,
            top + 164.0
        )
        .unwrap();
        writeln!(
            svg,
            "<path class=\"axis\" fill=\"none\" d=\"M90 {top}V{}H700\"/><text x=\"640\" y=\"{}\">{} min</text>",
            top + 160.0,
            top + 176.0,
            SHOWN_SECS / 60
        )
        .unwrap();
        for (class, seen) in [("naive", naive), ("ours", ours)] {
            let values = if max < DEVICES as f64 { &seen.connects } else { &seen.connected };
            writeln!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", panel(values, top, max)).unwrap();
        }
    }
    svg.push_str(
        "<path class=\"ours\" d=\"M60 466h20\"/><text x=\"86\" y=\"470\">twinkey-agent</text>\
         <path class=\"naive\" d=\"M200 466h20\"/><text x=\"226\" y=\"470\">a retry every 10 seconds</text></svg>\n",
    );
    svg
}
