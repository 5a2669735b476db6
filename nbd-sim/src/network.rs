//! A network in memory: it delays bytes, joins and splits them at any place, and fails in the ways
//! in which networks fail.

mod end;
mod wire;

pub use end::End;

use self::wire::Wire;

use crate::runtime::{Group, Sim, Timer, lock};
use fastrand::Rng;
use nbd_io::{
    client::DialOptions,
    runtime::{Network, Runtime},
    server::{Listener, Peer},
};
use nbd_proto::{Command, uri::Address};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    ops::Range,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// All connections, and the server's readiness for more.
#[derive(Debug)]
pub struct Net {
    /// Least and greatest time for which bytes are under way.
    latency: (Duration, Duration),
    /// Limit of bytes under way in one direction of a connection.
    capacity: usize,
    /// Into how short pieces reads and writes are cut, at random.
    chop: usize,
    /// Whether the server can be reached.
    pub server: Reach,
    /// No connection is accepted before this time.
    pub accepts_from: Duration,
    connections: Vec<Connection>,
    backlog: VecDeque<(Duration, usize)>,
    acceptor: Option<Waker>,
    arrival: Timer,
    /// Faults in messages.
    faults: Vec<String>,
}

/// Whether a server can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Connections are made.
    Up,
    /// They are refused.
    Down,
    /// Nothing answers.
    Deaf,
}

/// The ways in which a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both ends learn of it soon.
    Reset,
    /// The client learns of it never, and the server late.
    Silent,
    /// The server's end closes, and the client's does not.
    HalfFromServer,
    /// The client's end closes, and the server's does not.
    HalfFromClient,
}

#[derive(Debug, Default)]
struct Connection {
    /// By who writes: the client, the server.
    ways: [Way; 2],
    ends: [EndState; 2],
    /// The client's process.
    owner: Group,
    /// The client was made to give it up.
    is_unwanted: bool,
    /// No byte passes any more.
    is_severed: bool,
    wire: Wire,
}

#[derive(Debug, Default)]
struct Way {
    segments: VecDeque<(Duration, VecDeque<u8>)>,
    bytes: usize,
    last: Duration,
    stalled: Duration,
    end: Option<Duration>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Wakes the reader when the next bytes arrive.
    arrival: Timer,
    /// Wakes the writer when the connection fails.
    failure: Timer,
}

#[derive(Debug, Default)]
struct EndState {
    is_dropped: bool,
    /// When its process has dropped it.
    dropped: Option<Duration>,
    /// From when on reads and writes fail.
    reset: Option<Duration>,
    /// From when on writes fail.
    unwritable: Option<Duration>,
}

impl Connection {
    fn wakers(&mut self) -> impl Iterator<Item = Waker> {
        let wakers = |way: &mut Way| [way.reader.take(), way.writer.take()];
        self.ways.iter_mut().flat_map(wakers).flatten()
    }

    /// Whether a client may have lost it, or may be about to.
    fn fails(&self) -> bool {
        let client = &self.ends[0];
        self.is_severed
            || self.is_unwanted
            || client.reset.is_some()
            || client.unwritable.is_some()
            || self.ends[1].is_dropped
            || self.ways[1].end.is_some()
            // It is the last that a client writes.
            || self.ways[0].end.is_some() && client.dropped.is_none()
    }

    fn is_over(&self) -> bool {
        self.is_severed || self.ends.iter().any(|end| end.is_dropped)
    }
}

impl Net {
    /// A network whose server is down.
    #[must_use]
    pub fn new(latency: (Duration, Duration), capacity: usize, chop: usize) -> Self {
        Self {
            latency,
            capacity,
            chop,
            server: Reach::Down,
            accepts_from: Duration::ZERO,
            connections: Vec::new(),
            backlog: VecDeque::new(),
            acceptor: None,
            arrival: Timer::default(),
            faults: Vec::new(),
        }
    }

    /// Requests and answers on all connections, and the faults in them.
    #[must_use]
    pub fn messages(&self) -> (u64, u64, &[String]) {
        let sum = |count: fn(&Wire) -> u64| {
            let all = self.connections.iter();
            all.map(|connection| count(&connection.wire)).sum()
        };
        let (requests, answers) = (
            sum(|wire| wire.requests.len() as u64),
            sum(|wire| wire.answers),
        );
        (requests, answers, &self.faults)
    }
}

