//! Unpark timer: a timerfd that ends a worker's block after a while, unless it is cancelled before.
//!
//! A busy worker sets it for an idle one. Otherwise it would have to unpark the idle worker, which would only block
//! again with this timeout. Most busy workers are done earlier, and cancel it. So the idle worker sleeps on.

use std::time::Duration;

use super::backend::UNPARK_TIMER;
use super::registry::Registry;
use super::timer_fd::Timer;
use crate::sync;

/// The unpark timer of one worker. `None` where the system has none, and if descriptors or memory were lacking. The
/// worker is unparked at once then.
pub(super) struct UnparkTimer(Option<Timer>);

impl UnparkTimer {
    /// The timer of the worker that turns the reactor of `registry`, if that is open.
    pub(super) fn new(registry: &Registry) -> Self {
        Self(registry.opened().and_then(|mio| Timer::new(mio, UNPARK_TIMER).ok()?))
    }
}

impl sync::UnparkTimer for UnparkTimer {
    fn set(&self, after: Duration) -> bool {
        self.0.as_ref().is_some_and(|timer| timer.set(after).is_ok())
    }

    fn cancel(&self) {
        if let Some(timer) = &self.0 {
            // It was set before, so this cannot fail.
            let _ = timer.set(Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::Reactor;
    use sync::UnparkTimer as _;

    /// The timer ends the next block, also if it has ended one before. If it is cancelled in time, it does not.
    #[test]
    fn cancelled_timer_ends_no_block() {
        let mut reactor = Reactor::default();
        reactor.registry().open().expect("a poll");
        let timer = UnparkTimer::new(reactor.registry());
        let mut turn = |millis| reactor.turn(Some(Duration::from_millis(millis)), &mut Vec::new()).expect("a turn");
        for _ in 0..2 {
            if !timer.set(Duration::from_millis(1)) {
                // This platform, or this backend, has no timerfd.
                return;
            }
            assert_eq!(turn(10_000), 1, "the timer ends the block");
        }
        // Far enough away to be cancelled in time on a slow machine.
        assert!(timer.set(Duration::from_millis(900)));
        timer.cancel();
        assert_eq!(turn(1_000), 0, "it was cancelled");
    }
}
