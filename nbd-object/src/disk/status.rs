//! The status of blocks: data or holes.

use super::Disk;
use crate::{Error, map::Found};

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
    /// and at least one. Neighbours differ. It comes from the map, and reads no data.
    ///
    /// # Errors
    ///
    /// When the store fails, or has other bytes than were written.
    pub async fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>, Error> {
        let inner = &self.inner;
        inner.state().check_range(offset, len)?;
        let size = inner.block_size as u64;
        let (end, mut at) = (offset + len, offset);
        let mut extents: Vec<Extent> = Vec::new();
        while at < end {
            let (hole, until) = self.run(at / size).await?;
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

    /// Whether a block is a hole, and the end of the run that it begins.
    async fn run(&self, block: u64) -> Result<(bool, u64), Error> {
        let (root, until) = {
            let state = self.inner.state();
            let mut until = u64::MAX;
            for layer in [Some(&state.active), state.frozen.as_deref()]
                .into_iter()
                .flatten()
            {
                let (known, end) = layer.run(block);
                until = until.min(end);
                if let Some(data) = known {
                    return Ok((!data, until));
                }
            }
            (state.root(), until)
        };
        Ok(match self.inner.find(root, block).await? {
            Found::Hole { until: end } => (true, end.min(until)),
            Found::Leaf { page, first } => {
                let index = u8::try_from(block - first).expect("a leaf has 256 slots");
                let empty = page.empty_from(index);
                if empty > 0 {
                    (true, (block + empty).min(until))
                } else {
                    let used = (index..=u8::MAX).take_while(|index| page.empty_from(*index) == 0);
                    (false, (block + used.count() as u64).min(until))
                }
            }
        })
    }
}
