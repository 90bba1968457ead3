//! Local tasks, and handles that are awaited elsewhere.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

use crate::support::*;
use crate::{SEVERAL, assert_cancelled};
use futures_lite::future;
use kittiwake::task::{JoinHandle, yield_now};
use kittiwake::{block_on, spawn, spawn_local};

/// A local task is polled and dropped on its own thread only. Its contents are not `Send`: even a drop on another
/// thread would be a race.
#[test]
fn local_task_stays_on_its_thread() {
    const EACH: usize = 30;
    const MESSAGES: usize = 20;
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let tally = Arc::new(Tally::default());
            let locals = on_each_worker(runtime.handle(), count, {
                let tally = tally.clone();
                move |_| {
                    let one = |_| {
                        let (notify, notified) = async_channel::unbounded();
                        let (thread_bound, tally) = (ThreadBound::new(&tally), tally.clone());
                        let task = spawn_local(async move {
                            while let Ok(()) = notified.recv().await {
                                thread_bound.check();
                                tally.messages.fetch_add(1, SeqCst);
                            }
                            thread_bound.check();
                        });
                        (notify, task)
                    };
                    (0..EACH).map(one).collect::<Vec<_>>()
                }
            });
            let (senders, tasks): (Vec<_>, Vec<_>) = locals.into_iter().flatten().unzip();
            // Tasks on all workers send the messages, and so does this thread.
            let sending_tasks: Vec<_> = (0..count)
                .map(|_| {
                    let senders = senders.clone();
                    runtime.handle().spawn(async move {
                        for _ in 0..MESSAGES {
                            senders.iter().for_each(|notify| notify.try_send(()).unwrap());
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for _ in 0..MESSAGES {
                senders.iter().for_each(|notify| notify.try_send(()).unwrap());
            }
            sending_tasks.into_iter().for_each(|task| future::block_on(task).expect("the task sends every message"));
            let expected = (count + 1) * MESSAGES * EACH * count;
            runtime.block_on(until(|| tally.messages.load(SeqCst) == expected));
            // A third of the tasks end by themselves, a third are aborted from another thread, and a third are
            // alive when the runtime ends.
            let (mut left, mut aborts) = (Vec::new(), Vec::new());
            for (i, (notify, task)) in senders.into_iter().zip(tasks).enumerate() {
                match i % 3 {
                    0 => {
                        drop(notify);
                        future::block_on(task).expect("the task ends by itself");
                    }
                    1 if i % 2 == 0 => {
                        task.abort();
                        assert_cancelled(task);
                        drop(notify);
                    }
                    1 => aborts.push((task, notify)),
                    _ => left.push((task, notify)),
                }
            }
            let aborter = runtime.handle().spawn(async move {
                for (task, _tell) in aborts {
                    task.abort();
                    assert!(task.await.expect_err("the task was aborted").is_cancelled());
                }
            });
            future::block_on(aborter).expect("the tasks are cancelled");
            assert_eq!(
                tally.drops.load(SeqCst),
                EACH * count - left.len(),
                "the tasks that have ended must be dropped"
            );
            drop(runtime);
            assert_eq!(tally.drops.load(SeqCst), EACH * count, "the end of the runtime must drop the other tasks");
            assert_eq!(tally.wrong_threads.load(SeqCst), 0, "a local task was polled or dropped on another thread");
            left.into_iter().for_each(|(task, _)| assert_cancelled(task));
        }
    });
}

/// A local task of a `block_on` call is dropped on the calling thread before the call returns.
#[test]
fn calls_local_tasks_end_with_it() {
    within(|| {
        let runtime = workers(2);
        let held = Rc::new(());
        let (notify, notified) = async_channel::unbounded::<()>();
        for panics in [false, true] {
            let tasks = Rc::new(Cell::new(Vec::new()));
            let result = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let task = |held: Rc<()>| {
                        let notified = notified.clone();
                        spawn_local(async move {
                            let _held = held;
                            while notified.recv().await.is_ok() {}
                        })
                    };
                    tasks.set((0..10).map(|_| task(held.clone())).collect());
                    yield_now().await;
                    // The workers are waking these tasks when the call ends.
                    for _ in 0..2 {
                        let notify = notify.clone();
                        drop(spawn(async move { (0..200).for_each(|_| notify.try_send(()).unwrap()) }));
                    }
                    yield_now().await;
                    if panics {
                        resume_unwind(Box::new("on purpose"));
                    }
                });
            }));
            assert_eq!(result.is_err(), panics);
            assert_eq!(Rc::strong_count(&held), 1, "a local task outlives its call");
            tasks.take().into_iter().for_each(assert_cancelled);
        }
    });
}

