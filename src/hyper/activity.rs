//! The activity of one connection: what it waits for, as its parts report it.
//!
//! The service reports requests, the response bodies report their frames, and the transport reports reads and writes.
//! From these the connection's task tells what the connection [waits for](Waits), and how long that may take.
//!
//! # The races
//! On HTTP/1 all parts run in the connection's task. On HTTP/2 each request has a task of its own.
//! * A request may end after the connection's task has last been polled. So the last of the requests wakes that task.
//! * A response body may get its next piece after the connection's task has last been polled. Mostly hyper wakes that
//!   task to send it. If flow control forbids that, the task finds the piece when it [looks again](Waits::Streams).
//! * On HTTP/2 the task of a request makes the pieces of its response, and may end it. The counters of these need
//!   locked instructions. The others are changed by one task at a time, by a load and a store, which cost a fraction.
//! * A counter may change between two loads of [`Activity::waits`]. The change wakes the connection's task, or the
//!   limit is checked again before it ends the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use ::hyper::upgrade::OnUpgrade;

use crate::sync::Mutex;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// The event that a connection waits for. The number tells two waits of the same kind apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// HTTP/1: a handler, or a response body that has nothing to send yet. The client owes nothing.
    Handler,
    /// HTTP/2: the same. The task looks again now and then.
    Streams,
    /// The rest of a request's head, or the first request.
    Head(u64),
    /// The next request.
    Request(u64),
    /// HTTP/1: the rest of a request's body, for which hyper has room. It reads one piece ahead of the handler.
    Body(u64),
    /// The client, which has to read before more can be written.
    Reader(u64),
    /// HTTP/2: the client, whose flow control allows no more of the response bodies that hyper holds.
    Window(u64),
    /// The client's end of the connection: the server has closed its own, and discards what comes. On HTTP/2 each read
    /// begins another wait, because a client that reads its last responses sends windows.
    End(u64),
}

pub(super) struct Activity {
    protocol: Protocol,
    /// Requests that were passed to the service.
    started: AtomicU64,
    /// Requests whose response hyper has taken as a whole, or has given up. On HTTP/2 the last piece must also be sent.
    ended: AtomicU64,
    /// Reads that returned bytes. On HTTP/2 only those whose bytes were discarded after the end.
    received: AtomicU64,
    /// `received` when the last request ended.
    received_by_end: AtomicU64,
    /// Writes that took bytes.
    written: AtomicU64,
    /// HTTP/2: pieces of response bodies that hyper holds. They may outlive their request.
    held: AtomicU64,
    /// HTTP/2: how often hyper has taken bytes out of a piece that it holds, to write them.
    sent: AtomicU64,
    /// HTTP/1: hyper wants to read, and no bytes are there.
    read_waits: AtomicBool,
    /// hyper wants to write, and the client does not read.
    write_waits: AtomicBool,
    /// HTTP/1: the last request has a body, and its end may still have to come.
    body_may_come: AtomicBool,
    /// HTTP/1: hyper has waited for bytes since the last request ended. What comes after that belongs to a head.
    head_may_come: AtomicBool,
    /// The transport has closed its side and discards what the client still sends.
    lingers: AtomicBool,
    /// The server stops. Set on HTTP/1 only.
    draining: AtomicBool,
    /// The future of a request was polled in the drain, so this request is the last one.
    last_request: AtomicBool,
    /// The connection ends after its current requests.
    ends_gracefully: AtomicBool,
    /// HTTP/2: the client does not acknowledge the end, so hyper is told that the client has ended.
    gives_up: AtomicBool,
    /// The transport has discarded long enough.
    has_lingered: AtomicBool,
    /// HTTP/1: the connection belongs, or is about to belong, to the user's protocol.
    is_upgraded: AtomicBool,
    /// HTTP/1: the last request that offered an upgrade. hyper gives the stream there when the connection ends, whether
    /// the service has accepted the offer or not.
    offered: Mutex<Option<OnUpgrade>>,
    /// The transport was dropped.
    closed: AtomicBool,
    /// The waker of the connection's task. It is shared because cloning a waker may run foreign code, which must not
    /// happen under the lock.
    waker: Mutex<Option<Arc<Waker>>>,
}

