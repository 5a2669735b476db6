//! An export that any number of tasks use.

use super::{
    ReadIntoError, extents::Extents, link::Request, pool::Pool, range_guard::SharedRangeLocks,
};
use crate::{
    client::{ConnectionState, Error, Lost, Negotiated, Piece, index, length},
    runtime::Network,
    transport::TlsSession,
};
use bytes::{Bytes, BytesMut};
use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, ExportInfo, HeaderStyle,
    client::{Context, ContextExtents},
};
use std::{fmt, future::poll_fn, ops::Range, sync::Arc};

/// An export that was entered.
///
/// All methods take `&self`, and clones are cheap and share the connections: any number of tasks
/// can have requests in flight at once, and replies come in any order. A task that waits for its
/// reply moves the connection on for all of them.
///
/// Requests may have any length. What is longer than the server allows is split, and the pieces
/// are in flight together. If one of them fails, the others may or may not have been carried out.
///
/// Requests that overlap and are in flight at once are carried out in any order. After the
/// connection is over, every call returns the reason, unless there is a policy by which to make a
/// new one: see [`Reconnect`](crate::client::Reconnect).
///
/// Dropping the last clone sends `NBD_CMD_DISC` in the background; see
/// [`disconnect`](Client::disconnect). If the runtime ends before that, the connection is just
/// closed.
///
/// Spec: [Request types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types).
///
/// # Cancel safety
///
/// Every future can be dropped at any time: the connection and all other requests go on. Whether a
/// request whose future was dropped is carried out is not known, and it may be carried out later.
/// After a write was dropped, what is at its place is therefore only known when another write there
/// has been answered. If the server works on several requests of a client at once, the dropped one
/// may come even after that, until [`disconnect`](Client::disconnect).
pub struct Client<R: Network> {
    pub(super) shared: Arc<Shared<R>>,
    /// How often unflushed writes had been lost when the epoch of this handle began.
    losses: u64,
}

pub(super) struct Shared<R: Network> {
    pub(super) pool: Arc<Pool<R>>,
    /// Changes of the same bytes, where they have to be kept in order.
    pub(super) range_locks: Arc<SharedRangeLocks>,
}

impl<R: Network> Clone for Client<R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            losses: self.losses,
        }
    }
}

impl<R: Network> fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("pool", &self.shared.pool)
            .finish_non_exhaustive()
    }
}

