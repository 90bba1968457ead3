//! Shutdown without loss: a client whose request had begun to arrive when the server stops gets its whole answer.
//!
//! The clients of an example send while the example is stopped by SIGSTOP. SIGTERM comes next, and then SIGCONT. So each
//! first byte is in the kernel before the signal, on connections that the server has accepted and on connections in its
//! queue, and the server learns of all of it at once.

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use futures_lite::future::{block_on, poll_once};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{ShutdownSignal, TcpStream, serve};
use kittiwake::time::{Duration, Instant, timeout};
use programs::Program;
use socket2::SockRef;
use support::*;

const SIZES: [usize; 3] = [64, 3_000, 100_000];
const ROUNDS: usize = 20;

/// Clients of a round. Half of them were served before, and half of them wait in the queue.
const CLIENTS: usize = 100;

// ---- the examples ----

/// An echo answers all bytes, with one worker and with four.
#[test]
fn echo_answers_what_had_arrived() {
    for workers in ["1", "4"] {
        for size in SIZES {
            let body = pattern(size);
            Case::new("echo", &["--workers", workers], b"x", &body, exactly(&body)).run(ROUNDS);
        }
    }
}

/// The serve example answers all bytes.
#[test]
fn serve_answers_what_had_arrived() {
    for size in SIZES {
        let body = pattern(size);
        Case::new("serve", &[], b"x", &body, exactly(&body)).run(ROUNDS);
    }
}

/// A proxy passes on all bytes, and all bytes of the answers.
#[test]
fn proxy_passes_what_had_arrived() {
    for size in SIZES {
        let body = pattern(size);
        let mut case = Case::new("proxy", &[], b"x", &body, exactly(&body));
        case.backend = Some("echo");
        case.run(ROUNDS / 4);
    }
}

