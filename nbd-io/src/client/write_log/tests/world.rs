//! A client, its log, a server, and a disk that loses data.

use super::write;
use crate::client::{Coverage, Epoch, Error, Request, WriteLog};
use nbd_proto::{Command, Errno};
use proptest::prelude::*;

pub(super) const BLOCKS: usize = 4;

/// An event of a client, a server, or the connection between them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A block is written, and on stable storage with that (FUA) or not.
    Write {
        block: usize,
        forced: bool,
    },
    Flush,
    /// A caller whose change waits for a flush looks for the result.
    Look(usize),
    /// The caller that sends a flush for all of them gives up, and its request is in flight still.
    GiveUp,
    /// The server carries out some request in flight.
    Execute(usize),
    /// The disk fails some flush in flight, and does not write its data later. The reply is read at
    /// once: of two flushes, the one that succeeds might cover too much otherwise.
    Fail(usize),
    /// A reply is read, of some request that was carried out.
    Reply(usize),
    /// The server crashes, and keeps the unflushed writes that these bits name.
    Crash(u8),
    /// It crashes, and again when so much has been replayed.
    CrashTwice(u8, usize),
    /// A connection is lost, and the server goes on.
    Lose,
}

pub(super) fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..BLOCKS).prop_map(|block| Step::Write { block, forced: false }),
        1 => (0..BLOCKS).prop_map(|block| Step::Write { block, forced: true }),
        2 => Just(Step::Flush),
        4 => (0..8_usize).prop_map(Step::Look),
        1 => Just(Step::GiveUp),
        1 => (0..8_usize).prop_map(Step::Fail),
        8 => (0..8_usize).prop_map(Step::Execute),
        8 => (0..8_usize).prop_map(Step::Reply),
        1 => any::<u8>().prop_map(Step::Crash),
        1 => (any::<u8>(), 0..4_usize).prop_map(|(bits, after)| Step::CrashTwice(bits, after)),
        1 => Just(Step::Lose),
    ]
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Write {
        block: usize,
        value: u8,
        forced: bool,
        /// Room was reserved for it.
        keeps: bool,
    },
    Flush {
        answered: u64,
        /// The caller's knowledge of each block when it sent the request.
        promised: [Option<u8>; BLOCKS],
        /// It is for changes that wait for one, and its caller has the turn.
        has_turn: bool,
        fails: bool,
    },
}

/// A write that was answered, and counts when a flush has covered it.
#[derive(Clone, Debug)]
pub(super) struct Uncovered {
    block: usize,
    value: u8,
    forced: bool,
    epoch: Epoch,
    answered: u64,
}

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) kind: Kind,
    /// The connection belongs to the present epoch.
    pub(super) epoch: Epoch,
    pub(super) executed: bool,
}

/// A disk, a client that writes blocks one after the other but each only once at a time, and the
/// log.
pub(super) struct World {
    pub(super) log: WriteLog,
    pub(super) contents: [u8; BLOCKS],
    pub(super) stable: [u8; BLOCKS],
    /// Blocks that a flush will put on stable storage.
    pub(super) dirty: [bool; BLOCKS],
    pub(super) in_flight: Vec<InFlight>,
    pub(super) uncovered: Vec<Uncovered>,
    /// The last value of each block that was answered and that the client may rely on, if it may rely
    /// on any.
    pub(super) answered: [Option<u8>; BLOCKS],
    /// The values that a flush promised.
    pub(super) flushed: [u8; BLOCKS],
    pub(super) values: u8,
    pub(super) limit: u64,
}

