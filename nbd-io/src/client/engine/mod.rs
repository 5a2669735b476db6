//! One connection in transmission: requests in flight, the place of their payload, the owners of
//! replies, and the bytes to be sent.
//!
//! It has no socket, lock, waker or clock. A driver hands in the time and the bytes that it has
//! read, and asks for the bytes to write and the owners to wake. Both clients use it: tasks hold
//! the lock while the stream is polled, threads release it while they wait for the socket.
//!
//! Requests belong to *owners*: a task's call, a thread's call, or a queue.

mod outbox;
mod receive;
mod reply;
mod sink;
mod spare;
mod spill;
mod table;
#[cfg(test)]
mod tests;

pub use outbox::Outbox;
pub use receive::{Inbox, LARGE, ReadPlan, Reader, no_reader};
pub use reply::Reply;
pub use sink::{Buffer, Sink};
pub use spare::Spare;
pub use spill::Spill;
pub use table::{Done, Submission, Ticket};

#[cfg(feature = "tracing")]
use super::messages::Replies;
use super::{Error, Lost};
use crate::mutation::Mutation;
#[cfg(feature = "tracing")]
use nbd_proto::client::Tolerance;
use nbd_proto::client::{Cookie, Transmission};
use std::{mem, sync::Arc, time::Duration};
use table::{InFlight, Owner};

/// The owner of a request that was given up.
const ABANDONED: usize = usize::MAX;

/// A connection in transmission.
///
/// `B` are the buffers that reads hand over, `T` is a driver's attachment to a request until it is
/// answered, `O` is the driver's state per owner.
#[derive(Debug)]
pub struct Engine<B, T, O = ()> {
    /// In a box, as it comes from the negotiation: it is large to be moved.
    transmission: Box<Transmission>,
    /// State per request in flight, by the slot of its cookie.
    in_flight: Vec<InFlight<B>>,
    /// A driver's attachments to requests in flight, by slot. They are apart, because most requests
    /// have none.
    tickets: Vec<Option<T>>,
    owners: Vec<Owner<B, O>>,
    free_owners: Vec<usize>,
    /// Owners with something new, for the driver to wake.
    ready: Vec<usize>,
    /// Tickets of requests that were answered, for the driver to drop without its lock.
    released: Vec<T>,
    outbox: Outbox,
    /// Time limit of a request.
    timeout: Option<Duration>,
    /// No request is late before this time. It may be earlier than the first deadline.
    first_due: Duration,
    /// The slots of requests that were submitted without a time.
    untimed: Vec<usize>,
    /// Number of times that something was received.
    receipts: u64,
    /// Whether a request that is late ends the connection if nothing was received since it was
    /// sent.
    lose_when_silent: bool,
    /// Payload of all requests in flight, in bytes.
    weight: u64,
    /// The deviations of the server's that were reported.
    #[cfg(feature = "tracing")]
    tolerated: Tolerance,
    /// The state of message tracing for replies, if they are traced. A connection that began
    /// without that goes on without.
    #[cfg(feature = "tracing")]
    replies: Option<Box<Replies>>,
    /// Memory of earlier reads, for those that have no buffer.
    spare: Option<Arc<Spare<B>>>,
    /// Reads in flight whose payload is worth a system call of its own.
    large: usize,
    /// The slot of the request that was submitted last.
    latest: usize,
    /// The server answers reads in parts, so that nothing can be foreseen of its replies.
    is_split: bool,
    /// The server has answered with `NBD_ESHUTDOWN`.
    server_shuts_down: bool,
    closing: bool,
    /// `NBD_CMD_DISC` is in the outbox, or sent.
    disconnecting: bool,
    lost: Option<Arc<Lost>>,
}

