//! Ranges of any length at any place, made of requests that the server takes.

use super::{Client, again::Job};
use crate::{
    Error,
    link::{Load, header},
    overlaps::{Overlaps, Owner, Turn},
};
use bytes::Bytes;
use nbd_io::client::{Piece, Request, check_range};
use nbd_proto::{Command, CommandFlags, Errno, client::Transmission};
use std::{ops::Range, time::Instant};

impl Client {
    pub(super) fn until_end(&self, len: usize, offset: u64) -> usize {
        let left = self.size().saturating_sub(offset);
        usize::try_from(left).map_or(len, |left| len.min(left))
    }

    pub(super) fn check_range(&self, command: Command, offset: u64, len: u64) -> Result<(), Error> {
        Ok(check_range(self.export(), command, offset, len)?)
    }

    /// Whether changes of the same bytes wait for each other: parts of a block must not be written
    /// over by others, and what is sent again could change places.
    pub(crate) fn has_turns(&self) -> bool {
        self.facts().blocks.minimum() > 1 || self.pool.restored().is_some()
    }

    pub(crate) fn overlaps(&self) -> &Overlaps {
        &self.pool.overlaps
    }

    /// The turn of a change among those of the same bytes, where they have any.
    pub(super) fn turn(
        &self,
        command: Command,
        range: Range<u64>,
    ) -> Result<Option<Turn<'_>>, Error> {
        if !self.has_turns() {
            return Ok(None);
        }
        self.turn_of(command, range, None)
    }

    pub(crate) fn turn_of(
        &self,
        command: Command,
        range: Range<u64>,
        owner: Option<Owner>,
    ) -> Result<Option<Turn<'_>>, Error> {
        if range.is_empty() {
            return Ok(None);
        }
        let after = self.pool.timeout;
        let deadline = || Instant::now().checked_add(after?);
        match self.pool.overlaps.turn(range, owner, deadline) {
            None => Err(Error::Timeout {
                command,
                after: after.unwrap_or_default(),
            }),
            turn => Ok(turn),
        }
    }

    /// Reads a part of a single block.
    pub(super) fn read_part(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        if buf.is_empty() {
            return Ok(());
        }
        let (block, start) = self.block_around(offset)?;
        buf.copy_from_slice(&block[start..start + buf.len()]);
        Ok(())
    }

    /// Writes a part of a single block.
    pub(super) fn patch(&self, buf: &[u8], offset: u64, flags: CommandFlags) -> Result<(), Error> {
        if buf.is_empty() {
            return Ok(());
        }
        let size = u64::from(self.facts().blocks.minimum());
        let at = offset - offset % size;
        // Others that change the block come before this one reads it, or after it has written.
        let turn = self.turn(Command::Write, at..at + size)?;
        let (mut block, start) = self.block_around(offset)?;
        block[start..start + buf.len()].copy_from_slice(buf);
        self.write_whole(&block, at, flags, turn.as_ref())
    }

    /// The block that a byte is in, and the byte's place in it.
    fn block_around(&self, offset: u64) -> Result<(Vec<u8>, usize), Error> {
        let size = u64::from(self.facts().blocks.minimum());
        let start = offset % size;
        let mut block = vec![0; index(size)];
        self.read_whole(&mut block, offset - start)?;
        Ok((block, index(start)))
    }

    pub(super) fn read_whole(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let job = Job {
            command: Command::Read,
            offset,
            len: buf.len() as u64,
            max: self.facts().max_payload,
            flags: CommandFlags::NONE,
            turn: None,
            kept: None,
        };
        self.pieces(job, buf, |piece| {
            let start = index(piece.offset - offset);
            let load = Load::Into(start..start + index(piece.len));
            let frame = move |transmission: &mut Transmission| {
                header(transmission.read(piece.offset, piece.len, CommandFlags::NONE))
            };
            (load, frame)
        })
    }

    pub(super) fn write_whole(
        &self,
        buf: &[u8],
        offset: u64,
        flags: CommandFlags,
        turn: Option<&Turn<'_>>,
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
            max: self.facts().max_payload,
            flags,
            turn,
            kept: Some(&kept),
        };
        self.pieces(job, &mut [], |piece| {
            let payload = payload(piece);
            let frame = move |transmission: &mut Transmission| {
                header(transmission.write(piece.offset, payload, flags))
            };
            (Load::Borrowed(payload), frame)
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
        self.check_range(command, offset, len)?;
        self.export().check_blocks(command, offset, len)?;
        let changes = command != Command::Cache;
        let turn = if changes {
            self.turn(command, offset..offset + len)?
        } else {
            None
        };
        let piece = |piece| {
            let request = request(piece);
            let frame = move |transmission: &mut Transmission| request.start(transmission);
            (Load::Nothing, frame)
        };
        let short = self.facts().max_payload;
        let max = match command {
            Command::WriteZeroes => self.facts().max_zeroes,
            _ => self.facts().max_range,
        };
        let flags = match request(Piece { offset, len }) {
            request if request.has(CommandFlags::FUA) => CommandFlags::FUA,
            _ => CommandFlags::NONE,
        };
        let job = Job {
            command,
            offset,
            len,
            max,
            flags,
            turn: turn.as_ref(),
            kept: changes.then_some(&request),
        };
        match self.pieces(job, &mut [], piece) {
            Err(Error::Failed { ref source, .. })
                if matches!(source.errno, Errno::Overflow | Errno::Inval)
                    && len > short
                    && max > short =>
            {
                self.pieces(Job { max: short, ..job }, &mut [], piece)
            }
            done => done,
        }
    }
}

/// A place in a buffer that exists.
fn index(place: u64) -> usize {
    usize::try_from(place).expect("a place in a buffer fits into memory")
}

pub(super) fn length(range: &Range<u64>) -> usize {
    index(range.end - range.start)
}
