//! A runtime in one thread with virtual time, and a store that fails as a seed says.

use async_trait::async_trait;
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
    task::{ArcWake, waker},
};
use nbd_io::runtime::{Runtime, Tasks};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    memory::InMemory, path::Path,
};
use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

#[derive(Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    now: Duration,
    tasks: BTreeMap<usize, BoxFuture<'static, ()>>,
    ready: Vec<usize>,
    names: usize,
    timers: BTreeMap<(Duration, usize), Waker>,
}

struct Wake(Sim, usize);

impl ArcWake for Wake {
    fn wake_by_ref(this: &Arc<Self>) {
        let mut world = this.0.0.lock().unwrap();
        if !world.ready.contains(&this.1) {
            world.ready.push(this.1);
        }
    }
}

pub(crate) struct Sleep {
    sim: Sim,
    at: Duration,
    name: usize,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut world = self.sim.0.lock().unwrap();
        if world.now >= self.at {
            return Poll::Ready(());
        }
        world
            .timers
            .insert((self.at, self.name), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.sim
            .0
            .lock()
            .unwrap()
            .timers
            .remove(&(self.at, self.name));
    }
}

impl Runtime for Sim {
    type Sleep = Sleep;

    fn sleep(&self, time: Duration) -> Sleep {
        let mut world = self.0.lock().unwrap();
        world.names += 1;
        Sleep {
            sim: self.clone(),
            at: world.now + time,
            name: world.names,
        }
    }

    fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

impl Tasks for Sim {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut world = self.0.lock().unwrap();
        world.names += 1;
        let name = world.names;
        world.tasks.insert(name, Box::pin(task));
        world.ready.push(name);
    }
}

impl Sim {
    /// Carries on with all tasks until `main` is done. The others are then dropped.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        main: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        self.spawn(async move {
            let value = main.await;
            *place.lock().unwrap() = Some(value);
        });
        loop {
            if let Some(result) = result.lock().unwrap().take() {
                let tasks = std::mem::take(&mut self.0.lock().unwrap().tasks);
                drop(tasks);
                return result;
            }
            let next = {
                let mut world = self.0.lock().unwrap();
                if world.ready.is_empty() {
                    let ((at, _), waker) =
                        world.timers.pop_first().expect("every task waits for ever");
                    world.now = at;
                    drop(world);
                    waker.wake();
                    continue;
                }
                let name = world.ready.remove(0);
                world.tasks.remove(&name).map(|task| (name, task))
            };
            let Some((name, mut task)) = next else {
                continue;
            };
            let waker = waker(Arc::new(Wake(self.clone(), name)));
            if task
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
            {
                self.0.lock().unwrap().tasks.insert(name, task);
            }
        }
    }
}

/// The ways in which a store fails.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The longest time of a request, in milliseconds.
    pub(crate) latency: u64,
    /// The time of every request beside that, in milliseconds.
    pub(crate) exact_latency: u64,
    /// The part of requests that fail before they are carried out, in percent.
    pub(crate) failures: u32,
    /// The part of puts that fail after they were carried out, in percent.
    pub(crate) lost_replies: u32,
    /// The reply to each put that succeeds is lost.
    pub(crate) forgetful: bool,
    /// Conditions are ignored.
    pub(crate) unconditional: bool,
    /// Tags have quotes in answers, and are compared without them.
    pub(crate) bare_tags: bool,
    /// After so many puts and deletes the power of the client fails: nothing more is carried out.
    pub(crate) power: Option<u64>,
}

#[derive(Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<InMemory>,
    sim: Sim,
    state: Arc<Mutex<State>>,
}

struct State {
    random: fastrand::Rng,
    faults: Faults,
    changes: u64,
    cut: bool,
    waiting: Option<Waker>,
    held: Option<u64>,
    holding: Option<Waker>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

fn broken(reason: &'static str) -> Error {
    Error::Generic {
        store: "Faulty",
        source: reason.into(),
    }
}

impl Faulty {
    pub(crate) fn new(inner: Arc<InMemory>, sim: &Sim, seed: u64, faults: Faults) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let state = Arc::new(Mutex::new(State {
            random,
            faults,
            changes: 0,
            cut: false,
            waiting: None,
            held: None,
            holding: None,
        }));
        Self {
            inner,
            sim: sim.clone(),
            state,
        }
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// Holds up the request that is the `change`th put or delete, before it is carried out. The
    /// future ends when it has come.
    pub(crate) async fn hold(&self, change: u64) {
        self.state.lock().unwrap().held = Some(change);
        std::future::poll_fn(|context| {
            let mut state = self.state.lock().unwrap();
            if state.changes >= change {
                return Poll::Ready(());
            }
            state.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        let waker = {
            let mut state = self.state.lock().unwrap();
            state.held = None;
            state.holding.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    async fn wait_while_held(&self, change: u64) {
        let waiting = {
            let mut state = self.state.lock().unwrap();
            if state.held != Some(change) {
                return;
            }
            state.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
        std::future::poll_fn(|context| {
            let mut state = self.state.lock().unwrap();
            if state.held != Some(change) {
                return Poll::Ready(());
            }
            state.holding = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends when the power has failed.
    pub(crate) async fn cut(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.state.lock().unwrap();
            if state.cut {
                return Poll::Ready(());
            }
            state.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Puts and deletes that were begun.
    pub(crate) fn changes(&self) -> u64 {
        self.state.lock().unwrap().changes
    }

    async fn request(&self, change: bool) -> Result<bool> {
        let (number, latency, fails, lost, power) = {
            let mut state = self.state.lock().unwrap();
            let faults = state.faults;
            state.changes += u64::from(change);
            let power = !change || faults.power.is_none_or(|limit| state.changes <= limit);
            let latency = state.random.u64(0..=faults.latency) + faults.exact_latency;
            let fails = state.random.u32(0..100) < faults.failures;
            let lost = change && state.random.u32(0..100) < faults.lost_replies;
            (state.changes, latency, fails, lost, power)
        };
        if change {
            self.wait_while_held(number).await;
        }
        if !power {
            let waiting = {
                let mut state = self.state.lock().unwrap();
                state.cut = true;
                state.waiting.take()
            };
            waiting.into_iter().for_each(Waker::wake);
            std::future::pending::<()>().await;
        }
        if latency > 0 {
            self.sim.sleep(Duration::from_millis(latency)).await;
        }
        if fails {
            Err(broken("503 Slow Down"))
        } else {
            Ok(lost)
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let lost = self.request(true).await?;
        let Faults {
            unconditional,
            bare_tags,
            ..
        } = self.state.lock().unwrap().faults;
        if unconditional {
            options.mode = PutMode::Overwrite;
        }
        if let PutMode::Update(version) = &mut options.mode
            && let Some(tag) = version.e_tag.as_mut().filter(|_| bare_tags)
        {
            if tag.starts_with('"') {
                return Err(Error::Precondition {
                    path: location.to_string(),
                    source: format!("there is no tag {tag}").into(),
                });
            }
            *tag = format!("\"{tag}\"");
        }
        let result = self.inner.put_opts(location, payload, options).await;
        let forgotten = self.state.lock().unwrap().faults.forgetful && result.is_ok();
        if lost || forgotten {
            Err(broken("the connection was reset"))
        } else {
            result
        }
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(broken("there are no uploads in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(false).await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    this.request(true).await?;
                    let one = stream::iter([Ok(location.clone())]).boxed();
                    this.inner.delete_stream(one).next().await;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
