//! `Handle::metrics`: what each worker holds and has done, while it runs and after its end.

mod support;

use std::future::pending;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use futures_lite::future::{self, poll_once};
use kittiwake::io::AsyncReadExt;
use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
use kittiwake::runtime::{Handle, Runtime, WorkerMetrics};
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::{Duration, sleep};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::*;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

// ---- what there is ----

/// Without it nobody sees a leak of tasks before the memory is gone.
#[test]
fn tasks_alive_are_those_whose_future_is_there() {
    on_one_and_several_workers(|runtime, count| {
        let handle = runtime.handle();
        let tasks = on_each(runtime, count, |_| {
            let mut tasks: Vec<JoinHandle<()>> = (0..7).map(|_| spawn(pending())).collect();
            if count_of_workers() > 1 {
                // In a call they would end with it.
                tasks.extend((0..3).map(|_| spawn_local(pending())));
            }
            tasks
        });
        let each = if count == 1 { 7 } else { 10 };
        assert_eq!(handle.metrics().tasks_alive(), each * count);
        let workers = handle.metrics();
        let alive = workers.workers().iter().map(|worker| worker.tasks_alive);
        assert!(alive.clone().eq([each].repeat(count)), "a task counts where it was spawned: {workers:?}");
        // Whether it was polled makes no difference, and a main future or a closure is no task.
        let ((end, ended), (begin, begun)) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel());
        let closure = handle.spawn_blocking(move || {
            begin.send(()).unwrap();
            ended.recv().is_err()
        });
        begun.recv().expect("it begins");
        assert_eq!(runtime.block_on(async { Handle::current().metrics().tasks_alive() }), each * count);
        drop(end);
        assert!(future::block_on(closure).expect("it ends"));
        let mut left = each * count;
        for task in tasks.into_iter().flatten() {
            task.abort();
            runtime.block_on(task).expect_err("it was aborted");
            left -= 1;
            assert_eq!(handle.metrics().tasks_alive(), left, "a task that has ended does not count");
        }
    });
}

/// Without it nobody sees that timers are left behind.
#[test]
fn timers_armed_are_those_that_wait() {
    on_one_and_several_workers(|runtime, count| {
        let sum = || runtime.handle().metrics().workers().iter().map(|worker| worker.timers_armed).sum::<usize>();
        let (begin, begun) = async_channel::unbounded();
        let tasks = on_each(runtime, count, move |_| {
            let sleeps = (0..5).map(|_| {
                let begin = begin.clone();
                spawn(async move {
                    let mut sleep = sleep(HOUR);
                    assert!(poll_once(&mut sleep).await.is_none(), "there is time");
                    begin.try_send(()).unwrap();
                    sleep.await;
                })
            });
            sleeps.collect::<Vec<_>>()
        });
        runtime.block_on(async {
            for _ in 0..5 * count {
                begun.recv().await.expect("it sleeps");
            }
        });
        assert_eq!(sum(), 5 * count);
        runtime.block_on(async {
            for task in tasks.into_iter().flatten() {
                task.abort();
                task.await.expect_err("it was aborted");
            }
            spawn(sleep(MS)).await.expect("it ends");
        });
        assert_eq!(sum(), 0, "a timer that was taken away or has fired does not wait");
    });
}

/// Without it nobody sees that sockets are left behind, nor on which worker they are.
#[test]
fn sources_registered_are_the_sockets_that_have_waited() {
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
            streams.into_iter().map(|(waits, ..)| runtime.block_on(waits).expect("it waits")).collect();
        assert_eq!(sources(), count, "one for each worker; those that have not waited are not watched");
        let each = runtime.handle().metrics();
        let each = each.workers().iter().map(|worker| worker.sources_registered);
        assert!(each.eq([1].repeat(count)), "a socket is where it first waited");
        drop(streams);
        assert_eq!(sources(), 0, "a socket that is closed is watched by nobody");
    });
}

