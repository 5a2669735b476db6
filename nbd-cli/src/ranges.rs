//! Sets of bytes of a disk.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range};

/// Ranges that neither overlap nor touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<[u64; 2]>", into = "Vec<[u64; 2]>")]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&other, &until)) = self.0.range(..=end).next_back()
            && until >= start
        {
            self.0.remove(&other);
            start = start.min(other);
            end = end.max(until);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        for range in others.iter() {
            self.add(range);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// The ranges of a disk of that size that are not in it.
    pub(crate) fn rest(&self, size: u64) -> Self {
        let mut rest = Self::default();
        let mut at = 0;
        for range in self.iter() {
            rest.add(at..range.start.min(size));
            at = range.end;
        }
        rest.add(at..size);
        rest
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        let mut ranges = Self::default();
        ranges.add(range);
        ranges
    }
}

impl From<Vec<[u64; 2]>> for Ranges {
    fn from(pairs: Vec<[u64; 2]>) -> Self {
        let mut ranges = Self::default();
        for [start, end] in pairs {
            ranges.add(start..end);
        }
        ranges
    }
}

impl From<Ranges> for Vec<[u64; 2]> {
    fn from(ranges: Ranges) -> Self {
        ranges
            .iter()
            .map(|range| [range.start, range.end])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[[u64; 2]]) -> Ranges {
        pairs.to_vec().into()
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        assert_eq!(
            ranges(&[[0, 2], [4, 6], [2, 4]]),
            Ranges::from(0..6),
            "touching"
        );
        assert_eq!(ranges(&[[5, 9], [0, 6], [20, 21]]).len(), 10);
        assert_eq!(ranges(&[[3, 4], [1, 9], [6, 6]]), Ranges::from(1..9));
        assert_eq!(
            Vec::from(ranges(&[[7, 8], [1, 2]])),
            vec![[1, 2], [7, 8]],
            "apart"
        );
    }

    #[test]
    fn the_rest_is_the_missing_ranges() {
        assert_eq!(
            ranges(&[[1, 2], [5, 7]]).rest(9),
            ranges(&[[0, 1], [2, 5], [7, 9]])
        );
        assert_eq!(Ranges::default().rest(3), Ranges::from(0..3));
        assert_eq!(Ranges::from(0..3).rest(3).len(), 0);
        assert_eq!(Ranges::from(0..9).rest(3).len(), 0);
    }
}
