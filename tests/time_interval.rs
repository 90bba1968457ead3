//! Intervals: when they tick, and what happens to missed ticks.

mod support;

use std::task::Waker;

use futures_lite::StreamExt;
use kittiwake::time::{Duration, Instant, Interval, MissedTickBehavior, advance, interval, interval_at, sleep_until};
use support::{assert_at, counting_waker, poll_with, run, run_paused, within};

const PERIOD: Duration = Duration::from_millis(100);

/// The first tick comes at once, and the next one a period later. Ticks do not drift.
#[test]
fn first_tick_comes_at_once() {
    run_paused(|| async {
        let start = Instant::now();
        let mut interval = interval(PERIOD);
        for i in 0..50 {
            assert_eq!(interval.tick().await, start + PERIOD * i, "tick {i} must be due on time");
            assert_at(Instant::now(), start + PERIOD * i);
        }
    });
}

/// No tick comes early on the real clock.
#[test]
fn no_tick_comes_early() {
    run(|| async {
        let mut interval = interval(Duration::from_micros(700));
        let first = interval.tick().await;
        for i in 1..10 {
            let due = interval.tick().await;
            assert_eq!(due, first + Duration::from_micros(700) * i, "ticks must not drift");
            assert!(Instant::now() >= due, "tick {i} came early");
        }
    });
}

/// `interval_at` ticks first at its start.
#[test]
fn interval_at_ticks_at_its_start() {
    run_paused(|| async {
        let start = Instant::now() + Duration::from_secs(3);
        let mut interval = interval_at(start, PERIOD);
        assert_eq!(interval.tick().await, start, "the first tick must be due at the start");
        assert_at(Instant::now(), start);
        assert_eq!(interval.tick().await, start + PERIOD, "the second tick must be due a period later");
        assert_eq!(interval.period(), PERIOD, "the interval must return its period");
    });
}

/// `Burst` makes up for missed ticks until the interval is on time again.
#[test]
fn burst_makes_up_missed_ticks() {
    // The task is busy for 350 ms after the tick at 0, so the ticks at 100, 200 and 300 are late.
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Burst),
        [(100, 350), (200, 350), (300, 350), (400, 400), (500, 500)]
    );
}

/// `Delay` schedules the next tick a period after the late one.
#[test]
fn delay_counts_from_late_tick() {
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Delay),
        [(100, 350), (450, 450), (550, 550), (650, 650), (750, 750)]
    );
}

/// `Skip` keeps the original schedule after a late tick.
#[test]
fn skip_keeps_the_schedule() {
    assert_eq!(
        ticks_after_350_ms(MissedTickBehavior::Skip),
        [(100, 350), (400, 400), (500, 500), (600, 600), (700, 700)]
    );
}

/// A tick that is late by less than a period changes nothing.
#[test]
fn slightly_late_tick_changes_nothing() {
    use MissedTickBehavior::{Burst, Skip};
    run_paused(|| async {
        for behavior in [Burst, Skip] {
            let mut interval = interval(PERIOD);
            interval.set_missed_tick_behavior(behavior);
            let start = interval.tick().await;
            advance(Duration::from_millis(150)).await;
            assert_eq!(interval.tick().await, start + PERIOD, "{behavior:?}: the late tick must keep its time");
            assert_eq!(interval.tick().await, start + PERIOD * 2, "{behavior:?}: the next tick must keep its time");
        }
    });
}

/// With `Delay`, a whole period follows a tick that is late by more than 5 ms. A tick that is less late changes nothing.
#[test]
fn whole_period_follows_delayed_tick() {
    run_paused(|| async {
        for (late, next) in [(4, 100), (6, 106), (90, 190)] {
            let mut interval = interval(PERIOD);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let start = interval.tick().await + PERIOD;
            advance(PERIOD + Duration::from_millis(late)).await;
            assert_eq!(interval.tick().await, start);
            assert_eq!(
                interval.tick().await - start,
                Duration::from_millis(next),
                "after a tick that was {late} ms late"
            );
        }
    });
}

