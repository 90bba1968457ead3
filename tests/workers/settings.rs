//! The settings of a runtime of several workers, and the settings that it refuses.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::support::*;
use crate::{HOUR, MS, SEVERAL};
use futures_lite::future;
use kittiwake::runtime::Builder;
use kittiwake::time::{pause, sleep};

/// A runtime with no worker would run no task, and one with too many would take all of the system's threads.
#[test]
fn absurd_worker_count_is_refused() {
    let message = panic_of(|| drop(Builder::new_multi_thread().worker_threads(0)));
    assert!(message.contains("Builder::worker_threads") && message.contains("use 1 or more"), "{message}");
    let message = panic_of(|| drop(Builder::new_multi_thread().worker_threads(1025)));
    assert!(message.contains("Builder::worker_threads") && message.contains("1025 are more than 1024"), "{message}");
    drop(Builder::new_multi_thread().worker_threads(1024));
}

/// The runtime has exactly the configured number of workers, and each of them runs tasks.
#[test]
fn every_configured_worker_runs_tasks() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            assert_eq!(runtime.handle().metrics().workers().len(), count);
            let threads: HashSet<_> = on_each_worker(runtime.handle(), count, |_| here()).into_iter().collect();
            assert_eq!(threads.len(), count, "each of {count} workers must have a thread");
            assert!(!threads.contains(&here()));
            // When all workers are blocked, no thread is left to run a task.
            let blocked = block_workers(runtime.handle(), count);
            let late = runtime.handle().spawn(async {});
            runtime.block_on(settle());
            assert!(!late.is_finished(), "the runtime of {count} workers ran a task while all of them were blocked");
            drop(blocked);
            future::block_on(late).expect("the task runs once a worker is free");
        }
    });
}

/// Each thread of the runtime calls the start hook before its work and the stop hook after it: workers, and threads for
/// blocking work. By the end of the runtime all have called both.
#[test]
fn every_thread_calls_its_hooks() {
    thread_local!(static STARTED: Cell<bool> = const { Cell::new(false) });
    within(|| {
        let (starts, stops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (start, stop) = (starts.clone(), stops.clone());
        let runtime = Builder::new_multi_thread().worker_threads(2).on_thread_start(move || {
            STARTED.set(true);
            start.fetch_add(1, SeqCst);
        });
        let runtime = runtime.on_thread_stop(move || {
            assert!(STARTED.get(), "the stop hook runs on the thread of the start hook");
            stop.fetch_add(1, SeqCst);
        });
        let runtime = runtime.build().expect("a runtime");
        assert!(on_each_worker(runtime.handle(), 2, |_| STARTED.get()).into_iter().all(|started| started));
        assert!(runtime.block_on(runtime.handle().spawn_blocking(|| STARTED.get())).unwrap());
        assert!(!STARTED.get(), "this thread belongs to the caller");
        assert_eq!((starts.load(SeqCst), stops.load(SeqCst)), (3, 0));
        runtime.shutdown_timeout(PATIENCE).expect("no closure runs");
        assert_eq!((starts.load(SeqCst), stops.load(SeqCst)), (3, 3));
    });
}

/// The thread name identifies a runtime's threads in a debugger and in `top`.
#[test]
#[cfg(target_os = "linux")]
fn worker_thread_has_name_and_number() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(3).thread_name("puffin").build().expect("a runtime");
        on_each_worker(runtime.handle(), 3, |_| ());
        let names = ["puffin-0", "puffin-1", "puffin-2"];
        // The kernel ends its list early if a thread of another test ends meanwhile.
        let found = (0..1000).map(|_| threads_called("puffin-")).find(|found| *found == names);
        assert!(found.is_some(), "the names must be {names:?}, and not {:?}", threads_called("puffin-"));
        drop(runtime);
        let runtime = workers(2);
        let mut names = on_each_worker(runtime.handle(), 2, |_| thread::current().name().expect("a name").to_owned());
        names.sort_unstable();
        assert_eq!(names, ["kittiwake-0", "kittiwake-1"], "the default name must be kittiwake");
    });
}

