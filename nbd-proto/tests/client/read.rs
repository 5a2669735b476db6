//! Chunks of a read.

use crate::common::{
    bytes::*,
    reply::{Answer, Answers, Replier, errno_of, only},
    session::{DEFAULT, Entry, PROFILES},
    wire::Delivery,
};
use nbd_proto::{
    Error,
    client::{Limits, Tolerance},
    wire::ReplyType,
};

/// A read of 1024 bytes at 4096 with every profile, in both modes with chunks.
fn read(reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let mut outcomes = Vec::new();
    for (_, tolerance) in PROFILES {
        for entry in Entry::chunked() {
            outcomes.push(entry.tolerance(tolerance).read(4096, 1024, &reply));
        }
    }
    let first = outcomes.pop().expect("there are six");
    assert!(
        outcomes.iter().all(|outcome| *outcome == first),
        "{outcomes:?}"
    );
    first
}

/// The same, not to be fragmented.
fn read_df(reply: impl Fn(Replier) -> Vec<u8>) -> Answers {
    let [structured, extended] = Entry::chunked().map(|entry| entry.read_df(1024, &reply));
    assert_eq!(structured, extended);
    structured
}

fn whole() -> Answers {
    only(Answer::Data(content(4096, 1024)))
}

fn outside(offset: u64, len: u64) -> Answers {
    Err(Error::OutsideRequest { offset, len })
}

fn overlap(offset: u64, len: u64) -> Answers {
    Err(Error::Overlap { offset, len })
}

fn missing(missing: u64) -> Answers {
    Err(Error::ShortRead { len: 1024, missing })
}

fn part(to: Replier, flags: u16, at: u64, len: usize) -> Vec<u8> {
    to.data(flags, 4096 + at, &content(4096 + at, len))
}

#[test]
fn data_is_placed_by_its_offset_in_any_order() {
    // C-209, C-229
    let parts = [0_u64, 1, 2, 3];
    for turn in 0..24 {
        let mut order = parts.to_vec();
        let order = [turn / 6, turn % 6 / 2, turn % 2, 0].map(|at| order.remove(at));
        let outcome = read(|to| {
            let chunks = order.map(|at| part(to, 0, at * 256, 256));
            [chunks.concat(), to.none()].concat()
        });
        assert_eq!(outcome, whole());
    }
    assert_eq!(read(|to| part(to, D, 0, 1024)), whole(), "data can be last");
}

#[test]
fn a_chunk_of_data_has_data() {
    // C-224
    for len in [0, 7, 8] {
        let reply = ReplyType::OffsetData;
        let bad = Err(Error::ChunkLength {
            reply,
            len: len.into(),
        });
        assert_eq!(read(|to| to.announce(D, 1, len)), bad);
    }
}

#[test]
fn a_chunk_outside_its_request_ends_the_session() {
    // C-225, H-025
    for (offset, len) in [
        (4095, 1),
        (4095, 1024),
        (4096 + 1023, 2),
        (4096 + 1024, 1),
        (0, 1024),
        (u64::MAX, 1),
        (u64::MAX - 1, 1024),
    ] {
        // The place is enough: no byte of the data has to come.
        let header = |to: Replier| {
            let announced = 8 + u32::try_from(len).expect("small");
            [to.announce(D, 1, announced), offset.to_be_bytes().to_vec()].concat()
        };
        assert_eq!(read(header), outside(offset, len));
        let hole_len = u32::try_from(len).expect("small");
        assert_eq!(
            read(|to| to.hole(D, offset, hole_len)),
            outside(offset, len)
        );
    }
    let limit = 1024 + 8;
    let reply = ReplyType::OffsetData;
    for len in [limit + 1, 1 << 20, u64::from(u32::MAX)] {
        let too_long = Err(Error::ChunkTooLong { reply, len, limit });
        let announced = u32::try_from(len).expect("a length of 32 bits");
        assert_eq!(read(|to| to.announce(D, 1, announced)), too_long);
    }
}

