//! The connections of a server: a table of those that are open, and the counts of those that have ended.
//!
//! The server inserts a connection ([`Connections::insert`]), calls the user's handler, and wraps the handler's future
//! and the connection's [`Guard`] in a [`Handler`]. The wrapper adds two stores of one byte to each poll. When it is
//! dropped, the user's future is dropped first and closes the socket; then the guard removes the connection from the
//! table. A server that waits for a descriptor or for `max_connections` is woken when the socket is closed and the
//! table has no such entry any more.
//!
//! # The races
//! * A handler may end on another worker before the server has stored its `AbortHandle`. The key is not reused in
//!   between, because only the server inserts connections. [`Connections::set_abort`] then finds no entry and does
//!   nothing.
//! * The server may close the table ([`Connections::close`]) while a handler ends. Exactly one of them removes the
//!   entry, so the connection is counted once: as open, or by its result.
//! * The server may start to wait ([`Connections::poll_below`]) while a connection ends. Both happen under the lock:
//!   either the server sees the lower number, or the guard finds the waker.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use pin_project_lite::pin_project;
use slab::Slab;

use super::output::HandlerOutput;
use super::output::sealed::Sealed as _;
use super::report::{Failure, Open, Report};
use super::stats::Counts;
use crate::sync::{contain, contain_all};
use crate::task::{AbortHandle, Id, TaskNames};
use crate::time::Instant;

