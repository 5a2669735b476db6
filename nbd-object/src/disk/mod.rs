//! An open disk.

mod commit;
mod pack;
mod read;
mod read_ahead;
mod status;
mod write;

pub(crate) use commit::{Committed, HEAD, read_head};
pub use status::Extent;

use crate::{
    Error, Options, Statistics,
    changes::Changes,
    format::{Head, ObjectId, SECTOR},
    map::{Pages, Root},
    records::Records,
    store::Objects,
};
use commit::Wish;
use object_store::UpdateVersion;
use read_ahead::Streams;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicUsize},
};
use tokio::sync::oneshot;

/// An open disk. It is cheap to clone, and all clones are the same disk.
///
/// Any number of calls may be in flight. Every future can be dropped: a write whose future was
/// dropped was carried out or not, and a commit goes on in a task of its own.
///
/// # Durability
///
/// It is called `remote`: a write is in memory until a flush, or until memory is short. When
/// [`flush`](Self::flush) has returned, every write that had returned before is in the store, and a
/// server that begins anew finds it there. Dropping the last clone does not flush. After a failed flush the data is still in memory, and a
/// later flush that succeeds covers it.
///
/// After another program has opened the disk for writing, every call fails with
/// [`Error::Fenced`], at the next commit at the latest.
#[derive(Clone)]
pub struct Disk {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) objects: Arc<Objects>,
    pub(crate) pages: Arc<Pages>,
    pub(crate) records: Arc<Records>,
    pub(crate) options: Options,
    pub(crate) block_size: usize,
    writable: bool,
    reading_ahead: AtomicUsize,
    /// Held by a collection or a compaction: one would delete pages that the other one reads.
    pub(crate) maintenance: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

pub(crate) struct State {
    /// The head in the store, as far as this writer knows.
    pub(crate) head: Head,
    /// The version of the head's object; `None` when it is uncertain which head is there.
    version: Option<UpdateVersion>,
    /// Changes since the last commit began.
    active: Changes,
    /// Changes of the commit that is under way.
    frozen: Option<Changes>,
    /// The number of the next object.
    pub(crate) next: u64,
    /// The generation of the head that counts the last collection, if that left no garbage.
    pub(crate) collected: Option<u64>,
    committing: bool,
    wishes: Vec<Wish>,
    /// Flushes that the commit under way covers.
    joined: Vec<oneshot::Sender<Result<(), Error>>>,
    /// Writes that wait for memory.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// The reason why this disk fails for good.
    failed: Option<Error>,
    streams: Streams,
}

impl Disk {
    pub(crate) fn new(
        objects: Arc<Objects>,
        mut options: Options,
        head: Head,
        version: Option<UpdateVersion>,
        writable: bool,
    ) -> Self {
        // More would be driven out of the cache before it is read.
        options.read_ahead = options.read_ahead.min(options.cache_size / 4);
        let block_size = usize::try_from(head.block_size()).expect("a block is small");
        let pages = Arc::new(Pages::new(objects.clone(), options.map_cache_size));
        let records = Arc::new(Records::new(objects.clone(), &options, block_size));
        let state = State {
            head,
            version,
            active: Changes::new(block_size),
            frozen: None,
            next: 0,
            collected: None,
            committing: false,
            wishes: Vec::new(),
            joined: Vec::new(),
            waiting: Vec::new(),
            failed: None,
            streams: Streams::default(),
        };
        let inner = Inner {
            objects,
            pages,
            records,
            options,
            block_size,
            writable,
            reading_ahead: AtomicUsize::new(0),
            maintenance: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.state().head.size
    }

    /// The size of a block in bytes. Reads and writes of whole blocks cost least.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        u32::try_from(self.inner.block_size).expect("a block is small")
    }

    /// Whether this disk was opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.inner.writable
    }

    /// The counters of this disk since it was opened.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.inner.objects.counters.snapshot();
        statistics.cached_bytes = self.inner.records.cached_bytes();
        statistics.dirty_bytes = self.inner.state().dirty();
        statistics
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("size", &self.size())
            .field("block_size", &self.block_size())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// It is never held while anything is waited for.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

impl State {
    /// Bytes of changes in memory.
    fn dirty(&self) -> u64 {
        self.active.weight() + self.frozen.as_ref().map_or(0, |frozen| frozen.weight())
    }

    pub(crate) fn root(&self) -> Root {
        Root::from(&self.head)
    }

    /// The last commit, if it is that of the last collection, with no changes since and no garbage
    /// left.
    pub(crate) fn unchanged_since_collection(&self) -> Option<Committed> {
        let unchanged = self.collected == Some(self.head.generation)
            && self.active.is_empty()
            && self.frozen.is_none();
        unchanged.then(|| self.committed())
    }

    fn committed(&self) -> Committed {
        Committed {
            head: self.head.clone(),
            next: self.next,
        }
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Fails unless the range lies inside the disk.
    fn check_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check()?;
        let size = self.head.size;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len} bytes at {offset} do not lie within {size} bytes"
            ))),
        }
    }

    /// The name of a new object.
    fn next_object(&mut self) -> ObjectId {
        let number = self.next;
        self.next += 1;
        ObjectId {
            epoch: self.head.epoch,
            nonce: self.head.nonce,
            number,
        }
    }
}

/// Fails unless a change is one of whole sectors.
fn check_aligned(offset: u64, len: u64) -> Result<(), Error> {
    if offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{len} bytes at {offset} are not made of sectors of {SECTOR}"
        )))
    }
}
