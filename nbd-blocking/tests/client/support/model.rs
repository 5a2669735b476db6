//! A small server that obeys the protocol as awkwardly as possible: it answers in any order, its
//! messages are interleaved, and its bytes come in pieces.

use super::{Random, spawn};
use bytes::{Buf, BytesMut};
use nbd_blocking::{ContextName, Errno, ExportInfo, server::Limits};
use nbd_proto::{
    BlockSizes, Phase, Step, TransmissionFlags,
    meta::{Allocation, Extent},
    server::{
        Config, Event, Fill, Handshake, Part, ReadTicket, Receipt, Request, Requested, Transmission,
    },
};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// The message of a read that is to fail.
pub(crate) const FAILURE: &str = "the platter is scratched";

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) size: usize,
    pub(crate) flags: TransmissionFlags,
    pub(crate) block_sizes: Option<BlockSizes>,
    /// Whether zeroes are sent as holes, and reads in several chunks.
    pub(crate) sparse: bool,
    /// Whether replies are sent in any order, and their bytes in pieces.
    pub(crate) unruly: bool,
    /// Reads that touch this byte fail.
    pub(crate) scratch: Option<u64>,
    pub(crate) seed: u64,
}

pub(crate) type Disk = Arc<Mutex<Vec<u8>>>;

impl Model {
    pub(crate) fn new(size: usize) -> Self {
        let limits = Limits {
            accepted: 64,
            ..Limits::default()
        };
        Self {
            config: Config {
                limits,
                ..Config::default()
            },
            size,
            flags: TransmissionFlags::from_bits(super::bytes::ALL_FLAGS),
            block_sizes: None,
            sparse: true,
            unruly: true,
            scratch: None,
            seed: 1,
        }
    }

    pub(crate) fn simple(mut self) -> Self {
        self.config.structured = false;
        self.config.extended = false;
        self
    }

    pub(crate) fn structured(mut self) -> Self {
        self.config.extended = false;
        self
    }

    pub(crate) fn block_sizes(mut self, minimum: u32, preferred: u32, maximum: u32) -> Self {
        let sizes = BlockSizes::new(minimum, preferred, maximum);
        self.block_sizes = Some(sizes.expect("these block sizes are legal"));
        self
    }

    /// Serves one connection over a Unix socket.
    pub(crate) fn unix(self) -> (UnixStream, Disk) {
        let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
        let reader = theirs.try_clone().expect("sockets can be cloned");
        let disk = self.start(reader, theirs);
        (ours, disk)
    }

