//! Bugs of a known client that this one must not have.

use crate::common::{
    bytes::*,
    reply::{Answer, errno_of, only},
    session::{DEFAULT, Entry, granted, negotiate},
    wire::always,
};
use nbd_proto::{
    Command, CommandFlags, Errno, Error, HeaderStyle, Misuse,
    client::{Config, Go, SecureHandshake, TlsOutcome, Transmission},
    meta::{Allocation, AllocationDepth},
    wire::OptionCode,
};

const NONE: CommandFlags = CommandFlags::NONE;

// A known client read the offset of an error before its message.
#[test]
fn the_message_of_an_error_comes_before_its_offset() {
    for entry in Entry::chunked() {
        let outcome = entry.read(4096, 512, |to| to.error_at(D, 5, "disk on fire", 0x1000));
        let Ok([(0, Answer::Failed(failure))]) = outcome.as_deref() else {
            panic!("{outcome:?}");
        };
        assert_eq!(failure.message.as_str(), "disk on fire");
        assert_eq!(failure.offset, Some(0x1000));
    }
}

// A known client called a read with a gap a success and left old bytes in the gap.
#[test]
fn a_gap_between_chunks_is_no_success() {
    for entry in Entry::chunked() {
        let outcome = entry.read(0, 512, |to| {
            [to.data(0, 0, &[1; 128]), to.data(D, 384, &[1; 128])].concat()
        });
        assert_eq!(
            outcome,
            Err(Error::ShortRead {
                len: 512,
                missing: 256
            })
        );
    }
}

// A known client returned at the first error chunk and took the rest for the next reply.
#[test]
fn a_reply_ends_with_its_last_chunk_and_not_with_its_first_error() {
    for entry in Entry::chunked() {
        let outcome = entry.always(|session| {
            let to = session.read(0, 512);
            session.says(to.error(0, 5, "bad"));
            assert_eq!(session.replies(), Ok(vec![]));
            // The harness sends a flush afterwards, which must succeed.
            session
                .says(to.data(0, 0, &[1; 512]))
                .says(to.none())
                .settled()
        });
        assert_eq!(errno_of(&outcome), 5);
    }
}

// A known client failed at 640 extents, its buffer being full, and left the rest unread.
#[test]
fn a_list_of_700_extents_is_read_to_its_end() {
    for entry in Entry::chunked() {
        let entry = entry.context(1, "base:allocation");
        let outcome = entry.block_status(0, 1 << 20, NONE, |to| {
            to.extents(D, 1, &[(512, 0), (512, 3)].repeat(350))
        });
        let Ok([(0, Answer::Extents(reported))]) = outcome.as_deref() else {
            panic!("{outcome:?}");
        };
        assert_eq!(reported[0].extents.len(), 700);
    }
}

// A known client took the description of an export for the rest of its name.
#[test]
fn a_description_is_no_part_of_a_name() {
    let name = negotiate(|wire, options| {
        let pending = options.list(&mut wire.out);
        wire.says(server(b"disk", b"A nice description"));
        let entries = wire.answer(pending, ack(3)).unwrap().result.unwrap();
        entries[0].name.clone().unwrap().as_str().to_owned()
    });
    assert_eq!(name, "disk");
}

// A known client took an address that asks for TLS and went on in the clear.
#[test]
fn a_secure_session_says_nothing_in_the_clear() {
    let sent = always(|wire| {
        let secure = wire
            .answer(SecureHandshake::new(Config::default()), hello(3))
            .unwrap();
        let pending = secure.start_tls(&mut wire.out);
        let accepted = wire.answer(pending, ack(5));
        assert!(matches!(accepted, Ok(TlsOutcome::Accepted(_))));
        wire.sent()
    });
    assert_eq!(sent, [cf(3), opt(5, [])].concat());
}

// After a request was given up, a known client took its late reply for the reply to the next one.
#[test]
fn the_reply_to_an_abandoned_request_is_not_taken_for_the_next_one() {
    for entry in Entry::every_mode() {
        let outcome = entry.always(|session| {
            let late = session.send(Transmission::flush);
            session.abandon(0);
            let next = session.send(Transmission::flush);
            session.says(late.fail(5)).says(next.ok()).settled()
        });
        assert_eq!(outcome.unwrap()[1], (1, Answer::Done));
    }
}

// A known client entered an export of size 0 by an ACK for another option.
#[test]
fn an_export_is_entered_by_the_ack_of_its_own_option_and_with_a_size() {
    let go = |answer: &[u8]| {
        negotiate(|wire, options| {
            let pending = options.go(Go::default(), &mut wire.out);
            wire.says(answer).run(pending).map(drop).unwrap_err()
        })
    };
    let (expected, got) = (OptionCode::Go, OptionCode::List);
    assert_eq!(go(&ack(3)), Error::WrongOption { expected, got });
    assert_eq!(
        go(&ack(7)),
        Error::NoExportInfo {
            option: OptionCode::Go
        }
    );
}

// A known client called structured replies agreed on by any reply that is not an error.
#[test]
fn structured_replies_are_agreed_on_by_an_ack_alone() {
    for kind in [2, 3, 4, 5] {
        let refused = negotiate(|wire, options| {
            let pending = options.structured_reply(&mut wire.out).unwrap();
            wire.says(rep(8, kind, [0; 12])).run(pending).is_err()
        });
        assert!(refused);
    }
}

