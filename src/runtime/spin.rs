//! Spinning: whether a worker with nothing to run looks for events again and again before it blocks, and for how long.
//!
//! Blocking and being woken costs a thread 3 to 60 µs. The large figures are those of virtual machines. That can be
//! more than the work for several requests. A worker that expects the next event soon may *spin* instead: it looks at
//! the kernel and at its remote queue in a loop. The gain and the price depend on the machine, on the other users of
//! the core and on the clients. The worker cannot know them beforehand, so it compares both modes and keeps to the
//! better one.
//!
//! # Terms
//! * A *wait* is one call of [`SpinPolicy::spin_time`]. The worker has nothing to run then.
//! * A *window* is [`WINDOW`] waits in one [`Mode`]. The clocks are read once between two windows.
//! * *Work* is bytes that sockets have moved. An accepted connection, a fired timer and an entry that another thread has
//!   pushed weigh as much as the bytes of a small request. Work must not depend on how often the worker looks. Polls
//!   and events do: a spinning worker finds a connection, its request and its end one by one, and runs three polls
//!   where a worker that slept runs one.
//! * The *cost* of a window is its time and its CPU time per unit of work. A window of blocking without work has none,
//!   and changes nothing.
//!
//! # The rule
//! ```text
//!               1                       2
//!   blocking -------> spinning (good) -----> one window of blocking, and on
//!      ^                 | 3, 4
//!      +-----------------+
//! ```
//! 1. After some windows of blocking there is one of spinning. Its load must be worth trying: in the window before, the
//!    worker slept for at least a quarter of the time, and a mean wait was at most twice as long as a spin may last. A
//!    busy worker and an idle one never spin.
//! 2. A window of spinning is *good* if work takes at most 7/8 of the time that it takes with blocking and at most 9/8
//!    of the CPU time, and if the product of both ratios is at most 3/4. Another one follows. Each [`SPIN_WINDOWS`]
//!    windows, a window of blocking renews the measure. The time shows the gain: spinning has none where server and
//!    clients share a core. The CPU time shows the waste: a late event costs more than being woken.
//! 3. After any other window of spinning, the worker blocks for `backoff` windows. That doubles `backoff`, up to
//!    [`MAX_BACKOFF`], and a good window halves it. So one bad window among good ones costs little, and so does a good
//!    one by chance among bad ones.
//! 4. [`MISSES`] spins in a row that last their whole time and find nothing end a window at once, as a bad one.
//!
//! A spin lasts at most [`MAX_SPIN`], and at most twice the CPU time of a wait and its work in the last window of
//! blocking. Spinning for an event that comes later cannot be worth its CPU time.
//!
//! # Costs
//! A window costs one reading of two clocks. With the longest backoff, a load that spinning always misses pays three
//! misses (at most 150 µs) per 1,024 waits. A load that spinning hits too late spins in at most one wait of 33. A load
//! that spinning suits blocks in one wait of 65.
//!
//! # The caller's part
//! The worker does not ask while tasks are queued, after it has run several at once, or while the clock is paused. It
//! reports neither a spin that entries of other threads prevented nor one that it cut short, for a timer or to watch
//! other workers. It reads the clocks: this file is a function of its inputs. Where the system reports no CPU time, the
//! worker blocks unless a spin time was set.

use std::time::Duration;

/// Waits in a window.
const WINDOW: u32 = 32;

/// The longest spin, in nanoseconds.
const MAX_SPIN: u64 = 50_000;

/// Windows of blocking before the first window of spinning, and the most after a bad one. The first value keeps bad
/// windows few. The most is low: a machine that was quick to wake threads may have been so only for a moment.
const FIRST_BACKOFF: u32 = 8;
const MAX_BACKOFF: u32 = 32;

/// Good windows of spinning between two of blocking.
const SPIN_WINDOWS: u32 = 64;

/// Misses in a row that end a window of spinning.
const MISSES: u32 = 3;

