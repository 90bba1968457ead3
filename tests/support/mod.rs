//! Helpers that the tests share: bounds on waiting, pairs of sockets, counting wakers.
//!
//! Every test runs inside [`within`] or [`run`]. A lost wake-up therefore fails the test with a message instead of
//! hanging the test run. A test that takes long on a busy machine calls [`progress`] for each step. The bound is then
//! on the time since the last step, and not on the whole test.

// Each test crate compiles this module and uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod baseline;

use std::future::{Future, poll_fn};
use std::io::Read;
use std::mem::{MaybeUninit, replace};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use kittiwake::inspect::TaskDump;
use kittiwake::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use kittiwake::net::{Failure, TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Handle, Runtime, WorkerMetrics};
use kittiwake::task::consume_budget;
use socket2::SockRef;

/// Longer than any test takes on a slow machine, and than any step of a test that calls [`progress`]. Only a hang reaches
/// this limit.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The steps of all tests of this process. Tests that run side by side share it: a hang of one shows once the others
/// have ended.
static PROGRESS: AtomicUsize = AtomicUsize::new(0);

/// Says that a test has made a step: from now on [`within`] waits for [`PATIENCE`] again. It costs one atomic addition.
///
/// A loop that ends only when a condition holds must not call this, or a lost wake-up would never fail the test.
pub fn progress() {
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

/// Runs `test` on a thread of its own. Fails if it neither ends nor makes [`progress`] within [`PATIENCE`], or if it
/// leaves a descriptor, a thread or a byte on the heap, where this can be seen. There it runs several times.
#[track_caller]
pub fn within<T: Send + 'static>(test: impl FnOnce() -> T + Clone + Send + 'static) -> T {
    // A value may keep descriptors and bytes.
    if size_of::<T>() > 0 {
        return bounded(test);
    }
    baseline::leaves_nothing(|| bounded(test.clone()))
}

/// Like [`within`], for a test that cannot run twice in a process. The heap is not looked at. The value must keep no
/// descriptor.
#[track_caller]
pub fn within_once<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    baseline::leaves_nothing_open(|| bounded(test))
}

/// Like [`within`], for a test that leaves something on purpose.
#[track_caller]
pub fn bounded<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(std::thread::current().name().unwrap_or("test").to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
            let _ = done.send(());
            result
        })
        .expect("a thread for the test");
    let (mut steps, mut since) = (PROGRESS.load(Ordering::Relaxed), Instant::now());
    // This thread looks seldom, because some tests count what their process does.
    while waiting.recv_timeout(PATIENCE / 6).is_err() {
        let now = PROGRESS.load(Ordering::Relaxed);
        if now != steps {
            (steps, since) = (now, Instant::now());
        }
        let waited = since.elapsed();
        assert!(waited < PATIENCE, "the test has made no progress for {waited:?}: something was not woken");
    }
    match thread.join().expect("the thread catches its own panics") {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs the future that `test` makes in a runtime, with the bound of [`within`].
#[track_caller]
pub fn run<F>(test: impl FnOnce() -> F + Clone + Send + 'static) -> F::Output
where
    F: Future,
    F::Output: Send + 'static,
{
    within(move || kittiwake::block_on(test()))
}

/// A runtime with one worker: the thread that calls its `block_on`.
pub fn one_worker() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime of one worker")
}

/// A runtime of one worker whose clock is paused.
pub fn paused_runtime() -> Runtime {
    Builder::new_current_thread().start_paused(true).build().expect("a runtime with a paused clock")
}

/// A runtime that has at most `limit` blocking threads.
pub fn blocking_threads(limit: usize) -> Runtime {
    Builder::new_multi_thread().max_blocking_threads(limit).build().expect("a runtime with few blocking threads")
}

/// A listener on a port that the kernel chose, and its address.
pub async fn listener() -> (TcpListener, SocketAddr) {
    listener_at("127.0.0.1:0").await
}

/// As [`listener`], at an [`own_address`]: for a test that closes the port, and connects to it or binds it again.
pub async fn own_listener() -> (TcpListener, SocketAddr) {
    listener_at(&own_address()).await
}

async fn listener_at(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    (listener, address)
}

/// An address with port 0 on which no other test listens. A port that a test closes there stays closed: on
/// 127.0.0.1 the kernel would soon give it to another test.
pub fn own_address() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if !cfg!(target_os = "linux") {
        return "127.0.0.1:0".to_owned();
    }
    let number = std::process::id() as usize * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}:0", 1 + (number >> 16) % 254, (number >> 8) % 256, 1 + number % 254)
}

