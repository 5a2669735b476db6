//! Any order of requests, replies, deadlines and endings, against a model.
//!
//! It is longer than 500 lines because all of it plays on one bench.

mod ahead;
mod entering;
mod owners;

use super::*;
use entering::transmission;
use nbd_proto::{Command, CommandFlags, client::Outcome};
use proptest::prelude::*;
use std::{collections::VecDeque, ops::Range, sync::Mutex};

const TIMEOUT: Duration = Duration::from_millis(100);
const OWNERS: usize = 3;
const IN_FLIGHT: u32 = 8;
const LONGEST: usize = 140_000;

/// Bytes that tell their place. They are copied rather than computed, since an interpreter runs this, too.
fn content(offset: u64, len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..251).collect();
    let first = usize::try_from(offset % 251).unwrap();
    period.repeat(len / 251 + 2)[first..][..len].to_vec()
}

/// The events of tickets, in order.
#[derive(Debug, Default)]
struct Log {
    answered: Vec<u64>,
    dropped: Vec<u64>,
}

#[derive(Debug)]
struct Tag(u64, Arc<Mutex<Log>>);

impl Ticket for Tag {
    fn answered(&mut self, _: &mut Result<Outcome, Error>) {
        self.1.lock().unwrap().answered.push(self.0);
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        self.1.lock().unwrap().dropped.push(self.0);
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Owned,
    New,
    Lent,
    Trim,
    Flush,
}

#[derive(Clone, Debug)]
enum Act {
    Submit(usize, Kind, usize),
    /// One of the requests that the server has, and whether it fails.
    Answer(usize, bool),
    /// A number of bytes, read by this owner.
    Deliver(usize, usize),
    Pass(u64),
    Leave(usize),
    Close,
    Lose,
}

fn act() -> impl Strategy<Value = Act> {
    let owner = 0..OWNERS;
    let kind = prop_oneof![
        Just(Kind::Owned),
        Just(Kind::New),
        Just(Kind::Lent),
        Just(Kind::Trim),
        Just(Kind::Flush)
    ];
    let len = prop_oneof![Just(1_usize), Just(512), Just(20_000), Just(LONGEST)];
    prop_oneof![
        8 => (owner.clone(), kind, len).prop_map(|(owner, kind, len)| Act::Submit(owner, kind, len)),
        8 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(pick, fails)| Act::Answer(pick, fails)),
        12 => (owner.clone(), 1_usize..200_000).prop_map(|(reader, n)| Act::Deliver(reader, n)),
        3 => (1_u64..80).prop_map(Act::Pass),
        1 => owner.prop_map(Act::Leave),
        1 => Just(Act::Close),
        1 => Just(Act::Lose),
    ]
}

/// A request as the model knows it.
#[derive(Debug)]
struct Known {
    cookie: Cookie,
    owner: usize,
    kind: Kind,
    offset: u64,
    len: usize,
    due: Duration,
    /// The owner has its result, or is gone.
    over: bool,
    /// The server has sent its reply, or a part.
    fails: Option<bool>,
    hole: Range<usize>,
    tag: u64,
}

struct Bench {
    engine: Engine<Vec<u8>, Tag>,
    inbox: Inbox,
    log: Arc<Mutex<Log>>,
    owners: Vec<usize>,
    lent: Vec<Vec<u8>>,
    known: Vec<Known>,
    chunks: bool,
    /// Bytes that the server has sent and that are unread, where replies and chunks end in them,
    /// and the tags of the replies.
    wire: Vec<u8>,
    ends: VecDeque<usize>,
    replies: Vec<u64>,
    now: Duration,
    tags: u64,
    disconnects: usize,
}

impl Bench {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(chunks: bool) -> Self {
        let mut engine = Engine::new(Box::new(transmission(chunks)), Some(TIMEOUT), false);
        Self {
            chunks,
            ends: VecDeque::new(),
            owners: (0..OWNERS).map(|_| engine.enter()).collect(),
            engine,
            inbox: Inbox::default(),
            log: Arc::default(),
            lent: vec![vec![0; LONGEST * IN_FLIGHT as usize]; OWNERS],
            known: Vec::new(),
            wire: Vec::new(),
            replies: Vec::new(),
            now: Duration::ZERO,
            tags: 0,
            disconnects: 0,
        }
    }

