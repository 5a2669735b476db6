//! Requests that are carried out, and those that are refused without an event.

use crate::support::*;
use nbd_proto::server::Fill;

fn mode_error(mode: Enter, cookie: u64, errno: u32) -> String {
    match mode {
        Enter::Simple => format!("#{cookie} error {errno}"),
        Enter::Structured | Enter::Extended => format!("#{cookie} error {errno} done"),
    }
}

/// Serves the request and a small read behind it, which shows that nothing got out of step.
fn outcome(server: &Server, options: &[u8], mode: Enter, request: Vec<u8>) -> String {
    let ran = serve_after(
        server,
        options,
        &[request, mode.req(0, 0, 77, 0, 4096, b"")],
    );
    let read = match mode {
        Enter::Simple => "#77 ok 4096",
        Enter::Structured | Enter::Extended => "#77 data 0+4096 done",
    };
    assert_eq!(ran.said.last().unwrap(), read);
    assert_eq!(ran.end, End::Idle);
    assert_eq!(ran.said.len(), 2, "{:?}", ran.said);
    ran.said[0].clone()
}

fn in_mode(server: &Server, mode: Enter, request: Vec<u8>) -> String {
    outcome(server, &mode.options(), mode, request)
}

#[test]
fn unknown_commands_are_refused_and_their_payload_is_known() {
    // S-098, S-144, S-147, S-162, S-168, A-091
    let server = Server::default();
    for mode in HEADER_STYLES {
        for command in [8, 9, 99, 0xffff] {
            let request = mode.req(0, command, 1, 0, 512, b"");
            assert_eq!(in_mode(&server, mode, request), mode_error(mode, 1, 22));
        }
    }
    for command in [0, 3, 4, 5, 6, 7, 8, 99] {
        let request = xreq(0x20, command, 1, 0, 16, &[0x25; 16]);
        assert_eq!(
            in_mode(&server, Enter::Extended, request),
            "#1 error 22 done"
        );
    }
}

#[test]
fn commands_that_are_not_offered_are_refused() {
    // S-162, S-163, S-090, H-049
    let server = Server::with(Export::new("disk").flags(1));
    for mode in HEADER_STYLES {
        for (command, len) in [(3, 0), (4, 512), (5, 512), (6, 512), (7, 512)] {
            let request = mode.req(0, command, 1, 0, len, b"");
            assert_eq!(in_mode(&server, mode, request), mode_error(mode, 1, 22));
        }
    }
}

#[test]
fn writes_that_will_fail_are_drained_first() {
    // S-091, S-145, S-160, H-064
    let data = vec![0x25; 65536];
    for mode in HEADER_STYLES {
        let read_only = Server::with(Export::new("disk").flags(0x1dff));
        for (command, payload) in [(1, &data[..]), (4, &[]), (6, &[])] {
            let request = mode.req(0, command, 1, 0, 65536, payload);
            assert_eq!(in_mode(&read_only, mode, request), mode_error(mode, 1, 1));
        }
        // A server without these commands still says why.
        let read_only = Server::with(Export::new("disk").flags(3));
        for command in [4, 6] {
            let request = mode.req(0, command, 1, 0, 512, b"");
            assert_eq!(in_mode(&read_only, mode, request), mode_error(mode, 1, 1));
        }
        let server = Server::with(Export::new("disk").sizes(512, 512, 32768));
        for (offset, len, errno) in [
            (1 << 20, 512, 28),
            (1, 512, 22),
            (0, 511, 22),
            (0, 65536, 22),
        ] {
            let request = mode.req(0, 1, 1, offset, len, &data[..usize::try_from(len).unwrap()]);
            assert_eq!(in_mode(&server, mode, request), mode_error(mode, 1, errno));
        }
    }
}

/// The flags that each command may have when everything is offered.
fn legal(command: u16, mode: Enter) -> u16 {
    let extended = mode == Enter::Extended;
    1 | match command {
        0 if mode != Enter::Simple => 4,
        1 if extended => 0x20,
        6 => 2 | 16,
        7 if extended => 8 | 0x20,
        7 if mode == Enter::Structured => 8,
        _ => 0,
    }
}

#[test]
fn each_flag_is_taken_where_it_belongs() {
    // S-148, S-149, S-151, S-152, S-153, S-171, S-226, A-056, A-057
    let server = Server::default();
    for mode in HEADER_STYLES {
        let options = match mode {
            Enter::Simple => mode.options(),
            _ => mode.with_contexts(&["base:allocation"]),
        };
        for command in 0..8 {
            for bit in 0..16 {
                let flag = 1 << bit;
                let (len, payload) = match command {
                    1 => (512, &[0; 512][..]),
                    2 => continue,
                    3 => (0, &[][..]),
                    7 if flag == 0x20 && mode == Enter::Extended => {
                        (12, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1][..])
                    }
                    _ if flag == 0x20 && mode == Enter::Extended => (512, &[0; 512][..]),
                    _ => (512, &[][..]),
                };
                let said = outcome(
                    &server,
                    &options,
                    mode,
                    mode.req(flag, command, 1, 0, len, payload),
                );
                let offered = command != 7 || mode != Enter::Simple;
                let refused = !offered || legal(command, mode) & flag == 0;
                assert_eq!(
                    said == mode_error(mode, 1, 22),
                    refused,
                    "{mode:?} {command} {flag:#x} {said}"
                );
            }
        }
    }
}

