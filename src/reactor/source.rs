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
//! Wakers are foreign code, and leave under the lock to be woken after it. Not so those of the executor's own futures, which
//! [`is_ours`](crate::sync::is_ours) tells: they are woken where they are, by reference, and kept for the next wait. Mostly it is
//! the same task's, which then neither clones its waker nor drops it ([`Source::store_again`]). A kept waker goes when
//! another takes its place, when the reactor ends, and with the socket; until then the memory of its task stays, even if that has
//! ended and given the socket away.
//!
//! # Life
//! UNBOUND -> bound ([`Source::bind`]) -> UNBOUND ([`Source::unbind`]), and again. An
//! unbound source knows nothing about its socket and counts as ready until a transfer is short: operations try the system
//! call, and those that must wait bind it first. To bind it is to be told of what is so already.
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

    /// The flags that say: try.
    const fn ready(self) -> u64 {
        State::ERROR
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
    /// No reactor watches the socket: nothing is known, and it counts as ready until a transfer is short.
    const UNBOUND: u64 = 1 << 6;
    /// A reactor that watched the socket has ended. Operations that wait anew look, under the mutex, whether
    /// they were waiting when it did. Never taken back.
    const ORPHANED: u64 = 1 << 7;
    /// The socket's owner keeps account of the operations in this direction: [`Observer`](super::Observer).
    const READ_OBSERVED: u64 = 1 << 8;
    const WRITE_OBSERVED: u64 = 1 << 9;

    /// Of a source that nothing is known of.
    const UNKNOWN: u64 = Self::UNBOUND | Self::READABLE | Self::WRITABLE;
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
        self.0 & Self::UNBOUND == 0 && self.should_try(direction)
    }

    /// Whether a short transfer proves that the next one would block: not once
    /// the stream has an end, an error or an urgent mark in it. Of these an unbound source has heard nothing; but whoever waits
    /// binds it, and then it hears of them. Not if those who were cut off may still be about: they fail if they do not try.
    #[inline]
    pub(crate) fn allows_short_rule(self) -> bool {
        self.0 & Self::STICKY == 0 && !self.has_lost_its_reactor()
    }

    /// Whether nothing rare has ever happened to the socket, and nobody wants to hear of its operations.
    #[inline]
    pub(crate) fn is_plain(self, direction: Direction) -> bool {
        self.0 & (Self::STICKY | Self::ORPHANED | direction.observed()) == 0
    }

    #[inline]
    pub(crate) fn is_observed(self, direction: Direction) -> bool {
        self.0 & direction.observed() != 0
    }

    /// A reactor that watched the socket has ended, and no other one watches it.
    fn has_lost_its_reactor(self) -> bool {
        self.is_unbound() && self.is_orphaned()
    }

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

/// Who waits, and where the socket is registered. What is there for each direction is at its number.
struct Waiting<B> {
    /// The reactor that watches the socket. `None` exactly while the word says
    /// `UNBOUND` and the mutex is free.
    binding: Option<B>,
    /// Whoever last polled through `AsyncRead` or `AsyncWrite`.
    polls: [Option<Waker>; 2],
    /// What the wakers in `polls` are.
    kinds: [Kind; 2],
    /// Everybody else, and what is rare; boxed, because most streams never need it.
    lists: Option<Box<[List; 2]>>,
}

