//! Two clients and what joins them: a pair in memory, alone or with `copy`, `copy_bidirectional`, `split` or a
//! `BufWriter` in the middle.
//!
//! The streams in the middle delay, are interrupted, and take one byte instead of many. The clock is paused: a sleep ends
//! when every task waits, and then the bytes have come as far as they can. So a read must not wait while bytes are on
//! their way, and a write must not wait while none are. No byte may be lost, repeated or invented.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use kittiwake::future::zip;
use kittiwake::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, DuplexStream, ReadHalf, WriteHalf, copy,
    copy_bidirectional, duplex, split,
};
use kittiwake::runtime::Builder;
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, sleep, timeout};

use crate::script::Script;

/// Longer than any transfer takes: the clock moves only while all tasks wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// One step of a script. The first number is that of a client, or of the client that sends.
#[derive(Debug)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    /// Sends so many bytes from one client to the other, which reads at the same time.
    Transfer(usize, usize),
    Settle,
    Reunite(usize),
    /// Closes the writing side by its `poll_close`, or else by dropping that half.
    End(usize, bool),
    Leave(usize),
}

impl Op {
    fn next(script: &mut Script<'_>) -> Self {
        let choice = script.byte();
        let (client, count) = (usize::from(choice >> 7), script.below(256) + 1);
        match choice % 16 {
            0..=4 => Self::Write(client, count * count / 8 + 1),
            5..=8 => Self::Read(client, count * count / 4 + 1),
            9..=11 => Self::Transfer(client, count),
            12 => Self::Settle,
            13 => Self::Reunite(client),
            14 if count <= 128 => Self::End(client, count <= 64),
            15 if count <= 16 => Self::Leave(client),
            _ => Self::Write(client, count),
        }
    }
}

/// A stream whose calls are delayed, interrupted and cut short, as long as there are bytes that say so.
struct Rough {
    stream: DuplexStream,
    calls: VecDeque<u8>,
    /// Set when a call has failed for good.
    has_failed: Arc<AtomicBool>,
}

impl Rough {
    /// Makes one call.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(Pin<&mut DuplexStream>, &mut Context<'_>, usize) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let how = self.calls.pop_front().unwrap_or(u8::MAX - 1);
        if how == u8::MAX {
            self.has_failed.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        match how % 8 {
            0 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            1 => Poll::Ready(Err(ErrorKind::Interrupted.into())),
            2 => call(Pin::new(&mut self.stream), cx, 1),
            _ => call(Pin::new(&mut self.stream), cx, usize::MAX),
        }
    }
}

impl AsyncRead for Rough {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream, cx, limit| {
            let length = buf.len().min(limit);
            stream.poll_read(cx, &mut buf[..length])
        })
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream, cx, limit| stream.poll_write(cx, &buf[..buf.len().min(limit)]))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx, _| stream.poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx, _| stream.poll_close(cx))
    }
}

/// Joins two streams, and returns how many bytes went from the first to the second, and back.
async fn join(kind: usize, first: Rough, second: Rough) -> io::Result<(u64, u64)> {
    if kind == 0 {
        return Ok(copy_bidirectional(first, second).idle_timeout(Duration::from_secs(3600)).await?);
    }
    let ((first_reader, first_writer), (second_reader, second_writer)) = (split(first), split(second));
    if kind == 1 {
        let first = first_reader.reunite(first_writer).expect("the halves of one stream");
        let second = second_writer.reunite(second_reader).expect("the halves of one stream");
        return Ok(copy_bidirectional(first, second).await?);
    }
    // With a `BufWriter` the bytes arrive only if the copy flushes it.
    let back = kittiwake::spawn(pass_on(second_reader, first_writer, kind == 3));
    let forth = pass_on(first_reader, second_writer, kind == 3).await;
    Ok((forth?, back.await.expect("a copy does not panic")?))
}

/// Copies one direction, and closes the writer.
async fn pass_on(reader: ReadHalf<Rough>, writer: WriteHalf<Rough>, has_buffer: bool) -> io::Result<u64> {
    if !has_buffer {
        let mut writer = writer;
        let copied = copy(reader, &mut writer).await?;
        close(&mut writer).await?;
        return Ok(copied);
    }
    let mut writer = BufWriter::with_capacity(100, writer);
    let copied = copy(reader, &mut writer).await?;
    close(&mut writer).await?;
    Ok(copied)
}

