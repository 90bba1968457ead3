//! Time: [`sleep()`], [`timeout()`], [`interval()`], and a clock that tests can pause.
//!
//! # Precision
//! No timer fires early. How late a timer fires depends on the platform and on its worker:
//!
//! * On Linux, a timer is about 20 µs late if its worker is idle and has no earlier timer. That is the time that it
//!   takes to wake a thread.
//! * A timer that shares its worker with other timers may first be rounded up to a tick of 65.5 µs.
//! * With kqueue a timer is about as late. On other platforms it is up to 1.1 ms late if its worker is idle.
//! * A busy worker fires its timers after at most 64 polls of tasks.
//! * On most systems the clock stands still while the machine is suspended. A timer that was due meanwhile fires that
//!   much later.
//!
//! # Cost
//! The kernel's wait takes whole milliseconds. On Linux the worker rounds its waits down, and waits for the rest of the
//! last millisecond with a timerfd(2). That costs two system calls for each timer that comes so near. A timer that is
//! removed before its last millisecond costs none. With kqueue a wait is exact. On other platforms it is rounded up.
//!
//! # A clock for tests
//! A runtime can pause its clock: from the start with [`start_paused`](crate::runtime::Builder::start_paused), or later
//! with [`pause`]. A paused clock moves when a test calls [`advance`], and when every task waits. It then jumps to the
//! next deadline, so a test of minutes takes no time. It may jump up to one tick of 65.5 µs past a deadline.
//!
//! Bytes between sockets take real time, and a jump must not overtake them. So while sockets are registered, the worker
//! waits 2 ms of real time for the kernel before each jump. A test pays these 2 ms for each deadline that it reaches.
//! For a far deadline it may pay them some more times, because the timing wheel moves a far timer in steps.
//!
//! A jump waits for closures of [`spawn_blocking`](crate::spawn_blocking) and for look-ups of names, because they may
//! wake a task. It does not wait for any other thread. Other threads do not see the paused clock: [`Instant::now`]
//! follows it only on the runtime's own thread.
//!
//! # Examples
//! ```
//! use kittiwake::runtime::Builder;
//! use kittiwake::time::{Duration, Instant, sleep};
//!
//! let runtime = Builder::new_current_thread().start_paused(true).build()?;
//! runtime.block_on(async {
//!     let start = Instant::now();
//!     sleep(Duration::from_secs(3600)).await;
//!     assert!(start.elapsed() >= Duration::from_secs(3600));
//! });
//! # std::io::Result::Ok(())
//! ```

mod clock;
mod interval;
mod sleep;
mod timeout;
mod timers;

use std::future::poll_fn;

pub use std::time::Duration;

use crate::budget;
pub use clock::Instant;
pub(crate) use clock::{Clock, advance_to, current_clock, is_paused, now_noted};
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout, timeout_at};
pub(crate) use timers::{Entered, Fired, Timers, enter};

/// Pauses the runtime's clock.
///
/// From then on the clock moves only when every task waits, and by [`advance`]. Pausing a paused clock does nothing.
///
/// # Panics
/// Panics outside a runtime, in a multi-thread runtime, and in [`Handle::block_on`](crate::runtime::Handle::block_on).
/// [`block_on`](crate::block_on) makes a current-thread runtime.
///
/// # Examples
/// See [`advance`].
#[track_caller]
pub fn pause() {
    current_timers("pause");
    assert!(
        clock::pause(),
        "time::pause: several threads share this clock, and so it cannot stand still; \
         call pause in Runtime::block_on, of a runtime that Builder::new_current_thread() has made"
    );
}

/// Resumes the runtime's clock from the moment at which it stands.
///
/// Resuming a clock that runs does nothing.
///
/// # Panics
/// Panics outside a runtime.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, Instant, pause, resume, sleep};
///
/// kittiwake::block_on(async {
///     pause();
///     sleep(Duration::from_secs(3600)).await;
///     resume();
///     let start = Instant::now();
///     sleep(Duration::from_millis(2)).await;
///     assert!(start.elapsed() >= Duration::from_millis(2));
/// });
/// ```
#[track_caller]
pub fn resume() {
    current_timers("resume");
    if is_paused() {
        clock::resume();
    }
}

/// Advances the paused clock by `duration`.
///
/// The clock stops at each deadline on the way. The tasks that a deadline wakes run at that moment. A deadline may be
/// reached up to 65.5 µs late, and at the end of the way at the latest. Tasks that the woken tasks wake in turn may run
/// later. If a task calls [`resume`] on the way, the clock runs on from that moment and this future is ready. The clock
/// ends exactly `duration` later, of at most 30 years, and a deadline at that moment is reached too.
///
/// # Cancel safety
/// Safe. The clock keeps the moment that it has reached.
///
/// # Panics
/// Panics outside a runtime, and if the clock is not paused.
///
/// # Examples
/// ```
/// use kittiwake::time::{Duration, advance, pause, sleep};
///
/// kittiwake::block_on(async {
///     pause();
///     let task = kittiwake::spawn(sleep(Duration::from_secs(60)));
///     kittiwake::task::yield_now().await;
///     advance(Duration::from_secs(59)).await;
///     assert!(!task.is_finished());
///     advance(Duration::from_secs(2)).await;
///     assert!(task.is_finished());
/// });
/// ```
pub async fn advance(duration: Duration) {
    let timers = current_timers("advance");
    assert!(is_paused(), "time::advance: the clock is running; call time::pause first");
    let target = Instant::now().later(duration);
    let mut wakers = Vec::new();
    while let Some(next) = timers.next_deadline().filter(|next| *next <= target) {
        advance_to(next);
        timers.fire(&mut wakers);
        yield_once().await;
        if !is_paused() {
            // A woken task has resumed the clock.
            return;
        }
    }
    advance_to(target);
    // The timers that the wheel rounds up beyond the target are due as well.
    timers.fire_exact(&mut wakers);
    yield_once().await;
}

/// Lets every ready task run once, in a runtime with a seed too.
async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|cx| budget::poll_yield(cx, &mut has_yielded)).await;
}

/// The timers of this thread's worker. Panics in the name of `function` outside a runtime.
#[track_caller]
fn current_timers(function: &str) -> std::sync::Arc<Timers> {
    let Some(timers) = Timers::current() else {
        panic!("time::{function} was called outside a runtime: there is no clock to move; call it inside block_on");
    };
    timers
}
