//! One connection, from its first byte to its last.

use super::{Ending, Event, Peer, Settings, registry::Place};
use crate::stream::{Negotiating, Stream};
use nbd_io::{
    Export,
    server::{Ended, Entered, NegotiationError, Replies, execute, negotiate},
    transport::block_on_ready,
};
use nbd_proto::server::{self, Fill, Request, Transmission};
use std::{
    io::{self, IoSlice, IoSliceMut},
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of requests that are taken from the stream at once.
const STAGED: usize = 128 << 10;

/// Replies that are not held back any more for others to join them, in bytes.
const ENOUGH: usize = 256 << 10;

/// Slices that one write takes at most.
const SLICES: usize = 64;

/// How long a client may keep quiet before it is taken to have no more requests when the server
/// stops.
const LULL: Duration = Duration::from_millis(100);

/// No server takes longer to stop. A time that far ahead can be told of any clock.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a client that has disconnected may take for what it is still to receive.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a client until it leaves.
pub(super) fn serve(settings: &Settings, stream: Stream, peer: &Peer, place: &Place) -> Ending {
    let connection = place.id();
    settings.tell(&Event::Connected { connection, peer });
    let ending = match enter(settings, stream, place) {
        Ok(entered) => {
            settings.tell(&Event::Entered {
                connection,
                export: &entered.name,
                mode: entered.transmission.mode(),
                encrypted: entered.encrypted,
            });
            Session::new(settings, entered, place).run()
        }
        Err(ending) => ending,
    };
    settings.tell(&Event::Closed {
        connection,
        ending: &ending,
    });
    ending
}

fn enter(
    settings: &Settings,
    stream: Stream,
    place: &Place,
) -> Result<Entered<Negotiating>, Ending> {
    let transport = Negotiating {
        stream,
        deadline: settings
            .handshake_timeout
            .and_then(|timeout| Instant::now().checked_add(timeout)),
    };
    let negotiation = place.interruptible(|| {
        block_on_ready(negotiate(
            transport,
            &settings.options,
            &*settings.exports,
            place.stopping(),
            |transport| upgrade(settings, transport),
        ))
    });
    match negotiation {
        Some(Ok(Ok(entered))) => Ok(entered),
        Some(Ok(Err(Ended::Aborted))) => Err(Ending::Aborted),
        None => Err(Ending::Stopped),
        Some(Ok(Err(Ended::Closed)) | Err(NegotiationError::Io(_) | NegotiationError::Closed))
            if place.is_stopping() =>
        {
            Err(Ending::Stopped)
        }
        Some(Ok(Err(Ended::Closed))) => Err(Ending::Left),
        Some(Err(error)) => Err(Ending::Negotiation(error)),
    }
}

/// Does the TLS handshake.
#[cfg(feature = "tls-base")]
async fn upgrade(
    settings: &Settings,
    transport: Negotiating,
) -> Result<Negotiating, NegotiationError> {
    let Negotiating { stream, deadline } = transport;
    let (Stream::Socket(socket), Some(config)) = (stream, settings.tls.clone()) else {
        return Err(NegotiationError::Tls(
            "TLS can only be started over a socket".into(),
        ));
    };
    let tls = crate::tls::TlsStream::accept(socket, config, deadline)?
        .map_err(|error| NegotiationError::Tls(error.into()))?;
    Ok(Negotiating {
        stream: Stream::Tls(Box::new(tls)),
        deadline,
    })
}

#[cfg(not(feature = "tls-base"))]
async fn upgrade(_: &Settings, _: Negotiating) -> Result<Negotiating, NegotiationError> {
    Err(NegotiationError::Tls("TLS is not in this build".into()))
}

/// A client uses an export.
struct Session<'a> {
    place: &'a Place,
    stream: Stream,
    transmission: Transmission,
    export: Arc<dyn Export>,
    replies: Replies,
    staged: Staged,
    /// Holds the payload of a write that does not come all at once.
    payload: Vec<u8>,
    /// When a stopping server closes the connection.
    last_call: Option<Instant>,
    grace: Duration,
}

/// Bytes that have come, of which the first are used up.
struct Staged {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What to do next.
enum Next {
    Read,
    End(Ending),
}

impl<'a> Session<'a> {
    fn new(settings: &Settings, entered: Entered<Negotiating>, place: &'a Place) -> Self {
        Self {
            place,
            stream: entered.transport.stream,
            transmission: entered.transmission,
            export: entered.export,
            replies: Replies::new(),
            staged: Staged {
                bytes: vec![0; STAGED].into_boxed_slice(),
                start: 0,
                end: 0,
            },
            payload: Vec::new(),
            last_call: None,
            grace: settings.grace.min(LONGEST_GRACE),
        }
    }

    fn run(mut self) -> Ending {
        let ending = match self.serve() {
            Ok(ending) => ending,
            Err(error) if self.place.is_stopping() && is_end(&error) => Ending::Stopped,
            Err(error) => Ending::Io(error),
        };
        self.stream.shutdown();
        ending
    }

    fn serve(&mut self) -> io::Result<Ending> {
        loop {
            match self.consume()? {
                Next::Read => {}
                Next::End(ending) => {
                    // What was answered before is sent, whatever came then.
                    let deadline = Instant::now().checked_add(FAREWELL);
                    self.write(deadline)?;
                    return Ok(ending);
                }
            }
            self.write(None)?;
            if self.staged.start == self.staged.end
                && let Some(ending) = self.read()?
            {
                return Ok(ending);
            }
        }
    }

