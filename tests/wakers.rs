//! Which wakers a socket wakes, how often, and when it releases them.

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use futures_lite::future::{poll_fn, poll_once, zip};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::TcpStream;
use support::*;

/// All tasks that read one stream are served. None loses its wake-up to another reader.
#[test]
fn readers_of_one_stream_are_served() {
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
            assert_eq!(received, expected, "each of {readers} readers must get a byte");
        });
    }
}

async fn read_one(stream: Arc<TcpStream>) -> u8 {
    let mut byte = [0];
    (&*stream).read_exact(&mut byte).await.expect("read");
    byte[0]
}

/// Two to nine tasks that read one stream do not wake each other while no bytes arrive.
#[test]
fn few_readers_of_one_stream_sleep() {
    for readers in 2..=9 {
        run(move || assert_readers_sleep(readers));
    }
}

/// Many tasks that read one stream do not wake each other while no bytes arrive.
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
            poll_read(cx.waker(), &*stream, &mut [0; 8])
        }));
    }
    settle().await;
    let before = polls.load(Ordering::Relaxed);
    for _ in 0..10 {
        settle().await;
    }
    let polls = polls.load(Ordering::Relaxed) - before;
    assert!(polls <= readers, "{readers} readers without bytes were polled {polls} times");
}

/// A read that moves to another task wakes that task, and not the one that polled it first.
#[test]
fn moved_read_wakes_its_new_task() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let mut read = Box::pin(async move {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).await.map(|()| byte[0])
        });
        // Three tasks own the read in turn, and each polls it.
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

/// A stream that moves to another task wakes the task that reads it now, although the earlier reader has ended.
#[test]
fn moved_stream_wakes_its_new_reader() {
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
        // The main future reads last. It is not a task.
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

/// The waker that polled last is woken, together with the earlier ones.
#[test]
fn newest_waker_is_woken() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        for count in [1, 2, 30] {
            let wakers: Vec<_> = (0..count).map(|_| counting_waker()).collect();
            for (waker, _) in &wakers {
                assert!(poll_read(waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            }
            let newest = &wakers.last().expect("there is a last waker").1;
            assert_eq!(newest.get(), 0, "no byte has arrived yet");
            peer.write_all(b"x").expect("the peer writes");
            until(|| newest.get() > 0).await;
            for (at, (_, wakes)) in wakers.iter().enumerate() {
                assert_eq!(wakes.get(), 1, "waker {at} of {count} must be woken once");
            }
            assert_eq!((&stream).read(&mut [0; 8]).await.expect("read"), 1);
        }
    });
}

/// A task that polls again is kept once. Otherwise it would be woken twice and cost memory.
#[test]
fn repolling_waker_is_kept_once() {
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
                "after {polls} polls the test must hold two references and the socket one for each kind of wait"
            );
        }
        peer.write_all(b"x").expect("the peer writes");
        until(|| wakes.get() > 0).await;
        assert_eq!((wakes.get(), Arc::strong_count(&wakes)), (2, 2), "each kind of wait must wake its waker once");
    });
}

/// Two wakers that poll alternately are each kept at most twice. A loop of polls must not fill the memory with
/// wakers.
#[test]
fn alternating_wakers_are_not_duplicated() {
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
            assert_eq!(wakes.get(), 0, "no bytes have arrived, so no waker may be woken");
            let kept = Arc::strong_count(wakes) - 2;
            assert!(kept <= 2, "the socket keeps {kept} clones of a waker");
        }
        peer.write_all(b"x").expect("the peer writes");
        until(|| wakes_of_one.get() > 0 && wakes_of_two.get() > 0).await;
        assert_eq!(Arc::strong_count(&wakes_of_one), 2, "the socket must release a waker once it has woken it");
        assert_eq!(Arc::strong_count(&wakes_of_two), 2, "the socket must release a waker once it has woken it");
    });
}

/// A stream that many tasks poll keeps each waker or wakes it, and does not keep all of them.
#[test]
fn displaced_waker_is_woken() {
    run(|| async {
        let (stream, _peer) = pair_with_std();
        let mut all = Vec::new();
        for _ in 0..1000 {
            let (waker, wakes) = counting_waker();
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            all.push(wakes);
        }
        let kept = all.iter().filter(|wakes| Arc::strong_count(wakes) > 1).count();
        assert!(kept <= 1000 / 2, "the stream keeps {kept} of 1,000 wakers");
        for (at, wakes) in all.iter().enumerate() {
            assert!(Arc::strong_count(wakes) > 1 || wakes.get() == 1, "waker {at} was neither kept nor woken");
        }
        drop(stream);
        assert!(all.iter().all(|wakes| Arc::strong_count(wakes) == 1), "a dropped stream must release all wakers");
    });
}

