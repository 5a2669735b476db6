//! The storage behind an export whose calls are futures.

use super::{MetaContext, ReadData, ZeroMode, is_base_allocation, unknown_context};
use bytes::Bytes;
use nbd_proto::{BlockSizes, ContextName, Errno, Failure, TransmissionFlags, meta::Extent};
use std::future::{Ready, ready};

/// The storage behind an export, where a call is a future: an object store, another server, or
/// anything else that is waited for without a thread.
///
/// It promises and is promised the same as an [`Export`](crate::Export). A server polls the futures
/// in the task of their connection, as many at once as it takes requests of the client, so that 64
/// reads of 20 ms each take 20 ms; an [`Export`](crate::Export) takes up a thread for each of them. A
/// server offers it by [`Offer::asynchronous`](crate::Offer::asynchronous) or
/// [`NamedExports::with_async`](crate::NamedExports::with_async).
///
/// ```
/// use nbd_io::{AsyncExport, NamedExports, ReadData};
/// use nbd_proto::Failure;
///
/// /// Every byte is the number of its block, as if that were far away.
/// struct Blocks;
///
/// impl AsyncExport for Blocks {
///     fn size(&self) -> u64 {
///         1 << 20
///     }
///
///     async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
///         // Here it would be awaited.
///         let block = |at: u64| (at / 4096).to_le_bytes()[0];
///         let bytes: Vec<u8> = (offset..).take(len).map(block).collect();
///         Ok(bytes.into())
///     }
/// }
///
/// let exports = NamedExports::single_async(Blocks);
/// # drop(exports);
/// ```
///
/// # Limits
///
/// On a connection as many requests are carried out at once as the client has in flight, up to
/// [`Limits::accepted`](nbd_proto::server::Limits::accepted), and as long as their payloads are within
/// [`Server::in_flight`](crate::server::Server::in_flight).
/// [`Server::concurrency`](crate::server::Server::concurrency) is a number of threads, and does not
/// count here.
///
/// # Runtimes
///
/// A future that needs a runtime's event loop needs it on any server. Futures of Tokio find theirs in
/// the task of a Tokio server. On a server of another runtime, or on threads, the export keeps a
/// Tokio `Handle`: it enters that (`Handle::enter`) where it makes a socket or a timer, or has a task
/// of that runtime do the work and awaits the task. Timers and sockets of `async-io` work anywhere.
///
/// A future must not block: it holds up its connection, and on most runtimes others.
///
/// # Cancel safety
///
/// A future is dropped when its connection ends before it is done: the client is gone, its connection
/// broke, or the server stops and its [grace](crate::server::Server::grace) is over. No client waits
/// for that reply. A write may then be carried out in part or not at all, as when a program crashes
/// in the middle of it. An export whose state does not allow that has the work done by a task of its
/// own, which goes on, and awaits the task here.
pub trait AsyncExport: Send + Sync + 'static {
    /// The size in bytes, which stays the same until [`refresh`](Self::refresh) is called.
    fn size(&self) -> u64;

    /// Takes note of changes from outside. A server awaits this before it describes the export to a
    /// client; the methods that describe it, which are those without arguments, never wait.
    ///
    /// Does nothing, unless it is implemented.
    fn refresh(&self) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// The `len` bytes from `offset` on, neither more nor less.
    ///
    /// # Errors
    ///
    /// When not all of them could be read.
    fn read(
        &self,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = Result<ReadData, Failure>> + Send;

    /// Like [`read`](Self::read), if that can be done without waiting; `None` if it would wait. A
    /// server asks this first, so that data of a cache costs no future.
    ///
    /// Unless it is implemented, there is no such data.
    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        let _ = (offset, len);
        None
    }

    /// The export's capabilities, as in [`Export::flags`](crate::Export::flags).
    ///
    /// Read-only, unless it is implemented.
    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::READ_ONLY
    }

    /// The block size constraints, in bytes. The server may lower the maximum to its own limit.
    ///
    /// [`BlockSizes::UNKNOWN`], unless it is implemented.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::UNKNOWN
    }

    /// A text for people that describes this export; none if it is empty.
    fn description(&self) -> &str {
        ""
    }

    /// Writes `data` at `offset`; with `fua`, it is done only when that is on stable storage.
    ///
    /// The data is shared memory, to be kept or handed on without a copy. It can be a part of a
    /// buffer up to four times as long, so that a cache that keeps it for long had better copy it.
    ///
    /// # Errors
    ///
    /// [`Errno::Perm`], unless it is implemented; [`Errno::NoSpc`] where there is no room.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (offset, data, fua);
        failed(Errno::Perm)
    }

    /// Makes `len` bytes from `offset` on read as zeroes, as in
    /// [`Export::write_zeroes`](crate::Export::write_zeroes). `len` may be the whole export.
    ///
    /// # Errors
    ///
    /// With [`ZeroMode::fast`], [`Errno::NotSup`] if this would not be faster than to write as
    /// many zeroes; it is then returned at once, and nothing is changed. Without it, never.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (offset, len, mode);
        failed(Errno::Inval)
    }

    /// Hints that `len` bytes from `offset` on are not needed any more, as in
    /// [`Export::trim`](crate::Export::trim). `len` may be the whole export.
    ///
    /// # Errors
    ///
    /// When the storage failed, not when it cannot free the range.
    fn trim(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (offset, len, fua);
        failed(Errno::Inval)
    }

    /// Hints that `len` bytes from `offset` on are going to be read soon. `len` may be the whole
    /// export.
    ///
    /// # Errors
    ///
    /// When the storage failed, not when there is no cache.
    fn cache(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (offset, len);
        failed(Errno::Inval)
    }

    /// Brings everything that was written, zeroed or trimmed by calls that are done onto stable
    /// storage. Calls that are in flight at the same time need not be covered.
    ///
    /// # Errors
    ///
    /// When it could not be: the client then has to assume that it is lost.
    fn flush(&self) -> impl Future<Output = Result<(), Failure>> + Send {
        failed(Errno::Inval)
    }

    /// The status in `base:allocation` from `offset` on: extents that follow each other, none of
    /// which is empty, of `len` bytes together or less, with the status of an [`Allocation`].
    ///
    /// Neighbours may have the same status. Some thousand extents are enough: the client asks again
    /// for the rest. When in doubt, bytes are data: all are, unless this is implemented.
    ///
    /// [`Allocation`]: nbd_proto::meta::Allocation
    ///
    /// # Errors
    ///
    /// When it could not be found out.
    fn allocation(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, Failure>> + Send {
        let _ = offset;
        ready(Ok(vec![Extent { len, status: 0 }]))
    }

    /// The meta contexts that a client can select, each once, wildcards not among them.
    ///
    /// `base:allocation` alone, unless it is implemented.
    fn contexts(&self) -> Vec<MetaContext> {
        vec![MetaContext::new(ContextName::base_allocation())]
    }

    /// The status in any context, as [`allocation`](Self::allocation) has it for one.
    ///
    /// Unless it is implemented, this knows `base:allocation`.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`] for a context that [`contexts`](Self::contexts) does not list, or the error
    /// that kept the export from finding it out.
    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, Failure>> + Send {
        async move {
            if !is_base_allocation(context) {
                return Err(unknown_context(context));
            }
            self.allocation(offset, len).await
        }
    }
}

fn failed(errno: Errno) -> Ready<Result<(), Failure>> {
    ready(Err(errno.into()))
}
