//! Copies, pairs in memory and halves of any stream.

mod support;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future::{poll_once, try_zip};
use kittiwake::io::{
    self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, CopyError, DuplexStream, WriteHalf,
    copy, copy_bidirectional, duplex, split,
};
use kittiwake::net::TcpStream;
use kittiwake::stream::StreamExt;
use kittiwake::task::yield_now;
use kittiwake::time::{Duration, Instant, advance, pause, resume, sleep, timeout};
use support::{
    TICK, counting_waker, pair, pair_with_std, pattern, poll_with, read_all, read_slowly, run, run_paused, settle,
    will_reset, within, workers,
};

const SECOND: Duration = Duration::from_secs(1);

// ---- copy ----

/// A large amount arrives unchanged, and the count is right.
#[test]
fn copy_moves_all_bytes() {
    run(async || {
        let bytes = pattern(5_000_000);
        let ((mut client, server), (near, mut far)) = (pair().await, pair().await);
        let copying = kittiwake::spawn(async move {
            let copied = copy(server, &near).await?;
            (&near).close().await.map(|()| copied)
        });
        let sent = bytes.clone();
        let sending = kittiwake::spawn(async move {
            client.write_all(&sent).await?;
            client.close().await
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert!(received == bytes, "the bytes differ");
        sending.await.unwrap().unwrap();
        assert_eq!(copying.await.unwrap().unwrap(), 5_000_000);
    });
}

/// Bytes for a writer with a buffer arrive while the reader idles.
#[test]
fn copy_flushes_when_its_reader_idles() {
    run(async || {
        let ((mut client, server), (near, mut far)) = (pair().await, pair().await);
        let copying = kittiwake::spawn(copy(server, BufWriter::new(near)));
        for _ in 0..3 {
            client.write_all(b"ping").await.unwrap();
            let mut bytes = [0; 4];
            far.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"ping");
        }
        client.close().await.unwrap();
        assert_eq!(copying.await.unwrap().unwrap(), 12);
    });
}

/// A stream whose results are given: so many bytes to read in pieces of `piece`, an error at their end, and a writer
/// that takes `piece` bytes at a time until it is `full`.
struct Scripted {
    to_read: usize,
    piece: usize,
    end: io::Result<usize>,
    interrupts: bool,
    is_interrupted: bool,
    written: Vec<u8>,
    full: usize,
    flushed: usize,
}

impl Scripted {
    fn new(to_read: usize, piece: usize) -> Self {
        Self {
            to_read,
            piece,
            end: Ok(0),
            interrupts: true,
            is_interrupted: false,
            written: Vec::new(),
            full: usize::MAX,
            flushed: 0,
        }
    }

    /// Every second call is interrupted.
    fn interrupt(&mut self) -> io::Result<()> {
        self.is_interrupted = self.interrupts && !self.is_interrupted;
        if self.is_interrupted { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.interrupt()?;
        if self.to_read == 0 {
            return Poll::Ready(std::mem::replace(&mut self.end, Ok(0)));
        }
        let read = self.piece.min(buf.len()).min(self.to_read);
        buf[..read].fill(b'x');
        self.to_read -= read;
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.interrupt()?;
        let written = self.piece.min(buf.len()).min(self.full - self.written.len());
        self.written.extend_from_slice(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.interrupt()?;
        self.flushed = self.written.len();
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.interrupt()?;
        Poll::Ready(Ok(()))
    }
}

/// Interrupted calls are made again.
#[test]
fn copy_retries_interrupted_calls() {
    run(async || {
        let mut writer = Scripted::new(0, 7);
        assert_eq!(copy(Scripted::new(30_000, 1000), &mut writer).await.unwrap(), 30_000);
        assert_eq!((writer.written.len(), writer.flushed), (30_000, 30_000));
        let transferred = copy_bidirectional(Scripted::new(3, 1), Scripted::new(5, 2)).await.unwrap();
        assert_eq!(transferred, (3, 5));
    });
}

/// A writer that takes no more bytes is an error, and no endless loop.
#[test]
fn full_writer_is_write_zero() {
    run(async || {
        let mut writer = Scripted::new(0, 10);
        writer.full = 25;
        let error = copy(io::repeat(b'x'), &mut writer).await.unwrap_err();
        assert_eq!((error.kind(), writer.written.len()), (ErrorKind::WriteZero, 25));
    });
}

/// The bytes before an error of the reader are flushed before the error is returned.
#[test]
fn copy_flushes_before_it_fails() {
    run(async || {
        let mut reader = Scripted::new(100, 30);
        reader.end = Err(ErrorKind::ConnectionReset.into());
        let mut writer = Scripted::new(0, 64);
        let error = copy(reader, &mut writer).await.unwrap_err();
        assert_eq!((error.kind(), writer.flushed), (ErrorKind::ConnectionReset, 100));
    });
}

/// If the reader fails, and the flush after it fails too, the copy ends with the reader's error.
#[test]
fn failed_flush_keeps_the_first_error() {
    run(async || {
        let mut reader = Scripted::new(100, 30);
        reader.end = Err(ErrorKind::ConnectionReset.into());
        let (near, far) = duplex(64);
        drop(far);
        let error = copy(reader, BufWriter::new(near)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

/// A flush that fails while the reader idles ends the copy: nothing else wakes its task before the reader's next byte.
#[test]
fn failed_flush_ends_idle_copy() {
    run(async || {
        let (mut client, reader) = duplex(64);
        let (near, far) = duplex(64);
        drop(far);
        client.write_all(b"ping").await.unwrap();
        let copied = poll_once(copy(reader, BufWriter::new(near))).await;
        let error = copied.expect("the copy waits for its reader").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);

        let (mut client, a) = duplex(64);
        let ((near, far), (_peer, idle)) = (duplex(64), duplex(64));
        drop(far);
        client.write_all(b"ping").await.unwrap();
        let copied = poll_once(copy_bidirectional(a, Join(idle, BufWriter::new(near)))).await;
        let error = copied.expect("the copy waits for its readers").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

/// A copy in memory that has no end gives way to other tasks.
#[test]
fn endless_copy_gives_way() {
    run(async || {
        let copies = [
            kittiwake::spawn(copy(io::repeat(b'x'), io::sink())),
            kittiwake::spawn(async {
                let (a, _b) = duplex(64);
                let (mut reader, mut writer) = split(a);
                let endless = try_zip(copy(io::repeat(b'x'), &mut writer), copy(&mut reader, io::sink()));
                endless.await.map(|(sent, received)| sent + received)
            }),
        ];
        for _ in 0..10 {
            yield_now().await;
        }
        for copying in copies {
            copying.abort();
            assert!(copying.await.unwrap_err().is_cancelled());
        }
    });
}

// ---- copy_bidirectional ----

type Proxy = kittiwake::task::JoinHandle<Result<(u64, u64), CopyError>>;

/// A proxy between two connections. Returns the ends of the client and of the server.
async fn proxy() -> (TcpStream, TcpStream, Proxy) {
    let ((client, a), (server, b)) = (pair().await, pair().await);
    (client, server, kittiwake::spawn(copy_bidirectional(a, b)))
}

/// Each side may end first. The other direction goes on until its own end.
#[test]
fn half_close_leaves_the_other_direction() {
    run(async || {
        for client_is_first in [true, false] {
            let (client, server, proxy) = proxy().await;
            let (mut first, mut second) = if client_is_first { (client, server) } else { (server, client) };
            first.write_all(b"question").await.unwrap();
            first.close().await.unwrap();
            let mut bytes = Vec::new();
            second.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes, b"question");
            settle().await;
            assert!(!proxy.is_finished(), "one direction has not ended");

            second.write_all(b"the answer").await.unwrap();
            let mut bytes = [0; 10];
            first.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"the answer");
            second.close().await.unwrap();
            assert_eq!(first.read(&mut bytes).await.unwrap(), 0, "the second end must be passed on");
            let expected = if client_is_first { (8, 10) } else { (10, 8) };
            assert_eq!(proxy.await.unwrap().unwrap(), expected);
        }
    });
}

/// Large amounts in both directions at once arrive unchanged.
#[test]
fn both_directions_move_all_bytes() {
    run(async || {
        let (client, server, proxy) = proxy().await;
        let bytes = Arc::new(pattern(2_000_000));
        let ends = [client, server].map(|stream| {
            let bytes = bytes.clone();
            kittiwake::spawn(async move {
                let (mut reader, mut writer) = stream.into_split();
                let mut received = Vec::new();
                let sending = async {
                    writer.write_all(&bytes).await?;
                    writer.close().await
                };
                try_zip(sending, reader.read_to_end(&mut received)).await.unwrap();
                assert!(received == *bytes, "the bytes differ");
            })
        });
        for end in ends {
            end.await.unwrap();
        }
        assert_eq!(proxy.await.unwrap().unwrap(), (2_000_000, 2_000_000));
    });
}

/// A reset ends both directions. The error has the counts, names the stream, and keeps the kernel's code.
#[test]
fn reset_has_the_counts() {
    run(async || {
        let (mut client, mut server, proxy) = proxy().await;
        client.write_all(b"12345").await.unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).await.unwrap();
        server.write_all(b"678").await.unwrap();
        client.read_exact(&mut bytes[..3]).await.unwrap();
        will_reset(&client);
        drop(client);
        let error = proxy.await.unwrap().unwrap_err();
        assert_eq!((error.transferred(), error.kind()), ((5, 3), ErrorKind::ConnectionReset));
        let text = error.to_string();
        assert!(
            text.starts_with("reading from the first stream failed after 5 bytes forth and 3 bytes back: "),
            "{text}"
        );
        assert!(std::io::Error::from(error).raw_os_error().is_some(), "the kernel's code is lost");
        assert_eq!(server.read(&mut bytes).await.unwrap(), 0, "the proxy has dropped its streams");
    });
}

/// A server that has answered and is gone does not cost the client the answer, although the client goes on sending.
#[test]
fn answer_survives_a_failed_write() {
    run(async || {
        let ((mut client, a), (b, mut server)) = (pair().await, pair_with_std());
        server.write_all(b"the answer").unwrap();
        // The server's socket has unread bytes, so that its close is a reset.
        (&b).write_all(b"unread").await.unwrap();
        b.readable().await.unwrap();
        drop(server);
        client.write_all(b"more").await.unwrap();
        let proxy = kittiwake::spawn(copy_bidirectional(a, b));
        let mut bytes = Vec::new();
        let _ = client.read_to_end(&mut bytes).await;
        assert_eq!(bytes, b"the answer");
        drop(client);
        let _ = proxy.await.unwrap();
    });
}

/// The idle timeout ends a copy after the time without a byte, and not before, and the error has the counts.
#[test]
fn idle_copy_times_out() {
    run_paused(async || {
        let ((mut client, a), (_server, b)) = (duplex(64), duplex(64));
        let proxy = kittiwake::spawn(copy_bidirectional(a, b).idle_timeout(10 * SECOND));
        for _ in 0..5 {
            sleep(9 * SECOND).await;
            client.write_all(b"x").await.unwrap();
        }
        let last = Instant::now();
        let error = proxy.await.unwrap().unwrap_err();
        let idle = last.elapsed();
        assert!(idle >= 10 * SECOND && idle < 10 * SECOND + 2 * TICK, "ended after {idle:?}");
        assert_eq!((error.kind(), error.transferred()), (ErrorKind::TimedOut, (5, 0)));
        let text = error.to_string();
        assert!(text.ends_with("failed after 5 bytes forth and 0 bytes back: no byte has moved for 10s"), "{text}");
    });
}

/// A peer that stalls is idle too: bytes that wait to be written do not move.
#[test]
fn stalled_copy_times_out() {
    run_paused(async || {
        let ((client, a), (_server, b)) = (duplex(64), duplex(10));
        let proxy = kittiwake::spawn(copy_bidirectional(a, b).idle_timeout(SECOND));
        let flood = kittiwake::spawn(copy(io::repeat(b'x'), client));
        assert_eq!(proxy.await.unwrap().unwrap_err().transferred(), (10, 0));
        assert_eq!(flood.await.unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// A copy to a slow reader is not idle. Linux reports room in a full send buffer only once a third of it is free, and that
/// may take longer than the timeout.
#[test]
fn copy_to_slow_reader_is_not_idle() {
    run(async || {
        let ((mut client, a), (b, mut server)) = (pair().await, pair().await);
        pause();
        let proxy = kittiwake::spawn(copy_bidirectional(a, b).idle_timeout(SECOND));
        let flood = kittiwake::spawn(async move { while client.write_all(&[7; 65_536]).await.is_ok() {} });
        read_slowly(&mut server, SECOND * 2 / 3).await;
        assert!(!proxy.is_finished(), "the copy has ended: {:?}", proxy.await);
        advance(2 * SECOND).await;
        resume();
        assert_eq!(proxy.await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
        flood.await.unwrap();
    });
}

/// The counts can be read from a future that was given up.
#[test]
fn unfinished_copy_has_its_counts() {
    run(async || {
        let ((mut client, a), (mut server, b)) = (duplex(64), duplex(64));
        let mut copying = copy_bidirectional(a, b);
        client.write_all(b"abc").await.unwrap();
        server.write_all(b"de").await.unwrap();
        assert!(timeout(Duration::ZERO, &mut copying).await.is_err());
        assert_eq!(copying.transferred(), (3, 2));
    });
}

/// A stream of a reader and a writer that have nothing to do with each other.
struct Join<R, W>(R, W);

impl<R: AsyncRead + Unpin, W: Unpin> AsyncRead for Join<R, W> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<R: Unpin, W: AsyncWrite + Unpin> AsyncWrite for Join<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.1).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_close(cx)
    }
}

/// A direction that fails leaves the other one its turn in the same poll.
#[test]
fn failed_direction_leaves_a_last_poll() {
    run(async || {
        for fails_back in [true, false] {
            let (near, mut far) = duplex(64);
            let mut failing = Scripted::new(0, 1);
            failing.end = Err(ErrorKind::ConnectionReset.into());
            let (failing, other) = (Join(failing, near), Join(&b"answer"[..], io::sink()));
            let error = if fails_back {
                copy_bidirectional(other, failing).await.unwrap_err()
            } else {
                copy_bidirectional(failing, other).await.unwrap_err()
            };
            assert_eq!(error.transferred(), if fails_back { (6, 0) } else { (0, 6) });
            let mut answer = String::new();
            far.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        }
    });
}

/// The bytes that a reader gave before its error arrive before the error is reported, also if the writer has to wait and
/// the other direction has ended.
#[test]
fn failed_direction_is_flushed_first() {
    run(async || {
        for fails_back in [true, false] {
            let (near, mut far) = duplex(1);
            let mut failing = Scripted::new(4, 4);
            failing.end = Err(ErrorKind::ConnectionReset.into());
            let (failing, other) = (Join(failing, io::sink()), Join(&b""[..], BufWriter::new(near)));
            let copying = async {
                if fails_back {
                    copy_bidirectional(other, failing).await.unwrap_err()
                } else {
                    copy_bidirectional(failing, other).await.unwrap_err()
                }
            };
            let reading = async {
                let mut bytes = Vec::new();
                far.read_to_end(&mut bytes).await.unwrap();
                bytes
            };
            let (error, bytes) = kittiwake::future::zip(copying, reading).await;
            assert_eq!((error.kind(), &bytes[..]), (ErrorKind::ConnectionReset, &b"xxxx"[..]));
        }
    });
}

/// A direction that always has bytes leaves its turn to the other, although it uses up the budget of each poll.
#[test]
fn flood_leaves_the_other_direction_its_turn() {
    run(async || {
        for floods_forth in [true, false] {
            let ((mut near, answers), (questions, mut far)) = (duplex(8), duplex(8));
            let (flood, other) = (Join(io::repeat(b'x'), questions), Join(answers, io::sink()));
            let proxy = if floods_forth {
                kittiwake::spawn(async { drop(copy_bidirectional(flood, other).await) })
            } else {
                kittiwake::spawn(async { drop(copy_bidirectional(other, flood).await) })
            };
            for _ in 0..10 {
                near.write_all(b"answer").await.unwrap();
                let mut bytes = [0; 6];
                far.read_exact(&mut bytes).await.unwrap();
                assert_eq!(&bytes, b"answer");
            }
            proxy.abort();
        }
    });
}

// ---- cancel safety ----

/// A read that waits and is dropped has taken no byte. The next read gets all of them.
#[test]
fn dropped_reads_lose_nothing() {
    run(async || {
        let (mut near, mut far) = duplex(16);
        let mut buf = [0; 2];
        assert!(poll_once(far.read(&mut buf)).await.is_none(), "the pair is empty");
        assert!(poll_once(far.read_vectored(&mut [IoSliceMut::new(&mut buf)])).await.is_none());
        assert!(poll_once((&mut far).bytes().next()).await.is_none());
        near.write_all(b"abcdef").await.unwrap();
        assert_eq!((&mut far).bytes().next().await.expect("a byte").unwrap(), b'a');
        assert_eq!(far.read(&mut buf).await.unwrap(), 2);
        assert_eq!(&buf, b"bc");
        assert_eq!(far.read_vectored(&mut [IoSliceMut::new(&mut buf)]).await.unwrap(), 2);
        assert_eq!(&buf, b"de");
        near.close().await.unwrap();
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "f");
    });
}

/// `read_to_end` keeps what it has read in the vector. The next call appends the rest, and counts only the rest. The
/// limits of `take` and the parts of `chain` stay right.
#[test]
fn dropped_read_to_end_keeps_its_bytes() {
    run(async || {
        let (mut near, mut far) = duplex(16);
        let mut bytes = b"<".to_vec();
        near.write_all(b"one ").await.unwrap();
        assert!(poll_once(far.read_to_end(&mut bytes)).await.is_none(), "the end has not come");
        assert_eq!(bytes, b"<one ", "the vector has what was read, and no more");
        near.write_all(b"two three").await.unwrap();
        let mut taken = (&mut far).take(6).chain(&b">"[..]);
        assert_eq!(taken.read_to_end(&mut bytes).await.unwrap(), 7);
        assert_eq!(bytes, b"<one two th>");
        let mut taken = (&mut far).take(5).chain(&b">"[..]);
        assert!(poll_once(taken.read_to_end(&mut bytes)).await.is_none(), "two bytes are missing");
        near.write_all(b"!!!!").await.unwrap();
        assert_eq!(taken.read_to_end(&mut bytes).await.unwrap(), 3);
        assert_eq!(bytes, b"<one two th>ree!!>");
    });
}

/// A write that waits and is dropped has written nothing, so the next write repeats no byte.
#[test]
fn dropped_writes_write_nothing() {
    run(async || {
        let (mut near, mut far) = duplex(4);
        near.write_all(b"full").await.unwrap();
        assert!(poll_once(near.write(b"lost")).await.is_none(), "the pair is full");
        assert!(poll_once(near.write_vectored(&[IoSlice::new(b"lo"), IoSlice::new(b"st")])).await.is_none());
        far.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(near.write_vectored(&[IoSlice::new(b"new")]).await.unwrap(), 3);
        near.close().await.unwrap();
        let mut received = String::new();
        far.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "new");
    });
}

/// A `BufWriter` goes on with a flush, or a close, that was dropped half-way. Each byte arrives once.
#[test]
fn dropped_flush_goes_on() {
    run(async || {
        let (near, mut far) = duplex(4);
        let mut near = BufWriter::new(near);
        near.write_all(b"0123456789").await.unwrap();
        let mut received = Vec::new();
        while received.len() < 8 {
            assert!(poll_once(near.flush()).await.is_none(), "the pair takes four bytes");
            let mut bytes = [0; 4];
            let read = far.read(&mut bytes).await.unwrap();
            received.extend_from_slice(&bytes[..read]);
        }
        near.write_all(b"abcdef").await.unwrap();
        assert!(poll_once(near.close()).await.is_none(), "eight bytes are left");
        assert!(poll_once(near.close()).await.is_none());
        let ((), read) = try_zip(near.close(), far.read_to_end(&mut received)).await.unwrap();
        assert_eq!((read, &received[..]), (8, &b"0123456789abcdef"[..]));
    });
}

/// The calls that the table of `io` calls unsafe have moved bytes before they are dropped. Without this loss the table
/// would be wrong.
#[test]
fn dropped_loops_lose_their_count() {
    run(async || {
        let (mut near, mut far) = duplex(4);
        assert!(poll_once(near.write_all(b"abcdefgh")).await.is_none(), "the pair takes four bytes");
        let mut exact = [0; 6];
        assert!(poll_once(far.read_exact(&mut exact)).await.is_none(), "two bytes are missing");
        assert_eq!(&exact, b"abcd\0\0", "the stream has given its bytes up");
        near.write_all(b"lost").await.unwrap();
        let mut text = String::new();
        assert!(poll_once(far.read_to_string(&mut text)).await.is_none(), "the end has not come");
        near.write_all(b"kept").await.unwrap();
        near.close().await.unwrap();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "kept");
    });
}

// ---- duplex ----

/// Reads what is there, without waiting.
fn read_now(stream: &mut DuplexStream, buf: &mut [u8]) -> Poll<io::Result<usize>> {
    Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), buf)
}

/// A write takes what the capacity allows, and goes on once the other end has read.
#[test]
fn duplex_has_back_pressure() {
    run(async || {
        let (mut one, mut two) = duplex(5);
        assert_eq!(one.write(b"more than five").await.unwrap(), 5);
        let (waker, wakes) = counting_waker();
        assert!(poll_with(&waker, &mut one.write(b"more")).is_pending(), "the pipe is full");
        let mut bytes = [0; 3];
        assert_eq!(two.read(&mut bytes).await.unwrap(), 3);
        assert_eq!((&bytes, wakes.get()), (b"mor", 1));
        assert_eq!(one.write(b"-then").await.unwrap(), 3, "three bytes have been read");
        drop(one);
        let mut rest = String::new();
        two.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "e -th");
    });
}

/// A large amount passes a small pipe between two workers, and no wake-up is lost.
#[test]
fn duplex_moves_all_bytes() {
    within(|| {
        let runtime = workers(2);
        runtime.block_on(async {
            let (mut one, mut two) = duplex(100);
            let bytes = pattern(300_000);
            let sent = bytes.clone();
            let sending = kittiwake::spawn(async move { one.write_all(&sent).await });
            let mut received = Vec::new();
            two.read_to_end(&mut received).await.unwrap();
            sending.await.unwrap().unwrap();
            assert!(received == bytes, "the bytes differ");
        });
    });
}

/// Closing and dropping an end let the other read what was written and then the end. A drop also breaks its writes, and
/// wakes a task that waits for either.
#[test]
fn duplex_closes_as_a_socket() {
    run(async || {
        let (mut one, mut two) = duplex(8);
        one.write_all(b"last").await.unwrap();
        let (waker, wakes) = counting_waker();
        let mut bytes = [0; 8];
        one.close().await.unwrap();
        assert_eq!(one.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(two.read(&mut bytes).await.unwrap(), 4);
        assert_eq!(two.read(&mut bytes).await.unwrap(), 0);
        two.write_all(b"12345678").await.unwrap();
        assert_eq!(one.read(&mut bytes).await.unwrap(), 8, "a closed end can go on reading");
        two.write_all(b"12345678").await.unwrap();
        assert!(poll_with(&waker, &mut two.write(b"9")).is_pending());
        drop(one);
        assert_eq!(wakes.get(), 1, "a write that waits must be woken");
        assert_eq!(two.write(b"9").await.unwrap_err().kind(), ErrorKind::BrokenPipe);

        let (one, mut two) = duplex(8);
        let (waker, wakes) = counting_waker();
        assert!(poll_with(&waker, &mut two.read(&mut bytes)).is_pending());
        drop(one);
        assert_eq!(wakes.get(), 1, "a read that waits must be woken");
        assert!(matches!(read_now(&mut two, &mut bytes), Poll::Ready(Ok(0))));
        assert_eq!(Arc::strong_count(&wakes), 2, "no waker may be left behind");
    });
}

/// A waker that panics.
struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a waker panicked"));
    }
}

/// A waker of the other end that panics takes no bytes from this end, and no wake-up from another task. Foreign wakers may
/// panic, and each end may be in another task.
#[test]
fn panicking_waker_harms_no_other_end() {
    run(async || {
        let panicking = Waker::from(Arc::new(Panicking));
        let (mut one, mut two) = duplex(4);
        one.write_all(b"abcd").await.unwrap();
        assert!(poll_with(&panicking, &mut one.write(b"e")).is_pending(), "the pipe is full");
        let mut bytes = [0; 4];
        assert_eq!(two.read(&mut bytes).await.unwrap(), 4);
        assert_eq!(&bytes, b"abcd");

        assert!(poll_with(&panicking, &mut one.read(&mut bytes)).is_pending());
        assert_eq!(two.write(b"efgh").await.unwrap(), 4);
        assert_eq!(one.read(&mut bytes).await.unwrap(), 4);

        assert!(poll_with(&panicking, &mut one.read(&mut bytes)).is_pending());
        two.close().await.unwrap();
        assert_eq!(one.read(&mut bytes).await.unwrap(), 0);

        let (one, mut two) = duplex(4);
        let (waker, wakes) = counting_waker();
        two.write_all(b"full").await.unwrap();
        assert!(poll_with(&waker, &mut two.write(b"x")).is_pending());
        assert!(poll_with(&panicking, &mut two.read(&mut bytes)).is_pending());
        drop(one);
        assert_eq!(wakes.get(), 1, "the write that waits must be woken too");
        assert_eq!(two.read(&mut bytes).await.unwrap(), 0);
    });
}

/// Empty reads and writes do not wait, and are no end.
#[test]
fn empty_operations_do_not_wait() {
    run(async || {
        let (mut one, mut two) = duplex(1);
        assert_eq!(one.read(&mut []).await.unwrap(), 0);
        one.write_all(b"x").await.unwrap();
        assert_eq!(one.write(b"").await.unwrap(), 0);
        assert_eq!(two.read(&mut [0; 4]).await.unwrap(), 1);
    });
}

/// A pair without a capacity would never move a byte.
#[test]
fn duplex_needs_a_capacity() {
    let text = support::panic_of(|| drop(duplex(0)));
    assert!(text.contains("a capacity of at least one byte"), "{text}");
}

/// A task that finds its pair always ready gives way to other tasks.
#[test]
fn ready_duplex_gives_way() {
    run(async || {
        let rounds = Arc::new(AtomicUsize::new(0));
        let count = rounds.clone();
        let busy = kittiwake::spawn(async move {
            let (mut one, mut two) = duplex(1);
            loop {
                one.write_all(b"x").await.unwrap();
                two.read_exact(&mut [0]).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        yield_now().await;
        let first = rounds.load(Ordering::Relaxed);
        assert!((1..=64).contains(&first), "{first} rounds before the first yield");
        busy.abort();
        assert!(busy.await.is_err());
    });
}

// ---- split ----

/// The halves work in two tasks on two workers at once, and no wake-up is lost.
#[test]
fn halves_work_in_two_tasks() {
    within(|| {
        let runtime = workers(2);
        runtime.block_on(async {
            let ((client, server), bytes) = (pair().await, pattern(1_000_000));
            let ends = [client, server].map(|stream| {
                let (mut reader, mut writer) = split(BufReader::new(stream));
                let bytes = bytes.clone();
                let expected = bytes.clone();
                let sending = kittiwake::spawn(async move { writer.write_all(&bytes).await });
                let receiving = kittiwake::spawn(async move {
                    let mut received = Vec::new();
                    reader.read_to_end(&mut received).await.unwrap();
                    assert!(received == expected, "the bytes differ");
                });
                (sending, receiving)
            });
            for (sending, receiving) in ends {
                sending.await.unwrap().unwrap();
                receiving.await.unwrap();
            }
        });
    });
}

/// Dropping the writing half ends what the peer reads, although the reading half lives.
#[test]
fn dropped_writer_closes() {
    run(async || {
        let (ours, mut peer) = pair_with_std();
        let (mut reader, mut writer) = split(ours);
        writer.write_all(b"last").await.unwrap();
        drop(writer);
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"last");
        peer.write_all(b"reply").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"reply");
    });
}

/// Dropping the reading half closes nothing. The last half that is dropped drops the stream.
#[test]
fn dropped_reader_closes_nothing() {
    run(async || {
        let (ours, peer) = pair_with_std();
        let (reader, mut writer) = split(ours);
        drop(reader);
        writer.write_all(b"still open").await.unwrap();
        drop(writer);
        assert_eq!(read_all(peer), b"still open");
    });
}

/// Halves that are put together again are the stream, which is still open. Halves of two streams are given back.
#[test]
fn reunited_halves_are_the_stream() {
    run(async || {
        let (one, mut other) = duplex(8);
        let (reader, writer) = split(one);
        let (_, foreign) = split(duplex(8).0);
        let error = reader.reunite(foreign).unwrap_err();
        assert_eq!(error.to_string(), "the two halves belong to different streams");
        let mut one = writer.reunite(error.0).unwrap();
        one.write_all(b"open").await.unwrap();
        let mut bytes = [0; 4];
        other.read_exact(&mut bytes).await.unwrap();
        assert!(poll_once(other.read(&mut bytes)).await.is_none(), "reunite must not close the stream");
    });
}

/// A stream whose read polls the writing half, and then drops it. The read may panic.
#[derive(Clone)]
struct Reentrant {
    panics: bool,
    writer: Arc<Mutex<Option<WriteHalf<Reentrant>>>>,
    waker: Waker,
    log: Arc<Mutex<Vec<&'static str>>>,
}

impl AsyncRead for Reentrant {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut writer = self.writer.lock().unwrap().take().expect("the test reads once");
        assert!(poll_with(&self.waker, &mut writer.write(b"x")).is_pending(), "the reading half has the stream");
        drop(writer);
        self.log.lock().unwrap().push("read");
        if self.panics {
            std::panic::resume_unwind(Box::new("the stream panicked"));
        }
        Poll::Ready(Ok(0))
    }
}

impl AsyncWrite for Reentrant {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.log.lock().unwrap().push("closed");
        Poll::Ready(Ok(()))
    }
}