impl Activity {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            received: AtomicU64::new(0),
            received_by_end: AtomicU64::new(0),
            written: AtomicU64::new(0),
            held: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            read_waits: AtomicBool::new(false),
            write_waits: AtomicBool::new(false),
            body_may_come: AtomicBool::new(false),
            head_may_come: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            last_request: AtomicBool::new(false),
            ends_gracefully: AtomicBool::new(false),
            gives_up: AtomicBool::new(false),
            has_lingered: AtomicBool::new(false),
            is_upgraded: AtomicBool::new(false),
            offered: Mutex::new(None),
            closed: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns what the connection waits for. `draining` says that it ends after its current requests.
    pub(super) fn waits(&self, draining: bool) -> Waits {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        if self.lingers.load(Ordering::Relaxed) {
            return Waits::End(if self.protocol == Protocol::Http2 { load(&self.received) } else { 0 });
        }
        if self.write_waits.load(Ordering::Relaxed) {
            return Waits::Reader(load(&self.written));
        }
        if load(&self.held) > 0 {
            return Waits::Window(load(&self.sent));
        }
        // `ended` first: a request that starts and ends in between must not look as if it still ran.
        let ended = self.ended.load(Ordering::Acquire);
        let started = load(&self.started);
        let http1 = self.protocol == Protocol::Http1;
        if started == ended {
            // A client of HTTP/2 knows that its connection ends, and owes no first request any longer.
            let first = started == 0 && (http1 || !draining);
            return if first || http1 && self.has_part_of_head() {
                Waits::Head(started)
            } else {
                Waits::Request(started)
            };
        }
        if http1 && self.read_waits.load(Ordering::Relaxed) {
            return Waits::Body(load(&self.received));
        }
        if http1 { Waits::Handler } else { Waits::Streams }
    }

