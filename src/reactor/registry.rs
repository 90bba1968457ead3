//! Registry: the half of a reactor that sockets share, with the table that maps its tokens to sources.
//!
//! # Opening
//! A multi-thread runtime opens the registries of its workers when it is built. The registry of a current-thread
//! runtime is opened by the first socket that has to wait, on the thread that is in `block_on`
//! ([`Registry::register`]). Until then it has no descriptor, and the worker blocks on a condition variable.
//!
//! # Turning
//! A current-thread runtime turns its reactor only while a thread is in its `block_on`. At other times the reactor is
//! idle, and a socket that is registered there moves to the reactor of the next thread on which it has to wait
//! ([`Registered::arm`] refuses that wait, and the socket is registered anew). On a thread without a runtime the socket
//! stays, and waits until a thread turns this reactor again or the reactor ends. When the reactor becomes idle, tasks
//! of other runtimes may be waiting in it. So [`Registry::stop_turning`] wakes all waiters, and those that another
//! runtime polls move their sockets. A runtime that shuts down turns its reactor a few more times, for the tasks that
//! it cancels.
//!
//! # Locks
//! The poll, then the table, then a source, never the other way round. A turn holds the poll, and then all three while
//! it dispatches its events. Registering holds the last two. The source's mutex orders two threads that race to
//! register one socket. The table's lock orders a thread that registers and the end of the reactor.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Wake;

use mio::Token;
use mio::unix::SourceFd;

use super::backend::{EDGE_TRIGGERED, INTEREST, descriptor};
use super::readiness::Direction;
use super::shared_poll::SharedPoll;
use super::slots::Slots;
use super::source;
use super::unpark::Unparker;
use crate::current::{Current, Entered};
use crate::sync::{Mutex, contain_all, unlock_fair, wake_all};

/// A source, registered with one of these reactors.
pub(super) type Source = source::Source<Registered>;

/// The shared half of a reactor.
#[derive(Default)]
pub(crate) struct Registry {
    /// Set when the registry is opened.
    mio: OnceLock<mio::Registry>,
    pub(super) poll: Mutex<SharedPoll<mio::Poll>>,
    /// The reactor of another worker reports the events of this one.
    pub(super) is_watched: AtomicBool,
    pub(super) table: Mutex<Table>,
    /// A thread turns this reactor for its runtime, and not only to end it.
    is_turned: AtomicBool,
    /// The registry of a worker, with which sockets register instead while that worker lives. Dangling unless this
    /// registry belongs to a `block_on` call beside the workers.
    worker: Weak<Registry>,
    pub(super) unparker: Arc<Unparker>,
}

/// How many sockets are shown under the lock at a time. They are few, because the caller asks the system for the
/// addresses of each.
const VISITED: usize = 64;

#[derive(Default)]
pub(super) struct Table {
    pub(super) slots: Slots<Socket>,
    /// The reactor has ended and registers no source any more. Set before its poll is closed.
    pub(super) closed: bool,
}

/// A socket in the table.
///
/// `fd` is open as long as the source is [registered](Registered): a [`Registration`](super::Registration) unregisters
/// before its socket is dropped or handed out. While the reactor ends, the descriptor may be closed already, or be
/// another socket's. That does no harm, because this reactor takes no new sockets then.
pub(super) struct Socket {
    pub(super) source: Arc<Source>,
    fd: RawFd,
}

/// A source's registration with a reactor. Small, because each connection has one.
pub(crate) struct Registered {
    registry: Arc<Registry>,
    token: usize,
}

impl Registry {
    /// The registry of a `block_on` call beside the worker that has the registry `worker`.
    pub(super) fn beside(worker: Weak<Self>) -> Self {
        Self { worker, ..Self::default() }
    }

    /// The registry that was entered on this thread.
    pub(super) fn current() -> Option<Arc<Self>> {
        Current::get(&CURRENT)
    }

    /// mio's registry, if this one has been opened.
    pub(super) fn opened(&self) -> Option<&mio::Registry> {
        self.mio.get()
    }

    /// Makes the poll, unless it is there.
    pub(crate) fn open(&self) -> io::Result<&mio::Registry> {
        let mut shared = self.poll.lock();
        if let Some(registry) = self.mio.get() {
            return Ok(registry);
        }
        let new = mio::Poll::new()?;
        let registry = new.registry().try_clone()?;
        self.unparker.open(&registry)?;
        shared.poll = Some(new);
        Ok(self.mio.get_or_init(|| registry))
    }

    /// Registers `source`, unless it is registered already. The registry of a `block_on` call beside the workers
    /// registers the source with the call's worker instead. Once that worker's reactor has ended, the source is
    /// registered here.
    pub(super) fn register(self: &Arc<Self>, source: &Arc<Source>, fd: RawFd) -> io::Result<()> {
        let worker = self.worker.upgrade();
        for registry in worker.iter().chain([self]) {
            if registry.register_unless_closed(source, fd)? {
                return Ok(());
            }
        }
        Err(no_runtime())
    }

