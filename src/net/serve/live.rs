//! Live: the connections that a server has, and what became of the others.
//!
//! The server enters a connection ([`Live::enter`]) and calls the user's handler, whose future it wraps in a [`Handler`]. That
//! is one more word to a poll, and when it is dropped, the user's future is gone and the connection leaves the table: its
//! socket is closed by then, and a server that waits for a descriptor finds it.
//!
//! # The races
//! * A handler may end, on another worker, before the server has noted how to abort it. Nobody else enters connections, so
//!   the key is not taken anew meanwhile, and the note finds either its entry or none.
//! * The server may close the table ([`Live::close`]) while a handler ends. Either finds the entry, never both: it
//!   is counted once, as ended or as open.
//! * A server waits until there are fewer connections than so many ([`Live::poll_below`]), and one ends meanwhile: both
//!   happen under the lock.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use slab::Slab;

use super::output::sealed::Sealed as _;
use super::{HandlerOutput, Open, Report, ServeError};
use crate::sync::contain_all;
use crate::task::AbortHandle;
use crate::time::Instant;

pub(super) type OnError<P> = Box<dyn Fn(&ServeError<'_, P>) + Send + Sync>;

/// What a server and its handlers share.
pub(super) struct Live<P> {
    on_error: Option<OnError<P>>,
    table: Mutex<Table<P>>,
}

struct Table<P> {
    connections: Slab<Connection<P>>,
    /// How many there are of each worker, as far as it matters.
    by_worker: Vec<usize>,
    /// The worker that was last chosen.
    last_worker: usize,
    served: u64,
    failed: u64,
    panicked: u64,
    /// The server, if it waits until there are fewer connections than `below`.
    waiter: Option<Waker>,
    below: usize,
}

struct Connection<P> {
    peer: P,
    worker: usize,
    since: Instant,
    /// `None` until its handler is a task.
    abort: Option<AbortHandle>,
}

impl<P: Clone> Live<P> {
    pub(super) fn new(on_error: Option<OnError<P>>) -> Self {
        let connections = Slab::new();
        let table = Table {
            connections,
            by_worker: vec![0],
            last_worker: 0,
            served: 0,
            failed: 0,
            panicked: 0,
            waiter: None,
            below: 0,
        };
        Self { on_error, table: Mutex::new(table) }
    }

    /// Tells the user of an error.
    pub(super) fn tell(&self, error: &ServeError<'_, P>) {
        if let Some(on_error) = &self.on_error {
            contain_all(|| on_error(error));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.lock().connections.len()
    }

    /// Of so many workers the one with the fewest connections. Of several that have the fewest the next one in turn, or a
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

    /// Enters a connection on a worker. Until the guard is at home in a [`Handler`], its end counts as a panic.
    pub(super) fn enter(self: &Arc<Self>, peer: P, worker: usize) -> Guard<P> {
        let connection = Connection { peer, worker, since: Instant::now(), abort: None };
        let mut table = self.table.lock();
        table.by_worker[worker] += 1;
        let key = table.connections.insert(connection);
        drop(table);
        Guard { live: self.clone(), key, state: State::Running }
    }

    /// Notes how to abort the handler of the connection at `key`, if it has not ended.
    pub(super) fn started(&self, key: usize, abort: AbortHandle) {
        if let Some(connection) = self.table.lock().connections.get_mut(key) {
            connection.abort = Some(abort);
        }
    }

    /// Waits until there are fewer connections than `below`.
    pub(super) fn poll_below(&self, cx: &mut Context<'_>, below: usize) -> Poll<()> {
        if self.len() < below {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut table = self.table.lock();
        if table.connections.len() < below {
            drop(table);
            return Poll::Ready(());
        }
        table.below = below;
        let replaced = table.waiter.replace(waker);
        drop(table);
        drop(replaced);
        Poll::Pending
    }

    /// Aborts all handlers that are left. Says what became of the others, and who these are.
    pub(super) fn close(&self, accepted: u64, refused: u64) -> Report<P> {
        let mut table = self.table.lock();
        let connections = std::mem::take(&mut table.connections);
        let unused = table.waiter.take();
        let Table { served, failed, panicked, .. } = *table;
        drop(table);
        drop(unused);
        let now = Instant::now();
        let mut open = Vec::with_capacity(connections.len());
        for (_, connection) in connections {
            open.push(Open { peer: connection.peer, age: now - connection.since });
            if let Some(abort) = connection.abort {
                abort.abort();
            }
        }
        open.sort_by_key(|open| std::cmp::Reverse(open.age));
        Report { accepted, served, failed, panicked, refused, open }
    }

    /// A handler ended with an error.
    #[cold]
    fn failed(&self, key: usize, error: &dyn Display) {
        let table = self.table.lock();
        let peer = table.connections.get(key).map(|connection| connection.peer.clone());
        drop(table);
        if let Some(peer) = peer {
            self.tell(&ServeError::Handler { peer, error });
        }
    }
}

/// A connection's place in the table. Dropping it leaves the table.
pub(super) struct Guard<P: Clone> {
    live: Arc<Live<P>>,
    key: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The user's code is being run: if it ends so, it has panicked.
    Running,
    /// It has to wait.
    Waiting,
    Served,
    Failed,
}

impl<P: Clone> Guard<P> {
    pub(super) fn key(&self) -> usize {
        self.key
    }
}

impl<P: Clone> Drop for Guard<P> {
    fn drop(&mut self) {
        // A panic is under way if it was the future's destructor that panicked.
        let panicked = self.state == State::Running || std::thread::panicking();
        let mut table = self.live.table.lock();
        // The server has ended and counted it as open.
        let Some(connection) = table.connections.try_remove(self.key) else { return };
        table.by_worker[connection.worker] -= 1;
        match self.state {
            _ if panicked => table.panicked += 1,
            State::Served => table.served += 1,
            // If it was waiting, its runtime has ended, and the server goes on in another.
            _ => table.failed += 1,
        }
        let waiter = if table.connections.len() < table.below { table.waiter.take() } else { None };
        drop(table);
        if panicked {
            self.live.tell(&ServeError::Panic { peer: connection.peer });
        }
        if let Some(waiter) = waiter {
            contain_all(|| waiter.wake());
        }
    }
}

pin_project! {
    /// A user's handler, as it is spawned: its future, and its connection's place in the table.
    pub(super) struct Handler<F, P: Clone> {
        // Declared, and so dropped, before the guard: the connection is closed when it leaves the table.
        #[pin]
        future: F,
        guard: Guard<P>,
    }
}

impl<F, P: Clone> Handler<F, P> {
    pub(super) fn new(future: F, mut guard: Guard<P>) -> Self {
        guard.state = State::Waiting;
        Self { future, guard }
    }
}

impl<F: Future<Output: HandlerOutput>, P: Clone> Future for Handler<F, P> {
    type Output = ();

    // Two stores more than the future's own poll.
    #[inline]
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
                    this.guard.live.failed(this.guard.key, &error);
                }
                Poll::Ready(())
            }
        }
    }
}
