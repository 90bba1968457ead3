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
//! * *Work* is task polls and bytes moved; [`TASK_BYTES`] weigh as much as one poll. Polls alone would favour spinning:
//!   a spinning worker finds a stream in smaller pieces and polls its task more often for the same bytes. Even with the
//!   bytes, the measure favours spinning for short connections: they bring few bytes, and each event has a poll of its
//!   own.
//! * The *cost* of a window is its time and its CPU time per unit of work. A window without work has none, and changes
//!   nothing.
//! * A *hit* is a spin that found something. A *miss* is one that lasted its whole time and found nothing.
//!
//! # States
//! ```text
//!               1                        2                1
//!   blocking ------> trial of spinning -----> spinning <-----> trial of blocking
//!      ^                     | 2, 3              | 3      2            | 2
//!      +---------------------+-------------------+---------------------+
//! ```
//! 1. *Trial*: after `backoff` windows in one mode there is one of the other mode ([`SpinPolicy::count_down`]). A
//!    worker that blocks also waits for a window after which spinning is worth trying: one in which it slept for at
//!    least a quarter of the time, and in which a mean wait was at most twice as long as a spin may last. A busy worker
//!    and an idle one never spin.
//! 2. *Comparison*: the trial is compared with the window before it ([`SpinPolicy::compare`]). Spinning is better if
//!    work takes at most 3/4 of the time that it takes with blocking, and at most 9/8 of the CPU time. For a worker
//!    that spins already the limit is 10/8, so that noise does not change its mode. The time shows the gain: spinning
//!    has none where server and clients share a core. The CPU time shows the waste: a late hit costs more than being
//!    woken.
//! 3. *Out of credit*: spinning has lost without a comparison, and the window ends ([`SpinPolicy::spun`]). Credit is
//!    between 0 and [`CREDIT`]; a hit earns 1 and a miss costs [`MISS`]. Three misses in a row use it up, and so does
//!    more than one miss in five for a while.
//!
//! A result that equals the last one doubles `backoff`, up to a limit. Another result sets it back.
//!
//! A spin lasts at most [`MAX_SPIN`], and at most twice the CPU time of a wait and its work in the last blocking
//! window. Spinning for an event that comes later cannot be worth its CPU time.
//!
//! # Costs
//! A window costs one reading of two clocks. With the longest backoff, a load that spinning always misses pays three
//! misses (at most 150 µs) per 1,024 waits. A load that spinning hits too late spins in at most one wait of 33. A load
//! that spinning suits blocks in one wait of 129.
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

/// Eighths of blocking's CPU time that spinning may take: for a worker that blocks, and for one that spins.
const TO_START: u64 = 9;
const TO_STAY: u64 = 10;

/// Windows between comparisons, at first and at most, for a worker that blocks. The first value keeps lost trials few.
/// The limit is low: a machine that was quick to wake threads may have been so only for a moment.
const BLOCK_BACKOFF: (u32, u32) = (8, 32);

/// The same for a worker that spins. The first value confirms spinning soon. The limit is high: the trials only cost.
const SPIN_BACKOFF: (u32, u32) = (1, 128);

/// Bytes moved that weigh as much as the poll of a task.
const TASK_BYTES: u64 = 4096;

/// The most credit, and the credit of a new trial.
const CREDIT: u32 = 12;

/// The credit that a miss costs.
const MISS: u32 = 4;

/// Time and CPU time in nanoseconds: a reading of the clocks, a difference of two, or the cost of a unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) time: u64,
    /// CPU time of this thread.
    pub(super) cpu: u64,
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
    /// The result of the last comparison. The window is a trial if `mode` differs.
    better: Mode,
    /// Waits left in this window.
    waits_left: u32,
    /// Work done in this window, in bytes; a task poll adds [`TASK_BYTES`].
    work: u64,
    /// The clocks at the start of this window. `None` if they are unknown: then the window is not judged.
    start: Option<Usage>,
    /// The cost of the window before a trial.
    before: Usage,
    /// Windows between comparisons.
    backoff: u32,
    /// Windows left before the next trial. Stays at zero while spinning is not worth trying.
    windows_left: u32,
    /// How long a spin may last, in nanoseconds.
    limit: u64,
    /// Pays for misses.
    credit: u32,
}

