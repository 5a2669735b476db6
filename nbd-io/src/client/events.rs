//! Events of a client, reported to the program that uses it.

#[cfg(test)]
mod tests;

use super::{Error, Lost};
#[cfg(feature = "tracing")]
use crate::client::Negotiated;
use nbd_proto::Command;
#[cfg(feature = "tracing")]
use nbd_proto::ExportName;
use std::{
    collections::VecDeque,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Something that happened to a client's connections or to a request, for logs and metrics.
///
/// Its text says all of it in one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ClientEvent {
    /// A connection is in use: the first, a further one, or one in place of one that was lost.
    Connected {
        /// Number of connections now.
        connections: usize,
        /// Number of attempts since one was lost; 0 if none was.
        attempts: u32,
    },
    /// A connection was lost.
    Lost {
        /// The reason.
        cause: Arc<Lost>,
        /// Number of connections left. All of a writable export are replaced when one is lost.
        connections: usize,
    },
    /// An attempt to replace a lost connection failed.
    AttemptFailed {
        /// Its number since the connection was lost, from 1.
        attempt: u32,
        /// The reason.
        cause: Error,
        /// The backoff before the next attempt. `None` if there is none.
        retry_after: Option<Duration>,
    },
    /// There is no connection, and no attempt is left: every request fails from now on.
    GaveUp {
        /// The reason.
        cause: Arc<Lost>,
    },
    /// A request took at least as long as the threshold of
    /// [`slow_request`](super::ConnectOptions::slow_request).
    SlowRequest {
        /// The command.
        command: Command,
        /// The first byte that it is about; 0 for a flush.
        offset: u64,
        /// Length in bytes; 0 for a flush.
        len: u64,
        /// The time from when it was submitted until its reply was read or it was given up.
        took: Duration,
    },
}

impl fmt::Display for ClientEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected {
                connections,
                attempts: 0,
            } => write!(f, "connected (connections: {connections})"),
            Self::Connected {
                connections,
                attempts,
            } => write!(
                f,
                "connected again (attempts: {attempts}, connections: {connections})"
            ),
            Self::Lost { cause, connections } => write!(
                f,
                "a connection was lost: {cause} (connections left: {connections})"
            ),
            Self::AttemptFailed {
                attempt,
                cause,
                retry_after: Some(delay),
            } => write!(
                f,
                "attempt {attempt} to connect again failed, the next is in {delay:?}: {cause}"
            ),
            Self::AttemptFailed { attempt, cause, .. } => write!(
                f,
                "attempt {attempt} to connect again failed, and was the last: {cause}"
            ),
            Self::GaveUp { cause } => write!(f, "there is no connection any more: {cause}"),
            Self::SlowRequest {
                command,
                offset,
                len,
                took,
            } => write!(f, "{command} of {len} bytes at {offset} took {took:?}"),
        }
    }
}

#[cfg(feature = "tracing")]
impl ClientEvent {
    fn trace(&self) {
        match self {
            Self::Connected { .. } => tracing::info!("{self}"),
            Self::Lost { .. } | Self::AttemptFailed { .. } | Self::SlowRequest { .. } => {
                tracing::warn!("{self}");
            }
            Self::GaveUp { .. } => tracing::error!("{self}"),
        }
    }
}

/// Collects the events of one client where they happen, which may be below a lock, and hands them to
/// the program where none is held. Clones are one.
#[derive(Clone, Default)]
pub struct Observer {
    /// The program's callback, if it has one.
    program: Option<Arc<Shared>>,
    /// The client's.
    #[cfg(feature = "tracing")]
    span: Option<tracing::Span>,
}

type OnEvent = Arc<dyn Fn(&ClientEvent) + Send + Sync>;

struct Shared {
    on_event: OnEvent,
    queue: Mutex<Queue>,
    slow: Option<Slow>,
}

/// Detection of slow requests.
struct Slow {
    threshold: Duration,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<ClientEvent>,
    /// A thread is handing them over.
    delivering: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets another thread go on if the program's function panics.
struct Delivering<'a> {
    shared: &'a Shared,
    is_done: bool,
}

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.lock().delivering = false;
        }
    }
}

