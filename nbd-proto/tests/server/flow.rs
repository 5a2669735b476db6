//! Requests of a client in transmission: their layout, their payload, their number and their end.

use crate::support::*;
use nbd_proto::{
    Error,
    server::{Event, Fill, Refusal},
};

#[test]
fn requests_are_read_byte_for_byte() {
    // S-143, S-144
    let server = Server::default();
    let compact = b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\
        \0\0\0\0\0\0\x02\0\0\0\0\x03abc";
    let ran = serve_in(&server, Enter::Simple, &[compact.to_vec()]);
    let expected = "Write { offset: 512, len: 3, fua: true, [61, 62, 63]";
    assert_eq!(ran.asked, [expected]);
    assert_eq!(
        ran.sent,
        b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08"
    );
    let extended = b"\x21\xe4\x1c\x71\0\x21\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\
        \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x03abc";
    let ran = serve_in(&server, Enter::Extended, &[extended.to_vec()]);
    assert_eq!(ran.asked, [expected]);
    let mut reply = b"\x6e\x8a\x27\x8c\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08".to_vec();
    reply.extend(b"\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0");
    assert_eq!(ran.sent, reply);
}

#[test]
fn a_magic_of_another_mode_ends_the_connection_at_once() {
    // S-142, H-049, H-067
    for (mode, magic, other) in [
        (Enter::Simple, 0x2560_9513, 0x21e4_1c71),
        (Enter::Structured, 0x2560_9513, 0x21e4_1c71),
        (Enter::Extended, 0x21e4_1c71u32, 0x2560_9513u32),
    ] {
        // The last magic number is one of an option, as if transmission had not begun.
        for got in [other, magic + 1, 0, 0x1256_0953, 0x4948_4156] {
            let mut request = mode.req(0, 0, 1, 0, 4, b"");
            request[..4].copy_from_slice(&got.to_be_bytes());
            let error = Error::RequestMagic {
                expected: magic,
                got,
            };
            let ran = serve_in(&Server::default(), mode, std::slice::from_ref(&request));
            assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
            // Four bytes are enough, and the error stays.
            let mut transmission = transmission(&Server::default(), &mode.options());
            assert_eq!(transmission.feed(&request[..3]).unwrap().used, 3);
            assert!(!transmission.is_idle());
            assert_eq!(transmission.feed(&request[3..4]).unwrap_err(), error);
            assert_eq!(transmission.feed(&request[4..]).unwrap_err(), error);
            assert_eq!(transmission.filled(1).unwrap_err(), error);
            assert_eq!(transmission.fill(), Fill::Finished);
        }
    }
}

#[test]
fn cookies_come_back_bit_for_bit() {
    // S-143, S-165, H-058, A-093
    for mode in HEADER_STYLES {
        for keep_back in [0, 3] {
            let server = Server {
                keep_back,
                ..Server::default()
            };
            let cookies = [0, u64::MAX, 5, 5, 0x0123_4567_89ab_cdef];
            let requests = cookies.map(|cookie| mode.req(0, 0, cookie, 0, 4, b""));
            let ran = serve_in(&server, mode, &requests);
            assert_eq!(ran.said.len(), 5);
        }
    }
}

#[test]
fn a_payload_beyond_the_limit_ends_the_connection() {
    // S-146, B-011, H-053
    for mode in HEADER_STYLES {
        for len in [(32 << 20) + 1, 0xffff_ffff] {
            let ran = serve_in(&Server::default(), mode, &[mode.req(0, 1, 1, 0, len, b"")]);
            let command = nbd_proto::Command::Write;
            let error = Error::PayloadTooLong {
                command,
                len,
                limit: 32 << 20,
            };
            assert_eq!((ran.end, ran.said.len()), (End::Dead(error), 0));
        }
    }
    for command in [0u16, 7, 99] {
        let ran = serve_in(
            &Server::default(),
            Enter::Extended,
            &[xreq(0x20, command, 1, 0, 1 << 63, b"")],
        );
        let command = command.into();
        let error = Error::PayloadTooLong {
            command,
            len: 1 << 63,
            limit: 32 << 20,
        };
        assert_eq!(ran.end, End::Dead(error));
    }
}

#[test]
fn a_payload_of_the_preferred_size_is_not_beyond_a_limit_that_is_less() {
    // S-146
    let export = Export::new("disk").sizes(4096, 4096, 65536);
    let server = Server::with(export).limits(|limits| limits.payload = 512);
    for mode in HEADER_STYLES {
        let writes = [4096, 4097].map(|len: u64| {
            let data = vec![0; usize::try_from(len).unwrap()];
            mode.req(0, 1, 1, 0, len, &data)
        });
        let ran = serve_in(&server, mode, &writes[..1]);
        assert!(!ran.said[0].contains("error"), "{:?}", ran.said);
        let ran = serve_in(&server, mode, &writes[1..]);
        assert!(matches!(ran.end, End::Dead(Error::PayloadTooLong { .. })));
    }
}