/// Returns the due time and the actual time of five ticks after the first, in milliseconds, if the task is busy for
/// 350 ms.
#[track_caller]
fn ticks_after_350_ms(behavior: MissedTickBehavior) -> Vec<(u128, u128)> {
    run_paused(move || async move {
        let mut interval = interval(PERIOD);
        assert_eq!(interval.missed_tick_behavior(), MissedTickBehavior::Burst, "the default must be Burst");
        interval.set_missed_tick_behavior(behavior);
        assert_eq!(interval.missed_tick_behavior(), behavior, "the interval must return the behavior that was set");
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

/// After a reset the interval ticks a period later, and the old deadline has no effect.
#[test]
fn reset_interval_restarts_its_period() {
    run_paused(|| async {
        let mut interval = interval(PERIOD);
        interval.tick().await;
        let _ = poll_with(Waker::noop(), &mut Box::pin(interval.tick()));
        advance(Duration::from_millis(70)).await;
        let reset = Instant::now();
        interval.reset();
        assert_eq!(interval.tick().await, reset + PERIOD, "the tick must be due a period after the reset");
        assert_eq!(interval.tick().await, reset + PERIOD * 2, "the next tick must be due a period later");
    });
}

/// After a reset to a moment the next tick is due then, also if the moment is past, and the next one a period later.
#[test]
fn interval_is_reset_to_a_moment() {
    run_paused(|| async {
        let mut interval = interval(PERIOD);
        let start = interval.tick().await;
        let _ = poll_with(Waker::noop(), &mut Box::pin(interval.tick()));
        interval.reset_after(PERIOD * 3);
        assert_eq!(interval.tick().await, start + PERIOD * 3);
        assert_eq!(interval.tick().await, start + PERIOD * 4, "the period follows from the reset");
        let now = Instant::now();
        interval.reset_immediately();
        assert_eq!(interval.tick().await, now);
        assert_eq!(interval.tick().await, now + PERIOD);
        interval.reset_at(start);
        assert_eq!(interval.tick().await, start, "a past tick is due at once");
        assert_eq!(interval.tick().await, start + PERIOD);
    });
}

/// An interval whose period exceeds the clock ticks once and does not panic.
#[test]
fn longest_interval_ticks_once() {
    run(|| async {
        let mut interval = interval(Duration::MAX);
        interval.tick().await;
        assert!(is_pending(&mut interval), "the second tick must never come");
        interval.reset();
        assert!(is_pending(&mut interval), "no tick may come after the reset");
    });
}

#[track_caller]
fn is_pending(interval: &mut Interval) -> bool {
    interval.poll_tick(&mut std::task::Context::from_waker(Waker::noop())).is_pending()
}

/// An interval is a stream that never ends.
#[test]
fn interval_is_an_endless_stream() {
    run_paused(|| async {
        let start = Instant::now();
        let ticks: Vec<_> = interval(PERIOD).take(5).map(|due| due - start).collect().await;
        assert_eq!(ticks, [0, 1, 2, 3, 4].map(|i| PERIOD * i), "the stream must return each tick in order");
    });
}

/// A dropped `tick` uses up no tick. `select!` drops the branch that lost.
#[test]
fn dropped_tick_uses_none_up() {
    run_paused(|| async {
        let mut interval = interval(PERIOD);
        let start = interval.tick().await;
        for i in 1..6 {
            for _ in 0..3 {
                let (waker, _wakes) = counting_waker();
                assert!(poll_with(&waker, &mut Box::pin(interval.tick())).is_pending(), "tick {i} must still be due");
            }
            sleep_until(start + PERIOD * i).await;
            assert_eq!(interval.tick().await, start + PERIOD * i, "tick {i} must not be used up");
        }
    });
}

/// A period of zero panics, and the panic points to the caller.
#[test]
fn zero_period_panics_at_the_caller() {
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
        assert!(first && second, "a period of zero must panic");
        let places: Vec<_> = receiver.try_iter().collect();
        for expected in [line + 1, line + 2] {
            let expected = Some((file!().to_owned(), expected));
            assert!(
                places.contains(&expected),
                "the panic must point to {expected:?}, its caller, and not to {places:?}"
            );
        }
    });
}
