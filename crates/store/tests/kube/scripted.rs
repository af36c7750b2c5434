//! A server that says what a test wants, for faults that a real one cannot be made to have. It speaks HTTP/2 without TLS.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// An answer.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<Bytes>,
    /// How many zeroes follow.
    pub(crate) zeroes: usize,
    pub(crate) end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum End {
    #[default]
    Whole,
    /// It does not.
    Never,
    /// The connection breaks.
    Broken,
    /// There is none at all.
    Silent,
}

impl Answer {
    pub(crate) fn of(status: u16, body: Vec<u8>) -> Self {
        Self { status, body: vec![body.into()], ..Self::default() }
    }

    /// It does not end.
    pub(crate) fn goes_on(mut self) -> Self {
        self.end = End::Never;
        self
    }
}

/// The body of an answer.
struct Told {
    parts: VecDeque<Bytes>,
    zeroes: usize,
    end: End,
}

impl Body for Told {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if self.zeroes > 0 {
            let part = self.zeroes.min(1 << 16);
            self.zeroes -= part;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; part])))));
        }
        match self.end {
            End::Whole => Poll::Ready(None),
            End::Broken => Poll::Ready(Some(Err(std::io::Error::other("broken")))),
            End::Never | End::Silent => Poll::Pending,
        }
    }
}

/// Serves, on the current runtime: what a path and query are answered with. Tells the address.
pub(crate) async fn serve(answer: impl Fn(&str) -> Answer + 'static + Send + Sync) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (answer, asked) = (Arc::new(answer), Asked::default());
    let noted = asked.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (answer, noted) = (Arc::clone(&answer), noted.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
                noted.0.lock().unwrap().push((std::time::Instant::now(), path.clone()));
                let answer = answer(&path);
                async move { respond(answer).await }
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service));
        }
    });
    (address, asked)
}

/// What was asked, and when.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<(std::time::Instant, String)>>>);

impl Asked {
    pub(crate) fn all(&self) -> Vec<(std::time::Instant, String)> {
        self.0.lock().unwrap().clone()
    }
}

async fn respond(answer: Answer) -> Result<Response<Told>, Infallible> {
    if answer.end == End::Silent {
        std::future::pending::<()>().await;
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = Told { parts: answer.body.into(), zeroes: answer.zeroes, end: answer.end };
    Ok(response.body(body).unwrap())
}

/// A field of protobuf that has a length.
pub(crate) fn bytes(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [head(number, content.len()), content.to_vec()].concat()
}

/// What comes before the content of such a field.
pub(crate) fn head(number: u8, mut length: usize) -> Vec<u8> {
    let mut head = vec![number << 3 | 2];
    while length >= 0x80 {
        head.push(length as u8 | 0x80);
        length >>= 7;
    }
    head.push(length as u8);
    head
}

/// An object in its envelope.
pub(crate) fn object(kind: &str, message: impl AsRef<[u8]>) -> Vec<u8> {
    [b"k8s\0".to_vec(), bytes(1, [bytes(1, "v1"), bytes(2, kind)].concat()), bytes(2, message)].concat()
}

/// A Node at a version, with annotations and a subnet.
pub(crate) fn node(name: &str, version: &str, annotations: &[(&str, &str)], cidr: &str) -> Vec<u8> {
    let mut meta =
        [bytes(1, name), bytes(5, format!("00000000-0000-0000-0000-{name:0>12}")), bytes(6, version)].concat();
    for (key, value) in annotations {
        meta.extend(bytes(12, [bytes(1, key), bytes(2, value)].concat()));
    }
    [bytes(1, meta), bytes(2, [bytes(1, cidr), bytes(7, cidr)].concat())].concat()
}

/// An event of a watch, in its frame.
pub(crate) fn event(name: &str, message: impl AsRef<[u8]>) -> Vec<u8> {
    let event = [bytes(1, name), bytes(2, bytes(1, object("", message)))].concat();
    [(event.len() as u32).to_be_bytes().to_vec(), event].concat()
}

/// The end of a streamed list.
pub(crate) fn mark(version: &str) -> Vec<u8> {
    event("BOOKMARK", node("", version, &[("k8s.io/initial-events-end", "true")], ""))
}

/// A Status.
pub(crate) fn status(code: u16, message: &str) -> Vec<u8> {
    let code = [0x30, code as u8 | 0x80, (code >> 7) as u8];
    [bytes(3, message), code.to_vec()].concat()
}
