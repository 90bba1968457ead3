//! A random test: connections are handed around among runtimes that come and go, and every byte is checked.
//!
//! The subject is a socket that many runtimes, calls and a foreign executor use in turn, with reads and writes that are
//! dropped at any moment. The example `soak` is the other long random run: thousands of connections, each of which lives
//! in one task of one server.
//!
//! `KITTIWAKE_SOAK_SECONDS=1800 cargo test --release --test soak -- --nocapture` runs it for half an hour and prints a
//! line a minute. `KITTIWAKE_SOAK_SEED` sets the seed, which a failure names.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future;
use kittiwake::io::{AsyncRead, AsyncWrite, IoSlice, IoSliceMut};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::{Builder, Handle, Runtime};
use kittiwake::time::timeout;

const CONNECTIONS: usize = 8;

/// No direction may stand still for so long while both of its ends are polled.
const STALL: Duration = Duration::from_secs(20);

/// A small generator (xorshift): the test needs no more.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// The byte at a position of a direction.
fn byte(direction: usize, position: u64) -> u8 {
    let mixed = (position ^ (direction as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// One direction of a connection: the end that writes, the end that reads, and how far each has come.
struct Direction {
    number: usize,
    writer: Arc<TcpStream>,
    reader: Arc<TcpStream>,
    written: Mutex<u64>,
    read: Mutex<u64>,
}

/// One end of a direction. A lock holds it while a future uses it, so that each has one reader and one writer at a
/// time.
#[derive(Clone)]
struct End {
    direction: Arc<Direction>,
    writes: bool,
    busy: Arc<Mutex<bool>>,
}

impl Direction {
    /// Polls one write of up to `size` bytes, and notes in the same poll what it took.
    fn poll_write(&self, cx: &mut Context<'_>, size: usize, vectored: bool) -> Poll<std::io::Result<()>> {
        let mut written = self.written.lock().unwrap();
        let bytes: Vec<u8> = (0..size as u64).map(|offset| byte(self.number, *written + offset)).collect();
        let mut stream = &*self.writer;
        let pin = std::pin::Pin::new(&mut stream);
        let polled = if vectored {
            let (head, tail) = bytes.split_at(size / 3);
            pin.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(tail)])
        } else {
            pin.poll_write(cx, &bytes)
        };
        polled.map_ok(|count| *written += count as u64)
    }

    /// Polls one read of up to `size` bytes, and checks and notes in the same poll what came.
    fn poll_read(&self, cx: &mut Context<'_>, size: usize, vectored: bool) -> Poll<std::io::Result<()>> {
        let mut read = self.read.lock().unwrap();
        let mut bytes = vec![0; size];
        let mut stream = &*self.reader;
        let pin = std::pin::Pin::new(&mut stream);
        let polled = if vectored {
            let (head, tail) = bytes.split_at_mut(size / 3);
            pin.poll_read_vectored(cx, &mut [IoSliceMut::new(head), IoSliceMut::new(tail)])
        } else {
            pin.poll_read(cx, &mut bytes)
        };
        polled.map_ok(|count| self.check(&mut read, &bytes[..count]))
    }

    fn check(&self, read: &mut u64, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "direction {} has ended at {read}, and both ends are there", self.number);
        for (offset, found) in bytes.iter().enumerate() {
            let position = *read + offset as u64;
            assert_eq!(*found, byte(self.number, position), "direction {}, position {position}", self.number);
        }
        *read += bytes.len() as u64;
    }

    fn moved(&self) -> u64 {
        *self.read.lock().unwrap()
    }
}

impl End {
    /// Makes `count` operations of a kind that `random` chooses.
    async fn operate(self, seed: u64, count: usize) {
        let mut random = Random(seed | 1);
        for _ in 0..count {
            let (size, kind) = (3 + random.below(20_000), random.below(8));
            let direction = &*self.direction;
            let result = match (self.writes, kind) {
                (true, 0) => match direction.writer.writable().await {
                    Ok(()) => self.try_write(size),
                    Err(error) => Err(error),
                },
                (true, _) => future::poll_fn(|cx| direction.poll_write(cx, size, kind == 1)).await,
                (false, 0) => match direction.reader.readable().await {
                    Ok(()) => self.try_read(size),
                    Err(error) => Err(error),
                },
                (false, 1) => direction.reader.peek(&mut vec![0; size]).await.map(drop),
                (false, _) => future::poll_fn(|cx| direction.poll_read(cx, size, kind == 2)).await,
            };
            match result {
                Ok(()) => {}
                // A read timeout, or no runtime on this thread: the next user goes on.
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(error) if error.to_string().contains("no kittiwake runtime") => return,
                Err(error) => panic!("direction {}: {error}", direction.number),
            }
        }
    }

    fn try_write(&self, size: usize) -> std::io::Result<()> {
        let mut written = self.direction.written.lock().unwrap();
        let bytes: Vec<u8> = (0..size as u64).map(|offset| byte(self.direction.number, *written + offset)).collect();
        match self.direction.writer.try_write(&bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|count| *written += count as u64),
        }
    }

    fn try_read(&self, size: usize) -> std::io::Result<()> {
        let mut read = self.direction.read.lock().unwrap();
        let mut bytes = vec![0; size];
        match self.direction.reader.try_read(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|count| self.direction.check(&mut read, &bytes[..count])),
        }
    }

    /// Takes the end, unless another future uses it.
    fn take(&self) -> Option<Taken> {
        let mut busy = self.busy.lock().unwrap();
        (!std::mem::replace(&mut *busy, true)).then(|| Taken(self.clone()))
    }
}

/// An end in use. Dropped with the future that uses it.
struct Taken(End);

