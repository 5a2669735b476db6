//! Extents of a range of any length, put together from as many replies as it takes.

use crate::client::{Error, Negotiated};
use nbd_proto::{
    Command, ContextName, Errno, Failure,
    client::{Context, ContextExtents},
    meta::{Allocation, Extent},
};
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

/// A run of an export on which no meta context changes.
///
/// ```
/// use nbd_io::client::StatusRun;
/// use nbd_proto::{ContextName, meta::DirtyBitmap};
///
/// /// Whether a backup has to copy it.
/// fn is_to_be_copied(run: &StatusRun, bitmap: &ContextName) -> Option<bool> {
///     let dirty = DirtyBitmap::new(run.status_of(bitmap)?).is_dirty();
///     let zero = run.allocation().is_some_and(|allocation| allocation.is_zero());
///     Some(dirty && !zero)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRun {
    /// Offset of its start in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The status of each context, in the order in which they were selected less the hidden ones.
    /// Contexts that the server does not have are not among them: [`status_of`](Self::status_of)
    /// finds one by its name.
    pub status: Vec<u64>,
    /// Number of bytes behind the requested range that have the same status, by the same answer. 0
    /// for all runs that do not end with that range.
    pub beyond: u64,
    /// The contexts of `status`.
    contexts: Arc<[ContextName]>,
}

impl StatusRun {
    /// The status of a context; `None` if it was not selected.
    #[must_use]
    pub fn status_of(&self, context: &ContextName) -> Option<u64> {
        let place = self.contexts.iter().position(|name| name == context)?;
        self.status.get(place).copied()
    }

    /// The status of `base:allocation`; `None` if it was not selected.
    #[must_use]
    pub fn allocation(&self) -> Option<Allocation> {
        let status = self.status_of(&ContextName::base_allocation())?;
        Some(Allocation::new(status))
    }

    fn says(&self, other: &Self) -> bool {
        self.status == other.status && self.contexts == other.contexts
    }
}

/// The next step of a walk along the extents of a range.
#[derive(Debug)]
pub enum ExtentStep {
    /// A run is known, or there will be none any more because of an error.
    Item(Result<StatusRun, Error>),
    /// The server has to be asked, and its answer [taken](StatusRuns::take).
    Ask {
        /// Offset in bytes.
        offset: u64,
        /// For how many bytes.
        len: u64,
    },
    /// There are no more.
    Over,
}

/// Makes [`StatusRun`]es of the extents of several contexts.
///
/// A server may answer for less than was asked, differently for each context, and may cut extents
/// where nothing changes. The walk asks again from where the shortest answer ended and merges equal
/// neighbours.
///
/// StatusRuns come in order and without gaps and are inside the range. Two neighbours say the same
/// only where merging them took more than [`MERGED_ANSWERS`](StatusRuns::MERGED_ANSWERS) or a driver
/// [ended](StatusRuns::end_merge) it.
#[derive(Clone, Debug)]
pub struct StatusRuns {
    range: Range<u64>,
    /// The blocks of it that the server has not answered for.
    rest: Range<u64>,
    /// The longest that a request may be, in bytes.
    max: u64,
    /// The minimum block size.
    block: u64,
    ready: VecDeque<Result<StatusRun, Error>>,
    /// The last run of an answer, which the next answer may prolong.
    last: Option<StatusRun>,
    /// Answers since a run was ready.
    answers: u32,
    /// The contexts of the last answer, in its order.
    contexts: Arc<[ContextName]>,
}

impl StatusRuns {
    /// The most answers of which one run is made. Without a bound, a server that answers for
    /// one byte each time could keep a program waiting for as long as it likes.
    pub const MERGED_ANSWERS: u32 = 64;

    /// Time limit for requests about one run, once its beginning is known.
    pub const MERGE_TIME: Duration = Duration::from_secs(1);

