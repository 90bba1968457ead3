//! A worker that is stuck in one poll of a task delays only its local tasks.

use std::io::{Read, Write};
use std::sync::mpsc;

use crate::support::*;
use crate::{MS, SEVERAL};
use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{TcpListener, TcpStream, serve};
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::JoinHandle;
use kittiwake::time::{Duration, sleep};

/// One handler blocks its worker. All other connections are answered meanwhile, those that wait at that worker's
/// reactor too. All workers were asleep before: the request that blocks its handler is the only event.
#[test]
fn stuck_worker_delays_no_socket() {
    const CONNECTIONS: usize = 16;
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            let listener = future::block_on(TcpListener::bind("127.0.0.1:0")).expect("binding does not wait");
            let address = listener.local_addr().expect("local_addr");
            let (open, closed) = async_channel::unbounded::<()>();
            let handler = move |mut stream: TcpStream, _| {
                let closed = closed.clone();
                async move {
                    let mut word = [0];
                    while stream.read_exact(&mut word).await.is_ok() {
                        if word == *b"!" {
                            let _ = closed.recv_blocking();
                        }
                        stream.write_all(&word).await?;
                    }
                    std::io::Result::Ok(())
                }
            };
            drop(runtime.handle().spawn(serve(listener, handler).into_future()));
            let mut clients: Vec<_> =
                (0..CONNECTIONS).map(|_| std::net::TcpStream::connect(address).expect("the server listens")).collect();
            for client in &mut clients {
                client.write_all(b"?").expect("write");
                client.read_exact(&mut [0]).expect("the server answers");
            }
            quiet_metrics(&runtime);
            clients[0].write_all(b"!").expect("write");
            for round in 0..3 {
                for client in &mut clients[1..] {
                    client.write_all(b"?").expect("write");
                    client.read_exact(&mut [0]).unwrap_or_else(|error| panic!("round {round}: {error}"));
                }
            }
            drop(open);
            clients[0].read_exact(&mut [0]).expect("the stuck handler goes on");
        });
    }
}

/// Workers that have nothing to do beside a stuck one sleep without a limit. Still they answer its sockets, and run
/// what is queued there.
#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn workers_sleep_beside_stuck_one() {
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            let handle = runtime.handle().clone();
            let mut stuck = StuckWorker::new(&runtime);
            // Each step finds the other workers asleep. Workers that look now and then would never be quiet.
            for word in [b"1", b"2"] {
                wait_until_asleep(&runtime);
                stuck.ask(word);
            }
            wait_until_asleep(&runtime);
            future::block_on(handle.spawn(async {})).expect("another worker runs it");
            wait_until_asleep(&runtime);
            stuck.end();
        });
    }
}

/// The same if the workers are stuck in turn. The end of each stuck task wakes a local task of the next worker, which is
/// then stuck. So an idle worker has to watch one that has watched it before. kqueue of macOS refuses that.
#[cfg(all(any(target_os = "android", target_os = "linux"), not(mio_unsupported_force_poll_poll)))]
#[test]
fn workers_sleep_while_stuck_in_turn() {
    const ROUNDS: usize = 2;
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            let (pass, passed): (Vec<_>, Vec<_>) = (0..count).map(|_| async_channel::unbounded()).unzip();
            let (begin, begun) = mpsc::channel();
            let (go_on, goes_on) = async_channel::unbounded();
            let first = pass[0].clone();
            let echoes = on_each_worker(runtime.handle(), count, move |place| {
                let (passed, next) = (passed[place].clone(), pass[(place + 1) % count].clone());
                let (begin, goes_on) = (begin.clone(), goes_on.clone());
                drop(kittiwake::spawn_local(async move {
                    for _ in 0..ROUNDS {
                        passed.recv().await.expect("the task before this one sends");
                        begin.send(place).expect("the test waits");
                        goes_on.recv_blocking().expect("the test says when");
                        let _ = next.try_send(());
                    }
                }));
                let (stream, peer) = pair_with_std();
                (spawn_echo(stream), peer)
            });
            let (echoes, mut peers): (Vec<_>, Vec<_>) = echoes.into_iter().unzip();
            first.try_send(()).expect("the first task waits");
            for _ in 0..ROUNDS * count {
                let stuck = begun.recv().expect("the next task begins");
                wait_until_asleep(&runtime);
                peers[stuck].write_all(b"?").expect("write");
                peers[stuck].read_exact(&mut [0]).expect("another worker answers");
                wait_until_asleep(&runtime);
                go_on.try_send(()).expect("the task waits");
            }
            drop(peers);
            echoes.into_iter().for_each(|echo| future::block_on(echo).expect("the echo ends"));
        });
    }
}

