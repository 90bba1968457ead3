//! The reactor: one mio poll, and the table that maps its tokens to sources.
//!
//! Each worker owns a [`Reactor`] and turns it; sockets hold the shared half, the
//! [`Registry`]. The reactor blocks in exactly one place, [`Reactor::turn`], and it
//! wakes and drops foreign wakers only after every lock is released.
//!
//! # A socket's way through here
//! 1. An operation tries its system call, and mostly that is all.
//! 2. The first one that has to wait binds the socket's [`Source`](source::Source) to the
//!    reactor entered on the polling thread ([`Registry::bind`]): edge-triggered, both
//!    directions, once.
//! 3. [`Reactor::turn`] looks up each event's source, stores the readiness and wakes
//!    whoever waits.
//! 4. Dropping the socket removes it from the kernel's set and from the table
//!    ([`Binding::unbind`]), explicitly: a duplicate of the descriptor would keep the
//!    kernel's entry alive.
//! 5. When the reactor ends, what is still bound is orphaned ([`Registry::close`]).
//!
//! # Locks
//! The table, then a source; never the other way round. Registering holds both, so
//! that two workers that race to bind one socket see each other. Dispatching
//! holds the table once per batch of events.
//!
//! # Edges
//! [`EDGE_TRIGGERED`] says whether the backend reports edges. Where it does not (poll(2)),
//! mio disarms what it reported, and whoever meets `WouldBlock` arms it again
//! ([`Binding::rearm`]).

mod alarm;
#[cfg(any(test, fuzzing))]
pub(crate) mod model;
mod registration;
mod ring;
mod slots;
mod source;

use std::cell::RefCell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Token};
use parking_lot::Mutex;

use alarm::Alarm;
pub(crate) use registration::{Observer, Registration, Wait, ask_kernel};
use ring::Ring;
use slots::Slots;
pub(crate) use source::Direction;
use source::{Report, State};

use crate::sync::{contain_all, wake_all};

/// The backend reports each change once.
const EDGE_TRIGGERED: bool = cfg!(all(
    not(mio_unsupported_force_poll_poll),
    any(
        target_os = "android",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "illumos",
        target_os = "ios",
        target_os = "linux",
        target_os = "macos",
        target_os = "netbsd",
        target_os = "openbsd",
    )
));

/// A short read or write on a TCP stream means that the kernel's buffer is drained, so that another change will be
/// reported. Only where the reactor hears of urgent data too ([`INTEREST`]), at which a read stops with more behind it.
const SHORT_MEANS_DRAINED: bool = EDGE_TRIGGERED && cfg!(any(target_os = "linux", target_os = "android"));

/// Both directions, once: a connection mostly needs both, and each change of the
/// interest would be a system call.
#[cfg(any(target_os = "linux", target_os = "android"))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Events taken from the kernel at a time; the rest come with the next turn.
const EVENT_CAPACITY: usize = 1024;

const RING: Token = Token(Slots::<()>::RESERVED[0]);
const ALARM: Token = Token(Slots::<()>::RESERVED[1]);

/// A source bound to a reactor.
type Source = source::Source<Binding>;

/// The half of the reactor that its worker owns and turns.
pub(crate) struct Reactor {
    poll: mio::Poll,
    events: mio::Events,
    /// The wakers of one turn; empty between turns, kept for its memory.
    wakers: Vec<Waker>,
    alarm: Alarm,
    registry: Arc<Registry>,
}

/// The half that sockets share.
pub(crate) struct Registry {
    registry: mio::Registry,
    table: Mutex<Table>,
    /// Ends the worker's block.
    ring: Arc<Ring>,
}

struct Table {
    slots: Slots<Arc<Source>>,
    /// The reactor has ended: nothing is registered any more.
    closed: bool,
}

