//! Deadlines of a stream: how long its reads and its writes may wait.
//!
//! `AsyncRead` has no read operation that begins and ends, only polls. A dropped `read` future and the next one look
//! the same. So a limit bounds a direction of the stream: the time in which its polls have to wait.
//!
//! # The rule
//! 1. A poll tries its system call first. It takes what is there, however late.
//! 2. The first poll that has to wait starts the direction's clocks ([`Deadlines::poll_expired`]). Later polls, of
//!    whichever future, go by them, until one is ready, fails or times out ([`Deadlines::operation_ended`]), or a limit
//!    is set.
//! 3. A transfer in the other direction resets the idle clock, if it runs.
//!
//! # The timer
//! A direction has one timer, and operations do not touch it: they only note since when they wait. It fires after the
//! limit, and wakes the direction's waiters. The task that polls then finds that the time is over, or sets the timer to
//! the moment when it will be. So a busy stream arms a timer once in each span of its limit. It reads the clock once
//! for each wait, and once for each transfer in the other direction meanwhile.
//!
//! A thread outside any runtime has no timers. There the timer goes back to the runtime that it was last set in.
//!
//! # The races
//! * The timer may fire while no task waits, and the next one to wait would wait for ever. So firing leaves a mark
//!   ([`Expiry::has_fired`]), at which the timer is set anew.
//! * A limit may be set while another task waits, which would not hear of it. So setting one wakes the direction's
//!   waiters.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use once_cell::race::OnceBox;
use parking_lot::Mutex;

use crate::budget;
use crate::reactor::Direction;
use crate::time::{Instant, Sleep, Timers, sleep_until};

/// The deadlines of a stream, if it has ever had some.
#[derive(Default)]
pub(super) struct Deadlines(OnceBox<Both>);

struct Both {
    read: Deadline,
    write: Deadline,
}

/// The deadlines of one direction.
struct Deadline {
    /// Since when the polls of this direction have had to wait. 0 if the last one did not.
    waits_since: AtomicU64,
    /// When the other direction last moved bytes while an operation waited in this one.
    other_moved: AtomicU64,
    expiry: Arc<Expiry>,
    settings: Mutex<Settings>,
}

/// One of the limits of a direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// On one operation.
    Operation,
    /// On the time without any transfer.
    Idle,
}

#[derive(Default)]
struct Settings {
    operation: Option<Duration>,
    idle: Option<Duration>,
    timer: Option<Sleep>,
    /// The timers that the timer was last armed with. A thread outside any runtime arms it with them again.
    timers: Weak<Timers>,
}

/// The waker of a direction's timer.
struct Expiry {
    /// The timer has fired since it was last set, or a limit was set.
    has_fired: AtomicBool,
    /// Wakes the direction's waiters.
    waiters: Waker,
}

impl Deadlines {
    /// Whether the stream never had a limit.
    pub(super) fn is_empty(&self) -> bool {
        self.0.get().is_none()
    }

    pub(super) fn limit(&self, direction: Direction, which: Limit) -> Option<Duration> {
        *self.0.get()?.of(direction).settings.lock().limit(which)
    }

    /// Sets a limit. The time begins with the next poll that has to wait. A task that is already waiting is woken for
    /// that. `waiters` makes a waker of a direction's waiters.
    pub(super) fn set_limit(
        &self,
        direction: Direction,
        which: Limit,
        limit: Option<Duration>,
        waiters: impl Fn(Direction) -> Waker,
    ) {
        if limit.is_none() && self.is_empty() {
            return;
        }
        let both = self.0.get_or_init(|| {
            let deadline = |direction| Deadline::new(waiters(direction));
            Box::new(Both { read: deadline(Direction::Read), write: deadline(Direction::Write) })
        });
        let deadline = both.of(direction);
        let mut settings = deadline.settings.lock();
        *settings.limit(which) = limit;
        deadline.stop();
        let unused = if settings.has_limit() { None } else { settings.timer.take() };
        drop(settings);
        drop(unused);
        // Sets the mark too: no timer is set by the new limit yet, so the next poll that has to wait must set it.
        deadline.expiry.wake_by_ref();
    }

    /// An operation has ended, and has moved bytes or not.
    pub(super) fn operation_ended(&self, direction: Direction, moved: bool) {
        let Some(both) = self.0.get() else { return };
        both.of(direction).stop();
        let other = both.of(direction.opposite());
        if moved && other.is_waiting() {
            // The stream is not idle. The timer of the waiting task stays, and that task finds out when it fires.
            other.note_transfer();
        }
    }

