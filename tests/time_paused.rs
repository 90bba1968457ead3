//! The clock for tests: it stands still, jumps only when every task waits, and outruns no bytes.

mod support;

use std::sync::{Arc, Mutex};
use std::task::Waker;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::time::{Duration, Instant, advance, pause, resume, sleep, sleep_until, timeout};
use support::{TICK, assert_at, one_worker, panic_of, poll_with, run, run_paused, within};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// A clock that runs on makes a test depend on the machine.
#[test]
fn a_clock_that_starts_paused_stands_still() {
    run_paused(|| async {
        let start = Instant::now();
        std::iter::repeat_with(std::time::Instant::now).take(1000).for_each(drop);
        support::settle().await;
        assert_eq!(Instant::now(), start, "nobody waited for time");
    });
}

/// The point of it: hours pass in no time, and to the tick.
#[test]
fn the_paused_clock_jumps_to_the_next_deadline() {
    run_paused(|| async {
        let (real, start) = (std::time::Instant::now(), Instant::now());
        let short = kittiwake::spawn(async {
            sleep(SECOND).await;
            Instant::now()
        });
        sleep(HOUR).await;
        assert_at(Instant::now(), start + HOUR);
        assert_at(short.await.expect("the short sleep"), start + SECOND);
        assert!(real.elapsed() < HOUR, "nobody waited for an hour");
    });
}

/// A running clock can be stopped, and goes on from where it stands.
#[test]
fn pause_stops_the_clock_and_resume_lets_it_run_on() {
    run(|| async {
        let before = Instant::now();
        pause();
        let paused = Instant::now();
        assert!(paused >= before, "it stops where it is");
        support::settle().await;
        assert_eq!(Instant::now(), paused, "it stands still");
        pause();
        assert_eq!(Instant::now(), paused, "to pause twice is to pause once");
        sleep(HOUR).await;
        let jumped = Instant::now();
        assert_at(jumped, paused + HOUR);

        resume();
        resume();
        let real = std::time::Instant::now();
        let start = Instant::now();
        assert!(start >= jumped, "it goes on from where it stands");
        assert!(start < jumped + HOUR, "and not from the real time plus what it jumped");
        sleep(Duration::from_millis(3)).await;
        assert!(real.elapsed() >= Duration::from_millis(3), "it runs with the real one again");
        assert!(start.elapsed() >= Duration::from_millis(3), "and shows it");
    });
}

/// Code under test that sleeps again and again must find each of its moments.
#[test]
fn advance_reaches_many_deadlines_one_after_the_other() {
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
        advance(SECOND * 10 + TICK).await;
        assert_eq!(Instant::now(), start + SECOND * 10 + TICK, "the clock stands where it was told");
        let log = log.lock().unwrap();
        assert_eq!(log.len(), 10, "all were reached");
        for (at, (i, now)) in log.iter().enumerate() {
            assert_eq!(*i as usize, at + 1, "in the order of their deadlines");
            assert_at(*now, start + SECOND * *i);
        }
    });
}

/// A task that arms its next timer on the way must be reached again within the same advance.
#[test]
fn advance_reaches_deadlines_that_are_set_on_the_way() {
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
        assert!(task.is_finished(), "a hundred seconds passed one by one");
        assert!(task.await.expect("the sleeper").is_sorted(), "and in order");
    });
}

/// An advance that ends before a deadline must not reach it.
#[test]
fn advance_stops_short_of_later_deadlines() {
    run_paused(|| async {
        let task = kittiwake::spawn(sleep(SECOND * 60));
        support::settle().await;
        advance(SECOND * 59).await;
        support::settle().await;
        assert!(!task.is_finished(), "a second is missing");
        advance(Duration::ZERO).await;
        assert!(!task.is_finished(), "nothing passed");
        advance(SECOND + TICK).await;
        assert!(task.is_finished(), "a minute passed");
    });
}

/// To move a clock that runs is a mistake in the test, and is to be told.
#[test]
fn advance_panics_where_no_clock_stands_still() {
    run(|| async {
        let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut Box::pin(advance(SECOND))).is_ready()));
        assert!(text.contains("time::pause"), "it says what to call: {text}");
    });
    let text = panic_of(|| futures_lite::future::block_on(advance(SECOND)));
    assert!(text.contains("outside a runtime"), "it says where it was called: {text}");
    assert!(panic_of(pause).contains("outside a runtime"), "so does pause");
    assert!(panic_of(resume).contains("outside a runtime"), "so does resume");
}

/// A jump while a task has work to do would be a timeout that no real clock shows.
#[test]
fn the_clock_jumps_only_when_every_task_waits() {
    run_paused(|| async {
        let start = Instant::now();
        let sleeper = kittiwake::spawn(sleep(HOUR));
        for _ in 0..2000 {
            kittiwake::task::yield_now().await;
            assert_eq!(Instant::now(), start, "the clock moved while a task was busy");
        }
        assert!(!sleeper.is_finished(), "no hour passed");
        sleeper.await.expect("the sleeper");
        assert_at(Instant::now(), start + HOUR);
    });
}

