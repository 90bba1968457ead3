//! Who is woken by a socket, how often, and when a socket lets go of a waker.

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use futures_lite::future::{poll_fn, poll_once, zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpStream;
use support::*;

/// Without it the second of two tasks that read one stream takes the first one's wake-up for good.
#[test]
fn readers_of_one_stream_are_all_served() {
    for readers in [2, 9, 20] {
        run(move || async move {
            let (stream, mut peer) = pair_with_std();
            let stream = Arc::new(stream);
            let tasks: Vec<_> = (0..readers).map(|_| kittiwake::spawn(read_one(stream.clone()))).collect();
            settle().await;
            let bytes = pattern(readers);
            for byte in &bytes {
                peer.write_all(&[*byte]).expect("the peer writes");
                settle().await;
            }
            let mut received = Vec::new();
            for task in tasks {
                received.push(task.await.expect("the task"));
            }
            received.sort_unstable();
            let mut expected = bytes;
            expected.sort_unstable();
            assert_eq!(received, expected, "{readers} readers get a byte each");
        });
    }
}

async fn read_one(stream: Arc<TcpStream>) -> u8 {
    let mut byte = [0];
    (&*stream).read_exact(&mut byte).await.expect("read");
    byte[0]
}

/// Without it tasks that read one stream wake each other for ever while nothing comes.
#[test]
fn two_to_nine_readers_of_one_stream_sleep() {
    for readers in 2..=9 {
        run(move || assert_readers_sleep(readers));
    }
}

/// Without it many tasks that read one stream wake each other for ever while nothing comes.
#[test]
fn many_readers_of_one_stream_sleep() {
    for readers in [10, 40] {
        run(move || assert_readers_sleep(readers));
    }
}

async fn assert_readers_sleep(readers: usize) {
    let (stream, _peer) = pair_with_std();
    let (stream, polls) = (Arc::new(stream), Arc::new(AtomicUsize::new(0)));
    for _ in 0..readers {
        let (stream, polls) = (stream.clone(), polls.clone());
        kittiwake::spawn(poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            poll_read(cx.waker(), &stream, &mut [0; 8])
        }));
    }
    settle().await;
    let before = polls.load(Ordering::Relaxed);
    for _ in 0..10 {
        settle().await;
    }
    let polls = polls.load(Ordering::Relaxed) - before;
    assert!(polls <= readers, "{readers} readers that have nothing to read were polled {polls} times");
}

/// Without it a read that is handed to another task wakes the one that no longer cares.
#[test]
fn a_read_that_moves_to_another_task_wakes_that_task() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut read = Box::pin(async move {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).await.map(|()| byte[0])
        });
        // Three tasks hold it in turn, and each polls it.
        for _ in 0..2 {
            let moved = kittiwake::spawn(async move {
                assert!(poll_once(&mut read).await.is_none(), "there is nothing to read yet");
                (read,)
            });
            (read,) = moved.await.expect("the task");
        }
        let last = kittiwake::spawn(read);
        settle().await;
        assert!(!last.is_finished(), "there is nothing to read yet");
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!(last.await.expect("the task").expect("read"), b'x');
    });
}

/// Without it whoever gets a stream from another task is asleep while that one is woken, which has ended.
#[test]
fn a_stream_that_is_handed_on_wakes_whoever_reads_it_now() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        for byte in 0..4 {
            let reader = kittiwake::spawn(async move {
                let mut read = [0];
                stream.read_exact(&mut read).await.map(|()| (stream, read))
            });
            settle().await;
            assert!(!reader.is_finished(), "there is nothing to read yet");
            peer.write_all(&[byte]).expect("the peer writes");
            let read;
            (stream, read) = reader.await.expect("the task").expect("read");
            assert_eq!(read, [byte]);
        }
        // And one that is no task.
        let (read, ()) = zip(read_byte(&mut stream), async {
            settle().await;
            peer.write_all(b"x").expect("the peer writes");
        })
        .await;
        assert_eq!(read, b'x');
    });
}

async fn read_byte(stream: &mut TcpStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).await.expect("read");
    byte[0]
}

