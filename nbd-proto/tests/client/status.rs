//! Chunks of a block status.

use crate::common::{
    bytes::*,
    reply::{Answer, Answers, Replier, errno_of, only},
    session::{DEFAULT, Entry, PROFILES},
};
use nbd_proto::{
    Command, CommandFlags, Error,
    client::{ContextExtents, Tolerance},
    meta::Extent,
    wire::ReplyType,
};

const NONE: CommandFlags = CommandFlags::NONE;

fn chunked() -> [Entry; 2] {
    Entry::chunked().map(|entry| entry.context(1, "base:allocation"))
}

/// The block status of 1024 bytes at 512 of an export of 8192 bytes.
fn ask(tolerance: Tolerance, flags: CommandFlags, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let [structured, extended] = chunked().map(|entry| {
        let entry = entry.size(8192).tolerance(tolerance);
        entry.block_status(512, 1024, flags, &reply)
    });
    assert_eq!(structured, extended);
    structured
}

/// The same where every profile has to agree.
fn status(reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let [strict, default, lenient] = PROFILES.map(|(_, tolerance)| ask(tolerance, NONE, &reply));
    assert!(
        strict == default && default == lenient,
        "{strict:?} {default:?} {lenient:?}"
    );
    strict
}

fn context(id: u32, extents: &[(u64, u64)]) -> ContextExtents {
    let extents = extents
        .iter()
        .map(|&(len, status)| Extent { len, status })
        .collect();
    ContextExtents { id, extents }
}

fn extents(extents: &[(u64, u64)]) -> Answers {
    only(Answer::Extents(vec![context(1, extents)]))
}

#[test]
fn a_list_of_extents_has_a_whole_number_of_them() {
    // C-238, C-239
    for (entry, kind, bad, good) in [
        (
            &chunked()[0],
            ReplyType::BlockStatus,
            [0, 4, 11, 13, 19],
            [12, 20],
        ),
        (
            &chunked()[1],
            ReplyType::BlockStatusExt,
            [0, 8, 16, 25, 39],
            [24, 40],
        ),
    ] {
        for len in bad {
            let outcome =
                entry.block_status(512, 1024, NONE, |to| to.announce(D, kind.code(), len));
            let len = len.into();
            assert_eq!(outcome, Err(Error::ChunkLength { reply: kind, len }));
        }
        for len in good {
            let outcome =
                entry.block_status(512, 1024, NONE, |to| to.announce(D, kind.code(), len));
            assert_eq!(outcome, Ok(vec![]));
        }
    }
}

#[test]
fn a_count_of_extents_is_their_number() {
    // C-239, H-031
    let entry = &chunked()[1];
    for announced in [0, 1, 3, u32::MAX] {
        let outcome = entry.block_status(512, 1024, NONE, |to| {
            to.chunk(D, 6, xstatus(1, announced, &[(512, 0), (512, 1)]))
        });
        assert_eq!(outcome, Err(Error::ExtentCount { announced, got: 2 }));
    }
}

#[test]
fn extents_are_as_wide_as_the_headers() {
    // C-240
    let [structured, extended] = chunked();
    let command = Command::BlockStatus;
    let wide = structured.block_status(512, 1024, NONE, |to| {
        to.chunk(D, 6, xstatus(1, 1, &[(1024, 0)]))
    });
    let reply = ReplyType::BlockStatusExt;
    assert_eq!(wide, Err(Error::UnexpectedChunk { command, reply }));
    let narrow = extended.block_status(512, 1024, NONE, |to| {
        to.chunk(D, 5, crate::common::bytes::status(1, &[(1024, 0)]))
    });
    let reply = ReplyType::BlockStatus;
    assert_eq!(narrow, Err(Error::UnexpectedChunk { command, reply }));
}

#[test]
fn a_context_that_was_not_selected_ends_the_session() {
    // C-241, H-032
    for id in [0, 2, 9, u32::MAX] {
        let outcome = status(|to| to.extents(D, id, &[(1024, 0)]));
        assert_eq!(outcome, Err(Error::UnknownContext { id }));
    }
}

#[test]
fn a_filter_is_heeded_by_the_server_too() {
    // C-194, C-241, C-242
    let entry = Entry::extended()
        .context(4, "base:allocation")
        .context(9, "x-a:b");
    let filtered = |reply: fn(Replier) -> Vec<u8>| {
        entry.always(|session| {
            let to = session.send(|t| t.block_status_of(&[9], 0, 512, NONE));
            session.says(reply(to)).settled()
        })
    };
    let wanted = filtered(|to| to.extents(D, 9, &[(512, 3)]));
    assert_eq!(wanted, only(Answer::Extents(vec![context(9, &[(512, 3)])])));
    let unwanted = filtered(|to| to.extents(D, 4, &[(512, 3)]));
    assert_eq!(unwanted, Err(Error::UnknownContext { id: 4 }));
    assert_eq!(errno_of(&filtered(|to| to.none())), 22);
}

