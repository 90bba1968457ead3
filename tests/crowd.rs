//! Many connections: open at once, ready at once, and one after the other.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;

use kittiwake::io::{AsyncReadExt, AsyncWriteExt, Result};
use kittiwake::net::{TcpListener, TcpStream};
use kittiwake::runtime::Handle;
use support::*;

/// More descriptors than most systems grant a process by default.
const DESCRIPTORS: u32 = 4096;

/// A thousand connections are served at the same time.
#[test]
fn thousand_connections_are_served() {
    if !is_child() {
        return in_child_with_descriptors("thousand_connections_are_served", DESCRIPTORS);
    }
    run(|| async {
        let (listener, address) = listener().await;
        kittiwake::spawn(echo_server(listener));
        let (arrived, all_there) = async_channel::bounded(1000);
        let (go, start) = async_channel::bounded::<()>(1);
        let clients: Vec<_> = (0..1000)
            .map(|number| {
                let (arrived, start) = (arrived.clone(), start.clone());
                kittiwake::spawn(async move {
                    let stream = TcpStream::connect(address).await?;
                    arrived.send(()).await.expect("the test counts the clients");
                    // This ends once all clients are connected, so no client leaves before the last one has come.
                    start.recv().await.expect_err("no value is sent");
                    converse(stream, number).await
                })
            })
            .collect();
        for _ in 0..1000 {
            all_there.recv().await.expect("the clients live");
        }
        drop(go);
        for client in clients {
            client.await.expect("the task").expect("a conversation");
        }
        until(|| Handle::current().metrics().tasks_alive() == 1).await;
        assert_eq!(sources(), 1, "only the listener may stay registered");
    });
}

/// Sockets whose events do not fit into one batch of the kernel are all served.
#[test]
fn overfull_event_batch_serves_all_sockets() {
    if !is_child() {
        return in_child_with_descriptors("overfull_event_batch_serves_all_sockets", DESCRIPTORS);
    }
    run(|| async {
        let pairs = many_pairs(1500);
        let (tasks, mut peers): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .map(|(stream, peer)| {
                let task = kittiwake::spawn(async move {
                    let mut bytes = [0; 2];
                    (&stream).read_exact(&mut bytes).await.map(|()| u16::from_le_bytes(bytes))
                });
                (task, peer)
            })
            .unzip();
        until(|| sources() == 1500).await;
        settle().await;
        // The test does not yield here, so the next poll of the kernel finds all events.
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&(number as u16).to_le_bytes()).expect("the peer writes");
        }
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(
                usize::from(task.await.expect("the task").expect("read")),
                number,
                "each task must get its own bytes"
            );
        }
        assert_eq!(sources(), 0, "every socket must be deregistered");
        // Resets end these connections, because thousands of orderly closes would use up the machine's ports.
        peers.into_iter().for_each(reset);
    });
}

fn many_pairs(count: usize) -> Vec<(TcpStream, std::net::TcpStream)> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("local_addr");
    let pair = |_| {
        let peer = std::net::TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        let (stream, _) = listener.accept().expect("accept");
        (TcpStream::from_std(stream).expect("from_std"), peer)
    };
    (0..count).map(pair).collect()
}

/// Ten thousand connections leave no task and no registered socket.
#[test]
fn ten_thousand_connections_leave_nothing() {
    if !is_child() {
        return in_child_with_descriptors("ten_thousand_connections_leave_nothing", DESCRIPTORS);
    }
    run(|| async {
        let (listener, address) = listener().await;
        let server = kittiwake::spawn(echo_server(listener));
        let clients = std::thread::spawn(move || (0..100).for_each(|_| visit(address, 100)));
        until(|| clients.is_finished()).await;
        clients.join().expect("the clients' thread");
        until(|| Handle::current().metrics().tasks_alive() == 1).await;
        assert_eq!(sources(), 1, "only the listener may stay registered");
        server.abort();
        assert!(server.await.expect_err("the task was aborted").is_cancelled());
        let metrics = Handle::current().metrics();
        assert_eq!((metrics.tasks_alive(), metrics.sources_registered()), (0, 0), "nothing may be left");
    });
}

/// Opens `count` connections at the same time, from outside the runtime.
fn visit(address: SocketAddr, count: usize) {
    let mut clients: Vec<_> =
        (0..count).map(|_| std::net::TcpStream::connect_timeout(&address, PATIENCE).expect("connect")).collect();
    for client in &mut clients {
        client.write_all(b"hello").expect("the client writes");
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut reply = [0; 5];
        client.read_exact(&mut reply).expect("the client reads");
        assert_eq!(&reply, b"hello");
        // Most connections end by a reset, for the same reason.
        if number % 10 != 0 {
            reset(client);
        }
    }
}

async fn echo_server(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("accept");
        kittiwake::spawn(async move {
            let mut buf = [0; 1024];
            // The loop ends at the end of the stream, or at a reset.
            while let Ok(read @ 1..) = stream.read(&mut buf).await {
                if stream.write_all(&buf[..read]).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn converse(mut stream: TcpStream, number: u32) -> Result<()> {
    for round in 0..5 {
        let line = (number * 10 + round).to_le_bytes();
        stream.write_all(&line).await?;
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).await?;
        assert_eq!(reply, line, "each client must get its own reply");
    }
    let stream = stream.into_std()?;
    reset(stream);
    Ok(())
}
