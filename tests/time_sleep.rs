//! Sleeps are never early and never lost, even if they are reset, moved or dropped.

// A call returns a sleep that the test uses in another runtime.
#![allow(clippy::async_yields_async)]

mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Wake, Waker};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::Builder;
use kittiwake::task::yield_now;
use kittiwake::time::{Duration, Instant, Sleep, advance, sleep, sleep_until};
use support::{TICK, assert_at, counting_waker, panic_of, poll_with, progress, run, run_paused, within};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A sleep never ends early. A deadline that was rounded down, to a tick or to a millisecond, would end it early.
#[test]
fn sleep_never_ends_early() {
    run(|| async {
        for micros in [0, 1, 10, 65, 66, 131, 132, 200, 500, 999, 1000, 1001, 1500, 1999, 2000, 3100, 7777] {
            let duration = Duration::from_micros(micros) + Duration::from_nanos(1);
            let start = std::time::Instant::now();
            sleep(duration).await;
            assert!(start.elapsed() >= duration, "a sleep of {duration:?} ended after {:?}", start.elapsed());
        }
    });
}

/// Many sleeps at once never end early. One must not fire together with an earlier neighbour.
#[test]
fn concurrent_sleeps_never_end_early() {
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

/// On a paused clock a sleep ends in the tick after its deadline.
#[test]
fn paused_sleep_ends_within_a_tick() {
    run_paused(|| async {
        for nanos in [1, 65_535, 65_536, 65_537, 999_999, 1_000_000, 3_600_000_000_001] {
            let deadline = Instant::now() + Duration::from_nanos(nanos);
            sleep_until(deadline).await;
            assert_at(Instant::now(), deadline);
        }
    });
}

/// A sleep of zero or into the past is ready at once, even outside a runtime.
#[test]
fn passed_deadline_needs_no_runtime() {
    let past = Instant::now().checked_sub(Duration::from_millis(1)).expect("a moment ago");
    for mut sleep in [sleep(Duration::ZERO), sleep_until(Instant::now()), sleep_until(past)] {
        assert!(sleep.is_elapsed(), "the deadline must not be in the future");
        assert_eq!(poll_with(Waker::noop(), &mut sleep), Poll::Ready(()), "the sleep must be ready");
        assert_eq!(poll_with(Waker::noop(), &mut sleep), Poll::Ready(()), "the sleep must stay ready");
    }
}

/// A sleep that exceeds the clock never ends. The computation of its deadline must not overflow.
#[test]
fn longest_sleep_never_ends() {
    run(|| async {
        let tenth = Duration::from_secs(u64::MAX / 10);
        let seconds = [Duration::MAX, tenth, Duration::from_secs(u64::MAX), Duration::from_secs(i64::MAX as u64)];
        let (waker, wakes) = counting_waker();
        let mut sleeps = seconds.map(sleep);
        for sleep in &mut sleeps {
            assert!(poll_with(&waker, sleep).is_pending(), "the sleep must wait for ever: {sleep:?}");
        }
        sleep(Duration::from_millis(3)).await;
        for sleep in &mut sleeps {
            assert!(poll_with(&waker, sleep).is_pending(), "the sleep must still wait: {sleep:?}");
        }
        assert_eq!(wakes.get(), 0, "a sleep that never ends must wake no waker");
    });
}

/// A distant deadline is reached once and not early. Poll timeouts have 32 bits of milliseconds (24.8 days), and
/// the timer wheel has a last level.
#[test]
fn far_deadlines_are_reached_once() {
    run_paused(|| async {
        for days in [24, 25, 26, 49, 50, 60, 365, 3650] {
            let deadline = Instant::now() + DAY * days;
            let (waker, wakes) = counting_waker();
            let mut far = sleep_until(deadline);
            assert!(poll_with(&waker, &mut far).is_pending(), "{days} days are left");
            sleep_until(deadline - Duration::from_millis(1)).await;
            assert_eq!(wakes.get(), 0, "a sleep of {days} days was woken early");
            assert!(poll_with(&waker, &mut far).is_pending(), "a sleep of {days} days ended early");
            sleep_until(deadline + TICK).await;
            assert_eq!(wakes.get(), 1, "a sleep of {days} days must be woken once");
            assert!(poll_with(&waker, &mut far).is_ready(), "a sleep of {days} days must end");
            sleep(DAY).await;
            assert_eq!(wakes.get(), 1, "a sleep of {days} days must not be woken again");
        }
    });
}

/// A distant deadline does not delay a near one. The worker's wait is limited to the kernel's maximum.
#[test]
fn far_deadline_delays_no_other() {
    run(|| async {
        let far = [25, 60, 365].map(|days| kittiwake::spawn(sleep(DAY * days)));
        sleep(Duration::from_millis(2)).await;
        assert!(far.iter().all(|task| !task.is_finished()), "the distant sleeps must wait");
    });
}

/// A hundred thousand sleeps with one deadline all end there. They are woken in batches.
#[test]
fn equal_deadlines_are_all_reached() {
    run_paused(|| async {
        let deadline = Instant::now() + HOUR;
        let log = sleepers((0..100_000).map(|_| deadline)).await;
        assert_eq!(log.len(), 100_000, "every sleeper must wake");
        log.iter().for_each(|(deadline, now)| assert_at(*now, *deadline));
    });
}

/// A hundred thousand sleeps over an hour end in the order of their deadlines, whatever their level of the wheel.
#[test]
fn sleeps_end_in_deadline_order() {
    run_paused(|| async {
        let start = Instant::now();
        let spread = (0..100_000_u64).map(|i| start + Duration::from_millis(1 + i * 7919 % 100_000 * 36));
        let log = sleepers(spread).await;
        assert_eq!(log.len(), 100_000, "every sleeper must wake");
        assert!(log.is_sorted(), "the sleepers must wake in the order of their deadlines");
        log.iter().for_each(|(deadline, now)| assert_at(*now, *deadline));
    });
}

/// Sleeps that are a microsecond apart, far closer than the wheel's tick, end in the order of their deadlines too.
#[test]
#[cfg_attr(kittiwake_rng_seed, ignore = "it needs the usual order of tasks")]
fn sleeps_of_one_tick_end_in_deadline_order() {
    run_paused(|| async {
        let start = Instant::now() + HOUR;
        let log = sleepers((0..1000).map(|i| start + Duration::from_micros(i * 619 % 1000))).await;
        assert_eq!(log.len(), 1000, "every sleeper must wake");
        assert!(log.is_sorted_by_key(|(deadline, _)| *deadline), "sleepers woke in another order: {log:?}");
    });
}

/// A sleep that begins later overtakes none whose deadline is earlier, also within a tick of the wheel.
#[test]
#[cfg_attr(kittiwake_rng_seed, ignore = "it needs the usual order of tasks")]
fn later_sleep_overtakes_no_earlier_deadline() {
    for gap in [1, 10, 60] {
        run_paused(move || async move {
            let (log, micros) = (Arc::new(Mutex::new(Vec::new())), Duration::from_micros);
            let later_log = log.clone();
            let later = kittiwake::spawn(async move {
                sleep(micros(1_000)).await;
                sleep(micros(1_000 + gap)).await;
                later_log.lock().unwrap().push("later");
            });
            let earlier_log = log.clone();
            let earlier = kittiwake::spawn(async move {
                sleep(micros(2_000)).await;
                earlier_log.lock().unwrap().push("earlier");
            });
            earlier.await.unwrap();
            later.await.unwrap();
            assert_eq!(*log.lock().unwrap(), ["earlier", "later"], "{gap} us apart");
        });
    }
}

/// When a spike of sleeps has passed, the few that are left still end at their deadlines.
#[test]
fn sleeps_outlive_a_spike() {
    const LEFT: Duration = Duration::from_millis(1500);
    run(|| async {
        for _ in 0..2 {
            let spike: Vec<_> = (0..10_000).map(|_| kittiwake::spawn(sleep(DAY))).collect();
            let left = kittiwake::spawn(async move { sleepers((0..9).map(|i| Instant::now() + LEFT / 9 * i)).await });
            yield_now().await;
            spike.iter().for_each(kittiwake::task::JoinHandle::abort);
            // The memory is given back half a second later.
            let log = left.await.expect("the sleepers");
            assert_eq!(log.len(), 9, "every sleeper must wake");
            assert!(log.iter().all(|(deadline, now)| deadline <= now), "a sleep ended early: {log:?}");
        }
    });
}

/// Spikes that come one after the other wake no task that sleeps meanwhile, or seldom: the wheel is not made anew after
/// each.
#[test]
fn spikes_wake_no_other_sleep() {
    const SPIKES: usize = 40;
    // A worker that spins blocks seldom.
    let runtime = Builder::new_current_thread().spin(Duration::ZERO).build().expect("a runtime");
    runtime.block_on(async {
        let begin = Instant::now();
        let polls = Arc::new(AtomicUsize::new(0));
        let count = polls.clone();
        let mut long = Box::pin(sleep(DAY));
        let sleeper = kittiwake::spawn(poll_fn(move |cx| {
            count.fetch_add(1, Ordering::Relaxed);
            long.as_mut().poll(cx)
        }));
        for _ in 0..SPIKES {
            let spike: Vec<_> = (0..1000).map(|_| kittiwake::spawn(sleep(Duration::from_millis(5)))).collect();
            for task in spike {
                task.await.expect("a sleeper");
            }
            sleep(Duration::from_millis(1)).await;
        }
        let polls = polls.load(Ordering::Relaxed);
        // The wheel is made anew at most twice a second, which is seldom unless the machine is slow.
        let most = SPIKES / 2 + 2 * begin.elapsed().as_secs() as usize;
        assert!(polls < most, "{polls} polls of a task that sleeps beside {SPIKES} spikes");
        sleeper.abort();
    });
}

/// Returns each deadline and the time at which its sleeper woke, in the order of the wakes.
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
        progress();
    }
    std::mem::take(&mut log.lock().unwrap())
}

