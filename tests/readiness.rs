//! `readable`, `writable`, `try_read` and `try_write`: which readiness is reported to which task, and which result
//! clears it.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, ErrorKind, Result};
use kittiwake::net::{TcpStream, UdpSocket};
use socket2::SockRef;
use support::*;

/// After `try_read` has returned `WouldBlock`, `readable` waits for the next bytes. A loop over both neither spins
/// nor sleeps on bytes that are there.
#[test]
fn would_block_clears_readable() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut buf = [0; 8];
        for round in 0..5 {
            assert_would_block(stream.try_read(&mut buf));
            assert!(poll_once(stream.readable()).await.is_none(), "round {round}: there is nothing to read");
            settle().await;
            assert!(poll_once(stream.readable()).await.is_none(), "round {round}: there is still nothing to read");
            peer.write_all(b"bytes").expect("the peer writes");
            stream.readable().await.expect("readable");
            assert_eq!(read_by_trying(&stream, &mut buf).await, 5, "round {round}");
        }
    });
}

/// `readable` returns at once until a read returns `WouldBlock`, so bytes that a full buffer left are found.
#[test]
fn readable_persists_until_would_block() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once(stream.readable()).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"0123456789").expect("the peer writes");
        stream.readable().await.expect("readable");
        for _ in 0..5 {
            assert_eq!(stream.try_read(&mut [0; 2]).expect("bytes are left"), 2);
            assert!(poll_once(stream.readable()).await.is_some(), "no read has returned `WouldBlock` yet");
        }
        assert_would_block(stream.try_read(&mut [0; 2]));
        assert!(poll_once(stream.readable()).await.is_none(), "no bytes may be left now");
    });
}

/// `readable` reports bytes that arrived before its first call.
#[test]
fn readable_reports_earlier_bytes() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        peer.write_all(b"early").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(stream.try_read(&mut [0; 8]).expect("the bytes are there"), 5);
    });
}

/// After `try_write` has returned `WouldBlock`, `writable` waits for room.
#[test]
fn would_block_clears_writable() {
    run(|| async {
        let (stream, mut peer) = full().await;
        assert!(poll_once(stream.writable()).await.is_none(), "the send buffer is full");
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
        assert!(more > 0, "the send buffer must have room again");
        drop(stream);
        assert!(reader.join().expect("the peer's thread") >= more, "the peer must get every byte");
    });
}

/// The two directions are reported independently.
#[test]
fn directions_are_reported_independently() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        stream.writable().await.expect("a new connection is writable");
        assert!(poll_once(stream.readable()).await.is_none(), "writable must not imply readable");
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("readable");
        for _ in 0..3 {
            assert!(poll_once(stream.writable()).await.is_some(), "the stream must still be writable");
            assert!(poll_once(stream.readable()).await.is_some(), "the stream must still be readable");
        }
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 5);
        assert_would_block(stream.try_read(&mut [0; 8]));
        assert!(poll_once(stream.readable()).await.is_none(), "nothing is left to read");
        assert!(poll_once(stream.writable()).await.is_some(), "a drained stream must still be writable");
    });
}

/// A full socket can be read and stays full. A server must read requests although its client does not read the
/// replies.
#[test]
fn full_socket_can_be_read() {
    run(|| async {
        let (stream, mut peer) = full().await;
        let (writer, wakes_of_writer) = counting_waker();
        assert!(poll_write(&writer, &stream, &[7]).is_pending(), "the send buffer is full");
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 5);
        assert_would_block(stream.try_read(&mut [0; 8]));
        assert!(poll_once(stream.readable()).await.is_none(), "nothing is left to read");
        assert_eq!(wakes_of_writer.get(), 0, "received bytes must not wake the writer");
    });
}

/// A peer that has closed its side does not make a waiting writer spin.
#[test]
fn half_closed_peer_spins_no_writer() {
    run(|| async {
        let (stream, peer) = full().await;
        peer.shutdown(Shutdown::Write).expect("the peer shuts down its writing side");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "the read must return the end");
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
        while poll_write(&waker, &*stream, &[7; 1000]).is_ready() {}
        for _ in 0..10 {
            settle().await;
        }
        let tries = tries.load(Ordering::Relaxed);
        assert!(tries <= 5, "a writer without room must sleep, but it tried {tries} times");
        assert!(wakes.get() <= 5, "a writer without room must sleep, but it was woken {} times", wakes.get());
    });
}

