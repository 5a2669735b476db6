//! The connections of a client for tasks.

use super::{
    alarm::Alarm,
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

/// A connection whose task has not begun.
pub(super) struct Opened<R: Network> {
    pub(super) link: Arc<Link>,
    alarm: Alarm<R>,
}

impl<R: Network> Common<R> {
    pub(super) fn link(&self, connected: Connected<Layered<Timed<R>>>) -> Opened<R> {
        let config = &self.connector.config;
        let runtime = self.runtime().clone();
        let limits = LinkLimits {
            timeout: config.request_timeout,
            bytes_in_flight: config.bytes_in_flight,
            lose_when_silent: self.loses_when_silent(),
            clock: Box::new(move || Runtime::now(&runtime)),
            spare: self.spare.clone(),
        };
        let (stream, alarm) = untimed(connected.transport);
        let log = self.log.clone().map(LinkLog::new);
        let link = Link::new(stream, connected.transmission, limits, log);
        Opened {
            link: Arc::new(link),
            alarm,
        }
    }

    /// Makes another connection like the first.
    pub(super) async fn another(&self) -> Result<Opened<R>, Error> {
        let connected = self.connector.connect(self.runtime(), None).await?;
        let compared = self.compare(&connected);
        let opened = self.link(connected);
        if let Err(changed) = compared {
            // It is closed by NBD_CMD_DISC.
            opened.link.close();
            self.keep(Weak::new(), opened);
            return Err(changed);
        }
        Ok(opened)
    }

    /// Starts the task behind a connection, which reports to the pool when that takes no requests
    /// any more.
    pub(super) fn keep(&self, pool: Weak<Pool<R>>, opened: Opened<R>) {
        let Opened { link, alarm } = opened;
        // It is made here, because a runtime that is shut down drops tasks that it has never begun.
        let runtime = self.runtime().clone();
        let mut connection_task = ConnectionTask::new(link.clone(), runtime, alarm);
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

/// A stream without the deadline of its negotiation, and the timer of that.
fn untimed<R: Network>(stream: Layered<Timed<R>>) -> (Stream, Alarm<R>) {
    match stream {
        Layered::Plain(timed) => (timed.stream, timed.alarm),
        #[cfg(feature = "tls")]
        Layered::Tls(mut tls) => {
            let timed = tls.transport_mut();
            timed.deadline = None;
            let alarm = std::mem::take(&mut timed.alarm);
            (tls, alarm)
        }
    }
}
