//! `kittiwake::inspect`: the page, and the JSON behind it, over real sockets. Which requests are answered, and what the
//! answers say of tasks, sockets and timers.
#![cfg(feature = "inspect")]

mod support;

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;

use hyper::service::Service as _;
use hyper::{Request, StatusCode};
use kittiwake::inspect::{self, Serve};
use kittiwake::io::{AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{ShutdownSignal, TcpListener, TcpStream, UdpSocket};

use kittiwake::spawn;
use kittiwake::task::{self, Id, JoinHandle};
use kittiwake::time::{Duration, advance, pause, resume, sleep};
use serde_json::Value;
use support::{block_workers, own_address, pair, run, settle, within, workers};

// ---- who is answered ----

/// A listener that other machines can reach is refused, and the error says what to do.
#[test]
fn public_listener_is_refused() {
    run(|| async {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(address).await.expect("a port");
            let bound = listener.local_addr().unwrap();
            let error = inspect::serve(listener).await.expect_err("the server must not start");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let text = error.to_string();
            assert!(text.contains(&bound.to_string()), "the error must name the address: {text}");
            assert!(
                text.contains("127.0.0.1") && text.contains("allow_remote(true)"),
                "it must say what to do: {text}"
            );
        }
    });
}

/// Loopback addresses of both families are served, and so is every address with `allow_remote`.
#[test]
fn loopback_listener_is_served() {
    run(|| async {
        for (address, remote) in
            [("127.0.0.1:0", false), ("[::1]:0", false), ("[::ffff:127.0.0.1]:0", false), ("0.0.0.0:0", true)]
        {
            let server = Server::start_on(address, |serve| serve.allow_remote(remote)).await;
            let address = SocketAddr::new(
                if remote { [127, 0, 0, 1].into() } else { server.address.ip() },
                server.address.port(),
            );
            let host = if remote { "kittiwake.example" } else { "localhost" };
            let response = ask(address, &format!("GET / HTTP/1.1\r\nhost: {host}\r\n")).await;
            assert_eq!(response.status, 200, "{address}: {}", response.body);
            server.end().await;
        }
    });
}

/// A connection that asks for nothing, or for nothing more, makes room for others after some seconds. So left-over ones do
/// not keep the page shut.
#[test]
fn silent_client_of_the_page_makes_room() {
    run(|| async {
        let server = Server::start().await;
        let connect = || TcpStream::connect(server.address);
        let (silent, mut answered) = (connect().await.expect("accepted"), connect().await.expect("accepted"));
        answered.write_all(b"HEAD / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("the server reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            answered.read_exact(&mut byte).await.expect("the server answers and keeps the connection");
            head.extend(byte);
        }
        settle().await;
        pause();
        advance(Duration::from_secs(6)).await;
        settle().await;
        for mut client in [silent, answered] {
            let read = futures_lite::future::poll_once(client.read(&mut [0])).await;
            assert!(matches!(read, Some(Ok(0))), "the server must have closed the connection: {read:?}");
        }
        resume();
    });
}

/// A page of another site cannot read this one by a name that points to this machine: only names that no name server
/// gives away are answered.
#[test]
fn foreign_host_is_refused() {
    run(|| async {
        let server = Server::start().await;
        for host in
            ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:7001", "127.3.2.1:7001", "[::1]", "[::1]:7001"]
        {
            assert_eq!(server.ask("GET", "/api/timers", host).await.status, 200, "{host} is this machine");
        }
        for host in [
            "kittiwake.example",
            "localhost.example:7001",
            "127.0.0.1.example",
            "10.0.0.1",
            "[::2]",
            "[::1].example",
            "",
        ] {
            for path in ["/", "/api/summary"] {
                let response = server.ask("GET", path, host).await;
                assert_eq!(response.status, 403, "{host:?} may belong to another machine");
                assert!(response.body.contains("allow_remote(true)"), "{}", response.body);
            }
        }
        let without = ask(server.address, "GET / HTTP/1.0\r\n").await;
        assert_eq!(without.status, 403, "a browser always sends a Host");
    });
}

