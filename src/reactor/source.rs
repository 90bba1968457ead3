//! Source: what the reactor knows of one socket.
//!
//! A source is made with its socket and shared between the socket, whose
//! operations look at it, and the reactor, whose events change it. It has two
//! parts: one atomic word, [`State`], that every operation reads, and behind a
//! small mutex the wakers of those who wait and the binding to a reactor.
//!
//! # The word
//! Flags, and a tick for each direction. [`Source::dispatch`] sets the flags an
//! event reports and moves the tick of each direction it concerns.
//! [`Source::clear`] takes a direction's readiness back after the kernel said
//! `WouldBlock`, or a short read said as much.
//!
//! # The rule
//! 1. Load the word. Not ready in this direction: go to 4.
//! 2. Make the system call.
//! 3. On `WouldBlock`, [`clear`](Source::clear) the direction. If its tick moved since
//!    step 1, that fails: go back to 1.
//! 4. Under the mutex store the waker ([`Source::store`]) and look at the tick
//!    once more, in whichever order. If it moved since step 1: go back to 1. Else sleep.
//!
//! # The races this closes
//! * A reads and gets `WouldBlock`; B dispatches *readable*; A clears it. No second
//!   edge comes, so the task would sleep for ever. The tick refuses the clear (3).
//! * A finds nothing ready; B dispatches *readable* and finds no waker; A stores
//!   its waker. B moved the word before it took the mutex, so A, who looks
//!   again while it holds the mutex, sees the new tick (4).
//! * One tick for both directions would let a busy writer's events refuse the
//!   reader's clear for ever. Hence two.
//!
//! # Who is woken
//! An event wakes all who wait for its direction, because no second edge
//! comes: a woken waiter that is cancelled takes nothing from the others.
//!
//! # Life
//! UNBOUND -> bound ([`Source::bind`]) -> UNBOUND ([`Source::unbind`]), and again. An
//! unbound source knows nothing about its socket: operations try the system
//! call, and those that must wait bind it first.
//!
//! Pure: no mio, no I/O, no clock, no thread-local. `B`, the binding, is opaque
//! here.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};

use crate::sync::wake_all;

/// One half of a socket's traffic. Accepting is reading, connecting is writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    pub(crate) const fn opposite(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }

    /// The flag a failed attempt clears.
    const fn edge(self) -> u64 {
        match self {
            Self::Read => State::READABLE,
            Self::Write => State::WRITABLE,
        }
    }

    /// The flags that say: try. `UNBOUND` is among them, because nothing is
    /// known of an unbound socket, and a try is how it gets bound.
    const fn ready(self) -> u64 {
        State::ERROR
            | State::UNBOUND
            | match self {
                Self::Read => State::READABLE | State::READ_CLOSED,
                Self::Write => State::WRITABLE | State::WRITE_CLOSED,
            }
    }

    const fn observed(self) -> u64 {
        match self {
            Self::Read => State::READ_OBSERVED,
            Self::Write => State::WRITE_OBSERVED,
        }
    }

    const fn tick(self) -> u64 {
        match self {
            Self::Read => State::WRITE_TICK - State::READ_TICK,
            Self::Write => !(State::WRITE_TICK - 1),
        }
    }
}

/// The word: flags in the low bits, then the tick of each direction.
///
/// A tick counts the events that concerned its direction, modulo 2^22 and 2^32: each
/// lies in one half of the word, and so is compared by itself. It would
/// have to go round once between a system call and the next few instructions
/// of the same poll to be mistaken. When the reading tick does go round, the
/// carry moves the writing tick by one, which refuses one clear and costs one
/// system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(u64);

impl State {
    pub(crate) const READABLE: u64 = 1;
    pub(crate) const WRITABLE: u64 = 1 << 1;
    /// The peer will send no more. Sticky: no further edge announces the end of
    /// a stream whose last bytes came with it.
    pub(crate) const READ_CLOSED: u64 = 1 << 2;
    /// Nothing written will arrive. Sticky.
    pub(crate) const WRITE_CLOSED: u64 = 1 << 3;
    /// The socket has failed. Sticky, and wakes both directions: such an event
    /// need not report either of them ready.
    pub(crate) const ERROR: u64 = 1 << 4;
    /// Urgent data has been seen. Sticky: a read stops at the urgent mark, so
    /// from here on a short read does not mean that the kernel's buffer is empty.
    pub(crate) const PRIORITY: u64 = 1 << 5;
    /// No reactor watches the socket: nothing is known.
    const UNBOUND: u64 = 1 << 6;
    /// A reactor that watched the socket has ended. Operations that wait anew look, under the mutex, whether
    /// they were waiting when it did. Never taken back.
    const ORPHANED: u64 = 1 << 7;
    /// The socket's owner keeps account of the operations in this direction: [`Observer`](super::Observer).
    const READ_OBSERVED: u64 = 1 << 8;
    const WRITE_OBSERVED: u64 = 1 << 9;

