//! The end of a connection: end of stream and half-close, and the effect of a drop on the peer.

use std::io::{IoSlice, Read, Write};
use std::sync::Arc;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::Shutdown;

use super::*;

/// `close` ends the writing side and leaves the reading side open, so a client can end its request and read the
/// reply.
#[test]
fn close_ends_only_writing() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        (&stream).write_all(b"request").await.expect("write");
        (&stream).close().await.expect("close");
        let mut request = String::new();
        peer.read_to_string(&mut request).expect("the peer reads to the end");
        assert_eq!(request, "request");
        peer.write_all(b"reply").expect("the peer writes after the end of our side");
        drop(peer);
        let mut reply = String::new();
        (&stream).read_to_string(&mut reply).await.expect("the read after our own close succeeds");
        assert_eq!(reply, "reply");
    });
}

/// The peer's end leaves the stream writable, and every further read reports it.
#[test]
fn peers_end_leaves_stream_writable() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        peer.shutdown(Shutdown::Write).expect("the peer shuts down its writing side");
        for _ in 0..3 {
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "every read must return the end");
        }
        (&stream).write_all(b"reply").await.expect("the write after the peer's end succeeds");
        drop(stream);
        assert_eq!(read_all(peer), b"reply");
    });
}

/// An end that arrives with the last bytes is seen without a further event.
#[test]
fn end_with_last_bytes_is_seen() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(b"bytes").expect("the peer writes");
        drop(peer);
        let mut buf = [0; 64];
        stream.readable().await.expect("one event reports both");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "the read must be short");
        assert_eq!(
            (&stream).read(&mut buf).await.expect("read"),
            0,
            "the next read must return the end without another event"
        );
    });
}

/// An end that arrives between the event and the read is seen.
#[test]
fn end_after_the_event_is_seen() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("the event of the bytes");
        drop(peer);
        let mut buf = [0; 64];
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "the read must be short");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 0, "the next read must return the end");
    });
}

/// An end that arrives after a short read wakes the reader.
#[test]
fn end_after_read_wakes_reader() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(b"bytes").expect("the peer writes");
        let mut buf = [0; 64];
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "the read must be short");
        let reader = kittiwake::spawn(async move { (&stream).read(&mut buf).await });
        settle().await;
        assert!(!reader.is_finished(), "the connection has not ended");
        drop(peer);
        assert_eq!(reader.await.expect("the task").expect("read"), 0, "the end must wake the reader");
    });
}

/// A write after the stream's own end fails with a broken pipe, and raises no signal.
#[test]
fn write_after_end_is_broken_pipe() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!((&stream).write(b"x").await.expect_err("the writing side has ended").kind(), ErrorKind::BrokenPipe);
        let slices = [IoSlice::new(b"x"), IoSlice::new(b"y")];
        assert_eq!(
            (&stream).write_vectored(&slices).await.expect_err("the writing side has ended").kind(),
            ErrorKind::BrokenPipe
        );
        assert_eq!(stream.try_write(b"x").expect_err("the writing side has ended").kind(), ErrorKind::BrokenPipe);
        drop(stream);
        assert_eq!(read_all(peer), b"", "no byte may be sent");
    });
}

/// Closing a stream that has ended is no error.
#[test]
fn closing_ended_stream_is_no_error() {
    run(|| async {
        let (twice, _peer) = pair_with_std();
        (&twice).close().await.expect("close");
        (&twice).close().await.expect("the second close succeeds");
        twice.shutdown(Shutdown::Both).expect("a shutdown after close succeeds");
        twice.shutdown(Shutdown::Both).expect("the second shutdown succeeds");

        let (after_end, peer) = pair_with_std();
        drop(peer);
        assert_eq!((&after_end).read(&mut [0; 8]).await.expect("read"), 0);
        (&after_end).close().await.expect("a close after the peer's end succeeds");
        (&after_end).close().await.expect("a second close after the peer's end succeeds");
        after_end.shutdown(Shutdown::Both).expect("a shutdown after the peer's end succeeds");
    });
}

/// A shutdown of the reading side keeps the bytes that have arrived, and then reads return the end.
#[test]
fn read_shutdown_keeps_received_bytes() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("the bytes are there");
        stream.shutdown(Shutdown::Read).expect("shutdown");
        let mut bytes = String::new();
        (&stream).read_to_string(&mut bytes).await.expect("read");
        assert_eq!(bytes, "bytes");
        (&stream).write_all(b"still writing").await.expect("write");
        drop(stream);
        assert_eq!(read_all(peer), b"still writing");
    });
}

