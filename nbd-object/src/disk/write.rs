//! Changes: to memory, with backpressure.

use super::{Disk, State, check_aligned};
use crate::{Error, changes::split, statistics::Counters};
use tokio::sync::oneshot;

/// A longer write waits for memory in parts, which end at multiples of this, so that no more than the limit
/// is taken.
const PART: usize = 1 << 20;

impl Disk {
    /// Writes `data` at `offset`, both multiples of 512 bytes, to memory. Reads see it at once.
    ///
    /// It costs no request. A part of a block is completed by the stored rest when it is committed.
    /// While [`dirty_limit`](crate::Options::dirty_limit) bytes wait to be committed, this waits.
    ///
    /// # Errors
    ///
    /// When there is no room in memory because a commit has failed.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        check_aligned(offset, data.len() as u64)?;
        let counters = &self.inner.objects.counters;
        Counters::count(&counters.writes, 1);
        Counters::count(&counters.bytes_written, data.len() as u64);
        let len = data.len() as u64;
        self.check_change(&self.inner.state(), offset, len)?;
        let (mut at, mut rest) = (offset, data);
        for (_, part) in split(PART, offset, len) {
            let (part, later) = rest.split_at(part.len());
            let len = part.len() as u64;
            self.change(at, len, |state| state.active.write(at, part))
                .await?;
            (at, rest) = (at + len, later);
        }
        Ok(())
    }

    /// Makes `len` bytes from `offset` on zeroes, both multiples of 512. Whole blocks become holes.
    ///
    /// However long the range is, it costs no more than two parts of blocks and a run.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        check_aligned(offset, len)?;
        Counters::count(&self.inner.objects.counters.trims, 1);
        self.change(offset, len, |state| {
            let size = state.head.size;
            state.active.zero(offset, len, size);
        })
        .await
    }

    /// Makes the whole blocks among `len` bytes from `offset` on holes, which read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn trim(&self, offset: u64, len: u64) -> Result<(), Error> {
        Counters::count(&self.inner.objects.counters.trims, 1);
        self.change(offset, len, |state| {
            let size = state.head.size;
            state.active.trim(offset, len, size);
        })
        .await
    }

    /// Has a change made when there is room for it.
    pub(crate) async fn change(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut State),
    ) -> Result<(), Error> {
        loop {
            let room = {
                let mut state = self.inner.state();
                self.check_change(&state, offset, len)?;
                if let Some(room) = self.wait_for_room(&mut state) {
                    room
                } else {
                    change(&mut state);
                    if state.active.weight() >= self.inner.options.dirty_limit / 2 {
                        self.start_commits(&mut state);
                    }
                    return Ok(());
                }
            };
            room.await.map_err(|_| Error::Aborted)??;
        }
    }

    fn check_change(&self, state: &State, offset: u64, len: u64) -> Result<(), Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        state.check_range(offset, len)
    }

    /// Joins the writes that wait, if there is no room.
    fn wait_for_room(&self, state: &mut State) -> Option<oneshot::Receiver<Result<(), Error>>> {
        if state.dirty() < self.inner.options.dirty_limit {
            return None;
        }
        self.start_commits(state);
        let (sender, receiver) = oneshot::channel();
        state.waiting.push(sender);
        Some(receiver)
    }
}

impl State {
    /// Whether memory has something of a block that the store has not.
    pub(crate) fn has_changes_of(&self, block: u64) -> bool {
        let layers = [Some(&self.active), self.frozen.as_ref()];
        layers
            .into_iter()
            .flatten()
            .any(|layer| layer.run(block).0.is_some())
    }

    /// Has a block written anew, as it is.
    pub(crate) fn rewrite(&mut self, offset: u64, block: &[u8]) {
        self.active.write(offset, block);
    }
}
