//! Parking: whether a worker with nothing to do polls for events before it blocks, and how long.
//!
//! To block and to be woken costs a server's thread from 3 to 60 µs, most of it on virtual machines, and that is more than
//! serving several requests. A worker that expects the next event soon may *poll* instead: look at the kernel and the inbox
//! again and again. What that gains, and what it costs, depends on the machine, on who else wants the core, and on the
//! clients; nothing that a worker could know beforehand decides it. So it tries both ways, and keeps to the better one.
//!
//! # Windows
//! A *wait* is when the worker has nothing to run. Waits come in windows of [`WINDOW`]; in one window all of them block at
//! once, or all poll first. Between two windows the clocks are read, once, and tell the [`Cost`] of the one that has ended:
//! the time that passed, and the CPU time that this thread used, for each unit of work: a task that was run, or
//! [4 KiB](AS_A_TASK) that were moved. Tasks alone would not do: whoever polls while a stream comes in finds it sooner and in
//! smaller pieces, and so runs more tasks for as many bytes.
//!
//! # The rule
//! ```text
//!               `rest` windows, promising                      `rest` windows
//!   blocks ------------------------------> both ways <------------------------------ polls
//!     ^                                    |       |                                   ^
//!     +------------------------------------+       +-----------------------------------+
//!            polling is not worth it                    polling is worth its price
//! ```
//! 1. The worker keeps to one way for `rest` windows; then there is one of the other way, and the two are compared
//!    ([`Park::end_window`]).
//! 2. Polling is worth its price ([`Cost::is_worth`]) if work takes at most 3/4 of the time that it takes with blocking, and
//!    at most 9/8 of the CPU time; 10/8 for a worker that polls already, lest it change its mind with each breath of the
//!    machine. The time shows what polling is for: where server and clients share a core, it gains nothing. The CPU
//!    time holds the waste: a poll that succeeds late costs more than to be woken does.
//! 3. A comparison that says what the last one said doubles `rest`, up to a limit: that is the back-off, of both ways
//!    ([`BLOCKING_REST`], [`POLLING_REST`]). One that says something else sets it back.
//! 4. A poll lasts at most twice as long as the CPU time that a wait and its work took with blocking, and [`LONGEST`]: where
//!    the events come later than that, polling cannot be worth its price. One that ends without an event is a *miss*. Misses
//!    are paid from a credit: a hit earns 1, a miss costs [`MISS`], and there is never more than [`CREDIT`]. When it is used up
//!    ([`Park::polled`]) polling has lost at once, without a comparison: that is three misses in a row, or more
//!    than one in five for a while.
//! 5. No poll is tried unless the last window was promising ([`Usage::is_promising`]): the thread slept for a quarter of
//!    the time at least, else there is nothing to gain; and on average for twice a poll's time at most, else polls would be in
//!    vain. A busy server and an idle one never poll.
//!
//! # What it costs
//! A window costs a reading of two clocks, and each of its waits a few instructions; a busy worker has few waits. Once the
//! back-off is complete, a load for which polls come to nothing pays three misses, 150 µs at most, for 1,024 waits; one for
//! which they come late is polled for at most one wait in 33. A load for which they are good is blocked on for one wait in 129.
//!
//! # Not here
//! The worker decides when the question is not asked at all: with tasks queued, or a paused clock. It ends a poll at the next
//! timer's deadline, which is no miss. Clocks are read by the caller: what is here is a function of what it is told.
//! Where the system tells no CPU times there is no comparison, and so no polling by default.

use std::time::Duration;

/// Waits in a window.
const WINDOW: u32 = 32;

/// How long a poll lasts that finds nothing, at most, in nanoseconds.
const LONGEST: u64 = 50_000;

/// Eighths of the CPU time that blocking takes: what polls may take for a worker that has blocked so far, and for one that has
/// polled.
const TO_BEGIN: u64 = 9;
const TO_GO_ON: u64 = 10;

/// Windows from one comparison to the next, at first and at most, for a worker that blocks. Polls that lose are few so, from
/// the start, and a machine that is slow to be woken for a moment only is found out soon.
const BLOCKING_REST: (u32, u32) = (8, 32);

/// The same for one that polls: it must be sure soon, and then blocks for nothing but to compare.
const POLLING_REST: (u32, u32) = (1, 128);

