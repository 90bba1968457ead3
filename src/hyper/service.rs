//! The service and the response bodies of one connection, which report to its [`Activity`].

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::hyper::body::{Body, Buf, Bytes, Frame, Incoming, SizeHint};
use ::hyper::header::CONTENT_LENGTH;
use ::hyper::service::Service;
use ::hyper::upgrade::OnUpgrade;
use ::hyper::{Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;

use super::activity::{Activity, Held, Protocol, Running};
use super::tunnel::Offer;

/// A service that counts its requests.
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) activity: Arc<Activity>,
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let running = Running::new(self.activity.clone());
        self.activity.set_body_may_come(!request.body().is_end_stream());
        if let Some(on_upgrade) = request.extensions().get::<OnUpgrade>() {
            self.activity.offer_upgrade(on_upgrade.clone());
        }
        let method = match *request.method() {
            Method::CONNECT => Special::Connect,
            Method::HEAD => Special::Head,
            _ => Special::None,
        };
        CountedFuture { future: self.service.call(request), method, running: Some(running), tunnel: None }
    }
}

/// A method whose response needs care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    None,
    Connect,
    Head,
}

pin_project! {
    /// The future of a [`Counted`] service.
    pub(super) struct CountedFuture<F> {
        #[pin]
        future: F,
        method: Special,
        running: Option<Running>,
        // hyper drops this future after it has spawned the tunnel's task.
        tunnel: Option<Offer>,
    }
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.running.as_ref().is_some_and(|running| running.activity().becomes_last_request()) {
            // The connection's task calls `graceful_shutdown` and polls again. So the response says that the connection
            // closes.
            return Poll::Pending;
        }
        let response = ready!(this.future.poll(cx));
        let running = this.running.take();
        let mut is_hidden = false;
        if let (Ok(response), Some(running)) = (&response, &running) {
            let activity = running.activity();
            *this.tunnel = upgrade(activity, *this.method == Special::Connect, response.status());
            is_hidden = *this.method == Special::Head && activity.protocol() == Protocol::Http2;
        }
        Poll::Ready(response.map(|mut response| {
            if is_hidden {
                note_length(&mut response);
            }
            response.map(|body| CountedBody { body, running, is_hidden })
        }))
    }
}

/// Notes the length of a body that is not sent, as hyper does for one that is.
fn note_length<B: Body>(response: &mut Response<B>) {
    let length = response.body().size_hint().exact().filter(|_| !response.body().is_end_stream());
    if let Some(length) = length {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
}

/// Notes a response that upgrades. On HTTP/2 the tunnel counts as a request of its own, which ends with its task.
fn upgrade(activity: &Arc<Activity>, is_connect: bool, status: StatusCode) -> Option<Offer> {
    let opens_tunnel = is_connect && status.is_success();
    match activity.protocol() {
        Protocol::Http1 if opens_tunnel || status == StatusCode::SWITCHING_PROTOCOLS => activity.upgrade(),
        Protocol::Http2 if opens_tunnel => return Some(Offer::new(Running::new(activity.clone()))),
        _ => {}
    }
    None
}

pin_project! {
    /// A response body. Its request ends when it is dropped, or once its last piece is sent.
    pub(super) struct CountedBody<B> {
        #[pin]
        body: B,
        running: Option<Running>,
        // The answer to HEAD on HTTP/2, where hyper would send the body. On HTTP/1 it does not.
        is_hidden: bool,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let mut this = self.project();
        if *this.is_hidden {
            return Poll::Ready(None);
        }
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let is_last = this.body.is_end_stream();
        let piece = |data| Piece { data, held: hold(this.running, is_last) };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_hidden || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Notes that hyper takes a piece of the body. Its last piece takes over the request.
fn hold(running: &mut Option<Running>, is_last: bool) -> Option<Held> {
    match running.as_ref()?.activity() {
        // The transport sees a client that does not read.
        activity if activity.protocol() == Protocol::Http1 => None,
        _ if is_last => running.take().map(Held::new),
        activity => Some(Held::new(Running::new(activity.clone()))),
    }
}

/// A piece of a response body. On HTTP/2 it reports that it is sent.
pub(super) struct Piece<D> {
    data: D,
    held: Option<Held>,
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, n: usize) {
        self.data.advance(n);
        if let Some(held) = &self.held {
            held.advance();
        }
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        if let Some(held) = &self.held {
            held.advance();
        }
        self.data.copy_to_bytes(n)
    }
}
