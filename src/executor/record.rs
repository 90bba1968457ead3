//! Record: what a task notes of itself, for other threads to read.
//!
//! The task's wrapper, its queue entries and its entry in the [registry](super::registry) share it. A record belongs to
//! one table of the registry. When its task has left, the next task there gets the record. Handles of the old task
//! compare its id with that of the entry, under the lock of the table, before they cancel. Their notes of a joiner are
//! made without the lock: one that comes late makes a dump show one line that is wrong, and nothing else.
//!
//! Records are allocated in [`Chunk`]s: one for each task would cost a burst of tasks 20 % more.
//!
//! # The steps
//! ```text
//!   made -> queued -> running -> waiting -> queued -> ...
//! ```
//! Each arrow is one step, taken by the thread that has the task at that time. One number counts the steps. Modulo 3 it
//! is the state, and `(steps + 1) / 3` is how often the task was polled. No step is an atomic read-modify-write:
//! async-task orders the threads that take them.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::task::Waker;

use crate::stamp::Stamp;
use crate::sync::atomic::{AtomicU16, Ordering};

/// The record of one task: a place in a chunk.
pub(super) struct Record<W> {
    chunk: Arc<Chunk<W>>,
    place: Place,
}

/// The records of some tasks. `W` are the workers of their runtime, which are opaque here.
struct Chunk<W> {
    workers: Arc<W>,
    table: TableId,
    /// The id of the queue that all of them go to.
    queue: usize,
    attention: [AtomicU16; PLACES],
    /// The places of the entries in the table, which counts from 1. Used under the lock of the table.
    key: [AtomicU32; PLACES],
    /// The tasks' ids.
    id: [AtomicU64; PLACES],
    made: [AtomicU64; PLACES],
    steps: [AtomicU64; PLACES],
    /// When each was last polled, and by which worker. Of no meaning before the first poll.
    since: [AtomicU64; PLACES],
    /// The tasks that wait for the end of these, as [`joiner`] makes them. 0 if there is none.
    joiner: [AtomicUsize; PLACES],
    /// `None` unless polls are timed.
    measures: Option<Box<[Measures; PLACES]>>,
}

/// The time that a task's polls took, in nanoseconds.
#[derive(Default)]
struct Measures {
    busy: AtomicU64,
    longest: AtomicU64,
}

impl Measures {
    /// The times after so many polls. Before the first one ends, the record still has those of another task, and 0 is
    /// returned.
    fn so_far(&self, polls: u64) -> Measured {
        let load = |time: &AtomicU64| if polls == 0 { 0 } else { time.load(Ordering::Relaxed) };
        Measured { busy: load(&self.busy), longest: load(&self.longest) }
    }
}

const PLACES: usize = 32;

/// A place in a chunk. An enumeration, because the compiler then knows that none is beyond the end.
#[rustfmt::skip]
#[derive(Clone, Copy)]
#[repr(u8)]
enum Place {
    P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15,
    P16, P17, P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31,
}

#[rustfmt::skip]
const ALL_PLACES: [Place; PLACES] = {
    use Place::*;
    [
        P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15,
        P16, P17, P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31,
    ]
};

/// The records of a chunk that have not been used yet.
pub(super) struct Unused<W> {
    next: usize,
    /// `None` once all are in use.
    chunk: Option<Arc<Chunk<W>>>,
}

impl<W> Default for Unused<W> {
    fn default() -> Self {
        Self { next: PLACES, chunk: None }
    }
}

impl<W> Iterator for Unused<W> {
    type Item = Record<W>;

    fn next(&mut self) -> Option<Record<W>> {
        let place = *ALL_PLACES.get(self.next)?;
        self.next += 1;
        let chunk = if self.next < PLACES { self.chunk.clone() } else { self.chunk.take() };
        chunk.map(|chunk| Record { chunk, place })
    }
}

impl<W> Clone for Record<W> {
    fn clone(&self) -> Self {
        Self { chunk: self.chunk.clone(), place: self.place }
    }
}

/// The table of a task: the number of the worker whose list it is in, and the kind of its tasks in the two highest
/// bits.
#[derive(Clone, Copy)]
pub(super) struct TableId(u16);

impl TableId {
    pub(super) fn new(list: usize, kind: usize) -> Self {
        Self(list as u16 | (kind as u16) << 14)
    }

    pub(super) fn list(self) -> usize {
        usize::from(self.0 & 0x3fff)
    }

    pub(super) fn kind(self) -> usize {
        usize::from(self.0 >> 14)
    }
}

/// A poll looks at this before it polls the future: whether the task is cancelled, whether its polls are timed, and
/// whether it gave way before. Mostly none of these, so that one comparison finds it out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Attention(u16);

const TIMED: u16 = 1 << 15;
const GAVE_WAY: u16 = 1 << 14;
/// The bits of a [`CancelReason`].
const REASON: u16 = GAVE_WAY - 1;