    fn submit(&mut self, owner: usize, kind: Kind, len: usize) {
        if !self.engine.takes_requests() || !self.engine.has_room() {
            return;
        }
        let offset = self.tags * 4096;
        let (command, weight, sink) = match kind {
            Kind::Owned => (Command::Read, len as u64, Sink::Owned(vec![0; len])),
            Kind::New => (Command::Read, len as u64, Sink::New(len)),
            // Each place in the buffer belongs to one slot.
            Kind::Lent => (Command::Read, len as u64, Sink::lent(0)),
            Kind::Trim => (Command::Trim, 0, Sink::None),
            Kind::Flush => (Command::Flush, 0, Sink::None),
        };
        let tag = self.tags;
        self.tags += 1;
        let submission = Submission {
            command,
            weight,
            sink,
        };
        let none = CommandFlags::NONE;
        let submitted = self.engine.submit(
            // Some timeouts begin a little later.
            Some(self.now).filter(|_| len != 512),
            self.owners[owner],
            submission,
            |transmission, _| {
                let (cookie, _) = match kind {
                    Kind::Owned | Kind::New | Kind::Lent => {
                        transmission.read(offset, len as u64, none)?
                    }
                    Kind::Trim => transmission.trim(offset, len as u64, none)?,
                    Kind::Flush => transmission.flush()?,
                };
                Ok(cookie)
            },
        );
        let cookie = submitted.unwrap();
        let ticket = self.engine.ticket(cookie).unwrap();
        *ticket = Some(Tag(tag, self.log.clone()));
        // Only now the slot is known.
        let at = cookie.slot() * LONGEST;
        if let Sink::Lent { at: place, .. } = &mut self.engine.in_flight[cookie.slot()].sink {
            *place = at;
        }
        self.known.push(Known {
            cookie,
            owner,
            kind,
            offset,
            len,
            due: self.now + TIMEOUT,
            over: false,
            fails: None,
            hole: 0..0,
            tag,
        });
    }

