//! A worker that is stuck in one task: do the connections and timers of that worker go on?

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Case, Cases, ONLY, Runtime, Server, echo, ping, ping_often};
use crate::program::spin;

/// The connections that ping beside the blocked one.
const OTHERS: usize = 15;

/// The time after the case's begin in which each connection has one ping, so that its task waits on some worker.
const BEGIN: Duration = Duration::from_millis(50);

pub(super) fn run<R: Runtime>(cases: &Cases) {
    cases.run_for::<R, _>("broker that is never pending", 4 * cases.time, broker::<R>);
    let block = 8 * cases.time;
    let blocked = |case| blocked_handler::<R>(case, 2 * BEGIN, BEGIN, block);
    cases.run_for::<R, _>("blocked handler", block + 2 * BEGIN, blocked);
    let idle = BEGIN + 4 * cases.time;
    let blocked = |case| blocked_handler::<R>(case, idle, idle + BEGIN, block);
    cases.run_for::<R, _>("blocked handler, idle before", block + idle, blocked);
    cases.run::<R, _>("foreign block_on(sleep(10 ms))", foreign_block_on::<R>);
}

/// A handler pushes items into a bounded channel as fast as its client sends. The broker works for each item, and the
/// channel is never empty.
async fn broker<R: Runtime>(case: Arc<Case>) {
    const ITEM: usize = 64;
    let (sender, receiver) = async_channel::bounded(1024);
    R::spawn(async move {
        while receiver.recv().await.is_ok() {
            spin(Duration::from_micros(2));
        }
    });
    let server = Server::<R>::new();
    for _ in 0..16 {
        let stream = case.connect(&server, |case, stream| ping_often(case, stream, ONLY)).await;
        R::spawn(echo::<R>(stream));
    }
    let mut stream = case.connect_flood(&server).await;
    R::spawn(async move {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = R::read(&mut stream, &mut buffer).await {
            for _ in 0..read / ITEM {
                if sender.send([0_u8; ITEM]).await.is_err() {
                    return;
                }
            }
        }
    });
    case.finish::<R>().await;
}

/// One handler blocks its thread for `block`, from `start` on. The other connections ping from `pings` on. Both are times
/// after the case's begin. The note says how many connections go on.
async fn blocked_handler<R: Runtime>(case: Arc<Case>, start: Duration, pings: Duration, block: Duration) {
    let server = Server::<R>::new();
    let (now, go_on) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let (start, pings) = (now + start, now + pings);
    let end = start + block / 2;
    for _ in 0..OTHERS {
        let go_on = go_on.clone();
        let client = move |case: &Case, mut stream: TcpStream| {
            ping(&mut stream);
            sleep_until(pings);
            let answered = ping_from(case, stream, start, end);
            go_on.fetch_add(usize::from(answered >= 10), Ordering::Relaxed);
        };
        R::spawn(echo::<R>(case.connect(&server, client).await));
    }
    let request = move |_: &Case, mut stream: TcpStream| {
        ping(&mut stream);
        sleep_until(start);
        let _ = stream.write_all(b"p");
        let _ = stream.read(&mut [0]);
    };
    let mut stream = case.connect(&server, request).await;
    R::spawn(async move {
        if let Ok(1..) = R::read(&mut stream, &mut [0]).await {
            let _ = R::write_all(&mut stream, b"p").await;
        }
        if let Ok(1..) = R::read(&mut stream, &mut [0]).await {
            thread::sleep(block);
        }
    });
    case.finish::<R>().await;
    case.note(format!("{} of {OTHERS} go on", go_on.load(Ordering::Relaxed)));
}

/// Pings while the case lasts. Adds the pings that end after `start`, and returns how many of them end before `end`.
fn ping_from(case: &Case, mut stream: TcpStream, start: Instant, end: Instant) -> u32 {
    let mut answered = 0;
    while case.goes_on() {
        thread::sleep(Duration::from_millis(3));
        let Some(time) = ping(&mut stream) else { break };
        if Instant::now() > start {
            case.add(ONLY, time);
            answered += u32::from(Instant::now() < end);
        }
    }
    answered
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// A task blocks its thread in another executor, until a timer of its own worker fires.
async fn foreign_block_on<R: Runtime>(case: Arc<Case>) {
    const SLEEP: Duration = Duration::from_millis(10);
    while case.goes_on() {
        let start = Instant::now();
        futures_lite::future::block_on(R::sleep(SLEEP));
        case.add(ONLY, start.elapsed().saturating_sub(SLEEP));
    }
}
