//! Memory, allocations and waiting that a server can cause in a client. Wherever bytes arrive, the
//! harness checks that no more than 4 KiB of space are ever lent ahead of the bytes that fill them.

use crate::common::{
    bytes::*,
    reply::{Answer, Replier, errno_of, only},
    session::{Entry, contexts, export, granted, negotiate, negotiate_with},
    wire::{Delivery, Wire},
};
use nbd_proto::{
    CommandFlags, Error,
    client::{Config, Go, GoOutcome, Greeted, Handshake, Limits, Options, Plain},
    wire::{OptionCode, OptionReplyCode, ReplyType},
};

/// Whether one option is answered to the end by the replies to it.
pub(crate) fn outcome(
    wire: &mut Wire,
    options: Options<Plain>,
    option: u32,
) -> Result<bool, Error> {
    let out = &mut Default::default();
    match option {
        3 => wire.ends(options.list(out)),
        5 => wire.ends(options.start_tls(out)),
        6 => wire.ends(options.info(Go::default(), out)),
        7 => wire.ends(options.go(Go::default(), out)),
        8 => wire.ends(options.structured_reply(out).expect("asked once")),
        9 => wire.ends(options.list_meta_context(&export(""), &[], out)),
        10 => {
            let pending = options.structured_reply(out).expect("asked once");
            let options = granted(wire.finish(pending));
            let asked = contexts(&["base:allocation"]);
            let pending = options.set_meta_context(&export(""), &asked, out);
            wire.ends(pending.expect("chunks were agreed on"))
        }
        11 => wire.ends(options.extended_headers(out).expect("asked once")),
        _ => panic!("option {option} is not asked for"),
    }
}

/// The replies that [`outcome`] needs before the replies to the option.
pub(crate) fn first(option: u32) -> Vec<u8> {
    if option == 10 { ack(8) } else { vec![] }
}

/// Answers one option with many replies, which arrive in large pieces.
fn flood(option: u32, replies: impl IntoIterator<Item = Vec<u8>>) -> Result<bool, Error> {
    let mut wire = Wire::new(Delivery::Lent);
    let greeted = wire.answer(Handshake::new(Config::default()), hello(3));
    let Ok(Greeted::FixedNewstyle(options)) = greeted else {
        panic!("fixed newstyle");
    };
    wire.says(first(option));
    for reply in replies {
        wire.says(reply);
    }
    outcome(&mut wire, options, option)
}

#[test]
fn an_endless_option_reply_is_refused_by_its_header() {
    // H-002, B-009
    for option in [3, 5, 6, 7, 8, 9, 10, 11] {
        for kind in [1, 2, 3, 4, 0x8000_0001, 0xffff_ffff] {
            for len in [1 << 20, u32::MAX] {
                let refused = negotiate(|wire, options| {
                    wire.says(first(option)).says(rep_header(option, kind, len));
                    outcome(wire, options, option)
                });
                assert!(
                    matches!(
                        refused,
                        Err(Error::OptionReplyTooLong { .. } | Error::UnexpectedOptionReply { .. })
                    ),
                    "{refused:?}"
                );
            }
        }
    }
}

#[test]
fn unknown_information_is_skipped_up_to_64_kib() {
    // C-082, B-009
    let skipped = negotiate(|wire, options| {
        let pending = options.go(Go::default(), &mut wire.out);
        wire.says(info(7, 0x7777, vec![0; 65534]))
            .says(iexp(7, 1, 1));
        matches!(wire.answer(pending, ack(7)), Ok(GoOutcome::Accepted(_)))
    });
    assert!(skipped);
    let len = 65537;
    let too_long = negotiate(|wire, options| {
        wire.says(rep_header(7, 3, len));
        outcome(wire, options, 7)
    });
    let limit = 65536;
    let (option, reply) = (OptionCode::Go, OptionReplyCode::Info);
    assert_eq!(
        too_long,
        Err(Error::OptionReplyTooLong {
            option,
            reply,
            len,
            limit
        })
    );
}

