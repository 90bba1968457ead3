//! On: the calls of the subscriber, and the spans of tasks.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::panic::Location;

use tracing::level_filters::LevelFilter;
use tracing::{Span, trace, trace_span};

use crate::sync::{contain_all, note_traced};

thread_local! {
    /// The subscriber is in a call on this thread.
    static IN_SUBSCRIBER: Cell<bool> = const { Cell::new(false) };
    /// The name of the task that is spawned next.
    static NEXT_NAME: Cell<Option<String>> = const { Cell::new(None) };
}

/// Gives something new to the subscriber. Does nothing inside of a call of the subscriber.
pub(super) fn report(foreign: impl FnOnce()) {
    if !IN_SUBSCRIBER.get() {
        call(foreign);
    }
}

/// Calls the subscriber, also inside of another call.
fn call(foreign: impl FnOnce()) {
    let outer = IN_SUBSCRIBER.replace(true);
    contain_all(foreign);
    IN_SUBSCRIBER.set(outer);
}

/// Whether a subscriber may want spans of tasks.
fn has_tasks() -> bool {
    LevelFilter::current() >= LevelFilter::TRACE
}

/// The id of a task, if it was drawn before the task is made, because a subscriber may want spans of tasks.
#[derive(Clone, Copy)]
pub(crate) struct EarlyId<T>(Option<T>);

impl<T: Copy> EarlyId<T> {
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(None);

    pub(crate) fn new(draw: impl FnOnce() -> T) -> Self {
        Self(has_tasks().then(draw))
    }

    pub(crate) fn get(self) -> Option<T> {
        self.0
    }
}

/// The name of a task that is about to be spawned. Fields that a span gets later are not read by `console-subscriber`.
pub(crate) struct TaskName(Option<String>);

impl TaskName {
    /// `name` is foreign code. It is not called if no subscriber wants spans of tasks.
    pub(crate) fn new(name: impl FnOnce() -> Option<String>) -> Self {
        let mut made = None;
        if has_tasks() {
            contain_all(|| made = name());
        }
        Self(made)
    }

    /// Gives the name to the next task of this thread, until the guard is dropped.
    pub(crate) fn for_next_task(self) -> NextName {
        let _ = NEXT_NAME.try_with(|next| next.set(self.0));
        NextName
    }
}

/// While this lives, the next task of this thread gets a name.
pub(crate) struct NextName;

impl Drop for NextName {
    fn drop(&mut self) {
        take_name();
    }
}

fn take_name() -> Option<String> {
    NEXT_NAME.try_with(Cell::take).ok().flatten()
}

/// The span of a task. The subscriber may not want it: then it is empty.
pub(crate) struct TaskSpan(Span);

impl TaskSpan {
    pub(crate) fn none() -> Self {
        Self(Span::none())
    }

    pub(crate) fn new(kind: &'static str, id: u64, location: &Location<'_>) -> Self {
        let (mut span, name) = (Span::none(), take_name());
        report(|| {
            span = trace_span!(
                target: "tokio::task",
                // A child would keep the span of the task that spawns it.
                parent: None,
                "runtime.spawn",
                kind,
                task.name = name.as_deref(),
                task.id = id,
                loc.file = location.file(),
                loc.line = location.line(),
                loc.col = location.column(),
            );
            note_waker("waker.clone", SpanId::of(&span));
        });
        if !span.is_disabled() {
            note_traced();
        }
        Self(span)
    }

    pub(crate) fn id(&self) -> SpanId {
        SpanId::of(&self.0)
    }

    /// Enters the span until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        let mut entered = None;
        if !self.0.is_disabled() {
            call(|| entered = Some(self.0.enter()));
        }
        Entered(entered)
    }

    /// Closes the span, once the task has ended.
    pub(crate) fn close(&mut self) {
        if !self.0.is_disabled() {
            call(|| self.0 = Span::none());
        }
    }
}

/// While this lives, the thread is in a span.
pub(crate) struct Entered<'a>(Option<tracing::span::Entered<'a>>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(entered) = self.0.take() {
            call(|| drop(entered));
        }
    }
}

/// The id of a task's span, if there is one.
#[derive(Clone, Copy)]
pub(crate) struct SpanId(Option<NonZeroU64>);

impl SpanId {
    fn of(span: &Span) -> Self {
        Self(span.id().map(|id| id.into_non_zero_u64()))
    }

    /// The task is about to be queued. If `was_polled`, then because it was woken, and else because it is new.
    pub(crate) fn wake(self, was_polled: impl FnOnce() -> bool) {
        if self.0.is_some() && was_polled() {
            report(|| note_waker("waker.wake_by_ref", self));
        }
    }
}

fn note_waker(op: &'static str, SpanId(id): SpanId) {
    if let Some(id) = id {
        trace!(target: "tokio::task::waker", op, task.id = id.get());
    }
}
