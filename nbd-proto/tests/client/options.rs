//! Rules of the negotiation that hold for every option.

use crate::common::{
    bytes::*,
    session::{PROFILES, contexts, export, granted, negotiate, negotiate_with, profile},
    wire::Wire,
};
use nbd_proto::{
    Error, HeaderStyle, Misuse, Step,
    client::{Go, GoOutcome, InfoSet, Options, Plain},
    wire::{InfoType, OptionCode, OptionReplyCode},
};

/// The bytes that one option puts on the wire.
fn sent_by(option: impl Fn(Options<Plain>, &mut Wire)) -> Vec<u8> {
    negotiate(|wire, options| {
        option(options, wire);
        wire.sent()
    })
}

#[test]
fn each_option_has_its_number_its_length_and_its_data() {
    // C-020, C-037, C-045, C-050, C-079, C-101, C-103, C-132, C-136
    assert_eq!(sent_by(|o, w| drop(o.list(&mut w.out))), opt(3, []));
    assert_eq!(sent_by(|o, w| drop(o.start_tls(&mut w.out))), opt(5, []));
    assert_eq!(sent_by(|o, w| o.abort(&mut w.out)), opt(2, []));
    assert_eq!(
        sent_by(|o, w| drop(o.structured_reply(&mut w.out))),
        opt(8, [])
    );
    assert_eq!(
        sent_by(|o, w| drop(o.extended_headers(&mut w.out))),
        opt(11, [])
    );
    for name in ["", "disk", &"é".repeat(2048)] {
        let by_name = |o: Options<Plain>, w: &mut Wire| {
            drop(o.export_name(&export(name), &mut w.out));
        };
        assert_eq!(sent_by(by_name), opt(1, name));
        for (infos, ids) in [
            (InfoSet::NONE, &[][..]),
            (InfoSet::BLOCK_SIZE, &[3]),
            (InfoSet::ALL, &[1, 2, 3]),
        ] {
            let request = || Go {
                name: export(name),
                infos,
            };
            let info = sent_by(|o, w| drop(o.info(request(), &mut w.out)));
            assert_eq!(info, opt(6, info_data(name, ids)));
            let go = sent_by(|o, w| drop(o.go(request(), &mut w.out)));
            assert_eq!(go, opt(7, info_data(name, ids)));
        }
        for queries in [
            &[][..],
            &["base:"],
            &["base:allocation", "qemu:dirty-bitmap:a"],
        ] {
            let listed = sent_by(|o, w| {
                drop(o.list_meta_context(&export(name), &contexts(queries), &mut w.out));
            });
            assert_eq!(listed, opt(9, meta_data(name, queries)));
        }
    }
}

#[test]
fn no_kind_of_information_is_asked_for_twice_and_none_has_to_be() {
    // C-080, C-081, C-114
    let twice = InfoSet::of(&[InfoType::BlockSize, InfoType::BlockSize, InfoType::Export]);
    for (infos, ids) in [
        (twice, &[3][..]),
        (
            InfoSet::of(&[InfoType::Name, InfoType::Description]),
            &[1, 2],
        ),
        (InfoSet::NONE, &[]),
        (InfoSet::NONE.with_block_size(), &[3]),
        (InfoSet::default(), &[3]),
    ] {
        let request = || Go {
            name: export("a"),
            infos,
        };
        let sent = sent_by(|o, w| drop(o.go(request(), &mut w.out)));
        assert_eq!(sent, opt(7, info_data("a", ids)));
        let kinds: Vec<_> = ids.iter().map(|id| InfoType::from(*id)).collect();
        assert_eq!(
            format!("{infos:?}"),
            format!("{kinds:?}").replace('[', "{").replace(']', "}")
        );
    }
}

#[test]
fn go_can_be_the_first_option() {
    // C-021
    let entered = negotiate(|wire, options| {
        let pending = options.go(Go::default(), &mut wire.out);
        wire.says(iexp(7, 1 << 20, 1));
        matches!(wire.answer(pending, ack(7)), Ok(GoOutcome::Accepted(_)))
    });
    assert!(entered);
}

