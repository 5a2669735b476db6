//! The knowledge that a driver has of a reply before it takes its bytes in: the place of a payload,
//! and whether the reply is a whole one.

use crate::common::{
    bytes::*,
    reply::Replier,
    session::{Entry, Session},
    wire::Delivery,
};
use nbd_proto::{
    CommandFlags, Error, HeaderStyle,
    client::{Cookie, Limits, Payload, Transmission, WholeReply},
    wire::ReplyType,
};

const DATA: [u8; 100] = [7; 100];

/// The number of bytes before the payload of a read that is answered in one piece.
fn before(mode: HeaderStyle) -> usize {
    match mode {
        HeaderStyle::Simple => 16,
        HeaderStyle::Structured => 28,
        HeaderStyle::Extended => 40,
    }
}

/// The whole reply to a read at 512.
fn whole(mode: HeaderStyle, to: Replier) -> Vec<u8> {
    if mode == HeaderStyle::Simple {
        [&to.simple(0)[..], &DATA].concat()
    } else {
        to.data(D, 512, &DATA)
    }
}

fn taken_whole(cookie: Cookie, header: usize, payload: usize) -> Option<WholeReply> {
    Some(WholeReply {
        cookie,
        header,
        payload,
    })
}

/// A session with a read of 100 bytes at 512, which no reply to a read answers in part.
fn reading(entry: &Entry) -> (Session, Cookie, Replier) {
    let mut session = entry.enter(Delivery::Whole);
    let to = session.read(512, 100);
    let cookie = session.cookie();
    (session, cookie, to)
}

#[test]
fn a_payload_is_announced_by_all_bytes_before_it_and_by_no_others() {
    for entry in Entry::every_mode() {
        let (mut session, cookie, to) = reading(&entry);
        let before = before(entry.mode);
        let reply = whole(entry.mode, to);
        let place = Payload {
            cookie,
            range: 0..100,
        };
        let transmission = &mut session.transmission;
        assert_eq!(transmission.before_payload(cookie), Some(before));
        assert_eq!(transmission.next_payload(), None);
        for n in 0..=before + 1 {
            let expected = (n == before).then(|| place.clone());
            assert_eq!(transmission.announced(&reply[..n]), expected, "{n} bytes");
        }
        // Behind it, nothing is announced before the payload has come.
        assert_eq!(transmission.feed(&reply[..before]).unwrap().used, before);
        assert_eq!(transmission.next_payload(), Some(place));
        assert_eq!(transmission.before_payload(cookie), None);
        assert_eq!(transmission.announced(&reply[..before]), None);
        transmission.abandon(cookie);
        assert_eq!(transmission.next_payload(), None);
    }
}

#[test]
fn a_part_of_a_payload_is_announced_with_its_place() {
    for entry in Entry::chunked() {
        let (mut session, cookie, to) = reading(&entry);
        let before = before(entry.mode);
        let announced = |chunk: Vec<u8>| session.transmission.announced(&chunk[..before]);
        let place = Payload {
            cookie,
            range: 28..58,
        };
        assert_eq!(announced(to.data(0, 540, &DATA[..30])), Some(place));
        assert_eq!(announced(to.data(0, 511, &DATA[..30])), None, "too early");
        assert_eq!(announced(to.data(0, 540, &[])), None, "no data");
        assert_eq!(announced(to.hole(0, 512, 100)), None);
        assert_eq!(announced(to.error(D, 5, "a text of some length")), None);
        // A read that has been answered in part would be overwritten.
        session.says(to.data(0, 512, &DATA[..10]));
        assert_eq!(session.replies(), Ok(vec![]));
        assert_eq!(session.transmission.before_payload(cookie), None);
    }
}

#[test]
fn nothing_but_a_read_has_a_payload() {
    for entry in Entry::every_mode() {
        let (mut session, cookie, to) = reading(&entry);
        let write = session.send(|t| t.write(512, &[7; 512][..], CommandFlags::NONE));
        let transmission = &session.transmission;
        assert_eq!(transmission.announced(&write.at(512).ok()), None);
        assert_eq!(transmission.announced(&to.simple(5)), None);
        let stranger = Replier::new(entry.mode, to.cookie ^ (1 << 32)).at(512);
        let reply = whole(entry.mode, stranger);
        assert_eq!(transmission.announced(&reply[..before(entry.mode)]), None);
        session.says(whole(entry.mode, to));
        assert_eq!(session.replies().map(|answers| answers.len()), Ok(1));
        assert_eq!(session.transmission.before_payload(cookie), None, "over");
    }
}

