//! `net::serve` on several workers: which worker serves a connection, and how the server ends.

mod support;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};

use futures_lite::future;
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{Report, ServeError, ShutdownSignal, TcpStream, serve, serve_local};
use kittiwake::runtime::Runtime;
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::time::Duration;
use kittiwake::{spawn, spawn_local};
use support::*;

const CONNECTIONS: usize = 64;

/// A poll that takes so long that the worker looks at the kernel after it.
const POLL: Duration = Duration::from_millis(2);

// ---- load balance ----

/// Connections that arrive one by one are shared evenly among the workers. A connection stays with the worker on
/// which it begins.
#[test]
fn single_connections_are_shared_evenly() {
    with_servers(0, |server, mut clients| {
        for _ in 0..CONNECTIONS {
            let mut client = server.connect();
            client.ping();
            clients.push(client);
        }
        server.check_shared(&mut clients)
    });
}

/// Connections that arrive in a burst are shared evenly, although all are accepted before the first handler begins.
#[test]
fn bursts_are_shared_evenly() {
    with_servers(CONNECTIONS, |server, mut clients| {
        clients.iter_mut().for_each(Client::ping);
        server.check_shared(&mut clients)
    });
}

/// Connections from many threads that send at once are shared evenly.
#[test]
fn concurrent_connections_are_shared_evenly() {
    with_servers(0, |server, _| {
        let address = server.address;
        let connects: Vec<_> = (0..8)
            .map(|_| {
                thread::spawn(move || {
                    let mut clients: Vec<_> = (0..CONNECTIONS / 8).map(|_| Client::connect(address)).collect();
                    clients.iter_mut().for_each(Client::ping);
                    clients
                })
            })
            .collect();
        let mut clients: Vec<_> = connects.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        server.check_shared(&mut clients)
    });
}

/// The open connections count, not the past ones. A worker whose clients have left gets the next ones.
#[test]
fn new_connections_refill_emptied_worker() {
    with_servers(CONNECTIONS, |server, mut clients| {
        clients.iter_mut().for_each(Client::ping);
        // All clients of one worker leave.
        let left = clients[0].worker;
        clients.retain(|client| client.worker != left);
        let there = clients.len() + usize::from(server.is_task);
        server.runtime.block_on(until(|| server.runtime.handle().metrics().tasks_alive() == there));
        let mut late: Vec<_> = (clients.len()..CONNECTIONS).map(|_| server.connect()).collect();
        late.iter_mut().for_each(Client::ping);
        clients.append(&mut late);
        server.check_shared(&mut clients)
    });
}

/// A blocked worker does not keep new clients waiting.
#[test]
fn blocked_worker_delays_no_client() {
    for count in [2, 3] {
        within(move || {
            let runtime = workers(count);
            // The server runs in a `block_on` call, so the blocked worker is not the one that accepts.
            let listening = runtime.block_on(listener());
            let (address, shutdown) = (listening.1, ShutdownSignal::new());
            let (open, closed) = mpsc::channel::<()>();
            let closed = Arc::new(Mutex::new(Some(closed)));
            let caller = thread::spawn({
                let tie = shutdown.clone();
                move || {
                    let handler = |mut stream: TcpStream, _| {
                        let closed = closed.clone();
                        async move {
                            let mut word = [0];
                            stream.read_exact(&mut word).await?;
                            if word == *b"!" {
                                let closed = closed.lock().unwrap().take().expect("one client blocks its worker");
                                let _ = closed.recv();
                            }
                            stream.write_all(&word).await
                        }
                    };
                    let report = runtime.block_on(serve(listening.0, handler).with_shutdown(&tie).into_future());
                    (runtime, report)
                }
            });
            let mut bad = std::net::TcpStream::connect(address).expect("connect");
            bad.write_all(b"!").expect("write");
            for _ in 0..20 {
                let mut client = std::net::TcpStream::connect(address).expect("connect");
                client.set_read_timeout(Some(PATIENCE)).expect("a bound");
                client.write_all(b"?").expect("write");
                client.read_exact(&mut [0]).expect("the client is served although a worker is blocked");
            }
            drop(open);
            bad.read_exact(&mut [0]).expect("the blocked client is served in the end");
            shutdown.trigger();
            let (runtime, report) = caller.join().unwrap();
            assert_eq!(report.expect("the task ends without an error").served, 21);
            drop(runtime);
        });
    }
}

