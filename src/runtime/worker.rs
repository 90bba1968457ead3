//! The worker: the loop that everything runs in.
//!
//! ```text
//! run a batch of at most 64 entries -> wait for events -> take what other threads posted -> fire timers -> again
//! ```
//! Waiting means blocking when there is nothing to run, and one look at the kernel when there is, or when much was run: so
//! neither tasks nor sockets starve each other, and an idle worker uses no CPU.
//!
//! A runtime's only worker is whichever thread is in its `block_on`. Of several, each has a thread, which is in such a call
//! for the runtime's life ([`threads`](super::threads)); and a thread that calls `block_on` beside them is a guest: a worker
//! for that time, of its call's future and of local tasks. What it spawns runs on the others.
//!
//! # The end of a call
//! However `block_on` is left, by its future's output or by a panic, its future is dropped first, then its
//! local tasks ([`Call`]), all on this thread and inside the runtime. Other tasks stay for the
//! next call. A guest's reactor hands its sockets over to another worker's: nobody's wait ends with the call.
//!
//! # The end of the runtime
//! 1. [`Worker::shut_down`] refuses new tasks and tells all tasks to end;
//! 2. it runs them until no worker has any left: each drops its future, and with it its sockets;
//! 3. the pool ends: closures that no thread has begun are dropped, those that run go on alone;
//! 4. the reactor closes, and orphans the sockets that live on elsewhere;
//! 5. the timers end, and with them the waits of sleeps that live on elsewhere;
//! 6. the inbox closes; wakes that still come find nobody.

use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::enter::{self, Entered};
use super::handle::{Handle, Part};
use super::park::{Park, Usage};
use crate::budget;
use crate::executor::{self, Entry, Executor, Home, Which};
use crate::metrics::Counters;
use crate::reactor::{Reactor, Registry};
use crate::sync::{contain, note_ours};
use crate::time::{self, Clock, Instant, Timers};

/// Entries run between two looks at the kernel.
const BATCH: u64 = 64;

/// After so many entries a worker looks at the kernel once more before it counts itself idle. Mostly something has come
/// meanwhile, and to declare oneself idle costs several times what a look does; a look in vain adds little to so much work.
const MANY: u64 = 8;

/// Real time that bytes on their way between sockets are given before a paused clock jumps.
const GRACE: Duration = Duration::from_millis(2);

/// What a worker has beside its executor.
pub(super) struct Resources {
    reactor: Reactor,
    timers: Arc<Timers>,
    counters: Arc<Counters>,
}

impl Resources {
    /// `clock` is the worker's, which need not be that of the thread this is made on.
    pub(super) fn new(reactor: Reactor, clock: Clock) -> Self {
        Self { timers: Timers::new(reactor.ring(), clock.now()), reactor, counters: Arc::default() }
    }

    /// Rings the worker.
    pub(super) fn ring(&self) -> Waker {
        self.reactor.ring()
    }

    /// What a handle has of it, and of its worker's home.
    pub(super) fn part(&self, home: Home) -> Part {
        Part::new(home, &self.reactor, &self.timers, self.counters.clone())
    }
}

/// An executor and the reactor it waits in.
pub(super) struct Worker {
    executor: Executor,
    reactor: Reactor,
    timers: Arc<Timers>,
    /// The clock, between calls.
    clock: Clock,
    /// The wakers of the timers that fire; empty otherwise, kept for its memory.
    wakers: Vec<Waker>,
    /// Whether to poll before blocking.
    park: Park,
    counters: Arc<Counters>,
    /// How often it has run tasks since it last told the counters.
    ran: u64,
    handle: Handle,
}

impl Worker {
    pub(super) fn new(executor: Executor, resources: Resources, clock: Clock, park: Park, handle: Handle) -> Self {
        let Resources { reactor, timers, counters } = resources;
        Self { executor, reactor, timers, clock, wakers: Vec::new(), park, counters, ran: 0, handle }
    }

