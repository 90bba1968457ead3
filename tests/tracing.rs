//! The feature `tracing`: spans of tasks, their wakes, and events, as a subscriber sees them.
//!
//! The subscriber of these tests writes down each call, and can be made to misbehave. There is one for the whole
//! process, so the tests take turns ([`record`]).

#![cfg(feature = "tracing")]

mod support;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{Listener, TcpStream, serve};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{Id, yield_now};
use kittiwake::{block_on, spawn, spawn_blocking, spawn_local};
use support::{OnDrop, one_worker, pair, paused_runtime, spin, within_once};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Record};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// A call of the subscriber, with the id of the span.
#[derive(Clone, Debug)]
enum Call {
    New(u64),
    Enter(u64),
    Exit(u64),
    Close(u64),
    Event { level: Level, target: &'static str, fields: Fields },
}

/// The kinds of calls.
const KINDS: [&str; 5] = ["new", "enter", "exit", "close", "event"];

impl Call {
    fn kind(&self) -> &'static str {
        let place = match self {
            Self::New(_) => 0,
            Self::Enter(_) => 1,
            Self::Exit(_) => 2,
            Self::Close(_) => 3,
            Self::Event { .. } => 4,
        };
        KINDS[place]
    }
}

type Fields = HashMap<&'static str, String>;

#[derive(Default)]
struct Recorded {
    calls: Vec<Call>,
    /// The name, the target and the fields of each span.
    spans: HashMap<u64, (&'static str, &'static str, Fields)>,
}

static RECORDED: Mutex<Option<Recorded>> = Mutex::new(None);

/// Each call of this kind panics.
static PANICS: Mutex<Option<&str>> = Mutex::new(None);

/// Each call uses the runtime, and this socket.
static USED: Mutex<Option<Arc<TcpStream>>> = Mutex::new(None);

/// The uses that have begun and not ended: one that panics stays among them.
static USES: AtomicI64 = AtomicI64::new(0);

struct Recorder;

impl Recorder {
    fn call(&self, call: Call) {
        let kind = call.kind();
        if let Some(recorded) = &mut *recorded() {
            recorded.calls.push(call);
        }
        let panics = *lock(&PANICS) == Some(kind);
        if panics {
            std::panic::resume_unwind(Box::new("the subscriber panicked"));
        }
        let used = lock(&USED).clone();
        if let Some(socket) = used {
            USES.fetch_add(1, Ordering::Relaxed);
            use_runtime(&socket);
            USES.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Takes the borrows and the locks of the runtime of this thread, and the lock of a socket.
fn use_runtime(socket: &TcpStream) {
    let Ok(handle) = Handle::try_current() else { return };
    let _entered = handle.enter();
    handle.spawn(yield_now());
    spawn(yield_now());
    let _ = (handle.metrics(), handle.tasks());
    let _ = socket.poll_readable(&mut Context::from_waker(Waker::noop()));
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        ["kittiwake", "tokio::task"].iter().any(|target| metadata.target().starts_with(target))
    }

    fn new_span(&self, span: &Attributes<'_>) -> span::Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut fields = Texts::default();
        span.record(&mut fields);
        assert!(span.is_root(), "a child would keep the span of the task that spawns it");
        if let Some(recorded) = &mut *recorded() {
            recorded.spans.insert(id, (span.metadata().name(), span.metadata().target(), fields.0));
        }
        self.call(Call::New(id));
        span::Id::from_u64(id)
    }

    fn record(&self, _: &span::Id, _: &Record<'_>) {
        panic!("console-subscriber does not read a field that comes later");
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Texts::default();
        event.record(&mut fields);
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        self.call(Call::Event { level, target, fields: fields.0 });
    }

    fn enter(&self, span: &span::Id) {
        self.call(Call::Enter(span.into_u64()));
    }

    fn exit(&self, span: &span::Id) {
        self.call(Call::Exit(span.into_u64()));
    }

    fn try_close(&self, span: span::Id) -> bool {
        self.call(Call::Close(span.into_u64()));
        true
    }
}

/// Fields as texts.
#[derive(Default)]
struct Texts(Fields);

impl Visit for Texts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

/// As [`Mutex::lock`], also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn recorded() -> MutexGuard<'static, Option<Recorded>> {
    lock(&RECORDED)
}

/// Runs `test` while the subscriber writes its calls down, and returns them.
#[track_caller]
fn record<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> (T, Recorded) {
    static TURN: Mutex<()> = Mutex::new(());
    static INSTALL: Once = Once::new();
    let _turn = lock(&TURN);
    INSTALL.call_once(|| tracing::subscriber::set_global_default(Recorder).expect("there is no other subscriber"));
    *recorded() = Some(Recorded::default());
    let result = within_once(test);
    (result, recorded().take().expect("a record was begun"))
}

impl Recorded {
    /// The span of the task with this id, and its fields. All tasks of a test are of one runtime.
    #[track_caller]
    fn span_of(&self, id: Id) -> (u64, &Fields) {
        let mut of = self.spans.iter().filter(|(_, (.., fields))| fields["task.id"] == id.to_string());
        let (Some((span, (name, target, fields))), None) = (of.next(), of.next()) else { panic!("not one span") };
        assert_eq!((*name, *target), ("runtime.spawn", "tokio::task"), "console-subscriber looks for these names");
        (*span, fields)
    }