    /// Serves one connection over TCP.
    pub(crate) fn tcp(self) -> (TcpStream, Disk) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a loopback");
        let address = listener.local_addr().expect("it is bound");
        let ours = TcpStream::connect(address).expect("it listens");
        let (theirs, _) = listener.accept().expect("it was connected to");
        theirs.set_nodelay(true).expect("it is TCP");
        let reader = theirs.try_clone().expect("sockets can be cloned");
        let disk = self.start(reader, theirs);
        (ours, disk)
    }

    fn start(
        self,
        mut reader: impl Read + Send + 'static,
        mut writer: impl Write + Send + 'static,
    ) -> Disk {
        let disk: Disk = Arc::new(Mutex::new(vec![0; self.size]));
        let ours = disk.clone();
        spawn(move || {
            if let Ok(transmission) = self.negotiate(&mut reader, &mut writer) {
                let shared = Arc::new(Shared {
                    state: Mutex::new(State {
                        transmission,
                        replies: Vec::new(),
                        over: false,
                    }),
                    changed: Condvar::new(),
                });
                let (unruly, seed, theirs) = (self.unruly, self.seed, shared.clone());
                let answering = spawn(move || theirs.answer(&mut writer, unruly, seed));
                let _ = self.serve(&shared, &mut reader, &ours);
                shared.state.lock().expect("no panics").over = true;
                shared.changed.notify_all();
                answering.join().expect("the server does not panic");
            }
        });
        disk
    }

    fn negotiate(
        &self,
        reader: &mut impl Read,
        writer: &mut impl Write,
    ) -> io::Result<Transmission> {
        let mut export = ExportInfo::new(self.size as u64, self.flags);
        export.block_sizes = self.block_sizes;
        let mut out = BytesMut::new();
        let handshake = Handshake::new(self.config, &mut out);
        let mut options = drive(handshake, reader, writer, &mut out)?;
        loop {
            options = match drive(options, reader, writer, &mut out)? {
                Requested::Go(go) => {
                    let transmission = go.accept(&export, &mut out);
                    writer.write_all(&out)?;
                    return Ok(transmission);
                }
                Requested::ExportName(request) => {
                    let transmission = request.accept(&export, &mut out);
                    writer.write_all(&out)?;
                    return Ok(transmission);
                }
                Requested::SetMetaContext(mut request) => {
                    let wanted: Vec<ContextName> = request.queries().cloned().collect();
                    for name in wanted {
                        request.select(&name, &mut out);
                    }
                    request.done(&mut out)
                }
                Requested::List(mut list) => {
                    list.entry(&"disk".parse().expect("a name"), "all of it", &mut out);
                    list.done(&mut out)
                }
                Requested::Info(info) => info.accept(&export, &mut out),
                Requested::ListMetaContext(list) => list.done(&mut out),
                Requested::StartTls(_) | Requested::Abort(_) => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            };
        }
    }

    fn serve(&self, shared: &Shared, reader: &mut impl Read, disk: &Disk) -> io::Result<()> {
        let mut payload = Vec::new();
        let mut trash = vec![0; 1 << 16];
        loop {
            // Only this thread moves the machine's input forward, so its space can be filled later.
            let (place, n) = {
                let mut state = shared.state.lock().expect("no panics");
                loop {
                    match state.transmission.fill() {
                        Fill::Control(space) => break (Place::Control, space.len()),
                        Fill::Payload { range, len } => {
                            payload.resize(len, 0);
                            break (Place::Payload(range.start), range.len());
                        }
                        Fill::Discard(len) => break (Place::Discard, len),
                        Fill::Finished => return Ok(()),
                        Fill::Blocked => {
                            state = shared.changed.wait(state).expect("no panics");
                        }
                    }
                }
            };
            let n = match place {
                Place::Payload(start) => reader.read(&mut payload[start..start + n])?,
                Place::Control | Place::Discard => {
                    let n = n.min(trash.len());
                    reader.read(&mut trash[..n])?
                }
            };
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut state = shared.state.lock().expect("no panics");
            if let (Place::Control, Fill::Control(space)) = (place, state.transmission.fill()) {
                space[..n].copy_from_slice(&trash[..n]);
            }
            let event = state.transmission.filled(n).map_err(io::Error::other)?;
            drop(state);
            let reply = match event {
                None => continue,
                Some(Event::Disconnect) => return Ok(()),
                Some(Event::Answered(reply)) => Messages::new().last(reply.frame, reply.receipt),
                Some(Event::Request(request)) => self.carry_out(request, &payload, disk),
            };
            let mut state = shared.state.lock().expect("no panics");
            state.replies.push(reply);
            shared.changed.notify_all();
        }
    }

    fn carry_out(&self, request: Request, payload: &[u8], disk: &Disk) -> Messages {
        let mut disk = disk.lock().expect("no panics");
        let range = |offset: u64, len: u64| {
            let start = usize::try_from(offset).expect("it was checked");
            start..start + usize::try_from(len).expect("it was checked")
        };
        let reply = match request {
            Request::Read {
                offset,
                len,
                ticket,
            } => {
                let touched = offset..offset + u64::from(len);
                return match self.scratch {
                    Some(at) if touched.contains(&at) => {
                        let reply = ticket.fail_at(Errno::Io, at, FAILURE);
                        Messages::new().last(reply.frame, reply.receipt)
                    }
                    _ => self.read(&disk[range(offset, len.into())], ticket),
                };
            }
            Request::Write {
                offset,
                len,
                ticket,
                ..
            } => {
                disk[range(offset, len.into())].copy_from_slice(payload);
                ticket.done()
            }
            Request::Trim {
                offset,
                len,
                ticket,
                ..
            }
            | Request::WriteZeroes {
                offset,
                len,
                ticket,
                ..
            } => {
                disk[range(offset, len)].fill(0);
                ticket.done()
            }
            Request::Flush { ticket } | Request::Cache { ticket, .. } => ticket.done(),
            Request::BlockStatus {
                offset,
                len,
                mut ticket,
                ..
            } => {
                let mut messages = Messages::new();
                loop {
                    let block = usize::try_from(ticket.context().id()).expect("few contexts");
                    let extents = extents(&disk[range(offset, len)], 4096 * block.max(1));
                    match ticket.extents(extents) {
                        Part::More { frame, rest } => {
                            messages = messages.more(frame);
                            ticket = rest;
                        }
                        Part::Last(reply) => return messages.last(reply.frame, reply.receipt),
                    }
                }
            }
        };
        Messages::new().last(reply.frame, reply.receipt)
    }

    /// In chunks of 64 KiB, of which those of zeroes are holes.
    fn read(&self, data: &[u8], ticket: ReadTicket) -> Messages {
        let whole = |ticket: ReadTicket| {
            let reply = ticket.data(data);
            Messages::new().last(reply.frame, reply.receipt)
        };
        if !self.sparse {
            return whole(ticket);
        }
        let mut sparse = match ticket.into_sparse() {
            Ok(sparse) => sparse,
            Err(ticket) => return whole(ticket),
        };
        let mut messages = Messages::new();
        for piece in data.chunks(64 << 10) {
            if piece.iter().all(|byte| *byte == 0) {
                let len = u32::try_from(piece.len()).expect("it is short");
                match sparse.hole(len) {
                    Part::More { frame, rest } => {
                        messages = messages.more(frame);
                        sparse = rest;
                    }
                    Part::Last(reply) => return messages.last(reply.frame, reply.receipt),
                }
            } else {
                match sparse.data(piece) {
                    Part::More { frame, rest } => {
                        messages = messages.more(frame);
                        sparse = rest;
                    }
                    Part::Last(reply) => return messages.last(reply.frame, reply.receipt),
                }
            }
        }
        unreachable!("the last piece ends the read");
    }
}

