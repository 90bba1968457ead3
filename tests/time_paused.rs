//! The paused clock: it stands still, advances only when every task waits, and does not overtake bytes.

mod support;

use std::sync::{Arc, Mutex};
use std::task::Waker;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::consume_budget;
use kittiwake::time::{Duration, Instant, advance, pause, resume, sleep, sleep_until, timeout};
use support::{assert_at, one_worker, panic_of, paused_runtime, poll_with, run, run_paused, spin, within};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// A clock that starts paused stands still.
#[test]
fn paused_clock_stands_still() {
    run_paused(|| async {
        let start = Instant::now();
        std::iter::repeat_with(std::time::Instant::now).take(1000).for_each(drop);
        support::settle().await;
        assert_eq!(Instant::now(), start, "no task waited for time");
    });
}

/// The paused clock advances to the next deadline, so that hours pass at once.
#[test]
fn paused_clock_advances_to_deadline() {
    run_paused(|| async {
        let (real, start) = (std::time::Instant::now(), Instant::now());
        let short = kittiwake::spawn(async {
            sleep(SECOND).await;
            Instant::now()
        });
        sleep(HOUR).await;
        assert_at(Instant::now(), start + HOUR);
        assert_at(short.await.expect("the short sleep"), start + SECOND);
        assert!(real.elapsed() < HOUR, "the test must not wait for an hour");
    });
}

/// On a slow machine the polls of a task take longer. With a paused clock the order of the tasks is the same there: the
/// budget of a poll has no limit of time.
#[test]
fn paused_order_ignores_real_time() {
    run_paused(|| async {
        let other = kittiwake::spawn(async {});
        for operation in 0..100 {
            spin(Duration::from_micros(20));
            consume_budget().await;
            assert!(!other.is_finished(), "the task gave way after {operation} operations of 128");
        }
    });
}

/// `pause` stops a running clock, and `resume` lets it continue from the same time.
#[test]
fn resume_continues_a_paused_clock() {
    run(|| async {
        let before = Instant::now();
        pause();
        let paused = Instant::now();
        assert!(paused >= before, "the clock must stop at its time");
        support::settle().await;
        assert_eq!(Instant::now(), paused, "the clock must stand still");
        pause();
        assert_eq!(Instant::now(), paused, "a second pause must change nothing");
        sleep(HOUR).await;
        let jumped = Instant::now();
        assert_at(jumped, paused + HOUR);

        resume();
        resume();
        let real = std::time::Instant::now();
        let start = Instant::now();
        assert!(start >= jumped, "the clock must continue from its time");
        assert!(start < jumped + HOUR, "the clock must not add its jump to the real time");
        sleep(Duration::from_millis(3)).await;
        assert!(real.elapsed() >= Duration::from_millis(3), "the sleep must last for its real time");
        assert!(start.elapsed() >= Duration::from_millis(3), "the clock must show the sleep");
    });
}

/// `advance` reaches many deadlines in order.
#[test]
fn advance_reaches_deadlines_in_order() {
    run_paused(|| async {
        let start = Instant::now();
        let log = Arc::new(Mutex::new(Vec::new()));
        for i in [7_u32, 3, 9, 1, 5, 2, 8, 4, 10, 6] {
            let log = log.clone();
            kittiwake::spawn(async move {
                sleep_until(start + SECOND * i).await;
                log.lock().unwrap().push((i, Instant::now()));
            });
        }
        support::settle().await;
        advance(SECOND * 10).await;
        assert_eq!(Instant::now(), start + SECOND * 10, "the clock must stand where `advance` ended");
        let log = log.lock().unwrap();
        assert_eq!(log.len(), 10, "every deadline must be reached");
        for (at, (i, now)) in log.iter().enumerate() {
            assert_eq!(*i as usize, at + 1, "the deadlines must be reached in order");
            assert_at(*now, start + SECOND * *i);
        }
    });
}

/// `advance` reaches deadlines that are set on the way.
#[test]
fn advance_reaches_new_deadlines() {
    run_paused(|| async {
        let task = kittiwake::spawn(async {
            let mut seen = Vec::new();
            let start = Instant::now();
            for _ in 0..100 {
                let deadline = Instant::now() + SECOND;
                sleep_until(deadline).await;
                assert_at(Instant::now(), deadline);
                seen.push(Instant::now() - start);
            }
            seen
        });
        support::settle().await;
        advance(SECOND * 101).await;
        assert!(task.is_finished(), "a hundred seconds must pass one by one");
        assert!(task.await.expect("the sleeper").is_sorted(), "the seconds must pass in order");
    });
}

