//! Options in general, and those that need no export.

use crate::support::*;
use bytes::BytesMut;
use nbd_proto::{
    Error,
    server::{Refusal, Requested},
};

fn said(server: &Server, parts: &[Vec<u8>]) -> Vec<String> {
    let ran = run(server, &options(parts));
    assert!(matches!(ran.end, End::Idle | End::Aborted), "{:?}", ran.end);
    ran.said
}

const LIST: [&str; 3] = [
    "3: SERVER \"disk\" \"about it\"",
    "3: SERVER \"b\" \"about it\"",
    "3: ACK",
];

#[test]
fn replies_echo_the_option_and_count_their_data() {
    // S-016, S-034, S-038
    let server = Server::with(Export::new("a"));
    let ran = run(&server, &options(&[opt(3, b""), opt(2, b"")]));
    let mut expected = vec![
        0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0, 0, 0, 2,
    ];
    expected.extend(b"\0\0\0\x0d\0\0\0\x01aabout it");
    expected.extend([
        0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0, 0, 0, 1,
    ]);
    expected.extend([0; 4]);
    // S-031
    expected.extend([
        0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 2, 0, 0, 0, 1,
    ]);
    expected.extend([0; 4]);
    assert_eq!(ran.sent[18..], expected);
    assert_eq!(ran.end, End::Aborted);
}

#[test]
fn a_wrong_option_magic_ends_the_connection() {
    // S-015, S-021
    let mut bad = options(&[opt(3, b"")]);
    bad[11] += 1;
    let ran = run(&Server::default(), &bad);
    let error = Error::OptionMagic {
        got: 0x4948_4156_454f_5055,
    };
    assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
}

#[test]
fn an_unknown_option_is_drained_and_unsupported() {
    // S-018, S-019, S-028
    for code in [0, 4, 12, 99, 0xffff_ffff] {
        for len in [0, 1024, 100_000] {
            let said = said(&Server::default(), &[opt(code, &vec![7; len]), opt(3, b"")]);
            assert_eq!(said[0], format!("{code}: UNSUP"));
            assert_eq!(said[1..], LIST);
        }
    }
    let modest = Server::default().config(|config| {
        config.extended = false;
        config.structured = false;
    });
    assert_eq!(
        said(&modest, &[opt(11, b""), opt(8, b"")]),
        ["11: UNSUP", "8: UNSUP"]
    );
}

#[test]
fn a_server_that_is_merely_unwilling_goes_on_answering() {
    // S-020, S-036, S-232
    let server = Server::default().config(|config| config.listing = false);
    let said = said(&server, &vec![opt(3, b""); 256]);
    assert_eq!(said, vec!["3: POLICY"; 256]);
    let ran = serve_after(&server, &options(&[opt(3, b""), go("disk", &[])]), &[]);
    assert_eq!(ran.end, End::Idle);
}

#[test]
fn a_budget_ends_endless_options() {
    // S-014, B-006, H-042, H-050
    for part in [
        opt(3, b""),
        info("disk", &[]),
        list_meta("disk", &[]),
        opt(99, b""),
    ] {
        let server = Server::default().limits(|limits| limits.options = 10);
        let ran = run(&server, &options(&vec![part.clone(); 20]));
        // Two exports were listed, which allows eight options for each. Listing them again allows
        // no more, and costs two beside the one that it is.
        let limit = if part == opt(3, b"") { 26 } else { 10 };
        assert_eq!(ran.end, End::Dead(Error::TooManyOptions { limit }));
        let finals = ran
            .said
            .iter()
            .filter(|said| said.contains("ACK") || said.contains("UNSUP"));
        assert_eq!(finals.count(), 10);
    }
}

#[test]
fn a_client_may_ask_about_every_export_that_it_was_shown() {
    // B-006, as do nbdinfo and QEMU's programs: up to four options for each
    let server = Server::default().limits(|limits| limits.options = 1);
    let mut asked = vec![opt(3, b"")];
    for export in ["disk", "b"] {
        asked.extend([
            info(export, &[]),
            list_meta(export, &[]),
            list_meta(export, &["qemu:"]),
            list_meta(export, &["base:"]),
        ]);
    }
    let ran = run(&server, &options(&asked));
    assert_eq!(ran.end, End::Idle);
}

#[test]
fn the_budget_goes_on_inside_tls() {
    // B-006
    let server = Server::selective().limits(|limits| limits.options = 3);
    let ran = run(
        &server,
        &options(&[opt(99, b""), opt(5, b""), opt(99, b""), opt(99, b"")]),
    );
    assert_eq!(ran.end, End::Dead(Error::TooManyOptions { limit: 3 }));
}