/// Where a source is registered. `fd` stays open as long as the source has this: a [`Registration`] unbinds before its
/// socket is dropped or handed out. While a reactor closes it may be stale, but then nothing is registered there any more.
pub(crate) struct Binding {
    registry: Arc<Registry>,
    token: usize,
    fd: RawFd,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let ring = Arc::new(Ring::new(&registry)?);
        let table = Mutex::new(Table { slots: Slots::new(), closed: false });
        Ok(Self {
            poll,
            events: mio::Events::with_capacity(EVENT_CAPACITY),
            wakers: Vec::new(),
            alarm: Alarm::default(),
            registry: Arc::new(Registry { registry, table, ring }),
        })
    }

    /// Rings the thread that turns this reactor.
    pub(crate) fn ring(&self) -> Waker {
        Waker::from(self.registry.ring.clone())
    }

    /// Ends it; its drop does so too. Whoever waits on a socket that is bound here fails once, and the next operation that
    /// must wait binds to the runtime it is polled in.
    pub(crate) fn close(&self) {
        self.registry.close();
    }

    /// Ends it, and has `heir` watch what is bound here: nobody's wait ends.
    pub(crate) fn hand_over(&self, heir: &Arc<Registry>) {
        let (sources, mut wakers) = (self.registry.take_all(), Vec::new());
        for source in &sources {
            heir.adopt(source, &mut wakers);
        }
        wake_all(&mut wakers);
        // Not before: the last reference drops wakers, which may panic.
        contain_all(|| drop(sources));
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// As [`turn`](Reactor::turn), until a deadline that is `left` away, as exactly as the system can. It may return
    /// before, and the caller works out anew how long to wait. `deadline` is a number that tells one deadline from the next.
    pub(crate) fn turn_until(&mut self, left: Duration, deadline: u64) -> io::Result<usize> {
        match alarm::floor(left) {
            Some(timeout) => self.turn(Some(timeout)),
            None if self.alarm.set(self.poll.registry(), left, deadline) => self.turn(None),
            None => self.turn(Some(left)),
        }
    }

    /// Waits for events, at most `timeout` (for ever if `None`), and wakes those who
    /// wait for them. Returns how many events came: none when the time ran out
    /// or a signal interrupted the wait, and the caller works out anew how long
    /// to wait.
    #[inline]
    pub(crate) fn turn(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            result => result?,
        }
        let mut count = 0;
        let table = self.registry.table.lock();
        for event in &self.events {
            count += 1;
            if let Some(source) = table.slots.get(event.token().0) {
                dispatch(source, event, &mut self.wakers);
            } else {
                self.registry.hear(event.token(), &mut self.alarm)?;
            }
        }
        drop(table);
        wake_all(&mut self.wakers);
        Ok(count)
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.close();
    }
}

/// Tells a source what an event says.
#[inline]
fn dispatch(source: &Source, event: &mio::event::Event, wakers: &mut Vec<Waker>) {
    let is_plain = !(event.is_error() || event.is_priority() || event.is_read_closed() || event.is_write_closed());
    // Whatever comes to be read, there mostly is room to write too.
    if is_plain && event.is_readable() && event.is_writable() {
        source.dispatch(const { Report::new(State::READABLE | State::WRITABLE) }, wakers);
    } else {
        dispatch_report(source, event, wakers);
    }
}

/// As [`dispatch`], for any event.
#[inline(never)]
fn dispatch_report(source: &Source, event: &mio::event::Event, wakers: &mut Vec<Waker>) {
    let flag = |is: bool, flag: u64| if is { flag } else { 0 };
    let flags = flag(event.is_readable(), State::READABLE)
        | flag(event.is_writable(), State::WRITABLE)
        | flag(event.is_read_closed(), State::READ_CLOSED)
        | flag(event.is_write_closed(), State::WRITE_CLOSED)
        | flag(event.is_error(), State::ERROR)
        | flag(event.is_priority(), State::PRIORITY);
    source.dispatch(Report::new(flags), wakers);
}