    /// The calls for the task with this id: those for its span, and the events of its wakers.
    #[track_caller]
    fn calls_of(&self, id: Id) -> String {
        let (id, _) = self.span_of(id);
        let call = |call: &Call| match call {
            Call::New(span) if *span == id => Some("new"),
            Call::Enter(span) if *span == id => Some("enter"),
            Call::Exit(span) if *span == id => Some("exit"),
            Call::Close(span) if *span == id => Some("close"),
            Call::Event { level: Level::TRACE, target: "tokio::task::waker", fields }
                if fields["task.id"] == id.to_string() =>
            {
                Some(match &*fields["op"] {
                    "waker.clone" => "clone",
                    "waker.wake_by_ref" => "wake",
                    op => panic!("console-subscriber does not know {op}"),
                })
            }
            _ => None,
        };
        self.calls.iter().filter_map(call).collect::<Vec<_>>().join(" ")
    }

    /// The events of a target: level, message, and the value of this field.
    fn events(&self, target: &str, field: &str) -> Vec<String> {
        let text = |call: &Call| match call {
            Call::Event { level, target: of, fields } if *of == target => {
                let value = fields.get(field).map(|value| format!(": {value}"));
                Some(format!("{level} {}{}", fields["message"], value.unwrap_or_default()))
            }
            _ => None,
        };
        self.calls.iter().filter_map(text).collect()
    }
}

/// `tokio-console` shows a task by these fields.
#[test]
fn span_has_consoles_fields() {
    let (tasks, recorded) = record(|| {
        block_on(async {
            let tasks = [
                ("task", spawn(async {}), line!()),
                ("local", spawn_local(async {}), line!()),
                ("blocking", spawn_blocking(|| ()), line!()),
            ];
            let mut ids = Vec::new();
            for (kind, task, line) in tasks {
                ids.push((kind, task.id(), line));
                task.await.unwrap();
            }
            ids
        })
    });
    for (kind, id, line) in tasks {
        let (_, fields) = recorded.span_of(id);
        assert_eq!(fields["kind"], kind);
        assert_eq!((&*fields["loc.file"], &*fields["loc.line"]), (file!(), &*line.to_string()), "the caller's place");
        assert!(fields["loc.col"].parse::<u32>().is_ok_and(|column| column > 1), "the column is {}", fields["loc.col"]);
        assert!(!fields.contains_key("task.name"), "the task has no name");
    }
    assert_eq!(recorded.spans.len(), 3, "only tasks have spans");
}

/// `tokio-console` counts the times that a span is entered as polls. Spawning wakes nothing, and a task that yields is
/// woken each time.
#[test]
fn span_is_entered_once_per_poll() {
    for workers in [1, 2] {
        let (id, recorded) = record(move || {
            let runtime = Builder::new_multi_thread().worker_threads(workers).build().unwrap();
            let task = runtime.handle().spawn(async {
                yield_now().await;
                yield_now().await;
            });
            let id = task.id();
            runtime.block_on(task).unwrap();
            id
        });
        assert_eq!(recorded.calls_of(id), "new clone enter exit wake enter exit wake enter exit close");
    }
}

/// The event of a wake has the id of the woken task's span, whichever thread wakes it: its own reactor, another task, or
/// a thread of the user's.
#[test]
fn wake_event_has_the_spans_id() {
    let (ids, recorded) = record(|| {
        one_worker().block_on(async {
            let (mut client, mut server) = pair().await;
            let reader = spawn(async move { server.read_exact(&mut [0]).await.unwrap() });
            let (send, receive) = async_channel::bounded(1);
            let receiver = spawn(async move { receive.recv().await.unwrap() });
            yield_now().await;
            std::thread::spawn(move || send.send_blocking(()).unwrap());
            client.write_all(b"x").await.unwrap();
            let ids = [reader.id(), receiver.id()];
            reader.await.unwrap();
            receiver.await.unwrap();
            ids
        })
    });
    for id in ids {
        assert_eq!(recorded.calls_of(id), "new clone enter exit wake enter exit close");
    }
}

/// A span closes when the future of its task is dropped, however that comes about, also while a handle of the task is
/// kept.
#[test]
fn span_closes_with_the_future() {
    let (tasks, recorded) = record(|| {
        let runtime = one_worker();
        let (aborted, panicked, ended) = runtime.block_on(async {
            let aborted = spawn(pending::<()>());
            let panicked = spawn(async { std::panic::resume_unwind(Box::new("a task panicked")) });
            let ended = spawn(pending::<()>());
            yield_now().await;
            aborted.abort();
            yield_now().await;
            (aborted, panicked, ended)
        });
        let closed = |id| recorded().as_ref().unwrap().calls_of(id).ends_with("close");
        assert!(closed(aborted.id()) && closed(panicked.id()) && !closed(ended.id()));
        let handle = runtime.handle().clone();
        drop(runtime);
        assert!(closed(ended.id()), "the runtime has ended");
        let refused = handle.spawn(async {});
        assert!(closed(refused.id()), "no runtime runs the task");
        [aborted.id(), panicked.id(), ended.id(), refused.id()]
    });
    let [aborted, panicked, ended, refused] = tasks.map(|id| recorded.calls_of(id));
    assert_eq!(aborted, "new clone enter exit wake enter exit close");
    assert_eq!(panicked, "new clone enter exit close");
    assert_eq!(ended, "new clone enter exit wake enter exit close");
    assert_eq!(refused, "new clone close");
}

/// Runs tasks of all kinds that wait for sockets, timers, threads and each other.
fn run_everything(runtime: &Runtime, used: bool) {
    runtime.block_on(async move {
        let (mut client, server) = pair().await;
        let server = Arc::new(server);
        if used {
            *lock(&USED) = Some(server.clone());
        }
        let echo = spawn(async move {
            for _ in 0..20 {
                let (mut reader, mut writer) = (&*server, &*server);
                let mut byte = [0];
                reader.read_exact(&mut byte).await.unwrap();
                writer.write_all(&byte).await.unwrap();
            }
        });
        let client = spawn(async move {
            for number in 0..20 {
                client.write_all(&[number]).await.unwrap();
                let mut byte = [0];
                client.read_exact(&mut byte).await.unwrap();
                assert_eq!(byte, [number]);
                kittiwake::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let local = spawn_local(async { yield_now().await });
        assert_eq!(spawn_blocking(|| 5).await.unwrap(), 5);
        local.await.unwrap();
        echo.await.unwrap();
        client.await.unwrap();
        spawn(pending::<()>());
        spawn_local(pending::<()>());
        yield_now().await;
    });
}

/// A panic of the subscriber ends at the call. Tasks, wakes, and the end of the runtime go on.
#[test]
fn panicking_subscriber_harms_nothing() {
    // One kind at a time: without a span, the subscriber would not hear of the rest.
    for kind in KINDS {
        let (_, recorded) = record(move || {
            let _quiet = OnDrop::new(|| *lock(&PANICS) = None);
            *lock(&PANICS) = Some(kind);
            for runtime in [one_worker(), Builder::new_multi_thread().worker_threads(2).build().unwrap()] {
                run_everything(&runtime, false);
                runtime.shutdown_timeout(support::PATIENCE).unwrap();
            }
        });
        assert!(recorded.calls.iter().any(|call| call.kind() == kind), "the subscriber was not called for {kind}");
    }
}

/// The subscriber may spawn, and use the socket whose event it is told of: it is called outside every lock and borrow.
/// It hears nothing of what it does itself, or it would be called for ever.
#[test]
fn subscriber_may_use_the_runtime() {
    let (_, recorded) = record(|| {
        for runtime in [one_worker(), Builder::new_multi_thread().worker_threads(2).build().unwrap()] {
            run_everything(&runtime, true);
            runtime.shutdown_timeout(support::PATIENCE).unwrap();
        }
        *lock(&USED) = None;
    });
    assert!(recorded.calls.len() > 100, "the subscriber was hardly called");
    assert_eq!(USES.load(Ordering::Relaxed), 0, "a borrow of the runtime made a call panic");
}

/// A task has the name that its builder gave it, and a handler of a server that of its peer. The next task has none.
#[test]
fn span_has_the_tasks_name() {
    let (tasks, recorded) = record(|| {
        block_on(async {
            let builder = kittiwake::task::Builder::new().name("a \"name\"");
            let named = [builder.spawn(async {}), builder.spawn_local(async {}), builder.spawn_blocking(|| ())];
            let unnamed = [spawn(async {}), spawn_local(async {}), spawn_blocking(|| ())];
            let ids = [named, unnamed].map(|tasks| tasks.map(|task| task.id()));
            let (listener, address) = support::listener().await;
            let signal = kittiwake::net::ShutdownSignal::new();
            let server = spawn(serve(listener, |_, _| async {}).with_shutdown(&signal));
            let client = TcpStream::connect(address).await.unwrap();
            signal.trigger();
            server.await.unwrap().unwrap();
            (ids, client.local_addr().unwrap())
        })
    });
    let ([named, unnamed], client) = tasks;
    for id in named {
        assert_eq!(recorded.span_of(id).1["task.name"], "a \"name\"");
    }
    for id in unnamed {
        assert!(!recorded.span_of(id).1.contains_key("task.name"), "the name is another task's");
    }
    let name = client.to_string();
    let is_handlers = |(.., fields): &&(_, _, Fields)| fields.get("task.name") == Some(&name);
    assert_eq!(recorded.spans.values().filter(is_handlers).count(), 1, "the handler's task is not named by its peer");
}

/// A server's accept errors are warnings with the wait that follows, and its end is told phase by phase.
#[test]
fn servers_events_are_told() {
    let (_, recorded) = record(|| {
        // Eight attempts with a wait after each, one that looks for a descriptor again, and one with the reserve.
        let lacks = (0..10).map(|_| io::Error::from_raw_os_error(libc::EMFILE));
        let fails = lacks.chain([io::ErrorKind::InvalidData.into()]);
        paused_runtime().block_on(async {
            let server = serve(Failing(Mutex::new(fails.collect())), |(), ()| async {});
            server.await.expect_err("the last error is fatal");
        });
    });
    let waits = [10, 20, 40, 80, 160, 320, 640, 1000].map(|wait| wait.to_string());
    let told = waits.map(|wait| format!("WARN cannot accept connections: {wait}"));
    let told = told.iter().map(String::as_str).chain([
        "WARN no descriptor is left: refuses the clients in the queue",
        "WARN cannot accept connections any more, and stops",
        "INFO stops accepting",
        "DEBUG the listener is closed: waits for the handlers",
        "INFO has ended",
    ]);
    assert_eq!(recorded.events("kittiwake::serve", "retry_after_ms"), told.collect::<Vec<_>>());
    let errors = recorded.events("kittiwake::serve", "error");
    assert!(errors[0].contains("Too many open files"), "the error is not told: {}", errors[0]);
}

/// A listener whose attempts fail with these errors.
struct Failing(Mutex<VecDeque<io::Error>>);

impl Listener for Failing {
    type Stream = ();
    type Addr = ();

    fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<((), ())>> {
        lock(&self.0).pop_front().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }

    fn reserve(&self) -> Option<OwnedFd> {
        Some(File::open("/dev/null").ok()?.into())
    }
}

/// A slow poll is a warning with the task and its place, beside the hook.
#[test]
fn slow_poll_is_told() {
    let (line, recorded) = record(|| {
        let builder = Builder::new_current_thread().on_slow_poll(Duration::from_millis(1), |_| ());
        let runtime = builder.build().unwrap();
        runtime.block_on(async {
            let line = line!() + 1;
            let slow = kittiwake::task::Builder::new().name("slow").spawn(async {
                spin(Duration::from_millis(2));
            });
            slow.await.unwrap();
            line
        })
    });
    let told = |field| recorded.events("kittiwake::task", field);
    assert_eq!(told("name"), ["WARN a task blocks its worker: slow"]);
    assert_eq!(told("line"), [format!("WARN a task blocks its worker: {line}")]);
    assert_eq!(told("is_over"), ["WARN a task blocks its worker: true"]);
}

/// The end of a runtime is told phase by phase, with the number of tasks that it waits for.
#[test]
fn shutdown_is_told() {
    let (_, recorded) = record(|| {
        let runtime = one_worker();
        runtime.block_on(async { drop(spawn(pending::<()>())) });
    });
    let one_worker = [
        "DEBUG shutdown: cancels the tasks: 1",
        "DEBUG shutdown: a worker waits for the tasks: 1",
        "DEBUG shutdown: a worker has ended",
    ];
    assert_eq!(recorded.events("kittiwake::runtime", "tasks"), one_worker);

    let (_, recorded) = record(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
        drop(runtime.handle().spawn(pending::<()>()));
        runtime.shutdown_timeout(support::PATIENCE).unwrap();
    });
    let told = recorded.events("kittiwake::runtime", "threads");
    let (first, last) = (told.first().unwrap(), told.last().unwrap());
    assert_eq!(first, "DEBUG shutdown: cancels the tasks");
    assert_eq!(last, "DEBUG shutdown: the threads of the workers have ended: 2");
    assert_eq!(told.iter().filter(|told| *told == "DEBUG shutdown: a worker has ended").count(), 2);
}

/// A closure that outlives the time for the end is told.
#[test]
fn shutdown_that_times_out_is_told() {
    let (_, recorded) = record(|| {
        let runtime = one_worker();
        let (release, released) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        runtime.handle().spawn_blocking(move || {
            begin.send(()).unwrap();
            released.recv()
        });
        begun.recv().unwrap();
        runtime.shutdown_timeout(Duration::from_millis(1)).unwrap_err();
        drop(release);
    });
    let told = recorded.events("kittiwake::runtime", "closures");
    assert!(told.iter().any(|told| told == "INFO shutdown: threads go on: 1"), "it was not told: {told:?}");
}
