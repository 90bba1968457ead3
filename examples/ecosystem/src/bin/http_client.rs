//! A client for HTTP/1 and HTTP/2, with and without TLS. It writes the bodies to stdout and all else to stderr.
//! `cargo run --release --bin http_client https://www.rust-lang.org/`, or with the example `https`
//! `cargo run --release --bin http_client -- --cacert /tmp/localhost.pem https://localhost:8443/`

use std::{env, error::Error, process};

use http_body_util::{BodyExt, Empty};
use hyper::{Uri, body::Bytes, header::LOCATION};
use hyper_util::client::legacy::Client;
use kittiwake::hyper::{Executor, Timer};
use kittiwake::io::{AsyncWriteExt, Stdout, stdout};
use kittiwake::time::{Duration, timeout};
use kittiwake_ecosystem::https::HttpsConnector;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject};

const USAGE: &str = "usage: http_client [--cacert FILE] [--timeout SECONDS] URL...
--cacert FILE      trusts the certificates in this PEM file, and no others; the roots of Mozilla if not given
--timeout SECONDS  how long a server may take to answer, and pause in its answer; 30 if not given";
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut rest = &args.iter().map(String::as_str).collect::<Vec<_>>()[..];
    let (mut cacert, mut seconds) = (None, "30");
    let urls = loop {
        match rest {
            ["-h" | "--help", ..] => return println!("{USAGE}"),
            ["--cacert", file, others @ ..] => (cacert, rest) = (Some(*file), others),
            ["--timeout", value, others @ ..] => (seconds, rest) = (*value, others),
            [option, ..] if option.starts_with('-') => fail(&format!("unknown option {option}; {USAGE}")),
            [] => fail(USAGE),
            urls => break urls,
        }
    };
    let urls = urls.iter().map(|url| {
        let parsed = url.parse::<Uri>().ok().filter(|parsed| matches!(parsed.scheme_str(), Some("http" | "https")));
        parsed.unwrap_or_else(|| fail(&format!("{url:?} is no http:// or https:// address; {USAGE}")))
    });
    let urls: Vec<Uri> = urls.collect();
    let limit = seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else { fail(&format!("{seconds:?} seconds? {USAGE}")) };
    let roots = roots(cacert).unwrap_or_else(|error| fail(&error.to_string()));
    let failed = kittiwake::block_on(async {
        // The client keeps the connection of one request for the next. HTTP/2 may be agreed on by ALPN.
        let client = Client::builder(Executor).timer(Timer).pool_timer(Timer).build(HttpsConnector::new(roots));
        let (mut stdout, mut failed) = (stdout(), 0);
        for url in &urls {
            if let Err(error) = get(&client, url.clone(), limit, &mut stdout).await {
                eprintln!("http_client: {url}: {}", reasons(&*error));
                failed += 1;
            }
        }
        failed
    });
    process::exit(if failed > 0 { 1 } else { 0 })
}

fn fail(why: &str) -> ! {
    eprintln!("http_client: {why}");
    process::exit(2)
}

fn roots(cacert: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = cacert else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| format!("{file}: {error}"))? {
        roots.add(certificate.map_err(|error| format!("{file}: {error}"))?)?;
    }
    if roots.is_empty() { Err(format!("{file} has no certificate in PEM format").into()) } else { Ok(roots) }
}

/// The error and its sources, apart from those that it names itself.
fn reasons(error: &dyn Error) -> String {
    let text = error.to_string();
    match error.source().map(reasons) {
        Some(source) if !text.contains(&source) => format!("{text}: {source}"),
        _ => text,
    }
}

async fn get(
    client: &Client<HttpsConnector, Empty<Bytes>>,
    url: Uri,
    limit: Duration,
    stdout: &mut Stdout,
) -> Result<()> {
    let answered = timeout(limit, client.get(url)).await;
    let answer = answered.map_err(|_| format!("the server does not answer within {limit:?}"))??;
    let (status, version) = (answer.status(), answer.version());
    eprintln!("{version:?} {status}");
    for (name, value) in answer.headers() {
        eprintln!("{name}: {}", value.as_bytes().escape_ascii());
    }
    let location = answer.headers().get(LOCATION).map(|location| location.as_bytes().escape_ascii().to_string());
    let unwritable = |error| format!("cannot write to stdout: {error}");
    let mut body = answer.into_body();
    // The next part is read when the last one is written. So a body of any length needs little memory.
    while let Some(frame) = timeout(limit, body.frame()).await.map_err(|_| format!("no more came for {limit:?}"))? {
        if let Some(data) = frame?.data_ref() {
            stdout.write_all(data).await.map_err(unwritable)?;
            stdout.flush().await.map_err(unwritable)?;
        }
    }
    match location {
        _ if status.is_success() => Ok(()),
        Some(location) if status.is_redirection() => Err(format!("{status}: ask {location} instead").into()),
        _ => Err(status.to_string().into()),
    }
}
