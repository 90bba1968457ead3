//! Many connections and many tasks leave nothing. Counters and the process's memory show it.

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

/// The number of connections that are open at the same time. One of each batch closes in an orderly way, the others
/// by a reset.
const BATCH: usize = 100;

/// Ten thousand connections leave no slot, descriptor, waker or task.
#[test]
fn ten_thousand_connections_leave_nothing() {
    in_own_process("ten_thousand_connections_leave_nothing", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            serve(BATCH, &held).await;
            let before = Count::now();
            serve(CONNECTIONS, &held).await;
            assert_eq!(Count::now(), before, "{CONNECTIONS} connections left something");
            assert_eq!(Arc::strong_count(&held), 1, "a task left something that it held");
        });
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
            assert_eq!(Count::now(), before, "an aborted connection left something");
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

/// A hundred thousand tasks leave nothing.
#[test]
fn hundred_thousand_tasks_leave_nothing() {
    const TASKS: usize = 100_000;
    in_own_process("hundred_thousand_tasks_leave_nothing", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            let before = Count::now();
            spawn_and_join(TASKS, &held).await;
            assert_eq!(Count::now(), before, "{TASKS} tasks left something");
            assert_eq!(Arc::strong_count(&held), 1, "a task left something that it held");
        });
    });
}

/// Runtimes of several workers leave no memory. A reactor's event buffer would add up in a test suite.
#[test]
#[cfg(target_os = "linux")]
fn runtimes_leave_no_memory() {
    /// Less than the event buffer of one reactor for each runtime of a round.
    const SLACK: usize = 1 << 20;
    in_own_process("runtimes_leave_no_memory", || {
        let mut resident = Vec::new();
        for _ in 0..5 {
            for _ in 0..100 {
                let runtime = support::workers(2);
                let _task = runtime.handle().spawn(pending::<()>());
                runtime.block_on(async { spawn(yield_now()).await.expect("the task ends") });
            }
            resident.push(resident_bytes());
        }
        // The allocator creates its arenas in the first rounds.
        assert!(resident[4] <= resident[1] + SLACK, "the memory grew from round to round: {resident:?}");
    });
}

/// The memory of the process does not grow from round to round. This finds leaks that no counter of the runtime
/// shows.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_constant() {
    /// The number of bytes that the allocator may keep in other places than in the round before. One word for each
    /// task of the three rounds would be more.
    const SLACK: usize = 1 << 20;
    in_own_process("memory_stays_constant", || {
        kittiwake::block_on(async {
            let held = Arc::new(());
            let mut resident = Vec::new();
            for _ in 0..5 {
                serve(5_000, &held).await;
                spawn_and_join(50_000, &held).await;
                resident.push(resident_bytes());
            }
            let grown = resident[4].saturating_sub(resident[1]);
            assert!(grown <= SLACK, "the resident set grew by {grown} bytes in three rounds: {resident:?}");
        });
    });
}

/// The resources of a runtime and its process at one moment.
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

/// The resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this process's statm");
    let pages: usize = statm.split(' ').nth(1).expect("the resident set").parse().expect("a number");
    pages * 4096
}
