//! Replies of any command: their magic numbers, cookies, flags and ends.

use crate::common::{
    bytes::*,
    reply::{Answer, Replier, errno_of, only},
    session::{DEFAULT, Entry, PROFILES, Session},
};
use nbd_proto::{
    Command, CommandFlags, Error, HeaderStyle,
    client::{Tolerance, Transmission},
    wire::ReplyType,
};

/// The magic numbers of replies, by the first mode that has them.
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
const EXTENDED: u32 = 0x6e8a_278c;

#[test]
fn a_reply_starts_with_a_magic_number_of_its_mode_or_ends_the_session_by_its_fourth_byte() {
    // C-196, C-197, C-203, H-036
    for entry in Entry::every_mode() {
        let legal: &[u32] = match entry.mode {
            HeaderStyle::Simple => &[SIMPLE],
            HeaderStyle::Structured => &[SIMPLE, STRUCTURED],
            HeaderStyle::Extended => &[EXTENDED],
        };
        for magic in [
            SIMPLE,
            STRUCTURED,
            EXTENDED,
            0,
            0x2560_9513,
            0x1256_0953,
            SIMPLE + 1,
        ] {
            // Four bytes, and then silence.
            let outcome = entry.flush(|_| magic.to_be_bytes().to_vec());
            if legal.contains(&magic) {
                assert_eq!(outcome, Ok(vec![]));
            } else {
                assert_eq!(outcome, Err(Error::ReplyMagic { got: magic }));
            }
        }
    }
    let chunk = Entry::simple().flush(|to| ch(D, 0, to.cookie, []));
    assert_eq!(chunk, Err(Error::ReplyMagic { got: STRUCTURED }));
    let simple = Entry::extended().flush(|to| to.simple(0));
    assert_eq!(simple, Err(Error::ReplyMagic { got: SIMPLE }));
}

