//! A client and a server in one thread, and pipes between them.

use crate::{
    AnyExport, Exports,
    client::{self, Connected, NegotiationConfig},
    server::{Ended, Entered, NegotiationError, Replies, ServerOptions, execute_async, negotiate},
    transport::{Transport, block_on_ready},
};
use bytes::{Buf, Bytes};
use nbd_proto::{
    Frame, HeaderStyle,
    client::{Event, Outcome, Transmission},
    server,
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    pin::pin,
    rc::Rc,
    sync::atomic::AtomicBool,
    task::{Context, Poll, Waker},
};

/// One direction of a pipe.
#[derive(Debug, Default)]
struct Way {
    bytes: VecDeque<u8>,
    closed: bool,
}

/// One end of a pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    from: Rc<RefCell<Way>>,
    to: Rc<RefCell<Way>>,
}

pub(super) fn pipe() -> (Pipe, Pipe) {
    let (a, b) = (Rc::<RefCell<Way>>::default(), Rc::default());
    let end = |from: &Rc<_>, to: &Rc<_>| Pipe {
        from: Rc::clone(from),
        to: Rc::clone(to),
    };
    (end(&a, &b), end(&b, &a))
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.to.borrow_mut().closed = true;
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut from = self.from.borrow_mut();
        if from.bytes.is_empty() && !from.closed {
            return Poll::Pending;
        }
        Poll::Ready(from.bytes.read_vectored(bufs))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut to = self.to.borrow_mut();
        Poll::Ready(if to.closed {
            Err(io::ErrorKind::BrokenPipe.into())
        } else {
            to.bytes.write_vectored(bufs)
        })
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to.borrow_mut().closed = true;
        Poll::Ready(Ok(()))
    }
}

/// Runs two futures that wait for each other only.
pub(super) fn together<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (None, None);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if a_done.is_none()
            && let Poll::Ready(done) = a.as_mut().poll(&mut context)
        {
            a_done = Some(done);
        }
        if b_done.is_none()
            && let Poll::Ready(done) = b.as_mut().poll(&mut context)
        {
            b_done = Some(done);
        }
        if let (Some(_), Some(_)) = (&a_done, &b_done) {
            break;
        }
    }
    (
        a_done.expect("the first future ends"),
        b_done.expect("the second future ends"),
    )
}

pub(super) type Served = Result<Result<Entered<Pipe>, Ended>, NegotiationError>;

/// Serves `client`, with TLS that encrypts nothing.
pub(super) fn serve<R>(
    exports: &dyn Exports,
    options: &ServerOptions,
    client: impl AsyncFnOnce(Pipe) -> R,
) -> (Served, R) {
    let (ours, theirs) = pipe();
    let running = AtomicBool::new(false);
    let served = negotiate(ours, options, exports, &running, async |pipe| Ok(pipe));
    together(served, client(theirs))
}

/// Both ends of a session, and the bytes between them.
pub(super) struct Session {
    pub(super) client: Transmission,
    server: server::Transmission,
    pub(super) export: AnyExport,
    pub(super) replies: Replies,
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) outcome: Outcome,
    /// The data of a read.
    pub(super) data: Vec<u8>,
    /// The parts of it that came as data, and as holes.
    pub(super) pieces: Vec<(char, usize)>,
    /// The bytes of the reply.
    pub(super) len: usize,
}

impl Session {
    pub(super) fn new(exports: &dyn Exports, target: &NegotiationConfig) -> Self {
        let (served, connected) = serve(exports, &ServerOptions::default(), async |pipe| {
            client::negotiate(pipe, target, async |pipe| Ok(pipe)).await
        });
        let Connected { transmission, .. } = connected.unwrap();
        let Ok(Ok(entered)) = served else {
            panic!("the client has entered, and so should the server have");
        };
        Self::with(*transmission, entered)
    }

    pub(super) fn with(client: Transmission, entered: Entered<Pipe>) -> Self {
        Self {
            client,
            server: entered.transmission,
            export: entered.export,
            replies: Replies::new(),
        }
    }

    /// Sends a request and takes in its reply; `len` is that of the data that is expected.
    pub(super) fn ask<P: Buf>(
        &mut self,
        request: impl FnOnce(&mut Transmission) -> Frame<P>,
        len: usize,
    ) -> Answered {
        let mut frame = request(&mut self.client);
        let sent = frame.copy_to_bytes(frame.remaining());
        self.serve(&sent);
        let said = self.written();
        self.take(&said, len)
    }

    fn serve(&mut self, mut sent: &[u8]) {
        let mut payload = Vec::new();
        while !sent.is_empty() {
            let fed = self.server.feed(sent).unwrap();
            if fed.payload.is_some() {
                payload.extend_from_slice(&sent[..fed.used]);
            }
            sent = &sent[fed.used..];
            match fed.event {
                Some(server::Event::Request(request)) => {
                    let payload = Bytes::copy_from_slice(&payload);
                    let replies = &mut self.replies;
                    let executed = execute_async(&self.export, request, payload, replies);
                    let _ = block_on_ready(executed);
                }
                Some(server::Event::Answered(reply)) => self.replies.push(*reply),
                Some(server::Event::Disconnect) => panic!("the client did not disconnect"),
                None => {}
            }
        }
    }

    fn written(&mut self) -> Bytes {
        let mut said = Vec::new();
        while !self.replies.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.replies.slices(&mut slices);
            let before = said.len();
            for slice in &slices[..count] {
                said.extend_from_slice(slice);
            }
            self.replies.advance(said.len() - before);
        }
        self.replies.retire(&mut self.server);
        assert_eq!(self.server.in_flight(), 0);
        said.into()
    }

    fn take(&mut self, said: &[u8], len: usize) -> Answered {
        let mut data = vec![0xee; len];
        let mut pieces = Vec::new();
        let mut rest = said;
        loop {
            assert!(!rest.is_empty(), "the reply ends before it is complete");
            let fed = self.client.feed(rest).unwrap();
            if let Some(payload) = fed.payload {
                let start = fed.used - payload.range.len();
                data[payload.range.clone()].copy_from_slice(&rest[start..fed.used]);
                pieces.push(('d', payload.range.len()));
            }
            rest = &rest[fed.used..];
            let outcome = match fed.event {
                None => continue,
                Some(Event::Hole { payload, done }) => {
                    data[payload.range.clone()].fill(0);
                    pieces.push(('h', payload.range.len()));
                    if !done {
                        continue;
                    }
                    Outcome::Done
                }
                Some(Event::Complete { outcome, .. }) => outcome,
            };
            assert!(rest.is_empty(), "more was said than was asked");
            return Answered {
                outcome,
                data,
                pieces,
                len: said.len(),
            };
        }
    }
}

pub(super) fn target(name: &str, mode: HeaderStyle) -> NegotiationConfig {
    let mut target = NegotiationConfig::new(nbd_proto::ExportName::new(name).unwrap());
    target.structured_replies = mode != HeaderStyle::Simple;
    target.extended_headers = mode == HeaderStyle::Extended;
    target.contexts = vec![nbd_proto::ContextName::base_allocation()];
    target
}

pub(super) const HEADER_STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];
