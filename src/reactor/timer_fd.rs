//! TimerFd: ends a wait to the microsecond, where the system can.
//!
//! On Linux mio waits in whole milliseconds, rounded up. Timers would be up to a millisecond late, longer than most
//! replies take. A timerfd(2) among the descriptors of the epoll ends the wait in time. Setting it costs a system
//! call. So it is set for the last stretch of a wait only, of about a millisecond at most, and once for each
//! deadline that comes that near. Most timers are cancelled by then.
//!
//! On other systems no timerfd is used. kqueue needs none, because its own waits are that exact. A backend without
//! edges would have to read the timerfd and arm it again.

use std::io;
use std::time::Duration;

use super::backend::TIMER_FD;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable)))]
mod timer {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };

    use crate::reactor::backend::EDGE_TRIGGERED;

    /// A timerfd in the kernel's set of a reactor.
    pub(in crate::reactor) struct Timer(OwnedFd);

    impl Timer {
        /// Returns `None` where the backend has no use for one.
        pub(in crate::reactor) fn new(registry: &Registry, token: Token) -> io::Result<Option<Self>> {
            if !EDGE_TRIGGERED {
                return Ok(None);
            }
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Some(Self(timer)))
        }

        /// Has the timer expire after `left`, which is shorter than a second. If `left` is zero, it does not expire.
        pub(in crate::reactor) fn set(&self, left: Duration) -> io::Result<()> {
            let value = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            let setting = Itimerspec { it_interval: interval, it_value: value };
            // It need not be read: setting it starts its count anew, and the next expiry is another edge.
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting)?;
            Ok(())
        }
    }
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(kittiwake_portable))))]
mod timer {
    use std::io;
    use std::time::Duration;

    use mio::{Registry, Token};

    /// There are none.
    pub(in crate::reactor) enum Timer {}

    impl Timer {
        pub(in crate::reactor) fn new(_: &Registry, _: Token) -> io::Result<Option<Self>> {
            Ok(None)
        }

        pub(in crate::reactor) fn set(&self, _: Duration) -> io::Result<()> {
            match *self {}
        }
    }
}

pub(super) use timer::Timer;

/// The timerfd of one reactor, made when it is first set.
#[derive(Default)]
pub(super) struct TimerFd {
    timer: Option<Timer>,
    /// The deadline that it is set for.
    deadline: Option<u64>,
}

/// Linux may end a wait late, to let one wake-up serve several waits: by a thousandth of its length, for a niced
/// process by a two-hundredth, by the thread's slack of 50 us at least, and by 100 ms at most
/// (`select_estimate_accuracy` in the kernel's fs/select.c). [`MIN_LATENESS`] is above the smallest of these, and
/// [`MAX_LATENESS`] above the largest.
const MIN_LATENESS: Duration = Duration::from_micros(60);
const MAX_LATENESS: Duration = Duration::from_millis(110);

impl TimerFd {
    /// Makes the next wait end after `left`, which is shorter than a second. `deadline` is a number that tells one
    /// deadline from the next. Returns `false` where the system cannot.
    pub(super) fn set(&mut self, registry: &mio::Registry, left: Duration, deadline: u64) -> bool {
        if self.deadline == Some(deadline) {
            return true;
        }
        // An error is a lack of descriptors or memory. The wait is then rounded, as it is elsewhere.
        let is_set = self.try_set(registry, left).unwrap_or(false);
        self.deadline = is_set.then_some(deadline);
        is_set
    }

    fn try_set(&mut self, registry: &mio::Registry, left: Duration) -> io::Result<bool> {
        if self.timer.is_none() {
            self.timer = Timer::new(registry, TIMER_FD)?;
        }
        self.timer.as_ref().map_or(Ok(false), |timer| timer.set(left).map(|()| true))
    }

    /// The reactor has reported its expiry, or a helper may have taken it.
    pub(super) fn expired(&mut self) {
        self.deadline = None;
    }
}

/// Returns the part of a wait of `left` that needs no timerfd: whole milliseconds, which mio does not round. `None` if
/// there is no such part: the whole wait, of little more than a millisecond at most, is for the timerfd. A wait of zero
/// is returned as it is.
///
/// Linux may end the wait late. So this leaves 1/128 of `left`, which is more than the two-hundredth above, within the
/// two bounds. The worker waits once more for what is left.
pub(super) fn whole_millis(left: Duration) -> Option<Duration> {
    if left.is_zero() {
        return Some(left);
    }
    let lateness = (left / 128).clamp(MIN_LATENESS, MAX_LATENESS);
    // The system takes no more than an `i32`.
    let millis = left.saturating_sub(lateness).as_millis().min(i32::MAX as u128) as u64;
    (millis > 0).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait that is rounded up is late, and one that is rounded down to nothing spins. So a wait is whole
    /// milliseconds, or the timerfd's.
    #[test]
    fn wait_is_never_rounded_up() {
        let nanos = Duration::from_nanos;
        assert_eq!(whole_millis(nanos(0)), Some(Duration::ZERO));
        assert_eq!(whole_millis(nanos(1)), None);
        assert_eq!(whole_millis(nanos(999_999)), None);
        assert_eq!(whole_millis(nanos(1_059_999)), None);
        assert_eq!(whole_millis(nanos(1_060_000)), Some(Duration::from_millis(1)));
        assert_eq!(whole_millis(nanos(1_999_999)), Some(Duration::from_millis(1)));
        assert_eq!(whole_millis(Duration::MAX), Some(Duration::from_millis(i32::MAX as u64)));
    }

    /// However late the system ends each wait, the timerfd ends the last one in time. If the system ends each wait in
    /// time, that makes at most two waits more.
    #[test]
    fn late_wait_ends_before_deadline() {
        for late_by in [0, 1000, 200] {
            for sleep in (1..=60_000).map(Duration::from_millis) {
                let (mut left, mut waits) = (sleep - Duration::from_micros(10), 0);
                while let Some(wait) = whole_millis(left).filter(|wait| !wait.is_zero()) {
                    let late = wait.checked_div(late_by).unwrap_or_default().min(Duration::from_millis(100));
                    let woken = wait + late.max(Duration::from_micros(60));
                    assert!(woken <= left, "a wait of {left:?} ends {:?} late", woken - left);
                    left -= woken;
                    waits += 1;
                }
                assert!(waits <= 3, "{waits} waits for {sleep:?}");
            }
        }
    }
}
