//! `Handle::metrics` reports what each worker holds and has done, while it runs and after its end.

mod support;

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Waker;
use std::thread;

use futures_lite::future::{self, poll_once};
use kittiwake::io::AsyncReadExt;
use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
use kittiwake::runtime::{Builder, Handle, Histogram, Metrics, Runtime, WorkerMetrics};
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::{Duration, Instant, sleep};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::*;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

// ---- current figures ----

/// `tasks_alive` counts the tasks whose future has not been dropped, so an operator can see a leak of tasks.
#[test]
fn tasks_alive_counts_undropped_futures() {
    on_one_and_several_workers(|runtime, count| {
        let handle = runtime.handle();
        let tasks = on_each(runtime, count, |_| {
            let mut tasks: Vec<JoinHandle<()>> = (0..7).map(|_| spawn(pending())).collect();
            if count_of_workers() > 1 {
                // In a `block_on` call local tasks would end with the call.
                tasks.extend((0..3).map(|_| spawn_local(pending())));
            }
            tasks
        });
        let each = if count == 1 { 7 } else { 10 };
        assert_eq!(handle.metrics().tasks_alive(), each * count);
        let workers = handle.metrics();
        let alive = workers.workers().iter().map(|worker| worker.tasks_alive);
        assert!(alive.clone().eq([each].repeat(count)), "a task must count on the worker that spawned it: {workers:?}");
        // A task counts whether or not it was polled. A main future and a closure do not count.
        let ((end, ended), (begin, begun)) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel());
        let closure = handle.spawn_blocking(move || {
            begin.send(()).unwrap();
            ended.recv().is_err()
        });
        begun.recv().expect("the task begins");
        assert_eq!(runtime.block_on(async { Handle::current().metrics().tasks_alive() }), each * count);
        drop(end);
        assert!(future::block_on(closure).expect("the closure ends"));
        let mut left = each * count;
        for task in tasks.into_iter().flatten() {
            task.abort();
            runtime.block_on(task).expect_err("the task was aborted");
            left -= 1;
            assert_eq!(handle.metrics().tasks_alive(), left, "a task that has ended must not count");
        }
    });
}

/// `timers_armed` counts the timers that wait, so an operator can see leftover timers.
#[test]
fn timers_armed_counts_waiting_timers() {
    on_one_and_several_workers(|runtime, count| {
        let sum = || runtime.handle().metrics().workers().iter().map(|worker| worker.timers_armed).sum::<usize>();
        let (begin, begun) = async_channel::unbounded();
        let tasks = on_each(runtime, count, move |_| {
            let sleeps = (0..5).map(|_| {
                let begin = begin.clone();
                spawn(async move {
                    let mut sleep = sleep(HOUR);
                    assert!(poll_once(&mut sleep).await.is_none(), "the sleep has time left");
                    begin.try_send(()).unwrap();
                    sleep.await;
                })
            });
            sleeps.collect::<Vec<_>>()
        });
        runtime.block_on(async {
            for _ in 0..5 * count {
                begun.recv().await.expect("the sleep ends");
            }
        });
        assert_eq!(sum(), 5 * count);
        runtime.block_on(async {
            for task in tasks.into_iter().flatten() {
                task.abort();
                task.await.expect_err("the task was aborted");
            }
            spawn(sleep(MS)).await.expect("the task ends");
        });
        assert_eq!(sum(), 0, "a removed or fired timer must not count");
    });
}

/// `sources_registered` counts the sockets that have waited, on the worker on which each first waited.
#[test]
fn sources_registered_counts_waiting_sockets() {
    on_one_and_several_workers(|runtime, count| {
        let sources = || runtime.handle().metrics().sources_registered();
        let streams = on_each(runtime, count, |_| {
            let (ours, peer) = pair_with_std();
            let waits = spawn_here(async {
                assert!(poll_once(ours.readable()).await.is_none(), "nothing was sent");
                ours
            });
            let (unused, its_peer) = pair_with_std();
            (waits, unused, peer, its_peer)
        });
        let streams: Vec<_> =
            streams.into_iter().map(|(waits, ..)| runtime.block_on(waits).expect("the task waits")).collect();
        assert_eq!(sources(), count, "only the sockets that have waited must count, one per worker");
        let each = runtime.handle().metrics();
        let each = each.workers().iter().map(|worker| worker.sources_registered);
        assert!(each.eq([1].repeat(count)), "a socket must count where it first waited");
        drop(streams);
        assert_eq!(sources(), 0, "a closed socket must not count");
    });
}