/// Why a task was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CancelReason(NonZeroU16);

impl CancelReason {
    /// By a handle, or because the runtime ends.
    pub(crate) const ABORTED: Self = Self(NonZeroU16::new(REASON).unwrap());

    /// The system has refused a thread for a blocking closure, with this error number.
    pub(crate) fn no_thread(errno: i32) -> Self {
        let errno = u16::try_from(errno).ok().filter(|errno| *errno < REASON);
        errno.and_then(NonZeroU16::new).map_or(Self::ABORTED, Self)
    }

    /// The system's error number, if there is one.
    pub(super) fn errno(self) -> Option<i32> {
        Some(self).filter(|reason| *reason != Self::ABORTED).map(|reason| reason.0.get().into())
    }
}

impl Attention {
    pub(super) const NONE: Self = Self(0);
    pub(super) const TIMED: Self = Self(TIMED);

    pub(super) fn cancelled(self) -> Option<CancelReason> {
        NonZeroU16::new(self.0 & REASON).map(CancelReason)
    }

    pub(super) fn gave_way(self) -> bool {
        self.0 & GAVE_WAY != 0
    }

    pub(super) fn is_timed(self) -> bool {
        self.0 & TIMED != 0
    }
}

/// The state of a task when a thread looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Waiting,
    /// `gave_way`: it had used up its budget.
    Queued {
        gave_way: bool,
    },
    Running,
}

/// A look at a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) step: Step,
    pub(crate) polls: u64,
    /// When it was last polled, or made.
    pub(crate) since: Stamp,
    /// The address in the wakers of the task that waits for the end of this one. 0 if there is none.
    pub(crate) joiner: usize,
    /// `None` unless its polls are timed.
    pub(crate) measured: Option<Measured>,
}

/// The time of a task's polls, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) busy: u64,
    pub(crate) longest: u64,
}

/// Joins an address with the id of the task that is awaited, by XOR into the bits that no address uses. The same call
/// with the same id gives the address back. With the id of another task, the result is mostly no address. On 32 bits no
/// bits are free: the address of a task that waited for the record's last task is shown as it is, as a wait that is
/// over.
fn joiner(address: usize, id: u64) -> usize {
    const UNUSED: u32 = if usize::BITS == 64 { 48 } else { 0 };
    if UNUSED == 0 { address } else { address ^ (id as usize) << UNUSED }
}

impl<W> Record<W> {
    /// A chunk of records, of which none is in use.
    #[cold]
    pub(super) fn new_chunk(workers: Arc<W>, table: TableId, queue: usize, attention: Attention) -> Unused<W> {
        let chunk = Arc::new(Chunk {
            workers,
            table,
            queue,
            attention: std::array::from_fn(|_| AtomicU16::new(0)),
            key: [const { AtomicU32::new(0) }; PLACES],
            id: [const { AtomicU64::new(0) }; PLACES],
            made: [const { AtomicU64::new(0) }; PLACES],
            steps: [const { AtomicU64::new(0) }; PLACES],
            since: [const { AtomicU64::new(0) }; PLACES],
            joiner: [const { AtomicUsize::new(0) }; PLACES],
            measures: attention.is_timed().then(Box::default),
        });
        Unused { next: 0, chunk: Some(chunk) }
    }

    /// Begins the life of a task.
    pub(super) fn begin(&self, id: u64, now: Stamp, attention: Attention) {
        let (chunk, place) = self.parts();
        chunk.id[place].store(id, Ordering::Relaxed);
        chunk.made[place].store(now.to_bits(), Ordering::Relaxed);
        chunk.steps[place].store(0, Ordering::Relaxed);
        chunk.joiner[place].store(0, Ordering::Relaxed);
        chunk.attention[place].store(attention.0, Ordering::Relaxed);
    }

    fn parts(&self) -> (&Chunk<W>, usize) {
        (&self.chunk, self.place as usize)
    }

    pub(super) fn workers(&self) -> &Arc<W> {
        &self.chunk.workers
    }

    pub(super) fn table(&self) -> TableId {
        self.chunk.table
    }

    /// The id of the queue that the task goes to.
    pub(super) fn queue(&self) -> usize {
        self.chunk.queue
    }

    /// For a task that any worker may run: the worker that polled it last, or, before its first poll, the one that it
    /// was spawned on. Called by the thread that has the task.
    pub(super) fn last_worker(&self) -> usize {
        let Seen { polls, since, .. } = self.look();
        since.worker().filter(|_| polls > 0).unwrap_or_else(|| self.table().list())
    }

    /// The place of its entry in the table. Called under the lock of the table.
    pub(super) fn key(&self) -> u32 {
        let (chunk, place) = self.parts();
        chunk.key[place].load(Ordering::Relaxed)
    }

