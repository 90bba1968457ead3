//! The snapshot that requests share.
//!
//! # The protocol
//! 1. A request takes the [latest](State::latest) snapshot if that is fresh. Otherwise it notes that it wants a new one
//!    ([`State::wanted`]), and waits. Requests that come meanwhile wait for the same snapshot.
//! 2. A thread makes the snapshot, then triggers the signal of the requests. It is not one of the runtime's pool: that
//!    may be full of closures that block, and this is when the page is needed. It is no worker either, which would run
//!    no task meanwhile.
//! 3. The thread waits for the next request. When none has wanted a snapshot for [`KEPT`], it drops the latest one and
//!    ends. So neither memory nor a thread is left when the last page is closed.
//!
//! # The race
//! The thread: finds that no snapshot is wanted. A request: sees that the thread lives, and wants one. The thread:
//! ends. The request would wait for ever. Therefore the thread reads `wanted` and clears `has_thread` under one lock.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::snapshot::Snapshot;
use crate::net::ShutdownSignal;
use crate::runtime::Handle;

/// How long a snapshot is fresh: a little less than the time between two requests of a page, so that a page alone gets
/// a new one each time, and ten pages cost as much as one.
const FRESH: Duration = Duration::from_millis(1_900);

/// A snapshot is fresh for so many times as long as it took. So the snapshots of the largest runtime take no more than
/// this part of a core.
const REST: u32 = 25;

/// How long the thread keeps a snapshot, and lives, without a request.
const KEPT: Duration = Duration::from_secs(10);

/// The name of the thread. The system may cut it short.
const THREAD_NAME: &str = "kittiwake-inspect";

pub(super) struct Shared {
    /// That of the first request, unless it was set before.
    pub(super) handle: OnceLock<Handle>,
    /// The moment from which the page counts the time.
    pub(super) start: Instant,
    state: Mutex<State>,
    /// Notified when a snapshot is wanted.
    call: Condvar,
    /// [`KEPT`], except in tests.
    kept: Duration,
}

#[derive(Default)]
struct State {
    latest: Option<Latest>,
    /// Triggered, and removed, when a snapshot is made that is newer than `latest`.
    wanted: Option<ShutdownSignal>,
    /// There is a thread that will see `wanted`.
    has_thread: bool,
}

#[derive(Clone)]
pub(super) struct Latest {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) made: Instant,
}

impl Latest {
    fn is_fresh(&self) -> bool {
        self.made.elapsed() < FRESH.max(self.pause())
    }

    /// How long no other snapshot is made, so that all of them cost little.
    fn pause(&self) -> Duration {
        self.snapshot.took * REST
    }
}

impl Shared {
    pub(super) fn new(handle: Option<Handle>) -> Arc<Self> {
        Arc::new(Self::with_kept(handle, KEPT))
    }

    fn with_kept(handle: Option<Handle>, kept: Duration) -> Self {
        let handle = handle.map_or_else(OnceLock::new, OnceLock::from);
        Self { handle, start: Instant::now(), state: Mutex::default(), call: Condvar::new(), kept }
    }

    /// A fresh snapshot.
    pub(super) async fn latest(self: &Arc<Self>) -> io::Result<Latest> {
        let handle = match self.handle.get() {
            Some(handle) => handle,
            None => {
                let current = Handle::try_current().map_err(io::Error::other)?;
                self.handle.get_or_init(|| current)
            }
        };
        let mut signal = match self.want(handle)? {
            Ok(fresh) => return Ok(fresh),
            Err(signal) => signal,
        };
        signal.triggered().await;
        // It may be a second old, if this task was polled late.
        self.state.lock().latest.clone().ok_or_else(|| io::Error::other("no snapshot could be made"))
    }

    /// The latest snapshot if it is fresh, else the signal for the next one.
    fn want(self: &Arc<Self>, handle: &Handle) -> io::Result<Result<Latest, ShutdownSignal>> {
        let mut state = self.state.lock();
        if let Some(latest) = state.latest.as_ref().filter(|latest| latest.is_fresh()) {
            return Ok(Ok(latest.clone()));
        }
        if !state.has_thread {
            let (shared, handle) = (self.clone(), handle.clone());
            // The new thread waits for the lock.
            thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || run(&shared, &handle))?;
            state.has_thread = true;
        }
        let signal = state.wanted.get_or_insert_with(ShutdownSignal::new).clone();
        self.call.notify_one();
        Ok(Err(signal))
    }
}