    /// Runs `future` to its end.
    pub(super) fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        let call = Call::begin(self);
        // A panic of the future must not be unwinding any more while the local tasks are dropped: a second
        // panic, in one of their destructors, would end the process.
        let result = contain(|| call.worker.run(pin!(future)));
        drop(call);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn run<F: Future>(&mut self, mut future: Pin<&mut F>) -> F::Output {
        let main = self.executor.main_waker();
        let waker = main.waker();
        let mut cx = Context::from_waker(&waker);
        waker.wake_by_ref();
        self.executor.begin_batch();
        self.park.begin();
        loop {
            let mut left = BATCH;
            while left > 0 {
                match self.executor.next() {
                    // A call would be as long as the rest.
                    Some(Entry::Task(task)) if self.executor.is_last() => {
                        Executor::run(task);
                        self.ran += 1;
                        left -= 1;
                        continue;
                    }
                    Some(Entry::Task(task)) => {
                        let (ran, is_main_next) = self.executor.run_until_main(task, left);
                        self.ran += ran;
                        left -= ran;
                        if !is_main_next {
                            break;
                        }
                    }
                    Some(Entry::Main) => {}
                    None => break,
                }
                main.taken();
                note_ours(&waker);
                if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                    return output;
                }
                left -= 1;
            }
            self.wait();
        }
    }

    /// Waits for events, posts and timers, or only looks for them if there is something to run.
    fn wait(&mut self) {
        budget::suspend();
        let ran = std::mem::take(&mut self.ran);
        self.counters.ran(ran);
        self.park.worked(ran, budget::take_moved());
        self.executor.end_batch();
        if ran >= MANY || !self.executor.rest() {
            self.turn(Some(Duration::ZERO));
        } else if !self.poll() {
            self.block_unless_posted();
        }
        self.executor.rise();
        self.timers.fire(&mut self.wakers);
        self.executor.begin_batch();
    }

    #[inline]
    fn block_unless_posted(&mut self) {
        if self.executor.park() {
            self.block();
        } else {
            self.turn(Some(Duration::ZERO));
        }
    }

    /// Waits until something comes.
    fn block(&mut self) {
        let deadline = self.timers.next_deadline();
        if time::is_paused() {
            return match deadline {
                None => drop(self.turn(None)),
                Some(deadline) => self.block_paused(deadline),
            };
        }
        let start = Instant::now();
        let left = deadline.map(|deadline| (deadline.saturating_duration_since(start), deadline));
        match (left, self.executor.watch()) {
            (Some((left, _)), Some(watch)) if watch < left => drop(self.turn(Some(watch))),
            (Some((left, deadline)), _) => {
                let turned = self.reactor.turn_until(left, deadline.to_bits());
                self.counters.turned(expect(turned));
            }
            (None, watch) => drop(self.turn(watch)),
        }
        self.counters.was_parked(Instant::now().saturating_duration_since(start).as_nanos() as u64);
    }

    /// Moves the clock to the next deadline, unless the kernel or another thread has something for us. While a blocking
    /// closure is out it has: the end of the last one wakes its waiter first, and then rings.
    fn block_paused(&mut self, deadline: Instant) {
        if self.handle.pool().is_busy(|| self.reactor.ring()) {
            self.turn(None);
            return;
        }
        let grace = if self.reactor.registry().sources() == 0 { Duration::ZERO } else { GRACE };
        let (start, mut left) = (std::time::Instant::now(), grace);
        loop {
            if self.turn(Some(left)) > 0 || self.executor.has_posts() {
                return;
            }
            // A signal ends a wait before its time.
            left = grace.saturating_sub(start.elapsed());
            if left.is_zero() {
                return time::advance_to(deadline);
            }
        }
    }

    /// Polls, if that is the rule for this wait; see `park.rs`. Returns whether there was something.
    #[inline]
    fn poll(&mut self) -> bool {
        if time::is_paused() {
            return false;
        }
        let longest = self.park.wait(usage);
        !longest.is_zero() && self.poll_for(longest)
    }

    #[inline(never)]
    fn poll_for(&mut self, longest: Duration) -> bool {
        if !self.executor.poll() {
            // There are posts; the kernel has its turn all the same.
            self.turn(Some(Duration::ZERO));
            return true;
        }
        self.look_until_found(longest) || self.executor.has_next()
    }

    /// Looks for events and posts until there are some, `longest` is over, or a timer is due.
    fn look_until_found(&mut self, longest: Duration) -> bool {
        let mut limits = None;
        loop {
            if self.turn(Some(Duration::ZERO)) > 0 || self.executor.has_posts() {
                self.park.polled(true);
                return true;
            }
            // Not before a look was in vain: under load the first one finds something.
            let now = Instant::now();
            let (end, is_cut) = *limits.get_or_insert_with(|| {
                let full = now.later(longest);
                // Whoever watches the other workers must look at them, however long it is to poll.
                let end = self.executor.watch().map_or(full, |watch| full.min(now.later(watch)));
                let end = self.timers.next_deadline().map_or(end, |deadline| end.min(deadline));
                (end, end < full)
            });
            if now >= end {
                if !is_cut {
                    self.park.polled(false);
                }
                return false;
            }
            // On a shared core, whoever has something for us must get to run.
            thread::yield_now();
        }
    }

    #[inline]
    fn turn(&mut self, timeout: Option<Duration>) -> usize {
        let events = expect(self.reactor.turn(timeout));
        self.counters.turned(events);
        events
    }

    /// Returns when the tasks are gone that were told to end. The entries of others are not run but returned.
    fn end(&mut self, which: Which) -> Vec<Entry> {
        let mut deferred = Vec::new();
        // What was woken by whoever told them.
        self.executor.begin_batch();
        while self.executor.has_tasks(which) {
            match self.executor.next() {
                Some(entry) if which == Which::Local && !executor::is_local(&entry) => deferred.push(entry),
                Some(Entry::Task(task)) => {
                    self.ran += 1;
                    Executor::run(task);
                }
                Some(Entry::Main) => {}
                // Another thread has woken the last ones and is about to post them.
                None => self.wait(),
            }
        }
        deferred
    }

    /// Ends the runtime, on this thread, which is one of its workers or the only one: whatever tasks are left are dropped.
    pub(super) fn shut_down(&mut self) {
        let entered = self.enter();
        self.executor.take_posts();
        self.handle.workers().abort_all();
        let none = self.end(Which::All);
        self.handle.pool().close();
        self.reactor.close();
        self.leave(none);
        self.counters.ran(std::mem::take(&mut self.ran));
        drop(entered);
    }

    /// Ends a guest, whose call is over: its sockets are watched by `heir` from now on.
    pub(super) fn leave_to(&mut self, heir: &Arc<Registry>) {
        let entered = self.enter();
        self.reactor.hand_over(heir);
        self.leave(Vec::new());
        self.handle.guest_left(&self.counters);
        drop(entered);
    }

    /// Ends what is the worker's own. The reactor has ended before: the timers wake streams with timeouts, which then must know
    /// that their wait is lost. Both before the queue is left: they may wake the future of a call that is over.
    fn leave(&mut self, left: Vec<Entry>) {
        self.timers.close();
        self.executor.leave(left);
        self.executor.close();
    }

    fn enter(&self) -> Entered {
        enter::enter(&self.executor, &self.reactor, &self.timers, self.clock, &self.handle)
    }
}

/// The wait has only the worker's own descriptors and buffers to fail on; there is nothing to go on with.
#[inline]
fn expect(turned: io::Result<usize>) -> usize {
    match turned {
        Ok(events) => events,
        Err(error) => panic!("the reactor cannot wait for events: {error}"),
    }
}

/// What the clocks of this thread say.
fn usage() -> Option<Usage> {
    Some(Usage { time: Instant::now().to_bits(), cpu: time::thread_cpu()? })
}

/// A `block_on` call. Its drop is the end of the call.
struct Call<'a> {
    worker: &'a mut Worker,
    _entered: Entered,
}

impl<'a> Call<'a> {
    fn begin(worker: &'a mut Worker) -> Self {
        let entered = worker.enter();
        worker.executor.open();
        Self { worker, _entered: entered }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.worker.executor.abort_local();
        let deferred = self.worker.end(Which::Local);
        self.worker.executor.leave(deferred);
        self.worker.counters.ran(std::mem::take(&mut self.worker.ran));
        self.worker.clock = time::current_clock();
    }
}
