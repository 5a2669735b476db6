//! A failing plan with as few faults and operations as still fail.

use crate::plan::Plan;
use std::collections::BTreeSet;

/// The numbers of faults and operations that can be left out of a failing plan, so that it still
/// fails.
#[must_use]
pub fn shrink(plan: &Plan, fails: impl Fn(&Plan) -> bool) -> BTreeSet<usize> {
    let mut left_out = BTreeSet::new();
    let mut size = plan.items().div_ceil(2);
    loop {
        let before = left_out.len();
        let rest: Vec<usize> = (0..plan.items())
            .filter(|item| !left_out.contains(item))
            .collect();
        for part in rest.chunks(size) {
            let mut fewer = left_out.clone();
            fewer.extend(part);
            if fails(&plan.clone().without(&fewer)) {
                left_out = fewer;
            }
        }
        if left_out.len() == before {
            if size <= 1 {
                return left_out;
            }
            size = size.div_ceil(2);
        }
    }
}

/// Numbers as they are written on a command line: `0-3,7`.
#[must_use]
pub fn to_ranges(numbers: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let shown = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// Numbers as [`to_ranges`] writes them.
///
/// # Errors
///
/// When they are no numbers.
pub fn from_ranges(text: &str) -> Result<BTreeSet<usize>, std::num::ParseIntError> {
    let mut numbers = BTreeSet::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        numbers.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(numbers)
}
