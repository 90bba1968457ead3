//! Sleeping: never early, never lost, whatever happens to the sleep in the meantime.

// A sleep is made in one runtime, and is itself the result, to be used in another.
#![allow(clippy::async_yields_async)]

mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Wake, Waker};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use kittiwake::time::{Duration, Instant, Sleep, advance, sleep, sleep_until};
use support::{TICK, assert_at, counting_waker, panic_of, poll_with, run, run_paused, within};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Rounding a deadline down, to a tick or to the kernel's milliseconds, would end it early.
#[test]
fn a_sleep_never_ends_early() {
    run(|| async {
        for micros in [0, 1, 10, 65, 66, 131, 132, 200, 500, 999, 1000, 1001, 1500, 1999, 2000, 3100, 7777] {
            let duration = Duration::from_micros(micros) + Duration::from_nanos(1);
            let start = std::time::Instant::now();
            sleep(duration).await;
            assert!(start.elapsed() >= duration, "a sleep of {duration:?} ended after {:?}", start.elapsed());
        }
    });
}

/// Of many timers at once, one may be fired along with an earlier neighbour.
#[test]
fn many_sleeps_at_once_never_end_early() {
    run(|| async {
        let mut tasks = Vec::new();
        for i in 0..2000 {
            tasks.push(kittiwake::spawn(async move {
                let duration = Duration::from_nanos(i * 7919);
                let start = std::time::Instant::now();
                sleep(duration).await;
                (duration, start.elapsed())
            }));
        }
        for task in tasks {
            let (duration, took) = task.await.expect("the sleeper");
            assert!(took >= duration, "a sleep of {duration:?} ended after {took:?}");
        }
    });
}

/// The paused clock, too, must pass a deadline before its sleep ends.
#[test]
fn on_a_paused_clock_a_sleep_ends_in_the_tick_after_its_deadline() {
    run_paused(|| async {
        for nanos in [1, 65_535, 65_536, 65_537, 999_999, 1_000_000, 3_600_000_000_001] {
            let deadline = Instant::now() + Duration::from_nanos(nanos);
            sleep_until(deadline).await;
            assert_at(Instant::now(), deadline);
        }
    });
}

/// Nothing has to wait for what is past, so no runtime is needed for it either.
#[test]
fn zero_and_the_past_are_ready_at_once_even_outside_a_runtime() {
    let past = Instant::now().checked_sub(Duration::from_millis(1)).expect("a moment ago");
    for mut sleep in [sleep(Duration::ZERO), sleep_until(Instant::now()), sleep_until(past)] {
        assert!(sleep.is_elapsed(), "its deadline is not in the future");
        assert_eq!(poll_with(Waker::noop(), &mut sleep), Poll::Ready(()), "there is nothing to wait for");
        assert_eq!(poll_with(Waker::noop(), &mut sleep), Poll::Ready(()), "it stays ready");
    }
}

/// An overflow in the deadline would panic, or end the sleep at once.
#[test]
fn a_sleep_that_the_clock_cannot_show_never_ends() {
    run(|| async {
        let tenth = Duration::from_secs(u64::MAX / 10);
        let seconds = [Duration::MAX, tenth, Duration::from_secs(u64::MAX), Duration::from_secs(i64::MAX as u64)];
        let (waker, wakes) = counting_waker();
        let mut sleeps = seconds.map(sleep);
        for sleep in &mut sleeps {
            assert!(poll_with(&waker, sleep).is_pending(), "this waits for ever: {sleep:?}");
        }
        sleep(Duration::from_millis(3)).await;
        for sleep in &mut sleeps {
            assert!(poll_with(&waker, sleep).is_pending(), "it still waits: {sleep:?}");
        }
        assert_eq!(wakes.get(), 0, "nobody who waits for ever is woken");
    });
}

/// Poll timeouts have 32 bits of milliseconds (24.8 days) and wheels have a last level; a deadline beyond must not be lost
/// or come early.
#[test]
fn far_deadlines_are_reached_once_and_not_early() {
    run_paused(|| async {
        for days in [24, 25, 26, 49, 50, 60, 365, 3650] {
            let deadline = Instant::now() + DAY * days;
            let (waker, wakes) = counting_waker();
            let mut far = sleep_until(deadline);
            assert!(poll_with(&waker, &mut far).is_pending(), "{days} days are still to come");
            sleep_until(deadline - Duration::from_millis(1)).await;
            assert_eq!(wakes.get(), 0, "a sleep of {days} days woke early");
            assert!(poll_with(&waker, &mut far).is_pending(), "a sleep of {days} days ended early");
            sleep_until(deadline + TICK).await;
            assert_eq!(wakes.get(), 1, "a sleep of {days} days wakes once");
            assert!(poll_with(&waker, &mut far).is_ready(), "a sleep of {days} days ends");
            sleep(DAY).await;
            assert_eq!(wakes.get(), 1, "a sleep of {days} days wakes no more");
        }
    });
}

