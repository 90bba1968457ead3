//! Connections, tasks, timers and runtimes leave nothing: no byte on the heap, no slot, no descriptor, no thread.
//!
//! A test runs rounds, and compares what is there after the last one with what was there after the first ones. Each has
//! ten rounds. `KITTIWAKE_LEAKS_ROUNDS=100 cargo test --test leaks` makes that 10^5 connections, 10^6 tasks, 10^6 timers
//! and 2,000 runtimes.

mod support;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::{TcpListener, TcpStream, UdpSocket};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{JoinSet, yield_now};
use kittiwake::time::{Instant as RuntimeInstant, sleep, sleep_until, timeout};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::{
    bounded, counting_waker, in_child_with_descriptors, in_own_process, is_child, listener, will_reset, within,
};

/// The connections, the tasks, the timers and the runtimes of a round.
const CONNECTIONS: usize = 1_000;
const TASKS: usize = 10_000;
const TIMERS: usize = 10_000;
const RUNTIMES: usize = 20;

const HOUR: Duration = Duration::from_secs(3_600);

/// The number of connections that are open at the same time. One of each batch closes in an orderly way, the others
/// by a reset.
const BATCH: usize = 100;

/// Connections leave no byte, slot, descriptor, waker or task in a current-thread runtime.
#[test]
fn connections_leave_nothing_on_one_thread() {
    in_rounds("connections_leave_nothing_on_one_thread", support::one_worker, |runtime, held| {
        runtime.block_on(serve(CONNECTIONS, held));
    });
}

/// Connections leave no byte, slot, descriptor, waker or task in a runtime of several workers.
#[test]
fn connections_leave_nothing_on_workers() {
    in_rounds(
        "connections_leave_nothing_on_workers",
        || support::workers(2),
        |runtime, held| {
            runtime.block_on(serve(CONNECTIONS, held));
        },
    );
}

/// Tasks leave no byte, and nothing that they held, in a current-thread runtime.
#[test]
fn tasks_leave_nothing_on_one_thread() {
    in_rounds("tasks_leave_nothing_on_one_thread", support::one_worker, |runtime, held| {
        runtime.block_on(spawn_and_join(TASKS, held));
    });
}

/// Tasks leave no byte, and nothing that they held, in a runtime of several workers.
#[test]
fn tasks_leave_nothing_on_workers() {
    in_rounds(
        "tasks_leave_nothing_on_workers",
        || support::workers(2),
        |runtime, held| {
            runtime.block_on(spawn_and_join(TASKS, held));
        },
    );
}

/// Timers that fire, that are dropped and that are armed anew leave no byte and no slot in a current-thread runtime.
#[test]
fn timers_leave_nothing_on_one_thread() {
    in_rounds("timers_leave_nothing_on_one_thread", support::one_worker, |runtime, held| {
        runtime.block_on(arm(TIMERS, held));
    });
}

/// Timers leave no byte and no slot in a runtime of several workers, whichever worker has them.
#[test]
fn timers_leave_nothing_on_workers() {
    in_rounds(
        "timers_leave_nothing_on_workers",
        || support::workers(2),
        |runtime, held| {
            let tasks: Vec<_> = (0..4)
                .map(|_| {
                    let held = held.clone();
                    runtime.handle().spawn(async move { arm(TIMERS / 4, &held).await })
                })
                .collect();
            runtime.block_on(async {
                for task in tasks {
                    task.await.expect("the task ends");
                }
            });
        },
    );
}