/// A web server answers each request, with one worker and with four.
#[test]
fn web_answers_what_had_arrived() {
    let request = |body: &[u8]| {
        let head = format!("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    for workers in ["1", "4"] {
        for size in SIZES {
            let body = pattern(size);
            let end = [b"\r\n\r\n", &body[..]].concat();
            let is_answer = move |got: &[u8]| got.starts_with(b"HTTP/1.1 200 ") && got.ends_with(&end);
            let mut case =
                Case::new("web", &["--workers", workers, "."], &request(b"x"), &request(&body), Arc::new(is_answer));
            case.is_greeted = Arc::new(|got| got.ends_with(b"\r\n\r\nx"));
            case.run(ROUNDS / 4);
        }
    }
}

/// A server whose requests are lines answers each line, and all lines that were sent together.
#[test]
fn kv_answers_what_had_arrived() {
    let line = |length| format!("set key 60 {}\n", "v".repeat(length));
    // 100 kB. With more and shorter lines a slow machine does not answer all of them in the example's drain timeout.
    for (request, lines) in [(line(50), 1), (line(3_000), 1), (line(3_300).repeat(30), 30)] {
        Case::new("kv", &[], b"del bird\n", request.as_bytes(), exactly(&b"ok\n".repeat(lines))).run(ROUNDS / 10);
    }
}

/// As above, with several workers, and with requests that are longer than a read.
#[test]
fn mini_redis_answers_what_had_arrived() {
    for workers in ["1", "4"] {
        for size in SIZES {
            let body = "v".repeat(size);
            let request = format!("*2\r\n$4\r\nECHO\r\n${size}\r\n{body}\r\n");
            let answer = format!("${size}\r\n{body}\r\n");
            let mut case = Case::new(
                "mini_redis",
                &["--workers", workers],
                b"PING\r\n",
                request.as_bytes(),
                exactly(answer.as_bytes()),
            );
            case.is_greeted = exactly(b"+PONG\r\n");
            case.run(ROUNDS / 4);
        }
    }
}

/// Servers that share a port answer each line, whichever of them has its connection.
#[test]
fn one_per_core_answers_what_had_arrived() {
    for size in SIZES {
        let request = format!("{}\n", "l".repeat(size - 1));
        let is_answer = Arc::new(|got: &[u8]| got.starts_with(b"worker ") && got.ends_with(b"\n"));
        let mut case = Case::new("one_per_core", &["--workers", "4"], b"\n", request.as_bytes(), is_answer.clone());
        case.is_greeted = is_answer;
        case.run(ROUNDS / 4);
    }
}

/// Lines that had arrived reach the other members of a chat.
#[test]
fn chat_passes_what_had_arrived() {
    for _ in 0..ROUNDS / 4 {
        within(|| {
            let mut chat = Program::start("chat", &[&own_address()]);
            let (mut sender, mut reader) = (chat.connect(), chat.connect());
            let mut got = Vec::new();
            // Each of them has heard of the other one, so both are members.
            read_until(&mut sender, &mut Vec::new(), |got| got.ends_with(b" has joined\n")).unwrap();
            sender.write_all(b"hello\n").unwrap();
            read_until(&mut reader, &mut got, |got| got.ends_with(b": hello\n")).unwrap();
            // The reader stays a member while its line has no end, and not only for the grace of the chat.
            reader.write_all(b"x").unwrap();
            chat.signal("STOP");
            for number in 0..20 {
                sender.write_all(format!("line {number} {}\n", "c".repeat(500)).as_bytes()).unwrap();
            }
            chat.signal("TERM");
            chat.signal("CONT");
            let last = format!(": line 19 {}\n", "c".repeat(500));
            let has_last = |got: &[u8]| got.windows(last.len()).any(|part| part == last.as_bytes());
            // If a line is lost, the chat closes the connection at its drain timeout.
            if read_until(&mut reader, &mut got, has_last).is_ok() {
                reader.write_all(b"\n").unwrap();
                reader.read_to_end(&mut got).unwrap();
            }
            let text = String::from_utf8(got).unwrap();
            let missing: Vec<_> = (0..20).filter(|number| !text.contains(&format!(": line {number} c"))).collect();
            assert!(missing.is_empty(), "the chat has lost the lines {missing:?}");
            drop(sender);
            chat.ended();
        });
    }
}

/// An echo on a Unix socket answers all bytes.
#[test]
fn unix_echo_answers_what_had_arrived() {
    for size in SIZES {
        for round in 0..ROUNDS / 4 {
            within(move || {
                let body = pattern(size);
                let name = format!("kittiwake-loss-{}-{size}-{round}", std::process::id());
                let path = std::env::temp_dir().join(name);
                let mut server = Program::start("unix_echo", &[path.to_str().unwrap()]);
                let accepted: Vec<_> = (0..CLIENTS / 2).map(|_| UnixStream::connect(&path).unwrap()).collect();
                for mut client in &accepted {
                    client.write_all(b"x").unwrap();
                    client.read_exact(&mut [0]).unwrap();
                }
                server.signal("STOP");
                let queued = (0..CLIENTS / 2).map(|_| UnixStream::connect(&path).unwrap());
                let clients: Vec<_> = accepted.into_iter().chain(queued).collect();
                expect_answers(&mut server, clients, &body, &exactly(&body));
            });
        }
    }
}

/// Datagrams that had arrived are answered.
#[test]
fn udp_echo_answers_what_had_arrived() {
    for _ in 0..ROUNDS {
        within(|| {
            let mut server = Program::start("udp_echo", &[&own_address()]);
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(server.address()).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            server.signal("STOP");
            for number in 0..50 {
                client.send(&[number; 1000]).unwrap();
            }
            server.signal("TERM");
            server.signal("CONT");
            for number in 0..50 {
                let mut got = [0; 2000];
                assert_eq!(client.recv(&mut got).unwrap(), 1000);
                assert_eq!(got[..1000], [number; 1000]);
            }
            server.ended();
        });
    }
}

/// A client that never sends does not hold up the end, whether it was accepted or waits in the queue. Nor does one that
/// keeps its connection after the server has closed its side.
#[test]
fn silent_clients_hold_up_no_end() {
    within(|| {
        let names = ["echo", "serve", "kv", "mini_redis", "one_per_core", "chat"];
        let servers = names.map(|name| (name, Program::start(name, &[&own_address()])));
        let accepted: Vec<_> = servers.iter().flat_map(|(_, server)| [server.connect(), server.connect()]).collect();
        servers.iter().for_each(|(_, server)| server.signal("STOP"));
        let queued: Vec<_> = servers.iter().flat_map(|(_, server)| [server.connect(), server.connect()]).collect();
        for (_, server) in &servers {
            server.signal("TERM");
            server.signal("CONT");
        }
        for (name, mut server) in servers {
            let (report, errors) = server.ended();
            let is_whole = report.contains(" 0 open") && report.contains(" 0 failed");
            assert!(is_whole, "{name} has waited for its drain timeout: {report}{errors}");
        }
        drop((accepted, queued));
    });
}

/// A client that sends its next request as soon as it has an answer does not hold up the end. Its last answer is whole.
#[test]
fn busy_clients_hold_up_no_end() {
    const CASES: [(&str, &[u8], &[u8]); 2] =
        [("kv", b"set bird 60 tern\n", b"ok\n"), ("mini_redis", b"PING\r\n", b"+PONG\r\n")];
    within(|| {
        for (name, request, answer) in CASES {
            let mut server = Program::start(name, &[&own_address()]);
            let (answered, answers) = std::sync::mpsc::channel();
            let clients = (0..4).map(|_| {
                let (mut client, answered) = (server.connect(), answered.clone());
                std::thread::spawn(move || {
                    loop {
                        let mut got = Vec::new();
                        let read = client
                            .write_all(request)
                            .and_then(|()| read_until(&mut client, &mut got, |got| got == answer));
                        if read.is_err() {
                            break got;
                        }
                        let _ = answered.send(());
                    }
                })
            });
            let clients: Vec<_> = clients.collect();
            for _ in 0..100 {
                answers.recv().unwrap();
            }
            server.signal("TERM");
            let (report, errors) = server.ended();
            assert!(report.contains(" 0 open"), "{name} has waited for its drain timeout: {report}{errors}");
            for client in clients {
                assert_eq!(client.join().unwrap(), b"", "{name} has cut an answer");
            }
        }
    });
}

/// A request that begins before the signal and ends after it is answered.
#[test]
fn half_sent_requests_are_answered() {
    const SECOND_HALF: &[u8] = b"60 wings\n";
    within(|| {
        let mut kv = Program::start("kv", &[&own_address()]);
        let (mut accepted, silent) = (kv.connect(), kv.connect());
        accepted.write_all(b"del bird\nset bird ").unwrap();
        read_until(&mut accepted, &mut Vec::new(), |got| got == b"none\n").unwrap();
        kv.signal("STOP");
        let mut queued = kv.connect();
        queued.write_all(b"set bird ").unwrap();
        kv.signal("TERM");
        kv.signal("CONT");
        // The silent client reads to its end when the grace is over.
        assert_eq!(read_all(silent), b"");
        for client in [&mut accepted, &mut queued] {
            client.write_all(SECOND_HALF).unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"ok\n");
        }
        kv.ended();
    });
}

