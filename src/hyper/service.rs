//! The service and the response bodies of one connection, which report to its [`Activity`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::hyper::body::{Body, Frame, Incoming, SizeHint};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use pin_project_lite::pin_project;

use super::activity::{Activity, Protocol};

/// A service that counts its requests.
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) activity: Arc<Activity>,
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let running = Running::new(self.activity.clone());
        CountedFuture { future: self.service.call(request), running: Some(running) }
    }
}

/// A request that has not ended.
struct Running(Arc<Activity>);

impl Running {
    fn new(activity: Arc<Activity>) -> Self {
        activity.start_request();
        Self(activity)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// A frame that hyper has taken from a response body and not sent yet.
struct Held(Arc<Activity>);

impl Held {
    fn new(activity: Arc<Activity>) -> Self {
        activity.hold_frame();
        Self(activity)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release_frame();
    }
}

pin_project! {
    /// The future of a [`Counted`] service.
    pub(super) struct CountedFuture<F> {
        #[pin]
        future: F,
        running: Option<Running>,
    }
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.running.as_ref().is_some_and(|Running(activity)| activity.becomes_last_request()) {
            // The connection's task calls `graceful_shutdown` and polls again. So the response says that the connection
            // closes.
            return Poll::Pending;
        }
        let response = ready!(this.future.poll(cx));
        let running = this.running.take();
        Poll::Ready(response.map(|response| response.map(|body| CountedBody { body, held: None, running })))
    }
}

pin_project! {
    /// A response body. Its request ends when it is dropped.
    pub(super) struct CountedBody<B> {
        #[pin]
        body: B,
        // HTTP/2 only. On HTTP/1 the transport reports a client that does not read.
        held: Option<Held>,
        running: Option<Running>,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        // hyper asks for another frame once it has sent the last one.
        *this.held = None;
        let frame = ready!(this.body.poll_frame(cx));
        if let (Some(Ok(_)), Some(Running(activity))) = (&frame, &this.running) {
            if activity.protocol() == Protocol::Http2 {
                *this.held = Some(Held::new(activity.clone()));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
