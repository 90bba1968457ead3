//! The clock of a runtime: the system's monotonic clock, or a clock that a test has paused.
//!
//! An [`Instant`] is one number of nanoseconds. Every timer compares and adds instants, and on one number each of these
//! is one instruction. On Linux the number comes straight from clock_gettime(2): a `std::time::Instant` would have to
//! be converted first.

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::OnceLock;
use std::time::Duration;

use crate::system_clock::monotonic;
#[cfg(feature = "hyper")]
use crate::system_clock::monotonic_at_last_tick;
use crate::{budget, stamp};

/// The number that an [`Instant`] has at the start of the system, in nanoseconds. On platforms other than Linux and
/// Android the first reading of the clock counts as the start of the system.
///
/// So an instant can represent moments from 146 years before the start of the system to 438 years after it.
const ORIGIN: u64 = 1 << 62;

/// The longest time between two ticks of the system's clock, in nanoseconds: Linux has 100 to 1,000 in a second.
#[cfg(feature = "hyper")]
const TICK: u64 = 10_000_000;

thread_local! {
    /// The clock of the runtime on this thread.
    ///
    /// Each worker has its own copy. The copies of a runtime's workers never differ, because only a current-thread
    /// runtime can pause its clock.
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::SYSTEM) };
}

/// The clock of a runtime.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// Runs this many nanoseconds ahead of [`monotonic`], modulo 2^64.
    Running(u64),
    /// Runs like `Running`, and several threads share it: the workers of a runtime, and threads in
    /// [`Handle::block_on`]. None of them can pause it for the others.
    ///
    /// [`Handle::block_on`]: crate::runtime::Handle::block_on
    Common(u64),
    /// Stands still at this moment.
    Paused(Instant),
}

impl Clock {
    /// The system's clock, for a runtime of one worker and for threads outside a runtime.
    pub(crate) const SYSTEM: Self = Self::Running(ORIGIN);

    /// The system's clock, where several threads share it.
    pub(crate) const COMMON: Self = Self::Common(ORIGIN);

    /// Creates a clock that is paused at the present of the system's clock.
    pub(crate) fn paused() -> Self {
        Self::Paused(Self::SYSTEM.now())
    }

    /// The present of this clock.
    // A timeout costs 1.7 % more without this.
    #[inline]
    pub(crate) fn now(self) -> Instant {
        match self {
            Self::Running(ahead) | Self::Common(ahead) => Instant(monotonic().wrapping_add(ahead)),
            Self::Paused(moment) => moment,
        }
    }
}

/// Converts a duration to nanoseconds. Durations above 584 years become `u64::MAX`.
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// As [`Instant::now`], and notes the reading for the [stamps](crate::stamp) of this thread.
pub(crate) fn now_noted() -> Instant {
    match CLOCK.get() {
        Clock::Running(ahead) | Clock::Common(ahead) => {
            let now = monotonic();
            stamp::note(now);
            Instant(now.wrapping_add(ahead))
        }
        Clock::Paused(moment) => moment,
    }
}

/// Sets the clock of this thread, and returns the previous one.
pub(super) fn replace(clock: Clock) -> Clock {
    budget::stop_time(matches!(clock, Clock::Paused(_)));
    CLOCK.replace(clock)
}

/// The clock of this thread.
pub(crate) fn current_clock() -> Clock {
    CLOCK.get()
}

/// Returns whether the clock of this thread is paused.
pub(crate) fn is_paused() -> bool {
    matches!(CLOCK.get(), Clock::Paused(_))
}

/// Pauses the clock of this thread. Returns `false` if other workers share the clock, and then changes nothing.
pub(super) fn pause() -> bool {
    let can_pause = !matches!(CLOCK.get(), Clock::Common(_));
    if can_pause {
        replace(Clock::Paused(Instant::now()));
    }
    can_pause
}

/// Resumes the clock of this thread from the moment at which it stands.
pub(super) fn resume() {
    replace(Clock::Running(Instant::now().0.wrapping_sub(monotonic())));
}

/// Advances the paused clock of this thread to `moment`.
///
/// A past `moment` changes nothing: the deadline of a timer may be past, and the clock never goes back.
pub(crate) fn advance_to(moment: Instant) {
    CLOCK.set(Clock::Paused(moment.max(Instant::now())));
}

