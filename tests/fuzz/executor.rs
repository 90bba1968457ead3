//! Trees of operations on a runtime of one worker: joins, selects, tasks, timers, channels, aborts and panics.
//!
//! Each node of the tree notes when it starts, when it ends and when it is dropped. The clock is paused, so these are
//! exact moments: it stands still while any task can run. [`World::check`] then says how each node must have ended:
//!
//! * from its start and from its children follows the moment of its end, and its outcome;
//! * a node that has not ended had a reason to wait until it was dropped, and its drop had a reason too.
//!
//! The last byte of a script is the seed of the order in which the tasks run, and 0 stands for none.
//!
//! A lost wake-up shows as a node that ends late, or that still waits at the end although it has no reason to wait.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use async_channel::{Receiver, Sender};
use futures_util::stream::FuturesUnordered;
use kittiwake::runtime::{Builder, Handle};
use kittiwake::stream::StreamExt;
use kittiwake::task::{AbortHandle, JoinError, JoinHandle, JoinSet, consume_budget, yield_now};
use kittiwake::time::{Duration, Elapsed, Instant, interval, sleep, sleep_until, timeout};

use crate::script::Script;

/// The nodes of a tree, at most.
const NODES: usize = 60;

/// The depth of a tree, at most.
const DEPTH: usize = 6;

/// When a run ends. Its timers all fire before that.
const HORIZON: Duration = Duration::from_secs(3600);

/// How far a paused clock may be past a deadline.
const TICK: Duration = Duration::from_nanos(1 << 16);

const CHANNELS: usize = 3;

/// A node of the tree. Other nodes are given by their numbers.
#[derive(Debug)]
enum Op {
    Ready,
    Never,
    Panic,
    Yield(usize),
    /// Spends so much of the budget.
    Spend(usize),
    /// Waits for a closure on another thread.
    Block,
    Sleep(Duration),
    /// Waits for so many ticks of an interval.
    Ticks(u32, Duration),
    Send(usize),
    Receive(usize),
    Close(usize),
    /// Aborts one of the tasks that were spawned so far.
    Abort(usize),
    /// One after the other.
    Sequence(Vec<usize>),
    Join(Vec<usize>),
    /// As `Join`, by a future that gives each child a waker of its own.
    Unordered(Vec<usize>),
    Select(Vec<usize>),
    Timeout(Duration, usize),
    Spawn(Kind, usize),
    Detach(Kind, usize),
    JoinSet(Kind, Vec<usize>),
}

/// Which function spawns a task.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Send,
    Local,
    /// By the runtime's handle.
    Handle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// A message that was sent at this moment.
    Received(Instant),
    Closed,
    Elapsed,
    /// A task was aborted.
    Cancelled,
    /// A task has panicked.
    Panicked,
}

/// Decodes a tree, and returns the number of its root.
fn plant(script: &mut Script<'_>, ops: &mut Vec<Op>, depth: usize) -> usize {
    let number = ops.len();
    ops.push(Op::Ready);
    let is_leaf = depth == 0 || ops.len() > NODES || script.is_empty();
    let choice = script.below(if is_leaf { 14 } else { 32 });
    let children = |script: &mut Script<'_>, ops: &mut Vec<Op>| {
        (0..script.below(5)).map(|_| plant(script, ops, depth - 1)).collect::<Vec<_>>()
    };
    let kind = |script: &mut Script<'_>| script.one_of(&[Kind::Send, Kind::Local, Kind::Handle]);
    let time =
        |script: &mut Script<'_>| Duration::from_millis(script.below(16) as u64) * script.one_of(&[1, 1, 10, 1000]);
    ops[number] = match choice {
        0 => Op::Ready,
        1 => Op::Never,
        2 => Op::Panic,
        3 => Op::Yield(script.below(8)),
        4 => Op::Spend(script.below(256)),
        5 if script.below(4) == 0 => Op::Block,
        5..=7 => Op::Sleep(time(script)),
        8 => Op::Ticks(script.below(5) as u32, time(script).max(Duration::from_millis(1))),
        9 => Op::Send(script.below(CHANNELS)),
        10 | 11 => Op::Receive(script.below(CHANNELS)),
        12 => Op::Abort(script.below(256)),
        13 => Op::Close(script.below(CHANNELS)),
        14..=17 => Op::Sequence(children(script, ops)),
        18 | 19 => Op::Join(children(script, ops)),
        20 | 21 => Op::Unordered(children(script, ops)),
        22 | 23 => Op::Select(children(script, ops)),
        24 | 25 => Op::Timeout(time(script), plant(script, ops, depth - 1)),
        26 | 27 => Op::Spawn(kind(script), plant(script, ops, depth - 1)),
        28 | 29 => Op::Detach(kind(script), plant(script, ops, depth - 1)),
        _ => Op::JoinSet(kind(script), children(script, ops)),
    };
    number
}

