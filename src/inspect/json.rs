//! The JSON of the page. The documentation of [`inspect`](super) states what each field means.
//!
//! All durations are seconds.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::queues::{Queues, TcpState};
use super::snapshot::{self, Group, Site, Snapshot, TIMER_BOUNDS};
use crate::dump::{SocketInfo, TaskInfo, TaskKind, TaskState, WaitsFor, WorkerInfo, WorkerState};
use crate::executor::Id;
use crate::runtime::WorkerMetrics;

/// A summary has at most so many sites. The others are only counted.
const MAX_SITES: usize = 200;

/// A summary has so many of the longest waits, and at most so many of the longest polls.
const LONGEST: usize = 10;

/// A worker that has polled one task for longer is stuck.
const STUCK: Duration = Duration::from_millis(10);

#[derive(Serialize)]
pub(super) struct Summary<'a> {
    program: String,
    pid: u32,
    #[serde(flatten)]
    moment: Moment,
    cpu: f64,
    tasks: usize,
    sockets: usize,
    timers: usize,
    workers: Vec<Worker<'a>>,
    sites: Vec<SiteRow<'a>>,
    more_sites: usize,
    longest_waits: Vec<Task<'a>>,
    longest_polls: Vec<Task<'a>>,
}

/// When the snapshot was made, by the time since the page began, and how long that took.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Moment {
    pub(super) at: f64,
    pub(super) age: f64,
    pub(super) took: f64,
}

#[derive(Serialize)]
struct Worker<'a> {
    index: usize,
    state: &'static str,
    task: Option<TaskName<'a>>,
    since: Option<f64>,
    queued: usize,
    tasks: usize,
    timers: usize,
    sockets: usize,
    polls: u64,
    turns: u64,
    events: u64,
    accepts: u64,
    budget_yields: u64,
    remote_wakes: u64,
    parked: f64,
}

/// As much of a task as another one says about it.
#[derive(Serialize)]
struct TaskName<'a> {
    #[serde(serialize_with = "id")]
    id: Id,
    name: Option<&'a str>,
    site: Option<String>,
}

#[derive(Serialize)]
struct SiteRow<'a> {
    site: &'a str,
    tasks: usize,
    groups: Vec<GroupRow>,
    longest_wait: f64,
    polls: u64,
    busy: Option<f64>,
    longest_poll: Option<f64>,
}

#[derive(Serialize)]
struct GroupRow {
    activity: String,
    tasks: usize,
    longest: f64,
}

/// A part of a list.
#[derive(Serialize)]
pub(super) struct Page<T> {
    #[serde(flatten)]
    pub(super) moment: Moment,
    pub(super) total: usize,
    pub(super) offset: usize,
    #[serde(flatten)]
    pub(super) rows: T,
}

#[derive(Serialize)]
pub(super) struct Tasks<'a> {
    tasks: Vec<Task<'a>>,
}

#[derive(Serialize)]
struct Task<'a> {
    #[serde(serialize_with = "id")]
    id: Id,
    name: Option<&'a str>,
    site: String,
    kind: &'static str,
    state: &'static str,
    since: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gave_way: Option<bool>,
    age: f64,
    polls: u64,
    busy: Option<f64>,
    longest_poll: Option<f64>,
    waits_for: Vec<Wait<'a>>,
}

#[derive(Serialize)]
struct Wait<'a> {
    kind: &'static str,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Socket(SocketName<'a>),
    Timer {
        #[serde(rename = "in")]
        left: f64,
    },
    Task(TaskName<'a>),
}

#[derive(Serialize)]
struct SocketName<'a> {
    fd: i32,
    local: Option<&'a str>,
    peer: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Sockets<'a> {
    sockets: Vec<Socket<'a>>,
}

#[derive(Serialize)]
struct Socket<'a> {
    #[serde(flatten)]
    name: SocketName<'a>,
    tcp: Option<TcpState>,
    receive_queue: Option<u32>,
    send_queue: Option<u32>,
    task: Option<TaskName<'a>>,
    waits: Option<&'static str>,
    since: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Timers {
    #[serde(flatten)]
    moment: Moment,
    total: usize,
    next: Option<f64>,
    timers: Vec<TimerRow>,
}

