//! Wakers of tasks, which any thread may wake at any time, and foreign wakers, which may run any code when the
//! runtime wakes or drops them.

mod support;

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::io::Write;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use kittiwake::io::AsyncRead;
use kittiwake::net::TcpStream;
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::spawn;
use kittiwake::task::yield_now;
use support::{PATIENCE, counting_waker, pair_with_std, progress, run, within};

// ---- waking a task ----

/// A task can be woken from another thread, whether its worker sleeps or spins.
#[test]
fn another_thread_may_wake_a_task() {
    within(|| {
        // The worker blocks at once, or spins for a long time first.
        for spin in [Duration::ZERO, 10 * PATIENCE] {
            let runtime = Builder::new_multi_thread().spin(spin).build().unwrap();
            runtime.block_on(async {
                let (flag, task) = waits_for_flag();
                let waker = flag.waker().await;
                let thread = std::thread::spawn(move || {
                    flag.set();
                    waker.wake();
                });
                // The wake arrives before the worker next looks for one.
                thread.join().unwrap();
                task.await.unwrap();
            });
        }
    });
}

/// A storm of wakes loses none. Wakes that come together may be merged, but a poll must follow each of them, and no
/// more polls than wakes may follow.
#[test]
fn wake_storm_loses_no_wake() {
    const EACH: usize = 2_000;
    for in_main in [true, false] {
        run(move || async move {
            let storm = Storm::new(8, EACH);
            let polls =
                if in_main { storm.clone().survive().await } else { spawn(storm.clone().survive()).await.unwrap() };
            assert!(polls <= 8 * EACH + 1, "{polls} polls for {} wakes", 8 * EACH);
        });
    }
}

/// A wake during a poll causes exactly one more poll. The wake may concern state that the poll has already read.
#[test]
fn wake_during_poll_causes_one_more() {
    run(|| async {
        let polls = Arc::new(AtomicUsize::new(0));
        let wakes_itself = |polls: Arc<AtomicUsize>| {
            poll_fn(move |cx| {
                if polls.fetch_add(1, Ordering::SeqCst) == 0 {
                    cx.waker().wake_by_ref();
                    cx.waker().wake_by_ref();
                    let waker = cx.waker().clone();
                    std::thread::spawn(move || waker.wake()).join().unwrap();
                }
                Poll::<()>::Pending
            })
        };
        let task = spawn(wakes_itself(polls.clone()));
        for _ in 0..20 {
            yield_now().await;
        }
        assert_eq!(polls.load(Ordering::SeqCst), 2, "a task must be polled once more");
        task.abort();

        // The main future is polled once, once more for its wakes, and once for its end.
        let (mut polls, done) = (0, Arc::new(AtomicBool::new(false)));
        let mut start = Some(done.clone());
        let polls = poll_fn(|cx| {
            polls += 1;
            if let Some(done) = start.take() {
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
                let waker = cx.waker().clone();
                std::thread::spawn(move || waker.wake()).join().unwrap();
                let waker = cx.waker().clone();
                drop(spawn(async move {
                    for _ in 0..20 {
                        yield_now().await;
                    }
                    done.store(true, Ordering::SeqCst);
                    waker.wake();
                }));
            }
            if done.load(Ordering::SeqCst) { Poll::Ready(polls) } else { Poll::Pending }
        })
        .await;
        assert_eq!(polls, 3, "the main future must be polled once more");
    });
}

/// A waker does nothing once its task or its runtime is gone. A program may keep wakers longer than both.
#[test]
fn waker_may_outlive_its_task() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let ended = runtime.block_on(async { spawn(own_waker()).await.unwrap() });
        let aborted = runtime.block_on(async {
            let (flag, task) = waits_for_flag();
            let waker = flag.waker().await;
            task.abort();
            task.await.unwrap_err();
            waker
        });
        let main = runtime.block_on(own_waker());
        let waiting = runtime.block_on(async {
            let (flag, task) = waits_for_flag();
            drop(task);
            flag.waker().await
        });
        let wakers = [ended, aborted, main, waiting];
        let poke = |wakers: &[Waker]| {
            wakers.iter().for_each(Waker::wake_by_ref);
            let theirs: Vec<_> = wakers.to_vec();
            std::thread::spawn(move || theirs.into_iter().for_each(Waker::wake)).join().unwrap();
        };
        poke(&wakers);
        runtime.block_on(async {
            poke(&wakers);
            yield_now().await;
            poke(&wakers);
        });
        assert_eq!(runtime.handle().metrics().tasks_alive(), 1, "only the waiting task may be alive");
        drop(runtime);
        poke(&wakers);
        kittiwake::block_on(async { poke(&wakers) });
    });
}

