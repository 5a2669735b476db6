//! Workloads by the asynchronous client, on any runtime.

use super::{
    Limit, Op, Workload,
    blocking::thread_time,
    offsets::{Next, Offsets},
    results::{Latencies, Measured, Row},
};
use crate::outcome::Result;
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use nbd_tokio::{
    Uri,
    bytes::{Buf, Bytes, BytesMut},
    nbd_io::{
        client::{ConnectOptions, tasks::Client},
        runtime::Network,
    },
};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    time::Instant,
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
    let (start, before) = (Instant::now(), thread_time());
    let mut measured: Vec<Measured> = if workload.op == Op::Connect {
        vec![connect(&options, uri, workload).await?]
    } else if let [client] = &clients[..] {
        // A set of a single future polls it once more, in vain, whenever that waits.
        vec![work(client, workload, 0).await?]
    } else {
        let workers = (0..)
            .zip(&clients)
            .map(|(index, client)| work(client, workload, index));
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
    Row::new(took, measured)
}

async fn connect<R: Network>(
    options: &ConnectOptions<R>,
    uri: &Uri,
    workload: &Workload,
) -> Result<Measured> {
    let mut latencies = Latencies::new()?;
    let mut offsets = Offsets::new(workload, u64::MAX, 0);
    let mut now = Instant::now();
    let start = now;
    let mut requests = 0;
    while offsets.next().is_some() && !is_late(workload, start, now) {
        drop(options.connect_uri(uri).await?);
        let done = Instant::now();
        latencies.add(now, done);
        (now, requests) = (done, requests + 1);
    }
    Ok(Measured {
        requests,
        latencies,
        cpu: None,
    })
}

fn is_late(workload: &Workload, start: Instant, now: Instant) -> bool {
    match workload.limit {
        Limit::Time(time) => now.saturating_duration_since(start) >= time,
        Limit::Requests(_) => false,
    }
}

/// A clock that is read once for some requests that are found done together: with many in flight
/// they take far longer than it takes to deal with those few.
#[derive(Debug)]
struct Clock {
    /// Number of requests that have a time in common.
    shared: u32,
    left: Cell<u32>,
    now: Cell<Instant>,
}

impl Clock {
    fn new(workload: &Workload) -> Self {
        Self {
            shared: (workload.depth / 16).clamp(1, 4),
            left: Cell::new(0),
            now: Cell::new(Instant::now()),
        }
    }

    fn now(&self) -> Instant {
        match self.left.get() {
            0 => self.read(),
            left => self.left.set(left - 1),
        }
        self.now.get()
    }

    fn read(&self) {
        self.left.set(self.shared - 1);
        self.now.set(Instant::now());
    }

    /// Polls a future, which sees another time in each poll.
    async fn read_in_each_poll<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.left.set(0);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// Keeps a connection busy, by as many loops as there are requests in flight. They are one task,
/// which polls only those loops that were woken.
async fn work<R: Network>(client: &Client<R>, workload: &Workload, index: u32) -> Result<Measured> {
    let offsets = RefCell::new(Offsets::new(workload, client.size(), index));
    let shared = RefCell::new((0, Latencies::new()?));
    let payload = aligned(workload.len()).freeze();
    let clock = Clock::new(workload);
    let one = || one_at_a_time(client, workload, &offsets, &shared, payload.clone(), &clock);
    if workload.depth == 1 {
        one().await?;
    } else {
        let loops: FuturesUnordered<_> = (0..workload.depth).map(|_| one()).collect();
        clock.read_in_each_poll(loops.try_collect::<()>()).await?;
    }
    let (requests, latencies) = shared.into_inner();
    Ok(Measured {
        requests,
        latencies,
        cpu: Some(std::time::Duration::ZERO),
    })
}

async fn one_at_a_time<R: Network>(
    client: &Client<R>,
    workload: &Workload,
    offsets: &RefCell<Offsets>,
    shared: &RefCell<(u64, Latencies)>,
    payload: Bytes,
    clock: &Clock,
) -> Result<()> {
    let mut buffer = match workload.op {
        Op::Write => BytesMut::new(),
        _ => aligned(workload.len()),
    };
    let start = clock.now();
    let mut now = start;
    loop {
        if is_late(workload, start, now) {
            offsets.borrow_mut().end();
        }
        let next = offsets.borrow_mut().next();
        let Some(Next { offset, writes }) = next else {
            return Ok(());
        };
        if writes {
            client.write(payload.clone(), offset).await?;
        } else {
            buffer = client
                .read_into(buffer, offset)
                .await
                .map_err(nbd_tokio::Error::from)?;
        }
        let done = clock.now();
        let (made, latencies) = &mut *shared.borrow_mut();
        *made += 1;
        latencies.add(now, done);
        now = done;
    }
}

/// A buffer for one request, at the start of a page.
fn aligned(len: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(len + PAGE);
    let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    buffer.resize(start + len, 0x5a);
    buffer.advance(start);
    buffer
}
