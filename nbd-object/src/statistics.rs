//! Counters of a disk's work.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counters of a disk since it was opened; see [`Disk::statistics`](crate::Disk::statistics).
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)+
            /// Bytes in memory that no flush has covered yet.
            pub dirty_bytes: u64,
            /// Bytes of blocks in the cache.
            pub cached_bytes: u64,
            /// The times of commits, from the beginning to the swap of the head.
            pub commit_times: Histogram,
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
            commit_times: [AtomicU64; BUCKETS],
            commit_micros: AtomicU64,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Statistics {
                Statistics {
                    $($name: self.$name.load(Relaxed),)+
                    dirty_bytes: 0,
                    cached_bytes: 0,
                    commit_times: Histogram {
                        counts: std::array::from_fn(|at| self.commit_times[at].load(Relaxed)),
                        sum: Duration::from_micros(self.commit_micros.load(Relaxed)),
                    },
                }
            }
        }
    };
}

counters! {
    /// Reads that were called.
    reads,
    /// Bytes that reads returned, zeroes included.
    bytes_read,
    /// Writes that were called.
    writes,
    /// Bytes of writes.
    bytes_written,
    /// Trims and writes of zeroes.
    trims,
    /// Flushes and writes that had to be durable.
    flushes,
    /// Blocks that reads found in the cache.
    cache_hits,
    /// Blocks that had to be got from the store for a read.
    cache_misses,
    /// Blocks that were found in the cache on the local disk.
    local_cache_hits,
    /// Blocks that were got before a read wanted them.
    read_ahead_blocks,
    /// Pages of the map that had to be got.
    page_misses,
    /// Gets of objects and of parts of them.
    gets,
    /// Bytes that gets returned.
    bytes_got,
    /// Puts of segments, pages, heads and snapshots.
    puts,
    /// Bytes of puts.
    bytes_put,
    /// Deleted objects.
    deletes,
    /// Listings.
    lists,
    /// Requests that were sent again.
    retries,
    /// Commits: swaps of the head that succeeded.
    commits,
    /// Commits that failed.
    failed_commits,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Relaxed);
    }

    pub(crate) fn commit_took(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - millis.leading_zeros()) as usize;
        Self::count(&self.commit_times[bucket.min(BUCKETS - 1)], 1);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self::count(&self.commit_micros, micros);
    }
}

const BUCKETS: usize = 18;

/// Times in classes, each twice as long as the one before: below 1 ms, 2 ms, 4 ms, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Histogram {
    /// The classes in order: the time below which those of a class are, and their number. The last
    /// class has no limit.
    pub fn iter(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        self.counts.iter().enumerate().map(|(at, count)| {
            (
                (at + 1 < BUCKETS).then(|| Duration::from_millis(1 << at)),
                *count,
            )
        })
    }

    /// The number of times in all classes.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The times of all classes together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }
}

impl Statistics {
    /// Requests to the store for each read and write, trims and flushes included.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "it is a ratio for people")]
    pub fn requests_per_operation(&self) -> f64 {
        let operations = self.reads + self.writes + self.trims + self.flushes;
        let requests = self.gets + self.puts + self.deletes + self.lists;
        requests as f64 / operations.max(1) as f64
    }
}