    /// Returns `false` if the reactor has ended.
    fn register_unless_closed(self: &Arc<Self>, source: &Arc<Source>, fd: RawFd) -> io::Result<bool> {
        let mio = match self.mio.get() {
            Some(mio) => mio,
            // An ending worker wakes foreign wakers. Such a waker may poll an operation at once, on this thread. That
            // must not open a reactor that has ended.
            None if self.table.lock().closed => return Ok(false),
            None => self.open()?,
        };
        let mut table = self.table.lock();
        if table.closed {
            return Ok(false);
        }
        let Ok(token) = table.slots.insert(Socket { source: source.clone(), fd }) else {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the reactor's table of sockets is full; close some, or use more workers",
            ));
        };
        let registered = source.register(|| {
            mio.register(&mut SourceFd(&fd), Token(token), INTEREST)?;
            Ok(Registered { registry: self.clone(), token })
        });
        let unused = match registered {
            Ok(true) => None,
            // Another thread was first, or the kernel refused.
            Ok(false) | Err(_) => table.slots.remove(token),
        };
        drop(table);
        drop(unused);
        registered.map(|_| true)
    }

    /// Takes a socket out of the kernel's set. An error means that it is not there, for instance because its owner
    /// closed the descriptor. Nothing remains to be done then.
    fn leave_kernel(&self, fd: RawFd) {
        if let Some(mio) = self.mio.get() {
            let _ = mio.deregister(&mut SourceFd(&fd));
        }
    }

    /// Takes all other reactors out of the kernel's set of this one. Its worker is stuck and needs none of them.
    ///
    /// If that worker is not stuck after all, it may block now or soon, and rely on the reactors that it watches. So
    /// its block is ended after they are gone, and it watches them anew.
    pub(super) fn let_go(&self, workers: impl Iterator<Item = Arc<Self>>) {
        let Some(own) = self.opened() else { return };
        for worker in workers {
            let Some(fd) = worker.opened().and_then(descriptor) else { continue };
            // An error means that it is not in the set.
            let _ = own.deregister(&mut SourceFd(&fd));
        }
        self.unparker.wake_by_ref();
    }

    /// Gives memory back that a spike of sockets has left. The sockets of a `block_on` call beside the workers are
    /// registered with a worker. This does so for that worker's table too: the worker may do little itself, and then
    /// comes to it late.
    pub(crate) fn shrink(&self) {
        let worker = self.worker.upgrade();
        for registry in worker.as_deref().into_iter().chain([self]) {
            registry.table.lock().slots.shrink();
        }
    }

    /// Shows the sockets that are registered here, some at a time. With each comes whether it is a listener, and the
    /// data address of the waker of each task that waits for it. `visit` runs under a lock, and must run no foreign
    /// code. A socket leaves the table under that lock before its descriptor is closed, so the descriptor cannot be
    /// another socket's yet. Slots that the table gets meanwhile are left out. So this ends, however many sockets come.
    pub(crate) fn visit_sockets(&self, mut visit: impl FnMut(RawFd, bool, &[(Direction, usize)])) {
        let mut waiting = Vec::new();
        let end = self.table.lock().slots.capacity();
        for from in (0..end).step_by(VISITED) {
            let table = self.table.lock();
            table.slots.visit(from..end.min(from + VISITED), |socket| {
                waiting.clear();
                socket.source.visit_waiters(|direction, waker| waiting.push((direction, waker.data().addr())));
                visit(socket.fd, socket.source.load().is_listener(), &waiting);
            });
            // The worker, which needs the table for each turn, would mostly find it locked again.
            unlock_fair(table);
        }
    }

    /// Whether a thread turns this reactor for its runtime.
    pub(crate) fn is_turned(&self) -> bool {
        self.is_turned.load(Ordering::Relaxed)
    }

    /// How many sources are registered here.
    pub(crate) fn sources(&self) -> usize {
        self.table.lock().slots.len()
    }

    /// A thread begins to turn this reactor.
    pub(crate) fn start_turning(&self) {
        self.is_turned.store(true, Ordering::Relaxed);
    }

    /// No thread turns this reactor until [`start_turning`](Registry::start_turning), except for the end of its
    /// runtime. Wakes all tasks that wait for its sources: a task that another runtime runs then moves its socket to
    /// that runtime's reactor.
    pub(crate) fn stop_turning(&self) {
        // Before the sources' mutexes are taken: see the fourth race in `source`.
        self.is_turned.store(false, Ordering::Relaxed);
        let table = self.table.lock();
        if table.slots.len() == 0 {
            return;
        }
        let mut wakers = Vec::new();
        table.slots.iter().for_each(|socket| socket.source.take_waiters(&mut wakers));
        drop(table);
        wake_all(&mut wakers);
    }

    /// Ends the reactor. All tasks that wait for its sources are woken, and try again where they are polled.
    pub(super) fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        let sockets = table.slots.take_all();
        drop(table);
        let mut wakers = Vec::new();
        for socket in &sockets {
            let is_here = |registered: &Registered| ptr::eq(&raw const *registered.registry, self);
            if socket.source.detach_if(&mut wakers, is_here).is_some() {
                self.leave_kernel(socket.fd);
            }
        }
        wake_all(&mut wakers);
        // The last reference to a source drops wakers, which may panic.
        contain_all(|| drop(sockets));
        let poll = self.poll.lock().poll.take();
        drop(poll);
    }
}