/// What a call has beside the workers is its own, until it leaves it to them.
#[test]
fn a_guest_is_counted_apart_and_what_it_leaves_is_the_workers() {
    within(|| {
        let runtime = workers(2);
        on_each_worker(runtime.handle(), 2, |_| ());
        let before = settled(&runtime);
        let ours = runtime.block_on(async {
            let (ours, peer) = pair_with_std();
            assert!(poll_once(ours.readable()).await.is_none(), "nothing was sent");
            let _local = spawn_local(sleep(HOUR));
            settle().await;
            let metrics = Handle::current().metrics();
            assert_eq!(metrics.sources_registered(), 0, "the guest's socket");
            assert_eq!(metrics.tasks_alive(), 0, "the guest's task");
            let [guest] = metrics.guests() else { panic!("one guest is there: {metrics:?}") };
            assert_eq!((guest.sources_registered, guest.tasks_alive, guest.timers_armed), (1, 1, 1));
            (ours, peer)
        });
        assert!(runtime.handle().metrics().guests().is_empty(), "the guest has left");
        let after = settled(&runtime);
        let polls = |metrics: &[WorkerMetrics]| metrics.iter().map(|worker| worker.polls).sum::<u64>();
        assert_eq!(polls(&before), polls(&after), "no worker has run a task");
        assert!(after.iter().all(|worker| worker.timers_armed == 0));
        assert_eq!(runtime.handle().metrics().sources_registered(), 1, "the socket goes on on a worker");
        drop(ours);
        assert_eq!(runtime.handle().metrics().sources_registered(), 0);
    });
}

/// Without it a server that keeps the sleeps of its clients seems to wait for what is long over.
#[test]
fn a_timer_that_has_fired_is_not_armed() {
    within(|| {
        let runtime = one_worker();
        runtime.block_on(async {
            let mut fired = Box::pin(sleep(MS));
            let (waker, wakes) = counting_waker();
            assert!(poll_with(&waker, &mut fired).is_pending());
            until(|| wakes.get() > 0).await;
            let armed = Handle::current().metrics().workers()[0].timers_armed;
            assert_eq!(armed, 0, "it has fired, and is still there");
        });
    });
}

/// Without it the last thing that a runtime does is not seen.
#[test]
fn polls_of_the_end_are_counted() {
    within(|| {
        let runtime = one_worker();
        let handle = runtime.handle().clone();
        let tasks: Vec<_> = (0..50).map(|_| handle.spawn(pending::<()>())).collect();
        runtime.block_on(yield_now());
        let before = handle.metrics().workers()[0].polls;
        drop(runtime);
        assert_eq!(handle.metrics().workers()[0].polls - before, 50, "each is polled once to end it");
        drop(tasks);
    });
}

// ---- what was done ----

/// Without it nobody knows what a worker is busy with.
#[test]
fn polls_are_the_times_that_tasks_were_run() {
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
            runtime.block_on(task).expect("it ends");
        }
        // The tasks of on_each are one poll each, if they are tasks.
        let expected = count as u64 * 21 + if count == 1 { 0 } else { count as u64 };
        let counted = settle_at(|| polls() - before, expected);
        assert_eq!(counted, expected, "1 poll, or 10 for a task that gives way nine times");
    });
}

/// Without it nobody can tell a worker that sleeps from one that spins.
#[test]
fn turns_are_the_looks_at_the_kernel_and_a_worker_that_sleeps_makes_none() {
    on_one_and_several_workers(|runtime, count| {
        let turns = || sum(runtime, |worker| worker.turns);
        let before = turns();
        // Each of these words is waited for, so the worker must look at the kernel each time.
        let (send, receive) = async_channel::bounded::<()>(1);
        let (back, heard) = async_channel::bounded(1);
        let task = runtime.handle().spawn(async move {
            while receive.recv().await.is_ok() {
                sleep(Duration::from_micros(10)).await;
                back.send(()).await.unwrap();
            }
        });
        let client = thread::spawn(move || {
            for _ in 0..50 {
                send.send_blocking(()).unwrap();
                heard.recv_blocking().unwrap();
            }
        });
        runtime.block_on(task).expect("it ends");
        client.join().unwrap();
        assert!(turns() - before >= 50, "each of 50 sleeps takes a turn at least: {}", turns() - before);
        if count > 1 {
            // Nobody has anything to do: in the end they stop looking.
            settled(runtime);
        }
    });
}

/// Under load something has come by the time that a batch is over: whoever has just run much does not go to sleep without a
/// look. Whoever has run little does: the look would be a system call for each request of a few clients.
#[test]
fn a_worker_looks_once_more_before_it_sleeps_only_after_many_tasks() {
    let turns = |tasks: usize| {
        run_paused(move || async move {
            (0..tasks).for_each(|_| drop(spawn(async {})));
            // With no socket it is one turn to sleep, until the clock jumps.
            sleep(MS).await;
            Handle::current().metrics().workers()[0].turns
        })
    };
    assert_eq!([0, 1, 7, 8, 20, 64, 65].map(turns), [1, 1, 1, 2, 2, 2, 2]);
}

