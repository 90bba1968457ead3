//! Calls of `block_on` beside the workers.

use std::future::{pending, ready};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use crate::support::*;
use crate::{HOUR, MS, SEVERAL};
use futures_lite::future::{self, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::runtime::Handle;
use kittiwake::task::yield_now;
use kittiwake::time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at};
use kittiwake::{block_on, spawn, spawn_local};

/// Several threads may be in `block_on` of one runtime at the same time.
#[test]
fn concurrent_block_on_calls_are_allowed() {
    within(|| {
        for callers in [2, 8] {
            let runtime = Arc::new(workers(2));
            let barrier = Arc::new(Barrier::new(callers));
            let (send, receive) = async_channel::unbounded();
            let threads: Vec<_> = (0..callers)
                .map(|caller| {
                    let (runtime, barrier) = (runtime.clone(), barrier.clone());
                    let (send, receive) = (send.clone(), receive.clone());
                    thread::spawn(move || {
                        runtime.block_on(async {
                            // All threads have passed this barrier inside their calls.
                            barrier.wait();
                            let (mut client, mut server) = pair().await;
                            let echo = spawn(async move {
                                let mut byte = [0];
                                server.read_exact(&mut byte).await?;
                                server.write_all(&byte).await
                            });
                            client.write_all(&[caller as u8]).await.expect("write");
                            let mut byte = [0];
                            client.read_exact(&mut byte).await.expect("read");
                            assert_eq!(byte, [caller as u8]);
                            echo.await.expect("a task").expect("an echo");
                            sleep(MS).await;
                            // The calls also exchange messages.
                            send.send(caller).await.expect("the channel has a receiver");
                            let own_thread = here();
                            let received = receive.recv().await.expect("the channel has a sender");
                            assert_eq!(here(), own_thread, "the future of a call must stay on the calling thread");
                            received
                        })
                    })
                })
                .collect();
            let mut received: Vec<_> =
                threads.into_iter().map(|caller| caller.join().expect("the calling thread")).collect();
            received.sort_unstable();
            assert!(received.into_iter().eq(0..callers), "each message must arrive once");
        }
    });
}

