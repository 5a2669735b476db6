//! Requests and answers over a connection that cuts bytes at random.

use super::{
    Chopper,
    disk::{Disk, Expected, index},
};
use crate::{
    answer::{Answer, only},
    input::Input,
};
use bytes::{Buf, BufMut, BytesMut};
use nbd_proto::{
    Command, CommandFlags, Errno, Misuse,
    client::{self, ContextExtents, Cookie, Fill, Outcome, Payload, Transmission},
    meta::Extent,
    server,
};
use std::collections::{BTreeMap, VecDeque};

/// Requests of one input.
const MAX_REQUESTS: usize = 24;

/// The longest request in bytes.
const MAX_LEN: u64 = 8192;

/// A request that was sent.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    cookie: Cookie,
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) payload: Vec<u8>,
    pub(super) filter: Option<Vec<u32>>,
    abandoned: bool,
}

/// Both sides of a connection, and the bytes between them.
pub(super) struct Client<'a> {
    client: Transmission,
    server: server::Transmission,
    chopper: Chopper<'a>,
    decisions: Input<'a>,
    asks: Input<'a>,
    left: usize,
    to_server: BytesMut,
    to_client: BytesMut,
    disk: Disk,
    /// Sent, and not yet seen by the server.
    issued: VecDeque<Issued>,
    /// Seen by the server, and not yet completed.
    served: BTreeMap<Cookie, (Issued, Expected)>,
    buffers: BTreeMap<Cookie, Vec<u8>>,
    /// The payload of the write that the server is receiving.
    payload: Vec<u8>,
    answers: Vec<Answer>,
    disconnected: bool,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        client: Transmission,
        server: server::Transmission,
        chopper: Chopper<'a>,
        decisions: Input<'a>,
        asks: Input<'a>,
    ) -> Self {
        let minimum = client.block_sizes().minimum();
        Self {
            disk: Disk::new(server.size(), server.mode(), minimum),
            client,
            server,
            chopper,
            decisions,
            asks,
            left: MAX_REQUESTS,
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            issued: VecDeque::new(),
            served: BTreeMap::new(),
            buffers: BTreeMap::new(),
            payload: Vec::new(),
            answers: Vec::new(),
            disconnected: false,
        }
    }

    /// Sends requests until there are no more, and then disconnects.
    pub(super) fn run(mut self) {
        while self.turn() {
            assert_eq!(
                self.client.in_flight(),
                self.issued.len() + self.served.len(),
                "requests were forgotten"
            );
        }
        assert!(
            self.asks.is_empty() || self.left == 0,
            "both sides are stuck"
        );
        assert!(
            self.issued.is_empty() && self.served.is_empty(),
            "both sides are stuck"
        );
        assert!(self.disk.is_as_expected());
        assert_eq!((self.client.in_flight(), self.server.in_flight()), (0, 0));
        assert!(self.server.is_idle() && !self.client.may_end());
        self.to_server
            .put(self.client.disconnect().expect("nothing is wrong"));
        while self.serve_piece() {}
        assert!(self.disconnected && self.server.is_finished() && self.client.may_end());
    }

    /// Lets some of the four parties act; all of them when nothing else was decided. Returns
    /// whether anything happened or was held up.
    fn turn(&mut self) -> bool {
        let held_up = self.decisions.byte();
        let may = |bit: u8| held_up & 1 << bit == 0;
        let mut acted = held_up & 15 != 0;
        if may(0) {
            acted |= self.ask();
        }
        if may(1) {
            acted |= self.serve_piece();
        }
        if may(2) {
            acted |= self.answer();
        }
        if may(3) {
            acted |= self.receive_piece();
        }
        acted
    }

    /// The client sends a request.
    fn ask(&mut self) -> bool {
        if self.asks.is_empty() || self.left == 0 || !self.client.has_room() {
            return false;
        }
        self.left -= 1;
        let byte = self.asks.byte();
        let command = match byte & 15 {
            0..=4 => Command::Read,
            5..=7 => Command::Write,
            8 => Command::Flush,
            9 => Command::Trim,
            10 => Command::Cache,
            11 => Command::WriteZeroes,
            _ => Command::BlockStatus,
        };
        let flags = CommandFlags::from_bits((self.asks.byte() & 0x1f).into());
        let unit = u64::from(self.client.block_sizes().minimum());
        let offset = u64::from(self.asks.u16()) / unit * unit;
        let len = (u64::from(self.asks.u16()) % MAX_LEN / unit + 1) * unit;
        let mut issued = Issued {
            cookie: match self.send(command, flags, (offset, len), byte) {
                Ok(cookie) => cookie,
                Err(misuse) => {
                    assert!(!matches!(misuse, Misuse::Dead(_) | Misuse::InFlight { .. }));
                    return true;
                }
            },
            command,
            flags,
            offset,
            len,
            payload: match command {
                Command::Write => pattern(byte, len),
                _ => Vec::new(),
            },
            filter: filter(&self.client, command, byte),
            abandoned: byte & 0x40 != 0,
        };
        if command == Command::Flush {
            (issued.offset, issued.len) = (0, 0);
        }
        if issued.abandoned {
            self.client.abandon(issued.cookie);
        }
        if command == Command::Read {
            self.buffers.insert(issued.cookie, vec![0xaa; index(len)]);
        }
        self.issued.push_back(issued);
        true
    }

    fn send(
        &mut self,
        command: Command,
        flags: CommandFlags,
        (offset, len): (u64, u64),
        byte: u8,
    ) -> Result<Cookie, Misuse> {
        let filter = filter(&self.client, command, byte);
        let (client, out) = (&mut self.client, &mut self.to_server);
        let (cookie, frame) = match command {
            Command::Read => client.read(offset, len, flags)?,
            Command::Write => {
                let payload = pattern(byte, len);
                let (cookie, frame) = client.write(offset, &payload[..], flags)?;
                out.put(frame);
                return Ok(cookie);
            }
            Command::Flush => client.flush()?,
            Command::Trim => client.trim(offset, len, flags)?,
            Command::Cache => client.cache(offset, len)?,
            Command::WriteZeroes => client.write_zeroes(offset, len, flags)?,
            _ => match filter {
                None => client.block_status(offset, len, flags)?,
                Some(ids) => {
                    let (cookie, frame) = client.block_status_of(&ids, offset, len, flags)?;
                    out.put(frame);
                    return Ok(cookie);
                }
            },
        };
        out.put(frame);
        Ok(cookie)
    }

    /// The server reads a piece.
    fn serve_piece(&mut self) -> bool {
        if self.to_server.is_empty() || self.disconnected {
            return false;
        }
        let (n, feed) = self.chopper.next(self.to_server.len());
        let server = &mut self.server;
        let (used, event) = if feed {
            let fed = server.feed(&self.to_server[..n]);
            let fed = fed.expect("the client obeys the protocol");
            if let Some(range) = fed.payload {
                self.payload.truncate(range.start);
                self.payload.extend_from_slice(&self.to_server[..fed.used]);
            }
            (fed.used, fed.event)
        } else {
            let n = match server.fill() {
                server::Fill::Control(space) => {
                    let n = n.min(space.len());
                    space[..n].copy_from_slice(&self.to_server[..n]);
                    n
                }
                server::Fill::Payload { range, .. } => {
                    let n = n.min(range.len());
                    self.payload.truncate(range.start);
                    self.payload.extend_from_slice(&self.to_server[..n]);
                    n
                }
                server::Fill::Discard(most) => n.min(most),
                server::Fill::Blocked => return false,
                server::Fill::Finished => panic!("the client has not disconnected"),
            };
            (n, server.filled(n).expect("the client obeys the protocol"))
        };
        self.to_server.advance(used);
        let acted = used > 0 || event.is_some();
        match event {
            None => {}
            Some(server::Event::Request(request)) => {
                let issued = self.issued.pop_front().expect("it was sent");
                let (answer, expected) =
                    self.disk
                        .serve(request, &self.payload, &issued, &mut self.decisions);
                self.answers.push(answer);
                self.served.insert(issued.cookie, (issued, expected));
            }
            Some(server::Event::Answered(reply)) => {
                let issued = self.issued.pop_front().expect("it was sent");
                // The client would have refused to send anything else.
                let most = self.client.block_sizes().maximum().into();
                assert!(issued.command == Command::Read && issued.len > most);
                self.answers.push(only(*reply));
                let expected = Expected::Failed(Errno::Overflow, None);
                self.served.insert(issued.cookie, (issued, expected));
            }
            Some(server::Event::Disconnect) => self.disconnected = true,
        }
        acted
    }

    /// The server sends a message of one of its answers.
    fn answer(&mut self) -> bool {
        if self.answers.is_empty() {
            return false;
        }
        // S-187, S-219: whole messages of all answers, in any order.
        let at = self.decisions.below(self.answers.len());
        let answer = &mut self.answers[at];
        if let Some(message) = answer.messages.pop_front() {
            self.to_client.put_slice(&message);
        }
        if answer.messages.is_empty() {
            let Answer { receipt, .. } = self.answers.remove(at);
            self.server.retire(receipt);
        }
        true
    }

    /// The client reads a piece.
    fn receive_piece(&mut self) -> bool {
        if self.to_client.is_empty() {
            return false;
        }
        let (n, feed) = self.chopper.next(self.to_client.len());
        let obeys = "the server obeys the protocol";
        let (n, payload, event) = if feed {
            let fed = self.client.feed(&self.to_client[..n]).expect(obeys);
            (fed.used, fed.payload, fed.event)
        } else {
            let (n, payload) = match self.client.fill().expect(obeys) {
                Fill::Control(space) => {
                    let n = n.min(space.len());
                    space[..n].copy_from_slice(&self.to_client[..n]);
                    (n, None)
                }
                Fill::Payload(Payload { cookie, range }) => {
                    let n = n.min(range.len());
                    let range = range.start..range.start + n;
                    (n, Some(Payload { cookie, range }))
                }
                Fill::Discard(most) => (n.min(most), None),
            };
            (n, payload, self.client.filled(n).expect(obeys))
        };
        assert!(n > 0);
        if let Some(Payload { cookie, range }) = payload {
            let buffer = self
                .buffers
                .get_mut(&cookie)
                .expect("only reads have payload");
            let start = n - range.len();
            buffer[range].copy_from_slice(&self.to_client[start..n]);
        }
        self.to_client.advance(n);
        match event {
            None => {}
            Some(client::Event::Hole { payload, done }) => {
                let Payload { cookie, range } = payload;
                let buffer = self
                    .buffers
                    .get_mut(&cookie)
                    .expect("only reads have payload");
                buffer[range].fill(0);
                if done {
                    self.complete(cookie, Outcome::Done);
                }
            }
            Some(client::Event::Complete { cookie, outcome }) => self.complete(cookie, outcome),
        }
        true
    }

    fn complete(&mut self, cookie: Cookie, outcome: Outcome) {
        let (issued, expected) = self.served.remove(&cookie).expect("it was answered once");
        let buffer = self.buffers.remove(&cookie);
        match (outcome, expected) {
            (Outcome::Done, Expected::Done) => {}
            (Outcome::Done, Expected::Data(data)) => {
                assert!(issued.abandoned || buffer == Some(data), "{issued:?}");
            }
            (Outcome::Extents(got), Expected::Extents(existing)) => {
                let end = match issued.flags.contains(CommandFlags::REQ_ONE) {
                    true => issued.len,
                    false => self.client.export().size - issued.offset,
                };
                assert_eq!(got.len(), existing.len());
                for (ContextExtents { id, extents }, (expected, existing)) in
                    got.iter().zip(&existing)
                {
                    assert_eq!(id, expected);
                    check_extents(extents, existing, &issued, end);
                }
            }
            (Outcome::Failed(failure), Expected::Failed(errno, at)) => {
                assert_eq!((failure.errno, failure.offset), (errno, at), "{issued:?}");
            }
            (outcome, expected) => panic!("{issued:?}: {outcome:?} in place of {expected:?}"),
        }
    }
}

