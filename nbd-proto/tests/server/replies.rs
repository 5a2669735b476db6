//! Answers to reads and to every other command.
//!
//! It is longer than 500 lines because each kind of reply is written out in bytes.

use crate::support::*;
use bytes::{Buf, Bytes};
use nbd_proto::{
    Errno,
    server::{Part, ReadTicket, Receipt, Request, SparseRead, Ticket},
};

fn read(mode: Enter, flags: u16, offset: u64, len: u64) -> ReadTicket {
    let bytes = mode.req(flags, 0, 1, offset, len, b"");
    match request(
        &mut transmission(&Server::default(), &mode.options()),
        &bytes,
    ) {
        Request::Read { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

fn sparse(mode: Enter, offset: u64, len: u64) -> SparseRead {
    read(mode, 0, offset, len).into_sparse().unwrap()
}

fn said(
    mode: Enter,
    answer: fn(Request, &mut Vec<u8>) -> Receipt,
    request: Vec<u8>,
) -> Vec<String> {
    serve_in(&Server::default().answer(answer), mode, &[request]).said
}

fn ticket(request: Request) -> Ticket {
    match request {
        Request::Write { ticket, .. }
        | Request::Flush { ticket }
        | Request::Trim { ticket, .. }
        | Request::Cache { ticket, .. }
        | Request::WriteZeroes { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_go_to_other_threads() {
    // S-187, S-219
    fn can_be_sent<T: Send + 'static>() {}
    can_be_sent::<Request>();
    can_be_sent::<Receipt>();
    can_be_sent::<SparseRead>();
}

#[test]
fn data_is_answered_byte_for_byte() {
    // S-106, S-110, S-174, S-175, S-178, S-182
    for (mode, expected) in [
        (
            Enter::Simple,
            &b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x03"[..],
        ),
        (
            Enter::Structured,
            b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x0a\0\0\0\0\0\0\x03\xee\x02\x03",
        ),
        (
            Enter::Extended,
            b"\x6e\x8a\x27\x8c\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x03\xee\
              \0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\x03\xee\x02\x03",
        ),
    ] {
        let mut out = Vec::new();
        let _ = send(
            read(mode, 0, 1006, 2).data(&pattern_at(1006, 2)[..]),
            &mut out,
        );
        assert_eq!(out, expected);
    }
}

#[test]
fn a_payload_is_not_copied() {
    let data = Bytes::from(vec![7; 65536]);
    let reply = read(Enter::Structured, 0, 0, 65536).data(data.clone());
    assert_eq!(reply.frame.payload().as_ptr(), data.as_ptr());
    assert_eq!(reply.frame.header().len(), 28);
}

#[test]
fn holes_are_answered_byte_for_byte() {
    // S-197
    let mut out = Vec::new();
    let _ = send(
        read(Enter::Structured, 0, 512, 65536).hole().unwrap(),
        &mut out,
    );
    let mut expected = b"\x66\x8e\x33\xef\0\x01\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x0c".to_vec();
    expected.extend(b"\0\0\0\0\0\0\x02\0\0\x01\0\0");
    assert_eq!(out, expected);
    assert!(read(Enter::Simple, 0, 512, 65536).hole().is_err());
    assert!(read(Enter::Simple, 0, 512, 65536).into_sparse().is_err());
    for mode in HEADER_STYLES {
        let ran = said(
            mode,
            |request, out| match request {
                Request::Read { ticket, len, .. } => match ticket.hole() {
                    Ok(reply) => send(reply, out),
                    Err(ticket) => send(
                        ticket.data(&vec![0; usize::try_from(len).unwrap()][..]),
                        out,
                    ),
                },
                other => panic!("{other:?}"),
            },
            mode.req(0, 0, 1, 512, 4096, b""),
        );
        let expected = if mode == Enter::Simple {
            "#1 ok 4096"
        } else {
            "#1 hole 512+4096 done"
        };
        assert_eq!(ran, [expected]);
    }
}

/// Alternates between data and holes.
fn alternate(request: Request, out: &mut Vec<u8>) -> Receipt {
    let Request::Read { ticket, .. } = request else {
        return plain(request, out);
    };
    let mut sparse = ticket.into_sparse().unwrap();
    loop {
        let len = sparse.missing().min(1000);
        let part = if sparse.offset() % 2000 < 1000 {
            let data = pattern_at(sparse.offset(), len);
            send_part(sparse.data(&data[..]), out)
        } else {
            let len = u32::try_from(len).unwrap();
            send_part(sparse.hole(len), out)
        };
        match part {
            Ok(rest) => sparse = rest,
            Err(receipt) => return receipt,
        }
    }
}

#[test]
fn pieces_cover_a_read_exactly() {
    // S-182, S-183, S-185, S-188
    for mode in [Enter::Structured, Enter::Extended] {
        let said = said(mode, alternate, mode.req(0, 0, 1, 4000, 2500, b""));
        assert_eq!(
            said,
            [
                "#1 data 4000+1000",
                "#1 hole 5000+1000",
                "#1 data 6000+500 done"
            ]
        );
    }
}

#[test]
fn a_piece_past_the_end_is_a_bug_of_the_caller() {
    // S-188
    for (len, ok) in [(0, false), (1, true), (10, true), (11, false)] {
        let data = vec![0; len];
        let result = std::panic::catch_unwind(|| {
            let _ = sparse(Enter::Structured, 0, 10).data(&data[..]);
        });
        assert_eq!(result.is_ok(), ok);
        let result = std::panic::catch_unwind(|| {
            let _ = sparse(Enter::Structured, 0, 10).hole(u32::try_from(len).unwrap());
        });
        assert_eq!(result.is_ok(), ok);
    }
    let result = std::panic::catch_unwind(|| {
        let _ = read(Enter::Simple, 0, 0, 10).data(&[0; 9][..]);
    });
    assert!(result.is_err());
}

#[test]
fn an_unfragmented_read_is_answered_in_one_piece() {
    // S-152, S-196, A-041
    for mode in [Enter::Structured, Enter::Extended] {
        assert!(read(mode, 4, 0, 4096).into_sparse().is_err());
        for len in [4096, 65536, 65537, 1 << 20] {
            let said = said(mode, plain, mode.req(4, 0, 1, 0, len, b""));
            assert_eq!(said, [format!("#1 data 0+{len} done")]);
            let said = crate::replies::said(
                mode,
                |request, out| match request {
                    Request::Read { ticket, .. } => send(ticket.hole().unwrap(), out),
                    other => panic!("{other:?}"),
                },
                mode.req(4, 0, 1, 0, len, b""),
            );
            assert_eq!(said, [format!("#1 hole 0+{len} done")]);
        }
        // EOVERFLOW is for reads that are too long for one piece only.
        let overflow =
            |request: Request, out: &mut Vec<u8>| send(request.fail(Errno::Overflow, "no"), out);
        for (flags, len, errno) in [(4, 65536, 22), (4, 65537, 75), (0, 65537, 22)] {
            let said = said_with(mode, overflow, mode.req(flags, 0, 1, 0, len, b""));
            assert_eq!(said, [format!("#1 error {errno} done")]);
        }
    }
}

fn said_with(
    mode: Enter,
    answer: fn(Request, &mut Vec<u8>) -> Receipt,
    request: Vec<u8>,
) -> Vec<String> {
    said(mode, answer, request)
}

#[test]
fn a_read_beyond_the_maximum_payload_is_refused_up_front() {
    // S-189, S-190, S-191, A-083
    let server = Server::with(Export::new("disk").sizes(1, 512, 65536));
    for (mode, expected) in [
        (Enter::Simple, "#1 error 22"),
        (Enter::Structured, "#1 error 75 done"),
        (Enter::Extended, "#1 error 75 done"),
    ] {
        let serve = |len| serve_in(&server, mode, &[mode.req(0, 0, 1, 0, len, b"")]).said;
        assert_eq!(serve(65537), [expected]);
        assert_eq!(serve(1 << 20), [expected]);
        assert!(!serve(65536)[0].contains("error"));
    }
    // A chunk counts its offset too, and its length has 32 bits.
    let server =
        Server::with(Export::new("disk").size(1 << 40)).limits(|limits| limits.payload = u32::MAX);
    let mode = Enter::Structured;
    let options = options(&[mode.mode(), go("disk", &[])]);
    for (len, ok) in [((1 << 32) - 9, true), ((1 << 32) - 8, false)] {
        let mut transmission = transmission(&server, &options);
        let fed = transmission.feed(&mode.req(0, 0, 1, 0, len, b"")).unwrap();
        assert_eq!(
            matches!(fed.event, Some(nbd_proto::server::Event::Request(_))),
            ok
        );
    }
}

#[test]
fn success_without_data_is_one_short_message() {
    // S-106, S-109, S-174, S-177, S-184
    for (mode, expected) in [
        (
            Enter::Simple,
            &b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01"[..],
        ),
        (
            Enter::Structured,
            b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01",
        ),
        (
            Enter::Extended,
            b"\x6e\x8a\x27\x8c\0\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0",
        ),
    ] {
        for (command, payload) in [(1, &[0; 512][..]), (4, &[]), (5, &[]), (6, &[])] {
            let bytes = mode.req(0, command, 1, 512, 512, payload);
            let ran = serve_in(&Server::default(), mode, &[bytes]);
            assert_eq!(ran.sent, expected);
        }
    }
}

#[test]
fn a_failure_has_a_message_where_there_is_room() {
    // S-174, S-177, S-180, S-198, S-202
    let answer =
        |request: Request, out: &mut Vec<u8>| send(request.fail(Errno::Io, "bad disk"), out);
    for (mode, expected) in [
        (
            Enter::Simple,
            &b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x01"[..],
        ),
        (
            Enter::Structured,
            b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\x0e\0\0\0\x05\0\x08bad disk",
        ),
        (
            Enter::Extended,
            b"\x6e\x8a\x27\x8c\0\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\0\
              \0\0\0\0\0\0\0\x0e\0\0\0\x05\0\x08bad disk",
        ),
    ] {
        let options = match mode {
            Enter::Simple => mode.options(),
            _ => mode.with_contexts(&["base:allocation"]),
        };
        let server = Server::default().answer(answer);
        for (command, payload) in [
            (0, &[][..]),
            (1, &[0; 512]),
            (4, &[]),
            (5, &[]),
            (6, &[]),
            (7, &[]),
        ] {
            if command == 7 && mode == Enter::Simple {
                continue;
            }
            let bytes = mode.req(0, command, 1, 512, 512, payload);
            assert_eq!(serve_after(&server, &options, &[bytes]).sent, expected);
        }
        let ran = serve_after(&server, &options, &[mode.req(0, 3, 1, 0, 0, b"")]);
        assert_eq!(ran.said.len(), 1);
    }
}

#[test]
fn a_text_is_cut_where_a_client_would_stop_reading() {
    // S-026, S-181, S-198, A-052
    for (text, len) in [
        ("x".repeat(5000), 986),
        ("\u{e9}".repeat(5000), 986),
        // A character is not cut into two.
        (format!("x{}", "\u{e9}".repeat(5000)), 985),
        ("a\0b".to_string(), 1),
    ] {
        let bytes = Enter::Structured.req(0, 1, 1, 0, 4, b"data");
        let mut transmission = transmission(&Server::default(), &Enter::Structured.options());
        let reply = request(&mut transmission, &bytes).fail(Errno::Io, text.clone());
        assert_eq!(reply.frame.payload().len(), len);
        let bytes = Enter::Structured.req(0, 0, 1, 0, 4, b"");
        let Request::Read { ticket, .. } = request(&mut transmission, &bytes) else {
            panic!();
        };
        let reply = ticket.fail_at(Errno::Io, 2, text);
        assert_eq!(reply.frame.payload().len(), len + 8);
        assert!(reply.frame.remaining() <= 20 + 1000);
    }
}

#[test]
fn a_static_text_takes_no_memory() {
    static TEXT: &str = "bad disk";
    let reply = read(Enter::Structured, 0, 0, 4).fail(Errno::Io, TEXT);
    assert_eq!(reply.frame.payload().as_ptr(), TEXT.as_ptr());
}

#[test]
fn a_failure_can_have_a_place() {
    // S-194, S-200, S-201
    let at = |request: Request, out: &mut Vec<u8>| match request {
        Request::Read { ticket, .. } => send(ticket.fail_at(Errno::Io, 600, "bad"), out),
        other => send(ticket(other).fail_at(Errno::Io, 600, "bad"), out),
    };
    for mode in HEADER_STYLES {
        let (inside, outside) = match mode {
            Enter::Simple => ("#1 error 5", "#1 error 5"),
            _ => ("#1 error 5 at 600 done", "#1 error 5 done"),
        };
        for (command, offset, len, expected) in [
            (0, 512, 512, inside),
            (1, 512, 512, inside),
            (4, 600, 1, inside),
            (5, 512, 512, inside),
            (6, 512, 512, inside),
            (6, 601, 1, outside),
            (6, 599, 1, outside),
            (3, 0, 0, outside),
        ] {
            let payload = if command == 1 { &[0; 512][..] } else { &[] };
            let said = said(mode, at, mode.req(0, command, 1, offset, len, payload));
            assert_eq!(said, [expected]);
        }
    }
    let mut out = Vec::new();
    let _ = send(
        read(Enter::Structured, 0, 512, 512).fail_at(Errno::Io, 600, "bad"),
        &mut out,
    );
    let mut expected = b"\x66\x8e\x33\xef\0\x01\x80\x02\0\0\0\0\0\0\0\x01\0\0\0\x11".to_vec();
    expected.extend(b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\x02\x58");
    assert_eq!(out, expected);
}

#[test]
fn a_read_can_fail_between_its_pieces() {
    // S-192, S-193, S-194, S-195
    fn fail(request: Request, out: &mut Vec<u8>) -> Receipt {
        let Request::Read { ticket, offset, .. } = request else {
            panic!();
        };
        let sparse = ticket.into_sparse().unwrap();
        let Ok(sparse) = send_part(sparse.data(&[0; 100][..]), out) else {
            panic!();
        };
        match offset {
            0 => send(sparse.fail(Errno::Io, "bad"), out),
            // Of the sent data, this part is bad.
            offset => send(sparse.fail_at(Errno::Io, offset + 50, "bad"), out),
        }
    }
    for mode in [Enter::Structured, Enter::Extended] {
        let said_ = said(mode, fail, mode.req(0, 0, 1, 0, 512, b""));
        assert_eq!(said_, ["#1 data 0+100", "#1 error 5 done"]);
        let said_ = said(mode, fail, mode.req(0, 0, 1, 512, 512, b""));
        assert_eq!(said_, ["#1 data 512+100", "#1 error 5 at 562 done"]);
    }
}

#[test]
fn errors_are_those_that_the_specification_allows() {
    // S-156, S-227, S-228, S-229, S-155, A-055
    let fail = |errno: u32| {
        move |request: Request| {
            let reply = request.fail(Errno::from(errno), "no");
            let mut out = Vec::new();
            let _ = send(reply, &mut out);
            u32::from_be_bytes(out[4..8].try_into().unwrap())
        }
    };
    let ask = |flags, command, len, payload: &[u8]| {
        let server = Server::with(Export::new("disk").sizes(1, 512, 65536));
        let mut transmission = transmission(&server, &Enter::Simple.options());
        request(&mut transmission, &req(flags, command, 1, 0, len, payload))
    };
    for errno in [1, 5, 12, 22, 28, 108] {
        assert_eq!(fail(errno)(ask(0, 1, 4, b"data")), errno);
    }
    for errno in [0, 2, 9, 11, 30, 122, 9999, u32::MAX] {
        assert_eq!(fail(errno)(ask(0, 1, 4, b"data")), 22);
    }
    // ENOTSUP is for fast zeroes.
    for (flags, command, len, payload, expected) in [
        (16, 6, 512, &b""[..], 95),
        (0, 6, 512, b"", 22),
        (0, 4, 512, b"", 22),
        (0, 1, 4, b"data", 22),
        (0, 3, 0, b"", 22),
    ] {
        assert_eq!(fail(95)(ask(flags, command, len, payload)), expected);
    }
    // EOVERFLOW is for requests longer than the maximum payload, and not for fast zeroes.
    for (flags, command, len, expected) in [
        (0, 6, 65537, 75),
        (0, 6, 65536, 22),
        (16, 6, 65537, 22),
        (0, 4, 65537, 75),
        (0, 5, 65537, 75),
        (0, 3, 0, 22),
        (0, 0, 512, 22),
    ] {
        assert_eq!(fail(75)(ask(flags, command, len, b"")), expected);
    }
}

#[test]
fn a_read_in_one_piece_may_be_too_long_beyond_64_kib() {
    // S-190, S-196
    let overflow: fn(Request, &mut Vec<u8>) -> Receipt =
        |request, out| send(request.fail(Errno::Overflow, "no"), out);
    const DF: u16 = 4;
    for mode in [Enter::Structured, Enter::Extended] {
        for (flags, len, errno) in [
            (DF, 65537, 75),
            (DF, 65536, 22),
            (DF, 512, 22),
            (0, 65537, 22),
        ] {
            let said = said(mode, overflow, mode.req(flags, 0, 1, 0, len, b""));
            assert_eq!(said, [format!("#1 error {errno} done")], "{flags} {len}");
        }
    }
}

#[test]
fn a_filtered_block_status_may_be_too_long_as_any_other() {
    // S-173
    let overflow: fn(Request, &mut Vec<u8>) -> Receipt =
        |request, out| send(request.fail(Errno::Overflow, "no"), out);
    let server = Server::with(Export::new("disk").sizes(1, 512, 65536)).answer(overflow);
    let options = Enter::Extended.with_contexts(&["base:allocation"]);
    for (len, errno) in [(65537u64, 75), (65536, 22), (65535, 22)] {
        let filter = [&len.to_be_bytes()[..], &[0, 0, 0, 1]].concat();
        let ran = serve_after(&server, &options, &[xreq(0x20, 7, 1, 0, 12, &filter)]);
        assert_eq!(ran.said, [format!("#1 error {errno} done")], "{len}");
    }
}

#[test]
fn replies_are_shown_with_their_messages() {
    let reply = read(Enter::Structured, 0, 0, 4).data(&b"data"[..]);
    let shown = format!("{reply:?}");
    assert!(
        shown.starts_with("Reply(Frame") && shown.contains("payload_len: 4"),
        "{shown}"
    );
    let part = sparse(Enter::Structured, 0, 4).data(&b"da"[..]);
    let shown = format!("{part:?}");
    assert!(
        shown.starts_with("More { frame: Frame") && shown.contains("rest: "),
        "{shown}"
    );
}

#[test]
fn replies_may_come_in_any_order() {
    // S-187, S-219
    for mode in HEADER_STYLES {
        let server = Server {
            keep_back: 10,
            ..Server::default()
        };
        let requests: Vec<_> = (0..8).map(|n| mode.req(0, 0, n, n, 4, b"")).collect();
        let ran = serve_in(&server, mode, &requests);
        let cookies: Vec<_> = ran.said.iter().map(|said| &said[..2]).collect();
        assert_eq!(cookies, ["#7", "#6", "#5", "#4", "#3", "#2", "#1", "#0"]);
    }
    // Chunks of several replies may take turns.
    let mode = Enter::Structured;
    let mut transmission = transmission(&Server::default(), &mode.options());
    let mut sent = Vec::new();
    let mut halves = Vec::new();
    let mut script = mode.options();
    for cookie in [1, 2] {
        let bytes = mode.req(0, 0, cookie, 0, 10, b"");
        let Request::Read { ticket, .. } = request(&mut transmission, &bytes) else {
            panic!();
        };
        script.extend(bytes);
        halves.push(ticket.into_sparse().unwrap());
    }
    let mut rest = Vec::new();
    for half in halves {
        let Part::More { frame, rest: more } = half.hole(4) else {
            panic!()
        };
        bytes::BufMut::put(&mut sent, frame);
        rest.push(more);
    }
    for half in rest {
        let Part::Last(reply) = half.hole(6) else {
            panic!()
        };
        transmission.retire(send(reply, &mut sent));
    }
    let all = Server::default();
    let before = run_in(&all, &mode.options(), Way::new(true, &[1 << 20]));
    let whole = [before.sent, sent].concat();
    let said = crate::val::check(&script, &whole, &all.config.limits);
    assert_eq!(
        said[before.said.len()..],
        [
            "#1 hole 0+4",
            "#2 hole 0+4",
            "#1 hole 4+6 done",
            "#2 hole 4+6 done"
        ]
    );
}
