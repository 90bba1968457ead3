//! The service: which requests are answered, and with what.

use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use ::hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use ::hyper::http::uri::Authority;
use ::hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;

use super::json::{Moment, Page, Sockets, Summary, Tasks, Timers};
use super::shared::{Latest, Shared};
use super::snapshot::Activity;
use crate::runtime::Handle;

/// The page. `{nonce}` stands where the policy of the response wants its nonce.
const PAGE: &str = include_str!("page.html");

/// How many rows of a list a response has if the request does not say.
const ROWS: usize = 100;

/// How many rows of a list a response has at most.
const MAX_ROWS: usize = 500;

/// A service that shows the runtime that polls it first.
///
/// Mount it in a router of your own: see [`Service`]. [`serve`](super::serve()) is a whole server.
pub fn service() -> Service {
    Service::new(None)
}

/// A service that shows the runtime of `handle`.
///
/// Another runtime, also one of another crate, may poll it. So the page answers while all workers of the runtime that
/// it shows are stuck.
pub fn service_for(handle: Handle) -> Service {
    Service::new(Some(handle))
}

/// The page and its JSON, as a service of hyper and of tower.
///
/// [`service`] and [`service_for`] make it. It takes a request with a body of any type, which it does not read. Clones
/// share their snapshots.
///
/// It looks at the end of the path only: `/api/` and a name is [JSON](super#json), and each other path that ends
/// with a slash is the page. So it works under any prefix, whether a router removes the prefix or not.
///
/// # Who can see it
/// Everyone whose request reaches it. Names of tasks and addresses of clients are in it, so mount it where only you can
/// reach it: on a listener of its own that is bound to loopback or to a Unix socket, or behind a check of who asks. The
/// `Host` of a request must be `localhost` or a loopback address, unless [`allow_remote`](Service::allow_remote) is
/// set. This keeps out pages of other sites in the browser of this machine (DNS rebinding). It does not keep out
/// clients that choose their `Host`.
///
/// # Examples
/// With hyper, beside another service. axum takes it by `Router::nest_service("/inspect", inspect::service())`.
/// ```
/// use hyper::body::Incoming;
/// use hyper::service::Service as _;
/// use hyper::{Request, Response};
/// use kittiwake::inspect::Service;
///
/// async fn answer(request: Request<Incoming>, inspect: Service) -> hyper::Result<Response<String>> {
///     if request.uri().path().starts_with("/inspect/") {
///         return Ok(inspect.call(request).await.unwrap_or_else(|never| match never {}));
///     }
///     Ok(Response::new("hello\n".to_owned()))
/// }
/// # fn example(listener: kittiwake::net::TcpListener) {
///
/// let inspect = kittiwake::inspect::service();
/// let service = hyper::service::service_fn(move |request| answer(request, inspect.clone()));
/// let server = kittiwake::hyper::serve(listener, service);
/// # drop(server);
/// # }
/// ```
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    allow_remote: bool,
}

/// The future of a [`Service`].
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Response<String>> + Send>>);

impl Service {
    fn new(handle: Option<Handle>) -> Self {
        Self { shared: Shared::new(handle), allow_remote: false }
    }

    /// Sets whether requests may name this machine by another `Host` than `localhost` and the loopback addresses. By
    /// default they may not.
    pub fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// Answers a request. Nothing is read from its body.
    fn answer<B>(&self, request: &Request<B>) -> ResponseFuture {
        let is_head = request.method() == Method::HEAD;
        let response = match self.refusal(request) {
            Some(refusal) => Ok(refusal),
            None => self.route(request.uri().path(), request.uri().query().unwrap_or_default()),
        };
        ResponseFuture(match response {
            Ok(response) => Box::pin(std::future::ready(finish(response, is_head))),
            Err(question) => {
                let shared = self.shared.clone();
                Box::pin(async move {
                    let response = match shared.latest().await {
                        Ok(latest) => question.answer(&shared, &latest),
                        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{error}\n")),
                    };
                    finish(response, is_head)
                })
            }
        })
    }

