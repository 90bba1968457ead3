//! Waiters: the wakers of the tasks that wait for a socket.
//!
//! A direction has one [`Seat`], for the `poll_` functions, and a list, for futures that hold a
//! [`Wait`](super::Wait), such as an `accept`. An event wakes all of them, because the kernel sends no second edge: a
//! woken task that was cancelled must not take the event from the others.
//!
//! # The seat
//! A poll trait promises to wake the waker of the last poll only. If a second task polls, the seat's waker moves to the
//! list instead of being woken at once. So two tasks that read one socket neither lose each other nor wake each other
//! for ever.
//!
//! # The executor's wakers
//! A waker is foreign code, which must not run under a lock. So wakers are collected under the lock and woken after it.
//! The executor's own wakers are an exception: waking one of them queues a task, perhaps ends a block, and runs no
//! foreign code. In a seat they are woken in place, by reference, and stay there: the next task to wait there is mostly
//! the same one, and it then neither clones its waker nor drops it. A waker that stays keeps the memory of its task,
//! until another waker takes the seat, the reactor ends or is turned no more, or the socket is dropped or fails to move
//! to another reactor.
//!
//! Pure: no mio, no I/O, no clock, no lock.

use std::mem;
use std::task::Waker;

use super::readiness::Direction;
use crate::memory;

/// The wakers of both directions.
#[derive(Default)]
pub(super) struct Waiters {
    reader: Seat,
    writer: Seat,
    /// Of both directions, and boxed, because most streams never use them.
    lists: Option<Box<[List; 2]>>,
}

/// The waker of the task that last had to wait in a `poll_` function.
#[derive(Default)]
enum Seat {
    #[default]
    Empty,
    /// The waker of a waiting task, foreign code.
    Foreign(Waker),
    /// One of the executor's wakers. Its task waits, or was woken and has not waited again.
    Executor { waker: Waker, waits: bool },
}

/// Where a waiting operation keeps its waker.
pub(crate) enum WaiterSlot<'a> {
    Seat,
    /// In the list. The key is `Some` once the operation has waited.
    Listed(&'a mut Option<u64>),
}

impl WaiterSlot<'_> {
    pub(crate) fn reborrow(&mut self) -> WaiterSlot<'_> {
        match self {
            Self::Seat => WaiterSlot::Seat,
            Self::Listed(key) => WaiterSlot::Listed(key),
        }
    }
}

/// The wakers of futures that hold a [`Wait`](super::Wait), each under a key, and those that left the seat to another.
struct List {
    /// In the order of their keys.
    waiters: Vec<Waiter>,
    /// How many of `waiters` are displaced: at most `capacity`.
    displaced: usize,
    /// The most displaced wakers that the list may hold. When one more comes, those that are there are woken and
    /// dropped, and the capacity doubles, up to [`MAX_CAPACITY`]. So the list cannot fill with the wakers of tasks that
    /// no longer wait. A task that still waits polls again and is stored again. If more than `MAX_CAPACITY + 1` tasks
    /// wait by `poll_` functions in one direction, they wake each other again and again.
    capacity: usize,
    next_key: u64,
}

struct Waiter {
    key: u64,
    waker: Waker,
    /// It was in the seat. No operation has its key.
    displaced: bool,
}

/// How many displaced wakers fit at first, and again after each event.
const CAPACITY: usize = 8;

/// `capacity` doubles no further than this. Without a limit, a task that polls with a new waker each time would grow
/// the list for ever.
const MAX_CAPACITY: usize = 1024;

/// Wakers that were taken out of the waiters. To wake or drop them is foreign code, which the caller runs after it has
/// released its lock.
#[derive(Default)]
#[must_use = "dropped under a lock, a waker may take that lock again"]
pub(super) struct Released {
    pub(super) drop: Option<Waker>,
    pub(super) wake: Vec<Waker>,
}

impl Waiters {
    fn seat(&mut self, direction: Direction) -> &mut Seat {
        match direction {
            Direction::Read => &mut self.reader,
            Direction::Write => &mut self.writer,
        }
    }

    fn list(&mut self, direction: Direction) -> &mut List {
        &mut self.lists.get_or_insert_default()[direction as usize]
    }

    /// Marks the task in the seat as waiting, if `waker` is its waker and the executor's.
    pub(super) fn wait_again(&mut self, direction: Direction, waker: &Waker) -> bool {
        match self.seat(direction) {
            Seat::Executor { waker: kept, waits } if kept.will_wake(waker) => {
                *waits = true;
                true
            }
            _ => false,
        }
    }

    /// Stores the waker of a waiting task.
    pub(super) fn store(
        &mut self,
        direction: Direction,
        slot: &mut WaiterSlot<'_>,
        waker: Waker,
        is_executors: bool,
    ) -> Released {
        if let WaiterSlot::Listed(key) = slot {
            return self.list(direction).store(key, waker);
        }
        let seat = if is_executors { Seat::Executor { waker, waits: true } } else { Seat::Foreign(waker) };
        match mem::replace(self.seat(direction), seat) {
            Seat::Empty => Released::default(),
            Seat::Executor { waker: old, waits: false } => Released { drop: Some(old), ..Released::default() },
            Seat::Foreign(old) | Seat::Executor { waker: old, .. } => self.displace(direction, old),
        }
    }

