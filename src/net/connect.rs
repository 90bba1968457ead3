//! Connect: a race of a host's addresses, as RFC 8305 describes it ("Happy Eyeballs").
//!
//! # The protocol
//! 1. The addresses are ordered so that IPv4 and IPv6 alternate ([`interleave`]). The first address stays the first, and
//!    the addresses of one family keep their order.
//! 2. An attempt at the first address starts. The next attempt starts [`STAGGER`] after the last one, or at once when an
//!    attempt fails.
//! 3. The first attempt that succeeds wins. All others are dropped, which closes their sockets.
//! 4. If all fail, the error names each address ([`AddrError`]).
//!
//! [`connect`] has no race for a single address: it awaits the attempt as it is, without a timer.
//!
//! # Timers
//! The race runs wherever its attempts run, also in a foreign executor outside any runtime. There a timer waits with the
//! runtime that it waited in before. If there is none, an attempt starts only when another has failed.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};
use std::vec;

use super::addr::{ToSocketAddrs, no_address, resolve, resolve_until};
use super::addr_error::{AddrError, Operation};
use crate::budget;
use crate::time::{Duration, Sleep, Timers, sleep};

/// The time between the starts of two attempts: the "Connection Attempt Delay" of RFC 8305, section 5.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to one of `addrs` by `attempt`.
pub(super) async fn connect<T, F>(addrs: impl ToSocketAddrs, mut attempt: impl FnMut(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let addrs = resolve(addrs).await?;
    match addrs[..] {
        [addr] => attempt(addr).await,
        _ => {
            let mut race = Race::new(addrs, attempt);
            poll_fn(|cx| race.poll(cx)).await
        }
    }
}

/// Connects as [`connect`] does, within `duration` for the look-up of the name and all addresses together.
pub(super) async fn connect_timeout<T, F>(
    addrs: impl ToSocketAddrs,
    duration: Duration,
    attempt: impl FnMut(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    if duration.is_zero() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a connect with a timeout of zero can never succeed"));
    }
    let mut limit = Timer::new(duration);
    let addrs = resolve_until(addrs, |cx, name| {
        limit.poll(cx).map(|over| match over {
            Over::Elapsed => timed_out(format!("{name:?} was not looked up within {duration:?}")),
            Over::NoRuntime => no_runtime(),
        })
    })
    .await?;
    let mut race = Race::new(addrs, attempt);
    poll_fn(|cx| {
        if let Poll::Ready(ended) = race.poll(cx) {
            return Poll::Ready(ended);
        }
        let is_refused = budget::has_refused();
        let over = ready!(limit.poll(cx));
        if is_refused {
            // That poll of the race had no budget, and may have missed a connection.
            if let Poll::Ready(ended) = budget::with_fresh(|| race.poll(cx)) {
                return Poll::Ready(ended);
            }
        }
        Poll::Ready(Err(match over {
            Over::Elapsed => race.timed_out(duration),
            Over::NoRuntime => no_runtime(),
        }))
    })
    .await
}

/// Orders addresses so that the families alternate, beginning with that of the first address.
fn interleave(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first_is_v4) = addrs.first().map(SocketAddr::is_ipv4) else { return addrs };
    let count = addrs.len();
    let (first, second): (Vec<_>, Vec<_>) = addrs.into_iter().partition(|addr| addr.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::with_capacity(count);
    while ordered.len() < count {
        ordered.extend(first.next());
        ordered.extend(second.next());
    }
    ordered
}

/// Attempts to connect to several addresses. The first that succeeds wins.
struct Race<A, F> {
    attempt: A,
    /// The addresses whose attempts have not started.
    waiting: vec::IntoIter<SocketAddr>,
    /// The attempts that have not ended, in the order of their starts.
    running: Vec<(SocketAddr, Pin<Box<F>>)>,
    /// The joined errors of the attempts that have failed.
    failed: Option<io::Error>,
    /// When the next attempt starts. `None` if no address waits.
    stagger: Option<Timer>,
    /// It is time for the next attempt: none has started, one has failed since the last start, or the stagger is over.
    /// The start may have to wait for a later poll, with a new budget.
    starts_next: bool,
}

impl<T, A, F> Race<A, F>
where
    A: FnMut(SocketAddr) -> F,
    F: Future<Output = io::Result<T>>,
{
    fn new(addrs: Vec<SocketAddr>, attempt: A) -> Self {
        let waiting = interleave(addrs).into_iter();
        Self { attempt, waiting, running: Vec::new(), failed: None, stagger: None, starts_next: true }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        loop {
            let mut index = 0;
            while let Some((_, attempt)) = self.running.get_mut(index) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(connected)) => return Poll::Ready(Ok(connected)),
                    Poll::Ready(Err(error)) => {
                        self.running.remove(index);
                        self.failed = Some(AddrError::join(self.failed.take(), error));
                        self.starts_next = true;
                    }
                    Poll::Pending => index += 1,
                }
            }
            if !self.starts_next {
                ready!(self.poll_stagger(cx));
                // A start without budget comes in a later poll, which leaves the clock to the limit of the connect.
                self.starts_next = true;
            }
            if self.waiting.len() > 0 {
                // The attempts may fail at once, and the list may be long. A start goes on once in each poll although
                // another future of this task has used up the budget.
                ready!(budget::poll_spend_complete(cx));
            }
            match self.waiting.next() {
                // The loop polls the new attempt.
                Some(addr) => self.start(addr),
                None if self.running.is_empty() => {
                    return Poll::Ready(Err(self.failed.take().unwrap_or_else(no_address)));
                }
                None => return Poll::Pending,
            }
        }
    }

    fn start(&mut self, addr: SocketAddr) {
        self.running.push((addr, Box::pin((self.attempt)(addr))));
        self.starts_next = false;
        self.stagger = (self.waiting.len() > 0).then(|| Timer::new(STAGGER));
    }

    /// `Ready` if it is time for the next attempt. Without a runtime it never is, and only a failure starts an attempt.
    fn poll_stagger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stagger {
            Some(stagger) => match ready!(stagger.poll(cx)) {
                Over::Elapsed => Poll::Ready(()),
                Over::NoRuntime => Poll::Pending,
            },
            None => Poll::Pending,
        }
    }

    /// The error of all addresses once `duration` is over.
    fn timed_out(&mut self, duration: Duration) -> io::Error {
        let running = self.running.drain(..).map(|(addr, _)| (addr, format!("no answer came within {duration:?}")));
        let waiting = self.waiting.by_ref().map(|addr| (addr, format!("it was not tried within {duration:?}")));
        running
            .chain(waiting)
            .map(|(addr, why)| AddrError::at(Operation::Connect, addr, timed_out(why)))
            .fold(self.failed.take(), |failed, error| Some(AddrError::join(failed, error)))
            .unwrap_or_else(no_address)
    }
}