/// A `block_on` call beside the workers runs its tasks itself. Its sockets and timers wait with a worker.
#[test]
fn calls_sockets_count_at_workers() {
    within(|| {
        let runtime = workers(2);
        on_each_worker(runtime.handle(), 2, |_| ());
        let polls = |metrics: &[WorkerMetrics]| metrics.iter().map(|worker| worker.polls).sum::<u64>();
        let mut before = quiet_metrics(&runtime);
        while polls(&before) < 2 {
            // A worker counts its task some time after the task has ended.
            before = quiet_metrics(&runtime);
        }
        let ours = runtime.block_on(async {
            let (ours, peer) = pair_with_std();
            assert!(poll_once(ours.readable()).await.is_none(), "nothing was sent");
            let _local = spawn_local(sleep(HOUR));
            settle().await;
            let metrics = Handle::current().metrics();
            assert_eq!(metrics.sources_registered(), 1, "the socket waits with a worker");
            let armed: Vec<_> = metrics.workers().iter().map(|worker| worker.timers_armed).collect();
            assert_eq!(armed.iter().sum::<usize>(), 1, "the timer waits with a worker: {armed:?}");
            assert_eq!(metrics.tasks_alive(), 0, "the local task is the call's");
            (ours, peer)
        });
        let after = quiet_metrics(&runtime);
        assert_eq!(polls(&before), polls(&after), "no worker has run a task");
        assert!(after.iter().all(|worker| worker.timers_armed == 0), "the local task has ended with the call");
        let ours = runtime.block_on(async {
            let task = spawn(async move {
                assert!(poll_once(ours.0.readable()).await.is_none(), "nothing was sent");
                ours
            });
            task.await.expect("the task")
        });
        assert_eq!(runtime.handle().metrics().sources_registered(), 1, "the socket stays with its worker");
        drop(ours);
        assert_eq!(runtime.handle().metrics().sources_registered(), 0);
    });
}

/// A timer that has fired does not count as armed, even if its sleep is kept.
#[test]
fn fired_timer_is_not_armed() {
    within(|| {
        let runtime = one_worker();
        runtime.block_on(async {
            let (waker, wakes) = counting_waker();
            let mut fired = Box::pin(sleep(MS));
            // A thread that waits for a core for longer than that finds the deadline past, and arms no timer.
            while poll_with(&waker, &mut fired).is_ready() {
                fired = Box::pin(sleep(MS));
            }
            until(|| wakes.get() > 0).await;
            let armed = Handle::current().metrics().workers()[0].timers_armed;
            assert_eq!(armed, 0, "a fired timer must not count");
        });
    });
}

/// A panic of the main future does not spoil the count of polls.
#[test]
fn panicking_call_keeps_poll_count() {
    within(|| {
        let runtime = one_worker();
        let panicking = || {
            runtime.block_on(async {
                settle().await;
                std::panic::resume_unwind(Box::new("on purpose"));
            });
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).expect_err("the future panics");
        runtime.block_on(settle());
        let polls = runtime.handle().metrics().workers()[0].polls;
        assert!(polls < 1_000, "{polls} polls");
    });
}

/// The polls that end the tasks of a runtime are counted.
#[test]
fn shutdown_polls_are_counted() {
    within(|| {
        let runtime = one_worker();
        let handle = runtime.handle().clone();
        let tasks: Vec<_> = (0..50).map(|_| handle.spawn(pending::<()>())).collect();
        runtime.block_on(yield_now());
        let before = handle.metrics().workers()[0].polls;
        drop(runtime);
        assert_eq!(handle.metrics().workers()[0].polls - before, 50, "each task must be polled once to end it");
        drop(tasks);
    });
}

// ---- totals ----

