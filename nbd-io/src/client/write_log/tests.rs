//! The log beside a server that crashes.

use super::*;
use bytes::Bytes;
use nbd_proto::CommandFlags;
use proptest::prelude::*;

fn write(offset: u64, payload: Vec<u8>) -> Request {
    Request::Write {
        offset,
        payload: Bytes::from(payload),
        flags: CommandFlags::NONE,
    }
}

fn kept(log: &WriteLog) -> Vec<u64> {
    let (_, requests) = log.replay();
    let offset = |request: &Request| request.change().unwrap().start;
    requests.iter().map(offset).collect()
}

#[test]
fn a_flush_covers_writes_answered_before_it_was_sent() {
    let mut log = WriteLog::new(10_000);
    let epoch = log.epoch();
    for number in 0..3 {
        assert!(log.reserve(WriteLog::cost(10)));
        assert!(log.change(epoch, false, Some(write(number, vec![0; 10]))));
    }
    assert!(log.flush(epoch, 2));
    assert_eq!(kept(&log), [2]);
    assert!(log.flush(epoch, 1), "an older one says nothing new");
    assert_eq!(kept(&log), [2]);
}

#[test]
fn nothing_of_an_epoch_that_is_over_counts() {
    let mut log = WriteLog::new(10_000);
    let old = log.epoch();
    assert!(log.reserve(2 * WriteLog::cost(10)));
    assert!(log.change(old, false, Some(write(0, vec![0; 10]))));
    log.end_epoch();
    assert!(!log.change(old, false, Some(write(1, vec![0; 10]))));
    assert!(!log.flush(old, 1));
    assert_eq!(kept(&log), [0]);
    assert!(log.needs_replay());
    let (epoch, _) = log.replay();
    log.end_epoch();
    assert!(!log.replayed(epoch), "there was another loss");
    assert!(log.needs_replay());
    assert!(log.replayed(log.epoch()));
    assert!(!log.needs_replay());
    assert_eq!(kept(&log), [0], "it is not flushed yet");
}

/// The changes to be written again, each with its range and first byte.
fn replayed(log: &WriteLog) -> Vec<(std::ops::Range<u64>, Option<u8>)> {
    let (_, requests) = log.replay();
    let shown = |request: &Request| match request {
        Request::Write { payload, .. } => (request.range(), Some(payload[0])),
        _ => (request.range(), None),
    };
    requests.iter().map(shown).collect()
}

fn answered(log: &mut WriteLog, request: Request) {
    assert!(log.reserve(WriteLog::cost(request.weight())));
    assert!(log.change(log.epoch(), false, Some(request)));
}

#[test]
fn no_byte_is_written_again_that_a_later_change_has_overwritten() {
    // A server that crashes in the middle must not be left with what the first had written, if the
    // second was forced to stable storage.
    let mut log = WriteLog::new(10_000);
    answered(&mut log, write(10, vec![1; 30]));
    answered(&mut log, write(20, vec![2; 10]));
    assert_eq!(
        replayed(&log),
        [(10..20, Some(1)), (30..40, Some(1)), (20..30, Some(2))]
    );
    let zeroes = |offset, len| Request::WriteZeroes {
        offset,
        len,
        flags: CommandFlags::NONE,
    };
    answered(&mut log, zeroes(0, 25));
    assert_eq!(
        replayed(&log),
        [(30..40, Some(1)), (25..30, Some(2)), (0..25, None)]
    );
    // All that it covers, and what it touches at both ends.
    answered(&mut log, write(25, vec![3; 20]));
    assert_eq!(replayed(&log), [(0..25, None), (25..45, Some(3))]);
    answered(&mut log, write(0, vec![4; 100]));
    assert_eq!(replayed(&log), [(0..100, Some(4))]);
}

#[test]
fn a_trim_overwrites_nothing_because_a_server_may_ignore_it() {
    let mut log = WriteLog::new(10_000);
    answered(&mut log, write(0, vec![1; 10]));
    let (offset, len, flags) = (0, 10, CommandFlags::NONE);
    answered(&mut log, Request::Trim { offset, len, flags });
    assert_eq!(replayed(&log), [(0..10, Some(1)), (0..10, None)]);
    answered(&mut log, write(5, vec![2; 5]));
    assert_eq!(
        replayed(&log),
        [(0..5, Some(1)), (0..5, None), (5..10, Some(2))]
    );
}