#[test]
fn nothing_is_sent_before_an_option_is_answered_to_the_end() {
    // C-022, C-033
    negotiate(|wire, options| {
        let mut pending = options.list(&mut wire.out);
        assert_eq!(wire.sent(), opt(3, []));
        for name in ["a", "b", "c"] {
            wire.says(server(name.as_bytes(), b""));
            let Ok(Step::More(more)) = wire.run(pending) else {
                panic!("only an ACK ends a list");
            };
            pending = more;
            assert_eq!((wire.sent(), wire.left()), (vec![], 0));
        }
        assert_eq!(pending.option(), OptionCode::List);
        wire.answer(pending, ack(3)).unwrap().result.unwrap().len()
    });
    negotiate(|wire, options| {
        let pending = options.info(Go::default(), &mut wire.out);
        wire.says(iexp(6, 1, 1)).says(ibs(6, 1, 512, 512));
        matches!(wire.run(pending), Ok(Step::More(_)))
    });
}

#[test]
fn a_granted_option_is_not_asked_for_again_and_stays_granted() {
    // C-023, C-139
    let mode = negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(8)));
        let _ = wire.sent();
        let rejected = options.structured_reply(&mut wire.out).unwrap_err();
        assert!(matches!(rejected.misuse, Misuse::Option { .. }));
        assert_eq!(wire.sent(), []);
        rejected.options.mode()
    });
    assert_eq!(mode, HeaderStyle::Structured);

    let mode = negotiate(|wire, options| {
        let pending = options.extended_headers(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(11)));
        let _ = wire.sent();
        let rejected = options.structured_reply(&mut wire.out).unwrap_err();
        let rejected = rejected
            .options
            .extended_headers(&mut wire.out)
            .unwrap_err();
        assert_eq!(wire.sent(), []);
        rejected.options.mode()
    });
    assert_eq!(mode, HeaderStyle::Extended);
}

/// The error for an answer to `NBD_OPT_STRUCTURED_REPLY` that ends the session.
fn refused(answer: &[u8]) -> Error {
    negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).expect("asked once");
        wire.says(answer)
            .run(pending)
            .map(drop)
            .expect_err("a violation")
    })
}

#[test]
fn an_answer_to_another_option_or_to_none_ends_the_session() {
    // C-024, C-025, C-026, H-006, H-014
    let mut magic = ack(8);
    magic[7] += 1;
    let got = 0x0003_e889_0455_65aa;
    assert_eq!(refused(&magic), Error::OptionReplyMagic { got });

    let expected = OptionCode::StructuredReply;
    let got = OptionCode::List;
    assert_eq!(refused(&ack(3)), Error::WrongOption { expected, got });
    assert_eq!(
        refused(&err(3, 1, "")),
        Error::WrongOption { expected, got }
    );

    // An unrequested ACK, and a second ACK, stand in the place of the next reply.
    let unasked = negotiate(|wire, options| {
        wire.says(ack(8));
        let pending = options.list(&mut wire.out);
        wire.run(pending).map(drop).unwrap_err()
    });
    let second = negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).unwrap();
        wire.says(ack(8)).says(ack(8));
        let options = granted(wire.finish(pending));
        let pending = options.list(&mut wire.out);
        wire.run(pending).map(drop).unwrap_err()
    });
    let (expected, got) = (got, expected);
    assert_eq!(unasked, Error::WrongOption { expected, got });
    assert_eq!(second, Error::WrongOption { expected, got });
}

#[test]
fn an_ack_has_no_data() {
    // C-027, C-054, B-009
    let too_long = |option| Error::OptionReplyTooLong {
        option,
        reply: OptionReplyCode::Ack,
        len: 1,
        limit: 0,
    };
    assert_eq!(
        refused(&rep(8, 1, "x")),
        too_long(OptionCode::StructuredReply)
    );
    let tls = negotiate(|wire, options| {
        let pending = options.start_tls(&mut wire.out);
        wire.says(rep(5, 1, "x"))
            .run(pending)
            .map(drop)
            .unwrap_err()
    });
    assert_eq!(tls, too_long(OptionCode::StartTls));
}

