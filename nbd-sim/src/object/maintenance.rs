//! Snapshots, the collection of garbage and compaction, beside the clients of a disk.
//!
//! A snapshot is read as soon as it was taken, and later again: its contents are those of a moment between
//! the call and its end, which the oracle judges as it judges reads, and they never change.

use super::{ObjectPlan, Place, decoded};
use crate::{
    content::Value,
    history::Time,
    plan::ms,
    runtime::{Sim, lock},
};
use fastrand::Rng;
use nbd_io::runtime::Runtime;
use nbd_object::{Disk, Error, Location};
use std::{collections::VecDeque, time::Duration};

/// A step of maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The server takes a snapshot, after a flush.
    Snapshot,
    /// Another program takes one of the committed contents.
    SnapshotOfCommitted,
    /// A snapshot is read, if there is any.
    Read,
    /// Snapshots are listed.
    List,
    /// A snapshot is deleted, if there is any.
    Delete,
    /// Garbage is collected.
    Collect,
    /// Objects of which less than so many percent are in use are written anew.
    Compact(u8),
}

impl Work {
    /// Some work, with the pause before each.
    pub(super) fn plan(rng: &mut Rng) -> Vec<(Duration, Self)> {
        let work = (0..rng.usize(..16)).map(|_| {
            let work = match rng.u8(..16) {
                0..3 => Self::Snapshot,
                3..5 => Self::SnapshotOfCommitted,
                5..7 => Self::Read,
                7 => Self::List,
                8..10 => Self::Delete,
                10..14 => Self::Collect,
                _ => Self::Compact(rng.u8(30..=100)),
            };
            (ms(0..150, rng), work)
        });
        work.collect()
    }
}

/// The work that is left, and the snapshots.
#[derive(Debug, Default)]
pub(super) struct Maintenance {
    left: VecDeque<(Duration, Work)>,
    snapshots: Vec<Snapshot>,
}

#[derive(Clone, Debug)]
struct Snapshot {
    begun: Time,
    /// When its taker knew that it is there.
    taken: Option<Time>,
    /// Whether it was to have all that was answered when it was begun.
    is_flushed: bool,
    /// Its contents, as they were read first.
    values: Option<Vec<Value>>,
    /// Number of deletions that were begun.
    deletions: u32,
    is_deleted: bool,
}

fn name(number: usize) -> String {
    format!("s{number}")
}

/// Whether an operation may fail so.
const fn may_fail(error: &Error) -> bool {
    // Aborted: with the process of a task that was waited for.
    matches!(
        error,
        Error::Store { .. } | Error::NoAnswer { .. } | Error::Fenced { .. } | Error::Aborted
    )
}

impl Maintenance {
    pub(super) fn new(plan: &ObjectPlan) -> Self {
        Self {
            left: plan.work.clone().into(),
            snapshots: Vec::new(),
        }
    }
}

impl Place {
    /// Does the work that is left, while a server has the disk.
    pub(super) async fn maintain(&self, sim: &Sim, at: &Location, disk: &Disk) {
        loop {
            let next = lock(&self.maintenance).left.pop_front();
            let Some((pause, work)) = next else { return };
            sim.sleep(pause).await;
            sim.log(|| format!("maintenance: {work:?}"));
            let done = self.work(sim, at, disk, work).await;
            sim.log(|| format!("maintenance: {work:?} has ended: {done:?}"));
            match done {
                Ok(has_effect) => self.history.inject(work.name(), has_effect),
                Err(error) if may_fail(&error) => self.history.inject(work.name(), false),
                Err(error) => self.history.violation(format!("{work:?}: {error}")),
            }
        }
    }

    async fn work(&self, sim: &Sim, at: &Location, disk: &Disk, work: Work) -> Result<bool, Error> {
        match work {
            Work::Snapshot | Work::SnapshotOfCommitted => {
                let number = self.begin_snapshot(work == Work::Snapshot);
                let taken = match work {
                    Work::Snapshot => disk.snapshot(&name(number)).await,
                    _ => at.snapshot(&name(number)).await,
                };
                taken?;
                let now = self.history.now();
                lock(&self.maintenance).snapshots[number].taken = Some(now);
                self.read_snapshot(at, number).await?;
                Ok(true)
            }
            Work::Read => match self.any_snapshot(sim) {
                Some(number) => self.read_snapshot(at, number).await.map(|()| true),
                None => Ok(false),
            },
            Work::List => {
                let known = lock(&self.maintenance).snapshots.clone();
                let found = at.snapshots().await?;
                for (number, snapshot) in known.iter().enumerate() {
                    let is_listed = found.iter().any(|one| one.name == name(number));
                    let now = lock(&self.maintenance).snapshots[number].deletions;
                    let has_to_be = snapshot.taken.is_some() && now == 0;
                    if has_to_be && !is_listed || snapshot.is_deleted && is_listed {
                        let what = format!("snapshot {number} is listed: {is_listed}");
                        self.history.violation(what);
                    }
                }
                Ok(!found.is_empty())
            }
            Work::Delete => {
                let Some(number) = self.any_snapshot(sim) else {
                    return Ok(false);
                };
                let before = {
                    let snapshots = &mut lock(&self.maintenance).snapshots;
                    let before = snapshots[number].clone();
                    snapshots[number].deletions += 1;
                    before
                };
                let deleted = at.delete_snapshot(&name(number)).await;
                let deletions = lock(&self.maintenance).snapshots[number].deletions;
                let is_uncertain = before.is_uncertain() || deletions > 1;
                if matches!(deleted, Err(Error::NotFound(_))) && is_uncertain {
                    return Ok(false);
                }
                deleted?;
                let snapshots = &mut lock(&self.maintenance).snapshots;
                // The put of one whose taker has ended may still be under way.
                snapshots[number].is_deleted = before.taken.is_some();
                Ok(true)
            }
            Work::Collect => {
                let collected = disk.collect_garbage().await?;
                Ok(collected.deleted_objects > 0)
            }
            Work::Compact(percent) => {
                let compacted = disk.compact(percent).await?;
                Ok(compacted.blocks > 0)
            }
        }
    }

