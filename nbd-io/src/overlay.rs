//! Copy on write.

mod changed;
mod commit;
mod layer;

use crate::{Content, Export, Memory, ZeroMode, client::index, export::check_range};
use changed::Changed;
pub use layer::OverlayError;
use layer::{common, usable};
use nbd_proto::{
    BlockSizes, Errno, Failure, TransmissionFlags,
    meta::{Allocation, Extent},
};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// Number of locks that the blocks share. Neighbouring blocks have different ones.
const LOCKS: u64 = 64;

/// An export that can be written to over one that stays as it is: *copy on write*.
///
/// Writes go to a *layer*, which is an export, too: memory, or a sparse [`File`](crate::File), or
/// anything else that can be written to and is at least as large. Reads come from the layer where
/// bytes were changed, and from the base elsewhere. The changed blocks, of
/// [`block_size`](Self::block_size) each, are noted in memory. So changes do not outlive the
/// overlay, wherever the layer is, until they are [committed](Self::commit).
///
/// The base is only read, and must not be changed by others meanwhile. The layer may contain
/// anything at first, and belongs to the overlay.
///
/// ```
/// use nbd_io::{Export, Memory, Overlay};
/// use std::sync::Arc;
///
/// let golden = Arc::new(Memory::new(1 << 30));
/// let trial = Overlay::in_memory(golden.clone());
/// trial.write(4096, b"hello", false)?;
/// assert_eq!(trial.changed(), trial.block_size().into());
///
/// let mut buf = [0; 5];
/// golden.read(4096, &mut buf)?;
/// assert_eq!(&buf, &[0; 5]);
///
/// trial.commit()?;
/// golden.read(4096, &mut buf)?;
/// assert_eq!((&buf, trial.changed()), (b"hello", 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Cost
///
/// The first write to a part of a block copies the rest of that block from the base. Blocks that are
/// overwritten as a whole are not read. Beside the layer, an overlay needs some 40 bytes for each run of
/// changed blocks. [`with_limit`](Self::with_limit) bounds how much can be changed; without it, the layer
/// does.
///
/// Any number of threads can use it at once. While parts of a block are copied, other first writes to
/// that block wait; nothing else does. While changes are [committed](Self::commit) or
/// [discarded](Self::discard), everything waits.
///
/// # What it offers
///
/// Flushes, FUA, trims, zeroes and fast zeroes are offered if the layer does. A trim has an effect only
/// on blocks that were changed before. A zero that is to be fast and begins or ends inside of a
/// block that was not changed has that copied. There is the meta context `base:allocation`: the
/// status in the layer where bytes were changed, and the status in the base elsewhere. Zeroes of
/// the base are reported as a hole, since a write to it needs room in the layer.
pub struct Overlay {
    base: Arc<dyn Export>,
    layer: Arc<dyn Export>,
    size: u64,
    block: u32,
    block_sizes: BlockSizes,
    /// Limit of changed blocks.
    limit: u64,
    changed: RwLock<Changed>,
    /// One is held by the thread that makes a block a changed one.
    locks: Box<[Mutex<()>]>,
    /// Held alone by the thread that makes blocks unchanged ones.
    gate: RwLock<()>,
}

/// The places where bytes of an overlay are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Base,
    Layer,
}

impl Overlay {
    /// The size of a block, in bytes, unless another one is asked for.
    pub const BLOCK: u32 = 64 << 10;

    /// Takes the changes of `base` in memory, which is bounded by the size of the base, and by
    /// [`with_limit`](Self::with_limit).
    #[must_use]
    pub fn in_memory(base: Arc<dyn Export>) -> Self {
        let sizes = base.block_sizes();
        let layer = Memory::new(base.size()).with_block_sizes(sizes);
        let block = Self::BLOCK
            .max(sizes.minimum())
            .min(usable(sizes.maximum()));
        Self::over(base, Arc::new(layer), block, sizes)
    }

    /// Takes the changes of `base` in `layer`.
    ///
    /// # Errors
    ///
    /// When the layer is read-only or smaller than the base, or the block sizes of both do not go
    /// together.
    pub fn new(base: Arc<dyn Export>, layer: Arc<dyn Export>) -> Result<Self, OverlayError> {
        let sizes = common(&*base, &*layer)?;
        let block = Self::BLOCK
            .max(sizes.minimum())
            .min(usable(sizes.maximum()));
        Self::with_blocks(base, layer, block)
    }