impl Observer {
    /// Hands events to a function.
    #[must_use]
    pub fn new(on_event: impl Fn(&ClientEvent) + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(on_event), None)
    }

    fn with(on_event: OnEvent, slow: Option<Slow>) -> Self {
        Self {
            program: Some(Arc::new(Shared {
                on_event,
                queue: Mutex::default(),
                slow,
            })),
            #[cfg(feature = "tracing")]
            span: None,
        }
    }

    /// One that hands events to the same function, and requests that take at least so long.
    #[must_use]
    pub fn another(
        &self,
        threshold: Option<Duration>,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        let Some(shared) = &self.program else {
            return Self::default();
        };
        let slow = threshold.map(|threshold| Slow {
            threshold,
            clock: Box::new(clock),
        });
        Self::with(shared.on_event.clone(), slow)
    }

    /// Takes in an event, to be [delivered](Self::deliver).
    pub fn push(&self, event: impl FnOnce() -> ClientEvent) {
        #[cfg(feature = "tracing")]
        if let Some(span) = &self.span {
            let event = event();
            span.in_scope(|| event.trace());
            if let Some(shared) = &self.program {
                shared.lock().events.push_back(event);
            }
            return;
        }
        if let Some(shared) = &self.program {
            shared.lock().events.push_back(event());
        }
    }

    /// Has events go to `tracing`, too, in a span of a client of this server and export.
    #[cfg(feature = "tracing")]
    #[must_use]
    pub fn traced(
        mut self,
        server: &dyn fmt::Display,
        export: &ExportName,
        negotiated: &Negotiated,
    ) -> Self {
        let export = export.as_str();
        let span = tracing::info_span!("nbd_client", %server, export);
        span.in_scope(|| {
            let contexts = negotiated.contexts.iter();
            let contexts: Vec<_> = contexts
                .filter_map(|context| context.name.as_ref())
                .collect();
            tracing::info!(
                size = negotiated.size(),
                header_style = ?negotiated.mode,
                encrypted = negotiated.encrypted,
                minimum_block = negotiated.blocks.minimum(),
                ?contexts,
                "entered"
            );
        });
        self.span = Some(span);
        self
    }

    /// Hands over the collected events, in their order. No lock of the client may be held, because
    /// the program may use the client.
    pub fn deliver(&self) {
        let Some(shared) = &self.program else { return };
        let mut queue = shared.lock();
        if queue.delivering || queue.events.is_empty() {
            return;
        }
        queue.delivering = true;
        drop(queue);
        let mut delivering = Delivering {
            shared,
            is_done: false,
        };
        loop {
            let mut queue = shared.lock();
            let Some(event) = queue.events.pop_front() else {
                // In the same step, or an event that comes in between would be left behind.
                queue.delivering = false;
                delivering.is_done = true;
                return;
            };
            drop(queue);
            (shared.on_event)(&event);
        }
    }

    /// Whether requests are measured.
    #[inline]
    #[must_use]
    pub fn measures(&self) -> bool {
        #[cfg(feature = "tracing")]
        if self.traces() {
            return true;
        }
        self.program
            .as_ref()
            .is_some_and(|shared| shared.slow.is_some())
    }

    /// Whether each request is an event for `tracing`.
    #[cfg(feature = "tracing")]
    #[inline]
    fn traces(&self) -> bool {
        tracing::enabled!(tracing::Level::TRACE) && self.span.is_some()
    }

    /// An event of a request for `tracing`.
    #[cfg(feature = "tracing")]
    fn trace(&self, what: &str, command: Command, range: &Range<u64>) {
        if let Some(span) = self.span.as_ref().filter(|_| self.traces()) {
            let (offset, len) = (range.start, range.end - range.start);
            span.in_scope(|| tracing::trace!(%command, offset, len, "{what}"));
        }
    }

    /// Measures a request until the result is dropped. `None` unless slow requests are reported, or
    /// all of them traced.
    #[inline]
    #[must_use]
    pub fn watch(&self, command: Command, range: Range<u64>) -> Option<Watched> {
        let slow = self
            .program
            .as_ref()
            .and_then(|program| program.slow.as_ref());
        if !self.measures() {
            return None;
        }
        #[cfg(feature = "tracing")]
        self.trace("a request is submitted", command, &range);
        Some(Watched {
            observer: self.clone(),
            command,
            range,
            start: slow.map_or(Duration::ZERO, |slow| (slow.clock)()),
        })
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("program", &self.program.is_some())
            .finish_non_exhaustive()
    }
}

/// A request that is measured until this is dropped, where no lock is held.
#[derive(Debug)]
pub struct Watched {
    observer: Observer,
    command: Command,
    range: Range<u64>,
    start: Duration,
}

impl Drop for Watched {
    fn drop(&mut self) {
        #[cfg(feature = "tracing")]
        {
            let Self {
                observer,
                command,
                range,
                ..
            } = &self;
            observer.trace("a request is over", *command, range);
        }
        let shared = self.observer.program.as_ref();
        let Some(slow) = shared.and_then(|shared| shared.slow.as_ref()) else {
            return;
        };
        let took = (slow.clock)().saturating_sub(self.start);
        if took >= slow.threshold {
            self.observer.push(|| ClientEvent::SlowRequest {
                command: self.command,
                offset: self.range.start,
                len: self.range.end - self.range.start,
                took,
            });
            self.observer.deliver();
        }
    }
}
