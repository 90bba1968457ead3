//! The in-memory jobs: their bodies, once for all runtimes.
//!
//! The bodies are macros because each runtime names its functions differently and some need a value at hand
//! (`executor.spawn`), while the code around must be the same to the letter. A runtime gives
//! its functions' names; what it has no function for (`yield_now`, sometimes) is in this file.
//!
//! A job is done `n` times. What it costs once is the difference between a run of 2n and one of n, divided by
//! n: what a program needs to start and end is in both, and cancels.

use std::cell::Cell;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

/// Jobs for any executor: `executor_jobs!(job, n, { spawn: [..], spawn_local: [..], yield_now: [..], value: [..] })`.
///
/// `spawn` and `spawn_local` are what stands before `(future)`, `yield_now` before `()`, `value` after `task.await`.
#[macro_export]
macro_rules! executor_jobs {
    ($job:expr, $n:expr, {
        spawn: [$($spawn:tt)*],
        spawn_local: [$($spawn_local:tt)*],
        yield_now: [$($yield_now:tt)*],
        value: [$($value:tt)*] $(,)?
    }) => {{
        let n: u64 = $n;
        match $job {
            $crate::MemoryJob::Spawn => {
                for i in 0..n {
                    assert_eq!($($spawn)*(async move { i }).await $($value)*, i);
                }
            }
            $crate::MemoryJob::Burst => {
                let tasks: Vec<_> = (0..n).map(|_| $($spawn)*($($yield_now)*())).collect();
                for task in tasks {
                    task.await $($value)*;
                }
            }
            $crate::MemoryJob::Yield => {
                for _ in 0..n {
                    $($yield_now)*().await;
                }
            }
            $crate::MemoryJob::Yield1000 => {
                let tasks: Vec<_> = (0..1000)
                    .map(|_| {
                        $($spawn)*(async move {
                            for _ in 0..n / 1000 {
                                $($yield_now)*().await;
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await $($value)*;
                }
            }
            $crate::MemoryJob::Two => {
                let pair = std::rc::Rc::new($crate::memory::Pair::default());
                let other = pair.clone();
                let task = $($spawn_local)*(async move {
                    for i in 0..n {
                        other.reached(2 * i + 1, $crate::memory::Side::Task).await;
                        other.set(2 * i + 2, $crate::memory::Side::Main);
                    }
                });
                for i in 0..n {
                    pair.set(2 * i + 1, $crate::memory::Side::Task);
                    pair.reached(2 * i + 2, $crate::memory::Side::Main).await;
                }
                task.await $($value)*;
            }
            $crate::MemoryJob::Wake => {
                let other = $crate::memory::OtherThread::start();
                for i in 0..n {
                    other.wakes(i + 1).await;
                }
            }
            job => panic!("{} is not a job of an executor alone", job.name()),
        }
    }};
}

/// Jobs for a runtime with timers: `timer_jobs!(job, n, { spawn: [..], sleep: [..], timeout: [..], value: [..] })`.
///
/// `sleep` is what stands before `(duration)`, `timeout` before `(duration, future)`.
#[macro_export]
macro_rules! timer_jobs {
    ($job:expr, $n:expr, {
        spawn: [$($spawn:tt)*],
        sleep: [$($sleep:tt)*],
        timeout: [$($timeout:tt)*],
        value: [$($value:tt)*] $(,)?
    }) => {{
        let n: u64 = $n;
        let far = std::time::Duration::from_secs(30);
        match $job {
            $crate::MemoryJob::Timer => {
                for _ in 0..n {
                    let mut sleep = std::pin::pin!($($sleep)*(far));
                    std::future::poll_fn(|cx| {
                        assert!(sleep.as_mut().poll(cx).is_pending());
                        std::task::Poll::Ready(())
                    })
                    .await;
                }
            }
            $crate::MemoryJob::Fire => {
                let tasks: Vec<_> = (0..n)
                    .map(|i| $($spawn)*($($sleep)*(std::time::Duration::from_micros((i * 7919) % 100_000))))
                    .collect();
                for task in tasks {
                    task.await $($value)*;
                }
            }
            $crate::MemoryJob::Timeout => {
                for i in 0..n {
                    assert_eq!($($timeout)*(far, std::future::ready(i)).await.unwrap(), i);
                }
            }
            job => panic!("{} is not a job of timers", job.name()),
        }
    }};
}

/// Wall time of the jobs alone, without the runtime's start and end.
#[derive(Debug)]
pub struct Stopwatch {
    start: Instant,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Prints the nanoseconds since the start, for the driver.
    pub fn report(self) {
        println!("{}", self.start.elapsed().as_nanos());
    }
}

/// A fixed amount of dull work for each of `n` steps: what a step costs tells this machine and compiler from another.
pub fn reference(n: u64) {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for i in 0..black_box(n) {
        for byte in i.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        black_box(hash);
    }
}

/// Gives way once, for runtimes that have no such function.
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future of [`yield_now`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A number that two tasks of one thread count up in turn, each waking the other.
#[derive(Default)]
pub struct Pair {
    number: Cell<u64>,
    wakers: [Cell<Option<Waker>>; 2],
}

/// Who waits, or is to be woken.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Main,
    Task,
}

impl Pair {
    /// Waits until the number is `number`.
    #[inline]
    pub fn reached(&self, number: u64, side: Side) -> impl Future<Output = ()> {
        std::future::poll_fn(move |cx| {
            if self.number.get() == number {
                return Poll::Ready(());
            }
            self.wakers[side as usize].set(Some(cx.waker().clone()));
            Poll::Pending
        })
    }

    /// Sets the number and wakes the other side.
    #[inline]
    pub fn set(&self, number: u64, side: Side) {
        self.number.set(number);
        if let Some(waker) = self.wakers[side as usize].take() {
            waker.wake();
        }
    }
}

/// A thread that wakes whoever sends it a waker.
#[derive(Debug)]
pub struct OtherThread {
    wakers: Sender<Waker>,
    woken: Arc<AtomicU64>,
}

impl OtherThread {
    pub fn start() -> Self {
        let (wakers, received) = channel::<Waker>();
        let woken = Arc::new(AtomicU64::new(0));
        let count = woken.clone();
        thread::spawn(move || {
            for waker in received {
                count.fetch_add(1, Ordering::Release);
                waker.wake();
            }
        });
        Self { wakers, woken }
    }

    /// Asks for the `turn`th wake-up, and waits for it.
    pub fn wakes(&self, turn: u64) -> impl Future<Output = ()> {
        let mut asked = false;
        std::future::poll_fn(move |cx| {
            if !std::mem::replace(&mut asked, true) {
                self.wakers.send(cx.waker().clone()).expect("the other thread lives as long as the sender");
                return Poll::Pending;
            }
            if self.woken.load(Ordering::Acquire) == turn { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}
