//! `nbd object`: disks on object storage.

mod address;
#[cfg(feature = "cloud")]
mod cloud;
mod failure;
#[cfg(not(feature = "cloud"))]
mod no_cloud;
mod report;
mod store;

pub(crate) use address::Address;
pub(crate) use store::Purpose;

use crate::{
    connect::seconds,
    outcome::{Answer, Error, Result},
    output, runtime, size,
};
use clap::{Args, Subcommand};
use nbd_object::{Layout, Options};
use std::time::Duration;

/// Make, look at and maintain disks on object storage.
#[derive(Debug, Args)]
#[command(after_help = "\
A disk is named by s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
or file:///DIRECTORY, and a snapshot of it by @NAME behind that. Credentials are
taken from the environment: AWS_*, GOOGLE_* and AZURE_*.

Examples:
  nbd object create \"file://$PWD/disk\" 1T
  nbd object snapshot \"file://$PWD/disk@monday\"
  nbd object list --json \"file://$PWD/disk\"
  nbd object check \"file://$PWD/disk@monday\"")]
pub(crate) struct Object {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make a disk, all of which is zero.
    Create {
        /// Its URI.
        disk: Address,
        /// Its size, such as 1T.
        #[arg(value_parser = size::parse)]
        size: u64,
        /// Size of a block: 4K to 64K.
        #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = size::parse)]
        block_size: u64,
    },
    /// Print the description of a disk or a snapshot.
    Info {
        /// Its URI.
        disk: Address,
        /// Print a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Take a snapshot of the flushed data, also while the disk is served.
    Snapshot {
        /// The URI of the disk, `@` and a name.
        snapshot: Address,
    },
    /// List the snapshots of a disk.
    List {
        /// Its URI.
        disk: Address,
        /// Print a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Delete a snapshot, or a disk with all of its snapshots.
    Delete {
        /// Its URI.
        disk: Address,
    },
    /// Delete objects that nothing refers to. It ends the service of the disk: a server collects by
    /// itself.
    Gc {
        /// Its URI.
        disk: Address,
        /// Spare objects that are younger than so many seconds.
        #[arg(long, value_name = "S", default_value = "3600", value_parser = seconds)]
        age: Duration,
        /// Print a JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Read everything and verify its checksums: exit code 1 if something is damaged.
    Check {
        /// The URI of a disk or a snapshot.
        disk: Address,
        /// Print a JSON document.
        #[arg(long)]
        json: bool,
    },
}

impl Object {
    pub(crate) fn run(self) -> Result {
        runtime::block_on(self.task.run())
    }
}

impl Task {
    async fn run(self) -> Result {
        match self {
            Self::Create {
                disk,
                size,
                block_size,
            } => {
                let disk = disk.without_snapshot()?;
                let block_size = u32::try_from(block_size).unwrap_or(u32::MAX);
                disk.create(size, Layout::default().block_size(block_size))
                    .await?;
            }
            Self::Info { disk, json } => {
                let info = report::Disk::of(&disk).await?;
                print(json, &info, &info.text())?;
            }
            Self::Snapshot { snapshot } => {
                let name = snapshot.snapshot().ok_or_else(|| {
                    Error::new(format!(
                        "expected {snapshot}@NAME, for the name of the snapshot"
                    ))
                })?;
                let location = snapshot.location(Purpose::Use)?;
                let taken = location.snapshot(name).await;
                taken.map_err(|error| snapshot.failed("cannot take the snapshot", error))?;
            }
            Self::List { disk, json } => {
                let disk = disk.without_snapshot()?;
                let snapshots = report::Snapshots::of(&disk).await?;
                print(json, &snapshots, &snapshots.text())?;
            }
            Self::Delete { disk } => {
                let location = disk.location(Purpose::Use)?;
                let deleted = match disk.snapshot() {
                    Some(name) => location.delete_snapshot(name).await,
                    None => location.delete().await,
                };
                deleted.map_err(|error| disk.failed("cannot delete", error))?;
            }
            Self::Gc { disk, age, json } => {
                let disk = disk.without_snapshot()?;
                let opened = disk.open(Options::new().horizon(age)).await?;
                let collected = opened.collect_garbage().await;
                let collected = collected
                    .map_err(|error| disk.failed("cannot collect the garbage of", error))?;
                let collected = report::Garbage::new(&disk, &collected);
                print(json, &collected, &collected.text())?;
            }
            Self::Check { disk, json } => {
                let location = disk.location(Purpose::Use)?;
                let checked = location.check(disk.snapshot(), &Options::new()).await;
                let checked = checked.map_err(|error| disk.failed("cannot check", error))?;
                let checked = report::Checked::new(&disk, &checked);
                print(json, &checked, &checked.text())?;
                return Ok(checked.is_whole().into());
            }
        }
        Ok(Answer::Yes)
    }
}

fn print(json: bool, document: &impl serde::Serialize, text: &str) -> Result<()> {
    if json {
        output::json(document)
    } else {
        output::print(text)
    }
}

impl Address {
    fn without_snapshot(self) -> Result<Self> {
        match self.snapshot() {
            None => Ok(self),
            Some(name) => Err(Error::new(format!(
                "expected a disk, got its snapshot \"{name}\": leave out \"@{name}\""
            ))),
        }
    }
}