fn two_contexts(tolerance: Tolerance, reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let [structured, extended] = chunked().map(|entry| {
        let entry = entry
            .context(0, "qemu:allocation-depth")
            .tolerance(tolerance);
        entry.block_status(0, 1024, NONE, &reply)
    });
    assert_eq!(structured, extended);
    structured
}

#[test]
fn each_context_is_reported_once() {
    // C-156, C-242, C-248
    let both = |to: Replier| {
        [
            to.extents(0, 0, &[(512, 2)]),
            to.extents(D, 1, &[(1 << 20, 0)]),
        ]
        .concat()
    };
    let twice =
        |to: Replier| [to.extents(0, 1, &[(512, 0)]), to.extents(D, 1, &[(512, 0)])].concat();
    let missing = |to: Replier| to.extents(D, 1, &[(1024, 0)]);
    for (name, tolerance) in PROFILES {
        // The extents of one context say nothing about the other.
        let expected = vec![context(0, &[(512, 2)]), context(1, &[(1 << 20, 0)])];
        assert_eq!(
            two_contexts(tolerance, both),
            only(Answer::Extents(expected))
        );
        let outcome = two_contexts(tolerance, twice);
        assert_eq!(outcome, Err(Error::ContextTwice { id: 1 }));
        let outcome = two_contexts(tolerance, missing);
        if name == "strict" {
            assert_eq!(outcome, Err(Error::MissingContext { id: 0 }));
        } else {
            assert_eq!(errno_of(&outcome), 22);
        }
    }
}

#[test]
fn an_extent_has_a_length() {
    // C-243, H-028
    for list in [&[(0, 0)][..], &[(512, 0), (0, 1)], &[(1024, 0), (0, 0)]] {
        assert_eq!(status(|to| to.extents(D, 1, list)), Err(Error::EmptyExtent));
    }
}

#[test]
fn one_extent_is_one_extent_and_no_longer_than_the_request() {
    // C-244
    let one = |tolerance, list: &[(u32, u32)]| {
        ask(tolerance, CommandFlags::REQ_ONE, |to| {
            to.extents(D, 1, list)
        })
    };
    for (list, kept) in [
        (&[(512, 1), (512, 0)][..], (512, 1)),
        (&[(1025, 1)], (1024, 1)),
        (&[(u32::MAX, 3)], (1024, 3)),
    ] {
        assert_eq!(one(Tolerance::STRICT, list), Err(Error::SurplusExtents));
        assert_eq!(one(DEFAULT, list), extents(&[kept]));
        assert_eq!(one(Tolerance::LENIENT, list), extents(&[kept]));
    }
    for (_, tolerance) in PROFILES {
        assert_eq!(one(tolerance, &[(1024, 1)]), extents(&[(1024, 1)]));
    }
}

#[test]
fn extents_behind_the_request_are_dropped_or_in_strict_mode_end_the_session() {
    // C-245
    for (list, kept) in [
        (&[(1024, 0), (512, 1)][..], &[(1024, 0)][..]),
        (&[(512, 0), (600, 1), (1, 0)], &[(512, 0), (600, 1)]),
    ] {
        let reply = |to: Replier| to.extents(D, 1, list);
        assert_eq!(
            ask(Tolerance::STRICT, NONE, reply),
            Err(Error::SurplusExtents)
        );
        assert_eq!(ask(DEFAULT, NONE, reply), extents(kept));
        assert_eq!(ask(Tolerance::LENIENT, NONE, reply), extents(kept));
    }
}

#[test]
fn the_last_extent_may_pass_the_request_but_not_the_export() {
    // C-246, H-029
    let past = status(|to| to.extents(D, 1, &[(1000, 0), (2000, 1)]));
    assert_eq!(past, extents(&[(1000, 0), (2000, 1)]));
    let far = status(|to| to.extents(D, 1, &[(1000, 0), (u32::MAX, 1)]));
    assert_eq!(far, extents(&[(1000, 0), (8192 - 512 - 1000, 1)]));
    let entry = chunked()[1].clone().size(u64::MAX);
    for (_, tolerance) in PROFILES {
        let entry = entry.clone().tolerance(tolerance);
        let offset = u64::MAX - 1024;
        let wide = entry.block_status(offset, 1024, NONE, |to| {
            to.chunk(D, 6, xstatus(1, 2, &[(1, 0), (u64::MAX, 1)]))
        });
        assert_eq!(wide, extents(&[(1, 0), (1023, 1)]));
    }
}

