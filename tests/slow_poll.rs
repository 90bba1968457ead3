//! Slow polls are reported, also while they last, and tasks have names and sites that say whose they are.

mod support;

use std::future::pending;
use std::panic::Location;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use futures_lite::future;
use kittiwake::inspect::TaskInfo;
use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, serve};
use kittiwake::runtime::{Builder, Runtime, SlowPoll};
use kittiwake::task::{self, yield_now};
use kittiwake::time::Duration;
use kittiwake::{spawn, spawn_local};
use support::*;

const MS: Duration = Duration::from_millis(1);

/// The slow polls of the runtime that the builder builds.
fn report_slow(builder: Builder, threshold: Duration) -> (Runtime, Receiver<SlowPoll>) {
    let (send, polls) = channel();
    let send = Mutex::new(send);
    let hook = move |poll: &SlowPoll| drop(send.lock().unwrap().send(poll.clone()));
    (builder.on_slow_poll(threshold, hook).build().expect("a runtime"), polls)
}

/// A poll that takes as long as the threshold is reported once it is over, with its task, its site and its worker. A
/// shorter one is not.
#[test]
fn slow_poll_is_reported_after_it() {
    within(|| {
        let (runtime, polls) = report_slow(Builder::new_current_thread(), 20 * MS);
        let (id, line) = runtime.block_on(async {
            let quick = spawn(async { (0..100).for_each(|_| ()) });
            let line = line!() + 1;
            let slow = task::Builder::new().name("slow").spawn(async {
                yield_now().await;
                thread::sleep(30 * MS);
            });
            let id = slow.id();
            quick.await.unwrap();
            slow.await.unwrap();
            (id, line)
        });
        drop(runtime);
        let polls: Vec<_> = polls.iter().collect();
        // The machine may hold up any poll, which is slow then too.
        assert!(polls.iter().all(|poll| poll.duration >= 20 * MS), "a short poll was reported: {polls:?}");
        let polls: Vec<_> = polls.iter().filter(|poll| poll.task == id).collect();
        let [first @ .., last] = &polls[..] else { panic!("the poll that sleeps was slow") };
        let is_reported_once = first.len() <= 1 && first.iter().all(|first| first.duration != last.duration);
        assert!(is_reported_once, "the task was polled twice: {polls:?}");
        let SlowPoll { name, location, worker: 0, duration, is_over: true, .. } = last else {
            panic!("the only worker has ended the poll: {polls:?}");
        };
        assert_eq!((name.as_deref(), location.file(), location.line()), (Some("slow"), file!(), line));
        assert!(*duration >= 30 * MS, "{duration:?}");
        let text = last.to_string();
        assert!(text.starts_with(&format!("task {id} \"slow\" ({}:{line}) blocked worker 0 for ", file!())), "{text}");
    });
}

/// A stuck worker may never come back. So another one reports the poll while it lasts, once.
#[test]
fn other_worker_reports_running_poll() {
    within(|| {
        let (runtime, polls) = report_slow(Builder::new_multi_thread().worker_threads(2), 20 * MS);
        let (release, released) = channel::<()>();
        let stuck = runtime.handle().spawn(async move { _ = released.recv() });
        let first = polls.recv().expect("a report");
        assert_eq!((first.task, first.is_over), (stuck.id(), false), "{first:?}");
        assert!(first.duration >= 20 * MS && first.to_string().contains("has blocked worker"), "{first}");
        // The worker beside it wakes up for many more looks meanwhile.
        runtime.block_on(kittiwake::time::sleep(100 * MS));
        drop(release);
        runtime.block_on(stuck).expect("the task ends");
        let second = polls.recv().expect("a report");
        assert_eq!((second.task, second.is_over, second.worker), (first.task, true, first.worker));
        assert!(second.duration >= first.duration, "{second}");
    });
}

