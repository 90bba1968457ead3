//! A model of slots and sources, to hold the real ones against: for the unit test below and the fuzz target `source`.
//!
//! The model is a few sockets whose kernel state is two booleans, and a few tasks that wait for them in plain lists. Each
//! step is done to both; whenever an event comes, exactly the tasks in the model's lists must have been woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use super::slots::Slots;
use super::source::{Direction, Place, Report, Source, State, Stored};

const SOCKETS: usize = 3;
const TASKS: usize = 40;
const ROOM: usize = 8;

/// The race that is not an event: the reactor ends between the system call and the clear.
const REACTOR_ENDS: u8 = 0b11_1111;

/// Runs `script`, three bytes a step, against the model.
///
/// # Panics
/// Where the real thing does something else than the model.
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "public to the fuzz targets"))]
pub fn run(script: &[u8]) {
    let mut world = World::new();
    for step in script.chunks_exact(3) {
        world.step(step[0], usize::from(step[1]), step[2]);
        world.check();
    }
    world.end();
}

/// Every other task is one of the executor's own.
fn is_ours(task: usize) -> bool {
    task % 2 == 0
}

struct World {
    slots: Slots<Arc<Source<usize>>>,
    sockets: Vec<Socket>,
    tasks: Vec<Arc<Task>>,
    /// Tokens of sockets that were closed or unbound.
    stale: Vec<usize>,
    /// The wakers that a step collected.
    wakers: Vec<Waker>,
}

struct Socket {
    source: Arc<Source<usize>>,
    token: Option<usize>,
    waiting: [Waiting; 2],
}

/// Who waits for one direction, and what the kernel would say.
#[derive(Default)]
struct Waiting {
    ready: bool,
    newest: Option<usize>,
    /// Whose waker is kept: that of one of ours, from when it waits until another one does, or a reactor ends.
    kept: Option<usize>,
    displaced: Vec<usize>,
    /// How often the displaced have been woken for want of room since the last event.
    doublings: u32,
    /// For each task that waits in the list, the key it was given.
    listed: Vec<(usize, u64)>,
    /// Waits that the end of a reactor cut off, and that have not heard of it.
    poll_lost: bool,
    lost: Vec<(usize, u64)>,
}

#[derive(Default)]
struct Task {
    woken: AtomicUsize,
    expected: AtomicUsize,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Task {
    fn expect(&self) {
        self.expected.fetch_add(1, Ordering::Relaxed);
    }
}

impl World {
    fn new() -> Self {
        Self {
            slots: Slots::new(),
            sockets: (0..SOCKETS).map(|_| Socket::new()).collect(),
            tasks: (0..TASKS).map(|_| Arc::default()).collect(),
            stale: Vec::new(),
            wakers: Vec::new(),
        }
    }

    fn step(&mut self, what: u8, which: usize, how: u8) {
        let socket = which % SOCKETS;
        let task = which / SOCKETS % TASKS;
        let direction = if how & 1 == 0 { Direction::Read } else { Direction::Write };
        match what % 10 {
            0 => self.bind(socket, how & 2 == 0),
            1 => self.close(socket),
            2 => self.event(self.sockets[socket].token, how),
            3 => self.event(self.stale.get(which % self.stale.len().max(1)).copied(), how),
            4 => self.poll(socket, task, direction, false, how & 2 == 0, None),
            5 => self.poll(socket, task, direction, true, false, None),
            // The races: an event between the system call and the clear.
            6 => self.poll(socket, task, direction, how & 2 == 0, false, Some(how >> 2)),
            7 => self.cancel(socket, task, direction),
            8 => self.orphan(socket),
            // Something comes that nobody is told of.
            _ => self.sockets[socket].waiting[direction as usize].ready |= self.sockets[socket].token.is_none(),
        }
    }