#[derive(Clone, Copy)]
enum Place {
    Control,
    Payload(usize),
    Discard,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    transmission: Transmission,
    replies: Vec<Messages>,
    over: bool,
}

/// The messages of one reply.
struct Messages {
    messages: VecDeque<Vec<u8>>,
    receipt: Option<Receipt>,
}

impl Messages {
    fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            receipt: None,
        }
    }

    fn more(mut self, mut frame: impl Buf) -> Self {
        let mut message = vec![0; frame.remaining()];
        frame.copy_to_slice(&mut message);
        self.messages.push_back(message);
        self
    }

    fn last(self, frame: impl Buf, receipt: Receipt) -> Self {
        let mut messages = self.more(frame);
        messages.receipt = Some(receipt);
        messages
    }
}

impl Shared {
    /// Sends replies as long as there are any.
    fn answer(&self, writer: &mut impl Write, unruly: bool, seed: u64) {
        let mut random = Random::new(seed);
        loop {
            let mut state = self.state.lock().expect("no panics");
            while state.replies.is_empty() && !state.over {
                state = self.changed.wait(state).expect("no panics");
            }
            if state.replies.is_empty() {
                return;
            }
            let which = if unruly {
                random.below(state.replies.len())
            } else {
                0
            };
            let message = state.replies[which].messages.pop_front();
            if state.replies[which].messages.is_empty() {
                let reply = state.replies.remove(which);
                let receipt = reply.receipt.expect("every reply has one");
                state.transmission.retire(receipt);
                self.changed.notify_all();
            }
            drop(state);
            let message = message.expect("no reply is empty");
            if send(writer, &message, unruly, &mut random).is_err() {
                return;
            }
        }
    }
}

fn send(
    writer: &mut impl Write,
    mut message: &[u8],
    unruly: bool,
    random: &mut Random,
) -> io::Result<()> {
    // A quarter of the messages come in pieces, some of them late.
    if unruly && random.below(4) == 0 {
        for _ in 0..3 {
            let n = random.below(message.len());
            writer.write_all(&message[..n])?;
            message = &message[n..];
            match random.below(8) {
                0 => thread::sleep(Duration::from_micros(300)),
                1..4 => thread::yield_now(),
                _ => {}
            }
        }
    }
    writer.write_all(message)
}

/// The extents of data, by blocks.
fn extents(data: &[u8], block: usize) -> Vec<Extent> {
    data.chunks(block)
        .map(|block| Extent {
            len: block.len() as u64,
            status: if block.iter().all(|byte| *byte == 0) {
                Allocation::HOLE | Allocation::ZERO
            } else {
                0
            },
        })
        .collect()
}

fn drive<P: Phase>(
    mut phase: P,
    reader: &mut impl Read,
    writer: &mut impl Write,
    out: &mut BytesMut,
) -> io::Result<P::Next> {
    loop {
        writer.write_all(&out.split())?;
        let n = reader.read(phase.space())?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match phase.filled(n, out).map_err(io::Error::other)? {
            Step::More(more) => phase = more,
            Step::Done(next) => {
                writer.write_all(&out.split())?;
                return Ok(next);
            }
        }
    }
}