#[test]
fn a_server_may_report_a_shorter_range_than_the_request() {
    // C-247
    let outcome = chunked().map(|entry| {
        let entry = entry.size(1 << 31);
        entry.block_status(0, 1 << 30, NONE, |to| to.extents(D, 1, &[(512, 0)]))
    });
    assert_eq!(outcome, [extents(&[(512, 0)]), extents(&[(512, 0)])]);
}

#[test]
fn extents_may_be_alike_and_of_any_size() {
    // C-249, C-250
    let alike = status(|to| to.extents(D, 1, &[(512, 0), (512, 0)]));
    assert_eq!(alike, extents(&[(512, 0), (512, 0)]));
    let entry = chunked()[0].clone().block_sizes(4096, 4096, 65536);
    let odd = entry.block_status(0, 4096, NONE, |to| to.extents(D, 1, &[(512, 0), (1, 1)]));
    assert_eq!(odd, extents(&[(512, 0), (1, 1)]));
}

#[test]
fn every_bit_of_a_status_is_handed_on() {
    // C-252, H-030
    let bits = status(|to| to.extents(D, 1, &[(1024, 0xffff_fffc)]));
    assert_eq!(bits, extents(&[(1024, 0xffff_fffc)]));
    let wide = chunked()[1].block_status(0, 1024, NONE, |to| {
        to.chunk(D, 6, xstatus(1, 1, &[(1024, u64::MAX)]))
    });
    assert_eq!(wide, extents(&[(1024, u64::MAX)]));
    let allocation = nbd_proto::meta::Allocation::new(0xffff_ffff_ffff_fffc);
    assert_eq!(allocation.status(), 0);
}

#[test]
fn an_error_takes_back_all_extents() {
    // C-255
    let failed = |to: Replier| [to.extents(0, 1, &[(1024, 0)]), to.error(D, 5, "")].concat();
    assert_eq!(errno_of(&status(failed)), 5);
    let first = |to: Replier| [to.error(0, 5, ""), to.extents(D, 1, &[(1024, 0)])].concat();
    assert_eq!(errno_of(&status(first)), 5);
}

#[test]
fn extents_longer_than_the_servers_own_maximum_are_taken_except_in_strict_mode() {
    // C-127, C-234
    for (entry, at_most, fixed, each) in [(&chunked()[0], 64, 4, 8), (&chunked()[1], 32, 8, 16)] {
        let entry = entry.clone().block_sizes(1, 512, 512);
        let ask = |tolerance, count| {
            let entry = entry.clone().tolerance(tolerance);
            entry.block_status(0, 1024, NONE, move |to| {
                to.extents(D, 1, &vec![(1, 0); count])
            })
        };
        for (_, tolerance) in PROFILES {
            assert_eq!(ask(tolerance, at_most), extents(&vec![(1, 0); at_most]));
        }
        for tolerance in [DEFAULT, Tolerance::LENIENT] {
            let more = at_most + 1;
            assert_eq!(ask(tolerance, more), extents(&vec![(1, 0); more]));
        }
        let too_long = Error::ChunkTooLong {
            reply: if fixed == 4 {
                ReplyType::BlockStatus
            } else {
                ReplyType::BlockStatusExt
            },
            len: fixed + 512 + each,
            limit: fixed + 512,
        };
        assert_eq!(ask(Tolerance::STRICT, at_most + 1), Err(too_long));
    }
}

#[test]
fn an_unrequested_context_is_decoded_and_neither_reported_nor_kept() {
    // C-163, H-033
    for tolerance in [DEFAULT, Tolerance::LENIENT] {
        for entry in chunked() {
            let entry = entry.unasked(9, "x-other:a").tolerance(tolerance);
            let outcome = entry.always(|session| {
                let to = session.send(|t| t.block_status(0, 1024, NONE));
                session
                    .says(to.extents(0, 9, &[(1, 0x5a5a); 64]))
                    .replies()
                    .expect("extents");
                let kept = format!("{:?}", session.transmission);
                assert!(!kept.contains(&0x5a5a.to_string()), "{kept}");
                session.says(to.extents(D, 1, &[(1024, 0)])).settled()
            });
            assert_eq!(outcome, extents(&[(1024, 0)]));
            // Nor does an unasked context escape the rules.
            let again = entry.block_status(0, 1024, NONE, |to| {
                [to.extents(0, 9, &[(1, 0)]), to.extents(0, 9, &[(1, 0)])].concat()
            });
            assert_eq!(again, Err(Error::ContextTwice { id: 9 }));
            let empty = entry.block_status(0, 1024, NONE, |to| to.extents(0, 9, &[(1, 0), (0, 0)]));
            assert_eq!(empty, Err(Error::EmptyExtent));
        }
    }
}