/// On the real clock the wait for a far deadline is cut to what the kernel takes; a cut of the wrong sign would panic or spin.
#[test]
fn a_far_deadline_leaves_near_ones_alone() {
    run(|| async {
        let far = [25, 60, 365].map(|days| kittiwake::spawn(sleep(DAY * days)));
        sleep(Duration::from_millis(2)).await;
        assert!(far.iter().all(|task| !task.is_finished()), "the far ones wait");
    });
}

/// Many timers on one tick are woken in batches; one left out would wait for ever.
#[test]
fn a_hundred_thousand_sleeps_on_one_deadline_all_end_there() {
    run_paused(|| async {
        let deadline = Instant::now() + HOUR;
        let log = sleepers((0..100_000).map(|_| deadline)).await;
        assert_eq!(log.len(), 100_000, "everyone woke");
        log.iter().for_each(|(deadline, now)| assert_at(*now, *deadline));
    });
}

/// Timers on other levels of the wheel must come down in time, and in order.
#[test]
fn a_hundred_thousand_sleeps_over_an_hour_end_in_the_order_of_their_deadlines() {
    run_paused(|| async {
        let start = Instant::now();
        let spread = (0..100_000_u64).map(|i| start + Duration::from_millis(1 + i * 7919 % 100_000 * 36));
        let log = sleepers(spread).await;
        assert_eq!(log.len(), 100_000, "everyone woke");
        assert!(log.is_sorted(), "they woke in the order of their deadlines");
        log.iter().for_each(|(deadline, now)| assert_at(*now, *deadline));
    });
}

/// Each deadline, and when its sleeper woke, in the order in which they did.
async fn sleepers(deadlines: impl Iterator<Item = Instant>) -> Vec<(Instant, Instant)> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for deadline in deadlines {
        let log = log.clone();
        tasks.push(kittiwake::spawn(async move {
            sleep_until(deadline).await;
            log.lock().unwrap().push((deadline, Instant::now()));
        }));
    }
    for task in tasks {
        task.await.expect("a sleeper");
    }
    std::mem::take(&mut log.lock().unwrap())
}

/// A dropped sleep that leaves its timer keeps its waker's task alive, and wakes it for nothing.
#[test]
fn a_dropped_sleep_leaves_neither_timer_nor_waker() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        drop(sleep(Duration::from_secs(1)));

        let mut polled = sleep(Duration::from_secs(1));
        assert!(poll_with(&waker, &mut polled).is_pending(), "a second is to come");
        assert_eq!(Arc::strong_count(&wakes), 3, "the timer holds one waker");
        drop(polled);
        assert_eq!(Arc::strong_count(&wakes), 2, "the waker went with the sleep");
        advance(HOUR).await;
        assert_eq!(wakes.get(), 0, "nobody waits any more");
    });
}

/// Dropping a timer that has fired must not take away another one that has its place by now.
#[test]
fn a_sleep_dropped_after_it_fired_takes_no_other_timer_away() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let mut fired = sleep(Duration::from_secs(1));
        assert!(poll_with(&waker, &mut fired).is_pending(), "a second is to come");
        advance(Duration::from_secs(2)).await;
        assert_eq!(wakes.get(), 1, "it fired");
        assert_eq!(Arc::strong_count(&wakes), 2, "and let its waker go");

        let (other_waker, other_wakes) = counting_waker();
        let mut others: Vec<_> = (0..4).map(|_| sleep(Duration::from_secs(1))).collect();
        for other in &mut others {
            assert!(poll_with(&other_waker, other).is_pending(), "a second is to come");
        }
        drop(fired);
        advance(Duration::from_secs(2)).await;
        assert_eq!(other_wakes.get(), 4, "the others wait in timers of their own");
    });
}

