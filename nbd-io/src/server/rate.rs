//! Requests and bytes per second: token buckets.

use super::Peer;
use crate::runtime::Runtime;
use nbd_proto::server::Request;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Time in nanoseconds for which an unused rate is saved up. Earlier leftovers are lost.
const BURST: u64 = 100_000_000;

const NANOSECONDS: u128 = 1_000_000_000;

/// Limit of requests per second, and of bytes that they read and write; by default any number.
///
/// The unused rate of the last tenth of a second can be made up for at once.
///
/// ```
/// use nbd_io::server::Rate;
///
/// let rate = Rate::new().bytes(100 << 20).requests(5_000);
/// # drop(rate);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    requests: Option<u64>,
    bytes: Option<u64>,
}

impl Rate {
    /// Any number.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requests: None,
            bytes: None,
        }
    }

    /// So many requests per second. 0 counts as 1.
    #[must_use]
    pub const fn requests(mut self, per_second: u64) -> Self {
        self.requests = Some(per_second);
        self
    }

    /// So many bytes per second of payloads, in both directions together. 0 counts as 1. Commands
    /// without payload, such as to write zeroes, cost no bytes.
    #[must_use]
    pub const fn bytes(mut self, per_second: u64) -> Self {
        self.bytes = Some(per_second);
        self
    }

    const fn is_unlimited(self) -> bool {
        self.requests.is_none() && self.bytes.is_none()
    }
}

/// A token bucket. It never refuses: it returns the time until which the taken amount has to last.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// The time at which taken requests are paid for, in nanoseconds of the runtime's clock.
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Bucket {
    const fn new(rate: Rate) -> Self {
        Self {
            rate,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Takes one request of so many bytes. Returns when the next one may be taken.
    fn take(&self, bytes: u64, now: u64) -> u64 {
        let paid = |rate: Option<u64>, until: &AtomicU64, units: u64| {
            let Some(rate) = rate else { return 0 };
            let cost = u128::from(units) * NANOSECONDS / u128::from(rate.max(1));
            let cost = u64::try_from(cost).unwrap_or(u64::MAX);
            let after = |until: u64| until.max(now.saturating_sub(BURST)).saturating_add(cost);
            let before = until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
                Some(after(until))
            });
            before.map_or(0, after)
        };
        let requests = paid(self.rate.requests, &self.requests, 1);
        requests.max(paid(self.rate.bytes, &self.bytes, bytes))
    }

    /// Whether everything is paid for.
    fn is_full(&self, now: u64) -> bool {
        let until = |until: &AtomicU64| until.load(Ordering::Relaxed);
        until(&self.requests).max(until(&self.bytes)) <= now
    }
}

/// A client whose connections count as one: a host, or a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Host(IpAddr),
    VirtualMachine(u32),
}

impl Client {
    /// `None` for a peer whose connections are nothing to each other.
    pub(super) const fn of(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Tcp(address) => Some(Self::Host(address.ip())),
            Peer::Vsock { cid, .. } => Some(Self::VirtualMachine(*cid)),
            Peer::Unix | Peer::Other => None,
        }
    }
}

/// The rates of a server and of its clients.
#[derive(Debug, Default)]
pub(super) struct Rates {
    server: Option<Arc<Bucket>>,
    of_client: Rate,
    /// Those of clients that are there, or left with a deficit.
    clients: Mutex<HashMap<Client, Arc<Bucket>>>,
}

impl Rates {
    pub(super) fn with_server(&self, rate: Rate) -> Self {
        Self {
            server: (!rate.is_unlimited()).then(|| Arc::new(Bucket::new(rate))),
            of_client: self.of_client,
            clients: Mutex::default(),
        }
    }

    pub(super) fn with_client(&self, rate: Rate) -> Self {
        Self {
            server: self.server.clone(),
            of_client: rate,
            clients: Mutex::default(),
        }
    }

    /// The limits of a connection; `None` if it has none.
    pub(super) fn enter<R: Runtime>(&self, peer: &Peer, runtime: &R) -> Option<RateLimiter> {
        let limited = !self.of_client.is_unlimited();
        let client = limited.then(|| self.client(peer, nanoseconds(runtime.now())));
        let buckets = [self.server.clone(), client];
        let any = buckets.iter().any(Option::is_some);
        any.then_some(RateLimiter { buckets })
    }