/// Closes a writer that may be interrupted.
async fn close(writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    loop {
        match writer.close().await {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            closed => return closed,
        }
    }
}

/// Runs a script: three bytes for what is in the middle, the calls of the streams there, and the operations.
///
/// # Panics
/// Panics if bytes are lost, or wait in vain.
pub(crate) fn run(script: &[u8]) {
    let runtime = Builder::new_current_thread().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut script = Script::new(script);
        let mut world = World::new(&mut script);
        for _ in 0..100 {
            if script.is_empty() {
                break;
            }
            world.apply(Op::next(&mut script)).await;
        }
        world.finish().await;
    });
}

/// A client: one end of a pair in memory, in halves.
struct Client {
    reader: Option<ReadHalf<DuplexStream>>,
    writer: Option<WriteHalf<DuplexStream>>,
    /// The bytes that this client has sent, and the other has not received.
    on_the_way: VecDeque<u8>,
    sent: u64,
    /// It sends no more.
    has_ended: bool,
}

impl Client {
    fn new(stream: DuplexStream) -> Self {
        let (reader, writer) = split(stream);
        let (reader, writer) = (Some(reader), Some(writer));
        Self { reader, writer, on_the_way: VecDeque::new(), sent: 0, has_ended: false }
    }

    /// The next `count` bytes to send. No two of 251 in succession are the same, so that lost and repeated ones show.
    fn next_bytes(&self, count: usize) -> Vec<u8> {
        (self.sent..self.sent + count as u64).map(|number| (number % 251) as u8).collect()
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        self.on_the_way.extend(bytes);
        self.sent += bytes.len() as u64;
    }

    /// Fails unless `bytes` are the next that this client has sent.
    fn expect(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.on_the_way.len(), "bytes were received that were never sent");
        assert!(self.on_the_way.drain(..bytes.len()).eq(bytes.iter().copied()), "other bytes were received than sent");
    }
}

