//! The connections of a client for tasks.

use super::{
    link::{ConnectionTask, Link, LinkLimits, Stream},
    pool::Pool,
    timed::Timed,
};
use crate::{
    client::{Common, Connected, Error, LinkLog},
    runtime::{Network, Runtime},
    transport::Layered,
};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak},
};

impl<R: Network> Common<R> {
    pub(super) fn link(&self, connected: Connected<Layered<Timed<R>>>) -> Arc<Link> {
        let config = &self.connector.config;
        let runtime = self.runtime().clone();
        let limits = LinkLimits {
            timeout: config.request_timeout,
            bytes_in_flight: config.bytes_in_flight,
            lose_when_silent: self.loses_when_silent(),
            clock: Box::new(move || Runtime::now(&runtime)),
        };
        Arc::new(Link::new(
            untimed(connected.transport),
            connected.transmission,
            limits,
            self.log.clone().map(LinkLog::new),
        ))
    }

    /// Makes another connection like the first.
    pub(super) async fn another(&self) -> Result<Arc<Link>, Error> {
        let connected = self.connector.connect(self.runtime(), None).await?;
        let compared = self.compare(&connected);
        let link = self.link(connected);
        if let Err(changed) = compared {
            // It is closed by NBD_CMD_DISC.
            link.close();
            self.keep(Weak::new(), link);
            return Err(changed);
        }
        Ok(link)
    }

    /// Starts the task behind a connection, which reports to the pool when that takes no requests
    /// any more.
    pub(super) fn keep(&self, pool: Weak<Pool<R>>, link: Arc<Link>) {
        // It is made here, because a runtime that is shut down drops tasks that it has never begun.
        let mut connection_task = ConnectionTask::new(link.clone(), self.runtime().clone());
        let mut reported = false;
        self.runtime().spawn(poll_fn(move |cx| {
            let polled = Pin::new(&mut connection_task).poll(cx);
            if !reported && link.load().is_none() {
                reported = true;
                if let Some(pool) = pool.upgrade() {
                    pool.notice(&link);
                }
            }
            polled.map(drop)
        }));
    }

    pub(super) const fn runtime(&self) -> &R {
        &self.connector.driver
    }
}

/// A stream without the deadline of its negotiation.
fn untimed<R: Network>(stream: Layered<Timed<R>>) -> Stream {
    match stream {
        Layered::Plain(timed) => timed.stream,
        #[cfg(feature = "tls")]
        Layered::Tls(mut tls) => {
            tls.transport_mut().deadline = None;
            tls
        }
    }
}
