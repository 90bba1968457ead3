//! Five sick servers, and their cures. The dump of a sick server names the line of the sick tasks, their state, and the
//! thing that they wait for. The dump of a cured server does not show it.
//!
//! `docs/inspect.md` describes the same servers.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use Health::{Cured, Sick};
use kittiwake::inspect::{TaskDump, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerState};
use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream, serve};
use kittiwake::runtime::Handle;
use kittiwake::{spawn, spawn_blocking};
use support::{PATIENCE, seen, within, workers};

// ---- 1. a lock that is held over an await ----

/// A handler that holds a lock while it reads from a silent client stops all others. The dump shows the one that reads,
/// and from which client. The others of the same line wait for a thing that is not known.
#[test]
fn lock_over_await_is_diagnosed() {
    on_one_and_two_workers(|handle| {
        let server = counter(handle, Sick);
        let silent = server.connect();
        // A handler that reads has the lock.
        let holder = seen(handle, "a handler reads", |dump| {
            let tasks = at(dump, server.line);
            tasks.first().filter(|task| is_reading(task)).map(|task| TaskInfo::clone(task))
        });
        let [mut second, mut third] = [server.connect(), server.connect()];
        for client in [&mut second, &mut third] {
            client.write_all(b"+").expect("a request");
        }
        let dump = seen(handle, "two handlers wait for the lock", |dump| {
            (at(dump, server.line).into_iter().filter(waits_for_unknown).count() == 2).then(|| dump.clone())
        });
        let [WaitsFor::Reading(socket)] = &holder.waits_for[..] else { panic!("the holder reads: {holder}") };
        let client = silent.local_addr().expect("an address").to_string();
        assert_eq!(socket.peer.as_deref(), Some(&client[..]), "the holder reads from the silent client");
        let place = server.place();
        assert_says(&dump, &format!("  1 task of {place} waits for reading, for "));
        assert_says(&dump, &format!("  2 tasks of {place} wait for something that is not known here, longest for "));
        assert_says(&dump, &format!(" to {client})"));
        drop(silent);
        assert_eq!([answer(&mut second), answer(&mut third)], *b"!!", "the end of the silent client frees them");
    });
}

/// Once handlers read first and lock then, a silent client stops none, and no handler waits for the lock.
#[test]
fn lock_after_await_is_healthy() {
    on_one_and_two_workers(|handle| {
        let server = counter(handle, Cured);
        let _silent = server.connect();
        for _ in 0..2 {
            let mut client = server.connect();
            client.write_all(b"+").expect("a request");
            assert_eq!(answer(&mut client), b'!');
        }
        seen(handle, "one handler is left, and reads", |dump| match at(dump, server.line)[..] {
            [task] => is_reading(task).then_some(()),
            _ => None,
        });
    });
}

/// Counts requests, under a lock.
fn counter(handle: &Handle, health: Health) -> Server {
    async fn handler(mut stream: TcpStream, count: Arc<async_lock::Mutex<u64>>, health: Health) -> io::Result<()> {
        let mut request = [0];
        if health == Sick {
            let mut count = count.lock().await;
            stream.read_exact(&mut request).await?;
            *count += 1;
        } else {
            stream.read_exact(&mut request).await?;
            *count.lock().await += 1;
        }
        stream.write_all(b"!").await
    }
    let (listener, address) = listener();
    let count = Arc::new(async_lock::Mutex::new(0));
    let line = line!() + 1;
    let server = serve(listener, move |stream, _peer| handler(stream, count.clone(), health));
    drop(handle.spawn(server));
    Server { address, line }
}

// ---- 2. a worker that is blocked ----

