//! `nbd-tokio` and `nbd-async-std`, and the common part of all servers.

use crate::{BLOCK, Operation, Result, SPAN, Work};
use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt, stream::FuturesUnordered};
use nbd_io::{
    Export, Memory,
    client::{ConnectOptions, tasks::Client},
    runtime::{Network, Tasks},
    server::{Event, Listener, Server},
    transport::Transport,
};
use nbd_proto::Uri;
use std::{
    os::unix::{ffi::OsStrExt, net::UnixListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

pub(crate) fn tokio_client(work: &Work) -> Result<()> {
    let runtime = one_thread()?;
    let work = work.clone();
    runtime.block_on(async {
        let task = tokio::spawn(async move { client(&work, nbd_tokio::Tokio::current()).await });
        task.await?
    })
}

pub(crate) fn async_std_client(work: &Work) -> Result<()> {
    let work = work.clone();
    let task = async move { client(&work, nbd_async_std::AsyncStd).await };
    async_std::task::block_on(async_std::task::spawn(task))
}

pub(crate) fn tokio_server(work: &Work, listener: UnixListener) -> Result<()> {
    serve_on_tokio(work, listener, Server::single(data(work)?))
}

pub(crate) fn serve_on_tokio(
    work: &Work,
    listener: UnixListener,
    server: Server<nbd_tokio::Tokio>,
) -> Result<()> {
    use nbd_tokio::{Listener, Socket};
    one_thread()?.block_on(async {
        if work.operation == Operation::Connect {
            let listener = Listener::from_std(listener)?;
            return all(server, work, listener).await;
        }
        let (stream, _) = listener.accept()?;
        let socket = Socket::from_std(stream)?;
        // In a task, as a listener does it.
        tokio::spawn(async move { one(server, socket).await }).await?
    })
}

pub(crate) fn async_std_server(work: &Work, listener: UnixListener) -> Result<()> {
    use nbd_async_std::{AsyncStd, Listener, Socket};
    let server = Server::<AsyncStd>::single(data(work)?);
    let work = work.clone();
    async_std::task::block_on(async_std::task::spawn(async move {
        if work.operation == Operation::Connect {
            let listener = Listener::from_std(listener)?;
            return all(server, &work, listener).await;
        }
        let (stream, _) = listener.accept()?;
        one(server, Socket::from_std(stream)?).await
    }))
}

pub(crate) fn one_thread() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

pub(crate) fn uri(work: &Work) -> Result<Uri> {
    Ok(Uri::unix(work.path.as_os_str().as_bytes())?)
}

/// An export in memory; of data, unless the work is to read a hole.
pub(crate) fn data(work: &Work) -> Result<Arc<dyn Export>> {
    let memory = Memory::new(1 << 30);
    if work.operation != Operation::Hole {
        memory.write(0, &vec![7; SPAN], false)?;
    }
    Ok(Arc::new(memory))
}

/// Has a server stop after it has served as many connections as the work has.
pub(crate) fn stops_after<R: Tasks>(server: Server<R>, count: usize) -> Server<R> {
    let stopper = server.stopper();
    let left = AtomicUsize::new(count);
    server.on_event(move |event| {
        let closed = matches!(event, Event::Closed { .. });
        if closed && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            stopper.stop();
        }
    })
}

async fn all<R: Network>(
    server: Server<R>,
    work: &Work,
    listener: impl Listener + Send,
) -> Result<()> {
    let server = stops_after(server, work.count);
    Ok(server.serve(listener).await?)
}

async fn one<R: Network>(server: Server<R>, stream: impl Transport + Send + 'static) -> Result<()> {
    server.serve_over(stream).await?;
    Ok(())
}

async fn client<R: Network>(work: &Work, runtime: R) -> Result<()> {
    let options = ConnectOptions::with_runtime(runtime);
    let uri = uri(work)?;
    for _ in 0..work.connections() {
        let client = options.connect_uri(&uri).await?;
        if work.operation == Operation::Connect {
            client.disconnect().await?;
            continue;
        }
        let offsets = Mutex::new(work.offsets());
        if work.depth == 1 {
            one_at_a_time(work, &client, &offsets).await?;
        } else {
            let loops: FuturesUnordered<_> = (0..work.depth)
                .map(|_| one_at_a_time(work, &client, &offsets))
                .collect();
            loops.try_collect::<()>().await?;
        }
        client.disconnect().await?;
    }
    Ok(())
}

async fn one_at_a_time<R: Network>(
    work: &Work,
    client: &Client<R>,
    offsets: &Mutex<impl Iterator<Item = u64>>,
) -> Result<()> {
    let next = || {
        offsets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next()
    };
    let payload = Bytes::from(vec![7; BLOCK]);
    let mut buffer = BytesMut::zeroed(BLOCK);
    while let Some(offset) = next() {
        match work.operation {
            Operation::Write => client.write(payload.clone(), offset).await?,
            _ => buffer = client.read_into(buffer, offset).await?,
        }
    }
    Ok(())
}
