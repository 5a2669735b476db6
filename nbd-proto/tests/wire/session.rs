//! A whole session with extended headers, for the payloads that have no type of their own.

use crate::hex;
use bytes::{Buf, BufMut, BytesMut};
use nbd_proto::{
    ContextName, ExportName, Frame, Phase, Step,
    client::{
        Config, ContextExtents, Event, Go, GoOutcome, Greeted, Handshake, Outcome, Payload,
        Transmission, WholeReply,
    },
    meta::Extent,
};

/// The outcome of a phase that ends with exactly these bytes.
fn answer<P: Phase>(phase: P, transcript: &str) -> P::Next {
    let bytes = hex(transcript);
    match phase.feed(&bytes, &mut BytesMut::new()) {
        Ok((used, Step::Done(next))) => {
            assert_eq!(used, bytes.len());
            next
        }
        Ok((_, Step::More(_))) => panic!("the phase waits for more bytes"),
        Err(error) => panic!("{error}"),
    }
}

fn sent(frame: Frame<impl Buf>) -> Vec<u8> {
    let mut sent = Vec::new();
    sent.put(frame);
    sent
}

/// Enters `disk` with extended headers and `base:allocation` as context 5.
fn enter(out: &mut BytesMut) -> Transmission {
    let disk = ExportName::new("disk").expect("a legal name");
    let handshake = Handshake::new(Config::default());
    let Greeted::FixedNewstyle(options) = answer(handshake, "'NBDMAGIC' 'IHAVEOPT' 0003") else {
        panic!("this is fixed newstyle");
    };
    let pending = options.extended_headers(out).expect("asked once");
    assert_eq!(out.split(), hex("'IHAVEOPT' 0000 000b 0000 0000"));
    let options = answer(pending, "0003 e889 0455 65a9 0000 000b 0000 0001 0000 0000").options;
    let base = [ContextName::base_allocation()];
    let pending = options
        .set_meta_context(&disk, &base, out)
        .expect("chunks were agreed on");
    let asked = "'IHAVEOPT' 0000 000a 0000 001f \
                 0000 0004 'disk' 0000 0001 0000 000f 'base:allocation'";
    assert_eq!(out.split(), hex(asked));
    let selected = "0003 e889 0455 65a9 0000 000a 0000 0004 0000 0013 \
                    0000 0005 'base:allocation' \
                    0003 e889 0455 65a9 0000 000a 0000 0001 0000 0000";
    let options = answer(pending, selected).options;
    let pending = options.go(Go::new(disk), out);
    let go = "'IHAVEOPT' 0000 0007 0000 000c 0000 0004 'disk' 0001 0003";
    assert_eq!(out.split(), hex(go));
    let entered = "0003 e889 0455 65a9 0000 0007 0000 0003 0000 000c \
                   0000 0000 0000 0010 0000 1001 \
                   0003 e889 0455 65a9 0000 0007 0000 0001 0000 0000";
    match answer(pending, entered) {
        GoOutcome::Accepted(transmission) => transmission,
        refused @ GoOutcome::Refused(..) => panic!("{refused:?}"),
    }
}

#[test]
fn a_filter_of_block_status_and_its_answer() {
    let mut transmission = enter(&mut BytesMut::new());
    let status = transmission.block_status_of(&[5], 4096, 8192, Default::default());
    let (cookie, frame) = status.expect("a command that makes sense");
    let asked = "21e4 1c71 0020 0007 0000 0001 0000 0000 \
                 0000 0000 0000 1000 0000 0000 0000 000c \
                 0000 0000 0000 2000 0000 0005";
    assert_eq!(sent(frame), hex(asked));
    let status = hex("6e8a 278c 0001 0006 0000 0001 0000 0000 \
                    0000 0000 0000 1000 0000 0000 0000 0018 \
                    0000 0005 0000 0001 0000 0000 0000 2000 0000 0000 0000 0003");
    let mut at = 0;
    let event = loop {
        let fed = transmission.feed(&status[at..]).expect("nothing is wrong");
        at += fed.used;
        if let Some(event) = fed.event {
            break event;
        }
    };
    let extents = vec![Extent {
        len: 8192,
        status: 3,
    }];
    let outcome = Outcome::Extents(vec![ContextExtents { id: 5, extents }]);
    assert_eq!(
        (event, at),
        (Event::Complete { cookie, outcome }, status.len())
    );
}