    /// Carries out the requests that have come, as far as their replies may wait to be sent.
    fn consume(&mut self) -> io::Result<Next> {
        while self.staged.start < self.staged.end {
            if self.place.is_stopping() {
                self.transmission.shut_down();
            }
            let bytes = &self.staged.bytes[self.staged.start..self.staged.end];
            let fed = match self.transmission.feed(bytes) {
                Ok(fed) => fed,
                Err(error) => return Ok(Next::End(Ending::Protocol(error))),
            };
            let used = &bytes[..fed.used];
            self.staged.start += fed.used;
            match (fed.event, fed.payload) {
                // The payload has come all at once and need not be copied.
                (Some(server::Event::Request(request)), Some(range)) if range.start == 0 => {
                    execute(&*self.export, request, used, &mut self.replies);
                }
                (event, Some(range)) => {
                    let len = match self.transmission.fill() {
                        Fill::Payload { len, .. } => len,
                        _ => range.end,
                    };
                    reserve(&mut self.payload, len);
                    self.payload[range.clone()].copy_from_slice(used);
                    if let Some(ending) = self.handle(event, range.end) {
                        return Ok(Next::End(ending));
                    }
                }
                (Some(event), None) => {
                    if let Some(ending) = self.handle(Some(event), 0) {
                        return Ok(Next::End(ending));
                    }
                }
                // Nothing more is read before replies are written.
                (None, None) if fed.used == 0 => return Ok(Next::Read),
                (None, None) => {}
            }
            if self.replies.len() >= ENOUGH {
                self.write(None)?;
            }
        }
        Ok(Next::Read)
    }

    /// Acts on an event; the payload of a write are the first `len` bytes of the buffer.
    fn handle(&mut self, event: Option<server::Event>, len: usize) -> Option<Ending> {
        match event? {
            server::Event::Request(request) => {
                let payload = match &request {
                    Request::Write { .. } => &self.payload[..len],
                    _ => &[],
                };
                execute(&*self.export, request, payload, &mut self.replies);
                None
            }
            server::Event::Answered(reply) => {
                self.replies.push(reply);
                None
            }
            server::Event::Disconnect => Some(Ending::Disconnected),
        }
    }

    /// Takes more bytes from the stream: first those of a payload, then whatever follows.
    fn read(&mut self) -> io::Result<Option<Ending>> {
        self.staged.start = 0;
        self.staged.end = 0;
        let direct = match self.transmission.fill() {
            Fill::Payload { range, len } => {
                reserve(&mut self.payload, len);
                Some(range)
            }
            _ => None,
        };
        let n = match self.receive(direct.clone())? {
            Some(0) if self.place.is_stopping() => return Ok(Some(Ending::Stopped)),
            Some(0) if self.transmission.is_idle() => return Ok(Some(Ending::Left)),
            Some(0) => return Ok(Some(Ending::Truncated)),
            None => return Ok(Some(Ending::Stopped)),
            Some(n) => n,
        };
        let Some(range) = direct else {
            self.staged.end = n;
            return Ok(None);
        };
        let of_payload = n.min(range.len());
        self.staged.end = n - of_payload;
        match self.transmission.filled(of_payload) {
            Ok(event) => Ok(self.handle(event, range.end)),
            Err(error) => Ok(Some(Ending::Protocol(error))),
        }
    }

    /// Returns `None` when the server is stopping and nothing comes any more.
    fn receive(&mut self, direct: Option<std::ops::Range<usize>>) -> io::Result<Option<usize>> {
        let Self {
            place,
            stream,
            transmission,
            payload,
            staged,
            last_call,
            grace,
            ..
        } = self;
        let mut attempt = |block| {
            let staged = IoSliceMut::new(&mut staged.bytes);
            match direct.clone() {
                Some(range) => {
                    let payload = IoSliceMut::new(&mut payload[range]);
                    stream.read(&mut [payload, staged], block)
                }
                None => stream.read(&mut [staged], block),
            }
        };
        let received = if transmission.is_idle() {
            place.interruptible(|| attempt(true))
        } else if place.is_stopping() {
            None
        } else {
            Some(attempt(true))
        };
        let received = match received {
            Some(received) => received,
            None => {
                let now = Instant::now();
                let last_call = *last_call.get_or_insert_with(|| now + *grace);
                loop {
                    match attempt(false) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            let deadline = last_call.min(Instant::now() + LULL);
                            match stream.wait(true, false, Some(deadline)) {
                                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                                    return Ok(None);
                                }
                                done => done?,
                            }
                        }
                        done => break done,
                    }
                }
            }
        };
        match received {
            Err(error) if is_end(&error) => Ok(Some(0)),
            received => received.map(Some),
        }
    }

    /// Writes all replies. While the client takes none, nothing is read from it either.
    fn write(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        // The system waits with fewer calls than this could.
        let block = deadline.is_none();
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.replies.slices(&mut slices);
            let attempt = match count {
                0 => self.stream.flush().map(|()| 0),
                count => self.stream.write(&slices[..count], block),
            };
            match attempt {
                Ok(_) if count == 0 => break,
                Ok(n) => self.replies.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.wait(false, true, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        self.replies.retire(&mut self.transmission);
        Ok(())
    }
}

/// Makes a buffer at least `len` bytes long. Its contents are lost if it was not.
fn reserve(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        *buffer = vec![0; len];
    }
}

/// Whether an error says just that the client is gone.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}