#[test]
fn a_whole_reply_is_taken_once_all_of_it_is_there() {
    for entry in Entry::every_mode() {
        let mut session = entry.enter(Delivery::Whole);
        // The second request has the place of the first.
        for _ in 0..2 {
            let to = session.read(512, 100);
            let (cookie, header) = (session.cookie(), before(entry.mode));
            let reply = whole(entry.mode, to);
            let transmission = &mut session.transmission;
            let n = reply.len();
            assert_eq!(transmission.whole_reply(&reply, n - 1, None), None);
            assert_eq!(
                transmission.whole_reply(&reply[..header - 1], n, None),
                None
            );
            let taken = transmission.whole_reply(&reply[..header], n, Some(cookie));
            assert_eq!(taken, taken_whole(cookie, header, 100));
            assert_eq!(transmission.in_flight(), 0);
        }
        let to = session.send(Transmission::flush);
        let (cookie, reply) = (session.cookie(), to.ok());
        let taken = session.transmission.whole_reply(&reply, reply.len(), None);
        assert_eq!(taken, taken_whole(cookie, reply.len(), 0));
    }
}

/// No such reply is taken at once, and none of its bytes are.
fn is_not_whole(entry: &Entry, reply: impl Fn(Replier) -> Vec<u8>) {
    let (mut session, cookie, to) = reading(entry);
    let reply = reply(to);
    let taken = session.transmission.whole_reply(&reply, reply.len(), None);
    assert_eq!(taken, None);
    assert_eq!(session.transmission.in_flight(), 1);
    assert!(session.transmission.before_payload(cookie).is_some());
}

#[test]
fn only_success_in_one_piece_is_a_whole_reply() {
    for entry in Entry::every_mode() {
        is_not_whole(&entry, |to| to.fail(5));
        is_not_whole(&entry, |to| {
            whole(
                entry.mode,
                Replier::new(entry.mode, to.cookie ^ (1 << 32)).at(512),
            )
        });
        // It is that of another request than the driver has prepared for.
        let (mut session, cookie, to) = reading(&entry);
        let other = session.read(512, 100);
        let reply = whole(entry.mode, other);
        let transmission = &mut session.transmission;
        let taken = transmission.whole_reply(&reply, reply.len(), Some(cookie));
        assert_eq!(taken, None);
        // It was given up.
        transmission.abandon(cookie);
        let reply = whole(entry.mode, to);
        assert_eq!(transmission.whole_reply(&reply, reply.len(), None), None);
    }
    for entry in Entry::chunked() {
        is_not_whole(&entry, |to| to.data(0, 512, &DATA));
        is_not_whole(&entry, |to| to.data(D, 513, &DATA));
        is_not_whole(&entry, |to| to.data(D, 512, &DATA[..99]));
        is_not_whole(&entry, |to| to.data(D, 512, &[7; 101]));
        is_not_whole(&entry, |to| to.hole(D, 512, 100));
        is_not_whole(&entry, |to| to.chunk(D, 0x7777, data_at(512, &DATA)));
        is_not_whole(&entry, |to| [&to.simple(0)[..], &DATA].concat());
        // A write has no data.
        let mut session = entry.enter(Delivery::Whole);
        let to = session.send(|t| t.write(512, &[7; 512][..], CommandFlags::NONE));
        for reply in [to.at(512).chunk(D, 0, [7]), to.at(512).data(D, 512, &DATA)] {
            let taken = session.transmission.whole_reply(&reply, reply.len(), None);
            assert_eq!(taken, None);
        }
        // The answer to a block status is its chunks.
        let mut session = entry
            .clone()
            .context(1, "base:allocation")
            .enter(Delivery::Whole);
        let to = session.send(|t| t.block_status(0, 512, CommandFlags::NONE));
        let reply = to.none();
        assert_eq!(
            session.transmission.whole_reply(&reply, reply.len(), None),
            None
        );
        // More than the server's maximum, which is for `feed` to judge.
        let entry = entry.block_sizes(1, 512, 4096);
        let mut session = entry.enter(Delivery::Whole);
        for (len, whole) in [(4096, true), (4097, false)] {
            let to = session.read(0, len);
            let reply = to.data(D, 0, &vec![7; usize::try_from(len).unwrap()]);
            let taken = session.transmission.whole_reply(&reply, reply.len(), None);
            assert_eq!(taken.is_some(), whole, "{len}");
        }
    }
    // The offset of the request is in the header, too.
    is_not_whole(&Entry::extended(), |to| to.at(0).data(D, 512, &DATA));
}