/// An end and a reset stay readable for ever, so a late reader does not wait.
#[test]
fn end_and_reset_stay_readable() {
    run(|| async {
        let (ended, peer) = pair_with_std();
        assert!(poll_once(ended.readable()).await.is_none(), "there is nothing to read yet");
        drop(peer);
        for _ in 0..3 {
            ended.readable().await.expect("the end is readable");
            assert_eq!(ended.try_read(&mut [0; 8]).expect("try_read"), 0);
        }
        let (failed, peer) = pair_with_std();
        assert!(poll_once(failed.readable()).await.is_none(), "there is nothing to read yet");
        reset(peer);
        failed.readable().await.expect("the reset is readable");
        let error = failed.try_read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        for _ in 0..3 {
            failed.readable().await.expect("the end after a reset is readable");
            failed.writable().await.expect("a failed stream is writable");
            assert_eq!(failed.try_read(&mut [0; 8]).expect("try_read"), 0);
        }
    });
}

/// All tasks that wait for readiness are woken.
#[test]
fn all_readiness_waiters_are_woken() {
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

/// Urgent data in the middle of a stream loses no ordinary byte.
#[test]
fn urgent_data_loses_no_byte() {
    for step in [1, 3, 64] {
        run(move || async move {
            let (stream, mut peer) = pair_with_std();
            assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            // The connection stays open, because its end would be another event.
            send_with_urgent(&mut peer, b"before ", b"after");
            assert_eq!(read_in_steps(&stream, step, 12).await, b"before after", "reading {step} bytes at a time");
        });
    }
}

/// Urgent data that arrives between the event and the read loses no ordinary byte.
#[test]
fn urgent_data_after_event_is_skipped() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"early ").expect("the peer writes");
        stream.readable().await.expect("the event for the first bytes");
        send_with_urgent(&mut peer, b"before ", b"after");
        assert_eq!(read_in_steps(&stream, 64, 18).await, b"early before after");
    });
}

/// Urgent data that arrives after a short read loses no ordinary byte, and wakes the sleeping reader only a few
/// times.
#[test]
fn urgent_data_after_read_is_skipped() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
        peer.write_all(b"early ").expect("the peer writes");
        assert_eq!((&stream).read(&mut [0; 64]).await.expect("read"), 6, "the read must be short");
        SockRef::from(&peer).send_out_of_band(b"!").expect("the peer sends an urgent byte");
        let (waker, wakes) = counting_waker();
        for _ in 0..100 {
            assert!(
                poll_read(&waker, &stream, &mut [0; 64]).is_pending(),
                "an urgent byte must not be part of the stream"
            );
            settle().await;
        }
        assert!(wakes.get() <= 3, "an urgent byte woke a reader {} times", wakes.get());
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
    peer.write_all(after).expect("the peer continues to write");
}

async fn read_in_steps(mut stream: &TcpStream, step: usize, length: usize) -> Vec<u8> {
    let (mut received, mut buf) = (Vec::new(), vec![0; step]);
    while received.len() < length {
        let read = stream.read(&mut buf).await.expect("read");
        assert!(read > 0, "the stream must not end");
        received.extend_from_slice(&buf[..read]);
    }
    received
}

/// A stream that was written to until neither side had room.
async fn full() -> (TcpStream, std::net::TcpStream) {
    let (stream, mut peer) = pair_with_std();
    // Small buffers become free in one piece, and the kernel does not grow them meanwhile.
    SockRef::from(&stream).set_send_buffer_size(65_536).expect("SO_SNDBUF");
    SockRef::from(&peer).set_recv_buffer_size(65_536).expect("SO_RCVBUF");
    let mut quiet = 0;
    while quiet < 3 {
        quiet += 1;
        while stream.try_write(&[7; 4096]).is_ok() {
            quiet = 0;
        }
        // The byte carries acknowledgements that the kernel has delayed. They make room although the peer does not
        // read.
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(read_by_trying(&stream, &mut [0; 8]).await, 1);
        settle().await;
    }
    assert_would_block(stream.try_write(&[7]));
    (stream, peer)
}

/// Reads once the kernel has bytes. `readable` may return early.
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

