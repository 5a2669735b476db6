//! Extents of a range of any length, put together from as many replies as it takes.

use super::Error;
use nbd_proto::{
    Command, Errno, Failure,
    client::{Context, ContextExtents},
    meta::Extent,
};
use std::{collections::VecDeque, ops::Range, time::Duration};

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

/// A stretch of an export on which no meta context changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What each context says, in the order in which they were selected less the hidden ones.
    pub status: Vec<u64>,
}

/// Makes [`Stretch`]es of the extents of several contexts.
///
/// They come in order and without gaps and are inside the range. Two neighbours say the same only
/// where merging them took more than [`MERGED_ANSWERS`](Stretches::MERGED_ANSWERS) or a driver
/// [ended](Stretches::end_merge) it.
#[derive(Clone, Debug)]
pub struct Stretches {
    walk: ExtentWalk,
    next: u64,
    range: Range<u64>,
    ready: VecDeque<Stretch>,
    /// The last stretch of an answer, which the next answer may prolong.
    last: Option<Stretch>,
    /// Answers since a stretch was ready.
    answers: u32,
    over: bool,
}

impl Stretches {
    /// The most answers of which one stretch is made. Without a bound, a server that answers for
    /// one byte each time could keep a program waiting for as long as it likes.
    pub const MERGED_ANSWERS: u32 = 64;

    /// How long a driver asks on for one stretch, if it knows the beginning of that.
    pub const MERGE_TIME: Duration = Duration::from_secs(1);

    /// Walks a range with requests of at most `max` bytes, all of which are multiples of `block`,
    /// the minimum block size.
    #[must_use]
    pub fn new(range: Range<u64>, max: u64, block: u64) -> Self {
        // Only whole blocks can be asked for; what is outside the range is cut off again.
        let start = range.start - range.start % block;
        let end = range
            .end
            .checked_next_multiple_of(block)
            .unwrap_or(range.end);
        Self {
            walk: ExtentWalk::new(start, end.saturating_sub(start), max, block),
            next: start,
            range,
            ready: VecDeque::new(),
            last: None,
            answers: 0,
            over: false,
        }
    }

    /// The next stretch, if it is known.
    pub fn pop(&mut self) -> Option<Stretch> {
        self.ready.pop_front()
    }

    /// Makes ready what is known, although what follows may say the same.
    pub fn end_merge(&mut self) {
        self.ready.extend(self.last.take());
        self.answers = 0;
    }

    /// Whether something is known that the next answer may prolong.
    #[must_use]
    pub const fn is_merging(&self) -> bool {
        self.last.is_some()
    }

    /// The offset and length to ask the server for when there is nothing to pop; `None` at the
    /// end.
    pub fn request(&mut self) -> Option<(u64, u64)> {
        if self.over {
            return None;
        }
        let request = self.walk.request();
        if request.is_none() {
            self.over = true;
            self.end_merge();
        }
        request
    }

    /// Ends the walk, because the server cannot be asked.
    pub fn give_up(&mut self) {
        self.over = true;
    }

    /// Takes the answer to [`request`](Stretches::request). `order` are the selected contexts.
    ///
    /// # Errors
    ///
    /// When the answer does not have a single block.
    pub fn take(
        &mut self,
        mut contexts: Vec<ContextExtents>,
        order: &[Context],
    ) -> Result<(), Error> {
        contexts.sort_by_key(|context| order.iter().position(|known| known.id == context.id));
        let covered = self.walk.take(&mut contexts);
        if covered == 0 && !contexts.is_empty() {
            self.over = true;
            return Err(Error::Failed {
                command: Command::BlockStatus,
                source: Failure {
                    errno: Errno::Inval,
                    message: "the extents end inside of the first block"
                        .to_owned()
                        .into(),
                    offset: None,
                },
            });
        }
        let mut lists: Vec<_> = contexts
            .iter()
            .map(|ContextExtents { extents, .. }| extents.iter().copied())
            .collect();
        let mut current: Vec<Extent> = lists.iter_mut().filter_map(Iterator::next).collect();
        let end = self.next + covered;
        while self.next < end {
            let shortest = current
                .iter()
                .map(|extent| extent.len)
                .min()
                .unwrap_or(end - self.next);
            self.push(Stretch {
                offset: self.next,
                len: shortest,
                status: current.iter().map(|extent| extent.status).collect(),
            });
            self.next += shortest;
            for (extent, rest) in current.iter_mut().zip(&mut lists) {
                extent.len -= shortest;
                if extent.len == 0
                    && let Some(next) = rest.next()
                {
                    *extent = next;
                }
            }
        }
        self.answers += 1;
        if !self.ready.is_empty() {
            self.answers = 0;
        } else if self.answers >= Self::MERGED_ANSWERS {
            self.end_merge();
        }
        Ok(())
    }

    /// Merges a stretch with the one before, or makes that one ready.
    fn push(&mut self, mut stretch: Stretch) {
        let start = stretch.offset.max(self.range.start);
        let end = (stretch.offset + stretch.len).min(self.range.end);
        if start >= end {
            return;
        }
        stretch.offset = start;
        stretch.len = end - start;
        match &mut self.last {
            Some(last) if last.status == stretch.status => last.len += stretch.len,
            last => self.ready.extend(last.replace(stretch)),
        }
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