    fn bind(&mut self, index: usize, succeeds: bool) {
        let socket = &mut self.sockets[index];
        let token = self.slots.insert(socket.source.clone()).ok().expect("a few sockets");
        let result = socket.source.bind(|| if succeeds { Ok(token) } else { Err(()) });
        match result {
            Ok(false) => {
                assert!(socket.token.is_none() && succeeds, "bound twice");
                socket.token = Some(token);
                let is_reported = |direction| socket.source.state().is_reported(direction);
                assert!(![Direction::Read, Direction::Write].into_iter().any(is_reported), "no event has come yet");
                self.report_all(index);
            }
            Ok(true) => assert!(socket.token.is_some(), "said to be bound, and is not"),
            Err(()) => assert!(socket.token.is_none() && !succeeds),
        }
        if self.sockets[index].token != Some(token) {
            self.slots.remove(token).expect("it was just inserted");
            self.stale.push(token);
        }
    }

    /// What registering does: the kernel reports what is already so.
    fn report_all(&mut self, index: usize) {
        let [reads, writes] = [0, 1].map(|direction| self.sockets[index].waiting[direction].ready);
        let flags = u64::from(reads) * State::READABLE + u64::from(writes) * State::WRITABLE;
        let token = self.sockets[index].token;
        self.dispatch(token, flags);
    }

    fn close(&mut self, index: usize) {
        let closed = std::mem::replace(&mut self.sockets[index], Socket::new());
        let token = closed.source.unbind();
        assert_eq!(token, closed.token);
        if let Some(token) = token {
            assert!(self.slots.remove(token).is_some(), "a bound source left the table by itself");
            self.stale.push(token);
        }
        assert_eq!(Arc::strong_count(&closed.source), 1, "the table keeps a closed source");
    }

    fn event(&mut self, token: Option<usize>, how: u8) {
        let flags = u64::from(how) & 0b11_1111;
        if let Some(socket) = self.sockets.iter_mut().find(|socket| token.is_some() && socket.token == token) {
            socket.waiting[0].ready |= flags & State::READABLE != 0;
            socket.waiting[1].ready |= flags & State::WRITABLE != 0;
        }
        self.dispatch(token, flags);
    }

    fn dispatch(&mut self, token: Option<usize>, flags: u64) {
        let Some(token) = token else { return };
        if let Some(source) = self.slots.get(token) {
            source.dispatch(Report::new(flags), &mut self.wakers);
        }
        let both = flags & State::ERROR != 0;
        let reads = both || flags & (State::READABLE | State::READ_CLOSED) != 0;
        let writes = both || flags & (State::WRITABLE | State::WRITE_CLOSED) != 0;
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.token == Some(token)) {
            for (waiting, concerned) in socket.waiting.iter_mut().zip([reads, writes]) {
                if concerned {
                    waiting.wake_all(&self.tasks);
                }
            }
        }
        self.wake();
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// One poll of an operation, by the rule in `source`. If it succeeds it is `short` or not; `race` is an event that comes
    /// between its system call and the clear.
    fn poll(&mut self, index: usize, task: usize, direction: Direction, listed: bool, short: bool, race: Option<u8>) {
        let source = self.sockets[index].source.clone();
        let side = direction as usize;
        let is_bound = self.sockets[index].token.is_some();
        let waiting = &mut self.sockets[index].waiting[side];
        let seen = source.state();
        let tried = seen.should_try(direction);
        assert!(tried || !waiting.ready || !is_bound, "readiness that the kernel reported was forgotten");
        if tried && waiting.ready {
            // The operation succeeds and takes what there was. It waits no longer, so nothing was cut off.
            waiting.ready = false;
            if short && seen.allows_short_rule() {
                assert!(source.clear(direction, seen), "no event has come");
            }
            if listed {
                self.cancel(index, task, direction);
            } else if seen.is_orphaned() {
                let lost = source.take_lost(direction, &mut Place::Poll);
                assert_eq!(lost, waiting.take_lost(task, listed));
            }
            return;
        }
        let token = self.sockets[index].token;
        let raced = match race {
            Some(REACTOR_ENDS) => {
                self.orphan(index);
                false
            }
            Some(how) => {
                let would_wake = Waiting::would_wake(how, direction);
                self.event(token, how);
                would_wake && token.is_some()
            }
            None => false,
        };
        if tried && !source.clear_known(direction, seen) {
            assert!(raced, "a clear was refused, and no event had come");
            return;
        }
        assert!(!(tried && raced), "a clear took back an event that came after the system call");
        if race == Some(REACTOR_ENDS) && token.is_some() {
            assert!(source.state().should_try(direction), "a clear took back what is presumed of an orphan");
        }
        if self.sockets[index].token.is_none() {
            if self.must_bind(index, task, direction, listed, seen) {
                self.bind(index, true);
            }
            return;
        }
        self.store(index, task, direction, listed, seen, raced);
    }