/// A reset that leaves the timer where it was ends the sleep at the old deadline.
#[test]
fn a_reset_sleep_ends_at_its_new_deadline_earlier_or_later() {
    run_paused(|| async {
        for (first, second) in [(3600, 1), (1, 3600), (5, 5), (1, 4_000_000), (4_000_000, 2)] {
            let (waker, wakes) = counting_waker();
            let start = Instant::now();
            let mut sleep = sleep(Duration::from_secs(first));
            assert!(poll_with(&waker, &mut sleep).is_pending(), "{first} s are to come");
            let deadline = start + Duration::from_secs(second);
            sleep.reset(deadline);
            assert_eq!(sleep.deadline(), deadline, "it says when it ends");
            advance(Duration::from_millis(second * 1000 - 1)).await;
            assert_eq!(wakes.get(), 0, "{second} s have not passed");
            advance(Duration::from_millis(2)).await;
            assert_eq!(wakes.get(), 1, "{second} s have passed, and whoever waited went on waiting");
            assert!(poll_with(&waker, &mut sleep).is_ready(), "it ended");
            advance(Duration::from_secs(first)).await;
            assert_eq!(wakes.get(), 1, "the old deadline is gone");
        }
    });
}

/// A sleep that fired and was reset must not be ready by what came before.
#[test]
fn a_sleep_reset_after_it_fired_waits_again() {
    run_paused(|| async {
        for polled_ready in [false, true] {
            let (waker, wakes) = counting_waker();
            let mut sleep = sleep(Duration::from_secs(1));
            assert!(poll_with(&waker, &mut sleep).is_pending(), "a second is to come");
            advance(Duration::from_secs(2)).await;
            if polled_ready {
                assert!(poll_with(&waker, &mut sleep).is_ready(), "it fired");
            }
            sleep.reset(Instant::now() + Duration::from_secs(1));
            assert!(!sleep.is_elapsed(), "the new deadline is to come");
            assert!(poll_with(&waker, &mut sleep).is_pending(), "it waits for the new deadline");
            advance(Duration::from_secs(2)).await;
            assert_eq!(wakes.get(), 2, "it wakes once for each deadline");
            assert!(poll_with(&waker, &mut sleep).is_ready(), "it ends again");
        }
    });
}

/// A reset into the past must end the sleep, and the clock must not go there.
#[test]
fn a_reset_to_the_past_ends_the_sleep_and_leaves_the_paused_clock() {
    run_paused(|| async {
        let past = Instant::now();
        advance(Duration::from_secs(10)).await;
        let mut sleep = sleep(HOUR);
        assert!(poll_with(Waker::noop(), &mut sleep).is_pending(), "an hour is to come");
        let before = Instant::now();
        sleep.reset(past + Duration::from_secs(1));
        (&mut sleep).await;
        assert!(Instant::now() >= before, "the clock went back by {:?}", before - Instant::now());
        assert!(Instant::now() - before < Duration::from_secs(1), "and nobody waited for the hour");
    });
}

/// As above, with `advance`, which looks for deadlines on its own.
#[test]
fn an_advance_over_a_deadline_in_the_past_never_turns_the_clock_back() {
    run_paused(|| async {
        let past = Instant::now();
        advance(Duration::from_secs(10)).await;
        let mut sleep = sleep(HOUR);
        assert!(poll_with(Waker::noop(), &mut sleep).is_pending(), "an hour is to come");
        sleep.reset(past + Duration::from_secs(1));
        let before = Instant::now();
        let seen = kittiwake::spawn(async move {
            (&mut sleep).await;
            Instant::now()
        });
        advance(Duration::from_secs(1)).await;
        let seen = seen.await.expect("the sleeper");
        assert!(seen >= before, "the sleeper saw a clock {:?} behind", before - seen);
    });
}

/// The worker blocks until the deadline that it knew; a reset elsewhere must end that.
#[test]
fn a_reset_from_another_thread_wakes_the_runtime_that_blocks() {
    run(|| async {
        let shared = Arc::new(Mutex::new(sleep(HOUR)));
        let (polled, was_polled) = mpsc::channel();
        let elsewhere = shared.clone();
        let thread = std::thread::spawn(move || {
            was_polled.recv().expect("the first poll");
            elsewhere.lock().unwrap().reset(Instant::now());
        });
        poll_fn(|cx| {
            let poll = Pin::new(&mut *shared.lock().unwrap()).poll(cx);
            let _ = polled.send(());
            poll
        })
        .await;
        assert!(shared.lock().unwrap().is_elapsed(), "it ended at its new deadline");
        thread.join().expect("the other thread");
    });
}