impl World {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            log: WriteLog::new(limit),
            contents: [0; BLOCKS],
            stable: [0; BLOCKS],
            dirty: [false; BLOCKS],
            in_flight: Vec::new(),
            uncovered: Vec::new(),
            answered: [Some(0); BLOCKS],
            flushed: [0; BLOCKS],
            values: 0,
            limit,
        }
    }

    pub(super) fn is_locked(&self, wanted: usize) -> bool {
        let writes = |request: &InFlight| matches!(request.kind, Kind::Write { block, .. } if block == wanted);
        self.in_flight.iter().any(writes)
            || self.uncovered.iter().any(|write| write.block == wanted)
    }

    pub(super) fn send(&mut self, kind: Kind) {
        self.in_flight.push(InFlight {
            kind,
            epoch: self.log.epoch(),
            executed: false,
        });
    }

    pub(super) fn execute(&mut self, at: usize) {
        let request = &mut self.in_flight[at];
        request.executed = true;
        match request.kind {
            Kind::Write {
                block,
                value,
                forced,
                ..
            } => {
                self.contents[block] = value;
                self.dirty[block] = !forced;
                if forced {
                    self.stable[block] = value;
                }
            }
            Kind::Flush { .. } => {
                for block in (0..BLOCKS).filter(|block| self.dirty[*block]) {
                    self.stable[block] = self.contents[block];
                }
                self.dirty = [false; BLOCKS];
            }
        }
    }

    pub(super) fn fail(&mut self, at: usize) {
        let request = &mut self.in_flight[at];
        let Kind::Flush {
            answered, fails, ..
        } = &mut request.kind
        else {
            return;
        };
        *fails = true;
        request.executed = true;
        // Changes that were not answered when it was sent are for a later flush.
        let answered = *answered;
        for block in 0..BLOCKS {
            let is_of = |request: &InFlight| matches!(request.kind, Kind::Write { block: of, .. } if of == block);
            let is_later = |write: &Uncovered| write.block == block && write.answered > answered;
            self.dirty[block] &=
                self.in_flight.iter().any(is_of) || self.uncovered.iter().any(is_later);
        }
    }

    pub(super) fn reply(&mut self, at: usize) {
        let InFlight { kind, epoch, .. } = self.in_flight.remove(at);
        match kind {
            Kind::Write {
                block,
                value,
                forced,
                keeps,
            } => {
                let request = keeps.then(|| write(10 * block as u64, vec![value; 10]));
                assert!(self.log.change(epoch, forced, request));
                if !keeps {
                    let answered = self.log.answered();
                    return self.uncovered.push(Uncovered {
                        block,
                        value,
                        forced,
                        epoch,
                        answered,
                    });
                }
                self.answered[block] = Some(value);
                if forced {
                    self.flushed[block] = value;
                }
            }
            Kind::Flush {
                answered,
                promised,
                has_turn,
                fails,
            } => {
                if has_turn {
                    self.log.end_turn();
                }
                if fails {
                    self.log.flush_failed(epoch, answered, &failure());
                    // Callers know that, and rely on nothing that was not flushed before.
                    self.answered = [None; BLOCKS];
                    for request in &mut self.in_flight {
                        if let Kind::Flush { promised, .. } = &mut request.kind {
                            *promised = [None; BLOCKS];
                        }
                    }
                } else {
                    assert!(self.log.flush(epoch, answered));
                    for (flushed, promised) in self.flushed.iter_mut().zip(promised) {
                        *flushed = promised.unwrap_or(*flushed);
                    }
                }
            }
        }
    }

    pub(super) fn look(&mut self, at: usize) {
        let Uncovered {
            block,
            value,
            forced,
            epoch,
            answered,
        } = self.uncovered[at];
        match self.log.cover(epoch, answered) {
            Coverage::Covered => {
                assert_eq!(self.stable[block], value);
                (self.answered[block], self.flushed[block]) = (Some(value), value);
            }
            Coverage::Failed(_) => self.answered[block] = None,
            Coverage::Lost => {
                let keeps = false;
                self.send(Kind::Write {
                    block,
                    value,
                    forced,
                    keeps,
                });
            }
            Coverage::Wait => return,
            Coverage::Flush => return self.send_flush(true),
        }
        self.uncovered.remove(at);
    }

    pub(super) fn send_flush(&mut self, has_turn: bool) {
        let (answered, promised) = (self.log.answered(), self.answered);
        self.send(Kind::Flush {
            answered,
            promised,
            has_turn,
            fails: false,
        });
    }

    pub(super) fn give_up(&mut self) {
        for request in &mut self.in_flight {
            if let Kind::Flush { has_turn, .. } = &mut request.kind
                && std::mem::take(has_turn)
            {
                self.log.end_turn();
            }
        }
    }

    /// All connections are lost. Requests in flight are sent again after the replay, as their
    /// callers do, even if a reply was on its way.
    pub(super) fn lose(&mut self) {
        self.end_epoch();
        self.replay();
    }

    pub(super) fn end_epoch(&mut self) {
        self.log.end_epoch();
        for InFlight { kind, epoch, .. } in self.in_flight.iter().filter(|sent| sent.executed) {
            let counts = match kind {
                Kind::Write { forced, .. } => self.log.change(*epoch, *forced, None),
                Kind::Flush { answered, .. } => self.log.flush(*epoch, *answered),
            };
            assert!(!counts, "it is late");
        }
    }

    /// Has only so many of the changes written again.
    pub(super) fn begin_replay(&mut self, most: usize) -> Epoch {
        let (epoch, requests) = self.log.replay();
        assert_eq!(self.log.needs_replay(), !requests.is_empty());
        for request in requests.into_iter().take(most) {
            let Request::Write {
                offset, payload, ..
            } = request
            else {
                unreachable!("nothing else is kept");
            };
            let block = usize::try_from(offset / 10).unwrap();
            self.contents[block] = payload[0];
            self.dirty[block] = true;
        }
        epoch
    }

    /// The server keeps the unflushed writes that these bits name, and everything that was flushed.
    pub(super) fn crash(&mut self, bits: u8) {
        for block in 0..BLOCKS {
            if bits >> block & 1 == 0 {
                self.contents[block] = self.stable[block];
            }
            assert!(self.contents[block] >= self.flushed[block], "block {block}");
        }
        self.stable = self.contents;
        self.dirty = [false; BLOCKS];
    }

    pub(super) fn replay(&mut self) {
        let epoch = self.begin_replay(usize::MAX);
        assert!(self.log.replayed(epoch));
        for mut request in std::mem::take(&mut self.in_flight) {
            request.epoch = epoch;
            request.executed = false;
            if let Kind::Flush {
                answered,
                promised,
                fails,
                ..
            } = &mut request.kind
            {
                (*answered, *promised, *fails) = (self.log.answered(), self.answered, false);
            }
            self.in_flight.push(request);
        }
    }

    /// Blocks without a write in flight hold the last answered value.
    pub(super) fn check(&self) {
        for block in (0..BLOCKS).filter(|block| !self.is_locked(*block)) {
            if let Some(value) = self.answered[block] {
                assert_eq!(self.contents[block], value, "block {block}");
            }
        }
    }
}

pub(super) fn failure() -> Error {
    Error::Failed {
        command: Command::Flush,
        source: Errno::Io.into(),
    }
}
