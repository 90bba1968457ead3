//! Clients that are programs of their own: wrk and h2load, as loads on a server.
//!
//! Each slice starts the client anew, so a slice includes opening the connections. wrk takes whole seconds alone: its
//! slices are rounded up to them. h2load takes a number of requests, which the rate of the slice before decides. wrk takes
//! no number of requests, so h2load makes the requests of a count also where wrk makes those of the slices.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::load::Load;
use super::plan::Client;

/// The requests of the first slice of h2load, which finds its rate.
const FIRST_REQUESTS: u64 = 10_000;

/// A client and the server that it asks.
pub(crate) struct External {
    client: Client,
    url: String,
    /// Requests per second in the last slice.
    rate: Option<f64>,
}

impl External {
    pub(crate) fn new(client: Client, server: SocketAddr) -> Self {
        Self { client, url: format!("http://{server}/"), rate: None }
    }

    fn wrk(&self, connections: usize, time: Duration) -> Result<(u64, Duration)> {
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let output = self.run("wrk", &format!("-t1 -c{connections} -d{seconds}s"))?;
        wrk_requests(&output).with_context(|| format!("wrk made no requests, or not without errors: {output}"))
    }

    fn h2load(&self, requests: u64) -> Result<(u64, Duration)> {
        let load = match self.client {
            Client::Wrk { connections } => format!("--h1 -t1 -c{connections} -m1"),
            Client::H2load { connections, streams } => format!("-t1 -c{connections} -m{streams}"),
        };
        let output = self.run("h2load", &format!("{load} -n{requests}"))?;
        let (succeeded, elapsed) = h2load_requests(&output).with_context(|| format!("h2load said {output:?}"))?;
        ensure!(succeeded == requests, "{succeeded} of {requests} requests succeeded: {output}");
        Ok((succeeded, elapsed))
    }

    /// Runs a client to its end and returns its output.
    fn run(&self, program: &str, arguments: &str) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments.split(' ')).arg(&self.url);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} ended ({}): {text}{said}", output.status);
        Ok(text)
    }
}

impl Load for External {
    // The clients print latencies in figures of their own, which have no histogram.
    fn slice(&mut self, time: Duration, requests: u64, _: &mut Histogram<u64>) -> Result<(u64, Duration)> {
        if requests < u64::MAX {
            return self.h2load(requests);
        }
        match self.client {
            Client::Wrk { connections } => self.wrk(connections, time),
            Client::H2load { .. } => {
                let wanted = self.rate.map_or(FIRST_REQUESTS, |rate| (rate * time.as_secs_f64()) as u64);
                let (requests, elapsed) = self.h2load(wanted.max(FIRST_REQUESTS / 10))?;
                self.rate = Some(requests as f64 / elapsed.as_secs_f64());
                Ok((requests, elapsed))
            }
        }
    }
}

/// The requests of wrk and their time, from a line such as `61234 requests in 1.10s, 8.5MB read`. None if a request failed.
fn wrk_requests(output: &str) -> Option<(u64, Duration)> {
    if output.contains("Socket errors") || output.contains("Non-2xx") {
        return None;
    }
    let line = output.lines().find(|line| line.contains(" requests in "))?;
    let (requests, rest) = line.trim().split_once(" requests in ")?;
    let (elapsed, _) = rest.split_once(',')?;
    Some((requests.parse().ok()?, seconds(elapsed)?))
}

/// The requests of h2load that succeeded, and the time of all, from its lines `finished in` and `requests:`.
fn h2load_requests(output: &str) -> Option<(u64, Duration)> {
    let elapsed = output.lines().find_map(|line| line.strip_prefix("finished in "))?.split_once(',')?.0;
    let counts = output.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let succeeded = counts.split(", ").find_map(|count| count.strip_suffix(" succeeded"))?;
    Some((succeeded.parse().ok()?, seconds(elapsed)?))
}

/// A time such as `1.10s` or `512.40ms`.
fn seconds(text: &str) -> Option<Duration> {
    let (figure, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(figure.parse::<f64>().ok()? * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_understood() {
        let output =
            "Running 1s test @ http://127.0.0.1:1/\n  61234 requests in 1.10s, 8.5MB read\nRequests/sec: 55667.27\n";
        assert_eq!(wrk_requests(output), Some((61234, Duration::from_millis(1100))));
        assert_eq!(wrk_requests(&format!("{output}  Non-2xx or 3xx responses: 3\n")), None);
        assert_eq!(wrk_requests("unable to connect"), None);
    }

    #[test]
    fn h2load_output_is_understood() {
        let output = "\
finished in 512.50ms, 19512.20 req/s, 1.20MB/s
requests: 10000 total, 10000 started, 10000 done, 9999 succeeded, 1 failed, 0 errored, 0 timeout
";
        assert_eq!(h2load_requests(output), Some((9999, Duration::from_micros(512_500))));
        assert_eq!(h2load_requests("finished in 1.00s, "), None);
    }
}
