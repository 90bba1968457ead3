//! The deadline of a connection: how long each wait may last.
//!
//! One timer serves all limits. While requests come, it stays where it is, as long as it still wakes the connection's
//! task. When it fires too early it is set anew. So a request costs no timer. A limit begins up to 10 ms late: it is
//! measured from the clock's last tick, which is cheaper to read.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use super::activity::{Activity, Waits};
use crate::budget::with_fresh;
use crate::time::{Duration, Instant, Sleep, sleep};

/// The default of [`Limits::idle_in_drain`].
pub(super) const IDLE_IN_DRAIN: Duration = Duration::from_secs(1);

/// A connection of HTTP/2 looks again after this time at the earliest ([`Waits::Streams`]), also if the limit is less.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long a closed connection waits for the client's end, if the client was still sending. On HTTP/2 it is the time
/// without a byte from the client, and [`Limits::body`] bounds the whole.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// The limits of a connection. The methods of [`Serve`](super::Serve) document each.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) header_read: Duration,
    pub(super) keep_alive: Duration,
    pub(super) body: Duration,
    /// How long a connection may wait with its next or first request once its server stops.
    pub(super) idle_in_drain: Duration,
    /// As [`LINGER`], once its server stops.
    pub(super) linger_in_drain: Duration,
}

impl Limits {
    fn of(&self, waits: Waits, draining: bool) -> Option<Duration> {
        match waits {
            Waits::Handler => None,
            Waits::Head(_) => Some(self.header_read),
            Waits::Request(_) if draining => Some(self.keep_alive.min(self.idle_in_drain)),
            Waits::Request(_) => Some(self.keep_alive),
            Waits::Body(_) | Waits::Reader(_) | Waits::Window(_) | Waits::Streams => Some(self.body),
            Waits::End(_) if draining => Some(self.linger_in_drain),
            Waits::End(_) => Some(LINGER),
        }
    }
}

pub(super) struct Deadline {
    limits: Limits,
    /// The wait that `due` belongs to, and whether the server was stopping.
    current: (Waits, bool),
    /// When the wait has lasted too long. `None` if it may last for ever.
    due: Option<Instant>,
    /// When the last wait for the client's end is over at the latest, once there is one.
    last: Option<Instant>,
    timer: Sleep,
}

impl Deadline {
    /// Starts with the wait for a first request.
    pub(super) fn new(limits: Limits) -> Self {
        let timer = sleep(limits.header_read);
        let due = Some(timer.deadline());
        Self { limits, current: (Waits::Head(0), false), due, last: None, timer }
    }

    /// Waits until the connection has waited too long. Returns for what.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>, activity: &Activity, draining: bool) -> Poll<Waits> {
        self.poll_wait(cx, activity.waits(draining), draining)
    }

    /// Waits until the wait for a first byte has lasted too long.
    pub(super) fn poll_first_byte(&mut self, cx: &mut Context<'_>, draining: bool) -> Poll<Waits> {
        // The limit is that of a head, and in the drain that of an idle connection.
        self.poll_wait(cx, if draining { Waits::Request(0) } else { Waits::Head(0) }, draining)
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>, waits: Waits, draining: bool) -> Poll<Waits> {
        if self.current != (waits, draining) && !self.begin(waits, draining, cx.waker()) {
            return Poll::Pending;
        }
        loop {
            // A client that always has more to read uses up the budget in each poll. That must not hide the time.
            ready!(with_fresh(|| Pin::new(&mut self.timer).poll(cx)));
            if self.due.is_some_and(|due| self.timer.deadline() >= due) {
                if waits != Waits::Streams {
                    return Poll::Ready(waits);
                }
                // The client owes nothing, so this is not its limit.
                self.due = Some(Instant::now().later(self.limits.body.max(LOOK_AGAIN)));
            }
            match self.due {
                Some(due) => self.timer.reset(due),
                None => return Poll::Pending,
            }
        }
    }

    /// Begins another wait. Returns whether the timer must be polled.
    fn begin(&mut self, waits: Waits, draining: bool, waker: &Waker) -> bool {
        self.current = (waits, draining);
        let limit = self.limits.of(waits, draining);
        // The clock is read only if there is a limit.
        self.due = limit.map(|limit| Instant::now_rounded_up().later(limit));
        if let (Waits::End(_), Some(due)) = (waits, self.due) {
            let last = *self.last.get_or_insert_with(|| Instant::now().later(self.limits.body.max(LINGER)));
            self.due = Some(due.min(last));
        }
        match self.due {
            None => false,
            // The timer stays, if it still wakes this task. It may have fired in this very poll, or its worker may have
            // taken it out of its wheel. The connection would have lost its limit then.
            Some(due) if self.timer.deadline() <= due && self.timer.will_wake(waker) => false,
            Some(due) => {
                self.timer.reset(due);
                true
            }
        }
    }
}
