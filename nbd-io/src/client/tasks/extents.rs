//! Extents of a range, to its end.

use super::client::Client;
use crate::{
    client::{Error, ExtentStep, StatusRun, StatusRuns},
    runtime::Network,
};
use futures_core::Stream;
use nbd_proto::{CommandFlags, client::ContextExtents};
use std::{
    fmt,
    future::poll_fn,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

type Answer = Result<Vec<ContextExtents>, Error>;

/// The extents of a range, as a stream that asks the server as often as it takes.
///
/// The items are runs on which no context changes, in order and without gaps. They are inside
/// the range. An error ends the stream.
///
/// Neighbours that say the same are merged, as far as 64 answers of the server go and as they come
/// within a second: a server may answer for very little each time, and an item must not take for
/// ever. An item that nothing is known of yet takes as long as a request may.
///
/// Spec: [Metadata querying](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying).
pub struct Extents<R: Network> {
    client: Client<R>,
    runs: StatusRuns,
    asked: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    /// Runs while the known run waits for an answer that may prolong it.
    merging: Option<R::Sleep>,
}

impl<R: Network> Extents<R> {
    pub(super) fn new(client: Client<R>, range: Range<u64>) -> Self {
        Self {
            runs: StatusRuns::new(client.negotiated(), range),
            client,
            asked: None,
            merging: None,
        }
    }

    /// The next run; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked or fails to answer.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped loses nothing: the next one goes on.
    pub async fn next(&mut self) -> Option<Result<StatusRun, Error>> {
        poll_fn(|cx| self.poll_run(cx)).await
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StatusRun, Error>>> {
        loop {
            if let Some(asked) = &mut self.asked {
                if let Poll::Ready(answer) = asked.as_mut().poll(cx) {
                    self.asked = None;
                    self.runs.take(answer, self.client.negotiated());
                } else if self.runs.is_merging() {
                    let runtime = self.client.runtime();
                    let sleep = || runtime.sleep(StatusRuns::MERGE_TIME);
                    let merging = self.merging.get_or_insert_with(sleep);
                    ready!(Pin::new(merging).poll(cx));
                    self.runs.end_merge();
                }
            }
            match self.runs.step() {
                ExtentStep::Item(item) => {
                    self.merging = None;
                    return Poll::Ready(Some(item));
                }
                ExtentStep::Ask { .. } if self.asked.is_some() => return Poll::Pending,
                ExtentStep::Ask { offset, len } => {
                    let client = self.client.clone();
                    self.asked = Some(Box::pin(async move {
                        client.block_status(offset, len, CommandFlags::NONE).await
                    }));
                }
                ExtentStep::Over => return Poll::Ready(None),
            }
        }
    }
}

impl<R: Network> Stream for Extents<R> {
    type Item = Result<StatusRun, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_run(cx)
    }
}

impl<R: Network> fmt::Debug for Extents<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extents")
            .field("client", &self.client)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}
