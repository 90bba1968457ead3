//! Resets: each end of a connection learns of them, once.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind, Result};
use kittiwake::net::Shutdown;

use super::ends::registered;
use super::*;

/// A reset wakes the reader with an error. The reader must not take it for an orderly end.
#[test]
fn reset_wakes_reader_with_error() {
    run(|| async {
        let (stream, peer) = resettable().await;
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
        let (stream, peer) = resettable().await;
        let writer = kittiwake::spawn(async move { (&stream).write_all(&vec![7; 64 << 20]).await });
        settle().await;
        assert!(!writer.is_finished(), "the peer does not read");
        reset(peer);
        let error = writer.await.expect("the task").expect_err("the rest cannot be sent");
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    });
}

/// A reset that a write reports is also reported to the reader, which would otherwise take half a message for a
/// whole one. On a Unix stream the write reports that the peer is gone, and leaves the reset to the reader.
#[test]
fn reader_sees_the_writers_reset() {
    let writes: [fn(&Stream) -> Operation<'_>; 3] = [by_write, by_write_vectored, by_try_write];
    let reads: [fn(&Stream) -> Operation<'_>; 3] = [by_read, by_read_vectored, by_try_read];
    for write in writes {
        for read in reads {
            run(move || async move {
                let (stream, peer) = resettable().await;
                reset(peer);
                let error = write(&stream).await.expect_err("the peer is gone");
                assert_eq!(error.kind(), RESET_AT_WRITE, "{error}");
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
            let (stream, peer) = resettable().await;
            reset(peer);
            if is_written {
                let error = by_write(&stream).await.expect_err("the peer is gone");
                assert_eq!(error.kind(), RESET_AT_WRITE, "{error}");
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
        let (stream, peer) = resettable().await;
        let (mut read, mut write) = stream.into_split();
        reset(peer);
        let writer = kittiwake::spawn(async move { write.write(b"x").await });
        let error = writer.await.expect("the task").expect_err("the peer is gone");
        assert_eq!(error.kind(), RESET_AT_WRITE, "{error}");
        let error = read.read(&mut [0; 8]).await.expect_err("the read reports a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 0, "the reset must be reported once");
    });
}

/// Closing a stream that was reset is no error.
#[test]
fn closing_reset_stream_is_no_error() {
    run(|| async {
        let (after_reset, peer) = resettable().await;
        reset(peer);
        let error = (&after_reset).read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        (&after_reset).close().await.expect("a close after a reset succeeds");
        after_reset.shutdown(Shutdown::Both).expect("a shutdown after a reset succeeds");

        let (unseen, peer) = resettable().await;
        reset(peer);
        (&unseen).close().await.expect("a close after a reset that no operation has reported succeeds");
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

type Operation<'a> = Pin<Box<dyn Future<Output = Result<usize>> + 'a>>;

fn by_write(mut stream: &Stream) -> Operation<'_> {
    Box::pin(async move { stream.write(b"x").await })
}

fn by_write_vectored(mut stream: &Stream) -> Operation<'_> {
    Box::pin(async move { stream.write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).await })
}

fn by_try_write(stream: &Stream) -> Operation<'_> {
    Box::pin(async { stream.try_write(b"x") })
}

fn by_read(mut stream: &Stream) -> Operation<'_> {
    Box::pin(async move { stream.read(&mut [0; 8]).await })
}

fn by_read_vectored(mut stream: &Stream) -> Operation<'_> {
    Box::pin(async move { stream.read_vectored(&mut [IoSliceMut::new(&mut [0; 8])]).await })
}

fn by_try_read(stream: &Stream) -> Operation<'_> {
    Box::pin(async { stream.try_read(&mut [0; 8]) })
}

fn by_peek(stream: &Stream) -> Operation<'_> {
    Box::pin(async { stream.peek(&mut [0; 8]).await })
}

/// A registered stream that [`reset`] can reset.
async fn resettable() -> (Stream, Peer) {
    let (stream, peer) = registered().await;
    allow_reset(&stream);
    (stream, peer)
}