#[test]
fn an_option_has_no_replies_but_its_own() {
    // C-028, C-029
    for kind in [2, 3, 4, 5, 0x7fff_ffff] {
        let unexpected = Error::UnexpectedOptionReply {
            option: OptionCode::StructuredReply,
            reply: kind.into(),
        };
        assert_eq!(refused(&rep(8, kind, "abcd")), unexpected);
        assert_eq!(refused(&rep_header(8, kind, 0)), unexpected);
    }
    for (option, own) in [(3, 2), (6, 3), (7, 3), (9, 4)] {
        for kind in (2..=5).filter(|kind| *kind != own) {
            let error = negotiate(|wire, options| {
                wire.says(rep(option, kind, [0; 12]));
                match option {
                    3 => wire.run(options.list(&mut Default::default())).map(drop),
                    6 => {
                        let pending = options.info(Go::default(), &mut wire.out);
                        wire.run(pending).map(drop)
                    }
                    7 => {
                        let pending = options.go(Go::default(), &mut wire.out);
                        wire.run(pending).map(drop)
                    }
                    _ => {
                        let pending = options.list_meta_context(&export(""), &[], &mut wire.out);
                        wire.run(pending).map(drop)
                    }
                }
                .unwrap_err()
            });
            let unexpected = Error::UnexpectedOptionReply {
                option: option.into(),
                reply: kind.into(),
            };
            assert_eq!(error, unexpected);
        }
    }
}

#[test]
fn a_refusal_of_any_kind_ends_its_option_and_nothing_else() {
    // C-030, C-031, C-032
    for (_, tolerance) in PROFILES {
        for code in (1..=10).chain([0x0b, 0xffff, 0x7fff_ffff]) {
            let shown = negotiate_with(profile(tolerance), |wire, options| {
                let pending = options.go(Go::default(), &mut wire.out);
                let refusal = err(7, code, "no\x1b[2J");
                let Ok(GoOutcome::Refused(options, error)) = wire.answer(pending, refusal) else {
                    panic!("this is a refusal");
                };
                assert_eq!(error.option, OptionCode::Go);
                assert_eq!(error.code.code(), 0x8000_0000 | code);
                let pending = options.list(&mut wire.out);
                let settled = wire.answer(pending, ack(3)).unwrap();
                assert_eq!(settled.result, Ok(vec![]), "the next option works");
                let _ = wire.sent();
                settled.options.abort(&mut wire.out);
                assert_eq!(wire.sent(), opt(2, []));
                error.to_string()
            });
            assert!(shown.ends_with(": no\\u{1b}[2J"), "{shown}");
        }
    }
}

#[test]
fn the_kinds_of_refusal_are_distinct() {
    // C-032, C-097
    let code_of = |code| {
        negotiate(|wire, options| {
            let pending = options.structured_reply(&mut wire.out).unwrap();
            let settled = wire.answer(pending, err(8, code, "")).unwrap();
            assert_eq!(settled.options.mode(), HeaderStyle::Simple);
            settled.result.unwrap_err().code
        })
    };
    for (code, expected) in [
        (1, OptionReplyCode::ErrUnsup),
        (2, OptionReplyCode::ErrPolicy),
        (3, OptionReplyCode::ErrInvalid),
        (4, OptionReplyCode::ErrPlatform),
        (5, OptionReplyCode::ErrTlsReqd),
        (6, OptionReplyCode::ErrUnknown),
        (7, OptionReplyCode::ErrShutdown),
        (8, OptionReplyCode::ErrBlockSizeReqd),
        (9, OptionReplyCode::ErrTooBig),
        (10, OptionReplyCode::ErrExtHeaderReqd),
    ] {
        assert_eq!(code_of(code), expected);
    }
}

#[test]
fn a_refusal_may_say_4096_bytes_and_not_one_more() {
    // C-003, B-001, B-009
    let text = "x".repeat(4096);
    let message = negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).unwrap();
        let settled = wire.answer(pending, err(8, 6, &text)).unwrap();
        settled.result.unwrap_err().message.as_str().to_owned()
    });
    assert_eq!(message, text);
    // The announced length is enough: no byte of the text has to come.
    let too_long = Error::OptionReplyTooLong {
        option: OptionCode::StructuredReply,
        reply: OptionReplyCode::ErrUnknown,
        len: 4097,
        limit: 4096,
    };
    assert_eq!(refused(&rep_header(8, 0x8000_0006, 4097)), too_long);
}