/// `polls` counts the polls of tasks.
#[test]
fn polls_counts_task_polls() {
    on_one_and_several_workers(|runtime, count| {
        let polls = || sum(runtime, |worker| worker.polls);
        let before = polls();
        let tasks = on_each(runtime, count, |_| {
            let task = || spawn(async { (0..9).for_each(drop) });
            let yields = || {
                spawn(async {
                    for _ in 0..9 {
                        yield_now().await;
                    }
                })
            };
            [task(), yields(), yields()]
        });
        for task in tasks.into_iter().flatten() {
            runtime.block_on(task).expect("the task ends");
        }
        // Each call of `on_each` is one poll per worker, if the runtime has several workers.
        let expected = count as u64 * 21 + if count == 1 { 0 } else { count as u64 };
        let counted = wait_for_figure(|| polls() - before, expected);
        assert_eq!(counted, expected, "each task must take 1 poll, or 10 if it yields nine times");
    });
}

/// `turns` counts the turns of the reactor, and a sleeping worker makes none. The figure tells a sleeping worker
/// from a spinning one.
#[test]
fn turns_counts_reactor_turns() {
    on_one_and_several_workers(|runtime, count| {
        let turns = || sum(runtime, |worker| worker.turns);
        let before = turns();
        // The task waits for each of these messages, so the worker must poll the kernel each time.
        let (send, receive) = async_channel::bounded::<()>(1);
        let (back, received) = async_channel::bounded(1);
        let task = runtime.handle().spawn(async move {
            while receive.recv().await.is_ok() {
                sleep(Duration::from_micros(10)).await;
                back.send(()).await.unwrap();
            }
        });
        let client = thread::spawn(move || {
            for _ in 0..50 {
                send.send_blocking(()).unwrap();
                received.recv_blocking().unwrap();
            }
        });
        runtime.block_on(task).expect("the task ends");
        client.join().unwrap();
        assert!(turns() - before >= 50, "50 sleeps must take at least 50 turns: {}", turns() - before);
        if count > 1 {
            // The workers have no work, so they stop turning in the end.
            quiet_metrics(runtime);
        }
    });
}

/// A worker that has just run many tasks polls the kernel once more before it sleeps, because new events are
/// likely. After a few tasks it does not: a server with few clients would make one more system call per request.
#[test]
fn worker_rechecks_after_many_tasks() {
    let turns = |tasks: usize| {
        run_paused(move || async move {
            (0..tasks).for_each(|_| drop(spawn(async {})));
            // A worker without sockets takes one turn to sleep, until the clock advances.
            sleep(MS).await;
            Handle::current().metrics().workers()[0].turns
        })
    };
    assert_eq!([0, 1, 7, 8, 20, 64, 65].map(turns), [1, 1, 1, 2, 2, 2, 2]);
}

/// `events` counts the events that the kernel has reported: each byte that comes while a task waits for it is one.
#[test]
fn events_counts_kernel_events() {
    on_one_and_several_workers(|runtime, count| {
        let events = || sum(runtime, |worker| worker.events);
        let streams = on_each(runtime, count, |_| pair_with_std());
        let (streams, mut peers): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        let before = events();
        let (notify, notified) = async_channel::unbounded();
        let tasks: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                let notify = notify.clone();
                runtime.handle().spawn(async move {
                    for _ in 0..20 {
                        let mut byte = [0];
                        let mut read = stream.read_exact(&mut byte);
                        assert!(poll_once(&mut read).await.is_none(), "a byte that is there already is no event");
                        notify.try_send(()).unwrap();
                        read.await.expect("read");
                    }
                })
            })
            .collect();
        let writer = thread::spawn(move || {
            for _ in 0..20 {
                peers.iter().for_each(|_| notified.recv_blocking().unwrap());
                peers.iter_mut().for_each(|peer| peer.write_all(b"x").expect("write"));
            }
            peers
        });
        for task in tasks {
            runtime.block_on(task).expect("the task reads");
        }
        let _peers = writer.join().unwrap();
        // A worker counts the events of a turn after it has woken the tasks.
        let expected = before + 20 * count as u64;
        let reported = wait_for_figure(events, expected);
        assert!(reported >= expected, "each byte must be reported: {} of {}", reported - before, expected - before);
    });
}

