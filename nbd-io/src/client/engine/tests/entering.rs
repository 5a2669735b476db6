//! The way into an export, as a server's bytes.

use super::IN_FLIGHT;
use bytes::BytesMut;
use nbd_proto::{
    ExportName, Phase, Step,
    client::{Config, Go, GoOutcome, Greeted, Handshake, Limits, Transmission},
};

/// Bytes of an export of 64 MiB that can be flushed and trimmed, and its flags.
const SIZE: u64 = 64 << 20;
const FLAGS: u16 = 1 | 1 << 2 | 1 << 5;

/// An export over simple replies, or over chunks.
pub(super) fn transmission(chunks: bool) -> Transmission {
    let limits = Limits {
        in_flight: IN_FLIGHT,
        ..Limits::default()
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    let handshake = Handshake::new(config);
    let mut out = BytesMut::new();
    if !chunks {
        let mut greeting = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
        greeting.extend(SIZE.to_be_bytes());
        greeting.extend(u32::from(FLAGS).to_be_bytes());
        greeting.extend([0; 124]);
        return match handshake.feed(&greeting, &mut out).unwrap() {
            (_, Step::Done(Greeted::Oldstyle(oldstyle))) => oldstyle.accept(),
            other => panic!("{other:?}"),
        };
    }
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        let len = u32::try_from(data.len()).unwrap();
        reply.extend([option, kind, len].into_iter().flat_map(u32::to_be_bytes));
        reply.extend(data);
        reply
    };
    let greeted = handshake.feed(b"NBDMAGICIHAVEOPT\0\x03", &mut out).unwrap();
    let (_, Step::Done(Greeted::FixedNewstyle(options))) = greeted else {
        panic!("{greeted:?}");
    };
    let pending = options.structured_reply(&mut out).unwrap();
    let answered = pending.feed(&reply(8, 1, &[]), &mut out).unwrap();
    let (_, Step::Done(answer)) = answered else {
        panic!("{answered:?}");
    };
    let pending = answer.options.go(Go::new(ExportName::default()), &mut out);
    let info = [&[0; 2], &SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
    let accepted = [reply(7, 3, &info), reply(7, 1, &[])].concat();
    match pending.feed(&accepted, &mut out).unwrap() {
        (_, Step::Done(GoOutcome::Accepted(transmission))) => transmission,
        other => panic!("{other:?}"),
    }
}
