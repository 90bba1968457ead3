//! Every combination in which a task can panic, be aborted, be awaited and lose its handle.
//!
//! In each of them the future is dropped once, the output is delivered or dropped once, the handle reports how the
//! task ended and wakes its waiter, and the runtime keeps nothing of the task.
//!
//! On a runtime with threads the case's moments are kept apart. "Before the first poll" is a time in which other
//! tasks hold all workers. "Between the polls" begins when the first poll has stored its waker. Orders within one poll
//! are for the models.

mod support;

use std::future::Future;
use std::panic::{PanicHookInfo, panic_any};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, Once};
use std::task::{Context, Poll, Waker};

use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::task::{AbortHandle, JoinError, JoinHandle, yield_now};
use support::{Wakes, within};

/// On the thread that calls `block_on`, every combination drops the future and its output once and leaves nothing. A
/// fault in one combination would be a leak or a double free.
#[test]
fn every_combination_drops_everything_once() {
    run_table(Workers::Caller);
}

/// The same law holds for a worker thread, while another thread aborts, wakes and joins.
#[test]
fn every_combination_holds_on_one_worker() {
    run_table(Workers::One);
}

/// The same law holds where a second worker may take the task.
#[test]
fn every_combination_holds_on_two_workers() {
    run_table(Workers::Two);
}

#[track_caller]
fn run_table(workers: Workers) {
    silence_panics_on_purpose();
    let cases = cases(workers);
    assert_eq!(cases.len(), 6 * 2 * 4 * 6 * 2 * 3 * 3, "the table has lost rows");
    for part in cases.chunks(64) {
        let part = part.to_vec();
        // Each part has a bound of its own: the whole table takes long beside busy neighbours.
        within(move || part.into_iter().for_each(Trial::run));
    }
}

/// A future and its output may both panic in their drops. An output that was dropped while the first panic unwinds
/// would abort the process, so this test runs in a process of its own.
#[test]
fn future_and_output_may_both_panic() {
    const CHILD: &str = "KITTIWAKE_BOTH_PANIC";
    if std::env::var_os(CHILD).is_some() {
        silence_panics_on_purpose();
        return kittiwake::block_on(async {
            let task = kittiwake::spawn(PanicsWhenDropped);
            assert!(task.await.is_err_and(|error| error.is_panic()), "the handle must report a panic");
        });
    }
    let name = "future_and_output_may_both_panic";
    let this = std::env::current_exe().expect("this program");
    let child =
        Command::new(this).args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().expect("the task runs");
    let message = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "the two panics aborted the process ({}): {message}", child.status);
}

// ---- the table ----

#[derive(Clone, Copy, Debug)]
struct Case {
    panics: Panics,
    output_panics: bool,
    handle: Kept,
    joined: Joined,
    abort: Aborted,
    by: By,
    local: bool,
    workers: Workers,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Workers {
    /// A current-thread runtime.
    Caller,
    One,
    Two,
}

/// The moment at which the future panics.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panics {
    Never,
    FirstPoll,
    /// The future panics once more when it is dropped after that.
    FirstPollAndDrop,
    SecondPoll,
    DropAfterCompletion,
    DropBeforeCompletion,
}

/// The fate of the `JoinHandle`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    Awaited,
    DroppedBeforeFirstPoll,
    DroppedAfterFirstPoll,
    DroppedAfterCompletion,
}

/// The moment at which the `JoinHandle` gets a waker. At the end it is awaited in any case, if it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Joined {
    AtTheEnd,
    BeforeFirstPoll,
    BetweenPolls,
}

/// The handle that aborts the task. If the `JoinHandle` is gone, an `AbortHandle` does it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    JoinHandle,
    AbortHandle,
    /// Each aborts twice, in turn.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Aborted {
    Never,
    BeforeFirstPoll,
    InFirstPoll,
    BetweenPolls,
    AfterCompletion,
    /// The runtime ends between the two polls.
    ByTheRuntimesEnd,
}

