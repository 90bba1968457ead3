//! The end of a connection: ends, half-closes, resets, and what a drop does to the peer.

mod support;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;
use std::sync::Arc;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind, Result};
use kittiwake::net::{Shutdown, TcpStream};
use support::*;

/// Without it a client that says "that was my request" by an end gets no answer.
#[test]
fn closing_ends_our_writing_and_not_our_reading() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        (&stream).write_all(b"request").await.expect("write");
        (&stream).close().await.expect("close");
        let mut request = String::new();
        peer.read_to_string(&mut request).expect("the peer reads to the end");
        assert_eq!(request, "request");
        peer.write_all(b"reply").expect("the peer writes after our end");
        drop(peer);
        let mut reply = String::new();
        (&stream).read_to_string(&mut reply).await.expect("read after our own end");
        assert_eq!(reply, "reply");
    });
}

/// Without it the peer's end also stops our writing, or is reported only once.
#[test]
fn the_peers_end_leaves_us_writing() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        peer.shutdown(Shutdown::Write).expect("the peer ends its writing");
        for _ in 0..3 {
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 0, "the end is there for every read");
        }
        (&stream).write_all(b"reply").await.expect("write after the peer's end");
        drop(stream);
        assert_eq!(read_all(peer), b"reply");
    });
}

/// Without it a short read is taken to mean "nothing more for now", and no further event tells of the end.
#[test]
fn an_end_that_comes_with_the_last_bytes_is_seen() {
    run(|| async {
        let (stream, mut peer) = watched().await;
        peer.write_all(b"bytes").expect("the peer writes");
        drop(peer);
        let mut buf = [0; 64];
        stream.readable().await.expect("one event for both");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "a short read");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 0, "and the end, without another event");
    });
}

/// Without it an end that comes between the event and the read is forgotten by the read.
#[test]
fn an_end_that_comes_between_the_event_and_the_read_is_seen() {
    run(|| async {
        let (stream, mut peer) = watched().await;
        peer.write_all(b"bytes").expect("the peer writes");
        stream.readable().await.expect("the event of the bytes");
        drop(peer);
        let mut buf = [0; 64];
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "a short read");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 0, "then the end");
    });
}

/// Without it a reader that already sleeps after a short read is not told of the end.
#[test]
fn an_end_that_comes_after_the_read_wakes_the_reader() {
    run(|| async {
        let (stream, mut peer) = watched().await;
        peer.write_all(b"bytes").expect("the peer writes");
        let mut buf = [0; 64];
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "a short read");
        let reader = kittiwake::spawn(async move { (&stream).read(&mut buf).await });
        settle().await;
        assert!(!reader.is_finished(), "the connection has not ended");
        drop(peer);
        assert_eq!(reader.await.expect("the task").expect("read"), 0, "the end wakes the reader");
    });
}