#[test]
fn endless_replies_to_an_option_are_cut_off() {
    // B-010, H-003, H-004, H-005
    let numbered = |option| move |id: u32| meta(option, id, format!("x-a:{id}"));
    let name = |id: u32| server(id.to_string().as_bytes(), b"");
    assert_eq!(flood(3, (0..65_536).map(name)), Ok(false));
    assert!(flood(3, (0..65_537).map(name)).is_err());
    for option in [6, 7] {
        let known = |_| iexp(option, 1, 1);
        let unknown = |kind| info(option, kind, "");
        assert_eq!(flood(option, (0..64).map(known)), Ok(false));
        assert!(flood(option, (0..65).map(known)).is_err());
        assert_eq!(flood(option, (100..164).map(unknown)), Ok(false));
        assert!(flood(option, (100..165).map(unknown)).is_err());
    }
    for option in [9, 10] {
        assert_eq!(flood(option, (0..4096).map(numbered(option))), Ok(false));
        let (option, reply) = (OptionCode::from(option), OptionReplyCode::MetaContext);
        let limit = 4096;
        let too_many = flood(option.code(), (0..4097).map(numbered(option.code())));
        assert_eq!(
            too_many,
            Err(Error::TooManyOptionReplies {
                option,
                reply,
                limit
            })
        );
    }
}

#[test]
fn each_limit_of_the_replies_to_an_option_can_be_chosen() {
    // B-010
    type Numbered = fn(usize) -> Vec<u8>;
    let limits = Limits {
        list_entries: 2,
        meta_contexts: 2,
        infos: 2,
        ..Limits::default()
    };
    let together = Limits {
        option_replies: 100,
        ..Limits::default()
    };
    let replies: [(u32, Numbered); 5] = [
        (3, |_| server(&[b'x'; 46], b"")),
        (6, |n| info(6, 100 + u16::try_from(n).unwrap(), [0; 48])),
        (7, |n| info(7, 100 + u16::try_from(n).unwrap(), [0; 48])),
        (9, |n| meta(9, 0, format!("x-a:{n:042}"))),
        (10, |n| {
            meta(10, n.try_into().unwrap(), format!("x-a:{n:042}"))
        }),
    ];
    for (option, reply) in replies {
        let answered = |limits, count| {
            let config = Config {
                limits,
                ..Config::default()
            };
            negotiate_with(config, move |wire, options| {
                wire.says(first(option));
                for n in 0..count {
                    wire.says(reply(n));
                }
                outcome(wire, options, option)
            })
        };
        for limits in [limits, together] {
            assert_eq!(answered(limits, 2), Ok(false), "{option}");
        }
        let too_many = answered(limits, 3);
        assert!(
            matches!(too_many, Err(Error::TooManyOptionReplies { limit: 2, .. })),
            "{option}: {too_many:?}"
        );
        let (option, limit) = (option.into(), 100);
        assert_eq!(
            answered(together, 3),
            Err(Error::OptionRepliesTooLong { option, limit })
        );
    }
}

#[test]
fn an_endless_chunk_is_refused_by_its_header() {
    // C-128, C-234, C-258, B-011, B-017, H-027
    let too_long = |outcome: Result<_, Error>| {
        let refused = matches!(
            outcome,
            Err(Error::ChunkTooLong { .. } | Error::ChunkLength { .. })
        );
        assert!(refused, "{outcome:?}");
    };
    for entry in Entry::chunked() {
        let entry = entry.size(1 << 40).context(1, "base:allocation");
        for kind in [0, 1, 2, 0x8001, 0x8002, 0x8003, 0xffff] {
            too_long(entry.read(0, 512, |to| to.announce(D, kind, u32::MAX)));
        }
        let data = |len| {
            let mut session = entry.enter(Delivery::Lent);
            let to = session.read(0, 32 << 20);
            session.says(to.announce(D, 1, len)).replies()
        };
        assert_eq!(data((32 << 20) + 8), Ok(vec![]), "as much as was asked for");
        too_long(data((32 << 20) + 9));
        let unknown = |len| entry.write(move |to| to.announce(D, 0x8063, len));
        assert_eq!(unknown(64 << 10), Ok(vec![]));
        too_long(unknown((64 << 10) + 1));
    }
    for len in [1 << 32, (1 << 32) + 12, 1 << 63, u64::MAX] {
        let entry = Entry::extended().context(1, "base:allocation");
        for kind in [0, 1, 2, 0x8001, 0x8002, 0x8003] {
            let header = |to: Replier| xch_header(D, kind, to.cookie, 0, len);
            too_long(entry.read(0, 512, header));
        }
        let header = |to: Replier| xch_header(D, 6, to.cookie, 0, len);
        too_long(entry.block_status(0, 512, CommandFlags::NONE, header));
    }
}