/// One byte for one socket is one event.
#[test]
fn one_byte_is_one_event() {
    within(|| {
        let runtime = support::one_worker();
        let (stream, mut peer) = pair_with_std();
        runtime.block_on(async {
            assert!(poll_once(stream.readable()).await.is_none(), "nothing was sent");
            settle().await;
            let events = || Handle::current().metrics().workers()[0].events;
            let before = events();
            peer.write_all(b"x").expect("write");
            stream.readable().await.expect("the byte");
            settle().await;
            assert_eq!(events() - before, 1);
        });
    });
}

/// `accepts` counts the connections that each worker has accepted.
#[test]
fn accepts_counts_accepted_connections() {
    on_one_and_several_workers(|runtime, count| {
        let accepts = || sum(runtime, |worker| worker.accepts);
        let listener = Arc::new(runtime.block_on(listener()));
        let accept = |listener: Arc<(TcpListener, _)>| async move {
            for _ in 0..9 {
                drop(listener.0.accept().await.expect("accept"));
            }
        };
        let tasks: Vec<_> = (0..2).map(|_| runtime.handle().spawn(accept(listener.clone()))).collect();
        let clients: Vec<_> = (0..18).map(|_| std::net::TcpStream::connect(listener.1).expect("connect")).collect();
        for task in tasks {
            runtime.block_on(task).expect("the listener accepts");
        }
        assert_eq!(wait_for_figure(accepts, 18), 18, "each connection must count once");
        // The connections of a server count too.
        let shutdown = ShutdownSignal::new();
        let server = runtime.handle().spawn({
            let (tie, (listener, address)) = (shutdown.clone(), runtime.block_on(support::listener()));
            let clients: Vec<_> = (0..5).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
            async move {
                let _clients = clients;
                let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
                let ends = tie.clone();
                serve(listener, move |_stream: TcpStream, _| {
                    if count.fetch_add(1, SeqCst) == 4 {
                        ends.trigger();
                    }
                    async {}
                })
                .with_shutdown(&tie)
                .await
            }
        });
        let report = runtime.block_on(server).expect("a server").expect("the task ends without an error");
        assert_eq!(report.accepted, 5);
        assert_eq!(wait_for_figure(accepts, 23), 23, "the connections of a server must count too");
        assert_eq!(runtime.handle().metrics().workers().len(), count);
        drop(clients);
    });
}

/// `budget_yields` counts how often a task yielded because its budget was used up.
#[test]
fn budget_yields_counts_forced_yields() {
    on_one_and_several_workers(|runtime, _| {
        let yields = || sum(runtime, |worker| worker.budget_yields);
        let (mut stream, mut peer) = pair_with_std();
        peer.write_all(&[0; 4096]).expect("write");
        runtime
            .block_on(runtime.handle().spawn(async move {
                stream.readable().await.expect("readable");
                // Fewer than the 16 that a poll may always do, however long they take.
                for _ in 0..10 {
                    stream.read_exact(&mut [0]).await.expect("read");
                }
                yield_now().await;
                assert_eq!(Handle::current().metrics().workers().iter().map(|w| w.budget_yields).sum::<u64>(), 0);
                for _ in 0..1280 {
                    stream.read_exact(&mut [0]).await.expect("read");
                }
            }))
            .expect("the task reads");
        // One poll may do 128 reads, or fewer on a slow machine: at least 16. The task does not yield after the last one.
        let yields = wait_for_figure(yields, 9);
        assert!((9..80).contains(&yields), "1280 reads must use ten budgets or more, and not {yields}");
        drop(peer);
    });
}