// ---- handlers ----

/// A read in `run_until_triggered` returns all that the kernel holds, piece by piece, although no event has reported it.
#[test]
fn reads_empty_the_kernel_first() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut buf) = (ShutdownSignal::new(), [0; 1000]);
        // The stream is registered, and its last event is used up.
        assert!(poll_once(stream.read(&mut buf)).await.is_none(), "the peer sends nothing");
        let sent = pattern(50_000);
        peer.write_all(&sent).unwrap();
        until_received(&stream, sent.len()).await;
        signal.trigger();
        let mut got = Vec::new();
        while let Some(read) = signal.run_until_triggered(stream.read(&mut buf)).await {
            got.extend_from_slice(&buf[..read.unwrap()]);
        }
        assert_eq!(got.len(), sent.len(), "the kernel had more");
        assert!(got == sent);
    });
}

/// A read that is refused for want of budget does not look like an empty kernel.
#[test]
fn used_up_budget_is_no_end() {
    run(|| async {
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut byte) = (ShutdownSignal::new(), [0]);
        signal.trigger();
        let sent = pattern(1_000);
        peer.write_all(&sent).unwrap();
        until_received(&stream, sent.len()).await;
        let mut got = Vec::new();
        // More reads than one poll of a task may make.
        while let Some(read) = signal.run_until_triggered(stream.read(&mut byte)).await {
            got.extend_from_slice(&byte[..read.unwrap()]);
        }
        assert!(got == sent, "{} of {} bytes were read", got.len(), sent.len());
    });
}

