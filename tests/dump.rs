//! `Handle::tasks`: which tasks a dump has, and what it says of each.

mod support;

use std::future::pending;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::future::{Either, select};
use kittiwake::inspect::{
    SocketInfo, TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerState, dump_on, dump_on_panic,
};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use kittiwake::runtime::Handle;
use kittiwake::signal::unix::{SignalKind, signal};
use kittiwake::task::{Id, JoinHandle, JoinSet, yield_now};
use kittiwake::time::{Instant, sleep, sleep_until};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::baseline::{heap_bytes, wait_for_heap};
use support::{
    OnDrop, PATIENCE, block_workers, bounded, in_own_process, on_each_worker, one_worker, open_reactor, progress, run,
    seen, settle, within, workers,
};

// ---- which tasks, and from where ----

/// A task has in the dump the id of its handle and the place of its spawn.
#[test]
fn task_has_id_and_site() {
    run(|| async {
        let (first, line) = (spawn(pending::<()>()), line!());
        let second = spawn(pending::<()>());
        let dump = dump();
        let info = task(&dump, first.id());
        assert_eq!((info.location.file(), info.location.line()), (file!(), line), "the place of the spawn");
        assert_eq!(task(&dump, second.id()).location.line(), line + 1, "the second task has a place of its own");
        assert_eq!(info.name, None, "the task was given no name");
        let ids: Vec<Id> = dump.tasks().iter().map(|task| task.id).collect();
        assert_eq!(ids, [first.id(), second.id()], "the tasks are in the order of their ids");
    });
}

/// Each function that spawns names the place of its caller, not a place in the crate.
#[test]
fn every_spawn_names_its_caller() {
    within(|| {
        let runtime = workers(2);
        let handle = runtime.handle().clone();
        let (release, blocked) = blocker();
        let closure = handle.spawn_blocking(blocked);
        let ids = handle.clone().block_on(async move {
            spawn(async move {
                let mut set = JoinSet::new();
                set.spawn(pending::<()>());
                set.spawn_local(pending::<()>());
                let tasks = [spawn(pending::<()>()), spawn_local(pending::<()>()), handle.spawn(pending::<()>())];
                let ids = tasks.map(|task| task.id());
                spawn(support::hold(set));
                ids
            })
            .await
            .expect("the spawning task")
        });
        let dump = runtime.handle().tasks();
        for task in dump.tasks() {
            assert_eq!(task.location.file(), file!(), "the site of {task}");
        }
        for id in ids.into_iter().chain([closure.id()]) {
            task(&dump, id);
        }
        drop(release);
    });
}

/// The kind says which function has spawned the task.
#[test]
fn kind_follows_the_spawn_function() {
    run(|| async {
        let (release, blocked) = blocker();
        let (shared, local, blocking) = (spawn(pending::<()>()), spawn_local(pending::<()>()), spawn_blocking(blocked));
        let dump = dump();
        assert_eq!(task(&dump, shared.id()).kind, TaskKind::Shared);
        assert_eq!(task(&dump, local.id()).kind, TaskKind::Local);
        assert_eq!(task(&dump, blocking.id()).kind, TaskKind::Blocking);
        drop(release);
        blocking.await.expect("the closure ends");
    });
}

/// A task that has ended, by itself, by an abort or by a panic, is in no dump.
#[test]
fn ended_task_is_gone() {
    run(|| async {
        let (ended, aborted, panicked) =
            (spawn(async {}), spawn(pending::<()>()), spawn(async { panic!("on purpose") }));
        aborted.abort();
        let closure = spawn_blocking(|| ());
        let (first, second, third, fourth) = (ended.await, aborted.await, panicked.await, closure.await);
        assert_eq!((first.is_ok(), second.is_ok(), third.is_ok(), fourth.is_ok()), (true, false, false, true));
        assert!(dump().tasks().is_empty(), "no task is left:\n{}", dump());
    });
}

/// A dump can be made in a task, which then runs, in a blocking closure, which then runs too, and on a foreign thread.
#[test]
fn dump_from_everywhere() {
    within(|| {
        let runtime = workers(2);
        let of_task = runtime.handle().spawn(async { dump() });
        let id = of_task.id();
        let dump_of_task = futures_lite::future::block_on(of_task).expect("the task");
        let TaskState::Running { worker: Some(worker), .. } = task(&dump_of_task, id).state else {
            panic!("the task runs while it makes the dump:\n{dump_of_task}")
        };
        assert!(worker < 2, "the runtime has no worker {worker}");

        let closure = runtime.handle().spawn_blocking(dump);
        let id = closure.id();
        let dump_of_closure = futures_lite::future::block_on(closure).expect("the closure");
        let state = task(&dump_of_closure, id).state;
        assert!(matches!(state, TaskState::Running { worker: None, .. }), "the closure runs: {state:?}");

        let waiting = runtime.handle().spawn(pending::<()>());
        let handle = runtime.handle().clone();
        let dump = std::thread::spawn(move || handle.tasks()).join().expect("the foreign thread");
        task(&dump, waiting.id());
    });
}

/// A runtime that has ended has neither tasks nor sockets nor timers, and its workers are stopped.
#[test]
fn ended_runtime_is_empty() {
    within(|| {
        for runtime in [workers(2), one_worker()] {
            let handle = runtime.handle().clone();
            let task = handle.spawn(sleep(Duration::from_secs(600)));
            runtime.block_on(async {
                open_reactor().await;
                settle().await;
            });
            drop(runtime);
            let dump = handle.tasks();
            assert!(dump.tasks().is_empty(), "no task is left:\n{dump}");
            assert!(dump.sockets().is_empty() && dump.timers().is_empty(), "neither sockets nor timers are left");
            for worker in dump.workers() {
                assert_eq!(worker.state, WorkerState::Stopped, "worker {} has ended", worker.index);
            }
            assert!(futures_lite::future::block_on(task).is_err(), "the task was cancelled");
        }
    });
}