    const OBSERVED: u64 = Self::READ_OBSERVED | Self::WRITE_OBSERVED;
    const STICKY: u64 = Self::READ_CLOSED | Self::WRITE_CLOSED | Self::ERROR | Self::PRIORITY;

    const READ_TICK: u64 = 1 << 10;
    const WRITE_TICK: u64 = 1 << 32;

    /// Whether an operation should make its system call.
    #[inline]
    pub(crate) fn should_try(self, direction: Direction) -> bool {
        self.0 & direction.ready() != 0
    }

    /// Whether an event has reported this direction ready, or done for.
    pub(crate) fn is_reported(self, direction: Direction) -> bool {
        self.0 & direction.ready() & !Self::UNBOUND != 0
    }

    /// Whether a short transfer proves that the next one would block: not once
    /// the stream has an end, an error or an urgent mark in it, and not while
    /// nobody would tell us of the next edge.
    #[inline]
    pub(crate) fn allows_short_rule(self) -> bool {
        self.0 & (Self::STICKY | Self::UNBOUND) == 0
    }

    /// Whether the socket is bound, nothing rare has ever happened to it, and nobody wants to hear of its operations.
    #[inline]
    pub(crate) fn is_plain(self, direction: Direction) -> bool {
        self.0 & (Self::STICKY | Self::UNBOUND | Self::ORPHANED | direction.observed()) == 0
    }

    #[inline]
    pub(crate) fn is_observed(self, direction: Direction) -> bool {
        self.0 & direction.observed() != 0
    }

    #[inline]
    fn is_unbound(self) -> bool {
        self.0 & Self::UNBOUND != 0
    }

    #[inline]
    pub(crate) fn is_orphaned(self) -> bool {
        self.0 & Self::ORPHANED != 0
    }

    #[inline]
    pub(crate) fn same_tick(self, other: Self, direction: Direction) -> bool {
        (self.0 ^ other.0) & direction.tick() == 0
    }
}

/// What an event says of a socket: flags, and a tick for each direction that they concern.
#[derive(Clone, Copy)]
pub(crate) struct Report {
    flags: u64,
    ticks: u64,
}

impl Report {
    #[inline]
    pub(crate) const fn new(flags: u64) -> Self {
        let reads = if flags & Direction::Read.ready() != 0 { State::READ_TICK } else { 0 };
        let writes = if flags & Direction::Write.ready() != 0 { State::WRITE_TICK } else { 0 };
        Self { flags, ticks: reads + writes }
    }

    fn applied_to(self, state: u64) -> u64 {
        (state | self.flags).wrapping_add(self.ticks)
    }
}

/// What the reactor and the operations on one socket share.
pub(crate) struct Source<B> {
    state: AtomicU64,
    waiting: Mutex<Waiting<B>>,
}

/// Who waits, and where the socket is registered.
struct Waiting<B> {
    /// The reactor that watches the socket. `None` exactly while the word says
    /// `UNBOUND` and the mutex is free.
    binding: Option<B>,
    reader: Waiters,
    writer: Waiters,
}

/// Those who wait for one direction.
#[derive(Default)]
struct Waiters {
    /// Whoever last polled through `AsyncRead` or `AsyncWrite`.
    poll: Option<Waker>,
    /// Everybody else, and what is rare; boxed, because most streams never need it.
    list: Option<Box<List>>,
}

/// The futures of `&self` operations (accept, readable), each under a key, and
/// wakers that another poll displaced.
struct List {
    /// In the order of their keys.
    waiters: Vec<Waiter>,
    /// How many of `waiters` are displaced wakers: at most `room`.
    displaced: usize,
    /// When there is none left all displaced wakers are woken, and the room doubles. Those that are still wanted come
    /// back and fit, after a few times, however many they are; those that are not do not come back.
    room: usize,
    next_key: u64,
    /// Keys below this one belong to waits that the end of a reactor cut off.
    lost: u64,
    /// Set when the end of a reactor cut off the wait of whoever last polled through `AsyncRead` or `AsyncWrite`.
    poll_lost: bool,
}

