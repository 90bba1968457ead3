//! Calls of foreign code, and the lock and atomics that loom can replace.
//!
//! Wakers and destructors of futures are foreign code: they may panic, or call the runtime again. Every module keeps
//! two rules:
//!
//! 1. Foreign code runs while no lock and no borrow of the runtime is held. A waker or value that leaves a table under
//!    its lock is woken or dropped after the lock is released. A waker for which [`is_executors`] is true may be woken
//!    by reference under a lock: that queues a task and runs no foreign code. (A closed queue would drop the task
//!    instead, but queues close only when all their tasks are gone.)
//! 2. A panic of foreign code that the worker calls itself ends at that call ([`contain`], [`contain_all`],
//!    [`wake_all`]).
//!
//! # Models
//! The executor's queues, its count of idle workers and its list of tasks, the reactor's shared poll and unparker, and
//! the shutdown request take [`Mutex`], [`Condvar`] and [`atomic`] from here. In tests with `--cfg kittiwake_loom`
//! these are loom's, and loom tries all interleavings of a model's threads.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
#[cfg(feature = "tracing")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{RawWakerVTable, Waker};
use std::time::Duration;

#[cfg(not(all(test, kittiwake_loom)))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(all(test, kittiwake_loom)))]
use parking_lot::MutexGuard;
#[cfg(not(all(test, kittiwake_loom)))]
pub(crate) use std::sync::atomic;

#[cfg(all(test, kittiwake_loom))]
pub(crate) use loom::sync::atomic;
#[cfg(all(test, kittiwake_loom))]
pub(crate) use modelled::{Condvar, Mutex, model};

/// Ends a worker's block after a while. The executor sets such timers, and the reactor has them.
pub(crate) trait UnparkTimer: Send + Sync {
    /// Ends the worker's block once `after` is over, which is less than a second. An earlier setting is void. Returns
    /// `false` if the system cannot.
    fn set(&self, after: Duration) -> bool;

    /// Cancels that.
    fn cancel(&self);
}

/// A condition variable, with the interface of std's.
#[cfg(not(all(test, kittiwake_loom)))]
#[derive(Default)]
pub(crate) struct Condvar(parking_lot::Condvar);

#[cfg(not(all(test, kittiwake_loom)))]
impl Condvar {
    pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(&mut guard);
        guard
    }

    pub(crate) fn wait_for<'a, T>(&self, mut guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        let _ = self.0.wait_for(&mut guard, timeout);
        guard
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }
}

/// Releases a lock to a thread that waits for it, if there is one. For a thread that is about to take it again, and
/// would keep the other one waiting.
#[cfg(not(all(test, kittiwake_loom)))]
pub(crate) fn unlock_fair<T>(guard: parking_lot::MutexGuard<'_, T>) {
    parking_lot::MutexGuard::unlock_fair(guard);
}

/// loom tries all orders anyway.
#[cfg(all(test, kittiwake_loom))]
pub(crate) fn unlock_fair<T>(guard: loom::sync::MutexGuard<'_, T>) {
    drop(guard);
}

/// loom's lock and condition variable with the interface of those above.
#[cfg(all(test, kittiwake_loom))]
mod modelled {
    use std::sync::PoisonError;
    use std::time::Duration;

    use loom::sync::MutexGuard;

    /// Runs a model. Each interleaving has two preemptions at most: with three, most models take hours and find no
    /// more.
    pub(crate) fn model(run: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(run);
    }

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    #[derive(Default)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
        }

        /// A wait with a timeout may end at any time. This one ends at once.
        pub(crate) fn wait_for<'a, T>(&self, guard: MutexGuard<'a, T>, _timeout: Duration) -> MutexGuard<'a, T> {
            guard
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}

thread_local! {
    /// The vtable of the waker that was last [noted](note_executors) on this thread.
    static EXECUTORS: Cell<*const RawWakerVTable> = const { Cell::new(ptr::null()) };
}

/// Notes that `waker` is the executor's own. The executor calls this before it polls a future with it.
pub(crate) fn note_executors(waker: &Waker) {
    EXECUTORS.set(ptr::from_ref(waker.vtable()));
}