/// A moment of the runtime's clock, which a test can [pause](super::pause).
///
/// It has the arithmetic of [`std::time::Instant`], and converts from and into it.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant};
///
/// let start = Instant::now();
/// let later = start + Duration::from_secs(1);
/// assert_eq!(later - start, Duration::from_secs(1));
/// assert_eq!(start - later, Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The last moment that the clock can represent.
    pub(super) const NEVER: Self = Self(u64::MAX);

    /// Before all others.
    pub(super) const MIN: Self = Self(0);

    /// Returns the present.
    ///
    /// Inside a runtime this is the present of the runtime's clock. On other threads it is that of the system's clock.
    // A timeout costs 1.7 % more without this.
    #[inline]
    pub fn now() -> Self {
        CLOCK.get().now()
    }

    /// Returns a moment that is the present or up to 10 ms after it.
    ///
    /// For limits of seconds. It reads the clock of the kernel's last tick, which costs a fraction of
    /// [`now`](Self::now), and adds the longest time between two ticks. If the kernel skips ticks, the moment may be
    /// before the present. A paused clock gives its moment.
    #[cfg(feature = "hyper")]
    pub(crate) fn now_rounded_up() -> Self {
        match CLOCK.get() {
            Clock::Running(ahead) | Clock::Common(ahead) => Self((monotonic_at_last_tick() + TICK).wrapping_add(ahead)),
            Clock::Paused(moment) => moment,
        }
    }

    /// Returns the time since this moment, or zero if this moment is in the future.
    pub fn elapsed(&self) -> Duration {
        Self::now().saturating_duration_since(*self)
    }

    /// Returns the time from `earlier` to this moment, or zero if `earlier` is later than this moment.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }

    /// Returns the time from `earlier` to this moment, or `None` if `earlier` is later than this moment.
    pub fn checked_duration_since(&self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_nanos)
    }

    /// Returns the time from `earlier` to this moment, or zero if `earlier` is later than this moment.
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// Returns the moment `duration` later, or `None` if the clock cannot represent it.
    ///
    /// The clock can represent moments up to 438 years after the start of the system.
    pub fn checked_add(&self, duration: Duration) -> Option<Self> {
        self.0.checked_add(nanos(duration)).map(Self)
    }

    /// Returns the moment `duration` earlier, or `None` if the clock cannot represent it.
    ///
    /// The clock can represent moments from 146 years before the start of the system on.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(nanos(duration)).map(Self)
    }

    /// Converts this moment into one of std.
    ///
    /// The conversion takes the distance from a moment that both clocks have read once. So a moment that a paused clock
    /// has jumped to becomes a moment as far in the future of std's clock.
    pub fn into_std(self) -> std::time::Instant {
        let (std, ours) = reference();
        let moment = match self.checked_duration_since(ours) {
            Some(later) => std.checked_add(later),
            None => std.checked_sub(ours.saturating_duration_since(self)),
        };
        // std's clock can represent every moment that this clock can.
        moment.unwrap_or(std)
    }

    /// The moment `duration` later, but at most thirty years later.
    ///
    /// Thirty years stand for never: the clock can represent the result.
    pub(crate) fn later(self, duration: Duration) -> Self {
        const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        // One look at the seconds costs less than to saturate twice.
        let duration = if duration.as_secs() < NEVER.as_secs() { duration } else { NEVER };
        self.nanos_later(duration.as_nanos() as u64)
    }

    /// This moment as a number that fits into an atomic.
    ///
    /// The number of the present is never 0: it is at least [`ORIGIN`].
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// The moment of a number from [`to_bits`](Instant::to_bits).
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The moment this many nanoseconds later, or the last moment that the clock can represent.
    pub(super) fn nanos_later(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// The nanoseconds from `earlier` to this moment, or 0 if `earlier` is later than this moment.
    pub(super) fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One moment, as an instant of std and as an [`Instant`]. Conversions count from it.
///
/// It is read once for the whole process, so an instant that is converted there and back is unchanged. The clock of std
/// is read first. So a deadline from std may be a few nanoseconds late as an [`Instant`], but never early, unless the
/// runtime's clock was paused and advanced.
fn reference() -> (std::time::Instant, Instant) {
    static REFERENCE: OnceLock<(std::time::Instant, Instant)> = OnceLock::new();
    *REFERENCE.get_or_init(|| (std::time::Instant::now(), Clock::SYSTEM.now()))
}

/// Converts a moment of std. A moment that the clock cannot represent becomes the last or the first one that it can.
impl From<std::time::Instant> for Instant {
    fn from(instant: std::time::Instant) -> Self {
        let (std, ours) = reference();
        match instant.checked_duration_since(std) {
            Some(later) => Self(ours.0.saturating_add(nanos(later))),
            None => Self(ours.0.saturating_sub(nanos(std.saturating_duration_since(instant)))),
        }
    }
}

/// Converts as [`Instant::into_std`] does.
impl From<Instant> for std::time::Instant {
    fn from(instant: Instant) -> Self {
        instant.into_std()
    }
}

/// Panics if the clock cannot represent the sum. [`Instant::checked_add`] does not panic.
impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        self.checked_add(duration).expect("the clock can represent the moment that much later")
    }
}

/// Panics if the clock cannot represent the sum.
impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

/// Panics if the clock cannot represent the difference. [`Instant::checked_sub`] does not panic.
impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        self.checked_sub(duration).expect("the clock can represent the moment that much earlier")
    }
}

/// Panics if the clock cannot represent the difference.
impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

/// The time from `earlier` to this moment, or zero if `earlier` is later than this moment.
impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.into_std().fmt(f)
    }
}

#[cfg(all(test, feature = "hyper"))]
mod tests {
    use super::*;

    /// A limit that begins at this moment is never short, and long by no more than a tick.
    #[test]
    fn rounded_present_is_not_past() {
        const ROUNDS: usize = 1000;
        let past_ones = || {
            let mut is_past = 0;
            for _ in 0..ROUNDS {
                let before = Instant::now();
                let rounded = Instant::now_rounded_up();
                assert!(rounded <= Instant::now() + Duration::from_nanos(TICK), "more than a tick in the future");
                is_past += usize::from(rounded < before);
            }
            is_past
        };
        // The kernel may be late with a tick on a busy machine, and then some are past by as much. A measurement is
        // shorter than a tick, so a late one may be all that it sees.
        let mut measured = Vec::new();
        while measured.last().is_none_or(|is_past| *is_past > ROUNDS / 10) {
            assert!(measured.len() < 5, "of {ROUNDS} each, {measured:?} are in the past");
            if !measured.is_empty() {
                std::thread::sleep(Duration::from_millis(50));
            }
            measured.push(past_ones());
        }
    }

    /// A paused clock has no ticks: a limit on it is exact.
    #[test]
    fn paused_present_is_exact() {
        let clock = replace(Clock::paused());
        assert_eq!(Instant::now_rounded_up(), Instant::now());
        replace(clock);
    }
}
