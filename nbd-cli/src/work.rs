//! The rest of the work on a disk, which threads share.

use crate::{outcome::Result, ranges::Ranges};
use futures_util::{Stream, stream};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// The most that a thread takes at once. Extents are asked for as much, too.
const LONGEST: u64 = 128 << 20;

/// The same on large disks, where one stretch after the other holds nothing to do.
const LONGEST_EMPTY: u64 = 1 << 30;

/// Stretches begin at multiples of this, so that requests are aligned.
const UNIT: u64 = 1 << 20;

/// The ranges that are left, in order.
#[derive(Debug)]
pub(crate) struct Work {
    left: Mutex<Vec<Range<u64>>>,
    stretch: u64,
    empty_stretch: u64,
    stop: watch::Sender<bool>,
}

impl Work {
    /// Shares these ranges between so many threads.
    pub(crate) fn new(ranges: &Ranges, threads: usize) -> Self {
        let shares = 4 * threads.max(1) as u64;
        let stretch = (ranges.len() / shares)
            .next_multiple_of(UNIT)
            .clamp(UNIT, LONGEST);
        // Should there be data in it after all, it is little of the disk.
        let empty_stretch = (ranges.len() / (16 * shares)).clamp(stretch, LONGEST_EMPTY);
        let mut left: Vec<_> = ranges.iter().collect();
        left.reverse();
        Self {
            left: Mutex::new(left),
            stretch,
            empty_stretch,
            stop: watch::Sender::new(false),
        }
    }

    /// Has threads finish the work that they have begun.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits until work is to stop.
    pub(crate) async fn stopped(&self) {
        // The sender is here.
        let _ = self.stop.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Takes the next stretch, of about this length.
    fn next(&self, len: u64) -> Option<Range<u64>> {
        let mut left = self.left();
        let range = left.last_mut()?;
        let start = range.start;
        let end = range.end.min((start + len) / UNIT * UNIT);
        let end = if end > start { end } else { range.end };
        range.start = end;
        if range.is_empty() {
            left.pop();
        }
        Some(start..end)
    }

    // Complete after every statement.
    fn left(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work of one thread: the pieces of its stretches, which `plan` makes of them. It ends
    /// early when work is to stop.
    pub(crate) fn pieces<'a, P: 'a>(
        &'a self,
        plan: impl AsyncFn(Range<u64>) -> Result<Vec<P>> + 'a,
    ) -> impl Stream<Item = Result<P>> + 'a {
        let begin = (VecDeque::new(), self.stretch, plan);
        stream::try_unfold(begin, move |(mut pieces, mut len, plan)| async move {
            loop {
                if self.is_stopped() {
                    return Ok(None);
                }
                if let Some(piece) = pieces.pop_front() {
                    return Ok(Some((piece, (pieces, len, plan))));
                }
                let Some(stretch) = self.next(len) else {
                    return Ok(None);
                };
                pieces = plan(stretch).await?.into();
                len = if pieces.is_empty() {
                    self.empty_stretch.min(2 * len)
                } else {
                    self.stretch
                };
            }
        })
    }
}

/// Cuts a range at multiples of `len`.
pub(crate) fn cut(range: Range<u64>, len: u64) -> impl Iterator<Item = Range<u64>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        (start < end).then(|| {
            let begin = start;
            start = end.min((begin / len + 1) * len);
            begin..start
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;
    use futures_util::TryStreamExt;
    use std::cell::RefCell;

    #[test]
    fn stretches_are_all_of_the_work_in_order() {
        let ranges = Ranges::from(vec![[5, 10], [UNIT - 1, 9 * UNIT + 3]]);
        let work = Work::new(&ranges, 1);
        let stretches: Vec<_> = std::iter::from_fn(|| work.next(UNIT)).collect();
        assert_eq!(stretches.first(), Some(&(5..10)));
        assert!(stretches.is_sorted_by(|a, b| a.end <= b.start));
        assert!(
            stretches[1..]
                .iter()
                .all(|s| s.end % UNIT == 0 || s.end == 9 * UNIT + 3)
        );
        let total: u64 = stretches.iter().map(|range| range.end - range.start).sum();
        assert_eq!(total, ranges.len());
        assert!(stretches.len() > 3);
    }

    #[test]
    fn few_questions_are_asked_of_a_large_disk_with_little_data() {
        const DATA: u64 = 700 << 30;
        let planned = RefCell::new(Vec::new());
        let work = Work::new(&Ranges::from(0..1 << 40), 2);
        let pieces = work.pieces(async |stretch| {
            planned.borrow_mut().push(stretch.clone());
            Ok(Vec::from_iter(stretch.contains(&DATA).then_some(stretch)))
        });
        let pieces: Vec<_> = runtime::block_on(pieces.try_collect()).unwrap();
        assert_eq!(pieces.len(), 1);
        let planned = planned.into_inner();
        assert!(planned.len() < 1100, "{}", planned.len());
        assert!(planned.is_sorted_by(|a, b| a.end == b.start));
        let after = planned.iter().find(|range| range.start > DATA).unwrap();
        assert_eq!(after.end - after.start, LONGEST);
    }

    #[test]
    fn ranges_are_cut_at_multiples() {
        let cut: Vec<_> = cut(3..21, 8).collect();
        assert_eq!(cut, [3..8, 8..16, 16..21]);
    }
}