/// Bytes that are as much work as to run a task.
const AS_A_TASK: u64 = 4096;

/// What misses are paid from, at most, and at the start.
const CREDIT: u32 = 12;

/// What a miss costs.
const MISS: u32 = 4;

/// What the clocks say, in nanoseconds from any moment on, or the difference of two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// The time that has passed.
    pub(super) time: u64,
    /// The CPU time that this thread has used.
    pub(super) cpu: u64,
}

/// A worker's rule, and what it has seen.
pub(super) struct Park {
    /// The setting of [`Builder::spin`](super::Builder::spin): with it, nothing else counts.
    fixed: Option<Duration>,
    /// The way of this window.
    way: Way,
    /// What the last comparison was for. If it is not `way`, this window is there to be compared with the one before.
    better: Way,
    /// Waits that are left of this window.
    waits: u32,
    /// What was done in it, in bytes: those that were moved, and [`AS_A_TASK`] for each task.
    work: u64,
    /// When it began; `None` if that is not known, and the next window is to begin with the next wait.
    start: Option<Usage>,
    /// What the window before took. It is of the better way.
    before: Cost,
    /// Windows from one comparison to the next; those that are left until then.
    rest: u32,
    left: u32,
    /// How long a poll lasts that finds nothing, in nanoseconds.
    longest: u64,
    /// What is left to pay misses from, in the windows that poll.
    credit: u32,
}

/// What a worker does with a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Blocks at once.
    Block,
    /// Polls before it blocks.
    Poll,
}

impl Park {
    /// The rule for a fixed time, or the adaptive one.
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Self {
            fixed,
            way: Way::Block,
            better: Way::Block,
            waits: 0,
            work: 0,
            start: None,
            before: Cost { time: 0, cpu: 0 },
            rest: BLOCKING_REST.0,
            left: BLOCKING_REST.0,
            longest: 0,
            credit: CREDIT,
        }
    }

    /// The worker begins to run. Its thread may be another one than before, with another clock of CPU time.
    pub(super) fn begin(&mut self) {
        self.waits = 0;
        self.start = None;
    }

    /// So many tasks were run, and moved so many bytes. To be said before each wait, whether it is asked about or not.
    #[inline]
    pub(super) fn worked(&mut self, tasks: u64, bytes: u64) {
        self.work = self.work.wrapping_add(tasks.wrapping_mul(AS_A_TASK).wrapping_add(bytes));
    }

    /// The worker has nothing to do. How long it is to poll before it blocks: zero for not at all. `read` is called if the
    /// rule wants to know the time, which is seldom; `None` if the system does not tell.
    #[inline]
    pub(super) fn wait(&mut self, read: impl FnOnce() -> Option<Usage>) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        if self.waits == 0 {
            self.next_window(read());
        }
        self.waits -= 1;
        match self.way {
            Way::Block => Duration::ZERO,
            Way::Poll => Duration::from_nanos(self.longest),
        }
    }

    /// What came of a poll: whether it found something. One that a deadline cut short is not to be told.
    pub(super) fn polled(&mut self, found: bool) {
        if found {
            self.credit = (self.credit + 1).min(CREDIT);
            return;
        }
        self.credit = self.credit.saturating_sub(MISS);
        if self.credit == 0 && self.fixed.is_none() {
            self.judge(false);
            self.begin();
        }
    }

    #[cold]
    fn next_window(&mut self, now: Option<Usage>) {
        if let (Some(start), Some(now)) = (self.start, now) {
            self.end_window(now.since(start));
        }
        self.start = now;
        self.waits = WINDOW;
        self.work = 0;
    }

    /// What comes after a window that took so much.
    fn end_window(&mut self, usage: Usage) {
        let Some(cost) = usage.per_work(self.work / AS_A_TASK) else { return };
        if self.way == Way::Block {
            self.longest = (2 * (usage.cpu / u64::from(WINDOW))).min(LONGEST);
        }
        match (self.way, self.better) {
            (Way::Poll, Way::Block) => self.judge(cost.is_worth(self.before, TO_BEGIN)),
            (Way::Block, Way::Poll) => self.judge(self.before.is_worth(cost, TO_GO_ON)),
            _ => self.keep_to_it(usage, cost),
        }
    }

    /// The window was of the better way: what comes is another, or one to compare it with.
    fn keep_to_it(&mut self, usage: Usage, cost: Cost) {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return;
        }
        self.before = cost;
        match self.way {
            Way::Poll => self.way = Way::Block,
            Way::Block if usage.is_promising(self.longest) => {
                self.way = Way::Poll;
                self.credit = CREDIT;
            }
            Way::Block => {}
        }
    }

    /// The two ways have been compared.
    fn judge(&mut self, polling_is_worth_it: bool) {
        let (better, (first, most)) =
            if polling_is_worth_it { (Way::Poll, POLLING_REST) } else { (Way::Block, BLOCKING_REST) };
        self.rest = if better == self.better { (2 * self.rest).min(most) } else { first };
        self.left = self.rest;
        self.way = better;
        self.better = better;
    }
}

