//! Foreign code, which may panic: wakers and destructors. And the locks and atomics of what is modelled.
//!
//! A [`Waker`] and a future's destructor are foreign code: they may call back
//! into us, or panic. Two rules follow, and every room keeps them:
//!
//! 1. No foreign code runs while one of our locks or borrows is held. What
//!    leaves a table under its lock is woken or dropped after it. To wake a waker that [`is_ours`] is not foreign code: it
//!    queues a task. (It ends one that no worker takes any more; but queues close when all tasks are gone.)
//! 2. Where foreign code runs on the worker's own account, its panic ends there.
//!
//! # Models
//! The files in which threads meet without a lock take [`Mutex`] and [`atomic`] from here: in tests with `--cfg
//! kittiwake_loom` they are loom's, which tries all the ways in which the threads of a model can interleave.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::task::{RawWakerVTable, Waker};

#[cfg(not(all(test, kittiwake_loom)))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(all(test, kittiwake_loom)))]
pub(crate) use std::sync::atomic;

#[cfg(all(test, kittiwake_loom))]
pub(crate) use loom::sync::atomic;
#[cfg(all(test, kittiwake_loom))]
pub(crate) use modelled::Mutex;

/// loom's lock, with the face of the one that it stands for.
#[cfg(all(test, kittiwake_loom))]
mod modelled {
    use std::sync::PoisonError;

    use loom::sync::MutexGuard;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

thread_local! {
    /// What the waker does that was last [noted](note_ours) on this thread.
    static OURS: Cell<*const RawWakerVTable> = const { Cell::new(ptr::null()) };
}

/// Says that a future of the executor's is polled with `waker`, which is the executor's own.
#[inline]
pub(crate) fn note_ours(waker: &Waker) {
    OURS.set(ptr::from_ref(waker.vtable()));
}

/// Whether a waker that a future is being polled with is that of its task, or of its `block_on`, and no combinator's or other
/// executor's: then it can be woken by reference under a lock.
pub(crate) fn is_ours(waker: &Waker) -> bool {
    // Whatever has these functions is one of the executor's, of this task or of another of the same type.
    ptr::eq(waker.vtable(), OURS.get())
}

/// Wakes all of `wakers` in order and leaves it empty, with its memory kept.
///
/// One that panics has its panic reported by the panic hook and no further:
/// the others are still woken.
#[inline]
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    if !wakers.is_empty() {
        wake_each(wakers);
    }
}

#[inline(never)]
fn wake_each(wakers: &mut Vec<Waker>) {
    let mut pending = wakers.drain(..);
    while pending.len() > 0 {
        // `pending` stays outside the closure: were it dropped by an unwinding
        // panic, it would drop the wakers that are left instead of waking them.
        contain_all(|| pending.by_ref().for_each(Waker::wake));
    }
}

/// Runs foreign code and returns its panic, if it panics, as a value.
pub(crate) fn contain<T>(foreign: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    // Nothing of ours is borrowed by `foreign` (rule 1), so nothing of ours can
    // be seen half-changed afterwards.
    catch_unwind(AssertUnwindSafe(foreign))
}

/// Runs foreign code whose panic nobody wants to hear of beyond what the panic hook reports.
pub(crate) fn contain_all(foreign: impl FnOnce()) {
    // The payload is foreign too, and its destructor may panic in its turn. What that throws is not looked at.
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

    /// Panics when it is dropped, by which time it is itself the payload of a panic.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("a payload panicked"));
        }
    }

    #[test]
    fn only_the_wakers_of_the_future_that_is_polled_are_ours() {
        let waker = Waker::from(Arc::new(Count(AtomicUsize::new(0))));
        assert!(!is_ours(&waker), "no future has been polled yet");
        note_ours(&waker);
        assert!(is_ours(&waker.clone()));
        assert!(!is_ours(&Waker::from(Arc::new(Panicking))), "a combinator's");
    }

    #[test]
    fn a_payload_that_panics_is_contained_too() {
        contain_all(|| std::panic::resume_unwind(Box::new(Bomb)));
    }

    /// A batch of wakers belongs to many tasks; one broken one must not cost
    /// the others their wake-up.
    #[test]
    fn a_panicking_waker_does_not_keep_the_others_asleep() {
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
        assert_eq!(count.0.load(Ordering::Relaxed), 3, "every sound waker must be woken once");
    }
}
