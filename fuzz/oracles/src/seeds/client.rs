//! Servers, for the client.

use super::{PATTERN, counted};
use crate::bytes::{self, D};

pub(super) fn negotiation() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |config: u8, secure: u8, actions: &[u8], server: &[Vec<u8>]| {
        let parts = [counted(actions), counted(PATTERN), server.concat()];
        [&[config, secure], &parts.concat()[..]].concat()
    };
    let hello = || bytes::hello(3);
    let sr_or_chunk = bytes::ch(D, 1, 1 << 32, bytes::data_at(0, &[7]));
    let granted = [
        bytes::ibs(7, 1, 4096, 1 << 25),
        bytes::info(7, 1, "disk"),
        bytes::info(7, 2, "about it"),
        bytes::info(7, 99, "unknown"),
        bytes::iexp(7, 1 << 20, 0x1ded),
        bytes::ack(7),
    ]
    .concat();
    let list = [
        bytes::server(b"disk", b"about it"),
        bytes::server(b"\xff", b""),
        bytes::ack(3),
    ]
    .concat();
    let contexts = |option: u32| {
        [
            bytes::meta(option, 1, "base:allocation"),
            bytes::meta(option, 2, "x:a"),
            bytes::ack(option),
        ]
        .concat()
    };
    let old = [bytes::old(1 << 20, 1), bytes::sr(0, 1 << 32, [7])];
    let newstyle = [
        bytes::hello(0),
        bytes::export_block(1 << 20, 3),
        vec![0; 124],
    ];
    let everything = [
        hello(),
        list.clone(),
        bytes::ack(11),
        contexts(9),
        contexts(10),
        bytes::err(7, 6, "no such export"),
        granted.clone(),
        bytes::xch(D, 1, 1 << 32, 0, bytes::data_at(0, &[7])),
    ];
    let structured = [
        hello(),
        bytes::ack(8),
        contexts(10),
        granted.clone(),
        sr_or_chunk,
    ];
    let tls = [hello(), bytes::ack(5), list.clone(), bytes::ack(8)];
    let actions = [0, 6, 7, 1, 4, 8, 1, 4, 2, 2, 0, 2, 1, 2];
    vec![
        ("everything", seed(0, 0, &actions, &everything)),
        ("everything-strict", seed(2, 0, &actions, &everything)),
        ("everything-tight", seed(8, 0, &actions, &everything)),
        (
            "structured",
            seed(0, 0, &[5, 8, 1, 2, 2, 1, 2], &structured),
        ),
        ("tls", seed(0, 0, &[4, 0, 5, 9], &tls)),
        ("secure", seed(0, 1, &[0, 5, 9], &tls)),
        (
            "no-tls",
            seed(0, 0, &[4, 9], &[hello(), bytes::err(5, 2, "no")]),
        ),
        (
            "secure-no-tls",
            seed(0, 1, &[], &[hello(), bytes::err(5, 2, "no")]),
        ),
        (
            "info",
            seed(
                3,
                0,
                &[1, 1, 2],
                &[hello(), bytes::iexp(6, 1, 0), bytes::ack(6)],
            ),
        ),
        ("oldstyle", seed(0, 0, &[], &old)),
        ("newstyle", seed(0, 0, &[1], &newstyle)),
        (
            "export-name",
            seed(0, 0, &[3, 1], &[hello(), bytes::export_block(1 << 20, 3)]),
        ),
        ("abort", seed(0, 0, &[9], &[hello()])),
        ("wrong-option", seed(0, 0, &[0], &[hello(), bytes::ack(7)])),
        (
            "too-long",
            seed(0, 0, &[0], &[hello(), bytes::rep_header(3, 2, u32::MAX)]),
        ),
    ]
}

/// Cookies of the first requests.
const FIRST: u64 = 1 << 32;
const SECOND: u64 = 1 << 32 | 1;