/// A spike of closures leaves little memory, although no worker runs, and also if the runtime's thread is in no call.
#[test]
fn spike_of_closures_leaves_little_memory() {
    const CLOSURES: usize = 100_000;
    const SLACK: usize = 64 << 10;
    in_own_process("spike_of_closures_leaves_little_memory", || {
        for builder in [Builder::new_current_thread(), Builder::new_multi_thread().worker_threads(2)] {
            let runtime = builder.max_blocking_threads(2).build().expect("a runtime");
            let handle = runtime.handle();
            // Returns the bytes that are there when all closures wait.
            let spike = |closures: usize| {
                let (release, released) = mpsc::channel::<()>();
                let released = Arc::new(Mutex::new(released));
                for number in 0..closures {
                    let released = (number < 2).then(|| released.clone());
                    drop(handle.spawn_blocking(move || {
                        if let Some(released) = released {
                            let _ = released.lock().unwrap().recv();
                        }
                    }));
                }
                let bytes = support::baseline::heap_bytes();
                drop(release);
                while handle.metrics().blocking().idle_threads < 2 {
                    std::thread::yield_now();
                }
                bytes
            };
            spike(100);
            let before = support::baseline::heap_bytes();
            let most = spike(CLOSURES);
            assert!(most - before > 40 * CLOSURES, "the test needs a spike: {before} bytes, then {most}");
            support::progress();
            support::baseline::wait_for_heap(before + SLACK);
            support::progress();
        }
    });
}

/// Timers that fire in local tasks of a `block_on` call beside the workers leave little memory, although the worker that
/// has them in its wheel runs no task, and the call has ended.
#[test]
fn spike_of_fired_timers_leaves_little_memory() {
    in_own_process("spike_of_fired_timers_leaves_little_memory", || {
        let runtime = support::workers(1);
        let left: Vec<_> = (0..10).map(|_| runtime.handle().spawn(sleep(HOUR))).collect();
        let spike = |timers| {
            runtime.block_on(async {
                let soon = RuntimeInstant::now() + Duration::from_millis(500);
                let tasks: Vec<_> = (0..timers).map(|_| spawn_local(sleep_until(soon))).collect();
                for task in tasks {
                    task.await.expect("the task ends");
                }
            });
        };
        leaves_little_memory(TIMERS_OF_SPIKE, spike, || std::thread::park_timeout(Duration::from_millis(20)));
        assert!(left.iter().all(|task| !task.is_finished()), "a timer that was left has fired");
    });
}

/// The same if no timer fires, while the call goes on.
#[test]
fn spike_of_dropped_timers_leaves_little_memory() {
    in_own_process("spike_of_dropped_timers_leaves_little_memory", || {
        let runtime = support::workers(1);
        let call = runtime.handle().clone();
        let (begin, begun) = async_channel::unbounded();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            call.block_on(async {
                while let Ok(timers) = begun.recv().await {
                    let tasks: Vec<_> = (0..timers).map(|_| spawn_local(timeout(HOUR, yield_now()))).collect();
                    for task in tasks {
                        task.await.expect("the task ends").expect("it yields once");
                    }
                    end.send(()).expect("the test waits");
                }
            });
        });
        let spike = |timers| {
            begin.try_send(timers).expect("the call waits");
            ended.recv().expect("the call goes on");
        };
        leaves_little_memory(TIMERS_OF_SPIKE, spike, || std::thread::park_timeout(Duration::from_millis(20)));
        drop(begin);
        thread.join().expect("the call ends");
    });
}

/// Timers and sockets of one future leave little memory, although no task is ever run.
#[test]
fn spike_without_tasks_leaves_little_memory() {
    const SOCKETS: usize = 3_000;
    if !is_child() {
        return in_child_with_descriptors("spike_without_tasks_leaves_little_memory", SOCKETS as u32 + 500);
    }
    within(|| {
        for runtime in [support::one_worker(), support::workers(1)] {
            // Few of them: each is a timer that fires.
            let wait = || runtime.block_on(sleep(Duration::from_millis(100)));
            let arm = |timers| {
                runtime.block_on(async {
                    let (soon, mut sleeps) = (RuntimeInstant::now() + Duration::from_millis(500), Vec::new());
                    for number in 0..timers {
                        if number % 50 == 0 {
                            // A poll that has used up its budget would not arm the timer.
                            yield_now().await;
                        }
                        let mut timer = Box::pin(sleep_until(soon));
                        let _ = poll_once(timer.as_mut()).await;
                        sleeps.push(timer);
                    }
                    for timer in sleeps {
                        timer.await;
                    }
                });
            };
            leaves_little_memory(TIMERS_OF_SPIKE, arm, wait);
            let register = |sockets| {
                runtime.block_on(async {
                    let mut open = Vec::new();
                    for _ in 0..sockets {
                        yield_now().await;
                        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
                        assert!(poll_once(socket.readable()).await.is_none(), "no datagram has come");
                        open.push(socket);
                    }
                    // The worker takes their events.
                    open[sockets - 1].writable().await.expect("an empty socket can send");
                });
            };
            // On poll(2) mio has a table of its own, which keeps its memory.
            if cfg!(not(mio_unsupported_force_poll_poll)) {
                leaves_little_memory(SOCKETS, register, wait);
            }
        }
    });
}

