//! Extents of a range, to its end.

use crate::{Client, Error};
use nbd_io::client::{Stretch, Stretches};
use nbd_proto::CommandFlags;
use std::{ops::Range, time::Instant};

/// What the selected meta contexts say of a range, as an iterator that asks the server as often as
/// it takes.
///
/// The items are stretches on which no context changes, in order and without gaps. They are inside
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
    stretches: Stretches,
}

impl Extents {
    pub(crate) fn new(client: Client, range: Range<u64>, max: u64, block: u64) -> Self {
        Self {
            client,
            stretches: Stretches::new(range, max, block),
        }
    }

    fn ask(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        let contexts = self.client.block_status(offset, len, CommandFlags::NONE)?;
        self.stretches.take(contexts, self.client.contexts())
    }
}

impl Iterator for Extents {
    type Item = Result<Stretch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut begin = None;
        loop {
            if let Some(stretch) = self.stretches.pop() {
                return Some(Ok(stretch));
            }
            let Some((offset, len)) = self.stretches.request() else {
                return self.stretches.pop().map(Ok);
            };
            let asked = Instant::now();
            if let Err(error) = self.ask(offset, len) {
                self.stretches.give_up();
                return Some(Err(error));
            }
            if begin.get_or_insert(asked).elapsed() >= Stretches::MERGE_TIME {
                self.stretches.end_merge();
            }
        }
    }
}