/// Without it a reset leaves the reader asleep, or reads as an orderly end of a whole message.
#[test]
fn a_reset_wakes_the_reader_with_an_error() {
    run(|| async {
        let (stream, peer) = watched().await;
        let reader = kittiwake::spawn(async move {
            let result = (&stream).read(&mut [0; 8]).await;
            (stream, result)
        });
        settle().await;
        reset(peer);
        let (stream, result) = reader.await.expect("the task");
        assert_eq!(result.expect_err("no end, but a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            (&stream).read(&mut [0; 8]).await.expect("read"),
            0,
            "it is reported once, and then there is no more"
        );
        let error = (&stream).write(b"x").await.expect_err("nobody gets it");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    });
}

/// Without it a writer that waits for room waits for ever once the peer has gone.
#[test]
fn a_reset_wakes_a_parked_writer_with_an_error() {
    run(|| async {
        let (stream, peer) = watched().await;
        let writer = kittiwake::spawn(async move { (&stream).write_all(&vec![7; 64 << 20]).await });
        settle().await;
        assert!(!writer.is_finished(), "nobody reads");
        reset(peer);
        let error = writer.await.expect("the task").expect_err("the rest cannot be sent");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    });
}

/// Without it a writer takes the only report of a reset, and the reader takes half a message for a whole one.
#[test]
fn a_reset_that_a_write_met_is_no_clean_end_for_the_reader() {
    let writes: [fn(&TcpStream) -> Operation<'_>; 3] = [by_write, by_write_vectored, by_try_write];
    let reads: [fn(&TcpStream) -> Operation<'_>; 4] = [by_read, by_read_vectored, by_try_read, by_peek];
    for write in writes {
        for read in reads {
            run(move || async move {
                let (stream, peer) = watched().await;
                reset(peer);
                let error = write(&stream).await.expect_err("the peer is gone");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                let error = read(&stream).await.expect_err("a reset is no end");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                assert_eq!(read(&stream).await.expect("read"), 0, "the reset is reported to the reader once");
                let error = write(&stream).await.expect_err("the peer is still gone");
                assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
                assert_eq!(read(&stream).await.expect("read"), 0, "a broken pipe is no second reset");
            });
        }
    }
}

/// Without it the halves of a stream, in tasks of their own, hide a reset from each other.
#[test]
fn a_reset_that_one_half_met_is_told_to_the_other() {
    run(|| async {
        let (stream, peer) = watched().await;
        let (mut read, mut write) = stream.into_split();
        reset(peer);
        let writer = kittiwake::spawn(async move { write.write(b"x").await });
        let error = writer.await.expect("the task").expect_err("the peer is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let error = read.read(&mut [0; 8]).await.expect_err("a reset is no end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 0, "it is reported once");
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

/// Without it writing after one's own end is a signal, or seems to succeed.
#[test]
fn writing_after_the_end_is_a_broken_pipe() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!((&stream).write(b"x").await.expect_err("it has ended").kind(), ErrorKind::BrokenPipe);
        let slices = [IoSlice::new(b"x"), IoSlice::new(b"y")];
        assert_eq!((&stream).write_vectored(&slices).await.expect_err("it has ended").kind(), ErrorKind::BrokenPipe);
        assert_eq!(stream.try_write(b"x").expect_err("it has ended").kind(), ErrorKind::BrokenPipe);
        drop(stream);
        assert_eq!(read_all(peer), b"", "nothing was sent");
    });
}

/// Without it an orderly clean-up fails just because the connection ended first.
#[test]
fn closing_what_has_ended_is_no_error() {
    run(|| async {
        let (twice, _peer) = pair_with_std();
        (&twice).close().await.expect("close");
        (&twice).close().await.expect("close twice");
        twice.shutdown(Shutdown::Both).expect("shutdown after close");
        twice.shutdown(Shutdown::Both).expect("shutdown twice");

        let (after_reset, peer) = watched().await;
        reset(peer);
        let error = (&after_reset).read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        (&after_reset).close().await.expect("close after a reset");
        after_reset.shutdown(Shutdown::Both).expect("shutdown after a reset");

        let (unseen, peer) = watched().await;
        reset(peer);
        (&unseen).close().await.expect("close after a reset that nobody has seen yet");

        let (after_end, peer) = pair_with_std();
        drop(peer);
        assert_eq!((&after_end).read(&mut [0; 8]).await.expect("read"), 0);
        (&after_end).close().await.expect("close after the peer's end");
        (&after_end).close().await.expect("close twice after the peer's end");
        after_end.shutdown(Shutdown::Both).expect("shutdown after the peer's end");
    });
}

/// Without it the end of our own reading throws away what has come, or leaves a reader asleep.
#[test]
fn shutting_down_reading_gives_what_is_there_and_then_an_end() {
    run(|| async {
        let (stream, mut peer) = watched().await;
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

/// Without it a task cannot stop another one that reads.
#[test]
fn shutting_down_reading_wakes_a_reader() {
    run(|| async {
        let (stream, _peer) = watched().await;
        let stream = Arc::new(stream);
        let reader = kittiwake::spawn({
            let stream = stream.clone();
            async move { (&*stream).read(&mut [0; 8]).await }
        });
        settle().await;
        stream.shutdown(Shutdown::Read).expect("shutdown");
        assert_eq!(reader.await.expect("the task").expect("read"), 0, "a reader is woken, and reads the end");
    });
}

/// Without it a task cannot stop another one that waits to write.
#[test]
fn shutting_down_writing_wakes_a_writer() {
    run(|| async {
        let (stream, _peer) = watched().await;
        let stream = Arc::new(stream);
        let writer = kittiwake::spawn({
            let stream = stream.clone();
            async move { (&*stream).write_all(&vec![7; 64 << 20]).await }
        });
        settle().await;
        assert!(!writer.is_finished(), "nobody reads");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let error = writer.await.expect("the task").expect_err("it may write no more");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    });
}

/// The documented behaviour that `drain` is for: if it changes, the documentation has to.
#[test]
fn dropping_a_stream_with_unread_input_resets_the_peer() {
    run(|| async {
        let (stream, mut peer) = watched().await;
        peer.write_all(b"never read").expect("the peer writes");
        stream.readable().await.expect("the bytes are there");
        drop(stream);
        let error = peer.read(&mut [0; 8]).expect_err("no end, but a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// Without it the error reply of a server that stops reading is lost with the reset.
#[test]
fn a_drained_stream_ends_without_a_reset() {
    run(|| async {
        let (stream, mut peer) = watched().await;
        peer.write_all(&pattern(100_000)).expect("the peer writes");
        let peer = std::thread::spawn(move || {
            let mut reply = Vec::new();
            peer.read_to_end(&mut reply).map(|_| reply)
        });
        (&stream).write_all(b"too long").await.expect("the reply");
        assert!(stream.drain(1_000_000).await.expect("drain"), "the peer closes its side when it has our end");
        drop(stream);
        assert_eq!(peer.join().expect("the peer's thread").expect("no reset"), b"too long");
    });
}

/// Without it a peer that sends for ever keeps a server draining for ever, or loses more than was said.
#[test]
fn draining_stops_at_its_limit() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let bytes = pattern(10_000);
        peer.write_all(&bytes).expect("the peer writes");
        assert!(!stream.drain(0).await.expect("drain"), "the peer has not closed its side");
        assert!(!stream.drain(6_000).await.expect("drain"), "the peer has not closed its side");
        let mut rest = vec![0; 4_000];
        (&stream).read_exact(&mut rest).await.expect("read");
        assert!(rest == bytes[6_000..], "a drain takes as many bytes as its limit, and no more");
        let mut reply = Vec::new();
        peer.read_to_end(&mut reply).expect("the peer reads");
        assert!(reply.is_empty(), "a drain ends our writing");
        drop(peer);
        assert!(stream.drain(1).await.expect("drain"), "the peer has closed its side");
    });
}

/// Without it a server that gives up on a flooding client is taken along, or the client goes on for ever.
#[test]
fn a_stream_dropped_while_its_peer_sends_stops_the_peer_and_nobody_else() {
    run(|| async {
        let (stream, peer) = watched().await;
        let (other, mut other_peer) = watched().await;
        let sender = std::thread::spawn(move || send_until_it_fails(peer));
        (&stream).read_exact(&mut vec![0; 200_000]).await.expect("the peer sends");
        drop(stream);
        let error = sender.join().expect("the peer's thread");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        other_peer.write_all(b"x").expect("the other peer writes");
        assert_eq!((&other).read(&mut [0; 8]).await.expect("read"), 1, "another connection goes on");
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

/// Without it what was written just before the drop is lost.
#[test]
fn what_was_written_before_a_drop_is_still_sent() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let bytes = Arc::new(pattern(1 << 20));
        let reader = std::thread::spawn(move || read_all(peer));
        (&stream).write_all(&bytes).await.expect("write");
        drop(stream);
        assert!(reader.join().expect("the peer's thread") == *bytes, "the peer gets every byte, then the end");
    });
}

/// A stream that the reactor watches already, because a read of it has had to wait.
async fn watched() -> (TcpStream, std::net::TcpStream) {
    let (stream, peer) = pair_with_std();
    assert!(poll_once((&stream).read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
    // Adding it to the reactor reports at once that it can be written; only that.
    settle().await;
    (stream, peer)
}