/// A request of HTTP/2 has its host in the URI. That one is checked too, and comes before the header.
#[test]
fn host_of_the_uri_is_checked() {
    run(|| async {
        for (uri, status) in [("http://kittiwake.example/", 403), ("http://localhost:7001/", 200)] {
            let request = Request::get(uri).header("host", "localhost").body(()).unwrap();
            let response = inspect::service().call(request).await.unwrap_or_else(never);
            assert_eq!(response.status(), StatusCode::from_u16(status).unwrap(), "{uri}");
        }
        let request = Request::get("http://kittiwake.example/").body(()).unwrap();
        let response = inspect::service().allow_remote(true).call(request).await.unwrap_or_else(never);
        assert_eq!(response.status(), StatusCode::OK, "allow_remote allows every host");
    });
}

/// Methods that could change something are refused, for each path.
#[test]
fn only_get_and_head_are_answered() {
    run(|| async {
        let server = Server::start().await;
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"] {
            for path in ["/", "/api/summary", "/none"] {
                let response = server.ask(method, path, "localhost").await;
                assert_eq!(response.status, 405, "{method} {path}");
                assert_eq!(response.header("allow"), Some("GET, HEAD"), "{method} {path}");
            }
        }
    });
}

/// The response to HEAD has the headers of GET, and no body.
#[test]
fn head_has_no_body() {
    run(|| async {
        let server = Server::start().await;
        for path in ["/", "/none"] {
            let (get, head) = (server.ask("GET", path, "localhost").await, server.ask("HEAD", path, "localhost").await);
            assert_eq!(head.body, "", "{path}");
            assert_eq!(head.status, get.status, "{path}");
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
            assert_eq!(head.header("content-length"), Some(&*get.body.len().to_string()), "{path}");
        }
        let head = server.ask("HEAD", "/api/summary", "localhost").await;
        assert_eq!((head.status, &*head.body), (200, ""));
        assert_eq!(head.header("content-type"), Some("application/json"));
        // Without a server, which leaves out every body too.
        for path in ["/", "/none"] {
            let ask = |method| {
                let uri = format!("http://localhost{path}");
                inspect::service().call(Request::builder().method(method).uri(uri).body(()).unwrap())
            };
            let get = ask("GET").await.unwrap_or_else(never);
            let head = ask("HEAD").await.unwrap_or_else(never);
            assert_eq!(head.body(), "", "{path}");
            assert_eq!(head.headers()["content-length"], get.body().len().to_string(), "{path}");
        }
    });
}

/// Every response keeps out resources of other sites, caches and guesses at its type. Only the page's own script and
/// style run, by a nonce that each response has anew.
#[test]
fn headers_forbid_outside_resources() {
    run(|| async {
        let server = Server::start().await;
        for (path, host) in
            [("/", "localhost"), ("/api/summary", "localhost"), ("/none", "localhost"), ("/", "x.example")]
        {
            let response = server.ask("GET", path, host).await;
            assert_eq!(response.header("cache-control"), Some("no-store"), "{path}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert_eq!(response.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
            let policy = response.header("content-security-policy").unwrap_or_default();
            assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
            assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
        }
        let (one, two) = (server.ask("GET", "/", "localhost").await, server.ask("GET", "/", "localhost").await);
        let (nonce, other) = (one.nonce(), two.nonce());
        assert_ne!(nonce, other, "a nonce that a page can learn from another response is none");
        let tags = one.body.matches(&format!(" nonce=\"{nonce}\">")).count();
        assert_eq!(tags, 2, "the style and the script have the nonce");
        for outside in ["src=", "@import", "url(", "//cdn", "innerHTML", "{nonce}"] {
            assert!(!one.body.contains(outside), "the page must not have {outside}");
        }
    });
}

/// The service works under a prefix, whether a router removes the prefix or not. Other paths are not found.
#[test]
fn paths_work_under_a_prefix() {
    run(|| async {
        let server = Server::start().await;
        for prefix in ["", "/inspect", "/a/b", "/api/inspect"] {
            let page = server.ask("GET", &format!("{prefix}/"), "localhost").await;
            assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"), "{prefix}");
            server.json(&format!("{prefix}/api/timers")).await;
        }
        for path in ["/favicon.ico", "/inspect", "/api/none", "/api/", "/api/timers/x"] {
            assert_eq!(server.ask("GET", path, "localhost").await.status, 404, "{path}");
        }
    });
}

/// A parameter that is not valid is an error of the client. Unknown ones are ignored.
#[test]
fn wrong_parameters_are_refused() {
    run(|| async {
        let server = Server::start().await;
        for query in [
            "offset=-1",
            "limit=x",
            "limit=",
            "activity=sleeping",
            "activity=",
            "site=%zz",
            "site=%+1",
            "site=%ff",
            "site=%",
        ] {
            let response = server.ask("GET", &format!("/api/tasks?{query}"), "localhost").await;
            assert_eq!(response.status, 400, "{query}: {}", response.body);
        }
        for query in
            ["", "x=%41", "offset=18446744073709551615&limit=18446744073709551615", "activity=timer,reading,timer"]
        {
            server.json(&format!("/api/tasks?{query}")).await;
        }
    });
}

/// Outside a runtime there is nothing to show, and the response says so.
#[test]
fn no_runtime_is_an_error() {
    within(|| {
        let request = Request::get("http://localhost/api/summary").body(()).unwrap();
        let response = futures_lite::future::block_on(inspect::service().call(request)).unwrap_or_else(never);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.body().contains("not inside a kittiwake runtime"), "{}", response.body());
    });
}