/// The destructor of a future may make a dump while its runtime ends, on every kind of task.
#[test]
fn dump_in_a_drop_at_shutdown() {
    within(|| {
        for runtime in [workers(2), one_worker()] {
            let (dumped, dumps) = mpsc::channel();
            let handle = runtime.handle().clone();
            let value = move |kind: &'static str| {
                let (handle, dumped) = (handle.clone(), dumped.clone());
                OnDrop::new(move || {
                    // The table is printed as well: it must not need what the shutdown holds.
                    dumped.send((kind, handle.tasks().to_string())).expect("the test waits");
                })
            };
            runtime.block_on(async {
                let spawned = spawn(async move {
                    spawn_local(support::hold(value("local")));
                    spawn(support::hold(value("shared")));
                    spawn(support::hold(value("queued")));
                });
                spawned.await.expect("the spawning task");
                settle().await;
            });
            drop(runtime);
            let mut kinds: Vec<&str> = dumps.iter().map(|(kind, _)| kind).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, ["local", "queued", "shared"], "each destructor has made its dump");
        }
    });
}

/// While other tasks are spawned and end on four threads, a dump has each task that lives all the time exactly once.
#[test]
fn dump_under_churn_is_complete() {
    within(|| {
        let runtime = workers(4);
        let handle = runtime.handle();
        let lasting: Vec<Id> = (0..500).map(|_| handle.spawn(pending::<()>()).id()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (handle, stop) = (handle.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let tasks: Vec<_> = (0..64).map(|_| handle.spawn(async { spawn(yield_now()).await })).collect();
                        tasks.into_iter().for_each(|task| futures_lite::future::block_on(task).unwrap().unwrap());
                    }
                })
            })
            .collect();
        let (mut dumps, mut with_others) = (0, 0);
        // The threads may start late. `within` bounds the wait.
        while dumps < 200 || with_others < 20 {
            let dump = handle.tasks();
            let ids: Vec<Id> = dump.tasks().iter().map(|task| task.id).collect();
            dumps += 1;
            with_others += usize::from(ids.len() > lasting.len());
            assert!(ids.is_sorted_by(|a, b| a < b), "a task is in the dump twice, or the order is wrong");
            for id in &lasting {
                assert!(ids.binary_search(id).is_ok(), "task {id} lives, and the dump does not have it");
            }
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().expect("a spawning thread"));
    });
}

// ---- states ----

/// A task that blocks its worker runs there, and the time since then grows.
#[test]
fn blocked_worker_runs_its_task() {
    for count in [1, 2] {
        within(move || {
            let runtime = workers(count);
            let (release, blocked) = blocker();
            let blocking = runtime.handle().spawn(async move { blocked() });
            let id = blocking.id();
            let long = Duration::from_millis(20);
            let (dump, worker) = seen(runtime.handle(), "the task runs for 20 ms", |dump| match task(dump, id).state {
                TaskState::Running { worker: Some(worker), since } if since >= long => Some((dump.clone(), worker)),
                _ => None,
            });
            let info = &dump.workers()[worker];
            assert_eq!(info.index, worker, "the workers are in the order of their numbers");
            let WorkerState::Running { task, since } = info.state else { panic!("worker {worker} runs: {info:?}") };
            assert_eq!(task, Some(id), "the worker names its task");
            assert!(since >= long, "the worker runs as long as its task, and the dump says {since:?}");
            drop(release);
            futures_lite::future::block_on(blocking).expect("the task ends");
        });
    }
}

/// A task behind one that blocks the only worker is queued, both before its first poll and after it was woken.
#[test]
fn task_behind_a_blocked_one_is_queued() {
    within(|| {
        let runtime = workers(1);
        let handle = runtime.handle();
        let (wake, woken) = async_channel::bounded::<()>(1);
        let waiting = handle.spawn(async move { woken.recv().await });
        seen(handle, "the first task waits", |dump| is_waiting(task(dump, waiting.id())).then_some(()));
        let blocked = block_workers(handle, 1);
        let fresh = handle.spawn(async {});
        wake.try_send(()).expect("the channel has room");

        let dump = handle.tasks();
        let (fresh_info, woken_info) = (task(&dump, fresh.id()), task(&dump, waiting.id()));
        assert!(is_queued(fresh_info) && is_queued(woken_info), "both are queued:\n{dump}");
        assert_eq!((fresh_info.polls, woken_info.polls), (0, 1), "one of them was never polled");
        assert!(dump.workers()[0].queued > 0, "the worker has them in its queue: {:?}", dump.workers()[0]);
        drop(blocked);
        futures_lite::future::block_on(fresh).expect("the task ends");
        futures_lite::future::block_on(waiting).expect("the task ends").expect("the message");
    });
}

/// A blocking closure that has no thread yet is queued.
#[test]
fn closure_without_a_thread_is_queued() {
    within(|| {
        let runtime = support::blocking_threads(1);
        let (release, blocked) = blocker();
        let first = runtime.handle().spawn_blocking(blocked);
        let second = runtime.handle().spawn_blocking(|| ());
        seen(runtime.handle(), "the first closure runs, and the second is queued", |dump| {
            let first = matches!(task(dump, first.id()).state, TaskState::Running { worker: None, .. });
            (first && is_queued(task(dump, second.id()))).then_some(())
        });
        drop(release);
        futures_lite::future::block_on(second).expect("the closure runs");
    });
}

/// A task that has used up its budget is queued, and the dump says that it gave way.
#[test]
fn task_without_budget_gave_way() {
    run(|| async {
        let greedy = spawn(async {
            loop {
                kittiwake::task::consume_budget().await;
            }
        });
        yield_now().await;
        let dump = dump();
        let state = task(&dump, greedy.id()).state;
        assert!(
            matches!(state, TaskState::Queued { gave_way: true, .. }),
            "the task was stopped by its budget: {state:?}"
        );
    });
}