/// `remote_wakes` counts the wakes from threads that are not workers of this runtime.
#[test]
fn remote_wakes_counts_outside_wakes() {
    on_one_and_several_workers(|runtime, count| {
        let remote = || sum(runtime, |worker| worker.remote_wakes);
        let before = remote();
        let (send, receive) = async_channel::unbounded::<()>();
        let task = runtime.handle().spawn(async move {
            let mut received = 0;
            while receive.recv().await.is_ok() {
                received += 1;
            }
            received
        });
        assert_eq!(remote() - before, 1, "a spawn");
        for _ in 0..20 {
            drop(runtime.handle().spawn(async {}));
        }
        assert_eq!(remote() - before, 21, "each spawn must count once");
        // Some of these messages find the task waiting.
        let quiet = |at_most: u64| {
            let before = remote();
            let stop = Arc::new(AtomicBool::new(false));
            let sender = thread::spawn({
                let (send, stop) = (send.clone(), stop.clone());
                move || {
                    let mut sent = 0;
                    while !stop.load(SeqCst) && sent < at_most {
                        send.try_send(()).unwrap();
                        sent += 1;
                        thread::yield_now();
                    }
                    sent
                }
            });
            runtime.block_on(until(|| remote() > before || sender.is_finished()));
            stop.store(true, SeqCst);
            let sent = sender.join().unwrap();
            assert!(remote() - before <= sent + 1, "the wakes must not exceed the messages: {}", remote() - before);
            remote() - before
        };
        assert!(quiet(1_000_000) > 0, "a wake from outside must count");
        drop(send);
        let received = runtime.block_on(task).expect("the task ends");
        assert!(received > 0);
        if count > 1 {
            let before = remote();
            // From here on only workers wake each other.
            let tasks = on_each_worker(runtime.handle(), count, |_| {
                let (ping, pong) = (async_channel::bounded::<()>(1), async_channel::bounded::<()>(1));
                let there = spawn(async move {
                    while ping.1.recv().await.is_ok() {
                        pong.0.send(()).await.expect("the channel has a receiver");
                    }
                });
                spawn(async move {
                    for _ in 0..200 {
                        ping.0.send(()).await.expect("the channel has a receiver");
                        pong.1.recv().await.expect("the server answers");
                    }
                    drop(ping.0);
                    there.await.expect("the task ends");
                })
            });
            tasks.into_iter().for_each(|task| future::block_on(task).expect("the task ends"));
            assert_eq!(
                remote() - before,
                count as u64,
                "only the spawns of the test must count, and no wake from a worker"
            );
        }
    });
}

/// The sleep of a worker counts while it lasts. Otherwise a worker that sleeps for a minute would look busy until it
/// wakes.
#[test]
fn sleeping_worker_counts_as_parked() {
    const WAIT: Duration = Duration::from_millis(20);
    within(|| {
        let runtime = workers(1);
        let metrics = || runtime.handle().metrics().workers()[0].clone();
        let mut before = metrics();
        loop {
            let after = metrics();
            if after.turns != before.turns {
                // The worker woke meanwhile.
                before = after;
            } else if after.parked >= before.parked + WAIT {
                break;
            }
            std::thread::yield_now();
        }
    });
}

/// `parked` is the time for which a worker has slept.
#[test]
fn parked_counts_sleeping_time() {
    const WAIT: Duration = Duration::from_millis(30);
    within(|| {
        for count in [1, 2, 3] {
            let start = std::time::Instant::now();
            let runtime = workers(count);
            let parked = || sum_of(&runtime, |worker| worker.parked);
            // On a busy machine the sleep may end before the worker sleeps.
            while parked() < WAIT {
                runtime.block_on(runtime.handle().spawn(async { sleep(WAIT).await })).expect("the task ends");
            }
            assert!(
                parked() <= start.elapsed() * count as u32,
                "no worker can sleep for longer than the elapsed time: {:?}",
                parked()
            );
        }
        // A busy worker does not sleep.
        let runtime = one_worker();
        runtime.block_on(async {
            let start = std::time::Instant::now();
            while start.elapsed() < WAIT {
                yield_now().await;
            }
        });
        assert_eq!(sum_of(&runtime, |worker| worker.parked), Duration::ZERO);
    });
}