/// A `block_on` inside another call or a task panics and says what to do. Otherwise the thread would wait for an
/// event that only it could produce.
#[test]
fn nested_block_on_panics() {
    within(|| {
        let runtime = Arc::new(workers(2));
        let nested = {
            let runtime = runtime.clone();
            move || {
                let other = workers(2);
                let calls: [&dyn Fn(); 3] =
                    [&|| runtime.block_on(async {}), &|| other.block_on(async {}), &|| block_on(async {})];
                let message = calls.map(panic_of);
                // A task's thread must not drop the runtime.
                thread::spawn(move || drop(other)).join().unwrap();
                message
            }
        };
        let in_a_call = runtime.block_on(async { nested() });
        let in_a_local_task =
            runtime.block_on(async { spawn_local(ready(nested())).await.expect("the task catches the panic") });
        let in_a_task =
            future::block_on(runtime.handle().spawn(async move { nested() })).expect("the task catches the panic");
        for message in in_a_call.into_iter().chain(in_a_local_task).chain(in_a_task) {
            assert!(message.contains("block_on") && message.contains("inside a runtime"), "{message}");
            assert!(
                message.contains("await") && message.contains("spawn"),
                "the panic must say what to do instead: {message}"
            );
        }
        assert_eq!(
            runtime.block_on(async { spawn(ready(1)).await.expect("the task runs") }),
            1,
            "the runtime must be usable afterwards"
        );
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}

/// Tasks that are spawned in a `block_on` call run on the workers, never on the calling thread, and outlive the
/// call.
#[test]
fn spawned_tasks_outlive_the_call() {
    within(|| {
        for count in SEVERAL {
            let runtime = workers(count);
            let blocked = block_workers(runtime.handle(), count);
            let (wake, woken) = async_channel::bounded::<()>(1);
            let tasks = runtime.block_on(async {
                let tasks: Vec<_> = (0..50)
                    .map(|_| {
                        let woken = woken.clone();
                        spawn(async move {
                            let begun_on = here();
                            woken.recv().await.expect_err("the channel is closed");
                            [begun_on, here()]
                        })
                    })
                    .collect();
                // The calling thread has time to run the tasks here, and the workers have none.
                settle().await;
                assert_eq!(Handle::current().metrics().workers().len(), count);
                tasks
            });
            let threads: Vec<_> = blocked.iter().map(|blocked| blocked.thread).collect();
            drop(blocked);
            runtime.block_on(async {
                drop(wake);
                settle().await;
            });
            for task in tasks {
                let ran_on = future::block_on(task).expect("the task continues after the call");
                assert!(ran_on.iter().all(|thread| threads.contains(thread)), "a task ran on the thread of a call");
            }
        }
    });
}

/// A connection that was used in a `block_on` call continues in a task after the call.
#[test]
fn calls_sockets_continue_in_tasks() {
    const LENGTH: usize = 40_000;
    within(|| {
        let runtime = workers(2);
        for round in 0..40 {
            let (ours, peer) = pair_with_std();
            let bytes = pattern(LENGTH);
            // Bytes come and go before the end of the call, during it and after it.
            let (began, has_begun) = mpsc::channel();
            let writer = thread::spawn({
                let (mut peer, bytes) = (peer.try_clone().expect("try_clone"), bytes.clone());
                move || {
                    for piece in bytes.chunks(700) {
                        peer.write_all(piece).expect("write");
                        let _ = began.send(());
                        thread::yield_now();
                    }
                    peer.shutdown(std::net::Shutdown::Write).expect("shutdown");
                }
            });
            let reader = thread::spawn(move || read_all(peer));
            let task = runtime.block_on(async {
                let mut ours = ours;
                let mut first = vec![0; 1 + round % 3];
                ours.read_exact(&mut first).await.expect("read");
                // This read waits for an event.
                let mut next = [0];
                let given_up = poll_once(ours.read(&mut next)).await.map(|read| read.expect("read"));
                first.extend_from_slice(&next[..given_up.unwrap_or(0)]);
                let echo = async move {
                    let mut buf = [0; 300];
                    ours.write_all(&first).await?;
                    loop {
                        match ours.read(&mut buf).await? {
                            0 => return ours.close().await,
                            read => ours.write_all(&buf[..read]).await?,
                        }
                    }
                };
                // In half of the rounds the call polls the echo first, so the echo waits when it moves.
                let mut echo = Box::pin(echo);
                if round % 2 == 0 {
                    assert!(poll_once(echo.as_mut()).await.is_none(), "the peer has more to send");
                }
                let task = spawn(echo);
                for _ in 0..round % 5 {
                    let _ = has_begun.recv();
                    yield_now().await;
                }
                task
            });
            future::block_on(task).expect("the task ends").expect("no operation fails because the call has ended");
            writer.join().expect("the writer");
            assert!(reader.join().expect("the reader") == bytes, "every byte must come back, once, in round {round}");
            progress();
        }
    });
}

/// A socket and a wait that begin in one `block_on` call continue in the next call and on any other executor.
#[test]
fn calls_sockets_continue_in_next_call() {
    within(|| {
        let runtime = workers(2);
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        let listener = runtime.block_on(listener());
        for byte in 0..20 {
            let mut read = Box::pin({
                let stream = stream.clone();
                async move {
                    let mut buf = [0; 8];
                    let read = (&*stream).read(&mut buf).await?;
                    Ok::<_, std::io::Error>(buf[..read].to_vec())
                }
            });
            let mut accept = Box::pin(listener.0.accept());
            runtime.block_on(async {
                assert!(poll_once(read.as_mut()).await.is_none(), "nothing was sent");
                assert!(poll_once(accept.as_mut()).await.is_none(), "no client has connected");
            });
            // The event arrives before the call or during it.
            let act = move |peer: &mut std::net::TcpStream| {
                peer.write_all(&[byte]).expect("write");
                std::net::TcpStream::connect(listener.1).expect("connect")
            };
            let _client = if byte % 2 == 0 { Some(act(&mut peer)) } else { None };
            let both = async {
                let _client = (byte % 2 == 1).then(|| act(&mut peer));
                (read.await, accept.await.map(drop))
            };
            let (read, accepted) = if byte % 3 == 0 { future::block_on(both) } else { runtime.block_on(both) };
            assert_eq!(read.expect("no read fails because the call has ended"), [byte]);
            accepted.expect("no accept fails because the call has ended");
        }
    });
}

/// A timer that was armed in a `block_on` call continues in tasks and in the next call, and is never early.
#[test]
fn calls_timers_continue_after_it() {
    within(|| {
        let runtime = workers(2);
        for round in 0..20 {
            let (deadline, tasks) = runtime.block_on(async {
                let deadline = Instant::now() + 5 * MS;
                // The wait begins in the call and continues in the task.
                let begun = |wait: Sleep| async move {
                    let mut wait = Box::pin(wait);
                    let is_over = poll_once(wait.as_mut()).await.is_some();
                    assert!(!is_over || Instant::now() >= wait.deadline(), "the timer is early");
                    wait
                };
                let wait = begun(sleep_until(deadline)).await;
                let (notify, notified) = async_channel::bounded(1);
                let waiting = spawn(async move {
                    let mut wait = wait;
                    assert!(
                        poll_once(wait.as_mut()).await.is_none() || Instant::now() >= deadline,
                        "the timer is early"
                    );
                    // In half of the rounds the receiver is gone.
                    let _ = notify.try_send(());
                    wait.await;
                    Instant::now()
                });
                let limited = {
                    let mut limited = Box::pin(async move {
                        timeout_at(deadline, pending::<()>()).await.expect_err("the time is over");
                        Instant::now()
                    });
                    // On a slow machine the timeout may end here.
                    let ended = poll_once(limited.as_mut()).await;
                    spawn(async move {
                        match ended {
                            Some(ended) => ended,
                            None => limited.await,
                        }
                    })
                };
                if round % 2 == 0 {
                    notified.recv().await.expect("the task waits");
                }
                let far = begun(sleep(HOUR)).await;
                let kept = begun(sleep_until(deadline)).await;
                (deadline, (waiting, limited, kept, far))
            });
            let (waiting, limited, kept, mut far) = tasks;
            for task in [waiting, limited] {
                let ended = future::block_on(task).expect("the task ends");
                assert!(ended >= deadline, "a timer is {:?} early", deadline - ended);
            }
            runtime.block_on(async move {
                kept.await;
                assert!(Instant::now() >= deadline, "a timer is early");
                assert!(poll_once(far.as_mut()).await.is_none(), "a timer is an hour early");
                far.reset(Instant::now() + MS);
                far.await;
            });
        }
    });
}

/// A call may block its thread in a foreign executor, or poll there again and again, until a timer and a socket of the
/// runtime are ready.
#[test]
fn foreign_executor_in_call_goes_on() {
    for count in [1, 2, 4] {
        within(move || {
            let runtime = workers(count);
            let (mut stream, mut peer) = pair_with_std();
            runtime.block_on(async {
                future::block_on(sleep(10 * MS));
                assert!(poll_once(stream.read(&mut [0])).await.is_none(), "nothing was sent");
                peer.write_all(b"1").expect("write");
                future::block_on(stream.read_exact(&mut [0])).expect("read");
                let mut buf = [0];
                let mut read = stream.read_exact(&mut buf);
                let mut polls = 0;
                while future::block_on(poll_once(&mut read)).is_none() {
                    polls += 1;
                    if polls == 2 {
                        peer.write_all(b"2").expect("write");
                    }
                }
                assert_eq!(buf, *b"2");
            });
        });
    }
}

/// A call that waits takes no descriptor.
#[test]
fn waiting_call_takes_no_descriptor() {
    in_own_process("block_on::waiting_call_takes_no_descriptor", || {
        let runtime = workers(2);
        let (mut stream, mut peer) = pair_with_std();
        let before = count_of("fd");
        runtime.block_on(async {
            assert!(poll_once(stream.read(&mut [0])).await.is_none(), "nothing was sent");
            assert_eq!(count_of("fd"), before);
            peer.write_all(b"x").expect("write");
            stream.read_exact(&mut [0]).await.expect("read");
        });
    });
}

/// The runtime of a `Handle::block_on` call ends while a read and a sleep of the call wait. Both go on.
#[test]
fn call_outlives_its_runtime() {
    for count in [1, 2, 4] {
        within(move || {
            let runtime = workers(count);
            let handle = runtime.handle().clone();
            let (mut stream, mut peer) = pair_with_std();
            let (waits, waiting) = mpsc::channel();
            let call = thread::spawn(move || {
                handle.block_on(async move {
                    let deadline = Instant::now() + 50 * MS;
                    let mut sleep = sleep_until(deadline);
                    let mut word = [0];
                    let mut read = stream.read_exact(&mut word);
                    assert!(poll_once(&mut sleep).await.is_none() || Instant::now() >= deadline, "the timer is early");
                    assert!(poll_once(&mut read).await.is_none(), "nothing was sent");
                    waits.send(()).expect("the test waits");
                    let local = spawn_local(async move {
                        sleep.await;
                        assert!(Instant::now() >= deadline, "the timer is early");
                    });
                    read.await.expect("the read goes on");
                    local.await.expect("the sleep goes on");
                    let refused = spawn(ready(())).await.expect_err("the runtime has ended");
                    assert!(refused.is_cancelled(), "{refused}");
                });
            });
            waiting.recv().expect("the call waits");
            drop(runtime);
            peer.write_all(b"x").expect("write");
            call.join().expect("the call ends");
        });
    }
}

/// The runtime of a `Handle::block_on` call ends, but a stuck task holds its end up. The call goes on meanwhile.
#[test]
fn call_times_out_while_runtime_ends() {
    within(|| {
        let runtime = workers(2);
        let stuck = block_workers(runtime.handle(), 1);
        // One call beside the stuck worker, and one beside the worker that waits for it.
        let (begins, begun) = mpsc::channel();
        let (shut, is_shut) = async_channel::bounded::<()>(1);
        let calls = [(); 2].map(|()| {
            let (handle, begins, is_shut) = (runtime.handle().clone(), begins.clone(), is_shut.clone());
            thread::spawn(move || {
                let (mut stream, _peer) = pair_with_std();
                handle.block_on(async {
                    assert!(poll_once(stream.read(&mut [0])).await.is_none(), "nothing was sent");
                    begins.send(()).expect("the test waits");
                    is_shut.recv().await.expect_err("nothing is sent");
                    timeout(10 * MS, stream.read(&mut [0])).await.expect_err("nothing was sent");
                });
            })
        });
        calls.iter().for_each(|_| begun.recv().expect("the call waits"));
        let error = runtime.shutdown_timeout(MS).expect_err("a task is stuck");
        assert!(error.workers_running() > 0, "{error}");
        drop(shut);
        calls.into_iter().for_each(|call| call.join().expect("the call ends"));
        drop(stuck);
    });
}

/// `Handle::block_on` of a current-thread runtime runs its own future, and no task of the runtime.
#[test]
fn handle_drives_no_current_thread_runtime() {
    within(|| {
        let runtime = one_worker();
        let task = runtime.handle().spawn(ready(7));
        let (mut stream, mut peer) = pair_with_std();
        runtime.handle().block_on(async {
            assert!(poll_once(stream.read(&mut [0])).await.is_none(), "nothing was sent");
            peer.write_all(b"x").expect("write");
            sleep(MS).await;
            stream.read_exact(&mut [0]).await.expect("read");
        });
        assert!(!task.is_finished(), "no thread is in the runtime's own block_on");
        assert_eq!(runtime.block_on(task).expect("the task runs"), 7);
    });
}

/// A panic in a `block_on` call reaches its caller and leaves the runtime and its tasks alone.
#[test]
fn panicking_call_leaves_runtime_usable() {
    within(|| {
        let runtime = workers(2);
        let task = runtime.handle().spawn(pending::<()>());
        let (stream, mut peer) = pair_with_std();
        let stream = Arc::new(stream);
        for _ in 0..3 {
            let panic = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    drop(spawn_local(pending::<()>()));
                    assert!(poll_once((&*stream).read(&mut [0])).await.is_none(), "nothing was sent");
                    yield_now().await;
                    resume_unwind(Box::new("on purpose"));
                });
            }));
            assert_eq!(panic.expect_err("the panic reaches the caller").downcast_ref::<&str>(), Some(&"on purpose"));
            assert!(Handle::try_current().is_err(), "the thread must be outside the runtime again");
        }
        assert_eq!(runtime.handle().metrics().tasks_alive(), 1, "a panic in the call must not end the runtime's task");
        assert!(!task.is_finished());
        peer.write_all(b"x").expect("write");
        assert_eq!(runtime.block_on(async { (&*stream).read(&mut [0]).await }).expect("the socket still works"), 1);
        on_each_worker(runtime.handle(), 2, |_| ());
    });
}
