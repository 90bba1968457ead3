//! Sets of tasks: joined as they end, aborted together.

mod support;

use std::future::{Future, pending, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use kittiwake::runtime::Handle;
use kittiwake::task::{JoinSet, yield_now};
use support::{Counted, counting_waker, hold, one_worker, run, within};

/// What takes long must not hold up what is done: a server reaps its connections as they end.
#[test]
fn tasks_are_joined_in_the_order_in_which_they_end() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..5).map(|member| gated(&mut set, member)).collect();
        let mut joined = Vec::new();
        for member in [3, 0, 4, 1, 2] {
            gates[member].send(()).await.unwrap();
            joined.push(set.join_next().await.unwrap().unwrap());
        }
        assert_eq!(joined, [3, 0, 4, 1, 2]);
        assert!(set.join_next().await.is_none());
    });
}

/// The order is of the ends also for those that ended before anybody looked.
#[test]
fn tasks_that_ended_before_the_first_look_are_joined_in_the_order_of_their_ends() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..5).map(|member| gated(&mut set, member)).collect();
        for member in [3, 0, 4, 1, 2] {
            gates[member].send(()).await.unwrap();
            for _ in 0..3 {
                yield_now().await;
            }
        }
        let mut joined = Vec::new();
        while let Some(result) = set.try_join_next() {
            joined.push(result.unwrap());
        }
        assert_eq!(joined, [3, 0, 4, 1, 2]);
    });
}

/// One failing member must not hide the others' results, nor its own failure.
#[test]
fn errors_are_joined_like_outputs() {
    run(|| async {
        let mut set = JoinSet::new();
        let fine = set.spawn(ready(1)).id();
        let panics = set.spawn(async { panic!("on purpose") }).id();
        let aborted = set.spawn(pending());
        aborted.abort();
        let (mut outputs, mut panicked, mut cancelled) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(result) = set.join_next_with_id().await {
            match result {
                Ok(output) => outputs.push(output),
                Err(error) if error.is_panic() => panicked.push(error.id()),
                Err(error) => cancelled.push(error.id()),
            }
        }
        assert_eq!(outputs, [(fine, 1)]);
        assert_eq!(panicked, [panics]);
        assert_eq!(cancelled, [aborted.id()]);
    });
}

/// A loop that reaps what is done between two accepts must not wait, and must not miss anything.
#[test]
fn try_join_next_takes_what_has_ended_and_does_not_wait() {
    run(|| async {
        let mut set = JoinSet::new();
        assert!(set.try_join_next().is_none(), "an empty set has nothing to join");
        let open = gated(&mut set, 1);
        assert!(set.try_join_next().is_none(), "the task has not begun");
        yield_now().await;
        assert!(set.try_join_next().is_none(), "the task waits");
        assert_eq!(set.len(), 1, "looking takes nothing out");
        open.send(()).await.unwrap();
        let joined = loop {
            match set.try_join_next() {
                Some(result) => break result.unwrap(),
                None => yield_now().await,
            }
        };
        assert_eq!(joined, 1);
        assert!(set.is_empty() && set.try_join_next().is_none());
    });
}

#[test]
fn an_empty_set_has_nothing_to_wait_for() {
    run(|| async {
        let mut set = JoinSet::<()>::new();
        assert!(set.is_empty());
        assert!(set.join_next().await.is_none(), "the first time");
        assert!(set.join_next().await.is_none(), "and again");
        assert!(set.join_next_with_id().await.is_none());
        set.abort_all();
        set.detach_all();
        set.shutdown().await;
        drop(set);
    });
}

/// A set that was empty is not at its end: it is filled again.
#[test]
fn an_emptied_set_can_be_filled_again() {
    run(|| async {
        let mut set = JoinSet::default();
        for round in 0..3 {
            set.spawn(ready(round));
            assert_eq!(set.join_next().await.unwrap().unwrap(), round);
            assert!(set.join_next().await.is_none());
        }
    });
}

#[test]
fn abort_all_ends_every_member_and_leaves_it_to_be_joined() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        set.spawn(ready(()));
        for _ in 0..10 {
            set.spawn(hold(Counted(dropped.clone())));
        }
        yield_now().await;
        set.abort_all();
        assert_eq!(set.len(), 11, "they stay in the set");
        let (mut outputs, mut cancelled) = (0, 0);
        while let Some(result) = set.join_next().await {
            match result {
                Ok(()) => outputs += 1,
                Err(error) => cancelled += usize::from(error.is_cancelled()),
            }
        }
        assert_eq!((outputs, cancelled), (1, 10), "who had ended keeps its output");
        assert_eq!(dropped.load(Ordering::SeqCst), 10);
    });
}

