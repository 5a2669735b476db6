//! The place of a disk in a store, and the work on it from there.

use crate::{
    Disk, Error, Layout, Options,
    disk::{HEAD, read_head},
    format::{HEAD_LIMIT, Head, SECTOR, levels_for},
    probe::probe,
    runtime::Runtime,
    store::{Nonces, Objects, Put},
};
use futures_util::TryStreamExt;
use nbd_io::{mutation::Mutation, runtime::Tasks};
use object_store::{ObjectStore, PutMode, PutPayload, UpdateVersion, path::Path};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::SystemTime,
};

/// The place of a disk: a store and a prefix, below which all of its objects are.
///
/// It is cheap to clone, and does nothing by itself.
#[derive(Clone)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Runtime,
    nonces: Nonces,
}

/// Without the store's configuration, which may have secrets.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Location")
            .field("store", &self.store.to_string())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A disk or a snapshot, as its head describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The size in bytes.
    pub size: u64,
    /// The size of a block in bytes.
    pub block_size: u32,
    /// Counts openings for writing.
    pub epoch: u64,
    /// Counts commits.
    pub generation: u64,
    /// Counts collections of garbage.
    pub collections: u64,
    /// Levels of the map.
    pub levels: u8,
    /// Whether the disk has no data at all.
    pub is_empty: bool,
}

/// A snapshot of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The name.
    pub name: String,
    /// The time when it was taken, by the clock of the store.
    pub taken: SystemTime,
}

impl From<&Head> for Info {
    fn from(head: &Head) -> Self {
        Self {
            size: head.size,
            block_size: u32::try_from(head.block_size()).expect("a block is small"),
            epoch: head.epoch,
            generation: head.generation,
            collections: head.collections,
            levels: head.levels,
            is_empty: head.root.is_none(),
        }
    }
}

/// A number that no other writer has, of the system's random numbers.
fn random() -> u64 {
    RandomState::new().hash_one(SystemTime::now())
}

/// Attempts to make a disk or a snapshot while others delete it, or collect garbage.
const ATTEMPTS: u32 = 10;

pub(crate) fn check_size(size: u64) -> Result<(), Error> {
    if size > 0 && size <= 1 << 62 && size.is_multiple_of(SECTOR) {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "a size of {size} bytes is no multiple of 512 up to 2^62"
        )))
    }
}

/// The path of a snapshot below the prefix.
fn snapshot_path(name: &str) -> Result<String, Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=128).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
        Ok(format!("snap/{name}"))
    } else {
        Err(Error::Invalid(format!(
            "a snapshot's name has up to 128 letters, digits and -_. and does not begin with a dot: {name:?}"
        )))
    }
}