#[test]
fn what_the_client_was_sent_is_shown() {
    let server = Server::with(Export::new("disk").size(10_000).sizes(512, 4096, 65536));
    for mode in HEADER_STYLES {
        let transmission = transmission(&server, &mode.options());
        assert_eq!(transmission.size(), 9728, "whole blocks");
        assert_eq!(transmission.in_flight(), 0);
    }
}

#[test]
fn a_payload_of_32_mib_is_never_too_long() {
    // S-101, S-145, S-146, H-060
    let server = Server::with(Export::new("disk").size(32 << 20));
    let data = vec![7; 32 << 20];
    for mode in HEADER_STYLES {
        let script = [mode.options(), mode.req(0, 1, 1, 0, 32 << 20, &data)].concat();
        let ran = run_in(&server, &script, Way::new(false, &[1 << 20]));
        assert!(ran.said.last().unwrap().starts_with("#1 "));
        assert_eq!(ran.end, End::Idle);
    }
    let request = xreq(0x20, 0, 1, 0, 32 << 20, &data);
    let script = [Enter::Extended.options(), request].concat();
    let ran = run_in(&server, &script, Way::new(true, &[1 << 20]));
    assert_eq!(ran.said.last().unwrap(), "#1 error 22 done");
}

#[test]
fn disconnecting_ends_reading_but_not_answering() {
    // S-164, H-062, A-061, A-062
    for mode in HEADER_STYLES {
        for (flags, offset, len) in [(0, 0, 0), (0xffdf, 5, 0xffff_ffff)] {
            let server = Server {
                keep_back: 100,
                ..Server::default()
            };
            let mut requests: Vec<_> = (0..4).map(|n| mode.req(0, 0, n, n, 4, b"")).collect();
            requests.push(mode.req(flags, 2, 9, offset, len, b""));
            requests.push(b"garbage that is never parsed".to_vec());
            let ran = serve_in(&server, mode, &requests);
            assert_eq!(ran.end, End::Disconnected);
            assert_eq!(ran.said.len(), 4);
            assert!(ran.said[0].starts_with("#3"));
        }
    }
}

#[test]
fn requests_in_flight_are_limited() {
    // S-167, S-219, B-012, B-013, H-052, H-061
    for mode in HEADER_STYLES {
        let server = Server::default().limits(|limits| limits.accepted = 2);
        let mut transmission = transmission(&server, &mode.options());
        let flood = mode.req(0, 3, 1, 0, 0, b"").repeat(5);
        let mut rest = &flood[..];
        let mut receipts = Vec::new();
        for _ in 0..2 {
            let fed = transmission.feed(rest).unwrap();
            rest = &rest[fed.used..];
            let Some(Event::Request(request)) = fed.event else {
                panic!()
            };
            let mut out = Vec::new();
            receipts.push(plain(request, &mut out));
        }
        assert_eq!(transmission.fill(), Fill::Blocked);
        let fed = transmission.feed(rest).unwrap();
        assert_eq!((fed.used, fed.event.is_none()), (0, true));
        transmission.retire(receipts.pop().unwrap());
        assert!(matches!(transmission.fill(), Fill::Control(_)));
        assert_eq!(transmission.in_flight(), 1);
    }
    // A refused request counts until its reply has left.
    let server = Server::default().limits(|limits| limits.accepted = 1);
    let mut transmission = transmission(&server, &Enter::Simple.options());
    let fed = transmission.feed(&req(0, 99, 1, 0, 0, b"")).unwrap();
    let Some(Event::Answered(reply)) = fed.event else {
        panic!()
    };
    assert_eq!(transmission.fill(), Fill::Blocked);
    transmission.retire(reply.receipt);
    assert!(matches!(transmission.fill(), Fill::Control(_)));
    // A limit of zero would allow no request.
    let server = Server::default().limits(|limits| limits.accepted = 0);
    let ran = serve_in(&server, Enter::Simple, &[req(0, 0, 1, 0, 1, b"")]);
    assert_eq!(ran.said, ["#1 ok 1"]);
}

#[test]
fn a_payload_is_lent_exactly_and_never_empty() {
    // S-167, H-054
    let mut transmission = transmission(&Server::default(), &Enter::Simple.options());
    assert!(matches!(transmission.fill(), Fill::Control(space) if space.len() == 28));
    let bytes = req(0, 1, 1, 0, 10, b"0123456789");
    let fed = transmission.feed(&bytes).unwrap();
    assert_eq!((fed.used, fed.payload), (28, None));
    assert_eq!(
        transmission.fill(),
        Fill::Payload {
            range: 0..10,
            len: 10
        }
    );
    assert!(transmission.filled(4).unwrap().is_none());
    assert!(!transmission.is_idle());
    assert_eq!(
        transmission.fill(),
        Fill::Payload {
            range: 4..10,
            len: 10
        }
    );
    let fed = transmission.feed(&bytes[32..]).unwrap();
    assert_eq!((fed.used, fed.payload), (6, Some(4..10)));
    assert!(matches!(fed.event, Some(Event::Request(_))));
    assert!(transmission.is_idle());
}

