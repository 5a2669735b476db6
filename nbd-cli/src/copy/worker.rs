//! The work of one thread: it reads pieces in order, so many at once, and writes them as they come.

use super::{
    digest::{Digest, ZEROES, zeroes_of},
    ends::{Sink, Source},
    pace::Pace,
    record::Record,
    window::Window,
};
use crate::{
    disk::Disk,
    outcome::{Error, Result},
    progress::Progress,
    ranges::Ranges,
    size::exact,
    work::{Work, cut},
    zeroes,
};
use futures_util::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    future::{ready, try_join_all},
    stream::{self, LocalBoxStream},
};
use nbd_tokio::{
    ContextName,
    bytes::{Bytes, BytesMut},
};
use std::{cell::RefCell, ops::Range, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Interval at which copied data is put on stable storage and recorded.
const RECORD_INTERVAL: Duration = Duration::from_secs(2);

/// State that all threads share.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) settings: Settings,
    pub(super) work: Arc<Work>,
    pub(super) pace: Option<Pace>,
    pub(super) progress: Arc<Progress>,
    pub(super) record: Record,
}

#[derive(Debug)]
pub(super) struct Settings {
    /// Number of pieces under way at once; `None` to find a good one.
    pub(super) requests: Option<usize>,
    /// Limit of that number.
    pub(super) most: usize,
    pub(super) request_size: u64,
    /// The size of blocks that are looked at for zeroes; 0 for none.
    pub(super) sparse: u64,
    pub(super) allocate: bool,
    /// Whether the destination reads as zeroes where nothing is written.
    pub(super) is_zero: bool,
    pub(super) changed_only: bool,
    pub(super) only: Option<ContextName>,
    pub(super) flush: bool,
}

impl Settings {
    /// The most pieces that may ever be under way at once.
    pub(super) fn most(&self) -> usize {
        self.requests.unwrap_or(self.most)
    }
}

/// A part of a disk that one request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    range: Range<u64>,
    /// It reads as zeroes.
    zero: bool,
}

/// A piece that was read.
#[derive(Debug)]
struct Chunk {
    range: Range<u64>,
    /// `None` if it is zero.
    data: Option<Bytes>,
}

#[derive(Debug)]
pub(super) struct Worker {
    job: Arc<Job>,
    source: Source,
    sink: Sink,
    /// Buffers to be used again.
    buffers: RefCell<Vec<BytesMut>>,
    /// Copied ranges that may not be on stable storage.
    copied: RefCell<Ranges>,
    digest: Option<RefCell<Digest>>,
    window: Window,
}

impl Worker {
    pub(super) fn new(job: &Arc<Job>, source: Source, sink: Sink, digest: bool) -> Self {
        Self {
            job: job.clone(),
            source,
            sink,
            buffers: RefCell::default(),
            copied: RefCell::default(),
            digest: digest.then(RefCell::default),
            window: Window::new(job.settings.requests, job.settings.most),
        }
    }

    /// The same ends for another thread, to be opened again.
    pub(super) fn ends(&self) -> (Source, Sink) {
        (self.source.clone(), self.sink.clone())
    }

    /// Copies until there is no work left. Written data is on stable storage then, even if another
    /// step failed.
    pub(super) async fn run(&self) -> Result<()> {
        let copied = tokio::select! {
            biased;
            copied = self.copy() => copied,
            failed = self.keep_record() => failed,
        };
        let safe = self.make_safe().await;
        copied.and(safe)
    }

    /// Ends the sessions.
    pub(super) async fn close(&self) {
        if let Source::Disk(disk) = &self.source {
            disk.close().await;
        }
        if let Some(disk) = self.sink.disk() {
            disk.close().await;
        }
    }

    /// The digest of the data, if it was asked for.
    pub(super) fn digest(&self) -> Option<String> {
        Some(self.digest.as_ref()?.borrow().hex())
    }

    async fn copy(&self) -> Result<()> {
        let chunks = self.chunks().map_ok(|chunk| {
            if let Some(digest) = &self.digest {
                match &chunk.data {
                    Some(data) => digest.borrow_mut().add(data),
                    None => digest.borrow_mut().add_zeroes(&chunk.range),
                }
            }
            chunk
        });
        let Sink::Stream(writer) = &self.sink else {
            let stored = chunks.map_ok(|chunk| self.store(chunk));
            let stored = stored.try_buffer_unordered(self.job.settings.most());
            return stored.try_for_each(|()| ready(Ok(()))).await;
        };
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.try_next().await? {
            let Chunk { range, data } = chunk;
            match data {
                Some(data) => writer.write(data).await?,
                None => {
                    for piece in cut(range.clone(), ZEROES.len() as u64) {
                        writer.write(Bytes::from_static(zeroes_of(&piece))).await?;
                    }
                }
            }
            self.note(range);
            self.window.leave();
        }
        Ok(())
    }