impl Location {
    /// The place below `prefix` in `store`. The runtime has the tasks that commit and get ahead;
    /// drivers have one, such as `nbd_tokio::Tokio`. Stores that speak HTTP need Tokio.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, prefix: impl Into<Path>, runtime: impl Tasks) -> Self {
        Self {
            store,
            prefix: prefix.into(),
            runtime: Runtime::new(runtime),
            nonces: Arc::new(random),
        }
    }

    /// The same with the numbers of `nonces`, by which the objects of one writer differ from those of all
    /// others, in place of random ones of the system. They must never come again for this disk: a
    /// simulation has them from a seed, so that it goes the same way each time.
    #[must_use]
    pub fn nonces(self, nonces: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            nonces: Arc::new(nonces),
            ..self
        }
    }

    pub(crate) fn objects(&self, options: &Options) -> Arc<Objects> {
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        Arc::new(Objects::new(
            store,
            prefix,
            self.runtime.clone(),
            options.retry.clone(),
            self.nonces.clone(),
        ))
    }

    fn default_objects(&self) -> Arc<Objects> {
        self.objects(&Options::default())
    }

    /// Makes a new disk of `size` bytes, all of which are zeroes. It takes seven requests.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if there is a disk, [`Error::IgnoresConditions`] if the store is not
    /// fit for one, and [`Error::Invalid`] for a size or a block size that is out of bounds.
    pub async fn create(&self, size: u64, layout: Layout) -> Result<(), Error> {
        check_size(size)?;
        let block = layout.block_size;
        if !block.is_power_of_two() || !(4 << 10..=64 << 10).contains(&block) {
            let detail =
                format!("a block size of {block} bytes is no power of two from 4 to 64 KiB");
            return Err(Error::Invalid(detail));
        }
        let objects = self.default_objects();
        let nonce = objects.nonce();
        probe(&objects, nonce).await?;
        let mut head = Head {
            disk: nonce,
            size,
            block_shift: u8::try_from(block.trailing_zeros()).expect("there are 32 bits"),
            epoch: 0,
            nonce,
            generation: 0,
            collections: 0,
            levels: 1,
            root: None,
        };
        head.levels = levels_for(head.blocks());
        let payload = PutPayload::from(head.encode());
        for _ in 0..ATTEMPTS {
            let mode = PutMode::Create;
            if let Put::Done(_) = objects.put(HEAD, payload.clone(), mode).await? {
                return Ok(());
            }
            match read_head(&objects, HEAD).await? {
                // An earlier attempt succeeded, and its answer was lost.
                Some((found, _)) if found == head => return Ok(()),
                Some(_) => break,
                // It was deleted meanwhile.
                None => {}
            }
        }
        Err(Error::AlreadyExists(format!(
            "a disk at {}",
            objects.path(HEAD)
        )))
    }

    /// Opens the disk for reading and writing, and fences the writer that has it open, if any: that
    /// one fails from its next commit on. It takes eight requests.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no disk, [`Error::IgnoresConditions`] if the store is not fit
    /// for one, and [`Error::Unsupported`] for options that need another feature.
    pub async fn open(&self, options: Options) -> Result<Disk, Error> {
        check_options(&options)?;
        let objects = self.objects(&options);
        let nonce = objects.nonce();
        probe(&objects, nonce).await?;
        let (mut found, mut version) = self.head(&objects).await?;
        // A writer that flushes all the time is as fast as this; each attempt has an even chance.
        const SWAPS: u32 = 100;
        for _ in 0..SWAPS {
            let head = Head {
                epoch: found.epoch + 1,
                nonce,
                generation: found.generation + 1,
                ..found
            };
            let payload = PutPayload::from(head.encode());
            let put = objects.put(HEAD, payload, PutMode::Update(version)).await?;
            if let Put::Done(version) = put {
                let known = version.e_tag.is_some() || version.version.is_some();
                return Ok(Disk::new(
                    objects,
                    options,
                    head,
                    known.then_some(version),
                    true,
                ));
            }
            // Another opener was faster, or the writer has committed, or the answer was lost.
            (found, version) = self.head(&objects).await?;
            if found == head {
                return Ok(Disk::new(objects, options, head, Some(version), true));
            }
        }
        Err(Error::IgnoresConditions(format!(
            "the head has changed {SWAPS} times while this opened it"
        )))
    }

    /// Opens the disk, or a snapshot of it, for reading only. It takes one request, fences no writer,
    /// and sees none of its later writes.
    ///
    /// The disk as it is now can be read for [`horizon`](Options::horizon) after the writer has
    /// overwritten it and collected the garbage; a snapshot until it is deleted.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such disk or snapshot.
    pub async fn open_read_only(
        &self,
        snapshot: Option<&str>,
        options: Options,
    ) -> Result<Disk, Error> {
        let objects = self.objects(&options);
        let head = self.any_head(&objects, snapshot).await?;
        Ok(Disk::new(objects, options, head, None, false))
    }

    async fn head(&self, objects: &Objects) -> Result<(Head, UpdateVersion), Error> {
        let missing = || Error::NotFound(format!("disk at {}", objects.path(HEAD)));
        read_head(objects, HEAD).await?.ok_or_else(missing)
    }

    /// The head of the disk or of a snapshot.
    pub(crate) async fn any_head(
        &self,
        objects: &Objects,
        snapshot: Option<&str>,
    ) -> Result<Head, Error> {
        let Some(name) = snapshot else {
            return Ok(self.head(objects).await?.0);
        };
        let missing = || Error::NotFound(format!("snapshot {name} of the disk at {}", self.prefix));
        Ok(read_head(objects, &snapshot_path(name)?)
            .await?
            .ok_or_else(missing)?
            .0)
    }

    /// The description of the disk or of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such disk or snapshot.
    pub async fn info(&self, snapshot: Option<&str>) -> Result<Info, Error> {
        let objects = self.default_objects();
        Ok(Info::from(&self.any_head(&objects, snapshot).await?))
    }

    /// Takes a snapshot of the committed contents, also of a disk that another program serves. It
    /// copies nothing, and takes three requests.
    ///
    /// If another program deletes it before this has returned, it may be taken anew.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if there is a snapshot of this name.
    pub async fn snapshot(&self, name: &str) -> Result<(), Error> {
        take_snapshot(&self.default_objects(), name).await
    }

    /// The snapshots, in the order of their names.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = snapshots(&self.default_objects()).await?;
        snapshots.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(snapshots)
    }

    /// Deletes a snapshot. Its space is free when the disk's writer has collected the garbage.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such snapshot.
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), Error> {
        let objects = self.default_objects();
        let path = snapshot_path(name)?;
        if objects.get(&path, HEAD_LIMIT).await?.is_none() {
            return Err(Error::NotFound(format!(
                "snapshot {name} of the disk at {}",
                self.prefix
            )));
        }
        objects.delete(vec![objects.path(&path)]).await
    }

    /// Deletes the disk and all of its snapshots. A writer that has it open fails from its next commit
    /// on; the objects that it puts until then stay.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no disk.
    pub async fn delete(&self) -> Result<(), Error> {
        let objects = self.default_objects();
        // Not decoded, so that a damaged disk can be deleted, too.
        if objects.get(HEAD, HEAD_LIMIT).await?.is_none() {
            return Err(Error::NotFound(format!("disk at {}", objects.path(HEAD))));
        }
        objects.delete(vec![objects.path(HEAD)]).await?;
        for directory in ["snap", "map", "seg", "probe"] {
            let paths = objects.list(directory).map_ok(|meta| meta.location);
            let mut some = paths.try_chunks(1000);
            while let Some(paths) = some.try_next().await.map_err(|error| error.1)? {
                objects.delete(paths).await?;
            }
        }
        Ok(())
    }
}