    /// Like [`new`](Self::new), with blocks of this many bytes: small ones waste less room where small
    /// pieces are changed here and there, large ones need less memory.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and when `block` is no power of two or cannot be read in one piece.
    pub fn with_blocks(
        base: Arc<dyn Export>,
        layer: Arc<dyn Export>,
        block: u32,
    ) -> Result<Self, OverlayError> {
        let sizes = common(&*base, &*layer)?;
        let (minimum, maximum) = (sizes.minimum(), sizes.maximum());
        if !block.is_power_of_two() || block < minimum || block > maximum {
            return Err(OverlayError::BlockSize {
                block,
                minimum,
                maximum,
            });
        }
        if layer.size() < base.size() {
            return Err(OverlayError::TooSmall {
                layer: layer.size(),
                base: base.size(),
            });
        }
        if layer.flags().contains(TransmissionFlags::READ_ONLY) {
            return Err(OverlayError::ReadOnly);
        }
        Ok(Self::over(base, layer, block, sizes))
    }

    fn over(
        base: Arc<dyn Export>,
        layer: Arc<dyn Export>,
        block: u32,
        block_sizes: BlockSizes,
    ) -> Self {
        Self {
            size: base.size(),
            base,
            layer,
            block,
            block_sizes,
            limit: u64::MAX,
            changed: RwLock::default(),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            gate: RwLock::default(),
        }
    }

    /// Lets no more than this many bytes be changed at a time, in whole blocks. A write that needs more
    /// fails with [`Errno::NoSpc`].
    #[must_use]
    pub fn with_limit(mut self, bytes: u64) -> Self {
        self.limit = bytes / u64::from(self.block);
        self
    }

    /// Size in bytes of a block, which is copied and noted as a whole.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.block
    }

    /// Size of all changes, in bytes of whole blocks.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.read_changed().count() * u64::from(self.block)
    }

    /// The bytes of blocks, as far as there are.
    fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        let block = u64::from(self.block);
        blocks.start * block..blocks.end.saturating_mul(block).min(self.size)
    }

    /// The blocks that a range touches.
    fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let block = u64::from(self.block);
        range.start / block..range.end.div_ceil(block)
    }

    /// The place of the first bytes of a range, and their number.
    fn run(&self, range: &Range<u64>) -> (Place, u64) {
        let blocks = self.blocks(range);
        let (is_changed, run) = self.read_changed().run(&blocks);
        let end = self.bytes(&(blocks.start..run)).end.min(range.end);
        let place = if is_changed {
            Place::Layer
        } else {
            Place::Base
        };
        (place, end - range.start)
    }

    fn export(&self, place: Place) -> &dyn Export {
        match place {
            Place::Base => &*self.base,
            Place::Layer => &*self.layer,
        }
    }

    /// Calls something for each part of a range that is in one of both exports.
    fn each_run(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(Place, Range<u64>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        check_range(self.size, offset, len, Errno::Inval)?;
        let mut rest = offset..offset + len;
        while !rest.is_empty() {
            let (place, len) = self.run(&rest);
            each(place, rest.start..rest.start + len)?;
            rest.start += len;
        }
        Ok(())
    }

    /// Changes a range by `write`, which writes all of it to the layer. Copies the rest of the same
    /// blocks, if that is still in the base.
    fn change(
        &self,
        offset: u64,
        len: u64,
        write: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        check_range(self.size, offset, len, Errno::NoSpc)?;
        if len == 0 {
            return Ok(());
        }
        let range = offset..offset + len;
        let blocks = self.blocks(&range);
        let _open = self.open_gate();
        // The usual case: nothing is copied any more, and nothing is waited for.
        if self.read_changed().has_all(&blocks) {
            return write();
        }
        let _locks = self.lock(&blocks);
        let missing = self.write_changed().reserve(&blocks, self.limit);
        let Some(missing) = missing else {
            let limit = self.limit.saturating_mul(self.block.into());
            return Err(Failure {
                message: format!("no more than {limit} bytes can be changed").into(),
                ..Errno::NoSpc.into()
            });
        };
        let done = self.copy_beside(&range, &blocks).and_then(|()| write());
        let mut changed = self.write_changed();
        changed.unreserve(missing);
        done?;
        changed.add(blocks);
        Ok(())
    }

    /// Copies the parts of the first and the last block that are outside a range.
    fn copy_beside(&self, range: &Range<u64>, blocks: &Range<u64>) -> Result<(), Failure> {
        let around = self.bytes(blocks);
        let sides = [
            (blocks.start, around.start..range.start),
            (blocks.end - 1, range.end..around.end),
        ];
        for (block, side) in sides {
            if side.is_empty() || self.read_changed().has_all(&(block..block + 1)) {
                continue;
            }
            let mut copy = buffer(side.end - side.start)?;
            self.base.read(side.start, &mut copy)?;
            self.layer.write(side.start, &copy, false)?;
        }
        Ok(())
    }

    /// Waits until no other thread makes one of these blocks a changed one.
    fn lock(&self, blocks: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let is_used = |lock: &u64| {
            let first = (lock + LOCKS - blocks.start % LOCKS) % LOCKS;
            first < blocks.end - blocks.start
        };
        // In the same order by all, so that no two wait for each other.
        let used = (0..LOCKS).filter(is_used);
        used.map(|lock| {
            let lock = &self.locks[index(lock)];
            lock.lock().unwrap_or_else(PoisonError::into_inner)
        })
        .collect()
    }

    // A poisoned lock is safe to take: the state is complete wherever something could panic.
    fn read_changed(&self) -> RwLockReadGuard<'_, Changed> {
        self.changed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_changed(&self) -> RwLockWriteGuard<'_, Changed> {
        self.changed.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(
        &self,
        offset: u64,
        len: u64,
        ask: fn(&dyn Export, u64, u64) -> Result<Extent, Failure>,
    ) -> Result<Extent, Failure> {
        check_range(self.size, offset, len, Errno::Inval)?;
        let _open = self.open_gate();
        let (place, len) = self.run(&(offset..offset + len));
        let mut found = ask(self.export(place), offset, len)?;
        if place == Place::Base && Allocation::new(found.status).is_zero() {
            found.status |= Allocation::HOLE;
        }
        Ok(found)
    }
}