/// Time and CPU time in nanoseconds: a reading of the clocks, or a difference of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) time: u64,
    /// CPU time of this thread.
    pub(super) cpu: u64,
}

/// The cost of some work.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Bytes.
    work: f64,
    /// Nanoseconds.
    time: f64,
    cpu: f64,
}

impl Cost {
    /// Adds a window. The windows before it weigh half as much as they did.
    fn add(&mut self, window: Self) {
        self.work = self.work / 2.0 + window.work;
        self.time = self.time / 2.0 + window.time;
        self.cpu = self.cpu / 2.0 + window.cpu;
    }

    /// Whether spinning at this cost is better than to block at that one. Not if there was no work.
    fn is_better_than(self, block: Self) -> bool {
        // Without work these are infinite or NaN.
        let scale = block.work / self.work;
        let (time, cpu) = (scale * self.time / block.time, scale * self.cpu / block.cpu);
        time <= 0.875 && cpu <= 1.125 && time * cpu <= 0.75
    }
}

/// A worker's behaviour in a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Blocks at once.
    Block,
    /// Spins before it blocks.
    Spin,
}

/// Decides for one worker how long each wait spins.
pub(super) struct SpinPolicy {
    /// The setting of [`Builder::spin`](super::Builder::spin), which overrides the rules.
    fixed: Option<Duration>,
    /// The mode of this window.
    mode: Mode,
    /// Waits left in this window.
    waits_left: u32,
    /// Work done in this window, in bytes.
    work: u64,
    /// The clocks at the start of this window. `None` if they are unknown: then the window is not judged.
    start: Option<Usage>,
    /// The cost of blocking: a mean in which the last window weighs as much as all before it.
    block: Cost,
    /// Windows left in this mode. Stays at zero while spinning is not worth trying.
    windows_left: u32,
    /// Windows of blocking that the next bad window is followed by.
    backoff: u32,
    /// How long a spin may last, in nanoseconds.
    limit: u64,
    /// Misses since the last spin that found something.
    misses: u32,
}

