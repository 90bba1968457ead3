//! Signals. All tests of this file may run in one process: each raises a kind that no other one listens for, and those that
//! change what a signal does to the process run in one of their own.

mod support;

use std::process::Command;
use std::thread;

use futures_lite::future;
use kittiwake::runtime::Runtime;
use kittiwake::signal::ctrl_c;
use kittiwake::signal::unix::{Signal, SignalKind, signal};
use kittiwake::spawn;
use support::*;

/// Sends a signal to this thread. When this returns, the handler has run.
#[track_caller]
fn raise(kind: SignalKind) {
    signal_hook::low_level::raise(kind.as_raw_value()).expect("a signal to ourselves");
}

/// Sends a signal to this process, from outside.
#[track_caller]
fn kill(kind: SignalKind) {
    let sent = Command::new("kill")
        .args([format!("-{}", kind.as_raw_value()), std::process::id().to_string()])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

#[track_caller]
fn listen(kind: SignalKind) -> Signal {
    signal(kind).expect("a signal that can be listened for")
}

/// Whether there is nothing to hear.
async fn is_quiet(signal: &mut Signal) -> bool {
    settle().await;
    future::poll_once(signal.recv()).await.is_none()
}

/// Without it a server that has nothing to do does not hear that it is to end.
#[test]
fn a_signal_from_outside_wakes_a_blocked_worker() {
    run(|| async {
        let mut listener = listen(SignalKind::user_defined1());
        for _ in 0..3 {
            let waiting = thread::spawn(|| kill(SignalKind::user_defined1()));
            assert_eq!(listener.recv().await, Some(()));
            waiting.join().expect("a thread");
        }
    });
}

/// Without it a signal during start-up is lost, and the server never ends.
#[test]
fn a_signal_before_the_first_poll_is_heard() {
    within(|| {
        let kind = SignalKind::user_defined2();
        let mut listener = listen(kind);
        raise(kind);
        kittiwake::block_on(async {
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "it was one signal");
            raise(kind);
            raise(kind);
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "what comes before it is looked for counts as one");
        });
    });
}

/// Without it the part of a program that asks second hears nothing.
#[test]
fn every_listener_hears_each_signal_wherever_it_is() {
    within(|| {
        let kind = SignalKind::alarm();
        let elsewhere = Background::start();
        kittiwake::block_on(async {
            let (heard, hearing) = async_channel::unbounded();
            let listen = |name| {
                let (mut listener, heard) = (listen(kind), heard.clone());
                async move {
                    while listener.recv().await.is_some() {
                        heard.send(name).await.expect("the test listens");
                    }
                }
            };
            let tasks = [spawn(listen(1)), spawn(listen(2)), elsewhere.handle().spawn(listen(3))];
            for _ in 0..5 {
                raise(kind);
                let mut names = [0; 3];
                for name in &mut names {
                    *name = hearing.recv().await.expect("a receiver gets the value");
                }
                names.sort_unstable();
                assert_eq!(names, [1, 2, 3]);
            }
            tasks.iter().for_each(kittiwake::task::JoinHandle::abort);
        });
        elsewhere.stop();
    });
}

/// Without it a storm of signals is a storm of wakes, or fills the pair and is never heard again.
#[test]
fn a_storm_is_heard_once() {
    run(|| async {
        let kind = SignalKind::window_change();
        let (mut listener, mut other) = (listen(kind), listen(SignalKind::io()));
        let (waker, wakes) = counting_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        for storm in 1..=3 {
            assert!(listener.poll_recv(&mut cx).is_pending());
            for _ in 0..5_000 {
                raise(kind);
            }
            until(|| wakes.get() > 0).await;
            settle().await;
            assert!(wakes.get() <= storm, "one wake for all, not {}", wakes.get());
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "all of it was taken");
        }
        assert!(is_quiet(&mut other).await, "nobody hears another kind's signals");
    });
}

/// Without it a listener is worth nothing after the runtime that it first waited in.
#[test]
fn a_listener_goes_on_in_the_next_runtime() {
    within(|| {
        let kind = SignalKind::hangup();
        let mut listener = listen(kind);
        let (waker, wakes) = counting_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        kittiwake::block_on(async { assert!(listener.poll_recv(&mut cx).is_pending()) });
        assert_eq!(wakes.get(), 1, "whoever waits hears of the end of the runtime");
        raise(kind);
        kittiwake::block_on(async {
            assert_eq!(listener.recv().await, Some(()), "it was kept in between");
            assert!(listener.poll_recv(&mut cx).is_pending());
        });
        let mut waiting = ctrl_c();
        kittiwake::block_on(async { assert!(future::poll_once(&mut waiting).await.is_none()) });
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(listener.poll_recv(&mut cx).is_pending(), "the end of the last one is no signal");
            assert!(future::poll_once(&mut waiting).await.is_none(), "nor an error");
        });
    });
}

