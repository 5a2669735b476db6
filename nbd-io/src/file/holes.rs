//! What is known of where a file has holes.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Remembers one range without holes, so that a file without holes is searched once, and one with
/// large pieces seldom.
///
/// What is remembered is always data, which is safe to say of everything.
#[derive(Debug)]
pub(super) struct Holes {
    likely: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    data: Range<u64>,
    /// How often holes were made.
    made: u64,
}

/// Which holes were made before a search.
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

    /// Where the data at `offset` ends, if that is known.
    pub(super) fn data_end(&self, offset: u64) -> Option<u64> {
        let known = self.known();
        known.data.contains(&offset).then_some(known.data.end)
    }

    /// To be called before a search, and given to [`found`](Self::found).
    pub(super) fn so_far(&self) -> SoFar {
        SoFar(self.known().made)
    }

    /// A search that began at `so_far` found data. Holes that were made since may be in it.
    pub(super) fn found(&self, data: Range<u64>, so_far: SoFar) {
        let mut known = self.known();
        if known.made != so_far.0 {
            return;
        }
        let touches = data.start <= known.data.end && known.data.start <= data.end;
        known.data = if touches {
            data.start.min(known.data.start)..data.end.max(known.data.end)
        } else {
            data
        };
    }

    /// There are holes in `range` from now on.
    pub(super) fn made(&self, range: &Range<u64>) {
        self.likely.store(true, Ordering::Relaxed);
        let mut known = self.known();
        known.made += 1;
        let Range { start, end } = known.data;
        let before = start..end.min(range.start);
        let after = start.max(range.end)..end;
        let len = |part: &Range<u64>| part.end.saturating_sub(part.start);
        known.data = if len(&before) < len(&after) {
            after
        } else {
            before
        };
    }

    // What it guards is complete after every statement.
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
        for (hole, known) in [
            (0..10, Some(10..100)),
            (0..11, Some(11..100)),
            (95..200, Some(10..95)),
            (20..30, Some(30..100)),
            (80..90, Some(10..80)),
            (100..200, Some(10..100)),
            (10..100, None),
            (0..200, None),
        ] {
            let holes = knowing(10..100);
            holes.made(&hole);
            for offset in 0..210 {
                let expected = known.as_ref().filter(|data| data.contains(&offset));
                assert_eq!(
                    holes.data_end(offset),
                    expected.map(|data| data.end),
                    "{offset} after {hole:?}"
                );
            }
        }
    }

    #[test]
    fn a_search_that_a_hole_overtook_tells_nothing() {
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
        assert_eq!((holes.data_end(50), holes.data_end(400)), (None, Some(500)));
    }
}