/// Without it a worker that has too much to do looks like one that has nothing.
#[test]
fn events_are_what_the_kernel_has_reported() {
    on_one_and_several_workers(|runtime, count| {
        let events = || sum(runtime, |worker| worker.events);
        let streams = on_each(runtime, count, |_| pair_with_std());
        let (streams, mut peers): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        let before = events();
        let (tell, told) = async_channel::unbounded();
        let tasks: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                let tell = tell.clone();
                runtime.handle().spawn(async move {
                    for _ in 0..20 {
                        tell.try_send(()).unwrap();
                        stream.read_exact(&mut [0]).await.expect("read");
                    }
                })
            })
            .collect();
        let writer = thread::spawn(move || {
            for _ in 0..20 {
                // All wait, or are about to.
                peers.iter().for_each(|_| told.recv_blocking().unwrap());
                peers.iter_mut().for_each(|peer| peer.write_all(b"x").expect("write"));
            }
            peers
        });
        for task in tasks {
            runtime.block_on(task).expect("it reads");
        }
        let _peers = writer.join().unwrap();
        assert!(events() - before >= count as u64, "each socket was reported: {}", events() - before);
    });
}

/// Without it nobody sees which worker takes the connections.
#[test]
fn accepts_are_the_connections_that_a_worker_has_accepted() {
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
            runtime.block_on(task).expect("it accepts");
        }
        assert_eq!(settle_at(accepts, 18), 18, "each is counted once");
        // And those of a server.
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
        let report = runtime.block_on(server).expect("a server").expect("it ends well");
        assert_eq!(report.accepted, 5);
        assert_eq!(settle_at(accepts, 23), 23, "a server's are counted too");
        assert_eq!(runtime.handle().metrics().workers().len(), count);
        drop(clients);
    });
}

/// Without it nobody sees a connection that keeps its worker to itself.
#[test]
fn budget_yields_are_the_times_that_a_task_was_made_to_give_way() {
    on_one_and_several_workers(|runtime, _| {
        let yields = || sum(runtime, |worker| worker.budget_yields);
        let (mut stream, mut peer) = pair_with_std();
        peer.write_all(&[0; 4096]).expect("write");
        runtime
            .block_on(runtime.handle().spawn(async move {
                stream.readable().await.expect("readable");
                for _ in 0..100 {
                    stream.read_exact(&mut [0]).await.expect("read");
                }
                yield_now().await;
                assert_eq!(Handle::current().metrics().workers().iter().map(|w| w.budget_yields).sum::<u64>(), 0);
                for _ in 0..1280 {
                    stream.read_exact(&mut [0]).await.expect("read");
                }
            }))
            .expect("it reads");
        // 128 reads to a poll, and nobody has to give way after the last.
        assert_eq!(settle_at(yields, 9), 9, "1280 reads are ten budgets");
        drop(peer);
    });
}

/// Without it nobody sees how much of a worker's work comes from outside, and what it costs.
#[test]
fn remote_wakes_are_those_from_threads_that_are_no_workers() {
    on_one_and_several_workers(|runtime, count| {
        let remote = || sum(runtime, |worker| worker.remote_wakes);
        let before = remote();
        let (send, receive) = async_channel::unbounded::<()>();
        let task = runtime.handle().spawn(async move {
            let mut heard = 0;
            while receive.recv().await.is_ok() {
                heard += 1;
            }
            heard
        });
        assert_eq!(remote() - before, 1, "a spawn");
        for _ in 0..20 {
            drop(runtime.handle().spawn(async {}));
        }
        assert_eq!(remote() - before, 21, "a spawn for each");
        // Each word finds it waiting, at some time.
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
            assert!(remote() - before <= sent + 1, "no more than there were words: {}", remote() - before);
            remote() - before
        };
        assert!(quiet(1_000_000) > 0, "a wake from outside");
        drop(send);
        let heard = runtime.block_on(task).expect("it ends");
        assert!(heard > 0);
        if count > 1 {
            let before = remote();
            // From here on only workers wake each other.
            let tasks = on_each_worker(runtime.handle(), count, |_| {
                let (ping, pong) = (async_channel::bounded::<()>(1), async_channel::bounded::<()>(1));
                let there = spawn(async move {
                    while ping.1.recv().await.is_ok() {
                        pong.0.send(()).await.expect("somebody listens");
                    }
                });
                spawn(async move {
                    for _ in 0..200 {
                        ping.0.send(()).await.expect("somebody listens");
                        pong.1.recv().await.expect("somebody answers");
                    }
                    drop(ping.0);
                    there.await.expect("it ends");
                })
            });
            tasks.into_iter().for_each(|task| future::block_on(task).expect("it ends"));
            assert_eq!(remote() - before, count as u64, "the spawns of the test, and no wake of a worker's");
        }
    });
}