/// A client is answered although all workers always have a task that computes for 2 ms and yields.
#[test]
fn long_polls_delay_no_new_client() {
    /// The polls of those tasks while a client waits. It takes some. Only a handler that never begins reaches this limit.
    const MOST: usize = 3000;
    within(|| {
        for _ in 0..4 {
            let runtime = Arc::new(workers(2));
            let server = BlockOnServer::start(&runtime, |mut stream: TcpStream| async move {
                let mut byte = [0];
                while stream.read(&mut byte).await? > 0 {
                    stream.write_all(&byte).await?;
                }
                Ok(())
            });
            // The polls up to now, and those before the last client came. All ends if they are too many.
            let polls: [Arc<AtomicUsize>; 2] = Default::default();
            let busy = on_each_worker(runtime.handle(), 2, {
                let polls = polls.clone();
                move |_| {
                    let [all, before] = polls.clone();
                    spawn(async move {
                        while all.fetch_add(1, SeqCst).saturating_sub(before.load(SeqCst)) < MOST {
                            spin(POLL);
                            yield_now().await;
                        }
                    })
                }
            });
            let [all, before] = polls;
            let mut clients = Vec::new();
            for number in 0..10 {
                before.store(all.load(SeqCst), SeqCst);
                let mut client = Client::connect(server.address).stream;
                client.write_all(b"?").expect("write");
                client.read_exact(&mut [0]).expect("the client is served");
                let waited = all.load(SeqCst) - before.load(SeqCst);
                assert!(waited < MOST, "client {number} has waited for {waited} polls of other tasks");
                clients.push(client);
            }
            busy.iter().for_each(JoinHandle::abort);
            drop(clients);
            server.end();
        }
    });
}

/// A handler goes on although new clients always come to its worker, and the first poll of each handler takes 2 ms.
#[test]
fn new_clients_delay_no_handler() {
    const CLIENTS: usize = 60;
    /// The clients that wait for their handler at a time.
    const AHEAD: usize = 15;
    for has_local in [false, true] {
        within(move || {
            let runtime = Arc::new(workers(2));
            let [is_flood, begun, most]: [Arc<AtomicUsize>; 3] = Default::default();
            let server = BlockOnServer::start(&runtime, {
                let (is_flood, begun, most) = (is_flood.clone(), begun.clone(), most.clone());
                move |mut stream: TcpStream| {
                    let (is_flood, begun, most) = (is_flood.clone(), begun.clone(), most.clone());
                    async move {
                        if is_flood.load(SeqCst) == 0 {
                            return answer_with_worker(stream).await;
                        }
                        let before = begun.fetch_add(1, SeqCst);
                        spin(POLL);
                        yield_now().await;
                        most.fetch_max(begun.load(SeqCst) - before, SeqCst);
                        stream.write_all(b"x").await
                    }
                }
            });
            // All new handlers begin on one worker: the other one has more connections. It is stuck, so that it takes none.
            let (begin, has_begun) = mpsc::channel();
            let (open, closed) = async_channel::bounded::<()>(1);
            let names = on_each_worker(runtime.handle(), 2, move |place| {
                let (begin, closed) = (begin.clone(), closed.clone());
                if place == 0 {
                    drop(spawn_local(async move {
                        let _ = closed.recv().await;
                        begin.send(()).expect("the test waits");
                        let _ = closed.recv_blocking();
                    }));
                } else if has_local {
                    // Its batch comes before those of the handlers.
                    drop(spawn_local(async {}));
                }
                worker_name()
            });
            let mut others: Vec<_> = (0..2 * CLIENTS).map(|_| Client::connect(server.address)).collect();
            others.iter_mut().for_each(Client::ping);
            others.retain(|client| client.worker == names[0]);
            let metrics = || runtime.handle().metrics();
            while metrics().tasks_alive() > others.len() + 1 {
                thread::yield_now();
            }
            is_flood.store(1, SeqCst);
            open.try_send(()).expect("the task waits");
            has_begun.recv().expect("the worker gets stuck");
            let mut clients = Vec::new();
            for number in 0..CLIENTS {
                // The first one comes alone.
                let ahead = if number == 1 { 0 } else { AHEAD };
                while number > begun.load(SeqCst) + ahead {
                    thread::yield_now();
                }
                clients.push(Client::connect(server.address).stream);
            }
            clients.into_iter().for_each(|client| assert_eq!(read_all(client), b"x"));
            let most = most.load(SeqCst);
            assert!(most <= AHEAD, "{most} handlers have begun while one of them was ready to go on");
            drop((open, others));
            server.end();
        });
    }
}