/// A task that waits for a thing of another crate waits for nothing known.
#[test]
fn foreign_wait_is_unknown() {
    run(|| async {
        let (_sender, receiver) = async_channel::bounded::<()>(1);
        let waiting = spawn(async move { receiver.recv().await });
        yield_now().await;
        let dump = dump();
        let info = task(&dump, waiting.id());
        assert!(is_waiting(info), "the task waits: {info}");
        assert_eq!(info.waits_for, [], "the channel is not known");
    });
}

/// Each poll is counted, and the age grows.
#[test]
fn polls_are_counted() {
    run(|| async {
        let counted = spawn(async {
            for _ in 0..9 {
                yield_now().await;
            }
            pending::<()>().await;
        });
        assert_eq!(task(&dump(), counted.id()).polls, 0, "the task has not run yet");
        settle().await;
        let first = dump();
        let info = task(&first, counted.id());
        assert_eq!(info.polls, 10, "nine yields are ten polls");
        sleep(Duration::from_millis(5)).await;
        let second = dump();
        let later = task(&second, counted.id());
        assert!(later.age >= info.age + Duration::from_millis(2), "{:?} must be older than {:?}", later.age, info.age);
        let TaskState::Waiting { since } = later.state else { panic!("the task waits: {later}") };
        assert!(since >= Duration::from_millis(2) && since <= later.age, "it has waited {since:?} of {:?}", later.age);
    });
}

// ---- what a task waits for ----

/// A read is shown with the descriptor and both addresses, of IPv4 and of IPv6.
#[test]
fn read_shows_both_addresses() {
    run(|| async {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (client, server) = pair_at(address).await;
            let expected = identity(&server);
            let reading = spawn(async move { (&server).read(&mut [0; 8]).await });
            let dump = settled_dump().await;
            let waits_for = &task(&dump, reading.id()).waits_for[..];
            assert!(matches!(waits_for, [WaitsFor::Reading(_)]), "the task reads: {waits_for:?}");
            assert_eq!(seen_identity(only_socket(&dump, reading.id())), expected);
            drop(client);
            reading.await.expect("the task").expect("the end of the stream");
        }
    });
}

/// A write to a peer that does not read is shown with its socket.
#[test]
fn write_shows_both_addresses() {
    run(|| async {
        let (_client, server) = pair_at("127.0.0.1:0").await;
        let expected = identity(&server);
        let writing = spawn(async move {
            let chunk = vec![7; 1 << 16];
            loop {
                (&server).write_all(&chunk).await.expect("the peer keeps its side open");
            }
        });
        let dump = until_dump("the task waits for room in its socket", |dump| {
            is_waiting(task(dump, writing.id())) && !task(dump, writing.id()).waits_for.is_empty()
        })
        .await;
        let waits_for = &task(&dump, writing.id()).waits_for[..];
        assert!(matches!(waits_for, [WaitsFor::Writing(_)]), "the task writes: {waits_for:?}");
        assert_eq!(seen_identity(only_socket(&dump, writing.id())), expected);
    });
}

/// An accept is shown with the address of the listener.
#[test]
fn accept_shows_the_listener() {
    run(|| async {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.expect("bind");
            let local = listener.local_addr().expect("the listener's address").to_string();
            let accepting = spawn(async move { listener.accept().await.map(drop) });
            let dump = settled_dump().await;
            let [WaitsFor::Accepting(socket)] = &task(&dump, accepting.id()).waits_for[..] else {
                panic!("the task accepts:\n{dump}")
            };
            assert_eq!((socket.local.as_deref(), socket.peer.as_deref()), (Some(&local[..]), None));
        }
    });
}

/// Unix sockets have their path as their address, and an unnamed end has none.
#[test]
fn unix_socket_shows_its_path() {
    run(|| async {
        let folder = Folder::new("path");
        let path = folder.0.join("socket");
        let listener = UnixListener::bind(&path).expect("bind to a path");
        let client = UnixStream::connect(&path).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        let accepting = spawn(async move { listener.accept().await.map(drop) });
        let reading = spawn(async move { (&server).read(&mut [0; 8]).await });
        let client_reads = spawn(async move { (&client).read(&mut [0; 8]).await });
        let dump = settled_dump().await;
        let shown = Some(path.to_str().expect("a path in UTF-8"));
        let socket = only_socket(&dump, accepting.id());
        assert!(matches!(task(&dump, accepting.id()).waits_for[0], WaitsFor::Accepting(_)), "the listener accepts");
        assert_eq!(socket.local.as_deref(), shown, "the listener's path");
        let socket = only_socket(&dump, reading.id());
        assert_eq!((socket.local.as_deref(), socket.peer.as_deref()), (shown, None), "the client's end has no name");
        let socket = only_socket(&dump, client_reads.id());
        assert_eq!((socket.local.as_deref(), socket.peer.as_deref()), (None, shown), "the client's view");
    });
}

/// A client chooses its address. One whose path fills the kernel's structure is shown without an address, or with its own,
/// but never with another.
#[test]
#[cfg(target_os = "linux")]
fn longest_unix_path_is_not_shown_wrong() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};
    run(|| async {
        let folder = Folder::new("longest");
        let path = folder.0.join("socket");
        let listener = UnixListener::bind(&path).expect("bind to a path");
        let longest = folder.0.join("x".repeat(108 - folder.0.as_os_str().len() - 1));
        let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&client, &SocketAddrUnix::new(&longest).expect("108 bytes")).expect("bind");
        connect(&client, &SocketAddrUnix::new(&path).expect("a path")).expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        let reading = spawn(async move { (&server).read(&mut [0; 8]).await });
        let dump = settled_dump().await;
        let socket = only_socket(&dump, reading.id());
        assert_eq!(socket.local.as_deref(), path.to_str(), "the listener's path");
        assert!(socket.peer.is_none() || socket.peer.as_deref() == longest.to_str(), "{:?}", socket.peer);
    });
}

