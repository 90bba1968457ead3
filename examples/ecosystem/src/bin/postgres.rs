//! A client of PostgreSQL: a table, a transaction, a query, and a notification. `cargo run --release --bin postgres
//! [CONFIG]`, where CONFIG is as for psql: `"host=localhost user=postgres password=secret"`, or `postgres://localhost`

use std::{env, error::Error, process};

use async_channel::Receiver;
use kittiwake::io::{AsyncRead, AsyncWrite};
use kittiwake::net::{TcpStream, UnixStream};
use kittiwake::{future::poll_fn, spawn, time::Duration, time::timeout};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Notification, config::Host};
use tokio_util::compat::FuturesAsyncReadCompatExt;

const USAGE: &str = "usage: postgres [CONFIG]    \"host=/var/run/postgresql user=postgres\" if not given";
// For the connection, unless CONFIG has connect_timeout, and for the work.
const LIMIT: Duration = Duration::from_secs(10);
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let config = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-h" | "--help"] => return println!("{USAGE}"),
        [] => "host=/var/run/postgresql user=postgres",
        [config] if !config.starts_with('-') => config,
        _ => fail(&format!("{args:?}? {USAGE}")),
    };
    kittiwake::block_on(run(config)).unwrap_or_else(|error| match error.downcast_ref::<tokio_postgres::Error>() {
        // The server's own words are in the source.
        Some(failure) => fail(&failure.source().map_or(failure.to_string(), |source| format!("{failure}: {source}"))),
        None => fail(&error.to_string()),
    });
}

fn fail(why: &str) -> ! {
    eprintln!("postgres: {why}");
    process::exit(2)
}

async fn run(config: &str) -> Result<()> {
    let config: Config = config.parse()?;
    let [host, ..] = config.get_hosts() else { return Err(format!("the configuration names no host; {USAGE}").into()) };
    let (port, limit) = (config.get_ports().first().copied(), config.get_connect_timeout().copied());
    let (port, limit) = (port.unwrap_or(5432), limit.unwrap_or(LIMIT));
    // connect_raw takes any stream. Its traits are tokio's, which compat() implements, and it needs no tokio runtime.
    match host {
        Host::Tcp(name) => {
            let stream = TcpStream::connect_timeout((name.as_str(), port), limit).await?;
            stream.set_nodelay(true)?;
            talk(&config, stream, limit).await
        }
        Host::Unix(folder) => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            talk(&config, UnixStream::connect_timeout(path, limit).await?, limit).await
        }
    }
}

async fn talk<S>(config: &Config, stream: S, limit: Duration) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connecting = timeout(limit, config.connect_raw(stream.compat(), NoTls)).await;
    let (client, mut connection) = connecting.map_err(|_| "the server does not answer")??;
    let (sender, notifications) = async_channel::unbounded();
    // This task carries requests and answers. It ends when the client is dropped and the server has all requests.
    let connection = spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message? {
                let _ = sender.try_send(notification);
            }
        }
        Ok(())
    });
    timeout(LIMIT, work(client, notifications)).await.map_err(|_| "the server is too slow")??;
    timeout(LIMIT, connection).await??
}

async fn work(mut client: Client, notifications: Receiver<Notification>) -> Result<()> {
    client.batch_execute("CREATE TEMPORARY TABLE birds (name text PRIMARY KEY, wingspan int4 NOT NULL)").await?;
    let insert = client.prepare("INSERT INTO birds VALUES ($1, $2)").await?;
    let transaction = client.transaction().await?;
    for (name, wingspan) in [("kittiwake", 97), ("gannet", 176), ("storm petrel", 38)] {
        transaction.execute(&insert, &[&name, &wingspan]).await?;
    }
    transaction.commit().await?;
    for row in client.query("SELECT name, wingspan FROM birds WHERE wingspan > $1 ORDER BY name", &[&50]).await? {
        println!("postgres: {} has a wingspan of {} cm", row.get::<_, &str>(0), row.get::<_, i32>(1));
    }
    client.batch_execute("LISTEN birds; NOTIFY birds, 'a puffin'").await?;
    println!("postgres: notified of {}", notifications.recv().await?.payload());
    Ok(())
}