/// A handler that takes what the kernel still has lets other tasks run in between.
#[test]
fn last_reads_let_others_run() {
    run(|| async {
        const BYTES: usize = 10_000;
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut byte) = (ShutdownSignal::new(), [0]);
        // The stream is registered, and its last event is used up. So each read asks the kernel.
        assert!(poll_once(stream.read(&mut byte)).await.is_none(), "the peer sends nothing");
        peer.write_all(&pattern(BYTES)).unwrap();
        until_received(&stream, BYTES).await;
        signal.trigger();
        let turns = Arc::new(AtomicUsize::new(0));
        let other = kittiwake::spawn({
            let turns = turns.clone();
            async move {
                loop {
                    turns.fetch_add(1, SeqCst);
                    kittiwake::task::yield_now().await;
                }
            }
        });
        let mut read = 0;
        while signal.run_until_triggered(stream.read(&mut byte)).await.is_some() {
            read += 1;
        }
        assert_eq!(read, BYTES);
        // A poll of a task has a budget of 128 operations.
        let turns = turns.load(SeqCst);
        assert!(turns >= BYTES / 128 - 1, "the other task has run {turns} times beside {BYTES} reads");
        other.abort();
    });
}

/// The end of the grace asks the kernel. After a long poll the deadline is over, and no event has reported bytes that
/// came in time.
#[test]
fn end_of_grace_asks_the_kernel() {
    run(|| async {
        const GRACE: Duration = Duration::from_millis(50);
        let (mut stream, mut peer) = pair_with_std();
        let (mut signal, mut buf) = (ShutdownSignal::new(), [0; 64]);
        signal.trigger();
        let mut read = Box::pin(signal.run_with_grace(GRACE, stream.read(&mut buf)));
        assert!(poll_once(read.as_mut()).await.is_none(), "the grace begins");
        peer.write_all(b"in time").unwrap();
        spin(2 * GRACE);
        let read = poll_once(read).await.expect("the grace is over").expect("the bytes have come in time").unwrap();
        assert_eq!(&buf[..read], b"in time");
    });
}

/// The grace ends also for a future that uses up its budget in each poll. The end of the grace is a timer, which would
/// otherwise have no budget left in any of these polls.
#[test]
fn endless_future_ends_with_grace() {
    run(|| async {
        let mut signal = ShutdownSignal::new();
        signal.trigger();
        let endless = async {
            loop {
                kittiwake::task::consume_budget().await;
            }
        };
        assert_eq!(signal.run_with_grace(Duration::from_millis(20), endless).await, None::<()>);
    });
}

/// After the signal each call waits for the grace, and no longer.
#[test]
fn each_call_has_the_grace() {
    const GRACE: Duration = Duration::from_millis(300);
    run_paused(|| async {
        let mut signal = ShutdownSignal::new();
        let begun = Instant::now();
        let trigger = signal.clone();
        kittiwake::spawn(async move {
            kittiwake::time::sleep(Duration::from_secs(5)).await;
            trigger.trigger();
        });
        assert_eq!(signal.run_with_grace(GRACE, std::future::pending::<()>()).await, None);
        assert_at(Instant::now(), begun + Duration::from_secs(5) + GRACE);
        for _ in 0..3 {
            let begun = Instant::now();
            let late = kittiwake::time::sleep(GRACE - TICK);
            assert_eq!(signal.run_with_grace(GRACE, late).await, Some(()), "a future that ends in time wins");
            assert!(begun.elapsed() < GRACE);
            let begun = Instant::now();
            assert_eq!(signal.run_with_grace(GRACE, std::future::pending::<()>()).await, None);
            assert_at(Instant::now(), begun + GRACE);
        }
    });
}

