//! Blocking work: closures that may wait for what no reactor watches, on threads of their own.
//!
//! A closure is a task of one poll ([`executor::job`]), so it has the handle, the id and the containment of any
//! other; only that its runtime's [pool] runs it, and not a worker.
//!
//! Each runtime has a pool, and no thread before the first closure.

mod pool;

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::sync::Arc;

pub(crate) use pool::Pool;

use crate::executor::{self, Home, JoinHandle};

/// Runs a closure that blocks, on a thread where that holds nobody up.
///
/// For what waits without a future: files, name look-ups, locks that are held for long, a database's blocking client; and for
/// computing that takes more than some tens of microseconds. The runtime starts a thread when it has no idle one, up to
/// [`max_blocking_threads`](crate::runtime::Builder::max_blocking_threads), then closures wait for their turn, in order. A
/// thread that has been idle for 10 seconds ends.
///
/// A panic of the closure ends it alone, and the handle says so. The closure is on no worker: `spawn` and
/// [`Handle::current`](crate::runtime::Handle::current) panic in it, so take a [`Handle`](crate::runtime::Handle) along.
///
/// # When it ends
/// A closure that runs cannot be ended from outside. [`abort`](JoinHandle::abort) drops one that still waits for a thread, when
/// its turn comes. When the runtime ends, those that wait are dropped and their handles say that they were cancelled; those
/// that run go on, and nobody waits for them but [`Runtime::shutdown_timeout`](crate::runtime::Runtime::shutdown_timeout).
/// Their handles give their output all the same. The end of the process ends them where they are.
///
/// A closure that waits for another one's end may wait for ever, when all threads do so.
///
/// # Errors
/// If the system starts no thread and none is there, the handle gives a [`JoinError`](crate::task::JoinError) that says so.
/// If there are some, the closure waits for one of those.
///
/// # Panics
/// Outside a runtime. Use [`Handle::spawn_blocking`](crate::runtime::Handle::spawn_blocking) there.
///
/// # Examples
/// ```
/// kittiwake::block_on(async {
///     let manifest = kittiwake::spawn_blocking(|| std::fs::read_to_string("Cargo.toml"));
///     assert!(manifest.await.unwrap()?.contains("kittiwake"));
///     std::io::Result::Ok(())
/// }).unwrap();
/// ```
#[track_caller]
pub fn spawn_blocking<C, T>(closure: C) -> JoinHandle<T>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    // Not `unwrap_or_else`: the panic is to point to the caller.
    let Some(handle) = try_spawn_blocking(closure) else {
        panic!(
            "kittiwake::spawn_blocking was called outside a runtime: call it inside kittiwake::block_on or \
             Runtime::block_on, or use Handle::spawn_blocking from elsewhere"
        );
    };
    handle
}

/// As [`spawn_blocking`]; `None` outside a runtime.
#[track_caller]
pub(crate) fn try_spawn_blocking<C, T>(closure: C) -> Option<JoinHandle<T>>
where
    C: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Some(Pool::current()?.spawn(&executor::current_home()?, closure, Location::caller()))
}

impl Pool {
    /// The pool of the runtime that this thread is in.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Runs `closure` on one of these threads; its task stands in the list of `home`.
    pub(crate) fn spawn<C, T>(
        self: &Arc<Self>,
        home: &Home,
        closure: C,
        location: &'static Location<'static>,
    ) -> JoinHandle<T>
    where
        C: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let pool = self.clone();
        let submit = move |job| pool.submit(job);
        let job = if size_of::<C>() > executor::LARGE {
            executor::job(home, Box::new(closure), location, submit)
        } else {
            executor::job(home, closure, location, submit)
        };
        job.start()
    }
}

thread_local! {
    /// Without a destructor, so that a runtime may be dropped by another thread-local's; [`Entered`] leaves it empty.
    static CURRENT: ManuallyDrop<RefCell<Option<Arc<Pool>>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

/// While this lives, blocking work made on this thread goes to its pool.
pub(crate) struct Entered {
    previous: Option<Arc<Pool>>,
}

/// Makes `pool` the one for blocking work made on this thread.
pub(crate) fn enter(pool: Arc<Pool>) -> Entered {
    Entered { previous: CURRENT.with(|current| current.replace(Some(pool))) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let ours = CURRENT.with(|current| current.replace(self.previous.take()));
        drop(ours);
    }
}
