//! The reactor: one mio poll, and the table that maps its tokens to sources.
//!
//! Each worker owns a [`Reactor`] and turns it. Sockets share its other half, the [`Registry`]. The reactor blocks in
//! exactly one place, [`Reactor::turn`]. While a worker is stuck in a task, another worker turns the stuck one's
//! reactor ([`Reactor::turn_stuck`]).
//!
//! # The way of a socket
//! 1. An operation tries its system call ([`Registration`]). Most calls succeed, and that is all.
//! 2. The first operation that has to wait registers the socket's [`Source`](source::Source) with the reactor of the
//!    thread that polls it, for both directions. The thread of a `block_on` call on a multi-thread runtime uses the
//!    reactor of a worker for this, and its own one only if that worker has ended.
//! 3. [`Reactor::turn`] finds the source of each event, stores the readiness and wakes the waiters.
//! 4. Dropping the socket takes it out of the table and out of the kernel's set, the descriptors that the epoll or
//!    kqueue of the reactor watches.
//! 5. When the reactor ends, it wakes the waiters of all its sources. Each tries again where it is polled next, and
//!    registers there.
//!
//! # The files
//! `backend` says which events the reactor asks for, and what they prove. `readiness` is one atomic word for each
//! socket: which directions are ready. `interest` is a set of directions. `waiters` keeps the wakers of the tasks that
//! wait for a socket. `source` joins a socket's readiness and waiters, by the rule that loses no wake-up. `slots` maps
//! tokens to sources. `registry` is the half of the reactor that sockets share, and `registration` a socket with its
//! source. `shared_poll` lets another worker turn the reactor of a stuck one. A worker that has nothing to do blocks in
//! its reactor: `unpark` ends that from another thread, `unpark_timer` after a while, and `timer_fd` when a timer is
//! due.

mod backend;
mod interest;
#[cfg(any(test, fuzzing))]
pub(crate) mod model;
mod readiness;
mod registration;
mod registry;
mod shared_poll;
mod slots;
mod source;
mod timer_fd;
mod unpark;
mod unpark_timer;
mod waiters;

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;

use crate::sync;
use backend::{EVENT_CAPACITY, TIMER_FD, UNPARK, UNPARK_TIMER, WATCHED, descriptor, refuses_nesting};
pub use interest::{Interest, Ready};
use readiness::Report;
pub(crate) use readiness::{Direction, Snapshot};
pub(crate) use registration::{Registration, Wait, is_ready_now, poll_now};
use registry::Source;
pub(crate) use registry::{Registry, enter};
use timer_fd::{TimerFd, whole_millis};
use unpark_timer::UnparkTimer;
pub(crate) use waiters::WaiterSlot;
#[cfg(all(test, kittiwake_loom))]
pub(crate) use {
    shared_poll::SharedPoll,
    unpark::{EndBlock, Unparker},
};

/// The half of a reactor that its worker owns and turns.
#[derive(Default)]
pub(crate) struct Reactor {
    registry: Arc<Registry>,
    /// Made at the first poll: a reactor that is never opened needs no buffer.
    events: Option<mio::Events>,
    timer_fd: TimerFd,
    watched: Vec<Watched>,
}

/// The reactor of a worker that is or was stuck. It is in the kernel's set of another one, unless it has left that
/// since.
struct Watched {
    registry: Arc<Registry>,
    /// Its [descriptor], which is open as long as `registry` lives.
    fd: RawFd,
    /// The worker that watches is about to block, or blocks.
    is_active: bool,
}