/// A waker works in the destructor of a thread-local. The order in which thread-locals are destroyed is
/// unspecified.
#[test]
fn waker_works_in_thread_local_destructor() {
    thread_local! {
        static LAST_WORDS: RefCell<Vec<OnDrop>> = const { RefCell::new(Vec::new()) };
    }
    let at_the_end = |action: OnDrop| LAST_WORDS.with_borrow_mut(|words| words.push(action));
    run(move || async move {
        let (flag, task) = waits_for_flag();
        let waker = flag.waker().await;
        let (here, _peer) = pair_with_std();
        let mut here = Some(here);
        assert!(poll_read(here.as_ref().unwrap(), &Waker::from(counting_waker().1)).is_pending());
        let here = here.take().unwrap();
        std::thread::spawn(move || {
            at_the_end(OnDrop::new(move || {
                flag.set();
                waker.wake();
                drop(here);
                assert!(Handle::try_current().is_err(), "a thread that ends must have no runtime");
            }));
            // This thread has had a runtime of its own. The runtime's thread-locals are destroyed before
            // `LAST_WORDS`.
            kittiwake::block_on(yield_now());
        })
        .join()
        .unwrap();
        task.await.unwrap();
        assert_eq!(Handle::current().metrics().sources_registered(), 0, "the socket must be deregistered");
    });
}

/// A wake between the worker's last look and its sleep is not lost. The peer's delay varies with the round, so that
/// it meets every moment.
#[test]
fn wake_before_sleep_is_kept() {
    const HANDSHAKES: usize = 50_000;
    run(|| async {
        let shake = Arc::new(Handshake::default());
        let peer = std::thread::spawn({
            let shake = shake.clone();
            move || (1..=HANDSHAKES).for_each(|round| shake.answer(round))
        });
        for round in 1..=HANDSHAKES {
            shake.ask(round).await;
        }
        peer.join().unwrap();
    });
}