/// The builder refuses the name. Otherwise std would panic later, when it starts the thread.
#[test]
fn thread_name_with_nul_is_refused() {
    let message = panic_of(|| drop(Builder::new_multi_thread().thread_name("puf\0fin")));
    assert!(message.contains("Builder::thread_name") && message.contains("NUL"), "{message}");
}

/// A paused clock is refused for several workers: it would stand still on one worker and run on another.
#[test]
fn paused_clock_needs_one_worker() {
    within(|| {
        for builder in [
            Builder::new_multi_thread().worker_threads(2).start_paused(true),
            Builder::new_multi_thread().start_paused(true).worker_threads(2),
        ] {
            let error = builder.build().expect_err("a paused clock for two workers is refused");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(
                error.to_string().contains("Builder::new_current_thread()"),
                "the error must say what to do: {error}"
            );
        }
        let runtime = paused_runtime();
        assert_eq!(runtime.handle().metrics().workers().len(), 1, "a paused clock alone must mean one worker");
        runtime.block_on(sleep(HOUR));
    });
}

/// `pause` panics on a runtime of several workers and says what to do. A test that relied on it would otherwise
/// wait for an hour that does not pass.
#[test]
fn pausing_several_workers_panics() {
    within(|| {
        let runtime = workers(2);
        let on_a_worker =
            future::block_on(runtime.handle().spawn(async { panic_of(pause) })).expect("the task catches the panic");
        let in_a_call = runtime.block_on(async { panic_of(pause) });
        for message in [on_a_worker, in_a_call] {
            assert!(message.contains("time::pause") && message.contains("Builder::new_current_thread()"), "{message}");
        }
        // The clock still runs after the panic.
        runtime.block_on(sleep(MS));
        future::block_on(runtime.handle().spawn(sleep(MS))).expect("the sleep ends");
    });
}

/// A multi-thread runtime with one worker means the same as one with several: on a machine with one core that is what
/// `Runtime::new` makes. Its tasks run in the background, several threads may be in `block_on`, and the clock cannot be
/// paused.
#[test]
fn single_worker_thread_runs_in_background() {
    within(|| {
        let runtime = std::sync::Arc::new(workers(1));
        let task = runtime.handle().spawn(async {
            sleep(MS).await;
            here()
        });
        let thread = future::block_on(task).expect("the task runs although no thread is in `block_on`");
        assert_ne!(thread, here(), "the task must run on the worker's thread");
        let (enter, entered) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn({
            let runtime = runtime.clone();
            move || {
                runtime.block_on(async {
                    enter.send(()).expect("the test listens");
                    let _ = left.recv();
                });
            }
        });
        entered.recv().expect("the other thread is in `block_on`");
        assert_eq!(runtime.block_on(async { kittiwake::spawn(async { 7 }).await.expect("the task") }), 7);
        drop(leave);
        other.join().expect("the other thread");
        let message = runtime.block_on(async { panic_of(pause) });
        assert!(message.contains("new_current_thread"), "{message}");
    });
}

/// No two tasks of a runtime have the same id, wherever they were spawned.
#[test]
fn ids_are_unique_in_runtime() {
    within(|| {
        let runtime = workers(2);
        let on_workers = on_each_worker(runtime.handle(), 2, |_| {
            (0..1500).map(|_| kittiwake::spawn(async {}).id()).collect::<Vec<_>>()
        });
        let mut ids: Vec<_> = on_workers.into_iter().flatten().collect();
        for _ in 0..3 {
            ids.extend(runtime.block_on(async {
                [
                    kittiwake::spawn_local(async {}).id(),
                    kittiwake::spawn_local(async {}).id(),
                    kittiwake::spawn(async {}).id(),
                ]
            }));
        }
        ids.push(runtime.handle().spawn_blocking(|| ()).id());
        let count = ids.len();
        assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), count, "two tasks have the same id");
    });
}

/// The names of this process's threads that start with `begin`.
#[cfg(target_os = "linux")]
fn threads_called(begin: &str) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with(begin)).collect();
    names.sort_unstable();
    names
}