/// The handlers of `serve_local` run on the server's own worker, because they are not `Send`.
#[test]
fn local_handlers_stay_with_their_server() {
    within(|| {
        let runtime = workers(2);
        let (listener, address) = runtime.block_on(listener());
        let shutdown = ShutdownSignal::new();
        let threads: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
        let server = runtime.handle().spawn({
            let (tie, threads) = (shutdown.clone(), threads.clone());
            async move {
                // The server's future is not `Send` either.
                let server = spawn_local(async move {
                    let own_thread = here();
                    let handler = |mut stream: TcpStream, _| {
                        let (threads, own_thread) = (threads.clone(), std::rc::Rc::new(own_thread));
                        async move {
                            stream.read_exact(&mut [0]).await?;
                            assert_eq!(here(), *own_thread);
                            threads.lock().unwrap().push(here());
                            stream.write_all(b"x").await
                        }
                    };
                    serve_local(listener, handler).with_shutdown(&tie).await
                });
                server.await.expect("a server")
            }
        });
        let mut clients: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
        for client in &mut clients {
            client.set_read_timeout(Some(PATIENCE)).expect("a bound");
            client.write_all(b"x").expect("write");
            client.read_exact(&mut [0]).expect("the client is served");
        }
        shutdown.trigger();
        let report = future::block_on(server).expect("a task").expect("the task ends without an error");
        assert_eq!((report.served, report.panicked), (20, 0));
        let threads = threads.lock().unwrap();
        assert!(threads.len() == 20 && threads.iter().all(|thread| *thread == threads[0]));
    });
}

// ---- limits and counts ----

/// `max_connections` limits the server, and not each worker.
#[test]
fn max_connections_counts_all_workers() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let (there, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let server = start(&runtime, |serve| serve.max_connections(5), {
                let (there, most) = (there.clone(), most.clone());
                move |mut stream: TcpStream| {
                    let (there, most) = (there.clone(), most.clone());
                    async move {
                        most.fetch_max(there.fetch_add(1, SeqCst) + 1, SeqCst);
                        let result = async {
                            stream.read_exact(&mut [0]).await?;
                            stream.write_all(b"y").await
                        };
                        let result = result.await;
                        there.fetch_sub(1, SeqCst);
                        result
                    }
                }
            });
            let mut clients: Vec<_> = (0..60).map(|_| server.connect()).collect();
            runtime.block_on(until(|| there.load(SeqCst) == 5));
            for client in &mut clients {
                client.write_all(b"x").expect("write");
            }
            clients
                .into_iter()
                .for_each(|client| assert_eq!(read_all(client), b"y", "every client must be served in the end"));
            assert_eq!(most.load(SeqCst), 5, "exactly five connections must be served at a time");
            assert_eq!(server.end().served, 60);
        }
    });
}

/// Each connection is counted once, although handlers end on all workers at the same time.
#[test]
fn every_connection_is_counted_once() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let reported = Arc::new(AtomicUsize::new(0));
            let recorded = reported.clone();
            let on_error = move |serve: TestServe| {
                serve.on_error(move |_| {
                    recorded.fetch_add(1, SeqCst);
                })
            };
            let server = start(&runtime, on_error, |mut stream: TcpStream| async move {
                let mut byte = [0];
                stream.read_exact(&mut byte).await?;
                match byte[0] {
                    b's' => Ok(()),
                    b'f' => Err(io::Error::from(ErrorKind::Other)),
                    _ => std::panic::resume_unwind(Box::new("on purpose")),
                }
            });
            let address = server.address;
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    thread::spawn(move || {
                        for what in b"sssffp".repeat(20) {
                            let mut client = std::net::TcpStream::connect(address).expect("connect");
                            client.set_read_timeout(Some(PATIENCE)).expect("a bound");
                            client.write_all(&[what]).expect("write");
                            assert_eq!(read_all(client), b"", "every connection must end");
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let report = server.end();
            assert_eq!((report.accepted, report.served, report.failed, report.panicked), (480, 240, 160, 80));
            assert_eq!((report.refused, report.open.len()), (0, 0));
            assert_eq!(reported.load(SeqCst), 240, "each failure must be reported once");
            // A handler's task ends only after its connection is counted.
            runtime.block_on(until(|| runtime.handle().metrics().tasks_alive() == 0));
        }
    });
}

