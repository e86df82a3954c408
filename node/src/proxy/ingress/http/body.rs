//! Bodies on their way through the proxy: counted, and never ending in order unless they did.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::access::Access;
use crate::quic::StreamError;

/// The user's request body broke: the user has gone, or broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserBodyError {
    /// As hyper sees it.
    #[error("the request's body ended early: {0}")]
    Broken(hyper::Error),
    /// Its connection is closed, and with it nothing tells a cut body from a whole one.
    #[error("the request's connection was closed before its body had ended")]
    Closed,
}

/// A request's body, from the user to the target.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` when there is none, as when a request is sent anew.
    inner: Option<Incoming>,
    access: Arc<Access>,
}

impl RequestBody {
    pub(super) fn new(inner: Option<Incoming>, access: Arc<Access>) -> Self {
        Self { inner, access }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UserBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UserBodyError>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        if frame.is_none() && this.access.may_cut_body() {
            return Poll::Ready(Some(Err(UserBodyError::Closed)));
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.access.add_received(data.len() as u64);
        }
        if frame.is_none() || inner.is_end_stream() {
            this.access.request_ended();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(UserBodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A response's body, from the target or from this proxy to the user.
#[derive(Debug)]
pub(super) struct ResponseBody {
    inner: Inner,
    access: Arc<Access>,
}

#[derive(Debug)]
enum Inner {
    Target(Incoming),
    Text(Option<Bytes>),
    /// What the response to a HEAD would have been is not sent.
    None,
}

impl ResponseBody {
    /// The target's.
    pub(super) fn target(inner: Incoming, access: Arc<Access>) -> Self {
        Self::new(Inner::Target(inner), access)
    }

    /// This proxy's.
    pub(super) fn text(text: Option<String>, access: Arc<Access>) -> Self {
        let inner = text.map_or(Inner::None, |text| Inner::Text(Some(text.into())));
        Self::new(inner, access)
    }

    fn new(inner: Inner, access: Arc<Access>) -> Self {
        let body = Self { inner, access };
        body.note_end();
        body
    }

    fn note_end(&self) {
        if self.is_end_stream() {
            self.access.response_ended();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Inner::Target(inner) => ready!(Pin::new(inner).poll_frame(cx)),
            Inner::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
            Inner::None => None,
        };
        match &frame {
            None => {
                this.inner = Inner::None;
                this.note_end();
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.access.add_sent(data.len() as u64);
                }
                if frame.is_trailers() {
                    this.inner = Inner::None;
                }
                this.note_end();
            }
            Some(Err(error)) => {
                // Without a broken stream, the target has ended its answer too early.
                let cause = StreamError::behind(error).map_or("target", StreamError::cause);
                this.access.cut(cause);
                tracing::debug!(%error, cause, "a response broke on its way from the target");
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Target(inner) => inner.is_end_stream(),
            Inner::Text(text) => text.is_none(),
            Inner::None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Target(inner) => inner.size_hint(),
            Inner::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Inner::None => SizeHint::with_exact(0),
        }
    }
}