#[test]
fn a_loss_is_reported_only_if_data_may_be_lost() {
    let mut log = WriteLog::new(0);
    log.end_epoch();
    assert_eq!(log.losses(), 0);
    assert!(log.change(log.epoch(), true, None));
    log.end_epoch();
    assert_eq!(log.losses(), 0, "it was forced");
    assert!(log.change(log.epoch(), false, None));
    assert!(log.flush(log.epoch(), log.answered()));
    log.end_epoch();
    assert_eq!(log.losses(), 0, "it was flushed");
    assert!(log.change(log.epoch(), false, None));
    log.end_epoch();
    log.end_epoch();
    assert_eq!(log.losses(), 1);
}

#[test]
fn an_entry_takes_no_more_memory_than_it_counts_for() {
    // A queue takes up to twice as much as there is in it.
    assert!(2 * size_of::<Entry>() as u64 <= OVERHEAD);
}

const BLOCKS: usize = 4;

/// An event of a client, a server, or the connection between them.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A block is written, and on stable storage with that (FUA) or not.
    Write {
        block: usize,
        forced: bool,
    },
    Flush,
    /// The server carries out some request in flight.
    Execute(usize),
    /// A reply is read, of some request that was carried out.
    Reply(usize),
    /// The server crashes, and keeps the unflushed writes that these bits name.
    Crash(u8),
    /// It crashes, and again when so much has been replayed.
    CrashTwice(u8, usize),
    /// A connection is lost, and the server goes on.
    Lose,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..BLOCKS).prop_map(|block| Step::Write { block, forced: false }),
        1 => (0..BLOCKS).prop_map(|block| Step::Write { block, forced: true }),
        2 => Just(Step::Flush),
        8 => (0..8_usize).prop_map(Step::Execute),
        8 => (0..8_usize).prop_map(Step::Reply),
        1 => any::<u8>().prop_map(Step::Crash),
        1 => (any::<u8>(), 0..4_usize).prop_map(|(bits, after)| Step::CrashTwice(bits, after)),
        1 => Just(Step::Lose),
    ]
}

#[derive(Clone, Debug)]
enum Kind {
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
        promised: [u8; BLOCKS],
    },
}

#[derive(Clone, Debug)]
struct InFlight {
    kind: Kind,
    /// The connection belongs to the present epoch.
    epoch: Epoch,
    executed: bool,
}

/// A disk, a client that writes blocks one after the other but each only once at a time, and the
/// log.
struct World {
    log: WriteLog,
    contents: [u8; BLOCKS],
    stable: [u8; BLOCKS],
    in_flight: Vec<InFlight>,
    /// The last value of each block that was answered and that the client may rely on.
    answered: [u8; BLOCKS],
    /// The values that a flush promised.
    flushed: [u8; BLOCKS],
    values: u8,
    limit: u64,
}

impl World {
    fn new(limit: u64) -> Self {
        Self {
            log: WriteLog::new(limit),
            contents: [0; BLOCKS],
            stable: [0; BLOCKS],
            in_flight: Vec::new(),
            answered: [0; BLOCKS],
            flushed: [0; BLOCKS],
            values: 0,
            limit,
        }
    }

    fn is_locked(&self, wanted: usize) -> bool {
        let writes = |request: &InFlight| matches!(request.kind, Kind::Write { block, .. } if block == wanted);
        self.in_flight.iter().any(writes)
    }

    fn send(&mut self, kind: Kind) {
        self.in_flight.push(InFlight {
            kind,
            epoch: self.log.epoch(),
            executed: false,
        });
    }