/// Every request that had begun to arrive is answered whole, on one worker and on four: on connections in the queue, and
/// on connections whose handlers wait.
#[test]
fn handlers_answer_what_had_arrived() {
    for count in [1, 4] {
        for size in SIZES {
            within(move || {
                for _ in 0..ROUNDS {
                    answer_in_process(count, size);
                }
            });
        }
    }
}

fn answer_in_process(count: usize, size: usize) {
    let runtime = workers(count);
    let (listener, address) = runtime.block_on(own_listener());
    let signal = ShutdownSignal::new();
    let handler = {
        let signal = signal.clone();
        move |stream, _| answer(stream, signal.clone(), size)
    };
    let server = runtime.handle().spawn(serve(listener, handler).with_shutdown(&signal));
    let body = pattern(size);
    let mut clients: Vec<_> = (0..CLIENTS / 2).map(|_| client(address)).collect();
    for mut client in &clients {
        client.write_all(&body).unwrap();
        assert!(read_until(client, &mut Vec::new(), |got| got == body).is_ok());
    }
    let blocked = block_workers(runtime.handle(), count);
    clients.extend((0..CLIENTS / 2).map(|_| client(address)));
    for mut client in &clients {
        SockRef::from(client).set_send_buffer_size(200_000).unwrap();
        client.write_all(&body).unwrap();
    }
    signal.trigger();
    drop(blocked);
    let lost: Vec<_> = clients.into_iter().filter_map(|client| lost_answer(client, &exactly(&body))).collect();
    let report = block_on(server).unwrap().unwrap();
    assert!(lost.is_empty(), "{} of {CLIENTS} clients have lost answers: {lost:?}; {report}", lost.len());
}

/// Answers requests of `size` bytes with themselves. Between two requests it may end.
async fn answer(stream: TcpStream, mut signal: ShutdownSignal, size: usize) -> io::Result<()> {
    let mut request = vec![0; size];
    loop {
        let begun = signal.run_until_triggered((&stream).read(&mut request)).await;
        let Some(begun @ 1..) = begun.transpose()? else { break };
        (&stream).read_exact(&mut request[begun..]).await?;
        (&stream).write_all(&request).await?;
    }
    let _ = timeout(Duration::from_secs(1), stream.drain(1 << 20)).await;
    Ok(())
}

/// A client that never stops sending is cut off at the drain timeout.
#[test]
fn drain_timeout_ends_endless_clients() {
    within(|| {
        let runtime = workers(2);
        let (listener, address) = runtime.block_on(own_listener());
        let signal = ShutdownSignal::new();
        let handler = {
            let signal = signal.clone();
            move |mut stream: TcpStream, _| {
                let mut signal = signal.clone();
                async move {
                    let mut buf = [0; 4096];
                    let grace = Duration::from_secs(3600);
                    while let Some(Ok(1..)) = signal.run_with_grace(grace, stream.read(&mut buf)).await {}
                }
            }
        };
        let server = serve(listener, handler).with_shutdown(&signal).drain_timeout(Duration::from_millis(50));
        let server = runtime.handle().spawn(server);
        let mut flood = client(address);
        flood.write_all(b"x").unwrap();
        let flood = std::thread::spawn(move || while flood.write_all(&[0; 4096]).is_ok() {});
        signal.trigger();
        let report = block_on(server).unwrap().unwrap();
        assert_eq!((report.accepted, report.open.len()), (1, 1));
        flood.join().unwrap();
    });
}

// ---- helpers ----

/// Whether the bytes that a client has read are its whole answer.
type IsAnswer = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The answer is `expected`. Wrong bytes fail the test.
fn exactly(expected: &[u8]) -> IsAnswer {
    let expected = expected.to_vec();
    Arc::new(move |got| {
        assert!(expected.starts_with(got), "a client has got bytes that are not those of its answer");
        got.len() == expected.len()
    })
}