/// A datagram socket and a signal listener are sockets that a task reads.
#[test]
fn datagram_and_signal_are_readings() {
    run(|| async {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let local = udp.local_addr().expect("an address").to_string();
        let receiving = spawn(async move { udp.recv_from(&mut [0; 8]).await.map(drop) });
        let mut signal = signal(SignalKind::window_change()).unwrap();
        let signalled = spawn(async move { signal.recv().await });
        let dump = settled_dump().await;
        assert_eq!(only_socket(&dump, receiving.id()).local.as_deref(), Some(&local[..]));
        for id in [receiving.id(), signalled.id()] {
            let waits_for = &task(&dump, id).waits_for[..];
            assert!(matches!(waits_for, [WaitsFor::Reading(_)]), "the task reads: {waits_for:?}");
        }
    });
}

/// A sleep is shown with its deadline, also when another worker or none has polled it.
#[test]
fn timer_shows_its_deadline() {
    run(|| async {
        let deadline = Instant::now() + Duration::from_secs(100);
        let sleeping = spawn(sleep_until(deadline));
        let dump = settled_dump().await;
        assert_eq!(task(&dump, sleeping.id()).waits_for, [WaitsFor::Timer { deadline }]);
        assert_eq!(dump.timers(), [deadline], "it is the only timer");
        sleeping.abort();
        assert!(sleeping.await.is_err());
        let dump = self::dump();
        assert!(dump.timers().is_empty(), "the timer of the aborted task is gone: {:?}", dump.timers());
    });
}

/// A task that awaits another one, or a blocking closure, names it.
#[test]
fn join_names_the_task() {
    run(|| async {
        let (release, blocked) = blocker();
        let (inner, closure) = (spawn(pending::<()>()), spawn_blocking(blocked));
        let (inner_id, closure_id) = (inner.id(), closure.id());
        let (joining, of_closure) =
            (spawn(async move { inner.await.is_ok() }), spawn(async move { closure.await.is_ok() }));
        let dump = settled_dump().await;
        assert_eq!(task(&dump, joining.id()).waits_for, [WaitsFor::Task(inner_id)]);
        assert_eq!(task(&dump, of_closure.id()).waits_for, [WaitsFor::Task(closure_id)]);
        drop(release);
        assert!(of_closure.await.expect("the task"), "the closure has ended");
    });
}

/// A task that waits for several things shows each of them, until it drops them.
#[test]
fn select_shows_every_branch() {
    run(|| async {
        let (client, server) = pair_at("127.0.0.1:0").await;
        let (inner, deadline) = (spawn(pending::<()>()), Instant::now() + Duration::from_secs(100));
        let inner_id = inner.id();
        let selecting = spawn(async move {
            let (read, mut buf) = (&server, [0; 8]);
            let mut read = read;
            let read = Box::pin(read.read(&mut buf));
            let others = select(Box::pin(sleep_until(deadline)), inner);
            match select(read, others).await {
                Either::Left((read, _)) => read.expect("a byte"),
                Either::Right(_) => panic!("neither the timer nor the task ends"),
            };
            pending::<()>().await;
        });
        let dump = settled_dump().await;
        let waits_for = &task(&dump, selecting.id()).waits_for;
        assert_eq!(waits_for.len(), 3, "it waits for three things: {waits_for:?}");
        assert!(waits_for.contains(&WaitsFor::Timer { deadline }), "a timer: {waits_for:?}");
        assert!(waits_for.contains(&WaitsFor::Task(inner_id)), "a task: {waits_for:?}");
        assert!(waits_for.iter().any(|what| matches!(what, WaitsFor::Reading(_))), "a socket: {waits_for:?}");

        (&client).write_all(b"x").await.expect("write");
        let id = selecting.id();
        let dump =
            until_dump("the task waits again", |dump| task(dump, id).polls == 2 && is_waiting(task(dump, id))).await;
        let waits_for = &task(&dump, id).waits_for;
        let is_gone = |wait: &WaitsFor| !matches!(wait, WaitsFor::Timer { .. } | WaitsFor::Reading(_));
        assert!(waits_for.iter().all(is_gone), "it has dropped the read and the sleep: {waits_for:?}");
    });
}

/// A socket that is registered with another runtime is no wait of the task there that has the same id.
#[test]
fn socket_of_another_runtime_misleads_none() {
    within(|| {
        let (first, second) = (workers(1), workers(1));
        let (stream, mut peer) = support::pair_with_std();
        let stream = first.handle().spawn(async move {
            assert!(futures_lite::future::poll_once(stream.readable()).await.is_none(), "the peer sends nothing");
            stream
        });
        let first_id = stream.id();
        let stream = futures_lite::future::block_on(stream).expect("the first task");
        while second.handle().spawn(pending::<()>()).id() < first_id {}
        let reading = second.handle().spawn(async move { (&stream).read(&mut [0; 8]).await });
        let id = reading.id();
        while first.handle().spawn(pending::<()>()).id() < id {}
        task(&first.handle().tasks(), id);
        seen(second.handle(), "the reader waits", |dump| is_waiting(task(dump, id)).then_some(()));
        for info in first.handle().tasks().tasks() {
            assert_eq!(info.waits_for, [], "a task of the first runtime waits for nothing: {info}");
        }
        peer.write_all(b"x").expect("write");
        assert_eq!(futures_lite::future::block_on(reading).expect("the task").expect("read"), 1);
    });
}

