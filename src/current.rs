//! Current: the thread-local of a service, such as the pool of the runtime that a thread has entered.
//!
//! It has no destructor, so that it can still be used when the destructor of another thread-local drops a runtime.
//! Nothing leaks, because [`Entered`] leaves it empty.

use std::cell::Cell;
use std::mem::{self, ManuallyDrop};
use std::thread::LocalKey;

/// The value that a thread has entered, or none.
pub(crate) struct Current<T>(ManuallyDrop<Cell<Option<T>>>);

/// A guard. While it lives, the thread is inside the value that [`Current::enter`] was given.
pub(crate) struct Entered<T: 'static> {
    key: &'static LocalKey<Current<T>>,
    previous: Option<T>,
}

impl<T> Current<T> {
    pub(crate) const fn none() -> Self {
        Self(ManuallyDrop::new(Cell::new(None)))
    }

    /// A clone of this thread's value. `T::clone` must not use this thread-local, which is empty meanwhile.
    pub(crate) fn get(key: &'static LocalKey<Self>) -> Option<T>
    where
        T: Clone,
    {
        key.with(|current| {
            let value = current.0.take();
            // The cell is empty, so there is nothing to drop. `forget` saves the check.
            mem::forget(current.0.replace(value.clone()));
            value
        })
    }

    /// Makes `value` the one of this thread, until the guard is dropped.
    pub(crate) fn enter(key: &'static LocalKey<Self>, value: T) -> Entered<T> {
        Entered { key, previous: key.with(|current| current.0.replace(Some(value))) }
    }

    /// Whether the thread has no value, or one for which `condition` holds. `condition` must not use this thread-local.
    pub(crate) fn is_none_or(key: &'static LocalKey<Self>, condition: impl FnOnce(&T) -> bool) -> bool {
        key.with(|current| {
            let value = current.0.take();
            let holds = value.as_ref().is_none_or(condition);
            current.0.set(value);
            holds
        })
    }

    /// Leaves the thread without a value.
    pub(crate) fn clear(key: &'static LocalKey<Self>) {
        drop(key.with(|current| current.0.take()));
    }
}

impl<T: 'static> Drop for Entered<T> {
    fn drop(&mut self) {
        // The value is dropped outside `with`, because its drop may use this thread-local.
        let entered = self.key.with(|current| current.0.replace(self.previous.take()));
        drop(entered);
    }
}
