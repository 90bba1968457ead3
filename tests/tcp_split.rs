//! Halves of a stream: borrowed and owned, dropped in every order, and put together again.

mod support;

use std::io::{Read, Write};

use futures_lite::future::{poll_once, try_zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::TcpStream;
use support::*;

/// Without it the two halves get in each other's way.
#[test]
fn borrowed_halves_read_and_write_at_once() {
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
        assert!(received == bytes, "all that was sent comes back");
        echo.join().expect("the peer's thread");
    });
}

/// Without it borrowing a stream's halves for a moment ends the connection.
#[test]
fn dropping_borrowed_halves_does_nothing() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        {
            let (_read, _write) = stream.split();
        }
        assert_still_open(&peer);
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1, "the stream still reads");
        (&stream).write_all(b"y").await.expect("write");
        drop(stream);
        assert_eq!(read_all(peer), b"y", "the stream still wrote");
    });
}

/// Without it the peer never learns that no more will come, as long as somebody still reads.
#[test]
fn dropping_the_write_half_ends_the_writing_and_not_the_reading() {
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

/// Without it a connection ends because nobody reads it any more.
#[test]
fn dropping_the_read_half_does_nothing_to_the_connection() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let (read, mut write) = stream.into_split();
        drop(read);
        assert_still_open(&peer);
        write.write_all(b"all").await.expect("the write half still writes");
        drop(write);
        assert_eq!(read_all(peer), b"all", "the end comes with the drop of the write half");
    });
}

/// Without it the drop of the second half leaves the connection, or its place in the reactor, behind.
#[test]
fn dropping_both_halves_closes_the_connection_in_either_order() {
    run(|| async {
        for write_first in [true, false] {
            let (stream, mut peer) = pair_with_std();
            let (mut read, write) = stream.into_split();
            assert!(poll_once(read.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            assert_eq!(sources(), 1, "a half that waits is watched");
            if write_first {
                drop(write);
                drop(read);
            } else {
                drop(read);
                drop(write);
            }
            assert_eq!(sources(), 0, "a stream without halves is not watched");
            assert_eq!(peer.read(&mut [0; 8]).expect("the peer reads"), 0, "the peer sees the end");
            assert_reset_by_writing(peer);
        }
    });
}

/// Without it there is no way to stop writing and leave the connection's end to somebody else.
#[test]
fn a_forgotten_write_half_ends_nothing() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let (mut read, write) = stream.into_split();
        write.forget();
        assert_still_open(&peer);
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 1, "the read half still reads");
        drop(read);
        assert_eq!(read_all(peer), b"", "the connection ends with the last half");
    });
}

/// Without it a stream that is put together again has lost its writing half, or its reading half.
#[test]
fn halves_of_one_stream_reunite_to_a_whole_one() {
    run(|| async {
        for by_read_half in [true, false] {
            let (stream, mut peer) = pair_with_std();
            let (mut read, write) = stream.into_split();
            assert!(poll_once(read.read(&mut [0; 8])).await.is_none(), "there is nothing to read yet");
            let whole = if by_read_half { read.reunite(write) } else { write.reunite(read) };
            let stream: TcpStream = whole.expect("they are of one stream");
            assert_still_open(&peer);
            peer.write_all(b"x").expect("the peer writes");
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1, "the stream reads");
            (&stream).write_all(b"y").await.expect("write");
            drop(stream);
            assert_eq!(read_all(peer), b"y", "the stream wrote, and ended with its drop");
        }
    });
}

/// Without it a mix-up of two connections costs both of them.
#[test]
fn halves_of_two_streams_are_given_back_and_work() {
    run(|| async {
        let (one, mut peer_of_one) = pair_with_std();
        let (two, peer_of_two) = pair_with_std();
        let (read, write_of_one) = one.into_split();
        let (read_of_two, write) = two.into_split();
        let error = read.reunite(write).expect_err("the halves are of two streams");
        assert!(error.to_string().contains("different streams"), "{error}");
        let error = error.1.reunite(error.0).expect_err("they still are");
        let (mut read, mut write) = (error.0, error.1);
        assert_still_open(&peer_of_two);
        peer_of_one.write_all(b"x").expect("the peer writes");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 1, "the read half reads");
        write.write_all(b"y").await.expect("the write half writes");
        drop((read_of_two, write));
        assert_eq!(read_all(peer_of_two), b"y", "the write half ends its own stream");
        assert_still_open(&peer_of_one);
        drop((read, write_of_one));
        assert_eq!(read_all(peer_of_one), b"", "the other one has ended too");
    });
}

/// Without it a half can do less than the documentation says, or does it to something else.
#[test]
fn halves_look_try_and_wait_like_the_stream() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        let address = peer.local_addr().expect("local_addr");
        {
            let (read, write) = stream.split();
            assert_eq!(read.peer_addr().expect("peer_addr"), address);
            assert_eq!(write.local_addr().expect("local_addr"), peer.peer_addr().expect("peer_addr"));
            write.writable().await.expect("writable");
            assert_eq!(write.try_write(b"a").expect("try_write"), 1);
            assert_eq!(read.try_read(&mut [0; 8]).expect_err("nothing is there").kind(), ErrorKind::WouldBlock);
        }
        let (read, write) = stream.into_split();
        write.writable().await.expect("writable");
        assert_eq!(write.try_write(b"b").expect("try_write"), 1);
        peer.write_all(b"xyz").expect("the peer writes");
        read.readable().await.expect("readable");
        assert_eq!(read.peek(&mut [0; 8]).await.expect("peek"), 3);
        assert_eq!(read.try_read(&mut [0; 8]).expect("try_read"), 3);
        assert_eq!(write.as_ref().peer_addr().expect("peer_addr"), address, "the half gives its stream");
        drop((read, write));
        assert_eq!(read_all(peer), b"ab");
    });
}

/// Nothing has come, and no end either.
#[track_caller]
fn assert_still_open(mut peer: &std::net::TcpStream) {
    peer.set_nonblocking(true).expect("non-blocking");
    let read = peer.read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::WouldBlock), "the peer must see neither bytes nor an end");
    peer.set_nonblocking(false).expect("blocking");
}

/// The other end's descriptor is closed: what we send is answered by a reset.
#[track_caller]
fn assert_reset_by_writing(mut peer: std::net::TcpStream) {
    let _ = peer.write(b"x");
    let error = (0..).find_map(|_| peer.write(b"x").err()).expect("a write fails at last");
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}
