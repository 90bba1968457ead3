//! Transfers: reads and writes of every size and shape, and concurrent users of one stream.

use std::future::pending;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_lite::future::{poll_once, try_zip, zip};
use kittiwake::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Error, ErrorKind, Result};
use kittiwake::net::Shutdown;
use kittiwake::task::yield_now;
use kittiwake::time::sleep;

use super::*;

const MIB: usize = 1 << 20;

/// A read into an empty buffer is ready at once, and is not the end of the stream.
#[test]
fn empty_read_is_ready_at_once() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        for waited in [false, true] {
            if waited {
                assert!(poll_once((&stream).read(&mut [0])).await.is_none(), "there is nothing to read yet");
            }
            assert_eq!(at_once((&stream).read(&mut [])).await, 0);
            assert_eq!(at_once((&stream).read_vectored(&mut [])).await, 0);
            assert_eq!(at_once((&stream).read_vectored(&mut [IoSliceMut::new(&mut [])])).await, 0);
            assert_eq!(at_once(stream.peek(&mut [])).await, 0);
            assert_eq!(stream.try_read(&mut []).expect("a read into nothing"), 0);
        }
        peer.write_all(b"x").expect("the peer writes");
        let mut byte = [0];
        (&stream).read_exact(&mut byte).await.expect("the stream has not ended");
        assert_eq!(&byte, b"x", "an empty read must take no byte");
    });
}

/// A write of an empty buffer is ready at once.
#[test]
fn empty_write_is_ready_at_once() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        assert_writes_nothing_at_once(&stream).await;
        (&stream).write_all(b"x").await.expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_writes_nothing_at_once(&stream).await;
        drop(stream);
        assert_eq!(read_all(peer), b"x", "empty writes must send nothing");

        let (full, _peer) = pair_with_std();
        while poll_write(Waker::noop(), &full, &[7; 65_536]).is_ready() {}
        assert_writes_nothing_at_once(&full).await;
    });
}

async fn assert_writes_nothing_at_once(mut stream: &Stream) {
    assert_eq!(at_once(stream.write(&[])).await, 0);
    assert_eq!(at_once(stream.write_vectored(&[])).await, 0);
    assert_eq!(at_once(stream.write_vectored(&[IoSlice::new(&[]), IoSlice::new(&[])])).await, 0);
    assert_eq!(stream.try_write(&[]).expect("a write of nothing"), 0);
}

/// Sixty-four mebibytes in each direction at once arrive unchanged.
#[test]
fn large_transfers_arrive_unchanged() {
    run(|| async {
        let (client, server) = pair().await;
        let bytes = Arc::new(pattern(64 * MIB));
        let far = kittiwake::spawn({
            let bytes = bytes.clone();
            async move { both_ways(&server, &bytes, 8_192).await }
        });
        both_ways(&client, &bytes, 65_536).await.expect("this end transfers every byte");
        far.await.expect("the task of the other end").expect("the other end transfers every byte");
    });
}

/// Sends `bytes` and checks that the same bytes arrive meanwhile. Reads `step` bytes at a time and yields after
/// each read.
async fn both_ways(stream: &Stream, bytes: &[u8], step: usize) -> Result<()> {
    let send = async {
        let mut stream = stream;
        stream.write_all(bytes).await?;
        stream.close().await
    };
    let receive = async {
        let (mut stream, mut at, mut buf) = (stream, 0, vec![0; step]);
        loop {
            let read = stream.read(&mut buf).await?;
            if read == 0 {
                assert_eq!(at, bytes.len(), "the stream must not end early");
                return Ok(());
            }
            assert!(bytes[at..].starts_with(&buf[..read]), "the bytes after {at} must equal the sent ones");
            at += read;
            yield_now().await;
        }
    };
    try_zip(send, receive).await.map(drop)
}

/// Single bytes arrive in order.
#[test]
fn single_bytes_arrive_in_order() {
    run(|| async {
        let (client, server) = pair().await;
        send_at_once(&client);
        let bytes = pattern(20_000);
        let send = async {
            for byte in &bytes {
                (&client).write_all(&[*byte]).await?;
            }
            (&client).close().await
        };
        let receive = async {
            let (mut received, mut byte) = (Vec::new(), [0]);
            while (&server).read(&mut byte).await? == 1 {
                received.push(byte[0]);
            }
            Ok(received)
        };
        let ((), received) = try_zip(send, receive).await.expect("a transfer");
        assert!(received == bytes, "single bytes must arrive unchanged");
    });
}

