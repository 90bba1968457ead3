//! An idle runtime uses no CPU: its thread sleeps in the kernel until something happens.
//!
//! Watched from another thread, through /proc. The watcher pauses between two looks, which orders nothing: the
//! runtime cannot go on before the watcher has seen enough, whenever that is, and then lets it.

#![cfg(target_os = "linux")]

mod support;

use std::future::{Future, pending, poll_fn};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use kittiwake::io::{AsyncReadExt, AsyncWrite};
use kittiwake::net::TcpStream;
use kittiwake::runtime::{Builder, Runtime};
use kittiwake::task::yield_now;
use kittiwake::{spawn, spawn_local};
use support::{PATIENCE, listener, on_each_worker, pair_with_std, within, workers};

/// Looks in a row between which an idle thread must not have run.
const LOOKS: usize = 8;

/// Attempts to see that many; the first few may fall into the time before it idles.
const ATTEMPTS: usize = 100;

/// A server without clients costs nothing, and one with a thousand idle clients does not either.
#[test]
fn a_runtime_that_waits_for_a_byte_sleeps() {
    sleeps_until_a_byte_comes(Runtime::new().unwrap(), || async {});
}

/// Tasks that wait, for whatever there is to wait for, are no work.
#[test]
fn a_runtime_with_waiting_tasks_sleeps() {
    sleeps_until_a_byte_comes(Runtime::new().unwrap(), || async {
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

/// Events that nobody takes are told once. A reactor that is told again and again of what is already so
/// spins: data that nobody reads, a peer that is half gone beside a writer that waits, a connection not accepted.
#[test]
fn a_runtime_with_untaken_events_sleeps() {
    sleeps_until_a_byte_comes(Runtime::new().unwrap(), || async {
        let (unread, mut unread_peer) = pair_with_std();
        wait_once(unread.readable()).await;
        unread_peer.write_all(b"nobody reads this").unwrap();

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

        // As long as the runtime.
        drop(spawn(async move {
            let _kept = (unread, unread_peer, half_closed, write, reset, listener, connection);
            pending::<()>().await;
        }));
        yield_now().await;
    });
}

/// To look again and again before blocking is for a moment, not for ever.
#[test]
fn a_spinning_runtime_sleeps_in_the_end() {
    sleeps_until_a_byte_comes(Builder::new().spin(Duration::from_millis(1)).build().unwrap(), || async {});
}

/// Each of several workers sleeps, with what it has to wait for: no clock of its own, no look at the others.
#[test]
fn the_workers_of_a_runtime_that_waits_sleep() {
    within(|| {
        for count in [2, 4] {
            let runtime = workers(count);
            // Not before all have worked, and have called each other.
            drop(runtime.handle().spawn(async { (0..1000).for_each(|_| drop(spawn(yield_now()))) }));
            let threads = on_each_worker(runtime.handle(), count, |_| {
                let (stream, peer) = pair_with_std();
                drop(spawn(async move {
                    let _peer = peer;
                    stream.readable().await
                }));
                drop(spawn(kittiwake::time::sleep(Duration::from_secs(3600))));
                drop(spawn_local(pending::<()>()));
                std::fs::read_link("/proc/thread-self").expect("this thread's folder in /proc")
            });
            for thread in threads {
                if let Err(last) = sleeps(&Path::new("/proc").join(thread)) {
                    panic!("an idle worker of {count} does not sleep: {last}");
                }
            }
        }
    });
}

/// The free function and a second call are no different.
#[test]
fn a_runtime_sleeps_in_its_second_call_too() {
    let runtime = Runtime::new().unwrap();
    let runtime = within(move || {
        runtime.block_on(async {
            drop(spawn(pending::<()>()));
            yield_now().await;
        });
        runtime
    });
    sleeps_until_a_byte_comes(runtime, || async {});
}

/// Runs `before` in `runtime` and then waits for a byte, which comes once the thread has been seen to sleep.
#[track_caller]
fn sleeps_until_a_byte_comes<F>(runtime: Runtime, before: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let (stream, mut peer) = pair_with_std();
    let (tell, told) = mpsc::channel();
    let watcher = std::thread::spawn(move || {
        let thread: PathBuf = told.recv_timeout(PATIENCE).expect("the runtime's thread");
        let slept = sleeps(&thread);
        peer.write_all(b"x").expect("the byte that ends it");
        slept
    });
    let read = within(move || {
        runtime.block_on(async move {
            before().await;
            let thread = std::fs::read_link("/proc/thread-self").expect("this thread's folder in /proc");
            tell.send(Path::new("/proc").join(thread)).unwrap();
            let mut stream = stream;
            stream.read(&mut [0; 1]).await
        })
    });
    assert_eq!(read.unwrap(), 1);
    let last = watcher.join().unwrap();
    assert!(last.is_ok(), "the idle thread does not sleep: {}", last.unwrap_err());
}

/// Whether the thread is seen asleep, without having run in between, [`LOOKS`] times in a row.
fn sleeps(thread: &Path) -> Result<(), String> {
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        seen = (0..LOOKS).map(|_| look(thread)).collect();
        if seen.iter().all(|now| *now == seen[0] && now.starts_with('S')) {
            return Ok(());
        }
    }
    Err(format!("state, and run time in ns, time in the run queue and turns on a CPU, were {seen:#?}"))
}

/// The thread's state and what it has run so far, a moment from now.
fn look(thread: &Path) -> String {
    std::thread::park_timeout(Duration::from_millis(5));
    let stat = std::fs::read_to_string(thread.join("stat")).expect("the thread's stat");
    let run = std::fs::read_to_string(thread.join("schedstat")).expect("the thread's schedstat");
    // After the name, which is in parentheses and may have any sign in it.
    let (_, state) = stat.rsplit_once(") ").expect("a state");
    format!("{} {}", &state[..1], run.trim())
}

/// Polls a future once, which has to wait, so that its socket is registered.
async fn wait_once<F: Future>(future: F) {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "nothing has happened yet");
        Poll::Ready(())
    })
    .await;
}

/// Writes until nothing more goes in.
async fn fill(stream: &TcpStream) {
    poll_fn(|cx| {
        while let Poll::Ready(written) = Pin::new(&mut &*stream).poll_write(cx, &[0; 1 << 16]) {
            written.expect("the peer is there");
        }
        Poll::Ready(())
    })
    .await;
}