/// An address whose port is closed. No other test opens it.
#[track_caller]
pub fn closed_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind(own_address()).expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    drop(listener);
    assert_refuses(address);
    address
}

/// Two ends of one connection, both of kittiwake: the client's and the server's.
pub async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let client = TcpStream::connect(address).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    (client, server)
}

/// Two ends of one connection: kittiwake's, and a blocking one of std for the peer.
pub fn pair_with_std() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    let peer = std::net::TcpStream::connect(address).expect("connect");
    peer.set_read_timeout(Some(PATIENCE)).expect("a bound on the peer's reads");
    peer.set_write_timeout(Some(PATIENCE)).expect("a bound on the peer's writes");
    let (ours, _) = listener.accept().expect("accept");
    (TcpStream::from_std(ours).expect("from_std"), peer)
}

/// Closes a connection by a reset instead of an orderly shutdown.
pub fn reset(stream: std::net::TcpStream) {
    will_reset(&stream);
    drop(stream);
}

/// Makes the close of this connection a reset. An orderly close keeps the port busy for a minute, and after some
/// ten thousand of them the kernel has no port left for the other tests.
pub fn will_reset(stream: &impl AsFd) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER of zero");
}

/// Reads from a peer until the end of the stream.
pub fn read_all(mut peer: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).expect("the peer reads to an end");
    bytes
}

/// Counts the wakes of a waker.
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

/// The errors that a server's `on_error` has received, as they are printed.
#[derive(Clone, Debug, Default)]
pub struct ErrorLog(Arc<Mutex<Vec<String>>>);

