//! A server for one connection that answers in an order and at times of its own.

use super::{
    pipe::Pipe,
    sim::{Chance, Sim},
};
use crate::{
    Exports,
    client::tasks::link::Stream,
    runtime::{Runtime, Tasks},
    server::{Entered, NegotiationError, Replies, ServerOptions, execute, negotiate},
    transport::Transport,
};
#[cfg(feature = "tls")]
use crate::{server::TlsMode, tls::TlsTransport};
use nbd_proto::server::{Event, Request};
use std::{
    future::poll_fn,
    io::{IoSlice, IoSliceMut},
    sync::{Arc, Mutex, atomic::AtomicBool},
    task::Poll,
    time::Duration,
};

/// The behaviour of a server.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Replies come in random order, after random times.
    pub(crate) shuffle: bool,
    /// Requests that are not answered, by their number from 0.
    pub(crate) silent: Option<Arc<dyn Fn(usize) -> bool + Send + Sync>>,
    /// The delay of the reply to a request, given as text.
    pub(crate) late: Option<Late>,
    /// The requests in the order of arrival.
    pub(crate) log: Log,
    /// The TLS configuration; TLS is required.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::tls::ServerTls>,
}

pub(crate) type Late = Arc<dyn Fn(&str) -> Duration + Send + Sync>;

/// Requests as text.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// Serves one client in a task of its own.
pub(crate) fn serve(sim: &Sim, pipe: Pipe, exports: Arc<dyn Exports>, behaviour: Behaviour) {
    let server = session(sim.clone(), pipe, exports, behaviour);
    sim.spawn(server);
}

#[cfg(feature = "tls")]
async fn upgrade(stream: Stream, behaviour: &Behaviour) -> Result<Stream, NegotiationError> {
    let tls = behaviour.tls.as_ref().unwrap().server().unwrap();
    match TlsTransport::accept(stream, tls).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(NegotiationError::Tls(error.into())),
    }
}

#[cfg(not(feature = "tls"))]
async fn upgrade(stream: Stream, _: &Behaviour) -> Result<Stream, NegotiationError> {
    Ok(stream)
}

/// Negotiates until the client enters an export, if it does.
pub(super) async fn enter(
    pipe: Pipe,
    exports: Arc<dyn Exports>,
    behaviour: &Behaviour,
) -> Option<Entered<Stream>> {
    let running = AtomicBool::new(false);
    let mut options = ServerOptions::default();
    options.config.limits.accepted = 1000;
    #[cfg(feature = "tls")]
    if behaviour.tls.is_some() {
        options.tls = TlsMode::Forced;
    }
    let stream: Stream = Box::new(pipe);
    let upgrade = |stream| upgrade(stream, behaviour);
    let entered = negotiate(stream, &options, &*exports, &running, upgrade).await;
    entered.ok()?.ok()
}

async fn session(sim: Sim, pipe: Pipe, exports: Arc<dyn Exports>, behaviour: Behaviour) {
    let Some(entered) = enter(pipe, exports, &behaviour).await else {
        return;
    };
    let export = entered.export.into_sync().unwrap();
    let mut pipe = entered.transport;
    let mut transmission = entered.transmission;
    let mut inbox = vec![0; 64 << 10];
    let mut payload = Vec::new();
    // With the earliest time of each reply.
    let mut waiting: Vec<(Duration, Request, Vec<u8>)> = Vec::new();
    let mut replies = Replies::new();
    let mut count = 0;
    let mut timer = None;
    let chance: &Chance = sim.chance();
    loop {
        // Pending bytes are read; replies are written as far as possible.
        enum Step {
            Read(usize),
            Wrote(usize),
            Answer,
        }
        let step = poll_fn(|cx| {
            if !replies.is_empty() {
                let mut slices = [IoSlice::new(&[]); 16];
                let n = replies.slices(&mut slices);
                if let Poll::Ready(n) = pipe.poll_write(cx, &slices[..n]) {
                    return Poll::Ready(n.map(Step::Wrote));
                }
            }
            let mut bufs = [IoSliceMut::new(&mut inbox)];
            if let Poll::Ready(n) = pipe.poll_read(cx, &mut bufs) {
                return Poll::Ready(n.map(Step::Read));
            }
            let Some(due) = waiting.iter().map(|(due, ..)| *due).min() else {
                return Poll::Pending;
            };
            let time = Duration::from_micros(chance.below(100) as u64);
            let early = due.saturating_sub(sim.now());
            let sleep = timer.get_or_insert_with(|| sim.sleep(time.max(early)));
            let sleeps = behaviour.shuffle || !early.is_zero();
            if sleeps && std::pin::Pin::new(sleep).poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer = None;
            Poll::Ready(Ok(Step::Answer))
        })
        .await;
        match step {
            Err(_) | Ok(Step::Read(0)) => return,
            Ok(Step::Wrote(n)) => {
                replies.advance(n);
                replies.retire(&mut transmission);
            }
            Ok(Step::Read(n)) => {
                if behaviour.late.is_some() {
                    timer = None; // the new bytes may be due before
                }
                let mut bytes = &inbox[..n];
                while !bytes.is_empty() {
                    let Ok(fed) = transmission.feed(bytes) else {
                        return;
                    };
                    if fed.payload.is_some() {
                        payload.extend_from_slice(&bytes[..fed.used]);
                    }
                    assert!(fed.used > 0, "the server uses bytes of every read");
                    bytes = &bytes[fed.used..];
                    match fed.event {
                        Some(Event::Request(request)) => {
                            let text = format!("{request:?}");
                            let end = text.find("ticket").unwrap_or(text.len());
                            let text = text[..end].trim_end_matches([' ', ',', '{']);
                            let late = behaviour.late.as_ref().map(|late| late(text));
                            behaviour.log.lock().unwrap().push(text.to_owned());
                            let silent = behaviour.silent.as_ref();
                            let payload = std::mem::take(&mut payload);
                            if !silent.is_some_and(|silent| silent(count)) {
                                let due = sim.now() + late.unwrap_or_default();
                                waiting.push((due, request, payload));
                            }
                            count += 1;
                        }
                        Some(Event::Answered(reply)) => replies.push(*reply),
                        Some(Event::Disconnect) => {
                            behaviour.log.lock().unwrap().push("Disconnect".to_owned());
                            return;
                        }
                        None => {}
                    }
                }
            }
            Ok(Step::Answer) => {
                let due: Vec<usize> = (0..waiting.len())
                    .filter(|at| waiting[*at].0 <= sim.now())
                    .collect();
                let at = if behaviour.shuffle {
                    chance.below(due.len())
                } else {
                    0
                };
                let (_, request, payload) = waiting.remove(due[at]);
                let _ = execute(&*export, request, &payload, &mut replies);
            }
        }
    }
}
