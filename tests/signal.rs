//! Signals. All tests of this file may run in one process: each raises a signal kind of its own. The tests that
//! change the effect of a signal on the process run in processes of their own.
// Some tests need Linux.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod support;

use std::process::Command;
use std::thread;

use futures_lite::future;
use kittiwake::runtime::Runtime;
use kittiwake::signal::unix::{Signal, SignalKind, signal};
use kittiwake::signal::{ctrl_c, terminate};
use kittiwake::spawn;
use support::*;

/// Sends a signal to this thread. The handler has run when this returns.
#[track_caller]
fn raise(kind: SignalKind) {
    signal_hook::low_level::raise(kind.as_raw_value()).expect("the signal is raised");
}

/// Sends a signal to this process from outside.
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
    signal(kind).expect("the signal kind can be listened for")
}

/// True if no signal is pending.
async fn is_quiet(signal: &mut Signal) -> bool {
    settle().await;
    future::poll_once(signal.recv()).await.is_none()
}

/// A signal from outside wakes a blocked worker.
#[test]
fn signal_wakes_a_sleeping_worker() {
    run(|| async {
        let mut listener = listen(SignalKind::user_defined1());
        for _ in 0..3 {
            let waiting = thread::spawn(|| kill(SignalKind::user_defined1()));
            assert_eq!(listener.recv().await, Some(()));
            waiting.join().expect("a thread");
        }
    });
}

/// A signal before the first poll is kept. A signal during start-up must not be lost.
#[test]
fn signal_before_first_poll_is_kept() {
    within(|| {
        let kind = SignalKind::user_defined2();
        let mut listener = listen(kind);
        raise(kind);
        kittiwake::block_on(async {
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "the signal must be reported once");
            raise(kind);
            raise(kind);
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "signals before one poll must count as one");
        });
    });
}

/// Every listener of a kind gets each signal, in whichever runtime it is.
#[test]
fn every_listener_gets_each_signal() {
    within(|| {
        let kind = SignalKind::alarm();
        let elsewhere = Background::start();
        kittiwake::block_on(async {
            let (report, reports) = async_channel::unbounded();
            let listen = |name| {
                let (mut listener, report) = (listen(kind), report.clone());
                async move {
                    while listener.recv().await.is_some() {
                        report.send(name).await.expect("the test waits");
                    }
                }
            };
            let tasks = [spawn(listen(1)), spawn(listen(2)), elsewhere.handle().spawn(listen(3))];
            for _ in 0..5 {
                raise(kind);
                let mut names = [0; 3];
                for name in &mut names {
                    *name = reports.recv().await.expect("a listener reports the signal");
                }
                names.sort_unstable();
                assert_eq!(names, [1, 2, 3]);
            }
            tasks.iter().for_each(kittiwake::task::JoinHandle::abort);
        });
        elsewhere.stop();
    });
}

/// A storm of signals wakes a listener once, and the listener still works afterwards.
#[test]
fn signal_storm_wakes_once() {
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
            assert!(wakes.get() <= storm, "a storm must wake the listener once, and not {} times", wakes.get());
            assert_eq!(listener.recv().await, Some(()));
            assert!(is_quiet(&mut listener).await, "one receive must take the whole storm");
        }
        assert!(is_quiet(&mut other).await, "a listener must not get signals of another kind");
    });
}

/// A listener continues in the next runtime after the first one has ended.
#[test]
fn listener_continues_in_next_runtime() {
    within(|| {
        let kind = SignalKind::hangup();
        let mut listener = listen(kind);
        let (waker, wakes) = counting_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        kittiwake::block_on(async { assert!(listener.poll_recv(&mut cx).is_pending()) });
        assert_eq!(wakes.get(), 1, "the end of the runtime must wake the listener");
        raise(kind);
        kittiwake::block_on(async {
            assert_eq!(listener.recv().await, Some(()), "the signal between the runtimes must be kept");
            assert!(listener.poll_recv(&mut cx).is_pending());
        });
        let mut waiting = ctrl_c();
        kittiwake::block_on(async { assert!(future::poll_once(&mut waiting).await.is_none()) });
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            assert!(listener.poll_recv(&mut cx).is_pending(), "the end of the last runtime must not count as a signal");
            assert!(
                future::poll_once(&mut waiting).await.is_none(),
                "the end of the last runtime must not be an error"
            );
        });
    });
}

