//! What is left after many connections and many tasks: nothing, and that is counted.

mod support;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt, ErrorKind};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Handle, Metrics};
use kittiwake::spawn;
use kittiwake::task::{JoinSet, yield_now};
use support::{counting_waker, in_own_process, listener, will_reset};

const CONNECTIONS: usize = 10_000;

/// Connections that are open at the same time. One of each batch ends in an orderly way, the others by a reset.
const BATCH: usize = 100;

/// A server runs for months. One slot, descriptor, waker or task left by a connection is the end of it.
#[test]
fn ten_thousand_connections_leave_nothing() {
    in_own_process("ten_thousand_connections_leave_nothing", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            serve(BATCH, &held).await;
            let before = Count::now();
            serve(CONNECTIONS, &held).await;
            assert_eq!(Count::now(), before, "something is left of {CONNECTIONS} connections");
            assert_eq!(Arc::strong_count(&held), 1, "a task is left, or what it held");
        });
    });
}

/// Connections that end in other ways: cut off in the middle of a wait, with their task or without.
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
            assert_eq!(Count::now(), before, "something is left");
            assert_eq!(Arc::strong_count(&held), 1, "a task is left, or what it held");
        });
    });
}

/// A waker that a socket keeps would keep its task, and all that the task has.
#[test]
fn a_socket_that_is_closed_keeps_no_waker() {
    in_own_process("a_socket_that_is_closed_keeps_no_waker", || {
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
            // The test's own two are left.
            assert_eq!(Arc::strong_count(&wakes), 2, "a closed socket has a waker");
            assert_eq!(Handle::current().metrics().sources_registered(), 0);
        });
    });
}

#[test]
fn a_hundred_thousand_tasks_leave_nothing() {
    const TASKS: usize = 100_000;
    in_own_process("a_hundred_thousand_tasks_leave_nothing", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            let before = Count::now();
            spawn_and_join(TASKS, &held).await;
            assert_eq!(Count::now(), before, "something is left of {TASKS} tasks");
            assert_eq!(Arc::strong_count(&held), 1, "a task is left, or what it held");
        });
    });
}

/// A test suite makes a runtime for each test; one that leaves its reactors' buffers fills the machine.
#[test]
#[cfg(target_os = "linux")]
fn runtimes_of_several_workers_leave_no_memory() {
    /// Less than one reactor's buffer of events for each runtime of a round.
    const SLACK: usize = 1 << 20;
    in_own_process("runtimes_of_several_workers_leave_no_memory", || {
        let mut resident = Vec::new();
        for _ in 0..5 {
            for _ in 0..100 {
                let runtime = support::workers(2);
                let _task = runtime.handle().spawn(pending::<()>());
                runtime.block_on(async { spawn(yield_now()).await.expect("the task ends") });
            }
            resident.push(resident_bytes());
        }
        // The first rounds find out how many of the allocator's arenas there are to be.
        assert!(resident[4] <= resident[1] + SLACK, "memory grows from round to round: {resident:?}");
    });
}

/// What no counter of ours sees is seen by the system: memory comes back, or is used again.
#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_grow_from_round_to_round() {
    /// What the allocator may keep in other places than the round before, in bytes. One word for each task
    /// of the three rounds would be more.
    const SLACK: usize = 1 << 20;
    in_own_process("memory_does_not_grow_from_round_to_round", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            let mut resident = Vec::new();
            for _ in 0..5 {
                serve(5_000, &held).await;
                spawn_and_join(50_000, &held).await;
                resident.push(resident_bytes());
            }
            let grown = resident[4].saturating_sub(resident[1]);
            assert!(grown <= SLACK, "the resident set has grown by {grown} bytes in three rounds: {resident:?}");
        });
    });
}

/// What a runtime and its process hold at one moment.
#[derive(Debug, PartialEq)]
struct Count {
    tasks: usize,
    sources: usize,
    descriptors: usize,
    threads: usize,
}

impl Count {
    fn now() -> Self {
        let metrics: Metrics = Handle::current().metrics();
        Self {
            tasks: metrics.tasks_alive(),
            sources: metrics.sources_registered(),
            descriptors: support::count_of("fd"),
            threads: support::count_of("task"),
        }
    }
}

/// Serves an echo to `connections` clients in this runtime, a batch at a time. A listener of its own, so
/// that the ports of earlier rounds, which the system keeps for a while, are not in the way.
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

/// Connections whose tasks are aborted while they wait, and an accept that is.
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
        assert!(std::pin::pin!(accept).poll(&mut cx).is_pending(), "nobody connects");
    }
    set.shutdown().await;
}

/// Tasks of every fate.
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
                // Detached.
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
        assert_eq!(cancelled, 250, "one task in four was aborted");
    }
    while Arc::strong_count(held) > 1 {
        yield_now().await;
    }
}

/// How much memory of this process is in the machine's.
#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this process's statm");
    let pages: usize = statm.split(' ').nth(1).expect("the resident set").parse().expect("a number");
    pages * 4096
}
