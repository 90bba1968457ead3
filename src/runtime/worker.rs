//! The worker: the loop that everything runs in.
//!
//! ```text
//! run a batch of entries -> wait for events -> take what other threads pushed -> fire timers -> again
//! ```
//! To wait is to block when there is nothing to run. When there is, or when much was run, the worker looks at the
//! kernel once instead. So neither tasks nor sockets starve each other, and an idle worker uses no CPU.
//!
//! # The threads that run it
//! * A current-thread runtime has one worker: the thread that is in its `block_on`.
//! * A multi-thread runtime has a thread for each worker, which is in such a call for the runtime's life
//!   ([`threads`](super::threads)).
//! * A thread that calls `block_on` beside them runs this loop too, for the call's future and its local tasks
//!   ([`block_on_beside`]). What it spawns runs on the workers, and its sockets and timers wait with one of them.
//!
//! A thread of the first kind opens its reactor when a socket first has to wait. Until then it parks on a condition
//! variable and has no descriptor. A thread of the third kind parks on a condition variable during the whole call, with
//! two exceptions. If its runtime ends during the call, its sockets and timers move to the call's own reactor and
//! wheel. In [`Handle::block_on`] of a current-thread runtime they wait there from the start.
//!
//! # The end of a call
//! The call may return the output of its future, or its panic. Either way the future is dropped first, then the call's
//! local tasks ([`Call`]), on this thread and inside the runtime. Other tasks stay for the next call. A current-thread
//! runtime turns its reactor no more until its next call, and wakes the tasks that wait for its sockets and timers. A
//! task that another runtime runs then moves them to that runtime.
//!
//! # The end of the runtime
//! 1. [`Worker::shut_down`] refuses new tasks and cancels all tasks.
//! 2. It runs them until no worker has any left. Each drops its future, and with it its sockets.
//! 3. The pool is closed: closures that no thread has begun are dropped, and those that run go on alone.
//! 4. The reactor is closed, and wakes the tasks that wait for sockets which live on elsewhere.
//! 5. The timers are closed, and wake the tasks that wait for sleeps which live on elsewhere.
//! 6. The queues are closed. Wakes that still come do nothing.

use std::io;
use std::mem;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::batch::Batch;
use super::enter::{self, InRuntime};
use super::handle::{Handle, Services};
use super::spin::{SpinPolicy, Usage};
use crate::budget::{self, GaveWay};
use crate::executor::{Entry, Executor, TaskSet};
use crate::memory::{ShrinkTimer, shrink};
use crate::metrics::Counters;
use crate::reactor::Reactor;
use crate::stamp;
use crate::sync::{contain, forget_executors, note_executors, wake_all};
use crate::system_clock::{monotonic, thread_cpu};
use crate::time::{self, Clock, Fired, Instant, Timers};
use crate::trace;

/// After so many tasks a worker looks at the kernel once more before it counts itself idle. Mostly an event has come
/// meanwhile. To declare itself idle costs several times a look, and a look in vain adds little to so much work.
const MANY: u64 = 8;

/// How long a worker blocks at most if the system cannot watch the reactor of a stuck worker: on poll(2), on macOS if
/// the stuck worker has watched this one before, without descriptors or memory for it, and while another thread turns
/// that reactor.
const UNWATCHED: Duration = Duration::from_millis(4);

/// The real time for which a worker waits before a paused clock jumps, so that bytes between sockets arrive first.
const GRACE: Duration = Duration::from_millis(2);

/// An executor, and what it waits with.
pub(super) struct Worker {
    executor: Executor,
    reactor: Reactor,
    timers: Arc<Timers>,
    /// The clock, between calls.
    clock: Clock,
    /// Wakers that events and timers have collected. Empty otherwise, and kept for its memory.
    wakers: Vec<Waker>,
    spin: SpinPolicy,
    counters: Arc<Counters>,
    /// The counters for what tasks do on this thread. A `block_on` call beside the workers uses those of one worker.
    task_counters: Arc<Counters>,
    /// How many tasks it has run since it last told the counters. Signed, because it is corrected for the polls of the
    /// main future.
    ran: i64,
    batch: Batch,
    shrink_timer: ShrinkTimer,
    /// How many tasks and events the counters had when the shrink timer was last told.
    used: u64,
    handle: Handle,
}