    fn client(&self, peer: &Peer, now: u64) -> Arc<Bucket> {
        let bucket = || Arc::new(Bucket::new(self.of_client));
        let Some(client) = Client::of(peer) else {
            return bucket();
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
        Arc::clone(clients.entry(client).or_insert_with(bucket))
    }
}

/// Charges the requests of one connection.
#[derive(Debug)]
pub(super) struct RateLimiter {
    buckets: [Option<Arc<Bucket>>; 2],
}

impl RateLimiter {
    /// Pays for a request, which may be carried out. Returns how long none may be taken afterwards, if
    /// that is any time.
    pub(super) fn pay<R: Runtime>(&self, request: &Request, runtime: &R) -> Option<Duration> {
        let bytes = match request {
            Request::Read { len, .. } | Request::Write { len, .. } => u64::from(*len),
            Request::BlockStatus { .. }
            | Request::Flush { .. }
            | Request::Trim { .. }
            | Request::Cache { .. }
            | Request::WriteZeroes { .. } => 0,
        };
        let now = nanoseconds(runtime.now());
        let buckets = self.buckets.iter().flatten();
        let until = buckets.map(|bucket| bucket.take(bytes, now)).max()?;
        let deficit = until.saturating_sub(now);
        (deficit > 0).then(|| Duration::from_nanos(deficit))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_is_paid_for_later() {
        let bucket = Bucket::new(Rate::new().requests(1_000).bytes(1 << 20));
        let start = 10 * SECOND;
        // An unused rate is not saved up, except for a little.
        assert_eq!(bucket.take(0, start), start - BURST + SECOND / 1_000);
        assert_eq!(bucket.take(2 << 20, start), start - BURST + 2 * SECOND);
        // Of two limits the one counts that lasts longer.
        for number in 3..=200 {
            let until = (start - BURST + number * SECOND / 1_000).max(start - BURST + 2 * SECOND);
            assert_eq!(bucket.take(0, start), until);
        }
        assert!(!bucket.is_full(start + SECOND) && bucket.is_full(start + 2 * SECOND));
    }

    #[test]
    fn over_a_long_time_a_rate_is_exact() {
        let bucket = Bucket::new(Rate::new().requests(777));
        let (mut now, mut requests) = (SECOND, 0);
        while now < 11 * SECOND {
            // Timers end a bit late.
            now = now.max(bucket.take(0, now)) + 30_000;
            requests += 1;
        }
        assert!((7_770..=7_770 + 78).contains(&requests), "{requests}");
    }

    #[test]
    fn absurd_rates_and_lengths_do_no_harm() {
        let slow = Bucket::new(Rate::new().bytes(0).requests(0));
        assert_eq!(slow.take(u64::MAX, 0), u64::MAX);
        assert_eq!(slow.take(1, u64::MAX), u64::MAX);
        let quick = Bucket::new(Rate::new().bytes(u64::MAX));
        assert_eq!(quick.take(1 << 20, SECOND), SECOND - BURST);
    }

    #[test]
    fn connections_of_a_client_share_its_rate_and_it_is_not_forgotten_while_it_owes() {
        let rates = Rates::default().with_client(Rate::new().requests(1));
        let peer = |port| Peer::Tcp(([192, 0, 2, 1], port).into());
        let first = rates.client(&peer(1), 0);
        assert!(Arc::ptr_eq(&first, &rates.client(&peer(2), 0)));
        let other = Peer::Tcp(([192, 0, 2, 2], 1).into());
        assert!(!Arc::ptr_eq(&first, &rates.client(&other, 0)));
        let unix = rates.client(&Peer::Unix, 0);
        assert!(!Arc::ptr_eq(&unix, &rates.client(&Peer::Unix, 0)));

        first.take(0, SECOND);
        let until = first.take(0, SECOND);
        drop(first);
        assert_eq!(
            rates.client(&peer(3), SECOND).take(0, SECOND),
            until + SECOND
        );
        let paid = until + 9 * SECOND;
        drop(rates.client(&other, paid));
        assert_eq!(rates.clients.lock().unwrap().len(), 1);
    }
}
