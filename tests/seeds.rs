//! The order of tasks under a seed: what it shuffles, what keeps its order, and that it is the same each time.

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use kittiwake::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, duplex};
use kittiwake::runtime::{Builder, Handle};
use kittiwake::task::{JoinSet, consume_budget, yield_now};
use kittiwake::time::{Duration, Instant, advance, sleep};
use support::{CHILD, is_child, within};

/// Runs a future with a paused clock under a seed.
fn run_seeded<F: Future>(seed: u64, future: F) -> F::Output {
    let builder = Builder::new_current_thread().start_paused(true).rng_seed(seed);
    builder.build().expect("a runtime with a seed").block_on(future)
}

// ---- the same order ----

/// The events of a program, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, event: String) {
        self.0.lock().unwrap().push(event);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Servers and clients over `duplex` with timers, yields, local tasks and an abort. Returns what happened.
async fn program() -> Vec<String> {
    let log = Log::default();
    let mut tasks = JoinSet::new();
    for client in 0..6_u64 {
        let (near, far) = duplex(4);
        let (log, server_log) = (log.clone(), log.clone());
        let server = tasks.spawn(async move {
            let mut lines = BufReader::new(far).lines();
            while let Some(line) = kittiwake::stream::StreamExt::next(&mut lines).await {
                server_log.add(format!("server {client}: {}", line.unwrap_or_default()));
            }
        });
        tasks.spawn(async move {
            let mut near = near;
            for request in 0..3 {
                sleep(Duration::from_millis(client % 3)).await;
                let line = format!("request {request} is long\n");
                if near.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
                yield_now().await;
                log.add(format!("client {client}"));
            }
            if client == 5 {
                server.abort();
            }
        });
    }
    let local = kittiwake::spawn_local({
        let log = log.clone();
        async move {
            for _ in 0..3 {
                log.add("local".to_owned());
                yield_now().await;
            }
        }
    });
    while tasks.join_next().await.is_some() {}
    local.await.expect("the local task");
    log.take()
}

/// The same seed and the same program give the same order, again and again.
#[test]
fn same_seed_gives_same_order() {
    within(|| {
        for seed in 0..20 {
            let first = run_seeded(seed, program());
            let second = run_seeded(seed, program());
            assert_eq!(first, second, "the order of seed {seed} is not the same again");
        }
    });
}

