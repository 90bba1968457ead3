//! Every way in which a task can panic, be aborted and lose its handle, in all combinations.
//!
//! Whatever happens, and in whichever order: the future is dropped once, the output is delivered or dropped
//! once, the handle says what became of the task, and the runtime has nothing of it left.

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

/// A hole in one combination is a leak, a double free or a dead server on the day it happens.
#[test]
fn every_combination_ends_with_nothing_left_and_nothing_twice() {
    silence_panics_on_purpose();
    let cases = cases();
    assert_eq!(cases.len(), 6 * 2 * 4 * 6 * 2 * 2, "the table has lost some rows");
    within(move || cases.into_iter().for_each(Trial::run));
}

/// Two destructors that panic one after the other are two panics to contain. Were the output dropped while the
/// first one unwinds, the second would end the process: so this runs in a process of its own.
#[test]
fn a_future_and_its_output_may_both_panic_when_they_are_dropped() {
    const CHILD: &str = "KITTIWAKE_BOTH_PANIC";
    if std::env::var_os(CHILD).is_some() {
        silence_panics_on_purpose();
        return kittiwake::block_on(async {
            let task = kittiwake::spawn(PanicsWhenDropped);
            assert!(task.await.is_err_and(|error| error.is_panic()), "the handle must say that there was a panic");
        });
    }
    let name = "a_future_and_its_output_may_both_panic_when_they_are_dropped";
    let this = std::env::current_exe().expect("this program");
    let child =
        Command::new(this).args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().expect("the task runs");
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "the two panics ended the process ({}): {said}", child.status);
}

// ---- the table ----

#[derive(Clone, Copy, Debug)]
struct Case {
    panics: Panics,
    output_panics: bool,
    handle: Kept,
    abort: Aborted,
    local: bool,
    /// Whether it is aborted by its `JoinHandle`; if that is gone, or if not, by an `AbortHandle`.
    by_join_handle: bool,
}

/// When the future panics.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panics {
    Never,
    FirstPoll,
    /// And once more when it is dropped after that.
    FirstPollAndDrop,
    SecondPoll,
    DropAfterCompletion,
    DropBeforeCompletion,
}

/// What becomes of the `JoinHandle`.
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
    /// What must become of the task, and after how many polls.
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

// ---- running one ----

/// One case, and what is counted while it runs.
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

    /// The task's life, from outside.
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
        assert_eq!(Handle::current().metrics().tasks_alive(), 0, "the task has not ended: {:?}", self.case);
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
                assert!(error.into_panic().is::<OnPurpose>(), "the payload must come out: {case:?}");
                End::Panic
            }
            Err(_) => End::Cancelled,
        };
        assert_eq!(end, case.expected().0, "the handle says what did not happen: {case:?}");
    }

    fn check_end(self: &Arc<Self>, runtime: &Handle) {
        let case = self.case;
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&self.polls), case.expected().1, "polled too often or too rarely: {case:?}");
        assert_eq!(count(&self.futures_dropped), 1, "the future must be dropped once: {case:?}");
        assert_eq!(
            count(&self.outputs_dropped),
            count(&self.outputs_made),
            "an output is left or gone twice: {case:?}"
        );
        assert_eq!(runtime.metrics().tasks_alive(), 0, "the runtime still has the task: {case:?}");
        assert_eq!(Arc::strong_count(self), 1, "something of the task is still there: {case:?}");
    }
}

/// The task: waits once, then gives an output, and panics where the case wants it.
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
        // A second panic while one unwinds would end the process, whatever the runtime does.
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

/// Ready at once, with an output like itself: both panic when they are dropped.
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

/// Hundreds of panics on purpose would hide the one that is not.
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
