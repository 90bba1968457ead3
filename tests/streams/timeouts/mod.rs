//! The read, write and idle timeouts of a stream. They are never early, never replace bytes that are there, and reach
//! the waiting task wherever it runs.
//!
//! Most laws hold for each timeout and each operation that it bounds, see [`CASES`], and are tested on a paused clock.
//! The test acts as the executor: it polls with a counting waker and advances the time.

mod deadlines;
mod idle;
mod leftovers;
mod operations;
mod settings;
mod stress;
mod tasks;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_lite::future;
use kittiwake::io::{AsyncRead, AsyncWrite};
use kittiwake::spawn;
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::{Duration, Instant, advance};
use socket2::SockRef;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

const SECOND: Duration = Duration::from_secs(1);

const MS: Duration = Duration::from_millis(1);

/// The timeout that most tests set.
const TEN: Duration = Duration::from_secs(10);

/// One of the three timeouts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Idle,
}

impl Kind {
    fn set(self, stream: &Stream, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Read => stream.set_read_timeout(timeout),
            Self::Write => stream.set_write_timeout(timeout),
            Self::Idle => stream.set_idle_timeout(timeout),
        }
    }

    fn get(self, stream: &Stream) -> Option<Duration> {
        match self {
            Self::Read => stream.read_timeout(),
            Self::Write => stream.write_timeout(),
            Self::Idle => stream.idle_timeout(),
        }
    }

    /// The word that identifies this timeout in an error message.
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Idle => "idle",
        }
    }
}

/// An operation of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    /// Polls the operation once with a large buffer. Tests of their own cover small reads and writes.
    fn poll(self, waker: &Waker, stream: &Stream) -> Poll<io::Result<usize>> {
        match self {
            Self::Read => poll_read(waker, stream, &mut [0; 64]),
            Self::Write => poll_write(waker, stream, &[0; 1 << 14]),
        }
    }

    async fn operate(self, stream: &Stream) -> io::Result<usize> {
        poll_fn(|cx| self.poll(cx.waker(), stream)).await
    }

    /// Runs the operation as a task that also returns the time of its end.
    fn spawn(self, stream: &Arc<Stream>) -> Waiter {
        let stream = stream.clone();
        spawn(async move { (self.operate(&stream).await, Instant::now()) })
    }
}

/// The task of an operation. It also returns the time of its end.
type Waiter = JoinHandle<(io::Result<usize>, Instant)>;

/// A timeout, and an operation that it bounds.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    direction: Direction,
}

const CASES: [Case; 4] = [
    Case { kind: Kind::Read, direction: Direction::Read },
    Case { kind: Kind::Write, direction: Direction::Write },
    Case { kind: Kind::Idle, direction: Direction::Read },
    Case { kind: Kind::Idle, direction: Direction::Write },
];

impl Case {
    fn set(self, stream: &Stream, timeout: Option<Duration>) -> io::Result<()> {
        self.kind.set(stream, timeout)
    }
}

/// Runs `test` for each of [`CASES`] on a paused clock of its own.
#[track_caller]
fn in_each_case<F: Future<Output = ()> + 'static>(test: fn(Case) -> F) {
    for case in CASES {
        // libtest prints this if the test fails.
        println!("{case:?}");
        run_paused(move || test(case));
    }
}

/// A stream whose operation must wait, and its peer.
struct Link {
    case: Case,
    stream: Arc<Stream>,
    /// The same socket as a std stream, which operates without the knowledge of `stream`.
    twin: Peer,
    peer: Peer,
    waker: Waker,
    wakes: Arc<Wakes>,
}

impl Link {
    async fn new(case: Case, timeout: Duration) -> Self {
        let (stream, peer) = pair_with_std();
        peer.set_nonblocking(true).expect("non-blocking");
        let (waker, wakes) = counting_waker();
        let link = Self { case, twin: twin(&stream), stream: Arc::new(stream), peer, waker, wakes };
        link.use_up().await;
        case.set(&link.stream, Some(timeout)).expect("a timeout");
        link
    }

    fn poll(&self) -> Poll<io::Result<usize>> {
        self.case.direction.poll(&self.waker, &self.stream)
    }

    /// Polls an operation, which has to wait. On a slow machine a short timeout may be over within the poll.
    #[track_caller]
    fn begin_wait(&self) {
        while let Poll::Ready(result) = self.poll() {
            let error = result.expect_err("the operation must wait");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{:?}: {error}", self.case);
        }
    }

