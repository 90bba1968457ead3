//! Nobody starves: not the sockets beside busy tasks, not the tasks beside a busy socket.
//!
//! The laws are counted in polls and operations, not in time.
//! * A poll of a task does at most 128 socket operations.
//! * The kernel is looked at after at most 64 polls.
//! * Tasks that are ready run in turn.

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
use support::{in_own_process, listener, pair, pair_with_std, run, within};

/// Socket operations in one poll of a task.
const BUDGET: usize = 128;

/// Polls between two looks at the kernel.
const BATCH: usize = 64;

// ---- sockets beside busy tasks ----

/// One task that computes, giving way as it should, must not silence a server.
#[test]
fn an_echo_goes_on_beside_a_task_that_wakes_itself_for_ever() {
    echo_beside(1, || {
        let polls = Counter::default();
        drop(spawn(busy(polls.clone())));
        polls
    });
}

#[test]
fn an_echo_goes_on_beside_a_hundred_tasks_that_wake_themselves_for_ever() {
    echo_beside(100, || {
        let polls = Counter::default();
        (0..100).for_each(|_| drop(spawn(busy(polls.clone()))));
        polls
    });
}

/// Two tasks that wake each other never leave the queue empty either.
#[test]
fn an_echo_goes_on_beside_two_tasks_that_wake_each_other_for_ever() {
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

/// The main future is one among the tasks: it is where people write loops that poll something.
#[test]
fn an_echo_goes_on_beside_a_main_future_that_wakes_itself_for_ever() {
    run(|| async {
        let echo = spawn(exchange_with_echo(500));
        while !echo.is_finished() {
            yield_now().await;
        }
        echo.await.unwrap();
    });
}

/// How late a look at the kernel may come: an event that is there is served after at most the rest of a batch, and
/// those who were in the queue before it.
#[test]
fn the_kernel_is_looked_at_after_a_bounded_batch() {
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
        // Half of them: now and then the system itself delivers a little later.
        delays.sort_unstable();
        let median = delays[delays.len() / 2];
        let bound = BATCH + BUSY + 2;
        assert!(median <= bound, "an event waits for {median} polls of other tasks, and may for {bound}");
    });
}

/// Ready tasks take turns: none runs twice before another has run once.
#[test]
fn ready_tasks_run_in_turn() {
    run(|| async {
        let polls: Vec<_> = (0..200).map(|_| Counter::default()).collect();
        polls.iter().for_each(|polls| drop(spawn(busy(polls.clone()))));
        for round in 0..50 {
            let counts = || polls.iter().map(Counter::get);
            let (least, most) = (counts().min().unwrap(), counts().max().unwrap());
            assert!(most - least <= 1, "one task has run {most} times, another {least}");
            assert_eq!(least, round, "giving way must let every ready task run once");
            yield_now().await;
        }
    });
}

/// What another thread posts takes its turn too.
#[test]
fn a_task_spawned_from_another_thread_runs_beside_busy_ones() {
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
            assert!(waited <= 2 * (BATCH + 100), "a posted task waited for {waited} polls of others");
        }
    });
}

// ---- tasks beside a busy socket ----

/// A client that sends faster than its handler reads: each read finds something, so the handler would never wait.
#[test]
fn a_flooded_reader_does_at_most_its_budget_in_a_turn() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let mut flood = Flood::new();
        let mut buf = [0; 64];
        loop {
            assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
            operations.add();
        }
    });
}

#[test]
fn a_flooded_reader_in_the_main_future_does_at_most_its_budget_in_a_turn() {
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

/// With nobody beside it, giving way costs nothing and must not be for ever.
#[test]
fn a_flooded_main_future_goes_on_after_its_turn() {
    run(|| async {
        let mut flood = Flood::new();
        let mut buf = [0; 64];
        for _ in 0..20 * BUDGET {
            assert!(flood.stream.read(&mut buf).await.unwrap() > 0);
        }
    });
}

/// A thread that is no worker has no budget: what a runtime on it left over must not be its limit, because
/// nobody there would ever fill it up again.
#[test]
fn a_thread_has_no_budget_after_its_runtime() {
    within(|| {
        let runtime = kittiwake::runtime::Runtime::new().unwrap();
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
            // All of it has arrived once the first byte has: it was one write, through the loopback.
            while Pin::new(&mut &stream).poll_read(&mut cx, &mut [0; 1]).map(Result::unwrap_or_default)
                != Poll::Ready(1)
            {
                assert!(read == 0, "read {read} has to wait, though its byte is there");
                std::thread::yield_now();
            }
        }
    });
}

/// The loop with `readable` and `try_read` is another way to the same flood.
#[test]
fn a_flooded_reader_that_tries_does_at_most_its_budget_in_a_turn() {
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

/// Peeking takes nothing away, so what is there once is there for ever.
#[test]
fn a_peeking_task_does_at_most_its_budget_in_a_turn() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let (ours, mut peer) = pair_with_std();
        peer.write_all(b"x").unwrap();
        loop {
            assert_eq!(ours.peek(&mut [0; 8]).await.unwrap(), 1);
            operations.add();
        }
    });
}

