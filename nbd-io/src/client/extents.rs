//! Extents of a range of any length, put together from as many replies as it takes.

use nbd_proto::{client::ContextExtents, meta::Extent};

/// Walks a range of the export, context by context the same.
///
/// A server may answer for less than was asked, differently for each context, and may cut extents
/// where nothing changes. The walk asks again from where the shortest answer ended, merges equal
/// neighbours and ends exactly where the range does.
#[derive(Clone, Debug)]
pub struct ExtentWalk {
    next: u64,
    end: u64,
    max: u64,
    block: u64,
}

impl ExtentWalk {
    /// Walks `len` bytes from `offset` with requests of at most `max` bytes, all of which are
    /// multiples of `block`, the minimum block size.
    #[must_use]
    pub fn new(offset: u64, len: u64, max: u64, block: u64) -> Self {
        Self {
            next: offset,
            end: offset.saturating_add(len),
            max: max.max(1),
            block: block.max(1),
        }
    }

    /// The offset and length to ask for next; `None` at the end.
    #[must_use]
    pub fn request(&self) -> Option<(u64, u64)> {
        let left = self.end - self.next;
        (left > 0).then(|| (self.next, left.min(self.max)))
    }

    /// Takes the answer to [`request`](ExtentWalk::request) and cuts it to what all its contexts
    /// cover in whole blocks and the range has, with equal neighbours merged. Returns how many
    /// bytes that is: 0 if the answer has no context or not even one block, after which the walk
    /// has ended.
    pub fn take(&mut self, contexts: &mut [ContextExtents]) -> u64 {
        let shortest = contexts.iter().map(|context| total(&context.extents)).min();
        let covered = shortest.unwrap_or(0).min(self.end - self.next);
        // What follows can only be asked for from the start of a block on.
        let covered = covered - covered % self.block;
        for context in contexts {
            cut_and_merge(&mut context.extents, covered);
        }
        self.next += covered;
        if covered == 0 {
            self.end = self.next;
        }
        covered
    }
}

fn total(extents: &[Extent]) -> u64 {
    extents
        .iter()
        .fold(0, |sum, extent| sum.saturating_add(extent.len))
}

fn cut_and_merge(extents: &mut Vec<Extent>, mut left: u64) {
    for extent in extents.iter_mut() {
        extent.len = extent.len.min(left);
        left -= extent.len;
    }
    extents.retain(|extent| extent.len > 0);
    extents.dedup_by(|extent, before| {
        let same = extent.status == before.status;
        if same {
            before.len += extent.len;
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(id: u32, extents: &[(u64, u64)]) -> ContextExtents {
        let extents = extents.iter().map(|(len, status)| Extent {
            len: *len,
            status: *status,
        });
        ContextExtents {
            id,
            extents: extents.collect(),
        }
    }

    #[test]
    fn a_walk_goes_as_far_as_its_shortest_context_and_merges() {
        // C-247, C-248, C-249
        let mut walk = ExtentWalk::new(1024, 4096, 1 << 32, 512);
        assert_eq!(walk.request(), Some((1024, 4096)));
        let mut answer = [
            context(1, &[(512, 0), (512, 0), (512, 3)]),
            context(2, &[(8192, 1)]),
        ];
        assert_eq!(walk.take(&mut answer), 1536);
        assert_eq!(
            answer,
            [context(1, &[(1024, 0), (512, 3)]), context(2, &[(1536, 1)])]
        );
        assert_eq!(walk.request(), Some((2560, 2560)));
    }

    #[test]
    fn a_walk_never_leaves_its_range() {
        // C-246
        let mut walk = ExtentWalk::new(0, 1000, 600, 1);
        assert_eq!(walk.request(), Some((0, 600)));
        let mut answer = [context(1, &[(u64::MAX, 0), (u64::MAX, 1)])];
        assert_eq!(walk.take(&mut answer), 1000);
        assert_eq!(answer, [context(1, &[(1000, 0)])]);
        assert_eq!(walk.request(), None);
    }

    #[test]
    fn a_walk_goes_on_at_the_start_of_a_block() {
        // C-250
        let mut walk = ExtentWalk::new(0, 12_288, 1 << 32, 4096);
        let mut answer = [context(1, &[(4608, 0), (1024, 1)])];
        assert_eq!(walk.take(&mut answer), 4096);
        assert_eq!(answer, [context(1, &[(4096, 0)])]);
        assert_eq!(walk.request(), Some((4096, 8192)));
        assert_eq!(walk.take(&mut [context(1, &[(512, 0)])]), 0);
        assert_eq!(walk.request(), None);
    }

    #[test]
    fn an_answer_without_contexts_ends_a_walk() {
        let mut walk = ExtentWalk::new(0, 1000, 600, 1);
        assert_eq!(walk.take(&mut []), 0);
        assert_eq!(walk.request(), None);
    }
}