/// Runs the tree that a script describes.
///
/// # Panics
/// Panics if a node breaks a law.
pub(crate) fn run(script: &[u8]) {
    let mut ops = Vec::new();
    plant(&mut Script::new(script), &mut ops, DEPTH);
    let builder = Builder::new_current_thread().start_paused(true);
    // The last byte, so that the seed changes nothing in the tree.
    let builder = match script.last() {
        None | Some(0) => builder,
        Some(seed) => builder.rng_seed((*seed).into()),
    };
    let runtime = builder.build().expect("a runtime");
    let world = runtime.block_on(async {
        let world = Arc::new(World::new(ops));
        drop(kittiwake::spawn(world.node(0)));
        sleep_until(world.start + HORIZON).await;
        let alive = world.end(Instant::now());
        assert_eq!(Handle::current().metrics().tasks_alive(), alive, "the runtime and the nodes differ in the tasks");
        world
    });
    drop(runtime);
    assert_eq!(Arc::strong_count(&world), 1, "a future outlives its runtime");
    world.check();
}

/// The tree, and what has happened to it.
struct World {
    ops: Vec<Op>,
    channels: Vec<(Sender<Instant>, Receiver<Instant>)>,
    start: Instant,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    nodes: Vec<Node>,
    /// The tasks that were spawned, by their nodes.
    tasks: Vec<(usize, AbortHandle)>,
    /// When which task was aborted.
    aborts: Vec<(Instant, usize)>,
    /// When a channel got a message, or gave one.
    messages: Vec<(Instant, usize, isize)>,
    closed: [Option<Instant>; CHANNELS],
    end: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    start: Option<Instant>,
    end: Option<(Instant, Outcome)>,
    /// When it was dropped without an end.
    dropped: Option<Instant>,
    is_task: bool,
}

/// A node that runs, and notes what happens to it.
struct Running {
    world: Arc<World>,
    number: usize,
    future: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl Future for Running {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let now = Instant::now();
        self.world.change(self.number, |node| node.start = node.start.or(Some(now)));
        let outcome = ready!(self.future.as_mut().poll(cx));
        let now = Instant::now();
        self.world.change(self.number, |node| node.end = Some((now, outcome)));
        Poll::Ready(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The clock of the runtime is gone when `block_on` drops its tasks.
        let end = self.world.log.lock().unwrap().end;
        let now = end.unwrap_or_else(Instant::now);
        self.world.change(self.number, |node| {
            if node.end.is_none() {
                node.dropped = Some(now);
            }
        });
    }
}

impl World {
    fn new(ops: Vec<Op>) -> Self {
        let mut log = Log { nodes: vec![Node::default(); ops.len()], ..Log::default() };
        log.nodes[0].is_task = true;
        let channels = (0..CHANNELS).map(|_| async_channel::unbounded()).collect();
        Self { ops, channels, start: Instant::now(), log: Mutex::new(log) }
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Node)) {
        change(&mut self.log.lock().unwrap().nodes[number]);
    }

    /// Ends the run. Returns how many tasks have neither ended nor been dropped.
    fn end(&self, now: Instant) -> usize {
        let mut log = self.log.lock().unwrap();
        log.end = Some(now);
        // The handles keep tasks, and the tasks keep this.
        log.tasks.clear();
        let is_alive = |node: &&Node| node.is_task && node.end.is_none() && node.dropped.is_none();
        log.nodes.iter().filter(is_alive).count()
    }

    fn node(self: &Arc<Self>, number: usize) -> Running {
        let world = self.clone();
        let future = Box::pin(async move { world.perform(number).await });
        Running { world: self.clone(), number, future }
    }