/// What is in the place of `AsyncRead` or `AsyncWrite`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No waker.
    Nobody,
    /// It waits. To wake it is to run foreign code, so it is taken out.
    Foreign,
    /// It waits, and is one of ours: it is woken where it is.
    Ours,
    /// It was one of ours, and has been woken. It is kept: mostly its task is the next to wait here.
    Woken,
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
            state: AtomicU64::new(State::UNKNOWN),
            waiting: Mutex::new(Waiting { binding: None, polls: [None, None], kinds: [Kind::Nobody; 2], lists: None }),
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

    /// Stores what an event reports and wakes those of ours who wait for it; the others are moved to `wakers`.
    // Always: for an event that is known most of this falls away.
    #[inline(always)]
    pub(crate) fn dispatch(&self, report: Report, wakers: &mut Vec<Waker>) {
        let mut now = self.state.load(Ordering::Relaxed);
        // Release: whoever sees the tick also sees what came before the event.
        while let Err(actual) =
            self.state.compare_exchange_weak(now, report.applied_to(now), Ordering::AcqRel, Ordering::Relaxed)
        {
            now = actual;
        }
        // After the word, not before: see the second race above.
        self.lock().wake(report.ticks & State::READ_TICK != 0, report.ticks & State::WRITE_TICK != 0, wakers);
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
            // What counts as ready since then is not to be taken back.
            if now.has_lost_its_reactor() {
                return true;
            }
        }
        true
    }

    /// Step 3 of the rule. An unbound source is left as it is: whoever comes next tries too.
    pub(crate) fn clear_known(&self, direction: Direction, seen: State) -> bool {
        seen.is_unbound() || self.clear(direction, seen)
    }

    /// Step 4 of the rule in the usual case: the waker that is kept is that of the task which waits now. `Some(true)` if the
    /// task is to sleep, `Some(false)` if an event has come since `seen`. In any other case does nothing.
    #[inline]
    pub(crate) fn store_again(&self, direction: Direction, waker: &Waker, seen: State) -> Option<bool> {
        let mut waiting = self.lock();
        // Nothing is kept when a reactor ends, so the socket is bound, and no wait was cut off that has not heard of it.
        if !waiting.keeps(direction, waker) {
            return None;
        }
        waiting.kinds[direction as usize] = Kind::Ours;
        // While the lock is held: see the second race above.
        let now = self.state();
        drop(waiting);
        Some(now.same_tick(seen, direction))
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
        is_ours: bool,
        seen: State,
        arm: impl FnOnce(&B) -> Result<(), E>,
    ) -> Result<Stored, E> {
        let mut waiting = self.lock();
        if waiting.take_lost(direction, place) {
            return Ok(Stored::Lost);
        }
        let Some(binding) = &waiting.binding else {
            return Ok(Stored::Unbound(waker));
        };
        arm(binding)?;
        let mut released = waiting.store(direction, place, waker, is_ours);
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
        self.lock().take_lost(direction, place)
    }

    /// Notes whether somebody wants to hear of the operations in a direction.
    pub(crate) fn set_observed(&self, direction: Direction, observed: bool) {
        if observed {
            self.state.fetch_or(direction.observed(), Ordering::AcqRel);
        } else {
            self.state.fetch_and(!direction.observed(), Ordering::AcqRel);
        }
    }

    /// Wakes those of ours who wait for a direction and moves the others to `wakers`, though nothing has happened there: they
    /// look for themselves.
    pub(crate) fn rouse(&self, direction: Direction, wakers: &mut Vec<Waker>) {
        self.lock().wake(direction == Direction::Read, direction == Direction::Write, wakers);
    }

    /// Removes a cancelled future from the list.
    pub(crate) fn forget(&self, direction: Direction, key: u64) {
        let mut waiting = self.lock();
        let removed = waiting.lists.as_mut().and_then(|lists| lists[direction as usize].remove(key));
        drop(waiting);
        drop(removed);
    }

    /// Removes the waker of an `AsyncRead` or `AsyncWrite` operation that waits no longer: the end of a reactor is none of its
    /// business. Not if another one has polled since.
    #[cold]
    pub(crate) fn forget_poll(&self, direction: Direction, waker: &Waker) {
        let mut waiting = self.lock();
        // Comparing is not foreign code: two pairs of addresses.
        let is_there = waiting.polls[direction as usize].as_ref().is_some_and(|stored| stored.will_wake(waker));
        let removed = if is_there { waiting.take_poll(direction) } else { None };
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
            Some(now & (State::OBSERVED | !(State::READ_TICK - 1)) | State::UNKNOWN | State::ORPHANED)
        });
        for direction in [Direction::Read, Direction::Write] {
            let poll_lost = waiting.is_polled(direction);
            if poll_lost || waiting.lists.is_some() {
                let list = waiting.list(direction);
                (list.lost, list.poll_lost) = (list.next_key, poll_lost);
            }
            // Those too that are kept and do not wait: nothing is kept of a reactor that has ended.
            wakers.extend(waiting.take_poll(direction));
        }
        waiting.wake(true, true, wakers);
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
        self.state.fetch_and(!State::UNKNOWN, Ordering::AcqRel);
        match register() {
            Ok(binding) => {
                waiting.binding = Some(binding);
                Ok(false)
            }
            Err(error) => {
                self.state.fetch_or(State::UNKNOWN, Ordering::AcqRel);
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

    /// Has the next operation in a direction try again, unless the source is bound.
    pub(crate) fn doubt(&self, direction: Direction) {
        let waiting = self.lock();
        if waiting.binding.is_none() {
            self.state.fetch_or(direction.edge(), Ordering::AcqRel);
        }
    }

    /// How many wakers wait for a direction.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn count(&self, direction: Direction) -> usize {
        let waiting = self.lock();
        let listed = waiting.lists.as_ref().map_or(0, |lists| lists[direction as usize].waiters.len());
        usize::from(waiting.is_polled(direction)) + listed
    }

    /// Ends the binding, silently: the socket is being closed or handed back.
    pub(crate) fn unbind(&self) -> Option<B> {
        let mut waiting = self.lock();
        self.state.fetch_or(State::UNKNOWN, Ordering::AcqRel);
        waiting.binding.take()
    }
}