#[derive(Serialize)]
struct TimerRow {
    /// `None` for the timers that fire later than all bounds.
    within: Option<f64>,
    timers: usize,
}

impl<'a> Summary<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, moment: Moment) -> Self {
        let dump = &snapshot.dump;
        let sites = snapshot.sites.iter().take(MAX_SITES).map(SiteRow::new).collect();
        let workers = dump.workers().iter().zip(snapshot.metrics.workers());
        Self {
            program: program(),
            pid: std::process::id(),
            moment,
            cpu: snapshot.cpu.as_secs_f64(),
            tasks: dump.tasks().len(),
            sockets: dump.sockets().len(),
            timers: dump.timers().len(),
            workers: workers.map(|(worker, metrics)| Worker::new(snapshot, worker, metrics)).collect(),
            sites,
            more_sites: snapshot.sites.len().saturating_sub(MAX_SITES),
            longest_waits: snapshot.longest_waits(LONGEST).map(|task| Task::new(snapshot, task)).collect(),
            longest_polls: snapshot.longest_polls().map(|task| Task::new(snapshot, task)).collect(),
        }
    }
}

/// The name of the program, without its folder.
fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&path).file_name().unwrap_or(&path).to_string_lossy().into_owned()
}

impl<'a> Worker<'a> {
    fn new(snapshot: &'a Snapshot, worker: &WorkerInfo, metrics: &WorkerMetrics) -> Self {
        let (state, task, since) = match worker.state {
            WorkerState::Running { task, since } => (if since > STUCK { "stuck" } else { "busy" }, task, Some(since)),
            WorkerState::Spinning => ("spinning", None, None),
            WorkerState::Blocked => ("blocked", None, None),
            WorkerState::Stopped => ("stopped", None, None),
        };
        Self {
            index: worker.index,
            state,
            task: task.map(|id| TaskName::new(snapshot, id)),
            since: seconds(since),
            queued: worker.queued,
            tasks: metrics.tasks_alive,
            timers: metrics.timers_armed,
            sockets: metrics.sources_registered,
            polls: metrics.polls,
            turns: metrics.turns,
            events: metrics.events,
            accepts: metrics.accepts,
            budget_yields: metrics.budget_yields,
            remote_wakes: metrics.remote_wakes,
            parked: metrics.parked.as_secs_f64(),
        }
    }
}

impl<'a> TaskName<'a> {
    fn new(snapshot: &'a Snapshot, id: Id) -> Self {
        let tasks = snapshot.dump.tasks();
        // The tasks are in the order of their ids.
        let task = tasks.binary_search_by_key(&id, |task| task.id).ok().map(|index| &tasks[index]);
        let name = task.and_then(|task| task.name.as_deref());
        Self { id, name, site: task.map(|task| snapshot::site_name(task.location)) }
    }
}

impl<'a> SiteRow<'a> {
    fn new(site: &'a Site) -> Self {
        let group = |Group { activity, tasks, longest }: &Group| GroupRow {
            activity: activity.name(),
            tasks: *tasks,
            longest: longest.as_secs_f64(),
        };
        let longest = site.groups.iter().map(|group| group.longest).max();
        Self {
            site: &site.name,
            tasks: site.len(),
            groups: site.groups.iter().map(group).collect(),
            longest_wait: longest.unwrap_or_default().as_secs_f64(),
            polls: site.polls,
            busy: seconds(site.busy),
            longest_poll: seconds(site.longest_poll),
        }
    }
}

impl<'a> Tasks<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, tasks: &[&'a TaskInfo]) -> Self {
        Self { tasks: tasks.iter().map(|task| Task::new(snapshot, task)).collect() }
    }
}