#[test]
fn a_chunk_where_another_was_ends_the_session() {
    // C-226, C-227, H-022
    for (first, second) in [
        ((0, 512), (511, 512)),
        ((0, 512), (0, 512)),
        ((512, 512), (0, 513)),
        ((256, 256), (0, 1024)),
        ((0, 1024), (1023, 1)),
    ] {
        let ((at, len), (again, len_again)) = (first, second);
        let bytes = usize::try_from(len).expect("small");
        let (hole, hole_again) = (len, len_again);
        let twice = overlap(4096 + again, len_again.into());
        let announced = 8 + len_again;
        let place = (4096 + again).to_be_bytes();
        let with_data = read(|to| {
            let second = [to.announce(0, 1, announced), place.to_vec()].concat();
            [part(to, 0, at, bytes), second].concat()
        });
        assert_eq!(with_data, twice);
        let with_holes = read(|to| {
            [
                to.hole(0, 4096 + at, hole),
                to.hole(0, 4096 + again, hole_again),
            ]
            .concat()
        });
        assert_eq!(with_holes, twice);
        let mixed =
            read(|to| [part(to, 0, at, bytes), to.hole(0, 4096 + again, hole_again)].concat());
        assert_eq!(mixed, twice);
    }
}

#[test]
fn a_hole_has_its_length() {
    // C-227
    for len in [0, 8, 11, 13] {
        let reply = ReplyType::OffsetHole;
        let bad = Err(Error::ChunkLength {
            reply,
            len: len.into(),
        });
        assert_eq!(read(|to| to.announce(D, 2, len)), bad);
    }
    let offset = 4096;
    assert_eq!(
        read(|to| to.hole(D, offset, 0)),
        Err(Error::EmptyHole { offset })
    );
}

#[test]
fn a_hole_reads_as_zeroes_even_in_a_buffer_that_was_used_before() {
    // C-228
    let mut expected = content(4096, 1024);
    expected[256..768].fill(0);
    let outcome = read(|to| {
        let hole = to.hole(0, 4096 + 256, 512);
        [part(to, 0, 768, 256), hole, part(to, D, 0, 256)].concat()
    });
    assert_eq!(outcome, only(Answer::Data(expected)));
    let all = read(|to| to.hole(D, 4096, 1024));
    assert_eq!(all, only(Answer::Data(vec![0; 1024])));
}

#[test]
fn a_read_that_left_a_byte_out_is_no_success() {
    // C-230, H-026
    assert_eq!(read(|to| part(to, D, 1, 1023)), missing(1));
    assert_eq!(read(|to| part(to, D, 0, 1023)), missing(1));
    let gap = read(|to| [part(to, 0, 0, 500), part(to, 0, 501, 523), to.none()].concat());
    assert_eq!(gap, missing(1));
    assert_eq!(read(|to| to.none()), missing(1024));
    assert_eq!(read(|to| to.hole(D, 4096, 1023)), missing(1));
    // The reply has the requested number of bytes, but one of them elsewhere.
    let twice = read(|to| [part(to, 0, 0, 512), part(to, 0, 513, 511), to.none()].concat());
    assert_eq!(twice, missing(1));
}

#[test]
fn an_unfragmented_read_comes_in_one_piece() {
    // C-231
    let data = |to: Replier, flags, at: u64, len| to.data(flags, at, &content(at, len));
    let all = only(Answer::Data(content(0, 1024)));
    assert_eq!(read_df(|to| data(to, D, 0, 1024)), all);
    assert_eq!(
        read_df(|to| [data(to, 0, 0, 1024), to.none()].concat()),
        all
    );
    let failed = read_df(|to| [data(to, 0, 0, 1024), to.error_at(D, 5, "", 512)].concat());
    assert_eq!(errno_of(&failed), 5);
    let two = read_df(|to| [data(to, 0, 0, 512), data(to, D, 512, 512)].concat());
    assert_eq!(two, Err(Error::Fragmented));
    let hole = read_df(|to| [data(to, 0, 0, 512), to.hole(D, 512, 512)].concat());
    assert_eq!(hole, Err(Error::Fragmented));
}

#[test]
fn an_unfragmented_hole_is_all_of_the_read() {
    // C-232
    let all = read_df(|to| to.hole(D, 0, 1024));
    assert_eq!(all, only(Answer::Data(vec![0; 1024])));
    assert_eq!(read_df(|to| to.hole(0, 0, 512)), Err(Error::Fragmented));
}

#[test]
fn a_read_that_cannot_be_in_one_piece_fails_alone() {
    // C-174, C-233
    for entry in Entry::chunked() {
        let outcome = entry.read_df(65536, |to| to.error(D, 75, "too long"));
        assert_eq!(errno_of(&outcome), 75);
    }
}

