//! The part of a workload that a connection has done.

use super::{
    Latencies, Limit, Workload,
    offsets::{Next, Offsets},
};
use std::time::Instant;

/// The requests of a connection that were made, and the one to be made next.
///
/// A loop asks for the [next](Self::next) one until there is none:
///
/// ```
/// use nbd_workload::{Limit, Op, Pattern, Progress, Workload};
///
/// let workload = Workload {
///     op: Op::Read,
///     pattern: Pattern::Sequential,
///     block_size: 512,
///     depth: 1,
///     connections: 1,
///     span: None,
///     limit: Limit::Requests(3),
/// };
/// let mut progress = Progress::new(&workload, 1 << 20, 0);
/// let (mut begun, mut offsets) = (None, Vec::new());
/// while let Some((next, now)) = progress.next(begun) {
///     begun = Some(now);
///     offsets.push(next.offset); // a request
/// }
/// assert_eq!(offsets, [0, 512, 1024]);
/// assert_eq!(progress.finish().requests, 3);
/// ```
#[derive(Debug)]
pub struct Progress {
    offsets: Offsets,
    deadline: Option<Instant>,
    pub(crate) requests: u64,
    latencies: Latencies,
    /// The time of all requests that are found done together. With many in flight they take far longer
    /// than it takes to deal with those few.
    now: Instant,
    /// Each request is done at a time of its own.
    is_exact: bool,
}

impl Progress {
    /// For one connection of several, of which the first has the index 0, to an export of `size` bytes. The
    /// workload's time begins.
    #[must_use]
    pub fn new(workload: &Workload, size: u64, index: u32) -> Self {
        let now = Instant::now();
        Self {
            offsets: Offsets::new(workload, size, index),
            deadline: match workload.limit {
                Limit::Time(time) => now.checked_add(time),
                Limit::Requests(_) => None,
            },
            requests: 0,
            latencies: Latencies::default(),
            now,
            is_exact: workload.depth == 1,
        }
    }

    /// Notes that a request is done that was begun at some time. Returns the next one, and the time when it
    /// begins; `None` if there are no more. At depth 1 each call reads the clock, at others only [`tick`](Self::tick)
    /// does.
    #[inline(always)]
    pub fn next(&mut self, begun: Option<Instant>) -> Option<(Next, Instant)> {
        if self.is_exact {
            self.tick();
        }
        if let Some(begun) = begun {
            self.done(begun);
        }
        Some((self.offsets.next()?, self.now))
    }

    /// Notes that a request is done.
    #[inline(always)]
    pub(crate) fn done(&mut self, begun: Instant) {
        self.requests += 1;
        self.latencies.add(begun, self.now);
    }

    /// Reads the clock, which says when requests are done that are noted after it.
    pub fn tick(&mut self) {
        self.now = Instant::now();
        if self.deadline.is_some_and(|deadline| self.now >= deadline) {
            self.offsets.end();
        }
    }

    /// The figures of all that is done.
    #[must_use]
    pub fn finish(self) -> Measured {
        Measured {
            requests: self.requests,
            latencies: self.latencies,
        }
    }
}

/// The figures of a connection, or of several.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The number of requests that were made.
    pub requests: u64,
    /// Their latencies.
    pub latencies: Latencies,
}

impl Measured {
    /// Adds those of another connection.
    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.latencies.merge(other.latencies);
    }
}