/// After `shutdown` what the tasks held is free: a port can be bound again.
#[test]
fn shutdown_returns_when_every_member_is_gone() {
    run(|| async {
        let held = Arc::new(());
        let mut set = JoinSet::new();
        for _ in 0..10 {
            set.spawn(hold(held.clone()));
        }
        yield_now().await;
        set.shutdown().await;
        assert_eq!(Arc::strong_count(&held), 1, "a member still holds something");
        assert!(set.is_empty());
    });
}

/// Half a shutdown is still the order to end.
#[test]
fn a_dropped_shutdown_has_aborted_and_loses_nobody() {
    run(|| async {
        let mut set = JoinSet::new();
        for _ in 0..3 {
            set.spawn(pending::<()>());
        }
        yield_now().await;
        assert!(poll_once(set.shutdown()).is_none(), "the members have not been run yet");
        assert_eq!(set.len(), 3, "who was not joined stays in the set");
        while let Some(result) = set.join_next().await {
            assert!(result.unwrap_err().is_cancelled());
        }
    });
}

/// A set that is dropped, for instance with the task that owns it, leaves nobody behind.
#[test]
fn a_dropped_set_aborts_its_members() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        for _ in 0..10 {
            set.spawn(hold(Counted(dropped.clone())));
        }
        yield_now().await;
        drop(set);
        yield_now().await;
        assert_eq!(dropped.load(Ordering::SeqCst), 10);
        assert_eq!(Handle::current().metrics().tasks_alive(), 0);
    });
}

#[test]
fn detached_members_go_on() {
    run(|| async {
        let (report, ended) = async_channel::unbounded();
        let mut set = JoinSet::new();
        for member in 0..10 {
            let report = report.clone();
            set.spawn(async move {
                yield_now().await;
                report.send(member).await.unwrap();
            });
        }
        set.detach_all();
        assert!(set.is_empty() && set.join_next().await.is_none());
        drop(set);
        drop(report);
        let mut seen = 0;
        while ended.recv().await.is_ok() {
            seen += 1;
        }
        assert_eq!(seen, 10, "each member must come to its end");
    });
}

/// A `select!` polls `join_next` and drops it whenever something else is ready: no result may go with it.
#[test]
fn a_dropped_join_next_loses_no_member() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..20).map(|member| gated(&mut set, member)).collect();
        let mut joined = Vec::new();
        for gate in gates {
            assert!(poll_once(set.join_next()).is_none(), "nobody has ended");
            gate.send(()).await.unwrap();
            for _ in 0..3 {
                yield_now().await;
            }
            joined.extend(poll_once(set.join_next()).map(|result| result.unwrap().unwrap()));
        }
        while let Some(result) = set.join_next().await {
            joined.push(result.unwrap());
        }
        assert_eq!(joined, (0..20).collect::<Vec<_>>());
    });
}

/// A cancelled wait leaves its waker behind: the set must wake the newer one.
#[test]
fn the_newest_waiter_is_woken() {
    run(|| async {
        let mut set = JoinSet::new();
        let open = gated(&mut set, 1);
        let (old_waker, old) = counting_waker();
        assert!(pin!(set.join_next()).poll(&mut Context::from_waker(&old_waker)).is_pending());
        let (new_waker, new) = counting_waker();
        assert!(pin!(set.join_next()).poll(&mut Context::from_waker(&new_waker)).is_pending());
        open.send(()).await.unwrap();
        for _ in 0..3 {
            yield_now().await;
        }
        assert!(new.get() >= 1, "the newest waiter must be woken");
        assert_eq!(old.get(), 0, "the old one is gone");
        assert!(poll_once(set.join_next()).is_some());
    });
}

/// An event at one member must not cost a look at all the others.
#[test]
fn ten_thousand_members_are_joined_each_once() {
    const MEMBERS: usize = 10_000;
    run(|| async {
        let mut set = JoinSet::new();
        for member in 0..MEMBERS {
            set.spawn(async move {
                for _ in 0..member % 3 {
                    yield_now().await;
                }
                member
            });
        }
        assert_eq!(set.len(), MEMBERS);
        let mut seen = vec![false; MEMBERS];
        while let Some(result) = set.join_next().await {
            let member = result.unwrap();
            assert!(!std::mem::replace(&mut seen[member], true), "member {member} was joined twice");
        }
        assert!(seen.iter().all(|seen| *seen), "a member was never joined");
        assert_eq!(Handle::current().metrics().tasks_alive(), 0);
    });
}