/// Room for displaced wakers after each event, and at the most: a task that has a new waker for each poll would fill any.
const ROOM: usize = 8;
const MOST_ROOM: usize = 1024;

impl Default for List {
    fn default() -> Self {
        Self { waiters: Vec::new(), displaced: 0, room: ROOM, next_key: 0, lost: 0, poll_lost: false }
    }
}

struct Waiter {
    key: u64,
    waker: Waker,
    displaced: bool,
}

/// Whose place an operation waits in.
pub(crate) enum Place<'a> {
    /// The one that `AsyncRead` or `AsyncWrite` has for its direction.
    Poll,
    /// The future's own in the list: `None` until it first waits.
    Listed(&'a mut Option<u64>),
}

/// Wakers that left the lists: to be dropped, and to be woken, outside the lock.
#[derive(Default)]
struct Released {
    drop: Option<Waker>,
    wake: Vec<Waker>,
}

/// What became of an attempt to wait.
#[must_use]
pub(crate) enum Stored {
    /// The task is to sleep.
    Sleep,
    /// An event has come, or the wait cannot begin as things are: look again.
    Again,
    /// Nobody watches the socket; the waker is given back.
    Unbound(Waker),
    /// The operation was waiting when the reactor that watched for it ended, and would have to go on: it fails.
    Lost,
}

