//! `io::AsyncFd`: descriptors of all kinds.
#![cfg(target_os = "linux")]
// Only the library keeps to the oldest Rust that it supports.
#![allow(clippy::incompatible_msrv)]

mod support;

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_lite::future::poll_once;
use kittiwake::io::{AsyncFd, AsyncReadExt, AsyncWriteExt, Interest};
use kittiwake::spawn;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use support::{counting_waker, descriptor_flags, pattern, run, settle, sources, until};

/// The two ends of a pipe, both in the reactor's care.
fn pipe() -> (AsyncFd<PipeReader>, AsyncFd<PipeWriter>) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (AsyncFd::new(reader).expect("new"), AsyncFd::new(writer).expect("new"))
}

/// Reads once from a pipe, without waiting.
fn take(reader: &AsyncFd<PipeReader>) -> io::Result<usize> {
    let mut pipe = reader.get_ref();
    pipe.read(&mut [0; 1])
}

/// A pipe carries any number of bytes between two tasks, though it holds few, and ends when its writer is dropped.
#[test]
fn pipe_carries_all_bytes() {
    run(|| async {
        let (mut reader, mut writer) = pipe();
        let sent = pattern(1_000_000);
        let writing = spawn({
            let sent = sent.clone();
            async move { writer.write_all(&sent).await }
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("read_to_end");
        writing.await.expect("the writer").expect("write_all");
        assert!(received == sent, "{} bytes of {} came, or changed", received.len(), sent.len());
    });
}

/// A reader that goes away is an error of the writer that waits: the event has no writable bit.
#[test]
fn dropped_reader_wakes_writer() {
    run(|| async {
        let (reader, writer) = pipe();
        while writer.try_io(Interest::WRITABLE, |mut pipe| pipe.write(&[0; 4096])).is_ok() {}
        let mut ended = pin!(writer.async_io(Interest::WRITABLE, |mut pipe| pipe.write(&[0; 4096])));
        assert!(poll_once(&mut ended).await.is_none(), "the pipe is full");
        drop(reader);
        assert_eq!(ended.await.expect_err("the reader has gone").kind(), ErrorKind::BrokenPipe);
    });
}

/// An eventfd wakes its reader at each write.
#[test]
fn eventfd_wakes_its_reader() {
    run(|| async {
        let fd = Arc::new(AsyncFd::new(eventfd(0, EventfdFlags::empty()).expect("eventfd")).expect("new"));
        let reading = spawn({
            let fd = fd.clone();
            async move {
                let mut sum = 0;
                while sum < 6 {
                    let mut buf = [0; 8];
                    (&*fd).read_exact(&mut buf).await.expect("read");
                    sum += u64::from_ne_bytes(buf);
                }
            }
        });
        for number in 1..=3_u64 {
            settle().await;
            (&*fd).write_all(&number.to_ne_bytes()).await.expect("write");
        }
        reading.await.expect("the reader gets all three");
    });
}

/// A timerfd is readable when it expires, and not before.
#[test]
fn timerfd_is_readable_when_it_expires() {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    run(|| async {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).expect("timerfd_create");
        let it_value = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut timer = AsyncFd::new(timer).expect("new");
        assert!(poll_once(timer.readable()).await.is_none(), "it is not armed");
        let before = std::time::Instant::now();
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value }).expect("settime");
        let mut expirations = [0; 8];
        timer.read_exact(&mut expirations).await.expect("read");
        assert_eq!(u64::from_ne_bytes(expirations), 1);
        assert!(before.elapsed() >= Duration::from_millis(5), "it expired early");
    });
}

