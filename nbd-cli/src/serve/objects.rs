//! Disks on object storage.

use super::named::export_name;
use crate::{
    connect::seconds,
    object::Address,
    outcome::{Context, Error, Result},
    size,
    text::printable,
};
use clap::Args;
use nbd_blocking::{
    exports::{AsyncExport, ExportName, Listing, Offer, Unavailable, forward_async_export},
    nbd_proto::server::Refusal,
};
use nbd_object::{Disk, LocalCache, Location, Options};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// Objects of which less than so many percent are in use are written anew, so that the rest is garbage.
const COMPACT: u8 = 50;

/// Snapshots that are kept open.
const OPEN_SNAPSHOTS: usize = 16;

/// Disks on object storage, which are named by a URI.
#[derive(Args, Debug)]
#[command(next_help_heading = "Object storage")]
pub(super) struct ObjectOptions {
    /// Make a disk if there is none, such as 1T.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    create: Option<u64>,
    /// Memory for read blocks.
    ///
    /// For those of each disk.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size::parse)]
    cache: u64,
    /// Directory for read blocks.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Limit of that.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size::parse)]
    cache_dir_size: u64,
    /// Memory for unflushed writes.
    ///
    /// For those of each disk.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size::parse)]
    dirty: u64,
    /// Garbage collection interval.
    ///
    /// In seconds.
    #[arg(long, value_name = "S", default_value = "3600", value_parser = seconds)]
    gc: Duration,
    /// Seconds to spare garbage.
    ///
    /// Objects that are younger are kept.
    #[arg(long, value_name = "S", default_value = "3600", value_parser = seconds)]
    gc_age: Duration,
}

impl ObjectOptions {
    /// An option that is given, and means nothing without a disk on object storage.
    pub(super) fn given(&self) -> Option<&'static str> {
        if self.create.is_some() {
            return Some("--create");
        }
        self.cache_dir.is_some().then_some("--cache-dir")
    }

    /// Opens the cache in a directory.
    async fn local_cache(&self) -> Result<Option<LocalCache>> {
        let Some(dir) = &self.cache_dir else {
            return Ok(None);
        };
        let cache = LocalCache::open(dir, self.cache_dir_size).await;
        cache
            .map(Some)
            .step(|| format!("cannot use the cache in {}", dir.display()))
    }

    fn options(&self, local_cache: Option<LocalCache>) -> Options {
        Options::new()
            .cache_size(self.cache)
            .dirty_limit(self.dirty)
            .horizon(self.gc_age)
            .local_cache(local_cache)
    }
}

/// The disks that were opened, and the runtime of their requests.
#[derive(Debug)]
pub(super) struct Objects {
    runtime: Runtime,
    /// The cache in a directory, which is that of all disks.
    local_cache: Option<LocalCache>,
    disks: Vec<Arc<Object>>,
}

/// A disk, its snapshots, and its name.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) name: ExportName,
    pub(super) disk: Disk,
    address: Address,
    location: Location,
    description: String,
    options: Options,
    handle: Handle,
    /// Those that were used last are the last.
    snapshots: Mutex<Vec<(String, Disk)>>,
}

impl Objects {
    pub(super) fn new(settings: &ObjectOptions) -> Result<Self> {
        let runtime = Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.step(|| "cannot start the runtime")?;
        Ok(Self {
            local_cache: runtime.block_on(settings.local_cache())?,
            runtime,
            disks: Vec::new(),
        })
    }

    /// Opens a disk, or makes it.
    pub(super) fn open(
        &mut self,
        name: Option<ExportName>,
        address: &Address,
        description: &str,
        read_only: bool,
        settings: &ObjectOptions,
    ) -> Result<Arc<Object>> {
        let name = match name {
            Some(name) => name,
            None => export_name(&address.export_name()).map_err(Error::new)?,
        };
        let options = settings.options(self.local_cache.clone());
        let opened = address.open_or_create(settings.create, read_only, options.clone());
        let (location, disk) = self.runtime.block_on(opened)?;
        if !disk.is_read_only() {
            let collector = collect(disk.clone(), address.to_string(), settings.gc);
            self.runtime.spawn(collector);
        }
        let object = Arc::new(Object {
            name,
            disk,
            address: address.clone(),
            location,
            description: description.to_owned(),
            options,
            handle: self.runtime.handle().clone(),
            snapshots: Mutex::default(),
        });
        self.disks.push(Arc::clone(&object));
        Ok(object)
    }

