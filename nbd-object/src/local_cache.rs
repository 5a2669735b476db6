//! A cache of records on a local disk.

use crate::format::{ObjectId, Piece, checksum};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use std::{io, sync::Arc};
use tokio::sync::Semaphore;

/// Records on the way to the disk. Further ones are left out until there is room.
const WRITES: usize = 32;

type Key = (ObjectId, u32);

/// A cache of records in a directory, beside the one in memory; see
/// [`Options::local_cache`](crate::Options::local_cache). It is cheap to clone, and can be that of
/// several disks.
///
/// Records never change, so that the cache is never out of date, and a program that starts uses
/// those that are there. Each record is compared with its checksum when it is read: a file that was
/// damaged, or cut off by a crash, counts as not there. Nothing is synced.
#[derive(Clone, Debug)]
pub struct LocalCache {
    files: LocalFileSystem,
    index: Arc<Cache<Key, u32, Length, DefaultHashBuilder, Evicted>>,
    writes: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Length;

impl Weighter<Key, u32> for Length {
    fn weight(&self, _: &Key, len: &u32) -> u64 {
        u64::from(*len).max(1)
    }
}

/// Collects the records that make room for another one.
#[derive(Clone, Debug)]
struct Evicted;

impl Lifecycle<Key, u32> for Evicted {
    type RequestState = Vec<Key>;

    fn begin_request(&self) -> Vec<Key> {
        Vec::new()
    }

    fn on_evict(&self, evicted: &mut Vec<Key>, key: Key, _: u32) {
        evicted.push(key);
    }
}

fn path(key: &Key) -> Path {
    let (
        ObjectId {
            epoch,
            nonce,
            number,
        },
        offset,
    ) = key;
    Path::from(format!(
        "{epoch:016x}-{nonce:016x}-{number:08x}-{offset:08x}"
    ))
}

fn key(path: &Path) -> Option<Key> {
    let mut fields = path
        .as_ref()
        .split('-')
        .map(|field| u64::from_str_radix(field, 16).ok());
    let object = ObjectId {
        epoch: fields.next()??,
        nonce: fields.next()??,
        number: fields.next()??,
    };
    let key = (object, u32::try_from(fields.next()??).ok()?);
    (self::path(&key) == *path).then_some(key)
}

impl LocalCache {
    /// Uses a directory, which is created if it is not there, for up to `limit` bytes. It should have
    /// no other files.
    ///
    /// # Errors
    ///
    /// When it cannot be created or read.
    pub async fn open(directory: impl AsRef<std::path::Path>, limit: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let files = LocalFileSystem::new_with_prefix(directory)?;
        let items = usize::try_from(limit >> 16).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items.clamp(1, 1 << 20))
            .weight_capacity(limit)
            .shards(1)
            .build()
            .map_err(io::Error::other)?;
        let index = Cache::with_options(options, Length, DefaultHashBuilder::default(), Evicted);
        let cache = Self {
            files,
            index: Arc::new(index),
            writes: Arc::new(Semaphore::new(WRITES)),
        };
        let mut list = cache.files.list(None);
        while let Some(meta) = list.try_next().await? {
            if let Some(key) = key(&meta.location) {
                let len = u32::try_from(meta.size).unwrap_or(u32::MAX);
                cache
                    .delete(cache.index.insert_with_lifecycle(key, len))
                    .await;
            }
        }
        Ok(cache)
    }

    /// The bytes of all records that are kept.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.index.weight()
    }

    /// The stored bytes of a record, which were compared with its checksum.
    pub(crate) async fn get(&self, piece: &Piece) -> Option<Bytes> {
        let key = piece.key();
        self.index.get(&key)?;
        if let Ok(found) = self.files.get(&path(&key)).await
            && found.meta.size == u64::from(piece.len)
            && let Ok(bytes) = found.bytes().await
            && checksum(&bytes) == piece.checksum
        {
            return Some(bytes);
        }
        self.index.remove(&key);
        None
    }

    /// The work of keeping a record, unless there is too much of it under way.
    pub(crate) fn keep(
        &self,
        piece: &Piece,
        stored: &Bytes,
    ) -> Option<impl Future<Output = ()> + Send + 'static + use<>> {
        let key = piece.key();
        if self.index.contains_key(&key) {
            return None;
        }
        let permit = self.writes.clone().try_acquire_owned().ok()?;
        let this = self.clone();
        // A copy: it may be a part of more.
        let (len, stored) = (piece.len, stored.clone());
        Some(async move {
            // A disk that is full or broken makes reads slower, and does not fail them.
            if this.files.put(&path(&key), stored.into()).await.is_ok() {
                this.delete(this.index.insert_with_lifecycle(key, len))
                    .await;
            }
            drop(permit);
        })
    }

    async fn delete(&self, keys: Vec<Key>) {
        for key in keys {
            let _ = self.files.delete(&path(&key)).await;
        }
    }
}
