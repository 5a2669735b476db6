//! The greeting and the reply to it.

use crate::common::{
    bytes::*,
    reply::{Answer, only},
    session::{Session, export},
    wire::{Wire, always},
};
use nbd_proto::{
    Error, ExportName, HeaderStyle, NameError,
    client::{Config, Greeted, Handshake, SecureHandshake, Transmission},
};

fn greet(wire: &mut Wire, greeting: impl AsRef<[u8]>) -> Result<Greeted, Error> {
    wire.answer(Handshake::new(Config::default()), greeting)
}

/// The client's view of a greeting, and its reply.
fn answer_to(greeting: &[u8]) -> Result<(&'static str, Vec<u8>), Error> {
    always(|wire| {
        let greeted = greet(wire, greeting);
        let style = match greeted {
            Ok(Greeted::FixedNewstyle(_)) => Ok("fixed newstyle"),
            Ok(Greeted::Newstyle(_)) => Ok("newstyle"),
            Ok(Greeted::Oldstyle(_)) => Ok("oldstyle"),
            Err(error) => Err(error),
        };
        let sent = wire.sent();
        assert!(style.is_ok() || sent.is_empty(), "something was sent");
        style.map(|style| (style, sent))
    })
}

/// The same where TLS is required.
fn secure_answer_to(greeting: &[u8]) -> Result<Vec<u8>, Error> {
    always(|wire| {
        let greeted = wire.answer(SecureHandshake::new(Config::default()), greeting);
        let sent = wire.sent();
        assert!(greeted.is_ok() || sent.is_empty(), "something was sent");
        greeted.map(|_| sent)
    })
}

fn smallest_read(wire: &mut Wire, transmission: Transmission) -> bool {
    let mut session = Session::new(
        core::mem::replace(wire, Wire::new(crate::common::wire::Delivery::Whole)),
        transmission,
    );
    let to = session.read(0, 4);
    let answers = session.says(sr(0, to.cookie, b"abcd")).settled();
    answers == only(Answer::Data(b"abcd".to_vec()))
}

#[test]
fn a_peer_that_is_no_nbd_server_is_sent_nothing() {
    // C-006, C-007
    let got = u64::from_be_bytes(*b"HTTP/1.1");
    assert_eq!(answer_to(b"HTTP/1.1"), Err(Error::NotNbd { got }));
    assert_eq!(secure_answer_to(b"HTTP/1.1"), Err(Error::NotNbd { got }));

    let got = u64::from_be_bytes(*b"IHAVEOPX");
    let unknown = Err(Error::UnknownStyle { got });
    assert_eq!(answer_to(b"NBDMAGICIHAVEOPX"), unknown);
    assert_eq!(
        secure_answer_to(b"NBDMAGICIHAVEOPX").map(drop),
        unknown.map(drop)
    );
}

#[test]
fn the_client_accepts_only_offered_and_known_flags() {
    // C-013, C-014, C-015, C-016, H-012
    for (offered, style, answered) in [
        (0x0000, "newstyle", 0),
        (0x0001, "fixed newstyle", 1),
        (0x0002, "newstyle", 2),
        (0x0003, "fixed newstyle", 3),
        (0xffff, "fixed newstyle", 3),
        (0xfffc, "newstyle", 0),
    ] {
        assert_eq!(answer_to(&hello(offered)), Ok((style, cf(answered))));
    }
}

#[test]
fn an_oldstyle_export_is_entered_with_simple_replies_behind_its_152_bytes() {
    // C-008, C-010
    let works = always(|wire| {
        let Ok(Greeted::Oldstyle(oldstyle)) = greet(wire, old(1 << 20, 0x0000_8085)) else {
            panic!("this is oldstyle");
        };
        assert_eq!((wire.left(), wire.sent()), (0, vec![]));
        assert_eq!(oldstyle.export().size, 1 << 20);
        assert!(oldstyle.export().can_flush() && !oldstyle.export().can_df());
        let transmission = oldstyle.accept();
        assert_eq!(transmission.mode(), HeaderStyle::Simple);
        smallest_read(wire, transmission)
    });
    assert!(works);

    let flags = 0x0001_0003;
    assert_eq!(
        answer_to(&old(1 << 20, flags)),
        Err(Error::OldstyleFlags { flags })
    );
}

#[test]
fn the_client_may_turn_away_from_an_oldstyle_export_without_a_word() {
    // C-009
    let (style, sent) = answer_to(&old(0, 0)).unwrap();
    assert_eq!((style, sent), ("oldstyle", vec![]));
}

#[test]
fn without_fixed_newstyle_an_export_is_entered_by_its_name_or_not_at_all() {
    // C-017, C-039, C-048
    for (flags, zeroes) in [(2, 0), (0, 124)] {
        let works = always(|wire| {
            let Ok(Greeted::Newstyle(newstyle)) = greet(wire, hello(flags)) else {
                panic!("this is newstyle, but not fixed");
            };
            assert_eq!(wire.sent(), cf(flags.into()), "and all that can follow is");
            let pending = newstyle.export_name(&export("disk"), &mut wire.out);
            assert_eq!(wire.sent(), opt(1, "disk"));
            let block = [export_block(1 << 20, 5), vec![0; zeroes]].concat();
            let transmission = wire.answer(pending, block).unwrap();
            smallest_read(wire, transmission)
        });
        assert!(works);
    }
}

#[test]
fn where_tls_is_required_a_server_that_cannot_start_it_is_sent_nothing() {
    // C-011, C-018, C-048, H-015
    for greeting in [hello(0), hello(2), hello(0xfffe), old(1 << 20, 3)] {
        assert_eq!(secure_answer_to(&greeting), Err(Error::TlsImpossible));
    }
    assert_eq!(secure_answer_to(&hello(3)), Ok(cf(3)));
}

#[test]
fn a_name_is_sent_whole_or_not_at_all() {
    // C-001, C-002, B-001
    for len in [257, 4096] {
        let name = "x".repeat(len);
        let sent = always(|wire| {
            let Ok(Greeted::Newstyle(newstyle)) = greet(wire, hello(0)) else {
                panic!("this is newstyle, but not fixed");
            };
            assert_eq!(wire.sent(), cf(0));
            let _pending = newstyle.export_name(&export(&name), &mut wire.out);
            wire.sent()
        });
        assert_eq!(sent, opt(1, &name));
    }
    assert_eq!(
        ExportName::new("x".repeat(4097)),
        Err(NameError::TooLong { len: 4097 })
    );
    assert_eq!(ExportName::new("a\0b"), Err(NameError::Nul { at: 1 }));
}