/// inotify reports a change in a directory.
#[test]
fn inotify_reports_changes() {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    run(|| async {
        let directory = std::env::temp_dir().join(format!("kittiwake-inotify-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let mut inotify = AsyncFd::new(init(CreateFlags::empty()).expect("inotify_init")).expect("new");
        add_watch(&inotify, &directory, WatchFlags::CREATE).expect("inotify_add_watch");
        let mut events = [0; 256];
        let mut reading = pin!(inotify.read(&mut events));
        assert!(poll_once(&mut reading).await.is_none(), "nothing has changed");
        File::create(directory.join("file")).expect("a file");
        assert!(reading.await.expect("read") > 0);
        std::fs::remove_dir_all(directory).expect("clean up");
    });
}

/// A guard clears what it has seen. Bytes that came later are reported by the next wait, or they would be lost.
#[test]
fn guard_keeps_newer_event() {
    run(|| async {
        let (reader, writer) = pipe();
        let mut pipe = writer.get_ref();
        pipe.write_all(b"1").expect("write");
        let mut guard = reader.readable().await.expect("readable");
        assert!(guard.readiness().is_readable());
        take(&reader).expect("the first byte");
        pipe.write_all(b"2").expect("write");
        settle().await;
        guard.clear_ready();
        reader.readable().await.expect("the second byte was reported").clear_ready();
    });
}

/// The guard clears readiness on `WouldBlock` and on nothing else.
#[test]
fn guard_clears_on_would_block_only() {
    run(|| async {
        let (reader, writer) = pipe();
        let mut cx = Context::from_waker(Waker::noop());
        let mut pipe = writer.get_ref();
        pipe.write_all(b"1").expect("write");
        let mut guard = reader.readable().await.expect("readable");
        assert_eq!(guard.try_io(take).expect("no WouldBlock").expect("a byte"), 1);
        let failed: io::Result<()> = guard.try_io(|_| Err(ErrorKind::InvalidData.into())).expect("no WouldBlock");
        assert_eq!(failed.expect_err("as the call said").kind(), ErrorKind::InvalidData);
        assert!(reader.poll_readable(&mut cx).is_ready(), "no call has met WouldBlock");
        guard.try_io(take).expect_err("the pipe is empty");
        assert!(reader.poll_readable(&mut cx).is_pending(), "readiness outlives WouldBlock");
        pipe.write_all(b"2").expect("write");
        assert_eq!(reader.async_io(Interest::READABLE, |mut pipe| pipe.read(&mut [0; 8])).await.expect("read"), 1);
    });
}

/// One wait may be for both directions, and says which are ready.
#[test]
fn ready_waits_for_either_direction() {
    run(|| async {
        let (one, mut other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let one = AsyncFd::new(one).expect("new");
        let both = Interest::READABLE | Interest::WRITABLE;
        let ready = one.ready(both).await.expect("ready").readiness();
        assert!(ready.is_writable() && !ready.is_readable());
        let mut written = 0;
        while let Ok(more) = one.try_io(both, |mut socket| socket.write(&[0; 65536])) {
            written += more;
        }
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        {
            let mut waiting = pin!(one.ready(both));
            assert!(waiting.as_mut().poll(&mut cx).is_pending(), "neither direction is ready");
            other.write_all(b"x").expect("write");
            until(|| wakes.get() > 0).await;
            let ready = waiting.await.expect("ready").readiness();
            assert!(ready.is_readable());
        }
        other.read_exact(&mut vec![0; written]).expect("read");
        one.writable().await.expect("there is room").clear_ready();
    });
}

/// A call that would block in one direction leaves the other one ready. The system would not report it again.
#[test]
fn guard_of_both_spares_ready_direction() {
    run(|| async {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut one = AsyncFd::new(one).expect("new");
        let both = Interest::READABLE | Interest::WRITABLE;
        let mut guard = one.ready(both).await.expect("ready");
        guard.try_io(|fd| fd.get_ref().read(&mut [0; 8])).expect_err("there is nothing to read");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(one.poll_writable(&mut cx).is_ready(), "the guard has hidden that there is room");
        assert!(one.poll_readable(&mut cx).is_pending(), "readiness outlives WouldBlock");
        one.try_io(both, |mut socket| socket.read(&mut [0; 8])).expect_err("there is nothing to read");
        assert_eq!(one.write(b"hello").await.expect("write"), 5);
    });
}

/// A task may wait for more descriptors than its budget has operations, by futures that are made anew for each poll.
/// Waiting spends nothing, or the task would wake itself for ever.
#[test]
fn waiting_calls_spend_no_budget() {
    run(|| async {
        let pipes: Vec<_> = (0..200).map(|_| pipe()).collect();
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        for round in 0..3 {
            for (reader, _) in &pipes {
                let read = pin!(reader.async_io(Interest::READABLE, |mut pipe| pipe.read(&mut [0; 8])));
                assert!(read.poll(&mut cx).is_pending(), "the pipe is empty");
            }
            assert_eq!(wakes.get(), 0, "round {round}: the task was woken without an event");
        }
    });
}

/// Several tasks wait for one descriptor, and all of them are woken.
#[test]
fn every_waiting_task_is_woken() {
    run(|| async {
        let (reader, writer) = pipe();
        let reader = Arc::new(reader);
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let reader = reader.clone();
                spawn(async move { reader.readable().await.map(drop) })
            })
            .collect();
        settle().await;
        let mut pipe = writer.get_ref();
        pipe.write_all(b"1").expect("write");
        for task in tasks {
            task.await.expect("no panic").expect("readable");
        }
    });
}

/// epoll cannot watch a regular file. The error is the kernel's, and says what to do.
#[test]
#[cfg(not(mio_unsupported_force_poll_poll))]
fn regular_file_is_explained() {
    run(|| async {
        let mut file = AsyncFd::new(File::open("/proc/self/exe").expect("a file")).expect("new");
        let error = file.readable().await.expect_err("a regular file");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("spawn_blocking") && error.to_string().contains("os error 1"), "{error}");
        // A read does not have to wait.
        assert_eq!(file.read(&mut [0; 4]).await.expect("read"), 4);
    });
}

