//! [`Executor`], [`LocalExecutor`] and [`StreamExecutor`]: hyper's tasks on this runtime.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ::hyper::rt;

use super::tunnel;
use crate::budget::try_spend;
use crate::sync::{contain, contain_all};
use crate::task::{is_alone, spawn, spawn_local};

/// Spawns hyper's futures as tasks of the runtime, as [`spawn`] does. HTTP/2 needs it.
///
/// A panic in such a future ends its task alone. The panic hook reports it.
///
/// # Panics
/// Outside a runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Executor;

/// Spawns hyper's futures as tasks of this thread, as [`spawn_local`] does. They need not be `Send`.
///
/// # Panics
/// Outside a runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalExecutor;

/// Runs the requests of a server's HTTP/2 connections. [`Serve::http2`](super::Serve::http2) shows it.
///
/// Most requests are answered in their first poll. In a runtime with one worker, the task of the connection makes that
/// poll, as on HTTP/1, and only a request that has to wait becomes a task of its own. With several workers each request
/// is a task from the start: another worker may take it while a handler blocks.
#[derive(Clone, Copy, Debug)]
pub struct StreamExecutor(());

type Arrived = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// The requests that have arrived in this poll of a connection. They are polled after hyper's poll, because hyper
    /// would write each response alone within it.
    static ARRIVED: RefCell<Vec<Arrived>> = const { RefCell::new(Vec::new()) };
}

impl StreamExecutor {
    pub(super) fn new() -> Self {
        Self(())
    }

    /// Polls the requests that have arrived, once each. The budget of the connection's task limits how many.
    pub(super) fn poll_arrived() {
        let mut arrived = ARRIVED.take();
        for mut request in arrived.drain(..) {
            // The waker may do nothing: a request that has to wait is polled again, by its own task.
            let mut poll = || request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            match if try_spend() { contain(&mut poll) } else { Ok(Poll::Pending) } {
                Ok(Poll::Pending) => drop(spawn(request)),
                // The panic hook has reported a panic. It ends this request alone, as it would end its task.
                result => contain_all(move || drop((result, request))),
            }
        }
        ARRIVED.with_borrow_mut(|queue| {
            if queue.is_empty() {
                // Keeps the memory.
                *queue = arrived;
            }
        });
    }

    /// Drops the requests that have arrived, because the connection has panicked. No other connection may run them.
    pub(super) fn drop_arrived() {
        for request in ARRIVED.take() {
            contain_all(|| drop(request));
        }
    }
}

impl<F> rt::Executor<F> for Executor
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Dropping the handle detaches the task.
        drop(spawn(future));
    }
}

impl<F> rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Dropping the handle of a task detaches it.
        match tunnel::take() {
            Some(running) => drop(spawn(async move {
                let _running = running;
                future.await;
            })),
            None if is_alone() => ARRIVED.with_borrow_mut(|arrived| arrived.push(Box::pin(future))),
            None => drop(spawn(future)),
        }
    }
}

impl<F> rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        drop(spawn_local(future));
    }
}
