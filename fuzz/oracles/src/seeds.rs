//! The start of fuzzing: legal connections, and some that break the protocol.

mod client;
mod server;

use crate::bytes;

/// A seed: its target, its name and its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// All seeds, the same every time.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut all = Vec::new();
    let mut add = |target, seeds: Vec<(&'static str, Vec<u8>)>| {
        all.extend(seeds.into_iter().map(|(name, seed)| (target, name, seed)));
    };
    add("client_negotiation", client::negotiation());
    add("client_transmission", client::transmission());
    add("server_negotiation", server::negotiation());
    add("server_transmission", server::transmission());
    add("loopback", loopback());
    add("object_format", object_format());
    add("uri", uri());
    add("wire", wire());
    all
}

/// Bytes with their number in front of them.
fn counted(bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("seeds are short");
    [&[len], bytes].concat()
}

/// Lengths of pieces that hit every border sooner or later.
const PATTERN: &[u8] = &[0, 2, 19, 6, 0xe0];

fn loopback() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |world: [u8; 7], actions: &[u8], decisions: &[u8], asks: &[u8]| {
        let parts = [
            &counted(PATTERN),
            &counted(actions),
            &counted(decisions),
            asks,
        ];
        [&world[..], &parts.concat()[..]].concat()
    };
    // A command, its flags, its offset and its length.
    let every = [
        [5, 0, 0, 0, 3, 0xff],
        [0, 0, 0, 0, 7, 0xff],
        [0, 4, 0x40, 0, 1, 0xff],
        [0, 0, 0x7e, 0, 3, 0xff],
        [6, 1, 0x10, 0, 0, 0x10],
        [8, 0, 0, 0, 0, 0],
        [9, 1, 0x20, 0, 1, 0xff],
        [10, 0, 0x20, 0, 1, 0xff],
        [11, 3, 0x08, 0, 1, 0xff],
        [11, 16, 0x08, 0, 1, 0xff],
        [12, 0, 0x10, 0, 0x1f, 0xff],
        [12, 8, 0x20, 0, 0x1f, 0xff],
        [0x8c, 0, 0x10, 0, 0x0f, 0xff],
        [0x40, 0, 0, 0, 0x0f, 0xff],
        [0, 0, 0, 0, 0x1f, 0xff],
    ]
    .concat();
    // Pieces of data, failures in all places, extents; the answers in any order.
    let busy: Vec<u8> = (0..250u8).map(|n| n.wrapping_mul(83) ^ n >> 3).collect();
    let eager: Vec<u8> = busy.iter().map(|byte| byte & 0xb8).collect();
    let slow: Vec<u8> = busy.iter().map(|byte| byte | 2).collect();
    let plain = [0, 0, 0, 0, 0, 0, 0];
    let sizes = [0, 0, 0, 1, 1, 2, 3];
    let structured: &[u8] = &[2, 5, 0, 7];
    let extended: &[u8] = &[3, 5, 0, 15, 7, 0, 1];
    vec![
        ("simple", seed(plain, &[7, 0, 0, 0], &[], &every)),
        ("simple-busy", seed(plain, &[7, 0, 0, 0], &busy, &every)),
        ("simple-sizes", seed(sizes, &[], &eager, &every)),
        ("structured", seed(plain, structured, &[], &every)),
        ("structured-busy", seed(plain, structured, &busy, &every)),
        ("structured-sizes", seed(sizes, structured, &slow, &every)),
        ("extended", seed(plain, extended, &[], &every)),
        ("extended-busy", seed(plain, extended, &busy, &every)),
        ("extended-eager", seed(plain, extended, &eager, &every)),
        ("extended-sizes", seed(sizes, extended, &busy, &every)),
        (
            "tls",
            seed(plain, &[0, 6, 3, 0, 1, 0, 1, 4, 0, 2], &busy, &every),
        ),
        (
            "no-tls",
            seed([1, 0, 0, 0, 0, 0, 0], &[6, 2, 1, 3, 1], &busy, &every),
        ),
        (
            "export-name",
            seed(plain, &[2, 5, 0, 5, 7, 0, 0, 1], &busy, &every),
        ),
        (
            "old-newstyle",
            seed([16, 0, 0, 0, 0, 0, 0], &[], &busy, &every),
        ),
        ("zeroes", seed([0x30, 0, 2, 1, 0, 0, 0], &[], &busy, &every)),
        ("abort", seed(plain, &[0, 3, 2, 4, 1, 0, 8], &[], &[])),
        // A list that is asked for again counts as often as it has entries: more than a server allows.
        ("many-options", seed(plain, &[0; 255], &[], &[])),
        (
            "read-only",
            seed([0, 0, 2, 2, 0, 1, 1], structured, &busy, &every),
        ),
        (
            "nothing-offered",
            seed([0x0e, 0x1d, 0xfc, 0, 0, 0, 0], &[0, 2, 3], &[], &every),
        ),
    ]
}

