//! The storage behind an export: the interface by which a server uses it.

mod any;
mod asynchronous;
mod forward;
mod forward_async;
mod read_data;
mod values;

pub use any::AnyExport;
pub(crate) use any::Kind;
pub use asynchronous::AsyncExport;
pub use read_data::{Piece, ReadData};
pub use values::{MetaContext, ZeroMode};

use nbd_proto::{
    BlockSizes, ContextName, Errno, ExportInfo, Failure, MAX_STRING, Text, TransmissionFlags,
    meta::Extent,
};
use std::{fmt, ops::ControlFlow};

/// Limit of calls of [`Export::allocation`] by the provided [`Export::block_status`].
const MAX_QUERIES: usize = 4096;

/// The finding of [`Export::read_unless_zero`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes are in the buffer.
    Data,
    /// All of them are zero, and the buffer holds anything.
    Zeroes,
}

/// The storage behind an export: a file, memory, or another export seen through a wrapper.
///
/// Calls are positioned, take `&self`, and come from several threads at once, for requests that
/// are carried out in any order. The result of two overlapping calls in flight at the same time is
/// up to the back end. Effects of a call that has returned are seen by every later one, also from
/// another connection.
///
/// The smallest back end has [`size`](Self::size) and [`read`](Self::read), and is read-only.
/// It announces its other abilities in [`flags`](Self::flags); a method whose flag is not set is
/// not called, and fails with [`Errno::Inval`] unless it is implemented.
///
/// # What the caller promises
///
/// - Every range lies inside the export: `offset + len <= size()`, without overflow.
/// - Ranges are not empty: the answer to a request of no bytes needs no back end.
/// - Ranges are multiples of the minimum block size, except for the tail of an export whose size
///   is not.
/// - Nothing that writes is called on a read-only export.
///
/// A back end may give any result where the caller breaks a promise, but must not panic, nor touch
/// bytes outside the export.
///
/// # Errors
///
/// Every call fails with a [`Failure`]: the [`Errno`] that the client gets, a text for people,
/// and, where it is known, the offset. [`failure`](crate::failure) makes one of an I/O error.
/// [`Errno::NotSup`] is only for fast zeroes, and [`Errno::Overflow`] only for the server itself.
/// A write that failed may have been carried out in part.
///
/// # Blocking
///
/// The methods are synchronous. An asynchronous server calls them on a thread that may block,
/// unless [`may_block`](Self::may_block) says that they never wait for anything slow. Storage that
/// is asynchronous itself is better an [`AsyncExport`], for which no thread waits.
///
/// So a call that waits takes up a thread for as long, and how many there are decides on throughput.
/// On a connection `n` requests are carried out at once, where `n` is the smallest of
///
/// - the number of requests that the client has in flight;
/// - [`Limits::accepted`](nbd_proto::server::Limits::accepted), 64 unless the server says otherwise: how many
///   are taken before one has been answered;
/// - [`Server::in_flight`](crate::server::Server::in_flight), 32 MiB, divided by the length of the
///   payloads: 32 requests of 1 MiB;
/// - [`Server::concurrency`](crate::server::Server::concurrency), 16.
///
/// If each takes the time `t`, a connection gets `n / t` requests per second. `c` connections get
/// `c * n / t`, as long as `c * n` is no more than the number of threads that may block: 512 on Tokio
/// (`max_blocking_threads`), which the whole program shares, 500 on async-std, and 4,096 in
/// `nbd-blocking`. Beyond that requests wait for a thread.
///
/// | 4 KiB reads that take 20 ms | `n` | at most | measured |
/// | --- | --- | --- | --- |
/// | one connection, 64 in flight | 16 | 800/s | 756/s |
/// | one connection, 8 in flight | 8 | 400/s | 375/s |
/// | one connection, `concurrency(64)`, 64 in flight | 64 | 3,200/s | 2,884/s |
/// | four connections, `concurrency(64)`, 64 in flight | 64 | 12,800/s | 10,347/s |
/// | eight, `concurrency(128)` and `accepted` 128, 128 in flight | 128 | 51,200/s, but 25,600/s with 512 threads | 21,423/s |
///
/// (On Tokio with one thread for its tasks, two processors that others used as well, not optimized.) For
/// storage that takes 20 ms and is to have 10,000 requests per second, 200 have to be carried out at
/// once: by `concurrency(50)` and four connections, say.
///
/// ```
/// use nbd_io::{Export, export_info};
/// use nbd_proto::Failure;
///
/// /// Every byte is the low byte of its offset.
/// struct Pattern;
///
/// impl Export for Pattern {
///     fn size(&self) -> u64 {
///         1 << 40
///     }
///
///     fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
///         for (at, byte) in (offset..).zip(buf) {
///             *byte = at.to_le_bytes()[0];
///         }
///         Ok(())
///     }
///
///     fn may_block(&self) -> bool {
///         false
///     }
/// }
///
/// let export: std::sync::Arc<dyn Export> = std::sync::Arc::new(Pattern);
/// assert!(export_info(&export).is_read_only());
/// ```
///
/// # Wrappers
///
/// References, boxes and [`Arc`](std::sync::Arc)s of exports are exports. An export that changes
/// some of another's methods forwards the rest by [`forward_export!`](crate::forward_export).
pub trait Export: Send + Sync {
    /// The size in bytes, which stays the same until [`refresh`](Self::refresh) is called.
    fn size(&self) -> u64;