impl<'a> Task<'a> {
    fn new(snapshot: &'a Snapshot, task: &'a TaskInfo) -> Self {
        let (state, worker, gave_way) = match task.state {
            TaskState::Running { worker, .. } => ("running", worker, None),
            TaskState::Queued { gave_way, .. } => ("queued", None, Some(gave_way)),
            TaskState::Waiting { .. } => ("waiting", None, None),
        };
        Self {
            id: task.id,
            name: task.name.as_deref(),
            site: snapshot::site_name(task.location),
            kind: match task.kind {
                TaskKind::Shared => "shared",
                TaskKind::Local => "local",
                TaskKind::Blocking => "blocking",
            },
            state,
            since: task.since().as_secs_f64(),
            worker,
            gave_way,
            age: task.age.as_secs_f64(),
            polls: task.polls,
            busy: seconds(task.busy),
            longest_poll: seconds(task.longest_poll),
            waits_for: task.waits_for.iter().map(|waits_for| Wait::new(snapshot, waits_for)).collect(),
        }
    }
}

impl<'a> Wait<'a> {
    fn new(snapshot: &'a Snapshot, waits_for: &'a WaitsFor) -> Self {
        let what = match waits_for {
            WaitsFor::Reading(socket) | WaitsFor::Writing(socket) | WaitsFor::Accepting(socket) => {
                What::Socket(SocketName::new(socket))
            }
            WaitsFor::Timer { deadline } => {
                What::Timer { left: deadline.saturating_duration_since(snapshot.at).as_secs_f64() }
            }
            WaitsFor::Task(id) => What::Task(TaskName::new(snapshot, *id)),
        };
        Self { kind: snapshot::word(waits_for), what }
    }
}

impl<'a> SocketName<'a> {
    fn new(socket: &'a SocketInfo) -> Self {
        Self { fd: socket.fd, local: socket.local.as_deref(), peer: socket.peer.as_deref() }
    }
}

impl<'a> Sockets<'a> {
    /// The sockets from `offset` on, `limit` at most. The kernel is asked for their queues, and for no others.
    pub(super) fn new(snapshot: &'a Snapshot, offset: usize, limit: usize) -> Self {
        let queues = Queues::open();
        let sockets = snapshot.sockets().skip(offset).take(limit);
        let row = |(socket, task): (&'a SocketInfo, Option<&'a TaskInfo>)| {
            let (local, peer) = (socket.local.as_deref(), socket.peer.as_deref());
            let sizes = queues.as_ref().and_then(|queues| queues.of(socket.fd, local?, peer));
            Socket {
                name: SocketName::new(socket),
                tcp: sizes.map(|sizes| sizes.state),
                receive_queue: sizes.map(|sizes| sizes.receive),
                send_queue: sizes.map(|sizes| sizes.send),
                task: task.map(|task| TaskName::new(snapshot, task.id)),
                waits: task.and_then(|task| wait_for(task, socket)),
                since: seconds(task.map(TaskInfo::since)),
            }
        };
        Self { sockets: sockets.map(row).collect() }
    }
}

/// The word for what `task` does with `socket`. Writing comes before reading, as it does in the order of the sockets.
fn wait_for(task: &TaskInfo, socket: &SocketInfo) -> Option<&'static str> {
    let is_same = |waits_for: &&WaitsFor| match waits_for {
        WaitsFor::Reading(other) | WaitsFor::Writing(other) | WaitsFor::Accepting(other) => other.fd == socket.fd,
        WaitsFor::Timer { .. } | WaitsFor::Task(_) => false,
    };
    let waits = task.waits_for.iter().filter(is_same);
    waits.max_by_key(|waits_for| matches!(waits_for, WaitsFor::Writing(_))).map(snapshot::word)
}

impl Timers {
    pub(super) fn new(snapshot: &Snapshot, moment: Moment) -> Self {
        let bounds = TIMER_BOUNDS.iter().map(|bound| Some(bound.as_secs_f64())).chain([None]);
        let rows = bounds.zip(snapshot.timers).map(|(within, timers)| TimerRow { within, timers });
        let next = snapshot.dump.timers().iter().min();
        Self {
            moment,
            total: snapshot.dump.timers().len(),
            next: seconds(next.map(|next| next.saturating_duration_since(snapshot.at))),
            timers: rows.collect(),
        }
    }
}

/// A string, because many readers of JSON take a number for an f64.
fn id<S: Serializer>(id: &Id, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}
