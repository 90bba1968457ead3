//! No task starves: neither sockets beside busy tasks, nor tasks beside a busy socket.
//!
//! The laws are counted in polls and operations, and not in time.
//! * A poll of a task does at most 128 socket operations.
//! * The worker polls the kernel after at most 64 polls of tasks.
//! * Ready tasks run in turn.

mod support;

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use kittiwake::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpStream;
use kittiwake::spawn;
use kittiwake::task::{JoinHandle, yield_now};
use support::{in_own_process, listener, one_worker, pair, pair_with_std, run, within};

/// The number of socket operations in one poll of a task.
const BUDGET: usize = 128;

/// The number of polls of tasks between two polls of the kernel.
const BATCH: usize = 64;

// ---- sockets beside busy tasks ----

/// An echo continues beside a task that wakes itself for ever.
#[test]
fn echo_continues_beside_busy_task() {
    echo_beside(1, || {
        let polls = Counter::default();
        drop(spawn(busy(polls.clone())));
        polls
    });
}

/// An echo continues beside a hundred tasks that wake themselves for ever.
#[test]
fn echo_continues_beside_hundred_busy_tasks() {
    echo_beside(100, || {
        let polls = Counter::default();
        (0..100).for_each(|_| drop(spawn(busy(polls.clone()))));
        polls
    });
}

/// An echo continues beside two tasks that wake each other for ever and so never empty the queue.
#[test]
fn echo_continues_beside_mutual_wakers() {
    echo_beside(2, || {
        let polls = Counter::default();
        let wakers: Arc<[Mutex<Option<Waker>>; 2]> = Arc::default();
        for own in 0..2 {
            let (wakers, polls) = (wakers.clone(), polls.clone());
            drop(spawn(poll_fn(move |cx| {
                polls.add();
                *wakers[own].lock().unwrap() = Some(cx.waker().clone());
                let other = wakers[1 - own].lock().unwrap().clone();
                other.unwrap_or_else(|| cx.waker().clone()).wake();
                Poll::<()>::Pending
            })));
        }
        polls
    });
}

/// An echo continues beside a main future that wakes itself for ever.
#[test]
fn echo_continues_beside_busy_main() {
    run(|| async {
        let echo = spawn(exchange_with_echo(500));
        while !echo.is_finished() {
            yield_now().await;
        }
        echo.await.unwrap();
    });
}

/// The worker polls the kernel after a bounded batch. An event waits for the rest of a batch and for the tasks that
/// were in the queue before it.
#[test]
fn kernel_is_polled_after_bounded_batch() {
    const BUSY: usize = 10;
    run(|| async {
        let polls = Counter::default();
        (0..BUSY).for_each(|_| drop(spawn(busy(polls.clone()))));
        let (ours, mut peer) = pair_with_std();
        let ours = Arc::new(ours);
        let mut delays = Vec::new();
        for _ in 0..201 {
            let arrival = spawn(served_at(ours.clone(), polls.clone()));
            yield_now().await;
            let sent = polls.get();
            peer.write_all(b"x").unwrap();
            delays.push(arrival.await.unwrap() - sent);
        }
        // The median counts, because the system itself sometimes delivers late.
        delays.sort_unstable();
        let median = delays[delays.len() / 2];
        let bound = BATCH + BUSY + 2;
        assert!(median <= bound, "an event waited for {median} polls of other tasks, but the limit is {bound}");
    });
}

/// Ready tasks run in turn: none runs twice before each of the others has run once.
#[test]
fn ready_tasks_run_in_turn() {
    run(|| async {
        let polls: Vec<_> = (0..200).map(|_| Counter::default()).collect();
        polls.iter().for_each(|polls| drop(spawn(busy(polls.clone()))));
        for round in 0..50 {
            let counts = || polls.iter().map(Counter::get);
            let (least, most) = (counts().min().unwrap(), counts().max().unwrap());
            assert!(most - least <= 1, "one task has run {most} times, another one {least} times");
            assert_eq!(least, round, "a yield must let every ready task run once");
            yield_now().await;
        }
    });
}

/// A task that another thread spawns runs in turn beside busy tasks.
#[test]
fn remote_spawn_runs_beside_busy_tasks() {
    run(|| async {
        let polls = Counter::default();
        (0..100).for_each(|_| drop(spawn(busy(polls.clone()))));
        let handle = kittiwake::runtime::Handle::current();
        for _ in 0..20 {
            let before = polls.get();
            let posted = std::thread::spawn({
                let handle = handle.clone();
                move || handle.spawn(async {})
            });
            let posted = posted.join().unwrap();
            posted.await.unwrap();
            let waited = polls.get() - before;
            assert!(waited <= 2 * (BATCH + 100), "a spawned task waited for {waited} polls of other tasks");
        }
    });
}

// ---- tasks beside a busy socket ----

/// A reader whose peer always sends does at most its budget in a turn.
#[test]
fn flooded_reader_keeps_its_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let mut flood = Flood::new();
        let mut buf = [0; 64];
        loop {
            assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
            operations.add();
        }
    });
}

