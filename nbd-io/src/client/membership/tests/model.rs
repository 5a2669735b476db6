//! Servers that crash, and a client that follows the machine.

use super::{DialId, Join, Link, Membership, Next, export, refused};
use crate::client::{ConnectionState, Error, Lost, Reconnect};
use nbd_proto::TransmissionFlags;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub(super) struct Model {
    members: Membership<Link>,
    policy: Reconnect,
    connections: usize,
    now: Duration,
    /// The number of the present server. Each crash makes it another one.
    server: u32,
    /// The connections, each with the server that it leads to.
    links: Vec<(Arc<Link>, u32)>,
    /// Dials under way, with the connection that was made.
    dials: Vec<(DialId, Option<Arc<Link>>)>,
    /// Replays under way.
    replays: BTreeMap<u64, Vec<u64>>,
    /// Writes that were answered and not flushed; kept ones survive a loss.
    unflushed: Vec<u64>,
    keeps: bool,
    read_only: bool,
    needs_replay: bool,
    /// Writes that the present server has.
    knows: BTreeSet<u64>,
    next_write: u64,
    was_over: bool,
}

impl Model {
    pub(super) fn new(policy: Reconnect, connections: usize, read_only: bool, keeps: bool) -> Self {
        let mut flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::CAN_MULTI_CONN;
        if read_only {
            flags = flags | TransmissionFlags::READ_ONLY;
        }
        let mut members = Membership::new(Some(policy.clone()), &export(flags));
        let links: Vec<_> = (0..connections).map(|_| (Arc::new(Link), 0)).collect();
        for (link, _) in &links {
            members.add(link.clone(), Duration::ZERO);
        }
        Self {
            members,
            policy,
            connections,
            now: Duration::from_secs(3600),
            server: 0,
            links,
            dials: Vec::new(),
            replays: BTreeMap::new(),
            unflushed: Vec::new(),
            keeps,
            read_only,
            needs_replay: false,
            knows: BTreeSet::new(),
            next_write: 0,
            was_over: false,
        }
    }

    fn server_of(&self, link: &Arc<Link>) -> u32 {
        let of = |(own, _): &&(Arc<Link>, u32)| Arc::ptr_eq(own, link);
        self.links.iter().find(of).expect("it was made").1
    }

    fn is_alive(&self, link: &Arc<Link>) -> bool {
        self.server_of(link) == self.server
    }

    fn open(&self, which: usize) -> Option<Arc<Link>> {
        let open: Vec<_> = self.members.open().cloned().collect();
        (!open.is_empty()).then(|| open[which % open.len()].clone())
    }

    fn lost(&mut self, link: &Arc<Link>) {
        let why = Arc::new(Lost::Closed);
        if let Some(loss) = self.members.lost(link, &why, self.now) {
            self.ended(loss.ends_epoch);
            assert!(
                loss.given_up
                    .iter()
                    .all(|link| !self.members.is_member(link))
            );
        }
    }

    fn ended(&mut self, ends_epoch: bool) {
        if ends_epoch && !self.unflushed.is_empty() {
            if self.keeps {
                self.needs_replay = true;
            } else {
                // The next flush reports the loss.
                self.unflushed.clear();
            }
        }
    }

    pub(super) fn event(&mut self, kind: u8, which: usize, time: Duration) {
        match kind % 16 {
            0 => self.now += time,
            // The server crashes. No connection has noticed yet.
            1 => {
                self.server += 1;
                self.knows.clear();
            }
            // A connection is found to be over, dead or not.
            2 | 3 => {
                if let Some(link) = self.open(which) {
                    self.lost(&link);
                }
            }
            4 | 5 => {
                if let Some(link) = self.open(which)
                    && !self.is_alive(&link)
                {
                    self.lost(&link);
                }
            }
            // A write, which is answered if the server is there.
            6 | 7 => {
                if let Some(link) = self.open(which)
                    && self.is_alive(&link)
                    && !self.read_only
                {
                    self.knows.insert(self.next_write);
                    self.unflushed.push(self.next_write);
                    self.next_write += 1;
                }
            }
            // A flush.
            8 => {
                if let Some(link) = self.open(which)
                    && self.is_alive(&link)
                {
                    let known = self
                        .unflushed
                        .iter()
                        .all(|write| self.knows.contains(write));
                    assert!(
                        known,
                        "a flush covers a write that its server does not have"
                    );
                    self.unflushed.clear();
                }
            }
            9 if which.is_multiple_of(16) => {
                let _ = self.members.close();
            }
            10 if which.is_multiple_of(4) => {
                if let Some(loss) = self.members.redial(self.now) {
                    self.ended(loss.ends_epoch);
                }
            }
            _ => {
                self.dial();
                if !self.dials.is_empty() {
                    self.progress(which % self.dials.len(), kind);
                }
            }
        }
    }

