//! Offsets and kinds of the requests of a connection.

use super::{Op, Pattern, Workload};

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Offsets {
    blocks: u64,
    next: u64,
    seed: u64,
    workload: Workload,
    /// Number of requests that are left; `None` if time ends them.
    left: Option<u64>,
}

/// A request to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its offset in bytes.
    pub offset: u64,
    /// Whether it is a write.
    pub writes: bool,
}

impl Offsets {
    /// For one of several connections to an export of `size` bytes.
    pub(crate) fn new(workload: &Workload, size: u64, index: u32) -> Self {
        let span = workload.span.map_or(size, |span| span.min(size));
        let blocks = (span / workload.block_size.max(1)).max(1);
        let part = blocks / u64::from(workload.connections.max(1));
        let seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(index) + 1);
        Self {
            blocks,
            next: part * u64::from(index) % blocks,
            seed,
            workload: *workload,
            left: workload.share(),
        }
    }

    /// A random number, by xorshift.
    #[inline(always)]
    const fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// Ends them.
    pub(crate) const fn end(&mut self) {
        self.left = Some(0);
    }

    /// The next one; `None` when all were made.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<Next> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        let writes = match self.workload.op {
            Op::Write => true,
            Op::Read => false,
            Op::Mix { reads } => self.random() % 100 >= u64::from(reads),
        };
        let block = match self.workload.pattern {
            // A division would take longer than all the rest.
            Pattern::Random => {
                let scaled = u128::from(self.random()) * u128::from(self.blocks);
                u64::try_from(scaled >> 64).unwrap_or(0)
            }
            Pattern::Sequential => {
                let block = self.next;
                self.next += 1;
                if self.next == self.blocks {
                    self.next = 0;
                }
                block
            }
        };
        Some(Next {
            offset: block * self.workload.block_size,
            writes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limit;

    fn workload(op: Op, pattern: Pattern) -> Workload {
        Workload {
            op,
            pattern,
            block_size: 512,
            depth: 1,
            connections: 2,
            span: None,
            limit: Limit::Requests(2000),
        }
    }

    #[test]
    fn requests_are_within_the_disk_and_as_many_as_asked_for() {
        for pattern in [Pattern::Random, Pattern::Sequential] {
            let mut offsets = Offsets::new(&workload(Op::Read, pattern), 100 * 512 + 511, 1);
            let made: Vec<Next> = std::iter::from_fn(|| offsets.next()).collect();
            assert_eq!(made.len(), 1000);
            assert!(
                made.iter()
                    .all(|next| next.offset < 100 * 512 && next.offset % 512 == 0)
            );
        }
    }

    #[test]
    fn a_mix_has_the_share_of_reads_that_was_asked_for() {
        let mut offsets = Offsets::new(
            &workload(Op::Mix { reads: 70 }, Pattern::Random),
            1 << 20,
            0,
        );
        let writes = std::iter::from_fn(|| offsets.next())
            .filter(|next| next.writes)
            .count();
        assert!((240..360).contains(&writes), "{writes}");
    }
}