/// A flooded reader in the main future does at most its budget in a turn.
#[test]
fn flooded_main_future_keeps_its_budget() {
    run(|| async {
        let (operations, most) = (Counter::default(), Counter::default());
        let pace = spawn(pace(operations.clone(), most.clone()));
        let mut flood = Flood::new();
        let mut buf = [0; 64];
        while !pace.is_finished() {
            assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
            operations.add();
        }
        check_turn(&most);
    });
}

/// A flooded main future continues after it yields. Without other tasks the yield must not last.
#[test]
fn flooded_main_future_continues() {
    run(|| async {
        let mut flood = Flood::new();
        let mut buf = [0; 64];
        for _ in 0..20 * BUDGET {
            assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
        }
    });
}

/// A thread outside a runtime has no budget, not even the rest of an earlier runtime's. No worker would refill it.
#[test]
fn thread_outside_runtime_has_no_budget() {
    within(|| {
        // It is kept: its end would take the budget away.
        let runtime = one_worker();
        runtime.block_on(async {
            let mut flood = Flood::new();
            for _ in 0..BUDGET / 2 {
                assert!(flood.stream.read(&mut [0; 64]).await.unwrap() > 0);
            }
        });
        let (stream, mut peer) = pair_with_std();
        peer.write_all(&[0; 4 * BUDGET]).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for read in 0..4 * BUDGET {
            // All bytes have arrived with the first one, because one write sent them through the loopback.
            while Pin::new(&mut &stream).poll_read(&mut cx, &mut [0; 1]).map(Result::unwrap_or_default)
                != Poll::Ready(1)
            {
                assert!(read == 0, "read {read} must not wait: the byte is there");
                std::thread::yield_now();
            }
        }
    });
}

/// A flooded reader with `readable` and `try_read` does at most its budget in a turn.
#[test]
fn trying_reader_keeps_its_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let flood = Flood::new();
        let mut buf = [0; 64];
        loop {
            flood.stream.readable().await.unwrap();
            if flood.stream.try_read(&mut buf).is_ok() {
                operations.add();
            }
        }
    });
}

/// A task that peeks does at most its budget in a turn. A peek takes no byte, so it never waits.
#[test]
fn peeking_task_keeps_its_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let (ours, mut peer) = pair_with_std();
        peer.write_all(b"x").unwrap();
        loop {
            assert_eq!(ours.peek(&mut [0; 8]).await.unwrap(), 1);
            operations.add();
        }
    });
}

/// A reader at the end of its stream does at most its budget in a turn. The end can be read for ever.
#[test]
fn reader_at_end_keeps_its_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let (mut ours, peer) = pair_with_std();
        drop(peer);
        loop {
            assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
            operations.add();
        }
    });
}

/// A writer to a fast reader does at most its budget in a turn. Its small writes never wait.
#[test]
fn fast_writer_keeps_its_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let (mut ours, mut peer) = pair_with_std();
        std::thread::spawn(move || {
            let mut buf = vec![0; 1 << 16];
            while peer.read(&mut buf).is_ok_and(|read| read > 0) {}
        });
        loop {
            ours.write_all(b"sixteen bytes...").await.unwrap();
            operations.add();
        }
    });
}

/// All sockets of a task share its budget.
#[test]
fn sockets_of_a_task_share_budget() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let mut floods = [Flood::new(), Flood::new(), Flood::new()];
        let mut buf = [0; 64];
        loop {
            for flood in &mut floods {
                assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
                operations.add();
            }
        }
    });
}

/// An acceptor that never waits does at most its budget in a turn.
#[test]
fn busy_acceptor_keeps_its_budget() {
    const CONNECTIONS: usize = 400;
    in_own_process_with_descriptors("busy_acceptor_keeps_its_budget", || async {
        let (listener, address) = listener().await;
        // The client closes at once. The connection still enters the listen queue.
        for _ in 0..CONNECTIONS {
            drop(std::net::TcpStream::connect(address).unwrap());
        }
        let (operations, most) = (Counter::default(), Counter::default());
        let acceptor = spawn({
            let operations = operations.clone();
            async move {
                for _ in 0..CONNECTIONS {
                    drop(listener.accept().await.unwrap());
                    operations.add();
                }
            }
        });
        let mut seen = 0;
        while !acceptor.is_finished() {
            yield_now().await;
            most.raise_to(operations.get() - std::mem::replace(&mut seen, operations.get()));
        }
        check_turn(&most);
    });
}

/// An acceptor that always fails for lack of descriptors does at most its budget in a turn.
#[test]
fn failing_acceptor_keeps_its_budget() {
    let name = "failing_acceptor_keeps_its_budget";
    in_own_process_with_descriptors(name, || async {
        let (listener, address) = listener().await;
        let _client = std::net::TcpStream::connect(address).unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        let (operations, most) = (Counter::default(), Counter::default());
        let acceptor = spawn({
            let operations = operations.clone();
            async move {
                while let Err(error) = listener.accept().await {
                    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                    operations.add();
                }
            }
        });
        pace(operations, most.clone()).await;
        check_turn(&most);
        drop(hoard);
        acceptor.await.expect("the acceptor ends once a descriptor is free");
    });
}

