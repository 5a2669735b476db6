//! Commits: changes become objects, and a swap of the head makes them the disk.

use super::{Disk, Inner, State};
use crate::{
    Error,
    changes::Changes,
    format::{HEAD_LIMIT, Head, levels_for},
    map::{Root, edit},
    puts::puts,
    statistics::Counters,
    store::Put,
};
use futures_util::try_join;
use nbd_io::mutation::Mutation;
use object_store::{PutMode, PutPayload, UpdateVersion};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The name of the head below a disk's prefix.
pub(crate) const HEAD: &str = "head";

/// A call that waits for a commit that begins later.
pub(crate) struct Wish {
    pub(super) collect: bool,
    pub(super) size: Option<u64>,
    done: oneshot::Sender<Result<Committed, Error>>,
}

/// A commit that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) head: Head,
    /// Objects of this writer from this number on belong to later commits.
    pub(crate) next: u64,
}

impl Disk {
    /// Brings every write that has returned into the store. Flushes that wait at the same time
    /// share one commit.
    ///
    /// It costs a put for each full segment and one for the rest, one for each MiB of changed pages
    /// of the map, all at the same time, and then one for the head: three for a single write, in the
    /// time of two. The head is a put of its own, whose condition fences other writers. A flush costs
    /// nothing if there is nothing to commit.
    ///
    /// # Errors
    ///
    /// [`Error::Fenced`] if another program has opened the disk. Other errors may be temporary: the
    /// data stays in memory.
    pub async fn flush(&self) -> Result<(), Error> {
        Counters::count(&self.inner.objects.counters.flushes, 1);
        let joined = {
            let mut state = self.inner.state();
            state.check()?;
            if state.active.is_empty() {
                if state.frozen.is_none() {
                    return Ok(());
                }
                let (sender, receiver) = oneshot::channel();
                state.joined.push(sender);
                Some(receiver)
            } else {
                None
            }
        };
        match joined {
            Some(joined) => joined.await.map_err(|_| Error::Aborted)?,
            None => self.commit(false, None).await.map(drop),
        }
    }

    /// Has a commit made, also if nothing has changed.
    pub(crate) async fn commit(
        &self,
        collect: bool,
        size: Option<u64>,
    ) -> Result<Committed, Error> {
        let receiver = {
            let mut state = self.inner.state();
            state.check()?;
            let (done, receiver) = oneshot::channel();
            state.wishes.push(Wish {
                collect,
                size,
                done,
            });
            self.start_commits(&mut state);
            receiver
        };
        receiver.await.map_err(|_| Error::Aborted)?
    }

    /// Makes the disk larger.
    ///
    /// # Errors
    ///
    /// When `size` is smaller than it is, or no multiple of 512, and as [`flush`](Self::flush).
    pub async fn grow(&self, size: u64) -> Result<(), Error> {
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        crate::location::check_size(size)?;
        let now = self.size();
        if size < now {
            return Err(Error::Invalid(format!(
                "a disk of {now} bytes cannot shrink to {size}"
            )));
        }
        self.commit(false, Some(size)).await.map(drop)
    }

    /// Starts the task that commits, unless it is at work.
    pub(super) fn start_commits(&self, state: &mut State) {
        if !state.committing {
            state.committing = true;
            let inner = self.inner.clone();
            self.inner
                .objects
                .runtime
                .spawn(async move { inner.commits().await });
        }
    }
}

impl Inner {
    /// Commits as long as there is demand.
    async fn commits(self: Arc<Self>) {
        let mut failed = false;
        loop {
            let (wishes, head) = {
                let mut state = self.state();
                let full = state.active.weight() >= self.options.dirty_limit / 2 && !failed;
                // Those that came since the last commit failed want another attempt.
                let full = full || !state.waiting.is_empty();
                if state.failed.is_some() || (state.wishes.is_empty() && !full) {
                    state.committing = false;
                    if let Some(error) = state.failed.clone() {
                        for wish in std::mem::take(&mut state.wishes) {
                            let _ = wish.done.send(Err(error.clone()));
                        }
                    }
                    return;
                }
                let active = std::mem::replace(&mut state.active, Changes::new(self.block_size));
                state.frozen = Some(active);
                (std::mem::take(&mut state.wishes), state.head.clone())
            };
            let begin = self.objects.runtime.now();
            let result = self.commit_once(head, &wishes).await;
            failed = result.is_err();
            let counters = &self.objects.counters;
            Counters::count(
                if failed {
                    &counters.failed_commits
                } else {
                    &counters.commits
                },
                1,
            );
            counters.commit_took(self.objects.runtime.now().saturating_sub(begin));
            self.conclude(wishes, result);
        }
    }