/// The same for a timer that the stuck task arms while they sleep: a foreign executor in it waits for that timer.
#[cfg(not(mio_unsupported_force_poll_poll))]
#[test]
fn timer_of_stuck_task_wakes_sleeping_worker() {
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            let (go_on, goes_on) = mpsc::channel();
            let stuck = runtime.handle().spawn(async move {
                goes_on.recv().expect("the test says when");
                future::block_on(sleep(10 * MS));
            });
            wait_until_asleep(&runtime);
            go_on.send(()).expect("the task waits");
            future::block_on(stuck).expect("the stuck task ends");
        });
    }
}

/// A worker that spins for as long as it is idle answers the sockets of a stuck one too.
#[test]
fn spinning_worker_delays_no_socket() {
    within(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).spin(Duration::MAX).build().expect("two workers");
        let mut stuck = StuckWorker::new(&runtime);
        for _ in 0..3 {
            // By now the other worker has found this one stuck.
            std::thread::park_timeout(10 * MS);
            stuck.ask(b"?");
        }
        stuck.end();
    });
}

/// A worker that is stuck in a task, and a connection of another task that waits at its reactor.
struct StuckWorker {
    task: JoinHandle<JoinHandle<()>>,
    peer: std::net::TcpStream,
    go_on: mpsc::Sender<()>,
}

impl StuckWorker {
    fn new(runtime: &Runtime) -> Self {
        let (stream, peer) = pair_with_std();
        let (begin, begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let task = runtime.handle().spawn(async move {
            let echo = spawn_echo(stream);
            begin.send(()).expect("the test waits");
            goes_on.recv().expect("the test says when");
            echo
        });
        begun.recv().expect("the task runs");
        Self { task, peer, go_on }
    }

    /// Asks over the connection. Another worker has to answer.
    fn ask(&mut self, word: &[u8; 1]) {
        self.peer.write_all(word).expect("write");
        self.peer.read_exact(&mut [0]).expect("another worker answers");
    }

    /// Lets the task go on, and waits for both tasks.
    fn end(self) {
        self.go_on.send(()).expect("the task waits");
        drop(self.peer);
        future::block_on(future::block_on(self.task).expect("the stuck task ends")).expect("the echo ends");
    }
}

/// A task that echoes. Its connection waits at the reactor of the worker that calls this.
fn spawn_echo(mut stream: TcpStream) -> JoinHandle<()> {
    assert!(future::block_on(poll_once(stream.read(&mut [0]))).is_none(), "there is nothing to read yet");
    kittiwake::spawn(async move {
        let mut word = [0];
        while stream.read_exact(&mut word).await.is_ok() {
            stream.write_all(&word).await.expect("write");
        }
    })
}

/// Waits until the workers beside a stuck one have slept for longer than they do while they still look now and then.
#[cfg(not(mio_unsupported_force_poll_poll))]
fn wait_until_asleep(runtime: &Runtime) {
    let mut last = quiet_metrics(runtime);
    loop {
        std::thread::park_timeout(100 * MS);
        let now = quiet_metrics(runtime);
        if now == last {
            return;
        }
        last = now;
    }
}

/// A timer that was armed at a worker which is stuck fires.
#[test]
fn stuck_worker_delays_no_timer() {
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            quiet_metrics(&runtime);
            let (give, given) = mpsc::channel();
            let (open, closed) = mpsc::channel::<()>();
            let stuck = runtime.handle().spawn(async move {
                let mut armed = sleep(10 * MS);
                assert!(poll_once(&mut armed).await.is_none(), "the deadline has not passed");
                give.send(armed).expect("the test waits");
                let _ = closed.recv();
            });
            future::block_on(given.recv().expect("the task has armed its timer"));
            drop(open);
            future::block_on(stuck).expect("the stuck task goes on");
        });
    }
}

/// A task may block its worker in a foreign executor until a timer and a socket of the runtime are ready.
#[test]
fn foreign_block_on_in_task_returns() {
    for count in SEVERAL {
        within(move || {
            let runtime = workers(count);
            let (mut stream, mut peer) = pair_with_std();
            let task = runtime.handle().spawn(async move {
                future::block_on(async {
                    sleep(10 * MS).await;
                    assert!(poll_once(stream.read(&mut [0])).await.is_none(), "there is nothing to read yet");
                    sleep(MS).await;
                    stream.write_all(b"?").await.expect("write");
                    stream.read_exact(&mut [0]).await
                })
            });
            peer.read_exact(&mut [0]).expect("the task asks");
            peer.write_all(b"!").expect("write");
            future::block_on(task).expect("the task ends").expect("read");
        });
    }
}
