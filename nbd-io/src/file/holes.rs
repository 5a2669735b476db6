//! Knowledge of the places without holes in a file.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Data that is remembered at most, in ranges. A file with more holes than that is searched again
/// where the shortest ranges were.
const MOST: usize = 256;

/// Remembers ranges without holes, so that no part of a file is searched twice.
///
/// Only data is remembered, which is safe to report for any bytes. Holes are not, since another
/// process may fill them.
#[derive(Debug)]
pub(super) struct Holes {
    likely: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The ranges, from their starts to their ends. They do not touch.
    data: BTreeMap<u64, u64>,
    /// Number of times that holes were made.
    made: u64,
}

impl Known {
    /// Forgets the shortest range if there is one too many.
    fn limit(&mut self) {
        if self.data.len() > MOST {
            let shortest = self.data.iter().min_by_key(|(start, end)| *end - *start);
            if let Some((&start, _)) = shortest {
                self.data.remove(&start);
            }
        }
    }
}

/// The holes that were made before a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SoFar(u64);

impl Holes {
    /// `likely` if there are holes to begin with.
    pub(super) fn new(likely: bool) -> Self {
        Self {
            likely: AtomicBool::new(likely),
            known: Mutex::default(),
        }
    }

    /// Whether it may be worth it to search.
    pub(super) fn are_likely(&self) -> bool {
        self.likely.load(Ordering::Relaxed)
    }

    /// There are some that were not made through this export.
    pub(super) fn are_there(&self) {
        self.likely.store(true, Ordering::Relaxed);
    }

    /// The end of the data at `offset`, if that is known.
    pub(super) fn data_end(&self, offset: u64) -> Option<u64> {
        let known = self.known();
        let (_, end) = known.data.range(..=offset).next_back()?;
        (offset < *end).then_some(*end)
    }

    /// To be called before a search, and given to [`found`](Self::found).
    pub(super) fn so_far(&self) -> SoFar {
        SoFar(self.known().made)
    }

    /// A search that began at `so_far` found data. Holes that were made since may be in it.
    pub(super) fn found(&self, mut data: Range<u64>, so_far: SoFar) {
        let mut known = self.known();
        if known.made != so_far.0 || data.is_empty() {
            return;
        }
        while let Some((&start, &end)) = known.data.range(..=data.end).next_back()
            && end >= data.start
        {
            known.data.remove(&start);
            data = data.start.min(start)..data.end.max(end);
        }
        known.data.insert(data.start, data.end);
        known.limit();
    }

    /// There are holes in `hole` from now on.
    pub(super) fn made(&self, hole: &Range<u64>) {
        self.likely.store(true, Ordering::Relaxed);
        let mut known = self.known();
        known.made += 1;
        while let Some((&start, &end)) = known.data.range(..hole.end).next_back()
            && end > hole.start
        {
            known.data.remove(&start);
            if end > hole.end {
                known.data.insert(hole.end, end);
            }
            if start < hole.start {
                known.data.insert(start, hole.start);
            }
        }
        known.limit();
    }

    // A poisoned lock is safe to take: the state is complete after every statement.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knowing(data: Range<u64>) -> Holes {
        let holes = Holes::new(true);
        holes.found(data, holes.so_far());
        holes
    }

    #[test]
    fn data_is_known_until_a_hole_is_made_in_it() {
        for hole in [
            0..10,
            0..11,
            95..200,
            20..30,
            80..90,
            100..200,
            10..100,
            0..200,
        ] {
            let holes = knowing(10..100);
            holes.made(&hole);
            for offset in 0..210 {
                let end = if offset < hole.start {
                    hole.start.min(100)
                } else {
                    100
                };
                let is_data = (10..100).contains(&offset) && !hole.contains(&offset);
                assert_eq!(
                    holes.data_end(offset),
                    is_data.then_some(end),
                    "{offset} after {hole:?}"
                );
            }
        }
    }

    #[test]
    fn the_result_of_a_search_that_a_hole_overtook_is_dropped() {
        let holes = Holes::new(false);
        let so_far = holes.so_far();
        holes.made(&(500..600));
        assert!(holes.are_likely());
        holes.found(0..1000, so_far);
        assert_eq!(holes.data_end(0), None);
        holes.found(0..500, holes.so_far());
        assert_eq!(holes.data_end(0), Some(500));
    }

    #[test]
    fn pieces_that_touch_become_one() {
        let holes = knowing(100..200);
        holes.found(50..100, holes.so_far());
        assert_eq!(holes.data_end(50), Some(200));
        holes.found(150..300, holes.so_far());
        assert_eq!(holes.data_end(50), Some(300));
        holes.found(400..500, holes.so_far());
        assert_eq!(
            (holes.data_end(50), holes.data_end(400)),
            (Some(300), Some(500))
        );
        holes.found(20..450, holes.so_far());
        assert_eq!((holes.data_end(20), holes.data_end(500)), (Some(500), None));
    }

    #[test]
    fn the_number_of_remembered_ranges_is_bounded() {
        let holes = knowing(0..1 << 40);
        for at in 1..3 * MOST as u64 {
            holes.made(&(at * 10..at * 10 + 1));
        }
        assert_eq!(holes.known().data.len(), MOST);
        assert_eq!(holes.data_end(1 << 39), Some(1 << 40));
    }

    #[test]
    fn long_ranges_are_remembered_for_longer_than_short_ones() {
        let holes = Holes::new(true);
        for at in 0..2 * MOST as u64 {
            let len = if at % 2 == 0 { 10 } else { 20 };
            holes.found(at * 100..at * 100 + len, holes.so_far());
        }
        assert_eq!(holes.known().data.len(), MOST);
        let is_known = |at: u64| holes.data_end(at * 100).is_some();
        assert!((0..2 * MOST as u64).all(|at| is_known(at) == (at % 2 == 1)));
        holes.made(&(0..u64::MAX));
        assert!(holes.known().data.is_empty());
    }
}
