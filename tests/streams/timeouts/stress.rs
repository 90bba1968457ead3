//! Many streams, long exchanges, and races between a timeout and another event.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::spawn;
use kittiwake::task::yield_now;
use kittiwake::time::{Duration, Instant, sleep};

use super::*;

/// Each of many streams times out at its own deadline.
#[test]
fn many_streams_time_out_separately() {
    const STREAMS: u64 = 60;
    run_paused(|| async {
        let mut waiters = Vec::new();
        for i in 0..STREAMS {
            let (stream, peer) = pair_with_std();
            let (read, idle) = (Duration::from_millis(997 * (i % 31 + 20)), Duration::from_millis(887 * (i % 29 + 20)));
            stream.set_read_timeout(Some(read)).expect("a timeout");
            stream.set_idle_timeout(Some(idle)).expect("a timeout");
            let served = Duration::from_millis(151 * i);
            let start = Instant::now();
            waiters.push(spawn(async move {
                let serving = spawn(async move {
                    sleep(served).await;
                    (&peer).write_all(b"x").expect("the peer writes");
                    peer
                });
                let mut stream = stream;
                assert_eq!(stream.read(&mut [0; 8]).await.expect("a byte comes in time"), 1);
                let from = Instant::now();
                assert!(from >= start + served, "the byte cannot arrive before it is sent");
                let _peer = serving.await;
                let result = stream.read(&mut [0; 8]).await;
                assert_timed_out(Poll::Ready(result.map(|_| 0)));
                assert_at(Instant::now(), from + read.min(idle));
            }));
        }
        for waiter in waiters {
            waiter.await.expect("a waiter");
        }
        assert_eq!(sources(), 0, "every stream must be deregistered");
    });
}

/// An exchange that never pauses for a whole timeout never times out, however long it lasts.
#[test]
fn busy_exchange_never_times_out() {
    run_paused(|| async {
        let (client, server) = pair().await;
        for stream in [&client, &server] {
            set_all(stream, SECOND);
        }
        let echo = spawn(echo(server));
        let start = Instant::now();
        let mut client = client;
        for i in 0..60_u32 {
            client.write_all(&i.to_be_bytes()).await.expect("a write");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer must equal the question");
            sleep(700 * MS).await;
        }
        assert!(start.elapsed() > 40 * SECOND, "the exchange must be long");
        drop(client);
        echo.await.expect("the server").expect("the task reads");
    });
}

/// A paused clock does not advance while bytes are on their way between two sockets, so an exchange does not time
/// out.
#[test]
fn paused_clock_causes_no_timeout() {
    run_paused(|| async {
        let (mut client, server) = pair().await;
        for stream in [&client, &server] {
            set_all(stream, MS);
        }
        let start = Instant::now();
        let echo = spawn(echo(server));
        for i in 0..500_u32 {
            client.write_all(&i.to_be_bytes()).await.expect("a write");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(u32::from_be_bytes(answer), i, "the answer must equal the question");
        }
        drop(client);
        echo.await.expect("the server").expect("the task reads");
        assert!(start.elapsed() <= MS + TICK, "the clock advanced by {:?}", start.elapsed());
    });
}

fn set_all(stream: &Stream, duration: Duration) {
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        kind.set(stream, Some(duration)).expect("a timeout");
    }
}

async fn echo(mut stream: Stream) -> io::Result<()> {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}

/// Bytes that arrive just before the deadline, at it or just after it are read and wake the reader. No task polls
/// until then.
#[test]
fn bytes_at_the_deadline_are_read() {
    run_paused(|| async {
        let link = Link::new(Case { kind: Kind::Read, direction: Direction::Read }, TEN).await;
        let (waker, wakes) = counting_waker();
        for round in 0..2000_u32 {
            let kind = if round % 2 == 0 { Kind::Read } else { Kind::Idle };
            set_only(&link.stream, kind, TEN);
            let start = Instant::now();
            assert!(poll_read(&waker, &*link.stream, &mut [0; 8]).is_pending(), "there is nothing to read");
            let before = wakes.get();
            let offset = Duration::from_nanos(u64::from(round % 8) << 14);
            advance_to(start + TEN - (TICK / 2) + offset).await;
            (&link.peer).write_all(&round.to_be_bytes()).expect("the peer writes");
            if round % 3 == 0 {
                advance_to(start + TEN + TICK).await;
            }
            until(|| wakes.get() > before).await;
            let mut buf = [0; 8];
            loop {
                match poll_read(&waker, &*link.stream, &mut buf) {
                    Poll::Ready(Ok(read)) => {
                        assert_eq!(buf[..read], round.to_be_bytes(), "round {round}");
                        break;
                    }
                    // The clock woke the reader, and the bytes are still on their way.
                    Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::TimedOut, "round {round}: {error}"),
                    Poll::Pending => yield_now().await,
                }
            }
        }
    });
}

fn set_only(stream: &Stream, only: Kind, duration: Duration) {
    for kind in [Kind::Read, Kind::Write, Kind::Idle] {
        kind.set(stream, (kind == only).then_some(duration)).expect("a setting");
    }
}