// A known client compared each chunk with all before it, and remembered them without a limit.
#[test]
fn pieces_that_touch_are_remembered_as_one() {
    let limits = nbd_proto::client::Limits {
        read_ranges: 1,
        ..Default::default()
    };
    let outcome = Entry::structured().limits(limits).read(0, 2000, |to| {
        let piece = |at: u64| to.data(0, at, &content(at, 1));
        [(0..2000).rev().flat_map(piece).collect(), to.none()].concat()
    });
    assert_eq!(outcome, only(Answer::Data(content(0, 2000))));
}

// A known client went on with structured replies after TLS had started, and could start TLS twice.
#[test]
fn tls_starts_from_nothing() {
    let mode = negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(8)));
        let pending = options.start_tls(&mut wire.out);
        let Ok(TlsOutcome::Accepted(upgrade)) = wire.answer(pending, ack(5)) else {
            panic!("TLS begins");
        };
        // That there is no second STARTTLS is a matter of types, and of a test that must not
        // compile.
        upgrade.upgraded().mode()
    });
    assert_eq!(mode, HeaderStyle::Simple);
}

// A known client cut the length of a read to 32 bits and waited for the bytes that it had cut off.
#[test]
fn a_read_of_more_than_4_gib_is_not_sent() {
    for entry in Entry::every_mode() {
        let entry = entry.size(1 << 40);
        for len in [1 << 32, (1 << 32) + 512] {
            let refused = entry.always(|s| s.try_send(|t| t.read(0, len, NONE)).map(drop));
            let (command, max) = (Command::Read, 32 << 20);
            assert_eq!(refused, Err(Misuse::TooLong { command, len, max }));
        }
    }
}

// A known client believed any length of a chunk and lost its place in the stream.
#[test]
fn the_length_of_a_chunk_is_checked() {
    for entry in Entry::chunked() {
        for (kind, payload) in [
            (0, vec![0]),
            (1, vec![0; 8]),
            (2, hole_at(0, 512)[..11].to_vec()),
            (2, [hole_at(0, 512), vec![0]].concat()),
            (0x8001, b"\0\0\0\x05\0\x04abc".to_vec()),
            (0x8002, error(5, "")),
        ] {
            let outcome = entry.read(0, 512, |to| to.chunk(D, kind, &payload));
            assert!(
                matches!(outcome, Err(Error::ChunkLength { .. })),
                "{outcome:?}"
            );
        }
    }
}

// A known client sent any request, legal or not.
#[test]
fn a_command_that_makes_no_sense_is_not_sent() {
    let entry = Entry::simple().flags(3).block_sizes(512, 4096, 65536);
    entry.always(|session| {
        let mut refused = |command: fn(&mut Transmission) -> bool| {
            assert!(!command(&mut session.transmission));
        };
        refused(|t| t.write(0, &[0; 512][..], NONE).is_ok());
        refused(|t| t.flush().is_ok());
        refused(|t| t.read(1, 512, NONE).is_ok());
        refused(|t| t.read(1 << 20, 512, NONE).is_ok());
        refused(|t| t.read(0, 65536 + 512, NONE).is_ok());
        refused(|t| t.read(0, 512, CommandFlags::FUA).is_ok());
        refused(|t| t.block_status(0, 512, NONE).is_ok());
        assert_eq!(session.transmission.in_flight(), 0);
    });
}

// A known client stayed usable after the server had broken the protocol.
#[test]
fn a_broken_session_stays_broken() {
    // The harness checks after every error that all calls repeat it.
    for entry in Entry::every_mode() {
        let outcome = entry.tolerance(DEFAULT).flush(|_| b"nonsense".to_vec());
        let got = u32::from_be_bytes(*b"nons");
        assert_eq!(outcome, Err(Error::ReplyMagic { got }));
    }
}

// A known client lost the number of a simple error to a block status.
#[test]
fn a_simple_error_to_a_block_status_keeps_its_number() {
    let entry = Entry::structured().context(1, "base:allocation");
    let outcome = entry.block_status(0, 512, NONE, |to| to.simple(12));
    assert_eq!(errno_of(&outcome), Errno::NoMem.code());
}

// A known client called allocated zeroes data.
#[test]
fn allocated_zeroes_are_not_called_data() {
    assert_eq!(Allocation::new(0).to_string(), "data");
    assert_eq!(Allocation::new(2).to_string(), "allocated,zero");
    assert_eq!(AllocationDepth::new(2).to_string(), "backing depth 2");
}

// A known client stayed usable after an abort, and disconnected in silence after an error.
#[test]
fn the_end_is_the_end() {
    let sent = negotiate(|wire, options| {
        options.abort(&mut wire.out); // and `options` is gone
        wire.sent()
    });
    assert_eq!(sent, opt(2, []));
    let outcome = Entry::simple().always(|session| {
        let to = session.send(Transmission::flush);
        let error = session.says(ch(D, 0, to.cookie, [])).replies().unwrap_err();
        let disconnected = session.transmission.disconnect().map(drop);
        disconnected == Err(Misuse::Dead(error))
    });
    assert!(outcome);
}