    /// Walks a range. If it cannot all be reached, the only item is an error.
    #[must_use]
    pub fn new(negotiated: &Negotiated, range: Range<u64>) -> Self {
        let command = Command::BlockStatus;
        let len = range.end.saturating_sub(range.start);
        // Only whole blocks can be asked for; the parts outside the range are cut off again.
        let (rest, refused) = match negotiated.range(command, range.start, len) {
            Ok(range) => (negotiated.around(&range), None),
            Err(misuse) => (0..0, Some(Err(misuse.into()))),
        };
        Self {
            range,
            rest,
            max: negotiated.max_len(command).max(1),
            block: negotiated.blocks.minimum().into(),
            ready: refused.into_iter().collect(),
            last: None,
            answers: 0,
            contexts: Arc::default(),
        }
    }

    /// The next step.
    pub fn step(&mut self) -> ExtentStep {
        if let Some(item) = self.ready.pop_front() {
            return ExtentStep::Item(item);
        }
        if self.rest.is_empty() {
            let last = self.last.take();
            return last.map_or(ExtentStep::Over, |last| ExtentStep::Item(Ok(last)));
        }
        ExtentStep::Ask {
            offset: self.rest.start,
            len: self.asked(),
        }
    }

    fn asked(&self) -> u64 {
        self.max.min(self.rest.end - self.rest.start)
    }

    /// Whether something is known that the next answer may prolong.
    #[must_use]
    pub const fn is_merging(&self) -> bool {
        self.last.is_some()
    }

    /// Ends the known run, although the rest may have the same status.
    pub fn end_merge(&mut self) {
        self.ready.extend(self.last.take().map(Ok));
        self.answers = 0;
    }

    /// Takes the answer to a question.
    pub fn take(&mut self, answer: Result<Vec<ContextExtents>, Error>, negotiated: &Negotiated) {
        match answer {
            Ok(contexts) => self.extents(contexts, &negotiated.contexts),
            Err(error) => match negotiated.shorter(self.asked(), self.max, &error) {
                Some(short) => self.max = short,
                None => self.fail(error),
            },
        }
    }

    /// Ends the walk with an error, behind the known runs.
    fn fail(&mut self, error: Error) {
        self.end_merge();
        self.ready.push_back(Err(error));
        self.rest = 0..0;
    }

    /// Takes an answer, as far as it goes in all contexts. `order` are the selected ones.
    fn extents(&mut self, mut contexts: Vec<ContextExtents>, order: &[Context]) {
        contexts.sort_by_key(|context| order.iter().position(|known| known.id == context.id));
        let Some(shortest) = contexts.iter().map(|context| total(&context.extents)).min() else {
            self.rest = 0..0;
            return;
        };
        let covered = shortest.min(self.rest.end - self.rest.start);
        // The rest can only be asked for from the start of a block on.
        let covered = covered - covered % self.block;
        if covered == 0 {
            let message = "the extents end inside of the first block".to_owned();
            self.fail(Error::Failed {
                command: Command::BlockStatus,
                source: Failure {
                    errno: Errno::Inval,
                    message: message.into(),
                    offset: None,
                },
            });
            return;
        }
        let ids = contexts.iter().map(|context| context.id);
        let names = ids.filter_map(|id| order.iter().find(|known| known.id == id)?.name.as_ref());
        if !names.clone().eq(&*self.contexts) {
            self.contexts = names.cloned().collect();
        }
        let mut lists: Vec<_> = contexts
            .iter()
            .map(|ContextExtents { extents, .. }| extents.iter().copied())
            .collect();
        let mut current: Vec<Extent> = lists.iter_mut().filter_map(Iterator::next).collect();
        let end = self.rest.start + covered;
        while self.rest.start < end {
            let left = end - self.rest.start;
            let lens = current.iter().map(|extent| extent.len);
            let whole = lens.min().unwrap_or(left);
            let shortest = whole.min(left);
            self.push(
                StatusRun {
                    offset: self.rest.start,
                    len: shortest,
                    status: current.iter().map(|extent| extent.status).collect(),
                    beyond: 0,
                    contexts: self.contexts.clone(),
                },
                whole,
            );
            self.rest.start += shortest;
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
    }

    /// Merges a run with the one before, or makes that one ready. `whole` is its length before it was
    /// cut to the requested range.
    fn push(&mut self, mut run: StatusRun, whole: u64) {
        let start = run.offset.max(self.range.start);
        let end = (run.offset + run.len).min(self.range.end);
        if start >= end {
            return;
        }
        if end == self.range.end {
            run.beyond = run.offset.saturating_add(whole).saturating_sub(end);
        }
        run.offset = start;
        run.len = end - start;
        match &mut self.last {
            Some(last) if last.says(&run) => {
                last.len += run.len;
                last.beyond = run.beyond;
            }
            last => self.ready.extend(last.replace(run).map(Ok)),
        }
    }
}

fn total(extents: &[Extent]) -> u64 {
    extents
        .iter()
        .fold(0, |sum, extent| sum.saturating_add(extent.len))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::negotiated, *};
    use nbd_proto::ContextName;

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