#[test]
fn a_reply_is_not_whole_if_a_part_of_it_has_come() {
    for entry in Entry::chunked() {
        let parts: [fn(Replier) -> Vec<u8>; 3] = [
            |to| to.data(0, 512, &DATA[..10]),
            |to| to.error(0, 5, "no"),
            |to| to.hole(0, 512, 100),
        ];
        for part in parts {
            let (mut session, _, to) = reading(&entry);
            assert_eq!(session.says(part(to)).replies(), Ok(vec![]));
            let reply = whole(entry.mode, to);
            let taken = session.transmission.whole_reply(&reply, reply.len(), None);
            assert_eq!(taken, None);
        }
        // In the middle of a chunk nothing begins.
        let (mut session, _, to) = reading(&entry);
        let reply = whole(entry.mode, to);
        let _ = session.transmission.feed(&reply[..30]).unwrap();
        let taken = session.transmission.whole_reply(&reply, reply.len(), None);
        assert_eq!(taken, None);
    }
}

#[test]
fn nothing_is_taken_after_a_violation() {
    for entry in Entry::every_mode() {
        let (mut session, _, to) = reading(&entry);
        let error = session.transmission.feed(&[0; 16]).unwrap_err();
        assert!(matches!(error, Error::ReplyMagic { got: 0 }));
        let reply = whole(entry.mode, to);
        let taken = session.transmission.whole_reply(&reply, reply.len(), None);
        assert_eq!(taken, None);
    }
}

#[test]
fn limits_of_lists_and_texts_are_reported_as_lengths() {
    // B-014, B-017
    let limits = Limits {
        extents: 2,
        unknown_error: 100,
        ..Limits::default()
    };
    for (entry, fixed, each) in [(Entry::structured(), 4, 8), (Entry::extended(), 8, 16)] {
        let entry = entry.limits(limits).context(1, "base:allocation");
        let list = |count| {
            let extents = [(512, 0), (512, 3), (512, 0)];
            entry.block_status(0, 4096, CommandFlags::NONE, |to| {
                to.extents(D, 1, &extents[..count])
            })
        };
        assert!(list(2).is_ok());
        let too_long = list(3).unwrap_err();
        let Error::ChunkTooLong { len, limit, .. } = too_long else {
            panic!("{too_long:?}");
        };
        assert_eq!((len, limit), (fixed + 3 * each, fixed + 2 * each));
        let text = |len: u32| entry.write(|to| to.error(D, 28, &"x".repeat(len as usize)));
        assert!(text(4096).is_ok());
        let announced = entry.write(|to| to.announce(D, 0x8001, 6 + 4105));
        let (reply, len, limit) = (ReplyType::Error, 6 + 4105, 14 + 4096);
        assert_eq!(announced, Err(Error::ChunkTooLong { reply, len, limit }));
    }
}

#[test]
fn what_was_tolerated_is_what_happened() {
    for entry in Entry::chunked() {
        let tolerated = |read: bool, error: u32| {
            let mut session = entry.enter(Delivery::Whole);
            let to = if read {
                session.read(512, 100)
            } else {
                session.send(Transmission::flush)
            };
            session.says(to.simple(error));
            session
                .replies()
                .map(|_| session.transmission.tolerated().simple_error_to_read)
        };
        if entry.mode == HeaderStyle::Structured {
            assert_eq!(tolerated(true, 5), Ok(true));
            assert_eq!(tolerated(false, 5), Ok(false));
            assert_eq!(tolerated(false, 0), Ok(false));
        }
    }
    let mut session = Entry::simple().enter(Delivery::Whole);
    let to = session.read(512, 100);
    session.says(to.simple(5));
    assert!(session.replies().is_ok());
    assert!(!session.transmission.tolerated().simple_error_to_read);
}

#[test]
fn the_longest_request_is_whole_blocks() {
    for (entry, field) in [
        (Entry::structured(), u64::from(u32::MAX)),
        (Entry::extended(), u64::MAX),
    ] {
        let session = entry.block_sizes(512, 4096, 65536).enter(Delivery::Whole);
        let trim = session.transmission.max_len(nbd_proto::Command::Trim);
        assert_eq!(trim, field - 511);
        let write = session.transmission.max_len(nbd_proto::Command::Write);
        assert_eq!(write, 65536);
    }
}

#[test]
fn a_cookie_is_shown_as_it_is_on_the_wire() {
    let (_, cookie, to) = reading(&Entry::simple());
    assert_eq!(format!("{cookie:?}"), format!("Cookie({:#x})", to.cookie));
}