/// `Metrics::blocking` counts the threads for blocking work, and what runs and waits there, so an operator can see that
/// the limit is reached.
#[test]
fn blocking_counts_threads_and_closures() {
    within(|| {
        let runtime = blocking_threads(1);
        let blocking = || runtime.handle().metrics().blocking().clone();
        let counts = || {
            let now = blocking();
            (now.threads, now.idle_threads, now.closures_running, now.closures_waiting)
        };
        assert_eq!(counts(), (0, 0, 0, 0), "a runtime begins without such a thread");
        let ((begin, begun), (end, ended)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let first = runtime.handle().spawn_blocking(move || {
            begin.send(()).unwrap();
            ended.recv().is_err()
        });
        begun.recv().expect("the closure begins");
        let second = runtime.handle().spawn_blocking(|| ());
        assert_eq!(counts(), (1, 0, 1, 1), "the second closure must wait for the first");
        assert_eq!((blocking().lookups_running, blocking().lookups_waiting), (0, 0), "closures are no look-ups");
        drop(end);
        assert!(runtime.block_on(first).expect("the closure ends"));
        runtime.block_on(second).expect("the closure ends");
        runtime.block_on(until(|| counts() == (1, 1, 0, 0)));
    });
}

// ---- measured times ----

/// A runtime measures nothing unless it was asked to: readings of the clock cost time.
#[test]
fn measures_exist_only_on_request() {
    within(|| {
        let builders = [Builder::new_current_thread(), Builder::new_multi_thread().worker_threads(2)];
        for (builder, measures) in builders.iter().flat_map(|builder| [(builder, false), (builder, true)]) {
            let builder = if measures { builder.clone().measure_polls(true) } else { builder.clone() };
            let runtime = builder.build().expect("a runtime");
            runtime.block_on(async { spawn(sleep(MS)).await.expect("the task ends") });
            let metrics = runtime.handle().metrics();
            assert_eq!(metrics.poll_times().is_some(), measures, "{builder:?}");
            assert_eq!(metrics.lateness().is_some(), measures, "{builder:?}");
            for worker in metrics.workers() {
                assert_eq!(worker.busy.is_some(), measures, "{builder:?}");
                let sum = worker.poll_times.as_ref().map(Histogram::sum);
                assert_eq!(worker.busy, sum, "the busy time must be the sum of the poll times");
            }
        }
    });
}

/// A timer that becomes due while its worker is blocked fires late, and the lateness tells by how much.
#[test]
fn lateness_counts_blocked_time() {
    const BLOCK: Duration = Duration::from_millis(20);
    within(|| {
        for builder in [Builder::new_current_thread(), Builder::new_multi_thread().worker_threads(2)] {
            let runtime = builder.measure_polls(true).build().expect("a runtime");
            let count = runtime.handle().metrics().workers().len();
            let _sleeps = on_each(&runtime, count, |_| {
                // On a busy machine a sleep may be over before it is polled, and then it needs no timer.
                let sleeps = std::iter::repeat_with(|| Box::pin(sleep(MS)));
                let mut waiting =
                    sleeps.filter_map(|mut sleep| poll_with(Waker::noop(), &mut sleep).is_pending().then_some(sleep));
                let sleep = waiting.next().expect("a sleep that waits");
                while Instant::now() < sleep.deadline() + BLOCK {}
                sleep
            });
            let lateness = || runtime.handle().metrics().lateness().expect("the runtime measures");
            // The first worker that ends its block finds its own timer. Until then the others are blocked too.
            runtime.block_on(until(|| lateness().max() >= BLOCK));
            let lateness = lateness();
            assert!(lateness.count() <= count as u64, "each firing must count once: {lateness:?}");
        }
    });
}

/// The timers that fire together count once, with the lateness of the earliest one. A paused clock makes it exact.
#[test]
fn lateness_is_of_earliest_timer() {
    within(|| {
        let runtime = Builder::new_current_thread().start_paused(true).measure_polls(true).build().expect("a runtime");
        runtime.block_on(async {
            let mut sleeps = [3, 5, 4].map(|millis| Box::pin(sleep(MS * millis)));
            for sleep in &mut sleeps {
                assert!(poll_once(sleep).await.is_none(), "the sleep has time left");
            }
            kittiwake::time::resume();
            let latest = sleeps[1].deadline();
            while Instant::now() < latest + MS {}
            kittiwake::time::pause();
            // Only the worker moves this clock now, so the timers fire at the present.
            let (now, earliest) = (Instant::now(), sleeps[0].deadline());
            let lateness = || Handle::current().metrics().lateness().expect("the runtime measures");
            until(|| lateness().count() > 0).await;
            assert_eq!((lateness().count(), lateness().max()), (1, now - earliest));
        });
    });
}

// ---- Prometheus ----

/// The text for Prometheus has each figure of each worker, and cumulative buckets that end with the count.
#[test]
fn prometheus_text_has_all_figures() {
    within(|| {
        let metrics = worked();
        let text = metrics.prometheus();
        let samples = samples(&text);
        let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("there is no {name} in:\n{text}"));
        for (index, worker) in metrics.workers().iter().enumerate() {
            let figures = [
                ("tasks_alive", worker.tasks_alive as f64),
                ("timers_armed", worker.timers_armed as f64),
                ("sources_registered", worker.sources_registered as f64),
                ("polls_total", worker.polls as f64),
                ("remote_wakes_total", worker.remote_wakes as f64),
                ("turns_total", worker.turns as f64),
                ("events_total", worker.events as f64),
                ("parked_seconds_total", worker.parked.as_secs_f64()),
                ("budget_yields_total", worker.budget_yields as f64),
                ("accepts_total", worker.accepts as f64),
                ("busy_seconds_total", worker.busy.expect("the runtime measures").as_secs_f64()),
            ];
            for (name, figure) in figures {
                assert_eq!(value(&format!("kittiwake_{name}{{worker=\"{index}\"}}")), figure, "{name} of {worker:?}");
            }
        }
        let blocking = metrics.blocking();
        assert_eq!(value("kittiwake_blocking_threads"), blocking.threads as f64);
        assert_eq!(value("kittiwake_blocking_idle_threads"), blocking.idle_threads as f64);
        assert_eq!(value("kittiwake_blocking_running{work=\"closure\"}"), blocking.closures_running as f64);
        assert_eq!(value("kittiwake_blocking_waiting{work=\"lookup\"}"), blocking.lookups_waiting as f64);
        let histograms = [("poll_duration", metrics.poll_times()), ("timer_lateness", metrics.lateness())];
        for (name, histogram) in histograms {
            let (name, histogram) = (format!("kittiwake_{name}_seconds"), histogram.expect("the runtime measures"));
            assert_eq!(value(&format!("{name}_sum")), histogram.sum().as_secs_f64());
            for end in ["_count", "_bucket{le=\"+Inf\"}"] {
                assert_eq!(value(&format!("{name}{end}")), histogram.count() as f64, "{name}{end}");
            }
            for power in 10..=34 {
                let bound = Duration::from_nanos(1 << power);
                let up_to = histogram.buckets().filter(|(longest, _)| *longest <= bound).map(|(_, count)| count);
                let le = bound.as_secs_f64();
                assert_eq!(
                    value(&format!("{name}_bucket{{le=\"{le}\"}}")),
                    up_to.sum::<u64>() as f64,
                    "up to {bound:?}"
                );
            }
        }
    });
}