/// Without it the newest waker is not the one that is woken.
#[test]
fn the_newest_waker_is_among_those_that_are_woken() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        for count in [1, 2, 30] {
            let wakers: Vec<_> = (0..count).map(|_| counting_waker()).collect();
            for (waker, _) in &wakers {
                assert!(poll_read(waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            }
            let newest = &wakers.last().expect("there is one").1;
            assert_eq!(newest.get(), 0, "nothing has come yet");
            peer.write_all(b"x").expect("the peer writes");
            until(|| newest.get() > 0).await;
            for (at, (_, wakes)) in wakers.iter().enumerate() {
                assert_eq!(wakes.get(), 1, "waker {at} of {count} must be woken once");
            }
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// Without it a task that looks at its socket again and again is woken twice, or costs memory.
#[test]
fn a_waker_that_polls_again_is_kept_once() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let (waker, wakes) = counting_waker();
        let mut readable = Box::pin(stream.readable());
        for polls in 1..=10 {
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read yet");
            assert_eq!(
                Arc::strong_count(&wakes),
                4,
                "after {polls} polls: the test has two, the socket one for each way"
            );
        }
        peer.write_all(b"x").expect("the peer writes");
        until(|| wakes.get() > 0).await;
        assert_eq!((wakes.get(), Arc::strong_count(&wakes)), (2, 2), "each way of waiting is woken once");
    });
}

/// Without it polling in a loop fills the memory with clones of wakers.
#[test]
fn wakers_that_poll_again_and_again_are_kept_once() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let (one, wakes_of_one) = counting_waker();
        let (two, wakes_of_two) = counting_waker();
        for _ in 0..1000 {
            for waker in [&one, &two] {
                assert!(poll_read(waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            }
        }
        for wakes in [&wakes_of_one, &wakes_of_two] {
            assert_eq!(wakes.get(), 0, "nothing has come, so nobody is woken");
            let kept = Arc::strong_count(wakes) - 2;
            assert!(kept <= 2, "a waker is kept once or twice, and not {kept} times");
        }
        peer.write_all(b"x").expect("the peer writes");
        until(|| wakes_of_one.get() > 0 && wakes_of_two.get() > 0).await;
        assert_eq!(Arc::strong_count(&wakes_of_one), 2, "a waker that was woken is let go");
        assert_eq!(Arc::strong_count(&wakes_of_two), 2, "a waker that was woken is let go");
    });
}

/// Without it a stream that is polled by one task after another keeps all their wakers, or loses one that
/// still waits.
#[test]
fn a_waker_that_is_not_kept_any_more_was_woken() {
    run(|| async {
        let (stream, _peer) = pair_with_std();
        let mut all = Vec::new();
        for _ in 0..1000 {
            let (waker, wakes) = counting_waker();
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            all.push(wakes);
        }
        let kept = all.iter().filter(|wakes| Arc::strong_count(wakes) > 1).count();
        assert!(kept <= 1000 / 2, "{kept} of 1,000 wakers are kept");
        for (at, wakes) in all.iter().enumerate() {
            assert!(Arc::strong_count(wakes) > 1 || wakes.get() == 1, "waker {at} is neither kept nor woken");
        }
        drop(stream);
        assert!(all.iter().all(|wakes| Arc::strong_count(wakes) == 1), "a stream that is dropped lets all go");
    });
}

/// Without it waiting for readiness in a select leaks a waker every time.
#[test]
fn futures_that_are_dropped_let_their_wakers_go() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        while stream.try_write(&[7; 65_536]).is_ok() {}
        let (waker, wakes) = counting_waker();
        for _ in 0..1000 {
            let (mut buf, mut readable, mut writable) =
                ([0; 8], Box::pin(stream.readable()), Box::pin(stream.writable()));
            let mut peek = Box::pin(stream.peek(&mut buf));
            for _ in 0..3 {
                assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read yet");
                assert!(poll_with(&waker, &mut peek).is_pending(), "there is nothing to peek at yet");
            }
            let _ = poll_with(&waker, &mut writable);
        }
        assert_eq!(Arc::strong_count(&wakes), 2, "only the test's own waker is left");
        let before = wakes.get();
        peer.write_all(b"x").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(wakes.get(), before, "nobody is woken for a future that is gone");
    });
}