/// A handler that blocks its thread runs, on which worker and for how long. The worker names it. On the only worker, a
/// task that was woken is queued behind it.
#[test]
fn blocked_worker_is_diagnosed() {
    on_one_and_two_workers(|handle| {
        let (server, unblock, gate) = blocker(handle, Sick);
        let mut quick = server.connect();
        quick.write_all(b"q").expect("a request");
        assert_eq!(answer(&mut quick), b'q', "the second handler answers");
        let mut slow = server.connect();
        slow.write_all(b"s").expect("a request");
        // The blocked handler holds the gate from now on. Before that, the second handler may still be in the poll that
        // has answered.
        while gate.try_lock().is_ok() {
            std::thread::yield_now();
        }

        let long = Duration::from_millis(20);
        let (dump, worker) = seen(handle, "one handler runs for 20 ms", |dump| {
            let [task] = at(dump, server.line).into_iter().filter(|task| is_running(task)).collect::<Vec<_>>()[..]
            else {
                return None;
            };
            match task.state {
                TaskState::Running { worker, since } if since >= long => Some((dump.clone(), worker)),
                _ => None,
            }
        });
        let worker = worker.expect("it runs on a worker");
        let blocked = at(&dump, server.line).into_iter().find(|task| is_running(task)).expect("it runs");
        let WorkerState::Running { task, since } = dump.workers()[worker].state else { panic!("it runs:\n{dump:#}") };
        assert_eq!(task, Some(blocked.id), "the worker names the task:\n{dump:#}");
        assert!(since >= long, "the worker has run it for {since:?}");
        assert_says(&dump, &format!("  worker {worker} runs task {} for ", blocked.id));
        assert_says(&dump, &format!("  1 task of {} runs, for ", server.place()));
        assert_says(&dump, &format!(" runs on worker {worker} for "));

        if dump.workers().len() == 1 {
            let fresh = handle.spawn(async {});
            let dump = handle.tasks();
            let queued = dump.tasks().iter().find(|task| task.id == fresh.id()).expect("the task is in the dump");
            assert!(matches!(queued.state, TaskState::Queued { .. }), "it is queued behind the blocked one: {queued}");
        } else {
            quick.write_all(b"q").expect("a request");
            assert_eq!(answer(&mut quick), b'q', "the other worker goes on");
        }
        drop(unblock);
        assert_eq!(answer(&mut slow), b's');
    });
}

/// Once the handler blocks in `spawn_blocking`, its closure runs on no worker, and the handler waits for the closure.
/// Other handlers go on.
#[test]
fn blocking_closure_is_healthy() {
    on_one_and_two_workers(|handle| {
        let (server, unblock, _gate) = blocker(handle, Cured);
        let mut slow = server.connect();
        slow.write_all(b"s").expect("a request");
        let (dump, closure) = seen(handle, "a handler waits for its closure", |dump| {
            let waiting = at(dump, server.line).into_iter().find_map(|task| match task.waits_for[..] {
                [WaitsFor::Task(id)] => Some(id),
                _ => None,
            })?;
            let closure = dump.tasks().iter().find(|task| task.id == waiting).filter(|task| is_running(task))?;
            Some((dump.clone(), closure.clone()))
        });
        assert_eq!(closure.kind, TaskKind::Blocking, "the closure is on a thread that may block: {closure}");
        assert!(matches!(closure.state, TaskState::Running { worker: None, .. }), "it runs on no worker: {closure}");
        assert_says(&dump, &format!("  1 task of {} waits for a task, for ", server.place()));
        let mut quick = server.connect();
        quick.write_all(b"q").expect("a request");
        assert_eq!(answer(&mut quick), b'q', "the workers go on");
        drop(unblock);
        assert_eq!(answer(&mut slow), b's');
    });
}

/// Locked by the handler that blocks.
type Gate = Arc<Mutex<mpsc::Receiver<()>>>;

