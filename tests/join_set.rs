//! `JoinSet`: its tasks are joined in the order of their ends, and aborted together.

mod support;

use std::future::{Future, pending, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use kittiwake::runtime::Handle;
use kittiwake::task::{JoinSet, yield_now};
use kittiwake::time::{Duration, Instant, sleep};
use support::baseline::heap_bytes;
use support::{Counted, PATIENCE, counting_waker, hold, in_own_process, one_worker, panic_of, run, until, within};

/// Tasks are joined in the order in which they end. A long one does not delay the others.
#[test]
fn tasks_are_joined_in_end_order() {
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

/// Tasks that ended before the first join are also joined in the order of their ends.
#[test]
fn earlier_ends_are_joined_in_order() {
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

/// `join_all` returns the outputs of all tasks, of closures among them, in the order in which they end.
#[test]
fn join_all_returns_outputs_in_order() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..3).map(|member| gated(&mut set, member)).collect();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        set.spawn_blocking(move || {
            ended.recv().expect("the gate of the closure");
            3
        });
        let joining = kittiwake::spawn(set.join_all());
        for member in [2, 0, 1] {
            gates[member].send(()).await.unwrap();
            for _ in 0..3 {
                yield_now().await;
            }
        }
        assert!(!joining.is_finished(), "the closure runs");
        end.send(()).expect("the closure waits");
        assert_eq!(joining.await.unwrap(), [2, 0, 1, 3]);
        assert!(JoinSet::<u8>::new().join_all().await.is_empty());
    });
}

/// `join_all` goes on with the panic of a task, says that a task was aborted, and aborts the other tasks.
#[test]
fn join_all_panics_for_failed_tasks() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        set.spawn(hold(Counted(dropped.clone())));
        set.spawn(async { std::panic::resume_unwind(Box::new("on purpose")) });
        let panic = kittiwake::spawn(set.join_all()).await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
        until(|| dropped.load(Ordering::SeqCst) == 1).await;
        let mut set = JoinSet::new();
        set.spawn(pending::<()>()).abort();
        let panic = kittiwake::spawn(set.join_all()).await.unwrap_err().into_panic();
        let text = panic.downcast_ref::<String>().expect("a sentence");
        assert!(text.contains("JoinSet::join_all") && text.contains("cancelled"), "{text}");
    });
}

/// `poll_join_next` wakes the waker of its last poll, and returns what `join_next` would.
#[test]
fn poll_join_next_wakes_its_last_waker() {
    run(|| async {
        let mut set = JoinSet::new();
        let gate = gated(&mut set, 7);
        let ((first, first_wakes), (last, last_wakes)) = (counting_waker(), counting_waker());
        assert!(set.poll_join_next(&mut Context::from_waker(&first)).is_pending(), "the task waits");
        assert!(set.poll_join_next(&mut Context::from_waker(&last)).is_pending());
        gate.send(()).await.unwrap();
        until(|| last_wakes.get() == 1).await;
        assert_eq!(first_wakes.get(), 0, "the waker was replaced");
        let joined = set.poll_join_next(&mut Context::from_waker(&last));
        assert!(matches!(joined, Poll::Ready(Some(Ok(7)))), "{joined:?}");
        assert!(matches!(set.poll_join_next(&mut Context::from_waker(&last)), Poll::Ready(None)));
    });
}

/// A closure of a set panics like any task. Outside a runtime the panic names the method.
#[test]
fn closures_belong_to_their_set() {
    run(|| async {
        let mut set = JoinSet::<()>::new();
        set.spawn_blocking(|| std::panic::resume_unwind(Box::new("on purpose")));
        let error = set.join_next().await.expect("a task").unwrap_err();
        assert!(error.is_panic() && set.is_empty());
    });
    let panic = panic_of(|| drop(JoinSet::new().spawn_blocking(|| ())));
    assert!(panic.contains("JoinSet::spawn_blocking was called outside a runtime"), "{panic}");
}

/// Errors are joined like outputs. A member that fails hides neither its own error nor the outputs of others.
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