    /// Takes the result over into the state, and answers all that wait.
    fn conclude(&self, wishes: Vec<Wish>, result: Result<(Head, UpdateVersion), Error>) {
        let mut state = self.state();
        let frozen = state.frozen.take();
        let result = match result {
            Ok((head, version)) => {
                state.head = head;
                state.version = Some(version);
                Ok(state.committed())
            }
            Err(error) => {
                if let Some(older) = frozen {
                    let newer = std::mem::replace(&mut state.active, Changes::new(self.block_size));
                    state.active = older.and_then(newer);
                }
                state.version = None;
                if let Error::Fenced { .. } = error {
                    state.failed = Some(error.clone());
                }
                Err(error)
            }
        };
        let brief = result.as_ref().map(drop).map_err(Clone::clone);
        for waiting in std::mem::take(&mut state.joined)
            .into_iter()
            .chain(std::mem::take(&mut state.waiting))
        {
            let _ = waiting.send(brief.clone());
        }
        drop(state);
        for wish in wishes {
            let _ = wish.done.send(result.clone());
        }
    }

    async fn commit_once(
        &self,
        old: Head,
        wishes: &[Wish],
    ) -> Result<(Head, UpdateVersion), Error> {
        let mut head = old.clone();
        head.generation += 1;
        head.collections += u64::from(wishes.iter().any(|wish| wish.collect));
        head.size = wishes
            .iter()
            .filter_map(|wish| wish.size)
            .fold(head.size, u64::max);
        head.levels = levels_for(head.blocks());
        let root = Root::from(&old);
        let levels = head.levels;
        let (puts, taken) = puts();
        let make = async move {
            let edits = self.pack(root, &puts).await?;
            let next = || self.state().next_object();
            edit(&self.pages, root, levels, &edits, next, &puts).await
        };
        let (root, ()) = try_join!(make, taken.put(&self.objects))?;
        head.root = root.page;
        let version = self.swap_head(&mut head).await?;
        Ok((head, version))
    }

    /// The error of a writer that has lost the disk to another one, which may have deleted objects
    /// since.
    pub(super) async fn fenced(&self) -> Option<Error> {
        let ours = self.state().head.clone();
        if !self.writable {
            return None;
        }
        let found = read_head(&self.objects, HEAD).await.ok()?;
        let (epoch, nonce) = found.map_or((0, 0), |(head, _)| (head.epoch, head.nonce));
        if (epoch, nonce) == (ours.epoch, ours.nonce) {
            return None;
        }
        let error = Error::Fenced {
            expected: ours.epoch,
            found: epoch,
        };
        self.state().failed = Some(error.clone());
        Some(error)
    }

    /// Replaces the head, if it is still this writer's.
    ///
    /// A swap may have been carried out although its answer was lost: then the next attempt is
    /// refused, and the head is found to be the new one already.
    async fn swap_head(&self, head: &mut Head) -> Result<UpdateVersion, Error> {
        const ATTEMPTS: u32 = 5;
        let mut version = self.state().version.take();
        for _ in 0..ATTEMPTS {
            let expected = match version.take() {
                Some(version) => version,
                None => {
                    let (found, version) =
                        read_head(&self.objects, HEAD).await?.ok_or(Error::Fenced {
                            expected: head.epoch,
                            found: 0,
                        })?;
                    let is_ours = (found.epoch, found.nonce) == (head.epoch, head.nonce);
                    if !is_ours && !Mutation::UncheckedWriter.is_made() {
                        return Err(Error::Fenced {
                            expected: head.epoch,
                            found: found.epoch,
                        });
                    }
                    if found == *head {
                        return Ok(version);
                    }
                    // It may be that of a commit whose outcome was never learnt.
                    head.generation = found.generation + 1;
                    version
                }
            };
            let payload = PutPayload::from(head.encode());
            let mode = match Mutation::UnconditionalCommit.is_made() {
                true => PutMode::Overwrite,
                false => PutMode::Update(expected),
            };
            match self.objects.put(HEAD, payload, mode).await? {
                Put::Done(new) if new.e_tag.is_some() || new.version.is_some() => return Ok(new),
                Put::Done(_) | Put::Refused => {}
            }
        }
        Err(Error::IgnoresConditions(
            "a swap of the head was refused, although nothing has changed it".into(),
        ))
    }
}

/// A head or a snapshot, and its version.
pub(crate) async fn read_head(
    objects: &crate::store::Objects,
    name: &str,
) -> Result<Option<(Head, UpdateVersion)>, Error> {
    let Some(found) = objects.get(name, HEAD_LIMIT).await? else {
        return Ok(None);
    };
    let head = Head::decode(&found.bytes).map_err(|detail| {
        Error::Damaged(crate::Damage {
            object: objects.path(name).to_string(),
            range: 0..found.bytes.len() as u64,
            disk: None,
            detail,
        })
    })?;
    Ok(Some((head, found.version)))
}
