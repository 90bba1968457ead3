//! An idle runtime uses no CPU: its thread sleeps in the kernel until an event arrives.
//!
//! A watcher on another thread reads /proc. It pauses between two readings, which orders no events: the runtime
//! cannot continue until the watcher has seen enough and sends the byte.

#![cfg(target_os = "linux")]

mod support;

use std::future::{Future, pending, poll_fn};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use kittiwake::net::TcpStream;
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::yield_now;
use kittiwake::{spawn, spawn_local};
use support::{PATIENCE, bounded, listener, on_each_worker, one_worker, pair_with_std, within, within_once, workers};

/// The number of readings in a row between which an idle thread must not have run.
const LOOKS: usize = 8;

/// The number of attempts to get that many readings. The first few may be taken before the thread idles.
const ATTEMPTS: usize = 100;

/// A runtime that waits for one byte sleeps.
#[test]
fn waiting_runtime_sleeps() {
    sleeps_until_a_byte_comes(one_worker(), || async {});
}

/// A runtime whose tasks all wait sleeps, whatever they wait for.
#[test]
fn waiting_tasks_let_runtime_sleep() {
    sleeps_until_a_byte_comes(one_worker(), || async {
        let (listener, _) = listener().await;
        drop(spawn(async move { listener.accept().await.map(drop) }));
        for _ in 0..50 {
            let (stream, peer) = pair_with_std();
            drop(spawn(async move {
                let _peer = peer;
                stream.readable().await
            }));
            let (_keep, receive) = async_channel::bounded::<()>(1);
            drop(spawn(async move {
                let _keep = _keep;
                receive.recv().await
            }));
            drop(spawn(spawn_local(pending::<()>())));
        }
        yield_now().await;
    });
}

/// A runtime with unhandled events sleeps, because each event is reported once: unread bytes, a half-closed peer
/// beside a waiting writer, an unread reset, and a connection in the queue.
#[test]
fn unhandled_events_let_runtime_sleep() {
    sleeps_until_a_byte_comes(one_worker(), || async {
        let (unread, mut unread_peer) = pair_with_std();
        wait_once(unread.readable()).await;
        unread_peer.write_all(b"unread bytes").unwrap();

        let (blocked, half_closed) = pair_with_std();
        fill(&blocked).await;
        half_closed.shutdown(std::net::Shutdown::Write).unwrap();
        let write = spawn(poll_fn({
            let mut blocked = blocked;
            move |cx| Pin::new(&mut blocked).poll_write(cx, b"more").map(drop)
        }));

        let (reset, reset_peer) = pair_with_std();
        wait_once(reset.readable()).await;
        support::reset(reset_peer);

        let (listener, address) = listener().await;
        wait_once(listener.accept()).await;
        let connection = std::net::TcpStream::connect(address).unwrap();

        // These values live as long as the runtime.
        drop(spawn(async move {
            let _kept = (unread, unread_peer, half_closed, write, reset, listener, connection);
            pending::<()>().await;
        }));
        yield_now().await;
    });
}

/// A runtime that spins before it blocks sleeps in the end.
#[test]
fn spinning_runtime_sleeps_at_last() {
    let spins = Builder::new_current_thread().spin(Duration::from_millis(1)).build().unwrap();
    sleeps_until_a_byte_comes(spins, || async {});
}

/// Each worker of a waiting runtime sleeps, and does not wake up to watch the others.
#[test]
fn waiting_workers_sleep() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            // First all workers work, and wake each other.
            drop(runtime.handle().spawn(async { (0..1000).for_each(|_| drop(spawn(yield_now()))) }));
            let threads = on_each_worker(runtime.handle(), count, |_| {
                let (stream, peer) = pair_with_std();
                drop(spawn(async move {
                    let _peer = peer;
                    stream.readable().await
                }));
                drop(spawn(kittiwake::time::sleep(Duration::from_secs(3600))));
                drop(spawn_local(pending::<()>()));
                std::fs::read_link("/proc/thread-self").expect("this thread's directory in /proc")
            });
            for thread in threads {
                if let Err(last) = sleeps(&Path::new("/proc").join(thread)) {
                    panic!("an idle worker of {count} does not sleep: {last}");
                }
            }
        }
    });
}

