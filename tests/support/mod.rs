//! What the tests share: bounds on waiting, pairs of sockets, wakers that count.
//!
//! Every test runs inside [`within`] or [`run`], so that a lost wake-up is a failure with a
//! sentence, and not a test run that hangs.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unreachable_pub)]

use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Wake, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Handle, Runtime, WorkerMetrics};

/// Longer than anything here takes on a slow machine; only a hang meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a thread of its own and fails when it does not end in time.
#[track_caller]
pub fn within<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(std::thread::current().name().unwrap_or("test").to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
            let _ = done.send(());
            result
        })
        .expect("a thread for the test");
    let ended = waiting.recv_timeout(PATIENCE);
    assert!(ended.is_ok(), "the test still waits after {PATIENCE:?}: something was not woken");
    match thread.join().expect("the thread catches its own panics") {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs the future that `test` makes in a runtime, and fails when it does not end in time.
#[track_caller]
pub fn run<F>(test: impl FnOnce() -> F + Send + 'static) -> F::Output
where
    F: Future,
    F::Output: Send + 'static,
{
    within(move || kittiwake::block_on(test()))
}

/// A runtime whose only worker is the thread that is in its `block_on`.
pub fn one_worker() -> Runtime {
    Builder::new().workers(1).build().expect("a runtime of one worker")
}

/// A listener on a port of the system's choice, and its address.
pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    (listener, address)
}

/// Where no other test listens, so that a port that is closed stays so: they are soon given away again. Port 0.
pub fn own_address() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if !cfg!(target_os = "linux") {
        return "127.0.0.1:0".to_owned();
    }
    let number = std::process::id() as usize * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}:0", 1 + (number >> 16) % 254, (number >> 8) % 256, 1 + number % 254)
}

/// Two ends of one connection, both ours: the client's and the server's.
pub async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let client = TcpStream::connect(address).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    (client, server)
}

/// Two ends of one connection: ours, and a blocking one of std's for a peer.
pub fn pair_with_std() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    let peer = std::net::TcpStream::connect(address).expect("connect");
    peer.set_read_timeout(Some(PATIENCE)).expect("a bound on the peer's reads");
    peer.set_write_timeout(Some(PATIENCE)).expect("a bound on the peer's writes");
    let (ours, _) = listener.accept().expect("accept");
    (TcpStream::from_std(ours).expect("from_std"), peer)
}

/// Closes a connection by a reset instead of an orderly end.
pub fn reset(stream: std::net::TcpStream) {
    will_reset(&stream);
    drop(stream);
}

/// Makes the coming end of this connection a reset. An orderly one keeps its port busy for a minute, and after some ten
/// thousand the system has none left for the other tests.
pub fn will_reset(stream: &impl std::os::fd::AsFd) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
}

/// Reads a peer to its end.
pub fn read_all(mut peer: std::net::TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).expect("the peer reads to an end");
    bytes
}

/// How often a waker was woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that counts. `Arc::strong_count` of the second tells how many wakers there are.
pub fn counting_waker() -> (Waker, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    (Waker::from(wakes.clone()), wakes)
}

/// Gives every other task and the reactor several turns. For showing that something does *not*
/// happen; what should happen is waited for by [`until`] or by its own event.
pub async fn settle() {
    for _ in 0..300 {
        kittiwake::task::yield_now().await;
    }
}

/// Gives way until `condition` holds. [`within`] bounds it.
pub async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        kittiwake::task::yield_now().await;
    }
}

/// Polls a future once with a waker of the test's own.
pub fn poll_with<F: Future + Unpin>(waker: &Waker, future: &mut F) -> std::task::Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(waker))
}

/// Polls a read once with a waker of the test's own.
pub fn poll_read(waker: &Waker, mut stream: &TcpStream, buf: &mut [u8]) -> std::task::Poll<std::io::Result<usize>> {
    let mut cx = std::task::Context::from_waker(waker);
    kittiwake::io::AsyncRead::poll_read(std::pin::Pin::new(&mut stream), &mut cx, buf)
}

/// Polls a write once with a waker of the test's own.
pub fn poll_write(waker: &Waker, mut stream: &TcpStream, buf: &[u8]) -> std::task::Poll<std::io::Result<usize>> {
    let mut cx = std::task::Context::from_waker(waker);
    kittiwake::io::AsyncWrite::poll_write(std::pin::Pin::new(&mut stream), &mut cx, buf)
}