/// A vectored write sends its slices in order, and a vectored read fills them in order.
#[test]
fn slices_are_transferred_in_order() {
    run(|| async {
        let (client, server) = pair().await;
        let slices = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two "), IoSlice::new(b"three")];
        assert_eq!((&client).write_vectored(&slices).await.expect("write"), 13, "a short list must be written whole");
        let (mut head, mut tail) = ([0; 5], [0; 20]);
        let mut into = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut []), IoSliceMut::new(&mut tail)];
        let read = (&server).read_vectored(&mut into).await.expect("read");
        assert_eq!((read, &head, &tail[..8]), (13, b"one t", &b"wo three"[..]), "the slices must be filled in order");
    });
}

/// Streams and their halves transfer in the same way.
#[test]
fn halves_transfer_like_streams() {
    run(|| async {
        let (mut client, mut server) = pair().await;
        assert_transfers(&mut client, &mut server).await;
        let (mut read, _write) = server.split();
        let (_read, mut write) = client.split();
        assert_transfers(&mut write, &mut read).await;
        let (mut read, _write) = server.into_split();
        let (_read, mut write) = client.into_split();
        assert_transfers(&mut write, &mut read).await;
        write.close().await.expect("close");
        assert_eq!(read.read(&mut [0; 8]).await.expect("read"), 0, "the read must return the end");
    });
}

async fn assert_transfers(write: &mut (impl AsyncWrite + Unpin), read: &mut (impl AsyncRead + Unpin)) {
    let slices = [IoSlice::new(b"one "), IoSlice::new(b"two "), IoSlice::new(b"three")];
    assert_eq!(write.write_vectored(&slices).await.expect("write"), 13, "a short list must be written whole");
    write.write_all(b"!").await.expect("write");
    write.flush().await.expect("flush");
    let (mut head, mut tail) = ([0; 5], [0; 8]);
    let mut into = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
    assert_eq!(read.read_vectored(&mut into).await.expect("read"), 13, "a short list must be filled whole");
    assert_eq!((&head, &tail), (b"one t", b"wo three"));
    let mut last = [0; 8];
    assert_eq!(read.read(&mut last).await.expect("read"), 1, "the read must return the last byte");
    assert_eq!(last[0], b'!');
}

/// A list of more slices than the kernel takes at once is transferred whole.
#[test]
fn long_slice_lists_are_transferred() {
    run(|| async {
        let (client, server) = pair().await;
        client.writable().await.expect("the reactor has reported the socket writable");
        let bytes = pattern(1500 * 40);
        let send = async {
            write_all_slices(&client, &bytes, 40).await?;
            (&client).close().await
        };
        let receive = async {
            let mut received = Vec::new();
            while read_slices(&server, 1500, 7, &mut received).await? > 0 {}
            Ok(received)
        };
        let ((), received) = try_zip(send, receive).await.expect("a transfer");
        assert!(received == bytes, "long lists of slices must arrive unchanged");
    });
}

/// A read that fills only a part of a long list leaves the rest of the bytes readable. The next read must not wait.
#[test]
fn partial_vectored_read_keeps_readiness() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0])).await.is_none(), "there is nothing to read yet");
        let bytes = pattern(1500);
        peer.write_all(&bytes).expect("the peer writes");
        let mut received = Vec::new();
        while received.len() < bytes.len() {
            let read = read_slices(&stream, 1500, 1, &mut received).await.expect("read");
            assert!(read > 0, "the stream must not end");
        }
        assert!(received == bytes, "every byte must be in its place");
    });
}

/// Empty slices before the first full one are not the end of the stream.
#[test]
fn leading_empty_slices_are_no_end() {
    run(|| async {
        let (client, server) = pair().await;
        let mut slices = vec![IoSlice::new(b""); 1200];
        slices.push(IoSlice::new(b"last"));
        assert_eq!((&client).write_vectored(&slices).await.expect("write"), 4, "the write must send four bytes");
        let mut last = [0; 4];
        let mut into: Vec<_> = (0..1200).map(|_| IoSliceMut::new(&mut [])).collect();
        into.push(IoSliceMut::new(&mut last));
        assert_eq!((&server).read_vectored(&mut into).await.expect("read"), 4, "the read must return four bytes");
        assert_eq!(&last, b"last");
    });
}

