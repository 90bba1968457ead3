//! `readable`, `writable`, `try_read` and `try_write`: what is reported, to whom, and what takes it back.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, ErrorKind, Result};
use kittiwake::net::TcpStream;
use socket2::SockRef;
use support::*;

/// Without it a loop over `readable` and `try_read` uses all of a core, or sleeps on bytes that are there.
#[test]
fn readable_waits_once_try_read_has_said_would_block() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut buf = [0; 8];
        for round in 0..5 {
            assert_would_block(stream.try_read(&mut buf));
            assert!(poll_once(stream.readable()).await.is_none(), "round {round}: there is nothing to read");
            settle().await;
            assert!(poll_once(stream.readable()).await.is_none(), "round {round}: there still is nothing");
            peer.write_all(b"bytes").expect("the peer writes");
            stream.readable().await.expect("readable");
            assert_eq!(read_by_trying(&stream, &mut buf).await, 5, "round {round}");
        }
    });
}

/// Without it what a full buffer left behind is found only when more arrives.
#[test]
fn readable_returns_at_once_while_something_is_left() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once(stream.readable()).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"0123456789").expect("the peer writes");
        stream.readable().await.expect("readable");
        for _ in 0..5 {
            assert_eq!(stream.try_read(&mut [0; 2]).expect("something is left"), 2);
            assert!(poll_once(stream.readable()).await.is_some(), "nobody has said that nothing is left");
        }
        assert_would_block(stream.try_read(&mut [0; 2]));
        assert!(poll_once(stream.readable()).await.is_none(), "now nothing is left");
    });
}

/// Without it a socket that was never registered reports itself readable, or misses what came before.
#[test]
fn readable_reports_what_came_before_it_was_asked() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        peer.write_all(b"early").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(stream.try_read(&mut [0; 8]).expect("the bytes are there"), 5);
    });
}

/// Without it a writer spins on a full socket, or sleeps beside an empty one.
#[test]
fn writable_waits_once_try_write_has_said_would_block() {
    run(|| async {
        let (stream, mut peer) = full().await;
        assert!(poll_once(stream.writable()).await.is_none(), "there is no room");
        let reader = std::thread::spawn(move || {
            let mut total = 0;
            let mut buf = vec![0; 65_536];
            while let read @ 1.. = peer.read(&mut buf).expect("the peer reads") {
                total += read;
            }
            total
        });
        let mut more = 0;
        for _ in 0..5 {
            stream.writable().await.expect("writable");
            more += stream.try_write(&[7; 1000]).unwrap_or_else(only_would_block);
        }
        assert!(more > 0, "there is room again");
        drop(stream);
        assert!(reader.join().expect("the peer's thread") >= more, "the peer gets it");
    });
}

/// Without it waiting for one direction uses up what was reported for the other, or makes it up.
#[test]
fn the_two_directions_are_reported_apart() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        stream.writable().await.expect("a new connection can be written");
        assert!(poll_once(stream.readable()).await.is_none(), "and that says nothing about reading");
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("readable");
        for _ in 0..3 {
            assert!(poll_once(stream.writable()).await.is_some(), "it can still be written");
            assert!(poll_once(stream.readable()).await.is_some(), "it can still be read");
        }
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 5);
        assert_would_block(stream.try_read(&mut [0; 8]));
        assert!(poll_once(stream.readable()).await.is_none(), "nothing is left to read");
        assert!(poll_once(stream.writable()).await.is_some(), "and that says nothing about writing");
    });
}

/// Without it a server whose client does not read its replies cannot even read its requests, or the
/// other way round.
#[test]
fn a_full_socket_can_be_read_and_stays_full() {
    run(|| async {
        let (stream, mut peer) = full().await;
        let (writer, wakes_of_writer) = counting_waker();
        assert!(poll_write(&writer, &stream, &[7]).is_pending(), "there is no room");
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 5);
        assert_would_block(stream.try_read(&mut [0; 8]));
        assert!(poll_once(stream.readable()).await.is_none(), "nothing is left to read");
        assert_eq!(wakes_of_writer.get(), 0, "what comes in makes no room for what goes out");
    });
}