/// A timer that may be polled outside a runtime.
struct Timer {
    sleep: Sleep,
    /// The timers that the sleep was last armed with.
    timers: Weak<Timers>,
}

/// The end of a [`Timer`].
enum Over {
    Elapsed,
    /// No runtime runs on this thread, and the one that the timer waited in has ended.
    NoRuntime,
}

impl Timer {
    fn new(duration: Duration) -> Self {
        Self { sleep: sleep(duration), timers: Weak::new() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        match self.sleep.poll_anywhere(cx, &mut self.timers) {
            Some(poll) => poll.map(|()| Over::Elapsed),
            None => Poll::Ready(Over::NoRuntime),
        }
    }
}

fn timed_out(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

fn no_runtime() -> io::Error {
    io::Error::other(
        "connect_timeout has to wait, and no kittiwake runtime is running on this thread to time it; \
         call it inside kittiwake::block_on, or from a task spawned there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    /// The families alternate from that of the first address, and each keeps its order.
    #[test]
    fn families_alternate() {
        let [a, b, c] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
        let [x, y] = ["[::1]:1", "[::1]:2"];
        let orders: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&[a], &[a]),
            (&[c, b, a], &[c, b, a]),
            (&[x, y, a, b], &[x, a, y, b]),
            (&[a, b, c, x], &[a, x, b, c]),
            (&[a, x, y], &[a, x, y]),
        ];
        for (given, expected) in orders {
            assert_eq!(interleave(addrs(given)), addrs(expected), "the order of {given:?}");
        }
    }
}
