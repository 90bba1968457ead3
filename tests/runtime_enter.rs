//! `Handle::enter`: which runtime a thread spawns on while the guard lives, and after it.

mod support;

use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use futures_lite::future::block_on as foreign_block_on;
use kittiwake::net::{TcpListener, lookup_host};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{JoinHandle, JoinSet};
use kittiwake::time::{Duration, sleep};
use kittiwake::{spawn, spawn_blocking, spawn_local};
use support::{OnDrop, one_worker, panic_of, within, within_once};

/// A thread that no runtime runs on spawns on the entered runtime, whichever kind it is.
#[test]
fn plain_thread_spawns_inside_enter() {
    within(|| {
        for runtime in [named("entered"), one_worker()] {
            let handle = runtime.handle().clone();
            let (task, closure, set) = thread::spawn(move || {
                let _guard = handle.enter();
                assert!(is_current(&handle), "Handle::current is another runtime's");
                let mut set = JoinSet::new();
                set.spawn(async { 3 });
                (spawn(async { 1 }), spawn_blocking(|| 2), set)
            })
            .join()
            .expect("the thread does not panic");
            runtime.block_on(async {
                let mut set = set;
                assert_eq!((task.await.unwrap(), closure.await.unwrap()), (1, 2));
                assert_eq!(set.join_next().await.expect("a task").unwrap(), 3);
            });
        }
    });
}

/// The newest guard counts. A guard that is dropped restores the runtime that was current before it, or none.
#[test]
fn guards_nest_and_restore() {
    within(|| {
        let (outer, inner) = (named("outer"), named("inner"));
        let nowhere = || {
            assert!(Handle::try_current().is_err(), "the thread is still inside a runtime");
            assert!(panic_of(|| drop(spawn(ready(())))).contains("outside a runtime"));
            assert!(panic_of(|| drop(spawn_blocking(|| ()))).contains("outside a runtime"));
        };
        nowhere();
        let first = outer.handle().enter();
        assert_eq!(worker_of(spawn(runtime_name())), "outer");
        {
            let _second = inner.handle().enter();
            assert!(is_current(inner.handle()), "the newest guard counts");
            assert_eq!(worker_of(spawn(runtime_name())), "inner");
            let _third = outer.handle().enter();
            assert_eq!(worker_of(spawn(runtime_name())), "outer");
        }
        assert!(is_current(outer.handle()), "the first guard lives");
        assert_eq!(worker_of(spawn(runtime_name())), "outer");
        drop(first);
        nowhere();
    });
}

/// A `block_on` call inside a guard is a runtime of its own. The guard counts again when the call has ended.
#[test]
fn block_on_is_its_own_inside_enter() {
    within(|| {
        let (entered, beside) = (named("entered"), named("beside"));
        let _guard = entered.handle().enter();
        let caller = thread::current().id();
        kittiwake::block_on(async {
            let here = spawn(async { thread::current().id() }).await.unwrap();
            assert_eq!(here, caller, "the call's own runtime runs its tasks");
            sleep(Duration::from_millis(1)).await;
            let local = spawn_local(async { thread::current().id() }).await.unwrap();
            assert_eq!(local, caller);
        });
        beside.handle().block_on(async {
            assert_eq!(spawn(runtime_name()).await.unwrap(), "beside");
            assert!(is_current(beside.handle()));
        });
        assert!(is_current(entered.handle()), "the guard lives");
        assert_eq!(worker_of(spawn(runtime_name())), "entered");
    });
}

/// A guard on a worker's thread changes what is spawned. The worker's own sockets, timers and local tasks stay.
#[test]
fn enter_keeps_the_threads_worker() {
    within(|| {
        let entered = named("entered");
        kittiwake::block_on(async {
            let caller = thread::current().id();
            let (listener, address) = support::listener().await;
            let guard = entered.handle().enter();
            assert_eq!(spawn(runtime_name()).await.unwrap(), "entered");
            assert_eq!(spawn_local(async { thread::current().id() }).await.unwrap(), caller);
            sleep(Duration::from_millis(1)).await;
            let client = thread::spawn(move || std::net::TcpStream::connect(address).expect("connect"));
            listener.accept().await.expect("accept");
            assert_eq!(entered.handle().metrics().sources_registered(), 0, "the socket waits where it is polled");
            drop(guard);
            assert_eq!(spawn(async { thread::current().id() }).await.unwrap(), caller);
            client.join().expect("the client");
        });
    });
}

/// A worker that enters its own runtime spawns as before, on itself. The guard must not spread its tasks.
#[test]
fn worker_enters_its_own_runtime() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        let handle = runtime.handle().clone();
        let spawning = runtime.handle().spawn(async move {
            let _guard = handle.enter();
            (0..10).for_each(|_| drop(spawn(std::future::pending::<()>())));
            let metrics = handle.metrics();
            metrics.workers().iter().map(|worker| worker.tasks_alive).collect::<Vec<_>>()
        });
        let mut tasks = foreign_block_on(spawning).expect("the task does not panic");
        tasks.sort_unstable();
        assert!(tasks[0] <= 1 && tasks[1] >= 10, "the tasks of each worker are {tasks:?}");
    });
}