    fn poll_vectored(&self) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(&self.waker);
        let mut stream = &*self.stream;
        match self.case.direction {
            Direction::Read => {
                let (mut head, mut tail) = ([0; 8], [0; 64]);
                let mut bufs = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
                Pin::new(&mut stream).poll_read_vectored(&mut cx, &mut bufs)
            }
            Direction::Write => {
                let bufs = [IoSlice::new(&[0; 8]), IoSlice::new(&[0; 1 << 14])];
                Pin::new(&mut stream).poll_write_vectored(&mut cx, &bufs)
            }
        }
    }

    async fn operate(&self) -> io::Result<usize> {
        self.case.direction.operate(&self.stream).await
    }

    fn spawn(&self) -> Waiter {
        self.case.direction.spawn(&self.stream)
    }

    /// Calls `try_read` or `try_write`.
    fn attempt(&self) -> io::Result<usize> {
        match self.case.direction {
            Direction::Read => self.stream.try_read(&mut [0; 64]),
            Direction::Write => self.stream.try_write(&[0; 1 << 14]),
        }
    }

    #[track_caller]
    fn attempt_finds_nothing(&self) {
        let error = self.attempt().expect_err("the operation must wait");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    }

    /// Lets the operation proceed: sends bytes, or makes room in the send buffer. Returns once the kernel has them.
    async fn serve(&self) {
        until_yielding(self.serving()).await;
    }

    /// Like [`serve`](Link::serve), without yielding: the reactor of this thread gets no turn.
    fn serve_at_once(&self) {
        let mut serving = self.serving();
        while !serving() {
            std::thread::yield_now();
        }
    }

    /// Serves an operation that consumes the bytes or the room at once. Only `done` can tell that it has.
    async fn serve_until(&self, done: impl Fn() -> bool) {
        let mut serving = self.serving();
        until_yielding(|| {
            serving();
            done()
        })
        .await;
    }

    /// Starts to serve. The returned closure continues, and returns true once the operation can proceed.
    fn serving(&self) -> impl FnMut() -> bool + '_ {
        let mut buf = vec![0; 1 << 20];
        if self.case.direction == Direction::Read {
            (&self.peer).write_all(b"four").expect("the peer writes");
        }
        move || match self.case.direction {
            Direction::Read => has_input(&self.twin),
            Direction::Write => {
                while (&self.peer).read(&mut buf).is_ok_and(|read| read > 0) {}
                (&self.twin).write(&[0]).is_ok()
            }
        }
    }

    /// Serves the stream and completes the operation once the reactor has reported it.
    async fn serve_and_complete(&self) {
        self.serve().await;
        let mut poll = self.poll();
        while poll.is_pending() {
            yield_now().await;
            poll = self.poll();
        }
        assert_done(poll);
    }

    /// Makes the next operation wait: fills the send buffer, which stays full until the peer reads. The operation
    /// itself has read all bytes.
    async fn use_up(&self) {
        let mut full_rounds = 0;
        while self.case.direction == Direction::Write && full_rounds < 3 {
            full_rounds += 1;
            while (&self.twin).write(&[0; 1 << 16]).is_ok() {
                full_rounds = 0;
            }
            // This byte from the peer acknowledges the bytes that have arrived. Without a byte to send, the peer's
            // kernel acknowledges them later, which makes room at a random time.
            if (&self.peer).write(b"x").is_ok() {
                until_yielding(|| (&self.twin).read(&mut [0; 64]).is_ok()).await;
            }
        }
    }

    /// Operates until a timeout ends, and returns the length of the last wait. Some operations succeed first: the
    /// kernel may free room after the buffer was full.
    async fn time_out(&self) -> Duration {
        loop {
            let start = std::time::Instant::now();
            match self.operate().await {
                Ok(_) => continue,
                Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{:?}: {error}", self.case),
            }
            return start.elapsed();
        }
    }

    /// Fails unless a wait times out at `deadline`. Returns the error message.
    async fn fails_at(&self, deadline: Instant) -> String {
        assert!(self.poll().is_pending(), "the operation must wait");
        advance_to(deadline - MS).await;
        match self.poll() {
            Poll::Pending => {}
            Poll::Ready(result) => panic!("{:?}: the operation failed early: {result:?}", self.case),
        }
        let before = self.wakes.get();
        advance_to(deadline + TICK).await;
        assert!(self.wakes.get() > before, "{:?}: the deadline must wake the task", self.case);
        assert_timed_out(self.poll())
    }

    /// Fails if a wait times out.
    async fn waits_for_ever(&self) {
        assert!(self.poll().is_pending(), "the operation must wait");
        let before = self.wakes.get();
        advance(24 * HOUR).await;
        assert_eq!(self.wakes.get(), before, "{:?}: the task was woken", self.case);
        assert!(self.poll().is_pending(), "{:?}: the operation must wait for ever", self.case);
    }

    /// Drops everything except the stream and its peer.
    fn into_parts(self) -> (Stream, Peer) {
        (Arc::into_inner(self.stream).expect("this is the last reference"), self.peer)
    }
}

/// The same socket as a std stream.
fn twin(stream: &Stream) -> Peer {
    stream.as_fd().try_clone_to_owned().expect("a duplicate of the descriptor").into()
}

/// Whether bytes or the end can be read. std has no peek for Unix streams.
fn has_input(socket: &impl AsFd) -> bool {
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]).is_ok()
}

/// Yields until `condition` holds, in any executor.
async fn until_yielding(mut condition: impl FnMut() -> bool) {
    while !condition() {
        future::yield_now().await;
    }
}

async fn advance_to(moment: Instant) {
    advance(moment - Instant::now()).await;
}

/// Fails unless the operation in this task times out at `deadline`. The task must wait already.
async fn fails_in_task_at(waiter: Waiter, deadline: Instant) {
    advance_to(deadline - MS).await;
    settle().await;
    assert!(!waiter.is_finished(), "the task ended early: {:?}", waiter.await);
    advance_to(deadline + TICK).await;
    settle().await;
    assert!(waiter.is_finished(), "the deadline must wake the task");
    let (result, at) = waiter.await.expect("the waiter");
    assert_timed_out(Poll::Ready(result));
    assert_at(at, deadline);
}

/// Returns the error message.
#[track_caller]
fn assert_timed_out(poll: Poll<io::Result<usize>>) -> String {
    match poll {
        Poll::Ready(Err(error)) if error.kind() == ErrorKind::TimedOut => error.to_string(),
        other => panic!("the operation must time out, and not return {other:?}"),
    }
}

#[track_caller]
fn assert_done(poll: Poll<io::Result<usize>>) {
    assert!(matches!(poll, Poll::Ready(Ok(1..))), "the operation must proceed, and not return {poll:?}");
}
