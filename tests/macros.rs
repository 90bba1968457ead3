//! The attributes `#[kittiwake::main]` and `#[kittiwake::test]`: the runtimes that they make, and the functions that they
//! take. `tests/compile/macros_*.rs` has their mistakes.

#![cfg(feature = "macros")]

mod support;

use std::cell::Cell;
use std::io;
use std::process::{ExitCode, Termination};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::Handle;
use kittiwake::time::{Instant, sleep};
use support::panic_of;

// ---- main ----

/// Without arguments the body runs beside a worker for each core, as in `Runtime::new()`.
#[test]
fn main_has_a_worker_per_core() {
    #[kittiwake::main]
    async fn main() -> (usize, bool) {
        (workers(), spawned_elsewhere().await)
    }
    let expected = kittiwake::runtime::Runtime::new().unwrap().handle().metrics().workers().len();
    assert_eq!(main(), (expected, true), "the number of workers, and whether tasks run on them");
}

/// `worker_threads` is the number of workers.
#[test]
fn main_has_the_given_workers() {
    #[kittiwake::main(worker_threads = 3)]
    async fn main() -> (usize, bool) {
        (workers(), spawned_elsewhere().await)
    }
    assert_eq!(main(), (3, true), "the number of workers, and whether tasks run on them");
}

/// With `current_thread` the calling thread runs everything. So the body of `main` may hold what is not `Send`.
#[test]
fn current_thread_runs_everything() {
    #[kittiwake::main(current_thread)]
    async fn main() -> (bool, u8) {
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        kittiwake::spawn_local(async move { counted.set(1) }).await.unwrap();
        (spawned_elsewhere().await, count.get())
    }
    assert_eq!(main(), (false, 1), "whether tasks run elsewhere, and the count");
}

/// A flag may be written out, and arguments may end with a comma.
#[test]
fn arguments_have_two_forms() {
    #[kittiwake::main(current_thread = true)]
    async fn one() -> bool {
        spawned_elsewhere().await
    }
    #[kittiwake::main(current_thread = false, worker_threads = 1_0usize)]
    async fn ten() -> usize {
        workers()
    }
    #[kittiwake::main()]
    async fn empty() -> bool {
        spawned_elsewhere().await
    }
    assert_eq!((one(), ten(), empty()), (false, 10, true));
}

/// The function returns what its body returns, whatever the type. `?` and `return` end the body.
#[test]
fn any_output_is_returned() {
    #[kittiwake::main(current_thread)]
    async fn fails() -> Result<u8, Box<dyn std::error::Error>> {
        let number = "no number".parse::<u8>()?;
        Ok(number)
    }
    #[kittiwake::main(current_thread)]
    async fn hidden() -> impl Termination {
        ExitCode::from(7)
    }
    #[kittiwake::main(current_thread)]
    async fn braces() -> [u8; {
        const LENGTH: usize = 2;
        LENGTH
    }]
    where
        String: Clone,
    {
        if workers() == 1 {
            return [1, 2];
        }
        [3, 4]
    }
    #[kittiwake::main(current_thread)]
    async fn never_ends() -> ! {
        panic!("the body panics")
    }
    assert_eq!(fails().unwrap_err().to_string(), "invalid digit found in string");
    assert_eq!(hidden().report(), ExitCode::from(7));
    assert_eq!(braces(), [1, 2]);
    assert_eq!(panic_of(|| never_ends()), "the body panics", "a panic of the body goes on to the caller");
}

/// Sockets work in the runtime, and its tasks are dropped when the body ends.
#[test]
fn tasks_end_with_the_body() {
    #[kittiwake::main(worker_threads = 2)]
    async fn main() -> io::Result<Rc<()>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let connected = kittiwake::spawn(TcpStream::connect(address));
        listener.accept().await?;
        let _stream = connected.await??;
        let held = Rc::new(());
        let holds = Rc::clone(&held);
        kittiwake::spawn_local(async move {
            std::future::pending::<()>().await;
            drop(holds);
        });
        Ok(held)
    }
    assert_eq!(Rc::strong_count(&main().unwrap()), 1, "the local task must be dropped");
}

// ---- test ----

/// Without arguments the thread of the test runs everything.
#[kittiwake::test]
async fn test_runs_on_one_thread() {
    assert!(!spawned_elsewhere().await, "the task must run on the thread of the test");
}