/// Faults of the network.
impl Sim {
    fn latency(&self) -> Duration {
        let (least, most) = lock(&self.net).latency;
        let span = u64::try_from((most - least).as_micros()).unwrap_or(0);
        least + Duration::from_micros(self.random(|rng| rng.u64(..=span)))
    }

    /// A connection that is up, if there is any.
    fn any_connection(&self) -> Option<usize> {
        let open: Vec<usize> = {
            let net = lock(&self.net);
            let all = net.connections.iter().enumerate();
            let open = all.filter(|(_, connection)| !connection.is_over());
            open.map(|(at, _)| at).collect()
        };
        self.random(|rng| rng.choice(open))
    }

    /// Cuts a connection. Whether bytes were lost or held up.
    pub fn cut(&self, how: Cut) -> bool {
        let Some(id) = self.any_connection() else {
            return false;
        };
        let now = self.now();
        let (soon, later) = (now + self.latency(), now + self.latency());
        let late = now + Duration::from_millis(self.random(|rng| rng.u64(1..2000)));
        let mut net = lock(&self.net);
        let connection = &mut net.connections[id];
        let hit = connection.ways.iter().any(|way| way.bytes > 0);
        match how {
            Cut::Reset | Cut::Silent => {
                connection.is_severed = true;
                connection
                    .ways
                    .iter_mut()
                    .for_each(|way| way.segments.clear());
                let client = (how == Cut::Reset).then_some(soon);
                connection.ends[0].reset = client;
                connection.ends[1].reset = client.map(|_| later).or(Some(late));
            }
            Cut::HalfFromClient | Cut::HalfFromServer => {
                let way = usize::from(how == Cut::HalfFromServer);
                let last = connection.ways[way].last;
                connection.ways[way].end = Some(last.max(soon));
            }
        }
        drop(net);
        self.log(|| format!("connection {id}: cut {how:?}"));
        self.wake_connection(id);
        hit
    }

