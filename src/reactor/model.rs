//! A model of slots and sources, to compare the real ones with: for the unit test below and the fuzz target `source`.
//!
//! The model is a few sockets, whose kernel state is two booleans, and a few tasks that wait for them in plain lists.
//! Each step is done to both. After each step exactly the tasks that the step took out of the model's lists must have
//! been woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use super::readiness::{Direction, Report};
use super::slots::Slots;
use super::source::{Source, Stored};
use super::waiters::WaiterSlot;

const SOCKETS: usize = 3;
const TASKS: usize = 40;
const CAPACITY: usize = 8;

/// Runs `script`, three bytes a step, against the model.
///
/// # Panics
/// Where the real thing differs from the model.
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
fn is_executors(task: usize) -> bool {
    task % 2 == 0
}

/// An event between an operation's system call and its clear.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Race {
    Nothing,
    Event(u8),
    /// This end shuts a direction down.
    Ends(Direction),
    ReactorEnds,
}

/// One operation's poll.
struct Poll {
    socket: usize,
    task: usize,
    direction: Direction,
    /// It waits in the list, not in the seat.
    listed: bool,
    /// If it succeeds, the transfer is short.
    short: bool,
    race: Race,
}

struct World {
    slots: Slots<Arc<Source<usize>>>,
    sockets: Vec<Socket>,
    tasks: Vec<Arc<Task>>,
    /// Tokens of sockets that were closed or unregistered.
    stale: Vec<usize>,
    /// The wakers that a step collected.
    wakers: Vec<Waker>,
}

struct Socket {
    source: Arc<Source<usize>>,
    token: Option<usize>,
    /// The reading direction and the writing one.
    sides: [Side; 2],
    /// This end has shut its reading side down, and its writing side. The direction is then always ready.
    ended: [bool; 2],
}