/// The thread of a guard is no worker: what has to wait there says so, and what needs only the pool works.
#[test]
fn entered_thread_is_no_worker() {
    within(|| {
        let runtime = named("entered");
        let _guard = runtime.handle().enter();
        let (listener, address) = foreign_block_on(async {
            let found: Vec<_> = lookup_host(("localhost", 0)).await.expect("the look-up runs on the pool").collect();
            let listener = TcpListener::bind(&found[..]).await.expect("bind to port 0");
            let address = listener.local_addr().expect("its address");
            (listener, address)
        });
        let error = foreign_block_on(listener.accept()).expect_err("no client has come");
        assert!(error.to_string().contains("no kittiwake runtime is running on this thread"), "{error}");
        assert!(panic_of(|| foreign_block_on(sleep(Duration::from_secs(9)))).contains("no kittiwake runtime"));
        assert!(panic_of(|| drop(spawn_local(ready(())))).contains("spawn_local was called outside a runtime"));
        // The future that it does not take is dropped where its destructor may enter a runtime.
        let enters = OnDrop::new(|| kittiwake::block_on(async {}));
        let message = panic_of(|| drop(spawn_local(async move { drop(enters) })));
        assert!(message.contains("spawn_local was called outside a runtime"), "{message}");
        // A task of the runtime waits for the same listener.
        let accepted = spawn(async move { listener.accept().await.map(|(_, peer)| peer) });
        let client = std::net::TcpStream::connect(address).expect("connect");
        let peer = foreign_block_on(accepted).unwrap().expect("accept");
        assert_eq!(peer, client.local_addr().expect("its address"));
    });
}

/// A server that is polled inside a guard runs its handlers on the entered runtime, as `spawn` would.
#[test]
fn entered_server_spawns_its_handlers() {
    use kittiwake::net::{ShutdownSignal, TcpStream, serve};
    within(|| {
        let runtime = named("entered");
        kittiwake::block_on(async {
            let _guard = runtime.handle().enter();
            let (listener, address) = support::listener().await;
            let _client = std::net::TcpStream::connect(address).expect("connect");
            let (seen, names) = std::sync::mpsc::channel();
            let handler = |_: TcpStream, _| {
                let seen = seen.clone();
                async move { seen.send(runtime_name().await) }
            };
            let shutdown = ShutdownSignal::new();
            shutdown.trigger();
            let report = serve(listener, handler).with_shutdown(&shutdown).await.expect("no error");
            assert_eq!((report.served, names.try_recv().expect("the handler has run")), (1, "entered".to_owned()));
        });
    });
}

/// A guard keeps no runtime alive: what is spawned after its end is cancelled at once.
#[test]
fn guard_keeps_no_runtime_alive() {
    within(|| {
        for runtime in [named("entered"), one_worker()] {
            let handle = runtime.handle().clone();
            let _guard = handle.enter();
            drop(runtime);
            assert!(foreign_block_on(spawn(ready(1))).unwrap_err().is_cancelled());
            assert!(foreign_block_on(spawn_blocking(|| 1)).unwrap_err().is_cancelled());
            assert_eq!(Handle::current().metrics().tasks_alive(), 0);
        }
    });
}

/// A guard that is dropped before a newer one panics and changes nothing, so that the newer one still counts.
#[test]
fn guard_out_of_order_panics() {
    // The guard forgets what it has entered, which stays on the heap.
    within_once(|| {
        let (outer, inner) = (named("outer"), named("inner"));
        let first = outer.handle().enter();
        let second = inner.handle().enter();
        assert!(panic_of(|| drop(first)).contains("dropped out of order"));
        assert!(is_current(inner.handle()), "the newer guard lives");
        assert_eq!(worker_of(spawn(runtime_name())), "inner");
        drop(second);
    });
}

/// A guard must not leave the `block_on` call in which it was made, and must not end in one that began after it.
#[test]
fn guard_must_stay_in_its_call() {
    // The guard forgets what it has entered, which stays on the heap.
    within_once(|| {
        let runtime = named("entered");
        let handle = runtime.handle();
        let escaped = kittiwake::block_on(async { handle.enter() });
        assert!(Handle::try_current().is_err(), "the end of the call leaves both runtimes");
        // Later calls and guards have other numbers, however deep they are.
        kittiwake::block_on(async {
            let _other = handle.enter();
            assert!(panic_of(|| drop(escaped)).contains("dropped out of order"));
            assert!(is_current(handle));
        });
        assert!(Handle::try_current().is_err());
        let earlier = handle.enter();
        kittiwake::block_on(async {
            let caller = thread::current().id();
            assert!(panic_of(|| drop(earlier)).contains("dropped out of order"));
            assert_eq!(spawn(async { thread::current().id() }).await.unwrap(), caller, "the call is not left");
        });
    });
}

/// A panic inside a guard leaves the runtime, as a return does.
#[test]
fn panic_leaves_the_runtime() {
    within(|| {
        let runtime = named("entered");
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _outer = runtime.handle().enter();
            let _inner = runtime.handle().enter();
            std::panic::resume_unwind(Box::new("inside"));
        }));
        assert!(result.is_err() && Handle::try_current().is_err());
    });
}

/// A runtime of one thread with this name.
fn named(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).build().expect("a runtime")
}

/// The name of the runtime whose worker polls this.
async fn runtime_name() -> String {
    thread::current().name().unwrap_or_default().trim_end_matches("-0").to_owned()
}

#[track_caller]
fn worker_of(task: JoinHandle<String>) -> String {
    foreign_block_on(task).expect("the task does not panic")
}

/// Whether `Handle::current` is a handle of the same runtime. A task tells, and ends before this returns.
fn is_current(handle: &Handle) -> bool {
    let before = handle.metrics().tasks_alive();
    let task = Handle::current().spawn(std::future::pending::<()>());
    let is_same = handle.metrics().tasks_alive() == before + 1;
    task.abort();
    is_same
}