/// The same in real time: another thread sends each byte at about the deadline.
#[test]
fn racing_timeouts_lose_no_byte() {
    for kind in [Kind::Read, Kind::Idle] {
        run(move || async move {
            let (mut reader, peer) = pair_with_std();
            send_at_once(&peer);
            let sent = pattern(2000);
            let (timed_out, wanted) = mpsc::channel();
            let writer = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    for (at, byte) in sent.iter().enumerate() {
                        (&peer).write_all(&[*byte]).expect("the peer writes");
                        // Every second byte is sent after a timeout at the earliest, the others at once.
                        if at % 2 == 0 && wanted.recv().is_err() {
                            return;
                        }
                    }
                }
            });
            let (mut received, mut timeouts, mut buf) = (Vec::new(), 0_u64, [0; 16]);
            loop {
                kind.set(&reader, Some(Duration::from_micros(20 + 60 * (timeouts % 5)))).expect("a timeout");
                match reader.read(&mut buf).await {
                    Ok(0) => break,
                    Ok(read) => received.extend_from_slice(&buf[..read]),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::TimedOut, "{kind:?}: {error}");
                        timeouts += 1;
                        let _ = timed_out.send(());
                    }
                }
            }
            writer.join().expect("the writer");
            assert!(timeouts >= 1000, "most bytes must have met a timeout");
            assert_eq!(received, sent, "{kind:?}: every byte must arrive once and in order");
        });
    }
}

/// The timer and the reactor run on one thread, the reader on another, and the peer on a third. Both the timer and
/// the reactor wake the reader.
#[test]
fn foreign_timer_loses_no_byte() {
    for kind in [Kind::Read, Kind::Idle] {
        within(move || {
            let background = Background::start();
            let (stream, mut peer) = pair_with_std();
            kind.set(&stream, Some(100 * Duration::from_nanos(1000))).expect("a timeout");
            let mut stream = background.run(async move {
                let _ = poll_once((&stream).read(&mut [0; 8])).await;
                stream
            });
            let (timed_out, wanted) = mpsc::channel();
            let sent = pattern(1000);
            let writer = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    for byte in sent {
                        if wanted.recv().is_err() {
                            return;
                        }
                        peer.write_all(&[byte]).expect("the peer writes");
                    }
                }
            });
            let received = kittiwake::block_on(async {
                let (mut received, mut buf) = (Vec::new(), [0; 16]);
                loop {
                    match stream.read(&mut buf).await {
                        Ok(0) => return received,
                        Ok(read) => received.extend_from_slice(&buf[..read]),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::TimedOut, "{kind:?}: {error}");
                            let _ = timed_out.send(());
                        }
                    }
                }
            });
            writer.join().expect("the writer");
            assert_eq!(received, sent, "{kind:?}: every byte must arrive once and in order");
            background.stop();
        });
    }
}

/// A setting from another thread loses no deadline, even if it races with the timer's expiry or the first wait.
#[test]
fn racing_settings_lose_no_timeout() {
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, 200 * Duration::from_nanos(1000)).await;
            let done = Arc::new(AtomicBool::new(false));
            let setter = std::thread::spawn({
                let (stream, done) = (link.stream.clone(), done.clone());
                move || {
                    let mut round = 0;
                    while !done.load(Ordering::SeqCst) {
                        let setting = [Some(HOUR), None, Some(MS), None][round % 4];
                        case.set(&stream, setting).expect("a setting");
                        case.set(&stream, Some(Duration::from_nanos(1 + 1009 * (round as u64 % 300))))
                            .expect("a timeout");
                        std::thread::yield_now();
                        round += 1;
                    }
                }
            });
            for _ in 0..300 {
                link.time_out().await;
            }
            done.store(true, Ordering::SeqCst);
            setter.join().expect("the setter");
            link.time_out().await;
        });
    }
}

/// A setting from another thread fails no wait early, even in the middle of a poll.
#[test]
fn racing_settings_cause_no_timeout() {
    for case in CASES {
        run(move || async move {
            let link = Link::new(case, HOUR).await;
            let stream = link.stream.clone();
            let waiter = link.spawn();
            let setter = std::thread::spawn(move || {
                for round in 0..20_000 {
                    case.set(&stream, Some(HOUR * (1 + round % 2))).expect("a timeout");
                }
            });
            until(|| setter.is_finished() || waiter.is_finished()).await;
            link.serve_until(|| waiter.is_finished()).await;
            let result = waiter.await.expect("the waiter").0;
            assert!(result.is_ok(), "{case:?}: no hour has passed: {result:?}");
            setter.join().expect("the setter");
        });
    }
}

/// A stream that is dropped on one thread while its timer fires on another leaves no source and no waker.
#[test]
fn racing_drops_leave_nothing() {
    run(|| async {
        let (waker, wakes) = counting_waker();
        let (give, take) = mpsc::channel::<Stream>();
        let dropper = std::thread::spawn(move || take.into_iter().for_each(drop));
        for round in 0..600_u64 {
            let (stream, peer) = pair_with_std();
            // For TCP, which would run out of ports.
            will_reset(&peer);
            set_all(&stream, Duration::from_nanos(1 + 3001 * (round % 100)));
            let _ = poll_read(&waker, &stream, &mut [0; 8]);
            for _ in 0..round % 7 {
                yield_now().await;
            }
            give.send(stream).expect("the dropper");
        }
        drop(give);
        dropper.join().expect("the dropper");
        sleep(2 * MS).await;
        assert_eq!(sources(), 0, "no stream may stay registered");
        assert_eq!(Arc::strong_count(&wakes), 2, "no waker may be kept");
    });
}