/// Polling a socket that must wait spends no budget. A task that watches many sockets must reach the one that is
/// ready.
#[test]
fn pending_operations_spend_no_budget() {
    run(|| async {
        let idle: Vec<_> = (0..2 * BUDGET).map(|_| pair_with_std()).collect();
        let (ready, mut peer) = pair_with_std();
        peer.write_all(b"x").unwrap();
        ready.readable().await.unwrap();
        // Only a task has a budget.
        let first_poll = spawn(poll_fn(move |cx| {
            for (socket, _) in &idle {
                assert!(Pin::new(&mut &*socket).poll_read(cx, &mut [0; 8]).is_pending());
            }
            Poll::Ready(Pin::new(&mut &ready).poll_read(cx, &mut [0; 8]).map(Result::unwrap))
        }));
        assert_eq!(first_poll.await.unwrap(), Poll::Ready(1), "the pending reads must spend no budget");
    });
}

// ---- helpers ----

/// Runs an echo beside the `tasks` busy tasks that `start` spawns, and counts their polls meanwhile.
#[track_caller]
fn echo_beside(tasks: usize, start: impl FnOnce() -> Counter + Clone + Send + 'static) {
    const TRIPS: usize = 500;
    run(move || async move {
        let polls = start();
        let before = polls.get();
        exchange_with_echo(TRIPS as u32).await;
        let each = (polls.get() - before) / TRIPS;
        // A round trip waits twice, each time for a batch and a round of the queue. The factor 4 allows for the
        // system.
        let bound = 4 * 2 * (BATCH + tasks);
        assert!(each > 0, "the busy tasks must continue too");
        assert!(each <= bound, "a round trip waited for {each} polls of busy tasks, but the limit is {bound}");
    });
}

/// Sends numbers to an echo in this runtime and waits for each to return.
async fn exchange_with_echo(trips: u32) {
    let (mut client, mut server) = pair().await;
    let echo = spawn(async move {
        let mut buf = [0; 64];
        loop {
            match server.read(&mut buf).await.unwrap() {
                0 => return,
                read => server.write_all(&buf[..read]).await.unwrap(),
            }
        }
    });
    for trip in 0..trips {
        let mut reply = [0; 4];
        client.write_all(&trip.to_be_bytes()).await.unwrap();
        client.read_exact(&mut reply).await.unwrap();
        assert_eq!(u32::from_be_bytes(reply), trip);
    }
    drop(client);
    echo.await.unwrap();
}

/// Runs `handler`, which never waits, beside a task that yields in a loop. Between two turns of that task the
/// handler has one turn, and must do no more operations than its budget.
#[track_caller]
fn at_most_the_budget_in_a_turn<F>(handler: impl FnOnce(Counter) -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    run(|| async move {
        let (operations, most) = (Counter::default(), Counter::default());
        let handler: JoinHandle<()> = spawn(handler(operations.clone()));
        pace(operations, most.clone()).await;
        check_turn(&most);
        assert!(!handler.is_finished(), "the handler must still run");
    });
}

/// Yields in a loop and records the largest number of operations between two turns.
async fn pace(operations: Counter, most: Counter) {
    let mut seen = operations.get();
    while seen < 100 * BUDGET {
        yield_now().await;
        let now = operations.get();
        most.raise_to(now - seen);
        seen = now;
    }
}

#[track_caller]
fn check_turn(most: &Counter) {
    assert!(most.get() <= BUDGET, "one turn did {} operations, but the limit is {BUDGET}", most.get());
    // On a slow machine a turn ends by its time, after 16 operations or more.
    assert!(most.get() >= BUDGET / 8, "the handler was not busy enough: {} operations in a turn", most.get());
}

/// Is always ready and counts its polls.
async fn busy(polls: Counter) {
    loop {
        polls.add();
        yield_now().await;
    }
}

/// Waits for a byte, reads it, and returns the count of other tasks' polls at that time.
async fn served_at(stream: Arc<TcpStream>, polls: Counter) -> usize {
    let read = (&*stream).read(&mut [0; 1]).await.unwrap();
    assert_eq!(read, 1);
    polls.get()
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn raise_to(&self, value: usize) {
        self.0.fetch_max(value, Ordering::SeqCst);
    }
}

/// A stream that always has bytes to read.
struct Flood {
    stream: TcpStream,
}

impl Flood {
    fn new() -> Self {
        let (stream, mut peer) = pair_with_std();
        // The thread ends when the stream is closed.
        std::thread::spawn(move || while peer.write_all(&[0; 1 << 16]).is_ok() {});
        Self { stream }
    }
}

/// Runs a test in a process of its own, because it uses up the descriptors.
#[track_caller]
fn in_own_process_with_descriptors<F>(name: &str, test: impl FnOnce() -> F + Clone + Send + 'static)
where
    F: Future<Output = ()>,
{
    in_own_process(name, move || kittiwake::block_on(test()));
}