impl Reactor {
    /// The reactor of a `block_on` call beside the worker that has the registry `worker`. The call's sockets wait at
    /// that worker's reactor. Once that worker has ended, and from the start if `worker` is dangling, they wait at the
    /// call's own reactor.
    pub(crate) fn beside(worker: Weak<Registry>) -> Self {
        let mut reactor = Self::default();
        reactor.registry = Arc::new(Registry::beside(worker));
        reactor
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// A waker that ends the block of the thread that turns this reactor.
    pub(crate) fn unparker(&self) -> Waker {
        Waker::from(self.registry.unparker.clone())
    }

    /// A timer that ends the block of the thread that turns this reactor.
    pub(crate) fn unpark_timer(&self) -> Arc<dyn sync::UnparkTimer> {
        Arc::new(UnparkTimer::new(&self.registry))
    }

    /// Ends the reactor, as dropping it does.
    pub(crate) fn close(&self) {
        self.registry.close();
    }

    /// As [`turn`](Reactor::turn), until a deadline that is `left` away, as exactly as the system can. It may return
    /// earlier, and the caller then computes anew how long to wait. `deadline` identifies the deadline, so that the
    /// timerfd is not set twice for it.
    pub(crate) fn turn_until(&mut self, left: Duration, deadline: u64, wakers: &mut Vec<Waker>) -> io::Result<usize> {
        let Some(registry) = self.registry.opened() else { return self.turn(Some(left), wakers) };
        match whole_millis(left) {
            Some(timeout) => self.turn(Some(timeout), wakers),
            None if self.timer_fd.set(registry, left, deadline) => self.turn(None, wakers),
            None => self.turn(Some(left), wakers),
        }
    }

    /// Waits for events, at most `timeout`, or without a limit if it is `None`. Wakes some of the waiters in place (see
    /// `waiters`), and appends the wakers of the others to `wakers`, for the caller to wake. Returns the number of
    /// events, also of those that are no socket's: an unpark, an expiry of the timerfd. If a helper has taken an edge
    /// of this reactor ([`turn_stuck`](Reactor::turn_stuck)), that counts as one more. Otherwise the number is 0 if the
    /// timeout ended the wait or a signal interrupted it. The caller then computes anew how long to wait.
    pub(crate) fn turn(&mut self, mut timeout: Option<Duration>, wakers: &mut Vec<Waker>) -> io::Result<usize> {
        let mut shared = self.registry.poll.lock();
        let Some((poll, may_only_look)) = shared.begin_turn() else {
            drop(shared);
            // An unpark counts, as the event that reports one does: the worker then looks at its deadlines anew.
            return Ok(usize::from(self.registry.unparker.park(timeout)));
        };
        let events = self.events.get_or_insert_with(new_events);
        let mut count = 0;
        if may_only_look {
            // The helper may have taken the timerfd's edge, which does not come again. So the next wait sets it anew.
            self.timer_fd.expired();
            timeout = Some(Duration::ZERO);
            count = 1;
        }
        match poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(count),
            result => result?,
        }
        let table = self.registry.table.lock();
        for event in &*events {
            count += 1;
            if let Some(socket) = table.slots.get(event.token().0) {
                dispatch(&socket.source, event, wakers);
            } else {
                handle_internal_event(event, poll.registry(), &self.registry, &mut self.timer_fd)?;
            }
        }
        Ok(count)
    }

    /// Turns the reactor of another worker, which is stuck in a task. Does not wait, and does nothing if that worker
    /// has come to its reactor after all. Wakes as [`turn`](Reactor::turn) does, and returns the number of sockets'
    /// events.
    pub(crate) fn turn_stuck(&mut self, stuck: &Registry, wakers: &mut Vec<Waker>) -> usize {
        let Some(mut shared) = stuck.poll.try_lock() else { return 0 };
        let Some(poll) = &mut shared.poll else { return 0 };
        let events = self.events.get_or_insert_with(new_events);
        // The owner reports an error, when it comes to its reactor.
        if poll.poll(events, Some(Duration::ZERO)).is_err() {
            return 0;
        }
        let (mut sockets, mut took_edge) = (0, false);
        let table = stuck.table.lock();
        for event in &*events {
            if let Some(socket) = table.slots.get(event.token().0) {
                sockets += 1;
                dispatch_any(&socket.source, event, wakers);
            } else if [UNPARK, UNPARK_TIMER, TIMER_FD, WATCHED].contains(&event.token()) {
                // With edges this does nothing. On poll(2) it cannot fail: the pair stays registered.
                let _ = stuck.unparker.drain(poll.registry());
                took_edge = true;
            }
        }
        if took_edge {
            // To unpark the stuck worker would make up for the edge as well. But the stuck worker would not take that
            // unpark. So its reactor would stay readable, and a worker that watches it would never block.
            shared.note_taken_edge();
        }
        sockets
    }

    /// Until [`unwatch`](Reactor::unwatch), an event of a stuck worker's reactor also ends the block of this one.
    /// Returns `false` if another reactor does so already. `workers` are the registries of all workers.
    ///
    /// # Errors
    /// If memory is lacking, if one of the two reactors is not open, or if the system has no [`descriptor`] to watch.
    /// Also while that worker or a helper turns the stuck reactor. On macOS also if the stuck reactor has watched this
    /// one before: see [`refuses_nesting`].
    pub(crate) fn watch<I: Iterator<Item = Arc<Registry>>>(
        &mut self,
        stuck: &Arc<Registry>,
        workers: impl Fn() -> I,
    ) -> io::Result<bool> {
        // The reactor of a stuck worker still has those in its set that it has watched, and that worker cannot take
        // them out. So the kernel may find a circle, or too many reactors in one another. Two steps undo all such
        // nesting around these two. First this reactor leaves all sets that it is in. That breaks each circle, because
        // a circle leads from the stuck reactor back to this one, through a set that this one is in. Then the stuck one
        // lets those go that it has watched. This step comes second, because it is dear: the stuck worker adds those
        // reactors again later, and the kernel then looks at each of their sockets.
        let mut watched = self.try_watch(stuck);
        if watched.as_ref().is_err_and(refuses_nesting) {
            self.leave_watchers(workers());
            watched = self.try_watch(stuck);
        }
        if watched.as_ref().is_err_and(refuses_nesting) {
            stuck.let_go(workers());
            watched = self.try_watch(stuck);
        }
        watched
    }