/// A task that awaits a task of another runtime does not name the task of its own runtime that has the same id.
#[test]
fn join_across_runtimes_misleads_none() {
    within(|| {
        let (first, second) = (workers(1), workers(1));
        let inner = first.handle().spawn(pending::<()>());
        let inner_id = inner.id();
        while second.handle().spawn(pending::<()>()).id() < inner_id {}
        let joining = second.handle().spawn(async move { inner.await.is_ok() });
        while first.handle().spawn(pending::<()>()).id() < joining.id() {}
        let id = joining.id();
        seen(second.handle(), "the joining task waits", |dump| is_waiting(task(dump, id)).then_some(()));
        for runtime in [&first, &second] {
            for info in runtime.handle().tasks().tasks() {
                assert_eq!(info.waits_for, [], "no task of this runtime waits for another one of it: {info}");
            }
        }
    });
}

/// A socket that goes from one task to another is shown at the task that waits now.
#[test]
fn moved_socket_follows_its_task() {
    run(|| async {
        let (_client, server) = pair_at("127.0.0.1:0").await;
        let server = Arc::new(server);
        let reader = |server: Arc<TcpStream>| spawn(async move { (&*server).read(&mut [0; 8]).await });
        let first = reader(server.clone());
        let dump = settled_dump().await;
        assert_eq!(task(&dump, first.id()).waits_for.len(), 1, "the first task reads:\n{dump}");
        first.abort();
        assert!(first.await.is_err());
        let second = reader(server);
        let dump = settled_dump().await;
        assert!(matches!(task(&dump, second.id()).waits_for[..], [WaitsFor::Reading(_)]), "the second reads:\n{dump}");
    });
}

/// Local tasks of every worker are seen from outside, with what they wait for.
#[test]
fn local_tasks_are_seen_from_outside() {
    within(|| {
        let runtime = workers(2);
        let deadline = Instant::now() + Duration::from_secs(100);
        let ids = on_each_worker(runtime.handle(), 2, move |_| spawn_local(sleep_until(deadline)).id());
        for id in ids {
            let info = seen(runtime.handle(), "the local task waits", |dump| {
                is_waiting(task(dump, id)).then(|| task(dump, id).clone())
            });
            assert_eq!((info.kind, info.waits_for), (TaskKind::Local, vec![WaitsFor::Timer { deadline }]));
        }
    });
}

// ---- the print ----

/// A line names the task, its place, its state and what it waits for.
#[test]
fn line_has_all_facts() {
    run(|| async {
        let (_client, server) = pair_at("127.0.0.1:0").await;
        let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        let (reading, line) = (spawn(async move { (&server).read(&mut [0; 8]).await }), line!());
        let dump = settled_dump().await;
        let (id, place) = (reading.id(), format!("{}:{line}", file!()));
        let text = task(&dump, id).to_string();
        assert!(!text.contains('\n'), "one task is one line: {text:?}");
        for part in [&format!("task {id} "), &place, "wait", "reading", &local.to_string(), &peer.to_string()] {
            assert!(text.contains(part), "the line must have {part:?}: {text}");
        }
        assert!(dump.to_string().contains(&place), "the table must have {place}:\n{dump}");
    });
}

/// Tasks of one place that wait for one kind of thing are one line with their number.
#[test]
fn table_counts_equal_sites() {
    run(|| async {
        for _ in 0..1234 {
            spawn(sleep(Duration::from_secs(600)));
        }
        let dump = settled_dump().await;
        let table = dump.to_string();
        let lines: Vec<&str> = table.lines().filter(|line| line.contains(file!())).collect();
        assert_eq!(lines.len(), 1, "one site is one line:\n{table}");
        assert!(lines[0].contains("1,234"), "the line has the number: {}", lines[0]);
    });
}

/// A task that waits for very many things has a line of bounded length, which says how many it leaves out.
#[test]
fn line_of_many_waits_is_bounded() {
    run(|| async {
        let mut sleeps: Vec<_> = (0..1_000).map(|_| Box::pin(sleep(Duration::from_secs(3600)))).collect();
        let waiting = spawn(std::future::poll_fn(move |cx| {
            assert!(sleeps.iter_mut().all(|sleep| sleep.as_mut().poll(cx).is_pending()), "an hour has passed");
            std::task::Poll::<()>::Pending
        }));
        let dump = settled_dump().await;
        let info = task(&dump, waiting.id());
        assert_eq!(info.waits_for.len(), 1_000, "the task has all waits");
        let text = info.to_string();
        assert_eq!(text.matches("a timer in").count(), 10, "{text}");
        assert!(text.contains(", and 990 more; "), "{text}");
    });
}

/// A name or an address with control characters can neither break a line nor command the terminal.
#[test]
fn control_characters_are_escaped() {
    run(|| async {
        let folder = Folder::new("control");
        let path = folder.0.join("a\n\u{1b}[31m\u{202e}b");
        let listener = UnixListener::bind(&path).expect("bind to a path");
        let builder = kittiwake::task::Builder::new().name("evil\n\u{1b}]0;title\u{7}\u{202e}name");
        let accepting = builder.spawn(async move { listener.accept().await.map(drop) });
        let dump = settled_dump().await;
        let text = task(&dump, accepting.id()).to_string();
        let raw = text.contains(|c: char| c.is_control() || c == '\u{202e}');
        assert!(!raw, "the line has a raw character: {text:?}");
        let table = dump.to_string();
        assert!(text.contains("evil") && table.contains("evil"), "both have the name:\n{text}\n{table}");
        let raw = table.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}');
        assert!(!raw, "the table has a raw character: {table:?}");
    });
}

// ---- the dump at a signal and after a panic ----