/// Echoes bytes. For an `s` it blocks until the sender is dropped.
fn blocker(handle: &Handle, health: Health) -> (Server, mpsc::Sender<()>, Gate) {
    async fn handler(mut stream: TcpStream, gate: Gate, health: Health) -> io::Result<()> {
        let mut request = [0];
        while stream.read(&mut request).await? > 0 {
            let gate = gate.clone();
            let work = move || {
                // The error says that the sender is gone.
                let _ = gate.lock().unwrap().recv();
            };
            match (request[0], health) {
                (b's', Sick) => work(),
                (b's', Cured) => spawn_blocking(work).await?,
                _ => {}
            }
            stream.write_all(&request).await?;
        }
        Ok(())
    }
    let (listener, address) = listener();
    let (unblock, gate) = mpsc::channel();
    let gate = Arc::new(Mutex::new(gate));
    let locked = gate.clone();
    let line = line!() + 1;
    let server = serve(listener, move |stream, _peer| handler(stream, gate.clone(), health));
    drop(handle.spawn(server));
    (Server { address, line }, unblock, locked)
}

// ---- 3. a leak of tasks ----

/// How many clients come and go.
const CLIENTS: usize = 50;

/// Tasks that each request leaves behind are one line of the table, with their number, when all clients are gone.
#[test]
fn leak_of_tasks_is_diagnosed() {
    on_one_and_two_workers(|handle| {
        let (server, leaked, _finished) = logger(handle, Sick);
        come_and_go(&server);
        let dump = seen(handle, "all handlers have ended", |dump| {
            let is_over = at(dump, server.line).is_empty() && at(dump, leaked).iter().all(waits_for_unknown);
            is_over.then(|| dump.clone())
        });
        assert_eq!(at(&dump, leaked).len(), CLIENTS, "each client has left a task:\n{dump:#}");
        let place = format!("{}:{leaked}", file!());
        assert_says(&dump, &format!("  50 tasks of {place} wait for something that is not known here, longest for "));
    });
}

/// Once the handler's end ends the task too, nothing is left.
#[test]
fn ended_tasks_are_healthy() {
    on_one_and_two_workers(|handle| {
        let (server, leaked, _finished) = logger(handle, Cured);
        come_and_go(&server);
        seen(handle, "no task is left", |dump| {
            (at(dump, server.line).is_empty() && at(dump, leaked).is_empty()).then_some(())
        });
    });
}

type Finished = Arc<Mutex<Vec<async_channel::Sender<()>>>>;

/// Each request has a task that waits for the end of the request. The sick server keeps the senders and never uses them.
/// The cured one has them in the handler.
fn logger(handle: &Handle, health: Health) -> (Server, u32, Finished) {
    const SPAWN: u32 = line!() + 4;
    async fn handler(mut stream: TcpStream, finished: Finished, health: Health) -> io::Result<()> {
        let (finish, is_finished) = async_channel::bounded::<()>(1);
        let waiting = async move { is_finished.recv().await };
        spawn(waiting);
        stream.read_exact(&mut [0]).await?;
        if health == Sick {
            finished.lock().unwrap().push(finish);
        }
        stream.write_all(b"!").await
    }
    let (listener, address) = listener();
    let finished = Finished::default();
    let kept = finished.clone();
    let line = line!() + 1;
    let server = serve(listener, move |stream, _peer| handler(stream, kept.clone(), health));
    drop(handle.spawn(server));
    (Server { address, line }, SPAWN, finished)
}

fn come_and_go(server: &Server) {
    for _ in 0..CLIENTS {
        let mut client = server.connect();
        client.write_all(b"?").expect("a request");
        assert_eq!(answer(&mut client), b'!');
    }
}

// ---- 4. a slow client ----

/// More than the buffers of both sockets hold.
const REPLY: usize = 32 << 20;

/// A handler whose client does not read waits for room in its socket. The dump names the client.
#[test]
fn slow_client_is_diagnosed() {
    on_one_and_two_workers(|handle| {
        let server = sender(handle, None);
        let slow = server.connect();
        let dump = seen(handle, "a handler waits for room in its socket", |dump| {
            let tasks = at(dump, server.line);
            tasks.iter().any(|task| matches!(task.waits_for[..], [WaitsFor::Writing(_)])).then(|| dump.clone())
        });
        let [WaitsFor::Writing(socket)] = &at(&dump, server.line)[0].waits_for[..] else { panic!("it writes") };
        let client = slow.local_addr().expect("an address").to_string();
        assert_eq!(socket.peer.as_deref(), Some(&client[..]), "the dump names the slow client");
        assert_says(&dump, &format!("  1 task of {} waits for writing, for ", server.place()));
        assert_says(&dump, &format!(", writing to descriptor {} ({} to {client})", socket.fd, server.address));
        support::will_reset(&slow);
    });
}

