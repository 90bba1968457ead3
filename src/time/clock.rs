//! The clock: the system's monotonic one, unless a test holds it still.
//!
//! A moment is one number, so that comparing two and adding to one is one instruction: everything that waits does that. And
//! on Linux it is read without std, whose `Instant` would first have to be taken apart.

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::OnceLock;
use std::time::Duration;

/// What the clock adds to the system's, in nanoseconds, modulo 2^64: what is 146 years before the system's start can still
/// be shown, and 438 years after it.
const ORIGIN: u64 = 1 << 62;

thread_local! {
    /// The clock of the runtime on this thread. A runtime whose clock was paused has one worker, so a thread's clock is the
    /// runtime's.
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::SYSTEM) };
}

/// A runtime's clock.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// It runs, this far ahead of the system's, modulo 2^64.
    Running(u64),
    /// It runs so too, and several threads go by it: it cannot be stopped on one of them.
    Common(u64),
    /// It stands still.
    Paused(Instant),
}

impl Clock {
    /// The system's clock.
    pub(crate) const SYSTEM: Self = Self::Running(ORIGIN);

    /// The system's clock, for a runtime of several workers.
    pub(crate) const COMMON: Self = Self::Common(ORIGIN);

    /// A clock that stands still at the present.
    pub(crate) fn paused() -> Self {
        Self::Paused(Self::SYSTEM.now())
    }

    #[inline]
    pub(crate) fn now(self) -> Instant {
        match self {
            Self::Running(ahead) | Self::Common(ahead) => Instant(system().wrapping_add(ahead)),
            Self::Paused(moment) => moment,
        }
    }
}

/// The system's monotonic clock, in nanoseconds; see clock_gettime(2).
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
fn system() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It counts from the system's start, so neither is negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The CPU time that this thread has used, in nanoseconds, if the system tells. It is a system call.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn thread_cpu() -> Option<u64> {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64)
}

/// Elsewhere only an unsafe call would tell.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn thread_cpu() -> Option<u64> {
    None
}

/// Elsewhere std knows which of the system's clocks is the right one.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn system() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    nanos(START.get_or_init(std::time::Instant::now).elapsed())
}

/// Nanoseconds, or as many as there are: 584 years.
#[inline]
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// Puts a clock on this thread and returns the one that was there.
pub(super) fn replace(clock: Clock) -> Clock {
    CLOCK.replace(clock)
}

/// The clock of this thread.
pub(crate) fn current_clock() -> Clock {
    CLOCK.get()
}

/// Whether this thread's clock stands still.
pub(crate) fn is_paused() -> bool {
    matches!(CLOCK.get(), Clock::Paused(_))
}

/// Stops this thread's clock; `false` if others go by it.
pub(super) fn pause() -> bool {
    let is_ours = !matches!(CLOCK.get(), Clock::Common(_));
    if is_ours {
        CLOCK.set(Clock::Paused(Instant::now()));
    }
    is_ours
}

/// Lets it run on from where it stands.
pub(super) fn resume() {
    CLOCK.set(Clock::Running(Instant::now().0.wrapping_sub(system())));
}

/// Moves a clock that stands still on to `moment`, but never back: the deadline of a timer may be past.
pub(crate) fn move_on(moment: Instant) {
    CLOCK.set(Clock::Paused(moment.max(Instant::now())));
}

/// A moment of the runtime's clock, which a test can [pause](super::pause).
///
/// Like [`std::time::Instant`], from and into which it converts, and with the same arithmetic.
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
    /// After all others.
    pub(super) const NEVER: Self = Self(u64::MAX);

    /// The present: of the runtime's clock inside one, else of std's.
    #[inline]
    pub fn now() -> Self {
        CLOCK.get().now()
    }

    /// How long ago it was; zero if it is still to come.
    pub fn elapsed(&self) -> Duration {
        Self::now().saturating_duration_since(*self)
    }

    /// The time from `earlier` to this; zero if that is later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }

    /// The time from `earlier` to this, or `None` if that is later.
    pub fn checked_duration_since(&self, earlier: Self) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_nanos)
    }

    /// The time from `earlier` to this; zero if that is later.
    #[inline]
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// The moment `duration` later, or `None` if the clock cannot show it: centuries from now.
    #[inline]
    pub fn checked_add(&self, duration: Duration) -> Option<Self> {
        self.0.checked_add(nanos(duration)).map(Self)
    }

    /// The moment `duration` earlier, or `None` if the clock cannot show it: a century ago.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(nanos(duration)).map(Self)
    }

    /// The same moment for std.
    pub fn into_std(self) -> std::time::Instant {
        let (std, ours) = reference();
        let moment = match self.checked_duration_since(ours) {
            Some(later) => std.checked_add(later),
            None => std.checked_sub(ours.saturating_duration_since(self)),
        };
        // std's clock shows all that ours does.
        moment.unwrap_or(std)
    }

    /// The moment `duration` later, and thirty years later at the most: that is never, and a clock can show it.
    #[inline]
    pub(crate) fn later(self, duration: Duration) -> Self {
        const NEVER: u64 = 30 * 365 * 24 * 60 * 60 * 1_000_000_000;
        Self(self.0.saturating_add(nanos(duration).min(NEVER)))
    }

    /// As a number, for keeping it in an atomic. That of the present is not 0: it is at least [`ORIGIN`].
    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// What [`to_bits`](Instant::to_bits) was called on.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The moment so much later, or the last that the clock can show.
    pub(super) fn nanos_later(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    #[inline]
    pub(super) fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One moment as std has it and as ours, for converting. A constant, so that there and back is the same moment. Ours is taken
/// last: a deadline that was std's may come a few nanoseconds late, but not early.
fn reference() -> (std::time::Instant, Instant) {
    static REFERENCE: OnceLock<(std::time::Instant, Instant)> = OnceLock::new();
    *REFERENCE.get_or_init(|| (std::time::Instant::now(), Clock::SYSTEM.now()))
}

/// The same moment, or the last or first that the clock can show.
impl From<std::time::Instant> for Instant {
    fn from(instant: std::time::Instant) -> Self {
        let (std, ours) = reference();
        match instant.checked_duration_since(std) {
            Some(later) => Self(ours.0.saturating_add(nanos(later))),
            None => Self(ours.0.saturating_sub(nanos(std.saturating_duration_since(instant)))),
        }
    }
}

impl From<Instant> for std::time::Instant {
    fn from(instant: Instant) -> Self {
        instant.into_std()
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        self.checked_add(duration).expect("the clock can show the moment that much later")
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        self.checked_sub(duration).expect("the clock can show the moment that much earlier")
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

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
