//! Tasks that are ready each time: how late are timers, and how slow are answers, beside them?

use std::sync::Arc;
use std::time::Duration;

use super::{Case, Cases, ONLY, Runtime, Server, echo, ping_often};
use crate::program::spin;

const TIMER: Duration = Duration::from_millis(10);

pub(super) fn run<R: Runtime>(cases: &Cases) {
    beside::<R, _>(cases, "sleep(0)", || R::sleep(Duration::ZERO));
    beside::<R, _>(cases, "timeout(0, pending)", || R::timeout(Duration::ZERO, std::future::pending()));
    beside_interval::<R>(cases, "interval(1 ns)", Duration::from_nanos(1), Duration::ZERO);
    beside_interval::<R>(cases, "interval(1 ms), body 2 ms", Duration::from_millis(1), Duration::from_millis(2));
    for micros in [5, 20] {
        let work = Duration::from_micros(micros);
        cases.run::<R, _>(&format!("flood, {micros} µs a read"), |case| beside_flood::<R>(case, work));
    }
    cases.run::<R, _>("200 heartbeats, flood, yields", heartbeats::<R>);
}

/// Samples a timer beside one such loop for each worker.
fn beside<R: Runtime, F>(cases: &Cases, name: &str, operation: fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let workers = cases.workers;
    cases.run::<R, _>(name, |case| async move {
        for _ in 0..workers {
            let case = case.clone();
            R::spawn(async move {
                while case.goes_on() {
                    operation().await;
                }
            });
        }
        case.sleep_often::<R>(ONLY, TIMER).await;
    });
}

/// As [`beside`], with an interval whose body works.
fn beside_interval<R: Runtime>(cases: &Cases, name: &str, period: Duration, body: Duration) {
    let workers = cases.workers;
    cases.run::<R, _>(name, |case| async move {
        for _ in 0..workers {
            let case = case.clone();
            R::spawn(async move {
                let mut interval = R::interval(period);
                while case.goes_on() {
                    R::tick(&mut interval).await;
                    spin(body);
                }
            });
        }
        case.sleep_often::<R>(ONLY, TIMER).await;
    });
}

/// Reads what never ends, 1,024 bytes at a time, and works for each read.
async fn read_flood<R: Runtime>(mut stream: R::Stream, work: Duration) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = R::read(&mut stream, &mut buffer).await {
        spin(work);
    }
}

/// Samples a sleep and an echo beside a connection that is always readable.
async fn beside_flood<R: Runtime>(case: Arc<Case>, work: Duration) {
    let server = Server::<R>::new();
    let flood = case.connect_flood(&server).await;
    R::spawn(read_flood::<R>(flood, work));
    let pings = case.connect(&server, |case, stream| ping_often(case, stream, ": echo")).await;
    R::spawn(echo::<R>(pings));
    case.sleep_often::<R>(": sleep", Duration::from_millis(1)).await;
    case.finish::<R>().await;
}

/// 200 tasks that sleep again and again, beside a flood and a task that wakes itself.
async fn heartbeats<R: Runtime>(case: Arc<Case>) {
    let server = Server::<R>::new();
    let flood = case.connect_flood(&server).await;
    R::spawn(read_flood::<R>(flood, Duration::from_micros(5)));
    let yields = case.clone();
    R::spawn(async move {
        while yields.goes_on() {
            R::yield_now().await;
        }
    });
    for number in 0..200 {
        let case = case.clone();
        R::spawn(async move {
            // So the beats are spread over the period.
            R::sleep(TIMER * number / 200).await;
            case.sleep_often::<R>(ONLY, TIMER).await;
        });
    }
    case.finish::<R>().await;
}
