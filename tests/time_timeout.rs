//! Timeouts: a ready output wins, a late future is dropped, and no byte is lost.

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

/// A timeout around a ready future needs no timer and no runtime.
#[test]
fn ready_future_needs_no_timer() {
    let mut at_once = timeout(HOUR, ready(7));
    assert_eq!(poll_with(Waker::noop(), &mut at_once), Poll::Ready(Ok(7)), "the future must be ready");
    let mut no_time = timeout(Duration::ZERO, pending::<()>());
    assert!(
        matches!(poll_with(Waker::noop(), &mut no_time), Poll::Ready(Err(_))),
        "a timeout of zero must need no timer"
    );
}

/// A timeout that must wait outside a runtime panics with a message.
#[test]
fn timeout_outside_a_runtime_panics() {
    let text = panic_of(|| assert!(poll_with(Waker::noop(), &mut timeout(HOUR, pending::<()>())).is_ready()));
    assert!(
        text.contains("no kittiwake runtime is running on this thread"),
        "the panic must name the missing runtime: {text}"
    );
}

/// A timeout around a future that is never ready elapses at its deadline.
#[test]
fn timeout_elapses_at_its_deadline() {
    run_paused(|| async {
        for seconds in [1, 60, 4_000_000] {
            let start = Instant::now();
            let duration = Duration::from_secs(seconds);
            assert!(timeout(duration, pending::<()>()).await.is_err(), "the future is never ready");
            assert_at(Instant::now(), start + duration);
        }
    });
}

/// A timeout never elapses early on the real clock.
#[test]
fn timeout_never_elapses_early() {
    run(|| async {
        for micros in [1, 66, 500, 1001, 3000] {
            let start = std::time::Instant::now();
            let duration = Duration::from_micros(micros);
            assert!(timeout(duration, pending::<()>()).await.is_err(), "the future is never ready");
            assert!(start.elapsed() >= duration, "{duration:?} elapsed after {:?}", start.elapsed());
        }
    });
}

/// The longest timeouts never elapse. The computation of their deadline must not overflow.
#[test]
fn longest_timeout_never_elapses() {
    run_paused(|| async {
        for duration in [Duration::MAX, Duration::from_secs(u64::MAX / 10)] {
            let start = Instant::now();
            assert_eq!(timeout(duration, sleep(HOUR)).await, Ok(()), "the timeout must not elapse");
            assert_at(Instant::now(), start + HOUR);
        }
    });
}

/// A timeout whose deadline has passed polls its future once. A ready future returns its output.
#[test]
fn passed_deadline_polls_future_once() {
    run_paused(|| async {
        let past = Instant::now();
        advance(HOUR).await;
        assert_eq!(timeout_at(past, ready(7)).await, Ok(7), "the future is ready");
        assert_eq!(timeout(Duration::ZERO, ready(8)).await, Ok(8), "the future is ready");
        let mut polls = 0;
        let counted = poll_fn(|_| {
            polls += 1;
            Poll::<()>::Pending
        });
        assert!(timeout_at(past, counted).await.is_err(), "the future is not ready");
        assert_eq!(polls, 1, "the future must be polled once");
    });
}

/// An output that is ready at the deadline wins over the timeout.
#[test]
fn ready_output_beats_passed_deadline() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let (sender, receiver) = async_channel::bounded(1);
        let mut late = Box::pin(timeout(Duration::from_secs(1), receiver.recv()));
        assert!(poll_with(&waker, &mut late).is_pending(), "nothing was sent");
        advance(HOUR).await;
        assert_eq!(wakes.get(), 1, "the deadline must wake the task");
        sender.send(7).await.expect("the receiver is there");
        assert_eq!(poll_with(&waker, &mut late), Poll::Ready(Ok(Ok(7))), "the output must win, however late");
    });
}

/// A timeout that has ended leaves no timer.
#[test]
fn ended_timeout_leaves_no_timer() {
    run_paused(|| async {
        let (waker, wakes) = counting_waker();
        let (sender, receiver) = async_channel::bounded(1);
        let mut waiting = Box::pin(timeout(HOUR, receiver.recv()));
        assert!(poll_with(&waker, &mut waiting).is_pending(), "nothing was sent");
        sender.send(7).await.expect("the receiver is there");
        assert!(poll_with(&waker, &mut waiting).is_ready(), "the value was sent");
        drop(waiting);
        let woken = wakes.get();
        assert_eq!(Arc::strong_count(&wakes), 2, "no timer may hold the waker");
        advance(2 * HOUR).await;
        assert_eq!(wakes.get(), woken, "no timer may wake the waker");
    });
}

/// `into_inner` returns a future that continues.
#[test]
fn into_inner_returns_a_working_future() {
    run_paused(|| async {
        let start = Instant::now();
        let mut slow = timeout(Duration::from_secs(1), sleep(HOUR));
        assert!((&mut slow).await.is_err(), "an hour is more than a second");
        slow.into_inner().await;
        assert_at(Instant::now(), start + HOUR);
        assert_eq!(timeout(HOUR, ready(7)).into_inner().await, 7, "`into_inner` must work before the first poll");
    });
}

/// `Elapsed` converts to an `io::Error` of the kind `TimedOut`.
#[test]
fn elapsed_converts_to_timed_out() {
    async fn reads() -> io::Result<()> {
        Ok(timeout(Duration::from_millis(1), pending::<()>()).await?)
    }
    run(|| async {
        let error = reads().await.expect_err("the future is never ready");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "the kind must be TimedOut");
        assert!(error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Elapsed>), "the error must hold the cause");
        let elapsed = timeout(Duration::ZERO, pending::<()>()).await.expect_err("the future is never ready");
        assert!(elapsed.source().is_none() && !elapsed.to_string().is_empty(), "the error must have a message");
    });
}

/// A read that times out while its bytes arrive loses none.
#[test]
fn timed_out_read_loses_no_byte() {
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
        assert!(elapsed > 0, "some reads must time out");
        assert_eq!(received, sent, "every byte must arrive once and in order");
    });
}

/// Bytes that arrive with the deadline are read by the next read. The timeout is dropped without a further poll.
#[test]
fn bytes_at_the_deadline_are_kept() {
    run_paused(|| async {
        let (mut reader, mut peer) = support::pair_with_std();
        let mut buf = [0; 8];
        {
            let mut waiting = timeout(Duration::from_secs(1), reader.read(&mut buf));
            assert!(poll_with(Waker::noop(), &mut waiting).is_pending(), "nothing was sent");
            advance(HOUR).await;
            std::io::Write::write_all(&mut peer, b"late").expect("the peer writes");
            // The timeout is dropped here, with the bytes in the socket.
        }
        assert_eq!(reader.read(&mut buf).await.expect("a read"), 4, "the next read must return the bytes");
        assert_eq!(&buf[..4], b"late", "the bytes must be the sent ones");
    });
}
