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
//! 4. At the end of the idle time, a waiting operation of the other direction tries again before this one fails. Linux
//!    reports room in a full send buffer only once a third of it is free. So a waiting write may find room that no
//!    event has reported, and only an attempt shows it. If the other operation does not try within [`GRACE`], this one
//!    fails.
//!
//! # The attempt of the other direction
//! ```text
//!  the read, at its idle end                   the write
//!  notes a Probe, asks the write ------------> is woken, makes its system call again
//!  waits for the answer, at most GRACE         moves bytes, or none
//!  is woken, looks at the clocks <------------ answers
//!  goes on, or fails
//! ```
//! A probe counts for one end of the idle time. A transfer moves that end, and the new end has a probe of its own. A
//! task may have given up its write, and then it never answers. [`GRACE`] bounds the wait for the answer.
//!
//! A system call of the caller's own counts as an operation of rules 3 and 4, but has no clock of its own.
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
//! * A write may be asked while its task is between its attempt and the store of its waker. So asking leaves the marks
//!   [`Expiry::asked`] and `has_fired` before it wakes the waiters. A read or a write looks at them after the store.
//! * The read and the write may ask each other at the same time. Each of them tries and answers in the poll in which it
//!   finds the question, and a mark from the other one does not end its probe. So neither waits for the other in a
//!   circle.
//! * A write may move bytes while the read looks whether a write waits. So the write notes the transfer before it stops
//!   its clock, also at the end of its own time, and the read loads them in the opposite order.
//! * A limit may be set while another task waits, which would not hear of it. So setting one wakes the direction's
//!   waiters.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use once_cell::race::OnceBox;
use parking_lot::Mutex;

use crate::budget;
use crate::reactor::{Direction, Interest};
use crate::time::{Instant, Sleep, Timers, sleep_until};

/// The longest time for which an operation at its idle end waits for an attempt of the other direction. The idle limit
/// itself bounds it too. An operation that still waits tries as soon as its task runs, so this is over only if the wait
/// was given up, or if the worker of that task is busy for so long.
const GRACE: Duration = Duration::from_secs(1);

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
    /// How many system calls of the caller's own wait for this direction. They have no clock.
    own_calls: AtomicUsize,
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

/// The result of a wait whose time is over, or that another direction has asked to try.
pub(super) enum Expired {
    /// The operation makes its system call once more, and goes on to wait if that is in vain.
    Retry,
    /// The operation makes its system call once more, and fails with the error if that is in vain.
    Fail(io::Error),
}

#[derive(Default)]
struct Settings {
    operation: Option<Duration>,
    idle: Option<Duration>,
    /// The last probe of the other direction.
    probe: Option<Probe>,
    timer: Option<Sleep>,
    /// The timers that the timer was last armed with. A thread outside any runtime arms it with them again.
    timers: Weak<Timers>,
}

/// A system call of the caller's own. Once it waits, it counts as a waiting operation until it is dropped.
pub(super) struct OwnCall<'a> {
    deadlines: &'a Deadlines,
    interest: Interest,
    waits: bool,
}

/// A wait at the idle end for an attempt of the other direction.
struct Probe {
    /// The moment of the last transfer, or the start of the wait, as the asking operation saw it.
    idle_since: u64,
    /// When the wait ends. `None` once the other direction has answered.
    end: Option<Instant>,
}

/// The clocks of a direction at one moment.
struct Clocks {
    /// Since when its operation waits.
    since: u64,
    /// Since when neither direction has moved bytes.
    idle_since: u64,
    /// An operation of the other direction waits too.
    other_waits: bool,
}