#[test]
fn flags_that_are_not_offered_are_refused() {
    // S-148, S-150, S-154
    let server = Server::with(Export::new("disk").flags(0x0465));
    for mode in HEADER_STYLES {
        for (flag, command) in [(1, 0), (1, 1), (1, 3), (1, 5), (4, 0), (16, 6), (1, 6)] {
            let (len, payload) = match command {
                1 => (512, &[0; 512][..]),
                3 => (0, &[][..]),
                _ => (512, &[][..]),
            };
            let request = mode.req(flag, command, 1, 0, len, payload);
            assert_eq!(in_mode(&server, mode, request), mode_error(mode, 1, 22));
        }
        // S-151
        let request = mode.req(2, 6, 1, 0, 512, b"");
        assert_ne!(in_mode(&server, mode, request), mode_error(mode, 1, 22));
    }
}

#[test]
fn flags_reach_the_embedder() {
    // S-149, S-151, S-153, S-155
    let server = Server::default();
    let ran = serve_after(
        &server,
        &Enter::Extended.with_contexts(&["base:allocation"]),
        &[
            xreq(0x13, 6, 1, 0, 1 << 20, b""),
            xreq(0, 6, 2, 0, 512, b""),
            xreq(1, 4, 3, 512, 512, b""),
            xreq(8, 7, 4, 0, 512, b""),
            xreq(0, 5, 5, 0, 512, b""),
            xreq(1, 3, 6, 0, 0, b""),
            xreq(1, 0, 7, 0, 512, b""),
        ],
    );
    let expected = [
        "WriteZeroes { offset: 0, len: 1048576, fua: true, no_hole: true, fast: true,",
        "WriteZeroes { offset: 0, len: 512, fua: false, no_hole: false, fast: false,",
        "Trim { offset: 512, len: 512, fua: true,",
        "BlockStatus { offset: 0, len: 512, one: true,",
        "Cache { offset: 0, len: 512,",
        "Flush {",
        "Read { offset: 0, len: 512,",
    ];
    assert_eq!(ran.asked, expected);
}

#[test]
fn requests_for_nothing_are_answered() {
    // S-157, A-058
    let server = Server::default();
    for mode in HEADER_STYLES {
        let options = match mode {
            Enter::Simple => mode.options(),
            _ => mode.with_contexts(&["base:allocation"]),
        };
        for command in [0, 1, 4, 5, 6, 7] {
            let request = mode.req(0, command, 1, 512, 0, b"");
            let said = outcome(&server, &options, mode, request);
            let expected = match (mode, command) {
                (_, 7) => mode_error(mode, 1, 22),
                // S-170
                (Enter::Extended, 1) => mode_error(mode, 1, 22),
                (Enter::Simple, 0) => "#1 ok 0".into(),
                (Enter::Structured, 0) | (Enter::Extended, _) => "#1 none done".into(),
                _ => "#1 ok".into(),
            };
            assert_eq!(said, expected, "{mode:?} {command}");
        }
    }
}

#[test]
fn a_payload_that_is_announced_is_not_empty() {
    // S-170, A-080
    for command in [1, 7] {
        let options = Enter::Extended.with_contexts(&["base:allocation"]);
        let request = xreq(0x20, command, 1, 0, 0, b"");
        let said = outcome(&Server::default(), &options, Enter::Extended, request);
        assert_eq!(said, "#1 error 22 done");
    }
}

#[test]
fn blocks_are_whole_where_that_was_agreed_on() {
    // S-072, S-103, S-158, A-068
    let server = Server::with(Export::new("disk").sizes(4096, 4096, 65536));
    let unasked = |mode: Enter| options(&[mode.mode(), go("disk", &[])]);
    for mode in HEADER_STYLES {
        for command in [0, 4, 5, 6] {
            for (offset, len) in [(512, 4096), (0, 512), (4096, 4097), (512, 512)] {
                let request = mode.req(0, command, 1, offset, len, b"");
                assert_eq!(
                    in_mode(&server, mode, request.clone()),
                    mode_error(mode, 1, 22)
                );
                let said = outcome(&server, &unasked(mode), mode, request);
                assert_ne!(said, mode_error(mode, 1, 22));
            }
        }
    }
}

#[test]
fn a_refusal_says_what_was_not_agreed_on() {
    let server = Server::with(Export::new("disk").flags(0x0001));
    for (command, text) in [
        (4, "the export does not offer this command"),
        (7, "no meta context was selected for this export"),
    ] {
        let mode = Enter::Structured;
        let ran = serve_in(&server, mode, &[mode.req(0, command, 1, 0, 512, b"")]);
        let sent = String::from_utf8_lossy(&ran.sent);
        assert!(sent.ends_with(text), "{sent}");
    }
}