    /// Offset, length and status of each run.
    type Known = Vec<(u64, u64, Vec<u64>)>;

    /// The items of a walk until it has to ask, and its next question.
    fn known(walk: &mut StatusRuns) -> (Known, Option<(u64, u64)>) {
        let mut items = Vec::new();
        loop {
            match walk.step() {
                ExtentStep::Item(item) => {
                    let StatusRun {
                        offset,
                        len,
                        status,
                        ..
                    } = item.unwrap();
                    items.push((offset, len, status));
                }
                ExtentStep::Ask { offset, len } => return (items, Some((offset, len))),
                ExtentStep::Over => return (items, None),
            }
        }
    }

    fn selected(minimum: u32) -> Negotiated {
        let names = [(1, "x:one"), (2, "x:two")];
        Negotiated {
            contexts: names
                .map(|(id, name)| Context {
                    id,
                    name: ContextName::new(name).ok(),
                })
                .into(),
            ..negotiated(1 << 30, minimum)
        }
    }

    #[test]
    fn a_walk_goes_as_far_as_its_shortest_context_and_merges() {
        // C-247, C-248, C-249
        let negotiated = selected(512);
        let mut walk = StatusRuns::new(&negotiated, 1024..5120);
        assert_eq!(known(&mut walk), (vec![], Some((1024, 4096))));
        let one = [(512, 0), (512, 0), (512, 3)];
        let answer = vec![context(2, &[(8192, 1)]), context(1, &one)];
        walk.take(Ok(answer), &negotiated);
        let first = (1024, 1024, vec![0, 1]);
        assert_eq!(known(&mut walk), (vec![first], Some((2560, 2560))));
        let answer = vec![context(1, &[(u64::MAX, 3)]), context(2, &[(9000, 1)])];
        walk.take(Ok(answer), &negotiated);
        assert_eq!(known(&mut walk), (vec![(2048, 3072, vec![3, 1])], None));
    }

    #[test]
    fn a_status_is_found_by_the_name_of_its_context() {
        let mut negotiated = selected(1);
        let base = Context {
            id: 9,
            name: Some(ContextName::base_allocation()),
        };
        // One that was not asked for, and of which nothing is reported.
        negotiated.contexts.insert(0, Context { id: 4, name: None });
        negotiated.contexts.push(base);
        let mut walk = StatusRuns::new(&negotiated, 0..100);
        let answer = vec![
            context(9, &[(100, Allocation::ZERO)]),
            context(2, &[(100, 22)]),
            context(1, &[(100, 11)]),
        ];
        walk.take(Ok(answer), &negotiated);
        let ExtentStep::Item(Ok(run)) = walk.step() else {
            panic!("no run");
        };
        let name = |name| ContextName::new(name).unwrap();
        assert_eq!(run.status, [11, 22, Allocation::ZERO]);
        assert_eq!(run.status_of(&name("x:one")), Some(11));
        assert_eq!(run.status_of(&name("x:two")), Some(22));
        assert_eq!(run.status_of(&name("x:three")), None);
        assert!(run.allocation().is_some_and(Allocation::is_zero));
        assert_eq!(negotiated.context_id(&name("x:two")), Some(2));
        assert_eq!(negotiated.context_id(&name("x:three")), None);
    }

