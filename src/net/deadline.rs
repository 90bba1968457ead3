//! Deadlines of a stream: how long its reads and its writes may wait.
//!
//! A poll trait has no operations, only polls; so what is bounded is a direction of the stream.
//!
//! # The rule
//! 1. A poll tries its system call first. What is there is taken, however late it is.
//! 2. The first poll that has to wait starts the direction's clocks ([`Deadlines::poll_waiting`]), and those after it, by
//!    whichever future, go by them, until one is ready, fails or times out ([`Deadlines::settled`]), or a limit is set.
//! 3. A transfer in the other direction sets the idle clock back, if it runs.
//!
//! # The timer
//! A direction has one, and operations do not touch it: they only note since when they wait. It fires after the limit,
//! and wakes whoever waits. Whoever polls then finds that the time is over, or sets the timer to when it will be. So a busy
//! stream arms a timer once in each span of its limit, and reads the clock once for each wait.
//!
//! # The races
//! * The timer may fire while nobody waits, and the next one to wait would wait for ever: so firing leaves a mark
//!   ([`Alarm::rung`]), at which the timer is set anew.
//! * A limit may be set while another task waits, which would not hear of it: so setting one wakes the direction.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;

use crate::budget;
use crate::reactor::{Direction, Registration};
use crate::time::{self, Instant, Sleep, sleep_until};

/// The deadlines of a stream, once it has some.
#[derive(Default)]
pub(super) struct Deadlines(OnceLock<Box<Both>>);

struct Both {
    read: Deadline,
    write: Deadline,
}

/// The deadlines of one direction.
struct Deadline {
    /// Since when somebody waits; 0 if nobody does.
    since: AtomicU64,
    /// When the other direction last moved bytes while somebody waited in this one.
    active: AtomicU64,
    alarm: Arc<Alarm>,
    settings: Mutex<Settings>,
}

/// Which of the limits of a direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// On one operation.
    Operation,
    /// On the time without any.
    Idle,
}

#[derive(Default)]
struct Settings {
    operation: Option<Duration>,
    idle: Option<Duration>,
    timer: Option<Sleep>,
}

/// What the timer wakes.
struct Alarm {
    /// It was woken since it was last set, or was never set.
    rung: AtomicBool,
    /// Wakes whoever waits in the direction.
    waiters: Waker,
}

impl Deadlines {
    pub(super) fn limit(&self, direction: Direction, which: Limit) -> Option<Duration> {
        *self.0.get()?.of(direction).settings.lock().limit(which)
    }

    /// Sets a limit. The time begins with the next poll that has to wait; whoever waits already polls at once.
    pub(super) fn set_limit<S: AsFd>(
        &self,
        registration: &Registration<S>,
        direction: Direction,
        which: Limit,
        limit: Option<Duration>,
    ) {
        if limit.is_none() && self.0.get().is_none() {
            return;
        }
        let both = self.0.get_or_init(|| {
            let deadline = |direction| Deadline::new(registration.waker(direction));
            Box::new(Both { read: deadline(Direction::Read), write: deadline(Direction::Write) })
        });
        let deadline = both.of(direction);
        let mut settings = deadline.settings.lock();
        *settings.limit(which) = limit;
        deadline.stop();
        let limited = settings.operation.is_some() || settings.idle.is_some();
        registration.observe(direction, limited);
        let unused = if limited { None } else { settings.timer.take() };
        drop(settings);
        drop(unused);
        // With the mark: if the timer is set, it is by other limits.
        deadline.alarm.wake_by_ref();
    }
}

impl Deadlines {
    /// See [`Observer`](crate::reactor::Observer).
    #[inline]
    pub(super) fn settled(&self, direction: Direction, moved: bool) {
        let Some(both) = self.0.get() else { return };
        both.of(direction).stop();
        let other = both.of(direction.opposite());
        if moved && other.is_waited_in() {
            // The stream is not idle. The timer of whoever waits stays, and finds out when it fires.
            other.set_back();
        }
    }