/// A half that finds the stream with the other half waits and is woken. A writing half that is dropped at this moment
/// still closes the stream, after the poll of the other.
#[test]
fn halves_meet_in_one_poll() {
    run(async || {
        let (waker, wakes) = counting_waker();
        let stream = Reentrant { panics: false, writer: Arc::default(), waker, log: Arc::default() };
        let (mut reader, writer) = split(stream.clone());
        *stream.writer.lock().unwrap() = Some(writer);
        assert_eq!(reader.read(&mut [0; 4]).await.unwrap(), 0);
        assert_eq!(*stream.log.lock().unwrap(), ["read", "closed"]);
        assert_eq!(wakes.get(), 1, "the writing half waited for the stream");
    });
}

/// A waker of the other half that panics takes no result from this half. While the stream itself panics, a second panic
/// would end the process.
#[test]
fn panicking_waker_harms_no_other_half() {
    run(async || {
        for panics in [false, true] {
            let waker = Waker::from(Arc::new(Panicking));
            let stream = Reentrant { panics, writer: Arc::default(), waker, log: Arc::default() };
            let (mut reader, writer) = split(stream.clone());
            *stream.writer.lock().unwrap() = Some(writer);
            let read = catch_unwind(AssertUnwindSafe(|| poll_with(Waker::noop(), &mut reader.read(&mut [0; 4]))));
            match read {
                Ok(read) => assert!(!panics && matches!(read, Poll::Ready(Ok(0)))),
                Err(panic) => assert!(panics && panic.is::<&str>()),
            }
            assert_eq!(*stream.log.lock().unwrap(), ["read", "closed"]);
        }
    });
}
