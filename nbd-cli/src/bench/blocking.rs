//! Workloads by the blocking client: a thread for each connection, and its queue.

use super::{
    Op, Workload,
    offsets::{Next, Offsets},
    results::{Latencies, Measured, Row},
};
use crate::{
    outcome::{Error, Result},
    range::Unreachable,
};
use nbd_blocking::{
    Client, CommandFlags, Completion, ConnectOptions, Queue, Uri, bytes::Bytes,
    nbd_proto::client::Cookie,
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    thread,
    time::{Duration, Instant},
};

/// The alignment of buffers, in bytes.
const PAGE: usize = 4096;

/// Time that processors have spent for this thread.
pub(super) fn thread_time() -> Option<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).ok()
}

/// Measures a workload.
pub(super) fn measure(options: ConnectOptions, uri: &Uri, workload: &Workload) -> Result<Row> {
    let worker = |index: u32, client: Option<Client>| {
        let before = thread_time();
        let (requests, latencies) = match (&client, workload.op) {
            (_, Op::Connect) | (None, _) => connect(&options, uri, workload)?,
            (Some(client), _) if workload.depth == 1 => one_at_a_time(client, workload, index)?,
            (Some(client), _) => many(client, workload, index)?,
        };
        let cpu = thread_time()
            .zip(before)
            .map(|(after, before)| after - before);
        if let Some(client) = client {
            client.disconnect()?;
        }
        Ok(Measured {
            requests,
            latencies,
            cpu,
        })
    };
    let mut clients = Vec::new();
    for _ in 0..workload.connections {
        clients.push(match workload.op {
            Op::Connect => None,
            _ => Some(options.connect_uri(uri)?),
        });
    }
    let client = clients.iter().flatten().next();
    let missing = client.and_then(|client: &Client| Unreachable::of(client.export()));
    let start = Instant::now();
    let measured: Result<Vec<Measured>> = thread::scope(|scope| {
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
    Ok(Row::new(start.elapsed(), measured?)?.without(missing))
}

/// When a workload is to end, if time ends it.
fn deadline(workload: &Workload, start: Instant) -> Option<Instant> {
    match workload.limit {
        super::Limit::Time(time) => start.checked_add(time),
        super::Limit::Requests(_) => None,
    }
}

fn connect(options: &ConnectOptions, uri: &Uri, workload: &Workload) -> Result<(u64, Latencies)> {
    let mut latencies = Latencies::new()?;
    let mut offsets = Offsets::new(workload, u64::MAX, 0);
    let mut now = Instant::now();
    let deadline = deadline(workload, now);
    let mut made = 0;
    while offsets.next().is_some() && deadline.is_none_or(|deadline| now < deadline) {
        drop(options.connect_uri(uri)?);
        let done = Instant::now();
        latencies.add(now, done);
        (now, made) = (done, made + 1);
    }
    Ok((made, latencies))
}

/// Memory for a request at the start of a page, as usual for blocks of disks. 16 bytes behind, where
/// large vectors often are, x86 copies at half the speed behind a TCP request's header of 28 bytes.
fn aligned(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    memory.resize(len + PAGE, 0x5a);
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    &mut memory[start..start + len]
}

fn one_at_a_time(client: &Client, workload: &Workload, index: u32) -> Result<(u64, Latencies)> {
    let mut latencies = Latencies::new()?;
    let mut offsets = Offsets::new(workload, client.size(), index);
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, workload.len());
    let mut now = Instant::now();
    let deadline = deadline(workload, now);
    let mut made = 0;
    while deadline.is_none_or(|deadline| now < deadline) {
        let Some(Next { offset, writes }) = offsets.next() else {
            break;
        };
        if writes {
            client.write_all_at(buffer, offset)?;
        } else {
            client.read_exact_at(buffer, offset)?;
        }
        let done = Instant::now();
        latencies.add(now, done);
        (now, made) = (done, made + 1);
    }
    Ok((made, latencies))
}

/// Keeps a queue full. The clock is read once for all that came together.
fn many(client: &Client, workload: &Workload, index: u32) -> Result<(u64, Latencies)> {
    let depth = usize::try_from(workload.depth).unwrap_or(usize::MAX);
    let mut flight = Flight {
        queue: client.queue(),
        offsets: Offsets::new(workload, client.size(), index),
        buffers: (0..depth).map(|_| vec![0; workload.len()]).collect(),
        payload: Bytes::from(vec![0x5a; workload.len()]),
        begun: vec![None; depth],
        displaced: Vec::new(),
        latencies: Latencies::new()?,
        made: 0,
    };
    let mut now = Instant::now();
    let deadline = deadline(workload, now);
    for _ in 0..depth {
        flight.submit(now)?;
    }
    while let Some(completion) = flight.queue.complete()? {
        now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            flight.offsets.end();
        }
        let before = flight.made;
        flight.take(completion, now)?;
        while let Some(completion) = flight.queue.next_ready() {
            flight.take(completion, now)?;
        }
        for _ in before..flight.made {
            flight.submit(now)?;
        }
    }
    Ok((flight.made, flight.latencies))
}

/// The requests of a queue.
struct Flight {
    queue: Queue,
    offsets: Offsets,
    buffers: Vec<Vec<u8>>,
    payload: Bytes,
    /// When each was submitted, by the slots of their cookies.
    begun: Vec<Option<(Cookie, Instant)>>,
    /// The same of those that were answered, and not taken before another one had their slot.
    displaced: Vec<(Cookie, Instant)>,
    latencies: Latencies,
    made: u64,
}

impl Flight {
    /// Submits one more, if there is one.
    #[inline(always)]
    fn submit(&mut self, now: Instant) -> Result<()> {
        let Some(Next { offset, writes }) = self.offsets.next() else {
            return Ok(());
        };
        let cookie = if writes {
            self.queue
                .write(self.payload.clone(), offset, CommandFlags::NONE)?
        } else {
            self.queue
                .read(self.buffers.pop().unwrap_or_default(), offset)?
        };
        if let Some(begun) = self.begun.get_mut(cookie.slot())
            && let Some(displaced) = begun.replace((cookie, now))
        {
            self.displaced.push(displaced);
        }
        Ok(())
    }

    /// Takes one that is done.
    #[inline(always)]
    fn take(&mut self, completion: Completion, now: Instant) -> Result<()> {
        completion.result?;
        let cookie = completion.cookie;
        if let Some(begun) = self.begun(cookie) {
            self.latencies.add(begun, now);
        }
        self.made += 1;
        if let Some(buffer) = completion.buffer {
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// When a request was submitted, to be asked once.
    fn begun(&mut self, cookie: Cookie) -> Option<Instant> {
        let slot = self.begun.get_mut(cookie.slot())?;
        if let Some((_, begun)) = slot.take_if(|(owner, _)| *owner == cookie) {
            return Some(begun);
        }
        let place = self
            .displaced
            .iter()
            .position(|(owner, _)| *owner == cookie)?;
        Some(self.displaced.swap_remove(place).1)
    }
}