fn cases(workers: Workers) -> Vec<Case> {
    use {Aborted as A, By as B, Joined as J, Kept as K, Panics as P};
    let all_panics =
        [P::Never, P::FirstPoll, P::FirstPollAndDrop, P::SecondPoll, P::DropAfterCompletion, P::DropBeforeCompletion];
    let all_handles = [K::Awaited, K::DroppedBeforeFirstPoll, K::DroppedAfterFirstPoll, K::DroppedAfterCompletion];
    let all_joined = [J::AtTheEnd, J::BeforeFirstPoll, J::BetweenPolls];
    let all_aborts =
        [A::Never, A::BeforeFirstPoll, A::InFirstPoll, A::BetweenPolls, A::AfterCompletion, A::ByTheRuntimesEnd];
    let mut cases = vec![];
    for panics in all_panics {
        for handle in all_handles {
            for joined in all_joined {
                for abort in all_aborts {
                    for by in [B::JoinHandle, B::AbortHandle, B::Both] {
                        for [output_panics, local] in [[false, false], [false, true], [true, false], [true, true]] {
                            cases.push(Case { panics, output_panics, handle, joined, abort, by, local, workers });
                        }
                    }
                }
            }
        }
    }
    cases
}

#[derive(Debug, PartialEq)]
enum End {
    Output,
    Panic,
    Cancelled,
}

impl Workers {
    fn runtime(self) -> Runtime {
        match self {
            Workers::Caller => Builder::new_current_thread().build(),
            _ => Builder::new_multi_thread().worker_threads(self.threads()).build(),
        }
        .expect("a runtime for one case")
    }

    fn threads(self) -> usize {
        match self {
            Workers::Caller => 0,
            Workers::One => 1,
            Workers::Two => 2,
        }
    }
}

impl Case {
    /// True if the task must not be polled yet while something is done with its handles.
    fn acts_before_first_poll(self) -> bool {
        matches!(self.abort, Aborted::BeforeFirstPoll | Aborted::InFirstPoll)
            || self.handle == Kept::DroppedBeforeFirstPoll
            || self.joined == Joined::BeforeFirstPoll
    }

    /// The expected end of the task, and the expected number of polls.
    fn expected(self) -> (End, usize) {
        let dropped_early = match self.panics {
            Panics::DropBeforeCompletion => End::Panic,
            _ => End::Cancelled,
        };
        if self.abort == Aborted::BeforeFirstPoll {
            return (dropped_early, 0);
        }
        match (self.panics, self.abort) {
            (Panics::FirstPoll | Panics::FirstPollAndDrop, _) => (End::Panic, 1),
            (_, Aborted::InFirstPoll | Aborted::BetweenPolls | Aborted::ByTheRuntimesEnd) => (dropped_early, 1),
            (Panics::SecondPoll | Panics::DropAfterCompletion, _) => (End::Panic, 2),
            (Panics::Never | Panics::DropBeforeCompletion, _) => (End::Output, 2),
        }
    }
}

// ---- one trial ----

/// One case and its counters.
struct Trial {
    case: Case,
    polls: AtomicUsize,
    futures_dropped: AtomicUsize,
    outputs_made: AtomicUsize,
    outputs_dropped: AtomicUsize,
    /// Wakes of the waker that the `JoinHandle` got early, and whether it got it.
    joiner: Arc<Wakes>,
    joins_early: AtomicUsize,
    waker: Mutex<Option<Waker>>,
    join: Mutex<Option<JoinHandle<Output>>>,
    abort: Mutex<Option<AbortHandle>>,
}

impl Trial {
    fn run(case: Case) {
        let zero = || AtomicUsize::new(0);
        let trial = Arc::new(Trial {
            case,
            polls: zero(),
            futures_dropped: zero(),
            outputs_made: zero(),
            outputs_dropped: zero(),
            joiner: Arc::default(),
            joins_early: zero(),
            waker: Mutex::default(),
            join: Mutex::default(),
            abort: Mutex::default(),
        });
        let runtime = case.workers.runtime();
        runtime.block_on(trial.clone().live());
        let handle = runtime.handle().clone();
        drop(runtime);
        let join = trial.take_join();
        trial.check_joiner(join.is_some());
        trial.check_handle(join.map(futures_lite::future::block_on));
        trial.abort_now();
        trial.abort.lock().unwrap().take();
        trial.waker.lock().unwrap().take();
        assert_eq!(handle.metrics().tasks_alive(), 0, "the runtime still has the task: {case:?}");
        trial.check_end();
    }

