//! The bodies of the in-memory jobs, one for all runtimes.
//!
//! The bodies are a macro because each runtime names its functions differently, and some functions need a value
//! (`executor.spawn`), while the code around must be the same to the letter. A runtime gives the names of its functions.
//! This file has a `yield_now` for runtimes without one.
//!
//! A program does a job `n` times. The cost of one operation is the difference between a run of 2n and a run of n, divided
//! by n. The program's start and end are in both runs and cancel.

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::mem::replace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

/// The future of an in-memory job. It prints the nanoseconds that the job took, without the runtime's start and end.
///
/// The macro writes `(future)` after the tokens of `spawn` and `spawn_local`, `()` after those of `yield_now`, `(duration)`
/// after those of `sleep`, and `(duration, future)` after those of `timeout`. It writes the tokens of `value` after
/// `task.await`.
#[macro_export]
macro_rules! memory_job {
    ($job:expr, $n:expr, {
        spawn: [$($spawn:tt)*],
        spawn_local: [$($spawn_local:tt)*],
        yield_now: [$($yield_now:tt)*],
        value: [$($value:tt)*],
        sleep: [$($sleep:tt)*],
        timeout: [$($timeout:tt)*] $(,)?
    }) => {
        async move {
            let start = std::time::Instant::now();
            let (n, far): (u64, _) = ($n, $crate::memory::FAR);
            match $job {
                $crate::MemoryJob::Spawn => {
                    for i in 0..n {
                        assert_eq!($($spawn)*(async move { i }).await $($value)*, i);
                    }
                }
                $crate::MemoryJob::Burst => {
                    let tasks: Vec<_> = (0..n).map(|_| $($spawn)*($($yield_now)*())).collect();
                    for task in tasks { task.await $($value)*; }
                }
                $crate::MemoryJob::Yield => {
                    for _ in 0..n { $($yield_now)*().await; }
                }
                $crate::MemoryJob::Yield1000 => {
                    let yield_often = move || async move {
                        for _ in 0..n / 1000 { $($yield_now)*().await; }
                    };
                    let tasks: Vec<_> = (0..1000).map(|_| $($spawn)*(yield_often())).collect();
                    for task in tasks { task.await $($value)*; }
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
                    for i in 0..n { other.wakes(i + 1).await; }
                }
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
                    let delay = |i| std::time::Duration::from_micros((i * 7919) % 100_000);
                    let tasks: Vec<_> = (0..n).map(|i| $($spawn)*($($sleep)*(delay(i)))).collect();
                    for task in tasks { task.await $($value)*; }
                }
                $crate::MemoryJob::Timeout => {
                    for i in 0..n { assert_eq!($($timeout)*(far, std::future::ready(i)).await.unwrap(), i); }
                }
                $crate::MemoryJob::Reference => unreachable!("`Program::start` does it"),
            }
            println!("{}", start.elapsed().as_nanos());
        }
    };
}

/// A time that no job waits for.
pub const FAR: Duration = Duration::from_secs(30);

/// Does a fixed amount of arithmetic in each of `n` steps. The cost of a step measures the machine and the compiler.
pub fn reference(n: u64) {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for i in 0..black_box(n) {
        for byte in i.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        black_box(hash);
    }
}

/// Yields once, for runtimes without such a function.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |cx| {
        if replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// A number that two tasks of one thread count up in turn, each waking the other.
#[derive(Default)]
pub struct Pair {
    number: Cell<u64>,
    wakers: [Cell<Option<Waker>>; 2],
}

/// The side that waits, or the side to wake.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Main,
    Task,
}

impl Pair {
    /// Waits until the number is `number`.
    #[inline]
    pub fn reached(&self, number: u64, side: Side) -> impl Future<Output = ()> {
        poll_fn(move |cx| {
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

/// A thread that wakes every waker that it receives.
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

    /// Requests the `turn`th wake-up and waits for it.
    pub fn wakes(&self, turn: u64) -> impl Future<Output = ()> {
        let mut asked = false;
        poll_fn(move |cx| {
            if !replace(&mut asked, true) {
                self.wakers.send(cx.waker().clone()).expect("the other thread lives as long as the sender");
                return Poll::Pending;
            }
            if self.woken.load(Ordering::Acquire) == turn { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}
