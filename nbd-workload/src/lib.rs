#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod blocking;
mod latencies;
mod offsets;
mod progress;
mod tasks;

pub use blocking::blocking;
pub use latencies::Latencies;
pub use offsets::Next;
pub use progress::{Measured, Progress};
pub use tasks::Loops;

use std::time::Duration;

/// The alignment of buffers, in bytes: the start of a page, as usual for blocks of disks. 16 bytes behind, where
/// large vectors often are, x86 copies at half the speed behind a TCP request's header of 28 bytes.
const PAGE: usize = 4096;

/// One thing to be measured. Its numbers are 1 at least.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The kind of the requests.
    pub op: Op,
    /// Their offsets.
    pub pattern: Pattern,
    /// The length of each in bytes, which their offsets are multiples of.
    pub block_size: u64,
    /// The number in flight on each connection.
    pub depth: u32,
    /// The number of connections. Sequential requests of each begin in a part of the disk of
    /// its own.
    pub connections: u32,
    /// The length of the part of the disk that is used, from its beginning, in bytes; `None` for all of it.
    pub span: Option<u64>,
    /// When it ends.
    pub limit: Limit,
}

/// The kind of a workload's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads only.
    Read,
    /// Writes only, which destroy the data of the disk.
    Write,
    /// Reads and writes, by chance.
    Mix {
        /// The share of reads, in percent.
        reads: u8,
    },
}

/// The offsets of a workload's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One request behind the other, and then again from the beginning.
    Sequential,
    /// Anywhere, the same in each run.
    Random,
}

/// When a workload ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After so much time. Requests that are in flight then are waited for.
    Time(Duration),
    /// After so many requests of all connections together. Each makes one at least.
    Requests(u64),
}

impl Workload {
    /// The length of a request for memory.
    fn len(&self) -> usize {
        usize::try_from(self.block_size).unwrap_or(usize::MAX)
    }

    /// The number of requests that one connection makes; `None` if time ends it.
    fn share(&self) -> Option<u64> {
        match self.limit {
            Limit::Requests(all) => Some(all.div_ceil(u64::from(self.connections.max(1)))),
            Limit::Time(_) => None,
        }
    }
}