pub(super) fn transmission() -> Vec<(&'static str, Vec<u8>)> {
    // The mode, then the export: 1 MiB, everything possible, no block sizes.
    let seed = |config: u8, mode: u8, asks: &[[u8; 6]], built: u8, server: &[u8]| {
        let count = u8::try_from(asks.len()).expect("seeds are short");
        let entry = [config, mode, 0, 0, 0, count - 1];
        [
            &entry[..],
            &asks.concat(),
            &counted(PATTERN),
            &[built],
            server,
        ]
        .concat()
    };
    let read = [0, 0, 0, 0, 0, 8];
    let second = [0, 0, 0, 8, 0, 8];
    let df = [0, 4, 0, 0, 0, 8];
    let unwanted = [16, 0, 0, 0, 0, 8];
    let write = [8, 0x40, 0, 1, 0, 1];
    let flush = [9, 0, 0, 0, 0, 0];
    let zeroes = [12, 0x40, 0, 1, 0, 1];
    let status = [13, 0x40, 0, 0, 0, 4];
    let one = [13, 0x48, 0, 0, 0, 4];
    let filtered = [45, 0x40, 0, 0, 0, 4];
    let data = |at: u64| bytes::data_at(at, b"data");
    let fragments = [
        bytes::ch(0, 1, FIRST, data(4)),
        bytes::ch(0, 2, SECOND, bytes::hole_at(8, 4)),
        bytes::ch(D, 1, FIRST, data(0)),
        bytes::ch(D, 1, SECOND, data(12)),
    ]
    .concat();
    let extended = [
        bytes::xch(0, 1, FIRST, 0, data(4)),
        bytes::xch(0, 2, FIRST, 0, bytes::hole_at(0, 4)),
        bytes::xch(D, 0, FIRST, 0, []),
    ]
    .concat();
    let failures = [
        bytes::ch(0, 1, FIRST, data(0)),
        bytes::ch(0, 0x8002, FIRST, bytes::error_at(5, "a bad block", 4)),
        bytes::ch(D, 0x8001, FIRST, bytes::error(5, "failed")),
        bytes::sr(108, SECOND, []),
    ]
    .concat();
    let extents = [
        bytes::ch(0, 5, FIRST, bytes::status(7, &[(512, 3), (4096, 0)])),
        bytes::ch(D, 5, FIRST, bytes::status(8, &[(2048, 1)])),
    ]
    .concat();
    let wide = [
        bytes::xch(
            0,
            6,
            FIRST,
            0,
            bytes::xstatus(7, 2, &[(512, 3), (1 << 40, 0)]),
        ),
        bytes::xch(D, 6, FIRST, 0, bytes::xstatus(8, 1, &[(2048, 1)])),
    ]
    .concat();
    let simple = [
        bytes::sr(0, SECOND, b"12345678"),
        bytes::sr(0, FIRST, b"abcdefgh"),
    ]
    .concat();
    // Right answers to all in turn, then some of every kind.
    let right = [0x08, 1, 0x18, 2, 0x28, 3, 0x38, 4, 0x48, 5, 0x58, 6];
    let odd = [
        0x02, 0, 4, 0, 0, 4, 1, 2, 3, 4, 0x13, 0, 0, 0, 4, 0x24, 0, 2, 1, 0, 3, 2, 0, 1, 0x16, 0,
        2, 0, 0, 3, b'b', b'a', b'd', 0x1d, 0, 2, b'n', b'o', 0xf8, 4, 1, 2, 3, 4,
    ];
    let every = [read, second, write, status, flush, zeroes];
    let mut seeds = vec![
        ("simple", seed(0, 0, &[read, second], 0, &simple)),
        ("fragments", seed(0, 1, &[read, second], 0, &fragments)),
        (
            "fragments-tight",
            seed(8, 1, &[read, second], 0, &fragments),
        ),
        ("unwanted", seed(0, 1, &[unwanted, second], 0, &fragments)),
        ("df", seed(0, 1, &[df, second], 0, &fragments)),
        ("extended", seed(0, 2, &[read], 0, &extended)),
        ("failures", seed(0, 1, &[read, write], 0, &failures)),
        ("failures-lenient", seed(3, 1, &[read, write], 0, &failures)),
        ("extents", seed(0, 1, &[status], 0, &extents)),
        ("extents-one", seed(0, 1, &[one], 0, &extents)),
        ("extents-strict", seed(2, 1, &[one], 0, &extents)),
        ("wide-extents", seed(0, 2, &[status], 0, &wide)),
        ("filtered", seed(2, 2, &[filtered], 0, &wide)),
        (
            "a-byte-short",
            seed(
                0,
                1,
                &[read],
                0,
                &bytes::ch(D, 1, FIRST, bytes::data_at(1, b"1234567")),
            ),
        ),
        (
            "unknown-cookie",
            seed(0, 0, &[flush], 0, &bytes::sr(0, 99, [])),
        ),
    ];
    let built = [
        ("right-simple", 0, &right[..]),
        ("right-structured", 1, &right),
        ("right-extended", 2, &right),
        ("odd-structured", 1, &odd),
        ("odd-extended", 2, &odd),
    ];
    for (name, mode, server) in built {
        seeds.push((name, seed(0, mode, &every, 1, server)));
    }
    // Three at a time, so that slots are used again.
    seeds.push(("right-tight", seed(8, 1, &every, 1, &right)));
    seeds
}
