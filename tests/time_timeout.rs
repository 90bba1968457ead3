//! Timeouts: what is ready counts, what is late is given up, and what was read is never lost.

mod support;

use std::error::Error;
use std::future::{pending, poll_fn, ready};
use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use kittiwake::time::{Duration, Elapsed, Instant, advance, sleep, timeout, timeout_at};
use support::{assert_at, counting_waker, panic_of, poll_with, run, run_paused};

const HOUR: Duration = Duration::from_secs(3600);

/// Arming a timer for nothing is what most calls would pay; and without a runtime it would panic.
#[test]
fn a_timeout_around_what_is_ready_needs_no_timer_and_no_runtime() {
    let mut at_once = timeout(HOUR, ready(7));
    assert_eq!(poll_with(Waker::noop(), &mut at_once), Poll::Ready(Ok(7)), "the future was ready");
    let mut no_time = timeout(Duration::ZERO, pending::<()>());
    assert!(matches!(poll_with(Waker::noop(), &mut no_time), Poll::Ready(Err(_))), "no time to wait needs no timer");
}

/// A panic without a sentence does not say that `block_on` is missing.
#[test]
fn a_timeout_that_has_to_wait_outside_a_runtime_panics_with_a_sentence() {
    let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut timeout(HOUR, pending::<()>())).is_ready()));
    assert!(text.contains("no kittiwake runtime is running on this thread"), "it says what is missing: {text}");
}

/// What a timeout is for.
#[test]
fn a_timeout_around_what_is_never_ready_elapses_at_its_deadline() {
    run_paused(|| async {
        for seconds in [1, 60, 4_000_000] {
            let start = Instant::now();
            let duration = Duration::from_secs(seconds);
            assert!(timeout(duration, pending::<()>()).await.is_err(), "it is never ready");
            assert_at(Instant::now(), start + duration);
        }
    });
}

/// The real clock, too, gives the future all of its time.
#[test]
fn a_timeout_never_elapses_early() {
    run(|| async {
        for micros in [1, 66, 500, 1001, 3000] {
            let start = std::time::Instant::now();
            let duration = Duration::from_micros(micros);
            assert!(timeout(duration, pending::<()>()).await.is_err(), "it is never ready");
            assert!(start.elapsed() >= duration, "{duration:?} elapsed after {:?}", start.elapsed());
        }
    });
}

/// An overflow of the deadline would elapse at once.
#[test]
fn a_timeout_of_all_time_never_elapses() {
    run_paused(|| async {
        for duration in [Duration::MAX, Duration::from_secs(u64::MAX / 10)] {
            let start = Instant::now();
            assert_eq!(timeout(duration, sleep(HOUR)).await, Ok(()), "there was time enough");
            assert_at(Instant::now(), start + HOUR);
        }
    });
}

/// A future that is ready late is ready all the same: its output must not be thrown away.
#[test]
fn at_a_deadline_that_is_past_the_future_is_polled_once_first() {
    run_paused(|| async {
        let past = Instant::now();
        advance(HOUR).await;
        assert_eq!(timeout_at(past, ready(7)).await, Ok(7), "it was ready");
        assert_eq!(timeout(Duration::ZERO, ready(8)).await, Ok(8), "it was ready");
        let mut polls = 0;
        let counted = poll_fn(|_| {
            polls += 1;
            Poll::<()>::Pending
        });
        assert!(timeout_at(past, counted).await.is_err(), "it was not ready");
        assert_eq!(polls, 1, "it had its chance");
    });
}

/// When both are ready in one poll, the output wins.
#[test]
fn what_is_ready_at_the_deadline_counts() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let (sender, receiver) = async_channel::bounded(1);
        let mut late = Box::pin(timeout(Duration::from_secs(1), receiver.recv()));
        assert!(poll_with(&waker, &mut late).is_pending(), "nothing was sent");
        advance(HOUR).await;
        assert_eq!(wakes.get(), 1, "the time is over");
        sender.send(7).await.expect("the receiver is there");
        assert_eq!(poll_with(&waker, &mut late), Poll::Ready(Ok(Ok(7))), "the output is there, however late");
    });
}