/// Without it reading with a timeout, or in a select, loses bytes.
#[test]
fn a_dropped_read_loses_no_byte() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let bytes = pattern(1000);
        let mut received = Vec::new();
        for chunk in bytes.chunks(10) {
            {
                let (waker, wakes) = counting_waker();
                let (mut reader, mut buf) = (&stream, [0; 64]);
                let mut read = reader.read(&mut buf);
                assert!(poll_with(&waker, &mut read).is_pending(), "there is nothing to read yet");
                peer.write_all(chunk).expect("the peer writes");
                until(|| wakes.get() > 0).await;
                // Woken, and given up all the same.
            }
            let mut part = [0; 10];
            (&stream).read_exact(&mut part).await.expect("read");
            received.extend_from_slice(&part);
        }
        assert_eq!(received, bytes);
    });
}

/// Without it writing with a timeout, or in a select, sends bytes twice or not at all.
#[test]
fn a_dropped_write_has_sent_nothing() {
    run(|| async {
        let (stream, peer) = pair_with_std();
        let bytes = pattern(16 << 20);
        let mut sent = 0;
        let mut dropped = 0;
        while dropped < 3 {
            match poll_once((&stream).write(&bytes[sent..])).await {
                Some(written) => sent += written.expect("write"),
                None => dropped += 1,
            }
        }
        let reader = std::thread::spawn(move || read_all(peer));
        (&stream).write_all(&bytes[sent..]).await.expect("write");
        drop(stream);
        assert!(reader.join().expect("the peer's thread") == bytes, "every byte is sent once");
    });
}

/// Without it a socket that goes away in an unusual way keeps its place in the reactor.
#[test]
fn every_way_to_drop_a_socket_releases_its_place() {
    run(|| async {
        let (waker, wakes) = counting_waker();
        let waiting = || {
            let (stream, peer) = pair_with_std();
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            assert_eq!(sources(), 1, "a stream that waits is watched");
            (stream, peer)
        };
        let gone = |how: &str| assert_eq!(sources(), 0, "{how} releases the place");

        drop(waiting().0);
        gone("a drop");
        let (stream, mut peer) = waiting();
        peer.write_all(b"x").expect("the peer writes");
        stream.readable().await.expect("readable");
        drop(stream);
        gone("a drop with unread input");
        let (stream, peer) = waiting();
        reset(peer);
        stream.readable().await.expect("readable");
        drop(stream);
        gone("a drop after a reset");
        let (stream, peer) = waiting();
        drop(peer);
        (&stream).close().await.expect("close");
        drop(stream);
        gone("a drop after the end");
        drop(waiting().0.into_std().expect("into_std"));
        gone("handing it back to std");
        drop(waiting().0.into_split());
        gone("dropping both halves");
        let (stream, _peer) = waiting();
        let task = kittiwake::spawn(async move { (&stream).read(&mut [0; 8]).await });
        settle().await;
        task.abort();
        assert!(task.await.expect_err("the task was aborted").is_cancelled());
        gone("aborting its task");
        let (stream, _peer) = waiting();
        std::thread::spawn(move || drop(stream)).join().expect("the thread");
        gone("a drop on another thread");

        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1, "no socket keeps a waker");
    });
}

/// Without it a waker that uses its socket meets a lock that is held around it.
#[test]
fn a_waker_may_use_the_socket_that_wakes_it() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let reader = Arc::new(ReadsWhenWoken { stream, read: Mutex::new(Vec::new()) });
        reader.wake_by_ref();
        for byte in 0..10 {
            peer.write_all(&[byte]).expect("the peer writes");
            until(|| reader.read.lock().expect("no panic").len() == usize::from(byte) + 1).await;
        }
        peer.shutdown(std::net::Shutdown::Both).expect("the peer ends");
        until(|| Arc::strong_count(&reader) == 1).await;
    });
}

/// Reads all there is each time it is woken, and waits for more.
struct ReadsWhenWoken {
    stream: TcpStream,
    read: Mutex<Vec<u8>>,
}