/// A signal prints the dump, and names the tasks that block the workers, when every worker is stuck.
#[test]
fn signal_prints_when_all_are_stuck() {
    for count in [1, 2] {
        let Some((printed, _)) = printed("signal_prints_when_all_are_stuck", &count.to_string(), move || {
            let runtime = workers(count);
            let dump_on = {
                let _entered = runtime.handle().enter();
                dump_on(SignalKind::user_defined1()).expect("the signal can be listened for")
            };
            let blocked = block_workers(runtime.handle(), count);
            raise(SignalKind::user_defined1());
            // It has read the signal's byte before it sees the end.
            dump_on.stop();
            drop(blocked);
        }) else {
            continue;
        };
        let things = if count == 1 { "1 task, 1 worker" } else { "2 tasks, 2 workers" };
        let head = format!("kittiwake: tasks at SIGUSR1, process {}: {things}", printed.process);
        assert_eq!(printed.lines.first(), Some(&head), "the head:\n{}", printed.all());
        for worker in 0..count {
            let runs = format!(" runs on worker {worker} for ");
            let line = printed.lines.iter().find(|line| line.contains(&runs));
            let line = line.unwrap_or_else(|| panic!("worker {worker} runs a task:\n{}", printed.all()));
            assert!(line.contains("tests/support/mod.rs:"), "the line names the place of the spawn: {line}");
        }
    }
}

/// After `stop` a signal prints nothing, and neither the thread nor a descriptor is left. A second `dump_on` works.
#[test]
#[cfg(target_os = "linux")]
fn stop_leaves_nothing() {
    let (printed, _) = printed_once("stop_leaves_nothing", || {
        let runtime = workers(1);
        let _entered = runtime.handle().enter();
        let threads = support::count_of("task");
        // The first use of a signal keeps some descriptors for the rest of the process.
        dump_on(SignalKind::user_defined1()).expect("dump_on").stop();
        let descriptors = support::count_of("fd");
        for _ in 0..10 {
            let dump_on = dump_on(SignalKind::user_defined1()).expect("dump_on");
            raise(SignalKind::user_defined1());
            dump_on.stop();
            raise(SignalKind::user_defined1());
        }
        assert_eq!(support::count_of("fd"), descriptors, "a descriptor is left");
        // The kernel counts a thread for a moment after it was joined.
        let end = std::time::Instant::now() + PATIENCE / 2;
        while support::count_of("task") > threads {
            assert!(std::time::Instant::now() < end, "a thread is left");
            std::thread::yield_now();
        }
    });
    let heads = printed.lines.iter().filter(|line| line.contains("tasks at SIGUSR1")).count();
    assert_eq!(heads, 10, "each signal before a stop prints one dump:\n{}", printed.all());
}

/// Dropping the result of `dump_on` changes nothing: the thread goes on.
#[test]
fn dropped_result_still_prints() {
    let (printed, _) = printed_once("dropped_result_still_prints", || {
        kittiwake::block_on(async {
            drop(dump_on(SignalKind::user_defined1()).expect("dump_on"));
            raise(SignalKind::user_defined1());
            // The test closes this once it has read a dump.
            std::io::stdin().read_to_end(&mut Vec::new()).expect("the end of stdin");
        });
    });
    assert!(printed.lines[0].contains("tasks at SIGUSR1"), "the dump:\n{}", printed.all());
}

/// The print has at most 100 lines, and says how much it leaves out.
#[test]
fn print_is_bounded() {
    #[track_caller]
    fn task() -> JoinHandle<()> {
        spawn(pending::<()>())
    }
    let (printed, _) = printed_once("print_is_bounded", || {
        let runtime = workers(20);
        let _entered = runtime.handle().enter();
        let dump_on = dump_on(SignalKind::user_defined1()).expect("dump_on");
        for _ in 0..4_950 {
            task();
        }
        // Each call is a site of its own, and one line.
        #[rustfmt::skip]
        let _sites = [
            task(), task(), task(), task(), task(), task(), task(), task(), task(), task(),
            task(), task(), task(), task(), task(), task(), task(), task(), task(), task(),
            task(), task(), task(), task(), task(), task(), task(), task(), task(), task(),
            task(), task(), task(), task(), task(), task(), task(), task(), task(), task(),
            task(), task(), task(), task(), task(), task(), task(), task(), task(), task(),
        ];
        raise(SignalKind::user_defined1());
        dump_on.stop();
    });
    assert!(printed.lines.len() <= 100, "{} lines:\n{}", printed.lines.len(), printed.all());
    for line in ["  and 4 more workers", "  and 4,960 more tasks"] {
        assert!(printed.lines.iter().any(|printed| printed == line), "the print says {line:?}:\n{}", printed.all());
    }
    // The tasks of the first site may be of several lines: some wait already, and others are queued.
    let says_lines = |line: &String| line.starts_with("  and 1") && line.ends_with(" more lines");
    assert!(printed.lines.iter().any(says_lines), "the print says how many lines are left out:\n{}", printed.all());
}

/// After the end of its runtime, a signal prints that the workers are stopped.
#[test]
fn signal_after_the_runtime_prints() {
    let (printed, _) = printed_once("signal_after_the_runtime_prints", || {
        let runtime = workers(1);
        let entered = runtime.handle().enter();
        let dump_on = dump_on(SignalKind::user_defined1()).expect("dump_on");
        drop(entered);
        drop(runtime);
        raise(SignalKind::user_defined1());
        dump_on.stop();
    });
    let is_stopped = printed.lines.iter().any(|line| line.starts_with("  worker 0 is stopped"));
    assert!(is_stopped, "the worker is stopped:\n{}", printed.all());
}

/// `dump_on` fails outside a runtime, and for a signal that cannot be listened for.
#[test]
fn dump_on_reports_errors() {
    let outside = dump_on(SignalKind::user_defined2()).expect_err("no runtime");
    assert!(outside.to_string().contains("not inside a kittiwake runtime"), "the error says why: {outside}");
    run(|| async {
        let error = dump_on(SignalKind::from_raw(libc::SIGKILL)).expect_err("SIGKILL");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    });
}