/// Without it a listener that cannot wait waits for ever.
#[test]
fn outside_a_runtime_a_listener_says_so() {
    within(|| {
        let kind = SignalKind::quit();
        let mut listener = listen(kind);
        raise(kind);
        assert_eq!(future::block_on(listener.recv()), Some(()), "there is something: no need to wait");
        assert_eq!(future::block_on(listener.recv()), None);
        let error = future::block_on(ctrl_c()).expect_err("nobody would tell it");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
        raise(kind);
        kittiwake::block_on(async { assert_eq!(listener.recv().await, Some(()), "and it is none the worse") });
    });
}

/// Without it a program panics at a number, or believes that it listens.
#[test]
fn what_cannot_be_listened_for_is_an_error() {
    for number in [libc::SIGKILL, libc::SIGSTOP, libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, 0, -1, 1000] {
        let error = signal(SignalKind::from_raw(number)).expect_err("not a signal to listen for");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().starts_with(&format!("signal {number} cannot be listened for: ")), "{error}");
    }
}

/// Without it a name means another signal.
#[test]
fn the_kinds_are_the_systems() {
    let kinds = [
        (SignalKind::alarm(), libc::SIGALRM),
        (SignalKind::child(), libc::SIGCHLD),
        (SignalKind::hangup(), libc::SIGHUP),
        (SignalKind::interrupt(), libc::SIGINT),
        (SignalKind::io(), libc::SIGIO),
        (SignalKind::pipe(), libc::SIGPIPE),
        (SignalKind::quit(), libc::SIGQUIT),
        (SignalKind::terminate(), libc::SIGTERM),
        (SignalKind::user_defined1(), libc::SIGUSR1),
        (SignalKind::user_defined2(), libc::SIGUSR2),
        (SignalKind::window_change(), libc::SIGWINCH),
    ];
    for (kind, number) in kinds {
        assert_eq!(kind, SignalKind::from_raw(number));
        assert_eq!(kind.as_raw_value(), number);
    }
}

/// Without it a program cannot be ended in order by its user, or cannot be told a second time.
#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_is_heard_from_the_call_on_and_again() {
    in_own_process("ctrl_c_is_heard_from_the_call_on_and_again", || {
        let mut first = ctrl_c();
        raise(SignalKind::interrupt());
        kittiwake::block_on(async {
            let mut second = ctrl_c();
            (&mut first).await.expect("it was before the first poll");
            settle().await;
            assert!(future::poll_once(&mut second).await.is_none(), "it was before this call");
            assert!(future::poll_once(&mut first).await.is_none(), "it was one");
            let outside = thread::spawn(|| kill(SignalKind::interrupt()));
            future::zip(&mut first, second).await.0.expect("both hear the next one");
            outside.join().expect("a thread");
        });
    });
}

/// The documented price: without a listener left, the signal does nothing at all.
#[test]
#[cfg(target_os = "linux")]
fn the_default_action_is_gone_for_good() {
    in_own_process("the_default_action_is_gone_for_good", || {
        drop(listen(SignalKind::terminate()));
        raise(SignalKind::terminate());
        let mut listener = listen(SignalKind::terminate());
        kittiwake::block_on(async { assert!(is_quiet(&mut listener).await, "what nobody listened for is gone") });
    });
}

/// Without it each listener leaves descriptors, or its place with the handler.
#[test]
#[cfg(target_os = "linux")]
fn a_listener_that_is_gone_leaves_nothing() {
    in_own_process("a_listener_that_is_gone_leaves_nothing", || {
        kittiwake::block_on(async {
            let kind = SignalKind::child();
            let mut stays = listen(kind);
            let before = (count_of("fd"), sources());
            for _ in 0..500 {
                let mut listener = listen(kind);
                assert!(future::poll_once(listener.recv()).await.is_none());
                raise(kind);
                drop(listener);
                drop(ctrl_c());
            }
            assert_eq!((count_of("fd"), sources()), before);
            assert_eq!(stays.recv().await, Some(()), "and takes nothing from the others");
            let opened: Vec<_> = (0..10).map(|_| listen(kind)).collect();
            assert_eq!(count_of("fd"), before.0 + 2 * opened.len());
            // Of 512 descriptors each takes two.
            let error = (0..512).find_map(|_| signal(kind).map(std::mem::forget).err()).expect("there are no more");
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            let error = ctrl_c().await.expect_err("there are no more");
            assert!(error.to_string().contains("os error 24"), "{error}");
        });
    });
}