// ---- shutdown ----

/// The shutdown reaches idle handlers on all workers.
#[test]
fn shutdown_reaches_handlers_everywhere() {
    within(|| {
        for count in [2, 3, 4] {
            let runtime = workers(count);
            let server = start_with_shutdown(&runtime, |serve| serve, keep_alive);
            let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
            for client in &mut clients {
                client.write_all(b"x").expect("write");
                client.read_exact(&mut [0]).expect("the client is served");
            }
            let report = server.end();
            assert_eq!((report.served, report.open.len()), (30, 0), "idle connections must end at once");
            clients.into_iter().for_each(|client| assert_eq!(read_all(client), b""));
        }
    });
}

/// A request that was sent before the shutdown is answered, although neither the worker nor the handler has seen it
/// yet.
#[test]
fn requests_before_shutdown_are_answered() {
    within(|| {
        for round in 0..30 {
            let runtime = workers(2 + round % 3);
            let server = start_with_shutdown(&runtime, |serve| serve, keep_alive);
            let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
            for client in &mut clients {
                client.write_all(b"x").expect("write");
                client.read_exact(&mut [0]).expect("the client is served");
            }
            clients.iter_mut().for_each(|client| client.write_all(b"z").expect("write"));
            let report = server.end();
            assert_eq!((report.served, report.open.len()), (30, 0));
            clients.into_iter().for_each(|client| {
                assert_eq!(read_all(client), b"z", "a request that was sent before the shutdown must be answered");
            });
        }
    });
}

/// At the end of `drain_timeout` the server cuts off the connections on all workers, and names them in the report.
#[test]
fn drain_timeout_cuts_every_worker() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let drops = Arc::new(AtomicUsize::new(0));
            let server = start(&runtime, |serve| serve.drain_timeout(Duration::from_millis(5)), {
                let drops = drops.clone();
                move |mut stream: TcpStream| {
                    let counted = Counted(drops.clone());
                    async move {
                        stream.read_exact(&mut [0]).await?;
                        stream.write_all(b"y").await?;
                        hold((stream, counted)).await;
                        Ok(())
                    }
                }
            });
            let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
            for client in &mut clients {
                client.write_all(b"x").expect("write");
                client.read_exact(&mut [0]).expect("the client is served");
            }
            let mut peers: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
            let report = server.end();
            let mut open: Vec<_> = report.open.iter().map(|open| open.peer).collect();
            peers.sort_unstable();
            open.sort_unstable();
            assert_eq!(open, peers, "the report must name each open connection once");
            clients
                .into_iter()
                .for_each(|client| assert_eq!(read_all(client), b"", "the server must close the connection"));
            // The handlers end only after the report.
            runtime.block_on(until(|| runtime.handle().metrics().tasks_alive() == 0));
            assert_eq!(drops.load(SeqCst), 20, "each handler must be dropped once");
        }
    });
}

/// An aborted server ends its handlers on all workers.
#[test]
fn aborted_server_ends_all_handlers() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            let server = start(
                &runtime,
                |serve| serve,
                |mut stream: TcpStream| async move {
                    let mut byte = [0];
                    loop {
                        stream.read_exact(&mut byte).await?;
                        stream.write_all(&byte).await?;
                    }
                },
            );
            let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
            for client in &mut clients {
                client.write_all(b"x").expect("write");
                client.read_exact(&mut [0]).expect("the client is served");
            }
            let address = server.address;
            server.task.abort();
            future::block_on(server.task).expect_err("the task was aborted");
            clients.into_iter().for_each(|client| assert_eq!(read_all(client), b"", "the connection must end"));
            runtime.block_on(until(|| runtime.handle().metrics().tasks_alive() == 0));
            assert_eq!(runtime.handle().metrics().sources_registered(), 0);
            std::net::TcpStream::connect(address).expect_err("the listener is closed");
        }
    });
}

