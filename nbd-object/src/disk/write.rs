//! Changes: to memory, with backpressure.

use super::{Disk, State, check_aligned};
use crate::{Error, changes::Changes, statistics::Counters};
use tokio::sync::oneshot;

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
        self.change(offset, data.len() as u64, |changes, _| {
            changes.write(offset, data)
        })
        .await
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
        self.change(offset, len, |changes, size| changes.zero(offset, len, size))
            .await
    }

    /// Makes the whole blocks among `len` bytes from `offset` on holes, which read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn trim(&self, offset: u64, len: u64) -> Result<(), Error> {
        Counters::count(&self.inner.objects.counters.trims, 1);
        self.change(offset, len, |changes, size| changes.trim(offset, len, size))
            .await
    }

    async fn change(
        &self,
        offset: u64,
        len: u64,
        change: impl FnOnce(&mut Changes, u64),
    ) -> Result<(), Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        loop {
            let room = {
                let mut state = self.inner.state();
                state.check_range(offset, len)?;
                if let Some(room) = self.wait_for_room(&mut state) {
                    room
                } else {
                    let size = state.head.size;
                    change(&mut state.active, size);
                    if state.active.weight() >= self.inner.options.dirty_limit / 2 {
                        self.start_commits(&mut state);
                    }
                    return Ok(());
                }
            };
            room.await.map_err(|_| Error::Aborted)??;
        }
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