/// `advance` does not reach later deadlines.
#[test]
fn advance_spares_later_deadlines() {
    run_paused(|| async {
        let task = kittiwake::spawn(sleep(SECOND * 60));
        support::settle().await;
        advance(SECOND * 59).await;
        support::settle().await;
        assert!(!task.is_finished(), "a second is left");
        advance(Duration::ZERO).await;
        assert!(!task.is_finished(), "an advance by zero must reach no deadline");
        advance(SECOND).await;
        assert!(task.is_finished(), "a minute has passed");
    });
}

/// `advance` reaches a deadline that is exactly at its end, and none that is a nanosecond later. The timing wheel rounds
/// both up to the same tick, once another timer has fired before.
#[test]
fn advance_reaches_deadline_at_its_end() {
    run_paused(|| async {
        let start = Instant::now();
        let nanosecond = Duration::from_nanos(1);
        let [first, second, third] = [1, 2, 3].map(|i| kittiwake::spawn(sleep_until(start + SECOND * i)));
        let later = kittiwake::spawn(sleep_until(start + SECOND * 3 + nanosecond));
        let ends = || [&first, &second, &third, &later].map(kittiwake::task::JoinHandle::is_finished);
        support::settle().await;
        for (end, expected) in [
            (SECOND, [true, false, false, false]),
            (SECOND * 2, [true, true, false, false]),
            (SECOND * 3, [true, true, true, false]),
            (SECOND * 3 + nanosecond, [true; 4]),
        ] {
            advance(end - start.elapsed()).await;
            assert_eq!(ends(), expected, "at {end:?}");
            assert_eq!(start.elapsed(), end, "the clock must stand where `advance` ended");
        }
    });
}

/// `advance` panics on a clock that is not paused, and says what to call.
#[test]
fn advance_needs_a_paused_clock() {
    run(|| async {
        let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut Box::pin(advance(SECOND))).is_ready()));
        assert!(text.contains("time::pause"), "the panic must name `time::pause`: {text}");
    });
    let text = panic_of(|| futures_lite::future::block_on(advance(SECOND)));
    assert!(text.contains("outside a runtime"), "the panic must say where it was called: {text}");
    assert!(panic_of(pause).contains("outside a runtime"), "`pause` must panic too");
    assert!(panic_of(resume).contains("outside a runtime"), "`resume` must panic too");
}

/// The clock advances only when every task waits. A jump while a task works would be a timeout that no real clock
/// shows.
#[test]
fn busy_task_holds_paused_clock() {
    run_paused(|| async {
        let start = Instant::now();
        let sleeper = kittiwake::spawn(sleep(HOUR));
        for _ in 0..2000 {
            kittiwake::task::yield_now().await;
            assert_eq!(Instant::now(), start, "the clock advanced while a task was busy");
        }
        assert!(!sleeper.is_finished(), "no hour has passed");
        sleeper.await.expect("the sleeper");
        assert_at(Instant::now(), start + HOUR);
    });
}

/// An exchange on a paused clock never times out. Bytes between two sockets take real time.
#[test]
fn paused_exchange_never_times_out() {
    run_paused(|| async {
        let (mut client, mut server) = support::pair().await;
        let echo = kittiwake::spawn(async move {
            let mut buf = [0; 64];
            loop {
                match timeout(SECOND, server.read(&mut buf)).await.expect("the server's read does not time out")? {
                    0 => return std::io::Result::Ok(()),
                    n => server.write_all(&buf[..n]).await?,
                }
            }
        });
        let start = Instant::now();
        for i in 0..500_u32 {
            client.write_all(&i.to_be_bytes()).await.expect("a write");
            let mut answer = [0; 4];
            let read = timeout(SECOND, client.read_exact(&mut answer)).await;
            read.expect("the client's read does not time out").expect("a read");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer must equal the question");
        }
        drop(client);
        echo.await.expect("the server").expect("the server's transfers succeed");
        assert!(start.elapsed() < SECOND, "the clock must not reach the deadline");
    });
}

/// A silent peer times out on a paused clock.
#[test]
fn paused_read_times_out() {
    run_paused(|| async {
        let (mut client, _server) = support::pair().await;
        for _ in 0..5 {
            let start = Instant::now();
            assert!(timeout(HOUR, client.read(&mut [0])).await.is_err(), "the peer is silent");
            assert_at(Instant::now(), start + HOUR);
        }
    });
}

