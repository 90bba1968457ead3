//! Alarm: ends a wait to the microsecond, where the system can.
//!
//! mio waits in whole milliseconds, rounded up: a timer would be a millisecond late on average of all, more than most
//! replies take. On Linux a timerfd(2) among the descriptors of the epoll ends the wait in time. It costs a system call
//! to set, so it is set only for the last stretch of a wait, which is shorter than a millisecond, and once for each deadline
//! that comes that near: most are gone by then.
//!
//! Elsewhere, and on backends without edges, where it would have to be read and armed again, the rounding stays.

use std::time::Duration;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod timer {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };

    use super::Alarm;
    use crate::reactor::{ALARM, EDGE_TRIGGERED};

    pub(super) type Timer = OwnedFd;

    impl Alarm {
        pub(super) fn try_set(&mut self, registry: &Registry, left: Duration) -> io::Result<bool> {
            if !EDGE_TRIGGERED {
                return Ok(false);
            }
            let timer = match &self.timer {
                Some(timer) => timer,
                None => self.timer.insert(create(registry)?),
            };
            let value = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            // It need not be read: setting it starts its count anew, and the next expiry is another edge.
            timerfd_settime(timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: interval, it_value: value })?;
            Ok(true)
        }
    }

    #[cold]
    fn create(registry: &Registry) -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), ALARM, Interest::READABLE)?;
        Ok(timer)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod timer {
    use std::io;
    use std::time::Duration;

    use mio::Registry;

    use super::Alarm;

    pub(super) type Timer = std::convert::Infallible;

    impl Alarm {
        pub(super) fn try_set(&mut self, _: &Registry, _: Duration) -> io::Result<bool> {
            Ok(false)
        }
    }
}

/// One reactor's, made when it is first set.
#[derive(Default)]
pub(super) struct Alarm {
    timer: Option<timer::Timer>,
    /// The deadline that it is set for.
    deadline: Option<u64>,
}

/// Waits shorter than this are the alarm's; see [`floor`] for the others.
const MILLISECOND: Duration = Duration::from_millis(1);

impl Alarm {
    /// Sees to it that the next wait ends when `left` is over, which is less than a second; `deadline` is any number that tells
    /// one deadline from the next. `false` if it cannot.
    pub(super) fn set(&mut self, registry: &mio::Registry, left: Duration, deadline: u64) -> bool {
        if self.deadline == Some(deadline) {
            return true;
        }
        // An error is want of descriptors or memory. The wait is then rounded, as it is elsewhere.
        let is_set = self.try_set(registry, left).unwrap_or(false);
        self.deadline = is_set.then_some(deadline);
        is_set
    }

    /// It has gone off.
    #[cold]
    pub(super) fn rang(&mut self) {
        self.deadline = None;
    }
}

/// How long to wait without the alarm, when `left` is left: whole milliseconds, so that they are not rounded up. `None` if the
/// rest is for the alarm.
pub(super) fn floor(left: Duration) -> Option<Duration> {
    if left.is_zero() || left >= MILLISECOND {
        // More would be too much for the system; the worker asks again.
        let millis = left.as_millis().min(i32::MAX as u128) as u64;
        return Some(Duration::from_millis(millis));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounded up it would be late; rounded down to nothing it would spin.
    #[test]
    fn a_wait_is_whole_milliseconds_or_the_alarms() {
        let nanos = Duration::from_nanos;
        assert_eq!(floor(nanos(0)), Some(Duration::ZERO));
        assert_eq!(floor(nanos(1)), None);
        assert_eq!(floor(nanos(999_999)), None);
        assert_eq!(floor(nanos(1_000_000)), Some(MILLISECOND));
        assert_eq!(floor(nanos(1_999_999)), Some(MILLISECOND));
        assert_eq!(floor(Duration::MAX), Some(Duration::from_millis(i32::MAX as u64)));
    }
}