#[test]
fn an_unknown_error_of_64_kib_is_read_to_its_end() {
    // C-213, B-017
    let mut payload = error(5, "bad");
    payload.resize(64 << 10, 0);
    for entry in Entry::chunked() {
        assert_eq!(
            errno_of(&entry.write(|to| to.chunk(D, 0x8063, &payload))),
            5
        );
    }
}

#[test]
fn a_chunk_has_at_most_2_to_the_20_extents() {
    // C-251, B-014, H-033
    let most = 1 << 20;
    for (entry, fixed, each) in [(Entry::structured(), 4, 8), (Entry::extended(), 8, 16)] {
        let entry = entry.size(1 << 30).context(1, "base:allocation");
        let none = CommandFlags::NONE;
        let kind = if each == 8 { 5 } else { 6 };
        let header = |extents: u32| {
            let len = fixed + each * extents;
            entry.block_status(0, 1 << 30, none, move |to| to.announce(D, kind, len))
        };
        assert_eq!(header(most), Ok(vec![]));
        let (len, limit) = (u64::from(fixed + each * (most + 1)), fixed + each * most);
        let (reply, limit) = (ReplyType::from(kind), limit.into());
        assert_eq!(
            header(most + 1),
            Err(Error::ChunkTooLong { reply, len, limit })
        );

        let mut session = entry.enter(Delivery::Lent);
        let to = session.send(|t| t.block_status(0, 1 << 30, none));
        session.says(to.extents(D, 1, &vec![(1, 3); 1 << 20]));
        match session.replies().as_deref() {
            Ok([(0, Answer::Extents(reported))]) => assert_eq!(reported[0].extents.len(), 1 << 20),
            other => panic!("{:?}", other.map(<[_]>::len)),
        }
    }
}

#[test]
fn a_read_may_not_be_answered_in_more_pieces_than_can_be_remembered() {
    // B-015, H-021
    let answer = |chunks: u64| {
        let mut session = Entry::structured().enter(Delivery::Lent);
        let to = session.read(0, 1 << 20);
        for at in 1..=chunks {
            session.says(to.data(0, 2 * at, &[7]));
        }
        session.replies()
    };
    assert_eq!(answer(65_536), Ok(vec![]));
    assert_eq!(answer(65_537), Err(Error::TooManyRanges { limit: 65_536 }));
}

#[test]
fn one_byte_at_a_time_is_an_answer() {
    // H-021
    let len = 20_000_u64;
    let expected: Vec<u8> = content(0, 20_000);
    for order in [false, true] {
        let mut session = Entry::structured().enter(Delivery::Lent);
        let to = session.read(0, len);
        for at in 0..len {
            let at = if order { len - 1 - at } else { at };
            session.says(to.data(0, at, &content(at, 1)));
        }
        session.says(to.none());
        assert_eq!(session.settled(), only(Answer::Data(expected.clone())));
    }
    let outcome = Entry::structured().read(0, 512, |to| {
        let piece = |at: u64| match at % 2 {
            0 => to.hole(0, at, 1),
            _ => to.data(0, at, &[7]),
        };
        [(0..512).flat_map(piece).collect(), to.none()].concat()
    });
    assert_eq!(outcome, only(Answer::Data([0, 7].repeat(256))));
}

#[test]
fn endless_error_chunks_end_the_session() {
    // B-016, H-023
    for entry in Entry::chunked() {
        let errors = |n: usize| entry.write(move |to| to.error(0, 5, "").repeat(n));
        assert_eq!(errors(1024), Ok(vec![]));
        assert_eq!(errors(1025), Err(Error::TooManyErrors { limit: 1024 }));
    }
}