/// A panic of a task prints the dump after the panic's message, with the task among those that run. A second panic soon
/// after prints none, and neither does one outside a runtime. A second call of `dump_on_panic` sets no hook.
#[test]
fn panic_prints_the_dump() {
    for count in [1, 2] {
        let child = move || {
            let runtime = workers(count);
            dump_on_panic();
            let dumping = std::panic::take_hook();
            std::panic::set_hook(Box::new(|_| ()));
            // A hook that this set would print the dump of the next panic.
            dump_on_panic();
            let unseen = runtime.handle().spawn(async { panic!("unseen") });
            assert!(futures_lite::future::block_on(unseen).is_err());
            std::panic::set_hook(dumping);
            let outside = std::thread::spawn(|| panic!("outside"));
            assert!(outside.join().is_err());
            for text in ["first", "second"] {
                let task = runtime.handle().spawn(async move { panic!("{text}") });
                assert!(futures_lite::future::block_on(task).is_err());
            }
        };
        let run = || printed("panic_prints_the_dump", &count.to_string(), child);
        // A busy machine may hold up the thread that makes the dump for longer than the hook waits.
        let is_late = |(printed, _): &(Printed, String)| printed.all().contains("not listed, because that did not end");
        let Some((printed, before)) = (0..2).find_map(|_| run().filter(|ran| !is_late(ran))).or_else(run) else {
            continue;
        };
        let text = printed.all();
        assert_eq!(text.matches("kittiwake: tasks after a panic").count(), 1, "one dump:\n{before}\n{text}");
        assert!(before.contains("outside") && before.contains("first"), "the message comes first:\n{before}\n{text}");
        assert!(text.contains("second"), "the second panic comes after the dump:\n{text}");
        let runs =
            printed.lines.iter().any(|line| line.contains("of tests/dump.rs:") && line.contains(" runs on worker "));
        assert!(runs, "the task that panics runs:\n{text}");
    }
}

/// The output of a child process from the first dump on.
struct Printed {
    process: u32,
    lines: Vec<String>,
}

impl Printed {
    fn all(&self) -> String {
        self.lines.join("\n")
    }
}

/// Runs `child` in a process of its own: the test `name` of this program, for the `case`. Returns the lines of its stderr
/// from the first dump on, and the text before them. In a child, this does not return from its own case, and returns
/// `None` from the other ones.
#[track_caller]
fn printed(name: &str, case: &str, child: impl FnOnce() + Send + 'static) -> Option<(Printed, String)> {
    const CASE: &str = "KITTIWAKE_TEST_CASE";
    const HEAD: &str = "kittiwake: tasks";
    if support::is_child() {
        let is_this = std::env::var(CASE).expect("the case") == case;
        if !is_this {
            return None;
        }
        // The process ends here, and its stderr is what the test reads.
        bounded(child);
        std::process::exit(0);
    }
    let program = std::env::current_exe().expect("the path of this test program");
    let mut process = Command::new(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .envs([(support::CHILD, "1"), (CASE, case)])
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut stderr = BufReader::new(process.stderr.take().expect("stderr is piped"));
    let mut errors = String::new();
    while !errors.contains(HEAD) && stderr.read_line(&mut errors).expect("its stderr") > 0 {}
    drop(process.stdin.take());
    stderr.read_to_string(&mut errors).expect("its stderr");
    let status = process.wait().expect("the child ends");
    assert!(status.success(), "{name} failed:\n{errors}");
    let start = errors.find(HEAD).unwrap_or_else(|| panic!("no dump was printed:\n{errors}"));
    let (before, dumps) = errors.split_at(start);
    Some((Printed { process: process.id(), lines: dumps.lines().map(str::to_owned).collect() }, before.to_owned()))
}

/// As [`printed`], for a test that has one case.
#[track_caller]
fn printed_once(name: &str, child: impl FnOnce() + Send + 'static) -> (Printed, String) {
    printed(name, "", child).expect("this is the only case")
}

fn raise(kind: SignalKind) {
    signal_hook::low_level::raise(kind.as_raw_value()).expect("the signal is raised");
}

// ---- the cost ----

/// A dump of a million tasks holds up no worker for long: a worker that ticks meanwhile says how long.
///
/// The figure is for the reader, because the machine decides it. Run it alone, in a release build, with `--ignored`.
#[test]
#[ignore = "a measurement"]
fn dump_of_a_million_tasks() {
    within(|| {
        let runtime = workers(1);
        let handle = runtime.handle();
        for _ in 0..1_000_000 {
            handle.spawn(pending::<()>());
        }
        let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Duration::ZERO)));
        let ticking = handle.spawn({
            let (stop, longest) = (stop.clone(), longest.clone());
            async move {
                let mut last = std::time::Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    // A spawn needs the table that the dump reads.
                    spawn(async {}).await.expect("the task");
                    let now = std::time::Instant::now();
                    let mut longest = longest.lock().unwrap();
                    *longest = longest.max(now - last);
                    last = now;
                }
            }
        });
        seen_cheaply(handle, 1_000_000);
        for round in 0..8 {
            let take = || std::mem::take(&mut *longest.lock().unwrap());
            take();
            std::thread::sleep(Duration::from_millis(500));
            let without = take();
            let started = std::time::Instant::now();
            let dump = handle.tasks();
            let (took, with) = (started.elapsed(), take());
            let tasks = dump.tasks().len();
            println!(
                "run {round}: {tasks} tasks in {took:?}; longest gap {with:?} (in 500 ms without a dump {without:?})"
            );
        }
        stop.store(true, Ordering::Relaxed);
        futures_lite::future::block_on(ticking).expect("the ticking task");
    });
}

