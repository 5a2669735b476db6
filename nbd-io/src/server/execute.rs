//! Carrying out one request.

use super::Replies;
use crate::{Content, Export, ZeroMode, errno::reportable, mutation::Mutation};
use bytes::{Buf, Bytes};
use nbd_proto::{
    Errno, Failure,
    meta::{Allocation, Extent},
    server::{Part, ReadTicket, Reply, Request, SparseRead, StatusTicket, Ticket},
};
use std::ops::ControlFlow;

/// Extents that a block status reply has at most for each context: a client asks again.
pub(super) const MAX_EXTENTS: usize = 128 << 10;

/// A hole that is worth a message of its own among data, in bytes.
pub(super) const WORTHWHILE_HOLE: u64 = 4 << 10;

/// Reads up to this length are given memory before the export is asked whether they are zero, in
/// bytes.
const SHORT: u32 = 64 << 10;

/// Questions for holes in one read, and so about as many messages in its reply.
pub(super) const MAX_PIECES: usize = 32;

/// Carries out a request on an export, and appends the reply.
///
/// `payload` is that of a write, and empty for other requests.
///
/// Where holes can be reported to the client and the export [finds them](Export::finds_zeroes), it
/// is asked for them before it reads, so that they need not be sent. Failures pass through
/// [`reportable`]. A request that does not consist of whole blocks of the export's minimum size,
/// which is possible if the client did not ask for block sizes, is answered with
/// [`Errno::Inval`].
///
/// # Errors
///
/// The failure that the client was sent, if it did not succeed.
///
/// # Blocking
///
/// It waits for the export, and for nothing else. It can be called from several threads at once,
/// each with its own `replies`.
pub fn execute(
    export: &dyn Export,
    request: Request,
    payload: &[u8],
    replies: &mut Replies,
) -> Result<(), Failure> {
    if let Err(failure) = check_blocks(export.block_sizes().minimum(), &request) {
        replies.push(request.fail(failure.errno, words(&failure)));
        return Err(failure);
    }
    let (ticket, result, fast) = match request {
        Request::Read {
            offset,
            len,
            ticket,
        } => return read(export, offset, len, ticket, replies),
        Request::BlockStatus {
            offset,
            len,
            one,
            ticket,
        } => return block_status(export, offset, len, one, ticket, replies),
        Request::Write {
            offset,
            fua,
            ticket,
            ..
        } => (ticket, export.write(offset, payload, fua), false),
        Request::Flush { ticket } if Mutation::EarlyFlush.is_made() => (ticket, Ok(()), false),
        Request::Flush { ticket } => (ticket, export.flush(), false),
        Request::Trim {
            offset,
            len,
            fua,
            ticket,
        } => (ticket, export.trim(offset, len, fua), false),
        Request::Cache {
            offset,
            len,
            ticket,
        } => (ticket, export.cache(offset, len), false),
        Request::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
            fast,
            ticket,
        } => {
            let mode = ZeroMode { no_hole, fast, fua };
            (ticket, export.write_zeroes(offset, len, mode), fast)
        }
    };
    let sent = result.map_err(|failure| reportable(failure, fast));
    replies.push(match &sent {
        Ok(()) => ticket.done(),
        Err(failure) => fail(ticket, failure),
    });
    sent
}

/// Carries out a read if the export can do that without waiting. Returns the request where it
/// cannot, or where the request is another one.
pub(super) fn execute_now(
    export: &dyn Export,
    request: Request,
    replies: &mut Replies,
) -> Result<Result<(), Failure>, Request> {
    let Request::Read { offset, len, .. } = request else {
        return Err(request);
    };
    // Holes are not known without a call to the disk.
    if export.finds_zeroes() || check_blocks(export.block_sizes().minimum(), &request).is_err() {
        return Err(request);
    }
    let len = usize::try_from(len).expect("a read fits into memory");
    let done = match replies.stage(len) {
        Ok(space) => export.read_now(offset, space),
        Err(failure) => Some(Err(failure)),
    };
    let done = done.map(|done| done.map(|()| Content::Data));
    let Some(done) = done else {
        replies.unstage();
        return Err(request);
    };
    match request {
        Request::Read { ticket, .. } => Ok(answer_read(len, done, ticket, replies)),
        other => Err(other),
    }
}

/// Whether the export knows of zeroes for less than it costs to read them.
pub(super) fn may_know_zeroes(export: &dyn Export) -> bool {
    export.finds_zeroes() || !export.may_block()
}