/// `try_join_next` takes a member that has ended and does not wait.
#[test]
fn try_join_next_never_waits() {
    run(|| async {
        let mut set = JoinSet::new();
        assert!(set.try_join_next().is_none(), "an empty set must have nothing to join");
        let open = gated(&mut set, 1);
        assert!(set.try_join_next().is_none(), "the task has not begun");
        yield_now().await;
        assert!(set.try_join_next().is_none(), "the task must wait");
        assert_eq!(set.len(), 1, "a failed try must remove no member");
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

/// An empty set returns at once from every call.
#[test]
fn empty_set_never_waits() {
    run(|| async {
        let mut set = JoinSet::<()>::new();
        assert!(set.is_empty());
        assert!(set.join_next().await.is_none(), "an empty set must return none");
        assert!(set.join_next().await.is_none(), "an empty set must return none again");
        assert!(set.join_next_with_id().await.is_none());
        set.abort_all();
        set.detach_all();
        set.shutdown().await;
        drop(set);
    });
}

/// A set that was emptied can be filled again.
#[test]
fn emptied_set_can_be_refilled() {
    run(|| async {
        let mut set = JoinSet::default();
        for round in 0..3 {
            set.spawn(ready(round));
            assert_eq!(set.join_next().await.unwrap().unwrap(), round);
            assert!(set.join_next().await.is_none());
        }
    });
}

/// `abort_all` ends every member, and the members can still be joined.
#[test]
fn aborted_members_can_be_joined() {
    run(|| async {
        let dropped = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        set.spawn(ready(()));
        for _ in 0..10 {
            set.spawn(hold(Counted(dropped.clone())));
        }
        yield_now().await;
        set.abort_all();
        assert_eq!(set.len(), 11, "aborted members must stay in the set");
        let (mut outputs, mut cancelled) = (0, 0);
        while let Some(result) = set.join_next().await {
            match result {
                Ok(()) => outputs += 1,
                Err(error) => cancelled += usize::from(error.is_cancelled()),
            }
        }
        assert_eq!((outputs, cancelled), (1, 10), "a member that had ended must keep its output");
        assert_eq!(dropped.load(Ordering::SeqCst), 10);
    });
}

/// `shutdown` returns once every member is gone. A port that a member held can then be bound again.
#[test]
fn shutdown_waits_for_every_member() {
    run(|| async {
        let held = Arc::new(());
        let mut set = JoinSet::new();
        for _ in 0..10 {
            set.spawn(hold(held.clone()));
        }
        yield_now().await;
        set.shutdown().await;
        assert_eq!(Arc::strong_count(&held), 1, "a member was not dropped");
        assert!(set.is_empty());
    });
}

/// A `shutdown` that is dropped has aborted the members, and they stay in the set.
#[test]
fn dropped_shutdown_keeps_aborted_members() {
    run(|| async {
        let mut set = JoinSet::new();
        for _ in 0..3 {
            set.spawn(pending::<()>());
        }
        yield_now().await;
        assert!(poll_once(set.shutdown()).is_none(), "no member has run yet");
        assert_eq!(set.len(), 3, "a member that was not joined must stay in the set");
        while let Some(result) = set.join_next().await {
            assert!(result.unwrap_err().is_cancelled());
        }
    });
}

/// A dropped set aborts its members.
#[test]
fn dropped_set_aborts_its_members() {
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

/// Detached members continue without the set.
#[test]
fn detached_members_continue() {
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
        assert_eq!(seen, 10, "each member must end by itself");
    });
}

/// A dropped `join_next` loses no member. A `select!` drops it whenever another branch is ready.
#[test]
fn dropped_join_next_loses_no_member() {
    run(|| async {
        let mut set = JoinSet::new();
        let gates: Vec<_> = (0..20).map(|member| gated(&mut set, member)).collect();
        let mut joined = Vec::new();
        for gate in gates {
            assert!(poll_once(set.join_next()).is_none(), "no member has ended");
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

/// The waker that polled `join_next` last is woken.
#[test]
fn newest_waiter_is_woken() {
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
        assert_eq!(old.get(), 0, "the old waiter is gone");
        assert!(poll_once(set.join_next()).is_some());
    });
}

/// A task that waits in a set hears that all members were detached: there is nothing to wait for any more.
#[test]
fn detached_set_wakes_its_waiter() {
    run(|| async {
        let mut set = JoinSet::new();
        let _open = gated(&mut set, 1);
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        assert!(set.poll_join_next(&mut cx).is_pending());
        set.detach_all();
        assert_eq!(wakes.get(), 1, "the waiter must be woken");
        assert!(matches!(set.poll_join_next(&mut cx), Poll::Ready(None)), "the set is empty");
    });
}

/// Ten thousand members are joined once each. The end of one must not cost a poll of all others.
#[test]
fn ten_thousand_members_are_joined_once() {
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

/// Local members need not be `Send`.
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

/// A set can be joined in another task, or on another thread in another executor.
#[test]
fn set_can_be_joined_anywhere() {
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

/// The end of a member is not lost to a set that is joined on another thread, whichever comes first.
#[test]
fn joining_thread_misses_no_end() {
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

/// A waker may use the set that wakes it, because it is foreign code.
#[test]
fn waker_may_use_its_set() {
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

/// The members of a set that outlives its runtime are cancelled.
#[test]
fn members_end_with_their_runtime() {
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

/// Adds a task that returns `member` once the returned gate is opened.
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

/// The end of a detached member does not wake the set.
#[test]
fn detached_member_wakes_no_set() {
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
        assert_eq!(wakes.get(), 0, "a task outside the set woke it");
    });
}

/// A set that lives on keeps little memory of a spike that has left it: of its members, and of the notes of their ends.
/// It works as before then.
#[test]
fn spike_leaves_no_memory_in_set() {
    const TASKS: usize = 100_000;
    const SLACK: usize = 128 << 10;
    in_own_process("spike_leaves_no_memory_in_set", || {
        kittiwake::block_on(async {
            let mut set = JoinSet::new();
            let mut before = 0;
            for (tasks, detach) in [(100, false), (TASKS, false), (TASKS, true), (TASKS, false)] {
                (0..tasks).for_each(|number| drop(set.spawn(async move { number })));
                let most = heap_bytes();
                if detach {
                    set.detach_all();
                } else {
                    let mut sum = 0;
                    for _ in 0..tasks {
                        sum += set.join_next().await.expect("a task is left").expect("it ends");
                    }
                    assert_eq!(sum, tasks * (tasks - 1) / 2, "each result comes once");
                }
                assert!(set.is_empty(), "all tasks have left");
                if tasks < TASKS {
                    before = heap_bytes();
                }
                // Those that were detached run now. The worker gives the memory of its own tables back a little later.
                let end = Instant::now() + PATIENCE / 2;
                while heap_bytes() > before + SLACK {
                    let left = heap_bytes() - before;
                    assert!(Instant::now() < end, "{left} bytes are left of {}", most - before);
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
    });
}