/// An example, and the talk that its clients have with it.
#[derive(Clone)]
struct Case {
    name: &'static str,
    args: Vec<&'static str>,
    /// An example that runs meanwhile. Its address is the last argument.
    backend: Option<&'static str>,
    greeting: Vec<u8>,
    is_greeted: IsAnswer,
    request: Vec<u8>,
    is_answer: IsAnswer,
}

impl Case {
    /// The greeting is answered by itself, unless `is_greeted` is set; `kv` knows none.
    fn new(name: &'static str, args: &[&'static str], greeting: &[u8], request: &[u8], is_answer: IsAnswer) -> Self {
        let is_greeted = exactly(if name == "kv" { b"none\n" } else { greeting });
        let (args, greeting, request) = (args.to_vec(), greeting.to_vec(), request.to_vec());
        Self { name, args, backend: None, greeting, is_greeted, request, is_answer }
    }

    fn run(&self, rounds: usize) {
        for _ in 0..rounds {
            let case = self.clone();
            within(move || case.round());
        }
    }

    fn round(&self) {
        let address = own_address();
        let backend = self.backend.map(|name| Program::start(name, &[&own_address()]));
        let mut args = self.args.clone();
        args.push(&address);
        args.extend(backend.as_ref().map(|backend| &*backend.listens_on));
        let mut server = Program::start(self.name, &args);
        let accepted: Vec<_> = (0..CLIENTS / 2).map(|_| server.connect()).collect();
        for mut client in &accepted {
            client.write_all(&self.greeting).unwrap();
            read_until(client, &mut Vec::new(), |got| (self.is_greeted)(got)).expect("the client is greeted");
        }
        server.signal("STOP");
        let queued = (0..CLIENTS / 2).map(|_| server.connect());
        let clients: Vec<_> = accepted.into_iter().chain(queued).collect();
        expect_answers(&mut server, clients, &self.request, &self.is_answer);
    }
}

/// The clients of a stopped server send their requests. Then it gets SIGTERM, and goes on.
#[track_caller]
fn expect_answers<S: Read + Write + std::os::fd::AsFd>(
    server: &mut Program,
    mut clients: Vec<S>,
    request: &[u8],
    is_answer: &IsAnswer,
) {
    for client in &mut clients {
        // The kernel takes the whole request, although the server does not read.
        SockRef::from(&*client).set_send_buffer_size(200_000).unwrap();
        client.write_all(request).unwrap();
    }
    server.signal("TERM");
    server.signal("CONT");
    let lost: Vec<_> = clients.into_iter().filter_map(|client| lost_answer(client, is_answer)).collect();
    let (report, errors) = server.ended();
    assert!(lost.is_empty(), "{} of {CLIENTS} clients have lost answers: {lost:?}\n{report}{errors}", lost.len());
}

/// Reads the answer of a client, and says how it was lost, if it was.
fn lost_answer(client: impl Read, is_answer: &IsAnswer) -> Option<String> {
    let mut got = Vec::new();
    let error = read_until(client, &mut got, |got| is_answer(got)).err()?;
    Some(format!("{error} after {} bytes", got.len()))
}

/// Reads until `is_whole`. An end before that is an error.
fn read_until(mut client: impl Read, got: &mut Vec<u8>, is_whole: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut buf = [0; 16_384];
    while !is_whole(got) {
        match client.read(&mut buf) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => got.extend_from_slice(&buf[..read]),
            // A socket with a timeout says so if the process is stopped and goes on, also without a handler: signal(7).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A client whose waits are bounded.
fn client(address: SocketAddr) -> std::net::TcpStream {
    let client = std::net::TcpStream::connect(address).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Waits until the kernel has so many bytes for the stream. No event tells the stream of it.
async fn until_received(stream: &TcpStream, bytes: usize) {
    let received = || rustix::io::ioctl_fionread(stream).expect("FIONREAD");
    while received() < bytes as u64 {
        std::thread::yield_now();
    }
}