    /// Runs the task's life from the outside.
    async fn live(self: Arc<Self>) {
        let held = self.hold_workers();
        self.spawn();
        self.join_at(Joined::BeforeFirstPoll);
        self.abort_at(Aborted::BeforeFirstPoll);
        self.drop_handle_at(Kept::DroppedBeforeFirstPoll);
        drop(held);
        self.first_poll().await;
        self.join_at(Joined::BetweenPolls);
        self.abort_at(Aborted::BetweenPolls);
        self.drop_handle_at(Kept::DroppedAfterFirstPoll);
        if self.case.abort == Aborted::ByTheRuntimesEnd {
            return;
        }
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.end().await;
        self.abort_at(Aborted::AfterCompletion);
        self.drop_handle_at(Kept::DroppedAfterCompletion);
        yield_now().await;
    }

    /// Keeps all workers busy until the result is dropped, if the case needs it. Local tasks run on this thread, so
    /// they wait anyway.
    fn hold_workers(&self) -> Option<HeldWorkers> {
        let threads = self.case.workers.threads();
        let needed = threads > 0 && !self.case.local && self.case.acts_before_first_poll();
        needed.then(|| {
            let barrier = Arc::new(Barrier::new(threads + 1));
            for _ in 0..threads {
                let barrier = barrier.clone();
                kittiwake::spawn(async move {
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            HeldWorkers(barrier)
        })
    }

    /// Waits for the first poll, or for the end that comes without one.
    async fn first_poll(&self) {
        let ends_here = self.case.abort == Aborted::InFirstPoll;
        let is_pending = || !ends_here && self.waker.lock().unwrap().is_some();
        self.yield_until(1, || is_pending() || self.has_ended()).await;
    }

    /// Waits until the future is gone.
    async fn end(&self) {
        let runtime = Handle::current();
        let is_gone = || self.has_ended() && runtime.metrics().tasks_alive() == 0;
        self.yield_until(2, is_gone).await;
        assert!(is_gone(), "the task must have ended: {:?}", self.case);
    }

    fn has_ended(&self) -> bool {
        self.futures_dropped.load(Ordering::SeqCst) > 0
    }

    /// Yields until `done`. A task that runs on this thread gets so many yields and no more: they run all that is
    /// ready.
    async fn yield_until(&self, yields: usize, done: impl Fn() -> bool) {
        if self.case.local || self.case.workers == Workers::Caller {
            for _ in 0..yields {
                yield_now().await;
            }
            return;
        }
        while !done() {
            std::thread::yield_now();
            yield_now().await;
        }
    }

    fn spawn(self: &Arc<Self>) {
        let future = Model { trial: self.clone(), completed: false };
        let join = if self.case.local { kittiwake::spawn_local(future) } else { kittiwake::spawn(future) };
        *self.abort.lock().unwrap() = Some(join.abort_handle());
        *self.join.lock().unwrap() = Some(join);
    }

    fn abort_at(&self, moment: Aborted) {
        if self.case.abort == moment {
            self.abort_now();
        }
    }

    fn abort_now(&self) {
        let join = self.join.lock().unwrap();
        let by_abort_handle = || self.abort.lock().unwrap().as_ref().expect("the abort handle is kept").abort();
        match (&*join, self.case.by) {
            (Some(join), By::JoinHandle) => join.abort(),
            (Some(join), By::Both) => {
                for _ in 0..2 {
                    join.abort();
                    by_abort_handle();
                }
            }
            (None, _) | (_, By::AbortHandle) => by_abort_handle(),
        }
    }

    /// Polls the `JoinHandle` once, so that it has a waker to wake. A task whose future is gone is left alone: the
    /// handle might be ready, and then it must not be polled again.
    fn join_at(&self, moment: Joined) {
        let has_ended = self.has_ended();
        let mut join = self.join.lock().unwrap();
        let Some(join) = join.as_mut().filter(|_| self.case.joined == moment && !has_ended) else { return };
        let waker = Waker::from(self.joiner.clone());
        match Pin::new(join).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => self.joins_early.store(1, Ordering::SeqCst),
            Poll::Ready(_) => unreachable!("a task of these cases ends only after this: {:?}", self.case),
        }
    }

    /// The end of the task has woken the waiter of a handle that was kept.
    fn check_joiner(&self, is_kept: bool) {
        if is_kept && self.joins_early.load(Ordering::SeqCst) == 1 {
            assert!(self.joiner.get() > 0, "the end must wake the joiner: {:?}", self.case);
        }
    }

    fn drop_handle_at(&self, moment: Kept) {
        if self.case.handle == moment {
            drop(self.take_join());
        }
    }

    fn take_join(&self) -> Option<JoinHandle<Output>> {
        self.join.lock().unwrap().take()
    }

    fn check_handle(&self, joined: Option<Result<Output, JoinError>>) {
        let case = self.case;
        let Some(joined) = joined else { return };
        let end = match joined {
            Ok(output) => {
                output.deliver();
                End::Output
            }
            Err(error) if error.is_panic() => {
                assert!(error.into_panic().is::<OnPurpose>(), "the handle must return the payload: {case:?}");
                End::Panic
            }
            Err(_) => End::Cancelled,
        };
        assert_eq!(end, case.expected().0, "the handle must report the right end: {case:?}");
    }

    fn check_end(self: &Arc<Self>) {
        let case = self.case;
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.polls), case.expected().1, "the number of polls is wrong: {case:?}");
        assert_eq!(count(&self.futures_dropped), 1, "the future must be dropped once: {case:?}");
        assert_eq!(
            count(&self.outputs_dropped),
            count(&self.outputs_made),
            "each output must be dropped once: {case:?}"
        );
        assert_eq!(Arc::strong_count(self), 1, "a part of the task was not freed: {case:?}");
    }
}