impl SpinPolicy {
    /// The policy for a fixed spin time, or the adaptive one.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Self {
            fixed,
            mode: Mode::Block,
            better: Mode::Block,
            waits_left: 0,
            work: 0,
            start: None,
            before: Usage { time: 0, cpu: 0 },
            backoff: BLOCK_BACKOFF.0,
            windows_left: BLOCK_BACKOFF.0,
            limit: 0,
            credit: CREDIT,
        }
    }

    /// Drops the current window; the next wait starts a new one. Call it when the worker starts to run: its thread, and
    /// so its CPU clock, may have changed.
    pub(super) fn discard_window(&mut self) {
        self.waits_left = 0;
        self.start = None;
    }

    /// Counts task polls and bytes moved. Call it each time that the worker looks at the kernel after a batch, also if
    /// it does not wait then.
    pub(super) fn add_work(&mut self, tasks: u64, bytes: u64) {
        self.work = self.work.wrapping_add(tasks.wrapping_mul(TASK_BYTES).wrapping_add(bytes));
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

    /// Reports a hit (`found`) or a miss.
    pub(super) fn spun(&mut self, found: bool) {
        if found {
            self.credit = (self.credit + 1).min(CREDIT);
            return;
        }
        self.credit = self.credit.saturating_sub(MISS);
        if self.credit == 0 && self.fixed.is_none() {
            self.keep_to(Mode::Block);
            self.discard_window();
        }
    }

    fn next_window(&mut self, now: Option<Usage>) {
        if let (Some(start), Some(now)) = (self.start, now) {
            // Saturating, here and in `compare`: a test may pause the clock and move it by a century.
            let (time, cpu) = (now.time.saturating_sub(start.time), now.cpu.saturating_sub(start.cpu));
            self.end_window(Usage { time, cpu });
        }
        self.start = now;
        self.waits_left = WINDOW;
        self.work = 0;
    }

    fn end_window(&mut self, used: Usage) {
        let work = self.work / TASK_BYTES;
        if work == 0 {
            return;
        }
        let cost = Usage { time: used.time / work, cpu: used.cpu / work };
        if self.mode == Mode::Block {
            self.limit = (2 * (used.cpu / u64::from(WINDOW))).min(MAX_SPIN);
        }
        match (self.mode, self.better) {
            (Mode::Spin, Mode::Block) => self.compare(cost, self.before, TO_START),
            (Mode::Block, Mode::Spin) => self.compare(self.before, cost, TO_STAY),
            _ => self.count_down(used, cost),
        }
    }

    /// Ends a window that was no trial: the next one may be.
    fn count_down(&mut self, used: Usage, cost: Usage) {
        self.before = cost;
        self.windows_left = self.windows_left.saturating_sub(1);
        if self.windows_left > 0 {
            return;
        }
        let asleep = used.time.saturating_sub(used.cpu);
        let worth_trying = (used.time / 4..=2 * self.limit * u64::from(WINDOW)).contains(&asleep);
        match self.mode {
            Mode::Spin => self.mode = Mode::Block,
            Mode::Block if worth_trying => {
                self.mode = Mode::Spin;
                self.credit = CREDIT;
            }
            Mode::Block => {}
        }
    }

    /// Ends a trial. Spinning may take `eighths` of blocking's CPU time.
    fn compare(&mut self, spin: Usage, block: Usage, eighths: u64) {
        let is_faster = spin.time.saturating_mul(4) <= block.time.saturating_mul(3);
        let is_cheap = spin.cpu.saturating_mul(8) <= block.cpu.saturating_mul(eighths);
        self.keep_to(if is_faster && is_cheap { Mode::Spin } else { Mode::Block });
    }

    fn keep_to(&mut self, better: Mode) {
        let (first, most) = match better {
            Mode::Block => BLOCK_BACKOFF,
            Mode::Spin => SPIN_BACKOFF,
        };
        self.backoff = if better == self.better { (2 * self.backoff).min(most) } else { first };
        self.windows_left = self.backoff;
        self.mode = better;
        self.better = better;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine and its clients, in nanoseconds.
    #[derive(Clone, Copy, Debug)]
    struct Load {
        /// CPU time of a task. Each wait is followed by one task.
        work: u64,
        /// From the end of a task to the next event, for a worker that spins.
        gap: u64,
        /// Time, and CPU time, of being woken.
        wake: u64,
        wake_cpu: u64,
        /// The clients share the worker's core. They run while it blocks or yields, so waking it adds no time.
        one_core: bool,
    }

    /// A virtual machine, where waking costs much, and a client that answers at once.
    const EAGER: Load = Load { work: 6_000, gap: 12_000, wake: 40_000, wake_cpu: 15_000, one_core: false };

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

        fn run(&mut self, load: Load, waits: u32) -> Totals {
            let (start, mut totals) = (self.now, Totals::default());
            for _ in 0..waits {
                self.wait(load, &mut totals);
            }
            Totals { time: self.now.time - start.time, cpu: self.now.cpu - start.cpu, ..totals }
        }

        fn wait(&mut self, load: Load, totals: &mut Totals) {
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
            self.now.time += load.gap + load.work;
            self.now.cpu += load.work;
            self.policy.add_work(1, 0);
        }
    }

    fn adaptive(load: Load, waits: u32) -> Totals {
        Worker::new(None).run(load, waits)
    }

    fn blocking(load: Load, waits: u32) -> Totals {
        Worker::new(Some(Duration::ZERO)).run(load, waits)
    }

    /// A worker spins where being woken takes longer than the next event. Without backoff every second window would
    /// block.
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
            policy.add_work(1, bytes);
            now = Usage { time: now.time + time, cpu: now.cpu + 9_000 };
        }
        assert!((1..5_000).contains(&spins), "{spins} of 100,000 waits");
    }

    /// The first trial comes early, and most windows after it spin.
    #[test]
    fn spins_within_twenty_windows() {
        let totals = adaptive(EAGER, 20 * WINDOW);
        assert!(totals.spins >= 9 * u64::from(WINDOW), "{totals:?}");
    }

    /// Spinning takes at most a quarter more CPU time than blocking, and no more time. This holds from the first wait
    /// on, for clients that think from 1 µs to 100 ms, and for machines on which waking takes 2 to 90 µs.
    #[test]
    fn cpu_grows_by_at_most_quarter() {
        let gaps = (0..60).map(|i| 1_000 + 2_000 * i).chain([300_000, 1_000_000, 10_000_000, 100_000_000]);
        for gap in gaps {
            for wake_cpu in [1_000, 4_000, 12_000, 30_000] {
                for work in [1_000, 5_000, 20_000, 100_000] {
                    let load = Load { work, gap, wake: 2 * wake_cpu, wake_cpu, one_core: false };
                    for waits in [300, 1_000, 10_000] {
                        let (spun, blocked) = (adaptive(load, waits), blocking(load, waits));
                        assert!(4 * spun.cpu <= 5 * blocked.cpu, "{load:?}: {spun:?} against {blocked:?}");
                        assert!(spun.time <= blocked.time, "{load:?}: spinning made it slower");
                    }
                }
            }
        }
    }

    /// Where server and clients share a core, spins take little CPU time but shorten nothing: only trials spin.
    #[test]
    fn blocks_where_spinning_gains_nothing() {
        let totals = adaptive(Load { one_core: true, wake_cpu: 2_000, ..EAGER }, 100_000);
        assert!(totals.spins <= 100_000 / u64::from(BLOCK_BACKOFF.1), "{totals:?}");
    }

    /// A worker that hardly sleeps, or mostly sleeps, has nothing to gain.
    #[test]
    fn busy_and_idle_workers_never_spin() {
        let busy = Load { gap: 100, wake: 3_000, wake_cpu: 2_000, work: 50_000, one_core: false };
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
            policy.add_work(1, 0);
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
                policy.add_work(1, 0);
            }
        }
    }
}