// ---- what the answers say ----

/// The summary counts the tasks of one line of the source together, and says what they wait for.
#[test]
fn summary_counts_tasks_by_site() {
    run(|| async {
        let server = Server::start().await;
        let (line, _sleepers) = (line!(), [(); 3].map(|()| spawn(sleep(Duration::from_secs(3600)))));
        let _other = spawn(pending::<()>());
        settle().await;
        let summary = server.json("/api/summary").await;
        let site = format!("tests/inspect.rs:{line}");
        let row = find(&summary["sites"], "site", &site);
        assert_eq!(row["tasks"], 3, "{row}");
        assert_eq!(row["polls"], 3, "each has been polled once: {row}");
        assert_eq!((&row["groups"][0]["activity"], &row["groups"][0]["tasks"]), (&"timer".into(), &3.into()), "{row}");
        let other = find(&summary["sites"], "site", &format!("tests/inspect.rs:{}", line + 1));
        assert_eq!(other["groups"][0]["activity"], "other", "nothing is known of it: {other}");
        assert_eq!(summary["pid"], std::process::id());
        assert_eq!(summary["workers"].as_array().map(Vec::len), Some(1));
        let accepts = list(&summary["longest_waits"]).iter().any(|task| task["waits_for"][0]["kind"] == "accepting");
        assert!(accepts, "the server of the page waits for a connection: {}", summary["longest_waits"]);
    });
}

/// The tasks of a site come in pages, the longest wait first. No task is missing or twice. A page has at most 500.
#[test]
fn tasks_are_paged_by_wait() {
    run(|| async {
        let server = Server::start().await;
        let half = ShutdownSignal::new();
        let task = |index| {
            let half = (index < 365).then(|| half.clone());
            async {
                if let Some(mut half) = half {
                    half.triggered().await;
                }
                pending::<()>().await;
            }
        };
        let (line, tasks) = (line!(), (0..730).map(|index| spawn(task(index))).collect::<Vec<_>>());
        settle().await;
        // The first half begins to wait anew, so that the order of the ids is not that of the waits.
        sleep(Duration::from_millis(50)).await;
        half.trigger();
        settle().await;
        let path = |offset, limit| format!("/api/tasks?site=tests%2Finspect.rs:{line}&offset={offset}&limit={limit}");
        let (mut seen, mut at) = (Vec::new(), Value::Null);
        let mut last = f64::INFINITY;
        for (offset, expected) in [(0, 300), (300, 300), (600, 130), (730, 0), (100_000, 0)] {
            let page = server.json(&path(offset, 300)).await;
            assert_eq!((&page["total"], &page["offset"]), (&730.into(), &offset.into()));
            assert_eq!(list(&page["tasks"]).len(), expected, "the page at {offset}");
            // On a busy machine it may be of a later snapshot. There the same waits are longer.
            if std::mem::replace(&mut at, page["at"].clone()) != page["at"] {
                last = f64::INFINITY;
            }
            for task in list(&page["tasks"]) {
                let since = task["since"].as_f64().expect("a number of seconds");
                assert!(since <= last, "a wait of {since} s comes after one of {last} s");
                last = since;
                seen.push(task["id"].as_str().expect("an id").to_owned());
            }
        }
        let mut ids: Vec<String> = tasks.iter().map(|task| task.id().to_string()).collect();
        ids.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, ids, "each task must be on one page");
        assert_eq!(list(&server.json(&path(0, 100_000)).await["tasks"]).len(), 500);
        let all = server.json("/api/tasks").await;
        assert_eq!(list(&all["tasks"]).len(), 100, "without a limit a page has 100 tasks");
        assert!(all["total"].as_u64() > Some(730), "without a site there are those of the server too");
    });
}

