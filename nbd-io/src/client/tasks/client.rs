//! An export that any number of tasks use.

use super::{ReadIntoError, extents::Extents, link::Request, pool::Pool, ranges::read_request};
use crate::{
    client::{ConnectionState, Error, Lost, Negotiated, Piece, index, length},
    mutation::Mutation,
    runtime::Network,
    transport::TlsSession,
};
use bytes::{Bytes, BytesMut};
use nbd_proto::{
    BlockSizes, Command, CommandFlags, ContextName, ExportInfo, HeaderStyle,
    client::{Context, ContextExtents},
};
use std::{fmt, future::poll_fn, ops::Range, sync::Arc};

/// An export that was entered, on any runtime.
///
/// Each driver has a `Client` of its own, made of this one, whose pages say all of each method.
pub struct Client<R: Network> {
    pub(super) pool: Arc<Pool<R>>,
    /// Losses of unflushed writes before the epoch of this handle began.
    losses: u64,
}

impl<R: Network> Clone for Client<R> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            losses: self.losses,
        }
    }
}

impl<R: Network> fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl<R: Network> Client<R> {
    pub(super) const fn new(pool: Arc<Pool<R>>) -> Self {
        Self { pool, losses: 0 }
    }

    pub(super) fn runtime(&self) -> &R {
        self.pool.common.runtime()
    }

    /// The result of the negotiation.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.pool.common.negotiated
    }

    /// The export as the server described it.
    #[must_use]
    pub fn export(&self) -> &ExportInfo {
        &self.negotiated().export
    }

    /// Number of bytes that can be read and written: the export's size, without an incomplete block
    /// of the minimum size at its end.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.negotiated().size()
    }

    /// The headers that the connections use.
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

    /// Number of connections at present.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.count()
    }

    /// State of the connections.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.pool.status()
    }

    /// Waits until the state is another one than `known`.
    pub async fn state_changed(&self, known: &ConnectionState) -> ConnectionState {
        let pool = &*self.pool;
        let mut watch = pool.watch();
        poll_fn(|cx| pool.poll_status(known, &mut watch.place, cx)).await
    }

    /// Reads `len` bytes.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let range = self.negotiated().range(Command::Read, offset, len as u64)?;
        let whole = self.negotiated().around(&range);
        let data = self.read_blocks(&whole).await?;
        let data = self.pool.common.spare.lend(data);
        let start = index(offset - whole.start);
        Ok(data.slice(start..start + len))
    }

    /// Fills a buffer, of the length that it has, and gives it back.
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
        if self.negotiated().is_whole(&range) {
            let done = match self.straight_read(len) {
                Some(link) => {
                    let len = len as u64;
                    link.call(read_request(Piece { offset, len }), buffer).await
                }
                None => self.read_whole(offset, buffer).await,
            };
            return match done.reply.into_result() {
                Ok(_) => Ok(done.sink),
                Err(error) => Err(ReadIntoError::new(error, done.sink, len)),
            };
        }
        let whole = self.negotiated().around(&range);
        match self.read_blocks(&whole).await {
            Ok(data) => {
                let start = index(offset - whole.start);
                buffer.copy_from_slice(&data[start..start + len]);
                Ok(buffer)
            }
            Err(error) => Err(ReadIntoError::new(error, buffer, len)),
        }
    }

    /// Reads in one request with these flags; nothing is split or aligned.
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
        let read = self.perform(request, BytesMut::new()).await;
        Ok(self.pool.common.spare.lend(read.into_read()?))
    }

    /// Writes.
    pub async fn write(&self, data: impl Into<Bytes>, offset: u64) -> Result<(), Error> {
        self.write_with(data, offset, CommandFlags::NONE).await
    }

    /// Writes with these flags: [`CommandFlags::FUA`] to have the data on stable storage before
    /// this is done.
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
    pub async fn flush(&self) -> Result<(), Error> {
        // C-191, C-192: the answered writes are covered, and the server keeps connections
        // consistent.
        self.done(Request::Flush).await?;
        match self.pool.common.losses() {
            losses if losses == self.losses || Mutation::SilentLoss.is_made() => Ok(()),
            _ => Err(Error::Unflushed),
        }
    }

    /// A handle to the same client that leaves behind writes that were lost: its
    /// [`flush`](Client::flush) covers writes that are begun from now on.
    #[must_use]
    pub fn new_epoch(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            losses: self.pool.common.losses(),
        }
    }

    /// Hints that the contents of a range are not needed any more.
    pub async fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::Trim { offset, len, flags };
        self.range(Command::Trim, offset, len, request).await
    }

    /// Hints that a range will be read soon.
    pub async fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::Cache { offset, len };
        self.range(Command::Cache, offset, len, request).await
    }

    /// Writes zeroes.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let request = |Piece { offset, len }| Request::WriteZeroes { offset, len, flags };
        self.range(Command::WriteZeroes, offset, len, request).await
    }

    /// Asks once for the status of a range in the selected meta contexts.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.status(offset, len, flags, None).await
    }

    /// Asks once for the status of a range in some of the selected meta contexts.
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

    /// Gives up all connections and makes new ones, without the pause that the policy has next.
    pub fn reconnect_now(&self) -> Result<(), Error> {
        self.pool.redial()
    }

    /// Ends the session: waits for requests in flight, sends `NBD_CMD_DISC` and waits for the
    /// server to close, all together up to 5 s.
    pub async fn disconnect(&self) -> Result<(), Error> {
        let over = self.state();
        let Some(links) = self.pool.close() else {
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
        self.pool.is_over()
    }
}
