//! Ranges of any length at any place, made of requests that the server takes.

use super::{Client, retry::Job};
use crate::{
    Error,
    link::Call,
    range_guard::{RangeGuard, SharedRangeLocks},
};
use bytes::Bytes;
use nbd_io::client::{Owner, Part, Piece, Request, index, length};
use nbd_proto::{
    Command, CommandFlags,
    client::{ContextExtents, Outcome},
};
use std::{ops::Range, sync::Arc, time::Instant};

impl Client {
    /// Whether changes of the same bytes wait for each other: parts of a block must not be written
    /// over by others, and replayed writes could change places.
    pub(crate) fn locks_ranges(&self) -> bool {
        self.negotiated().blocks.minimum() > 1 || self.pool.reconnecting().is_some()
    }

    pub(crate) fn overlaps(&self) -> &SharedRangeLocks {
        &self.pool.range_locks
    }

    /// The guard of a change among those of the same bytes, where they have any.
    pub(super) fn lock_range(
        &self,
        command: Command,
        range: Range<u64>,
    ) -> Result<Option<RangeGuard>, Error> {
        if !self.locks_ranges() {
            return Ok(None);
        }
        self.guard_of(command, range, None)
    }

    pub(crate) fn guard_of(
        &self,
        command: Command,
        range: Range<u64>,
        owner: Option<Owner>,
    ) -> Result<Option<RangeGuard>, Error> {
        if range.is_empty() {
            return Ok(None);
        }
        let after = self.pool.timeout;
        let deadline = || Instant::now().checked_add(after?);
        match self.pool.range_locks.lock_range(range, owner, deadline) {
            None => Err(Error::Timeout {
                command,
                after: after.unwrap_or_default(),
            }),
            guard => Ok(guard),
        }
    }

    /// The blocks that a part of a range is in.
    pub(super) fn read_blocks(&self, part: &Part) -> Result<Vec<u8>, Error> {
        let mut blocks = vec![0; length(&part.blocks)];
        self.read_whole(&mut blocks, part.blocks.start)?;
        Ok(blocks)
    }

    pub(super) fn read_whole(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let job = Job {
            command: Command::Read,
            offset,
            len: buf.len() as u64,
            max: self.negotiated().max_len(Command::Read),
            flags: CommandFlags::NONE,
            guard: None,
            kept: None,
        };
        self.pieces(job, buf, |piece| {
            let start = index(piece.offset - offset);
            Call::Read {
                offset: piece.offset,
                into: start..start + index(piece.len),
                flags: CommandFlags::NONE,
            }
        })
    }

    pub(super) fn write_whole(
        &self,
        buf: &[u8],
        offset: u64,
        flags: CommandFlags,
        guard: Option<&RangeGuard>,
    ) -> Result<(), Error> {
        let payload = |piece: Piece| {
            let start = index(piece.offset - offset);
            &buf[start..start + index(piece.len)]
        };
        let kept = |piece: Piece| Request::Write {
            offset: piece.offset,
            payload: Bytes::copy_from_slice(payload(piece)),
            flags,
        };
        let job = Job {
            command: Command::Write,
            offset,
            len: buf.len() as u64,
            max: self.negotiated().max_len(Command::Write),
            flags,
            guard,
            kept: Some(&kept),
        };
        self.pieces(job, &mut [], |piece| Call::Write {
            offset: piece.offset,
            payload: payload(piece),
            flags,
        })
    }

    /// A command with a range and without payload, in whichever form it is kept. Servers may find a
    /// range too long that others take, so it is tried again with shorter ones.
    pub(super) fn range(
        &self,
        command: Command,
        Piece { offset, len }: Piece,
        request: impl Fn(Piece) -> Request,
    ) -> Result<(), Error> {
        self.negotiated().range(command, offset, len)?;
        self.export().check_blocks(command, offset, len)?;
        let changes = command != Command::Cache;
        let guard = if changes {
            self.lock_range(command, offset..offset + len)?
        } else {
            None
        };
        let piece = |piece| Call::Owned(request(piece));
        let flags = match request(Piece { offset, len }) {
            request if request.has(CommandFlags::FUA) => CommandFlags::FUA,
            _ => CommandFlags::NONE,
        };
        let mut job = Job {
            command,
            offset,
            len,
            max: self.negotiated().max_len(command),
            flags,
            guard: guard.as_ref(),
            kept: changes.then_some(&request),
        };
        loop {
            let Err(error) = self.pieces(job, &mut [], piece) else {
                return Ok(());
            };
            let Some(short) = self.negotiated().shorter(len, job.max, &error) else {
                return Err(error);
            };
            job.max = short;
        }
    }

    pub(super) fn status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
        ids: Option<Arc<[u32]>>,
    ) -> Result<Vec<ContextExtents>, Error> {
        let request = Request::BlockStatus {
            offset,
            len,
            flags,
            ids,
        };
        let outcome = self.single(Command::BlockStatus, &mut [], || {
            Call::Owned(request.clone())
        })?;
        Ok(match outcome {
            Outcome::Extents(extents) => extents,
            Outcome::Done | Outcome::Failed(_) => Vec::new(),
        })
    }
}