    fn refusal<B>(&self, request: &Request<B>) -> Option<Response<String>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(response);
        }
        (!self.allow_remote && !host(request).is_some_and(is_local)).then(|| {
            let why =
                "the Host of a request must be localhost or a loopback address; allow_remote(true) allows others\n";
            text(StatusCode::FORBIDDEN, why)
        })
    }

    /// The response, or the question that needs a snapshot.
    fn route(&self, path: &str, query: &str) -> Result<Response<String>, Question> {
        // The prefix that the service is mounted under may have an "/api/", too.
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if !folder.ends_with("/api") {
            return Ok(if name.is_empty() { page() } else { text(StatusCode::NOT_FOUND, "there is no such page\n") });
        }
        let Some(parameters) = Parameters::parse(query) else {
            return Ok(text(StatusCode::BAD_REQUEST, "a parameter of this request is not valid\n"));
        };
        match name {
            "summary" => Err(Question::Summary),
            "tasks" => Err(Question::Tasks(parameters)),
            "sockets" => Err(Question::Sockets(parameters)),
            "timers" => Err(Question::Timers),
            _ => Ok(text(StatusCode::NOT_FOUND, "the names are summary, tasks, sockets and timers\n")),
        }
    }
}

/// A request for JSON.
enum Question {
    Summary,
    Tasks(Parameters),
    Sockets(Parameters),
    Timers,
}

impl Question {
    fn answer(self, shared: &Shared, latest: &Latest) -> Response<String> {
        let snapshot = &*latest.snapshot;
        let now = Instant::now();
        let age = now.saturating_duration_since(latest.made);
        let moment = Moment {
            at: (now.saturating_duration_since(shared.start).saturating_sub(age)).as_secs_f64(),
            age: age.as_secs_f64(),
            took: snapshot.took.as_secs_f64(),
        };
        match self {
            Self::Summary => json(&Summary::new(snapshot, moment)),
            Self::Timers => json(&Timers::new(snapshot, moment)),
            Self::Tasks(Parameters { offset, limit, site, activity }) => {
                let tasks = snapshot.tasks(site.as_deref(), activity);
                let shown = &tasks[offset.min(tasks.len())..offset.saturating_add(limit).min(tasks.len())];
                json(&Page { moment, total: tasks.len(), offset, rows: Tasks::new(snapshot, shown) })
            }
            Self::Sockets(Parameters { offset, limit, .. }) => {
                let total = snapshot.sockets().len();
                json(&Page { moment, total, offset, rows: Sockets::new(snapshot, offset, limit) })
            }
        }
    }
}

/// The parameters of a request. Others than these are ignored.
struct Parameters {
    offset: usize,
    limit: usize,
    site: Option<String>,
    activity: Option<Activity>,
}

impl Parameters {
    /// `None` if one of them is not valid.
    fn parse(query: &str) -> Option<Self> {
        let mut parameters = Self { offset: 0, limit: ROWS, site: None, activity: None };
        for (name, value) in query.split('&').filter_map(|parameter| parameter.split_once('=')) {
            let value = percent_decoded(value)?;
            match name {
                "offset" => parameters.offset = value.parse().ok()?,
                "limit" => parameters.limit = value.parse::<usize>().ok()?.min(MAX_ROWS),
                "site" => parameters.site = Some(value),
                "activity" => parameters.activity = Some(Activity::from_name(&value)?),
                _ => {}
            }
        }
        Some(parameters)
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        // `from_str_radix` takes a sign, too.
        let digits = part.get(..2).filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// The host that the client has asked for. HTTP/2 has it in the URI.
fn host<B>(request: &Request<B>) -> Option<&str> {
    let header = || request.headers().get(HOST)?.to_str().ok();
    request.uri().authority().map(Authority::as_str).or_else(header)
}

/// Whether `host`, with a port or without, is a name of this machine that no name server can give to another one.
fn is_local(host: &str) -> bool {
    if let Some((ip, port)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return ip.parse().is_ok_and(|ip: Ipv6Addr| ip.is_loopback()) && (port.is_empty() || port.starts_with(':'));
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback())
}

fn page() -> Response<String> {
    // Two keys of the standard library's hash maps, which are random. So a script that got into the page would not run.
    let [one, two] = [(); 2].map(|()| RandomState::new().build_hasher().finish());
    let nonce = format!("{one:016x}{two:016x}");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace("{nonce}", &nonce));
    let policy = HeaderValue::try_from(policy).expect("the policy is ASCII");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

fn json(value: &impl Serialize) -> Response<String> {
    match serde_json::to_string(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: &str) -> Response<String> {
    typed(status, "text/plain; charset=utf-8", body.to_owned())
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Adds the headers that all responses have, and leaves out the body if the request was `HEAD`.
fn finish(mut response: Response<String>, is_head: bool) -> Response<String> {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("default-src 'none'"));
    if is_head {
        let length = std::mem::take(response.body_mut()).len();
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response
}

impl<B> ::hyper::service::Service<Request<B>> for Service {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<B>) -> ResponseFuture {
        self.answer(&request)
    }
}

impl<B> tower_service::Service<Request<B>> for Service {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.answer(&request)
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<String>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("allow_remote", &self.allow_remote).finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