    /// An unbound source lets nobody wait, and a wait that was cut off fails there. Returns whether none was, so that it is to
    /// be bound.
    fn must_bind(&mut self, index: usize, task: usize, direction: Direction, listed: bool, seen: State) -> bool {
        let source = self.sockets[index].source.clone();
        let waiting = &mut self.sockets[index].waiting[direction as usize];
        let mut key = waiting.key_of(task);
        let mut place = if listed { Place::Listed(&mut key) } else { Place::Poll };
        let stored = source.store(direction, &mut place, Waker::noop().clone(), false, seen, |_| Ok::<_, ()>(()));
        let lost = matches!(stored, Ok(Stored::Lost));
        assert!(
            !lost || seen.should_try(direction) || !waiting.ready,
            "it fails, and has not tried what would succeed"
        );
        assert_eq!(lost, waiting.take_lost(task, listed), "a wait that was cut off must fail, and once");
        match stored {
            Ok(Stored::Lost) => false,
            Ok(Stored::Unbound(_)) => true,
            _ => panic!("an unbound source let somebody wait"),
        }
    }

    fn store(&mut self, index: usize, task: usize, direction: Direction, listed: bool, seen: State, raced: bool) {
        let source = self.sockets[index].source.clone();
        let waker = Waker::from(self.tasks[task].clone());
        let waiting = &mut self.sockets[index].waiting[direction as usize];
        let mut key = waiting.key_of(task);
        let mut place = if listed { Place::Listed(&mut key) } else { Place::Poll };
        let lost = waiting.take_lost(task, listed);
        let mut sleeps = None;
        if !listed {
            sleeps = source.store_again(direction, &waker, seen);
            assert_eq!(sleeps.is_some(), waiting.kept == Some(task), "a waker is kept for one of ours, and it alone");
        }
        if sleeps.is_none() {
            match source.store(direction, &mut place, waker, is_ours(task), seen, |_| Ok::<_, ()>(())) {
                Ok(Stored::Sleep) => sleeps = Some(true),
                Ok(Stored::Again) => sleeps = Some(false),
                Ok(Stored::Lost) => {
                    assert!(lost, "a wait failed that was not cut off");
                    return;
                }
                _ => panic!("a bound source let nobody wait"),
            }
        }
        assert!(!lost, "a wait that was cut off goes on");
        assert_eq!(sleeps, Some(!raced), "asleep beside an event, or awake without one");
        if listed {
            waiting.listed.retain(|(other, _)| *other != task);
            waiting.listed.push((task, key.expect("a stored waiter has a key")));
        } else {
            waiting.store(task, &self.tasks);
        }
    }

    fn cancel(&mut self, index: usize, task: usize, direction: Direction) {
        let socket = &mut self.sockets[index];
        let waiting = &mut socket.waiting[direction as usize];
        if let Some(key) = waiting.key_of(task) {
            socket.source.forget(direction, key);
            waiting.listed.retain(|(other, _)| *other != task);
            waiting.lost.retain(|(other, _)| *other != task);
        }
    }