    /// Whether a request was passed to the service and has not ended.
    pub(super) fn has_requests(&self) -> bool {
        self.started.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    fn start_request(&self) {
        match self.protocol {
            Protocol::Http1 => {
                self.head_may_come.store(false, Ordering::Relaxed);
                increment(&self.started);
            }
            // A tunnel begins in the task of its request.
            Protocol::Http2 => _ = self.started.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn end_request(&self) {
        match self.protocol {
            Protocol::Http1 => {
                self.received_by_end.store(self.received.load(Ordering::Relaxed), Ordering::Relaxed);
                increment(&self.ended);
            }
            Protocol::Http2 => {
                let ended = self.ended.fetch_add(1, Ordering::AcqRel) + 1;
                if ended == self.started.load(Ordering::Relaxed) {
                    self.wake();
                }
            }
        }
    }

    fn hold_piece(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    fn release_piece(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that hyper is about to be polled. It reads again in that poll if it still wants to.
    pub(super) fn begin_poll(&self) {
        self.read_waits.store(false, Ordering::Relaxed);
    }

    pub(super) fn read<T>(&self, poll: &Poll<T>) {
        self.read_waits.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            increment(&self.received);
        } else if self.body_may_come.load(Ordering::Relaxed) && !self.has_requests() {
            self.end_body();
        }
    }

    /// hyper waits for bytes after a request with a body. It has discarded what the handler has not read, because
    /// otherwise it would have closed the connection. So these bytes are no part of the next head.
    fn end_body(&self) {
        if !self.head_may_come.swap(true, Ordering::Relaxed) {
            self.received_by_end.store(self.received.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Whether hyper has tried to read in this poll, and waits for bytes.
    pub(super) fn read_waits(&self) -> bool {
        self.read_waits.load(Ordering::Relaxed)
    }

    pub(super) fn write<T>(&self, poll: &Poll<T>) {
        self.write_waits.store(poll.is_pending(), Ordering::Relaxed);
        if poll.is_ready() {
            increment(&self.written);
        }
    }

    /// Notes a flush or a close. It counts as a write only if it waits for the client to read, or ends such a wait.
    pub(super) fn flush<T>(&self, poll: &Poll<T>) {
        if poll.is_pending() || self.write_waits.load(Ordering::Relaxed) {
            self.write(poll);
        }
    }

    /// Notes whether a request has a body, or that the body of the last one has come.
    pub(super) fn set_body_may_come(&self, may_come: bool) {
        self.body_may_come.store(may_come, Ordering::Relaxed);
    }

    /// Notes that the connection ends after its current requests.
    pub(super) fn end_gracefully(&self) {
        self.ends_gracefully.store(true, Ordering::Relaxed);
    }

    /// Whether the connection ends after its current requests.
    pub(super) fn ends_gracefully(&self) -> bool {
        self.ends_gracefully.load(Ordering::Relaxed)
    }

    /// Notes that the client does not acknowledge the end. hyper closes the connection then, and the client can still
    /// read what the kernel has.
    pub(super) fn give_up(&self) {
        self.gives_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Relaxed)
    }

    /// Whether the transport discards what the client sends after the connection has ended. Not on HTTP/2 after an
    /// error: it may be the answer to a flood.
    pub(super) fn may_linger(&self) -> bool {
        match self.protocol {
            Protocol::Http1 => !self.is_upgraded(),
            Protocol::Http2 => self.ends_gracefully(),
        }
    }

    /// Whether the client may send more, although nothing has come yet.
    pub(super) fn more_may_come(&self) -> bool {
        match self.protocol {
            // The rest of a body, or of a head that the connection has ended at.
            Protocol::Http1 => self.body_may_come.load(Ordering::Relaxed) || self.has_part(),
            // Windows and pings, while it reads the last response.
            Protocol::Http2 => true,
        }
    }

    /// HTTP/1: whether a part of the next head has come, and not of a body that the handler has not read.
    fn has_part_of_head(&self) -> bool {
        let is_head = self.head_may_come.load(Ordering::Relaxed) || !self.body_may_come.load(Ordering::Relaxed);
        is_head && self.has_part()
    }

    /// HTTP/1: whether bytes have come since the last request ended.
    fn has_part(&self) -> bool {
        self.received.load(Ordering::Relaxed) != self.received_by_end.load(Ordering::Relaxed)
    }

    /// Notes that the transport discards what the client sends.
    pub(super) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// Notes that the transport has discarded some bytes.
    pub(super) fn discard(&self) {
        increment(&self.received);
        self.linger();
    }

    pub(super) fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// Notes that the server stops.
    pub(super) fn drain(&self) {
        self.draining.store(self.protocol == Protocol::Http1, Ordering::Relaxed);
    }

    /// Makes the request that is about to be answered the last one, if the server stops and there is no last request
    /// yet. `true` if the connection's task must learn of that before the response begins.
    pub(super) fn becomes_last_request(&self) -> bool {
        self.draining.load(Ordering::Relaxed) && !self.last_request.swap(true, Ordering::Relaxed)
    }

    /// Whether the connection ends with the response that begins next.
    pub(super) fn has_last_request(&self) -> bool {
        self.last_request.load(Ordering::Relaxed)
    }

    /// Ends the time in which the transport discards.
    pub(super) fn stop_lingering(&self) {
        self.has_lingered.store(true, Ordering::Relaxed);
        self.lingers.store(false, Ordering::Relaxed);
    }

    pub(super) fn has_lingered(&self) -> bool {
        self.has_lingered.load(Ordering::Relaxed)
    }

    /// Notes that a request offers an upgrade.
    pub(super) fn offer_upgrade(&self, on_upgrade: OnUpgrade) {
        if self.protocol == Protocol::Http1 {
            *self.offered.lock() = Some(on_upgrade);
        }
    }

    /// Takes the offer that the service has not accepted, if there is one.
    pub(super) fn take_refused_upgrade(&self) -> Option<OnUpgrade> {
        if self.is_upgraded() { None } else { self.offered.lock().take() }
    }

    /// Notes that the service has returned a response that upgrades the connection. The user's clone of the offer gets
    /// the stream. If the user has dropped that clone, hyper must find none here: it would leave the stream in it, open
    /// and never read.
    pub(super) fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
        let offered = self.offered.lock().take();
        drop(offered);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Ordering::Relaxed)
    }

    /// Notes that the transport was dropped.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until the transport is dropped.
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.register(Arc::new(cx.waker().clone()));
        if self.closed.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Stores the waker of the connection's task, which stays there. The task looks at the activity after that.
    pub(super) fn register(&self, waker: Arc<Waker>) {
        // Dropping a waker may run foreign code, so that does not happen under the lock.
        let replaced = self.waker.lock().replace(waker);
        drop(replaced);
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
    }
}

/// A request that has not ended, and that ends when this is dropped.
pub(super) struct Running(Arc<Activity>);

impl Running {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        activity.start_request();
        Self(activity)
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// A piece of a response body that hyper has taken, and that it has not sent as a whole. The connection is not idle
/// before that. So the last piece of a response takes over its [`Running`], and each other piece has one of its own.
pub(super) struct Held(Running);

impl Held {
    pub(super) fn new(running: Running) -> Self {
        running.0.hold_piece();
        Self(running)
    }

    /// Notes that hyper has sent a part. The connection's task does that.
    pub(super) fn advance(&self) {
        increment(&self.0.0.sent);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.release_piece();
    }
}

/// Adds one without a locked instruction, to a counter that one task at a time changes.
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