/// Of two wakes at the same time none is lost, even if the second one arrives while the worker takes the first.
#[test]
fn simultaneous_wakes_are_kept() {
    const ROUNDS: usize = 10_000;
    run(|| async {
        let both = Arc::new(async_lock::Barrier::new(2));
        let mut tasks = Vec::new();
        let mut peers = Vec::new();
        for side in 0..2 {
            let (shake, both) = (Arc::new(Handshake::default()), both.clone());
            peers.push(std::thread::spawn({
                let shake = shake.clone();
                move || (1..=ROUNDS).for_each(|round| shake.answer(round + side))
            }));
            tasks.push(spawn(async move {
                for round in 1..=ROUNDS {
                    shake.ask(round + side).await;
                    // Neither task continues alone. Another wake would also deliver a lost one.
                    both.wait().await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        for peer in peers {
            peer.join().unwrap();
        }
    });
}

/// A channel between a task and a thread loses no value.
#[test]
fn channel_loses_no_value() {
    run(|| async {
        let (ping, pings) = async_channel::bounded(1);
        let (pong, pongs) = async_channel::bounded(1);
        let thread = std::thread::spawn(move || {
            while let Ok(word) = pings.recv_blocking() {
                pong.send_blocking(word).unwrap();
            }
        });
        spawn(async move {
            for word in 0..20_000 {
                ping.send(word).await.unwrap();
                assert_eq!(pongs.recv().await.unwrap(), word);
                progress();
            }
        })
        .await
        .unwrap();
        thread.join().unwrap();
    });
}

/// `wake` does not run the task. The caller may hold a lock that the task takes.
#[test]
fn wake_never_runs_the_task() {
    run(|| async {
        let trace = Arc::new(Mutex::new(Vec::new()));
        let (flag, task) = waits_for_flag();
        let waker = flag.waker().await;
        let woken = spawn({
            let trace = trace.clone();
            async move {
                task.await.unwrap();
                trace.lock().unwrap().push("the woken task runs");
            }
        });
        yield_now().await;
        spawn({
            let trace = trace.clone();
            async move {
                let mut trace = trace.lock().unwrap();
                flag.set();
                waker.wake_by_ref();
                waker.wake();
                trace.push("wake has returned");
            }
        })
        .await
        .unwrap();
        woken.await.unwrap();
        assert_eq!(*trace.lock().unwrap(), ["wake has returned", "the woken task runs"]);
    });
}

/// A task whose future holds the task's own waker is freed when the runtime ends.
#[test]
fn task_with_own_waker_is_freed() {
    within(|| {
        let held = Arc::new(());
        let keeps_itself = |held: Arc<()>| {
            let mut own = Vec::new();
            poll_fn(move |cx| {
                own.push((held.clone(), cx.waker().clone()));
                Poll::<()>::Pending
            })
        };
        kittiwake::block_on(async {
            let aborted = spawn(keeps_itself(held.clone()));
            drop(spawn(keeps_itself(held.clone())));
            yield_now().await;
            aborted.abort();
            aborted.await.unwrap_err();
        });
        assert_eq!(Arc::strong_count(&held), 1, "a task was not freed");
    });
}

/// A task that waits on its own socket is freed with the runtime. The task holds the socket, the socket holds the
/// waker, and the waker holds the task.
#[test]
fn task_with_own_socket_is_freed() {
    within(|| {
        let held = Arc::new(());
        kittiwake::block_on(async {
            for _ in 0..3 {
                let (ours, peer) = pair_with_std();
                let held = held.clone();
                drop(spawn(async move {
                    let _held = (held, peer);
                    ours.readable().await
                }));
            }
            yield_now().await;
        });
        assert_eq!(Arc::strong_count(&held), 1, "a task was not freed");
    });
}

// ---- waking foreign wakers ----

/// A waker that panics costs neither the other wakers of its event their wake, nor the worker.
#[test]
fn panicking_waker_harms_no_other() {
    run(|| async {
        let ((shared, mut shared_peer), (other, mut other_peer)) = (pair_with_std(), pair_with_std());
        let panics = || Waker::from(Action::new(|| resume_unwind(Box::new("a waker's panic"))));
        let ((first, firsts), (second, seconds), (third, thirds)) =
            (counting_waker(), counting_waker(), counting_waker());
        // First the waker of the poll, then the list of waiting futures in order.
        assert!(poll_read(&shared, &panics()).is_pending());
        let mut waits: Vec<Pin<Box<dyn Future<Output = _> + '_>>> = Vec::new();
        for waker in [first, panics(), second, panics()] {
            let mut wait = Box::pin(shared.readable());
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            waits.push(wait);
        }
        assert!(poll_read(&other, &third).is_pending());
        shared_peer.write_all(b"x").unwrap();
        other_peer.write_all(b"x").unwrap();
        while thirds.get() == 0 || firsts.get() == 0 || seconds.get() == 0 {
            yield_now().await;
        }
        drop(waits);
        assert_eq!(spawn(async { 1 }).await.unwrap(), 1, "the runtime must continue");
        let mut buf = [0; 8];
        assert_eq!(shared.try_read(&mut buf).unwrap(), 1, "the socket must work");
    });
}

/// A waker that panics when the runtime ends costs the other wakers nothing.
#[test]
fn panicking_waker_survives_runtimes_end() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let sockets: Vec<_> = (0..5).map(|_| pair_with_std()).collect();
        let (waker, wakes) = counting_waker();
        runtime.block_on(async {
            for (index, (socket, _)) in sockets.iter().enumerate() {
                let panics = Waker::from(Action::new(|| resume_unwind(Box::new("a waker's panic"))));
                let waker = if index % 2 == 0 { &panics } else { &waker };
                assert!(poll_read(socket, waker).is_pending());
            }
        });
        drop(runtime);
        assert_eq!(wakes.get(), 2, "the two wakers that do not panic must be woken");
    });
}

/// A foreign waker may drop its own socket or another one of the same batch, spawn, and drop the last waker of a
/// task. A lock that the runtime held around it would be a deadlock.
#[test]
fn waker_may_reenter_when_woken() {
    run(|| async {
        let ((ours, mut peer), (other, mut other_peer)) = (pair_with_std(), pair_with_std());
        let ours = Arc::new(Mutex::new(Some(ours)));
        assert!(poll_read(&other, &counting_waker().0).is_pending());
        let spawned = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let reenters = Waker::from(Action::new({
            let (ours, spawned, done, last_waker) = (ours.clone(), spawned.clone(), done.clone(), last_waker().await);
            move || {
                drop(last_waker);
                drop(other);
                let spawned = spawned.clone();
                drop(spawn(async move { spawned.store(true, Ordering::SeqCst) }));
                drop(ours.lock().unwrap().take());
                assert!(Handle::current().metrics().sources_registered() <= 1);
                done.store(true, Ordering::SeqCst);
            }
        }));
        assert!(poll_read(ours.lock().unwrap().as_ref().unwrap(), &reenters).is_pending());
        peer.write_all(b"x").unwrap();
        other_peer.write_all(b"x").unwrap();
        while !(done.load(Ordering::SeqCst) && spawned.load(Ordering::SeqCst)) {
            yield_now().await;
        }
        assert_eq!(Handle::current().metrics().sources_registered(), 0);
    });
}

/// A foreign waker may also re-enter the runtime when it is dropped: when a newer waker replaces it, with the
/// future that waited, with its socket, or with the runtime.
#[test]
fn waker_may_reenter_when_dropped() {
    type Loses = fn(Arc<TcpStream>, Waker) -> Option<Arc<TcpStream>>;
    let ways: [(&str, Loses); 4] = [
        ("replaced", |socket, waker| {
            assert!(poll_read(&socket, &waker).is_pending());
            drop(waker);
            // The socket keeps the displaced waker of another task for a while, so twenty polls push out the oldest
            // one.
            for _ in 0..20 {
                let _ = poll_read(&socket, &counting_waker().0);
            }
            Some(socket)
        }),
        ("dropped with its future", |socket, waker| {
            let mut wait = Box::pin(socket.readable());
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            drop(wait);
            Some(socket)
        }),
        ("replaced in its future", |socket, waker| {
            let mut wait = Box::pin(socket.readable());
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            assert!(wait.as_mut().poll(&mut Context::from_waker(&counting_waker().0)).is_pending());
            drop(wait);
            Some(socket)
        }),
        ("dropped with its socket", |socket, waker| {
            assert!(poll_read(&socket, &waker).is_pending());
            drop(waker);
            drop(socket);
            None
        }),
    ];
    for (way, lose) in ways {
        run(move || async move {
            let (socket, _peer) = pair_with_std();
            let socket = Arc::new(socket);
            let (other, _other_peer) = pair_with_std();
            assert!(poll_read(&other, &counting_waker().0).is_pending());
            let dropped = Arc::new(AtomicBool::new(false));
            let on_drop = OnDrop::new({
                let (dropped, last_waker, same) = (dropped.clone(), last_waker().await, Arc::downgrade(&socket));
                move || {
                    drop((other, last_waker));
                    if let Some(same) = same.upgrade() {
                        let nothing = same.try_read(&mut [0; 1]).unwrap_err();
                        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
                    }
                    drop(spawn(pending::<()>()));
                    dropped.store(true, Ordering::SeqCst);
                }
            });
            let waker = Waker::from(Action::new(move || drop(on_drop)));
            let socket = lose(socket, waker);
            assert!(dropped.load(Ordering::SeqCst), "the waker must have been dropped: {way}");
            let left = usize::from(socket.is_some());
            assert_eq!(Handle::current().metrics().sources_registered(), left, "{way}");
        });
    }
}

/// A foreign waker may re-enter when the end of the runtime wakes it, and drop a socket that the runtime would
/// deregister next.
#[test]
fn waker_may_reenter_at_runtimes_end() {
    within(|| {
        let runtime = Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        // Not asserted in the waker: the runtime contains its panics.
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let _peers: Vec<_> = runtime.block_on(async {
            (0..3)
                .map(|_| {
                    let (socket, peer) = pair_with_std();
                    let (sockets_too, handle, seen) = (sockets.clone(), handle.clone(), seen.clone());
                    let reenters = Waker::from(Action::new(move || {
                        drop(sockets_too.lock().unwrap().pop());
                        // It locks the table that the dropped socket was in.
                        let registered = handle.metrics().sources_registered();
                        seen.lock().unwrap().push((registered < 3, handle.spawn(pending::<()>()).is_finished()));
                    }));
                    assert!(poll_read(&socket, &reenters).is_pending());
                    sockets.lock().unwrap().push(socket);
                    peer
                })
                .collect()
        });
        drop(runtime);
        assert!(sockets.lock().unwrap().is_empty(), "each waker must have been woken");
        assert_eq!(*seen.lock().unwrap(), [(true, true); 3], "the socket is deregistered, and the runtime has ended");
    });
}

/// A foreign waker that awaits a task may re-enter when the task ends.
#[test]
fn waker_may_reenter_at_tasks_end() {
    run(|| async {
        let (flag, mut task) = waits_for_flag();
        let own = flag.waker().await;
        let (spawned, is_spawned) = async_channel::bounded(1);
        let other = spawn(pending::<()>());
        let reenters = Waker::from(Action::new(move || {
            other.abort();
            drop(other);
            drop(spawn(async move { spawned.send(Handle::current().metrics().tasks_alive()).await.unwrap() }));
        }));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&reenters)).is_pending());
        flag.set();
        own.wake();
        is_spawned.recv().await.unwrap();
        assert!(task.is_finished());
        yield_now().await;
        assert_eq!(Handle::current().metrics().tasks_alive(), 0);
    });
}

