//! Replies that are read as if they were the expected ones.

use super::{
    super::{ReadPlan, Spare, receive::MISPLACED},
    Bench, Kind, LONGEST, content,
};
use proptest::prelude::*;
use std::sync::Arc;

#[test]
fn the_reply_to_a_lone_read_comes_straight_to_its_place() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        let mut bench = Bench::new();
        bench.submit(0, kind, 20_000);
        bench.answer(0, false);
        let plan = bench.plan(by);
        assert_eq!((plan.front(), plan.direct()), (16, 20_000));
        bench.deliver_as_planned(&plan, by, usize::MAX);
        assert!(!bench.engine.is_split);
        bench.settle();
        assert!(bench.known[0].over);
    }
}

#[test]
fn a_reply_that_was_not_expected_is_taken_in_all_the_same() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        for n in [17, 16 + 2000, 16 + 20_000, usize::MAX] {
            let mut bench = Bench::new();
            bench.submit(0, kind, 20_000);
            let plan = bench.plan(by);
            assert_eq!(plan.direct(), 20_000);
            // Another request is sent and answered while the reply to the first one is read.
            bench.submit(1, Kind::Owned, 30_000);
            bench.answer(1, false);
            bench.deliver_as_planned(&plan, by, n);
            assert_eq!(bench.engine.is_split, n > 16 + MISPLACED);
            bench.settle();
            bench.finish();
            assert!(bench.known.iter().all(|known| known.over));
        }
    }
}

#[test]
fn the_first_part_of_a_reply_is_not_overwritten_by_the_second() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        let mut bench = Bench::with(true);
        bench.submit(0, kind, 20_000);
        bench.answer(8, false);
        let first = bench.ends[0];
        bench.deliver_as_planned(&ReadPlan::Inbox, by, first);
        let plan = bench.plan(by);
        assert_eq!(plan, ReadPlan::Inbox);
        bench.deliver_as_planned(&plan, by, usize::MAX);
        bench.settle();
        assert!(bench.known[0].over);
    }
}

#[test]
fn memory_that_is_used_again_shows_no_old_data() {
    const LEN: usize = 64 << 10;
    for answer in [Answer::Hole, Answer::HoleAndData, Answer::DataAndHole] {
        let mut bench = Bench::with(true);
        let spare = Arc::new(Spare::default());
        spare.keep(vec![1; LEN]);
        bench.engine.share(spare);
        bench.submit(0, Kind::New, LEN);
        bench.answer_as(0, answer);
        while !bench.wire.is_empty() {
            bench.deliver(0, 3 << 20);
        }
        bench.settle();
        assert!(bench.known[0].over);
    }
}

/// A server's answer to the only read in flight.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Whole,
    Fails,
    WrongCookie,
    // As chunks only.
    Halves,
    ReversedHalves,
    Hole,
    HoleAndData,
    DataAndHole,
}

/// A read, its answer, and how that arrives.
#[derive(Clone, Debug)]
struct Lone {
    kind: Kind,
    len: usize,
    answer: Answer,
    reader: Option<usize>,
    /// Lengths of the first pieces that are delivered, each by a system call of its own.
    cuts: Vec<usize>,
    joined: Joined,
}

/// Whether there is another request once the first step of reading has been planned, and where its
/// reply comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Joined {
    No,
    Before,
    Behind,
}

fn lone() -> impl Strategy<Value = Lone> {
    let kind = prop_oneof![Just(Kind::Owned), Just(Kind::New), Just(Kind::Lent)];
    let len = prop_oneof![
        Just(1_usize),
        2040_usize..2056,
        2048_usize..8192,
        Just(LONGEST)
    ];
    let answer = prop_oneof![
        4 => Just(Answer::Whole),
        1 => Just(Answer::Fails),
        1 => Just(Answer::Halves),
        1 => Just(Answer::ReversedHalves),
        1 => Just(Answer::Hole),
        1 => Just(Answer::HoleAndData),
        1 => Just(Answer::DataAndHole),
    ];
    // After a violation there is nothing more to see.
    let answer = prop_oneof![20 => answer, 1 => Just(Answer::WrongCookie)];
    let cut = prop_oneof![1_usize..64, 1_usize..8192, 1_usize..LONGEST];
    let cuts = prop::collection::vec(cut, 0..4);
    let joined = prop_oneof![
        4 => Just(Joined::No),
        1 => Just(Joined::Before),
        1 => Just(Joined::Behind),
    ];
    let rest = (0..4_u8, cuts, joined);
    (kind, len, answer, rest).prop_map(|(kind, len, answer, (reader, cuts, joined))| {
        // Most often it is the one whose plan is to read ahead.
        let reader = match (kind, reader) {
            (Kind::Owned | Kind::New, 1..) | (_, 0) => None,
            _ => Some(usize::from(reader == 1)),
        };
        Lone {
            kind,
            len,
            answer,
            reader,
            cuts,
            joined,
        }
    })
}