/// Without it a client that has sent its end and reads slowly costs a core.
#[test]
fn a_half_closed_peer_does_not_make_a_blocked_writer_spin() {
    run(|| async {
        let (stream, peer) = full().await;
        peer.shutdown(Shutdown::Write).expect("the peer ends its writing");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "the peer's end has been seen");
        let (stream, tries) = (Arc::new(stream), Arc::new(AtomicUsize::new(0)));
        kittiwake::spawn({
            let (stream, tries) = (stream.clone(), tries.clone());
            async move {
                loop {
                    stream.writable().await.expect("writable");
                    tries.fetch_add(1, Ordering::Relaxed);
                    while stream.try_write(&[7; 1000]).is_ok() {}
                }
            }
        });
        let (waker, wakes) = counting_waker();
        while poll_write(&waker, &stream, &[7; 1000]).is_ready() {}
        for _ in 0..10 {
            settle().await;
        }
        let tries = tries.load(Ordering::Relaxed);
        assert!(tries <= 5, "a writer without room must sleep, and it tried {tries} times");
        assert!(wakes.get() <= 5, "a writer without room must sleep, and it was woken {} times", wakes.get());
    });
}

/// Without it somebody who comes late to a connection that has ended waits for ever.
#[test]
fn an_end_and_a_reset_are_readable_for_ever() {
    run(|| async {
        let (ended, peer) = pair_with_std();
        assert!(poll_once(ended.readable()).await.is_none(), "there is nothing to read yet");
        drop(peer);
        for _ in 0..3 {
            ended.readable().await.expect("an end is readable");
            assert_eq!(ended.try_read(&mut [0; 8]).expect("try_read"), 0);
        }
        let (failed, peer) = pair_with_std();
        assert!(poll_once(failed.readable()).await.is_none(), "there is nothing to read yet");
        reset(peer);
        failed.readable().await.expect("a reset is readable");
        let error = failed.try_read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        for _ in 0..3 {
            failed.readable().await.expect("what follows a reset is readable");
            failed.writable().await.expect("a failure is writable");
            assert_eq!(failed.try_read(&mut [0; 8]).expect("try_read"), 0);
        }
    });
}

/// Without it one of several who wait sleeps on while the bytes are there.
#[test]
fn all_who_wait_for_readiness_are_told() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let stream = stream.clone();
                kittiwake::spawn(async move { stream.readable().await })
            })
            .collect();
        settle().await;
        assert!(waiting.iter().all(|task| !task.is_finished()), "there is nothing to read yet");
        peer.write_all(b"x").expect("the peer writes");
        for task in waiting {
            task.await.expect("the task").expect("readable");
        }
    });
}

/// Without it the byte before the urgent one is the last that is read without another event.
#[test]
fn urgent_data_in_the_middle_loses_no_ordinary_byte() {
    for step in [1, 3, 64] {
        run(move || async move {
            let (stream, mut peer) = pair_with_std();
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            // The connection stays open: its end would be another event.
            send_with_urgent(&mut peer, b"before ", b"after");
            assert_eq!(read_in_steps(&stream, step, 12).await, b"before after", "read {step} at a time");
        });
    }
}

/// Without it an urgent mark that comes after the event for the bytes before it ends the reading there.
#[test]
fn urgent_data_between_the_event_and_the_read_loses_no_ordinary_byte() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"early ").expect("the peer writes");
        stream.readable().await.expect("the event for the first bytes");
        send_with_urgent(&mut peer, b"before ", b"after");
        assert_eq!(read_in_steps(&stream, 64, 18).await, b"early before after");
    });
}