/// A server that outlives the runtime of its handlers, in a `Handle::block_on`, ends with an error. It would otherwise go
/// on to accept clients and close each of them.
#[test]
fn server_without_runtime_ends_with_error() {
    within(|| {
        let runtime = workers(2);
        let (handle, (tell, address)) = (runtime.handle().clone(), mpsc::channel());
        let server = thread::spawn(move || {
            handle.block_on(async {
                let listener = kittiwake::net::TcpListener::bind("127.0.0.1:0").await.expect("bind to port 0");
                tell.send(listener.local_addr().expect("its address")).unwrap();
                serve(listener, |stream, _| async move { drop(stream) }).await
            })
        });
        let address = address.recv().expect("the server listens");
        assert_eq!(read_all(std::net::TcpStream::connect(address).unwrap()), b"", "the client is served");
        drop(runtime);
        let client = std::net::TcpStream::connect(address).expect("the listener is open");
        let ended = server.join().unwrap().expect_err("no runtime is left for handlers");
        assert!(ended.error.to_string().contains("the runtime of the handlers has ended"), "{ended}");
        assert_eq!((ended.report.served, ended.report.failed), (1, 1));
        drop(client);
    });
}

// ---- helpers ----

type Handler = Box<dyn Fn(TcpStream, SocketAddr) -> Handling + Send>;
type Handling = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;
type TestServe = kittiwake::net::Serve<kittiwake::net::TcpListener, Handler, Handling>;

struct Server {
    address: SocketAddr,
    shutdown: ShutdownSignal,
    task: JoinHandle<Result<Report, ServeError>>,
}

fn start<F>(
    runtime: &Runtime,
    build: impl FnOnce(TestServe) -> TestServe,
    handler: impl Fn(TcpStream) -> F + Send + 'static,
) -> Server
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    start_with_shutdown(runtime, build, move |stream, _| handler(stream))
}

fn start_with_shutdown<F>(
    runtime: &Runtime,
    build: impl FnOnce(TestServe) -> TestServe,
    handler: impl Fn(TcpStream, ShutdownSignal) -> F + Send + 'static,
) -> Server
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    // A test may try to connect when the server has ended.
    let (listener, address) = runtime.block_on(own_listener());
    let shutdown = ShutdownSignal::new();
    let handler: Handler = Box::new({
        let shutdown = shutdown.clone();
        move |stream, _| Box::pin(handler(stream, shutdown.clone()))
    });
    let serving = build(serve(listener, handler).with_shutdown(&shutdown)).into_future();
    Server { address, shutdown, task: runtime.handle().spawn(serving) }
}

/// Echoes bytes until the peer or the server ends.
async fn keep_alive(mut stream: TcpStream, mut shutdown: ShutdownSignal) -> io::Result<()> {
    let mut byte = [0];
    while let Some(read) = shutdown.run_until_triggered(stream.read(&mut byte)).await {
        match read? {
            0 => break,
            _ => stream.write_all(&byte).await?,
        }
    }
    Ok(())
}

impl Server {
    #[track_caller]
    fn connect(&self) -> std::net::TcpStream {
        Client::connect(self.address).stream
    }

    #[track_caller]
    fn end(self) -> Report {
        self.shutdown.trigger();
        future::block_on(self.task).expect("the server does not panic").expect("the task ends without an error")
    }
}

/// A server that a `block_on` call beside the workers runs. Its handlers run on the workers.
struct BlockOnServer {
    address: SocketAddr,
    shutdown: ShutdownSignal,
    thread: thread::JoinHandle<()>,
}

impl BlockOnServer {
    fn start<F>(runtime: &Arc<Runtime>, handler: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let (listener, address) = runtime.block_on(listener());
        let (runtime, shutdown) = (runtime.clone(), ShutdownSignal::new());
        let tie = shutdown.clone();
        let thread = thread::spawn(move || {
            let serving = serve(listener, move |stream, _| handler(stream)).with_shutdown(&tie);
            runtime.block_on(serving.into_future()).expect("the server ends without an error");
        });
        Self { address, shutdown, thread }
    }

    #[track_caller]
    fn end(self) {
        self.shutdown.trigger();
        self.thread.join().expect("the server does not panic");
    }
}

/// A server that answers each byte with the number of the worker that serves it.
struct SharedServer {
    runtime: Arc<Runtime>,
    count: usize,
    address: SocketAddr,
    /// True if the server is a task of the runtime. Its listener is then a registered socket.
    is_task: bool,
}

