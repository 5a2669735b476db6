//! Tokio as a runtime.

use crate::Socket;
use nbd_io::runtime::{Network, Runtime, Tasks};
use nbd_proto::uri::Address;
use nbd_socket::Reactor;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::LazyLock,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep},
};

/// What the clock counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A Tokio runtime. Its I/O and its time have to be enabled.
///
/// The default is the runtime that a future is polled on, so that a server or a client can be made
/// before there is any. What is polled elsewhere may panic then.
#[derive(Clone, Debug, Default)]
pub struct Tokio(Option<Handle>);

impl Tokio {
    /// The runtime whose handle is given, on which everything is done whoever polls.
    #[must_use]
    pub const fn new(handle: Handle) -> Self {
        Self(Some(handle))
    }

    /// The runtime that this code runs on.
    ///
    /// # Panics
    ///
    /// When it runs on none.
    #[must_use]
    pub fn current() -> Self {
        Self(Some(Handle::current()))
    }

    fn handle(&self) -> Handle {
        self.0.clone().unwrap_or_else(Handle::current)
    }
}

impl Runtime for Tokio {
    type Sleep = Pin<Box<Sleep>>;

    fn now(&self) -> Duration {
        START.elapsed()
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        let _entered = self.0.as_ref().map(Handle::enter);
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        drop(self.handle().spawn_blocking(job));
    }
}

impl Tasks for Tokio {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle().spawn(task));
    }
}

impl Network for Tokio {
    type Stream = Socket;

    async fn connect(&self, address: &Address) -> io::Result<Socket> {
        nbd_socket::connect(self, address).await
    }
}

impl Reactor for Tokio {
    type Socket = Socket;

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        // Which is what Tokio does, but it only does it for its own tasks.
        let lookup = move || Ok((host.as_str(), port).to_socket_addrs()?.collect());
        self.handle().spawn_blocking(lookup).await?
    }

    fn register(&self, socket: nbd_socket::Socket) -> io::Result<Socket> {
        let _entered = self.0.as_ref().map(Handle::enter);
        Socket::new(socket)
    }

    async fn writable(&self, socket: &Socket) -> io::Result<()> {
        socket.writable().await
    }

    async fn pause(&self, time: Duration) -> io::Result<()> {
        self.sleep(time).await;
        Ok(())
    }
}