#[test]
fn an_option_that_is_too_long_is_drained_and_one_that_is_absurd_is_not() {
    // B-002, B-003, H-043, S-018
    let server = Server::default();
    let long = vec![0; (64 << 10) + 1];
    for code in [6, 7, 9, 10] {
        let said = said(&server, &[opt(8, b""), opt(code, &long), opt(3, b"")]);
        assert_eq!(said[1], format!("{code}: TOO_BIG"));
        assert_eq!(said[2..], LIST);
    }
    let said = said(&server, &[opt(99, &vec![0; 1 << 20]), opt(3, b"")]);
    assert_eq!(said[0], "99: UNSUP");
    for len in [(1 << 20) + 1, 0xffff_ffff] {
        for code in [2u32, 3, 7, 99] {
            let mut bad = opt(code, b"");
            bad[12..].copy_from_slice(&u32::to_be_bytes(len));
            for server in [Server::default(), Server::forced()] {
                let ran = run(&server, &options(std::slice::from_ref(&bad)));
                let option = code.into();
                let error = Error::OptionTooLong {
                    option,
                    len,
                    limit: 1 << 20,
                };
                assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
            }
        }
    }
}

#[test]
fn the_longest_data_and_the_longest_name_are_looked_at() {
    // B-002, S-018
    let longest = vec![0; 64 << 10];
    assert_eq!(
        said(&Server::default(), &[opt(6, &longest)]),
        ["6: INVALID"]
    );
    // A name is looked at even if there is less room for other data.
    let name = "x".repeat(4096);
    let mut server = Server::default().limits(|limits| limits.option_data = 100);
    server.exports[0].name = name.clone().leak();
    let ran = run(&server, &options(&[opt(1, name.as_bytes())]));
    assert_eq!((ran.end, ran.asked.len()), (End::Idle, 1));
    let ran = run(&server, &options(&[opt(1, &[b'x'; 4097])]));
    assert!(matches!(
        ran.end,
        End::Dead(Error::ExportNameRefused { .. })
    ));
    assert!(ran.asked.is_empty());
}

#[test]
fn abort_with_any_data_is_acknowledged() {
    // S-031, S-032, S-033
    for data in [&b""[..], &[b'x'; 100]] {
        let ran = run(&Server::default(), &options(&[opt(2, data), opt(3, b"")]));
        assert_eq!(ran.said, ["2: ACK"]);
        assert_eq!(ran.end, End::Aborted);
    }
}

#[test]
fn lists_of_any_length_end_in_one_acknowledgement() {
    // S-017, S-034
    let mut server = Server {
        exports: vec![],
        ..Server::default()
    };
    assert_eq!(said(&server, &[opt(3, b"")]), ["3: ACK"]);
    server.exports = vec![Export::new("x"); 1000];
    let said = said(&server, &[opt(3, b""), opt(3, b"")]);
    assert_eq!(said.len(), 2002);
}

#[test]
fn the_longest_name_and_the_longest_text_fit_an_entry() {
    // S-038, B-001
    let name: &'static str = "n".repeat(4096).leak();
    let mut server = Server::with(Export::new(name));
    server.exports.push(Export::new("x"));
    let ran = run(&server, &options(&[opt(3, b"")]));
    assert_eq!(ran.sent[18 + 16..18 + 20], u32::to_be_bytes(4 + 4096 + 8));
    // S-039: a short text stays below the limit of every known client.
    let ran = run(
        &Server::with(Export::new("n".repeat(256).leak())),
        &options(&[opt(3, b"")]),
    );
    assert!(ran.sent.len() < 18 + 20 + 4096);
}

#[test]
fn list_with_data_is_invalid_and_lists_nothing() {
    // S-035
    let said = said(&Server::default(), &[opt(3, b"x"), opt(3, b"")]);
    assert_eq!(said[0], "3: INVALID");
    assert_eq!(said[1..], LIST);
}

