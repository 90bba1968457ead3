//! Every combination in which a task can panic, be aborted and lose its handle.
//!
//! In each of them the future is dropped once, the output is delivered or dropped once, the handle reports how the
//! task ended, and the runtime keeps nothing of the task.

mod support;

use std::future::Future;
use std::panic::{PanicHookInfo, panic_any};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll, Waker};

use kittiwake::runtime::Handle;
use kittiwake::task::{AbortHandle, JoinError, JoinHandle, yield_now};
use support::within;

/// Every combination drops the future and its output once and leaves nothing. A fault in one combination would be a
/// leak or a double free.
#[test]
fn every_combination_drops_everything_once() {
    silence_panics_on_purpose();
    let cases = cases();
    assert_eq!(cases.len(), 6 * 2 * 4 * 6 * 2 * 2, "the table has lost rows");
    within(move || cases.into_iter().for_each(Trial::run));
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
    abort: Aborted,
    local: bool,
    /// True if the task is aborted by its `JoinHandle`. If false, or if that handle is gone, an `AbortHandle`
    /// aborts it.
    by_join_handle: bool,
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

fn cases() -> Vec<Case> {
    use {Aborted as A, Kept as K, Panics as P};
    let mut cases = Vec::new();
    for panics in
        [P::Never, P::FirstPoll, P::FirstPollAndDrop, P::SecondPoll, P::DropAfterCompletion, P::DropBeforeCompletion]
    {
        for handle in [K::Awaited, K::DroppedBeforeFirstPoll, K::DroppedAfterFirstPoll, K::DroppedAfterCompletion] {
            for abort in
                [A::Never, A::BeforeFirstPoll, A::InFirstPoll, A::BetweenPolls, A::AfterCompletion, A::ByTheRuntimesEnd]
            {
                for bits in 0..8 {
                    let [output_panics, local, by_join_handle] = [1, 2, 4].map(|bit| bits & bit != 0);
                    cases.push(Case { panics, output_panics, handle, abort, local, by_join_handle });
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

impl Case {
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
            waker: Mutex::default(),
            join: Mutex::default(),
            abort: Mutex::default(),
        });
        let runtime = kittiwake::block_on(trial.clone().live());
        let join = trial.take_join();
        trial.check_handle(join.map(futures_lite::future::block_on));
        trial.abort_now();
        trial.abort.lock().unwrap().take();
        trial.waker.lock().unwrap().take();
        trial.check_end(&runtime);
    }

    /// Runs the task's life from the outside.
    async fn live(self: Arc<Self>) -> Handle {
        self.spawn();
        self.abort_at(Aborted::BeforeFirstPoll);
        self.drop_handle_at(Kept::DroppedBeforeFirstPoll);
        yield_now().await;
        self.abort_at(Aborted::BetweenPolls);
        self.drop_handle_at(Kept::DroppedAfterFirstPoll);
        if self.case.abort == Aborted::ByTheRuntimesEnd {
            return Handle::current();
        }
        let waker = self.waker.lock().unwrap().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
        yield_now().await;
        yield_now().await;
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "the task must have ended: {:?}", self.case);
        self.abort_at(Aborted::AfterCompletion);
        self.drop_handle_at(Kept::DroppedAfterCompletion);
        yield_now().await;
        Handle::current()
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
        match &*join {
            Some(join) if self.case.by_join_handle => join.abort(),
            _ => self.abort.lock().unwrap().as_ref().expect("the abort handle is kept").abort(),
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

    fn check_end(self: &Arc<Self>, runtime: &Handle) {
        let case = self.case;
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.polls), case.expected().1, "the number of polls is wrong: {case:?}");
        assert_eq!(count(&self.futures_dropped), 1, "the future must be dropped once: {case:?}");
        assert_eq!(
            count(&self.outputs_dropped),
            count(&self.outputs_made),
            "each output must be dropped once: {case:?}"
        );
        assert_eq!(runtime.metrics().tasks_alive(), 0, "the runtime still has the task: {case:?}");
        assert_eq!(Arc::strong_count(self), 1, "a part of the task was not freed: {case:?}");
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