#[test]
fn a_chunk_may_exceed_the_maximum_payload_by_its_fixed_fields() {
    // C-125, C-127
    for (_, tolerance) in PROFILES {
        for entry in Entry::chunked() {
            let entry = entry.block_sizes(1, 512, 65536).tolerance(tolerance);
            let outcome = entry.read(0, 131_072, |to| {
                let first = to.data(0, 0, &content(0, 65536));
                let second = to.data(D, 65536, &content(65536, 65536));
                [first, second].concat()
            });
            assert_eq!(outcome, only(Answer::Data(content(0, 131_072))));
        }
    }
}

#[test]
fn a_chunk_longer_than_the_servers_own_maximum_is_taken_except_in_strict_mode() {
    // C-127, C-234
    for entry in Entry::chunked() {
        let entry = entry.size(1 << 30).block_sizes(1, 512, 65536);
        for len in [65537_u32, 1 << 17] {
            let (bytes, long) = (usize::try_from(len).expect("small"), u64::from(len));
            let reply = |to: Replier| to.data(D, 0, &content(0, bytes));
            let lenient = [DEFAULT, Tolerance::LENIENT];
            for entry in lenient.map(|tolerance| entry.clone().tolerance(tolerance)) {
                let outcome = entry.read(0, long, reply);
                assert_eq!(outcome, only(Answer::Data(content(0, bytes))));
            }
            let strict = entry
                .clone()
                .tolerance(Tolerance::STRICT)
                .read(0, long, reply);
            let too_long = Error::ChunkTooLong {
                reply: ReplyType::OffsetData,
                len: long + 8,
                limit: 65544,
            };
            assert_eq!(strict, Err(too_long));
        }
    }
}

#[test]
fn content_at_the_place_of_an_error_ends_the_session_and_elsewhere_it_does_not() {
    // C-223, C-226
    let at = |offset: u64| 4096 + offset;
    let inside = read(|to| [to.error_at(0, 5, "", at(512)), part(to, D, 0, 1024)].concat());
    assert_eq!(inside, overlap(4096, 1024));
    let beside = read(|to| [to.error_at(0, 5, "", at(512)), part(to, D, 0, 512)].concat());
    assert_eq!(errno_of(&beside), 5);
    let before = read(|to| [part(to, 0, 0, 1024), to.error_at(D, 5, "", at(512))].concat());
    assert_eq!(errno_of(&before), 5);
}

#[test]
fn an_error_makes_a_read_fail_however_much_data_came() {
    // C-209, C-221
    let after = read(|to| [part(to, 0, 0, 1024), to.error(D, 5, "")].concat());
    assert_eq!(errno_of(&after), 5);
    let before = read(|to| [to.error(0, 5, ""), part(to, D, 0, 1024)].concat());
    assert_eq!(errno_of(&before), 5);
    let hole = read(|to| [to.error(0, 5, ""), to.hole(D, 4096, 1024)].concat());
    assert_eq!(errno_of(&hole), 5);
}

#[test]
fn replies_with_each_others_cookies_end_up_in_each_others_buffers_and_nowhere_else() {
    // H-018
    let outcome = Entry::structured().always(|session| {
        let [a, b] = [0, 1].map(|_| session.read(0, 512));
        session
            .says(b.data(D, 0, &[1; 512]))
            .says(a.data(D, 0, &[2; 512]))
            .settled()
    });
    let expected = vec![
        (1, Answer::Data(vec![1; 512])),
        (0, Answer::Data(vec![2; 512])),
    ];
    assert_eq!(outcome, Ok(expected));
}

#[test]
fn an_unfragmented_read_may_break_off_where_the_error_is() {
    // C-231
    let failed =
        read_df(|to| [to.data(0, 0, &content(0, 512)), to.error_at(D, 5, "", 512)].concat());
    assert_eq!(errno_of(&failed), 5);
    let short = read_df(|to| [to.data(0, 0, &content(0, 512)), to.none()].concat());
    assert_eq!(short, missing(512));
}

#[test]
fn a_server_that_announced_no_maximum_payload_cannot_exceed_it() {
    // C-127, C-234
    let limits = Limits {
        payload: 64 << 20,
        ..Limits::default()
    };
    let entry = Entry::structured().size(1 << 30).limits(limits);
    let mut session = entry.tolerance(Tolerance::STRICT).enter(Delivery::Lent);
    let to = session.read(0, 40 << 20);
    session.says(to.announce(D, 1, 8 + (40 << 20)));
    assert_eq!(session.replies(), Ok(vec![]));
}