/// Without it nobody knows how much a worker could do yet.
#[test]
fn parked_is_how_long_a_worker_has_slept() {
    const WAIT: Duration = Duration::from_millis(30);
    within(|| {
        for count in [1, 2, 3] {
            let start = std::time::Instant::now();
            let runtime = workers(count);
            let parked = || sum_of(&runtime, |worker| worker.parked);
            // On a busy machine the time may be over before it comes to sleep.
            while parked() < WAIT {
                runtime.block_on(runtime.handle().spawn(async { sleep(WAIT).await })).expect("it ends");
            }
            assert!(
                parked() <= start.elapsed() * count as u32,
                "nobody sleeps longer than time passes: {:?}",
                parked()
            );
        }
        // Who works does not sleep.
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

// ---- the end ----

/// Without it a report at the end of a program is empty, or panics.
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
                spawn_blocking(|| ()).await.expect("it runs");
                let _sleep = poll_once(Box::pin(sleep(HOUR))).await;
                drop(spawn(sleep(HOUR)));
            }
        });
        runtime.block_on(waits).expect("it waits");
        runtime.block_on(settle());
        let before = handle.metrics();
        assert!(before.tasks_alive() == 1 && before.sources_registered() == 1, "{before:?}");
        drop(runtime);
        let after = handle.metrics();
        assert_eq!(after.workers().len(), count);
        assert_eq!((after.tasks_alive(), after.sources_registered()), (0, 0), "nothing is left: {after:?}");
        assert!(after.workers().iter().all(|worker| worker.timers_armed == 0), "nothing is left: {after:?}");
        for (before, after) in before.workers().iter().zip(after.workers()) {
            assert!(after.polls >= before.polls && after.turns >= before.turns, "what was done stays done");
        }
        assert!(after.workers().iter().map(|worker| worker.polls).sum::<u64>() > 0);
        future::block_on(handle.spawn(async {})).expect_err("it has ended");
        assert_eq!(handle.metrics().tasks_alive(), 0, "what is refused is not there");
    });
}

// ---- what the tests do ----

/// How many workers the runtime of this thread has.
fn count_of_workers() -> usize {
    Handle::current().metrics().workers().len()
}

/// Spawns what stays on this worker if there are several, so that it waits there.
fn spawn_here<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if count_of_workers() > 1 { spawn_local(future) } else { spawn(future) }
}

#[track_caller]
fn on_one_and_several_workers(test: impl Fn(&Runtime, usize) + Send + 'static) {
    on_one_and_several_workers_given(move |runtime, count| test(&runtime, count));
}

#[track_caller]
fn on_one_and_several_workers_given(test: impl Fn(Runtime, usize) + Send + 'static) {
    within(move || {
        test(one_worker(), 1);
        for count in [2, 3] {
            test(workers(count), count);
        }
    });
}

/// Runs `what` on each worker; the only one of a runtime is the thread that is in a call.
#[track_caller]
fn on_each<T: Send + 'static>(
    runtime: &Runtime,
    count: usize,
    what: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Vec<T> {
    if count == 1 {
        return vec![runtime.block_on(async { what(0) })];
    }
    on_each_worker(runtime.handle(), count, what)
}

fn sum(runtime: &Runtime, what: impl Fn(&WorkerMetrics) -> u64) -> u64 {
    runtime.handle().metrics().workers().iter().map(what).sum()
}

fn sum_of(runtime: &Runtime, what: impl Fn(&WorkerMetrics) -> Duration) -> Duration {
    runtime.handle().metrics().workers().iter().map(what).sum()
}

/// Waits until a figure is what it has to become, since it shows when a worker's batch is over; then looks a little longer.
fn settle_at(figure: impl Fn() -> u64, expected: u64) -> u64 {
    while figure() < expected {
        thread::yield_now();
    }
    for _ in 0..100 {
        thread::yield_now();
    }
    figure()
}