/// A dropped future releases its waker. Waiting for readiness in a select must not leak memory.
#[test]
fn dropped_future_releases_its_waker() {
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
        assert_eq!(Arc::strong_count(&wakes), 2, "only the test's own wakers may be left");
        let before = wakes.get();
        peer.write_all(b"x").expect("the peer writes");
        stream.readable().await.expect("readable");
        assert_eq!(wakes.get(), before, "a dropped future must not be woken");
    });
}

/// A dropped read loses no byte. A read under a timeout or in a select is often dropped.
#[test]
fn dropped_read_loses_no_byte() {
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
                // The read is dropped although it was woken.
            }
            let mut part = [0; 10];
            (&stream).read_exact(&mut part).await.expect("read");
            received.extend_from_slice(&part);
        }
        assert_eq!(received, bytes);
    });
}

/// A dropped write has sent nothing. Otherwise a write under a timeout would send bytes twice.
#[test]
fn dropped_write_has_sent_nothing() {
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
        assert!(reader.join().expect("the peer's thread") == bytes, "every byte must be sent once");
    });
}

/// A socket is deregistered however it is dropped.
#[test]
fn dropped_socket_is_deregistered() {
    run(|| async {
        let (waker, wakes) = counting_waker();
        let waiting = || {
            let (stream, peer) = pair_with_std();
            assert!(poll_read(&waker, &stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            assert_eq!(sources(), 1, "a waiting stream must be registered");
            (stream, peer)
        };
        let gone = |how: &str| assert_eq!(sources(), 0, "the stream must be deregistered after {how}");

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
        gone("a conversion to std");
        drop(waiting().0.into_split());
        gone("a drop of both halves");
        let (stream, _peer) = waiting();
        let task = kittiwake::spawn(async move { (&stream).read(&mut [0; 8]).await });
        settle().await;
        task.abort();
        assert!(task.await.expect_err("the task was aborted").is_cancelled());
        gone("an abort of its task");
        let (stream, _peer) = waiting();
        std::thread::spawn(move || drop(stream)).join().expect("the thread");
        gone("a drop on another thread");

        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1, "no socket may keep a waker");
    });
}

/// A waker may use the socket that wakes it. No lock may be held around the wake.
#[test]
fn woken_waker_may_use_its_socket() {
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

/// A waker that reads all bytes each time it is woken, and waits for more.
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

/// A waker may use the socket that replaces it or pushes it out. No lock may be held around its drop.
#[test]
fn released_waker_may_use_its_socket() {
    run(|| async {
        let (stream, _peer) = pair_with_std();
        let stream = Arc::new(stream);
        let used = Arc::new(AtomicUsize::new(0));
        let user = || Waker::from(Arc::new(UsesItsSocket { stream: stream.clone(), used: used.clone() }));
        let mut readable = Box::pin(stream.readable());
        for _ in 0..3 {
            assert!(poll_with(&user(), &mut readable).is_pending(), "there is nothing to read yet");
        }
        assert_eq!(used.load(Ordering::Relaxed), 2, "replaced wakers must be dropped");
        for _ in 0..30 {
            assert!(poll_read(&user(), &*stream, &mut [0; 8]).is_pending(), "there is nothing to read yet");
        }
        assert!(used.load(Ordering::Relaxed) > 2, "wakers that were pushed out must be woken and dropped");
        // The wakers own the stream that owns them.
        stream.shutdown(std::net::Shutdown::Read).expect("shutdown");
        until(|| Arc::strong_count(&stream) == 1).await;
    });
}

/// A waker that reads from its socket when it is woken and when it is dropped.
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

/// A waker may own a socket, for example through the last reference to a task. No lock may be held around its drop.
#[test]
fn waker_may_own_a_socket() {
    run(|| async {
        let (stream, mut peer) = pair_with_std();
        let owner = |_| {
            let (owned, owned_peer) = pair_with_std();
            assert!(poll_read(Waker::noop(), &owned, &mut [0; 8]).is_pending(), "there is nothing to read yet");
            (Waker::from(Arc::new(Owns { _stream: owned })), owned_peer)
        };
        // Each poll uses another waker, so earlier wakers are displaced and then pushed out.
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
            assert_eq!(read_all(peer), b"", "each socket must close with the waker that owns it");
        }
    });
}

struct Owns {
    _stream: TcpStream,
}

impl Wake for Owns {
    fn wake(self: Arc<Self>) {}
}

/// When the list of displaced wakers is full, all of them are woken. One that panics must not cost the others their
/// wake, and must not unwind into the task that polls.
#[test]
fn panicking_waker_harms_no_displaced() {
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
        assert!(woken >= 7, "only {woken} wakers that were displaced with the panicking one were woken");
    });
}