impl Usage {
    /// Saturating, because a clock may have been stopped and moved in between.
    fn since(self, start: Self) -> Self {
        Self { time: self.time.saturating_sub(start.time), cpu: self.cpu.saturating_sub(start.cpu) }
    }

    /// Whether a window of waits that took so much, and blocked, might have been better with polls of `longest`.
    fn is_promising(self, longest: u64) -> bool {
        let asleep = self.time.saturating_sub(self.cpu);
        (self.time / 4..=2 * longest * u64::from(WINDOW)).contains(&asleep)
    }

    fn per_work(self, work: u64) -> Option<Cost> {
        Some(Cost { time: self.time.checked_div(work)?, cpu: self.cpu.checked_div(work)? })
    }
}

/// What a unit of work took, on average, in nanoseconds, with its share of the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    time: u64,
    cpu: u64,
}

impl Cost {
    /// Whether polls, of which this is the cost, are better than blocking, which took `blocking`. They may take so many
    /// eighths of its CPU time.
    fn is_worth(self, blocking: Self, eighths: u64) -> bool {
        // Saturating, because a test may move the clock on by a century.
        self.time.saturating_mul(4) <= blocking.time.saturating_mul(3)
            && self.cpu.saturating_mul(8) <= blocking.cpu.saturating_mul(eighths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker, its machine and its clients, in nanoseconds: whatever the rule says is what it does.
    #[derive(Clone, Copy, Debug)]
    struct World {
        /// CPU time of a task; there is one for each wait.
        work: u64,
        /// From the end of a task to the next event, while the worker looks for it.
        gap: u64,
        /// What it takes to be woken, and the CPU time of that.
        wake: u64,
        wake_cpu: u64,
        /// Whether the clients get this core only while the worker blocks or yields: being woken then takes no time of its own.
        one_core: bool,
    }

    /// What became of so many waits.
    #[derive(Clone, Copy, Debug, Default)]
    struct Sum {
        waits: u64,
        polls: u64,
        misses: u64,
        time: u64,
        cpu: u64,
        readings: u64,
    }

    /// A virtual machine, where a wake-up costs much, and a client that answers at once.
    const EAGER: World = World { work: 6_000, gap: 12_000, wake: 40_000, wake_cpu: 15_000, one_core: false };

    impl World {
        /// What `waits` waits come to, going on from `sum`.
        fn go_on(self, park: &mut Park, waits: u64, sum: &mut Sum) {
            for _ in 0..waits {
                self.wait(park, sum);
            }
        }

        fn wait(self, park: &mut Park, sum: &mut Sum) {
            let now = Usage { time: sum.time, cpu: sum.cpu };
            let longest = park.wait(|| {
                sum.readings += 1;
                Some(now)
            });
            let longest = longest.as_nanos() as u64;
            let is_hit = self.gap <= longest;
            sum.waits += 1;
            if longest > 0 {
                sum.polls += 1;
                sum.misses += u64::from(!is_hit);
                park.polled(is_hit);
                // On one core the clients use the time.
                sum.cpu += if self.one_core { 0 } else { self.gap.min(longest) };
            }
            sum.time += self.gap;
            if !is_hit || longest == 0 {
                sum.time += if self.one_core { 0 } else { self.wake };
                sum.cpu += self.wake_cpu;
            }
            sum.time += self.work;
            sum.cpu += self.work;
            park.worked(1, 0);
        }

        fn run(self, waits: u64) -> Sum {
            let (mut park, mut sum) = (Park::new(None), Sum::default());
            self.go_on(&mut park, waits, &mut sum);
            sum
        }

        /// The same without polls.
        fn blocks(self, waits: u64) -> Sum {
            let (mut park, mut sum) = (Park::new(Some(Duration::ZERO)), Sum::default());
            self.go_on(&mut park, waits, &mut sum);
            sum
        }
    }

    /// What it is for. Without the back-off one wait in two would go on to block.
    #[test]
    fn where_being_woken_costs_more_than_the_gap_it_polls() {
        let (sum, blocks) = (EAGER.run(100_000), EAGER.blocks(100_000));
        assert!(sum.polls > 98_000, "{sum:?}");
        assert_eq!(sum.misses, 0);
        assert!(3 * sum.time < blocks.time, "{sum:?} against {blocks:?}");
        assert!(sum.cpu < blocks.cpu, "{sum:?} against {blocks:?}");
    }

    /// Whoever looks twice as often at a stream finds half as much each time. To count that as work done twice as fast would
    /// be to use the whole core for nothing.
    #[test]
    fn a_stream_that_is_found_in_smaller_pieces_is_not_polled_for() {
        let (mut park, mut now, mut polls) = (Park::new(None), Usage { time: 0, cpu: 0 }, 0);
        for _ in 0..100_000 {
            let (time, bytes) = if park.wait(|| Some(now)).is_zero() {
                (20_000, 65_536)
            } else {
                polls += 1;
                park.polled(true);
                (10_000, 32_768)
            };
            park.worked(1, bytes);
            now = Usage { time: now.time + time, cpu: now.cpu + 9_000 };
        }
        assert!((1..5_000).contains(&polls), "{polls} of 100,000 waits");
    }

    #[test]
    fn it_finds_out_within_some_windows() {
        let sum = EAGER.run(u64::from(20 * WINDOW));
        assert!(sum.polls >= 9 * u64::from(WINDOW), "{sum:?}");
    }

    /// The bar on waste, for clients that think from 1 µs to 100 ms, on machines where a wake-up costs from 2 to 90 µs: from
    /// the first wait on, and however the gap lies to what a poll may last.
    #[test]
    fn it_takes_at_most_a_quarter_more_cpu_than_blocking() {
        let gaps = (0..60).map(|i| 1_000 + 2_000 * i).chain([300_000, 1_000_000, 10_000_000, 100_000_000]);
        for gap in gaps {
            for wake_cpu in [1_000, 4_000, 12_000, 30_000] {
                for work in [1_000, 5_000, 20_000, 100_000] {
                    let world = World { work, gap, wake: 2 * wake_cpu, wake_cpu, one_core: false };
                    let (mut park, mut sum) = (Park::new(None), Sum::default());
                    for waits in [300, 1_000, 10_000] {
                        world.go_on(&mut park, waits - sum.waits, &mut sum);
                        let blocks = world.blocks(waits);
                        assert!(4 * sum.cpu <= 5 * blocks.cpu, "{world:?}: {sum:?} against {blocks:?}");
                        assert!(sum.time <= blocks.time, "{world:?}: polls made it slower");
                    }
                }
            }
        }
    }

    /// Server and clients on one core: polls take CPU time only while the clients have nothing to do with it, but they
    /// shorten nothing.
    #[test]
    fn where_polls_shorten_nothing_it_blocks() {
        let world = World { one_core: true, wake_cpu: 2_000, ..EAGER };
        let sum = world.run(100_000);
        assert!(sum.polls <= 100_000 / u64::from(BLOCKING_REST.1), "{sum:?}");
    }

    /// Neither of them has anything to gain: a server that hardly ever sleeps, and one that mostly does.
    #[test]
    fn a_busy_worker_and_an_idle_one_never_poll() {
        let busy = World { gap: 100, wake: 3_000, wake_cpu: 2_000, work: 50_000, one_core: false };
        let idle = World { gap: 1_000_000, ..EAGER };
        for world in [busy, idle] {
            assert_eq!(world.run(100_000).polls, 0, "{world:?}");
        }
    }

    /// When the clients go away it must not look for them on and on.
    #[test]
    fn three_misses_in_a_row_end_it() {
        let (mut park, mut sum) = (Park::new(None), Sum::default());
        EAGER.go_on(&mut park, 10_000, &mut sum);
        let mut gone = Sum { time: sum.time, cpu: sum.cpu, ..Sum::default() };
        World { gap: 1_000_000, ..EAGER }.go_on(&mut park, 100_000, &mut gone);
        assert_eq!((gone.polls, gone.misses), (3, 3), "{gone:?}");
    }

    /// Every third request is late: what the polls gain with two of three they lose again.
    #[test]
    fn more_misses_than_one_in_five_end_it() {
        let (mut park, mut sum) = (Park::new(None), Sum::default());
        EAGER.go_on(&mut park, 10_000, &mut sum);
        let before = sum.misses;
        for _ in 0..30_000 {
            EAGER.go_on(&mut park, 2, &mut sum);
            World { gap: 100_000, ..EAGER }.go_on(&mut park, 1, &mut sum);
        }
        assert!(sum.misses - before < 1_000, "{sum:?}");
    }

    /// A pause now and then is no reason to give up what is good otherwise.
    #[test]
    fn a_miss_now_and_then_is_paid_for() {
        let (mut park, mut sum) = (Park::new(None), Sum::default());
        EAGER.go_on(&mut park, 1_000, &mut sum);
        let before = sum;
        for _ in 0..1_000 {
            EAGER.go_on(&mut park, 100, &mut sum);
            World { gap: 100_000, ..EAGER }.go_on(&mut park, 1, &mut sum);
        }
        let (waits, polls) = (sum.waits - before.waits, sum.polls - before.polls);
        assert!(polls > waits / 10 * 9, "{polls} polls in {waits} waits");
    }

    /// What was right for one load is wrong for the next; the back-off delays that, and no more.
    #[test]
    fn it_follows_the_load() {
        let (mut park, mut sum) = (Park::new(None), Sum::default());
        let late = World { gap: 45_000, ..EAGER };
        for _ in 0..3 {
            late.go_on(&mut park, 20_000, &mut sum);
            let before = sum;
            EAGER.go_on(&mut park, 20_000, &mut sum);
            assert!(sum.polls - before.polls > 15_000, "{before:?} then {sum:?}");
            let before = sum;
            late.go_on(&mut park, 20_000, &mut sum);
            assert!(sum.polls - before.polls < 1_000, "{before:?} then {sum:?}");
        }
    }

    /// A reading is a system call. Two for each window would be twice too many.
    #[test]
    fn the_clocks_are_read_once_for_each_window() {
        let sum = EAGER.run(u64::from(100 * WINDOW));
        assert_eq!(sum.readings, 100, "{sum:?}");
    }

    #[test]
    fn without_cpu_times_it_never_polls() {
        let mut park = Park::new(None);
        for _ in 0..10_000 {
            assert_eq!(park.wait(|| None), Duration::ZERO);
            park.worked(1, 0);
        }
    }

    /// A runtime may be used from one thread after the other, each with a CPU clock of its own: a difference of the two
    /// means nothing.
    #[test]
    fn no_window_goes_from_one_thread_to_the_next() {
        let (mut park, mut sum) = (Park::new(None), Sum::default());
        for _ in 0..1_000 {
            park.begin();
            // A window less one wait, so that none is ever complete.
            EAGER.go_on(&mut park, u64::from(WINDOW) - 1, &mut sum);
        }
        assert_eq!(sum.polls, 0, "{sum:?}");
    }

    /// A test may stop the clock and move it, to where it ends or back.
    #[test]
    fn a_clock_that_jumps_is_no_trouble() {
        for windows in 0..30 {
            for then in [0, u64::MAX] {
                let (mut park, mut sum) = (Park::new(None), Sum::default());
                // One task in a window that then ends at that time: nothing takes longer.
                EAGER.go_on(&mut park, u64::from(windows * WINDOW) + 1, &mut sum);
                for _ in 0..2 * WINDOW {
                    park.wait(|| Some(Usage { time: then, cpu: then }));
                }
            }
        }
    }

    /// Whoever sets it means it.
    #[test]
    fn a_fixed_time_is_kept_to() {
        for spin in [Duration::ZERO, Duration::from_micros(7)] {
            let mut park = Park::new(Some(spin));
            for _ in 0..100 {
                assert_eq!(park.wait(|| unreachable!("there is nothing to measure")), spin);
                park.polled(false);
                park.worked(1, 0);
            }
        }
    }
}