/// Waits until each task was polled once.
fn seen_cheaply(handle: &Handle, polls: u64) {
    while handle.metrics().workers().iter().map(|worker| worker.polls).sum::<u64>() < polls {
        std::thread::yield_now();
    }
}

// ---- helpers ----

#[track_caller]
fn dump() -> TaskDump {
    Handle::current().tasks()
}

/// The dump once each task had its turn.
async fn settled_dump() -> TaskDump {
    settle().await;
    dump()
}

/// The first dump of this runtime for which `holds` is true.
async fn until_dump(law: &str, holds: impl Fn(&TaskDump) -> bool) -> TaskDump {
    let end = std::time::Instant::now() + PATIENCE / 2;
    loop {
        let dump = dump();
        if holds(&dump) {
            return dump;
        }
        assert!(std::time::Instant::now() < end, "no dump shows that {law}:\n{dump:#}");
        yield_now().await;
    }
}

#[track_caller]
fn task(dump: &TaskDump, id: Id) -> &TaskInfo {
    let found: Vec<&TaskInfo> = dump.tasks().iter().filter(|task| task.id == id).collect();
    assert_eq!(found.len(), 1, "the dump must have task {id} once:\n{dump:#}");
    found[0]
}

#[track_caller]
fn only_socket(dump: &TaskDump, id: Id) -> &SocketInfo {
    match &task(dump, id).waits_for[..] {
        [WaitsFor::Reading(socket) | WaitsFor::Writing(socket) | WaitsFor::Accepting(socket)] => socket,
        other => panic!("task {id} waits for one socket, not for {other:?}"),
    }
}

/// The descriptor of a stream, and its addresses.
fn identity(stream: &TcpStream) -> (RawFd, Option<String>, Option<String>) {
    let (local, peer) = (stream.local_addr().expect("an address"), stream.peer_addr().expect("a peer"));
    (stream.as_raw_fd(), Some(local.to_string()), Some(peer.to_string()))
}

/// The same of a socket in a dump.
fn seen_identity(socket: &SocketInfo) -> (RawFd, Option<String>, Option<String>) {
    let text = |address: &Option<Arc<str>>| address.as_deref().map(str::to_owned);
    (socket.fd, text(&socket.local), text(&socket.peer))
}

fn is_waiting(info: &TaskInfo) -> bool {
    matches!(info.state, TaskState::Waiting { .. })
}

fn is_queued(info: &TaskInfo) -> bool {
    matches!(info.state, TaskState::Queued { .. })
}

/// A closure that blocks until the first value is dropped.
fn blocker() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
    let (release, released) = mpsc::channel::<()>();
    (release, move || {
        let _ = released.recv();
    })
}

/// A folder for sockets, removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kittiwake-dump-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn pair_at(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).await.expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    (client, server)
}
/// A handle that its task has polled and dropped is no longer a thing that the task waits for.
#[test]
fn dropped_handle_is_no_wait() {
    run(|| async {
        let inner = spawn(pending::<()>());
        let joining = spawn(async move {
            assert!(futures_lite::future::poll_once(inner).await.is_none(), "the task does not end");
            pending::<()>().await;
        });
        let dump = settled_dump().await;
        assert_eq!(task(&dump, joining.id()).waits_for, [], "the handle is gone");
    });
}

/// A task that waits for one of a set names the tasks of the set.
#[test]
fn join_set_names_its_tasks() {
    run(|| async {
        let mut set = JoinSet::new();
        let ids = [set.spawn(pending::<()>()).id(), set.spawn(pending::<()>()).id()];
        let joining = spawn(async move { set.join_next().await.is_some() });
        let dump = settled_dump().await;
        assert_eq!(task(&dump, joining.id()).waits_for, ids.map(WaitsFor::Task));
    });
}

/// A dump has each task that lives all the time, and once, also when its worker gives the memory of a spike back meanwhile.
#[test]
fn dump_during_a_shrink_is_complete() {
    const SPIKE: usize = 50_000;
    // Far less than the table of such a spike, and more than dumps of the tasks that are left.
    const SLACK: usize = 1 << 20;
    in_own_process("dump_during_a_shrink_is_complete", || {
        let runtime = workers(1);
        let handle = runtime.handle();
        for _ in 0..3 {
            let before = heap_bytes();
            let (end, ended) = async_channel::bounded::<()>(1);
            let lasting = || (0..100).map(|_| handle.spawn(pending::<()>())).collect::<Vec<_>>();
            // In the table they are before those that will be gone, and behind them.
            let mut tasks = lasting();
            for _ in 0..SPIKE {
                let ended = ended.clone();
                handle.spawn(async move { ended.recv().await });
            }
            tasks.extend(lasting());
            let ids: Vec<Id> = tasks.iter().map(kittiwake::task::JoinHandle::id).collect();
            let stop = Arc::new(AtomicBool::new(false));
            let looking: Vec<_> = (0..3)
                .map(|_| {
                    let (handle, ids, stop) = (handle.clone(), ids.clone(), stop.clone());
                    std::thread::spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            let dump = handle.tasks();
                            let shown: Vec<Id> = dump.tasks().iter().map(|task| task.id).collect();
                            assert!(shown.is_sorted_by(|id, next| id < next), "a dump has a task twice");
                            let missing = ids.iter().filter(|id| shown.binary_search(id).is_err()).count();
                            assert_eq!(missing, 0, "tasks live, and the dump of {} lacks them", shown.len());
                        }
                    })
                })
                .collect();
            drop(end);
            wait_for_heap(before + SLACK);
            stop.store(true, Ordering::Relaxed);
            looking.into_iter().for_each(|thread| thread.join().expect("each dump is complete"));
            tasks.iter().for_each(kittiwake::task::JoinHandle::abort);
            progress();
        }
    });
}