/// A listener that must wait outside a runtime returns an error or `None`.
#[test]
fn listener_outside_a_runtime_fails() {
    within(|| {
        let kind = SignalKind::quit();
        let mut listener = listen(kind);
        raise(kind);
        assert_eq!(future::block_on(listener.recv()), Some(()), "a pending signal needs no wait");
        assert_eq!(future::block_on(listener.recv()), None);
        let error = future::block_on(ctrl_c()).expect_err("no runtime would report a signal");
        assert!(error.to_string().contains("no kittiwake runtime"), "{error}");
        raise(kind);
        kittiwake::block_on(async { assert_eq!(listener.recv().await, Some(()), "the listener must still work") });
    });
}

/// A signal that cannot be listened for is an error.
#[test]
fn unlistenable_signal_is_an_error() {
    for number in [libc::SIGKILL, libc::SIGSTOP, libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, 0, -1, 1000] {
        let error = signal(SignalKind::from_raw(number)).expect_err("the signal kind cannot be listened for");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().starts_with(&format!("signal {number} cannot be listened for: ")), "{error}");
    }
}

/// The kinds have the system's numbers.
#[test]
fn signal_kinds_match_the_system() {
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

/// `ctrl_c` reports signals from its call on, and can be awaited again.
#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_counts_from_its_call() {
    in_own_process("ctrl_c_counts_from_its_call", || {
        let mut first = ctrl_c();
        raise(SignalKind::interrupt());
        kittiwake::block_on(async {
            let mut second = ctrl_c();
            (&mut first).await.expect("the signal came before the first poll");
            settle().await;
            assert!(future::poll_once(&mut second).await.is_none(), "the signal came before this call");
            assert!(future::poll_once(&mut first).await.is_none(), "the signal must be reported once");
            let outside = thread::spawn(|| kill(SignalKind::interrupt()));
            future::zip(&mut first, second).await.0.expect("both futures report the next signal");
            outside.join().expect("a thread");
        });
    });
}

/// `terminate` reports either signal from its call on, one after the other, and waits for the next one when it is awaited
/// again.
#[test]
#[cfg(target_os = "linux")]
fn terminate_reports_both_kinds() {
    in_own_process("terminate_reports_both_kinds", || {
        let mut ending = terminate();
        raise(SignalKind::terminate());
        kittiwake::block_on(async {
            (&mut ending).await.expect("SIGTERM came before the first poll");
            assert!(future::poll_once(&mut ending).await.is_none(), "the signal must be reported once");
            for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::interrupt()] {
                let outside = thread::spawn(move || kill(kind));
                (&mut ending).await.expect("each signal is reported");
                outside.join().expect("a thread");
            }
            raise(SignalKind::interrupt());
            raise(SignalKind::terminate());
            (&mut ending).await.expect("the first");
            (&mut ending).await.expect("and the second, though both came at once");
            assert!(future::poll_once(&mut ending).await.is_none());
        });
    });
}

/// The default action of a signal is gone for good once a listener was made, as documented. Without a listener the
/// signal then has no effect.
#[test]
#[cfg(target_os = "linux")]
fn default_action_never_returns() {
    in_own_process("default_action_never_returns", || {
        drop(listen(SignalKind::terminate()));
        raise(SignalKind::terminate());
        let mut listener = listen(SignalKind::terminate());
        kittiwake::block_on(async {
            assert!(is_quiet(&mut listener).await, "a signal without a listener must be lost");
        });
    });
}

/// A dropped listener leaves no descriptor and no entry in the handler.
#[test]
#[cfg(target_os = "linux")]
fn dropped_listener_leaves_nothing() {
    in_own_process("dropped_listener_leaves_nothing", || {
        kittiwake::block_on(async {
            let kind = SignalKind::child();
            let mut stays = listen(kind);
            // The first wait opens the reactor.
            assert!(future::poll_once(stays.recv()).await.is_none());
            let before = (count_of("fd"), sources());
            for _ in 0..500 {
                let mut listener = listen(kind);
                assert!(future::poll_once(listener.recv()).await.is_none());
                raise(kind);
                drop(listener);
                drop(ctrl_c());
            }
            assert_eq!((count_of("fd"), sources()), before);
            assert_eq!(stays.recv().await, Some(()), "a dropped listener must take no signal from the others");
            let opened: Vec<_> = (0..10).map(|_| listen(kind)).collect();
            assert_eq!(count_of("fd"), before.0 + 2 * opened.len());
            // Each listener takes two of the 512 descriptors.
            let mut held = Vec::new();
            let error = loop {
                match signal(kind) {
                    Ok(listener) => held.push(listener),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            let error = ctrl_c().await.expect_err("the descriptors are used up");
            assert!(error.to_string().contains("os error 24"), "{error}");
        });
    });
}
