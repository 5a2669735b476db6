//! A client over completions: the thread or kernel that does the I/O owns the buffers meanwhile, as
//! with io_uring.
//!
//! An operation is submitted with all its buffers, and comes back with them. Nothing can be lent
//! across that border, so instead of borrowing space from the machine
//!
//! * incoming bytes are received into a buffer of the ring and then [fed](Transmission::feed), and
//!   only a large payload, whose place [`Transmission::fill`] announces ahead, is received right
//!   there, in the read's own buffer;
//! * outgoing bytes are a [`Header`] by value and the payload as an owned [`Bytes`], which
//!   [`Frame::into_parts`] takes apart.
//!
//! The ring here is two threads around a socket. Real ones have the same border.
//!
//! ```text
//! cargo run -p nbd-proto --example completion
//! ```

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "this is the I/O that the core does not have"
)]

mod support;

use bytes::{Buf, Bytes, BytesMut};
use nbd_proto::{
    Bare, ExportName, Frame, Header, Phase, Step,
    client::{
        Cookie, Event, Fed, Fill, Go, GoOutcome, Greeted, Handshake, Outcome, Payload, Transmission,
    },
};
use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};
use support::broken;

const BLOCK: usize = 64 << 10;
const BLOCKS: u8 = 16;
/// A payload of this size is received on its own, in bytes.
const LARGE: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (address, server) = support::serve_once(BLOCK * usize::from(BLOCKS))?;
    run(address)?;
    server.join().expect("the server does not panic")?;
    Ok(())
}

fn run(address: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let mut ring = Ring::new(address)?;

    let handshake = Handshake::new(Default::default());
    let Greeted::FixedNewstyle(options) = ring.drive(handshake, &mut BytesMut::new())? else {
        return Err("the server speaks an old dialect".into());
    };
    let mut out = BytesMut::new();
    let pending = options.extended_headers(&mut out).map_err(|no| no.misuse)?;
    let options = ring.drive(pending, &mut out)?.options;
    let pending = options.go(Go::new(ExportName::default()), &mut out);
    let transmission = match ring.drive(pending, &mut out)? {
        GoOutcome::Accepted(transmission) => transmission,
        GoOutcome::Refused(_, why) => return Err(why.into()),
    };

    let mut client = Client {
        ring,
        transmission,
        buffers: BTreeMap::new(),
    };
    for block in 0..BLOCKS {
        let data = Bytes::from(vec![block; BLOCK]);
        let asked = client
            .transmission
            .write(offset(block), data, Default::default());
        client.ring.send(asked?.1);
    }
    client.wait()?;
    let mut reads = BTreeMap::new();
    for block in 0..BLOCKS {
        let asked = client
            .transmission
            .read(offset(block), BLOCK as u64, Default::default());
        let (cookie, frame) = asked?;
        client.buffers.insert(cookie, vec![0; BLOCK]);
        client.ring.send(frame.into());
        reads.insert(cookie, block);
    }
    client.wait()?;
    for (cookie, block) in reads {
        assert_eq!(
            client.buffers[&cookie], [block; BLOCK],
            "the written block comes back"
        );
    }
    let disconnect: Bare = client.transmission.disconnect()?;
    client.ring.send(disconnect.into());
    assert!(client.transmission.may_end());
    Ok(client.ring.close()?)
}

fn offset(block: u8) -> u64 {
    u64::from(block) * BLOCK as u64
}

/// An export over a ring.
struct Client {
    ring: Ring,
    transmission: Transmission,
    /// The destination of each read. One is missing while the ring has it.
    buffers: BTreeMap<Cookie, Vec<u8>>,
}

impl Client {
    /// Goes on until every request is answered.
    fn wait(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        while self.transmission.in_flight() > 0 {
            match self.transmission.fill()? {
                Fill::Payload(Payload { cookie, range }) if range.len() >= LARGE => {
                    let buffer = self.buffers.remove(&cookie).expect("every read has one");
                    let (buffer, n) = self.ring.receive(buffer, range)?;
                    self.buffers.insert(cookie, buffer);
                    if let Some(event) = self.transmission.filled(n)? {
                        self.done(event)?;
                    }
                }
                _ => {
                    let (buffer, n) = self.ring.receive_some()?;
                    self.feed(&buffer[..n])?;
                    self.ring.recycle(buffer);
                }
            }
        }
        Ok(())
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
        while !bytes.is_empty() {
            let Fed {
                used,
                payload,
                event,
            } = self.transmission.feed(bytes)?;
            if let Some(Payload { cookie, range }) = payload {
                let buffer = self.buffers.get_mut(&cookie).expect("every read has one");
                let place = &mut buffer[range];
                place.copy_from_slice(&bytes[used - place.len()..used]);
            }
            if let Some(event) = event {
                self.done(event)?;
            }
            bytes.advance(used);
        }
        Ok(())
    }

