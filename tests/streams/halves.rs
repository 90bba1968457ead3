//! Halves of a stream: borrowed and owned, dropped in every order, and reunited.

use std::io::{Read, Write};

use futures_lite::future::{poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};

use super::*;

/// Borrowed halves can read and write at the same time.
#[test]
fn borrowed_halves_work_concurrently() {
    run(|| async {
        let (mut stream, peer) = pair_with_std();
        let echo = std::thread::spawn(move || std::io::copy(&mut &peer, &mut &peer).expect("the peer echoes"));
        let bytes = pattern(2 << 20);
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&bytes).await?;
            write.close().await
        };
        let mut received = Vec::new();
        try_zip(send, read.read_to_end(&mut received)).await.expect("a transfer");
        assert!(received == bytes, "every byte must come back");
        echo.join().expect("the peer's thread");
    });
}

/// Dropping borrowed halves does not change the connection.
#[test]
fn dropped_borrowed_halves_change_nothing() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        {
            let (_read, _write) = stream.split();
        }
        assert_still_open(&peer);
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1, "the stream must still read");
        (&stream).write_all(b"y").await.expect("write");
        drop(stream);
        assert_eq!(read_all(peer), b"y", "the stream must still write");
    });
}

/// Dropping the owned write half ends the writing side and leaves the reading side open.
#[test]
fn dropped_write_half_ends_writing() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let (mut read, mut write) = stream.into_split();
        write.write_all(b"all").await.expect("write");
        drop(write);
        let mut all = Vec::new();
        peer.read_to_end(&mut all).expect("the peer reads to the end");
        assert_eq!(all, b"all");
        peer.write_all(b"reply").expect("the peer still writes");
        drop(peer);
        let mut reply = Vec::new();
        read.read_to_end(&mut reply).await.expect("the read half still reads");
        assert_eq!(reply, b"reply");
    });
}

/// Dropping the owned read half does not change the connection.
#[test]
fn dropped_read_half_changes_nothing() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let (read, mut write) = stream.into_split();
        drop(read);
        assert_still_open(&peer);
        write.write_all(b"all").await.expect("the write half still writes");
        drop(write);
        assert_eq!(read_all(peer), b"all", "the drop of the write half must end the connection");
    });
}

/// Dropping both halves closes and deregisters the socket, in either order.
#[test]
fn dropping_both_halves_closes() {
    run(|| async {
        for write_first in [true, false] {
            let (stream, mut peer) = pair_with_std();
            let (mut read, write) = stream.into_split();
            assert!(poll_once(read.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            assert_eq!(sources(), 1, "a waiting half must be registered");
            if write_first {
                drop(write);
                drop(read);
            } else {
                drop(read);
                drop(write);
            }
            assert_eq!(sources(), 0, "a stream without halves must be deregistered");
            assert_eq!(peer.read(&mut [0; 8]).expect("the peer reads"), 0, "the peer must see the end");
            assert_reset_by_writing(peer);
        }
    });
}

/// A write half that is forgotten does not end the writing side.
#[test]
fn forgotten_write_half_ends_nothing() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let (mut read, write) = stream.into_split();
        write.forget();
        assert_still_open(&peer);
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 1, "the read half must still read");
        drop(read);
        assert_eq!(read_all(peer), b"", "the drop of the last half must end the connection");
    });
}

/// The halves of one stream reunite to a stream that reads and writes.
#[test]
fn halves_of_one_stream_reunite() {
    run(|| async {
        for by_read_half in [true, false] {
            let (stream, mut peer) = pair_with_std();
            let (mut read, write) = stream.into_split();
            assert!(poll_once(read.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            let whole = if by_read_half { read.reunite(write) } else { write.reunite(read) };
            let stream: Stream = whole.expect("the halves are of one stream");
            assert_still_open(&peer);
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1, "the stream must read");
            (&stream).write_all(b"y").await.expect("write");
            drop(stream);
            assert_eq!(read_all(peer), b"y", "the stream must write, and end with its drop");
        }
    });
}

/// `reunite` returns the halves of two streams unchanged, and they still work.
#[test]
fn foreign_halves_are_returned() {
    run(|| async {
        let (one, mut peer_of_one) = pair_with_std();
        let (two, peer_of_two) = pair_with_std();
        let (read, write_of_one) = one.into_split();
        let (read_of_two, write) = two.into_split();
        let error = read.reunite(write).expect_err("the halves are of two streams");
        assert!(error.to_string().contains("different streams"), "{error}");
        let error = error.1.reunite(error.0).expect_err("the halves are still of two streams");
        let (mut read, mut write) = (error.0, error.1);
        assert_still_open(&peer_of_two);
        peer_of_one.write_all(b"x").expect("the peer writes");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 1, "the read half must read");
        write.write_all(b"y").await.expect("the write half still writes");
        drop((read_of_two, write));
        assert_eq!(read_all(peer_of_two), b"y", "the write half must end its own stream");
        assert_still_open(&peer_of_one);
        drop((read, write_of_one));
        assert_eq!(read_all(peer_of_one), b"", "the other stream must have ended too");
    });
}

/// The halves have the `try_` methods and the readiness of their stream.
#[test]
fn halves_work_like_the_stream() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        {
            let (read, write) = stream.split();
            write.writable().await.expect("writable");
            assert_eq!(write.try_write(b"a").expect("try_write"), 1);
            assert_eq!(read.try_read(&mut [0; 8]).expect_err("no bytes have arrived").kind(), ErrorKind::WouldBlock);
        }
        let (read, write) = stream.into_split();
        write.writable().await.expect("writable");
        assert_eq!(write.try_write(b"b").expect("try_write"), 1);
        peer.write_all(b"xyz").expect("the peer writes");
        read.readable().await.expect("readable");
        assert_eq!(read.peek(&mut [0; 8]).await.expect("peek"), 3);
        assert_eq!(read.try_read(&mut [0; 8]).expect("try_read"), 3);
        drop((read, write));
        assert_eq!(read_all(peer), b"ab");
    });
}

/// Fails if bytes or the end have arrived.
#[track_caller]
fn assert_still_open(mut peer: &Peer) {
    peer.set_nonblocking(true).expect("non-blocking");
    let read = peer.read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::WouldBlock), "the peer must see neither bytes nor an end");
    peer.set_nonblocking(false).expect("blocking");
}

/// Fails unless the other end's descriptor is closed. A write then fails, on TCP once a reset has answered an earlier
/// write.
#[track_caller]
fn assert_reset_by_writing(mut peer: Peer) {
    let _ = peer.write(b"x");
    let error = (0..).find_map(|_| peer.write(b"x").err()).expect("a write fails in the end");
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}