    /// Moves `old`, whose seat another waker has just taken, to the list, because its task still waits. If both wakers
    /// wake the same task, `old` is to be dropped instead.
    fn displace(&mut self, direction: Direction, old: Waker) -> Released {
        match self.seat(direction) {
            Seat::Foreign(newest) | Seat::Executor { waker: newest, .. } if newest.will_wake(&old) => {
                Released { drop: Some(old), ..Released::default() }
            }
            _ => self.list(direction).displace(old),
        }
    }

    /// Wakes all that wait for these directions. An executor's waker that waits in a seat is woken here, and stays. All
    /// other wakers are moved to `wakers`.
    pub(super) fn wake(&mut self, reads: bool, writes: bool, wakers: &mut Vec<Waker>) {
        if reads {
            self.reader.wake(wakers);
        }
        if writes {
            self.writer.wake(wakers);
        }
        if let Some(lists) = &mut self.lists {
            take_lists(lists, [reads, writes], wakers);
        }
    }

    /// Moves all wakers to `wakers`, those that are only kept too.
    pub(super) fn take_all(&mut self, wakers: &mut Vec<Waker>) {
        self.reader.take(wakers);
        self.writer.take(wakers);
        if let Some(lists) = &mut self.lists {
            take_lists(lists, [true; 2], wakers);
        }
    }

    /// Removes the waker of an operation that waits no longer.
    pub(super) fn remove(&mut self, direction: Direction, key: u64) -> Option<Waker> {
        self.lists.as_mut()?[direction as usize].remove(key)
    }

    /// Shows the wakers of the tasks that wait.
    pub(super) fn visit(&self, mut visit: impl FnMut(Direction, &Waker)) {
        for (direction, seat) in [(Direction::Read, &self.reader), (Direction::Write, &self.writer)] {
            if let Seat::Foreign(waker) | Seat::Executor { waker, waits: true } = seat {
                visit(direction, waker);
            }
            let listed = self.lists.iter().flat_map(|lists| &lists[direction as usize].waiters);
            listed.for_each(|waiter| visit(direction, &waiter.waker));
        }
    }

    /// How many tasks wait.
    #[cfg(any(test, fuzzing))]
    pub(super) fn count(&mut self, direction: Direction) -> usize {
        let in_seat = matches!(self.seat(direction), Seat::Foreign(_) | Seat::Executor { waits: true, .. });
        usize::from(in_seat) + self.lists.as_ref().map_or(0, |lists| lists[direction as usize].waiters.len())
    }
}

fn take_lists(lists: &mut [List; 2], concerned: [bool; 2], wakers: &mut Vec<Waker>) {
    for (list, is_concerned) in lists.iter_mut().zip(concerned) {
        if is_concerned {
            list.take_all(wakers);
        }
    }
}

impl Seat {
    fn wake(&mut self, wakers: &mut Vec<Waker>) {
        if let Self::Executor { waker, waits: waits @ true } = self {
            *waits = false;
            waker.wake_by_ref();
        } else if let Self::Foreign(_) = self {
            self.take(wakers);
        }
    }

    /// Empties the seat.
    // An echo costs 8.5 % more without this.
    #[inline(never)]
    fn take(&mut self, wakers: &mut Vec<Waker>) {
        match mem::take(self) {
            Self::Empty => {}
            Self::Foreign(waker) | Self::Executor { waker, .. } => wakers.push(waker),
        }
    }
}

impl Default for List {
    fn default() -> Self {
        Self { waiters: Vec::new(), displaced: 0, capacity: CAPACITY, next_key: 0 }
    }
}

impl List {
    fn take_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.waiters.drain(..).map(|waiter| waiter.waker));
        if memory::is_sparse(0, self.waiters.capacity()) {
            self.shrink();
        }
        (self.displaced, self.capacity) = (0, CAPACITY);
    }

    #[cold]
    fn shrink(&mut self) {
        memory::shrink(&mut self.waiters);
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
        if self.displaced == self.capacity {
            let displaced: Vec<Waiter>;
            (displaced, self.waiters) = mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.displaced);
            released.wake = displaced.into_iter().map(|waiter| waiter.waker).collect();
            self.displaced = 0;
            self.capacity = (2 * self.capacity).min(MAX_CAPACITY);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A spike of waiters leaves little memory, although the socket lives on.
    #[test]
    fn spike_of_waiters_leaves_little_memory() {
        let (mut waiters, mut wakers) = (Waiters::default(), Vec::new());
        for direction in [Direction::Read, Direction::Write] {
            for _ in 0..10_000 {
                let slot = &mut WaiterSlot::Listed(&mut None);
                let released = waiters.store(direction, slot, Waker::noop().clone(), false);
                assert!(released.drop.is_none() && released.wake.is_empty());
            }
        }
        waiters.wake(true, true, &mut wakers);
        assert_eq!(wakers.len(), 20_000, "all are woken");
        for list in waiters.lists.as_deref().expect("they are listed") {
            assert!(list.waiters.capacity() <= memory::KEPT, "room for {} is left", list.waiters.capacity());
        }
    }
}