impl Registry {
    /// The registry entered on this thread.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Has `source` watched here, unless it is already watched somewhere.
    fn bind(self: &Arc<Self>, source: &Arc<Source>, fd: RawFd) -> io::Result<()> {
        let mut table = self.table.lock();
        if table.closed {
            return Err(ended());
        }
        let Ok(token) = table.slots.insert(source.clone()) else {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the reactor's table of sockets is full; close some, or use more workers",
            ));
        };
        let bound = source.bind(|| {
            self.registry.register(&mut SourceFd(&fd), Token(token), INTEREST)?;
            Ok(Binding { registry: self.clone(), token, fd })
        });
        let unused = match bound {
            Ok(false) => None,
            // Another worker was first, or the kernel refused: the slot goes back.
            Ok(true) | Err(_) => table.slots.remove(token),
        };
        drop(table);
        drop(unused);
        bound.map(drop)
    }

    /// Has a source watched here that another reactor has watched.
    fn adopt(self: &Arc<Self>, source: &Arc<Source>, wakers: &mut Vec<Waker>) {
        let mut table = self.table.lock();
        let token = if table.closed { None } else { table.slots.insert(source.clone()).ok() };
        let rebound = token.map_or(Err(ended()), |token| {
            source.rebind(|old| {
                old.deregister();
                self.registry.register(&mut SourceFd(&old.fd), Token(token), INTEREST)?;
                Ok(Binding { registry: self.clone(), token, fd: old.fd })
            })
        });
        let unused = match (&rebound, token) {
            (Ok(true), _) | (_, None) => None,
            // It was closed meanwhile, or the kernel refused.
            (_, Some(token)) => table.slots.remove(token),
        };
        drop(table);
        drop(unused);
        if rebound.is_err() {
            // As at the end of a runtime: whoever waits fails, and the next operation binds anew.
            source.orphan(wakers);
        }
    }

    /// An event is no source's.
    #[cold]
    fn hear(&self, token: Token, alarm: &mut Alarm) -> io::Result<()> {
        match token {
            ALARM => alarm.rang(),
            RING => self.ring.heard(&self.registry)?,
            // It was for a source that was removed after the kernel queued it.
            _ => {}
        }
        Ok(())
    }

    /// How many sources are bound here.
    pub(crate) fn sources(&self) -> usize {
        self.table.lock().slots.len()
    }

    /// Ends the reactor: whoever waits on a socket bound here fails once, and the
    /// next operation that must wait binds to the runtime it is polled in.
    fn close(&self) {
        let (sources, mut wakers) = (self.take_all(), Vec::new());
        for source in &sources {
            if let Some(binding) = source.orphan(&mut wakers) {
                binding.deregister();
            }
        }
        wake_all(&mut wakers);
        contain_all(|| drop(sources));
    }
}

impl Registry {
    /// Lets no more sources in, and returns those that are there.
    fn take_all(&self) -> Vec<Arc<Source>> {
        let mut table = self.table.lock();
        table.closed = true;
        table.slots.take_all()
    }
}

impl Binding {
    /// Takes the socket out of the kernel's set. An error means that it is not
    /// there, for instance because its owner closed the descriptor; nothing
    /// remains to be done then.
    fn deregister(&self) {
        let _ = self.registry.registry.deregister(&mut SourceFd(&self.fd));
    }

    /// Takes the socket out of the kernel's set and out of the table.
    fn unbind(self) {
        self.deregister();
        let removed = self.registry.table.lock().slots.remove(self.token);
        drop(removed);
    }

    /// Has a backend without edges report readiness once more.
    fn rearm(&self) -> io::Result<()> {
        if EDGE_TRIGGERED {
            return Ok(());
        }
        let (registry, token) = (&self.registry.registry, Token(self.token));
        match registry.reregister(&mut SourceFd(&self.fd), token, INTEREST) {
            // After an error or a hang-up mio's poll(2) backend forgets the
            // descriptor by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                registry.register(&mut SourceFd(&self.fd), token, INTEREST)
            }
            result => result,
        }
    }
}

thread_local! {
    /// Without a destructor, so that a runtime may be dropped by another thread-local's; [`Entered`] leaves it empty.
    static CURRENT: ManuallyDrop<RefCell<Option<Arc<Registry>>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

/// While this lives, sockets polled on this thread bind to its registry.
pub(crate) struct Entered {
    previous: Option<Arc<Registry>>,
}

/// Makes `registry` the one that sockets polled on this thread bind to.
pub(crate) fn enter(registry: Arc<Registry>) -> Entered {
    Entered { previous: CURRENT.with(|current| current.replace(Some(registry))) }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let ours = CURRENT.with(|current| current.replace(self.previous.take()));
        drop(ours);
    }
}

/// An operation was waiting on a reactor that has ended.
fn ended() -> io::Error {
    io::Error::other(
        "the runtime that this socket was waiting in has ended; \
         use the socket again inside a runtime that is still running",
    )
}

/// An operation has to wait and nobody would tell it when to go on.
fn no_runtime() -> io::Error {
    io::Error::other(
        "this socket operation has to wait, and no kittiwake runtime is running on this thread; \
         call it inside kittiwake::block_on, or from a task spawned there",
    )
}
