//! An export that any number of tasks use.

use super::{
    apart::Apart,
    extents::Extents,
    link::{Done, Request},
    pool::{Facts, Pool},
};
use crate::{
    client::{Error, Lost, Piece, blocks_of, check_blocks, check_range, split},
    runtime::Network,
};
use bytes::{Bytes, BytesMut};
use nbd_proto::{
    BlockSizes, Command, CommandFlags, Errno, ExportInfo, Mode,
    client::{Context, ContextExtents, Outcome},
};
use std::{
    collections::VecDeque, fmt, future::poll_fn, ops::Range, pin::Pin, sync::Arc, task::Poll,
};

/// Pieces of one request that are in flight at once.
const WINDOW: usize = 8;

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
/// connection is over, every call returns the reason.
///
/// Dropping the last clone says goodbye to the server in the background; see
/// [`disconnect`](Client::disconnect).
///
/// # Cancel safety
///
/// Every future can be dropped at any time: the connection and all other requests go on. Whether a
/// request whose future was dropped is carried out is not known, and it may be carried out later:
/// a write to the same place can only be relied on after a new one has been waited for, and not
/// even then if the server has several requests of a client at work at once, until
/// [`disconnect`](Client::disconnect).
pub struct Client<R: Network> {
    shared: Arc<Shared<R>>,
}

struct Shared<R: Network> {
    pool: Pool<R>,
    /// Held alone while a part of a block is read, changed and written.
    apart: Apart,
}