impl Drop for Taken {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap() = false;
    }
}

async fn use_end(taken: Taken, seed: u64, count: usize) {
    taken.0.clone().operate(seed, count).await;
}

#[derive(Default)]
struct Counts {
    runtimes: AtomicU64,
    calls: AtomicU64,
    aborts: AtomicU64,
}

/// One thread of the test: makes runtimes and calls, and has them use ends that are free.
fn hand_around(ends: &[End], counts: &Counts, seed: u64, until: Instant) {
    let mut random = Random(seed | 1);
    while Instant::now() < until {
        counts.runtimes.fetch_add(1, Ordering::Relaxed);
        let runtime = match random.below(4) {
            0 => Builder::new_current_thread(),
            workers => Builder::new_multi_thread().worker_threads([1, 2, 4][workers - 1]),
        };
        let runtime = runtime.build().expect("a runtime");
        for _ in 0..1 + random.below(4) {
            counts.calls.fetch_add(1, Ordering::Relaxed);
            use_in_call(&runtime, ends, counts, &mut random);
        }
        // A foreign executor polls sockets that the runtime has registered, while it is there.
        if let Some(taken) = ends[random.below(ends.len())].take() {
            let _ = future::block_on(future::poll_once(use_end(taken, random.0, 3)));
        }
        drop(runtime);
    }
}

fn use_in_call(runtime: &Runtime, ends: &[End], counts: &Counts, random: &mut Random) {
    let limit = Duration::from_micros(200 + random.below(5_000) as u64);
    let mut here = Vec::new();
    let (mut tasks, mut take) = (Vec::new(), 1 + random.below(6));
    for _ in 0..3 * take {
        let Some(taken) = ends[random.below(ends.len())].take() else { continue };
        let (seed, count) = (random.0, 1 + random.below(30));
        if random.below(3) == 0 {
            let timeout = (random.below(2) == 0).then_some(limit);
            taken.0.direction.reader.set_read_timeout(timeout).expect("a read timeout");
        }
        match random.below(3) {
            0 => here.push(use_end(taken, seed, count)),
            _ => tasks.push(runtime.handle().spawn(use_end(taken, seed, count))),
        }
        take -= 1;
        if take == 0 {
            break;
        }
    }
    let aborts = random.below(2) == 0;
    runtime.block_on(async {
        for future in here {
            let _ = timeout(limit, future).await;
        }
        for task in tasks {
            if aborts {
                task.abort();
                counts.aborts.fetch_add(1, Ordering::Relaxed);
            }
            match timeout(limit, task).await {
                Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The handle is dropped, and the task goes on until its runtime ends.
                _ => {}
            }
        }
        assert!(Handle::try_current().is_ok());
    });
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Sockets that runtimes of both kinds, `block_on` calls and a foreign executor hand around lose no byte and no
/// wake-up, whatever is cancelled and whichever runtime ends.
#[test]
fn handed_around_sockets_lose_nothing() {
    let seconds = number("KITTIWAKE_SOAK_SECONDS", 3);
    let seed = number("KITTIWAKE_SOAK_SEED", std::process::id().into());
    let directions: Vec<_> = (0..CONNECTIONS).flat_map(connection).collect();
    let ends: Vec<_> = directions
        .iter()
        .flat_map(|direction| {
            [true, false].map(|writes| End { direction: direction.clone(), writes, busy: Arc::default() })
        })
        .collect();
    let (counts, until) = (Counts::default(), Instant::now() + Duration::from_secs(seconds));
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|number| {
                let (ends, counts, seed) = (&ends, &counts, seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
                scope.spawn(move || hand_around(ends, counts, seed, until))
            })
            .collect();
        watch(&directions, &counts, seed, until);
        for thread in threads {
            if let Err(panic) = thread.join() {
                eprintln!("KITTIWAKE_SOAK_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    });
    let moved: u64 = directions.iter().map(|direction| direction.moved()).sum();
    assert!(moved > 0, "no byte has moved");
}

/// Fails when a direction stands still, and prints a line a minute.
fn watch(directions: &[Arc<Direction>], counts: &Counts, seed: u64, until: Instant) {
    let mut last: Vec<_> = directions.iter().map(|direction| (direction.moved(), Instant::now())).collect();
    let mut minute = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        thread::park_timeout(Duration::from_millis(100));
        for (direction, (moved, since)) in directions.iter().zip(&mut last) {
            let now = direction.moved();
            if now != *moved {
                (*moved, *since) = (now, Instant::now());
            }
            let written = *direction.written.lock().unwrap();
            if since.elapsed() > STALL {
                eprintln!(
                    "direction {} stands still at {now} of {written}; KITTIWAKE_SOAK_SEED={seed}",
                    direction.number
                );
                // The other threads may be asleep for ever.
                std::process::abort();
            }
        }
        if Instant::now() > minute {
            minute += Duration::from_secs(60);
            let bytes: u64 = last.iter().map(|(moved, _)| moved).sum();
            let Counts { runtimes, calls, aborts } = counts;
            eprintln!("{bytes} bytes, {runtimes:?} runtimes, {calls:?} calls, {aborts:?} aborts");
        }
    }
}

/// Both directions of a new connection.
fn connection(number: usize) -> [Arc<Direction>; 2] {
    let (one, other) = kittiwake::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let one = TcpStream::connect(listener.local_addr().expect("the address")).await.expect("connect");
        (Arc::new(one), Arc::new(listener.accept().await.expect("accept").0))
    });
    [(2 * number, one.clone(), other.clone()), (2 * number + 1, other, one)].map(|(number, writer, reader)| {
        Arc::new(Direction { number, writer, reader, written: Mutex::new(0), read: Mutex::new(0) })
    })
}