#[test]
fn a_write_without_the_flag_has_a_payload_all_the_same() {
    // S-169, A-079: qemu 10 sends extended writes like this.
    let mut script = xreq(0, 1, 1, 512, 3, b"abc");
    script.extend(xreq(0, 3, 2, 0, 0, b""));
    let ran = serve_in(&Server::default(), Enter::Extended, &[script]);
    assert_eq!(
        ran.asked,
        [
            "Write { offset: 512, len: 3, fua: false, [61, 62, 63]",
            "Flush {"
        ]
    );
}

#[test]
fn a_server_that_is_going_away_says_so() {
    // S-231
    for mode in HEADER_STYLES {
        let mut transmission = transmission(&Server::default(), &mode.options());
        let before = request(&mut transmission, &mode.req(0, 0, 1, 0, 4, b""));
        transmission.shut_down();
        let mut bytes = mode.req(0, 1, 2, 0, 512, &[0; 512]);
        bytes.extend(mode.req(0, 99, 3, 0, 0, b""));
        let mut rest = &bytes[..];
        let mut errors = Vec::new();
        while !rest.is_empty() {
            let fed = transmission.feed(rest).unwrap();
            rest = &rest[fed.used..];
            match fed.event {
                Some(Event::Answered(reply)) => {
                    let mut out = Vec::new();
                    transmission.retire(send(*reply, &mut out));
                    let at = match mode {
                        Enter::Simple => 4,
                        Enter::Structured => 20,
                        Enter::Extended => 32,
                    };
                    errors.push(u32::from_be_bytes(out[at..at + 4].try_into().unwrap()));
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        assert_eq!(errors, [108, 108]);
        // Requests before the disconnect are finished.
        let mut out = Vec::new();
        transmission.retire(plain(before, &mut out));
        assert!(!transmission.is_finished());
        assert!(matches!(
            transmission
                .feed(&mode.req(0, 2, 4, 0, 0, b""))
                .unwrap()
                .event,
            Some(Event::Disconnect)
        ));
        assert!(transmission.is_finished());
    }
    let server = Server {
        shutting_down: true,
        refusal: Some(Refusal::Shutdown),
        ..Server::default()
    };
    assert_eq!(
        run(&server, &options(&[go("disk", &[])])).said,
        ["7: SHUTDOWN"]
    );
}

#[test]
fn the_end_of_a_client_is_no_loss_between_requests_only() {
    // S-233, A-063
    for mode in HEADER_STYLES {
        let bytes = mode.req(0, 1, 1, 0, 4, b"data");
        assert_eq!(
            serve_in(&Server::default(), mode, std::slice::from_ref(&bytes)).end,
            End::Idle
        );
        for cut in [1, 4, 27, bytes.len() - 1] {
            let ran = serve_in(&Server::default(), mode, &[bytes[..cut].to_vec()]);
            assert_eq!(ran.end, End::Inside);
            assert!(ran.asked.is_empty(), "half a write is not carried out");
        }
    }
}

#[test]
fn any_flags_of_any_command_get_a_legal_reply() {
    // H-065
    const DEFINED: u16 = 0x3f;
    for mode in HEADER_STYLES {
        let server = Server::default();
        let options = match mode {
            Enter::Simple => mode.options(),
            _ => mode.with_contexts(&["base:allocation"]),
        };
        let mut transmission = transmission(&server, &options);
        for command in (0..10).filter(|command| *command != 2) {
            for flags in 0..=u16::MAX {
                let payload = command == 1 || mode == Enter::Extended && flags & 0x20 != 0;
                let data = if payload { &[0; 12][..] } else { &[] };
                let bytes = mode.req(flags, command, 1, 0, 12, data);
                let mut rest = &bytes[..];
                let mut event = None;
                while event.is_none() {
                    let fed = transmission.feed(rest).unwrap();
                    rest = &rest[fed.used..];
                    event = fed.event;
                }
                assert!(rest.is_empty());
                let mut out = Vec::new();
                transmission.retire(match event.unwrap() {
                    Event::Request(request) => {
                        assert_eq!(flags & !DEFINED, 0, "{command} {flags:#x}");
                        plain(request, &mut out)
                    }
                    Event::Answered(reply) => {
                        let receipt = send(*reply, &mut out);
                        let errno = match (mode, out[0]) {
                            (_, 0x67) => &out[4..8],
                            (Enter::Structured, _) => &out[20..24],
                            _ => &out[32..36],
                        };
                        assert_eq!(errno, [0, 0, 0, 22], "{command} {flags:#x}");
                        receipt
                    }
                    Event::Disconnect => panic!(),
                });
            }
        }
    }
}
