//! `nbd compare`: whether two disks are the same.

use crate::{
    cli::Common,
    disk::{Access, Disk, Run},
    embedded::{Embedded, Pair},
    interrupt::run_until_interrupted,
    outcome::Result,
    output,
    progress::Progress,
    ranges::Ranges,
    runtime,
    size::exact,
    target::Target,
    threads::share,
    transfer::Transfer,
    work::{Work, cut},
    zeroes::{is_same, is_zero},
};
use clap::Args;
use futures_util::{TryStreamExt, future::try_join};
use nbd_tokio::{ContextName, bytes::BytesMut};
use serde::Serialize;
use std::{cell::RefCell, ops::Range, pin::pin, sync::Arc};

/// Number of requests in flight to each disk.
const REQUESTS: usize = 4;

/// `nbd compare`.
#[derive(Args, Debug)]
#[command(
    about = "\
Compare two disks, byte by byte, and skip what both know to be zero.

A longer one is the same if the rest of it is zero. Exit codes: 0 for the same,
1 for different, 2 for an error.",
    after_help = "\
Examples:
  nbd compare nbd://localhost/disk disk.img
  nbd compare --first --json disk.img nbd://localhost/disk
  nbd compare -q disk.img nbd://localhost/disk || echo 'not the same'"
)]
pub(crate) struct Compare {
    /// A URI, a file or a block device.
    #[arg(requires = "b")]
    a: Option<Target>,
    /// Another one.
    b: Option<Target>,
    /// Disks of different sizes are different.
    #[arg(long)]
    strict: bool,
    /// Stop at the first difference, and count nothing.
    #[arg(long)]
    first: bool,
    /// Print a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    transfer: Transfer,
}

/// Settings of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub(crate) requests: usize,
    pub(crate) request_size: u64,
    /// Whether to stop at the first difference.
    pub(crate) first: bool,
    /// Compare only ranges that this context of the first disk marks.
    pub(crate) only: Option<ContextName>,
}

/// The difference between two disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The first byte that differs.
    pub(crate) first: Option<u64>,
    /// Number of bytes that differ.
    pub(crate) bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    schema: u32,
    identical: bool,
    sizes: [u64; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    different_bytes: Option<u64>,
}

impl Compare {
    pub(crate) fn run(mut self, common: &Common) -> Result {
        let pair = Pair::new([self.a.take(), self.b.take()], Embedded::sample)?;
        let progress = Arc::new(self.transfer.progress(common.quiet));
        runtime::block_on(self.compare(&pair.targets, &progress, common.quiet))
    }

    async fn compare(
        &self,
        targets: &[Target; 2],
        progress: &Arc<Progress>,
        quiet: bool,
    ) -> Result {
        let has_file = targets
            .iter()
            .any(|target| matches!(target, Target::Path(_)));
        // One thread goes through the disks in order, and so finds the first difference first.
        let threads = if self.first {
            1
        } else {
            self.transfer.threads(has_file)
        };
        let access = self.transfer.access(threads);
        let [a, b] = targets;
        let opened = try_join(Disk::open(a, &access), Disk::open(b, &access));
        let (a, b) = opened.await?;
        let sizes = [a.size(), b.size()];
        let difference = if self.strict && sizes[0] != sizes[1] {
            None
        } else {
            let comparison = Comparison {
                requests: self.transfer.requests().unwrap_or(REQUESTS),
                request_size: self.transfer.request_size(),
                first: self.first,
                only: None,
            };
            let all = Ranges::from(0..sizes[0].max(sizes[1]));
            let threads = if a.is_shareable() && b.is_shareable() {
                threads
            } else {
                1
            };
            let work = Arc::new(Work::new(&all, threads));
            progress.begin("compare", Some(all.len()), 0);
            let first = differences(&work, progress, [&a, &b], &comparison);
            let another = || {
                let (work, progress) = (work.clone(), progress.clone());
                let (comparison, access) = (comparison.clone(), access.clone());
                let disks = [a.clone(), b.clone()];
                move || {
                    runtime::block_on(differences_again(
                        &work,
                        &progress,
                        disks,
                        &comparison,
                        &access,
                    ))
                }
            };
            let shared = share(&work, threads - 1, first, another);
            let found = run_until_interrupted(&work, progress, shared).await;
            progress.clear();
            Some(
                found?
                    .into_iter()
                    .fold(Difference::default(), Difference::and),
            )
        };
        a.close().await;
        b.close().await;
        let identical = difference.is_some_and(|difference| difference.first.is_none());
        let first_difference = difference.and_then(|difference| difference.first);
        let counted = difference.filter(|_| !self.first);
        if self.json {
            output::json(&Report {
                schema: output::SCHEMA,
                identical,
                sizes,
                first_difference,
                different_bytes: counted.map(|difference| difference.bytes),
            })?;
        } else if !quiet {
            output::print(&format!(
                "{}\n",
                described(sizes, first_difference, counted)
            ))?;
        }
        Ok(identical.into())
    }
}

fn described(sizes: [u64; 2], first: Option<u64>, counted: Option<Difference>) -> String {
    match (first, counted) {
        (Some(first), Some(Difference { bytes, .. })) => {
            format!("different: {bytes} bytes, the first at {first}")
        }
        (Some(first), None) => format!("different: the first byte at {first}"),
        (None, None) if sizes[0] != sizes[1] => {
            let [a, b] = sizes;
            format!(
                "different: of {a} and of {b} bytes ({}, {})",
                exact(a),
                exact(b)
            )
        }
        _ => "identical".to_owned(),
    }
}

