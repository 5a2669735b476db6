//! Properties over arbitrary replies, right and wrong ones.

use crate::{
    common::{
        bytes::*,
        reply::{Answer, Replier},
        session::{Entry, PROFILES, negotiate},
        wire::{Delivery, always},
    },
    hostile::{first, outcome},
};
use nbd_proto::{
    CommandFlags,
    client::{Config, Handshake, Transmission},
};
use proptest::{prelude::*, sample::Index};

/// A read and its answer.
#[derive(Clone, Debug)]
struct Read {
    offset: u64,
    len: usize,
    /// The places where the answer is cut into pieces.
    cuts: Vec<Index>,
    /// The pieces that are holes, by their number modulo 16.
    holes: u16,
    /// The order of the pieces.
    order: Vec<Index>,
    /// Whether a chunk without content comes last.
    none: bool,
}

prop_compose! {
    fn a_read()(
        offset in 0_u64..100_000,
        len in 1_usize..3000,
        cuts in prop::collection::vec(any::<Index>(), 0..8),
        holes: u16,
        order in prop::collection::vec(any::<Index>(), 9),
        none: bool,
    ) -> Read {
        Read { offset, len, cuts, holes, order, none }
    }
}

impl Read {
    /// The chunks of the answer, and the data that they add up to.
    fn answer(&self, to: Replier) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut bounds: Vec<usize> = self.cuts.iter().map(|cut| cut.index(self.len)).collect();
        bounds.extend([0, self.len]);
        bounds.sort_unstable();
        bounds.dedup();
        let mut pieces: Vec<(usize, usize)> = bounds.windows(2).map(|w| (w[0], w[1])).collect();
        let mut data = content(self.offset, self.len);
        let mut chunks = Vec::new();
        let mut order = self.order.iter();
        while !pieces.is_empty() {
            let next = order.next().expect("there are at most nine pieces");
            let (start, end) = pieces.remove(next.index(pieces.len()));
            let flags = if pieces.is_empty() && !self.none {
                D
            } else {
                0
            };
            let at = self.offset + start as u64;
            if self.holes & (1 << (start % 16)) != 0 {
                data[start..end].fill(0);
                let len = u32::try_from(end - start).expect("a short read");
                chunks.push(to.hole(flags, at, len));
            } else {
                chunks.push(to.data(flags, at, &data[start..end]));
            }
        }
        if self.none {
            chunks.push(to.none());
        }
        chunks.reverse();
        (chunks, data)
    }
}

/// Something similar to a part of a reply.
#[derive(Clone, Debug)]
struct Fragment {
    to: Index,
    flags: u16,
    kind: u16,
    word: u32,
    place: u64,
    rest: Vec<u8>,
}

prop_compose! {
    fn a_fragment()(
        to in any::<Index>(),
        flags in 0_u16..2,
        kind in prop::sample::select(vec![0_u16, 1, 1, 1, 2, 2, 5, 6, 0x8001, 0x8002, 0x8077, 7]),
        word in prop_oneof![0_u32..3, Just(512), any::<u32>()],
        place in prop_oneof![Just(0_u64), 0_u64..1024, any::<u64>()],
        rest in prop::collection::vec(any::<u8>(), 0..40),
    ) -> Fragment {
        Fragment { to, flags, kind, word, place, rest }
    }
}

impl Fragment {
    fn bytes(&self, to: &[Replier], simple: bool) -> Vec<u8> {
        let to = self.to.get(to);
        if simple {
            return to.simple(self.word);
        }
        let payload = match self.kind {
            0 => vec![],
            1 => data_at(self.place, &self.rest),
            2 => hole_at(self.place, self.word),
            5 => status(self.word, &[(self.word, 1), (1, self.word)]),
            6 => xstatus(self.word, 1, &[(self.place, 3)]),
            0x8002 => error_at(self.word, &self.rest, self.place),
            _ => error(self.word, &self.rest),
        };
        to.chunk(self.flags, self.kind, payload)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 96 }))]

    #[test]
    fn reads_in_any_chunks_have_the_right_bytes(
        reads in prop::collection::vec(a_read(), 1..6),
        turns in prop::collection::vec(any::<Index>(), 64),
        seed: u64,
    ) {
        // C-205, C-229
        for entry in Entry::chunked() {
            let mut session = entry.enter(Delivery::Random(seed % 1000));
            let (mut answers, mut expected) = (Vec::new(), Vec::new());
            for (index, read) in reads.iter().enumerate() {
                let to = session.read(read.offset, read.len as u64);
                let (chunks, data) = read.answer(to);
                answers.push(chunks);
                expected.push((index, Answer::Data(data)));
            }
            let mut turns = turns.iter();
            while !answers.is_empty() {
                let turn = turns.next().expect("there are at most 5 times 10 chunks");
                let at = turn.index(answers.len());
                let chunk = answers[at].pop().expect("answers with no chunk left are removed");
                session.says(chunk);
                answers.retain(|chunks| !chunks.is_empty());
            }
            let mut answered = session.settled().unwrap();
            answered.sort_by_key(|(index, _)| *index);
            prop_assert_eq!(answered, expected);
        }
    }

    #[test]
    fn any_replies_mean_the_same_however_they_arrive(
        fragments in prop::collection::vec(a_fragment(), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..40),
        simple in any::<u16>(),
        profile in 0_usize..3,
    ) {
        let (_, tolerance) = PROFILES[profile];
        for entry in Entry::every_mode() {
            let chunks = entry.mode != nbd_proto::HeaderStyle::Simple;
            let entry = if chunks { entry.context(1, "base:allocation") } else { entry };
            let _ = entry.tolerance(tolerance).always(|session| {
                let none = CommandFlags::NONE;
                let mut to = vec![
                    session.read(0, 512),
                    session.read(0, 20),
                    session.send(Transmission::flush),
                    session.send(|t| t.write(0, &[0; 512][..], none)),
                ];
                if chunks {
                    to.push(session.read_with(0, 512, CommandFlags::DF));
                    to.push(session.send(|t| t.block_status(0, 512, none)));
                    to.push(session.send(|t| t.block_status(0, 512, CommandFlags::REQ_ONE)));
                }
                for (at, fragment) in fragments.iter().enumerate() {
                    session.says(fragment.bytes(&to, !chunks || simple & (1 << at) != 0));
                }
                session.says(&noise);
                let answers = session.replies();
                (answers, session.transmission.in_flight())
            });
        }
    }

    #[test]
    fn any_negotiation_means_the_same_however_it_arrives(
        replies in prop::collection::vec(
            (1_u32..5, prop::collection::vec(prop_oneof![0_u8..5, any::<u8>()], 0..20)),
            0..4,
        ),
        noise in prop::collection::vec(any::<u8>(), 0..30),
        greeting in prop::collection::vec(any::<u8>(), 0..160),
    ) {
        for option in [3, 6, 7, 9, 10] {
            let _ = negotiate(|wire, options| {
                wire.says(first(option));
                for (kind, data) in &replies {
                    wire.says(rep(option, *kind, data));
                }
                wire.says(&noise);
                let ended = outcome(wire, options, option);
                let left = if ended.is_ok() { wire.left() } else { 0 };
                (ended, left)
            });
        }
        let _ = always(|wire| {
            let magic = if greeting.len() % 2 == 0 { hello(0)[..16].to_vec() } else { vec![] };
            wire.says(magic).says(&greeting);
            wire.ends(Handshake::new(Config::default()))
        });
    }
}