    fn try_watch(&mut self, stuck: &Arc<Registry>) -> io::Result<bool> {
        let own = self.registry.opened().ok_or(io::ErrorKind::NotConnected)?;
        let shared = stuck.poll.try_lock().ok_or(io::ErrorKind::ResourceBusy)?;
        let fd = shared.poll.as_ref().and(stuck.opened()).and_then(descriptor).ok_or(io::ErrorKind::Unsupported)?;
        if stuck.is_watched.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        let known = self.watched.iter_mut().find(|watched| Arc::ptr_eq(&watched.registry, stuck));
        let registered = match &known {
            // To add an epoll takes time in proportion to its sockets. To modify its entry does not, and also reports
            // what is ready now.
            Some(_) => own.reregister(&mut SourceFd(&fd), WATCHED, mio::Interest::READABLE),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let registered = match registered {
            // It is new, or has left this reactor meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                own.register(&mut SourceFd(&fd), WATCHED, mio::Interest::READABLE)
            }
            result => result,
        };
        registered.inspect_err(|_| stuck.is_watched.store(false, Ordering::Release))?;
        match known {
            Some(watched) => watched.is_active = true,
            None => self.watched.push(Watched { registry: stuck.clone(), fd, is_active: true }),
        }
        Ok(true)
    }

    /// Takes this reactor out of the kernel's sets of all others. Its worker, which calls this, is not stuck. When
    /// this worker next begins to run tasks and the runtime has no watcher, it wakes an idle worker, at once or by a
    /// timer. If the idle worker then finds this one stuck, it adds this reactor to its own set again.
    fn leave_watchers(&self, workers: impl Iterator<Item = Arc<Registry>>) {
        // No reactor begins to watch this one while its lock is held.
        let _shared = self.registry.poll.lock();
        let Some(fd) = self.registry.opened().and_then(descriptor) else { return };
        for worker in workers {
            // An error means that this reactor is not in that set.
            let _ = worker.opened().map(|watcher| watcher.deregister(&mut SourceFd(&fd)));
        }
        // A watcher may be blocked now, and no event of this reactor ends that block any more. From here on another
        // worker is allowed to watch.
        self.registry.is_watched.store(false, Ordering::Release);
    }

    /// The block is over: another reactor may watch those that this one has watched.
    pub(crate) fn unwatch(&mut self) {
        for watched in &mut self.watched {
            if mem::take(&mut watched.is_active) {
                watched.registry.is_watched.store(false, Ordering::Release);
            }
        }
    }

    /// Takes the reactors of workers that are not `stuck` out of this one's set. Otherwise each of their events would
    /// end a block of this one.
    pub(crate) fn forget_unless(&mut self, stuck: impl Fn(&Arc<Registry>) -> bool) {
        let own = self.registry.opened();
        self.watched.retain(|watched| {
            let stays = stuck(&watched.registry);
            if !stays {
                // An error means that it has left the set already.
                let _ = own.map(|own| own.deregister(&mut SourceFd(&watched.fd)));
            }
            stays
        });
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.close();
    }
}

fn new_events() -> mio::Events {
    mio::Events::with_capacity(EVENT_CAPACITY)
}

/// Stores an event in its source and wakes the waiters.
fn dispatch(source: &Source, event: &Event, wakers: &mut Vec<Waker>) {
    // The usual event: a readable socket mostly has room to write too, and both are reported.
    if event.is_readable() && event.is_writable() && !is_special(event) {
        source.dispatch(const { Report::new(true, true, false) }, wakers);
    } else {
        dispatch_any(source, event, wakers);
    }
}

/// As [`dispatch`], without a path of its own for the usual event. An error makes both directions ready, and on epoll
/// and poll(2) a hang-up does too, although the event may report neither.
fn dispatch_any(source: &Source, event: &Event, wakers: &mut Vec<Waker>) {
    let readable = event.is_readable() || event.is_read_closed() || event.is_error();
    let writable = event.is_writable() || event.is_write_closed() || event.is_error();
    source.dispatch(Report::new(readable, writable, is_special(event)), wakers);
}