/// The order does not depend on addresses, hashes or times of the process.
#[test]
fn same_seed_orders_each_process() {
    if is_child() {
        return println!("{:?}", run_seeded(7, program()));
    }
    let program = std::env::current_exe().expect("the path of this test program");
    let outputs = [(); 4].map(|()| {
        let mut child = Command::new(&program);
        child.args(["--exact", "same_seed_orders_each_process", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
        let output = child.output().expect("the child runs").stdout;
        let output = String::from_utf8(output).expect("text");
        let (_, order) = output.split_once("[\"").expect("the child prints its order");
        order.lines().next().expect("the order is one line").to_owned()
    });
    assert!(outputs.iter().all(|output| *output == outputs[0]), "the order is not that of each process: {outputs:#?}");
}

/// A seed that gives the order of another one finds nothing new.
#[test]
fn different_seeds_give_different_orders() {
    within(|| {
        let orders: BTreeSet<_> = (0..20).map(|seed| run_seeded(seed, program())).collect();
        assert_eq!(orders.len(), 20, "20 seeds must give 20 orders");
    });
}

/// Tasks that are spawned together run in each order, also if they wait for the same timer.
#[test]
fn each_order_of_tasks_comes() {
    async fn order(pause: bool) -> Vec<usize> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for number in 0..3 {
            let log = log.clone();
            tasks.spawn(async move {
                if pause {
                    sleep(Duration::from_secs(1)).await;
                }
                log.lock().unwrap().push(number);
            });
        }
        while tasks.join_next().await.is_some() {}
        Arc::into_inner(log).expect("the tasks have ended").into_inner().unwrap()
    }
    within(|| {
        for pause in [false, true] {
            let orders: BTreeSet<_> = (0..60).map(|seed| run_seeded(seed, order(pause))).collect();
            assert_eq!(orders.len(), 6, "60 seeds must give each order of three tasks: {orders:?}");
        }
    });
}

/// A chain of wakes may overtake a shorter one that began at the same time.
#[test]
fn longer_chains_overtake_shorter_ones() {
    async fn chain(length: usize, end: impl FnOnce() + Send + 'static) {
        for _ in 0..length {
            kittiwake::spawn(async {}).await.expect("a link of the chain");
        }
        end();
    }
    async fn winner() -> usize {
        let first = Arc::new(AtomicUsize::new(0));
        let mut chains = JoinSet::new();
        for length in [4, 6] {
            let first = first.clone();
            let end = move || {
                // The second chain to end finds the length of the first.
                let _ = first.compare_exchange(0, length, Ordering::Relaxed, Ordering::Relaxed);
            };
            chains.spawn(chain(length, end));
        }
        while chains.join_next().await.is_some() {}
        first.load(Ordering::Relaxed)
    }
    within(|| {
        let winners: BTreeSet<_> = (0..50).map(|seed| run_seeded(seed, winner())).collect();
        assert_eq!(winners, BTreeSet::from([4, 6]), "under some seed the longer chain must end first");
    });
}

// ---- what keeps its order ----

/// A task that others make ready, and how often it has run since.
#[derive(Default)]
struct Sleeper {
    /// How often it was made ready, and its waker.
    woken: Mutex<(usize, Option<Waker>)>,
    runs: AtomicUsize,
}

impl Sleeper {
    fn wake(&self) {
        let mut woken = self.woken.lock().unwrap();
        woken.0 += 1;
        let waker = woken.1.take();
        drop(woken);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The task. It runs once for each wake.
    async fn run(self: Arc<Self>) {
        let mut seen = 0;
        loop {
            poll_fn(|cx| {
                let mut woken = self.woken.lock().unwrap();
                if woken.0 > seen {
                    return Poll::Ready(());
                }
                woken.1 = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            seen += 1;
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes tasks ready, gives way by `give_way`, and fails if a task that was ready has not run meanwhile.
async fn check_order<F: Future<Output = ()>>(sleepers: Vec<Arc<Sleeper>>, rounds: usize, give_way: impl Fn() -> F) {
    for round in 1..=rounds {
        sleepers.iter().for_each(|sleeper| sleeper.wake());
        give_way().await;
        for sleeper in &sleepers {
            let runs = sleeper.runs.load(Ordering::Relaxed);
            assert!(runs >= round, "a task goes on in round {round}, and one that was ready has run {runs} times");
        }
    }
}

/// `yield_now` keeps its word under each seed: all that is ready runs before the task goes on. This holds for tasks, for
/// local ones and for the future of `block_on`, with other tasks beside them that yield too.
#[test]
fn seed_keeps_the_word_of_yield() {
    fn sleepers(count: usize) -> Vec<Arc<Sleeper>> {
        let sleepers: Vec<Arc<Sleeper>> = (0..count).map(|_| Arc::default()).collect();
        sleepers.iter().for_each(|sleeper| drop(kittiwake::spawn_local(sleeper.clone().run())));
        sleepers
    }
    async fn all() {
        drop(kittiwake::spawn(support::busy()));
        let mut tasks = JoinSet::new();
        for count in [1, 3, 5] {
            tasks.spawn(check_order(sleepers(count), 30, yield_now));
            tasks.spawn_local(check_order(sleepers(count), 30, yield_now));
        }
        check_order(sleepers(4), 30, yield_now).await;
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a task that gives way");
        }
    }
    within(|| (0..20).for_each(|seed| run_seeded(seed, all())));
}

/// The clock stops at each deadline on the way of `advance` until the tasks have run that the deadline wakes.
#[test]
fn seed_keeps_the_word_of_advance() {
    within(|| {
        for seed in 0..50 {
            let late = run_seeded(seed, async {
                let start = Instant::now();
                let mut sleepers = JoinSet::new();
                for second in 1..=3_u32 {
                    sleepers.spawn(async move {
                        sleep(Duration::from_secs(1) * second).await;
                        start.elapsed() - Duration::from_secs(1) * second
                    });
                }
                yield_now().await;
                advance(Duration::from_secs(100)).await;
                sleepers.join_all().await
            });
            // A deadline is rounded up to a tick.
            assert!(
                late.iter().all(|late| late.as_millis() == 0),
                "seed {seed}: the clock went on too early: {late:?}"
            );
        }
    });
}

/// On several workers the word holds for the local tasks of one of them.
#[test]
fn seed_keeps_the_word_of_local_yield() {
    within(|| {
        for seed in 0..20 {
            let runtime = Builder::new_multi_thread().worker_threads(2).rng_seed(seed).build().expect("a runtime");
            let on_worker = support::on_each_worker(runtime.handle(), 2, move |_| {
                let sleepers: Vec<Arc<Sleeper>> = (0..3).map(|_| Arc::default()).collect();
                sleepers.iter().for_each(|sleeper| drop(kittiwake::spawn_local(sleeper.clone().run())));
                kittiwake::spawn_local(check_order(sleepers, 30, yield_now))
            });
            for task in on_worker {
                runtime.block_on(task).expect("a local task that gives way");
            }
        }
    });
}

/// On several workers a shared task that yields goes on after all that was ready, under each seed too. The tasks that become
/// ready before those have run are more than these, and must not be mixed with them.
#[test]
fn seed_keeps_the_word_of_shared_yield() {
    within(|| {
        for seed in 0..60 {
            let runtime = Builder::new_multi_thread().worker_threads(2).rng_seed(seed).build().expect("a runtime");
            // So that the other worker steals none of the tasks.
            let _blocked = support::block_workers(runtime.handle(), 1);
            let spawner = runtime.handle().spawn(async {
                // The next batches have one task each.
                support::spin(Duration::from_millis(5));
                for _ in 0..5 {
                    drop(kittiwake::spawn(async { (0..3).for_each(|_| drop(kittiwake::spawn(async {}))) }));
                }
                let yielding = async {
                    let ready = kittiwake::spawn(async {});
                    yield_now().await;
                    ready.is_finished()
                };
                kittiwake::spawn(yielding).await.expect("the task ends")
            });
            assert!(runtime.block_on(spawner).unwrap(), "seed {seed}: a task was ready before the yield");
        }
    });
}

/// A task that has used up its budget comes last under each seed.
#[test]
fn seed_keeps_the_order_of_budgets() {
    async fn use_up() {
        // 128 operations are the budget of a poll.
        for _ in 0..129 {
            consume_budget().await;
        }
    }
    async fn all() {
        // More than a batch: when it is cut, some of them are still to run before the task that has given way.
        let sleepers: Vec<Arc<Sleeper>> = (0..100).map(|_| Arc::default()).collect();
        sleepers.iter().for_each(|sleeper| drop(kittiwake::spawn(sleeper.clone().run())));
        kittiwake::spawn(check_order(sleepers, 10, use_up)).await.expect("a task that uses up its budget");
    }
    within(|| (0..20).for_each(|seed| run_seeded(seed, all())));
}

/// Tasks that other threads have spawned come before a task that yields, under each seed too.
#[test]
fn seed_keeps_remote_tasks_before_yield() {
    within(|| {
        for seed in 0..20 {
            run_seeded(seed, async {
                let handle = Handle::current();
                for _ in 0..10 {
                    let handle = handle.clone();
                    let spawned = std::thread::spawn(move || handle.spawn(async {})).join().expect("a thread");
                    yield_now().await;
                    assert!(spawned.is_finished(), "the task of another thread waits behind one that yields");
                }
            });
        }
    });
}

// ---- finding bugs ----

/// A box office with one ticket. Its handler checks that, and sells it after it has waited.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, left: Rc<Cell<u32>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        match line.trim_end() {
            "buy" if left.get() > 0 => {
                // The planted bug: another handler runs while this one waits for its client to read.
                stream.get_mut().write_all(b"here is your ticket\n").await?;
                left.set(left.get().saturating_sub(1));
            }
            "buy" => stream.get_mut().write_all(b"sold out\n").await?,
            _ => stream.get_mut().write_all(b"hello\n").await?,
        }
        line.clear();
    }
    Ok(())
}

/// Buys the ticket, after some greetings. Returns whether it was there.
async fn buy(stream: DuplexStream, greetings: usize) -> io::Result<bool> {
    let mut stream = BufReader::new(stream);
    let mut reply = String::new();
    for _ in 0..greetings {
        stream.get_mut().write_all(b"hello\n").await?;
        stream.read_line(&mut reply).await?;
        reply.clear();
    }
    stream.get_mut().write_all(b"buy\n").await?;
    stream.read_line(&mut reply).await?;
    Ok(reply == "here is your ticket\n")
}

/// Two clients buy. Returns how many have got the only ticket.
async fn sales() -> usize {
    let left = Rc::new(Cell::new(1));
    let mut clients = JoinSet::new();
    for greetings in [0, 2] {
        let (client, server) = duplex(16);
        drop(kittiwake::spawn_local(serve(server, left.clone())));
        clients.spawn_local(buy(client, greetings));
    }
    let mut sales = 0;
    while let Some(sold) = clients.join_next().await {
        sales += usize::from(sold.expect("a client").expect("a connection in memory"));
    }
    sales
}

/// The seeds, of the first twenty, under which the ticket is sold twice.
fn seeds_of_the_race() -> Vec<u64> {
    (0..20).filter(|seed| run_seeded(*seed, sales()) > 1).collect()
}

/// A check that another task invalidates before the act stays hidden in the usual order. Twenty seeds find it, and each
/// that does so finds it again.
#[test]
fn seeds_find_a_planted_race() {
    within(|| {
        let found = seeds_of_the_race();
        assert!(!found.is_empty() && found.len() < 20, "some of 20 seeds must find the race: {found:?}");
        assert_eq!(seeds_of_the_race(), found, "the seeds that find the race must find it again");
        if !cfg!(kittiwake_rng_seed) {
            let usual = support::paused_runtime().block_on(sales());
            assert_eq!(usual, 1, "the race is no example: the usual order shows it");
        }
    });
}

/// The tests that `failing_seed_is_named` runs.
#[cfg(feature = "macros")]
mod failing {
    use super::*;

    #[kittiwake::test(start_paused, seeds = 20)]
    #[ignore = "it fails under some seeds"]
    async fn race_panics() {
        assert_eq!(sales().await, 1, "the ticket was sold twice");
    }

    #[kittiwake::test(seeds = 20, start_paused)]
    #[ignore = "it fails under some seeds"]
    async fn race_is_an_error() -> Result<(), String> {
        if sales().await == 1 { Ok(()) } else { Err("the ticket was sold twice".to_owned()) }
    }
}

/// A test of an attribute with seeds that fails names the first seed that fails, and fails with its own panic or error.
/// The environment can name the only seed to run.
#[cfg(feature = "macros")]
#[test]
fn failing_seed_is_named() {
    let found = seeds_of_the_race();
    let passes = (0..20).find(|seed| !found.contains(seed)).expect("a seed that does not find the race");
    for name in ["race_panics", "race_is_an_error"] {
        let run = |seed: Option<u64>| {
            let mut child = Command::new(std::env::current_exe().expect("the path of this test program"));
            child.args(["--exact", &format!("failing::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
            child.env_remove("KITTIWAKE_TEST_SEED").envs(seed.map(|seed| ("KITTIWAKE_TEST_SEED", seed.to_string())));
            let output = child.output().expect("the child runs");
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text")).concat();
            assert!(text.contains("running 1 test"), "there is no test {name}: {text}");
            (output.status.success(), text)
        };
        for seed in [None, Some(*found.last().expect("a seed"))] {
            let (succeeds, text) = run(seed);
            let seed = seed.unwrap_or(found[0]);
            let line = format!(
                "{name} failed with seed {seed}. To run this seed alone: KITTIWAKE_TEST_SEED={seed} cargo test {name}\n"
            );
            assert!(!succeeds && text.contains(&line), "the test must fail, and say: {line}It said: {text}");
            assert!(text.contains("the ticket was sold twice"), "the failure must be that of the body: {text}");
        }
        let (succeeds, text) = run(Some(passes));
        assert!(succeeds, "seed {passes} alone must pass: {text}");
    }
}

// ---- several workers ----

/// A runtime with several workers and a seed runs all its tasks, wherever they are woken.
#[test]
fn seeded_workers_complete() {
    within(|| {
        for (seed, count) in (0..20).zip([2, 3, 4].into_iter().cycle()) {
            let runtime = Builder::new_multi_thread().worker_threads(count).rng_seed(seed).build().expect("a runtime");
            let total = runtime.block_on(async {
                let (send, receive) = async_channel::bounded(4);
                let mut tasks = JoinSet::new();
                for number in 0..100_usize {
                    let send = send.clone();
                    tasks.spawn(async move {
                        for _ in 0..number % 5 {
                            yield_now().await;
                        }
                        sleep(Duration::from_micros(number as u64)).await;
                        send.send(number).await.expect("the receiver lives");
                    });
                }
                drop(send);
                let mut total = 0;
                while let Ok(number) = receive.recv().await {
                    total += number;
                }
                while tasks.join_next().await.is_some() {}
                total
            });
            assert_eq!(total, 4950, "with seed {seed} and {count} workers");
        }
    });
}
