//! The metrics over HTTP, for Prometheus.

use super::Metrics;
use crate::outcome::{Context, Result};
use nbd_blocking::nbd_socket;
use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Scrapes at once. One more waits for the end of another one.
const SCRAPES: usize = 8;

/// Time limit of a scrape's request, and of a scrape altogether.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request is not longer, in bytes.
const MAX_REQUEST: usize = 8 << 10;

/// The endpoint at which metrics are scraped.
#[derive(Debug)]
pub(in crate::serve) struct Endpoint {
    listeners: Vec<net::TcpListener>,
}

impl Endpoint {
    /// Takes over sockets that listen.
    pub(in crate::serve) fn new(listeners: &[nbd_socket::Listener]) -> Result<Self> {
        let listener =
            |listener: &nbd_socket::Listener| Ok(listener.as_fd().try_clone_to_owned()?.into());
        let listeners: io::Result<_> = listeners.iter().map(listener).collect();
        Ok(Self {
            listeners: listeners.step(|| "cannot use a socket for metrics")?,
        })
    }

    pub(in crate::serve) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
    }

    /// Answers from now on, in a thread that lasts as long as the process.
    pub(in crate::serve) fn serve(self, metrics: Arc<Metrics>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.step(|| "cannot start the runtime of metrics")?;
        let listeners: io::Result<Vec<_>> = {
            let _entered = runtime.enter();
            self.listeners
                .into_iter()
                .map(TcpListener::from_std)
                .collect()
        };
        let listeners = listeners.step(|| "cannot use a socket for metrics")?;
        let scrapes = Arc::new(Semaphore::new(SCRAPES));
        for listener in listeners {
            runtime.spawn(accept(listener, Arc::clone(&metrics), Arc::clone(&scrapes)));
        }
        let thread = thread::Builder::new().name("metrics".into());
        let forever = move || runtime.block_on(std::future::pending::<()>());
        thread
            .spawn(forever)
            .step(|| "cannot start the thread of metrics")?;
        Ok(())
    }
}

async fn accept(listener: TcpListener, metrics: Arc<Metrics>, scrapes: Arc<Semaphore>) {
    // It is never closed.
    while let Ok(place) = Arc::clone(&scrapes).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                tokio::spawn(async move {
                    // A client that is too slow, or gone, gets nothing.
                    let _ = timeout(SCRAPE_TIMEOUT, answer(stream, &metrics)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("a scrape of metrics cannot be accepted: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The beginning of a request, up to its empty line.
async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let is_complete = |request: &[u8]| request.windows(4).any(|end| end == b"\r\n\r\n");
    while !is_complete(&request) && request.len() < MAX_REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(request)
}

/// Answers one request, and closes the connection.
async fn answer(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let request = timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await??;
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next();
    let (status, text) = match (method, path) {
        (Some(b"GET" | b"HEAD"), Some(b"/metrics")) => ("200 OK", metrics.text()),
        (Some(b"GET" | b"HEAD"), Some(b"/")) => ("200 OK", "See /metrics.\n".to_owned()),
        (Some(b"GET" | b"HEAD"), _) => ("404 Not Found", "See /metrics.\n".to_owned()),
        _ => (
            "405 Method Not Allowed",
            "Only GET and HEAD are known.\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != Some(b"HEAD") {
        stream.write_all(text.as_bytes()).await?;
    }
    stream.shutdown().await
}