    fn nodes(self: &Arc<Self>, numbers: &[usize]) -> Vec<Running> {
        numbers.iter().map(|number| self.node(*number)).collect()
    }

    async fn perform(self: &Arc<Self>, number: usize) -> Outcome {
        match &self.ops[number] {
            Op::Ready => {}
            Op::Never => pending().await,
            // Not by `panic!`, whose hook ends a fuzz target.
            Op::Panic => std::panic::resume_unwind(Box::new("a node panics")),
            Op::Yield(count) => {
                for _ in 0..*count {
                    yield_now().await;
                }
            }
            Op::Spend(count) => {
                for _ in 0..*count {
                    consume_budget().await;
                }
            }
            Op::Block => return outcome(kittiwake::spawn_blocking(|| Outcome::Done).await),
            Op::Sleep(duration) => sleep(*duration).await,
            Op::Ticks(count, period) => {
                let mut interval = interval(*period);
                for _ in 0..*count {
                    interval.tick().await;
                }
            }
            Op::Send(channel) => {
                let now = Instant::now();
                if self.channels[*channel].0.try_send(now).is_ok() {
                    self.log.lock().unwrap().messages.push((now, *channel, 1));
                }
            }
            Op::Receive(channel) => {
                let Ok(sent) = self.channels[*channel].1.recv().await else { return Outcome::Closed };
                self.log.lock().unwrap().messages.push((Instant::now(), *channel, -1));
                return Outcome::Received(sent);
            }
            Op::Close(channel) => {
                self.log.lock().unwrap().closed[*channel].get_or_insert_with(Instant::now);
                self.channels[*channel].0.close();
            }
            Op::Abort(which) => self.abort(*which),
            Op::Sequence(children) => {
                for child in children {
                    self.node(*child).await;
                }
            }
            Op::Join(children) => join(self.nodes(children)).await,
            Op::Unordered(children) => {
                let mut children: FuturesUnordered<_> = self.nodes(children).into_iter().collect();
                while children.next().await.is_some() {}
            }
            Op::Select(children) => select(self.nodes(children)).await,
            Op::Timeout(duration, child) => {
                if let Err(Elapsed { .. }) = timeout(*duration, self.node(*child)).await {
                    return Outcome::Elapsed;
                }
            }
            Op::Spawn(kind, child) => return outcome(self.spawn(*kind, *child).await),
            Op::Detach(kind, child) => drop(self.spawn(*kind, *child)),
            Op::JoinSet(kind, children) => {
                let mut set = JoinSet::new();
                for child in children {
                    let task = match kind {
                        Kind::Local => set.spawn_local(self.node(*child)),
                        _ => set.spawn(self.node(*child)),
                    };
                    self.note_task(*child, task);
                }
                while set.join_next().await.is_some() {}
            }
        }
        Outcome::Done
    }

    fn spawn(self: &Arc<Self>, kind: Kind, child: usize) -> JoinHandle<Outcome> {
        let node = self.node(child);
        let task = match kind {
            Kind::Send => kittiwake::spawn(node),
            Kind::Local => kittiwake::spawn_local(node),
            Kind::Handle => Handle::current().spawn(node),
        };
        self.note_task(child, task.abort_handle());
        task
    }

    fn note_task(&self, number: usize, task: AbortHandle) {
        let mut log = self.log.lock().unwrap();
        log.nodes[number].is_task = true;
        log.tasks.push((number, task));
    }

    fn abort(&self, which: usize) {
        let mut log = self.log.lock().unwrap();
        if log.tasks.is_empty() {
            return;
        }
        let (number, task) = log.tasks[which % log.tasks.len()].clone();
        log.aborts.push((Instant::now(), number));
        // An abort may drop the task here, and the drop of a node wants the lock.
        drop(log);
        task.abort();
    }

    /// Checks every node that has begun to run.
    fn check(&self) {
        let log = self.log.lock().unwrap();
        for (number, node) in log.nodes.iter().enumerate() {
            let facts = Facts { world: self, log: &log, number, node: *node };
            facts.check_end();
            facts.check_children();
            facts.check_waiting();
        }
        for (at, task) in &log.aborts {
            let gone = log.gone(*task);
            assert!(gone.is_some_and(|gone| gone <= *at), "the aborted task of node {task} goes on");
        }
    }
}

