//! The results of `nbd object`, as text and as JSON.

use super::{Address, Purpose};
use crate::{
    outcome::Result,
    output::SCHEMA,
    size::{Size, exact},
    text::printable,
};
use nbd_object::{Collected, Report};
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// A disk or a snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Disk {
    schema: u32,
    disk: String,
    export_size: u64,
    block_size: u32,
    epoch: u64,
    generation: u64,
    is_empty: bool,
    snapshots: Vec<String>,
}

impl Disk {
    pub(super) async fn of(disk: &Address) -> Result<Self> {
        let location = disk.location(Purpose::Use)?;
        let failed = |error| disk.failed("cannot look at", error);
        let info = location.info(disk.snapshot()).await.map_err(failed)?;
        let snapshots = match disk.snapshot() {
            Some(_) => Vec::new(),
            None => location.snapshots().await.map_err(failed)?,
        };
        Ok(Self {
            schema: SCHEMA,
            disk: disk.to_string(),
            export_size: info.size,
            block_size: info.block_size,
            epoch: info.epoch,
            generation: info.generation,
            is_empty: info.is_empty,
            snapshots: snapshots
                .into_iter()
                .map(|snapshot| snapshot.name)
                .collect(),
        })
    }

    pub(super) fn text(&self) -> String {
        let data = if self.is_empty { ", without data" } else { "" };
        let mut text = format!(
            "{}: {} ({}){data}\nblock size: {}\nopened for writing {} times, committed {} times\n",
            printable(&self.disk),
            self.export_size,
            exact(self.export_size),
            exact(self.block_size.into()),
            self.epoch,
            self.generation
        );
        if !self.snapshots.is_empty() {
            text += &format!("snapshots: {}\n", printable(&self.snapshots.join(", ")));
        }
        text
    }
}

/// The snapshots of a disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Snapshots {
    schema: u32,
    disk: String,
    snapshots: Vec<Snapshot>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Snapshot {
    name: String,
    /// In seconds since 1970.
    taken: u64,
}

impl Snapshots {
    pub(super) async fn of(disk: &Address) -> Result<Self> {
        let location = disk.location(Purpose::Use)?;
        let failed = |error| disk.failed("cannot list the snapshots of", error);
        // A disk that is not there has no snapshots either, but that is no answer.
        location.info(None).await.map_err(failed)?;
        let snapshots = location.snapshots().await.map_err(failed)?;
        let snapshots = snapshots.into_iter().map(|snapshot| Snapshot {
            name: snapshot.name,
            taken: since_1970(snapshot.taken),
        });
        Ok(Self {
            schema: SCHEMA,
            disk: disk.to_string(),
            snapshots: snapshots.collect(),
        })
    }

    /// One name a line.
    pub(super) fn text(&self) -> String {
        let lines = self.snapshots.iter();
        lines
            .map(|snapshot| format!("{}\n", printable(&snapshot.name)))
            .collect()
    }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A collection of garbage.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Garbage {
    schema: u32,
    disk: String,
    live_objects: u64,
    live_bytes: u64,
    used_bytes: u64,
    deleted_objects: u64,
    deleted_bytes: u64,
    young_objects: u64,
    young_bytes: u64,
}

impl Garbage {
    pub(super) fn new(disk: &Address, collected: &Collected) -> Self {
        Self {
            schema: SCHEMA,
            disk: disk.to_string(),
            live_objects: collected.live_objects,
            live_bytes: collected.live_bytes,
            used_bytes: collected.used_bytes,
            deleted_objects: collected.deleted_objects,
            deleted_bytes: collected.deleted_bytes,
            young_objects: collected.young_objects,
            young_bytes: collected.young_bytes,
        }
    }

    pub(super) fn text(&self) -> String {
        format!(
            "deleted: {} objects, {}\ntoo young: {} objects, {}\nin use: {} objects, {}, of which {} \
             are data\n",
            self.deleted_objects,
            Size(self.deleted_bytes),
            self.young_objects,
            Size(self.young_bytes),
            self.live_objects,
            Size(self.live_bytes),
            Size(self.used_bytes)
        )
    }
}

/// A check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Checked {
    schema: u32,
    disk: String,
    objects: u64,
    pages: u64,
    records: u64,
    bytes: u64,
    damaged: u64,
    damages: Vec<String>,
}

impl Checked {
    pub(super) fn new(disk: &Address, report: &Report) -> Self {
        Self {
            schema: SCHEMA,
            disk: disk.to_string(),
            objects: report.objects,
            pages: report.pages,
            records: report.records,
            bytes: report.bytes,
            damaged: report.damaged,
            damages: report.damages.iter().map(ToString::to_string).collect(),
        }
    }

    pub(super) const fn is_whole(&self) -> bool {
        self.damaged == 0
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{} objects with {} pages and {} records, {}: ",
            self.objects,
            self.pages,
            self.records,
            Size(self.bytes)
        );
        text += &match self.damaged {
            0 => "all are whole\n".into(),
            damaged => format!("{damaged} damages\n"),
        };
        for damage in &self.damages {
            text += &format!("damaged: {}\n", printable(damage));
        }
        text
    }
}
