//! Builder: the settings of a runtime.

use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use super::slow_poll::{OnSlowPoll, SlowPoll};
use crate::live_threads::Hooks;
use crate::time::Clock;

/// Settings for a [`Runtime`](super::Runtime).
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use kittiwake::runtime::Builder;
///
/// let runtime = Builder::new_multi_thread().worker_threads(2).spin(Duration::from_micros(50)).build()?;
/// runtime.block_on(async {});
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) kind: Kind,
    pub(super) thread_name: String,
    /// `None` is the adaptive policy.
    pub(super) spin: Option<Duration>,
    start_paused: bool,
    rng_seed: Option<u64>,
    pub(super) max_blocking_threads: usize,
    pub(super) measure_polls: bool,
    pub(super) on_slow_poll: Option<OnSlowPoll>,
    pub(super) hooks: Hooks,
}

/// The kind of the runtime.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    CurrentThread,
    MultiThread {
        /// `None` is one for each core.
        workers: Option<usize>,
    },
}

/// The most workers. Each keeps 24 bytes for each of the others, whose progress it remembers: 25 MB in all.
const MAX_WORKERS: usize = 1024;

impl Builder {
    /// A runtime whose only worker is the thread that is in its `block_on`.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_current_thread().build()?;
    /// assert_eq!(runtime.block_on(async { 7 }), 7);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn new_current_thread() -> Self {
        Self::new(Kind::CurrentThread)
    }

    /// A runtime whose workers are threads of its own: one for each core ([`available_parallelism`]), or
    /// [`worker_threads`](Builder::worker_threads).
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_multi_thread().build()?;
    /// let task = runtime.handle().spawn(async { 7 });
    /// assert_eq!(runtime.block_on(task).unwrap(), 7);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn new_multi_thread() -> Self {
        Self::new(Kind::MultiThread { workers: None })
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            thread_name: "kittiwake".to_owned(),
            spin: None,
            start_paused: false,
            rng_seed: None,
            max_blocking_threads: 512,
            measure_polls: false,
            on_slow_poll: OnSlowPoll::by_default(),
            hooks: Hooks::default(),
        }
    }

    /// How many workers a multi-thread runtime has, from 1 to 1,024. By default one for each core, up to that limit.
    /// A single worker is a thread of its own too.
    ///
    /// It has no effect on a current-thread runtime.
    ///
    /// # Panics
    /// If it is 0, or more than 1,024.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    /// assert_eq!(runtime.handle().metrics().workers().len(), 2);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    #[track_caller]
    pub fn worker_threads(mut self, count: usize) -> Self {
        assert!(count > 0, "Builder::worker_threads: no task could ever run on 0 workers; use 1 or more");
        assert!(
            count <= MAX_WORKERS,
            "Builder::worker_threads: {count} are more than {MAX_WORKERS}; use one for each core"
        );
        if let Kind::MultiThread { workers } = &mut self.kind {
            *workers = Some(count);
        }
        self
    }

    /// The name of the workers' threads, with a number behind it: `kittiwake-0` by default. The system may cut it
    /// short.
    ///
    /// It has no effect on a current-thread runtime.
    ///
    /// # Panics
    /// If it contains a NUL.
    #[must_use]
    #[track_caller]
    pub fn thread_name(mut self, name: impl Into<String>) -> Self {
        self.thread_name = name.into();
        assert!(!self.thread_name.contains('\0'), "Builder::thread_name: a thread's name cannot have a NUL in it");
        self
    }

    /// How long a worker that has nothing to do spins before it blocks: it looks for events again and again.
    ///
    /// By default it finds out by itself. It compares both ways now and then. It spins, for 50 µs at most, while the same
    /// work then takes at most 7/8 of the time and 9/8 of the CPU time, and at most 3/4 of their product. Work is bytes
    /// that sockets move, accepted connections, timers that fire, and wakes by other threads. Spinning pays with few and
    /// busy clients, if the worker has a core of its own: to go to sleep and to be woken can take tens of microseconds on
    /// a virtual machine, more than the work. A fixed time is for a load that is known better, or where latency is worth
    /// its CPU time. [`Duration::ZERO`] forbids spinning.
    ///
    /// # Platform notes
    /// The policy needs the CPU time of a thread, which it gets on Linux only. Elsewhere a worker blocks at once by
    /// default.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = Some(spin);
        self
    }

    /// Whether the runtime's clock stands still from the start; see [`time`](crate::time). For tests, and for a
    /// current-thread runtime.
    #[must_use]
    pub fn start_paused(mut self, start_paused: bool) -> Self {
        self.start_paused = start_paused;
        self
    }

    /// Shuffles the order in which ready tasks run. For tests: a server must work in each order.
    ///
    /// Without a seed, ready tasks run in the order in which they were woken or spawned. With one, they run in a random
    /// order. A task that becomes ready later may run first, but none waits for ever. Another seed gives another order. The
    /// same seed gives the same order again, on each machine, if the program is reproducible. A new version of this crate
    /// may give it another order.
    ///
    /// These keep their order:
    /// * A task that has yielded ([`yield_now`](crate::task::yield_now)) comes after all tasks that were ready, and so
    ///   does one whose budget is used up.
    /// * Timers wake their tasks in the order of their deadlines. Tasks that the same tick has woken run in a random
    ///   order. A tick is 65.5 µs long.
    /// * The futures inside one task, as in `join`, `select` and `zip`. The seed does not reach them.
    /// * A [`JoinSet`](crate::task::JoinSet) yields its tasks in the order of their ends.
    ///
    /// A program is reproducible if it gets everything from its own tasks: from [`duplex`](crate::io::duplex()) pairs,
    /// channels and a clock that is [paused from the start](Builder::start_paused), on a current-thread runtime. These
    /// are not the same in each run, with or without a seed:
    /// * sockets, files and signals, because the kernel decides when they are ready;
    /// * the system's clock, and a clock that is paused later;
    /// * other threads, such as those of [`spawn_blocking`](crate::spawn_blocking) and other workers;
    /// * random numbers of the program's own, such as the order of a `HashMap`, and those of
    ///   [`future::race`](crate::future::race) and [`stream::race`](crate::stream::race).
    ///
    /// With several workers, each shuffles the tasks that it runs, except those that begin on a certain worker, as the
    /// connections of [`serve`](crate::net::serve()) do. The seed also decides from which worker an idle one steals first.
    ///
    /// `#[kittiwake::test(seeds = 20)]` runs a test under many seeds.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Mutex;
    /// use kittiwake::runtime::Builder;
    /// use kittiwake::task::JoinSet;
    ///
    /// fn order(seed: u64) -> std::io::Result<Vec<u32>> {
    ///     let runtime = Builder::new_current_thread().start_paused(true).rng_seed(seed).build()?;
    ///     Ok(runtime.block_on(async {
    ///         let mut tasks = JoinSet::new();
    ///         for number in 0..10 {
    ///             tasks.spawn(async move { number });
    ///         }
    ///         let mut order = Vec::new();
    ///         while let Some(number) = tasks.join_next().await {
    ///             order.push(number.unwrap());
    ///         }
    ///         order
    ///     }))
    /// }
    ///
    /// assert_eq!(order(1)?, order(1)?);
    /// assert_ne!(order(1)?, order(2)?);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn rng_seed(mut self, seed: u64) -> Self {
        self.rng_seed = Some(seed);
        self
    }

    /// Calls `hook` for each poll of a task that takes as long as `threshold` or longer: the task keeps its worker from all
    /// others meanwhile.
    ///
    /// The worker calls the hook after the poll. With several workers, an idle one also calls it once while the poll
    /// lasts: the stuck worker may never come back. The hook must not block. Its panics are contained.
    ///
    /// By default, a line on stderr reports polls of a second in debug builds, at most one a minute, and nothing is
    /// reported in release builds. [`Duration::MAX`] switches the line off. A later call replaces the hook.
    ///
    /// Each poll costs two readings of the clock, about 50 ns, from then on. The futures of `block_on` calls, the local
    /// tasks of a [`block_on`](super::Runtime::block_on) call beside the workers, and closures of
    /// [`spawn_blocking`](crate::spawn_blocking) are not timed.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Mutex;
    /// use std::thread;
    /// use std::time::Duration;
    /// use kittiwake::runtime::Builder;
    ///
    /// static SLOW: Mutex<Vec<String>> = Mutex::new(Vec::new());
    ///
    /// let runtime = Builder::new_current_thread()
    ///     .on_slow_poll(Duration::from_millis(50), |poll| SLOW.lock().unwrap().push(poll.to_string()))
    ///     .build()?;
    /// runtime.block_on(async {
    ///     let task = kittiwake::spawn(async { thread::sleep(Duration::from_millis(60)) });
    ///     task.await.unwrap();
    /// });
    /// // task 1 (src/main.rs:14) blocked worker 0 for 60.1ms
    /// assert!(SLOW.lock().unwrap()[0].contains("blocked worker 0 for"));
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn on_slow_poll(mut self, threshold: Duration, hook: impl Fn(&SlowPoll) + Send + Sync + 'static) -> Self {
        self.on_slow_poll = (threshold < Duration::MAX).then(|| OnSlowPoll { threshold, hook: Arc::new(hook) });
        self
    }

    /// How many closures of [`spawn_blocking`](crate::spawn_blocking) run at a time at most, from 1 on. 512 by default.
    /// Each has a thread, which is started when it is needed.
    ///
    /// Look-ups of names run on such threads too, and have a limit of their own: the same number, but at least 4. So
    /// closures that block hold up no look-up, and look-ups hold up no closure. The runtime has at most `2 * max` threads
    /// for blocking work, or `max + 4` if `max` is less than 4.
    ///
    /// # Panics
    /// If it is 0: no closure could ever run.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_multi_thread().max_blocking_threads(1).build()?;
    /// let (end, ended) = std::sync::mpsc::channel::<()>();
    /// let closure = runtime.handle().spawn_blocking(move || ended.recv().is_err());
    /// // The name is looked up although the only closure blocks.
    /// let addresses = runtime.block_on(kittiwake::net::lookup_host("localhost:80"))?;
    /// assert!(addresses.count() > 0);
    /// drop(end);
    /// assert!(runtime.block_on(closure).unwrap());
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    #[track_caller]
    pub fn max_blocking_threads(mut self, max: usize) -> Self {
        assert!(max > 0, "Builder::max_blocking_threads: no closure could ever run on 0 threads; use 1 or more");
        self.max_blocking_threads = max;
        self
    }

    /// Whether the runtime measures how long the polls of tasks take, and how late timers fire. By default it does not.
    ///
    /// [`Metrics::poll_times`](super::Metrics::poll_times), [`Metrics::lateness`](super::Metrics::lateness) and
    /// [`WorkerMetrics::busy`](super::WorkerMetrics::busy) have the results. Each worker takes about 5 KiB for them, and
    /// reads the clock for each poll of a task.
    ///
    /// # Examples
    /// ```
    /// let runtime = kittiwake::runtime::Builder::new_multi_thread().measure_polls(true).build()?;
    /// let polls = runtime.handle().metrics().poll_times().expect("the runtime measures");
    /// assert!(polls.quantile(0.99) <= polls.max());
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn measure_polls(mut self, measure_polls: bool) -> Self {
        self.measure_polls = measure_polls;
        self
    }

    /// Calls `hook` on each thread that the runtime starts, before the thread does its work: on workers of a multi-thread
    /// runtime, and on threads for blocking work. A later call replaces the hook.
    ///
    /// The thread is not inside the runtime yet. It can set thread-locals, a priority or a core, or enter another
    /// runtime that libraries look for in a thread-local.
    ///
    /// # Panics
    /// A panic in `hook` ends the process: the thread could not do its work.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    /// use kittiwake::runtime::Builder;
    ///
    /// let started = Arc::new(AtomicUsize::new(0));
    /// let count = started.clone();
    /// let runtime = Builder::new_multi_thread()
    ///     .worker_threads(2)
    ///     .on_thread_start(move || {
    ///         count.fetch_add(1, Ordering::Relaxed);
    ///     })
    ///     .build()?;
    /// drop(runtime);
    /// assert_eq!(started.load(Ordering::Relaxed), 2);
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.start = Some(Arc::new(hook));
        self
    }

    /// Calls `hook` on each thread that the runtime has started, after the thread has done its work. A later call
    /// replaces the hook.
    ///
    /// The thread has left the runtime. The destructors of its thread-locals run after `hook`.
    ///
    /// # Panics
    /// A panic in `hook` ends the process.
    ///
    /// # Examples
    /// See [`on_thread_start`](Builder::on_thread_start).
    #[must_use]
    pub fn on_thread_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.stop = Some(Arc::new(hook));
        self
    }

    /// The seed of the order of the tasks.
    pub(super) fn seed(&self) -> Option<u64> {
        self.rng_seed.or_else(common_seed)
    }

    /// The clock of the runtime.
    pub(super) fn clock(&self) -> io::Result<Clock> {
        match self.kind {
            Kind::CurrentThread if self.start_paused => Ok(Clock::paused()),
            Kind::CurrentThread => Ok(Clock::SYSTEM),
            Kind::MultiThread { .. } if self.start_paused => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a clock that is paused from the start needs a current-thread runtime; use Builder::new_current_thread()",
            )),
            Kind::MultiThread { .. } => Ok(Clock::COMMON),
        }
    }
}

/// The seed of runtimes that set none. Only builds that run the tests under many seeds have one: a runtime depends on no
/// variable of the environment.
fn common_seed() -> Option<u64> {
    if !cfg!(kittiwake_rng_seed) {
        return None;
    }
    let seed = std::env::var("KITTIWAKE_RNG_SEED").ok()?;
    Some(seed.parse().expect("KITTIWAKE_RNG_SEED must be a number"))
}

/// The number of workers of a multi-thread runtime that names none.
pub(super) fn count_cores() -> usize {
    // Where the system does not say, one is right for most.
    available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS))
}