    /// The chunks to be written, in order.
    fn chunks(&self) -> LocalBoxStream<'_, Result<Chunk>> {
        match &self.source {
            Source::Disk(_) => {
                let pieces = self
                    .job
                    .work
                    .pieces(async |stretch| self.plan(stretch).await);
                let paced = pieces.and_then(|piece| self.wait_for_turn(piece));
                let fetched = paced.map_ok(|piece| self.fetch(piece));
                let fetched = fetched.try_buffered(self.job.settings.most());
                fetched
                    .try_filter_map(|chunk| ready(Ok(chunk)))
                    .boxed_local()
            }
            Source::Stream(_) => self
                .streamed()
                .take_until(self.job.work.stopped())
                .boxed_local(),
        }
    }

    fn streamed(&self) -> impl Stream<Item = Result<Chunk>> {
        stream::try_unfold(0, async |offset| {
            let Source::Stream(reader) = &self.source else {
                return Ok(None);
            };
            let Some(data) = reader.next().await? else {
                return Ok(None);
            };
            if let Some(pace) = &self.job.pace {
                pace.wait(data.len() as u64, &self.job.work).await;
            }
            let range = offset..offset + data.len() as u64;
            let end = range.end;
            let data = Some(data);
            Ok(Some((Chunk { range, data }, end)))
        })
    }

    /// The pieces of a stretch that are to be copied.
    async fn plan(&self, stretch: Range<u64>) -> Result<Vec<Piece>> {
        let settings = &self.job.settings;
        let Source::Disk(disk) = &self.source else {
            return Ok(Vec::new());
        };
        let mut pieces = Vec::new();
        for run in disk.runs(stretch, settings.only.as_ref()).await? {
            let zero = run.zero;
            if !run.marked {
                self.note(run.range);
            } else if zero && !settings.changed_only {
                let range = run.range;
                pieces.push(Piece { range, zero });
            } else {
                let parts = cut(run.range, settings.request_size);
                pieces.extend(parts.map(|range| Piece { range, zero }));
            }
        }
        Ok(pieces)
    }

    async fn wait_for_turn(&self, piece: Piece) -> Result<Piece> {
        self.window.enter().await;
        if let (Some(pace), false) = (&self.job.pace, piece.zero) {
            let len = piece.range.end - piece.range.start;
            pace.wait(len, &self.job.work).await;
        }
        Ok(piece)
    }

    /// Reads a piece, unless it was decided meanwhile that nothing more is to be.
    async fn fetch(&self, piece: Piece) -> Result<Option<Chunk>> {
        let Piece { range, zero } = piece;
        let Source::Disk(disk) = &self.source else {
            return Ok(None);
        };
        let data = if zero {
            None
        } else {
            let buffer = self.buffer(length(&range));
            Some(disk.read(buffer, range.start).await?.freeze())
        };
        Ok(Some(Chunk { range, data }))
    }

    /// Writes a chunk.
    async fn store(&self, chunk: Chunk) -> Result<()> {
        let Chunk { range, data } = chunk;
        self.make_room(range.end)?;
        let settings = &self.job.settings;
        match data {
            None if settings.is_zero => {}
            None if settings.changed_only => {
                let there = self.there(&range).await?;
                if !zeroes::is_zero(&there) {
                    self.put_zeroes(range.clone()).await?;
                }
                self.reuse(there.freeze());
            }
            None => self.put_zeroes(range.clone()).await?,
            Some(data) if settings.changed_only => {
                let there = self.there(&range).await?;
                self.put_changes(&data, &there, range.start).await?;
                self.reuse(there.freeze());
                self.reuse(data);
            }
            Some(data) => {
                self.put(data.clone(), range.start).await?;
                self.reuse(data);
            }
        }
        self.note(range);
        self.window.leave();
        Ok(())
    }

    /// Makes a file as long as its data, or fails because a disk is too short.
    fn make_room(&self, end: u64) -> Result<()> {
        match &self.sink {
            Sink::Growing(disk, file) if end > disk.size() => {
                if let Err(source) = file.set_len(end) {
                    return Err(Error::Step {
                        what: format!("cannot make {} {end} bytes long", disk.name()),
                        source: source.into(),
                    });
                }
                disk.refresh();
                Ok(())
            }
            Sink::Disk(disk) if end > disk.size() => Err(Error::new(format!(
                "{} is too small: it has {} bytes, and the source has more",
                disk.name(),
                exact(disk.size())
            ))),
            _ => Ok(()),
        }
    }

    /// The data of the destination.
    async fn there(&self, range: &Range<u64>) -> Result<BytesMut> {
        let buffer = self.buffer(length(range));
        match self.sink.disk() {
            Some(disk) => disk.read(buffer, range.start).await,
            None => Ok(buffer),
        }
    }

    /// Writes the blocks of data that are not there.
    async fn put_changes(&self, data: &Bytes, there: &[u8], offset: u64) -> Result<()> {
        let differs = |range: Range<usize>| !zeroes::is_same(&data[range.clone()], &there[range]);
        let runs = zeroes::alike(data.len(), offset, self.block(), differs);
        let changes = runs.filter(|(_, differs)| *differs);
        try_join_all(changes.map(|(run, _)| {
            let offset = offset + run.start as u64;
            self.put(data.slice(run), offset)
        }))
        .await
        .map(drop)
    }

    /// Writes data, with its zeroes made in the cheapest way.
    async fn put(&self, data: Bytes, offset: u64) -> Result<()> {
        let settings = &self.job.settings;
        if settings.sparse == 0 {
            return self.put_as_it_is(data, offset).await;
        }
        let mut runs = zeroes::runs(&data, offset, self.block()).peekable();
        let all = 0..data.len();
        if runs.peek().is_none_or(|run| *run == (all, false)) {
            drop(runs);
            return self.put_as_it_is(data, offset).await;
        }
        let parts = runs.filter(|(_, zero)| !(*zero && settings.is_zero));
        try_join_all(parts.map(|(run, zero)| {
            let range = offset + run.start as u64..offset + run.end as u64;
            if zero {
                self.put_zeroes(range).left_future()
            } else {
                self.put_as_it_is(data.slice(run), range.start)
                    .right_future()
            }
        }))
        .await
        .map(drop)
    }

    async fn put_as_it_is(&self, data: Bytes, offset: u64) -> Result<()> {
        match self.sink.disk() {
            Some(disk) => disk.write(data, offset).await,
            None => Ok(()),
        }
    }

    async fn put_zeroes(&self, range: Range<u64>) -> Result<()> {
        match self.sink.disk() {
            Some(disk) => disk.zero(range, self.job.settings.allocate).await,
            None => Ok(()),
        }
    }

    /// The size of blocks that are looked at by themselves.
    fn block(&self) -> u64 {
        let least = self.sink.disk().map_or(1, Disk::block);
        match self.job.settings.sparse {
            0 => 4096.max(least),
            sparse => sparse.max(least),
        }
    }

    /// A buffer, of one that was used before if there is one.
    fn buffer(&self, len: usize) -> BytesMut {
        let mut buffer = self.buffers.borrow_mut().pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Keeps a buffer, unless something of it is still in use.
    fn reuse(&self, data: Bytes) {
        if let Ok(buffer) = data.try_into_mut() {
            self.buffers.borrow_mut().push(buffer);
        }
    }

    /// A range is done with.
    fn note(&self, range: Range<u64>) {
        self.job.progress.add(range.end - range.start);
        self.copied.borrow_mut().add(range);
    }

    /// Records ranges on stable storage from time to time. It ends when that fails.
    async fn keep_record(&self) -> Result<()> {
        if !self.job.record.is_kept() {
            return std::future::pending().await;
        }
        loop {
            sleep(RECORD_INTERVAL).await;
            self.make_safe().await?;
        }
    }

    /// Flushes the ranges copied so far, and records them.
    async fn make_safe(&self) -> Result<()> {
        let Some(disk) = self.sink.disk() else {
            return Ok(());
        };
        let copied = self.copied.borrow().clone();
        if self.job.settings.flush {
            disk.flush().await?;
        }
        self.job.record.add(copied)
    }
}

/// The length of a range that fits into memory.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
