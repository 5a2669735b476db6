//! The asynchronous client with the methods of the blocking one, so that one test is about both.
//!
//! A call waits in the calling thread for its future in a [`Driver`]'s runtime. Two things are
//! missing on purpose: the blocking client's `queue`, of which [`flight`] is the counterpart, and
//! its `Cursor` and `read_at`, which are the traits of `std::io`.

pub(crate) mod flight;
mod negotiation;
mod options;

use nbd_io::{
    client::{Error, StatusRun, tasks},
    runtime::Network,
};
use nbd_proto::{CommandFlags, client::ContextExtents};
use nbd_socket::Reactor;
use std::{
    fmt::Debug,
    ops::{Deref, Range},
};

pub(crate) use negotiation::{Greeted, Negotiation};
pub(crate) use options::ConnectOptions;

/// A runtime, and how foreign threads wait for it.
pub(crate) trait Driver: Clone + Debug + Send + Sync + 'static {
    /// The runtime as the client's type parameter.
    type Network: Network + Reactor<Socket = <Self::Network as Network>::Stream> + Debug;

    fn network(&self) -> Self::Network;

    /// Waits in the context of the runtime.
    fn wait<F: Future>(&self, future: F) -> F::Output;
}

/// An export that was entered. Methods that need not wait are those of the client inside.
#[derive(Clone, Debug)]
pub(crate) struct Client<D: Driver> {
    inner: tasks::Client<D::Network>,
    driver: D,
}

impl<D: Driver> Deref for Client<D> {
    type Target = tasks::Client<D::Network>;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl<D: Driver> Client<D> {
    /// Waits for another future of the client inside.
    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.driver.wait(future)
    }

    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let read = self.inner.read(offset, buf.len());
        buf.copy_from_slice(&self.driver.wait(read)?);
        Ok(())
    }

    pub(crate) fn read_exact_at_with(
        &self,
        buf: &mut [u8],
        offset: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let read = self.inner.read_with(offset, buf.len(), flags);
        buf.copy_from_slice(&self.driver.wait(read)?);
        Ok(())
    }

    pub(crate) fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.driver.wait(self.inner.write(buf.to_vec(), offset))
    }

    pub(crate) fn write_all_at_with(
        &self,
        buf: &[u8],
        offset: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let write = self.inner.write_with(buf.to_vec(), offset, flags);
        self.driver.wait(write)
    }

    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.driver.wait(self.inner.flush())
    }

    pub(crate) fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        self.driver.wait(self.inner.trim(offset, len, flags))
    }

    pub(crate) fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.driver.wait(self.inner.cache(offset, len))
    }

    pub(crate) fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        self.driver
            .wait(self.inner.write_zeroes(offset, len, flags))
    }

    pub(crate) fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.driver
            .wait(self.inner.block_status(offset, len, flags))
    }

    pub(crate) fn block_status_of(
        &self,
        ids: &[u32],
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.driver
            .wait(self.inner.block_status_of(ids, offset, len, flags))
    }

    pub(crate) fn extents(&self, range: Range<u64>) -> Extents<D> {
        Extents {
            inner: self.inner.extents(range),
            driver: self.driver.clone(),
        }
    }

    pub(crate) fn disconnect(&self) -> Result<(), Error> {
        self.driver.wait(self.inner.disconnect())
    }
}

/// The stream of extents as an iterator.
#[derive(Debug)]
pub(crate) struct Extents<D: Driver> {
    inner: tasks::Extents<D::Network>,
    driver: D,
}

impl<D: Driver> Iterator for Extents<D> {
    type Item = Result<StatusRun, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next())
    }
}
