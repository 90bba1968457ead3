//! No task starves beside one that always has something ready: a timer that is due, a task that has ended, a signal
//! that is triggered, a piece of its own work.
//!
//! The laws are counted in pieces of work, and not in time.

mod support;

use std::collections::HashMap;
use std::future::poll_fn;
use std::mem::replace;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::thread::{self, ThreadId};

use futures_util::future::{join_all, pending, select_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::task::AtomicWaker;
use kittiwake::future::{Boxed, or};
use kittiwake::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader, copy_bidirectional, duplex};
use kittiwake::net::{ShutdownSignal, TcpStream, lookup_host};
use kittiwake::runtime::Runtime;
use kittiwake::spawn_local;
use kittiwake::task::{JoinHandle, JoinSet, consume_budget, yield_now};
use kittiwake::time::{Duration, Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use support::{block_workers, here, listener, one_worker, pair_with_std, spin, use_up_budget, within, workers};

const MS: Duration = Duration::from_millis(1);

/// A loop that goes on until the flag is set.
type Loop = fn(Arc<AtomicBool>) -> Boxed<()>;

/// Repeats an expression, with a variable that is initialized once.
macro_rules! until_done {
    ($variable:ident = $initial:expr, $body:expr) => {
        |done| {
            Box::pin(async move {
                #[allow(unused_mut, unused_variables)]
                let mut $variable = $initial;
                while !done.load(Ordering::Relaxed) {
                    $body;
                }
            })
        }
    };
}

fn ready_loops() -> Vec<(&'static str, Loop)> {
    vec![
        ("sleep(ZERO)", until_done!(none = (), sleep(Duration::ZERO).await)),
        ("interval(1 ns)", until_done!(ticks = interval(Duration::from_nanos(1)), ticks.tick().await)),
        (
            "a late interval, Burst",
            until_done!(ticks = late(MissedTickBehavior::Burst), tick_and_work(&mut ticks).await),
        ),
        (
            "a late interval, Delay",
            until_done!(ticks = late(MissedTickBehavior::Delay), tick_and_work(&mut ticks).await),
        ),
        ("sleep_until(past)", until_done!(past = Instant::now(), sleep_until(past).await)),
        ("timeout(ZERO)", until_done!(none = (), assert!(timeout(Duration::ZERO, pending::<()>()).await.is_err()))),
        ("joins", until_done!(tasks = Vec::new(), join_next(&mut tasks).await)),
        ("a JoinSet", until_done!(set = JoinSet::new(), join_next_of_set(&mut set).await)),
        ("a triggered signal", until_done!(signal = triggered(), signal.triggered().await)),
        ("lookup_host of a literal", until_done!(none = (), drop(lookup_host("127.0.0.1:80").await))),
        ("consume_budget", until_done!(none = (), consume_budget().await)),
        ("yield_now", until_done!(none = (), yield_now().await)),
        (
            "join! of 500 reads",
            until_done!(streams = floods(500).await, drop(join_all(streams.iter().map(read_one)).await)),
        ),
        (
            "select! of 500 reads",
            until_done!(streams = floods(500).await, {
                drop(select_all(streams.iter().map(|stream| Box::pin(read_one(stream)))).await);
            }),
        ),
        (
            "FuturesUnordered of 500 reads",
            until_done!(streams = floods(500).await, {
                let mut reads: FuturesUnordered<_> = streams.iter().map(read_one).collect();
                while reads.next().await.is_some() {}
            }),
        ),
    ]
}

async fn tick_and_work(ticks: &mut Interval) {
    ticks.tick().await;
    spin(2 * MS);
}

async fn join_next(tasks: &mut Vec<JoinHandle<()>>) {
    if tasks.is_empty() {
        tasks.extend((0..10_000).map(|_| kittiwake::spawn(async {})));
    }
    tasks.pop().expect("there are some").await.expect("it ends");
}

async fn join_next_of_set(set: &mut JoinSet<()>) {
    if set.is_empty() {
        (0..10_000).for_each(|_| drop(set.spawn(async {})));
    }
    set.join_next().await.expect("there are some").expect("it ends");
}

fn late(behavior: MissedTickBehavior) -> Interval {
    let mut ticks = interval(MS);
    ticks.set_missed_tick_behavior(behavior);
    ticks
}

fn triggered() -> ShutdownSignal {
    let signal = ShutdownSignal::new();
    signal.trigger();
    signal
}

/// One stream that never runs dry, cloned: reads of 1 byte from a megabyte, again and again.
async fn floods(count: usize) -> Vec<Arc<TcpStream>> {
    let (listener, address) = listener().await;
    let mut writer = std::net::TcpStream::connect(address).expect("connect");
    let (reader, _) = listener.accept().await.expect("accept");
    let reader = Arc::new(reader);
    thread::spawn(move || {
        use std::io::Write;
        while writer.write_all(&[0; 4096]).is_ok() {}
    });
    vec![reader; count]
}

async fn read_one(stream: &Arc<TcpStream>) {
    (&**stream).read_exact(&mut [0]).await.expect("the writer goes on");
}

fn runtimes() -> [fn() -> Runtime; 3] {
    [one_worker, || workers(2), || workers(4)]
}

/// A neighbour's timer fires while the loop goes on. On several workers, each has such a loop.
#[test]
fn ready_loop_starves_no_timer() {
    for (name, ready_loop) in ready_loops() {
        for runtime in runtimes() {
            within(move || {
                let (runtime, done) = (runtime(), Arc::new(AtomicBool::new(false)));
                let count = runtime.handle().metrics().workers().len();
                let handle = runtime.handle();
                let loops: Vec<_> = (0..count).map(|_| handle.spawn(ready_loop(done.clone()))).collect();
                runtime.block_on(async {
                    for _ in 0..4 {
                        let neighbours: Vec<_> = (0..count).map(|_| kittiwake::spawn(sleep(10 * MS))).collect();
                        for neighbour in neighbours {
                            neighbour.await.unwrap_or_else(|error| panic!("{name}: {error}"));
                        }
                    }
                    assert!(!loops.iter().any(JoinHandle::is_finished), "{name}: the loop goes on beside it");
                    done.store(true, Ordering::Relaxed);
                    for task in loops {
                        task.await.unwrap_or_else(|error| panic!("{name}: {error}"));
                    }
                });
            });
        }
    }
}

/// A loop over timers that are due can be aborted, and ends with its runtime.
#[test]
fn ready_loop_can_be_aborted() {
    for runtime in runtimes() {
        within(move || {
            let runtime = runtime();
            let endless = async {
                loop {
                    sleep(Duration::ZERO).await;
                }
            };
            let task = runtime.handle().spawn(endless);
            drop(runtime.handle().spawn(async {
                loop {
                    sleep(Duration::ZERO).await;
                }
            }));
            runtime.block_on(async {
                sleep(MS).await;
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            });
            drop(runtime);
        });
    }
}

/// A future that is ready once the task has budget again counts as finished, although the time is over.
#[test]
fn timeout_without_budget_polls_once_more() {
    within(|| {
        kittiwake::block_on(async {
            let (mut stream, mut peer) = pair_with_std();
            std::io::Write::write_all(&mut peer, &[0; 1000]).expect("write");
            stream.readable().await.expect("readable");
            for read in 0..1000 {
                let result = timeout(Duration::ZERO, stream.read_exact(&mut [0])).await;
                assert!(result.is_ok(), "the time was over at read {read} of 1,000, and all bytes are there");
            }
        });
    });
}

/// A future that always uses up its budget has its time all the same.
#[test]
fn timeout_ends_endless_flood() {
    for runtime in runtimes() {
        within(move || {
            let runtime = runtime();
            runtime
                .block_on(runtime.handle().spawn(async {
                    let streams = floods(1).await;
                    let endless = async {
                        loop {
                            read_one(&streams[0]).await;
                        }
                    };
                    assert!(timeout(20 * MS, endless).await.is_err());
                }))
                .unwrap();
        });
    }
}

/// How many pieces of work each worker has ended after a deadline.
struct Pieces {
    deadline: Instant,
    late: HashMap<ThreadId, usize>,
}

impl Pieces {
    /// This worker has ended a piece.
    fn end(&mut self) {
        if Instant::now() >= self.deadline {
            *self.late.entry(thread::current().id()).or_default() += 1;
        }
    }
}

/// Sleeps for 1 ms beside as many tasks that work in pieces as there are workers, `rounds` times. Returns for each
/// round how many pieces a worker ended between the deadline and the end of the sleep. The lowest number is the first.
/// Pieces shorter than 1 ms do not count.
///
/// In each round that is the worker with the fewest: the machine may hold one up, and the sleeper with it, while another
/// runs the pieces of both.
fn pieces_before_sleeper(runtime: &Runtime, rounds: usize, length: fn(usize) -> Duration) -> Vec<usize> {
    let count = runtime.handle().metrics().workers().len();
    let never = Instant::now() + Duration::from_secs(3600);
    let pieces = Arc::new(Mutex::new(Pieces { deadline: never, late: HashMap::new() }));
    let (mut numbers, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let pieces = pieces.clone();
        busy.push(runtime.handle().spawn(async move {
            for piece in 0.. {
                spin(length(piece));
                if length(piece) >= MS {
                    pieces.lock().unwrap().end();
                }
                yield_now().await;
            }
        }));
    }
    runtime.block_on(async {
        // The size of a batch follows how long the last one took, so the first sleep does not count.
        for round in 0..=rounds {
            let pieces = pieces.clone();
            let late = kittiwake::spawn(async move {
                let deadline = Instant::now() + MS;
                *pieces.lock().unwrap() = Pieces { deadline, late: HashMap::new() };
                sleep_until(deadline).await;
                let late = &pieces.lock().unwrap().late;
                if late.len() < count { 0 } else { late.values().copied().min().unwrap_or(0) }
            });
            let late = late.await.unwrap();
            if round > 0 {
                numbers.push(late);
            }
        }
        busy.iter().for_each(JoinHandle::abort);
    });
    numbers.sort_unstable();
    numbers
}

/// The number of the rounds that is judged. It is the highest, and with several workers the median: in some rounds the
/// system may hold up the worker that has the timer, while another one goes on.
fn judged(runtime: &Runtime, rounds: &[usize]) -> usize {
    let highest = rounds.len() - 1;
    rounds[if runtime.handle().metrics().workers().len() == 1 { highest } else { highest / 2 }]
}

/// A timer waits for few pieces of a task that yields after each, however long they are.
#[test]
fn yielding_task_delays_timer_by_few_pieces() {
    let lengths: [fn(usize) -> Duration; 3] = [|_| MS, |_| 5 * MS, |_| 20 * MS];
    for length in lengths {
        for runtime in [one_worker as fn() -> Runtime, || workers(2)] {
            within(move || {
                let runtime = runtime();
                let rounds = pieces_before_sleeper(&runtime, 10, length);
                // Two pieces, what runs in 1 ms, and the pieces that are on their way.
                let longest = 4 + MS.div_duration_f64(length(0)) as usize;
                let most = judged(&runtime, &rounds);
                assert!(most <= longest, "so many pieces of {:?} ran before the timer: {rounds:?}", length(0));
            });
        }
    }
}

/// The same when the pieces grow from nothing to 20 ms while the task runs.
#[test]
fn growing_pieces_delay_timer_by_few() {
    for runtime in [one_worker as fn() -> Runtime, || workers(2)] {
        within(move || {
            let runtime = runtime();
            let rounds = pieces_before_sleeper(&runtime, 100, |piece| {
                if piece % 1000 < 990 { Duration::from_micros(1) } else { 20 * MS }
            });
            let most = rounds[rounds.len() - 1];
            let count = runtime.handle().metrics().workers().len();
            assert!(most <= 9, "{most} long pieces ran before the timer on {count} workers");
        });
    }
}

/// A loop that reads a flood and calls the function after each read.
type Reads = fn(Arc<TcpStream>, Box<dyn FnMut() + Send>) -> Boxed<()>;

const FLOOD_READS: [(&str, Reads); 4] = [
    ("reads of a kilobyte", |stream, mut work| {
        Box::pin(async move {
            loop {
                (&*stream).read_exact(&mut [0; 1024]).await.expect("the writer goes on");
                work();
            }
        })
    }),
    ("pieces in a buffer", |stream, mut work| {
        Box::pin(async move {
            let mut pieces = BufReader::new(&*stream).split(0);
            while pieces.next().await.is_some() {
                work();
            }
        })
    }),
    ("reads from a buffer", |stream, mut work| {
        Box::pin(async move {
            let mut reader = BufReader::new(&*stream);
            loop {
                reader.read_exact(&mut [0]).await.expect("the writer goes on");
                work();
            }
        })
    }),
    ("looks at a buffer", |stream, mut work| {
        Box::pin(async move {
            let mut reader = BufReader::new(&*stream);
            loop {
                reader.fill_buf().await.expect("the writer goes on");
                Pin::new(&mut reader).consume(1);
                work();
            }
        })
    }),
];

/// A timer waits for at most one budget of a task that reads a flood and works after each read, also if the reads find
/// their bytes in a buffer. That is 16 reads: a budget is over after 0.75 ms, and the clock is read once in 16 operations.
/// Another budget may pass until the timer's tick. Without that limit it would be a hundred. A flood for each worker, and the reads count that ran on the thread that the timer woke: the system
/// may hold one thread up while another goes on. It may also do so between the timer and the next look at it, so a few
/// rounds do not count.
#[test]
fn flood_with_work_delays_timer_by_one_budget() {
    for (name, reads) in FLOOD_READS {
        for runtime in [one_worker as fn() -> Runtime, || workers(2)] {
            within(move || {
                let runtime = runtime();
                let rounds = late_reads(&runtime, reads);
                assert!(judged(&runtime, &rounds[..45]) <= 64, "so many {name} ran before the timer: {rounds:?}");
            });
        }
    }
}

/// Sleeps for 1 ms beside a flood for each worker, 50 times. Returns the numbers of reads that ran between the deadline and
/// the end of the sleep, on the thread that the timer woke. The lowest is the first.
fn late_reads(runtime: &Runtime, reads: Reads) -> Vec<usize> {
    let count = runtime.handle().metrics().workers().len();
    let late = Arc::new(Mutex::new(Vec::new()));
    let deadline = Arc::new(Mutex::new(Instant::now() + Duration::from_secs(3600)));
    let busy: Vec<_> = (0..count)
        .map(|_| {
            let (late, deadline) = (late.clone(), deadline.clone());
            let after_read = move || {
                spin(Duration::from_micros(100));
                if Instant::now() >= *deadline.lock().unwrap() {
                    late.lock().unwrap().push(here());
                }
            };
            runtime.handle().spawn(async move { reads(floods(1).await.remove(0), Box::new(after_read)).await })
        })
        .collect();
    let round = || {
        let (late, deadline) = (late.clone(), deadline.clone());
        let round = runtime.handle().spawn(async move {
            let end = Instant::now() + MS;
            *deadline.lock().unwrap() = end;
            late.lock().unwrap().clear();
            sleep_until(end).await;
            late.lock().unwrap().iter().filter(|thread| **thread == here()).count()
        });
        runtime.block_on(round).unwrap()
    };
    let mut rounds: Vec<_> = (0..50).map(|_| round()).collect();
    busy.iter().for_each(JoinHandle::abort);
    rounds.sort_unstable();
    rounds
}

/// Reads so many bytes of a flood, one by one.
async fn read_flood(streams: &[Arc<TcpStream>], count: usize) {
    for _ in 0..count {
        read_one(&streams[0]).await;
    }
}

/// Makes a future that completes.
type Completes = fn() -> Boxed<()>;

/// Futures that complete behind a flood in their task.
fn complete_behind_flood() -> Vec<(&'static str, Completes)> {
    vec![
        ("a timer", || Box::pin(async { sleep(MS).await })),
        ("a timer that is due", || Box::pin(async { sleep_until(Instant::now()).await })),
        ("a timeout", || Box::pin(async { assert!(timeout(MS, pending::<()>()).await.is_err()) })),
        ("a timeout of a flood", || {
            Box::pin(async {
                let flood = async { read_flood(&floods(1).await, usize::MAX).await };
                assert!(timeout(MS, flood).await.is_err());
            })
        }),
        ("a task", || Box::pin(async { kittiwake::spawn(async {}).await.unwrap() })),
        ("a JoinSet", || {
            Box::pin(async {
                let mut set = JoinSet::new();
                set.spawn(async {});
                set.join_next().await.expect("there is one").unwrap();
            })
        }),
        ("a read under a timeout", || {
            Box::pin(async {
                let (mut stream, _peer) = pair_with_std();
                stream.set_read_timeout(Some(MS)).expect("a timeout");
                stream.read(&mut [0]).await.expect_err("the peer is silent");
            })
        }),
        ("a stream that has ended", || {
            Box::pin(async {
                let (stream, _) = pair_with_std();
                stream.closed().await.expect("the peer has closed its side");
            })
        }),
        ("an idle copy", || {
            Box::pin(async {
                let ((near, _near), (far, _far)) = (duplex(1), duplex(1));
                copy_bidirectional(near, far).idle_timeout(MS).await.expect_err("no byte moves");
            })
        }),
        ("a triggered signal", || Box::pin(async { triggered().triggered().await })),
    ]
}

/// A complete future is found behind a flood in the same task, which uses up the budget of each poll.
#[test]
fn flood_hides_nothing_behind_it() {
    for (name, behind) in complete_behind_flood() {
        for runtime in [one_worker as fn() -> Runtime, || workers(2)] {
            within(move || {
                let (runtime, behind) = (runtime(), behind());
                let found = runtime.handle().spawn(async {
                    let streams = floods(1).await;
                    // It runs dry at its begin only.
                    read_flood(&streams, 100_000).await;
                    let flood = async {
                        // Without an end the test would not say what was not found.
                        read_flood(&streams, 500_000).await;
                        false
                    };
                    let behind = async {
                        behind.await;
                        true
                    };
                    or(flood, behind).await
                });
                assert!(runtime.block_on(found).unwrap(), "{name} was not found behind a flood");
            });
        }
    }
}

/// A task that another thread has spawned or woken before a yield has run after it.
#[test]
fn posted_task_runs_before_yield_ends() {
    within(|| posted_task_runs_before_yield(&one_worker()));
}

/// The same beside a task that uses up its budget again and again, perhaps in the batch of the yield.
#[test]
fn flood_delays_no_posted_task() {
    within(|| {
        let runtime = one_worker();
        let flood = runtime.handle().spawn(async {
            loop {
                consume_budget().await;
            }
        });
        posted_task_runs_before_yield(&runtime);
        flood.abort();
    });
}

fn posted_task_runs_before_yield(runtime: &Runtime) {
    let handle = runtime.handle().clone();
    let (ask, asked) = mpsc::channel::<Arc<AtomicBool>>();
    let (answer, answered) = mpsc::channel();
    let poster = thread::spawn(move || {
        for ran in asked {
            drop(handle.spawn(async move { ran.store(true, Ordering::Relaxed) }));
            answer.send(()).unwrap();
        }
    });
    runtime.block_on(async move {
        for round in 0..200 {
            let ran = Arc::new(AtomicBool::new(false));
            ask.send(ran.clone()).unwrap();
            answered.recv().unwrap();
            yield_now().await;
            assert!(ran.load(Ordering::Relaxed), "round {round}: the task was posted before the yield");
        }
    });
    poster.join().unwrap();
}

/// A local task that yields resumes after the shared tasks that were ready, however many.
#[test]
fn local_yield_waits_for_shared_tasks() {
    for count in [1, 10, 200] {
        within(move || {
            let runtime = workers(2);
            let handle = runtime.handle().clone();
            // So that the other worker steals none of the tasks.
            let _blocked = block_workers(&handle, 1);
            let task = handle.spawn(async move { kittiwake::spawn_local(yield_to_shared(count)).await });
            runtime.block_on(task).expect("the task runs").expect("the local task runs");
        });
    }
}

async fn yield_to_shared(count: usize) {
    for round in 0..100 {
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..count {
            let ran = ran.clone();
            drop(kittiwake::spawn(async move { ran.fetch_add(1, Ordering::Relaxed) }));
        }
        yield_now().await;
        assert_eq!(ran.load(Ordering::Relaxed), count, "round {round}");
    }
}

/// A task that has used up its budget comes after the tasks that are ready, also if the future of the `block_on` call runs
/// next: that future's poll begins with a budget of its own, and must not hide that the task's was refused.
#[test]
#[cfg_attr(kittiwake_rng_seed, ignore = "it needs the usual order of tasks")]
fn refused_task_comes_last_behind_main() {
    within(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        kittiwake::block_on({
            let log = log.clone();
            async move {
                let to_last = Arc::new(AtomicWaker::new());
                let last = spawn_local({
                    let (log, to_last, mut waited) = (log.clone(), to_last.clone(), false);
                    poll_fn(move |cx| {
                        if replace(&mut waited, true) {
                            log.lock().unwrap().push("last");
                            return Poll::Ready(());
                        }
                        to_last.register(cx.waker());
                        Poll::Pending
                    })
                });
                yield_now().await;
                let greedy = spawn_local(async move {
                    for _ in 0..2 {
                        log.lock().unwrap().push("greedy");
                        use_up_budget().await;
                    }
                });
                // This future is queued behind the greedy task, before it wakes the other one.
                let mut waited = false;
                poll_fn(|cx| {
                    if replace(&mut waited, true) {
                        to_last.wake();
                        return Poll::Ready(());
                    }
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
                last.await.unwrap();
                greedy.await.unwrap();
            }
        });
        let log = log.lock().unwrap();
        assert_eq!(log[..2], ["greedy", "last"], "the task that was refused ran again first");
    });
}