#[test]
fn data_and_a_hole() {
    let mut transmission = enter(&mut BytesMut::new());
    let read = transmission.read(512, 8, Default::default());
    let (cookie, frame) = read.expect("a command that makes sense");
    let asked = "21e4 1c71 0000 0000 0000 0001 0000 0000 \
                 0000 0000 0000 0200 0000 0000 0000 0008";
    assert_eq!(sent(frame), hex(asked));
    let data = hex("6e8a 278c 0000 0001 0000 0001 0000 0000 \
                    0000 0000 0000 0200 0000 0000 0000 000c \
                    0000 0000 0000 0204");
    let fed = transmission.feed(&data).expect("nothing is wrong");
    assert_eq!((fed.used, fed.payload, fed.event), (data.len(), None, None));
    let fed = transmission.feed(b"abcd").expect("nothing is wrong");
    let payload = |range| Payload { cookie, range };
    assert_eq!(
        (fed.used, fed.payload, fed.event),
        (4, Some(payload(4..8)), None)
    );
    let hole = hex("6e8a 278c 0001 0002 0000 0001 0000 0000 \
                    0000 0000 0000 0200 0000 0000 0000 000c \
                    0000 0000 0000 0200 0000 0004");
    let fed = transmission.feed(&hole).expect("nothing is wrong");
    let event = Event::Hole {
        payload: payload(0..4),
        done: true,
    };
    assert_eq!(
        (fed.used, fed.payload, fed.event),
        (hole.len(), None, Some(event))
    );
}

#[test]
fn a_header_and_its_data_are_taken_at_once() {
    let mut transmission = enter(&mut BytesMut::new());
    let read = transmission.read(512, 8, Default::default());
    let (cookie, _) = read.expect("a command that makes sense");
    let mut reply = hex("6e8a 278c 0001 0001 0000 0001 0000 0000 \
                         0000 0000 0000 0200 0000 0000 0000 0010 \
                         0000 0000 0000 0200");
    reply.extend(b"abcdefgh and more");
    let fed = transmission.feed(&reply).expect("nothing is wrong");
    let payload = Some(Payload {
        cookie,
        range: 0..8,
    });
    let event = Some(Event::Complete {
        cookie,
        outcome: Outcome::Done,
    });
    assert_eq!((fed.used, fed.payload, fed.event), (48, payload, event));
}

#[test]
fn a_reply_in_one_piece_is_taken_in_without_its_payload() {
    let mut transmission = enter(&mut BytesMut::new());
    let read = transmission.read(512, 8, Default::default());
    let (read, _) = read.expect("a command that makes sense");
    let write = transmission.write(512, &b"12345678"[..], Default::default());
    let (write, _) = write.expect("a command that makes sense");
    let data = hex("6e8a 278c 0001 0001 0000 0001 0000 0000 \
                    0000 0000 0000 0200 0000 0000 0000 0010 \
                    0000 0000 0000 0200");
    let none = hex("6e8a 278c 0001 0000 0000 0001 0000 0001 \
                    0000 0000 0000 0200 0000 0000 0000 0000");
    assert_eq!(transmission.whole_reply(&data, 47, None), None);
    assert_eq!(transmission.whole_reply(&data[..39], 48, None), None);
    assert_eq!(transmission.whole_reply(&data, 48, Some(write)), None);
    assert_eq!(transmission.in_flight(), 2);
    let whole = |cookie, header, payload| {
        Some(WholeReply {
            cookie,
            header,
            payload,
        })
    };
    let taken = transmission.whole_reply(&data, 48, Some(read));
    assert_eq!(taken, whole(read, 40, 8));
    let taken = transmission.whole_reply(&none, 32, None);
    assert_eq!(taken, whole(write, 32, 0));
    assert_eq!(transmission.in_flight(), 0);
    assert_eq!(transmission.whole_reply(&none, 32, None), None);
}

#[test]
fn a_read_is_expected_as_a_whole_as_long_as_nothing_of_it_has_come() {
    let mut transmission = enter(&mut BytesMut::new());
    let read = transmission.read(512, 8, Default::default());
    let (cookie, _) = read.expect("a command that makes sense");
    let payload = |range| Some(Payload { cookie, range });
    let whole = hex("6e8a 278c 0001 0001 0000 0001 0000 0000 \
                     0000 0000 0000 0200 0000 0000 0000 0010 \
                     0000 0000 0000 0200");
    let half = hex("6e8a 278c 0000 0001 0000 0001 0000 0000 \
                    0000 0000 0000 0200 0000 0000 0000 000c \
                    0000 0000 0000 0204");
    assert_eq!(transmission.before_payload(cookie), Some(whole.len()));
    assert_eq!(transmission.announced(&whole), payload(0..8));
    assert_eq!(transmission.announced(&half), payload(4..8));
    assert_eq!(transmission.announced(&whole[..39]), None);
    assert_eq!(transmission.announced(&[&whole[..], b"a"].concat()), None);
    // That read no bytes.
    let fed = transmission.feed(&half[..10]).expect("nothing is wrong");
    assert_eq!(fed.used, 10);
    assert_eq!(transmission.before_payload(cookie), None);
    let fed = transmission.feed(&half[10..]).expect("nothing is wrong");
    assert_eq!(fed.used, 30);
    assert_eq!(transmission.next_payload(), payload(4..8));
    assert_eq!(transmission.before_payload(cookie), None);
    let fed = transmission.feed(b"efgh").expect("nothing is wrong");
    assert_eq!((fed.used, fed.payload), (4, payload(4..8)));
    // Here a header comes next, but the bytes that have come would be overwritten.
    assert_eq!(transmission.before_payload(cookie), None);
}