/// Workers that other tasks hold until this is dropped.
struct HeldWorkers(Arc<Barrier>);

impl Drop for HeldWorkers {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// The task: waits once, then returns an output, and panics where the case says so.
struct Model {
    trial: Arc<Trial>,
    completed: bool,
}

impl Future for Model {
    type Output = Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Output> {
        let trial = self.trial.clone();
        if trial.polls.fetch_add(1, Ordering::SeqCst) == 0 {
            trial.abort_at(Aborted::InFirstPoll);
            if matches!(trial.case.panics, Panics::FirstPoll | Panics::FirstPollAndDrop) {
                panic_any(OnPurpose);
            }
            *trial.waker.lock().unwrap() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if trial.case.panics == Panics::SecondPoll {
            panic_any(OnPurpose);
        }
        self.completed = true;
        trial.outputs_made.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Output { trial, delivered: false })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.trial.futures_dropped.fetch_add(1, Ordering::SeqCst);
        let panics = match self.trial.case.panics {
            Panics::FirstPollAndDrop => self.trial.polls.load(Ordering::SeqCst) > 0,
            Panics::DropAfterCompletion => self.completed,
            Panics::DropBeforeCompletion => !self.completed,
            _ => false,
        };
        // A second panic during unwinding would abort the process in any case.
        if panics && !std::thread::panicking() {
            panic_any(OnPurpose);
        }
    }
}

struct Output {
    trial: Arc<Trial>,
    delivered: bool,
}

impl Output {
    fn deliver(mut self) {
        self.delivered = true;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.trial.outputs_dropped.fetch_add(1, Ordering::SeqCst);
        if self.trial.case.output_panics && !self.delivered && !std::thread::panicking() {
            panic_any(OnPurpose);
        }
    }
}

/// A future that is ready at once. It and its output both panic when they are dropped.
struct PanicsWhenDropped;

impl Future for PanicsWhenDropped {
    type Output = PanicsWhenDropped;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<PanicsWhenDropped> {
        Poll::Ready(PanicsWhenDropped)
    }
}

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic_any(OnPurpose);
    }
}

// ---- panics on purpose ----

struct OnPurpose;

/// Hundreds of intended panics would hide an unintended one.
fn silence_panics_on_purpose() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !info.payload().is::<OnPurpose>() {
                default(info);
            }
        }));
    });
}