    fn execute(&mut self, at: usize) {
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
                if forced {
                    self.stable[block] = value;
                }
            }
            Kind::Flush { .. } => self.stable = self.contents,
        }
    }

    fn reply(&mut self, at: usize) {
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
                if keeps || forced {
                    self.answered[block] = value;
                }
                if forced {
                    self.flushed[block] = value;
                }
            }
            Kind::Flush { answered, promised } => {
                assert!(self.log.flush(epoch, answered));
                self.flushed = promised;
            }
        }
    }

    /// All connections are lost. Requests in flight are sent again after the replay, as their
    /// callers do, even if a reply was on its way.
    fn lose(&mut self) {
        self.end_epoch();
        self.replay();
    }

    fn end_epoch(&mut self) {
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
    fn begin_replay(&mut self, most: usize) -> Epoch {
        let (epoch, requests) = self.log.replay();
        assert_eq!(self.log.needs_replay(), !requests.is_empty());
        for request in requests.into_iter().take(most) {
            let Request::Write {
                offset, payload, ..
            } = request
            else {
                unreachable!("nothing else is kept");
            };
            self.contents[usize::try_from(offset / 10).unwrap()] = payload[0];
        }
        epoch
    }

    /// The server keeps the unflushed writes that these bits name, and everything that was flushed.
    fn crash(&mut self, bits: u8) {
        for block in 0..BLOCKS {
            if bits >> block & 1 == 0 {
                self.contents[block] = self.stable[block];
            }
            assert!(self.contents[block] >= self.flushed[block], "block {block}");
        }
        self.stable = self.contents;
    }

    fn replay(&mut self) {
        let epoch = self.begin_replay(usize::MAX);
        assert!(self.log.replayed(epoch));
        for mut request in std::mem::take(&mut self.in_flight) {
            request.epoch = epoch;
            request.executed = false;
            if let Kind::Flush { answered, promised } = &mut request.kind {
                (*answered, *promised) = (self.log.answered(), self.answered);
            }
            self.in_flight.push(request);
        }
    }

    /// Blocks without a write in flight hold the last answered value.
    fn check(&self) {
        for block in (0..BLOCKS).filter(|block| !self.is_locked(*block)) {
            assert_eq!(self.contents[block], self.answered[block], "block {block}");
        }
    }
}

proptest! {
    #[test]
    fn no_order_of_replies_losses_and_crashes_loses_answered_writes(
        limit in 0..4_u64,
        steps in prop::collection::vec(steps(), 0..200),
    ) {
        // For up to so many writes; those that there is no room for are forced here.
        let mut world = World::new((2 * limit + 1) * WriteLog::cost(10));
        for step in steps {
            match step {
                Step::Write { block, forced } if !world.is_locked(block) => {
                    world.values = world.values.wrapping_add(1);
                    let keeps = world.log.reserve(WriteLog::cost(10));
                    // A write that cannot be kept counts when a flush has covered it. Here it is
                    // forced on an empty log, which is the same.
                    let empty = world.log.replay().1.is_empty();
                    if keeps || empty && world.in_flight.is_empty() {
                        let value = world.values;
                        world.send(Kind::Write { block, value, forced: forced || !keeps, keeps });
                    }
                }
                Step::Write { .. } => {}
                Step::Flush => {
                    let (answered, promised) = (world.log.answered(), world.answered);
                    world.send(Kind::Flush { answered, promised });
                }
                Step::Execute(n) => {
                    let waiting: Vec<usize> = (0..world.in_flight.len())
                        .filter(|at| !world.in_flight[*at].executed)
                        .collect();
                    if let Some(at) = waiting.get(n % waiting.len().max(1)) {
                        world.execute(*at);
                    }
                }
                Step::Reply(n) => {
                    let executed: Vec<usize> = (0..world.in_flight.len())
                        .filter(|at| world.in_flight[*at].executed)
                        .collect();
                    if let Some(at) = executed.get(n % executed.len().max(1)) {
                        world.reply(*at);
                    }
                }
                Step::Crash(bits) => {
                    world.crash(bits);
                    world.lose();
                    world.check();
                }
                Step::CrashTwice(bits, after) => {
                    world.crash(bits);
                    world.end_epoch();
                    let _ = world.begin_replay(after);
                    world.crash(!bits);
                    world.log.end_epoch();
                    world.replay();
                    world.check();
                }
                Step::Lose => {
                    world.lose();
                    world.check();
                }
            }
            let taken = world.log.kept + world.log.reserved;
            prop_assert!(taken <= world.limit, "{taken} of {}", world.limit);
        }
        // When all requests are answered, reserved room has been given back.
        while !world.in_flight.is_empty() {
            if !world.in_flight[0].executed {
                world.execute(0);
            }
            world.reply(0);
        }
        world.check();
        prop_assert_eq!(world.log.reserved, 0);
        let answered = world.log.answered();
        prop_assert!(world.log.flush(world.log.epoch(), answered));
        prop_assert_eq!(world.log.kept, 0);
    }
}