/// `promtool`, which comes with Prometheus, finds no fault in the text: neither in its form nor in its names.
#[test]
fn promtool_finds_no_fault() {
    within(|| {
        let unmeasured = Builder::new_current_thread().build().expect("a runtime").handle().metrics();
        for metrics in [worked(), unmeasured] {
            let promtool = Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            let mut promtool = match promtool {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return eprintln!("promtool_finds_no_fault is skipped: there is no promtool");
                }
                promtool => promtool.expect("promtool starts"),
            };
            let text = metrics.prometheus();
            promtool.stdin.take().expect("its input").write_all(text.as_bytes()).expect("promtool reads");
            let output = promtool.wait_with_output().expect("promtool ends");
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(
                output.status.success() && out.is_empty() && err.is_empty(),
                "promtool says:\n{out}{err}\nof:\n{text}"
            );
        }
    });
}

// ---- after the end ----

/// The metrics outlive their runtime, so that a program can report them at its end.
#[test]
fn metrics_outlive_their_runtime() {
    on_one_and_several_workers_given(|runtime, count| {
        let handle = runtime.handle().clone();
        let (ours, _peer) = pair_with_std();
        let ours = Arc::new(ours);
        let waits = runtime.handle().spawn({
            let ours = ours.clone();
            async move {
                assert!(poll_once(ours.readable()).await.is_none(), "nothing was sent");
                spawn_blocking(|| ()).await.expect("the task runs");
                let _sleep = poll_once(Box::pin(sleep(HOUR))).await;
                drop(spawn(sleep(HOUR)));
            }
        });
        runtime.block_on(waits).expect("the task waits");
        runtime.block_on(settle());
        let before = handle.metrics();
        assert!(before.tasks_alive() == 1 && before.sources_registered() == 1, "{before:?}");
        drop(runtime);
        let after = handle.metrics();
        assert_eq!(after.workers().len(), count);
        assert_eq!(
            (after.tasks_alive(), after.sources_registered()),
            (0, 0),
            "nothing may be alive after the end: {after:?}"
        );
        assert!(
            after.workers().iter().all(|worker| worker.timers_armed == 0),
            "no timer may be armed after the end: {after:?}"
        );
        for (before, after) in before.workers().iter().zip(after.workers()) {
            assert!(after.polls >= before.polls && after.turns >= before.turns, "the totals must not decrease");
        }
        assert!(after.workers().iter().map(|worker| worker.polls).sum::<u64>() > 0);
        future::block_on(handle.spawn(async {})).expect_err("the runtime has ended");
        assert_eq!(handle.metrics().tasks_alive(), 0, "a refused task must not count");
    });
}

