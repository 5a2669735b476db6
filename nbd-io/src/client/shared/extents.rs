//! Extents of a range, to its end.

use super::client::Client;
use crate::{
    client::{Error, Stretch, Stretches},
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

/// What the selected meta contexts say of a range, as a stream that asks the server as often as it
/// takes.
///
/// The items are stretches on which no context changes, in order and without gaps. They are inside
/// the range. An error ends the stream.
///
/// Neighbours that say the same are merged, as far as 64 answers of the server go and as they come
/// within a second: a server may answer for very little each time, and an item must not take for
/// ever. An item that nothing is known of yet takes as long as a request may.
///
/// Spec: [Metadata querying](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying).
pub struct Extents<R: Network> {
    client: Client<R>,
    stretches: Stretches,
    asked: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    /// Runs while what is known waits for an answer that may prolong it.
    merging: Option<R::Sleep>,
}

impl<R: Network> Extents<R> {
    pub(super) fn new(client: Client<R>, range: Range<u64>, max: u64, block: u64) -> Self {
        Self {
            client,
            stretches: Stretches::new(range, max, block),
            asked: None,
            merging: None,
        }
    }

    /// The next stretch; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked or fails to answer.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped loses nothing: the next one goes on.
    pub async fn next(&mut self) -> Option<Result<Stretch, Error>> {
        poll_fn(|cx| self.poll_stretch(cx)).await
    }

    fn poll_stretch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Stretch, Error>>> {
        loop {
            if let Some(stretch) = self.stretches.pop() {
                self.merging = None;
                return Poll::Ready(Some(Ok(stretch)));
            }
            if self.asked.is_none() {
                let Some((offset, len)) = self.stretches.request() else {
                    return Poll::Ready(self.stretches.pop().map(Ok));
                };
                let client = self.client.clone();
                self.asked = Some(Box::pin(async move {
                    client.block_status(offset, len, CommandFlags::NONE).await
                }));
            }
            let Some(asked) = &mut self.asked else {
                continue;
            };
            let Poll::Ready(answer) = asked.as_mut().poll(cx) else {
                if !self.stretches.is_merging() {
                    return Poll::Pending;
                }
                let runtime = self.client.runtime();
                let sleep = || runtime.sleep(Stretches::MERGE_TIME);
                let merging = self.merging.get_or_insert_with(sleep);
                ready!(Pin::new(merging).poll(cx));
                self.stretches.end_merge();
                continue;
            };
            self.asked = None;
            let order = self.client.contexts();
            if let Err(error) = answer.and_then(|answer| self.stretches.take(answer, order)) {
                self.stretches.give_up();
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl<R: Network> Stream for Extents<R> {
    type Item = Result<Stretch, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_stretch(cx)
    }
}

impl<R: Network> fmt::Debug for Extents<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extents")
            .field("client", &self.client)
            .field("stretches", &self.stretches)
            .finish_non_exhaustive()
    }
}