// ---- helpers ----

/// A flag for which a task waits. Setting it does not wake the task.
#[derive(Clone, Default)]
struct Flag(Arc<FlagInner>);

#[derive(Default)]
struct FlagInner {
    set: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Flag {
    fn set(&self) {
        self.0.set.store(true, Ordering::SeqCst);
    }

    /// Returns the waker of the waiting task, once the task waits.
    async fn waker(&self) -> Waker {
        loop {
            let waker = self.0.waker.lock().unwrap().clone();
            match waker {
                Some(waker) => return waker,
                None => yield_now().await,
            }
        }
    }
}

fn waits_for_flag() -> (Flag, kittiwake::task::JoinHandle<()>) {
    let flag = Flag::default();
    let task = spawn(poll_fn({
        let flag = flag.clone();
        move |cx| {
            *flag.0.waker.lock().unwrap() = Some(cx.waker().clone());
            if flag.0.set.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        }
    }));
    (flag, task)
}

async fn own_waker() -> Waker {
    poll_fn(|cx| Poll::Ready(cx.waker().clone())).await
}

/// The last waker of a task that has ended. Dropping it frees the task's memory.
async fn last_waker() -> Waker {
    spawn(own_waker()).await.unwrap()
}

/// Threads that all wake one future. The future ends once it has seen the last value of each thread.
struct Storm {
    threads: usize,
    each: usize,
    values: Vec<AtomicUsize>,
}

impl Storm {
    fn new(threads: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { threads, each, values: (0..threads).map(|_| AtomicUsize::new(0)).collect() })
    }

