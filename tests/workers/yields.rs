//! A task that gives way goes on after all that is ready on its worker, local and shared, and those that gave way before
//! it. If something else is always ready, it takes turns with that once those have run.
//!
//! In each test the other worker is blocked, so that it steals none of the tasks.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use kittiwake::future::Boxed;
use kittiwake::task::yield_now;
use kittiwake::{spawn, spawn_local};

use crate::support::{block_workers, use_up_budget, within, workers};

/// A way to let other tasks run.
type GiveWay = fn() -> Boxed<()>;

/// Yields, by this crate or by another one, or uses up the budget of a poll.
const WAYS: [(&str, GiveWay); 3] = [
    ("yields", || Box::pin(yield_now())),
    ("wakes itself", || Box::pin(futures_lite::future::yield_now())),
    ("uses up its budget", || Box::pin(use_up_budget())),
];

/// A shared task that gives way goes on after the local tasks that were ready, however many.
#[test]
fn shared_task_gives_way_to_local_ones() {
    for (name, give_way) in WAYS {
        for count in [1, 10, 200] {
            on_one_of_two_workers(move || async move {
                for round in 0..100 {
                    let ran = Arc::new(AtomicUsize::new(0));
                    for _ in 0..count {
                        let ran = ran.clone();
                        drop(spawn_local(async move { ran.fetch_add(1, Relaxed) }));
                    }
                    give_way().await;
                    assert_eq!(ran.load(Relaxed), count, "round {round} of a task that {name}");
                }
            });
        }
    }
}

/// A shared task that gives way goes on after a local task that another thread has woken before.
#[test]
fn shared_task_gives_way_to_posted_local_one() {
    for (name, give_way) in WAYS {
        for is_busy in [false, true] {
            on_one_of_two_workers(move || give_way_to_posted(name, give_way, is_busy));
        }
    }
}

async fn give_way_to_posted(name: &str, give_way: GiveWay, is_busy: bool) {
    if is_busy {
        // One of them is always ready.
        wake_each_other(&Arc::default(), |future| drop(spawn(future)));
    }
    let (post, posted) = async_channel::unbounded();
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let poster = thread::spawn(move || {
        for () in asked {
            post.try_send(()).expect("the local task is there");
            answer.send(()).expect("the task waits for the answer");
        }
    });
    let ran = Arc::new(AtomicUsize::new(0));
    let local = spawn_local({
        let ran = ran.clone();
        async move {
            while posted.recv().await.is_ok() {
                ran.fetch_add(1, Relaxed);
            }
        }
    });
    give_way().await;
    for round in 1..=200 {
        ask.send(()).expect("the thread is there");
        answered.recv().expect("the thread answers");
        give_way().await;
        assert_eq!(ran.load(Relaxed), round, "the local task was woken before a task that {name}");
    }
    drop(ask);
    poster.join().expect("the thread ends");
    local.await.expect("the local task ends");
}

/// Tasks that give way run in turn, local and shared ones: none runs twice before each of the others has run once. So it
/// is also beside tasks that wake each other for ever, of which one is always ready.
#[test]
fn tasks_that_give_way_run_in_turn() {
    for (name, give_way) in WAYS {
        for is_busy in [false, true] {
            on_one_of_two_workers(move || async move {
                let busy = Arc::new(AtomicUsize::new(0));
                if is_busy {
                    wake_each_other(&busy, |future| drop(spawn(future)));
                    wake_each_other(&busy, |future| drop(spawn_local(future)));
                }
                let turns: [Arc<AtomicUsize>; 6] = Default::default();
                for (index, turns) in turns.iter().enumerate() {
                    let turns = turns.clone();
                    let endless: Boxed<()> = Box::pin(async move {
                        loop {
                            turns.fetch_add(1, Relaxed);
                            give_way().await;
                        }
                    });
                    drop(if index % 2 == 0 { spawn(endless) } else { spawn_local(endless) });
                }
                // They begin in another order than they are spawned.
                give_way().await;
                let mut waits = Vec::new();
                for round in 1..200 {
                    let counts = turns.each_ref().map(|turns| turns.load(Relaxed));
                    assert_eq!(counts, [round; 6], "turns of tasks, local and shared, each of which {name}");
                    let before = busy.load(Relaxed);
                    give_way().await;
                    let waited = busy.load(Relaxed) - before;
                    // The rest of a batch, at most, when the first of them gives way.
                    assert!(waited <= 70, "round {round}: a task that {name} waited for {waited} polls of others");
                    assert!(!is_busy || waited > 0, "the others must be ready");
                    waits.push(waited);
                }
                waits.sort_unstable();
                assert!(waits[100] <= 16, "each task that {name} waits for {} polls of two or four", waits[100]);
            });
        }
    }
}

/// Tasks that have waited for all that was ready take turns with others: a task that becomes ready meanwhile does not wait
/// for all of them. If it is local, it waits for half a batch of them, at most.
#[test]
fn waiting_task_passes_tasks_that_give_way() {
    for (name, give_way) in WAYS {
        on_one_of_two_workers(move || async move {
            let (busy, turns): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
            wake_each_other(&busy, |future| drop(spawn(future)));
            for _ in 0..1000 {
                let turns = turns.clone();
                drop(spawn(async move {
                    loop {
                        turns.fetch_add(1, Relaxed);
                        give_way().await;
                    }
                }));
            }
            for round in 0..100 {
                let before = turns.load(Relaxed);
                for _ in 0..6 {
                    spawn_local(async {}).await.expect("the local task ends");
                }
                let waited = turns.load(Relaxed) - before;
                assert!(
                    waited <= 450 || round == 0,
                    "round {round}: six tasks waited for {waited}, each of which {name}"
                );
            }
            assert!(turns.load(Relaxed) > 2000, "they must run");
        });
    }
}

/// Runs the task of `test` on the one of two workers that is not blocked.
#[track_caller]
fn on_one_of_two_workers<F>(test: impl FnOnce() -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    within(move || {
        let runtime = workers(2);
        let _blocked = block_workers(runtime.handle(), 1);
        let task = runtime.handle().spawn(test());
        runtime.block_on(task).expect("the laws hold");
    });
}

/// Spawns two tasks that wake each other for ever and count their polls.
fn wake_each_other(polls: &Arc<AtomicUsize>, spawn: impl Fn(Boxed<()>)) {
    let wakers: Arc<Mutex<VecDeque<Waker>>> = Arc::default();
    for _ in 0..2 {
        let (wakers, polls) = (wakers.clone(), polls.clone());
        spawn(Box::pin(poll_fn(move |cx| {
            polls.fetch_add(1, Relaxed);
            let mut wakers = wakers.lock().unwrap();
            // The first poll of the first one finds no other.
            if let Some(other) = wakers.pop_front() {
                other.wake();
            }
            wakers.push_back(cx.waker().clone());
            Poll::Pending
        })));
    }
}