/// Many sleeps are reset while they fire; one lost between two threads would wait for ever, and one may not end early.
#[test]
fn resets_from_another_thread_while_firing_lose_no_sleep() {
    run(|| async {
        let sleeps: Vec<_> = (0..200).map(|i| Arc::new(Mutex::new(sleep(Duration::from_micros(i * 20))))).collect();
        let elsewhere = sleeps.clone();
        let thread = std::thread::spawn(move || {
            for sleep in elsewhere {
                sleep.lock().unwrap().reset(Instant::now() + Duration::from_micros(500));
            }
        });
        let tasks: Vec<_> = sleeps.into_iter().map(|sleep| kittiwake::spawn(ends_in_time(sleep))).collect();
        for task in tasks {
            task.await.expect("a sleeper");
        }
        thread.join().expect("the other thread");
    });
}

async fn ends_in_time(sleep: Arc<Mutex<Sleep>>) {
    poll_fn(|cx| {
        let mut sleep = sleep.lock().unwrap();
        let poll = Pin::new(&mut *sleep).poll(cx);
        assert!(poll.is_pending() || sleep.is_elapsed(), "a sleep that was reset ended early");
        poll
    })
    .await;
}

/// A waker is foreign code: it may use the very timer that wakes it, so no lock may be held.
#[test]
fn a_sleep_may_be_reset_inside_its_wake() {
    struct Resetter(Mutex<(Option<Sleep>, usize)>);
    impl Wake for Resetter {
        fn wake(self: Arc<Self>) {
            let mut inner = self.0.lock().unwrap();
            inner.1 += 1;
            let sleep = inner.0.as_mut().expect("the sleep");
            sleep.reset(Instant::now() + Duration::from_secs(1));
        }
    }
    run_paused(|| async {
        let resetter = Arc::new(Resetter(Mutex::new((Some(sleep(Duration::from_secs(1))), 0))));
        let waker = Waker::from(resetter.clone());
        for wakes in 0..5 {
            {
                let mut inner = resetter.0.lock().unwrap();
                assert_eq!(inner.1, wakes, "it wakes once for each deadline");
                assert!(poll_with(&waker, inner.0.as_mut().expect("the sleep")).is_pending(), "a second is to come");
            }
            advance(Duration::from_millis(1001)).await;
        }
        drop(resetter.0.lock().unwrap().0.take());
    });
}

/// As above: dropping the timer that fires.
#[test]
fn a_sleep_may_be_dropped_inside_its_wake() {
    struct Dropper(Mutex<Vec<Sleep>>);
    impl Wake for Dropper {
        fn wake(self: Arc<Self>) {
            let sleeps = std::mem::take(&mut *self.0.lock().unwrap());
            drop(sleeps);
        }
    }
    run_paused(|| async {
        let dropper = Arc::new(Dropper(Mutex::new(Vec::new())));
        let waker = Waker::from(dropper.clone());
        for seconds in [1, 1, 1, 2, HOUR.as_secs()] {
            let mut sleep = sleep(Duration::from_secs(seconds));
            assert!(poll_with(&waker, &mut sleep).is_pending(), "{seconds} s are to come");
            dropper.0.lock().unwrap().push(sleep);
        }
        advance(2 * HOUR).await;
        assert!(dropper.0.lock().unwrap().is_empty(), "the first wake dropped them all");
        drop(waker);
        assert_eq!(Arc::strong_count(&dropper), 1, "no timer kept its waker");
    });
}

/// A timer that wakes its first poller loses a sleep whose future has moved.
#[test]
fn a_sleep_wakes_whoever_polled_it_last() {
    run_paused(|| async {
        let (older, older_wakes) = counting_waker();
        let (newer, newer_wakes) = counting_waker();
        let mut sleep = sleep(Duration::from_secs(1));
        for _ in 0..5 {
            assert!(poll_with(&older, &mut sleep).is_pending(), "a second is to come");
            assert!(poll_with(&newer, &mut sleep).is_pending(), "a second is to come");
        }
        assert_eq!(Arc::strong_count(&older_wakes), 2, "the older waker is let go");
        advance(Duration::from_secs(2)).await;
        assert_eq!((older_wakes.get(), newer_wakes.get()), (0, 1), "the newer one is woken, once");
    });
}

