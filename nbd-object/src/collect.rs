//! The collection of garbage: objects that neither the head nor a snapshot reaches.

use crate::{
    Disk, Error,
    disk::{Committed, HEAD, Inner, read_head},
    format::{HEAD_LIMIT, Kind, ObjectId},
    location::snapshots,
    map::{Root, Walk},
    store::{Objects, Versioned},
};
use futures_util::TryStreamExt;
use nbd_io::mutation::Mutation;
use std::{collections::HashMap, time::SystemTime};

/// The result of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Objects that are still needed.
    pub live_objects: u64,
    /// Their sizes in all.
    pub live_bytes: u64,
    /// The part of these bytes that the head or a snapshot refers to.
    pub used_bytes: u64,
    /// Garbage that was deleted.
    pub deleted_objects: u64,
    /// Its size.
    pub deleted_bytes: u64,
    /// Garbage that is too young to be deleted.
    pub young_objects: u64,
    /// Its size.
    pub young_bytes: u64,
}

/// Deletions that are sent together.
const DELETED: usize = 1000;

impl Disk {
    /// Flushes, and deletes the objects that neither the disk nor a snapshot refers to, if they are
    /// older than [`horizon`](crate::Options::horizon). Reads and writes go on meanwhile.
    ///
    /// It costs a get for each page of the map and of the snapshots, listings, and a put of the head
    /// unless nothing has changed since a collection that left no garbage. Its memory grows
    /// with the number of objects and pages: some 100 bytes for each.
    ///
    /// # Errors
    ///
    /// When a page cannot be read: then nothing is deleted. And as [`flush`](Self::flush).
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        let inner = &self.inner;
        let _alone = inner.maintenance.lock().await;
        let objects = &inner.objects;
        // The head counts this collection before snapshots are listed: one that is being taken is
        // listed here, or its taker sees the new count. Later commits only add objects to those
        // that this head reaches. A head that has not changed since it counted a collection need not
        // count another one: a snapshot of it has no other objects than it has itself.
        let (committed, now) = match self.collected().await? {
            Some(known) => known,
            None => {
                let committed = self.commit(true, None).await?;
                let head = objects.get(HEAD, HEAD_LIMIT).await?;
                (committed, head.map_or(SystemTime::UNIX_EPOCH, time_of))
            }
        };
        let mut walk = match Mutation::CollectSnapshots.is_made() {
            true => Walk::default(),
            false => reachable_from_snapshots(objects).await?,
        };
        walk.begin(Root::from(&committed.head));
        let used = mark(inner, walk).await?;
        let mut collected = Collected::default();
        let mut dead = Vec::new();
        for kind in Kind::ALL {
            let mut list = objects.list(kind.directory());
            while let Some(meta) = list.try_next().await? {
                let name = objects.name_of(&meta.location);
                // An object that is not one of a disk is left alone.
                let Some((kind, id)) = name.as_deref().and_then(ObjectId::parse) else {
                    continue;
                };
                if let Some(bytes) = used.get(&(kind, id)) {
                    collected.live_objects += 1;
                    collected.live_bytes += meta.size;
                    collected.used_bytes += bytes;
                    continue;
                }
                let own = (id.epoch, id.nonce) == (committed.head.epoch, committed.head.nonce);
                let later = id.epoch > committed.head.epoch || (own && id.number >= committed.next);
                let age = now
                    .duration_since(meta.last_modified.into())
                    .unwrap_or_default();
                if later || age < inner.options.horizon {
                    collected.young_objects += 1;
                    collected.young_bytes += meta.size;
                    continue;
                }
                collected.deleted_objects += 1;
                collected.deleted_bytes += meta.size;
                dead.push(meta.location);
                if dead.len() == DELETED {
                    objects.delete(std::mem::take(&mut dead)).await?;
                }
            }
        }
        objects.delete(dead).await?;
        // An unchanged head would never be younger than garbage that is left, by the store's clock.
        let clean = collected.young_objects == 0;
        inner.state().collected = clean.then_some(committed.head.generation);
        Ok(collected)
    }

    /// The head in the store and the time when it was put, if nothing has changed since it counted a
    /// collection that left no garbage.
    async fn collected(&self) -> Result<Option<(Committed, SystemTime)>, Error> {
        let Some(known) = self.inner.state().unchanged_since_collection() else {
            return Ok(None);
        };
        let found = self.inner.objects.get(HEAD, HEAD_LIMIT).await?;
        // Another writer's, for example.
        let found = found.filter(|found| found.bytes == known.head.encode());
        Ok(found.map(|found| (known, time_of(found))))
    }
}

fn time_of(object: Versioned) -> SystemTime {
    object.meta.last_modified.into()
}

/// The bytes in use of each object.
pub(crate) type Used = HashMap<(Kind, ObjectId), u64>;

/// The maps of all snapshots.
pub(crate) async fn reachable_from_snapshots(objects: &Objects) -> Result<Walk, Error> {
    let mut walk = Walk::default();
    for snapshot in snapshots(objects).await? {
        // It may have been deleted since.
        if let Some((head, _)) = read_head(objects, &format!("snap/{}", snapshot.name)).await? {
            walk.begin(Root::from(&head));
        }
    }
    Ok(walk)
}

pub(crate) async fn mark(inner: &Inner, mut walk: Walk) -> Result<Used, Error> {
    let mut used = Used::new();
    loop {
        let some = walk.next(&inner.pages, &mut Vec::new()).await;
        if some.is_empty() {
            return Ok(used);
        }
        for (place, page) in some {
            let page = page.map_err(|error| error.at(place.disk(inner.block_size as u64)))?;
            *used.entry(place.object()).or_default() += u64::from(place.piece.len);
            if place.level == 0 {
                for (_, piece) in page.iter() {
                    *used.entry((Kind::Segment, piece.object)).or_default() += u64::from(piece.len);
                }
            }
        }
    }
}
