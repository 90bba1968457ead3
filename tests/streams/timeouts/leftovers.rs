//! The wakers and timers of dropped streams, and wakers that use the stream.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use kittiwake::runtime::Runtime;
use kittiwake::time::{Instant, advance};

use super::*;

/// A dropped stream releases its waker. A leftover timer would hold the task's memory and wake it.
#[test]
fn dropped_stream_keeps_no_waker() {
    in_each_case(|case| async move {
        for how in 0..4 {
            let link = Link::new(case, TEN).await;
            assert!(link.poll().is_pending(), "the operation must wait");
            let wakes = link.wakes.clone();
            let (stream, _peer) = link.into_parts();
            match how {
                0 => drop(stream),
                1 => drop(stream.into_std().expect("into_std")),
                2 => drop(stream.into_split()),
                _ => std::thread::spawn(move || drop(stream)).join().expect("the thread"),
            }
            assert_eq!(Arc::strong_count(&wakes), 1, "the stream must release its waker");
            assert_eq!(sources(), 0, "the stream must be deregistered");
            let before = wakes.get();
            advance(HOUR).await;
            assert_eq!(wakes.get(), before, "no waker may be woken");
        }
    });
}

/// A dropped stream leaves no timer. A paused clock would jump to the deadline of a leftover timer.
#[test]
fn dropped_stream_keeps_no_timer() {
    for case in CASES {
        for aborted in [false, true] {
            run_paused(move || async move {
                let link = Link::new(case, TEN).await;
                let task = link.spawn();
                settle().await;
                if aborted {
                    task.abort();
                } else {
                    link.serve_until(|| task.is_finished()).await;
                }
                assert_eq!(task.await.is_ok(), !aborted, "{case:?}: the task ends");
                drop(link);
                assert_eq!(kittiwake::runtime::Handle::current().metrics().tasks_alive(), 0);
                assert_eq!(sources(), 0);
                let before = Instant::now();
                an_idle_moment().await;
                assert_eq!(Instant::now(), before, "{case:?}: a timer was left");
            });
        }
    }
}

/// A removed timeout leaves no timer.
#[test]
fn removed_timeout_keeps_no_timer() {
    for case in CASES {
        run_paused(move || async move {
            let link = Link::new(case, TEN).await;
            let task = link.spawn();
            settle().await;
            case.set(&link.stream, None).expect("no timeout");
            let before = Instant::now();
            an_idle_moment().await;
            assert_eq!(Instant::now(), before, "{case:?}: a timer was left");
            assert!(!task.is_finished(), "{case:?}: the operation must wait for ever");
        });
    }
}

/// Lets the runtime sleep in the kernel for a short time. The pause orders no events: a shorter one would only
/// detect less.
async fn an_idle_moment() {
    let (end, ended) = async_channel::bounded::<()>(1);
    let thread = std::thread::spawn(move || {
        std::thread::park_timeout(5 * MS);
        drop(end);
    });
    assert!(ended.recv().await.is_err(), "nothing is sent");
    thread.join().expect("the thread");
}

/// A waker may use the stream whose deadline has passed. A waker is foreign code and may run its task at once, so
/// no lock may be held around it.
#[test]
fn waker_may_use_timed_out_stream() {
    for case in CASES {
        run_paused(move || async move {
            let link = Link::new(case, TEN).await;
            let user = Arc::new(UsesWhenWoken { case, stream: link.stream.clone(), seen: Mutex::default() });
            let waker = Waker::from(user.clone());
            assert!(case.direction.poll(&waker, &link.stream).is_pending(), "the operation must wait");
            for round in 1..=3 {
                advance(TEN + MS).await;
                let seen = user.seen.lock().expect("no panic").clone();
                assert_eq!(
                    seen,
                    vec![ErrorKind::TimedOut; round],
                    "{case:?}: the operation must time out inside the wake"
                );
            }
            case.set(&link.stream, None).expect("no timeout");
            drop(waker);
            let (stream, _) = (link.stream.clone(), user);
            stream.shutdown(Shutdown::Both).expect("shutdown");
            drop(link);
            until(|| Arc::strong_count(&stream) == 1).await;
        });
    }
}

/// A waker may use the stream whose runtime ends. The runtime then arms no timer, and no time has passed.
#[test]
fn waker_may_use_interrupted_stream() {
    for case in CASES {
        within(move || {
            let runtime = Runtime::new().expect("a runtime");
            let (link, user) = runtime.block_on(async move {
                let link = Link::new(case, HOUR).await;
                let user = Arc::new(UsesWhenWoken { case, stream: link.stream.clone(), seen: Mutex::default() });
                assert!(
                    case.direction.poll(&Waker::from(user.clone()), &link.stream).is_pending(),
                    "the operation must wait"
                );
                (link, user)
            });
            drop(runtime);
            let seen = user.seen.lock().expect("no panic").clone();
            assert!(seen.is_empty(), "{case:?}: no hour has passed, but the waker saw {seen:?}");
            case.set(&link.stream, Some(MS)).expect("a timeout");
            kittiwake::block_on(link.time_out());
        });
    }
}

/// A waker that operates on the stream until it must wait, and sets the timeout again after each failure.
struct UsesWhenWoken {
    case: Case,
    stream: Arc<Stream>,
    seen: Mutex<Vec<ErrorKind>>,
}

impl Wake for UsesWhenWoken {
    fn wake(self: Arc<Self>) {
        let _notes = NotesPanic(&self.seen);
        let waker = Waker::from(self.clone());
        while let Poll::Ready(Err(error)) = self.case.direction.poll(&waker, &self.stream) {
            if error.kind() != ErrorKind::TimedOut {
                return;
            }
            self.seen.lock().expect("no panic").push(error.kind());
            self.case.set(&self.stream, Some(TEN)).expect("a timeout");
        }
    }
}

/// Records a panic of the waker, because the runtime contains it.
struct NotesPanic<'a>(&'a Mutex<Vec<ErrorKind>>);

impl Drop for NotesPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().expect("no panic while it is locked").push(ErrorKind::Other);
        }
    }
}

/// A waker may drop the stream whose deadline has passed.
#[test]
fn waker_may_drop_timed_out_stream() {
    struct Drops(Mutex<Vec<Stream>>);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            let streams = std::mem::take(&mut *self.0.lock().expect("no panic"));
            drop(streams);
        }
    }
    in_each_case(|case| async move {
        let drops = Arc::new(Drops(Mutex::default()));
        let waker = Waker::from(drops.clone());
        let mut peers = Vec::new();
        for seconds in [10, 10, 10, 11, 3600] {
            let link = Link::new(case, SECOND * seconds).await;
            assert!(case.direction.poll(&waker, &link.stream).is_pending(), "the operation must wait");
            let (stream, peer) = link.into_parts();
            peers.push(peer);
            drops.0.lock().expect("no panic").push(stream);
        }
        advance(2 * HOUR).await;
        assert!(drops.0.lock().expect("no panic").is_empty(), "the first wake must have dropped all streams");
        drop(waker);
        assert_eq!(Arc::strong_count(&drops), 1, "no stream may keep its waker");
    });
}