/// An activity selects the tasks that wait for the same things.
#[test]
fn activity_selects_tasks() {
    run(|| async {
        let server = Server::start().await;
        let (_ours, theirs) = pair().await;
        let task = spawn(async move {
            let mut stream = theirs;
            let _ = kittiwake::time::timeout(Duration::from_secs(3600), stream.read(&mut [0])).await;
        });
        let other = spawn(sleep(Duration::from_secs(3600)));
        settle().await;
        let (task, other) = (task.id().to_string(), other.id().to_string());
        for (activity, id, absent) in
            [("reading,timer", &task, &other), ("timer,reading", &task, &other), ("timer", &other, &task)]
        {
            let page = server.json(&format!("/api/tasks?activity={activity}")).await;
            // The task of this very request may be among them: it waits for its client, with a limit.
            let ids: Vec<_> = list(&page["tasks"]).iter().map(|task| task["id"].as_str().unwrap_or_default()).collect();
            assert!(ids.contains(&id.as_str()) && !ids.contains(&absent.as_str()), "{activity}: {ids:?}");
            assert!(ids.len() <= 2, "{activity}: {ids:?}");
        }
    });
}

/// A name that looks like markup, or like the end of a string, comes back as it was.
#[test]
fn names_are_escaped() {
    run(|| async {
        let server = Server::start().await;
        let name = "</script><b>\"\\\u{7}\u{2028}é";
        let task = task::Builder::new().name(name).spawn(pending::<()>());
        settle().await;
        let response = server.ask("GET", "/api/tasks?activity=other", "localhost").await;
        let page: Value = serde_json::from_str(&response.body).expect("the response is JSON");
        assert_eq!(find(&page["tasks"], "id", &task.id().to_string())["name"], name);
        assert_eq!(response.header("content-type"), Some("application/json"), "no browser takes it for HTML");
    });
}

/// A socket has its addresses, the task that waits for it, and on Linux the bytes that were not read.
#[test]
fn sockets_have_their_queues() {
    run(|| async {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = Server::start().await;
            let listener = TcpListener::bind(address).await.expect("a port");
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.expect("connect");
            let (stream, peer) = listener.accept().await.expect("accept");
            // It waits until the first bytes come, and does not read them.
            let reader = spawn(async move {
                stream.readable().await.expect("readable");
                (stream, pending::<()>().await)
            });
            settle().await;
            client.write_all(&[0; 1000]).await.expect("write");
            settle().await;
            let page = server.json("/api/sockets?limit=500").await;
            let row = find(&page["sockets"], "peer", &peer.to_string());
            assert!(row["fd"].as_i64() > Some(2), "{row}");
            if cfg!(all(target_os = "linux", not(kittiwake_portable))) {
                assert_eq!(
                    (&row["tcp"], &row["receive_queue"], &row["send_queue"]),
                    (&"established".into(), &1000.into(), &0.into()),
                    "{row}"
                );
                let page = find(&page["sockets"], "local", &server.address.to_string());
                assert_eq!((&page["tcp"], &page["waits"]), (&"listening".into(), &"accepting".into()), "{page}");
            }
            reader.abort();
        }
    });
}

/// A UDP socket with the address of a listener does not show that listener's queue.
#[test]
fn udp_socket_has_no_queues_of_tcp() {
    run(|| async {
        let server = Server::start().await;
        let listener = TcpListener::bind(own_address()).await.expect("a port");
        let socket = UdpSocket::bind(listener.local_addr().unwrap()).await.expect("the same port of UDP");
        let tasks = [
            spawn(async move { listener.accept().await.map(drop) }),
            spawn(async move { socket.readable().await.map(drop) }),
        ];
        settle().await;
        let page = server.json("/api/sockets?limit=500").await;
        let state = |waits: &str, task: Id| {
            let is_of = |row: &&Value| row["waits"] == waits && row["task"]["id"] == task.to_string().as_str();
            &list(&page["sockets"]).iter().find(is_of).expect("the socket is shown")["tcp"]
        };
        if cfg!(all(target_os = "linux", not(kittiwake_portable))) {
            assert_eq!(state("accepting", tasks[0].id()), "listening");
        }
        assert_eq!(state("reading", tasks[1].id()), &Value::Null);
        tasks.iter().for_each(JoinHandle::abort);
    });
}