impl ErrorLog {
    /// The function for `on_error`.
    pub fn listen<A: std::fmt::Debug>(&self) -> impl Fn(&Failure<'_, A>) + Send + Sync + 'static {
        let errors = self.0.clone();
        move |error| errors.lock().unwrap().push(error.to_string())
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn sorted(&self) -> Vec<String> {
        let mut errors = self.0.lock().unwrap().clone();
        errors.sort();
        errors
    }

    /// Whether one of the errors contains `part`.
    pub fn has(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|error| error.contains(part))
    }

    #[track_caller]
    pub fn expect_none(&self) {
        assert_eq!(*self.0.lock().unwrap(), Vec::<String>::new());
    }
}

/// A waker that counts its wakes. `Arc::strong_count` of the second value is one more than the number of wakers.
pub fn counting_waker() -> (Waker, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    (Waker::from(wakes.clone()), wakes)
}

/// Gives every other task and the reactor several turns. A test calls this to show that something does *not*
/// happen. It waits for what should happen by [`until`] or by the event itself.
pub async fn settle() {
    for _ in 0..300 {
        kittiwake::task::yield_now().await;
    }
}

/// Asserts that this task runs although these calls go on for ever, and that they can be cancelled.
pub async fn assert_give_way<T>(calls: impl IntoIterator<Item = kittiwake::task::JoinHandle<T>>) {
    for _ in 0..10 {
        kittiwake::task::yield_now().await;
    }
    for call in calls {
        call.abort();
        assert!(call.await.is_err_and(|error| error.is_cancelled()), "an endless call has ended");
    }
}

/// Waits until no client can connect to `address`, whose listener must have been closed before. The kernel keeps a closed
/// listener for as long as a child has a copy of its descriptor. Another test may be starting one: each child has copies
/// of all descriptors until its program runs.
#[track_caller]
pub fn assert_refuses(address: SocketAddr) {
    let end = Instant::now() + PATIENCE / 6;
    loop {
        let connected = std::net::TcpStream::connect_timeout(&address, PATIENCE / 6);
        if matches!(&connected, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return;
        }
        assert!(Instant::now() < end, "{address} must refuse connections: {connected:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Reads ten pieces of what the peer sends without end, and advances the paused clock by `step` after each. The peer's
/// send buffer, which is full at first, does not become writable by that.
pub async fn read_slowly(stream: &mut TcpStream, step: Duration) {
    stream.set_recv_buffer_size(256 << 10).expect("SO_RCVBUF");
    settle().await;
    // More than the kernels keep back before the receiver reports room and the sender frees it, and less than a third of
    // the send buffer, which is some 4 MB.
    let mut piece = vec![0; 512 << 10];
    for _ in 0..10 {
        // The peer's kernel learns at once of what has come. This clock says nothing to the kernel. Only Linux can.
        let _ = stream.set_quickack(true);
        AsyncReadExt::read_exact(stream, &mut piece).await.expect("the peer goes on");
        settle().await;
        kittiwake::time::advance(step).await;
        settle().await;
    }
}

/// Yields until `condition` holds. [`within`] bounds the wait.
pub async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        kittiwake::task::yield_now().await;
    }
}

/// Polls a future once with the given waker.
pub fn poll_with<F: Future + Unpin>(waker: &Waker, future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Polls a read once with the given waker.
pub fn poll_read<S>(waker: &Waker, mut stream: &S, buf: &mut [u8]) -> Poll<std::io::Result<usize>>
where
    for<'a> &'a S: AsyncRead,
{
    Pin::new(&mut stream).poll_read(&mut Context::from_waker(waker), buf)
}

/// Polls a write once with the given waker.
pub fn poll_write<S>(waker: &Waker, mut stream: &S, buf: &[u8]) -> Poll<std::io::Result<usize>>
where
    for<'a> &'a S: AsyncWrite,
{
    Pin::new(&mut stream).poll_write(&mut Context::from_waker(waker), buf)
}

/// Opens the reactor of the current-thread runtime on this thread, which takes descriptors.
pub async fn open_reactor() {
    let (ours, _peer) = pair_with_std();
    assert!(futures_lite::future::poll_once(ours.readable()).await.is_none(), "the peer sends nothing");
}

/// The number of sockets that are registered with the runtime of this thread.
#[track_caller]
pub fn sources() -> usize {
    kittiwake::runtime::Handle::current().metrics().sources_registered()
}

/// Bytes that differ from place to place, so that a lost, doubled or moved byte shows.
pub fn pattern(length: usize) -> Vec<u8> {
    const PERIOD: usize = 251 * 241;
    let period: Vec<u8> = (0..PERIOD).map(|at| ((at % 251) ^ (at / 251)) as u8).collect();
    let mut bytes = period.repeat(length.div_ceil(PERIOD));
    bytes.truncate(length);
    bytes
}

/// A runtime that runs on a thread of its own until it is stopped.
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
            // The error says that `stop` dropped the sender.
            let _ = runtime.block_on(stopped.recv());
        });
        Self { handle, stop, thread }
    }

    pub fn handle(&self) -> &kittiwake::runtime::Handle {
        &self.handle
    }

    /// Runs `future` as a task of this runtime and waits for it on the calling thread.
    #[track_caller]
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        futures_lite::future::block_on(self.handle.spawn(future)).expect("the task on the other runtime")
    }

    /// Ends the runtime and waits until its thread has ended.
    #[track_caller]
    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().expect("the runtime's thread");
    }
}

/// Runs the test `name` of this test program again in a child process that may have `descriptors` open, and fails
/// if the child fails. `is_child` is true in the child. The name includes the module path.
#[track_caller]
pub fn in_child_with_descriptors(name: &str, descriptors: u32) {
    // Rust has no safe way to change a process's limits, but every shell has one.
    let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let output = as_child(name, std::process::Command::new("sh").args(["-c", &script])).output().expect("sh runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed with {descriptors} descriptors:\n{out}\n{err}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
    baseline::pass_on(&err);
}

/// Runs `test` in a process that runs nothing else and has few descriptors. The test's counts are therefore its
/// own, and it can use up all descriptors.
#[track_caller]
pub fn in_own_process(name: &str, test: impl FnOnce() + Clone + Send + 'static) {
    if is_child() {
        return within(test);
    }
    in_child_with_descriptors(name, 512);
}

/// Runs `test` in a process of its own with a network of its own, in which only loopback is up. The test may change
/// the settings of that network in `/proc/sys/net`. Where the system allows no such network, the test is skipped and
/// says so.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn in_own_network(name: &str, test: impl FnOnce() + Clone + Send + 'static) {
    in_network(name, "test -w /proc/sys/net/ipv4/ip_local_port_range", || within(test));
}

