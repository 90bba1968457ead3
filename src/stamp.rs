//! Stamps: when something happened, and on which worker's thread, in one number.
//!
//! A worker reads the clock in most of its turns anyway. It [notes](note) each reading here, for its thread. So a stamp
//! costs one load, and is as exact as the last reading. On a thread that is no worker's, a stamp reads the clock.

use std::cell::Cell;
use std::time::Duration;

use crate::system_clock::monotonic;

/// A moment of the system's monotonic clock, rounded down to 2 µs, and the worker on whose thread it was taken.
///
/// The low bits have the worker: its number, and a bit that says that there is one. The others have the nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

const WORKER_BITS: u32 = 10;
const HAS_WORKER: u64 = 1 << WORKER_BITS;
const WORKER: u64 = 2 * HAS_WORKER - 1;

thread_local! {
    /// The last reading on this thread. Its time is 0 until the thread's worker has read the clock. All is 0 while the
    /// thread is no worker's.
    static LAST: Cell<Stamp> = const { Cell::new(Stamp(0)) };
}

/// Notes that this thread has read the monotonic clock: it was `now`, in nanoseconds. Does nothing on a thread that is no
/// worker's.
pub(crate) fn note(now: u64) {
    let last = LAST.get();
    if last.0 & HAS_WORKER != 0 {
        LAST.set(Stamp(now & !WORKER | last.0 & WORKER));
    }
}

impl Stamp {
    /// The last reading on this thread. Its time may not be known.
    pub(crate) fn last() -> Self {
        LAST.get()
    }

    /// As [`last`](Stamp::last), and reads the clock if the time is not known.
    pub(crate) fn known() -> Self {
        let last = Self::last();
        if last.0 > WORKER { last } else { last.read() }
    }

    #[cold]
    fn read(self) -> Self {
        let now = monotonic();
        if self.0 == 0 {
            return Self(now & !WORKER);
        }
        note(now);
        Self::last()
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }

    /// The number of the worker on whose thread it was taken.
    pub(crate) fn worker(self) -> Option<usize> {
        (self.0 & HAS_WORKER != 0).then_some((self.0 & (HAS_WORKER - 1)) as usize)
    }

    /// How long before `now` it was taken, in nanoseconds of the monotonic clock. `None` if its time is not known.
    pub(crate) fn age(self, now: u64) -> Option<Duration> {
        (self.0 > WORKER).then(|| Duration::from_nanos(now.saturating_sub(self.0 & !WORKER)))
    }
}

/// While this lives, the stamps of this thread are a worker's.
pub(crate) struct Entered(Stamp);

/// Makes this thread that of the worker with this number.
pub(crate) fn enter(worker: usize) -> Entered {
    Entered(LAST.replace(Stamp(HAS_WORKER | worker as u64 & (HAS_WORKER - 1))))
}

impl Drop for Entered {
    fn drop(&mut self) {
        LAST.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stamp has the time that its worker noted last, and the worker. Outside a worker it has the present.
    #[test]
    fn stamp_has_time_and_worker() {
        let outside = Stamp::known();
        assert_eq!((outside.worker(), Stamp::last().age(1)), (None, None));
        assert!(outside.age(monotonic()).is_some_and(|age| age < Duration::from_secs(60)));
        let entered = enter(1023);
        assert_eq!((Stamp::last().worker(), Stamp::last().age(1)), (Some(1023), None), "no time is known yet");
        assert!(Stamp::known().age(monotonic()).is_some());
        note(10_000_000);
        assert_eq!(Stamp::known().age(11_000_000).map(|age| age.as_millis()), Some(1));
        assert_eq!(Stamp::last().worker(), Some(1023), "a reading changes no worker");
        drop(entered);
        assert_eq!(Stamp::last(), Stamp(0));
    }
}
