//! Off: the spans of tasks without the feature `tracing`.

use std::marker::PhantomData;
use std::panic::Location;

/// Nothing, in the place of a span.
pub(crate) struct TaskSpan;

/// Nothing, in the place of an id.
#[derive(Clone, Copy)]
pub(crate) struct SpanId;

/// Nothing, in the place of the guard of a span.
pub(crate) struct Entered;

/// Nothing, in the place of a name.
pub(crate) struct TaskName;

/// Nothing, in the place of the guard of a name.
pub(crate) struct NextName;

/// Nothing, in the place of an id that was drawn early. Of no size: an `Option` would cost a spawn 3 instructions.
#[derive(Clone, Copy)]
pub(crate) struct EarlyId<T>(PhantomData<T>);

impl<T> EarlyId<T> {
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(PhantomData);

    pub(crate) fn new(_: impl FnOnce() -> T) -> Self {
        Self(PhantomData)
    }

    pub(crate) fn get(self) -> Option<T> {
        None
    }
}

impl TaskSpan {
    pub(crate) fn none() -> Self {
        Self
    }

    pub(crate) fn new(_: &'static str, _: u64, _: &Location<'_>) -> Self {
        Self
    }

    pub(crate) fn id(&self) -> SpanId {
        SpanId
    }

    pub(crate) fn enter(&self) -> Entered {
        Entered
    }

    pub(crate) fn close(&mut self) {}
}

impl TaskName {
    pub(crate) fn new(_: impl FnOnce() -> Option<String>) -> Self {
        Self
    }

    pub(crate) fn for_next_task(self) -> NextName {
        NextName
    }
}

impl SpanId {
    pub(crate) fn wake(self, _: impl FnOnce() -> bool) {}
}