/// The outcome of a task.
fn outcome(result: Result<Outcome, JoinError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) if error.is_cancelled() => Outcome::Cancelled,
        Err(_) => Outcome::Panicked,
    }
}

/// Waits for all of `children`.
async fn join(mut children: Vec<Running>) {
    poll_fn(|cx| {
        children.retain_mut(|child| Pin::new(child).poll(cx).is_pending());
        if children.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for the first of `children`. If there are none, it waits for ever.
async fn select(mut children: Vec<Running>) {
    poll_fn(|cx| {
        let is_ready = children.iter_mut().any(|child| Pin::new(child).poll(cx).is_ready());
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Log {
    /// When a node ended or was dropped.
    fn gone(&self, number: usize) -> Option<Instant> {
        let node = &self.nodes[number];
        node.end.map(|(at, _)| at).or(node.dropped)
    }

    /// The messages that a channel keeps at the end of the moment `at`.
    fn kept(&self, channel: usize, at: Instant) -> isize {
        self.messages
            .iter()
            .filter(|(when, which, _)| *which == channel && *when <= at)
            .map(|(.., change)| change)
            .sum()
    }
}

/// The facts of one node.
struct Facts<'a> {
    world: &'a World,
    log: &'a Log,
    number: usize,
    node: Node,
}

/// The span in which a node must end, and its outcome.
type Expected = (Instant, Instant, Outcome);

impl Facts<'_> {
    fn other(&self, number: usize) -> Facts<'_> {
        Facts { world: self.world, log: self.log, number, node: self.log.nodes[number] }
    }

    fn op(&self) -> &Op {
        &self.world.ops[self.number]
    }

    #[track_caller]
    fn require(&self, holds: bool, law: &str) {
        let after = |at: Instant| at.duration_since(self.world.start);
        let Node { start, end, dropped, .. } = self.node;
        assert!(
            holds,
            "node {} of {:#?}: {law}. It started at {:?}, ended at {:?} and was dropped at {:?}",
            self.number,
            self.world.ops,
            start.map(after),
            end.map(|(at, outcome)| (after(at), outcome)),
            dropped.map(after)
        );
    }

    /// A node ends when it must, and with that outcome. A node that is dropped first has had no reason to end.
    fn check_end(&self) {
        let Some(start) = self.node.start else { return };
        let expected = self.expected(start);
        match (self.node.end, self.node.dropped, expected) {
            (Some((at, outcome)), _, Some((from, to, expected))) => {
                self.require(at >= from, &format!("it ended early, and not at {:?}", from - self.world.start));
                self.require(at <= to, &format!("it ended late, and not at {:?}", to - self.world.start));
                self.require(outcome == expected, &format!("the outcome must be {expected:?}"));
            }
            (Some(_), _, None) => self.require(false, "it ended, and had no reason to"),
            (None, Some(dropped), Some((_, to, _))) => {
                self.require(dropped <= to, &format!("it waits longer than until {:?}", to - self.world.start));
            }
            (None, Some(_), None) => {}
            (None, None, _) => self.require(false, "it neither ended nor was dropped"),
        }
    }

    /// The end that follows from the start of this node and from its children. `None` if it must wait for ever.
    fn expected(&self, start: Instant) -> Option<Expected> {
        let done = |at: Instant| Some((at, at, Outcome::Done));
        let last = |ends: Option<Vec<Instant>>| done(ends?.into_iter().max().unwrap_or(start));
        match self.op() {
            Op::Never | Op::Panic => None,
            Op::Ready | Op::Yield(_) | Op::Spend(_) | Op::Block => done(start),
            Op::Send(_) | Op::Close(_) | Op::Abort(_) | Op::Detach(..) => done(start),
            Op::Sleep(duration) => Some((start + *duration, start + *duration + TICK, Outcome::Done)),
            Op::Ticks(0, _) => done(start),
            Op::Ticks(count, period) => {
                let last = start + *period * (count - 1);
                Some((last, last + TICK, Outcome::Done))
            }
            Op::Receive(channel) => {
                let at = match self.node.end.map(|(_, outcome)| outcome) {
                    Some(Outcome::Received(sent)) => {
                        return Some((sent.max(start), sent.max(start), Outcome::Received(sent)));
                    }
                    _ => self.log.closed[*channel]?.max(start),
                };
                Some((at, at, Outcome::Closed))
            }
            Op::Sequence(children) | Op::Join(children) | Op::Unordered(children) => {
                last(children.iter().map(|child| Some(self.log.nodes[*child].end?.0)).collect())
            }
            Op::Select(children) => {
                done(children.iter().filter_map(|child| Some(self.log.nodes[*child].end?.0)).min()?)
            }
            Op::Timeout(duration, child) => {
                let limit = start + *duration;
                match self.log.nodes[*child].end {
                    Some((at, _)) => Some((at, at.min(limit + TICK), Outcome::Done)),
                    None => Some((limit, limit + TICK, Outcome::Elapsed)),
                }
            }
            Op::Spawn(_, child) => {
                let (at, outcome) = self.other(*child).task_end()?;
                Some((at, at, outcome))
            }
            Op::JoinSet(_, children) => {
                last(children.iter().map(|child| Some(self.other(*child).task_end()?.0)).collect())
            }
        }
    }

    /// When and how the task of this node came to its end.
    fn task_end(&self) -> Option<(Instant, Outcome)> {
        match (self.node.end, self.panic()) {
            (Some((at, _)), _) => Some((at, Outcome::Done)),
            (None, Some(at)) => Some((at, Outcome::Panicked)),
            (None, None) => Some((self.node.dropped?, Outcome::Cancelled)),
        }
    }

    /// When this node, or one in its task, has panicked.
    fn panic(&self) -> Option<Instant> {
        match self.op() {
            Op::Panic => self.node.start,
            _ => self
                .children()
                .iter()
                .filter(|child| !self.log.nodes[**child].is_task)
                .find_map(|child| self.other(*child).panic()),
        }
    }

    fn children(&self) -> &[usize] {
        match self.op() {
            Op::Sequence(children) | Op::Join(children) | Op::Unordered(children) => children,
            Op::Select(children) | Op::JoinSet(_, children) => children,
            Op::Timeout(_, child) | Op::Spawn(_, child) | Op::Detach(_, child) => std::slice::from_ref(child),
            _ => &[],
        }
    }

    /// A child starts with its parent, or after the one before it. It is dropped with its parent, and a task for a reason
    /// of its own.
    fn check_children(&self) {
        let mut start = self.node.start;
        for child in self.children() {
            let child = self.other(*child);
            if child.node.start.is_some() {
                child.require(child.node.start == start, "it started late, or before its turn");
            }
            if matches!(self.op(), Op::Sequence(_)) {
                start = child.node.end.map(|(at, _)| at);
            }
            if let (true, Some(dropped), Op::JoinSet(..)) = (child.node.is_task, self.node.dropped, self.op()) {
                let gone = self.log.gone(child.number);
                child.require(gone.is_some_and(|gone| gone <= dropped), "it outlives its `JoinSet`");
            }
            if let Some(dropped) = child.node.dropped {
                let with_parent = self.log.gone(self.number) == Some(dropped);
                let is_joined = matches!(self.op(), Op::JoinSet(..)) && self.node.dropped == Some(dropped);
                let has_reason = match child.node.is_task {
                    false => with_parent,
                    true => is_joined || child.panic() == Some(dropped) || child.is_aborted_at(dropped),
                };
                child.require(has_reason, "it was dropped, and had no reason to");
            }
        }
    }

    fn is_aborted_at(&self, at: Instant) -> bool {
        self.log.end == Some(at) || self.log.aborts.contains(&(at, self.number))
    }

    /// A node does not wait for a message while its channel has one.
    fn check_waiting(&self) {
        let (Op::Receive(channel), Some(start)) = (self.op(), self.node.start) else { return };
        let gone = self.log.gone(self.number).expect("a node that has started and was checked");
        let moments = self.log.messages.iter().map(|(at, ..)| *at).chain([start]);
        for at in moments.filter(|at| (start..gone).contains(at)) {
            self.require(self.log.kept(*channel, at) == 0, "it waits, and its channel has a message");
        }
    }
}
