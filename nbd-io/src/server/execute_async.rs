//! Carrying out one request of an asynchronous export.

use super::{
    Replies,
    execute::{
        MAX_EXTENTS, MAX_PIECES, Staged, WORTHWHILE_HOLE, check_blocks, execute, fail, words,
    },
};
use crate::{
    AnyExport, AsyncExport, Kind, Piece, ReadData, ZeroMode, errno::reportable, mutation::Mutation,
};
use bytes::Bytes;
use nbd_proto::{
    Errno, Failure, Frame,
    meta::Extent,
    server::{Part, ReadTicket, Reply, Request, SparseRead, StatusTicket},
};
use std::mem;

/// The answer to a request, before it is among the replies of its connection.
pub(crate) enum Answer {
    Read(ReadTicket, ReadData),
    /// The messages before the last one.
    Status(Vec<Frame<Bytes>>, Reply<Bytes>),
    Reply(Reply<Bytes>),
}

/// Like [`execute`], for an export of either kind. A synchronous one is called in place.
///
/// # Errors
///
/// The failure that the client was sent, if it did not succeed.
///
/// # Cancel safety
///
/// None: if the future is dropped, there is no reply to the request, which may be carried out in part.
pub async fn execute_async(
    export: &AnyExport,
    request: Request,
    payload: Bytes,
    replies: &mut Replies,
) -> Result<(), Failure> {
    match &export.0 {
        Kind::Sync(export) => execute(&**export, request, &payload, replies),
        Kind::Async(export) => {
            let (answer, result) = export.answer(request, payload).await;
            answer.send(replies);
            result
        }
    }
}

/// Carries out a request. The failure is the one that the client is sent.
pub(crate) async fn answer<E: AsyncExport>(
    export: &E,
    request: Request,
    payload: Bytes,
) -> (Answer, Result<(), Failure>) {
    if let Err(failure) = check_blocks(export.block_sizes().minimum(), &request) {
        let reply = request.fail(failure.errno, words(&failure));
        return (Answer::Reply(reply), Err(failure));
    }
    let (ticket, result, fast) = match request {
        Request::Read {
            offset,
            len,
            ticket,
        } => {
            let read = export.read(offset, in_memory(len)).await;
            return answer_read(read, len, ticket);
        }
        Request::BlockStatus {
            offset,
            len,
            one,
            ticket,
        } => return block_status(export, offset, len, one, ticket).await,
        Request::Write {
            offset,
            fua,
            ticket,
            ..
        } => (ticket, export.write(offset, payload, fua).await, false),
        Request::Flush { ticket } if Mutation::EarlyFlush.is_made() => (ticket, Ok(()), false),
        Request::Flush { ticket } => (ticket, export.flush().await, false),
        Request::Trim {
            offset,
            len,
            fua,
            ticket,
        } => (ticket, export.trim(offset, len, fua).await, false),
        Request::Cache {
            offset,
            len,
            ticket,
        } => (ticket, export.cache(offset, len).await, false),
        Request::WriteZeroes {
            offset,
            len,
            fua,
            no_hole,
            fast,
            ticket,
        } => {
            let mode = ZeroMode { no_hole, fast, fua };
            let zeroed = export.write_zeroes(offset, len, mode).await;
            (ticket, zeroed, fast)
        }
    };
    let sent = result.map_err(|failure| reportable(failure, fast));
    let reply = match &sent {
        Ok(()) => ticket.done(),
        Err(failure) => fail(ticket, failure),
    };
    (Answer::Reply(reply), sent)
}

pub(super) fn in_memory(len: u32) -> usize {
    usize::try_from(len).expect("a read fits into memory")
}

/// The answer to a read of `len` bytes.
pub(super) fn answer_read(
    read: Result<ReadData, Failure>,
    len: u32,
    ticket: ReadTicket,
) -> (Answer, Result<(), Failure>) {
    let failure = match read {
        Ok(data) if data.len() == in_memory(len) => return (Answer::Read(ticket, data), Ok(())),
        Ok(data) => Failure {
            message: format!("the export read {} bytes instead of {len}", data.len()).into(),
            ..Errno::Io.into()
        },
        Err(failure) => reportable(failure, false),
    };
    let message = words(&failure);
    let reply = match failure.offset {
        Some(offset) => ticket.fail_at(failure.errno, offset, message),
        None => ticket.fail(failure.errno, message),
    };
    (Answer::Reply(reply), Err(failure))
}

