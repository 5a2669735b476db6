//! The bytes of a read that have been answered.

use alloc::collections::{BTreeMap, BTreeSet};

/// Disjoint ranges of a read that are answered, and places where errors were reported.
///
/// Chunks that come in order only move `prefix`, which takes no memory.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// Everything before is answered.
    prefix: u64,
    /// Ranges behind the prefix: start to end. INVARIANT: no two touch, none touches the prefix.
    islands: BTreeMap<u64, u64>,
    /// Sum of the islands' lengths.
    in_islands: u64,
    errors: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Overlap,
    TooMany,
}

impl Coverage {
    #[inline]
    pub(super) fn clear(&mut self) {
        self.prefix = 0;
        // To clear a tree takes a while even if it is empty, which it nearly always is.
        if !self.islands.is_empty() {
            self.islands.clear();
            self.in_islands = 0;
        }
        if !self.errors.is_empty() {
            self.errors.clear();
        }
    }

    /// Takes note that `start..end`, which is not empty, is answered.
    #[inline]
    pub(super) fn insert(&mut self, start: u64, end: u64, limit: u32) -> Result<(), Refused> {
        debug_assert!(start < end);
        if start == self.prefix && self.islands.is_empty() && self.errors.is_empty() {
            self.prefix = end;
            return Ok(());
        }
        self.insert_anywhere(start, end, limit)
    }

    fn insert_anywhere(&mut self, start: u64, end: u64, limit: u32) -> Result<(), Refused> {
        if start < self.prefix || self.errors.range(start..end).next().is_some() {
            return Err(Refused::Overlap);
        }
        let before = self
            .islands
            .range(..=start)
            .next_back()
            .map(|(s, e)| (*s, *e));
        let after = self.islands.range(start..).next().map(|(s, e)| (*s, *e));
        if before.is_some_and(|(_, before_end)| before_end > start)
            || after.is_some_and(|(after_start, _)| after_start < end)
        {
            return Err(Refused::Overlap);
        }
        let (mut merged_start, mut merged_end) = (start, end);
        if let Some((s, _)) = before.filter(|(_, e)| *e == start) {
            merged_start = s;
        }
        if let Some((s, e)) = after.filter(|(s, _)| *s == end) {
            merged_end = e;
            self.islands.remove(&s);
        }
        self.in_islands += end - start;
        if merged_start == self.prefix {
            self.prefix = merged_end;
            self.in_islands -= merged_end - merged_start;
            return Ok(());
        }
        self.islands.insert(merged_start, merged_end);
        if self.islands.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(Refused::TooMany);
        }
        Ok(())
    }

    /// Takes note of an error at a place of the read.
    pub(super) fn error_at(&mut self, at: u64) {
        self.errors.insert(at);
    }

    /// Whether the first `len` bytes are answered, and came in order.
    #[inline]
    pub(super) const fn is_prefix(&self, len: u64) -> bool {
        self.prefix == len
    }

    /// Number of bytes among the first `len` that are not answered.
    #[inline]
    pub(super) const fn missing(&self, len: u64) -> u64 {
        len - self.prefix - self.in_islands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const LIMIT: u32 = 1 << 16;

    #[test]
    fn chunks_in_order_take_no_memory() {
        let mut coverage = Coverage::default();
        for at in 0..1000 {
            coverage.insert(at, at + 1, 0).unwrap();
        }
        assert_eq!(coverage.missing(1000), 0);
    }

    #[test]
    fn content_at_the_place_of_an_error_overlaps() {
        let mut coverage = Coverage::default();
        coverage.error_at(512);
        assert_eq!(coverage.insert(512, 513, LIMIT), Err(Refused::Overlap));
        assert_eq!(coverage.insert(0, 512, LIMIT), Ok(()));
    }

    #[test]
    fn nothing_is_left_of_what_was_answered_before() {
        let mut coverage = Coverage::default();
        coverage.insert(10, 20, LIMIT).unwrap();
        coverage.error_at(30);
        coverage.clear();
        assert_eq!(coverage.missing(40), 40);
        coverage.insert(10, 20, LIMIT).unwrap();
        coverage.insert(30, 40, LIMIT).unwrap();
        assert_eq!(coverage.missing(40), 20);
        coverage.insert(0, 10, LIMIT).unwrap();
        assert!(coverage.is_prefix(20) && !coverage.is_prefix(40));
        assert_eq!(coverage.missing(40), 10);
        coverage.insert(20, 30, LIMIT).unwrap();
        assert!(coverage.is_prefix(40));
        assert_eq!(coverage.missing(40), 0);
    }

    #[test]
    fn separate_ranges_are_limited() {
        // B-015, H-021
        let mut coverage = Coverage::default();
        for at in 1..=4 {
            assert_eq!(coverage.insert(2 * at, 2 * at + 1, 4), Ok(()));
        }
        assert_eq!(coverage.insert(100, 101, 4), Err(Refused::TooMany));
    }

    proptest! {
        #[test]
        fn agrees_with_a_table_of_bytes(
            ranges in prop::collection::vec((0_u64..64, 1_u64..16), 0..40)
        ) {
            let mut coverage = Coverage::default();
            let mut table = [false; 80];
            for (start, len) in ranges {
                let end = start + len;
                let taken: Vec<usize> = (start..end).map(|at| usize::try_from(at).unwrap()).collect();
                let free = taken.iter().all(|at| !table[*at]);
                prop_assert_eq!(coverage.insert(start, end, LIMIT).is_ok(), free);
                if free {
                    for at in taken {
                        table[at] = true;
                    }
                }
                let missing = table.iter().filter(|answered| !**answered).count();
                prop_assert_eq!(coverage.missing(80), missing as u64);
            }
        }
    }
}