#[test]
fn modes_are_granted_once_and_only_upwards() {
    // S-025, S-106, S-107, S-110, S-111, S-112, S-117, S-118
    let server = Server::default();
    for (parts, expected) in [
        (vec![opt(8, b""), opt(8, b"")], ["8: ACK", "8: INVALID"]),
        (vec![opt(8, b"x"), opt(8, b"")], ["8: INVALID", "8: ACK"]),
        (vec![opt(11, b""), opt(11, b"")], ["11: ACK", "11: INVALID"]),
        (
            vec![opt(11, b"x"), opt(11, b"")],
            ["11: INVALID", "11: ACK"],
        ),
        (
            vec![opt(11, b""), opt(8, b"")],
            ["11: ACK", "8: EXT_HEADER_REQD"],
        ),
        (vec![opt(8, b""), opt(11, b"")], ["8: ACK", "11: ACK"]),
    ] {
        assert_eq!(said(&server, &parts), expected);
    }
    // The mode from before a refusal holds.
    let read = |mode: Enter| mode.req(0, 0, 1, 0, 4, b"");
    for (parts, request, expected) in [
        (vec![opt(8, b"x")], read(Enter::Simple), "#1 ok 4"),
        (vec![opt(11, b"x")], read(Enter::Simple), "#1 ok 4"),
        (
            vec![opt(8, b""), opt(8, b"")],
            read(Enter::Structured),
            "#1 data 0+4 done",
        ),
        (
            vec![opt(11, b""), opt(8, b"")],
            read(Enter::Extended),
            "#1 data 0+4 done",
        ),
        (
            vec![opt(11, b""), opt(11, b"")],
            read(Enter::Extended),
            "#1 data 0+4 done",
        ),
    ] {
        let parts = [parts, vec![go("disk", &[])]].concat();
        let ran = serve_after(&server, &options(&parts), &[request]);
        assert_eq!(ran.said, [expected]);
    }
}

#[test]
fn a_server_that_is_going_away_refuses_everything_but_abort() {
    // S-024
    let server = Server {
        shutting_down: true,
        ..Server::selective()
    };
    let codes = [3, 5, 6, 7, 8, 9, 10, 11, 99];
    let mut parts: Vec<_> = codes.iter().map(|code| opt(*code, b"")).collect();
    parts.push(opt(2, b""));
    let mut expected: Vec<_> = codes
        .iter()
        .map(|code| format!("{code}: SHUTDOWN"))
        .collect();
    expected.push("2: ACK".into());
    assert_eq!(said(&server, &parts), expected);
    let forced = Server {
        shutting_down: true,
        ..Server::forced()
    };
    assert_eq!(said(&forced, &parts), expected);
    let ran = run(&server, &options(&[opt(1, b"disk")]));
    let why = "the server is shutting down";
    assert_eq!(ran.end, End::Dead(Error::ExportNameRefused { why }));
}

#[test]
fn every_reason_has_its_code() {
    // S-027, S-064
    for (refusal, list, info, meta) in [
        (Refusal::Unknown, "POLICY", "UNKNOWN", "UNKNOWN"),
        (Refusal::Policy, "POLICY", "POLICY", "POLICY"),
        (Refusal::Invalid, "INVALID", "INVALID", "INVALID"),
        (Refusal::Platform, "PLATFORM", "PLATFORM", "PLATFORM"),
        (Refusal::Shutdown, "SHUTDOWN", "SHUTDOWN", "SHUTDOWN"),
        (Refusal::TooBig, "TOO_BIG", "TOO_BIG", "TOO_BIG"),
        (
            Refusal::ExtendedHeadersRequired,
            "POLICY",
            "EXT_HEADER_REQD",
            "EXT_HEADER_REQD",
        ),
    ] {
        let server = Server {
            refusal: Some(refusal),
            ..Server::default()
        };
        let parts = [
            opt(8, b""),
            opt(3, b""),
            crate::support::info("disk", &[]),
            go("disk", &[]),
            list_meta("disk", &[]),
            set_meta("disk", &["x-a:b"]),
        ];
        let expected = [
            String::from("8: ACK"),
            format!("3: {list}"),
            format!("6: {info}"),
            format!("7: {info}"),
            format!("9: {meta}"),
            format!("10: {meta}"),
        ];
        assert_eq!(said(&server, &parts), expected);
    }
}

#[test]
fn a_text_is_cut_between_characters() {
    // S-026
    for (text, len) in [
        ("x".repeat(300), 256),
        (format!("x{}", "\u{e9}".repeat(300)), 255),
    ] {
        let mut out = BytesMut::new();
        let Requested::Go(go) = ask(&[go("disk", &[])], &mut out) else {
            panic!();
        };
        let _ = go.refuse(Refusal::Unknown, &text, &mut out);
        assert_eq!(out[20..], text.as_bytes()[..len]);
    }
}
