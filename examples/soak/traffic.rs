//! The state that clients, servers and the main thread share: counts, and the progress of each client.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server::Server;
use crate::verdict::fail;
use crate::wire::Random;

pub(crate) struct Traffic {
    pub(crate) counts: Counts,
    progress: Vec<Progress>,
    /// Seconds that the main thread has lived through. A process that was stopped does not count the time.
    clock: Arc<AtomicU64>,
    servers: Mutex<Vec<Arc<Server>>>,
    must_pause: AtomicBool,
    clients: AtomicUsize,
}

impl Traffic {
    pub(crate) fn new(clients: usize) -> Self {
        let clock = Arc::<AtomicU64>::default();
        let progress = || Progress { clock: clock.clone(), last: AtomicU64::new(0), doing: Mutex::default() };
        Self {
            counts: Counts::default(),
            progress: (0..clients).map(|_| progress()).collect(),
            clock,
            servers: Mutex::default(),
            must_pause: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
        }
    }

    // ---- for the clients ----

    pub(crate) fn must_pause(&self) -> bool {
        self.must_pause.load(Ordering::Relaxed)
    }

    pub(crate) fn choose_server(&self, random: &mut Random) -> Arc<Server> {
        let servers = self.servers.lock().expect("no panic");
        servers[random.range(0, servers.len() as u32) as usize].clone()
    }

    pub(crate) fn progress(&self, client: usize) -> &Progress {
        &self.progress[client]
    }

    /// Counts a client until the guard is dropped.
    pub(crate) fn client_runs(&self) -> impl Drop + use<'_> {
        struct Guard<'a>(&'a Traffic);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.clients.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.clients.fetch_add(1, Ordering::SeqCst);
        Guard(self)
    }

    // ---- for the main thread ----

    /// Lets clients make connections, or stops them from making new ones.
    pub(crate) fn set_pause(&self, must_pause: bool) {
        self.must_pause.store(must_pause, Ordering::Relaxed);
    }

    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }

    /// Replaces the servers that clients choose from.
    pub(crate) fn set_servers(&self, servers: Vec<Arc<Server>>) {
        *self.servers.lock().expect("no panic") = servers;
    }

    /// Counts a second, and ends the program if a client has made no step for as long as `limit`.
    pub(crate) fn tick(&self, limit: Duration) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        for progress in &self.progress {
            let last = progress.last.load(Ordering::Relaxed);
            if last != IDLE && now.saturating_sub(last) > limit.as_secs() {
                progress.report_overdue(limit);
            }
        }
    }

    /// Forgets the clients. All of them have ended.
    pub(crate) fn forget_clients(&self) {
        for progress in &self.progress {
            progress.last.store(IDLE, Ordering::Relaxed);
            *progress.doing.lock().expect("no panic") = Doing::default();
        }
    }
}

/// Figures that only grow, except the latency.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    /// Bytes that clients have written or checked.
    pub(crate) bytes: AtomicU64,
    /// Connections that ended with their server.
    pub(crate) cut_off: AtomicU64,
    /// In nanoseconds, since the last look.
    worst_latency: AtomicU64,
}

impl Counts {
    pub(crate) fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn note_latency(&self, latency: Duration) {
        self.worst_latency.fetch_max(latency.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The longest time from a request to the end of its answer since the last call.
    pub(crate) fn take_worst_latency(&self) -> Duration {
        Duration::from_nanos(self.worst_latency.swap(0, Ordering::Relaxed))
    }
}

/// The time of a client that does not run.
const IDLE: u64 = u64::MAX;

/// When a client has last made a step, and what it is doing.
pub(crate) struct Progress {
    clock: Arc<AtomicU64>,
    last: AtomicU64,
    doing: Mutex<Doing>,
}

#[derive(Default)]
struct Doing {
    what: String,
    /// The client's address and its server.
    connection: Option<(SocketAddr, Arc<Server>)>,
}

impl Progress {
    /// Notes that the client has sent, received or ended something.
    pub(crate) fn step(&self) {
        self.last.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Notes what the client begins, and on which connection.
    pub(crate) fn begin(&self, what: impl FnOnce() -> String, connection: Option<(SocketAddr, Arc<Server>)>) {
        *self.doing.lock().expect("no panic") = Doing { what: what(), connection };
        self.step();
    }

    pub(crate) fn what(&self) -> String {
        self.doing.lock().expect("no panic").what.clone()
    }

    /// Ends the program with what is known about the client's connection.
    fn report_overdue(&self, limit: Duration) -> ! {
        let Doing { what, connection } = &*self.doing.lock().expect("no panic");
        let handler = match connection {
            None => "no connection".to_owned(),
            Some((_, server)) if server.is_ending() => "its server has ended".to_owned(),
            Some((client, server)) => {
                let dump = server.handle.tasks();
                // `serve` names a handler by its peer.
                let name = client.to_string();
                let handler = dump.tasks().iter().find(|task| task.name.as_deref() == Some(&*name));
                handler.map_or("no handler runs for it".to_owned(), |handler| format!("its handler: {handler:?}"))
            }
        };
        fail(&format!("{what}: no byte for {limit:?}: {handler}"))
    }
}