/// `worker_threads` is the number of workers.
#[kittiwake::test(worker_threads = 2)]
async fn test_has_the_given_workers() {
    assert_eq!(workers(), 2);
    assert!(spawned_elsewhere().await, "the task must run on a worker");
}

/// A paused clock advances to the next timer, so half a minute takes no time.
#[kittiwake::test(start_paused)]
async fn paused_test_takes_no_time() {
    let (start, real) = (Instant::now(), std::time::Instant::now());
    sleep(Duration::from_secs(30)).await;
    assert!(start.elapsed() >= Duration::from_secs(30));
    assert!(real.elapsed() < Duration::from_secs(30), "the clock must be paused");
}

/// The flag may be written out. `false` is the clock of the system.
#[kittiwake::test(start_paused = false)]
async fn clock_runs_by_default() {
    let (start, real) = (Instant::now(), std::time::Instant::now());
    sleep(Duration::from_millis(1)).await;
    assert!(real.elapsed() >= Duration::from_millis(1) && start.elapsed() >= Duration::from_millis(1));
}

/// A test may return a `Result`.
#[kittiwake::test]
async fn test_returns_result() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    assert!(listener.local_addr()?.ip().is_loopback());
    Ok(())
}

/// A test with seeds runs once for each of them, each time in a new runtime, until it fails.
#[test]
fn each_seed_runs_the_body() {
    assert_eq!(succeeds_seven_times(), ExitCode::SUCCESS);
    assert_eq!(RUNS.load(Ordering::Relaxed), 7);
    assert_ne!(fails_at_the_third(), ExitCode::SUCCESS);
    assert_eq!(RUNS.load(Ordering::Relaxed), 4, "the test must end with the first error");
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

#[kittiwake::test(seeds = 7, start_paused)]
#[ignore = "`each_seed_runs_the_body` calls it"]
async fn succeeds_seven_times() -> io::Result<()> {
    assert_eq!(Handle::current().metrics().tasks_alive(), 0, "a task of the seed before is here");
    drop(kittiwake::spawn(std::future::pending::<()>()));
    RUNS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

#[kittiwake::test(seeds = 20)]
#[ignore = "`each_seed_runs_the_body` calls it"]
async fn fails_at_the_third() -> Result<(), String> {
    if RUNS.fetch_sub(1, Ordering::Relaxed) > 5 { Ok(()) } else { Err("as expected".to_owned()) }
}

/// A test with seeds may have several workers.
#[kittiwake::test(worker_threads = 2, seeds = 3)]
async fn seeds_have_workers() {
    assert_eq!(workers(), 2);
    assert!(spawned_elsewhere().await, "the task must run on a worker");
}

/// A panic under the first seeds is one of the test.
#[kittiwake::test(seeds = 3)]
#[should_panic = "as expected"]
async fn panic_fails_the_seed() {
    panic!("as expected");
}

/// A result that is written out and says nothing is none: `#[should_panic]` allows no other.
#[kittiwake::test(seeds = 3)]
#[should_panic = "as expected"]
#[allow(clippy::unused_unit)]
async fn panic_without_result_fails_the_seed() -> () {
    panic!("as expected");
}

/// A panic of the body is one of the test, and other attributes stay.
#[kittiwake::test]
#[should_panic = "as expected"]
#[cfg_attr(all(), allow(unreachable_code))]
async fn panic_fails_the_test() {
    panic!("as expected");
    sleep(Duration::ZERO).await;
}

/// An ignored test is not run.
#[kittiwake::test]
#[ignore = "it would fail"]
async fn ignored_test_is_ignored() {
    panic!("this test must be ignored");
}

/// An attribute that was imported does not take the place of the `#[test]` in its own expansion.
mod imported {
    use kittiwake::test;

    #[test]
    async fn attribute_can_be_imported() {
        assert_eq!(super::workers(), 1);
    }
}

// ---- helpers ----

/// The number of workers of the runtime of this thread.
fn workers() -> usize {
    Handle::current().metrics().workers().len()
}

/// Whether a spawned task runs on another thread.
async fn spawned_elsewhere() -> bool {
    kittiwake::spawn(async { thread::current().id() }).await.unwrap() != thread::current().id()
}
