//! async-std as a runtime.

use crate::Socket;
use async_io::Timer;
use async_std::task;
use nbd_io::{
    client::{DialOptions, ServerProcess},
    runtime::{BlockOn, Network, Runtime, Tasks},
};
use nbd_proto::uri::Address;
use nbd_socket::{Awaited, Reactor};
use std::{
    io,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Zero of the clock.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The async-std runtime, of which each process has one. It needs no context: everything can be
/// called from anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsyncStd;

/// A timer of [`AsyncStd`]'s.
#[derive(Debug)]
pub struct Sleep(Timer);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

impl Runtime for AsyncStd {
    type Sleep = Sleep;

    const TIMERS_WAKE: bool = true;

    fn now(&self) -> Duration {
        START.elapsed()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        Sleep(Timer::after(time))
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        drop(task::spawn_blocking(job));
    }
}

impl BlockOn for AsyncStd {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        task::block_on(future)
    }
}

impl Tasks for AsyncStd {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(task::spawn(task));
    }
}

impl Network for AsyncStd {
    type Stream = Socket;

    async fn connect(&self, address: &Address, options: &DialOptions) -> io::Result<Socket> {
        nbd_socket::connect(self, address, options).await
    }

    fn launch(&self, server: ServerProcess<'_>) -> io::Result<Socket> {
        self.register(nbd_socket::Socket::launch(server)?.nonblocking()?)
    }
}

impl Reactor for AsyncStd {
    type Socket = Socket;

    fn register(&self, socket: nbd_socket::Socket) -> io::Result<Socket> {
        Socket::new(socket)
    }

    async fn wait(&self, what: Awaited<'_, Socket>, until: Option<Instant>) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(self.clock()));
        let timer = left.map(|left| self.sleep(left));
        what.or_sleep(timer, Socket::poll_writable).await
    }
}