    /// Takes note of changes from outside, such as the size of a file that has grown. A server
    /// calls this before it describes the export to a client. For clients that entered before,
    /// nothing changes.
    ///
    /// Does nothing, unless it is implemented.
    fn refresh(&self) {}

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// When not all of `buf` could be read; its content is not sent then.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure>;

    /// Like [`read`](Self::read), for a caller that need not have zeroes in `buf`: where it is known
    /// without looking that all of these bytes are zero, this may say so and leave anything in `buf`.
    ///
    /// Unless it is implemented, this reads.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        self.read(offset, buf).map(|()| Content::Data)
    }

    /// Like [`read`](Self::read), if that can be done without waiting for anything slow.
    ///
    /// `None` where it would wait, or where that is not known; `buf` then holds anything, and
    /// the caller reads on a thread that may block. A server that must not hold up its loop asks
    /// this first: most data that is read often is in a cache.
    ///
    /// Unless it is implemented, this reads if the export never [blocks](Self::may_block).
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        (!self.may_block()).then(|| self.read(offset, buf))
    }

    /// The export's capabilities, as the client is sent them.
    ///
    /// To be set by the back end: [`READ_ONLY`](TransmissionFlags::READ_ONLY),
    /// [`SEND_FLUSH`](TransmissionFlags::SEND_FLUSH), [`SEND_FUA`](TransmissionFlags::SEND_FUA),
    /// [`SEND_TRIM`](TransmissionFlags::SEND_TRIM),
    /// [`SEND_WRITE_ZEROES`](TransmissionFlags::SEND_WRITE_ZEROES),
    /// [`SEND_FAST_ZERO`](TransmissionFlags::SEND_FAST_ZERO),
    /// [`SEND_CACHE`](TransmissionFlags::SEND_CACHE),
    /// [`ROTATIONAL`](TransmissionFlags::ROTATIONAL), and
    /// [`CAN_MULTI_CONN`](TransmissionFlags::CAN_MULTI_CONN) if a flush, or a write with FUA, on
    /// one connection covers the requests that were replied to on all. The others are the server's; see
    /// [`export_info`](crate::export_info).
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
    ///
    /// Of a text that the protocol cannot carry the client gets the beginning: up to a NUL, and at
    /// most [`MAX_STRING`] bytes.
    fn description(&self) -> &str {
        ""
    }

    /// Whether a call may wait for a disk, a network, or a timer.
    ///
    /// Where it never does, an asynchronous server calls it in place. True, unless it is
    /// implemented.
    fn may_block(&self) -> bool {
        true
    }

    /// Whether [`refresh`](Self::refresh) may wait so, or a method that describes the export: one
    /// without arguments.
    ///
    /// Where they never do, an asynchronous server lets a client enter the export without another
    /// thread, though its requests may need one. Like [`may_block`](Self::may_block), unless it is
    /// implemented.
    fn refresh_may_block(&self) -> bool {
        self.may_block()
    }

    /// Writes `data` at `offset`; with `fua`, returns only when it is on stable storage.
    ///
    /// # Errors
    ///
    /// [`Errno::Perm`], unless it is implemented; [`Errno::NoSpc`] where there is no room.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        let _ = (offset, data, fua);
        Err(Errno::Perm.into())
    }

    /// Makes `len` bytes from `offset` on read as zeroes.
    ///
    /// `len` is not bounded by the maximum block size, and may be the whole export.
    ///
    /// # Errors
    ///
    /// With [`ZeroMode::fast`], [`Errno::NotSup`] if this would not be faster than to write as
    /// many zeroes; it is then returned at once, and nothing is changed. Without it, never.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        let _ = (offset, len, mode);
        Err(Errno::Inval.into())
    }

    /// Hints that `len` bytes from `offset` on are not needed any more. They may read as anything
    /// afterwards. With `fua`, returns only when the change is on stable storage.
    ///
    /// A back end is free to do nothing, or to leave out parts at the ends of the range. `len` is
    /// not bounded by the maximum block size, and may be the whole export.
    ///
    /// # Errors
    ///
    /// When the storage failed, not when it cannot free the range.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        let _ = (offset, len, fua);
        Err(Errno::Inval.into())
    }

    /// Hints that `len` bytes from `offset` on are going to be read soon. Nothing changes that a
    /// client could see.
    ///
    /// `len` is not bounded by the maximum block size, and may be the whole export.
    ///
    /// # Errors
    ///
    /// When the storage failed, not when there is no cache.
    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        let _ = (offset, len);
        Err(Errno::Inval.into())
    }

    /// Brings everything that was written, zeroed or trimmed by calls that have returned onto
    /// stable storage.
    ///
    /// # Errors
    ///
    /// When it could not be: the client then has to assume that it is lost.
    fn flush(&self) -> Result<(), Failure> {
        Err(Errno::Inval.into())
    }

    /// Whether [`allocation`](Self::allocation) ever reports zeroes, at less cost than it costs to
    /// send them.
    ///
    /// The server then asks by [`quick_allocation`](Self::quick_allocation) before it reads, and
    /// sends zeroes as holes. False, unless it is implemented.
    fn finds_zeroes(&self) -> bool {
        false
    }

    /// The status in `base:allocation` from `offset` on: an extent of 1 to `len` bytes, with the
    /// status of an [`Allocation`].
    ///
    /// The next extent may have the same status. A back end answers for less than `len` bytes
    /// rather than search for long.
    ///
    /// [`Allocation::ZERO`] is only reported for bytes that read as zeroes, [`Allocation::HOLE`]
    /// wherever the back end knows that a later write may run out of space. When in doubt, bytes
    /// are data: all are, unless this is implemented.
    ///
    /// [`Allocation`]: nbd_proto::meta::Allocation
    /// [`Allocation::ZERO`]: nbd_proto::meta::Allocation::ZERO
    /// [`Allocation::HOLE`]: nbd_proto::meta::Allocation::HOLE
    ///
    /// # Errors
    ///
    /// When it could not be found out.
    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let _ = offset;
        Ok(Extent { len, status: 0 })
    }

    /// Like [`allocation`](Self::allocation), for a read that is about to be carried out: the
    /// answer has to cost little beside that. Bytes that would take a search are data.
    ///
    /// Unless it is implemented, this asks [`allocation`](Self::allocation).
    ///
    /// # Errors
    ///
    /// When it could not be found out.
    fn quick_allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.allocation(offset, len)
    }

    /// The meta contexts that a client can select, each once, wildcards not among them.
    ///
    /// `base:allocation` alone, unless it is implemented.
    fn contexts(&self) -> Vec<MetaContext> {
        vec![MetaContext::new(ContextName::base_allocation())]
    }

    /// Hands out the status of `len` bytes from `offset` on in `context`, extent by extent.
    ///
    /// The first extent starts at `offset`, each following one where the last one ended, none is
    /// empty, and together they have at most `len` bytes. Neighbours may have the same status. The
    /// caller breaks off when it has enough. A back end may end earlier too, after one extent at
    /// the least: the client asks again for the rest.
    ///
    /// Unless it is implemented, this knows `base:allocation`, asks
    /// [`allocation`](Self::allocation) for it, and hands out neighbours of the same status as
    /// one. After 4096 questions it ends.
    ///
    /// # Errors
    ///
    /// [`Errno::Inval`] for a context that [`contexts`](Self::contexts) does not list, or the error
    /// that kept the back end from finding it out. Extents handed out before are not sent.
    fn block_status(
        &self,
        context: &ContextName,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        if !is_base_allocation(context) {
            return Err(unknown_context(context));
        }
        let (mut at, mut rest) = (offset, len);
        let mut last: Option<Extent> = None;
        for _ in 0..MAX_QUERIES {
            if rest == 0 {
                break;
            }
            let Extent { len, status } = self.allocation(at, rest)?;
            if len == 0 || len > rest {
                return Err(Failure {
                    message: format!("the back end described {len} bytes where 1 to {rest} are")
                        .into(),
                    offset: Some(at),
                    ..Errno::Io.into()
                });
            }
            at = at.saturating_add(len);
            rest -= len;
            match &mut last {
                Some(last) if last.status == status => last.len += len,
                last => {
                    let done = last.replace(Extent { len, status });
                    if done.is_some_and(|done| each(done).is_break()) {
                        return Ok(());
                    }
                }
            }
        }
        if let Some(last) = last {
            let _ = each(last);
        }
        Ok(())
    }
}

