//! Ring: ends a worker's block, from any thread.
//!
//! Where the backend reports edges this is mio's own waker. Its poll(2) backend takes the token of a pending wake before it
//! empties the descriptor behind it (mio 1.2.5): a wake that comes in between leaves its token and no readable descriptor, and
//! the block that follows does not end. So there it is a pair of sockets of our own, watched as any source is: what was
//! written stays readable until it is read.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Wake;

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{EDGE_TRIGGERED, RING};

/// Kept for as long as the poll: on epoll a `mio::Waker` that is dropped takes its last wake-up with it.
pub(super) enum Ring {
    Waker(mio::Waker),
    Pair { sender: UnixStream, receiver: UnixStream },
}

impl Ring {
    pub(super) fn new(registry: &Registry) -> io::Result<Self> {
        if EDGE_TRIGGERED {
            return Ok(Self::Waker(mio::Waker::new(registry, RING)?));
        }
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        registry.register(&mut SourceFd(&receiver.as_raw_fd()), RING, Interest::READABLE)?;
        Ok(Self::Pair { sender, receiver })
    }

    /// The worker has heard it: the next one is another.
    pub(super) fn heard(&self, registry: &Registry) -> io::Result<()> {
        let Self::Pair { receiver, .. } = self else { return Ok(()) };
        // Until there is nothing more, or the rest rings again.
        while matches!((&*receiver).read(&mut [0; 64]), Ok(64)) {}
        // Before or after: what is written meanwhile is there when this is armed.
        registry.reregister(&mut SourceFd(&receiver.as_raw_fd()), RING, Interest::READABLE)
    }
}

impl Wake for Ring {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // eventfd's counter cannot overflow by this: mio resets it when full; and a pair that is full rings already.
        // Whatever else may go wrong here, the callers are wakers: they have nobody to tell.
        let _ = match &**self {
            Self::Waker(waker) => waker.wake(),
            Self::Pair { sender, .. } => (&*sender).write(&[1]).map(drop),
        };
    }
}