/// The waiting tasks of one direction, and the kernel's state of it.
#[derive(Default)]
struct Side {
    ready: bool,
    /// The task in the seat, while it waits.
    seated: Option<usize>,
    /// The task whose waker the seat keeps. The executor's wakers stay in the seat until another one takes it.
    kept: Option<usize>,
    displaced: Vec<usize>,
    /// How often the displaced were woken for lack of capacity since the last event.
    doublings: u32,
    /// The tasks in the list, with their keys.
    listed: Vec<(usize, u64)>,
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
            slots: Slots::default(),
            sockets: (0..SOCKETS).map(|_| Socket::new()).collect(),
            tasks: (0..TASKS).map(|_| Arc::default()).collect(),
            stale: Vec::new(),
            wakers: Vec::new(),
        }
    }

    fn step(&mut self, action: u8, which: usize, how: u8) {
        let (socket, task) = (which % SOCKETS, which / SOCKETS % TASKS);
        let direction = if how & 1 == 0 { Direction::Read } else { Direction::Write };
        let poll = |listed, short, race| Poll { socket, task, direction, listed, short, race };
        let race = match how >> 2 {
            0b11_1111 => Race::ReactorEnds,
            0b11_1110 => Race::Ends(Direction::Write),
            0b11_1101 => Race::Ends(Direction::Read),
            event => Race::Event(event),
        };
        match action % 13 {
            0 => self.register(socket, how & 2 == 0),
            1 => self.close(socket),
            2 => self.event(self.sockets[socket].token, how),
            3 => self.event(self.stale.get(which % self.stale.len().max(1)).copied(), how),
            4 => self.poll(&poll(false, how & 2 == 0, Race::Nothing)),
            5 => self.poll(&poll(true, false, Race::Nothing)),
            6 => self.poll(&poll(how & 2 == 0, false, race)),
            7 => self.cancel(socket, task, direction),
            8 => self.reactor_ends(socket),
            9 => self.stop_turning(socket),
            10 => self.move_elsewhere(socket),
            11 if how < 32 => self.note_ended(socket, Direction::Write),
            11 if how < 64 => self.note_ended(socket, Direction::Read),
            // Bytes come that no event reports.
            _ => self.sockets[socket].sides[direction as usize].ready |= self.sockets[socket].token.is_none(),
        }
    }

    fn register(&mut self, index: usize, succeeds: bool) {
        let socket = &mut self.sockets[index];
        let token = self.slots.insert(socket.source.clone()).ok().expect("a few sockets");
        match socket.source.register(|| if succeeds { Ok(token) } else { Err(()) }) {
            Ok(true) => {
                assert!(socket.token.is_none() && succeeds, "registered twice");
                socket.token = Some(token);
                let seen = socket.source.load();
                for direction in [Direction::Read, Direction::Write] {
                    assert_eq!(seen.is_reported(direction), socket.has_ended(direction), "no event has come yet");
                    assert_eq!(seen.has_ended(direction), socket.has_ended(direction), "an end holds in each reactor");
                }
                self.report_present(index);
            }
            Ok(false) => assert!(socket.token.is_some(), "said to be registered, and is not"),
            Err(()) => assert!(socket.token.is_none() && !succeeds),
        }
        if self.sockets[index].token != Some(token) {
            self.slots.remove(token).expect("it was just inserted");
            self.stale.push(token);
        }
    }

    /// Registering makes the kernel report what is already so.
    fn report_present(&mut self, index: usize) {
        let [reads, writes] = [0, 1].map(|side| self.sockets[index].sides[side].ready);
        let token = self.sockets[index].token;
        self.dispatch(token, u8::from(reads) | u8::from(writes) << 1);
    }

    fn close(&mut self, index: usize) {
        let closed = std::mem::replace(&mut self.sockets[index], Socket::new());
        let token = closed.source.unregister_if(|_| true);
        assert_eq!(token, closed.token);
        self.remove(token);
        assert_eq!(Arc::strong_count(&closed.source), 1, "the table keeps a closed source");
    }

    fn remove(&mut self, token: Option<usize>) {
        if let Some(token) = token {
            assert!(self.slots.remove(token).is_some(), "a registered source left the table by itself");
            self.stale.push(token);
        }
    }

    /// An event of the kernel: bit 0 is readable, bit 1 writable, bit 2 special.
    fn event(&mut self, token: Option<usize>, how: u8) {
        if let Some(socket) = self.sockets.iter_mut().find(|socket| token.is_some() && socket.token == token) {
            socket.sides[0].ready |= how & 1 != 0;
            socket.sides[1].ready |= how & 2 != 0;
        }
        self.dispatch(token, how);
    }

    fn dispatch(&mut self, token: Option<usize>, how: u8) {
        let Some(token) = token else { return };
        let concerned = [how & 1 != 0, how & 2 != 0];
        if let Some(source) = self.slots.get(token) {
            source.dispatch(Report::new(concerned[0], concerned[1], how & 4 != 0), &mut self.wakers);
        }
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.token == Some(token)) {
            for (side, is_concerned) in socket.sides.iter_mut().zip(concerned) {
                if is_concerned {
                    side.wake_all(&self.tasks);
                }
            }
        }
        self.wake();
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// One poll of an operation, by the rule in `source`.
    fn poll(&mut self, poll: &Poll) {
        let source = self.sockets[poll.socket].source.clone();
        let was_registered = self.sockets[poll.socket].token.is_some();
        let has_ended = self.sockets[poll.socket].has_ended(poll.direction);
        let side = &mut self.sockets[poll.socket].sides[poll.direction as usize];
        let seen = source.load();
        let tried = seen.should_try(poll.direction);
        assert!(tried || !side.ready || !was_registered, "readiness that the kernel reported was forgotten");
        if tried && side.ready {
            side.ready = has_ended;
            if poll.short && !has_ended && seen.allows_short_rule() {
                assert!(source.clear(poll.direction, seen), "no event has come");
            }
            if poll.listed {
                self.cancel(poll.socket, poll.task, poll.direction);
            }
            return;
        }
        let raced = self.race(poll);
        if tried && seen.is_registered() && !source.clear(poll.direction, seen) {
            assert!(raced, "a clear was refused, and no event had come");
            return;
        }
        assert!(!(tried && raced && was_registered), "a clear took back an event that came after the system call");
        if self.sockets[poll.socket].token.is_none() {
            let mut key = None;
            let mut slot = if poll.listed { WaiterSlot::Listed(&mut key) } else { WaiterSlot::Seat };
            let stored =
                source.store(poll.direction, &mut slot, Waker::noop().clone(), false, seen, |_| Ok::<_, ()>(true));
            assert!(matches!(stored, Ok(Stored::Unregistered(_))), "an unregistered source let a task wait");
            return self.register(poll.socket, true);
        }
        self.store(poll, seen, raced);
    }

    /// The socket's own end shuts a direction down. Registered or not, all its waiters are woken.
    fn note_ended(&mut self, index: usize, direction: Direction) {
        let socket = &mut self.sockets[index];
        socket.ended[direction as usize] = true;
        socket.source.note_ended(direction);
        let side = &mut socket.sides[direction as usize];
        side.ready = true;
        side.wake_all(&self.tasks);
    }

    /// Lets the race happen. Returns whether it was an event that concerns the operation.
    fn race(&mut self, poll: &Poll) -> bool {
        let token = self.sockets[poll.socket].token;
        match poll.race {
            Race::Nothing => false,
            Race::Ends(direction) => {
                self.note_ended(poll.socket, direction);
                poll.direction == direction
            }
            Race::ReactorEnds => {
                self.reactor_ends(poll.socket);
                false
            }
            Race::Event(how) => {
                self.event(token, how);
                let bit = if poll.direction == Direction::Read { 1 } else { 2 };
                how & bit != 0 && token.is_some()
            }
        }
    }

    fn store(&mut self, poll: &Poll, seen: super::readiness::Snapshot, raced: bool) {
        let source = self.sockets[poll.socket].source.clone();
        let waker = Waker::from(self.tasks[poll.task].clone());
        let side = &mut self.sockets[poll.socket].sides[poll.direction as usize];
        let mut key = side.key_of(poll.task);
        let mut sleeps = None;
        if !poll.listed {
            sleeps = source.wait_again(poll.direction, &waker, seen);
            assert_eq!(
                sleeps.is_some(),
                side.kept == Some(poll.task),
                "the seat keeps the executor's wakers, and no others"
            );
        }
        if sleeps.is_none() {
            let mut slot = if poll.listed { WaiterSlot::Listed(&mut key) } else { WaiterSlot::Seat };
            let is_executors = is_executors(poll.task);
            match source.store(poll.direction, &mut slot, waker, is_executors, seen, |_| Ok::<_, ()>(true)) {
                Ok(Stored::Sleep) => sleeps = Some(true),
                Ok(Stored::Retry) => sleeps = Some(false),
                _ => panic!("a registered source let no task wait"),
            }
        }
        assert_eq!(sleeps, Some(!raced), "asleep beside an event, or awake without one");
        if poll.listed {
            side.listed.retain(|(other, _)| *other != poll.task);
            side.listed.push((poll.task, key.expect("a stored waiter has a key")));
        } else {
            side.seat(poll.task, &self.tasks);
        }
    }

    fn cancel(&mut self, index: usize, task: usize, direction: Direction) {
        let side = &mut self.sockets[index].sides[direction as usize];
        let Some(key) = side.key_of(task) else { return };
        side.listed.retain(|(other, _)| *other != task);
        self.sockets[index].source.remove_waiter(direction, key);
    }

    fn reactor_ends(&mut self, index: usize) {
        let token = self.sockets[index].source.detach_if(&mut self.wakers, |_| true);
        assert_eq!(token, self.sockets[index].token.take());
        self.remove(token);
        self.take_waiters(index);
    }

    /// A current-thread runtime leaves `block_on`: all waiters are woken, and the registration stays.
    fn stop_turning(&mut self, index: usize) {
        self.sockets[index].source.take_waiters(&mut self.wakers);
        self.take_waiters(index);
    }

    fn take_waiters(&mut self, index: usize) {
        for side in &mut self.sockets[index].sides {
            // A kept waker leaves in the same way as that of a waiting task.
            if let (Some(kept), None) = (side.kept, side.seated) {
                self.tasks[kept].expect();
            }
            side.kept = None;
            side.wake_all(&self.tasks);
        }
        self.wake();
    }

    /// The socket moves from a reactor that no thread turns to another one.
    fn move_elsewhere(&mut self, index: usize) {
        let token = self.sockets[index].source.unregister_if(|_| true);
        assert_eq!(token, self.sockets[index].token.take());
        self.remove(token);
        self.register(index, true);
    }

    fn check(&self) {
        for (index, task) in self.tasks.iter().enumerate() {
            let (woken, expected) = (task.woken.load(Ordering::Relaxed), task.expected.load(Ordering::Relaxed));
            assert_eq!(woken, expected, "task {index} was woken {woken} times, and should have been {expected} times");
        }
        for socket in &self.sockets {
            for direction in [Direction::Read, Direction::Write] {
                let stored = socket.source.count(direction);
                assert_eq!(stored, socket.sides[direction as usize].count(), "waiters of {direction:?}");
            }
        }
        let registered = self.sockets.iter().filter(|socket| socket.token.is_some()).count();
        assert_eq!(self.slots.len(), registered, "slots in use");
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
        Self { source: Arc::new(Source::new()), token: None, sides: Default::default(), ended: [false; 2] }
    }

    fn has_ended(&self, direction: Direction) -> bool {
        self.ended[direction as usize]
    }
}

