//! Clients, for the server.

use super::{PATTERN, counted};
use crate::bytes;

/// A server that has everything and a disk of 1 MiB, and its decisions.
fn world(config: u8, more: u8, sizes: u8, decisions: &[u8]) -> Vec<u8> {
    [&[config, more, sizes, 0, 0, 0], &counted(decisions)[..]].concat()
}

pub(super) fn negotiation() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |config: u8, decisions: &[u8], flags: u32, client: &[Vec<u8>]| {
        let world = world(config, 1, 0, decisions);
        [world, counted(PATTERN), bytes::cf(flags), client.concat()].concat()
    };
    let go = || bytes::opt(7, bytes::info_data("disk", &[1, 2, 3]));
    let contexts = |option| {
        let data = bytes::meta_data("disk", &["base:allocation", "x:"]);
        bytes::opt(option, data)
    };
    let read = || bytes::req(0, 0, 1, 512, 16);
    let everything = [
        bytes::opt(99, [1; 50]),
        bytes::opt(3, []),
        bytes::opt(6, bytes::info_data("", &[3])),
        bytes::opt(8, []),
        bytes::opt(8, []),
        contexts(9),
        contexts(10),
        bytes::opt(7, bytes::info_data("absent", &[])),
        go(),
        read(),
        bytes::req(0, 2, 2, 0, 0),
    ];
    let extended = [
        bytes::opt(11, []),
        contexts(10),
        bytes::opt(1, "disk"),
        bytes::opt(8, []),
        go(),
        bytes::xreq(0, 0, 1, 512, 16),
    ];
    let tls = [
        bytes::opt(3, []),
        bytes::opt(5, []),
        bytes::opt(5, []),
        go(),
        read(),
    ];
    let all_refused: Vec<u8> = (0xe0..=0xff).flat_map(|byte| [byte, 0]).collect();
    let questions: Vec<_> = (0..12)
        .flat_map(|_| {
            [
                bytes::opt(3, []),
                contexts(9),
                bytes::opt(6, bytes::info_data("", &[])),
            ]
        })
        .collect();
    vec![
        ("everything", seed(0, &[], 3, &everything)),
        ("everything-tight", seed(0x80, &[], 3, &everything)),
        ("everything-off", seed(0x7c, &[], 0, &everything)),
        ("extended", seed(0, &[], 3, &extended)),
        ("refused", seed(1, &all_refused, 3, &questions)),
        ("refused-in-the-clear", seed(0, &all_refused, 3, &questions)),
        ("tls", seed(1, &[], 3, &tls)),
        ("forced-tls", seed(3, &[], 3, &tls)),
        (
            "export-name",
            seed(0, &[], 0, &[bytes::opt(1, "disk"), read()]),
        ),
        ("no-such-name", seed(0, &[], 3, &[bytes::opt(1, "absent")])),
        ("abort", seed(0, &[], 3, &[bytes::opt(2, [])])),
        (
            "forced-abort",
            seed(2, &[], 3, &[bytes::opt(8, []), bytes::opt(2, [])]),
        ),
        ("wrong-flags", seed(0, &[], 0xff, &[])),
        (
            "malformed",
            seed(
                0,
                &[],
                3,
                &[bytes::opt(7, [0xff; 6]), bytes::opt(10, [0; 7])],
            ),
        ),
    ]
}

pub(super) fn transmission() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |mode: u8, decisions: &[u8], sizes: u8, client: &[Vec<u8>]| {
        let world = world(0, 0, sizes, decisions);
        [world, vec![mode, 1], counted(PATTERN), client.concat()].concat()
    };
    let compact = [
        bytes::req(0, 0, 1, 512, 512),
        bytes::req(4, 0, 2, 0, 512),
        bytes::req(0, 1, 3, 512, 4),
        b"data".to_vec(),
        bytes::req(8, 1, 4, 512, 4),
        b"junk".to_vec(),
        bytes::req(0, 3, 5, 0, 0),
        bytes::req(1, 4, 6, 0, 4096),
        bytes::req(0, 5, 7, 0, 4096),
        bytes::req(2, 6, 8, 0, 4096),
        bytes::req(0, 7, 9, 0, 65536),
        bytes::req(8, 7, 10, 0, 4096),
        bytes::req(0, 0, 11, u64::MAX, 512),
        bytes::req(0, 99, 12, 0, 0),
        bytes::req(0, 2, 13, 0, 0),
    ];
    let filter = [&4096_u64.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
    let wide = [
        bytes::xreq(0, 0, 1, 512, 512),
        bytes::xreq(0x20, 1, 2, 512, 512),
        vec![7; 512],
        bytes::xreq(0x20, 7, 3, 0, 12),
        filter,
        bytes::xreq(0x20, 0, 4, 0, 4),
        b"junk".to_vec(),
        bytes::xreq(0, 7, 5, 0, 1 << 20),
        bytes::xreq(0, 6, 6, 0, 1 << 20),
        bytes::xreq(0, 3, 7, 0, 0),
    ];
    let busy: Vec<u8> = (0..200u8).map(|n| n.wrapping_mul(83) ^ n >> 3).collect();
    let late: Vec<u8> = busy.iter().map(|byte| byte & 0x0f | 3).collect();
    let twice = [bytes::req(0, 0, 1, 0, 8), bytes::req(0, 0, 1, 8, 8)];
    vec![
        ("simple", seed(0, &[], 0, &compact)),
        ("simple-busy", seed(0, &busy, 1, &compact)),
        ("structured", seed(1, &[], 0, &compact)),
        ("structured-busy", seed(1, &busy, 0, &compact)),
        ("structured-late", seed(1, &late, 1, &compact)),
        ("extended", seed(2, &[], 0, &wide)),
        ("extended-busy", seed(2, &busy, 1, &wide)),
        ("extended-late", seed(2, &late, 0, &wide)),
        ("one-cookie-twice", seed(1, &busy, 0, &twice)),
        ("wrong-magic", seed(2, &[], 0, &compact)),
        (
            "too-long",
            seed(0, &[], 0, &[bytes::req(0, 1, 1, 0, u32::MAX)]),
        ),
        (
            "no-payload-flag",
            seed(2, &[], 0, &[bytes::xreq(0, 1, 1, 0, 4), b"data".to_vec()]),
        ),
    ]
}