/// No waker is the executor's on this thread, until the next one is [noted](note_executors). A thread that has left its
/// runtime may poll with the waker of another runtime's task.
pub(crate) fn forget_executors() {
    EXECUTORS.set(ptr::null());
}

/// Set once the wake of a task may call a subscriber of `tracing`.
#[cfg(feature = "tracing")]
static IS_TRACED: AtomicBool = AtomicBool::new(false);

/// Notes that a subscriber of `tracing` will see the wakes of a task that is about to be made. To wake it is foreign
/// code, so no waker counts as the executor's from now on. The wakers that have counted so far belong to tasks that no
/// subscriber sees.
#[cfg(feature = "tracing")]
pub(crate) fn note_traced() {
    IS_TRACED.store(true, Ordering::Relaxed);
}

/// Whether `waker` is the executor's: it has the vtable that was last noted on this thread. That is the waker of the
/// task or of the `block_on` call that is polled here, or of another task of the same type.
///
/// False for the wakers of combinators and of other executors: those may be woken only outside every lock (rule 1).
pub(crate) fn is_executors(waker: &Waker) -> bool {
    #[cfg(feature = "tracing")]
    if IS_TRACED.load(Ordering::Relaxed) {
        return false;
    }
    ptr::eq(waker.vtable(), EXECUTORS.get())
}

/// Wakes all of `wakers` in order. Leaves it empty and keeps its memory.
///
/// If a waker panics, only the panic hook reports it, and the others are still woken.
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    if !wakers.is_empty() {
        wake_each(wakers.drain(..));
    }
}

/// As [`wake_all`], for wakers that are in no list.
pub(crate) fn wake_each(wakers: impl IntoIterator<Item = Waker>) {
    let (mut pending, mut is_done) = (wakers.into_iter(), false);
    while !is_done {
        // `pending` stays outside the closure. A panic would drop it with the closure, and drop the remaining wakers
        // without waking them.
        contain_all(|| {
            pending.by_ref().for_each(Waker::wake);
            is_done = true;
        });
    }
}

/// Runs foreign code and returns its panic as an error.
pub(crate) fn contain<T>(foreign: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    // Foreign code runs outside our locks and borrows (rule 1), so a panic leaves our state whole.
    catch_unwind(AssertUnwindSafe(foreign))
}

/// Runs foreign code and drops its panic. The panic hook has reported it.
pub(crate) fn contain_all(foreign: impl FnOnce()) {
    // The payload is foreign too: its destructor may panic. The payload of that panic is leaked, or it could panic
    // again.
    let Err(payload) = contain(foreign) else { return };
    if let Err(another) = contain(|| drop(payload)) {
        std::mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Panicking;
    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new("a waker panicked"));
        }
    }

    /// The payload of a panic, whose drop panics again.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("a payload panicked"));
        }
    }

    /// Only the waker that was noted may be woken under a lock.
    #[test]
    fn only_noted_waker_is_executors() {
        let waker = Waker::from(Arc::new(Count(AtomicUsize::new(0))));
        assert!(!is_executors(&waker), "no waker has been noted yet");
        note_executors(&waker);
        assert!(is_executors(&waker.clone()));
        assert!(!is_executors(&Waker::from(Arc::new(Panicking))), "a combinator's waker was taken for the executor's");
    }

    /// A panic of the payload's destructor must not leave the call either.
    #[test]
    fn panicking_payload_is_contained() {
        contain_all(|| std::panic::resume_unwind(Box::new(Bomb)));
    }

    /// A batch of wakers belongs to many tasks. One that panics must not cost the others their wake-up.
    #[test]
    fn panicking_waker_spares_the_others() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let mut wakers = vec![
            Waker::from(count.clone()),
            Waker::from(Arc::new(Panicking)),
            Waker::from(count.clone()),
            Waker::from(Arc::new(Panicking)),
            Waker::from(count.clone()),
        ];
        wake_all(&mut wakers);
        assert!(wakers.is_empty(), "every waker must be used up");
        assert_eq!(count.0.load(Ordering::Relaxed), 3, "every other waker must be woken once");
    }
}