/// The thread that makes the snapshots.
fn run(shared: &Shared, handle: &Handle) {
    let mut state = shared.state.lock();
    loop {
        if state.wanted.is_some() {
            make(&mut state, handle);
            continue;
        }
        // A snapshot that took long is fresh for long. To drop it earlier would have the next request make another one.
        let pause = state.latest.as_ref().map_or(Duration::ZERO, Latest::pause);
        if shared.call.wait_for(&mut state, shared.kept.max(pause)).timed_out() && state.wanted.is_none() {
            state.has_thread = false;
            let old = state.latest.take();
            drop(state);
            return drop(old);
        }
    }
}

fn make(state: &mut MutexGuard<'_, State>, handle: &Handle) {
    // A panic would be an error of this crate. The requests must not wait for ever because of it.
    let snapshot = MutexGuard::unlocked(state, || catch_unwind(AssertUnwindSafe(|| Snapshot::take(handle))));
    let latest = snapshot.ok().map(|snapshot| Latest { snapshot: Arc::new(snapshot), made: Instant::now() });
    let (old, signal) = (mem::replace(&mut state.latest, latest), state.wanted.take());
    MutexGuard::unlocked(state, || {
        drop(old);
        signal.inspect(ShutdownSignal::trigger)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Builder;

    /// Once no request comes for a while, neither the snapshot nor the thread is left. The next request gets both
    /// again.
    #[test]
    fn nothing_is_left_without_requests() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let shared = Arc::new(Shared::with_kept(None, Duration::from_millis(20)));
        for _ in 0..2 {
            let latest = runtime.block_on(shared.latest()).expect("a snapshot");
            let end = Instant::now() + Duration::from_secs(60);
            // The thread holds a reference to `shared` until it ends.
            while Arc::strong_count(&shared) > 1 {
                assert!(Instant::now() < end, "the thread does not end");
                thread::yield_now();
            }
            let state = shared.state.lock();
            assert!(state.latest.is_none() && state.wanted.is_none() && !state.has_thread);
            assert_eq!(Arc::strong_count(&latest.snapshot), 1, "the snapshot is still kept");
        }
    }

    /// A snapshot that took long is there as long as it counts as fresh. Otherwise the snapshots of a large program
    /// would follow each other faster than they may.
    #[test]
    fn slow_snapshot_is_kept_while_fresh() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let shared = Shared::with_kept(None, Duration::ZERO);
        let mut snapshot = Snapshot::take(runtime.handle());
        snapshot.took = Duration::from_millis(4);
        let mut latest = Latest { snapshot: Arc::new(snapshot), made: Instant::now() };
        *shared.state.lock() = State { latest: Some(latest.clone()), has_thread: true, ..State::default() };
        run(&shared, runtime.handle());
        assert!(latest.made.elapsed() >= 4 * REST * Duration::from_millis(1), "it was dropped while it was fresh");

        for (took, is_fresh) in [(Duration::ZERO, false), (Duration::from_secs(10), true)] {
            let mut snapshot = Snapshot::take(runtime.handle());
            snapshot.took = took;
            latest.snapshot = Arc::new(snapshot);
            latest.made = Instant::now().checked_sub(FRESH).expect("the machine has run for longer");
            assert_eq!(latest.is_fresh(), is_fresh, "a snapshot that took {took:?}");
        }
    }

    /// A request that comes while a snapshot is made, or soon after, gets that one.
    #[test]
    fn fresh_snapshot_is_shared() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let shared = Shared::new(None);
        let (one, two) = runtime.block_on(futures_lite::future::zip(shared.latest(), shared.latest()));
        let three = runtime.block_on(shared.latest());
        let [one, two, three] = [one, two, three].map(|latest| latest.expect("a snapshot").snapshot);
        assert!(Arc::ptr_eq(&one, &two) && Arc::ptr_eq(&two, &three));
    }
}