/// Like [`in_own_network`], after `setup`, a command of the shell, has succeeded there, and without a bound on the time.
/// Where this cannot be done, or the test prints [`SKIP`], the test is skipped and says so.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn in_network(name: &str, setup: &str, test: impl FnOnce()) {
    if is_child() {
        return test();
    }
    // The status of a set-up that has failed, and of a system that allows no such network.
    let script = format!("{{ ip link set lo up && {setup}; }} >&2 || exit 77; exec \"$0\" \"$@\"");
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--map-root-user", "--net", "--", "sh", "-c", &script]);
    let output = match as_child(name, &mut unshare).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return eprintln!("{name} is skipped: unshare is missing");
        }
        output => output.expect("unshare runs"),
    };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let cannot = output.status.code() == Some(77) || err.starts_with("unshare:");
    if let Some(why) = if cannot { err.lines().last() } else { err.lines().find(|line| line.starts_with(SKIP)) } {
        return eprintln!("{name} is skipped: {why}");
    }
    assert!(output.status.success(), "{name} failed in a network of its own:\n{out}\n{err}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
    baseline::pass_on(&err);
}

/// A child prints this, and the reason, if its test cannot run.
pub const SKIP: &str = "this test is skipped";

/// Adds the test `name`, as a child, to the command that runs it.
pub fn as_child<'a>(name: &str, command: &'a mut std::process::Command) -> &'a mut std::process::Command {
    command.arg(std::env::current_exe().expect("the path of this test program"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1")
}

/// The system's code of an error. The error of a bind or a connect has it in its `AddrError`.
pub fn errno(error: &std::io::Error) -> Option<i32> {
    kittiwake::net::AddrError::of(error).map_or(error.raw_os_error(), kittiwake::net::AddrError::raw_os_error)
}

/// The number of entries in a directory of `/proc/self`.
pub fn count_of(folder: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{folder}")).expect("/proc").count()
}

/// True in a process that a test started, to limit or disturb it.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

pub const CHILD: &str = "KITTIWAKE_TEST_CHILD";

/// The flags of an open descriptor (`O_NONBLOCK`, `O_CLOEXEC`), as the kernel reports them.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn descriptor_flags(socket: &impl std::os::fd::AsRawFd) -> i32 {
    let path = format!("/proc/self/fdinfo/{}", socket.as_raw_fd());
    let info = std::fs::read_to_string(path).expect("the kernel's record of the descriptor");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("the flags of the descriptor");
    i32::from_str_radix(flags.trim(), 8).expect("an octal number")
}

/// Like [`run`], with a paused clock: it advances only when every task waits.
#[track_caller]
pub fn run_paused<F>(test: impl FnOnce() -> F + Clone + Send + 'static) -> F::Output
where
    F: Future,
    F::Output: Send + 'static,
{
    within(move || paused_runtime().block_on(test()))
}

/// Returns the message of the panic of `f`. Fails if `f` does not panic.
#[track_caller]
pub fn panic_of(f: impl FnOnce()) -> String {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    let panic = result.expect_err("the call panics");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().expect("a panic with a sentence")).to_owned(),
    }
}

/// How far a paused clock may be past a deadline: the runtime rounds timers up to this.
pub const TICK: Duration = Duration::from_nanos(1 << 16);

/// Fails unless the clock is at `deadline`, or within the tick after it.
#[track_caller]
pub fn assert_at(now: kittiwake::time::Instant, deadline: kittiwake::time::Instant) {
    assert!(now >= deadline, "the timer ended {:?} early", deadline - now);
    assert!(now - deadline < TICK, "the clock is {:?} past the deadline, which is more than a tick", now - deadline);
}

// ---- several workers ----

/// A runtime with `count` workers on threads of their own.
#[track_caller]
pub fn workers(count: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(count).build().expect("a runtime of several workers")
}