impl SharedServer {
    #[track_caller]
    fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Checks that each worker has between 80 and 120 per cent of an equal share of the connections.
    #[track_caller]
    fn check_shared(&self, clients: &mut [Client]) -> Result<(), String> {
        assert_eq!(clients.len(), CONNECTIONS);
        let (least, most) = ((CONNECTIONS * 8).div_ceil(10 * self.count), CONNECTIONS * 12 / (10 * self.count));
        // The clients send one after another, so that no worker is busier than the others.
        clients.iter_mut().for_each(Client::ping);
        let mut served = HashMap::new();
        for client in clients {
            *served.entry(client.worker).or_insert(0) += 1;
        }
        let is_fair = served.len() == self.count && served.values().all(|count| (least..=most).contains(count));
        if !is_fair {
            return Err(format!("each of {} workers must serve {least} to {most}: {served:?}", self.count));
        }
        // The server itself may be a task. Its listener waits with a worker in any case.
        let figures = (CONNECTIONS + usize::from(self.is_task), CONNECTIONS + 1);
        let mut metrics = self.runtime.handle().metrics();
        // A handler that has answered may wait for its next byte, and so register its socket, a moment later.
        while (metrics.tasks_alive(), metrics.sources_registered()) != figures {
            thread::yield_now();
            metrics = self.runtime.handle().metrics();
        }
        for worker in metrics.workers() {
            for count in [worker.tasks_alive, worker.sources_registered] {
                if !(least..=most + 1).contains(&count) {
                    return Err(format!("each worker must have {least} to {most}: {metrics:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Runs `test` with a server in a task of a worker and in a `block_on` call beside the workers, on two workers and
/// on four, until its connections are shared evenly. `early` of its clients connect before the server begins.
///
/// A worker that the machine holds up for as long as a stuck one gets fewer connections, so an attempt may fail.
#[track_caller]
fn with_servers(
    early: usize,
    test: impl Fn(&SharedServer, Vec<Client>) -> Result<(), String> + Clone + Send + 'static,
) {
    const ATTEMPTS: usize = 10;
    within(move || {
        for (count, is_task) in [(2, true), (2, false), (4, true), (4, false)] {
            let results = (0..ATTEMPTS).map(|_| with_server(count, is_task, early, &test));
            let unfair: Vec<_> = results.map_while(Result::err).collect();
            assert!(unfair.len() < ATTEMPTS, "no attempt was fair: {unfair:#?}");
        }
    });
}

fn with_server(
    count: usize,
    is_task: bool,
    early: usize,
    test: impl Fn(&SharedServer, Vec<Client>) -> Result<(), String>,
) -> Result<(), String> {
    let runtime = Arc::new(workers(count));
    let (listener, address) = runtime.block_on(listener());
    let clients = (0..early).map(|_| Client::connect(address)).collect();
    let shutdown = ShutdownSignal::new();
    let serving = serve(listener, |stream, _| answer_with_worker(stream)).with_shutdown(&shutdown).into_future();
    let server = if is_task {
        let task = runtime.handle().spawn(serving);
        thread::spawn(|| future::block_on(task).expect("the server does not panic"))
    } else {
        let runtime = runtime.clone();
        thread::spawn(move || runtime.block_on(serving))
    };
    let shared = SharedServer { runtime, count, address, is_task };
    let result = test(&shared, clients);
    shutdown.trigger();
    server.join().unwrap().expect("the task ends without an error");
    result
}

async fn answer_with_worker(mut stream: TcpStream) -> io::Result<()> {
    while stream.read(&mut [0]).await? > 0 {
        stream.write_all(&[worker_name()]).await?;
    }
    Ok(())
}

/// The last byte of the name of this worker's thread.
fn worker_name() -> u8 {
    *thread::current().name().and_then(|name| name.as_bytes().last()).expect("a worker's thread has a name")
}

struct Client {
    stream: std::net::TcpStream,
    /// The worker that answered last.
    worker: u8,
}

impl Client {
    #[track_caller]
    fn connect(address: SocketAddr) -> Self {
        let stream = std::net::TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a bound on the client's reads");
        Self { stream, worker: 0 }
    }

    #[track_caller]
    fn ping(&mut self) {
        self.stream.write_all(b"?").expect("write");
        let mut worker = [0];
        self.stream.read_exact(&mut worker).expect("the client is served");
        [self.worker] = worker;
    }
}