/// Runs `future` to its end on this thread, beside the workers of `handle`.
pub(super) fn block_on_beside<F: Future>(handle: &Handle, future: F) -> F::Output {
    let mut worker = Worker::beside(handle);
    let result = contain(|| worker.block_on(future));
    // The call's own reactor and wheel may have waiters, if the runtime has ended. They are woken inside the runtime,
    // as at the end of a worker.
    let entered = worker.enter();
    worker.close(Vec::new());
    drop(entered);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Worker {
    pub(super) fn new(executor: Executor, reactor: Reactor, services: Services, clock: Clock, handle: Handle) -> Self {
        let spin = handle.spin();
        let Services { timers, counters } = services;
        let task_counters = counters.clone();
        Self {
            executor,
            reactor,
            timers,
            clock,
            wakers: Vec::new(),
            spin,
            counters,
            task_counters,
            ran: 0,
            batch: Batch::new(),
            shrink_timer: ShrinkTimer::default(),
            used: 0,
            handle,
        }
    }

    /// The loop of a `block_on` call beside the workers of `handle`.
    fn beside(handle: &Handle) -> Self {
        let part = handle.part_for_call();
        let (registry, timers) =
            part.map_or_else(Default::default, |part| (part.registry.clone(), part.timers.clone()));
        let reactor = Reactor::beside(registry);
        let timers = Timers::new(reactor.unparker(), Clock::COMMON.now(), timers);
        let executor = Executor::beside(handle.workers(), reactor.unparker());
        let services = Services { timers, counters: Arc::default() };
        let mut worker = Self::new(executor, reactor, services, Clock::COMMON, handle.clone());
        if let Some(part) = part {
            worker.task_counters = part.counters.clone();
        }
        worker
    }

    /// Runs `future` to its end.
    pub(super) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let call = Call::begin(self);
        // The panic of the future must not be unwinding any more while the local tasks are dropped: a second panic, in
        // one of their destructors, would end the process.
        let result = contain(|| call.worker.run(pin!(future)));
        drop(call);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn run<F: Future>(&mut self, mut future: Pin<&mut F>) -> F::Output {
        let main = self.executor.main_waker();
        let waker = main.waker();
        let mut cx = Context::from_waker(&waker);
        waker.wake_by_ref();
        budget::begin_batch(0);
        self.spin.discard_window();
        loop {
            let mut left = self.batch.begin(self.executor.begin_batch());
            let mut cut_at = 0;
            while let Some(next) = self.executor.next() {
                match next {
                    Entry::Task(task) => self.executor.run(task),
                    Entry::Main => {
                        self.executor.move_if_refused();
                        main.begin_poll();
                        note_executors(&waker);
                        let poll = future.as_mut().poll(&mut cx);
                        // This was no task.
                        self.ran -= 1;
                        if let Poll::Ready(output) = poll {
                            self.ran += self.batch.end(left - 1) as i64;
                            return output;
                        }
                    }
                }
                left -= 1;
                if left == 0 {
                    if !self.executor.has_ready() {
                        break;
                    }
                    let now = monotonic();
                    let Some(next) = self.batch.next(budget::batch_time(now)) else {
                        cut_at = now;
                        break;
                    };
                    left = next;
                }
            }
            self.executor.move_if_refused();
            let gave_way = budget::gave_way();
            if gave_way != GaveWay::None {
                // A task may have yielded before another one used up its budget.
                self.executor.end_yielding_batch();
            }
            if gave_way == GaveWay::UsedUp {
                // The time of the next batch begins now, although this one is not cut.
                cut_at = monotonic();
            }
            self.ran += self.batch.end(left) as i64;
            self.wait(cut_at);
        }
    }

    /// Waits for events, entries of other threads and timers. If there is something to run, it looks once and does not
    /// block.
    ///
    /// `cut_at` is when the last batch was cut, or when it ended with a used-up budget. 0 otherwise: then the next
    /// batch begins after the wait.
    fn wait(&mut self, cut_at: u64) {
        budget::begin_batch(cut_at);
        // A foreign waker may poll a future in place while it is woken below. That poll has no limit. The next entry
        // that is run refills the budget.
        budget::suspend();
        let ran = self.count_ran();
        self.spin.add_work(budget::take_work());
        self.executor.end_batch(ran);
        let helped = self.help_stuck();
        if helped || ran >= MANY || !self.executor.prepare_idle() {
            self.look();
        } else if !self.spin() {
            self.park();
        }
        self.executor.leave_idle();
        if let Some(fired) = self.timers.fire(&mut self.wakers) {
            self.count_fired(&fired);
        }
    }

    /// Turns the reactors of workers that are stuck in a task, and fires their timers. Returns whether something came
    /// of it.
    fn help_stuck(&mut self) -> bool {
        let mut helped = false;
        while let Some(index) = self.executor.next_stuck() {
            helped |= self.help(index);
        }
        helped
    }

    fn help(&mut self, index: usize) -> bool {
        let part = self.handle.part(index);
        let Some((registry, timers)) = part.registry.upgrade().zip(part.timers.upgrade()) else { return false };
        let events = self.reactor.turn_stuck(&registry, &mut self.wakers);
        wake_all(&mut self.wakers);
        self.counters.add_turn(events);
        let reported = self.report_slow_poll(index);
        let fired = timers.fire_stuck(&mut self.wakers);
        if let Some(fired) = &fired {
            // Counted here and not with the stuck worker, which may write its own counters now.
            self.count_fired(fired);
        }
        fired.is_some() || events > 0 || reported
    }

    /// Reports the poll that a worker is stuck in, if it has become a slow one. Returns whether it was reported: the
    /// hook may have woken a task on this thread, which then must not block.
    fn report_slow_poll(&self, index: usize) -> bool {
        let Some(watch) = self.handle.poll_watch() else { return false };
        let Some((progress, since)) = self.executor.stuck_poll(index) else { return false };
        watch.report_running(self.handle.workers(), index, progress, since.elapsed())
    }

    /// Tells the counters how many tasks were run, and returns that. After a panic of the main future, its batch is not
    /// counted.
    fn count_ran(&mut self) -> u64 {
        let ran = mem::take(&mut self.ran).max(0) as u64;
        self.counters.polls.add(ran);
        self.task_counters.take_thread_counts();
        ran
    }

    fn count_fired(&mut self, fired: &Fired) {
        self.counters.add_lateness(fired.lateness);
        self.shrink_timer.add(fired.count.get() as u64);
    }

    /// Looks at the kernel without waiting.
    fn look(&mut self) -> usize {
        self.turn(Some(Duration::ZERO))
    }

    fn park(&mut self) {
        let limit = self.shrink_if_due();
        if self.wakers.is_empty() && self.executor.prepare_park() {
            self.block(limit);
        } else {
            self.look();
        }
    }

    /// Gives memory back that a spike has left, some time after it. Returns how long the worker may block before that.
    /// If it has renewed the wheel, the wakers of the tasks whose timers were in it are in `wakers`.
    #[inline(never)]
    fn shrink_if_due(&mut self) -> Option<Duration> {
        // While the clock is paused, no task may be woken because of the system's time: the order of the tasks would
        // depend on the speed of the machine.
        if time::is_paused() {
            return None;
        }
        // Not counted in each turn, which would cost more.
        let used = self.counters.polls.get() + self.counters.events.get();
        self.shrink_timer.add(used - mem::replace(&mut self.used, used));
        let left = self.shrink_timer.left()?;
        if !left.is_zero() {
            return Some(left);
        }
        self.shrink_timer.reset();
        shrink(&mut self.wakers);
        self.executor.shrink();
        self.reactor.registry().shrink();
        self.timers.shrink(&mut self.wakers);
        None
    }

    /// Blocks until something comes.
    fn block(&mut self, limit: Option<Duration>) {
        let deadline = self.timers.prepare_block();
        if time::is_paused() {
            return match deadline {
                None => drop(self.turn(None)),
                Some(deadline) => self.block_paused(deadline),
            };
        }
        let watch = self.watch_stuck().into_iter().chain(limit).min();
        self.counters.parked.begin(monotonic());
        let left = deadline.map(|deadline| (deadline.saturating_duration_since(Instant::now()), deadline));
        match (left, watch) {
            (Some((left, _)), Some(watch)) if watch < left => drop(self.turn(Some(watch))),
            (Some((left, deadline)), _) => {
                let turned = self.reactor.turn_until(left, deadline.to_bits(), &mut self.wakers);
                self.turned(turned);
            }
            (None, watch) => drop(self.turn(watch)),
        }
        self.reactor.unwatch();
        let end = monotonic();
        stamp::note(end);
        budget::begin_batch(end);
        self.counters.parked.end(end);
    }

    /// Has the events and the timers of stuck workers end the block that follows. Returns how long that may be at most.
    fn watch_stuck(&mut self) -> Option<Duration> {
        let mut limit = self.executor.watch_timeout();
        for index in self.executor.beside_stuck() {
            let part = self.handle.part(index);
            let Some((registry, timers)) = part.registry.upgrade().zip(part.timers.upgrade()) else { continue };
            let left = match self.reactor.watch(&registry, || self.handle.registries()) {
                // Another worker watches it.
                Ok(false) => None,
                Ok(true) => timers.prepare_block().map(|next| next.saturating_duration_since(Instant::now())),
                Err(_) => Some(UNWATCHED),
            };
            let report = self.handle.poll_watch().zip(self.executor.stuck_poll(index));
            let report =
                report.and_then(|(watch, (progress, since))| watch.next_look(index, progress, since.elapsed()));
            limit = limit.into_iter().chain(left).chain(report).min();
        }
        let stuck = |registry: &Arc<_>| {
            self.executor.stuck().any(|index| ptr::eq(self.handle.part(index).registry.as_ptr(), Arc::as_ptr(registry)))
        };
        self.reactor.forget_unless(stuck);
        limit
    }

    /// Moves the clock to the next deadline, unless the kernel or another thread has something for this worker. A
    /// blocking closure that has not ended counts too: it may wake a task. When the last one ends, it wakes its waiting
    /// task first, and then unparks this thread.
    fn block_paused(&mut self, deadline: Instant) {
        if self.handle.pool().is_busy(|| self.reactor.unparker()) {
            self.turn(None);
            return;
        }
        let grace = if self.reactor.registry().sources() == 0 { Duration::ZERO } else { GRACE };
        let (start, mut left) = (std::time::Instant::now(), grace);
        loop {
            if self.turn(Some(left)) > 0 || self.executor.is_notified() {
                return;
            }
            // A signal ends a wait early.
            left = grace.saturating_sub(start.elapsed());
            if left.is_zero() {
                return time::advance_to(deadline);
            }
        }
    }

    /// Spins, if the policy says so for this wait. Returns whether something has come.
    fn spin(&mut self) -> bool {
        // While it spins, it would not look at the sockets and timers of a stuck worker.
        if time::is_paused() || self.executor.beside_stuck().next().is_some() {
            return false;
        }
        let longest = self.spin.spin_time(usage);
        !longest.is_zero() && self.spin_for(longest)
    }

    fn spin_for(&mut self, longest: Duration) -> bool {
        if !self.executor.prepare_spin() {
            // Entries have come. The worker looks at the kernel all the same.
            self.look();
            return true;
        }
        self.look_until_found(longest)
    }

    /// Looks for events and entries until there are some, `longest` is over, or a timer is due.
    fn look_until_found(&mut self, longest: Duration) -> bool {
        let mut limits = None;
        loop {
            if self.look() > 0 || self.executor.is_notified() {
                self.spin.spun(true);
                return true;
            }
            // Computed after a look that was in vain: under load the first one finds something.
            let now = time::now_noted();
            let (end, is_cut) = *limits.get_or_insert_with(|| {
                let full = now.later(longest);
                // The watcher must look at the other workers, however long it spins.
                let end = self.executor.watch_timeout().map_or(full, |watch| full.min(now.later(watch)));
                let end = self.timers.prepare_block().map_or(end, |deadline| end.min(deadline));
                (end, end < full)
            });
            if now >= end {
                if !is_cut {
                    self.spin.spun(false);
                }
                return false;
            }
            // On a shared core, the thread that has something for this one must get to run.
            thread::yield_now();
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) -> usize {
        let turned = self.reactor.turn(timeout, &mut self.wakers);
        self.turned(turned)
    }

    /// Wakes the tasks that wait for the events of a turn, and returns how many events there were.
    fn turned(&mut self, turned: io::Result<usize>) -> usize {
        let events = match turned {
            Ok(events) => events,
            // The wait has only the worker's own descriptors and buffers to fail on. Nothing is left to go on with.
            Err(error) => panic!("the reactor cannot wait for events: {error}"),
        };
        wake_all(&mut self.wakers);
        self.counters.add_turn(events);
        events
    }

    /// Runs cancelled tasks until all of `set` are gone. The entries of other tasks are not run but returned.
    fn run_cancelled(&mut self, set: TaskSet) -> Vec<Entry> {
        let mut unrun = Vec::new();
        // Publishes the tasks that were woken to be cancelled.
        self.executor.begin_batch();
        while self.executor.has_tasks(set) {
            match self.executor.next() {
                Some(entry) if set == TaskSet::Local && !entry.is_local() => unrun.push(entry),
                Some(Entry::Task(task)) => {
                    self.ran += 1;
                    self.executor.run(task);
                }
                Some(Entry::Main) => {}
                // Another thread is about to push the last ones, or other workers still run theirs. This asks once
                // more: the last task may have left since the look above, and `next` has drained the notice of that.
                // Nothing would end a block then.
                None if self.executor.has_tasks(set) => {
                    self.wait(0);
                    self.executor.begin_batch();
                }
                None => {}
            }
        }
        unrun
    }

    /// Ends the runtime, on this thread, which is one of its workers or the only one. All tasks that are left are
    /// dropped.
    pub(super) fn shut_down(&mut self) {
        let entered = self.enter();
        self.executor.drain_remote();
        self.handle.workers().cancel_all();
        trace::worker_waits(|| self.handle.metrics().tasks_alive());
        let none = self.run_cancelled(TaskSet::All);
        self.handle.pool().close();
        self.close(none);
        drop(entered);
        trace::worker_ended();
    }

    /// Closes what is the worker's own. `unrun` are the entries that it has not run.
    fn close(&mut self, unrun: Vec<Entry>) {
        // The reactor before the timers: the timers wake streams with timeouts, which then register elsewhere. Both
        // before `leave`: they may queue an entry for the future of a call that has ended, and `leave` drops it.
        self.reactor.close();
        self.timers.close();
        self.executor.leave(unrun);
        self.executor.close();
        self.count_ran();
    }

    fn enter(&self) -> InRuntime {
        enter::enter(&self.executor, self.reactor.registry(), &self.timers, self.clock, &self.handle)
    }
}

/// The clocks of this thread.
fn usage() -> Option<Usage> {
    Some(Usage { time: Instant::now().to_bits(), cpu: thread_cpu()? })
}

/// A `block_on` call. Its drop is the end of the call.
struct Call<'a> {
    worker: &'a mut Worker,
    _entered: InRuntime,
}

impl<'a> Call<'a> {
    fn begin(worker: &'a mut Worker) -> Self {
        let entered = worker.enter();
        worker.reactor.registry().start_turning();
        worker.executor.open_local();
        Self { worker, _entered: entered }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let worker = &mut *self.worker;
        worker.executor.cancel_local();
        let unrun = worker.run_cancelled(TaskSet::Local);
        // Before `leave`, which keeps the tasks that are woken here.
        worker.reactor.registry().stop_turning();
        worker.timers.stop();
        worker.executor.leave(unrun);
        worker.count_ran();
        worker.clock = time::current_clock();
        forget_executors();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::runtime::Builder;

    /// A fired timer and an entry that another thread has pushed are work for the spin policy. They weigh the same.
    #[test]
    fn timers_and_pushed_entries_are_work() {
        let runtime = Builder::new_current_thread().start_paused(true).build().unwrap();
        runtime.block_on(async {
            budget::take_work();
            time::sleep(Duration::from_millis(1)).await;
            let timer = budget::take_work();
            let mut was_polled = false;
            poll_fn(|cx| {
                let waker = cx.waker().clone();
                if mem::replace(&mut was_polled, true) {
                    return Poll::Ready(());
                }
                thread::spawn(move || waker.wake());
                Poll::Pending
            })
            .await;
            assert!(timer > 0, "a timer is no work");
            assert_eq!(budget::take_work(), timer, "an entry weighs as much as a timer");
        });
    }
}