async fn write_all_slices(mut stream: &Stream, bytes: &[u8], length: usize) -> Result<()> {
    let mut slices: Vec<_> = bytes.chunks(length).map(IoSlice::new).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = stream.write_vectored(left).await?;
        assert!(written > 0, "a write of some bytes must write at least one");
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

async fn read_slices(mut stream: &Stream, count: usize, length: usize, to: &mut Vec<u8>) -> Result<usize> {
    let mut buf = vec![0; count * length];
    let mut slices: Vec<_> = buf.chunks_mut(length).map(IoSliceMut::new).collect();
    let read = stream.read_vectored(&mut slices).await?;
    to.extend_from_slice(&buf[..read]);
    Ok(read)
}

/// A large write to a peer that does not read waits, is woken once, and continues when there is room.
#[test]
fn large_write_waits_for_room() {
    run(|| async {
        let (client, server) = pair().await;
        let bytes = Arc::new(pattern(64 * MIB));
        let first = (&client).write(&bytes).await.expect("write");
        assert!(first > 0 && first < bytes.len(), "the first write took {first} bytes, which must be a part of them");
        let (waker, wakes) = counting_waker();
        let mut sent = first;
        while let Poll::Ready(written) = poll_write(&waker, &client, &bytes[sent..]) {
            sent += written.expect("write");
        }
        assert!(sent < bytes.len(), "the kernel must not hold all bytes");
        settle().await;
        let writer = kittiwake::spawn({
            let bytes = bytes.clone();
            async move {
                (&client).write_all(&bytes[sent..]).await?;
                (&client).close().await
            }
        });
        let (mut received, mut buf) = (Vec::with_capacity(bytes.len()), vec![0; 65_536]);
        while let read @ 1.. = (&server).read(&mut buf).await.expect("read") {
            received.extend_from_slice(&buf[..read]);
        }
        writer.await.expect("the writer's task").expect("the writer continues");
        assert!(received == *bytes, "every byte must arrive");
        assert!(wakes.get() <= 1, "a waiting write was woken {} times", wakes.get());
    });
}

/// One task may read while another writes the same stream.
#[test]
fn reader_and_writer_share_a_stream() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let echo = std::thread::spawn(move || echo_blocking(peer));
        let (stream, bytes) = (Arc::new(stream), Arc::new(pattern(8 * MIB)));
        let writer = kittiwake::spawn({
            let (stream, bytes) = (stream.clone(), bytes.clone());
            async move {
                (&*stream).write_all(&bytes).await?;
                (&*stream).close().await
            }
        });
        let reader = kittiwake::spawn(async move {
            let mut received = Vec::new();
            (&*stream).read_to_end(&mut received).await.map(|_| received)
        });
        let (wrote, read) = zip(writer, reader).await;
        wrote.expect("the writer's task").expect("write");
        assert!(read.expect("the reader's task").expect("read") == *bytes, "every byte must come back");
        echo.join().expect("the peer's thread");
    });
}

fn echo_blocking(peer: Peer) {
    std::io::copy(&mut &peer, &mut &peer).expect("the peer echoes to the end");
}

/// A peek takes no byte.
#[test]
fn peek_takes_no_byte() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut buf = [0; 16];
        assert!(poll_once(stream.peek(&mut buf)).await.is_none(), "a peek must wait for the first byte");
        peer.write_all(b"hello").expect("the peer writes");
        for _ in 0..3 {
            let peeked = stream.peek(&mut buf).await.expect("peek");
            assert_eq!(&buf[..peeked], b"hello", "every peek must see all bytes");
        }
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 5, "the bytes must still be there");
        drop(peer);
        assert_eq!(stream.peek(&mut buf).await.expect("peek"), 0, "a peek must return the end");
        assert_eq!((&stream).read(&mut buf).await.expect("read"), 0, "a peek must not take the end");
    });
}

/// A blocking stream of std becomes non-blocking in `from_std`.
#[test]
fn blocking_std_stream_blocks_no_worker() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let reader = kittiwake::spawn(async move {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).await.map(|()| byte)
        });
        settle().await;
        assert!(!reader.is_finished(), "there is nothing to read yet");
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(&reader.await.expect("the task").expect("read"), b"x");
    });
}