    fn answer(&mut self, pick: usize, fails: bool) {
        let mut owed: Vec<_> = self
            .known
            .iter_mut()
            .filter(|it| it.fails.is_none())
            .collect();
        if owed.is_empty() {
            return;
        }
        let at = pick % owed.len();
        let known = &mut *owed[at];
        known.fails = Some(fails);
        self.replies.push(known.tag);
        let (cookie, offset, len) = (known.cookie.as_u64(), known.offset, known.len);
        let is_read = matches!(known.kind, Kind::Owned | Kind::New | Kind::Lent);
        match (self.chunks && is_read, fails) {
            (false, _) => {
                self.wire.extend(0x6744_6698_u32.to_be_bytes());
                self.wire
                    .extend(if fails { 5_u32 } else { 0 }.to_be_bytes());
                self.wire.extend(cookie.to_be_bytes());
                if is_read && !fails {
                    self.wire.extend(content(offset, len));
                }
                self.ends.push_back(self.wire.len());
            }
            (true, true) => self.chunk(1, 0x8001, cookie, &[0, 0, 0, 5, 0, 0]),
            (true, false) => {
                // In one piece, or in two that may come in reverse order.
                let cut = [0, len / 2][pick / 8 % 2];
                let mut parts = [0..cut, cut..len];
                if pick / 16 % 2 == 1 {
                    parts.reverse();
                }
                let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                for (at, part) in parts.iter().enumerate() {
                    let start = offset + part.start as u64;
                    let mut data = start.to_be_bytes().to_vec();
                    data.extend(content(start, part.len()));
                    self.chunk(u16::from(at + 1 == parts.len()), 1, cookie, &data);
                }
            }
        }
    }

    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, data: &[u8]) {
        self.wire.extend(0x668e_33ef_u32.to_be_bytes());
        self.wire
            .extend([flags, kind].into_iter().flat_map(u16::to_be_bytes));
        self.wire.extend(cookie.to_be_bytes());
        self.wire
            .extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        self.wire.extend(data);
        self.ends.push_back(self.wire.len());
    }

    fn deliver(&mut self, reader: usize, n: usize) {
        if self.wire.is_empty() || self.engine.lost().is_some() {
            return;
        }
        // Some bytes are read by a task that has no buffer.
        let mut by = Some(reader).filter(|_| !n.is_multiple_of(3));
        let mut plan = self.plan(by);
        if let ReadPlan::HandOver(to) = plan {
            by = self.owners.iter().position(|owner| *owner == to);
            plan = self.plan(by);
        }
        self.deliver_as_planned(&plan, by, n);
    }

    fn plan(&mut self, by: Option<usize>) -> ReadPlan {
        let reader = by.map_or(no_reader().0, |by| self.owners[by]);
        self.engine.plan_read(reader)
    }

    fn deliver_as_planned(&mut self, plan: &ReadPlan, by: Option<usize>, n: usize) {
        // Often only one reply or chunk has arrived.
        let n = if n.is_multiple_of(2) { self.ends[0] } else { n };
        assert!(self.deliver_exactly(plan, by, n));
    }

    fn deliver_exactly(&mut self, plan: &ReadPlan, by: Option<usize>, n: usize) -> bool {
        let mut left = &self.wire[..n.min(self.wire.len())];
        let beside = self.engine.beside();
        let direct = match (plan, by) {
            (ReadPlan::Inbox, _) => &mut [],
            (ReadPlan::Owned(cookie, range), _) | (ReadPlan::Ahead { cookie, range, .. }, None) => {
                &mut self.engine.owned(*cookie).unwrap()[range.clone()]
            }
            (ReadPlan::Lent(range) | ReadPlan::Ahead { range, .. }, Some(by)) => {
                &mut self.lent[by][range.clone()]
            }
            (plan, by) => panic!("{by:?} cannot do {plan:?}"),
        };
        let (front, staged) = self.inbox.space(beside).split_at_mut(plan.front());
        let mut read = 0;
        for place in [front, direct, staged] {
            let n = place.len().min(left.len());
            place[..n].copy_from_slice(&left[..n]);
            left = &left[n..];
            read += n;
        }
        self.wire.drain(..read);
        self.ends.retain_mut(|end| {
            *end = end.saturating_sub(read);
            *end > 0
        });
        let reader = match by {
            Some(by) => (self.owners[by], &mut self.lent[by][..]),
            None => no_reader(),
        };
        self.engine.received(plan, read, &mut self.inbox, reader)
    }

    /// Takes complete replies, and compares them with the model.
    fn settle(&mut self) {
        if self.engine.has_untimed() {
            self.engine.begin_time(self.now);
        }
        // However often the guess was wrong, the engine goes on to expect replies.
        self.engine.is_split = false;
        while self.engine.next_ready().is_some() {}
        let lost = self.engine.lost().is_some();
        for owner in 0..OWNERS {
            while let Some(mut done) = self.engine.take(self.owners[owner]) {
                let own = |it: &&mut Known| it.cookie == done.cookie && !it.over;
                let known = self.known.iter_mut().find(own).unwrap();
                assert_eq!(known.owner, owner);
                known.over = true;
                done.settle(&mut self.lent[owner]);
                match done.reply.into_result() {
                    Ok(_) => {
                        assert_eq!(known.fails, Some(false));
                        let mut expected = content(known.offset, known.len);
                        expected[known.hole.clone()].fill(0);
                        let at = known.cookie.slot() * LONGEST;
                        match (known.kind, done.sink) {
                            (Kind::Owned | Kind::New, Sink::Owned(got)) => assert!(got == expected),
                            (Kind::Lent, _) => {
                                assert!(self.lent[owner][at..at + known.len] == expected);
                            }
                            _ => {}
                        }
                    }
                    Err(Error::Failed { .. }) => assert_eq!(known.fails, Some(true)),
                    Err(Error::Timeout { .. }) => assert!(known.due <= self.now),
                    Err(Error::Lost(_)) => assert!(lost),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        self.engine.released().clear();
        let late = self.known.iter().any(|it| !it.over && it.due <= self.now);
        assert!(!late || lost, "a request that is late has ended");
        // No deadline is missed.
        let first = self
            .known
            .iter()
            .filter(|it| !it.over)
            .map(|it| it.due)
            .min();
        if let (Some(first), false) = (first, lost) {
            assert!(self.engine.next_due().unwrap() <= first);
        }
        if !self.engine.outbox().is_empty() {
            self.disconnects += 1;
            assert_eq!(self.engine.in_flight(), 0);
            assert!(self.engine.is_closing());
            self.engine.outbox = Outbox::default();
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Submit(owner, kind, len) => self.submit(owner, kind, len),
            Act::Answer(pick, fails) => self.answer(pick, fails),
            Act::Deliver(reader, n) => self.deliver(reader, n),
            Act::Pass(time) => {
                self.now += Duration::from_millis(time);
                self.engine.expire(self.now);
            }
            Act::Leave(owner) => {
                self.engine.leave(self.owners[owner]);
                self.owners[owner] = self.engine.enter();
                let own = self.known.iter_mut().filter(|it| it.owner == owner);
                own.for_each(|it| it.over = true);
            }
            Act::Close => drop(self.engine.close()),
            Act::Lose => self.engine.lose(Lost::GivenUp),
        }
        self.settle();
    }

    /// Answers and delivers every reply that is still owed.
    fn finish(&mut self) {
        while self.engine.lost().is_none()
            && (!self.wire.is_empty() || self.known.iter().any(|it| it.fails.is_none()))
        {
            self.answer(0, false);
            self.deliver(0, usize::MAX);
            self.settle();
        }
    }
}

proptest! {
    #[test]
    fn every_request_has_one_end_in_any_order_of_events(
        acts in prop::collection::vec(act(), 1..80),
        chunks in any::<bool>(),
    ) {
        // C-184
        let mut bench = Bench::with(chunks);
        for act in acts {
            bench.act(act);
        }
        bench.finish();
        assert!(bench.known.iter().all(|it| it.over));
        if bench.engine.lost().is_none() {
            assert_eq!((bench.engine.in_flight(), bench.engine.weight(), bench.engine.large), (0, 0, 0));
            bench.engine.close();
            bench.settle();
            assert_eq!(bench.disconnects, 1, "one NBD_CMD_DISC, after the last reply");
            let answered = mem::take(&mut bench.log.lock().unwrap().answered);
            assert_eq!(answered, bench.replies, "in the order of the wire");
        }
        let mut dropped = mem::take(&mut bench.log.lock().unwrap().dropped);
        dropped.sort_unstable();
        assert!(dropped.into_iter().eq(0..bench.tags), "each ticket once");
    }
}

/// A read of one byte is sent.
fn read_one(bench: &mut Bench) {
    bench.submit(0, Kind::Owned, 1);
}

#[test]
fn a_server_that_says_nothing_is_given_up_by_the_first_late_request() {
    let mut bench = Bench::new();
    bench.engine.lose_when_silent = true;
    read_one(&mut bench);
    bench.now = Duration::from_millis(60);
    read_one(&mut bench);
    bench.now = TIMEOUT;
    bench.engine.expire(bench.now);
    let lost = bench.engine.lost().unwrap();
    assert!(matches!(**lost, Lost::Silent { after: TIMEOUT }));
    let owner = bench.owners[0];
    let late = bench.engine.take(owner).unwrap().reply.into_result();
    assert!(matches!(late, Err(Error::Timeout { .. })));
    let other = bench.engine.take(owner).unwrap().reply.into_result();
    assert!(matches!(other, Err(Error::Lost(_))));
}

#[test]
fn a_server_that_says_something_is_not_given_up() {
    let mut bench = Bench::new();
    bench.engine.lose_when_silent = true;
    read_one(&mut bench);
    read_one(&mut bench);
    bench.answer(1, false);
    bench.deliver(0, usize::MAX);
    bench.now = TIMEOUT;
    bench.engine.expire(bench.now);
    assert!(bench.engine.lost().is_none());
}

#[test]
fn a_server_that_shuts_down_is_left_when_it_owes_nothing() {
    // C-188
    let mut bench = Bench::new();
    read_one(&mut bench);
    read_one(&mut bench);
    let cookie = bench.known[0].cookie.as_u64();
    bench.wire.extend(0x6744_6698_u32.to_be_bytes());
    bench.wire.extend(108_u32.to_be_bytes());
    bench.wire.extend(cookie.to_be_bytes());
    bench.known[0].fails = Some(true);
    bench.deliver(0, usize::MAX);
    assert!(!bench.engine.takes_requests());
    assert!(!bench.engine.is_disconnecting());
    bench.answer(0, false);
    bench.deliver(0, usize::MAX);
    assert!(bench.engine.is_disconnecting());
    assert!(matches!(bench.engine.end_of_session(), Lost::ShutsDown));
}

#[test]
fn a_read_without_a_buffer_holds_no_memory_before_its_reply_comes() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.submit(0, Kind::New, 20_000);
    }
    let waits = |bench: &Bench| {
        let in_flight = bench.engine.in_flight.iter();
        let waits = in_flight.map(|request| matches!(request.sink, Sink::New(20_000)));
        waits.collect::<Vec<_>>()
    };
    assert_eq!(bench.plan(None), ReadPlan::Inbox);
    assert_eq!(waits(&bench), [true, true]);
    bench.answer(0, false);
    bench.deliver(0, 16 + 1);
    assert_eq!(waits(&bench), [false, true]);
}

#[test]
fn the_inbox_grows_with_the_incoming_data() {
    let mut bench = Bench::new();
    assert!(bench.inbox.space(usize::MAX).len() <= 16 << 10);
    for _ in 0..IN_FLIGHT {
        bench.submit(0, Kind::Owned, 15_000);
        bench.answer(0, false);
    }
    while !bench.wire.is_empty() {
        bench.deliver(0, usize::MAX);
    }
    assert!(bench.inbox.space(usize::MAX).len() >= 32 << 10);
}