    /// An operation has to wait. `Ready` if its time is over, with the error.
    pub(super) fn poll_expired(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Error> {
        let Some(both) = self.0.get() else { return Poll::Pending };
        let deadline = both.of(direction);
        if deadline.expiry.has_fired.load(Ordering::Acquire) {
            return deadline.poll_timer(cx, direction);
        }
        // If the timer fires now, this task hears of it: its waker is stored, or was woken for want of budget.
        if !deadline.is_waiting() {
            deadline.start();
        }
        Poll::Pending
    }
}

impl Both {
    fn of(&self, direction: Direction) -> &Deadline {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Deadline {
    /// No limits yet. `waiters` wakes the direction's waiters.
    fn new(waiters: Waker) -> Self {
        Self {
            waits_since: AtomicU64::new(0),
            other_moved: AtomicU64::new(0),
            expiry: Arc::new(Expiry { has_fired: AtomicBool::new(false), waiters }),
            settings: Mutex::default(),
        }
    }

    // Relaxed throughout: no other memory is published through these times. Two tasks that wait in one direction may
    // both start the clock, at about the same moment.

    fn is_waiting(&self) -> bool {
        self.waits_since.load(Ordering::Relaxed) != 0
    }

    // An echo costs 1.5 % more without this.
    #[inline]
    fn start(&self) -> u64 {
        let now = Instant::now().to_bits();
        self.waits_since.store(now, Ordering::Relaxed);
        now
    }

    fn stop(&self) {
        self.waits_since.store(0, Ordering::Relaxed);
    }

    // An echo costs 0.4 % more without this.
    #[cold]
    fn note_transfer(&self) {
        self.other_moved.store(Instant::now().to_bits(), Ordering::Relaxed);
    }

    /// The timer has fired, or a limit was set. Returns the error if the time is over. Otherwise sets the timer to the
    /// end of the time. A poll without budget has perhaps not made its system call, so the caller makes it before it
    /// returns the error.
    // A served echo costs 2.0 % more without this.
    #[cold]
    fn poll_timer(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Error> {
        let mut settings = self.settings.lock();
        // Before the timer is set, because it may fire at once.
        self.expiry.has_fired.store(false, Ordering::Release);
        // Loaded once: another task that uses the stream or sets a limit may stop it at any time.
        let since = match self.waits_since.load(Ordering::Relaxed) {
            0 => self.start(),
            since => since,
        };
        let idle_since = since.max(self.other_moved.load(Ordering::Relaxed));
        let end = |since: u64, limit: Option<Duration>| limit.map(|limit| Instant::from_bits(since).later(limit));
        let ends = [(end(since, settings.operation), Limit::Operation), (end(idle_since, settings.idle), Limit::Idle)];
        let first = ends.into_iter().filter_map(|(end, which)| Some((end?, which))).min_by_key(|(end, _)| *end);
        let Some((end, which)) = first else { return Poll::Pending };
        let Settings { timer, timers, .. } = &mut *settings;
        let timer = timer.get_or_insert_with(|| sleep_until(end));
        timer.reset(end);
        let waker = Waker::from(self.expiry.clone());
        // The budget is asked below. A refusal here would wake this direction's waiters under the lock of the settings.
        let polled = budget::with_fresh(|| timer.poll_anywhere(&mut Context::from_waker(&waker), timers));
        if polled == Some(Poll::Pending) {
            return Poll::Pending;
        }
        // Also if the budget refuses: the next poll comes here again.
        self.expiry.has_fired.store(true, Ordering::Relaxed);
        if polled.is_none() {
            self.stop();
            return Poll::Ready(no_runtime());
        }
        let limit = *settings.limit(which);
        // A refusal wakes the task, and no waker may run under the lock.
        drop(settings);
        // A task that reads again and again under a tiny timeout must not keep its worker.
        ready!(budget::poll_spend_complete(cx));
        self.stop();
        Poll::Ready(timed_out(direction, which, limit))
    }
}

impl Settings {
    fn limit(&mut self, which: Limit) -> &mut Option<Duration> {
        match which {
            Limit::Operation => &mut self.operation,
            Limit::Idle => &mut self.idle,
        }
    }

    fn has_limit(&self) -> bool {
        self.operation.is_some() || self.idle.is_some()
    }
}

impl Wake for Expiry {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the tasks that look at it are woken.
        self.has_fired.store(true, Ordering::Release);
        self.waiters.wake_by_ref();
    }
}

fn timed_out(direction: Direction, which: Limit, limit: Option<Duration>) -> io::Error {
    let limit = limit.unwrap_or_default();
    let message = match (which, direction) {
        (Limit::Operation, Direction::Read) => format!("nothing to read came within the read timeout of {limit:?}"),
        (Limit::Operation, Direction::Write) => {
            format!("nothing could be written within the write timeout of {limit:?}")
        }
        (Limit::Idle, _) => format!("nothing was read or written within the idle timeout of {limit:?}"),
    };
    io::Error::new(io::ErrorKind::TimedOut, message)
}

fn no_runtime() -> io::Error {
    io::Error::other(
        "a stream with a timeout has to wait, and no kittiwake runtime is running on this thread to time it, nor did \
         it wait before in one that still runs; \
         poll it inside kittiwake::block_on or in a task, or take the timeout away",
    )
}