    #[test]
    fn a_walk_never_leaves_its_range() {
        // C-246
        let negotiated = Negotiated {
            max_range: 4096,
            ..selected(512)
        };
        let mut walk = StatusRuns::new(&negotiated, 1000..9000);
        assert_eq!(known(&mut walk), (vec![], Some((512, 4096))));
        let endless = vec![context(1, &[(u64::MAX, 0), (u64::MAX, 1)])];
        walk.take(Ok(endless), &negotiated);
        assert_eq!(known(&mut walk), (vec![(1000, 8000, vec![0])], None));
    }

    #[test]
    fn a_walk_hands_on_what_the_server_says_of_more_than_it_was_asked() {
        // C-246
        let negotiated = selected(512);
        let beyond = |first: &[(u64, u64)], second: &[(u64, u64)]| {
            let mut walk = StatusRuns::new(&negotiated, 1000..3000);
            let answer = vec![context(1, first), context(2, second)];
            walk.take(Ok(answer), &negotiated);
            let runs = std::iter::from_fn(|| match walk.step() {
                ExtentStep::Item(Ok(run)) => Some((run.len, run.beyond)),
                _ => None,
            });
            runs.collect::<Vec<_>>()
        };
        assert_eq!(
            beyond(&[(4096, 7)], &[(9000, 8)]),
            [(2000, 512 + 4096 - 3000)]
        );
        assert_eq!(
            beyond(&[(1488, 7), (9000, 1)], &[(9000, 8)]),
            [(1000, 0), (1000, 6512)]
        );
        // Runs that end with the range, or with its last block, have nothing known behind it.
        assert_eq!(beyond(&[(2488, 7), (9000, 1)], &[(9000, 8)]), [(2000, 0)]);
        assert_eq!(beyond(&[(2560, 7), (9000, 1)], &[(9000, 8)]), [(2000, 72)]);
        assert_eq!(
            beyond(&[(u64::MAX, 7)], &[(u64::MAX, 8)]),
            [(2000, u64::MAX - 3000)]
        );
    }

    #[test]
    fn a_walk_goes_on_at_the_start_of_a_block() {
        // C-250
        let negotiated = selected(4096);
        let mut walk = StatusRuns::new(&negotiated, 0..12_288);
        walk.take(Ok(vec![context(1, &[(4608, 0), (1024, 1)])]), &negotiated);
        assert_eq!(known(&mut walk), (vec![], Some((4096, 8192))));
        walk.take(Ok(vec![context(1, &[(512, 0)])]), &negotiated);
        // The known run comes before the error.
        let first = walk.step();
        assert!(
            matches!(first, ExtentStep::Item(Ok(StatusRun { len: 4096, .. }))),
            "{first:?}"
        );
        assert!(matches!(walk.step(), ExtentStep::Item(Err(_))));
        assert!(matches!(walk.step(), ExtentStep::Over));
    }

    #[test]
    fn an_answer_without_contexts_ends_a_walk() {
        let negotiated = selected(1);
        let mut walk = StatusRuns::new(&negotiated, 0..1000);
        walk.take(Ok(vec![]), &negotiated);
        assert_eq!(known(&mut walk), (vec![], None));
    }

    #[test]
    fn a_range_that_a_server_finds_too_long_is_asked_for_in_parts() {
        // C-126
        let negotiated = selected(1);
        let mut walk = StatusRuns::new(&negotiated, 0..1 << 30);
        assert_eq!(known(&mut walk), (vec![], Some((0, 1 << 30))));
        let refused = || {
            Err(Error::Failed {
                command: Command::BlockStatus,
                source: Failure::new(Errno::Overflow),
            })
        };
        walk.take(refused(), &negotiated);
        assert_eq!(known(&mut walk), (vec![], Some((0, 1 << 20))));
        walk.take(refused(), &negotiated);
        assert!(matches!(walk.step(), ExtentStep::Item(Err(_))));
        assert!(matches!(walk.step(), ExtentStep::Over));
    }
}