impl Registered {
    /// Takes the socket out of the table and out of the kernel's set, unless the reactor has just ended. Closing the
    /// socket would not be enough: a duplicate of the descriptor keeps the kernel's entry alive.
    pub(super) fn leave(self) {
        if let Some(socket) = self.leave_table() {
            self.registry.leave_kernel(socket.fd);
        }
    }

    /// Takes the socket out of the kernel's set, if no thread turns the reactor and this thread has another one. Called
    /// under the source's mutex: otherwise another thread could begin to turn this reactor, register the socket with it
    /// while the kernel still has the old entry, and get EEXIST.
    pub(super) fn leave_if_idle_elsewhere(&self, fd: RawFd) -> bool {
        let leaves = self.is_idle_elsewhere();
        if leaves {
            self.registry.leave_kernel(fd);
        }
        leaves
    }

    /// Takes the socket out of the table, for the caller to drop outside the lock.
    pub(super) fn leave_table(&self) -> Option<Socket> {
        self.registry.table.lock().slots.remove(self.token)
    }

    /// Prepares for a wait on this thread. Returns `false` if no thread turns the reactor and this thread has another
    /// one, where the socket moves.
    pub(super) fn arm(&self, fd: RawFd) -> io::Result<bool> {
        if self.is_idle_elsewhere() {
            return Ok(false);
        }
        self.rearm(fd)?;
        Ok(true)
    }

    /// Whether no thread turns this reactor, and this thread would register its sockets with another one.
    fn is_idle_elsewhere(&self) -> bool {
        // A `block_on` call beside a worker registers with that worker, even before the worker has started and while it
        // ends. So the socket stays there then too.
        let is_here = |here: &Arc<Registry>| {
            Arc::ptr_eq(here, &self.registry) || ptr::eq(here.worker.as_ptr(), Arc::as_ptr(&self.registry))
        };
        !self.registry.is_turned.load(Ordering::Relaxed) && Registry::current().is_some_and(|here| !is_here(&here))
    }

    /// Has a backend without edges report readiness once more.
    pub(super) fn rearm(&self, fd: RawFd) -> io::Result<()> {
        let Some(mio) = self.registry.mio.get().filter(|_| !EDGE_TRIGGERED) else { return Ok(()) };
        match mio.reregister(&mut SourceFd(&fd), Token(self.token), INTEREST) {
            // After an error or a hang-up mio's poll(2) backend forgets the descriptor by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                mio.register(&mut SourceFd(&fd), Token(self.token), INTEREST)
            }
            result => result,
        }
    }
}

thread_local! {
    /// The registry with which sockets that wait on this thread register.
    static CURRENT: Current<Arc<Registry>> = const { Current::none() };
}

/// Makes `registry` the one of this thread, until the guard is dropped.
pub(crate) fn enter(registry: Arc<Registry>) -> Entered<Arc<Registry>> {
    Current::enter(&CURRENT, registry)
}

/// The error of an operation that has to wait on a thread that no runtime runs on.
pub(super) fn no_runtime() -> io::Error {
    io::Error::other(
        "this socket operation has to wait, and no kittiwake runtime is running on this thread; \
         call it inside kittiwake::block_on, or from a task spawned there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `block_on` call beside the workers gives back the memory that a spike of its sockets has left with its worker.
    #[test]
    fn call_shrinks_table_of_worker() {
        let worker = Arc::new(Registry::default());
        let call = Registry::beside(Arc::downgrade(&worker));
        let socket = || Socket { source: Arc::new(Source::new()), fd: -1 };
        let tokens: Vec<_> = (0..1_000).map(|_| worker.table.lock().slots.insert(socket()).ok().unwrap()).collect();
        let has_much = || worker.table.lock().slots.capacity() > 100;
        call.shrink();
        assert!(has_much() && worker.sources() == 1_000, "sockets in use were given back");
        tokens.iter().for_each(|token| drop(worker.table.lock().slots.remove(*token)));
        call.shrink();
        assert!(!has_much(), "the worker's table has room for more than 100 sockets");
    }
}
