//! Hands the [`Running`] of a tunnel from its response to its task, on HTTP/2.
//!
//! 1. The service accepts a CONNECT request. Its wrapper makes an [`Offer`] of one more running request, and keeps it.
//! 2. hyper sends the response and spawns the task that writes the tunnel. Our executor [takes](take) what is on offer,
//!    and drops it when that task ends.
//! 3. hyper's task ends. It drops the wrapper's future, and with it an offer that was not taken, because the response was
//!    wrong.
//!
//! All three happen in one poll of the request's task. So the offer is in a thread-local, and no other task meets it.

use std::cell::Cell;

use super::activity::Running;

thread_local! {
    static ON_OFFER: Cell<Option<Running>> = const { Cell::new(None) };
}

/// Withdraws what is on offer when it is dropped.
pub(super) struct Offer(());

impl Offer {
    pub(super) fn new(running: Running) -> Self {
        ON_OFFER.set(Some(running));
        Self(())
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        drop(take());
    }
}

/// Takes what is on offer, for the task that is about to be spawned.
pub(super) fn take() -> Option<Running> {
    ON_OFFER.take()
}