/// A poll that never ends is reported while it lasts, also if other polls of local tasks came right before it: short ones,
/// and one that was shorter than the threshold, but so long that the last poll is young when the worker has been stuck for
/// the threshold.
#[test]
fn poll_behind_local_tasks_is_reported() {
    within(|| {
        for short in 0..4 {
            let (runtime, polls) = report_slow(Builder::new_multi_thread().worker_threads(2), 100 * MS);
            let (release, released) = channel::<()>();
            let tasks = runtime.handle().spawn(async move {
                (0..short).for_each(|_| drop(spawn_local(async {})));
                drop(spawn_local(async { thread::sleep(70 * MS) }));
                // In an array, because a handle could be awaited by mistake.
                [spawn_local(async move { _ = released.recv() })]
            });
            let [stuck] = future::block_on(tasks).expect("the task ends");
            let is_report = |poll: &SlowPoll| poll.task == stuck.id() && !poll.is_over;
            let report = within_patience(&polls, is_report).unwrap_or_else(|| panic!("{short} tasks: no report"));
            assert!(report.duration >= 100 * MS, "{report}");
            drop(release);
            future::block_on(stuck).expect("the task ends");
            progress();
        }
    });
}

/// Polls that never end are reported, each of them, also if the last one before was reported and a poll of a local task too.
#[test]
fn second_stuck_local_task_is_reported() {
    within(|| {
        for short in 0..4 {
            let (runtime, polls) = report_slow(Builder::new_multi_thread().worker_threads(2), 20 * MS);
            let (releases, released): (Vec<_>, Vec<_>) = (0..2).map(|_| channel::<()>()).unzip();
            let tasks = runtime.handle().spawn(async move {
                (0..short).for_each(|_| drop(spawn_local(async {})));
                let block = |released: Receiver<()>| spawn_local(async move { _ = released.recv() });
                released.into_iter().map(block).collect::<Vec<_>>()
            });
            let tasks = future::block_on(tasks).expect("the task ends");
            let mut stuck: Vec<_> = tasks.into_iter().zip(releases).collect();
            while !stuck.is_empty() {
                // In any order, which a seed may choose.
                let place =
                    |poll: &SlowPoll| stuck.iter().position(|(task, _)| task.id() == poll.task && !poll.is_over);
                let report = within_patience(&polls, |poll| place(poll).is_some());
                let report = report.unwrap_or_else(|| panic!("{short} tasks: no report"));
                let place = place(&report).expect("it is one of them");
                let (task, release) = stuck.remove(place);
                drop(release);
                future::block_on(task).expect("the task ends");
                progress();
            }
        }
    });
}

/// The first of the polls that `is_wanted`. `None` if none comes for half as long as [`within`] waits.
fn within_patience(polls: &Receiver<SlowPoll>, is_wanted: impl Fn(&SlowPoll) -> bool) -> Option<SlowPoll> {
    std::iter::from_fn(|| polls.recv_timeout(PATIENCE / 2).ok()).find(is_wanted)
}

/// The hook is the user's code: if it panics, the worker and the task go on.
#[test]
fn panicking_hook_harms_nothing() {
    within(|| {
        let builder = Builder::new_current_thread();
        let runtime = builder.on_slow_poll(Duration::ZERO, |_| panic!("the hook panics")).build().expect("a runtime");
        runtime.block_on(async {
            let sum = spawn(async { 1 }).await.unwrap() + spawn(async { 2 }).await.unwrap();
            assert_eq!(sum, 3);
        });
    });
}

/// Each poll of a task is in the histogram once, by how long it took. A worker's busy time has it too, and so has the
/// task's.
#[test]
fn poll_times_count_each_poll() {
    const LONG: Duration = Duration::from_millis(20);
    within(|| {
        for builder in [Builder::new_current_thread(), Builder::new_multi_thread().worker_threads(2)] {
            let runtime = builder.measure_polls(true).build().expect("a runtime");
            let (end, ended) = async_channel::bounded::<()>(1);
            let task = runtime.handle().spawn(async move {
                spin(LONG);
                for _ in 0..8 {
                    yield_now().await;
                }
                let _ = ended.recv().await;
            });
            let polls = || runtime.handle().metrics().poll_times().expect("the runtime measures");
            while polls().count() < 9 {
                runtime.block_on(yield_now());
            }
            let polls = polls();
            assert_eq!(polls.count(), 9, "each poll must count once: {polls:?}");
            assert!(polls.max() >= LONG, "the first poll took {LONG:?}: {polls:?}");
            let busy = runtime.handle().metrics().workers().iter().filter_map(|worker| worker.busy).sum::<Duration>();
            assert_eq!(busy, polls.sum(), "the busy time is the sum of the polls");
            let dump = runtime.handle().tasks();
            let info: &TaskInfo = dump.tasks().iter().find(|info| info.id == task.id()).expect("the task waits");
            assert_eq!((info.polls, info.busy, info.longest_poll), (9, Some(polls.sum()), Some(polls.max())));
            drop(end);
            runtime.block_on(task).expect("the task ends");
        }
    });
}