// ---- helpers ----

/// The metrics of a runtime that measures, and whose figures are mostly not zero.
fn worked() -> Metrics {
    let runtime = Builder::new_multi_thread().worker_threads(2).measure_polls(true).build().expect("a runtime");
    runtime.block_on(async {
        let (listener, address) = listener().await;
        let _client = TcpStream::connect(address).await.expect("connect");
        listener.accept().await.expect("accept");
        for _ in 0..5 {
            spawn(sleep(MS)).await.expect("the task ends");
        }
        spawn_blocking(|| ()).await.expect("the closure ends");
    });
    drop(runtime.handle().spawn(pending::<()>()));
    runtime.handle().metrics()
}

/// The samples of a text for Prometheus, by name and labels. Each must come after the type of its family.
#[track_caller]
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut family) = (BTreeMap::new(), "");
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split(' ').next().expect("a name");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(!family.is_empty() && name.starts_with(family), "the sample {name} is in the family {family}");
            let value = value.parse().expect("a number");
            assert_eq!(samples.insert(name.to_owned(), value), None, "{name} is there twice");
        }
    }
    samples
}

/// The number of workers of this thread's runtime.
fn count_of_workers() -> usize {
    Handle::current().metrics().workers().len()
}

/// Spawns a task that stays on this worker, if the runtime has several.
fn spawn_here<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if count_of_workers() > 1 { spawn_local(future) } else { spawn(future) }
}

#[track_caller]
fn on_one_and_several_workers(test: impl Fn(&Runtime, usize) + Clone + Send + 'static) {
    on_one_and_several_workers_given(move |runtime, count| test(&runtime, count));
}

#[track_caller]
fn on_one_and_several_workers_given(test: impl Fn(Runtime, usize) + Clone + Send + 'static) {
    within(move || {
        test(one_worker(), 1);
        for count in [2, 3] {
            test(workers(count), count);
        }
    });
}

/// Calls `work` on each worker. The only worker of a runtime is the thread inside `block_on`.
#[track_caller]
fn on_each<T: Send + 'static>(
    runtime: &Runtime,
    count: usize,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    if count == 1 {
        return vec![runtime.block_on(async { work(0) })];
    }
    on_each_worker(runtime.handle(), count, work)
}

fn sum(runtime: &Runtime, figure: impl Fn(&WorkerMetrics) -> u64) -> u64 {
    runtime.handle().metrics().workers().iter().map(figure).sum()
}

fn sum_of(runtime: &Runtime, figure: impl Fn(&WorkerMetrics) -> Duration) -> Duration {
    runtime.handle().metrics().workers().iter().map(figure).sum()
}

/// Waits until a figure reaches its expected value, because workers publish it at the end of a batch, for at most half
/// a minute. Then yields a little longer and returns the figure.
fn wait_for_figure(figure: impl Fn() -> u64, expected: u64) -> u64 {
    let latest = Instant::now() + Duration::from_secs(30);
    while figure() < expected && Instant::now() < latest {
        thread::yield_now();
    }
    for _ in 0..100 {
        thread::yield_now();
    }
    figure()
}
