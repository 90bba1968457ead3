//! The clock: std's, unless a test holds it still.

use std::cell::Cell;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

thread_local! {
    /// The clock of the runtime on this thread, if it is not std's. A runtime whose clock was paused has one worker, so
    /// a thread's clock is the runtime's.
    static VIRTUAL: Cell<Option<Virtual>> = const { Cell::new(None) };
}

/// A clock that was paused.
#[derive(Clone, Copy)]
pub(crate) struct Virtual {
    /// What it showed when it was last set.
    base: std::time::Instant,
    /// Since when it has been running again; `None` while it stands still.
    running_since: Option<std::time::Instant>,
}

impl Virtual {
    fn now(self) -> std::time::Instant {
        self.running_since.map_or(self.base, |since| self.base + since.elapsed())
    }
}

/// Puts a clock on this thread and returns the one that was there.
pub(super) fn replace(clock: Option<Virtual>) -> Option<Virtual> {
    VIRTUAL.replace(clock)
}

/// The clock of this thread, if it is not std's.
pub(crate) fn current_clock() -> Option<Virtual> {
    VIRTUAL.get()
}

/// A clock that stands still at the present, for a runtime that starts with it.
pub(crate) fn paused_clock() -> Virtual {
    Virtual { base: std::time::Instant::now(), running_since: None }
}

/// Whether this thread's clock stands still.
pub(crate) fn is_paused() -> bool {
    VIRTUAL.get().is_some_and(|clock| clock.running_since.is_none())
}

/// Stops this thread's clock.
pub(super) fn pause() {
    VIRTUAL.set(Some(Virtual { base: Instant::now().0, running_since: None }));
}

/// Lets it run on from where it stands.
pub(super) fn resume() {
    VIRTUAL.set(Some(Virtual { base: Instant::now().0, running_since: Some(std::time::Instant::now()) }));
}

/// Moves a clock that stands still on to `moment`, but never back: the deadline of a timer may be past.
pub(crate) fn move_on(moment: Instant) {
    VIRTUAL.set(Some(Virtual { base: moment.max(Instant::now()).0, running_since: None }));
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
pub struct Instant(std::time::Instant);

impl Instant {
    /// The present: of the runtime's clock inside one, else of std's.
    #[inline]
    pub fn now() -> Self {
        match VIRTUAL.get() {
            None => Self(std::time::Instant::now()),
            Some(clock) => Self(clock.now()),
        }
    }

    /// How long ago it was; zero if it is still to come.
    pub fn elapsed(&self) -> Duration {
        Self::now().saturating_duration_since(*self)
    }

    /// The time from `earlier` to this; zero if that is later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// The time from `earlier` to this, or `None` if that is later.
    pub fn checked_duration_since(&self, earlier: Self) -> Option<Duration> {
        self.0.checked_duration_since(earlier.0)
    }

    /// The time from `earlier` to this; zero if that is later.
    #[inline]
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// The moment `duration` later, or `None` if the clock cannot show it.
    #[inline]
    pub fn checked_add(&self, duration: Duration) -> Option<Self> {
        self.0.checked_add(duration).map(Self)
    }

    /// The moment `duration` earlier, or `None` if the clock cannot show it.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Self)
    }

    /// As std's.
    pub fn into_std(self) -> std::time::Instant {
        self.0
    }

    /// The moment `duration` later, and thirty years later at the most: that is never, and a clock can show it.
    #[inline]
    pub(super) fn later(self, duration: Duration) -> Self {
        const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        match self.0.checked_add(duration.min(NEVER)) {
            Some(later) => Self(later),
            None => self,
        }
    }
}

impl From<std::time::Instant> for Instant {
    fn from(instant: std::time::Instant) -> Self {
        Self(instant)
    }
}

impl From<Instant> for std::time::Instant {
    fn from(instant: Instant) -> Self {
        instant.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
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
        self.0.fmt(f)
    }
}