/// Bytes between two sockets take real time: a jump meanwhile would be a spurious timeout.
#[test]
fn an_exchange_under_a_paused_clock_never_times_out() {
    run_paused(|| async {
        let (mut client, mut server) = support::pair().await;
        let echo = kittiwake::spawn(async move {
            let mut buf = [0; 64];
            loop {
                match timeout(SECOND, server.read(&mut buf)).await.expect("the server's read timed out")? {
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
            read.expect("the client's read timed out").expect("a read");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer is the question");
        }
        drop(client);
        echo.await.expect("the server").expect("its socket");
        assert!(start.elapsed() < SECOND, "no deadline was jumped to");
    });
}

/// The grace for bytes on their way must end: a peer that says nothing is what the timeout is for.
#[test]
fn a_silent_peer_times_out_under_a_paused_clock() {
    run_paused(|| async {
        let (mut client, _server) = support::pair().await;
        for _ in 0..5 {
            let start = Instant::now();
            assert!(timeout(HOUR, client.read(&mut [0])).await.is_err(), "nothing comes");
            assert_at(Instant::now(), start + HOUR);
        }
    });
}

/// Bytes on their way through the kernel may need a moment even on one machine; a jump that leaves none outruns them.
#[test]
fn while_a_socket_waits_each_jump_leaves_the_kernel_2_ms() {
    run_paused(|| async {
        let (mut client, _server) = support::pair().await;
        for _ in 0..3 {
            let real = std::time::Instant::now();
            assert!(timeout(HOUR, client.read(&mut [0])).await.is_err(), "nothing comes");
            let left = real.elapsed();
            assert!(left >= Duration::from_millis(2), "the clock jumped after {left:?}");
        }
    });
}

/// A clock that fell back between two calls would let deadlines be reached twice.
#[test]
fn the_clock_persists_between_two_calls_of_one_runtime() {
    within(|| {
        let runtime = Builder::new().start_paused(true).build().expect("a runtime");
        let first = runtime.block_on(async {
            sleep(HOUR).await;
            Instant::now()
        });
        let (second, task) = runtime.block_on(async { (Instant::now(), kittiwake::spawn(sleep(HOUR))) });
        assert_eq!(second, first, "it stood still in between");
        let third = runtime.block_on(async {
            task.await.expect("the sleeper");
            Instant::now()
        });
        assert!(third >= first + HOUR, "it moves on from there");
        assert!(Instant::now() < first, "outside, the clock is std's");

        let other = Runtime::new().expect("a runtime");
        assert!(other.block_on(async { Instant::now() }) < first, "and a runtime's clock is its own");
        let last = runtime.block_on(async { Instant::now() });
        assert_eq!(last, third, "nothing else moved it");
    });
}

/// A runtime that was paused inside a call stays so for the next.
#[test]
fn a_pause_inside_a_call_outlives_it() {
    within(|| {
        let runtime = one_worker();
        let paused = runtime.block_on(async {
            pause();
            Instant::now()
        });
        runtime.block_on(async {
            assert_eq!(Instant::now(), paused, "it still stands");
            advance(HOUR).await;
            assert_eq!(Instant::now(), paused + HOUR, "and can be moved");
        });
    });
}

/// Subtracting two moments in the wrong order must not panic.
#[test]
fn differences_of_instants_saturate() {
    let now = Instant::now();
    let later = now + HOUR;
    assert_eq!(now - later, Duration::ZERO, "to subtract saturates");
    assert_eq!(now.duration_since(later), Duration::ZERO, "so does this");
    assert_eq!(now.saturating_duration_since(later), Duration::ZERO, "and this");
    assert_eq!(now.checked_duration_since(later), None, "this tells");
    assert_eq!(later.elapsed(), Duration::ZERO, "what is to come has not elapsed");
    assert_eq!((later - now, later - HOUR), (HOUR, now), "the right order gives the difference");
    assert_eq!(now.checked_add(Duration::MAX), None, "what the clock cannot show");
    assert_eq!(now.checked_sub(Duration::MAX), None, "on neither side");
    assert_eq!(Instant::from(now.into_std()), now, "it is std's, there and back");
    let mut moved = now;
    moved += HOUR;
    moved -= HOUR;
    assert_eq!(moved, now, "in place as well");
}

/// A runtime has its own clock: timers counted from the one of the thread that makes it would fire at once.
#[test]
fn a_runtime_that_is_made_where_the_clock_is_ahead_times_by_its_own() {
    within(|| {
        let outer = Builder::new().start_paused(true).build().expect("a runtime");
        let inner = outer.block_on(async {
            sleep(Duration::from_secs(3600)).await;
            Builder::new().build().expect("another runtime")
        });
        let start = std::time::Instant::now();
        inner.block_on(sleep(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20), "the sleep ended early");
    });
}

/// Thirty years are never, but a clock that jumps gets there.
#[test]
fn timers_go_on_after_never_has_come() {
    within(|| {
        let runtime = Builder::new().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            sleep(Duration::MAX).await;
            let start = Instant::now();
            let second = kittiwake::spawn(sleep(Duration::from_secs(2)));
            sleep(Duration::from_secs(1)).await;
            second.await.expect("the second sleep");
            assert!(start.elapsed() >= Duration::from_secs(2), "it ended early");
        });
    });
}

/// Whoever lets the clock run on does not want it stopped again by the one who moved it.
#[test]
fn a_clock_that_is_resumed_during_an_advance_runs_on() {
    within(|| {
        let runtime = Builder::new().start_paused(true).build().expect("a runtime");
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