impl<B> Waiting<B> {
    /// Whether one of ours is there that is the same as `waker`.
    #[inline]
    fn keeps(&self, direction: Direction, waker: &Waker) -> bool {
        matches!(self.kinds[direction as usize], Kind::Ours | Kind::Woken)
            && self.polls[direction as usize].as_ref().is_some_and(|kept| kept.will_wake(waker))
    }

    /// Wakes all of ours that wait in these directions, and moves the others to `wakers`.
    #[inline]
    fn wake(&mut self, reads: bool, writes: bool, wakers: &mut Vec<Waker>) {
        if reads {
            self.wake_poll(Direction::Read, wakers);
        }
        if writes {
            self.wake_poll(Direction::Write, wakers);
        }
        if let Some(lists) = &mut self.lists {
            wake_lists(lists, [reads, writes], wakers);
        }
    }

    #[inline]
    fn wake_poll(&mut self, direction: Direction, wakers: &mut Vec<Waker>) {
        let side = direction as usize;
        if self.kinds[side] == Kind::Ours {
            self.kinds[side] = Kind::Woken;
            if let Some(waker) = &self.polls[side] {
                waker.wake_by_ref();
            }
        } else if self.kinds[side] == Kind::Foreign {
            self.move_poll(direction, wakers);
        }
    }

    #[inline(never)]
    fn move_poll(&mut self, direction: Direction, wakers: &mut Vec<Waker>) {
        wakers.extend(self.take_poll(direction));
    }

    /// Whether somebody waits through `AsyncRead` or `AsyncWrite`.
    fn is_polled(&self, direction: Direction) -> bool {
        matches!(self.kinds[direction as usize], Kind::Foreign | Kind::Ours)
    }

    /// Empties the place of `AsyncRead` or `AsyncWrite`.
    fn take_poll(&mut self, direction: Direction) -> Option<Waker> {
        self.kinds[direction as usize] = Kind::Nobody;
        self.polls[direction as usize].take()
    }

    fn store(&mut self, direction: Direction, place: &mut Place<'_>, waker: Waker, is_ours: bool) -> Released {
        if let Place::Listed(key) = place {
            return self.list(direction).store(key, waker);
        }
        let waited = self.is_polled(direction);
        self.kinds[direction as usize] = if is_ours { Kind::Ours } else { Kind::Foreign };
        match self.polls[direction as usize].replace(waker) {
            None => Released::default(),
            Some(old) if waited => self.displace(direction, old),
            Some(old) => Released { drop: Some(old), ..Released::default() },
        }
    }

    /// Keeps the wait of `old`, which a newer waker has just replaced.
    fn displace(&mut self, direction: Direction, old: Waker) -> Released {
        if self.polls[direction as usize].as_ref().is_some_and(|newest| newest.will_wake(&old)) {
            return Released { drop: Some(old), ..Released::default() };
        }
        self.list(direction).displace(old)
    }

    fn list(&mut self, direction: Direction) -> &mut List {
        &mut self.lists.get_or_insert_default()[direction as usize]
    }

    fn take_lost(&mut self, direction: Direction, place: &mut Place<'_>) -> bool {
        let Some(lists) = &mut self.lists else { return false };
        let list = &mut lists[direction as usize];
        match place {
            Place::Poll => mem::take(&mut list.poll_lost),
            Place::Listed(key) => key.take_if(|key| *key < list.lost).is_some(),
        }
    }
}

#[cold]
fn wake_lists(lists: &mut [List; 2], meant: [bool; 2], wakers: &mut Vec<Waker>) {
    for (list, is_meant) in lists.iter_mut().zip(meant) {
        if is_meant {
            list.take_all(wakers);
        }
    }
}

impl List {
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
