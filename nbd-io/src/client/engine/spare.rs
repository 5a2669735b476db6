//! Memory of long reads that is used again.

use super::Buffer;
use bytes::{Bytes, BytesMut};
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Shorter buffers cost less to allocate than to keep, in bytes. Memory of longer ones often goes
/// back to the system, which makes it anew page by page: that takes longer than to read into it.
const SHORT: usize = 64 << 10;

/// Memory that is kept, in bytes.
const KEPT: usize = 2 << 20;

/// Buffers of long reads whose data was dropped, for the next ones, which so find their memory in the
/// cache of the processor.
#[derive(Debug)]
pub struct Spare<B>(Mutex<Vec<B>>);

impl<B> Default for Spare<B> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<B: Buffer> Spare<B> {
    fn lock(&self) -> MutexGuard<'_, Vec<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of this length, with anything in it.
    pub(super) fn take(&self, len: usize) -> Option<B> {
        if len < SHORT {
            return None;
        }
        let mut buffers = self.lock();
        let at = buffers
            .iter_mut()
            .rposition(|buffer| buffer.as_mut().len() == len)?;
        Some(buffers.remove(at))
    }

    pub(super) fn keep(&self, buffer: B) {
        let mut buffers = self.lock();
        buffers.push(buffer);
        let mut len = 0;
        let lens = buffers.iter_mut().rev().map(|buffer| buffer.as_mut().len());
        let kept = lens
            .take_while(|more| {
                len += more;
                len <= KEPT
            })
            .count();
        let surplus = buffers.len() - kept;
        buffers.drain(..surplus); // those that were kept longest
    }

    /// Frees all of them.
    pub fn clear(&self) {
        let buffers = mem::take(&mut *self.lock());
        drop(buffers);
    }
}

impl Spare<BytesMut> {
    /// The data of a read. A long one comes back to be used again when all of it is dropped.
    #[must_use]
    pub fn lend(self: &Arc<Self>, data: BytesMut) -> Bytes {
        if data.len() < SHORT {
            return data.freeze();
        }
        let spare = Arc::clone(self);
        Bytes::from_owner(Lent { data, spare })
    }
}

struct Lent {
    data: BytesMut,
    spare: Arc<Spare<BytesMut>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.keep(mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_dropped_data_is_used_again_by_reads_of_the_same_length() {
        let spare = Arc::new(Spare::default());
        let data = spare.lend(BytesMut::zeroed(SHORT));
        let (place, part) = (data.as_ptr(), data.slice(1..2));
        drop(data);
        assert!(spare.take(SHORT).is_none(), "a part of it is still in use");
        drop(part);
        assert!(spare.take(SHORT + 1).is_none());
        let again = spare.take(SHORT);
        assert_eq!(again.map(|buffer| buffer.as_ptr()), Some(place));
        assert!(spare.take(SHORT).is_none());
    }

    #[test]
    fn no_more_is_kept_than_is_sensible() {
        let spare = Arc::new(Spare::default());
        for len in [SHORT, KEPT / 2, KEPT, KEPT / 2, KEPT / 2] {
            drop(spare.lend(BytesMut::zeroed(len)));
        }
        drop(spare.lend(BytesMut::zeroed(SHORT - 1)));
        let lens =
            |spare: &Spare<BytesMut>| -> Vec<_> { spare.lock().iter().map(|b| b.len()).collect() };
        assert_eq!(lens(&spare), [KEPT / 2, KEPT / 2]);
        drop(spare.lend(BytesMut::zeroed(KEPT + 1)));
        assert_eq!(lens(&spare), [0; 0]);
        drop(spare.lend(BytesMut::zeroed(SHORT)));
        spare.clear();
        assert!(spare.take(SHORT).is_none());
    }
}
