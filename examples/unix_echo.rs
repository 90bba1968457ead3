//! An echo server on a Unix socket. It replaces the file that an ended server has left, and removes its own at the end.
//! Ctrl-C or SIGTERM shuts it down. `cargo run --release --example unix_echo [PATH]`, then `nc -U echo.socket`

use std::fs;
use std::os::unix::{fs::FileTypeExt, net::SocketAddr};
use std::path::Path;

use kittiwake::io::{self, AsyncReadExt, AsyncWriteExt};
use kittiwake::net::{self, Report, ShutdownSignal, UnixDatagram, UnixListener, UnixStream};
use kittiwake::signal;
use kittiwake::time::{Duration, timeout};

const USAGE: &str = "usage: unix_echo [PATH]    PATH is the socket's file, echo.socket if not given";
const GRACE: Duration = Duration::from_secs(1);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => "echo.socket",
        ["-h" | "--help"] => return println!("{USAGE}"),
        [path] if !path.starts_with('-') => path,
        [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
        _ => fail(&format!("more than one path; {USAGE}")),
    };
    match kittiwake::block_on(serve(path)) {
        Ok(report) => println!("unix_echo: {report}"),
        Err(error) => fail(&format!("cannot serve on {path}: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("unix_echo: {why}");
    std::process::exit(2)
}

async fn serve(path: &str) -> io::Result<Report<SocketAddr>> {
    let asked = signal::terminate();
    let (listener, shutdown) = (bind(path.as_ref())?, ShutdownSignal::new());
    println!("unix_echo: listening on {path}");
    let file = path.to_owned();
    let ending = async move {
        asked.await?;
        // The listener is still open. Once it is closed, another server may take over the path, and this would remove
        // its file. It is no error if the file is gone already.
        let _ = fs::remove_file(file);
        io::Result::Ok(())
    };
    let server = net::serve(listener, |stream, _| echo(stream, shutdown.clone())).with_shutdown(&shutdown);
    Ok(server.with_graceful_shutdown(ending).drain_timeout(Duration::from_secs(5)).await?)
}

/// Listens on `path`. Removes a socket there that refuses connections, because its server has ended.
///
/// Two servers that start at the same moment could remove each other's file: a service manager must prevent that.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let error = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        bound => return bound,
    };
    // A file of another kind, such as a document, refuses connections too.
    let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
    // A datagram socket never gets into the queue of a running server, which refuses it by another error.
    match UnixDatagram::unbound()?.connect(path) {
        Err(refused) if is_socket && refused.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        _ => return Err(error),
    }
    UnixListener::bind(path)
}

async fn echo(mut stream: UnixStream, mut shutdown: ShutdownSignal) -> io::Result<()> {
    let mut buf = [0; 4096];
    // After the signal a client is served until it is silent for the grace: an echo does not know the end of a request.
    while let Some(read @ 1..) = shutdown.run_with_grace(GRACE, stream.read(&mut buf)).await.transpose()? {
        stream.write_all(&buf[..read]).await?;
    }
    let _ = timeout(GRACE, stream.drain(1 << 20)).await; // A drop with unread input would be a reset.
    Ok(())
}
