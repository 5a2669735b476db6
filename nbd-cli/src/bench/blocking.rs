//! Workloads by the blocking client: a thread for each connection, and its queue.

use super::{
    Task,
    results::{Figures, Row},
};
use crate::{
    outcome::{Error, Result},
    range::Unreachable,
};
use nbd_blocking::{Client, ConnectOptions, Uri};
use nbd_workload::{Measured, Progress, Workload};
use rustix::time::{ClockId, clock_gettime};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Time that processors have spent for this thread.
pub(super) fn thread_time() -> Option<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).ok()
}

/// Measures a workload.
pub(super) fn measure(options: ConnectOptions, uri: &Uri, task: &Task) -> Result<Row> {
    let workload = &task.workload;
    let worker = |index: u32, client: Option<Client>| {
        let before = thread_time();
        let measured = match &client {
            None => connect(&options, uri, workload)?,
            Some(client) => nbd_workload::blocking(client, workload, index)?,
        };
        let cpu = thread_time()
            .zip(before)
            .map(|(after, before)| after - before);
        if let Some(client) = client {
            client.disconnect()?;
        }
        Ok(Figures { measured, cpu })
    };
    let mut clients = Vec::new();
    for _ in 0..workload.connections {
        clients.push(if task.only_connects() {
            None
        } else {
            Some(options.connect_uri(uri)?)
        });
    }
    let client = clients.iter().flatten().next();
    let missing = client.and_then(|client: &Client| Unreachable::of(client.export()));
    let start = Instant::now();
    let figures: Result<Vec<Figures>> = thread::scope(|scope| {
        let worker = &worker;
        let threads: Vec<_> = (0..)
            .zip(clients)
            .map(|(index, client)| scope.spawn(move || worker(index, client)))
            .collect();
        let panicked = |_| Err(Error::new("a thread panicked"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    Ok(Row::new(start.elapsed(), figures?).without(missing))
}

/// The limit of a workload for connections that are made one after the other.
pub(super) const fn one_at_a_time(workload: &Workload) -> Workload {
    Workload {
        depth: 1,
        ..*workload
    }
}

fn connect(options: &ConnectOptions, uri: &Uri, workload: &Workload) -> Result<Measured> {
    let mut progress = Progress::new(&one_at_a_time(workload), u64::MAX, 0);
    let mut begun = None;
    while let Some((_, now)) = progress.next(begun) {
        begun = Some(now);
        drop(options.connect_uri(uri)?);
    }
    Ok(progress.finish())
}
