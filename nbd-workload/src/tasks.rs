//! Workloads by the asynchronous clients.

use super::{Measured, Next, Op, PAGE, Progress, Workload};
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use nbd_tokio::{
    Error, Tokio,
    bytes::{Buf, Bytes, BytesMut},
    nbd_io::{client::tasks::Client, runtime::Network},
};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A runtime whose client can do a workload.
///
/// The client's futures are compiled with the crate that polls them. Therefore it is this one that does it, for each
/// runtime that it knows.
///
/// ```no_run
/// use nbd_workload::{Loops, Workload};
///
/// # async fn f(workload: Workload) -> Result<(), nbd_tokio::Error> {
/// let disk = nbd_tokio::connect("nbd://localhost/disk").await?;
/// let measured = nbd_tokio::Tokio::run(disk.into(), workload, 0).await?;
/// # Ok(()) }
/// ```
pub trait Loops: Network {
    /// Does a workload on one connection of several, of which the first has the index 0. A future that is dropped
    /// leaves requests in flight, which a server may carry out.
    ///
    /// # Errors
    ///
    /// When a request fails, which ends the workload.
    fn run(client: Client<Self>, workload: Workload, index: u32) -> Running;
}

/// A workload under way.
type Running = Pin<Box<dyn Future<Output = Result<Measured, Error>> + Send>>;

impl Loops for Tokio {
    fn run(client: Client<Self>, workload: Workload, index: u32) -> Running {
        Box::pin(run(client, workload, index))
    }
}

#[cfg(feature = "async-std")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-std")))]
impl Loops for nbd_async_std::AsyncStd {
    fn run(client: Client<Self>, workload: Workload, index: u32) -> Running {
        Box::pin(run(client, workload, index))
    }
}

/// Keeps a connection busy, by as many loops as there are requests in flight. They are one task,
/// which polls only those loops that were woken.
async fn run<R: Network>(
    client: Client<R>,
    workload: Workload,
    index: u32,
) -> Result<Measured, Error> {
    let progress = Mutex::new(Progress::new(&workload, client.size(), index));
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
    Ok(progress.finish())
}

async fn one_at_a_time<R: Network>(
    client: &Client<R>,
    workload: &Workload,
    progress: &Mutex<Progress>,
    payload: Bytes,
) -> Result<(), Error> {
    let mut buffer = match workload.op {
        Op::Write => BytesMut::new(),
        Op::Read | Op::Mix { .. } => aligned(workload.len()),
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
            buffer = client.read_into(buffer, offset).await?;
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