    pub(super) const fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.disks.iter()
    }

    /// Puts everything into the stores.
    pub(super) fn flush(&self) -> Result<()> {
        for Object { disk, address, .. } in self.disks.iter().map(|disk| &**disk) {
            if !disk.is_read_only() {
                let flushed = self.runtime.block_on(disk.flush());
                flushed.map_err(|error| address.failed("cannot flush", error))?;
            }
        }
        Ok(())
    }
}

/// Deletes objects that are not needed any more, from time to time.
async fn collect(disk: Disk, address: String, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let collected = match disk.compact(COMPACT).await {
            Ok(_) => disk.collect_garbage().await,
            Err(error) => Err(error),
        };
        match collected {
            Ok(collected) if collected.deleted_objects > 0 => tracing::info!(
                "{}: deleted {} objects of {}",
                printable(&address),
                collected.deleted_objects,
                size::Size(collected.deleted_bytes)
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    "cannot collect the garbage of {}: {error}",
                    printable(&address)
                );
            }
        }
    }
}

impl Object {
    /// The snapshot whose export has this name.
    fn snapshot_of<'a>(&self, name: &'a ExportName) -> Option<&'a str> {
        let rest = name.as_str().strip_prefix(self.name.as_str())?;
        rest.strip_prefix('@')
    }

    /// Opens a snapshot, on a thread that may wait.
    fn snapshot(&self, name: &str) -> Result<Disk, nbd_object::Error> {
        let mut open = self
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = open.iter().position(|(opened, _)| opened == name);
        let disk = match known {
            Some(at) => open.remove(at).1,
            None => {
                let opening = self
                    .location
                    .open_read_only(Some(name), self.options.clone());
                self.handle.block_on(opening)?
            }
        };
        open.push((name.to_owned(), disk.clone()));
        if open.len() > OPEN_SNAPSHOTS {
            open.remove(0);
        }
        Ok(disk)
    }
}

/// The snapshots of all disks, as exports of the name `DISK@SNAPSHOT`.
#[derive(Debug)]
pub(super) struct Snapshots(BTreeMap<ExportName, Arc<Object>>);

impl Snapshots {
    pub(super) fn new(objects: &Objects) -> Self {
        let disks = objects.disks.iter();
        Self(
            disks
                .filter(|disk| disk.address.snapshot().is_none())
                .map(|disk| (disk.name.clone(), Arc::clone(disk)))
                .collect(),
        )
    }

    pub(super) fn find(&self, name: &ExportName) -> Option<Result<Offer, Unavailable>> {
        let (disk, snapshot) = self
            .0
            .values()
            .find_map(|disk| Some((disk, disk.snapshot_of(name)?)))?;
        Some(match disk.snapshot(snapshot) {
            Ok(snapshot) => Ok(Offer::asynchronous(snapshot)),
            Err(nbd_object::Error::NotFound(_) | nbd_object::Error::Invalid(_)) => {
                Err(Unavailable::unknown())
            }
            Err(error) => {
                tracing::warn!("cannot open the snapshot \"{}\": {error}", printable(name));
                Err(Unavailable::new(
                    Refusal::Policy,
                    "the snapshot cannot be opened",
                ))
            }
        })
    }

    pub(super) fn list(&self) -> Vec<Listing> {
        let mut listed = Vec::new();
        for disk in self.0.values() {
            match disk.handle.block_on(disk.location.snapshots()) {
                Ok(snapshots) => {
                    let names = snapshots.iter();
                    let names = names.map(|snapshot| format!("{}@{}", disk.name, snapshot.name));
                    listed.extend(
                        names
                            .filter_map(|name| ExportName::new(name).ok())
                            .map(Listing::new),
                    );
                }
                Err(error) => tracing::warn!(
                    "cannot list the snapshots of {}: {error}",
                    printable(&disk.address)
                ),
            }
        }
        listed
    }
}

impl AsyncExport for Object {
    fn description(&self) -> &str {
        &self.description
    }

    forward_async_export!(|this| &this.disk, except description);
}
