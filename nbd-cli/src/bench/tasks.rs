//! Workloads by the asynchronous client, on any runtime.

use super::{
    Task,
    blocking::{one_at_a_time, thread_time},
    results::{Figures, Row},
};
use crate::{outcome::Result, range::Unreachable};
use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, TryStreamExt},
};
use nbd_tokio::{
    Uri,
    nbd_io::{
        client::{ConnectOptions, Error},
        runtime::Network,
    },
};
use nbd_workload::{Loops, Measured, Progress, Workload};
use std::time::{Duration, Instant};

/// Measures a workload. `alone` says that this thread is the only one that works for it.
pub(super) async fn measure<R: Loops>(
    options: ConnectOptions<R>,
    uri: &Uri,
    task: &Task,
    alone: bool,
) -> Result<Row> {
    let workload = task.workload;
    let mut clients = Vec::new();
    if !task.only_connects() {
        for _ in 0..workload.connections {
            clients.push(options.connect_uri(uri).await?);
        }
    }
    let missing = clients
        .first()
        .and_then(|client| Unreachable::of(client.export()));
    let (start, before) = (Instant::now(), thread_time());
    let measured: Vec<Measured> = if task.only_connects() {
        let workers = (0..workload.connections).map(|_| {
            let work = connect(options.clone(), uri.clone(), workload);
            spawned(options.runtime(), work)
        });
        let workers: FuturesUnordered<_> = workers.collect();
        workers.try_collect().await?
    } else {
        let workers = (0..).zip(&clients).map(|(index, client)| {
            let work = R::run(client.clone(), workload, index);
            spawned(options.runtime(), work)
        });
        workers
            .collect::<FuturesUnordered<_>>()
            .try_collect()
            .await?
    };
    let took = start.elapsed();
    // That of the whole thread, which is none of a single connection's.
    let mut cpu = thread_time()
        .zip(before)
        .map(|(after, before)| after - before)
        .filter(|_| alone);
    let figures = measured.into_iter().map(|measured| Figures {
        measured,
        cpu: cpu.replace(Duration::ZERO),
    });
    let row = Row::new(took, figures.collect());
    for client in &clients {
        client.disconnect().await?;
    }
    Ok(row.without(missing))
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
) -> Result<Measured, Error> {
    let mut progress = Progress::new(&one_at_a_time(&workload), u64::MAX, 0);
    let mut begun = None;
    while let Some((_, now)) = progress.next(begun) {
        begun = Some(now);
        drop(options.connect_uri(&uri).await?);
    }
    Ok(progress.finish())
}
