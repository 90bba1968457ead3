//! The service: the user's handler, and the choice of the worker that runs it.
//!
//! A socket is registered with the reactor of the worker on which it first has to wait, and its task mostly runs there
//! from then on. So a handler starts on the worker that has the fewest connections of this server, and not on the
//! worker that has accepted.

use std::io;
use std::mem;
use std::panic::Location;
use std::sync::Arc;

use super::connections::{Connections, Handler};
use super::output::HandlerOutput;
use crate::net::listener::Listener;
use crate::sync::contain_all;
use crate::task::{self, AbortHandle, spawn_local_at, spawn_on};
use crate::trace::TaskName;

/// Calls the handler for each connection and spawns its future.
pub(super) struct Service<L: Listener, H, F> {
    pub(super) handler: H,
    pub(super) placement: Placement<F, L::Addr>,
    /// Sets the options of an accepted stream.
    pub(super) prepare: Option<fn(&L::Stream)>,
    pub(super) connections: Arc<Connections<L::Addr>>,
    /// Where the server was made: its handlers count as spawned there.
    pub(super) location: &'static Location<'static>,
    /// The runtime knows that the connections have names.
    pub(super) has_names: bool,
}

impl<L: Listener, H, F> Service<L, H, F>
where
    H: Fn(L::Stream, L::Addr) -> F,
    F: Future<Output: HandlerOutput>,
{
    /// Inserts a connection, calls the handler, and spawns its future.
    ///
    /// # Errors
    /// The runtime has ended, on which the handlers run. The server may still be polled in a `Handle::block_on`.
    // Not inlined, because the handler's future passes through this frame and may be large.
    #[inline(never)]
    pub(super) fn start(&mut self, stream: L::Stream, peer: L::Addr) -> io::Result<()> {
        if !mem::replace(&mut self.has_names, true) {
            let connections = Arc::downgrade(&self.connections);
            task::add_names(connections);
        }
        if let Some(prepare) = self.prepare {
            prepare(&stream);
        }
        let worker = (self.placement.worker)(&self.connections);
        let name = TaskName::new(|| Some(format!("{peer:?}")));
        let guard = self.connections.insert(peer.clone(), worker);
        // If the handler panics here, the guard counts it.
        let mut future = None;
        contain_all(|| future = Some((self.handler)(stream, peer)));
        let Some(future) = future else { return Ok(()) };
        let key = guard.key();
        let _named = name.for_next_task();
        let abort = (self.placement.spawn)(self.location, worker, Handler::new(future, guard));
        self.connections
            .set_abort(key, abort.ok_or_else(|| io::Error::other("the runtime of the handlers has ended"))?);
        Ok(())
    }
}

/// Where handlers run. Plain functions, because only [`serve`](super::serve()) knows that the futures are `Send`.
pub(super) struct Placement<F, A: Clone> {
    /// Chooses the worker for the next handler.
    worker: fn(&Connections<A>) -> usize,
    /// Spawns the handler on that worker. The `JoinHandle` is dropped, which detaches the task. `None` if the runtime has
    /// ended.
    spawn: fn(&'static Location<'static>, usize, Handler<F, A>) -> Option<AbortHandle>,
}

impl<F: Future<Output: HandlerOutput> + 'static, A: Clone + Send + 'static> Placement<F, A> {
    /// Handlers run on all workers.
    pub(super) fn all_workers() -> Self
    where
        F: Send,
    {
        let worker = |connections: &Connections<A>| match task::workers_here() {
            0 | 1 => 0,
            workers => connections.least_loaded(workers),
        };
        let spawn = |location, worker, handler| spawn_on(location, worker, handler).map(|task| task.abort_handle());
        Self { worker, spawn }
    }

    /// Handlers run on the thread of the server.
    pub(super) fn this_thread() -> Self {
        Self { worker: |_| 0, spawn: |location, _, handler| Some(spawn_local_at(location, handler).abort_handle()) }
    }
}
