//! A client in a readiness loop: one thread, a socket that never blocks, and [`mio`].
//!
//! The loop waits until the socket can be read or written and then lets the connection do its part.
//! The connection keeps its phase as a value in an enum, takes it out when bytes have come and puts
//! back the next one. Payload goes from the socket straight to its place, and header and payload
//! leave by one vectored write.
//!
//! ```text
//! cargo run -p nbd-proto --example readiness
//! ```

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "this is the I/O that the core does not have"
)]

mod support;

use bytes::{Buf, Bytes, BytesMut};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use nbd_proto::{
    ExportName, Frame, Phase, Step,
    client::{
        Event, Fill, Go, GoOutcome, Greeted, Handshake, Outcome, Payload, Pending, Plain,
        Transmission, outstanding,
    },
};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
};
use support::broken;

const BLOCK: usize = 4096;
const BLOCKS: u8 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (address, server) = support::serve_once(BLOCK * usize::from(BLOCKS))?;
    run(address)?;
    server.join().expect("the server does not panic")?;
    Ok(())
}

/// The event loop.
fn run(address: SocketAddr) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(8);
    let mut connection = Connection::new(TcpStream::connect(address)?);
    let interest = Interest::READABLE | Interest::WRITABLE;
    poll.registry()
        .register(&mut connection.socket, Token(0), interest)?;
    while !matches!(connection.state, State::Closed) {
        poll.poll(&mut events, None)?;
        for event in &events {
            // Reading may cause a write, and only written requests are answered.
            if event.is_readable() {
                connection.readable()?;
            }
            connection.writable()?;
        }
    }
    assert_eq!(connection.work.verified, usize::from(BLOCKS));
    Ok(())
}

/// The state of the connection. Each phase owns its data, and nothing else is kept.
enum State {
    Greeting(Handshake),
    Asking(Pending<outstanding::StructuredReply<Plain>>),
    Entering(Pending<outstanding::Go<Plain>>),
    Open(Transmission),
    Closed,
}

/// The result of one read.
enum Turn {
    Again,
    /// The socket has nothing more.
    Blocked,
    /// The server has nothing more.
    End,
}

/// One connection in the loop.
struct Connection {
    socket: TcpStream,
    state: State,
    /// Outgoing bytes of the negotiation.
    out: BytesMut,
    /// Requests that are not yet written, or only in part.
    queue: VecDeque<Frame<Bytes>>,
    work: Work,
}

/// The purpose of the connection: blocks are written, and read back.
#[derive(Default)]
struct Work {
    next: u8,
    /// For each request in flight, by its slot.
    slots: Vec<Slot>,
    verified: usize,
}