/// How many sockets the runtime on this thread watches.
#[track_caller]
pub fn sources() -> usize {
    kittiwake::runtime::Handle::current().metrics().sources_registered()
}

/// Bytes that differ from place to place, so that a lost, doubled or moved one shows.
pub fn pattern(length: usize) -> Vec<u8> {
    const PERIOD: usize = 251 * 241;
    let period: Vec<u8> = (0..PERIOD).map(|at| ((at % 251) ^ (at / 251)) as u8).collect();
    let mut bytes = period.repeat(length.div_ceil(PERIOD));
    bytes.truncate(length);
    bytes
}

/// A runtime that turns on a thread of its own, until it is stopped.
pub struct Background {
    handle: kittiwake::runtime::Handle,
    stop: async_channel::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Background {
    pub fn start() -> Self {
        let (stop, stopped) = async_channel::bounded::<()>(1);
        let runtime = kittiwake::runtime::Runtime::new().expect("a runtime");
        let handle = runtime.handle().clone();
        let thread = std::thread::spawn(move || {
            // An error: the sender is gone.
            let _ = runtime.block_on(stopped.recv());
        });
        Self { handle, stop, thread }
    }

    pub fn handle(&self) -> &kittiwake::runtime::Handle {
        &self.handle
    }

    /// Runs `future` as a task of this runtime and waits for it here.
    #[track_caller]
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        futures_lite::future::block_on(self.handle.spawn(future)).expect("the task on the other runtime")
    }

    /// Ends the runtime and waits until it is gone.
    #[track_caller]
    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().expect("the runtime's thread");
    }
}

/// Runs the test `name` of this test program once more, in a process of its own that may have
/// `descriptors` open, and fails when it fails. In that process `is_child` holds.
#[track_caller]
pub fn in_child_with_descriptors(name: &str, descriptors: u32) {
    // Rust has no safe way to change a process's limits; every shell has.
    let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let program = std::env::current_exe().expect("the path of this test program");
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("sh runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed with {descriptors} descriptors:\n{out}\n{err}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
}

/// Runs `test` in a process in which nothing else runs, so that what it counts is its own, and which
/// has few descriptors, so that a test can use them all up.
#[track_caller]
pub fn in_own_process(name: &str, test: impl FnOnce() + Send + 'static) {
    if is_child() {
        return within(test);
    }
    in_child_with_descriptors(name, 512);
}

/// How many entries this process has in one of its folders in /proc.
pub fn count_of(folder: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{folder}")).expect("/proc").count()
}

/// Whether this process was started by a test, to be limited or disturbed.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

pub const CHILD: &str = "KITTIWAKE_TEST_CHILD";

/// The flags of an open descriptor (`O_NONBLOCK`, `O_CLOEXEC`), as the kernel shows them.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn descriptor_flags(socket: &impl std::os::fd::AsRawFd) -> i32 {
    let path = format!("/proc/self/fdinfo/{}", socket.as_raw_fd());
    let info = std::fs::read_to_string(path).expect("what the kernel knows of the descriptor");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
    i32::from_str_radix(flags.trim(), 8).expect("an octal number")
}

/// Like [`run`], with a clock that stands still at first and jumps when every task waits.
#[track_caller]
pub fn run_paused<F>(test: impl FnOnce() -> F + Send + 'static) -> F::Output
where
    F: Future,
    F::Output: Send + 'static,
{
    within(move || {
        let runtime = kittiwake::runtime::Builder::new().start_paused(true).build().expect("a runtime");
        runtime.block_on(test())
    })
}

/// What a panic of `f` says; fails if there is none.
#[track_caller]
pub fn panic_of(f: impl FnOnce()) -> String {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    let panic = result.expect_err("this should have panicked");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic with a sentence")).to_owned(),
    }
}

/// What a paused clock may be past a deadline: timers are rounded up to this.
pub const TICK: Duration = Duration::from_nanos(1 << 16);

/// Fails unless the clock is at `deadline`, or within the tick after it.
#[track_caller]
pub fn assert_at(now: kittiwake::time::Instant, deadline: kittiwake::time::Instant) {
    assert!(now >= deadline, "the timer ended {:?} early", deadline - now);
    assert!(now - deadline < TICK, "the clock is {:?} past the deadline, more than a tick", now - deadline);
}

