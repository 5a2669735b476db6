//! A disk as an asynchronous export.

use crate::{Disk, Error, format::SECTOR};
use bytes::Bytes;
use nbd_io::{AsyncExport, ReadData, ZeroMode};
use nbd_proto::{
    BlockSizes, Errno, Failure, TransmissionFlags,
    meta::{Allocation, Extent},
};

/// The longest request, in bytes, which is that of the protocol without negotiation.
const LONGEST: u32 = 32 << 20;

/// Limit of extents of one answer.
const EXTENTS: usize = 4096;

/// The client gets the errno alone, and a server logs the text.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let errno = match &error {
            Error::ReadOnly => Errno::Perm,
            Error::Invalid(_) => Errno::Inval,
            _ => Errno::Io,
        };
        Self {
            message: error.to_string().into(),
            ..errno.into()
        }
    }
}

impl AsyncExport for Disk {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        Ok(Self::read(self, offset, len).await?)
    }

    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        Self::read_now(self, offset, len).map(|result| result.map_err(Failure::from))
    }

    /// One commit covers the writes of all connections.
    fn flags(&self) -> TransmissionFlags {
        let both = TransmissionFlags::CAN_MULTI_CONN | TransmissionFlags::SEND_CACHE;
        if self.is_read_only() {
            return both | TransmissionFlags::READ_ONLY;
        }
        both | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
    }

    fn block_sizes(&self) -> BlockSizes {
        let minimum = u32::try_from(SECTOR).expect("a sector is small");
        BlockSizes::new(minimum, self.block_size(), LONGEST)
            .expect("these are powers of two in order")
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        Self::write(self, offset, &data).await?;
        self.flush_if(fua).await
    }

    /// There is no allocation that holes could lack: the store has room or has none.
    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        Self::write_zeroes(self, offset, len).await?;
        self.flush_if(mode.fua).await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        Self::trim(self, offset, len).await?;
        self.flush_if(fua).await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        Ok(Self::cache(self, offset, len).await?)
    }

    async fn flush(&self) -> Result<(), Failure> {
        Ok(Self::flush(self).await?)
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        let extents = self.extents(offset, len, EXTENTS).await?;
        let status = |hole| {
            if hole {
                Allocation::HOLE | Allocation::ZERO
            } else {
                0
            }
        };
        Ok(extents
            .into_iter()
            .map(|extent| Extent {
                len: extent.len,
                status: status(extent.hole),
            })
            .collect())
    }
}

impl Disk {
    async fn flush_if(&self, fua: bool) -> Result<(), Failure> {
        if fua {
            Ok(Self::flush(self).await?)
        } else {
            Ok(())
        }
    }
}
