//! `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`.

use crate::common::{
    bytes::*,
    reply::{Answer, only},
    session::{
        DEFAULT, Entry, PROFILES, Session, export, granted, negotiate, negotiate_with, profile,
    },
    wire::{Delivery, Wire, always},
};
use nbd_proto::{
    BlockSizes, Error, ExportInfo, HeaderStyle, Misuse, TransmissionFlags,
    client::{
        Config, Go, GoOutcome, Greeted, Handshake, InfoSet, Options, Plain, Tolerance, Transmission,
    },
    wire::{OptionCode, OptionReplyCode},
};

/// The outcome of `NBD_OPT_GO` for the default export when these replies come before the ACK.
fn go_with(tolerance: Tolerance, infos: &[u8]) -> Result<ExportInfo, Error> {
    negotiate_with(profile(tolerance), |wire, options| {
        let pending = options.go(Go::default(), &mut wire.out);
        match wire.says(infos).says(ack(7)).run(pending)? {
            nbd_proto::Step::Done(GoOutcome::Accepted(transmission)) => {
                assert_eq!(wire.left(), 0);
                Ok(transmission.export().clone())
            }
            other => panic!("{other:?}"),
        }
    })
}

fn go(infos: &[u8]) -> Result<ExportInfo, Error> {
    go_with(DEFAULT, infos)
}

fn info_of(infos: &[u8]) -> Result<ExportInfo, Error> {
    negotiate(|wire, options| {
        let pending = options.info(Go::default(), &mut wire.out);
        let settled = wire.says(infos).answer(pending, ack(6))?;
        Ok(settled.result.expect("an ACK is no refusal"))
    })
}

fn accepted(outcome: Result<GoOutcome<Plain>, Error>) -> Transmission {
    match outcome {
        Ok(GoOutcome::Accepted(transmission)) => transmission,
        other => panic!("{other:?}"),
    }
}

