//! A session that nothing wakes has answered every request that has come whole.

mod world;

use self::world::{Act, SESSION, Serving, Setup, World};
use crate::{
    Content, Export, Memory, NamedExports,
    server::{Peer, Rate, Server},
};
use nbd_proto::{
    Command, CommandFlags, Failure, HeaderStyle, TransmissionFlags,
    wire::{RequestHeader, magic},
};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use std::{collections::HashSet, sync::Arc, time::Duration};

const SIZE: u64 = 1 << 20;

/// An export during whose calls other things happen.
struct Slow {
    memory: Memory,
    world: World,
}

impl Export for Slow {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.memory.flags()
    }

    fn may_block(&self) -> bool {
        self.world.setup.may_block
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.world.meanwhile();
        self.memory.read(offset, buf)
    }

    fn read_unless_zero(&self, offset: u64, buf: &mut [u8]) -> Result<Content, Failure> {
        self.world.meanwhile();
        self.memory.read_unless_zero(offset, buf)
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        let setup = self.world.setup;
        let reads = !setup.may_block || setup.reads_now && offset.is_multiple_of(1024);
        reads.then(|| self.memory.read(offset, buf))
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.world.meanwhile();
        self.memory.write(offset, data, fua)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.world.meanwhile();
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.world.meanwhile();
        self.memory.trim(offset, len, fua)
    }
}

/// A request, and for how many bytes it asks or sends.
#[derive(Clone, Copy, Debug)]
struct Ask {
    command: Command,
    offset: u64,
    len: u32,
}

impl Ask {
    fn encode(self, style: HeaderStyle, cookie: u64) -> Vec<u8> {
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command: self.command,
            cookie,
            offset: self.offset,
            len: self.len.into(),
        };
        let mut bytes = header.encode(style).as_bytes().to_vec();
        if self.command == Command::Write {
            bytes.resize(bytes.len() + self.len as usize, 7);
        }
        bytes
    }
}

/// Number of requests that were answered whole, each of them once.
fn count_answers(mut bytes: &[u8], asked: &[Ask]) -> usize {
    let mut answers = HashSet::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<16>() {
        let cookie = usize::try_from(u64::from_be_bytes(header[8..].try_into().unwrap())).unwrap();
        let (len, is_last, rest) = match u32::from_be_bytes(header[..4].try_into().unwrap()) {
            magic::SIMPLE_REPLY => {
                let has_data = asked[cookie].command == Command::Read && header[4..8] == [0; 4];
                let len = if has_data { asked[cookie].len } else { 0 };
                (len, true, rest)
            }
            magic::STRUCTURED_REPLY => {
                let Some((len, rest)) = rest.split_first_chunk() else {
                    break;
                };
                (u32::from_be_bytes(*len), header[5] & 1 == 1, rest)
            }
            other => panic!("{other:#x}"),
        };
        let Some(rest) = rest.get(len as usize..) else {
            break;
        };
        bytes = rest;
        if is_last {
            assert!(answers.insert(cookie), "answered twice");
        }
    }
    answers.len()
}

fn setups() -> impl Strategy<Value = Setup> {
    let style = prop_oneof![Just(HeaderStyle::Simple), Just(HeaderStyle::Structured)];
    let in_flight = prop_oneof![Just(32 << 20), 1_u64..300_000];
    let flags = any::<[bool; 6]>();
    (style, in_flight, flags).prop_map(|(style, in_flight, flags)| Setup {
        style,
        may_block: flags[0],
        reads_now: flags[1],
        own_thread: flags[2],
        knows_readiness: flags[3],
        in_flight,
        is_limited: flags[4],
        polls_at_once: flags[5],
    })
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let command = prop_oneof![
        3 => Just(Command::Read),
        4 => Just(Command::Write),
        1 => Just(Command::Flush),
        1 => Just(Command::Trim),
        1 => Just(Command::WriteZeroes),
    ];
    let len = prop_oneof![6 => 1_u32..8_192, 2 => 8_192_u32..140_000, 1 => Just(300_000_u32)];
    let ask = (command, 0..SIZE, len).prop_map(|(command, offset, len)| {
        let is_flush = command == Command::Flush;
        Ask {
            command,
            offset: if is_flush { 0 } else { offset },
            len: if is_flush { 0 } else { len },
        }
    });
    vec(ask, 1..90)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let bytes = || prop_oneof![1_usize..40, 1_usize..20_000, 100_000_usize..2_000_000];
    vec(
        prop_oneof![
            4 => bytes().prop_map(Act::Deliver),
            2 => bytes().prop_map(Act::Take),
            4 => Just(Act::PollIfWoken),
            1 => Just(Act::PollInVain),
            3 => Just(Act::Run),
            1 => (0_u64..3_000).prop_map(|ms| Act::Pass(Duration::from_millis(ms))),
        ],
        0..120,
    )
}

