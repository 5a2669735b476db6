//! Error chunks and error numbers.

use crate::common::{
    bytes::*,
    reply::{Answer, Answers, Replier, errno_of},
    session::{DEFAULT, Entry},
};
use nbd_proto::{
    Command, CommandFlags, Errno, Error, Failure,
    client::{Tolerance, Transmission},
    wire::{OptionCode, OptionReplyCode, ReplyType},
};

/// A write of 512 bytes at 512, in both modes with chunks.
fn write(tolerance: Tolerance, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let [structured, extended] =
        Entry::chunked().map(|entry| entry.tolerance(tolerance).write(&reply));
    assert_eq!(structured, extended);
    structured
}

/// The outcome of a broken error chunk with a lenient client, and with a strict one.
fn overlooked_if_lenient(reply: impl Fn(Replier) -> Vec<u8>) -> (Answers, Error) {
    let strict = write(Tolerance::STRICT, &reply).expect_err("a violation");
    assert_eq!(write(DEFAULT, &reply), Err(strict));
    (write(Tolerance::LENIENT, &reply), strict)
}

fn failure(answers: Answers) -> Failure {
    match answers.as_deref() {
        Ok([(0, Answer::Failed(failure))]) => failure.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_has_a_number_a_message_and_maybe_a_place() {
    // C-209, C-213
    let plain = failure(write(DEFAULT, |to| to.error(D, 28, "disk full")));
    assert_eq!(
        (plain.errno, plain.message.as_str()),
        (Errno::NoSpc, "disk full")
    );
    assert_eq!(plain.offset, None);
    let placed = failure(write(DEFAULT, |to| to.error_at(D, 5, "disk on fire", 1000)));
    assert_eq!(
        (placed.errno, placed.message.as_str()),
        (Errno::Io, "disk on fire")
    );
    assert_eq!(placed.offset, Some(1000));
}

#[test]
fn an_unknown_kind_of_error_is_an_error() {
    // C-213
    for kind in [0x8000, 0x8003, 0x8063, 0xffff] {
        let payload = [&error(5, "bad")[..], b"tail!"].concat();
        let unknown = failure(write(Tolerance::STRICT, |to| to.chunk(D, kind, &payload)));
        assert_eq!(
            (unknown.errno, unknown.message.as_str()),
            (Errno::Io, "bad")
        );
    }
}

#[test]
fn the_message_of_an_error_fits_its_chunk() {
    // C-214, H-034
    let kinds = [(0x8001, 0), (0x8002, 8), (0x8063, 0)];
    for (kind, behind) in kinds {
        let len = 5 + behind;
        let reply = ReplyType::from(kind);
        let bad = Error::ChunkLength {
            reply,
            len: len.into(),
        };
        for tolerance in [Tolerance::STRICT, DEFAULT] {
            if kind != 0x8063 {
                assert_eq!(write(tolerance, |to| to.announce(D, kind, len)), Err(bad));
            }
            assert!(write(tolerance, |to| to.announce(D, kind, 5)).is_err());
        }
        for announced in [4, 0x0c00, 65535_u16] {
            let (lenient, strict) = overlooked_if_lenient(|to| {
                let mut payload = error(5, "");
                payload[4..6].copy_from_slice(&announced.to_be_bytes());
                payload.extend(b"abc");
                payload.extend(&[0; 8][..behind as usize]);
                to.chunk(D, kind, payload)
            });
            let len = 9 + u64::from(behind);
            assert_eq!(strict, Error::ChunkLength { reply, len });
            assert_eq!(failure(lenient), Failure::new(Errno::Io));
        }
        let (lenient, _) = overlooked_if_lenient(|to| {
            let tail = [0; 8];
            let payload = error(5, "x".repeat(4097));
            to.chunk(D, kind, [&payload[..], &tail[..behind as usize]].concat())
        });
        assert_eq!(failure(lenient), Failure::new(Errno::Io));
    }
    let longest = failure(write(DEFAULT, |to| to.error(D, 5, &"x".repeat(4096))));
    assert_eq!(longest.message.as_str().len(), 4096);
    let nul = failure(write(DEFAULT, |to| to.error(D, 5, "a\0\x1b")));
    assert_eq!(nul.message.to_string(), "a\\u{0}\\u{1b}");
}

#[test]
fn an_error_is_not_success() {
    // C-215
    for reply in [
        |to: Replier| to.error(D, 0, ""),
        |to: Replier| to.error_at(D, 0, "", 512),
    ] {
        let (lenient, strict) = overlooked_if_lenient(reply);
        assert_eq!(strict, Error::ErrorZero);
        assert_eq!(errno_of(&lenient), 22);
    }
}

#[test]
fn bytes_behind_the_message_of_an_error_are_ignored() {
    // C-216
    let payload = [error(5, "bad"), vec![1, 2, 3, 4]].concat();
    let tailed = failure(write(Tolerance::STRICT, |to| to.chunk(D, 0x8001, &payload)));
    assert_eq!(tailed.message.as_str(), "bad");
}

#[test]
fn an_error_lies_inside_its_request() {
    // C-217
    for offset in [511, 1024, 0, u64::MAX] {
        let (lenient, strict) = overlooked_if_lenient(|to| to.error_at(D, 5, "bad", offset));
        assert_eq!(strict, Error::OutsideRequest { offset, len: 0 });
        let lenient = failure(lenient);
        assert_eq!((lenient.errno, lenient.offset), (Errno::Io, None));
        assert_eq!(lenient.message.as_str(), "bad");
    }
    for offset in [512, 1023] {
        let placed = failure(write(Tolerance::STRICT, |to| to.error_at(D, 5, "", offset)));
        assert_eq!(placed.offset, Some(offset));
    }
}

#[test]
fn a_command_without_a_range_has_no_place_for_an_error() {
    // C-218
    for entry in Entry::chunked() {
        for at in [0, 77] {
            let flush = entry.clone().tolerance(Tolerance::STRICT);
            let outcome = failure(flush.flush(|to| to.error_at(D, 5, "bad", at)));
            assert_eq!((outcome.errno, outcome.offset), (Errno::Io, None));
        }
    }
}

#[test]
fn an_unlisted_number_counts_as_einval_and_is_kept() {
    // C-219
    for entry in Entry::every_mode() {
        for number in [2, 9999, u32::MAX] {
            let outcome = failure(entry.write(|to| to.fail(number)));
            assert_eq!(outcome.errno.code(), number);
            assert_eq!(outcome.errno.normalized(), Errno::Inval);
        }
    }
}

#[test]
fn of_several_errors_the_first_is_reported() {
    // C-220
    let several = write(DEFAULT, |to| {
        let first = to.error_at(0, 5, "first", 600);
        [first, to.error(0, 28, "second"), to.error(D, 22, "third")].concat()
    });
    let first = failure(several);
    assert_eq!((first.errno, first.message.as_str()), (Errno::Io, "first"));
    // A server that shuts down is noticed, whenever it says so.
    let shuts_down = Entry::structured().always(|session| {
        let to = session.send(Transmission::flush);
        session.says(to.error(0, 5, "")).says(to.error(D, 108, ""));
        assert_eq!(errno_of(&session.replies()), 5);
        session.transmission.server_shuts_down()
    });
    assert!(shuts_down);
}

#[test]
fn enotsup_fails_the_command_that_it_answers() {
    // C-260
    for entry in Entry::every_mode() {
        for flags in [CommandFlags::NONE, CommandFlags::FAST_ZERO] {
            let outcome = entry.always(|session| {
                let to = session.send(|t| t.write_zeroes(512, 512, flags));
                session.says(to.at(512).fail(95)).settled()
            });
            assert_eq!(failure(outcome).errno, Errno::NotSup);
        }
    }
}

#[test]
fn a_violation_names_the_rule_that_was_broken() {
    let option = OptionCode::Go;
    let reply = |code: u32, rule| (OptionReplyCode::from(code), rule);
    for (reply, rule) in [reply(2, "C-028"), reply(5, "C-029")] {
        assert_eq!(Error::UnexpectedOptionReply { option, reply }.rule(), rule);
    }
    for (reply, rule) in [reply(1, "C-027"), reply(0x8000_0001, "B-009")] {
        let (len, limit) = (1, 0);
        let error = Error::OptionReplyTooLong {
            option,
            reply,
            len,
            limit,
        };
        assert_eq!(error.rule(), rule);
    }
    for (reply, rule) in [reply(2, "C-104"), reply(3, "C-089"), reply(4, "C-161")] {
        let len = 1;
        let error = Error::MalformedOptionReply { option, reply, len };
        assert_eq!(error.rule(), rule);
    }
    for (command, rule) in [(Command::Read, "C-200"), (Command::BlockStatus, "C-202")] {
        assert_eq!(Error::SimpleSuccess { command }.rule(), rule);
    }
    for (command, reply, rule) in [
        (Command::Read, 3, "C-211"),
        (Command::Read, 5, "C-212"),
        (Command::BlockStatus, 1, "C-212"),
        (Command::BlockStatus, 6, "C-240"),
    ] {
        let reply = ReplyType::from(reply);
        assert_eq!(Error::UnexpectedChunk { command, reply }.rule(), rule);
    }
    for (reply, rule) in [(1, "C-234"), (5, "C-234"), (0x8063, "B-017")] {
        let (reply, len, limit) = (ReplyType::from(reply), 2, 1);
        assert_eq!(Error::ChunkTooLong { reply, len, limit }.rule(), rule);
    }
    for (len, rule) in [(0, "C-217"), (1, "C-225")] {
        assert_eq!(Error::OutsideRequest { offset: 0, len }.rule(), rule);
    }
}

#[test]
fn an_error_names_the_rule_and_the_section_of_the_specification() {
    let (_, error) = overlooked_if_lenient(|to| to.error(D, 0, "no"));
    assert!(error.rule().starts_with("C-"), "{}", error.rule());
    assert_eq!(error.section(), "Structured reply types");
}