impl<R: Network> Client<R> {
    pub(super) fn new(pool: Arc<Pool<R>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                pool,
                range_locks: Arc::default(),
            }),
            losses: 0,
        }
    }

    pub(super) fn runtime(&self) -> &R {
        self.shared.pool.common.runtime()
    }

    pub(super) fn negotiated(&self) -> &Negotiated {
        &self.shared.pool.common.negotiated
    }

    /// The export as the server described it.
    #[must_use]
    pub fn export(&self) -> &ExportInfo {
        &self.negotiated().export
    }

    /// The size in bytes of what can be read and written: the export's, without what its end has of
    /// an incomplete block of the minimum size. Servers should not have one, but if this is less than
    /// [`export().size`](ExportInfo::size), the rest is out of every client's reach.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.negotiated().size()
    }

    /// Which headers the connections use.
    #[must_use]
    pub fn mode(&self) -> HeaderStyle {
        self.negotiated().mode
    }

    /// Whether the connections are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.negotiated().encrypted
    }

    /// The TLS session of the first connection, with the server's certificates; `None` without TLS.
    #[must_use]
    pub fn tls_session(&self) -> Option<&TlsSession> {
        self.negotiated().tls.as_deref()
    }

    /// The meta contexts that were selected.
    #[must_use]
    pub fn contexts(&self) -> &[Context] {
        &self.negotiated().contexts
    }

    /// Whether a meta context was selected.
    #[must_use]
    pub fn has_context(&self, name: &ContextName) -> bool {
        self.context_id(name).is_some()
    }

    /// The number of a meta context, which names it in [`ContextExtents`] and in
    /// [`block_status_of`](Self::block_status_of); `None` if it was not selected.
    #[must_use]
    pub fn context_id(&self, name: &ContextName) -> Option<u32> {
        self.negotiated().context_id(name)
    }

    /// The block sizes that hold, in bytes; the usual ones if the server sent none.
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        self.negotiated().blocks
    }

    /// How many connections there are at present.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.pool.count()
    }

    /// How the connections are.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.shared.pool.status()
    }

    /// Waits until the state is another one than `known`. States between may be left out. There is
    /// no other one after [`ConnectionState::Over`], so that this then waits for ever.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped loses nothing.
    pub async fn state_changed(&self, known: &ConnectionState) -> ConnectionState {
        let pool = &*self.shared.pool;
        let mut watch = pool.watch();
        poll_fn(|cx| pool.poll_status(known, &mut watch.place, cx)).await
    }

    /// Reads `len` bytes. Where the server has a minimum block size, the rest of the first and the
    /// last block is read too and thrown away.
    ///
    /// # Errors
    ///
    /// When the range is not inside the export, the server fails the command, or the connection is
    /// over.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let range = self.negotiated().range(Command::Read, offset, len as u64)?;
        let whole = self.negotiated().around(&range);
        let buffer = BytesMut::zeroed(length(&whole));
        let read = self.read_whole(whole.start, buffer).await;
        let data = read.into_read()?.freeze();
        let start = index(offset - whole.start);
        Ok(data.slice(start..start + len))
    }

    /// Fills a buffer, of the length that it has, and gives it back. With a buffer that is used
    /// again and again no memory is allocated.
    ///
    /// # Errors
    ///
    /// Like [`read`](Client::read). The [`ReadIntoError`] has the buffer, and `?` makes an [`Error`]
    /// of it.
    pub async fn read_into(
        &self,
        mut buffer: BytesMut,
        offset: u64,
    ) -> Result<BytesMut, ReadIntoError> {
        let len = buffer.len();
        let range = match self.negotiated().range(Command::Read, offset, len as u64) {
            Ok(range) => range,
            Err(misuse) => return Err(ReadIntoError::new(misuse.into(), buffer, len)),
        };
        let whole = self.negotiated().around(&range);
        if length(&whole) == len {
            let done = match self.single_read(offset, buffer) {
                Ok(call) => call.await,
                Err(buffer) => self.read_whole(offset, buffer).await,
            };
            return match done.result {
                Ok(_) => Ok(done.sink),
                Err(error) => Err(ReadIntoError::new(error, done.sink, len)),
            };
        }
        let read = self.read_whole(whole.start, BytesMut::zeroed(length(&whole)));
        match read.await.into_read() {
            Ok(data) => {
                let start = index(offset - whole.start);
                buffer.copy_from_slice(&data[start..start + len]);
                Ok(buffer)
            }
            Err(error) => Err(ReadIntoError::new(error, buffer, len)),
        }
    }

    /// Reads in one request with these flags; nothing is split or aligned. Flags:
    /// [`CommandFlags::DF`].
    ///
    /// # Errors
    ///
    /// When the request makes no sense here, the server fails it, or the connection is over.
    pub async fn read_with(
        &self,
        offset: u64,
        len: usize,
        flags: CommandFlags,
    ) -> Result<Bytes, Error> {
        let request = Request::Read {
            offset,
            len: len as u64,
            flags,
        };
        // What is too long for one request is refused, and needs no memory.
        let is_sent = len as u64 <= self.negotiated().max_read;
        let buffer = BytesMut::zeroed(if is_sent { len } else { 0 });
        let read = self.perform(request, buffer).await;
        Ok(read.into_read()?.freeze())
    }

    /// Writes. The data is on stable storage after a [`flush`](Client::flush).
    ///
    /// Where the server has a minimum block size, a part of a block is written by reading,
    /// changing and writing the block, which this client and its clones keep apart from their other
    /// writes, but other clients cannot know of.
    ///
    /// The data's owner, if it is one of [`Bytes::from_owner`], is dropped while the connection is
    /// locked, by the task that sends it: its `Drop` must not use the client or wait for a task
    /// that does.
    ///
    /// # Errors
    ///
    /// When the range is not inside the export, the server fails the command, or the connection is
    /// over. How much was written is not known then.
    pub async fn write(&self, data: impl Into<Bytes>, offset: u64) -> Result<(), Error> {
        self.write_with(data, offset, CommandFlags::NONE).await
    }

    /// Writes with these flags: [`CommandFlags::FUA`] to have the data on stable storage before
    /// this is done.
    ///
    /// # Errors
    ///
    /// Like [`write`](Client::write), and when the server does not offer the flag.
    pub async fn write_with(
        &self,
        data: impl Into<Bytes>,
        offset: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let mut data = data.into();
        let len = data.len() as u64;
        let range = self.negotiated().range(Command::Write, offset, len)?;
        for part in self.negotiated().parts(range) {
            let data = data.split_to(length(&part.range));
            if part.is_whole() {
                self.write_whole(part.range.start, data, flags).await?;
            } else {
                self.patch(part, data, flags).await?;
            }
        }
        Ok(())
    }

    /// Puts everything that was answered before this call on stable storage, over whichever
    /// connection it was written.
    ///
    /// Without [`ExportInfo::can_flush`] the server cannot be asked.
    ///
    /// With [`Reconnect`](crate::client::Reconnect), writes may be lost before they are flushed. This
    /// is [`Error::Unflushed`] then, and so is every later flush of this handle and its clones, as a
    /// file whose `fsync` has failed cannot promise anything any more. Handles of a
    /// [new epoch](Client::new_epoch) can.
    ///
    /// # Errors
    ///
    /// When the server does not offer it or fails it, the connection is over, or writes before this
    /// one may have been lost.
    pub async fn flush(&self) -> Result<(), Error> {
        // C-191, C-192: what was answered has been, and the server keeps connections consistent.
        self.done(Request::Flush).await?;
        match self.shared.pool.common.losses() {
            losses if losses == self.losses => Ok(()),
            _ => Err(Error::Unflushed),
        }
    }

    /// A handle to the same client that leaves behind writes that were lost: its
    /// [`flush`](Client::flush) covers what is answered from now on. It is for a program that has
    /// met [`Error::Unflushed`] and writes again.
    #[must_use]
    pub fn new_epoch(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            losses: self.shared.pool.common.losses(),
        }
    }

    /// Tells that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// When the range or the flags make no sense here, the server fails the command, or the
    /// connection is over.
    pub async fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::Trim { offset, len, flags };
        self.range(Command::Trim, offset, len, request).await
    }

    /// Tells that a range will be read soon. Neither success nor failure means anything for later
    /// reads.
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim).
    pub async fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::Cache { offset, len };
        self.range(Command::Cache, offset, len, request).await
    }

    /// Writes zeroes. Flags: [`CommandFlags::FUA`], [`CommandFlags::NO_HOLE`],
    /// [`CommandFlags::FAST_ZERO`].
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim); with `FAST_ZERO`, [`Errno::NotSup`](nbd_proto::Errno::NotSup) says that writing would be
    /// no slower.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::WriteZeroes { offset, len, flags };
        self.range(Command::WriteZeroes, offset, len, request).await
    }

    /// Asks once what the selected meta contexts say of a range. The answer may cover less than
    /// the range, differently for each context; [`extents`](Client::extents) goes on until the
    /// end. Flags: [`CommandFlags::REQ_ONE`].
    ///
    /// # Errors
    ///
    /// When no context was selected, the range makes no sense, the server fails the command, or
    /// the connection is over.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.status(offset, len, flags, None).await
    }

    /// Asks once what some of the selected meta contexts say of a range.
    ///
    /// # Errors
    ///
    /// Like [`block_status`](Client::block_status), and when the server cannot be asked for some
    /// contexts only or `ids` are not selected ones, once each.
    pub async fn block_status_of(
        &self,
        ids: &[u32],
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.status(offset, len, flags, Some(ids.into())).await
    }

    /// Walks the extents of a range to its end, with equal neighbours merged.
    #[must_use]
    pub fn extents(&self, range: Range<u64>) -> Extents<R> {
        Extents::new(self.clone(), range)
    }

    /// Gives up all connections and makes new ones, without the pause that the policy has next. For a
    /// program that knows better: the network has changed, or the server is no longer the right one.
    /// Requests in flight are made again on the new connections. Nothing is waited for.
    ///
    /// # Errors
    ///
    /// When there is no policy to [`reconnect`](crate::client::ConnectOptions::reconnect), or the client is
    /// over.
    pub fn reconnect_now(&self) -> Result<(), Error> {
        self.shared.pool.redial()
    }

    /// Ends the session: waits for what is in flight, sends `NBD_CMD_DISC` and waits for the server
    /// to close, all together up to 5 s. Clones cannot be used afterwards.
    ///
    /// # Errors
    ///
    /// When a connection was over before, there was none at that time, or this was called before.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves the rest to the background.
    pub async fn disconnect(&self) -> Result<(), Error> {
        let over = self.state();
        let Some(links) = self.shared.pool.close() else {
            return Err(Error::lost(Lost::Disconnected));
        };
        let mut result = match over {
            ConnectionState::Over(lost) | ConnectionState::Reconnecting { cause: lost, .. } => {
                Err(Error::Lost(lost))
            }
            ConnectionState::Connected => Ok(()),
        };
        for link in &links {
            let lost = link.over().await;
            if result.is_ok() && !matches!(*lost, Lost::Disconnected) {
                result = Err(Error::Lost(lost));
            }
        }
        result
    }

    /// Whether there is no connection any more, and none will be made.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.pool.is_over()
    }
}
