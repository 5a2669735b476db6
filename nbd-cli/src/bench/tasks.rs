//! Workloads by the asynchronous client, on any runtime.

use super::{
    Limit, Op, Workload,
    blocking::thread_time,
    offsets::{Next, Offsets},
    results::{Latencies, Measured, Row},
};
use crate::{outcome::Result, range::Unreachable};
use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, TryStreamExt},
};
use nbd_tokio::{
    Uri,
    bytes::{Buf, Bytes, BytesMut},
    nbd_io::{
        client::{ConnectOptions, tasks::Client},
        runtime::Network,
    },
};
use std::{
    future::poll_fn,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The alignment of buffers, in bytes.
const PAGE: usize = 4096;

/// Measures a workload. `alone` says that this thread is the only one that works for it.
pub(super) async fn measure<R: Network>(
    options: ConnectOptions<R>,
    uri: &Uri,
    workload: &Workload,
    alone: bool,
) -> Result<Row> {
    let mut clients = Vec::new();
    if workload.op != Op::Connect {
        for _ in 0..workload.connections {
            clients.push(options.connect_uri(uri).await?);
        }
    }
    let missing = clients
        .first()
        .and_then(|client| Unreachable::of(client.export()));
    let (start, before) = (Instant::now(), thread_time());
    let mut measured: Vec<Measured> = if workload.op == Op::Connect {
        let connecting = connect(options.clone(), uri.clone(), *workload);
        vec![spawned(options.runtime(), connecting).await?]
    } else {
        let workers = (0..).zip(&clients).map(|(index, client)| {
            let work = work(client.clone(), *workload, index);
            spawned(options.runtime(), work)
        });
        workers
            .collect::<FuturesUnordered<_>>()
            .try_collect()
            .await?
    };
    let took = start.elapsed();
    if alone && let Some(first) = measured.first_mut() {
        first.cpu = thread_time()
            .zip(before)
            .map(|(after, before)| after - before);
    } else if let Some(first) = measured.first_mut() {
        first.cpu = None;
    }
    for client in &clients {
        client.disconnect().await?;
    }
    Ok(Row::new(took, measured)?.without(missing))
}

/// Spawns a task. Tokio asks the system for events once more whenever a future outside of tasks waits.
fn spawned<R: Network, T: Send + 'static>(
    runtime: &R,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let (task, result) = task.remote_handle();
    runtime.spawn(task);
    result
}

async fn connect<R: Network>(
    options: ConnectOptions<R>,
    uri: Uri,
    workload: Workload,
) -> Result<Measured> {
    let mut progress = Progress::new(&workload, u64::MAX, 0)?;
    progress.is_exact = true;
    let mut begun = None;
    while let Some((_, now)) = progress.next(begun) {
        begun = Some(now);
        drop(options.connect_uri(&uri).await?);
    }
    Ok(progress.measured(None))
}

/// The requests of a connection that were made, and those to be made.
struct Progress {
    offsets: Offsets,
    deadline: Option<Instant>,
    made: u64,
    latencies: Latencies,
    /// The time of all requests that are found done together. With many in flight they take far longer
    /// than it takes to deal with those few.
    now: Instant,
    /// Each request is done at a time of its own.
    is_exact: bool,
}

impl Progress {
    fn new(workload: &Workload, size: u64, index: u32) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            offsets: Offsets::new(workload, size, index),
            deadline: match workload.limit {
                Limit::Time(time) => now.checked_add(time),
                Limit::Requests(_) => None,
            },
            made: 0,
            latencies: Latencies::new()?,
            now,
            is_exact: workload.depth == 1,
        })
    }

    /// Notes that a request is done that was begun at some time. Returns the next one, and the time when it
    /// begins.
    #[inline(always)]
    fn next(&mut self, begun: Option<Instant>) -> Option<(Next, Instant)> {
        if self.is_exact {
            self.tick();
        }
        if let Some(begun) = begun {
            self.made += 1;
            self.latencies.add(begun, self.now);
        }
        Some((self.offsets.next()?, self.now))
    }

    /// Reads the clock.
    fn tick(&mut self) {
        self.now = Instant::now();
        if self.deadline.is_some_and(|deadline| self.now >= deadline) {
            self.offsets.end();
        }
    }

    fn measured(self, cpu: Option<Duration>) -> Measured {
        Measured {
            requests: self.made,
            latencies: self.latencies,
            cpu,
        }
    }
}

/// Keeps a connection busy, by as many loops as there are requests in flight. They are one task,
/// which polls only those loops that were woken.
async fn work<R: Network>(client: Client<R>, workload: Workload, index: u32) -> Result<Measured> {
    let progress = Mutex::new(Progress::new(&workload, client.size(), index)?);
    let payload = aligned(workload.len()).freeze();
    let one = || one_at_a_time(&client, &workload, &progress, payload.clone());
    if workload.depth == 1 {
        one().await?;
    } else {
        let loops: FuturesUnordered<_> = (0..workload.depth).map(|_| one()).collect();
        let mut loops = pin!(loops.try_collect::<()>());
        poll_fn(|cx| {
            lock(&progress).tick();
            loops.as_mut().poll(cx)
        })
        .await?;
    }
    let progress = progress.into_inner();
    let progress = progress.unwrap_or_else(PoisonError::into_inner);
    Ok(progress.measured(Some(Duration::ZERO)))
}

async fn one_at_a_time<R: Network>(
    client: &Client<R>,
    workload: &Workload,
    progress: &Mutex<Progress>,
    payload: Bytes,
) -> Result<()> {
    let mut buffer = match workload.op {
        Op::Write => BytesMut::new(),
        _ => aligned(workload.len()),
    };
    let mut begun = None;
    loop {
        let next = lock(progress).next(begun);
        let Some((Next { offset, writes }, now)) = next else {
            return Ok(());
        };
        begun = Some(now);
        if writes {
            client.write(payload.clone(), offset).await?;
        } else {
            buffer = match client.read_into(buffer, offset).await {
                Ok(buffer) => buffer,
                Err(error) => return Err(nbd_tokio::Error::from(error).into()),
            };
        }
    }
}

// One task has it, so that it is never waited for.
#[inline(always)]
fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer for one request, at the start of a page.
fn aligned(len: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(len + PAGE);
    let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    buffer.resize(start + len, 0x5a);
    buffer.advance(start);
    buffer
}
