//! [`Timer`]: hyper's timers on this runtime's clock.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant as StdInstant;

use ::hyper::rt;

use crate::time::{Duration, Instant, Sleep, sleep, sleep_until};

/// Gives hyper the timers and the clock of the runtime, also a clock that is [paused](crate::time::pause).
///
/// # Panics
/// hyper panics when a timer has to wait outside a runtime.
///
/// # Examples
/// ```
/// use hyper::rt::Timer as _;
/// use kittiwake::hyper::Timer;
/// use kittiwake::time::{Duration, pause};
///
/// # kittiwake::block_on(async {
/// pause();
/// let start = Timer.now();
/// Timer.sleep(Duration::from_secs(3600)).await;
/// assert!(Timer.now() - start >= Duration::from_secs(3600));
/// # });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer;

/// A [`Sleep`] with hyper's trait.
struct TimerSleep(Sleep);

impl rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(TimerSleep(sleep(duration)))
    }

    fn sleep_until(&self, deadline: StdInstant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(TimerSleep(sleep_until(deadline.into())))
    }

    fn now(&self) -> StdInstant {
        Instant::now().into()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn rt::Sleep>>, deadline: StdInstant) {
        match sleep.as_mut().downcast_mut_pin::<TimerSleep>() {
            Some(ours) => ours.get_mut().0.reset(deadline.into()),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

impl rt::Sleep for TimerSleep {}

impl Future for TimerSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}
