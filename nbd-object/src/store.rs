//! Requests to the store below a disk's prefix: bounded, counted, and retried.

use crate::{
    Damage, Error,
    format::{Kind, ObjectId, Piece},
    runtime::Runtime,
    statistics::Counters,
};
use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    future::{Either, select},
    stream::BoxStream,
};
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion, path::Path,
};
use std::{
    collections::BTreeSet,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// The policy for requests that failed and may succeed later.
///
/// The stores of `object_store` that speak HTTP retry by themselves already, by their
/// `RetryConfig`. This policy is above theirs: a request that they give up after more than
/// [`total_time`](Self::total_time) is not tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// The number of attempts, the first one included.
    pub attempts: u32,
    /// The pause before the second attempt. Each further one is twice as long, up to 5 s; of each,
    /// a random part of up to a half is left out.
    pub backoff: Duration,
    /// No attempt begins later than this after the first one.
    pub total_time: Duration,
    /// The same while the store has answered nothing yet, so that an address without a store is
    /// reported soon. Refusals that may pass, such as 503, are no answers. An attempt that waits for
    /// the first answer then is given up ([`Error::NoAnswer`]); later ones have as long as the store's
    /// own timeout.
    pub first_answer: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 16,
            backoff: Duration::from_millis(100),
            total_time: Duration::from_secs(60),
            first_answer: Duration::from_secs(5),
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Limit of requests of one disk at the same time.
const CONCURRENT: usize = 128;

/// The result of a conditional put.
#[derive(Debug)]
pub(crate) enum Put {
    Done(UpdateVersion),
    /// The condition did not hold, or holds no more because an earlier attempt succeeded.
    Refused,
}

/// A small object whose version is known.
#[derive(Debug)]
pub(crate) struct Versioned {
    pub(crate) bytes: Bytes,
    pub(crate) version: UpdateVersion,
    pub(crate) meta: ObjectMeta,
}

/// Numbers that never come again.
pub(crate) type Nonces = Arc<dyn Fn() -> u64 + Send + Sync>;

pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    pub(crate) runtime: Runtime,
    pub(crate) retry: Retry,
    pub(crate) counters: Arc<Counters>,
    permits: Semaphore,
    answered: AtomicBool,
    nonces: Nonces,
    /// The store compares tags without the quotes that it gives them in answers.
    bare_tags: AtomicBool,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects")
            .field("store", &self.store)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Objects {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        runtime: Runtime,
        retry: Retry,
        nonces: Nonces,
    ) -> Self {
        Self {
            store,
            prefix,
            runtime,
            retry,
            counters: Arc::default(),
            permits: Semaphore::new(CONCURRENT),
            answered: AtomicBool::new(false),
            nonces,
            bare_tags: AtomicBool::new(false),
        }
    }

    /// A number that no other writer has.
    pub(crate) fn nonce(&self) -> u64 {
        (self.nonces)()
    }

    pub(crate) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), Path::join)
    }

    /// The name below the prefix of a path in the store.
    pub(crate) fn name_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.prefix)?.collect();
        Some(
            parts
                .iter()
                .map(AsRef::as_ref)
                .collect::<Vec<&str>>()
                .join("/"),
        )
    }

    /// A whole object of at most `limit` bytes; `None` if there is none.
    pub(crate) async fn get(&self, name: &str, limit: u64) -> Result<Option<Versioned>, Error> {
        let path = self.path(name);
        let got = self
            .retrying("get", &path, || async {
                let found = self.store.get_opts(&path, GetOptions::default()).await?;
                if found.meta.size > limit {
                    return Ok(Err(found.meta.size));
                }
                let meta = found.meta.clone();
                Ok(Ok((found.bytes().await?, meta)))
            })
            .await;
        match got {
            Ok(Ok((bytes, meta))) => {
                Counters::count(&self.counters.gets, 1);
                Counters::count(&self.counters.bytes_got, bytes.len() as u64);
                let version = UpdateVersion {
                    e_tag: meta.e_tag.clone(),
                    version: meta.version.clone(),
                };
                Ok(Some(Versioned {
                    bytes,
                    version,
                    meta,
                }))
            }
            Ok(Err(size)) => Err(Error::Damaged(Damage {
                object: path.to_string(),
                range: 0..size,
                disk: None,
                detail: format!("at most {limit} bytes were expected, and there are {size}"),
            })),
            Err(error) if error.is_missing_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Some bytes of an immutable object, exactly as many as were asked for.
    pub(crate) async fn get_range(
        &self,
        kind: Kind,
        id: ObjectId,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, Error> {
        let path = self.path(&id.name(kind));
        let wanted = range.clone();
        let bytes = self
            .retrying("get", &path, || async {
                let options = GetOptions {
                    range: Some(GetRange::Bounded(range.clone())),
                    ..GetOptions::default()
                };
                match self.store.get_opts(&path, options).await {
                    // A store may answer with more or less than it was asked for.
                    Ok(found) if found.range != range => Ok(Bytes::new()),
                    Ok(found) => bytes_of(found).await,
                    // Stores have no common error for a range behind the end of an object.
                    Err(error @ StoreError::Generic { .. }) => match self.store.head(&path).await {
                        Ok(meta) if meta.size < range.end => Ok(Bytes::new()),
                        _ => Err(error),
                    },
                    Err(error) => Err(error),
                }
            })
            .await?;
        Counters::count(&self.counters.gets, 1);
        Counters::count(&self.counters.bytes_got, bytes.len() as u64);
        if bytes.len() as u64 == wanted.end - wanted.start {
            Ok(bytes)
        } else {
            Err(Error::Damaged(Damage {
                object: path.to_string(),
                range: wanted,
                disk: None,
                detail: "the object is shorter than this".into(),
            }))
        }
    }

    pub(crate) fn damage(&self, kind: Kind, piece: &Piece, detail: impl Into<String>) -> Error {
        Error::Damaged(Damage {
            object: self.path(&piece.object.name(kind)).to_string(),
            range: piece.range(),
            disk: None,
            detail: detail.into(),
        })
    }

    /// Whether the store has answered any request.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// Sends tags without quotes from now on.
    pub(crate) fn use_bare_tags(&self) {
        self.bare_tags.store(true, Relaxed);
    }

    /// The condition of a put as the store understands it.
    fn condition(&self, mode: PutMode) -> PutMode {
        match mode {
            PutMode::Update(version) if self.bare_tags.load(Relaxed) => {
                let bare = |tag: String| tag.trim_matches('"').to_owned();
                PutMode::Update(UpdateVersion {
                    e_tag: version.e_tag.map(bare),
                    ..version
                })
            }
            mode => mode,
        }
    }

    pub(crate) async fn put(
        &self,
        name: &str,
        payload: PutPayload,
        mode: PutMode,
    ) -> Result<Put, Error> {
        let path = self.path(name);
        let len = payload.content_length() as u64;
        let mode = self.condition(mode);
        let result = self
            .retrying("put", &path, || async {
                let options = mode.clone().into();
                match self.store.put_opts(&path, payload.clone(), options).await {
                    Ok(done) => Ok(Put::Done(done.into())),
                    Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. }) => {
                        Ok(Put::Refused)
                    }
                    // Some stores answer so to a swap of an object that is not there.
                    Err(StoreError::NotFound { .. }) if matches!(mode, PutMode::Update(_)) => {
                        Ok(Put::Refused)
                    }
                    Err(error) => Err(error),
                }
            })
            .await?;
        Counters::count(&self.counters.puts, 1);
        Counters::count(&self.counters.bytes_put, len);
        Ok(result)
    }

    /// Puts an object whose name is its writer's alone. If one is there already, an earlier attempt
    /// succeeded and its answer was lost; its bytes are compared.
    pub(crate) async fn put_immutable(
        &self,
        kind: Kind,
        id: ObjectId,
        payload: PutPayload,
    ) -> Result<(), Error> {
        let name = id.name(kind);
        match self.put(&name, payload.clone(), PutMode::Create).await? {
            Put::Done(_) => Ok(()),
            Put::Refused => {
                let found = self.get(&name, payload.content_length() as u64).await?;
                let same = found.is_some_and(|found| {
                    let ours = payload.iter().flat_map(|part| part.iter());
                    found.bytes.len() == payload.content_length() && ours.eq(found.bytes.iter())
                });
                if same {
                    Ok(())
                } else {
                    Err(Error::AlreadyExists(self.path(&name).to_string()))
                }
            }
        }
    }

    pub(crate) fn list(&self, directory: &str) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        let path = self.path(directory);
        Counters::count(&self.counters.lists, 1);
        self.store
            .list(Some(&path))
            .map_err(move |error| failed("list", &path, error))
            .boxed()
    }

    /// Deletes objects; those that are not there count as deleted.
    pub(crate) async fn delete(&self, paths: Vec<Path>) -> Result<(), Error> {
        const AT_ONCE: usize = 1000;
        for some in paths.chunks(AT_ONCE) {
            let Some(first) = some.first() else { continue };
            // Each attempt is about those that are left, or one of many objects would always fail.
            let left = Mutex::new(some.iter().cloned().collect::<BTreeSet<Path>>());
            let left = || left.lock().unwrap_or_else(PoisonError::into_inner);
            self.retrying("delete", first, || async {
                let paths: Vec<_> = left().iter().cloned().map(Ok).collect();
                let mut done = self
                    .store
                    .delete_stream(futures_util::stream::iter(paths).boxed());
                let mut failed = None;
                while let Some(result) = done.next().await {
                    match result {
                        Ok(path) => {
                            left().remove(&path);
                        }
                        Err(StoreError::NotFound { .. }) => {}
                        Err(error) => failed = Some(error),
                    }
                }
                failed.map_or(Ok(()), Err)
            })
            .await?;
            Counters::count(&self.counters.deletes, some.len() as u64);
        }
        Ok(())
    }

    /// The result of an attempt; `None` if it had to be given up because the store has answered
    /// nothing at all since `begin`.
    async fn answer_of<T>(
        &self,
        attempt: impl Future<Output = object_store::Result<T>>,
        begin: Duration,
    ) -> Option<object_store::Result<T>> {
        if self.has_answered() {
            return Some(attempt.await);
        }
        let end = begin + self.retry.first_answer;
        let left = self.runtime.sleep(end.saturating_sub(self.runtime.now()));
        match select(pin!(attempt), left).await {
            Either::Left((result, _)) => Some(result),
            // Another request was answered meanwhile.
            Either::Right(((), attempt)) if self.has_answered() => Some(attempt.await),
            Either::Right(_) => None,
        }
    }

    async fn retrying<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        operation: &'static str,
        path: &Path,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let begin = self.runtime.now();
        let mut pause = self.retry.backoff;
        for count in 1.. {
            let result = {
                let _permit = self.permits.acquire().await;
                self.answer_of(attempt(), begin).await
            };
            let Some(result) = result else {
                return Err(Error::NoAnswer {
                    operation,
                    object: path.to_string(),
                    time: self.retry.first_answer,
                });
            };
            let transient = result.as_ref().err().is_some_and(is_transient);
            if !transient {
                self.answered.store(true, Relaxed);
            }
            let error = match result {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let limit = if self.has_answered() {
                self.retry.total_time
            } else {
                self.retry.first_answer
            };
            let late = self.runtime.now().saturating_sub(begin) + pause > limit;
            if count >= self.retry.attempts || late || !transient {
                return Err(failed(operation, path, error));
            }
            Counters::count(&self.counters.retries, 1);
            let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            let jitter = Duration::from_millis(fastrand::u64(0..=millis / 2));
            self.runtime.sleep(pause.saturating_sub(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("the loop above ends by returning")
    }
}

/// The bytes of an answer, in memory of their own.
///
/// Those of a store over HTTP may be a part of its connection's buffer: a page of the map that was kept
/// would keep hundreds of KiB.
async fn bytes_of(found: GetResult) -> object_store::Result<Bytes> {
    let len = usize::try_from(found.range.end - found.range.start).unwrap_or(usize::MAX);
    let GetResultPayload::Stream(mut stream) = found.payload else {
        return found.bytes().await;
    };
    let mut bytes = Vec::with_capacity(len);
    while let Some(some) = stream.try_next().await? {
        if some.len() > len - bytes.len() {
            // More than was announced is damage, too.
            return Ok(Bytes::new());
        }
        bytes.extend_from_slice(&some);
    }
    Ok(bytes.into())
}

fn failed(operation: &'static str, path: &Path, source: StoreError) -> Error {
    Error::Store {
        operation,
        object: path.to_string(),
        source: Arc::new(source),
    }
}

/// Only errors that no other class describes: timeouts, throttling, lost connections.
fn is_transient(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Generic { .. } | StoreError::JoinError { .. }
    )
}