/// A dropped sleep leaves neither a timer nor a waker.
#[test]
fn dropped_sleep_leaves_nothing() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        drop(sleep(Duration::from_secs(1)));

        let mut polled = sleep(Duration::from_secs(1));
        assert!(poll_with(&waker, &mut polled).is_pending(), "the sleep has a second left");
        assert_eq!(Arc::strong_count(&wakes), 3, "the timer must hold one waker");
        drop(polled);
        assert_eq!(Arc::strong_count(&wakes), 2, "the drop must release the waker");
        advance(HOUR).await;
        assert_eq!(wakes.get(), 0, "no timer may wake the waker");
    });
}

/// Dropping a sleep that has fired does not remove another timer that took over its slot.
#[test]
fn dropping_fired_sleep_spares_others() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let mut fired = sleep(Duration::from_secs(1));
        assert!(poll_with(&waker, &mut fired).is_pending(), "the sleep has a second left");
        advance(Duration::from_secs(2)).await;
        assert_eq!(wakes.get(), 1, "the sleep must fire");
        assert_eq!(Arc::strong_count(&wakes), 2, "the fired timer must release its waker");

        let (other_waker, other_wakes) = counting_waker();
        let mut others: Vec<_> = (0..4).map(|_| sleep(Duration::from_secs(1))).collect();
        for other in &mut others {
            assert!(poll_with(&other_waker, other).is_pending(), "the sleep has a second left");
        }
        drop(fired);
        advance(Duration::from_secs(2)).await;
        assert_eq!(other_wakes.get(), 4, "the other timers must still fire");
    });
}