/// Sockets that a task wants to write to come before those that a task wants to read from.
#[test]
fn blocked_writers_come_first() {
    run(|| async {
        let server = Server::start().await;
        let ((_reader, mut writer), (_other, mut reads)) = (pair().await, pair().await);
        let peer = writer.peer_addr().unwrap();
        let _reading = spawn(async move { reads.read(&mut [0]).await });
        let writing = spawn(async move { writer.write_all(&vec![0; 64 << 20]).await });
        settle().await;
        let page = server.json("/api/sockets").await;
        let first = &page["sockets"][0];
        assert_eq!((&first["peer"], &first["waits"]), (&peer.to_string().into(), &"writing".into()), "{first}");
        assert_eq!(first["task"]["id"], writing.id().to_string(), "{first}");
        if cfg!(all(target_os = "linux", not(kittiwake_portable))) {
            assert!(first["send_queue"].as_u64() > Some(0), "its peer has not read it all: {first}");
        }
    });
}

/// The timers are counted by the time at which they fire, each once.
#[test]
fn timers_are_counted_by_distance() {
    run(|| async {
        let server = Server::start().await;
        let sleep = |seconds| spawn(sleep(Duration::from_secs(seconds)));
        let _timers: Vec<_> = [9, 30, 30, 3600, 3600, 3600].into_iter().map(sleep).collect();
        settle().await;
        let timers = server.json("/api/timers").await;
        let rows: Vec<_> = list(&timers["timers"])
            .iter()
            .map(|row| (row["within"].as_f64(), row["timers"].as_u64().unwrap()))
            .collect();
        let bounds: Vec<_> = rows.iter().map(|(within, _)| *within).collect();
        assert_eq!(bounds, [Some(0.01), Some(0.1), Some(1.0), Some(10.0), Some(60.0), None]);
        let counts: Vec<_> = rows.iter().map(|(_, timers)| *timers).collect();
        // The limit of the page's own connection may be among the first: it ends within 5 s.
        assert!((1..=2).contains(&counts[3]) && counts[4..] == [2, 3], "{timers}");
        assert_eq!(timers["total"].as_u64(), Some(counts.iter().sum()), "{timers}");
        assert!(timers["next"].as_f64() <= Some(9.0), "{timers}");
    });
}

/// Ten pages that ask at the same time cost as much as one: they get the same snapshot, and so does a request that
/// comes soon after.
#[test]
fn requests_share_a_snapshot() {
    run(|| async {
        let server = Server::start().await;
        let (address, start) = (server.address, std::time::Instant::now());
        let asking: Vec<JoinHandle<Value>> = (0..10).map(|_| spawn(json(address, "/api/timers".into()))).collect();
        let mut moments = Vec::new();
        for response in asking {
            moments.push(response.await.expect("a response")["at"].clone());
        }
        moments.push(server.json("/api/summary").await["at"].clone());
        moments.dedup();
        // On a slow machine they may take longer than a snapshot is fresh.
        let is_slow = start.elapsed() > Duration::from_millis(1_800);
        assert!(moments.len() == 1 || is_slow, "so many snapshots were made: {moments:?}");
    });
}

/// A page in a runtime of its own shows another runtime whose workers are all stuck, and names the line.
#[test]
fn stuck_runtime_is_shown() {
    within(|| {
        let sick = workers(2);
        let _blocked = block_workers(sick.handle(), 2);
        let handle = sick.handle().clone();
        kittiwake::block_on(async move {
            let stuck =
                |summary: &Value| list(&summary["workers"]).iter().filter(|worker| worker["state"] == "stuck").count();
            let mut summary = Value::Null;
            // Each worker has to be in its task for 10 ms. A new server makes a new snapshot at once.
            while summary.is_null() || stuck(&summary) < 2 {
                let server = Server::start_on("127.0.0.1:0", |serve| serve.handle(handle.clone())).await;
                summary = server.json("/api/summary").await;
            }
            for worker in list(&summary["workers"]) {
                let site = worker["task"]["site"].as_str().unwrap_or_default();
                assert!(site.starts_with("tests/support/mod.rs:"), "the line of the task that blocks: {worker}");
            }
        });
    });
}

