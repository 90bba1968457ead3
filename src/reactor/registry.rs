//! Registry: the half of a reactor that sockets share, with the table that maps its tokens to sources.
//!
//! # Opening
//! A multi-thread runtime opens the registries of its workers when it is built. The registry of a current-thread
//! runtime is opened by the first socket that has to wait, on the thread that is in `block_on`
//! ([`Registry::register`]). Until then it has no descriptor, and the worker blocks on a condition variable.
//!
//! # Turning
//! A current-thread runtime turns its reactor only while a thread is in its `block_on`. A socket that has to wait
//! elsewhere meanwhile moves to the reactor of the thread that polls it ([`Registered::arm`]). So that a task which
//! waits already hears of it, [`Registry::stop_turning`] wakes all waiters: they are polled again, and move.
//!
//! # Locks
//! The table, then a source, never the other way round. Registering holds both, so that two threads that race to
//! register one socket see each other. Dispatching holds the table once for a batch of events.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use mio::Token;
use mio::unix::SourceFd;
use parking_lot::Mutex;

use super::backend::{EDGE_TRIGGERED, INTEREST};
use super::slots::Slots;
use super::source;
use super::unpark::Unparker;
use crate::current::{Current, Entered};
use crate::sync::{contain_all, wake_all};

/// A source, registered with one of these reactors.
pub(super) type Source = source::Source<Registered>;

/// The shared half of a reactor.
#[derive(Default)]
pub(crate) struct Registry {
    /// Set when the registry is opened.
    mio: OnceLock<mio::Registry>,
    /// `None` until the registry is opened, and once its worker has ended. The worker holds the lock only while it
    /// turns.
    pub(super) poll: Mutex<Option<mio::Poll>>,
    pub(super) table: Mutex<Table>,
    /// A thread turns this reactor.
    is_turned: AtomicBool,
    /// Sockets register with that one as long as it lives: this one belongs to a `block_on` call beside its worker.
    beside: Weak<Registry>,
    pub(super) unparker: Arc<Unparker>,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) slots: Slots<Socket>,
    /// The reactor has ended and registers no source any more.
    closed: bool,
}

/// A socket in the table.
///
/// `fd` is open as long as the source is [registered](Registered): a [`Registration`](super::Registration) unregisters
/// before its socket is dropped or handed out. While a reactor ends it may be stale, but nothing is registered there
/// then.
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
    /// The registry of a `block_on` call beside the worker that has `registry`.
    pub(super) fn beside(registry: Weak<Self>) -> Self {
        Self { beside: registry, ..Self::default() }
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
        let mut poll = self.poll.lock();
        if let Some(registry) = self.mio.get() {
            return Ok(registry);
        }
        let new = mio::Poll::new()?;
        let registry = new.registry().try_clone()?;
        self.unparker.open(&registry)?;
        *poll = Some(new);
        Ok(self.mio.get_or_init(|| registry))
    }

    /// Has this reactor watch `source`, or the one beside which it is, unless a reactor does already.
    pub(super) fn register(self: &Arc<Self>, source: &Arc<Source>, fd: RawFd) -> io::Result<()> {
        let worker = self.beside.upgrade();
        for registry in worker.iter().chain([self]) {
            if registry.register_unless_closed(source, fd)? {
                return Ok(());
            }
        }
        Err(no_runtime())
    }

    fn register_unless_closed(self: &Arc<Self>, source: &Arc<Source>, fd: RawFd) -> io::Result<bool> {
        let mio = match self.mio.get() {
            Some(mio) => mio,
            // An operation that a waker polls while the worker ends must not take descriptors.
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

    /// An error means that the socket is not in the kernel's set, for instance because its owner closed the descriptor.
    /// Nothing remains to be done then.
    fn leave_kernel(&self, fd: RawFd) {
        if let Some(mio) = self.mio.get() {
            let _ = mio.deregister(&mut SourceFd(&fd));
        }
    }

    /// How many sources are registered here.
    pub(crate) fn sources(&self) -> usize {
        self.table.lock().slots.len()
    }

    /// A thread begins to turn this reactor.
    pub(crate) fn start_turning(&self) {
        self.is_turned.store(true, Ordering::Relaxed);
    }

    /// No thread turns this reactor from now on. Wakes all tasks that wait for its sources, so that those which other
    /// runtimes run move their sockets there.
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
            let is_here = |registered: &Registered| std::ptr::eq(&raw const *registered.registry, self);
            if socket.source.detach_if(&mut wakers, is_here).is_some() {
                self.leave_kernel(socket.fd);
            }
        }
        wake_all(&mut wakers);
        // The last reference to a source drops wakers, which may panic.
        contain_all(|| drop(sockets));
        let poll = self.poll.lock().take();
        drop(poll);
    }
}

impl Registered {
    /// Takes the socket out of the table and out of the kernel's set. Explicitly, because a duplicate of the descriptor
    /// would keep the kernel's entry alive.
    pub(super) fn leave(self) {
        if let Some(socket) = self.leave_table() {
            self.registry.leave_kernel(socket.fd);
        }
    }

    /// Takes the socket out of the kernel's set, if no thread turns the reactor and this thread has another one. Called
    /// under the source's mutex: the reactor may be turned again, and a thread that registers the socket there at once
    /// would find it in the set.
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

    /// Whether no thread turns this reactor, and this thread has another one.
    fn is_idle_elsewhere(&self) -> bool {
        let is_here = |here: Arc<Registry>| Arc::ptr_eq(&here, &self.registry);
        !self.registry.is_turned.load(Ordering::Relaxed) && Registry::current().is_some_and(|here| !is_here(here))
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
