//! Waiting for time: `sleep`, `timeout`, `interval`, and a clock that tests can hold still.
//!
//! # How exact
//! Nothing here ends early. On Linux a timer that a worker has nothing else to do before is some 20 µs late, which is what it
//! takes to wake a thread; one among many is rounded up to a tick of 65.5 µs first. To be that exact costs two system
//! calls for each such timer: waits are whole milliseconds, rounded down, and what is left of the last one is for
//! a timerfd(2). A timer that is taken away before then costs none. Elsewhere waits are rounded up, and a timer is up to 1.1
//! ms late. All this while the worker is idle: one that is busy comes to its timers after at most 64 polls of tasks. A
//! suspended machine's clock stands still on most systems: what was due is due after it resumes.
//!
//! # A clock for tests
//! A runtime built with [`start_paused`](crate::runtime::Builder::start_paused), or that called [`pause`], has a clock that
//! moves only when every task waits: then it jumps to the next deadline, so a test of minutes takes no time.
//!
//! Bytes on their way between sockets take real time, which a jump would outrun. So while sockets are registered, each
//! jump first waits 2 ms for the kernel: a suite pays that for each deadline that it reaches, and now and then for a stop on
//! the way to a far one. Of other threads those with a closure of [`spawn_blocking`](crate::spawn_blocking) are waited for, and
//! no others that may be about to wake a task. The clock is to be trusted on the runtime's own thread only; it may
//! jump up to a tick past a deadline.
//!
//! # Examples
//! ```
//! use kittiwake::runtime::Builder;
//! use kittiwake::time::{Duration, Instant, sleep};
//!
//! let runtime = Builder::new().start_paused(true).build()?;
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
use std::task::Poll;

pub use std::time::Duration;

pub use clock::Instant;
pub(crate) use clock::{Clock, current_clock, is_paused, move_on, thread_cpu};
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout, timeout_at};
pub(crate) use timers::{Entered, Timers, enter, is_entered};

/// Stops the runtime's clock: from now on it moves only when every task waits, or by [`advance`].
///
/// # Panics
/// Outside a runtime, and in one of several workers: a test needs one, as [`block_on`](crate::block_on) has it.
#[track_caller]
pub fn pause() {
    expect("pause");
    assert!(
        clock::pause(),
        "time::pause: a runtime of several workers has a clock that cannot stand still; call Builder::workers(1)"
    );
}

/// Lets the runtime's clock run on from where it stands. Does nothing if it runs.
///
/// # Panics
/// Outside a runtime.
#[track_caller]
pub fn resume() {
    expect("resume");
    if is_paused() {
        clock::resume();
    }
}

/// Moves the paused clock on by `duration`. Deadlines on the way are reached one after the other, and the tasks that they
/// wake run at that time; what those wake in turn may run later. If one of them lets the clock [`resume`], it ends there.
///
/// # Cancel safety
/// Safe: the clock has moved as far as it has.
///
/// # Panics
/// Outside a runtime, and if the clock is not paused.
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
    let timers = expect("advance");
    assert!(is_paused(), "time::advance: the clock is running; call time::pause first");
    let target = Instant::now().later(duration);
    let mut wakers = Vec::new();
    while let Some(next) = timers.next_deadline().filter(|next| *next <= target) {
        move_on(next);
        timers.fire(&mut wakers);
        give_way().await;
        if !is_paused() {
            // A task that was woken has let the clock run on.
            return;
        }
    }
    move_on(target);
    give_way().await;
}

/// Lets the tasks run that are ready.
async fn give_way() {
    let mut gave_way = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[track_caller]
fn expect(function: &str) -> std::sync::Arc<Timers> {
    let Some(timers) = Timers::current() else {
        panic!("time::{function} was called outside a runtime: there is no clock to move; call it inside block_on");
    };
    timers
}