/// A reset sleep ends at its new deadline, whether that is earlier or later.
#[test]
fn reset_sleep_ends_at_new_deadline() {
    run_paused(|| async {
        for (first, second) in [(3600, 1), (1, 3600), (5, 5), (1, 4_000_000), (4_000_000, 2)] {
            let (waker, wakes) = counting_waker();
            let start = Instant::now();
            let mut sleep = sleep(Duration::from_secs(first));
            assert!(poll_with(&waker, &mut sleep).is_pending(), "the sleep has {first} s left");
            let deadline = start + Duration::from_secs(second);
            sleep.reset(deadline);
            assert_eq!(sleep.deadline(), deadline, "the sleep must return its new deadline");
            advance(Duration::from_millis(second * 1000 - 1)).await;
            assert_eq!(wakes.get(), 0, "{second} s have not passed");
            advance(Duration::from_millis(2)).await;
            assert_eq!(wakes.get(), 1, "{second} s have passed, so the waiting task must be woken");
            assert!(poll_with(&waker, &mut sleep).is_ready(), "the sleep must end");
            advance(Duration::from_secs(first)).await;
            assert_eq!(wakes.get(), 1, "the old deadline must have no effect");
        }
    });
}

/// A sleep that is reset after it fired waits again.
#[test]
fn fired_sleep_can_be_reset() {
    run_paused(|| async {
        for polled_ready in [false, true] {
            let (waker, wakes) = counting_waker();
            let mut sleep = sleep(Duration::from_secs(1));
            assert!(poll_with(&waker, &mut sleep).is_pending(), "the sleep has a second left");
            advance(Duration::from_secs(2)).await;
            if polled_ready {
                assert!(poll_with(&waker, &mut sleep).is_ready(), "the sleep must have fired");
            }
            sleep.reset(Instant::now() + Duration::from_secs(1));
            assert!(!sleep.is_elapsed(), "the new deadline must be in the future");
            assert!(poll_with(&waker, &mut sleep).is_pending(), "the sleep must wait for the new deadline");
            advance(Duration::from_secs(2)).await;
            assert_eq!(wakes.get(), 2, "each deadline must wake the task once");
            assert!(poll_with(&waker, &mut sleep).is_ready(), "the sleep must end again");
        }
    });
}