const TIMERS_OF_SPIKE: usize = 50_000;

/// Runs spikes until one leaves little memory half a second after its end. A worker that is held up by the machine may
/// give memory back in the middle of one, and not again.
#[track_caller]
fn leaves_little_memory(most: usize, spike: impl Fn(usize), wait: impl Fn()) {
    const SLACK: usize = 64 << 10;
    spike(100);
    let before = support::baseline::heap_bytes();
    for _ in 0..5 {
        spike(most);
        support::progress();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if support::baseline::heap_bytes() <= before + SLACK {
                return;
            }
            wait();
        }
    }
    panic!("{} bytes are left", support::baseline::heap_bytes() - before);
}

/// Runtimes that end in the middle of everything leave no byte, descriptor or thread.
#[test]
fn runtimes_leave_nothing() {
    in_rounds("runtimes_leave_nothing", support::one_worker, |_, held| {
        for number in 0..RUNTIMES {
            end_in_the_middle(number, held);
        }
    });
}

/// Connections whose tasks are aborted while they wait leave nothing.
#[test]
fn aborted_connections_leave_nothing() {
    const ROUNDS: usize = 50;
    in_own_process("aborted_connections_leave_nothing", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            let (listener, address) = listener().await;
            abandon(&listener, address, &held).await;
            let before = Count::now();
            for _ in 0..ROUNDS {
                abandon(&listener, address, &held).await;
            }
            let after = Count::now();
            assert!(after.is_back_at(&before), "aborted connections left something: {after:?}, and before {before:?}");
            assert_eq!(Arc::strong_count(&held), 1, "a task left something that it held");
        });
    });
}

/// A closed socket keeps no waker, which would hold the whole task.
#[test]
fn closed_socket_keeps_no_waker() {
    in_own_process("closed_socket_keeps_no_waker", || {
        kittiwake::block_on(async {
            let (_waker, wakes) = counting_waker();
            let waker = std::task::Waker::from(wakes.clone());
            for _ in 0..100 {
                let (client, server) = support::pair().await;
                for stream in [&client, &server] {
                    let mut cx = std::task::Context::from_waker(&waker);
                    let mut wait = Box::pin(stream.readable());
                    assert!(wait.as_mut().poll(&mut cx).is_pending(), "nothing was sent");
                    let mut buf = [0; 8];
                    let read = std::pin::pin!((&*stream).read(&mut buf)).poll(&mut cx);
                    assert!(read.is_pending(), "nothing was sent");
                }
            }
            drop(waker);
            // The two references of the test are left.
            assert_eq!(Arc::strong_count(&wakes), 2, "a closed socket keeps a waker");
            assert_eq!(Handle::current().metrics().sources_registered(), 0);
        });
    });
}