/// Answers a read of nothing but zeroes that the export knows of, which takes no memory. Gives any
/// other request back.
pub(super) fn execute_zeroes(
    export: &dyn Export,
    request: Request,
    replies: &mut Replies,
) -> Result<(), Request> {
    let is_sound = check_blocks(export.block_sizes().minimum(), &request).is_ok();
    match request {
        Request::Read {
            offset,
            len,
            ticket,
        } if is_sound && is_all_zero(export, offset, len) => {
            answer_zeroes(len, ticket, replies);
            Ok(())
        }
        request => Err(request),
    }
}

/// Whether the export knows without much ado that all of this is zero.
fn is_all_zero(export: &dyn Export, mut offset: u64, len: u32) -> bool {
    let mut rest = u64::from(len);
    for _ in 0..MAX_PIECES {
        match export.quick_allocation(offset, rest) {
            Ok(found) if is_zero(found) && (1..=rest).contains(&found.len) => {
                offset += found.len;
                rest -= found.len;
            }
            _ => return false,
        }
        if rest == 0 {
            return true;
        }
    }
    false
}

/// Answers a read of `len` zeroes.
fn answer_zeroes(len: u32, ticket: ReadTicket, replies: &mut Replies) {
    match ticket.into_sparse().map(|sparse| sparse.hole(len)) {
        Ok(Part::Last(reply)) => replies.push(reply),
        Ok(Part::More { .. }) => unreachable!("the hole is as long as the read"),
        Err(ticket) => {
            let len = usize::try_from(len).expect("a read fits into memory");
            let (header, receipt) = ticket.header();
            replies.commit_zeroes(header.as_bytes(), len, Some(receipt));
        }
    }
}

/// Keeps the promise to back ends that they see whole blocks only.
pub(super) fn check_blocks(minimum: u32, request: &Request) -> Result<(), Failure> {
    let (offset, len) = match request {
        Request::Read { offset, len, .. } | Request::Write { offset, len, .. } => {
            (*offset, u64::from(*len))
        }
        Request::Trim { offset, len, .. }
        | Request::Cache { offset, len, .. }
        | Request::WriteZeroes { offset, len, .. }
        | Request::BlockStatus { offset, len, .. } => (*offset, *len),
        Request::Flush { .. } => return Ok(()),
    };
    if (offset | len) & u64::from(minimum - 1) == 0 {
        return Ok(());
    }
    Err(Failure {
        message: format!("the export has blocks of {minimum} bytes").into(),
        ..Errno::Inval.into()
    })
}

pub(super) fn words(failure: &Failure) -> String {
    failure.message.as_str().to_owned()
}

pub(super) fn fail(ticket: Ticket, failure: &Failure) -> Reply<Bytes> {
    let words = words(failure);
    match failure.offset {
        Some(offset) => ticket.fail_at(failure.errno, offset, words),
        None => ticket.fail(failure.errno, words),
    }
}

#[inline]
fn read(
    export: &dyn Export,
    offset: u64,
    len: u32,
    ticket: ReadTicket,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let ticket = if export.finds_zeroes() {
        match ticket.into_sparse() {
            Ok(sparse) => return read_sparse(export, sparse, replies),
            Err(ticket) => ticket,
        }
    } else {
        ticket
    };
    if len > SHORT && may_know_zeroes(export) && is_all_zero(export, offset, len) {
        answer_zeroes(len, ticket, replies);
        return Ok(());
    }
    let len = usize::try_from(len).expect("a read fits into memory");
    let done = match replies.stage(len) {
        Ok(space) => export.read_unless_zero(offset, space),
        Err(failure) => Err(failure),
    };
    answer_read(len, done, ticket, replies)
}

/// Answers a read of `len` bytes, for which there is staged space.
#[inline]
fn answer_read(
    len: usize,
    done: Result<Content, Failure>,
    ticket: ReadTicket,
    replies: &mut Replies,
) -> Result<(), Failure> {
    match done {
        Ok(Content::Data) => {
            let (header, receipt) = ticket.header();
            replies.commit(header.as_bytes(), len, Some(receipt));
        }
        Ok(Content::Zeroes) => {
            let (header, receipt) = ticket.header();
            replies.commit_zeroes(header.as_bytes(), len, Some(receipt));
        }
        Err(failure) => return Err(fail_read(failure, ticket, replies)),
    }
    Ok(())
}

#[cold]
fn fail_read(failure: Failure, ticket: ReadTicket, replies: &mut Replies) -> Failure {
    replies.unstage();
    let failure = reportable(failure, false);
    let words = words(&failure);
    replies.push(match failure.offset {
        Some(offset) => ticket.fail_at(failure.errno, offset, words),
        None => ticket.fail(failure.errno, words),
    });
    failure
}

