//! Extents of a range, to its end.

use crate::{Client, Error};
use nbd_io::client::{ExtentStep, StatusRun, StatusRuns};
use nbd_proto::CommandFlags;
use std::{ops::Range, time::Instant};

/// The extents of a range, as an iterator that asks the server as often as it takes.
///
/// The items are runs on which no context changes, in order and without gaps. They are inside
/// the range. An error ends the iteration.
///
/// Neighbours that say the same are merged, as far as 64 answers of the server go and as they come
/// within a second: a server may answer for very little each time, and an item must not take for
/// ever. The last answer takes as long as a request may.
///
/// Spec: [Metadata querying](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying).
#[derive(Debug)]
pub struct Extents {
    client: Client,
    runs: StatusRuns,
}

impl Extents {
    pub(crate) fn new(client: Client, range: Range<u64>) -> Self {
        Self {
            runs: StatusRuns::new(client.negotiated(), range),
            client,
        }
    }
}

impl Iterator for Extents {
    type Item = Result<StatusRun, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut begin = None;
        loop {
            let (offset, len) = match self.runs.step() {
                ExtentStep::Item(item) => return Some(item),
                ExtentStep::Ask { offset, len } => (offset, len),
                ExtentStep::Over => return None,
            };
            let begin = *begin.get_or_insert_with(Instant::now);
            let answer = self.client.block_status(offset, len, CommandFlags::NONE);
            self.runs.take(answer, self.client.negotiated());
            if begin.elapsed() >= StatusRuns::MERGE_TIME {
                self.runs.end_merge();
            }
        }
    }
}