impl<B> Source<B> {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU64::new(State::UNBOUND),
            waiting: Mutex::new(Waiting { binding: None, reader: Waiters::default(), writer: Waiters::default() }),
        }
    }

    /// Acquires what the last event published.
    #[inline]
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<B>> {
        self.waiting.lock()
    }

    /// Stores what an event reports and moves all who wait for it to `wakers`.
    #[inline]
    pub(crate) fn dispatch(&self, report: Report, wakers: &mut Vec<Waker>) {
        let mut now = self.state.load(Ordering::Relaxed);
        // Release: whoever sees the tick also sees what came before the event.
        while let Err(actual) =
            self.state.compare_exchange_weak(now, report.applied_to(now), Ordering::AcqRel, Ordering::Relaxed)
        {
            now = actual;
        }
        // After the word, not before: see the second race above.
        let mut waiting = self.lock();
        if report.ticks & State::READ_TICK != 0 {
            waiting.reader.take_all(wakers);
        }
        if report.ticks & State::WRITE_TICK != 0 {
            waiting.writer.take_all(wakers);
        }
    }

    /// Takes a direction's readiness back, unless an event has come since `seen`.
    #[inline]
    pub(crate) fn clear(&self, direction: Direction, seen: State) -> bool {
        let mut now = seen;
        while let Err(actual) =
            self.state.compare_exchange_weak(now.0, now.0 & !direction.edge(), Ordering::AcqRel, Ordering::Acquire)
        {
            now = State(actual);
            if !now.same_tick(seen, direction) {
                return false;
            }
        }
        true
    }

    /// Step 4 of the rule in the usual case: the socket is bound, and the `AsyncRead` or `AsyncWrite` place is
    /// empty. `Ok(true)` if the task is to sleep, `Ok(false)` if an event has come since `seen`. In any other case gives
    /// the waker back.
    #[inline]
    pub(crate) fn store_first(&self, direction: Direction, waker: Waker, seen: State) -> Result<bool, Waker> {
        let mut waiting = self.lock();
        // While the lock is held: see the second race above.
        let now = self.state();
        let waiters = waiting.waiters(direction);
        if now.is_unbound() || waiters.poll.is_some() || waiters.is_poll_lost() {
            return Err(waker);
        }
        waiters.poll = Some(waker);
        Ok(now.same_tick(seen, direction))
    }

    /// Step 4 in all other cases. `arm` is told the binding, under the lock.
    ///
    /// A waker that this displaces and that would wake another task keeps its wait in the list, so that two tasks that
    /// read one socket neither lose each other nor wake each other for ever.
    pub(crate) fn store<E>(
        &self,
        direction: Direction,
        place: &mut Place<'_>,
        waker: Waker,
        seen: State,
        arm: impl FnOnce(&B) -> Result<(), E>,
    ) -> Result<Stored, E> {
        let mut waiting = self.lock();
        if waiting.waiters(direction).take_lost(place) {
            return Ok(Stored::Lost);
        }
        let Some(binding) = &waiting.binding else {
            return Ok(Stored::Unbound(waker));
        };
        arm(binding)?;
        let mut released = waiting.waiters(direction).store(place, waker);
        // While the lock is held: see the second race above.
        let sleeps = self.state().same_tick(seen, direction);
        drop(waiting);
        drop(released.drop);
        wake_all(&mut released.wake);
        Ok(if sleeps { Stored::Sleep } else { Stored::Again })
    }

    /// Has the backend report once more, if the socket is bound.
    pub(crate) fn rearm<E>(&self, arm: impl FnOnce(&B) -> Result<(), E>) -> Result<(), E> {
        self.lock().binding.as_ref().map_or(Ok(()), arm)
    }

    /// Whether this operation was waiting when the reactor that watched for it ended. Says so once.
    #[cold]
    pub(crate) fn take_lost(&self, direction: Direction, place: &mut Place<'_>) -> bool {
        self.lock().waiters(direction).take_lost(place)
    }

    /// Notes whether somebody wants to hear of the operations in a direction.
    pub(crate) fn set_observed(&self, direction: Direction, observed: bool) {
        if observed {
            self.state.fetch_or(direction.observed(), Ordering::AcqRel);
        } else {
            self.state.fetch_and(!direction.observed(), Ordering::AcqRel);
        }
    }

    /// Moves all who wait for a direction to `wakers`, though nothing has happened there: they look for themselves.
    pub(crate) fn rouse(&self, direction: Direction, wakers: &mut Vec<Waker>) {
        self.lock().waiters(direction).take_all(wakers);
    }

    /// Removes a cancelled future from the list.
    pub(crate) fn forget(&self, direction: Direction, key: u64) {
        let mut waiting = self.lock();
        let removed = waiting.waiters(direction).list.as_mut().and_then(|list| list.remove(key));
        drop(waiting);
        drop(removed);
    }

    /// Removes the waker of an `AsyncRead` or `AsyncWrite` operation that waits no longer: the end of a reactor is none of its
    /// business. Not if another one has polled since.
    #[cold]
    pub(crate) fn forget_poll(&self, direction: Direction, waker: &Waker) {
        let mut waiting = self.lock();
        // Comparing is not foreign code: two pairs of addresses.
        let removed = waiting.waiters(direction).poll.take_if(|stored| stored.will_wake(waker));
        drop(waiting);
        drop(removed);
    }

    /// Ends the binding and wakes everybody: their waits are lost.
    pub(crate) fn orphan(&self, wakers: &mut Vec<Waker>) -> Option<B> {
        let mut waiting = self.lock();
        let binding = waiting.binding.take();
        // Everything known is forgotten. The ticks stay: nobody can go to sleep on what was true before, because an
        // unbound source lets nobody wait.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
            Some(now & (State::OBSERVED | !(State::READ_TICK - 1)) | State::UNBOUND | State::ORPHANED)
        });
        for direction in [Direction::Read, Direction::Write] {
            let waiters = waiting.waiters(direction);
            let poll_lost = waiters.poll.is_some();
            if poll_lost || waiters.list.is_some() {
                let list = waiters.list.get_or_insert_default();
                (list.lost, list.poll_lost) = (list.next_key, poll_lost);
            }
            waiters.take_all(wakers);
        }
        binding
    }

    /// Binds the source under its lock: `register` tells the kernel. `Ok(true)` if it
    /// already was bound (two workers raced; the first one stays).
    pub(crate) fn bind<E>(&self, register: impl FnOnce() -> Result<B, E>) -> Result<bool, E> {
        let mut waiting = self.lock();
        if waiting.binding.is_some() {
            return Ok(true);
        }
        // Before the kernel is told: it reports at once what is already so, and
        // that event must not be taken back here.
        self.state.fetch_and(!State::UNBOUND, Ordering::AcqRel);
        match register() {
            Ok(binding) => {
                waiting.binding = Some(binding);
                Ok(false)
            }
            Err(error) => {
                self.state.fetch_or(State::UNBOUND, Ordering::AcqRel);
                Err(error)
            }
        }
    }

    /// Replaces the binding, under the lock, by another reactor's; `Ok(false)` if there is none any more. Nobody's wait
    /// ends: the new reactor reports what is already so.
    pub(crate) fn rebind<E>(&self, rebind: impl FnOnce(&B) -> Result<B, E>) -> Result<bool, E> {
        let mut waiting = self.lock();
        let Some(binding) = &mut waiting.binding else { return Ok(false) };
        *binding = rebind(binding)?;
        Ok(true)
    }

    /// How many wakers wait for a direction.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn count(&self, direction: Direction) -> usize {
        let mut waiting = self.lock();
        let waiters = waiting.waiters(direction);
        usize::from(waiters.poll.is_some()) + waiters.list.as_ref().map_or(0, |list| list.waiters.len())
    }

    /// Ends the binding, silently: the socket is being closed or handed back.
    pub(crate) fn unbind(&self) -> Option<B> {
        let mut waiting = self.lock();
        self.state.fetch_or(State::UNBOUND, Ordering::AcqRel);
        waiting.binding.take()
    }
}

