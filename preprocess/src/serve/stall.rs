//! Who is too slow: peers that say nothing, and peers that take nothing.
//!
//! A reader that is merely busy is none of them: it answers HTTP/2's pings, and what waits for it is bounded.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::limits;

/// The requests of one connection.
#[derive(Debug)]
pub struct Requests {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// When the connection has been without a request for too long: before the first one, when that is late.
    idle_until: Instant,
    /// Whether one was admitted, or at least refused.
    admitted: bool,
    refused: bool,
    answers: Vec<Weak<Answer>>,
}

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Stay,
    /// It ends when its requests have.
    Leave,
    /// It is cut off, for this reason.
    TooSlow(&'static str),
}

impl Requests {
    /// None yet; the first that is admitted has until `deadline`.
    pub fn new(deadline: Instant) -> Self {
        let state = State { open: 0, idle_until: deadline, admitted: false, refused: false, answers: Vec::new() };
        Self { state: Mutex::new(state) }
    }

    /// A request was refused. It prolongs nothing: who knows no token does not keep a connection with it.
    pub fn refused(&self) {
        self.state().refused = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of the connection at `now`.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let mut state = self.state();
        state.answers.retain(|answer| answer.strong_count() > 0);
        let stalled = |answer: &Weak<Answer>| answer.upgrade().is_some_and(|answer| answer.stands_still(now));
        if state.answers.iter().any(stalled) {
            return Verdict::TooSlow("nothing was taken of a stream for too long");
        }
        match (state.open, now >= state.idle_until) {
            (0, true) if !state.admitted && !state.refused => Verdict::TooSlow("no request came in time"),
            // Asked to leave, it has as long again.
            (0, true) if now >= state.idle_until + limits::FIRST_REQUEST => {
                Verdict::TooSlow("it stayed without a request")
            }
            (0, true) => Verdict::Leave,
            _ => Verdict::Stay,
        }
    }
}

/// A request from its head to the end of its answer.
#[derive(Debug)]
pub struct OpenRequest(Arc<Requests>);

impl OpenRequest {
    /// One more of `requests`.
    pub fn new(requests: &Arc<Requests>) -> Self {
        let mut state = requests.state();
        (state.open, state.admitted) = (state.open + 1, true);
        drop(state);
        Self(Arc::clone(requests))
    }

    /// The answer's body, which tells whether anything is taken of it.
    pub fn watch(self, body: Body) -> WatchedBody {
        let answer = Arc::new(Answer::default());
        self.0.state().answers.push(Arc::downgrade(&answer));
        WatchedBody { body, answer, _open: Some(self) }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.open, state.idle_until) = (state.open - 1, Instant::now() + limits::IDLE);
    }
}

/// When a frame of an answer was handed over after which none was asked for; `None` while the peer waits for us.
#[derive(Debug, Default)]
struct Answer(Mutex<Option<Instant>>);

impl Answer {
    fn stands_still(&self, now: Instant) -> bool {
        let handed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handed.is_some_and(|handed| now >= handed + limits::STREAM_STALL)
    }
}

/// The body of an answer. See [`OpenRequest::watch`].
#[derive(Debug)]
pub struct WatchedBody {
    body: Body,
    answer: Arc<Answer>,
    _open: Option<OpenRequest>,
}

impl WatchedBody {
    /// The body of a refusal, which is none.
    pub fn refusal(body: Body) -> Self {
        Self { body, answer: Arc::default(), _open: None }
    }
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let handed = polled.is_ready().then(Instant::now);
        *self.answer.0.lock().unwrap_or_else(PoisonError::into_inner) = handed;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream to a peer that fails when the peer takes no byte of what is written for [`limits::WRITE_STALL`].
#[derive(Debug)]
pub struct WriteStall<S> {
    stream: S,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteStall<S> {
    /// Around `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, waiting: None }
    }

    fn progress<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(limits::WRITE_STALL)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteStall<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteStall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.progress(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.progress(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Body as _;

    use super::*;

    #[test]
    fn a_connection_is_judged_by_what_it_owes() {
        let now = Instant::now();
        let later = |by: Duration| Instant::now() + by + Duration::from_secs(1);
        let requests = Arc::new(Requests::new(now + limits::FIRST_REQUEST));
        assert_eq!(requests.verdict(now), Verdict::Stay);
        assert!(matches!(requests.verdict(later(limits::FIRST_REQUEST)), Verdict::TooSlow(_)));
        let open = OpenRequest::new(&requests);
        assert_eq!(requests.verdict(later(limits::STREAM_STALL)), Verdict::Stay, "a request is being answered");
        let mut body = open.watch(Body::new(http_body_util::Full::new(Bytes::from_static(b"ids"))));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        assert_eq!(requests.verdict(later(limits::IDLE)), Verdict::Stay);
        assert!(matches!(requests.verdict(later(limits::STREAM_STALL)), Verdict::TooSlow(_)), "nobody takes more");
        drop(body);
        assert_eq!(requests.verdict(now), Verdict::Stay);
        assert_eq!(requests.verdict(later(limits::IDLE)), Verdict::Leave);
        assert!(matches!(requests.verdict(later(limits::IDLE + limits::FIRST_REQUEST)), Verdict::TooSlow(_)));
    }

    #[test]
    fn a_refused_request_prolongs_nothing() {
        let requests = Requests::new(Instant::now() + limits::FIRST_REQUEST);
        requests.refused();
        assert_eq!(requests.verdict(Instant::now()), Verdict::Stay);
        let late = Instant::now() + limits::FIRST_REQUEST;
        assert_eq!(requests.verdict(late), Verdict::Leave);
        assert!(matches!(requests.verdict(late + limits::FIRST_REQUEST), Verdict::TooSlow(_)));
    }

    /// A body that waits for us is nobody's fault.
    #[test]
    fn waiting_for_the_service_is_not_standing_still() {
        let requests = Arc::new(Requests::new(Instant::now()));
        let pending = futures::stream::pending::<Result<Frame<Bytes>, Status>>();
        let mut body = OpenRequest::new(&requests).watch(Body::new(http_body_util::StreamBody::new(pending)));
        assert!(Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        assert_eq!(requests.verdict(Instant::now() + limits::STREAM_STALL * 2), Verdict::Stay);
    }
}