impl Side {
    fn key_of(&self, task: usize) -> Option<u64> {
        self.listed.iter().find(|(other, _)| *other == task).map(|(_, key)| *key)
    }

    fn count(&self) -> usize {
        usize::from(self.seated.is_some()) + self.displaced.len() + self.listed.len()
    }

    fn wake_all(&mut self, tasks: &[Arc<Task>]) {
        let listed = self.listed.drain(..).map(|(task, _)| task);
        self.doublings = 0;
        for task in self.seated.take().into_iter().chain(self.displaced.drain(..)).chain(listed) {
            tasks[task].expect();
        }
    }

    fn seat(&mut self, task: usize, tasks: &[Arc<Task>]) {
        self.kept = is_executors(task).then_some(task);
        match self.seated.replace(task) {
            None => {}
            Some(old) if old == task || self.displaced.contains(&old) => {}
            Some(old) => {
                if self.displaced.len() == CAPACITY << self.doublings {
                    self.displaced.drain(..).for_each(|task| tasks[task].expect());
                    self.doublings += 1;
                }
                self.displaced.push(old);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use crate::random_scripts::random_scripts;

    /// Random scripts. The fuzz target finds the less likely ones.
    #[test]
    fn source_does_what_the_model_does() {
        random_scripts(repeat_n(3 * 60, 2_000)).for_each(|script| super::run(&script));
    }
}
