//! Current: the thread-local of a service, such as the pool of the runtime that a thread has entered.
//!
//! It has no destructor, so that the destructor of another thread-local may drop a runtime. Nothing leaks, because
//! [`Entered`] leaves it empty.

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

    /// The value of this thread. Its `clone` must not come here: the cell is empty meanwhile.
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

    /// Leaves the thread without a value, if `condition` holds for the one that it has.
    pub(crate) fn leave_if(key: &'static LocalKey<Self>, condition: impl FnOnce(&T) -> bool) {
        let left = key.with(|current| {
            let mut value = current.0.take();
            let left = value.take_if(|value| condition(value));
            current.0.set(value);
            left
        });
        drop(left);
    }
}

impl<T: 'static> Drop for Entered<T> {
    fn drop(&mut self) {
        // The value is dropped outside `with`: that may be the end of a runtime.
        let entered = self.key.with(|current| current.0.replace(self.previous.take()));
        drop(entered);
    }
}