impl Disk {
    /// Flushes, and takes a snapshot. It copies nothing.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if there is a snapshot of this name, and as [`flush`](Self::flush).
    pub async fn snapshot(&self, name: &str) -> Result<(), Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        snapshot_path(name)?;
        self.flush().await?;
        take_snapshot(&self.inner.objects, name).await
    }
}

/// A collection of garbage that has listed the snapshots would miss a later one. Each one counts
/// itself in the head before that: if the count is the same after the snapshot was put, the next
/// collection sees the snapshot.
async fn take_snapshot(objects: &Objects, name: &str) -> Result<(), Error> {
    let path = snapshot_path(name)?;
    let nonce = objects.nonce();
    let read = async || {
        let head = read_head(objects, HEAD).await?;
        let missing = || Error::NotFound(format!("disk at {}", objects.path(HEAD)));
        head.map(|(head, _)| head).ok_or_else(missing)
    };
    for _ in 0..ATTEMPTS {
        let mut head = read().await?;
        // It is a number of the taker, who knows the snapshot again by it.
        head.nonce = nonce;
        let payload = head.encode().into();
        if let Put::Refused = objects.put(&path, payload, PutMode::Create).await? {
            let Some(found) = objects.get(&path, HEAD_LIMIT).await? else {
                // It was deleted meanwhile. Whether it was this one, put by an attempt whose answer
                // was lost, cannot be known, and makes no difference: the name is free.
                continue;
            };
            match Head::decode(&found.bytes) {
                // An earlier attempt succeeded, although its answer was lost.
                Ok(found) if found.nonce == nonce => head = found,
                _ => return Err(Error::AlreadyExists(format!("snapshot {name}"))),
            }
        }
        let is_counted = Mutation::UncountedSnapshot.is_made();
        if is_counted || read().await?.collections == head.collections {
            return Ok(());
        }
        objects.delete(vec![objects.path(&path)]).await?;
    }
    Err(Error::Invalid(
        "garbage was collected, or the snapshot deleted, each time that it was about to be taken"
            .into(),
    ))
}

pub(crate) async fn snapshots(objects: &Objects) -> Result<Vec<Snapshot>, Error> {
    objects
        .list("snap")
        .try_filter_map(async |meta| {
            let name = objects.name_of(&meta.location);
            let name = name.as_deref().and_then(|name| name.strip_prefix("snap/"));
            Ok(name.map(|name| Snapshot {
                name: name.into(),
                taken: meta.last_modified.into(),
            }))
        })
        .try_collect()
        .await
}

fn check_options(options: &Options) -> Result<(), Error> {
    #[cfg(not(feature = "zstd"))]
    if options.compression != crate::Compression::Off {
        return Err(Error::Unsupported(
            "compression needs the feature `zstd` of nbd-object".into(),
        ));
    }
    if options.dirty_limit < 1 << 20 {
        let limit = options.dirty_limit;
        return Err(Error::Invalid(format!(
            "{limit} bytes of writes in memory are less than a MiB"
        )));
    }
    if !(1 << 20..=64 << 20).contains(&options.segment_size) {
        let size = options.segment_size;
        return Err(Error::Invalid(format!(
            "segments of {size} bytes are not of 1 to 64 MiB"
        )));
    }
    Ok(())
}
