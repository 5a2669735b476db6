//! The end of changes.

use super::{Overlay, buffer};
use crate::{ZeroMode, client::index};
use nbd_proto::{Errno, Failure, TransmissionFlags, meta::Allocation};
use std::{mem, ops::Range};

/// Number of bytes that are copied at a time.
const PIECE: u32 = 1 << 20;

impl Overlay {
    /// Writes all changes to the base, flushes that, and forgets them. Returns how many bytes were
    /// written or zeroed. All other calls wait meanwhile.
    ///
    /// # Errors
    ///
    /// When the base is read-only ([`Errno::Perm`]), or a part of it cannot be written. Some changes
    /// may be in the base then. Readers of the overlay find the same as before, and this can be
    /// called again.
    pub fn commit(&self) -> Result<u64, Failure> {
        let _alone = self.close_gate();
        let flags = self.base.flags();
        if flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(Failure {
                message: "the base is read-only".into(),
                ..Errno::Perm.into()
            });
        }
        let mut committed = 0;
        for blocks in self.read_changed().iter() {
            let range = self.bytes(&blocks);
            committed += range.end - range.start;
            self.commit_run(range, flags)?;
        }
        if flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.base.flush()?;
        }
        self.forget();
        Ok(committed)
    }

    /// Forgets all changes. All other calls wait meanwhile.
    pub fn discard(&self) {
        let _alone = self.close_gate();
        self.forget();
    }

    fn forget(&self) {
        let forgotten = mem::take(&mut *self.write_changed());
        if self.layer.flags().contains(TransmissionFlags::SEND_TRIM) {
            for blocks in forgotten.iter() {
                let Range { start, end } = self.bytes(&blocks);
                // Room that cannot be given back is of no importance.
                let _ = self.layer.trim(start, end - start, false);
            }
        }
    }

    fn commit_run(&self, range: Range<u64>, flags: TransmissionFlags) -> Result<(), Failure> {
        let zeroes = flags.contains(TransmissionFlags::SEND_WRITE_ZEROES);
        let piece = u64::from(self.block_sizes.maximum().min(PIECE).max(self.block));
        let mut buf = buffer(piece.min(range.end - range.start))?;
        let Range { start: mut at, end } = range;
        while at < end {
            let found = self.layer.allocation(at, end - at)?;
            // The layer may have smaller blocks than the base.
            let len = found.len - found.len % u64::from(self.block_sizes.minimum());
            if zeroes && len > 0 && Allocation::new(found.status).is_zero() {
                self.base.write_zeroes(at, len, ZeroMode::default())?;
                at += len;
                continue;
            }
            let len = len.max(self.block.into()).min(end - at);
            let buf = &mut buf[..index(len.min(piece))];
            self.layer.read(at, buf)?;
            self.base.write(at, buf, false)?;
            at += buf.len() as u64;
        }
        Ok(())
    }
}