/// With a write timeout, the handler of a slow client ends. A client that reads gets the whole reply.
#[test]
fn write_timeout_is_healthy() {
    on_one_and_two_workers(|handle| {
        let server = sender(handle, Some(Duration::from_millis(300)));
        let mut slow = server.connect();
        assert_eq!(answer(&mut slow), b'x', "the handler has begun");
        seen(handle, "the handler has ended", |dump| at(dump, server.line).is_empty().then_some(()));
        support::will_reset(&slow);
        // This client may be held up by the machine, so its server is more patient.
        let server = sender(handle, Some(PATIENCE / 2));
        let reply = support::read_all(server.connect());
        assert_eq!(reply.len(), REPLY, "a client that reads gets the whole reply");
    });
}

/// Sends a long reply to each client. The sick server has no limit for a write that waits.
fn sender(handle: &Handle, limit: Option<Duration>) -> Server {
    async fn handler(mut stream: TcpStream, limit: Option<Duration>) -> io::Result<()> {
        stream.set_write_timeout(limit)?;
        stream.write_all(&vec![b'x'; REPLY]).await
    }
    let (listener, address) = listener();
    let line = line!() + 1;
    let server = serve(listener, move |stream, _peer| handler(stream, limit));
    drop(handle.spawn(server));
    Server { address, line }
}

// ---- 5. a lost wake-up ----

/// A handler in a future that forgets its waker waits for a thing that is not known, and is not polled again when its
/// reply is there.
#[test]
fn lost_wake_is_diagnosed() {
    on_one_and_two_workers(|handle| {
        let (server, slot) = asker(handle, Sick);
        let mut client = server.connect();
        client.write_all(b"?").expect("a request");
        let waiting = asked(handle, &server, &slot);
        slot.set(b'!');
        let long = Duration::from_millis(20);
        let dump = seen(handle, "the handler has waited for 20 ms", |dump| {
            let [task] = at(dump, server.line)[..] else { return None };
            matches!(task.state, TaskState::Waiting { since } if since >= long).then(|| dump.clone())
        });
        let task = at(&dump, server.line)[0];
        assert!(waits_for_unknown(&task), "neither a socket nor a timer nor a task will wake it: {task}");
        assert_eq!(task.polls, waiting.polls, "it is not polled again: {task}");
        assert_says(&dump, &format!("  1 task of {} waits for something that is not known here, for ", server.place()));
        client.set_nonblocking(true).expect("non-blocking");
        let error = client.read(&mut [0]).expect_err("the client gets no answer");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    });
}

/// With its waker kept, the handler is woken by the reply, and then is gone.
#[test]
fn kept_waker_is_healthy() {
    on_one_and_two_workers(|handle| {
        let (server, slot) = asker(handle, Cured);
        let mut client = server.connect();
        client.write_all(b"?").expect("a request");
        asked(handle, &server, &slot);
        slot.set(b'!');
        assert_eq!(answer(&mut client), b'!');
        seen(handle, "the handler has ended", |dump| at(dump, server.line).is_empty().then_some(()));
    });
}

/// Waits until the handler waits for its reply.
fn asked(handle: &Handle, server: &Server, slot: &Slot) -> TaskInfo {
    // A handler that was woken to read the request, but has not done so yet, is told from this one by no dump.
    while !slot.0.lock().unwrap().is_asked {
        std::thread::yield_now();
    }
    // A handler that goes on while the dump is made looks the same in one dump, but its polls grow.
    let mut polls = None;
    seen(handle, "the handler waits for the reply", |dump| {
        let task = at(dump, server.line).into_iter().find(waits_for_unknown);
        let before = std::mem::replace(&mut polls, task.map(|task| task.polls));
        task.filter(|task| before == Some(task.polls)).cloned()
    })
}