impl Bench {
    fn answer_as(&mut self, at: usize, answer: Answer) {
        let chunks = self.chunks;
        let known = &mut self.known[at];
        known.fails = Some(matches!(answer, Answer::Fails));
        self.replies.push(known.tag);
        let (cookie, offset, len) = (known.cookie.as_u64(), known.offset, known.len);
        let middle = len / 2;
        let (cookie, holes) = match answer {
            Answer::WrongCookie => (!cookie, 0..0),
            Answer::Hole if chunks => (cookie, 0..len),
            Answer::HoleAndData if chunks => (cookie, 0..middle),
            Answer::DataAndHole if chunks => (cookie, middle..len),
            _ => (cookie, 0..0),
        };
        known.hole = holes.clone();
        if !chunks {
            let errno = if known.fails == Some(true) { 5_u32 } else { 0 };
            self.wire.extend(0x6744_6698_u32.to_be_bytes());
            self.wire.extend(errno.to_be_bytes());
            self.wire.extend(cookie.to_be_bytes());
            if errno == 0 {
                self.wire.extend(content(offset, len));
            }
            return self.ends.push_back(self.wire.len());
        }
        let parts = match answer {
            Answer::Fails => return self.chunk(1, 0x8001, cookie, &[0, 0, 0, 5, 0, 0]),
            Answer::Whole | Answer::WrongCookie | Answer::Hole => std::iter::once(0..len).collect(),
            Answer::ReversedHalves => vec![middle..len, 0..middle],
            Answer::Halves | Answer::HoleAndData | Answer::DataAndHole => {
                vec![0..middle, middle..len]
            }
        };
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        for (at, part) in parts.iter().enumerate() {
            let start = offset + part.start as u64;
            let mut data = start.to_be_bytes().to_vec();
            let is_hole = holes.contains(&part.start);
            if is_hole {
                data.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
            } else {
                data.extend(content(start, part.len()));
            }
            let is_last = u16::from(at + 1 == parts.len());
            self.chunk(is_last, 1 + u16::from(is_hole), cookie, &data);
        }
    }

    fn read_alone(&mut self, read: &Lone) {
        self.submit(0, read.kind, read.len);
        let lone = self.known.len() - 1;
        let mut plan = self.plan(read.reader);
        if read.joined != Joined::No {
            self.submit(1, Kind::Owned, read.len);
        }
        if read.joined == Joined::Before {
            self.answer_as(lone + 1, Answer::Whole);
        }
        self.answer_as(lone, read.answer);
        if read.joined == Joined::Behind {
            self.answer_as(lone + 1, Answer::Whole);
        }
        for n in read.cuts.iter().copied().chain([usize::MAX; 8]) {
            let mut by = read.reader;
            if matches!(plan, ReadPlan::HandOver(_)) {
                by = Some(0);
                plan = self.plan(by);
            }
            let goes_on = self.deliver_exactly(&plan, by, n);
            assert_eq!(goes_on, self.engine.lost().is_none());
            self.settle();
            if self.wire.is_empty() || !goes_on {
                break;
            }
            plan = self.plan(read.reader);
        }
    }
}

proptest! {
    #[test]
    fn a_lone_read_is_whole_with_every_reply_and_wherever_it_is_cut(
        reads in prop::collection::vec(lone(), 1..8),
        chunks in any::<bool>(),
    ) {
        // C-184
        let mut bench = Bench::with(chunks);
        for read in reads {
            bench.read_alone(&read);
            let violates = matches!(read.answer, Answer::WrongCookie);
            assert_eq!(bench.engine.lost().is_some(), violates);
            assert!(bench.known.iter().all(|it| it.over));
            if violates {
                break;
            }
        }
    }
}