impl Export for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let _open = self.open_gate();
        let len = buf.len() as u64;
        self.each_run(offset, len, |place, Range { start, end }| {
            let buf = &mut buf[index(start - offset)..index(end - offset)];
            self.export(place).read(start, buf)
        })
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        let len = buf.len() as u64;
        check_range(self.size, offset, len, Errno::Inval)?;
        let open = self.open_gate();
        let (place, run) = self.run(&(offset..offset + len));
        if run == len {
            return self.export(place).read_unless_zero(offset, buf);
        }
        drop(open);
        self.read(offset, buf).map(|()| Content::Data)
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        let len = buf.len() as u64;
        if let Err(failure) = check_range(self.size, offset, len, Errno::Inval) {
            return Some(Err(failure));
        }
        // A commit that has closed it may take long.
        let _open = self.gate.try_read().ok()?;
        let mut rest = offset..offset + len;
        while !rest.is_empty() {
            let (place, len) = self.run(&rest);
            let start = index(rest.start - offset);
            let buf = &mut buf[start..start + index(len)];
            let read = self.export(place).read_now(rest.start, buf)?;
            if read.is_err() {
                return Some(read);
            }
            rest.start += len;
        }
        Some(Ok(()))
    }

    fn flags(&self) -> TransmissionFlags {
        const LAYER: TransmissionFlags = TransmissionFlags::SEND_FLUSH
            .with(TransmissionFlags::SEND_FUA)
            .with(TransmissionFlags::SEND_TRIM)
            .with(TransmissionFlags::SEND_WRITE_ZEROES)
            .with(TransmissionFlags::SEND_FAST_ZERO)
            .with(TransmissionFlags::CAN_MULTI_CONN);
        const EITHER: TransmissionFlags =
            TransmissionFlags::SEND_CACHE.with(TransmissionFlags::ROTATIONAL);
        let (base, layer) = (self.base.flags().bits(), self.layer.flags().bits());
        TransmissionFlags::from_bits(layer & LAYER.bits() | (base | layer) & EITHER.bits())
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn description(&self) -> &str {
        self.base.description()
    }

    fn may_block(&self) -> bool {
        self.base.may_block() || self.layer.may_block()
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let len = data.len() as u64;
        self.change(offset, len, || self.layer.write(offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.change(offset, len, || self.layer.write_zeroes(offset, len, mode))
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        let _open = self.open_gate();
        self.each_run(offset, len, |place, Range { start, end }| match place {
            Place::Base => Ok(()),
            Place::Layer => self.layer.trim(start, end - start, fua),
        })
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let _open = self.open_gate();
        self.each_run(offset, len, |place, Range { start, end }| {
            let export = self.export(place);
            if export.flags().contains(TransmissionFlags::SEND_CACHE) {
                export.cache(start, end - start)
            } else {
                Ok(())
            }
        })
    }

    fn flush(&self) -> Result<(), Failure> {
        self.layer.flush()
    }

    fn finds_zeroes(&self) -> bool {
        self.base.finds_zeroes() || self.layer.finds_zeroes()
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.find(offset, len, |export, offset, len| {
            export.allocation(offset, len)
        })
    }

    fn quick_allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.find(offset, len, |export, offset, len| {
            export.quick_allocation(offset, len)
        })
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("base", &self.base)
            .field("layer", &self.layer)
            .field("changed", &self.changed())
            .finish_non_exhaustive()
    }
}

fn buffer(len: u64) -> Result<Vec<u8>, Failure> {
    let mut buf = Vec::new();
    if buf.try_reserve_exact(index(len)).is_err() {
        return Err(Failure {
            message: format!("there is no memory to copy {len} bytes").into(),
            ..Errno::NoMem.into()
        });
    }
    buf.resize(index(len), 0);
    Ok(buf)
}

#[cfg(test)]
mod tests;