impl SpinPolicy {
    /// The policy for a fixed spin time, or the adaptive one.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Self {
            fixed,
            mode: Mode::Block,
            waits_left: 0,
            work: 0,
            start: None,
            block: Cost::default(),
            windows_left: FIRST_BACKOFF,
            backoff: FIRST_BACKOFF,
            limit: 0,
            misses: 0,
        }
    }

    /// Drops the current window; the next wait starts a new one. Call it when the worker starts to run: its thread, and
    /// so its CPU clock, may have changed.
    pub(super) fn discard_window(&mut self) {
        self.waits_left = 0;
        self.start = None;
        // It counts as a bad one. A program whose calls end before a window of spinning does would otherwise spin without
        // being judged.
        if self.mode == Mode::Spin {
            self.end_spinning(false);
        }
    }

    /// Counts work. Call it each time that the worker looks at the kernel after a batch, also if it does not wait then.
    pub(super) fn add_work(&mut self, bytes: u64) {
        self.work = self.work.wrapping_add(bytes);
    }

    /// Starts a wait and returns how long it spins at most before it blocks; zero means that it blocks at once.
    ///
    /// Calls `read_clocks` once per window. `read_clocks` returns `None` if the system reports no CPU
    /// time.
    pub(super) fn spin_time(&mut self, read_clocks: impl FnOnce() -> Option<Usage>) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        if self.waits_left == 0 {
            self.next_window(read_clocks());
        }
        self.waits_left -= 1;
        match self.mode {
            Mode::Block => Duration::ZERO,
            Mode::Spin => Duration::from_nanos(self.limit),
        }
    }

    /// Reports a spin that found something, or a miss.
    pub(super) fn spun(&mut self, found: bool) {
        self.misses = if found { 0 } else { self.misses.saturating_add(1) };
        if self.misses >= MISSES && self.mode == Mode::Spin {
            self.end_spinning(false);
            self.discard_window();
        }
    }

    fn next_window(&mut self, now: Option<Usage>) {
        if let (Some(start), Some(now)) = (self.start, now) {
            // Saturating: a test may pause the clock and move it by a century.
            let (time, cpu) = (now.time.saturating_sub(start.time), now.cpu.saturating_sub(start.cpu));
            let cost = Cost { work: self.work as f64, time: time as f64, cpu: cpu as f64 };
            match self.mode {
                Mode::Block if self.work == 0 => {}
                Mode::Block => self.end_blocking(Usage { time, cpu }, cost),
                Mode::Spin => self.end_spinning(cost.is_better_than(self.block)),
            }
        }
        self.start = now;
        self.waits_left = WINDOW;
        self.work = 0;
    }

    fn end_blocking(&mut self, used: Usage, cost: Cost) {
        self.block.add(cost);
        self.limit = (2 * (used.cpu / u64::from(WINDOW))).min(MAX_SPIN);
        self.windows_left = self.windows_left.saturating_sub(1);
        let asleep = used.time.saturating_sub(used.cpu);
        let is_worth_trying = (used.time / 4..=2 * self.limit * u64::from(WINDOW)).contains(&asleep);
        if self.windows_left == 0 && is_worth_trying {
            (self.mode, self.windows_left, self.misses) = (Mode::Spin, SPIN_WINDOWS, 0);
        }
    }

    fn end_spinning(&mut self, is_good: bool) {
        self.windows_left -= 1;
        if !is_good {
            (self.mode, self.windows_left) = (Mode::Block, self.backoff);
            self.backoff = (2 * self.backoff).min(MAX_BACKOFF);
            return;
        }
        self.backoff = (self.backoff / 2).max(1);
        if self.windows_left == 0 {
            (self.mode, self.windows_left) = (Mode::Block, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a request and its answer.
    const REQUEST: u64 = 128;

    /// A machine and its clients, in nanoseconds.
    #[derive(Clone, Copy, Debug)]
    struct Load {
        /// CPU time of a request, without the looks at the kernel for its events after the first.
        work: u64,
        /// From the end of a task to the next event, for a worker that spins.
        gap: u64,
        /// Events of a request. A worker that spins finds them one by one, one that is woken finds all.
        events: u64,
        /// CPU time of a look at the kernel and of the poll of a task, for each event after the first.
        look: u64,
        /// Time, and CPU time, of being woken.
        wake: u64,
        wake_cpu: u64,
        /// The clients share the worker's core. They run while it blocks or yields, so waking it adds no time.
        one_core: bool,
    }

    /// A virtual machine, where waking costs much, and a client that answers at once.
    const EAGER: Load =
        Load { work: 6_000, gap: 12_000, events: 1, look: 0, wake: 40_000, wake_cpu: 15_000, one_core: false };

    /// The same with an event that no spin lasts until.
    const LATE: Load = Load { gap: 100_000, ..EAGER };

    #[derive(Debug, Default)]
    struct Totals {
        spins: u64,
        misses: u64,
        readings: u64,
        time: u64,
        cpu: u64,
    }

    /// A simulated worker: it does what its policy says.
    struct Worker {
        policy: SpinPolicy,
        now: Usage,
    }

    impl Worker {
        fn new(fixed: Option<Duration>) -> Self {
            Self { policy: SpinPolicy::new(fixed), now: Usage { time: 0, cpu: 0 } }
        }

        fn run(&mut self, load: Load, requests: u32) -> Totals {
            let (start, mut totals) = (self.now, Totals::default());
            for _ in 0..requests {
                self.serve(load, &mut totals);
            }
            Totals { time: self.now.time - start.time, cpu: self.now.cpu - start.cpu, ..totals }
        }

        fn serve(&mut self, load: Load, totals: &mut Totals) {
            let mut missing = load.events;
            while missing > 0 {
                let is_first = missing == load.events;
                let found = if self.wait(load, totals) { 1 } else { missing };
                missing -= found;
                let work = load.work * found / load.events + if is_first { 0 } else { load.look };
                self.now.time += work;
                self.now.cpu += work;
            }
            self.policy.add_work(REQUEST);
        }

        /// Waits for an event. Returns whether a spin found it.
        fn wait(&mut self, load: Load, totals: &mut Totals) -> bool {
            let limit = self.policy.spin_time(|| {
                totals.readings += 1;
                Some(self.now)
            });
            let limit = limit.as_nanos() as u64;
            let is_hit = load.gap <= limit;
            if limit > 0 {
                totals.spins += 1;
                totals.misses += u64::from(!is_hit);
                self.policy.spun(is_hit);
                // On one core the clients use this time.
                self.now.cpu += if load.one_core { 0 } else { load.gap.min(limit) };
            }
            if !is_hit || limit == 0 {
                self.now.time += if load.one_core { 0 } else { load.wake };
                self.now.cpu += load.wake_cpu;
            }
            self.now.time += load.gap;
            limit > 0 && is_hit
        }
    }

    fn adaptive(load: Load, waits: u32) -> Totals {
        Worker::new(None).run(load, waits)
    }

    fn blocking(load: Load, waits: u32) -> Totals {
        Worker::new(Some(Duration::ZERO)).run(load, waits)
    }

    /// A worker spins where being woken takes longer than the next event. Windows of blocking
    /// become rare.
    #[test]
    fn spins_where_waking_costs_more() {
        let (spun, blocked) = (adaptive(EAGER, 100_000), blocking(EAGER, 100_000));
        assert!(spun.spins > 98_000, "{spun:?}");
        assert_eq!(spun.misses, 0);
        assert!(3 * spun.time < blocked.time, "{spun:?} against {blocked:?}");
        assert!(spun.cpu < blocked.cpu, "{spun:?} against {blocked:?}");
    }

    /// A worker that looks at a stream twice as often finds half as much each time. Counting that as twice the work
    /// would use the whole core for nothing.
    #[test]
    fn smaller_pieces_are_not_more_work() {
        let (mut policy, mut now, mut spins) = (SpinPolicy::new(None), Usage { time: 0, cpu: 0 }, 0);
        for _ in 0..100_000 {
            let (time, bytes) = if policy.spin_time(|| Some(now)).is_zero() {
                (20_000, 65_536)
            } else {
                spins += 1;
                policy.spun(true);
                (10_000, 32_768)
            };
            policy.add_work(bytes);
            now = Usage { time: now.time + time, cpu: now.cpu + 9_000 };
        }
        assert!((1..5_000).contains(&spins), "{spins} of 100,000 waits");
    }

    /// A worker that spins finds a connection, its request and its end one by one. Counting that as three times the work
    /// would take a third more CPU time and look cheap.
    #[test]
    fn connection_of_three_events_is_counted_once() {
        for (look, gap) in [(4_000, 3_000), (5_000, 3_000), (5_000, 8_000), (1_000, 10_000)] {
            let load = Load { work: 12_000, gap, events: 3, look, ..EAGER };
            let (spun, blocked) = (adaptive(load, 30_000), blocking(load, 30_000));
            assert!(10 * spun.cpu <= 11 * blocked.cpu, "{load:?}: {spun:?} against {blocked:?}");
        }
    }

    /// The work of a window varies if requests do. Windows that look cheap by chance must not add up.
    #[test]
    fn mixed_requests_do_not_mislead() {
        let late = Load { gap: 35_000, ..EAGER };
        for large in [2, 10, 50] {
            let cpu = |fixed| {
                let (mut worker, mut random, mut cpu) = (Worker::new(fixed), 1_u64, 0);
                for _ in 0..100_000 {
                    // A linear congruential generator (Knuth's MMIX).
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let is_large = (random >> 33) % large == 0;
                    let work = if is_large { 30_000 } else { 6_000 };
                    cpu += worker.run(Load { work, ..late }, 1).cpu;
                    worker.policy.add_work(if is_large { 131_072 } else { 0 });
                }
                cpu
            };
            let (spun, blocked) = (cpu(None), cpu(Some(Duration::ZERO)));
            assert!(8 * spun <= 9 * blocked, "1 of {large} is large: {:.3} times", spun as f64 / blocked as f64);
        }
    }

    /// Events that bring no work, such as the ends of connections, are no reason to spin.
    #[test]
    fn events_without_work_end_spinning() {
        let mut worker = Worker::new(None);
        worker.run(EAGER, 10_000);
        let mut totals = Totals::default();
        for _ in 0..10_000 {
            worker.wait(EAGER, &mut totals);
        }
        assert!(totals.spins <= 2 * u64::from(WINDOW), "{totals:?}");
    }

    /// The first window of spinning comes early, and most windows after it spin.
    #[test]
    fn spins_within_twenty_windows() {
        let totals = adaptive(EAGER, 20 * WINDOW);
        assert!(totals.spins >= 9 * u64::from(WINDOW), "{totals:?}");
    }

    /// Spinning takes at most a quarter more CPU time than blocking, and no more time. This holds from the first wait
    /// on, for clients that think from 1 µs to 100 ms, and for machines on which waking takes 2 to 60 µs.
    #[test]
    fn cpu_grows_by_at_most_quarter() {
        let gaps = (0..60).map(|i| 1_000 + 2_000 * i).chain([300_000, 1_000_000, 10_000_000, 100_000_000]);
        for gap in gaps {
            for wake_cpu in [1_000, 4_000, 12_000, 30_000] {
                for work in [1_000, 5_000, 20_000, 100_000] {
                    let load = Load { work, gap, wake: 2 * wake_cpu, wake_cpu, ..EAGER };
                    for waits in [300, 1_000, 10_000] {
                        let (spun, blocked) = (adaptive(load, waits), blocking(load, waits));
                        assert!(4 * spun.cpu <= 5 * blocked.cpu, "{load:?}: {spun:?} against {blocked:?}");
                        assert!(spun.time <= blocked.time, "{load:?}: spinning made it slower");
                    }
                }
            }
        }
    }

    /// Where server and clients share a core, spins take little CPU time but shorten nothing. Only the windows
    /// that try it spin.
    #[test]
    fn blocks_where_spinning_gains_nothing() {
        let totals = adaptive(Load { one_core: true, wake_cpu: 2_000, ..EAGER }, 100_000);
        assert!(totals.spins <= 100_000 / u64::from(MAX_BACKOFF), "{totals:?}");
    }

    /// A worker that hardly sleeps, or mostly sleeps, has nothing to gain.
    #[test]
    fn busy_and_idle_workers_never_spin() {
        let busy = Load { gap: 100, wake: 3_000, wake_cpu: 2_000, work: 50_000, ..EAGER };
        let idle = Load { gap: 1_000_000, ..EAGER };
        for load in [busy, idle] {
            assert_eq!(adaptive(load, 100_000).spins, 0, "{load:?}");
        }
    }

    /// When the clients go away, the worker stops looking for them.
    #[test]
    fn three_misses_end_spinning() {
        let mut worker = Worker::new(None);
        worker.run(EAGER, 10_000);
        let totals = worker.run(Load { gap: 1_000_000, ..EAGER }, 100_000);
        assert_eq!((totals.spins, totals.misses), (3, 3), "{totals:?}");
    }

    /// If every third request is late, the misses cost more than the hits gain.
    #[test]
    fn frequent_misses_end_spinning() {
        let (mut worker, mut misses) = (Worker::new(None), 0);
        worker.run(EAGER, 10_000);
        for _ in 0..30_000 {
            misses += worker.run(EAGER, 2).misses + worker.run(LATE, 1).misses;
        }
        assert!(misses < 1_000, "{misses} of 90,000 waits");
    }

    /// If one request of 101 is late, the hits pay for it.
    #[test]
    fn rare_misses_do_not_end_spinning() {
        let (mut worker, mut spins) = (Worker::new(None), 0);
        worker.run(EAGER, 1_000);
        for _ in 0..1_000 {
            spins += worker.run(EAGER, 100).spins + worker.run(LATE, 1).spins;
        }
        assert!(spins > 90_900, "{spins} of 101,000 waits");
    }

    /// A new load changes the mode, however long the old one lasted: backoff delays that and no more.
    #[test]
    fn mode_follows_the_load() {
        let mut worker = Worker::new(None);
        for _ in 0..3 {
            worker.run(Load { gap: 45_000, ..EAGER }, 20_000);
            let eager = worker.run(EAGER, 20_000);
            assert!(eager.spins > 15_000, "{eager:?}");
            let late = worker.run(Load { gap: 45_000, ..EAGER }, 20_000);
            assert!(late.spins < 1_000, "{late:?}");
        }
    }

    /// A reading is a system call.
    #[test]
    fn clocks_are_read_once_per_window() {
        assert_eq!(adaptive(EAGER, 100 * WINDOW).readings, 100);
    }

    /// Without CPU times there is no comparison, and so no spin.
    #[test]
    fn blocks_without_cpu_times() {
        let mut policy = SpinPolicy::new(None);
        for _ in 0..10_000 {
            assert_eq!(policy.spin_time(|| None), Duration::ZERO);
            policy.add_work(REQUEST);
        }
    }

    /// A current-thread runtime may move to another thread, which has its own CPU clock. The difference of two such
    /// clocks means nothing.
    #[test]
    fn discarded_windows_change_nothing() {
        let mut worker = Worker::new(None);
        for _ in 0..1_000 {
            worker.policy.discard_window();
            assert_eq!(worker.run(EAGER, WINDOW - 1).spins, 0, "an incomplete window was judged");
        }
    }

    /// Calls that end before a window of spinning does are never judged. So few of them spin, although a long call before
    /// them did.
    #[test]
    fn short_calls_do_not_spin() {
        for (waits, at_most) in [(WINDOW - 1, 0), (2 * WINDOW - 1, 1_500)] {
            let mut worker = Worker::new(None);
            assert!(worker.run(EAGER, 100 * WINDOW).spins > 0, "the test needs a worker that spins");
            let spins: u64 = (0..1_000)
                .map(|_| {
                    worker.policy.discard_window();
                    worker.run(EAGER, waits).spins
                })
                .sum();
            assert!(spins <= at_most, "{spins} spins in calls of {waits} waits, which are not judged");
        }
    }

    /// A test may pause the clock and move it, to its end or back.
    #[test]
    fn clock_jumps_do_not_overflow() {
        for windows in 0..30 {
            for then in [0, u64::MAX] {
                let mut worker = Worker::new(None);
                // The last window has one task and then ends at `then`: the largest cost there can be.
                worker.run(EAGER, windows * WINDOW + 1);
                for _ in 0..2 * WINDOW {
                    worker.policy.spin_time(|| Some(Usage { time: then, cpu: then }));
                }
            }
        }
    }

    /// A spin time that was set is used as given, and costs no reading of the clocks.
    #[test]
    fn fixed_spin_time_is_kept() {
        for spin in [Duration::ZERO, Duration::from_micros(7)] {
            let mut policy = SpinPolicy::new(Some(spin));
            for _ in 0..100 {
                assert_eq!(policy.spin_time(|| unreachable!("there is nothing to measure")), spin);
                policy.spun(false);
                policy.add_work(REQUEST);
            }
        }
    }
}