    fn dial(&mut self) {
        while let Next::Dial { dial, by } = self.members.next(self.now) {
            assert!(by.is_none_or(|by| by > self.now));
            self.dials.push((dial, None));
        }
        // A driver may drop unwanted dials without reporting it.
        let wanted = |(dial, _): &(DialId, _)| self.members.is_wanted(*dial);
        self.dials.retain(wanted);
    }

    /// A dial succeeds or fails.
    fn progress(&mut self, at: usize, kind: u8) {
        let (dial, link) = self.dials[at].clone();
        let Some(link) = link else {
            let error = match kind {
                240.. => Error::lost(Lost::Changed { what: "its size" }),
                120.. => refused(),
                _ => {
                    let link = Arc::new(Link);
                    self.links.push((link.clone(), self.server));
                    self.dials[at].1 = Some(link);
                    return;
                }
            };
            self.dials.remove(at);
            self.members.failed(dial, error, self.now);
            return;
        };
        let alive = self.is_alive(&link);
        if let Some(rest) = self.replays.get_mut(&dial.number) {
            match rest.pop() {
                Some(write) if alive => {
                    self.knows.insert(write);
                }
                Some(_) => {
                    self.replays.remove(&dial.number);
                    self.dials.remove(at);
                    self.members
                        .failed(dial, Error::lost(Lost::Closed), self.now);
                }
                None => {
                    self.replays.remove(&dial.number);
                    if self.members.replayed(dial) {
                        self.needs_replay = false;
                        let joined = self.members.join(dial, &link, false, self.now);
                        assert!(matches!(joined, Join::Joined), "{joined:?}");
                    }
                    self.dials.remove(at);
                }
            }
            return;
        }
        match self.members.join(dial, &link, self.needs_replay, self.now) {
            Join::Replay => {
                assert!(self.members.open().next().is_none(), "others are in use");
                let writes = self.unflushed.iter().rev().copied().collect();
                self.replays.insert(dial.number, writes);
            }
            Join::Probe(other) => {
                if self.is_alive(&other) {
                    self.members.probed(dial, &other);
                } else {
                    self.lost(&other);
                }
            }
            Join::Wait => {}
            Join::Joined => {
                self.dials.remove(at);
            }
            Join::Unwanted => panic!("it was wanted"),
        }
    }

    pub(super) fn check(&mut self) {
        let open = self.members.open().count();
        assert!(open <= self.connections);
        match self.members.state() {
            ConnectionState::Connected => assert!(open > 0),
            ConnectionState::Reconnecting { .. } => assert_eq!(open, 0),
            ConnectionState::Over(_) => {
                assert_eq!(open, 0);
                assert_eq!(self.members.next(self.now), Next::Over);
            }
        }
        assert!(!self.was_over || self.members.is_over(), "over is over");
        self.was_over = self.members.is_over();
        // No connection is used before writes that may be lost were replayed.
        assert!(!self.needs_replay || open == 0 || self.members.is_closing());
    }

    /// Once the server stays up, all connections are restored, or were given up by the policy.
    pub(super) fn comes_to_rest(&mut self) {
        for round in 0..10_000 {
            self.dial();
            if !self.dials.is_empty() {
                self.progress(round % self.dials.len(), 0);
            } else if let Some(link) = self.open(0).filter(|link| !self.is_alive(link)) {
                self.lost(&link);
            } else {
                match self.members.next(self.now) {
                    Next::Wait(Some(due)) => self.now = due,
                    Next::Wait(None) | Next::Over => break,
                    Next::Dial { .. } => panic!("all were dialed"),
                }
            }
            self.check();
        }
        assert!(self.dials.is_empty(), "it does not come to an end");
        if self.members.is_over() || self.members.is_closing() {
            return;
        }
        assert!(self.open(0).is_some());
        let limited = self.policy.allows(u32::MAX) && self.policy.time_limit().is_none();
        if limited && self.members.is_complete() {
            assert_eq!(self.members.open().count(), self.connections);
        }
        self.event(8, 0, Duration::ZERO);
    }
}