/// Asks another thread for the reply to each request.
fn asker(handle: &Handle, health: Health) -> (Server, Slot) {
    async fn handler(mut stream: TcpStream, slot: Slot, health: Health) -> io::Result<()> {
        stream.read_exact(&mut [0]).await?;
        let reply = Reply { slot, health }.await;
        stream.write_all(&[reply]).await
    }
    let (listener, address) = listener();
    let slot = Slot::default();
    let asked = slot.clone();
    let line = line!() + 1;
    let server = serve(listener, move |stream, _peer| handler(stream, asked.clone(), health));
    drop(handle.spawn(server));
    (Server { address, line }, slot)
}

/// The place of a reply.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Asked>>);

#[derive(Default)]
struct Asked {
    /// The reply was polled.
    is_asked: bool,
    reply: Option<u8>,
    /// Of the task that waits for the reply.
    waker: Option<Waker>,
}

impl Slot {
    fn set(&self, reply: u8) {
        let mut slot = self.0.lock().unwrap();
        slot.reply = Some(reply);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Reply {
    slot: Slot,
    health: Health,
}

impl Future for Reply {
    type Output = u8;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u8> {
        let mut slot = self.slot.0.lock().unwrap();
        slot.is_asked = true;
        if let Some(reply) = slot.reply.take() {
            return Poll::Ready(reply);
        }
        if self.health == Cured {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

// ---- helpers ----

#[derive(Clone, Copy, PartialEq)]
enum Health {
    Sick,
    Cured,
}

/// A server that runs: its address, and the line of its `serve`, which is that of its handlers too.
struct Server {
    address: SocketAddr,
    line: u32,
}

impl Server {
    #[track_caller]
    fn connect(&self) -> std::net::TcpStream {
        let client = std::net::TcpStream::connect(self.address).expect("connect");
        client.set_read_timeout(Some(PATIENCE)).expect("a bound on the client's reads");
        client.set_write_timeout(Some(PATIENCE)).expect("a bound on the client's writes");
        client
    }

    /// The place of the handlers, as the dump prints it.
    fn place(&self) -> String {
        format!("{}:{}", file!(), self.line)
    }
}

/// Calls `test` on a thread that is no worker, for a runtime of one worker and for one of two.
#[track_caller]
fn on_one_and_two_workers(test: impl Fn(&Handle) + Clone + Send + 'static) {
    for count in [1, 2] {
        let test = test.clone();
        within(move || test(workers(count).handle()));
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind to port 0");
    let address = listener.local_addr().expect("the listener's address");
    (TcpListener::from_std(listener).expect("from_std"), address)
}

/// The tasks of a line of this file.
fn at(dump: &TaskDump, line: u32) -> Vec<&TaskInfo> {
    let is_there = |task: &&TaskInfo| task.location.file() == file!() && task.location.line() == line;
    dump.tasks().iter().filter(is_there).collect()
}

/// Fails unless the printed dump has this text.
#[track_caller]
fn assert_says(dump: &TaskDump, text: &str) {
    let printed = format!("{dump:#}");
    assert!(printed.contains(text), "the dump must say {text:?}:\n{printed}");
}

fn is_reading(task: &TaskInfo) -> bool {
    matches!(task.waits_for[..], [WaitsFor::Reading(_)])
}

fn is_running(task: &TaskInfo) -> bool {
    matches!(task.state, TaskState::Running { .. })
}

fn waits_for_unknown(task: &&TaskInfo) -> bool {
    matches!(task.state, TaskState::Waiting { .. }) && task.waits_for.is_empty()
}

/// Reads one byte of the server's answer.
#[track_caller]
fn answer(client: &mut std::net::TcpStream) -> u8 {
    let mut byte = [0];
    client.read_exact(&mut byte).expect("the server answers");
    byte[0]
}