/// A shutdown of the reading side wakes a waiting reader.
#[test]
fn read_shutdown_wakes_reader() {
    run(|| async {
        let (stream, _peer) = registered().await;
        let stream = Arc::new(stream);
        let reader = kittiwake::spawn({
            let stream = stream.clone();
            async move { (&*stream).read(&mut [0; 8]).await }
        });
        settle().await;
        stream.shutdown(Shutdown::Read).expect("shutdown");
        assert_eq!(reader.await.expect("the task").expect("read"), 0, "the reader must be woken and read the end");
    });
}

/// A shutdown of the writing side wakes a waiting writer.
#[test]
fn write_shutdown_wakes_writer() {
    run(|| async {
        let (stream, _peer) = registered().await;
        let stream = Arc::new(stream);
        let writer = kittiwake::spawn({
            let stream = stream.clone();
            async move { (&*stream).write_all(&vec![7; 64 << 20]).await }
        });
        settle().await;
        assert!(!writer.is_finished(), "the peer does not read");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let error = writer.await.expect("the task").expect_err("the writing side has ended");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    });
}

/// A stream whose writing side has ended is writable: a write does not wait, and reports the end. That holds although the
/// send buffer is full.
#[test]
fn ended_stream_is_writable() {
    run(|| async {
        let (stream, _peer) = pair_with_std();
        let full = std::iter::repeat_with(|| stream.try_write(&[7; 65_536])).find_map(Result::err);
        assert_eq!(full.expect("the peer does not read").kind(), ErrorKind::WouldBlock);
        stream.shutdown(Shutdown::Write).expect("shutdown");
        stream.writable().await.expect("writable");
        let error = stream.try_write(b"x").expect_err("the writing side has ended");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        stream.writable().await.expect("it stays writable");
    });
}

/// A drained stream ends without a reset, so that the peer receives the last reply.
#[test]
fn drained_stream_ends_without_reset() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(&pattern(100_000)).expect("the peer writes");
        let peer = std::thread::spawn(move || {
            let mut reply = Vec::new();
            peer.read_to_end(&mut reply).map(|_| reply)
        });
        (&stream).write_all(b"too long").await.expect("the reply");
        assert!(stream.drain(1_000_000).await.expect("drain"), "the peer must close its side after ours");
        drop(stream);
        assert_eq!(peer.join().expect("the peer's thread").expect("the peer reads without a reset"), b"too long");
    });
}

/// A drain stops at its limit, even if the peer sends for ever.
#[test]
fn drain_stops_at_its_limit() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let bytes = pattern(10_000);
        peer.write_all(&bytes).expect("the peer writes");
        assert!(!stream.drain(0).await.expect("drain"), "the peer has not closed its side");
        assert!(!stream.drain(6_000).await.expect("drain"), "the peer has not closed its side");
        let mut rest = vec![0; 4_000];
        (&stream).read_exact(&mut rest).await.expect("read");
        assert!(rest == bytes[6_000..], "a drain must take exactly as many bytes as its limit");
        let mut reply = Vec::new();
        peer.read_to_end(&mut reply).expect("the peer reads");
        assert!(reply.is_empty(), "a drain must end the writing side");
        drop(peer);
        assert!(stream.drain(1).await.expect("drain"), "the peer has closed its side");
    });
}

/// Dropping a stream while its peer sends stops the peer, and disturbs no other connection.
#[test]
fn drop_stops_only_its_peer() {
    run(|| async {
        let (stream, peer) = registered().await;
        let (other, mut other_peer) = registered().await;
        let sender = std::thread::spawn(move || send_until_it_fails(peer));
        (&stream).read_exact(&mut vec![0; 200_000]).await.expect("the peer sends");
        drop(stream);
        let error = sender.join().expect("the peer's thread");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        other_peer.write_all(b"x").expect("the other peer writes");
        assert_eq!((&other).read(&mut [0; 8]).await.expect("read"), 1, "the other connection must continue");
    });
}

fn send_until_it_fails(mut peer: Peer) -> std::io::Error {
    let chunk = pattern(50_000);
    loop {
        if let Err(error) = peer.write_all(&chunk) {
            return error;
        }
    }
}

/// Bytes that were written before a drop are still sent.
#[test]
fn dropped_stream_sends_its_bytes() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let bytes = Arc::new(pattern(1 << 20));
        let reader = std::thread::spawn(move || read_all(peer));
        (&stream).write_all(&bytes).await.expect("write");
        drop(stream);
        assert!(reader.join().expect("the peer's thread") == *bytes, "the peer must get every byte and then the end");
    });
}

/// A stream that is registered, because a read of it had to wait.
pub(super) async fn registered() -> (Stream, Peer) {
    let (stream, peer) = pair_with_std();
    assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
    // The registration reports at once that the stream is writable, and no more.
    settle().await;
    (stream, peer)
}