/// A part of both disks, and which of them are known to be zero there or have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    range: Range<u64>,
    zero: [bool; 2],
}

impl Difference {
    /// Both of two parts.
    fn and(self, other: Self) -> Self {
        Self {
            first: match (self.first, other.first) {
                (Some(one), Some(another)) => Some(one.min(another)),
                (one, another) => one.or(another),
            },
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Compares on another thread, over connections of its own. Where there are no more of these, the
/// other threads do all of the work.
async fn differences_again(
    work: &Work,
    progress: &Progress,
    [a, b]: [Disk; 2],
    comparison: &Comparison,
    access: &Access,
) -> Result<Difference> {
    let opened = try_join(a.again(access), b.again(access)).await;
    let (a, b) = match opened {
        Err(error) if access.connections.is_none() => {
            tracing::warn!("{error}, and one thread goes on");
            return Ok(Difference::default());
        }
        opened => opened?,
    };
    let found = differences(work, progress, [&a, &b], comparison).await?;
    a.close().await;
    b.close().await;
    Ok(found)
}

/// Compares the ranges of `work` on two disks.
pub(crate) async fn differences(
    work: &Work,
    progress: &Progress,
    disks: [&Disk; 2],
    comparison: &Comparison,
) -> Result<Difference> {
    let buffers = RefCell::new(Vec::new());
    let plan = async |stretch: Range<u64>| {
        let [a, b] = disks;
        let (a, b) = try_join(
            known(a, stretch.clone(), comparison.only.as_ref()),
            known(b, stretch.clone(), None),
        )
        .await?;
        let all = stretch.end - stretch.start;
        let parts: Vec<_> = parts(&a, &b, comparison.request_size).collect();
        let left: u64 = parts
            .iter()
            .map(|part| part.range.end - part.range.start)
            .sum();
        progress.add(all - left);
        Ok(parts)
    };
    let compared = work
        .pieces(plan)
        .map_ok(|part| compare_part(disks, part, comparison.first, &buffers))
        .try_buffered(comparison.requests);
    let mut compared = pin!(compared);
    let mut all = Difference::default();
    while let Some((len, found)) = compared.try_next().await? {
        progress.add(len);
        all = all.and(found);
        if comparison.first && all.first.is_some() {
            break;
        }
    }
    Ok(all)
}

/// The runs of a range of a disk, which may have ended before.
async fn known(disk: &Disk, range: Range<u64>, only: Option<&ContextName>) -> Result<Vec<Run>> {
    let Range { start, end } = range;
    let reached = end.min(disk.size()).max(start);
    let mut runs = match start == reached {
        true => Vec::new(),
        false => disk.runs(start..reached, only).await?,
    };
    if reached < end {
        runs.push(Run {
            range: reached..end,
            zero: true,
            marked: true,
        });
    }
    Ok(runs)
}

/// The parts that have to be read of two disks with these runs.
fn parts(a: &[Run], b: &[Run], len: u64) -> impl Iterator<Item = Part> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut at = a.peek().map_or(0, |run| run.range.start);
    let pairs = std::iter::from_fn(move || {
        let (one, other) = ((*a.peek()?).clone(), (*b.peek()?).clone());
        let range = at..one.range.end.min(other.range.end);
        at = range.end;
        a.next_if(|run| run.range.end == at);
        b.next_if(|run| run.range.end == at);
        Some((range, one.marked, [one.zero, other.zero]))
    });
    pairs
        .filter(|(_, marked, zero)| *marked && *zero != [true; 2])
        .flat_map(move |(range, _, zero)| cut(range, len).map(move |range| Part { range, zero }))
}

async fn compare_part(
    disks: [&Disk; 2],
    part: Part,
    first: bool,
    buffers: &RefCell<Vec<BytesMut>>,
) -> Result<(u64, Difference)> {
    let Part { range, zero } = part;
    let len = range.end - range.start;
    let read = async |side: usize| {
        if zero[side] {
            return Ok(None);
        }
        let mut buffer = buffers.borrow_mut().pop().unwrap_or_default();
        buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        disks[side].read(buffer, range.start).await.map(Some)
    };
    let (a, b) = try_join(read(0), read(1)).await?;
    let found = match (&a, &b) {
        (Some(a), Some(b)) if is_same(a, b) => None,
        (Some(a), Some(b)) => Some(count(a.iter().zip(b.iter()).map(|(a, b)| a != b), first)),
        (Some(one), None) | (None, Some(one)) if is_zero(one) => None,
        (Some(one), None) | (None, Some(one)) => {
            Some(count(one.iter().map(|byte| *byte != 0), first))
        }
        (None, None) => None,
    };
    buffers.borrow_mut().extend([a, b].into_iter().flatten());
    let difference = found.map_or_else(Difference::default, |(first, bytes)| Difference {
        first: Some(range.start + first),
        bytes,
    });
    Ok((len, difference))
}

/// The first difference, and the number of them.
fn count(differs: impl Iterator<Item = bool> + Clone, first: bool) -> (u64, u64) {
    let at = differs.clone().position(|differs| differs).unwrap_or(0) as u64;
    let all = if first {
        1
    } else {
        differs.filter(|differs| *differs).count()
    };
    (at, all as u64)
}
