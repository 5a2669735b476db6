//! Changes without the parts that later ones have overwritten.

use super::Request;
use std::{collections::BTreeMap, ops::Range};

/// Ranges that do not touch: where each ends, by where it starts.
type Ranges = BTreeMap<u64, u64>;

/// The parts of changes that no later one of them has overwritten, in the order of the changes. A
/// trim overwrites nothing, because a server may ignore it.
pub(super) fn latest<'a>(changes: impl DoubleEndedIterator<Item = &'a Request>) -> Vec<Request> {
    let mut overwritten = Ranges::new();
    let mut parts = Vec::new();
    for change in changes.rev() {
        let range = change.range();
        let rest = rest(&overwritten, range.clone());
        parts.extend(rest.into_iter().rev().map(|rest| change.part(rest)));
        if !matches!(change, Request::Trim { .. }) {
            add(&mut overwritten, range);
        }
    }
    parts.reverse();
    parts
}

/// The parts of a range that are in none of the others.
fn rest(ranges: &Ranges, range: Range<u64>) -> Vec<Range<u64>> {
    let mut start = match ranges.range(..=range.start).next_back() {
        Some((_, end)) => range.start.max(*end),
        None => range.start,
    };
    let mut rest = Vec::new();
    for (next, end) in ranges.range(range.clone()) {
        if start < *next {
            rest.push(start..*next);
        }
        start = start.max(*end);
    }
    if start < range.end {
        rest.push(start..range.end);
    }
    rest
}

/// Adds a range, together with those that it touches.
fn add(ranges: &mut Ranges, mut range: Range<u64>) {
    while let Some((start, end)) = ranges.range(..=range.end).next_back()
        && *end >= range.start
    {
        let (start, end) = (*start, *end);
        range = range.start.min(start)..range.end.max(end);
        ranges.remove(&start);
    }
    ranges.insert(range.start, range.end);
}
