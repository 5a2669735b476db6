//! The disk behind the server, which answers in many forms, and the expected outcome of each
//! answer.

use super::asking::Issued;
use crate::{
    answer::{Answer, Messages, only},
    input::Input,
    server::piece_len,
};
use bytes::Bytes;
use core::ops::Range;
use nbd_proto::{
    Command, CommandFlags, Errno, HeaderStyle,
    meta::{Allocation, Extent},
    server::{ReadTicket, Request, StatusTicket},
};

/// The expected outcome of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Expected {
    Done,
    Data(Vec<u8>),
    /// The extents that the server has, for each context.
    Extents(Vec<(u32, Vec<Extent>)>),
    Failed(Errno, Option<u64>),
}

/// The contents of the export: as the server keeps them, and as the client thinks they are.
#[derive(Debug)]
pub(super) struct Disk {
    mode: HeaderStyle,
    minimum: u64,
    contents: Vec<u8>,
    model: Vec<u8>,
}

/// The errors that a server may answer with at any time, but `NBD_ESHUTDOWN`.
const ERRORS: [Errno; 5] = [
    Errno::Io,
    Errno::Perm,
    Errno::NoMem,
    Errno::Inval,
    Errno::NoSpc,
];

impl Disk {
    pub(super) fn new(size: u64, mode: HeaderStyle, minimum: u32) -> Self {
        let mut contents = vec![0; index(size)];
        // The second half is a hole.
        let half = contents.len() / 2;
        for (at, byte) in contents[..half].iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).expect("a remainder is small");
        }
        Self {
            mode,
            minimum: minimum.into(),
            model: contents.clone(),
            contents,
        }
    }

    /// Carries out a request, which must be the one that was issued.
    pub(super) fn serve(
        &mut self,
        request: Request,
        payload: &[u8],
        issued: &Issued,
        decisions: &mut Input<'_>,
    ) -> (Answer, Expected) {
        assert_eq!(request.command(), issued.command);
        let byte = decisions.byte();
        if byte >= 0xf0 {
            let errno = decisions.pick(&ERRORS);
            return (
                only(request.fail(errno, "failed")),
                Expected::Failed(errno, None),
            );
        }
        let range = index(issued.offset)..index(issued.offset + issued.len);
        let place = (issued.offset, issued.len);
        let has = |flag| issued.flags.contains(flag);
        match request {
            Request::Read {
                offset,
                len,
                ticket,
            } => {
                assert_eq!((offset, u64::from(len)), place);
                let data = Expected::Data(self.model[range.clone()].to_vec());
                self.read(issued, ticket, (byte, range), data, decisions)
            }
            Request::Write {
                offset,
                len,
                fua,
                ticket,
            } => {
                assert_eq!((offset, u64::from(len)), place);
                assert_eq!(fua, has(CommandFlags::FUA));
                if byte >= 0xe0 {
                    let at = offset + u64::from(decisions.u16());
                    let reply = ticket.fail_at(Errno::NoSpc, at, "no more space");
                    return (only(reply), self.failed_at(issued, Errno::NoSpc, at));
                }
                self.contents[range.clone()].copy_from_slice(payload);
                self.model[range].copy_from_slice(&issued.payload);
                (only(ticket.done()), Expected::Done)
            }
            Request::WriteZeroes {
                offset,
                len,
                fua,
                no_hole,
                fast,
                ticket,
            } => {
                assert_eq!((offset, len), place);
                assert_eq!(fua, has(CommandFlags::FUA));
                assert_eq!(no_hole, has(CommandFlags::NO_HOLE));
                assert_eq!(fast, has(CommandFlags::FAST_ZERO));
                if fast && byte & 1 == 1 {
                    let slow = ticket.fail(Errno::NotSup, "zeroes are slow");
                    return (only(slow), Expected::Failed(Errno::NotSup, None));
                }
                self.contents[range.clone()].fill(0);
                self.model[range].fill(0);
                (only(ticket.done()), Expected::Done)
            }
            Request::Trim {
                offset,
                len,
                fua,
                ticket,
            } => {
                assert_eq!((offset, len), place);
                assert_eq!(fua, has(CommandFlags::FUA));
                // Their contents are undefined afterwards; here they are zeroes.
                self.contents[range.clone()].fill(0);
                self.model[range].fill(0);
                (only(ticket.done()), Expected::Done)
            }
            Request::Cache {
                offset,
                len,
                ticket,
            } => {
                assert_eq!((offset, len), place);
                (only(ticket.done()), Expected::Done)
            }
            Request::Flush { ticket } => (only(ticket.done()), Expected::Done),
            Request::BlockStatus {
                offset,
                len,
                one,
                ticket,
            } => {
                assert_eq!((offset, len), place);
                assert_eq!(one, has(CommandFlags::REQ_ONE));
                self.status(issued, ticket, decisions)
            }
        }
    }

    fn read(
        &self,
        issued: &Issued,
        ticket: ReadTicket,
        (byte, range): (u8, Range<usize>),
        expected: Expected,
        decisions: &mut Input<'_>,
    ) -> (Answer, Expected) {
        let data = &self.contents[range];
        if byte >= 0xe0 {
            let at = issued.offset + u64::from(decisions.u16());
            let reply = ticket.fail_at(Errno::Io, at, "a bad block");
            return (only(reply), self.failed_at(issued, Errno::Io, at));
        }
        let whole = |ticket: ReadTicket| only(ticket.data(Bytes::copy_from_slice(data)));
        if byte & 1 == 1 && is_zero(data) {
            return match ticket.hole() {
                Ok(reply) => (only(reply), expected),
                Err(ticket) => (whole(ticket), expected),
            };
        }
        let mut sparse = match ticket.into_sparse() {
            Ok(sparse) => sparse,
            Err(ticket) => {
                let df = issued.flags.contains(CommandFlags::DF);
                assert!(df || self.mode == HeaderStyle::Simple);
                return (whole(ticket), expected);
            }
        };
        let mut messages = Messages::default();
        loop {
            let byte = decisions.byte();
            let (at, missing) = (sparse.offset(), sparse.missing());
            if byte >= 0xf8 {
                let reply = sparse.fail_at(Errno::Io, at, "broke off");
                return (messages.last(reply), self.failed_at(issued, Errno::Io, at));
            }
            let len = piece_len(byte, missing);
            let piece = &self.contents[index(at)..index(at + u64::from(len))];
            let part = if is_zero(piece) {
                messages.part(sparse.hole(len))
            } else {
                messages.part(sparse.data(piece))
            };
            (messages, sparse) = match part {
                Ok(more) => more,
                Err(answer) => return (answer, expected),
            };
            assert_eq!(sparse.missing(), missing - u64::from(len));
        }
    }

    fn status(
        &self,
        issued: &Issued,
        mut ticket: StatusTicket,
        decisions: &mut Input<'_>,
    ) -> (Answer, Expected) {
        let ids: Vec<_> = ticket.contexts().map(|context| context.id()).collect();
        if let Some(filter) = &issued.filter {
            assert_eq!(&ids, filter);
        }
        let mut messages = Messages::default();
        let mut all = Vec::new();
        loop {
            let context = ticket.context();
            let allocation = context.name().as_str() == "base:allocation";
            let id = context.id();
            let count = decisions.below(8);
            let extent = |_| Extent {
                len: u64::from(decisions.byte()) * self.minimum * decisions.pick(&[1, 16]),
                status: decisions.byte().into(),
            };
            let mut extents: Vec<_> = (0..count).map(extent).collect();
            let part = messages.part(ticket.extents(extents.iter().copied()));
            extents.retain(|extent| extent.len > 0);
            if extents.is_empty() {
                // Nothing is known.
                let (len, status) = (issued.len, 0);
                extents.push(Extent { len, status });
            }
            for extent in &mut extents {
                if allocation {
                    extent.status = Allocation::new(extent.status).status();
                }
            }
            all.push((id, extents));
            (messages, ticket) = match part {
                Ok(more) => more,
                Err(answer) => return (answer, Expected::Extents(all)),
            };
        }
    }

    /// Only chunks have room for the place of a failure, and it must be in the request.
    fn failed_at(&self, issued: &Issued, errno: Errno, at: u64) -> Expected {
        let inside = at >= issued.offset && at - issued.offset < issued.len;
        let has_place = inside && self.mode.has_chunks() && issued.command != Command::Flush;
        Expected::Failed(errno, has_place.then_some(at))
    }

    pub(super) fn is_as_expected(&self) -> bool {
        self.contents == self.model
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

pub(super) fn index(at: u64) -> usize {
    usize::try_from(at).expect("the disk is in memory")
}