    fn done(&mut self, event: Event) -> Result<(), Box<dyn std::error::Error>> {
        match event {
            Event::Hole { payload, .. } => {
                let Payload { cookie, range } = payload;
                let buffer = self.buffers.get_mut(&cookie).expect("every read has one");
                buffer[range].fill(0);
            }
            Event::Complete { outcome, .. } => {
                if let Outcome::Failed(failure) = outcome {
                    return Err(failure.into());
                }
            }
        }
        Ok(())
    }
}

/// Submission queues, and a completion queue for received bytes.
struct Ring {
    to_send: Sender<(Message, Bytes)>,
    to_receive: Sender<(Vec<u8>, Range<usize>)>,
    received: Receiver<io::Result<(Vec<u8>, usize)>>,
    spare: Option<Vec<u8>>,
    sender: thread::JoinHandle<io::Result<()>>,
}

/// The bytes before a payload, owned and without an allocation for each request.
enum Message {
    Request(Header),
    Options(Bytes),
}

impl Ring {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let mut writer = TcpStream::connect(address)?;
        let mut reader = writer.try_clone()?;
        let (to_send, submitted) = channel::<(Message, Bytes)>();
        let sender = thread::spawn(move || {
            for (message, payload) in submitted {
                match message {
                    Message::Request(header) => writer.write_all(header.as_bytes())?,
                    Message::Options(bytes) => writer.write_all(&bytes)?,
                }
                writer.write_all(&payload)?;
            }
            Ok(())
        });
        let (to_receive, submitted) = channel::<(Vec<u8>, Range<usize>)>();
        let (complete, received) = channel();
        thread::spawn(move || {
            for (mut buffer, range) in submitted {
                let n = reader.read(&mut buffer[range]);
                if complete.send(n.map(|n| (buffer, n))).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            to_send,
            to_receive,
            received,
            spare: None,
            sender,
        })
    }

    /// Submits a message. It is sent behind earlier ones.
    fn send(&self, frame: Frame<Bytes>) {
        let (header, payload) = frame.into_parts();
        self.submit(Message::Request(header), payload);
    }

    fn submit(&self, message: Message, payload: Bytes) {
        // When the sender has failed, so does the next receive.
        let _ = self.to_send.send((message, payload));
    }

    /// Submits a receive into a part of a buffer, and waits for its completion.
    fn receive(&self, buffer: Vec<u8>, range: Range<usize>) -> io::Result<(Vec<u8>, usize)> {
        let gone = |_| io::Error::from(ErrorKind::BrokenPipe);
        let submission = (buffer, range);
        self.to_receive
            .send(submission)
            .map_err(|_| ErrorKind::BrokenPipe)?;
        match self.received.recv().map_err(gone)?? {
            (_, 0) => Err(ErrorKind::UnexpectedEof.into()),
            completion => Ok(completion),
        }
    }

    /// Receives the bytes that are there.
    fn receive_some(&mut self) -> io::Result<(Vec<u8>, usize)> {
        let buffer = self.spare.take().unwrap_or_else(|| vec![0; 16 << 10]);
        let all = 0..buffer.len();
        self.receive(buffer, all)
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        self.spare = Some(buffer);
    }

    /// Goes through a phase of the negotiation. It receives no more than the lent space: later
    /// bytes belong to the next phase, or to TLS.
    fn drive<P: Phase>(&mut self, mut phase: P, out: &mut BytesMut) -> io::Result<P::Next> {
        loop {
            self.submit(Message::Options(out.split().freeze()), Bytes::new());
            let lent = phase.space().len();
            let buffer = self.spare.take().unwrap_or_else(|| vec![0; 16 << 10]);
            let (buffer, n) = self.receive(buffer, 0..lent)?;
            let (_, step) = phase.feed(&buffer[..n], out).map_err(broken)?;
            self.recycle(buffer);
            match step {
                Step::More(more) => phase = more,
                Step::Done(next) => {
                    self.submit(Message::Options(out.split().freeze()), Bytes::new());
                    return Ok(next);
                }
            }
        }
    }

    /// Waits until all is sent.
    fn close(self) -> io::Result<()> {
        drop(self.to_send);
        self.sender.join().expect("the sender does not panic")
    }
}

#[test]
fn blocks_are_written_and_read_back() {
    main().expect("the server is ours");
}