/// An error of a transfer is the kernel's own, with its code. The explanation of regular files is for registrations.
#[test]
fn errors_of_transfers_keep_their_code() {
    run(|| async {
        let sealed = memfd_create("sealed", MemfdFlags::ALLOW_SEALING).expect("memfd_create(2)");
        fcntl_add_seals(&sealed, SealFlags::WRITE).expect("F_ADD_SEALS");
        let error = AsyncFd::new(sealed).expect("new").write(b"x").await.expect_err("a sealed file");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    });
}

/// The second registration of one descriptor is refused, and the first goes on.
#[test]
fn second_registration_is_refused() {
    run(|| async {
        let (reader, writer) = pipe();
        let second = AsyncFd::new(reader.as_fd()).expect("new");
        assert!(poll_once(reader.readable()).await.is_none(), "it is registered");
        let error = second.readable().await.expect_err("it is registered already");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("duplicate it"), "{error}");
        drop(second);
        let mut pipe = writer.get_ref();
        pipe.write_all(b"1").expect("write");
        reader.readable().await.expect("the first one still waits").clear_ready();
    });
}

/// A descriptor whose file is closed under its owner leaves the table when it is dropped, and disturbs no other.
#[test]
fn closed_descriptor_leaves_its_slot() {
    run(|| async {
        let before = sources();
        let (reader, writer) = pipe();
        let mut reader = AsyncFd::new(OwnedFd::from(reader.into_inner())).expect("new");
        assert!(poll_once(reader.readable()).await.is_none(), "it is registered");
        rustix::io::dup2(File::open("/dev/null").expect("/dev/null"), reader.get_mut()).expect("dup2");
        let mut pipe = writer.get_ref();
        assert_eq!(pipe.write(b"1").expect_err("the reading end is closed").kind(), ErrorKind::BrokenPipe);
        drop(reader);
        assert_eq!(sources(), before, "the slot is free");
        let (reader, writer) = self::pipe();
        let mut pipe = writer.get_ref();
        pipe.write_all(b"2").expect("write");
        reader.readable().await.expect("another pipe works").clear_ready();
    });
}

/// `new` makes the descriptor non-blocking, and `into_inner` takes it out of the reactor.
#[test]
fn new_makes_non_blocking() {
    run(|| async {
        let (reader, _writer) = io::pipe().expect("a pipe");
        assert_eq!(descriptor_flags(&reader) & libc::O_NONBLOCK, 0);
        let before = sources();
        let reader = AsyncFd::new(reader).expect("new");
        assert_ne!(descriptor_flags(&reader) & libc::O_NONBLOCK, 0);
        assert!(poll_once(reader.readable()).await.is_none());
        assert_eq!(sources(), before + 1);
        let _reader = reader.into_inner();
        assert_eq!(sources(), before);
    });
}

/// A read into an empty buffer, and a write of one, are ready at once.
#[test]
fn empty_transfers_are_ready_at_once() {
    run(|| async {
        let (mut reader, mut writer) = pipe();
        while writer.try_io(Interest::WRITABLE, |mut pipe| pipe.write(&[0; 4096])).is_ok() {}
        assert_eq!(poll_once(writer.write(&[])).await.expect("at once").expect("write"), 0);
        let (mut idle, _writer) = pipe();
        assert_eq!(poll_once(idle.read(&mut [])).await.expect("at once").expect("read"), 0);
        assert_eq!(poll_once(reader.read(&mut [])).await.expect("at once").expect("read"), 0);
    });
}