/// A runtime of one worker has no thread of its own. Its local tasks belong to the `block_on` call in which they
/// were spawned, and do not move to the thread of the next call.
#[test]
fn local_tasks_never_change_thread() {
    within(|| {
        let runtime = one_worker();
        let tally = Arc::new(Tally::default());
        let (wakers, sent) = runtime.block_on(async {
            let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
            for _ in 0..10 {
                let (thread_bound, wakers) = (ThreadBound::new(&tally), wakers.clone());
                drop(spawn_local(poll_fn(move |cx| {
                    thread_bound.check();
                    wakers.lock().unwrap().push(cx.waker().clone());
                    Poll::<()>::Pending
                })));
            }
            let sent = spawn(async {
                yield_now().await;
                yield_now().await;
                here()
            });
            yield_now().await;
            (wakers, sent)
        });
        assert_eq!(tally.drops.load(SeqCst), 10, "local tasks must end with their call");
        let other = thread::spawn(move || {
            // These wakes arrive after the tasks have ended.
            wakers.lock().unwrap().iter().for_each(Waker::wake_by_ref);
            let thread = runtime.block_on(async move {
                settle().await;
                sent.await.expect("the operation continues")
            });
            assert_eq!(thread, here(), "a task that is not local must move to the new thread");
            drop(runtime);
            drop(wakers);
        });
        other.join().expect("the other thread");
        assert_eq!((tally.drops.load(SeqCst), tally.wrong_threads.load(SeqCst)), (10, 0));
    });
}

/// A handle may be awaited on any worker, in a `block_on` call, and outside any runtime.
#[test]
fn handle_is_awaitable_anywhere() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let (hand, handed) = async_channel::unbounded::<(usize, JoinHandle<usize>)>();
            // The tasks run on all workers and some are local. They end before, while or after they are awaited.
            on_each_worker(runtime.handle(), count, move |worker| {
                for task in 0..200 {
                    let number = worker * 200 + task;
                    let body = async move {
                        for _ in 0..number % 7 {
                            yield_now().await;
                        }
                        if number % 10 == 0 {
                            resume_unwind(Box::new(number));
                        }
                        number
                    };
                    let handle = if number % 3 == 0 { spawn_local(body) } else { spawn(body) };
                    hand.try_send((number, handle)).unwrap();
                }
            });
            let received = Arc::new(AtomicUsize::new(0));
            let await_handles = || {
                let (handed, received) = (handed.clone(), received.clone());
                async move {
                    while let Ok((number, task)) = handed.recv().await {
                        match task.await {
                            Ok(output) => assert_eq!((output, number % 10 > 0), (number, true)),
                            Err(error) => assert_eq!(error.into_panic().downcast_ref(), Some(&number)),
                        }
                        received.fetch_add(1, SeqCst);
                        yield_now().await;
                    }
                }
            };
            let on_workers: Vec<_> = (0..count).map(|_| runtime.handle().spawn(await_handles())).collect();
            let outside = [await_handles(), await_handles()]
                .map(|await_handles| thread::spawn(|| future::block_on(await_handles)));
            let elsewhere = [await_handles()].map(|await_handles| thread::spawn(|| block_on(await_handles)));
            runtime.block_on(await_handles());
            outside
                .into_iter()
                .chain(elsewhere)
                .for_each(|thread| thread.join().expect("the awaiting task sees the right outputs"));
            on_workers
                .into_iter()
                .for_each(|task| future::block_on(task).expect("the awaiting task sees the right outputs"));
            assert_eq!(received.load(SeqCst), count * 200, "each handle must have returned its output");
        }
    });
}

/// Counts the events of local tasks.
#[derive(Default)]
struct Tally {
    messages: AtomicUsize,
    drops: AtomicUsize,
    /// Polls and drops on a thread other than the task's own.
    wrong_threads: AtomicUsize,
}

/// Remembers its thread, and counts its uses on another.
struct ThreadBound {
    own_thread: ThreadId,
    tally: Arc<Tally>,
    _not_send: Rc<()>,
}

impl ThreadBound {
    fn new(tally: &Arc<Tally>) -> Self {
        Self { own_thread: here(), tally: tally.clone(), _not_send: Rc::default() }
    }

    fn check(&self) {
        self.tally.wrong_threads.fetch_add(usize::from(here() != self.own_thread), SeqCst);
    }
}

impl Drop for ThreadBound {
    fn drop(&mut self) {
        self.check();
        self.tally.drops.fetch_add(1, SeqCst);
    }
}