    /// The id of the task.
    pub(super) fn id(&self) -> u64 {
        let (chunk, place) = self.parts();
        chunk.id[place].load(Ordering::Relaxed)
    }

    /// When the task was made.
    pub(super) fn made(&self) -> Stamp {
        let (chunk, place) = self.parts();
        Stamp::from_bits(chunk.made[place].load(Ordering::Relaxed))
    }

    pub(super) fn set_key(&self, key: u32) {
        let (chunk, place) = self.parts();
        chunk.key[place].store(key, Ordering::Relaxed);
    }

    /// The task was woken, and is about to be queued.
    pub(super) fn note_queued(&self) {
        self.step();
    }

    /// The task is about to be polled. Returns whether the poll has something to look at. Acquires what the thread did
    /// that cancelled the task.
    pub(super) fn begin_poll(&self, now: Stamp) -> bool {
        let (chunk, place) = self.parts();
        let needs_attention = chunk.attention[place].load(Ordering::Acquire) != 0;
        // Before the step: a thread that sees the task running also sees since when.
        chunk.since[place].store(now.to_bits(), Ordering::Relaxed);
        self.step();
        needs_attention
    }

    /// Returns the things that the poll has to look at.
    pub(super) fn attention(&self) -> Attention {
        let (chunk, place) = self.parts();
        Attention(chunk.attention[place].load(Ordering::Acquire))
    }

    /// The task has used up its budget, and waits in a queue behind all others.
    #[cold]
    pub(super) fn note_gave_way(&self) {
        let (chunk, place) = self.parts();
        chunk.attention[place].fetch_or(GAVE_WAY, Ordering::Relaxed);
    }

    /// The task that gave way is polled again.
    pub(super) fn forget_gave_way(&self) {
        let (chunk, place) = self.parts();
        chunk.attention[place].fetch_and(!GAVE_WAY, Ordering::Relaxed);
    }

    /// Adds the time of a poll to the task's.
    pub(super) fn add_poll(&self, nanos: u64) {
        let (chunk, place) = self.parts();
        if let Some(measures) = &chunk.measures {
            let measures = &measures[place];
            let Measured { busy, longest } = measures.so_far(self.look().polls - 1);
            measures.busy.store(busy.wrapping_add(nanos), Ordering::Relaxed);
            measures.longest.store(longest.max(nanos), Ordering::Relaxed);
        }
    }

    /// Begins a poll anew, at an exact time.
    pub(super) fn set_since(&self, now: Stamp) {
        let (chunk, place) = self.parts();
        chunk.since[place].store(now.to_bits(), Ordering::Relaxed);
    }

    /// The poll returned `Pending`.
    pub(super) fn end_poll(&self) {
        self.step();
    }

    fn step(&self) {
        let (chunk, place) = self.parts();
        let steps = &chunk.steps[place];
        steps.store(steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Notes that the task of `waker` waits for the end of the task with this id, which had the record a moment ago.
    pub(super) fn note_joiner(&self, id: u64, waker: &Waker) {
        let (chunk, place) = self.parts();
        chunk.joiner[place].store(joiner(waker.data().addr(), id), Ordering::Relaxed);
    }

    /// Notes that no task waits any more for the end of the task with this id.
    pub(super) fn forget_joiner(&self, id: u64) {
        let (chunk, place) = self.parts();
        if chunk.id[place].load(Ordering::Relaxed) == id {
            chunk.joiner[place].store(0, Ordering::Relaxed);
        }
    }

    /// Notes that the task is cancelled, under the lock of the table. The caller wakes it after that. async-task's
    /// state orders this before the poll that follows.
    pub(super) fn cancel(&self, CancelReason(reason): CancelReason) {
        let (chunk, place) = self.parts();
        if Attention(chunk.attention[place].load(Ordering::Relaxed)).cancelled().is_none() {
            chunk.attention[place].fetch_or(reason.get(), Ordering::Release);
        }
    }

    /// Looks at the task, which goes on meanwhile.
    pub(super) fn look(&self) -> Seen {
        let (chunk, place) = self.parts();
        let steps = chunk.steps[place].load(Ordering::Acquire);
        let step = match steps % 3 {
            0 => Step::Waiting,
            1 => Step::Queued { gave_way: Attention(chunk.attention[place].load(Ordering::Relaxed)).gave_way() },
            _ => Step::Running,
        };
        let polls = (steps + 1) / 3;
        Seen {
            step,
            polls,
            since: if polls == 0 { self.made() } else { Stamp::from_bits(chunk.since[place].load(Ordering::Relaxed)) },
            joiner: match chunk.joiner[place].load(Ordering::Relaxed) {
                0 => 0,
                noted => joiner(noted, self.id()),
            },
            measured: chunk.measures.as_ref().map(|measures| measures[place].so_far(steps / 3)),
        }
    }
}