/// While one worker answers a hundred requests a second, the others sleep. A timer of the kernel would wake one of
/// them to look after a worker that is stuck. poll(2) has no such timer.
#[test]
fn lone_requests_wake_one_worker() {
    if cfg!(any(mio_unsupported_force_poll_poll, kittiwake_portable)) {
        return;
    }
    within_once(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).spin(Duration::ZERO).build().unwrap();
        let (mut stream, mut peer) = pair_with_std();
        let echo = runtime.handle().spawn(async move {
            let mut byte = [0];
            while stream.read(&mut byte).await? > 0 {
                stream.write_all(&byte).await?;
            }
            std::io::Result::Ok(())
        });
        let turns = || runtime.handle().metrics().workers().iter().map(|worker| worker.turns).collect::<Vec<_>>();
        // A worker may need more than a millisecond for a request, if the machine is busy. That wakes the other one.
        let slept = (0..200).any(|_| {
            let before = turns();
            for _ in 0..10 {
                // The requests are further apart than a worker watches busy ones.
                std::thread::sleep(Duration::from_millis(10));
                peer.write_all(b"x").expect("a request");
                peer.read_exact(&mut [0]).expect("an answer");
            }
            turns().iter().zip(&before).any(|(turns, before)| turns == before)
        });
        assert!(slept, "each request wakes the other worker");
        drop(peer);
        runtime.block_on(echo).unwrap().expect("the echo ends");
    });
}

/// A runtime sleeps in its second call too.
#[test]
fn runtime_sleeps_in_second_call() {
    let runtime = one_worker();
    let runtime = bounded(move || {
        runtime.block_on(async {
            drop(spawn(pending::<()>()));
            yield_now().await;
        });
        runtime
    });
    sleeps_until_a_byte_comes(runtime, || async {});
}

/// Runs `before` in `runtime` and then waits for a byte, which arrives once the watcher has seen the thread sleep. The
/// runtime is a current-thread one: its only thread has the sockets and the tasks.
#[track_caller]
fn sleeps_until_a_byte_comes<F>(runtime: Runtime, before: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let (stream, mut peer) = pair_with_std();
    let (notify, notified) = mpsc::channel();
    let watcher = std::thread::spawn(move || {
        let thread: PathBuf = notified.recv_timeout(PATIENCE).expect("the runtime's thread");
        let slept = sleeps(&thread);
        peer.write_all(b"x").expect("the last byte is sent");
        slept
    });
    let read = within_once(move || {
        runtime.block_on(async move {
            before().await;
            let thread = std::fs::read_link("/proc/thread-self").expect("this thread's directory in /proc");
            notify.send(Path::new("/proc").join(thread)).unwrap();
            let mut stream = stream;
            stream.read(&mut [0; 1]).await
        })
    });
    assert_eq!(read.unwrap(), 1);
    let last = watcher.join().unwrap();
    assert!(last.is_ok(), "the idle thread does not sleep: {}", last.unwrap_err());
}

/// Returns `Ok` if [`LOOKS`] readings in a row show the thread asleep and without run time in between.
fn sleeps(thread: &Path) -> Result<(), String> {
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        seen = (0..LOOKS).map(|_| look(thread)).collect();
        if seen.iter().all(|now| *now == seen[0] && now.starts_with('S')) {
            return Ok(());
        }
    }
    Err(format!("the readings (state, run time in ns, time in the run queue, turns on a CPU) were {seen:#?}"))
}

/// Waits for a moment and returns the thread's state and its run time so far.
fn look(thread: &Path) -> String {
    std::thread::park_timeout(Duration::from_millis(5));
    let stat = std::fs::read_to_string(thread.join("stat")).expect("the thread's stat");
    let run = std::fs::read_to_string(thread.join("schedstat")).expect("the thread's schedstat");
    // The state follows the thread's name, which is in parentheses and may contain any character.
    let (_, state) = stat.rsplit_once(") ").expect("a state");
    format!("{} {}", &state[..1], run.trim())
}

/// Polls a future once, which must wait, so that its socket is registered.
async fn wait_once<F: Future>(future: F) {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "the future must wait");
        Poll::Ready(())
    })
    .await;
}

/// Writes until the send buffer is full.
async fn fill(stream: &TcpStream) {
    poll_fn(|cx| {
        while let Poll::Ready(written) = Pin::new(&mut &*stream).poll_write(cx, &[0; 1 << 16]) {
            written.expect("the peer is there");
        }
        Poll::Ready(())
    })
    .await;
}