/// Closures that fill the threads for blocking work do not hold up the page.
#[test]
fn full_pool_does_not_hold_the_page() {
    within(|| {
        let runtime = support::blocking_threads(1);
        let (end, ended) = mpsc::channel::<()>();
        let closure = runtime.handle().spawn_blocking(move || ended.recv().is_err());
        let waiting = runtime.handle().spawn_blocking(|| true);
        runtime.block_on(async {
            let server = Server::start().await;
            let page = server.json("/api/tasks").await;
            let row = find(&page["tasks"], "id", &closure.id().to_string());
            assert_eq!(row["kind"], "blocking", "{row}");
            let row = find(&page["tasks"], "id", &waiting.id().to_string());
            assert_eq!((&row["kind"], &row["state"]), (&"blocking".into(), &"queued".into()), "{row}");
            drop(end);
            assert!(closure.await.unwrap() && waiting.await.unwrap());
        });
    });
}

/// A service of a runtime that has ended answers all the same.
#[test]
fn ended_runtime_has_no_tasks() {
    within(|| {
        let runtime = workers(1);
        let _task = runtime.handle().spawn(pending::<()>());
        let service = inspect::service_for(runtime.handle().clone());
        drop(runtime);
        let request = Request::get("http://localhost/api/tasks").body(()).unwrap();
        let response = futures_lite::future::block_on(service.call(request)).unwrap_or_else(never);
        let page: Value = serde_json::from_str(response.body()).expect("JSON");
        assert_eq!(page["total"], 0, "{page}");
    });
}

/// The server ends by the signal that it was given.
#[test]
fn signal_ends_the_server() {
    run(|| async {
        let server = Server::start().await;
        server.json("/api/timers").await;
        assert_eq!(server.end().await, 1, "one connection was served");
    });
}

/// The types of the service can be shared among threads, as routers want.
#[test]
fn service_is_send_and_sync() {
    fn check<T: Send + Sync + Clone + 'static>(_: &T) {}
    fn is_tower<T: tower_service::Service<Request<String>, Error = Infallible>>(_: &T) {}
    check(&inspect::service());
    is_tower(&inspect::service());
}

// ---- the server, and a client of HTTP/1 ----

struct Server {
    address: SocketAddr,
    shutdown: ShutdownSignal,
    server: JoinHandle<io::Result<kittiwake::net::Report>>,
}

impl Server {
    async fn start() -> Self {
        Self::start_on("127.0.0.1:0", |serve| serve).await
    }

    async fn start_on(address: &str, set: impl FnOnce(Serve) -> Serve) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().unwrap();
        let shutdown = ShutdownSignal::new();
        let server = spawn(set(inspect::serve(listener)).with_shutdown(&shutdown));
        Self { address, shutdown, server }
    }

    async fn ask(&self, method: &str, path: &str, host: &str) -> Response {
        ask(self.address, &format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n")).await
    }

    async fn json(&self, path: &str) -> Value {
        json(self.address, path.to_owned()).await
    }

    /// Ends the server and returns how many connections it has served.
    async fn end(self) -> u64 {
        self.shutdown.trigger();
        self.server.await.expect("the server does not panic").expect("it ends without an error").served
    }
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn nonce(&self) -> &str {
        let policy = self.header("content-security-policy").expect("a policy");
        policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce")
    }
}

/// Sends a request, whose head has no end yet, on a connection of its own.
async fn ask(address: SocketAddr, head: &str) -> Response {
    let mut client = TcpStream::connect(address).await.expect("the server listens");
    client.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.expect("the server reads");
    let mut response = String::new();
    client.read_to_string(&mut response).await.expect("the server answers and closes");
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {response:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

async fn json(address: SocketAddr, path: String) -> Value {
    let response = ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n")).await;
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    serde_json::from_str(&response.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", response.body))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

/// The row whose field `name` is `text`.
#[track_caller]
fn find<'a>(rows: &'a Value, name: &str, text: &str) -> &'a Value {
    let found = list(rows).iter().find(|row| row[name] == text);
    found.unwrap_or_else(|| panic!("no row has the {name} {text}: {rows:#}"))
}

fn never<T>(never: Infallible) -> T {
    match never {}
}
