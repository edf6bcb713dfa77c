//! Waiting for turns, under a clock that only moves when everybody waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::limits::{Category, Limits, Tier};
use super::line::{Closed, Lines, Outcome, Place};

/// Registry: 100 operations in a minute, of which 98 percent are used, and four at once.
fn s1() -> Arc<Lines> {
    Arc::new(Lines::new(Limits::tier(Tier::S1, 1)))
}

/// What the bucket of [`s1`]'s registry holds.
const DEPTH: u32 = 4;
/// The time between two calls of [`s1`]'s registry.
const SLOT: Duration = Duration::from_millis(613);

async fn call(lines: &Lines, category: Category, place: Place, takes: Duration) {
    let flight = lines.of(category).turn(1, place).await.unwrap().send();
    sleep(takes).await;
    flight.land(Outcome::Served, 0);
}

async fn drain(lines: &Lines) {
    for _ in 0..DEPTH {
        call(lines, Category::Registry, Place::Back, Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_tasks_together_use_the_quota_and_no_more() {
    let lines = Arc::new(Lines::new(Limits::tier(Tier::S1, 6)));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let lines = lines.clone();
        tasks.spawn(async move {
            while start.elapsed() < Duration::from_secs(600) {
                call(&lines, Category::Registry, Place::Back, Duration::from_millis(80)).await;
            }
        });
    }
    tasks.join_all().await;
    let usage = lines.of(Category::Registry).usage();
    let quota = start.elapsed().as_secs_f64() * 10.0;
    let share = usage.calls as f64 / quota;
    assert!((0.95..=1.0).contains(&share), "{share} of the quota");
    assert!(usage.waits > usage.calls / 2 && usage.waited > usage.waited_max, "{usage:?}");
    assert!(usage.waited_max < Duration::from_secs(8), "nobody waited much longer than others: {usage:?}");
}

#[tokio::test(start_paused = true)]
async fn turns_come_in_the_order_of_arrival() {
    let lines = s1();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let (lines, order) = (lines.clone(), order.clone());
        tasks.spawn(async move {
            let turn = lines.of(Category::Registry).turn(1, Place::Back).await.unwrap();
            order.lock().unwrap().push(n);
            turn.send().land(Outcome::Served, 0);
        });
        yield_now().await;
    }
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_leaves_the_line_and_has_used_nothing() {
    let lines = s1();
    drain(&lines).await;
    let line = lines.of(Category::Registry);
    let start = Instant::now();
    let impatient = line.turn(1, Place::Back);
    assert!(timeout(SLOT / 2, impatient).await.is_err());
    // The first of the line gives up, and the one behind it takes its place at once.
    let (first, second) = (line.turn(1, Place::Back), line.turn(1, Place::Back));
    let second = async {
        yield_now().await;
        second.await.unwrap().send().land(Outcome::Served, 0);
        start.elapsed()
    };
    let (gone, waited) = tokio::join!(timeout(SLOT / 4, first), second);
    assert!(gone.is_err());
    assert!(waited < SLOT + SLOT / 8, "{waited:?}");
    assert_eq!(line.usage().calls, u64::from(DEPTH) + 1);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_not_used_goes_back() {
    let lines = s1();
    let line = lines.of(Category::Registry);
    for _ in 0..100 {
        drop(line.turn(1, Place::Back).await.unwrap());
    }
    let start = Instant::now();
    drain(&lines).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!((line.usage().calls, line.usage().waits), (u64::from(DEPTH), 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_under_way_frees_its_place() {
    let lines = Lines::new(Limits::unlimited());
    let line = lines.of(Category::Methods);
    for _ in 0..100 {
        drop(line.turn(1, Place::Back).await.unwrap().send());
    }
    assert_eq!(line.usage().calls, 100);
}

#[tokio::test(start_paused = true)]
async fn one_retry_after_holds_the_whole_category_and_no_other() {
    let lines = Arc::new(Lines::new(Limits::unlimited()));
    let line = lines.of(Category::Registry);
    let flight = line.turn(1, Place::Back).await.unwrap().send();
    flight.land(Outcome::Throttled(Some(Duration::from_secs(7))), 0);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for place in [Place::Front, Place::Back, Place::Back, Place::Front] {
        let lines = lines.clone();
        tasks.spawn(async move {
            call(&lines, Category::Registry, place, Duration::ZERO).await;
            start.elapsed()
        });
    }
    call(&lines, Category::TwinReads, Place::Back, Duration::ZERO).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let waits = tasks.join_all().await;
    assert!(waits.iter().all(|wait| *wait >= Duration::from_secs(7)), "{waits:?}");
    assert_eq!((line.usage().throttled, line.usage().calls), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_wants_no_call_for_an_hour_keeps_nobody_waiting() {
    let lines = Lines::new(Limits::unlimited());
    let line = lines.of(Category::Registry);
    let (slow, quick) =
        (line.turn(1, Place::Back).await.unwrap().send(), line.turn(1, Place::Back).await.unwrap().send());
    quick.land(Outcome::Throttled(Some(Duration::from_secs(30))), 0);
    let start = Instant::now();
    let (waiting, ()) = tokio::join!(line.turn(1, Place::Back), async {
        yield_now().await;
        slow.land(Outcome::Throttled(Some(Duration::from_secs(3600))), 0);
    });
    assert_eq!((waiting.err(), start.elapsed()), (Some(Closed(Duration::from_secs(3600))), Duration::ZERO));
    sleep(Duration::from_secs(3600)).await;
    assert!(line.turn(1, Place::Back).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_category_whose_answers_never_come_keeps_no_other_waiting() {
    let lines = Lines::new(Limits::unlimited());
    let line = lines.of(Category::Registry);
    let mut stuck = Vec::new();
    while let Ok(turn) = timeout(Duration::from_secs(60), line.turn(1, Place::Back)).await {
        stuck.push(turn.unwrap().send());
    }
    assert_eq!(stuck.len(), 24);
    let start = Instant::now();
    call(&lines, Category::TwinReads, Place::Back, Duration::ZERO).await;
    call(&lines, Category::TwinUpdates, Place::Front, Duration::ZERO).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    let (next, ()) = tokio::join!(timeout(Duration::from_secs(1), line.turn(1, Place::Back)), async {
        yield_now().await;
        stuck.pop().unwrap().land(Outcome::Served, 0);
    });
    assert!(next.is_ok(), "who waits takes the place of the one that ended");
}

#[tokio::test(start_paused = true)]
async fn the_front_waits_for_few_and_the_back_is_not_starved() {
    let lines = s1();
    drain(&lines).await;
    let start = Instant::now();
    let mut back = JoinSet::new();
    for _ in 0..100 {
        let lines = lines.clone();
        back.spawn(async move {
            call(&lines, Category::Registry, Place::Back, Duration::ZERO).await;
            start.elapsed()
        });
    }
    yield_now().await;
    let mut worst = Duration::ZERO;
    for _ in 0..100 {
        let since = Instant::now();
        call(&lines, Category::Registry, Place::Front, Duration::ZERO).await;
        worst = worst.max(since.elapsed());
    }
    assert!(worst <= 2 * SLOT + SLOT / 8, "{worst:?}");
    let back = back.join_all().await;
    let served_meanwhile = back.iter().filter(|wait| **wait < 200 * SLOT).count();
    assert!(served_meanwhile >= 90, "{served_meanwhile}");
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_shapes_traffic_is_not_crowded() {
    // It serves five calls in a second, one after the other, and never says 429.
    let lines = Arc::new(Lines::new(Limits::unlimited()));
    let hub = Arc::new(tokio::sync::Mutex::new(()));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let (lines, hub) = (lines.clone(), hub.clone());
        tasks.spawn(async move {
            let mut longest = Duration::ZERO;
            while start.elapsed() < Duration::from_secs(300) {
                let flight = lines.of(Category::Registry).turn(1, Place::Back).await.unwrap().send();
                let since = Instant::now();
                drop({
                    let served = hub.lock().await;
                    sleep(Duration::from_millis(200)).await;
                    served
                });
                flight.land(Outcome::Served, 0);
                if start.elapsed() > Duration::from_secs(60) {
                    longest = longest.max(since.elapsed());
                }
            }
            longest
        });
    }
    let longest = tasks.join_all().await.into_iter().max().unwrap();
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    let calls = lines.of(Category::Registry).usage().calls;
    assert!(calls > 5 * 300 * 95 / 100, "{calls}");
}
