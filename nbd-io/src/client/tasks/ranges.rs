//! Ranges of any length at any place, made of requests that the server takes.

use super::{
    client::Client,
    link::{Done, Held, Link, Request, is_answer},
    range_guard::RangeGuard,
    window::{Parts, in_flight},
};
use crate::{
    client::{
        Admission, Error, FlushStep, Kept, Part, Piece, Uncovered, engine::Reply, index, length,
    },
    mutation::Mutation,
    runtime::Network,
};
use bytes::{Bytes, BytesMut};
use nbd_proto::{
    Command, CommandFlags,
    client::{ContextExtents, Outcome},
};
use std::{
    future::poll_fn,
    ops::Range,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

impl<R: Network> Client<R> {
    /// The connection of a read for which one request will do, without anything to wait for before.
    /// Other reads are for [`read_whole`](Self::read_whole).
    pub(super) fn straight_read(&self, len: usize) -> Option<&Link> {
        let is_single = len > 0 && len as u64 <= self.negotiated().max_payload;
        self.pool.only().filter(|_| is_single)
    }

    /// Reads whole blocks. Where one request will do, their memory is allocated when the reply comes.
    pub(super) async fn read_blocks(&self, range: &Range<u64>) -> Result<BytesMut, Error> {
        let (offset, len) = (range.start, length(range));
        if len as u64 > self.negotiated().max_payload {
            let buffer = BytesMut::zeroed(len);
            return self.read_whole(offset, buffer).await.into_read();
        }
        let request = read_request(Piece {
            offset,
            len: len as u64,
        });
        let read = match self.straight_read(len) {
            Some(link) => link.call(request, BytesMut::new()).await,
            None if len == 0 => return Ok(BytesMut::new()),
            None => self.perform(request, BytesMut::new()).await,
        };
        read.into_read()
    }

    /// Fills a buffer from whole blocks. The buffer comes back with an error, too.
    pub(super) async fn read_whole(&self, offset: u64, mut buffer: BytesMut) -> Done {
        let max = self.negotiated().max_payload;
        let len = buffer.len() as u64;
        if let Some(link) = self.straight_read(buffer.len()) {
            return link.call(read_request(Piece { offset, len }), buffer).await;
        }
        if len == 0 {
            return Done::new(Reply::DONE, buffer);
        }
        let read = |piece, buffer| self.perform(read_request(piece), buffer);
        if len <= max {
            return read(Piece { offset, len }, buffer).await;
        }
        let mut parts = Parts::default();
        let start = |piece: Piece| {
            let part = read(piece, buffer.split_to(index(piece.len)));
            async move { Ok((piece.offset, part.await.into_read()?)) }
        };
        let take = |(offset, part)| parts.add(offset, part);
        match self.pieces(offset, len, max, start, take).await {
            Ok(()) => Done::new(Reply::DONE, parts.whole()),
            // The parts are gone, so that the rest is the only user of the memory and can have all
            // of it.
            Err(error) => Done::failed(error, buffer),
        }
    }

    pub(super) async fn write_whole(
        &self,
        offset: u64,
        data: Bytes,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let max = self.negotiated().max_payload;
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
    pub(super) async fn patch(
        &self,
        part: Part,
        data: Bytes,
        flags: CommandFlags,
    ) -> Result<(), Error> {
        let place = part.place();
        let block = part.blocks;
        // Others that change the block come before this one reads it, or after it has written.
        let guard = self.lock_range(Command::Write, block.clone()).await?;
        let mut buffer = self.read_blocks(&block).await?;
        buffer[place].copy_from_slice(&data);
        let request = Request::Write {
            offset: block.start,
            payload: buffer.freeze(),
            flags,
        };
        let done = self.perform_in_turn(request, BytesMut::new(), Some(guard));
        done.await.result().map(drop)
    }

    /// A command with a range and without payload. Servers may find a range too long that others
    /// take, so it is tried again with shorter ones.
    pub(super) async fn range(
        &self,
        command: Command,
        offset: u64,
        len: u64,
        request: impl Fn(Piece) -> Request,
    ) -> Result<(), Error> {
        self.negotiated().range(command, offset, len)?;
        self.export().check_blocks(command, offset, len)?;
        let negotiated = self.negotiated();
        let start = |piece| self.done(request(piece));
        let mut max = negotiated.max_len(command);
        loop {
            let done = if len > 0 && len <= max {
                start(Piece { offset, len }).await
            } else {
                self.pieces(offset, len, max, start, drop).await
            };
            let Err(error) = done else { return Ok(()) };
            let Some(short) = negotiated.shorter(len, max, &error) else {
                return Err(error);
            };
            max = short;
        }
    }

    pub(super) async fn status(
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
        Ok(
            match self.perform(request, BytesMut::new()).await.result()? {
                Outcome::Extents(extents) => extents,
                Outcome::Done | Outcome::Failed(_) => Vec::new(),
            },
        )
    }

    /// Cuts a request into pieces and has several of them in flight. `take` is given their results,
    /// in the order in which they end.
    pub(super) async fn pieces<T, F: Future<Output = Result<T, Error>>>(
        &self,
        offset: u64,
        len: u64,
        max: u64,
        mut start: impl FnMut(Piece) -> F,
        take: impl FnMut(T),
    ) -> Result<(), Error> {
        let mut pieces = self.negotiated().pieces(offset, len, max);
        in_flight(|| pieces.next().map(&mut start), take).await
    }

    pub(super) async fn done(&self, request: Request) -> Result<(), Error> {
        match self.straight(&request) {
            Some(link) => link.call(request, BytesMut::new()).await.result().map(drop),
            None => {
                let done = self.perform(request, BytesMut::new()).await;
                done.result().map(drop)
            }
        }
    }

    /// The connection of a request that waits for no other request and for no other connection.
    fn straight(&self, request: &Request) -> Option<&Link> {
        let only = self.pool.only()?;
        (!request.changes() || !self.locks_ranges()).then_some(only)
    }

    /// Has a single request carried out, on another connection if the first is lost.
    pub(super) async fn perform(&self, request: Request, sink: BytesMut) -> Done {
        let observer = &self.pool.common.observer;
        let _watched = observer.watch(request.command(), request.range());
        let guard = match request.change() {
            Some(range) if self.locks_ranges() => {
                match self.lock_range(request.command(), range).await {
                    Ok(guard) => Some(guard),
                    Err(error) => return Done::failed(error, sink),
                }
            }
            _ => None,
        };
        self.perform_in_turn(request, sink, guard).await
    }

    /// Whether changes of the same bytes come one after the other: sent again at once, they could
    /// change places, and parts of a block must not be written over by others.
    fn locks_ranges(&self) -> bool {
        (self.pool.common.reconnects() || self.negotiated().blocks.minimum() > 1)
            && !Mutation::NoRangeLocks.is_made()
    }

    async fn perform_in_turn(
        &self,
        mut request: Request,
        sink: BytesMut,
        guard: Option<Arc<RangeGuard>>,
    ) -> Done {
        let pool = &*self.pool;
        let Some(log) = &pool.common.log else {
            let link;
            let link = match pool.only() {
                Some(only) => only,
                None => {
                    let mut watch = pool.watch();
                    link = match poll_fn(|cx| pool.poll_link(&mut watch.place, cx)).await {
                        Ok(link) => link,
                        Err(error) => return Done::failed(error, sink),
                    };
                    &link
                }
            };
            return link.call_with(request, sink, Held::new(None, guard)).await;
        };
        let admission = if request.changes() {
            log.admit(request.weight(), 1)
        } else {
            Admission::Counted
        };
        let kept = admission.keep(|| request.clone().detached());
        if let Some(kept) = &kept {
            request = kept.request.clone(); // the caller's data is not needed any more
        }
        if !matches!(admission, Admission::WriteThrough) {
            return self.retry(&request, sink, guard, kept.as_ref()).await;
        }
        // If the connection is lost before the flush, the change is sent again.
        guard.iter().for_each(|guard| guard.outlast_answer());
        loop {
            let epoch = log.lock().epoch();
            let changed = self.retry(&request, BytesMut::new(), guard.clone(), None);
            let changed = changed.await;
            if !changed.reply.is_ok() {
                return changed;
            }
            match self.cover(log.uncovered(epoch)).await {
                Ok(true) => return changed,
                Ok(false) => {}
                Err(error) => return Done::failed(error, changed.sink),
            }
        }
    }

    /// Waits until a flush has covered a change, and sends it if no other call does. Whether it has:
    /// otherwise the change has to be sent again, because a flush of after a loss covers nothing of
    /// before.
    async fn cover(&self, mut change: Uncovered<'_>) -> Result<bool, Error> {
        let mut late = None;
        loop {
            let step = poll_fn(|cx| {
                let polled = change.poll(cx.waker());
                self.in_time(Command::Flush, &mut late, polled, cx)
            });
            let _turn = match step.await? {
                FlushStep::Covered => return Ok(true),
                FlushStep::SendAgain => return Ok(false),
                FlushStep::Flush(turn) => turn,
            };
            let flushed = self.retry(&Request::Flush, BytesMut::new(), None, None);
            flushed.await.result()?;
        }
    }

    /// Has a request carried out, again and again until it is answered.
    async fn retry(
        &self,
        request: &Request,
        mut sink: BytesMut,
        guard: Option<Arc<RangeGuard>>,
        kept: Option<&Kept>,
    ) -> Done {
        let pool = &*self.pool;
        let command = request.command();
        let mut late = None;
        loop {
            let link = match self.link(command, &mut late).await {
                Ok(link) => link,
                Err(error) => return Done::failed(error, sink),
            };
            let record = link.log().and_then(|log| match command {
                Command::Flush => Some(log.flush()),
                _ if request.changes() => {
                    Some(log.change(request.has(CommandFlags::FUA), kept.cloned()))
                }
                _ => None,
            });
            let guard = guard.clone();
            let call = link.call_with(request.clone(), sink, Held::new(record, guard));
            let done = call.await;
            if is_answer(done.reply.error()) || pool.is_closing() {
                return done;
            }
            sink = done.sink;
        }
    }

    /// A connection, once there is one, but not too late. `late` goes on over several of them.
    async fn link(
        &self,
        command: Command,
        late: &mut Option<R::Sleep>,
    ) -> Result<Arc<Link>, Error> {
        let pool = &*self.pool;
        let mut watch = pool.watch();
        poll_fn(|cx| {
            let polled = pool.poll_link(&mut watch.place, cx);
            self.in_time(command, late, polled, cx)
        })
        .await
    }

    /// The guard of a change among those of the same bytes, but not too late: one of them may be
    /// held up by its own task.
    async fn lock_range(
        &self,
        command: Command,
        range: Range<u64>,
    ) -> Result<Arc<RangeGuard>, Error> {
        let mut guard = pin!(self.pool.range_locks.lock_range(range));
        let mut late = None;
        poll_fn(|cx| {
            let polled = guard.as_mut().poll(cx).map(|guard| Ok(Arc::new(guard)));
            self.in_time(command, &mut late, polled, cx)
        })
        .await
    }

    /// Fails a future that would wait longer than a request may take.
    fn in_time<T>(
        &self,
        command: Command,
        late: &mut Option<R::Sleep>,
        polled: Poll<Result<T, Error>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T, Error>> {
        let common = &self.pool.common;
        let Some(after) = common
            .connector
            .config
            .request_timeout
            .filter(|_| polled.is_pending())
        else {
            return polled;
        };
        let late = late.get_or_insert_with(|| common.runtime().sleep(after));
        let timeout = |()| Err(Error::Timeout { command, after });
        Pin::new(late).poll(cx).map(timeout)
    }
}

pub(super) const fn read_request(Piece { offset, len }: Piece) -> Request {
    Request::Read {
        offset,
        len,
        flags: CommandFlags::NONE,
    }
}
