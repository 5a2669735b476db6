//! The set of changed blocks.

use std::{collections::BTreeMap, ops::Range};

/// A set of blocks, as runs that do not touch each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    /// From the first block of each run to behind its last one.
    runs: BTreeMap<u64, u64>,
    /// Number of blocks in it.
    count: u64,
    /// Number of blocks that are about to be added.
    reserved: u64,
}

impl Changed {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|(start, end)| *start..*end)
    }

    /// Whether the first of these blocks is in it, and where among them that ends.
    pub(super) fn run(&self, blocks: &Range<u64>) -> (bool, u64) {
        let Range { start, end } = *blocks;
        let before = self.runs.range(..=start).next_back();
        if let Some((_, until)) = before.filter(|(_, until)| **until > start) {
            return (true, end.min(*until));
        }
        let next = self.runs.range(start..end).next();
        (false, next.map_or(end, |(next, _)| *next))
    }

    pub(super) fn has_all(&self, blocks: &Range<u64>) -> bool {
        self.run(blocks) == (true, blocks.end)
    }

    fn missing(&self, blocks: &Range<u64>) -> u64 {
        let mut missing = 0;
        let mut rest = blocks.clone();
        while !rest.is_empty() {
            let (is_in, end) = self.run(&rest);
            missing += if is_in { 0 } else { end - rest.start };
            rest.start = end;
        }
        missing
    }

    /// Makes sure that there may be all of these blocks in it. Returns how many of them are not, which
    /// are to be [given back](Self::unreserve).
    pub(super) fn reserve(&mut self, blocks: &Range<u64>, limit: u64) -> Option<u64> {
        let missing = self.missing(blocks);
        if missing > limit.saturating_sub(self.count + self.reserved) {
            return None;
        }
        self.reserved += missing;
        Some(missing)
    }

    pub(super) fn unreserve(&mut self, blocks: u64) {
        self.reserved -= blocks;
    }

    pub(super) fn add(&mut self, blocks: Range<u64>) {
        self.count += self.missing(&blocks);
        let Range { mut start, mut end } = blocks;
        // Those that it touches become one with it.
        while let Some((&first, &until)) = self.runs.range(..=end).next_back()
            && until >= start
        {
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(until);
        }
        self.runs.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::index;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_blocks(added in prop::collection::vec((0..60_u64, 1..9_u64), 0..20)) {
            let mut model = [false; 70];
            let mut changed = Changed::default();
            for (start, len) in added {
                let blocks = start..start + len;
                let place = index(start)..index(start + len);
                let missing = model[place.clone()].iter().filter(|is_in| !**is_in).count() as u64;
                prop_assert_eq!(changed.has_all(&blocks), missing == 0);
                let room = changed.count() + missing;
                if missing > 0 {
                    prop_assert_eq!(changed.reserve(&blocks, room - 1), None);
                }
                prop_assert_eq!(changed.reserve(&blocks, room), Some(missing));
                changed.unreserve(missing);
                changed.add(blocks);
                model[place].fill(true);
            }
            let count = model.iter().filter(|is_in| **is_in).count() as u64;
            prop_assert_eq!(changed.count(), count);
            prop_assert!(changed.iter().zip(changed.iter().skip(1)).all(|(a, b)| a.end < b.start));
            let mut rest = 0..70;
            while !rest.is_empty() {
                let (is_in, end) = changed.run(&rest);
                prop_assert!(end > rest.start);
                let run = &model[index(rest.start)..index(end)];
                prop_assert!(run.iter().all(|at| *at == is_in));
                prop_assert!(end == 70 || model[index(end)] != is_in);
                rest.start = end;
            }
        }
    }
}