/// While a socket waits, each jump of the clock leaves the kernel 2 ms to deliver bytes.
#[test]
fn waiting_socket_delays_paused_clock() {
    run_paused(|| async {
        let (mut client, _server) = support::pair().await;
        for _ in 0..3 {
            let real = std::time::Instant::now();
            assert!(timeout(HOUR, client.read(&mut [0])).await.is_err(), "the peer is silent");
            let left = real.elapsed();
            assert!(left >= Duration::from_millis(2), "the clock advanced after {left:?}");
        }
    });
}

/// The paused clock keeps its time between two calls of one runtime.
#[test]
fn paused_clock_survives_the_call() {
    within(|| {
        let runtime = paused_runtime();
        let first = runtime.block_on(async {
            sleep(HOUR).await;
            Instant::now()
        });
        let (second, task) = runtime.block_on(async { (Instant::now(), kittiwake::spawn(sleep(HOUR))) });
        assert_eq!(second, first, "the clock must stand still between two calls");
        let third = runtime.block_on(async {
            task.await.expect("the sleeper");
            Instant::now()
        });
        assert!(third >= first + HOUR, "the clock must continue from its time");
        assert!(Instant::now() < first, "the clock outside a runtime must be that of std");

        let other = Runtime::new().expect("a runtime");
        assert!(other.block_on(async { Instant::now() }) < first, "each runtime must have a clock of its own");
        let last = runtime.block_on(async { Instant::now() });
        assert_eq!(last, third, "another runtime must not advance this clock");
    });
}

/// A pause inside a call holds in the next call.
#[test]
fn pause_outlives_its_call() {
    within(|| {
        let runtime = one_worker();
        let paused = runtime.block_on(async {
            pause();
            Instant::now()
        });
        runtime.block_on(async {
            assert_eq!(Instant::now(), paused, "the clock must still stand");
            advance(HOUR).await;
            assert_eq!(Instant::now(), paused + HOUR, "`advance` must move the clock");
        });
    });
}

/// Differences of instants saturate instead of panicking.
#[test]
fn instant_differences_saturate() {
    let now = Instant::now();
    let later = now + HOUR;
    assert_eq!(now - later, Duration::ZERO, "`-` must saturate");
    assert_eq!(now.duration_since(later), Duration::ZERO, "`duration_since` must saturate");
    assert_eq!(now.saturating_duration_since(later), Duration::ZERO, "`saturating_duration_since` must saturate");
    assert_eq!(now.checked_duration_since(later), None, "`checked_duration_since` must return none");
    assert_eq!(later.elapsed(), Duration::ZERO, "the future must have an elapsed time of zero");
    assert_eq!((later - now, later - HOUR), (HOUR, now), "the right order must return the difference");
    assert_eq!(now.checked_add(Duration::MAX), None, "an overflow must return none");
    assert_eq!(now.checked_sub(Duration::MAX), None, "an underflow must return none");
    assert_eq!(Instant::from(now.into_std()), now, "the conversion to std and back must be exact");
    let mut moved = now;
    moved += HOUR;
    moved -= HOUR;
    assert_eq!(moved, now, "the assigning operators must work too");
}

/// A runtime that is made inside another one with a clock ahead times by its own clock.
#[test]
fn nested_runtime_has_own_clock() {
    within(|| {
        let outer = paused_runtime();
        let inner = outer.block_on(async {
            sleep(Duration::from_secs(3600)).await;
            Builder::new_multi_thread().build().expect("another runtime")
        });
        let start = std::time::Instant::now();
        inner.block_on(sleep(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20), "the sleep ended early");
    });
}

/// Timers work after the clock has passed thirty years, which the runtime treats as never.
#[test]
fn timers_work_after_thirty_years() {
    within(|| {
        let runtime = paused_runtime();
        runtime.block_on(async {
            sleep(Duration::MAX).await;
            let start = Instant::now();
            let second = kittiwake::spawn(sleep(Duration::from_secs(2)));
            sleep(Duration::from_secs(1)).await;
            second.await.expect("the second sleep");
            assert!(start.elapsed() >= Duration::from_secs(2), "the second sleep ended early");
        });
    });
}

/// A clock that is resumed during an `advance` keeps running.
#[test]
fn resume_during_advance_holds() {
    within(|| {
        let runtime = paused_runtime();
        runtime.block_on(async {
            let resumed = kittiwake::spawn(async {
                sleep(Duration::from_secs(5)).await;
                resume();
            });
            kittiwake::task::yield_now().await;
            advance(Duration::from_secs(10)).await;
            resumed.await.expect("the task that resumes");
            let start = Instant::now();
            while start.elapsed().is_zero() {}
        });
    });
}
