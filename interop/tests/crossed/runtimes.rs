//! The runtimes of both sides, of which each test has its own where that is possible.

use crate::{
    census::{Census, Counting},
    waiting::Driver,
};
use nbd_async_std::AsyncStd;
use nbd_io::runtime::Network;
use nbd_socket::Reactor;
use nbd_tokio::Tokio;
use std::{fmt::Debug, sync::Arc};
use tokio::runtime::{Builder, Runtime};

/// A runtime with its census.
pub(crate) trait Own: Clone + Debug + Send + Sync + 'static {
    type Inner: Network + Reactor<Socket = <Self::Inner as Network>::Stream> + Debug;

    fn network(&self) -> Counting<Self::Inner>;

    /// Waits for a future in the context of the runtime.
    fn block_on<F: Future>(&self, future: F) -> F::Output;

    /// Waits until no task is left, and ends.
    fn end(self) {
        let network = self.network();
        self.block_on(network.empty());
    }
}

impl<O: Own> Driver for O {
    type Network = Counting<O::Inner>;

    fn network(&self) -> Self::Network {
        Own::network(self)
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.block_on(future)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct OwnTokio {
    runtime: Arc<Runtime>,
    census: Census,
}

/// All in the waiting thread. No task goes on while none waits.
pub(crate) fn tokio_current_thread() -> OwnTokio {
    tokio_of(Builder::new_current_thread())
}

/// With threads of its own.
pub(crate) fn tokio_multi_thread() -> OwnTokio {
    tokio_of(Builder::new_multi_thread())
}

fn tokio_of(mut builder: Builder) -> OwnTokio {
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    OwnTokio {
        runtime: Arc::new(runtime),
        census: Census::default(),
    }
}

impl Own for OwnTokio {
    type Inner = Tokio;

    fn network(&self) -> Counting<Tokio> {
        Counting {
            network: Tokio::new(self.runtime.handle().clone()),
            census: self.census.clone(),
        }
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    fn end(self) {
        self.block_on(Own::network(&self).empty());
        let runtime = Arc::into_inner(self.runtime);
        // Dropped, it waits for its threads.
        drop(runtime.expect("all that uses the runtime is gone"));
    }
}

/// The runtime of the process, whose threads stay.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnAsyncStd(Census);

impl Own for OnAsyncStd {
    type Inner = AsyncStd;

    fn network(&self) -> Counting<AsyncStd> {
        Counting {
            network: AsyncStd,
            census: self.0.clone(),
        }
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        async_std::task::block_on(future)
    }
}
