//! Ranges of any length at any place, made of requests that the server takes.

use super::Client;
use crate::{
    Error,
    link::{Load, header},
    overlaps::{Overlaps, Owner, Turn},
};
use nbd_io::client::{Facts, Piece, check_blocks, check_range, split};
use nbd_proto::{
    Command, CommandFlags, Errno, Header, Misuse,
    client::{Cookie, Outcome, Transmission},
};
use std::{ops::Range, time::Instant};

/// Pieces of one request that are in flight at once.
const WINDOW: usize = 8;

/// What is cut into pieces.
#[derive(Clone, Copy)]
struct Job<'a> {
    command: Command,
    offset: u64,
    len: u64,
    /// The longest that a piece may be, in bytes.
    max: u64,
    /// What a piece keeps that is not answered in time.
    turn: Option<&'a Turn<'a>>,
}

impl Client {
    pub(super) fn until_end(&self, len: usize, offset: u64) -> usize {
        let left = self.size().saturating_sub(offset);
        usize::try_from(left).map_or(len, |left| len.min(left))
    }

    pub(super) fn check_range(&self, command: Command, offset: u64, len: u64) -> Result<(), Error> {
        let Facts { export, blocks, .. } = self.facts();
        Ok(check_range(export, *blocks, command, offset, len)?)
    }

    /// Whether changes of the same bytes wait for each other: parts of a block must not be written
    /// over by others.
    pub(crate) fn has_turns(&self) -> bool {
        self.facts().blocks.minimum() > 1
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
            turn: None,
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
        let job = Job {
            command: Command::Write,
            offset,
            len: buf.len() as u64,
            max: self.facts().max_payload,
            turn,
        };
        self.pieces(job, &mut [], |piece| {
            let start = index(piece.offset - offset);
            let payload = &buf[start..start + index(piece.len)];
            let frame = move |transmission: &mut Transmission| {
                header(transmission.write(piece.offset, payload, flags))
            };
            (Load::Borrowed(payload), frame)
        })
    }

    /// A command with a range and without payload. Servers may find a range too long that others
    /// take, so it is tried again with shorter ones.
    pub(super) fn range(
        &self,
        command: Command,
        offset: u64,
        len: u64,
        frame: impl Fn(&mut Transmission, Piece) -> Result<(Cookie, Header), Misuse> + Copy,
    ) -> Result<(), Error> {
        self.check_range(command, offset, len)?;
        check_blocks(self.facts().blocks, command, offset, len)?;
        let turn = match command {
            Command::Cache => None,
            _ => self.turn(command, offset..offset + len)?,
        };
        let piece = |piece| {
            let frame = move |transmission: &mut Transmission| frame(transmission, piece);
            (Load::Nothing, frame)
        };
        let short = self.facts().max_payload;
        let max = match command {
            Command::WriteZeroes => self.facts().max_zeroes,
            _ => self.facts().max_range,
        };
        let job = Job {
            command,
            offset,
            len,
            max,
            turn: turn.as_ref(),
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

    /// Cuts a request into pieces and has several of them in flight.
    fn pieces<'a, F>(
        &self,
        job: Job<'_>,
        dest: &mut [u8],
        request: impl Fn(Piece) -> (Load<'a>, F),
    ) -> Result<(), Error>
    where
        F: FnOnce(&mut Transmission) -> Result<(Cookie, Header), Misuse>,
    {
        let preferred = u64::from(self.facts().blocks.preferred());
        let mut pieces = split(job.offset, job.len, job.max, preferred);
        let link = self.pool.link();
        let place = link.place();
        let mut result = Ok(());
        let mut in_flight = 0;
        loop {
            while in_flight < WINDOW && result.is_ok() {
                let Some(piece) = pieces.next() else { break };
                let (load, frame) = request(piece);
                let place = place.index();
                match link.submit(place, job.command, load, dest, frame) {
                    Ok(_) => in_flight += 1,
                    Err(error) => result = Err(error),
                }
            }
            if in_flight == 0 {
                drop(place);
                return result.map_err(|error| link.noticed(error));
            }
            let done = link.wait(place.index(), dest)?;
            in_flight -= 1;
            if let Err(error) = done.result {
                if let (Error::Timeout { .. }, Some(turn)) = (&error, job.turn) {
                    turn.leave_to(link, done.cookie);
                }
                result = result.and(Err(error));
            }
        }
    }

    pub(super) fn single(
        &self,
        command: Command,
        load: Load<'_>,
        dest: &mut [u8],
        frame: impl FnOnce(&mut Transmission) -> Result<(Cookie, Header), Misuse>,
    ) -> Result<Outcome, Error> {
        let link = self.pool.link();
        let place = link.place();
        link.submit(place.index(), command, load, dest, frame)?;
        let done = link.wait(place.index(), dest)?;
        drop(place);
        done.result.map_err(|error| link.noticed(error))
    }
}

/// A place in a buffer that exists.
fn index(place: u64) -> usize {
    usize::try_from(place).expect("a place in a buffer fits into memory")
}

pub(super) fn length(range: &Range<u64>) -> usize {
    index(range.end - range.start)
}