/// The waker of a direction's timer.
struct Expiry {
    /// The timer has fired since it was last set, a limit was set, or the other direction has asked or answered.
    has_fired: AtomicBool,
    /// The other direction has asked for an attempt.
    asked: AtomicBool,
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
        if moved {
            both.note_moved(direction);
        }
        both.of(direction).stop();
    }

    /// An operation has to wait. `Ready` if it must make its system call once more. The caller then calls
    /// [`retried`](Deadlines::retried).
    pub(super) fn poll_expired(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<Expired> {
        let Some(both) = self.0.get() else { return Poll::Pending };
        let deadline = both.of(direction);
        if deadline.expiry.has_fired.load(Ordering::Acquire) {
            return both.poll_timer(cx, direction);
        }
        // If the timer fires now, this task hears of it: its waker is stored, or was woken for want of budget.
        if !deadline.is_waiting() {
            deadline.start();
        }
        Poll::Pending
    }

    /// A system call of the caller's own has been made. It may have been the attempt that the other direction has asked
    /// for, unless a read or a write also waits, which answers for itself.
    pub(super) fn called<R>(&self, interest: Interest, result: io::Result<R>) -> io::Result<R> {
        let Some(both) = self.0.get() else { return result };
        if result.is_ok() {
            // Both clocks are looked at before one of them is stopped.
            interest.directions().for_each(|direction| both.note_moved(direction));
            interest.directions().for_each(|direction| both.of(direction).stop());
        }
        if !result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            let answers = |direction: &Direction| !both.of(*direction).is_waiting();
            interest.directions().filter(answers).for_each(|direction| self.retried(direction));
        }
        result
    }

    /// A system call of the caller's own, which may have to wait.
    pub(super) fn call(&self, interest: Interest) -> OwnCall<'_> {
        OwnCall { deadlines: self, interest, waits: false }
    }

    /// An operation has made its system call once more. If the other direction has asked for that, it gets the answer.
    pub(super) fn retried(&self, direction: Direction) {
        let Some(both) = self.0.get() else { return };
        if both.of(direction).expiry.asked.swap(false, Ordering::AcqRel) {
            both.of(direction.opposite()).end_probe();
        }
    }
}

impl Both {
    /// Bytes have moved in this direction, so the stream is not idle. The timer of a task that waits in the other one
    /// stays, and that task finds out when it fires.
    fn note_moved(&self, direction: Direction) {
        let other = self.of(direction.opposite());
        if other.is_waiting() {
            other.note_transfer();
        }
    }

    fn of(&self, direction: Direction) -> &Deadline {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }

    /// The timer has fired, a limit was set, or the other direction has asked or answered. Sets the timer to the next
    /// end of a time. `Ready` if the operation must make its system call once more: because the other direction has
    /// asked for that, or because its time is over.
    // A served echo costs 2.0 % more without this.
    #[cold]
    fn poll_timer(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<Expired> {
        let (deadline, other) = (self.of(direction), self.of(direction.opposite()));
        let mut settings = deadline.settings.lock();
        // Before the timer is set, because it may fire at once. A swap, as each change of this mark: if it takes the
        // mark of a question, this thread also sees `asked`. `retried` takes `asked` back.
        deadline.expiry.has_fired.swap(false, Ordering::AcqRel);
        let is_asked = deadline.expiry.asked.load(Ordering::Acquire);
        let clocks = self.clocks(direction);
        let mut asks = false;
        let (polled, which) = loop {
            let Some((end, which)) = settings.first_end(&clocks) else { break (Some(Poll::Pending), Limit::Idle) };
            let polled = deadline.poll_until(end, &mut settings);
            let is_idle = polled == Some(Poll::Ready(())) && which == Limit::Idle;
            if !(is_idle && clocks.other_waits && settings.begin_probe(clocks.idle_since)) {
                break (polled, which);
            }
            asks = true;
        };
        if asks && polled.is_none() {
            // No timer can bound the wait for the answer. So the next poll fails without it.
            settings.end_probe();
        }
        let limit = *settings.limit(which);
        // A refusal of budget and a question wake tasks, and no waker may run under the lock.
        drop(settings);
        if asks {
            other.expiry.ask();
        }
        let is_over = polled != Some(Poll::Pending);
        if is_over {
            // The next poll comes here again, also if the budget refuses this one.
            deadline.expiry.has_fired.swap(true, Ordering::AcqRel);
        }
        if is_over && asks {
            // No timer wakes this task. It gives the other direction a chance to try first.
            cx.waker().wake_by_ref();
        }
        let fails = is_over && !asks;
        if !fails && !is_asked {
            return Poll::Pending;
        }
        // A task that tries again and again under a tiny timeout must not keep its worker.
        if budget::poll_spend_complete(cx).is_pending() {
            deadline.expiry.has_fired.swap(true, Ordering::AcqRel);
            return Poll::Pending;
        }
        Poll::Ready(match polled {
            _ if !fails => Expired::Retry,
            None => Expired::Fail(no_runtime()),
            Some(_) => Expired::Fail(timed_out(direction, which, limit)),
        })
    }

    /// The clocks of a direction in which an operation waits.
    fn clocks(&self, direction: Direction) -> Clocks {
        let (deadline, other) = (self.of(direction), self.of(direction.opposite()));
        // Loaded once: another task that uses the stream or sets a limit may stop it at any time.
        let since = match deadline.waits_since.load(Ordering::Relaxed) {
            0 => deadline.start(),
            since => since,
        };
        // Before the last transfer is loaded: see the races.
        let other_waits =
            other.waits_since.load(Ordering::Acquire) != 0 || other.own_calls.load(Ordering::Acquire) != 0;
        Clocks { since, idle_since: since.max(deadline.other_moved.load(Ordering::Relaxed)), other_waits }
    }
}

impl Deadline {
    /// No limits yet. `waiters` wakes the direction's waiters.
    fn new(waiters: Waker) -> Self {
        Self {
            waits_since: AtomicU64::new(0),
            own_calls: AtomicUsize::new(0),
            other_moved: AtomicU64::new(0),
            expiry: Arc::new(Expiry { has_fired: AtomicBool::new(false), asked: AtomicBool::new(false), waiters }),
            settings: Mutex::default(),
        }
    }