/// Bytes or an end that arrive between a short first read and the wait are reported. No further read runs in
/// between.
#[test]
fn bytes_after_first_read_are_reported() {
    run(|| async {
        for end in [false, true] {
            let (stream, mut peer) = pair_with_std();
            peer.write_all(b"abc").expect("the peer writes");
            wait_readable(&stream);
            let mut buf = [0; 8];
            assert_eq!((&stream).read(&mut buf).await.expect("read"), 3, "the read must be shorter than its buffer");
            assert_eq!(sources(), 0, "the stream must not be registered yet");
            if end {
                drop(peer);
            } else {
                peer.write_all(b"de").expect("the peer writes");
            }
            wait_readable(&stream);
            let expected = if end { 0 } else { 2 };
            assert_eq!((&stream).read(&mut buf).await.expect("read"), expected, "the expected end is {end}");
        }
    });
}

/// A peek waits if its offset is beyond the bytes that are there. It leaves these bytes to the readers, does not spin,
/// and is woken by the next bytes.
#[test]
#[cfg(target_os = "linux")]
fn peek_beyond_bytes_spares_readers() {
    run(|| async {
        for is_registered in [true, false] {
            let (stream, mut peer) = pair_with_std();
            if is_registered {
                assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            }
            peer.write_all(b"hello").expect("the peer writes");
            wait_readable(&stream);
            if !set_peek_offset(&stream, 5) {
                return eprintln!("skipped: there is no perl, or the kernel has no SO_PEEK_OFF for TCP");
            }
            let ((waker, wakes), mut buf) = (counting_waker(), [0; 8]);
            let mut peek = Box::pin(stream.peek(&mut buf));
            assert!(poll_with(&waker, &mut peek).is_pending(), "the offset is beyond the bytes");
            if cfg!(not(mio_unsupported_force_poll_poll)) {
                for _ in 0..10 {
                    settle().await;
                    assert!(poll_with(&waker, &mut peek).is_pending(), "the offset is beyond the bytes");
                }
                assert!(wakes.get() <= 2, "bytes before the offset woke the peek {} times", wakes.get());
            }
            // This waits for ever if the peek has hidden the bytes.
            stream.readable().await.expect("readable");
            let read =
                poll_once((&stream).read(&mut [0; 8])).await.expect("the peek has hidden the bytes from the read");
            assert_eq!(read.expect("read"), 5);
            // Reading has moved the offset to the next byte.
            peer.write_all(b"more").expect("the peer writes");
            assert_eq!(peek.await.expect("peek"), 4);
            assert_eq!(&buf[..4], b"more");
        }
    });
}

/// A peek of a datagram may have to wait beside a datagram that is there, and must not hide it from a receiver.
#[test]
#[cfg(target_os = "linux")]
fn datagram_peek_spares_receivers() {
    run(|| async {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let sender = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        if !set_peek_offset(&receiver, 5) {
            return eprintln!("skipped: there is no perl, or the kernel has no SO_PEEK_OFF for UDP");
        }
        let mut buf = [0; 8];
        assert!(poll_once(receiver.recv(&mut buf)).await.is_none(), "there is nothing to receive yet");
        sender.send_to(b"hello", receiver.local_addr().expect("local_addr")).await.expect("send_to");
        receiver.readable().await.expect("readable");
        for _ in 0..3 {
            assert!(poll_once(receiver.peek(&mut buf)).await.is_none(), "the offset is beyond the datagram");
            assert!(poll_once(receiver.peek_from(&mut buf)).await.is_none(), "the offset is beyond the datagram");
            settle().await;
        }
        let received = poll_once(receiver.recv(&mut buf)).await.expect("the peek has hidden the datagram");
        assert_eq!(received.expect("recv"), 5);
    });
}

/// Sets `SO_PEEK_OFF` of a socket. It is a property of the socket, so a child process can set it.
#[cfg(target_os = "linux")]
fn set_peek_offset(socket: &impl std::os::fd::AsFd, offset: i32) -> bool {
    const SO_PEEK_OFF: i32 = 42;
    let set = format!("setsockopt(STDIN, {}, {SO_PEEK_OFF}, {offset}) or exit 1", libc::SOL_SOCKET);
    let socket = socket.as_fd().try_clone_to_owned().expect("a duplicate");
    let status = std::process::Command::new("perl").args(["-e", &set]).stdin(socket).status();
    status.is_ok_and(|status| status.success())
}
