//! Answers to block status requests.

use crate::support::*;
use nbd_proto::{
    Errno,
    meta::Extent,
    server::{Part, Receipt, Request, StatusTicket},
};

const TWO: [&str; 2] = ["base:allocation", "qemu:dirty-bitmap:a"];
const CHUNKS: [Enter; 2] = [Enter::Structured, Enter::Extended];

fn ask(
    server: &Server,
    mode: Enter,
    contexts: &[&str],
    flags: u16,
    offset: u64,
    len: u64,
) -> StatusTicket {
    let mut transmission = transmission(server, &mode.with_contexts(contexts));
    match request(&mut transmission, &mode.req(flags, 7, 1, offset, len, b"")) {
        Request::BlockStatus { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

/// The one chunk of a reply that these extents lead to, after it has been checked.
fn extents(
    server: &Server,
    mode: Enter,
    context: &str,
    flags: u16,
    range: (u64, u64),
    extents: Vec<(u64, u64)>,
) -> String {
    let options = mode.with_contexts(&[context]);
    let bytes = mode.req(flags, 7, 1, range.0, range.1, b"");
    let ticket = ask(server, mode, &[context], flags, range.0, range.1);
    let extents = extents
        .into_iter()
        .map(|(len, status)| Extent { len, status });
    let Part::Last(reply) = ticket.extents(extents) else {
        panic!()
    };
    let before = run_in(server, &options, Way::new(true, &[1 << 20]));
    let mut sent = before.sent;
    let _ = send(reply, &mut sent);
    let said = crate::val::check(&[options, bytes].concat(), &sent, &server.config.limits);
    let words = said.last().unwrap();
    words
        .strip_prefix("#1 status 1")
        .unwrap()
        .strip_suffix(" done")
        .unwrap()
        .into()
}

/// Lets the decoder check the chunks that extents lead to.
pub(crate) fn checked(
    server: &Server,
    mode: Enter,
    flags: u16,
    range: (u64, u64),
    list: Vec<(u64, u64)>,
) {
    extents(server, mode, TWO[1], flags, range, list);
}

#[test]
fn extents_are_answered_byte_for_byte() {
    // S-204, S-205, S-206
    let server = Server::default();
    let two = [
        Extent {
            len: 512,
            status: 3,
        },
        Extent {
            len: 1024,
            status: 0,
        },
    ];
    for (mode, expected) in [
        (
            Enter::Structured,
            &b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x01\0\0\0\x14\0\0\0\x01\
              \0\0\x02\0\0\0\0\x03\0\0\x04\0\0\0\0\0"[..],
        ),
        (
            Enter::Extended,
            b"\x6e\x8a\x27\x8c\0\x01\0\x06\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\0\
              \0\0\0\0\0\0\0\x28\0\0\0\x01\0\0\0\x02\
              \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0",
        ),
    ] {
        let Part::Last(reply) = ask(&server, mode, &TWO[..1], 0, 512, 4096).extents(two) else {
            panic!();
        };
        let mut out = Vec::new();
        let _ = send(reply, &mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn there_is_one_chunk_for_each_context() {
    // S-182, S-203, S-205, S-215
    for mode in CHUNKS {
        for (contexts, expected) in [
            (&TWO[..1], &["#1 status 1 512:1 done"][..]),
            (&TWO, &["#1 status 1 512:1", "#1 status 2 512:2 done"]),
        ] {
            let bytes = mode.req(0, 7, 1, 0, 512, b"");
            let ran = serve_after(&Server::default(), &mode.with_contexts(contexts), &[bytes]);
            assert_eq!(ran.said, expected);
        }
        let ticket = ask(&Server::default(), mode, &TWO, 0, 0, 512);
        let names: Vec<_> = ticket
            .contexts()
            .map(|context| context.name().as_str())
            .collect();
        assert_eq!(names, TWO);
        assert_eq!(
            (ticket.context().id(), ticket.context().name().as_str()),
            (1, TWO[0])
        );
    }
}

#[test]
fn a_filter_leaves_contexts_out() {
    // S-173, S-203
    let options = Enter::Extended.with_contexts(&TWO);
    for (ids, expected) in [
        (&[2u32][..], &["#1 status 2 512:2 done"][..]),
        (&[1], &["#1 status 1 512:1 done"]),
        (&[2, 1], &["#1 status 2 512:2", "#1 status 1 512:1 done"]),
    ] {
        let mut payload = 4096u64.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        let len = u64::try_from(payload.len()).unwrap();
        let bytes = xreq(0x20, 7, 1, 0, len, &payload);
        let ran = serve_after(&Server::default(), &options, &[bytes]);
        assert_eq!(ran.said, expected);
        assert_eq!(
            ran.asked,
            ["BlockStatus { offset: 0, len: 4096, one: false,"]
        );
    }
}

#[test]
fn extents_are_corrected() {
    // S-204, S-206, S-207, S-208, S-210, S-211
    let server = Server::default();
    let size = 1 << 20;
    for mode in CHUNKS {
        let corrected =
            |range, list: &[(u64, u64)]| extents(&server, mode, TWO[1], 0, range, list.to_vec());
        // Equal neighbours become one; empty extents are skipped.
        assert_eq!(
            corrected((0, 4096), &[(512, 1), (512, 1), (0, 5), (512, 1), (512, 0)]),
            " 1536:1 512:0"
        );
        // Only the last one may go past the request, and none past the export.
        assert_eq!(
            corrected((0, 1024), &[(512, 1), (8192, 0), (512, 1)]),
            " 512:1 8192:0"
        );
        assert_eq!(corrected((0, 1024), &[(1024, 1), (512, 0)]), " 1024:1");
        assert_eq!(corrected((size - 512, 512), &[(8192, 1)]), " 512:1");
        assert_eq!(
            corrected((size - 512, 512), &[(u64::MAX, 1), (u64::MAX, 1)]),
            " 512:1"
        );
        assert_eq!(
            corrected((0, 1024), &[(512, 1), (u64::MAX, 0)]),
            format!(" 512:1 {}:0", size - 512)
        );
        // Less than was asked for is enough.
        assert_eq!(corrected((0, size), &[(512, 1)]), " 512:1");
        // S-213: with nothing known, status 0 is always safe.
        assert_eq!(corrected((0, 4096), &[]), " 4096:0");
        assert_eq!(corrected((0, 4096), &[(0, 1)]), " 4096:0");
    }
}

#[test]
fn no_more_extents_are_taken_than_needed() {
    // H-056
    for mode in CHUNKS {
        let ticket = ask(&Server::default(), mode, &TWO[..1], 0, 0, 4096);
        let mut taken = 0;
        let endless = (0..).map(|n| {
            taken += 1;
            Extent {
                len: 512,
                status: n % 2,
            }
        });
        let Part::Last(_) = ticket.extents(endless) else {
            panic!()
        };
        assert_eq!(taken, 8);
    }
}

#[test]
fn one_extent_is_one_and_within_the_request() {
    // S-153, S-207
    let server = Server::default();
    for mode in CHUNKS {
        let one = |list: &[(u64, u64)]| extents(&server, mode, TWO[0], 8, (0, 4096), list.to_vec());
        assert_eq!(one(&[(512, 1), (512, 0)]), " 512:1");
        assert_eq!(one(&[(512, 1), (512, 1), (512, 0)]), " 1024:1");
        assert_eq!(one(&[(8192, 1)]), " 4096:1");
        assert_eq!(one(&[]), " 4096:0");
    }
}

#[test]
fn lengths_and_statuses_fit_their_fields() {
    // S-137, S-205, S-216, S-217, H-056
    let server = Server::with(Export::new("disk").size(1 << 40));
    let huge = [(1 << 39, 1), (1 << 39, 0)].to_vec();
    let compact = extents(
        &server,
        Enter::Structured,
        TWO[1],
        0,
        (0, 0xffff_ffff),
        huge.clone(),
    );
    assert_eq!(compact, " 4294901760:1");
    let extended = extents(&server, Enter::Extended, TWO[1], 0, (0, 1 << 40), huge);
    assert_eq!(extended, " 549755813888:1 549755813888:0");
    let first = extents(
        &server,
        Enter::Structured,
        TWO[1],
        0,
        (0, 0xffff_ffff),
        vec![(512, 0), (1 << 33, 1), (512, 0)],
    );
    assert_eq!(first, " 512:0 4294901760:1");
    // Reserved bits of base:allocation are not for the client.
    for mode in CHUNKS {
        let base = extents(
            &server,
            mode,
            TWO[0],
            0,
            (0, 1024),
            vec![(512, u64::MAX), (512, 4)],
        );
        assert_eq!(base, " 512:3 512:0");
    }
    let wide = extents(
        &server,
        Enter::Extended,
        TWO[1],
        0,
        (0, 512),
        vec![(512, 1 << 40)],
    );
    assert_eq!(wide, format!(" 512:{}", 1u64 << 40));
}

#[test]
fn the_number_of_extents_is_limited() {
    // S-191, S-209, H-056
    let server = Server::with(Export::new("disk").size(1 << 40));
    let endless = |most: u64| (0..most).map(|n| (1, n % 2)).collect::<Vec<_>>();
    for mode in CHUNKS {
        let counted = |payload: usize| match mode {
            Enter::Extended => (payload - 8) / 16,
            _ => (payload - 4) / 8,
        };
        let ticket = ask(&server, mode, &TWO[..1], 0, 0, 0xffff_ffff);
        let list = endless(1 << 21)
            .into_iter()
            .map(|(len, status)| Extent { len, status });
        let Part::Last(reply) = ticket.extents(list) else {
            panic!()
        };
        let fields = if mode == Enter::Extended { 8 } else { 4 };
        assert_eq!(counted(reply.frame.payload().len() + fields), 1 << 20);
        // No chunk has more than the maximum payload.
        let small = Server::with(Export::new("disk").size(1 << 40).sizes(1, 512, 512));
        extents(&small, mode, TWO[0], 0, (0, 4096), endless(4096));
    }
}

#[test]
fn extents_are_whole_blocks() {
    // S-211, S-212
    let server = Server::with(Export::new("disk").sizes(4096, 4096, 65536));
    for mode in CHUNKS {
        let corrected =
            |list: &[(u64, u64)]| extents(&server, mode, TWO[0], 0, (4096, 65536), list.to_vec());
        assert_eq!(corrected(&[(4096, 1), (8192, 0)]), " 4096:1 8192:0");
        assert_eq!(
            corrected(&[(8192, 1), (4608, 0), (512, 3)]),
            " 8192:1 4096:0"
        );
        assert_eq!(corrected(&[(512, 1), (512, 0)]), " 4096:0");
        assert_eq!(corrected(&[(6000, 1)]), " 4096:1");
        assert_eq!(corrected(&[(4096, 0), (512, 1), (3584, 0)]), " 4096:0");
        assert_eq!(corrected(&[(4096, 1), (512, 0), (3584, 1)]), " 4096:1");
    }
}

#[test]
fn status_can_fail_before_and_between_contexts() {
    // S-214, S-215, A-073
    fn before(request: Request, out: &mut Vec<u8>) -> Receipt {
        send(request.fail(Errno::Io, "bad disk"), out)
    }
    fn between(request: Request, out: &mut Vec<u8>) -> Receipt {
        let Request::BlockStatus { ticket, .. } = request else {
            panic!()
        };
        let one = [Extent {
            len: 512,
            status: 0,
        }];
        match send_part(ticket.extents(one), out) {
            Ok(rest) => send(rest.fail(Errno::Io, "bad disk"), out),
            Err(receipt) => receipt,
        }
    }
    for mode in CHUNKS {
        let bytes = mode.req(0, 7, 1, 0, 512, b"");
        let options = mode.with_contexts(&TWO);
        let ran = serve_after(
            &Server::default().answer(before),
            &options,
            std::slice::from_ref(&bytes),
        );
        assert_eq!(ran.said, ["#1 error 5 done"]);
        let ran = serve_after(&Server::default().answer(between), &options, &[bytes]);
        assert_eq!(ran.said, ["#1 status 1 512:0", "#1 error 5 done"]);
    }
}