/// Waits until the figures of all workers stop changing, and returns them, without the time that they sleep.
pub fn quiet_metrics(runtime: &Runtime) -> Vec<WorkerMetrics> {
    let look = || {
        let mut workers = runtime.handle().metrics().workers().to_vec();
        // This one grows while a worker sleeps.
        workers.iter_mut().for_each(|worker| worker.parked = Duration::ZERO);
        workers
    };
    let mut last = look();
    loop {
        // An idle worker searches for work for less than this before it sleeps.
        std::thread::park_timeout(Duration::from_millis(20));
        let now = look();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Makes dumps on this thread until `look` finds something.
#[track_caller]
pub fn seen<T>(handle: &Handle, law: &str, mut look: impl FnMut(&TaskDump) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE / 2;
    loop {
        let dump = handle.tasks();
        if let Some(found) = look(&dump) {
            return found;
        }
        assert!(Instant::now() < end, "no dump shows that {law}:\n{dump:#}");
        std::thread::yield_now();
    }
}

/// The calling thread.
pub fn here() -> ThreadId {
    std::thread::current().id()
}

/// A worker whose task blocks until this value is dropped.
pub struct BlockedWorker {
    pub thread: ThreadId,
    _open: mpsc::Sender<()>,
}

/// Blocks `count` workers of the runtime.
#[track_caller]
pub fn block_workers(handle: &Handle, count: usize) -> Vec<BlockedWorker> {
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (open, closed) = mpsc::channel::<()>();
            let (started, has_started) = mpsc::channel();
            drop(handle.spawn(async move {
                started.send(here()).expect("the test waits");
                let _ = closed.recv();
            }));
            (open, has_started)
        })
        .collect();
    tasks
        .into_iter()
        .map(|(_open, has_started)| BlockedWorker {
            thread: has_started.recv().expect("the task gets a worker"),
            _open,
        })
        .collect()
}

/// Calls `work` on each of the runtime's `count` workers at the same time, and returns the results. The argument is
/// an index from 0 to `count - 1`; which worker gets which index is undefined.
#[track_caller]
pub fn on_each_worker<T: Send + 'static>(
    handle: &Handle,
    count: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    // Each task waits at the barrier until each of the others has a worker too.
    let (barrier, work) = (Arc::new(Barrier::new(count)), Arc::new(work));
    let tasks: Vec<_> = (0..count)
        .map(|index| {
            let (barrier, work) = (barrier.clone(), work.clone());
            handle.spawn(async move {
                barrier.wait();
                work(index)
            })
        })
        .collect();
    tasks.into_iter().map(|task| futures_lite::future::block_on(task).expect("the task runs")).collect()
}

/// One local task on each worker that answers requests. A task that waits for the answer is woken by that worker,
/// and so continues on it.
#[derive(Clone)]
pub struct WorkerEchoes(Vec<async_channel::Sender<async_channel::Sender<()>>>);

impl WorkerEchoes {
    #[track_caller]
    pub fn start(handle: &Handle, count: usize) -> Self {
        Self(on_each_worker(handle, count, |_| {
            let (ask, asked) = async_channel::unbounded::<async_channel::Sender<()>>();
            drop(kittiwake::spawn_local(async move {
                while let Ok(answer) = asked.recv().await {
                    // The requester may be gone.
                    let _ = answer.try_send(());
                }
            }));
            ask
        }))
    }

    /// Moves the calling task to one of the workers, unless another worker steals it. `turn` selects the worker.
    pub async fn move_to(&self, turn: usize) {
        let (answer, answered) = async_channel::bounded(1);
        self.0[turn % self.0.len()].try_send(answer).expect("the answering task of this worker is alive");
        answered.recv().await.expect("the worker answers");
    }
}

// ---- bodies and contents of tasks ----

/// Keeps `value` and never ends.
pub async fn hold<T>(value: T) {
    std::future::pending::<()>().await;
    drop(value);
}

/// Is always ready and never ends.
pub async fn busy() {
    loop {
        kittiwake::task::yield_now().await;
    }
}

/// Uses up the budget of a poll, whatever was spent of it, and so gives way once.
pub async fn use_up_budget() {
    let mut endless = pin!(async {
        loop {
            consume_budget().await;
        }
    });
    let mut is_used_up = false;
    poll_fn(|cx| if replace(&mut is_used_up, true) { Poll::Ready(()) } else { endless.as_mut().poll(cx) }).await;
}

/// Computes for `duration`.
pub fn spin(duration: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Counts the drops of its clones of one counter.
pub struct Counted(pub Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Calls a closure when it is dropped.
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

/// Blocks until the kernel has bytes to read. The stream itself does not learn of them.
pub fn wait_readable(stream: &impl AsFd) {
    let socket = SockRef::from(stream);
    socket.set_nonblocking(false).expect("blocking");
    socket.peek(&mut [MaybeUninit::uninit()]).expect("peek");
    socket.set_nonblocking(true).expect("non-blocking");
}
