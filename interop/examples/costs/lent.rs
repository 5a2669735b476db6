//! Asynchronous exports on Tokio, whose data is lent from a cache.

use crate::{Operation, Result, SPAN, Work, asynchronous::serve_on_tokio};
use bytes::Bytes;
use nbd_io::{AsyncExport, ReadData, server::Server};
use nbd_proto::{Failure, TransmissionFlags};
use std::os::unix::net::UnixListener;

/// Each request is a future that need not wait.
pub(crate) fn futures(work: &Work, listener: UnixListener) -> Result<()> {
    serve_on_tokio(work, listener, Server::single_async(Lent::new(work, false)))
}

/// Reads are answered from a cache, without a future.
pub(crate) fn cache(work: &Work, listener: UnixListener) -> Result<()> {
    serve_on_tokio(work, listener, Server::single_async(Lent::new(work, true)))
}

struct Lent {
    data: Bytes,
    is_hole: bool,
    is_at_hand: bool,
}

impl Lent {
    fn new(work: &Work, is_at_hand: bool) -> Self {
        Self {
            data: vec![7; SPAN].into(),
            is_hole: work.operation == Operation::Hole,
            is_at_hand,
        }
    }

    fn data(&self, offset: u64, len: usize) -> ReadData {
        if self.is_hole {
            return ReadData::zeroes(len);
        }
        let start = usize::try_from(offset).expect("offsets are below the span");
        self.data.slice(start..start + len).into()
    }
}

impl AsyncExport for Lent {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        Ok(self.data(offset, len))
    }

    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        self.is_at_hand.then(|| Ok(self.data(offset, len)))
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), Failure> {
        Ok(())
    }
}
