//! Tokio as a runtime.

use crate::Socket;
use nbd_io::{
    client::{DialOptions, ServerProcess},
    runtime::{BlockOn, Network, Runtime, Tasks},
};
use nbd_proto::uri::Address;
use nbd_socket::{Awaited, Reactor};
use std::{io, pin::Pin, sync::LazyLock, time::Duration};
use tokio::{
    runtime::{EnterGuard, Handle},
    time::{Instant, Sleep},
};

/// Zero of the clock.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A Tokio runtime. Its I/O and its time have to be enabled.
///
/// The default is the runtime that a future is polled on, so that a server or a client can be made
/// before there is any. A future that is polled elsewhere may panic then.
#[derive(Clone, Debug, Default)]
pub struct Tokio(Option<Handle>);

impl Tokio {
    /// The runtime whose handle is given, on which everything is done, whichever task polls.
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

    /// Enters the runtime, so that sockets and timers made meanwhile belong to its event loop and
    /// clock.
    pub(crate) fn enter(&self) -> Option<EnterGuard<'_>> {
        self.0.as_ref().map(Handle::enter)
    }

    fn handle(&self) -> Handle {
        self.0.clone().unwrap_or_else(Handle::current)
    }
}

impl Runtime for Tokio {
    type Sleep = Pin<Box<Sleep>>;

    const TIMERS_WAKE: bool = true;

    fn now(&self) -> Duration {
        START.elapsed()
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        let _entered = self.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        drop(self.handle().spawn_blocking(job));
    }
}

/// By `Handle::block_on`, which panics on a thread that carries on with tasks.
impl BlockOn for Tokio {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle().block_on(future)
    }
}

impl Tasks for Tokio {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle().spawn(task));
    }
}

impl Network for Tokio {
    type Stream = Socket;

    async fn connect(&self, address: &Address, options: &DialOptions) -> io::Result<Socket> {
        nbd_socket::connect(self, address, options).await
    }

    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Socket> {
        self.register(nbd_socket::Socket::launch(server)?.nonblocking()?)
    }
}

impl Reactor for Tokio {
    type Socket = Socket;

    fn register(&self, socket: nbd_socket::Socket) -> io::Result<Socket> {
        let _entered = self.enter();
        Socket::new(socket)
    }

    fn clock(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    async fn wait(
        &self,
        what: Awaited<'_, Socket>,
        until: Option<std::time::Instant>,
    ) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(self.clock()));
        let timer = left.map(|left| self.sleep(left));
        what.or_sleep(timer, Socket::poll_writable).await
    }
}
