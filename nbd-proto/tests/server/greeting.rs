//! The greeting and the client's flags.

use crate::support::*;
use bytes::BytesMut;
use nbd_proto::{Error, ExportInfo, TransmissionFlags, server, server::Limits};

#[test]
fn the_greeting_is_18_bytes_with_the_offered_flags() {
    // S-004, S-005, S-006
    let greet = |server: &Server| run(server, b"").sent;
    assert_eq!(greet(&Server::default()), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(greet(&Server::forced()), b"NBDMAGICIHAVEOPT\0\x03");
    let modest = Server::default().config(|config| config.no_zeroes = false);
    assert_eq!(greet(&modest), b"NBDMAGICIHAVEOPT\0\x01");
    let modest = modest.config(|config| config.fixed_newstyle = false);
    assert_eq!(greet(&modest), b"NBDMAGICIHAVEOPT\0\0");
}

#[test]
fn a_client_flag_that_was_not_offered_ends_the_connection() {
    // S-009, S-010, H-066
    for flags in [4u32, 0xffff_ffff, 0x8000_0003] {
        for server in [Server::default(), Server::forced()] {
            let ran = run(&server, &[&flags.to_be_bytes()[..], &opt(3, b"")].concat());
            let error = Error::ClientFlags {
                got: flags,
                offered: 3,
            };
            assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
        }
    }
    let modest = Server::default().config(|config| config.no_zeroes = false);
    let error = Error::ClientFlags { got: 3, offered: 1 };
    assert_eq!(run(&modest, &options(&[])).end, End::Dead(error));
}

#[test]
fn a_client_without_fixed_newstyle_has_nothing_but_export_name() {
    // S-011, S-029
    for code in (2..13).chain([99]) {
        let ran = run(&Server::default(), &script(&[vec![0; 4], opt(code, b"")]));
        let error = Error::OptionNeedsFixedNewstyle {
            option: code.into(),
        };
        assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
    }
    let ran = run(&Server::default(), &script(&[vec![0; 4], opt(1, b"disk")]));
    assert_eq!((ran.end, ran.sent.len()), (End::Idle, 18 + 134));
}

#[test]
fn the_answer_to_export_name_has_zeroes_unless_the_client_said_no() {
    // S-007, S-012, S-084, S-087
    let server = Server::with(
        Export::new("disk")
            .size(0x0102_0304_0506_0708)
            .flags(0x0105),
    );
    let block = [1, 2, 3, 4, 5, 6, 7, 8, 1, 5];
    let long = run(&server, &script(&[vec![0, 0, 0, 1], opt(1, b"disk")]));
    assert_eq!(long.sent[18..], [&block[..], &[0; 124]].concat());
    let short = run(&server, &script(&[vec![0, 0, 0, 3], opt(1, b"disk")]));
    assert_eq!(short.sent[18..], block);
    // S-081: transmission follows.
    let read = req(0, 0, 9, 0, 4, b"");
    let ran = run(&server, &script(&[vec![0, 0, 0, 1], opt(1, b"disk"), read]));
    assert_eq!(ran.said, ["export 72623859790382856 0x0105", "#9 ok 4"]);
}

#[test]
fn the_end_of_a_client_between_messages_is_no_loss() {
    // S-013, H-041
    assert_eq!(run(&Server::default(), b"").end, End::Idle);
    assert_eq!(run(&Server::default(), &[0, 0, 0]).end, End::Inside);
    assert_eq!(run(&Server::forced(), &[0, 0, 0]).end, End::Inside);
    assert_eq!(run(&Server::default(), &options(&[])).end, End::Idle);
    let half = &options(&[opt(3, b"")])[..12];
    assert_eq!(run(&Server::default(), half).end, End::Inside);
    assert_eq!(run(&Server::forced(), half).end, End::Inside);
}

#[test]
fn an_oldstyle_client_is_in_transmission_at_once() {
    // S-006, S-008
    let mut export = ExportInfo::new(0x1000, TransmissionFlags::SEND_DF);
    export.flags = export.flags.with(TransmissionFlags::READ_ONLY);
    let mut out = BytesMut::new();
    let mut transmission = server::oldstyle(&Default::default(), &export, &mut out);
    let mut expected = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53".to_vec();
    expected.extend([0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 3]);
    expected.extend([0; 124]);
    assert_eq!(out, expected);
    assert_eq!(out.len(), 152);
    let mut sent = Vec::new();
    let receipt = plain(
        request(&mut transmission, &req(0, 0, 1, 8, 2, b"")),
        &mut sent,
    );
    transmission.retire(receipt);
    assert_eq!(sent, b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01\x08\x09");
}

#[test]
fn the_limits_are_those_of_the_document() {
    // B-002, B-003, B-004, B-005, B-006, B-011, B-012
    let limits = Limits::default();
    assert_eq!(
        (limits.option_data, limits.option_drain),
        (64 << 10, 1 << 20)
    );
    assert_eq!((limits.meta_queries, limits.info_requests), (256, 256));
    assert_eq!(
        (limits.options, limits.payload, limits.accepted),
        (256, 32 << 20, 16)
    );
}
