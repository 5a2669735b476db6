//! `NBD_OPT_LIST`.

use crate::common::{
    bytes::*,
    session::{export, negotiate},
};
use nbd_proto::{
    Error, NameError,
    client::ListEntry,
    wire::{OptionCode, OptionReplyCode},
};

/// The entries of a list, and whether the next option works.
fn list(replies: &[u8]) -> Result<Vec<ListEntry>, Error> {
    negotiate(|wire, options| {
        let pending = options.list(&mut wire.out);
        match wire.says(replies).says(ack(3)).run(pending)? {
            nbd_proto::Step::Done(settled) => {
                let pending = settled.options.list(&mut wire.out);
                assert!(wire.answer(pending, ack(3)).is_ok());
                Ok(settled.result.expect("an ACK is no refusal"))
            }
            nbd_proto::Step::More(_) => panic!("an ACK ends a list"),
        }
    })
}

fn entry(name: &str, description: &str) -> ListEntry {
    ListEntry {
        name: Ok(export(name)),
        description: description.into(),
    }
}

fn malformed(len: u32) -> Result<Vec<ListEntry>, Error> {
    Err(Error::MalformedOptionReply {
        option: OptionCode::List,
        reply: OptionReplyCode::Server,
        len,
    })
}

#[test]
fn the_name_of_an_export_ends_where_its_description_starts() {
    // C-105
    let replies = [
        server(b"disk", b"A nice description"),
        server(b"", b""),
        server("grün".as_bytes(), "schön".as_bytes()),
    ];
    let expected = vec![
        entry("disk", "A nice description"),
        entry("", ""),
        entry("grün", "schön"),
    ];
    assert_eq!(list(&replies.concat()), Ok(expected));
    assert_eq!(list(&[]), Ok(vec![]));
}

#[test]
fn a_name_that_does_not_fit_its_reply_ends_the_session() {
    // C-104, H-009
    assert_eq!(list(&rep(3, 2, [])), malformed(0));
    assert_eq!(list(&rep(3, 2, [0, 0, 0])), malformed(3));
    assert_eq!(list(&rep(3, 2, b"\0\0\0\x09ab")), malformed(6));
    assert_eq!(list(&rep(3, 2, b"\xff\xff\xff\xffab")), malformed(6));
    assert_eq!(list(&rep(3, 2, b"\0\0\0\x03ab")), malformed(6));
}

#[test]
fn both_strings_of_an_entry_may_be_4096_bytes_long() {
    // C-003, B-001, B-009, H-009
    let long = "x".repeat(4096);
    let both = server(long.as_bytes(), long.as_bytes());
    assert_eq!(list(&both), Ok(vec![entry(&long, &long)]));
    let longer = "x".repeat(4097);
    let len = 4 + 4097;
    assert_eq!(list(&server(longer.as_bytes(), b"")), malformed(len));
    assert_eq!(list(&server(b"", longer.as_bytes())), malformed(len));
    let len = 4 + 4096 + 4097;
    let too_long = Error::OptionReplyTooLong {
        option: OptionCode::List,
        reply: OptionReplyCode::Server,
        len,
        limit: 8196,
    };
    assert_eq!(list(&rep_header(3, 2, len)), Err(too_long));
}

#[test]
fn an_entry_without_a_legal_name_is_marked_and_text_is_made_safe_to_show() {
    // C-003, H-008
    let replies = [
        server(b"a\0b", b""),
        server(b"\xff", b"\xff\x1b[31m"),
        server("../\u{202e}%n".as_bytes(), b""),
    ];
    let entries = list(&replies.concat()).unwrap();
    assert_eq!(entries[0].name, Err(NameError::Nul { at: 1 }));
    assert_eq!(entries[1].name, Err(NameError::NotUtf8 { at: 0 }));
    assert_eq!(entries[1].description.to_string(), "\u{fffd}\\u{1b}[31m");
    let odd = entries[2].name.clone().unwrap();
    assert_eq!(odd.as_str(), "../\u{202e}%n", "a name is opaque");
    assert_eq!(odd.to_string(), "../\\u{202e}%n", "until it is shown");
}

#[test]
fn a_list_that_ends_in_an_error_has_failed() {
    // C-107
    negotiate(|wire, options| {
        let pending = options.list(&mut wire.out);
        wire.says(server(b"a", b""));
        let settled = wire.answer(pending, err(3, 2, "no")).unwrap();
        assert_eq!(settled.result.unwrap_err().code, OptionReplyCode::ErrPolicy);
        let pending = settled.options.list(&mut wire.out);
        wire.says(server(b"a", b""));
        wire.answer(pending, ack(3)).unwrap().result
    })
    .unwrap();
}