/// A reset into the past ends the sleep and does not turn the paused clock back.
#[test]
fn reset_to_past_ends_sleep() {
    run_paused(|| async {
        let past = Instant::now();
        advance(Duration::from_secs(10)).await;
        let mut sleep = sleep(HOUR);
        assert!(poll_with(Waker::noop(), &mut sleep).is_pending(), "the sleep has an hour left");
        let before = Instant::now();
        sleep.reset(past + Duration::from_secs(1));
        (&mut sleep).await;
        assert!(Instant::now() >= before, "the clock went back by {:?}", before - Instant::now());
        assert!(Instant::now() - before < Duration::from_secs(1), "the task must not wait for the hour");
    });
}

/// `advance` over a deadline in the past never turns the clock back. It looks for deadlines itself.
#[test]
fn advance_never_turns_clock_back() {
    run_paused(|| async {
        let past = Instant::now();
        advance(Duration::from_secs(10)).await;
        let mut sleep = sleep(HOUR);
        assert!(poll_with(Waker::noop(), &mut sleep).is_pending(), "the sleep has an hour left");
        sleep.reset(past + Duration::from_secs(1));
        let before = Instant::now();
        let seen = kittiwake::spawn(async move {
            (&mut sleep).await;
            Instant::now()
        });
        advance(Duration::from_secs(1)).await;
        let seen = seen.await.expect("the sleeper");
        assert!(seen >= before, "the sleeper saw a clock that was {:?} behind", before - seen);
    });
}

/// A reset from another thread wakes a worker that sleeps until the old deadline.
#[test]
fn reset_from_thread_wakes_worker() {
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
        assert!(shared.lock().unwrap().is_elapsed(), "the sleep must end at its new deadline");
        thread.join().expect("the other thread");
    });
}

/// Resets from another thread while sleeps fire lose no sleep and end none early.
#[test]
fn racing_resets_lose_no_sleep() {
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
        assert!(poll.is_pending() || sleep.is_elapsed(), "a reset sleep ended early");
        poll
    })
    .await;
}

/// A waker may reset the sleep that wakes it. A waker is foreign code, so no lock may be held around it.
#[test]
fn waker_may_reset_its_sleep() {
    struct Resetter(Mutex<(Option<Sleep>, usize)>);
    impl Wake for Resetter {
        fn wake(self: Arc<Self>) {
            let mut inner = self.0.lock().unwrap();
            inner.1 += 1;
            let sleep = inner.0.as_mut().expect("the waker has a sleep");
            sleep.reset(Instant::now() + Duration::from_secs(1));
        }
    }
    run_paused(|| async {
        let resetter = Arc::new(Resetter(Mutex::new((Some(sleep(Duration::from_secs(1))), 0))));
        let waker = Waker::from(resetter.clone());
        for wakes in 0..5 {
            {
                let mut inner = resetter.0.lock().unwrap();
                assert_eq!(inner.1, wakes, "each deadline must wake once");
                assert!(
                    poll_with(&waker, inner.0.as_mut().expect("the waker has a sleep")).is_pending(),
                    "the sleep has a second left"
                );
            }
            advance(Duration::from_millis(1001)).await;
        }
        drop(resetter.0.lock().unwrap().0.take());
    });
}

/// A waker may drop the sleep that wakes it.
#[test]
fn waker_may_drop_its_sleep() {
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
            assert!(poll_with(&waker, &mut sleep).is_pending(), "the sleep has {seconds} s left");
            dropper.0.lock().unwrap().push(sleep);
        }
        advance(2 * HOUR).await;
        assert!(dropper.0.lock().unwrap().is_empty(), "the first wake must have dropped all sleeps");
        drop(waker);
        assert_eq!(Arc::strong_count(&dropper), 1, "no timer may keep its waker");
    });
}

/// A sleep wakes the waker that polled it last.
#[test]
fn sleep_wakes_its_last_poller() {
    run_paused(|| async {
        let (older, older_wakes) = counting_waker();
        let (newer, newer_wakes) = counting_waker();
        let mut sleep = sleep(Duration::from_secs(1));
        for _ in 0..5 {
            assert!(poll_with(&older, &mut sleep).is_pending(), "the sleep has a second left");
            assert!(poll_with(&newer, &mut sleep).is_pending(), "the sleep has a second left");
        }
        assert_eq!(Arc::strong_count(&older_wakes), 2, "the older waker must be released");
        advance(Duration::from_secs(2)).await;
        assert_eq!((older_wakes.get(), newer_wakes.get()), (0, 1), "only the newer waker must be woken, and once");
    });
}