impl fmt::Debug for dyn Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("size", &self.size())
            .field("flags", &self.flags())
            .finish_non_exhaustive()
    }
}

/// The description of an export for a client: the size rounded down to whole blocks, the
/// description, the block sizes, and those [`flags`](Export::flags) that a back end decides on and
/// that go together.
///
/// A server adds [`SEND_DF`](TransmissionFlags::SEND_DF) and
/// [`BLOCK_STATUS_PAYLOAD`](TransmissionFlags::BLOCK_STATUS_PAYLOAD), which depend on the
/// negotiation, and checks requests against this.
///
/// ```
/// use nbd_io::{Memory, export_info};
///
/// let info = export_info(&Memory::new(1 << 20).with_description("scratch space"));
/// assert!(info.can_write_zeroes() && !info.is_read_only());
/// ```
#[must_use]
pub fn export_info(export: &dyn Export) -> ExportInfo {
    let (size, flags) = (export.size(), export.flags());
    info_of(size, flags, export.block_sizes(), export.description())
}

/// The description of an export of either kind.
fn info_of(
    size: u64,
    flags: TransmissionFlags,
    sizes: BlockSizes,
    description: &str,
) -> ExportInfo {
    let whole = size - size % u64::from(sizes.minimum());
    let mut info = ExportInfo::new(whole, coherent(flags));
    info.description = sendable(description);
    info.block_sizes = Some(sizes);
    info
}