/// Reads the data, and reports the holes.
fn read_sparse(
    export: &dyn Export,
    mut sparse: SparseRead,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let mut pieces = Pieces::new(export, sparse.offset(), sparse.missing());
    loop {
        let piece = pieces.next();
        let len = usize::try_from(piece.len).expect("a read fits into memory");
        sparse = if is_zero(piece) {
            let len = u32::try_from(piece.len).expect("a read has at most 32 bits");
            match sparse.hole(len) {
                Part::More { frame, rest } => {
                    replies.push_frame(frame);
                    rest
                }
                Part::Last(reply) => {
                    replies.push(reply);
                    return Ok(());
                }
            }
        } else {
            let space = replies.stage(len);
            if let Err(failure) = space.and_then(|space| export.read(sparse.offset(), space)) {
                let failure = reportable(failure, false);
                replies.push(fail_sparse(sparse, &failure));
                return Err(failure);
            }
            match sparse.data(Staged(len)) {
                Part::More { frame, rest } => {
                    let (header, _) = frame.into_parts();
                    replies.commit(header.as_bytes(), len, None);
                    rest
                }
                Part::Last(Reply { frame, receipt }) => {
                    let (header, _) = frame.into_parts();
                    replies.commit(header.as_bytes(), len, Some(receipt));
                    return Ok(());
                }
            }
        };
    }
}

/// Divides a read into holes and data, each of which is worth a message.
pub(crate) struct Pieces<'a> {
    export: &'a dyn Export,
    at: u64,
    rest: u64,
    /// The rest of the last answer, which is about the next bytes.
    known: Option<Extent>,
    questions: usize,
}

impl<'a> Pieces<'a> {
    pub(crate) const fn new(export: &'a dyn Export, at: u64, len: u64) -> Self {
        Self {
            export,
            at,
            rest: len,
            known: None,
            questions: 0,
        }
    }

    /// The next piece; there has to be one.
    pub(crate) fn next(&mut self) -> Extent {
        let mut piece = match self.known.take() {
            Some(known) => known,
            None => self.ask(self.at, self.rest),
        };
        while !is_zero(piece) && piece.len < self.rest {
            let next = self.ask(self.at + piece.len, self.rest - piece.len);
            if is_zero(next) {
                self.known = Some(next);
                break;
            }
            piece.len += next.len;
        }
        self.at += piece.len;
        self.rest -= piece.len;
        piece
    }

    /// The status of the bytes from `at` on. Where the export fails to say, where a hole is too
    /// short, and after too many questions, they are data.
    fn ask(&mut self, at: u64, len: u64) -> Extent {
        let data = |len| Extent { len, status: 0 };
        if self.questions == MAX_PIECES || self.questions > 0 && len < WORTHWHILE_HOLE {
            return data(len);
        }
        self.questions += 1;
        match self.export.quick_allocation(at, len) {
            Ok(sent) if sent.len == 0 || sent.len > len => data(len),
            Ok(sent) if sent.len < len.min(WORTHWHILE_HOLE) => data(sent.len),
            Ok(sent) => sent,
            Err(_) => data(len),
        }
    }
}

fn fail_sparse(sparse: SparseRead, failure: &Failure) -> Reply<Bytes> {
    let words = words(failure);
    match failure.offset {
        Some(offset) => sparse.fail_at(failure.errno, offset, words),
        None => sparse.fail(failure.errno, words),
    }
}

fn is_zero(extent: Extent) -> bool {
    Allocation::new(extent.status).is_zero()
}

/// Data that is there already, and of which only the length is needed.
pub(super) struct Staged(pub(super) usize);

impl Buf for Staged {
    fn remaining(&self) -> usize {
        self.0
    }

    fn chunk(&self) -> &[u8] {
        &[]
    }

    fn advance(&mut self, n: usize) {
        self.0 -= n;
    }
}

fn block_status(
    export: &dyn Export,
    offset: u64,
    len: u64,
    one: bool,
    mut ticket: StatusTicket,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let most = if one { 1 } else { MAX_EXTENTS };
    loop {
        let mut extents = std::mem::take(&mut replies.extents);
        extents.clear();
        let asked = export.block_status(ticket.context().name(), offset, len, &mut |extent| {
            let full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.status == extent.status || Mutation::MergedStatus.is_made() => {
                    last.len = last.len.saturating_add(extent.len);
                }
                // The last one is complete when another one follows.
                _ if full => return ControlFlow::Break(()),
                _ => extents.push(extent),
            }
            ControlFlow::Continue(())
        });
        let sent = asked.map_err(|failure| reportable(failure, false));
        let part = match &sent {
            Ok(()) => ticket.extents(extents.iter().copied()),
            Err(failure) => Part::Last(ticket.fail(failure.errno, words(failure))),
        };
        replies.extents = extents;
        replies.forget_extents();
        match part {
            Part::More { frame, rest } => {
                replies.push_frame(frame);
                ticket = rest;
            }
            Part::Last(reply) => {
                replies.push(reply);
                return sent;
            }
        }
    }
}
