//! Objects in memory, behind a network that loses requests and answers.

use super::ObjectPlan;
use crate::{
    history::History,
    runtime::{Sim, lock},
};
use async_trait::async_trait;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use nbd_io::runtime::{Runtime, Tasks};
use nbd_object::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
    path::Path,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::sync::oneshot;

/// The store. Its requests are tasks of a process that never ends.
#[derive(Clone, Debug)]
pub(super) struct Store {
    objects: Arc<InMemory>,
    plan: ObjectPlan,
    sim: Sim,
    history: Arc<History>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    refuses_until: Duration,
    is_healed: bool,
    /// When objects were put, by the clock of the simulation.
    put: BTreeMap<Path, Duration>,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store")
    }
}

fn failure(why: &'static str) -> Error {
    Error::Generic {
        store: "simulated",
        source: why.into(),
    }
}

impl Store {
    pub(super) fn new(plan: ObjectPlan, sim: Sim, history: Arc<History>) -> Self {
        Self {
            objects: Arc::default(),
            plan,
            sim,
            history,
            state: Arc::default(),
        }
    }

    pub(super) fn refuse_for(&self, time: Duration) {
        let until = self.sim.now() + time;
        lock(&self.state).refuses_until = until;
    }

    pub(super) fn heal(&self) {
        let mut state = lock(&self.state);
        state.refuses_until = Duration::ZERO;
        state.is_healed = true;
    }

    /// Lets the seed decide whether something of so many percent happens.
    fn happens(&self, percent: u32) -> bool {
        let is_healed = lock(&self.state).is_healed;
        self.sim.random(|rng| rng.u32(..100)) < percent && !is_healed
    }

    fn latency(&self) -> Duration {
        let most = u64::try_from(self.plan.latency.as_micros()).unwrap_or(0);
        Duration::from_micros(self.sim.random(|rng| rng.u64(..=most)))
    }

    /// The description of an object with the time at which it was put.
    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let put = lock(&self.state).put.get(&meta.location).copied();
        meta.last_modified = (SystemTime::UNIX_EPOCH + put.unwrap_or_default()).into();
        meta
    }

    /// Has a request carried out whether or not its sender lives on.
    async fn request<T: Send + 'static>(
        &self,
        changes: bool,
        carry_out: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let store = self.clone();
        self.sim.spawn(async move {
            let result = store.serve(changes, carry_out).await;
            // Perhaps nothing waits for it any more.
            let _ = answer.send(result);
        });
        answered.await.map_err(|_| failure("the store has ended"))?
    }

    async fn serve<T>(
        &self,
        changes: bool,
        carry_out: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.sim.sleep(self.latency()).await;
        let refuses = lock(&self.state).refuses_until > self.sim.now();
        if refuses || self.happens(self.plan.failures) {
            self.history.inject("store refuses", true);
            self.sim.sleep(self.latency()).await;
            return Err(failure("503 Slow Down"));
        }
        let result = carry_out.await;
        self.sim.sleep(self.latency()).await;
        if changes && self.happens(self.plan.lost_replies) {
            self.history
                .inject("answer of the store lost", result.is_ok());
            return Err(failure("the connection was reset"));
        }
        result
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let (store, location) = (self.clone(), location.clone());
        let put = async move {
            let put = store.objects.put_opts(&location, payload, options).await?;
            let now = store.sim.now();
            lock(&store.state).put.insert(location, now);
            Ok(put)
        };
        self.request(true, put).await
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failure("there are no uploads in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (store, location) = (self.clone(), location.clone());
        let get = async move {
            let mut got = store.objects.get_opts(&location, options).await?;
            got.meta = store.dated(got.meta);
            Ok(got)
        };
        self.request(false, get).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deleted = locations.then(move |location| {
            let store = store.clone();
            async move {
                let one = stream::iter([location]).boxed();
                let mut deleted = store.objects.delete_stream(one);
                let delete = async move {
                    let deleted = deleted.next().await;
                    deleted.unwrap_or_else(|| Err(failure("nothing was deleted")))
                };
                store.request(true, delete).await
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, listed) = (self.clone(), self.objects.list(prefix));
        let list = async move {
            let list = store.clone();
            let listed = listed.map_ok(move |meta| list.dated(meta));
            store.request(false, listed.try_collect::<Vec<_>>()).await
        };
        let all = |list: Result<Vec<ObjectMeta>>| match list {
            Ok(list) => stream::iter(list.into_iter().map(Ok)).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        };
        stream::once(list).flat_map(all).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