/// Gives every task that is ready a few turns, without letting a paused clock jump: the caller never waits.
pub async fn settle_without_time() {
    for _ in 0..10 {
        kittiwake::task::yield_now().await;
    }
}

// ---- several workers ----

/// A runtime whose `count` workers are threads of their own.
#[track_caller]
pub fn workers(count: usize) -> Runtime {
    Builder::new().workers(count).build().expect("a runtime of several workers")
}

/// Waits until no figure of any worker moves any more, and gives them.
pub fn settled(runtime: &Runtime) -> Vec<WorkerMetrics> {
    let look = || runtime.handle().metrics().workers().to_vec();
    let mut last = look();
    loop {
        // Longer than an idle worker ever looks for others before it sleeps for good.
        std::thread::park_timeout(Duration::from_millis(20));
        let now = look();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// The thread that this runs on.
pub fn here() -> ThreadId {
    std::thread::current().id()
}

/// A worker that is stuck in a poll, until this is dropped.
pub struct Stuck {
    pub thread: ThreadId,
    _open: mpsc::Sender<()>,
}

/// Gets `count` workers of the runtime stuck.
#[track_caller]
pub fn stick(handle: &Handle, count: usize) -> Vec<Stuck> {
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (open, closed) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            drop(handle.spawn(async move {
                tell.send(here()).expect("the test listens");
                let _ = closed.recv();
            }));
            (open, told)
        })
        .collect();
    tasks.into_iter().map(|(_open, told)| Stuck { thread: told.recv().expect("it gets a worker"), _open }).collect()
}

/// Runs `what` on each of the runtime's `count` workers, at the same time, and gives what came of it. It is told
/// which of them it is, in no order.
#[track_caller]
pub fn on_each_worker<T: Send + 'static>(
    handle: &Handle,
    count: usize,
    what: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    // Nobody passes the barrier before each has a worker for itself.
    let (barrier, what) = (Arc::new(Barrier::new(count)), Arc::new(what));
    let tasks: Vec<_> = (0..count)
        .map(|index| {
            let (barrier, what) = (barrier.clone(), what.clone());
            handle.spawn(async move {
                barrier.wait();
                what(index)
            })
        })
        .collect();
    tasks.into_iter().map(|task| futures_lite::future::block_on(task).expect("it runs")).collect()
}

/// Somebody on each worker who wakes whoever asks, so that it goes on there.
#[derive(Clone)]
pub struct Guides(Vec<async_channel::Sender<async_channel::Sender<()>>>);

impl Guides {
    #[track_caller]
    pub fn start(handle: &Handle, count: usize) -> Self {
        Self(on_each_worker(handle, count, |_| {
            let (ask, asked) = async_channel::unbounded::<async_channel::Sender<()>>();
            drop(kittiwake::spawn_local(async move {
                while let Ok(wakes) = asked.recv().await {
                    // Whoever asked may be gone.
                    let _ = wakes.try_send(());
                }
            }));
            ask
        }))
    }

    /// Goes on on one of the workers, if no other takes the task from it. `turn` says on which.
    pub async fn go(&self, turn: usize) {
        let (wakes, woken) = async_channel::bounded(1);
        self.0[turn % self.0.len()].try_send(wakes).expect("its guide is there");
        woken.recv().await.expect("the guide answers");
    }
}

// ---- what tasks hold and do ----

/// Keeps `what`, and never ends.
pub async fn hold<T>(what: T) {
    std::future::pending::<()>().await;
    drop(what);
}

/// Is always ready to go on, and never ends.
pub async fn busy() {
    loop {
        kittiwake::task::yield_now().await;
    }
}

/// Counts how often one of its kind is dropped.
pub struct Counted(pub Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Does something when it is dropped.
pub struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnDrop<F> {
    pub fn new(action: F) -> Self {
        Self(Some(action))
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

/// Returns when the kernel has something to read, without the stream's hearing of it.
pub fn settle_readable(stream: &TcpStream) {
    let copy = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned().expect("a duplicate"));
    copy.set_nonblocking(false).expect("blocking");
    copy.peek(&mut [0]).expect("peek");
    copy.set_nonblocking(true).expect("non-blocking");
}