#[derive(Clone, Default)]
struct Slot {
    block: u8,
    /// The destination of a read; empty for a write.
    buffer: Vec<u8>,
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            state: State::Greeting(Handshake::new(Default::default())),
            out: BytesMut::new(),
            queue: VecDeque::new(),
            work: Work::default(),
        }
    }

    /// Reads until the socket has nothing more.
    fn readable(&mut self) -> io::Result<()> {
        loop {
            let (socket, out) = (&mut self.socket, &mut self.out);
            self.state = match std::mem::replace(&mut self.state, State::Closed) {
                State::Greeting(handshake) => match advance(socket, handshake, out)? {
                    Step::More(handshake) => {
                        self.state = State::Greeting(handshake);
                        return Ok(());
                    }
                    Step::Done(Greeted::FixedNewstyle(options)) => {
                        let asked = options.structured_reply(out);
                        State::Asking(asked.expect("it was not asked before"))
                    }
                    Step::Done(old) => return Err(io::Error::other(format!("{old:?}"))),
                },
                State::Asking(pending) => match advance(socket, pending, out)? {
                    Step::More(pending) => {
                        self.state = State::Asking(pending);
                        return Ok(());
                    }
                    // The transmission works in either mode, granted or not.
                    Step::Done(settled) => {
                        let request = Go::new(ExportName::default());
                        State::Entering(settled.options.go(request, out))
                    }
                },
                State::Entering(pending) => match advance(socket, pending, out)? {
                    Step::More(pending) => {
                        self.state = State::Entering(pending);
                        return Ok(());
                    }
                    Step::Done(GoOutcome::Refused(_, why)) => return Err(io::Error::other(why)),
                    Step::Done(GoOutcome::Accepted(mut transmission)) => {
                        self.work.ask(&mut transmission, &mut self.queue)?;
                        State::Open(transmission)
                    }
                },
                State::Open(mut transmission) => match self.receive(&mut transmission)? {
                    Turn::Again => State::Open(transmission),
                    Turn::Blocked => {
                        self.state = State::Open(transmission);
                        return Ok(());
                    }
                    Turn::End => State::Closed,
                },
                State::Closed => return Ok(()),
            };
            self.writable()?;
        }
    }

    /// Reads once, straight to where the bytes belong.
    fn receive(&mut self, transmission: &mut Transmission) -> io::Result<Turn> {
        let mut nowhere = [0; 4096];
        let space = match transmission.fill().map_err(broken)? {
            Fill::Control(space) => space,
            Fill::Payload(Payload { cookie, range }) => {
                &mut self.work.slots[cookie.slot()].buffer[range]
            }
            Fill::Discard(most) => {
                let n = most.min(nowhere.len());
                &mut nowhere[..n]
            }
        };
        let n = match self.socket.read(space) {
            Ok(0) if transmission.may_end() => return Ok(Turn::End),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::Blocked),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(Turn::Again),
            Err(e) => return Err(e),
        };
        if let Some(event) = transmission.filled(n).map_err(broken)? {
            self.work.done(event, transmission, &mut self.queue)?;
            self.work.ask(transmission, &mut self.queue)?;
            if self.work.verified == usize::from(BLOCKS) {
                let disconnect = transmission.disconnect().map_err(io::Error::other)?;
                self.queue.push_back(disconnect.into());
            }
        }
        Ok(Turn::Again)
    }

    /// Writes until the socket takes no more, or there is nothing more to write.
    fn writable(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(n) => self.out.advance(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A connection that is not made yet.
                Err(e) if e.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        while let Some(frame) = self.queue.front_mut() {
            let mut slices = [io::IoSlice::new(&[]); 2];
            let used = frame.chunks_vectored(&mut slices);
            match self.socket.write_vectored(&slices[..used]) {
                Ok(n) => frame.advance(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
            if !frame.has_remaining() {
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

/// Goes on with a phase of the negotiation as long as the socket has bytes for it.
fn advance<P: Phase>(
    socket: &mut TcpStream,
    mut phase: P,
    out: &mut BytesMut,
) -> io::Result<Step<P, P::Next>> {
    loop {
        // The space ends with the message, so later bytes stay unread.
        match socket.read(phase.space()) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => match phase.filled(n, out).map_err(broken)? {
                Step::More(more) => phase = more,
                done @ Step::Done(_) => return Ok(done),
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Step::More(phase)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl Work {
    /// Writes more blocks while the limits allow more requests.
    fn ask(&mut self, t: &mut Transmission, queue: &mut VecDeque<Frame<Bytes>>) -> io::Result<()> {
        while self.next < BLOCKS && t.has_room() {
            let block = self.next;
            self.next += 1;
            let data = Bytes::from(vec![block; BLOCK]);
            let asked = t.write(offset(block), data, Default::default());
            let (cookie, frame) = asked.map_err(io::Error::other)?;
            self.slot(cookie.slot()).block = block;
            queue.push_back(frame);
        }
        Ok(())
    }

    fn done(
        &mut self,
        event: Event,
        t: &mut Transmission,
        queue: &mut VecDeque<Frame<Bytes>>,
    ) -> io::Result<()> {
        let cookie = match event {
            Event::Hole { payload, done } => {
                self.slots[payload.cookie.slot()].buffer[payload.range].fill(0);
                if !done {
                    return Ok(());
                }
                payload.cookie
            }
            Event::Complete {
                outcome: Outcome::Failed(failure),
                ..
            } => return Err(io::Error::other(failure)),
            Event::Complete { cookie, .. } => cookie,
        };
        let Slot { block, buffer } = std::mem::take(&mut self.slots[cookie.slot()]);
        if buffer.is_empty() {
            // The block was written. Now it is read.
            let asked = t.read(offset(block), BLOCK as u64, Default::default());
            let (cookie, frame) = asked.map_err(io::Error::other)?;
            let buffer = vec![0; BLOCK];
            *self.slot(cookie.slot()) = Slot { block, buffer };
            queue.push_back(frame.into());
        } else {
            assert_eq!(
                buffer, [block; BLOCK],
                "block {block} differs from the written data"
            );
            self.verified += 1;
        }
        Ok(())
    }

    fn slot(&mut self, index: usize) -> &mut Slot {
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::default());
        }
        &mut self.slots[index]
    }
}

fn offset(block: u8) -> u64 {
    u64::from(block) * BLOCK as u64
}

#[test]
fn blocks_are_written_and_read_back() {
    main().expect("the server is ours");
}