fn in_mode_with(server: &Server, mode: Enter, contexts: bool, request: Vec<u8>) -> String {
    let options = if contexts && mode != Enter::Simple {
        mode.with_contexts(&["base:allocation"])
    } else {
        mode.options()
    };
    outcome(server, &options, mode, request)
}

#[test]
fn nothing_reaches_past_the_end() {
    // S-159, H-055, H-056, H-057
    let server = Server::default();
    let size = 1 << 20;
    for mode in HEADER_STYLES {
        for (offset, len) in [
            (size, 1),
            (size - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, 0xffff_ffff),
            (0, size + 1),
            (size + 1, 0),
        ] {
            for (command, errno) in [(0, 22), (4, 22), (5, 22), (6, 28), (7, 22)] {
                let request = mode.req(0, command, 1, offset, len, b"");
                let said = in_mode_with(&server, mode, true, request);
                assert_eq!(said, mode_error(mode, 1, errno), "{command} {offset} {len}");
            }
        }
        let request = mode.req(0, 1, 1, u64::MAX, 1, b"x");
        assert_eq!(in_mode(&server, mode, request), mode_error(mode, 1, 28));
    }
    for (command, errno) in [(4, 22), (5, 22), (6, 28), (7, 22)] {
        for (offset, len) in [(0, 1 << 63), (1 << 63, 1 << 63), (1, u64::MAX)] {
            let request = xreq(0, command, 1, offset, len, b"");
            let said = in_mode_with(&server, Enter::Extended, true, request);
            assert_eq!(said, format!("#1 error {errno} done"));
        }
    }
}

#[test]
fn a_request_that_is_short_on_the_wire_may_be_long_in_the_export() {
    // S-166, H-057
    let server = Server::with(Export::new("disk").size(u64::MAX).sizes(1, 512, 65536));
    for mode in HEADER_STYLES {
        for command in [4, 5, 6] {
            let request = mode.req(0, command, 1, 0, 0xffff_ffff, b"");
            assert!(!in_mode(&server, mode, request).contains("error"));
        }
    }
    let request = xreq(0, 6, 1, 0, u64::MAX, b"");
    assert_eq!(in_mode(&server, Enter::Extended, request), "#1 none done");
}

#[test]
fn flush_has_neither_offset_nor_length() {
    // S-161, A-060
    for mode in HEADER_STYLES {
        for (offset, len) in [(1, 0), (0, 1), (512, 512)] {
            let request = mode.req(0, 3, 1, offset, len, b"");
            assert_eq!(
                in_mode(&Server::default(), mode, request),
                mode_error(mode, 1, 22)
            );
        }
    }
}

#[test]
fn a_filter_is_only_kept_if_it_may_make_sense() {
    // S-172, H-059
    let options = Enter::Extended.with_contexts(&["base:allocation", "qemu:dirty-bitmap:a"]);
    for len in 1..100_usize {
        let mut transmission = transmission(&Server::default(), &options);
        let header = xreq(0x20, 7, 1, 0, u64::try_from(len).unwrap(), b"");
        assert_eq!(transmission.feed(&header).unwrap().used, header.len());
        match transmission.fill() {
            Fill::Control(space) => assert!([12, 16].contains(&len) && space.len() == len),
            Fill::Discard(left) => assert!(![12, 16].contains(&len) && left == len),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn a_filter_that_makes_no_sense_is_drained() {
    // S-172, H-059, A-081
    let server = Server::default();
    let options = Enter::Extended.with_contexts(&["base:allocation", "qemu:dirty-bitmap:a"]);
    let filter = |effect: u64, ids: &[u32]| {
        let mut payload = effect.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload
    };
    let mut payloads: Vec<_> = [7, 8, 9, 10, 13, 1000, 100_000]
        .map(|len| vec![0; len])
        .to_vec();
    payloads.push(filter(512, &[1, 1]));
    payloads.push(filter(512, &[3]));
    payloads.push(filter(512, &[0]));
    payloads.push(filter(512, &[1, 2, 1]));
    payloads.push(filter(0, &[1]));
    // S-173
    payloads.push(filter(1 << 33, &[1]));
    payloads.push(filter(u64::MAX, &[1]));
    for payload in payloads {
        let request = xreq(
            0x20,
            7,
            1,
            0,
            u64::try_from(payload.len()).unwrap(),
            &payload,
        );
        let said = outcome(&server, &options, Enter::Extended, request);
        assert_eq!(said, "#1 error 22 done", "{payload:?}");
    }
    // S-172: the feature is not offered, or no context was selected.
    let plain = Server::with(Export::new("disk").flags(0x0d7d));
    let request = xreq(0x20, 7, 1, 0, 12, &filter(512, &[1]));
    assert_eq!(
        outcome(&plain, &options, Enter::Extended, request.clone()),
        "#1 error 22 done"
    );
    assert_eq!(
        in_mode(&server, Enter::Extended, request),
        "#1 error 22 done"
    );
}