    /// Returns the number of polls.
    async fn survive(self: Arc<Self>) -> usize {
        let (mut polls, mut started) = (0, false);
        poll_fn(|cx| {
            polls += 1;
            if !std::mem::replace(&mut started, true) {
                (0..self.threads).for_each(|thread| self.start(thread, cx.waker().clone()));
            }
            let all = self.values.iter().all(|value| value.load(Ordering::SeqCst) == self.each);
            if all { Poll::Ready(polls) } else { Poll::Pending }
        })
        .await
    }

    fn start(self: &Arc<Self>, thread: usize, waker: Waker) {
        let storm = self.clone();
        std::thread::spawn(move || {
            for number in 1..=storm.each {
                storm.values[thread].store(number, Ordering::SeqCst);
                waker.wake_by_ref();
            }
        });
    }
}

/// A pair of counters, one for each side, and the waker of the side that sleeps in a runtime.
#[derive(Default)]
struct Handshake {
    asked: AtomicUsize,
    answered: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Handshake {
    async fn ask(&self, round: usize) {
        self.asked.store(round, Ordering::SeqCst);
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            if self.answered.load(Ordering::SeqCst) == round { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        progress();
    }

    fn answer(&self, round: usize) {
        while self.asked.load(Ordering::SeqCst) < round {
            std::thread::yield_now();
        }
        for _ in 0..round % 512 {
            std::hint::spin_loop();
        }
        self.answered.store(round, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Polls a read of one byte with `waker`.
fn poll_read(stream: &TcpStream, waker: &Waker) -> Poll<std::io::Result<usize>> {
    Pin::new(&mut &*stream).poll_read(&mut Context::from_waker(waker), &mut [0])
}

/// A waker that calls a closure at its first wake. It drops the closure if it is never woken.
struct Action(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Action {
    fn new(action: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(action)))))
    }
}

impl Wake for Action {
    fn wake(self: Arc<Self>) {
        let action = self.0.lock().unwrap().take();
        if let Some(action) = action {
            action();
        }
    }
}

/// Calls a closure when it is dropped.
struct OnDrop(Option<Box<dyn FnOnce() + Send>>);

impl OnDrop {
    fn new(action: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(action)))
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}
