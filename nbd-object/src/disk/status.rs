//! The status of blocks: data or holes.

use super::Disk;
use crate::{
    Error,
    format::Page,
    map::{Found, LEAVES},
};

/// A run of bytes of the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The number of bytes.
    pub len: u64,
    /// Whether they take no space in the store, and read as zeroes.
    pub hole: bool,
}

impl Disk {
    /// The status of bytes from `offset` on: at most `limit` extents of at most `len` bytes in all,
    /// and at least one. Neighbours differ. It comes from the map, reads no data, and ends after 256
    /// leaves of it, which are 4 GiB of data in blocks of 64 KiB.
    ///
    /// # Errors
    ///
    /// When the store fails, or has other bytes than were written.
    pub async fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let inner = &self.inner;
        inner.state().check_range(offset, len)?;
        let size = inner.block_size as u64;
        let (end, mut at) = (offset + len, offset);
        // Where the map is known already, the pages of one leaf are enough.
        let root = inner.state().root();
        if len > size * 256 && inner.pages.find_now(root, at / size).is_none() {
            // Whatever fails here fails below, or is gone because the map has changed.
            let _ = inner.pages.warm(root, at / size..end.div_ceil(size)).await;
        }
        let (mut leaves, mut last) = (0, None);
        let mut extents: Vec<Extent> = Vec::new();
        while at < end {
            let (hole, until, from_leaf) = self.run(at / size).await?;
            let leaf = from_leaf.then_some(at / size / 256);
            if leaf.is_some() && leaf != last {
                (leaves, last) = (leaves + 1, leaf);
            }
            if leaves > LEAVES && !extents.is_empty() {
                break;
            }
            let until = until.saturating_mul(size).min(end);
            let full = extents.len() == limit.max(1);
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len += until - at,
                _ if full => break,
                _ => extents.push(Extent {
                    len: until - at,
                    hole,
                }),
            }
            at = until;
        }
        Ok(extents)
    }

    /// Whether a block is a hole, the end of the run that it begins, and whether a leaf of the map
    /// had to be asked.
    async fn run(&self, block: u64) -> Result<(bool, u64, bool), Error> {
        let mut tries = 0;
        loop {
            let (root, until) = {
                let state = self.inner.state();
                let mut until = u64::MAX;
                for layer in [Some(&state.active), state.frozen.as_ref()]
                    .into_iter()
                    .flatten()
                {
                    let (known, end) = layer.run(block);
                    until = until.min(end);
                    if let Some(data) = known {
                        return Ok((!data, until, false));
                    }
                }
                (state.root(), until)
            };
            match self.inner.find(root, block).await {
                Ok(Found::Hole { until: end }) => return Ok((true, end.min(until), false)),
                Ok(Found::Leaf { page, first }) => {
                    let (hole, end) = run_in_leaf(&page, first, block);
                    return Ok((hole, end.min(until), true));
                }
                Err(error) => self.inner.overtaken(error, root, &mut tries).await?,
            }
        }
    }
}

/// Whether a block is a hole, and the end of the run that it begins in its leaf.
fn run_in_leaf(page: &Page, first: u64, block: u64) -> (bool, u64) {
    let index = u8::try_from(block - first).expect("a leaf has 256 slots");
    let empty = page.empty_from(index);
    if empty > 0 {
        return (true, block + empty);
    }
    let used = (index..=u8::MAX).take_while(|index| page.empty_from(*index) == 0);
    (false, block + used.count() as u64)
}
