//! The end of a connection: end of stream, half-close and reset, and the effect of a drop on the peer.

mod support;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;
use std::sync::Arc;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind, Result};
use kittiwake::net::{Shutdown, TcpStream};
use support::*;

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

/// A reset wakes the reader with an error. The reader must not take it for an orderly end.
#[test]
fn reset_wakes_reader_with_error() {
    run(|| async {
        let (stream, peer) = registered().await;
        let reader = kittiwake::spawn(async move {
            let result = (&stream).read(&mut [0; 8]).await;
            (stream, result)
        });
        settle().await;
        reset(peer);
        let (stream, result) = reader.await.expect("the task");
        assert_eq!(result.expect_err("the read reports a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            (&stream).read(&mut [0; 8]).await.expect("read"),
            0,
            "a read must report the reset once, and then the end"
        );
        let error = (&stream).write(b"x").await.expect_err("the peer is gone");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    });
}

/// A reset wakes a writer that waits for room.
#[test]
fn reset_wakes_writer_with_error() {
    run(|| async {
        let (stream, peer) = registered().await;
        let writer = kittiwake::spawn(async move { (&stream).write_all(&vec![7; 64 << 20]).await });
        settle().await;
        assert!(!writer.is_finished(), "the peer does not read");
        reset(peer);
        let error = writer.await.expect("the task").expect_err("the rest cannot be sent");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    });
}

/// A reset that a write reports is also reported to the reader, which would otherwise take half a message for a
/// whole one.
#[test]
fn reader_sees_the_writers_reset() {
    let writes: [fn(&TcpStream) -> Operation<'_>; 3] = [by_write, by_write_vectored, by_try_write];
    let reads: [fn(&TcpStream) -> Operation<'_>; 3] = [by_read, by_read_vectored, by_try_read];
    for write in writes {
        for read in reads {
            run(move || async move {
                let (stream, peer) = registered().await;
                reset(peer);
                let error = write(&stream).await.expect_err("the peer is gone");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                let error = read(&stream).await.expect_err("the read reports a reset");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                assert_eq!(read(&stream).await.expect("read"), 0, "the reset must be reported to the reader once");
                let error = write(&stream).await.expect_err("the peer is still gone");
                assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
                assert_eq!(read(&stream).await.expect("read"), 0, "a broken pipe must not count as a second reset");
            });
        }
    }
}

/// A peek takes nothing, so a reset that a peek reports is also reported to the next peek and to the reader, whether
/// the peek or a write has met it.
#[test]
fn peek_leaves_the_reset() {
    for is_written in [false, true] {
        run(move || async move {
            let (stream, peer) = registered().await;
            reset(peer);
            if is_written {
                let error = by_write(&stream).await.expect_err("the peer is gone");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            }
            for read in [by_peek, by_peek, by_read] {
                let error = read(&stream).await.expect_err("the reset is still there");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            }
            for read in [by_peek, by_read] {
                assert_eq!(read(&stream).await.expect("read"), 0, "the reset must be reported to the reader once");
            }
        });
    }
}

/// A reset that one half of a stream reports is also reported to the other half.
#[test]
fn both_halves_see_a_reset() {
    run(|| async {
        let (stream, peer) = registered().await;
        let (mut read, mut write) = stream.into_split();
        reset(peer);
        let writer = kittiwake::spawn(async move { write.write(b"x").await });
        let error = writer.await.expect("the task").expect_err("the peer is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let error = read.read(&mut [0; 8]).await.expect_err("the read reports a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 0, "the reset must be reported once");
    });
}

type Operation<'a> = Pin<Box<dyn Future<Output = Result<usize>> + 'a>>;

fn by_write(mut stream: &TcpStream) -> Operation<'_> {
    Box::pin(async move { stream.write(b"x").await })
}

fn by_write_vectored(mut stream: &TcpStream) -> Operation<'_> {
    Box::pin(async move { stream.write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).await })
}

fn by_try_write(stream: &TcpStream) -> Operation<'_> {
    Box::pin(async { stream.try_write(b"x") })
}

fn by_read(mut stream: &TcpStream) -> Operation<'_> {
    Box::pin(async move { stream.read(&mut [0; 8]).await })
}

fn by_read_vectored(mut stream: &TcpStream) -> Operation<'_> {
    Box::pin(async move { stream.read_vectored(&mut [IoSliceMut::new(&mut [0; 8])]).await })
}

fn by_try_read(stream: &TcpStream) -> Operation<'_> {
    Box::pin(async { stream.try_read(&mut [0; 8]) })
}

fn by_peek(stream: &TcpStream) -> Operation<'_> {
    Box::pin(async { stream.peek(&mut [0; 8]).await })
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

        let (after_reset, peer) = registered().await;
        reset(peer);
        let error = (&after_reset).read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        (&after_reset).close().await.expect("a close after a reset succeeds");
        after_reset.shutdown(Shutdown::Both).expect("a shutdown after a reset succeeds");

        let (unseen, peer) = registered().await;
        reset(peer);
        (&unseen).close().await.expect("a close after a reset that no operation has reported succeeds");

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

/// Dropping a stream with unread input resets the peer. The documentation of `drain` says so.
#[test]
fn drop_with_unread_input_resets_peer() {
    run(|| async {
        let (stream, mut peer) = registered().await;
        peer.write_all(b"never read").expect("the peer writes");
        stream.readable().await.expect("the bytes are there");
        drop(stream);
        let error = peer.read(&mut [0; 8]).expect_err("the read reports a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
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

fn send_until_it_fails(mut peer: std::net::TcpStream) -> std::io::Error {
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
async fn registered() -> (TcpStream, std::net::TcpStream) {
    let (stream, peer) = pair_with_std();
    assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
    // The registration reports at once that the stream is writable, and no more.
    settle().await;
    (stream, peer)
}
