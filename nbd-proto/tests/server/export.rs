//! INFO, GO and EXPORT_NAME: the description of an export for a client.

use crate::support::*;
use nbd_proto::{BlockSizes, Error, ExportName, Text, server::Refusal};

fn said(server: &Server, parts: &[Vec<u8>]) -> Vec<String> {
    let ran = run(server, &options(parts));
    assert!(matches!(ran.end, End::Idle | End::Aborted), "{:?}", ran.end);
    ran.said
}

#[test]
fn go_is_answered_byte_for_byte() {
    // S-016, S-069, S-081
    let server = Server::with(
        Export::new("a")
            .size(0x10_0000)
            .flags(0x0005)
            .sizes(1, 4096, 65536),
    );
    let ran = run(&server, &options(&[go("a", &[3])]));
    let mut expected = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0e".to_vec();
    expected.extend(b"\0\x03\0\0\0\x01\0\0\x10\0\0\x01\0\0");
    expected.extend(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c");
    expected.extend(b"\0\0\0\0\0\0\0\x10\0\0\0\x05");
    expected.extend(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0");
    assert_eq!(ran.sent[18..], expected);
}

#[test]
fn info_is_read_and_answered_byte_for_byte() {
    // S-016, S-069, S-071, S-076
    let mut export = Export::new("a").size(0x10_0000).flags(0x0005);
    export.info.name = Some(ExportName::new("real").unwrap());
    export.info.description = Some(Text::from("text"));
    let mut client = b"\0\0\0\x03IHAVEOPT\0\0\0\x06\0\0\0\x0b".to_vec();
    client.extend(b"\0\0\0\x01a\0\x02\0\x01\0\x02");
    client.extend(b"IHAVEOPT\0\0\0\x06\0\0\0\x07\0\0\0\x01b\0\0");
    let ran = run(&Server::with(export), &client);
    let magic = b"\0\x03\xe8\x89\x04\x55\x65\xa9";
    let expected = [
        &magic[..],
        b"\0\0\0\x06\0\0\0\x03\0\0\0\x06\0\x01real",
        magic,
        b"\0\0\0\x06\0\0\0\x03\0\0\0\x06\0\x02text",
        magic,
        b"\0\0\0\x06\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\x10\0\0\0\x05",
        magic,
        b"\0\0\0\x06\0\0\0\x01\0\0\0\0",
        magic,
        b"\0\0\0\x06\x80\0\0\x06\0\0\0\x16no export is named \"b\"",
    ];
    assert_eq!(ran.sent[18..], expected.concat());
}

#[test]
fn contradicting_lengths_are_invalid() {
    // S-068, H-044, H-046
    let good = info_data(b"disk", &[3]);
    let mut bad = vec![b"".to_vec(), b"\0\0\0\0\0".to_vec(), vec![0xff; 6]];
    bad.push([&good[..], b"x"].concat());
    bad.push(good[..good.len() - 1].to_vec());
    for (at, value) in [(3, 5), (3, 7), (9, 0), (9, 2), (8, 1), (0, 0xff)] {
        let mut data = good.clone();
        data[at] = value;
        bad.push(data);
    }
    for data in bad {
        let said = said(
            &Server::default(),
            &[opt(6, &data), opt(7, &data), opt(2, b"")],
        );
        assert_eq!(said, ["6: INVALID", "7: INVALID", "2: ACK"], "{data:?}");
    }
}

#[test]
fn names_that_are_no_strings_are_invalid() {
    // S-030, H-044, B-001
    for name in [&[b'x'; 4097][..], b"a\0", b"\xff"] {
        let data = info_data(name, &[]);
        let meta = meta_data(name, &[b"base:allocation"]);
        let query = meta_data(b"disk", &[name]);
        let parts = [
            opt(8, b""),
            opt(6, &data),
            opt(7, &data),
            opt(9, &meta),
            opt(10, &meta),
            opt(9, &query),
            opt(10, &query),
        ];
        for said in &said(&Server::default(), &parts)[1..] {
            assert!(said.contains("INVALID"), "{said}");
        }
    }
}

#[test]
fn unknown_infos_are_ignored_and_repeated_ones_are_answered_once() {
    // S-070, S-071, S-073, S-075
    let server = Server::with(Export::new("disk").flags(1).sizes(1, 4096, 65536));
    for infos in [&[0x7777, 3][..], &[3, 3], &[0, 3, 0xffff], &[1, 2, 3]] {
        let expected = [
            "6: SIZES 1 4096 65536",
            "6: EXPORT 1048576 0x0001",
            "6: ACK",
        ];
        assert_eq!(said(&server, &[info("disk", infos)]), expected);
    }
    let expected = ["6: EXPORT 1048576 0x0001", "6: ACK"];
    assert_eq!(said(&server, &[info("disk", &[])]), expected);
}

#[test]
fn too_many_kinds_of_information_are_too_big() {
    // B-005, H-046
    let server = Server::default();
    assert_eq!(said(&server, &[info("disk", &[9; 257])]), ["6: TOO_BIG"]);
    assert_eq!(said(&server, &[info("disk", &[9; 30_000])]), ["6: TOO_BIG"]);
    assert_eq!(said(&server, &[info("disk", &[9; 256])]).len(), 2);
}

#[test]
fn names_and_descriptions_are_sent_to_clients_that_ask() {
    // S-071, S-076
    let mut export = Export::new("disk").flags(1);
    export.info.name = Some(ExportName::new("n".repeat(4096)).unwrap());
    export.info.description = Some(Text::from("d".repeat(5000)));
    let server = Server::with(export);
    let ran = run(&server, &options(&[go("disk", &[1, 2])]));
    assert_eq!(ran.sent[18 + 16..18 + 20], 4098u32.to_be_bytes());
    let second = 18 + 20 + 4098;
    assert_eq!(ran.sent[second + 16..second + 20], 4098u32.to_be_bytes());
    assert_eq!(said(&server, &[go("disk", &[])]).len(), 2);
}

#[test]
fn info_leaves_the_client_in_negotiation_and_go_after_it_answers_the_same() {
    // S-074, S-080, S-082
    let server = Server::default();
    for mode in HEADER_STYLES {
        let parts = [
            mode.mode(),
            info("disk", &[1, 2, 3]),
            opt(3, b""),
            go("nope", &[]),
            go("disk", &[1, 2, 3]),
        ];
        let said = said(&server, &parts);
        let said: Vec<_> = said.iter().filter(|said| said.contains("EXPORT")).collect();
        assert_eq!(said.len(), 2);
        assert_eq!(said[0][1..], said[1][1..]);
    }
    // Selected contexts outlive a look at another export.
    let parts = options(&[
        opt(8, b""),
        set_meta("disk", &["base:allocation"]),
        info("b", &[]),
        go("disk", &[]),
    ]);
    let ran = serve_after(&server, &parts, &[req(0, 7, 1, 0, 512, b"")]);
    assert_eq!(ran.said, ["#1 status 1 512:1 done"]);
}

#[test]
fn an_export_that_is_not_there_is_unknown_and_has_no_info() {
    // S-077, S-078, S-083, S-113
    for mode in HEADER_STYLES {
        let parts = [
            mode.mode(),
            go("nope", &[3]),
            info("nope", &[3]),
            go("", &[]),
            go("disk", &[]),
        ];
        let said = said(&Server::default(), &parts);
        let from = usize::from(mode != Enter::Simple);
        assert_eq!(
            said[from..from + 3],
            ["7: UNKNOWN", "6: UNKNOWN", "7: UNKNOWN"]
        );
    }
    let default = Server::with(Export::new(""));
    assert_eq!(said(&default, &[go("", &[])]).len(), 2);
    let failing = Server::with(Export {
        refusal: Some(Refusal::Policy),
        ..Export::new("disk")
    });
    assert_eq!(said(&failing, &[go("disk", &[])]), ["7: POLICY"]);
}

#[test]
fn the_name_in_an_error_text_is_short_and_harmless() {
    // S-026, H-045, B-019
    let name = format!("\x1b[2J{}", "x".repeat(4000));
    let ran = run(&Server::default(), &options(&[go(&name, &[])]));
    let text = std::str::from_utf8(&ran.sent[18 + 20..]).unwrap();
    let quoted = format!("no export is named \"\\u{{1b}}[2J{}...\"", "x".repeat(76));
    assert_eq!(text, quoted);
    // 80 characters of four bytes each still fit.
    let ran = run(
        &Server::default(),
        &options(&[go(&"\u{1f4be}".repeat(1000), &[])]),
    );
    assert!(ran.sent.len() <= 18 + 20 + 400);
}

#[test]
fn block_sizes_are_required_only_of_clients_that_did_not_ask() {
    // S-079, S-102, S-117
    let sizes = BlockSizes::new(4096, 4096, u32::MAX).unwrap();
    let export = Export::new("disk").flags(1).sizes(4096, 4096, 65536);
    let strict = Server {
        refusal: Some(Refusal::BlockSizeRequired(sizes)),
        ..Server::with(export.clone())
    };
    let parts = [
        opt(11, b""),
        go("disk", &[]),
        info("disk", &[]),
        go("disk", &[3]),
        list_meta("disk", &[]),
        opt(3, b""),
    ];
    let expected = [
        "11: ACK",
        "7: SIZES 4096 4096 33554432",
        "7: BLOCK_SIZE_REQD",
        "6: SIZES 4096 4096 33554432",
        "6: BLOCK_SIZE_REQD",
        "7: POLICY",
        "9: POLICY",
        "3: POLICY",
    ];
    assert_eq!(said(&strict, &parts), expected);
    // By default no client has to ask for block sizes.
    let said = said(&Server::with(export), &[go("disk", &[])]);
    assert_eq!(said, ["7: EXPORT 1048576 0x0001", "7: ACK"]);
}

#[test]
fn extended_headers_can_be_required_but_are_not_by_default() {
    // S-116
    let server = Server {
        refusal: Some(Refusal::ExtendedHeadersRequired),
        ..Server::default()
    };
    let said = said(&server, &[go("disk", &[]), opt(11, b""), go("disk", &[])]);
    assert_eq!(said, ["7: EXT_HEADER_REQD", "11: ACK", "7: POLICY"]);
    for mode in HEADER_STYLES {
        let ran = serve_in(&Server::default(), mode, &[mode.req(0, 0, 1, 0, 1, b"")]);
        assert_eq!(ran.end, End::Idle);
    }
}

#[test]
fn export_name_is_granted_or_the_connection_ends() {
    // S-022, S-085, S-114, H-044, H-049
    let long = vec![b'x'; 4097];
    for (parts, why) in [
        (vec![opt(1, b"nope")], "there is no such export"),
        (
            vec![opt(1, &long)],
            "the name is longer than a string may be",
        ),
        (
            vec![opt(1, b"a\0")],
            "the name is not UTF-8 or contains NUL",
        ),
        (
            vec![opt(1, b"\xff")],
            "the name is not UTF-8 or contains NUL",
        ),
        (
            vec![opt(11, b""), opt(1, b"disk")],
            "extended headers were negotiated, which need NBD_OPT_GO",
        ),
    ] {
        let ran = run(&Server::default(), &options(&parts));
        assert_eq!(ran.end, End::Dead(Error::ExportNameRefused { why }));
        assert_eq!(ran.said.len(), parts.len() - 1);
    }
}

#[test]
fn a_client_of_the_baseline_or_of_export_name_does_all_its_io() {
    // S-040, S-041, S-086, S-101
    let server = Server::with(Export::new("disk").size(40 << 20).sizes(4096, 4096, 65536));
    let requests = [
        req(0, 1, 1, 512, 4, b"data"),
        req(1, 1, 2, 512, 4, b"data"),
        req(0, 0, 3, 1, 3, b""),
        req(0, 3, 4, 0, 0, b""),
        req(0, 0, 5, 0, 32 << 20, b""),
        req(0, 2, 6, 0, 0, b""),
    ];
    let expected = ["#1 ok", "#2 ok", "#3 ok 3", "#4 ok", "#5 ok 33554432"];
    for enter in [opt(1, b"disk"), go("disk", &[])] {
        let script = [options(&[opt(3, b""), enter]), requests.concat()].concat();
        let ran = run_in(&server, &script, Way::new(true, &[script.len()]));
        assert_eq!(ran.said[ran.said.len() - 5..], expected);
        assert_eq!(ran.end, End::Disconnected);
    }
}

#[test]
fn contexts_of_another_export_are_void() {
    // S-088, A-025
    let server = Server::default();
    let status = req(0, 7, 1, 0, 512, b"");
    let contexts = |name| set_meta(name, &["base:allocation"]);
    for (parts, said) in [
        (vec![contexts("disk"), go("b", &[])], "#1 error 22 done"),
        (vec![contexts("disk"), opt(1, b"b")], "#1 error 22 done"),
        (vec![contexts("b"), go("b", &[])], "#1 status 1 512:1 done"),
        (vec![contexts("b"), opt(1, b"b")], "#1 status 1 512:1 done"),
        (
            vec![contexts("b"), contexts("disk"), go("b", &[])],
            "#1 error 22 done",
        ),
    ] {
        let parts = [vec![opt(8, b"")], parts].concat();
        let ran = serve_after(&server, &options(&parts), std::slice::from_ref(&status));
        assert_eq!(ran.said, [said]);
    }
}

#[test]
fn only_meaningful_flags_are_announced() {
    // S-089, S-090, S-092, S-093, S-094, S-096, S-097, S-098, S-108
    for (flags, mode, contexts, announced) in [
        (0x0000, Enter::Extended, true, 0x0001),
        (0xffff, Enter::Simple, false, 0x0d7f),
        (0xffff, Enter::Structured, false, 0x0dff),
        (0xffff, Enter::Extended, false, 0x0dff),
        (0xffff, Enter::Extended, true, 0x1dff),
        (0x0801, Enter::Extended, false, 0x0001),
        (0x0841, Enter::Extended, false, 0x0841),
        (0x0410, Enter::Simple, false, 0x0411),
        (0x0002, Enter::Simple, false, 0x0003),
    ] {
        let server = Server::with(Export::new("disk").flags(flags));
        let context = if contexts {
            set_meta("disk", &["base:allocation"])
        } else {
            vec![]
        };
        for enter in [info("disk", &[]), go("disk", &[])] {
            let said = said(&server, &[mode.mode(), context.clone(), enter]);
            let end = format!("EXPORT 1048576 {announced:#06x}");
            assert!(said[said.len() - 2].ends_with(&end), "{said:?}");
        }
    }
}

#[test]
fn sizes_fit_each_other_and_the_limits() {
    // S-099, S-100, S-104, S-105, A-016
    for (export, said_) in [
        (
            Export::new("disk").size(1000).sizes(512, 512, 65536),
            ["7: SIZES 512 512 65536", "7: EXPORT 512 0x0001"],
        ),
        (
            Export::new("disk").size(5000).sizes(1, 4096, 65536),
            ["7: SIZES 1 4096 65536", "7: EXPORT 5000 0x0001"],
        ),
        (
            Export::new("disk")
                .size(u64::MAX)
                .sizes(65536, 65536, u32::MAX),
            [
                "7: SIZES 65536 65536 33554432",
                "7: EXPORT 18446744073709486080 0x0001",
            ],
        ),
        (
            Export::new("disk").sizes(1, 1 << 26, u32::MAX),
            ["7: SIZES 1 67108864 67108864", "7: EXPORT 1048576 0x0001"],
        ),
    ] {
        let server = Server::with(export.flags(1));
        assert_eq!(said(&server, &[go("disk", &[3])])[..2], said_);
        // The size is the same for a client that did not ask.
        assert_eq!(said(&server, &[go("disk", &[])])[0], said_[1]);
    }
}