impl Wake for ReadsWhenWoken {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut buf = [0; 4];
        while let Poll::Ready(read) = poll_read(&waker, &self.stream, &mut buf) {
            match read.expect("read") {
                0 => return,
                read => self.read.lock().expect("no panic").extend_from_slice(&buf[..read]),
            }
        }
    }
}

/// Without it a waker that uses its socket while it is replaced, or pushed out, meets a lock that is held
/// around it.
#[test]
fn a_waker_may_use_the_socket_that_lets_it_go() {
    run(|| async {
        let (stream, _peer) = pair_with_std();
        let stream = Arc::new(stream);
        let used = Arc::new(AtomicUsize::new(0));
        let user = || Waker::from(Arc::new(UsesItsSocket { stream: stream.clone(), used: used.clone() }));
        let mut readable = Box::pin(stream.readable());
        for _ in 0..3 {
            assert!(poll_with(&user(), &mut readable).is_pending(), "there is nothing to read yet");
        }
        assert_eq!(used.load(Ordering::Relaxed), 2, "wakers that were replaced are dropped");
        for _ in 0..30 {
            assert!(poll_read(&user(), &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
        }
        assert!(used.load(Ordering::Relaxed) > 2, "wakers that were pushed out are woken, and dropped");
        // They own the stream that owns them.
        stream.shutdown(std::net::Shutdown::Read).expect("shutdown");
        until(|| Arc::strong_count(&stream) == 1).await;
    });
}

/// Looks at its socket when it is woken, and when it is dropped.
struct UsesItsSocket {
    stream: Arc<TcpStream>,
    used: Arc<AtomicUsize>,
}

impl Wake for UsesItsSocket {
    fn wake(self: Arc<Self>) {
        let _ = self.stream.try_read(&mut [0; 8]);
    }
}

impl Drop for UsesItsSocket {
    fn drop(&mut self) {
        let _ = self.stream.try_read(&mut [0; 8]);
        self.used.fetch_add(1, Ordering::Relaxed);
    }
}

/// Without it a waker that owns the last reference to a task, and with it a socket, meets a lock that is
/// held around its drop.
#[test]
fn a_waker_may_own_a_socket() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let owner = |_| {
            let (owned, owned_peer) = pair_with_std();
            assert!(poll_read(Waker::noop(), &owned, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            (Waker::from(Arc::new(Owns { _stream: owned })), owned_peer)
        };
        // Polled with one after another: they are displaced, then pushed out.
        let (wakers, peers): (Vec<_>, Vec<_>) = (0..30).map(owner).unzip();
        for waker in wakers {
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            let mut readable = Box::pin(stream.readable());
            assert!(poll_with(&waker, &mut readable).is_pending(), "there is nothing to read yet");
            drop(waker);
            drop(readable);
        }
        peer.write_all(b"x").expect("the peer writes");
        assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        until(|| sources() == 1).await;
        for peer in peers {
            assert_eq!(read_all(peer), b"", "each socket was closed with the waker that owned it");
        }
    });
}

struct Owns {
    _stream: TcpStream,
}

impl Wake for Owns {
    fn wake(self: Arc<Self>) {}
}

/// When there is no room for another displaced waker all of them are woken. One that panics must not cost the others
/// their wake-up, nor the task that polls its peace.
#[test]
fn a_panicking_waker_does_not_keep_those_displaced_with_it_asleep() {
    struct Panicking;
    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new("a waker panicked"));
        }
    }
    run(|| async {
        let (stream, _peer) = pair().await;
        let panicking = Waker::from(Arc::new(Panicking));
        assert!(poll_read(&panicking, &stream, &mut [0; 8]).is_pending());
        let counts: Vec<_> = std::iter::repeat_with(counting_waker).take(20).collect();
        for (waker, _) in &counts {
            assert!(poll_read(waker, &stream, &mut [0; 8]).is_pending());
        }
        let woken = counts.iter().filter(|(_, wakes)| wakes.get() > 0).count();
        assert!(woken >= 7, "only {woken} of those displaced with it were woken, and the others forgotten");
    });
}