fn check(setup: Setup, asked: &[Ask], script: Vec<Act>) -> TestCaseResult {
    let mut says = b"\0\0\0\x03".to_vec();
    if setup.style == HeaderStyle::Structured {
        says.extend(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    }
    says.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
    let world = World::new(setup);
    let memory = Memory::new(SIZE);
    memory.write(0, &[1; 100_000], false).unwrap();
    let exports = NamedExports::single(Arc::new(Slow {
        memory,
        world: world.clone(),
    }));
    let mut server =
        Server::on_runtime(world.clone(), Arc::new(exports)).in_flight(setup.in_flight);
    if setup.is_limited {
        server = server.rate(Rate::new().requests(500));
    }
    let transport = world.clone();
    let serving: Serving = Box::pin(async move { server.serve_one(transport, Peer::Other).await });
    SESSION.set(Some(serving));
    // The negotiation, of which everything is taken.
    world.state().unsent.extend(says);
    world.act(Act::Take(1 << 20));
    world.act(Act::Deliver(1 << 20));
    world.poll();
    world.settle();
    let negotiated = {
        let mut state = world.state();
        (state.room, state.delivered) = (0, 0);
        state.taken.len()
    };
    // The end of each request among the bytes of all.
    let mut ends = Vec::new();
    for (ask, cookie) in asked.iter().zip(0..) {
        let mut state = world.state();
        state.unsent.extend(ask.encode(setup.style, cookie));
        ends.push(state.unsent.len());
    }
    world.state().script = script.into();
    loop {
        let Some(act) = world.state().script.pop_front() else {
            break;
        };
        world.act(act);
    }
    // Now everything is taken, and no byte comes any more: all that came is answered.
    for everything in [false, true] {
        if everything {
            world.act(Act::Deliver(usize::MAX));
        }
        world.act(Act::Take(usize::MAX));
        let mut passed = 0;
        loop {
            world.settle();
            let state = world.state();
            let came = ends.iter().filter(|end| **end <= state.delivered).count();
            let answered = count_answers(&state.taken[negotiated..], asked);
            drop(state);
            if answered == came {
                break;
            }
            // A limited rate is a matter of time.
            prop_assert!(setup.is_limited && passed < 1_000, "{answered} of {came}");
            passed += 10;
            world.pass(Duration::from_millis(10));
        }
    }
    SESSION.set(None);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_came_is_answered_without_another_event(
        setup in setups(),
        asked in asks(),
        script in acts(),
    ) {
        check(setup, &asked, script)?;
    }
}

/// A client that has taken its replies and pauses has its connection's memory given up; its next request is
/// no end.
#[test]
fn a_pause_is_not_taken_for_the_end_of_the_requests() {
    for knows_readiness in [false, true] {
        let setup = Setup {
            style: HeaderStyle::Simple,
            may_block: false,
            reads_now: false,
            own_thread: false,
            knows_readiness,
            in_flight: 32 << 20,
            is_limited: false,
            polls_at_once: true,
        };
        let flush = Ask {
            command: Command::Flush,
            offset: 0,
            len: 0,
        };
        let asked = vec![flush; 2];
        let pause = Act::Pass(Duration::from_secs(2));
        let script = vec![Act::Deliver(28), Act::Take(16), pause, pause];
        check(setup, &asked, script).unwrap();
    }
}
