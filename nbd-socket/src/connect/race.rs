//! Trying the addresses of a host side by side.
//!
//! Spec: [RFC 8305](https://www.rfc-editor.org/rfc/rfc8305), "Happy Eyeballs", sections 4 and 5.

use super::{Attempt, Awaited, Dialer, Reactor, no_answer, outcome};
use std::{fmt, io, iter, mem, net::SocketAddr, time::Duration};

/// Time for which an attempt may be silent before the next one begins beside it: the Connection
/// Attempt Delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The shortest delay, where many addresses share little time.
const MIN_ATTEMPT_DELAY: Duration = Duration::from_millis(10);

/// Limit of addresses of a host that are tried. A name server can name thousands.
const MAX_ADDRESSES: usize = 64;

/// An error for a host of which no address could be connected to.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unreachable {
    /// Each address, in the order in which they were tried, and its error.
    pub attempts: Vec<(SocketAddr, io::Error)>,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("the host has no address");
        }
        for (at, (address, error)) in self.attempts.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unreachable {}

/// State of the attempt at an address.
enum Runner<S> {
    Waiting,
    Begun(S),
    Failed(io::Error),
}

impl<R: Reactor> Dialer<'_, R> {
    /// Connects to the first of these addresses that answers.
    pub(super) async fn race(&self, addresses: Vec<SocketAddr>) -> io::Result<R::Socket> {
        let addresses = interleaved(addresses);
        let delay = self.delay(addresses.len());
        let mut runners: Vec<(SocketAddr, Runner<R::Socket>)> = addresses
            .into_iter()
            .map(|address| (address, Runner::Waiting))
            .collect();
        let mut next_begins = self.reactor.clock();
        loop {
            let mut begun = Vec::new();
            let mut next = None;
            for (at, (_, runner)) in runners.iter().enumerate() {
                match runner {
                    Runner::Waiting => next = next.or(Some(at)),
                    Runner::Begun(socket) => begun.push((at, socket)),
                    Runner::Failed(_) => {}
                }
            }
            let outcomes = begun
                .iter()
                .map(|(at, socket)| Ok((*at, outcome(*socket)?)));
            let outcomes = outcomes.collect::<io::Result<Vec<_>>>()?;
            let ended = outcomes
                .into_iter()
                .find_map(|(at, done)| Some((at, done?)));
            if let Some((at, done)) = ended {
                let runner = &mut runners[at].1;
                match (done, mem::replace(runner, Runner::Waiting)) {
                    (Ok(()), Runner::Begun(socket)) => return Ok(socket),
                    (Err(error), _) => *runner = Runner::Failed(error),
                    (Ok(()), _) => {}
                }
                next_begins = self.reactor.clock();
                continue;
            }
            let now = self.reactor.clock();
            match next {
                None if begun.is_empty() => return Err(none_answers(runners)),
                Some(at) if begun.is_empty() || next_begins <= now => {
                    drop(begun);
                    let (address, runner) = &mut runners[at];
                    *runner = match self.attempt(&(*address).into()) {
                        Ok(Attempt::Connected(socket)) => return Ok(socket),
                        Ok(Attempt::Begun(socket)) => Runner::Begun(socket),
                        Err(error) => Runner::Failed(error),
                    };
                    next_begins = now + delay;
                }
                _ => {
                    let until = next.map(|_| next_begins);
                    let sockets: Vec<_> = begun.iter().map(|(_, socket)| *socket).collect();
                    if !self.wait(Awaited::Writable(&sockets), until).await? {
                        return Err(none_answers(runners));
                    }
                }
            }
        }
    }

    /// Delay between the beginnings of two attempts. The last address is to have half of the time.
    fn delay(&self, addresses: usize) -> Duration {
        let addresses = u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
        let share = self.options.timeout.map(|time| time / 2 / addresses);
        share.map_or(ATTEMPT_DELAY, |share| {
            share.clamp(MIN_ATTEMPT_DELAY, ATTEMPT_DELAY)
        })
    }
}

/// The first of each family, the second of each, and so on, in the resolver's order otherwise.
pub(super) fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else {
        return addresses;
    };
    let (preferred, others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first);
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let turns = iter::from_fn(|| {
        let turn = [preferred.next(), others.next()];
        turn.iter().any(Option::is_some).then_some(turn)
    });
    turns.flatten().flatten().take(MAX_ADDRESSES).collect()
}

/// The error of attempts that have all failed, or for which no time is left.
fn none_answers<S>(runners: Vec<(SocketAddr, Runner<S>)>) -> io::Error {
    let mut kind = io::ErrorKind::NotFound;
    let mut attempts = Vec::new();
    for (address, runner) in runners {
        let error = match runner {
            Runner::Waiting => io::Error::new(io::ErrorKind::TimedOut, "timed out before its turn"),
            Runner::Begun(_) => no_answer(),
            Runner::Failed(error) => error,
        };
        kind = match (kind, error.kind()) {
            // A refusal says more than an address out of reach.
            (io::ErrorKind::NotFound, other) | (_, other @ io::ErrorKind::TimedOut) => other,
            (
                io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::AddrNotAvailable,
                other,
            ) => other,
            (kind, _) => kind,
        };
        attempts.push((address, error));
    }
    io::Error::new(kind, Unreachable { attempts })
}