/// A sleep can move to another task after the task that started its timer has ended.
#[test]
fn sleep_moves_to_another_task() {
    run_paused(|| async {
        let start = Instant::now();
        let mut moving = sleep(HOUR);
        for _ in 0..3 {
            moving = kittiwake::spawn(async move {
                assert!(poll_with(Waker::noop(), &mut moving).is_pending(), "the sleep has an hour left");
                let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut moving).poll(cx).is_pending())).await;
                assert!(pending, "the sleep has an hour left");
                moving
            })
            .await
            .expect("the earlier task ends");
        }
        kittiwake::spawn(moving).await.expect("the sleeping task ends");
        assert_at(Instant::now(), start + HOUR);
    });
}

/// A sleep can move to another runtime, which arms it anew.
#[test]
fn sleep_moves_to_another_runtime() {
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
        assert!(start.elapsed() >= duration, "the sleep must keep its deadline");
        background.stop();
    });
}

/// A sleep that outlives its runtime is woken and continues in the next runtime.
#[test]
fn sleep_may_outlive_its_runtime() {
    within(|| {
        let (waker, wakes) = counting_waker();
        let duration = Duration::from_millis(5);
        let start = std::time::Instant::now();
        let sleep = kittiwake::block_on(async {
            let mut sleep = sleep(duration);
            assert!(poll_with(&waker, &mut sleep).is_pending() || start.elapsed() >= duration, "the sleep must wait");
            sleep
        });
        assert_eq!(Arc::strong_count(&wakes), 2, "an ended runtime must keep no waker");
        let deadline = sleep.deadline();
        kittiwake::block_on(sleep);
        assert!(std::time::Instant::now() >= deadline.into_std(), "the sleep must keep its deadline");

        let mut far = kittiwake::block_on(async {
            let mut far = sleep_until(Instant::now() + HOUR);
            assert!(poll_with(&waker, &mut far).is_pending(), "the sleep has an hour left");
            far
        });
        assert!(wakes.get() >= 1, "the end of the runtime must wake the sleeping task");
        let text = panic_of(|| assert!(poll_with(&waker, &mut far).is_ready()));
        assert!(text.contains("no kittiwake runtime"), "the panic must name the missing runtime: {text}");
        far.reset(Instant::now());
        assert!(poll_with(&waker, &mut far).is_ready(), "a passed deadline must need no runtime");
    });
}

/// A sleep that has waited in a current-thread runtime goes on waiting there when it is polled outside, until a call of
/// that runtime comes to its deadline.
#[test]
fn sleep_goes_on_in_its_idle_runtime() {
    within(|| {
        let (runtime, (waker, wakes)) = (support::one_worker(), counting_waker());
        let mut waiting = runtime.block_on(async {
            let mut waiting = sleep(Duration::from_millis(100));
            let _ = poll_with(Waker::noop(), &mut waiting);
            waiting
        });
        let deadline = waiting.deadline();
        let polled = poll_with(&waker, &mut waiting);
        assert!(polled.is_pending() || Instant::now() >= deadline, "the sleep has not come to its deadline");
        runtime.block_on(async { sleep_until(deadline + Duration::from_millis(1)).await });
        assert!(polled.is_ready() || wakes.get() > 0, "the call must wake the task that waits outside");
        assert!(polled.is_ready() || poll_with(&waker, &mut waiting).is_ready(), "its deadline has passed");
    });
}

/// A sleep that must wait outside a runtime panics with a message.
#[test]
fn sleep_outside_a_runtime_panics() {
    let mut sleep = sleep(HOUR);
    let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut sleep).is_ready()));
    assert!(
        text.contains("no kittiwake runtime is running on this thread"),
        "the panic must name the missing runtime: {text}"
    );
    assert!(text.contains("block_on"), "the panic must say what to do: {text}");
}

/// One task may wait for a sleep and for bytes.
#[test]
fn task_waits_for_time_and_bytes() {
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
        assert_eq!(read, (0..20).collect::<Vec<u8>>(), "every byte must arrive");
        assert!(woken > 0, "the sleep must end too");
    });
}

/// A busy worker fires its timers.
#[test]
fn busy_worker_fires_its_timers() {
    run(|| async {
        let busy = kittiwake::spawn(async {
            loop {
                kittiwake::task::yield_now().await;
            }
        });
        sleep(Duration::from_millis(2)).await;
        kittiwake::spawn(sleep(Duration::from_millis(2))).await.expect("a task that sleeps");
        assert!(!busy.is_finished(), "the worker must be busy all the time");
        busy.abort();
    });
}