#[test]
fn a_simple_read_has_exactly_the_requested_data_and_an_error_has_none() {
    // C-198, C-199
    let data = content(0, 1000);
    let outcome = Entry::simple().always(|session| {
        let [a, b, c] = [0, 1, 2].map(|_| session.read(0, 1000));
        session
            .says(sr(0, a.cookie, &data))
            .says(sr(5, b.cookie, []));
        session.says(sr(0, c.cookie, &data)).settled()
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome[0], (0, Answer::Data(data.clone())));
    assert!(matches!(&outcome[1], (1, Answer::Failed(failure)) if failure.errno.code() == 5));
    assert_eq!(outcome[2], (2, Answer::Data(data)));
}

#[test]
fn a_simple_success_to_a_read_has_no_place_among_chunks() {
    // C-200, H-020
    let command = Command::Read;
    for (_, tolerance) in PROFILES {
        let entry = Entry::structured().tolerance(tolerance);
        let outcome = entry.read(0, 512, |to| sr(0, to.cookie, [0; 512]));
        assert_eq!(outcome, Err(Error::SimpleSuccess { command }));
    }
}

#[test]
fn a_simple_error_to_a_read_among_chunks_fails_it_or_in_strict_mode_the_session() {
    // C-200
    let entry = |tolerance| Entry::structured().tolerance(tolerance);
    let reply = |tolerance| entry(tolerance).read(0, 512, |to| to.simple(22));
    assert_eq!(reply(Tolerance::STRICT), Err(Error::SimpleError));
    assert_eq!(errno_of(&reply(DEFAULT)), 22);
    assert_eq!(errno_of(&reply(Tolerance::LENIENT)), 22);
}

#[test]
fn other_commands_are_answered_either_way() {
    // C-201, C-209, C-261
    for (_, tolerance) in PROFILES {
        for entry in [Entry::simple(), Entry::structured()] {
            let entry = entry.tolerance(tolerance);
            assert_eq!(entry.write(|to| to.simple(0)), only(Answer::Done));
            assert_eq!(errno_of(&entry.write(|to| to.simple(28))), 28);
        }
        for entry in Entry::chunked() {
            let entry = entry.tolerance(tolerance);
            assert_eq!(entry.write(|to| to.none()), only(Answer::Done));
            assert_eq!(errno_of(&entry.write(|to| to.error(D, 28, "full"))), 28);
            let late = entry.write(|to| [to.error(0, 28, "full"), to.none()].concat());
            assert_eq!(errno_of(&late), 28);
        }
    }
    // The end of a cache request says nothing about a read.
    let outcome = Entry::structured().always(|session| {
        let cache = session.send(|t| t.cache(0, 512));
        let read = session.read(0, 512);
        session
            .says(cache.simple(0))
            .says(read.error(D, 5, ""))
            .settled()
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome[0], (0, Answer::Done));
    assert!(matches!(outcome[1], (1, Answer::Failed(_))));
}

#[test]
fn block_status_is_not_answered_by_a_simple_success() {
    // C-202
    let command = Command::BlockStatus;
    for (_, tolerance) in PROFILES {
        let entry = Entry::structured()
            .context(1, "base:allocation")
            .tolerance(tolerance);
        let none = Default::default();
        let success = entry.block_status(0, 512, none, |to| to.simple(0));
        assert_eq!(success, Err(Error::SimpleSuccess { command }));
        let error = entry.block_status(0, 512, none, |to| to.simple(22));
        assert_eq!(errno_of(&error), 22);
    }
}

#[test]
fn a_reply_to_no_request_ends_the_session() {
    // C-204, C-207, H-006, H-017
    for entry in Entry::every_mode() {
        let (chunks, compact) = (
            entry.mode != HeaderStyle::Simple,
            entry.mode != HeaderStyle::Extended,
        );
        let cookie = entry.flush(|to| to.ok()).map(|_| 1 << 32).unwrap();
        let unknown = |cookie| Err(Error::UnknownCookie { cookie });
        for wrong in [0, 1, u64::from(u32::MAX), cookie + 1, 2 * cookie, u64::MAX] {
            if compact {
                assert_eq!(entry.flush(|_| sr(0, wrong, [])), unknown(wrong));
                assert_eq!(entry.flush(|_| sr(5, wrong, [])), unknown(wrong));
            }
            if chunks && compact {
                assert_eq!(entry.flush(|_| ch(D, 0, wrong, [])), unknown(wrong));
            } else if chunks {
                assert_eq!(entry.flush(|_| xch(D, 0, wrong, 0, [])), unknown(wrong));
            }
        }
        let twice = entry.flush(|to| [to.ok(), to.ok()].concat());
        assert_eq!(twice, unknown(cookie));
        if chunks {
            let after_done = entry.read(0, 4, |to| [to.data(D, 0, b"abcd"), to.none()].concat());
            assert_eq!(after_done, unknown(cookie));
        }
    }
}

#[test]
fn replies_come_in_any_order_and_their_chunks_by_turns() {
    // C-205, C-229
    let expected = |at: u64| Answer::Data(content(at * 1000, 1000));
    let simple = Entry::simple().always(|session| {
        let reads = [0, 1, 2].map(|at| session.read(at * 1000, 1000));
        for at in [2, 0, 1] {
            let to = reads[at];
            let at = u64::try_from(at).expect("small");
            session.says(sr(0, to.cookie, content(at * 1000, 1000)));
        }
        session.settled()
    });
    assert_eq!(
        simple,
        Ok(vec![(2, expected(2)), (0, expected(0)), (1, expected(1))])
    );

    for entry in Entry::chunked() {
        let by_turns = entry.always(|session| {
            let reads = [0, 1, 2].map(|at| session.read(at * 1000, 1000));
            for piece in [3, 0, 1, 2] {
                for (at, to) in (0..).zip(reads) {
                    let offset = at * 1000 + piece * 250;
                    let done = if piece == 2 { D } else { 0 };
                    session.says(to.data(done, offset, &content(offset, 250)));
                }
            }
            session.settled()
        });
        assert_eq!(
            by_turns,
            Ok(vec![(0, expected(0)), (1, expected(1)), (2, expected(2))])
        );
    }
}

#[test]
fn unknown_reply_flags_mean_nothing() {
    // C-206
    for entry in Entry::chunked() {
        let data = content(0, 8);
        let outcome = entry.read(0, 8, |to| {
            [
                to.data(0xfffe, 0, &data[..4]),
                to.data(0xffff, 4, &data[4..]),
            ]
            .concat()
        });
        assert_eq!(outcome, only(Answer::Data(data)));
    }
}

#[test]
fn a_reply_without_its_last_chunk_stays_pending() {
    // C-208, H-024
    for entry in Entry::chunked() {
        entry.always(|session| {
            let to = session.read(0, 512);
            session.says(to.data(0, 0, &content(0, 512)));
            assert_eq!(session.replies(), Ok(vec![]));
            assert_eq!(session.transmission.in_flight(), 1);
            // The cookie stays taken even if its request is abandoned.
            session.abandon(0);
            assert_eq!(session.transmission.in_flight(), 1);
            let next = session.send(Transmission::flush);
            assert_ne!(to.cookie & 0xffff_ffff, next.cookie & 0xffff_ffff);
            let _ = session.transmission.disconnect().expect("once");
            session.says(next.ok()).replies().expect("a reply");
            assert!(!session.transmission.may_end(), "a reply is missing");
        });
    }
}

#[test]
fn the_payload_of_an_abandoned_read_is_thrown_away() {
    // C-208
    let data = content(0, 9000);
    for entry in Entry::every_mode() {
        let outcome = entry.always(|session| {
            let [first, second] = [0, 1].map(|_| session.read(0, 9000));
            let reply = match session.transmission.mode() {
                HeaderStyle::Simple => [sr(0, first.cookie, &data), sr(0, second.cookie, &data)],
                _ => [first, second].map(|to| to.data(D, 0, &data)),
            };
            let [first, second] = reply;
            session
                .says(&first[..4000])
                .replies()
                .expect("a part of a reply");
            session.abandon(0);
            session.says(&first[4000..]).says(second);
            // The harness would notice a payload for the abandoned read.
            session.settled()
        });
        let outcome = outcome.unwrap();
        assert_eq!(outcome[0].0, 0, "the end of the reply is still reported");
        assert_eq!(outcome[1], (1, Answer::Data(data.clone())));
    }
}

#[test]
fn a_chunk_of_no_kind_is_last_and_empty() {
    // C-209, C-210
    for (_, tolerance) in PROFILES {
        for entry in Entry::chunked() {
            let entry = entry.tolerance(tolerance);
            let longer = entry.write(|to| to.chunk(D, 0, [0]));
            let reply = ReplyType::None;
            assert_eq!(longer, Err(Error::ChunkLength { reply, len: 1 }));
            let not_last = entry.write(|to| to.chunk(0, 0, []));
            assert_eq!(not_last, Err(Error::NoneNotDone));
        }
    }
}

#[test]
fn a_chunk_that_its_command_cannot_have_ends_the_session() {
    // C-211, C-212, C-240
    for (_, tolerance) in PROFILES {
        for entry in Entry::chunked() {
            let extended = entry.mode == HeaderStyle::Extended;
            let entry = entry.context(1, "base:allocation").tolerance(tolerance);
            let unexpected = |command, kind: u16| {
                let reply = kind.into();
                Err(Error::UnexpectedChunk { command, reply })
            };
            // The header is enough: no byte of the payload has to come.
            for kind in [3, 4, 5, 6, 7, 0x7fff] {
                let outcome = entry.read(0, 512, |to| to.announce(D, kind, 12));
                assert_eq!(outcome, unexpected(Command::Read, kind));
            }
            for kind in [1, 2, 3, 4, 5, 6, 7, 0x7fff] {
                let outcome = entry.write(|to| to.announce(D, kind, 12));
                assert_eq!(outcome, unexpected(Command::Write, kind));
            }
            let wrong_width = if extended { 5 } else { 6 };
            for kind in [1, 2, 3, 4, wrong_width, 7] {
                let none = Default::default();
                let outcome = entry.block_status(0, 512, none, |to| to.announce(D, kind, 12));
                assert_eq!(outcome, unexpected(Command::BlockStatus, kind));
            }
        }
    }
}

#[test]
fn an_extended_chunk_echoes_the_offset_of_its_request() {
    // C-257, H-035
    let (expected, len) = (512, 512);
    for got in [511, 513, 0, u64::MAX] {
        let read = Entry::extended().read(expected, len, |to| to.at(got).none());
        assert_eq!(read, Err(Error::WrongOffset { expected, got }));
        let write = Entry::extended().write(|to| to.at(got).error(D, 5, ""));
        assert_eq!(write, Err(Error::WrongOffset { expected, got }));
    }
    let flush = Entry::extended().flush(|to| to.at(1).none());
    assert_eq!(
        flush,
        Err(Error::WrongOffset {
            expected: 0,
            got: 1
        })
    );
}

#[test]
fn a_reply_that_is_cut_off_is_no_answer() {
    // C-236
    for len in [0, 1, 15, 16, 17, 527] {
        let outcome = Entry::simple().always(|session| {
            let to = session.read(0, 512);
            let reply = sr(0, to.cookie, content(0, 512));
            session.says(&reply[..len]).replies()
        });
        assert_eq!(outcome, Ok(vec![]));
    }
}

#[test]
fn a_reply_behind_the_end_is_a_violation() {
    // C-204, H-006
    for entry in Entry::every_mode() {
        let may_end = entry.always(|session| {
            let to = session.send(Transmission::flush);
            session.says(to.ok()).replies().expect("a reply");
            let _ = session.transmission.disconnect().expect("once");
            assert!(session.transmission.may_end());
            session
                .says(to.ok())
                .replies()
                .expect_err("there is nothing to reply to");
            session.transmission.may_end()
        });
        assert!(!may_end);
    }
}

#[test]
fn nothing_of_a_request_clings_to_the_next_one_in_its_place() {
    // C-168, C-209
    for entry in Entry::chunked() {
        let entry = entry.context(1, "base:allocation").context(2, "x-a:b");
        let extended = entry.mode == HeaderStyle::Extended;
        let answers = entry.always(|session| {
            let (none, df) = (CommandFlags::NONE, CommandFlags::DF);
            let data = content(0, 64);
            let mut answers = Vec::new();
            let mut answered = |session: &mut Session, to: Replier, reply: Vec<u8>| {
                assert_eq!(to.cookie & 0xffff_ffff, 0, "all have the same place");
                let mut answer = session.says(reply).replies().expect("nothing is wrong");
                answers.push(answer.pop().expect("one is answered").1);
            };
            let to = session.read(0, 64);
            session.abandon(0);
            // The client gets no event for the hole.
            let reply = [to.data(0, 0, &data[..32]), to.hole(D, 32, 32)];
            answered(session, to, reply.concat());
            for flags in [none, df, df] {
                let to = session.read_with(0, 64, flags);
                answered(session, to, to.data(D, 0, &data));
            }
            for _ in 0..2 {
                let to = session.read(0, 64);
                let errors = to.error_at(0, 5, "", 32).repeat(1000);
                answered(session, to, [errors, to.none()].concat());
            }
            let to = session.read(0, 64);
            answered(session, to, to.data(D, 0, &data));
            if extended {
                let to = session.send(|t| t.block_status_of(&[1], 0, 64, none));
                answered(session, to, to.extents(D, 1, &[(64, 0)]));
            }
            let to = session.send(|t| t.block_status(0, 64, none));
            let both = [to.extents(0, 2, &[(64, 0)]), to.extents(D, 1, &[(64, 0)])];
            answered(session, to, both.concat());
            answers
        });
        let data = Answer::Data(content(0, 64));
        assert_eq!(answers[1..4], [data.clone(), data.clone(), data.clone()]);
        assert!(answers[4..6].iter().all(|a| matches!(a, Answer::Failed(_))));
        assert_eq!(answers[6], data);
        let Some(Answer::Extents(reported)) = answers.last() else {
            panic!("{answers:?}");
        };
        assert_eq!(reported.len(), 2);
    }
}