fn object_format() -> Vec<(&'static str, Vec<u8>)> {
    // 2^40 bytes in blocks of 2^16, and a page of 300 bytes at offset 32.
    let fields = [7_u64, 1 << 40, 3, 99, 17, 2]
        .map(u64::to_le_bytes)
        .concat();
    let object = [3_u64, 99, 1].map(u64::to_le_bytes).concat();
    let head = |has_root: u8, root: &[u8]| {
        let begin = [b"NBDOHEAD".as_slice(), &[1, 16, 3, has_root, 0, 0, 0, 0]].concat();
        [&[0], &begin[..], &fields, root].concat()
    };
    let root = [&object[..], &[32, 0, 0, 0, 44, 1, 0, 0], &[9; 8]].concat();
    // The slots 0 and 9, of the same object.
    let mut bitmap = [0; 32];
    (bitmap[0], bitmap[1]) = (1, 2);
    let slot = [&[0, 0, 0, 32, 0, 0, 0, 0, 16, 0, 0], &[9; 8][..]].concat();
    let page = [
        b"NBDP".as_slice(),
        &[1, 2, 1, 0],
        &bitmap,
        &object,
        &slot,
        &slot,
    ]
    .concat();
    let name = b"\x02seg/0000000000000001-0000000000000abc/100000000";
    vec![
        ("head", head(1, &root)),
        ("head-of-a-hole", head(0, &[])),
        ("page", [&[1, 2], &page[..]].concat()),
        ("name", name.to_vec()),
        ("written-head", [&[3, 4], &[0x55; 60][..]].concat()),
        ("written-page", [&[4, 1], &[0x33; 110][..]].concat()),
        // Of 4 KiB: any bytes; a record that is cut off and changed; 300 blocks of 128 KiB.
        ("record", [&[5, 0, 1], &[0x20; 40][..]].concat()),
        ("spoiled-record", [&[6, 0, 3], &[7; 90][..]].concat()),
        (
            "bomb",
            [&[7, 4, 1], &[0xff; 8][..], &[0, 1, 43, 0, 1, 255, 255, 9]].concat(),
        ),
    ]
}

fn uri() -> Vec<(&'static str, Vec<u8>)> {
    [
        ("tcp", "nbd://localhost:10810/disk%201"),
        ("user", "nbds://alice@example.com/?tls-verify-peer=0"),
        ("unix", "nbd+unix:///disk?socket=/run/nbd%201.sock"),
        ("abstract", "nbd+unix:///?socket=%00name"),
        (
            "vsock",
            "nbds+vsock://3:1024/disk?tls-type=psk&tls-psk-file=/etc/keys",
        ),
        (
            "ipv6",
            "nbds://[fe80::1%25eth0]:1/?tls-type=x509&tls-hostname=a.example",
        ),
        ("anon", "nbds://h/e?tls-type=anon&tls-certificates=/etc/pki"),
        ("tcp-alias", "NBD+TCP://h"),
        ("wrong", "nbd://a:b@c:99999/#x?socket"),
    ]
    .map(|(name, text)| (name, text.into()))
    .into()
}

fn wire() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("request", bytes::req(5, 1, 7, 512, 1024)),
        ("extended-request", bytes::xreq(0x20, 1, 7, 512, 1024)),
        ("simple-reply", bytes::sr(5, 7, [])),
        ("chunk", bytes::ch(1, 1, 7, bytes::data_at(512, b"data"))),
        (
            "extended-chunk",
            bytes::xch(1, 6, 7, 0, bytes::xstatus(1, 1, &[(512, 3)])),
        ),
        ("error", bytes::error(5, "failed")),
        ("error-at", bytes::error_at(5, "failed", 512)),
        ("option", bytes::opt(7, bytes::info_data("disk", &[1, 3]))),
        ("info-data", bytes::info_data("disk", &[1, 2, 3])),
        (
            "meta-data",
            bytes::meta_data("disk", &["base:allocation", "x:"]),
        ),
        ("option-reply", bytes::iexp(7, 1 << 20, 3)),
        ("export-info", bytes::iexp(7, 1 << 20, 3)[20..].to_vec()),
        ("sizes-info", bytes::ibs(7, 1, 4096, 1 << 25)[20..].to_vec()),
        ("server", bytes::server(b"disk", b"about it")[20..].to_vec()),
        (
            "context",
            bytes::meta(10, 1, "base:allocation")[20..].to_vec(),
        ),
        ("export-block", bytes::export_block(1 << 20, 3)),
    ]
}
