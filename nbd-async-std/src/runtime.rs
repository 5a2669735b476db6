//! async-std as a runtime.

use crate::Socket;
use async_io::Timer;
use async_std::{net::ToSocketAddrs, task};
use nbd_io::runtime::{Network, Runtime, Tasks};
use nbd_proto::uri::Address;
use nbd_socket::Reactor;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// What the clock counts from.
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

impl Tasks for AsyncStd {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(task::spawn(task));
    }
}

impl Network for AsyncStd {
    type Stream = Socket;

    async fn connect(&self, address: &Address) -> io::Result<Socket> {
        nbd_socket::connect(self, address).await
    }
}

impl Reactor for AsyncStd {
    type Socket = Socket;

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs().await?.collect())
    }

    fn register(&self, socket: nbd_socket::Socket) -> io::Result<Socket> {
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