/// The same, of real tasks: the one that started the timer has ended.
#[test]
fn a_sleep_moves_to_another_task() {
    run_paused(|| async {
        let start = Instant::now();
        let mut moving = sleep(HOUR);
        for _ in 0..3 {
            moving = kittiwake::spawn(async move {
                assert!(poll_with(Waker::noop(), &mut moving).is_pending(), "an hour is to come");
                let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut moving).poll(cx).is_pending())).await;
                assert!(pending, "an hour is to come");
                moving
            })
            .await
            .expect("the task before");
        }
        kittiwake::spawn(moving).await.expect("the task that sleeps");
        assert_at(Instant::now(), start + HOUR);
    });
}

/// A timer stays with the worker that first polled it; a wake must cross to the runtime that awaits it.
#[test]
fn a_sleep_moves_to_another_runtime() {
    within(|| {
        let background = support::Background::start();
        let start = std::time::Instant::now();
        let duration = Duration::from_millis(5);
        let moving = background.run(async move {
            let mut moving = sleep(duration);
            let _ = poll_with(Waker::noop(), &mut moving);
            moving
        });
        kittiwake::block_on(moving);
        assert!(start.elapsed() >= duration, "it kept its deadline");
        background.stop();
    });
}

/// The runtime's end takes its timers; whoever waits elsewhere must learn of it.
#[test]
fn a_sleep_that_outlives_its_runtime_is_woken_and_goes_on_in_the_next() {
    within(|| {
        let (waker, wakes) = counting_waker();
        let duration = Duration::from_millis(5);
        let start = std::time::Instant::now();
        let sleep = kittiwake::block_on(async {
            let mut sleep = sleep(duration);
            assert!(poll_with(&waker, &mut sleep).is_pending() || start.elapsed() >= duration, "it waits");
            sleep
        });
        assert_eq!(Arc::strong_count(&wakes), 2, "the runtime that ended keeps no waker");
        let deadline = sleep.deadline();
        kittiwake::block_on(sleep);
        assert!(std::time::Instant::now() >= deadline.into_std(), "it kept its deadline");

        let mut far = kittiwake::block_on(async {
            let mut far = sleep_until(Instant::now() + HOUR);
            assert!(poll_with(&waker, &mut far).is_pending(), "an hour is to come");
            far
        });
        assert!(wakes.get() >= 1, "the end of the runtime woke it");
        let text = panic_of(|| assert!(poll_with(&waker, &mut far).is_ready()));
        assert!(text.contains("no kittiwake runtime"), "the panic says what is missing: {text}");
        far.reset(Instant::now());
        assert!(poll_with(&waker, &mut far).is_ready(), "what is past needs no runtime");
    });
}

/// Without the sentence, a user sees an `unwrap` in a library.
#[test]
fn a_sleep_that_has_to_wait_outside_a_runtime_panics_with_a_sentence() {
    let mut sleep = sleep(HOUR);
    let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut sleep).is_ready()));
    assert!(text.contains("no kittiwake runtime is running on this thread"), "it says what is missing: {text}");
    assert!(text.contains("block_on"), "and what to do: {text}");
}

/// A worker that waits for the one may forget the other.
#[test]
fn one_task_waits_for_time_and_for_bytes() {
    run(|| async {
        let (mut ours, mut theirs) = support::pair().await;
        let peer = kittiwake::spawn(async move {
            for byte in 0..20 {
                sleep(Duration::from_micros(300)).await;
                theirs.write_all(&[byte]).await.expect("a byte");
            }
        });
        let (mut read, mut woken) = (Vec::new(), 0);
        let mut nap = sleep(Duration::from_micros(200));
        loop {
            let mut byte = [0];
            let bytes = async { Some(ours.read(&mut byte).await.expect("the read")) };
            let time = async {
                (&mut nap).await;
                None
            };
            match futures_lite::future::or(time, bytes).await {
                Some(0) => break,
                Some(_) => read.extend(byte),
                None => {
                    woken += 1;
                    nap.reset(Instant::now() + Duration::from_micros(200));
                }
            }
        }
        peer.await.expect("the peer");
        assert_eq!(read, (0..20).collect::<Vec<u8>>(), "every byte came");
        assert!(woken > 0, "the time passed as well");
    });
}

/// A worker that looks at its timers only when it is idle starves them.
#[test]
fn a_busy_worker_fires_its_timers() {
    run(|| async {
        let busy = kittiwake::spawn(async {
            loop {
                kittiwake::task::yield_now().await;
            }
        });
        sleep(Duration::from_millis(2)).await;
        kittiwake::spawn(sleep(Duration::from_millis(2))).await.expect("a task that sleeps");
        assert!(!busy.is_finished(), "the worker was busy all the time");
        busy.abort();
    });
}