    // Relaxed: no other memory is published through these times, except by `stop`. Two tasks that wait in one direction
    // may both start the clock, at about the same moment.

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
        // Release, and the load in `clocks` acquires: see the races.
        self.waits_since.store(0, Ordering::Release);
    }

    // An echo costs 0.4 % more without this.
    #[cold]
    fn note_transfer(&self) {
        // Of two tasks that move bytes, the one that read the clock first may come last.
        self.other_moved.fetch_max(Instant::now().to_bits(), Ordering::Relaxed);
    }

    /// Sets the timer to `end` and polls it. `None` if it has to wait and there is no runtime for that.
    fn poll_until(&self, end: Instant, settings: &mut Settings) -> Option<Poll<()>> {
        let Settings { timer, timers, .. } = settings;
        let timer = timer.get_or_insert_with(|| sleep_until(end));
        timer.reset(end);
        let waker = Waker::from(self.expiry.clone());
        // `poll_timer` asks the budget. A refusal here would wake this direction's waiters under the lock.
        budget::with_fresh(|| timer.poll_anywhere(&mut Context::from_waker(&waker), timers))
    }

    /// The other direction has tried. An operation that waits for that looks at its clocks again.
    #[cold]
    fn end_probe(&self) {
        self.settings.lock().end_probe();
        self.expiry.wake_by_ref();
    }
}

impl OwnCall<'_> {
    /// The call has to wait, and its waker is stored: a task that sets the stream's first limit after this finds the
    /// waker, and one that has set it before is seen here.
    pub(super) fn begin(&mut self) {
        let Some(both) = self.deadlines.0.get() else { return };
        if !self.waits {
            self.waits = true;
            self.interest.directions().for_each(|direction| {
                both.of(direction).own_calls.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
}

impl Drop for OwnCall<'_> {
    fn drop(&mut self) {
        let Some(both) = self.deadlines.0.get().filter(|_| self.waits) else { return };
        self.interest.directions().for_each(|direction| {
            both.of(direction).own_calls.fetch_sub(1, Ordering::Release);
        });
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

    /// The time that is over first.
    fn first_end(&self, clocks: &Clocks) -> Option<(Instant, Limit)> {
        let end = |since: u64, limit: Option<Duration>| limit.map(|limit| Instant::from_bits(since).later(limit));
        let probe = self.probe.as_ref().filter(|probe| probe.idle_since == clocks.idle_since);
        let answered_by = probe.and_then(|probe| probe.end);
        let idle_end = end(clocks.idle_since, self.idle).map(|end| answered_by.map_or(end, |by| by.max(end)));
        let ends = [(end(clocks.since, self.operation), Limit::Operation), (idle_end, Limit::Idle)];
        ends.into_iter().filter_map(|(end, which)| Some((end?, which))).min_by_key(|(end, _)| *end)
    }

    /// Begins to wait for an answer. Returns `false` if there was a probe for this idle end.
    fn begin_probe(&mut self, idle_since: u64) -> bool {
        let is_new = self.probe.as_ref().is_none_or(|probe| probe.idle_since != idle_since);
        if is_new {
            let end = Instant::now().later(self.idle.unwrap_or_default().min(GRACE));
            self.probe = Some(Probe { idle_since, end: Some(end) });
        }
        is_new
    }

    fn end_probe(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.end = None;
        }
    }
}

impl Expiry {
    /// Makes the operation that waits in this direction try.
    fn ask(self: &Arc<Self>) {
        // Before the mark that leads to it.
        self.asked.store(true, Ordering::Release);
        self.wake_by_ref();
    }
}

impl Wake for Expiry {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the tasks that look at it are woken.
        self.has_fired.swap(true, Ordering::AcqRel);
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