/// The end of a stream can be read for ever, and a handler that ignores it does.
#[test]
fn a_reader_at_the_end_of_its_stream_does_at_most_its_budget_in_a_turn() {
    at_most_the_budget_in_a_turn(|operations| async move {
        let (mut ours, peer) = pair_with_std();
        drop(peer);
        loop {
            assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
            operations.add();
        }
    });
}

/// A peer that reads as fast as we write never makes a small write wait.
#[test]
fn a_writer_to_a_fast_reader_does_at_most_its_budget_in_a_turn() {
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

/// Several sockets share the budget of the task that serves them: it is the task that takes the time.
#[test]
fn all_sockets_of_a_task_share_its_budget() {
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

/// A burst of connections is accepted in turns.
#[test]
fn an_acceptor_that_never_waits_does_at_most_its_budget_in_a_turn() {
    const CONNECTIONS: usize = 400;
    in_own_process_with_descriptors("an_acceptor_that_never_waits_does_at_most_its_budget_in_a_turn", || async {
        let (listener, address) = listener().await;
        // The client's end is closed at once: the connection is in the listener's queue all the same.
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

/// Out of descriptors, `accept` fails at once and again: a server that tries again must not stop everything else.
#[test]
fn an_acceptor_that_always_fails_does_at_most_its_budget_in_a_turn() {
    let name = "an_acceptor_that_always_fails_does_at_most_its_budget_in_a_turn";
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
        acceptor.await.expect("once there are descriptors again, it accepts");
    });
}

/// Looking at sockets on which there is nothing is free: a task that watches many would else use up its budget by
/// looking, and never come to the one that has something.
#[test]
fn waiting_on_many_sockets_spends_nothing() {
    run(|| async {
        let idle: Vec<_> = (0..2 * BUDGET).map(|_| pair_with_std()).collect();
        let (ready, mut peer) = pair_with_std();
        peer.write_all(b"x").unwrap();
        ready.readable().await.unwrap();
        // As a task, so that it has a budget.
        let first_poll = spawn(poll_fn(move |cx| {
            for (socket, _) in &idle {
                assert!(Pin::new(&mut &*socket).poll_read(cx, &mut [0; 8]).is_pending());
            }
            Poll::Ready(Pin::new(&mut &ready).poll_read(cx, &mut [0; 8]).map(Result::unwrap))
        }));
        assert_eq!(first_poll.await.unwrap(), Poll::Ready(1), "its budget was spent by looking");
    });
}

// ---- helpers ----

/// Has an echo go on beside the `tasks` busy ones that `start` spawns, and counts what they are polled meanwhile.
#[track_caller]
fn echo_beside(tasks: usize, start: impl FnOnce() -> Counter + Send + 'static) {
    const TRIPS: usize = 500;
    run(move || async move {
        let polls = start();
        let before = polls.get();
        exchange_with_echo(TRIPS as u32).await;
        let each = (polls.get() - before) / TRIPS;
        // There and back are two waits, each of a batch and a round of the queue; some room for the system.
        let bound = 4 * 2 * (BATCH + tasks);
        assert!(each > 0, "the busy tasks must go on too");
        assert!(each <= bound, "a round trip waits for {each} polls of busy tasks, and may for {bound}");
    });
}

/// Sends numbers to an echo in this runtime, and waits for each to come back.
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

/// Runs `handler`, which never waits, beside a task that must keep its pace: between two of its turns the handler has one,
/// in which it does no more than its budget.
#[track_caller]
fn at_most_the_budget_in_a_turn<F>(handler: impl FnOnce(Counter) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    run(|| async move {
        let (operations, most) = (Counter::default(), Counter::default());
        let handler: JoinHandle<()> = spawn(handler(operations.clone()));
        pace(operations, most.clone()).await;
        check_turn(&most);
        assert!(!handler.is_finished(), "the handler must still be at it");
    });
}

/// Gives way again and again, and notes how many operations there were in between at most.
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
    assert!(most.get() <= BUDGET, "{} operations in one turn, and {BUDGET} are allowed", most.get());
    assert!(most.get() > BUDGET / 2, "the test has flooded nobody: {} operations in a turn", most.get());
}

/// Is always ready to go on.
async fn busy(polls: Counter) {
    loop {
        polls.add();
        yield_now().await;
    }
}

/// Waits for a byte, takes it, and returns how many polls others had by then.
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

/// A stream on which there is always something to read.
struct Flood {
    stream: TcpStream,
}

impl Flood {
    fn new() -> Self {
        let (stream, mut peer) = pair_with_std();
        // It ends when our end is closed.
        std::thread::spawn(move || while peer.write_all(&[0; 1 << 16]).is_ok() {});
        Self { stream }
    }
}

/// Runs a test in a process of its own, because it uses up descriptors.
#[track_caller]
fn in_own_process_with_descriptors<F>(name: &str, test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    in_own_process(name, move || kittiwake::block_on(test()));
}
