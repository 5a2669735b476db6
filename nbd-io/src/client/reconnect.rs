//! Coming back after a connection was lost.

use super::Lost;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

/// Whether and how a client makes a new connection when one is lost.
///
/// Until there is one, requests wait, and those that were in flight are sent again; none of them
/// was answered, so that a server that carries out one twice does no harm. It is tried until one of
/// the limits below is reached; then every request fails with the reason. An export whose size,
/// flags, block sizes or meta contexts have changed is refused, and it is not tried again; it may
/// have [grown](Reconnect::accept_growth) if the program has said so.
///
/// A connection is lost when the server closes it, breaks the protocol, says that it shuts down, or
/// says nothing at all until a request has taken too long. That request fails; those that were sent
/// later are made again.
///
/// A connection that is lost again before it has lasted as long as the longest delay, and at least
/// 1 s, counts as an attempt that failed, so that a server that ends at every request is not called
/// for ever.
///
/// When one of several connections is lost, all are made anew, unless the export is read-only: if
/// the server has crashed, later replies on the others are from before. An idle connection that the
/// server closes is no exception: a server need not flush before it does that, and a client cannot
/// know whether it goes on. The limits hold for each. If some of them cannot be made, the client
/// goes on with the others, and tries again when one of these is lost that has lasted so long.
///
/// A program can rely on this:
///
/// * Data that was [flushed](super::tasks::Client::flush), or written with
///   [`FUA`](nbd_proto::CommandFlags::FUA), is on stable storage.
/// * Writes that were answered and not flushed may be gone if the server crashed, as those of any
///   disk. If there were any when a connection was lost, every flush from then on fails with
///   [`Error::Unflushed`](crate::client::Error::Unflushed), until the program goes on with a handle
///   of a [new epoch](super::tasks::Client::new_epoch). With
///   [`keep_unflushed`](Reconnect::keep_unflushed) they are written again instead.
/// * Requests that follow each other, because one was begun after the other was answered, stay in
///   that order.
/// * Writes, trims and zeroes of the same bytes are carried out in the order in which they were
///   begun: a later one is not sent before those before it are answered. A read that is in flight
///   together with one of them may find the bytes of before or after, and those of before again if
///   the server crashes or, with `keep_unflushed`, a connection is lost.
///
/// It cannot rely on writes that were sent again being carried out once: the protocol has no way to
/// make sure that a server that was cut off has finished with the requests of the lost connection.
/// If it still works on a write that was sent again, that write may be carried out a second time
/// after later ones. Servers that crash or stop do not.
#[derive(Clone, Debug)]
pub struct Reconnect {
    attempts: Option<u32>,
    first_delay: Duration,
    longest_delay: Duration,
    total: Option<Duration>,
    kept: u64,
    may_grow: bool,
    jitter_seed: Option<u64>,
}

/// No two attempts follow each other faster.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

/// No connection that was lost sooner was a success.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

impl Reconnect {
    /// Any number of attempts within 5 min, the first at once, the second after 100 ms, then each
    /// after twice the time of the one before but no more than 10 s, all of these times cut by
    /// chance to between a half and the whole. Unflushed writes are not kept.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            attempts: None,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(10),
            total: Some(Duration::from_secs(300)),
            kept: 0,
            may_grow: false,
            jitter_seed: None,
        }
    }

    /// Limit of attempts for each loss. `None` sets no limit.
    #[must_use]
    pub const fn attempts(mut self, attempts: Option<u32>) -> Self {
        self.attempts = attempts;
        self
    }

    /// Wait before the second attempt, and the longest wait before any later one.
    #[must_use]
    pub const fn delay(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// Limit of the time of attempts for each loss. The last attempt begins when this time is over,
    /// and each may take 5 s even so. `None` sets no limit.
    #[must_use]
    pub const fn total_time(mut self, total: Option<Duration>) -> Self {
        self.total = total;
        self
    }

    /// Keeps copies of writes until they are flushed, and writes them again on a new connection
    /// before anything else. 0, the default, keeps none.
    ///
    /// Limit in bytes of copies of changes, both in flight and answered but not flushed; each
    /// counts 128 bytes beside its payload. A write for which there is no room is not copied,
    /// however long it is: it is followed by a flush and is not answered before that is. So a
    /// program that never flushes has the client flush whenever the room is used up.
    ///
    /// Of exports that cannot be flushed nothing is kept.
    #[must_use]
    pub const fn keep_unflushed(mut self, bytes: u64) -> Self {
        self.kept = bytes;
        self
    }

    /// Whether an export may be larger than before when the client comes back. False, the default,
    /// refuses it.
    ///
    /// The client keeps the size that it was given first: the growth of the export is for new
    /// clients.
    #[must_use]
    pub const fn accept_growth(mut self, accept: bool) -> Self {
        self.may_grow = accept;
        self
    }

    /// Takes the chance in the delays from a seed, for tests that have to go the same way each time.
    #[doc(hidden)]
    #[must_use]
    pub const fn jitter_seed(mut self, seed: u64) -> Self {
        self.jitter_seed = Some(seed);
        self
    }

    /// Whether an export may be larger than before.
    #[must_use]
    pub const fn accepts_growth(&self) -> bool {
        self.may_grow
    }

    /// Whether there may be one more attempt after so many.
    #[must_use]
    pub fn allows(&self, attempts: u32) -> bool {
        self.attempts.is_none_or(|most| attempts < most)
    }

    /// Limit of the time of attempts, if there is one.
    #[must_use]
    pub const fn time_limit(&self) -> Option<Duration> {
        self.total
    }

    /// Limit of writes that are kept until they are flushed, in bytes.
    #[must_use]
    pub const fn keeps(&self) -> u64 {
        self.kept
    }

    /// Wait after so many attempts, of which the first went without.
    #[must_use]
    pub fn delay_after(&self, attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempts).unwrap_or(u32::MAX);
        let delay = self.first_delay.saturating_mul(factor);
        let chance = match self.jitter_seed {
            Some(seed) => seed.rotate_left(attempts),
            None => RandomState::new().build_hasher().finish(),
        };
        by_chance(delay.min(self.longest_delay).max(SHORTEST_DELAY), chance)
    }

    /// Time for which a connection has to last if making it was a success.
    #[must_use]
    pub fn lasting(&self) -> Duration {
        self.longest_delay.max(SHORTEST_LIFE)
    }
}

/// State of a client's connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionState {
    /// There is at least one.
    Connected,
    /// There is none, and a new one is being made. Requests wait.
    #[non_exhaustive]
    Reconnecting {
        /// The number of the attempt, from 1; 0 before the first.
        attempt: u32,
        /// The loss of the last connection.
        cause: Arc<Lost>,
    },
    /// There will be none any more.
    Over(Arc<Lost>),
}

impl ConnectionState {
    /// A connection is being made anew.
    #[must_use]
    pub const fn reconnecting(attempt: u32, cause: Arc<Lost>) -> Self {
        Self::Reconnecting { attempt, cause }
    }

    /// Whether it is the same state, and the same attempt.
    #[must_use]
    pub const fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Reconnecting { attempt: ours, .. }, Self::Reconnecting { attempt, .. }) => {
                *ours == *attempt
            }
            (Self::Connected, Self::Connected) | (Self::Over(_), Self::Over(_)) => true,
            _ => false,
        }
    }
}

/// Between a half and the whole of a time.
fn by_chance(time: Duration, chance: u64) -> Duration {
    let part = u32::try_from(chance % 1024).unwrap_or(0);
    time / 2 + time / 2 / 1024 * part
}