fn is_special(event: &Event) -> bool {
    event.is_error() || event.is_priority() || event.is_read_closed() || event.is_write_closed()
}

/// Handles an event whose token belongs to no source, or to one that was removed.
fn handle_internal_event(
    event: &Event,
    mio: &mio::Registry,
    registry: &Registry,
    timer_fd: &mut TimerFd,
) -> io::Result<()> {
    match event.token() {
        TIMER_FD => timer_fd.expired(),
        UNPARK => registry.unparker.drain(mio)?,
        // The unpark timer has expired, or a reactor that this one watches has an event. Or a source was removed after
        // the kernel had queued its event.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    /// The events of a reactor end the block of one that watches it, and none after that. The other one may block in
    /// its poll when the watch ends.
    #[test]
    fn events_of_watched_reactor_end_block() {
        let (mut watcher, mut stuck) = (Reactor::default(), Reactor::default());
        watcher.registry.open().expect("a poll");
        stuck.registry.open().expect("a poll");
        let (unparker, own_unparker) = (stuck.unparker(), watcher.unparker());
        let watched = watcher.watch(&stuck.registry, iter::empty);
        let has_descriptor = watcher.registry.opened().and_then(descriptor).is_some();
        assert_eq!(watched.is_ok(), has_descriptor, "{watched:?}");
        if !has_descriptor {
            return;
        }
        let turn = |watcher: &mut Reactor| {
            own_unparker.wake_by_ref();
            watcher.turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn")
        };
        assert_eq!(turn(&mut watcher), 1, "the stuck worker has no event");
        unparker.wake_by_ref();
        assert_eq!(turn(&mut watcher), 2, "the stuck worker's event ends the block");
        let registry = stuck.registry.clone();
        let owner = std::thread::spawn(move || {
            for _ in 0..2 {
                stuck.turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn");
            }
        });
        while registry.poll.try_lock().is_some() && !owner.is_finished() {
            std::thread::yield_now();
        }
        watcher.unwatch();
        watcher.forget_unless(|_| false);
        unparker.wake_by_ref();
        owner.join().expect("the owner turns");
        assert_eq!(turn(&mut watcher), 1, "it is watched no more");
    }

    /// Open reactors, and their registries. `None` where a reactor cannot watch another one that has watched it.
    fn reactors<const COUNT: usize>() -> Option<([Reactor; COUNT], [Arc<Registry>; COUNT])> {
        let reactors = [(); COUNT].map(|()| Reactor::default());
        let registries = reactors.each_ref().map(|reactor| reactor.registry.clone());
        registries.iter().for_each(|registry| assert!(registry.open().is_ok(), "a poll opens"));
        let can_watch = registries[0].opened().and_then(descriptor).is_some();
        (can_watch && cfg!(any(target_os = "linux", target_os = "android"))).then_some((reactors, registries))
    }

    /// Has one reactor watch another one, and checks that it does.
    #[track_caller]
    fn watch(reactors: &mut [Reactor], registries: &[Arc<Registry>], watcher: usize, stuck: usize) {
        let watched = reactors[watcher].watch(&registries[stuck], || registries.iter().cloned());
        assert!(matches!(watched, Ok(true)), "{watcher} watches {stuck}: {watched:?}");
    }

    /// Takes all events that there are, and returns their number. The unpark that this needs is not counted.
    fn take_events(reactor: &mut Reactor) -> usize {
        reactor.unparker().wake();
        reactor.turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn") - 1
    }

    /// A reactor can watch another one that has watched it before, itself or through a third one. The kernel refuses
    /// such a circle.
    #[test]
    fn reactors_watch_each_other_in_turn() {
        let Some((mut reactors, registries)) = reactors::<3>() else { return };
        for (watcher, stuck) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 0), (0, 1), (2, 1), (1, 2), (0, 2)] {
            watch(&mut reactors, &registries, watcher, stuck);
            reactors[stuck].unparker().wake();
            let mut turn =
                |index: usize| reactors[index].turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn");
            assert_eq!(turn(watcher), 1, "an event of {stuck} ends the block of {watcher}");
            assert_eq!(turn(stuck), 1, "{stuck} is unparked");
            reactors[watcher].unwatch();
        }
    }

    /// A reactor that has left a watcher is not watched, although the watcher still blocks. Otherwise the next watcher
    /// would rely on that block.
    #[test]
    fn reactor_without_watchers_is_unwatched() {
        let Some((mut reactors, registries)) = reactors::<3>() else { return };
        for (watcher, stuck) in [(2, 0), (0, 1), (1, 2), (2, 1)] {
            watch(&mut reactors, &registries, watcher, stuck);
        }
    }

    /// A reactor can watch another one that watches a third one, and so on, in a chain of any length, and by any number
    /// of chains. The kernel itself refuses chains of more than four, and more than ten chains of that length.
    #[test]
    fn depth_of_watches_refuses_none() {
        let chain = (0..5).map(|watcher| (watcher, watcher + 1)).rev();
        let layers = [&[0][..], &[1, 2, 3], &[4, 5, 6], &[7, 8, 9], &[10]];
        let ways = layers
            .windows(2)
            .rev()
            .flat_map(|pair| pair[0].iter().flat_map(|watcher| pair[1].iter().map(|stuck| (*watcher, *stuck))));
        for watches in [chain.collect::<Vec<_>>(), ways.collect()] {
            let Some((mut reactors, registries)) = reactors::<11>() else { return };
            for (watcher, stuck) in watches {
                watch(&mut reactors, &registries, watcher, stuck);
                take_events(&mut reactors[watcher]);
                reactors[stuck].unparker().wake();
                assert_eq!(take_events(&mut reactors[watcher]), 1, "{stuck} has an event for {watcher}");
                assert_eq!(take_events(&mut reactors[stuck]), 0, "{stuck} is unparked");
                reactors[watcher].unwatch();
            }
        }
    }

    /// A is stuck no more and about to block, beside reactors that it watches. B, which still takes A for stuck, has
    /// A's reactor let those go. Then the block of A must end: no event of theirs would end it.
    #[test]
    fn block_ends_when_watched_are_let_go() {
        let Some((mut reactors, registries)) = reactors::<6>() else { return };
        for watcher in (1..5).rev() {
            watch(&mut reactors, &registries, watcher, watcher + 1);
        }
        assert_eq!(take_events(&mut reactors[1]), 0);
        watch(&mut reactors, &registries, 0, 1);
        let ended = reactors[1].turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn");
        assert_eq!(ended, 1, "the worker would block, and watch none");
        reactors[1].unwatch();
        watch(&mut reactors, &registries, 1, 2);
        reactors[2].unparker().wake();
        assert_eq!(take_events(&mut reactors[1]), 1, "it watches again");
    }

    /// A worker has set its timerfd and is about to block without a limit. A helper that turns its reactor meanwhile
    /// takes the timerfd's edge. The worker must not sleep for ever.
    #[test]
    fn helper_gives_timers_edge_back() {
        edge_comes_back(|owner| {
            let registry = owner.registry.clone();
            owner.timer_fd.set(registry.opened().expect("it is open"), Duration::from_nanos(1), 7)
        });
    }

    /// The same for the timer that another worker has set.
    #[test]
    fn helper_gives_unpark_timers_edge_back() {
        let timer = std::cell::OnceCell::new();
        edge_comes_back(|owner| timer.get_or_init(|| owner.unpark_timer()).set(Duration::from_nanos(1)));
    }

    /// Has a helper take the edge of a timer of the owner, which `set` has set if the system can.
    #[track_caller]
    fn edge_comes_back(set: impl FnOnce(&mut Reactor) -> bool) {
        let (mut owner, mut helper) = (Reactor::default(), Reactor::default());
        owner.registry.open().expect("a poll");
        if !set(&mut owner) {
            // This platform, or this backend, has no timerfd.
            return;
        }
        // If the timer has not expired by then, the owner gets the edge itself.
        std::thread::park_timeout(Duration::from_millis(2));
        helper.turn_stuck(&owner.registry.clone(), &mut Vec::new());
        let events = owner.turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn");
        assert_eq!(events, 1, "the worker would block for ever");
    }

    /// A worker watches a stuck one and is about to block. A helper that still takes the watcher for stuck turns its
    /// reactor meanwhile, and takes the edge of the stuck worker's event. Nothing else tells the watcher of that event.
    #[test]
    fn helper_gives_watched_edge_back() {
        let Some((mut reactors, registries)) = reactors::<3>() else { return };
        watch(&mut reactors, &registries, 0, 1);
        reactors[1].unparker().wake();
        reactors[2].turn_stuck(&registries[0], &mut Vec::new());
        let events = reactors[0].turn(Some(Duration::from_secs(10)), &mut Vec::new()).expect("a turn");
        assert_eq!(events, 1, "the watcher would block, and the stuck worker's sockets would wait");
    }
}
