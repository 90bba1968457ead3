//! Live threads: a count of threads for which a caller can wait until a deadline.
//!
//! `join` of std has no deadline, and waits for the destructors of the thread's thread-locals, which are foreign code.
//! So a thread counts as live until those have run. Its [`Guard`] is the first thread-local that it uses, and the
//! platforms that we know drop the thread-locals in the reverse order of their first use. std does not promise this
//! order. In another order the count is too small while other destructors run, and the wait is still bounded.
//!
//! Each thread calls the [`Hooks`] of its runtime's user: `start` before its work, and `stop` after it.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::process;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::sync::contain;

/// A count of threads that have not ended.
#[derive(Clone, Default)]
pub(crate) struct LiveThreads {
    shared: Arc<Shared>,
    hooks: Hooks,
}

/// The functions that each thread calls.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) start: Option<Hook>,
    pub(crate) stop: Option<Hook>,
}

pub(crate) type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Shared {
    count: Mutex<usize>,
    /// Notified when a thread has ended.
    ended: Condvar,
}

impl LiveThreads {
    /// No threads yet. Those to come will call `hooks`.
    pub(crate) fn new(hooks: Hooks) -> Self {
        Self { shared: Arc::default(), hooks }
    }

    /// Starts a thread that runs `body`, and counts it until the destructors of its thread-locals have run.
    pub(crate) fn start(&self, name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        *self.shared.count.lock() += 1;
        // If the thread cannot be started, std drops its closure, and with it the guard.
        let (guard, hooks) = (Guard(self.shared.clone()), self.hooks.clone());
        thread::Builder::new().name(name).spawn(move || {
            GUARD.set(Some(guard));
            call(hooks.start.as_ref());
            body();
            call(hooks.stop.as_ref());
        })
    }

    /// Waits until all threads have ended, at most until `deadline`. Returns how many have not.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> usize {
        let mut count = self.shared.count.lock();
        while *count > 0 {
            match deadline {
                Some(deadline) if self.shared.ended.wait_until(&mut count, deadline).timed_out() => break,
                Some(_) => {}
                None => self.shared.ended.wait(&mut count),
            }
        }
        *count
    }
}

/// Calls a hook. After a panic the thread could not do its work, and others would wait for it for ever. So the process
/// ends.
fn call(hook: Option<&Hook>) {
    if let Some(hook) = hook {
        if contain(|| hook()).is_err() {
            // The panic hook has reported the reason.
            process::abort();
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, stop } = self;
        f.debug_struct("Hooks").field("start", &start.is_some()).field("stop", &stop.is_some()).finish()
    }
}

/// A thread that counts as live.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.ended.notify_all();
    }
}

thread_local! {
    /// The guard of this thread, if it is counted.
    static GUARD: Cell<Option<Guard>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    /// Waits in its drop, until the other end of the channel is gone.
    struct Waits(Receiver<()>);

    impl Drop for Waits {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    thread_local! {
        static WAITS: Cell<Option<Waits>> = const { Cell::new(None) };
    }

    /// A caller that waits must not return while a destructor of a thread-local runs, and not wait for it for ever.
    #[test]
    fn thread_lives_until_its_destructors_end() {
        let live = LiveThreads::default();
        let (end, ended) = channel::<()>();
        let waits = Waits(ended);
        let thread = live.start("waits".to_owned(), move || WAITS.set(Some(waits))).unwrap();
        while !thread.is_finished() {
            thread::yield_now();
        }
        assert_eq!(live.wait(Some(Instant::now())), 1, "the destructor still runs");
        drop(end);
        assert_eq!(live.wait(None), 0);
    }

    /// A thread that never began must not be waited for.
    #[test]
    fn thread_that_cannot_start_is_not_counted() {
        let live = LiveThreads::default();
        let refused = live.clone();
        // std panics at the NUL, before it asks the system for a thread.
        thread::spawn(move || drop(refused.start("\0".to_owned(), || ()))).join().unwrap_err();
        assert_eq!(live.wait(None), 0);
    }
}