    fn wake_connection(&self, id: usize) {
        let wakers: Vec<_> = lock(&self.net).connections[id].wakers().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Stops one direction of a connection for a while. Whether bytes were held up.
    pub fn stall(&self, time: Duration) -> bool {
        let Some(id) = self.any_connection() else {
            return false;
        };
        let to_client = self.random(Rng::bool);
        let now = self.now();
        let until = now + time;
        let mut net = lock(&self.net);
        let connection = &mut net.connections[id];
        let way = &mut connection.ways[usize::from(to_client)];
        way.stalled = way.stalled.max(until);
        // Bytes that have arrived can be read.
        for (at, _) in way.segments.iter_mut().filter(|(at, _)| *at > now) {
            *at = until.max(*at);
        }
        if to_client {
            connection.wire.delay(now, until);
        }
        let way = &connection.ways[usize::from(to_client)];
        let hit = !way.segments.is_empty();
        drop(net);
        self.log(|| format!("connection {id}: stalls for {time:?}"));
        hit
    }

    /// The server's process has ended, and takes no connection any more. Its clients learn of that
    /// soon, or if it is `silent`, after that time.
    pub fn lose_server(&self, silent: Option<Duration>) {
        let now = self.now();
        lock(&self.net).server = Reach::Down;
        let count = lock(&self.net).connections.len();
        for id in 0..count {
            let soon = now + silent.unwrap_or_default() + self.latency();
            let mut net = lock(&self.net);
            let connection = &mut net.connections[id];
            if connection.ends[1].is_dropped {
                continue;
            }
            connection.ends[1].is_dropped = true;
            connection.is_severed = true;
            // Bytes that have left the server still arrive.
            connection.ways[0].segments.clear();
            let first = connection.ends[0].reset.unwrap_or(soon);
            connection.ends[0].reset = Some(first.min(soon));
            drop(net);
            self.wake_connection(id);
        }
        lock(&self.net).backlog.clear();
    }

    /// Ends the faults: the network works from now on. If it `stays_silent`, clients still do not
    /// learn of connections that were cut without a word.
    pub fn heal(&self, stays_silent: bool) {
        let now = self.now();
        let count = {
            let mut net = lock(&self.net);
            net.accepts_from = now;
            for connection in &mut net.connections {
                if connection.is_severed {
                    for end in &mut connection.ends {
                        if end.reset.is_some() || !stays_silent {
                            end.reset = Some(end.reset.map_or(now, |reset| reset.min(now)));
                        }
                    }
                }
                for way in &mut connection.ways {
                    way.stalled = way.stalled.min(now);
                }
            }
            net.acceptor.take().into_iter().for_each(Waker::wake);
            net.connections.len()
        };
        (0..count).for_each(|id| self.wake_connection(id));
    }

    /// The client of this process is made to give up its connections.
    pub fn give_up_connections(&self) {
        let mut net = lock(&self.net);
        let own = net.connections.iter_mut();
        own.filter(|connection| connection.owner == self.group())
            .for_each(|connection| connection.is_unwanted = true);
    }

    /// Whether a client had, at a time, the answers to all of its requests for these bytes, `since` a
    /// time. If anything else can be the reason why one of them timed out, it had not.
    #[must_use]
    pub fn was_answered(
        &self,
        command: Command,
        bytes: Range<u64>,
        since: Duration,
        by: Duration,
    ) -> bool {
        let now = self.now();
        let net = lock(&self.net);
        // With pieces, a read may find nothing though there is something.
        if net.chop != usize::MAX {
            return false;
        }
        let own = net.connections.iter().filter(|connection| {
            let dropped = connection.ends[0].dropped;
            connection.owner == self.group() && dropped.is_none_or(|at| at >= since)
        });
        let mut next = bytes.start;
        let mut found = Vec::new();
        for connection in own {
            // The client may give up all of its connections when one fails.
            if connection.fails() || connection.ends[0].dropped.is_some_and(|at| at < now) {
                return false;
            }
            let requests = connection.wire.requests.iter().filter(|request| {
                request.command == u64::from(command.code())
                    && request.sent >= since
                    && (bytes.is_empty()
                        || request.bytes.start < bytes.end && bytes.start < request.bytes.end)
            });
            found.extend(requests);
        }
        found.sort_by_key(|request| request.bytes.start);
        for request in &found {
            if request.answered.is_none_or(|answered| answered > by) {
                return false;
            }
            if request.bytes.start <= next {
                next = next.max(request.bytes.end);
            }
        }
        !found.is_empty() && next >= bytes.end
    }

    /// Whether the client has given up a connection, so that it counts no answer of it.
    #[must_use]
    pub fn is_given_up(&self, connection: usize) -> bool {
        lock(&self.net).connections[connection].ends[0].is_dropped
    }
}

impl Network for Sim {
    type Stream = End;

    async fn connect(&self, _: &Address, options: &DialOptions) -> io::Result<End> {
        let start = self.now();
        self.sleep(self.latency()).await;
        self.note_progress();
        let server = lock(&self.net).server;
        match server {
            Reach::Down => return Err(ErrorKind::ConnectionRefused.into()),
            Reach::Deaf => {
                let timeout = options.timeout.unwrap_or(Duration::from_secs(60));
                let passed = self.now() - start;
                self.sleep(timeout.saturating_sub(passed)).await;
                return Err(ErrorKind::TimedOut.into());
            }
            Reach::Up => {}
        }
        let accepted = self.now() + self.latency();
        let mut net = lock(&self.net);
        let id = net.connections.len();
        net.connections.push(Connection {
            owner: self.group(),
            ..Connection::default()
        });
        let accepted = accepted.max(net.accepts_from);
        net.backlog.push_back((accepted, id));
        let acceptor = net.acceptor.take();
        drop(net);
        acceptor.into_iter().for_each(Waker::wake);
        Ok(End::new(self, id, 0))
    }
}

/// Where a server takes its connections from.
#[derive(Debug)]
pub struct SimListener(pub Sim);

impl Listener for SimListener {
    type Stream = End;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(End, Peer)>> {
        let now = self.0.now();
        let mut net = lock(&self.0.net);
        match net.backlog.front().copied() {
            Some((at, id)) if at <= now => {
                net.backlog.pop_front();
                drop(net);
                Poll::Ready(Ok((End::new(&self.0, id, 1), Peer::Other)))
            }
            next => {
                net.acceptor = Some(cx.waker().clone());
                let at = next.map(|(at, _)| at);
                self.0.set_timer(&mut net.arrival, at, cx.waker());
                Poll::Pending
            }
        }
    }
}
