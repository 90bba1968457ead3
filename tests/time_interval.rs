//! Intervals: when they tick, and what becomes of ticks that nobody waited for.

mod support;

use std::task::Waker;

use futures_lite::StreamExt;
use kittiwake::time::{Duration, Instant, Interval, MissedTickBehavior, advance, interval, interval_at, sleep_until};
use support::{assert_at, counting_waker, poll_with, run, run_paused, within};

const PERIOD: Duration = Duration::from_millis(100);

/// A first tick after a period would delay what most loops do at once.
#[test]
fn the_first_tick_comes_at_once_and_the_next_a_period_later() {
    run_paused(|| async {
        let start = Instant::now();
        let mut interval = interval(PERIOD);
        for i in 0..50 {
            assert_eq!(interval.tick().await, start + PERIOD * i, "tick {i} was due on time: ticks do not drift");
            assert_at(Instant::now(), start + PERIOD * i);
        }
    });
}

/// On the real clock, too, no tick comes before it is due.
#[test]
fn no_tick_comes_early() {
    run(|| async {
        let mut interval = interval(Duration::from_micros(700));
        let first = interval.tick().await;
        for i in 1..10 {
            let due = interval.tick().await;
            assert_eq!(due, first + Duration::from_micros(700) * i, "ticks do not drift");
            assert!(Instant::now() >= due, "tick {i} came early");
        }
    });
}

/// `interval_at` is how to start later.
#[test]
fn interval_at_ticks_first_at_its_start() {
    run_paused(|| async {
        let start = Instant::now() + Duration::from_secs(3);
        let mut interval = interval_at(start, PERIOD);
        assert_eq!(interval.tick().await, start, "the first tick");
        assert_at(Instant::now(), start);
        assert_eq!(interval.tick().await, start + PERIOD, "the second tick");
        assert_eq!(interval.period(), PERIOD, "it says its period");
    });
}

/// A backlog is made up for, tick by tick, until the interval is on time again.
#[test]
fn burst_makes_up_for_missed_ticks() {
    // Busy for 350 ms after the tick at 0: those at 100, 200 and 300 are late.
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Burst),
        [(100, 350), (200, 350), (300, 350), (400, 400), (500, 500)]
    );
}

/// After a late tick, the next comes a whole period later.
#[test]
fn delay_counts_from_the_late_tick() {
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Delay),
        [(100, 350), (450, 450), (550, 550), (650, 650), (750, 750)]
    );
}

/// After a late tick, the next comes when it would have come anyway.
#[test]
fn skip_keeps_to_the_grid() {
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Skip),
        [(100, 350), (400, 400), (500, 500), (600, 600), (700, 700)]
    );
}

/// Who is late by less than a period has missed nothing.
#[test]
fn a_tick_that_is_a_little_late_changes_nothing() {
    use MissedTickBehavior::{Burst, Delay, Skip};
    run_paused(|| async {
        for behavior in [Burst, Delay, Skip] {
            let mut interval = interval(PERIOD);
            interval.set_missed_tick_behavior(behavior);
            let start = interval.tick().await;
            advance(Duration::from_millis(150)).await;
            assert_eq!(interval.tick().await, start + PERIOD, "{behavior:?}: the late one");
            assert_eq!(interval.tick().await, start + PERIOD * 2, "{behavior:?}: the next is not missed");
        }
    });
}

/// When five ticks after the first were due, and when they came, in milliseconds, if nobody waited for 350 ms.
#[track_caller]
fn ticks_after_350_ms(behavior: MissedTickBehavior) -> Vec<(u128, u128)> {
    run_paused(move || async move {
        let mut interval = interval(PERIOD);
        assert_eq!(interval.missed_tick_behavior(), MissedTickBehavior::Burst, "unless set");
        interval.set_missed_tick_behavior(behavior);
        assert_eq!(interval.missed_tick_behavior(), behavior, "as set");
        let start = interval.tick().await;
        advance(Duration::from_millis(350)).await;
        let mut ticks = Vec::new();
        for _ in 0..5 {
            let due = interval.tick().await;
            ticks.push(((due - start).as_millis(), (Instant::now() - start).as_millis()));
        }
        ticks
    })
}

/// After a reset, the old deadline must neither tick nor shift the new ones.
#[test]
fn a_reset_interval_ticks_a_period_from_then() {
    run_paused(|| async {
        let mut interval = interval(PERIOD);
        interval.tick().await;
        let _ = poll_with(Waker::noop(), &mut Box::pin(interval.tick()));
        advance(Duration::from_millis(70)).await;
        let reset = Instant::now();
        interval.reset();
        assert_eq!(interval.tick().await, reset + PERIOD, "a period from the reset");
        assert_eq!(interval.tick().await, reset + PERIOD * 2, "and so on from there");
    });
}

/// A period that the clock cannot show means never, and not a panic.
#[test]
fn an_interval_of_all_time_ticks_once() {
    run(|| async {
        let mut interval = interval(Duration::MAX);
        interval.tick().await;
        assert!(is_pending(&mut interval), "the second tick is never");
        interval.reset();
        assert!(is_pending(&mut interval), "nor is it after a reset");
    });
}

#[track_caller]
fn is_pending(interval: &mut Interval) -> bool {
    interval.poll_tick(&mut std::task::Context::from_waker(Waker::noop())).is_pending()
}

/// Combinators on streams are how many would use one.
#[test]
fn an_interval_is_a_stream_that_never_ends() {
    run_paused(|| async {
        let start = Instant::now();
        let ticks: Vec<_> = interval(PERIOD).take(5).map(|due| due - start).collect().await;
        assert_eq!(ticks, [0, 1, 2, 3, 4].map(|i| PERIOD * i), "each tick, in order");
    });
}

/// `select!` drops the tick that lost; if that used one up, it would never come.
#[test]
fn a_dropped_tick_loses_none() {
    run_paused(|| async {
        let mut interval = interval(PERIOD);
        let start = interval.tick().await;
        for i in 1..6 {
            for _ in 0..3 {
                let (waker, _wakes) = counting_waker();
                assert!(poll_with(&waker, &mut Box::pin(interval.tick())).is_pending(), "tick {i} is to come");
            }
            sleep_until(start + PERIOD * i).await;
            assert_eq!(interval.tick().await, start + PERIOD * i, "tick {i} was not used up");
        }
    });
}

/// The panic is the caller's mistake, and is to point there.
#[test]
fn a_period_of_zero_panics_and_points_to_the_caller() {
    within(|| {
        let old = std::panic::take_hook();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::panic::set_hook(Box::new(move |info| {
            let _ = sender.send(info.location().map(|location| (location.file().to_owned(), location.line())));
        }));
        let line = line!();
        let first = std::panic::catch_unwind(|| interval(Duration::ZERO)).is_err();
        let second = std::panic::catch_unwind(|| interval_at(Instant::now(), Duration::ZERO)).is_err();
        std::panic::set_hook(old);
        assert!(first && second, "a period of zero panics");
        let places: Vec<_> = receiver.try_iter().collect();
        for expected in [line + 1, line + 2] {
            let expected = Some((file!().to_owned(), expected));
            assert!(places.contains(&expected), "the panic points to {expected:?}, its caller, not to {places:?}");
        }
    });
}