fn refused(outcome: Result<GoOutcome<Plain>, Error>) -> Options<Plain> {
    match outcome {
        Ok(GoOutcome::Refused(options, _)) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn information_is_taken_in_any_order_asked_for_or_not_and_known_or_not() {
    // C-082, C-083, C-084, C-131
    let unknown = info(7, 0x7777, b"whatever");
    let (size, sizes) = (iexp(7, 1 << 20, 5), ibs(7, 512, 4096, 65536));
    let expected = go(&[&size[..], &sizes].concat()).unwrap();
    assert_eq!(expected.size, 1 << 20);
    assert_eq!(expected.block_sizes, BlockSizes::new(512, 4096, 65536).ok());
    for order in [
        [&sizes, &size, &unknown],
        [&unknown, &size, &sizes],
        [&size, &unknown, &sizes],
    ] {
        let order: Vec<u8> = order.into_iter().flatten().copied().collect();
        assert_eq!(go(&order), Ok(expected.clone()));
    }
    // Nothing but the size is asked for here, and the block sizes are obeyed all the same.
    negotiate(|wire, options| {
        let request = Go {
            name: export(""),
            infos: InfoSet::NONE,
        };
        let pending = options.go(request, &mut wire.out);
        wire.says(&sizes).says(&size);
        let transmission = accepted(wire.answer(pending, ack(7)));
        assert_eq!(transmission.block_sizes().minimum(), 512);
    });
}

#[test]
fn an_export_has_a_size() {
    // C-086
    let missing = |option| Error::NoExportInfo { option };
    for infos in [vec![], ibs(7, 1, 512, 512), info(7, 1, "name")] {
        assert_eq!(go(&infos), Err(missing(OptionCode::Go)));
    }
    assert_eq!(info_of(&[]), Err(missing(OptionCode::Info)));
}

#[test]
fn each_kind_of_information_has_its_length() {
    // C-087, C-088, C-089, C-090, B-009
    for (kind, legal) in [(0_u16, 10_usize), (3, 12)] {
        for len in [0, legal - 1, legal + 1] {
            let data = [&kind.to_be_bytes()[..], &vec![1; len]].concat();
            let malformed = Error::MalformedOptionReply {
                option: OptionCode::Go,
                reply: OptionReplyCode::Info,
                len: u32::try_from(data.len()).unwrap(),
            };
            assert_eq!(go(&rep(7, 3, data)), Err(malformed));
        }
    }
    for data in [&[][..], &[0]] {
        let len = u32::try_from(data.len()).unwrap();
        let malformed = Error::MalformedOptionReply {
            option: OptionCode::Go,
            reply: OptionReplyCode::Info,
            len,
        };
        assert_eq!(go(&rep(7, 3, data)), Err(malformed));
    }
    for kind in [1, 2] {
        let text = |len: usize| [info(7, kind, "x".repeat(len)), iexp(7, 1, 1)].concat();
        let len = 2 + 4097;
        let (option, reply) = (OptionCode::Go, OptionReplyCode::Info);
        let malformed = Error::MalformedOptionReply { option, reply, len };
        assert_eq!(go(&text(4097)), Err(malformed));
        let described = go(&text(4096)).unwrap();
        let lens = (
            described.name.map(|name| name.as_str().len()),
            described.description.map(|text| text.as_str().len()),
        );
        let expected = if kind == 1 {
            (Some(4096), None)
        } else {
            (None, Some(4096))
        };
        assert_eq!(lens, expected);
    }
    let empty = go(&[info(7, 1, ""), info(7, 2, ""), iexp(7, 1, 1)].concat()).unwrap();
    assert!(empty.name.unwrap().is_default() && empty.description.unwrap().is_empty());
}

#[test]
fn a_canonical_name_is_reported_and_nothing_more() {
    // C-003, C-091, H-008
    let info_name = |name: &[u8]| {
        go(&[info(7, 1, name), iexp(7, 1, 1)].concat())
            .unwrap()
            .name
    };
    assert_eq!(info_name(b"b"), Some(export("b")));
    assert_eq!(info_name(b"../%n"), Some(export("../%n")));
    assert_eq!(info_name(b"a\0b"), None);
    assert_eq!(info_name(b"\xff"), None);
}

#[test]
fn the_last_word_of_a_server_counts() {
    // C-093, C-094, C-078
    let twice = go(&[iexp(7, 1, 1), iexp(7, 2, 5)].concat()).unwrap();
    assert_eq!((twice.size, twice.can_flush()), (2, true));
    let size = negotiate(|wire, options| {
        let pending = options.info(Go::default(), &mut wire.out);
        wire.says(iexp(6, 1000, 1));
        let options = granted(wire.answer(pending, ack(6)));
        let pending = options.go(Go::default(), &mut wire.out);
        wire.says(iexp(7, 2000, 1));
        accepted(wire.answer(pending, ack(7))).export().size
    });
    assert_eq!(size, 2000);
}

#[test]
fn info_commits_neither_side() {
    // C-092, C-117
    negotiate(|wire, options| {
        let pending = options.info(Go::new(export("a")), &mut wire.out);
        wire.says(iexp(6, 1 << 20, 1))
            .says(ibs(6, 4096, 4096, 65536));
        let settled = wire.answer(pending, ack(6)).unwrap();
        let reported = settled.result.unwrap().block_sizes.unwrap();
        assert_eq!(reported.minimum(), 4096);
        let pending = settled.options.list(&mut wire.out);
        let options = granted(wire.answer(pending, ack(3)));
        let request = Go {
            name: export("b"),
            infos: InfoSet::NONE,
        };
        let pending = options.go(request, &mut wire.out);
        wire.says(iexp(7, 1 << 20, 1));
        let transmission = accepted(wire.answer(pending, ack(7)));
        assert_eq!(transmission.block_sizes(), BlockSizes::UNKNOWN);
    });
}

#[test]
fn transmission_starts_right_behind_the_ack() {
    // C-095
    let answers = always(|wire| {
        let Ok(Greeted::FixedNewstyle(options)) =
            wire.answer(Handshake::new(Config::default()), hello(1))
        else {
            panic!("fixed newstyle, with zeroes");
        };
        let pending = options.go(Go::default(), &mut wire.out);
        let cookie = 1 << 32;
        wire.says(iexp(7, 1 << 20, 1)).says(ack(7));
        let transmission = accepted(wire.finish(pending));
        let _ = wire.sent();
        let wire = core::mem::replace(wire, Wire::new(Delivery::Whole));
        let mut session = Session::new(wire, transmission);
        let to = session.read(0, 4);
        assert_eq!(session.wire.sent(), req(0, 0, cookie, 0, 4));
        session.says(sr(0, to.cookie, b"abcd")).replies()
    });
    assert_eq!(answers, only(Answer::Data(b"abcd".to_vec())));
}

#[test]
fn a_refused_export_leaves_the_choice_of_another() {
    // C-096, C-097
    let (size, maximum) = negotiate(|wire, options| {
        let pending = options.go(Go::new(export("a")), &mut wire.out);
        wire.says(iexp(7, 1, 1)).says(ibs(7, 4096, 4096, 4096));
        let options = refused(wire.answer(pending, err(7, 2, "not for you")));
        let pending = options.go(Go::new(export("b")), &mut wire.out);
        let options = refused(wire.answer(pending, err(7, 6, "nope")));
        let pending = options.go(Go::new(export("c")), &mut wire.out);
        wire.says(iexp(7, 2, 1)).says(ibs(7, 1, 512, 65536));
        let transmission = accepted(wire.answer(pending, ack(7)));
        (
            transmission.export().size,
            transmission.block_sizes().maximum(),
        )
    });
    assert_eq!((size, maximum), (2, 65536));
}

#[test]
fn export_name_is_answered_by_10_or_134_bytes_as_the_client_asked_for() {
    // C-099, C-101
    for (offered, zeroes) in [(3, vec![]), (1, vec![0xee; 124])] {
        let answers = always(|wire| {
            let greeted = wire.answer(Handshake::new(Config::default()), hello(offered));
            let Ok(Greeted::FixedNewstyle(options)) = greeted else {
                panic!("fixed newstyle");
            };
            let pending = options.export_name(&export(""), &mut wire.out).unwrap();
            assert_eq!(wire.sent(), [cf(offered.into()), opt(1, "")].concat());
            // The first reply comes in one piece with the answer.
            wire.says(export_block(1 << 20, 1)).says(&zeroes);
            wire.says(sr(0, 1 << 32, b"abcd"));
            let transmission = wire.finish(pending).unwrap();
            assert_eq!(transmission.export().size, 1 << 20);
            let wire = core::mem::replace(wire, Wire::new(Delivery::Whole));
            let mut session = Session::new(wire, transmission);
            let to = session.read(0, 4);
            assert_eq!(to.cookie, 1 << 32);
            session.replies()
        });
        assert_eq!(answers, only(Answer::Data(b"abcd".to_vec())));
    }
}

#[test]
fn zeroes_that_were_not_agreed_on_are_no_replies() {
    // H-016
    let error = negotiate(|wire, options| {
        let pending = options.export_name(&export(""), &mut wire.out).unwrap();
        wire.says(export_block(1 << 20, 1)).says([0; 124]);
        let transmission = wire.finish(pending).unwrap();
        let wire = core::mem::replace(wire, Wire::new(Delivery::Whole));
        Session::new(wire, transmission).replies().unwrap_err()
    });
    assert_eq!(error, Error::ReplyMagic { got: 0 });
}

#[test]
fn export_name_does_not_go_with_extended_headers() {
    // C-102
    negotiate(|wire, options| {
        let pending = options.extended_headers(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(11)));
        let pending = options.go(Go::default(), &mut wire.out);
        let options = refused(wire.answer(pending, err(7, 1, "")));
        let _ = wire.sent();
        let rejected = options.export_name(&export(""), &mut wire.out).unwrap_err();
        assert!(matches!(rejected.misuse, Misuse::Option { .. }));
        assert_eq!(wire.sent(), []);
    });
}

#[test]
fn flags_without_the_one_that_is_always_set_are_refused_or_taken_for_none() {
    // C-108, H-011
    let infos = iexp(7, 1 << 20, 0x0004);
    let no_flags = Err(Error::NoFlags { flags: 4 });
    assert_eq!(go_with(Tolerance::STRICT, &infos), no_flags);
    assert_eq!(go_with(DEFAULT, &infos), no_flags);
    let lenient = go_with(Tolerance::LENIENT, &infos).unwrap();
    assert_eq!(lenient.flags, TransmissionFlags::HAS_FLAGS);

    for (name, tolerance) in PROFILES {
        let outcome = negotiate_with(profile(tolerance), |wire, options| {
            let pending = options.export_name(&export(""), &mut wire.out).unwrap();
            wire.answer(pending, export_block(1, 0)).map(drop)
        });
        assert_eq!(outcome.is_ok(), name == "lenient");
    }
}

#[test]
fn deviations_overlooked_in_a_description_are_reported() {
    let tolerated = |tolerance, infos: &[u8]| {
        negotiate_with(profile(tolerance), |wire, options| {
            let pending = options.go(Go::default(), &mut wire.out);
            match wire.says(infos).answer(pending, ack(7)).unwrap() {
                GoOutcome::Accepted(transmission) => transmission.tolerated(),
                GoOutcome::Refused(_, error) => panic!("{error}"),
            }
        })
    };
    let (size, no_flags) = (iexp(7, 1 << 20, 1), iexp(7, 1 << 20, 0));
    let impossible = ibs(7, 3, 4096, 65536);
    assert_eq!(tolerated(Tolerance::LENIENT, &size), Tolerance::STRICT);
    let found = tolerated(Tolerance::LENIENT, &[&no_flags[..], &impossible].concat());
    let names: Vec<_> = found.names().collect();
    assert_eq!(names, ["invalid_block_sizes", "no_flags"]);

    let by_name = negotiate_with(profile(Tolerance::LENIENT), |wire, options| {
        let pending = options.export_name(&export(""), &mut wire.out).unwrap();
        let transmission = wire.answer(pending, export_block(1, 0)).unwrap();
        transmission.tolerated()
    });
    assert!(by_name.no_flags);
}

#[test]
fn offers_that_make_no_sense_are_not_believed() {
    // C-109, C-110, C-111, C-112, H-011, H-012
    for entry in Entry::every_mode() {
        let (mode, chunks) = (entry.mode, entry.mode != HeaderStyle::Simple);
        entry.flags(0xffff).always(|session| {
            let export = session.transmission.export();
            assert_eq!(export.can_df(), chunks);
            assert_eq!(
                export.can_filter_block_status(),
                mode == HeaderStyle::Extended
            );
            assert!(export.is_read_only() && !export.can_write_zeroes() && !export.can_trim());
        });
    }
    let fast = go(&iexp(7, 1, 0x0801)).unwrap();
    assert!(!fast.can_fast_zero() && !fast.flags.contains(TransmissionFlags::SEND_FAST_ZERO));
    let unknown = go(&iexp(7, 1, 0xe001)).unwrap();
    assert!(!unknown.can_flush() && !unknown.is_read_only());
}

#[test]
fn an_export_may_be_as_large_as_64_bits_can_say_or_empty() {
    // C-113, C-123, H-011
    for entry in Entry::every_mode() {
        entry.clone().size(u64::MAX).always(|session| {
            assert_eq!(session.transmission.export().size, u64::MAX);
            let none = Default::default();
            let last = session.try_send(|t| t.read(u64::MAX - 1, 1, none));
            assert!(last.is_ok());
            for (offset, len) in [(u64::MAX, 1), (u64::MAX - 1, 2), (u64::MAX, u64::MAX)] {
                let refused = session.try_send(|t| t.trim(offset, len, none));
                assert!(
                    matches!(refused, Err(Misuse::OutOfBounds { .. })),
                    "{refused:?}"
                );
            }
        });
        let empty = entry
            .size(0)
            .always(|s| s.try_send(|t| t.read(0, 1, Default::default())));
        assert!(matches!(empty, Err(Misuse::OutOfBounds { size: 0, .. })));
    }
}

#[test]
fn block_sizes_are_legal_or_refused_or_by_request_forgotten() {
    // C-118, H-010
    for (minimum, preferred, maximum) in [
        (0, 4096, 65536),
        (3, 4096, 65536),
        (131_072, 131_072, 1 << 20),
        (1 << 31, 1 << 31, u32::MAX),
        (1, 256, 65536),
        (4096, 512, 65536),
        (1, 768, 65536),
        (1, 4096, 2048),
        (1, 512, 0),
    ] {
        let infos = [iexp(7, 1 << 20, 1), ibs(7, minimum, preferred, maximum)].concat();
        let refusal = Err(Error::BlockSizes {
            minimum,
            preferred,
            maximum,
        });
        assert_eq!(go_with(Tolerance::STRICT, &infos), refusal);
        assert_eq!(go_with(DEFAULT, &infos), refusal);
        let lenient = go_with(Tolerance::LENIENT, &infos).unwrap();
        assert_eq!((lenient.size, lenient.block_sizes), (1 << 20, None));
    }
    for (minimum, preferred, maximum) in
        [(1, 512, 512), (65536, 65536, 65536), (512, 4096, u32::MAX)]
    {
        let infos = [ibs(7, minimum, preferred, maximum), iexp(7, 1 << 20, 1)].concat();
        for (_, tolerance) in PROFILES {
            let reported = go_with(tolerance, &infos).unwrap().block_sizes;
            assert_eq!(reported, BlockSizes::new(minimum, preferred, maximum).ok());
        }
    }
}