/// Runs `round` again and again on a thread of its own, in a process of its own. It gets one runtime, and a value for
/// its tasks to hold. A task that keeps it fails the round.
#[track_caller]
fn in_rounds(
    name: &str,
    runtime: impl FnOnce() -> Runtime,
    round: impl Fn(&Runtime, &Arc<()>) + Clone + Send + Sync + 'static,
) {
    if !is_child() {
        return in_child_with_descriptors(name, 512);
    }
    let runtime = Arc::new(runtime());
    let run = |rounds: usize| {
        for _ in 0..rounds {
            let (runtime, round) = (runtime.clone(), round.clone());
            // Not `within`: a runtime that stays opens its reactor when a socket first waits.
            bounded(move || {
                let held = Arc::new(());
                round(&runtime, &held);
                // Another worker, or a runtime that ends in the background, drops its tasks a little later.
                while Arc::strong_count(&held) > 1 {
                    std::thread::yield_now();
                }
            });
        }
    };
    // Tables and thread-locals get their memory in the first rounds.
    run(3);
    let before = Count::quiet(runtime.handle(), None);
    let rounds = std::env::var("KITTIWAKE_LEAKS_ROUNDS").map_or(10, |rounds| rounds.parse().expect("a number"));
    run(rounds);
    let after = Count::quiet(runtime.handle(), Some(&before));
    println!("{rounds} rounds: {before:?}, then {after:?}");
}

/// The resources of a runtime and its process at one moment.
#[derive(Debug, PartialEq)]
struct Count {
    heap: usize,
    tasks: usize,
    sources: usize,
    timers: usize,
    descriptors: usize,
    threads: usize,
}

impl Count {
    /// The bytes by which the heap may be larger than before. Which worker's table has how much capacity differs from
    /// round to round, by up to 100 kB. In a hundred rounds three bytes for each connection are more.
    const HEAP_SLACK: usize = 256 << 10;

    fn now() -> Self {
        Self::of(&Handle::current())
    }

    fn of(runtime: &Handle) -> Self {
        let metrics = runtime.metrics();
        let timers = metrics.workers().iter().map(|worker| worker.timers_armed).sum();
        let (tasks, sources) = (metrics.tasks_alive(), metrics.sources_registered());
        drop(metrics);
        Self {
            heap: support::baseline::heap_bytes(),
            tasks,
            sources,
            timers,
            descriptors: support::count_of("fd"),
            threads: support::count_of("task"),
        }
    }

    /// Whether nothing is more than before.
    fn is_back_at(&self, before: &Self) -> bool {
        self.heap <= before.heap + Self::HEAP_SLACK
            && self.tasks <= before.tasks
            && self.sources <= before.sources
            && self.timers <= before.timers
            && self.descriptors <= before.descriptors
            && self.threads <= before.threads
    }

    /// The resources when nothing changes any more. Fails if they are not back at those of `before`: threads that end,
    /// and tasks that other workers drop, have half a minute for it.
    #[track_caller]
    fn quiet(runtime: &Handle, before: Option<&Self>) -> Self {
        let end = Instant::now() + support::PATIENCE / 2;
        let mut last = Self::of(runtime);
        loop {
            std::thread::park_timeout(Duration::from_millis(20));
            let now = Self::of(runtime);
            let is_quiet = now == last;
            if is_quiet && before.is_none_or(|before| now.is_back_at(before)) {
                return now;
            }
            assert!(Instant::now() < end, "something is left: {now:?}, and before {before:?}");
            last = now;
        }
    }
}

/// Serves an echo to `connections` clients in this runtime, one batch at a time. Each call has a listener of its
/// own, because the kernel keeps the ports of earlier connections busy for a while.
async fn serve(connections: usize, held: &Arc<()>) {
    let (listener, address) = listener().await;
    for _ in 0..connections / BATCH {
        let mut set = JoinSet::new();
        for number in 0..BATCH {
            set.spawn(client(address, number == 0, held.clone()));
        }
        for _ in 0..BATCH {
            let (stream, _) = listener.accept().await.unwrap();
            set.spawn(echo(stream, held.clone()));
        }
        while let Some(ended) = set.join_next().await {
            ended.unwrap();
        }
    }
}

async fn client(address: SocketAddr, is_orderly: bool, _held: Arc<()>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut reply = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"ping");
    if !is_orderly {
        will_reset(&stream);
    }
}

