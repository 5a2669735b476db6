//! Extents of a range, to its end.

use crate::{Client, Error};
use nbd_io::client::ExtentWalk;
use nbd_proto::{Command, CommandFlags, Errno, Failure, client::ContextExtents, meta::Extent};
use std::{collections::VecDeque, ops::Range};

/// What the selected meta contexts say of a range, as an iterator that asks the server as often as
/// it takes.
///
/// The items are stretches on which no context changes, in order and without gaps. They are inside
/// the range, and no two neighbours say the same. An error ends the iteration.
#[derive(Debug)]
pub struct Extents {
    client: Client,
    walk: ExtentWalk,
    next: u64,
    range: Range<u64>,
    ready: VecDeque<Stretch>,
    /// The last stretch of an answer, which the next answer may prolong.
    last: Option<Stretch>,
    over: bool,
}

/// A stretch of an export on which no meta context changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What each context says, in the order of [`Client::contexts`] less the hidden ones.
    pub status: Vec<u64>,
}

impl Extents {
    pub(crate) fn new(client: Client, range: Range<u64>, max: u64, block: u64) -> Self {
        // Only whole blocks can be asked for; what is outside the range is cut off again.
        let start = range.start - range.start % block;
        let end = range
            .end
            .checked_next_multiple_of(block)
            .unwrap_or(range.end);
        let walk = ExtentWalk::new(start, end.saturating_sub(start), max, block);
        Self {
            client,
            walk,
            next: start,
            range,
            ready: VecDeque::new(),
            last: None,
            over: false,
        }
    }

    fn ask(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        let mut contexts = self.client.block_status(offset, len, CommandFlags::NONE)?;
        let order = self.client.contexts();
        contexts.sort_by_key(|context| order.iter().position(|known| known.id == context.id));
        let covered = self.walk.take(&mut contexts);
        if covered == 0 && !contexts.is_empty() {
            return Err(Error::Failed {
                command: Command::BlockStatus,
                source: Failure {
                    errno: Errno::Inval,
                    message: "the extents end inside of the first block"
                        .to_owned()
                        .into(),
                    offset: None,
                },
            });
        }
        let mut lists: Vec<_> = contexts
            .iter()
            .map(|ContextExtents { extents, .. }| extents.iter().copied())
            .collect();
        let mut current: Vec<Extent> = lists.iter_mut().filter_map(Iterator::next).collect();
        let end = self.next + covered;
        while self.next < end {
            let shortest = current
                .iter()
                .map(|extent| extent.len)
                .min()
                .unwrap_or(end - self.next);
            self.push(Stretch {
                offset: self.next,
                len: shortest,
                status: current.iter().map(|extent| extent.status).collect(),
            });
            self.next += shortest;
            for (extent, rest) in current.iter_mut().zip(&mut lists) {
                extent.len -= shortest;
                if extent.len == 0
                    && let Some(next) = rest.next()
                {
                    *extent = next;
                }
            }
        }
        Ok(())
    }

    /// Merges a stretch with the one before, or makes that one ready.
    fn push(&mut self, mut stretch: Stretch) {
        let start = stretch.offset.max(self.range.start);
        let end = (stretch.offset + stretch.len).min(self.range.end);
        if start >= end {
            return;
        }
        stretch.offset = start;
        stretch.len = end - start;
        match &mut self.last {
            Some(last) if last.status == stretch.status => last.len += stretch.len,
            last => self.ready.extend(last.replace(stretch)),
        }
    }
}

impl Iterator for Extents {
    type Item = Result<Stretch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(stretch) = self.ready.pop_front() {
                return Some(Ok(stretch));
            }
            if self.over {
                return None;
            }
            let Some((offset, len)) = self.walk.request() else {
                self.over = true;
                return self.last.take().map(Ok);
            };
            if let Err(error) = self.ask(offset, len) {
                self.over = true;
                return Some(Err(error));
            }
        }
    }
}