    fn orphan(&mut self, index: usize) {
        let source = self.sockets[index].source.clone();
        if self.sockets[index].token.is_none() {
            return;
        }
        let token = source.orphan(&mut self.wakers);
        assert_eq!(token, self.sockets[index].token.take());
        let token = token.expect("it was bound");
        self.slots.remove(token).expect("it was in the table");
        self.stale.push(token);
        for waiting in &mut self.sockets[index].waiting {
            waiting.poll_lost = waiting.newest.is_some();
            // It goes the same way as those that wait.
            if let (Some(kept), None) = (waiting.kept.take(), waiting.newest) {
                self.tasks[kept].expect();
            }
            waiting.lost.extend(waiting.listed.iter().copied());
            waiting.wake_all(&self.tasks);
        }
        self.wake();
    }

    fn check(&self) {
        for (index, task) in self.tasks.iter().enumerate() {
            let (woken, expected) = (task.woken.load(Ordering::Relaxed), task.expected.load(Ordering::Relaxed));
            assert_eq!(woken, expected, "task {index} was woken {woken} times, and should have been {expected} times");
        }
        for socket in &self.sockets {
            for direction in [Direction::Read, Direction::Write] {
                let stored = socket.source.count(direction);
                assert_eq!(stored, socket.waiting[direction as usize].count(), "waiters of {direction:?}");
            }
        }
        let bound = self.sockets.iter().filter(|socket| socket.token.is_some()).count();
        assert_eq!(self.slots.len(), bound, "slots in use");
    }

    fn end(mut self) {
        (0..SOCKETS).for_each(|index| self.close(index));
        for task in &self.tasks {
            assert_eq!(Arc::strong_count(task), 1, "a waker was left behind");
        }
    }
}

impl Socket {
    fn new() -> Self {
        Self { source: Arc::new(Source::new()), token: None, waiting: Default::default() }
    }
}

impl Waiting {
    fn key_of(&self, task: usize) -> Option<u64> {
        self.listed.iter().chain(&self.lost).find(|(other, _)| *other == task).map(|(_, key)| *key)
    }

    fn count(&self) -> usize {
        usize::from(self.newest.is_some()) + self.displaced.len() + self.listed.len()
    }

    fn would_wake(how: u8, direction: Direction) -> bool {
        let flags = u64::from(how) & 0b11_1111;
        let own = match direction {
            Direction::Read => State::READABLE | State::READ_CLOSED,
            Direction::Write => State::WRITABLE | State::WRITE_CLOSED,
        };
        flags & (own | State::ERROR) != 0
    }

    fn wake_all(&mut self, tasks: &[Arc<Task>]) {
        let listed = self.listed.drain(..).map(|(task, _)| task);
        self.doublings = 0;
        for task in self.newest.take().into_iter().chain(self.displaced.drain(..)).chain(listed) {
            tasks[task].expect();
        }
    }

    fn store(&mut self, task: usize, tasks: &[Arc<Task>]) {
        self.kept = is_ours(task).then_some(task);
        match self.newest.replace(task) {
            None => {}
            Some(old) if old == task || self.displaced.contains(&old) => {}
            Some(old) => {
                if self.displaced.len() == ROOM << self.doublings {
                    self.displaced.drain(..).for_each(|task| tasks[task].expect());
                    self.doublings += 1;
                }
                self.displaced.push(old);
            }
        }
    }

    fn take_lost(&mut self, task: usize, listed: bool) -> bool {
        if listed {
            let before = self.lost.len();
            self.lost.retain(|(other, _)| *other != task);
            self.lost.len() < before
        } else {
            std::mem::take(&mut self.poll_lost)
        }
    }
}

#[cfg(test)]
mod tests {
    /// Random scripts; the fuzz target finds those that are less likely.
    #[test]
    fn sources_and_slots_do_what_the_model_does() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2_000 {
            let script: Vec<u8> = std::iter::repeat_with(|| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 32) as u8
            })
            .take(3 * 60)
            .collect();
            super::run(&script);
        }
    }
}
