//! One connection, from its first byte to its last.

use super::{
    CloseReason, Ended, Event, NegotiationError, Peer, Settings,
    authorizer::Authorizer,
    jobs::{Panicked, guard},
    negotiation::{Entered, negotiate_with},
    registry::Registration,
    session::{QUIET, Session},
};
use crate::{
    runtime::Runtime,
    transport::{Layered, Transport},
};
use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

/// Number of times that the time for an option begins anew. Programs that list all exports with
/// their details take up to a fifth of a second for each over TCP, because of the way they write:
/// with the usual time this is enough for 8,000.
const MOST_TIMES: u32 = 180;

/// Serves a client until it leaves, in a span of the connection's.
pub(super) async fn serve<T: Transport, R: Runtime>(
    settings: &Settings,
    runtime: &R,
    transport: T,
    peer: &Peer,
    place: &Registration,
) -> CloseReason {
    let served = serve_client(settings, runtime, transport, peer, place);
    #[cfg(feature = "tracing")]
    let served = {
        let span = tracing::info_span!("nbd_connection", connection = place.id(), %peer);
        tracing::Instrument::instrument(served, span)
    };
    served.await
}

async fn serve_client<T: Transport, R: Runtime>(
    settings: &Settings,
    runtime: &R,
    transport: T,
    peer: &Peer,
    place: &Registration,
) -> CloseReason {
    let connection = place.id();
    settings.notify(&Event::Connected { connection, peer });
    let ending = match enter(settings, runtime, transport, peer, place).await {
        Ok(entered) => {
            settings.notify(&Event::Entered {
                connection,
                export: &entered.name,
                mode: entered.transmission.mode(),
                encrypted: entered.encrypted,
            });
            place.entered(runtime.now());
            Session::new(settings, runtime, place, peer, entered)
                .run()
                .await
        }
        Err(ending) => ending,
    };
    let ending = match ending {
        CloseReason::Stopped if place.is_displaced() => CloseReason::Displaced,
        ending => ending,
    };
    settings.notify(&Event::Closed {
        connection,
        ending: &ending,
    });
    ending
}

async fn enter<T: Transport, R: Runtime>(
    settings: &Settings,
    runtime: &R,
    mut transport: T,
    peer: &Peer,
    place: &Registration,
) -> Result<Entered<Layered<T>>, CloseReason> {
    // Exports are looked up in place if the transport can wait like that.
    transport.set_exclusive(true);
    let authorizer = Authorizer::new(settings, runtime, *peer);
    let mut negotiation = pin!(negotiate_with(
        Layered::Plain(transport),
        &settings.options,
        &authorizer,
        place.stopping(),
        // In a box, so that connections without TLS have no room for its handshake.
        |transport| Box::pin(upgrade(settings, transport)),
    ));
    let mut deadline = settings
        .handshake_timeout
        .map(|time| Deadline::new(runtime, time));
    let mut quiet: Option<R::Sleep> = None;
    let negotiated = poll_fn(|cx| {
        // The program is asked for its exports, and whether the client may use them.
        match guard(|| negotiation.as_mut().poll(cx)) {
            Ok(Poll::Ready(negotiated)) => return Poll::Ready(Ok(Some(negotiated))),
            Ok(Poll::Pending) => {}
            Err(panicked) => return Poll::Ready(Err(panicked)),
        }
        if let Some(deadline) = &mut deadline
            && deadline.is_over(runtime, authorizer.answered(), cx)
        {
            let who = if authorizer.is_asking() {
                "the server took too long to look up an export"
            } else {
                "the client took too long"
            };
            let late = io::Error::new(io::ErrorKind::TimedOut, who);
            return Poll::Ready(Ok(Some(Err(NegotiationError::Io(late)))));
        }
        // A client in the middle of it learns from a refusal that the server stops.
        if place.poll_stopping(cx).is_ready() {
            quiet.get_or_insert_with(|| runtime.sleep(QUIET));
            if is_over(&mut quiet, cx) {
                return Poll::Ready(Ok(None));
            }
        }
        Poll::Pending
    })
    .await
    .map_err(|Panicked| CloseReason::Panicked)?;
    match negotiated {
        Some(Ok(Ok(entered))) => Ok(entered),
        Some(Ok(Err(Ended::Aborted))) => Err(CloseReason::Aborted),
        None => Err(CloseReason::Stopped),
        Some(Ok(Err(Ended::Closed)) | Err(NegotiationError::Io(_) | NegotiationError::Closed))
            if place.is_stopping() =>
        {
            Err(CloseReason::Stopped)
        }
        Some(Ok(Err(Ended::Closed))) => Err(CloseReason::Left),
        Some(Err(error)) => Err(CloseReason::Negotiation(error)),
    }
}

/// Time limit of a client's next option.
struct Deadline<S> {
    time: Duration,
    sleep: S,
    /// The options that were answered when this began.
    answered: u32,
    begun: u32,
}

impl<S: Future<Output = ()> + Unpin> Deadline<S> {
    fn new<R: Runtime<Sleep = S>>(runtime: &R, time: Duration) -> Self {
        Self {
            time,
            sleep: runtime.sleep(time),
            answered: 0,
            begun: 1,
        }
    }

    /// Whether the client had its time. It begins anew if options were answered meanwhile, which is
    /// noticed when it ends, so that an option costs no timer.
    fn is_over<R: Runtime<Sleep = S>>(
        &mut self,
        runtime: &R,
        answered: u32,
        cx: &mut Context<'_>,
    ) -> bool {
        while Pin::new(&mut self.sleep).poll(cx).is_ready() {
            if answered == self.answered || self.begun == MOST_TIMES {
                return true;
            }
            self.answered = answered;
            self.begun += 1;
            self.sleep = runtime.sleep(self.time);
        }
        false
    }
}

fn is_over<S: Future<Output = ()> + Unpin>(sleep: &mut Option<S>, cx: &mut Context<'_>) -> bool {
    sleep
        .as_mut()
        .is_some_and(|sleep| Pin::new(sleep).poll(cx).is_ready())
}

/// Does the TLS handshake.
#[cfg(feature = "tls")]
async fn upgrade<T: Transport>(
    settings: &Settings,
    transport: Layered<T>,
) -> Result<Layered<T>, NegotiationError> {
    use crate::tls::{TlsError, TlsTransport};
    let (Layered::Plain(transport), Some(config)) = (transport, settings.tls.clone()) else {
        return Err(NegotiationError::Tls("TLS was not configured".into()));
    };
    match TlsTransport::accept(transport, config).await {
        Ok(tls) => Ok(Layered::Tls(Box::new(tls))),
        Err(TlsError::ClientIo(source)) => Err(NegotiationError::Io(source)),
        Err(error) => Err(NegotiationError::Tls(error.into())),
    }
}

#[cfg(not(feature = "tls"))]
async fn upgrade<T: Transport>(
    _: &Settings,
    _: Layered<T>,
) -> Result<Layered<T>, NegotiationError> {
    Err(NegotiationError::Tls("TLS is not in this build".into()))
}