/// A timer left behind would wake its task for nothing and keep it in memory.
#[test]
fn a_timeout_that_is_over_leaves_no_timer() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let (sender, receiver) = async_channel::bounded(1);
        let mut waiting = Box::pin(timeout(HOUR, receiver.recv()));
        assert!(poll_with(&waker, &mut waiting).is_pending(), "nothing was sent");
        sender.send(7).await.expect("the receiver is there");
        assert!(poll_with(&waker, &mut waiting).is_ready(), "it was sent");
        drop(waiting);
        let woken = wakes.get();
        assert_eq!(Arc::strong_count(&wakes), 2, "nobody holds the waker");
        advance(2 * HOUR).await;
        assert_eq!(wakes.get(), woken, "nobody uses it");
    });
}

/// Who gives up waiting need not give up the work.
#[test]
fn into_inner_gives_back_a_future_that_goes_on() {
    run_paused(|| async {
        let start = Instant::now();
        let mut slow = timeout(Duration::from_secs(1), sleep(HOUR));
        assert!((&mut slow).await.is_err(), "an hour is more than a second");
        slow.into_inner().await;
        assert_at(Instant::now(), start + HOUR);
        assert_eq!(timeout(HOUR, ready(7)).into_inner().await, 7, "also before the first poll");
    });
}

/// Without the conversion, every caller in an `io` function writes it.
#[test]
fn elapsed_becomes_an_io_error_of_the_kind_timed_out() {
    async fn reads() -> io::Result<()> {
        Ok(timeout(Duration::from_millis(1), pending::<()>()).await?)
    }
    run(|| async {
        let error = reads().await.expect_err("the future is never ready");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "the kind says what happened");
        assert!(error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Elapsed>), "the cause is inside");
        let elapsed = timeout(Duration::ZERO, pending::<()>()).await.expect_err("the future is never ready");
        assert!(elapsed.source().is_none() && !elapsed.to_string().is_empty(), "it is an error with a sentence");
    });
}

/// A read that took bytes and was then given up would lose them.
#[test]
fn a_read_that_times_out_as_its_bytes_arrive_loses_none() {
    const LENGTH: usize = 400;
    run(|| async {
        let (mut reader, mut writer) = support::pair().await;
        let sent = support::pattern(LENGTH);
        let bytes = sent.clone();
        let peer = kittiwake::spawn(async move {
            for (i, byte) in bytes.chunks(1).enumerate() {
                sleep(Duration::from_micros(30 * (i as u64 % 5))).await;
                writer.write_all(byte).await.expect("a byte");
            }
        });
        let (mut received, mut elapsed) = (Vec::new(), 0);
        loop {
            let mut buf = [0; 16];
            let patience = Duration::from_micros(20 * (elapsed % 7));
            match timeout(patience, reader.read(&mut buf)).await {
                Ok(read) => match read.expect("a read") {
                    0 => break,
                    n => received.extend_from_slice(&buf[..n]),
                },
                Err(_) => elapsed += 1,
            }
        }
        peer.await.expect("the peer");
        assert!(elapsed > 0, "some reads were given up");
        assert_eq!(received, sent, "every byte came, once and in order");
    });
}

/// The same with the moment chosen: the time is over, the bytes are there, and nobody has polled since.
#[test]
fn bytes_that_came_with_the_end_of_the_time_are_read() {
    run_paused(|| async {
        let (mut reader, mut peer) = support::pair_with_std();
        let mut buf = [0; 8];
        {
            let mut waiting = timeout(Duration::from_secs(1), reader.read(&mut buf));
            assert!(poll_with(Waker::noop(), &mut waiting).is_pending(), "nothing was sent");
            advance(HOUR).await;
            std::io::Write::write_all(&mut peer, b"late").expect("the peer writes");
            // Dropped here, with the bytes in the socket.
        }
        assert_eq!(reader.read(&mut buf).await.expect("a read"), 4, "the bytes wait for the next read");
        assert_eq!(&buf[..4], b"late", "they are the ones that were sent");
    });
}
