//! Setting, changing and removing timeouts.

use std::io::ErrorKind;

use kittiwake::time::{Duration, Instant, advance};

use super::*;

/// A stream returns the timeouts that were set, and a new stream has none.
#[test]
fn stream_returns_its_timeouts() {
    let (stream, _peer) = pair_with_std();
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        assert_eq!(kind.get(&stream), None, "{kind:?}: a new stream must have no timeout");
    }
    for duration in [Duration::from_nanos(1), MS, TEN, HOUR * 24 * 365, Duration::MAX] {
        for (at, kind) in [Kind::Read, Kind::Write, Kind::Idle].into_iter().enumerate() {
            let duration = duration.saturating_sub(Duration::from_nanos(at as u64)).max(Duration::from_nanos(1));
            kind.set(&stream, Some(duration)).expect("a timeout");
            assert_eq!(kind.get(&stream), Some(duration), "{kind:?}");
        }
    }
    for kind in [Kind::Write, Kind::Read, Kind::Idle] {
        kind.set(&stream, None).expect("no timeout");
        assert_eq!(kind.get(&stream), None, "{kind:?}: the timeout was removed");
    }
}

/// The three timeouts are independent settings.
#[test]
fn timeouts_are_independent() {
    let (stream, _peer) = pair_with_std();
    let all = |stream: &Stream| (stream.read_timeout(), stream.write_timeout(), stream.idle_timeout());
    stream.set_read_timeout(Some(SECOND)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), None, None));
    stream.set_idle_timeout(Some(HOUR)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), None, Some(HOUR)));
    stream.set_write_timeout(Some(TEN)).expect("a timeout");
    assert_eq!(all(&stream), (Some(SECOND), Some(TEN), Some(HOUR)));
    stream.set_idle_timeout(None).expect("no timeout");
    assert_eq!(all(&stream), (Some(SECOND), Some(TEN), None));
    stream.set_read_timeout(None).expect("no timeout");
    assert_eq!(all(&stream), (None, Some(TEN), None));
}

/// A timeout of zero is refused, as in std, and the old timeout stays.
#[test]
fn zero_timeout_is_refused() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        assert!(link.poll().is_pending(), "the operation must wait");
        advance(6 * SECOND).await;
        let error = case.set(&link.stream, Some(Duration::ZERO)).expect_err("zero is no timeout");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(case.kind.get(&link.stream), Some(TEN), "the old timeout must stay");
        link.fails_at(start + TEN).await;

        let (fresh, _peer) = pair_with_std();
        assert!(case.set(&fresh, Some(Duration::ZERO)).is_err(), "zero is no timeout");
        assert_eq!(case.kind.get(&fresh), None, "the refused timeout must not be set");
    });
}

/// The longest timeouts never end. The computation of their deadline must not overflow.
#[test]
fn longest_timeout_never_ends() {
    in_each_case(|case| async move {
        for duration in [Duration::MAX, Duration::from_secs(u64::MAX / 10), Duration::from_nanos(u64::MAX)] {
            let link = Link::new(case, duration).await;
            assert!(link.poll().is_pending(), "the operation must wait");
            advance(HOUR).await;
            assert!(link.poll().is_pending(), "{duration:?} cannot have passed");
            assert_eq!(link.wakes.get(), 0, "the task must not be woken");
        }
    });
}

/// A new timeout holds for an operation that already waits without one.
#[test]
fn set_timeout_bounds_waiting_operation() {
    each_change(None, Some(TEN), Some(15 * SECOND));
}

/// A shorter timeout holds for an operation that already waits: its timer moves forward.
#[test]
fn shortened_timeout_bounds_waiting_operation() {
    each_change(Some(HOUR), Some(TEN), Some(15 * SECOND));
}

/// A longer timeout holds for an operation that already waits: its timer moves back.
#[test]
fn lengthened_timeout_bounds_waiting_operation() {
    each_change(Some(TEN), Some(HOUR), Some(HOUR + 5 * SECOND));
}

/// Setting the same timeout again restarts the time of an operation that already waits.
#[test]
fn repeated_timeout_restarts_waiting_operation() {
    each_change(Some(TEN), Some(TEN), Some(15 * SECOND));
}

/// Removing the timeout lets an operation wait for ever.
#[test]
fn removed_timeout_fails_no_operation() {
    each_change(Some(TEN), None, None);
}

/// A new setting discards a deadline that has passed but was not reported.
#[test]
fn new_timeout_discards_passed_deadline() {
    in_each_case(|case| async move {
        for setting in [None, Some(TEN), Some(HOUR)] {
            let link = Link::new(case, TEN).await;
            assert!(link.poll().is_pending(), "the operation must wait");
            advance(HOUR).await;
            case.set(&link.stream, setting).expect("a setting");
            let start = Instant::now();
            assert!(link.poll().is_pending(), "{setting:?} must start now");
            match setting {
                Some(duration) => drop(link.fails_at(start + duration).await),
                None => link.waits_for_ever().await,
            }
        }
    });
}

/// Each setting restarts the time. A program may use the timeout as a watchdog.
#[test]
fn each_setting_restarts_the_time() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        let start = Instant::now();
        let waiter = link.spawn();
        for second in 1..=50 {
            settle().await;
            advance_to(start + second * SECOND).await;
            let duration = if second % 3 == 0 { HOUR } else { TEN };
            case.set(&link.stream, Some(duration)).expect("a timeout");
        }
        settle().await;
        fails_in_task_at(waiter, start + 60 * SECOND).await;
    });
}

/// A timeout that is set between two waits holds for the second one.
#[test]
fn timeout_set_between_waits_holds() {
    in_each_case(|case| async move {
        let link = Link::new(case, TEN).await;
        for round in 0..5 {
            case.set(&link.stream, None).expect("no timeout");
            link.waits_for_ever().await;
            link.serve_and_complete().await;
            link.use_up().await;
            let duration = TEN * (round + 1);
            case.set(&link.stream, Some(duration)).expect("a timeout");
            let start = Instant::now();
            link.fails_at(start + duration).await;
        }
    });
}

/// Tests the effect of a setting on a waiting operation. The operation waits for 5 s under the timeout `before`,
/// then `setting` is set. The wait must fail at `end` from its start, or never.
#[track_caller]
fn each_change(before: Option<Duration>, setting: Option<Duration>, end: Option<Duration>) {
    for case in CASES {
        println!("{case:?}");
        run_paused(move || async move {
            let link = Link::new(case, HOUR).await;
            case.set(&link.stream, before).expect("a setting");
            let start = Instant::now();
            let waiter = link.spawn();
            settle().await;
            advance_to(start + 5 * SECOND).await;
            case.set(&link.stream, setting).expect("a setting");
            settle().await;
            match end {
                Some(end) => {
                    fails_in_task_at(waiter, start + end).await;
                }
                None => {
                    advance(24 * HOUR).await;
                    settle().await;
                    assert!(!waiter.is_finished(), "the operation must wait for ever");
                    link.serve_until(|| waiter.is_finished()).await;
                    waiter.await.expect("the waiter").0.expect("the operation is served in the end");
                }
            }
        });
    }
}