/// A duplicate of the descriptor that other code makes blocking blocks no worker, because each transfer says that it does
/// not wait. The other tasks run on while it waits.
#[test]
fn blocking_duplicate_blocks_no_worker() {
    for transfer in [read_on, read_vectored_on, peek_on, write_on, write_vectored_on, try_read_on, try_write_on] {
        run(move || async move {
            let (stream, _peer) = pair_with_std();
            let duplicate = Peer::from(stream.as_fd().try_clone_to_owned().expect("a duplicate"));
            duplicate.set_nonblocking(false).expect("blocking");
            let waits = kittiwake::spawn(async move { transfer(&stream).await });
            sleep(Duration::from_millis(1)).await;
            settle().await;
            assert!(!waits.is_finished(), "the transfer must wait: {:?}", waits.await);
        });
    }
}

// Transfers that must wait for a peer that neither reads nor writes.

type Transfer<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

fn read_on(mut stream: &Stream) -> Transfer<'_> {
    Box::pin(async move { stream.read(&mut [0; 8]).await.map(drop) })
}

fn read_vectored_on(mut stream: &Stream) -> Transfer<'_> {
    Box::pin(async move { stream.read_vectored(&mut [IoSliceMut::new(&mut [0; 8])]).await.map(drop) })
}

fn peek_on(stream: &Stream) -> Transfer<'_> {
    Box::pin(async move { stream.peek(&mut [0; 8]).await.map(drop) })
}

fn write_on(mut stream: &Stream) -> Transfer<'_> {
    Box::pin(async move { stream.write_all(&vec![7; 64 * MIB]).await })
}

fn write_vectored_on(mut stream: &Stream) -> Transfer<'_> {
    Box::pin(async move {
        let bytes = vec![7; 64 * MIB];
        loop {
            stream.write_vectored(&[IoSlice::new(&bytes), IoSlice::new(&bytes)]).await?;
        }
    })
}

fn try_read_on(stream: &Stream) -> Transfer<'_> {
    Box::pin(async move {
        match stream.try_read(&mut [0; 8]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => pending().await,
            result => result.map(drop),
        }
    })
}

fn try_write_on(stream: &Stream) -> Transfer<'_> {
    Box::pin(async move {
        let bytes = vec![7; 64 * MIB];
        loop {
            match stream.try_write(&bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => pending().await,
                result => result.map(drop)?,
            }
        }
    })
}

/// A stream that is converted to std blocks and is deregistered.
#[test]
fn stream_converted_to_std_blocks() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        assert!(poll_once((&stream).read(&mut [0])).await.is_none(), "there is nothing to read yet");
        assert_eq!(sources(), 1, "a waiting stream must be registered");
        let mut stream = stream.into_std().expect("into_std");
        assert_eq!(sources(), 0, "the converted stream must be deregistered");
        #[cfg(target_os = "linux")]
        assert_eq!(descriptor_flags(&stream) & libc::O_NONBLOCK, 0, "a stream of std must block");
        let writer = std::thread::spawn(move || write_from_another_thread(peer));
        let mut bytes = [0; 2];
        stream.read_exact(&mut bytes).expect("a blocking read waits for the bytes");
        assert_eq!(&bytes, b"ab");
        let mut peer = writer.join().expect("the peer's thread");

        let stream = Stream::from_std(stream).expect("from_std");
        assert!(poll_once((&stream).read(&mut [0])).await.is_none(), "the stream must be non-blocking again");
        assert_eq!(sources(), 1, "the stream must be registered again");
        peer.write_all(b"c").expect("the peer writes");
        (&stream).read_exact(&mut bytes[..1]).await.expect("read");
        assert_eq!(bytes[0], b'c');
    });
}

/// Sends two bytes in two writes, so that the reader most likely waits for one of them.
fn write_from_another_thread(mut peer: Peer) -> Peer {
    peer.write_all(b"a").expect("the peer writes");
    std::thread::yield_now();
    peer.write_all(b"b").expect("the peer writes");
    peer
}

/// Returns the result of an operation that must not wait.
#[track_caller]
fn at_once<T>(operation: impl Future<Output = Result<T>>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let result = poll_once(operation).await.unwrap_or_else(|| Err(Error::other("the operation must not wait")));
        result.unwrap_or_else(|error| panic!("at {caller}: {error}"))
    }
}
