//! Unpark: ends a worker's block, from any thread.
//!
//! A worker blocks in the poll of its reactor, or, while its reactor is not open, on a condition variable. Both are in
//! [`Reactor::turn`](super::Reactor::turn).
//!
//! # The reactor's backend
//! Where it reports edges, mio's own waker ends the block. mio's poll(2) backend takes the token of a pending wake
//! before it empties the descriptor behind it (mio 1.2). A wake that comes in between leaves its token and no
//! readable descriptor, and the next block does not end. So there the unparker is a pair of sockets, watched as any
//! socket is: a byte that was written stays readable until it is read.
//!
//! # The race
//! The worker may open its reactor while another thread is about to unpark it by the condition variable. That loses
//! nothing. A thread unparks a worker only after it has changed something that the worker looks at before each block,
//! under a lock or by an atomic swap. If the worker looks after the change, it does not block. The worker
//! opens its reactor before its last look. So if that look misses the change, the reactor was open before the change,
//! and the other thread sees it open. [`let_go`](super::registry::Registry::let_go) changes nothing that the worker
//! looks at, but then the reactor is open.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::task::Wake;
use std::time::Duration;

use super::backend::{EDGE_TRIGGERED, UNPARK};
use crate::sync::{Condvar, Mutex};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

/// Ends the block of one worker. The executor and the timers know it as a [`Waker`](std::task::Waker), and know nothing
/// else of the reactor.
pub(crate) struct Unparker<B = Backend> {
    /// Set when the worker's reactor is opened.
    backend: OnceLock<B>,
    /// An unpark has come by the condition variable, and has ended no block yet.
    notified: Mutex<bool>,
    condvar: Condvar,
}

/// Ends the block of a worker in its poll.
pub(crate) trait EndBlock: Send + Sync {
    fn end_block(&self) -> io::Result<()>;
}

/// Lives as long as the poll: on epoll a `mio::Waker` that is dropped takes its last wake-up with it.
pub(crate) enum Backend {
    Waker(mio::Waker),
    Pair { sender: UnixStream, receiver: UnixStream },
}

impl Unparker {
    /// From now on the worker blocks in the poll of `registry`.
    pub(super) fn open(&self, registry: &Registry) -> io::Result<()> {
        self.set_backend(Backend::new(registry)?);
        Ok(())
    }

    /// Has the reactor report the next unpark, after it has reported one. mio's waker needs nothing for that.
    pub(super) fn drain(&self, registry: &Registry) -> io::Result<()> {
        let Some(Backend::Pair { receiver, .. }) = self.backend.get() else { return Ok(()) };
        // Until the pair is empty: bytes that are left would be reported again.
        while matches!((&*receiver).read(&mut [0; 64]), Ok(64)) {}
        // The kernel reports a byte whether it is written before or after this call.
        registry.reregister(&mut SourceFd(&receiver.as_raw_fd()), UNPARK, Interest::READABLE)
    }
}

impl<B> Unparker<B> {
    /// From now on `backend` ends the blocks. A reactor is opened once: by the thread that builds the runtime, or by
    /// the thread that turns it.
    pub(crate) fn set_backend(&self, backend: B) {
        let _ = self.backend.set(backend);
    }

    /// Blocks the worker, whose reactor is not open, until it is unparked or `timeout` is over. Returns whether it was
    /// unparked.
    pub(crate) fn park(&self, timeout: Option<Duration>) -> bool {
        let mut notified = self.notified.lock();
        match timeout {
            _ if *notified => {}
            // The worker only looks.
            Some(Duration::ZERO) => {}
            Some(timeout) => notified = self.condvar.wait_for(notified, timeout),
            None => {
                while !*notified {
                    notified = self.condvar.wait(notified);
                }
            }
        }
        std::mem::take(&mut *notified)
    }
}

impl<B> Default for Unparker<B> {
    fn default() -> Self {
        Self { backend: OnceLock::new(), notified: Mutex::new(false), condvar: Condvar::default() }
    }
}

impl Backend {
    fn new(registry: &Registry) -> io::Result<Self> {
        if EDGE_TRIGGERED {
            return Ok(Self::Waker(mio::Waker::new(registry, UNPARK)?));
        }
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        registry.register(&mut SourceFd(&receiver.as_raw_fd()), UNPARK, Interest::READABLE)?;
        Ok(Self::Pair { sender, receiver })
    }
}

impl EndBlock for Backend {
    fn end_block(&self) -> io::Result<()> {
        match self {
            Backend::Waker(waker) => waker.wake(),
            Backend::Pair { sender, .. } => (&*sender).write(&[1]).map(drop),
        }
    }
}

impl<B: EndBlock + 'static> Wake for Unparker<B> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // An error has no one to go to: the callers are wakers. None is expected. mio resets an eventfd whose counter
        // is full, and a pair that is full is readable already.
        if let Some(backend) = self.backend.get() {
            let _ = backend.end_block();
            return;
        }
        *self.notified.lock() = true;
        self.condvar.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a reactor, a park with a timeout of zero says once that an unpark has come. Otherwise a worker that
    /// spins would lose the unpark, and block until a deadline that is no longer its first.
    #[test]
    fn look_tells_of_an_unpark() {
        let unparker = Arc::new(Unparker::<Backend>::default());
        assert!(!unparker.park(Some(Duration::ZERO)), "nobody has unparked it");
        unparker.wake_by_ref();
        assert!(unparker.park(Some(Duration::ZERO)), "the unpark came before the look");
        assert!(!unparker.park(Some(Duration::ZERO)), "one unpark, one look");
    }
}