    /// See [`Observer`](crate::reactor::Observer).
    #[inline(never)]
    pub(super) fn poll_waiting(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Error> {
        let Some(both) = self.0.get() else { return Poll::Pending };
        let deadline = both.of(direction);
        if deadline.alarm.rung.load(Ordering::Acquire) {
            return deadline.expire(cx, direction);
        }
        // If the timer fires now, it wakes whoever polls here: the waker is stored already.
        if !deadline.is_waited_in() {
            deadline.start();
        }
        Poll::Pending
    }
}

impl Both {
    #[inline]
    fn of(&self, direction: Direction) -> &Deadline {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Deadline {
    /// No limits yet. `waiters` is to wake whoever waits in its direction.
    fn new(waiters: Waker) -> Self {
        Self {
            since: AtomicU64::new(0),
            active: AtomicU64::new(0),
            alarm: Arc::new(Alarm { rung: AtomicBool::new(true), waiters }),
            settings: Mutex::default(),
        }
    }

    // Relaxed throughout: a time says something about itself only. Two tasks that wait in one direction may both start it,
    // at about the same moment.

    #[inline]
    fn is_waited_in(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn start(&self) -> u64 {
        let now = Instant::now().to_bits();
        self.since.store(now, Ordering::Relaxed);
        now
    }

    #[inline]
    fn stop(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    #[cold]
    fn set_back(&self) {
        self.active.store(Instant::now().to_bits(), Ordering::Relaxed);
    }

    /// The timer has fired, or is not set: the time is over, or it is set to when it will be.
    #[cold]
    fn expire(&self, cx: &mut Context<'_>, direction: Direction) -> Poll<io::Error> {
        // Without budget the call was perhaps not tried, and what is there goes before a clock.
        ready!(budget::poll_proceed(cx));
        let mut settings = self.settings.lock();
        // Read once: another task that uses the stream, or whoever sets a limit, may stop it at any time.
        let since = match self.since.load(Ordering::Relaxed) {
            0 => self.start(),
            since => since,
        };
        let idle_since = since.max(self.active.load(Ordering::Relaxed));
        let end = |since: u64, limit: Option<Duration>| limit.map(|limit| Instant::from_bits(since).later(limit));
        let ends = [(end(since, settings.operation), Limit::Operation), (end(idle_since, settings.idle), Limit::Idle)];
        let first = ends.into_iter().filter_map(|(ends, which)| Some((ends?, which))).min_by_key(|(ends, _)| *ends);
        let Some((ends, which)) = first else { return Poll::Pending };
        if !time::is_entered() && Instant::now() < ends {
            self.stop();
            return Poll::Ready(no_runtime());
        }
        // Before it is set: it may ring at once.
        self.alarm.rung.store(false, Ordering::Release);
        let timer = settings.timer.get_or_insert_with(|| sleep_until(ends));
        timer.reset(ends);
        let waker = Waker::from(self.alarm.clone());
        ready!(Pin::new(timer).poll(&mut Context::from_waker(&waker)));
        self.alarm.rung.store(true, Ordering::Relaxed);
        self.stop();
        // A task that reads again and again under a timeout of nothing is not to keep its worker.
        budget::spend();
        Poll::Ready(timed_out(direction, which, *settings.limit(which)))
    }
}

impl Settings {
    fn limit(&mut self, which: Limit) -> &mut Option<Duration> {
        match which {
            Limit::Operation => &mut self.operation,
            Limit::Idle => &mut self.idle,
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before those who will look at it are woken.
        self.rung.store(true, Ordering::Release);
        self.waiters.wake_by_ref();
    }
}

#[cold]
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

#[cold]
fn no_runtime() -> io::Error {
    io::Error::other(
        "a stream with a timeout has to wait, and no kittiwake runtime is running on this thread to time it; \
         poll it inside kittiwake::block_on or in a task, or take the timeout away",
    )
}