async fn echo(mut stream: TcpStream, _held: Arc<()>) {
    let mut buf = [0; 64];
    loop {
        match stream.read(&mut buf).await {
            Ok(0) => return,
            Ok(read) => stream.write_all(&buf[..read]).await.unwrap(),
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

/// Aborts connections whose tasks wait, and drops a waiting accept.
async fn abandon(listener: &TcpListener, address: SocketAddr, held: &Arc<()>) {
    let mut set = JoinSet::new();
    for _ in 0..10 {
        let client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        will_reset(&client);
        will_reset(&server);
        let held = (held.clone(), held.clone());
        set.spawn(async move {
            let _held = held.0;
            client.readable().await.unwrap();
        });
        set.spawn(async move {
            let _held = held.1;
            (&server).read(&mut [0; 8]).await.unwrap();
        });
    }
    yield_now().await;
    {
        let accept = listener.accept();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::pin::pin!(accept).poll(&mut cx).is_pending(), "no client connects");
    }
    set.shutdown().await;
}

/// Spawns tasks that end in every way.
async fn spawn_and_join(tasks: usize, held: &Arc<()>) {
    for _ in 0..tasks / 1_000 {
        let mut set = JoinSet::new();
        for number in 0..1_000 {
            let held = held.clone();
            match number % 4 {
                0 => drop(set.spawn(async move { drop(held) })),
                1 => drop(set.spawn(async move {
                    yield_now().await;
                    drop(held);
                })),
                2 => set
                    .spawn(async move {
                        pending::<()>().await;
                        drop(held);
                    })
                    .abort(),
                // This task is detached.
                _ => drop(spawn(async move {
                    yield_now().await;
                    drop(held);
                })),
            }
        }
        let mut cancelled = 0;
        while let Some(ended) = set.join_next().await {
            cancelled += usize::from(ended.is_err_and(|error| error.is_cancelled()));
        }
        assert_eq!(cancelled, 250, "one task in four must be cancelled");
    }
    while Arc::strong_count(held) > 1 {
        yield_now().await;
    }
}

/// Arms timers of which a quarter fires, a quarter is armed anew and fires, and a half is dropped, early or late.
async fn arm(timers: usize, held: &Arc<()>) {
    for _ in 0..timers / 1_000 {
        let mut sleeps = Vec::new();
        for number in 0..1_000 {
            if number % 50 == 0 {
                // A poll that has used up its budget would not arm the timer.
                yield_now().await;
            }
            let soon = Duration::from_micros(50 + 7 * number);
            let mut timer = Box::pin(sleep(if number % 4 < 2 { soon } else { HOUR }));
            let _ = poll_once(timer.as_mut()).await;
            if number % 4 == 2 {
                timer.as_mut().reset(RuntimeInstant::now() + soon);
            }
            sleeps.push(timer);
        }
        for (number, timer) in sleeps.into_iter().enumerate() {
            if number % 2 == 0 {
                timer.await;
            }
        }
    }
    let held = held.clone();
    spawn(async move {
        sleep(Duration::from_millis(1)).await;
        drop(held);
    })
    .await
    .expect("the task ends");
}

/// Makes a runtime, and ends it while tasks wait for a socket, a timer, a closure and nothing.
fn end_in_the_middle(number: usize, held: &Arc<()>) {
    let runtime = if number % 2 == 0 { support::one_worker() } else { support::workers(2) };
    let keep = held.clone();
    runtime.block_on(async {
        let (mut client, mut server) = support::pair().await;
        will_reset(&client);
        client.write_all(b"ping").await.expect("write");
        server.read_exact(&mut [0; 4]).await.expect("read");
        let keeps = [(); 4].map(|()| keep.clone());
        let [for_socket, for_timer, for_closure, for_nothing] = keeps;
        spawn(async move {
            let _held = (for_socket, server);
            let _ = client.read(&mut [0; 4]).await;
        });
        spawn(async move {
            let _held = for_timer;
            sleep(Duration::from_secs(3_600)).await;
        });
        spawn_blocking(move || drop(for_closure));
        spawn(support::hold((for_nothing, pending::<()>())));
        yield_now().await;
    });
    drop(keep);
    match number % 3 {
        0 => drop(runtime),
        1 => runtime.shutdown_timeout(support::PATIENCE).expect("the runtime ends"),
        _ => runtime.shutdown_background(),
    }
}
