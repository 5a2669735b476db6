//! Puts of a commit's objects, some at the same time, while the next ones are made.

use crate::{
    Error,
    format::{Kind, ObjectId},
    store::Objects,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::PutPayload;
use tokio::sync::mpsc;

/// Puts of one commit at the same time.
const AT_ONCE: usize = 16;

/// An object that is made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) kind: Kind,
    pub(crate) id: ObjectId,
    pub(crate) payload: PutPayload,
}

/// Takes objects while there is room for them.
#[derive(Debug)]
pub(crate) struct Puts(mpsc::Sender<Made>);

/// The objects that were taken.
#[derive(Debug)]
pub(crate) struct Taken(mpsc::Receiver<Made>);

pub(crate) fn puts() -> (Puts, Taken) {
    let (sender, receiver) = mpsc::channel(1);
    (Puts(sender), Taken(receiver))
}

impl Puts {
    /// Hands over an object. It waits while as many are being put as may be at once, so that no more
    /// are in memory.
    pub(crate) async fn put(&self, made: Made) -> Result<(), Error> {
        // Where a put has failed, the commit ends by its error.
        self.0.send(made).await.map_err(|_| Error::Aborted)
    }
}

impl Taken {
    /// Puts the objects, until there will be no more.
    pub(crate) async fn put(self, objects: &Objects) -> Result<(), Error> {
        let taken = stream::unfold(self.0, async |mut taken| Some((taken.recv().await?, taken)));
        let put = |Made { kind, id, payload }| objects.put_immutable(kind, id, payload);
        taken.map(put).buffer_unordered(AT_ONCE).try_collect().await
    }
}