impl<B: Buffer, T: Ticket, O: Default> Engine<B, T, O> {
    /// A connection whose requests may take `timeout` each. With `lose_when_silent`, a request that
    /// is late ends the connection if the server has sent nothing since.
    #[must_use]
    pub fn new(
        transmission: Box<Transmission>,
        timeout: Option<Duration>,
        lose_when_silent: bool,
    ) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            replies: Replies::new(transmission.mode()),
            transmission,
            in_flight: Vec::new(),
            tickets: Vec::new(),
            owners: Vec::new(),
            free_owners: Vec::new(),
            ready: Vec::new(),
            released: Vec::new(),
            outbox: Outbox::default(),
            timeout,
            first_due: Duration::MAX,
            untimed: Vec::new(),
            receipts: 0,
            lose_when_silent,
            weight: 0,
            #[cfg(feature = "tracing")]
            tolerated: Tolerance::STRICT,
            spare: None,
            large: 0,
            latest: 0,
            is_split: false,
            server_shuts_down: false,
            closing: false,
            disconnecting: false,
            lost: None,
        }
    }

    /// Reads without a buffer get their memory from there first.
    pub fn share(&mut self, spare: Arc<Spare<B>>) {
        self.spare = Some(spare);
    }

    /// Frees memory that is kept for the next reads.
    pub fn shrink(&self) {
        self.spare.iter().for_each(|spare| spare.clear());
    }

    /// The protocol's side of it.
    #[must_use]
    pub fn transmission(&self) -> &Transmission {
        &self.transmission
    }

    /// Time limit of a request.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.transmission.in_flight()
    }

    /// Payload of all requests in flight, in bytes.
    #[must_use]
    pub const fn weight(&self) -> u64 {
        self.weight
    }

    /// Whether one more request may be in flight.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.transmission.has_room()
    }

    /// Whether requests are taken: the connection is not over, and not about to be.
    #[must_use]
    pub const fn takes_requests(&self) -> bool {
        !self.closing && self.lost.is_none()
    }

    /// The bytes to be written.
    pub const fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The end of the connection, if it has ended.
    #[must_use]
    pub const fn lost(&self) -> Option<&Arc<Lost>> {
        self.lost.as_ref()
    }

    /// Whether no request is taken any more, and those in flight are still waited for.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether `NBD_CMD_DISC` is in the outbox, or sent: nothing but the end of the stream is to
    /// come.
    #[must_use]
    pub const fn is_disconnecting(&self) -> bool {
        self.disconnecting
    }

    /// Takes no more requests. When the last one in flight is answered, `NBD_CMD_DISC` is put into
    /// the outbox. Returns whether this was the first time.
    pub fn close(&mut self) -> bool {
        if self.closing || self.lost.is_some() {
            return false;
        }
        self.closing = true;
        self.disconnect_when_idle();
        true
    }

    fn disconnect_when_idle(&mut self) {
        if self.closing && self.transmission.in_flight() == 0 {
            self.disconnect();
        }
    }

    /// Puts `NBD_CMD_DISC` into the outbox, even if requests are in flight.
    pub fn disconnect(&mut self) {
        if !self.disconnecting
            && self.lost.is_none()
            && let Ok(frame) = self.transmission.disconnect()
        {
            self.closing = true;
            self.disconnecting = true;
            self.outbox.push(frame.header());
        }
    }

    /// Ends the connection for all requests. The first reason stays.
    pub fn lose(&mut self, why: Lost) {
        if self.lost.is_some() {
            return;
        }
        let lost = Arc::new(why);
        self.lost = Some(lost.clone());
        self.outbox = Outbox::default();
        self.first_due = Duration::MAX;
        self.untimed.clear();
        for slot in 0..self.in_flight.len() {
            let request = &mut self.in_flight[slot];
            let owner = mem::replace(&mut request.owner, ABANDONED);
            let sink = mem::take(&mut request.sink);
            self.released.extend(self.tickets[slot].take());
            if let Some(cookie) = request.cookie.take()
                && owner != ABANDONED
            {
                let reply = Error::Lost(lost.clone()).into();
                self.finish(owner, cookie, reply, sink);
            }
        }
    }

    /// The end of the stream, or how it failed.
    pub fn ended(&mut self, error: Option<std::io::Error>) {
        self.lose(match error {
            // Some servers end TLS by just closing.
            _ if self.disconnecting => self.end_of_session(),
            None => Lost::Closed,
            Some(error) => error.into(),
        });
    }

    /// Whether the server has said that it shuts down.
    #[must_use]
    pub const fn server_shuts_down(&self) -> bool {
        self.server_shuts_down
    }

    /// The reason of a connection that ends as it should.
    #[must_use]
    pub const fn end_of_session(&self) -> Lost {
        match self.server_shuts_down {
            true => Lost::ShutsDown,
            false => Lost::Disconnected,
        }
    }

    /// The error of requests that are not taken.
    #[must_use]
    pub fn over(&self) -> Error {
        match &self.lost {
            Some(lost) => Error::Lost(lost.clone()),
            None => Error::lost(self.end_of_session()),
        }
    }

    /// Whether requests were submitted without a time.
    #[inline]
    #[must_use]
    pub fn has_untimed(&self) -> bool {
        !self.untimed.is_empty()
    }

    /// The time of those that were submitted without one begins.
    pub fn begin_time(&mut self, now: Duration) {
        let due = self.due(now);
        for slot in &self.untimed {
            self.in_flight[*slot].due = due;
        }
        self.untimed.clear();
        self.first_due = self.first_due.min(due);
    }

    fn due(&self, now: Duration) -> Duration {
        let timeout = match Mutation::LateDeadline.is_made() {
            true => self.timeout.map(|timeout| timeout * 2),
            false => self.timeout,
        };
        timeout.map_or(Duration::MAX, |timeout| now.saturating_add(timeout))
    }

    /// No request is late before this time; `None` if none can be.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        (self.first_due != Duration::MAX).then_some(self.first_due)
    }

    /// Fails the requests that have taken too long.
    pub fn expire(&mut self, now: Duration) {
        let Some(after) = self.timeout.filter(|_| self.first_due <= now) else {
            return;
        };
        let mut first = Duration::MAX;
        let mut silent = false;
        for slot in 0..self.in_flight.len() {
            let request = &self.in_flight[slot];
            let Some(cookie) = request.cookie.filter(|_| request.owner != ABANDONED) else {
                continue;
            };
            if request.due > now {
                first = first.min(request.due);
                continue;
            }
            silent |= request.receipts == self.receipts;
            let (owner, command) = (request.owner, request.command);
            let sink = self.abandon(cookie);
            let reply = Error::Timeout { command, after }.into();
            self.finish(owner, cookie, reply, sink);
        }
        self.first_due = first;
        if silent && self.lose_when_silent {
            self.lose(Lost::Silent { after });
        }
    }

    /// Gives up a request: its reply is thrown away when it comes. Returns its sink.
    fn abandon(&mut self, cookie: Cookie) -> Sink<B> {
        self.transmission.abandon(cookie);
        let request = &mut self.in_flight[cookie.slot()];
        request.owner = ABANDONED;
        mem::take(&mut request.sink)
    }

    /// Whether a request was answered, or cannot be any more.
    #[must_use]
    pub fn is_answered(&self, cookie: Cookie) -> bool {
        let request = self.in_flight.get(cookie.slot());
        request.is_none_or(|request| request.cookie != Some(cookie))
    }
}