/// Without it an urgent byte that comes to a sleeping reader wakes it for nothing, again and again, or
/// hides what follows.
#[test]
fn urgent_data_after_a_short_read_loses_no_ordinary_byte() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"early ").expect("the peer writes");
        assert_eq!((&stream).read(&mut [0; 64]).await.expect("read"), 6, "a short read");
        SockRef::from(&peer).send_out_of_band(b"!").expect("the peer sends an urgent byte");
        let (waker, wakes) = counting_waker();
        for _ in 0..100 {
            assert!(poll_read(&waker, &stream, &mut [0; 64]).is_pending(), "an urgent byte is not part of the stream");
            settle().await;
        }
        assert!(wakes.get() <= 3, "an urgent byte wakes a reader {} times", wakes.get());
        let reader = kittiwake::spawn(async move { read_in_steps(&stream, 64, 12).await });
        settle().await;
        send_with_urgent(&mut peer, b"before ", b"after");
        assert_eq!(reader.await.expect("the task"), b"before after");
    });
}

/// Sends an urgent byte between two ordinary parts.
fn send_with_urgent(peer: &mut std::net::TcpStream, before: &[u8], after: &[u8]) {
    peer.write_all(before).expect("the peer writes");
    SockRef::from(&*peer).send_out_of_band(b"!").expect("the peer sends an urgent byte");
    peer.write_all(after).expect("the peer writes on");
}

async fn read_in_steps(mut stream: &TcpStream, step: usize, length: usize) -> Vec<u8> {
    let (mut received, mut buf) = (Vec::new(), vec![0; step]);
    while received.len() < length {
        let read = stream.read(&mut buf).await.expect("read");
        assert!(read > 0, "the stream has not ended");
        received.extend_from_slice(&buf[..read]);
    }
    received
}

/// A stream that has been written to until there was no room, here or at the peer.
async fn full() -> (TcpStream, std::net::TcpStream) {
    let (stream, mut peer) = pair_with_std();
    // Small, so that room comes back in one piece, and not while the kernel still grows its buffers.
    SockRef::from(&stream).set_send_buffer_size(65_536).expect("SO_SNDBUF");
    SockRef::from(&peer).set_recv_buffer_size(65_536).expect("SO_RCVBUF");
    let mut quiet = 0;
    while quiet < 3 {
        quiet += 1;
        while stream.try_write(&[7; 4096]).is_ok() {
            quiet = 0;
        }
        // Brings the acknowledgements that were held back, and that make room without the reader's doing.
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 1);
        settle().await;
    }
    assert_would_block(stream.try_write(&[7]));
    (stream, peer)
}

/// Reads once the kernel really has something: `readable` may be early.
async fn read_by_trying(stream: &TcpStream, buf: &mut [u8]) -> usize {
    loop {
        stream.readable().await.expect("readable");
        match stream.try_read(buf) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result.expect("try_read"),
        }
    }
}

#[track_caller]
fn assert_would_block(result: Result<usize>) {
    assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
}

#[track_caller]
fn only_would_block(error: std::io::Error) -> usize {
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    0
}

/// Without it what comes between a first read that is short, after which nobody asks again, and the wait is not heard of.
#[test]
fn what_comes_after_a_first_short_read_is_heard_of() {
    run(|| async {
        for end in [false, true] {
            let (stream, mut peer) = pair_with_std();
            peer.write_all(b"abc").expect("the peer writes");
            wait_readable(&stream);
            let mut buf = [0; 8];
            assert_eq!((&stream).read(&mut buf).await.expect("read"), 3, "shorter than what was asked for");
            assert_eq!(sources(), 0, "it has not waited yet");
            if end {
                drop(peer);
            } else {
                peer.write_all(b"de").expect("the peer writes");
            }
            wait_readable(&stream);
            let expected = if end { 0 } else { 2 };
            assert_eq!((&stream).read(&mut buf).await.expect("read"), expected, "an end: {end}");
        }
    });
}