    fn begin_snapshot(&self, is_flushed: bool) -> usize {
        let begun = self.history.now();
        let snapshots = &mut lock(&self.maintenance).snapshots;
        snapshots.push(Snapshot {
            begun,
            taken: None,
            is_flushed,
            values: None,
            deletions: 0,
            is_deleted: false,
        });
        snapshots.len() - 1
    }

    fn any_snapshot(&self, sim: &Sim) -> Option<usize> {
        let count = lock(&self.maintenance).snapshots.len();
        (count > 0).then(|| sim.random(|rng| rng.usize(..count)))
    }

    /// Reads a snapshot, and compares its contents with those of before.
    async fn read_snapshot(&self, at: &Location, number: usize) -> Result<(), Error> {
        let before = lock(&self.maintenance).snapshots[number].clone();
        let read = async {
            let options = self.plan.options();
            let disk = at.open_read_only(Some(&name(number)), options).await?;
            let len = usize::try_from(disk.size()).unwrap_or(0);
            let data = disk.read(0, len).await?;
            let mut bytes = vec![0; len];
            data.copy_to_slice(&mut bytes);
            Ok(bytes)
        };
        let read: Result<Vec<u8>, Error> = read.await;
        let snapshot = lock(&self.maintenance).snapshots[number].clone();
        let bytes = match read {
            Ok(bytes) => bytes,
            // The taker of a snapshot has to know that no garbage was collected meanwhile.
            Err(_) if before.is_uncertain() || snapshot.is_uncertain() => return Ok(()),
            Err(error) => return Err(error),
        };
        let values = decoded(&bytes, &self.history, "a snapshot has");
        if before.is_deleted {
            let what = format!("snapshot {number} is there after its deletion");
            self.history.violation(what);
        }
        // Until its taker knows that it is there, it may take it anew, since garbage was collected.
        match (snapshot.values, before.taken) {
            (Some(first), _) if first != values => self.history.violation(format!(
                "snapshot {number} has changed from {first:?} to {values:?}"
            )),
            (None, Some(taken)) => {
                let within = snapshot.begun..taken;
                (self.history).snapshot(within, values.clone(), snapshot.is_flushed);
                lock(&self.maintenance).snapshots[number].values = Some(values);
            }
            _ => {}
        }
        Ok(())
    }

    /// No more work is begun.
    pub fn stop_maintenance(&self) {
        lock(&self.maintenance).left.clear();
    }

    /// Reads all snapshots and the disk, when no server has it any more and the store is well.
    pub async fn finish(&self, sim: &Sim) {
        // Until then, requests of the last server have been carried out.
        sim.sleep(Duration::from_millis(100)).await;
        let at = self.location(sim);
        let count = lock(&self.maintenance).snapshots.len();
        let mut wrong = Vec::new();
        for number in 0..count {
            if let Err(error) = self.read_snapshot(&at, number).await {
                wrong.push(format!("snapshot {number} cannot be read: {error}"));
            }
        }
        match at.check(None, &self.plan.options()).await {
            Ok(report) if report.damaged > 0 => wrong.push(format!("the disk: {report:?}")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("the disk cannot be checked: {error}")),
        }
        wrong
            .into_iter()
            .for_each(|what| self.history.violation(what));
    }
}

impl Snapshot {
    /// Whether it may be missing.
    const fn is_uncertain(&self) -> bool {
        self.taken.is_none() || self.deletions > 0
    }
}

impl Work {
    /// The name in figures.
    const fn name(self) -> &'static str {
        match self {
            Self::Snapshot | Self::SnapshotOfCommitted => "snapshot",
            Self::Read => "read of a snapshot",
            Self::List => "list of snapshots",
            Self::Delete => "deletion of a snapshot",
            Self::Collect => "collection of garbage",
            Self::Compact(_) => "compaction",
        }
    }
}