/// Whether extents agree with the server's, up to `end`, and cover the requested range.
fn check_extents(got: &[Extent], existing: &[Extent], issued: &Issued, end: u64) {
    let one = issued.flags.contains(CommandFlags::REQ_ONE);
    assert!(!got.is_empty() && (!one || got.len() == 1));
    let mut rest = existing.iter().copied();
    let mut known = Extent { len: 0, status: 0 };
    for extent in got {
        let mut left = extent.len;
        assert!(left > 0);
        while left > 0 {
            if known.len == 0 {
                known = rest.next().expect("the server knows about that");
            }
            assert_eq!(known.status, extent.status);
            let both = left.min(known.len);
            left -= both;
            known.len -= both;
        }
    }
    let sum = |extents: &[Extent]| extents.iter().map(|extent| extent.len).sum::<u64>();
    assert!(sum(got) <= end);
    assert!(
        one || sum(got) >= sum(existing).min(issued.len).min(end),
        "{got:?} {existing:?}"
    );
}

/// Contexts that block status is asked about, if not all.
fn filter(client: &Transmission, command: Command, byte: u8) -> Option<Vec<u32>> {
    let wanted = command == Command::BlockStatus
        && byte & 0x80 != 0
        && client.export().can_filter_block_status();
    wanted.then(|| {
        client
            .contexts()
            .iter()
            .skip(1)
            .map(|context| context.id)
            .collect()
    })
}

/// The payload of a write.
fn pattern(byte: u8, len: u64) -> Vec<u8> {
    (0..len)
        .map(|at| byte ^ u8::try_from(at % 253).expect("a remainder is small"))
        .collect()
}