/// Fails with `errno` unless the range lies inside an export of `size` bytes.
pub(crate) fn check_range(size: u64, offset: u64, len: u64, errno: Errno) -> Result<(), Failure> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Failure {
            message: format!("{len} bytes at {offset} do not lie within {size} bytes").into(),
            ..errno.into()
        }),
    }
}

fn unknown_context(context: &ContextName) -> Failure {
    Failure {
        message: format!("this export has no meta context {context}").into(),
        ..Errno::Inval.into()
    }
}

fn is_base_allocation(context: &ContextName) -> bool {
    context.as_str() == "base:allocation"
}

/// Keeps the flags that a back end decides on, and of these the ones that can be honoured together.
fn coherent(flags: TransmissionFlags) -> TransmissionFlags {
    const SERVER: TransmissionFlags = TransmissionFlags::SEND_DF
        .with(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
        .with(TransmissionFlags::SEND_RESIZE);
    let named = (1 << 13) - 1;
    let mut flags = TransmissionFlags::from_bits(flags.bits() & named).without(SERVER);
    if flags.contains(TransmissionFlags::READ_ONLY) {
        flags = flags
            .without(TransmissionFlags::SEND_TRIM)
            .without(TransmissionFlags::SEND_WRITE_ZEROES);
    }
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags = flags.without(TransmissionFlags::SEND_FAST_ZERO);
    }
    flags
}

/// The beginning of `text` that a string of the protocol can hold, if there is any.
fn sendable(text: &str) -> Option<Text> {
    let text = text.split('\0').next().unwrap_or_default();
    let end = (0..=text.len().min(MAX_STRING))
        .rev()
        .find(|end| text.is_char_boundary(*end))?;
    (end > 0).then(|| text[..end].into())
}

#[cfg(test)]
mod tests;
