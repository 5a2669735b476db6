//! A runtime that counts its tasks and jobs that have not ended.

use nbd_io::{
    client::DialOptions,
    runtime::{Network, Runtime, Tasks},
};
use nbd_proto::uri::Address;
use nbd_socket::{Awaited, Reactor};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// Their number, and the waker of a task that waits for the end of the last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Arc<Mutex<(usize, Option<Waker>)>>);

/// Longer than anything here takes to end.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

impl Census {
    fn enter(&self) -> Counted {
        self.0.lock().unwrap().0 += 1;
        Counted(self.clone())
    }
}

/// One of them. It ends when it is dropped, with its runtime at the latest.
struct Counted(Census);

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap();
        state.0 -= 1;
        let last = (state.0 == 0).then(|| state.1.take()).flatten();
        drop(state);
        last.into_iter().for_each(Waker::wake);
    }
}

/// A runtime, and a census of its tasks and jobs.
#[derive(Clone, Debug)]
pub(crate) struct Counting<N> {
    pub(crate) network: N,
    pub(crate) census: Census,
}

impl<N: Runtime> Counting<N> {
    /// Waits until all have ended.
    pub(crate) async fn empty(&self) {
        let mut sleep = self.sleep(TIMEOUT);
        let left = poll_fn(|cx| {
            let mut state = self.census.0.lock().unwrap();
            state.1 = Some(cx.waker().clone());
            if state.0 == 0 || Pin::new(&mut sleep).poll(cx).is_ready() {
                return Poll::Ready(state.0);
            }
            Poll::Pending
        });
        assert_eq!(left.await, 0, "so many tasks and jobs are left");
    }
}

impl<N: Runtime> Runtime for Counting<N> {
    type Sleep = N::Sleep;

    fn now(&self) -> Duration {
        self.network.now()
    }

    fn sleep(&self, time: Duration) -> N::Sleep {
        self.network.sleep(time)
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        let counted = self.census.enter();
        self.network.spawn_blocking(move || {
            job();
            drop(counted);
        });
    }

    fn own_thread_clock(&self) -> Option<Duration> {
        self.network.own_thread_clock()
    }
}

impl<N: Tasks> Tasks for Counting<N> {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let counted = self.census.enter();
        self.network.spawn(async move {
            task.await;
            drop(counted);
        });
    }
}

impl<N: Network> Network for Counting<N> {
    type Stream = N::Stream;

    async fn connect(&self, address: &Address, options: &DialOptions) -> io::Result<N::Stream> {
        self.network.connect(address, options).await
    }
}

impl<N: Reactor + Send> Reactor for Counting<N> {
    type Socket = N::Socket;

    fn register(&self, socket: nbd_socket::Socket) -> io::Result<N::Socket> {
        self.network.register(socket)
    }

    fn clock(&self) -> Instant {
        self.network.clock()
    }

    async fn wait(&self, what: Awaited<'_, N::Socket>, until: Option<Instant>) -> io::Result<()> {
        self.network.wait(what, until).await
    }
}
