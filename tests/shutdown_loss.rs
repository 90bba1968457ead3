//! Shutdown without loss: a client whose request had begun to arrive when the server stops gets its whole answer.

mod support;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use futures_lite::future::poll_once;
use kittiwake::io::AsyncReadExt;
use kittiwake::net::{ShutdownSignal, TcpStream};
use support::{pair_with_std, pattern, run};

// ---- handlers ----

/// A read in `run_until_triggered` returns all that the kernel holds, piece by piece, although no event has reported it.
#[test]
fn reads_empty_the_kernel_first() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut buf) = (ShutdownSignal::new(), [0; 1000]);
        // The stream is registered, and its last event is used up.
        assert!(poll_once(stream.read(&mut buf)).await.is_none(), "the peer sends nothing");
        let sent = pattern(50_000);
        peer.write_all(&sent).unwrap();
        until_received(&stream, sent.len()).await;
        signal.trigger();
        let mut got = Vec::new();
        while let Some(read) = signal.run_until_triggered(stream.read(&mut buf)).await {
            got.extend_from_slice(&buf[..read.unwrap()]);
        }
        assert_eq!(got.len(), sent.len(), "the kernel had more");
        assert!(got == sent);
    });
}

/// A read that is refused for want of budget does not look like an empty kernel.
#[test]
fn used_up_budget_is_no_end() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut byte) = (ShutdownSignal::new(), [0]);
        signal.trigger();
        let sent = pattern(1_000);
        peer.write_all(&sent).unwrap();
        until_received(&stream, sent.len()).await;
        let mut got = Vec::new();
        // More reads than one poll of a task may make.
        while let Some(read) = signal.run_until_triggered(stream.read(&mut byte)).await {
            got.extend_from_slice(&byte[..read.unwrap()]);
        }
        assert!(got == sent, "{} of {} bytes were read", got.len(), sent.len());
    });
}

/// A handler that takes what the kernel still has lets other tasks run in between.
#[test]
fn last_reads_let_others_run() {
    run(|| async {
        const BYTES: usize = 10_000;
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut byte) = (ShutdownSignal::new(), [0]);
        // The stream is registered, and its last event is used up. So each read asks the kernel.
        assert!(poll_once(stream.read(&mut byte)).await.is_none(), "the peer sends nothing");
        peer.write_all(&pattern(BYTES)).unwrap();
        until_received(&stream, BYTES).await;
        signal.trigger();
        let turns = Arc::new(AtomicUsize::new(0));
        let other = kittiwake::spawn({
            let turns = turns.clone();
            async move {
                loop {
                    turns.fetch_add(1, SeqCst);
                    kittiwake::task::yield_now().await;
                }
            }
        });
        let mut read = 0;
        while signal.run_until_triggered(stream.read(&mut byte)).await.is_some() {
            read += 1;
        }
        assert_eq!(read, BYTES);
        // A poll of a task has a budget of 128 operations.
        let turns = turns.load(SeqCst);
        assert!(turns >= BYTES / 128 - 1, "the other task has run {turns} times beside {BYTES} reads");
        other.abort();
    });
}

// ---- helpers ----

/// Waits until the kernel has so many bytes for the stream. No event tells the stream of it.
async fn until_received(stream: &TcpStream, bytes: usize) {
    let received = || rustix::io::ioctl_fionread(stream).expect("FIONREAD");
    while received() < bytes as u64 {
        std::thread::yield_now();
    }
}
