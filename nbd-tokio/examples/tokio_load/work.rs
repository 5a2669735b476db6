//! The work of the examples called `load`, for every asynchronous runtime.

use crate::common::{Failure, Offsets, Op, Options, report};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{FutureExt, TryStreamExt, stream::FuturesUnordered};
use nbd_io::{
    client::{ConnectOptions, Error, TlsPolicy, tasks::Client},
    runtime::Network,
    tls::ClientTls,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The alignment of buffers, in bytes: large ones of other programs, and blocks of disks, start
/// with a page.
const PAGE: usize = 4096;

/// Loads a server and prints the line, in the name of `tool`.
pub(crate) async fn load<R: Network>(
    tool: &str,
    runtime: R,
    options: Options,
) -> Result<(), Failure> {
    let options = Arc::new(options);
    let (ops, elapsed, mut latencies) = match options.op {
        Op::Connect => connect_again_and_again(runtime, &options).await?,
        Op::Read | Op::Write => move_bytes(runtime, &options).await?,
    };
    report(tool, &options, elapsed, ops, &mut latencies);
    Ok(())
}

/// The connect options, the same for all connections, so that they share TLS sessions.
fn connecting<R: Network>(runtime: &R, options: &Options) -> Result<ConnectOptions<R>, Failure> {
    let mut connect = ConnectOptions::with_runtime(runtime.clone());
    if options.simple {
        connect = connect.extended_headers(false).structured_replies(false);
    }
    if let Some(directory) = &options.tls {
        let tls = ClientTls::new()
            .directory(directory)?
            .server_name("localhost");
        connect = connect.tls(tls).tls_policy(TlsPolicy::Always);
    }
    Ok(connect)
}

/// How many requests or connections, how long all took, and each if that is asked for.
type Measured = (u64, Duration, Vec<f32>);

async fn connect_again_and_again<R: Network>(
    runtime: R,
    options: &Arc<Options>,
) -> Result<Measured, Failure> {
    let options = options.clone();
    let (connect, uri) = (connecting(&runtime, &options)?, options.uri()?);
    spawned(&runtime, async move {
        let mut latencies = Vec::new();
        let all = Instant::now();
        for _ in 0..options.ops {
            let start = Instant::now();
            connect.connect_uri(&uri).await?.disconnect().await?;
            if options.lat {
                latencies.push(start.elapsed().as_secs_f32());
            }
        }
        Ok((options.ops, all.elapsed(), latencies))
    })
    .await
}

/// Spawns a task; waiting outside of the runtime's tasks may be slower.
fn spawned<R: Network, T: Send + 'static>(
    runtime: &R,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let (task, result) = task.remote_handle();
    runtime.spawn(task);
    result
}

async fn move_bytes<R: Network>(runtime: R, options: &Arc<Options>) -> Result<Measured, Failure> {
    let each = options.bytes / options.bs / u64::from(options.conns.max(1));
    let (connect, uri) = (connecting(&runtime, options)?, options.uri()?);
    let mut clients = Vec::new();
    for _ in 0..options.conns {
        clients.push(connect.connect_uri(&uri).await?);
    }
    // The time to connect is another operation's.
    let start = Instant::now();
    let tasks: FuturesUnordered<_> = clients
        .into_iter()
        .enumerate()
        .map(|(index, client)| spawned(&runtime, work(options.clone(), client, index, each)))
        .collect();
    let latencies = tasks.try_concat().await?;
    let ops = each * u64::from(options.conns);
    Ok((ops, start.elapsed(), latencies))
}

/// The requests that one connection has yet to make.
struct Requests {
    offsets: Offsets,
    left: u64,
}

impl Requests {
    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        Some(self.offsets.next())
    }
}

/// Keeps a connection busy, by as many loops as there are requests in flight. They are one task,
/// which polls only those loops that were woken.
async fn work<R: Network>(
    options: Arc<Options>,
    client: Client<R>,
    index: usize,
    left: u64,
) -> Result<Vec<f32>, Error> {
    let requests = Mutex::new(Requests {
        offsets: Offsets::new(&options, client.size(), index),
        left,
    });
    let payload = match options.op {
        Op::Write => page_aligned(&options).freeze(),
        Op::Read | Op::Connect => Bytes::new(),
    };
    if options.qd == 1 {
        return one_at_a_time(&options, &client, &requests, payload).await;
    }
    let loops: FuturesUnordered<_> = (0..options.qd)
        .map(|_| one_at_a_time(&options, &client, &requests, payload.clone()))
        .collect();
    loops.try_concat().await
}

async fn one_at_a_time<R: Network>(
    options: &Options,
    client: &Client<R>,
    requests: &Mutex<Requests>,
    payload: Bytes,
) -> Result<Vec<f32>, Error> {
    let next = || {
        let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.next()
    };
    let mut latencies = Vec::new();
    let mut buffer = match options.op {
        Op::Write => BytesMut::new(),
        Op::Read | Op::Connect => page_aligned(options),
    };
    while let Some(offset) = next() {
        let start = options.lat.then(Instant::now);
        match options.op {
            Op::Write => client.write(payload.clone(), offset).await?,
            Op::Read | Op::Connect => buffer = client.read_into(buffer, offset).await?,
        }
        latencies.extend(start.map(|start| start.elapsed().as_secs_f32()));
    }
    Ok(latencies)
}

/// A buffer for one request.
fn page_aligned(options: &Options) -> BytesMut {
    let payload = options.payload();
    let mut buffer = BytesMut::with_capacity(payload.len() + PAGE);
    let start = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    buffer.resize(start, 0);
    buffer.extend_from_slice(&payload);
    buffer.advance(start);
    buffer
}