impl<R: Network> Clone for Client<R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
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
    pub(super) fn new(pool: Pool<R>) -> Self {
        Self {
            shared: Arc::new(Shared {
                pool,
                apart: Apart::default(),
            }),
        }
    }

    fn facts(&self) -> &Facts {
        &self.shared.pool.plan.facts
    }

    /// What the server told of the export.
    #[must_use]
    pub fn export(&self) -> &ExportInfo {
        &self.facts().export
    }

    /// The export's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.facts().export.size
    }

    /// Which headers the connections use.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.facts().mode
    }

    /// Whether the connections are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.facts().encrypted
    }

    /// The meta contexts that were selected.
    #[must_use]
    pub fn contexts(&self) -> &[Context] {
        &self.facts().contexts
    }

    /// The block sizes that hold, in bytes; what is usual if the server told none.
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        self.facts().blocks
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.pool.links().len()
    }

    /// Reads `len` bytes. Where the server has a minimum block size, the rest of the first and the
    /// last block is read too and thrown away.
    ///
    /// # Errors
    ///
    /// When the range is not inside the export, the server fails the command, or the connection is
    /// over.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.check_range(Command::Read, offset, len as u64)?;
        let whole = self.around(offset, len as u64);
        let buffer = BytesMut::zeroed(length(&whole));
        let data = self.read_whole(whole.start, buffer).await?.freeze();
        let start = index(offset - whole.start);
        Ok(data.slice(start..start + len))
    }

    /// Fills a buffer, of the length that it has, and gives it back. With a buffer that is used
    /// again and again no memory is allocated.
    ///
    /// # Errors
    ///
    /// Like [`read`](Client::read). The buffer is dropped then.
    pub async fn read_into(&self, offset: u64, mut buffer: BytesMut) -> Result<BytesMut, Error> {
        let len = buffer.len();
        self.check_range(Command::Read, offset, len as u64)?;
        let whole = self.around(offset, len as u64);
        if length(&whole) == len {
            return self.read_whole(offset, buffer).await;
        }
        let data = self
            .read_whole(whole.start, BytesMut::zeroed(length(&whole)))
            .await?;
        let start = index(offset - whole.start);
        buffer.copy_from_slice(&data[start..start + len]);
        Ok(buffer)
    }

    /// Reads in one request with these flags; nothing is split or aligned.
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
        let (_, buffer) = self.perform(request, BytesMut::zeroed(len)).await?;
        Ok(buffer.freeze())
    }

    /// Writes. The data is on stable storage after a [`flush`](Client::flush).
    ///
    /// Where the server has a minimum block size, a part of a block is written by reading,
    /// changing and writing the block, which this client and its clones keep apart from their other
    /// writes, but other clients cannot know of.
    ///
    /// # Errors
    ///
    /// When the range is not inside the export, the server fails the command, or the connection is
    /// over. How much was written is not known then.
    pub async fn write(&self, offset: u64, data: impl Into<Bytes>) -> Result<(), Error> {
        self.write_with(offset, data, CommandFlags::NONE).await
    }

    /// Writes with these flags: [`CommandFlags::FUA`] to have the data on stable storage before
    /// this is done.
    ///
    /// # Errors
    ///
    /// Like [`write`](Client::write), and when the server does not offer the flag.
    pub async fn write_with(
        &self,
        offset: u64,
        data: impl Into<Bytes>,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let mut data = data.into();
        let len = data.len() as u64;
        self.check_range(Command::Write, offset, len)?;
        let blocks = self.facts().blocks;
        if blocks.minimum() == 1 {
            return self.write_whole(offset, data, flags).await;
        }
        let [head, body, tail] = blocks_of(blocks, offset, len);
        self.patch(head.start, data.split_to(length(&head)), flags)
            .await?;
        if !body.is_empty() {
            let _apart = self.shared.apart.hold(false).await;
            let data = data.split_to(length(&body));
            self.write_whole(body.start, data, flags).await?;
        }
        self.patch(tail.start, data, flags).await
    }

    /// Puts everything that was answered before this call on stable storage, over whichever
    /// connection it was written.
    ///
    /// Without [`ExportInfo::can_flush`] the server cannot be asked.
    ///
    /// # Errors
    ///
    /// When the server does not offer it or fails it, or the connection is over.
    pub async fn flush(&self) -> Result<(), Error> {
        // C-191, C-192: what was answered has been, and the server keeps connections consistent.
        self.done(Request::Flush).await
    }

    /// Tells that the contents of a range are not needed any more. Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// When the range or the flags make no sense here, the server fails the command, or the
    /// connection is over.
    pub async fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
        let max = self.facts().max_range;
        let request = |Piece { offset, len }| Request::Trim { offset, len, flags };
        self.range(Command::Trim, offset, len, max, request).await
    }

    /// Tells that a range will be read soon. Neither success nor failure means anything for later
    /// reads.
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim).
    pub async fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
        let max = self.facts().max_range;
        let request = |Piece { offset, len }| Request::Cache { offset, len };
        self.range(Command::Cache, offset, len, max, request).await
    }

    /// Writes zeroes. Flags: [`CommandFlags::FUA`], [`CommandFlags::NO_HOLE`],
    /// [`CommandFlags::FAST_ZERO`].
    ///
    /// # Errors
    ///
    /// Like [`trim`](Client::trim); with `FAST_ZERO`, [`Errno::NotSup`] says that writing would be
    /// no slower.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let max = self.facts().max_zeroes;
        let request = |Piece { offset, len }| Request::WriteZeroes { offset, len, flags };
        self.range(Command::WriteZeroes, offset, len, max, request)
            .await
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
        let Facts {
            max_range, blocks, ..
        } = self.facts();
        Extents::new(self.clone(), range, *max_range, blocks.minimum().into())
    }

    /// Ends the session: waits for what is in flight, says goodbye and waits for the server to
    /// close, all together up to 5 s. Clones cannot be used afterwards.
    ///
    /// # Errors
    ///
    /// When a connection was over before.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped leaves the rest to the background.
    pub async fn disconnect(&self) -> Result<(), Error> {
        let links = self.shared.pool.links().clone();
        let mut result = Ok(());
        for link in &links {
            if !link.close() {
                let lost = link.lost();
                let lost = lost.unwrap_or_else(|| Arc::new(Lost::Disconnected));
                result = Err(Error::Lost(lost));
            }
        }
        for link in &links {
            let lost = link.over().await;
            if result.is_ok() && !matches!(*lost, Lost::Disconnected) {
                result = Err(Error::Lost(lost));
            }
        }
        result
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let links = self.shared.pool.links();
        links.iter().all(|link| link.lost().is_some())
    }

    fn check_range(&self, command: Command, offset: u64, len: u64) -> Result<(), Error> {
        let Facts { export, blocks, .. } = self.facts();
        Ok(check_range(export, *blocks, command, offset, len)?)
    }

    /// The whole blocks that a range touches.
    fn around(&self, offset: u64, len: u64) -> Range<u64> {
        let block = u64::from(self.facts().blocks.minimum());
        if len == 0 {
            return offset..offset;
        }
        let end = offset + len;
        let end = end.checked_next_multiple_of(block).unwrap_or(end);
        offset - offset % block..end
    }

    async fn read_whole(&self, offset: u64, mut buffer: BytesMut) -> Result<BytesMut, Error> {
        let max = self.facts().max_payload;
        let read = |piece: Piece, buffer| {
            let Piece { offset, len } = piece;
            let flags = CommandFlags::NONE;
            self.perform(Request::Read { offset, len, flags }, buffer)
        };
        let len = buffer.len() as u64;
        if len == 0 {
            return Ok(buffer);
        }
        if len <= max {
            return Ok(read(Piece { offset, len }, buffer).await?.1);
        }
        let mut whole = BytesMut::new();
        let start = |piece: Piece| read(piece, buffer.split_to(index(piece.len)));
        let take = |(_, part)| whole.unsplit(part);
        self.pieces(offset, len, max, start, take).await?;
        Ok(whole)
    }

    async fn write_whole(
        &self,
        offset: u64,
        data: Bytes,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let max = self.facts().max_payload;
        let write = |offset, payload| {
            let request = Request::Write {
                offset,
                payload,
                flags,
            };
            self.done(request)
        };
        let len = data.len() as u64;
        if len == 0 {
            return Ok(());
        }
        if len <= max {
            return write(offset, data).await;
        }
        let start = |piece: Piece| {
            let at = index(piece.offset - offset);
            write(piece.offset, data.slice(at..at + index(piece.len)))
        };
        self.pieces(offset, len, max, start, drop).await
    }

    /// Writes a part of a single block.
    async fn patch(&self, offset: u64, data: Bytes, flags: CommandFlags) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let _apart = self.shared.apart.hold(true).await;
        let block = self.around(offset, data.len() as u64);
        let buffer = BytesMut::zeroed(length(&block));
        let mut buffer = self.read_whole(block.start, buffer).await?;
        let start = index(offset - block.start);
        buffer[start..start + data.len()].copy_from_slice(&data);
        self.write_whole(block.start, buffer.freeze(), flags).await
    }

    /// A command with a range and without payload. Servers may find a range too long that others
    /// take, so it is tried again with shorter ones.
    async fn range(
        &self,
        command: Command,
        offset: u64,
        len: u64,
        max: u64,
        request: impl Fn(Piece) -> Request,
    ) -> Result<(), Error> {
        self.check_range(command, offset, len)?;
        check_blocks(self.facts().blocks, command, offset, len)?;
        let start = |piece| self.done(request(piece));
        if len > 0 && len <= max.min(self.facts().max_payload) {
            return start(Piece { offset, len }).await;
        }
        let short = self.facts().max_payload;
        match self.pieces(offset, len, max, start, drop).await {
            Err(Error::Failed { ref source, .. })
                if matches!(source.errno, Errno::Overflow | Errno::Inval)
                    && len > short
                    && max > short =>
            {
                self.pieces(offset, len, short, start, drop).await
            }
            done => done,
        }
    }

    async fn status(
        &self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
        ids: Option<Arc<[u32]>>,
    ) -> Result<Vec<ContextExtents>, Error> {
        let request = Request::BlockStatus {
            offset,
            len,
            flags,
            ids,
        };
        Ok(match self.perform(request, BytesMut::new()).await?.0 {
            Outcome::Extents(extents) => extents,
            Outcome::Done | Outcome::Failed(_) => Vec::new(),
        })
    }

    /// Cuts a request into pieces and has several of them in flight. `take` is given what came of
    /// them, in order.
    async fn pieces<T, F: Future<Output = Result<T, Error>>>(
        &self,
        offset: u64,
        len: u64,
        max: u64,
        mut start: impl FnMut(Piece) -> F,
        mut take: impl FnMut(T),
    ) -> Result<(), Error> {
        enum Started<T, F> {
            Waits(Pin<Box<F>>),
            Done(Result<T, Error>),
        }
        let mut pieces = split(offset, len, max, self.facts().blocks.preferred().into());
        let mut window = VecDeque::with_capacity(WINDOW);
        let mut result = Ok(());
        poll_fn(|cx| {
            loop {
                while window.len() < WINDOW
                    && result.is_ok()
                    && let Some(piece) = pieces.next()
                {
                    let mut started = Box::pin(start(piece));
                    window.push_back(match started.as_mut().poll(cx) {
                        Poll::Ready(done) => Started::Done(done),
                        Poll::Pending => Started::Waits(started),
                    });
                }
                // The first moves on all of them.
                let done = match window.pop_front() {
                    None => return Poll::Ready(()),
                    Some(Started::Done(done)) => done,
                    Some(Started::Waits(mut waits)) => match waits.as_mut().poll(cx) {
                        Poll::Ready(done) => done,
                        Poll::Pending => {
                            window.push_front(Started::Waits(waits));
                            return Poll::Pending;
                        }
                    },
                };
                match done {
                    Ok(done) => take(done),
                    Err(error) => result = std::mem::replace(&mut result, Ok(())).and(Err(error)),
                }
            }
        })
        .await;
        result
    }

    async fn done(&self, request: Request) -> Result<(), Error> {
        self.perform(request, BytesMut::new()).await.map(drop)
    }

    /// Has a single request carried out.
    async fn perform(
        &self,
        request: Request,
        sink: BytesMut,
    ) -> Result<(Outcome, BytesMut), Error> {
        let link = self.shared.pool.link();
        let Done { result, sink } = link.call(request, sink).await;
        Ok((result?, sink))
    }
}

/// A place in a buffer that exists.
fn index(place: u64) -> usize {
    usize::try_from(place).expect("a place in a buffer fits into memory")
}

fn length(range: &Range<u64>) -> usize {
    index(range.end - range.start)
}