pub(super) type OnError<A> = Box<dyn Fn(&Failure<'_, A>) + Send + Sync>;

/// The state that a server shares with its handlers.
pub(super) struct Connections<A> {
    on_error: Option<OnError<A>>,
    table: Mutex<Table<A>>,
    /// The numbers of the report. They are changed under the lock of the table, and read without it.
    counts: Arc<Counts>,
}

struct Table<A> {
    open: Slab<Connection<A>>,
    /// Open connections by worker. Workers that were never given one may be missing.
    by_worker: Vec<usize>,
    /// The worker that [`Connections::least_loaded`] returned last.
    last_worker: usize,
    /// The server's waker, while it waits until fewer than `below` connections are open.
    waiter: Option<Waker>,
    below: usize,
}

struct Connection<A> {
    peer: A,
    worker: usize,
    since: Instant,
    /// `None` until the handler is spawned.
    abort: Option<AbortHandle>,
}

impl<A: Clone> Connections<A> {
    pub(super) fn new(on_error: Option<OnError<A>>, counts: Arc<Counts>) -> Self {
        let (open, by_worker) = (Slab::new(), vec![0]);
        let table = Table { open, by_worker, last_worker: 0, waiter: None, below: 0 };
        Self { on_error, table: Mutex::new(table), counts }
    }

    /// Passes an error to the user's `on_error`.
    pub(super) fn report_error(&self, error: &Failure<'_, A>) {
        if let Some(on_error) = &self.on_error {
            contain_all(|| on_error(error));
        }
    }

    /// The number of open connections.
    pub(super) fn len(&self) -> usize {
        self.counts.open()
    }

    /// The number of connections that were ever inserted.
    pub(super) fn accepted(&self) -> u64 {
        self.counts.accepted.get()
    }

    /// Returns the worker with the fewest open connections. Among equals it takes the next one in turn: otherwise a
    /// server with few clients would use one core only.
    pub(super) fn least_loaded(&self, workers: usize) -> usize {
        let mut table = self.table.lock();
        if table.by_worker.len() < workers {
            table.by_worker.resize(workers, 0);
        }
        let in_turn = (1..=workers).map(|offset| (table.last_worker + offset) % workers);
        let least = in_turn.min_by_key(|worker| table.by_worker[*worker]).unwrap_or(0);
        table.last_worker = least;
        least
    }

    /// Inserts a connection that was accepted for `worker`. Until a [`Handler`] owns the guard, dropping it counts as a
    /// panic.
    pub(super) fn insert(self: &Arc<Self>, peer: A, worker: usize) -> Guard<A> {
        let connection = Connection { peer, worker, since: Instant::now(), abort: None };
        let mut table = self.table.lock();
        table.by_worker[worker] += 1;
        let key = table.open.insert(connection);
        self.counts.accepted.increment();
        self.counts.set_open(table.open.len());
        drop(table);
        Guard { connections: self.clone(), key, state: State::Running, unwinds: false }
    }

    /// Counts a connection that was closed at once.
    pub(super) fn refuse(&self) {
        let _table = self.table.lock();
        self.counts.refused.increment();
    }

    /// Stores how to abort the handler of the connection at `key`, unless the handler has ended.
    pub(super) fn set_abort(&self, key: usize, abort: AbortHandle) {
        if let Some(connection) = self.table.lock().open.get_mut(key) {
            connection.abort = Some(abort);
        }
    }

    /// Waits until fewer than `below` connections are open.
    pub(super) fn poll_below(&self, cx: &mut Context<'_>, below: usize) -> Poll<()> {
        if self.len() < below {
            return Poll::Ready(());
        }
        // Cloning and dropping a waker may run foreign code, so neither happens under the lock.
        let waker = cx.waker().clone();
        let mut table = self.table.lock();
        if table.open.len() < below {
            drop(table);
            return Poll::Ready(());
        }
        table.below = below;
        let replaced = table.waiter.replace(waker);
        drop(table);
        drop(replaced);
        Poll::Pending
    }

    /// Aborts the handlers that are still running, and returns the report.
    pub(super) fn close(&self) -> Report<A> {
        let mut table = self.table.lock();
        let connections = std::mem::take(&mut table.open);
        let unused = table.waiter.take();
        self.counts.set_open(0);
        let mut report = self.counts.report();
        drop(table);
        drop(unused);
        report.open.reserve(connections.len());
        let now = Instant::now();
        for (_, connection) in connections {
            report.open.push(Open { peer: connection.peer, age: now - connection.since });
            if let Some(abort) = connection.abort {
                abort.abort();
            }
        }
        report.open.sort_by_key(|open| std::cmp::Reverse(open.age));
        report
    }

    /// Reports the error with which the handler of the connection at `key` has ended.
    fn report_failure(&self, key: usize, error: &(dyn Error + Send + Sync + 'static)) {
        // The clone under the lock is foreign code, but `Listener::Addr` forbids it to block.
        let table = self.table.lock();
        let peer = table.open.get(key).map(|connection| connection.peer.clone());
        drop(table);
        if let Some(peer) = peer {
            self.report_error(&Failure::Handler { peer, error });
        }
    }
}

/// How many connections are looked at under the lock at a time.
const VISITED: usize = 256;

/// A handler's task is named by its peer.
impl<A: Clone + fmt::Debug + Send> TaskNames for Connections<A> {
    fn visit(&self, visit: &mut dyn FnMut(Id, Arc<str>)) {
        let task = |connection: &Connection<A>| Some((connection.abort.as_ref()?.id(), connection.peer.clone()));
        let mut named = Vec::with_capacity(VISITED);
        // The places that the table gets meanwhile are left out. So this ends, however many connections come.
        let end = self.table.lock().open.capacity();
        for from in (0..end).step_by(VISITED) {
            let table = self.table.lock();
            named.extend((from..end.min(from + VISITED)).filter_map(|key| task(table.open.get(key)?)));
            MutexGuard::unlock_fair(table);
            // Outside the lock: to show an address is foreign code.
            for (id, peer) in named.drain(..) {
                if let Ok(peer) = contain(|| format!("{peer:?}")) {
                    visit(id, peer.into());
                }
            }
        }
    }
}

/// A connection's entry in the table. Dropping the guard removes the entry and counts the result.
pub(super) struct Guard<A: Clone> {
    connections: Arc<Connections<A>>,
    key: usize,
    state: State,
    /// The thread was unwinding already when the handler began to be dropped, for instance because its runtime is dropped
    /// by a panic. That panic is not the handler's.
    unwinds: bool,
}

/// The progress of a handler. A guard that is dropped as `Running` was dropped by a panic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The user's code is running.
    Running,
    /// The handler's future has not been polled yet, or its last poll returned `Pending`.
    Waiting,
    /// The future returned success.
    Served,
    /// The future returned an error.
    Failed,
}

impl<A: Clone> Guard<A> {
    pub(super) fn key(&self) -> usize {
        self.key
    }
}

impl<A: Clone> Drop for Guard<A> {
    fn drop(&mut self) {
        // A panic in the handler's poll leaves `Running`. The second case is a panic in the destructor of its future.
        let panicked = self.state == State::Running || std::thread::panicking() && !self.unwinds;
        let mut table = self.connections.table.lock();
        // If there is no entry, the server has ended and has counted the connection as open.
        let Some(connection) = table.open.try_remove(self.key) else { return };
        table.by_worker[connection.worker] -= 1;
        let counts = &self.connections.counts;
        counts.set_open(table.open.len());
        match self.state {
            _ if panicked => counts.panicked.increment(),
            State::Served => counts.served.increment(),
            // A handler that is dropped as `Waiting` was ended by its runtime, while its server runs on in another one.
            _ => counts.failed.increment(),
        }
        let waiter = if table.open.len() < table.below { table.waiter.take() } else { None };
        drop(table);
        if panicked {
            self.connections.report_error(&Failure::Panic { peer: connection.peer });
        }
        if let Some(waiter) = waiter {
            contain_all(|| waiter.wake());
        }
    }
}

pin_project! {
    /// A user's handler as it is spawned: its future and its connection's guard.
    pub(super) struct Handler<F, A: Clone> {
        // Declared, and so dropped, before the guard: the socket is closed before the connection leaves the table.
        #[pin]
        future: F,
        guard: Guard<A>,
    }

    impl<F, A: Clone> PinnedDrop for Handler<F, A> {
        fn drop(this: Pin<&mut Self>) {
            this.project().guard.unwinds = std::thread::panicking();
        }
    }
}

impl<F, A: Clone> Handler<F, A> {
    pub(super) fn new(future: F, mut guard: Guard<A>) -> Self {
        guard.state = State::Waiting;
        Self { future, guard }
    }
}

impl<F: Future<Output: HandlerOutput>, A: Clone> Future for Handler<F, A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.guard.state = State::Running;
        match this.future.poll(cx) {
            Poll::Pending => {
                this.guard.state = State::Waiting;
                Poll::Pending
            }
            Poll::Ready(output) => {
                let result = output.into_result();
                this.guard.state = if result.is_ok() { State::Served } else { State::Failed };
                if let Err(error) = result {
                    this.guard.connections.report_failure(this.guard.key, &*error);
                }
                Poll::Ready(())
            }
        }
    }
}