impl<B> Waiting<B> {
    #[inline]
    fn waiters(&mut self, direction: Direction) -> &mut Waiters {
        match direction {
            Direction::Read => &mut self.reader,
            Direction::Write => &mut self.writer,
        }
    }
}

impl Waiters {
    #[inline]
    fn take_all(&mut self, wakers: &mut Vec<Waker>) {
        // Asked first: mostly nobody waits to write.
        if self.poll.is_some() {
            wakers.extend(self.poll.take());
        }
        if let Some(list) = &mut self.list {
            list.take_all(wakers);
        }
    }

    fn store(&mut self, place: &mut Place<'_>, waker: Waker) -> Released {
        match place {
            Place::Poll => match self.poll.replace(waker) {
                None => Released::default(),
                Some(old) => self.displace(old),
            },
            Place::Listed(key) => self.list.get_or_insert_default().store(key, waker),
        }
    }

    /// Keeps the wait of `old`, which a newer waker has just replaced.
    fn displace(&mut self, old: Waker) -> Released {
        if self.poll.as_ref().is_some_and(|newest| newest.will_wake(&old)) {
            return Released { drop: Some(old), ..Released::default() };
        }
        self.list.get_or_insert_default().displace(old)
    }

    #[inline]
    fn is_poll_lost(&self) -> bool {
        self.list.as_ref().is_some_and(|list| list.poll_lost)
    }

    fn take_lost(&mut self, place: &mut Place<'_>) -> bool {
        let Some(list) = &mut self.list else { return false };
        match place {
            Place::Poll => mem::take(&mut list.poll_lost),
            Place::Listed(key) => key.take_if(|key| *key < list.lost).is_some(),
        }
    }
}

impl List {
    #[cold]
    fn take_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.waiters.drain(..).map(|waiter| waiter.waker));
        (self.displaced, self.room) = (0, ROOM);
    }

    fn store(&mut self, key: &mut Option<u64>, waker: Waker) -> Released {
        if let Some(index) = key.and_then(|key| self.find(key)) {
            let old = mem::replace(&mut self.waiters[index].waker, waker);
            return Released { drop: Some(old), ..Released::default() };
        }
        *key = Some(self.push(waker, false));
        Released::default()
    }

    fn displace(&mut self, old: Waker) -> Released {
        if self.waiters.iter().any(|waiter| waiter.displaced && waiter.waker.will_wake(&old)) {
            return Released { drop: Some(old), ..Released::default() };
        }
        let mut released = Released::default();
        if self.displaced == self.room {
            let displaced: Vec<Waiter>;
            (displaced, self.waiters) = mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.displaced);
            released.wake = displaced.into_iter().map(|waiter| waiter.waker).collect();
            self.displaced = 0;
            self.room = (2 * self.room).min(MOST_ROOM);
        }
        self.push(old, true);
        self.displaced += 1;
        released
    }

    fn push(&mut self, waker: Waker, displaced: bool) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.waiters.push(Waiter { key, waker, displaced });
        key
    }

    fn remove(&mut self, key: u64) -> Option<Waker> {
        let index = self.find(key)?;
        Some(self.waiters.remove(index).waker)
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&key, |waiter| waiter.key).ok()
    }
}