#[test]
fn local_members_need_not_be_send() {
    run(|| async {
        let shared = Rc::new(());
        let mut set = JoinSet::new();
        for _ in 0..3 {
            let shared = shared.clone();
            set.spawn_local(async move {
                yield_now().await;
                Rc::strong_count(&shared)
            });
        }
        while let Some(result) = set.join_next().await {
            assert!(result.unwrap() >= 2);
        }
        assert_eq!(Rc::strong_count(&shared), 1, "the members' futures must be dropped");
    });
}

/// A set may be moved to another task, or to another thread with its own executor, and joined there.
#[test]
fn a_set_can_be_joined_anywhere() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..3).map(|member| gated(&mut set, member)).collect();
        let thread = std::thread::spawn(move || {
            futures_lite::future::block_on(async {
                let mut joined = 0;
                while let Some(result) = set.join_next().await {
                    result.unwrap();
                    joined += 1;
                }
                joined
            })
        });
        for gate in gates {
            gate.send(()).await.unwrap();
        }
        while !thread.is_finished() {
            yield_now().await;
        }
        assert_eq!(thread.join().unwrap(), 3);
    });
}

/// The set is joined on one thread while its only member ends on another: whichever comes first, the end is heard of.
#[test]
fn no_end_is_lost_to_a_set_that_is_joined_on_another_thread() {
    run(|| async {
        let (give, given) = async_channel::bounded::<JoinSet<usize>>(1);
        let (back, returned) = async_channel::bounded(1);
        let thread = std::thread::spawn(move || {
            while let Ok(mut set) = given.recv_blocking() {
                let joined = futures_lite::future::block_on(set.join_next());
                back.send_blocking((set, joined.unwrap().unwrap())).unwrap();
            }
        });
        let mut set = JoinSet::new();
        for round in 0..3_000 {
            set.spawn(async move {
                for _ in 0..round % 400 {
                    yield_now().await;
                }
                round
            });
            give.send(set).await.unwrap();
            let joined;
            (set, joined) = returned.recv().await.unwrap();
            assert_eq!(joined, round);
        }
        drop(give);
        thread.join().unwrap();
    });
}

/// The waker of whoever waits for the set is foreign code: it may look at the set at once.
#[test]
fn a_waker_may_use_the_set_that_wakes_it() {
    struct Joins(Mutex<JoinSet<usize>>, Mutex<Option<usize>>);
    impl Wake for Joins {
        fn wake(self: Arc<Self>) {
            *self.1.lock().unwrap() = self.0.lock().unwrap().try_join_next().map(Result::unwrap);
        }
    }
    run(|| async {
        let mut set = JoinSet::new();
        let open = gated(&mut set, 4);
        let joins = Arc::new(Joins(Mutex::new(set), Mutex::default()));
        let waker = Waker::from(joins.clone());
        assert!(pin!(joins.0.lock().unwrap().join_next()).poll(&mut Context::from_waker(&waker)).is_pending());
        open.send(()).await.unwrap();
        while joins.1.lock().unwrap().is_none() {
            yield_now().await;
        }
        assert_eq!(*joins.1.lock().unwrap(), Some(4));
    });
}

/// The runtime may end first: then its members have been cancelled, and nobody waits for ever.
#[test]
fn the_members_of_a_set_that_outlives_its_runtime_are_cancelled() {
    within(|| {
        let runtime = one_worker();
        let mut set = JoinSet::new();
        runtime.block_on(async {
            set.spawn(ready(()));
            set.spawn(pending());
            yield_now().await;
        });
        drop(runtime);
        futures_lite::future::block_on(async {
            let mut outcomes = Vec::new();
            while let Some(result) = set.join_next().await {
                outcomes.push(result.is_ok());
            }
            outcomes.sort_unstable();
            assert_eq!(outcomes, [false, true]);
        });
    });
}

/// Adds a task that ends with `member` once the returned gate is opened.
fn gated(set: &mut JoinSet<usize>, member: usize) -> async_channel::Sender<()> {
    let (open, gate) = async_channel::bounded(1);
    set.spawn(async move {
        gate.recv().await.expect("the gate is opened");
        member
    });
    open
}

/// Polls a future once and drops it.
fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future: Pin<&mut F> = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// A member that was detached is no business of the set any more: its end wakes nobody there.
#[test]
fn the_end_of_a_detached_member_does_not_wake_the_set() {
    run(|| async {
        let mut set = JoinSet::new();
        let detached = set.spawn(yield_now());
        set.detach_all();
        set.spawn(pending());
        let (waker, wakes) = counting_waker();
        assert!(pin!(set.join_next()).poll(&mut Context::from_waker(&waker)).is_pending());
        while !detached.is_finished() {
            yield_now().await;
        }
        assert_eq!(wakes.get(), 0, "the set was woken for a task that is not in it");
    });
}