async fn block_status<E: AsyncExport>(
    export: &E,
    offset: u64,
    len: u64,
    one: bool,
    mut ticket: StatusTicket,
) -> (Answer, Result<(), Failure>) {
    let mut frames = Vec::new();
    loop {
        let asked = export.block_status(ticket.context().name(), offset, len);
        let asked = asked.await;
        let sent = asked.map_err(|failure| reportable(failure, false));
        let part = match &sent {
            Ok(extents) => ticket.extents(merged(extents, one)),
            Err(failure) => Part::Last(ticket.fail(failure.errno, words(failure))),
        };
        match part {
            Part::More { frame, rest } => {
                frames.push(frame);
                ticket = rest;
            }
            Part::Last(reply) => return (Answer::Status(frames, reply), sent.map(drop)),
        }
    }
}

/// Extents of which neighbours have another status, no more than the client is sent.
fn merged(extents: &[Extent], one: bool) -> Vec<Extent> {
    let most = if one { 1 } else { MAX_EXTENTS };
    let mut merged: Vec<Extent> = Vec::new();
    for extent in extents {
        let full = merged.len() == most;
        match merged.last_mut() {
            Some(last) if last.status == extent.status => {
                last.len = last.len.saturating_add(extent.len);
            }
            _ if full => break,
            _ => merged.push(*extent),
        }
    }
    merged
}

impl Answer {
    /// Appends it to the replies of its connection.
    pub(super) fn send(self, replies: &mut Replies) {
        match self {
            Self::Reply(reply) => replies.push(reply),
            Self::Status(frames, last) => {
                for frame in frames {
                    replies.push_frame(frame);
                }
                replies.push(last);
            }
            Self::Read(ticket, data) => send_data(ticket, data, replies),
        }
    }
}

/// Sends data as it is, and zeroes as holes if the client takes them.
fn send_data(ticket: ReadTicket, data: ReadData, replies: &mut Replies) {
    let ticket = if data.has_zeroes() {
        match ticket.into_sparse() {
            Ok(sparse) => return send_sparse(sparse, data, replies),
            Err(ticket) => ticket,
        }
    } else {
        ticket
    };
    let (header, receipt) = ticket.header();
    replies.push_pieces(header.as_bytes(), data, Some(receipt));
}

fn send_sparse(mut sparse: SparseRead, data: ReadData, replies: &mut Replies) {
    let (whole, mut holes) = (data.len(), 0);
    let mut run = ReadData::new();
    let mut pieces = data.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        let hole = match piece {
            Piece::Zeroes(len) if is_worthwhile(len, whole) && holes < MAX_PIECES => Some(len),
            Piece::Zeroes(len) => {
                run.push_zeroes(len);
                None
            }
            Piece::Data(bytes) => {
                run.push(bytes);
                None
            }
        };
        if hole.is_none() && pieces.peek().is_some() {
            continue;
        }
        if !run.is_empty() {
            let run = mem::take(&mut run);
            let (header, receipt, rest) = match sparse.data(Staged(run.len())) {
                Part::More { frame, rest } => (frame.into_parts().0, None, Some(rest)),
                Part::Last(Reply { frame, receipt }) => (frame.into_parts().0, Some(receipt), None),
            };
            replies.push_pieces(header.as_bytes(), run, receipt);
            let Some(rest) = rest else { return };
            sparse = rest;
        }
        let Some(hole) = hole else { continue };
        holes += 1;
        let hole = u32::try_from(hole).expect("a read has at most 32 bits");
        match sparse.hole(hole) {
            Part::More { frame, rest } => {
                replies.push_frame(frame);
                sparse = rest;
            }
            Part::Last(reply) => return replies.push(reply),
        }
    }
    unreachable!("the pieces are as long as the read");
}

/// Whether a run of zeroes gets a message of its own.
fn is_worthwhile(len: usize, whole: usize) -> bool {
    len == whole || len as u64 >= WORTHWHILE_HOLE
}