/// A handler's task is named by its peer, and its site is the line that made the server.
#[test]
fn handlers_are_named_by_peer() {
    within(|| {
        for runtime in [one_worker(), workers(2)] {
            let shutdown = ShutdownSignal::new();
            let signal = shutdown.clone();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
                let address = listener.local_addr().expect("an address");
                let here: &'static Location<'static> = Location::caller();
                let (began, begun) = async_channel::unbounded();
                let handler = move |stream: TcpStream, _| {
                    let began = began.clone();
                    async move {
                        began.send(()).await.expect("the test waits");
                        pending::<()>().await;
                        drop(stream);
                    }
                };
                let (server, line) = (serve(listener, handler).with_shutdown(&signal), line!());
                let server = spawn(server.drain_timeout(Duration::ZERO));
                let clients: Vec<_> =
                    (0..3).map(|_| std::net::TcpStream::connect(address).expect("a client")).collect();
                for _ in &clients {
                    begun.recv().await.expect("a handler begins");
                }
                let mut peers: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap().to_string()).collect();
                peers.sort();
                let is_handler = |info: &&TaskInfo| (info.location.file(), info.location.line()) == (here.file(), line);
                // A handler may begin on another worker just before the server notes its peer.
                seen(runtime.handle(), "handlers have the names of their peers", |dump| {
                    let mut names: Vec<_> =
                        dump.tasks().iter().filter(is_handler).filter_map(|info| info.name.as_deref()).collect();
                    names.sort_unstable();
                    (names == peers).then_some(())
                });
                signal.trigger();
                server.await.expect("the server ends").expect("no error");
            });
        }
    });
}

/// A name belongs to one task, whatever its kind, and ends with it.
#[test]
fn named_tasks_keep_their_names() {
    within(|| {
        let runtime = workers(2);
        let builder = task::Builder::new().name("same");
        let handles = runtime.block_on(async {
            let (end, ended) = channel::<()>();
            let (wait, waits) = (Arc::new(Mutex::new(ended)), pending::<()>());
            (builder.spawn(waits), builder.spawn_blocking(move || _ = wait.lock().unwrap().recv()), end)
        });
        let dump = runtime.handle().tasks();
        let names: Vec<_> = dump.tasks().iter().map(|info| info.name.as_deref()).collect();
        assert_eq!(names, [Some("same"); 2], "{dump}");
        handles.0.abort();
        drop(handles.2);
        future::block_on(handles.1).expect("the closure ends");
        assert!(runtime.block_on(handles.0).is_err());
        // The next task gets the place of the one that has ended, and not its name.
        let next = runtime.handle().spawn(pending::<()>());
        let dump = runtime.handle().tasks();
        let info = dump.tasks().iter().find(|info| info.id == next.id()).expect("the task waits");
        assert_eq!(info.name, None);
    });
}

/// A hook that raises an alarm wakes a task. The worker that has called the hook was about to block, and must not.
#[test]
fn task_of_hook_runs_while_poll_lasts() {
    within(|| {
        for _ in 0..5 {
            let (release, released) = channel::<()>();
            let release = Mutex::new(Some(release));
            let hook = move |poll: &SlowPoll| {
                if let Some(release) = release.lock().unwrap().take().filter(|_| !poll.is_over) {
                    drop(spawn(async move { drop(release) }));
                }
            };
            let builder = Builder::new_multi_thread().worker_threads(2).on_slow_poll(20 * MS, hook);
            let runtime = builder.build().expect("a runtime");
            // Only the task of the hook ends this one.
            let stuck = runtime.handle().spawn(async move { _ = released.recv() });
            future::block_on(stuck).expect("the task ends");
        }
    });
}