struct World {
    clients: [Client; 2],
    /// The bytes of a transfer are a multiple of this.
    unit: usize,
    middle: Option<JoinHandle<io::Result<(u64, u64)>>>,
    has_failed: Arc<AtomicBool>,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let has_failed = Arc::new(AtomicBool::new(false));
        let capacity = script.one_of(&[1, 7, 64, 1000, 9000]);
        let (kind, unit) = (script.below(5), capacity / 100 + 1);
        if kind == 4 {
            let (one, two) = duplex(capacity);
            return Self { clients: [Client::new(one), Client::new(two)], unit, middle: None, has_failed };
        }
        let calls = script.below(64);
        let rough = |stream, script: &mut Script<'_>| {
            let calls = script.bytes(calls).iter().copied().collect();
            Rough { stream, calls, has_failed: has_failed.clone() }
        };
        let ((one, first), (second, two)) = (duplex(capacity), duplex(capacity));
        let (first, second) = (rough(first, script), rough(second, script));
        let middle = Some(kittiwake::spawn(join(kind, first, second)));
        Self { clients: [Client::new(one), Client::new(two)], unit, middle, has_failed }
    }

    /// A client has left, or a stream in the middle has failed. Then bytes may get lost, and writes may fail.
    fn is_broken(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed) || self.clients.iter().any(|client| client.reader.is_none())
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Write(client, count) => self.write(client, count).await,
            Op::Read(client, count) => self.read(client, count).await,
            Op::Transfer(client, count) => self.transfer(client, count * self.unit).await,
            Op::Settle => settle().await,
            Op::Reunite(client) => {
                let Client { reader, writer, .. } = &mut self.clients[client];
                if let (Some(left), Some(right)) = (reader.take(), writer.take()) {
                    let (left, right) = split(left.reunite(right).expect("the halves of one stream"));
                    (*reader, *writer) = (Some(left), Some(right));
                }
            }
            Op::End(client, true) => {
                let client = &mut self.clients[client];
                if let Some(writer) = &mut client.writer {
                    writer.close().await.expect("a pair in memory closes");
                    client.has_ended = true;
                }
            }
            Op::End(client, false) => {
                self.clients[client].writer = None;
                self.clients[client].has_ended = true;
            }
            Op::Leave(client) => {
                let client = &mut self.clients[client];
                (client.reader, client.writer, client.has_ended) = (None, None, true);
            }
        }
    }

    /// Polls a write once.
    async fn write(&mut self, client: usize, count: usize) {
        settle().await;
        let is_broken = self.is_broken();
        let client = &mut self.clients[client];
        if client.has_ended {
            return;
        }
        let bytes = client.next_bytes(count);
        let writer = client.writer.as_mut().expect("the half, until the end");
        match Pin::new(writer).poll_write(&mut Context::from_waker(Waker::noop()), &bytes) {
            Poll::Ready(Ok(written)) => {
                assert!(written > 0, "a write of {count} bytes took none");
                client.note_sent(&bytes[..written]);
            }
            Poll::Ready(Err(error)) => assert!(is_broken, "a write failed: {error}"),
            Poll::Pending => assert!(!client.on_the_way.is_empty(), "a write waits, and nothing is on its way"),
        }
    }

    /// Polls a read once.
    async fn read(&mut self, reader: usize, count: usize) {
        settle().await;
        let (is_broken, has_failed) = (self.is_broken(), self.has_failed.load(Ordering::Relaxed));
        let [one, two] = &mut self.clients;
        let (client, sender) = if reader == 0 { (one, two) } else { (two, one) };
        let Some(reader) = &mut client.reader else { return };
        let mut bytes = vec![0; count];
        // A half that is dropped closes its stream by one call, which a rough stream may interrupt.
        let may_wait = has_failed || sender.on_the_way.is_empty() && !sender.has_ended;
        match Pin::new(reader).poll_read(&mut Context::from_waker(Waker::noop()), &mut bytes) {
            Poll::Ready(Ok(0)) => {
                assert!(is_broken || sender.has_ended && sender.on_the_way.is_empty(), "the stream has ended early");
            }
            Poll::Ready(Ok(read)) => sender.expect(&bytes[..read]),
            Poll::Ready(Err(error)) => panic!("a read failed: {error}"),
            Poll::Pending => assert!(may_wait, "a read waits, and bytes or the end are on their way"),
        }
    }

    /// Writes and reads at the same time. The reads get what was on its way, too.
    async fn transfer(&mut self, sender: usize, count: usize) {
        if self.is_broken() || self.clients[sender].has_ended {
            return;
        }
        let [one, two] = &mut self.clients;
        let (sender, receiver) = if sender == 0 { (one, two) } else { (two, one) };
        let bytes = sender.next_bytes(count);
        sender.note_sent(&bytes);
        let mut received = vec![0; sender.on_the_way.len()];
        let (Some(writer), Some(reader)) = (&mut sender.writer, &mut receiver.reader) else { return };
        let both = zip(writer.write_all(&bytes), reader.read_exact(&mut received));
        let both = timeout(PATIENCE, both).await;
        if self.has_failed.load(Ordering::Relaxed) {
            self.leave();
            return;
        }
        let (written, read) = both.expect("bytes that are written and read at the same time arrive");
        written.expect("the transfer is written");
        read.expect("the transfer is read");
        sender.expect(&received);
    }

    fn leave(&mut self) {
        for client in &mut self.clients {
            (client.reader, client.writer, client.has_ended) = (None, None, true);
        }
    }

    /// Both clients end, and read what is left.
    async fn finish(&mut self) {
        if self.is_broken() {
            self.leave();
            if let Some(middle) = self.middle.take() {
                let _ = timeout(PATIENCE, middle).await.expect("the middle ends, since both clients have left");
            }
            return;
        }
        let mut rest = [Vec::new(), Vec::new()];
        let [one, two] = &mut self.clients;
        (one.writer, two.writer) = (None, None);
        let [first, second] = &mut rest;
        let (one_reader, two_reader) = (one.reader.as_mut().expect("a reader"), two.reader.as_mut().expect("a reader"));
        let both = timeout(PATIENCE, zip(two_reader.read_to_end(first), one_reader.read_to_end(second))).await;
        if self.has_failed.load(Ordering::Relaxed) {
            return;
        }
        let (forth, back) = both.expect("both clients have ended, so both streams end");
        assert_eq!((forth.expect("a read"), back.expect("a read")), (one.on_the_way.len(), two.on_the_way.len()));
        one.expect(&rest[0]);
        two.expect(&rest[1]);
        if let Some(middle) = self.middle.take() {
            let copied = timeout(PATIENCE, middle).await.expect("the middle ends");
            let copied = copied.expect("no panic").expect("no error");
            assert_eq!(copied, (one.sent, two.sent), "the copies miscount");
        }
    }
}

/// Waits until every task waits.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}
